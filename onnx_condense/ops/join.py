"""Tensors put together and taken apart: Concat, Split, Tile, Expand, and pixels that become channels or were some.

Along the axis of the channels labels are put together and cut like the elements, and stored sizes of the parts follow;
along every other axis channels stay apart. One label for all elements stays one, wherever they go.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from onnx_condense.network.known import Size
from onnx_condense.network.shapes import Shape
from onnx_condense.ops.layout import (
    COMPUTED_WIDTH,
    NOT_WHOLE,
    SIZE_READ,
    UNKNOWN_RANK,
    checked,
    numbers_of,
    places_of,
)
from onnx_condense.ops.pick import axes_of_gather, axes_of_slice, moves_by_channels
from onnx_condense.ops.registry import Call, Effect, Law, OpRule, Role, Value, register
from onnx_condense.plan import PINNED, Attribute, IntArray, Operand, SizeUse, SplitUse

SPREAD = "joined with channels on another axis"
ONE_LABEL = "joined along another axis than its only channel's"
UNKNOWN_SIZE = "joined with a tensor of unknown size"
COMPUTED_PARTS = "split into parts whose sizes are computed in the graph"
MISFIT = "split into parts that do not fit its size"
REPEATED = "repeated along the channels a number of times that is not known"
EXPANDED = "expanded to sizes that are not known"
BLOCKS = "blocks that do not fit the channels"


def trace_concat(call: Call) -> Effect:
    """Labels one after the other along their own axis; along another one the operands' channels are tied."""
    values = [v for v in call.operands if v is not None]
    known = [v.labels for v in values if v.labels is not None]
    if not any((labels != PINNED).any() for labels in known):
        return Effect(None)
    ranks = {_rank(v) for v in values}
    rank = ranks.pop()
    axes = places_of([call.attributes.get("axis", 1)], rank or 0)
    # Declared shapes may be wrong: believe no rank that can't be.
    if ranks or axes is None or call.result_shape is None or len(call.result_shape) != rank:
        return _all_pinned(known, UNKNOWN_RANK)
    labels = [np.zeros((1,) * len(call.result_shape), np.int64) if v.labels is None else v.labels for v in values]
    varying = {a for one in labels for a, n in enumerate(one.shape) if n > 1}
    if varying <= {axes[0]}:
        return _joined(call, axes[0], values, labels)
    return _all_pinned(labels, SPREAD) if axes[0] in varying else _side_by_side(labels)


def _joined(call: Call, axis: int, values: Sequence[Value], labels: Sequence[IntArray]) -> Effect:
    """Along the channels' own axis; what owns none there takes up places that stay."""
    sizes = [_size(v, one, axis) for v, one in zip(values, labels, strict=True)]
    known = [n for n in sizes if isinstance(n, int)]
    if any(one.size == 1 and one.item() != PINNED and n != 1 for one, n in zip(labels, sizes, strict=True)):
        return _all_pinned(labels, ONE_LABEL)
    result = None if call.result_shape is None else call.result_shape[axis]
    if len(known) < len(sizes) or (isinstance(result, int) and result != sum(known)):
        return _all_pinned(labels, UNKNOWN_SIZE)
    line = np.concatenate([np.broadcast_to(one.reshape(-1), n) for one, n in zip(labels, known, strict=True)])
    return Effect(line.reshape([-1 if a == axis else 1 for a in range(labels[0].ndim)]))


def _side_by_side(labels: Sequence[IntArray]) -> Effect:
    """Along another axis; an operand without channels pins those of the others."""
    if len({one.shape for one in labels if one.size > 1}) > 1:
        return _all_pinned(labels, SPREAD)
    if any(one.size == 1 and one.item() != PINNED for one in labels):
        return _all_pinned(labels, ONE_LABEL)
    # A tensor joined with itself is tied to itself: what comes out is not what went in.
    at = next(i for i, one in enumerate(labels) if one.size > 1)
    others = [np.broadcast_to(one, labels[at].shape) for i, one in enumerate(labels) if i != at]
    return Effect(labels[at], ties=tuple((labels[at], other) for other in others))


def _rank(value: Value) -> int | None:
    if value.labels is not None:
        return value.labels.ndim
    return None if value.constant is None else value.constant.ndim


def _size(value: Value, labels: IntArray, axis: int) -> int | str | None:
    """Size of an operand's axis; labels know some that shape inference does not."""
    if labels.shape[axis] > 1:
        return int(labels.shape[axis])
    return value.shape[axis] if value.shape is not None and len(value.shape) == labels.ndim else None


def _all_pinned(labels: Sequence[IntArray], reason: str) -> Effect:
    return Effect(None, pins=tuple((one, reason) for one in labels))


def trace_split(call: Call) -> Effect:
    """Sizes of the parts are an operand."""
    return _split(call, SplitUse(Operand(call.index, 1), (), "num_outputs"))


def trace_split_by_attribute(call: Call) -> Effect:
    """Sizes of the parts are an attribute."""
    return _split(call, SplitUse(Attribute(call.index, "split"), ()))


def _split(call: Call, use: SplitUse) -> Effect:
    x = call.operands[0]
    if x is None or x.labels is None:
        return Effect(None)
    labels = x.labels
    axes = places_of([call.attributes.get("axis", 0)], labels.ndim)
    if axes is None:
        return Effect(None, pins=((labels, UNKNOWN_RANK),))
    if labels.shape[axes[0]] == 1:
        return checked(call, labels, labels)
    sizes = _parts(call, axes[0], labels.shape[axes[0]])
    if isinstance(sizes, str):
        return Effect(None, pins=((labels, sizes),))
    parts = np.split(labels, np.cumsum(sizes)[:-1], axes[0])
    if any(n > 1 for a, n in enumerate(labels.shape) if a != axes[0]):
        return Effect(None, pins=((labels, NOT_WHOLE),))
    use = SplitUse(use.where, tuple(part.reshape(-1) for part in parts), use.without)
    return Effect(None, sizes=(use,), outputs=tuple(parts))


def _parts(call: Call, axis: int, size: int) -> Sequence[int] | str:
    """Sizes of the parts, or why they can't be told."""
    given = call.operands[1] if len(call.operands) > 1 else None
    result = call.result_shape
    first = result[axis] if result is not None and axis < len(result) else None
    if given is not None:
        numbers = numbers_of(given) or (None,)
        sizes = [n for n in numbers if n is not None]
        if len(sizes) < len(numbers):
            return COMPUTED_PARTS
    elif "split" in call.attributes:
        sizes = list(call.attributes["split"])
    else:
        # Equal parts, the last one perhaps smaller. Outputs without a name are parts too, but not counted.
        count = call.attributes.get("num_outputs", call.results)
        whole = -(-size // count)
        sizes = [whole] * (count - 1) + [size - whole * (count - 1)] if first == whole else []
    fits = len(sizes) == call.results and sum(sizes) == size and min(sizes, default=0) > 0
    return sizes if fits and (not isinstance(first, int) or first == sizes[0]) else MISFIT


def trace_tile(call: Call) -> Effect:
    """Repeated channels own a place in every copy."""
    x = call.operands[0]
    if x is None or x.labels is None:
        return Effect(None)
    repeats = numbers_of(call.operands[1])
    axes = _varying(x.labels)
    if repeats is None or len(repeats) != x.labels.ndim:
        return Effect(None, pins=((x.labels, REPEATED),)) if axes else checked(call, x.labels, x.labels)
    copies = [repeats[axis] if axis in axes else 1 for axis in range(x.labels.ndim)]
    known = [n for n in copies if n]
    if len(known) < len(copies):
        return Effect(None, pins=((x.labels, REPEATED),))
    return checked(call, x.labels, np.tile(x.labels, known))


def trace_expand(call: Call) -> Effect:
    """Axes of size 1 are repeated, none of which owns channels; a number that names the width follows it.

    A size of a tensor's channels ties them to those that it names here; what is repeated so often has them for its own.
    """
    x, shape = call.operands[0], call.operands[1] if len(call.operands) > 1 else None
    alone = x is not None and (x.labels is None or bool((x.labels == PINNED).all()))
    if x is not None and alone and (found := spread(call, x.shape, shape)) is not None:
        return found
    effect = Effect(None) if x is None or x.labels is None else _expanded(call, x.labels, shape)
    if shape is None or shape.known is None or call.apart:
        return effect
    ties, pins = list(effect.ties), list(effect.pins)
    for entry, line in zip(shape.known, _lines(effect.output, len(shape.known)), strict=True):
        if not isinstance(entry, Size) or entry.labels is None:
            continue
        if line is not None and entry.labels.shape == line.shape:
            ties.append((entry.labels, line))
        else:
            pins.append((entry.labels, SIZE_READ))
    return dataclasses.replace(effect, ties=tuple(ties), pins=tuple(pins))


def spread(call: Call, own: Shape | None, sizes: Value | None) -> Effect | None:
    """What holds one number for all channels of a tensor whose size a list names, laid out by that list.

    own: its shape. sizes: the list. None where it is nothing of that kind.
    """
    known = () if sizes is None or sizes.known is None else sizes.known
    lines = [
        (at, entry.labels) for at, entry in enumerate(known) if isinstance(entry, Size) and entry.labels is not None
    ]
    if own is None or len(own) > len(known) or len(lines) != 1:
        return None
    at, line = lines[0]
    if line.ndim != 1 or ((1,) * (len(known) - len(own)) + own)[at] != 1:
        return None
    labels = line.reshape([-1 if axis == at else 1 for axis in range(len(known))])
    return checked(call, labels, labels)


def _expanded(call: Call, labels: IntArray, shape: Value | None) -> Effect:
    numbers = _entries(shape)
    if numbers is None or shape is None:
        return Effect(None, pins=((labels, EXPANDED),))
    count = len(numbers)
    more = max(count - labels.ndim, 0)
    labels = labels.reshape((1,) * more + labels.shape)
    numbers = (1,) * (labels.ndim - len(numbers)) + numbers
    sizes = []
    for axis in _varying(labels):
        at = axis - labels.ndim + count
        if numbers[axis] == 1 or (labels.size == labels.shape[axis] and _names(shape, at, labels.size)):
            continue
        if numbers[axis] != labels.shape[axis] or labels.size != labels.shape[axis]:
            return Effect(None, pins=((labels, EXPANDED),))
        if not shape.writable(at):
            return Effect(None, pins=((labels, COMPUTED_WIDTH),))
        sizes.append(SizeUse(Operand(call.index, 1), at, labels.reshape(-1)))
    effect = checked(call, labels, labels)
    return effect if effect.output is None else Effect(labels, sizes=tuple(sizes))


def _names(shape: Value, at: int, width: int) -> bool:
    """Whether a list of sizes has the size of channels at a position, as many as the width."""
    entry = shape.known[at] if shape.known is not None else None
    return isinstance(entry, Size) and entry.labels is not None and entry.labels.shape == (width,)


def _lines(output: IntArray | None, count: int) -> list[IntArray | None]:
    """The channels along each of a result's last axes, where all of them lie along it."""
    sizes = (1,) * count if output is None else ((1,) * count + output.shape)[-count:] if count else ()
    return [output.reshape(-1) if output is not None and 1 < n == output.size else None for n in sizes]


def _entries(value: Value | None) -> tuple[int | None, ...] | None:
    """What is known of a list of integers; None where not even its length is."""
    numbers = numbers_of(value)
    if numbers is not None or value is None or value.shape is None or len(value.shape) != 1:
        return numbers
    size = value.shape[0]
    return (None,) * size if isinstance(size, int) else None


def _varying(labels: IntArray) -> list[int]:
    return [axis for axis, n in enumerate(labels.shape) if n > 1]


def trace_depth_to_space(call: Call) -> Effect:
    """The b * b channels that make up one channel of the result go together."""
    x = call.operands[0]
    if x is None or x.labels is None or x.labels.size == 1:
        return Effect(None if x is None else x.labels)
    taps = call.attributes["blocksize"] ** 2
    line = _image_channels(x)
    if line is None or len(line) % taps:
        return Effect(None, pins=((x.labels, BLOCKS),))
    columns_first = call.attributes.get("mode", "DCR") == "CRD"
    groups = line.reshape(-1, taps).T if columns_first else line.reshape(taps, -1)
    ties = ((np.broadcast_to(groups[:1], groups.shape), groups),)
    effect = checked(call, x.labels, groups[0].reshape(1, -1, 1, 1))
    return effect if effect.output is None else Effect(effect.output, ties=ties)


def trace_space_to_depth(call: Call) -> Effect:
    """Every channel becomes b * b channels of the result."""
    x = call.operands[0]
    if x is None or x.labels is None or x.labels.size == 1:
        return Effect(None if x is None else x.labels)
    line = _image_channels(x)
    if line is None:
        return Effect(None, pins=((x.labels, BLOCKS),))
    return checked(call, x.labels, np.tile(line, call.attributes["blocksize"] ** 2).reshape(1, -1, 1, 1))


def _image_channels(x: Value) -> IntArray | None:
    """Labels of an image's channels, or None where it is none or they lie on another axis."""
    labels = x.labels
    fits = labels is not None and labels.ndim == 4 and labels.shape[1] == labels.size
    return labels.reshape(-1) if fits and labels is not None else None


def selects(op: str, call: Call) -> bool:
    """Whether a node of this module or of `pick` works along the channels' axis and no other.

    Then channels stay as they are (Law.SELECT), while the records say what is true on whatever axis.
    """
    x = call.operands[0]
    if op not in _AXES or x is None or x.labels is None:
        return False
    axes, own = _AXES[op](call, x.labels.ndim), _varying(x.labels)
    return bool(own) and axes is not None and set(axes) <= set(own)


def _by_attribute(default: int) -> Callable[[Call, int], tuple[int, ...] | None]:
    return lambda call, rank: places_of([call.attributes.get("axis", default)], rank)


def _axes_of_tile(call: Call, rank: int) -> tuple[int, ...] | None:
    repeats = numbers_of(call.operands[1])
    known = repeats is not None and len(repeats) == rank
    return tuple(axis for axis, n in enumerate(repeats) if n != 1) if known and repeats is not None else None


_AXES: dict[str, Callable[[Call, int], tuple[int, ...] | None]] = {
    "Concat": _by_attribute(1),
    "Split": _by_attribute(0),
    "Gather": axes_of_gather,
    "Slice": axes_of_slice,
    "Tile": _axes_of_tile,
}

register(
    # Along another axis its ties tell that a channel is made of several.
    OpRule("Concat", trace_concat, law=Law.SELECT),
    OpRule("Split", trace_split_by_attribute, since=2, until=12, law=Law.MOVE),
    OpRule("Split", trace_split, since=13, law=Law.MOVE, guard=moves_by_channels),
    # Before that it repeats one axis, by operands of other meaning.
    OpRule("Tile", trace_tile, since=6, law=Law.MOVE, guard=moves_by_channels),
    OpRule("Expand", trace_expand, since=8, law=Law.MOVE, guard=moves_by_channels),
    OpRule("DepthToSpace", trace_depth_to_space, law=Law.MOVE),
    OpRule("SpaceToDepth", trace_space_to_depth, law=Law.MOVE),
    role=Role.JOINS,
)
