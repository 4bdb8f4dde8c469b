"""Ops of ONNX Runtime that do the work of several: products and convolutions that apply an activation themselves.

Its optimizer writes them (domain com.microsoft). What they read is weighed before the activation, so as readers they
are as linear as the op that they stand for; what is added to their sums has to go into their own bias.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from onnx_condense.ops import elementwise
from onnx_condense.ops.conv import reads_zeros
from onnx_condense.ops.conv import trace_conv as trace_plain_conv
from onnx_condense.ops.linear import trace_gemm, trace_transposable
from onnx_condense.ops.registry import Activation, Call, Effect, Law, OpRule, Role, Value, find, register
from onnx_condense.plan import FloatArray

DOMAIN = "com.microsoft"
COMPUTED_BIAS = "computed bias in front of an activation inside the op"
UNKNOWN_FUNCTION = "activation inside the op that is not known"
SHUFFLED = "product that moves batch axes"
RESIDUAL = "added to a convolution without channels"

_RESIDUAL = 3


@dataclasses.dataclass(frozen=True)
class _Function:
    """alike: the op of the default domain that it is; parameters: name and default, in the order of a list of them."""

    alike: str
    of: Callable[..., FloatArray]
    parameters: tuple[tuple[str, float], ...] = ()


def _elu(x: FloatArray, alpha: float) -> FloatArray:
    return np.where(x < 0, alpha * np.expm1(np.minimum(x, 0.0)), x)


def _selu(x: FloatArray, alpha: float, gamma: float) -> FloatArray:
    return gamma * _elu(x, alpha)


def _sigmoid(x: FloatArray) -> FloatArray:
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * x)))


_FUNCTIONS: Mapping[str, _Function] = {
    "Relu": _Function("Relu", lambda x: np.maximum(x, 0.0)),
    "Tanh": _Function("Tanh", np.tanh),
    "Sigmoid": _Function("Sigmoid", _sigmoid),
    "Softplus": _Function("Softplus", lambda x: np.logaddexp(x, 0.0)),
    "Softsign": _Function("Softsign", lambda x: x / (1.0 + np.abs(x))),
    "LeakyRelu": _Function("LeakyRelu", lambda x, alpha: np.where(x < 0, alpha * x, x), (("alpha", 0.01),)),
    "ThresholdedRelu": _Function("ThresholdedRelu", lambda x, alpha: np.where(x > alpha, x, 0.0), (("alpha", 1.0),)),
    "Elu": _Function("Elu", _elu, (("alpha", 1.0),)),
    "Celu": _Function("Celu", lambda x, alpha: alpha * _elu(x / alpha, 1.0), (("alpha", 1.0),)),
    "Selu": _Function("Selu", _selu, (("alpha", 1.67326319217681884765625), ("gamma", 1.05070102214813232421875))),
    "HardSigmoid": _Function(
        "HardSigmoid", lambda x, alpha, beta: np.clip(alpha * x + beta, 0.0, 1.0), (("alpha", 0.2), ("beta", 0.5))
    ),
    "Clip": _Function("Clip", np.clip, (("min", -np.inf), ("max", np.inf))),
}


def _activation(attributes: Mapping[str, Any]) -> Activation | None:
    """What the attribute `activation` names; its parameters are a list or attributes of their own."""
    function = _FUNCTIONS.get(attributes.get("activation", ""))
    rule = None if function is None else find("", function.alike, 24)
    if function is None or rule is None:
        return None
    listed = attributes.get("activation_params")
    given = [attributes.get(f"activation_{name}", default) for name, default in function.parameters]
    return Activation(rule, functools.partial(_applied, function, tuple(listed or given)))


def _applied(function: _Function, parameters: Sequence[float], x: FloatArray) -> FloatArray:
    return np.asarray(function.of(x, *parameters), np.float64)


def _takes_no_offset(call: Call) -> str:
    """Why nothing can be added to the sums of a node, or what it makes of them is not known."""
    name, listed = call.attributes.get("activation", ""), call.attributes.get("activation_params")
    function = _FUNCTIONS.get(name)
    if (name and function is None) or (listed and (function is None or len(listed) != len(function.parameters))):
        return UNKNOWN_FUNCTION
    bias = call.operands[2] if len(call.operands) > 2 else None
    return COMPUTED_BIAS if bias is not None and bias.constant is None else ""


def trace_conv(call: Call) -> Effect:
    """Y = activation(W * X + b + Z)."""
    effect = trace_plain_conv(call)
    z = call.operands[_RESIDUAL] if len(call.operands) > _RESIDUAL else None
    if z is None:
        return effect
    if effect.output is None:
        pins = () if z.labels is None else ((z.labels, RESIDUAL),)
        return dataclasses.replace(effect, pins=(*effect.pins, *pins))
    product = Value("", effect.output, call.result_shape, None)
    joined = elementwise.trace(dataclasses.replace(call, operands=(product, *(None,) * (_RESIDUAL - 1), z)))
    return dataclasses.replace(
        effect,
        output=joined.output,
        ties=(*effect.ties, *joined.ties),
        constants=(*effect.constants, *joined.constants),
        pins=(*effect.pins, *joined.pins),
    )


def _moves_batches(call: Call) -> str:
    return SHUFFLED if call.attributes.get("transBatchA") or call.attributes.get("transBatchB") else ""


register(
    OpRule(
        "FusedConv",
        trace_conv,
        domain=DOMAIN,
        law=Law.FILTER,
        bias=2,
        flat_bias=True,
        multiple=8,
        pads=reads_zeros,
        guard=_takes_no_offset,
        activation=_activation,
        residual=_RESIDUAL,
    ),
    OpRule("FusedGemm", trace_gemm, domain=DOMAIN, bias=2, guard=_takes_no_offset, activation=_activation),
    *(
        OpRule(op, trace_transposable, domain=DOMAIN, law=Law.WEIGHED, guard=_moves_batches)
        for op in ("FusedMatMul", "TransposeMatMul")
    ),
    role=Role.WRITES,
)
