"""Ops that combine the elements along an axis: barriers where that is the channel axis, carriers where it is not."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from onnx_condense.ops.layout import COMPUTED_AXES, checked, numbers_of
from onnx_condense.ops.registry import Call, Effect, Law, OpRule, Role, register
from onnx_condense.plan import ConstantUse, Operand

NORMALISED = "normalised over the channels"
SORTED = "ordered, summed up or searched along the channels"
ATTENTION = "read by an attention op"
CONTROL = "read by control flow"
QUANTIZED = "quantized; condense first, quantize after"
BLOCKED = "laid out for one kind of machine"
PARAMETERS = "normalised with computed parameters"
ACROSS = "normalised, then scaled along other axes"
UNKNOWN_RANK = "shape not known"

Axes = Callable[[Call, int], Sequence[int] | None]
"""Which axes an op combines, for an operand of some rank; None where that is computed."""


def _one(default: int) -> Axes:
    """The `axis` attribute alone."""
    return lambda call, rank: (call.attributes.get("axis", default) % rank,)


def _from(default: int) -> Axes:
    """The `axis` attribute and all behind it."""
    return lambda call, rank: range(call.attributes.get("axis", default) % rank, rank)


def _told(call: Call, rank: int) -> tuple[int, ...] | None:
    """The number that the second operand holds."""
    first = next(iter(numbers_of(call.operands[1] if len(call.operands) > 1 else None) or ()), None)
    return None if first is None else (first % rank,)


def _listed(*default: int) -> Axes:
    """The `axes` attribute."""
    return lambda call, rank: tuple(axis % rank for axis in call.attributes.get("axes", default))


def _over(axes: Axes, reason: str) -> Callable[[Call], Effect]:
    """The trace of an op that combines some axes: labels on others pass."""

    def trace(call: Call) -> Effect:
        x = call.operands[0]
        if x is None or x.labels is None:
            return Effect(None)
        others = tuple((v.labels, reason) for v in call.operands[1:] if v is not None and v.labels is not None)
        if not x.labels.ndim or len(x.shape or ()) != x.labels.ndim:
            return Effect(None, pins=((x.labels, UNKNOWN_RANK), *others))
        places = axes(call, x.labels.ndim)
        if places is None:
            return Effect(None, pins=((x.labels, COMPUTED_AXES), *others))
        # A single label does not tell on which axis its channel lies.
        if x.labels.size == 1 or any(x.labels.shape[axis] > 1 for axis in places):
            return Effect(None, pins=((x.labels, reason), *others))
        return Effect(x.labels, pins=others)

    return trace


def _barrier(reason: str) -> Callable[[Call], Effect]:
    """The trace of an op that lets nothing pass."""

    def trace(call: Call) -> Effect:
        found = [v.labels for v in call.operands if v is not None and v.labels is not None]
        return Effect(None, pins=tuple((labels, reason) for labels in found))

    return trace


def trace_instance(call: Call) -> Effect:
    """InstanceNormalization: every channel by itself, then a factor and a shift per channel."""
    x = call.operands[0]
    if x is None or x.labels is None:
        return Effect(None)
    size = x.labels.shape[1] if x.labels.ndim > 2 else 0
    if size != x.labels.size or size < 2:
        return Effect(None, pins=((x.labels, NORMALISED),))
    parameters = call.operands[1:3]
    if any(p is None or p.constant is None or p.constant.shape != (size,) for p in parameters):
        return Effect(None, pins=((x.labels, PARAMETERS),))
    line = x.labels.reshape(-1)
    return Effect(x.labels, constants=tuple(ConstantUse(Operand(call.index, i), line) for i in (1, 2)))


def trace_layer(call: Call) -> Effect:
    """All axes from one on are normalised, then scaled and shifted by numbers that these axes alone tell apart."""
    effect = _over(_from(-1), NORMALISED)(call)
    if effect.output is None:
        return effect
    found = [v for v in call.operands if v is not None]
    axes = effect.output.ndim - call.attributes.get("axis", -1) % effect.output.ndim
    why = PARAMETERS if any(v.constant is None for v in found[1:]) else ""
    # A scale may have axes before them too, where the standard lets it broadcast.
    if any(v.constant is not None and np.any(np.array(v.constant.shape[:-axes]) > 1) for v in found[1:]):
        why = why or ACROSS
    pins = tuple((v.labels, why) for v in found if v.labels is not None)
    return Effect(None, pins=pins) if why else effect


def trace_search(call: Call) -> Effect:
    """The place of one element along an axis, which stays with size 1 or goes."""
    effect = _over(_one(0), SORTED)(call)
    if effect.output is None or call.attributes.get("keepdims", 1):
        return effect
    return checked(call, effect.output, np.squeeze(effect.output, call.attributes.get("axis", 0)))


# By opset: before 13 all axes from `axis` on are one.
_SOFTMAX: tuple[tuple[int, int, Axes], ...] = ((1, 12, _from(1)), (13, 2**31, _one(-1)))

_BARRIERS: tuple[tuple[str, str, str], ...] = (
    ("", NORMALISED, "GroupNormalization"),
    (
        "com.microsoft",
        NORMALISED,
        "GroupNorm SimplifiedLayerNormalization SkipGroupNorm SkipLayerNormalization SkipSimplifiedLayerNormalization",
    ),
    ("", SORTED, "NonMaxSuppression NonZero Unique"),
    ("", ATTENTION, "Attention LinearAttention RotaryEmbedding"),
    (
        "com.microsoft",
        ATTENTION,
        "Attention EmbedLayerNormalization GatedRelativePositionBias GroupQueryAttention MultiHeadAttention",
    ),
    (
        "com.microsoft",
        ATTENTION,
        "DecoderMaskedMultiHeadAttention LongformerAttention PackedAttention PackedMultiHeadAttention",
    ),
    ("com.microsoft", ATTENTION, "PagedAttention RotaryEmbedding SparseAttention"),
    (
        "com.microsoft",
        QUANTIZED,
        "DequantizeLinear DynamicQuantizeLSTM DynamicQuantizeMatMul GatherBlockQuantized MatMulBnb4 QuantizeLinear",
    ),
    ("com.microsoft", QUANTIZED, "MatMulIntegerToFloat MatMulNBits QAttention QEmbedLayerNormalization QGemm QMoE"),
    ("com.microsoft", QUANTIZED, "QLinearAdd QLinearAveragePool QLinearConcat QLinearConv QLinearGlobalAveragePool"),
    (
        "com.microsoft",
        QUANTIZED,
        "QLinearLeakyRelu QLinearMul QLinearReduceMean QLinearSigmoid QLinearSoftmax QLinearWhere",
    ),
    ("", CONTROL, "If Loop Scan"),
    (
        "",
        QUANTIZED,
        "ConvInteger DequantizeLinear DynamicQuantizeLinear MatMulInteger QLinearConv QLinearMatMul QuantizeLinear",
    ),
    ("com.microsoft", BLOCKED, "NhwcConv NhwcFusedConv NhwcMaxPool"),
    (
        "com.microsoft.nchwc",
        BLOCKED,
        "AveragePool Conv GlobalAveragePool GlobalMaxPool MaxPool ReorderInput ReorderOutput Upsample",
    ),
)
"""Ops that let no channel go: domain, reason, names."""

_ADVICE = {
    QUANTIZED: "it is quantized: condense the network that it was made from, quantize after",
    BLOCKED: "it was optimized by ONNX Runtime for one kind of machine: give the network that it was made from",
}
"""By reason, what a caller can do about it."""

register(
    OpRule("InstanceNormalization", trace_instance, since=6, law=Law.ANY, per_channel=True, steady=True),
    OpRule("LpNormalization", _over(_one(-1), NORMALISED), law=Law.EACH),
    OpRule("LRN", _over(lambda _, rank: (1 % rank,), NORMALISED), law=Law.EACH),
    OpRule("MeanVarianceNormalization", _over(_listed(0, 2, 3), NORMALISED), since=9, law=Law.EACH, steady=True),
    *(OpRule(op, trace_layer, law=Law.EACH, steady=True) for op in ("LayerNormalization", "RMSNormalization")),
    *(
        OpRule(op, _over(axes, NORMALISED), since=since, until=until, law=law, per_channel=law is Law.STEP)
        for op, law in (("Softmax", Law.EACH), ("LogSoftmax", Law.EACH), ("Hardmax", Law.STEP))
        for since, until, axes in _SOFTMAX
    ),
    OpRule("CumSum", _over(_told, SORTED), law=Law.PADDED),
    OpRule("CumProd", _over(_told, SORTED), law=Law.EACH),
    # Its second result jumps.
    OpRule("TopK", _over(_one(-1), SORTED), law=Law.STEP, per_channel=True),
    *(OpRule(op, trace_search, law=Law.STEP, per_channel=True) for op in ("ArgMax", "ArgMin")),
    *(
        OpRule(op, _barrier(reason), domain, role=Role.BARRIER, reason=reason, advice=_ADVICE.get(reason, ""))
        for domain, reason, ops in _BARRIERS
        for op in ops.split()
    ),
)
