"""What networks that tell pictures apart share: Fashion-MNIST's files, training in one cycle, export.

The files are the four idx .gz files that, for instance, Debian's package dataset-fashion-mnist has.
"""

from __future__ import annotations

import gzip
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import typer

Bytes = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

CLASSES = 10
INPUT, OUTPUT = "image", "logits"


def read_idx(path: Path) -> Bytes:
    """A gzipped idx file of bytes: two zeros, type 8, rank, big-endian sizes, elements in C order.

    Raises:
        typer.BadParameter: there is no such file, or it is something else.
    """
    if not path.is_file():
        raise typer.BadParameter(f"no {path.name} in {path.parent}")
    raw = gzip.decompress(path.read_bytes())
    if raw[:3] != b"\0\0\x08":
        raise typer.BadParameter(f"{path} is not an idx file of bytes")
    sizes = np.frombuffer(raw, ">u4", raw[3], offset=4).astype(int)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * len(sizes)).reshape(sizes)


def read_fashion(folder: Path, part: str) -> tuple[Bytes, Labels]:
    """Pictures [n, 28, 28] and classes [n] of one part ("train", "t10k") of Fashion-MNIST."""
    images, labels = (read_idx(folder / f"{part}-{kind}-ubyte.gz") for kind in ("images-idx3", "labels-idx1"))
    return images, labels.astype(np.int64)


def one_cycle(
    model: Any,
    optimiser: Any,
    loss_of: Callable[[Any], Any],
    count: int,
    batch: int,
    epochs: int,
    generator: Any,
    **cycle: Any,
) -> Any:
    """Train under one cycle of the learning rate, from and to that of the optimiser.

    Args:
        model: a torch module.
        optimiser: of its parameters, at the largest rate.
        loss_of: the mean loss on some rows, a tensor [n] of 0 to count - 1.
        count: pictures there are; every epoch draws a new order of them.
        batch: rows at a time.
        epochs: 1 or more.
        generator: what orders are drawn with.
        cycle: further arguments of `torch.optim.lr_scheduler.OneCycleLR`.

    Returns:
        The module in evaluation mode.
    """
    import torch

    steps = epochs * math.ceil(count / batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, optimiser.defaults["lr"], total_steps=steps, **cycle)
    started = time.monotonic()
    for epoch in range(epochs):
        total = 0.0
        for rows in torch.randperm(count, generator=generator).split(batch):
            loss = loss_of(rows)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += float(loss.detach()) * len(rows)
        seconds = time.monotonic() - started
        print(f"epoch {epoch + 1}/{epochs}: loss {total / count:.4f}, {seconds:.0f} s", flush=True)
    return model.eval()


def export(model: Any, path: Path, channels: int, size: int) -> None:
    """Write a network of pictures [batch, channels, size, size] as ONNX, BatchNormalization nodes left as they are.

    By PyTorch's older exporter: the newer one folds the normalization into the convolutions, or, told not to optimize,
    leaves shapes and zero biases to be computed by nodes.
    """
    import torch

    torch.onnx.export(
        model,
        (torch.zeros(2, channels, size, size),),
        str(path),
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_axes={INPUT: {0: "batch"}, OUTPUT: {0: "batch"}},
        dynamo=False,
        opset_version=17,
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
    )
