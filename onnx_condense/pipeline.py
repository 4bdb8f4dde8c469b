"""condense(): the only place that knows the order of the stages."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnx_condense import budget, latency
from onnx_condense.cost import WidthCosts, count_macs, count_parameters
from onnx_condense.data import Samples, Shares, check_independent, input_specs, split
from onnx_condense.data import load as load_samples
from onnx_condense.draw import draw_feeds
from onnx_condense.errors import BudgetError, CalibrationError, ModelError, UsageError
from onnx_condense.evidence.weights import lossless_plan
from onnx_condense.fitting import Fitter
from onnx_condense.metrics import Judge, Measurement
from onnx_condense.model import Network, copy_unchanged, external_files, load, serialized, write_atomically
from onnx_condense.plan import IntArray, Plan
from onnx_condense.report.data import Change, ErrorSummary, Latency, Reason, RefusalRow, Report, SpaceRow
from onnx_condense.rewrite import apply_plan
from onnx_condense.runtime import CPU, Array, Runtime, limited_threads
from onnx_condense.spaces import find_spaces
from onnx_condense.verify import check_graph, check_numbers, rounding_level

DEFAULT_TOLERANCE = 0.01
CONFIDENCE = 0.95
# Samples per pass: moments want at most 1024 rows, large inputs fewer.
MAX_ROWS = 1024
MAX_ELEMENTS = 2**24
LATENCY_BATCH = 256

Progress = Callable[[str, float], None]
Calibration = Any


@dataclasses.dataclass(frozen=True)
class Condensed:
    """What condense() returns.

    model: the condensed network, or the one given where the status is "unchanged".
    plan: the plans applied, in order. report: see `report.data`.
    """

    model: onnx.ModelProto
    plan: tuple[Plan, ...]
    report: Report
    source: Network = dataclasses.field(repr=False)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the network by atomic rename; an unchanged one is a copy of the input, byte for byte.

        Raises:
            UsageError: the path can't be written.
        """
        if self.report.status == "unchanged":
            copy_unchanged(self.source, Path(path))
        else:
            write_atomically(Path(path), serialized(self.model))


@dataclasses.dataclass(frozen=True)
class _Goal:
    """What the user asked for. tolerance None: not a gate; keep None: as small as the tolerance allows."""

    tolerance: float | None
    keep: float | None
    allow_slower: bool
    seed: int


@dataclasses.dataclass(frozen=True)
class _Candidate:
    """A network on its way out, with the plans that made it."""

    model: onnx.ModelProto
    plans: tuple[Plan, ...]
    measured: Measurement
    back_offs: int = 0


def condense(  # noqa: PLR0913 - the options of the command, all by keyword
    model: str | os.PathLike[str] | onnx.ModelProto,
    *,
    calibration: Calibration = None,
    verification: Calibration = None,
    tolerance: float | None = None,
    keep: float | None = None,
    providers: Sequence[str] = CPU,
    threads: int = 0,
    seed: int = 0,
    allow_slower: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Condensed:
    """Condense a network.

    Args:
        model: path of an .onnx file, or a ModelProto (which is not changed).
        calibration: unlabeled inputs: a path (.npz, .npy, a folder), arrays by input name, or feeds;
            see `data.load`. Without it only what the weights prove redundant goes.
        verification: samples to judge the result on instead of a share of the calibration.
        tolerance: largest relative error allowed; 0.01 by default with calibration, lossless without.
        keep: share of parameters to keep, instead of a tolerance (or as well: then both must hold).
        providers: ONNX Runtime providers in fallback order.
        threads: for ONNX Runtime and BLAS alike; 0 leaves their defaults.
        seed: of the split and the drawn inputs.
        allow_slower: keep a result that was measured to be slower than the dense network.
        dry_run: noted in the report; nothing is written here in any case.
        progress: called with a stage and the share of the work done.

    Raises:
        ModelError, CalibrationError: the inputs can't be used. UsageError: options exclude each other.
        BudgetError: `keep` can't be reached. DefectError: the result disagrees with its own plan.
    """
    goal = _goal(calibration, verification, tolerance, keep, allow_slower=allow_slower, seed=seed)
    started = time.monotonic()
    runtime = Runtime(providers, threads)
    with limited_threads(threads):
        run = _Run(load(model), runtime, goal, progress or (lambda _, __: None))
        found = run.condense(calibration, verification)
    seconds = time.monotonic() - started
    return dataclasses.replace(found, report=dataclasses.replace(found.report, dry_run=dry_run, seconds=seconds))


def _goal(
    calibration: Calibration,
    verification: Calibration,
    tolerance: float | None,
    keep: float | None,
    *,
    allow_slower: bool,
    seed: int,
) -> _Goal:
    """Check options against each other before anything is read."""
    if tolerance is not None and not (0.0 <= tolerance < math.inf):
        raise UsageError("tolerance", f"--tolerance {tolerance}: give a number of at least 0")
    if keep is not None and not 0.0 < keep < 1.0:
        raise UsageError("keep", f"--keep {keep}: give a share between 0 and 1")
    if calibration is None:
        if tolerance:
            raise UsageError("tolerance", "--tolerance above 0 needs --calibration: there is nothing to measure it on")
        if keep is not None:
            raise UsageError("keep", "--keep needs --calibration: there is nothing to fit the smaller network on")
        if verification is not None:
            raise UsageError("verification", "--verification needs --calibration")
        tolerance = 0.0
    elif tolerance is None and keep is None:
        tolerance = DEFAULT_TOLERANCE
    if tolerance == 0.0 and keep is not None:
        raise UsageError("keep", "--keep and --tolerance 0 exclude each other: lossless steps can't aim at a size")
    return _Goal(tolerance, keep, allow_slower, seed)


class _Run:
    """One call of condense(): the stages in their order."""

    def __init__(self, network: Network, runtime: Runtime, goal: _Goal, progress: Progress) -> None:
        self.network, self.runtime, self.goal, self.progress = network, runtime, goal, progress
        self.view = find_spaces(network)
        self.notes: list[str] = []
        self.timings: tuple[Latency, ...] = ()
        self.parameters = count_parameters(network.proto)

    def condense(self, calibration: Calibration, verification: Calibration) -> Condensed:
        """From evidence to the report."""
        self.progress("looking at the weights", 0.02)
        session = self.runtime.session(self.network.path or self.network.proto)
        if calibration is None:
            return self._without_samples()
        specs = input_specs(self.network.proto.graph)
        samples = load_samples(calibration, specs)
        judged_by = samples if verification is None else load_samples(verification, specs)
        self.notes += [*samples.notes, *(judged_by.notes if verification is not None else ())]
        check_independent(samples, session, [o.name for o in session.get_outputs()])
        shares = split(samples, self.goal.seed, separate_verification=verification is not None)
        verify = shares.verify if verification is None else np.arange(len(judged_by))
        self.progress("running the dense network", 0.05)
        rows = _rows(judged_by, verify)
        judge = Judge(self.network.proto, judged_by, verify, self.runtime, rows, optimize=False)
        feeds = [next(iter(judged_by.batches(verify[:64], rows))).feed]
        exact = self._lossless(judge, feeds)
        timed = self._latency_feeds(judged_by, verify)
        if self.goal.tolerance == 0.0:
            return self._finished([exact] if exact else [], timed, len(verify))
        fitted = self._fitted(exact, judge, samples, shares, feeds)
        return self._finished([c for c in (fitted, exact) if c], timed, len(verify))

    # ---- lossless ----

    def _without_samples(self) -> Condensed:
        """Only what the weights prove; inputs are drawn if there is something to prove."""
        plan = lossless_plan(self.network, self.view)
        if not plan.selections:
            return self._finished([], [], 0)
        samples = _drawn(self.network, self.goal.seed)
        indices = np.arange(len(samples))
        try:
            judge = Judge(self.network.proto, samples, indices, self.runtime, 1, optimize=False)
        except (ModelError, CalibrationError) as error:
            raise ModelError(
                "drawn-inputs", f"the network does not take drawn inputs ({error.text}): give --calibration"
            ) from error
        feeds = [b.feed for b in samples.batches(indices)]
        exact = self._lossless(judge, feeds, plan)
        timed = [(int(np.shape(next(iter(feeds[0].values())))[0]) if _has_axis(feeds[0]) else 1, feeds[0])]
        return self._finished([exact] if exact else [], timed, len(samples))

    def _lossless(
        self, judge: Judge, feeds: Sequence[Mapping[str, Array]], plan: Plan | None = None
    ) -> _Candidate | None:
        """The lossless step, proved on the judge's samples; None where nothing can go."""
        plan = plan or lossless_plan(self.network, self.view)
        if not plan.selections:
            return None
        condensed = apply_plan(self.network, self.view, plan)
        check_graph(self.network.proto, condensed)
        check_numbers(self.network, self.view, plan, condensed, feeds, self.runtime)
        measured = judge.measure(condensed)
        bound = 64 * rounding_level(self.network, self.view)
        if not measured.value <= bound:
            self.notes.append(
                f"exact merges were given back: they changed the outputs by {measured.value:.1e}, "
                f"more than rounding explains ({bound:.1e})"
            )
            return None
        return _Candidate(condensed, (plan,), measured)

    # ---- fitted ----

    def _fitted(
        self,
        exact: _Candidate | None,
        judge: Judge,
        samples: Samples,
        shares: Shares,
        feeds: Sequence[Mapping[str, Array]],
    ) -> _Candidate | None:
        """Least-squares condensation on top of the lossless step."""
        network = Network(exact.model, self.network.path) if exact else self.network
        view = find_spaces(network) if exact else self.view
        self.progress("collecting moments", 0.1)
        fitter = Fitter(network, view, samples, shares.fit, shares.search, self.runtime)
        if not fitter.spaces:
            return None
        self.progress("probing spaces", 0.3)
        hunter = Judge(self.network.proto, samples, shares.search, self.runtime, _rows(samples, shares.search))
        path = _path(fitter, network, view, hunter)
        at = self._choose(path, fitter, hunter)
        self.progress("refitting", 0.75)
        fitter.use_all(shares.search)
        return self._prove(path, at, fitter, judge, feeds, exact)

    def _choose(self, path: Sequence[budget.Point], fitter: Fitter, hunter: Judge) -> int:
        """The stop on the path that the goal asks for."""
        count = 0

        def measure(at: int) -> float:
            nonlocal count
            count += 1
            self.progress("searching widths", min(0.35 + 0.05 * count, 0.75))
            _, model = fitter.plan(path[at].widths, sequential=True)
            return hunter.measure(model).upper(CONFIDENCE, self.goal.seed)

        reachable = len(path) - 1
        if self.goal.tolerance is not None:
            reachable = budget.search(path, measure, self.goal.tolerance)
        if self.goal.keep is None:
            return reachable
        wanted = self.goal.keep * self.parameters
        at = next((i for i, p in enumerate(path) if p.parameters <= wanted), len(path))
        if at > reachable:
            least = path[reachable].parameters / self.parameters
            within = f" within --tolerance {self.goal.tolerance}" if self.goal.tolerance is not None else ""
            raise BudgetError(
                "keep", f"--keep {self.goal.keep} can't be reached{within}: the smallest share is {_up(least)}"
            )
        return at

    def _prove(
        self,
        path: Sequence[budget.Point],
        at: int,
        fitter: Fitter,
        judge: Judge,
        feeds: Sequence[Mapping[str, Array]],
        exact: _Candidate | None,
    ) -> _Candidate | None:
        """Final refit and verification; backs off while the verify share says no."""
        back_offs = 0
        while at > 0:
            self.progress("verifying", 0.85)
            plan, condensed = fitter.plan(path[at].widths, sequential=True)
            check_graph(self.network.proto, condensed)
            check_numbers(fitter.network, fitter.view, plan, condensed, feeds, self.runtime)
            measured = judge.measure(condensed)
            if self.goal.tolerance is None or measured.value <= self.goal.tolerance:
                if count_parameters(condensed) >= self.parameters:
                    return None
                return _Candidate(condensed, (*(exact.plans if exact else ()), plan), measured, back_offs)
            back_offs += 1
            at = budget.back_off(path, at, back_offs)
            if self.goal.keep is not None:
                least = path[at].parameters / self.parameters
                raise BudgetError(
                    "keep",
                    f"--keep {self.goal.keep}: the error on the verify share is {measured.value:.4g}, above "
                    f"--tolerance {self.goal.tolerance}; about {_up(least)} is reachable",
                )
        return None

    # ---- end ----

    def _latency_feeds(self, samples: Samples, indices: IntArray) -> list[tuple[int, Mapping[str, Array]]]:
        """What to time: one sample, and a larger batch where the network takes one."""
        counts = (1, min(LATENCY_BATCH, len(indices))) if samples.sliced else (1,)
        timed = []
        for count in counts:
            batch = next(iter(samples.batches(indices[:count], count)))
            if len(batch.samples) == count:
                timed.append((count, batch.feed))
        return timed

    def _finished(
        self, candidates: Sequence[_Candidate], timed: Sequence[tuple[int, Mapping[str, Array]]], samples: int
    ) -> Condensed:
        """The first candidate that is not slower, or the dense network unchanged."""
        reason = None
        for candidate in candidates:
            self.progress("timing", 0.9)
            self.timings = self._time(candidate.model, timed)
            if self.goal.allow_slower or not self._slower(candidate.model, timed):
                return self._result(candidate, samples)
            slow = next(t for t in self.timings if t.verdict == "slower")
            reason = Reason(
                "slower",
                f"the condensed network was measured slower at batch {slow.batch} ({slow.speedup:.2f}x); "
                "--allow-slower takes it all the same",
            )
        self.timings = ()
        return self._result(None, samples, reason or self._nothing())

    def _time(self, model: onnx.ModelProto, timed: Sequence[tuple[int, Mapping[str, Array]]]) -> tuple[Latency, ...]:
        before, after = self._dense_bytes(), serialized(model)
        return tuple(latency.compare(before, after, feed, self.runtime, batch=batch) for batch, feed in timed)

    def _slower(self, model: onnx.ModelProto, timed: Sequence[tuple[int, Mapping[str, Array]]]) -> bool:
        before, after = self._dense_bytes(), serialized(model)
        return any(
            latency.slower(before, after, feed, self.runtime, seen=seen)
            for (_, feed), seen in zip(timed, self.timings, strict=True)
        )

    def _dense_bytes(self) -> bytes | Path:
        return self.network.path or serialized(self.network.proto)

    def _nothing(self) -> Reason:
        """Why the network stays as it is."""
        free = [s for s in self.view.spaces if not s.pinned.all() and s.readers]
        if not free:
            return Reason("nothing-free", "no hidden layer can be narrowed: every channel is pinned (see refusals)")
        if self.goal.tolerance == 0.0:
            return Reason("nothing-redundant", "the weights alone prove no channel redundant")
        if self.goal.tolerance is None:
            return Reason("nothing-smaller", "no narrower network has fewer parameters")
        return Reason("tolerance", f"no channel can go within tolerance {self.goal.tolerance}")

    def _result(self, candidate: _Candidate | None, samples: int, reason: Reason | None = None) -> Condensed:
        model = candidate.model if candidate else self.network.proto
        report = Report(
            status="condensed" if candidate else "unchanged",
            dry_run=False,
            reason=reason,
            parameters=Change(self.parameters, count_parameters(model)),
            macs=Change(count_macs(self.network.proto), count_macs(model)),
            bytes=Change(_size(self.network), len(serialized(model)) if candidate else _size(self.network)),
            error=self._error(candidate, samples) if candidate else None,
            latency=self.timings,
            spaces=self._space_rows(candidate.plans if candidate else ()),
            refusals=tuple(RefusalRow(r.space, r.node, r.reason) for r in self.view.refusals),
            notes=tuple(self.notes),
        )
        self.progress("done", 1.0)
        return Condensed(model, candidate.plans if candidate else (), report, self.network)

    def _error(self, candidate: _Candidate, samples: int) -> ErrorSummary:
        measured = candidate.measured
        return ErrorSummary(
            "relative", measured.value, self.goal.tolerance, samples, candidate.back_offs, measured.summary()
        )

    def _space_rows(self, plans: Sequence[Plan]) -> tuple[SpaceRow, ...]:
        rows = []
        for space in self.view.spaces:
            after, error = space.width, 0.0
            for plan in plans:
                for selection in plan.selections:
                    if selection.space == space.name:
                        after, error = len(selection.keep), plan.errors.get(space.name, 0.0)
            names = [tuple(self._place(i) for i in uses) for uses in (space.writers, space.readers)]
            rows.append(SpaceRow(space.name, *names, space.width, after, error))
        return tuple(rows)

    def _place(self, use: int) -> str:
        node = self.network.nodes[self.view.linear[use].weight.node]
        return node.name or node.outputs[0]


def _path(fitter: Fitter, network: Network, view: Any, hunter: Judge) -> list[budget.Point]:
    """Probe every space alone, then join the curves into one path."""
    costs = WidthCosts(network, view)
    full = [s.width for s in fitter.spaces]
    at = {s.name: i for i, s in enumerate(view.spaces)}
    curves = []
    for i, (space, elimination) in enumerate(zip(fitter.spaces, fitter.eliminations, strict=True)):
        probes = []
        for share in PROBES:
            removed = min(max(1, round(share * space.width)), len(elimination.order))
            widths = [*full[:i], space.width - removed, *full[i + 1 :]]
            _, model = fitter.plan(widths, sequential=False)
            probes.append((removed, hunter.measure(model).value ** 2))
        least = space.width - len(elimination.order)
        curves.append(budget.SpaceCurve(space.width, least, elimination.cost, tuple(dict(probes).items())))

    def saving(widths: Sequence[int], space: int, width: int) -> int:
        every = [s.width for s in view.spaces]
        for s, w in zip(fitter.spaces, widths, strict=True):
            every[at[s.name]] = w
        return costs.saving(every, at[fitter.spaces[space].name], width)

    return budget.greedy_path(curves, count_parameters(network.proto), saving)


PROBES = (0.5, 0.85)


def _rows(samples: Samples, indices: IntArray) -> int:
    """Samples per pass, fewer where one is large."""
    first = next(iter(samples.batches(indices[:1], 1))).feed
    size = max((np.size(a) for a in first.values()), default=1)
    return int(np.clip(MAX_ELEMENTS // max(size, 1), 1, MAX_ROWS))


def _drawn(network: Network, seed: int) -> Samples:
    """Drawn inputs as samples, one feed each."""
    return load_samples(draw_feeds(network.proto.graph, seed), input_specs(network.proto.graph))


def _has_axis(feed: Mapping[str, Array]) -> bool:
    return bool(feed) and np.ndim(next(iter(feed.values()))) > 0


def _size(network: Network) -> int:
    if network.path is None:
        return network.proto.ByteSize()
    return network.path.stat().st_size + sum(
        (network.path.parent / name).stat().st_size for name in external_files(network.proto)
    )


def _up(share: float) -> str:
    """A share rounded up to three digits, so that asking for it succeeds."""
    return f"{math.ceil(share * 1000) / 1000:.3f}"
