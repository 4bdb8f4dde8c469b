"""Train a small CNN with batch normalization, residual sum and flattened head, over-wide as people make them.

``--data digits`` takes scikit-learn's 1,797 handwritten digits (8x8, grey; inside the package), ``--data fashion``
Fashion-MNIST (70,000 pictures of clothes, 28x28, grey; ``--folder`` holds its four idx .gz files, for instance from
Debian's package dataset-fashion-mnist). Three files come out next to each other:

* ``NAME.onnx``           the network, dynamic batch, pixels 0 to 1, BatchNormalization nodes left as they are;
* ``NAME.npz``            unlabeled calibration inputs out of the training part (key = the network's input name);
* ``NAME_labelled.npz``   held-out inputs and their labels.

Held out is the last fifth of the digits in one piece: who wrote which digit is not recorded, but the same hand tends to
follow itself, so a random draw would put most hands on both sides. Fashion-MNIST comes with its own test part.

    pip install 'onnx-condense[tools]'
    python tools/train_digits.py --out models/digits
    python tools/train_digits.py --data fashion --folder fashion-mnist --out fashion
"""

from __future__ import annotations

import dataclasses
import enum
import math
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from classifiers import CLASSES, INPUT, Labels, export, one_cycle, read_fashion

Images = npt.NDArray[np.float32]

HELD_OUT_DIGITS = 0.2
LARGEST_RATE = 4e-3


class Data(enum.StrEnum):
    """What to train on."""

    digits = "digits"
    fashion = "fashion"


@dataclasses.dataclass(frozen=True)
class Preset:
    """Architecture and training of one data set.

    layout: a number is a 3x3 convolution with so many filters, normalized, then ReLU; "pool" halves height and width;
        "residual" adds two more convolutions to what they read.
    dense: neurons of the layer before the classes.
    turn, shift, flip: how far training pictures are turned (degrees) and moved (share of the width), and whether half
        of them are mirrored.
    calibration: unlabeled samples to write.
    """

    layout: tuple[int | str, ...]
    dense: int
    epochs: int
    batch: int
    turn: float
    shift: float
    flip: bool
    calibration: int


PRESETS = {
    Data.digits: Preset((32, 64, "pool", "residual"), 128, 60, 64, 10.0, 0.06, False, 1000),
    Data.fashion: Preset((32, "pool", 64, "pool", "residual", 96, "pool"), 256, 4, 128, 0.0, 0.0, True, 2000),
}


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Pictures [n, 1, height, width] with pixels 0 to 1, and their classes [n]."""

    images: Images
    labels: Labels

    def part(self, rows: npt.NDArray[np.int64] | slice) -> Pictures:
        """Some of them."""
        return Pictures(self.images[rows], self.labels[rows])


def read_digits() -> tuple[Pictures, Pictures]:
    """Training part and held-out end of scikit-learn's digits; their pixels are 0 to 16."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    pictures = Pictures((x.reshape(-1, 1, 8, 8) / 16).astype(np.float32), y.astype(np.int64))
    first = len(y) - round(HELD_OUT_DIGITS * len(y))
    return pictures.part(slice(first)), pictures.part(slice(first, None))


def fashion(folder: Path) -> tuple[Pictures, Pictures]:
    """Training and test part of Fashion-MNIST as it comes."""
    parts = (read_fashion(folder, part) for part in ("train", "t10k"))
    fit, held = (Pictures((images[:, None] / np.float32(255)).astype(np.float32), labels) for images, labels in parts)
    return fit, held


def convolution(before: int, after: int) -> list[Any]:
    """3x3, same size, normalized; the shift of the normalization makes a bias needless."""
    from torch import nn

    return [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after)]


def residual(width: int) -> Any:
    """What comes in + two convolutions of it, then ReLU."""
    from torch import nn

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(*convolution(width, width), nn.ReLU(), *convolution(width, width))

        def forward(self, x: Any) -> Any:
            return nn.functional.relu(x + self.inner(x))

    return Residual()


def build(preset: Preset, size: int) -> Any:
    """The untrained torch module for pictures [n, 1, size, size]."""
    from torch import nn

    layers: list[Any] = []
    width = 1
    for step in preset.layout:
        if isinstance(step, int):
            layers += [*convolution(width, step), nn.ReLU()]
            width = step
        elif step == "pool":
            layers.append(nn.MaxPool2d(2))
            size //= 2
        else:
            layers.append(residual(width))
    head = [nn.Linear(width * size**2, preset.dense), nn.ReLU(), nn.Linear(preset.dense, CLASSES)]
    return nn.Sequential(*layers, nn.Flatten(), *head)


def disturbed(images: Any, preset: Preset, generator: Any) -> Any:
    """Training pictures [n, 1, h, w], each turned, moved and mirrored by its own draw."""
    import torch

    def draw(spread: float) -> Any:
        return spread * (2 * torch.rand(len(images), generator=generator) - 1)

    angle = draw(math.radians(preset.turn))
    cos, sin = torch.cos(angle), torch.sin(angle)
    # Coordinates of the sampling grid run from -1 to 1: a shift by the whole width is 2.
    right, down = draw(2 * preset.shift), draw(2 * preset.shift)
    side = torch.where(draw(1.0) > 0, 1.0, -1.0) if preset.flip else torch.ones(len(images))
    rows = [torch.stack([side * cos, -sin, right], 1), torch.stack([side * sin, cos, down], 1)]
    grid = torch.nn.functional.affine_grid(torch.stack(rows, 1), images.shape, align_corners=False)
    return torch.nn.functional.grid_sample(images, grid, align_corners=False)


def train(pictures: Pictures, preset: Preset, epochs: int, seed: int, threads: int) -> Any:
    """AdamW under one cycle of the learning rate; returns the torch module in evaluation mode."""
    import torch
    from torch import nn

    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    model = build(preset, pictures.images.shape[-1])
    images, labels = torch.from_numpy(pictures.images), torch.from_numpy(pictures.labels)
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=LARGEST_RATE, weight_decay=0.01)

    def loss_of(rows: Any) -> Any:
        answers = model(disturbed(images[rows], preset, generator))
        return nn.functional.cross_entropy(answers, labels[rows], label_smoothing=0.05)

    return one_cycle(model, optimiser, loss_of, len(images), preset.batch, epochs, generator)


def evaluate(path: Path, pictures: Pictures) -> float:
    """Accuracy of the written file, by ONNX Runtime."""
    import onnxruntime as ort

    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    x = pictures.images
    parts = [session.run(None, {INPUT: x[i : i + 512]})[0] for i in range(0, len(x), 512)]
    return float((np.concatenate(parts).argmax(axis=1) == pictures.labels).mean())


def main(
    out: Annotated[Path, typer.Option(help="Path and stem of the files to write.")] = Path("models/digits"),
    data: Annotated[Data, typer.Option(help="What to train on.")] = Data.digits,
    folder: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="Where Fashion-MNIST's four .gz files are.")
    ] = None,
    epochs: Annotated[int, typer.Option(help="0: as the preset says.")] = 0,
    seed: int = 0,
    threads: Annotated[int, typer.Option(help="Of PyTorch; more than one is slow where others use the cores.")] = 1,
) -> None:
    """Train, export, and write calibration and labelled data beside the network."""
    if data is Data.fashion and folder is None:
        raise typer.BadParameter("--data fashion needs it", param_hint="--folder")
    preset = PRESETS[data]
    fit, held = fashion(folder) if data is Data.fashion and folder is not None else read_digits()
    model = train(fit, preset, epochs or preset.epochs, seed, threads)
    out.parent.mkdir(parents=True, exist_ok=True)
    network = out.with_name(out.name + ".onnx")
    export(model, network, 1, fit.images.shape[-1])
    chosen = np.random.default_rng(seed).permutation(len(fit.labels))[: preset.calibration]
    np.savez_compressed(out.with_name(out.name + ".npz"), image=fit.images[chosen])
    np.savez_compressed(out.with_name(out.name + "_labelled.npz"), image=held.images, label=held.labels)
    weights = sum(p.numel() for p in model.parameters())
    print(
        f"{network}: {weights} weights, accuracy {evaluate(network, held):.4f} on {len(held.labels)} held-out pictures"
    )


if __name__ == "__main__":
    typer.run(main)
