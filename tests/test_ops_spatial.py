"""Pooling, reductions, padding, resizing: channels stay apart, and every claim of a law is true of ONNX Runtime."""

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
from hypothesis.extra import numpy as hnp
from onnx import helper

from onnx_condense.network.known import Size
from onnx_condense.network.shapes import Shape
from onnx_condense.ops import Call, Effect, Law, OpRule, Value, find, layout, spatial
from onnx_condense.plan import IntArray, Operand, SizeUse
from onnx_condense.runtime import Runtime, run

Array = npt.NDArray[Any]
F = np.float32
EMPTY = np.zeros(0, F)


@dataclasses.dataclass(frozen=True)
class Case:
    """One node: operands after the first, attributes, and the law that must come out. axis: where channels are."""

    op: str
    law: Law
    opset: int = 17
    operands: tuple[Array | None, ...] = ()
    attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    shape: tuple[int, ...] = (2, 4, 7, 6)
    axis: int = 1

    @property
    def rule(self) -> OpRule:
        """The record of the op."""
        rule = find("", self.op, self.opset)
        assert rule is not None
        return rule

    def run(self, x: Array, changes: Mapping[int, Array] | None = None) -> Array:
        """The op on x by ONNX Runtime; changes: operands to use instead, by position."""
        operands = [(changes or {}).get(i + 1, v) for i, v in enumerate(self.operands)]
        feed = {"x": x} | {f"i{i}": v for i, v in enumerate(operands) if v is not None}
        names = ["x", *("" if v is None else f"i{i}" for i, v in enumerate(operands))]
        node = helper.make_node(self.op, names, ["y"], **self.attributes)
        inputs = [
            helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for k, v in feed.items()
        ]
        graph = helper.make_graph([node], "g", inputs, [onnx.ValueInfoProto(name="y")])
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)
        return run(Runtime(threads=1).session(proto, optimize=False), feed)[0]

    def trace(self, labels: IntArray, result: Shape | None) -> Effect:
        """What the rule answers."""
        operands = (None if v is None else Value("c", None, v.shape, v) for v in self.operands)
        call = Call(3, self.attributes, (Value("x", labels, self.shape, None), *operands), result, np.arange)
        assert not self.rule.guard(call)
        return self.rule.trace(call)

    def labels(self) -> IntArray:
        """One label per position of the channel axis."""
        size = self.shape[self.axis]
        return np.arange(1, size + 1).reshape([-1 if a == self.axis else 1 for a in range(len(self.shape))])


def ints(*numbers: int) -> Array:
    return np.array(numbers, np.int64)


def floats(*numbers: float) -> Array:
    return np.array(numbers, F)


_WINDOW: dict[str, Any] = {"kernel_shape": [3, 2], "strides": [2, 1]}
_AROUND = {**_WINDOW, "pads": [1, 0, 0, 1]}
_COUNT = {"count_include_pad": 1}
_CEIL = {"kernel_shape": [3, 3], "strides": [3, 3], "ceil_mode": 1}

POOLS = {
    "max": Case("MaxPool", Law.MAXIMUM, attributes=_WINDOW),
    "max 7": Case("MaxPool", Law.MAXIMUM, 7, attributes=_AROUND),
    "max padded": Case("MaxPool", Law.MAXIMUM, attributes=_AROUND),
    "max same": Case("MaxPool", Law.MAXIMUM, 22, attributes={**_WINDOW, "auto_pad": "SAME_LOWER"}),
    "max ceil": Case("MaxPool", Law.MAXIMUM, attributes=_CEIL),
    "max dilated": Case("MaxPool", Law.MAXIMUM, attributes={"kernel_shape": [2, 2], "dilations": [2, 3]}),
    "max 1d": Case("MaxPool", Law.MAXIMUM, attributes={"kernel_shape": [3]}, shape=(2, 4, 9)),
    "max 3d": Case("MaxPool", Law.MAXIMUM, attributes={"kernel_shape": [2, 2, 2]}, shape=(1, 3, 4, 3, 3)),
    "average": Case("AveragePool", Law.MOVE, attributes=_WINDOW),
    "average 7": Case("AveragePool", Law.MOVE, 7, attributes=_AROUND),
    "average padded": Case("AveragePool", Law.MOVE, attributes=_AROUND),
    "average ceil": Case("AveragePool", Law.MOVE, attributes=_CEIL),
    "average same": Case("AveragePool", Law.MOVE, attributes={**_WINDOW, "auto_pad": "SAME_UPPER"}),
    "average 22": Case("AveragePool", Law.MOVE, 22, attributes={**_AROUND, "dilations": [1, 2]}),
    "average whole": Case("AveragePool", Law.MOVE, attributes={**_WINDOW, **_COUNT}),
    "average valid": Case("AveragePool", Law.MOVE, attributes={**_WINDOW, **_COUNT, "auto_pad": "VALID"}),
    "average zeros": Case("AveragePool", Law.PADDED, attributes={**_AROUND, **_COUNT}),
    "average zeros 7": Case("AveragePool", Law.PADDED, 7, attributes={**_AROUND, **_COUNT}),
    "average zeros 22": Case("AveragePool", Law.PADDED, 22, attributes={**_AROUND, **_COUNT, "ceil_mode": 1}),
    "average zeros same": Case("AveragePool", Law.PADDED, attributes={**_WINDOW, **_COUNT, "auto_pad": "SAME_UPPER"}),
    "all average": Case("GlobalAveragePool", Law.MOVE),
    "all max": Case("GlobalMaxPool", Law.MAXIMUM, 22),
    "norm": Case("LpPool", Law.EACH, attributes=_AROUND),
    "all norm": Case("GlobalLpPool", Law.EACH, attributes={"p": 1}),
}

REDUCTIONS = {
    "mean": Case("ReduceMean", Law.MOVE, 18, (ints(2, 3),)),
    "mean 7": Case("ReduceMean", Law.MOVE, 7, attributes={"axes": [2, 3], "keepdims": 0}),
    "mean 13": Case("ReduceMean", Law.MOVE, 13, attributes={"axes": [-1]}),
    "mean of a batch": Case("ReduceMean", Law.MOVE, 22, (ints(0),), {"keepdims": 0}),
    "mean of the first": Case("ReduceMean", Law.MOVE, 18, (ints(1, -2),), {"keepdims": 0}, axis=3),
    "max": Case("ReduceMax", Law.MAXIMUM, 20, (ints(-1, -2),)),
    "max 12": Case("ReduceMax", Law.MAXIMUM, 12, attributes={"axes": [2]}),
    "min": Case("ReduceMin", Law.MAXIMUM, 18, (ints(3),), {"keepdims": 0}),
    "min 11": Case("ReduceMin", Law.MAXIMUM, 11, attributes={"axes": [2, 3], "keepdims": 0}),
    "sum": Case("ReduceSum", Law.PADDED, 13, (ints(2, 3),)),
    "sum 11": Case("ReduceSum", Law.PADDED, 11, attributes={"axes": [2, 3], "keepdims": 0}),
    "norm": Case("ReduceL2", Law.EACH, 18, (ints(2, 3),), {"keepdims": 0}),
    "log": Case("ReduceLogSumExp", Law.EACH, 13, attributes={"axes": [-1]}),
    "squares": Case("ReduceSumSquare", Law.EACH, 18, (ints(2),)),
    "sizes": Case("ReduceL1", Law.EACH, 18, (ints(-1),), {"keepdims": 0}),
    "product": Case("ReduceProd", Law.EACH, 18, (ints(3),)),
    "log of a sum": Case("ReduceLogSum", Law.EACH, 11, attributes={"axes": [2, 3]}),
    # Nothing is reduced, so these do more than their laws claim: left out below.
    "nothing": Case("ReduceMean", Law.MOVE, 18, (ints(),), {"noop_with_empty_axes": 1}),
    "nothing at all": Case("ReduceMax", Law.MAXIMUM, 18, (), {"noop_with_empty_axes": 1}),
}

PADS = {
    "zeros": Case("Pad", Law.PADDED, 13, (ints(0, 0, 1, 2, 0, 0, 0, 1),)),
    "zeros by name": Case("Pad", Law.PADDED, 19, (ints(0, 0, 1, 2, 0, 0, 0, 1), np.array(0, F)), {"mode": "constant"}),
    "zeros 2": Case("Pad", Law.PADDED, 7, attributes={"pads": [0, 0, 1, 2, 0, 0, 0, 1]}),
    "reflect 2": Case("Pad", Law.MOVE, 10, attributes={"pads": [0, 0, 1, 2, 0, 0, 0, 1], "mode": "reflect"}),
    "reflect": Case("Pad", Law.MOVE, 13, (ints(0, 0, 1, 2, 0, 0, 0, 1),), {"mode": "reflect"}),
    "edge": Case("Pad", Law.MOVE, 18, (ints(1, 2, 0, 1), None, ints(2, -1)), {"mode": "edge"}),
    "wrap": Case("Pad", Law.MOVE, 19, (ints(0, 0, 1, 2, 0, 0, 0, 1),), {"mode": "wrap"}),
    "axes": Case("Pad", Law.PADDED, 21, (ints(1, 2), None, ints(-1))),
    "axes 32": Case("Pad", Law.PADDED, 18, (ints(1, 2), None, np.array([2], np.int32))),
    "NHWC": Case("Pad", Law.PADDED, 13, (ints(0, 1, 1, 0, 0, 1, 0, 0),), axis=3),
    "cut": Case("Pad", Law.MOVE, 13, (ints(0, 0, -1, 0, 0, 0, 0, -2),)),
    "cut 2": Case("Pad", Law.MOVE, 7, attributes={"pads": [0, 0, -1, 0, 0, 0, 0, -2]}),
    "nothing": Case("Pad", Law.MOVE, 13, (ints(0, 0, 0, 0, 0, 0, 0, 0),)),
}

_UP = floats(1, 1, 2, 1.5)
_DOWN = floats(1, 1, 0.5, 0.4)
RESIZES = {
    "upsample 7": Case("Upsample", Law.MOVE, 7, attributes={"scales": [1.0, 1.0, 2.0, 2.0]}),
    "upsample": Case("Upsample", Law.MOVE, 9, (_UP,), {"mode": "linear"}),
    "resize 10": Case("Resize", Law.MOVE, 10, (_DOWN,)),
    "resize 11": Case("Resize", Law.MOVE, 11, (EMPTY, _UP)),
    "cubic 11": Case("Resize", Law.MOVE, 11, (EMPTY, _UP), {"mode": "cubic"}),
    "by sizes 11": Case("Resize", Law.MOVE, 11, (EMPTY, EMPTY, ints(2, 4, 9, 5)), {"mode": "linear"}),
    "by sizes": Case("Resize", Law.MOVE, 13, (None, None, ints(2, 4, 3, 12))),
    "linear": Case("Resize", Law.MOVE, 13, (None, _DOWN), {"mode": "linear"}),
    "corners": Case(
        "Resize", Law.MOVE, 13, (None, _UP), {"mode": "linear", "coordinate_transformation_mode": "align_corners"}
    ),
    "cubic": Case("Resize", Law.MOVE, 18, (None, _DOWN), {"mode": "cubic", "exclude_outside": 1}),
    "antialias": Case("Resize", Law.MOVE, 18, (None, _DOWN), {"mode": "linear", "antialias": 1}),
    "axes": Case("Resize", Law.MOVE, 18, (None, floats(2, 1.5)), {"axes": [2, 3], "mode": "linear"}),
    "axes by sizes": Case("Resize", Law.MOVE, 18, (None, None, ints(9, 3)), {"axes": [2, 3]}),
    "ratio": Case(
        "Resize", Law.MOVE, 18, (None, None, ints(9, 3)), {"axes": [2, 3], "keep_aspect_ratio_policy": "not_larger"}
    ),
    "half pixel": Case("Resize", Law.MOVE, 19, (None, _UP), {"coordinate_transformation_mode": "half_pixel_symmetric"}),
    "NHWC": Case("Resize", Law.MOVE, 13, (None, floats(1, 2, 2, 1)), axis=3),
    "NHWC by sizes": Case("Resize", Law.MOVE, 13, (None, None, ints(2, 4, 14, 6)), axis=3),
}
CASES = {
    f"{group}: {name}": case
    for group, cases in (("pool", POOLS), ("reduce", REDUCTIONS), ("pad", PADS), ("resize", RESIZES))
    for name, case in cases.items()
}
EXACT = [name for name, case in CASES.items() if case.law in (Law.MOVE, Law.MAXIMUM, Law.PADDED)]


@pytest.mark.parametrize("name", CASES)
def test_what_is_left_is_the_result_of_what_is_left(name: str) -> None:
    """The labels of the result say where channels are: the op on some channels gives the slices with their labels."""
    case = CASES[name]
    x = np.random.default_rng(0).standard_normal(case.shape).astype(F)
    whole = case.run(x)
    effect = case.trace(case.labels(), whole.shape)
    assert effect.output is not None
    assert not effect.pins
    assert effect.output.ndim == whole.ndim
    at = int(np.argmax(effect.output.shape))
    assert effect.output.reshape(-1).tolist() == case.labels().reshape(-1).tolist()
    keep = [0, 2]
    changes = {}
    for size in effect.sizes:
        assert isinstance(size, SizeUse)
        assert isinstance(size.operand, Operand)
        value = case.operands[size.operand.position - 1]
        assert value is not None
        changes[size.operand.position] = np.where(np.arange(value.size) == size.index, len(keep), value)
    part = case.run(x.take(keep, case.axis), changes)
    np.testing.assert_allclose(part, whole.take(keep, at), rtol=1e-5, atol=1e-6)


def residual(case: Case, x: Array, factor: float, shift: float) -> float:
    """How far f(r x + s) is from r f(x) + s."""
    return float(np.abs(case.run(F(factor) * x + F(shift)) - F(factor) * case.run(x) - F(shift)).max())


@pytest.mark.parametrize("name", EXACT)
def test_the_law_is_the_strongest_that_holds(name: str) -> None:
    case = CASES[name]
    assert case.rule.law_of(case.attributes, [None, *case.operands]) is case.law
    x = np.random.default_rng(1).standard_normal(case.shape).astype(F)
    shift = 0.0 if case.law is Law.PADDED else 7.0
    sign = 1.0 if case.law is Law.MAXIMUM else -1.0
    assert residual(case, x, 2.5 * sign, shift) < 3e-5
    if "nothing" in name:
        return
    if case.law is Law.PADDED:
        assert residual(case, x, 1.0, 7.0) > 0.5
    elif case.law is Law.MAXIMUM:
        assert residual(case, x, -1.0, 0.0) > 0.5


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(EXACT),
    hnp.arrays(F, (2, 4, 7, 6), elements=st.floats(-1, 1, width=16)),
    st.floats(0.125, 4, width=16),
    st.floats(-4, 4, width=16),
)
def test_laws_hold_for_any_numbers(name: str, x: Array, factor: float, shift: float) -> None:
    case = CASES[name]
    if case.shape != x.shape:
        x = np.resize(x, case.shape)
    assert residual(case, x, factor, 0.0 if case.law is Law.PADDED else shift) < 1e-4


def test_laws_of_nodes_that_reach_over_the_end() -> None:
    """Versions of ONNX Runtime differ in what a window counts that ceil_mode lets reach over the end."""
    assert spatial.average_law({**_CEIL, **_COUNT}, ()) is Law.PADDED
    assert spatial.average_law({**_CEIL, **_COUNT, "auto_pad": "VALID"}, ()) is Law.PADDED
    # Computed pads may let in zeros.
    assert spatial.pad_law({}, (None, None)) is Law.PADDED
    assert spatial.pad_law({"mode": "edge"}, (None, None)) is Law.MOVE


# ---- what pins ----


def reason(case: Case, *, result: Sequence[int] | None = (2, 4, 7, 6), labels: IntArray | None = None) -> str:
    """The only reason of an effect that pins and passes nothing."""
    effect = case.trace(case.labels() if labels is None else labels, None if result is None else tuple(result))
    assert effect.output is None
    assert not effect.sizes
    ((_, why),) = effect.pins
    return why


BARRED: dict[str, tuple[Case, str]] = {
    "pool rows": (Case("MaxPool", Law.ANY, attributes=_WINDOW, axis=2), spatial.POOLED),
    "pool NHWC": (Case("GlobalAveragePool", Law.ANY, axis=3), spatial.POOLED),
    "mean of channels": (Case("ReduceMean", Law.ANY, 18, (ints(1, 2),)), spatial.REDUCED),
    "mean from the end": (Case("ReduceMean", Law.ANY, 13, attributes={"axes": [-3]}), spatial.REDUCED),
    "mean of all": (Case("ReduceMean", Law.ANY, 18), spatial.REDUCED),
    "mean of empty axes": (Case("ReduceSum", Law.ANY, 13, (ints(),)), spatial.REDUCED),
    "mean of no axis": (Case("ReduceMean", Law.ANY, 18, (ints(4),)), layout.UNKNOWN_RANK),
    "pad channels": (Case("Pad", Law.ANY, 13, (ints(0, 0, 0, 0, 0, 1, 0, 0),)), spatial.PADDED),
    "cut channels": (Case("Pad", Law.ANY, 7, attributes={"pads": [0, -1, 0, 0, 0, 0, 0, 0]}), spatial.PADDED),
    "pad named channels": (Case("Pad", Law.ANY, 18, (ints(1, 2), None, ints(-3))), spatial.PADDED),
    "pads that misfit": (Case("Pad", Law.ANY, 13, (ints(1, 1),)), spatial.PADDED),
    "pad by ones": (Case("Pad", Law.ANY, 13, (ints(0, 0, 1, 0, 0, 0, 0, 0), np.array(1, F))), spatial.FILLED),
    "pad by ones 2": (
        Case("Pad", Law.ANY, 7, attributes={"pads": [0, 0, 1, 0, 0, 0, 0, 0], "value": 1.0}), spatial.FILLED,
    ),
    "scale channels": (Case("Resize", Law.ANY, 13, (None, floats(1, 2, 1, 1))), spatial.RESIZED),
    "scale channels 7": (Case("Upsample", Law.ANY, 7, attributes={"scales": [1.0, 2.0, 1.0, 1.0]}), spatial.RESIZED),
    "too few scales": (Case("Resize", Law.ANY, 10, (floats(2, 2),)), spatial.RESIZED),
    "other channels": (Case("Resize", Law.ANY, 13, (None, None, ints(2, 8, 7, 6))), spatial.RESIZED),
    "named channels": (Case("Resize", Law.ANY, 18, (None, floats(2, 1)), {"axes": [1, 2]}), spatial.RESIZED),
    "ratio": (
        Case("Resize", Law.ANY, 18, (None, None, ints(2, 4, 9, 3)), {"keep_aspect_ratio_policy": "not_larger"}),
        spatial.RESIZED,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BARRED)
def test_what_does_not_leave_channels_alone_pins_them(name: str) -> None:
    case, why = BARRED[name]
    assert reason(case) == why


@pytest.mark.parametrize("name", CASES)
def test_no_rank_is_believed_that_cannot_be(name: str) -> None:
    case = CASES[name]
    assert reason(case, result=(1,) * 9) == layout.UNKNOWN_RANK
    assert case.trace(case.labels(), None).output is not None


@pytest.mark.parametrize("name", CASES)
def test_what_owns_no_labels_passes_none(name: str) -> None:
    case = CASES[name]
    call = Call(0, case.attributes, (Value("x", None, None, None),), None, np.arange)
    assert case.rule.trace(call) == Effect(None)


def asked(op: str, opset: int, *operands: Value | None, results: int = 1, **attributes: Any) -> tuple[str, Effect]:
    """Guard and effect of a node on [N, 4, H, W] whose other operands are computed."""
    rule = find("", op, opset)
    assert rule is not None
    x = Value("x", np.arange(1, 5).reshape(1, 4, 1, 1), ("N", 4, "H", "W"), None)
    call = Call(0, attributes, (x, *operands), ("N", 4, None, None), np.arange, results)
    return rule.guard(call), rule.trace(call)


def computed(*numbers: int | Size | None) -> Value:
    return Value("c", np.zeros(1, np.int64), (len(numbers),), None, numbers)


UNKNOWN = Value("u", np.zeros(1, np.int64), (None,), None)


def test_operands_that_are_computed() -> None:
    assert asked("ReduceMean", 18, computed(2, 3))[1].output is not None
    assert asked("ReduceMean", 18, computed(2, None))[1].pins[0][1] == layout.COMPUTED_AXES
    assert asked("ReduceMean", 18, UNKNOWN, noop_with_empty_axes=1)[1].pins[0][1] == layout.COMPUTED_AXES
    assert asked("Pad", 13, computed(None, 0, None, None, 0, 0, 1, 1))[1].output is not None
    assert asked("Pad", 13, computed(0, None, 0, 0, 0, 0, 0, 0))[1].pins[0][1] == spatial.PADDED
    assert asked("Pad", 13, UNKNOWN)[1].pins[0][1] == spatial.PADDED
    pads = computed(0, 0, 1, 1, 0, 0, 0, 0)
    assert asked("Pad", 13, pads, UNKNOWN)[1].pins[0][1] == spatial.FILLED
    assert asked("Pad", 13, pads, UNKNOWN, mode="edge")[1].output is not None
    assert asked("Pad", 18, computed(1, 1), None, computed(3))[1].output is not None
    assert asked("Pad", 18, computed(1, 1), None, UNKNOWN)[1].pins[0][1] == spatial.PADDED
    assert asked("Resize", 13, None, UNKNOWN)[1].pins[0][1] == spatial.RESIZED
    assert asked("Resize", 13, None, None, computed(None, 4, 9, 9))[1].pins[0][1] == spatial.COMPUTED_WIDTH
    assert asked("Resize", 13, None, None, computed(1, None, 9, 9))[1].pins[0][1] == spatial.RESIZED
    assert asked("Resize", 18, None, None, computed(None, None), axes=[2, 3])[1].output is not None


def test_sizes_of_the_operand_itself() -> None:
    width = Size("x", 1)
    assert asked("Resize", 13, None, None, computed(None, width, 9, 9))[1].output is not None
    assert not asked("Resize", 13, None, None, computed(None, width, 9, 9))[1].sizes
    for sizes in ((None, Size("x", 2), 9, 9), (None, Size("other", 1), 9, 9), (None, width, width, 9)):
        assert asked("Resize", 13, None, None, computed(*sizes))[1].pins[0][1] == spatial.RESIZED
    assert asked("Resize", 18, None, None, computed(9, width), axes=[2, 3])[1].pins[0][1] == spatial.RESIZED
    policy = "not_smaller"
    effect = asked("Resize", 18, None, None, computed(None, width, 9, 9), keep_aspect_ratio_policy=policy)[1]
    assert effect.pins[0][1] == spatial.RESIZED


def test_nodes_that_are_no_functions_of_channels() -> None:
    assert asked("MaxPool", 12, results=2, kernel_shape=[2, 2])[0] == spatial.INDICES
    cropped = "tf_crop_and_resize"
    assert asked("Resize", 13, None, None, coordinate_transformation_mode=cropped)[0] == spatial.CROPPED


def test_a_single_label_stays_where_its_axis_is_not_known() -> None:
    one = np.array([5]).reshape(1, 1, 1, 1)
    shape = (2, 1, 7, 6)
    mean = Case("ReduceMean", Law.MOVE, 13, attributes={"axes": [2]}, shape=shape)
    assert reason(mean, labels=one) == spatial.REDUCED
    padded = Case("Pad", Law.PADDED, 13, (ints(0, 0, 1, 0, 0, 0, 0, 0),), shape=shape)
    assert reason(padded, labels=one) == spatial.PADDED
    resized = Case("Resize", Law.MOVE, 13, (None, _UP), shape=shape)
    assert reason(resized, labels=one) == spatial.RESIZED
