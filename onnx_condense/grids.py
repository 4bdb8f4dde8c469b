"""Channels that only go place by place, and how they may change places.

What is laid out as groups, heads or a stack of matrices stays a full grid only if as many channels go in every part. So
channels of one place are tied across the parts; but which channel of a part has which place is open. Whoever writes,
carries and reads them can be rewritten so that the channels of a part stand in another order: the network answers the
same, and channels that can go come to one place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnx_condense.carriers import Carrier, Turn, carriers, stored_at
from onnx_condense.network.model import Network, inlined
from onnx_condense.plan import PINNED, ChannelView, IntArray, Operand
from onnx_condense.rewrite import with_values
from onnx_condense.spaces import find_spaces

Order = IntArray
"""[P, K]: which of its channels (by the place that it had) every part has at every place."""
Turns = tuple[Turn, ...]
"""How the channels of every part are mixed."""
Move = Order | Turns


@dataclasses.dataclass(frozen=True)
class Grid:
    """A space of P parts with K channels each, of which those of one place go together.

    space: its name; places: [K] positions into `ChannelSpace.channels`; cells: [P, K] labels in `Apart.view`.
    """

    space: str
    places: IntArray
    cells: IntArray


@dataclasses.dataclass(frozen=True)
class Apart:
    """The grids of a network, and its channels with labels of their own."""

    network: Network
    view: ChannelView
    grids: tuple[Grid, ...]

    def turned(self, turns: Mapping[str, Turns]) -> onnx.ModelProto:
        """The same function with the channels of every part of grids, by name of space, mixed."""
        parts = {
            int(cell): (row, turn)
            for grid in self.grids
            if grid.space in turns
            for row, turn in zip(grid.cells, turns[grid.space], strict=True)
            for cell in row[:1]
        }
        values: dict[Operand, npt.NDArray[Any]] = {}
        for carrier in carriers(self.network, self.view):
            first = [n for n in np.unique(carrier.labels).tolist() if n in parts]
            if first:
                value = values.get(carrier.operand, stored_at(self.network, carrier.operand))
                values[carrier.operand] = carrier.turned(value, [parts[n] for n in first])
        return with_values(self.network, values)

    def reordered(self, orders: Mapping[str, Order]) -> onnx.ModelProto:
        """The same function with channels of grids, by name of space, in other places."""
        moved = _identity(self.view)
        for grid in self.grids:
            if grid.space in orders:
                moved[grid.cells] = np.take_along_axis(grid.cells, orders[grid.space], axis=1)
        values: dict[Operand, npt.NDArray[Any]] = {}
        for carrier in carriers(self.network, self.view):
            value = values.get(carrier.operand, stored_at(self.network, carrier.operand))
            found = carrier.reordered(value, moved)
            assert found is not None, carrier.operand
            if not np.array_equal(found, value):
                values[carrier.operand] = found
        return with_values(self.network, values)


def apart(network: Network, view: ChannelView) -> Apart:
    """What may change places in a network.

    Args:
        network: what is looked at.
        view: its channels as they go (`find_spaces`).
    """
    if not _laid_out(view):
        return Apart(network, view, ())
    single = find_spaces(network, apart=True)
    parts = _parts(view, single)
    held = carriers(network, single)
    holding, shared = _holding(held), _stored_apart(network, held)
    unmoved = _identity(single)
    grids = []
    for grid in _grids(view, single, parts):
        # Looking through all of them for every grid would take the square of the network's size.
        touched = sorted({at for cell in grid.cells.reshape(-1).tolist() for at in holding.get(cell, ())})
        touching = [held[at] for at in touched]
        alone = not any(carrier.operand in shared for carrier in touching)
        if alone and _movable(network, touching, grid, unmoved):
            grids.append(grid)
    return Apart(network, single, tuple(grids))


def moved(network: Network, view: ChannelView, moves: Mapping[str, Move]) -> Network:
    """A network with channels of grids, by name of space, in other places or mixed. view: its channels as they go."""
    orders, turns = _sorted_out(moves)
    if orders:
        network = Network(apart(network, view).reordered(orders), network.path, network.given)
    if turns:
        network = Network(apart(network, view).turned(turns), network.path, network.given)
    return network


def _sorted_out(moves: Mapping[str, Move]) -> tuple[dict[str, Order], dict[str, Turns]]:
    """Those that give channels other places, and those that mix them."""
    turns = {name: move for name, move in moves.items() if isinstance(move, tuple)}
    return {name: move for name, move in moves.items() if not isinstance(move, tuple)}, turns


def moved_back(
    proto: onnx.ModelProto,
    view: ChannelView,
    moves: Mapping[str, Move],
    before: tuple[Network, Network],
    view_of: Callable[[Network], ChannelView] = find_spaces,
) -> onnx.ModelProto:
    """A network in which the channels of some spaces are what they were, and where they were.

    Args:
        proto: it, perhaps narrowed in others.
        view: of the one that it was made of, which names the spaces.
        moves: what had been done with them.
        before: the network before anything was moved, and after it.
        view_of: the channels of a network as they go.
    """
    untouched = _shared(proto, before[1].proto)
    # A new bias may have given another name to what a space is named by.
    names = {s.writers: s.name for s in view.spaces}

    def there(found: onnx.ModelProto, moves: Mapping[str, Any]) -> tuple[Apart, dict[str, Any]]:
        network = Network(found)
        now = view_of(network)
        return apart(network, now), {s.name: moves[n] for s in now.spaces if (n := names.get(s.writers, "")) in moves}

    orders, turns = _sorted_out(moves)
    if turns:
        found, own = there(proto, turns)
        proto = found.turned({name: tuple(Turn(t.out, t.into) for t in parts) for name, parts in own.items()})
    if orders:
        found, own = there(proto, orders)
        proto = found.reordered({name: np.argsort(order, axis=1) for name, order in own.items()})
    # What is turned there and back is the same up to rounding; what nothing else touched is to be so to the bit.
    dense = {t.name: t for t in inlined(before[0]).graph.initializer}
    for tensor in proto.graph.initializer:
        if tensor.name in untouched and tensor.name in dense:
            tensor.CopyFrom(dense[tensor.name])
    return proto


def _shared(one: onnx.ModelProto, other: onnx.ModelProto) -> set[str]:
    """Names of stored tensors that two networks have, and are the same in both."""
    there = {t.name: t for t in other.graph.initializer}
    return {t.name for t in one.graph.initializer if t == there.get(t.name)}


def _laid_out(view: ChannelView) -> bool:
    """Whether a writer has several rows of one channel: there are no grids elsewhere."""
    return any(len(np.unique(u.rows)) < len(u.rows) for u in view.linear if u.rows.any())


def _parts(view: ChannelView, single: ChannelView) -> list[IntArray]:
    """Arrays [P, K] of labels, rows of which hold channels that may change places with each other, and none else."""
    found = []
    for use in single.linear:
        if use.groups > 1:
            found += [labels.reshape(use.groups, -1) for labels in (use.columns, use.rows)]
    for name, labels in single.labels.items():
        together = view.labels.get(name)
        varying = [axis for axis, n in enumerate(labels.shape) if n > 1]
        if len(varying) < 2 or together is None:
            continue
        own = [axis for axis, n in enumerate(together.shape) if n > 1]
        # Of what is no line of places nothing may move: every channel is a part of its own.
        last = own[0] if len(own) == 1 and own[0] in varying else None
        flat = labels.reshape(-1, 1) if last is None else np.moveaxis(labels, last, -1).reshape(-1, labels.shape[last])
        found.append(flat)
    return found


def _grids(view: ChannelView, single: ChannelView, parts: Sequence[IntArray]) -> Iterable[Grid]:
    part_of = _part_of(parts)
    at = {use.weight: use for use in single.linear}
    for space in view.spaces:
        labels: dict[int, set[int]] = {}
        for use in (view.linear[w] for w in space.writers):
            own = at.get(use.weight)
            if own is None or own.rows.shape != use.rows.shape:
                break
            for channel, cell in zip(use.rows.tolist(), own.rows.tolist(), strict=True):
                labels.setdefault(channel, set()).add(cell)
        else:
            grid = _grid(space.name, space.channels, space.pinned, labels, part_of)
            if grid is not None:
                yield grid


def _grid(
    name: str,
    channels: IntArray,
    pinned: npt.NDArray[np.bool_],
    labels: Mapping[int, set[int]],
    part_of: Mapping[int, tuple[tuple[int, int], ...]],
) -> Grid | None:
    """The cells of a space, if every part has one channel at every place that is free."""
    places = np.flatnonzero(~pinned)
    rows = [sorted(labels.get(c, ()), key=lambda cell: part_of.get(cell, ())) for c in channels[places].tolist()]
    keys = [[part_of.get(cell, ()) for cell in row] for row in rows]
    if len(rows) < 2 or len(rows[0]) < 2 or any(key != keys[0] for key in keys[1:]):
        return None
    cells = np.array(rows, np.int64).T
    if len(set(keys[0])) < len(keys[0]) or (cells == PINNED).any() or len(np.unique(cells)) < cells.size:
        return None
    return Grid(name, places, cells)


def _part_of(parts: Sequence[IntArray]) -> dict[int, tuple[tuple[int, int], ...]]:
    """By label, the rows of all arrays of parts that hold it."""
    found: dict[int, set[tuple[int, int]]] = {}
    for i, array in enumerate(parts):
        for row, labels in enumerate(array):
            for label in np.unique(labels).tolist():
                found.setdefault(label, set()).add((i, row))
    return {label: tuple(sorted(rows)) for label, rows in found.items()}


def _holding(held: Sequence[Carrier]) -> dict[int, list[int]]:
    """By label, the positions of the carriers that hold numbers for it."""
    found: dict[int, list[int]] = {}
    for at, carrier in enumerate(held):
        for label in np.unique(carrier.labels).tolist():
            found.setdefault(label, []).append(at)
    return found


def _stored_apart(network: Network, held: Sequence[Carrier]) -> set[Operand]:
    """Operands that would have to be stored anew: others read the same tensor, who would not see it move alike."""
    seen_as: dict[Operand, list[bytes]] = {}
    for carrier in held:
        seen_as.setdefault(carrier.operand, []).append(carrier.labels.tobytes())
    uses: dict[str, list[Operand]] = {}
    for node in network.nodes:
        for position, name in enumerate(node.inputs):
            if name and (root := network.root(name)):
                uses.setdefault(root, []).append(Operand(node.index, position))
    found = set[Operand]()
    for root, operands in uses.items():
        value = network.constant(root)
        # Numbers that are all alike stay where they are.
        if value is not None and (value == value.reshape(-1)[:1]).all():
            continue
        if len({tuple(seen_as.get(operand, ())) for operand in operands}) > 1:
            found.update(operands)
    return found


def _movable(network: Network, held: Sequence[Carrier], grid: Grid, unmoved: IntArray) -> bool:
    """Whether all that holds a grid's channels can be written in another order: here, every part turned by one."""
    moved = unmoved.copy()
    moved[grid.cells] = np.roll(grid.cells, 1, axis=1)
    return all(c.reordered(stored_at(network, c.operand), moved) is not None for c in held)


def _identity(single: ChannelView) -> IntArray:
    used = [u.rows for u in single.linear] + [u.columns for u in single.linear] + [c.labels for c in single.constants]
    return np.arange(max((int(a.max(initial=0)) for a in used), default=0) + 1)
