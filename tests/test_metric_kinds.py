"""Metrics other than the relative error, and tolerances by output: what they measure and what must not pass."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_condense.data import input_specs, load
from onnx_condense.errors import UsageError
from onnx_condense.metrics import Judge, Measurement
from onnx_condense.metrics.scores import KEPT, of_largest
from onnx_condense.options.yardstick import Yardstick, yardstick
from onnx_condense.runtime import Runtime

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Array = np.ndarray[Any, np.dtype[Any]]
RUNTIME = Runtime(threads=1)


def scaling(**factors: Sequence[float]) -> onnx.ModelProto:
    """Outputs y = x * factors [N, width], one per name; `argmax_` and `sign_` before a name: of that product."""
    nodes, outputs, stored = [], [], []
    width = len(next(iter(factors.values())))
    for name, numbers in factors.items():
        stored.append(numpy_helper.from_array(np.array(numbers, np.float32), f"{name}.w"))
        kind, _, _ = name.rpartition("_")
        nodes.append(helper.make_node("Mul", ["x", f"{name}.w"], [f"{name}.m" if kind else name]))
        if kind == "argmax":
            nodes.append(helper.make_node("ArgMax", [f"{name}.m"], [name], axis=1, keepdims=0))
            outputs.append(helper.make_tensor_value_info(name, TensorProto.INT64, ["N"]))
        elif kind == "positive":
            nodes.append(helper.make_node("Cast", [f"{name}.m"], [name], to=TensorProto.BOOL))
            outputs.append(helper.make_tensor_value_info(name, TensorProto.BOOL, ["N", width]))
        else:
            outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", width]))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", width])
    graph = helper.make_graph(nodes, "g", [x], outputs, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def judge(model: onnx.ModelProto, source: Any, by: Yardstick, rows: int = 64) -> Judge:
    samples = load(source, input_specs(model.graph))
    return Judge(model, samples, np.arange(len(samples)), RUNTIME, rows, optimize=False, by=by)


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def measured(metric: Any, dense: Mapping[str, Any], other: Mapping[str, Any], x: Array) -> Measurement:
    return judge(scaling(**dense), x, Yardstick(metric)).measure(scaling(**other))


# ---- per feature ----


def test_per_feature_sees_what_pooling_hides() -> None:
    """The second feature is a fiftieth of the first, and off by half."""
    x, dense, other = normal(200, 2), {"y": [1, 0.02]}, {"y": [1, 0.03]}
    (output,) = (found := measured("per-feature", dense, other, x)).outputs
    expected = np.sqrt(np.mean((0.01 * x[:, 1]) ** 2)) / (0.02 * x[:, 1].std())
    assert found.value == pytest.approx(expected, rel=1e-4)
    assert output.metric == "per-feature"
    assert output.worst is not None
    assert output.worst.value == pytest.approx(found.value, rel=1e-6)
    assert found.relative.value == measured("relative", dense, other, x).value < 0.02


def test_per_feature_is_never_less_than_the_relative_error() -> None:
    """Features under 1 % of the largest spread count together with the others, and a note says so."""
    x, dense = normal(200, 3), scaling(y=[1, 0.001, 0.001])
    by = judge(dense, x, Yardstick("per-feature"))
    found = by.measure(scaling(y=[1, 0.5, 0.001]))
    assert found.outputs[0].worst is not None
    assert found.outputs[0].worst.value == 0.0
    assert found.relative.value > 0.4
    assert found.value == pytest.approx(found.relative.value)
    assert [note[-6:] for note in by.notes] == ["here 2"]


def test_features_that_do_not_vary_count_as_ever() -> None:
    x = np.stack([normal(50), np.ones(50, np.float32)], 1)
    found = measured("per-feature", {"y": [1, 3]}, {"y": [1, 3.3]}, x)
    assert found.value == pytest.approx(0.1, rel=1e-3)


def test_the_bound_per_feature_is_the_bootstrap_of_the_worst() -> None:
    x = normal(300, 2)
    found = measured("per-feature", {"y": [1, 1]}, {"y": [1, 1.1]}, x**3)
    assert found.value < found.upper(0.95, 0) < 1.5 * found.value
    low, high = found.interval(0) or (0.0, 0.0)
    assert low < found.value < high


def test_many_features_take_little_time_and_memory() -> None:
    """Samples are drawn anew from the worst features alone; the error is that of all."""
    width = 50_000
    factors = np.ones(width)
    factors[1::2] = 1.01
    factors[-1] = 2.0
    x = normal(64, width)
    found = measured("per-feature", {"y": [1] * width}, {"y": factors.tolist()}, x)
    expected = np.sqrt(np.mean(x[:, -1] ** 2)) / x[:, -1].std()
    assert found.value == pytest.approx(expected, rel=1e-4)
    start = time.monotonic()
    assert found.upper(0.95, 0) > found.value
    assert time.monotonic() - start < 5
    score = found.outputs[0].score
    assert score is not None
    assert sum(v.nbytes for v in vars(score).values() if isinstance(v, np.ndarray)) <= 64 * 8 * (2 * (KEPT + 1) + 1)


def test_a_sample_counts_by_its_worst_feature() -> None:
    x = np.ones((4, 2), np.float32)
    x[::2] = -1
    x[3, 1] = 5
    found = measured("per-feature", {"y": [1, 1]}, {"y": [1, 2]}, x)
    assert found.outputs[0].by_sample.argmax() == 3


# ---- largest difference ----


def test_max_abs_is_the_largest_difference_in_the_outputs_unit() -> None:
    x = normal(70, 3)
    found = measured("max-abs", {"y": [1, 1, 100]}, {"y": [1, 1.5, 100]}, x)
    assert found.value == pytest.approx(0.5 * np.abs(x[:, 1]).max(), rel=1e-5)
    assert found.upper(0.95, 0) == found.value
    assert found.interval(0) is None
    (told,) = found.summary(0)
    assert told.interval == (found.value, found.value)
    assert told.worst_samples[0].index == np.abs(x[:, 1]).argmax()


def test_max_abs_of_integers_and_bools() -> None:
    x = np.array([[3, 1, 0], [0, 1, 3], [2, 2, 5]], np.float32)
    found = measured("max-abs", {"argmax_y": [1, 1, 1]}, {"argmax_y": [0, 1, 1]}, x)
    # Class 0 becomes class 1; the others stay.
    assert found.value == 1.0
    found = measured("max-abs", {"positive_y": [1, 1, 1]}, {"positive_y": [0, 1, 1]}, x)
    assert found.value == 1.0
    assert measured("max-abs", {"positive_y": [1, 1, 1]}, {"positive_y": [2, 1, 1]}, x).value == 0.0


def test_large_integers_differ_where_floats_would_not() -> None:
    found = of_largest([(np.array([[2**60 + 1, 5]]), np.array([[2**60, 5]]), 1)])
    assert found.value == 1.0


# ---- agreement ----


def test_agreement_is_the_share_of_other_classes() -> None:
    x = normal(400, 3)
    found = measured("agreement", {"y": [1, 1, 1]}, {"y": [1, 1, 1.3]}, x)
    flips = (x.argmax(1) != (x * np.array([1, 1, 1.3], np.float32)).argmax(1)).mean()
    assert 0.0 < found.value == pytest.approx(flips)
    assert found.summary(0)[0].agreement is None  # told only with details
    assert set(found.outputs[0].by_sample) == {0.0, 1.0}
    # A change that flips nothing is no error here, and one in the relative sense.
    quiet = measured("agreement", {"y": [1, 1, 1]}, {"y": [2, 2, 2]}, x)
    assert quiet.value == 0.0 < quiet.relative.value


def test_no_flips_seen_is_no_proof_that_there_are_none() -> None:
    found = measured("agreement", {"y": [1, 1]}, {"y": [2, 2]}, normal(100, 2))
    low, high = found.interval(0) or (1.0, 1.0)
    assert low == 0.0
    assert high == pytest.approx(1 - 0.005 ** (1 / 100))
    assert found.upper(0.95, 0) == 0.0 < found.cautious(0.95, 0) == pytest.approx(1 - 0.05 ** (1 / 100))


def test_outputs_without_classes_count_otherwise_and_it_is_told() -> None:
    dense = scaling(y=[1, 1], argmax_z=[1, 1])
    by = judge(dense, normal(50, 2), Yardstick("agreement"))
    assert [o.metric for o in by.measure(dense).outputs] == ["agreement", "changed"]
    assert by.notes == ("output argmax_z: its share of changed elements counts",)
    single = scaling(y=[1], argmax_z=[1])
    by = judge(single, normal(50, 1), Yardstick("agreement"))
    assert "output y: it has no classes to choose from: its relative error counts" in by.notes
    assert by.measure(scaling(y=[1.5], argmax_z=[1])).value == pytest.approx(0.5, rel=0.1)


def test_a_network_without_classes_has_no_agreement() -> None:
    with pytest.raises(UsageError, match="--metric agreement: no output has classes"):
        judge(scaling(y=[1]), normal(9, 1), Yardstick("agreement"))


# ---- functions ----


def off(dense: Mapping[str, Array], condensed: Mapping[str, Array]) -> Array:
    """Of the first column."""
    return np.asarray(np.abs(dense["y"][:, 0] - condensed["y"][:, 0]))


def test_a_function_judges_all_outputs_together() -> None:
    x = normal(130, 2)
    found = measured(off, {"y": [1, 1], "z": [1, 1]}, {"y": [1.5, 9], "z": [9, 9]}, x)
    assert found.value == pytest.approx(0.5 * np.abs(x[:, 0]).mean(), rel=1e-5)
    assert found.value < found.upper(0.95, 0) < 2 * found.value
    assert found.overall is not None
    assert found.overall.metric == "off"
    assert found.relative.value > 1.0


def test_a_function_may_give_one_number_per_pass() -> None:
    """Passes of 64, 64 and 2 samples weigh as many."""
    sizes: list[int] = []

    def size(dense: Mapping[str, Array], condensed: Mapping[str, Array]) -> float:
        sizes.append(len(condensed["y"]))
        return float(len(dense["y"])) if (dense["y"] != condensed["y"]).any() else 0.0

    found = measured(size, {"y": [1, 1]}, {"y": [2, 1]}, normal(130, 2))
    assert sizes[-3:] == [64, 64, 2]
    assert found.value == pytest.approx((64 * 64 + 64 * 64 + 2 * 2) / 130)


def test_a_mean_below_zero_is_no_error() -> None:
    found = measured(lambda d, c: (d["y"] - c["y"]).mean(1), {"y": [1.0]}, {"y": [2.0]}, np.ones((9, 1), np.float32))
    assert found.value == 0.0 == found.upper(0.95, 0)


@pytest.mark.parametrize(
    "wrong", [lambda d, _: d["y"], lambda _, __: "much", lambda _, __: None, lambda d, _: d["y"][:1, 0][:0]]
)
def test_a_function_that_gives_no_errors_is_refused(wrong: Any) -> None:
    with pytest.raises(UsageError, match="64 errors of samples are needed, or one number"):
        measured(wrong, {"y": [1, 1]}, {"y": [1, 1]}, normal(130, 2))


def test_a_function_that_finds_errors_in_equal_answers_is_refused() -> None:
    """It may have given a score instead of an error."""
    with pytest.raises(UsageError, match="for equal answers"):
        judge(scaling(y=[1]), normal(9, 1), Yardstick(lambda _, __: 1.0, 0.5))


def test_a_function_can_not_change_the_answers() -> None:
    def spoil(dense: Mapping[str, Array], _: Mapping[str, Array]) -> float:
        dense["y"][:] = 0
        return 0.0

    with pytest.raises(ValueError, match="read-only"):
        measured(spoil, {"y": [1, 1]}, {"y": [1, 1]}, normal(9, 2))


@pytest.mark.parametrize("metric", ["per-feature", "max-abs", "agreement", off])
def test_nan_is_beyond_any_bound(metric: Any) -> None:
    found = measured(metric, {"y": [1, 1]}, {"y": [np.nan, 1]}, normal(30, 2))
    assert found.value == np.inf == found.upper(0.95, 0)
    assert "NaN" in found.fault


def test_a_function_that_answers_with_nan_is_beyond_any_bound() -> None:
    def half(dense: Mapping[str, Array], condensed: Mapping[str, Array]) -> float:
        return float("nan") if (dense["y"] != condensed["y"]).any() else 0.0

    found = measured(half, {"y": [1, 1]}, {"y": [2, 1]}, normal(30, 2))
    assert found.value == np.inf
    assert "the error by half is NaN" in found.fault


# ---- tolerances by output ----


def test_errors_compare_by_how_near_they_are_to_their_tolerances() -> None:
    dense, other = scaling(y=[1, 1], z=[1, 1]), scaling(y=[1.1, 1.1], z=[1.03, 1.03])
    by = yardstick("relative", 0.01, {"*": 0.01, "y": 0.2}, ["y", "z"])
    assert not by.plain
    found = judge(dense, normal(100, 2), by).measure(other)
    assert [o.value for o in found.outputs] == pytest.approx([0.1, 0.03], rel=0.1)
    assert found.nearest is found.outputs[1]
    assert found.value == pytest.approx(found.outputs[1].value)
    assert [o.tolerance for o in found.summary(0)] == [0.2, 0.01]
    assert found.upper(0.95, 0) < 0.06
    alone = judge(dense, normal(100, 2), yardstick("relative", 0.01, {"*": 0.01, "z": 2.0}, ["y", "z"])).measure(other)
    assert alone.nearest is alone.outputs[0]
    assert found.relative.value == pytest.approx(alone.outputs[0].value)


def test_the_last_pattern_that_matches_counts() -> None:
    by = yardstick("relative", 0.01, {"*": 0.01, "head*": 0.02, "head/b": 0.03}, ["head/a", "head/b", "c", "head[0]"])
    assert by.tolerances == {"head/a": 0.02, "head/b": 0.03, "c": 0.01, "head[0]": 0.02}
    assert yardstick("relative", 0.01, {"c": 0.5, "*": 0.01}, ["c"]).tolerances == {"c": 0.01}
    assert yardstick("relative", 0.01, {"h[0]": 0.5}, ["h[0]", "h0"]).tolerances == {"h[0]": 0.5, "h0": 0.5}


def test_a_pattern_that_names_no_output_suggests_some() -> None:
    with pytest.raises(UsageError, match=r"'logit' matches no output; there are logits"):
        yardstick("relative", 0.01, {"logit": 0.5}, ["logits", "boxes"])
    with pytest.raises(UsageError, match="for output z too"):
        yardstick("max-abs", 3.0, {"y": 3.0}, ["y", "z"])
