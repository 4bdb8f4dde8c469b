"""What condensing real MLPs gives: one markdown table per command.

``ignition`` takes the networks and data that train_ignition.py writes; ``zoo`` takes published surrogates as
ONNX files: NeuralFoil (airfoil aerodynamics, MIT; x [N, 25] -> y [N, 198], real airfoils drawn from the UIUC
database inside the package aerosandbox) and QLKNN 7_11 (tokamak turbulence, Apache-2.0; from the package
fusion-surrogates, input [N, 10]). Every condense runs in a process of its own.

    python tools/bench_mlps.py ignition --network full.onnx --calibration full.npz --labelled full_labelled.npz
    python tools/bench_mlps.py zoo --folder networks --airfoils aerosandbox/geometry/airfoil/airfoil_database
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from bench_common import Job, Outcome, condense_apart, header, row, speedup

from onnx_condense.runtime import Array, Runtime, run

Floats = npt.NDArray[np.float64]

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

SAMPLES = 8192
# Batches bound the memory of a pass; the results do not depend on them.
ROWS = 1024

ZOO = (
    *(f"neuralfoil_{size}" for size in ("medium", "large", "xlarge", "xxlarge", "xxxlarge", "xxlarge_fused")),
    "qlknn",
)

# Ranges of the ten inputs in which QLKNN 7_11 is documented to hold.
QLKNN_LOW = (1e-14, 1e-14, -5.0, -15.0, 0.66, -1.0, 0.1, 0.25, -5.0, 0.7)
QLKNN_HIGH = (16.0, 16.0, 5.0, 15.0, 10.0, 4.0, 0.95, 2.5, 0.0, 1.0)

CST_WEIGHTS = 8
# Airfoils that eight weights a side fit worse than this (in chords), or only with extreme weights, are left out.
CST_MISFIT, CST_LARGEST = 0.01, 3.0


def outputs(model: Path, name: str, x: Array) -> list[Array]:
    """All outputs of a network on rows x [n, features], with graph optimization off."""
    session = Runtime().session(model, optimize=False)
    parts = [run(session, {name: x[i : i + ROWS]}) for i in range(0, len(x), ROWS)]
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


def relative_error(dense: list[Array], condensed: list[Array]) -> float:
    """sqrt(mean (y - y0)^2 / mean (y0 - mean y0)^2), mean y0 per feature; the largest over the outputs."""
    worst = 0.0
    for y0, y in zip(dense, condensed, strict=True):
        reference = y0.astype(np.float64)
        spread = np.mean((reference - reference.mean(axis=0)) ** 2)
        worst = max(worst, float(np.sqrt(np.mean((y - reference) ** 2) / spread)))
    return worst


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Held-out inputs and labels of the ignition surrogate, and the dense network's answers."""

    network: Path
    x: Array
    labels: Array
    dense: Array

    @staticmethod
    def read(network: Path, path: Path) -> Labelled:
        """From the npz that train_ignition.py writes."""
        with np.load(path) as data:
            x, labels = data["state"], data["change"]
        return Labelled(network, x, labels, outputs(network, "state", x)[0])

    def l1(self, y: Array) -> float:
        """Mean absolute error against the labels."""
        return float(np.abs(y - self.labels).mean())

    def cells(self, job: Job, outcome: Outcome) -> list[str]:
        """The cells of one run, from the written network."""
        y = outputs(job.out, "state", self.x)[0]
        cells = [
            f"{100 * outcome.kept:.2f}",
            f"{outcome.error:.4f}",
            f"{relative_error([self.dense], [y]):.4f}",
            f"{self.l1(self.dense):.4f}",
            f"{self.l1(y):.4f}",
        ]
        cells += [speedup(self.network, job.out, {"state": self.x[:n]}, n, job.threads) for n in (1, 256)]
        return [*cells, f"{outcome.seconds:.1f}", f"{outcome.peak_mb:.0f}"]


@app.command()
def ignition(
    network: Annotated[Path, typer.Option(exists=True, dir_okay=False)],
    calibration: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="npz with the key state.")],
    labelled: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="npz with the keys state and change.")],
    samples: Annotated[int, typer.Option(help="Calibration rows to use, from the first.")] = SAMPLES,
    tolerances: Annotated[str, typer.Option(help="Joined by commas.")] = "0.005,0.01,0.02,0.05",
    keep: Annotated[float | None, typer.Option(help="One more run with this share of the parameters.")] = None,
    threads: int = 0,
    seed: int = 0,
) -> None:
    """Condense the ignition surrogate at several tolerances."""
    data = Labelled.read(network, labelled)
    goals: list[dict[str, float]] = [{"tolerance": float(t)} for t in tolerances.split(",")]
    goals += [{"keep": keep}] if keep is not None else []
    columns = ["goal", "parameters kept, %", "error, verify share", "error, labelled inputs", "labelled L1, dense"]
    columns += ["labelled L1, condensed", "speedup, batch 1", "speedup, batch 256", "seconds", "peak MB"]
    print(header(*columns), flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        rows = Path(scratch, "calibration.npz")
        with np.load(calibration) as stored:
            np.savez(rows, state=stored["state"][:samples])
        for goal in goals:
            job = Job(network, rows, Path(scratch, "slim.onnx"), goal.get("tolerance"), goal.get("keep"), threads, seed)
            outcome = condense_apart(job)
            label = ", ".join(f"{name} {value:g}" for name, value in goal.items())
            cells = [outcome.failed] if outcome.failed else data.cells(job, outcome)
            print(row(label, *cells, *[""] * (len(columns) - 1 - len(cells))), flush=True)


def coordinates(path: Path) -> Floats | None:
    """Points [n, 2] of an airfoil file, trailing edge over the top to the nose and back; None if it is not one."""
    points = []
    for line in path.read_text(errors="ignore").splitlines():
        try:
            x, y = (float(word) for word in line.replace(",", " ").split())
        except ValueError:
            continue  # A title or a comment: anything but two numbers.
        points.append((x, y))
    found = np.array(points).reshape(-1, 2)
    # Files that give point counts instead of a closed loop show numbers no coordinate has.
    usable = len(found) >= 20 and np.isfinite(found).all() and np.abs(found).max() <= 1.5
    return found if usable else None


def on_unit_chord(points: Floats) -> tuple[Floats, int]:
    """Points moved, turned and scaled: nose in (0, 0), middle of the trailing edge in (1, 0); and the nose's index."""
    nose = int(points[:, 0].argmin())
    moved = points - points[nose]
    tail = (moved[0] + moved[-1]) / 2
    # Rotation by -angle(tail) and division by its length in one: multiplication by conj(tail) / |tail|^2.
    turn = np.array([[tail[0], -tail[1]], [tail[1], tail[0]]]) / (tail @ tail)
    return moved @ turn, nose


def cst_weights(points: Floats) -> Floats | None:
    """Class-shape weights [18] of an airfoil: 8 upper, 8 lower, nose, trailing-edge thickness; None if ill fitting.

    Kulfan, Journal of Aircraft 45(1), 2008: y = sqrt(x) (1 - x) sum_k w_k B_k(x) +- t x / 2 with Bernstein
    polynomials B_k of degree 7, and NeuralFoil's nose term w x (1 - x)^8.5 on both sides.
    """
    curve, nose = on_unit_chord(points)
    x, y = np.clip(curve[:, 0], 0.0, 1.0), curve[:, 1]
    first = np.arange(len(x)) <= nose
    upper = first if y[first].mean() >= y[~first].mean() else ~first
    degree = CST_WEIGHTS - 1
    shape = np.stack([math.comb(degree, k) * x**k * (1 - x) ** (degree - k) for k in range(CST_WEIGHTS)], axis=1)
    shape *= (np.sqrt(x) * (1 - x))[:, None]
    terms = [shape * upper[:, None], shape * ~upper[:, None], (x * (1 - x) ** (CST_WEIGHTS + 0.5))[:, None]]
    design = np.concatenate([*terms, np.where(upper, x, -x)[:, None] / 2], axis=1)
    weights = np.linalg.lstsq(design, y, rcond=None)[0]
    if weights[-1] < 0:  # The surfaces can't cross: fit again with a sharp trailing edge.
        weights = np.append(np.linalg.lstsq(design[:, :-1], y, rcond=None)[0], 0.0)
    fits = np.abs(design @ weights - y).max() < CST_MISFIT and np.abs(weights).max() < CST_LARGEST
    return np.asarray(weights) if fits else None


def read_airfoils(folder: Path) -> Floats:
    """Weights [airfoils, 18] of every usable file of a folder."""
    found = []
    for path in sorted(folder.glob("*.dat")):
        points = coordinates(path)
        weights = cst_weights(points) if points is not None else None
        if weights is not None:
            found.append(weights)
    if len(found) < 2:
        raise typer.BadParameter(f"no usable airfoils in {folder}", param_hint="--airfoils")
    return np.array(found)


def mirrored(x: Array) -> Array:
    """The same flow seen upside down: surfaces swapped and negated, angle of attack and nose term negated."""
    flipped = x.copy()
    flipped[:, :8], flipped[:, 8:16] = -x[:, 8:16], -x[:, :8]
    flipped[:, [16, 18]] *= -1
    flipped[:, [23, 24]] = x[:, [24, 23]]
    return flipped


def neuralfoil_inputs(airfoils: Floats, count: int, rng: np.random.Generator) -> dict[str, Array]:
    """Rows x [count, 25] as NeuralFoil scales them, half of them mirror images; group [count] is the airfoil.

    Angle -8 to 14 deg, Reynolds number 6e4 to 1e7 (log-uniform), n_crit 9, transition left free. The package
    averages the network's answers on x and on its mirror image, so both are the inputs it really sees.
    """
    half = count // 2
    group = rng.integers(0, len(airfoils), half)
    shape = airfoils[group]
    angle = np.deg2rad(rng.uniform(-8.0, 14.0, half))
    reynolds = np.exp(rng.uniform(math.log(6e4), math.log(1e7), half))
    flow = [np.sin(2 * angle), np.cos(angle), np.sin(angle) ** 2, (np.log(reynolds) - 12.5) / 3.5]
    free = [np.zeros(half), np.ones(half), np.ones(half)]
    x = np.column_stack([shape[:, :17], 50 * shape[:, 17], *flow, *free]).astype(np.float32)
    return {"x": np.concatenate([x, mirrored(x)]), "group": np.concatenate([group, group])}


@dataclasses.dataclass(frozen=True)
class Draws:
    """Inputs of one network: to calibrate on, new draws of the same kind, and (NeuralFoil) of other airfoils."""

    calibration: dict[str, Array]
    again: dict[str, Array]
    elsewhere: dict[str, Array] | None = None

    def covered(self, feed: dict[str, Array]) -> npt.NDArray[np.bool_]:
        """Which rows lie inside the range of the calibration inputs, feature by feature."""
        name = next(iter(feed))
        seen, x = self.calibration[name], feed[name]
        return np.asarray(((x >= seen.min(axis=0)) & (x <= seen.max(axis=0))).all(axis=1))


def draws(name: str, airfoils: Floats | None, seed: int) -> Draws | None:
    """Inputs of a network of the zoo; None where they need airfoils and there are none."""
    rng = np.random.default_rng(seed)
    if name == "qlknn":
        first, second = (rng.uniform(QLKNN_LOW, QLKNN_HIGH, (SAMPLES, 10)).astype(np.float32) for _ in range(2))
        return Draws({"input": first}, {"input": second})
    if airfoils is None:
        return None
    shuffled = airfoils[rng.permutation(len(airfoils))]
    known, unknown = np.array_split(shuffled, 2)
    return Draws(*(neuralfoil_inputs(pool, SAMPLES, rng) for pool in (known, known, unknown)))


def airfoil_folder(given: Path | None) -> Path | None:
    """The folder asked for, else the database inside aerosandbox if that is installed (it is not imported)."""
    if given is not None:
        return given
    spec = importlib.util.find_spec("aerosandbox")
    places = (spec.submodule_search_locations or []) if spec is not None else []
    folders = [Path(place, "geometry", "airfoil", "airfoil_database") for place in places]
    return next((folder for folder in folders if folder.is_dir()), None)


def zoo_row(name: str, job: Job, sets: Draws) -> str:
    """One line of the zoo's table."""
    outcome = condense_apart(job)
    if outcome.failed:
        return row(name, "", "", "", job.tolerance, outcome.failed, "", "", "", "", f"{outcome.seconds:.1f}")

    def error(feed: dict[str, Array], rows: npt.NDArray[np.bool_]) -> float:
        key = next(iter(feed))
        return relative_error(*(outputs(network, key, feed[key][rows]) for network in (job.network, job.out)))

    everything = np.ones(SAMPLES, bool)
    again, tolerance = error(sets.again, everything), job.tolerance or math.nan
    cells = [f"{outcome.before:,}", f"{outcome.after:,}", f"{100 * outcome.kept:.1f}", f"{tolerance:g}"]
    cells += [f"{outcome.error:.4f}", f"{again:.4f}", f"{again / tolerance:.2f}"]
    if sets.elsewhere is None:
        return row(name, *cells, "", "", f"{outcome.seconds:.1f}")
    covered = sets.covered(sets.elsewhere)
    inside = f"{error(sets.elsewhere, covered):.4f} ({100 * covered.mean():.1f} %)"
    return row(name, *cells, f"{error(sets.elsewhere, everything):.4f}", inside, f"{outcome.seconds:.1f}")


@app.command()
def zoo(
    folder: Annotated[Path, typer.Option(exists=True, file_okay=False, help="Where the .onnx files are.")],
    airfoils: Annotated[Path | None, typer.Option(exists=True, file_okay=False, help="Folder of .dat files.")] = None,
    tolerances: Annotated[str, typer.Option(help="Joined by commas.")] = "0.01,0.05",
    only: Annotated[str, typer.Option(help="Names joined by commas; empty: all.")] = "",
    groups: Annotated[bool, typer.Option(help="Tell condense which rows share an airfoil.")] = True,
    threads: int = 0,
    seed: int = 0,
) -> None:
    """Condense published surrogates and judge them on inputs that nothing was calibrated on."""
    database = airfoil_folder(airfoils)
    weights = read_airfoils(database) if database is not None else None
    columns = ["network", "parameters", "condensed", "kept, %", "tolerance", "error, verify share"]
    columns += [
        "error, new draws",
        "its ratio to the tolerance",
        "error, other airfoils",
        "of these in range",
        "seconds",
    ]
    print(header(*columns), flush=True)
    for name in only.split(",") if only else ZOO:
        network, sets = folder / f"{name}.onnx", draws(name, weights, seed)
        if not network.exists() or sets is None:
            missing = (
                f"no {network.name} in {folder}" if sets else "no airfoils: install aerosandbox or give --airfoils"
            )
            print(f"{name}: skipped, {missing}", file=sys.stderr)
            continue
        with tempfile.TemporaryDirectory() as scratch:
            data = Path(scratch, "calibration.npz")
            arrays: dict[str, Any] = {k: v for k, v in sets.calibration.items() if groups or k != "group"}
            np.savez(data, **arrays)
            for tolerance in (float(t) for t in tolerances.split(",")):
                job = Job(network, data, Path(scratch, "slim.onnx"), tolerance, threads=threads, seed=seed)
                print(zoo_row(name, job, sets), flush=True)


if __name__ == "__main__":
    app()
