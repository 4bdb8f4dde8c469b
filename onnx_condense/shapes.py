"""Static shapes of tensors, from ONNX shape inference."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import onnx

logger = logging.getLogger(__name__)

Shape = tuple[int | str | None, ...]

# Shape inference wants the values of small integer constants (Reshape, Slice), never those of weights.
_SMALL = 1024


def infer_shapes(proto: onnx.ModelProto) -> Mapping[str, Shape]:
    """Shapes of the main graph's tensors as far as they can be known, by name.

    Large initializers become inputs of a throw-away copy, so that weights are neither copied nor loaded.
    """
    light = _without_weights(proto)
    try:
        inferred = onnx.shape_inference.infer_shapes(light, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        logger.info("shape inference failed, declared shapes only: %s", error)
        inferred = light
    graph = inferred.graph
    return {v.name: shape for v in (*graph.input, *graph.value_info, *graph.output) if (shape := _shape(v)) is not None}


def _without_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    light = onnx.ModelProto(ir_version=max(proto.ir_version, 4), opset_import=proto.opset_import)
    light.functions.extend(proto.functions)
    graph = light.graph
    graph.node.extend(proto.graph.node)
    graph.input.extend(proto.graph.input)
    graph.output.extend(proto.graph.output)
    graph.value_info.extend(proto.graph.value_info)
    declared = {i.name for i in proto.graph.input}
    for tensor in proto.graph.initializer:
        size = 1
        for d in tensor.dims:
            size *= d
        if size <= _SMALL and tensor.data_location != onnx.TensorProto.EXTERNAL:
            graph.initializer.append(tensor)
        elif tensor.name not in declared:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return light


def _shape(value: onnx.ValueInfoProto) -> Shape | None:
    if not value.type.HasField("tensor_type") or not value.type.tensor_type.HasField("shape"):
        return None
    return tuple(_size(d) for d in value.type.tensor_type.shape.dim)


def _size(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    if dim.HasField("dim_value"):
        return dim.dim_value if dim.dim_value >= 0 else None
    return dim.dim_param or None
