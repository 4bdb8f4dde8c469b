"""BatchNormalization between layers: channels pass, and what normalises by other numbers pins them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from builders import Form, assert_same_outputs, base_layers, lossless, model
from onnx import helper

from onnx_condense.evidence.laws import CONSTANT
from onnx_condense.evidence.values import Numbering
from onnx_condense.network.model import load
from onnx_condense.ops import norm
from onnx_condense.spaces import find_spaces

F = np.float32
NODE = helper.make_node
WIDTHS = (6,)


def normalised(rng: np.random.Generator, *, after: bool, opset: int = 17, **attributes: Any) -> onnx.ModelProto:
    """Planted x -> Gemm -> BatchNorm and Tanh in either order -> Gemm; copies share statistics, duplicates exactly."""
    base = base_layers(rng, WIDTHS)
    copies = 3
    of = rng.permutation(np.repeat(np.arange(6), copies))
    split = rng.dirichlet(np.ones(copies), (4, 6))
    seen = np.array([(of[:i] == c).sum() for i, c in enumerate(of)])
    statistics = np.stack(
        [rng.standard_normal(6), rng.standard_normal(6), rng.standard_normal(6), rng.uniform(1, 2, 6)]
    )
    stored = {
        "w0": base[0].weight[of].T.copy(),
        "b0": base[0].bias[of],
        "w1": (base[1].weight[:, of] * split[:, of, seen]).T.copy(),
        "b1": base[1].bias,
        **dict(zip(("scale", "shift", "mean", "var"), statistics[:, of], strict=True)),
    }
    first = NODE("BatchNormalization", ["z", "scale", "shift", "mean", "var"], ["h"], name="bn", **attributes)
    middle = [first, NODE("Tanh", ["h"], ["t"])]
    if after:
        first.input[0], first.output[0] = "h", "t"
        middle = [NODE("Tanh", ["z"], ["h"]), first]
    nodes = [NODE("Gemm", ["x", "w0", "b0"], ["z"]), *middle, NODE("Gemm", ["t", "w1", "b1"], ["y"])]
    return model(
        nodes, {k: v.astype(F) for k, v in stored.items()}, {"x": ["N", 7]}, {"y": ["N", 4]}, Form(opset=opset)
    )


@pytest.mark.parametrize("opset", [9, 14, 17])
@pytest.mark.parametrize("after", [False, True])
def test_copies_are_found_through_batch_norm(opset: int, *, after: bool) -> None:
    proto = normalised(np.random.default_rng(opset), after=after, opset=opset, epsilon=0.1)
    done = lossless(proto)
    assert done.widths() == [6]
    assert_same_outputs(proto, done.proto)
    sizes = {t.name: list(t.dims) for t in done.proto.graph.initializer}
    assert all(sizes[name] == [6] for name in ("scale", "shift", "mean", "var"))


def test_normalisation_may_make_copies_equal_or_different() -> None:
    """Rows that differ by a factor can be one after normalisation; equal rows with other statistics are not."""
    proto = normalised(np.random.default_rng(0), after=False)
    arrays = {t.name: onnx.numpy_helper.to_array(t).copy() for t in proto.graph.initializer}
    values = Numbering(load(proto), find_spaces(load(proto))).of("t", 1, 18)
    assert len(np.unique(values.classes)) == 6
    arrays["w0"][:, 0] *= 3
    arrays["b0"][0] *= 3
    arrays["mean"][0] *= 3
    arrays["scale"][0] /= 3
    changed = _with(proto, arrays)
    assert lossless(changed).widths() == [6]
    assert_same_outputs(changed, lossless(changed).proto)
    arrays["var"][0] += 1
    assert lossless(_with(proto, arrays)).widths() == [7]


def test_a_factor_of_zero_makes_a_constant() -> None:
    proto = normalised(np.random.default_rng(1), after=True)
    arrays = {t.name: onnx.numpy_helper.to_array(t).copy() for t in proto.graph.initializer}
    arrays["scale"][4] = 0
    constant = _with(proto, arrays)
    values = Numbering(load(constant), find_spaces(load(constant))).of("t", 1, 18)
    assert values.classes[4] == CONSTANT
    done = lossless(constant)
    assert done.widths() == [6]
    assert_same_outputs(constant, done.proto)


@pytest.mark.parametrize("after", [False, True])
def test_a_constant_keeps_its_value_through_normalisation(*, after: bool) -> None:
    """A unit without inputs becomes k b + s, and that is what the readers' bias takes."""
    proto = normalised(np.random.default_rng(4), after=after)
    arrays = {t.name: onnx.numpy_helper.to_array(t).copy() for t in proto.graph.initializer}
    alike = np.flatnonzero(arrays["b0"] == arrays["b0"][0])
    arrays["w0"][:, alike] = 0
    constant = _with(proto, arrays)
    done = lossless(constant)
    assert done.widths() == [5]
    assert_same_outputs(constant, done.proto)


def _with(proto: onnx.ModelProto, arrays: dict[str, Any]) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for tensor in copy.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(arrays[tensor.name], tensor.name))
    return copy


def test_batch_statistics_pin() -> None:
    proto = normalised(np.random.default_rng(2), after=False)
    proto.graph.node[1].attribute.append(helper.make_attribute("training_mode", 1))
    proto.graph.node[1].output.extend(["m2", "v2"])
    refusals = find_spaces(load(proto)).refusals
    assert [r.reason for r in refusals if r.node == "bn (BatchNormalization)"] == [
        "normalises by the statistics of its batch"
    ]


def test_computed_statistics_pin() -> None:
    proto = normalised(np.random.default_rng(2), after=False)
    proto.graph.node.insert(0, NODE("ReduceSum", ["x"], ["total"], keepdims=0))
    proto.graph.node.insert(1, NODE("Mul", ["mean", "total"], ["moving"]))
    proto.graph.node[3].input[3] = "moving"
    assert norm.COMPUTED in {r.reason for r in find_spaces(load(proto)).refusals}


def test_channels_beside_the_normalised_axis_stay() -> None:
    """[N, 6] as [N, 1, 6]: one set of statistics serves all channels."""
    rng = np.random.default_rng(0)
    nodes = [
        NODE("Gemm", ["x", "w0"], ["z"]),
        NODE("Unsqueeze", ["z", "axes"], ["u"]),
        NODE("BatchNormalization", ["u", "scale", "shift", "mean", "var"], ["n"], name="bn"),
        NODE("MatMul", ["n", "w1"], ["y"]),
    ]
    stored = {
        "w0": rng.standard_normal((7, 6)).astype(F),
        "w1": rng.standard_normal((6, 4)).astype(F),
        "axes": np.array([1]),
        **{name: np.ones(1, F) for name in ("scale", "shift", "mean", "var")},
    }
    proto = model(nodes, stored, {"x": ["N", 7]}, {"y": ["N", 1, 4]}, Form())
    refusals = find_spaces(load(proto)).refusals
    assert [r.reason for r in refusals if r.node == "bn (BatchNormalization)"] == [norm.OTHER_AXIS]
