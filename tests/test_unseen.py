"""Layers that make no channel space are named, with the reason, and the last line does not blame others."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from builders import Array, text_model

from onnx_condense import condense
from onnx_condense.cost import count_macs, count_parameters
from onnx_condense.network.model import load
from onnx_condense.ops import linear, mixing
from onnx_condense.report.data import Report
from onnx_condense.search.mac_cost import MacCosts
from onnx_condense.spaces import find_spaces
from onnx_condense.unseen import IN_BODY, IN_FUNCTION, OVERRIDABLE, unseen_layers

HEAD = '<ir_version: 9, opset_import: ["" : 20, "own" : 1, "custom" : 1]>'
STORED: dict[str, Array] = {
    "w": np.random.default_rng(0).standard_normal((5, 6)).astype(np.float32),
    "v": np.random.default_rng(1).standard_normal((6, 3)).astype(np.float32),
    "g": np.full(6, 0.5, np.float32),
    "k": np.random.default_rng(2).standard_normal((4, 1, 1)).astype(np.float32),
    "q": np.ones((5, 6), np.int8),
    "s": np.ones((), np.float32),
}
FUNCTIONS = """
<domain: "own", opset_import: ["" : 20]> Dense (a, b) => (r) { m = MatMul(a, b) r = Relu(m) }
<domain: "own", opset_import: ["" : 20, "own" : 1]> Twice (a, b) => (r) { m = own.Dense(a, b) r = Neg(m) }
<domain: "own", opset_import: ["" : 20]> Plain (a) => (r) { m = Sigmoid(a) r = Mul(a, m) }"""


def network(body: str, output: str = "float[N,3] y", functions: str = "") -> onnx.ModelProto:
    """Nodes between x [N, 5] and y, with what they read of the stored tensors."""
    text = f"{HEAD} g (float[N,5] x) => ({output}) {{ {body} }} {functions}"
    read = {name for node in onnx.parser.parse_model(text).graph.node for name in node.input}
    return text_model(text, {n: v for n, v in STORED.items() if n in read})


def rows(proto: onnx.ModelProto) -> list[tuple[str, str]]:
    model = load(proto)
    return [(r.node, r.reason) for r in unseen_layers(model, find_spaces(model))]


def said(proto: onnx.ModelProto) -> Report:
    return condense(proto, threads=1).report


HIDDEN: dict[str, tuple[str, str, list[tuple[str, str]]]] = {
    "scaled": ("u = Mul(w, g) h = MatMul(x, u) y = MatMul(h, v)", "", [("h (MatMul)", linear.COMPUTED_WEIGHT)]),
    "scaled, in Gemm": ("u = Mul(w, g) h = Gemm(x, u) y = MatMul(h, v)", "", [("h (Gemm)", linear.COMPUTED_WEIGHT)]),
    "quantized": (
        "u = DequantizeLinear(q, s) h = MatMul(x, u) y = MatMul(h, v)", "", [("h (MatMul)", mixing.QUANTIZED)],
    ),
    "function": ("h = own.Dense(x, w) y = MatMul(h, v)", FUNCTIONS, [("h (Dense)", IN_FUNCTION)]),
    "function of a function": ("h = own.Twice(x, w) y = MatMul(h, v)", FUNCTIONS, [("h (Twice)", IN_FUNCTION)]),
    "function without layers": ("h = MatMul(x, w) p = own.Plain(h) y = MatMul(p, v)", FUNCTIONS, []),
    "no rule": ("h = custom.Dense(x, w) y = MatMul(h, v)", "", [("h (Dense)", "no rule for Dense")]),
    "no rule and no weight": ("p = custom.Scaled(x) h = MatMul(p, w) y = MatMul(h, v)", "", []),
    "attention": ("h = MatMul(x, w) t = Transpose(h) a = MatMul(h, t) b = MatMul(a, h) y = MatMul(b, v)", "", []),
    "nothing hidden": ("h = MatMul(x, w) y = MatMul(h, v)", "", []),
    "weights alone": ("p = Transpose(w) t = MatMul(p, w) h = MatMul(x, w) d = MatMul(h, t) y = MatMul(d, v)", "",
                      [("d (MatMul)", linear.COMPUTED_WEIGHT)]),
}  # fmt: skip


@pytest.mark.parametrize(("body", "functions", "expected"), HIDDEN.values(), ids=HIDDEN)
def test_layers_that_make_no_space_are_named(body: str, functions: str, expected: list[tuple[str, str]]) -> None:
    # What a refusal of a space says already is not said twice.
    proto = network(body, functions=functions)
    model = load(proto)
    told = {(r.node, r.reason) for r in find_spaces(model).refusals}
    assert rows(proto) == [row for row in expected if row not in told]
    assert set(expected) <= told | set(rows(proto))


def test_a_convolution_by_what_the_input_makes_is_a_layer() -> None:
    text = (
        f"{HEAD} g (float[N,1,8] x, float[4,1,1] c) => (float[N,4,8] y) {{ u = Mul(k, c) h = Conv(x, u) y = Relu(h) }}"
    )
    assert rows(text_model(text, {"k": STORED["k"]})) == [("h (Conv)", linear.COMPUTED_WEIGHT)]


def test_weights_that_callers_may_override() -> None:
    proto = network("h = MatMul(x, w) y = MatMul(h, v)")
    proto.graph.input.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [5, 6]))
    assert rows(proto) == [("h (MatMul)", OVERRIDABLE)]


def test_layers_in_bodies() -> None:
    branches = (
        "then_branch = t () => (float[N,6] t1) { t1 = MatMul(x, w) }, else_branch = e () => (float[N,6] e1) "
        "{ e1 = MatMul(x, w) }"
    )
    choice = "c = ReduceMax<keepdims = 0>(x) b = Cast<to = 9>(c)"
    proto = text_model(
        f"{HEAD} g (float[N,5] x) => (float[N,3] y) {{ {choice} h = If (b) <{branches}> y = MatMul(h, v) }}",
        {n: STORED[n] for n in "wv"},
    )
    assert rows(proto) == [("h (If)", IN_BODY)]
    plain = text_model(onnx.printer.to_text(proto).replace("MatMul (x, w)", "Gelu(x)"))
    assert rows(plain) == []


def test_the_report_has_them() -> None:
    report = said(network("h = own.Dense(x, w) y = MatMul(h, v)", functions=FUNCTIONS))
    assert [(r.space, r.node, r.reason) for r in report.refusals] == [
        ("y", "y", "graph output"),
        ("h", "h (Dense)", IN_FUNCTION),
    ]
    assert report.reason is not None
    assert report.reason.text.startswith("no hidden layer was found (see refusals): channels are written for the outp")


# ---- what the last line says ----


def last(proto: onnx.ModelProto) -> str:
    reason = said(proto).reason
    assert reason is not None
    return reason.text


def test_a_layer_of_one_channel_is_not_called_pinned() -> None:
    stored = {"w": np.ones((5, 1), np.float32), "v": np.ones((1, 3), np.float32)}
    text = f"{HEAD} g (float[N,5] x) => (float[N,3] y) {{ h = MatMul(x, w) a = Tanh(h) y = MatMul(a, v) }}"
    assert last(text_model(text, stored)) == "no hidden layer can be narrowed: h is 1 wide"


def test_a_network_of_outputs_alone_has_no_hidden_layer() -> None:
    body = "p = Sin(x) y = MatMul(p, w)"
    alone = "no hidden layer was found: channels are written for the outputs alone"
    assert last(network(body, "float[N,6] y")) == alone
    assert "inline" in last(network("h = own.Dense(x, w) y = MatMul(h, v)", functions=FUNCTIONS))


def test_what_is_pinned_is_called_so() -> None:
    proto = network("h = MatMul(x, w) a = Softmax<axis = 1>(h) y = MatMul(a, v)")
    assert last(proto) == "no hidden layer can be narrowed: every channel is pinned (see refusals)"


def test_merges_that_were_given_back_were_proved() -> None:
    half = np.random.default_rng(0).standard_normal((5, 6)).astype(np.float32)
    text = f"{HEAD} g (float[N,5] x) => (float[N,5] y) {{ h = Gemm(x, w, b) a = Relu(h) y = Gemm<transB = 1>(a, w) }}"
    report = said(text_model(text, {"w": np.concatenate([half, half[:, :2]], 1), "b": np.ones(8, np.float32)}))
    assert any(note.startswith("exact merges were given back") for note in report.notes)
    assert report.reason is not None
    assert report.reason.text == "what the weights prove redundant was given back (see notes)"


# ---- what functions cost ----


def test_what_functions_hold_is_counted() -> None:
    calls = network("h = own.Twice(x, w) y = MatMul(h, v)", functions=FUNCTIONS)
    inside = load(calls)
    assert count_macs(inside) == 5 * 6 + 6 * 3
    assert MacCosts(inside, find_spaces(inside)).total([3]) == 48
    own = """<domain: "own", opset_import: ["" : 20]> Own (a) => (r) {
        c = Constant<value = float[3] {1, 2, 3}>()
        r = Mul(a, c)
    }"""
    assert count_parameters(network("p = MatMul(x, w) o = MatMul(p, v) y = own.Own(o)", functions=own)) == 30 + 18 + 3
