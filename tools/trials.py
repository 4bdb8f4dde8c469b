"""What the tools about tuning share: a network condensed to a size, bare and tuned, and the same size from scratch.

Nothing here sees a label. From scratch means the condensed layout, its weights drawn anew, trained by the same teacher
on the same inputs for as many steps as the tuned network took, however long they take (see scratch.py).
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import scratch
from bench_common import row
from bench_mlps import relative_error

from onnx_condense import condense
from onnx_condense.cost import count_parameters
from onnx_condense.data import Samples, input_specs, split
from onnx_condense.data import load as load_samples
from onnx_condense.network.model import load
from onnx_condense.runtime import Array, Runtime, limited_threads, release, run

if TYPE_CHECKING:
    from onnx_condense.tune import Teacher

LOSS = "mse"
KINDS = ("bare", "tuned", "scratch")
# What rows call the methods: the founding paper's, reconstructed, alone and with our refit, and ours.
LABELS = {"condensation": "paper's: merge", "condensation-refit": "paper's: merge + refit", "fit": "ours"}
INSTALL = "tuning needs PyTorch: pip install 'onnx-condense[tune]'; or leave it out"


@dataclasses.dataclass(frozen=True, eq=False)
class Made:
    """A network of some size. steps, seconds: of training, 0 where there was none; loss: what was trained by."""

    model: onnx.ModelProto
    steps: int = 0
    seconds: float = 0.0
    loss: str = LOSS

    @property
    def parameters(self) -> int:
        """How many it has."""
        return count_parameters(self.model)


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is condensed, and how.

    network: the dense one. calibration: unlabeled inputs; more: further ones to tune on.
    verification: what judges; None: a share of the calibration. minutes: of tuning.
    loss: to train by, "" for the default of condense(). gain: of weights from scratch. options: of condense() besides.
    """

    network: Path
    calibration: Path
    verification: Path | None = None
    more: Path | None = None
    minutes: float = 3.0
    threads: int = 0
    loss: str = ""
    gain: float = 1.0
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def bare(self, keep: float, seed: int = 0, method: str = "fit") -> Made:
        """Condensed to a share of the parameters.

        Raises:
            CondenseError: that is out of reach.
        """
        return self._condensed(keep, seed, {"method": method})

    def tuned(self, keep: float, seed: int = 0, method: str = "fit", rounds: int = 1) -> Made:
        """The same, and tuned; in so many rounds.

        Raises:
            CondenseError: that is out of reach, or the network can't be trained.
        """
        given: dict[str, Any] = {"method": method, "tune": True, "tune_minutes": self.minutes, "rounds": rounds}
        given |= {"tune_data": self.more} if self.more else {}
        return self._condensed(keep, seed, given | ({"tune_loss": self.loss} if self.loss else {}))

    def scratch(self, like: Made, seed: int = 0) -> Made:
        """The layout of a tuned network with weights drawn anew and trained alike.

        Raises:
            ModelError: there is no rule for some of its weights.
        """
        from onnx_condense.tune import Recipe

        with limited_threads(self.threads):
            recipe = Recipe(minutes=None, steps=like.steps, seed=seed)
            found = scratch.trained(like.model, self.teacher(like.loss, seed), recipe, self.gain)
        release()
        return Made(found.model, found.steps, found.seconds, like.loss)

    def teacher(self, loss: str, seed: int) -> Teacher:
        """The one that tuning has."""
        from onnx_condense.tune import Teacher
        from onnx_condense.tune.teacher import Source

        samples, judge = self._samples(self.calibration), self._samples(self.verification)
        shares = split(samples, seed, separate_verification=judge is not None)
        apart = Source(samples, shares.verify) if judge is None else Source(judge, np.arange(len(judge)))
        runtime, more = Runtime(threads=self.threads), self._samples(self.more)
        return Teacher(self.network, samples, shares.fit, shares.search, runtime, loss, more=more, apart=[apart])

    def judge(self, seed: int = 0) -> Judge:
        """What nothing is fitted, searched or tuned on."""
        samples = self._samples(self.verification)
        if samples is not None:
            return Judge(self.network, samples, np.arange(len(samples)), self.threads)
        samples = self._samples(self.calibration)
        return Judge(self.network, samples, split(samples, seed).verify, self.threads)

    def _samples(self, path: Path | None) -> Any:
        """Samples of the network's inputs, None where there is no file."""
        return None if path is None else load_samples(path, input_specs(load(self.network).proto.graph))

    def _condensed(self, keep: float, seed: int, given: Mapping[str, Any]) -> Made:
        options: dict[str, Any] = {"allow_slower": True, **self.options, **given}
        options |= {"verification": self.verification} if self.verification else {}
        found = condense(
            self.network, calibration=self.calibration, keep=keep, threads=self.threads, seed=seed, **options
        )
        release()
        tuning = found.report.tuning
        if tuning is None:
            return Made(found.model)
        # All steps count, those of earlier rounds and of what was not kept too: from scratch there is one training.
        return Made(found.model, tuning.steps, tuning.seconds, tuning.loss)


class Judge:
    """Samples that tell how far a network is from the dense one."""

    def __init__(self, network: Path, samples: Samples, indices: Any, threads: int = 0) -> None:
        self._samples, self._indices, self._runtime = samples, indices, Runtime(threads=threads)
        self._dense = self._of(network)

    def error(self, model: Path | onnx.ModelProto) -> float:
        """Relative error, the largest over the outputs; see `bench_mlps.relative_error`."""
        return relative_error(self._dense, self._of(model))

    def _of(self, model: Path | onnx.ModelProto) -> list[Array]:
        session = self._runtime.session(model, optimize=False)
        parts = [run(session, batch.feed) for batch in self._samples.batches(self._indices)]
        return [np.concatenate(column) for column in zip(*parts, strict=True)]


def can_tune() -> bool:
    """Whether PyTorch is installed."""
    return importlib.util.find_spec("torch") is not None


def methods_of(text: str) -> tuple[str, ...]:
    """Some of LABELS, joined by commas, in their order.

    Raises:
        ValueError: one of them is unknown.
    """
    asked = {part.strip() for part in text.split(",") if part.strip()}
    if wrong := asked.difference(LABELS):
        raise ValueError(f"{min(wrong)}: give some of {', '.join(LABELS)}")
    return tuple(method for method in LABELS if method in asked)


def kinds_of(text: str) -> tuple[str, ...]:
    """Some of KINDS, joined by commas, in their order; from scratch needs what is tuned.

    Raises:
        ValueError: another word.
    """
    asked = {part.strip() for part in text.split(",") if part.strip()}
    if wrong := asked.difference(KINDS):
        raise ValueError(f"{min(wrong)}: give some of {', '.join(KINDS)}")
    if "scratch" in asked and "tuned" not in asked:
        raise ValueError("scratch: give tuned as well, whose steps it takes")
    return tuple(kind for kind in KINDS if kind in asked)


def failed(label: str, text: str, columns: int) -> str:
    """The row of what could not be made."""
    return row(label, text.replace("|", "/"), *[""] * (columns - 2))
