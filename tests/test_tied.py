"""One weight that writes in one place and is read in another: narrowing either alone only adds a copy."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from builders import text_model

from onnx_condense import condense
from onnx_condense.cost import WidthCosts
from onnx_condense.network.model import Network
from onnx_condense.runtime import Array
from onnx_condense.spaces import find_spaces

NEURONS, KINDS, MIDDLE = 48, 8, 3


def autoencoder() -> onnx.ModelProto:
    """The encoder's weights, transposed, are the decoder's. Neurons are of KINDS kinds, alike up to a little noise."""
    rng = np.random.default_rng(0)
    kinds = rng.normal(size=(KINDS, 6))
    W = np.repeat(kinds, NEURONS // KINDS, axis=0) + 1e-4 * rng.normal(size=(NEURONS, 6))
    V = rng.normal(size=(MIDDLE, NEURONS)) / 4
    text = (
        '<ir_version: 8, opset_import: ["": 13]> agraph (float[N, 6] x) => (float[N, 6] y) { '
        "a = Gemm<transB=1>(x, W) b = Tanh(a) c = Gemm<transB=1>(b, V) "
        "d = Gemm(c, V) e = Tanh(d) y = Gemm(e, W) }"
    )
    return text_model(text, {"W": W.astype("f4"), "V": V.astype("f4")})


@pytest.fixture
def calibration() -> dict[str, Array]:
    return {"x": np.random.default_rng(1).normal(size=(1000, 6)).astype("f4")}


def test_spaces_that_share_a_weight_are_known() -> None:
    network = Network(autoencoder())
    view = find_spaces(network)
    names = [s.name for s in view.spaces]
    allied = [{names[i] for i in group} for group in WidthCosts(network, view).allied()]
    assert {"a", "d"} <= set(names)
    assert any({"a", "d"} <= group for group in allied)


@pytest.mark.parametrize("options", [{"tolerance": 0.02}, {"keep": 0.5}, {"max_macs": 250}])
def test_both_ends_are_narrowed_and_not_the_middle(calibration: dict[str, Array], options: dict[str, Any]) -> None:
    found = condense(autoencoder(), calibration=calibration, allow_slower=True, threads=1, **options)
    report = found.report
    assert report.error is not None
    assert report.error.value < 0.02
    widths = {s.name: s.after for s in report.spaces}
    assert widths["a"] < NEURONS // 2
    assert widths["d"] < NEURONS // 2
    assert widths["c"] == MIDDLE
    assert report.parameters is not None
    assert report.parameters.after < report.parameters.before


def test_a_limit_on_work_does_not_make_the_network_larger(calibration: dict[str, Array]) -> None:
    """Half of the work is to be had with copies that take more than the dense network stores."""
    found = condense(autoencoder(), calibration=calibration, allow_slower=True, threads=1, max_macs=850)
    assert found.report.parameters is not None
    assert found.report.parameters.after < found.report.parameters.before
    assert found.report.macs is not None
    assert found.report.macs.after <= 850


@pytest.mark.parametrize("tied", [True, False])
def test_where_narrowing_takes_copies_the_reason_says_so(*, tied: bool) -> None:
    """Neurons that differ: some would go, but what stays of both uses takes more room than the one weight."""
    dense = autoencoder()
    for name, seed in (("W", 2), ("V", 3)):
        stored = next(t for t in dense.graph.initializer if t.name == name)
        value = np.random.default_rng(seed).normal(size=stored.dims).astype("f4")
        stored.CopyFrom(onnx.numpy_helper.from_array(value, name))
        if not tied:
            dense.graph.initializer.append(onnx.numpy_helper.from_array(value, f"{name}_copy"))
    if not tied:
        for node in dense.graph.node[-3:]:
            node.input[1:2] = [f"{name}_copy" for name in node.input[1:2]]
    feed = {"x": np.random.default_rng(1).normal(size=(1000, 6)).astype("f4")}
    reason = condense(dense, calibration=feed, tolerance=1e-5, threads=1).report.reason
    assert reason is not None
    copies = " and leave fewer parameters: W and 1 more weight are stored once and used often, so that narrowing may"
    assert reason.text == "no channel can go within tolerance 1e-05" + f"{copies} take copies" * tied


def test_a_network_that_gives_its_own_derivative_is_told_which_weight_is_used_often() -> None:
    """Where the weight is transposed for that, it is the same one."""
    text = """<ir_version: 9, opset_import: ["" : 18]> agraph (float[N, 2] x) => (float[N, 1] y, float[N, 2] d) {
        z = MatMul(x, w) h = Tanh(z) y = MatMul(h, v) hh = Mul(h, h) left = Sub(one, hh)
        vt = Transpose(v) wt = Transpose(w) g = Mul(left, vt) d = MatMul(g, wt) }"""
    rng = np.random.default_rng(0)
    stored = {"w": rng.standard_normal((2, 30)), "v": rng.standard_normal((30, 1)), "one": np.array(1.0)}
    proto = text_model(text, {name: value.astype(np.float32) for name, value in stored.items()})
    x = rng.standard_normal((300, 2)).astype(np.float32)
    reason = condense(proto, calibration=x, tolerance=1e-7, threads=1).report.reason
    assert reason is not None
    assert "w is stored once and used often" in reason.text
