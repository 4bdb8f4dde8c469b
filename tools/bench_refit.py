"""What the ridge of the refit pulls towards: the dense weights (as the package does) or zero.

Narrows every hidden layer of an MLP to the same share of its width, refits with either pull, and measures the
error on rows that neither selection nor refit saw. One markdown table.

    python tools/bench_refit.py --network models/ignition.onnx --calibration models/ignition.npz
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated
from unittest import mock

import numpy as np
import scipy.linalg
import typer

from onnx_condense.data import Samples, input_specs
from onnx_condense.data import load as load_samples
from onnx_condense.fit import fitting
from onnx_condense.fit.compensate import factorized, refit
from onnx_condense.fit.fitting import Fitter
from onnx_condense.metrics import Judge
from onnx_condense.network.model import Network, load
from onnx_condense.plan import FloatArray, IntArray, Moments
from onnx_condense.runtime import Runtime
from onnx_condense.spaces import find_spaces


def towards_zero(
    weight: FloatArray, cross: Moments, kept: Moments, keep: IntArray, ridge: float
) -> tuple[FloatArray, FloatArray]:
    """Plain ridge regression, with the signature of `compensate.refit`."""
    assert keep.size
    target = weight @ cross.covariance
    fitted = scipy.linalg.cho_solve(factorized(kept.covariance, ridge), target.T).T
    return fitted, weight @ cross.left - fitted @ cross.right


@dataclasses.dataclass(frozen=True)
class Case:
    """One network with rows to fit on and rows to judge on."""

    network: Network
    samples: Samples
    fit: IntArray
    judge: Judge
    runtime: Runtime

    def errors(self, share: float, ridge: float) -> tuple[float, float]:
        """Error with the pull towards the dense weights, and towards zero."""
        found = []
        for pull in (refit, towards_zero):
            with mock.patch.object(fitting, "refit", pull), mock.patch.object(fitting, "RIDGES", (ridge,)):
                with mock.patch.object(fitting, "USUAL_RIDGE", ridge):
                    view = find_spaces(self.network)
                    fitter = Fitter(self.network, view, self.samples, self.fit, self.fit, self.runtime)
                    widths = [max(1, round(share * s.width)) for s in fitter.spaces]
                    _, model = fitter.plan(widths, sequential=True)
                found.append(self.judge.measure(model).value)
        return found[0], found[1]


def main(
    network: Annotated[Path, typer.Option(exists=True, dir_okay=False)] = Path("models/ignition.onnx"),
    calibration: Annotated[Path, typer.Option(exists=True, dir_okay=False)] = Path("models/ignition.npz"),
    rows: Annotated[str, typer.Option(help="Rows to fit on, joined by commas.")] = "512,3072",
    shares: Annotated[str, typer.Option(help="Widths to keep, joined by commas.")] = "0.5,0.25",
    ridges: Annotated[str, typer.Option(help="Relative to the mean variance.")] = "1e-6,1e-4,1e-3,1e-2",
    threads: int = 0,
) -> None:
    """Compare both pulls."""
    dense, runtime = load(network), Runtime(threads=threads)
    samples = load_samples(calibration, input_specs(dense.proto.graph))
    order = np.random.default_rng(0).permutation(len(samples))
    judged = order[-min(1024, len(order) // 4) :]
    judge = Judge(dense.proto, samples, judged, runtime, 1024)
    print("| rows to fit on | width kept | ridge | error, pulled to dense | error, pulled to zero |")
    print("| --- | --- | --- | --- | --- |")
    for count in map(int, rows.split(",")):
        case = Case(dense, samples, order[: min(count, len(order) - len(judged))], judge, runtime)
        for share in map(float, shares.split(",")):
            for ridge in map(float, ridges.split(",")):
                a, b = case.errors(share, ridge)
                print(f"| {len(case.fit)} | {share:g} | {ridge:g} | {a:.4f} | {b:.4f} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
