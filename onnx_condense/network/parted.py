"""Grids of channels that are only ever taken apart, taken apart where they are still one line.

One layer may write queries, keys and values at once, whose channels are then laid out as a grid [.., 3, heads, size] of
which every reader takes one part. A grid can only narrow as a whole, so that what holds one part holds all. Where all
readers take single positions of an axis, that axis need not be laid out at all: the line of channels is split into as
many parts, and each is laid out and moved by itself. Elements only change places, and the same ones come out.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnx_condense.network.freeing import Labels, freeing
from onnx_condense.network.known import Known
from onnx_condense.network.listed import numbers_of, standard
from onnx_condense.network.live import DEFAULTS, prune
from onnx_condense.network.model import Network
from onnx_condense.network.names import Names
from onnx_condense.network.nodes import MARK, Node
from onnx_condense.plan import IntArray

# From this opset on axes and sizes of parts are operands.
_OPERANDS = 13
# Ops that are put in.
_PUT = frozenset(("", op) for op in ("Concat", "Constant", "Gather", "Identity", "Split", "Squeeze"))


@dataclasses.dataclass(frozen=True)
class _Grid:
    """A Reshape whose result has an axis of which only single positions are read.

    node: its index; entries: what is known of its list; at: the axis; sizes: of the axis and of all behind it.
    moves: indices of nodes that hand the result on with all positions; picks: per index of a node that does not, the
    axis as it sees it, and the position that each of its outputs has.
    """

    node: int
    entries: Known
    at: int
    sizes: tuple[int, ...]
    moves: tuple[int, ...]
    picks: Mapping[int, tuple[int, tuple[int, ...]]]


def parted(network: Network, labels: Labels) -> Network:
    """A network that takes lines apart instead of grids, where channels can go then that had to stay.

    Args:
        network: as it is.
        labels: tells which channels can go.

    Returns:
        `network` itself where there is no such place.
    """
    grids = list(_grids(network))
    before = labels(network) if grids else {}
    chosen = [g for g in grids if _held(before.get(network.nodes[g.node].inputs[0]))]

    def write(grids: Sequence[_Grid]) -> tuple[Network, list[list[str]]]:
        apart = _Apart(network)
        lines = [[apart.take(grid)] for grid in grids]
        return apart.finished(), lines

    return freeing(network, chosen, write, labels)


def _held(labels: IntArray | None) -> bool:
    """Whether there are channels along the last axis, and all have to stay."""
    return labels is not None and labels.ndim > 0 and labels.shape[-1] > 1 and not labels.any()


def _grids(network: Network) -> Iterable[_Grid]:
    if not _PUT.isdisjoint(network.functions):
        return
    for node in network.nodes:
        listed = standard(network, node, "Reshape") and len(node.inputs) > 1
        entries = network.known(node.inputs[1]) if listed else None
        before, after = network.shape(node.inputs[0]) if entries else None, network.shape(node.outputs[0])
        width = before[-1] if before else None
        if entries and after and isinstance(width, int) and len(after) == len(entries):
            places = _places(entries, after, width)
            found = (_taken(network, node, entries, at, sizes) for at, sizes in places)
            yield from [grid for grid in found if grid is not None][:1]


def _places(entries: Known, shape: Sequence[object], width: int) -> Iterable[tuple[int, tuple[int, ...]]]:
    """Axes that the last axis of an operand is laid out on, from the front, with their sizes and those behind."""
    sizes: tuple[int, ...] = ()
    places = []
    for at in range(len(entries) - 1, -1, -1):
        # Where a list leaves a size open the result tells; told wrong it would not run.
        size = shape[at] if entries[at] == -1 else entries[at]
        if not isinstance(size, int) or size < 1:
            break
        sizes = (size, *sizes)
        if width % math.prod(sizes):
            break
        if 1 < size < math.prod(sizes):
            places.append((at, sizes))
    return reversed(places)


def _taken(network: Network, node: Node, entries: Known, at: int, sizes: tuple[int, ...]) -> _Grid | None:
    """A grid, if nobody reads more than one position of an axis."""
    moves, picks = list[int](), dict[int, tuple[int, tuple[int, ...]]]()
    waiting = [(node.outputs[0], len(entries), at)]
    while waiting:
        name, rank, axis = waiting.pop()
        if name in network.outputs or name in network.captured:
            return None
        for reader, position in network.consumers.get(name, ()):
            positions = None if position else _picked(network, reader, rank, axis, sizes[0])
            if positions is not None:
                picks[reader.index] = axis, positions
                continue
            moved = None if position else _moved(network, reader, rank, axis)
            if moved is None:
                return None
            moves.append(reader.index)
            waiting.append((reader.outputs[0], *moved))
    return _Grid(node.index, entries, at, sizes, tuple(sorted(moves)), picks)


def _moved(network: Network, node: Node, rank: int, axis: int) -> tuple[int, int] | None:
    """Rank and axis behind a node that does the same at every position of an axis, or None."""
    if standard(network, node, "Identity"):
        return rank, axis
    if standard(network, node, "Transpose"):
        order = node.attributes.get("perm") or list(range(rank))[::-1]
        return (rank, list(order).index(axis)) if sorted(order) == list(range(rank)) else None
    if not standard(network, node, "Squeeze", "Unsqueeze"):
        return None
    listed = numbers_of(network, node, 1, "axes")
    wide = rank + (len(listed) if node.op == "Unsqueeze" else 0)
    axes = {a % wide for a in listed}
    if not axes or len(axes) < len(listed):
        return None
    if node.op == "Unsqueeze":
        return wide, [a for a in range(wide) if a not in axes][axis]
    return None if axis in axes else (rank - len(axes), axis - sum(a < axis for a in axes))


def _picked(network: Network, node: Node, rank: int, axis: int, count: int) -> tuple[int, ...] | None:
    """The one position of an axis that each output of a node has, or None."""
    if standard(network, node, "Gather") and node.attributes.get("axis", 0) % rank == axis:
        at = network.constant(node.inputs[1])
        fits = at is not None and at.ndim < 2 and at.size == 1 and -count <= at.item() < count
        return (int(at.item()),) if fits and at is not None else None
    if standard(network, node, "Split") and node.attributes.get("axis", 0) % rank == axis:
        sizes = numbers_of(network, node, 1, "split", (1,) * count)
        return tuple(range(count)) if sizes == (1,) * count == (1,) * len(node.outputs) else None
    if not standard(network, node, "Slice"):
        return None
    # Without axes the first ones are meant, as many as there are starts.
    axes, steps = numbers_of(network, node, 3, "axes", (0,)), numbers_of(network, node, 4, "steps", (1,))
    starts, ends = numbers_of(network, node, 1, "starts"), numbers_of(network, node, 2, "ends")
    if not len(starts) == len(ends) == len(axes) == 1 or axes[0] % rank != axis or steps != (1,):
        return None
    first, last = (min(max(n + count if n < 0 else n, 0), count) for n in (starts[0], ends[0]))
    return (first,) if last - first == 1 else None


def _idle(node: onnx.NodeProto) -> onnx.NodeProto:
    """A node whose results nobody reads, so that it goes with what only it reads."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.output[:] = [name and MARK + name for name in node.output]
    return copy


class _Apart:
    """A network in which lines are taken apart, put together from the nodes of another one."""

    def __init__(self, network: Network) -> None:
        self._network, self._names = network, Names(network.proto)
        # By the index of a node what comes in its place, or in front of it.
        self._instead: dict[int, list[onnx.NodeProto]] = {}
        self._before: dict[int, list[onnx.NodeProto]] = {}

    def take(self, grid: _Grid) -> str:
        """Take a line apart.

        Returns:
            The name of the line.
        """
        network, node = self._network, self._network.nodes[grid.node]
        made = self._before.setdefault(grid.node, [])
        line, count, width = node.inputs[0], grid.sizes[0], math.prod(grid.sizes)
        if (network.shape(line) or ())[grid.at :] != (width,):
            line = self._again(made, node.index, line, self._list(made, grid, (width,)))
        parts = [self._names.fresh(f"{node.outputs[0]}_{at}") for at in range(count)]
        made.append(self._split(made, line, parts, grid.at, width // count, node.opset))
        shape = self._list(made, grid, (1, *grid.sizes[1:]))
        found = {node.outputs[0]: [self._again(made, node.index, part, shape) for part in parts]}
        for at in sorted((*grid.moves, *grid.picks)):
            given = found[network.nodes[at].inputs[0]]
            if at in grid.picks:
                self._instead[at] = self._picked(at, given, *grid.picks[at])
            else:
                made = self._before.setdefault(at, [])
                found[network.nodes[at].outputs[0]] = [self._again(made, at, part) for part in given]
        return line

    def finished(self) -> Network:
        """The network, without what nobody reads any more."""
        given = self._network
        proto = onnx.ModelProto()
        proto.CopyFrom(given.proto)
        del proto.graph.node[:]
        for at, node in enumerate(given.proto.graph.node):
            proto.graph.node.extend(self._before.get(at, ()))
            proto.graph.node.extend([_idle(node), *self._instead[at]] if at in self._instead else [node])
        prune(proto.graph, interface=proto.ir_version >= DEFAULTS)
        return Network(proto, given.path, given.given)

    def _again(self, made: list[onnx.NodeProto], at: int, x: str, shape: str = "") -> str:
        """One more node like another one, that reads something else; the name of its result."""
        copy = onnx.NodeProto()
        copy.CopyFrom(self._network.proto.graph.node[at])
        copy.input[0] = x
        if shape:
            copy.input[1] = shape
        copy.output[0] = self._names.fresh(copy.output[0])
        copy.name = self._names.fresh(copy.name) if copy.name else ""
        made.append(copy)
        return copy.output[0]

    def _stored(self, made: list[onnx.NodeProto], numbers: Sequence[int]) -> str:
        value = numpy_helper.from_array(np.array(numbers, np.int64))
        made.append(helper.make_node("Constant", [], [self._names.fresh("numbers")], value=value))
        return made[-1].output[0]

    def _list(self, made: list[onnx.NodeProto], grid: _Grid, end: Sequence[int]) -> str:
        """The list of a Reshape with other numbers from its axis on."""
        front = grid.entries[: grid.at]
        numbers = [n if isinstance(n, int) else -1 for n in front]
        # One size that is left open follows from the others, unless one of these may be 0 when the network runs.
        if all(isinstance(n, int) for n in front) or all(n > 0 for n in sorted(numbers)[1:]):
            return self._stored(made, [*numbers, *end])
        given = self._network.nodes[grid.node].inputs[1]
        first, listed = self._names.fresh(f"{given}_first"), self._names.fresh(given)
        made.append(helper.make_node("Gather", [given, self._stored(made, range(grid.at))], [first], axis=0))
        made.append(helper.make_node("Concat", [first, self._stored(made, end)], [listed], axis=0))
        return listed

    def _split(
        self, made: list[onnx.NodeProto], line: str, parts: Sequence[str], axis: int, size: int, opset: int
    ) -> onnx.NodeProto:
        sizes = [size] * len(parts)
        if opset < _OPERANDS:
            return helper.make_node("Split", [line], parts, axis=axis, split=sizes)
        return helper.make_node("Split", [line, self._stored(made, sizes)], parts, axis=axis)

    def _picked(self, at: int, parts: Sequence[str], axis: int, positions: Sequence[int]) -> list[onnx.NodeProto]:
        """What gives the outputs of a node that takes single positions of an axis."""
        node = self._network.nodes[at]
        index = self._network.constant(node.inputs[1]) if node.op == "Gather" else None
        if index is None or index.ndim:
            pairs = zip(positions, node.outputs, strict=True)
            return [helper.make_node("Identity", [parts[n]], [name]) for n, name in pairs if name]
        made: list[onnx.NodeProto] = []
        part, result = parts[positions[0]], node.outputs[0]
        if node.opset < _OPERANDS:
            return [helper.make_node("Squeeze", [part], [result], name=node.name, axes=[axis])]
        axes = self._stored(made, [axis])
        return [*made, helper.make_node("Squeeze", [part, axes], [result], name=node.name)]
