"""condense(): the only place that knows the order of the stages."""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx

from onnx_condense import coverage
from onnx_condense.autogrid import measured_grid
from onnx_condense.candidates import Maker, Progress
from onnx_condense.control import Control
from onnx_condense.data import SMALLEST_SHARE, Samples, check_independent, input_specs, split
from onnx_condense.data import load as load_samples
from onnx_condense.errors import BudgetError, CalibrationError
from onnx_condense.front import Member, members
from onnx_condense.goal import Goal, Threshold, by_pattern, check_goal
from onnx_condense.heat import kept_channels
from onnx_condense.held import held_by
from onnx_condense.limits import AUTO, Limits, Multiple
from onnx_condense.methods import thresholds
from onnx_condense.model import Network, inlined, load
from onnx_condense.outcome import Candidate, Condensed, condensed_report, unchanged_report, why_unchanged
from onnx_condense.plan import Plan
from onnx_condense.plans import Document
from onnx_condense.proof import Proof, Prover
from onnx_condense.provenance import origin, provenance, result_digest, source_digest
from onnx_condense.report.data import Evidence, Latency, Reason, Report, WidthTiming
from onnx_condense.reuse import Origins, Reuse, document_of, goal_by, saved, wish_by
from onnx_condense.runtime import CPU, Runtime, Session, limited_threads, release
from onnx_condense.synthetic import NOTE, NOTE_JUDGED, Synthetic, draw_samples, wish_of
from onnx_condense.yardstick import RELATIVE, Metric, Tolerance, wish_for, yardstick

Calibration = Any


def condense(  # noqa: PLR0913 - the options of the command, all by keyword
    model: str | os.PathLike[str] | onnx.ModelProto,
    *,
    calibration: Calibration = None,
    verification: Calibration = None,
    tolerance: Tolerance = None,
    metric: Metric = RELATIVE,
    keep: float | None = None,
    max_parameters: int | None = None,
    max_macs: int | None = None,
    max_bytes: int | None = None,
    max_latency: float | None = None,
    speedup: float | None = None,
    multiple_of: Multiple = None,
    front: bool = False,
    providers: Sequence[str] = CPU,
    threads: int = 0,
    seed: int = 0,
    allow_slower: bool = False,
    augment: int = 0,
    method: str = "fit",
    threshold: Threshold = None,
    also_verify: Sequence[str] = (),
    batches: Sequence[int] = (),
    footprint: bool = False,
    profile: bool = False,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    min_width: int | None = None,
    max_cut: float | None = None,
    plan: Document | str | os.PathLike[str] | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Condensed:
    """Condense a network.

    Args:
        model: path of an .onnx file, or a ModelProto (which is not changed).
        calibration: unlabeled inputs: a path (.npz, .npy, a folder), arrays by input name, or feeds;
            see `data.load`; "synthetic" or "synthetic:N": inputs are drawn, see `synthetic`. Without it only what
            the weights prove redundant goes.
        verification: samples to judge the result on instead of a share of the calibration.
        tolerance: largest error allowed; 0.01 by default with calibration, lossless without. By patterns of output
            names as well: the last that matches counts, "*" holds for all others.
        metric: "relative", "per-feature", "max-abs", "agreement", or f(dense, condensed) -> errors of a pass's
            samples; see `yardstick`. max-abs and functions have no default tolerance.
        keep: share of parameters to keep, instead of a tolerance (or as well: then both must hold).
        max_parameters: how many the result may have, likewise.
        max_macs: multiply-accumulates that a pass of it may take, likewise.
        max_bytes: size of its file, weights beside it included, likewise.
        max_latency: ms that a pass of it may take, likewise; for every batch that is timed, and for sure.
        speedup: how many times as fast as the dense network it has to be, likewise; the same holds.
        multiple_of: every narrowed width is a multiple of it, of layers that are at least so wide; by default multiples
            that ONNX Runtime likes, where these will do; "auto": multiples that measure well on this machine, likewise.
        front: also make networks of other sizes, from near the dense one down to an error of 0.5 or 20 times the
            tolerance: `Condensed.front`.
        providers: ONNX Runtime providers in fallback order.
        threads: for ONNX Runtime and BLAS alike; 0 leaves their defaults.
        seed: of the split and the drawn inputs.
        allow_slower: keep a result that was measured to be slower than the dense network.
        augment: variants of each picture (other light and colours, turned, shrunk) to fit on as well.
        method: "fit" (ours), or another to compare with: "condensation", "condensation-refit", "drop", "drop-refit";
            see `methods`.
        threshold: of condensation: merge what points in one direction up to this cosine, whatever the error (a
            tolerance given as well is a gate); or by patterns of the names of writers or spaces, the last match counts.
        also_verify: further ONNX Runtime providers to prove and time the result on.
        batches: samples per pass to time; by default one, and a larger batch where the network takes one.
        footprint: also measure load time and peak memory of both networks, in processes of their own (some seconds).
        profile: also tell what each space takes of the time of a pass.
        include: touch only layers that one of these patterns matches, by the name of a node that writes their channels,
            of its weight or of their space; by default all.
        exclude: leave all channels of layers that one of these patterns matches; what such a layer reads may go.
        min_width: no layer gets narrower than so many channels.
        max_cut: no layer loses more than this share of its channels.
        plan: a saved plan (`Condensed.save_plan`) of this network, or of one with other weights: which channels go is
            taken from it, nothing is searched; tolerance and metric are the plan's unless one of them is given.
        dry_run: noted in the report; nothing is written here in any case.
        progress: called with a stage and the share of the work done.

    Raises:
        ModelError, CalibrationError: the inputs can't be used. UsageError: options exclude each other.
        BudgetError: a limit on size or speed can't be reached, or a threshold misses the tolerance.
        DefectError: the result disagrees with its own plan.
    """
    given = document_of(plan)
    if given:
        tolerance, metric = wish_by(given[0], tolerance, metric, calibrated=calibration is not None)
    wish = wish_for(tolerance, metric)
    asked = Goal(wish.number, keep, allow_slower, seed, augment, method, by_pattern(threshold), tuple(also_verify))
    asked = dataclasses.replace(asked, batches=tuple(batches), footprint=footprint, profile=profile)
    asked = dataclasses.replace(asked, metric=metric, tolerances=wish.patterns)
    asked = dataclasses.replace(asked, control=Control(tuple(include), tuple(exclude), min_width, max_cut))
    asked = dataclasses.replace(asked, limits=Limits(max_parameters, max_macs, max_bytes, max_latency, speedup))
    asked = dataclasses.replace(asked, multiple_of=multiple_of, front=front)
    asked = goal_by(given[0], asked) if given else asked
    there = {"calibrated": calibration is not None, "verified": verification is not None}
    goal = check_goal(asked, **there, planned=given is not None)
    # A plan that was made for a size has no tolerance, so none is a gate.
    goal = dataclasses.replace(goal, tolerance=wish.number) if given and calibration is not None else goal
    calibration = wish_of(calibration) or calibration
    started = time.monotonic()
    runtime = Runtime(providers, threads)
    with limited_threads(threads):
        run = _Run(load(model), runtime, goal, progress or (lambda _, __: None), given)
        if run.reuse and run.reuse.idle:
            found = run.as_it_is(f"{run.reuse.label} leaves every layer as it is")
        else:
            found = run.without_samples() if calibration is None else run.on_samples(calibration, verification)
    seconds = time.monotonic() - started
    return dataclasses.replace(found, report=dataclasses.replace(found.report, dry_run=dry_run, seconds=seconds))


class _Run:
    """One call of condense(): the stages in their order."""

    def __init__(
        self,
        network: Network,
        runtime: Runtime,
        goal: Goal,
        progress: Progress,
        plan: tuple[Document, str] | None = None,
    ) -> None:
        self.network, self.runtime = network, runtime
        self.progress = functools.partial(_told, progress)
        self.reuse = plan and Reuse(*plan, network, same=plan[0].source.sha256 == self.source_sha256)
        self.goal = goal = self.reuse.goal(goal) if self.reuse else goal
        by = yardstick(goal.metric, goal.tolerance, goal.tolerances, [o.name for o in network.proto.graph.output])
        self.prover = Prover(network, runtime, goal.also_verify, goal.batches, by)
        self.held = self.reuse.held if self.reuse else held_by(network, goal.control)
        self.view = self.held.view(network)
        self.maker = Maker(network, self.view, goal, self.prover, runtime, self.progress, self.held)
        self.notes: list[str] = self.maker.notes
        self.bounds = self.maker.bounds
        self.notes += self.held.notes + (self.reuse.notes if self.reuse else ())
        self.drawn = False
        self.widths: Sequence[WidthTiming] = ()
        self.parameters = self.maker.parameters

    def as_it_is(self, why: str) -> Condensed:
        """The dense network, since a saved plan says so."""
        return self._unchanged(Reason("plan", why))

    def without_samples(self) -> Condensed:
        """Only what the weights prove; inputs are drawn if there is something to prove."""
        self.progress("looking at the weights", 0.02)
        self.runtime.session(self.prover.dense)
        plan = self.reuse.proved() if self.reuse else self.maker.lossless_plan()
        if not plan.selections:
            return self._unchanged(why_unchanged(self.network, self.view, self.goal))
        inlined(self.network)  # refuses what is too large before any work is done
        verification = self.prover.on_drawn(self.goal.seed)
        return self._finished(self._exact(plan, verification), verification)

    def on_samples(self, calibration: Calibration, verification: Calibration) -> Condensed:
        """From evidence to the report, on samples of the user."""
        self.progress("looking at the weights", 0.02)
        thresholds(self.network, self.view, self.goal)  # refuses patterns that name nothing before any work is done
        session = self.runtime.session(self.prover.dense)
        specs = input_specs(self.network.proto.graph)
        samples = self._samples(calibration, session, judged=verification is None)
        judged_by = samples if verification is None else load_samples(verification, specs)
        for source in dict.fromkeys((samples, judged_by)):
            self.notes += source.notes
            check_independent(source, session, self.network.proto.graph)
        del session  # it holds all weights once more
        self.progress("running the dense network", 0.05)
        if self.goal.lossless:
            # Nothing is fitted, so everything may judge.
            proof = self.prover.on_samples(judged_by, np.arange(len(judged_by)))
            plan = self.reuse.proved() if self.reuse else self.maker.lossless_plan()
            return self._finished(self._exact(plan, proof), proof)
        if verification is not None and len(judged_by) < SMALLEST_SHARE:
            text = f"verification: {len(judged_by)} samples, at least {SMALLEST_SHARE} are needed; give more"
            raise CalibrationError("calibration-few", text)
        shares = split(samples, self.goal.seed, separate_verification=verification is not None)
        proof = self.prover.on_samples(judged_by, shares.verify if verification is None else np.arange(len(judged_by)))
        self.notes += proof.judge.notes
        self._time_widths(proof)
        # Other methods are shown alone: see `methods`.
        plan = self.reuse.exact if self.reuse else self.maker.aligned_plan()
        exact = self.maker.lossless(plan, proof) if self.goal.method == "fit" else None
        if self.reuse is None:
            fitted = self.maker.fitted(exact, samples, shares.fit, shares.search, proof)
        elif exact and self.reuse.complete:
            fitted = None
        else:
            fitted = self.maker.reused(self.reuse, exact, samples, shares.fit, shares.search, proof)
            exact = None
        if fitted and fitted.rows:
            fitted, notes = coverage.covered(fitted, self.prover, samples, shares.fit, proof, self.goal.seed)
            self.notes += notes
        found = self._finished(self._small_enough([c for c in (fitted, exact) if c]), proof)
        return dataclasses.replace(found, front=self._front(exact, proof)) if self.goal.front else found

    def _time_widths(self, proof: Proof) -> None:
        """See which widths run well here, if that was asked for."""
        if self.goal.multiple_of == AUTO:
            self.progress("timing widths", 0.07)
            self.maker.grid, self.widths = measured_grid(
                self.network, self.view, self.goal, lambda wide, narrow: self.prover.beside(wide, narrow, proof)
            )

    def _front(self, exact: Candidate | None, proof: Proof) -> tuple[Member, ...]:
        """The networks of the front, stamped and timed; the exact one may go out too, with another stamp."""
        own = [dataclasses.replace(exact, model=copy.deepcopy(exact.model))] if exact else []
        # The tolerance was no gate for them, and most are beyond it.
        told = dataclasses.replace(self.goal, tolerance=None, tolerances={})
        for candidate in (made := [*own, *self.maker.front]):
            provenance(self.source_sha256, candidate.plans, candidate.proved.error, told).stamp(candidate.model)
        self.progress("timing the front", 0.95)
        return tuple(members(made, self.parameters, lambda c: self.prover.time(c.model, proof)))

    def _samples(self, calibration: Calibration, session: Session, *, judged: bool) -> Samples:
        """What was given, or drawn where that was the wish; judged: whether they also judge the result."""
        self.drawn = isinstance(calibration, Synthetic)
        if not self.drawn:
            return load_samples(calibration, input_specs(self.network.proto.graph))
        self.progress("drawing inputs", 0.03)
        self.notes.append(NOTE if judged else NOTE_JUDGED)
        return draw_samples(calibration, self.network, session, self.runtime, self.goal.seed)

    # ---- end ----

    def _small_enough(self, candidates: Sequence[Candidate]) -> Sequence[Candidate]:
        """Those that are as small as was asked for; none where the dense network is so itself.

        Raises:
            BudgetError: none is.
        """
        small = [c for c in candidates if self.bounds.small(c.model)]
        if not small and not self.bounds.dense_is_small():
            raise self.bounds.too_large([c.model for c in candidates], self._why)
        return small

    def _finished(self, candidates: Iterable[Candidate], proof: Proof) -> Condensed:
        """The first candidate that is as fast as asked for, and not slower, or the dense network unchanged.

        Raises:
            BudgetError: what was asked for is only to be had slower, or not fast enough.
        """
        slow: Latency | None = None
        lagging: list[tuple[Sequence[Latency], float]] = []
        for candidate in candidates:
            self.progress("timing", 0.9)
            timings = candidate.latency or self.prover.time(candidate.model, proof)
            if self.bounds.pace.lacking(timings, sure=True) > 1.0:
                lagging.append((timings, candidate.proved.error))
                continue
            slow = next((t for t in timings if t.verdict == "slower"), None)
            if self.goal.allow_slower or slow is None:
                return self._going_out(candidate, timings, proof)
        if slow is not None:
            return self._too_slow(slow)
        if lagging or not self._dense_in_time(proof):
            raise self.bounds.too_slow(lagging, self._why)
        if self.bounds:
            return self._unchanged(Reason("limits", f"it is within {self.bounds.all_asked} as it is"))
        return self._unchanged(why_unchanged(self.network, self.view, self.goal))

    def _too_slow(self, slow: Latency) -> Condensed:
        """Where every candidate was measured to be slower than the dense network.

        Raises:
            BudgetError: a size was asked for.
        """
        where = f" on {slow.provider}" if self.goal.also_verify else ""
        text = f"the condensed network was measured slower at batch {slow.batch}{where} ({slow.speedup:.2f}x); "
        text += "--allow-slower takes it all the same"
        if self.bounds or self.reuse:
            asked = f"--plan {self.reuse.label}" if self.reuse else self.bounds.all_asked
            raise BudgetError("slower", f"{asked}: {text}")
        return self._unchanged(Reason("slower", text))

    def _dense_in_time(self, proof: Proof) -> bool:
        """Whether the dense network meets the limits on time."""
        if not self.bounds.pace.timed:
            return True
        return self.bounds.pace.lacking(self.prover.time(inlined(self.network), proof), sure=True) <= 1.0

    def _why(self) -> str:
        return why_unchanged(self.network, self.view, self.goal).text

    def _going_out(self, candidate: Candidate, timings: Sequence[Latency], proof: Proof) -> Condensed:
        """A candidate with its provenance and the report about it."""
        stamp = provenance(self.source_sha256, candidate.plans, candidate.proved.error, self.goal)
        stamp.stamp(candidate.model)
        footprint = self.prover.weigh(candidate.model, proof) if self.goal.footprint else None
        if isinstance(footprint, Reason):
            self.notes.append(f"load time and memory were not measured: {footprint.text}")
            footprint = None
        spent = self.prover.spent(self.view, candidate.model, proof) if self.goal.profile else {}
        if isinstance(spent, Reason):
            self.notes.append(f"what each space takes was not measured: {spent.text}")
            spent = {}
        report = condensed_report(
            self.network,
            self.view,
            self.goal,
            candidate,
            samples=proof.count,
            latency=timings,
            footprint=footprint,
            spent=spent,
        )
        found = self._answer(candidate.model, candidate, report, result_digest(candidate.model, self.network))
        clouds, kept = candidate.proved.measured.clouds(), kept_channels(candidate.plans, candidate.names)
        return dataclasses.replace(found, clouds=clouds, kept=kept)

    def _unchanged(self, reason: Reason) -> Condensed:
        report = unchanged_report(self.network, self.view, reason)
        return self._answer(self.network.given, None, report, self.source_sha256)

    def _exact(self, plan: Plan, proof: Proof) -> Iterable[Candidate]:
        """Exact steps; those of a saved plan as they are.

        Raises:
            BudgetError: they were asked for by a saved plan, and are no good.
        """
        if self.reuse is None:
            return self.maker.exact(plan, proof)
        found = self.maker.lossless(plan, proof)
        if found is None:
            raise BudgetError("plan", f"--plan {self.reuse.label}: {self.notes[-1]}")
        return [found]

    def _evidence(self, plans: tuple[Plan, ...]) -> Evidence:
        """What told that the channels of the plans are redundant, or that none is."""
        if self.goal.lossless or (plans and all(plan.kind == "lossless" for plan in plans)):
            return "weights"
        return "synthetic" if self.drawn else "samples"

    def _answer(
        self, model: onnx.ModelProto, candidate: Candidate | None, report: Report, sha256: str | None
    ) -> Condensed:
        plans = candidate.plans if candidate else ()
        self.progress("done", 1.0)
        method, threshold = self.goal.method, self.goal.threshold
        told = dataclasses.replace(
            report, notes=tuple(self.notes), widths=tuple(self.widths), method=method, threshold=threshold
        )
        source = dataclasses.replace(origin(self.network, self.source_sha256, plans), result_sha256=sha256)
        told = dataclasses.replace(told, evidence=self._evidence(plans), origin=source)
        origins = Origins(self.network, self.view, self.held, self.source_sha256)
        return Condensed(model, plans, told, self.network, functools.partial(saved, origins, self.goal, candidate))

    @functools.cached_property
    def source_sha256(self) -> str:
        """Of the dense network's file."""
        return source_digest(self.network)


def _told(progress: Progress, stage: str, share: float) -> None:
    """Say how far the run is, and hand back what the last stage took."""
    release()
    progress(stage, share)
