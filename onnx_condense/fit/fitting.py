"""The fitted plan of one network: moments, elimination orders, and for any widths the refitted readers.

Part of the pipeline: the one place that joins evidence, selection, compensation and rewrite.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import onnx

from onnx_condense.data import Samples, spread
from onnx_condense.evidence import moments
from onnx_condense.evidence.columns import Columns
from onnx_condense.evidence.moments import PREFIX, Pair
from onnx_condense.evidence.stages import Ahead, Stages
from onnx_condense.fit.asking import Asking
from onnx_condense.fit.choices import Choice, settled
from onnx_condense.fit.compensate import refit
from onnx_condense.fit.dense import Dense, Passes, stacks_of, trials_of
from onnx_condense.fit.narrowed import narrowed
from onnx_condense.fit.reading import FULL, RICH, Readers, find_readers, pooled, stages_of
from onnx_condense.fit.turning import Turns
from onnx_condense.grids import Move
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
from onnx_condense.proving.verify import blaming, check_tensors
from onnx_condense.rewrite import apply_plan
from onnx_condense.runtime import Runtime, release
from onnx_condense.select.curves import Trial, best_judged, judged, overfits
from onnx_condense.select.obs import Elimination, eliminate

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
        moves: by space, what was done with channels of groups and heads before.
    """

    moves: Mapping[str, Move] = MappingProxyType({})

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
        products = sum(r.products(count) for r, count in zip(self._readers, of_one, strict=True))
        self.light = (work + products) * len(self._fit_rows) <= LIGHT_WORK
        self._rows_of = {r.uses: r.rows(count) for r, count in zip(self._readers, of_one, strict=True)}
        taken = max((c.take for r in self._readers for c in r.columns), default=0)
        # Few enough samples per pass for exact sums in fp32 and for the memory that patches need.
        self._batch = max(1, min(moments.ROWS, PASS_ROWS // max(taken, 1), PASS_ELEMENTS // max(held, 1)))
        self._settled = stages_of(network, view, self._readers)
        columns = sorted({c for r in self._readers for c in r.columns}, key=repr)
        self._passes = Passes(self._proto, columns, self._ranks(), samples, runtime, self._batch)
        self._fit, self._held = self._passes.moments(self._fit_rows), self._passes.moments(search)
        self._use_held, self._own = False, len(self._fit_rows)
        self._rows: dict[tuple[int, ...], float] = {}
        self._ridge_of: dict[tuple[tuple[int, ...], bytes], float] = {}
        self._turns = Turns(network, view, (SELECTION_RIDGE, *CAREFUL_RIDGES), USUAL_RIDGE)
        self.anew: dict[str, float] = {}
        if orders is None:
            self.eliminations = tuple(self._turns.decide(s, self.eliminated(s), self.trials) for s in self.spaces)
        else:
            asking = self._asking(orders, search)
            pairs = zip(orders, self.spaces, strict=True)
            self.eliminations = tuple(self._ordered_by(order, s, asking) for order, s in pairs)
        if self._turns.found:
            self._fit, self._held = (self._turned(share) for share in (self._fit, self._held))
            self._readers = self._turns.readers(self._readers)

    def use_all(self, search: IntArray) -> None:
        """From now on fit on fit + search together; ridges are still chosen with search held out."""
        self._use_held = True
        self._rows = {}
        self._fit_rows = np.sort(np.concatenate([self._fit_rows, search]))

    def rows_per_channel(self, widths: Sequence[int]) -> Mapping[str, float]:
        """Rows fitted on over columns kept, of each narrowed space at the reader where that is least."""
        selections, _ = narrowed(self.view, self.spaces, self.eliminations, widths)
        gone = list(Plan("fitted", selections, ()).dropped(self.view.spaces))
        channels = {s.name: s.channels for s in self.spaces}
        found = {}
        for name in (s.space for s in selections):
            readers = [r for r in self._readers if np.isin(r.labels, channels[name]).any()]
            rows = [self._fitted_on(r) * max(r.pooled, 1) for r in readers]
            kept = [max(int((~np.isin(r.labels, gone)).sum()) // r.groups, 1) for r in readers]
            found[name] = min((n / k for n, k in zip(rows, kept, strict=True)), default=math.inf)
        return found

    def _rich(self, touched: Iterable[Readers], gone: Iterable[int]) -> bool:
        """Whether all of these readers have rows enough for any ridge to do, without some channels."""
        lost = np.fromiter(gone, np.int64)
        kept = [(self._rows_of[r.uses], int((~np.isin(r.labels, lost)).sum()) // r.groups) for r in touched]
        return all(self._own * rows >= RICH * count for rows, count in kept)

    def _fitted_on(self, readers: Readers) -> float:
        """Rows, as counted by the last refit, if there was one: moments may not be at hand."""
        known = self._rows.get(readers.uses)
        return sum(m.count for m in self._learned(readers)) if known is None else known

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

    def _turned(self, share: Dense) -> Dense:
        found = self._turns.moments(share.found, self._readers)
        return Dense(lambda: found)

    def _learned(self, readers: Readers) -> list[Moments]:
        """What is fitted on; apart, as the sum would be as large again."""
        sources = (self._fit, self._held) if self._use_held else (self._fit,)
        return [source.of(readers) for source in sources]

    # ---- selection ----

    @property
    def readers(self) -> Sequence[Readers]:
        """What reads the spaces."""
        return self._readers

    def eliminated(self, space: ChannelSpace, readers: Sequence[Readers] | None = None) -> Elimination:
        """Order and cost for one space; where the fit share says too little, what does best on the search share.

        readers: with other labels, by which they see the space.
        """
        trials = self.trials(space, readers)
        removable = np.flatnonzero(~space.pinned)
        costs = [t.reader for t in trials]
        first = eliminate(costs, removable, SELECTION_RIDGE)
        release()
        if not trials or not len(first.order) or not overfits(first, trials, USUAL_RIDGE):
            return first
        orders = [first, *(eliminate(costs, removable, ridge) for ridge in CAREFUL_RIDGES)]
        return best_judged(orders, trials, USUAL_RIDGE)

    def _asking(self, orders: Sequence[Elimination | Choice], search: IntArray) -> Asking:
        """What tells whether the channels of a plan do."""
        gone = [s.channels[o.gone] for s, o in zip(self.spaces, orders, strict=True) if isinstance(o, Choice)]
        lost, whole = np.concatenate([np.empty(0, np.int64), *gone]), (self._fit, self._held)
        shares, rich = (self._passes, self._fit_rows, search), self._rich(self._readers, lost)
        return Asking(self.view, self._readers, self._rows_of, lost, *shares, whole, USUAL_RIDGE, rich)

    def _ordered_by(self, order: Elimination | Choice, space: ChannelSpace, asking: Asking) -> Elimination:
        """The order that was given, with its cost on held-out samples."""
        if isinstance(order, Elimination):
            return judged(order, self.trials(space), USUAL_RIDGE)
        if order.mixed:
            return self._turns.mixed_to(order.mixed, space, self.trials(space))
        if order.exact or not order.gone.size:
            return order.as_planned()
        gone, question = len(order.gone), asking.about(space)
        left = int((~space.pinned).sum()) - gone
        anew = functools.partial(question.chosen, left, gone, (SELECTION_RIDGE, *CAREFUL_RIDGES))
        found, worse = settled(order, question.error, anew)
        if worse is not None:
            self.anew[space.name] = worse
        return found

    def trials(self, space: ChannelSpace, seeing: Sequence[Readers] | None = None) -> list[Trial]:
        """What reads a space, on the whole shares; seeing: the readers, with other labels."""
        readers = self._readers if seeing is None else seeing
        return trials_of(stacks_of(space, self.view, readers), self._fit, self._held)

    # ---- plans ----

    def plan(self, widths: Sequence[int], *, sequential: bool) -> tuple[Plan, onnx.ModelProto]:
        """The plan for given widths (one per space of `spaces`) and the network it makes.

        sequential: refit stage by stage on what the already condensed prefix delivers, towards dense targets, with
        ridges chosen on held-out samples; otherwise, for probes, every reader is refitted once on the dense
        network's own activations. These serve the first stage, too, as long as their moments are at hand: after
        `use_all` it is like the others where rows abound, so that a saved plan needs none for the same bytes. Mixed
        channels need them anyway, and are exacter by them.
        """
        selections, errors = narrowed(self.view, self.spaces, self.eliminations, widths)
        gone = Plan("fitted", selections, ()).dropped(self.view.spaces)
        touched = [r for r in self._readers if np.isin(r.labels, list(gone)).any()]
        updates: dict[int, ReaderUpdate] = {}
        rotations = self._turns.rotations(selections)
        first = 0 if self._use_held and not rotations and self._rich(touched, gone) else 1
        for readers in touched:
            if readers.level >= first and sequential:
                # Its stage comes.
                self._started(readers, gone, updates)
            else:
                self._refit(readers, gone, updates, None, careful=sequential)
        plan = Plan("fitted", selections, _ordered(updates), errors, rotations)
        condensed = apply_plan(self.network, self.view, plan)
        if sequential:
            stages = self._stages(touched)
            for level in sorted({r.level for r in touched if r.level >= first}):
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
        check_tensors(condensed, (c.tensor for c in columns))
        with blaming(self._proto, condensed):
            found = stages.collect(condensed, pairs, self._ranks(), stage[0].level)
        crossed = {c: (found[2 * i], found[2 * i + 1]) for i, c in enumerate(columns)}
        for readers in stage:
            parts = [crossed[c] for c in readers.columns]
            cross = self._turns.left(readers, functools.reduce(Moments.plus, (c for c, _ in parts)))
            kept = functools.reduce(Moments.plus, (k for _, k in parts))
            self._refit(readers, gone, updates, (cross, kept), careful=True)

    def _started(self, readers: Readers, gone: frozenset[int], updates: dict[int, ReaderUpdate]) -> None:
        """The dense columns of what stays: what lies behind them is not looked at before they are refitted."""
        weight = np.where(np.isin(readers.labels, list(gone)), 0.0, readers.weight)
        matrix = readers.matrix(self._turns.weight(readers, weight))
        updates.update((use, ReaderUpdate(use, matrix, np.zeros(len(matrix)))) for use in readers.uses)

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
        self._rows[readers.uses] = joint[1].count
        weight = np.zeros_like(readers.weight)
        offsets = []
        for rows, features in readers.parts():
            part = _Part(readers.weight[rows, features], features, *np.searchsorted(keep, _ends(features)))
            own = keep[part.first : part.last]
            ridge = self._ridge(readers, part, own, joint[1].count) if careful else USUAL_RIDGE
            fitted, offset = refit(part.weight, *part.moments(*joint), own - features.start, ridge)
            weight[rows, own] = fitted
            offsets.append(offset)
        for use in readers.uses:
            offset = np.concatenate(offsets) * self.view.linear[use].gain
            updates[use] = ReaderUpdate(use, readers.matrix(self._turns.weight(readers, weight)), offset)

    def _ridge(self, readers: Readers, part: _Part, keep: IntArray, rows: float) -> float:
        """The ridge whose one-shot refit does best on the search share; the smallest where rows abound.

        rows: that are fitted on, with those of the search share once these are too.
        """
        if rows * self._own / len(self._fit_rows) * max(readers.pooled, 1) >= RICH * len(keep):
            return USUAL_RIDGE
        # What is kept tells more than how much: the same channels get the same ridge, whatever was tried before.
        key = (*readers.uses, part.features.start), keep.tobytes()
        if key not in self._ridge_of:
            dense, held = self._fit.of(readers), self._held.of(readers)
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


def _ends(part: slice) -> tuple[int, int]:
    return part.start, part.stop


def _ordered(updates: Mapping[int, ReaderUpdate]) -> tuple[ReaderUpdate, ...]:
    return tuple(updates[i] for i in sorted(updates))
