"""Static shapes of tensors, from ONNX shape inference."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import numpy.typing as npt
import onnx

logger = logging.getLogger(__name__)

Shape = tuple[int | str | None, ...]

# Shape inference wants the values of small integer constants (Reshape, Slice), never those of weights.
_SMALL = 1024

# Ops that onnx infers no shapes for, and what has a result of the same shape and type.
_ALIKE = {
    **dict.fromkeys((("com.microsoft", op) for op in ("BiasGelu", "FastGelu", "Gelu", "QuickGelu")), "Identity"),
    **dict.fromkeys(
        (("com.microsoft", op) for op in ("GroupNorm", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization")),
        "Identity",
    ),
    **dict.fromkeys((("ai.onnx.ml", op) for op in ("Binarizer", "Imputer")), "Identity"),
    **dict.fromkeys((("ai.onnx.ml", op) for op in ("Normalizer", "Scaler")), "Cast"),
}


# Ops of ONNX Runtime that do more than those they stand for: how many operands and which attributes these know.
_FUSED = {
    ("com.microsoft", "FusedConv"): ("Conv", 3, ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")),
    ("com.microsoft", "FusedGemm"): ("Gemm", 3, ("alpha", "beta", "transA", "transB")),
}
_PRODUCTS = {("com.microsoft", op) for op in ("FusedMatMul", "TransposeMatMul")}


def infer_shapes(proto: onnx.ModelProto) -> Mapping[str, Shape]:
    """Shapes of the main graph's tensors as far as they can be known, by name."""
    return infer(proto)[0]


def infer(
    proto: onnx.ModelProto,
    facts: Mapping[str, npt.NDArray[Any]] | None = None,
    hints: Iterable[onnx.ValueInfoProto] = (),
) -> tuple[Mapping[str, Shape], Mapping[str, int]]:
    """Shapes and element types of the main graph's tensors as far as they can be known, by name.

    Large initializers become inputs of a throw-away copy, so that weights are neither copied nor loaded. Declared
    shapes of inner tensors may be stale; they count only where inference finds none.

    Args:
        proto: the network.
        facts: values of computed tensors that are known all the same, by name.
        hints: what is known of tensors whose shapes inference does not find.
    """
    facts, hints = facts or {}, list(hints)
    graph = _inferred(_without_weights(proto, hints, facts)).graph
    found = {v.name: v for v in (*graph.input, *graph.value_info, *graph.output)}
    unknown = [v for v in proto.graph.value_info if v.name not in found or _shape(found[v.name]) is None]
    if unknown:
        told = {v.name for v in hints}
        unknown = [v for v in unknown if v.name not in told]
        graph = _inferred(_without_weights(proto, [*hints, *unknown], facts)).graph
        found = {v.name: v for v in (*graph.input, *graph.value_info, *graph.output)}
    shapes: dict[str, Shape] = {name: shape for name, v in found.items() if (shape := _shape(v)) is not None}
    types = {n: v.type.tensor_type.elem_type for n, v in found.items() if v.type.HasField("tensor_type")}
    shapes |= {name: value.shape for name, value in facts.items()}
    return shapes, types | {n: onnx.helper.np_dtype_to_tensor_dtype(v.dtype) for n, v in facts.items()}


def _inferred(light: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return onnx.shape_inference.infer_shapes(light, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError) as error:
        logger.info("shape inference failed, declared shapes only: %s", error)
        return light


def _without_weights(
    proto: onnx.ModelProto, declared: Iterable[onnx.ValueInfoProto], facts: Mapping[str, npt.NDArray[Any]]
) -> onnx.ModelProto:
    light = onnx.ModelProto(ir_version=max(proto.ir_version, 4), opset_import=proto.opset_import)
    light.functions.extend(proto.functions)
    graph = light.graph
    graph.node.extend(node for node in proto.graph.node if not (node.output and node.output[0] in facts))
    graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in facts.items())
    graph.input.extend(proto.graph.input)
    graph.output.extend(proto.graph.output)
    graph.value_info.extend(declared)
    ranks = {t.name: len(t.dims) for t in proto.graph.initializer}
    _translate(graph, {(f.domain, f.name) for f in proto.functions}, ranks)
    inputs = {i.name for i in proto.graph.input}
    for tensor in proto.graph.initializer:
        size = 1
        for d in tensor.dims:
            size *= d
        if size <= _SMALL and tensor.data_location != onnx.TensorProto.EXTERNAL:
            graph.initializer.append(tensor)
        elif tensor.name not in inputs:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return light


def _translate(graph: onnx.GraphProto, functions: AbstractSet[tuple[str, str]], ranks: Mapping[str, int]) -> None:
    """Ops that onnx does not know as ones with results of the same shapes; ranks: of what is stored."""
    nodes = []
    for node in graph.node:
        op = (node.domain, node.op_type)
        if op in functions:
            pass
        elif op in _ALIKE:
            nodes += _as_first(node, _ALIKE[op])
        elif op in _FUSED:
            kind, operands, attributes = _FUSED[op]
            _become(node, kind, operands, [a for a in node.attribute if a.name in attributes])
        elif op in _PRODUCTS:
            _as_product(node, [ranks.get(name) for name in node.input])
        nodes.append(node)
    # A new list in between: nodes of the old one are cleared with it.
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def _become(node: onnx.NodeProto, op: str, operands: int, attributes: Sequence[onnx.AttributeProto]) -> None:
    kept = list(attributes)
    del node.attribute[:], node.input[operands:]
    node.domain, node.op_type = "", op
    node.attribute.extend(kept)


def _as_first(node: onnx.NodeProto, op: str) -> list[onnx.NodeProto]:
    """The first result is shaped like the first operand, and so is the fourth; of others nothing is known.

    Returns:
        A node for the fourth: the sum that a normalisation is of.
    """
    more = [name for name in node.output[3:4] if name]
    del node.output[1:]
    _become(node, op, 1, [onnx.helper.make_attribute("to", onnx.TensorProto.FLOAT)] if op == "Cast" else [])
    return [onnx.helper.make_node(op, node.input, [name]) for name in more]


def _as_product(node: onnx.NodeProto, ranks: Sequence[int | None]) -> None:
    """A product that may swap the last two axes of what is no vector; where it moves others nothing is known."""
    flags = {a.name: a.i for a in node.attribute}
    if flags.get("transBatchA") or flags.get("transBatchB"):
        return
    if not flags.get("transA") and not flags.get("transB"):
        _become(node, "MatMul", 2, [])
        return
    sides = ("ji" if flags.get("transA") else "ij", "kj" if flags.get("transB") else "jk")
    # Batch axes of both must be equally many: a stored matrix has none.
    left, right = (axes if rank == 2 else f"...{axes}" for axes, rank in zip(sides, ranks, strict=True))
    result = "ik" if ranks[0] == ranks[1] == 2 else "...ik"
    _become(node, "Einsum", 2, [onnx.helper.make_attribute("equation", f"{left},{right}->{result}")])


def _shape(value: onnx.ValueInfoProto) -> Shape | None:
    if not value.type.HasField("tensor_type") or not value.type.tensor_type.HasField("shape"):
        return None
    return tuple(_size(d) for d in value.type.tensor_type.shape.dim)


def _size(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    if dim.HasField("dim_value"):
        return dim.dim_value if dim.dim_value >= 0 else None
    return dim.dim_param or None
