"""What the engine's parts are worth on the ignition surrogate, and what they cost: one markdown table per command.

``refits``: refits all at once against refits stage by stage, at equal widths. ``samples``: how many calibration rows it
takes. ``cost``: time and memory of the parts. Networks and data are what train_ignition.py writes; what is timed runs
in a process of its own, and in CPU seconds too, which tell more where others use the machine.

    python tools/bench_engine.py refits --network full.onnx --calibration full.npz --labelled full_labelled.npz
"""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated
from unittest import mock

import numpy as np
import onnx
import typer
from bench_common import apart, header, peak_mb, row
from bench_mlps import ROWS, SAMPLES, Labelled, outputs, relative_error

from onnx_condense import condense
from onnx_condense.cost import count_parameters
from onnx_condense.data import Samples, input_specs, split
from onnx_condense.data import load as load_samples
from onnx_condense.errors import CondenseError
from onnx_condense.evidence import moments
from onnx_condense.fit.fitting import SELECTION_RIDGE, Fitter
from onnx_condense.fit.reading import Readers, find_readers
from onnx_condense.network.model import Network, inlined, load
from onnx_condense.options.goal import Goal
from onnx_condense.plan import ChannelView, IntArray, Moments, Plan
from onnx_condense.proving.proof import Prover
from onnx_condense.rewrite import apply_plan
from onnx_condense.runtime import Runtime, limited_threads, run
from onnx_condense.search.aim import Aim
from onnx_condense.search.bounds import Bounds
from onnx_condense.search.widths import Widths
from onnx_condense.select.obs import ReaderCost, eliminate
from onnx_condense.spaces import find_spaces

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

SHARES = "0.25,0.16,0.1,0.07,0.05,0.03,0.02"
COUNTS = "64,128,256,512,1024,2048,4096,8192,16384,32000"
SLIM = "slim.onnx"
# Fewer rows than this are not asked to meet a tolerance.
ENOUGH = 1024
# What a run may cost beside the condensing itself, in passes over the calibration data; and memory over what must be.
PASSES, TIMES = 4, 4

File = Annotated[Path, typer.Option(exists=True, dir_okay=False)]
Threads = Annotated[int, typer.Option(help="Of ONNX Runtime and BLAS.")]
Rows = Annotated[int, typer.Option(help="Calibration rows to use, from the first.")]
Words = Annotated[str, typer.Option(help="Joined by commas.")]


@dataclasses.dataclass(frozen=True)
class Case:
    """One network and its calibration inputs, dealt as condense() deals them."""

    network: Network
    view: ChannelView
    samples: Samples
    fit: IntArray
    search: IntArray
    runtime: Runtime

    @staticmethod
    def read(network: Path, calibration: Path, count: int, threads: int) -> Case:
        """From files, the first `count` rows."""
        dense = load(network)
        with np.load(calibration) as stored:
            samples = load_samples({"state": stored["state"][:count]}, input_specs(dense.proto.graph))
        shares = split(samples, 0)
        return Case(dense, find_spaces(dense), samples, shares.fit, shares.search, Runtime(threads=threads))


# ---- refits ----


class Sweeper(Fitter):
    """A fitter that can go over the readers of a plan once more."""

    def again(self, plan: Plan, condensed: onnx.ModelProto) -> onnx.ModelProto:
        """Every stage refitted once more, in order, on what the condensed network delivers now."""
        gone = plan.dropped(self.view.spaces)
        touched = [r for r in self._readers if np.isin(r.labels, list(gone)).any()]
        updates = {u.use: u for u in plan.updates}
        stages = self._stages(touched)
        for level in sorted({r.level for r in touched} - {0}):
            self._refit_stage(stages, [r for r in touched if r.level == level], gone, updates, condensed)
            plan = dataclasses.replace(plan, updates=tuple(updates[i] for i in sorted(updates)))
            condensed = apply_plan(self.network, self.view, plan)
        return condensed


def chosen_widths(case: Case, fitter: Fitter, shares: Sequence[float]) -> Iterator[tuple[int, ...]]:
    """The widths that condense(keep=share) takes: on the path to the smallest share, the first stop within each."""
    goal = Goal(None, min(shares), allow_slower=True, seed=0)
    hunter = Prover(case.network, case.runtime).judge(case.samples, case.search, optimize=True)
    total = count_parameters(case.network.proto)
    aim = Aim(fitter, Bounds(goal, case.network), lambda _: 1.0)
    path, _ = Widths(fitter, hunter, goal, aim, lambda: None).find()
    for share in shares:
        small = (p.widths for p in path if p.parameters <= share * total)
        # The path leaves out biases that the refit adds.
        yield next(w for w in small if count_parameters(fitter.plan(w, sequential=False)[1]) <= share * total)


@app.command()
def refits(
    network: File,
    calibration: File,
    labelled: File,
    samples: Rows = SAMPLES,
    shares: Words = SHARES,
    threads: Threads = 1,
) -> None:
    """Refits all at once, stage by stage, and stage by stage twice, at equal widths."""
    data, case = Labelled.read(network, labelled), Case.read(network, calibration, samples, threads)
    print(header("parameters kept, %", "widths", "error, all at once", "error, stage by stage", "its ratio",
                 "error, + sweep", "labelled L1, all at once", "labelled L1, stage by stage"), flush=True)  # fmt: skip
    print(row("100 (dense)", "", "", "", "", "", f"{data.l1(data.dense):.4f}", ""), flush=True)
    with limited_threads(threads), tempfile.TemporaryDirectory() as scratch:
        fitter = Sweeper(case.network, case.view, case.samples, case.fit, case.search, case.runtime)
        stops = list(chosen_widths(case, fitter, [float(s) for s in shares.split(",")]))
        fitter.use_all(case.search)
        for widths in stops:
            print(refit_row(fitter, widths, data, Path(scratch, "slim.onnx")), flush=True)


def refit_row(fitter: Sweeper, widths: Sequence[int], data: Labelled, scratch: Path) -> str:
    """One line of the table of refits."""
    _, at_once = fitter.plan(widths, sequential=False)
    plan, staged = fitter.plan(widths, sequential=True)
    errors, losses = [], []
    for model in (at_once, staged, fitter.again(plan, staged)):
        onnx.save(model, scratch)
        y = outputs(scratch, "state", data.x)[0]
        errors.append(relative_error([data.dense], [y]))
        losses.append(data.l1(y))
    kept = 100 * count_parameters(staged) / count_parameters(fitter.network.proto)
    shown = "-".join(str(w) for w in widths)
    error = [f"{e:.5f}" for e in errors]
    ratio = f"{errors[1] / errors[0]:.3f}"
    return row(f"{kept:.2f}", shown, error[0], error[1], ratio, error[2], *(f"{loss:.4f}" for loss in losses[:2]))


# ---- what is measured in a process of its own ----


def timed(work: Callable[[], object]) -> dict[str, float]:
    """Wall and CPU seconds of all threads."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return {"seconds": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def run_pass(network: Path, calibration: Path, count: int, threads: int) -> dict[str, float]:
    """One pass of the dense network over the calibration rows; loading is not counted."""
    case = Case.read(network, calibration, count, threads)
    session, everything = case.runtime.session(network), np.arange(len(case.samples))
    return timed(lambda: [run(session, part.feed) for part in case.samples.batches(everything, ROWS)])


def run_selection(network: Path, calibration: Path, count: int, threads: int) -> dict[str, float]:
    """The elimination of the widest space on its real moments; collecting these is not counted."""
    case = Case.read(network, calibration, count, threads)
    space = max((s for s in case.view.spaces if s.reducible), key=lambda s: s.width)
    costs = []
    for readers in find_readers(case.network, case.view, [space]):
        found = dense_moments(case, readers)
        costs.append(ReaderCost(readers.weight, found.covariance, readers.owned(space, slice(0, len(readers.labels)))))
    with limited_threads(threads):
        return timed(lambda: eliminate(costs, np.flatnonzero(~space.pinned), SELECTION_RIDGE)) | {"width": space.width}


def dense_moments(case: Case, readers: Readers) -> Moments:
    """Of what one reader reads, on the fit share."""
    ranks = {c.tensor: len(case.network.shape(c.tensor) or ()) for c in readers.columns}
    pairs = [moments.with_itself(c) for c in readers.columns[:1]]
    return moments.collect(inlined(case.network), pairs, ranks, case.samples, case.fit, case.runtime)[0]


def run_condense(
    network: Path, calibration: Path, count: int, threads: int, *, tolerance: float | None, keep: float | None
) -> dict[str, float]:
    """A whole condense() but for the timing of both networks; the result is written beside the calibration."""
    with np.load(calibration) as stored:
        feed = {"state": stored["state"][:count]}
    results = []
    with mock.patch.object(Prover, "time", return_value=[]):
        spent = timed(
            lambda: results.append(condense(network, calibration=feed, threads=threads, tolerance=tolerance, keep=keep))
        )
    report = results[0].report
    results[0].save(calibration.with_name(SLIM))
    assert report.parameters
    assert report.error
    return spent | {"kept": report.parameters.after / report.parameters.before, "error": report.error.value}


PARTS = {"pass": run_pass, "selection": run_selection}


@app.command(hidden=True)
def part(
    what: str,
    network: File,
    calibration: File,
    rows: Rows = SAMPLES,
    threads: Threads = 1,
    tolerance: float = -1.0,
    keep: float = -1.0,
) -> None:
    """Measure one part and print it as JSON ("imports": nothing but what has been loaded by now)."""
    found: dict[str, float | str] = {}
    try:
        if what == "condense":
            goal = {"tolerance": tolerance if tolerance >= 0 else None, "keep": keep if keep >= 0 else None}
            found |= run_condense(network, calibration, rows, threads, **goal)
        elif what in PARTS:
            found |= PARTS[what](network, calibration, rows, threads)
    except CondenseError as error:
        found["failed"] = error.text
    print(json.dumps(found | {"peak_mb": peak_mb()}))


def measured(what: str, network: Path, calibration: Path, rows: int, threads: int, **goal: float) -> dict[str, float]:
    """One part in a process of its own.

    Raises:
        RuntimeError: it failed, with its message.
    """
    command = [sys.executable, __file__, "part", what, "--network", str(network), "--calibration", str(calibration)]
    command += ["--rows", str(rows), "--threads", str(threads), *(f"--{name}={value}" for name, value in goal.items())]
    done = apart(command)
    found: dict[str, float] = {} if done.failed else json.loads(done.last)
    if done.failed or "failed" in found:
        raise RuntimeError(done.failed or str(found["failed"]))
    return found


# ---- samples ----


@app.command()
def samples(
    network: File,
    calibration: File,
    labelled: File,
    counts: Words = COUNTS,
    keep: Annotated[float, typer.Option(help="0: not.")] = 0.07,
    tolerance: Annotated[float, typer.Option(help="0: not.")] = 0.01,
    threads: Threads = 1,
) -> None:
    """How the result depends on the number of calibration rows."""
    data = Labelled.read(network, labelled)
    columns = ["calibration rows", "goal", "parameters kept, %", "error, verify share", "error, labelled inputs"]
    print(header(*columns, "labelled L1", "seconds", "CPU seconds"), flush=True)
    # The least number of rows to ask for each goal.
    goals = (("keep", keep, 0), ("tolerance", tolerance, ENOUGH))
    with tempfile.TemporaryDirectory() as scratch:
        rows = Path(scratch, calibration.name)
        rows.symlink_to(calibration.resolve())
        for count in (int(c) for c in counts.split(",")):
            for name, value in [(name, value) for name, value, least in goals if value and count >= least]:
                cells = sample_cells(data, rows, count, threads, {name: value})
                print(row(count, f"{name} {value:g}", *cells), flush=True)


def sample_cells(data: Labelled, rows: Path, count: int, threads: int, goal: dict[str, float]) -> list[str]:
    """What condensing on some rows gives; a message and nothing else where it gives nothing."""
    try:
        found = measured("condense", data.network, rows, count, threads, **goal)
    except RuntimeError as error:
        return [str(error), *[""] * 5]
    y = outputs(rows.with_name(SLIM), "state", data.x)[0]
    cells = [f"{100 * found['kept']:.2f}", f"{found['error']:.4f}", f"{relative_error([data.dense], [y]):.4f}"]
    return [*cells, f"{data.l1(y):.4f}", f"{found['seconds']:.0f}", f"{found['cpu']:.0f}"]


# ---- cost ----


@app.command()
def cost(network: File, calibration: File, rows: Rows = SAMPLES, tolerance: float = 0.01, threads: Threads = 1) -> None:
    """Time and memory of the selection of the widest space, of one pass, and of a whole run."""
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch, calibration.name)
        data.symlink_to(calibration.resolve())
        names = ("imports", "pass", "selection")
        found = {name: measured(name, network, data, rows, threads) for name in names}
        found["condense"] = measured("condense", network, data, rows, threads, tolerance=tolerance)
    width, whole = int(found["selection"]["width"]), found["condense"]
    passes = {kind: PASSES * found["pass"][kind] for kind in ("seconds", "cpu")}
    print(header("what", "seconds", "CPU seconds", "peak MB of its process"))
    print(cost_row("imports alone", {}, found["imports"]["peak_mb"]))
    print(cost_row(f"one pass over {rows} rows", found["pass"], found["pass"]["peak_mb"]))
    print(cost_row(f"selection of the {width}-wide space alone", found["selection"], found["selection"]["peak_mb"]))
    print(cost_row(f"condense, tolerance {tolerance:g}, networks not timed", whole, whole["peak_mb"]))
    beyond = {kind: whole[kind] - passes[kind] for kind in passes}
    print(cost_row(f"the same beyond {PASSES} passes", beyond, None))
    print(cost_row(f"{TIMES} x (network file + largest moments)", {}, TIMES * largest_mb(network)))


def cost_row(what: str, spent: dict[str, float], peak: float | None) -> str:
    """One line of the table of costs."""
    seconds = [f"{spent[kind]:.1f}" if kind in spent else "" for kind in ("seconds", "cpu")]
    return row(what, *seconds, "" if peak is None else f"{peak:.0f}")


def largest_mb(network: Path) -> float:
    """Bytes of a network and of the moments in float64 of what its widest reader reads, in MB."""
    dense = load(network)
    view = find_spaces(dense)
    readers = find_readers(dense, view, [s for s in view.spaces if s.reducible])
    return (network.stat().st_size + 8 * max(len(r.labels) for r in readers) ** 2) / 1e6


if __name__ == "__main__":
    app()
