"""Numbers that a network works out from sizes that never change, stored instead.

An exporter that leaves one size open computes all others as well (where a tensor is cut in two: half the size of its
axis). What follows from sizes that are certain is one number, however often it is worked out. Stored, it stays what the
dense network computes, whatever becomes of the widths, and the rules see to those that name one. Sizes that are but
handed on stay as they are where rules can follow them.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import numpy_helper

from onnx_condense.network.certain import Certain
from onnx_condense.network.known import ARITHMETIC, HANDS_ON, Array, Size
from onnx_condense.network.live import DEFAULTS, prune
from onnx_condense.network.model import Network
from onnx_condense.network.nodes import MARK, Node

# Lists in which the size of an axis means no more to a rule than any number that is computed.
_NUMBERS = {"Expand": (1,), "Slice": (1, 2), "Split": (1,), "Tile": (1,)}


def settled(network: Network) -> Network:
    """A network that stores what it works out from fixed sizes; `network` itself where that is nothing."""
    numbers = _Numbers(network)
    for node in network.nodes if numbers.worth() else ():
        numbers.look(node)
    if not numbers.found:
        return network
    proto = onnx.ModelProto()
    proto.CopyFrom(network.proto)
    store(proto.graph, {network.producers[name].index: value for name, value in numbers.found.items()})
    # What only led to these numbers goes.
    prune(proto.graph, interface=proto.ir_version >= DEFAULTS)
    return Network(proto, network.path, network.given)


class _Numbers:
    """Looks for numbers to be stored.

    found: the values of computed tensors, by name.
    """

    def __init__(self, network: Network) -> None:
        self.found: dict[str, Array] = {}
        self._network, self._certain = network, Certain(network)
        self._sizes = set[str]()
        # Names of sizes that inputs leave open; shape inference makes up others.
        self._left_open = {n for name in network.inputs for n in network.shape(name) or ()} - {None}

    def worth(self) -> bool:
        """Whether some size may be counted with, or read where it has to be a number."""
        if ("", "Constant") in self._network.functions:
            return False
        read = (node for node in self._network.nodes if self._reads_sizes(node))
        return any(_counts(node) or self._lists(node) or self._open(node.outputs[0]) for node in read)

    def look(self, node: Node) -> None:
        """Go on to a node; the nodes come in their order."""
        reads = self._reads_sizes(node)
        self._certain.passes(node)
        if not reads:
            return
        if _counts(node):
            self._count(node.outputs[0])
        for name in sorted(self._lists(node)):
            self._take(name)

    def _reads_sizes(self, node: Node) -> bool:
        """Whether a node reads sizes of tensors, or what is made of them; then remember what it makes."""
        if node.domain or ("", node.op) in self._network.functions:
            return False
        if node.op == "Shape" or self._makes_sizes(node):
            self._sizes.update(node.outputs)
        return bool(self._sizes & set(node.inputs))

    def _makes_sizes(self, node: Node) -> bool:
        if node.op in HANDS_ON:
            return bool(self._sizes & set(node.inputs[HANDS_ON[node.op]]))
        known = all(name in self._sizes or self._network.root(name) for name in node.inputs if name)
        return node.op in ARITHMETIC and known and bool(self._sizes & set(node.inputs))

    def _lists(self, node: Node) -> set[str]:
        """Lists with sizes that a node reads as numbers."""
        if node.op == "Reshape" and (self._foreign(node) or self._fixed(node) or self._tells_more(node.outputs[0])):
            return {node.inputs[1]}
        read = {node.inputs[at] for at in _NUMBERS.get(node.op, ()) if at < len(node.inputs)}
        return read & self._sizes

    def _foreign(self, node: Node) -> bool:
        """Whether a shape names sizes of another tensor, whose channels would be tied to those that it lays out."""
        entries = self._network.known(node.inputs[1]) or () if len(node.inputs) > 1 else ()
        sizes = [n for n in entries if isinstance(n, Size) and n.size not in self._left_open]
        return any(n.tensor != node.inputs[0] for n in sizes)

    def _fixed(self, node: Node) -> bool:
        """Whether a shape names sizes that are known, but handed on: where they are widths they have to be written."""
        name = node.inputs[1] if len(node.inputs) > 1 else ""
        known = () if name not in self._sizes else self._network.known(name) or ()
        pieces = self._network.pieces(name) if known else ()
        return any(isinstance(n, int) and n != piece for n, piece in zip(known, pieces, strict=False))

    def _open(self, name: str) -> bool:
        """Whether shape inference does not know all sizes."""
        shape = self._network.shape(name) or (None,)
        return any(not isinstance(n, int) and n not in self._left_open for n in shape)

    def _tells_more(self, name: str) -> bool:
        """Whether sizes are certain that shape inference does not know."""
        certain = self._certain.shape(name) or ()
        told = self._network.shape(name) or ()
        told = told if len(told) == len(certain) else (None,) * len(certain)
        return any(isinstance(n, int) and not isinstance(m, int) for n, m in zip(certain, told, strict=True))

    def _count(self, name: str) -> None:
        """What is worked out from sizes, unless it is known whatever becomes of the widths."""
        value = self._certain.number(name)
        if value is not None and None in (self._network.known(name) or (None,)):
            self.found[name] = value

    def _take(self, name: str) -> None:
        """Sizes that are handed on to where numbers are read: the list, or those parts of it that are known."""
        waiting = [name]
        while waiting:
            part = waiting.pop()
            node = self._network.producers.get(part)
            if node is None or part in self.found or part not in self._sizes:
                continue
            value = self._certain.number(part)
            if value is not None and any(n is not None for n in self._network.known(part) or ()):
                self.found[part] = value
            elif value is None and node.op in HANDS_ON:
                waiting += node.inputs[HANDS_ON[node.op]]


def _counts(node: Node) -> bool:
    # A Cast may make floats of sizes.
    return node.op in ARITHMETIC or node.op == "Cast"


def store(graph: onnx.GraphProto, numbers: Mapping[int, Array]) -> None:
    """Let constants take the place of nodes, by index; these are left without readers."""
    for at, value in sorted(numbers.items(), reverse=True):
        node = graph.node[at]
        name = node.output[0]
        node.output[0] = MARK + name
        stored = onnx.helper.make_node("Constant", [], [name], name=node.name, value=numpy_helper.from_array(value))
        graph.node.insert(at, stored)
