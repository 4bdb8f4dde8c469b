"""One run of condense(): the only place that knows the order of the stages."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from onnx_condense.cost import Work
from onnx_condense.data import SMALLEST_SHARE, Samples, check_independent, input_specs, split
from onnx_condense.data import load as load_samples
from onnx_condense.errors import BudgetError, CalibrationError
from onnx_condense.fit.methods import thresholds
from onnx_condense.heat import kept_channels
from onnx_condense.lined_up import lined_up
from onnx_condense.network.model import Network, inlined
from onnx_condense.options.goal import Goal
from onnx_condense.options.held import held_by
from onnx_condense.options.limits import AUTO
from onnx_condense.options.yardstick import yardstick
from onnx_condense.outcome import Candidate, Condensed, condensed_report, unchanged_report, why_unchanged
from onnx_condense.plan import ChannelView, IntArray, Plan
from onnx_condense.proving import coverage
from onnx_condense.proving.feeding import single
from onnx_condense.proving.latency import CLOSE, FULL, apart
from onnx_condense.proving.proof import Proof, Prover
from onnx_condense.proving.provenance import origin, provenance, result_digest, source_digest
from onnx_condense.report.data import Change, Evidence, Latency, Reason, Report, WidthTiming
from onnx_condense.runtime import Runtime, Session, release
from onnx_condense.saved.plans import Document
from onnx_condense.saved.reuse import Origins, Reuse, saved
from onnx_condense.search.autogrid import measured_grid
from onnx_condense.search.candidates import Maker, Progress, Shares
from onnx_condense.search.front import Member, members
from onnx_condense.search.rounds import Rounds
from onnx_condense.synthetic import NOTE, NOTE_JUDGED, Synthetic, draw_samples
from onnx_condense.tuner import Tuner, check_trainable
from onnx_condense.wording import counted

if TYPE_CHECKING:
    from onnx_condense.metrics import Judge
    from onnx_condense.tune import Teacher

Calibration = Any


class Run:
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
        same = plan is not None and plan[0].source.sha256 == self.source_sha256
        self.reuse = plan and Reuse(*plan, network, same=same)
        self.goal = goal = self.reuse.goal(goal) if self.reuse else goal
        self.held = self.reuse.held if self.reuse else held_by(network, goal.control)
        by = yardstick(goal.metric, goal.tolerance, goal.tolerances, [o.name for o in network.proto.graph.output])
        effort = CLOSE if goal.limits.timed else FULL
        self.prover = Prover(network, runtime, goal.also_verify, goal.batches, by, effort=effort)

        self.work = Work()

        def maker(network: Network, view: ChannelView) -> Maker:
            return Maker(network, view, goal, self.prover, runtime, self.progress, self.held, self.work)

        self.view = self.reuse.view if self.reuse else self.held.view(network)
        # Other methods leave out exact steps: see `methods`.
        if goal.method == "fit":
            self.network = lined_up(
                network, self.view, self.held.view, lambda n: maker(n, self.held.view(n)).narrowed()
            )
        if self.network is not network:
            self.reuse = plan and Reuse(*plan, self.network, same=same)
            self.view = self.held.view(self.network)
        self.maker = maker(self.network, self.view)
        self.notes: list[str] = self.maker.notes
        self.bounds = self.maker.bounds
        self.notes += (*self.held.notes, *(self.reuse.notes if self.reuse else ()))
        self.drawn = False
        self.widths: Sequence[WidthTiming] = ()
        self.parameters = self.maker.parameters

    def as_it_is(self, why: str) -> Condensed:
        """The dense network, since a saved plan says so."""
        return self._unchanged(Reason("plan", why))

    def without_samples(self) -> Condensed:
        """Only what the weights prove; inputs are drawn if there is something to prove."""
        self.progress("looking at the weights", 0.02)
        self.notes += self.work.told(self.network)
        self.runtime.session(self.prover.dense)
        plan = self.reuse.proved() if self.reuse else self.maker.lossless_plan()
        if not plan.selections:
            return self._unchanged(why_unchanged(self.network, self.view, self.goal, self.notes))
        inlined(self.network)  # refuses what is too large before any work is done
        verification = self.prover.on_drawn(self.goal.seed)
        return self._finished(self._exact(plan, verification), verification)

    def on_samples(self, calibration: Calibration, verification: Calibration, further: Calibration = None) -> Condensed:
        """From evidence to the report, on samples of the user; further: more inputs to train on."""
        if self.goal.tune is not None:
            check_trainable(self.network)
        self.progress("looking at the weights", 0.02)
        thresholds(self.network, self.view, self.goal)  # refuses patterns that name nothing before any work is done
        session = self.runtime.session(self.prover.dense)
        specs = input_specs(self.network.proto.graph)
        samples = self._samples(calibration, session, judged=verification is None)
        judged_by = samples if verification is None else load_samples(verification, specs)
        further = None if further is None else load_samples(further, specs)
        for source in dict.fromkeys(s for s in (samples, judged_by, further) if s is not None):
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
            text = f"verification: {counted(len(judged_by), 'sample')}, at least {SMALLEST_SHARE} are needed; give more"
            raise CalibrationError("calibration-few", text)
        shares = split(samples, self.goal.seed, separate_verification=verification is not None)
        judged = shares.verify if verification is None else np.arange(len(judged_by))
        seen = coverage.seen(shares.fit, len(judged))
        known = functools.cache(lambda: self.prover.judge(samples, seen))
        # Judges that were brought along may be of another kind; other methods fit nothing.
        beside = known if verification is None and self.goal.fits else None
        proof = dataclasses.replace(self.prover.on_samples(judged_by, judged), known=beside)
        self.notes += proof.judge.notes
        self._time_widths(proof)
        # Other methods are shown alone: see `methods`.
        plan = self.reuse.exact if self.reuse else self.maker.aligned_plan()
        exact = self.maker.lossless(plan, proof) if self.goal.method == "fit" else None
        roles = Shares(samples, shares.fit, shares.search, proof)
        fitted = self._fitted(exact, roles, self._tuner(roles, further, (judged_by, judged)))
        exact = None if self.reuse and not self.reuse.complete else exact
        fitted = fitted and self._covered(fitted, samples, seen, known)
        found = self._finished(self._small_enough([c for c in (fitted, exact) if c]), proof)
        return dataclasses.replace(found, front=self._front(exact, proof)) if self.goal.front else found

    def _covered(self, fitted: Candidate, samples: Samples, seen: IntArray, known: Callable[[], Judge]) -> Candidate:
        """The candidate with what samples that it was fitted on say, if it was fitted on any."""
        if not fitted.rows:
            return fitted
        measured = fitted.proved.known or known().measure(fitted.model)
        found, notes = coverage.covered(fitted, samples, seen, measured, self.goal.seed)
        self.notes += notes
        return found

    def _fitted(self, exact: Candidate | None, shares: Shares, tuner: Tuner | None) -> Candidate | None:
        """What goes further than exact steps, by a search or a saved plan; None where nothing does.

        Raises:
            BudgetError: what a saved plan makes is not within the tolerance.
        """
        rounds = None if tuner is None else Rounds(self.maker, tuner, shares)
        if self.reuse is None:
            found = self.maker.fitted(exact, shares) if rounds is None else rounds.run(exact)
        elif exact and self.reuse.complete:
            found = None
        else:
            found = rounds.reused(self.reuse, exact) if rounds else self.maker.reused(self.reuse, exact, shares)
        self.notes += tuner.told_last() if tuner else ()
        if self.reuse and found and found.proved.excess(self.goal.gate) > 1.0:
            raise BudgetError("plan", self.reuse.missed(found.proved.worst(self.goal.gate), self.goal))
        return found

    def _tuner(self, shares: Shares, further: Samples | None, judged: tuple[Samples, IntArray]) -> Tuner | None:
        """What trains, if that was asked for; further: more inputs; judged: what nothing may be trained on."""
        goal, tune = self.goal, self.goal.tune
        if tune is None:
            return None

        def teach() -> Teacher:
            from onnx_condense.tune import Source, Teacher

            loss = tune.loss_for(goal.metric)
            roles = (shares.samples, shares.fit, shares.search)
            more: dict[str, Any] = {"more": further, "apart": [Source(*judged)], "weights": self.prover.weights}
            more["seed"] = goal.seed
            return Teacher(self.prover.dense, *roles, self.runtime, loss, **more)

        return Tuner(goal, tune, teach, self.progress)

    def _time_widths(self, proof: Proof) -> None:
        """See which widths run well here, if that was asked for."""
        if self.goal.multiple_of == AUTO:
            self.progress("timing widths", 0.07)

            def compare(wide: onnx.ModelProto, narrow: onnx.ModelProto) -> Sequence[Latency]:
                return self.prover.beside(wide, narrow, proof)

            self.maker.grid, self.widths = measured_grid(self.network, self.view, self.goal, compare, self.work)

    def _front(self, exact: Candidate | None, proof: Proof) -> tuple[Member, ...]:
        """The networks of the front, stamped and timed; the exact one may go out too, with another stamp."""
        own = [dataclasses.replace(exact, model=copy.deepcopy(exact.model))] if exact else []
        # The tolerance was no gate for them, and most are beyond it.
        told = dataclasses.replace(self.goal, tolerance=None, tolerances={})
        for candidate in (made := [*own, *self.maker.front]):
            self._stamp(candidate, told)
        self.progress("timing the front", 0.95)
        return tuple(members(made, self.parameters, lambda c: self.prover.time(c.model, proof), self.work))

    def _samples(self, calibration: Calibration, session: Session, *, judged: bool) -> Samples:
        """What was given, or drawn where that was the wish; judged: whether they also judge the result."""
        self.drawn = isinstance(calibration, Synthetic)
        if self.drawn:
            self.progress("drawing inputs", 0.03)
            self.notes.append(NOTE if judged else NOTE_JUDGED)
            samples = draw_samples(calibration, self.network, session, self.runtime, self.goal.seed)
        else:
            samples = load_samples(calibration, input_specs(self.network.proto.graph))
        self.work.sample = single(samples)
        self.notes += self.work.told(self.network)
        return samples

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
        return self._unchanged(why_unchanged(self.network, self.view, self.goal, self.notes))

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
        self._stamp(candidate, self.goal)
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
        kept = kept_channels(candidate.plans, candidate.names)
        # Of channels that were moved before, positions are none of the dense network's.
        kept = {name: positions for name, positions in kept.items() if name not in candidate.moves}
        return dataclasses.replace(found, clouds=candidate.proved.measured.clouds(), kept=kept)

    def _stamp(self, candidate: Candidate, goal: Goal) -> None:
        error, steps = candidate.proved.error, candidate.steps
        provenance(self.source_sha256, candidate.plans, error, goal, steps).stamp(candidate.model)

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
        work = self.work.of(self.network)
        told = dataclasses.replace(
            report,
            macs=Change(work, self.work.of(Network(model)) if candidate else work),
            notes=tuple(dict.fromkeys((*self.notes, *apart(report.latency)))),
            widths=tuple(self.widths),
            method=method,
            threshold=threshold,
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
