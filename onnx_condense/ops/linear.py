"""Linear ops with a constant weight: they read channels on one side and write new ones on the other.

A weight along another axis than the channels' own lets them pass as they are (see `product`), and stays as it is.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy as np

from onnx_condense.ops.elementwise import carried
from onnx_condense.ops.product import passing, product_rank
from onnx_condense.ops.registry import Call, Constants, Effect, Law, OpRule, Role, Value, pinned_like, register
from onnx_condense.plan import PINNED, ConstantUse, IntArray, LinearUse, Operand

COMPUTED_WEIGHT = "computed weight"
PAIRED = "multiplied with other channels"
NOT_CONTRACTED = "channels on an axis that the op does not contract"
WEIGHT_RANK = "weight of a rank that the op can't have"
INTEGER_WEIGHT = "integer weight"
EMPTY_WEIGHT = "weight without elements"
NOT_FINITE = "weight with infinite or undefined elements"
ADDEND = "added to another tensor inside Gemm"
UNKNOWN_RANK = "shape not known"

# A stack of matrices is a weight for a product with batch axes; NumPy has no more axes.
_STACKS = range(1, 65)


def trace_matmul(call: Call) -> Effect:
    """Y = A @ B with a constant on one side: a vector, a matrix, or a stack of matrices."""
    return trace_transposable(call)


def trace_transposable(call: Call) -> Effect:
    """Y = alpha A' @ B', where transA and transB swap the last two axes of what is no vector."""
    left, right = call.operands[0], call.operands[1]
    if left is None or right is None:
        return _computed(call)
    trans_a, trans_b = bool(call.attributes.get("transA", 0)), bool(call.attributes.get("transB", 0))
    gain = float(call.attributes.get("alpha", 1.0))
    if right.constant is not None and left.constant is None:
        sides = {"weight": 1, "act": 0, "in_axis": -1 if trans_b else -2, "out_axis": -2 if trans_b else -1}
        return _linear(call, act_axis=-2 if trans_a else -1, result_axis=-1, gain=gain, **sides)
    if left.constant is not None and right.constant is None:
        sides = {"weight": 0, "act": 1, "in_axis": -2 if trans_a else -1, "out_axis": -1 if trans_a else -2}
        return _linear(call, act_axis=-1 if trans_b else -2, result_axis=-2, gain=gain, **sides)
    return _computed(call)


def trace_gemm(call: Call) -> Effect:
    """Y = alpha A' B' + beta C with A or B constant; C may be constant or another tensor."""
    a, b = call.operands[0], call.operands[1]
    if a is None or b is None:
        return _computed(call)
    trans_a, trans_b = bool(call.attributes.get("transA", 0)), bool(call.attributes.get("transB", 0))
    gain = float(call.attributes.get("alpha", 1.0))
    if b.constant is not None and a.constant is None:
        sides = {"weight": 1, "act": 0, "in_axis": int(trans_b), "act_axis": 1 - int(trans_a), "result_axis": 1}
        effect = _linear(call, out_axis=1 - int(trans_b), gain=gain, **sides)
    elif a.constant is not None and b.constant is None:
        sides = {"weight": 0, "act": 1, "in_axis": 1 - int(trans_a), "act_axis": int(trans_b), "result_axis": 0}
        effect = _linear(call, out_axis=int(trans_a), gain=gain, **sides)
    else:
        effect = _computed(call)
    return _with_addend(call, effect)


def _with_addend(call: Call, effect: Effect) -> Effect:
    """Gemm's C: a constant is carried by the rows, a computed one pins them and itself."""
    addend = call.operands[2] if len(call.operands) > 2 else None
    if addend is None or effect.output is None:
        return effect
    if addend.constant is not None:
        labels = carried(addend.constant.shape, effect.output)
        if labels is None:
            return dataclasses.replace(effect, pins=(*effect.pins, (effect.output, ADDEND)))
        use = (ConstantUse(Operand(call.index, 2), labels),) if (labels != PINNED).any() else ()
        return dataclasses.replace(effect, constants=use)
    # A computed addend would have to broadcast exactly like the rows: leave both alone.
    pins = tuple((labels, ADDEND) for labels in (effect.output, addend.labels) if labels is not None)
    return dataclasses.replace(effect, pins=(*effect.pins, *pins))


def _computed(call: Call) -> Effect:
    """A' @ B', both computed (attention, hypernetworks): no weight to rewrite, but channels may pass.

    An element of the result has one label: where both operands bring channels, those of B pass.
    """
    passed = [passing(call, at) for at in (0, 1)]
    bearer = 0 if passed[1] is None else 1
    pins = []
    for at, value in enumerate(call.operands):
        if value is None or value.labels is None or (at == bearer and passed[bearer] is not None):
            continue
        pins.append((value.labels, PAIRED if at < 2 and passed[at] is not None else COMPUTED_WEIGHT))
    return Effect(passed[bearer], pins=tuple(pins))


def _linear(
    call: Call,
    *,
    weight: int,
    act: int,
    in_axis: int,
    out_axis: int,
    act_axis: int,
    result_axis: int,
    gain: float = 1.0,
) -> Effect:
    """One product of a constant and a tensor; axes may be negative, as in MatMul."""
    w, x = call.operands[weight], call.operands[act]
    assert w is not None
    assert w.constant is not None
    assert x is not None
    stored = w.constant.shape
    if x.labels is None:
        return _unseen(call, weight, act, in_axis, out_axis)
    vector = len(stored) == 1
    output = pinned_like(call.result_shape)
    reason = unsupported(w, _STACKS)
    # Declared shapes may be wrong: believe no rank that can't be.
    if reason or output is None or output.ndim != product_rank(len(stored), x.labels.ndim):
        return Effect(None, pins=((x.labels, reason or UNKNOWN_RANK),))
    passed = None if call.writes else passing(call, act)
    if passed is not None:
        return Effect(passed, through=passed)
    act_axis = act_axis % x.labels.ndim if x.labels.ndim > 1 else 0
    if call.apart and math.prod(stored[:-2]) > 1:
        columns, pins = _columns_apart(x.labels, act_axis, (*stored[:-2], stored[in_axis]))
    else:
        columns, pins = channel_columns(x.labels, act_axis, stored[0 if vector else in_axis])
    use = LinearUse(
        weight=Operand(call.index, weight),
        activation=Operand(call.index, act),
        in_axis=0 if vector else in_axis % len(stored),
        out_axis=None,
        act_axis=act_axis,
        result_axis=None,
        columns=columns,
        rows=np.empty(0, np.int64),
        gain=gain,
    )
    if vector:
        return Effect(output, linear=(use,), pins=pins)
    # A vector activation has no batch axis: the result's last axis carries the rows.
    at = result_axis % output.ndim if x.labels.ndim > 1 else output.ndim - 1
    rows = call.fresh(stored[out_axis])
    output = rows.reshape([-1 if axis == at else 1 for axis in range(output.ndim)])
    use = dataclasses.replace(use, out_axis=out_axis % len(stored), result_axis=at, rows=rows)
    use = _stacked(use, stored, output.ndim)
    if call.apart and use.spread:
        use = dataclasses.replace(use, rows=call.fresh(len(use.rows)))
        shape = [len(rows) if n == -1 else n for n in use.spread]
        output = use.rows.reshape([1] * (output.ndim - len(shape)) + shape)
    return Effect(output, linear=(use,), pins=pins)


def _unseen(call: Call, weight: int, act: int, in_axis: int, out_axis: int) -> Effect:
    """A product with a tensor of unknown rank: where its rows lie is not known, so they stay, with a reason."""
    w = call.operands[weight]
    assert w is not None
    assert w.constant is not None
    stored = w.constant.shape
    if len(stored) != 2 or unsupported(w, _STACKS):
        return Effect(None)
    rows = call.fresh(stored[out_axis])
    use = LinearUse(
        weight=Operand(call.index, weight),
        activation=Operand(call.index, act),
        in_axis=in_axis % 2,
        out_axis=out_axis % 2,
        act_axis=0,
        result_axis=None,
        columns=np.full(stored[in_axis], PINNED),
        rows=rows,
    )
    return Effect(None, linear=(use,), pins=((rows, UNKNOWN_RANK),))


def _stacked(use: LinearUse, stored: Sequence[int], rank: int) -> LinearUse:
    """A use whose weight is a stack of matrices: all of them write the same channels."""
    batch = tuple(stored[:-2])
    count = math.prod(batch)
    if count == 1 or use.result_axis is None:
        return use
    assert isinstance(use.out_axis, int)
    # Behind the batch axes of the result lie its rows' axis and perhaps one that the activation brings.
    own = [-1 if axis == use.result_axis else 1 for axis in range(rank)]
    behind = own[use.result_axis - (use.result_axis == rank - 1 and rank > len(batch) + 1) :]
    return dataclasses.replace(
        use,
        out_axis=(*range(len(batch)), use.out_axis),
        rows=np.tile(use.rows, count),
        spread=(*batch, *behind),
    )


def _columns_apart(
    labels: IntArray, axis: int, shape: Sequence[int]
) -> tuple[IntArray, tuple[tuple[IntArray, str], ...]]:
    """What every matrix of a stack reads, one after the other; shape: of the stack, then of the contracted axis."""
    moved = np.moveaxis(labels, axis, -1)
    # Between the stack and what is contracted lies the axis that the product leaves.
    if moved.ndim > 1 and moved.shape[-2] == 1:
        moved = moved.squeeze(-2)
    extra = max(moved.ndim - len(shape), 0)
    if any(n > 1 for n in moved.shape[:extra]) or any(
        n not in (1, size) for n, size in zip(moved.shape[::-1], shape[::-1], strict=False)
    ):
        return np.full(math.prod(shape), PINNED), ((labels, NOT_CONTRACTED),)
    return np.broadcast_to(moved.reshape(moved.shape[extra:]), shape).reshape(-1), _pin_spread(labels, shape[-1])


def unsupported(weight: Value, ranks: Container[int]) -> str:
    """Why a constant can't be rewritten as a weight, or ""."""
    value = weight.constant
    assert value is not None
    if value.ndim not in ranks:
        return WEIGHT_RANK
    if value.dtype.kind != "f" and "float" not in value.dtype.name:
        return INTEGER_WEIGHT
    if not value.size:
        return EMPTY_WEIGHT
    return "" if np.isfinite(value).all() else NOT_FINITE


def channel_columns(labels: IntArray, axis: int, size: int) -> tuple[IntArray, tuple[tuple[IntArray, str], ...]]:
    """Labels of the contracted axis [size]; channels on any other axis are pinned."""
    others = [n for a, n in enumerate(labels.shape) if a != axis]
    if any(n > 1 for n in others) or labels.shape[axis] not in (1, size):
        return np.full(size, PINNED), ((labels, NOT_CONTRACTED),)
    line = labels.reshape(-1)
    return (line if line.size == size else np.full(size, line[0] if size == 1 else PINNED)), _pin_spread(labels, size)


def _pin_spread(labels: IntArray, size: int) -> tuple[tuple[IntArray, str], ...]:
    """A single label over a longer axis is one channel that owns all of it: it can only stay."""
    return ((labels, NOT_CONTRACTED),) if labels.size == 1 and size > 1 else ()


def gemm_law(attributes: Mapping[str, Any], constants: Constants) -> Law:
    """Of the channels that pass: something added to them has to be nothing."""
    added = len(constants) > 2 and attributes.get("beta", 1.0) != 0.0
    return Law.ANY if added else Law.WEIGHED


register(
    OpRule("MatMul", trace_matmul, since=7, law=Law.WEIGHED),
    OpRule("Gemm", trace_gemm, since=7, refine=gemm_law, bias=2),
    role=Role.WRITES,
)
