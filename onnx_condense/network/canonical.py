"""Networks that ONNX Runtime loads though the standard asks for more, as the standard wants them.

Two things are put right: nodes come after what they read, and before IR 4 every initializer is declared as an input.
Neither changes what the network computes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx

from onnx_condense.errors import ModelError
from onnx_condense.network.nodes import bodies_of, plain, read_by

# From this IR version on initializers need not be inputs.
FREE_INITIALIZERS = 4


def canonical(proto: onnx.ModelProto, label: str) -> onnx.ModelProto:
    """A network with its nodes in order and its initializers declared; `proto` itself where nothing is to be done.

    Nodes stay in the order of the file; one that comes too late is moved to right before the first that needs it.

    Args:
        proto: the network.
        label: how messages name it.

    Raises:
        ModelError: nodes read each other in a circle.
    """
    ordered = all(_in_order(graph.node) for graph in _graphs(proto.graph))
    if ordered and not any(_undeclared(proto)):
        return proto
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for graph in [] if ordered else list(_graphs(copy.graph)):
        if not _in_order(graph.node):
            _sort(graph, label)
    copy.graph.input.extend(list(_undeclared(copy)))
    return copy


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and all bodies in it, the innermost first, so that sorting one loses no other."""
    for node in graph.node:
        for attribute in node.attribute:
            for body in bodies_of(attribute):
                yield from _graphs(body)
    yield graph


def _undeclared(proto: onnx.ModelProto) -> Iterator[onnx.ValueInfoProto]:
    """Inputs to be declared for initializers."""
    declared = {i.name for i in proto.graph.input}
    if proto.ir_version >= FREE_INITIALIZERS:
        return
    for tensor in proto.graph.initializer:
        if tensor.name not in declared:
            yield onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))


# ---- order ----


def _in_order(nodes: Sequence[onnx.NodeProto]) -> bool:
    waiting = {name for node in nodes for name in node.output if name}
    for node in nodes:
        if not waiting.isdisjoint(read_by(node)):
            return False
        waiting.difference_update(node.output)
    return True


def _sort(graph: onnx.GraphProto, label: str) -> None:
    order = _order(graph.node, label)
    # Copies: the nodes themselves are cleared with the list.
    nodes = [onnx.NodeProto.FromString(graph.node[at].SerializeToString()) for at in order]
    del graph.node[:]
    graph.node.extend(nodes)


def _order(nodes: Sequence[onnx.NodeProto], label: str) -> list[int]:
    """Indices of nodes, each behind those that it needs."""
    makers = {name: at for at, node in reversed(list(enumerate(nodes))) for name in node.output if name}
    needs = [sorted({makers[name] for name in read_by(node) if name in makers}) for node in nodes]
    order: list[int] = []
    done, open_ = set[int](), set[int]()
    for start in range(len(nodes)):
        # By hand: a chain of nodes may be longer than Python may recurse.
        stack = [start]
        while stack:
            at = stack[-1]
            missing = [n for n in needs[at] if n not in done] if at not in done else []
            if at in done or not missing:
                stack.pop()
                open_.discard(at)
                order += [at] if at not in done else []
                done.add(at)
                continue
            open_.add(at)
            if (circle := next((n for n in missing if n in open_), None)) is not None:
                text = f"{label}: not a valid ONNX network: node {_name(nodes[circle])} needs its own result"
                raise ModelError("model-invalid", text, _name(nodes[circle]))
            stack += reversed(missing)
    return order


def _name(node: onnx.NodeProto) -> str:
    return f"{node.name or next(filter(None, node.output), 'unnamed')} ({node.op_type})"


# ---- what is not put right ----


def written_by_onnxruntime(proto: onnx.ModelProto) -> str:
    """The first op of an ONNX Runtime file that its opset does not have, "" where there is none.

    The optimizer writes ops of newer opsets, and of its own, under the default domain and leaves the opset as it was.
    """
    if not any(o.domain.startswith("com.microsoft") for o in proto.opset_import):
        return ""
    version = next((o.version for o in proto.opset_import if not plain(o.domain)), 1)
    standard = (n.op_type for graph in _graphs(proto.graph) for n in graph.node if not plain(n.domain))
    own = {f.name for f in proto.functions if not plain(f.domain)}
    return next((op for op in standard if op not in own and not onnx.defs.has(op, version, "")), "")
