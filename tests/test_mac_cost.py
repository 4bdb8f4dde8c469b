"""Multiply-accumulates at any widths: what is predicted is what the condensed network takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import random_convnets
import random_nets
from convnets import network as convnet
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from mlps import Net, mlp
from onnx import helper

from onnx_condense.cost import count_macs
from onnx_condense.fit.methods import Merger, orders_of
from onnx_condense.network.model import Network
from onnx_condense.options.goal import Goal
from onnx_condense.search.mac_cost import MacCosts
from onnx_condense.spaces import find_spaces

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx


def branches() -> onnx.ModelProto:
    """A grouped and a depthwise convolution, a branch that is joined, a turned one, and a head behind a Flatten."""
    rng = np.random.default_rng(0)
    net = Net({"x": ["N", 3, 8, 8]})
    pads = [1, 1, 1, 1]
    a = net.node("Relu", net.node("Conv", "x", net.weight("A", rng.standard_normal((8, 3, 3, 3))), pads=pads))
    g = net.node("Relu", net.node("Conv", a, net.weight("G", rng.standard_normal((8, 4, 3, 3))), group=2, pads=pads))
    d = net.node("Conv", a, net.weight("D", rng.standard_normal((8, 1, 3, 3))), group=8, pads=pads)
    joined = net.node("Concat", g, d, axis=1)
    t = net.node("ConvTranspose", joined, net.weight("T", rng.standard_normal((16, 6, 2, 2))), strides=[2, 2])
    flat = net.node("Flatten", net.node("AveragePool", t, kernel_shape=[8, 8], strides=[8, 8]))
    net.node("Gemm", flat, net.weight("H", rng.standard_normal((24, 2))), net.weight("h", np.ones(2)), out="y")
    return net.model({"y": ["N", 2]})


def sequence() -> onnx.ModelProto:
    """A layer in front of a recurrent one, which keeps its own width."""
    rng = np.random.default_rng(0)
    net = Net({"x": [5, "N", 4]})
    h = net.node("Relu", net.node("MatMul", "x", net.weight("V", rng.standard_normal((4, 9)))))
    w, r = net.weight("W", rng.standard_normal((1, 12, 9))), net.weight("R", rng.standard_normal((1, 12, 3)))
    net.node("LSTM", h, w, r, hidden_size=3, out="y")
    return net.model({"y": [5, 1, "N", 3]})


NETS: dict[str, Callable[[], onnx.ModelProto]] = {
    "gemm": lambda: mlp((3, 9, 8, 2)),
    "three axes": lambda: mlp((3, 7, 6, 2), op="MatMul", middle=(5,)),
    "convolutions": lambda: convnet([helper.make_node("Relu", ["z"], ["h"])], reader={}, w=np.ones((6, 3, 3, 3))),
    "branches": branches,
    "sequence": sequence,
}


def check(proto: onnx.ModelProto, data: st.DataObject) -> None:
    network = Network(proto)
    view = find_spaces(network)
    costs, full = MacCosts(network, view), [s.width for s in view.spaces]
    assert costs.total(full) == count_macs(network)
    merger = Merger(
        network, view, orders_of(network, view, Goal(0.1, None, allow_slower=True, seed=0, method="drop")), merge=False
    )
    chosen = {
        s.name: data.draw(st.integers(s.width - len(e.order), s.width))
        for s, e in zip(merger.spaces, merger.eliminations, strict=True)
    }
    plan, condensed = merger.plan(list(chosen.values()), sequential=False)
    kept = {s.space: len(s.keep) for s in plan.selections}
    widths = [kept.get(s.name, s.width) for s in view.spaces]
    assert costs.total(widths) == count_macs(Network(condensed))
    for i, width in enumerate(widths):
        after = [max(1, width // 2) if j == i else w for j, w in enumerate(widths)]
        assert costs.saving(widths, i, after[i]) == costs.total(widths) - costs.total(after)


@pytest.mark.parametrize("name", NETS)
@given(data=st.data())
@settings(max_examples=12, deadline=None)
def test_the_prediction_is_what_the_condensed_network_takes(name: str, data: st.DataObject) -> None:
    check(NETS[name](), data)


@pytest.mark.parametrize("make", [random_nets.random_network, random_convnets.random_network])
@given(seed=st.integers(0, 10**6), data=st.data())
@settings(max_examples=40, deadline=None)
def test_so_it_is_for_random_networks(make: Callable[[int], onnx.ModelProto], seed: int, data: st.DataObject) -> None:
    proto = make(seed)
    # Where a tensor holds a part of a space it matters which channels go, and the prediction is a mean.
    assume(not find_spaces(Network(proto)).parts)
    check(proto, data)


def test_the_cases_can_be_narrowed() -> None:
    reducible = {name: sum(s.reducible for s in find_spaces(Network(make())).spaces) for name, make in NETS.items()}
    assert reducible == {"gemm": 2, "three axes": 2, "convolutions": 1, "branches": 3, "sequence": 1}
