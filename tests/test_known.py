"""What is known of computed shapes: everything that follows from constants, and nothing that a width may change."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from builders import Form, model
from onnx import helper

from onnx_condense import known
from onnx_condense.known import Known, Size
from onnx_condense.model import load

NODE = helper.make_node
SIZES = tuple(Size("a", axis) for axis in range(3))
# x is an input of shape [N, 3, 8], a is computed.
CASES: dict[str, tuple[list[onnx.NodeProto], dict[str, Any], Known | None]] = {
    "stored": ([], {"k": np.array([2, 3])}, (2, 3)),
    "stored int32": ([], {"k": np.array([2, 3], np.int32)}, (2, 3)),
    "stored scalar": ([], {"k": np.array(7)}, (7,)),
    "stored floats": ([], {"k": np.array([2.0])}, None),
    "stored matrix": ([], {"k": np.array([[2]])}, None),
    "large": ([], {"k": np.arange(known.LIMIT + 1)}, None),
    "limit": ([], {"k": np.arange(known.LIMIT)}, tuple(range(known.LIMIT))),
    "sizes of an input": ([NODE("Shape", ["x"], ["k"])], {}, (Size("x", 0), 3, 8)),
    "part of them": ([NODE("Shape", ["x"], ["k"], start=-2, end=9)], {}, (3, 8)),
    "sizes that may change": ([NODE("Shape", ["a"], ["k"])], {}, SIZES),
    "sizes of a weight": (
        [NODE("Shape", ["w"], ["k"])], {"w": np.zeros((4, 5), np.float32)}, (Size("w", 0), Size("w", 1)),
    ),
    "batch and rest": (
        [NODE("Shape", ["a"], ["s"]), NODE("Gather", ["s", "zero"], ["n"]), NODE("Unsqueeze", ["n", "axes"], ["m"]),
         NODE("Concat", ["m", "rest"], ["k"], axis=0)],
        {"zero": np.array(0), "axes": np.array([0]), "rest": np.array([-1, 4])},
        (Size("a", 0), -1, 4),
    ),
    "taken out again": (
        [NODE("Shape", ["a"], ["s"]), NODE("Concat", ["s", "rest"], ["c"], axis=0),
         NODE("Slice", ["c", "three", "five"], ["d"]), NODE("Mul", ["d", "rest"], ["k"])],
        {"rest": np.array([5, 6]), "three": np.array([3]), "five": np.array([5])},
        (25, 36),
    ),
    "int32 on the way": (
        [NODE("Shape", ["x"], ["s"]), NODE("Cast", ["s"], ["c"], to=6), NODE("Slice", ["c", "one", "two"], ["d"]),
         NODE("Add", ["d", "four"], ["k"])],
        {"one": np.array([1]), "two": np.array([2]), "four": np.array([4], np.int32)},
        (7,),
    ),
    "through floats": (
        [NODE("Cast", ["two"], ["f"], to=1), NODE("Mul", ["f", "half"], ["h"]), NODE("Floor", ["h"], ["g"]),
         NODE("Cast", ["g"], ["k"], to=7)],
        {"two": np.array([5, 8]), "half": np.array(0.5, np.float32)},
        (2, 4),
    ),
    "floats of what is not known": (
        [NODE("Shape", ["a"], ["s"]), NODE("Cast", ["s"], ["f"], to=1), NODE("Cast", ["f"], ["k"], to=7)],
        {},
        (None, None, None),
    ),
    "int32 of what is not known": (
        [NODE("Shape", ["a"], ["s"]), NODE("Cast", ["s"], ["c"], to=6), NODE("Identity", ["c"], ["k"])],
        {},
        SIZES,
    ),
    "sum with what is not known": (
        [NODE("Shape", ["a"], ["s"]), NODE("Add", ["s", "one"], ["k"])],
        {"one": np.array([1])},
        (None, None, None),
    ),
    # As PyTorch writes F.pad: pads of the last axis first, turned round by reshaping, slicing back and transposing.
    "pads": (
        [NODE("ConstantOfShape", ["four"], ["z"], value=helper.make_tensor("v", 7, [1], [0])),
         NODE("Concat", ["pads", "z"], ["c"], axis=0), NODE("Reshape", ["c", "pairs"], ["r"]),
         NODE("Slice", ["r", "last", "first", "zero", "last"], ["b"]), NODE("Transpose", ["b"], ["t"], perm=[1, 0]),
         NODE("Reshape", ["t", "last"], ["u"]), NODE("Cast", ["u"], ["k"], to=7)],
        {"four": np.array([4]), "pads": np.array([1, 2]), "pairs": np.array([-1, 2]), "last": np.array([-1]),
         "first": np.array([-(2**63) + 1]), "zero": np.array([0])},
        (0, 0, 1, 0, 0, 2),
    ),
    "wider than it may be": (
        [NODE("ConstantOfShape", ["many"], ["k"], value=helper.make_tensor("v", 7, [1], [0]))],
        {"many": np.array([10**9])},
        None,
    ),
    "random": ([NODE("RandomNormal", [], ["f"], shape=[2]), NODE("Cast", ["f"], ["k"], to=7)], {}, (None, None)),
    "drawn like a constant": (
        [NODE("RandomNormalLike", ["half"], ["f"]), NODE("Cast", ["f"], ["k"], to=7)],
        {"half": np.array([0.5], np.float32)},
        (None,),
    ),
    "of unknown number": ([NODE("NonZero", ["a"], ["nz"]), NODE("Flatten", ["nz"], ["k"])], {}, None),
    "what can't be run": (
        [NODE("Div", ["one", "zero"], ["k"])],
        {"one": np.array([1, 1]), "zero": np.ones(3, int)},
        None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_known_elements(name: str) -> None:
    nodes, stored, expected = CASES[name]
    every = [NODE("Relu", ["x"], ["a"]), *nodes, NODE("Relu", ["a"], ["y"])]
    network = load(model(every, stored, {"x": ["N", 3, 8]}, {"y": ["N", 3, 8]}, Form(opset=17)))
    assert network.known("k") == expected
    assert network.known("k") == expected
    assert network.known("x") is None


def test_what_the_caller_may_override_is_not_known() -> None:
    proto = model([NODE("Reshape", ["x", "to"], ["y"])], {"to": np.array([-1, 3])}, {"x": [2, 3]}, {"y": [2, 3]})
    proto.graph.input.append(helper.make_tensor_value_info("to", onnx.TensorProto.INT64, [2]))
    assert load(proto).known("to") == (None, None)


def test_a_function_by_the_name_of_an_op_is_not_run() -> None:
    proto = model([NODE("Neg", ["k"], ["m"]), NODE("Relu", ["x"], ["y"])], {"k": np.array([2])}, {"x": [1]}, {"y": [1]})
    assert load(proto).known("m") == (-2,)
    body = [NODE("Abs", ["a"], ["b"])]
    proto.functions.append(helper.make_function("", "Neg", ["a"], ["b"], body, [helper.make_opsetid("", 20)]))
    assert load(proto).known("m") in ((None,), None)


def test_long_chains() -> None:
    """A shape may be handed on more often than Python may recurse."""
    nodes = [NODE("Identity" if i % 2 else "Neg", [f"k{i}"], [f"k{i + 1}"]) for i in range(1200)]
    proto = model([*nodes, NODE("Relu", ["x"], ["y"])], {"k0": np.array([2])}, {"x": [1]}, {"y": [1]})
    assert load(proto).known("k1200") == (2,)
