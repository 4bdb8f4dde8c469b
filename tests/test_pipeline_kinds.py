"""condense() on networks and inputs of all kinds: external weights, several inputs, half precision, odd shapes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from endtoend import X, outputs, relative, run
from mlps import Net, mlp, normal, plant_copies, weight_of
from onnx import numpy_helper

from onnx_condense.runtime import Runtime

if TYPE_CHECKING:
    from pathlib import Path


def test_the_given_proto_is_left_as_it_is() -> None:
    dense = plant_copies(mlp(), 0, 4)
    before = dense.SerializeToString(deterministic=True)
    found = run(dense, calibration=X, tolerance=0.05)
    assert dense.SerializeToString(deterministic=True) == before
    assert found.model is not dense


@pytest.mark.parametrize("options", [{"calibration": X, "tolerance": 0.05}, {}])
def test_external_weights(tmp_path: Path, options: dict[str, Any]) -> None:
    dense = plant_copies(mlp(), 0, 10)
    source = tmp_path / "in.onnx"
    onnx.save(plant_copies(mlp(), 0, 10), source, save_as_external_data=True, location="weights.bin", size_threshold=0)
    found = run(source, **options)
    assert found.report.status == "condensed"
    assert found.report.bytes is not None
    assert found.report.bytes.before == source.stat().st_size + (tmp_path / "weights.bin").stat().st_size
    found.save(tmp_path / "o.onnx")
    saved = onnx.load(tmp_path / "o.onnx")
    assert relative(saved, dense, X) < 0.06


def test_several_inputs_and_outputs() -> None:
    rng = np.random.default_rng(0)
    net = Net({"a": ["N", 3], "b": ["N", 2]})

    def layer(tensor: str, before: int, after: int, out: str = "") -> str:
        count = len(net.stored)
        W = net.weight(f"W{count}", rng.standard_normal((before, after)) / before**0.5)
        return net.node("Gemm", tensor, W, net.weight(f"b{count}", rng.standard_normal(after) / 2), out=out)

    left, right = net.node("Tanh", layer("a", 3, 24)), net.node("Tanh", layer("b", 2, 24))
    both = net.node("Add", left, right)
    layer(net.node("Tanh", layer(both, 24, 20)), 20, 2, out="y")
    layer(left, 24, 1, out="z")
    dense = net.model({"y": ["N", 2], "z": ["N", 1]})
    feed = {"a": X, "b": normal(400, 2, seed=4)}
    found = run(dense, calibration=feed, tolerance=0.05)
    assert found.report.status == "condensed"
    assert found.report.error is not None
    assert [o.name for o in found.report.error.outputs] == ["y", "z"]
    assert found.report.error.value == max(o.value for o in found.report.error.outputs) <= 0.05
    for y, y0 in zip(outputs(found.model, feed), outputs(dense, feed), strict=True):
        assert np.sqrt(((y - y0) ** 2).sum() / ((y0 - y0.mean(0)) ** 2).sum()) < 0.06


@pytest.mark.parametrize("batch", [1, 4])
def test_fixed_batches(batch: int) -> None:
    found = run(mlp(batch=batch), calibration=X, tolerance=0.05)
    assert found.report.status == "condensed"
    assert found.report.error is not None
    assert found.report.error.samples == 80 // batch
    assert found.report.error.value <= 0.05


def test_half_precision() -> None:
    dense = mlp(dtype=np.float16)
    found = run(dense, calibration=X.astype(np.float16), tolerance=0.05)
    assert found.report.status == "condensed"
    assert weight_of(found.model, "W1").dtype == np.float16
    assert relative(found.model, dense, X.astype(np.float16)) < 0.06


def test_double_precision() -> None:
    dense = mlp(dtype=np.float64)
    found = run(dense, calibration=X.astype(np.float64), tolerance=0.05)
    assert weight_of(found.model, "W1").dtype == np.float64


@pytest.mark.parametrize(("opset", "ir"), [(9, 3), (9, 4), (11, 6), (18, 8), (21, 10)])
def test_versions(opset: int, ir: int) -> None:
    dense = mlp(opset=opset, ir=ir)
    found = run(dense, calibration=X, tolerance=0.05)
    assert found.report.status == "condensed"
    assert (found.model.ir_version, found.model.opset_import[0].version) == (ir, opset)


def test_feeds_of_varying_length() -> None:
    feeds = [{"x": normal(1 + i % 5, 3, seed=i)} for i in range(60)]
    found = run(mlp(), calibration=feeds, tolerance=0.1)
    assert found.report.status == "condensed"
    assert found.report.error is not None
    assert found.report.error.samples == 12


def test_more_axes() -> None:
    found = run(mlp(op="MatMul", middle=(4,)), calibration=normal(200, 4, 3), tolerance=0.05)
    assert found.report.status == "condensed"


def test_a_network_without_inputs() -> None:
    net = Net({})
    W, V = (net.weight(n, normal(*s)) for n, s in (("W", (6, 6)), ("V", (6, 2))))
    net.node("MatMul", net.node("Tanh", net.node("MatMul", W, W)), V, out="y")
    assert run(net.model({"y": [6, 2]})).report.status in {"unchanged", "condensed"}


def test_outputs_that_never_vary() -> None:
    dense = mlp()
    b = weight_of(dense, "b2")
    dense.graph.initializer[-2].CopyFrom(numpy_helper.from_array(np.zeros((20, 2), np.float32), "W2"))
    found = run(dense, calibration=X)
    assert found.report.status == "condensed"
    np.testing.assert_allclose(outputs(found.model, {"x": X})[0], np.tile(b, (400, 1)), rtol=1e-6)


def test_features_declared_as_symbols_are_judged_around_their_own_means() -> None:
    net = Net({"x": ["N", 3]})
    hidden = net.node("Tanh", net.node("Gemm", "x", net.weight("a.w", normal(3, 24)), net.weight("a.b", normal(24))))
    far = np.tile(np.array([1000, 0], np.float32), 2)
    flat = net.node("Gemm", hidden, net.weight("y.w", normal(24, 4) / 5), net.weight("y.b", far))
    ends = net.weight("zero", np.array([0])), net.weight("one", np.array([1]))
    sizes = net.weight("places", np.array([-1])), net.weight("width", np.array([2]))
    computed = net.node("Concat", net.node("Slice", net.node("Shape", "x"), *ends), *sizes, axis=0)
    net.node("Reshape", flat, computed, out="y")
    model = net.model({"y": ["b", "n", "c"]})
    result = run(model, calibration={"x": X}, tolerance=0.05)
    y0, y = (Runtime(threads=1).session(m).run(None, {"x": X})[0] for m in (model, result.model))
    assert result.report.status == "condensed"
    # 1000 apart: around one mean of both features every error within the tolerance would be larger than the spread.
    assert np.sqrt(((y - y0) ** 2).sum() / ((y0 - y0.mean((0, 1))) ** 2).sum()) < 0.1


@pytest.mark.parametrize("tolerance", [0.0, 0.05])
def test_a_network_that_gives_out_a_weight(tolerance: float) -> None:
    net = Net({"x": ["N", 3]})
    hidden = net.node("Tanh", net.node("Gemm", "x", net.weight("a.w", normal(3, 24)[:, [*range(23), 0]])))
    net.node("Gemm", hidden, net.weight("y.w", normal(24, 4)), out="y")
    net.node("Identity", "y.w", out="w")
    result = run(net.model({"y": ["N", 4], "w": [24, 4]}), calibration={"x": X}, tolerance=tolerance)
    after = Runtime(threads=1).session(result.model).run(None, {"x": X})[1]
    assert np.array_equal(after, normal(24, 4))
