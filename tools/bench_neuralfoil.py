"""NeuralFoil's largest network condensed, beside the smaller ones that its authors trained on the same data.

Only the fused answer was trained: the network on x and on the mirror image of x, turned back and averaged. It is
compared here, with that of the largest network as the truth. Calibration holds inputs and mirror images over half of
the UIUC airfoils; a row's airfoil is its group. Judged on new draws over the same airfoils and over the other half.

    python tools/bench_neuralfoil.py --folder networks --airfoils aerosandbox/geometry/airfoil/airfoil_database
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import onnx
import typer
from bench_common import header, row
from bench_mlps import Floats, airfoil_folder, mirrored, neuralfoil_inputs, outputs, read_airfoils, relative_error

from onnx_condense import condense
from onnx_condense.cost import count_parameters
from onnx_condense.errors import BudgetError
from onnx_condense.options.yardstick import METRICS, RELATIVE, Metric
from onnx_condense.runtime import Array

LARGEST, LADDER = "neuralfoil_xxxlarge", ("xxlarge", "xlarge", "large", "medium")
# Columns of the answer: lift, logarithm of drag; and by what NeuralFoil multiplies them.
LIFT, DRAG = 1, 2
LIFT_SCALE, DRAG_SCALE = 0.5, 2.0
# The other columns: one confidence, moment, two transition points; then per side 3 profiles of so many stations.
HEAD = 6
COLUMNS = (
    *("network", "parameters", "share of the largest, %", "relative error, new draws", "CL error", "ln CD error"),
    *("relative error, other airfoils", "of these in range", "CL error", "seconds"),
)


def turned_back(answer: Array) -> Array:
    """The network's answer on a mirrored airfoil as that on the airfoil itself.

    Lift, moment and edge velocities change sign, top and bottom their places.
    """
    stations = (answer.shape[1] - HEAD) // 6
    source, sign = np.arange(answer.shape[1]), np.ones(answer.shape[1], answer.dtype)
    top, bottom = slice(HEAD, HEAD + 3 * stations), slice(HEAD + 3 * stations, None)
    source[top], source[bottom] = np.arange(answer.shape[1])[bottom], np.arange(answer.shape[1])[top]
    source[[4, 5]] = 5, 4
    sign[[LIFT, 3]] = -1
    sign[HEAD + 2 * stations : HEAD + 3 * stations] = sign[HEAD + 5 * stations :] = -1
    return np.asarray(answer[:, source] * sign)


def fused(network: Path, x: Array) -> Array:
    """What the package answers [n, 198]."""
    return np.asarray((outputs(network, "x", x)[0] + turned_back(outputs(network, "x", mirrored(x))[0])) / 2)


@dataclasses.dataclass(frozen=True)
class Judged:
    """Inputs that nothing was calibrated on, the true answers, and which rows lie in the calibrated range."""

    x: Array
    truth: Array
    covered: Array

    def cells(self, network: Path) -> tuple[list[str], str]:
        """Relative error, CL error, ln CD error; and the relative error in range."""
        found = fused(network, self.x)
        off = np.abs(found.astype(np.float64) - self.truth).mean(axis=0)
        errors = relative_error([self.truth], [found]), LIFT_SCALE * off[LIFT], DRAG_SCALE * off[DRAG]
        inside = relative_error([self.truth[self.covered]], [found[self.covered]])
        return [f"{e:.4f}" for e in errors], f"{inside:.4f} ({100 * self.covered.mean():.1f} %)"


def cells(network: Path, total: int, sets: tuple[Judged, Judged]) -> list[str]:
    """What COLUMNS say of a network, but for its name and the seconds; total: parameters of the largest one."""
    again, elsewhere = sets
    count = count_parameters(onnx.load(network))
    (other, lift, _), inside = elsewhere.cells(network)
    return [f"{count:,}", f"{100 * count / total:.1f}", *again.cells(network)[0], other, inside, lift]


def line(label: str, network: Path, total: int, sets: tuple[Judged, Judged], seconds: str) -> str:
    """One row of the table."""
    return row(label, *cells(network, total, sets), seconds)


def lift_error(dense: Mapping[str, Array], condensed: Mapping[str, Array]) -> Array:
    """CL error of each sample, a metric for `condense`."""
    (before,), (after,) = dense.values(), condensed.values()
    return np.asarray(LIFT_SCALE * np.abs(before[:, LIFT].astype(np.float64) - after[:, LIFT]))


def metric_of(name: str) -> Metric:
    """By its name on the command line."""
    if name not in (*METRICS, "lift"):
        raise typer.BadParameter(f"give one of {', '.join(METRICS)}, lift", param_hint="--metric")
    return lift_error if name == "lift" else name


def draws(
    airfoils: Floats, samples: int, judged: int, network: Path, seed: int
) -> tuple[dict[str, Array], list[Judged]]:
    """Calibration, and what judges."""
    rng = np.random.default_rng(seed)
    known, unknown = np.array_split(airfoils[rng.permutation(len(airfoils))], 2)
    calibration = neuralfoil_inputs(known, samples, rng)
    low, high = calibration["x"].min(axis=0), calibration["x"].max(axis=0)
    found = []
    for pool in (known, unknown):
        # The second half are mirror images of the first, which the fused answer holds already.
        x = neuralfoil_inputs(pool, 2 * judged, rng)["x"][:judged]
        found.append(Judged(x, fused(network, x), ((x >= low) & (x <= high)).all(axis=1)))
    return calibration, found


def main(
    folder: Annotated[Path, typer.Option(exists=True, file_okay=False, help="Where the .onnx files are.")],
    airfoils: Annotated[Path | None, typer.Option(exists=True, file_okay=False, help="Folder of .dat files.")] = None,
    keeps: Annotated[str, typer.Option(help="Shares of the parameters besides the ladder's sizes.")] = "0.6,0.4",
    samples: Annotated[int, typer.Option(help="Calibration rows, mirror images included.")] = 16384,
    judged: Annotated[int, typer.Option(help="Rows of each set that judges.")] = 8192,
    threads: int = 0,
    seed: int = 0,
    metric: Annotated[
        str, typer.Option(help="What chooses the widths: a metric of onnx-condense, or lift.")
    ] = RELATIVE,
) -> None:
    """Condense the largest network to the size of each smaller one."""
    judged_by = metric_of(metric)
    database = airfoil_folder(airfoils)
    if database is None:
        raise typer.BadParameter("install aerosandbox, or say where its .dat files are", param_hint="--airfoils")
    largest = folder / f"{LARGEST}.onnx"
    total = count_parameters(onnx.load(largest))
    calibration, sets = draws(read_airfoils(database), samples, judged, largest, seed)
    pair = (sets[0], sets[1])
    print(header(*COLUMNS), flush=True)
    wanted = {f"condensed, {float(k):g}": float(k) for k in keeps.split(",") if k}
    with tempfile.TemporaryDirectory() as scratch:
        data, out = Path(scratch, "calibration.npz"), Path(scratch, "slim.onnx")
        np.savez(data, x=calibration["x"], group=calibration["group"])
        for name in LADDER:
            trained = folder / f"neuralfoil_{name}.onnx"
            print(line(f"trained, {name}", trained, total, pair, ""), flush=True)
            wanted[f"condensed, as {name}"] = count_parameters(onnx.load(trained)) / total
        for label, keep in sorted(wanted.items(), key=lambda item: -item[1]):
            started = time.monotonic()
            try:
                found = condense(largest, calibration=data, keep=keep, threads=threads, seed=seed, metric=judged_by)
            except BudgetError as error:
                print(row(label, error.text, *[""] * (len(COLUMNS) - 2)), flush=True)
                continue
            found.save(out)
            print(line(label, out, total, pair, f"{time.monotonic() - started:.1f}"), flush=True)


if __name__ == "__main__":
    typer.run(main)
