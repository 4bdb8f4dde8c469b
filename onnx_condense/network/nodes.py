"""The nodes of a network as frozen records, tied to the ModelProto by position.

Owns every quirk of onnx-graphsurgeon, which supplies attributes and bodies (its exporter would drop metadata and
sharing, so it never writes anything).
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.importers.onnx_importer import OnnxImporter
from onnx_graphsurgeon.logger import G_LOGGER

G_LOGGER.severity = G_LOGGER.ERROR
G_LOGGER.colors = False

# Tensors of a network may bear any names, so no fixed one is free: part of every name that is put in for a while is
# drawn, once per process. None of them is ever written to a file.
MARK = secrets.token_hex(8)


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    """One node of the main graph. inputs: tensor names, "" for one left out; opset: version of its domain."""

    index: int
    op: str
    domain: str
    opset: int
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    captured: frozenset[str]

    @property
    def place(self) -> str:
        """How messages name this node."""
        return f"{self.name or self.result or 'unnamed'} ({self.op})"

    @property
    def result(self) -> str:
        """The first output that is asked for; "" where none is."""
        return next(filter(None, self.outputs), "")


def plain(domain: str) -> str:
    """The default domain has two names."""
    return "" if domain == "ai.onnx" else domain


def nodes_of(proto: onnx.ModelProto) -> Iterator[Node]:
    """The main graph's nodes, each tied to its proto by position."""
    versions = {plain(o.domain): o.version for o in proto.opset_import}
    for index, node in enumerate(proto.graph.node):
        domain = plain(node.domain)
        attributes = _attributes(node)
        yield Node(
            index=index,
            op=node.op_type,
            domain=domain,
            opset=versions.get(domain, 1),
            name=node.name,
            inputs=tuple(node.input),
            outputs=tuple(node.output),
            attributes={k: v for k, v in attributes.items() if not isinstance(v, gs.Graph)},
            captured=frozenset().union(*(_captured(v) for v in attributes.values() if isinstance(v, gs.Graph))),
        )


def _attributes(node: onnx.NodeProto) -> Mapping[str, Any]:
    """The attributes of a node, its bodies as graphs.

    Tensors of the main graph are not needed for that: their names are in the proto, and a body has those that it takes.
    """
    if not node.attribute:
        return {}
    try:
        return _imported(node)
    except UnicodeDecodeError:
        # Strings need not be UTF-8 in ONNX; no rule reads such ones, so the view may go without.
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        _clear_strings([copy])
        return _imported(copy)


def _imported(node: onnx.NodeProto) -> Mapping[str, Any]:
    attributes: Mapping[str, Any] = OnnxImporter.import_attributes(node.attribute, {}, {}, None, None)
    return attributes


def _clear_strings(nodes: Iterable[onnx.NodeProto]) -> None:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.s:
                attribute.s = b""
            del attribute.strings[:]
            for body in bodies_of(attribute):
                _clear_strings(body.node)


def bodies_of(attribute: onnx.AttributeProto) -> Iterator[onnx.GraphProto]:
    """The graphs that an attribute holds."""
    if attribute.HasField("g"):
        yield attribute.g
    yield from attribute.graphs


def read_by(node: onnx.NodeProto) -> set[str]:
    """What a node reads, by itself and in its bodies."""
    found = {name for name in node.input if name}
    for attribute in node.attribute:
        for body in bodies_of(attribute):
            found |= _taken(body)
    return found


def _taken(body: onnx.GraphProto) -> set[str]:
    """What a body takes from outside."""
    own = {name for node in body.node for name in node.output}
    own |= {v.name for v in body.input} | {t.name for t in body.initializer}
    own |= {s.values.name for s in body.sparse_initializer}
    read = set[str]().union(*(read_by(node) for node in body.node))
    return (read | {o.name for o in body.output}) - own


def _captured(graph: gs.Graph) -> frozenset[str]:
    """Names that a body takes from outside (a superset is harmless: it only pins more)."""
    names = {t.name for node in graph.nodes for t in node.inputs if t.name} | {t.name for t in graph.outputs}
    for node in graph.nodes:
        for value in node.attrs.values():
            if isinstance(value, gs.Graph):
                names |= _captured(value)
    return frozenset(names)
