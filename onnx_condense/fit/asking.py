"""What is asked of a network about the channels of a saved plan: whether they do, and which others would.

Some of the samples tell: how many depends on how many channels stay, not on how many there are. What is written is
refitted on all of them. Part of the pipeline, beside `fit/fitting.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from onnx_condense.data import spread
from onnx_condense.evidence.columns import Columns
from onnx_condense.fit.dense import Dense, Passes, Stack, stacks_of, trials_of
from onnx_condense.fit.reading import Readers
from onnx_condense.plan import ChannelSpace, ChannelView, FloatArray, IntArray
from onnx_condense.runtime import Array
from onnx_condense.select.curves import OVERFIT, held_out_error
from onnx_condense.select.obs import Elimination
from onnx_condense.select.pivots import AHEAD, eliminate_to
from onnx_condense.select.sight import Sight, error_of

# Rows per candidate among which channels are chosen anew (docs/benchmarks.md), and samples at least.
ROWS = 5
LEAST = 256


@dataclasses.dataclass(frozen=True)
class Question:
    """What may be asked of one space.

    told: see `error`; known: what was asked already. order: in which channels go, until so many of the removable ones
    are left; by ridge.
    """

    told: Callable[[IntArray], float]
    order: Callable[[int, float], Elimination]
    known: dict[bytes, float] = dataclasses.field(default_factory=dict)

    def error(self, gone: IntArray) -> float:
        """Relative and squared, on held-out samples, without some channels."""
        key = gone.tobytes()
        if key not in self.known:
            self.known[key] = self.told(gone)
        return self.known[key]

    def chosen(self, left: int, gone: int, ridges: Sequence[float]) -> Elimination:
        """An order of which only the first so many will go; the one that does best on held-out samples.

        ridges: the usual one first; the others are tried where that order does badly.
        """
        first = self.order(left, ridges[0])
        if self.error(first.order[:gone]) <= OVERFIT * first.cost[gone]:
            return first
        orders = [first, *(self.order(left, ridge) for ridge in ridges[1:])]
        return min(orders, key=lambda o: self.error(o.order[:gone]))


@dataclasses.dataclass(frozen=True)
class Asking:
    """Asks about the spaces of one view.

    every: all of its readers; rows: of one sample, by their uses. gone: labels that a plan leaves out.
    passes: of the dense network; fit, held: samples to fit on, and samples that judge; whole: moments of all of these.
    ridge: of the refits that decide. rich: whether rows abound, so that nothing else asks for `whole`.
    """

    view: ChannelView
    every: Sequence[Readers]
    rows: Mapping[tuple[int, ...], int]
    gone: IntArray
    passes: Passes
    fit: IntArray
    held: IntArray
    whole: tuple[Dense, Dense]
    ridge: float
    rich: bool

    def about(self, space: ChannelSpace) -> Question:
        """What may be asked of a space."""
        stacks, removable = stacks_of(space, self.view, self.every), np.flatnonzero(~space.pinned)
        if self._by_rows:
            sights = [_sight(stack, *self._read) for stack in stacks]
            error = functools.partial(error_of, sights, ridge=self.ridge)
            return Question(error, functools.partial(eliminate_to, sights, removable))
        trials = trials_of(stacks, *self._moments)
        told = functools.partial(held_out_error, trials, ridge=self.ridge)
        return Question(told, functools.partial(eliminate_to, [t.reader for t in trials], removable))

    @functools.cached_property
    def _parts(self) -> tuple[IntArray, IntArray]:
        """As many of either share as it takes."""
        count = max((self._wanted(r) for r in self.every), default=1)
        judging = math.ceil(len(self.held) * count / max(len(self.fit), 1))
        return spread(self.fit, max(count, LEAST)), spread(self.held, max(judging, LEAST))

    @functools.cached_property
    def _read(self) -> list[Mapping[Columns, Array]]:
        return [self.passes.rows(part) for part in self._parts]

    @functools.cached_property
    def _moments(self) -> tuple[Dense, Dense]:
        fit, held = self._parts
        whole = len(fit) == len(self.fit) or not self.rich
        return self.whole if whole else (self.passes.moments(fit), self.passes.moments(held))

    def _wanted(self, readers: Readers) -> int:
        """Samples that have the rows to choose by at some readers."""
        left = int((~np.isin(readers.labels, self.gone)).sum())
        candidates = min(AHEAD * left, len(readers.labels)) // readers.groups
        return math.ceil(ROWS * candidates / self.rows[readers.uses])

    @property
    def _by_rows(self) -> bool:
        """Whether the rows are fewer numbers than moments of all columns, and these are not asked for otherwise."""
        columns = {c: r for r in self.every for c in r.columns}.values()
        rows = sum(len(self._parts[0]) * self.rows[r.uses] * len(r.labels) for r in columns)
        return self.rich and rows < sum(len(r.labels) ** 2 for r in columns)


def _sight(stack: Stack, fit: Mapping[Columns, Array], held: Mapping[Columns, Array]) -> Sight:
    means = [fit[c].mean(axis=0, dtype=np.float64) for c in stack.readers.columns]
    both = [
        [_about(share[c], mean, c) for c, mean in zip(stack.readers.columns, means, strict=True)]
        for share in (fit, held)
    ]
    first, second = (np.concatenate(parts)[:, stack.features] for parts in both)
    return Sight(stack.weight, stack.columns, first, second)


def _about(rows: Array, mean: FloatArray, columns: Columns) -> Array:
    """[n, Q] rows about their means; pooled: [n b, C]."""
    centred = columns.arranged(rows - mean.astype(np.float32))
    return centred.reshape(-1, centred.shape[-1])
