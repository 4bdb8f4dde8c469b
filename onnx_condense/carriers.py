"""Stored tensors with numbers for single channels, and how they are written once channels moved or were mixed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_condense.network.model import Network
from onnx_condense.plan import ChannelView, FloatArray, IntArray, LinearUse, Operand


@dataclasses.dataclass(frozen=True)
class Turn:
    """The channels of one part mixed: `into` [K, K] makes the new ones out of the old; out: its inverse."""

    into: FloatArray
    out: FloatArray


@dataclasses.dataclass(frozen=True)
class Carrier:
    """A stored tensor with numbers for single channels. labels: broadcast to its shape; reads: columns of a reader."""

    operand: Operand
    labels: IntArray
    reads: bool = False

    def turned(self, value: npt.NDArray[Any], parts: Sequence[tuple[IntArray, Turn]]) -> npt.NDArray[Any]:
        """The tensor once the channels of some parts, [K] labels each, are mixed."""
        found = value.astype(np.float64)
        matrices = [turn.out if self.reads else turn.into.T for _, turn in parts]
        known: dict[bytes, list[tuple[IntArray, FloatArray]]] = {}
        for axis in (a for a, size in enumerate(self.labels.shape) if size > 1):
            lines, moving = np.moveaxis(self.labels, axis, -1), np.moveaxis(found, axis, -1)
            for index in np.ndindex(lines.shape[:-1]):
                line = lines[index]
                if line.tobytes() not in known:
                    places = [_owned(line, cells) for cells, _ in parts]
                    pairs = zip(places, matrices, strict=True)
                    known[line.tobytes()] = [(own, matrix) for every, matrix in pairs for own in every]
                one = tuple(at if size > 1 else slice(None) for at, size in zip(index, lines.shape[:-1], strict=True))
                there = moving[one]
                for own, matrix in known[line.tobytes()]:
                    there[..., own] = there[..., own] @ matrix
        return found.astype(value.dtype)

    def reordered(self, value: npt.NDArray[Any], moved: IntArray) -> npt.NDArray[Any] | None:
        """The tensor once every channel has what another one had, `moved` [label]; None where that can't be written."""
        if (moved[self.labels] == self.labels).all():
            return value
        for axis, size in enumerate(self.labels.shape):
            if size > 1 and (at := _places(np.moveaxis(self.labels, axis, -1), moved)) is not None:
                return np.take_along_axis(value, np.moveaxis(at, -1, axis), axis)
        return None


def _owned(line: IntArray, cells: IntArray) -> IntArray:
    """Where the channels of a part lie in a line [b, K], b times each; none where they do not."""
    found = [np.flatnonzero(line == cell) for cell in cells]
    return np.array(found, np.int64).T if len({len(own) for own in found}) == 1 else np.empty((0, len(cells)), np.int64)


def _places(lines: IntArray, moved: IntArray) -> IntArray | None:
    """Which position of its line every position gets its number from, or None where that lies in another one."""
    found = np.empty_like(lines)
    known: dict[bytes, IntArray | None] = {}
    for index in np.ndindex(lines.shape[:-1]):
        line = lines[index]
        key = line.tobytes()
        if key not in known:
            known[key] = _line(line, moved)
        at = known[key]
        if at is None:
            return None
        found[index] = at
    return found


def _line(line: IntArray, moved: IntArray) -> IntArray | None:
    """The same for one line. A channel that lies there several times has to lie alike for all that take its place."""
    where: dict[int, list[int]] = {}
    for position, label in enumerate(line.tolist()):
        where.setdefault(label, []).append(position)
    at = np.arange(len(line))
    for label, own in where.items():
        other = int(moved[label])
        if other == label:
            continue
        found = where.get(other, [])
        steps = np.subtract(found, own) if len(found) == len(own) else np.arange(2)
        if (steps != steps[0]).any():
            return None
        at[own] = found
    return at


def carriers(network: Network, single: ChannelView) -> list[Carrier]:
    """All of a network; single: its channels, each with a label of its own."""
    found = [Carrier(c.operand, c.labels) for c in single.constants if c.labels.any()]
    for use in single.linear:
        sides = _sides(use, stored_at(network, use.weight).shape)
        found += [Carrier(use.weight, labels, reads) for labels, reads in sides if labels.any()]
    return found


def _sides(use: LinearUse, shape: Sequence[int]) -> Iterable[tuple[IntArray, bool]]:
    """Labels of the rows and of the columns of a weight, as they broadcast to it, and whether they are columns."""
    if use.row_axes:
        yield _spread(use.rows, use.row_axes, shape), False
    stack = use.row_axes[:-1]
    if stack and use.columns.size > shape[use.in_axis]:
        yield _spread(use.columns, (*stack, use.in_axis), shape), True
    elif use.groups > 1:
        parts = use.columns.reshape(use.groups, 1, -1)
        rows = shape[use.row_axes[0]] // use.groups
        yield _spread(np.repeat(parts, rows, axis=1).reshape(-1), (*use.row_axes, use.in_axis), shape), True
    else:
        yield _spread(use.columns, (use.in_axis,), shape), True


def _spread(labels: IntArray, axes: Sequence[int], shape: Sequence[int]) -> IntArray:
    """Labels of elements along some axes, in that order, as they broadcast to a shape."""
    there = labels.reshape([shape[axis] for axis in axes])
    ranked = np.argsort(axes)
    return there.transpose(ranked).reshape([n if axis in axes else 1 for axis, n in enumerate(shape)])


def stored_at(network: Network, operand: Operand) -> npt.NDArray[Any]:
    """The tensor that an operand is."""
    value = network.constant(network.nodes[operand.node].inputs[operand.position])
    assert value is not None
    return value
