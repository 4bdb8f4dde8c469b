"""LSTM, GRU and RNN: what the weights alone prove of the channels that they read goes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from builders import Layer, Outcome, Planting, lossless, outputs
from onnx import helper, numpy_helper
from recurrent_nets import (
    DIRECTIONS,
    HIDDEN,
    OPS,
    SEQ,
    WIDTH,
    Case,
    F,
    assert_alike,
    by_hand,
    fed,
    network,
    node,
    planted,
    tensor,
    written,
)


def condensed(proto: onnx.ModelProto, width: int) -> Outcome:
    """The hidden layer in front has that many channels left, and nothing else changed its size."""
    done = lossless(proto)
    assert done.widths() == [width]
    layer, old = node(done.proto, "Relu"), {t.name: tuple(t.dims) for t in proto.graph.initializer}
    assert layer.output == ["h"]
    assert tensor(done.proto, "W").shape == (*old["W"][:2], width)
    assert tensor(done.proto, "R").shape == old["R"]
    assert len(tensor(done.proto, "b")) == width
    return done


PLANTINGS = {
    "copies": Planting(copies=3),
    "dead": Planting(copies=1, dead=4),
    "constant": Planting(copies=1, constant=3),
    "all": Planting(copies=2, dead=3, constant=2),
}


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("bias", [True, False], ids=["B", "no B"])
@pytest.mark.parametrize("planting", PLANTINGS.values(), ids=PLANTINGS)
def test_planted_channels_go(op: str, direction: str, planting: Planting, *, bias: bool) -> None:
    case = Case(op, direction, bias)
    proto = network(case, planting)
    done = condensed(proto, WIDTH)
    feed = fed(proto)
    assert_alike(outputs(proto, feed), outputs(done.proto, feed))
    assert_alike(by_hand(proto, feed["x"]), by_hand(done.proto, feed["x"]))
    assert_alike(by_hand(proto, feed["x"]), outputs(done.proto, feed))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("bias", [True, False], ids=["B", "no B"])
def test_layout_1(op: str, *, bias: bool) -> None:
    """ONNX Runtime's kernels for CPUs do not run it."""
    case = Case(op, "bidirectional", bias, layout=1)
    proto = network(case, PLANTINGS["all"])
    done = condensed(proto, WIDTH)
    x = fed(proto)["x"]
    assert_alike(by_hand(proto, x), by_hand(done.proto, x))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("bias", [True, False], ids=["B", "no B"])
def test_half_precision(op: str, *, bias: bool) -> None:
    proto = network(Case(op, "bidirectional", bias, dtype=np.float16), PLANTINGS["dead"])
    done = condensed(proto, WIDTH)
    assert tensor(done.proto, "W").dtype == np.float16
    feed = fed(proto)
    assert_alike(outputs(proto, feed), outputs(done.proto, feed), 2.0**-11)


@pytest.mark.parametrize("dtype", [F, np.float16])
def test_a_missing_bias_is_made_in_the_type_of_the_weight(dtype: Any) -> None:
    case = Case("GRU", "bidirectional", bias=False, dtype=dtype)
    layers, weights = planted(case, Planting(copies=1, constant=2))
    proto = written(case, layers, weights)
    done = lossless(proto)
    (name,) = node(done.proto, "GRU").input[3:]
    made = tensor(done.proto, name)
    assert made.dtype == dtype
    assert made.shape == (2, 2 * case.rows)
    # The planted constants are what it holds, and only its first half holds them.
    gone = np.setdiff1d(np.arange(WIDTH + 2), done.plan.selections[0].keep)
    levels = np.maximum(layers[0].bias[gone], 0)
    np.testing.assert_allclose(made[:, : case.rows], weights["W"][:, :, gone] @ levels, rtol=2e-3, atol=1e-3)
    assert not made[:, case.rows :].any()


def test_the_second_half_of_a_bias_stays_as_it_is() -> None:
    proto = network(Case("GRU", "bidirectional"), Planting(copies=1, constant=3))
    before, after = (tensor(p, "B") for p in (proto, lossless(proto).proto))
    rows = before.shape[1] // 2
    np.testing.assert_array_equal(before[:, rows:], after[:, rows:])
    assert (np.abs(before[:, :rows] - after[:, :rows]) > 1e-3).any()


@pytest.mark.parametrize("before", [0, 1])
def test_a_gru_adds_the_first_half_whatever_is_reset_first(before: int) -> None:
    case = Case("GRU", "bidirectional", more={"linear_before_reset": before})
    proto = network(case, PLANTINGS["constant"])
    done = condensed(proto, WIDTH)
    feed = fed(proto)
    assert_alike(outputs(proto, feed), outputs(done.proto, feed))
    assert_alike(by_hand(proto, feed["x"]), by_hand(done.proto, feed["x"]))


OTHERS: dict[str, Case] = {
    "clip": Case("LSTM", more={"clip": 0.4}),
    "input_forget": Case("LSTM", more={"input_forget": 1}),
    "functions": Case("RNN", "bidirectional", more={"activations": ["Relu", "Sigmoid"]}),
    "opset 7": Case("LSTM", opset=7),
    "opset 14": Case("GRU", "reverse", opset=14),
    "opset 22": Case("RNN", opset=22),
    "only the last state": Case("LSTM", outs=("", "y_h")),
    "only the sequence": Case("GRU", outs=("y",)),
    "Gemm": Case("LSTM", linear="Gemm"),
    "Gemm, no B": Case("RNN", linear="Gemm", bias=False),
}


@pytest.mark.parametrize("case", OTHERS.values(), ids=OTHERS)
def test_what_happens_to_the_sums_does_not_matter(case: Case) -> None:
    proto = network(case, PLANTINGS["all"])
    done = condensed(proto, WIDTH)
    feed = fed(proto)
    assert_alike(outputs(proto, feed), outputs(done.proto, feed))


@pytest.mark.parametrize("bias", [True, False], ids=["B", "no B"])
def test_operands_behind_the_bias_keep_their_places(*, bias: bool) -> None:
    """Lengths, initial states and peepholes."""
    case = Case("LSTM", "bidirectional", bias)
    layers, weights = planted(case, PLANTINGS["all"])
    tail = {"lengths": np.array([6, 2, 4, 1]), "h0": np.ones((2, 4, HIDDEN)) / 3, "c0": np.ones((2, 4, HIDDEN)) / 5}
    tail["P"] = np.random.default_rng(5).standard_normal((2, 3 * HIDDEN))
    proto = written(case, layers, {**weights, **{name: v.astype(F) for name, v in tail.items()}})
    layer = node(proto, "LSTM")
    layer.input.extend([""] * (4 - len(layer.input)))
    layer.input.extend(tail)
    next(t for t in proto.graph.initializer if t.name == "lengths").CopyFrom(
        numpy_helper.from_array(tail["lengths"].astype(np.int32), "lengths")
    )
    done = condensed(proto, WIDTH)
    assert list(node(done.proto, "LSTM").input[4:]) == list(tail)
    feed = fed(proto)
    assert_alike(outputs(proto, feed), outputs(done.proto, feed))


@pytest.mark.parametrize("op", OPS)
def test_nothing_planted_nothing_removed(op: str) -> None:
    proto = network(Case(op, "bidirectional"), Planting(copies=1))
    done = lossless(proto)
    assert not done.plan.selections
    assert done.proto.SerializeToString() == proto.SerializeToString()


def test_a_column_of_one_direction_or_one_gate_keeps_a_channel() -> None:
    """A channel is dead only if no row of any direction weighs it."""
    case = Case("LSTM", "bidirectional")
    layers, weights = planted(case, Planting(copies=1, dead=2))
    dead = np.flatnonzero((weights["W"] == 0).all(axis=(0, 1)))
    weights["W"][1, case.rows - 1, dead[0]] = 0.25
    assert lossless(written(case, layers, weights)).widths() == [WIDTH + 1]


def test_copies_scaled_apart_by_the_gates_are_one_channel_still() -> None:
    """Rows weigh copies as they like: it is the sum of columns that counts."""
    case = Case("GRU", bias=False)
    layers, weights = planted(case, Planting(copies=1))
    layers = [Layer(np.r_[layers[0].weight, 2 * layers[0].weight], np.r_[layers[0].bias, 2 * layers[0].bias])]
    more = np.random.default_rng(9).standard_normal(weights["W"].shape)
    proto = written(case, layers, {**weights, "W": np.concatenate([weights["W"], more], axis=2)})
    done = condensed(proto, WIDTH)
    kept = tensor(done.proto, "W").astype(np.float64)
    np.testing.assert_allclose(kept, weights["W"] / 2 + more, rtol=1e-5, atol=1e-6)


def test_a_weight_and_a_bias_that_are_stored_once_and_used_often() -> None:
    """Three layers with one B on one tensor, two of them with one W: B is stored anew where it becomes another."""
    case = Case("GRU")
    layers, weights = planted(case, PLANTINGS["all"])
    proto = written(case, layers, weights)
    proto.graph.node.append(helper.make_node("GRU", ["h", "W", "R2", "B"], ["q"], hidden_size=HIDDEN))
    proto.graph.node.append(helper.make_node("GRU", ["h", "V", "R", "B"], ["p"], hidden_size=HIDDEN))
    other = np.random.default_rng(2).standard_normal(weights["W"].shape).astype(F)
    proto.graph.initializer.append(numpy_helper.from_array(other, "V"))
    proto.graph.initializer.append(numpy_helper.from_array((weights["R"] / 2).astype(F), "R2"))
    proto.graph.output.extend(helper.make_tensor_value_info(n, 1, [SEQ, 1, "N", HIDDEN]) for n in "qp")
    done = lossless(proto)
    first, second, third = (n for n in done.proto.graph.node if n.op_type == "GRU")
    assert first.input[1] == second.input[1]
    assert first.input[3] == second.input[3] != third.input[3]
    feed = fed(proto)
    assert_alike(outputs(proto, feed), outputs(done.proto, feed))
