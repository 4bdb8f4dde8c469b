"""Operands laid out to the size of what they meet, as they are: element-wise ops repeat what is smaller themselves.

Some exporters expand a bias to the shape of the sums that it is added to. It is a bias like any other without that, and
one tensor less is written.
"""

from __future__ import annotations

import onnx

from onnx_condense.network.known import Known, Size
from onnx_condense.network.listed import standard
from onnx_condense.network.live import DEFAULTS, prune
from onnx_condense.network.model import Network
from onnx_condense.network.nodes import Node
from onnx_condense.network.shapes import Shape

# Element-wise ops of several operands, any of which may be the smaller one.
_MEET = frozenset(
    "Add And Div Equal Greater GreaterOrEqual Less LessOrEqual Max Min Mod Mul Or Pow Sub Where Xor".split()  # noqa: SIM905 - a table
)
# From this opset on Max and Min repeat what is smaller, too.
_SINCE = 8


def broadcast(network: Network) -> Network:
    """A network without the Expands that element-wise ops can do without; `network` itself where there is none.

    What it computes is the same to the last bit.
    """
    names = {n for name in network.inputs for n in network.shape(name) or () if isinstance(n, str)}
    found = [(node, at) for node in network.nodes for at in _needless(network, node, names)]
    if not found:
        return network
    proto = onnx.ModelProto()
    proto.CopyFrom(network.proto)
    for node, at in found:
        proto.graph.node[node.index].input[at] = network.producers[node.inputs[at]].inputs[0]
    prune(proto.graph, interface=proto.ir_version >= DEFAULTS)
    return Network(proto, network.path, network.given)


def _needless(network: Network, node: Node, names: set[str]) -> list[int]:
    """Positions of operands that an Expand lays out like another operand, which is none of these itself."""
    if not standard(network, node, *_MEET) or node.opset < 8:
        return []
    found: list[int] = []
    for at, name in enumerate(node.inputs):
        maker = network.producers.get(name)
        if maker is None or not standard(network, maker, "Expand"):
            continue
        own, sizes = network.shape(maker.inputs[0]), network.known(maker.inputs[1])
        others = [other for i, other in enumerate(node.inputs) if i != at and i not in found]
        if own is None or sizes is None or len(own) > len(sizes):
            continue
        if any(_alike(sizes, other, network.shape(other), names) for other in others):
            found.append(at)
    return found


def _alike(sizes: Known, name: str, shape: Shape | None, names: set[str]) -> bool:
    """Whether a list tells the sizes of a tensor, by itself, by numbers or by sizes that inputs leave open."""
    if shape is None or len(shape) != len(sizes):
        return False

    def same(entry: int | Size | None, axis: int) -> bool:
        if isinstance(entry, Size) and (entry.tensor, entry.axis) == (name, axis):
            return True
        size = entry.size if isinstance(entry, Size) else entry
        return size == shape[axis] and (isinstance(size, int) or size in names)

    return all(same(entry, axis) for axis, entry in enumerate(sizes))
