"""Which channel of a group, of a head or of a matrix in a stack gets which place.

Channels of one place go together, so what one of them is worth saves all others. The order in which they would go, each
by itself, ranks the channels of every part; those of one rank get one place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from onnx_condense.evidence.columns import arranged
from onnx_condense.fit.fitting import Fitter
from onnx_condense.fit.reading import Readers
from onnx_condense.grids import Apart, Grid, Order
from onnx_condense.plan import ChannelSpace, IntArray, LinearUse, Operand
from onnx_condense.select.curves import TINY
from onnx_condense.select.obs import Elimination

# In the mean over all widths the squared error has to fall to this share for channels to be moved.
WORTH = 0.97


def placed(fitter: Fitter, found: Apart) -> dict[str, Order]:
    """By space, the order that lets channels go at less error; none where the one that they have does as well."""
    single = {use.weight: use for use in found.view.linear}
    grids = {grid.space: grid for grid in found.grids}
    orders = {}
    for space, elimination in zip(fitter.spaces, fitter.eliminations, strict=True):
        grid = grids.get(space.name)
        order = None if grid is None or not len(elimination.order) else _order(fitter, space, grid, single)
        if order is not None and grid is not None:
            after = fitter.eliminated(space, _relabelled(fitter, space, grid, single, order))
            if _level(after) < _level(elimination) + np.log(WORTH):
                orders[space.name] = order
    return orders


def _level(elimination: Elimination) -> float:
    return float(np.log(elimination.cost[1:] + TINY).mean())


def _order(fitter: Fitter, space: ChannelSpace, grid: Grid, single: Mapping[Operand, LinearUse]) -> Order | None:
    """The channels of every part, dearest first; None where readers do not see them apart."""
    readers = _apart(fitter, grid, single)
    if readers is None:
        return None
    rank = np.zeros_like(grid.cells)
    for parts in _together(readers, grid):
        cells = grid.cells[parts].reshape(-1)
        alone = dataclasses.replace(space, channels=cells, pinned=np.zeros(len(cells), np.bool_))
        gone = fitter.eliminated(alone, readers).order
        found = np.full(len(cells), len(cells))
        found[gone] = np.arange(len(gone))
        rank[parts] = found.reshape(len(parts), -1)
    return np.argsort(-rank, axis=1, kind="stable")


def _together(readers: Sequence[Readers], grid: Grid) -> list[list[int]]:
    """The parts of a grid, those together that some reader sees at once."""
    part_of = {int(cell): p for p, row in enumerate(grid.cells) for cell in row}
    home = list(range(len(grid.cells)))
    for reader in readers:
        for _, features in reader.parts():
            seen = {home[part_of[n]] for n in np.unique(reader.labels[features]).tolist() if n in part_of}
            home = [min(seen) if p in seen else p for p in home]
    return [[p for p, first in enumerate(home) if first == own] for own in sorted(set(home))]


def _apart(
    fitter: Fitter, grid: Grid, single: Mapping[Operand, LinearUse], moved: Mapping[int, int] | None = None
) -> list[Readers] | None:
    """The readers of a grid with labels of single channels, or those that `moved` gives these."""
    found = []
    for readers in fitter.readers:
        use = single.get(fitter.view.linear[readers.uses[0]].weight)
        if use is None or not np.isin(use.columns, grid.cells).any():
            continue
        labels = _features(readers, use)
        if labels is None:
            return None
        own = np.isin(labels, grid.cells)
        labels = np.where(own, labels, 0) if moved is None else np.array([moved.get(n, 0) for n in labels.tolist()])
        found.append(dataclasses.replace(readers, labels=labels))
    return found


def _features(readers: Readers, use: LinearUse) -> IntArray | None:
    """Labels of single channels, one per feature; None where a feature stands for several of them."""
    labels = np.repeat(use.columns, use.taps)
    if readers.pooled:
        rows = arranged(labels.astype(np.float64), readers.pooled, by_channel=readers.columns[0].by_channel)
        labels = rows[0].astype(np.int64)
        if (rows != rows[0]).any():
            return None
    return labels if len(labels) == len(readers.labels) else None


def _relabelled(
    fitter: Fitter, space: ChannelSpace, grid: Grid, single: Mapping[Operand, LinearUse], order: Order
) -> Sequence[Readers]:
    """The readers as they will see the channels of the space in other places."""
    channels = space.channels[grid.places].tolist()
    moved = {
        int(cell): channels[place]
        for row, places in zip(grid.cells, order, strict=True)
        for place, cell in enumerate(row[places].tolist())
    }
    return _apart(fitter, grid, single, moved) or ()
