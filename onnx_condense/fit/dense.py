"""What readers read in the dense network, on one share of the samples, and the trials that channels stand there.

Part of the pipeline, beside `fit/fitting.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx

from onnx_condense.data import Samples
from onnx_condense.evidence import moments
from onnx_condense.evidence.columns import Columns
from onnx_condense.fit.reading import Readers
from onnx_condense.plan import ChannelSpace, ChannelView, FloatArray, IntArray, Moments
from onnx_condense.runtime import Array, Runtime
from onnx_condense.select.curves import Trial
from onnx_condense.select.obs import ReaderCost


class Dense:
    """Moments of what the readers read, collected when they are first asked for: a saved plan often needs none."""

    def __init__(self, collect: Callable[[], Mapping[Columns, Moments]]) -> None:
        self._collect = collect

    @functools.cached_property
    def found(self) -> Mapping[Columns, Moments]:
        """By columns."""
        return self._collect()

    def of(self, readers: Readers) -> Moments:
        """Of all that some readers read."""
        return functools.reduce(Moments.plus, (self.found[c] for c in readers.columns))


@dataclasses.dataclass(frozen=True)
class Passes:
    """Passes of a dense network for what is read in it.

    proto: with all weights inside; columns: of all readers; ranks: see `moments.collect`. samples: the source.
    runtime: how to run; batch: samples per pass at most.
    """

    proto: onnx.ModelProto
    columns: Sequence[Columns]
    ranks: Mapping[str, int]
    samples: Samples
    runtime: Runtime
    batch: int

    def moments(self, indices: IntArray) -> Dense:
        """Of some samples, when they are asked for."""

        def collect() -> Mapping[Columns, Moments]:
            pairs = [moments.with_itself(c) for c in self.columns]
            found = moments.collect(self.proto, pairs, self.ranks, self.samples, indices, self.runtime, self.batch)
            return dict(zip(self.columns, found, strict=True))

        return Dense(collect)

    def rows(self, indices: IntArray) -> Mapping[Columns, Array]:
        """The rows themselves."""
        found = moments.read_rows(self.proto, self.columns, self.ranks, self.samples, indices, self.runtime, self.batch)
        return dict(zip(self.columns, found, strict=True))


@dataclasses.dataclass(frozen=True)
class Stack:
    """Readers of the very same columns, stacked into one, or one group of these.

    readers: the first of them; features: of the group; weight: [O, K]; columns: of each channel, see `ReaderCost`.
    """

    readers: Readers
    features: slice
    weight: FloatArray
    columns: IntArray


def stacks_of(space: ChannelSpace, view: ChannelView, every: Iterable[Readers]) -> Iterator[Stack]:
    """What reads a space of a view; every: all readers."""
    found: dict[tuple[int, *tuple[Columns, ...]], list[Readers]] = {}
    for readers in every:
        if np.isin(readers.labels, space.channels[~space.pinned]).any():
            found.setdefault((readers.groups, *readers.columns), []).append(readers)
    for stack in found.values():
        for parts in zip(*(r.parts() for r in stack), strict=True):
            features = parts[0][1]
            weights = [r.weight[rows, features] for r, (rows, _) in zip(stack, parts, strict=True)]
            gains = [view.linear[r.uses[0]].gain for r in stack]
            # One alone is not copied: it may be as large as the covariance.
            weight = weights[0]
            if len(stack) > 1 or gains != [1.0]:
                weight = np.concatenate([w * gain for w, gain in zip(weights, gains, strict=True)])
            owned = stack[0].owned(space, features)
            # Other groups may have nothing of it.
            if owned.size:
                yield Stack(stack[0], features, weight, owned)


def trials_of(stacks: Iterable[Stack], fit: Dense, held: Dense) -> list[Trial]:
    """What channels stand there: fitted on one share, judged on another."""
    trials = []
    for _, parts in itertools.groupby(stacks, lambda stack: stack.readers.uses):
        group = list(parts)
        fitted, judging = (share.of(group[0].readers) for share in (fit, held))
        covariance, held_out = fitted.covariance, functools.cache(functools.partial(judging.about, fitted.left))
        for stack in group:
            cost = ReaderCost(stack.weight, covariance[stack.features, stack.features], stack.columns)
            trials.append(Trial(cost, functools.partial(_square, held_out, stack.features)))
    return trials


def _square(of: Callable[[], FloatArray], part: slice) -> FloatArray:
    return of()[part, part]
