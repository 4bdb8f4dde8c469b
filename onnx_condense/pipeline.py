"""condense(): the only place that knows the order of the stages."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnx_condense import coverage
from onnx_condense.budget import back_off
from onnx_condense.cost import count_parameters
from onnx_condense.data import SMALLEST_SHARE, Samples, check_independent, input_specs, split
from onnx_condense.data import load as load_samples
from onnx_condense.data.augment import augmented, variants_of
from onnx_condense.errors import BudgetError, CalibrationError
from onnx_condense.evidence.weights import lossless_plan
from onnx_condense.files import copy_unchanged, save_condensed
from onnx_condense.goal import Goal, Threshold, by_pattern, check_goal
from onnx_condense.methods import narrower, thresholds
from onnx_condense.metrics import Judge
from onnx_condense.model import Network, inlined, load
from onnx_condense.outcome import Candidate, condensed_report, too_little, unchanged_report, why_unchanged
from onnx_condense.plan import IntArray, Plan
from onnx_condense.proof import Proof, Prover
from onnx_condense.report.data import Evidence, Latency, Reason, Report
from onnx_condense.rewrite import apply_plan
from onnx_condense.runtime import CPU, Runtime, Session, limited_threads, release
from onnx_condense.spaces import find_spaces
from onnx_condense.synthetic import NOTE, NOTE_JUDGED, Synthetic, draw_samples, wish_of
from onnx_condense.verify import rounding_level
from onnx_condense.widths import Narrower, Widths, better_refit, width_multiple

# Exact merges of several layers in a row may differ by this many times the rounding of one evaluation.
EXACT = 64
# In half precision that would allow anything.
LARGEST_ROUNDING = 0.01

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

        Where the input's weights lay in files beside it, those of the result do so too; see `files`.

        Raises:
            UsageError: the path can't be written, or its name is that of weights.
        """
        if self.report.status == "unchanged":
            copy_unchanged(self.source, Path(path))
        else:
            save_condensed(self.model, self.source, Path(path))


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
        dry_run: noted in the report; nothing is written here in any case.
        progress: called with a stage and the share of the work done.

    Raises:
        ModelError, CalibrationError: the inputs can't be used. UsageError: options exclude each other.
        BudgetError: `keep` can't be reached, or a threshold misses the tolerance.
        DefectError: the result disagrees with its own plan.
    """
    asked = Goal(tolerance, keep, allow_slower, seed, augment, method, by_pattern(threshold))
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
        self.prover = Prover(network, runtime)
        self.view = find_spaces(network)
        self.notes: list[str] = []
        self.drawn = False
        self.parameters = count_parameters(network.proto)

    def without_samples(self) -> Condensed:
        """Only what the weights prove; inputs are drawn if there is something to prove."""
        self.progress("looking at the weights", 0.02)
        self.runtime.session(self.prover.dense)
        plan = lossless_plan(self.network, self.view)
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
            return self._finished(self._exact(lossless_plan(self.network, self.view), proof), proof)
        if verification is not None and len(judged_by) < SMALLEST_SHARE:
            text = f"verification: {len(judged_by)} samples, at least {SMALLEST_SHARE} are needed; give more"
            raise CalibrationError("calibration-few", text)
        shares = split(samples, self.goal.seed, separate_verification=verification is not None)
        proof = self.prover.on_samples(judged_by, shares.verify if verification is None else np.arange(len(judged_by)))
        # Other methods are shown alone: see `methods`.
        exact = self._lossless(self._aligned_plan(), proof) if self.goal.method == "fit" else None
        fitted = self._fitted(exact, samples, shares.fit, shares.search, proof)
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

    # ---- candidates ----

    def _exact(self, plan: Plan, proof: Proof) -> Iterator[Candidate]:
        """The lossless step, then one that keeps a few redundant channels: it is only made if the first is slower."""
        if exact := self._lossless(plan, proof):
            yield exact
        aligned = self._aligned_plan() if plan.selections else plan
        kept = [[s.keep.tolist() for s in p.selections] for p in (plan, aligned)]
        if kept[0] != kept[1] and (second := self._lossless(aligned, proof)):
            yield second

    def _aligned_plan(self) -> Plan:
        multiples = {s.name: width_multiple(self.network, self.view, s) for s in self.view.spaces}
        return lossless_plan(self.network, self.view, multiples)

    def _lossless(self, plan: Plan, proof: Proof) -> Candidate | None:
        """The lossless step, proved on the samples; None where nothing can go."""
        if not plan.selections:
            return None
        condensed = apply_plan(self.network, self.view, plan)
        if count_parameters(condensed) >= self.parameters:
            self.notes.append("exact merges were given back: they would store copies of weights that are used often")
            return None
        self.prover.check(self.network, self.view, plan, condensed, proof)
        measured = proof.judge.measure(condensed)
        bound = min(EXACT * rounding_level(self.network, self.view), LARGEST_ROUNDING, self.goal.tolerance or math.inf)
        if not measured.value <= bound:
            self.notes.append(
                f"exact merges were given back: they changed the outputs by {measured.value:.1e}, "
                f"more than rounding explains or the tolerance allows ({bound:.1e})"
            )
            return None
        return Candidate(condensed, (plan,), measured)

    def _fitted(
        self, exact: Candidate | None, samples: Samples, fit: IntArray, search: IntArray, proof: Proof
    ) -> Candidate | None:
        """Condensation by the method asked for, on top of the lossless step; None where nothing more can go."""
        network = Network(exact.model) if exact else self.network
        view = find_spaces(network) if exact else self.view
        self.progress("collecting moments", 0.1)
        if self.goal.augment:
            fit = variants_of(fit, len(samples), self.goal.augment)
            samples = augmented(samples, self.goal.augment, self.goal.seed)
            self.notes.append(f"also fitted on variants of the samples, {self.goal.augment} of each")
        fitter, notes = narrower(self.goal, network, view, samples, (fit, search), self.runtime)
        self.notes += notes
        if not fitter.spaces:
            return None
        self.progress("probing spaces", 0.3)
        hunter = self.prover.judge(samples, search, optimize=True)
        if self.goal.threshold is not None:
            return self._at_threshold(fitter, hunter, search, proof)
        done = 0.35

        def measuring() -> None:
            nonlocal done
            done += 0.04
            self.progress("searching widths", min(done, 0.75))

        wanted = (self.goal.keep or 0.0) * self.parameters
        widths = Widths(fitter, hunter, self.goal, wanted, measuring)
        path, at = widths.find()
        staged = at > 0 and widths.staged(path[at].widths)
        self.progress("refitting", 0.75)
        fitter.use_all(search)
        back_offs = 0
        while at > 0:
            self.progress("verifying", 0.85)
            found = self._proved(fitter, path[at].widths, staged, exact, back_offs, proof)
            if self.goal.allows(found.measured.value):
                little = too_little(network, found, self.goal)
                self.notes += [little] if little else []
                return None if little else found
            back_offs += 1
            at = back_off(path, at, found.measured.value / (self.goal.tolerance or math.inf), back_offs)
        return None

    def _at_threshold(self, fitter: Narrower, hunter: Judge, search: IntArray, proof: Proof) -> Candidate | None:
        """What a threshold merges, no less and no more; None where that saves nothing.

        Raises:
            BudgetError: its error is larger than the tolerance.
        """
        widths = [s.width - len(e.order) for s, e in zip(fitter.spaces, fitter.eliminations, strict=True)]
        if widths == [s.width for s in fitter.spaces]:
            return None
        staged = self.goal.fits and better_refit(fitter, hunter, widths)[0]
        self.progress("refitting", 0.75)
        fitter.use_all(search)
        self.progress("verifying", 0.85)
        found = self._proved(fitter, widths, staged, None, 0, proof)
        if not self.goal.allows(found.measured.value):
            gate = "any bound" if self.goal.tolerance is None else f"--tolerance {self.goal.tolerance}"
            text = f"--threshold gives an error of {found.measured.value:.3g}, above {gate}: give a larger threshold"
            raise BudgetError("threshold", text)
        return found if found.parameters < self.parameters else None

    def _proved(
        self,
        fitter: Narrower,
        widths: Sequence[int],
        staged: bool,
        exact: Candidate | None,
        back_offs: int,
        proof: Proof,
    ) -> Candidate:
        """The candidate of these widths, checked against its plan and measured."""
        plan, condensed = fitter.plan(widths, sequential=staged)
        self.prover.check(fitter.network, fitter.view, plan, condensed, proof)
        plans = (*(exact.plans if exact else ()), plan)
        # Where a bias was added the tensor that names a space got another name.
        old = {s.writers: s.name for s in self.view.spaces}
        names = {s.name: old.get(s.writers, s.name) for s in fitter.view.spaces}
        rows = {names.get(name, name): count for name, count in fitter.rows_per_channel(widths).items()}
        return Candidate(condensed, plans, proof.judge.measure(condensed), back_offs, names, rows)

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
                report = condensed_report(
                    self.network, self.view, self.goal, candidate, samples=proof.count, latency=timings
                )
                return self._answer(candidate.model, candidate.plans, report)
        if slow is None:
            return self._unchanged(why_unchanged(self.network, self.view, self.goal))
        text = f"the condensed network was measured slower at batch {slow.batch} ({slow.speedup:.2f}x); "
        text += "--allow-slower takes it all the same"
        if self.goal.keep is not None:
            raise BudgetError("slower", f"--keep {self.goal.keep}: {text}")
        return self._unchanged(Reason("slower", text))

    def _unchanged(self, reason: Reason) -> Condensed:
        return self._answer(self.network.given, (), unchanged_report(self.network, self.view, reason))

    def _evidence(self, plans: tuple[Plan, ...]) -> Evidence:
        """What told that the channels of the plans are redundant, or that none is."""
        if self.goal.lossless or (plans and all(plan.kind == "lossless" for plan in plans)):
            return "weights"
        return "synthetic" if self.drawn else "samples"

    def _answer(self, model: onnx.ModelProto, plans: tuple[Plan, ...], report: Report) -> Condensed:
        self.progress("done", 1.0)
        method, threshold = self.goal.method, self.goal.threshold
        told = dataclasses.replace(report, notes=tuple(self.notes), method=method, threshold=threshold)
        told = dataclasses.replace(told, evidence=self._evidence(plans))
        return Condensed(model, plans, told, self.network)


def _told(progress: Progress, stage: str, share: float) -> None:
    """Say how far the run is, and hand back what the last stage took."""
    release()
    progress(stage, share)


def _up(share: float) -> str:
    """A share rounded up to three significant digits, so that asking for it succeeds."""
    digits = 2 - math.floor(math.log10(share))
    return f"{math.ceil(share * 10**digits) / 10**digits:.{digits}f}"
