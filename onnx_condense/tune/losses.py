"""How far a student's answers lie from the teacher's, as a number that can be made smaller by gradients.

| loss | of one output, y the student's answers and t the teacher's |
|---|---|
| mse | sum (y - t)^2 over the spread of t: the square of the relative error |
| features | the same of every feature over its own spread, mean over the features |
| l1 | sum abs(y - t) over the sum of absolute deviations of t |
| kl | T^2 KL(softmax(t / T), softmax(y / T)), T = 2 (Hinton, Vinyals and Dean 2015) |
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import torch

from onnx_condense.metrics.details import class_axis
from onnx_condense.plan import FloatArray
from onnx_condense.runtime import Array

MSE, FEATURES, L1, KL = LOSSES = ("mse", "features", "l1", "kl")

TEMPERATURE = 2.0
# Features below this share of the largest spread count as if they had it: their own would magnify their noise.
STILL = 0.01
# Sums of probabilities of a class axis may be off from 1 by this much.
ROUNDING = 1e-3
SMALLEST = 1e-12


@dataclasses.dataclass(frozen=True)
class Scale:
    """What makes the loss of one output a share, told from the teacher's answers.

    kind: one of LOSSES. axis: the features, or the classes. spread: what sums are divided by, per feature where they
    count each [F], else []. probable: whether the answers are probabilities already. weight: among the outputs.
    """

    kind: str
    axis: int
    spread: torch.Tensor
    probable: bool
    weight: float

    def on(self, device: torch.device) -> Scale:
        """The same where the student is."""
        return dataclasses.replace(self, spread=self.spread.to(device))

    def of(self, found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """Loss of some answers, mean over their elements."""
        if self.kind == KL:
            return self.weight * TEMPERATURE**2 * self._divergence(found, wanted)
        off = found - wanted
        off = off.abs() if self.kind == L1 else off * off
        if self.kind == FEATURES:
            return self.weight * (off.movedim(self.axis, -1) / self.spread).mean()
        # Weights are those of squares.
        return (self.weight**0.5 if self.kind == L1 else self.weight) * off.mean() / self.spread

    def _divergence(self, found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        logs = [self._logarithms(y) for y in (found, wanted)]
        return (logs[1].exp() * (logs[1] - logs[0])).sum(self.axis).mean()

    def _logarithms(self, answer: torch.Tensor) -> torch.Tensor:
        logits = answer.clamp_min(SMALLEST).log() if self.probable else answer
        return torch.log_softmax(logits / TEMPERATURE, self.axis)


def scale_of(kind: str, answers: Sequence[Array], weight: float = 1.0) -> Scale | None:
    """The scale of one output.

    Args:
        kind: one of LOSSES. kl falls back to mse where there are no classes to choose from.
        answers: the teacher's, pass by pass.
        weight: among the outputs.

    Returns:
        None where the answers give no gradient: no floats, none at all, or always the same.
    """
    if answers[0].dtype.kind != "f" or not any(a.size for a in answers):
        return None
    rank = answers[0].ndim
    # Classes as `agreement` counts them: axis 1 of pictures, else the last.
    axis = 1 if rank >= 4 else rank - 1
    if kind == KL and class_axis(answers[0]) is None:
        kind = MSE
    # All is one feature where there are samples only, or not always as many features.
    featured = rank >= 2 and len({a.shape[axis] for a in answers}) == 1
    spread = _spread(answers, axis if featured else None, kind)
    if not spread.max(initial=0.0) > 0.0:
        return None
    if kind == KL:
        return Scale(KL, axis, torch.ones(()), _probable(answers, axis), weight)
    spread = np.maximum(spread, STILL**2 * spread.max()) if kind == FEATURES else spread.mean()
    return Scale(kind, axis, torch.as_tensor(spread, dtype=torch.float32), probable=False, weight=weight)


def _probable(answers: Sequence[Array], axis: int) -> bool:
    """Whether answers are probabilities of classes."""
    return all((a >= 0).all() and bool(np.allclose(a.sum(axis, dtype=np.float64), 1.0, atol=ROUNDING)) for a in answers)


def _spread(answers: Sequence[Array], axis: int | None, kind: str) -> FloatArray:
    """Mean squared (l1: absolute) deviation of each feature from its mean [F]."""
    rows = [_by_feature(a, axis) for a in answers]
    count = sum(len(r) for r in rows)
    mean = sum(r.sum(0, dtype=np.float64) for r in rows) / count
    power = 1 if kind == L1 else 2
    return np.asarray(sum((np.abs(r - mean) ** power).sum(0) for r in rows) / count)


def _by_feature(answer: Array, axis: int | None) -> Array:
    """[positions, features]."""
    if axis is None:
        return answer.reshape(-1, 1)
    size = answer.shape[axis]
    return np.moveaxis(answer, axis, -1).reshape(math.prod(answer.shape) // max(size, 1), size)
