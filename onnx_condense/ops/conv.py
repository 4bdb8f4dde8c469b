"""Convolutions with a constant weight: they read the channels of axis 1 at every tap of the kernel."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnx_condense.ops.linear import ADDEND, COMPUTED_WEIGHT, UNKNOWN_RANK, channel_columns, unsupported
from onnx_condense.ops.registry import Call, Effect, OpRule, register
from onnx_condense.plan import ConstantUse, IntArray, LinearUse, Operand

GROUPED = "grouped convolution"
MISFIT = "kernel that does not fit its weight"


def trace(call: Call) -> Effect:
    """Y = W * X + b with W [O, C, k...] constant."""
    x, w = call.operands[0], call.operands[1]
    if x is None or w is None or x.labels is None:
        return Effect(None)
    reason = _unsupported(call, x.labels)
    if reason:
        return Effect(None, pins=((x.labels, reason),))
    assert w.constant is not None
    columns, pins = channel_columns(x.labels, 1, w.constant.shape[1])
    rows = call.fresh(len(w.constant))
    output = rows.reshape([-1 if axis == 1 else 1 for axis in range(w.constant.ndim)])
    use = LinearUse(
        weight=Operand(call.index, 1),
        activation=Operand(call.index, 0),
        in_axis=1,
        out_axis=0,
        act_axis=1,
        result_axis=1,
        columns=columns,
        rows=rows,
        taps=math.prod(w.constant.shape[2:]),
        padded=reads_zeros(call.attributes, w.constant.shape[2:]),
    )
    bias = call.operands[2] if len(call.operands) > 2 else None
    constants: tuple[ConstantUse, ...] = ()
    if bias is not None and (bias.constant is None or bias.constant.shape != rows.shape):
        pins = (*pins, (output, ADDEND))
    elif bias is not None:
        constants = (ConstantUse(Operand(call.index, 2), rows),)
    return Effect(output, linear=(use,), constants=constants, pins=pins)


def _unsupported(call: Call, labels: IntArray) -> str:
    """Why this node is a barrier, or ""."""
    w = call.operands[1]
    if w is None or w.constant is None:
        return COMPUTED_WEIGHT
    if call.attributes.get("group", 1) != 1:
        return GROUPED
    if reason := unsupported(w, ranks=range(3, 6)):
        return reason
    kernel = call.attributes.get("kernel_shape")
    if kernel is not None and tuple(kernel) != w.constant.shape[2:]:
        return MISFIT
    return "" if labels.ndim == w.constant.ndim else UNKNOWN_RANK


def reads_zeros(attributes: Mapping[str, Any], kernel: Sequence[int]) -> bool:
    """Whether some tap of the kernel may lie beside the activation.

    SAME pads by nothing where the kernel covers one element; whatever else it does depends on the size.
    """
    mode = attributes.get("auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        return any(size > 1 for size in kernel)
    return mode != "VALID" and bool(np.any(attributes.get("pads", 0)))


# ONNX Runtime's kernels for CPUs work on blocks of 8 channels: a layer of 20 may be slower than one of 24.
register(OpRule("Conv", trace, bias=2, flat_bias=True, multiple=8))
