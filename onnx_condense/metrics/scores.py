"""What metrics other than the relative error say of the answers of two networks.

It is kept sample by sample, so that samples can be drawn anew from it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from onnx_condense.metrics.details import Pairs, class_axis
from onnx_condense.plan import FloatArray, IntArray
from onnx_condense.runtime import Array

# Of so many features, those with the largest errors, it is known how samples spread: one of them will be the worst.
KEPT = 100


class Score(Protocol):
    """The error of one output (or of all together) in one metric."""

    @property
    def value(self) -> float:
        """Over all samples."""

    @property
    def by_sample(self) -> FloatArray:
        """Of each sample [n]."""

    def resampled(self, weights: FloatArray, group: IntArray) -> FloatArray:
        """Errors [resamples] from how often each resample holds each group [resamples, groups]; group of each [n]."""


@dataclasses.dataclass(frozen=True)
class Ratios:
    """The largest of some ratios of sums over samples.

    part, whole: [n, k]. each: the error of each sample [n]. power: 0.5 for squares, 1 for shares and means.
    floor: an error that does not depend on the samples drawn.
    """

    part: FloatArray
    whole: FloatArray
    each: FloatArray
    power: float = 1.0
    floor: float = 0.0

    @property
    def value(self) -> float:
        """The largest ratio."""
        return float(self._largest(self.part.sum(0), self.whole.sum(0)))

    @property
    def by_sample(self) -> FloatArray:
        """As it was worked out when it was measured."""
        return self.each

    def _largest(self, part: FloatArray, whole: FloatArray) -> FloatArray:
        """From sums [..., k]; means of errors that may be negative are 0 at least."""
        ratios = np.where(whole > 0, part / np.where(whole > 0, whole, 1.0), 0.0)
        return np.asarray(np.maximum(ratios.max(-1, initial=0.0) ** self.power, self.floor))

    def resampled(self, weights: FloatArray, group: IntArray) -> FloatArray:
        """The largest ratio of each resample."""
        part, whole = (weights @ _by_group(v, group, weights.shape[1]) for v in (self.part, self.whole))
        return self._largest(part, whole)


@dataclasses.dataclass(frozen=True)
class Largest:
    """The largest of all samples. A sample that was not drawn says nothing of it, so resamples are not smaller."""

    each: FloatArray

    @property
    def value(self) -> float:
        """The largest."""
        return float(self.each.max(initial=0.0))

    @property
    def by_sample(self) -> FloatArray:
        """The largest of each."""
        return self.each

    def resampled(self, weights: FloatArray, group: IntArray) -> FloatArray:  # noqa: ARG002 - no resample holds a larger maximum
        """The maximum itself."""
        return np.full(len(weights), self.value)


def _by_group(values: FloatArray, group: IntArray, count: int) -> FloatArray:
    """Sums [groups, k]."""
    columns = [np.bincount(group, column, count) for column in values.T]
    return np.stack(columns, 1) if columns else np.zeros((count, 0))


def of_features(squared: FloatArray, own: FloatArray, judged: Array, floor: float) -> Ratios:
    """The worst feature, each over its own spread.

    The spread of all features together is one more ratio, so that those too small to be judged by themselves count.

    Args:
        squared: squared differences [n, features], of features that vary.
        own: their squared distance from the feature's mean [n, features].
        judged: which features are judged by themselves [features].
        floor: error of features that do not vary.
    """
    mean = own[:, judged].mean(0)
    relative = squared[:, judged].mean(0) / mean
    each = np.sqrt((squared[:, judged] / mean).max(1, initial=0.0))
    worst = np.flatnonzero(judged)[np.argsort(-relative, kind="stable")[:KEPT]]
    part, whole = (np.column_stack([v[:, worst], v.sum(1)]) for v in (squared, own))
    return Ratios(part, whole, each, 0.5, floor)


def of_largest(pairs: Pairs) -> Largest:
    """The largest absolute difference of any element; bools and strings differ by 1."""
    return Largest(np.concatenate([_rows(_apart(y, y0), n).max(1, initial=0.0) for y, y0, n in pairs]))


def _apart(found: Array, dense: Array) -> FloatArray:
    differs = np.asarray(found != dense, np.float64)
    if dense.dtype.kind not in "iuf":
        return differs
    # Integers beyond 2^53 may become equal as floats; they are 1 apart at least.
    distance = np.abs(found.astype(np.float64) - dense.astype(np.float64))
    return np.asarray(distance if dense.dtype.kind == "f" else np.maximum(distance, differs))


def of_flips(pairs: Pairs) -> Ratios | None:
    """Share of positions at which another class has the largest value; None where there are no classes."""
    flips, counts = [], []
    for y, y0, n in pairs:
        axis = class_axis(y0)
        if axis is None:
            return None
        changed = _rows(np.asarray(y.argmax(axis) != y0.argmax(axis), np.float64), n)
        flips.append(changed.sum(1))
        counts.append(np.full(n, float(changed.shape[1])))
    part, whole = np.concatenate(flips), np.concatenate(counts)
    each = part / np.where(whole > 0, whole, 1.0)
    return Ratios(part[:, None], whole[:, None], each) if whole.any() else None


def _rows(values: FloatArray, samples: int) -> FloatArray:
    """[samples, rest]; where a pass has one answer for all of its samples each of them gets it."""
    if values.ndim and values.size and len(values) % samples == 0:
        return values.reshape(samples, -1)
    return np.repeat(values.reshape(1, -1), samples, axis=0)


def of_means(errors: Sequence[FloatArray]) -> Ratios:
    """The mean of errors of samples, pass by pass [n]."""
    each = np.concatenate(errors)
    return Ratios(each[:, None], np.ones((len(each), 1)), each)
