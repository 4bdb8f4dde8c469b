"""Ops that work on each channel by itself along other axes: pooling, reductions, padding, resizing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnx_condense.ops.layout import COMPUTED_AXES, UNKNOWN_RANK, checked, copied, numbers_of, places_of, stated
from onnx_condense.ops.registry import Call, Constants, Effect, Law, OpRule, Role, Value, register
from onnx_condense.plan import IntArray, Operand, SizeUse

POOLED = "channels on an axis that is pooled"
REDUCED = "reduced over the channels"
PADDED = "padded along the channels, or by sizes that are not known"
FILLED = "padded with a value other than zero"
RESIZED = "resized along the channels, or to sizes that are not known"
COMPUTED_WIDTH = "resized to a width that is computed in the graph"
CROPPED = "crops and fills in (tf_crop_and_resize)"
INDICES = "gives the places of the largest elements"


def trace_pool(call: Call) -> Effect:
    """Pooling works along all axes but the first two."""
    x = call.operands[0]
    if x is None or x.labels is None:
        return Effect(None)
    if any(n > 1 for n in x.labels.shape[2:]):
        return Effect(None, pins=((x.labels, POOLED),))
    return checked(call, x.labels, x.labels)


def trace_reduction(call: Call) -> Effect:
    """Reductions over other axes than the channels' own."""
    x = call.operands[0]
    if x is None or x.labels is None:
        return Effect(None)
    named = "axes" in call.attributes or (len(call.operands) > 1 and call.operands[1] is not None)
    axes = stated(call, 1, "axes") if named else ()
    if not axes and axes is not None and call.attributes.get("noop_with_empty_axes"):
        return checked(call, x.labels, x.labels)
    places = None if axes is None else places_of(axes or range(x.labels.ndim), x.labels.ndim)
    if places is None:
        return Effect(None, pins=((x.labels, COMPUTED_AXES if axes is None else UNKNOWN_RANK),))
    # A single label does not tell on which axis its channel lies.
    if x.labels.size == 1 or any(x.labels.shape[axis] > 1 for axis in places):
        return Effect(None, pins=((x.labels, REDUCED),))
    kept = call.attributes.get("keepdims", 1)
    return checked(call, x.labels, x.labels if kept else np.squeeze(x.labels, places))


def trace_pad(call: Call) -> Effect:
    """Padding along other axes than the channels' own."""
    x = call.operands[0]
    if x is None or x.labels is None:
        return Effect(None)
    pads = _pads(call, x.labels.ndim)
    if pads is None or any(pads[axis] != (0, 0) for axis, n in enumerate(x.labels.shape) if n > 1):
        return Effect(None, pins=((x.labels, PADDED),))
    if _fills(call):
        return Effect(None, pins=((x.labels, FILLED),))
    # A single label does not tell on which axis its channel lies.
    if x.labels.size == 1 and any(pad != (0, 0) for pad in pads):
        return Effect(None, pins=((x.labels, PADDED),))
    return checked(call, x.labels, x.labels)


def _pads(call: Call, rank: int) -> list[tuple[int | None, int | None]] | None:
    """(before, after) per axis of the operand; None where that does not fit or can't be told."""
    if "pads" in call.attributes:
        numbers: Sequence[int | None] | None = call.attributes["pads"]
    else:
        numbers = numbers_of(call.operands[1]) if len(call.operands) > 1 else None
    places = _places(call, 3, rank)
    if numbers is None or places is None or len(numbers) != 2 * len(places):
        return None
    pads: list[tuple[int | None, int | None]] = [(0, 0)] * rank
    for i, axis in enumerate(places):
        pads[axis] = (numbers[i], numbers[i + len(places)])
    return pads


def _places(call: Call, position: int, rank: int) -> tuple[int, ...] | None:
    """The axes that an op is told to work on; all where it is told nothing."""
    named = "axes" in call.attributes or (len(call.operands) > position and call.operands[position] is not None)
    axes = stated(call, position, "axes") if named else tuple(range(rank))
    return None if axes is None else places_of(axes, rank)


def _fills(call: Call) -> bool:
    """Whether Pad lets in something else than zeros and the tensor's own elements."""
    if call.attributes.get("mode", "constant") != "constant":
        return False
    value = call.operands[2] if len(call.operands) > 2 else None
    if value is None:
        return bool(call.attributes.get("value", 0.0))
    # An empty tensor is no value; a computed one may be anything.
    return value.constant is None or bool(np.any(value.constant))


def trace_resize(call: Call) -> Effect:
    """Upsample and Resize by scales or sizes; those of the channels' own axis stay."""
    x = call.operands[0]
    if x is None or x.labels is None:
        return Effect(None)
    places = _named_places(call, x.labels.ndim)
    own = [axis for axis, n in enumerate(x.labels.shape) if n > 1]
    if places is None or len(own) != 1:
        return Effect(None, pins=((x.labels, RESIZED),))
    sizes = call.operands[3] if len(call.operands) > 3 else None
    at = places.index(own[0]) if own[0] in places else None
    if sizes is not None and any(copied(sizes, i, x) == own[0] for i in range(len(places)) if i != at):
        return Effect(None, pins=((x.labels, RESIZED),))
    # Where scales count, sizes may be there without elements.
    if at is not None and sizes is not None and (sizes.shape or (None,))[0] != 0:
        return _resized_to(call, x, x.labels, sizes, at)
    scales = _scales(call)
    if at is not None and (scales is None or len(scales) != len(places) or scales[at] != 1.0):
        return Effect(None, pins=((x.labels, RESIZED),))
    return checked(call, x.labels, x.labels)


def _named_places(call: Call, rank: int) -> tuple[int, ...] | None:
    return places_of(call.attributes.get("axes") or range(rank), rank)


def _scales(call: Call) -> Sequence[float | None] | None:
    """Scales that are known: an attribute of Upsample 7, the second operand up to Resize 10, the third from 11 on."""
    if "scales" in call.attributes:
        return list(call.attributes["scales"])
    value: Value | None = call.operands[-1] if len(call.operands) == 2 else None
    if len(call.operands) > 2:
        value = call.operands[2]
    if value is None or value.constant is None:
        return None if value is None else value.pieces
    return list(value.constant.reshape(-1).tolist())


def _resized_to(call: Call, x: Value, labels: IntArray, sizes: Value, at: int) -> Effect:
    """Resize by sizes, of which one names the width."""
    numbers = numbers_of(sizes)
    width = labels.size
    # Other policies scale all axes alike, so that the channels' own may not stay.
    stretched = call.attributes.get("keep_aspect_ratio_policy", "stretch") == "stretch"
    if stretched and sizes.constant is None and copied(sizes, at, x) == int(np.argmax(labels.shape)):
        return checked(call, labels, labels)
    if not stretched or numbers is None or len(numbers) <= at or numbers[at] != width:
        return Effect(None, pins=((labels, RESIZED),))
    if not sizes.writable(at):
        return Effect(None, pins=((labels, COMPUTED_WIDTH),))
    effect = checked(call, labels, labels)
    if effect.output is None:
        return effect
    return Effect(labels, sizes=(SizeUse(Operand(call.index, 3), at, labels.reshape(-1)),))


def average_law(attributes: Mapping[str, Any], _: Constants) -> Law:
    """An average of elements, or of elements and zeros beside them.

    Windows that reach over the end because of ceil_mode may count what is not there.
    """
    if not attributes.get("count_include_pad", 0):
        return Law.MOVE
    around = {"NOTSET": bool(np.any(attributes.get("pads", 0))), "VALID": False}
    reaches = around.get(attributes.get("auto_pad", "NOTSET"), True) or attributes.get("ceil_mode", 0)
    return Law.PADDED if reaches else Law.MOVE


def pad_law(attributes: Mapping[str, Any], constants: Constants) -> Law:
    """Zeros come in unless the op fills in the tensor's own elements, or nothing at all."""
    stored = constants[1] if len(constants) > 1 else attributes.get("pads")
    grows = stored is None or bool((np.asarray(stored) > 0).any())
    return Law.PADDED if grows and attributes.get("mode", "constant") == "constant" else Law.MOVE


def _gives_indices(call: Call) -> str:
    return INDICES if call.results > 1 else ""


def _crops(call: Call) -> str:
    return CROPPED if call.attributes.get("coordinate_transformation_mode") == "tf_crop_and_resize" else ""


_REDUCTIONS = {
    "ReduceMean": Law.MOVE,
    "ReduceMax": Law.MAXIMUM,
    # The least is the largest of what is negated: a factor above zero passes as well.
    "ReduceMin": Law.MAXIMUM,
    # A sum of r a + s holds s as often as there are elements, which may vary.
    "ReduceSum": Law.PADDED,
    **dict.fromkeys(
        ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceProd", "ReduceSumSquare"), Law.EACH
    ),
}

register(
    OpRule("MaxPool", trace_pool, law=Law.MAXIMUM, guard=_gives_indices),
    OpRule("AveragePool", trace_pool, refine=average_law),
    OpRule("GlobalAveragePool", trace_pool, law=Law.MOVE),
    OpRule("GlobalMaxPool", trace_pool, law=Law.MAXIMUM),
    # Since 2 the norm is along all axes but the first two.
    *(OpRule(op, trace_pool, since=2, law=Law.EACH) for op in ("LpPool", "GlobalLpPool")),
    *(OpRule(op, trace_reduction, law=law) for op, law in _REDUCTIONS.items()),
    # Before that its pads have another name.
    OpRule("Pad", trace_pad, since=2, refine=pad_law),
    OpRule("Upsample", trace_resize, since=7, law=Law.MOVE),
    OpRule("Resize", trace_resize, since=10, law=Law.MOVE, guard=_crops),
    role=Role.MOVES,
)
