"""Data movement: labels go where the elements go, and stored shapes stay right when channels go."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_condense.network.known import Size
from onnx_condense.network.shapes import Shape
from onnx_condense.ops import Call, Effect, Value, find, layout
from onnx_condense.plan import IntArray, Operand, SizeUse


def along(shape: Sequence[int | str | None], axis: int, size: int | None = None) -> IntArray:
    """One label per position of an axis, as a writer gives them."""
    count = shape[axis] if size is None else size
    assert isinstance(count, int)
    return np.arange(1, count + 1).reshape([-1 if a == axis else 1 for a in range(len(shape))])


def traced(
    op: str,
    shape: Shape | None,
    labels: IntArray | None,
    result: Shape | None,
    *operands: Value | None,
    version: int = 20,
    wanted: frozenset[int] | None = None,
    **attributes: Any,
) -> Effect:
    """What the rule of an op answers."""
    rule = find("", op, version)
    assert rule is not None
    values = (Value("x", labels, shape, None), *operands)
    call = Call(3, attributes, values, result, np.arange, wanted=wanted)
    assert not rule.guard(call)
    return rule.trace(call)


def stored(*numbers: int) -> Value:
    """A list of integers in the file."""
    return Value("numbers", None, (len(numbers),), np.array(numbers, np.int64), numbers)


def computed(*numbers: int | Size | None) -> Value:
    """A list of integers that the graph computes."""
    return Value("numbers", np.zeros(1, np.int64), (len(numbers),), None, numbers)


def reason(effect: Effect) -> str:
    """The only reason of an effect that pins and passes nothing."""
    assert effect.output is None
    ((_, why),) = effect.pins
    return why


# ---- reshapes: what happens to elements, by numpy ----

RESHAPES: dict[str, tuple[Sequence[int], int, Sequence[int]]] = {
    "flatten an image": ((2, 3, 4, 5), 1, (2, 60)),
    "pixels": ((2, 3, 4, 5), 1, (2, 3, 20)),
    "pixels of an only image": ((1, 3, 4, 5), 1, (3, 20)),
    "NHWC head": ((2, 4, 5, 3), 3, (2, 60)),
    "NHWC tokens": ((2, 4, 5, 3), 3, (2, 20, 3)),
    "NHWC rows": ((2, 4, 5, 3), 3, (8, 15)),
    "drop ones": ((2, 3, 1, 1), 1, (2, 3)),
    "add ones": ((2, 3), 1, (2, 3, 1, 1)),
    "ones before": ((2, 3), 1, (2, 1, 3)),
    "all into one": ((1, 3, 4), 1, (12,)),
    "with the batch": ((2, 3, 4), 1, (24,)),
    "same sizes elsewhere": ((3, 3, 3), 1, (3, 9)),
}


@pytest.mark.parametrize("name", RESHAPES)
def test_labels_move_like_elements(name: str) -> None:
    before, axis, after = RESHAPES[name]
    labels = along(before, axis)
    effect = traced("Reshape", tuple(before), labels, tuple(after), stored(*after))
    expected = np.broadcast_to(labels, before).reshape(after)
    assert effect.output is not None
    np.testing.assert_array_equal(np.broadcast_to(effect.output, after), expected)
    assert not effect.pins
    at = int(np.argmax(effect.output.shape))
    (size,) = effect.sizes
    assert isinstance(size, SizeUse)
    assert isinstance(size.operand, Operand)
    assert (size.operand.node, size.operand.position, size.index) == (3, 1, at)
    np.testing.assert_array_equal(size.labels, effect.output.reshape(-1))


def test_a_symbolic_batch_matches_itself() -> None:
    labels = along(("N", 3, 4, 5), 1)
    for result in (("N", 60), ("N", None), (None, 60)):
        effect = traced("Reshape", ("N", 3, 4, 5), labels, result, stored(-1 if result[0] is None else 0, 60))
        assert effect.output is not None, result
        np.testing.assert_array_equal(effect.output, [np.repeat([1, 2, 3], 20)])
    merged = traced("Reshape", ("N", 5, 4), along(("N", 5, 4), 2), (None, 4), stored(-1, 4))
    np.testing.assert_array_equal(merged.output, [[1, 2, 3, 4]])
    # (T, N, C) -> (N, T, C) keeps C whole whatever N and T are.
    swapped = traced("Reshape", ("T", "N", 4), along(("T", "N", 4), 2), ("N", "T", 4), stored(-1, 7, 4))
    np.testing.assert_array_equal(swapped.output, [[[1, 2, 3, 4]]])
    last = traced("Reshape", ("N", 3, "H", "W"), along(("N", 3, 1, 1), 1), ("N", 3, None), stored(0, 3, -1))
    np.testing.assert_array_equal(last.output, [[[1], [2], [3]]])


def test_sizes_of_another_tensor_tell_blocks_apart() -> None:
    """As in pool(x).view(x.size(0), -1), where shape inference finds nothing."""
    batch = Size("other", 0, "N")
    effect = traced("Reshape", ("N", 3, 1, 1), along(("N", 3, 1, 1), 1), None, computed(batch, -1))
    np.testing.assert_array_equal(effect.output, [[1, 2, 3]])
    alone = traced("Reshape", ("N", 3, 1, 1), along(("N", 3, 1, 1), 1), None, computed(None, -1))
    assert reason(alone) == layout.UNKNOWN_SIZES


def test_labels_come_back_from_a_flat_axis() -> None:
    flat = np.repeat([1, 2, 3], 20)[None, :]
    effect = traced("Reshape", ("N", 60), flat, ("N", 3, 4, 5), stored(-1, 3, 4, 5))
    assert effect.output is not None
    np.testing.assert_array_equal(effect.output, along(("N", 3, 1, 1), 1))
    (size,) = effect.sizes
    assert isinstance(size, SizeUse)
    assert (size.index, size.labels.tolist()) == (1, [1, 2, 3])


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_shape_stays_right_when_channels_go(data: st.DataObject) -> None:
    """Whatever numbers a shape is written with: run on what is left, Reshape gives what is left of its result."""
    before = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4).filter(lambda s: max(s) > 1))
    axis = data.draw(st.sampled_from([a for a, n in enumerate(before) if n > 1]))
    permuted: bool = data.draw(st.booleans())
    after = list(data.draw(st.permutations(before))) if permuted else _regrouped(data, before)
    after += [1] if data.draw(st.booleans()) else []
    names = list(after)
    for i in [i for i, n in enumerate(after) if i < len(before) and n == before[i] and data.draw(st.booleans())]:
        names[i] = 0
    if data.draw(st.booleans()):
        names[data.draw(st.integers(0, len(names) - 1))] = -1
    hidden = data.draw(st.lists(st.integers(0, len(names) - 1), max_size=2))
    own = {i: a for a, n in enumerate(before) for i, m in enumerate(names) if m == n and data.draw(st.booleans())}
    shape = stored(*names)
    if data.draw(st.booleans()):
        # A size that gets lost on the way is one that somebody reads, which is another rule's business.
        own = {i: a for i, a in own.items() if i not in hidden}
        pieces = tuple(None if i in hidden or data.draw(st.booleans()) else n for i, n in enumerate(names))
        told = (None if i in hidden else Size("x", own[i]) if i in own else n for i, n in enumerate(names))
        shape = dataclasses.replace(computed(*told), pieces=pieces)
    else:
        own = {}
    labels = along(before, axis)
    sizes = tuple(n if a == axis or data.draw(st.booleans()) else None for a, n in enumerate(before))
    effect = traced("Reshape", sizes, labels, tuple(n if data.draw(st.booleans()) else None for n in after), shape)
    # Channels that are tied can't go one by one: see test_ops_join.
    if effect.output is None or effect.ties:
        return
    marks = np.arange(math.prod(before)).reshape(before)
    np.testing.assert_array_equal(np.broadcast_to(effect.output, after), np.broadcast_to(labels, before).reshape(after))
    gone = set(data.draw(st.lists(st.sampled_from(labels.reshape(-1).tolist()), max_size=before[axis] - 1)))
    for size in effect.sizes:
        assert isinstance(size, SizeUse)
        assert shape.writable(size.index)
        names[size.index] = sum(label not in gone for label in size.labels.tolist())
    kept = marks.take([i for i in range(before[axis]) if i + 1 not in gone], axis)
    at = int(np.argmax(effect.output.shape))
    left = [i for i, label in enumerate(effect.output.reshape(-1).tolist()) if label not in gone]
    copied = [kept.shape[own.get(i, i)] if n == 0 or i in own else n for i, n in enumerate(names)]
    np.testing.assert_array_equal(kept.reshape(copied), marks.reshape(after).take(left, at))


def _regrouped(data: st.DataObject, sizes: Sequence[int]) -> list[int]:
    """The same elements with neighbouring axes merged at random."""
    after: list[int] = []
    for n in sizes:
        joined: bool = data.draw(st.booleans())
        if after and joined:
            after[-1] *= n
        else:
            after.append(n)
    return after


PINNED: dict[str, tuple[Shape | None, int, Shape | None, Value | None, str]] = {
    "parts that share channels": (("N", 6, 4), 1, ("N", 8, 3), stored(-1, 8, 3), layout.NOT_WHOLE),
    "heads of an unknown number": (("N", 6), 1, ("N", 2, 3), computed(-1, None, 3), layout.COMPUTED_SHAPE),
    "heads of a computed width": (
        ("N", 6),
        1,
        ("N", 2, 3),
        computed(Size("other", 0, "N"), 2, 3),
        layout.COMPUTED_WIDTH,
    ),
    "another number moved there": (
        ("N", 6),
        1,
        ("N", 6),
        dataclasses.replace(computed(None, 6), pieces=(None, 7)),
        layout.COMPUTED_WIDTH,
    ),
    "symbolic pixels": (("N", 6, "H", "W"), 1, ("N", None), stored(0, -1), layout.UNKNOWN_SIZES),
    "merged with the batch": (("N", 6), 1, (None,), stored(-1), layout.UNKNOWN_SIZES),
    "no shape known": (("N", 6), 1, ("N", 6), Value("s", None, (2,), None), layout.COMPUTED_SHAPE),
    "no shape": (("N", 6), 1, ("N", 6), None, layout.COMPUTED_SHAPE),
    "computed width": (("N", 6), 1, ("N", 6), computed(-1, None), layout.COMPUTED_SHAPE),
    "named by the graph": (("N", 6), 1, ("N", 6), computed(None, 6), layout.COMPUTED_WIDTH),
    "copy of another axis": ((6, 6), 0, (1, 6, 6), stored(1, 0, 6), layout.NOT_WHOLE),
    "copy of the width": ((1, 6, 6), 1, (6, 6, 1), stored(6, 0, 1), layout.NOT_WHOLE),
    "perhaps a copy": ((1, 6, 6), 1, (6, 6, 1), computed(-1, None, 1), layout.COMPUTED_SHAPE),
    "other number": (("N", 6), 1, ("N", 6), stored(-1, 5), layout.NOT_WHOLE),
    "other rank": (("N", 6), 1, ("N", 6), stored(-1, 6, 1), layout.NOT_WHOLE),
    "no elements": ((0, 6), 1, (0, 6), stored(0, 6), layout.NOT_WHOLE),
    "nothing known": (("N", 6), 1, None, None, layout.COMPUTED_SHAPE),
    "copy of no axis": (("N", 6), 1, None, stored(-1, 6, 0), layout.NOT_WHOLE),
    "size of another axis": ((6, 6), 1, (6, 6), computed(-1, Size("x", 0)), layout.NOT_WHOLE),
    "size of another tensor": (("N", 6), 1, ("N", 6), computed(-1, Size("other", 1)), layout.NOT_WHOLE),
    "width twice": ((1, 6, 6), 1, (6, 6), computed(Size("x", 1), Size("x", 1)), layout.NOT_WHOLE),
    "unknown operand": (None, 1, ("N", 6), stored(0, 6), layout.UNKNOWN_RANK),
    "wrong rank": (("N", 6, 1), 1, ("N", 6), stored(0, 6), layout.UNKNOWN_RANK),
}


@pytest.mark.parametrize("name", PINNED)
def test_reshapes_that_pin(name: str) -> None:
    shape, axis, result, to, why = PINNED[name]
    labels = along(("N", 6) if shape is None or name == "wrong rank" else shape, axis, 6)
    assert reason(traced("Reshape", shape, labels, result, *([to] if to else []))) == why


def test_allowzero_is_no_copy() -> None:
    labels = along((6, 2), 0)
    assert traced("Reshape", (6, 2), labels, (6, 2), stored(0, 2)).output is not None
    assert reason(traced("Reshape", (6, 2), labels, (6, 2), stored(0, 2), allowzero=1)) == layout.NOT_WHOLE


def test_a_single_label_stays() -> None:
    effect = traced("Reshape", ("N", 1), np.array([[5]]), ("N", 1, 1), stored(0, 1, 1))
    assert effect.output is not None
    assert effect.output.tolist() == [[[5]]]
    assert [why for _, why in effect.pins] == [layout.NOT_WHOLE]


# ---- flatten, squeeze, unsqueeze, transpose ----


@pytest.mark.parametrize("channel", range(4))
@pytest.mark.parametrize("axis", [0, 1, 2, 3, 4, -1, -3])
def test_flatten(axis: int, channel: int) -> None:
    shape = (2, 3, 4, 5)
    labels = along(shape, channel)
    cut = axis % 4 if axis < 0 else axis
    after = (math.prod(shape[:cut]), math.prod(shape[cut:]))
    output = traced("Flatten", shape, labels, after, axis=axis).output
    assert output is not None
    np.testing.assert_array_equal(np.broadcast_to(output, after), np.broadcast_to(labels, shape).reshape(after))


def test_flatten_of_unknown_sizes() -> None:
    labels = along(("N", 3, 4, 5), 1)
    assert traced("Flatten", ("N", 3, 4, 5), labels, (None, None)).output is not None
    assert reason(traced("Flatten", ("N", 3, 4, None), labels, ("N", None))) == layout.UNKNOWN_SIZES
    assert reason(traced("Flatten", ("N", 3, 4, 5), labels, ("N", 20), axis=2)) == layout.UNKNOWN_SIZES
    assert reason(traced("Flatten", ("N", 3, 4, 5), labels, ("N", 3, 20))) == layout.UNKNOWN_RANK
    assert reason(traced("Flatten", ("N", 3, 4, 5), labels, ("N", 60), axis=5)) == layout.UNKNOWN_RANK
    assert reason(traced("Flatten", ("N", 3, 4), labels, ("N", 60))) == layout.UNKNOWN_RANK


@pytest.mark.parametrize(("version", "axes"), [(11, [0, -1]), (13, [0, -1]), (13, [2]), (7, [1, 3])])
def test_unsqueeze_and_squeeze(version: int, axes: list[int]) -> None:
    labels = along(("N", 3), 1)
    after = np.expand_dims(labels, axes).shape
    given: dict[str, Any] = {"axes": axes} if version < 13 else {}
    operands = [] if given else [computed(*axes)]
    there = traced("Unsqueeze", ("N", 3), labels, after, *operands, version=version, **given).output
    np.testing.assert_array_equal(there, np.expand_dims(labels, axes))
    back = traced("Squeeze", after, there, ("N", 3), *operands, version=version, **given).output
    np.testing.assert_array_equal(back, labels)


def test_axes_that_are_not_known() -> None:
    labels = along(("N", 3, 1), 1)
    assert reason(traced("Unsqueeze", ("N", 3, 1), labels, ("N", 3, 1, 1), computed(None))) == layout.COMPUTED_AXES
    assert reason(traced("Squeeze", ("N", 3, 1), labels, ("N", 3), computed(None))) == layout.COMPUTED_AXES
    assert reason(traced("Squeeze", ("N", 3, 1), labels, ("N", 3), stored(3))) == layout.UNKNOWN_RANK
    assert reason(traced("Squeeze", ("N", 3, 1), labels, ("N", 1), stored(1))) == layout.UNKNOWN_RANK
    assert reason(traced("Squeeze", ("N", 3, 1), labels, ("N", 3, 1), stored(2))) == layout.UNKNOWN_RANK
    assert reason(traced("Unsqueeze", ("N", 3, 1), labels, ("N", 3, 1, 1, 1), stored(1, 1))) == layout.UNKNOWN_RANK


def test_transpose() -> None:
    labels = along(("N", 3, 4, 5), 1)
    assert traced("Transpose", ("N", 3, 4, 5), labels, None, perm=[0, 2, 3, 1]).output is not None
    np.testing.assert_array_equal(traced("Transpose", None, labels, None).output, labels.T)
    assert reason(traced("Transpose", None, labels, None, perm=[1, 0])) == layout.UNKNOWN_RANK


@pytest.mark.parametrize("op", ["Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Shape"])
def test_what_owns_no_labels_passes_none(op: str) -> None:
    assert traced(op, None, None, None, stored(1)) == Effect(None)


# ---- Shape ----


@pytest.mark.parametrize(
    ("wanted", "attributes", "pinned"),
    [
        (None, {}, True),
        ({0, 2, 3}, {}, False),
        ({1}, {}, True),
        (None, {"start": 2}, False),
        (None, {"start": -3, "end": 3}, True),
        ({1}, {"start": 1}, False),
        ({0}, {"start": 1, "end": 2}, True),
        (None, {"end": 1}, False),
        (set(), {}, False),
    ],
)
def test_sizes_that_are_read(wanted: set[int] | None, attributes: dict[str, int], *, pinned: bool) -> None:
    labels = along(("N", 3, 4, 5), 1)
    asked = None if wanted is None else frozenset(wanted)
    effect = traced("Shape", ("N", 3, 4, 5), labels, (4,), wanted=asked, **attributes)
    assert effect.output is None
    assert [why for _, why in effect.pins] == ([layout.SIZE_READ] if pinned else [])
