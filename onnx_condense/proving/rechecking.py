"""The proof once more, for two networks that exist already: nothing is made and nothing is written.

With the same samples and seed the very samples judge that judged when the condensed network was made.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx

from onnx_condense.cost import Work, count_parameters
from onnx_condense.data import SMALLEST_SHARE, Samples, check_independent, input_specs, split
from onnx_condense.data import load as load_samples
from onnx_condense.errors import CalibrationError, DefectError, ModelError, UsageError
from onnx_condense.network.live import live
from onnx_condense.network.model import Network, inlined, load
from onnx_condense.options.goal import Goal, check_goal
from onnx_condense.options.yardstick import (
    METRICS,
    RELATIVE,
    Metric,
    Tolerance,
    Wish,
    check_known,
    metric_name,
    restored,
    wish_for,
    yardstick,
)
from onnx_condense.outcome import error_summary, file_size
from onnx_condense.plan import IntArray
from onnx_condense.proving.feeding import single
from onnx_condense.proving.latency import apart
from onnx_condense.proving.proof import Proof, Proved, Prover
from onnx_condense.proving.provenance import Provenance, origin, source_digest
from onnx_condense.proving.verify import check_graph, rounding_level
from onnx_condense.report.data import Change, Evidence, Footprint, Report
from onnx_condense.runtime import CPU, Runtime, limited_threads
from onnx_condense.search.candidates import EXACT, LARGEST_ROUNDING
from onnx_condense.spaces import find_spaces
from onnx_condense.synthetic import NOTE, Synthetic, draw_samples, wish_of
from onnx_condense.wording import counted

Progress = Callable[[str, float], None]
Given = str | os.PathLike[str] | onnx.ModelProto

NO_PROVENANCE = "the condensed network does not say what it was made from: it carries no metadata of onnx-condense"
NOT_COMPARED = "whether the condensed network was made from this one is not known: only files can be told by SHA-256"
SAME = "both networks are the same file"
SHARE = "judged on the share of --calibration that no fit has seen, if it was made with the same samples and seed"
NO_BATCH = "--batch needs --calibration or --verification: drawn inputs are timed as they are drawn"
DRAWN = "no samples were given: judged on a few drawn inputs, which is weaker"


def recheck(  # noqa: PLR0913 - the options of the command, all by keyword
    model: Given,
    condensed: Given,
    *,
    calibration: Any = None,
    verification: Any = None,
    tolerance: Tolerance = None,
    metric: Metric | None = None,
    providers: Sequence[str] = CPU,
    threads: int = 0,
    seed: int = 0,
    also_verify: Sequence[str] = (),
    batches: Sequence[int] = (),
    footprint: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Prove that a condensed network still stands for the dense one, and time both.

    Args:
        model: the dense network, a path or a ModelProto.
        condensed: what is said to be the same, smaller.
        calibration: samples as for `condense`; the share that verifies judges, all of them at tolerance 0.
        verification: samples that all judge, instead.
        tolerance: largest error allowed, as for `condense`; by default what the condensed network says it was made
            within, else 0.01 on samples. 0: as far as rounding goes; without samples inputs are drawn then.
        metric: as for `condense`; by default the one that the condensed network says it was judged by, else "relative".
        providers: as for `condense`.
        threads: as for `condense`.
        seed: of the split and the drawn inputs.
        also_verify: as for `condense`.
        batches: as for `condense`.
        footprint: as for `condense`.
        progress: called with a stage and the share of the work done.

    Returns:
        The report, its status is "verified".

    Raises:
        ModelError, CalibrationError: the inputs can't be used. UsageError: options are wrong, or samples are needed.
        DefectError: the condensed network is not what it should be.
    """
    wish = wish_for(tolerance, metric or RELATIVE)
    asked = Goal(wish.number, None, allow_slower=True, seed=seed, also_verify=tuple(also_verify))
    asked = dataclasses.replace(asked, batches=tuple(batches), footprint=footprint)
    check_goal(asked, calibrated=True, verified=False)
    if batches and calibration is None and verification is None:
        raise UsageError("batch", NO_BATCH)
    sampled = calibration is not None or verification is not None
    if metric not in (None, RELATIVE) and not sampled:
        raise UsageError("metric", "--metric needs --calibration or --verification: there is nothing to measure it on")
    wished = wish_of(calibration) or calibration
    started = time.monotonic()
    runtime = Runtime(providers, threads)
    with limited_threads(threads):
        tell = progress or (lambda _, __: None)
        run = _Recheck(live(load(model)), live(load(condensed)), runtime, asked, tell)
        run.hold_to(metric, tolerance, sampled=sampled)
        report = run.report(wished, verification)
    return dataclasses.replace(report, seconds=time.monotonic() - started)


class _Recheck:
    """One call of recheck()."""

    def __init__(self, dense: Network, condensed: Network, runtime: Runtime, asked: Goal, progress: Progress) -> None:
        self.dense, self.condensed = dense, condensed
        self.runtime, self.progress = runtime, progress
        self.notes: list[str] = []
        self.work = Work()
        self.label = str(condensed.path or "the condensed network")
        self.source_sha256, self.sha256 = source_digest(dense), source_digest(condensed)
        # First of all: what was made from another network differs in more than it has to.
        self.stamp = self._checked_stamp()
        check_graph(inlined(dense), inlined(condensed), rewritten=False, label=self.label)
        self.asked = self.goal = asked

    def hold_to(self, metric: Metric | None, tolerance: Tolerance, *, sampled: bool) -> None:
        """What was asked for, or what the network says it was made within.

        Raises:
            UsageError: that can't be known, or has to be measured on samples, and there are none.
        """
        metric = self._metric() if metric is None else metric
        same = self.stamp is not None and self.stamp.metric == metric_name(metric)
        wish = self._wish(metric, tolerance, same=same)
        number = wish.number
        if not sampled:
            number = self._without_samples(number)
        elif number is None and not same:
            number = check_known(metric, None)
        goal = dataclasses.replace(self.asked, tolerance=number, tolerances=wish.patterns, metric=metric)
        self.goal = check_goal(goal, calibrated=True, verified=False) if number is not None else goal
        by = yardstick(metric, number, wish.patterns, [o.name for o in self.dense.proto.graph.output])
        self.prover = Prover(self.dense, self.runtime, goal.also_verify, goal.batches, by)

    def _metric(self) -> Metric:
        """The one that the network says it was judged by."""
        name = RELATIVE if self.stamp is None else self.stamp.metric
        if name not in METRICS:
            text = f"{self.label} was judged by a function, {name}: give --metric and --tolerance"
            raise UsageError("metric", text)
        return name

    def _wish(self, metric: Metric, tolerance: Tolerance, *, same: bool) -> Wish:
        """The tolerance that was given, or the one that the network says it was made within; same: in that metric."""
        if tolerance is None and self.stamp is not None and same:
            try:
                tolerance = restored(self.stamp.tolerance)
            except ValueError as error:
                text = f"{self.label} does not say what it was made within in a way that is known: give --tolerance"
                raise UsageError("tolerance", text) from error
        return wish_for(tolerance, metric)

    def _checked_stamp(self) -> Provenance | None:
        """What the condensed network says of itself.

        Raises:
            DefectError: it says that it was made from another network.
        """
        stamp = Provenance.of(self.condensed.given)
        if self.source_sha256 == self.sha256:
            # It may have been made from yet another one.
            self.notes.append(SAME)
            return None
        if stamp is None:
            self.notes.append(NO_PROVENANCE)
        elif stamp.source_sha256 != self.source_sha256:
            if self.dense.path is not None:
                text = f"{self.label} was made from another network than {self.dense.path}: from one of SHA-256 "
                raise DefectError("another-source", f"{text}{stamp.source_sha256}, not {self.source_sha256}")
            self.notes.append(NOT_COMPARED)
        return stamp

    def report(self, calibration: Any, verification: Any) -> Report:
        """All that is found out."""
        sampled = calibration is not None or verification is not None
        goal = self.goal
        self.progress("running the dense network", 0.05)
        proof = self._proof(goal, calibration, verification) if sampled else self.prover.on_drawn(goal.seed)
        self.notes += (*self.work.told(self.dense), *(proof.judge.notes if sampled else (DRAWN,)))
        gate = self._rounding() if goal.lossless else goal.tolerance
        self.progress("verifying", 0.4)
        proved = self._proved(proof, gate)
        self.progress("timing", 0.6)
        drawn = not sampled or (verification is None and isinstance(calibration, Synthetic))
        report = self._told(goal, proof, proved, gate, "synthetic" if drawn else "samples")
        self.progress("done", 1.0)
        return report

    def _rounding(self) -> float:
        """What exact steps may move the outputs by."""
        return min(EXACT * rounding_level(self.dense, find_spaces(self.dense)), LARGEST_ROUNDING)

    def _without_samples(self, tolerance: float | None) -> float:
        """What rounding explains.

        Raises:
            UsageError: the network was condensed further, which has to be measured on samples.
        """
        if tolerance or (self.stamp is not None and self.stamp.tolerance == ""):
            within = f"within a tolerance of {tolerance:g}" if tolerance else "to a size"
            text = f"{self.label} is condensed {within}: give --calibration or --verification to measure it on"
            raise UsageError("verify-only", text)
        return 0.0

    def _proof(self, goal: Goal, calibration: Any, verification: Any) -> Proof:
        """What judges, of the samples that were given."""
        graph = self.dense.proto.graph
        session = self.runtime.session(self.prover.dense)
        if verification is not None:
            samples = load_samples(verification, input_specs(graph))
        elif isinstance(calibration, Synthetic):
            samples = draw_samples(calibration, self.dense, session, self.runtime, goal.seed)
            self.notes.append(NOTE)
        else:
            samples = load_samples(calibration, input_specs(graph))
        self.notes += samples.notes
        check_independent(samples, session, graph)
        self.work.sample = single(samples)
        return self.prover.on_samples(samples, self._judging(samples, goal, shared=verification is None))

    def _judging(self, samples: Samples, goal: Goal, *, shared: bool) -> IntArray:
        """Which samples judge: the same as in `run`."""
        if shared and not goal.lossless:
            self.notes.append(SHARE)
            return split(samples, goal.seed).verify
        if not goal.lossless and len(samples) < SMALLEST_SHARE:
            text = f"verification: {counted(len(samples), 'sample')}, at least {SMALLEST_SHARE} are needed; give more"
            raise CalibrationError("calibration-few", text)
        return np.arange(len(samples))

    def _proved(self, proof: Proof, gate: float | None) -> Proved:
        """The errors of the condensed network.

        Raises:
            DefectError: it does not run, breaks down, or is off by more than the gate.
        """
        try:
            proved = proof.measure(self.condensed.path or inlined(self.condensed))
        except ModelError as error:
            raise DefectError("does-not-run", f"{self.label} does not run: {error.text}") from error
        if fault := proved.measured.fault:
            raise DefectError("not-finite", f"{self.label}: {fault} on samples that judge", self._worst(proved))
        bound = math.inf if gate is None else gate
        if proved.excess(bound) > 1.0:
            name = self._worst(proved)
            allowed = f"{bound * proved.unit:.3g}"
            text = f"{self.label} is off by {proved.worst(bound)} at output {name}, above a tolerance of {allowed}"
            raise DefectError("tolerance", f"{text}, on {counted(proof.count, 'sample')}", name)
        return proved

    def _worst(self, proved: Proved) -> str:
        """The output that is off most."""
        outputs = proved.measured.outputs
        return next((o.name for o in outputs if o.fault), max(outputs, key=lambda o: o.value * o.scale).name)

    def _told(self, goal: Goal, proof: Proof, proved: Proved, gate: float | None, evidence: Evidence) -> Report:
        model, dense = inlined(self.condensed), self.dense
        source = origin(dense, self.source_sha256, ())
        result = None if self.condensed.path is None else str(self.condensed.path)
        plan = None if self.stamp is None else self.stamp.plan_sha256
        timings = tuple(self.prover.time(model, proof))
        return Report(
            status="verified",
            dry_run=True,
            parameters=Change(count_parameters(dense.proto), count_parameters(self.condensed.proto)),
            macs=Change(self.work.of(dense), self.work.of(self.condensed)),
            bytes=Change(file_size(dense), file_size(self.condensed)),
            error=error_summary(proved, goal, proof.count, gate),
            latency=timings,
            footprint=self._footprint(model, proof),
            evidence=evidence,
            origin=dataclasses.replace(source, plan_sha256=plan, result=result, result_sha256=self.sha256),
            notes=(*self.notes, *apart(timings)),
        )

    def _footprint(self, model: onnx.ModelProto, proof: Proof) -> Footprint | None:
        """What loading takes, if that was asked for; None with a note where it could not be measured."""
        if not self.asked.footprint:
            return None
        weighed = self.prover.weigh(model, proof)
        if isinstance(weighed, Footprint):
            return weighed
        self.notes.append(f"load time and memory were not measured: {weighed.text}")
        return None
