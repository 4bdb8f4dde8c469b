"""Parts of a tensor: Slice and Gather.

Along the axis of the channels their labels are picked like the elements, and stored positions follow what goes;
along every other axis channels stay apart.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnx_condense.ops.layout import COMPUTED_AXES, NOT_WHOLE, UNKNOWN_RANK, checked, numbers_of, places_of, stated
from onnx_condense.ops.registry import Call, Effect, Law, OpRule, Role, Value, register
from onnx_condense.plan import PINNED, Attribute, IndexUse, IntArray, Operand, SizeUse

COMPUTED_CUT = "cut along the channels at positions that are computed in the graph"
STEPPED = "cut along the channels with a step"
EMPTY = "cut along the channels to nothing"
PICKED = "picked by positions that are not a stored list"
OUTSIDE = "picked by positions outside of the axis"
STEERED = "moved by positions that own channels"


def trace_slice(call: Call) -> Effect:
    """Stored ends of a slice of the channels follow what goes before, or behind, them."""
    x = call.operands[0]
    if x is None or x.labels is None:
        return Effect(None)
    own = [axis for axis, n in enumerate(x.labels.shape) if n > 1]
    places = axes_of_slice(call, x.labels.ndim)
    if own and places is None:
        return Effect(None, pins=((x.labels, COMPUTED_AXES),))
    if places is None or not set(own) & set(places):
        return checked(call, x.labels, x.labels)
    found = _cut(call, places.index(own[0]), x.labels.reshape(-1)) if len(own) == 1 else NOT_WHOLE
    if isinstance(found, str):
        return Effect(None, pins=((x.labels, found),))
    part, sizes = found
    effect = checked(call, x.labels, x.labels.take(np.arange(x.labels.size)[part], own[0]))
    return effect if effect.output is None else Effect(effect.output, sizes=sizes)


def axes_of_slice(call: Call, rank: int) -> tuple[int, ...] | None:
    """The axes that a Slice works on, in the order of its numbers; None where they can't be told."""
    if "axes" in call.attributes or (len(call.operands) > 3 and call.operands[3] is not None):
        axes = stated(call, 3, "axes")
    elif "starts" in call.attributes:
        axes = tuple(range(len(call.attributes["starts"])))
    else:
        starts = call.operands[1] if len(call.operands) > 1 else None
        shape = (None,) if starts is None or starts.shape is None or len(starts.shape) != 1 else starts.shape
        axes = tuple(range(shape[0])) if isinstance(shape[0], int) else None
    return None if axes is None else places_of(axes, rank)


def _cut(call: Call, at: int, line: IntArray) -> tuple[slice, tuple[SizeUse, ...]] | str:
    """Which channels [C] an entry of a Slice leaves and which of its numbers follow; or why that can't be told."""
    steps = call.operands[4] if len(call.operands) > 4 else None
    if steps is not None and _entry(numbers_of(steps), at) != 1:
        return STEPPED
    cuts, sizes = [], []
    for position, name in ((1, "starts"), (2, "ends")):
        number = _number(call, position, name, at)
        if number is None:
            return COMPUTED_CUT
        cuts.append(min(max(number + len(line) if number < 0 else number, 0), len(line)))
        # Others lie at an end or beyond it, where they stay however many channels go.
        if 0 < abs(number) < len(line):
            where = Attribute(call.index, name) if name in call.attributes else Operand(call.index, position)
            if isinstance(where, Operand) and not _writable(call, position, at):
                return COMPUTED_CUT
            counted = line[:number] if number > 0 else line[number:]
            sizes.append(SizeUse(where, at, counted, 1 if number > 0 else -1))
    return (slice(*cuts), tuple(sizes)) if cuts[0] < cuts[1] else EMPTY


def _number(call: Call, position: int, name: str, at: int) -> int | None:
    if name in call.attributes:
        return _entry(call.attributes[name], at)
    return _entry(numbers_of(call.operands[position] if len(call.operands) > position else None), at)


def _entry(numbers: Sequence[int | None] | None, at: int) -> int | None:
    return numbers[at] if numbers is not None and at < len(numbers) else None


def _writable(call: Call, position: int, at: int) -> bool:
    value = call.operands[position]
    return value is not None and value.writable(at)


def trace_gather(call: Call) -> Effect:
    """A stored list of positions follows the channels that it picks."""
    x, picks = call.operands[0], call.operands[1]
    if x is None or x.labels is None:
        return Effect(None)
    axes = axes_of_gather(call, x.labels.ndim)
    if axes is None or picks is None or picks.shape is None:
        return Effect(None, pins=((x.labels, UNKNOWN_RANK),))
    axis, shape = axes[0], x.labels.shape
    if shape[axis] == 1:
        labels = x.labels.reshape(shape[:axis] + (1,) * len(picks.shape) + shape[axis + 1 :])
        return checked(call, x.labels, labels)
    at = _positions(picks, shape[axis]) if x.labels.size == shape[axis] else NOT_WHOLE
    if isinstance(at, str):
        return Effect(None, pins=((x.labels, at),))
    effect = checked(call, x.labels, x.labels.take(at, axis))
    use = IndexUse(Operand(call.index, 1), x.labels.reshape(-1))
    return effect if effect.output is None else Effect(effect.output, sizes=(use,))


def _positions(picks: Value, size: int) -> IntArray | str:
    """Stored positions on an axis, or why they can't follow its channels."""
    if picks.constant is None or picks.constant.ndim != 1 or not picks.constant.size:
        return PICKED
    at = picks.constant.astype(np.int64)
    return OUTSIDE if (at < -size).any() or (at >= size).any() else at


def axes_of_gather(call: Call, rank: int) -> tuple[int, ...] | None:
    """The axis that a Gather works on."""
    return places_of([call.attributes.get("axis", 0)], rank)


def moves_by_channels(call: Call) -> str:
    """Why an op whose later operands say where elements go is a barrier, or "": these must not shrink."""
    own = [v.labels for v in call.operands[1:] if v is not None and v.labels is not None]
    return STEERED if any((labels != PINNED).any() for labels in own) else ""


register(
    OpRule("Slice", trace_slice, law=Law.MOVE, guard=moves_by_channels),
    OpRule("Gather", trace_gather, law=Law.MOVE, guard=moves_by_channels),
    role=Role.JOINS,
)
