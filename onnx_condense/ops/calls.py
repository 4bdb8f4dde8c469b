"""One node of a network as the rules see it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from onnx_condense.network.known import Known, Size
from onnx_condense.network.model import Network, Node
from onnx_condense.ops.registry import Call, Value
from onnx_condense.plan import IntArray

# Where these ops read the sizes of their result; their own rules see to it that these stay right: Resize for sizes of
# the tensor that it resizes, the others for any.
_LAID_OUT = {"ConstantOfShape": 0, "Expand": 1, "Reshape": 1, "Resize": 3}

# Where ops read numbers that may name a width.
_NUMBERS = {"Expand": (1,), "Reshape": (1,), "Resize": (1, 2, 3), "Slice": (1, 2), "Split": (1,), "Upsample": (1,)}


def call_of(network: Network, node: Node, labels: Mapping[str, IntArray], fresh: Callable[[int], IntArray]) -> Call:
    """The call of a node.

    Args:
        network: what the node belongs to.
        node: one of its nodes.
        labels: of the tensors that have some, by name.
        fresh: see `Call`.
    """
    read = () if node.domain else _NUMBERS.get(node.op, ())

    def value(position: int, name: str) -> Value | None:
        if not name:
            return None
        known = _with_labels(network.known(name), labels)
        pieces = network.pieces(name) if position in read else ()
        return Value(name, labels.get(name), network.shape(name), network.constant(name), known, pieces)

    return Call(
        index=node.index,
        attributes=node.attributes,
        operands=tuple(value(position, name) for position, name in enumerate(node.inputs)),
        result_shape=network.shape(node.outputs[0]) if node.outputs else None,
        fresh=fresh,
        results=sum(map(bool, node.outputs)),
        wanted=_wanted(network, node) if (node.domain, node.op) == ("", "Shape") else None,
    )


def _with_labels(known: Known | None, labels: Mapping[str, IntArray]) -> Known | None:
    """Sizes of axes along which channels lie know these."""
    if known is None or not any(isinstance(size, Size) for size in known):
        return known
    return tuple(_labelled(size, labels) if isinstance(size, Size) else size for size in known)


def _labelled(size: Size, labels: Mapping[str, IntArray]) -> Size:
    found = labels.get(size.tensor)
    if found is None or size.axis >= found.ndim or found.shape[size.axis] < 2:
        return size
    return dataclasses.replace(size, labels=found.reshape(-1) if found.shape[size.axis] == found.size else found)


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
            same = reader.op != "Resize" or reader.inputs[0] == node.inputs[0]
            if not reader.domain and position == _LAID_OUT.get(reader.op) and same:
                continue
            if network.traces(reader.outputs[0]):
                waiting += {reader.outputs[0]} - seen
                seen.add(reader.outputs[0])
            else:
                outside = True
        if outside:
            wanted.update(network.known(name) or known)
    return frozenset(i for i, size in enumerate(known) if size in wanted)
