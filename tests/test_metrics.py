"""The error of one network against another."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_condense.data import input_specs, load
from onnx_condense.errors import CalibrationError, ModelError
from onnx_condense.metrics import Judge, Measurement, OutputMeasure
from onnx_condense.runtime import Runtime

if TYPE_CHECKING:
    from collections.abc import Sequence

Array = np.ndarray[Any, np.dtype[Any]]
RUNTIME = Runtime(threads=1)


def affine(
    scale: Sequence[float],
    offset: Sequence[float],
    batch: int | str = "N",
    dtype: type[Any] = np.float32,
    then: str = "",
) -> onnx.ModelProto:
    """Network y = then(x * scale + offset) on [batch, width]."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [helper.make_node("Mul", ["x", "s"], ["m"]), helper.make_node("Add", ["m", "b"], ["a" if then else "y"])]
    out = kind
    if then == "Bool":
        nodes += [helper.make_node("Cast", ["a"], ["y"], to=TensorProto.BOOL)]
        out = TensorProto.BOOL
    elif then == "ArgMax":
        nodes += [helper.make_node("ArgMax", ["a"], ["y"], axis=1, keepdims=0)]
        out = TensorProto.INT64
    elif then:
        nodes += [helper.make_node(then, ["a"], ["y"])]
    shape = [batch, len(scale)]
    y = helper.make_tensor_value_info("y", out, shape[: 1 if then == "ArgMax" else 2])
    stored = [numpy_helper.from_array(np.array(v, dtype), n) for v, n in ((scale, "s"), (offset, "b"))]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", kind, shape)], [y], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def judge(model: onnx.ModelProto, source: Any, rows: int = 1024) -> Judge:
    samples = load(source, input_specs(model.graph))
    return Judge(model, samples, np.arange(len(samples)), RUNTIME, rows, optimize=False)


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_the_error_is_rms_over_the_spread_around_the_mean_of_each_feature() -> None:
    x = normal(40, 2)
    measured = judge(affine([1, 3], [100, -7]), x).measure(affine([1.1, 3], [100, -6]))
    y0, y = x * [1, 3] + [100, -7], x * [1.1, 3] + [100, -6]
    expected = math.sqrt(((y - y0) ** 2).sum() / ((y0 - y0.mean(0)) ** 2).sum())
    assert measured.value == pytest.approx(expected, rel=1e-3)
    worst = measured.outputs[0].worst
    assert worst is not None
    single = np.sqrt(((y - y0) ** 2).sum(0) / ((y0 - y0.mean(0)) ** 2).sum(0))
    assert worst.index == int(single.argmax())
    assert worst.value == pytest.approx(single.max(), rel=1e-3)


def test_the_passes_do_not_matter() -> None:
    x, dense, other = normal(30, 3), affine([1, 2, 3], [5, 5, 5]), affine([1, 2.5, 3], [5, 5.5, 5])
    whole, cut = (judge(dense, x, rows).measure(other) for rows in (1024, 7))
    assert cut.value == pytest.approx(whole.value, rel=1e-6)
    np.testing.assert_allclose(cut.outputs[0].squared, whole.outputs[0].squared, rtol=1e-5)


def test_small_features_are_not_the_worst() -> None:
    measured = judge(affine([1, 1e-3], [0, 0]), normal(40, 2)).measure(affine([1.01, 2e-3], [0, 0]))
    worst = measured.outputs[0].worst
    assert worst is not None
    assert worst.index == 0


def test_an_exact_copy_has_error_zero() -> None:
    dense = affine([1, 0], [0, 3])
    assert judge(dense, normal(10, 2)).measure(dense).value == 0.0


@pytest.mark.parametrize(("moved", "error"), [(5.0, 0.0), (5.0 + 3e-6, 0.0), (5.5, 0.1), (4.0, 0.2)])
def test_a_feature_that_stands_still_is_judged_by_its_magnitude(moved: float, error: float) -> None:
    measured = judge(affine([1, 0], [0, 5]), normal(20, 2)).measure(affine([1, 0], [0, moved]))
    assert measured.value == pytest.approx(error, rel=1e-5, abs=0.0)


def test_an_output_that_is_zero_throughout_may_not_move() -> None:
    dense = affine([0, 0], [0, 0])
    assert judge(dense, normal(9, 2)).measure(affine([0, 0], [0, 0.3])).value == pytest.approx(0.3)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_are_an_infinite_error(bad: float) -> None:
    measured = judge(affine([1], [0]), normal(9, 1)).measure(affine([1], [bad]))
    assert measured.value == math.inf
    assert measured.upper(0.95, 0) == math.inf


def test_a_dense_network_that_answers_with_nan_is_refused() -> None:
    with pytest.raises(CalibrationError) as caught:
        judge(affine([-1], [0], then="Sqrt"), np.abs(normal(9, 1)) + 1)
    assert caught.value.code == "calibration-output"
    assert caught.value.node == "y"


@pytest.mark.parametrize(("then", "moved", "changed"), [("ArgMax", (0, 2), 1 / 4), ("Bool", (-3, -2), 3 / 8)])
def test_other_types_are_judged_by_the_share_of_changed_elements(
    then: str, moved: tuple[float, float], changed: float
) -> None:
    x = np.array([[1, 2], [3, 2], [5, 6], [7, 8]], np.float32)
    measured = judge(affine([1, 1], [0, 0], then=then), x).measure(affine([1, 1], moved, then=then))
    assert measured.value == pytest.approx(changed)
    assert measured.outputs[0].worst is None


def test_the_largest_output_counts() -> None:
    dense, other = affine([1], [0]), affine([1.2], [0])
    for model, scale in ((dense, 1.0), (other, 1.1)):
        model.graph.node.append(helper.make_node("Mul", ["x", "t"], ["z"]))
        model.graph.initializer.append(numpy_helper.from_array(np.array([scale], np.float32), "t"))
        model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", 1]))
    x = normal(50, 1)
    measured = judge(dense, x).measure(other)
    y, z = measured.summary(0)
    assert (y.name, z.name) == ("y", "z")
    assert measured.value == y.value > z.value > 0


@pytest.mark.parametrize("batch", [1, 4])
def test_rows_of_a_fixed_batch_are_samples_not_features(batch: int) -> None:
    x = normal(40, 3)
    names: list[int | str] = ["N"]
    free, fixed = (
        judge(affine([1, 2, 3], [0, 9, 0], b), x).measure(affine([1, 2.2, 3], [0, 9, 0], b)) for b in (*names, batch)
    )
    assert fixed.value == pytest.approx(free.value, rel=1e-5)
    assert fixed.outputs[0].worst is not None
    assert fixed.outputs[0].worst.index == 1
    assert len(fixed.groups) == 40 // batch


def test_feeds_of_varying_length_pool_their_rows() -> None:
    feeds = [{"x": normal(n, 2, seed=n)} for n in (1, 5, 2, 7)]
    dense, other = affine([1, 2], [3, 4]), affine([1.1, 2], [3, 4])
    rows = np.concatenate([f["x"] for f in feeds])
    assert judge(dense, feeds).measure(other).value == pytest.approx(judge(dense, rows).measure(other).value, rel=1e-6)


def test_declared_sizes_that_vary_all_the_same_are_no_features() -> None:
    # Declared [1, 2], as traced exports do, and really [N, 2]; ONNX Runtime only warns.
    dense, other = affine([1, 2], [3, 4]), affine([1.1, 2], [3, 4])
    for model in (dense, other):
        model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1
    feeds = [{"x": normal(n, 2, seed=n)} for n in (3, 5)]
    assert 0 < judge(dense, feeds).measure(other).value < 1


@pytest.mark.parametrize(("count", "rows"), [(40, 16), (40, 4), (3, 1024)])
def test_a_weight_that_is_given_out_is_judged_once_for_all_samples(count: int, rows: int) -> None:
    dense, other, moved = affine([1, 2], [3, 4]), affine([1.1, 2], [3, 4]), affine([1, 2], [3, 4])
    for model, number in ((dense, 5.0), (other, 5.0), (moved, 5.5)):
        model.graph.initializer.append(numpy_helper.from_array(np.full((4, 2), number, np.float32), "w"))
        model.graph.node.append(helper.make_node("Identity", ["w"], ["z"]))
        model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [4, 2]))
    x = normal(count, 2)
    alone = judge(affine([1, 2], [3, 4]), x, rows).measure(affine([1.1, 2], [3, 4]))
    measured = judge(dense, x, rows).measure(other)
    assert measured.value == alone.value
    assert measured.upper(0.95, 0) == pytest.approx(alone.upper(0.95, 0))
    assert judge(dense, x, rows).measure(moved).value == pytest.approx(0.1)


def test_inferred_sizes_that_vary_all_the_same_are_no_features() -> None:
    dense, other = affine([1, 2], [3, 4]), affine([1.1, 2], [3, 4])
    feeds = [{"x": normal(n, 2, seed=n)} for n in (3, 5)]
    samples = load(feeds, input_specs(dense.graph))
    free, told = (
        Judge(dense, samples, np.arange(2), RUNTIME, 1, shapes=shapes).measure(other)
        for shapes in ({}, {"y": (3, 2), "z": (7,)})
    )
    assert told.value == free.value > 0


def test_a_scalar_per_feed() -> None:
    def total(scale: float) -> onnx.ModelProto:
        model = affine([scale, scale], [0, 0])
        model.graph.node[-1].output[0] = "a"
        model.graph.node.append(helper.make_node("ReduceSum", ["a"], ["y"], keepdims=0))
        model.graph.output[0].type.tensor_type.shape.ClearField("dim")
        return model

    feeds = [{"x": normal(3, 2, seed=n)} for n in range(6)]
    measured = judge(total(1), feeds).measure(total(1.5))
    sums = np.array([f["x"].sum() for f in feeds])
    assert measured.value == pytest.approx(
        0.5 * math.sqrt((sums**2).sum() / ((sums - sums.mean()) ** 2).sum()), rel=1e-4
    )
    assert math.isfinite(measured.upper(0.95, 0))


def test_outputs_of_no_elements_are_no_error() -> None:
    feeds = [{"x": np.zeros((0, 2), np.float32)}] * 3
    dense = affine([1, 2], [0, 0])
    samples = load([{"x": normal(1, 2)}] * 3, input_specs(dense.graph))
    object.__setattr__(samples, "fetch", lambda i: dict(feeds[i]))
    measured = Judge(dense, samples, np.arange(3), RUNTIME, 1).measure(affine([5, 5], [1, 1]))
    assert measured.value == 0.0


def test_half_precision_is_measured_in_double() -> None:
    dense = affine([100], [300], dtype=np.float16)
    x = np.abs(normal(500, 1)).astype(np.float16)
    measured = judge(dense, x).measure(affine([110], [300], dtype=np.float16))
    assert measured.value == pytest.approx(
        0.1 * math.sqrt((x.astype(float) ** 2).mean() / x.astype(float).var()), rel=0.02
    )


def test_outputs_that_are_no_tensors_are_refused_by_name() -> None:
    model = affine([1], [0])
    model.graph.node.append(helper.make_node("SequenceConstruct", ["y"], ["list"]))
    model.graph.output.append(helper.make_tensor_sequence_value_info("list", TensorProto.FLOAT, None))
    with pytest.raises(ModelError, match="list"):
        judge(model, normal(5, 1))


def spread(squared: npt.ArrayLike, groups: npt.ArrayLike) -> Measurement:
    values = np.array(squared, np.float64)
    return Measurement((OutputMeasure("y", values, np.ones(len(values)), 0.0, None),), np.array(groups))


def test_the_upper_bound_is_the_bootstrap_of_samples() -> None:
    rng = np.random.default_rng(3)
    squared = rng.exponential(size=400)
    bound = spread(squared, range(400)).upper(0.95, 0)
    # Delta method: sd of sqrt(mean) = sd / (2 sqrt(mean) sqrt(n)).
    mean = squared.mean()
    assert bound == pytest.approx(math.sqrt(mean) + 1.645 * squared.std() / (2 * math.sqrt(mean * 400)), rel=0.02)


def test_samples_of_one_group_are_resampled_together() -> None:
    squared = np.repeat(np.random.default_rng(3).exponential(size=20), 20)
    alone, together = (spread(squared, g).upper(0.95, 0) for g in (range(400), np.repeat(np.arange(20), 20).tolist()))
    assert together > alone + 0.05


def test_many_samples_are_resampled_in_bundles_with_the_same_spread() -> None:
    squared = np.random.default_rng(3).exponential(size=50_000)
    measured, start = spread(squared, range(50_000)), time.monotonic()
    expected = math.sqrt(squared.mean()) + 1.645 * squared.std() / (2 * math.sqrt(squared.mean() * 50_000))
    assert measured.upper(0.95, 0) == pytest.approx(expected, rel=0.002)
    # One by one this would take 10 s and 400 MB.
    assert time.monotonic() - start < 3
    assert measured.value < measured.upper(0.95, 0)


def test_the_bound_is_the_same_for_the_same_seed() -> None:
    measured = spread(np.random.default_rng(0).exponential(size=50).tolist(), range(50))
    assert measured.upper(0.95, 1) == measured.upper(0.95, 1) != measured.upper(0.95, 2)
