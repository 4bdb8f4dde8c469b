"""What is told about answers beyond the error that is the gate."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from test_metrics import affine, normal

from onnx_condense.data import Source, input_specs, load
from onnx_condense.errors import CalibrationError
from onnx_condense.metrics import Judge, Measurement, OutputMeasure
from onnx_condense.metrics.details import POINTS
from onnx_condense.plan import FloatArray
from onnx_condense.report.data import OutputError
from onnx_condense.runtime import Runtime

RUNTIME = Runtime(threads=1)
OVERFLOW = (("a", 0.01, 1.0), ("b", np.inf, np.inf))


def judge(model: onnx.ModelProto, source: Source, rows: int = 1024) -> Judge:
    samples = load(source, input_specs(model.graph))
    return Judge(model, samples, np.arange(len(samples)), RUNTIME, rows, optimize=False, detailed=True)


def told(model: onnx.ModelProto, other: onnx.ModelProto, x: Source, rows: int = 1024) -> OutputError:
    (output,) = judge(model, x, rows).measure(other).summary(0)
    return output


def test_the_largest_difference_is_absolute() -> None:
    x = normal(50, 2)
    assert told(affine([1, 1], [0, 0]), affine([1, 1], [0, -0.25]), x).max_abs == pytest.approx(0.25, rel=1e-5)


@pytest.mark.parametrize("rows", [1024, 7])
def test_cosine_is_the_mean_over_samples(rows: int) -> None:
    x = np.array([[1, 0], [0, 2], [3, 3]], np.float32)
    output = told(affine([1, 1], [0, 0]), affine([1, -1], [0, 0]), x, rows)
    assert output.cosine == pytest.approx((1 - 1 + 0) / 3, abs=1e-6)


def test_answers_of_nothing_but_zeros_are_alike() -> None:
    x = np.array([[0, 0], [1, 1]], np.float32)
    assert told(affine([1, 1], [0, 0]), affine([2, 2], [0, 0]), x).cosine == pytest.approx(1.0)
    assert told(affine([1, 1], [0, 0]), affine([2, 2], [0, 1]), x).cosine == pytest.approx((0 + 5 / 26**0.5) / 2)


def test_a_single_number_has_neither_cosine_nor_argmax() -> None:
    output = told(affine([1], [0]), affine([1.1], [0]), normal(9, 1))
    assert (output.cosine, output.agreement) == (None, None)
    assert output.max_abs is not None


def test_agreement_is_the_share_of_equal_argmax() -> None:
    x = np.array([[2, 1], [2, 1.9], [0, 1], [5, 1]], np.float32)
    assert told(affine([1, 1], [0, 0]), affine([1, 1], [0, 0.5]), x).agreement == pytest.approx(3 / 4)


def maps(offset: float) -> onnx.ModelProto:
    """Two maps of classes [N, 2, 1, 3]; the second one is moved."""
    add = np.array([0, offset], np.float32).reshape(1, 2, 1, 1)
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "b"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2, 1, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2, 1, 3])],
        [numpy_helper.from_array(add, "b")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_classes_of_maps_lie_along_axis_1() -> None:
    x = np.zeros((4, 2, 1, 3), np.float32)
    x[:, 0] = [1, 1, 3]
    # At two of three places the second class overtakes the first; along the last axis nothing would change.
    assert told(maps(0), maps(2), x).agreement == pytest.approx(1 / 3)


def test_integers_have_no_details() -> None:
    output = told(affine([1, 1], [0, 0], then="ArgMax"), affine([1, 1], [0, 9], then="ArgMax"), normal(40, 2))
    assert (output.max_abs, output.cosine, output.agreement) == (None, None, None)
    assert output.worst_samples


def test_worst_samples_are_named_by_their_place() -> None:
    x = normal(30, 1)
    x[17], x[4] = 100, 50
    samples = load(x, input_specs(affine([1], [0]).graph))
    chosen = np.array([4, 9, 17, 20])
    measured = Judge(affine([1], [0]), samples, chosen, RUNTIME, 3).measure(affine([1.5], [0]))
    (output,) = measured.summary(0)
    assert [w.index for w in output.worst_samples[:2]] == [17, 4]
    y = x[chosen].astype(np.float64)
    spread = np.sqrt(np.mean((y - y.mean()) ** 2))
    assert output.worst_samples[0].value == pytest.approx(50 / spread, rel=1e-5)


def test_errors_by_sample_make_up_the_error() -> None:
    measured = judge(affine([1, 3], [0, 0]), normal(60, 2)).measure(affine([1.1, 2.9], [0, 0]))
    (output,) = measured.outputs
    assert np.sqrt(np.mean(output.by_sample**2)) == pytest.approx(output.value)


def test_equal_networks_have_no_worst_samples() -> None:
    assert told(affine([1], [0]), affine([1], [0]), normal(9, 1)).worst_samples == ()


def test_the_interval_holds_the_error_of_other_samples() -> None:
    """At 99 % it should be missed once in a hundred times; 40 trials of 100 samples, heavy tails."""
    rng, missed = np.random.default_rng(3), 0
    many = rng.standard_t(6, (200_000, 1)).astype(np.float32)
    dense, other = affine([1], [0], then="Tanh"), affine([1.2], [0], then="Tanh")
    truth = judge(dense, many, 4096).measure(other).value
    for _ in range(40):
        x = rng.standard_t(6, (100, 1)).astype(np.float32)
        low, high = told(dense, other, x).interval
        assert low < high
        missed += not low <= truth <= high
    assert missed <= 3


def test_groups_widen_the_interval() -> None:
    x = np.repeat(normal(8, 1), 40, axis=0) + 1e-3 * normal(320, 1, seed=1)
    dense, other = affine([1], [0], then="Tanh"), affine([1.2], [0], then="Tanh")

    def width(groups: FloatArray | None) -> float:
        measured = judge(dense, x).measure(other)
        (output,) = Measurement(
            measured.outputs, measured.groups if groups is None else groups.astype(np.int64), measured.indices
        ).summary(0)
        return output.interval[1] - output.interval[0]

    assert width(np.repeat(np.arange(8.0), 40)) > 2 * width(None)


def test_a_cloud_pairs_elements_of_both_answers() -> None:
    (cloud,) = judge(affine([1, 2], [0, 0]), normal(20, 2), 7).measure(affine([1, 2], [0.5, 0.5])).clouds()
    assert cloud.dense.shape == cloud.condensed.shape == (40,)
    np.testing.assert_allclose(cloud.condensed - cloud.dense, 0.5, atol=1e-6)
    assert cloud.errors.shape == (20,)


def test_a_cloud_of_many_elements_is_a_choice_from_all_passes() -> None:
    x = np.arange(6000, dtype=np.float32).reshape(3000, 2)
    (cloud,) = judge(affine([1, 1], [0, 0]), x, 1000).measure(affine([1, 1], [1, 1])).clouds()
    assert POINTS // 2 < len(cloud.dense) <= POINTS
    np.testing.assert_array_equal(cloud.condensed - cloud.dense, 1)
    for part in (slice(0, 2000), slice(2000, 4000), slice(4000, 6000)):
        assert (np.isin(cloud.dense, np.arange(6000)[part])).sum() > POINTS // 5


@pytest.mark.parametrize(
    ("bad", "words"), [(np.nan, "is NaN or infinite"), (np.inf, "is NaN or infinite")], ids=["nan", "infinity"]
)
def test_what_answers_with_nan_is_named(bad: float, words: str) -> None:
    measured = judge(affine([1], [0]), normal(9, 1)).measure(affine([1], [bad]))
    assert measured.fault == f"output y {words}"


@pytest.mark.parametrize("order", [1, -1])
def test_an_error_that_overflows_is_not_passed_over(order: int) -> None:
    outputs = [OutputMeasure(n, np.array([v]), np.array([w]), 0.0, None) for n, v, w in OVERFLOW][::order]
    measured = Measurement(tuple(outputs), np.zeros(1, np.int64))
    with np.errstate(invalid="ignore"):
        assert measured.value == np.inf


def test_a_dense_network_that_answers_with_nan_is_refused_by_sample() -> None:
    x = np.ones((12, 1), np.float32)
    x[[3, 8]] = -1
    with pytest.raises(CalibrationError, match="output y of the network is NaN or infinite on sample 3 and 1 more"):
        judge(affine([1], [0], then="Log"), x, 5)


def test_two_judges_of_one_network_are_compared() -> None:
    x = normal(20, 2)
    first, second = (judge(affine([1, s], [0, 0]), x) for s in (1, 1.1))
    assert first.beside(first).value == 0.0
    assert first.beside(second).value == pytest.approx(first.measure(affine([1, 1.1], [0, 0])).value)
