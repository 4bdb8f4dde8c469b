"""BatchNormalization and layout ops between layers: channels pass, and what does not keep them whole pins them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from builders import Form, Planting, assert_same_outputs, base_layers, lossless, model, plant
from onnx import helper

from onnx_condense.evidence.laws import CONSTANT
from onnx_condense.evidence.values import Numbering
from onnx_condense.model import load
from onnx_condense.ops import layout, norm
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


# ---- layout ----

MOVES: dict[str, tuple[list[onnx.NodeProto], dict[str, Any], str]] = {
    "flatten": ([NODE("Flatten", ["a"], ["h"])], {}, "rows"),
    "transpose": ([NODE("Transpose", ["a"], ["p"], perm=[1, 0]), NODE("Transpose", ["p"], ["h"])], {}, "rows"),
    "squeeze": (
        [NODE("Unsqueeze", ["a", "axes"], ["p"]), NODE("Sin", ["p"], ["q"]), NODE("Squeeze", ["q", "axes"], ["h"])],
        {"axes": np.array([1])},
        "rows",
    ),
    "reshape -1": ([NODE("Reshape", ["a", "to"], ["h"])], {"to": np.array([-1, 18])}, "rows"),
    "reshape 0": ([NODE("Reshape", ["a", "to"], ["h"])], {"to": np.array([0, 0])}, "rows"),
    "reshape 3d": (
        [NODE("Reshape", ["a", "to"], ["p"]), NODE("Relu", ["p"], ["q"]), NODE("Reshape", ["q", "back"], ["h"])],
        {"to": np.array([-1, 1, 18]), "back": np.array([-1, 18])},
        "rows",
    ),
    "tokens": (
        [NODE("Reshape", ["a", "to"], ["p"]), NODE("Tanh", ["p"], ["q"]), NODE("Reshape", ["q", "back"], ["h"])],
        {"to": np.array([-1, 18]), "back": np.array([-1, 5, 18])},
        "tokens",
    ),
}


def moved(name: str) -> onnx.ModelProto:
    """Planted x -> MatMul -> a -> moves -> MatMul; 18 hidden units, 6 of them different."""
    nodes, stored, kind = MOVES[name]
    rng = np.random.default_rng(len(name))
    wide = plant(rng, base_layers(rng, WIDTHS), Planting(copies=3))
    weights = {"w": wide[0].weight.T.astype(F), "u": wide[1].weight.T.astype(F)}
    shape: list[int | str] = ["N", 5, 7] if kind == "tokens" else ["N", 7]
    every = [NODE("MatMul", ["x", "w"], ["a"]), *nodes, NODE("MatMul", ["h", "u"], ["y"])]
    return model(every, weights | stored, {"x": shape}, {"y": [*shape[:-1], 4]})


@pytest.mark.parametrize("name", MOVES)
def test_channels_move_with_their_axis(name: str) -> None:
    proto = moved(name)
    done = lossless(proto)
    assert done.widths() == [6]
    assert_same_outputs(proto, done.proto)
    assert not lossless(done.proto).plan.selections


def test_a_moved_copy_is_not_the_original() -> None:
    """On [T, T, C], x + transposed x is no multiple of x: its channels must not be taken for copies of x's."""
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((7, 6)).astype(F)
    nodes = [
        NODE("MatMul", ["x", "w"], ["a"]),
        NODE("Transpose", ["a"], ["b"], perm=[1, 0, 2]),
        NODE("Sub", ["a", "b"], ["h"]),
        NODE("MatMul", ["h", "u"], ["y"]),
    ]
    stored = {"w": rows, "u": rng.standard_normal((6, 4)).astype(F)}
    proto = model(nodes, stored, {"x": [5, 5, 7]}, {"y": [5, 5, 4]})
    done = lossless(proto)
    assert done.widths() == [6]
    assert not done.plan.selections


SPLITS: dict[str, tuple[list[onnx.NodeProto], dict[str, Any], str]] = {
    "heads": (
        [NODE("Reshape", ["a", "to"], ["p"], name="cut"), NODE("Reshape", ["p", "back"], ["h"])],
        {"to": np.array([-1, 3, 6]), "back": np.array([-1, 18])},
        layout.NOT_WHOLE,
    ),
    "computed shape": (
        [NODE("Shape", ["x"], ["s"]), NODE("Gather", ["s", "i"], ["n"]), NODE("Concat", ["n", "c"], ["to"], axis=0),
         NODE("Reshape", ["a", "to"], ["h"], name="cut")],
        {"i": np.array([0]), "c": np.array([18])},
        layout.COMPUTED_SHAPE,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SPLITS)
def test_what_does_not_keep_the_axis_whole_pins_it(name: str) -> None:
    nodes, stored, reason = SPLITS[name]
    weights = {"w": np.ones((7, 18), F), "u": np.ones((18, 4), F)}
    every = [NODE("MatMul", ["x", "w"], ["a"]), *nodes, NODE("MatMul", ["h", "u"], ["y"])]
    proto = model(every, weights | stored, {"x": ["N", 7]}, {"y": ["N", 4]})
    found = find_spaces(load(proto))
    assert ("cut (Reshape)", reason) in {(r.node, r.reason) for r in found.refusals}
    assert not lossless(proto).plan.selections


def test_a_shape_read_by_two_reshapes_is_cloned_where_they_part() -> None:
    """One stored shape [-1, 18] serves a space that shrinks and one that can't."""
    rng = np.random.default_rng(5)
    wide = plant(rng, base_layers(rng, WIDTHS), Planting(copies=3))
    stored = {
        "w": wide[0].weight.T.astype(F),
        "u": wide[1].weight.T.astype(F),
        "v": rng.standard_normal((7, 18)).astype(F),
        "to": np.array([-1, 18]),
    }
    nodes = [
        NODE("MatMul", ["x", "w"], ["a"]),
        NODE("Reshape", ["a", "to"], ["h"]),
        NODE("MatMul", ["h", "u"], ["y"]),
        NODE("MatMul", ["x", "v"], ["b"]),
        NODE("Reshape", ["b", "to"], ["z"]),
    ]
    proto = model(nodes, stored, {"x": ["N", 7]}, {"y": ["N", 4], "z": ["N", 18]})
    done = lossless(proto)
    assert done.widths() == [6]
    assert_same_outputs(proto, done.proto)


def test_squeezing_whatever_has_size_one_pins() -> None:
    """At width 1 the channel axis itself would vanish."""
    nodes = [
        NODE("MatMul", ["x", "w"], ["a"]),
        NODE("Squeeze", ["a"], ["h"], name="any"),
        NODE("MatMul", ["h", "u"], ["y"]),
    ]
    stored = {"w": np.ones((5, 8), F), "u": np.ones((8, 3), F)}
    proto = model(nodes, stored, {"x": [4, 5]}, {"y": [4, 3]})
    assert ("any (Squeeze)", "squeezes every axis of size 1") in {
        (r.node, r.reason) for r in find_spaces(load(proto)).refusals
    }
    assert not lossless(proto).plan.selections
