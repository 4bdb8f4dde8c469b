"""Names that a network does not have yet."""

from __future__ import annotations

import onnx


class Names:
    """Fresh names; nodes and tensors share one supply, since ONNX Runtime wants node names to be unique too.

    Args:
        proto: the network that they are for.
    """

    def __init__(self, proto: onnx.ModelProto) -> None:
        graph = proto.graph
        self._taken = {t.name for t in graph.initializer} | {i.name for i in graph.input}
        self._taken |= {v.name for v in graph.value_info} | {s.values.name for s in graph.sparse_initializer}
        self._add(graph)

    def _add(self, graph: onnx.GraphProto) -> None:
        """Bodies may not define a name that is known outside."""
        for node in graph.node:
            self._taken.update((*node.input, *node.output, node.name))
            for attribute in node.attribute:
                for body in (attribute.g, *attribute.graphs):
                    self._taken |= {v.name for v in body.input} | {t.name for t in body.initializer}
                    self._add(body)

    def fresh(self, wish: str) -> str:
        """A free name like the one wished for; it is taken from now on."""
        name, count = wish, 1
        while name in self._taken:
            count += 1
            name = f"{wish}_{count}"
        self._taken.add(name)
        return name
