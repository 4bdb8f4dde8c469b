"""Drawn inputs: shapes, ranges and refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, parser

from onnx_condense.draw import LARGER, MOST, draw_feeds, drawings
from onnx_condense.errors import ModelError


def draw(text: str, seed: int = 0) -> list[dict[str, Any]]:
    return draw_feeds(parser.parse_graph(text), seed)


def inputs_only(elem_type: int, shape: list[int | str | None]) -> onnx.GraphProto:
    return helper.make_graph([], "g", [helper.make_tensor_value_info("x", elem_type, shape)], [])


def test_symbolic_sizes_are_2_3_5_and_fixed_ones_stay() -> None:
    feeds = draw("g (float[N,4,M,?] x, float[N] y, float z) => (float[N] y) { }")
    assert [feed["x"].shape for feed in feeds] == [(s, 4, s, s) for s in (2, 3, 5)]
    assert [feed["y"].shape for feed in feeds] == [(2,), (3,), (5,)]
    assert [feed["z"].shape for feed in feeds] == [(), (), ()]


def test_fixed_shapes_get_three_different_draws() -> None:
    feeds = draw("g (float[2,3] x) => (float[2,3] x) { }")
    assert len(feeds) == 3
    assert len({feed["x"].tobytes() for feed in feeds}) == 3


def test_initializers_are_not_drawn() -> None:
    assert set(draw("g (float[2] x, float[2] w) => (float[2] y) <float[2] w = {1,2}> { y = Add(x, w) }")[0]) == {"x"}


def test_same_seed_same_values() -> None:
    text = "g (float[N,4] x, int64[N] k) => (float[N] y) { }"
    one, same, other = (draw(text, seed) for seed in (3, 3, 4))
    assert all(np.array_equal(a[n], b[n]) for a, b in zip(one, same, strict=True) for n in a)
    assert not np.array_equal(one[0]["x"], other[0]["x"])


@pytest.mark.parametrize(
    "elem_type", [TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.FLOAT, TensorProto.DOUBLE]
)
def test_floats_are_standard_normal(elem_type: int) -> None:
    for feed in draw_feeds(inputs_only(elem_type, [4000]), 0):
        assert feed["x"].dtype == helper.tensor_dtype_to_np_dtype(elem_type)
        values = feed["x"].astype(np.float64)
        assert abs(values.mean()) < 0.1
        assert abs(values.std() - 1) < 0.1


@pytest.mark.parametrize("elem_type", [TensorProto.BOOL, TensorProto.INT8, TensorProto.UINT64, TensorProto.INT32])
def test_integers_and_booleans_are_0_or_1(elem_type: int) -> None:
    for feed in draw_feeds(inputs_only(elem_type, [100]), 0):
        assert feed["x"].dtype == helper.tensor_dtype_to_np_dtype(elem_type)
        assert set(feed["x"].astype(int).tolist()) == {0, 1}


def indices(body: str, kind: str = "int64", table: str = "float[7,2] t") -> set[int]:
    """All values drawn for k [400], which must index a table of zeros."""
    shape = [int(size) for size in table[table.index("[") + 1 : table.index("]")].split(",")]
    graph = parser.parse_graph(f"g ({kind}[400] k) => (float[N] y) {{ {body} }}")
    graph.initializer.append(helper.make_tensor("t", TensorProto.FLOAT, shape, np.zeros(shape)))
    return set(np.concatenate([feed["k"] for feed in draw_feeds(graph, 0)]).tolist())


@pytest.mark.parametrize(
    "body",
    [
        "y = Gather(t, k)",
        "y = Gather<axis=0>(t, k)",
        "a = Cast<to=7>(k) b = Unsqueeze(a, ax) c = Reshape(b, s) d = Transpose(c) y = Gather(t, d)",
        "a = Identity(k) b = Flatten(a) c = Squeeze(b) y = Gather(t, c)",
        "other = Add(k, k) y = Gather(t, k)",
    ],
)
def test_indices_cover_the_rows_of_the_gather_they_reach(body: str) -> None:
    assert indices(body) == set(range(7))


def test_indices_follow_the_axis() -> None:
    assert indices("y = Gather<axis=1>(t, k)", table="float[7,3] t") == {0, 1, 2}
    assert indices("y = Gather<axis=-1>(t, k)", table="float[7,3] t") == {0, 1, 2}


def test_indices_into_a_constant_node_and_the_smallest_table() -> None:
    small = "s = Constant<value = float[4] {1,2,3,4}>()"
    assert indices(f"{small} y = Gather(s, k)") == set(range(4))
    assert indices(f"{small} y = Gather(t, k) z = Gather(s, k)") == set(range(4))


@pytest.mark.parametrize(
    "body",
    [
        "a = Add(k, k) y = Gather(t, a)",
        "y = Gather(k, t)",
        "u = Relu(t) y = Gather(u, k)",
        "a = Reshape(t, k) y = Gather(t, a)",
        "y = com.other.Gather(t, k)",
    ],
)
def test_integers_that_index_no_constant_are_0_or_1(body: str) -> None:
    assert indices(body) == {0, 1}


@pytest.mark.parametrize(
    "body",
    [
        "d = Constant<value = int64 {6}>() v = Constant<value = float[2] {0,1}>() y = OneHot(k, d, v)",
        "c = Constant<value = int64[6] {0,1,2,3,4,5}>() a = Unsqueeze(k, ax) b = Expand(a, s) y = Equal(b, c)",
        "c = Constant<value = int64[3] {1,5,3}>() y = Equal(c, k)",
    ],
)
def test_one_hot_codes_get_all_their_values(body: str) -> None:
    assert indices(body) == set(range(6))


@pytest.mark.parametrize(
    "body",
    [
        "c = Constant<value = int64 {16000}>() y = Equal(k, c)",
        "c = Constant<value = int64[2] {-3,-1}>() y = Equal(k, c)",
        "d = Constant<value = int64 {6}>() v = Constant<value = float[2] {0,1}>() y = OneHot(d, k, v)",
        "c = Add(k, k) y = Equal(k, c)",
    ],
)
def test_conditions_are_no_codes(body: str) -> None:
    assert indices(body) == {0, 1}


def test_rows_beyond_the_dtype_are_not_drawn() -> None:
    drawn = indices("a = Cast<to=7>(k) y = Gather(t, a)", kind="int8", table="float[1000,1] t")
    assert min(drawn) >= 0
    assert 100 < max(drawn) <= 127


@pytest.mark.parametrize(
    ("elem_type", "word"),
    [(TensorProto.STRING, "string"), (TensorProto.COMPLEX64, "complex64"), (TensorProto.FLOAT8E4M3FN, "float8")],
)
def test_what_can_not_be_drawn_asks_for_calibration(elem_type: int, word: str) -> None:
    with pytest.raises(ModelError, match=f"'x'.*{word}.*--calibration") as caught:
        draw_feeds(inputs_only(elem_type, [2]), 0)
    assert (caught.value.code, caught.value.node) == ("draw-type", "x")


def test_inputs_that_are_no_tensors_are_refused() -> None:
    value = helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, [2])
    with pytest.raises(ModelError, match="sequence"):
        draw_feeds(helper.make_graph([], "g", [value], []), 0)


# ---- sizes to try in turn ----


def shapes(text: str) -> list[list[tuple[int, ...]]]:
    """Of the first input, per set of feeds."""
    return [[next(iter(feed.values())).shape for feed in feeds] for feeds in drawings(parser.parse_graph(text), 0)]


def test_the_first_set_is_the_small_one() -> None:
    graph = parser.parse_graph("g (float[N,3,H,W] x) => (float[N] y) { }")
    first, small = next(iter(drawings(graph, 3))), draw_feeds(graph, 3)
    assert all(np.array_equal(a["x"], b["x"]) for a, b in zip(first, small, strict=True))


@pytest.mark.parametrize("dims", ["N,3,H,W", "N,3,H,?", "?,3,?,?"])
def test_heights_and_widths_grow_before_batches_do(dims: str) -> None:
    found = shapes(f"g (float[{dims}] x) => (float[N] y) {{ }}")
    assert found[:3] == [
        [(2, 3, 2, 2), (3, 3, 3, 3), (5, 3, 5, 5)],
        [(2, 3, 32, 32), (3, 3, 64, 64), (5, 3, 96, 96)],
        [(2, 3, 128, 128), (3, 3, 256, 256), (5, 3, 384, 384)],
    ]
    assert found[3] == [(32, 3, 32, 32), (64, 3, 64, 64), (96, 3, 96, 96)]


def test_sound_is_longer_than_images_are_wide() -> None:
    assert [(2, 1, 16384), (3, 1, 32768), (5, 1, 65536)] in shapes("g (float[N,1,T] x) => (float[N] y) { }")


def test_no_feed_is_too_large() -> None:
    found = shapes("g (float[N,3,H,W] x, float[N,H] z) => (float[N] y) { }")
    assert 1 < len(found) < 1 + 2 * len(LARGER)
    assert all(np.prod(shape) <= MOST for tried in found for shape in tried)


def test_a_name_of_rows_is_one_size_wherever_it_stands() -> None:
    graph = parser.parse_graph("g (float[T,C] x, float[8,T] z) => (float[T] y) { }")
    for feeds in drawings(graph, 0):
        assert [feed["x"].shape[0] for feed in feeds] == [feed["z"].shape[1] for feed in feeds]


def test_nothing_is_tried_twice() -> None:
    assert shapes("g (float[2,3] x) => (float[2] y) { }") == [[(2, 3)] * 3]
    rows = shapes("g (float[N,3] x) => (float[N] y) { }")
    assert rows == [[(n, 3) for n in sizes] for sizes in ((2, 3, 5), *LARGER)]


def test_large_fixed_inputs_are_drawn_all_the_same() -> None:
    assert shapes("g (float[2,3000000] x) => (float[2] y) { }") == [[(2, 3000000)] * 3]
