"""LSTM, GRU and RNN are readers of their input's channels; their hidden width stays, and what does not fit pins."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from builders import Form, Layer, Planting, lossless, model, outputs
from onnx import helper, numpy_helper
from recurrent_nets import (
    HIDDEN,
    IN,
    OPS,
    WIDTH,
    Case,
    F,
    assert_alike,
    fed,
    network,
    node,
    planted,
    tensor,
    written,
)

from onnx_condense.network.model import Network
from onnx_condense.ops import Call, Value, find, linear, mixing, recurrent
from onnx_condense.plan import Refusal
from onnx_condense.spaces import find_spaces


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_the_use_says_how_the_weight_lies(op: str, direction: str) -> None:
    case = Case(op, direction)
    found = Network(network(case, Planting(copies=1)))
    view = find_spaces(found)
    use = view.linear[1]
    assert use.inside
    assert not view.linear[0].inside
    stored = tensor(found.proto, "W")
    matrix = use.matrix(stored)
    np.testing.assert_array_equal(matrix, stored.reshape(-1, stored.shape[2]))
    np.testing.assert_array_equal(use.as_stored(matrix, stored), stored)
    np.testing.assert_array_equal(use.rows, np.zeros(len(matrix)))
    np.testing.assert_array_equal(use.columns, view.spaces[0].channels)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("outs", [("y", "y_h"), ("", "y_h")])
def test_the_hidden_width_stays_and_says_why(op: str, outs: tuple[str, ...]) -> None:
    view = find_spaces(Network(network(Case(op, "bidirectional", outs=outs), Planting(copies=1))))
    before, hidden = view.spaces
    assert not before.pinned.any()
    assert before.readers == (1,)
    assert hidden.name == next(filter(None, outs))
    assert hidden.width == 2 * HIDDEN
    assert hidden.pinned.all()
    reasons = {(r.space, r.reason) for r in view.refusals}
    assert reasons == {(hidden.name, recurrent.HIDDEN)}


def refusals(proto: onnx.ModelProto, space: int = 0) -> tuple[set[str], bool]:
    """Why the first space is held, and whether all of it is."""
    view = find_spaces(Network(proto))
    name = view.spaces[space].name
    held: list[Refusal] = [r for r in view.refusals if r.space == name]
    return {r.reason for r in held}, bool(view.spaces[space].pinned.all())


def computed(proto: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The same with one stored tensor computed from an input."""
    proto.graph.input.append(helper.make_tensor_value_info("one", 1, [1]))
    proto.graph.node.insert(0, helper.make_node("Mul", [name, "one"], [f"{name}_made"]))
    layer = next(n for n in proto.graph.node if n.op_type in OPS)
    layer.input[list(layer.input).index(name)] = f"{name}_made"
    return proto


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    ("what", "why"), [("W", linear.COMPUTED_WEIGHT), ("B", recurrent.COMPUTED_BIAS), ("R", ""), ("", "")]
)
def test_computed_operands(op: str, what: str, why: str) -> None:
    proto = network(Case(op), Planting(copies=1))
    assert refusals(computed(proto, what) if what else proto) == ({why} if why else set(), bool(why))


def test_channels_that_reach_the_initial_state_stay() -> None:
    """The hidden layer in front is read a second time, as a state of equal width."""
    case = Case("RNN", bias=False)
    layers = [Layer(np.random.default_rng(0).standard_normal((HIDDEN, IN)), np.zeros(HIDDEN))]
    rng = np.random.default_rng(1)
    weights = {"W": rng.standard_normal((1, HIDDEN, HIDDEN)), "R": rng.standard_normal((1, HIDDEN, HIDDEN))}
    proto = written(case, layers, weights)
    stored = {"starts": [0], "ends": [1], "axes": [0]}
    proto.graph.initializer.extend(numpy_helper.from_array(np.array(v), n) for n, v in stored.items())
    proto.graph.node.insert(3, helper.make_node("Slice", ["h", *stored], ["first"]))
    layer = node(proto, "RNN")
    layer.input.extend(["", "", "first"])
    onnx.checker.check_model(proto)
    assert refusals(proto) == ({recurrent.RECURRENT}, True)


def test_channels_on_the_other_axes_stay() -> None:
    case = Case("RNN", bias=False)
    layers, weights = planted(case, Planting(copies=1))
    weights["W"] = weights["W"][:, :, :4]
    proto = written(case, layers, weights)
    proto.graph.node.insert(3, helper.make_node("Transpose", ["h"], ["t"], perm=[0, 2, 1]))
    node(proto, "RNN").input[0] = "t"
    for value in (*proto.graph.input, *proto.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_value = WIDTH if value.name != "x" else 4
    assert refusals(proto)[0] == {linear.NOT_CONTRACTED}


def value(shape: Sequence[int], *, stored: bool = True) -> Value:
    constant = np.ones(shape, F) if stored else None
    return Value("v", None if stored else np.zeros((1,) * len(shape), np.int64), tuple(shape), constant)


def traced(op: str, x: Value | None, *more: Value | None, version: int = 14) -> list[str]:
    """Reasons by which the rule holds the channels of x."""
    rule = find("", op, version)
    assert rule is not None
    effect = rule.trace(Call(0, {}, (x, *more), None, lambda n: np.arange(90, 90 + n)))
    assert effect.output is None
    if any(why == recurrent.HIDDEN for _, why in effect.pins):
        assert len(effect.linear) == 1
        return [why for labels, why in effect.pins if why != recurrent.HIDDEN]
    assert not effect.linear
    return [why for _, why in effect.pins]


X = Value("x", np.arange(1, 6).reshape(1, 1, 5), (6, 2, 5), None)
R = (1, 12, 3)
MISFITS: dict[str, tuple[Value | None, list[Value | None], list[str]]] = {
    "right": (X, [value((1, 12, 5)), value(R), value((1, 24))], []),
    "no bias": (X, [value((1, 12, 5)), value(R)], []),
    "bias left out": (X, [value((1, 12, 5)), value(R), None, None], []),
    "rank of W": (X, [value((12, 5)), value(R)], [recurrent.MISFIT]),
    "rows of W": (X, [value((1, 10, 5)), value(R)], [recurrent.MISFIT]),
    "shape of B": (X, [value((1, 12, 5)), value(R), value((1, 12))], [recurrent.MISFIT]),
    "integers": (X, [Value("w", None, (1, 12, 5), np.ones((1, 12, 5), np.int8)), value(R)], [linear.INTEGER_WEIGHT]),
    "infinite": (X, [Value("w", None, (1, 12, 5), np.full((1, 12, 5), np.inf, F)), value(R)], [linear.NOT_FINITE]),
    "no W": (X, [None, value(R)], [linear.COMPUTED_WEIGHT]),
    "rank of X": (
        dataclasses.replace(X, labels=X.labels.reshape(1, 5) if X.labels is not None else None),
        [value((1, 12, 5)), value(R)],
        [linear.UNKNOWN_RANK],
    ),
    "X of unknown rank": (dataclasses.replace(X, labels=None), [value((1, 12, 5)), value(R)], []),
    "a state": (X, [value((1, 12, 5)), value(R), None, None, value((1, 2, 3), stored=False)], [recurrent.RECURRENT]),
}


@pytest.mark.parametrize(("x", "more", "why"), MISFITS.values(), ids=MISFITS)
def test_what_does_not_fit_pins(x: Value | None, more: list[Value | None], why: list[str]) -> None:
    if x is not None and x.labels is None:
        rule = find("", "LSTM", 14)
        assert rule is not None
        assert not rule.trace(Call(0, {}, (x, *more), None, np.arange)).linear
    else:
        assert traced("LSTM", x, *more) == why


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("version", "known"), [(1, False), (6, False), (7, True), (14, True), (22, True), (24, True)])
def test_opsets(op: str, version: int, *, known: bool) -> None:
    assert (find("", op, version) is not None) == known


def test_the_quantized_lstm_is_a_barrier() -> None:
    rule = find("com.microsoft", "DynamicQuantizeLSTM", 1)
    assert rule is not None
    effect = rule.trace(Call(0, {}, (X, value((1, 5, 12)), value((1, 3, 12))), None, np.arange))
    assert [why for _, why in effect.pins] == [mixing.QUANTIZED]
    assert not effect.linear


def test_a_convolution_writes_for_a_recurrent_layer() -> None:
    """Conv [N, C, L] -> Transpose [L, N, C] -> LSTM without a bias: copies and a constant go, a bias comes."""
    rng = np.random.default_rng(3)
    kernel, shift = rng.standard_normal((4, 2, 3)), rng.standard_normal(4)
    stored = {
        "k": np.r_[kernel, 2 * kernel[:2], np.zeros((1, 2, 3))],
        "c": np.r_[shift, 2 * shift[:2], 0.7],
        "W": rng.standard_normal((2, 4 * HIDDEN, 7)) / 3,
        "R": rng.standard_normal((2, 4 * HIDDEN, HIDDEN)) / 3,
    }
    nodes = [
        helper.make_node("Conv", ["x", "k", "c"], ["z"], pads=[1, 1]),
        helper.make_node("Relu", ["z"], ["r"]),
        helper.make_node("Transpose", ["r"], ["h"], perm=[2, 0, 1]),
        helper.make_node("LSTM", ["h", "W", "R"], ["y"], hidden_size=HIDDEN, direction="bidirectional"),
    ]
    kept = {name: v.astype(F) for name, v in stored.items()}
    out: dict[str, list[int | str]] = {"y": [9, 2, "N", HIDDEN]}
    proto = model(nodes, kept, {"x": ["N", 2, 9]}, out, Form(opset=17, ir=8))
    done = lossless(proto)
    assert done.widths() == [4]
    assert tensor(done.proto, "W").shape == (2, 4 * HIDDEN, 4)
    assert_alike(outputs(proto, fed(proto)), outputs(done.proto, fed(proto)))
