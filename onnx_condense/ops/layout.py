"""Data movement that keeps the channel axis whole: labels move with their axis.

Ops that split the axis or merge it with others (heads, Flatten of an image) are barriers so far.
"""

from __future__ import annotations

import math

import numpy as np

from onnx_condense.ops.registry import Call, Effect, Law, OpRule, Value, register
from onnx_condense.plan import Operand, SizeUse
from onnx_condense.shapes import Shape

NOT_WHOLE = "moved in a way that does not keep the channel axis whole"
COMPUTED_SHAPE = "reshaped to a shape that is computed in the graph"
UNKNOWN_RANK = "shape not known"


def trace_transpose(call: Call) -> Effect:
    """Labels are transposed like the tensor."""
    x = call.operands[0]
    if x is None or x.labels is None:
        return Effect(None)
    order = call.attributes.get("perm") or list(range(x.labels.ndim))[::-1]
    if len(order) != x.labels.ndim:
        return Effect(None, pins=((x.labels, UNKNOWN_RANK),))
    return Effect(x.labels.transpose(order))


def trace_reshape(call: Call) -> Effect:
    """Reshape, Flatten, Squeeze, Unsqueeze: the axis that keeps its size and its place among the elements."""
    x = call.operands[0]
    if x is None or x.labels is None:
        return Effect(None)
    if x.shape is None or call.result_shape is None or len(x.shape) != x.labels.ndim:
        return Effect(None, pins=((x.labels, UNKNOWN_RANK),))
    axes = [axis for axis, n in enumerate(x.labels.shape) if n > 1]
    rank = len(call.result_shape)
    if not axes:
        # One label for all: it stays, because what is one channel here can't be cut further.
        return Effect(x.labels.reshape((1,) * rank), pins=((x.labels, NOT_WHOLE),))
    at = _new_place(axes[0], x.shape, call.result_shape) if len(axes) == 1 else None
    if at is None or call.result_shape[at] != x.labels.size:
        return Effect(None, pins=((x.labels, NOT_WHOLE),))
    return Effect(x.labels.reshape([-1 if axis == at else 1 for axis in range(rank)]))


def trace_named_shape(call: Call) -> Effect:
    """Reshape: as above; a number in the shape that names the width follows it."""
    effect = trace_reshape(call)
    x, shape = call.operands[0], call.operands[1] if len(call.operands) > 1 else None
    if x is None or x.labels is None or effect.output is None or x.labels.size == 1:
        return effect
    if shape is None or shape.constant is None:
        return Effect(None, pins=((x.labels, COMPUTED_SHAPE),))
    before, after = int(np.argmax(x.labels.shape)), int(np.argmax(effect.output.shape))
    return _following(call, effect, x, shape, before, after)


def _following(call: Call, effect: Effect, x: Value, shape: Value, before: int, after: int) -> Effect:
    """What the stored shape says of the axis: -1 follows by itself, 0 copies, a number is rewritten."""
    assert shape.constant is not None
    assert x.labels is not None
    names = shape.constant.reshape(-1).tolist()
    copies = [i for i, n in enumerate(names) if n == 0 and not call.attributes.get("allowzero")]
    if len(names) <= after or (before in copies) != (after in copies and before == after):
        return Effect(None, pins=((x.labels, NOT_WHOLE),))
    if names[after] in (-1, 0):
        return effect
    size = SizeUse(Operand(call.index, 1), after, x.labels.reshape(-1))
    return Effect(effect.output, sizes=(size,))


def _new_place(axis: int, before: Shape, after: Shape) -> int | None:
    """The axis of the result that holds the same elements in the same order, or None."""
    for at, size in enumerate(after):
        if size != before[axis] or not isinstance(size, int):
            continue
        ends = ((before[:axis], after[:at]), (before[axis + 1 :], after[at + 1 :]))
        if any(_extent(a) is not None and _extent(a) == _extent(b) for a, b in ends):
            return at
    return None


def _extent(shape: Shape) -> tuple[int, tuple[str, ...]] | None:
    """Number of elements as (known factor, symbols); None where a size is not known."""
    if any(n is None for n in shape):
        return None
    return math.prod(n for n in shape if isinstance(n, int)), tuple(sorted(n for n in shape if isinstance(n, str)))


def _drops_any_single(call: Call) -> str:
    """Without axes Squeeze removes every axis of size 1, so it would also remove a width that became 1."""
    named = call.attributes.get("axes") is not None or (len(call.operands) > 1 and call.operands[1] is not None)
    return "" if named else "squeezes every axis of size 1"


register(
    OpRule("Transpose", trace_transpose, law=Law.MOVE),
    OpRule("Reshape", trace_named_shape, since=5, law=Law.MOVE),
    OpRule("Squeeze", trace_reshape, law=Law.MOVE, guard=_drops_any_single),
    *(OpRule(op, trace_reshape, law=Law.MOVE) for op in ("Flatten", "Unsqueeze")),
)
