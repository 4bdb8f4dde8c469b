"""One node of a network as the rules see it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from onnx_condense.known import Size
from onnx_condense.model import Network, Node
from onnx_condense.ops.registry import Call, Value
from onnx_condense.plan import IntArray

# Where these ops read the sizes of their result; their own rules see to it that these stay right.
_LAID_OUT = {"Reshape": 1, "Resize": 3}


def call_of(network: Network, node: Node, labels: Mapping[str, IntArray], fresh: Callable[[int], IntArray]) -> Call:
    """The call of a node.

    Args:
        network: what the node belongs to.
        node: one of its nodes.
        labels: of the tensors that have some, by name.
        fresh: see `Call`.
    """

    def value(name: str) -> Value | None:
        if not name:
            return None
        return Value(name, labels.get(name), network.shape(name), network.constant(name), network.known(name))

    return Call(
        index=node.index,
        attributes=node.attributes,
        operands=tuple(value(name) for name in node.inputs),
        result_shape=network.shape(node.outputs[0]) if node.outputs else None,
        fresh=fresh,
        results=sum(map(bool, node.outputs)),
        wanted=_wanted(network, node) if (node.domain, node.op) == ("", "Shape") else None,
    )


def _wanted(network: Network, node: Node) -> frozenset[int] | None:
    """Which elements of a Shape's result somebody reads who is not told by them how to lay out the same tensor."""
    known = network.known(node.outputs[0])
    if known is None:
        return None
    wanted: set[int | Size | None] = set()
    waiting, seen = [node.outputs[0]], {node.outputs[0]}
    while waiting:
        name = waiting.pop()
        outside = name in network.outputs or name in network.captured
        for reader, position in network.consumers.get(name, ()):
            if not reader.domain and (position == _LAID_OUT.get(reader.op)) and reader.inputs[0] == node.inputs[0]:
                continue
            if network.traces(reader.outputs[0]):
                waiting += {reader.outputs[0]} - seen
                seen.add(reader.outputs[0])
            else:
                outside = True
        if outside:
            wanted.update(network.known(name) or known)
    return frozenset(i for i, size in enumerate(known) if size in wanted)
