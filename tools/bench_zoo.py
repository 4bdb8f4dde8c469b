"""Condenses networks as they are found and as other tools rewrite them: one Markdown table.

NETWORKS holds NAME.onnx, INPUTS the sets that zoo_inputs.py writes: NAME.npz (or a folder NAME) to calibrate on and
NAME_u.npz, which nothing was calibrated on. Every step runs in a process of its own, with a limit of time, so that
whatever happens to one run is said in its row and the others go on. The last column says what must not be: an unseen
error beyond 1.1 times the tolerance, a file that the checker or ONNX Runtime does not take, a larger file.

    python tools/zoo_inputs.py inputs --sounds sounds
    nice python tools/bench_zoo.py table networks inputs --tolerance 0.01 --threads 2
"""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import onnx
import typer
import zoo_variants
from bench_common import Job, Outcome, apart, condense_apart, header, row

from onnx_condense.data import input_specs
from onnx_condense.data import load as load_samples
from onnx_condense.errors import CondenseError
from onnx_condense.metrics import Judge
from onnx_condense.runtime import Runtime

# Passes are bounded by samples; the results do not depend on it.
ROWS = 16
AS_IS = "as is"
# What the unseen set may add to the tolerance by chance.
ALLOWED = 1.1
# What is wrong where it adds more.
UNSEEN = "unseen error"

COLUMNS = (
    *("network", "variant", "outcome", "parameters kept, %", "bytes kept, %", "error, verify share"),
    *("error, unseen", "its ratio to the tolerance", "seconds", "peak MB", "wrong"),
)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What became of a written network: its error on the unseen set (nan if not measured), and what is wrong."""

    unseen: float
    wrong: tuple[str, ...]


@app.command()
def judge(network: Path, found: Path, unseen: Path, threads: int = 0) -> None:
    """Compare a condensed network with its dense one on unseen inputs; prints JSON."""
    wrong, error = [], float("nan")
    try:
        onnx.checker.check_model(str(found), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as fault:
        wrong.append(f"checker: {one_line(fault)}")
    runtime = Runtime(threads=threads)
    try:
        runtime.session(found)
        samples = load_samples(unseen, input_specs(onnx.load(network, load_external_data=False).graph))
        error = (
            Judge(network, samples, np.arange(len(samples)), runtime, ROWS, optimize=False)
            .measure(onnx.load(found))
            .value
        )
    except CondenseError as fault:
        wrong.append(one_line(fault))
    print(json.dumps({"unseen": error, "wrong": wrong}))


def one_line(fault: Exception) -> str:
    """The first line of what an error says, fit for a cell."""
    return next(iter(str(fault).strip().splitlines()), type(fault).__name__).replace("|", "/")


def size(network: Path) -> int:
    """Bytes of a network, weights in other files included."""
    proto = onnx.load(network, load_external_data=False)
    tensors = [t for t in proto.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    beside = {entry.value for t in tensors for entry in t.external_data if entry.key == "location"}
    return sum(path.stat().st_size for path in (network, *(network.parent / name for name in beside)))


def variant(name: str, network: Path, calibration: Path, scratch: Path, limit: float) -> tuple[Path, str]:
    """A variant's file, and why it could not be made."""
    if name == AS_IS:
        return network, ""
    out = scratch / f"{network.stem}_{name}.onnx"
    command = [sys.executable, zoo_variants.__file__, name, str(network), str(out)]
    return out, apart([*command, f"--calibration={calibration}"], limit).failed


def verdict(job: Job, unseen: Path) -> Verdict:
    """What the written network is worth."""
    command = [sys.executable, __file__, "judge", str(job.network), str(job.out), str(unseen)]
    done = apart([*command, f"--threads={job.threads}"], job.limit)
    if done.failed:
        return Verdict(float("nan"), (f"judging: {done.failed}",))
    found = json.loads(done.last)
    wrong = list(found["wrong"])
    if not found["unseen"] <= ALLOWED * (job.tolerance or 0.0):
        wrong.append(UNSEEN)
    if size(job.out) > size(job.network):
        wrong.append("larger file")
    return Verdict(found["unseen"], tuple(wrong))


def said(outcome: Outcome) -> str:
    """The outcome in words."""
    if outcome.refused:
        return f"refused: {outcome.failed} ({outcome.refused})"
    if outcome.status == "unchanged":
        return f"unchanged, because {outcome.reason}"
    return outcome.failed or outcome.status


def table_row(name: str, kind: str, job: Job, unseen: Path) -> str:
    """One run and its line; only what was written is judged."""
    outcome = condense_apart(job)
    last = (f"{outcome.seconds:.1f}", f"{outcome.peak_mb:.0f}")
    words = said(outcome).replace("|", "/")
    if outcome.failed or outcome.status != "condensed":
        own = outcome.failed and (not outcome.refused or outcome.refused == "DefectError")
        return row(name, kind, words, *[""] * 5, *last, "no result" if own else "")
    found = verdict(job, unseen)
    sizes = (100 * outcome.kept, 100 * size(job.out) / size(job.network))
    errors = (f"{outcome.error:.5f}", f"{found.unseen:.5f}", f"{found.unseen / (job.tolerance or np.nan):.2f}")
    return row(name, kind, words, *(f"{s:.1f}" for s in sizes), *errors, *last, "; ".join(found.wrong))


def source(folder: Path, name: str) -> Path | None:
    """A set of inputs by its name, a file or a folder."""
    return next((path for path in (folder / f"{name}.npz", folder / name) if path.exists()), None)


def cases(networks: Path, inputs: Path, only: str) -> Iterator[tuple[Path, Path, Path]]:
    """Networks with both sets of inputs, small ones first; others are named on stderr."""
    wanted = set(only.split(",")) if only else set()
    for network in sorted(networks.glob("*.onnx"), key=lambda path: path.stat().st_size):
        if wanted and network.stem not in wanted:
            continue
        seen, unseen = source(inputs, network.stem), source(inputs, f"{network.stem}_u")
        if seen is None or unseen is None:
            print(f"{network.stem}: skipped, no inputs in {inputs}", file=sys.stderr)
            continue
        yield network, seen, unseen


@app.command()
def table(
    networks: Annotated[Path, typer.Argument(exists=True, file_okay=False)],
    inputs: Annotated[Path, typer.Argument(exists=True, file_okay=False)],
    tolerance: float = 0.01,
    variants: Annotated[str, typer.Option(help="Joined by commas.")] = ",".join([AS_IS, *zoo_variants.VARIANTS]),
    only: Annotated[str, typer.Option(help="Names joined by commas; empty: all.")] = "",
    limit: Annotated[float, typer.Option(help="Seconds for one run.")] = 600.0,
    threads: int = 0,
    seed: int = 0,
    keep: Annotated[Path | None, typer.Option(help="Folder for what is written; otherwise it is thrown away.")] = None,
) -> None:
    """Condense every variant of every network and print one row for each."""
    print(header(*COLUMNS), flush=True)
    for network, seen, unseen in cases(networks, inputs, only):
        with tempfile.TemporaryDirectory() as scratch:
            folder = keep or Path(scratch)
            folder.mkdir(parents=True, exist_ok=True)
            for kind in variants.split(","):
                file, why = variant(kind, network, seen, folder, limit)
                out = folder / f"{network.stem}_{kind.replace(' ', '_')}_condensed.onnx"
                job = Job(file, seen, out, tolerance, threads=threads, seed=seed, limit=limit)
                line = table_row(network.stem, kind, job, unseen) if not why else unmade(network.stem, kind, why)
                print(line, flush=True)


def unmade(name: str, kind: str, why: str) -> str:
    """The line of a variant that does not exist."""
    return row(name, kind, f"not made: {why}".replace("|", "/"), *[""] * (len(COLUMNS) - 3))


if __name__ == "__main__":
    app()
