"""The founding paper's combustion experiment, reproduced and passed: one command, two Markdown tables.

The paper (surrogate of arXiv 2201.03549) condenses a network for one 1e-6 s step of methane combustion (gri30) from
6.80 to 2.85 million parameters, 41.7 %, and trains on. Here its method stands beside ours, bare and tuned, and the same
sizes from scratch with the same steps. Tuning sees unlabeled inputs only; labels only judge. A fifth of the ignitions
is set aside to judge the error on (see combustion.parted).

FOLDER holds full.onnx, full.npz and full_labelled.npz; they are made where they are missing (train_ignition.py, its
full preset: about 10 minutes on 2 cores). One seed takes about an hour on 2 cores. Times are per state: Cantera's is
that of the integrator, the networks' that of the network without the transforms of its inputs.

    pip install 'onnx-condense[tools]'
    python tools/reproduce_combustion.py --folder models/full
    python tools/reproduce_combustion.py --folder models/full --sizes 5,1 --methods fit --seeds 0,1,2 --no-scratch
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import combustion
import numpy as np
import onnx
import scratch
import train_ignition
import typer
from bench_common import header, row
from bench_mlps import Labelled
from combustion import COLUMNS, Referee, Roller, Trajectories
from train_ignition import Scaling
from trials import INSTALL, LABELS, Judge, Made, Setting, can_tune, failed, methods_of

from onnx_condense.cost import count_parameters
from onnx_condense.errors import CondenseError

PAPER = ("condensation", "condensation-refit")
# Of trajectories to tune on; those that judge have seed 0.
ROLLED_SEED = 1
# As many calibration inputs as there are training states.
FULL = {"widths": "3200,1600,800,400", "epochs": 15, "calibration": 10**9, "labelled": 4000}


@dataclasses.dataclass(frozen=True)
class Asked:
    """Which rows. rounds: 1: none of them has rounds; paper: sizes at which the paper's methods are shown."""

    sizes: Sequence[float]
    paper: Sequence[float]
    methods: Sequence[str]
    seeds: Sequence[int]
    tune: bool
    scratch: bool
    rounds: int
    round_sizes: Sequence[float]

    def methods_at(self, size: float) -> list[str]:
        """Those that are shown at a size, ours last."""
        return [m for m in self.methods if m not in PAPER or size in self.paper]


class Table:
    """Makes networks and prints their rows as they come.

    Attributes:
        species: rows of the second table.
    """

    def __init__(
        self, setting: Setting, asked: Asked, referee: Referee, judge: Judge, folder: Path, roller: Roller | None
    ) -> None:
        self._setting, self._asked, self._referee, self._judge = setting, asked, referee, judge
        self._folder, self._roller = folder, roller
        self._total = count_parameters(onnx.load(setting.network))
        self.species: list[str] = []

    def dense(self) -> None:
        """The row that all others are read beside."""
        self._row("dense", "", Made(onnx.load(self._setting.network)), told=True)

    def all(self) -> None:
        """Every size by every method."""
        for seed in self._asked.seeds:
            for size in sorted({*self._asked.sizes, *self._asked.paper}, reverse=True):
                self._size(size, seed)

    def _size(self, size: float, seed: int) -> None:
        """One size: bare, tuned, in rounds; and from scratch with the steps of the last method, which is ours."""
        if not (methods := self._asked.methods_at(size)):
            return
        tuned, setting = None, self._setting
        for method in methods:
            label = f"{LABELS[method]}, {100 * size:g} %"
            bare = None
            with self._told(label, seed):
                bare = self._row(label, seed, self._setting.bare(size, seed, method))
            if not self._asked.tune:
                continue
            setting, tuned = self._taught(bare), None
            with self._told(f"{label}, tuned", seed):
                tuned = setting.tuned(size, seed, method)
                self._row(f"{label}, tuned", seed, tuned, told=True)
            if self._asked.rounds > 1 and size in self._asked.round_sizes:
                text = f"{label}, {self._asked.rounds} rounds"
                with self._told(text, seed):
                    self._row(text, seed, setting.tuned(size, seed, method, self._asked.rounds), told=True)
        if tuned and tuned.steps and self._asked.scratch:
            with self._told(f"from scratch, {100 * size:g} %", seed):
                self._row(f"from scratch, {100 * size:g} %", seed, setting.scratch(tuned, seed), told=True)

    def _taught(self, bare: Path | None) -> Setting:
        """With states that the dense and the bare network, if there is one, get into to tune on besides."""
        if self._roller is None or self._setting.more is None:
            return self._setting
        networks = [self._setting.network, *([bare] if bare else [])]
        more = self._roller.more(self._setting.more, networks, self._folder / "more_rolled.npz")
        return dataclasses.replace(self._setting, more=more)

    @contextlib.contextmanager
    def _told(self, label: str, seed: int) -> Iterator[None]:
        """What can't be made is said in its row."""
        try:
            yield
        except CondenseError as error:
            print(failed(label, f"{seed}: {error.text}", len(COLUMNS)), flush=True)

    def _row(self, label: str, seed: int | str, made: Made, *, told: bool = False) -> Path:
        """Print one row; told: by species as well; where the network is."""
        path = (
            self._folder / f"{label.replace('%', '').replace(':', '').replace(',', '').replace(' ', '_')}_{seed}.onnx"
        )
        onnx.save(made.model, path)
        count = made.parameters
        cells = [f"{count:,}", f"{100 * count / self._total:.2f}", f"{self._judge.error(path):.4f}"]
        trained = [str(made.steps), f"{made.seconds:.0f}"] if made.steps else ["", ""]
        print(row(label, seed, *cells, *self._referee.cells(path), *trained), flush=True)
        if told:
            main = combustion.known(self._referee.species)
            name = f"{label}, seed {seed}" if len(self._asked.seeds) > 1 and seed != "" else label
            self.species.append(row(name, *self._referee.by_species(path).cells(main)))
        return path


def ensure(folder: Path, mechanism: str, jobs: int, seed: int) -> tuple[Path, Path, Path]:
    """The dense network, unlabeled inputs and labelled ones; made where one is missing."""
    stem = folder / "full"
    files = stem.with_suffix(".onnx"), stem.with_suffix(".npz"), folder / "full_labelled.npz"
    if not all(path.exists() for path in files):
        print(f"training the dense network into {folder}", file=sys.stderr, flush=True)
        with contextlib.redirect_stdout(sys.stderr):
            options: dict[str, Any] = {**FULL, "mechanism": mechanism, "jobs": jobs, "seed": seed}
            train_ignition.main(out=stem, cache=folder / "full_samples.npz", **options)
    return files


def percents(text: str) -> list[float]:
    """As an option of the command."""
    try:
        return scratch.sizes_of(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def main(
    folder: Annotated[Path, typer.Option(help="Where full.onnx, full.npz, full_labelled.npz are, or are put.")],
    sizes: Annotated[str, typer.Option(help="Percents of the parameters, joined by commas.")] = "41.7,20,10,5,2.5,1",
    paper_sizes: Annotated[str, typer.Option(help="At which the paper's methods are shown.")] = "41.7",
    methods: Annotated[str, typer.Option(help="Joined by commas.")] = ",".join(LABELS),
    seeds: Annotated[str, typer.Option(help="Joined by commas.")] = "0",
    tune: Annotated[bool, typer.Option("--tune/--no-tune", help="Tuned rows (PyTorch).")] = True,
    from_scratch: Annotated[bool, typer.Option("--scratch/--no-scratch", help="The same sizes from scratch.")] = True,
    tune_minutes: float = 3.0,
    tune_loss: Annotated[str, typer.Option(help="As of onnx-condense; empty: its default.")] = "",
    rounds: Annotated[int, typer.Option(help="More than 1: rows with so many rounds.")] = 1,
    round_sizes: Annotated[str, typer.Option(help="At which there are such rows.")] = "5,2.5,1",
    samples: Annotated[int, typer.Option(help="Inputs to condense on; tuning has them all.")] = 8192,
    rolled: Annotated[
        int, typer.Option(help="Other trajectories, of the dense and of the bare network, to tune on too; 0: none.")
    ] = 64,
    trajectories: Annotated[int, typer.Option(help="Rollouts; 0: none.")] = 48,
    steps: Annotated[int, typer.Option(help="Of each rollout, 1e-6 s.")] = 600,
    mechanism: Annotated[str, typer.Option(help="Cantera mechanism file.")] = "gri30.yaml",
    jobs: Annotated[int, typer.Option(help="Processes that make samples.")] = 2,
    threads: int = 2,
    save: Annotated[Path | None, typer.Option(help="Folder to leave the networks in.")] = None,
) -> None:
    """Print both tables."""
    try:
        named = methods_of(methods)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--methods") from error
    asked = Asked(
        percents(sizes),
        percents(paper_sizes),
        named,
        [int(s) for s in seeds.split(",")],
        tune,
        from_scratch,
        rounds,
        percents(round_sizes),
    )
    if tune and not can_tune():
        raise typer.BadParameter(INSTALL, param_hint="--tune")
    import cantera as ct

    network, states, labels = ensure(folder, mechanism, jobs, 0)
    gas = ct.Solution(mechanism, transport_model=None)
    with np.load(labels) as data:
        scaling = Scaling(*(data[f.name] for f in dataclasses.fields(Scaling)))
    runs = Trajectories(gas, network, scaling, trajectories, steps, 0) if trajectories else None
    referee = Referee(Labelled.read(network, labels), gas.species_names, runs, threads)
    with tempfile.TemporaryDirectory() as work:
        files = combustion.parted(states, Path(work), samples, 0)
        roller = Roller(gas, scaling, rolled, steps, ROLLED_SEED) if tune and rolled else None
        setting = Setting(network, files.calibration, files.verification, files.more, tune_minutes, threads, tune_loss)
        if save is not None:
            save.mkdir(parents=True, exist_ok=True)
        table = Table(setting, asked, referee, setting.judge(), save or Path(work), roller)
        print(header(*COLUMNS), flush=True)
        table.dense()
        for tolerances in combustion.TOLERANCES:
            print(row(*combustion.cantera_row(gas, referee.labelled.x, scaling, tolerances)), flush=True)
        table.all()
    print("\n" + header(*combustion.SPECIES_HEAD, *combustion.known(gas.species_names)))
    print("\n".join(table.species), flush=True)


if __name__ == "__main__":
    typer.run(main)
