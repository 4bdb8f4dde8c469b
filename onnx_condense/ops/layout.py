"""Data movement: labels go where the elements go.

Reshape, Flatten, Squeeze and Unsqueeze split the axes of operand and result into blocks that hold the same elements;
inside a block labels are reshaped like the elements. Where they would spread over several axes (heads, groups), the
channels that get the same place on one of these are tied, so that what is left is a full grid again.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from onnx_condense.network.known import Known, Size
from onnx_condense.network.shapes import Shape
from onnx_condense.ops.blocks import Block, blocks_of, filled, narrow, sizes_of
from onnx_condense.ops.registry import Call, Effect, Law, OpRule, Role, Value, register
from onnx_condense.plan import IntArray, Operand, SizeUse

NOT_WHOLE = "moved in a way that does not keep the channel axis whole"
UNKNOWN_SIZES = "merged with an axis of unknown size"
COMPUTED_SHAPE = "reshaped to a shape that is computed in the graph"
COMPUTED_WIDTH = "reshaped to a shape whose width is computed in the graph"
COMPUTED_AXES = "axes that are computed in the graph"
UNKNOWN_RANK = "shape not known"
SIZE_READ = "its size is read by the graph"


def trace_transpose(call: Call) -> Effect:
    """Labels are transposed like the tensor."""
    x = call.operands[0]
    if x is None or x.labels is None:
        return Effect(None)
    order = call.attributes.get("perm") or list(range(x.labels.ndim))[::-1]
    if len(order) != x.labels.ndim:
        return Effect(None, pins=((x.labels, UNKNOWN_RANK),))
    return Effect(x.labels.transpose(order))


def trace_flatten(call: Call) -> Effect:
    """All axes before `axis` become one, and all others another."""
    x = call.operands[0]
    if x is None or x.labels is None:
        return Effect(None)
    rank, axis = x.labels.ndim, call.attributes.get("axis", 1)
    if not -rank <= axis <= rank:
        return Effect(None, pins=((x.labels, UNKNOWN_RANK),))
    cut = axis + rank if axis < 0 else axis
    # The product of no axes is 1.
    blocks: list[Block] = [(part, (None,) if part else (1,)) for part in (range(cut), range(cut, rank))]
    if call.result_shape is not None and len(call.result_shape) != 2:
        return Effect(None, pins=((x.labels, UNKNOWN_RANK),))
    return _moved(x, x.labels, blocks, apart=call.apart)


def trace_unsqueeze(call: Call) -> Effect:
    """New axes of size 1 own no channels."""
    x = call.operands[0]
    if x is None or x.labels is None:
        return Effect(None)
    axes = stated(call, 1, "axes")
    rank = x.labels.ndim + len(axes or ())
    places = None if axes is None else places_of(axes, rank)
    if places is None:
        return Effect(None, pins=((x.labels, COMPUTED_AXES if axes is None else UNKNOWN_RANK),))
    return checked(call, x.labels, np.expand_dims(x.labels, places))


def trace_squeeze(call: Call) -> Effect:
    """Axes of size 1 go; none of them may own several channels."""
    x = call.operands[0]
    if x is None or x.labels is None:
        return Effect(None)
    axes = stated(call, 1, "axes")
    places = None if axes is None else places_of(axes, x.labels.ndim)
    if places is None or any(x.labels.shape[axis] != 1 for axis in places):
        return Effect(None, pins=((x.labels, COMPUTED_AXES if axes is None else UNKNOWN_RANK),))
    return checked(call, x.labels, np.squeeze(x.labels, places))


def trace_reshape(call: Call) -> Effect:
    """Labels move like the elements; a stored number that names the width follows it.

    A size of another tensor's channels ties them to those that it names here; elsewhere it keeps them.
    """
    effect = _trace_reshape(call)
    x, shape = call.operands[0], call.operands[1] if len(call.operands) > 1 else None
    if x is None or shape is None or shape.known is None or call.apart:
        return effect
    output = effect.output
    after = int(np.argmax(output.shape)) if output is not None and output.size > 1 else -1
    ties, pins = list(effect.ties), list(effect.pins)
    for i, entry in enumerate(shape.known):
        if not isinstance(entry, Size) or entry.tensor == x.name or entry.labels is None:
            continue
        if i == after and output is not None and entry.labels.shape == (output.size,):
            ties.append((entry.labels, output.reshape(-1)))
        else:
            pins.append((entry.labels, SIZE_READ))
    return dataclasses.replace(effect, ties=tuple(ties), pins=tuple(pins))


def _trace_reshape(call: Call) -> Effect:
    x = call.operands[0]
    if x is None or x.labels is None:
        return Effect(None)
    names = _names(call, x)
    ranked = x.shape is not None and len(x.shape) == x.labels.ndim
    if x.shape is None or not ranked or names is None:
        return Effect(None, pins=((x.labels, COMPUTED_SHAPE if ranked else UNKNOWN_RANK),))
    before = sizes_of(x.labels, x.shape)
    after = _result_sizes(names, x.name, before, call.result_shape)
    if after is None or 0 in (*before, *after):
        return Effect(None, pins=((x.labels, NOT_WHOLE),))
    blocks = blocks_of(before, after)
    effect = _moved(x, x.labels, blocks, apart=call.apart)
    if effect.output is not None and not call.apart:
        return effect if effect.pins else _following(call, x, names, after, effect.output)
    if call.apart:
        return effect
    found = {NOT_WHOLE: _tied, UNKNOWN_SIZES: _repeated}.get("".join(why for _, why in effect.pins))
    return effect if found is None else found(call, x, names, after, blocks)


def _tied(call: Call, x: Value, names: Known, after: Shape, blocks: Sequence[Block]) -> Effect:
    """A result over several axes of which the channels spread: those of one place on one of them are tied."""
    assert x.labels is not None
    refused = Effect(None, pins=((x.labels, NOT_WHOLE),))
    labels = narrow(x.labels)
    # Positions instead of labels: some channels may be tied already.
    grid = _reshaped(np.arange(labels.size).reshape(labels.shape), sizes_of(labels, x.shape or ()), blocks)
    if sum(n > 1 for n in labels.shape) != 1 or isinstance(grid, str):
        return refused
    varying = [axis for axis, n in enumerate(grid.shape) if n > 1]
    # Features become an image: its channels come first. Elsewhere groups or heads do.
    kept = varying[0] if len(x.shape or ()) == 2 and grid.ndim > 3 else varying[-1]
    outer = [axis for axis in varying if axis != kept]
    if any(names[axis] is None for axis in outer):
        return Effect(None, pins=((x.labels, COMPUTED_SHAPE),))
    rows = np.unique(np.moveaxis(grid, kept, -1).reshape(-1, grid.shape[kept]), axis=0)
    # Rows that share some channels, but not all, would tie neighbours.
    ranked = np.sort(rows, axis=1)
    if len(rows) + np.count_nonzero(ranked[:, 1:] != ranked[:, :-1]) > labels.size:
        return refused
    parts = labels.reshape(-1)[rows]
    output = parts[0].reshape([1 if axis in outer else n for axis, n in enumerate(grid.shape)])
    effect = _following(call, x, names, after, output)
    ties = ((np.broadcast_to(parts[:1], parts.shape), parts),)
    return effect if effect.output is None else dataclasses.replace(effect, ties=ties)


def _repeated(call: Call, x: Value, names: Known, after: Shape, blocks: Sequence[Block]) -> Effect:
    """Channels behind axes of unknown size (a batch that is merged with heads): all come again at every place of these.

    Rows of the result that are several times as long have them several times. Of shorter ones several have them once:
    channels that get the same place there are tied.
    """
    assert x.labels is not None
    labels = narrow(x.labels)
    own = int(np.argmax(labels.shape))
    at = next(i for i, (axes, _) in enumerate(blocks) if own in axes)
    axes, sizes = blocks[at]
    # The last axes of the block, in which the places of the others follow one another.
    end, size = sum(len(s) for _, s in blocks[: at + 1]) - 1, sizes[-1] if sizes and axes[-1] == own else None
    count, rank = labels.size, sum(len(s) for _, s in blocks)
    if count != labels.shape[own] or not isinstance(size, int) or size < 2:
        return Effect(None, pins=((labels, UNKNOWN_SIZES),))
    if size % count and count % size:
        return Effect(None, pins=((labels, NOT_WHOLE),))
    parts = np.resize(labels.reshape(-1), max(size, count)).reshape(-1, size)
    output = parts[0].reshape([-1 if axis == end else 1 for axis in range(rank)])
    effect = _following(call, x, names, after, output)
    ties = ((np.broadcast_to(parts[:1], parts.shape), parts),)
    return effect if effect.output is None or len(parts) < 2 else dataclasses.replace(effect, ties=ties)


def trace_shape(call: Call) -> Effect:
    """Sizes own no channels; what has channels along an axis whose size somebody reads keeps them."""
    x = call.operands[0]
    if x is None or x.labels is None:
        return Effect(None)
    axes = list(range(x.labels.ndim))[call.attributes.get("start", 0) : call.attributes.get("end")]
    read = [axis for i, axis in enumerate(axes) if call.wanted is None or i in call.wanted]
    pinned = any(x.labels.shape[axis] > 1 for axis in read)
    return Effect(None, pins=((x.labels, SIZE_READ),) if pinned else ())


def stated(call: Call, position: int, attribute: str) -> tuple[int, ...] | None:
    """Integers that a node gets as an attribute or, in later opsets, as an operand; None where they are not known."""
    if attribute in call.attributes:
        return tuple(call.attributes[attribute])
    numbers = numbers_of(call.operands[position] if len(call.operands) > position else None)
    known = tuple(n for n in numbers or () if n is not None)
    return known if numbers is not None and len(known) == len(numbers) else None


def numbers_of(value: Value | None) -> tuple[int | None, ...] | None:
    """What is known of a list of integers, stored or computed."""
    if value is None:
        return None
    if value.constant is None:
        return None if value.known is None else tuple(n if isinstance(n, int) else None for n in value.known)
    return tuple(int(n) for n in value.constant.reshape(-1).tolist())


def copied(value: Value, at: int, x: Value) -> int | None:
    """The axis of `x` whose size the graph puts at a position of a list of sizes, or None."""
    size = value.known[at] if value.known is not None and at < len(value.known) else None
    return size.axis if isinstance(size, Size) and size.tensor == x.name else None


def places_of(axes: Sequence[int], rank: int) -> tuple[int, ...] | None:
    """Axes counted from the front, or None where they do not fit the rank."""
    fits = all(-rank <= axis < rank for axis in axes)
    places = tuple(axis % rank for axis in axes) if fits else ()
    return places if fits and len(set(places)) == len(axes) else None


def checked(call: Call, labels: IntArray, output: IntArray) -> Effect:
    """Declared shapes may be wrong: believe no rank that can't be."""
    if call.result_shape is not None and len(call.result_shape) != output.ndim:
        return Effect(None, pins=((labels, UNKNOWN_RANK),))
    return Effect(output)


def _moved(x: Value, labels: IntArray, blocks: Sequence[Block], *, apart: bool = False) -> Effect:
    """Labels of a result that consists of blocks of the operand's elements; apart: they may lie along several axes."""
    labels_now = narrow(labels)
    rank = sum(len(sizes) for _, sizes in blocks)
    if x.shape is not None and len(x.shape) != labels.ndim:
        return Effect(None, pins=((labels, UNKNOWN_RANK),))
    if labels_now.size == 1:
        # One label for all: it stays, because what is one channel here can't be cut further.
        return Effect(labels_now.reshape((1,) * rank), pins=((labels, NOT_WHOLE),))
    spread = _reshaped if apart else _spread
    output = spread(labels_now, sizes_of(labels, x.shape or (None,) * labels.ndim), blocks)
    return Effect(None, pins=((labels, output),)) if isinstance(output, str) else Effect(output)


def _spread(labels: IntArray, known: Shape, blocks: Sequence[Block]) -> IntArray | str:
    """The labels of every element of a block that has some, reshaped; or why the result can't have them.

    labels: narrow; known: sizes of all axes of the operand.
    """
    output = _reshaped(labels, known, blocks)
    if isinstance(output, str):
        return output
    whole = all(sum(n > 1 for n in a.shape) == 1 for a in (labels, output))
    return output if whole else NOT_WHOLE


def _reshaped(labels: IntArray, known: Shape, blocks: Sequence[Block]) -> IntArray | str:
    """The same on however many axes."""
    wide, shape = [1] * labels.ndim, list[int]()
    for axes, after in blocks:
        if all(labels.shape[axis] == 1 for axis in axes):
            shape += [1] * len(after)
            continue
        sizes = [n for axis in axes if isinstance(n := known[axis], int)]
        if len(sizes) < len(axes):
            return UNKNOWN_SIZES
        found = filled(after, math.prod(sizes))
        if found is None:
            return NOT_WHOLE
        shape += found
        wide[axes.start : axes.stop] = sizes
    return narrow(np.broadcast_to(labels, wide).reshape(shape))


def _names(call: Call, x: Value) -> Known | None:
    """What the shape of a Reshape says per axis of the result: 0 is a size of the operand, unless it means none."""
    shape = call.operands[1] if len(call.operands) > 1 else None
    if shape is None:
        return None
    names = shape.known if shape.constant is None else numbers_of(shape)
    if names is None or call.attributes.get("allowzero"):
        return names
    return tuple(Size(x.name, i) if n == 0 else n for i, n in enumerate(names))


def _result_sizes(names: Known, x: str, before: Shape, declared: Shape | None) -> Shape | None:
    """Sizes of the result as the shape says, then as they are declared; None where these do not fit."""
    known = (None,) * len(names) if declared is None else declared
    if len(known) != len(names) or any(isinstance(n, Size) and n.tensor == x and n.axis >= len(before) for n in names):
        return None
    said = [before[n.axis] if isinstance(n, Size) and n.tensor == x else _said(n) for n in names]
    return tuple(size if n is None else n for n, size in zip(said, known, strict=True))


def _said(entry: int | Size | None) -> int | str | None:
    if isinstance(entry, Size):
        return entry.size
    return entry if entry is not None and entry >= 0 else None


def _following(call: Call, x: Value, names: Known, sizes: Shape, output: IntArray) -> Effect:
    """What the shape says of the axis with the channels: -1 and a copy follow by themselves, a number is rewritten."""
    assert x.labels is not None
    labels = narrow(x.labels)
    before, after = int(np.argmax(labels.shape)), int(np.argmax(output.shape))
    line = output.reshape(-1)
    width = Size(x.name, before)
    entry = names[after]
    # Another entry that is the width, or may be the 0 that copies it, would shrink as well.
    reason = NOT_WHOLE if width in (*names[:after], *names[after + 1 :]) else ""
    if before != after and before < len(names) and names[before] is None and _may_copy(sizes, before, labels, x):
        reason = COMPUTED_SHAPE
    if entry is None:
        reason = COMPUTED_SHAPE
    elif isinstance(entry, Size) and entry.tensor != x.name and entry.labels is not None:
        reason = reason or ("" if entry.labels.shape == line.shape else NOT_WHOLE)
    elif isinstance(entry, Size) and (entry != width or not np.array_equal(labels.reshape(-1), line)):
        reason = NOT_WHOLE
    elif isinstance(entry, int) and entry != -1:
        reason = reason or ("" if _writable(call, after) else COMPUTED_WIDTH)
        use = SizeUse(Operand(call.index, 1), after, line)
        return Effect(None, pins=((x.labels, reason),)) if reason else Effect(output, sizes=(use,))
    return Effect(None, pins=((x.labels, reason),)) if reason else Effect(output)


def _writable(call: Call, at: int) -> bool:
    shape = call.operands[1]
    return shape is not None and shape.writable(at)


def _may_copy(sizes: Shape, axis: int, labels: IntArray, x: Value) -> bool:
    """Whether a computed entry of the shape might be the 0 that copies the width, as far as sizes tell."""
    size = sizes[axis]
    if isinstance(size, int):
        return bool(size == labels.shape[axis])
    assert x.shape is not None
    return size is None or size not in (*x.shape[:axis], *x.shape[axis + 1 :])


def _drops_any_single(call: Call) -> str:
    """Without axes Squeeze removes every axis of size 1, so it would also remove a width that became 1."""
    named = call.attributes.get("axes") is not None or (len(call.operands) > 1 and call.operands[1] is not None)
    return "" if named else "squeezes every axis of size 1"


register(
    OpRule("Transpose", trace_transpose, law=Law.MOVE),
    OpRule("Reshape", trace_reshape, since=5, law=Law.MOVE),
    OpRule("Flatten", trace_flatten, law=Law.MOVE),
    OpRule("Squeeze", trace_squeeze, law=Law.MOVE, guard=_drops_any_single),
    OpRule("Unsqueeze", trace_unsqueeze, law=Law.MOVE),
    OpRule("Shape", trace_shape),
    role=Role.MOVES,
)
