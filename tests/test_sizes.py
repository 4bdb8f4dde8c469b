"""Widths that stand as stored numbers in lists that the graph computes: found, followed, kept apart from others."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from builders import Form, lossless, model
from onnx import helper

from onnx_condense.network.model import Network, load
from onnx_condense.ops import join, layout, pick, spatial
from onnx_condense.plan import ChannelView
from onnx_condense.runtime import Runtime, run
from onnx_condense.spaces import find_spaces

Array = npt.NDArray[Any]
NODE = helper.make_node
F = np.float32

# Six channels that are three.
COPIES = [0, 1, 1, 2, 0, 2]


def batch(of: str = "x", to: str = "n") -> list[onnx.NodeProto]:
    """The size of the first axis of a tensor, as a list."""
    return [NODE("Shape", [of], [f"{to}.shape"]), NODE("Slice", [f"{to}.shape", "zero", "one"], [to])]


@dataclasses.dataclass(frozen=True)
class Case:
    """A network that reads x, with redundant rows in `w` (and `w2`).

    numbers: stored integers; weights: shapes of random ones, fixed: others; widths: of its spaces after the lossless
    plan; more: nodes that it has more then, since others than a reader of the width need the list as it was.
    """

    nodes: Sequence[onnx.NodeProto]
    numbers: Mapping[str, Any]
    weights: Mapping[str, tuple[int, ...]]
    shape: Sequence[int | str]
    widths: Sequence[int]
    output: Sequence[int | str] = ("N", "K")
    fixed: Mapping[str, Array] = dataclasses.field(default_factory=dict)
    more: int = 0
    opset: int = 18

    def proto(self) -> onnx.ModelProto:
        """The network."""
        rng = np.random.default_rng(7)
        made = {name: rng.standard_normal(shape).astype(F) for name, shape in self.weights.items()}
        made |= {k: v.take(COPIES, 0 if v.ndim > 2 else 1) for k, v in made.items() if k.startswith("w")}
        stored = {"zero": np.array([0]), "one": np.array([1])} | {k: np.asarray(v) for k, v in self.numbers.items()}
        used = {name for node in self.nodes for name in node.input}
        kept = {k: v for k, v in (stored | made | dict(self.fixed)).items() if k in used}
        return model(list(self.nodes), kept, {"x": list(self.shape)}, {"y": list(self.output)}, Form(opset=self.opset))


TOKENS = [NODE("MatMul", ["x", "w"], ["a"]), NODE("Relu", ["a"], ["h"])]
IMAGE = [NODE("Conv", ["x", "w"], ["a"]), NODE("Relu", ["a"], ["h"])]
READ = NODE("MatMul", ["r", "v"], ["y"])
# x [N, 4, 5] -> h [N, 4, 6]; image: x [N, 2, 4, 4] -> h [N, 6, 4, 4].
LONG: list[int | str] = ["N", 4, 5]
PICTURE: list[int | str] = ["N", 2, 4, 4]
ROWS = {"w": (5, 3), "v": (6, 2)}
MAPS = {"w": (3, 2, 1, 1), "v": (6, 2)}
SOME = {"minus": [-1], "four": [4], "six": [6], "two": [2], "ones": [1, 1], "sixteen": [16]}

CASES: dict[str, Case] = {
    "one piece": Case(
        [*TOKENS, *batch(), NODE("Concat", ["n", "minus", "six"], ["to"], axis=0), NODE("Reshape", ["h", "to"], ["r"]),
         READ],
        SOME, ROWS, LONG, [3], ("N", 4, 2),
    ),
    "a Constant node": Case(
        [NODE("Constant", [], ["six"], value_ints=[6]), *TOKENS, *batch(),
         NODE("Concat", ["n", "minus", "six"], ["to"], axis=0), NODE("Reshape", ["h", "to"], ["r"]), READ],
        {"minus": [-1]}, ROWS, LONG, [3], ("N", 4, 2),
    ),
    "several in one constant": Case(
        [*TOKENS, *batch(), NODE("Concat", ["n", "rest"], ["to"], axis=0), NODE("Reshape", ["h", "to"], ["r"]), READ],
        {"rest": [4, 6]}, ROWS, LONG, [3], ("N", 4, 2),
    ),
    "moved often": Case(
        [*TOKENS, *batch(), NODE("Unsqueeze", ["sixth", "zero"], ["s1"]), NODE("Cast", ["s1"], ["s2"], to=6),
         NODE("Cast", ["n"], ["n2"], to=6), NODE("Cast", ["four"], ["four2"], to=6),
         NODE("Concat", ["s2", "n2", "four2"], ["l"], axis=0), NODE("Gather", ["l", "turned"], ["g"]),
         NODE("Cast", ["g"], ["c"], to=7), NODE("Reshape", ["c", "three"], ["i"]), NODE("Identity", ["i"], ["to"]),
         NODE("Reshape", ["h", "to"], ["r"]), READ],
        SOME | {"sixth": 6, "turned": [1, 2, 0], "three": [3]}, ROWS, LONG, [3], ("N", 4, 2),
    ),
    "all of it known, by arithmetic": Case(
        [*TOKENS, NODE("Add", ["three", "three"], ["six"]), NODE("Concat", ["minus", "six"], ["to"], axis=0),
         NODE("Reshape", ["h", "to"], ["r"]), READ],
        {"minus": [-1], "three": [3]}, ROWS, LONG, [3], ("M", 2),
    ),
    "joined back from heads": Case(
        [*TOKENS, *batch(), NODE("Concat", ["n", "four", "two", "three"], ["apart"], axis=0),
         NODE("Reshape", ["h", "apart"], ["e"]), NODE("Relu", ["e"], ["f"]),
         NODE("Concat", ["n", "four", "six"], ["to"], axis=0), NODE("Reshape", ["f", "to"], ["r"]), READ],
        SOME | {"three": [3]}, {"v": (6, 2)}, LONG, [2], ("N", 4, 2),
        # Two heads of three channels: the first and the last of each are one.
        {"w": np.random.default_rng(3).standard_normal((5, 6)).astype(F)[:, [0, 1, 0, 3, 4, 3]]},
    ),
    "pixels behind one another": Case(
        [*IMAGE, *batch(), NODE("Concat", ["n", "six", "minus"], ["to"], axis=0), NODE("Reshape", ["h", "to"], ["t"]),
         NODE("Transpose", ["t"], ["r"], perm=[0, 2, 1]), READ],
        SOME, MAPS, PICTURE, [3], ("N", 16, 2),
    ),
    "features of an image": Case(
        [*IMAGE, *batch(), NODE("Concat", ["n", "many"], ["to"], axis=0), NODE("Reshape", ["h", "to"], ["r"]), READ],
        {"many": [96]}, MAPS | {"v": (96, 2)}, PICTURE, [3], ("N", 2),
    ),
    "expanded": Case(
        [*IMAGE, NODE("GlobalAveragePool", ["h"], ["p"]), *batch(),
         NODE("Concat", ["n", "six", "four", "four"], ["to"], axis=0), NODE("Expand", ["p", "to"], ["e"]),
         NODE("Conv", ["e", "u"], ["y"])],
        SOME, MAPS | {"u": (2, 6, 1, 1)}, PICTURE, [3], ("N", 2, 4, 4),
    ),
    # As PyTorch writes expand(n, 6, -1, -1): -1 stands for 1.
    "expanded, as PyTorch writes it": Case(
        [*IMAGE, NODE("GlobalAveragePool", ["h"], ["p"]), *batch("p"),
         NODE("Concat", ["n", "minus", "four", "four"], ["l"], axis=0),
         NODE("ConstantOfShape", ["four"], ["o"], value=helper.make_tensor("v", 7, [1], [1])),
         NODE("Mul", ["o", "minus"], ["m"]), NODE("Equal", ["l", "m"], ["q"]), NODE("Where", ["q", "o", "l"], ["to"]),
         NODE("Expand", ["p", "to"], ["e"]), NODE("Conv", ["e", "u"], ["y"])],
        SOME, MAPS | {"u": (2, 6, 1, 1)}, PICTURE, [3], ("N", 2, 4, 4),
    ),
    "expanded by its number, as PyTorch writes it": Case(
        [*IMAGE, NODE("GlobalAveragePool", ["h"], ["p"]), *batch("p"),
         NODE("Concat", ["n", "six", "four", "four"], ["l"], axis=0),
         NODE("ConstantOfShape", ["four"], ["o"], value=helper.make_tensor("v", 7, [1], [1])),
         NODE("Mul", ["o", "minus"], ["m"]), NODE("Equal", ["l", "m"], ["q"]), NODE("Where", ["q", "o", "l"], ["to"]),
         NODE("Expand", ["p", "to"], ["e"]), NODE("Conv", ["e", "u"], ["y"])],
        SOME, MAPS | {"u": (2, 6, 1, 1)}, PICTURE, [3], ("N", 2, 4, 4), more=1,
    ),
    # As PyTorch writes h * gate.expand_as(h).
    "expanded to the size of what it gates": Case(
        [*IMAGE, NODE("GlobalAveragePool", ["h"], ["p"]), NODE("Conv", ["p", "w2"], ["g"]), NODE("Shape", ["h"], ["s"]),
         NODE("Expand", ["g", "s"], ["e"]), NODE("Mul", ["h", "e"], ["m"]), NODE("Conv", ["m", "u"], ["y"])],
        {}, MAPS | {"w2": (3, 6, 1, 1), "u": (2, 6, 1, 1)}, PICTURE, [3], ("N", 2, 4, 4),
    ),
    "expanded to its own size": Case(
        [*IMAGE, NODE("Shape", ["h"], ["s"]), NODE("Expand", ["h", "s"], ["e"]), NODE("Conv", ["e", "u"], ["y"])],
        {}, MAPS | {"u": (2, 6, 1, 1)}, PICTURE, [3], ("N", 2, 4, 4),
    ),
    "expanded to the size of what has no copies": Case(
        [*IMAGE, NODE("Conv", ["x", "k"], ["c"]), NODE("GlobalAveragePool", ["c"], ["g"]), NODE("Shape", ["h"], ["s"]),
         NODE("Expand", ["g", "s"], ["e"]), NODE("Conv", ["e", "u"], ["f"]), NODE("Conv", ["h", "u2"], ["l"]),
         NODE("Add", ["f", "l"], ["y"])],
        {}, MAPS | {"k": (6, 2, 1, 1), "u": (2, 6, 1, 1), "u2": (2, 6, 1, 1)}, PICTURE, [6], ("N", 2, 4, 4),
    ),
    "resized to sizes": Case(
        [*IMAGE, *batch(), NODE("Concat", ["n", "six", "eight", "eight"], ["to"], axis=0),
         NODE("Resize", ["h", "", "", "to"], ["e"]), NODE("Conv", ["e", "u"], ["y"])],
        {"six": [6], "eight": [8]}, MAPS | {"u": (2, 6, 1, 1)}, PICTURE, [3], ("N", 2, 8, 8),
    ),
    "resized by scales": Case(
        [*IMAGE, NODE("Shape", ["x"], ["s"], start=2), NODE("Cast", ["s"], ["f"], to=1),
         NODE("Div", ["eight", "f"], ["d"]), NODE("Concat", ["same", "d"], ["scales"], axis=0),
         NODE("Resize", ["h", "", "scales"], ["e"]), NODE("Conv", ["e", "u"], ["y"])],
        {}, MAPS | {"u": (2, 6, 1, 1)}, ["N", 2, "H", "W"], [3], ("N", 2, "P", "Q"),
        {"same": np.ones(2, F), "eight": np.array([8, 8], F)},
    ),
    "padded by computed sizes": Case(
        [*IMAGE, NODE("Shape", ["x"], ["s"], start=2), NODE("Sub", ["eights", "s"], ["d"]),
         NODE("Concat", ["zeros", "zeros", "zeros", "d"], ["pads"], axis=0), NODE("Pad", ["h", "pads"], ["e"]),
         NODE("Conv", ["e", "u"], ["y"])],
        {"zeros": [0, 0], "eights": [8, 8]}, MAPS | {"u": (2, 6, 1, 1)}, ["N", 2, "H", "W"], [3],
        ("N", 2, "P", "Q"),
    ),
    "cut at a piece": Case(
        [*TOKENS, *batch("h"), NODE("Concat", ["n", "three"], ["ends"], axis=0),
         NODE("Slice", ["h", "zeros", "ends", "axes"], ["r"]), READ],
        {"three": [3], "zeros": [0, 0], "axes": [0, 2]}, {"w": (5, 3), "v": (3, 2)}, LONG, [2], ("N", 4, 2),
    ),
    "split into known parts": Case(
        [*TOKENS, NODE("Concat", ["two", "four"], ["parts"], axis=0),
         NODE("Split", ["h", "parts"], ["p", "q"], axis=2), NODE("MatMul", ["p", "v"], ["b"]),
         NODE("MatMul", ["q", "u"], ["c"]), NODE("Add", ["b", "c"], ["y"])],
        SOME, {"w": (5, 3), "v": (2, 2), "u": (4, 2)}, LONG, [5], ("N", 4, 2),
    ),
}  # fmt: skip


def feed(case: Case, rows: int) -> dict[str, Array]:
    free = {"N": rows, "H": 4, "W": 4}
    shape = [free[n] if isinstance(n, str) else n for n in case.shape]
    return {"x": np.random.default_rng(rows).standard_normal(shape).astype(F)}


def assert_same(before: onnx.ModelProto, after: onnx.ModelProto, *feeds: dict[str, Array]) -> None:
    """Equal outputs, without the optimizations of ONNX Runtime."""
    onnx.checker.check_model(after, full_check=True)
    sessions = [Runtime(threads=1).session(proto, optimize=False) for proto in (before, after)]
    for values in feeds:
        for one, other in zip(*(run(session, values) for session in sessions), strict=True):
            assert one.shape == other.shape
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_numbers_follow_the_widths(name: str) -> None:
    case = CASES[name]
    proto = case.proto()
    done = lossless(proto)
    assert done.widths() == case.widths
    assert_same(proto, done.proto, feed(case, 1), feed(case, 3))
    # What nobody reads any more is gone.
    assert len(done.proto.graph.node) <= len(proto.graph.node) + case.more
    again = lossless(done.proto)
    assert not again.plan.selections
    assert again.widths() == case.widths


# ---- one number, several readers ----

# a is redundant and free; b has the same width and leaves the network.
PAIR = [
    *TOKENS, *batch(),
    NODE("Concat", ["n", "minus", "six"], ["to"], axis=0),
    NODE("Reshape", ["h", "to"], ["r"]), READ, NODE("MatMul", ["x", "fix"], ["b"]),
]  # fmt: skip
OWN = NODE("Concat", ["n", "minus", "six"], ["to2"], axis=0)
CLAIMS: dict[str, list[onnx.NodeProto]] = {
    "the list is read by a width that stays": [NODE("Reshape", ["b", "to"], ["z"])],
    "the constant is read by a width that stays": [OWN, NODE("Reshape", ["b", "to2"], ["z"])],
    "the constant is read alone": [NODE("Reshape", ["b", "minus6"], ["c"]), NODE("Cast", ["six"], ["z"], to=1)],
    "the list leaves the network": [NODE("Identity", ["to"], ["z"])],
    "the list is calculated with": [NODE("Mul", ["to", "six"], ["z"])],
    "moved on and calculated with": [NODE("Slice", ["to", "one", "three"], ["m"]), NODE("ReduceSum", ["m"], ["z"])],
    "the list is read inside a body": [
        NODE("Less", ["n", "six"], ["few"]), NODE("Squeeze", ["few"], ["condition"]),
        NODE("If", ["condition"], ["z"],
             then_branch=helper.make_graph([NODE("Abs", ["to"], ["t"])], "a", [], [onnx.ValueInfoProto(name="t")]),
             else_branch=helper.make_graph([NODE("Neg", ["to"], ["e"])], "b", [], [onnx.ValueInfoProto(name="e")])),
    ],
}  # fmt: skip


def pair(more: Sequence[onnx.NodeProto], **weights: Array) -> onnx.ModelProto:
    """PAIR and other readers, whose result is z."""
    rng = np.random.default_rng(5)
    stored = {"w": rng.standard_normal((5, 3)).astype(F)[:, COPIES], "v": rng.standard_normal((6, 2)).astype(F)}
    stored |= {"fix": rng.standard_normal((5, 6)).astype(F)} | weights
    ints = {"zero": [0], "one": [1], "three": [3], "minus": [-1], "six": [6], "minus6": [-1, 6]}
    nodes = [*PAIR, *more]
    used = {name for node in nodes for name in node.input}
    kept = {k: v for k, v in (stored | {k: np.array(v) for k, v in ints.items()}).items() if k in used}
    return open_ended(model(nodes, kept, {"x": ["N", 4, 5]}, {"y": ["N", 4, 2]}, Form(opset=18)), "z")


def open_ended(proto: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """One more output, as shape inference finds it."""
    proto.graph.output.append(onnx.ValueInfoProto(name=name))
    found = onnx.shape_inference.infer_shapes(proto)
    proto.graph.output[-1].CopyFrom(found.graph.output[-1])
    return proto


@pytest.mark.parametrize("name", CLAIMS)
def test_other_readers_keep_their_number(name: str) -> None:
    proto = pair(CLAIMS[name])
    done = lossless(proto)
    assert done.widths()[0] == 3
    assert_same(
        proto, done.proto, *({"x": np.random.default_rng(n).standard_normal((n, 4, 5)).astype(F)} for n in (1, 9))
    )


def test_two_widths_told_by_one_list() -> None:
    more = [NODE("Reshape", ["b", "to"], ["s"]), NODE("MatMul", ["s", "u"], ["z"])]
    rng = np.random.default_rng(8)
    proto = pair(more, fix=rng.standard_normal((5, 5)).astype(F)[:, [0, 1, 2, 3, 4, 0]], u=np.ones((6, 2), F))
    done = lossless(proto)
    assert sorted(done.widths()) == [3, 5]
    assert_same(proto, done.proto, *({"x": rng.standard_normal((n, 4, 5)).astype(F)} for n in (1, 4)))
    assert len(done.proto.graph.node) == len(proto.graph.node) + 1


def test_two_readers_of_one_width_share_a_list() -> None:
    more = [NODE("Tanh", ["a"], ["t"]), NODE("Reshape", ["t", "to"], ["s"]), NODE("MatMul", ["s", "u"], ["z"])]
    proto = pair(more, u=np.ones((6, 2), F))
    proto.graph.value_info.append(helper.make_tensor_value_info("to", onnx.TensorProto.INT64, [3]))
    done = lossless(proto)
    assert not done.proto.graph.value_info
    assert done.widths()[0] == 3
    assert_same(proto, done.proto, *({"x": np.ones((n, 4, 5), F)} for n in (1, 4)))
    assert sum(node.op_type == "Concat" for node in done.proto.graph.node) == 1
    assert not {"six", "to"} & {name for node in done.proto.graph.node for name in node.input}
    assert "six" not in {t.name for t in done.proto.graph.initializer}


def test_lists_handed_on_often() -> None:
    """More often than Python may recurse."""
    links = [NODE("Identity", [f"l{i}"], [f"l{i + 1}"]) for i in range(1200)]
    nodes = [*TOKENS, *batch(), NODE("Concat", ["n", "minus", "six"], ["l0"], axis=0), *links,
             NODE("Reshape", ["h", "l1200"], ["r"]), READ]  # fmt: skip
    case = Case(nodes, SOME, ROWS, LONG, [3], ("N", 4, 2))
    done = lossless(case.proto())
    assert done.widths() == [3]
    assert len(done.proto.graph.node) == len(nodes)
    assert_same(case.proto(), done.proto, feed(case, 2))


FILL = helper.make_tensor("v", 1, [1], [0.5])
MEETINGS: dict[str, tuple[list[onnx.NodeProto], list[int]]] = {
    "reshaped again": ([NODE("Reshape", ["g", "to"], ["e"]), NODE("Relu", ["e"], ["r"])], [3]),
    "multiplied by the width": (
        [NODE("Gather", ["to", "second"], ["m"]), NODE("Cast", ["m"], ["f"], to=1), NODE("Mul", ["g", "f"], ["r"])],
        [3],
    ),
    "a constant laid out": ([NODE("ConstantOfShape", ["to"], ["z"], value=FILL), NODE("Add", ["g", "z"], ["r"])], []),
    "the width of a constant": (
        [NODE("Slice", ["to", "two", "three"], ["m"]), NODE("ConstantOfShape", ["m"], ["z"], value=FILL),
         NODE("Add", ["g", "z"], ["r"])],
        [],
    ),
    "a number laid out": ([NODE("Expand", ["half", "to"], ["z"]), NODE("Add", ["g", "z"], ["r"])], []),
    "repeated": (
        [NODE("Slice", ["to", "two", "three"], ["m"]), NODE("Tile", ["half", "m"], ["z"]),
         NODE("Add", ["g", "z"], ["r"])],
        [],
    ),
    "another width": (
        [NODE("MatMul", ["x", "u"], ["b"]), NODE("Reshape", ["b", "to"], ["z"]), NODE("Add", ["g", "z"], ["r"])],
        [6],
    ),
}  # fmt: skip


@pytest.mark.parametrize("opset", [12, 18])
@pytest.mark.parametrize("mover", ["Identity", "Transpose"])
@pytest.mark.parametrize("name", MEETINGS)
def test_what_the_same_list_lays_out(name: str, mover: str, opset: int) -> None:
    """What else is of the size that the list names may meet the width again, known to inference or not."""
    nodes, widths = MEETINGS[name]
    every = [*TOKENS, *batch(), NODE("Concat", ["n", "four", "six"], ["l"], axis=0), NODE(mover, ["l"], ["to"]),
             NODE("Reshape", ["h", "to"], ["g"]), *nodes, READ]  # fmt: skip
    fixed = {"half": np.array([0.5], F)}
    numbers = SOME | {"second": 2, "three": [3]}
    case = Case(every, numbers, ROWS | {"u": (5, 6)}, LONG, widths, ("N", 4, 2), fixed, opset=opset)
    done = lossless(case.proto())
    assert done.widths() == widths
    assert_same(case.proto(), done.proto, feed(case, 1), feed(case, 3))


# ---- refusals ----

REFUSED: dict[str, tuple[list[onnx.NodeProto], str]] = {
    "by arithmetic": (
        [NODE("Add", ["three", "three"], ["six2"]), NODE("Concat", ["n", "minus", "six2"], ["to"], axis=0),
         NODE("Reshape", ["h", "to"], ["r"])],
        layout.COMPUTED_WIDTH,
    ),
    "moved to two places": (
        [NODE("Concat", ["n", "six", "one"], ["l"], axis=0), NODE("Gather", ["l", "twice"], ["to"]),
         NODE("Reshape", ["h", "to"], ["g"]), NODE("ReduceSum", ["g", "one"], ["r"], keepdims=0)],
        layout.COMPUTED_WIDTH,
    ),
    "picked by what is not known": (
        [NODE("Sub", ["n", "n"], ["d"]), NODE("Gather", ["six", "d"], ["p"]),
         NODE("Concat", ["n", "four", "p"], ["to"], axis=0), NODE("Reshape", ["h", "to"], ["r"])],
        layout.COMPUTED_SHAPE,
    ),
    "chosen by the width itself": (
        [NODE("Slice", ["n.shape", "two", "three"], ["width"]), NODE("Equal", ["width", "six"], ["q"]),
         NODE("Where", ["q", "four", "two"], ["p"]), NODE("Concat", ["n", "p", "minus"], ["to"], axis=0),
         NODE("Reshape", ["h", "to"], ["r"])],
        layout.SIZE_READ,
    ),
    "expanded": (
        [NODE("Add", ["three", "three"], ["six2"]), NODE("Concat", ["n", "four", "six2"], ["to"], axis=0),
         NODE("Expand", ["h", "to"], ["r"])],
        layout.COMPUTED_WIDTH,
    ),
    "resized": (
        [NODE("Add", ["three", "three"], ["six2"]), NODE("Concat", ["n", "four", "six2"], ["to"], axis=0),
         NODE("Resize", ["h", "", "", "to"], ["r"])],
        spatial.COMPUTED_WIDTH,
    ),
    "scaled": (
        [NODE("Cast", ["n"], ["f"], to=1), NODE("Div", ["f", "f"], ["d"]),
         NODE("Concat", ["d", "d", "d"], ["s"], axis=0), NODE("Resize", ["h", "", "s"], ["r"])],
        spatial.RESIZED,
    ),
    "cut": (
        [NODE("Add", ["three", "three"], ["six2"]), NODE("Sub", ["six2", "one"], ["five"]),
         NODE("Concat", ["n", "five"], ["ends"], axis=0), NODE("Slice", ["h", "zeros", "ends", "axes"], ["r"])],
        pick.COMPUTED_CUT,
    ),
    "split": (
        [NODE("Sub", ["seven", "one"], ["six2"]), NODE("Sub", ["n", "n"], ["none"]),
         NODE("Concat", ["six2", "none"], ["parts"], axis=0), NODE("Split", ["h", "parts"], ["r", "e"], axis=2)],
        join.COMPUTED_PARTS,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_numbers_that_no_other_can_be_stored_for(name: str) -> None:
    nodes, reason = REFUSED[name]
    numbers = SOME | {"three": [3], "seven": [7], "twice": [0, 1, 1], "zeros": [0, 0], "axes": [0, 2]}
    every = [*TOKENS, *batch("h"), *nodes, NODE("MatMul", ["r", "v"], ["y"])]
    case = Case(every, numbers, {"w": (5, 3), "v": (5 if name == "cut" else 6, 2)}, LONG, [])
    view = find_spaces(load(case.proto()))
    assert reason in {r.reason for r in view.refusals}
    assert view.spaces[0].pinned.all()


def test_shapes_tell_of_shapes() -> None:
    """Every Reshape is told by the size of the one before, of which inference does not know the rank."""
    nodes = [*TOKENS]
    for i, (now, then) in enumerate(itertools.pairwise(["h", "r1", "r2", "r3", "r4"])):
        nodes += [*batch(now, f"n{i}"), NODE("Concat", [f"n{i}", "minus", "six"], [f"l{i}"], axis=0)]
        nodes += [NODE("Transpose", [f"l{i}"], [f"to{i}"]), NODE("Reshape", [now, f"to{i}"], [then])]
    # Up to opset 12 inference tells nothing of a Reshape whose shape it does not know.
    case = Case([*nodes, NODE("MatMul", ["r4", "v"], ["y"])], SOME, ROWS, LONG, [3], ("N", 4, 2), opset=12)
    proto = case.proto()
    network: Network = load(proto)
    assert {name: len(network.shape(name) or ()) for name in ("r1", "r2", "r3", "r4")} == dict.fromkeys(
        ("r1", "r2", "r3", "r4"), 3
    )
    view: ChannelView = find_spaces(network)
    assert view.spaces[0].reducible
    done = lossless(proto)
    assert done.widths() == [3]
    assert_same(proto, done.proto, feed(case, 1), feed(case, 3))
