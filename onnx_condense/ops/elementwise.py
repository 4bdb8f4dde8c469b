"""Element-wise ops of one or more operands, with broadcasting.

Operands of equal size tie their channels; a constant that varies along a channel axis is carried along (sliced
with the channels); an axis of size 1 broadcasts and ties nothing.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from onnx_condense.network.shapes import Shape
from onnx_condense.ops.registry import Call, Effect, Law, OpRule, Value, never, register
from onnx_condense.plan import PINNED, ConstantUse, IntArray, Operand

UNKNOWN_SIZE = "combined with a tensor of unknown size"
OUTER = "combined with other channels by broadcasting"


def trace(call: Call) -> Effect:
    """Labels of an element-wise result; pins what can't be aligned."""
    present = [(i, v) for i, v in enumerate(call.operands) if v is not None]
    active = [(v.labels, v.shape) for _, v in present if v.constant is None and v.labels is not None]
    fixed = [v.constant.ndim for _, v in present if v.constant is not None]
    rank = max([*fixed, *(labels.ndim for labels, _ in active)], default=0)
    # Declared shapes may be wrong: believe no rank that can't be.
    if not active or call.result_shape is None or len(call.result_shape) != rank:
        return Effect(None, pins=tuple((labels, UNKNOWN_SIZE) for labels, _ in active))
    operands = [(_aligned(labels, rank), _sizes(labels, shape, rank)) for labels, shape in active]
    output, ties, pins = _join(operands)
    constants = []
    for i, value in present:
        if value.constant is None:
            continue
        labels = carried(value.constant.shape, output)
        if labels is None or (call.apart and _shared(labels, output)):
            pins.append((output, OUTER))
        elif (labels != PINNED).any():
            constants.append(ConstantUse(Operand(call.index, i), labels))
    return Effect(output, ties=tuple(ties), constants=tuple(constants), pins=tuple(pins))


def _aligned(labels: IntArray, rank: int) -> IntArray:
    return labels.reshape((1,) * (rank - labels.ndim) + labels.shape)


def _sizes(labels: IntArray, shape: Shape | None, rank: int) -> Shape:
    """Sizes of an operand's axes, aligned; labels know some that shape inference does not."""
    known = shape or (None,) * labels.ndim
    sizes = tuple(n if n > 1 else size for n, size in zip(labels.shape, known, strict=True))
    return (1,) * (rank - labels.ndim) + sizes


def _join(
    operands: list[tuple[IntArray, Shape]],
) -> tuple[IntArray, list[tuple[IntArray, IntArray]], list[tuple[IntArray, str]]]:
    """Labels of the result, pairs to unify and pins, from aligned (labels, shape) of the computed operands."""
    result, shape = operands[0]
    ties: list[tuple[IntArray, IntArray]] = []
    # A tensor that is a single channel can't lose it without becoming empty.
    pins = [(labels, OUTER) for labels, _ in operands if len(operands) > 1 and labels.size == 1]
    for labels, other in operands[1:]:
        alone_a, alone_b = _spread_alone(result, other), _spread_alone(labels, shape)
        if alone_a is None or alone_b is None:
            pins += [(result, UNKNOWN_SIZE), (labels, UNKNOWN_SIZE)]
            result = np.zeros((1,) * result.ndim, np.int64)
        elif (alone_a and labels.size > 1) or (alone_b and result.size > 1):
            pins += [(result, OUTER), (labels, OUTER)]
            result = np.zeros((1,) * result.ndim, np.int64)
        elif alone_b:
            result = labels
        elif not alone_a:
            a, b = np.broadcast_arrays(result, labels)
            ties.append((a, b))
            result = np.maximum(a, b)
        shape = tuple(_wider(s, t) for s, t in zip(shape, other, strict=True))
    return result, ties, pins


def _spread_alone(labels: IntArray, other: Shape) -> bool | None:
    """Whether labels vary along an axis on which the other operand has size 1; None if that can't be known."""
    sizes = [other[axis] for axis in range(labels.ndim) if labels.shape[axis] > 1]
    if any(size == 1 for size in sizes):
        return True
    return None if any(not isinstance(size, int) for size in sizes) else False


def _wider(a: int | str | None, b: int | str | None) -> int | str | None:
    return b if a == 1 else a


def carried(shape: tuple[int, ...], output: IntArray) -> IntArray | None:
    """Labels of a constant operand: the result's along the axes on which the constant varies; None if it misfits.

    Where the constant has size 1 its single value serves all channels: it carries none of them.
    """
    extra = output.ndim - len(shape)
    if extra < 0 or any(n not in (1, t) and t > 1 for n, t in zip(shape, output.shape[extra:], strict=True)):
        return None
    if not any(n > 1 and t > 1 for n, t in zip(shape, output.shape[extra:], strict=True)):
        return np.zeros((1,) * len(shape), np.int64)
    index = [slice(0, 1)] * extra + [slice(None) if n > 1 else slice(0, 1) for n in shape]
    labels: IntArray = output[tuple(index)]
    return labels.reshape(labels.shape[extra:])


def _shared(labels: IntArray, output: IntArray) -> bool:
    """Whether a constant has one number for channels that keep labels of their own along another axis."""
    shape = (1,) * (output.ndim - labels.ndim) + labels.shape
    return bool((labels != PINNED).any()) and any(n == 1 < t for n, t in zip(shape, output.shape, strict=True))


def _is_training(call: Call) -> str:
    """Dropout draws numbers when told to train."""
    flag: Value | None = call.operands[2] if len(call.operands) > 2 else None
    if flag is None or (flag.constant is not None and not flag.constant.any()):
        return ""
    return "draws random numbers (Dropout in training mode)"


def trace_typed(call: Call) -> Effect:
    """CastLike: of the second operand only the element type counts."""
    return trace(dataclasses.replace(call, operands=call.operands[:1]))


_OPS = """
Abs Acos Acosh Asin Asinh Atan Atanh BitCast BitwiseNot Cast Ceil Celu Clip Cos Cosh Elu Erf Exp Floor Gelu HardSigmoid
HardSwish IsInf IsNaN LeakyRelu Log Mish Neg Not PRelu Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh
Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu
Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mod Mul
Or Pow Sub Sum Where Xor Identity Dropout
"""

_JUMPS = """
BitCast BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Ceil Equal Floor Greater GreaterOrEqual IsInf IsNaN Less
LessOrEqual Mod Not Round Shrink Sign ThresholdedRelu And Or Xor
"""

_LAWS = {
    **dict.fromkeys(_JUMPS.split(), Law.STEP),
    "Identity": Law.IDENTITY,
    "Dropout": Law.IDENTITY,
    "Neg": Law.NEGATE,
    "Add": Law.ADD,
    "Sub": Law.SUBTRACT,
    "Mul": Law.MULTIPLY,
    "Div": Law.DIVIDE,
    **dict.fromkeys(("Abs", "LeakyRelu", "PRelu", "Relu"), Law.HOMOGENEOUS),
    **dict.fromkeys(
        ("Asin", "Asinh", "Atan", "Atanh", "Erf", "Sigmoid", "Sin", "Sinh", "Softsign", "Tan", "Tanh"), Law.ODD
    ),
}
_CENTRES = {"Sigmoid": 0.5}
# Not 0 where their argument is.
_STEADY = {"HardSigmoid", "Sigmoid"}
_GUARDS = {"Dropout": _is_training}

# Before opset 7 binary ops broadcast by an `axis` attribute, in another way.
_SINCE = dict.fromkeys(["Add", "And", "Div", "Equal", "Greater", "Less", "Mul", "Or", "Pow", "PRelu", "Sub", "Xor"], 7)
_SINCE |= dict.fromkeys(["Max", "Mean", "Min", "Sum"], 8)
# Before that Dropout trains unless an attribute says otherwise.
_SINCE["Dropout"] = 7

register(
    *(
        OpRule(
            op,
            trace,
            since=_SINCE.get(op, 1),
            law=_LAWS.get(op, Law.ANY),
            centre=_CENTRES.get(op, 0.0),
            guard=_GUARDS.get(op, never),
            steady=op in _STEADY,
        )
        for op in _OPS.split()
    ),
    OpRule("CastLike", trace_typed),
    *(OpRule(op, trace, domain="com.microsoft") for op in ("Gelu", "FastGelu", "BiasGelu", "QuickGelu")),
)
