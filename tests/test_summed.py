"""Sums over channels are read as products with ones, where that lets channels go."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import pytest
from builders import feed_for, outputs
from endtoend import run, timer  # noqa: F401 - a fixture that every test uses
from mlps import Array, Net
from onnx import helper

from onnx_condense.network.live import live
from onnx_condense.network.model import load
from onnx_condense.network.summed import summed
from onnx_condense.ready import ready
from onnx_condense.spaces import find_spaces

KINDS = ("sum", "sum that stays", "einsum", "many points", "many points first")
# Of `operator`: 0 is zero, 3 and 9 are what 5 is, times 2 and -1 on one side.
WIDTH, LEFT = 16, 13


def operator(kind: str, *, opset: int = 17, dtype: type = np.float32, planted: bool = True) -> onnx.ModelProto:
    """A branch and a trunk of two layers each, whose answers are multiplied and summed."""
    rng = np.random.default_rng(0)
    points = kind.startswith("many points")
    net = Net({"u": ["N", 12], "t": ["N", 7, 3] if points else ["N", 3]}, opset=opset, dtype=dtype)
    branch, trunk = rng.standard_normal((20, WIDTH)) / 4, rng.standard_normal((20, WIDTH)) / 4
    if planted:
        branch[:, [3, 9]] = branch[:, [5, 5]] * [[2, -1]]
        trunk[:, [3, 9]] = trunk[:, [5, 5]]
        branch[:, 0] = 0
    b = net.node("Tanh", net.node("MatMul", "u", net.weight("b1", rng.standard_normal((12, 20)) / 3)))
    t = net.node("Tanh", net.node("MatMul", "t", net.weight("t1", rng.standard_normal((3, 20)))))
    b = net.node("MatMul", b, net.weight("b2", branch))
    t = net.node("Tanh", net.node("MatMul", t, net.weight("t2", trunk)))
    if kind == "einsum":
        net.node("Einsum", b, t, equation="bi, bi -> b", out="y")
        return net.model({"y": ["N"]})
    if points:
        pair, terms = ((b, t), "bi,bni") if kind == "many points" else ((t, b), "bni,bi")
        net.node("Einsum", *pair, equation=f"{terms}->bn", out="y")
        return net.model({"y": ["N", 7]})
    stays = kind == "sum that stays"
    axes = {"axes": [-1]} if opset < 13 else {}
    stored = [net.weight("axes", np.array([-1]))] if opset >= 13 else []
    net.node("ReduceSum", net.node("Mul", b, t), *stored, keepdims=int(stays), out="y", **axes)
    return net.model({"y": ["N", 1] if stays else ["N"]})


def widths(model: onnx.ModelProto) -> list[int]:
    return [w.dims[1] for w in model.graph.initializer if w.name in ("b2", "t2")]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("opset", [12, 17, 20])
@pytest.mark.parametrize("kind", KINDS)
def test_channels_that_are_summed_go(kind: str, opset: int, dtype: type) -> None:
    dense = operator(kind, opset=opset, dtype=dtype)
    found = run(dense)
    assert widths(found.model) == [LEFT, LEFT]
    onnx.checker.check_model(found.model, full_check=True)
    feed = feed_for(dense)
    before, after = outputs(dense, feed)[0], outputs(found.model, feed)[0]
    assert before.shape == after.shape
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(after, before, rtol=0, atol=float(200 * eps * np.abs(before).max()))


def test_factors_whose_axes_come_in_another_order_stay() -> None:
    rng = np.random.default_rng(0)
    net = Net({"u": ["N", 4, 12], "t": [4, "N", 3]})
    rows = rng.standard_normal((3, WIDTH))
    rows[:, 5] = rows[:, 2]
    last = rng.standard_normal((12, WIDTH))
    last[:, 5] = last[:, 2]
    pair = (net.node("MatMul", "t", net.weight("t2", rows)), net.node("MatMul", "u", net.weight("b2", last)))
    net.node("Einsum", *pair, equation="nbi,bni->bn", out="y")
    dense = net.model({"y": ["N", 4]})
    assert run(dense).model.SerializeToString() == dense.SerializeToString()


@pytest.mark.parametrize("kind", KINDS)
def test_without_redundancy_the_network_stays_as_it_came(kind: str) -> None:
    dense = operator(kind, planted=False)
    found = run(dense)
    assert found.model.SerializeToString() == dense.SerializeToString()


def test_what_is_summed_can_be_fitted() -> None:
    rng = np.random.default_rng(1)
    calibration: Mapping[str, Array] = {
        "u": rng.standard_normal((2000, 12)).astype(np.float32),
        "t": rng.standard_normal((2000, 3)).astype(np.float32),
    }
    found = run(operator("sum", planted=False), calibration=calibration, keep=0.5, allow_slower=True)
    assert max(widths(found.model)) < WIDTH


def test_ones_are_put_in_only_where_channels_get_free() -> None:
    """The second sum is over what a Softmax holds, and stays one."""
    model = operator("sum")
    held = [helper.make_node("Softmax", ["tanh_6"], ["held"]), helper.make_node("ReduceSum", ["held", "axes"], ["z"])]
    model.graph.node.extend(held)
    model.graph.output.append(helper.make_tensor_value_info("z", 1, ["N", 1]))
    network = live(load(model))
    assert "tanh_6" in network.producers
    labels = find_spaces(network).labels
    assert not labels["mul_7"].any()
    assert [n.op for n in ready(model).nodes].count("ReduceSum") == 2, "the Softmax holds the trunk"
    del model.graph.node[-2:], model.graph.output[-1:]
    assert [n.op for n in ready(model).nodes].count("ReduceSum") == 0


REFUSED: dict[str, list[onnx.NodeProto]] = {
    "over samples": [helper.make_node("ReduceSum", ["h", "zero"], ["y"])],
    "over everything": [helper.make_node("ReduceSum", ["h"], ["y"])],
    "over both axes": [helper.make_node("ReduceSum", ["h", "both"], ["y"])],
    "a mean": [helper.make_node("ReduceMean", ["h"], ["y"], axes=[1])],
    "of an input": [helper.make_node("ReduceSum", ["x", "one"], ["y"])],
    "of what is stored": [helper.make_node("ReduceSum", ["w", "one"], ["y"])],
    "of squares": [helper.make_node("Mul", ["h", "h"], ["s"]), helper.make_node("ReduceSum", ["s", "one"], ["y"])],
    "of roots": [helper.make_node("Sqrt", ["h"], ["s"]), helper.make_node("ReduceSum", ["s", "one"], ["y"])],
    "of powers": [helper.make_node("Pow", ["h", "w0"], ["s"]), helper.make_node("ReduceSum", ["s", "one"], ["y"])],
    "of positive numbers": [helper.make_node("Relu", ["h"], ["s"]), helper.make_node("ReduceSum", ["s", "one"], ["y"])],
    "of products of positive numbers": [
        helper.make_node("Exp", ["h"], ["e"]),
        helper.make_node("Sigmoid", ["h"], ["g"]),
        helper.make_node("Mul", ["e", "g"], ["s"]),
        helper.make_node("ReduceSum", ["s", "one"], ["y"]),
    ],
    "a square as an einsum": [helper.make_node("Einsum", ["h", "h"], ["y"], equation="bi,bi->b")],
    "of integers": [helper.make_node("Cast", ["h"], ["i"], to=6), helper.make_node("ReduceSum", ["i", "one"], ["y"])],
    "a sum of another axis": [helper.make_node("Einsum", ["h", "h"], ["y"], equation="bi,bi->i")],
    "of one number over and over": [
        helper.make_node("ReduceMean", ["h"], ["m"], axes=[1], keepdims=1),
        helper.make_node("Einsum", ["m", "h"], ["y"], equation="bi,bi->b"),
    ],
    "points before rows": [
        helper.make_node("Unsqueeze", ["h", "one"], ["k"]),
        helper.make_node("Einsum", ["h", "k"], ["y"], equation="bi,bni->nb"),
    ],
    "rows in another order": [
        helper.make_node("Unsqueeze", ["h", "one"], ["k"]),
        helper.make_node("Einsum", ["k", "k"], ["y"], equation="nbi,bni->bn"),
    ],
    "products of rows": [helper.make_node("Einsum", ["h", "h"], ["y"], equation="bi,ni->bn")],
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_sum_over_channels(name: str) -> None:
    net = Net({"x": ["N", 3]})
    net.node("Tanh", net.node("MatMul", "x", net.weight("w", np.eye(3, 6))), out="h")
    read = {n for node in REFUSED[name] for n in node.input}
    for key, value in {"zero": [0], "one": [1], "both": [0, 1], "w0": 2.0}.items():
        if key in read:
            net.weight(key, np.array(value))
    net.nodes += REFUSED[name]
    rank = 1 if name in ("a sum of another axis", "a square as an einsum", "of one number over and over") else 2
    ends = [helper.make_tensor_value_info("y", 6 if name == "of integers" else 1, [None] * rank)]
    graph = helper.make_graph(net.nodes, "g", net.inputs, ends, net.stored)
    network = live(load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)))
    assert summed(network, lambda n: find_spaces(n).labels) is network


def test_a_function_that_goes_by_the_name_of_an_op_that_is_put_in() -> None:
    model = operator("sum")
    body = [helper.make_node("Neg", ["a"], ["b"])]
    model.functions.append(helper.make_function("", "Squeeze", ["a"], ["b"], body, [helper.make_opsetid("", 17)]))
    network = live(load(model))
    assert summed(network, lambda n: find_spaces(n).labels) is network
