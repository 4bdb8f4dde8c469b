"""What nodes of the standard ops are told in lists: axes, sizes, positions."""

from __future__ import annotations

from onnx_condense.network.model import Network
from onnx_condense.network.nodes import Node


def standard(network: Network, node: Node, *ops: str) -> bool:
    """Whether a node is one of some standard ops, which no function of the network hides."""
    return node.op in ops and not node.domain and ("", node.op) not in network.functions


def numbers_of(
    network: Network, node: Node, position: int, attribute: str, otherwise: tuple[int, ...] = ()
) -> tuple[int, ...]:
    """A list that an attribute or, in later opsets, an operand holds.

    Returns:
        Its numbers; none where they are not known; those given where there is no list.
    """
    if attribute in node.attributes:
        return tuple(node.attributes[attribute])
    if position >= len(node.inputs) or not node.inputs[position]:
        return otherwise
    known = network.known(node.inputs[position]) or ()
    numbers = tuple(n for n in known if isinstance(n, int))
    return numbers if len(numbers) == len(known) else ()
