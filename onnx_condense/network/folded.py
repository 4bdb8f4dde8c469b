"""Weights that a network works out from stored numbers alone, stored instead.

A weight may be kept as its direction and its length, or be made positive by an Exp: an exporter that does not fold what
follows from stored numbers leaves that to each run. What comes out is one tensor, however often it is worked out, and
stored it is a weight like any other. What takes less room as it is stays (quantized weights, products of low rank).
"""

from __future__ import annotations

import collections
import math
from collections.abc import Set as AbstractSet

import onnx

from onnx_condense.errors import ModelError
from onnx_condense.network.live import DEFAULTS, prune
from onnx_condense.network.model import Network
from onnx_condense.network.nodes import Node, bodies_of
from onnx_condense.network.settled import store
from onnx_condense.runtime import Array, run_node

# Ops that draw numbers.
_DRAWN = frozenset({"Bernoulli", "Dropout", "Multinomial", "RandomNormalLike", "RandomUniformLike"})
_FLOATS = frozenset({onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE})
# What comes out of ONNX Runtime as what it is: sequences and floats of 8 bits do not.
_PLAIN = _FLOATS | {onnx.TensorProto.BOOL, onnx.TensorProto.INT8, onnx.TensorProto.INT16, onnx.TensorProto.INT32}
_PLAIN |= {onnx.TensorProto.INT64, onnx.TensorProto.UINT8, onnx.TensorProto.UINT16, onnx.TensorProto.UINT32}
_PLAIN |= {onnx.TensorProto.UINT64}


def folded(network: Network) -> Network:
    """A network that stores the weights that it works out; `network` itself where there are none."""
    if ("", "Constant") in network.functions:
        return network
    fixed = _Fixed(network)
    found: dict[int, Array] = {}
    for name, room in fixed.rooms().items():
        told = math.prod(n for n in network.shape(name) or () if isinstance(n, int)) * network.dtype(name).itemsize
        # What is known to be larger is not worked out.
        if told <= room and (value := fixed.value(name)) is not None and value.nbytes <= room:
            found[network.producers[name].index] = value
    if not found:
        return network
    proto = onnx.ModelProto()
    proto.CopyFrom(network.proto)
    store(proto.graph, found)
    prune(proto.graph, interface=proto.ir_version >= DEFAULTS)
    return Network(proto, network.path, network.given)


class _Fixed:
    """Nodes that work something out from stored numbers alone, by the name of their result, in their order."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._nodes: dict[str, Node] = {}
        self._values: dict[str, Array | None] = {}
        for node in network.nodes:
            if self._passes(node):
                self._nodes[node.outputs[0]] = node
        # With those that only lay out what is stored.
        laid_out = {n.outputs[0]: n for n in network.nodes if any(n.inputs) and network.root(n.result)}
        self._made = {**laid_out, **self._nodes}

    def _passes(self, node: Node) -> bool:
        network = self._network
        plain = not node.domain and ("", node.op) not in network.functions and node.op not in _DRAWN
        if not plain or len(node.outputs) != 1 or not any(node.inputs) or network.root(node.outputs[0]):
            return False
        if network.types.get(node.outputs[0]) not in _PLAIN:
            return False
        if any(True for attribute in network.proto.graph.node[node.index].attribute for _ in bodies_of(attribute)):
            return False
        return all(name in self._nodes or network.root(name) for name in node.inputs if name)

    def rooms(self) -> dict[str, int]:
        """Floating-point tensors of these that other nodes read.

        Returns:
            For each the bytes that are stored for nothing else than to work it out. What several are worked out from
            would stay for the others, or be stored for each of them.
        """
        edges = [n for n in self._made if not self._kept_inside(n)]
        stored = {n: self._cone(n, frozenset(edges) - {n}) - self._made.keys() for n in edges}
        often = collections.Counter(t for names in stored.values() for t in names if self._kept_inside(t))
        wanted = [n for n in edges if n in self._nodes and self._network.types.get(n) in _FLOATS]
        return {n: sum(self._bytes(t) for t in stored[n] if often[t] == 1) for n in wanted}

    def _bytes(self, name: str) -> int:
        value = self._network.constant(name)
        return 0 if value is None else value.nbytes

    def _kept_inside(self, name: str) -> bool:
        """Whether only these nodes read a tensor."""
        network = self._network
        readers = (node.outputs[0] in self._made for node, _ in network.consumers.get(name, ()))
        return name not in network.captured and name not in network.outputs and all(readers)

    def _cone(self, name: str, ends: AbstractSet[str] = frozenset()) -> set[str]:
        """What a tensor is worked out from, itself included, and no further than to some."""
        found, waiting = set[str](), [name]
        while waiting:
            tensor = waiting.pop()
            if tensor and tensor not in found:
                found.add(tensor)
                waiting += self._made[tensor].inputs if tensor in self._made and tensor not in ends else ()
        return found

    def value(self, name: str) -> Array | None:
        """What a tensor comes to; None where ONNX Runtime can't tell, or where that is one number."""
        for node in sorted((self._nodes[t] for t in self._cone(name) & self._nodes.keys()), key=lambda n: n.index):
            if node.outputs[0] not in self._values:
                self._values[node.outputs[0]] = self._run(node)
        value = self._values[name]
        return None if value is None or value.size < 2 else value

    def _run(self, node: Node) -> Array | None:
        found = [self._operand(name) for name in node.inputs if name]
        operands = [value for value in found if value is not None]
        if len(operands) < len(found):
            return None
        try:
            return run_node(self._network.proto, self._network.proto.graph.node[node.index], operands)
        except ModelError:
            return None

    def _operand(self, name: str) -> Array | None:
        if name in self._nodes:
            return self._values[name]
        value = self._network.constant(name)
        # ONNX Runtime takes no arrays of the types that numpy does not know.
        if value is None or onnx.helper.np_dtype_to_tensor_dtype(value.dtype) not in _PLAIN:
            return None
        return value.astype(self._network.dtype(name), copy=False)
