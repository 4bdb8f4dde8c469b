"""Multiply-accumulates of the condensed network as a function of the widths of its spaces."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from onnx_condense.cost import Work, count_macs, known_shapes, node_macs, shapes_around
from onnx_condense.network.model import Network
from onnx_condense.network.shapes import Shape
from onnx_condense.plan import PINNED, ChannelView, IntArray, LinearUse

_Dim = int | str | None
_Place = str | tuple[int, int]
# Positions that stay as they are, and per space how many positions each channel that may go owns; how many may not.
_Axis = tuple[_Dim, tuple[tuple[int, float, int], ...]]


class MacCosts:
    """What `cost.Work.of` will say at given widths.

    Every tensor's shape follows from the labels on its axes, and a node's count from the shapes around it: so a row of
    a convolution's weight counts once per position of the result. Of a tensor that holds a part of a space (a slice
    of its channels) as large a share is taken to go: there it is the mean over which channels go.
    """

    def __init__(self, network: Network, view: ChannelView, work: Work | None = None) -> None:
        counted = (work or Work()).sized(network)
        self._full = [s.width for s in view.spaces]
        self._stay = [int(s.pinned.sum()) for s in view.spaces]
        self._space = {int(c): i for i, s in enumerate(view.spaces) for c in s.channels[~s.pinned]}
        self._shapes = known_shapes(counted)
        # By tensor, and of constants by node and position: uses of one constant may be cut apart.
        self._cut: dict[_Place, tuple[_Axis, ...]] = {}
        for name, labels in view.labels.items():
            self._add(name, name, [_line(labels, axis) for axis in range(labels.ndim)])
        for use in view.linear:
            name = network.nodes[use.weight.node].inputs[use.weight.position]
            lines = _stored_lines(use, self._shapes.get(name, ()))
            self._add((use.weight.node, use.weight.position), name, lines)
        for constant in view.constants:
            at, labels = constant.operand, constant.labels
            name = network.nodes[at.node].inputs[at.position]
            self._add((at.node, at.position), name, [_line(labels, axis) for axis in range(labels.ndim)])
        self._fixed = 0
        self._nodes: list[tuple[onnx.NodeProto, tuple[_Place, ...], tuple[int, ...]]] = []
        for index, node in enumerate(network.proto.graph.node):
            if count := node_macs(node, shapes_around(node, self._shapes)):
                places = self._places(index, node)
                spaces = {s for place in places for _, own in self._cut.get(place, ()) for s, *_ in own}
                if spaces:
                    self._nodes.append((node, places, tuple(sorted(spaces))))
                else:
                    self._fixed += count
        # A path asks for the same widths of a few spaces again and again.
        self._known: dict[tuple[int, tuple[int, ...]], int] = {}
        if network.functions:
            # No width changes what is in them.
            self._fixed += count_macs(counted) - self.total(self._full)

    def _add(self, place: _Place, name: str, lines: Sequence[IntArray]) -> None:
        shape = self._shapes.get(name)
        if shape is None or len(shape) != len(lines):
            return
        axes = tuple(self._axis(dim, line) for dim, line in zip(shape, lines, strict=True))
        if any(own for _, own in axes):
            self._cut[place] = axes

    def _places(self, index: int, node: onnx.NodeProto) -> tuple[_Place, ...]:
        """Where to find the shapes that make a node's count: of two operands and of the result."""
        names = (*node.input, "", "")[:2]
        operands = ((index, i) if (index, i) in self._cut else name for i, name in enumerate(names))
        return (*operands, node.output[0])

    def _axis(self, dim: _Dim, labels: IntArray) -> _Axis:
        owners = [self._space.get(c, -1) for c in labels.tolist() if c != PINNED]
        found, stay, full = [s for s in sorted(set(owners)) if s >= 0], self._stay, self._full
        if not found or dim != len(labels):
            return dim, ()
        own = tuple((s, owners.count(s) / (full[s] - stay[s]), stay[s]) for s in found)
        return len(labels) - sum(owners.count(s) for s in found), own

    def total(self, widths: Sequence[int]) -> int:
        """Multiply-accumulates at these widths, one per space of the view."""
        return self._fixed + sum(self._counted(i, widths) for i in range(len(self._nodes)))

    def saving(self, widths: Sequence[int], space: int, width: int) -> int:
        """What narrowing one space from where it is saves."""
        after = list(widths)
        after[space] = width
        touched = [i for i, (_, _, spaces) in enumerate(self._nodes) if space in spaces]
        return sum(self._counted(i, widths) - self._counted(i, after) for i in touched)

    def _counted(self, index: int, widths: Sequence[int]) -> int:
        node, places, spaces = self._nodes[index]
        key = index, tuple(widths[s] for s in spaces)
        if key not in self._known:
            first, second, result = (self._shape(place, widths) for place in places)
            self._known[key] = node_macs(node, (first, second, result))
        return self._known[key]

    def _shape(self, place: _Place, widths: Sequence[int]) -> Shape | None:
        if place in self._cut:
            return tuple(_size(axis, widths) for axis in self._cut[place])
        return self._shapes.get(place) if isinstance(place, str) else None


def _size(axis: _Axis, widths: Sequence[int]) -> _Dim:
    fixed, own = axis
    return fixed + round(sum((widths[s] - stay) * per for s, per, stay in own)) if isinstance(fixed, int) else fixed


def _line(labels: IntArray, axis: int) -> IntArray:
    """The labels along one axis; pins where they do not vary there."""
    lines = np.moveaxis(labels, axis, 0).reshape(labels.shape[axis], -1) if labels.size else labels.reshape(0, 1)
    varies = (lines != lines[:1]).any()
    return np.asarray(lines[:, 0] if varies else np.full(len(lines), PINNED))


def _stored_lines(use: LinearUse, shape: Shape) -> list[IntArray]:
    """The labels along every axis of a weight as it is stored; rows that go are slices of the last of their axes."""
    lines = [np.zeros(0, np.int64) for _ in shape]
    lines[use.in_axis] = use.columns[: len(use.columns) // use.groups]
    if use.row_axes and isinstance(last := shape[use.row_axes[-1]], int):
        lines[use.row_axes[-1]] = use.rows[:last]
    return lines
