"""Which channel of a group, of a head or of a matrix in a stack gets which place.

Channels of one place go together, so what one of them is worth saves all others. The order in which they would go, each
by itself, ranks the channels of every part; those of one rank get one place. Where all between writers and readers is
linear (values of attention), channels of a part can be mixed as well: `select.rotation` says how, for every part alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from onnx_condense.carriers import Turn
from onnx_condense.evidence.columns import arranged
from onnx_condense.evidence.trunks import linear_trunks
from onnx_condense.fit.fitting import SELECTION_RIDGE, USUAL_RIDGE, Fitter
from onnx_condense.fit.reading import Readers
from onnx_condense.grids import Apart, Grid, Order, Turns
from onnx_condense.plan import ChannelSpace, FloatArray, IntArray, LinearUse, Operand
from onnx_condense.select.curves import TINY, Trial, judged
from onnx_condense.select.obs import Elimination, ReaderCost
from onnx_condense.select.rotation import best_basis, shortened

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
        gone = fitter.eliminated(_cells(space, cells), readers).order
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


def turned(fitter: Fitter, found: Apart, names: Collection[str] | None = None) -> dict[str, Turns]:
    """By space, what mixes the channels of every part so that those come first which readers hear most of.

    names: of the spaces to do it for; None: those where places then go at less error on held-out samples.
    """
    single = {use.weight: use for use in found.view.linear}
    grids = {grid.space: grid for grid in found.grids}
    linear = linear_trunks(fitter.network, fitter.view, copies=True) if grids else frozenset()
    turns = {}
    for space, elimination in zip(fitter.spaces, fitter.eliminations, strict=True):
        grid = grids.get(space.name)
        if grid is None or space.name not in (linear if names is None else linear & set(names)):
            continue
        readers = _apart(fitter, grid, single)
        if readers is None or not (names or len(elimination.order)):
            continue
        parts = tuple(_turn(fitter, space, cells, readers) for cells in grid.cells)
        if names or _better(fitter, space, elimination, (grid, readers, parts)):
            turns[space.name] = parts
    return turns


def _better(
    fitter: Fitter, space: ChannelSpace, elimination: Elimination, turned: tuple[Grid, Sequence[Readers], Turns]
) -> bool:
    """Whether places go at less error once parts are turned; elimination: as they go now."""
    grid, readers, parts = turned
    trials = fitter.trials(_cells(space, grid.cells.reshape(-1)), readers)
    there = [_mixed(trial, grid.cells.shape, parts) for trial in trials]
    after = judged(shortened([t.reader for t in there], SELECTION_RIDGE), there, USUAL_RIDGE)
    before = judged(elimination, fitter.trials(space), USUAL_RIDGE)
    return bool(_level(after) < _level(before) + np.log(WORTH))


def _cells(space: ChannelSpace, cells: IntArray) -> ChannelSpace:
    """Single channels as a space."""
    return dataclasses.replace(space, channels=cells, pinned=np.zeros(len(cells), np.bool_))


def _turn(fitter: Fitter, space: ChannelSpace, cells: IntArray, readers: Sequence[Readers]) -> Turn:
    """The channels of one part by what its readers hear of them, dearest first."""
    basis = best_basis([t.reader for t in fitter.trials(_cells(space, cells), readers)], SELECTION_RIDGE)
    return Turn(basis.into, basis.out)


def _mixed(trial: Trial, shape: tuple[int, ...], parts: Sequence[Turn]) -> Trial:
    """The same readers, of mixed channels; parts that they do not see have no columns there."""
    columns = trial.reader.columns.reshape(*shape, -1)
    seen = [p for p, own in enumerate(columns) if (own >= 0).all()]

    def both(product: FloatArray) -> FloatArray:
        for _ in range(2):
            product = product.copy()
            for p in seen:
                for own in columns[p].T:
                    product[..., own] = product[..., own] @ parts[p].into.T
            product = product.T
        return product

    weight = trial.reader.weight.copy()
    for p in seen:
        for own in columns[p].T:
            weight[:, own] = weight[:, own] @ parts[p].out
    together = np.concatenate([columns[p] for p in seen], axis=1)
    return Trial(ReaderCost(weight, both(trial.reader.covariance), together), lambda: both(trial.held))
