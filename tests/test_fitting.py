"""What the fitter decides on which samples."""

from __future__ import annotations

import numpy as np
from mlps import mlp, normal

from onnx_condense.data import input_specs, load
from onnx_condense.fitting import RIDGES, Fitter
from onnx_condense.model import Network
from onnx_condense.runtime import Runtime
from onnx_condense.spaces import find_spaces


def make() -> Fitter:
    """Few samples for many channels, so that the ridge matters."""
    network = Network(mlp((6, 40, 30, 2)))
    samples = load(normal(60, 6), input_specs(network.proto.graph))
    return Fitter(network, find_spaces(network), samples, np.arange(20), np.arange(20, 60), Runtime(threads=1))


def test_ridges_are_chosen_on_held_out_samples_also_once_these_are_fitted_on() -> None:
    before, after = make(), make()
    after.use_all(np.arange(20, 60))
    keeps = [np.arange(0, 40, 2), np.arange(0, 30, 2)]
    chosen = [[f._ridge(group, keep) for group, keep in zip(f._groups, keeps, strict=True)] for f in (before, after)]
    assert chosen[0] == chosen[1]
    assert max(chosen[0]) > RIDGES[0]


def test_fitting_on_all_counts_all_rows() -> None:
    fitter = make()
    fitter.use_all(np.arange(20, 60))
    assert {m.count for m in fitter._fit.values()} == {60.0}
