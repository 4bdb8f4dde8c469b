"""A network from scratch has the layout of the condensed one and none of what it learned."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import pytest
import scratch
from mlps import Net
from onnx import numpy_helper

from onnx_condense.errors import ModelError
from onnx_condense.runtime import Array, Runtime, run

RNG = np.random.default_rng(3)


def normal(*shape: int) -> Any:
    return RNG.normal(size=shape) + 5.0  # far outside of every bound


def stored(proto: onnx.ModelProto) -> dict[str, Array]:
    return {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}


def picture() -> onnx.ModelProto:
    """Conv, BatchNormalization, PRelu, grouped Conv, ConvTranspose, Gemm, MatMul and Add: biases everywhere."""
    net = Net({"x": ["n", 3, 6, 6]})
    x = net.node("Conv", "x", net.weight("conv", normal(8, 3, 3, 3)), net.weight("conv_b", normal(8)))
    norms = [net.weight(f"bn{i}", abs(normal(8))) for i in range(4)]
    x = net.node("BatchNormalization", x, *norms)
    x = net.node("PRelu", x, net.weight("slope", normal(8, 1, 1)))
    x = net.node("Conv", x, net.weight("grouped", normal(8, 2, 1, 1)), group=4)
    x = net.node("ConvTranspose", x, net.weight("up", normal(8, 2, 3, 3)), net.weight("up_b", normal(4)), group=2)
    x = net.node("GlobalAveragePool", x)
    x = net.node("Flatten", x)
    x = net.node("Gemm", x, net.weight("gemm", normal(7, 4)), net.weight("gemm_b", normal(7)), transB=1)
    x = net.node("MatMul", x, net.weight("mat", normal(7, 9)))
    x = net.node("Add", net.weight("mat_b", normal(9)), x)
    x = net.node("Mul", x, net.weight("scale", normal(9)))
    net.node("Add", x, net.weight("shift", normal(9)), out="y")
    return net.model({"y": ["n", 9]})


BOUNDS = {"conv": 27, "grouped": 2, "up": 36, "gemm": 4, "mat": 7}
FIXED = {"conv_b": 0, "bn0": 1, "bn1": 0, "bn2": 0, "bn3": 1, "slope": 0.25, "up_b": 0, "gemm_b": 0, "mat_b": 0}


def test_weights_are_drawn_within_the_bound_of_their_fan_in() -> None:
    fresh = stored(scratch.reinitialized(picture(), 0))
    for name, fan_in in BOUNDS.items():
        # Of so many uniform draws the largest is close below the bound.
        assert 0.75 < np.abs(fresh[name]).max() * math.sqrt(fan_in) <= 1.0 + 1e-6, name
    wider = stored(scratch.reinitialized(picture(), 0, gain=2.0))
    np.testing.assert_allclose(wider["mat"], 2 * fresh["mat"], rtol=1e-6)


def test_biases_norms_and_slopes_start_anew_and_scalings_stay() -> None:
    before, fresh = stored(picture()), stored(scratch.reinitialized(picture(), 0))
    for name, value in FIXED.items():
        assert (fresh[name] == value).all(), name
    # What is no bias of a weight is part of the layout.
    assert all((fresh[name] != 0).all() for name in ("scale", "shift"))
    assert before.keys() == fresh.keys() == BOUNDS.keys() | FIXED.keys() | {"scale", "shift"}


def test_the_layout_and_the_given_network_stay() -> None:
    proto = picture()
    was = proto.SerializeToString()
    fresh = scratch.reinitialized(proto, 0)
    assert proto.SerializeToString() == was
    assert [n.SerializeToString() for n in fresh.graph.node] == [n.SerializeToString() for n in proto.graph.node]
    assert {n: (a.shape, a.dtype) for n, a in stored(fresh).items()} == {
        n: (a.shape, a.dtype) for n, a in stored(proto).items()
    }
    feed = {"x": RNG.normal(size=(2, 3, 6, 6)).astype(np.float32)}
    assert np.isfinite(run(Runtime(threads=1).session(fresh), feed)[0]).all()


def test_the_seed_tells_the_weights() -> None:
    first, again, other = (stored(scratch.reinitialized(picture(), seed)) for seed in (1, 1, 2))
    assert all((first[name] == again[name]).all() for name in BOUNDS)
    assert all((first[name] != other[name]).all() for name in BOUNDS)


def test_nothing_of_another_network_of_the_same_layout_is_left() -> None:
    scales = {name: value for name, value in stored(picture()).items() if name in ("scale", "shift")}
    other = picture()
    for tensor in other.graph.initializer:
        value = scales.get(tensor.name, numpy_helper.to_array(tensor) * 0.5 + 1.0)
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    one = picture()
    for tensor in one.graph.initializer:
        if tensor.name in scales:
            tensor.CopyFrom(numpy_helper.from_array(scales[tensor.name], tensor.name))
    assert scratch.reinitialized(one, 4) == scratch.reinitialized(other, 4)


def test_weights_behind_views_and_in_constants_are_forgotten_too() -> None:
    net = Net({"x": ["n", 4]})
    turned = net.node("Transpose", net.weight("turned", normal(6, 4)), perm=[1, 0])
    x = net.node("MatMul", "x", turned)
    value = numpy_helper.from_array(normal(6, 3).astype(np.float32), "inside")
    x = net.node("MatMul", x, net.node("Constant", value=value))
    net.node("Identity", x, out="y")
    fresh = scratch.reinitialized(net.model({"y": ["n", 3]}), 0)
    assert 0.25 < np.abs(stored(fresh)["turned"]).max() <= 0.5
    (constant,) = [n for n in fresh.graph.node if n.op_type == "Constant"]
    assert 0.2 < np.abs(numpy_helper.to_array(constant.attribute[0].t)).max() <= 1 / math.sqrt(6)


def test_the_left_operand_has_its_own_fan_in() -> None:
    net = Net({"x": [4, "n"]})
    x = net.node("MatMul", net.weight("left", normal(30, 4)), "x")
    net.node("Gemm", net.weight("turned", normal(30, 20)), x, out="y", transA=1)
    fresh = stored(scratch.reinitialized(net.model({"y": [20, "n"]}), 0))
    assert 0.4 < np.abs(fresh["left"]).max() <= 0.5
    assert 0.15 < np.abs(fresh["turned"]).max() <= 1 / math.sqrt(30)


def test_a_recurrent_layer_is_drawn_by_its_hidden_size() -> None:
    net = Net({"x": ["t", "n", 3]})
    weights = (net.weight("w", normal(1, 20, 3)), net.weight("r", normal(1, 20, 5)), net.weight("b", normal(1, 40)))
    net.node("LSTM", "x", *weights, out="y", hidden_size=5)
    fresh = stored(scratch.reinitialized(net.model({"y": ["t", 1, "n", 5]}), 0))
    assert 0.4 < np.abs(fresh["w"]).max() <= 1 / math.sqrt(5)
    assert 0.4 < np.abs(fresh["r"]).max() <= 1 / math.sqrt(5)
    assert (fresh["b"] == 0).all()


def test_half_precision_stays() -> None:
    net = Net({"x": ["n", 4]}, dtype=np.float16)
    net.node("MatMul", "x", net.weight("w", normal(4, 3)), out="y")
    assert stored(scratch.reinitialized(net.model({"y": ["n", 3]}), 0))["w"].dtype == np.float16


def test_a_matrix_without_a_rule_is_refused() -> None:
    net = Net({"x": ["n", 4]})
    x = net.node("MatMul", "x", net.weight("w", normal(4, 3)))
    net.node("Einsum", x, net.weight("table", normal(3, 5)), out="y", equation="ij,jk->ik")
    with pytest.raises(ModelError, match=r"'table' \[3, 5\] is read by Einsum"):
        scratch.reinitialized(net.model({"y": ["n", 5]}), 0)


def test_a_matrix_added_to_a_result_is_no_bias() -> None:
    net = Net({"x": [2, 4]})
    x = net.node("MatMul", "x", net.weight("w", normal(4, 3)))
    net.node("Add", x, net.weight("places", normal(2, 3)), out="y")
    with pytest.raises(ModelError, match=r"'places' \[2, 3\] is read by Add"):
        scratch.reinitialized(net.model({"y": [2, 3]}), 0)


@pytest.mark.parametrize(("text", "shares"), [("41.7,20", [0.417, 0.2]), (" 2.5%, 1 ", [0.025, 0.01]), ("", [])])
def test_sizes_are_percents(text: str, shares: list[float]) -> None:
    assert scratch.sizes_of(text) == pytest.approx(shares)


@pytest.mark.parametrize("text", ["100", "0", "5,-1", "nan", "a"])
def test_sizes_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"give percents|could not convert"):
        scratch.sizes_of(text)
