"""Ops that combine the elements along an axis: barriers where that is the channel axis, carriers where it is not."""

from __future__ import annotations

from collections.abc import Callable

from onnx_condense.ops.registry import Call, Effect, Law, OpRule, Role, register
from onnx_condense.plan import ConstantUse, Operand

NORMALISED = "normalised over the channels"
SORTED = "ordered, summed up or searched along the channels"
ATTENTION = "read by an attention op"
CONTROL = "read by control flow"
QUANTIZED = "quantized; condense first, quantize after"
BLOCKED = "laid out for one kind of machine"
PARAMETERS = "normalised with computed parameters"
UNKNOWN_RANK = "shape not known"

Axes = Callable[[Call, int], range | tuple[int, ...]]
"""Which axes an op combines, for an operand of some rank."""


def _one(default: int) -> Axes:
    """The `axis` attribute alone."""
    return lambda call, rank: (call.attributes.get("axis", default) % rank,)


def _from(default: int) -> Axes:
    """The `axis` attribute and all behind it."""
    return lambda call, rank: range(call.attributes.get("axis", default) % rank, rank)


def _over(axes: Axes, reason: str) -> Callable[[Call], Effect]:
    """The trace of an op that combines some axes: labels on others pass."""

    def trace(call: Call) -> Effect:
        x = call.operands[0]
        if x is None or x.labels is None:
            return Effect(None)
        if not x.labels.ndim or len(x.shape or ()) != x.labels.ndim:
            return Effect(None, pins=((x.labels, UNKNOWN_RANK),))
        if any(x.labels.shape[axis] > 1 for axis in axes(call, x.labels.ndim)):
            return Effect(None, pins=((x.labels, reason),))
        if x.labels.size == 1:
            return Effect(None, pins=((x.labels, reason),))
        return Effect(x.labels)

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


# By opset: before 13 all axes from `axis` on are one.
_SOFTMAX: tuple[tuple[int, int, Axes], ...] = ((1, 12, _from(1)), (13, 2**31, _one(-1)))

_BARRIERS: tuple[tuple[str, str, str], ...] = (
    ("", NORMALISED, "GroupNormalization LayerNormalization LRN MeanVarianceNormalization RMSNormalization"),
    (
        "com.microsoft",
        NORMALISED,
        "GroupNorm SimplifiedLayerNormalization SkipGroupNorm SkipLayerNormalization SkipSimplifiedLayerNormalization",
    ),
    ("", SORTED, "ArgMax ArgMin CumProd CumSum NonMaxSuppression NonZero TopK Unique"),
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
    OpRule("LpNormalization", _over(_one(-1), NORMALISED), law=Law.ANY, per_channel=True),
    *(
        OpRule(op, _over(axes, NORMALISED), since=since, until=until, law=Law.ANY, per_channel=True)
        for op in ("Softmax", "LogSoftmax", "Hardmax")
        for since, until, axes in _SOFTMAX
    ),
    *(
        OpRule(op, _barrier(reason), domain, role=Role.BARRIER, reason=reason, advice=_ADVICE.get(reason, ""))
        for domain, reason, ops in _BARRIERS
        for op in ops.split()
    ),
)
