"""Which axes of an output are features, so that constant differences between them are not taken for spread."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from onnx_condense.plan import FloatArray
from onnx_condense.runtime import Array

# A feature whose spread is below this share of its magnitude does not vary.
STILL = 1e-6

Sizes = Sequence[int | str | None]
Dense = Sequence[tuple[Array, int]]
"""Dense answers and how many samples they answer, pass by pass."""


@dataclasses.dataclass(frozen=True)
class Fed:
    """How the samples reach the network.

    block: rows per sample along axis 0, or 0 where a pass is one sample as a whole.
    free: whether some input has an axis besides axis 0 whose size is open, so that outputs may have such axes.
    rows: sizes that open axes 0 of inputs had, pass by pass.
    """

    block: int
    free: bool
    rows: Sequence[frozenset[int]]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which axes of one output are features.

    by_row: whether axis 0 goes through the samples.
    split: whether samples that lie one after the other along axis 0 are taken apart, which makes an axis more.
    features: feature axes.
    centred: other axes of a size that never changes. Nothing tells features from positions there, so each element has
    a mean of its own: the spread is never larger than that of any choice of features among them.
    sure: whether each feature axis is known to be of fixed size, not just never seen to change.
    """

    by_row: bool
    split: bool
    features: tuple[int, ...]
    centred: tuple[int, ...]
    sure: bool

    @classmethod
    def of(cls, shapes: Sequence[Sizes], dense: Dense, fed: Fed) -> Layout:
        """From shapes that are known (declared, inferred; empty where not), dense outputs, and what they answer."""
        told = _told(shapes, dense[0][0].ndim)
        by_row = _by_row(dense, fed)
        split = not by_row and _runs(told, dense, fed)
        if split:
            told, dense = [False, *told], [(_apart(y0, n), n) for y0, n in dense]
        same = _same(told, dense, fed, by_row=by_row or split)
        shape = dense[0][0].shape
        known = tuple(a for a in same if told[a])
        # Without open sizes at the inputs what stays the same is fixed. Axes of size 1 tell of no features.
        features = known if fed.free and _count(shape, known) > 1 else same
        sure = all(told[a] or shape[a] <= 1 for a in features)
        layout = cls(by_row or split, split, features, tuple(a for a in same if a not in features), sure)
        alone = layout._rows(dense) == 1 and any(shape[a] > 1 for a in same if not told[a])
        return layout._looser(dense) if alone else layout

    def featured(self, value: Array, samples: int) -> FloatArray:
        """[samples, positions, centred, features] as float64; 1 for samples where a pass is one whole."""
        return self.parted(_apart(value, samples) if self.split else value, samples)

    def parted(self, value: Array, samples: int) -> FloatArray:
        """The same of a value whose samples are taken apart."""
        wide = np.asarray(value, np.float64)
        loose = [a for a in range(wide.ndim) if a not in self.features + self.centred]
        rows = samples if self.by_row else 1
        counts = [_count(wide.shape, axes) for axes in (loose, self.centred, self.features)]
        moved = wide.transpose([*loose, *self.centred, *self.features])
        return moved.reshape(rows, counts[0] // rows, *counts[1:])

    def _rows(self, dense: Dense) -> int:
        """How many numbers each mean is taken over."""
        own = self.features + self.centred
        return sum(math.prod(s for a, s in enumerate(y0.shape) if a not in own) for y0, _ in dense)

    def _looser(self, dense: Dense) -> Layout:
        """Of a single row: one axis more goes through positions, the one that leaves the smallest spread above 0."""
        shape, axes = dense[0][0].shape, self.features + self.centred
        layouts = [self._without({a}) for a in axes if shape[a] > 1]
        spreads = [(_spread(layout, dense), i) for i, layout in enumerate(layouts)]
        best = min(((s, i) for s, i in spreads if s > STILL), default=None)
        return self._without(set(axes)) if best is None else layouts[best[1]]

    def _without(self, axes: set[int]) -> Layout:
        features, centred = (tuple(a for a in of if a not in axes) for of in (self.features, self.centred))
        return dataclasses.replace(self, features=features, centred=centred)


def _spread(layout: Layout, dense: Dense) -> float:
    """Root mean square distance from the means, relative to that from 0; of a single row."""
    (value,) = (layout.parted(y0, n) for y0, n in dense if y0.size)
    whole = float((value**2).sum())
    return math.sqrt(float(((value - value.mean((0, 1))) ** 2).sum()) / whole) if whole else 0.0


def _told(shapes: Sequence[Sizes], rank: int) -> list[bool]:
    """Which axes have a size that is known beforehand."""
    # Exports with dynamic axes tend to declare every size a symbol, also the number of features.
    whole = [s for s in shapes if len(s) == rank]
    return [any(isinstance(s[a], int) for s in whole) for a in range(rank)]


def _count(shape: Sequence[int], axes: Sequence[int]) -> int:
    return math.prod(shape[a] for a in axes)


def _by_row(dense: Dense, fed: Fed) -> bool:
    return fed.block > 0 and all(y0.ndim > 0 and len(y0) == n * fed.block for y0, n in dense)


def _runs(told: Sequence[bool], dense: Dense, fed: Fed) -> bool:
    """Whether samples seem to have several rows of axis 0 each, as where an export flattens batch and positions."""
    return _divides(told, dense, fed) and not _crosswise(told, dense, fed) and len({len(y) / n for y, n in dense}) == 1


def _divides(told: Sequence[bool], dense: Dense, fed: Fed) -> bool:
    """Whether axis 0 may hold as many rows for each sample."""
    return bool(told) and not told[0] and fed.block == 1 and all(y0.size and len(y0) % n == 0 for y0, n in dense)


def _apart(value: Array, samples: int) -> Array:
    """[samples, rows of each, ...]."""
    return value.reshape(samples, len(value) // samples, *value.shape[1:])


def _crosswise(told: Sequence[bool], dense: Dense, fed: Fed) -> list[int]:
    """Axes behind axis 0 that may go through the samples."""
    several = any(n > 1 for _, n in dense)
    axes = range(1, len(told)) if fed.block and several else ()
    return [a for a in axes if not told[a] and all(y0.shape[a] == n * fed.block for y0, n in dense)]


def _same(told: Sequence[bool], dense: Dense, fed: Fed, *, by_row: bool) -> tuple[int, ...]:
    """Axes of the same size in every pass, those that go through samples or rows aside."""
    rows = set[int]()
    if by_row:
        rows = {0}
    elif fed.block:
        crosswise = _crosswise(told, dense, fed)
        # Where several axes may be it features are among them, and none is given up.
        rows = set(crosswise) if len(crosswise) == 1 and not _divides(told, dense, fed) else rows
    elif told and not told[0] and all(len(y0) in fit for (y0, _), fit in zip(dense, fed.rows, strict=True)):
        rows = {0}
    return tuple(a for a in range(len(told)) if a not in rows and len({y0.shape[a] for y0, _ in dense}) == 1)
