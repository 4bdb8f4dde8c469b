"""Lowerings of element-wise ops, activations, products, softmax and reductions."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping

import torch
from torch.nn import functional as fun

from onnx_condense.tune.step import RefusedError, Rule, Run, Step, Tensor, plain, type_of

_BOTH = frozenset({0, 1})


def _with(**defaults: float) -> Callable[[Callable[..., Tensor]], Rule]:
    """The rule of a function of one tensor and of numbers that are attributes with these defaults."""

    def rule(function: Callable[..., Tensor]) -> Rule:
        def build(step: Step) -> Run:
            return functools.partial(function, **{name: step.get(name, usual) for name, usual in defaults.items()})

        return Rule(build)

    return rule


def _leaky(x: Tensor, alpha: float) -> Tensor:
    return fun.leaky_relu(x, alpha)


def _elu(x: Tensor, alpha: float) -> Tensor:
    return fun.elu(x, alpha)


def _selu(x: Tensor, alpha: float, gamma: float) -> Tensor:
    return gamma * fun.elu(x, alpha)


def _celu(x: Tensor, alpha: float) -> Tensor:
    return fun.celu(x, alpha)


def _hard_sigmoid(x: Tensor, alpha: float, beta: float) -> Tensor:
    return torch.clamp(alpha * x + beta, 0, 1)


def _swish(x: Tensor, alpha: float) -> Tensor:
    return x * torch.sigmoid(alpha * x)


def _thresholded(x: Tensor, alpha: float) -> Tensor:
    return torch.where(x > alpha, x, torch.zeros_like(x))


def _prelu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, slope * x, x)


def _gelu(step: Step) -> Run:
    form = step.get("approximate", "none")
    if form not in {"none", "tanh"}:
        raise RefusedError(f"approximate = {form}")
    return functools.partial(fun.gelu, approximate=form)


def _clip(step: Step) -> Run:
    if step.opset < 11:
        # The defaults are the ends of single precision, which change nothing.
        low, high = step.get("min", -math.inf), step.get("max", math.inf)
        return lambda x: torch.clamp(x, low, high)

    def run(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
        return x if low is None and high is None else torch.clamp(x, low, high)

    return run


def _divide(a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _power(a: Tensor, b: Tensor) -> Tensor:
    return torch.pow(a, b).to(a.dtype)


def _modulo(step: Step) -> Run:
    return torch.fmod if step.get("fmod", 0) else torch.remainder


def _folded(function: Callable[[Tensor, Tensor], Tensor]) -> Run:
    return lambda *operands: functools.reduce(function, operands)


def _mean(*operands: Tensor) -> Tensor:
    return functools.reduce(torch.add, operands) / len(operands)


def _cast(step: Step) -> Run:
    dtype = type_of(step.get("to"))
    # Only tell of types that PyTorch does not have.
    step.get("saturate")
    step.get("round_mode")
    return lambda x: x.to(dtype)


def _dropout(step: Step) -> Run:
    step.get("seed")
    step.get("ratio")
    training = step.value(2)
    if step.has(2) and (training is None or training.any()):
        raise RefusedError("it draws random numbers (training mode)")
    return lambda x, *_: x


def _gemm(step: Step) -> Run:
    alpha, beta = step.get("alpha", 1.0), step.get("beta", 1.0)
    flip_a, flip_b = step.get("transA", 0), step.get("transB", 0)

    def run(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        a, b = (a.T if flip_a else a), (b.T if flip_b else b)
        if c is None:
            return a @ b if alpha == 1 else alpha * (a @ b)
        return torch.addmm(c, a, b, beta=beta, alpha=alpha)

    return run


def _einsum(step: Step) -> Run:
    equation = step.get("equation").replace(" ", "")
    return lambda *operands: torch.einsum(equation, *operands)


def _softmax(function: Callable[[Tensor, int], Tensor]) -> Rule:
    def build(step: Step) -> Run:
        axis = step.get("axis", 1 if step.opset < 13 else -1)
        if step.opset >= 13:
            return lambda x: function(x, axis)
        # All axes from this one on are one.
        return lambda x: function(x.flatten(axis), -1).reshape(x.shape)

    return Rule(build)


def _log_softmax(x: Tensor, axis: int) -> Tensor:
    return fun.log_softmax(x, axis)


def _soft(x: Tensor, axis: int) -> Tensor:
    return fun.softmax(x, axis)


Reduction = Callable[[Tensor, list[int]], Tensor]


def _reduce(function: Reduction, listed: int = 18) -> Rule:
    """A reduction that keeps its axes; axes are an operand from opset `listed` on."""

    def build(step: Step) -> Run:
        keep, idle = step.get("keepdims", 1), step.get("noop_with_empty_axes", 0)
        axes_of = step.numbers("axes", 1)
        if step.opset < listed and step.has(1):
            raise RefusedError("axes as an operand")

        def run(*operands: Tensor | None) -> Tensor:
            x = operands[0]
            assert x is not None
            axes = axes_of(operands)
            if not axes and idle:
                return x
            axes = sorted(a % x.ndim for a in axes) if axes else list(range(x.ndim))
            result = function(x, axes).to(x.dtype)
            return result if keep else result.reshape([n for a, n in enumerate(x.shape) if a not in axes])

        return run

    return Rule(build, lists=frozenset({1}))


def _product(x: Tensor, axes: list[int]) -> Tensor:
    return functools.reduce(lambda y, axis: y.prod(axis, keepdim=True), axes, x)


def _norm(x: Tensor, axes: list[int], order: int) -> Tensor:
    # The norm's own gradient is 0 at 0, where that of a square root is not finite.
    return torch.linalg.vector_norm(x, order, axes, keepdim=True) if axes else x.abs()


_REDUCTIONS: Mapping[str, Reduction] = {
    "ReduceMean": lambda x, axes: x.mean(axes, keepdim=True),
    "ReduceMax": lambda x, axes: x.amax(axes, keepdim=True),
    "ReduceMin": lambda x, axes: x.amin(axes, keepdim=True),
    "ReduceProd": _product,
    "ReduceL1": functools.partial(_norm, order=1),
    "ReduceL2": functools.partial(_norm, order=2),
    "ReduceSumSquare": lambda x, axes: (x * x).sum(axes, keepdim=True),
    "ReduceLogSum": lambda x, axes: x.sum(axes, keepdim=True).log(),
    "ReduceLogSumExp": lambda x, axes: torch.logsumexp(x, axes, keepdim=True),
}


def _total(x: Tensor, axes: list[int]) -> Tensor:
    return x.sum(axes, keepdim=True)


def _lp_normalization(step: Step) -> Run:
    axis, order = step.get("axis", -1), step.get("p", 2)

    def run(x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, order, axis, keepdim=True)
        return x / torch.where(length == 0, torch.ones_like(length), length)

    return run


_PLAIN: Mapping[str, Run] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "And": torch.logical_and,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Equal": torch.eq,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "HardSwish": fun.hardswish,
    "Identity": lambda x: x,
    "IsNaN": torch.isnan,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Log": torch.log,
    "Max": _folded(torch.maximum),
    "Mean": _mean,
    "Min": _folded(torch.minimum),
    "Mish": fun.mish,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Or": torch.logical_or,
    "Reciprocal": torch.reciprocal,
    "Relu": fun.relu,
    "Round": torch.round,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Softplus": fun.softplus,
    "Softsign": fun.softsign,
    "Sqrt": torch.sqrt,
    "Sum": _folded(torch.add),
    "Tan": torch.tan,
    "Tanh": torch.tanh,
    "Where": torch.where,
    "Xor": torch.logical_xor,
}


def _binary(function: Run) -> Rule:
    return Rule(lambda _: function, trains=_BOTH, wide=True)


RULES: Mapping[str, Rule] = {
    **{op: plain(function) for op, function in _PLAIN.items()},
    **{op: _reduce(function) for op, function in _REDUCTIONS.items()},
    "ReduceSum": _reduce(_total, 13),
    "Add": _binary(torch.add),
    "Sub": _binary(torch.sub),
    "Mul": _binary(torch.mul),
    "Div": _binary(_divide),
    "Pow": Rule(lambda _: _power, fixed=frozenset({1})),
    "Mod": Rule(_modulo),
    "Cast": Rule(_cast),
    "Clip": Rule(_clip, fixed=frozenset({1, 2})),
    "Dropout": Rule(_dropout, lists=frozenset({1, 2})),
    "LeakyRelu": _with(alpha=0.01)(_leaky),
    "Elu": _with(alpha=1.0)(_elu),
    "Selu": _with(alpha=1.67326319217681884765625, gamma=1.05070102214813232421875)(_selu),
    "Celu": _with(alpha=1.0)(_celu),
    "HardSigmoid": _with(alpha=0.2, beta=0.5)(_hard_sigmoid),
    "Swish": _with(alpha=1.0)(_swish),
    "ThresholdedRelu": _with(alpha=1.0)(_thresholded),
    "PRelu": Rule(lambda _: _prelu, trains=frozenset({1})),
    "Gelu": Rule(_gelu),
    "Gemm": Rule(_gemm, trains=frozenset({0, 1, 2})),
    "MatMul": Rule(lambda _: torch.matmul, trains=_BOTH),
    "Einsum": Rule(_einsum, trains=_BOTH),
    "Softmax": _softmax(_soft),
    "LogSoftmax": _softmax(_log_softmax),
    "LpNormalization": Rule(_lp_normalization),
}
