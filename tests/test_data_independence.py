"""Whether slicing changes the function is measured: dependent rows and random networks are found."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import parser
from test_data import BLOCK, X, ramp

from onnx_condense import data
from onnx_condense.errors import CalibrationError, ModelError
from onnx_condense.runtime import Runtime

HEADER = '<ir_version: 10, opset_import: ["" : 21]>'


def check(text: str, samples: data.Samples) -> None:
    model = parser.parse_model(HEADER + text)
    data.check_independent(samples, Runtime(threads=1).session(model), model.graph)


def dependent(text: str, samples: data.Samples, code: str, *words: str) -> None:
    with pytest.raises(CalibrationError) as caught:
        check(text, samples)
    assert caught.value.code == code
    assert "\n" not in caught.value.text
    for word in words:
        assert word in caught.value.text


def rows(count: int = 10) -> data.Samples:
    return data.load(np.random.default_rng(0).standard_normal((count, 3)).astype(np.float32), (X,))


@pytest.mark.parametrize(
    "body",
    [
        "g (float[N,3] x) => (float[N,3] y) { y = Softmax(x) }",
        "g (float[N,3] x) => (int64[N,1] y, bool[N,3] z) { y = ArgMax<axis=1>(x) z = Greater(x, x) }",
    ],
)
def test_networks_with_independent_rows_pass(body: str) -> None:
    check(body, rows())


@pytest.mark.parametrize(
    "body",
    [
        pytest.param("y = CumSum(x, zero)", id="cumsum"),
        pytest.param("s = ReduceSum(x) y = Div(x, s)", id="statistics over the batch"),
        pytest.param("m = ReduceMean<keepdims=0>(x) y = Identity(m)", id="scalar output"),
        pytest.param("y = Reshape(x, flat)", id="other row count"),
        pytest.param("y = Reshape(x, two)", id="no single run"),
        pytest.param("y = Reshape(x, one)", id="only single runs"),
        pytest.param("p = Greater(x, half) y = NonZero(p)", id="varying trailing shape"),
        pytest.param("s = CumSum(x, zero) y = Greater(s, half)", id="bool"),
    ],
)
def test_dependent_rows_are_found(body: str) -> None:
    kinds = {"NonZero": "int64", "Greater(s": "bool"}
    kind = next((k for word, k in kinds.items() if word in body), "float")
    constants = (
        "int64 zero = {0}, int64[1] flat = {-1}, int64[2] two = {4, 3}, int64[2] one = {1, 3}, float half = {0.5}"
    )
    text = f"g (float[N,3] x) => ({kind}[?] y) <{constants}> {{ {body} }}"
    text = text.replace("[?]", "") if "scalar" in text else text
    dependent(text, rows(), "calibration-slicing", "'y'", "one file per feed")


@pytest.mark.parametrize(
    "output", ["float[2,3] w", "float[N,3] w", "float w"], ids=["a weight", "declared with rows", "a number"]
)
def test_outputs_that_no_input_reaches_are_left_alone(output: str) -> None:
    sizes = {"float w": "float k = {2}"}.get(output, "float[2,3] k = {1, 2, 3, 4, 5, 6}")
    check(f"g (float[N,3] x) => (float[N,3] y, {output}) <{sizes}> {{ y = Relu(x) h = Neg(k) w = Abs(h) }}", rows())


def test_outputs_that_bodies_take_from_an_input_are_not() -> None:
    branches = "then_branch = g1 () => (float[M,3] a) { a = CumSum(x, zero) }, else_branch = g2 () => (float[M,3] b) "
    branches += "{ b = Neg(x) }"
    text = f"g (float[N,3] x) => (float[M,3] y) <int64 zero = {{0}}, bool c = {{1}}> {{ y = If<{branches}>(c) }}"
    dependent(text, rows(), "calibration-slicing", "'y'")


def test_random_outputs_that_no_input_reaches_are_called_random() -> None:
    text = "g (float[N,3] x) => (float[N,3] y, float[2] w) { y = Relu(x) w = RandomNormal<shape = [2]>() }"
    dependent(text, rows(), "calibration-random", "'w'")


def test_a_small_output_beside_a_large_one_is_not_drowned() -> None:
    text = "g (float[N,3] x) => (float[N,3] a, float[N,3] b) <int64 zero = {0}, float k = {1e-6}, float m = {1e6}>"
    dependent(text + "{ a = Mul(x, m) s = CumSum(x, zero) b = Mul(s, k) }", rows(), "calibration-slicing", "'b'")


RANDOM = "{ r = RandomNormalLike(x) y = Add(x, r) }"


@pytest.mark.parametrize("kind", ["rows", "feeds", "blocks"])
def test_random_networks_are_called_random_for_any_source(kind: str) -> None:
    shape = "4" if kind == "blocks" else "N"
    sources = {"rows": rows(), "feeds": data.load([{"x": ramp(4, 3)}], (X,)), "blocks": data.load(ramp(8, 3), (BLOCK,))}
    text = f"g (float[{shape},3] x) => (float[{shape},3] y) {RANDOM}"
    dependent(text, sources[kind], "calibration-random", "'y'", "random")


def test_random_shapes_are_called_random() -> None:
    body = "{ r = RandomNormalLike(x) p = Greater(r, k) y = NonZero(p) }"
    text = "g (float[N,3] x) => (int64[2,M] y) <float k = {0}>" + body
    dependent(text, data.load([{"x": ramp(500, 3)}], (X,)), "calibration-random", "'y'")


CUMSUM = "g (float[N,3] x) => (float[N,3] y) <int64 zero = {0}> { y = CumSum(x, zero) }"


def test_feeds_blocks_and_single_samples_may_depend_on_their_batch() -> None:
    check(CUMSUM, data.load([{"x": ramp(4, 3)}, {"x": ramp(2, 3)}], (X,)))
    check(CUMSUM, rows(1))
    check(CUMSUM.replace("N", "4"), data.load(ramp(8, 3), (BLOCK,)))


@pytest.mark.parametrize("kind", ["rows", "feeds"])
def test_a_network_that_never_runs_is_the_networks_fault(kind: str) -> None:
    text = "g (float[N,3] x) => (float[M,7] y) <int64[2] bad = {-1, 7}> { y = Reshape(x, bad) }"
    with pytest.raises(ModelError, match="can't run"):
        check(text, rows() if kind == "rows" else data.load([{"x": ramp(2, 3)}], (X,)))


def test_rows_that_are_no_samples_are_told() -> None:
    """Nodes of one graph: node 0 reads node 9, wherever the array is cut."""
    body = "g (float[N,3] x) => (float[M,3] y) <int64[10] at = {9, 0, 1, 2, 3, 4, 5, 6, 7, 8}> { y = Gather(x, at) }"
    dependent(body, rows(), "calibration-slicing", "runs on all rows", "one file per feed")
    with pytest.raises(ModelError):
        check(body, rows(9))
