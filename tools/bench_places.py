"""What it brings that channels of groups, heads and stacks change places or are mixed before some go: a Markdown table.

Three networks are trained here with PyTorch, in seconds each: four small networks as one stack of matrices, attention
over 12 points (both on functions drawn with a seed), and a convolutional network with groups on Fashion-MNIST. Every
size is made three times: with channels as they stand, in other places, and as the package does it (mixed where all
between writers and readers is linear). Errors are those on the samples that judge,
against the dense network.

    python tools/bench_places.py --data fashion-mnist --threads 1
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import classifiers
import numpy as np
import numpy.typing as npt
import typer
from bench_common import header, row
from mobilenet import FASHION

from onnx_condense import condense
from onnx_condense.search import candidates

Floats = npt.NDArray[np.float32]

SAMPLES, STEPS, BATCH, RATE = 4096, 1200, 128, 2e-3
MEMBERS, HIDDEN, FEATURES, ANSWERS = 4, 128, 6, 2
POINTS, WIDE, HEADS = 12, 64, 4
PICTURES = 6000
KEEPS = (0.8, 0.6, 0.4)
# What is left out, column by column: channels stay where they are, change places, are mixed where that is linear.
HELD = (("placed", "turned"), ("turned",), ())


def ensemble() -> Any:
    """Networks of two hidden layers whose weights are stacks [members, in, out]."""
    import torch
    from torch import nn

    class Ensemble(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            sizes = ((FEATURES, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, ANSWERS))
            self.weights = nn.ParameterList([torch.randn(MEMBERS, *size) / size[0] ** 0.5 for size in sizes])
            self.biases = nn.ParameterList([0.3 * torch.randn(MEMBERS, 1, size[1]) for size in sizes])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.unsqueeze(0)
            for at, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
                x = (torch.tanh(x) if at else x) @ weight + bias
            return x.transpose(0, 1)

    return Ensemble()


def attention() -> Any:
    """A layer in, attention of four heads over the points, a layer out."""
    import torch
    from torch import nn

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into, self.values, self.out = nn.Linear(FEATURES, WIDE), nn.Linear(WIDE, WIDE), nn.Linear(WIDE, WIDE)
            self.queries, self.keys, self.head = nn.Linear(WIDE, WIDE), nn.Linear(WIDE, WIDE), nn.Linear(WIDE, ANSWERS)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = torch.tanh(self.into(x))
            parts = (
                layer(h).view(-1, POINTS, HEADS, WIDE // HEADS) for layer in (self.queries, self.keys, self.values)
            )
            q, k, v = (part.transpose(1, 2) for part in parts)
            seen = (q @ k.transpose(-1, -2) / (WIDE // HEADS) ** 0.5).softmax(-1) @ v
            found: torch.Tensor = self.head(torch.tanh(h + self.out(seen.transpose(1, 2).reshape(-1, POINTS, WIDE))))
            return found

    return Attention()


def grouped() -> Any:
    """Blocks of a plain, a grouped and a plain convolution, as ResNeXt has them."""
    from torch import nn

    def block(before: int, after: int, groups: int, stride: int) -> list[Any]:
        first, last = nn.Conv2d(before, after, 1), nn.Conv2d(after, after, 1)
        middle = nn.Conv2d(after, after, 3, stride, 1, groups=groups)
        return [part for layer in (first, middle, last) for part in (layer, nn.BatchNorm2d(after), nn.ReLU())]

    layers = [nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), *block(16, 64, 4, 1), *block(64, 64, 8, 2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classifiers.CLASSES))


def trained(model: Any, inputs: Floats, loss_of: Any) -> Any:
    """The model in evaluation mode; loss_of(answers, rows) is the loss."""
    import torch

    optimiser, x = torch.optim.Adam(model.parameters(), RATE), torch.from_numpy(inputs)
    generator = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        rows = torch.randint(len(x), (BATCH,), generator=generator)
        loss = loss_of(model(x[rows]), rows)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()


def function(x: Floats) -> Floats:
    """What points [..., 6] are mapped to [..., 2]."""
    first = np.sin(3 * x[..., 0] * x[..., 1]) + x[..., 2] ** 2
    return np.stack([first, np.exp(-4 * x[..., 3] ** 2) * x[..., 4] + x[..., 5]], -1)


def networks(folder: Path, data: Path) -> list[tuple[str, Path, Floats]]:
    """Names, files and inputs of the three networks."""
    import torch
    from torch.nn import functional

    rng = np.random.default_rng(0)
    flat, points = (rng.uniform(-1, 1, (SAMPLES, *shape, FEATURES)).astype(np.float32) for shape in ((), (POINTS,)))
    # A point's answer has something of all others.
    mixed = function(points) + points.mean(axis=1, keepdims=True)[..., :ANSWERS]
    pictures, labels = classifiers.read_fashion(data, "train")
    images = (pictures[:PICTURES, None] / np.float32(255)).astype(np.float32)
    wanted, told = torch.from_numpy(function(flat)).unsqueeze(1), torch.from_numpy(mixed)
    classes = torch.from_numpy(labels[:PICTURES])
    found = []
    for name, make, inputs, loss in (
        ("ensemble", ensemble, flat, lambda y, rows: ((y - wanted[rows]) ** 2).mean()),
        ("attention", attention, points, lambda y, rows: ((y - told[rows]) ** 2).mean()),
        ("groups", grouped, images, lambda y, rows: functional.cross_entropy(y, classes[rows])),
    ):
        torch.manual_seed(0)
        path = folder / f"{name}.onnx"
        names: dict[str, Any] = {"input_names": ["x"], "output_names": ["y"]}
        names["dynamic_axes"] = {"x": {0: "batch"}, "y": {0: "batch"}}
        model = trained(make(), inputs, loss)
        torch.onnx.export(model, (torch.from_numpy(inputs[:2]),), str(path), dynamo=False, opset_version=17, **names)
        found.append((name, path, inputs[:2000]))
    return found


def measured(path: Path, inputs: Floats, keep: float, threads: int, held: tuple[str, ...]) -> tuple[str, str]:
    """Share of the parameters, and the error; held: what is left out."""
    with contextlib.ExitStack() as still:
        for name in held:
            still.enter_context(mock.patch.object(candidates, name, return_value={}))
        report = condense(path, calibration={"x": inputs}, keep=keep, threads=threads, allow_slower=True).report
    assert report.parameters is not None
    assert report.error is not None
    return f"{100 * report.parameters.after / report.parameters.before:.1f}", f"{report.error.value:.3g}"


def main(
    data: Annotated[Path, typer.Option(help="Folder of Fashion-MNIST's files.")] = FASHION,
    threads: Annotated[int, typer.Option(help="0: ONNX Runtime's default.")] = 0,
) -> None:
    """Print one row per network and size."""
    import torch

    torch.set_num_threads(threads or torch.get_num_threads())
    columns = (
        "network",
        "asked for, %",
        "as they stand: kept, %",
        "error",
        "moved: kept, %",
        "error",
        "mixed: kept, %",
        "error",
    )
    print(header(*columns))
    with tempfile.TemporaryDirectory() as folder:
        for name, path, inputs in networks(Path(folder), data):
            for keep in KEEPS:
                cells = [measured(path, inputs, keep, threads, held) for held in HELD]
                print(row(name, f"{100 * keep:g}", *(c for pair in cells for c in pair)), flush=True)


if __name__ == "__main__":
    typer.run(main)
