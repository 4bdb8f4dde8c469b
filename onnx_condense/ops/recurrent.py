"""Recurrent layers: readers of the channels of their input; their hidden width stays.

The first thing that LSTM, GRU and RNN make of their input X [seq, batch, I] (layout 1: [batch, seq, I]) is
X W[d]^T + Wb[d] for each direction d, with W [D, G H, I] for G gates of H hidden units each; Wb is the first half of
B [D, 2 G H]. All else (gates, activations, clips, peepholes, lengths, linear_before_reset) happens to that sum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from onnx_condense.ops.linear import COMPUTED_WEIGHT, UNKNOWN_RANK, channel_columns, unsupported
from onnx_condense.ops.registry import Call, Effect, OpRule, Role, register
from onnx_condense.plan import FloatArray, IntArray, LinearUse, Operand

RECURRENT = "read by a recurrent layer"
HIDDEN = "hidden width of a recurrent layer"
COMPUTED_BIAS = "computed bias of a recurrent layer"
MISFIT = "shapes that a recurrent layer can't have"

GATES = {"GRU": 3, "LSTM": 4, "RNN": 1}
"""How many gates read the input, by op."""

BIAS = 3
"""Where the bias is among the operands X, W, R, B, sequence_lens, initial_h, ..."""


def _trace(gates: int) -> Callable[[Call], Effect]:
    """The trace of a recurrent op with so many gates."""

    def trace(call: Call) -> Effect:
        x, w = call.operands[0], call.operands[1]
        held = _pins(call, range(1, len(call.operands)), RECURRENT)
        reason = _unsupported(call, gates)
        if reason or x is None or x.labels is None or w is None or w.constant is None:
            return Effect(None, pins=(*_pins(call, range(1), reason), *held))
        directions, rows, size = w.constant.shape
        columns, pins = channel_columns(x.labels, 2, size)
        # All gates of a hidden unit belong to that unit.
        units = call.fresh(directions * rows // gates)
        use = LinearUse(
            weight=Operand(call.index, 1),
            activation=Operand(call.index, 0),
            in_axis=2,
            out_axis=(0, 1),
            act_axis=2,
            result_axis=None,
            columns=columns,
            rows=np.tile(units.reshape(directions, 1, -1), (1, gates, 1)).reshape(-1),
        )
        return Effect(None, linear=(use,), pins=(*pins, *held, (units, HIDDEN)))

    return trace


def _pins(call: Call, positions: Sequence[int], reason: str) -> tuple[tuple[IntArray, str], ...]:
    """Pins for the operands that carry labels."""
    found = [v.labels for v in (call.operands[i] for i in positions) if v is not None and v.labels is not None]
    return tuple((labels, reason) for labels in found)


def _unsupported(call: Call, gates: int) -> str:
    """Why the input of this node keeps its channels, or ""."""
    x, w = call.operands[0], call.operands[1]
    if w is None or w.constant is None:
        return COMPUTED_WEIGHT
    shape = w.constant.shape
    if len(shape) != 3 or shape[1] % gates:
        return MISFIT
    if reason := unsupported(w, ranks=(3,)):
        return reason
    bias = call.operands[BIAS] if len(call.operands) > BIAS else None
    if bias is not None and bias.constant is None:
        return COMPUTED_BIAS
    if bias is not None and bias.constant is not None and bias.constant.shape != (shape[0], 2 * shape[1]):
        return MISFIT
    return "" if x is None or x.labels is None or x.labels.ndim == 3 else UNKNOWN_RANK


def in_bias(offset: FloatArray, weight: Sequence[int]) -> FloatArray:
    """Numbers [D G H] for the rows -> [D, 2 G H]: they are added to Wb, and nothing to Rb."""
    own = offset.reshape(tuple(weight[:2]))
    return np.concatenate([own, np.zeros_like(own)], axis=1)


# Before opset 7 these ops were experimental.
register(
    *(OpRule(op, _trace(gates), since=7, bias=BIAS, in_bias=in_bias) for op, gates in GATES.items()), role=Role.READS
)
