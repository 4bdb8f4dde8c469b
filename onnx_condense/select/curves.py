"""What narrowing costs on samples that the order of elimination did not see.

Where samples are few, or their groups unlike each other, the least-squares error on the fit share says little: channels
that are silent there look free. The same refits judged on held-out moments tell.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np

from onnx_condense.fit.compensate import columns_of
from onnx_condense.plan import FloatArray, IntArray
from onnx_condense.select.obs import Elimination, ReaderCost

# Shares of what can go, at which the held-out error is worked out; the last one so that the end is never a guess.
GRID = (0.03, 0.1, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
MIDDLE = 0.5
# An order whose held-out error is this many times its own is not to be trusted.
OVERFIT = 2.0
# Where at most one in so many columns stays the error is told from terms that cancel, unless too little is left.
FEW, CANCELLED = 2, 1e-6
TINY = np.finfo(np.float64).tiny


@dataclasses.dataclass(frozen=True)
class Trial:
    """One set of readers and what they read on held-out samples.

    reader: with the covariance on the fit share; told: makes `held`, which is as large and often not asked for.
    """

    reader: ReaderCost
    told: Callable[[], FloatArray]

    @functools.cached_property
    def held(self) -> FloatArray:
        """[K, K] second moments of the held-out share about the means of the fit share."""
        return self.told()

    @functools.cached_property
    def spread(self) -> float:
        """What errors are relative to: the readers' own on the held-out share."""
        return _spread(self.reader.weight, self.held)


def held_out_error(trials: Sequence[Trial], gone: IntArray, ridge: float) -> float:
    """Relative squared error without some channels, after a refit on the fit share, averaged over the readers."""
    errors = [_error(trial, gone, ridge) for trial in trials]
    return sum(errors) / max(len(errors), 1)


def _error(trial: Trial, gone: IntArray, ridge: float) -> float:
    # Moments are summed in single precision: of next to nothing they may leave less than nothing.
    return max(_lost(trial, gone, ridge), 0.0) / max(trial.spread, TINY)


def _lost(trial: Trial, gone: IntArray, ridge: float) -> float:
    """tr(D M D^T) of the change D of the weight, with the held-out moments M."""
    W, C = trial.reader.weight, trial.reader.covariance
    columns = trial.reader.columns[gone]
    keep = np.setdiff1d(np.arange(len(C)), columns[columns >= 0])
    if not keep.size:
        return trial.spread
    fitted = columns_of(W, C[:, keep], C[np.ix_(keep, keep)], keep, ridge)
    if FEW * len(keep) <= len(C):
        # Term by term, without a product as large as W M.
        M = trial.held
        cross = float(np.einsum("ij,ij->", W @ M[:, keep], fitted))
        lost = trial.spread - 2.0 * cross + _spread(fitted, M[np.ix_(keep, keep)])
        if lost > CANCELLED * trial.spread:
            return lost
    change = W.copy()
    change[:, keep] -= fitted
    return _spread(change, trial.held)


def _spread(weight: FloatArray, moments: FloatArray) -> float:
    """tr(W M W^T)."""
    return float(np.einsum("ij,ij->", weight @ moments, weight))


def overfits(elimination: Elimination, trials: Sequence[Trial], ridge: float) -> bool:
    """Whether the held-out error half-way is far above what the elimination says."""
    half = round(MIDDLE * len(elimination.order))
    return bool(held_out_error(trials, elimination.order[:half], ridge) > OVERFIT * elimination.cost[half])


def judged(elimination: Elimination, trials: Sequence[Trial], ridge: float) -> Elimination:
    """The same order with its held-out cost, worked out at some points and joined in between."""
    count = len(elimination.order)
    removed = sorted({max(1, round(share * count)) for share in GRID})
    held = [held_out_error(trials, elimination.order[:r], ridge) for r in removed]
    return Elimination(elimination.order, _joined(count + 1, removed, np.maximum.accumulate(held)))


def best_judged(orders: Sequence[Elimination], trials: Sequence[Trial], ridge: float) -> Elimination:
    """The order that does best on held-out samples (by the geometric mean of its costs), with these costs."""
    return min((judged(e, trials, ridge) for e in orders), key=lambda e: float(np.log(e.cost[1:] + TINY).mean()))


def _joined(length: int, removed: Sequence[int], held: FloatArray) -> FloatArray:
    """Costs [length] per channels removed, joined in logarithms; before the first they grow in proportion."""
    result = np.exp(np.interp(np.arange(length), removed, np.log(np.maximum(held, TINY))))
    result[: removed[0]] = held[0] * np.arange(removed[0]) / removed[0]
    return np.asarray(result)
