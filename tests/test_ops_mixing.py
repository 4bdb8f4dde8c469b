"""Ops that combine elements along an axis: channels pass on the others, and nothing passes where they lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import helper, numpy_helper

from onnx_condense.ops import Call, Effect, Value, find, mixing
from onnx_condense.ops.layout import COMPUTED_AXES
from onnx_condense.plan import IntArray, Operand
from onnx_condense.runtime import Runtime, run

Array = npt.NDArray[Any]
F = np.float32
SHAPE = (2, 4, 3, 5)
ALONG = ("Softmax", "LogSoftmax", "Hardmax")


def labels(axis: int, shape: tuple[int, ...] = SHAPE) -> IntArray:
    """One label per position of an axis."""
    return np.arange(1, shape[axis] + 1).reshape([-1 if a == axis else 1 for a in range(len(shape))])


def traced(
    op: str,
    x: IntArray | None,
    *more: Value | None,
    version: int = 17,
    domain: str = "",
    shape: tuple[int, ...] | None = SHAPE,
    **attributes: Any,
) -> Effect:
    """What the rule answers."""
    rule = find(domain, op, version)
    assert rule is not None
    call = Call(3, attributes, (Value("x", x, shape, None), *more), shape, np.arange)
    assert not rule.guard(call)
    return rule.trace(call)


def ran(op: str, x: Array, version: int, *more: Array, **attributes: Any) -> Array:
    """The op in ONNX Runtime."""
    value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, x.shape)
    stored = [numpy_helper.from_array(v, f"c{i}") for i, v in enumerate(more)]
    node = helper.make_node(op, ["x", *(t.name for t in stored)], ["y", *["i"] * (op == "TopK")], **attributes)
    graph = helper.make_graph([node], "g", [value], [onnx.ValueInfoProto(name="y")], stored)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)], ir_version=7)
    return run(Runtime(threads=1).session(proto, optimize=False), {"x": x})[0]


def separate(op: str, axis: int, version: int, attributes: Mapping[str, Any], more: Sequence[Array] = ()) -> bool:
    """Whether positions of an axis have nothing to do with each other: what one gives does not change another."""
    x = np.random.default_rng(0).standard_normal(SHAPE).astype(F)
    before = ran(op, x, version, *more, **attributes)
    if before.shape[axis] != SHAPE[axis]:
        return False
    for at in range(SHAPE[axis]):
        changed = x.copy()
        np.moveaxis(changed, axis, 0)[at, ..., 0] += 50
        after = ran(op, changed, version, *more, **attributes)
        if (np.delete(before, at, axis) != np.delete(after, at, axis)).any():
            return False
    return True


CASES = [
    *((op, version, {}) for op in ALONG for version in (11, 13)),
    *((op, version, {"axis": axis}) for op in ALONG for version in (12, 17) for axis in (0, 1, 2, 3)),
    *((op, 13, {"axis": axis}) for op in ALONG for axis in (-1, -2, -3)),
    *(("LpNormalization", 17, {"axis": axis}) for axis in (-1, 1, 2)),
    ("LpNormalization", 17, {}),
    ("LRN", 17, {"size": 3}),
    ("MeanVarianceNormalization", 13, {}),
    *(("MeanVarianceNormalization", 13, {"axes": axes}) for axes in ([2, 3], [1, -1])),
]


def check(effect: Effect, given: Any, reason: str) -> None:
    """All channels pass, or, where there is a reason, all of them stay."""
    if not reason:
        assert effect.output is given
        assert not effect.pins
        return
    assert effect.output is None
    ((pinned, why),) = effect.pins
    assert pinned is given
    assert why == reason


@pytest.mark.parametrize(("op", "version", "attributes"), CASES, ids=str)
@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_channels_pass_where_they_are_apart(op: str, version: int, attributes: dict[str, Any], axis: int) -> None:
    given = labels(axis)
    effect = traced(op, given, version=version, **attributes)
    check(effect, given, "" if separate(op, axis, version, attributes) else mixing.NORMALISED)
    assert not effect.linear
    assert not effect.constants


def stored(value: Array) -> Value:
    return Value("c", None, value.shape, value)


WITH_OPERANDS: dict[str, tuple[str, int, dict[str, Any], tuple[Array, ...]]] = {
    **{f"CumSum {a}": ("CumSum", 17, {"exclusive": 1}, (np.array(a),)) for a in (0, 1, 2, -1)},
    **{f"TopK {a}": ("TopK", 17, {"axis": a}, (np.array([2]),)) for a in (0, 1, 2, 3)},
    **{f"ArgMax {a}": ("ArgMax", 17, {"axis": a}, ()) for a in (0, 1, 2, -1)},
    "ArgMin": ("ArgMin", 17, {}, ()),
    **{f"layer {a}": ("LayerNormalization", 17, {"axis": a}, (np.ones(SHAPE[a:], F),)) for a in (1, 2, -1)},
    "layer, one scale": ("LayerNormalization", 17, {"axis": 2}, (np.ones(5, F), np.ones((1, 1, 3, 5), F))),
}


@pytest.mark.parametrize(("op", "version", "attributes", "more"), WITH_OPERANDS.values(), ids=WITH_OPERANDS)
@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_channels_pass_where_they_are_apart_from_what_is_told(
    op: str, version: int, attributes: dict[str, Any], more: tuple[Array, ...], axis: int
) -> None:
    given = labels(axis)
    effect = traced(op, given, *map(stored, more), version=version, **attributes)
    reason = mixing.NORMALISED if op == "LayerNormalization" else mixing.SORTED
    check(effect, given, "" if separate(op, axis, version, attributes, more) else reason)


def test_an_axis_that_is_searched_may_go() -> None:
    effect = traced("ArgMax", labels(1), shape=SHAPE, axis=2, keepdims=0)
    assert [why for _, why in effect.pins] == [mixing.UNKNOWN_RANK]  # the result is said to have four axes
    rule = find("", "ArgMax", 17)
    assert rule is not None
    call = Call(3, {"axis": 0, "keepdims": 0}, (Value("x", labels(1), SHAPE, None),), SHAPE[1:], np.arange)
    output = rule.trace(call).output
    assert output is not None
    assert output.shape == (4, 1, 1)


def test_an_axis_that_is_computed_is_not_known() -> None:
    number = Value("a", np.zeros(1, np.int64), (), None, (2,))
    assert traced("CumSum", labels(1), number).output is not None
    assert [why for _, why in traced("CumSum", labels(1), COMPUTED).pins if why != mixing.SORTED] == [COMPUTED_AXES]


def test_channels_that_say_how_many_stay() -> None:
    other = labels(2) + 10
    effect = traced("TopK", labels(1), Value("k", other, (1,), None), axis=3)
    assert effect.output is not None
    assert [pinned is other for pinned, _ in effect.pins] == [True]


@pytest.mark.parametrize(
    ("scale", "why"),
    [
        (stored(np.ones((4, 1, 1), F)), mixing.ACROSS),
        (stored(np.ones((2, 1, 3, 5), F)), mixing.ACROSS),
        (Value("v", np.zeros((1, 1), np.int64), (3, 5), None), mixing.PARAMETERS),
    ],
)
def test_a_scale_that_tells_channels_apart_or_is_computed_pins(scale: Value, why: str) -> None:
    given = labels(1)
    effect = traced("LayerNormalization", given, stored(np.ones((3, 5), F)), scale, axis=2)
    assert effect.output is None
    assert {reason for _, reason in effect.pins} == {why}
    assert effect.pins[0][0] is given


def test_one_label_for_everything_stays() -> None:
    """It may stand for elements on the axis too."""
    effect = traced("Softmax", np.full((1, 1, 1, 1), 7), axis=-1)
    assert effect.output is None
    assert [why for _, why in effect.pins] == [mixing.NORMALISED]


@pytest.mark.parametrize("shape", [None, (2, 4, 3)])
def test_a_rank_that_is_not_known_pins(shape: tuple[int, ...] | None) -> None:
    effect = traced("Softmax", labels(1), shape=shape, axis=-1)
    assert effect.output is None
    assert [why for _, why in effect.pins] == [mixing.UNKNOWN_RANK]


def test_a_number_pins() -> None:
    assert [why for _, why in traced("Softmax", np.array(3), shape=(), axis=0).pins] == [mixing.UNKNOWN_RANK]


@pytest.mark.parametrize("op", [*ALONG, "LpNormalization", "InstanceNormalization"])
def test_without_labels_nothing_passes(op: str) -> None:
    assert traced(op, None, vector(4), vector(4)) == Effect(None)


# ---- instance normalisation ----


def vector(size: int) -> Value:
    return Value("v", None, (size,), np.ones(size, F))


COMPUTED = Value("v", np.zeros(1, np.int64), (4,), None)


@pytest.mark.parametrize("rank", [3, 4, 5])
def test_instance_normalisation_carries_its_channels(rank: int) -> None:
    shape = (2, 4, 3, 5, 2)[:rank]
    given = labels(1, shape)
    effect = traced("InstanceNormalization", given, vector(4), vector(4), shape=shape)
    assert effect.output is given
    assert [c.operand for c in effect.constants] == [Operand(3, 1), Operand(3, 2)]
    for constant in effect.constants:
        np.testing.assert_array_equal(constant.labels, [1, 2, 3, 4])
    assert not effect.pins


PINNING = {
    "channels on another axis": (labels(2), vector(4), vector(4), mixing.NORMALISED),
    "one label": (np.full((1, 1, 1, 1), 7), vector(4), vector(4), mixing.NORMALISED),
    "no spatial axis": (labels(1, (2, 4)), vector(4), vector(4), mixing.NORMALISED),
    "two axes": (np.arange(1, 13).reshape(1, 4, 3, 1), vector(4), vector(4), mixing.NORMALISED),
    "computed scale": (labels(1), COMPUTED, vector(4), mixing.PARAMETERS),
    "computed shift": (labels(1), vector(4), COMPUTED, mixing.PARAMETERS),
    "one scale for all": (labels(1), vector(1), vector(4), mixing.PARAMETERS),
    "too many": (labels(1), vector(4), vector(5), mixing.PARAMETERS),
    "left out": (labels(1), None, vector(4), mixing.PARAMETERS),
}


@pytest.mark.parametrize(("given", "scale", "shift", "why"), PINNING.values(), ids=PINNING.keys())
def test_instance_normalisation_of_something_else_pins(
    given: IntArray, scale: Value | None, shift: Value | None, why: str
) -> None:
    shape = (2, 4, 3, 5)[: given.ndim]
    effect = traced("InstanceNormalization", given, scale, shift, shape=shape)
    assert effect.output is None
    ((pinned, reason),) = effect.pins
    assert pinned is given
    assert reason == why
    assert not effect.constants


# ---- barriers ----

BARRIERS: dict[str, dict[str, tuple[str, ...]]] = {
    mixing.NORMALISED: {
        "": ("GroupNormalization",),
        "com.microsoft": ("SkipLayerNormalization", "GroupNorm", "SimplifiedLayerNormalization"),
    },
    mixing.SORTED: {"": ("NonMaxSuppression", "Unique", "NonZero")},
    mixing.ATTENTION: {"": ("Attention",), "com.microsoft": ("Attention", "MultiHeadAttention", "RotaryEmbedding")},
    mixing.CONTROL: {"": ("If", "Loop", "Scan")},
    mixing.QUANTIZED: {"com.microsoft": ("DynamicQuantizeLSTM",)},
}
NAMED = [(why, domain, op) for why, of in BARRIERS.items() for domain, names in of.items() for op in names]


@pytest.mark.parametrize(("why", "domain", "op"), NAMED, ids=str)
def test_barriers_say_why_for_every_operand(why: str, domain: str, op: str) -> None:
    one, other = labels(1), labels(2) + 10
    second = Value("y", other, SHAPE, None)
    effect = traced(op, one, None, vector(4), second, version=24 if not domain else 1, domain=domain)
    assert effect.output is None
    assert [reason for _, reason in effect.pins] == [why, why]
    assert effect.pins[0][0] is one
    assert effect.pins[1][0] is other
