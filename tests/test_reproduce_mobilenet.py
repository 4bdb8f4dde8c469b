"""The table about MobileNetV2: layout, pictures, dense training, which rows there are and what they say."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import pickle
import warnings
from pathlib import Path
from typing import Any

import mobilenet
import numpy as np
import onnx
import pytest
import reproduce_mobilenet as reproduce
import scratch
import typer
from mobilenet import Data, Pictures
from reproduce_mobilenet import COLUMNS, Asked, Referee, Table
from trials import Made, Setting

from onnx_condense.errors import BudgetError
from onnx_condense.evidence.stages import part_of
from onnx_condense.runtime import Runtime, run

RNG = np.random.default_rng(0)
# A few blocks of the layout.
TINY = functools.partial(mobilenet.build, ((1, 8, 1, 1), (6, 12, 2, 2), (6, 12, 1, 1)), 8, 24)


def pictures(count: int, seed: int = 0) -> Pictures:
    """Noise whose class shows in its brightness."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, count)
    images = rng.integers(0, 100, (count, 3, 32, 32)) + 15 * labels[:, None, None, None]
    return Pictures(images.astype(np.uint8), labels)


@pytest.fixture(scope="module", name="torch")
def _torch() -> Any:
    return pytest.importorskip("torch")


@pytest.fixture(scope="module", name="tiny")
def _tiny(torch: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not trained; its running statistics are those of some pictures."""
    torch.manual_seed(0)
    model = TINY().train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model(torch.from_numpy(pictures(64).inputs()))
    path = tmp_path_factory.mktemp("tiny") / "net.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # PyTorch announces the end of its older exporter.
        mobilenet.export(model, path)
    return path


# ---- layout ----


def test_the_layout_is_that_of_torchvision(torch: Any) -> None:
    model = mobilenet.build().eval()
    assert sum(p.numel() for p in model.parameters()) == 2_236_682
    states = model.state_dict()
    assert len(states) == 314
    shapes = {
        "features.0.0.weight": (32, 3, 3, 3),
        "features.1.conv.0.0.weight": (32, 1, 3, 3),
        "features.1.conv.1.weight": (16, 32, 1, 1),
        "features.2.conv.1.0.weight": (96, 1, 3, 3),
        "features.17.conv.3.running_var": (320,),
        "features.18.0.weight": (1280, 320, 1, 1),
        "classifier.1.bias": (10,),
    }
    assert {name: tuple(states[name].shape) for name in shapes} == shapes
    assert sum(getattr(block, "adds", False) for block in model.features) == 10
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert model.features(torch.zeros(1, 3, 32, 32)).shape == (1, 1280, 1, 1)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 2), (2, 1), (4, 1)])
def test_small_maps_are_convolved_alike_in_training(torch: Any, stride: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer = mobilenet.depthwise(5, stride)
    found = []
    for mode in (True, False):
        x = torch.randn(3, 5, *size, generator=torch.Generator().manual_seed(1)).requires_grad_()
        y = layer.train(mode)(x)
        assert y.is_contiguous(memory_format=torch.channels_last if mode else torch.contiguous_format)
        layer.weight.grad = None
        (y**3).sum().backward()
        found.append((y.detach(), x.grad, layer.weight.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


# ---- pictures ----


def write_idx(path: Path, values: np.ndarray[Any, Any]) -> None:
    head = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
    path.write_bytes(gzip.compress(head + values.astype(np.uint8).tobytes()))


def fashion(folder: Path) -> np.ndarray[Any, Any]:
    """Fashion-MNIST's files; the training pictures."""
    images = RNG.integers(1, 256, (7, 28, 28))
    for part, count in (("train", 7), ("t10k", 3)):
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", images[:count])
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", np.arange(count))
    return images


def cifar(folder: Path, rows: int = 2) -> np.ndarray[Any, Any]:
    """CIFAR-10's files; all pictures as stored."""
    folder.mkdir(exist_ok=True)
    stored = RNG.integers(0, 256, (6, rows, 3072)).astype(np.uint8)
    for i, name in enumerate((*mobilenet.TRAINING_FILES, *mobilenet.TEST_FILES)):
        held = {b"data": stored[i], b"labels": [i] * rows, b"batch_label": b"some"}
        (folder / name).write_bytes(pickle.dumps(held, protocol=2))
    return stored


def test_fashion_is_padded_and_grey(tmp_path: Path) -> None:
    images = fashion(tmp_path)
    data = mobilenet.read(tmp_path)
    assert (data.name, len(data.fit.labels), len(data.held.labels)) == ("Fashion-MNIST", 7, 3)
    assert data.fit.images.shape == (7, 3, 32, 32)
    for channel in range(3):
        assert (data.fit.images[:, channel, 2:30, 2:30] == images).all()
    assert (data.fit.images > 0).sum() == 3 * images.size
    assert data.fit.labels.tolist() == list(range(7))
    fed = data.fit.inputs(np.array([4, 1]))
    assert fed.dtype == np.float32
    np.testing.assert_array_equal(fed[1, 0, 2:30, 2:30] * np.float32(255), images[1])


@pytest.mark.parametrize("below", ["", "cifar-10-batches-py"])
def test_cifar_goes_before_fashion(tmp_path: Path, below: str) -> None:
    fashion(tmp_path)
    stored = cifar(tmp_path / below)
    data = mobilenet.read(tmp_path)
    assert data.name == "CIFAR-10"
    assert data.fit.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert data.held.labels.tolist() == [5, 5]
    # Row 1 of batch 2: green at row 3, column 7.
    assert data.fit.images[5, 1, 3, 7] == stored[2, 1, 1024 + 32 * 3 + 7]
    assert (data.held.images.reshape(2, -1) == stored[5]).all()


def test_what_is_half_of_cifar_is_not_taken_for_it(tmp_path: Path) -> None:
    fashion(tmp_path)
    cifar(tmp_path)
    (tmp_path / "data_batch_3").unlink()
    assert mobilenet.read(tmp_path).name == "Fashion-MNIST"


class Harmful:
    """What runs code when it is read."""

    def __reduce__(self) -> Any:
        return print, ("harm",)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (pickle.dumps(Harmful()), "no part of an array"),
        (pickle.dumps([1]), "no batch"),
        (b"", "data_batch_2"),
        (b"no pickle", "data_batch_2"),
    ],
)
def test_a_file_that_is_no_batch_is_refused(
    tmp_path: Path, content: bytes, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cifar(tmp_path)
    (tmp_path / "data_batch_2").write_bytes(content)
    with pytest.raises(typer.BadParameter, match=text):
        mobilenet.read(tmp_path)
    assert not capsys.readouterr().out


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(typer.BadParameter, match="neither CIFAR-10"):
        mobilenet.read(tmp_path)


def test_training_pictures_are_moved_and_mirrored(torch: Any) -> None:
    image = torch.from_numpy(pictures(1).images)
    wide = np.pad(image[0].numpy() / np.float32(255), [(0, 0), (2, 2), (2, 2)])
    crops = [wide[:, i : i + 32, j : j + 32] for i in range(5) for j in range(5)]
    variants = {np.ascontiguousarray(v).tobytes() for crop in crops for v in (crop, crop[:, :, ::-1])}
    assert len(variants) == 50
    drawn = mobilenet.disturbed(image.expand(1000, 3, 32, 32), torch.Generator().manual_seed(0))
    assert {picture.tobytes() for picture in np.ascontiguousarray(drawn.numpy())} == variants


# ---- the dense network ----


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_dense_network_is_trained_once(
    torch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(3)
    made: list[Any] = []

    def build() -> Any:
        made.append(TINY())
        return made[-1]

    monkeypatch.setattr(mobilenet, "build", build)
    monkeypatch.setattr(mobilenet, "BATCH", 16)
    data = Data("noise", pictures(128), pictures(40, 1))
    path = mobilenet.dense(data, tmp_path, 3, 0, 1)
    losses = [float(line.split("loss ")[1].split(",")[0]) for line in capsys.readouterr().out.splitlines()]
    assert losses[2] < losses[0]
    assert mobilenet.dense(data, tmp_path, 3, 0, 1) == path
    assert len(made) == 1
    assert mobilenet.dense(data, tmp_path, 3, 1, 1) != path
    assert [p.suffix for p in tmp_path.iterdir()] == [".onnx"] * 2
    answers = mobilenet.answers(path, data.held, 1)
    with torch.no_grad():
        expected = made[0].eval()(torch.from_numpy(data.held.inputs()))
    np.testing.assert_allclose(answers, expected.numpy(), rtol=1e-3, atol=1e-4)
    nodes = [node.op_type for node in onnx.load(path).graph.node]
    assert nodes.count("BatchNormalization") == nodes.count("Conv") == 13


def test_accuracy_is_the_share_of_right_classes() -> None:
    logits = np.eye(10, dtype=np.float32)[[3, 3, 3, 1]]
    assert mobilenet.accuracy(logits, np.array([3, 2, 3, 1])) == 0.75


# ---- from scratch ----


def test_statistics_from_scratch_fit_the_weights(tiny: Path) -> None:
    fresh = scratch.reinitialized(onnx.load(tiny), 0, reproduce.GAIN)
    x = pictures(64).inputs()
    found = reproduce.settled(fresh, x, 1)
    ends = [node.output[0] for node in found.graph.node if node.op_type == "BatchNormalization"]
    assert len(ends) == 13
    for name in ends:
        y = run(Runtime(threads=1).session(part_of(found, {}, frozenset([name]))), {"image": x})[0]
        np.testing.assert_allclose(y.mean((0, 2, 3)), 0.0, atol=1e-3)
        # What hardly varies is not blown up: BatchNormalization adds 1e-5 to the variance.
        spread = y.std((0, 2, 3))
        assert 0.9 < np.median(spread) <= spread.max() < 1.001


# ---- what is set aside ----


def test_no_picture_is_both_condensed_and_tuned_on(tmp_path: Path) -> None:
    data = Data("noise", pictures(60), pictures(5, 1))
    files = reproduce.written(data, tmp_path, 20, 0)
    x = [np.load(path)["image"] for path in files]
    assert [len(part) for part in x] == [20, 40]
    together = {row.tobytes() for part in x for row in part}
    assert together == {row.tobytes() for row in data.fit.inputs()}
    assert len(np.load(reproduce.written(data, tmp_path, 20, 7)[1])["image"]) == 7
    with pytest.raises(typer.BadParameter, match="fewer than 60"):
        reproduce.written(data, tmp_path, 60, 0)


# ---- rows ----


def table_of(
    tiny: Path, folder: Path, asked: Asked, kind: type[Setting] = Setting, save: Path | None = None
) -> tuple[Table, Data]:
    held = pictures(50, 1)
    # The dense network is right, but for a few.
    labels = (mobilenet.answers(tiny, held, 1).argmax(axis=1) + (np.arange(50) < 5)) % 10
    data = Data("noise", pictures(400), Pictures(held.images, labels))
    files = reproduce.written(data, folder, 200, 0)
    setting = kind(tiny, files[0], None, files[1], threads=1)
    return Table(setting, asked, Referee(tiny, data.held, setting), data.fit.inputs(slice(64)), save), data


def cells_of(text: str) -> dict[str, list[str]]:
    """Cells by the label in front."""
    lines = [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines()]
    assert {len(line) for line in lines} == {len(COLUMNS)}
    return {line[0]: line[1:] for line in lines[2:]}


@dataclasses.dataclass(frozen=True)
class Quick(Setting):
    """Nothing is trained; a network that can't be made is asked for by 5 %."""

    def bare(self, keep: float, seed: int = 0, method: str = "fit") -> Made:
        """What was given."""
        del seed, method
        if keep < 0.1:
            raise BudgetError("keep", "no such | size")
        return Made(onnx.load(self.network))

    def tuned(self, keep: float, seed: int = 0, method: str = "fit", rounds: int = 1) -> Made:
        """The same, with steps that tell what it is."""
        return dataclasses.replace(self.bare(keep, seed, method), steps=10 * rounds + (method == "fit"), seconds=2.0)


def test_a_row_for_everything_that_is_asked_for(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Table, "_scratch", lambda _, like, seed: dataclasses.replace(like, seconds=float(seed)))
    asked = reproduce.asked_of("5,50,25", "fit, condensation", "tuned,bare,scratch", "7", 3, "25")
    table_of(tiny, tmp_path, asked, Quick)[0].all()
    rows = cells_of(capsys.readouterr().out)
    expected = ["dense"]
    for size in ("50 %", "25 %", "5 %"):
        for label in ("paper's: merge", "ours"):
            expected += [f"{label}, {size}", f"{label}, {size}, tuned"]
            expected += [f"{label}, {size}, 3 rounds"] if size == "25 %" else []
        expected += [] if size == "5 %" else [f"from scratch, {size}"]
    assert list(rows) == expected
    assert rows["ours, 25 %, 3 rounds"][-3] == "31"
    # The steps of ours in one round, which the layout is of.
    assert rows["from scratch, 25 %"][-3:-1] == ["11", "7"]
    assert rows["ours, 5 %"][:2] == ["7: no such / size", ""]


def test_a_row_tells_what_was_measured(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save = tmp_path / "saved"
    save.mkdir()
    table, data = table_of(tiny, tmp_path, Asked([0.5], ["fit"], ["bare"], [0]), save=save)
    table.all()
    rows = cells_of(capsys.readouterr().out)
    dense, ours = rows["dense"], rows["ours, 50 %"]
    assert dense[2:5] == ["100.00", "100.0", "0.0000"]
    assert dense[5:8] == ["90.00", "0.00", "100.00"]
    saved = save / "ours__50___0.onnx"
    answers = [mobilenet.answers(path, data.held, 1) for path in (tiny, saved)]
    correct = [100 * mobilenet.accuracy(y, data.held.labels) for y in answers]
    agreed = 100 * (answers[0].argmax(1) == answers[1].argmax(1)).mean()
    assert correct[1] < correct[0]
    assert ours[5:8] == [f"{correct[1]:.2f}", f"{correct[0] - correct[1]:.2f}", f"{agreed:.2f}"]
    assert 0.0 < float(ours[2]) <= 50.0
    assert 0.0 < float(ours[3]) < 100.0
    assert float(ours[4]) > 0.0
    assert int(dense[1].replace(",", "")) * float(ours[2]) / 100 == pytest.approx(int(ours[1].replace(",", "")), 0.01)


@pytest.mark.usefixtures("torch")
def test_from_scratch_takes_the_steps_of_what_it_is_like(tiny: Path, tmp_path: Path) -> None:
    table, _ = table_of(tiny, tmp_path, Asked([0.5], ["fit"], ["bare"], [0]))
    like = Made(onnx.load(tiny), steps=3, seconds=1.0, loss="kl")
    made = table._scratch(like, 0)
    assert (made.steps, made.loss) == (3, "kl")
    first, last = (
        {t.name: onnx.numpy_helper.to_array(t) for t in m.graph.initializer} for m in (like.model, made.model)
    )
    assert {n: v.shape for n, v in last.items()} == {n: v.shape for n, v in first.items()}
    for node in made.model.graph.node:
        if node.op_type == "Conv":
            one, other = (held[node.input[1]].ravel() for held in (first, last))
            assert abs(np.corrcoef(one, other)[0, 1]) < 0.5


@pytest.mark.parametrize(
    "options",
    [("0,5", "fit", "bare", "0"), ("5", "fits", "bare", "0"), ("5", "fit", "bear", "0"), ("5", "fit", "", "x")],
)
def test_options_that_name_nothing_are_refused(options: tuple[str, str, str, str]) -> None:
    with pytest.raises(typer.BadParameter):
        reproduce.asked_of(*options)
