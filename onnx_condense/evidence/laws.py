"""What the laws of element-wise ops say about channels that are known as scale * v + offset.

One function per `Law`. Each answers for all channels of one axis at once; constants are folded elsewhere. None of
them guesses: where a law does not help, equal arguments give equal results and nothing else is claimed.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_condense.ops import Law, OpRule
from onnx_condense.plan import FloatArray, IntArray

CONSTANT = 0

# A number that cancelled to less than so many times its uncertainty is taken for an unknown of its own.
VAGUE = 16.0

BoolArray = npt.NDArray[np.bool_]
Grouper = Callable[[IntArray, FloatArray, FloatArray], IntArray]
"""Class numbers [C], never used before, from keys [C, m], numbers [C, d] and their tolerances [C, d]."""


@dataclasses.dataclass(frozen=True)
class Values:
    """Channels along one axis of a tensor: value[c] = scale[c] * v(classes[c]) + offset[c].

    axis: which axis of the tensor; the noises: absolute uncertainty that rounded weights leave. All arrays [C].
    """

    axis: int
    classes: IntArray
    scale: FloatArray
    offset: FloatArray
    scale_noise: FloatArray
    offset_noise: FloatArray

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def constant(self) -> BoolArray:
        """Which channels do not depend on the input."""
        return np.equal(self.classes, CONSTANT)

    @property
    def finite(self) -> bool:
        """Whether all numbers are."""
        return bool(np.isfinite(self.offset).all() and np.isfinite(self.scale).all())


PARTS = ("classes", "scale", "offset", "scale_noise", "offset_noise")
"""The fields that hold one number per channel."""


def exact(axis: int, classes: IntArray, scale: FloatArray | None = None, offset: FloatArray | None = None) -> Values:
    """Values known without uncertainty; by default v itself."""
    zeros = np.zeros(len(classes))
    return Values(
        axis,
        classes,
        np.ones(len(classes)) if scale is None else scale,
        zeros if offset is None else offset,
        zeros,
        zeros,
    )


def chosen(which: BoolArray, yes: Values, no: Values) -> Values:
    """Channel by channel one or the other."""
    if not which.any():
        return no
    return Values(no.axis, *(np.where(which, getattr(yes, n), getattr(no, n)) for n in PARTS))


def result_of(rule: OpRule, operands: Sequence[Values], group: Grouper) -> Values | None:
    """Values of the result of an element-wise op, or None where nothing can be said."""
    law = _LAWS.get(rule.law)
    return None if law is None else law(rule, operands, group)


def _identity(_: OpRule, operands: Sequence[Values], __: Grouper) -> Values:
    return operands[0]


def _negate(_: OpRule, operands: Sequence[Values], __: Grouper) -> Values:
    x = operands[0]
    return dataclasses.replace(x, scale=-x.scale, offset=-x.offset)


def _add(_: OpRule, operands: Sequence[Values], group: Grouper) -> Values:
    a, b = operands
    return added(a, b, group)


def added(a: Values, b: Values, group: Grouper) -> Values:
    """A + b."""
    same = (a.classes == b.classes) | a.constant | b.constant
    if same.all():
        return _add_alike(a, b, group)
    apart = added_apart(a, b, group)
    return chosen(same, _add_alike(a, b, group), apart) if same.any() else apart


def _subtract(rule: OpRule, operands: Sequence[Values], group: Grouper) -> Values:
    a, b = operands
    return _add(rule, [a, _negate(rule, [b], group)], group)


def _add_alike(a: Values, b: Values, group: Grouper) -> Values:
    """R v + s v = (r + s) v, or a constant where that cancels."""
    scale, noise = a.scale + b.scale, a.scale_noise + b.scale_noise
    gone = np.abs(scale) <= noise
    classes = np.where(gone, CONSTANT, np.where(a.constant, b.classes, a.classes))
    summed = Values(
        a.axis,
        classes,
        np.where(gone, 0.0, scale),
        a.offset + b.offset,
        np.where(gone, 0.0, noise),
        a.offset_noise + b.offset_noise,
    )
    vague = ~gone & (np.abs(scale) < VAGUE * noise)
    return chosen(vague, exact(a.axis, _each_its_own(len(a), group)), summed) if vague.any() else summed


def _each_its_own(size: int, group: Grouper) -> IntArray:
    return group(np.arange(size)[:, None], np.zeros((size, 0)), np.zeros((size, 0)))


def added_apart(a: Values, b: Values, group: Grouper) -> Values:
    """R v + s w: a new v known up to its length, so that multiples of one sum are one class."""
    scales, noise = beside(a.scale, b.scale), beside(a.scale_noise, b.scale_noise)
    rows, tolerance, signed = directions(scales, noise)
    classes = group(beside(a.classes, b.classes), rows, tolerance)
    return Values(a.axis, classes, signed, a.offset + b.offset, noise.sum(1), a.offset_noise + b.offset_noise)


def directions(rows: FloatArray, noise: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Unit vectors [C, d] that parallel and opposite rows share, their tolerances [C, d] and signed lengths [C]."""
    length = lengths(rows)
    probe = _probe(rows.shape[1])
    signed = np.where(rows @ probe < 0, -length, length)
    safe = np.where(length > 0, signed, 1.0)[:, None]
    unit = rows / safe
    tolerance = (noise + np.abs(unit) * lengths(noise)[:, None]) / np.abs(safe)
    return unit, tolerance, signed


def lengths(rows: FloatArray) -> FloatArray:
    """Euclidean norms [C] of rows [C, d]."""
    return np.asarray(np.sqrt(np.add.reduce(rows * rows, axis=1)))


def beside(*columns: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Columns [C] as a table [C, n] of the first one's element type."""
    table = np.empty((len(columns[0]), len(columns)), columns[0].dtype)
    for at, column in enumerate(columns):
        table[:, at] = column
    return table


@functools.cache
def _probe(size: int) -> FloatArray:
    return np.random.default_rng(1).standard_normal(size)


def _multiply(_: OpRule, operands: Sequence[Values], group: Grouper) -> Values:
    a, b = operands
    swap = a.constant & ~b.constant
    a, b = chosen(swap, b, a), chosen(swap, a, b)
    scaled = _times_number(a, b.offset, b.offset_noise)
    return scaled if b.constant.all() else chosen(b.constant, scaled, _product(a, b, 1, group))


def _divide(_: OpRule, operands: Sequence[Values], group: Grouper) -> Values:
    a, b = operands
    number = b.constant & (b.offset != 0)
    inverse = 1.0 / np.where(number, b.offset, 1.0)
    scaled = _times_number(a, inverse, b.offset_noise * inverse**2)
    return scaled if number.all() else chosen(number, scaled, _product(a, b, -1, group))


def _times_number(a: Values, factor: FloatArray, noise: FloatArray) -> Values:
    """(s v + o) * k, a constant where k is zero."""
    zero = factor == 0
    return Values(
        a.axis,
        np.where(zero, CONSTANT, a.classes),
        a.scale * factor,
        a.offset * factor,
        a.scale_noise * np.abs(factor) + np.abs(a.scale) * noise,
        a.offset_noise * np.abs(factor) + np.abs(a.offset) * noise,
    )


def affine_of(a: Values, factor: FloatArray, shift: FloatArray, terms: FloatArray, eps: float) -> Values:
    """K a + s with numbers per channel, each known to eps of its size; that of s is that of its terms."""
    scaled = _times_number(a, factor, eps * np.abs(factor))
    noise = scaled.offset_noise + eps * terms
    return dataclasses.replace(scaled, offset=scaled.offset + shift, offset_noise=noise)


def _product(a: Values, b: Values, power: int, group: Grouper) -> Values:
    """A product with b**power: the scale of a factor without offset pulls out, the rest stays a function."""
    pure_a, pure_b = ((v.offset == 0) & ~v.constant for v in (a, b))
    scale = np.where(pure_a, a.scale, 1.0) * np.where(pure_b, b.scale, 1.0) ** power
    relative = np.where(pure_a, _relative(a), 0.0) + np.where(pure_b, _relative(b), 0.0)
    unit = exact(a.axis, a.classes)
    numbers, tolerance = _numbers([chosen(pure_a, unit, a), chosen(pure_b, unit, b)])
    classes = group(beside(a.classes, b.classes, pure_a, pure_b), numbers, tolerance)
    return dataclasses.replace(exact(a.axis, classes, scale), scale_noise=np.abs(scale) * relative)


def _relative(values: Values) -> FloatArray:
    return values.scale_noise / np.where(values.scale == 0, 1.0, np.abs(values.scale))


def _homogeneous(_: OpRule, operands: Sequence[Values], group: Grouper) -> Values:
    """f(r a) = r f(a) for r > 0: the scale pulls out, and what is left is f(+-v + offset / scale)."""
    x = operands[0]
    length = np.where(x.constant, 1.0, np.abs(x.scale))
    shift = x.offset / length
    blur = (x.offset_noise + np.abs(shift) * x.scale_noise) / length
    unit = Values(x.axis, x.classes, np.sign(x.scale), shift, np.zeros(len(x)), blur)
    rows, tolerance = _numbers([unit, *operands[1:]])
    classes = group(beside(*(v.classes for v in operands)), rows, tolerance)
    return dataclasses.replace(exact(x.axis, classes, length), scale_noise=x.scale_noise)


def _odd(rule: OpRule, operands: Sequence[Values], group: Grouper) -> Values:
    """f(-a) = 2 c - f(a): the sign pulls out."""
    x = operands[0]
    sign = np.where(x.scale < 0, -1.0, 1.0)
    rows, tolerance = beside(np.abs(x.scale), sign * x.offset), beside(x.scale_noise, x.offset_noise)
    classes = group(x.classes[:, None], rows, tolerance)
    return exact(x.axis, classes, sign, rule.centre * (1.0 - sign))


def _any(_: OpRule, operands: Sequence[Values], group: Grouper) -> Values:
    rows, tolerance = _numbers(operands)
    return exact(operands[0].axis, group(beside(*(v.classes for v in operands)), rows, tolerance))


def _numbers(operands: Sequence[Values]) -> tuple[FloatArray, FloatArray]:
    """Scales and offsets of all operands [C, 2 n], and their noise."""
    numbers = beside(*(part for v in operands for part in (v.scale, v.offset)))
    return numbers, beside(*(part for v in operands for part in (v.scale_noise, v.offset_noise)))


_LAWS: dict[Law, Callable[[OpRule, Sequence[Values], Grouper], Values]] = {
    Law.ANY: _any,
    # Of numbers that are known to the last bit.
    Law.STEP: _any,
    Law.IDENTITY: _identity,
    Law.NEGATE: _negate,
    Law.HOMOGENEOUS: _homogeneous,
    Law.ODD: _odd,
    Law.ADD: _add,
    Law.SUBTRACT: _subtract,
    Law.MULTIPLY: _multiply,
    Law.DIVIDE: _divide,
}


@functools.cache
def eps_of(dtype: np.dtype[np.generic]) -> float:
    """Unit in the last place of a float type; integers and bool are exact."""
    if dtype.kind in "iub":
        return 0.0
    return float(np.finfo(dtype.type).eps) if issubclass(dtype.type, np.floating) else 2.0**-7


@functools.cache
def step_of(dtype: np.dtype[np.generic]) -> float:
    """The smallest number of a float type: how far apart numbers near zero are; 0 for others."""
    return float(np.finfo(dtype.type).smallest_subnormal) if issubclass(dtype.type, np.floating) else 0.0
