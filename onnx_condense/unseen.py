"""Layers that make no channel space, and why: a table of spaces does not show that they are there."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx

from onnx_condense import ops
from onnx_condense.network.model import Network, Node, bodies_of
from onnx_condense.network.nodes import plain
from onnx_condense.ops import Law, Role
from onnx_condense.ops.linear import COMPUTED_WEIGHT
from onnx_condense.plan import PINNED, ChannelView, Refusal

IN_FUNCTION = "layers inside a function of the network's own; inline it (onnx.inliner)"
IN_BODY = "layers inside control flow"
OVERRIDABLE = "weight that callers may override"


def unseen_layers(network: Network, view: ChannelView) -> tuple[Refusal, ...]:
    """Nodes with weights in which no channels were looked for, in graph order; those that a refusal names are left out.

    A product of two tensors that both depend on the inputs is no layer.
    """
    varies = _varying(network)
    seen = {use.weight.node for use in view.linear}
    named = {(refusal.node, refusal.reason) for refusal in view.refusals}
    found = []
    for node in network.nodes:
        reason = "" if node.index in seen else _reason(network, view, node, varies)
        if reason and (node.place, reason) not in named:
            found.append(Refusal(node.place, reason, space=node.result))
    return tuple(found)


def _varying(network: Network) -> set[str]:
    """Tensors that depend on an input."""
    varies = set(network.inputs)
    for node in network.nodes:
        if not varies.isdisjoint((*node.inputs, *node.captured)):
            varies.update(filter(None, node.outputs))
    return varies


def _reason(network: Network, view: ChannelView, node: Node, varies: set[str]) -> str:
    """Why a node is a layer without channels; "" if it is none, or has some."""
    if varies.isdisjoint((*node.inputs, *node.captured)):
        return ""
    if (node.domain, node.op) in network.functions:
        return IN_FUNCTION if _holds_layers(network, node) else ""
    rule = ops.find(node.domain, node.op, node.opset)
    if any(True for _ in _inner(network.proto.graph.node[node.index])):
        return IN_BODY if _holds_layers(network, node) else ""
    if rule is None or rule.role is Role.BARRIER:
        why = rule.reason if rule is not None else f"no rule for {node.op}"
        return why if any(_matrix(network, name) for name in node.inputs) else ""
    if rule.role is not Role.WRITES or any(network.root(name) for name in node.inputs[:2]):
        return ""
    return _of_computed(network, view, node, rule, varies)


def _of_computed(network: Network, view: ChannelView, node: Node, rule: ops.OpRule, varies: set[str]) -> str:
    """Why a product whose operands are both computed makes no channels; "" if it lets some pass or is no layer."""
    weights = [name for name in node.inputs[:2] if name not in varies]
    call = ops.call_of(network, node, view.labels, lambda count: np.full(count, PINNED))
    passed = rule.trace(call).output
    if (not weights and rule.law is not Law.FILTER) or (passed is not None and (passed != PINNED).any()):
        return ""
    for name in weights:
        if name in network.overridable:
            return OVERRIDABLE
        maker = network.producers.get(name)
        made = maker and ops.find(maker.domain, maker.op, maker.opset)
        if made and made.reason:
            return made.reason
    return COMPUTED_WEIGHT


def _matrix(network: Network, name: str) -> bool:
    """Whether a tensor is a stored one of at least two axes that are longer than 1."""
    if not name or not network.root(name):
        return False
    return sum(isinstance(size, int) and size > 1 for size in network.shape(name) or ()) > 1


# ---- bodies and functions ----


def _inner(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        yield from bodies_of(attribute)


def _holds_layers(network: Network, node: Node) -> bool:
    """Whether bodies of a node, or the function that it calls, hold ops that write channels."""
    versions = {plain(o.domain): o.version for o in network.proto.opset_import}
    functions = {(plain(f.domain), f.name): f for f in network.proto.functions}
    waiting = [(network.proto.graph.node[node.index], versions, True)]
    done = set[tuple[str, str]]()
    while waiting:
        inside, opsets, outermost = waiting.pop()
        key = plain(inside.domain), inside.op_type
        if key in functions:
            called = functions[key]
            if key not in done:
                done.add(key)
                own = {plain(o.domain): o.version for o in called.opset_import}
                waiting += [(n, own, False) for n in called.node]
            continue
        rule = ops.find(*key, opsets.get(key[0], 1))
        if not outermost and rule is not None and rule.role is Role.WRITES:
            return True
        waiting += [(n, opsets, False) for body in _inner(inside) for n in body.node]
    return False
