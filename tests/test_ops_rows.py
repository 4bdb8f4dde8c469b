"""Rows picked and put by index (GatherND, ScatterElements, ScatterND), and what these lay out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from builders import outputs
from onnx import numpy_helper

from onnx_condense import condense
from onnx_condense.network.model import load
from onnx_condense.network.scattered import scattered
from onnx_condense.ops import Call, Value, find, pick, rows
from onnx_condense.ready import ready
from onnx_condense.report.data import Report
from onnx_condense.spaces import FIXED, find_spaces

Array = npt.NDArray[np.generic]

ROWS, EDGES = 7, 19
# Of six channels the fifth is the second, and the sixth twice the third.
HEAD = """<ir_version: 9, opset_import: ["" : 18]>
g (float[n, 3] x, int64[2, m] e) => (float[n, 2] y) {
    a = MatMul(x, w) h = Relu(a) s = Gather<axis = 0>(e, first) d = Gather<axis = 0>(e, second)
"""
MESSAGES = "hs = Gather<axis = 0>(h, s) u = MatMul(hs, v) c = Add(u, b) m = Relu(c)"
# The list of the shape [n, 6] and the column of the index.
AROUND = "xs = Shape(x) n = Slice(xs, zero, one) column = Unsqueeze(d, last) ms = Shape(m) w6 = Gather(ms, last)"


def redundant(shape: tuple[int, int], seed: int) -> npt.NDArray[np.float32]:
    drawn = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    drawn[:, 4], drawn[:, 5] = drawn[:, 1], 2 * drawn[:, 2]
    return drawn


def network(body: str, **stored: Array) -> onnx.ModelProto:
    """A network with such a body between its inputs and r, which the last layer reads."""
    text = HEAD + body + " y = MatMul(r, o) }"
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(3)
    numbers = {"zero": [0], "one": [1], "last": [-1], "six": [6], "minus": [-1], "flat": [0, 0]}
    every: dict[str, Array] = {k: np.array(v) for k, v in numbers.items()}
    every |= {"first": np.array(0), "second": np.array(1), "none": np.array(0, np.float32)}
    every |= {"w": redundant((3, 6), 0), "v": redundant((6, 6), 1), "b": redundant((1, 6), 2)[0]}
    every |= {"w8": rng.standard_normal((3, 8)).astype(np.float32), "v8": np.eye(8, 6, dtype=np.float32)}
    every |= {"o": rng.standard_normal((6, 2)).astype(np.float32)} | stored
    read = {name for node in proto.graph.node for name in node.input}
    proto.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in every.items() if k in read)
    return proto


def feed(seed: int, edges: int = EDGES) -> Mapping[str, Array]:
    rng = np.random.default_rng(seed)
    return {
        "x": rng.standard_normal((ROWS, 3)).astype(np.float32),
        "e": rng.integers(0, ROWS, (2, edges)).astype(np.int64),
    }


def condensed(proto: onnx.ModelProto) -> Report:
    """The report on what the weights prove; the network answers as before."""
    found = condense(proto, threads=1)
    for seed, edges in ((1, EDGES), (2, 1), (3, 0)):
        given = {k: v for k, v in feed(seed, edges).items() if k in {i.name for i in proto.graph.input}}
        for one, other in zip(outputs(proto, given), outputs(found.model, given), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    return found.report


def widths(report: Report) -> list[int]:
    return [space.after for space in report.spaces if space.name != "y"]


NATURAL = AROUND + """ to = Concat<axis = 0>(n, w6) z = ConstantOfShape(to) i = Expand(column, ms)"""
LITERAL = (
    AROUND
    + """ to = Concat<axis = 0>(n, six) z = Expand(none, to)
    ds = Shape(d) il = Concat<axis = 0>(ds, six) i = Expand(column, il)"""
)
PUT = ' r = ScatterElements<axis = 0, reduction = "add">(z, i, m)'
STORED = np.repeat(np.random.default_rng(4).integers(0, ROWS, (ROWS, 1)), 6, axis=1)
BODIES: dict[str, str] = {
    "by the size of the messages": MESSAGES + NATURAL + PUT,
    "by a number": MESSAGES + LITERAL + PUT,
    "the last message stays": MESSAGES + LITERAL + PUT.replace(', reduction = "add"', ""),
    "by rows": MESSAGES + LITERAL + ' r = ScatterND<reduction = "add">(z, column, m)',
    "by rows, by the size of the messages": MESSAGES + NATURAL + ' r = ScatterND<reduction = "add">(z, column, m)',
    "messages cut to their own size": MESSAGES + NATURAL + " il = Shape(i) part = Slice(m, flat, il)"
    + PUT.replace("m)", "part)"),
    "picked by rows": MESSAGES.replace("Gather<axis = 0>(h, s)", "GatherND(h, sc) ").replace(
        "hs =", "sc = Unsqueeze(s, last) hs ="
    ) + LITERAL + PUT,
    "into channels": MESSAGES + LITERAL + PUT.replace("r =", "t =").replace("(z", "(h") + " r = Tanh(t)",
}  # fmt: skip


@pytest.mark.parametrize("name", BODIES)
def test_copies_and_multiples_go_through_the_sums(name: str) -> None:
    # Put into channels, those of both layers are one space, and of twice a number Tanh makes another.
    assert widths(condensed(network(BODIES[name]))) == ([5] if name == "into channels" else [4, 4])


def test_sums_that_do_not_start_at_zero_have_no_multiples() -> None:
    body = MESSAGES + LITERAL.replace("none", "half") + PUT
    assert widths(condensed(network(body, half=np.array(0.5, np.float32)))) == [4, 5]


CUT = (
    AROUND
    + """ to = Concat<axis = 0>(n, six) z = Expand(none, to) some = Slice(d, from, until) ds = Shape(some)
    il = Concat<axis = 0>(ds, six) few = Unsqueeze(some, last) i = Expand(few, il) il2 = Shape(i)"""
)


@pytest.mark.parametrize(
    ("cut", "part"), [(([0], [4]), "Slice(m, flat, il2)"), (([1], [2**62]), "Slice(m, lower, ms)")]
)
def test_messages_that_are_really_cut(cut: tuple[list[int], list[int]], part: str) -> None:
    """Before and behind: what is put is not what was there before."""
    body = MESSAGES + CUT + f" part = {part}" + PUT.replace("m)", "part)")
    numbers = {"from": np.array(cut[0]), "until": np.array(cut[1]), "lower": np.array([1, 0])}
    assert widths(condensed(network(body, **numbers)))[0] == 4


BATCHES = {
    "by elements": """to = Concat<axis = 0>(n, seven, six) z = ConstantOfShape(to) il = Concat<axis = 0>(n, minus, six)
        ones = ConstantOfShape<value = int64[1] {1}>(three) least = Mul(ones, minus) open = Equal(il, least)
        ends = Where(open, ones, il) i = Expand(column, ends) is = Shape(i) part = Slice(m, flat3, is)
        r = ScatterElements<axis = 1, reduction = "add">(z, i, part)""",
    "by rows": """to = Concat<axis = 0>(n, seven, six) z0 = Expand(none, to) z = Transpose<perm = [1, 0, 2]>(z0)
        u1 = Transpose<perm = [1, 0, 2]>(m) r0 = ScatterND<reduction = "add">(z, rows, u1)
        r = Transpose<perm = [1, 0, 2]>(r0)""",
}


@pytest.mark.parametrize("name", BATCHES)
def test_meshes_of_a_batch(name: str) -> None:
    """One mesh, with an index that is stored; as PyTorch writes scatter_add and index_add along the second axis."""
    text = """<ir_version: 9, opset_import: ["" : 18]> g (float[n, 7, 3] x) => (float[n, 7, 2] y) {
        xs = Shape(x) n = Slice(xs, zero, one) a = MatMul(x, w) h = Relu(a) hs = Gather<axis = 1>(h, s)
        u = MatMul(hs, v) m = Relu(u) """
    proto = onnx.parser.parse_model(text + BATCHES[name] + " y = MatMul(r, o) }")
    rng = np.random.default_rng(3)
    at = rng.integers(0, ROWS, (2, EDGES))
    every = {"w": redundant((3, 6), 0), "v": redundant((6, 6), 1), "o": rng.standard_normal((6, 2)).astype(np.float32)}
    every |= {"none": np.array(0, np.float32), "s": at[0], "column": at[1][None, :, None], "rows": at[1][:, None]}
    numbers = {"zero": [0], "one": [1], "three": [3], "six": [6], "seven": [ROWS], "minus": [-1], "flat3": [0, 0, 0]}
    every |= {k: np.array(v) for k, v in numbers.items()}
    read = {n for node in proto.graph.node for n in node.input}
    proto.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in every.items() if k in read)
    found = condense(proto, threads=1)
    assert widths(found.report) == [4, 4]
    for count in (1, 4):
        given = {"x": rng.standard_normal((count, ROWS, 3)).astype(np.float32)}
        for one, other in zip(outputs(proto, given), outputs(found.model, given), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reduction", ["max", "min", "mul"])
def test_what_is_not_added_up_has_to_be_equal(reduction: str) -> None:
    body = MESSAGES + LITERAL + PUT.replace("add", reduction)
    assert widths(condensed(network(body))) == [4, 5]


def test_a_number_added_to_a_channel_does_not_pass_a_sum() -> None:
    """It would be added as often as there are messages."""
    shifted = redundant((1, 6), 2)[0]
    shifted[4] += 1.0
    linear = MESSAGES.replace("m = Relu(c)", "m = Identity(c)")
    assert widths(condensed(network(linear + LITERAL + PUT, b=shifted))) == [4, 5]
    assert widths(condensed(network(linear + " r = Identity(m)", b=shifted))) == [4, 4]


def fixed(**stored: Array) -> onnx.ModelProto:
    """A network with as many rows and messages as it is, by stored numbers."""
    text = HEAD.replace("int64[2, m]", f"int64[2, {ROWS}]").replace("[n, 3]", "[7, 3]").replace("[n, 2]", "[7, 2]")
    proto = network("hs = Gather<axis = 0>(h, s) u = MatMul(hs, v) m = Relu(u)" + PUT, **stored)
    head = onnx.parser.parse_model(text + " y = MatMul(x, x) }").graph
    del proto.graph.input[:], proto.graph.output[:]
    proto.graph.input.extend(head.input)
    proto.graph.output.extend(head.output)
    return proto


@pytest.mark.parametrize("start", [0.0, 0.5])
def test_stored_numbers_and_a_stored_index(start: float) -> None:
    proto = fixed(z=np.full((ROWS, 6), start, np.float32), i=STORED)
    found = condense(proto, threads=1)
    assert widths(found.report) == [4, 5 if start else 4]
    given = {k: v[:, :ROWS] for k, v in feed(1).items()}
    for one, other in zip(outputs(proto, given), outputs(found.model, given), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_a_stored_index_of_one_row() -> None:
    """What is put is the first row of the messages."""
    proto = fixed(z=np.zeros((ROWS, 6), np.float32), i=STORED[:1])
    node = next(n for n in proto.graph.node if n.op_type == "ScatterElements")
    at = list(proto.graph.node).index(node)
    node.input[2] = "part"
    proto.graph.node.insert(at, onnx.helper.make_node("Slice", ["m", "from", "until"], ["part"]))
    for name, value in {"from": [0], "until": [1]}.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    assert widths(condense(proto, threads=1).report) == [4, 4]


def half(reduction: str) -> onnx.ModelProto:
    """As `fixed`, in half precision between its input and its output."""
    proto = fixed(z=np.zeros((ROWS, 6), np.float32), i=STORED)
    graph = proto.graph
    for tensor in graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for node in graph.node:
        node.input[:] = ["half" if name == "x" else name for name in node.input]
        node.output[:] = ["wide" if name == "y" else name for name in node.output]
        if node.op_type == "ScatterElements":
            node.attribute[1].s = reduction.encode()
    graph.node.insert(0, onnx.helper.make_node("Cast", ["x"], ["half"], to=onnx.TensorProto.FLOAT16))
    graph.node.append(onnx.helper.make_node("Cast", ["wide"], ["y"], to=onnx.TensorProto.FLOAT))
    return proto


def test_half_precision_shrinks() -> None:
    proto = half("none")
    given = {k: v[:, :ROWS] for k, v in feed(1).items()}
    found = condense(proto, threads=1)
    assert widths(found.report)[1] == 4
    one, other = (outputs(made, given)[0] for made in (proto, found.model))
    np.testing.assert_allclose(one, other, rtol=0, atol=0.05 * np.abs(one).max())


def test_sums_of_half_precision_stay_as_they_are_written() -> None:
    """ONNX Runtime has none for its CPU: they run where all that is read can be cast, stored zeros and all."""
    plain = load(half("add"))
    assert scattered(plain, lambda n: find_spaces(n).labels) is plain


@pytest.mark.parametrize(("start", "last"), [(0.0, 4), (0.5, 5)])
def test_rows_put_into_stored_numbers_that_are_alike(start: float, last: int) -> None:
    proto = by_rows(np.full((ROWS, 6), start, np.float32))
    assert widths(condense(proto, threads=1).report) == [4, last]


def test_what_differs_from_channel_to_channel_stays() -> None:
    other = STORED.copy()
    other[2, 3] = (other[2, 3] + 1) % ROWS
    report = condense(fixed(z=np.zeros((ROWS, 6), np.float32), i=other), threads=1).report
    assert widths(report)[:2] == [4, 6]
    assert rows.STORED in {r.reason for r in report.refusals}


def by_rows(start: npt.NDArray[np.float32]) -> onnx.ModelProto:
    """As `fixed`, by ScatterND."""
    proto = fixed(z=start, i=STORED)
    node = next(n for n in proto.graph.node if n.op_type == "ScatterElements")
    node.op_type, node.input[1] = "ScatterND", "column"
    del node.attribute[0]
    proto.graph.node.insert(len(proto.graph.node) - 2, onnx.helper.make_node("Unsqueeze", ["d", "last"], ["column"]))
    proto.graph.initializer.append(numpy_helper.from_array(np.array([-1]), "last"))
    return proto


def test_numbers_stored_for_every_channel_go_with_it() -> None:
    """By rows into numbers that differ: copies of the messages are none of what comes out."""
    start = np.random.default_rng(5).standard_normal((ROWS, 6)).astype(np.float32)
    assert widths(condense(by_rows(start), threads=1).report) == [4, 6]
    start[:, 4] = start[:, 1]
    assert widths(condense(by_rows(start), threads=1).report) == [4, 5]


def test_an_index_of_its_own_for_every_channel_proves_nothing() -> None:
    """Positions worked out from the messages: their copies go to places of their own."""
    body = MESSAGES + NATURAL + " q = Cast<to = 7>(m) il = Mod(q, rest)" + PUT.replace("i,", "il,")
    assert widths(condensed(network(body, rest=np.array(ROWS)))) == [4, 6]


REFUSED: dict[str, tuple[str, str]] = {
    "along the channels": (MESSAGES + LITERAL + PUT.replace("axis = 0", "axis = 1"), rows.ALONG),
    "from the end": (MESSAGES + LITERAL + PUT.replace("axis = 0", "axis = -1"), rows.ALONG),
    "into an input": (MESSAGES + NATURAL + " pad = Concat<axis = 1>(x, x)" + PUT.replace("(z", "(pad"), FIXED),
    "into some of the channels": (
        MESSAGES + NATURAL + " wide = MatMul(x, w8) t = ScatterElements<axis = 0>(wide, i, m) r = MatMul(t, v8)",
        rows.PART,
    ),
    "picked along the channels": (
        MESSAGES + " at = Concat<axis = 0>(zero, zero) r0 = GatherND(m, at) r1 = Unsqueeze(r0, zero) r = Mul(m, r1)",
        rows.ALONG,
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_to_stay(name: str) -> None:
    body, reason = REFUSED[name]
    view = find_spaces(ready(network(body)))
    space = next(s for s in view.spaces if s.name.startswith(("u", "m", "c")))
    assert space.pinned.all()
    assert reason in {r.reason for r in view.refusals}


@pytest.mark.parametrize("op", ["GatherND", "ScatterND"])
def test_an_index_that_owns_channels_steers(op: str) -> None:
    rule = find("", op, 18)
    assert rule is not None
    x = Value("x", np.arange(1, 7).reshape(1, 6), (7, 6), None)
    index = Value("i", np.array([[7, 8]]), (5, 2), None)
    more = (x,) if op == "ScatterND" else ()
    call = Call(0, {}, (x, index, *more), (7, 6), np.arange)
    assert rule.guard(call) == pick.STEERED
    assert not rule.guard(dataclasses.replace(call, operands=(x, dataclasses.replace(index, labels=None), *more)))


@pytest.mark.parametrize("body", [MESSAGES + NATURAL + PUT, None], ids=["told by the messages", "stored"])
def test_what_is_free_stays_as_it_was_written(body: str | None) -> None:
    plain = load(by_rows(np.zeros((ROWS, 6), np.float32)) if body is None else network(body))
    assert scattered(plain, lambda n: find_spaces(n).labels) is plain


def test_nothing_is_written_anew_where_it_frees_nothing() -> None:
    """Messages that are an output as well."""
    proto = network(MESSAGES + LITERAL + PUT)
    proto.graph.output.append(onnx.helper.make_tensor_value_info("m", onnx.TensorProto.FLOAT, ["m", 6]))
    plain = load(proto)
    assert scattered(plain, lambda n: find_spaces(n).labels) is plain


REPEATED = {
    "a number of the rows": "top = ReduceMax<keepdims = 1>(x, last) hs = Shape(h) z = Expand(top, hs) r = Add(h, z)",
    "one number": "f = Cast<to = 1>(one) hs = Shape(h) z = Expand(f, hs) r = Sub(h, z)",
    "stored": "hs = Shape(h) z = Expand(half, hs) r = Mul(h, z)",
    "laid out": "hs = Shape(h) z = ConstantOfShape(hs) p = Equal(h, z) r = Where(p, z, h)",
}


@pytest.mark.parametrize("name", REPEATED)
def test_what_is_repeated_as_often_as_there_are_channels(name: str) -> None:
    report = condensed(network(REPEATED[name] + " unused = Identity(s)", half=np.array(0.5, np.float32)))
    # What is added makes a multiple none.
    assert widths(report) == [5 if "number" in name or name == "laid out" else 4]
