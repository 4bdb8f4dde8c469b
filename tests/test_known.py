"""What is known of computed shapes: everything that follows from constants, and nothing that a width may change."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from builders import Form, model
from onnx import helper

from onnx_condense import runtime
from onnx_condense.network import known
from onnx_condense.network.known import Known, Size
from onnx_condense.network.model import load

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
    "alike but for the op": (
        [NODE("Add", ["two", "three"], ["a1"]), NODE("Mul", ["two", "three"], ["a2"]),
         NODE("Concat", ["a1", "a2"], ["k"], axis=0)],
        {"two": np.array([2]), "three": np.array([3])},
        (5, 6),
    ),
    "alike but for an attribute": (
        [NODE("Gather", ["m", "one"], ["r"], axis=0), NODE("Gather", ["m", "one"], ["c"], axis=1),
         NODE("Concat", ["r", "c"], ["k"], axis=0)],
        {"m": np.array([[1, 2], [3, 4]]), "one": np.array(1)},
        (3, 4, 2, 4),
    ),
    "alike but for the values": (
        [NODE("Add", ["two", "two"], ["a1"]), NODE("Add", ["two", "three"], ["a2"]),
         NODE("Concat", ["a1", "a2"], ["k"], axis=0)],
        {"two": np.array([2]), "three": np.array([3])},
        (4, 5),
    ),
    "alike but for what is left out": (
        [NODE("Slice", ["v", "four", "zero", "", "back"], ["a1"]), NODE("Slice", ["v", "zero", "four", "back"], ["a2"]),
         NODE("Slice", ["v", "four", "zero", "back"], ["a3"]), NODE("Concat", ["a3", "a1", "a2"], ["k"], axis=0)],
        {"v": np.arange(5), "four": np.array([4]), "zero": np.array([0]), "back": np.array([-1])},
        (4, 3, 2, 1, 0, 1, 2, 3),
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


def test_what_is_computed_again_and_again_runs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that lays out a thousand tensors by one recipe costs one run per step of that."""
    ran: list[str] = []
    run_node = runtime.run_node

    def counted(proto: onnx.ModelProto, node: onnx.NodeProto, arrays: Any) -> Any:
        ran.append(node.op_type)
        return run_node(proto, node, arrays)

    monkeypatch.setattr(known, "run_node", counted)
    nodes = [
        node
        for i in range(5)
        for node in (
            NODE("Relu", [f"x{i}" if i else "x"], [f"x{i + 1}"]),
            NODE("Shape", [f"x{i + 1}"], [f"s{i}"]),
            NODE("Slice", [f"s{i}", "one", "two"], [f"k{i}"]),
        )
    ]
    numbers = {"one": np.array([1]), "two": np.array([2])}
    network = load(model([*nodes, NODE("Relu", ["x5"], ["y"])], numbers, {"x": ["N", 3]}, {"y": ["N", 3]}))
    assert [network.known(f"k{i}") for i in range(5)] == [(Size(f"x{i + 1}", 1),) for i in range(5)]
    assert ran == ["Slice"]


# ---- what is known of single numbers ----

F = np.float32
BATCH = [NODE("Shape", ["y"], ["y.shape"]), NODE("Slice", ["y.shape", "zero", "one"], ["n"])]
MOVES: dict[str, tuple[list[onnx.NodeProto], tuple[float | int | None, ...]]] = {
    "joined": ([NODE("Concat", ["n", "rest"], ["k"], axis=0)], (None, 7, 8)),
    "stored": ([NODE("Identity", ["rest"], ["k"])], (7, 8)),
    "cast": ([NODE("Concat", ["n", "rest"], ["c"], axis=0), NODE("Cast", ["c"], ["k"], to=6)], (None, 7, 8)),
    "cast to floats": ([NODE("Concat", ["n", "rest"], ["c"], axis=0), NODE("Cast", ["c"], ["k"], to=1)], (None, 7, 8)),
    "cast from floats": ([NODE("Cast", ["halves"], ["k"], to=7)], ()),
    "floats": (
        [NODE("Cast", ["n"], ["f"], to=1), NODE("Concat", ["halves", "f"], ["k"], axis=0)],
        (1.5, 2.5, None),
    ),
    "picked": ([NODE("Concat", ["n", "rest"], ["c"], axis=0), NODE("Gather", ["c", "two"], ["k"])], (8,)),
    "picked twice": (
        [NODE("Concat", ["n", "rest"], ["c"], axis=0), NODE("Gather", ["c", "both"], ["k"])],
        (8, None, None),
    ),
    "cut": ([NODE("Concat", ["n", "rest"], ["c"], axis=0), NODE("Slice", ["c", "one", "two"], ["k"])], (7,)),
    "joined side by side": (
        [NODE("Unsqueeze", ["rest", "one"], ["c"]), NODE("Concat", ["c", "ns"], ["d"], axis=1),
         NODE("Flatten", ["d"], ["k"], axis=0)],
        (7, None, None, 8, None, None),
    ),
    "joined with itself": ([NODE("Concat", ["rest", "n", "rest"], ["k"], axis=0)], (7, 8, None, 7, 8)),
    "chosen": (
        [NODE("Concat", ["n", "one"], ["c"], axis=0), NODE("Equal", ["c", "ones"], ["q"]),
         NODE("Where", ["yes", "rest", "c"], ["k"])],
        (7, 1),
    ),
    "spread": ([NODE("Where", ["yes", "one", "rest"], ["k"])], (1, 8)),
    "picked outside": ([NODE("Concat", ["n", "rest"], ["c"], axis=0), NODE("Gather", ["c", "nine"], ["k"])], ()),
    "many": ([NODE("Concat", ["n", "lots"], ["k"], axis=0)], ()),
    "summed": ([NODE("Concat", ["n", "rest"], ["c"], axis=0), NODE("Add", ["c", "one"], ["k"])], ()),
    "other": ([NODE("Neg", ["rest"], ["m"]), NODE("Concat", ["m", "rest"], ["k"], axis=0)], (None, None, 7, 8)),
}  # fmt: skip


@pytest.mark.parametrize("name", MOVES)
def test_pieces(name: str) -> None:
    nodes, expected = MOVES[name]
    stored = {
        "zero": [0],
        "one": [1],
        "two": [2],
        "rest": [7, 8],
        "both": [2, 1, 1],
        "both2": [2, 2],
        "ones": [1, 1],
        "nine": [9],
    }
    stored["lots"] = list(range(known.LIMIT))
    floats = {"halves": np.array([1.5, 2.5], F), "yes": np.array([True, False])}
    typed = floats | {k: np.array(v) for k, v in stored.items()}
    every = [NODE("Relu", ["x"], ["y"]), *BATCH, NODE("Expand", ["n", "both2"], ["ns"]), *nodes]
    network = load(model(every, typed, {"x": ["N", 3]}, {"y": ["N", 3]}, Form(opset=17)))
    assert network.pieces("k") == expected
    assert network.pieces("k") == expected
    if name == "picked outside":
        assert network.known("k") == (None,)


A, B = Size("y", 0), Size("y", 1)
CHOICES: dict[str, tuple[list[onnx.NodeProto], Known | None]] = {
    "a size is not below zero": (
        [NODE("Equal", ["s", "minus"], ["q"]), NODE("Where", ["q", "ones", "s"], ["k"])],
        (A, B),
    ),
    "a size may be anything else": (
        [NODE("Equal", ["s", "ones"], ["q"]), NODE("Where", ["q", "twos", "s"], ["k"])],
        (None, None),
    ),
    "by a size": ([NODE("Equal", ["s", "ones"], ["q"]), NODE("Where", ["q", "s", "s"], ["k"])], (None, None)),
    "by an unknown number": (
        [NODE("Neg", ["s"], ["t"]), NODE("Equal", ["t", "ones"], ["q"]), NODE("Where", ["q", "ones", "s"], ["k"])],
        (None, None),
    ),
    "equal to itself": ([NODE("Equal", ["s", "s"], ["q"]), NODE("Where", ["q", "ones", "s"], ["k"])], (1, 1)),
    "two sizes may be equal": (
        [NODE("Gather", ["s", "turned"], ["t"]), NODE("Equal", ["s", "t"], ["q"]),
         NODE("Where", ["q", "ones", "twos"], ["k"])],
        (None, None),
    ),
    "numbers": (
        [NODE("Concat", ["minus", "s"], ["c"], axis=0), NODE("Equal", ["c", "minus"], ["q"]),
         NODE("Where", ["q", "ones3", "c"], ["k"])],
        (1, A, B),
    ),
    "conditions are no numbers": ([NODE("Equal", ["s", "minus"], ["k"])], None),
    "nor made into some": (
        [NODE("Equal", ["s", "ones"], ["q"]), NODE("Cast", ["q"], ["k"], to=7)],
        (None, None),
    ),
    "of floats": (
        [NODE("Equal", ["s", "ones"], ["q"]), NODE("Where", ["q", "f", "f"], ["g"]), NODE("Cast", ["g"], ["k"], to=7)],
        (None, None),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHOICES)
def test_what_is_chosen(name: str) -> None:
    nodes, expected = CHOICES[name]
    stored = {"minus": [-1], "ones": [1, 1], "twos": [2, 2], "turned": [1, 0], "ones3": [1, 1, 1]}
    typed = {k: np.array(v) for k, v in stored.items()} | {"f": np.array([1.5, 2.5], F)}
    every = [NODE("Relu", ["x"], ["y"]), NODE("Shape", ["y"], ["s"]), *nodes]
    network = load(model(every, typed, {"x": ["N", 3]}, {"y": ["N", 3]}, Form(opset=17)))
    assert network.known("k") == expected
