"""Static shapes of tensors, from ONNX shape inference."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
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
    **dict.fromkeys((("ai.onnx.ml", op) for op in ("Binarizer", "Imputer")), "Identity"),
    **dict.fromkeys((("ai.onnx.ml", op) for op in ("Normalizer", "Scaler")), "Cast"),
}


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
    _translate(graph, {(f.domain, f.name) for f in proto.functions})
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


def _translate(graph: onnx.GraphProto, functions: AbstractSet[tuple[str, str]]) -> None:
    """Ops that onnx does not know but whose result is shaped like their first operand."""
    for node in graph.node:
        op = (node.domain, node.op_type)
        if op in _ALIKE and op not in functions:
            del node.attribute[:], node.input[1:]
            node.domain, node.op_type = "", _ALIKE[op]
            if node.op_type == "Cast":
                node.attribute.append(onnx.helper.make_attribute("to", onnx.TensorProto.FLOAT))


def _shape(value: onnx.ValueInfoProto) -> Shape | None:
    if not value.type.HasField("tensor_type") or not value.type.tensor_type.HasField("shape"):
        return None
    return tuple(_size(d) for d in value.type.tensor_type.shape.dim)


def _size(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    if dim.HasField("dim_value"):
        return dim.dim_value if dim.dim_value >= 0 else None
    return dim.dim_param or None
