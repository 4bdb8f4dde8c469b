"""Value numbering through ops that move, pick, join or filter whole channels.

Where a channel of the result comes from is asked of the op's own rule: it is run on marks instead of labels. What it
ties together (the groups of a split axis, the operands of a join along another axis) becomes one function of all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

from onnx_condense import ops
from onnx_condense.evidence.laws import (
    CONSTANT,
    PARTS,
    Values,
    added_apart,
    beside,
    directions,
    exact,
    lengths,
    result_of,
)
from onnx_condense.network.known import Size
from onnx_condense.network.model import Network, Node
from onnx_condense.ops import Law
from onnx_condense.plan import FloatArray, IntArray

MOVES = frozenset({Law.SELECT, Law.MOVE, Law.MAXIMUM, Law.PADDED, Law.WEIGHED, Law.EACH})


class Known(Protocol):
    """What is asked of the numbering."""

    @property
    def network(self) -> Network:
        """What is numbered."""

    @property
    def labels(self) -> Mapping[str, IntArray]:
        """Channel labels of its tensors."""

    def of(self, tensor: str, axis: int, size: int) -> Values:
        """Values along an axis."""

    def beside_zeros(self, tensor: str, x: Values) -> Values:
        """Values to a reader that sees zeros beside them."""

    def group(self, keys: IntArray, rows: FloatArray, tolerance: FloatArray) -> IntArray:
        """New class numbers."""

    def fresh(self, count: int) -> IntArray:
        """Numbers never used before."""


def only_axis(labels: IntArray | None) -> int | None:
    """The one axis along which channels differ, or None."""
    axes = [] if labels is None else [axis for axis, n in enumerate(labels.shape) if n > 1]
    return axes[0] if len(axes) == 1 else None


def moved(known: Known, node: Node, rule: ops.OpRule, law: Law) -> Iterator[tuple[str, Values]]:
    """Values of each result of a node whose law is one of MOVES, by name."""
    marks, table = _marked(known, node, law)
    if not marks:
        return
    call = ops.call_of(known.network, node, marks, known.fresh)
    if ops.join.selects(node.op, call):
        law = Law.SELECT
    effect = rule.trace(call)
    outputs = effect.outputs or (effect.output,) * len(node.outputs)
    tied = _tied(effect.ties)
    for name, output in zip(node.outputs, outputs, strict=True):
        axis = only_axis(known.labels.get(name))
        if name and axis is not None and output is not None and output.shape[axis] == output.size:
            yield name, _values(known, law, axis, output.reshape(-1), tied, table)


def _marked(known: Known, node: Node, law: Law) -> tuple[dict[str, IntArray], Values]:
    """Marks 1, 2, ... for the channels of the operands, and what is known of them by mark (0: nothing)."""
    marks: dict[str, IntArray] = {}
    table: list[Values] = [exact(0, known.fresh(1))]
    count = 1
    result = only_axis(
        next((known.labels[n] for n in node.outputs if only_axis(known.labels.get(n)) is not None), None)
    )
    for name in dict.fromkeys(node.inputs):
        labels = known.labels.get(name)
        shape = known.network.shape(name)
        if labels is None or known.network.constant(name) is not None or shape is None or not labels.ndim:
            continue
        axis = only_axis(labels)
        at = axis if axis is not None else result
        size = None if at is None or at >= labels.ndim else max(labels.shape[at], _size(shape[at]))
        if law is Law.WEIGHED and axis is None:
            # It is what the channels of the other operand are weighed with.
            marks[name] = np.zeros_like(labels)
            continue
        if at is None or not size or len(shape) != labels.ndim:
            continue
        x = known.of(name, at, size)
        table.append(known.beside_zeros(name, x) if law in (Law.PADDED, Law.WEIGHED) else x)
        marks[name] = np.arange(count, count + size).reshape([-1 if a == at else 1 for a in range(labels.ndim)])
        count += size
    for name in node.inputs:
        for size in known.network.known(name) or ():
            # The channels of other tensors whose sizes a shape names: told apart by their sign.
            if isinstance(size, Size) and size.tensor not in node.inputs and size.tensor in known.labels:
                marks[size.tensor] = -1 - np.abs(known.labels[size.tensor])
    joined = Values(0, *(np.concatenate([getattr(v, part) for v in table]) for part in PARTS))
    return marks, joined


def laid_out(known: Known, node: Node, rule: ops.OpRule) -> Values | None:
    """Channels of the result of an Expand or ConstantOfShape that all hold the same; None where they do not."""
    labels = known.labels.get(node.outputs[0])
    axis = only_axis(labels)
    if labels is None or axis is None or rule.trace not in (ops.join.trace_expand, ops.rows.trace_constant_of_shape):
        return None
    width, shape = labels.shape[axis], known.network.shape(node.inputs[0]) or ()
    if node.op == "ConstantOfShape":
        value = node.attributes.get("value")
        number = 0.0 if value is None else float(value.values.reshape(-1)[0])
        return exact(axis, np.full(width, CONSTANT), np.zeros(width), np.full(width, number))
    at = axis - labels.ndim + len(shape)
    if at >= 0 and shape[at] != 1:
        return None
    return exact(axis, np.repeat(known.of(node.inputs[0], max(at, 0), 1).classes, width))


def put(known: Known, rule: ops.OpRule, law: Law, node: Node, operands: Sequence[Values]) -> Values | None:
    """Channels put by index into others; operands: data, index and what is put.

    What stands alone in its row stays as it was and what is added up is added up more or less often, so a number that
    is added to a channel does not pass; a factor does.
    """
    data, index, updates = operands
    # Of ScatterND it says nothing of channels.
    numbers = (index.classes, index.scale, index.offset) if node.op == "ScatterElements" else ()
    if any(np.ptp(n) for n in numbers):
        return None
    if law is not Law.ADD:
        return result_of(rule, [updates, data], known.group)
    a, b = known.beside_zeros(node.inputs[2], updates), known.beside_zeros(node.inputs[0], data)
    found = added_apart(a, b, known.group)
    return dataclasses.replace(found, classes=np.where(a.constant & b.constant, CONSTANT, found.classes))


def _size(size: int | str | None) -> int:
    return size if isinstance(size, int) else 0


def _tied(ties: Sequence[tuple[IntArray, IntArray]]) -> Mapping[int, tuple[int, ...]]:
    """All marks that are one with each mark, itself among them, in ascending order."""
    members: dict[int, list[int]] = {}
    for a, b in ties:
        pairs = zip(a.reshape(-1).tolist(), b.reshape(-1).tolist(), strict=True)
        for i, j in ((i, j) for i, j in pairs if i >= 0 and j >= 0):
            few, many = members.setdefault(i, [i]), members.setdefault(j, [j])
            if few is many:
                continue
            if len(few) > len(many):
                few, many = many, few
            many += few
            members.update(dict.fromkeys(few, many))
    # Each group once, however many marks it has.
    groups = {id(group): group for group in members.values()}
    return {mark: group for group in map(tuple, map(sorted, groups.values())) for mark in group}


def _values(
    known: Known, law: Law, axis: int, came: IntArray, tied: Mapping[int, tuple[int, ...]], table: Values
) -> Values:
    """Values of one result; came: mark per position."""
    if not tied.keys().isdisjoint(came.tolist()):
        # A function of several channels is nothing that this law speaks of.
        return exact(axis, known.fresh(len(came))) if law is Law.EACH else _of_many(known, axis, came, tied, table)
    x = Values(axis, *(getattr(table, part)[came] for part in PARTS))
    if (came == 0).any():
        # What the marks do not show is unknown, each position for itself.
        x.classes[came == 0] = known.fresh(int((came == 0).sum()))
    if law is Law.SELECT:
        return x
    if law is Law.EACH:
        numbers, noise = beside(x.scale, x.offset), beside(x.scale_noise, x.offset_noise)
        return exact(axis, known.group(beside(x.classes, _occurrence(came)), numbers, noise))
    # A largest element of -v is no largest element of v.
    flipped = (x.scale < 0) & (law is Law.MAXIMUM)
    keys = beside(x.classes, _occurrence(came), flipped)
    none = np.zeros((len(x), 0))
    classes = np.where(x.constant, CONSTANT, known.group(keys, none, none))
    scale = np.abs(x.scale) if law is Law.MAXIMUM else x.scale
    return Values(axis, classes, scale, x.offset, x.scale_noise, x.offset_noise)


def _of_many(known: Known, axis: int, came: IntArray, tied: Mapping[int, tuple[int, ...]], table: Values) -> Values:
    """Channels that are made of several, s_i v_i + o_i: with s = L u that is L (u_i v_i + o_i / L), a multiple by L."""
    sources = [tied.get(mark, (mark,)) for mark in came.tolist()]
    longest = max(map(len, sources))
    if any(len(s) != longest or 0 in s for s in sources):
        return exact(axis, known.fresh(len(came)))
    return of_all(known, axis, np.array(sources), table, _occurrence(came))


def of_all(known: Known, axis: int, at: IntArray, table: Values, apart: IntArray) -> Values:
    """Channels that are made of those at the places [C, n] of a table; apart: keeps some from being one [C]."""
    unit, blur, length = directions(table.scale[at], table.scale_noise[at])
    scale = np.where(length == 0, 1.0, length)
    slack = lengths(table.scale_noise[at])
    shift = table.offset[at] / scale[:, None]
    shift_noise = (table.offset_noise[at] + np.abs(shift) * slack[:, None]) / np.abs(scale)[:, None]
    keys = np.concatenate([table.classes[at], apart[:, None]], axis=1)
    classes = known.group(keys, np.concatenate([unit, shift], axis=1), np.concatenate([blur, shift_noise], axis=1))
    return dataclasses.replace(exact(axis, classes, scale), scale_noise=slack)


def _occurrence(numbers: IntArray) -> IntArray:
    """How often each entry occurred before."""
    order = np.argsort(numbers, kind="stable")
    ranked = numbers[order]
    starts = np.searchsorted(ranked, ranked)
    result = np.empty_like(numbers)
    result[order] = np.arange(len(numbers)) - starts
    return result


def filtered(
    known: Known, x: Values, kernels: FloatArray, bias: FloatArray, rounding: Callable[[FloatArray], FloatArray]
) -> Values:
    """Channels filtered one by one: multiples of one kernel on multiples of one channel are multiples.

    Args:
        known: the numbering.
        x: values [C] as the filter reads them.
        kernels: [m C, T], those of one channel side by side.
        bias: [m C].
        rounding: uncertainty of stored numbers.
    """
    came = np.repeat(np.arange(len(x)), len(kernels) // len(x))
    x = Values(x.axis, *(getattr(x, part)[came] for part in PARTS))
    noise = rounding(kernels)
    unit, tolerance, length = directions(kernels, noise)
    sums, blur = kernels.sum(axis=1), noise.sum(axis=1)
    offset_noise = np.abs(sums) * x.offset_noise + blur * np.abs(x.offset) + rounding(bias)
    constant = x.constant | (length == 0)
    classes = np.where(constant, CONSTANT, known.group(x.classes[:, None], unit, tolerance))
    spread = np.abs(length) * x.scale_noise + np.abs(x.scale) * lengths(noise)
    return Values(
        x.axis,
        classes,
        np.where(constant, 0.0, x.scale * length),
        x.offset * sums + bias,
        np.where(constant, 0.0, spread),
        offset_noise,
    )
