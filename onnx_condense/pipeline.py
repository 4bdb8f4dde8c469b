"""condense(): the only place that knows the order of the stages."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx

from onnx_condense import coverage
from onnx_condense.candidates import Maker, Progress
from onnx_condense.data import SMALLEST_SHARE, Samples, check_independent, input_specs, split
from onnx_condense.data import load as load_samples
from onnx_condense.errors import BudgetError, CalibrationError
from onnx_condense.evidence.weights import lossless_plan
from onnx_condense.goal import Goal, Threshold, by_pattern, check_goal
from onnx_condense.heat import kept_channels
from onnx_condense.methods import thresholds
from onnx_condense.model import Network, inlined, load
from onnx_condense.outcome import Candidate, Condensed, condensed_report, unchanged_report, why_unchanged
from onnx_condense.plan import Plan
from onnx_condense.proof import Proof, Prover
from onnx_condense.provenance import origin, provenance, result_digest, source_digest
from onnx_condense.report.data import Evidence, Latency, Reason, Report
from onnx_condense.runtime import CPU, Runtime, Session, limited_threads, release
from onnx_condense.spaces import find_spaces
from onnx_condense.synthetic import NOTE, NOTE_JUDGED, Synthetic, draw_samples, wish_of

Calibration = Any


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
    augment: int = 0,
    method: str = "fit",
    threshold: Threshold = None,
    also_verify: Sequence[str] = (),
    batches: Sequence[int] = (),
    footprint: bool = False,
    profile: bool = False,
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
        tolerance: largest relative error allowed; 0.01 by default with calibration, lossless without.
        keep: share of parameters to keep, instead of a tolerance (or as well: then both must hold).
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
        dry_run: noted in the report; nothing is written here in any case.
        progress: called with a stage and the share of the work done.

    Raises:
        ModelError, CalibrationError: the inputs can't be used. UsageError: options exclude each other.
        BudgetError: `keep` can't be reached, or a threshold misses the tolerance.
        DefectError: the result disagrees with its own plan.
    """
    asked = Goal(tolerance, keep, allow_slower, seed, augment, method, by_pattern(threshold), tuple(also_verify))
    asked = dataclasses.replace(asked, batches=tuple(batches), footprint=footprint, profile=profile)
    goal = check_goal(asked, calibrated=calibration is not None, verified=verification is not None)
    calibration = wish_of(calibration) or calibration
    started = time.monotonic()
    runtime = Runtime(providers, threads)
    with limited_threads(threads):
        run = _Run(load(model), runtime, goal, progress or (lambda _, __: None))
        found = run.without_samples() if calibration is None else run.on_samples(calibration, verification)
    seconds = time.monotonic() - started
    return dataclasses.replace(found, report=dataclasses.replace(found.report, dry_run=dry_run, seconds=seconds))


class _Run:
    """One call of condense(): the stages in their order."""

    def __init__(self, network: Network, runtime: Runtime, goal: Goal, progress: Progress) -> None:
        self.network, self.runtime, self.goal = network, runtime, goal
        self.progress = functools.partial(_told, progress)
        self.prover = Prover(network, runtime, goal.also_verify, goal.batches)
        self.view = find_spaces(network)
        self.maker = Maker(network, self.view, goal, self.prover, runtime, self.progress)
        self.notes: list[str] = self.maker.notes
        self.drawn = False
        self.parameters = self.maker.parameters

    def without_samples(self) -> Condensed:
        """Only what the weights prove; inputs are drawn if there is something to prove."""
        self.progress("looking at the weights", 0.02)
        self.runtime.session(self.prover.dense)
        plan = lossless_plan(self.network, self.view)
        if not plan.selections:
            return self._unchanged(why_unchanged(self.network, self.view, self.goal))
        inlined(self.network)  # refuses what is too large before any work is done
        verification = self.prover.on_drawn(self.goal.seed)
        return self._finished(self.maker.exact(plan, verification), verification)

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
            return self._finished(self.maker.exact(lossless_plan(self.network, self.view), proof), proof)
        if verification is not None and len(judged_by) < SMALLEST_SHARE:
            text = f"verification: {len(judged_by)} samples, at least {SMALLEST_SHARE} are needed; give more"
            raise CalibrationError("calibration-few", text)
        shares = split(samples, self.goal.seed, separate_verification=verification is not None)
        proof = self.prover.on_samples(judged_by, shares.verify if verification is None else np.arange(len(judged_by)))
        # Other methods are shown alone: see `methods`.
        exact = self.maker.lossless(self.maker.aligned_plan(), proof) if self.goal.method == "fit" else None
        fitted = self.maker.fitted(exact, samples, shares.fit, shares.search, proof)
        if fitted and fitted.rows:
            fitted, notes = coverage.covered(fitted, self.prover, samples, shares.fit, proof, self.goal.seed)
            self.notes += notes
        return self._finished(self._small_enough([c for c in (fitted, exact) if c]), proof)

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
        """Those that keep as little as was asked for.

        Raises:
            BudgetError: none does.
        """
        keep = self.goal.keep
        if keep is None:
            return candidates
        small = [c for c in candidates if c.parameters <= keep * self.parameters]
        if not small:
            gate = self.goal.tolerance
            text = f"--keep {keep} can't be reached" + ("" if gate is None else f" within --tolerance {gate}")
            shares = [c.parameters / self.parameters for c in candidates]
            if not shares:
                raise BudgetError("keep", f"{text}: {why_unchanged(self.network, self.view, self.goal).text}")
            raise BudgetError("keep", f"{text}: the smallest share is {_up(min(shares))}")
        return small

    def _finished(self, candidates: Iterable[Candidate], proof: Proof) -> Condensed:
        """The first candidate that is not slower, or the dense network unchanged.

        Raises:
            BudgetError: a size was asked for and is only to be had slower.
        """
        slow: Latency | None = None
        for candidate in candidates:
            self.progress("timing", 0.9)
            timings = self.prover.time(candidate.model, proof)
            slow = next((t for t in timings if t.verdict == "slower"), None)
            if self.goal.allow_slower or slow is None:
                return self._going_out(candidate, timings, proof)
        if slow is None:
            return self._unchanged(why_unchanged(self.network, self.view, self.goal))
        where = f" on {slow.provider}" if self.goal.also_verify else ""
        text = f"the condensed network was measured slower at batch {slow.batch}{where} ({slow.speedup:.2f}x); "
        text += "--allow-slower takes it all the same"
        if self.goal.keep is not None:
            raise BudgetError("slower", f"--keep {self.goal.keep}: {text}")
        return self._unchanged(Reason("slower", text))

    def _going_out(self, candidate: Candidate, timings: Sequence[Latency], proof: Proof) -> Condensed:
        """A candidate with its provenance and the report about it."""
        stamp = provenance(self.source_sha256, candidate.plans, candidate.proved.value, self.goal.tolerance)
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
        found = self._answer(candidate.model, candidate.plans, report, result_digest(candidate.model, self.network))
        clouds, kept = candidate.proved.measured.clouds(), kept_channels(candidate.plans, candidate.names)
        return dataclasses.replace(found, clouds=clouds, kept=kept)

    def _unchanged(self, reason: Reason) -> Condensed:
        report = unchanged_report(self.network, self.view, reason)
        return self._answer(self.network.given, (), report, self.source_sha256)

    def _evidence(self, plans: tuple[Plan, ...]) -> Evidence:
        """What told that the channels of the plans are redundant, or that none is."""
        if self.goal.lossless or (plans and all(plan.kind == "lossless" for plan in plans)):
            return "weights"
        return "synthetic" if self.drawn else "samples"

    def _answer(self, model: onnx.ModelProto, plans: tuple[Plan, ...], report: Report, sha256: str | None) -> Condensed:
        self.progress("done", 1.0)
        method, threshold = self.goal.method, self.goal.threshold
        told = dataclasses.replace(report, notes=tuple(self.notes), method=method, threshold=threshold)
        source = dataclasses.replace(origin(self.network, self.source_sha256, plans), result_sha256=sha256)
        told = dataclasses.replace(told, evidence=self._evidence(plans), origin=source)
        return Condensed(model, plans, told, self.network)

    @functools.cached_property
    def source_sha256(self) -> str:
        """Of the dense network's file."""
        return source_digest(self.network)


def _told(progress: Progress, stage: str, share: float) -> None:
    """Say how far the run is, and hand back what the last stage took."""
    release()
    progress(stage, share)


def _up(share: float) -> str:
    """A share rounded up to three significant digits, so that asking for it succeeds."""
    digits = 2 - math.floor(math.log10(share))
    return f"{math.ceil(share * 10**digits) / 10**digits:.{digits}f}"
