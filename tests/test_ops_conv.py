"""Convolutions as rules: which channels are read, written, tied, carried along and pinned."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import helper

from onnx_condense.ops import Call, Effect, Law, Value, conv, find, linear
from onnx_condense.plan import Attribute, IntArray, Operand, SizeUse
from onnx_condense.runtime import Runtime, run

Array = npt.NDArray[Any]
F = np.float32
SIZE = 5
FRESH = 100


def normal(*shape: int) -> Array:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(F)


def channels(count: int, rank: int = 4) -> IntArray:
    """One label per channel, on axis 1."""
    return np.arange(1, count + 1).reshape([-1 if axis == 1 else 1 for axis in range(rank)])


def traced(
    op: str, labels: IntArray | None, weight: Array | None, bias: Array | Value | None = None, **attributes: Any
) -> Effect:
    """What the rule answers; weight None: a computed one; fresh labels start at FRESH."""
    rule = find("", op, 17)
    assert rule is not None
    computed = Value("w", np.zeros((1, 1, 1, 1), np.int64), ("A", "B", 3, 3), None)
    w = computed if weight is None else Value("w", None, weight.shape, weight)
    rank = 4 if labels is None else labels.ndim
    x = Value("x", labels, ("N", *(["C"] * (rank - 1))), None)
    operands = [x, w]
    if bias is not None:
        operands.append(bias if isinstance(bias, Value) else Value("b", None, bias.shape, bias))
    counter = itertools.count(FRESH)
    call = Call(3, attributes, tuple(operands), None, lambda n: np.array([next(counter) for _ in range(n)]))
    assert not rule.guard(call)
    return rule.trace(call)


def pinned(effect: Effect) -> dict[str, list[int]]:
    """Labels by reason."""
    return {why: labels.reshape(-1).tolist() for labels, why in effect.pins}


# ---- channels read and written ----


@dataclasses.dataclass(frozen=True)
class Form:
    """A convolution that mixes channels: K are read, O written."""

    op: str
    read: int
    written: int
    kernel: tuple[int, ...]
    groups: int = 1

    @property
    def attributes(self) -> dict[str, Any]:
        """What the node says."""
        return {"group": self.groups} if self.groups > 1 else {}

    @property
    def shape(self) -> tuple[int, ...]:
        """How the weight is stored."""
        sides = (self.written, self.read // self.groups)
        return (*(sides if self.op == "Conv" else (self.read, self.written // self.groups)), *self.kernel)

    def __str__(self) -> str:
        return f"{self.op} {self.read}-{self.written}, {len(self.kernel)}d, {self.groups} groups"


FORMS = [
    Form("Conv", 4, 6, (3,)),
    Form("Conv", 4, 6, (2, 3)),
    Form("Conv", 3, 2, (2, 1, 2)),
    Form("Conv", 1, 6, (3, 3)),
    Form("Conv", 4, 1, (3, 3)),
    Form("Conv", 6, 4, (3, 2), 2),
    Form("Conv", 8, 12, (2,), 4),
    Form("Conv", 4, 2, (1, 1), 2),
    Form("ConvTranspose", 4, 6, (3,)),
    Form("ConvTranspose", 4, 6, (2, 3)),
    Form("ConvTranspose", 3, 2, (2, 1, 2)),
    Form("ConvTranspose", 1, 3, (2, 2)),
]
every_form = pytest.mark.parametrize("form", FORMS, ids=str)


@every_form
def test_what_is_read_and_written(form: Form) -> None:
    labels = channels(form.read, len(form.shape))
    effect = traced(form.op, labels, normal(*form.shape), normal(form.written), **form.attributes)
    (use,) = effect.linear
    assert (use.weight, use.activation) == (Operand(3, 1), Operand(3, 0))
    assert (use.act_axis, use.result_axis) == (1, 1)
    assert (use.taps, use.groups) == (math.prod(form.kernel), form.groups)
    np.testing.assert_array_equal(use.columns, np.arange(1, form.read + 1))
    # Every group writes the same channels, and reads the same ones.
    own = np.arange(FRESH, FRESH + form.written // form.groups)
    np.testing.assert_array_equal(use.rows, np.tile(own, form.groups))
    assert effect.output is not None
    assert effect.output.shape == (1, form.written, *[1] * len(form.kernel))
    np.testing.assert_array_equal(effect.output.reshape(-1), use.rows)
    parts = np.arange(1, form.read + 1).reshape(form.groups, -1)
    tied = {(a, b) for one, other in effect.ties for a, b in zip(one.tolist(), other.tolist(), strict=True)}
    assert tied == {(a, b) for part in parts[1:] for a, b in zip(parts[0].tolist(), part.tolist(), strict=True)}
    (bias,) = effect.constants
    assert bias.operand == Operand(3, 2)
    np.testing.assert_array_equal(bias.labels, use.rows)
    assert not effect.pins
    assert not effect.sizes


def ran(op: str, x: Array, w: Array, **attributes: Any) -> Array:
    """One convolution in ONNX Runtime."""
    inputs = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, v.shape) for n, v in (("x", x), ("w", w))]
    node = helper.make_node(op, ["x", "w"], ["y"], **attributes)
    graph = helper.make_graph([node], "g", inputs, [onnx.ValueInfoProto(name="y")])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return run(Runtime(threads=1).session(proto, optimize=False), {"x": x, "w": w})[0]


@every_form
def test_the_matrix_has_each_weight_where_its_row_reads_its_channel(form: Form) -> None:
    """An impulse in one channel answers with the kernels of its column."""
    weight = normal(*form.shape)
    labels = channels(form.read, len(form.shape))
    (use,) = traced(form.op, labels, weight, **form.attributes).linear
    matrix = use.matrix(weight)
    taps = math.prod(form.kernel)
    assert matrix.shape == (form.written, form.read * taps)
    middle = tuple(k - 1 for k in form.kernel)
    for channel in range(form.read):
        x = np.zeros((1, form.read, *(2 * k - 1 for k in form.kernel)), F)
        x[0, channel, *middle] = 1
        y = ran(form.op, x, weight, **form.attributes)[0]
        if form.op == "Conv":
            # A convolution slides over the impulse: its last tap comes first.
            y = np.flip(y, axis=tuple(range(1, y.ndim)))
        else:
            y = y[:, *(slice(m, m + k) for m, k in zip(middle, form.kernel, strict=True))]
        np.testing.assert_array_equal(matrix[:, channel * taps : (channel + 1) * taps], y.reshape(form.written, taps))


@every_form
def test_the_matrix_can_be_stored_again(form: Form) -> None:
    weight = normal(*form.shape)
    (use,) = traced(form.op, channels(form.read, len(form.shape)), weight, **form.attributes).linear
    stored = use.as_stored(use.matrix(weight), weight)
    np.testing.assert_array_equal(stored, weight)
    # Also after both sides have lost channels, those of every group alike.
    keep = np.arange(form.written).reshape(form.groups, -1)[:, :1].reshape(-1)
    read = np.arange(form.read).reshape(form.groups, -1)[:, ::2].reshape(-1)
    like = np.moveaxis(weight, (*use.row_axes, use.in_axis), (0, 1))[keep][:, : len(read) // form.groups]
    like = np.moveaxis(like, (0, 1), (*use.row_axes, use.in_axis))
    taps = math.prod(form.kernel)
    cells = use.matrix(weight).reshape(form.written, form.read, taps)
    narrow = cells[np.ix_(keep, read)].reshape(len(keep), -1)
    again = use.as_stored(narrow, like)
    assert again.shape == like.shape
    np.testing.assert_array_equal(use.matrix(again.astype(F)), narrow)


def test_an_input_that_owns_no_channel_is_read_all_the_same() -> None:
    effect = traced("Conv", np.zeros((1, 1, 1, 1), np.int64), normal(4, 2, 3, 3), group=2)
    (use,) = effect.linear
    np.testing.assert_array_equal(use.columns, np.zeros(4))
    np.testing.assert_array_equal(use.rows, [FRESH, FRESH + 1] * 2)


# ---- channels filtered ----

FILTERS: dict[str, tuple[str, int, tuple[int, ...]]] = {
    "one kernel": ("Conv", 1, (4, 1, 3, 3)),
    "two kernels": ("Conv", 2, (8, 1, 3, 2)),
    "three kernels, 1d": ("Conv", 3, (12, 1, 3)),
    "3d": ("Conv", 1, (4, 1, 2, 1, 2)),
    "transposed": ("ConvTranspose", 1, (4, 1, 2, 2)),
    "transposed, two kernels": ("ConvTranspose", 2, (4, 2, 2, 2)),
    "transposed, 1d": ("ConvTranspose", 3, (4, 3, 2)),
}


@pytest.mark.parametrize(("op", "kernels", "shape"), FILTERS.values(), ids=FILTERS.keys())
@pytest.mark.parametrize("bias", [False, True])
def test_a_depthwise_one_carries_its_channels(op: str, kernels: int, shape: tuple[int, ...], *, bias: bool) -> None:
    more = normal(4 * kernels) if bias else None
    effect = traced(op, channels(4, len(shape)), normal(*shape), more, group=4)
    own = np.repeat([1, 2, 3, 4], kernels)
    assert effect.output is not None
    assert effect.output.shape == (1, 4 * kernels, *[1] * (len(shape) - 2))
    np.testing.assert_array_equal(effect.output.reshape(-1), own)
    weight, *others = effect.constants
    assert weight.operand == Operand(3, 1)
    assert weight.labels.ndim == len(shape)
    assert all(n == 1 for n in weight.labels.shape[1:])
    # Kernels lie along the first axis, unless the op is transposed: then each channel has a row of them.
    np.testing.assert_array_equal(weight.labels.reshape(-1), np.repeat([1, 2, 3, 4], shape[0] // 4))
    assert [o.operand for o in others] == [Operand(3, 2)] * bias
    for other in others:
        np.testing.assert_array_equal(other.labels, own)
    (size,) = effect.sizes
    assert isinstance(size, SizeUse)
    assert (size.operand, size.index, size.sign) == (Attribute(3, "group"), 0, 1)
    np.testing.assert_array_equal(size.labels, [1, 2, 3, 4])
    assert not effect.linear
    assert not effect.ties
    assert not effect.pins


def test_one_channel_is_no_group() -> None:
    (use,) = traced("Conv", channels(1), normal(3, 1, 3, 3), group=1).linear
    np.testing.assert_array_equal(use.rows, [FRESH, FRESH + 1, FRESH + 2])


@pytest.mark.parametrize(("op", "shape"), [("Conv", (8, 1, 2, 2)), ("ConvTranspose", (4, 2, 2, 2))])
def test_a_filtered_channel_depends_on_itself_only(op: str, shape: tuple[int, ...]) -> None:
    weight = normal(*shape)
    for channel in range(4):
        x = np.zeros((1, 4, 3, 3), F)
        x[0, channel] = 1
        seen = np.flatnonzero(np.abs(ran(op, x, weight, group=4)).sum(axis=(0, 2, 3)))
        np.testing.assert_array_equal(seen, [2 * channel, 2 * channel + 1])


# ---- what pins ----

ALL = [1, 2, 3, 4]
INFINITE = normal(4, 1, 3, 3)
INFINITE[2] = np.inf
BARRIERS: dict[str, tuple[str, Array | None, Mapping[str, Any], str]] = {
    "computed weight": ("Conv", None, {}, linear.COMPUTED_WEIGHT),
    "computed weight, transposed": ("ConvTranspose", None, {}, linear.COMPUTED_WEIGHT),
    "computed weight, depthwise": ("Conv", None, {"group": 4}, linear.COMPUTED_WEIGHT),
    "integers": ("Conv", np.ones((6, 4, 3, 3), np.int8), {}, linear.INTEGER_WEIGHT),
    "no numbers": ("Conv", INFINITE, {"group": 4}, linear.NOT_FINITE),
    "nothing": ("Conv", np.ones((0, 4, 3, 3), F), {}, linear.EMPTY_WEIGHT),
    "without taps": ("Conv", np.ones((6, 4), F), {}, linear.WEIGHT_RANK),
    "four spatial axes": ("Conv", np.ones((6, 4, 1, 1, 1, 1), F), {}, linear.WEIGHT_RANK),
    "another rank": ("Conv", np.ones((6, 4, 3), F), {}, linear.UNKNOWN_RANK),
    "another kernel": ("Conv", normal(6, 4, 3, 3), {"kernel_shape": [3, 2]}, conv.MISFIT),
    "another kernel's rank": ("Conv", normal(6, 4, 3, 3), {"kernel_shape": [3]}, conv.MISFIT),
    "rows in unequal groups": ("Conv", normal(5, 2, 3, 3), {"group": 2}, conv.MISFIT),
    "no group": ("Conv", normal(6, 4, 3, 3), {"group": 0}, conv.MISFIT),
    "grouped transposed": ("ConvTranspose", normal(4, 3, 3, 3), {"group": 2}, conv.GROUPED),
    "fewer channels": ("Conv", normal(6, 3, 3, 3), {}, linear.NOT_CONTRACTED),
    "more filters than channels": ("Conv", normal(5, 1, 3, 3), {"group": 5}, conv.ELSEWHERE),
}


@pytest.mark.parametrize(("op", "weight", "attributes", "why"), BARRIERS.values(), ids=BARRIERS.keys())
def test_what_does_not_fit_pins(op: str, weight: Array | None, attributes: Mapping[str, Any], why: str) -> None:
    effect = traced(op, channels(4), weight, **attributes)
    assert pinned(effect) == {why: ALL}
    assert not effect.constants
    assert not effect.sizes
    assert all((use.columns == 0).all() for use in effect.linear)


@pytest.mark.parametrize("axis", [0, 2, 3])
@pytest.mark.parametrize(("shape", "group"), [((6, 4, 3, 3), 1), ((4, 2, 3, 3), 2), ((4, 1, 3, 3), 4)])
def test_channels_on_another_axis_stay(axis: int, shape: tuple[int, ...], group: int) -> None:
    effect = traced("Conv", np.moveaxis(channels(4), 1, axis), normal(*shape), group=group)
    assert pinned(effect) == {conv.ELSEWHERE if group == 4 else linear.NOT_CONTRACTED: ALL}


@pytest.mark.parametrize(("shape", "group"), [((6, 4, 3, 3), 1), ((4, 2, 3, 3), 2), ((4, 1, 3, 3), 4)])
def test_one_label_for_all_channels_stays(shape: tuple[int, ...], group: int) -> None:
    effect = traced("Conv", np.full((1, 1, 1, 1), 7), normal(*shape), group=group)
    assert list(pinned(effect).values()) == [[7]]


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("bias", ["computed", "short"])
@pytest.mark.parametrize("group", [1, 4])
def test_a_bias_that_is_not_one_number_per_row_pins_the_rows(op: str, bias: str, group: int) -> None:
    shape = (4, 1, 3, 3) if group == 4 else (4, 4, 3, 3)
    computed = Value("b", np.zeros(1, np.int64), (4,), None)
    effect = traced(op, channels(4), normal(*shape), computed if bias == "computed" else normal(1), group=group)
    own = ALL if group == 4 else [FRESH + i for i in range(4)]
    assert pinned(effect) == {linear.ADDEND: own}
    assert not [c for c in effect.constants if c.operand.position == 2]


def test_a_tensor_without_labels_passes_nothing() -> None:
    assert traced("Conv", None, normal(6, 4, 3, 3)) == Effect(None)
    assert traced("ConvTranspose", None, normal(4, 6, 3, 3)) == Effect(None)


def test_the_kernel_may_be_written_into_the_node() -> None:
    plain = traced("Conv", channels(4), normal(6, 4, 3, 2))
    written = traced("Conv", channels(4), normal(6, 4, 3, 2), kernel_shape=[3, 2])
    assert repr(plain) == repr(written)


# ---- zeros beside the activation ----


def conv_attributes() -> Iterator[tuple[tuple[int, ...], dict[str, Any]]]:
    """Kernels and ways to lay them out."""
    for kernel, more in itertools.product([(1, 1), (2, 3), (1, 2)], [{}, {"strides": [2, 1]}, {"dilations": [2, 2]}]):
        for pads in ([0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 1, 0]):
            yield kernel, {**more, "pads": pads}
        yield kernel, dict(more)
        yield kernel, {**more, "auto_pad": "VALID"}
        yield kernel, {**more, "auto_pad": "NOTSET"}


def varies(op: str, kernel: Sequence[int], attributes: Mapping[str, Any]) -> bool:
    """Whether a constant does not come out as a constant."""
    x = np.ones((1, 1, SIZE, SIZE), F)
    # All partial sums of these differ.
    w = 2.0 ** np.arange(math.prod(kernel)).reshape(1, 1, *kernel).astype(F)
    y = ran(op, x, w.astype(F), **attributes)
    return bool((y != y.flat[0]).any())


def test_zeros_are_read_where_a_constant_changes_at_the_borders() -> None:
    for kernel, attributes in conv_attributes():
        assert conv.reads_zeros(attributes, kernel) == varies("Conv", kernel, attributes), (kernel, attributes)


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("kernel", [(1, 1), (2, 1), (3, 3)])
def test_same_pads_where_the_kernel_is_larger_than_one(mode: str, kernel: tuple[int, ...]) -> None:
    attributes = {"auto_pad": mode}
    assert conv.reads_zeros(attributes, kernel) == varies("Conv", kernel, attributes)
    # With strides it depends on the size: what may read zeros counts.
    assert conv.reads_zeros({**attributes, "strides": [2, 2]}, kernel) == (kernel != (1, 1))


TRANSPOSED: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((1, 1), {}),
    ((1, 1), {"strides": [1, 1], "pads": [0, 0, 0, 0]}),
    ((1, 1), {"strides": [2, 1]}),
    ((2, 1), {}),
    ((3, 3), {"pads": [1, 1, 1, 1]}),
    ((2, 2), {"strides": [2, 2]}),
    ((3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}),
    ((1, 1), {"strides": [2, 2], "output_padding": [1, 1]}),
    ((3, 3), {"dilations": [2, 2]}),
    ((1, 1), {"strides": [2, 2], "output_shape": [10, 10]}),
]


@pytest.mark.parametrize(("kernel", "attributes"), TRANSPOSED, ids=str)
def test_transposed_ones_read_zeros_wherever_a_constant_changes(
    kernel: tuple[int, ...], attributes: dict[str, Any]
) -> None:
    assert conv.transposed_reads_zeros(attributes, kernel) == varies("ConvTranspose", kernel, attributes)


@pytest.mark.parametrize(("op", "out"), [("Conv", 0), ("ConvTranspose", 1)])
@pytest.mark.parametrize("padded", [False, True])
def test_the_use_says_whether_zeros_are_read(op: str, out: int, *, padded: bool) -> None:
    attributes: dict[str, Any] = {"pads": [0, 0, 1, 0]} if padded else {}
    if op == "ConvTranspose":
        attributes = {"strides": [1, 2]} if padded else {}
    (use,) = traced(op, channels(4), normal(4, 4, 1, 1), **attributes).linear
    assert use.padded is padded
    assert (use.out_axis, use.in_axis) == (out, 1 - out)


def test_the_records() -> None:
    for op in ("Conv", "ConvTranspose"):
        rule = find("", op, 17)
        assert rule is not None
        assert (rule.law, rule.bias, rule.flat_bias, rule.multiple) == (Law.FILTER, 2, True, 8)
