"""Training as a step of the search: how far networks may be narrowed before it, and what comes out of it.

The condensed network is trained to answer as the dense one does, on inputs without labels. What comes out is the same
graph with other numbers in it, is proved like every other candidate, and is given back where it is not better.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import onnx

from onnx_condense.errors import DefectError, UsageError
from onnx_condense.network.model import Network
from onnx_condense.options.goal import Goal
from onnx_condense.options.tuning import Tune
from onnx_condense.outcome import Candidate
from onnx_condense.proving.proof import Proof
from onnx_condense.proving.verify import check_graph
from onnx_condense.report.data import Tuning, TuningRound
from onnx_condense.runtime import first_line
from onnx_condense.wording import counted

if TYPE_CHECKING:
    from onnx_condense.tune import Teacher

Progress = Callable[[str, float], None]


def check_trainable(network: Network) -> None:
    """Refuse what can't be trained before any work is done.

    Raises:
        ModelError: part of it can't be trained through, or it has nothing to train. UsageError: PyTorch is broken.
    """
    try:
        from onnx_condense.tune import check_trainable as check
    except (ImportError, OSError) as error:
        raise UsageError("tune", f"--tune: PyTorch is there but can't be loaded: {first_line(error)}") from error
    check(network)


class Tuner:
    """Trains candidates of one run.

    Args:
        goal: holds how, and the tolerance. teach: makes the teacher; called once, at the first training.
        progress: called with a stage and the share of the work done.

    Attributes:
        notes: remarks for the user. steps, seconds: of all trainings so far.
    """

    def __init__(self, goal: Goal, tune: Tune, teach: Callable[[], Teacher], progress: Progress) -> None:
        self._goal, self._tune, self._teach, self._progress = goal, tune, teach, progress
        self._teacher: Teacher | None = None
        self.notes: list[str] = []
        self.steps, self.seconds = 0, 0.0

    @property
    def rounds(self) -> int:
        """How many times to condense and train in turn."""
        return self._tune.rounds

    def __call__(self, bare: Candidate, proof: Proof, share: float, at: float) -> Candidate:
        """The candidate trained, or as it is where that did not make it better.

        share: of the time for all training. at: share of the run's work that is done.

        Raises:
            DefectError: training changed more than numbers.
        """
        from onnx_condense.tune import Recipe, distil

        if self._teacher is None:
            self._teacher = self._teach()
            if self._teacher.left_out:
                left = counted(self._teacher.left_out, "sample")
                self.notes.append(f"left out of --tune-data: {left} among those that search or judge")
        minutes = None if self._tune.minutes is None else self._tune.minutes * share
        recipe = Recipe(minutes, self._tune.steps, self._goal.seed)
        tuned = distil(bare.model, self._teacher, recipe, lambda _, text: self._progress(f"training: {text}", at))
        self.steps += tuned.steps
        self.seconds += tuned.seconds
        check_graph(bare.model, tuned.model)
        check_same_layers(bare.model, tuned.model)
        proved = proof.measure(tuned.model)
        trained = TuningRound(bare.parameters, bare.proved.error, proved.error, tuned.steps, tuned.seconds)
        if not proved.excess(1.0) < bare.proved.excess(1.0):
            trained = dataclasses.replace(trained, kept=False)
            self.notes.append(
                f"training was given back: it took the error from {bare.proved.error:.3g} to {proved.error:.3g}"
            )
            return dataclasses.replace(bare, trained=trained)
        return dataclasses.replace(bare, model=tuned.model, proved=proved, trained=trained, steps=tuned.steps)

    def told_last(self) -> list[str]:
        """All remarks, at the end of the run."""
        idle = [] if self._teacher else ["nothing was trained: no network was fitted that training could make better"]
        return [*self.notes, *idle]

    def told(self, rounds: Sequence[TuningRound]) -> Tuning:
        """For the report; rounds: those that led to the result."""
        assert self._teacher is not None
        last = rounds[-1]
        return Tuning(last.bare, self.steps, self.seconds, self._teacher.loss, self._teacher.count, tuple(rounds))


def check_same_layers(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    """Two networks differ in the numbers of their float tensors only.

    Raises:
        DefectError: they do not.
    """
    bare = [_without_numbers(model) for model in (before, after)]
    if bare[0] != bare[1]:
        raise DefectError("tuned", "training changed more than the numbers of the network's weights")


def _without_numbers(model: onnx.ModelProto) -> bytes:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    constants = [a for n in copy.graph.node if n.op_type == "Constant" for a in n.attribute]
    for attribute in constants:
        attribute.floats[:] = [0.0] * len(attribute.floats)
        attribute.ClearField("f")
    stored = [*copy.graph.initializer, *(a.t for a in constants)]
    for tensor in stored:
        if tensor.data_type in FLOATS:
            for field in ("raw_data", "float_data", "double_data", "int32_data"):
                tensor.ClearField(field)
    return copy.SerializeToString(deterministic=True)


FLOATS = frozenset(getattr(onnx.TensorProto, name) for name in ("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE"))
