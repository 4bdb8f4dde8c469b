"""Weights that a network works out from stored numbers alone, stored instead.

A weight may be kept as its direction and its length, or be made positive by an Exp: an exporter that does not fold what
follows from stored numbers leaves that to each run. What comes out is one tensor, however often it is worked out, and
stored it is a weight like any other. What takes less room as it is stays (quantized weights, products of low rank).
"""

from __future__ import annotations

import math

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


def folded(network: Network) -> Network:
    """A network that stores the weights that it works out; `network` itself where there are none."""
    fixed = _Fixed(network)
    found: dict[int, Array] = {}
    for name in fixed.edges():
        room = fixed.room(name)
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

    def _passes(self, node: Node) -> bool:
        network = self._network
        plain = not node.domain and ("", node.op) not in network.functions and node.op not in _DRAWN
        if not plain or len(node.outputs) != 1 or not any(node.inputs) or network.root(node.outputs[0]):
            return False
        if any(True for attribute in network.proto.graph.node[node.index].attribute for _ in bodies_of(attribute)):
            return False
        return all(name in self._nodes or network.root(name) for name in node.inputs if name)

    def edges(self) -> list[str]:
        """Floating-point tensors of these that other nodes read."""
        return [n for n in self._nodes if self._network.types.get(n) in _FLOATS and not self._kept_inside(n)]

    def _kept_inside(self, name: str) -> bool:
        """Whether only these nodes read a tensor."""
        network = self._network
        readers = (node.outputs[0] in self._nodes for node, _ in network.consumers.get(name, ()))
        return name not in network.captured and name not in network.outputs and all(readers)

    def _cone(self, name: str) -> set[str]:
        """What a tensor is worked out from, itself included."""
        found, waiting = set[str](), [name]
        while waiting:
            tensor = waiting.pop()
            if tensor and tensor not in found:
                found.add(tensor)
                waiting += self._nodes[tensor].inputs if tensor in self._nodes else ()
        return found

    def room(self, name: str) -> int:
        """Bytes that are stored for nothing else than to work out such tensors."""
        stored = [self._network.constant(t) for t in self._cone(name) - self._nodes.keys() if self._kept_inside(t)]
        return sum(value.nbytes for value in stored if value is not None)

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
        known = value is not None and value.dtype.kind in "fiub"
        return value.astype(self._network.dtype(name), copy=False) if value is not None and known else None
