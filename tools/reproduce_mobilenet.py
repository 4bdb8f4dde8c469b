"""The founding paper's MobileNetV2 experiment, reproduced and passed: one command, one Markdown table.

The paper condenses MobileNetV2 on CIFAR-10 from 2.24 to 0.26 million parameters, 11.5 %, and retrains. Here its method
stands beside ours, bare and tuned, and the same sizes from scratch with the same steps. Labels train the dense network
and judge; all else sees training pictures without them. The pictures are CIFAR-10's where --data has them, else
Fashion-MNIST's (see mobilenet.py); the first line says which.

The dense network is trained into FOLDER, where a later run finds it. Shares are of all stored numbers, the running
statistics of normalizations among them. Errors are relative, on the share of the calibration that nothing is fitted,
searched or tuned on; accuracies are on the data set's test part.

From scratch: the layout of the tuned network, weights drawn anew (He et al., ICCV 2015), and statistics of
normalizations that fit these weights; then the same teacher, inputs and steps.

    pip install 'onnx-condense[tools]'
    python tools/reproduce_mobilenet.py --folder models/mobilenet --data cifar-10-batches-py
    python tools/reproduce_mobilenet.py --folder models/mobilenet --sizes 11.5,5 --methods fit --seeds 0,1,2 --rounds 3
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import math
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import mobilenet
import numpy as np
import onnx
import scratch
import typer
from bench_common import header, row
from classifiers import INPUT
from mobilenet import Data, Floats, Pictures
from trials import INSTALL, LABELS, Judge, Made, Setting, failed, kinds_of, methods_of

from onnx_condense.cost import count_macs, count_parameters
from onnx_condense.errors import CondenseError
from onnx_condense.evidence.stages import part_of
from onnx_condense.network.model import load, replace_tensor
from onnx_condense.runtime import Runtime, limited_threads, release, run

COLUMNS = (
    *("network", "seed", "parameters", "share, %", "MACs, %", "error, verify share", "accuracy, %", "points lost"),
    *("agreement, %", "steps", "tuning, s", "seconds"),
)
# Layers with ReLU keep the size of what passes with weights that are larger by this; see scratch.py.
GAIN = math.sqrt(6)
# Pictures that the statistics of a network from scratch are told by.
SETTLING = 1024


@dataclasses.dataclass(frozen=True)
class Asked:
    """Which rows. kinds: some of trials.KINDS; rounds: 1: none of them has rounds; round_sizes: where some have."""

    sizes: Sequence[float]
    methods: Sequence[str]
    kinds: Sequence[str]
    seeds: Sequence[int]
    rounds: int = 1
    round_sizes: Sequence[float] = ()


class Referee:
    """What the columns between the labels and the training say of a network."""

    def __init__(self, network: Path, held: Pictures, setting: Setting) -> None:
        self._held, self._setting = held, setting
        self._answers = mobilenet.answers(network, held, setting.threads)
        self._accuracy = mobilenet.accuracy(self._answers, held.labels)
        self._size = _size(onnx.load(network))

    def cells(self, model: onnx.ModelProto, judge: Judge) -> list[str]:
        """Size, error, accuracy."""
        found = mobilenet.answers(model, self._held, self._setting.threads)
        correct = mobilenet.accuracy(found, self._held.labels)
        parameters, macs = _size(model)
        agreed = mobilenet.accuracy(found, self._answers.argmax(axis=1))
        return [
            f"{parameters:,}",
            f"{100 * parameters / self._size[0]:.2f}",
            f"{100 * macs / self._size[1]:.1f}",
            f"{judge.error(model):.4f}",
            f"{100 * correct:.2f}",
            f"{100 * (self._accuracy - correct):.2f}",
            f"{100 * agreed:.2f}",
        ]


class Table:
    """Makes networks and prints their rows as they come.

    pictures: inputs that statistics of networks from scratch are told by. save: where networks are left, None: nowhere.
    """

    def __init__(self, setting: Setting, asked: Asked, referee: Referee, pictures: Floats, save: Path | None) -> None:
        self._setting, self._asked, self._referee = setting, asked, referee
        self._pictures, self._save = pictures, save
        # The share that judges is another one with each seed.
        self._judge = functools.cache(setting.judge)

    def all(self) -> None:
        """The dense network; then every size by every method."""
        print(header(*COLUMNS), flush=True)
        dense = onnx.load(self._setting.network)
        self._row("dense", self._asked.seeds[0], lambda: Made(dense))
        for seed in self._asked.seeds:
            for size in sorted(self._asked.sizes, reverse=True):
                self._size(size, seed)

    def _size(self, size: float, seed: int) -> None:
        """Bare, tuned and in rounds by each method; from scratch with the steps of the last one, which is ours."""
        tuned: Made | None = None
        for method in self._asked.methods:
            label = f"{LABELS[method]}, {100 * size:g} %"
            make = functools.partial(self._setting.tuned, size, seed, method)
            if "bare" in self._asked.kinds:
                self._row(label, seed, functools.partial(self._setting.bare, size, seed, method))
            if "tuned" in self._asked.kinds:
                tuned = self._row(f"{label}, tuned", seed, make)
            if "tuned" in self._asked.kinds and self._asked.rounds > 1 and size in self._asked.round_sizes:
                rounds = self._asked.rounds
                self._row(f"{label}, {rounds} rounds", seed, functools.partial(make, rounds))
        if "scratch" in self._asked.kinds and tuned and tuned.steps:
            self._row(f"from scratch, {100 * size:g} %", seed, functools.partial(self._scratch, tuned, seed))

    def _scratch(self, like: Made, seed: int) -> Made:
        """The layout of a tuned network, trained alike from fresh weights."""
        from onnx_condense.tune import Recipe, distil

        with limited_threads(self._setting.threads):
            fresh = settled(scratch.reinitialized(like.model, seed, GAIN), self._pictures, self._setting.threads)
            recipe = Recipe(minutes=None, steps=like.steps, seed=seed)
            found = distil(fresh, self._setting.teacher(like.loss, seed), recipe)
        release()
        return Made(found.model, found.steps, found.seconds, like.loss)

    def _row(self, label: str, seed: int, make: Callable[[], Made]) -> Made | None:
        """Print what was made, or why it can't be."""
        started = time.monotonic()
        try:
            made = make()
        except CondenseError as error:
            print(failed(label, f"{seed}: {error.text}", len(COLUMNS)), flush=True)
            return None
        seconds = time.monotonic() - started
        if self._save is not None:
            onnx.save(made.model, self._save / f"{''.join(c if c.isalnum() else '_' for c in label)}_{seed}.onnx")
        trained = [str(made.steps), f"{made.seconds:.0f}"] if made.steps else ["", ""]
        print(row(label, seed, *self._referee.cells(made.model, self._judge(seed)), *trained, f"{seconds:.0f}"))
        sys.stdout.flush()
        return made


def settled(proto: onnx.ModelProto, pictures: Floats, threads: int = 0) -> onnx.ModelProto:
    """A copy whose BatchNormalization nodes hold the mean and variance of what they read, one after another.

    Statistics are frozen in a network for inference: without this one from scratch would not be normalized at all.

    Args:
        proto: float32, weights inside; statistics are initializers of its main graph.
        pictures: [n, 3, 32, 32], what it is fed with.
        threads: of ONNX Runtime.
    """
    found = onnx.ModelProto()
    found.CopyFrom(proto)
    stored = {tensor.name: tensor for tensor in found.graph.initializer}
    for node in found.graph.node:
        if node.op_type == "BatchNormalization":
            part = part_of(found, {}, frozenset(node.input[:1]))
            read = run(Runtime(threads=threads).session(part), {INPUT: pictures})[0]
            axes = (0, *range(2, read.ndim))
            replace_tensor(stored[node.input[3]], read.mean(axes, dtype=np.float64))
            replace_tensor(stored[node.input[4]], read.var(axes, dtype=np.float64))
    return found


def written(data: Data, folder: Path, calibration: int, more: int) -> tuple[Path, Path]:
    """Unlabeled training pictures in two files: what is condensed on, and further ones to tune on.

    Args:
        data: the data set.
        folder: where they are put.
        calibration: how many to condense on.
        more: how many to tune on besides, 0: all others.

    Raises:
        typer.BadParameter: there are not more than `calibration`.
    """
    rows = np.random.default_rng(0).permutation(len(data.fit.labels))
    if len(rows) <= calibration:
        raise typer.BadParameter(f"give fewer than {len(rows)}", param_hint="--calibration")
    parts = rows[:calibration], rows[calibration : calibration + more if more else None]
    files = folder / "calibration.npz", folder / "more.npz"
    for path, part in zip(files, parts, strict=True):
        np.savez(path, image=data.fit.inputs(part))  # as INPUT
    return files


def _size(model: onnx.ModelProto) -> tuple[int, int]:
    """Parameters and multiply-accumulates."""
    return count_parameters(model), count_macs(load(model))


def asked_of(sizes: str, methods: str, kinds: str, seeds: str, rounds: int = 1, round_sizes: str = "") -> Asked:
    """What the options of the command ask for.

    Raises:
        typer.BadParameter: one of them names nothing that there is.
    """
    try:
        named, wanted = methods_of(methods), kinds_of(kinds)
        shares, deep = scratch.sizes_of(sizes), scratch.sizes_of(round_sizes)
        drawn = [int(seed) for seed in seeds.split(",")]
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    return Asked(shares, named, wanted, drawn, rounds, deep)


def main(
    folder: Annotated[Path, typer.Option(help="Where the dense network is, or is put.")],
    data: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="CIFAR-10's batches, or Fashion-MNIST's .gz files."),
    ] = None,
    sizes: Annotated[str, typer.Option(help="Percents of the parameters, joined by commas.")] = "50,25,11.5,5",
    methods: Annotated[str, typer.Option(help="Joined by commas.")] = ",".join(LABELS),
    kinds: Annotated[str, typer.Option(help="Of rows: some of bare, tuned, scratch.")] = "bare,tuned,scratch",
    rounds: Annotated[int, typer.Option(help="More than 1: rows with so many rounds as well.")] = 3,
    round_sizes: Annotated[str, typer.Option(help="At which there are such rows.")] = "11.5,5",
    seeds: Annotated[str, typer.Option(help="Joined by commas.")] = "0",
    tune_minutes: float = 3.0,
    tune_loss: Annotated[str, typer.Option(help="As of onnx-condense; empty: its default.")] = "",
    calibration: Annotated[int, typer.Option(help="Training pictures to condense on.")] = 4096,
    more: Annotated[int, typer.Option(help="Further ones to tune on; 0: all.")] = 0,
    epochs: Annotated[int, typer.Option(help="Of the dense training.")] = 12,
    dense_seed: int = 0,
    threads: int = 2,
    save: Annotated[Path | None, typer.Option(help="Folder to leave the networks in.")] = None,
) -> None:
    """Train the dense network unless it is there; print the table."""
    asked = asked_of(sizes, methods, kinds, seeds, rounds, round_sizes)
    if "tuned" in asked.kinds and importlib.util.find_spec("torch") is None:
        raise typer.BadParameter(INSTALL, param_hint="--kinds")
    pictures = mobilenet.read(data)
    with contextlib.redirect_stdout(sys.stderr):
        network = mobilenet.dense(pictures, folder, epochs, dense_seed, threads)
    print(f"{pictures.name}: {len(pictures.fit.labels):,} training pictures, {len(pictures.held.labels):,} to validate")
    if save is not None:
        save.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        files = written(pictures, Path(work), calibration, more)
        setting = Setting(network, files[0], None, files[1], tune_minutes, threads, tune_loss)
        referee = Referee(network, pictures.held, setting)
        Table(setting, asked, referee, pictures.fit.inputs(slice(SETTLING)), save).all()


if __name__ == "__main__":
    typer.run(main)
