"""Elimination down to a width that is known beforehand, at a fraction of the cost of a whole one.

Most channels of a wide layer lie in the span of some others, and which of these go first makes no difference. A
Cholesky factorization with pivoting (LAPACK's pstrf; Higham, Accuracy and Stability of Numerical Algorithms, ch. 10.3)
of the channels' second moments picks those that the others do not span, greedily and in one blocked pass. The readers
are refitted on AHEAD times as many as shall stay, and only among these the elimination decides.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import scipy.linalg

from onnx_condense.fit.compensate import columns_of
from onnx_condense.plan import FloatArray, IntArray
from onnx_condense.select.obs import Elimination, ReaderCost, eliminate, spread

# Candidates per channel that stays. With 2 of them errors after a refit are up to 18 % above those of an elimination
# of all, with 4 mostly a few percent above or below (docs/benchmarks.md).
AHEAD = 4


def eliminate_to(readers: Sequence[ReaderCost], removable: IntArray, left: int, ridge: float) -> Elimination:
    """Like `eliminate`, in an order that is only meant to be followed until `left` of the removable channels are left.

    The cost of those that are not even candidates counts as 0.
    """
    count = AHEAD * max(left, 1)
    if count >= len(removable):
        return eliminate(readers, removable, ridge)
    order = pivots(readers, removable)
    candidates, out = np.sort(order[:count]), order[count:]
    found = eliminate([_without(reader, out, ridge) for reader in readers], candidates, ridge)
    return Elimination(np.r_[out, found.order], np.r_[np.zeros(len(out)), found.cost])


def pivots(readers: Sequence[ReaderCost], channels: IntArray) -> IntArray:
    """Channels, each the one that those before it leave most of; by their columns' strength in the readers.

    Args:
        readers: of which the relative errors are averaged.
        channels: positions; all of them come back, in another order.
    """
    nothing = np.zeros((len(channels), len(channels)))
    moments = functools.reduce(np.add, (_moments(reader, channels) for reader in readers), nothing)
    # Its transpose is itself, and laid out as LAPACK wants it.
    _, order, _, _ = scipy.linalg.lapack.dpstrf(moments.T, lower=1, overwrite_a=1)
    return np.asarray(channels[order - 1])


def _moments(reader: ReaderCost, channels: IntArray) -> FloatArray:
    """Sum over taps t of |A_pt| C[pt, qt] |A_qt| for channels p and q, over the reader's own spread."""
    strength = np.linalg.norm(reader.weight, axis=0) / math.sqrt(spread(reader) or 1.0)
    taps = []
    for at in reader.columns[channels].T:
        part = reader.covariance[np.ix_(at, at)]
        weight = np.where(at >= 0, strength[at], 0.0)
        part *= weight[:, None]
        part *= weight
        taps.append(part)
    return functools.reduce(np.add, taps, np.zeros((len(channels), len(channels))))


def _without(reader: ReaderCost, gone: IntArray, ridge: float) -> ReaderCost:
    """The reader, refitted on what it reads of the other channels."""
    columns = reader.columns[gone]
    keep = np.setdiff1d(np.arange(len(reader.covariance)), columns[columns >= 0])
    covariance = reader.covariance[np.ix_(keep, keep)]
    weight = columns_of(reader.weight, reader.covariance[:, keep], covariance, keep, ridge)
    at = np.full(len(reader.covariance) + 1, -1)
    at[keep] = np.arange(len(keep))
    # The entry behind the last one stands for the columns that a channel does not have.
    return ReaderCost(weight, covariance, at[reader.columns])
