"""MobileNetV2 for pictures of 32 x 32 in ten classes: layout, data, dense training, export.

The layout, its initial weights and its state names are those of torchvision's ``mobilenet_v2(num_classes=10)``, built
from torch.nn alone: 2,236,682 parameters, and 34,112 running statistics, no parameters there. Data is CIFAR-10
(the "python version" of its archive) where there is a folder with it, else Fashion-MNIST (the four .gz files of the
Debian package ``dataset-fashion-mnist``), padded from 28 to 32 and in three equal channels. Pixels are 0 to 1.
"""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import classifiers
import numpy as np
import numpy.typing as npt
import onnx
import typer
from classifiers import CLASSES, INPUT, Bytes, Labels, one_cycle

from onnx_condense.runtime import Runtime, run

Floats = npt.NDArray[np.float32]

SIDE = 32
# Expansion, channels, repeats, stride of the first repeat: table 2 of Sandler et al. 2018, arXiv:1801.04381.
BLOCKS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
FIRST, LAST, DROPOUT = 32, 1280, 0.2
# Where Debian's package puts Fashion-MNIST.
FASHION = Path("/usr/share/datasets/fashion-mnist")
TRAINING_FILES, TEST_FILES = tuple(f"data_batch_{i}" for i in range(1, 6)), ("test_batch",)

# What pickled arrays name, and older ones with text among it.
ARRAY_PARTS = frozenset({("numpy", "ndarray"), ("numpy", "dtype"), ("numpy", "_reconstruct"), ("_codecs", "encode")})

BATCH, LARGEST_RATE, MOMENTUM, DECAY = 128, 0.1, 0.9, 5e-4
# How far training pictures are moved, in pixels.
SHIFT = 2
# Pixels of a map up to which depthwise convolutions are trained as products.
SMALL_MAP = 4


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Pictures [n, 3, 32, 32] of bytes, and their classes [n]."""

    images: Bytes
    labels: Labels

    def inputs(self, rows: npt.NDArray[np.int64] | slice = slice(None)) -> Floats:
        """What the network is fed with for these rows: pixels 0 to 1."""
        return (self.images[rows] / np.float32(255)).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Data:
    """name: which data set; fit: what the dense network is trained on; held: its test part, for validation alone."""

    name: str
    fit: Pictures
    held: Pictures


class Arrays(pickle.Unpickler):
    """Reads pickles of numpy arrays, and of nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        """What an array is made of; see `pickle.Unpickler`."""
        if (module.split(".", maxsplit=1)[0], name) in ARRAY_PARTS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is no part of an array")


def read_cifar(files: list[Path]) -> Pictures:
    """CIFAR-10's "python version": pickles of rows of 3072 bytes, all red, then green, then blue.

    Raises:
        typer.BadParameter: a file is no such pickle.
    """
    images, labels = [], []
    for path in files:
        with path.open("rb") as file:
            try:
                held = Arrays(file, encoding="bytes").load()
            except (pickle.UnpicklingError, EOFError) as error:
                raise typer.BadParameter(f"{path}: {error}", param_hint="--data") from error
        if not isinstance(held, dict) or not {b"data", b"labels"} <= held.keys():
            raise typer.BadParameter(f"{path} is no batch of CIFAR-10's python version", param_hint="--data")
        images.append(np.asarray(held[b"data"], np.uint8).reshape(-1, 3, SIDE, SIDE))
        labels.append(np.asarray(held[b"labels"], np.int64))
    return Pictures(np.concatenate(images), np.concatenate(labels))


def read_fashion(folder: Path, part: str) -> Pictures:
    """One part ("train", "t10k") of Fashion-MNIST, black around it, in three equal channels."""
    images, labels = classifiers.read_fashion(folder, part)
    edge = [(0, 0), *(((SIDE - size) // 2, SIDE - size - (SIDE - size) // 2) for size in images.shape[1:])]
    return Pictures(np.repeat(np.pad(images, edge)[:, None], 3, axis=1), labels)


def read(folder: Path | None) -> Data:
    """CIFAR-10 if its files are in the folder (or below it, where its archive unpacks), else Fashion-MNIST.

    Args:
        folder: None: Fashion-MNIST, where its Debian package puts it.

    Raises:
        typer.BadParameter: neither is there, or a file is not what its name says.
    """
    for place in (folder, folder / "cifar-10-batches-py") if folder else ():
        if all((place / name).is_file() for name in (*TRAINING_FILES, *TEST_FILES)):
            fit, held = ([place / name for name in names] for names in (TRAINING_FILES, TEST_FILES))
            return Data("CIFAR-10", read_cifar(fit), read_cifar(held))
    place = folder or FASHION
    if not list(place.glob("*-images-idx3-ubyte.gz")):
        text = f"neither CIFAR-10 (python version) nor Fashion-MNIST (apt install dataset-fashion-mnist) in {place}"
        raise typer.BadParameter(text, param_hint="--data")
    return Data("Fashion-MNIST", read_fashion(place, "train"), read_fashion(place, "t10k"))


def taps(height: int, width: int, stride: int) -> npt.NDArray[np.int64]:
    """Which of nine taps of a padded 3x3 kernel leads from pixel q to pixel p, [h, w, p rows, p columns]; 9: none."""
    ways = []
    for size in (height, width):
        way = np.arange(size)[:, None] + 1 - stride * np.arange((size - 1) // stride + 1)
        ways.append(np.where((way >= 0) & (way < 3), way, 9))
    tap: npt.NDArray[np.int64] = np.minimum(9, 3 * ways[0][:, None, :, None] + ways[1][None, :, None, :])
    return tap


def depthwise(before: int, stride: int) -> Any:
    """A depthwise 3x3 convolution, in training on maps of a few pixels as one product per pair of pixels.

    There PyTorch's backward of depthwise convolutions on a CPU takes more time than all else together.
    """
    import torch
    from torch import nn

    class Depthwise(nn.Conv2d):
        def forward(self, x: Any) -> Any:
            n, c, height, width = x.shape
            if not self.training or height * width > SMALL_MAP:
                return super().forward(x)
            table = torch.from_numpy(taps(height, width, stride))
            ways = nn.functional.pad(self.weight.flatten(1), (0, 1)).T[table.flatten()]
            pixels = x.permute(0, 2, 3, 1).reshape(n, height * width, 1, c)
            made = (pixels * ways.view(height * width, -1, c)).sum(1)
            return made.view(n, *table.shape[2:], c).permute(0, 3, 1, 2)

    return Depthwise(before, before, 3, stride, 1, groups=before, bias=False)


def normalized(convolution: Any) -> Any:
    """The convolution, BatchNormalization, ReLU6."""
    from torch import nn

    return nn.Sequential(convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU6())


def inverted_residual(before: int, after: int, stride: int, expansion: int) -> Any:
    """1x1 up, depthwise 3x3, 1x1 down without activation; added to what came in where shapes agree."""
    from torch import nn

    class InvertedResidual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            wide = before * expansion
            layers = [] if expansion == 1 else [normalized(nn.Conv2d(before, wide, 1, bias=False))]
            layers += [normalized(depthwise(wide, stride)), nn.Conv2d(wide, after, 1, bias=False)]
            self.conv = nn.Sequential(*layers, nn.BatchNorm2d(after))
            self.adds = stride == 1 and before == after

        def forward(self, x: Any) -> Any:
            return x + self.conv(x) if self.adds else self.conv(x)

    return InvertedResidual()


def build(blocks: tuple[tuple[int, int, int, int], ...] = BLOCKS, first: int = FIRST, last: int = LAST) -> Any:
    """The untrained torch module; other blocks and widths for trials."""
    from torch import nn

    class MobileNetV2(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers, width = [normalized(nn.Conv2d(3, first, 3, 2, 1, bias=False))], first
            for expansion, after, repeats, stride in blocks:
                for k in range(repeats):
                    layers.append(inverted_residual(width, after, 1 if k else stride, expansion))
                    width = after
            self.features = nn.Sequential(*layers, normalized(nn.Conv2d(width, last, 1, bias=False)))
            self.classifier = nn.Sequential(nn.Dropout(DROPOUT), nn.Linear(last, CLASSES))

        def forward(self, x: Any) -> Any:
            x = nn.functional.adaptive_avg_pool2d(self.features(x), 1)
            return self.classifier(x.flatten(1))

    model = MobileNetV2()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0.0, 0.01)
            nn.init.zeros_(module.bias)
    return model


def disturbed(images: Any, generator: Any) -> Any:
    """Bytes [n, 3, h, w] as floats 0 to 1, each picture moved by its own draw and half of them mirrored."""
    import torch

    n, _, height, width = images.shape
    wide = torch.nn.functional.pad(images.float() / 255, (SHIFT,) * 4)
    down, right = torch.randint(0, 2 * SHIFT + 1, (2, n), generator=generator)
    columns = right[:, None] + torch.arange(width)
    mirrored = torch.rand(n, generator=generator) < 0.5
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    rows = down[:, None] + torch.arange(height)
    # Advanced indices on axes 0, 2 and 3 put the channels last.
    moved = wide[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2)


def train(model: Any, pictures: Pictures, epochs: int, seed: int) -> Any:
    """SGD with momentum under one cycle of the learning rate; returns the module in evaluation mode."""
    import torch
    from torch import nn

    model = model.to(memory_format=torch.channels_last).train()
    images, labels = torch.from_numpy(pictures.images), torch.from_numpy(pictures.labels)
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.SGD(model.parameters(), LARGEST_RATE, MOMENTUM, weight_decay=DECAY, nesterov=True)

    def loss_of(rows: Any) -> Any:
        return nn.functional.cross_entropy(model(disturbed(images[rows], generator)), labels[rows])

    return one_cycle(model, optimiser, loss_of, len(labels), BATCH, epochs, generator, pct_start=0.2)


def export(model: Any, path: Path) -> None:
    """Write the network as ONNX with a dynamic batch, BatchNormalization nodes left as they are."""
    import torch

    classifiers.export(model.to(memory_format=torch.contiguous_format).eval(), path, 3, SIDE)


def answers(model: Path | onnx.ModelProto, pictures: Pictures, threads: int = 0) -> Floats:
    """Logits [n, 10] of a written network, by ONNX Runtime."""
    session = Runtime(threads=threads).session(model)
    starts = range(0, len(pictures.labels), 512)
    parts = [run(session, {INPUT: pictures.inputs(slice(i, i + 512))})[0] for i in starts]
    return np.concatenate(parts).astype(np.float32)


def accuracy(logits: Floats, labels: Labels) -> float:
    """Share of rows whose largest logit is that of their class."""
    return float((logits.argmax(axis=1) == labels).mean())


def dense(data: Data, folder: Path, epochs: int, seed: int, threads: int) -> Path:
    """The dense network, trained and exported unless the folder has the one that these settings make."""
    import torch

    path = folder / f"dense-{data.name}-{epochs}-{seed}.onnx"
    if path.is_file():
        return path
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    model = train(build(), data.fit, epochs, seed)
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    export(model, unfinished)
    # A run that was interrupted must not leave half a network for the next.
    unfinished.replace(path)
    return path
