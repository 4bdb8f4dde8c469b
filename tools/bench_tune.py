"""What training after condensing gives, without labels: one Markdown table per command.

``neuralfoil``: the largest network condensed to the sizes of the smaller ones that its authors trained (see
bench_neuralfoil.py), bare, tuned and from scratch. ``photos``: a classifier tuned on crops of a few photographs, judged
on other crops of them and on other photographs (see bench_photos.py). ``network``: any network and its inputs.
Tuning stops after --tune-minutes; from scratch is the same layout with the steps that its tuned row took.

    python tools/bench_tune.py neuralfoil --folder networks --methods condensation,condensation-refit,fit --rounds 3
    python tools/bench_tune.py photos networks/efficientnet_lite0.onnx photos --keeps 0.94,0.87,0.75
    python tools/bench_tune.py network --network net.onnx --calibration inputs.npz --keeps 0.5,0.25
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import bench_neuralfoil as foil
import bench_photos as photos
import numpy as np
import onnx
import typer
from bench_common import header, row
from bench_mlps import airfoil_folder, neuralfoil_inputs, read_airfoils
from trials import INSTALL, KINDS, LABELS, Judge, Made, Setting, can_tune, failed, kinds_of, methods_of
from zoo_inputs import centred, crops

from onnx_condense.cost import count_parameters
from onnx_condense.data import input_specs
from onnx_condense.data import load as load_samples
from onnx_condense.errors import CondenseError
from onnx_condense.network.model import load
from onnx_condense.runtime import Runtime

EVERY_KIND = ",".join(KINDS)
TRAINED = ("steps", "tuning, s", "seconds")
app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

Keeps = Annotated[str, typer.Option(help="Shares of the parameters, joined by commas.")]
Kinds = Annotated[str, typer.Option(help=f"Some of {', '.join(KINDS)}, joined by commas.")]
Methods = Annotated[str, typer.Option(help=f"Some of {', '.join(LABELS)}, joined by commas.")]
Rounds = Annotated[int, typer.Option(help="More than 1: tuned rows in so many rounds as well.")]
Minutes = Annotated[float, typer.Option(help="Of tuning.")]
Loss = Annotated[str, typer.Option(help="As --tune-loss of onnx-condense; empty: its default.")]
Gain = Annotated[float, typer.Option(help="Of weights from scratch; see scratch.py.")]
More = Annotated[Path | None, typer.Option(exists=True, help="Further unlabeled inputs to tune on.")]


@dataclasses.dataclass(frozen=True)
class Wanted:
    """Which rows: methods, some of LABELS; kinds, some of KINDS; rounds: more than 1: rows with so many as well."""

    methods: Sequence[str]
    kinds: Sequence[str]
    rounds: int = 1


@dataclasses.dataclass(frozen=True)
class Rows:
    """Makes networks of one setting and prints a row for each as it comes.

    head: the columns between the label and TRAINED; cells: what stands in them.
    out: where networks are written on the way.
    """

    setting: Setting
    wanted: Wanted
    head: Sequence[str]
    cells: Callable[[Path], Sequence[str]]
    out: Path

    def start(self) -> None:
        """The head of the table."""
        print(header("network", *self.head, *TRAINED), flush=True)

    def at(self, keep: float, label: str, seed: int) -> None:
        """The rows of one size, ours last; from scratch follows what is tuned, whose steps it takes."""
        tuned: Made | None = None
        for method in self.wanted.methods:
            tuned = self._by(method, keep, label if method == "fit" else f"{label}, {LABELS[method]}", seed)
        if "scratch" in self.wanted.kinds and tuned and tuned.steps:
            self._row(f"{label}, scratch", functools.partial(self.setting.scratch, tuned, seed))

    def _by(self, method: str, keep: float, label: str, seed: int) -> Made | None:
        """Bare, tuned and in rounds by one method; what is tuned in one."""
        tuned: Made | None = None
        if "bare" in self.wanted.kinds:
            self._row(f"{label}, bare", functools.partial(self.setting.bare, keep, seed, method))
        if "tuned" in self.wanted.kinds:
            make = functools.partial(self.setting.tuned, keep, seed, method)
            tuned = self._row(f"{label}, tuned", make)
            if (rounds := self.wanted.rounds) > 1:
                self._row(f"{label}, {rounds} rounds", functools.partial(make, rounds))
        return tuned

    def _row(self, label: str, make: Callable[[], Made]) -> Made | None:
        """Print what was made, or why it was not."""
        started = time.monotonic()
        try:
            made = make()
        except CondenseError as error:
            print(failed(label, error.text, len(self.head) + 1 + len(TRAINED)), flush=True)
            return None
        seconds = time.monotonic() - started
        onnx.save(made.model, self.out)
        trained = [str(made.steps), f"{made.seconds:.0f}"] if made.steps else ["", ""]
        print(row(label, *self.cells(self.out), *trained, f"{seconds:.0f}"), flush=True)
        return made


@contextlib.contextmanager
def work(kinds: str, methods: str = "fit", rounds: int = 1) -> Iterator[tuple[Path, Wanted]]:
    """A folder for files on the way, and which rows are wanted, checked."""
    try:
        wanted = Wanted(methods_of(methods), kinds_of(kinds), rounds)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if "tuned" in wanted.kinds and not can_tune():
        raise typer.BadParameter(INSTALL, param_hint="--kinds")
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder), wanted


@app.command()
def neuralfoil(
    folder: Annotated[Path, typer.Option(exists=True, file_okay=False, help="Where the .onnx files are.")],
    airfoils: Annotated[Path | None, typer.Option(exists=True, file_okay=False, help="Folder of .dat files.")] = None,
    rungs: Annotated[str, typer.Option(help="Joined by commas.")] = ",".join(foil.LADDER),
    kinds: Kinds = "bare,tuned",
    methods: Methods = "fit",
    rounds: Rounds = 1,
    samples: Annotated[int, typer.Option(help="Calibration rows, mirror images included.")] = 16384,
    more: Annotated[int, typer.Option(help="Further rows of the same airfoils to tune on; 0: none.")] = 65536,
    judged: Annotated[int, typer.Option(help="Rows of each set that judges.")] = 8192,
    tune_minutes: Minutes = 3.0,
    tune_loss: Loss = "",
    gain: Gain = 1.0,
    threads: int = 0,
    seed: int = 0,
) -> None:
    """The largest network at the size of each smaller one, beside that one."""
    database = airfoil_folder(airfoils)
    if database is None:
        raise typer.BadParameter("install aerosandbox, or say where its .dat files are", param_hint="--airfoils")
    largest, shapes = folder / f"{foil.LARGEST}.onnx", read_airfoils(database)
    total = count_parameters(onnx.load(largest))
    calibration, (again, elsewhere) = foil.draws(shapes, samples, judged, largest, seed)
    with work(kinds, methods, rounds) as (scratch, wanted):
        data, further = scratch / "calibration.npz", scratch / "more.npz"
        np.savez(data, x=calibration["x"], group=calibration["group"])
        if more:
            # The half of the airfoils that is calibrated on, as `draws` deals them; other draws than any before.
            known = np.array_split(shapes[np.random.default_rng(seed).permutation(len(shapes))], 2)[0]
            np.savez(further, x=neuralfoil_inputs(known, more, np.random.default_rng([seed, 1]))["x"])
        options: dict[str, Any] = {"minutes": tune_minutes, "threads": threads, "loss": tune_loss, "gain": gain}
        setting = Setting(largest, data, more=further if more else None, **options)
        head = foil.COLUMNS[1:-1]
        rows = Rows(setting, wanted, head, lambda path: foil.cells(path, total, (again, elsewhere)), scratch / "s.onnx")
        rows.start()
        for name in rungs.split(","):
            trained = folder / f"neuralfoil_{name}.onnx"
            print(row(f"the authors' {name}", *foil.cells(trained, total, (again, elsewhere)), "", "", ""), flush=True)
            rows.at(count_parameters(onnx.load(trained)) / total, f"condensed, as {name}", seed)


@app.command("photos")
def of_photos(
    network: Annotated[Path, typer.Argument(exists=True, dir_okay=False)],
    inputs: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="As bench_photos.py make wrote it.")],
    keeps: Keeps = "0.94,0.87,0.75",
    kinds: Kinds = "bare,tuned",
    methods: Methods = "fit",
    rounds: Rounds = 1,
    augment: Annotated[int, typer.Option(help="Variants of each crop to fit on.")] = 1,
    more: Annotated[int, typer.Option(help="Further crops of each photograph to tune on; 0: none.")] = 64,
    photographs: Annotated[int, typer.Option(help="As it was made with.")] = 16,
    tune_minutes: Minutes = 3.0,
    tune_loss: Loss = "",
    gain: Gain = 6.0**0.5,
    threads: int = 0,
    seed: int = 0,
) -> None:
    """A classifier tuned on crops of a few photographs: error and agreement on other crops, and on others."""
    total, runtime = count_parameters(onnx.load(network)), Runtime(threads=threads)
    sets = [photos.Answers(runtime, network, inputs / f"{name}.npz") for name in photos.SETS[1:]]

    def cells(path: Path) -> list[str]:
        model = onnx.load(path)
        count = count_parameters(model)
        return [f"{count:,}", f"{100 * count / total:.1f}", *(answers.compared(model) for answers in sets)]

    with work(kinds, methods, rounds) as (scratch, wanted):
        further = scratch / "more.npz"
        if more:
            parts = crops(photos.pictures(photographs)[::2], more, np.random.default_rng([seed, 1]))[0]
            np.savez(further, image=centred(parts))
        options: dict[str, Any] = {"minutes": tune_minutes, "threads": threads, "loss": tune_loss, "gain": gain}
        options |= {"more": further if more else None, "options": {"augment": augment}}
        setting = Setting(network, inputs / f"{photos.SETS[0]}.npz", **options)
        head = ("parameters", "share, %", *(f"error, agreement on {n.replace('_', ' ')}" for n in photos.SETS[1:]))
        rows = Rows(setting, wanted, head, cells, scratch / "s.onnx")
        rows.start()
        for keep in keeps.split(","):
            rows.at(float(keep), f"keep {float(keep):g}", seed)


@app.command("network")
def any_network(
    network: Annotated[Path, typer.Option(exists=True, dir_okay=False)],
    calibration: Annotated[Path, typer.Option(exists=True, help="Unlabeled inputs; a fifth of them judges.")],
    unseen: Annotated[
        Path | None, typer.Option(exists=True, help="Inputs that only judge, in a further column.")
    ] = None,
    more: More = None,
    keeps: Keeps = "0.5,0.25,0.1",
    kinds: Kinds = EVERY_KIND,
    methods: Methods = "fit",
    rounds: Rounds = 1,
    seeds: Annotated[str, typer.Option(help="Joined by commas.")] = "0",
    tune_minutes: Minutes = 3.0,
    tune_loss: Loss = "",
    gain: Gain = 1.0,
    threads: int = 0,
) -> None:
    """Any network: relative error on inputs that nothing was made on, bare, tuned and from scratch."""
    total = count_parameters(onnx.load(network))
    options: Mapping[str, Any] = {"minutes": tune_minutes, "threads": threads, "loss": tune_loss, "gain": gain}
    setting = Setting(network, calibration, more=more, **options)
    other = []
    if unseen:
        samples = load_samples(unseen, input_specs(load(network).proto.graph))
        other = [Judge(network, samples, np.arange(len(samples)), threads)]
    head = ("parameters", "share, %", "error, verify share", *(["error, unseen"] if other else []))
    with work(kinds, methods, rounds) as (scratch, wanted):
        for number, seed in enumerate(int(s) for s in seeds.split(",")):
            judges = [setting.judge(seed), *other]

            def cells(path: Path, judges: Sequence[Judge] = judges) -> list[str]:
                count = count_parameters(onnx.load(path))
                return [f"{count:,}", f"{100 * count / total:.1f}", *(f"{j.error(path):.4g}" for j in judges)]

            rows = Rows(setting, wanted, head, cells, scratch / "s.onnx")
            if not number:
                rows.start()
            for keep in keeps.split(","):
                rows.at(float(keep), f"keep {float(keep):g}, seed {seed}", seed)


if __name__ == "__main__":
    app()
