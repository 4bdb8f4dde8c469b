"""The part of a network that leads to its outputs.

A node from which no output is reached computes nothing that anybody sees: it can hold no channel, and what it reads may
go without it.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import Any

import onnx

from onnx_condense.network.model import Network
from onnx_condense.network.nodes import bodies_of, read_by

# From this IR version on an initializer that is declared as an input is part of the interface.
DEFAULTS = 4


def live(network: Network) -> Network:
    """A network without the nodes that lead to no output, in bodies too; `network` itself where there are none.

    Constants that only such nodes read go with them; inputs stay, read or not, as do constants that nothing ever read.
    """
    proto = network.proto
    if not _has_idle(proto.graph):
        return network
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    prune(copy.graph, interface=proto.ir_version >= DEFAULTS)
    return Network(copy, network.path, network.given)


def _bodies(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    for node in graph.node:
        for attribute in node.attribute:
            yield from bodies_of(attribute)


def _has_idle(graph: onnx.GraphProto) -> bool:
    return bool(idle(graph)) or any(_has_idle(body) for body in _bodies(graph))


def idle(graph: onnx.GraphProto) -> list[int]:
    """Indices of nodes from which no output of the graph is reached."""
    makers = {name: at for at, node in enumerate(graph.node) for name in node.output if name}
    waiting, found = [o.name for o in graph.output], set[int]()
    while waiting:
        at = makers.get(waiting.pop())
        if at is not None and at not in found:
            found.add(at)
            waiting += read_by(graph.node[at])
    return [at for at in range(len(graph.node)) if at not in found]


def prune(graph: onnx.GraphProto, *, interface: bool) -> None:
    """Take the nodes out that lead to no output. interface: declared initializers are inputs, which stay."""
    before = _read(graph)
    # Bodies first: what only idle nodes in them read is not needed outside either.
    for body in _bodies(graph):
        prune(body, interface=interface)
    for at in reversed(idle(graph)):
        del graph.node[at]
    gone = before - _read(graph) - {o.name for o in graph.output}
    if interface:
        gone -= {i.name for i in graph.input}
    stored = {t.name for t in graph.initializer} | {s.values.name for s in graph.sparse_initializer}
    _without(graph.initializer, lambda t: t.name, gone)
    _without(graph.sparse_initializer, lambda t: t.values.name, gone)
    _without(graph.input, lambda i: i.name, gone & stored)
    _without(graph.value_info, lambda i: i.name, gone)


def _read(graph: onnx.GraphProto) -> set[str]:
    return set[str]().union(*(read_by(node) | set(node.output) for node in graph.node))


def _without(items: Any, name: Any, gone: Container[str]) -> None:
    for at in reversed([i for i, item in enumerate(items) if name(item) in gone]):
        del items[at]
