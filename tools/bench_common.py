"""What the benchmarks of condensing share: one run in a process of its own, and its cells of a markdown table.

A process of its own makes time and peak memory those of one run, imports included. Run as a script this file is that
process.
"""

from __future__ import annotations

import dataclasses
import json
import math
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from onnx_condense import condense
from onnx_condense.cost import Work
from onnx_condense.data import input_specs
from onnx_condense.data import load as load_samples
from onnx_condense.errors import CondenseError
from onnx_condense.network.model import load
from onnx_condense.proving import latency
from onnx_condense.proving.feeding import single
from onnx_condense.runtime import Feed, Runtime

if TYPE_CHECKING:
    from onnx_condense import Report


@dataclasses.dataclass(frozen=True)
class Job:
    """One call of condense(); limit: seconds that it may take, 0: any; method: empty for its default."""

    network: Path
    calibration: Path
    out: Path
    tolerance: float | None = None
    keep: float | None = None
    threads: int = 0
    seed: int = 0
    limit: float = 0.0
    allow_slower: bool = False
    method: str = ""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one call gave; `failed` is its message if it gave nothing.

    refused: the kind of error if it was raised on purpose, else empty;
    reason: why nothing changed, empty where something did; before, after: parameters; macs_before, macs_after:
    multiply-accumulates; error: on the verify share; seconds: wall time of the process; peak_mb: its largest resident
    set in MB.
    """

    status: str = "failed"
    reason: str = ""
    before: int = 0
    after: int = 0
    macs_before: int = 0
    macs_after: int = 0
    error: float = math.nan
    peak_mb: float = math.nan
    seconds: float = math.nan
    failed: str = ""
    refused: str = ""

    @property
    def kept(self) -> float:
        """Share of the parameters that stayed."""
        return self.after / self.before

    @property
    def macs_kept(self) -> float:
        """Share of the multiply-accumulates that stayed."""
        return self.macs_after / self.macs_before

    @staticmethod
    def facts(report: Report) -> dict[str, Any]:
        """The fields that a report fills."""
        facts: dict[str, Any] = {"status": report.status}
        facts |= {"reason": report.reason.text} if report.reason else {}
        facts |= {"error": report.error.value} if report.error else {}
        if report.parameters:
            facts |= {"before": report.parameters.before, "after": report.parameters.after}
        if report.macs:
            facts |= {"macs_before": report.macs.before, "macs_after": report.macs.after}
        return facts


def peak_mb() -> float:
    """Largest resident set of this process in MB.

    getrusage alone is not enough: Linux hands the parent's peak on to a child started by vfork and exec.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024 / 1e6
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 1e6


def one(
    network: Path,
    calibration: Path,
    out: Path,
    tolerance: float = -1.0,
    keep: float = -1.0,
    threads: int = 0,
    seed: int = 0,
    allow_slower: bool = False,
    method: str = "",
) -> None:
    """Condense once and print the outcome as JSON on the last line of stdout (negative or empty: not given)."""
    options: dict[str, Any] = {"tolerance": tolerance, "keep": keep}
    given = {name: value for name, value in options.items() if value >= 0}
    given |= {"allow_slower": allow_slower} | ({"method": method} if method else {})
    try:
        result = condense(network, calibration=calibration, threads=threads, seed=seed, **given)
    except CondenseError as error:
        print(json.dumps({"failed": error.text, "refused": type(error).__name__, "peak_mb": peak_mb()}))
        return
    result.save(out)
    print(json.dumps(Outcome.facts(result.report) | {"peak_mb": peak_mb()}))


@dataclasses.dataclass(frozen=True)
class Done:
    """A process that has ended. last: its last line on stdout; failed: how it ended if not well; seconds: wall time."""

    last: str
    failed: str
    seconds: float


def apart(command: list[str], limit: float = 0.0) -> Done:
    """Run a command to its end, or stop it after `limit` seconds (0: never)."""
    start = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit or None)  # noqa: S603 - a list of our own making, no shell
    except subprocess.TimeoutExpired:
        return Done("", f"stopped after {limit:g} s", time.perf_counter() - start)
    seconds = time.perf_counter() - start
    # A traceback ends with what went wrong.
    said, wrong = (text.strip().splitlines() or [""] for text in (done.stdout, done.stderr))
    return Done(said[-1], f"exit {done.returncode} {wrong[-1]}".rstrip() if done.returncode else "", seconds)


def condense_apart(job: Job) -> Outcome:
    """One run of condense() in a process of its own."""
    command = [sys.executable, __file__, str(job.network), str(job.calibration), str(job.out)]
    command += [f"--threads={job.threads}", f"--seed={job.seed}"]
    command += [f"--tolerance={job.tolerance}"] if job.tolerance is not None else []
    command += [f"--keep={job.keep}"] if job.keep is not None else []
    command += ["--allow-slower"] if job.allow_slower else []
    command += [f"--method={job.method}"] if job.method else []
    # A process of its own, so that its peak memory is that of this run alone.
    done = apart(command, job.limit)
    if done.failed:
        return Outcome(seconds=done.seconds, failed=done.failed)
    return Outcome(**json.loads(done.last), seconds=done.seconds)


def speedup(before: Path, after: Path, feed: Feed, batch: int, threads: int) -> str:
    """Measured speedup with its interval, as text."""
    result = latency.compare(before, after, feed, Runtime(threads=threads), batch=batch, effort=latency.CLOSE)
    return f"{result.speedup:.2f} ({result.interval[0]:.2f} to {result.interval[1]:.2f})"


def work_of(network: Path, inputs: Path) -> int:
    """Multiply-accumulates of a network as a run on these inputs counts them."""
    dense = load(network)
    return Work(single(load_samples(inputs, input_specs(dense.proto.graph)))).of(dense)


def row(*cells: object) -> str:
    """One line of a markdown table."""
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def header(*cells: str) -> str:
    """Head of a markdown table."""
    return row(*cells) + "\n" + row(*["---"] * len(cells))


if __name__ == "__main__":
    typer.run(one)
