"""Normalisation with stored statistics: one factor and one shift per channel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnx_condense.ops.registry import Call, Effect, Law, OpRule, register
from onnx_condense.plan import ConstantUse, FloatArray, Operand

COMPUTED = "normalised with computed statistics"
OTHER_AXIS = "channels on an axis that is not normalised"


def trace(call: Call) -> Effect:
    """The channels of axis 1 carry scale, shift, mean and variance along."""
    x, parameters = call.operands[0], call.operands[1:5]
    if x is None or x.labels is None:
        return Effect(None)
    size = x.labels.shape[1] if x.labels.ndim > 1 else 0
    shapes = [None if p is None or p.constant is None else p.constant.shape for p in parameters]
    if len(parameters) < 4 or any(shape is None or len(shape) != 1 for shape in shapes):
        return Effect(None, pins=((x.labels, COMPUTED),))
    if size != x.labels.size or (size > 1 and any(shape != (size,) for shape in shapes)):
        return Effect(None, pins=((x.labels, OTHER_AXIS),))
    line = x.labels.reshape(-1)
    uses = [ConstantUse(Operand(call.index, i + 1), line) for i in range(4)] if size > 1 else []
    return Effect(x.labels, constants=tuple(uses))


def affine(attributes: Mapping[str, Any], operands: Sequence[FloatArray]) -> tuple[FloatArray, FloatArray, FloatArray]:
    """(x - mean) / sqrt(variance + epsilon) * scale + shift as k x + s, and the size of the terms that s adds up."""
    scale, shift, mean, variance = operands
    factor = scale / np.sqrt(variance + float(attributes.get("epsilon", 1e-5)))
    return factor, shift - factor * mean, np.abs(shift) + np.abs(factor * mean)


def _uses_batch_statistics(call: Call) -> str:
    if call.attributes.get("training_mode") or call.results > 1:
        return "normalises by the statistics of its batch"
    return "" if call.attributes.get("spatial", 1) else "normalises every position by itself"


register(
    OpRule(
        "BatchNormalization",
        trace,
        since=7,
        law=Law.AFFINE,
        affine=affine,
        # What is added before the mean is subtracted can as well be subtracted from the mean.
        absorbs=(3, -1.0),
        guard=_uses_batch_statistics,
    )
)
