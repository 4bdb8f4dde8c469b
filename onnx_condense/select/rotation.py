"""Mixing the channels of a linear trunk so that few of them say what its readers hear.

Of a trunk t a reader only hears y = A t. Losing the direction n, of which the others then know what they can, costs it
n^T M n / n^T G n with M = A^T A and G = Cov(t)^-1: that is optimal brain surgeon with any direction for a channel. For
one reader the cheapest directions are generalized eigenvectors of (M, G), all at once, and the best reduction to K
numbers (Eckart-Young in the reader's metric) is what is orthogonal to all but the last K. Where readers lie at
different places of a residual trunk their covariances differ, and their costs add up: directions then go in blocks,
each the eigenvectors of a weighted sum, with weights such that its stationary points are those of the sum of quotients.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np
import scipy.linalg

from onnx_condense.fit.compensate import factorized
from onnx_condense.plan import FloatArray, IntArray, Moments
from onnx_condense.select.curves import TINY, Trial
from onnx_condense.select.obs import Elimination, ReaderCost

# Directions go in blocks of this share of those left; where there are many, in larger ones: width / WIDE.
BLOCK, WIDE = 1 / 40, 4096
ROUNDS = 2
SAY = 0.05
# Of more than 1 / MOST of the eigenvectors LAPACK finds all of them sooner.
MOST = 3
# Readers times width^3: about 20 s on one core. Above it readers are taken as one, of the mean covariance.
WORK = 2 * 10**10


@dataclasses.dataclass(frozen=True)
class Basis:
    """New channels for old ones: into [C, C] makes them, the most important first; out is its inverse.

    The new ones are uncorrelated on the samples that the basis comes from, and the rows of `into` are of length 1.
    """

    into: FloatArray
    out: FloatArray


def mixed(x: FloatArray, columns: IntArray, matrix: FloatArray) -> FloatArray:
    """Features mixed channel by channel: x [..., F] with columns [channels, b], all of F, those of one j together."""
    result = np.empty_like(x)
    for own in columns.T:
        # One product of matrices; broadcast over `columns` it would be a product with a vector for every row.
        result[..., own] = x[..., own] @ matrix.T
    return result


def best_basis(readers: Sequence[ReaderCost], ridge: float) -> Basis:
    """The basis for some readers of a trunk, each of which owns columns of every channel.

    Args:
        readers: they count alike, whatever their scale.
        ridge: on the covariances, relative to their mean variances.
    """
    covariances = [_covariance(reader) for reader in readers]
    mean = np.sum(covariances, axis=0) / len(readers)
    if len(readers) * len(mean) ** 3 > WORK:
        metrics = [_metric(readers, mean, ridge)]
    else:
        metrics = [_metric([reader], C, ridge) for reader, C in zip(readers, covariances, strict=True)]
    nested = _nested(metrics)
    # What the first K say is the same whatever is added to the others, so these can be made uncorrelated.
    R = np.tril(factorized(nested @ mean @ nested.T, ridge)[0])
    into = scipy.linalg.solve_triangular(R, nested, lower=True)
    # Rounding of the moments in directions without data is not to be blown up.
    length = np.linalg.norm(into, axis=1, keepdims=True)
    return Basis(into / length, nested.T @ R * length.T)


def _covariance(reader: ReaderCost) -> FloatArray:
    """Of the channels, pooled over their columns."""
    parts = [reader.covariance[np.ix_(own, own)] for own in reader.columns.T]
    return np.asarray(np.mean(parts, axis=0))


@dataclasses.dataclass(frozen=True)
class _Metric:
    """What directions mean to one reader: the Gram matrix of its columns, and the inverse covariance."""

    gram: FloatArray
    inverse: FloatArray

    def quotients(self, n: FloatArray) -> tuple[FloatArray, FloatArray]:
        """n^T M n and n^T G n of each direction [k, m]."""
        return _squares(self.gram, n), _squares(self.inverse, n)

    def without(self, n: FloatArray, rest: FloatArray) -> _Metric:
        """In the coordinates `rest` [k, k - m], once the directions n [k, m] are lost and the reader is refitted."""
        Gn = self.inverse @ n
        X = rest - n @ np.linalg.solve(n.T @ Gn, Gn.T @ rest)
        return _Metric(X.T @ self.gram @ X, rest.T @ self.inverse @ X)


def _metric(readers: Sequence[ReaderCost], covariance: FloatArray, ridge: float) -> _Metric:
    """What directions mean to some readers of one covariance, which count alike."""
    gram = np.zeros_like(covariance)
    for reader in readers:
        scale = _spread(reader) or 1.0
        for own in reader.columns.T:
            gram += reader.weight[:, own].T @ reader.weight[:, own] / scale
    factor, _ = factorized(covariance, ridge)
    return _Metric(gram, scipy.linalg.cho_solve((factor, True), np.eye(len(covariance))))


def _nested(metrics: Sequence[_Metric]) -> FloatArray:
    """Orthonormal directions as rows [C, C], the first to be lost last."""
    width = k = len(metrics[0].gram)
    left, lost = np.eye(width), list[FloatArray]()
    weights = np.ones((2, len(metrics)))
    share = 1.0 if len(metrics) == 1 else max(BLOCK, width / WIDE)
    while k > 1:
        count = min(max(1, math.ceil(k * share)), k - 1)
        n, weights = _cheapest(metrics, count, weights)
        turn, _ = np.linalg.qr(n, mode="complete")
        lost.append(turn[:, :count].T @ left)
        left = turn[:, count:].T @ left
        metrics = [m.without(turn[:, :count], turn[:, count:]) for m in metrics]
        k -= count
    return np.concatenate([left, *(block[::-1] for block in lost[::-1])])


def _cheapest(metrics: Sequence[_Metric], count: int, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Directions [k, count] that cost the readers little, and the weights to start the next search with.

    The derivative of sum m / g is that of a sum of m with weights 1 / g, and of g with weights -m / g^2.
    """
    best, least = None, math.inf
    # Weights make no difference to one reader.
    for _ in range(min(ROUNDS, len(metrics))):
        gram = sum(w * m.gram for w, m in zip(weights[0], metrics, strict=True))
        inverse = sum(w * m.inverse for w, m in zip(weights[1], metrics, strict=True))
        n = _lowest(gram, inverse, count)
        m, g = np.array([metric.quotients(n) for metric in metrics]).transpose(1, 0, 2)
        if best is None or float((m / g).sum()) < least:
            best, least = n, float((m / g).sum())
        costs = np.maximum(m, 0.0).mean(1) / g.mean(1)
        # A reader that loses nothing here keeps a say in what is to come.
        costs += SAY * costs.mean() + TINY
        weights = np.stack([1.0 / g.mean(1), costs / costs.mean() / g.mean(1)])
    assert best is not None
    return best, weights


def _lowest(gram: FloatArray, inverse: FloatArray, count: int) -> FloatArray:
    """The first generalized eigenvectors [k, count], of length 1."""
    if MOST * count > len(gram):
        _, n = scipy.linalg.eigh(gram, inverse, check_finite=False)
        n = n[:, :count]
    else:
        _, n = scipy.linalg.eigh(gram, inverse, subset_by_index=[0, count - 1], check_finite=False)
    return np.asarray(n / np.linalg.norm(n, axis=0))


def _squares(matrix: FloatArray, n: FloatArray) -> FloatArray:
    return np.asarray(np.einsum("ij,ij->j", matrix @ n, n))


def turned(trial: Trial, basis: Basis) -> Trial:
    """The same readers, of the new channels."""
    columns, reader = trial.reader.columns, trial.reader
    covariance = both_mixed(reader.covariance, columns, basis.into)
    held = functools.partial(both_mixed, trial.held, columns, basis.into)
    return Trial(ReaderCost(mixed(reader.weight, columns, basis.out.T), covariance, columns), held)


def both_mixed(product: FloatArray, columns: IntArray, matrix: FloatArray) -> FloatArray:
    """Second moments [F, F] of mixed features."""
    return np.ascontiguousarray(mixed(mixed(product, columns, matrix).T, columns, matrix).T)


def mixed_moments(moments: Moments, columns: IntArray, matrix: FloatArray) -> Moments:
    """Moments of features with themselves, mixed."""
    mean = mixed(moments.left, columns, matrix)
    return Moments(moments.count, mean, mean, both_mixed(moments.product, columns, matrix))


def left_mixed(moments: Moments, columns: IntArray, matrix: FloatArray) -> Moments:
    """Moments of features with others, the former mixed."""
    product = np.ascontiguousarray(mixed(moments.product.T, columns, matrix).T)
    return Moments(moments.count, mixed(moments.left, columns, matrix), moments.right, product)


def shortened(readers: Sequence[ReaderCost], ridge: float) -> Elimination:
    """What it costs to keep the first channels only, for every number of them: the last one goes first.

    readers: of channels in a basis. Same costs as `obs.eliminate`: relative squared errors of the readers after a
    refit, averaged; the Cholesky factor of a covariance tells those of all widths at once.
    """
    width = len(readers[0].columns)
    cost = np.zeros(width)
    for reader in readers:
        own = reader.columns.reshape(-1)
        factor = np.tril(factorized(reader.covariance[np.ix_(own, own)], ridge)[0])
        lost = np.einsum("ij,ij->j", *2 * (reader.weight[:, own] @ factor,)).reshape(width, -1).sum(1)
        cost += lost[::-1].cumsum() / max(_spread(reader), TINY) / len(readers)
    return Elimination(np.arange(width - 1, 0, -1), np.r_[0.0, cost[:-1]])


def _spread(reader: ReaderCost) -> float:
    return float(np.einsum("ij,ij->", reader.weight @ reader.covariance, reader.weight))
