"""The table of op lowerings: which ops can be trained through, and how.

Our own table, since the converters at hand import torchvision and keep the constants of MatMul as buffers. A node is
lowered exactly as the operator's specification has it for its opset and attributes, or refused with a reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx
from onnx import helper, numpy_helper

from onnx_condense.network.model import Network, Node
from onnx_condense.tune import lower_conv, lower_math, lower_resize, lower_rows, lower_shape
from onnx_condense.tune.step import RefusedError, Rule, Run, Step

RULES: Mapping[tuple[str, str], Rule] = {
    ("", op): rule
    for table in (lower_math.RULES, lower_conv.RULES, lower_shape.RULES, lower_rows.RULES, lower_resize.RULES)
    for op, rule in table.items()
}

# Ops with more than one result that are all lowered; of others only the first may be asked for.
_SEVERAL = frozenset({"Split"})


def rule_of(network: Network, node: Node) -> Rule | None:
    """The record of a node's op, or None for one that is not in the table or hidden by a function of the network."""
    key = (node.domain, node.op)
    return None if key in network.functions else RULES.get(key)


def lower(network: Network, node: Node) -> Run:
    """The function of PyTorch tensors that does what a node does.

    Raises:
        RefusedError: there is none for this op, opset or variant.
    """
    rule = rule_of(network, node)
    if rule is None:
        raise RefusedError("no lowering for this op" + (f" of domain {node.domain}" if node.domain else ""))
    if node.opset < rule.since:
        raise RefusedError(f"opset {node.opset}; it is known from {rule.since} on")
    if any(node.outputs[1:]) and node.op not in _SEVERAL:
        raise RefusedError("more than its first result is asked for")
    step = Step(node, _attributes(network.proto.graph.node[node.index]), network.constant, network.shape)
    run = rule.build(step)
    if unknown := sorted(step.attributes.keys() - step.read):
        raise RefusedError(f"attribute {', '.join(unknown)}")
    return run


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """By name; text decoded, tensors as arrays."""
    return {a.name: _plain(helper.get_attribute_value(a)) for a in node.attribute}


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value
