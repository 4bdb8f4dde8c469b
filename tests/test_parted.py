"""Grids of channels that are taken apart while they are one line: the same elements, and only where they may be."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from attention_nets import GATHERED, HEAD, INTO, LISTS, NUMBERS, F, assert_bits, seen
from builders import Array, outputs, text_model
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from onnx_condense.network.model import Network, load
from onnx_condense.network.parted import parted
from onnx_condense.plan import IntArray
from onnx_condense.spaces import find_spaces


def told() -> Callable[[Network], Mapping[str, IntArray]]:
    """Labels that hold all channels at first, and none after."""
    numbers = itertools.count()

    def labels(found: Network) -> Mapping[str, IntArray]:
        number = next(numbers)
        return {name: np.full(2, number) for name in (*found.inputs, *found.producers)}

    return labels


REFUSED: dict[str, str] = {
    "read whole": GATHERED + "y = Relu(u)",
    "two positions": "y = Gather<axis = 0>(u, two2)",
    "several positions": "y = Slice(u, k1, k3)",
    "with a step": "y = Slice(u, m1, k0, k0, m1)",
    "backwards, which is nothing": "y = Slice(u, k0, k1, k0, m1)",
    "parts of other sizes": "y, a = Split<axis = 0>(u, k12)",
    "at a place that is computed": "y = Gather<axis = 0>(u, where)",
    "along another axis too": "y = Gather<axis = 1>(u, i0)",
    "as positions": "w0 = Cast<to = 7>(u) y = Gather<axis = 0>(x, w0)",
    "to a size that is computed": "sx = Shape(x) sg = Concat<axis = 0>(sx, where1) y = Reshape(u, sg)",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_reads_more_than_single_positions(name: str) -> None:
    text = f"""{HEAD} g (float[B,T,24] x, int64 where, int64[1] where1) => (float y) {{
        g = Reshape(x, grid) u = Transpose<perm = [2, 0, 3, 1, 4]>(g) {REFUSED[name]} }}"""
    stored = NUMBERS | {"grid": np.array(LISTS["grid"]), "two2": np.array([0, 1]), "k12": np.array([1, 2])}
    read = {n for node in onnx.parser.parse_model(text).graph.node for n in node.input}
    given_one = load(text_model(text, {k: v for k, v in stored.items() if k in read}))
    assert parted(given_one, told()) is given_one


def test_what_is_seen_outside_or_inside_a_body() -> None:
    text = f"""{HEAD} g (float[B,T,24] x, bool c) => (float y) {{
        g = Reshape(x, grid) u = Transpose<perm = [2, 0, 3, 1, 4]>(g) y = Gather<axis = 0>(u, i0) }}"""
    proto = text_model(text, {"grid": np.array(LISTS["grid"]), "i0": np.array(0)})
    assert parted(load(proto), told()) is not load(proto)
    for name in ("g", "u"):
        one = onnx.ModelProto()
        one.CopyFrom(proto)
        given_one = load(seen(one, name, 5))
        assert parted(given_one, told()) is given_one
    body = helper.make_graph([helper.make_node("Relu", ["u"], ["r"])], "b", [], [onnx.ValueInfoProto(name="r")])
    proto.graph.node.append(helper.make_node("If", ["c"], ["z"], then_branch=body, else_branch=body))
    given_one = load(seen(proto, "z", 5))
    assert parted(given_one, told()) is given_one


def test_positions_are_no_channels() -> None:
    text = f"""{HEAD} g (float[B,6,24] x) => (float[B,3,24] y) {{
        g = Reshape(x, at) y = Gather<axis = 1>(g, i0) }}"""
    given_one = load(text_model(text, {"at": np.array([0, 2, 3, 24]), "i0": np.array(0)}))
    assert parted(given_one, told()) is given_one


def test_a_grid_that_can_go_as_a_whole_stays_one() -> None:
    text = f"""{HEAD} g (float[B,T,{INTO}] x) => (float[B,T,4] y) {{
        l = MatMul(x, w) g = Reshape(l, at) a = Gather<axis = 2>(g, i0) b = Gather<axis = 2>(g, i1)
        c = Sigmoid(b) d = Mul(a, c) y = MatMul(d, w_out) }}"""
    rng = np.random.default_rng(0)
    stored = {"w": rng.standard_normal((INTO, 16)).astype(F), "w_out": rng.standard_normal((8, 4)).astype(F)}
    given_one = load(text_model(text, stored | {"at": np.array([0, 0, 2, 8]), "i0": np.array(0), "i1": np.array(1)}))
    assert parted(given_one, lambda found: find_spaces(found).labels) is given_one


class Writer:
    """Puts together nodes that move a tensor with a line of 24 channels."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw, self.opset = draw, draw(st.sampled_from([11, 13, 17]))
        self.nodes: list[onnx.NodeProto] = []
        self.stored: dict[str, Array] = {}

    def add(self, op: str, inputs: Sequence[str], *made: str, **attributes: Any) -> None:
        """One more node."""
        self.nodes.append(helper.make_node(op, inputs, made, **attributes))

    def number(self, value: object) -> str:
        """A stored number or list."""
        name = f"n{len(self.stored)}"
        self.stored[name] = np.array(value, np.int64)
        return name

    def axes(self, op: str, x: str, y: str, axes: Sequence[int]) -> None:
        """A Squeeze or an Unsqueeze."""
        if self.opset < 13:
            self.add(op, [x], y, axes=axes)
        else:
            self.add(op, [x, self.number(axes)], y)

    def laid_out(self, parts: Sequence[int]) -> int:
        """A Reshape of x [B, 5, 24]; how many axes come before the parts."""
        front = self.draw(st.sampled_from([[0, 0], [-1, 5], [-1], [0, -1], "both", "last"]))
        if isinstance(front, list):
            self.add("Reshape", ["x", self.number([*front, *parts])], "t0")
            return len(front)
        self.add("Shape", ["x"], "s")
        self.add("Gather", ["s", self.number([0, 1] if front == "both" else [1])], "b", axis=0)
        self.add("Concat", ["b", self.number([*([-1] if front == "last" else []), *parts])], "at", axis=0)
        self.add("Reshape", ["x", "at"], "t0")
        return 2

    def moved(self, i: int, rank: int, axis: int) -> tuple[int, int]:
        """From ti to the next one; the rank, and where an axis comes to lie."""
        op, x, y = self.draw(st.sampled_from(["Transpose", "Unsqueeze", "Squeeze", "Identity"])), f"t{i}", f"t{i + 1}"
        if op == "Transpose":
            order = list(self.draw(st.permutations(range(rank))))
            self.add(op, [x], y, perm=order)
            return rank, order.index(axis)
        if op == "Identity":
            self.add(op, [x], y)
            return rank, axis
        place = self.draw(st.integers(0, rank))
        self.axes("Unsqueeze", x, y if op == "Unsqueeze" else f"w{i}", [place])
        if op == "Unsqueeze":
            return rank + 1, axis + (place <= axis)
        self.axes("Squeeze", f"w{i}", y, [place])
        return rank, axis

    def picked(self, i: int, x: str, axis: int, count: int) -> list[str]:
        """Nodes that take one position, or all, one by one; their results."""
        op = self.draw(st.sampled_from(["Gather", "List", "Slice", "Split"]))
        at, made = self.draw(st.integers(-count, count - 1)), [f"y{i}"]
        if op == "Split":
            made += [f"y{i}_{j}" for j in range(1, count)]
            self.add(op, [x], *made, axis=axis)
        elif op == "Slice":
            ends = 2**63 - 1 if at == -1 else at + 1
            self.add(op, [x, *map(self.number, ([at], [ends], [axis]))], *made)
        else:
            self.add("Gather", [x, self.number(at if op == "Gather" else [at])], *made, axis=axis)
        return made


@st.composite
def grids(draw: st.DrawFn) -> onnx.ModelProto:
    """A line of 24 channels that is laid out, moved, and taken apart along one axis."""
    writer, parts = Writer(draw), list(draw(st.permutations([2, 3, 4])))
    at, moves = draw(st.integers(0, 1)), draw(st.integers(0, 3))
    before = writer.laid_out(parts)
    rank, axis = before + 3, before + at
    for i in range(moves):
        rank, axis = writer.moved(i, rank, axis)
    made = [y for i in range(draw(st.integers(1, 4))) for y in writer.picked(i, f"t{moves}", axis, parts[at])]
    kind, tensors = onnx.TensorProto.FLOAT, [numpy_helper.from_array(v, k) for k, v in writer.stored.items()]
    lists = {k for k, v in writer.stored.items() if v.ndim}
    ranks = {n.output[0]: rank - (n.input[1] not in lists) for n in writer.nodes if n.op_type == "Gather"}
    outs = [helper.make_tensor_value_info(y, kind, [None] * ranks.get(y, rank)) for y in made]
    x = helper.make_tensor_value_info("x", kind, ["B", 5, 24])
    graph = helper.make_graph(writer.nodes, "g", [x], outs, tensors)
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", writer.opset)])


@settings(max_examples=150, deadline=None)
@given(grids())
def test_every_grid_that_is_taken_apart(proto: onnx.ModelProto) -> None:
    found = parted(load(proto), told())
    assert "Split" in {node.op for node in found.nodes}
    assert "t0" not in found.producers
    onnx.checker.check_model(found.proto, full_check=True)
    assert_bits(proto, found.proto)


@pytest.mark.parametrize("zero", [0, 1])
@pytest.mark.parametrize("front", ["b, k0", "k0, n", "b, n", "b, k5"])
def test_lists_that_copy_sizes_or_name_none(front: str, zero: int) -> None:
    """A size that is left open can't follow from the others where one of these is 0."""
    tokens = {"b, k5": "5"}.get(front, "T")
    text = f"""{HEAD} g (float[B,{tokens},24] x) => (float[b,h,t,s] y) {{ sx = Shape(x) b = Gather<axis = 0>(sx, k0)
        n = Gather<axis = 0>(sx, k1) at = Concat<axis = 0>({front}, k3, k2, k4) g = Reshape<allowzero = {zero}>(x, at)
        u = Transpose<perm = [2, 0, 3, 1, 4]>(g) y = Gather<axis = 0>(u, i0) }}"""
    stored = NUMBERS | {"k5": np.array([5])}
    read = {n for node in onnx.parser.parse_model(text).graph.node for n in node.input}
    proto = text_model(text, {k: v for k, v in stored.items() if k in read})
    given_one = load(proto)
    found = parted(given_one, told())
    assert found is not given_one
    shapes = {"b, n": [(2, 3), (0, 3)], "b, k5": [(2, 5), (0, 5)]}.get(front, [(0, 3), (2, 0)])
    if not zero:
        shapes += {"b, k0": [(2, 3)], "k0, n": [(2, 3)]}.get(front, [])
    # What a list of nothing asks for without `allowzero` is the operand's size; with it, nothing.
    fits = [
        s for s in shapes if not zero or all(p != "k0" or n == 0 for p, n in zip(front.split(", "), s, strict=True))
    ]
    for rows in fits:
        x = np.random.default_rng(0).standard_normal((*rows, 24)).astype(F)
        np.testing.assert_array_equal(outputs(found.proto, {"x": x})[0], outputs(proto, {"x": x})[0])
