"""Numbers inside lists of sizes that the graph computes (the shape of a Reshape, put together by Concat).

What moves such a number from where it is stored to its reader is copied for this reader, with another number stored.
So no reader can be told a number that was meant for another one; what nobody reads any more is taken out.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping

import onnx

from onnx_condense.network.model import Network
from onnx_condense.rewrite.draft import Draft
from onnx_condense.rewrite.store import Store

_Version = tuple[str, tuple[tuple[int, int], ...]]
"""A list by name, and the numbers at some of its positions that take the place of its own."""


def write_lists(draft: Draft, proto: onnx.ModelProto) -> set[str]:
    """Give the readers of computed lists lists with other numbers.

    Returns:
        Names of constants that lost a reader.
    """
    network, copies = draft.network, _Copies(draft.network, Store(draft.network, proto))
    left = {network.nodes[o.node].inputs[o.position] for o in draft.new_operands if _has(network, o.node, o.position)}
    for operand, numbers in sorted(draft.lists.items(), key=lambda item: (item[0].node, item[0].position)):
        name = network.nodes[operand.node].inputs[operand.position]
        proto.graph.node[operand.node].input[operand.position] = copies.of(name, numbers)
        left.add(name)
    for at, node in sorted(copies.nodes, key=lambda item: item[0], reverse=True):
        proto.graph.node.insert(at + 1, node)
    return _drop_idle(network, proto, left)


def _has(network: Network, node: int, position: int) -> bool:
    inputs = network.nodes[node].inputs
    return position < len(inputs) and bool(inputs[position]) and not network.root(inputs[position])


class _Copies:
    """Nodes that move numbers, copied per version of their result.

    nodes: (index of the node in the network as it was, its copy).
    """

    def __init__(self, network: Network, store: Store) -> None:
        self._network, self._store = network, store
        self._names: dict[_Version, str] = {}
        self._waiting: list[_Version] = []
        self.nodes: list[tuple[int, onnx.NodeProto]] = []

    def of(self, name: str, numbers: Mapping[int, int]) -> str:
        """The name of a list like another one, with some other numbers."""
        found = self._named(name, numbers)
        # A list may be handed on more often than Python may recurse.
        while self._waiting:
            self._copy(*self._waiting.pop())
        return found

    def _named(self, name: str, numbers: Mapping[int, int]) -> str:
        root = self._network.root(name)
        version = (root or name, tuple(sorted(numbers.items())))
        if version not in self._names and root:
            value = self._network.constant(root)
            assert value is not None
            value = value.copy()
            for at, number in numbers.items():
                value.reshape(-1)[at] = number
            self._names[version] = self._store.add(f"{root}_condensed", value)
        elif version not in self._names:
            self._names[version] = self._store.fresh(f"{name}_condensed")
            self._waiting.append(version)
        return self._names[version]

    def _copy(self, name: str, numbers: tuple[tuple[int, int], ...]) -> None:
        node, origins = self._network.producers[name], self._network.origins(name)
        assert origins is not None
        wanted: dict[int, dict[int, int]] = {}
        for at, number in numbers:
            position, element = origins[at].tolist()
            wanted.setdefault(position, {})[element] = number
        copy = onnx.NodeProto()
        copy.CopyFrom(self._network.proto.graph.node[node.index])
        copy.output[0] = self._names[name, numbers]
        copy.name = self._store.fresh(f"{node.name}_condensed") if node.name else ""
        for position, elements in wanted.items():
            copy.input[position] = self._named(node.inputs[position], elements)
        self.nodes.append((node.index, copy))


def _drop_idle(network: Network, proto: onnx.ModelProto, names: Iterable[str]) -> set[str]:
    """Take out nodes whose result was read until now and is not any more; which constants lost a reader."""
    idle, dead, left = set(names), [], set[str]()
    outside = {*network.outputs, *network.captured}
    readers = collections.Counter(name for node in proto.graph.node for name in node.input)
    for at in range(len(proto.graph.node) - 1, -1, -1):
        node = proto.graph.node[at]
        if len(node.output) != 1 or node.output[0] not in idle - outside or readers[node.output[0]]:
            continue
        dead.append(at)
        readers.subtract(node.input)
        left |= {root for name in node.input if (root := network.root(name))}
        # Whatever a Shape looks at is no list.
        idle |= set[str]() if node.op_type == "Shape" else set(node.input)
    gone = {proto.graph.node[at].output[0] for at in dead}
    for at in dead:
        del proto.graph.node[at]
    for at in [i for i, v in enumerate(proto.graph.value_info) if v.name in gone][::-1]:
        del proto.graph.value_info[at]
    return left
