"""Value numbering of sums, and of what linear ops make of them: stacks of matrices, functions inside the op."""

from __future__ import annotations

import numpy as np

from onnx_condense.evidence.laws import CONSTANT, Values, added, chosen, exact, result_of
from onnx_condense.evidence.moves import Known, of_all
from onnx_condense.ops import Activation
from onnx_condense.plan import FloatArray, IntArray


def sum_by_class(classes: IntArray, *tables: FloatArray) -> tuple[FloatArray, ...]:
    """The columns of tables [O, K] summed by class [K]; constant columns are left out."""
    varying = np.flatnonzero(classes != CONSTANT)
    order = varying[classes[varying].argsort(kind="stable")]
    ranked = classes[order]
    first = np.ones(len(order), np.bool_)
    first[1:] = ranked[1:] != ranked[:-1]
    if first.all():
        return tuple(t[:, varying] for t in tables)
    starts = np.flatnonzero(first)
    return tuple(np.add.reduceat(t[:, order], starts, axis=1) for t in tables)


def of_stack(known: Known, sums: Values, size: int) -> Values:
    """Channels [size] that every matrix of a stack writes, made of what each of them writes [stack size]."""
    at = np.arange(len(sums)).reshape(-1, size).T
    level, noise = sums.offset[at], sums.offset_noise[at].max(axis=1)
    same = sums.constant[at].all(axis=1) & (np.ptp(level, axis=1) <= noise)
    together = of_all(known, sums.axis, at, sums, np.zeros(size, np.int64))
    return chosen(same, _constant(sums.axis, level[:, 0], noise), together)


def activated(known: Known, sums: Values, residual: Values | None, function: Activation | None) -> Values | None:
    """What becomes of sums inside an op that adds a tensor to them and applies a function; None: nothing is known."""
    if residual is not None:
        sums = added(sums, residual, known.group)
    if function is None:
        return sums
    result = result_of(function.rule, [sums], known.group)
    if result is None:
        return None
    level = function.of(np.where(sums.constant, sums.offset, 0.0))
    return chosen(sums.constant, _constant(sums.axis, level, sums.offset_noise), result)


def _constant(axis: int, level: FloatArray, noise: FloatArray) -> Values:
    """Channels that are these numbers."""
    none = exact(axis, np.zeros(len(level), np.int64), np.zeros(len(level)), level)
    return Values(axis, none.classes, none.scale, level, none.scale_noise, noise)
