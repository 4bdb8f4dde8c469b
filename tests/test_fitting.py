"""What the fitter decides on which samples."""

from __future__ import annotations

import numpy as np
from mlps import Net, mlp, normal

from onnx_condense.data import input_specs, load
from onnx_condense.fit.fitting import RIDGES, Fitter, _Part
from onnx_condense.fit.reading import Readers
from onnx_condense.network.model import Network
from onnx_condense.plan import IntArray
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

    def ridge(fitter: Fitter, readers: Readers, keep: IntArray) -> float:
        (everything,) = readers.parts()
        rows = sum(m.count for m in fitter._learned(readers))
        return fitter._ridge(readers, _Part(readers.weight, everything[1], 0, len(keep)), keep, rows)

    chosen = [[ridge(f, r, keep) for r, keep in zip(f._readers, keeps, strict=True)] for f in (before, after)]
    assert chosen[0] == chosen[1]
    assert max(chosen[0]) > RIDGES[0]


def test_fitting_on_all_counts_all_rows() -> None:
    fitter = make()
    fitter.use_all(np.arange(20, 60))
    assert {sum(m.count for m in fitter._learned(r)) for r in fitter._readers} == {60.0}


def test_a_factor_counts_as_if_it_were_in_the_weights() -> None:
    """Two Gemms read one layer, one of them scaled by alpha: the order in which channels go is the same either way."""
    rng = np.random.default_rng(0)
    u, v = rng.standard_normal((20, 3)), rng.standard_normal((20, 3))
    hidden = rng.standard_normal((5, 20))

    def order(alpha: float) -> list[int]:
        net = Net({"x": ["N", 5]})
        h = net.node("Tanh", net.node("MatMul", "x", net.weight("w", hidden)))
        net.node("Gemm", h, net.weight("u", u), out="y")
        net.node("Gemm", h, net.weight("v", v * 1e-2 / alpha), out="z", alpha=alpha)
        network = Network(net.model({"y": ["N", 3], "z": ["N", 3]}))
        samples = load(normal(200, 5), input_specs(network.proto.graph))
        rows = np.arange(200)
        fitter = Fitter(network, find_spaces(network), samples, rows[:100], rows[100:], Runtime(threads=1))
        return list(map(int, fitter.eliminations[0].order))

    assert order(1e-2) == order(1.0)
