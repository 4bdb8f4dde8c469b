"""The fitted plan of one network: moments, elimination orders, and for any widths the refitted readers.

Part of the pipeline: the one place that joins evidence, selection, compensation and rewrite.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx

from onnx_condense.data import Samples, spread
from onnx_condense.evidence import moments
from onnx_condense.evidence.columns import Columns
from onnx_condense.evidence.moments import PREFIX, Pair
from onnx_condense.evidence.stages import Ahead, Stages
from onnx_condense.fit.choices import Choice, settled
from onnx_condense.fit.compensate import refit
from onnx_condense.fit.narrowed import narrowed
from onnx_condense.fit.reading import FULL, RICH, Readers, find_readers, pooled, stages_of
from onnx_condense.fit.turning import Turns
from onnx_condense.network.model import Network, inlined
from onnx_condense.plan import (
    ChannelSpace,
    ChannelView,
    FloatArray,
    IntArray,
    Moments,
    Plan,
    ReaderUpdate,
)
from onnx_condense.proving.verify import blaming
from onnx_condense.rewrite import apply_plan
from onnx_condense.runtime import Runtime, release
from onnx_condense.select.curves import OVERFIT, Trial, best_judged, held_out_error, judged, overfits
from onnx_condense.select.obs import Elimination, ReaderCost, eliminate
from onnx_condense.select.pivots import eliminate_to

SELECTION_RIDGE = 1e-5
# Tried where that order does badly on samples that it did not see.
CAREFUL_RIDGES = (1e-2, 1e-1, 1.0)
# Relative to the mean variance. With RICH rows per kept column the choice does not matter (docs/benchmarks.md).
USUAL_RIDGE = 1e-4
# The last one is next to leaving the dense weights as they are: the guard against fits that held-out samples deny.
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1e3)
# Rows to look at in all, of tensors that have many per sample: at least, and per column.
LEAST_ROWS = 2**14
ROWS_PER_COLUMN = 20
# Rows and numbers that one pass may sum and hold.
PASS_ROWS = 2**13
PASS_ELEMENTS = 2**23
# Multiply-accumulates that one pass for moments may cost: of larger networks fewer samples are fitted on, but some.
PASS_WORK = 10**12
LEAST_SAMPLES = 256
# Multiply-accumulates of readers and moments above which the search does not refit stage by stage at every stop.
LIGHT_WORK = 2 * 10**10


class Fitter:
    """Fits plans for one network on one calibration set.

    Args:
        network, view: what to condense; samples: the source; fit: samples to fit on; search: held-out samples
        for choosing the ridge; runtime: how to run.
        orders: in which channels go, one per space, where something else than the least-squares error decides; or
            choices of a saved plan.

    Attributes:
        spaces: those that can be narrowed; eliminations: the order in which channels go, one per space.
        light: whether refitting stage by stage is cheap enough to be done at every step of a search.
        anew: spaces whose channels were chosen anew, and how many times worse the choice of the plan would do.
        places: by space, where channels of groups were moved before.
    """

    def __init__(
        self,
        network: Network,
        view: ChannelView,
        samples: Samples,
        fit: IntArray,
        search: IntArray,
        runtime: Runtime,
        orders: Sequence[Elimination | Choice] | None = None,
    ) -> None:
        self.network, self.view = network, view
        self._samples, self._runtime = samples, runtime
        self._proto = inlined(network)
        self.spaces = tuple(s for s in view.spaces if s.reducible)
        self._fit_rows = fit
        self._readers = find_readers(network, view, self.spaces)
        rows = self._count_rows()
        # Multiply-accumulates of one sample, as far as they are the readers'.
        work = max(1, sum(rows[c] * r.weight.size for r in self._readers for c in r.columns))
        self._fit_rows = spread(fit, max(LEAST_SAMPLES, PASS_WORK // work))
        held = max((rows[c] * len(r.labels) for r in self._readers for c in r.columns), default=1)
        of_one = [max(rows[c] for c in r.columns) for r in self._readers]
        self._readers = [self._laid_out(r, count) for r, count in zip(self._readers, of_one, strict=True)]
        products = sum(_products(r, count) for r, count in zip(self._readers, of_one, strict=True))
        self.light = (work + products) * len(self._fit_rows) <= LIGHT_WORK
        taken = max((c.take for r in self._readers for c in r.columns), default=0)
        # Few enough samples per pass for exact sums in fp32 and for the memory that patches need.
        self._batch = min(moments.ROWS, PASS_ROWS // max(taken, 1), PASS_ELEMENTS // max(held, 1))
        self._batch = max(self._batch, 1)
        self._settled = stages_of(network, view, self._readers)
        self._fit = self._dense(self._fit_rows)
        self._held = self._dense(search)
        self._use_held = False
        self._ridge_of: dict[tuple[tuple[int, ...], bytes], float] = {}
        self._turns = Turns(network, view, (SELECTION_RIDGE, *CAREFUL_RIDGES), USUAL_RIDGE)
        self.anew: dict[str, float] = {}
        self.places: Mapping[str, IntArray] = {}
        if orders is None:
            self.eliminations = tuple(self._turns.decide(s, self.eliminated(s), self._trials) for s in self.spaces)
        else:
            pairs = zip(orders, self.spaces, strict=True)
            self.eliminations = tuple(self._ordered_by(order, s) for order, s in pairs)
        self._fit, self._held = (self._turns.moments(m, self._readers) for m in (self._fit, self._held))
        self._readers = self._turns.readers(self._readers)

    def use_all(self, search: IntArray) -> None:
        """From now on fit on fit + search together; ridges are still chosen with search held out."""
        self._use_held = True
        self._fit_rows = np.sort(np.concatenate([self._fit_rows, search]))

    def rows_per_channel(self, widths: Sequence[int]) -> Mapping[str, float]:
        """Rows fitted on over columns kept, of each narrowed space at the reader where that is least."""
        selections, _ = narrowed(self.view, self.spaces, self.eliminations, widths)
        gone = list(Plan("fitted", selections, ()).dropped(self.view.spaces))
        channels = {s.name: s.channels for s in self.spaces}
        found = {}
        for name in (s.space for s in selections):
            readers = [r for r in self._readers if np.isin(r.labels, channels[name]).any()]
            rows = [sum(m.count for m in self._learned(r)) * max(r.pooled, 1) for r in readers]
            kept = [max(int((~np.isin(r.labels, gone)).sum()) // r.groups, 1) for r in readers]
            found[name] = min((n / k for n, k in zip(rows, kept, strict=True)), default=math.inf)
        return found

    # ---- moments ----

    def _count_rows(self) -> dict[Columns, int]:
        """Rows of one sample, by columns."""
        columns = sorted({c for r in self._readers for c in r.columns}, key=repr)
        found = moments.count_rows(self._proto, columns, self._ranks(), self._samples, self._fit_rows, self._runtime)
        return dict(zip(columns, found, strict=True))

    def _laid_out(self, readers: Readers, rows: int) -> Readers:
        """The readers with columns pooled and rows thinned out as time and samples ask for.

        rows: of one sample.
        """
        taps = self.view.linear[readers.uses[0]].taps
        few = rows * len(self._fit_rows) < RICH * len(readers.labels)
        alike = pooled(readers, taps) if few or len(readers.labels) > FULL else None
        chosen = alike or readers
        wanted = max(LEAST_ROWS, ROWS_PER_COLUMN * len(chosen.labels) // max(chosen.pooled, 1))
        take = math.ceil(wanted / len(self._fit_rows))
        if take >= rows:
            return chosen
        columns = tuple(dataclasses.replace(c, take=take) for c in chosen.columns)
        return dataclasses.replace(chosen, columns=columns)

    def _ranks(self) -> dict[str, int]:
        ranks = {c.tensor: len(self.network.shape(c.tensor) or ()) for r in self._readers for c in r.columns}
        return ranks | {PREFIX + name: rank for name, rank in ranks.items()}

    def _dense(self, indices: IntArray) -> dict[Columns, Moments]:
        columns = sorted({c for r in self._readers for c in r.columns}, key=repr)
        pairs = [moments.with_itself(c) for c in columns]
        found = moments.collect(self._proto, pairs, self._ranks(), self._samples, indices, self._runtime, self._batch)
        return dict(zip(columns, found, strict=True))

    def _summed(self, source: Mapping[Columns, Moments], readers: Readers) -> Moments:
        return functools.reduce(Moments.plus, (source[c] for c in readers.columns))

    def _learned(self, readers: Readers) -> list[Moments]:
        """What is fitted on; apart, as the sum would be as large again."""
        sources = (self._fit, self._held) if self._use_held else (self._fit,)
        return [self._summed(source, readers) for source in sources]

    # ---- selection ----

    @property
    def readers(self) -> Sequence[Readers]:
        """What reads the spaces."""
        return self._readers

    def eliminated(self, space: ChannelSpace, readers: Sequence[Readers] | None = None) -> Elimination:
        """Order and cost for one space; where the fit share says too little, what does best on the search share.

        readers: with other labels, by which they see the space.
        """
        trials = self._trials(space, readers)
        removable = np.flatnonzero(~space.pinned)
        costs = [t.reader for t in trials]
        first = eliminate(costs, removable, SELECTION_RIDGE)
        release()
        if not trials or not len(first.order) or not overfits(first, trials, USUAL_RIDGE):
            return first
        orders = [first, *(eliminate(costs, removable, ridge) for ridge in CAREFUL_RIDGES)]
        return best_judged(orders, trials, USUAL_RIDGE)

    def _eliminate_to(self, space: ChannelSpace, trials: Sequence[Trial], gone: int) -> Elimination:
        """An order of which only the first so many will go; the one that does best on the search share."""
        removable = np.flatnonzero(~space.pinned)
        readers, left = [t.reader for t in trials], len(removable) - gone
        first = eliminate_to(readers, removable, left, SELECTION_RIDGE)
        release()
        if not trials or held_out_error(trials, first.order[:gone], USUAL_RIDGE) <= OVERFIT * first.cost[gone]:
            return first
        orders = [first, *(eliminate_to(readers, removable, left, ridge) for ridge in CAREFUL_RIDGES)]
        return min(orders, key=lambda o: held_out_error(trials, o.order[:gone], USUAL_RIDGE))

    def _ordered_by(self, order: Elimination | Choice, space: ChannelSpace) -> Elimination:
        """The order that was given, with its cost on held-out samples."""
        trials = self._trials(space)
        if isinstance(order, Elimination):
            return judged(order, trials, USUAL_RIDGE)
        if order.mixed:
            return self._turns.mixed_to(order.mixed, space, trials)
        anew = functools.partial(self._eliminate_to, space, trials, len(order.gone))
        found, worse = settled(order, trials, anew, USUAL_RIDGE)
        if worse is not None:
            self.anew[space.name] = worse
        return found

    def _trials(self, space: ChannelSpace, seeing: Sequence[Readers] | None = None) -> list[Trial]:
        """What reads a space; readers of the very same columns are stacked into one."""
        stacks: dict[tuple[int, *tuple[Columns, ...]], list[Readers]] = {}
        for readers in self._readers if seeing is None else seeing:
            if np.isin(readers.labels, space.channels[~space.pinned]).any():
                stacks.setdefault((readers.groups, *readers.columns), []).append(readers)
        trials = []
        for stack in stacks.values():
            fit, held = self._summed(self._fit, stack[0]), self._summed(self._held, stack[0])
            covariance, held_out = fit.covariance, functools.cache(functools.partial(held.about, fit.left))
            for parts in zip(*(r.parts() for r in stack), strict=True):
                features = parts[0][1]
                weights = [r.weight[rows, features] for r, (rows, _) in zip(stack, parts, strict=True)]
                gains = [self.view.linear[r.uses[0]].gain for r in stack]
                # One alone is not copied: it may be as large as the covariance.
                weight = weights[0]
                if len(stack) > 1 or gains != [1.0]:
                    weight = np.concatenate([w * gain for w, gain in zip(weights, gains, strict=True)])
                owned = stack[0].owned(space, features)
                if owned.size:
                    cost = ReaderCost(weight, covariance[features, features], owned)
                    trials.append(Trial(cost, functools.partial(_square, held_out, features)))
        return trials

    # ---- plans ----

    def plan(self, widths: Sequence[int], *, sequential: bool) -> tuple[Plan, onnx.ModelProto]:
        """The plan for given widths (one per space of `spaces`) and the network it makes.

        sequential: refit stage by stage on what the already condensed prefix delivers, towards dense targets, with
        ridges chosen on held-out samples; otherwise, for probes, every reader is refitted once on the dense
        network's own activations.
        """
        selections, errors = narrowed(self.view, self.spaces, self.eliminations, widths)
        gone = Plan("fitted", selections, ()).dropped(self.view.spaces)
        touched = [r for r in self._readers if np.isin(r.labels, list(gone)).any()]
        updates: dict[int, ReaderUpdate] = {}
        for readers in touched:
            # Readers further down only want a start: their stage comes.
            careful = sequential and readers.level == 0
            self._refit(readers, gone, updates, None, careful=careful)
        rotations = self._turns.rotations(selections)
        plan = Plan("fitted", selections, _ordered(updates), errors, rotations)
        condensed = apply_plan(self.network, self.view, plan)
        if sequential:
            stages = self._stages(touched)
            for level in sorted({r.level for r in touched} - {0}):
                stage = [r for r in touched if r.level == level]
                self._refit_stage(stages, stage, gone, updates, condensed)
                plan = dataclasses.replace(plan, updates=_ordered(updates))
                condensed = apply_plan(self.network, self.view, plan)
        return plan, condensed

    def _stages(self, touched: Sequence[Readers]) -> Stages:
        ends: dict[int, frozenset[str]] = {}
        for readers in touched:
            ends[readers.level] = ends.get(readers.level, frozenset()) | {c.tensor for c in readers.columns}
        return Stages(
            self.network,
            self._proto,
            Ahead(self._settled, ends),
            self._samples,
            self._fit_rows,
            self._batch,
            self._runtime,
        )

    def _refit_stage(
        self,
        stages: Stages,
        stage: Sequence[Readers],
        gone: frozenset[int],
        updates: dict[int, ReaderUpdate],
        condensed: onnx.ModelProto,
    ) -> None:
        """Refit the readers of one level on joint moments of the dense and the condensed network."""
        columns = sorted({c for r in stage for c in r.columns}, key=repr)
        others = [dataclasses.replace(c, tensor=PREFIX + c.tensor) for c in columns]
        pairs = [p for c, o in zip(columns, others, strict=True) for p in (Pair(c, o), moments.with_itself(o))]
        with blaming(self._proto, condensed):
            found = stages.collect(condensed, pairs, self._ranks(), stage[0].level)
        crossed = {c: (found[2 * i], found[2 * i + 1]) for i, c in enumerate(columns)}
        for readers in stage:
            parts = [crossed[c] for c in readers.columns]
            cross = self._turns.left(readers, functools.reduce(Moments.plus, (c for c, _ in parts)))
            kept = functools.reduce(Moments.plus, (k for _, k in parts))
            self._refit(readers, gone, updates, (cross, kept), careful=True)

    def _refit(
        self,
        readers: Readers,
        gone: frozenset[int],
        updates: dict[int, ReaderUpdate],
        joint: tuple[Moments, Moments] | None,
        *,
        careful: bool,
    ) -> None:
        keep = np.flatnonzero(~np.isin(readers.labels, list(gone)))
        if joint is None:
            dense, everything = self._learned(readers), np.arange(len(readers.labels))
            cross, kept = ([m.part(left, keep) for m in dense] for left in (everything, keep))
            joint = functools.reduce(Moments.plus, cross), functools.reduce(Moments.plus, kept)
        weight = np.zeros_like(readers.weight)
        offsets = []
        for rows, features in readers.parts():
            part = _Part(readers.weight[rows, features], features, *np.searchsorted(keep, _ends(features)))
            own = keep[part.first : part.last]
            ridge = self._ridge(readers, part, own) if careful else USUAL_RIDGE
            fitted, offset = refit(part.weight, *part.moments(*joint), own - features.start, ridge)
            weight[rows, own] = fitted
            offsets.append(offset)
        for use in readers.uses:
            offset = np.concatenate(offsets) * self.view.linear[use].gain
            updates[use] = ReaderUpdate(use, readers.matrix(self._turns.weight(readers, weight)), offset)

    def _ridge(self, readers: Readers, part: _Part, keep: IntArray) -> float:
        """The ridge whose one-shot refit does best on the search share; the smallest where rows abound."""
        dense, held = self._summed(self._fit, readers), self._summed(self._held, readers)
        if dense.count * max(readers.pooled, 1) >= RICH * len(keep):
            return USUAL_RIDGE
        # What is kept tells more than how much: the same channels get the same ridge, whatever was tried before.
        key = (*readers.uses, part.features.start), keep.tobytes()
        if key not in self._ridge_of:
            everything, local = np.arange(part.features.start, part.features.stop), keep - part.features.start
            cross, kept = dense.part(everything, keep), dense.part(keep, keep)
            target = part.weight @ held.part(everything, keep).covariance
            own = held.part(keep, keep).covariance

            def held_out_error(ridge: float) -> float:
                fitted, _ = refit(part.weight, cross, kept, local, ridge)
                return float(np.einsum("ij,ij->", fitted @ own - 2 * target, fitted))

            self._ridge_of[key] = min(RIDGES, key=held_out_error)
        return self._ridge_of[key]


@dataclasses.dataclass(frozen=True)
class _Part:
    """One group of readers: its weight, its features, and where those that stay lie among all that stay."""

    weight: FloatArray
    features: slice
    first: int
    last: int

    def moments(self, cross: Moments, kept: Moments) -> tuple[Moments, Moments]:
        """Those of this part out of those of all features with all that stay."""
        if self.last - self.first == kept.left.shape[-1]:
            return cross, kept
        own, left = np.arange(self.first, self.last), np.arange(self.features.start, self.features.stop)
        return cross.part(left, own), kept.part(own, own)


def _products(readers: Readers, rows: int) -> int:
    """Multiply-accumulates of the moments of what they read in one sample; rows: that it has."""
    used = min(readers.columns[0].take or rows, rows) * max(readers.pooled, 1)
    return len(readers.columns) * used * len(readers.labels) ** 2


def _square(of: Callable[[], FloatArray], part: slice) -> FloatArray:
    return of()[part, part]


def _ends(part: slice) -> tuple[int, int]:
    return part.start, part.stop


def _ordered(updates: Mapping[int, ReaderUpdate]) -> tuple[ReaderUpdate, ...]:
    return tuple(updates[i] for i in sorted(updates))
