"""Moments collected inside the graph are those that numpy computes from the activations."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx
import pytest
from mlps import Array, Net, mlp, normal
from onnx import helper

from onnx_condense import runtime
from onnx_condense.data import input_specs, load
from onnx_condense.errors import CalibrationError
from onnx_condense.evidence import moments
from onnx_condense.evidence.columns import Columns
from onnx_condense.evidence.moments import PREFIX, Pair, collect, count_rows, side_by_side, with_itself
from onnx_condense.plan import Moments
from onnx_condense.runtime import Runtime

RUNTIME = Runtime(threads=1)


def reference(rows: Array, other: Array) -> Moments:
    """Moments of [n, K] and [n, L] in float64."""
    left, right = rows.astype(np.float64), other.astype(np.float64)
    product = (left - left.mean(0)).T @ (right - right.mean(0))
    return Moments(len(left), left.mean(0), right.mean(0), product)


def assert_close(found: Moments, expected: Moments, rtol: float = 2e-5) -> None:
    assert found.count == expected.count
    for name in ("left", "right", "product"):
        a, b = getattr(found, name), getattr(expected, name)
        assert a.dtype == np.float64
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * float(np.abs(b).max()))


def moments_of(model: onnx.ModelProto, pairs: list[Pair], ranks: dict[str, int], source: Any) -> list[Moments]:
    samples = load(source, input_specs(model.graph))
    return collect(model, pairs, ranks, samples, np.arange(len(samples)), RUNTIME)


def identity(shape: list[int | str], *, opset: int = 17, dtype: type[Any] = np.float32) -> onnx.ModelProto:
    """Tensor t equals x; moments see it as an inner tensor."""
    net = Net({"x": shape}, opset=opset, dtype=dtype)
    net.node("Neg", net.node("Neg", "x"), out="t")
    net.node("Relu", "t", out="y")
    return net.model({"y": shape})


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 17, 18, 21])
def test_every_opset(opset: int) -> None:
    x = 2 * normal(50, 4) + 1
    (found,) = moments_of(identity(["N", 4], opset=opset), [with_itself(Columns("t", 1))], {"t": 2}, x)
    assert_close(found, reference(x, x))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("opset", [13, 18])
def test_any_axis_of_a_tensor_of_rank_three(axis: int, opset: int) -> None:
    feeds = [{"x": normal(3, 5, 4, seed=i)} for i in range(6)]
    (found,) = moments_of(identity([3, 5, 4], opset=opset), [with_itself(Columns("t", axis))], {"t": 3}, feeds)
    rows = np.concatenate([np.moveaxis(f["x"], axis, -1).reshape(-1, f["x"].shape[axis]) for f in feeds])
    assert_close(found, reference(rows, rows))


def test_a_vector_is_one_row() -> None:
    feeds = [{"x": normal(5, seed=i)} for i in range(9)]
    (found,) = moments_of(identity([5]), [with_itself(Columns("t", 0))], {"t": 1}, feeds)
    rows = np.stack([f["x"] for f in feeds])
    assert_close(found, reference(rows, rows))


def test_feeds_of_different_length_weigh_by_their_rows() -> None:
    feeds = [{"x": normal(n, 3, seed=n) + n} for n in (1, 8, 3, 20)]
    (found,) = moments_of(identity(["N", 3]), [with_itself(Columns("t", 1))], {"t": 2}, feeds)
    rows = np.concatenate([f["x"] for f in feeds])
    assert_close(found, reference(rows, rows))


def test_many_batches_keep_their_digits_where_means_are_large() -> None:
    x = (normal(5000, 3) + np.array([1000, -500, 0])).astype(np.float32)
    (found,) = moments_of(identity(["N", 3]), [with_itself(Columns("t", 1))], {"t": 2}, x)
    # Naive sums of squares in fp32 would be off by all digits here.
    assert_close(found, reference(x, x), rtol=1e-3)


def test_no_pass_is_longer_than_sums_stay_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []

    def spy(session: Any, feed: dict[str, Array]) -> list[Array]:
        rows.append(len(feed["x"]))
        return runtime.run(session, feed)

    monkeypatch.setattr(moments, "run", spy)
    moments_of(identity(["N", 3]), [with_itself(Columns("t", 1))], {"t": 2}, normal(3000, 3))
    assert rows == [1024, 1024, 952]


def test_half_precision_is_summed_in_single() -> None:
    x = (normal(3000, 4) * 100).astype(np.float16)
    (found,) = moments_of(identity(["N", 4], dtype=np.float16), [with_itself(Columns("t", 1))], {"t": 2}, x)
    assert_close(found, reference(x, x))


def test_only_the_samples_asked_for_count() -> None:
    x, model = normal(40, 3), identity(["N", 3])
    samples = load(x, input_specs(model.graph))
    picked = np.array([3, 17, 21, 30, 38])
    (found,) = collect(model, [with_itself(Columns("t", 1))], {"t": 2}, samples, picked, RUNTIME)
    assert_close(found, reference(x[picked], x[picked]))


def test_nothing_asked_nothing_run() -> None:
    model = identity(["N", 3])
    samples = load(normal(9, 3), input_specs(model.graph))
    assert collect(model, [], {}, samples, np.arange(9), RUNTIME) == []


def test_shards_add_up_in_any_order() -> None:
    x = (normal(60, 3) + 5).astype(np.float64)
    a, b, c = (reference(part, part) for part in (x[:7], x[7:20], x[20:]))
    for total in (a.plus(b).plus(c), c.plus(a.plus(b)), b.plus(c).plus(a)):
        assert_close(total, reference(x, x), rtol=1e-10)
    np.testing.assert_allclose(a.covariance, a.product / 7)


def test_a_part_is_that_of_fewer_features() -> None:
    x, y = normal(30, 5).astype(np.float64), normal(30, 5, seed=1).astype(np.float64)
    left, right = np.array([4, 1]), np.array([0, 2, 3])
    assert_close(reference(x, y).part(left, right), reference(x[:, left], y[:, right]), rtol=1e-10)


def pooled_reference(cells: Array, other: Array) -> Moments:
    """Moments of [n, b, K] and [n, b, L], where b columns of a channel are pooled: a mean each, one product."""
    left, right = cells - cells.mean(0), other - other.mean(0)
    product = sum(a.T @ b for a, b in zip(left, right, strict=True))
    return Moments(len(cells), cells.mean(0), other.mean(0), np.asarray(product))


def test_pooled_shards_add_up_in_any_order() -> None:
    rng = np.random.default_rng(0)
    # Means that differ from shard to shard and from tap to tap are what can go wrong.
    x = rng.standard_normal((60, 4, 3)) + 5 * rng.standard_normal((4, 3)) + np.arange(60).reshape(-1, 1, 1) / 10
    y = rng.standard_normal((60, 4, 2)) + x[:, :, :2] * np.arange(4).reshape(4, 1)
    a, b, c = (pooled_reference(x[at], y[at]) for at in (slice(7), slice(7, 20), slice(20, None)))
    for total in (a.plus(b).plus(c), c.plus(a.plus(b)), b.plus(c).plus(a)):
        assert_close(total, pooled_reference(x, y), rtol=1e-10)
    np.testing.assert_allclose(a.covariance, a.product / 7)


def test_adding_leaves_both_sides_as_they_were() -> None:
    x = normal(30, 3).astype(np.float64)
    a, b = reference(x[:9], x[:9]), reference(x[9:], x[9:])
    a.plus(b)
    assert_close(a, reference(x[:9], x[:9]), rtol=1e-12)
    assert_close(b, reference(x[9:], x[9:]), rtol=1e-12)


def test_a_pooled_part_is_that_of_fewer_channels() -> None:
    x, y = normal(30, 3, 5).astype(np.float64), normal(30, 3, 5, seed=1).astype(np.float64)
    left, right = np.array([4, 1]), np.array([0, 2, 3])
    found = pooled_reference(x, y).part(left, right)
    assert found.left.shape == (3, 2)
    assert_close(found, pooled_reference(x[:, :, left], y[:, :, right]), rtol=1e-10)


@pytest.mark.parametrize("ir", [3, 8])
def test_two_networks_side_by_side(ir: int) -> None:
    dense, other = mlp((3, 8, 2), seed=1, ir=ir, opset=9), mlp((3, 5, 2), seed=2, ir=ir, opset=9)
    x = normal(70, 3)
    joint = side_by_side(dense, other)
    assert [o.name for o in joint.graph.output] == ["y"]
    pairs = [Pair(Columns("tanh_1", 1), Columns(PREFIX + "tanh_1", 1)), with_itself(Columns(PREFIX + "tanh_1", 1))]
    samples = load(x, input_specs(dense.graph))
    cross, own = collect(joint, pairs, {"tanh_1": 2, PREFIX + "tanh_1": 2}, samples, np.arange(70), RUNTIME)
    t, h = (_hidden(model, x) for model in (dense, other))
    assert_close(cross, reference(t, h))
    assert_close(own, reference(h, h))


def _hidden(model: onnx.ModelProto, x: Array) -> Array:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.append(helper.make_tensor_value_info("tanh_1", onnx.TensorProto.FLOAT, None))
    found: Array = RUNTIME.session(copy).run(["tanh_1"], {"x": x})[0]
    return found


def test_side_by_side_keeps_what_bodies_take_from_outside() -> None:
    def branching(scale: float) -> onnx.ModelProto:
        net = Net({"x": ["N", 3]})
        h = net.node("Mul", "x", net.weight("s", [float(scale)]))
        kind = onnx.TensorProto.FLOAT
        bodies = {}
        for name in ("then_branch", "else_branch"):
            node = helper.make_node("Mul", [h, "s"], [f"{name}_y"])
            out = helper.make_tensor_value_info(f"{name}_y", kind, None)
            bodies[name] = helper.make_graph([node], name, [], [out])
        flag = net.node("Greater", net.node("ReduceSum", "x", keepdims=0), net.weight("zero", 0.0))
        net.node("If", flag, out="y", **bodies)
        return net.model({"y": ["N", 3]})

    joint = side_by_side(branching(2), branching(3))
    samples = load(x := normal(20, 3), input_specs(joint.graph))
    pair = Pair(Columns("y", 1), Columns(PREFIX + "y", 1))
    (found,) = collect(joint, [pair], {"y": 2, PREFIX + "y": 2}, samples, np.arange(20), RUNTIME)
    assert_close(found, reference(4 * x, 9 * x))


TAKEN = (
    "moments/Cast_1",
    "moments/constant_2",
    "moments/places_rows_5",
    "moments_0_0",
    "moments_rows_0",
    "condensed/x",
)


def test_a_network_may_use_any_names() -> None:
    def chain(scale: float) -> onnx.ModelProto:
        net = Net({"x": ["N", 3]})
        last = "x"
        for name in TAKEN:
            last = net.node("Mul", last, net.weight(f"condensed/{name}", [float(scale)]), out=name)
        net.node("Neg", last, out="y")
        return net.model({"y": ["N", 3]})

    dense, other = chain(1), chain(2)
    joint, x = side_by_side(dense, other), normal(20, 3)
    samples = load(x, input_specs(joint.graph))
    for i, name in enumerate(TAKEN, 1):
        here, there = Columns(name, 1), Columns(PREFIX + name, 1)
        (found,) = collect(joint, [Pair(here, there)], {name: 2, PREFIX + name: 2}, samples, np.arange(20), RUNTIME)
        assert_close(found, reference(x, 2**i * x))
        taken = dataclasses.replace(here, take=5)
        (few,) = collect(dense, [with_itself(taken)], {name: 2}, samples, np.arange(20), RUNTIME, 10)
        assert few.count == 100
        assert count_rows(dense, [here], {name: 2}, samples, np.arange(20), RUNTIME) == [1]


def test_values_too_large_for_second_moments_are_named() -> None:
    with pytest.raises(CalibrationError, match="tensor t ") as raised:
        moments_of(identity(["N", 4]), [with_itself(Columns("t", 1))], {"t": 2}, 1e19 * normal(20, 4))
    assert raised.value.code == "calibration-range"
