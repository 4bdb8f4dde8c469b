"""The paper's method, the baselines and ours at equal size, without training: one Markdown table.

NETWORKS and INPUTS as in bench_zoo.py: NAME.onnx, NAME.npz (or a folder NAME) to calibrate on, and NAME_u.npz, which
nothing was calibrated on and on which errors are measured against the dense network. See `onnx_condense.fit.methods`.

    nice python tools/bench_methods.py networks inputs --only ignition,digits --threads 1
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Annotated

import bench_zoo
import typer
from bench_common import Job, condense_apart, header, row

METHODS = ("drop", "condensation", "drop-refit", "condensation-refit", "fit")


def cell(job: Job, unseen: Path) -> str:
    """The error on unseen inputs and the share kept, or why there is none."""
    outcome = condense_apart(job)
    if outcome.failed:
        return outcome.failed.replace("|", "/")
    if outcome.status != "condensed":
        return outcome.status
    found = bench_zoo.verdict(job, unseen)
    wrong = "; ".join(w for w in found.wrong if w != bench_zoo.UNSEEN)
    return wrong or f"{found.unseen:.3g} at {100 * outcome.kept:.1f} %"


def main(
    networks: Annotated[Path, typer.Argument(exists=True, file_okay=False)],
    inputs: Annotated[Path, typer.Argument(exists=True, file_okay=False)],
    keeps: Annotated[str, typer.Option(help="Shares of the parameters, joined by commas.")] = "0.75,0.5,0.25,0.1",
    only: Annotated[str, typer.Option(help="Names joined by commas; empty: all.")] = "",
    limit: Annotated[float, typer.Option(help="Seconds for one run.")] = 900.0,
    threads: int = 0,
    seed: int = 0,
) -> None:
    """Condense every network by every method to every size."""
    print(header("network", "asked for", *METHODS), flush=True)
    for network, seen, unseen in bench_zoo.cases(networks, inputs, only):
        for keep in (float(k) for k in keeps.split(",")):
            cells = []
            with tempfile.TemporaryDirectory() as scratch:
                for method in METHODS:
                    out = Path(scratch, f"{method}.onnx")
                    job = Job(network, seen, out, None, keep, threads, seed, limit, allow_slower=True, method=method)
                    cells.append(cell(job, unseen))
                    print(f"{network.stem} {keep:g} {method}: {cells[-1]}", file=sys.stderr, flush=True)
            print(row(network.stem, f"{100 * keep:g} %", *cells), flush=True)


if __name__ == "__main__":
    typer.run(main)
