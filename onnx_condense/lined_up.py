"""Redundant channels of groups brought to one place, where what the parts have in common can go.

Of a grid as many channels can go as the part with the fewest redundant ones has. The weights tell which these are, part
by part; their stand-ins take over where they are read, and within every part they change places with others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import numpy as np

from onnx_condense.evidence.weights import lossless_plan
from onnx_condense.grids import Apart, Grid, apart
from onnx_condense.network.model import Network
from onnx_condense.plan import PINNED, ChannelView, IntArray, LinearUse, Plan
from onnx_condense.rewrite import apply_plan

# What is spared in one part may cost another one a stand-in: so often that is looked at again.
ROUNDS = 4

Gone = Mapping[str, Sequence[IntArray]]
"""By space, the places of every part whose channels are redundant."""


Writers = tuple[int, ...]
"""The linear uses that write a space: what it is known by, whatever steps change its name."""


def lined_up(
    network: Network,
    view: ChannelView,
    view_of: Callable[[Network], ChannelView],
    narrowed: Callable[[Network], Collection[Writers]],
) -> Network:
    """A network that answers the same, to rounding, of which more channels are redundant place by place.

    Args:
        network: as it is.
        view: its channels as they go.
        view_of: those of another form of it.
        narrowed: of which spaces exact steps will take some; nothing moves in others.

    Returns:
        `network` itself where that brings nothing.
    """
    found = apart(network, view)
    alike = _alike(view, found)
    grids = [g for g in found.grids if alike.issuperset(_uses(view, g))]
    if not grids:
        return network
    spaces = {s.name: s for s in view.spaces}
    before = {s.space: spaces[s.space].width - len(s.keep) for s in lossless_plan(network, view).selections}
    while grids:
        by_part = _by_part(view, found, grids, alike)
        plan, gone = _evenly(network, by_part, grids)
        grown = [g for g in grids if len(gone[g.space][0]) > before.get(g.space, 0)]
        if len(grown) == len(grids):
            made = _made(network, by_part, plan, {spaces[name].writers: rows for name, rows in gone.items()}, view_of)
            going = narrowed(made)
            grown = [g for g in grids if spaces[g.space].writers in going]
            if len(grown) == len(grids):
                return made
        grids = grown
    return network


def _uses(view: ChannelView, grid: Grid) -> Iterable[int]:
    space = next(s for s in view.spaces if s.name == grid.space)
    return (*space.writers, *space.readers)


def _alike(view: ChannelView, found: Apart) -> set[int]:
    """Uses with as many rows and columns in both views: not so those of a stack, which is numbered as one."""
    single = {use.weight: use for use in found.view.linear}
    pairs = [(use, single.get(use.weight)) for use in view.linear]
    shapes = [
        own is not None and (use.rows.shape, use.columns.shape) == (own.rows.shape, own.columns.shape)
        for use, own in pairs
    ]
    return set(np.flatnonzero(shapes).tolist())


def _by_part(view: ChannelView, found: Apart, grids: Sequence[Grid], alike: set[int]) -> ChannelView:
    """A view in which every part of a grid is a space of its own, and all else stays."""
    cells = np.concatenate([grid.cells.reshape(-1) for grid in grids])
    single = {use.weight: use for use in found.view.linear}

    def own(labels: IntArray) -> IntArray:
        return np.where(np.isin(labels, cells), labels, PINNED)

    def alone(index: int, use: LinearUse) -> LinearUse:
        if index not in alike:
            return dataclasses.replace(use, columns=np.zeros_like(use.columns), rows=np.zeros_like(use.rows))
        return dataclasses.replace(use, columns=own(single[use.weight].columns), rows=own(single[use.weight].rows))

    spaces = {s.name: s for s in view.spaces}
    parts = [
        dataclasses.replace(spaces[g.space], name=_part(g.space, p), channels=row, pinned=np.zeros(len(row), np.bool_))
        for g in grids
        for p, row in enumerate(g.cells)
    ]
    linear = tuple(alone(i, use) for i, use in enumerate(view.linear))
    return dataclasses.replace(view, linear=linear, spaces=tuple(parts), parts=())


def _part(space: str, index: int) -> str:
    return f"{space}/{index}"


def _evenly(network: Network, by_part: ChannelView, grids: Sequence[Grid]) -> tuple[Plan, Gone]:
    """What the weights prove redundant, as many channels in every part of a grid."""
    stay: dict[str, IntArray] = {}
    for _ in range(ROUNDS):
        plan = lossless_plan(network, by_part, stay=stay)
        kept = {s.space: s.keep for s in plan.selections}
        gone: dict[str, list[IntArray]] = {}
        over: dict[str, IntArray] = {}
        for grid in grids:
            every = np.arange(grid.cells.shape[1])
            names = [_part(grid.space, p) for p in range(len(grid.cells))]
            rows = gone[grid.space] = [np.setdiff1d(every, kept.get(name, every)) for name in names]
            least = min(map(len, rows))
            over |= {name: row[least:] for name, row in zip(names, rows, strict=True) if len(row) > least}
        if not over:
            return plan, gone
        for name, places in over.items():
            stay[name] = np.union1d(stay.get(name, places), places)
    nothing = np.empty(0, np.int64)
    return Plan("lossless", (), ()), {g.space: [nothing] * len(g.cells) for g in grids}


def _made(
    network: Network,
    by_part: ChannelView,
    plan: Plan,
    gone: Mapping[Writers, Sequence[IntArray]],
    view_of: Callable[[Network], ChannelView],
) -> Network:
    """The network with stand-ins in place of redundant channels, and these where the first part has its own."""
    # Nothing goes, and carriers are numbered as in the other view.
    readers = dataclasses.replace(by_part, labels={}, constants=(), sizes=())
    proto = apply_plan(network, readers, dataclasses.replace(plan, selections=()))
    merged = Network(proto, network.path, network.given)
    view = view_of(merged)
    found = apart(merged, view)
    width = {g.space: g.cells.shape[1] for g in found.grids}
    orders = {
        s.name: np.stack([_order(width[s.name], gone[s.writers][0], row) for row in gone[s.writers]])
        for s in view.spaces
        if s.writers in gone
    }
    return Network(found.reordered(orders), network.path, network.given)


def _order(width: int, places: IntArray, gone: IntArray) -> IntArray:
    """Which channel comes to each place [K]: those that go to the given places, in exchange for what has these."""
    order = np.arange(width)
    there, here = np.setdiff1d(gone, places), np.setdiff1d(places, gone)
    order[here], order[there] = there, here
    return order
