"""Backward elimination of channels by optimal brain surgeon on the readers' least-squares error.

With C the covariance of what a reader reads and A its weights, removing feature p and refitting the others costs
||A[:, p]||^2 / Gi[p, p] with Gi = (C + ridge)^-1 (Hassibi & Stork 1993; for layers: Kailkhura et al. / OSSCAR,
ICML 2024); the update is A -= A[:, p] Gi[p, :] / Gi[p, p], and the same downdate for Gi. A channel that owns
several columns P (taps of a convolution, positions behind a Flatten) costs tr(A_P (Gi_PP)^-1 A_P^T), with updates
of that rank. One pass gives the error of every width.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import scipy.linalg

from onnx_condense.fit.compensate import factorized
from onnx_condense.plan import FloatArray, IntArray, bands

BLOCK = 1 / 40


@dataclasses.dataclass(frozen=True)
class ReaderCost:
    """One set of readers of one tensor axis, stacked.

    weight: [O, K]; covariance: [K, K]; columns: [channels, b] the columns of each channel, -1 where it has fewer.
    """

    weight: FloatArray
    covariance: FloatArray
    columns: IntArray


@dataclasses.dataclass(frozen=True)
class Elimination:
    """Order in which channels go.

    order: [m] channel positions, first to go first; cost: [m + 1] relative squared error of the readers once
    the first i are gone (cost[0] = 0).
    """

    order: IntArray
    cost: FloatArray


def placed(columns: IntArray, keep: IntArray, count: int) -> IntArray:
    """Where the columns of the channels lie among those that are kept of so many, -1 where they do not."""
    at = np.full(count + 1, -1)
    at[keep] = np.arange(len(keep))
    # The entry behind the last one stands for the columns that a channel does not have.
    return np.asarray(at[columns])


class _State:
    """A reader set during elimination. Columns that went are swapped behind the live ones, so nothing is copied."""

    def __init__(self, weight: FloatArray, inverse: FloatArray, columns: IntArray) -> None:
        self.A = weight
        self.G = inverse
        self.at = columns
        self.live = len(inverse)
        # Which entry of `at` holds each column.
        self._owner = np.full(self.live, -1)
        self._owner[columns[columns >= 0]] = np.flatnonzero(columns.reshape(-1) >= 0)

    def costs(self, channels: IntArray) -> FloatArray:
        """tr(A_P (G_PP)^-1 A_P^T) for each channel's columns P; 0 for one that this reader does not see."""
        at = self.at[channels]
        if not self.live or not at.shape[1]:
            # All that this reader saw went before the rest of the space.
            return np.zeros(len(channels))
        if at.shape[1] == 1:
            squares = np.einsum("ij,ij->j", self.A[:, : self.live], self.A[:, : self.live])
            costs = squares / self.G.diagonal()[: self.live]
            return np.asarray(np.where(at[:, 0] >= 0, costs[at[:, 0]], 0.0))
        seen = at >= 0
        A = np.where(seen, self.A[:, at], 0.0).transpose(1, 0, 2)
        G = np.where(seen[:, :, None] & seen[:, None, :], self.G[at[:, :, None], at[:, None, :]], np.eye(at.shape[1]))
        return np.asarray(np.trace(np.linalg.solve(G, A.transpose(0, 2, 1) @ A), axis1=1, axis2=2))

    def block(self, channels: IntArray) -> tuple[FloatArray, FloatArray]:
        """(A^T A, G) restricted to the columns of some channels; neutral where the reader does not see them."""
        at = self.at[channels].reshape(-1)
        seen = at >= 0
        A = np.where(seen, self.A[:, at], 0.0)
        return A.T @ A, np.where(seen[:, None] & seen[None, :], self.G[np.ix_(at, at)], np.eye(len(at)))

    def remove(self, channels: IntArray) -> None:
        """Downdate by some channels at once."""
        gone = np.sort(self.at[channels][self.at[channels] >= 0])
        if not gone.size:
            return
        k = self.live - len(gone)
        self._to_back(gone, k)
        G, A = self.G[: self.live, : self.live], self.A[:, : self.live]
        factor = scipy.linalg.cho_factor(G[k:, k:], lower=True, check_finite=False)
        X = scipy.linalg.cho_solve(factor, G[k:, :k], check_finite=False)
        for matrix in (A, G[:k]):
            for rows in bands(matrix):
                matrix[rows, :k] -= matrix[rows, k:] @ X
        self.live = k

    def _to_back(self, gone: IntArray, k: int) -> None:
        """Swap what goes with live columns behind position k."""
        holes = gone[gone < k]
        movers = np.setdiff1d(np.arange(k, self.live), gone)
        a, b = np.r_[holes, movers], np.r_[movers, holes]
        self.G[a] = self.G[b]
        self.G[:, a] = self.G[:, b]
        self.A[:, a] = self.A[:, b]
        self._owner[a] = self._owner[b]
        at, owners = self.at.reshape(-1), self._owner[: self.live]
        at[owners[owners >= 0]] = np.flatnonzero(owners >= 0)
        dropped = self._owner[k : self.live]
        at[dropped[dropped >= 0]] = -1


def eliminate(readers: Sequence[ReaderCost], removable: IntArray, ridge: float) -> Elimination:
    """Remove channels one by one, cheapest first, until one would be left of those given.

    Args:
        readers: every axis that reads the space; their relative errors are averaged.
        removable: channel positions that may go; one of them stays if nothing else holds the space.
        ridge: relative to the mean variance.
    """
    states = [_start(r, ridge) for r in readers]
    live = removable.copy()
    order: list[int] = []
    cost = [0.0]
    while live.size > 1:
        count = min(max(1, math.ceil(live.size * BLOCK)), live.size - 1)
        costs = sum((s.costs(live) for s in states), np.zeros(live.size)) / max(len(states), 1)
        near = np.sort(np.argsort(costs, kind="stable")[: 2 * count])
        chosen, steps = _exact_steps(states, live[near], count)
        order += chosen.tolist()
        cost += (cost[-1] + np.cumsum(np.maximum(steps, 0.0))).tolist()
        for state in states:
            state.remove(chosen)
        live = live[~np.isin(live, chosen)]
    return Elimination(np.array(order, np.int64), np.array(cost))


def _start(reader: ReaderCost, ridge: float) -> _State:
    scale = spread(reader)
    factor, _ = factorized(reader.covariance, ridge)
    inverse, _ = scipy.linalg.lapack.dpotri(factor, lower=1, overwrite_c=1)
    A = reader.weight / math.sqrt(scale) if scale > 0 else reader.weight.copy()
    return _State(np.ascontiguousarray(A), _mirrored(inverse).T, reader.columns.copy())


def spread(reader: ReaderCost) -> float:
    """tr(W C W^T), products in single precision: it only sets the scale."""
    W, total = reader.weight.astype(np.float32), 0.0
    for rows in bands(reader.covariance):
        part = W @ reader.covariance[rows].astype(np.float32).T
        total += float(np.einsum("ij,ij->", part, W[:, rows], dtype=np.float64))
    return total


def _mirrored(lower: FloatArray) -> FloatArray:
    """The symmetric matrix of which the lower triangle is given, in its place."""
    for rows in bands(lower):
        ends = np.arange(len(lower))[rows, None]
        np.copyto(lower[rows], lower[:, rows].T, where=np.arange(len(lower)) > ends)
    return lower


def _exact_steps(states: Sequence[_State], candidates: IntArray, count: int) -> tuple[IntArray, FloatArray]:
    """Exact one-by-one elimination among a few candidates: their costs depend on their own sub-blocks only."""
    parts = [(state.at.shape[1], *state.block(candidates)) for state in states]
    alive = np.ones(len(candidates), bool)
    chosen, steps = [], []
    for _ in range(count):
        costs = sum((_block_costs(*part) for part in parts), np.zeros(len(candidates))) / max(len(parts), 1)
        p = int(np.argmin(np.where(alive, costs, np.inf)))
        alive[p] = False
        chosen.append(p)
        steps.append(float(costs[p]))
        for b, Q, G in parts:
            _downdate(Q, G, slice(p * b, p * b + b))
    return candidates[chosen], np.array(steps)


def _block_costs(b: int, Q: FloatArray, G: FloatArray) -> FloatArray:
    """tr(G_PP^-1 Q_PP) for blocks P of b columns each."""
    if b == 1:
        return np.asarray(Q.diagonal() / G.diagonal())
    at = np.arange(len(Q)).reshape(-1, b)
    rows, cols = at[:, :, None], at[:, None, :]
    return np.asarray(np.trace(np.linalg.solve(G[rows, cols], Q[rows, cols]), axis1=1, axis2=2))


def _downdate(Q: FloatArray, G: FloatArray, gone: slice) -> None:
    """Remove a block of columns from (A^T A, G), in place."""
    X = np.linalg.solve(G[gone, gone], G[gone])
    q = Q[gone].copy()
    cross = q.T @ X
    np.add(Q, X.T @ q[:, gone] @ X - cross - cross.T, out=Q)
    np.subtract(G, G[:, gone] @ X, out=G)
    # Gone candidates keep a neutral diagonal so that later divisions stay finite.
    Q[gone], Q[:, gone], G[gone], G[:, gone] = 0.0, 0.0, 0.0, 0.0
    G[gone, gone] = np.eye(len(X))
