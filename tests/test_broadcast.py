"""Operands that are expanded to the size of what they meet need not be."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from builders import outputs
from onnx import numpy_helper

from onnx_condense import condense
from onnx_condense.network.broadcast import broadcast
from onnx_condense.network.model import load
from onnx_condense.ready import ready

SIZES = {
    "its own shape": "s = Shape(z)",
    "the rows of an input and a number": "r = Shape<end = 1>(x) s = Concat<axis = 0>(r, six)",
    "the rows of another tensor": "t = MatMul(x, x1) r = Shape<end = 1>(t) s = Concat<axis = 0>(r, six)",
    "taken apart": "zs = Shape(z) r = Slice(zs, zero, one) c = Slice(zs, one, two) s = Concat<axis = 0>(r, c)",
}
NUMBERS = {"six": [6], "zero": [0], "one": [1], "two": [2], "three": [3], "many": [7, 6]}


def network(sizes: str, op: str = "a = Add(z, e)", rows: str = "N", out: str = "N", more: str = "") -> onnx.ModelProto:
    """One layer with a bias that is laid out; of six channels the fifth is twice the second."""
    rng = np.random.default_rng(0)
    w, b = rng.standard_normal((4, 6)), rng.standard_normal(6)
    w[:, 4], b[4] = 2 * w[:, 1], 2 * b[1]
    proto = onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["" : 18]> g (float[{rows}, 4] x{more}) => (float[{out}, 2] y) {{
        z = MatMul(x, w) {sizes} e = Expand(b, s) {op} h = Relu(a) y = MatMul(h, v) }}"""
    )
    stored = {"w": w, "b": b, "v": rng.standard_normal((6, 2)), "x1": rng.standard_normal((4, 1))}
    every = {k: a.astype(np.float32) for k, a in stored.items()} | {k: np.array(n) for k, n in NUMBERS.items()}
    read = {name for node in proto.graph.node for name in node.input}
    proto.graph.initializer.extend(numpy_helper.from_array(a, k) for k, a in every.items() if k in read)
    return proto


# What jumps has no multiples.
@pytest.mark.parametrize(
    ("op", "left"), [("a = Add(z, e)", 5), ("a = Sub(e, z)", 5), ("p = Greater(z, e) a = Where(p, z, e)", 6)]
)
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_a_bias_that_is_laid_out_is_a_bias(sizes: str, op: str, left: int) -> None:
    proto = network(sizes, op)
    assert "Expand" not in {node.op for node in ready(proto).nodes}
    found = condense(proto, threads=1)
    assert found.report.spaces[0].after == left
    for rows in (1, 7):
        feed = {"x": np.random.default_rng(rows).standard_normal((rows, 4)).astype(np.float32)}
        for one, other in zip(outputs(proto, feed), outputs(found.model, feed), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_it_answers_the_same_to_the_last_bit() -> None:
    proto = network(SIZES["its own shape"])
    feed = {"x": np.random.default_rng(0).standard_normal((9, 4)).astype(np.float32)}
    made = broadcast(load(proto)).proto
    assert [node.op_type for node in made.graph.node] == ["MatMul", "Add", "Relu", "MatMul"]
    np.testing.assert_array_equal(outputs(made, feed)[0], outputs(proto, feed)[0])


NEEDED = {
    "rows that are repeated": network("s = Identity(many)", rows="1", out="7"),
    "rows of another input": network(
        "r = Shape<end = 1>(k) s = Concat<axis = 0>(r, six)", out="M", more=", float[M, 1] k"
    ),
    "both are laid out": network(
        "s = Identity(many)", "f = Expand(b, many) g = Expand(b, many) a = Add(f, g)", rows="7", out="7"
    ),
    "more axes": network("s1 = Shape(z) s = Concat<axis = 0>(one, s1)", "q = Add(z, e) a = Squeeze(q, zero)"),
}


@pytest.mark.parametrize("name", NEEDED)
def test_what_makes_the_result_larger_stays(name: str) -> None:
    found = broadcast(load(NEEDED[name]))
    kept = sum(node.op == "Expand" for node in found.nodes)
    # Of two operands laid out alike one tells the other how large it is.
    assert kept == 1
    rows, others = ((7, 7) if name == "both are laid out" else (1, 5))[0], 5
    feed = {"x": np.ones((rows, 4), np.float32), "k": np.ones((others, 1), np.float32)}
    given = {i.name: feed[i.name] for i in NEEDED[name].graph.input}
    for one, other in zip(outputs(NEEDED[name], given), outputs(found.proto, given), strict=True):
        np.testing.assert_array_equal(one, other)


def test_sizes_that_nobody_named_may_differ() -> None:
    proto = network("r = Shape<end = 1>(k) s = Concat<axis = 0>(r, six)", rows="N", out="M", more=", float[M, 1] k")
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].ClearField("dim_param")
    plain = load(proto)
    assert broadcast(plain) is plain
