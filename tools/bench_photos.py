"""What few photographs are worth: a classifier condensed on crops of some, judged on other crops and other photographs.

``make`` cuts the photographs that lie in installed packages (see zoo_inputs.py) into three sets: crops of every other
photograph to condense on, other crops of the same photographs, and crops of the rest. ``table`` condenses the network
with and without variants of the crops and prints one markdown table: relative error and the share of top answers that
are the dense network's, on both sets. Splits are by crop: groups would leave too few photographs to fit on.

    python tools/bench_photos.py make photos
    python tools/bench_photos.py table networks/efficientnet_lite0.onnx photos --keeps 0.87,0.75 --augment 0,1
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import numpy as np
import onnx
import typer
from zoo_inputs import PHOTOS, centred, crops, inside

from onnx_condense import condense
from onnx_condense.cost import count_parameters
from onnx_condense.runtime import Array, Runtime, run

SETS = ("condensed_on", "same_photographs", "other_photographs")
FIT_CROPS, JUDGED_CROPS = 32, 16
ROWS = 16

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def pictures(count: int) -> list[Path]:
    """The first photographs of installed packages; every other one is condensed on."""
    return [path for package, files in PHOTOS.items() for path in inside(package, *files)][:count]


@app.command()
def make(out: Path, photographs: int = 16, seed: int = 0) -> None:
    """Write the three sets as .npz."""
    paths = pictures(photographs)
    rng = np.random.default_rng(seed)
    out.mkdir(parents=True, exist_ok=True)
    for name, part, count in zip(
        SETS, (paths[::2], paths[::2], paths[1::2]), (FIT_CROPS, JUDGED_CROPS, JUDGED_CROPS), strict=True
    ):
        np.savez(out / f"{name}.npz", image=centred(crops(part, count, rng)[0]))
    typer.echo(f"condensed on {len(paths[::2])} photographs, {len(paths[1::2])} others")


@app.command()
def table(
    network: Path,
    inputs: Path,
    keeps: Annotated[str, typer.Option(help="Joined by commas.")] = "0.94,0.87,0.75",
    augment: Annotated[str, typer.Option(help="Joined by commas.")] = "0,1",
    threads: int = 0,
) -> None:
    """Print the table."""
    typer.echo(
        "| asked for | variants of each crop | parameters kept, % | "
        + " | ".join(f"error, agreement on {name.replace('_', ' ')}" for name in SETS[1:])
        + " | seconds |\n"
        + "| --- " * 6
        + "|"
    )
    runtime = Runtime(threads=threads)
    sets = [Answers(runtime, network, inputs / f"{name}.npz") for name in SETS[1:]]
    for keep in map(float, keeps.split(",")):
        for times in map(int, augment.split(",")):
            started = time.monotonic()
            found = condense(
                network,
                calibration=inputs / f"{SETS[0]}.npz",
                keep=keep,
                augment=times,
                threads=threads,
                allow_slower=True,
            )
            seconds = time.monotonic() - started
            share = 100 * count_parameters(found.model) / count_parameters(onnx.load(network))
            cells = " | ".join(answers.compared(found.model) for answers in sets)
            typer.echo(f"| {keep} | {times} | {share:.1f} | {cells} | {seconds:.0f} |")


class Answers:
    """The dense network's answers to one file of inputs."""

    def __init__(self, runtime: Runtime, network: Path, samples: Path) -> None:
        self._runtime = runtime
        with np.load(samples) as arrays:
            self._feed = {name: arrays[name] for name in arrays.files}
        self._dense = self._of(network)

    def _of(self, model: Path | onnx.ModelProto) -> Array:
        session = self._runtime.session(model)
        count = len(next(iter(self._feed.values())))
        parts = [slice(at, at + ROWS) for at in range(0, count, ROWS)]
        return np.concatenate([run(session, {n: a[part] for n, a in self._feed.items()})[0] for part in parts])

    def compared(self, model: onnx.ModelProto) -> str:
        """Relative error of a network, and the share of top answers that are the dense network's."""
        found = self._of(model)
        spread = ((self._dense - self._dense.mean(0)) ** 2).sum()
        error = float(np.sqrt(((found - self._dense) ** 2).sum() / spread))
        return f"{error:.3f}, {100 * (found.argmax(-1) == self._dense.argmax(-1)).mean():.1f} %"


if __name__ == "__main__":
    app()
