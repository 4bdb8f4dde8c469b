"""Which linear trunks are fitted in mixed channels, and the way there and back.

Part of the pipeline, beside `fitting.py`: there a turned reader is one like any other, whose last channels go first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from onnx_condense.errors import ModelError
from onnx_condense.evidence.columns import Columns
from onnx_condense.evidence.trunks import linear_trunks, places_of
from onnx_condense.fit.reading import Readers
from onnx_condense.network.model import Network
from onnx_condense.plan import ChannelSpace, ChannelView, FloatArray, IntArray, Moments, Rotation, Selection
from onnx_condense.select.curves import GRID, Trial, judged, overfits
from onnx_condense.select.obs import Elimination
from onnx_condense.select.rotation import (
    Basis,
    best_basis,
    left_mixed,
    mixed,
    mixed_moments,
    shortened,
    turned,
)

# Picking channels leaves weights as they are: mixing them has to beat it by so much in the squared error.
GAIN = 0.98
# Squared errors below this are rounding, and say nothing about which of two is better.
FLOOR = 1e-9

TrialsOf = Callable[[ChannelSpace], Sequence[Trial]]


class Turns:
    """The spaces of one network whose channels are mixed; `decide` fills it.

    Args:
        network, view: what is condensed.
        ridges: for the basis, the usual one first; the others are tried where that does badly on held-out samples.
        refit_ridge: of the refits that decide.
    """

    def __init__(self, network: Network, view: ChannelView, ridges: Sequence[float], refit_ridge: float) -> None:
        self._trunks = linear_trunks(network, view)
        self._ridges, self._refit_ridge = ridges, refit_ridge
        self._spaces = {s.name: s for s in view.spaces}
        self._bases: dict[str, Basis] = {}
        self._of: dict[int, str] = {}

    @property
    def found(self) -> bool:
        """Whether any space is mixed."""
        return bool(self._bases)

    def decide(self, space: ChannelSpace, picked: Elimination, trials_of: TrialsOf) -> Elimination:
        """The order and costs for a space: mixed where that does better on held-out samples than picking channels."""
        trials = trials_of(space) if space.name in self._trunks and len(picked.order) else ()
        if not trials:
            return picked
        basis, found, held = self._found(trials)
        if _level(held) > np.log(GAIN) + _level(judged(picked, trials, self._refit_ridge)):
            return picked
        return self._taken(space, basis, found)

    def mixed_to(self, width: int, space: ChannelSpace, trials: Sequence[Trial]) -> Elimination:
        """The order for a space that is mixed in any case, down to a width.

        Raises:
            ModelError: its channels can't be mixed.
        """
        if space.name not in self._trunks or not trials:
            text = f"{space.name}: the plan mixes its channels, but in this network they can't be mixed"
            raise ModelError("plan-space", text, space.name)
        basis, found, _ = self._found(trials)
        gone = space.width - width
        return self._taken(space, basis, Elimination(found.order[:gone], found.cost[: gone + 1]))

    def _found(self, trials: Sequence[Trial]) -> tuple[Basis, Elimination, Elimination]:
        """The best basis, the costs by which channels go in it, and those on held-out samples."""
        basis = best_basis([t.reader for t in trials], self._ridges[0])
        there = [turned(t, basis) for t in trials]
        found = shortened([t.reader for t in there], self._ridges[0])
        if overfits(found, there, self._refit_ridge):
            basis, found = self._careful(basis, trials)
            return basis, found, found
        return basis, found, judged(found, there, self._refit_ridge)

    def _taken(self, space: ChannelSpace, basis: Basis, found: Elimination) -> Elimination:
        self._bases[space.name] = basis
        self._of |= dict.fromkeys(space.channels.tolist(), space.name)
        return found

    def _careful(self, usual: Basis, trials: Sequence[Trial]) -> tuple[Basis, Elimination]:
        """The basis that does best on held-out samples, with costs from these; usual: that of the first ridge."""
        candidates = []
        for at, ridge in enumerate(self._ridges):
            basis = best_basis([t.reader for t in trials], ridge) if at else usual
            there = [turned(t, basis) for t in trials]
            candidates.append((basis, judged(shortened([t.reader for t in there], ridge), there, self._refit_ridge)))
        return min(candidates, key=lambda found: _level(found[1]))

    def readers(self, readers: Sequence[Readers]) -> list[Readers]:
        """The readers with columns for the new channels."""
        return [dataclasses.replace(r, weight=self._mixed(r, r.weight, back=False)) for r in readers]

    def moments(self, known: Mapping[Columns, Moments], readers: Iterable[Readers]) -> dict[Columns, Moments]:
        """The moments of what each of the readers reads, of the new channels."""
        result = dict(known)
        for reader in readers:
            basis = self._basis(reader)
            for columns in reader.columns if basis is not None else ():
                assert basis is not None
                result[columns] = mixed_moments(known[columns], self._places(reader), basis.into)
        return result

    def left(self, readers: Readers, cross: Moments) -> Moments:
        """Joint moments of the dense network's channels with those of a condensed one: the former mixed as well."""
        basis = self._basis(readers)
        return cross if basis is None else left_mixed(cross, self._places(readers), basis.into)

    def weight(self, readers: Readers, fitted: FloatArray) -> FloatArray:
        """Columns for the new channels -> what they are at the old ones."""
        return self._mixed(readers, fitted, back=True)

    def rotations(self, selections: Sequence[Selection]) -> tuple[Rotation, ...]:
        """How the writers of the spaces that are narrowed mix."""
        found = []
        for selection in selections:
            basis = self._bases.get(selection.space)
            if basis is not None:
                keep = selection.keep
                found.append(Rotation(selection.space, basis.into[keep], basis.out[:, keep]))
        return tuple(found)

    def _basis(self, readers: Readers) -> Basis | None:
        name = self._of.get(int(readers.labels[0]))
        return None if name is None else self._bases[name]

    def _places(self, readers: Readers) -> IntArray:
        places = places_of(readers.labels, self._spaces[self._of[int(readers.labels[0])]].channels)
        assert places is not None
        return places

    def _mixed(self, readers: Readers, weight: FloatArray, *, back: bool) -> FloatArray:
        basis = self._basis(readers)
        if basis is None:
            return weight
        return mixed(weight, self._places(readers), basis.into.T if back else basis.out.T)


def _level(elimination: Elimination) -> float:
    """The mean logarithm of held-out costs, where these were worked out."""
    count = len(elimination.order)
    removed = sorted({max(1, round(share * count)) for share in GRID})
    return float(np.log(np.maximum(elimination.cost[removed], FLOOR)).mean())
