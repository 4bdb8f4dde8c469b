"""The rows that readers read, laid out inside ONNX Runtime, are those that numpy cuts out of the activations."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from mlps import Array, Net, normal
from windows import (
    EPS,
    GEOMETRIES,
    RUNTIME,
    SIZES,
    Geometry,
    assert_close,
    conv_net,
    every_geometry,
    fetch,
    moments_by_definition,
    reader_columns,
    rows_of,
)

from onnx_condense import runtime
from onnx_condense.data import input_specs, load
from onnx_condense.evidence import moments
from onnx_condense.evidence.columns import Builder, Columns, Window, arranged, unarranged
from onnx_condense.evidence.moments import PREFIX, Pair, collect, count_rows, side_by_side, with_itself

# ---- layout ----


@every_geometry
def test_rows_are_patches_and_times_the_weight_the_result(geometry: Geometry) -> None:
    model = conv_net(geometry)
    x = normal(3, 2, *SIZES[len(geometry.kernel)], seed=1)
    columns, weight = reader_columns(model)
    t, y, b = fetch(model, {"x": x}, "t", "y", "b")
    rows = rows_of(model, columns, t.ndim, {"x": x})
    # A copy through filters of ones and zeros is exact.
    np.testing.assert_array_equal(rows, geometry.patches(t).reshape(-1, weight.shape[1]))
    answer = np.moveaxis(y, 1, -1).reshape(-1, 4)
    bound = EPS * weight.shape[1] * (np.abs(rows) @ np.abs(weight).T + np.abs(b))
    assert (np.abs(rows @ weight.T + b - answer) <= bound).all()


@pytest.mark.parametrize("opset", [7, 9, 10, 11, 12, 13, 17, 18, 22, 24])
@pytest.mark.parametrize("per_channel", [0, 6])
def test_every_opset(opset: int, per_channel: int) -> None:
    geometry = GEOMETRIES["2d everything"]
    model, x = conv_net(geometry, opset=opset), normal(4, 2, 7, 8)
    columns = dataclasses.replace(reader_columns(model)[0], per_channel=per_channel)
    samples = load(x, input_specs(model.graph))
    pairs = [with_itself(columns), with_itself(dataclasses.replace(columns, take=9))]
    found, some = collect(model, pairs, {"t": 4}, samples, np.arange(4), RUNTIME)
    rows = geometry.patches(fetch(model, {"x": x}, "t")[0]).reshape(-1, 30)
    cells = rows.reshape(-1, 5, 6).transpose(0, 2, 1)
    expected = moments_by_definition(cells, cells) if per_channel else moments_by_definition(rows, rows)
    assert_close(found, expected)
    assert some.product.shape == found.product.shape
    assert some.count == 4 * 9


def test_half_precision_is_copied_as_it_is() -> None:
    geometry = GEOMETRIES["2d asymmetric"]
    model, x = conv_net(geometry, dtype=np.float16), normal(3, 2, 7, 8, dtype=np.float16)
    columns, weight = reader_columns(model)
    # ONNX Runtime may leave out the rounding to half precision in between.
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    rows, t = fetch(copy, {"x": x}, Builder(copy, {"t": 4}).rows(columns), "t")
    assert rows.dtype == np.float32
    assert t.dtype == np.float16
    np.testing.assert_array_equal(rows.astype(np.float16), geometry.patches(t).reshape(-1, weight.shape[1]))


@pytest.mark.parametrize("name", ["2d everything", "2d same lower", "one tap with strides", "one tap"])
def test_sizes_may_differ_from_feed_to_feed(name: str) -> None:
    geometry = GEOMETRIES[name]
    model = conv_net(geometry, size=("H", "W"))
    columns, weight = reader_columns(model)
    feeds = [{"x": normal(n, 2, h, w, seed=h)} for n, h, w in ((2, 7, 8), (1, 12, 5), (3, 6, 9))]
    cut = [geometry.patches(fetch(model, f, "t")[0]).reshape(-1, weight.shape[1]) for f in feeds]
    for feed, expected in zip(feeds, cut, strict=True):
        np.testing.assert_array_equal(rows_of(model, columns, 4, feed), expected)
    samples = load(feeds, input_specs(model.graph))
    (found,) = collect(model, [with_itself(columns)], {"t": 4}, samples, np.arange(3), RUNTIME)
    assert_close(found, moments_by_definition(np.concatenate(cut), np.concatenate(cut)))
    assert count_rows(model, [columns], {"t": 4}, samples, np.arange(3), RUNTIME) == [len(cut[0])]


def test_one_plain_tap_is_read_like_a_product() -> None:
    columns, _ = reader_columns(conv_net(GEOMETRIES["one tap"]))
    assert columns == Columns("t", 1)
    columns, _ = reader_columns(conv_net(GEOMETRIES["one tap with strides"]))
    assert columns.window == Window("Conv", (1, 1), (("strides", (2, 3)),))


# ---- moments ----


@every_geometry
def test_moments_count_the_zeros_of_the_padding(geometry: Geometry) -> None:
    model = conv_net(geometry)
    x = normal(9, 2, *SIZES[len(geometry.kernel)], seed=2)
    columns, weight = reader_columns(model)
    samples = load(x, input_specs(model.graph))
    ranks = {"t": x.ndim}
    (found,) = collect(model, [with_itself(columns)], ranks, samples, np.arange(9), RUNTIME, batch=4)
    rows = geometry.patches(fetch(model, {"x": x}, "t")[0])
    assert count_rows(model, [columns], ranks, samples, np.arange(9), RUNTIME) == [rows.shape[1]]
    rows = rows.reshape(-1, weight.shape[1])
    assert_close(found, moments_by_definition(rows, rows))


@pytest.mark.parametrize("by_channel", [True, False])
@pytest.mark.parametrize("name", ["1d asymmetric", "2d everything", "3d"])
def test_pooled_moments_sum_over_the_columns_of_a_channel(name: str, *, by_channel: bool) -> None:
    geometry = GEOMETRIES[name]
    model = conv_net(geometry)
    x = normal(9, 2, *SIZES[len(geometry.kernel)], seed=3)
    columns, weight = reader_columns(model)
    b = weight.shape[1] // 5
    columns = dataclasses.replace(columns, per_channel=b, by_channel=by_channel)
    rows = geometry.patches(fetch(model, {"x": x}, "t")[0]).reshape(-1, 5 * b)
    cells = rows.reshape(-1, 5, b).transpose(0, 2, 1) if by_channel else rows.reshape(-1, b, 5)
    samples = load(x, input_specs(model.graph))
    (found,) = collect(model, [with_itself(columns)], {"t": x.ndim}, samples, np.arange(9), RUNTIME, batch=4)
    assert found.left.shape == (b, 5)
    assert_close(found, moments_by_definition(cells, cells))


@pytest.mark.parametrize("by_channel", [True, False])
def test_columns_of_a_product_are_pooled_alike(*, by_channel: bool) -> None:
    model, x = plain(["N", 12]), 2 * normal(50, 12) + 1
    columns = Columns("t", 1, per_channel=3, by_channel=by_channel)
    samples = load(x, input_specs(model.graph))
    (found,) = collect(model, [with_itself(columns)], {"t": 2}, samples, np.arange(50), RUNTIME, batch=20)
    cells = np.stack([x[:, i::3] if by_channel else x[:, 4 * i : 4 * i + 4] for i in range(3)], axis=1)
    assert_close(found, moments_by_definition(cells, cells))


@pytest.mark.parametrize("by_channel", [True, False])
def test_arranging_can_be_taken_back(*, by_channel: bool) -> None:
    numbers = np.arange(24.0).reshape(2, 12)
    cells = arranged(numbers, 3, by_channel=by_channel)
    assert cells.shape == (2, 3, 4)
    # Channel 1 owns columns 3, 4, 5, or 1, 5, 9.
    np.testing.assert_array_equal(cells[0, :, 1], [3, 4, 5] if by_channel else [1, 5, 9])
    np.testing.assert_array_equal(unarranged(cells, by_channel=by_channel), numbers)
    assert Columns("t", 1).arranged(numbers) is numbers
    np.testing.assert_array_equal(Columns("t", 1, None, 3, by_channel).arranged(numbers), cells)


# ---- some rows only ----


def plain(shape: list[int | str]) -> onnx.ModelProto:
    """Tensor t equals x."""
    net = Net({"x": shape})
    net.node("Neg", net.node("Neg", "x"), out="t")
    net.node("Relu", "t", out="y")
    return net.model({"y": shape})


def numbered(samples: int, positions: int) -> Array:
    """[N, 2, P] x whose first channel says which row it is, and whose second is its square."""
    which = np.arange(samples * positions, dtype=np.float32).reshape(samples, 1, positions)
    return np.concatenate([which, which**2 / 1000], axis=1)


def taken_rows(columns: Columns, source: Any, monkeypatch: pytest.MonkeyPatch, batch: int = 1024) -> list[Array]:
    """The rows that every pass looks at, while moments are collected."""
    seen: list[Array] = []
    model = plain(["N", 2, "P"])
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    rows = Builder(copy, {"t": 3}).rows(columns)

    def spy(session: Any, feed: Mapping[str, Array]) -> list[Array]:
        seen.extend(fetch(copy, feed, rows))
        return runtime.run(session, feed)

    monkeypatch.setattr(moments, "run", spy)
    samples = load(source, input_specs(model.graph))
    collect(model, [with_itself(columns)], {"t": 3}, samples, np.arange(len(samples)), RUNTIME, batch)
    return seen


TAKING = {
    "positions of a window": Columns("t", 1, Window("Conv", (1,), (("strides", (1,)),)), take=10),
    "rows of a product": Columns("t", 1, take=10),
}
taking = pytest.mark.parametrize("columns", TAKING.values(), ids=TAKING.keys())


@taking
def test_taken_rows_are_spread_evenly(columns: Columns, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = taken_rows(columns, numbered(7, 100), monkeypatch, batch=3)
    assert [len(p) for p in parts] == [30, 30, 10]
    offset = 0
    for part, samples in zip(parts, (3, 3, 1), strict=True):
        which, squares = part.T
        np.testing.assert_array_equal(squares, which**2 / np.float32(1000))
        # Of each ten neighbours one is taken.
        np.testing.assert_array_equal((np.sort(which) - offset) // 10, np.arange(10 * samples))
        offset += 100 * samples


@taking
def test_the_places_differ_from_pass_to_pass_but_not_from_run_to_run(
    columns: Columns, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, again = (taken_rows(columns, numbered(6, 100), monkeypatch, batch=2) for _ in range(2))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    places = [part[:, 0] % 100 for part in first]
    assert (places[0] != places[1]).any()


@taking
def test_feeds_of_any_length_give_the_same_number_of_rows(columns: Columns, monkeypatch: pytest.MonkeyPatch) -> None:
    feeds = [{"x": numbered(1, n)} for n in (40, 10, 95)]
    parts = taken_rows(columns, feeds, monkeypatch)
    assert [len(p) for p in parts] == [10, 10, 10]
    np.testing.assert_array_equal(parts[1][:, 0], np.arange(10))
    for part, length in zip(parts, (40, 10, 95), strict=True):
        np.testing.assert_array_equal(np.sort(part[:, 0]) * 10 // length, np.arange(10))


@taking
def test_both_sides_of_a_pair_take_the_same_rows(columns: Columns) -> None:
    model = plain(["N", 2, "P"])
    joint = side_by_side(model, model)
    other = dataclasses.replace(columns, tensor=PREFIX + "t")
    samples = load(normal(30, 2, 100), input_specs(joint.graph))
    pairs = [Pair(columns, other), with_itself(columns), with_itself(other)]
    cross, left, right = collect(joint, pairs, {"t": 3, PREFIX + "t": 3}, samples, np.arange(30), RUNTIME, 8)
    for found in (cross, left, right):
        assert found.count == 300
        np.testing.assert_array_equal(found.product, left.product)
    np.testing.assert_array_equal(cross.left, cross.right)


def test_rows_of_one_size_share_their_places() -> None:
    window = Window("Conv", (1,), ())
    sides = [Columns("a", 1, take=5), Columns("b", 1, take=5), Columns("a", 1, window, take=5), Columns("a", 1, take=6)]
    names = [c.draw for c in sides]
    assert names[0] == names[1]
    assert len(set(names)) == 3
    assert Columns("a", 1).draw == ""


@pytest.mark.parametrize("pool", [False, True])
def test_moments_of_taken_rows_are_close_to_those_of_all(*, pool: bool) -> None:
    geometry = GEOMETRIES["2d"]
    model, x = conv_net(geometry), normal(60, 2, 7, 8, seed=4)
    columns, _ = reader_columns(model)
    columns = dataclasses.replace(columns, per_channel=9 if pool else 0)
    samples = load(x, input_specs(model.graph))
    pairs = [with_itself(columns), with_itself(dataclasses.replace(columns, take=14))]
    full, some = collect(model, pairs, {"t": 4}, samples, np.arange(60), RUNTIME, 16)
    assert (full.count, some.count) == (60 * 56, 60 * 14)
    # A quarter of the rows: their mean strays by about spread / sqrt(count).
    deviation = np.sqrt(np.trace(full.covariance) / len(full.product))
    assert np.abs(some.left - full.left).max() < 5 * deviation / math.sqrt(some.count)
    assert np.abs(some.covariance - full.covariance).max() < 8 * deviation**2 / math.sqrt(some.count)
    assert np.abs(some.covariance - full.covariance).max() > 0


def test_pooled_rows_of_the_taken_positions() -> None:
    x = numbered(4, 50)
    model = plain(["N", 2, "P"])
    window = Window("Conv", (2,), ())
    columns = Columns("t", 1, window, per_channel=2, take=7)
    samples = load(x, input_specs(model.graph))
    (found,) = collect(model, [with_itself(columns)], {"t": 3}, samples, np.arange(4), RUNTIME)
    at = (columns.places(np.random.default_rng(0), 4) * 49).astype(int)
    cells = np.stack([x[:, :, at], x[:, :, at + 1]], axis=-1).transpose(0, 2, 3, 1).reshape(-1, 2, 2)
    assert_close(found, moments_by_definition(cells, cells))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_count_rows_counts_one_sample(axis: int) -> None:
    feeds = [{"x": normal(3, 5, 4)}, {"x": normal(3, 5, 4)}]
    model = plain([3, 5, 4])
    samples = load(feeds, input_specs(model.graph))
    columns = Columns("t", axis, take=2)
    assert count_rows(model, [columns], {"t": 3}, samples, np.arange(2), RUNTIME) == [60 // (3, 5, 4)[axis]]
    assert count_rows(model, [], {}, samples, np.arange(2), RUNTIME) == []
