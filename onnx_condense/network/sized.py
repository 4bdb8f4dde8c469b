"""Sizes of a network that leaves some open, where it is given a certain feed."""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from onnx_condense.network.external import byte_count
from onnx_condense.network.model import SMALL, Network
from onnx_condense.runtime import Array


def sized(network: Network, feed: Mapping[str, Array]) -> Network:
    """The network with the sizes of a feed for its inputs, to ask for shapes and work; not to be run.

    What it stores of more than SMALL bytes is there without its numbers. Where no size is left open it is the network.
    """
    declared = {i.name: i for i in network.proto.graph.input}
    asked = {name: declared[name].type.tensor_type for name in feed if name in declared}
    if all(t.HasField("shape") and all(d.HasField("dim_value") for d in t.shape.dim) for t in asked.values()):
        return network
    proto = _hollow(network.proto)
    for value in proto.graph.input:
        if value.name in asked:
            value.CopyFrom(
                onnx.helper.make_tensor_value_info(value.name, asked[value.name].elem_type, feed[value.name].shape)
            )
    return Network(proto, network.path)


def _hollow(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose large tensors have names, types and shapes only."""
    copy = onnx.ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import, functions=proto.functions)
    given, graph = proto.graph, copy.graph
    graph.name = given.name
    for name in ("node", "input", "output", "value_info", "sparse_initializer"):
        getattr(graph, name).extend(getattr(given, name))
    for tensor in given.initializer:
        # Strings have no raw form; labels of classes are few.
        large = tensor.data_type != onnx.TensorProto.STRING and byte_count(tensor) > SMALL
        hollow = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        graph.initializer.append(hollow if large else tensor)
    return copy
