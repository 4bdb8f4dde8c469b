"""Backward elimination of channels by optimal brain surgeon on the readers' least-squares error.

With C the covariance of what a reader reads and A its weights, removing feature p and refitting the others costs
||A[:, p]||^2 / Gi[p, p] with Gi = (C + ridge)^-1 (Hassibi & Stork 1993; for layers: Kailkhura et al. / OSSCAR,
ICML 2024); the update is A -= A[:, p] Gi[p, :] / Gi[p, p], and the same downdate for Gi. One pass gives the error
of every width.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import scipy.linalg

from onnx_condense.plan import FloatArray, IntArray

BLOCK = 1 / 40


@dataclasses.dataclass(frozen=True)
class ReaderCost:
    """One set of readers of one tensor axis, stacked.

    weight: [O, K]; covariance: [K, K]; position: [channels] column of each channel, -1 where it has none.
    """

    weight: FloatArray
    covariance: FloatArray
    position: IntArray


@dataclasses.dataclass(frozen=True)
class Elimination:
    """Order in which channels go.

    order: [m] channel positions, first to go first; cost: [m + 1] relative squared error of the readers once
    the first i are gone (cost[0] = 0).
    """

    order: IntArray
    cost: FloatArray


@dataclasses.dataclass
class _State:
    """A reader set during elimination; columns of channels that went are cut out."""

    A: FloatArray
    G: FloatArray
    at: IntArray

    def costs(self, channels: IntArray) -> FloatArray:
        at = self.at[channels]
        diagonal = self.G.diagonal()[at]
        return np.asarray(np.where(at >= 0, (self.A[:, at] ** 2).sum(0) / diagonal, 0.0))

    def remove(self, channels: IntArray) -> None:
        gone = self.at[channels]
        gone = gone[gone >= 0]
        if not gone.size:
            return
        rest = np.delete(np.arange(len(self.G)), gone)
        X = scipy.linalg.solve(self.G[np.ix_(gone, gone)], self.G[np.ix_(gone, rest)], assume_a="pos")
        self.A = self.A[:, rest] - self.A[:, gone] @ X
        self.G = self.G[np.ix_(rest, rest)] - self.G[np.ix_(rest, gone)] @ X
        new = np.full(self.at.max(initial=0) + 2, -1)
        new[rest] = np.arange(len(rest))
        self.at = np.where(self.at >= 0, new[self.at], -1)


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
    C = reader.covariance
    scale = float(np.einsum("ij,jk,ik->", reader.weight, C, reader.weight, optimize=True))
    level = float(np.trace(C)) / max(len(C), 1)
    level = level if level > 0 else 1.0
    factor = scipy.linalg.cho_factor(C + ridge * level * np.eye(len(C)), lower=True, overwrite_a=True)
    inverse = scipy.linalg.cho_solve(factor, np.eye(len(C)), overwrite_b=True)
    A = reader.weight / math.sqrt(scale) if scale > 0 else reader.weight.copy()
    return _State(A, (inverse + inverse.T) / 2, reader.position.copy())


def _exact_steps(states: Sequence[_State], candidates: IntArray, count: int) -> tuple[IntArray, FloatArray]:
    """Exact one-by-one elimination among a few candidates: their costs depend on their own sub-blocks only."""
    parts = []
    for state in states:
        at = state.at[candidates]
        A = np.where(at >= 0, state.A[:, at], 0.0)
        G = np.where((at >= 0)[:, None] & (at >= 0)[None, :], state.G[np.ix_(at, at)], np.eye(len(at)))
        parts.append((A.T @ A, G))
    alive = np.ones(len(candidates), bool)
    chosen, steps = [], []
    for _ in range(count):
        costs = sum((Q.diagonal() / G.diagonal() for Q, G in parts), np.zeros(len(candidates))) / max(len(parts), 1)
        p = int(np.argmin(np.where(alive, costs, np.inf)))
        alive[p] = False
        chosen.append(p)
        steps.append(float(costs[p]))
        for Q, G in parts:
            g = G[p] / G[p, p]
            q = Q[p].copy()
            Q += np.outer(g, g) * q[p] - np.outer(q, g) - np.outer(g, q)
            G -= np.outer(g, G[p].copy())
            # Gone candidates keep a neutral diagonal so that later divisions stay finite.
            Q[p], Q[:, p], G[p], G[:, p] = 0.0, 0.0, 0.0, 0.0
            G[p, p] = 1.0
    return candidates[chosen], np.array(steps)
