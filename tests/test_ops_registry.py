"""What the registry says of an op as data: its role, a barrier's reason and what to do about it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from builders import model
from onnx import TensorProto, helper

from onnx_condense.network.model import load
from onnx_condense.ops import Call, OpRule, Role, Value, find, mixing, registered
from onnx_condense.options.goal import Goal
from onnx_condense.outcome import why_unchanged
from onnx_condense.spaces import find_spaces

BARRIERS = [rule for rule in registered() if rule.role is Role.BARRIER]
OPS = {
    ("", "MatMul"): Role.WRITES,
    ("", "Conv"): Role.WRITES,
    ("com.microsoft", "FusedConv"): Role.WRITES,
    ("", "LSTM"): Role.READS,
    ("", "Relu"): Role.CARRIES,
    ("", "BatchNormalization"): Role.CARRIES,
    ("", "Softmax"): Role.CARRIES,
    ("", "Transpose"): Role.MOVES,
    ("", "MaxPool"): Role.MOVES,
    ("", "Concat"): Role.JOINS,
    ("", "Gather"): Role.JOINS,
    ("", "TopK"): Role.CARRIES,
    ("", "NonZero"): Role.BARRIER,
    ("com.microsoft", "NhwcConv"): Role.BARRIER,
    ("com.microsoft.nchwc", "Conv"): Role.BARRIER,
}


@pytest.mark.parametrize(("key", "role"), OPS.items(), ids=str)
def test_roles(key: tuple[str, str], role: Role) -> None:
    rule = find(*key, 1 if key[0] else 20)
    assert rule is not None
    assert rule.role is role


def test_only_barriers_have_a_reason() -> None:
    for rule in registered():
        assert bool(rule.reason) is (rule.role is Role.BARRIER), rule.op
        assert rule.role is Role.BARRIER or not rule.advice


@pytest.mark.parametrize("rule", BARRIERS, ids=lambda rule: f"{rule.domain}.{rule.op}")
def test_a_barrier_pins_for_its_reason(rule: OpRule) -> None:
    labels = np.arange(1, 3)
    effect = rule.trace(Call(0, {}, (Value("x", labels, (2,), None),), (2,), np.arange))
    assert effect.output is None
    assert [reason for _, reason in effect.pins] == [rule.reason]


def why(op: str, domain: str = "", initial: bool = False) -> str:
    """Why nothing was found in a network of one node."""
    operands = {"DequantizeLinear": ["q", "s"], "MatMulNBits": ["x", "q", "s"], "Own": ["x"]}.get(op, ["x", "s"])
    stored: dict[str, Any] = {"q": np.ones((2, 4), np.uint8), "s": np.ones((), np.float32)}
    nodes = [helper.make_node(op, operands, ["y"], domain=domain)]
    proto = model(nodes, {n: v for n, v in stored.items() if n in operands}, {"x": ["N", 2]}, {"y": ["A", "B"]})
    if initial:
        proto.graph.input.append(helper.make_tensor_value_info("s", TensorProto.FLOAT, []))
    return said(proto)


def said(proto: onnx.ModelProto) -> str:
    network = load(proto)
    return why_unchanged(network, find_spaces(network), Goal(0.0, None, allow_slower=False, seed=0)).text


def test_advice_where_nothing_is_found() -> None:
    start = "no Conv, Gemm or MatMul with a stored weight and an input of known rank was found"
    made_from = "give the network that it was made from"
    assert why("Mul") == start
    assert why("Mul", initial=True).startswith(f"{start}; its weights are inputs that callers may override")
    assert why("DequantizeLinear") == f"{start}; {mixing._ADVICE[mixing.QUANTIZED]}"
    assert why("MatMulNBits", "com.microsoft") == f"{start}; {mixing._ADVICE[mixing.QUANTIZED]}"
    assert why("NhwcConv", "com.microsoft") == f"{start}; {mixing._ADVICE[mixing.BLOCKED]}"
    assert why("Own", "com.microsoft") == f"{start}; it was optimized by ONNX Runtime: {made_from}"
    assert why("Gelu", "com.microsoft") == start
    assert why("Own", "own") == start


def test_advice_for_functions() -> None:
    node = helper.make_node("Own", ["x"], ["y"], domain="own")
    proto = model([node], {}, {"x": ["N", 2]}, {"y": ["N", 2]})
    body = [helper.make_node("Relu", ["i"], ["o"])]
    version = [helper.make_opsetid("", 20)]
    proto.functions.append(helper.make_function("own", "Own", ["i"], ["o"], body, version))
    assert said(proto).endswith("; its layers lie in functions of its own: inline them (onnx.inliner)")
