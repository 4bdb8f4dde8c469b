"""Shapes that are certain, and numbers that follow from them, worked out in one walk through a network.

They follow from the fixed sizes of inputs, on which ONNX Runtime insists, and from stored tensors. No shape that is
declared inside counts: nobody insists on those.
"""

from __future__ import annotations

import collections
import math

import onnx
from onnx import numpy_helper

from onnx_condense.network.known import INTEGERS, LIMIT, Array, Knowledge, Size
from onnx_condense.network.model import Network
from onnx_condense.network.nodes import Node, bodies_of
from onnx_condense.network.shapes import Shape, infer

_POOLS = frozenset({"AveragePool", "LpPool", "MaxPool"})


class Certain:
    """Walks along a network's nodes.

    Args:
        network: what to walk along.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        declared = network.proto.graph.input
        self._shapes = {i.name: shape for i in declared if (shape := _insisted(i)) is not None}
        self._known = Knowledge(network.proto, network.constant, self.shape, network.types, network.functions, now=True)

    def number(self, name: str) -> Array | None:
        """The value of a small tensor, if all of it is known. What it is made of has to be passed already."""
        return self._known.whole(name)

    def passes(self, node: Node) -> None:
        """Work out the shapes of a node's results; what leads to it has to be passed already."""
        proto = self._network.proto.graph.node[node.index]
        unlike = (node.domain, node.op) in self._network.functions or any(
            body for a in proto.attribute for body in bodies_of(a)
        )
        if unlike or node.op == "Constant":
            return
        whole = self._network.types.get(node.outputs[0]) in INTEGERS
        if whole and (value := self.number(node.outputs[0])) is not None:
            self._shapes[node.outputs[0]] = value.shape
            return
        if node.op == "Reshape" and not node.domain:
            shape = self._reshaped(node)
            self._shapes |= {} if shape is None else {node.outputs[0]: shape}
            return
        if self._differs(node):
            return
        found, _ = infer(self._alone(node, proto))
        # Inference makes up symbols, the same ones for every node.
        symbols = {n for name in node.inputs for n in self.shape(name) or () if isinstance(n, str)}
        for name in node.outputs:
            if name in found:
                self._shapes[name] = tuple(n if isinstance(n, int) or n in symbols else None for n in found[name])

    def _differs(self, node: Node) -> bool:
        """Whether ONNX Runtime may make another size than inference tells of: where it rounds in another way.

        Measured with onnx 1.23 and ONNX Runtime 1.32: pools that round up, or have gaps and pad themselves,
        transposed convolutions that pad themselves, ranges of floats.
        """
        pads = str(node.attributes.get("auto_pad", "NOTSET")) not in {"NOTSET", "VALID"}
        if node.op in _POOLS:
            gaps = any(n != 1 for n in node.attributes.get("dilations") or ())
            return bool(node.attributes.get("ceil_mode", 0)) or (pads and gaps)
        if node.op == "ConvTranspose":
            return pads
        return node.op == "Range" and self._network.types.get(node.outputs[0]) not in INTEGERS

    def shape(self, name: str) -> Shape | None:
        """The shape of a tensor that was passed; sizes that an input leaves open have names."""
        root = self._network.root(name)
        return self._network.shape(name) if root and not self._network.sources(root) else self._shapes.get(name)

    def _alone(self, node: Node, proto: onnx.NodeProto) -> onnx.ModelProto:
        """A network of one node, with what is known of its operands."""
        given = self._network.proto
        alone = onnx.ModelProto(ir_version=given.ir_version, opset_import=given.opset_import)
        alone.graph.node.append(proto)
        for name in dict.fromkeys(filter(None, node.inputs)):
            shape = self.shape(name)
            small = shape is not None and math.prod(n if isinstance(n, int) else LIMIT + 1 for n in shape) <= LIMIT
            value = self.number(name) if small else None
            if value is not None:
                alone.graph.initializer.append(numpy_helper.from_array(value, name))
            elif (kind := self._kind(name)) is not None:
                alone.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, shape))
        return alone

    def _kind(self, name: str) -> int | None:
        stored = bool(self._network.root(name))
        kind = onnx.helper.np_dtype_to_tensor_dtype(self._network.dtype(name)) if stored else None
        return kind or self._network.types.get(name)

    def _reshaped(self, node: Node) -> Shape | None:
        """The shape of a Reshape's result, from a list that may be known in part only."""
        x, name = node.inputs[:2] if len(node.inputs) > 1 else ("", "")
        entries, before = self._known.of(name), self.shape(x)
        if entries is None:
            return None
        sizes: list[int | str | None] = [n.size if isinstance(n, Size) else n for n in entries]
        if not node.attributes.get("allowzero"):
            sizes = [before[i] if n == 0 and before and i < len(before) else n for i, n in enumerate(sizes)]
        if -1 in sizes:
            at = sizes.index(-1)
            sizes[at] = None
            sizes[at] = _rest(before, (*sizes[:at], *sizes[at + 1 :]))
        # What can't be does not run.
        return tuple(n if isinstance(n, str) or (n is not None and n > 0) else None for n in sizes)


def _insisted(value: onnx.ValueInfoProto) -> Shape | None:
    """An input's shape; a size that is left open is its own."""
    if not value.type.tensor_type.HasField("shape"):
        return None
    dims = value.type.tensor_type.shape.dim
    return tuple(d.dim_value if d.dim_value > 0 else f"{value.name}.{axis}" for axis, d in enumerate(dims))


def _rest(before: Shape | None, others: Shape) -> int | None:
    """The size of the axis that makes the sizes hold as many elements as before; None where it is not certain."""
    if before is None or None in before or None in others:
        return None
    symbols = [collections.Counter(n for n in shape if isinstance(n, str)) for shape in (before, others)]
    left, right = (math.prod(n for n in shape if isinstance(n, int)) for shape in (before, others))
    return left // right if symbols[0] == symbols[1] and right and not left % right else None
