"""Multiply-accumulates of one node, by op type. An op that is not listed costs none worth counting."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from onnx_condense.network.shapes import Shape
from onnx_condense.ops.recurrent import GATES

Shapes = tuple[Shape | None, Shape | None, Shape | None]
"""Of the first operand, of the second (the weight, as a rule), and of the result."""


def of_node(op: str, attributes: Mapping[str, Any], shapes: Shapes) -> int:
    """Multiply-accumulates of one node; symbolic and unknown sizes count as 1."""
    rule = _RULES.get(op)
    return 0 if rule is None else rule(attributes, *shapes)


def _size(shape: Shape | None) -> int:
    return math.prod(d if isinstance(d, int) else 1 for d in shape or ())


def _product(attributes: Mapping[str, Any], first: Shape | None, second: Shape | None, result: Shape | None) -> int:
    """Every element of the result is one sum over the contracted axis."""
    if not first:
        return 0
    contracted = first[-2] if len(first) > 1 and attributes.get("transA") else first[-1]
    if not isinstance(contracted, int) and second:
        contracted = second[-1] if attributes.get("transB") else second[-2 if len(second) > 1 else 0]
    return _size(result) * (contracted if isinstance(contracted, int) else 1)


def _convolution(_: Mapping[str, Any], __: Shape | None, weight: Shape | None, result: Shape | None) -> int:
    """A weight is [out, in / group, ...]."""
    return _size(result) * _size((weight or (1,))[1:])


def _transposed(_: Mapping[str, Any], first: Shape | None, weight: Shape | None, __: Shape | None) -> int:
    """A weight is [in, out / group, ...]; every element of the input is spread once."""
    return _size(first) * _size((weight or (1,))[1:])


def _recurrent(gates: int) -> Callable[[Mapping[str, Any], Shape | None, Shape | None, Shape | None], int]:
    """At every step and in every direction all gates read the input and the last hidden state.

    Weights are [directions, gates x hidden, in] and [directions, gates x hidden, hidden].
    """

    def count(_: Mapping[str, Any], first: Shape | None, weight: Shape | None, __: Shape | None) -> int:
        rows = weight[1] if weight and len(weight) == 3 else None
        if not isinstance(rows, int):
            return 0
        recurrent = rows * (rows // gates)
        return _size((first or (1,))[:-1]) * (_size(weight) + _size((weight or (1,))[:1]) * recurrent)

    return count


_RULES: Mapping[str, Callable[[Mapping[str, Any], Shape | None, Shape | None, Shape | None], int]] = {
    **dict.fromkeys(("Gemm", "MatMul", "FusedGemm", "FusedMatMul"), _product),
    **dict.fromkeys(("Conv", "FusedConv"), _convolution),
    "ConvTranspose": _transposed,
    **{op: _recurrent(gates) for op, gates in GATES.items()},
}
