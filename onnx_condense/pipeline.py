"""condense(): what is asked for, put together and checked; `run` does it."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence
from typing import Any

import onnx

from onnx_condense.options.control import Control
from onnx_condense.options.goal import Goal, Threshold, by_pattern, check_goal
from onnx_condense.options.limits import Limits, Multiple
from onnx_condense.options.tuning import AUTO as AUTO_LOSS
from onnx_condense.options.tuning import tune_of
from onnx_condense.options.yardstick import RELATIVE, Metric, Tolerance, wish_for
from onnx_condense.outcome import Condensed
from onnx_condense.ready import ready
from onnx_condense.run import Run
from onnx_condense.runtime import CPU, Runtime, limited_threads
from onnx_condense.saved.plans import Document
from onnx_condense.saved.reuse import document_of, goal_by, wish_by
from onnx_condense.search.candidates import Progress
from onnx_condense.synthetic import wish_of

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
    tune: bool = False,
    tune_minutes: float | None = None,
    tune_steps: int | None = None,
    tune_data: Calibration = None,
    tune_loss: str = AUTO_LOSS,
    rounds: int = 1,
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
        max_macs: multiply-accumulates that a pass of it may take, likewise; sizes left open are those of the first
            sample.
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
        tune: train what was condensed to answer as the dense network does, without labels (extra: tune). It may then be
            narrower before that; it is given back where it does not get better.
        tune_minutes: wall time of all training; 3 where neither this nor `tune_steps` is given.
        tune_steps: of each training; the same steps give the same network on the same machine.
        tune_data: more inputs to train on, given as `calibration` is, but not drawn; what judges is left out.
        tune_loss: "mse" (the square of the relative error), "features" (of each feature), "l1", or "kl" of classes; by
            default what goes with the metric.
        rounds: condense and train so many times in turn; with `front` the networks of all rounds come out.
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
    asked = Goal(
        tolerance=wish.number,
        keep=keep,
        allow_slower=allow_slower,
        seed=seed,
        augment=augment,
        method=method,
        threshold=by_pattern(threshold),
        also_verify=tuple(also_verify),
        batches=tuple(batches),
        footprint=footprint,
        profile=profile,
        metric=metric,
        tolerances=wish.patterns,
        control=Control(tuple(include), tuple(exclude), min_width, max_cut),
        limits=Limits(max_parameters, max_macs, max_bytes, max_latency, speedup),
        multiple_of=multiple_of,
        front=front,
        tune=tune_of(
            tune=tune,
            minutes=tune_minutes,
            steps=tune_steps,
            data=tune_data is not None,
            loss=tune_loss,
            rounds=rounds,
        ),
    )
    asked = goal_by(given[0], asked) if given else asked
    there = {"calibrated": calibration is not None, "verified": verification is not None}
    goal = check_goal(asked, **there, planned=given is not None)
    # A plan that was made for a size has no tolerance, so none is a gate.
    goal = dataclasses.replace(goal, tolerance=wish.number) if given and calibration is not None else goal
    calibration = wish_of(calibration) or calibration
    started = time.monotonic()
    runtime = Runtime(providers, threads)
    with limited_threads(threads):
        run = Run(ready(model), runtime, goal, progress or (lambda _, __: None), given)
        if run.reuse and run.reuse.idle:
            found = run.as_it_is(f"{run.reuse.label} leaves every layer as it is")
        else:
            found = (
                run.without_samples() if calibration is None else run.on_samples(calibration, verification, tune_data)
            )
    seconds = time.monotonic() - started
    return dataclasses.replace(found, report=dataclasses.replace(found.report, dry_run=dry_run, seconds=seconds))
