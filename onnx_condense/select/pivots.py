"""Elimination down to a width that is known beforehand, at a fraction of the cost of a whole one.

Most channels of a wide layer lie in the span of some others, and which of these go first makes no difference. A
Cholesky factorization with pivoting (LAPACK's pstrf; Higham, Accuracy and Stability of Numerical Algorithms, ch. 10.3)
of the channels' second moments picks those that the others do not span, greedily and in one blocked pass. The readers
are refitted on AHEAD times as many as shall stay, and only among these the elimination decides.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import scipy.linalg

from onnx_condense.fit.compensate import columns_of
from onnx_condense.plan import FloatArray, IntArray, bands
from onnx_condense.select.obs import Elimination, ReaderCost, eliminate, placed, spread
from onnx_condense.select.sight import Sight

# Candidates per channel that stays. With 2 of them errors after a refit are up to 18 % above those of an elimination
# of all, with 4 mostly a few percent above or below (docs/benchmarks.md).
AHEAD = 4


def eliminate_to(readers: Sequence[ReaderCost | Sight], removable: IntArray, left: int, ridge: float) -> Elimination:
    """Like `eliminate`, in an order that is only meant to be followed until `left` of the removable channels are left.

    The cost of those that are not even candidates counts as 0.
    """
    count = AHEAD * max(left, 1)
    if count >= len(removable):
        whole = [r.without(np.empty(0, np.int64), ridge) if isinstance(r, Sight) else r for r in readers]
        return eliminate(whole, removable, ridge)
    order = pivots(readers, removable)
    candidates, out = np.sort(order[:count]), order[count:]
    found = eliminate([_shortened(_without(reader, out, ridge)) for reader in readers], candidates, ridge)
    return Elimination(np.r_[out, found.order], np.r_[np.zeros(len(out)), found.cost])


def pivots(readers: Sequence[ReaderCost | Sight], channels: IntArray) -> IntArray:
    """Channels, each the one that those before it leave most of; by their columns' strength in the readers.

    Args:
        readers: of which the relative errors are averaged.
        channels: positions; all of them come back, in another order.
    """
    # Rows are in single precision anyway.
    single = bool(readers) and all(isinstance(r, Sight) for r in readers)
    moments = np.zeros((len(channels), len(channels)), np.float32 if single else np.float64)
    for reader in readers:
        # Of one alone it makes no difference, and is as much work as all the rest.
        scale = (_scale(reader) or 1.0) if len(readers) > 1 else 1.0
        _add_moments(moments, reader, channels, scale)
    factorize = scipy.linalg.lapack.spstrf if single else scipy.linalg.lapack.dpstrf
    # LAPACK's own level in single precision would leave out too much.
    level = len(channels) * np.finfo(np.float64).eps * float(moments.diagonal().max(initial=0.0))
    # Its transpose is itself, and laid out as LAPACK wants it.
    _, order, _, _ = factorize(moments.T, tol=level, lower=1, overwrite_a=1)
    return np.asarray(channels[order - 1])


def _scale(reader: ReaderCost | Sight) -> float:
    return reader.spread if isinstance(reader, Sight) else spread(reader)


def _add_moments(total: FloatArray, reader: ReaderCost | Sight, channels: IntArray, scale: float) -> None:
    """Add the sum over taps t of |A_pt| C[pt, qt] |A_qt| for channels p and q, over a scale, in place."""
    strength = np.linalg.norm(reader.weight, axis=0) / math.sqrt(scale)
    for at in reader.columns[channels].T:
        weight = np.where(at >= 0, strength[at], 0.0)
        if isinstance(reader, Sight):
            total += reader.products(at, weight)
            continue
        for rows in bands(total):
            part = reader.covariance[np.ix_(at[rows], at)]
            part *= weight[rows, None]
            part *= weight
            total[rows] += part


def _shortened(reader: ReaderCost) -> ReaderCost:
    """The same with no more rows than columns: only the product of its weight with itself counts."""
    if len(reader.weight) <= reader.weight.shape[1]:
        return reader
    (root,) = scipy.linalg.qr(reader.weight, mode="r", check_finite=False)
    return dataclasses.replace(reader, weight=np.asarray(root[: root.shape[1]], np.float64))


def _without(reader: ReaderCost | Sight, gone: IntArray, ridge: float) -> ReaderCost:
    """The reader, refitted on what it reads of the other channels."""
    if isinstance(reader, Sight):
        return reader.without(gone, ridge)
    columns = reader.columns[gone]
    keep = np.setdiff1d(np.arange(len(reader.covariance)), columns[columns >= 0])
    covariance = reader.covariance[np.ix_(keep, keep)]
    weight = columns_of(reader.weight, reader.covariance[:, keep], covariance, keep, ridge)
    return ReaderCost(weight, covariance, placed(reader.columns, keep, len(reader.covariance)))
