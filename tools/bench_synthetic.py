"""Condensing without data: what drawn inputs are worth, judged on real inputs that nothing saw.

Keeps one share of the parameters on given inputs, on white noise, on plain drawn ones (noise with the spectrum of
photos where inputs are pictures) and on what `--calibration synthetic` draws (which also listens to what
BatchNormalization saw in training), and measures each result against the dense network. One markdown table.

    python tools/bench_synthetic.py models/digits.onnx --given models/digits.npz --unseen models/digits_labelled.npz
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import numpy as np
import typer
from bench_common import header, row

from onnx_condense import condense
from onnx_condense.data import GROUP, input_specs
from onnx_condense.data import load as load_samples
from onnx_condense.draw import PLAIN, Drawer, Look
from onnx_condense.errors import CondenseError
from onnx_condense.metrics import Judge
from onnx_condense.network.model import Network, load
from onnx_condense.proving.proof import Prover
from onnx_condense.runtime import Array, Runtime, run
from onnx_condense.synthetic import ONE_SIZE

WHITE = Look(fall=0.0)
ROWS = 32


def arrays_of(path: Path, network: Network, count: int, seed: int, *, grouped: bool = False) -> dict[str, Array]:
    """So many rows of the network's inputs, at random, and their groups if wanted."""
    wanted = {spec.name for spec in input_specs(network.proto.graph)} | ({GROUP} if grouped else set())
    with np.load(path) as stored:
        found = {name: stored[name] for name in stored.files if name in wanted}
    total = len(next(iter(found.values())))
    picked = np.sort(np.random.default_rng(seed).permutation(total)[:count])
    return {name: array[picked] for name, array in found.items()}


@dataclasses.dataclass(frozen=True)
class Case:
    """One network, real inputs of it that judge, and how to run; classes: whether its largest output is its answer."""

    network: Network
    unseen: Mapping[str, Array]
    runtime: Runtime
    classes: bool

    def error(self, model: Any) -> float:
        """Relative error on the real inputs."""
        samples = load_samples(self.unseen, input_specs(self.network.proto.graph))
        judge = Judge(self.network.proto, samples, np.arange(len(samples)), self.runtime, ROWS)
        return judge.measure(model).value

    def answers(self, model: Any) -> Array:
        """The position of the largest output of each."""
        session, count = self.runtime.session(model), len(next(iter(self.unseen.values())))
        feeds = ({k: v[i : i + ROWS] for k, v in self.unseen.items()} for i in range(0, count, ROWS))
        return np.concatenate(
            [run(session, feed)[0].reshape(len(next(iter(feed.values()))), -1).argmax(1) for feed in feeds]
        )

    def line(self, name: str, inputs: str, calibration: Any, keep: float, seed: int) -> str:
        """One run as a row of the table."""
        start = time.perf_counter()
        try:
            # Nothing is timed here.
            with mock.patch.object(Prover, "time", return_value=[]):
                found = condense(
                    self.network.proto, calibration=calibration, keep=keep, seed=seed, threads=self.runtime.threads
                )
        except CondenseError as error:
            return row(name, f"{keep:g}", inputs, error.text, "", "", "")
        seconds = time.perf_counter() - start
        told = found.report.error
        same = f"{(self.answers(found.model) == self.answers(self.network.proto)).mean():.3f}" if self.classes else ""
        own = f"{told.value:.4f}" if told else ""
        return row(name, f"{keep:g}", inputs, own, f"{self.error(found.model):.4f}", same, f"{seconds:.0f}")


def main(
    network: Annotated[Path, typer.Argument(exists=True, dir_okay=False)],
    given: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="Real inputs to condense on (.npz).")],
    unseen: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="Other real inputs, to judge on (.npz).")],
    keep: Annotated[str, typer.Option(help="Shares of the parameters, joined by commas.")] = "0.9,0.75",
    count: Annotated[int, typer.Option(help="Inputs to condense on, given or drawn.")] = 1000,
    judged: Annotated[int, typer.Option(help="Inputs to judge on.")] = 400,
    kinds: Annotated[str, typer.Option(help="Which inputs, joined by commas: given, white, plain, synthetic.")] = "",
    seed: int = 0,
    threads: int = 0,
    classes: Annotated[bool, typer.Option("--classes", help="The largest output is the answer.")] = False,
    bare: Annotated[bool, typer.Option("--bare", help="No head of the table.")] = False,
) -> None:
    """Compare given with drawn inputs."""
    dense = load(network)
    case = Case(dense, arrays_of(unseen, dense, judged, seed), Runtime(threads=threads), classes)
    drawer = Drawer(dense.proto.graph, seed)
    sources: dict[str, Any] = {
        "given": arrays_of(given, dense, count, seed, grouped=True),
        "white": drawer.rows(count, ONE_SIZE[0], WHITE),
        "plain": drawer.rows(count, ONE_SIZE[0], PLAIN),
        "synthetic": f"synthetic:{count}",
    }
    if not drawer.has_pictures(ONE_SIZE[0]):
        del sources["plain"]
    if not bare:
        print(header("network", "kept", "inputs", "error on their own kind", "on real ones", "same answer", "seconds"))
    for share in map(float, keep.split(",")):
        for inputs in kinds.split(",") if kinds else sources:
            print(case.line(network.stem, inputs, sources[inputs], share, seed), flush=True)


if __name__ == "__main__":
    typer.run(main)
