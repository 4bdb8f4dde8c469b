"""Concat, Split, Slice, Gather, Tile, Expand, pixels as channels: labels go where ONNX Runtime puts the elements.

The elements of an operand are its labels as numbers, so the result's must be the result's labels; and what is left of
an operand, with the numbers that follow, must give what is left of the result.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from onnx_condense.network.known import Known, Size
from onnx_condense.network.shapes import Shape
from onnx_condense.ops import Call, Effect, Law, OpRule, Value, find, join, layout, pick
from onnx_condense.plan import Attribute, IndexUse, IntArray, Operand, SizeUse, SplitUse
from onnx_condense.runtime import Runtime, run

Array = npt.NDArray[Any]
FAR = 2**63 - 1
F = np.float32


@dataclasses.dataclass(frozen=True)
class Case:
    """One node whose first operand has channels on one axis; the operands behind it are stored (None: left out)."""

    op: str
    operands: tuple[Array | None, ...] = ()
    attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    shape: tuple[int, ...] = (2, 6, 4, 3)
    axis: int = 1
    opset: int = 18
    results: int = 1

    @property
    def rule(self) -> OpRule:
        """The record of the op."""
        rule = find("", self.op, self.opset)
        assert rule is not None
        return rule

    def labels(self) -> IntArray:
        """One label per position of the axis."""
        return np.arange(1, self.shape[self.axis] + 1).reshape([-1 if a == self.axis else 1 for a in range(self.rank)])

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def run(self, x: Array) -> list[Array]:
        """The node by ONNX Runtime."""
        feed = {"x": x.astype(F)} | {f"i{i}": v for i, v in enumerate(self.operands) if v is not None}
        names = ["x", *("" if v is None else f"i{i}" for i, v in enumerate(self.operands))]
        ends = [f"y{i}" for i in range(self.results)]
        node = helper.make_node(self.op, names, ends, **self.attributes)
        inputs = [
            helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for k, v in feed.items()
        ]
        graph = helper.make_graph([node], "g", inputs, [onnx.ValueInfoProto(name=e) for e in ends])
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)
        return run(Runtime(threads=1).session(proto, optimize=False), feed)

    def call(self, labels: IntArray, result: Shape | None) -> Call:
        """The node as its rule sees it."""
        values = (None if v is None else Value("c", None, v.shape, v) for v in self.operands)
        x = Value("x", labels, self.shape, None)
        return Call(3, self.attributes, (x, *values), result, np.arange, results=self.results)

    def trace(self, result: Shape | None) -> Effect:
        """What the rule answers."""
        call = self.call(self.labels(), result)
        assert not self.rule.guard(call)
        return self.rule.trace(call)

    def without(self, effect: Effect, gone: Sequence[int]) -> Case:
        """The node when channels are gone: numbers follow as their uses say."""
        operands, attributes = list(self.operands), dict(self.attributes)
        for use in effect.sizes:
            where = use.operand if not isinstance(use, SplitUse) else use.where
            new = _followed(use, gone, operands, attributes)
            if isinstance(where, Attribute):
                attributes[where.name] = [int(n) for n in new]
            else:
                operands += [None] * (where.position - len(operands))
                operands[where.position - 1] = new
            if isinstance(use, SplitUse):
                attributes.pop(use.without, None)
        kept = self.shape[self.axis] - len(gone)
        shape = tuple(kept if a == self.axis else n for a, n in enumerate(self.shape))
        return dataclasses.replace(self, operands=tuple(operands), attributes=attributes, shape=shape)


def _followed(
    use: SizeUse | SplitUse | IndexUse, gone: Sequence[int], operands: Sequence[Array | None], attributes: Any
) -> Array:
    if isinstance(use, SplitUse):
        return np.array([sum(label not in gone for label in part.tolist()) for part in use.labels])
    if isinstance(use.operand, Attribute):
        old = np.array(attributes[use.operand.name])
    else:
        stored = operands[use.operand.position - 1]
        assert stored is not None
        old = stored.copy()
    if isinstance(use, SizeUse):
        count = sum(label not in gone for label in use.labels.tolist())
        old[use.index] = count * use.sign if count or use.sign > 0 else FAR
        return old
    line = use.labels.tolist()
    left = [label for label in line if label not in gone]
    return np.array([left.index(line[i]) for i in old.tolist() if line[i] not in gone], old.dtype)


def along(array: Array, labels: IntArray, gone: Sequence[int]) -> Array:
    """What is left of a tensor."""
    for axis, n in enumerate(labels.shape):
        if n > 1:
            array = array.take([i for i, label in enumerate(labels.reshape(-1).tolist()) if label not in gone], axis)
    return array


def outputs_of(effect: Effect, count: int) -> list[IntArray]:
    """Labels per output, none of them missing."""
    found = effect.outputs or (effect.output,) * count
    assert len(found) == count
    return [labels for labels in found if labels is not None]


def classes(effect: Effect, size: int) -> Array:
    """The smallest label that every label is tied to."""
    one = np.arange(size + 1)
    for _ in range(size):
        for a, b in effect.ties:
            for i, j in zip(a.reshape(-1).tolist(), b.reshape(-1).tolist(), strict=True):
                one[one == max(one[i], one[j])] = min(one[i], one[j])
    return one


def follows(case: Case, gone: Sequence[int] = ()) -> Effect:
    """The labels are where the elements are, before and after channels go."""
    x = np.broadcast_to(case.labels(), case.shape)
    wide = case.run(x)
    effect = case.trace(wide[0].shape)
    assert not effect.pins
    found = outputs_of(effect, case.results)
    one = classes(effect, case.labels().size)
    for labels, y in zip(found, wide, strict=True):
        np.testing.assert_array_equal(np.broadcast_to(one[labels], y.shape), one[y.astype(np.int64)])
    whole = [i for i in range(1, len(one)) if one[i] in gone]
    if any(np.isin(one[labels], gone).all() for labels in (case.labels(), *found)):
        return effect
    marks = np.random.default_rng(0).permutation(x.size).reshape(case.shape)
    before = case.run(marks)
    left = along(marks, case.labels(), whole)
    after = case.without(effect, whole).run(left)
    for labels, y, z in zip(found, before, after, strict=True):
        np.testing.assert_array_equal(z, along(y, one[labels], gone))
    return effect


def ints(*numbers: int) -> Array:
    return np.array(numbers, np.int64)


def one_pin(effect: Effect) -> str:
    """The only reason of an effect that passes nothing."""
    assert effect.output is None
    assert not effect.outputs
    (why,) = {why for _, why in effect.pins}
    return why


CASES = {
    "split": Case("Split", (ints(2, 3, 1),), {"axis": 1}, opset=13, results=3),
    "split 18": Case("Split", (), {"axis": -3, "num_outputs": 2}, results=2),
    "split unevenly": Case("Split", (), {"axis": 1, "num_outputs": 4}, (2, 7, 3), results=4),
    "split 13": Case("Split", (), {"axis": 1}, opset=13, results=3),
    "split 11": Case("Split", (), {"axis": 1, "split": [1, 5]}, opset=11, results=2),
    "split 2": Case("Split", (), {"axis": 1}, opset=2, results=2),
    "split rows": Case("Split", (ints(1, 3),), {"axis": 2}, results=2),
    "split the first axis": Case("Split", (ints(1, 2),), {}, (3, 4), axis=0, results=2),
    "slice 9": Case("Slice", (), {"starts": [1, 0], "ends": [-1, 2], "axes": [1, 3]}, opset=9),
    "slice 9 without axes": Case("Slice", (), {"starts": [0, 2], "ends": [FAR, 5]}, opset=9),
    "slice without axes": Case("Slice", (ints(0, -2), ints(2, FAR))),
    "slice rows": Case("Slice", (ints(-1), ints(-FAR), ints(2), ints(-2))),
    "slice all": Case("Slice", (ints(-6), ints(6), ints(1), ints(1))),
    "slice int32": Case("Slice", (np.array([1], np.int32), np.array([-2], np.int32), np.array([1], np.int32))),
    "pick": Case("Gather", (ints(3, 0, -1, 3),), {"axis": 1}),
    "pick int32": Case("Gather", (np.array([5, 1], np.int32),), {"axis": -3}),
    "pick rows": Case("Gather", (ints(3, 0, 3),), {"axis": 2}),
    "pick a row": Case("Gather", (np.array(1),), {"axis": 2}),
    "pick an image": Case("Gather", (np.array(0),)),
    "pick a table of rows": Case("Gather", (np.array([[0, 1], [2, 0]]),), {"axis": -1}),
    "depth to space": Case("DepthToSpace", (), {"blocksize": 2}, (2, 12, 2, 3)),
    "depth to space, columns": Case("DepthToSpace", (), {"blocksize": 2, "mode": "CRD"}, (2, 12, 2, 3), opset=13),
    "depth to space 1": Case("DepthToSpace", (), {"blocksize": 3}, (1, 27, 2, 2), opset=7),
    "space to depth": Case("SpaceToDepth", (), {"blocksize": 2}, (2, 5, 4, 6)),
    "tile": Case("Tile", (ints(1, 3, 2, 1),)),
    "tile rows": Case("Tile", (ints(2, 1, 1, 2),)),
    "expand": Case("Expand", (ints(2, 6, 4, 3),), {}, (2, 6, 1, 1)),
    "expand by one": Case("Expand", (ints(1, 1, 5),), {}, (2, 6, 1, 1)),
    "expand ahead": Case("Expand", (ints(3, 2, 6),), {}, (2, 6)),
    "expand behind": Case("Expand", (ints(5),), {}, (6, 1), axis=0),
    "groups": Case("Reshape", (ints(2, 2, 3, 4, 3),)),
    "groups of an unknown number": Case("Reshape", (ints(2, -1, 3, 4, 3),)),
    "groups of the rest": Case("Reshape", (ints(0, 3, -1, 4, 3),)),
    "three axes": Case("Reshape", (ints(4, 3, 2, 3),), {}, (4, 18)),
    "groups with pixels": Case("Reshape", (ints(2, 3, 24),)),
    "groups of tokens": Case("Reshape", (ints(8, 3),), {}, (4, 6)),
}  # fmt: skip


@pytest.mark.parametrize("gone", [(), (1,), (2, 3)])
@pytest.mark.parametrize("name", CASES)
def test_labels_are_where_elements_are(name: str, gone: Sequence[int]) -> None:
    case = CASES[name] if name != "groups of tokens" else dataclasses.replace(CASES[name], axis=1)
    follows(case, gone)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_slice(data: st.DataObject) -> None:
    number = st.one_of(st.integers(-9, 9), st.sampled_from([FAR, -FAR]))
    starts, ends = data.draw(number), data.draw(number)
    size = data.draw(st.integers(2, 6))
    case = Case("Slice", (ints(starts), ints(ends), ints(1)), {}, (1, size, 2))
    if data.draw(st.booleans()):
        case = Case("Slice", (), {"starts": [starts], "ends": [ends], "axes": [1]}, (1, size, 2), opset=9)
    kept = np.arange(size)[slice(starts, ends)]
    if not kept.size:
        assert one_pin(case.trace((1, 0, 2))) == pick.EMPTY
        return
    follows(case, data.draw(st.lists(st.integers(1, size), unique=True, max_size=size - 1)))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_picks(data: st.DataObject) -> None:
    size = data.draw(st.integers(2, 6))
    at = data.draw(st.lists(st.integers(-size, size - 1), min_size=1, max_size=8))
    case = Case("Gather", (ints(*at),), {"axis": 1}, (1, size, 2))
    follows(case, data.draw(st.lists(st.integers(1, size), unique=True, max_size=size - 1)))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_groups(data: st.DataObject) -> None:
    """However a tensor is laid out: refused, or right."""
    shape = tuple(data.draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=3)))
    axis = data.draw(st.integers(0, len(shape) - 1))
    if shape[axis] == 1:
        return
    rest, to = int(np.prod(shape)), list[int]()
    while rest > 1:
        to.append(data.draw(st.sampled_from([n for n in range(2, rest + 1) if rest % n == 0])))
        rest //= to[-1]
    case = Case("Reshape", (ints(*to),), {}, shape, axis)
    if not case.trace(tuple(to)).pins:
        labels = list(range(1, shape[axis] + 1))
        follows(case, data.draw(st.lists(st.sampled_from(labels), unique=True, max_size=len(labels) - 1)))


def test_ties_make_groups_go_as_one() -> None:
    effect = follows(CASES["groups"])
    assert classes(effect, 6).tolist() == [0, 1, 2, 3, 1, 2, 3]
    assert [(use.index, use.labels.tolist()) for use in effect.sizes if isinstance(use, SizeUse)] == [(2, [1, 2, 3])]
    effect = follows(CASES["depth to space, columns"])
    assert classes(effect, 12).tolist() == [0, *[1] * 4, *[5] * 4, *[9] * 4]


# ---- concat ----


def joined(*operands: Value, axis: int = 1, result: Shape | None = ("N", 5, 4)) -> Effect:
    rule = find("", "Concat", 13)
    assert rule is not None
    return rule.trace(Call(3, {"axis": axis}, operands, result, np.arange))


def tensor(labels: Any, shape: Shape | None) -> Value:
    return Value("t", None if labels is None else np.array(labels, np.int64), shape, None)


def const(*shape: int) -> Value:
    return Value("c", None, shape, np.ones(shape, F))


TWO = tensor([[[1], [2]]], ("N", 2, 4))
THREE = tensor([[[3], [4], [5]]], ("N", 3, 4))
FREE = tensor([[[0]]], ("N", 3, 4))
SINGLE = tensor([[[7]]], ("N", 1, 4))


@pytest.mark.parametrize(
    ("operands", "line"),
    [
        ((TWO, THREE), [1, 2, 3, 4, 5]),
        ((THREE, TWO), [3, 4, 5, 1, 2]),
        ((TWO, FREE), [1, 2, 0, 0, 0]),
        ((const(1, 3, 4), TWO), [0, 0, 0, 1, 2]),
        ((SINGLE, TWO, TWO), [7, 1, 2, 1, 2]),
        ((SINGLE, tensor([[[0]]], ("N", 4, 4))), [7, 0, 0, 0, 0]),
    ],
)
@pytest.mark.parametrize("axis", [1, -2])
def test_joined_labels(operands: Sequence[Value], line: list[int], axis: int) -> None:
    effect = joined(*operands, axis=axis)
    assert not effect.pins
    assert not effect.ties
    assert effect.output is not None
    assert effect.output.tolist() == [[[n] for n in line]]


def test_joined_along_another_axis() -> None:
    other = tensor([[[8], [9]]], ("N", 2, 3))
    for axis in (0, 2, -1):
        effect = joined(TWO, other, axis=axis, result=("N", 2, 7))
        assert TWO.labels is not None
        np.testing.assert_array_equal(effect.output, TWO.labels)
        ((a, b),) = effect.ties
        assert np.stack([a, b]).reshape(2, -1).tolist() == [[1, 2], [8, 9]]
    for lone in (tensor([[[0]]], ("N", 2, 3)), const(1, 2, 3)):
        ((_, b),) = joined(lone, TWO, axis=2, result=("N", 2, 7)).ties
        assert not b.any()
    assert joined(FREE, FREE, axis=2, result=("N", 3, 8)) == Effect(None)
    assert joined(TWO, axis=2, result=("N", 2, 4)).ties == ()
    assert len(joined(TWO, TWO, axis=2, result=("N", 2, 8)).ties) == 1


CONCATS: dict[str, tuple[tuple[Value, ...], int, Shape | None, str]] = {
    "unknown size": ((TWO, tensor([[[0]]], ("N", "C", 4))), 1, ("N", None, 4), join.UNKNOWN_SIZE),
    "wrong size": ((TWO, THREE), 1, ("N", 6, 4), join.UNKNOWN_SIZE),
    "unknown operand": ((TWO, tensor([[[0]]], None)), 1, ("N", 5, 4), join.UNKNOWN_SIZE),
    "hidden operand": ((TWO, tensor(None, None)), 1, ("N", 5, 4), layout.UNKNOWN_RANK),
    "unknown result": ((TWO, THREE), 1, None, layout.UNKNOWN_RANK),
    "other rank": ((TWO, THREE), 1, ("N", 5), layout.UNKNOWN_RANK),
    "ranks differ": ((TWO, tensor([[0]], ("N", 3))), 1, ("N", 5, 4), layout.UNKNOWN_RANK),
    "axis beyond": ((TWO, THREE), 3, ("N", 5, 4), layout.UNKNOWN_RANK),
    "one label for rows": ((SINGLE, SINGLE), 2, ("N", 1, 8), join.ONE_LABEL),
    "one label for many": ((TWO, tensor([[[7]]], ("N", 3, 4))), 1, ("N", 5, 4), join.ONE_LABEL),
    "one label beside many": ((TWO, SINGLE), 2, ("N", 2, 8), join.ONE_LABEL),
    "other axes": ((TWO, tensor([[[8, 9]]], ("N", 2, 2))), 1, ("N", 4, 4), join.SPREAD),
    "two other axes": ((TWO, tensor([[[8, 9]]], ("N", 2, 2))), 0, ("N", 4, 4), join.SPREAD),
}


@pytest.mark.parametrize("name", CONCATS)
def test_joins_that_pin(name: str) -> None:
    operands, axis, result, why = CONCATS[name]
    effect = joined(*operands, axis=axis, result=result)
    assert one_pin(effect) == why
    assert {1, 2} <= {n for labels, _ in effect.pins for n in labels.reshape(-1).tolist()} or "rows" in name


# ---- reasons ----

SIX = np.arange(1, 7).reshape(1, 6, 1)
GRID = np.arange(1, 7).reshape(1, 2, 3)


def computed(*numbers: int | Size | None) -> Value:
    return Value("k", np.zeros(1, np.int64), (len(numbers),), None, numbers)


def unknown() -> Value:
    return Value("k", np.zeros(1, np.int64), (None,), None, None)


def listed(*numbers: int) -> Value:
    return Value("k", None, (len(numbers),), ints(*numbers), numbers)


def traced(
    op: str, *operands: Value | None, labels: IntArray = SIX, result: Shape | None = ("N", None, 4), **attributes: Any
) -> Effect:
    version = attributes.pop("version", 18)
    rule = find("", op, version)
    assert rule is not None
    x = Value("x", labels, ("N", *labels.shape[1:-1], 4), None)
    call = Call(3, attributes, (x, *operands), result, np.arange, results=attributes.pop("results", 1))
    return rule.trace(call)


OWN: Known = (Size("x", 1, 6),)
PINS: dict[str, tuple[Effect, str]] = {
    "split, computed": (traced("Split", computed(None, 4), axis=1, results=2), join.COMPUTED_PARTS),
    "split, other sum": (traced("Split", listed(2, 3), axis=1, results=2), join.MISFIT),
    "split, nothing": (traced("Split", listed(0, 6), axis=1, results=2), join.MISFIT),
    "split, other number": (traced("Split", listed(2, 4), axis=1, results=3), join.MISFIT),
    "split, hidden output": (traced("Split", axis=1, results=2, result=("N", 2, 4)), join.MISFIT),
    "split, unknown parts": (traced("Split", axis=1, results=2), join.MISFIT),
    "split, axis beyond": (traced("Split", axis=3, results=2), layout.UNKNOWN_RANK),
    "split, a grid": (
        traced("Split", listed(1, 2), axis=2, results=2, labels=GRID, result=("N", 2, 1)),
        layout.NOT_WHOLE,
    ),
    "slice, computed": (traced("Slice", listed(0, 0), computed(3, None), listed(1, 0)), pick.COMPUTED_CUT),
    "slice, unknown": (traced("Slice", listed(0), computed(None), listed(1)), pick.COMPUTED_CUT),
    "slice, not even its length": (traced("Slice", listed(0), unknown(), listed(1)), pick.COMPUTED_CUT),
    "slice, its own size": (traced("Slice", listed(0), computed(*OWN), listed(1)), pick.COMPUTED_CUT),
    "slice, step": (traced("Slice", listed(0), listed(6), listed(1), listed(2)), pick.STEPPED),
    "slice, unknown step": (traced("Slice", listed(0), listed(6), listed(1), computed(None)), pick.STEPPED),
    "slice, back": (traced("Slice", listed(5), listed(-FAR), listed(1), listed(-1)), pick.STEPPED),
    "slice, axes": (traced("Slice", listed(0), listed(1), computed(None)), layout.COMPUTED_AXES),
    "slice, no axes": (traced("Slice", unknown(), unknown()), layout.COMPUTED_AXES),
    "slice, a grid": (traced("Slice", listed(0), listed(1), listed(1), labels=GRID), layout.NOT_WHOLE),
    "pick, computed": (traced("Gather", computed(0, 1), axis=1), pick.PICKED),
    "pick, nothing": (traced("Gather", listed(), axis=1), pick.PICKED),
    "pick, table": (traced("Gather", Value("k", None, (1, 1), np.zeros((1, 1), np.int64)), axis=1), pick.PICKED),
    "pick, outside": (traced("Gather", listed(0, 6), axis=1), pick.OUTSIDE),
    "pick, far outside": (traced("Gather", listed(-7), axis=1), pick.OUTSIDE),
    "pick, axis beyond": (traced("Gather", listed(0), axis=3), layout.UNKNOWN_RANK),
    "pick, unknown rank": (traced("Gather", Value("k", None, None, None), axis=2), layout.UNKNOWN_RANK),
    "pick, a grid": (traced("Gather", listed(0), axis=1, labels=GRID), layout.NOT_WHOLE),
    "tile, unknown": (traced("Tile", computed(1, None, 1)), join.REPEATED),
    "tile, not even its length": (traced("Tile", unknown()), join.REPEATED),
    "tile, nothing": (traced("Tile", listed(1, 0, 1)), join.REPEATED),
    "tile, other rank": (traced("Tile", listed(1, 1)), join.REPEATED),
    "expand, computed": (traced("Expand", computed(None, 6, 4)), layout.COMPUTED_WIDTH),
    "expand, unknown": (traced("Expand", computed(1, None, 4)), join.EXPANDED),
    "expand, its own size": (traced("Expand", computed(1, *OWN, 4)), join.EXPANDED),
    "expand, not even its length": (traced("Expand", unknown()), join.EXPANDED),
    "expand, other size": (traced("Expand", listed(1, 5, 4)), join.EXPANDED),
    "depth, indivisible": (traced("DepthToSpace", blocksize=2, labels=SIX[..., None]), join.BLOCKS),
    "depth, other axis": (traced("DepthToSpace", blocksize=2, labels=SIX[None]), join.BLOCKS),
    "space, other axis": (traced("SpaceToDepth", blocksize=2, labels=SIX[None]), join.BLOCKS),
}


@pytest.mark.parametrize("name", PINS)
def test_reasons(name: str) -> None:
    effect, why = PINS[name]
    assert one_pin(effect) == why


@pytest.mark.parametrize("op", ["Split", "Slice", "Gather", "Tile", "Expand"])
def test_operands_that_steer_may_own_no_channels(op: str) -> None:
    rule = find("", op, 18)
    assert rule is not None
    x, steer = Value("x", SIX, ("N", 6, 4), None), Value("k", np.array([1, 2]), (2,), None)
    assert rule.guard(Call(3, {}, (x, steer), None, np.arange)) == pick.STEERED
    assert not rule.guard(Call(3, {}, (x, computed(1)), None, np.arange))


def test_known_numbers_may_be_computed_where_none_changes() -> None:
    effect = traced("Slice", computed(0), computed(FAR), computed(1), computed(1), result=("N", 6, 4))
    np.testing.assert_array_equal(effect.output, SIX)
    assert not effect.sizes
    for free in (traced("Slice", unknown(), unknown(), listed(2), unknown()), traced("Gather", unknown(), axis=2)):
        np.testing.assert_array_equal(free.output, SIX)
    np.testing.assert_array_equal(traced("Tile", computed(None, 1, None)).output, SIX)
    np.testing.assert_array_equal(traced("Expand", computed(None, 1, None)).output, SIX)


@pytest.mark.parametrize("op", ["Split", "Slice", "Gather", "Tile", "Expand", "DepthToSpace", "SpaceToDepth"])
def test_one_label_stays_one(op: str) -> None:
    operands = {"Slice": (unknown(), unknown()), "Gather": (listed(0, 0),), "Tile": (unknown(),)}
    operands["Expand"] = (listed(2, 3, 4),)
    effect = traced(op, *operands.get(op, ()), labels=np.array([[[7]]]), axis=1)
    assert effect.output is not None
    assert effect.output.tolist() == [[[7]]]
    assert not effect.sizes


@pytest.mark.parametrize("op", ["Concat", "Split", "Slice", "Gather", "Tile", "Expand", "DepthToSpace", "SpaceToDepth"])
def test_nothing_is_known_of_tensors_without_rank(op: str) -> None:
    rule = find("", op, 18)
    assert rule is not None
    x = Value("x", None, None, None)
    assert rule.trace(Call(3, {"axis": 0}, (x, listed(1)), None, np.arange)).output is None


# ---- laws ----

SELECTIONS = {
    "split": True,
    "split rows": False,
    "slice without axes": False,
    "slice 9": False,
    "slice int32": True,
    "slice rows": False,
    "pick": True,
    "pick a row": False,
    "tile": False,
    "expand": False,
    "depth to space": False,
}


@pytest.mark.parametrize("name", SELECTIONS)
def test_what_only_selects(name: str) -> None:
    case = CASES[name]
    assert join.selects(case.op, case.call(case.labels(), None)) is SELECTIONS[name]


def test_more_that_only_selects() -> None:
    one = Case("Tile", (ints(1, 2, 1, 1),))
    assert join.selects("Tile", one.call(one.labels(), None))
    assert not join.selects("Tile", one.call(np.zeros((1, 1, 1, 1), np.int64), None))
    assert join.selects("Concat", Call(3, {"axis": 1}, (TWO, TWO), None, np.arange))
    assert not join.selects("Concat", Call(3, {"axis": 2}, (TWO, TWO), None, np.arange))
    lost = Call(3, {}, (Value("x", SIX, None, None), unknown(), unknown()), None, np.arange)
    assert not join.selects("Slice", lost)


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if c.rule.law is Law.MOVE])
def test_moves_keep_scale_and_offset(name: str) -> None:
    """f(r a + s) = r f(a) + s for numbers per channel, as they are where the labels say."""
    case = CASES[name]
    rng = np.random.default_rng(0)
    x = rng.standard_normal(case.shape)
    factor, shift = (rng.uniform(0.5, 2, case.labels().size + 1) for _ in "rs")
    plain = case.run(x)
    effect = case.trace(plain[0].shape)
    found, one = outputs_of(effect, case.results), classes(effect, case.labels().size)
    factor, shift = factor[one], shift[one]
    moved = case.run(factor[case.labels()] * x + shift[case.labels()])
    for labels, y, z in zip(found, plain, moved, strict=True):
        np.testing.assert_allclose(z, factor[labels] * y + shift[labels], rtol=1e-5, atol=1e-6)


def test_uses_name_their_places() -> None:
    effect = CASES["split 18"].trace((2, 3, 4, 3))
    assert [s.where for s in effect.sizes if isinstance(s, SplitUse)] == [Operand(3, 1)]
    effect = CASES["split 11"].trace((2, 1, 4, 3))
    assert [s.where for s in effect.sizes if isinstance(s, SplitUse)] == [Attribute(3, "split")]
