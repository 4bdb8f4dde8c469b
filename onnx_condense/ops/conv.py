"""Convolutions with a constant weight.

They read the channels of axis 1 at every tap of the kernel and write new ones; a depthwise one only filters each
channel by itself and carries it along.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnx_condense.ops.linear import ADDEND, COMPUTED_WEIGHT, UNKNOWN_RANK, channel_columns, unsupported
from onnx_condense.ops.registry import Call, Effect, Law, OpRule, Role, register
from onnx_condense.plan import Attribute, ConstantUse, IntArray, LinearUse, Operand, SizeUse

MISFIT = "kernel or groups that do not fit the weight"
GROUPED = "grouped transposed convolution"
ELSEWHERE = "channels on an axis that the convolution slides along"


def trace_conv(call: Call) -> Effect:
    """Y = W * X + b with W [O, C / groups, k...] constant."""
    return _trace(call, out_axis=0)


def trace_transposed(call: Call) -> Effect:
    """The transpose of a convolution, with W [C, O / groups, k...] constant."""
    return _trace(call, out_axis=1)


def _trace(call: Call, out_axis: int) -> Effect:
    x, w = call.operands[0], call.operands[1]
    if x is None or w is None or x.labels is None:
        return Effect(None)
    reason = _unsupported(call, x.labels, out_axis)
    if reason:
        return Effect(None, pins=((x.labels, reason),))
    assert w.constant is not None
    groups, stored = call.attributes.get("group", 1), w.constant.shape
    channels = stored[0] if out_axis == 1 else stored[1] * groups
    if groups > 1 and groups == channels:
        return _filtered(call, x.labels, stored[0] if out_axis == 0 else stored[1] * groups)
    return _linear(call, x.labels, out_axis, groups)


def _unsupported(call: Call, labels: IntArray, out_axis: int) -> str:
    """Why this node is a barrier, or ""."""
    w = call.operands[1]
    if w is None or w.constant is None:
        return COMPUTED_WEIGHT
    if reason := unsupported(w, ranks=range(3, 6)):
        return reason
    shape, groups = w.constant.shape, call.attributes.get("group", 1)
    kernel = call.attributes.get("kernel_shape")
    if (kernel is not None and tuple(kernel) != shape[2:]) or groups < 1 or shape[0] % groups:
        return MISFIT
    if out_axis == 1 and 1 < groups < shape[0]:
        return GROUPED
    return "" if labels.ndim == w.constant.ndim else UNKNOWN_RANK


def _linear(call: Call, labels: IntArray, out_axis: int, groups: int) -> Effect:
    """Columns and rows; those of one place in every group are one channel, so that what stays is a full grid again."""
    w = call.operands[1]
    assert w is not None
    assert w.constant is not None
    shape = w.constant.shape
    columns, pins = channel_columns(labels, 1, shape[1 - out_axis] * groups)
    parts = columns.reshape(groups, -1)
    rows = call.fresh(shape[out_axis]) if call.apart else np.tile(call.fresh(shape[out_axis] // groups), groups)
    output = rows.reshape([-1 if axis == 1 else 1 for axis in range(len(shape))])
    rule_pads = reads_zeros if out_axis == 0 else transposed_reads_zeros
    use = LinearUse(
        weight=Operand(call.index, 1),
        activation=Operand(call.index, 0),
        in_axis=1 - out_axis,
        out_axis=out_axis,
        act_axis=1,
        result_axis=1,
        columns=columns,
        rows=rows,
        taps=math.prod(shape[2:]),
        padded=rule_pads(call.attributes, shape[2:]),
        groups=groups,
    )
    constants, more = _bias(call, rows, output)
    ties = () if call.apart else tuple((parts[0], part) for part in parts[1:])
    return Effect(output, ties=ties, linear=(use,), constants=constants, pins=(*pins, *more))


def _bias(
    call: Call, rows: IntArray, output: IntArray
) -> tuple[tuple[ConstantUse, ...], tuple[tuple[IntArray, str], ...]]:
    bias = call.operands[2] if len(call.operands) > 2 else None
    if bias is None:
        return (), ()
    if bias.constant is None or bias.constant.shape != rows.shape:
        return (), ((output, ADDEND),)
    return (ConstantUse(Operand(call.index, 2), rows),), ()


def _filtered(call: Call, labels: IntArray, results: int) -> Effect:
    """A depthwise convolution: every channel owns one kernel, or several neighbouring ones."""
    groups = call.attributes["group"]
    if labels.size == 1:
        # One label for all channels: it stays.
        return Effect(None, pins=((labels, ELSEWHERE),))
    if labels.shape[1] != groups or labels.size != groups:
        return Effect(None, pins=((labels, ELSEWHERE),))
    line = labels.reshape(-1)
    rows = np.repeat(line, results // groups)
    output = rows.reshape([-1 if axis == 1 else 1 for axis in range(labels.ndim)])
    w = call.operands[1]
    assert w is not None
    assert w.constant is not None
    # Of a transposed one the first axis has the channels, and the second the kernels of each.
    owners = rows if len(w.constant) == results else line
    kernels = owners.reshape([-1] + [1] * (labels.ndim - 1))
    constants, pins = _bias(call, rows, output)
    size = SizeUse(Attribute(call.index, "group"), 0, line)
    use = ConstantUse(Operand(call.index, 1), kernels)
    return Effect(output, constants=(use, *constants), sizes=(size,), pins=pins)


def reads_zeros(attributes: Mapping[str, Any], kernel: Sequence[int]) -> bool:
    """Whether some tap of the kernel may lie beside the activation.

    SAME pads by nothing where the kernel covers one element; whatever else it does depends on the size.
    """
    mode = attributes.get("auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        return any(size > 1 for size in kernel)
    return mode != "VALID" and bool(np.any(attributes.get("pads", 0)))


def transposed_reads_zeros(attributes: Mapping[str, Any], kernel: Sequence[int]) -> bool:
    """Whether results may differ in how many taps they see: always, but for a kernel of one element at every place."""
    grows = any(np.any(attributes.get(name, 0)) for name in ("pads", "output_padding", "output_shape"))
    return grows or any(size > 1 for size in kernel) or any(s > 1 for s in attributes.get("strides", ()))


# ONNX Runtime's kernels for CPUs work on blocks of 8 channels: a layer of 20 may be slower than one of 24.
register(
    OpRule("Conv", trace_conv, law=Law.FILTER, bias=2, flat_bias=True, multiple=8, pads=reads_zeros),
    OpRule(
        "ConvTranspose",
        trace_transposed,
        law=Law.FILTER,
        bias=2,
        flat_bias=True,
        multiple=8,
        pads=transposed_reads_zeros,
    ),
    role=Role.WRITES,
)
