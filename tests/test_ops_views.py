"""Data movement in whole networks: computed shapes, and who reads the sizes of what."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from builders import Form, Planting, assert_same_outputs, base_layers, lossless, model, plant
from onnx import helper

from onnx_condense.network.model import load
from onnx_condense.ops import call_of, layout
from onnx_condense.spaces import find_spaces

F = np.float32
NODE = helper.make_node
WIDTHS = (6,)


# Nodes that read s, the shape of a, and hand on t and u to readers that may do anything with them.
READERS: dict[str, tuple[list[onnx.NodeProto], dict[str, Any], set[int]]] = {
    "gather": ([NODE("Gather", ["s", "i"], ["t"])], {"i": np.array(1)}, {1}),
    "gather from the end": ([NODE("Gather", ["s", "i"], ["t"])], {"i": np.array([-1, 0])}, {0, 3}),
    "gather twice": (
        [NODE("Gather", ["s", "i"], ["t"]), NODE("Gather", ["s", "j"], ["u"])],
        {"i": np.array(0), "j": np.array(2)},
        {0, 2},
    ),
    "slice": ([NODE("Slice", ["s", "i", "j"], ["t"])], {"i": np.array([2]), "j": np.array([2**63 - 1])}, {2, 3}),
    "slice back": (
        [NODE("Slice", ["s", "i", "j", "", "k"], ["t"])],
        {"i": np.array([-1]), "j": np.array([-(2**63) + 1]), "k": np.array([-2])},
        {1, 3},
    ),
    "slice of a slice": (
        [NODE("Slice", ["s", "i", "j"], ["p"]), NODE("Cast", ["p"], ["q"], to=6), NODE("Gather", ["q", "k"], ["t"])],
        {"i": np.array([1]), "j": np.array([3]), "k": np.array(1)},
        {2},
    ),
    "whole": ([NODE("Identity", ["s"], ["t"])], {}, {0, 1, 2, 3}),
    "at a computed place": ([NODE("Shape", ["x"], ["r"]), NODE("Gather", ["s", "r"], ["t"])], {}, {0, 1, 2, 3}),
    "as an index": ([NODE("Gather", ["table", "s"], ["t"])], {"table": np.arange(99)}, {0, 1, 2, 3}),
    "own layout": (
        [NODE("Slice", ["s", "i", "j"], ["p"]), NODE("Concat", ["p", "k"], ["q"], axis=0),
         NODE("Reshape", ["a", "q"], ["t"])],
        {"i": np.array([0]), "j": np.array([2]), "k": np.array([-1])},
        set(),
    ),
    "own layout and more": (
        [NODE("Slice", ["s", "i", "j"], ["p"]), NODE("Concat", ["p", "k"], ["q"], axis=0),
         NODE("Reshape", ["a", "q"], ["b"]),
         NODE("Gather", ["q", "i"], ["t"])],
        {"i": np.array([0]), "j": np.array([2]), "k": np.array([-1])},
        {0},
    ),
    "layout of another": (
        [NODE("Slice", ["s", "i", "j"], ["p"]), NODE("Concat", ["p", "k"], ["q"], axis=0),
         NODE("Reshape", ["x", "q"], ["t"])],
        {"i": np.array([0]), "j": np.array([2]), "k": np.array([-1])},
        set(),  # its own rule ties or pins
    ),
    "own size after resizing": (
        [NODE("Slice", ["s", "i", "j"], ["p"]), NODE("Concat", ["p", "k"], ["q"], axis=0),
         NODE("Resize", ["a", "", "", "q"], ["t"])],
        {"i": np.array([0]), "j": np.array([2]), "k": np.array([9, 9])},
        set(),
    ),
    "nobody": ([], {}, set()),
}  # fmt: skip


@pytest.mark.parametrize("name", READERS)
def test_which_sizes_are_wanted(name: str) -> None:
    nodes, constants, wanted = READERS[name]
    made = {output for node in nodes for output in node.output}
    ends = [NODE("Cast", [end], [f"{end}_end"], to=1) for end in ("t", "u") if end in made]
    every = [NODE("Relu", ["x"], ["a"]), NODE("Shape", ["a"], ["s"]), *nodes, *ends, NODE("Relu", ["x"], ["y"])]
    network = load(model(every, constants, {"x": ["N", 3, 4, 5]}, {"y": ["N", 3, 4, 5]}))
    assert call_of(network, network.nodes[1], {}, np.arange).wanted == frozenset(wanted)


def test_a_shape_that_leaves_the_graph_is_wanted() -> None:
    proto = model([NODE("Relu", ["x"], ["a"]), NODE("Shape", ["a"], ["s"])], {}, {"x": ["N", 3]}, {"s": [2]})
    proto.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    network = load(proto)
    assert call_of(network, network.nodes[1], {}, np.arange).wanted == frozenset({0, 1})


def test_slices_of_old_opsets() -> None:
    nodes = [
        NODE("Relu", ["x"], ["a"]),
        NODE("Shape", ["a"], ["s"]),
        NODE("Slice", ["s"], ["t"], starts=[0], ends=[1]),
        NODE("Cast", ["t"], ["u"], to=1),
        NODE("Relu", ["x"], ["y"]),
    ]
    network = load(model(nodes, {}, {"x": [2, 3]}, {"y": [2, 3]}, Form(opset=9)))
    assert call_of(network, network.nodes[1], {}, np.arange).wanted == frozenset({0})


# ---- whole networks ----

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


VIEWS: dict[str, list[onnx.NodeProto]] = {
    "gather": [NODE("Gather", ["s", "zero"], ["n"]), NODE("Unsqueeze", ["n", "zeros"], ["m"])],
    "slice": [NODE("Slice", ["s", "zeros", "one"], ["m"])],
    "cast": [
        NODE("Slice", ["s", "zeros", "one"], ["n"]), NODE("Cast", ["n"], ["c"], to=6), NODE("Cast", ["c"], ["m"], to=7)
    ],
}  # fmt: skip


@pytest.mark.parametrize("opset", [13, 20])
@pytest.mark.parametrize("symbol", ["N", 5])
@pytest.mark.parametrize("name", VIEWS)
def test_a_view_by_the_batch_size(name: str, symbol: int | str, opset: int) -> None:
    """x.view(x.size(0), -1), as exporters write it."""
    rng = np.random.default_rng(len(name))
    wide = plant(rng, base_layers(rng, WIDTHS), Planting(copies=3))
    constants = {
        "w": wide[0].weight.T.astype(F),
        "u": wide[1].weight.T.astype(F),
        "zero": np.array(0),
        "zeros": np.array([0]),
        "one": np.array([1]),
        "rest": np.array([-1]),
        "axes": np.array([2]),
    }
    every = [
        NODE("MatMul", ["x", "w"], ["a"]),
        NODE("Unsqueeze", ["a", "axes"], ["b"]),
        NODE("Tanh", ["b"], ["d"]),
        NODE("Shape", ["d"], ["s"]),
        *VIEWS[name],
        NODE("Concat", ["m", "rest"], ["to"], axis=0),
        NODE("Reshape", ["d", "to"], ["h"]),
        NODE("MatMul", ["h", "u"], ["y"]),
    ]
    used = {n for node in every for n in node.input}
    kept = {k: v for k, v in constants.items() if k in used}
    proto = model(every, kept, {"x": [symbol, 7]}, {"y": [symbol, 4]}, Form(opset=opset))
    done = lossless(proto)
    assert done.widths() == [6]
    assert_same_outputs(proto, done.proto)


@pytest.mark.parametrize("symbol", ["N", 5])
def test_a_view_by_its_own_sizes(symbol: int | str) -> None:
    """flatten(2), as exporters write it: all leading sizes are read, and given back to the same tensor."""
    rng = np.random.default_rng(0)
    wide = plant(rng, base_layers(rng, WIDTHS), Planting(copies=3))
    constants = {
        "w": wide[0].weight.T.astype(F),
        "u": wide[1].weight.T.astype(F),
        "zeros": np.array([0]),
        "two": np.array([2]),
        "rest": np.array([-1]),
    }
    nodes = [
        NODE("MatMul", ["x", "w"], ["a"]),
        NODE("Transpose", ["a"], ["b"], perm=[0, 3, 1, 2]),
        NODE("Shape", ["b"], ["s"]),
        NODE("Slice", ["s", "zeros", "two"], ["m"]),
        NODE("Concat", ["m", "rest"], ["to"], axis=0),
        NODE("Reshape", ["b", "to"], ["c"]),
        NODE("Transpose", ["c"], ["h"], perm=[0, 2, 1]),
        NODE("MatMul", ["h", "u"], ["y"]),
    ]
    proto = model(nodes, constants, {"x": [symbol, 2, 3, 7]}, {"y": [symbol, 6, 4]})
    done = lossless(proto)
    assert done.widths() == [6]
    assert_same_outputs(proto, done.proto)


SPLITS: dict[str, tuple[list[onnx.NodeProto], dict[str, Any], str]] = {
    "computed shape": (
        [NODE("Shape", ["x"], ["s"]), NODE("Gather", ["s", "i"], ["n"]), NODE("Add", ["c", "c"], ["d"]),
         NODE("Concat", ["n", "d"], ["to"], axis=0), NODE("Reshape", ["a", "to"], ["h"], name="cut")],
        {"i": np.array([0]), "c": np.array([9])},
        layout.COMPUTED_WIDTH,
    ),
    "own size": (
        [NODE("Shape", ["a"], ["s"], name="size"), NODE("Gather", ["s", "i"], ["n"]), NODE("Cast", ["n"], ["f"], to=1),
         NODE("Mul", ["a", "f"], ["h"])],
        {"i": np.array([1])},
        layout.SIZE_READ,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SPLITS)
def test_what_does_not_keep_the_axis_whole_pins_it(name: str) -> None:
    nodes, stored, reason = SPLITS[name]
    weights = {"w": np.ones((7, 18), F), "u": np.ones((18, 4), F)}
    every = [NODE("MatMul", ["x", "w"], ["a"]), *nodes, NODE("MatMul", ["h", "u"], ["y"])]
    proto = model(every, weights | stored, {"x": ["N", 7]}, {"y": ["N", 4]})
    found = find_spaces(load(proto))
    assert {r.reason for r in found.refusals if r.node.startswith(("cut", "size"))} == {reason}
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
