"""Op records: every claim that a law makes is true of the op as ONNX Runtime computes it."""

from __future__ import annotations

from typing import Any

import builders
import numpy as np
import onnx
import pytest
from builders import assert_same_outputs, base_layers, lossless, mlp, plant
from onnx import helper

from onnx_condense.network.model import load
from onnx_condense.ops import Call, Law, OpRule, Value, elementwise, find, registered
from onnx_condense.ops.elementwise import carried
from onnx_condense.ops.registry import register
from onnx_condense.runtime import Runtime, run

CLAIMS = [r for r in registered() if r.law in (Law.HOMOGENEOUS, Law.ODD, Law.IDENTITY, Law.NEGATE)]
# Not one number in, one number out; or not of floats.
ELEMENTWISE = [r for r in registered() if r.trace is elementwise.trace]
OTHER = {"And", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "Not", "Or", "Xor"}
OPERANDS = {"Where": 3, "PRelu": 2, "BiasGelu": 2} | dict.fromkeys(
    ("Add", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Mod", "Mul", "Pow", "Sub"), 2
)


def evaluate(rule: OpRule, *operands: Any) -> Any:
    """The op of a record on float operands."""
    stored = {f"i{k}": np.asarray(v) for k, v in enumerate(operands)}
    kinds = {"Cast": onnx.TensorProto.FLOAT, "BitCast": onnx.TensorProto.INT32}
    attributes: dict[str, Any] = {"to": kinds[rule.op]} if rule.op in kinds else {}
    attributes |= {"fmod": 1} if rule.op == "Mod" else {}
    node = helper.make_node(rule.op, list(stored), ["y"], domain=rule.domain, **attributes)
    infos = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for n, v in stored.items()
    ]
    graph = helper.make_graph([node], "g", infos, [onnx.ValueInfoProto(name="y")])
    opset = {"Swish": 24, "BitCast": 26}.get(rule.op, 22)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return run(Runtime(threads=1).session(proto, optimize=False), stored)[0]


@pytest.mark.parametrize("rule", CLAIMS, ids=lambda r: r.op)
def test_laws_hold(rule: OpRule) -> None:
    a = np.linspace(-0.9, 0.9, 37).astype(np.float32)
    more = [np.float32(0.3)] if rule.op == "PRelu" else []
    y = evaluate(rule, a, *more)
    if rule.law is Law.HOMOGENEOUS:
        np.testing.assert_allclose(evaluate(rule, 4 * a, *more), 4 * y, rtol=1e-6)
    elif rule.law is Law.ODD:
        np.testing.assert_allclose(evaluate(rule, -a), 2 * rule.centre - y, rtol=1e-5, atol=1e-6)
    else:
        np.testing.assert_array_equal(y, a if rule.law is Law.IDENTITY else -a)


@pytest.mark.parametrize("rule", [r for r in ELEMENTWISE if r.op not in OTHER], ids=lambda r: r.op)
def test_element_wise_ops_work_element_by_element(rule: OpRule) -> None:
    """What the op does to one channel does not depend on the others, nor on where it stands."""
    rng = np.random.default_rng(0)
    operands = [rng.uniform(0.1, 0.9, (3, 5)).astype(np.float32) for _ in range(OPERANDS.get(rule.op, 1))]
    if rule.op == "BiasGelu":
        operands[1] = operands[1][0]
    if rule.op == "Where":
        operands[0] = operands[0] > 0.5  # type: ignore[assignment]
    try:
        whole = evaluate(rule, *operands)
    except Exception as error:
        if "NOT_IMPLEMENTED" in str(error) or "not a registered" in str(error):
            pytest.skip("this ONNX Runtime lacks it")
        raise
    order = rng.permutation(5)
    np.testing.assert_allclose(evaluate(rule, *(o[..., order] for o in operands)), whole[:, order], rtol=1e-6)


@pytest.mark.parametrize("rule", [r for r in ELEMENTWISE if r.law is Law.ANY and r.op not in OTHER], ids=lambda r: r.op)
def test_continuous_ops_are_not_steps(rule: OpRule) -> None:
    """Ops that jump must say so: a difference at rounding level may not become one at full size."""
    if OPERANDS.get(rule.op, 1) > 1 or rule.op in ("Cast", "IsInf", "IsNaN", "Reciprocal", "Tan"):
        pytest.skip("several operands, conditions and casts (told apart by type), or poles")
    a = np.linspace(-3, 3, 1201).astype(np.float32)
    try:
        y = evaluate(rule, a)
    except Exception as error:
        if "NOT_IMPLEMENTED" in str(error) or "not a registered" in str(error):
            pytest.skip("this ONNX Runtime lacks it")
        raise
    y = y[np.isfinite(y)]
    assert np.abs(np.diff(y)).max() < (1.0 if rule.op in ("Log", "Acosh") else 0.15)


def test_ranges_of_one_op_do_not_overlap() -> None:
    keys = [(r.domain, r.op) for r in registered()]
    assert keys == sorted(keys)
    with pytest.raises(AssertionError):
        register(OpRule("Relu", lambda _: pytest.fail("never traced"), since=5))


@pytest.mark.parametrize(
    ("op", "since"), [("Add", 7), ("Sum", 8), ("Gemm", 7), ("MatMul", 7), ("Dropout", 7), ("Relu", 1)]
)
def test_older_versions_with_other_meaning_are_barriers(op: str, since: int) -> None:
    rule = find("", op, since)
    assert rule is not None
    assert rule.op == op
    assert find("", op, since - 1) is None
    assert find("custom", op, since) is None


@pytest.mark.parametrize(
    ("shape", "labels"),
    [
        ((3,), [1, 2, 3]),
        ((1, 3), [[1, 2, 3]]),
        ((5, 3), [[1, 2, 3]]),
        ((1,), [0]),
        ((), 0),
        ((5, 1), [[0]]),
        ((2,), None),
        ((1, 1, 1, 3), None),
    ],
)
def test_constants_carry_the_labels_of_the_axes_along_which_they_vary(shape: tuple[int, ...], labels: Any) -> None:
    found = carried(shape, np.array([[[1, 2, 3]]]))
    assert (None if found is None else found.tolist()) == labels


def test_calls_without_required_operands_are_barriers() -> None:
    """Such a model is invalid, but no reason to crash."""
    value = Value("a", np.array([[1, 2]]), ("N", 2), None)
    for op in ("MatMul", "Gemm"):
        rule = find("", op, 13)
        assert rule is not None
        effect = rule.trace(Call(0, {}, (value, None), ("N", 2), np.arange))
        assert effect.output is None
        assert [p[0].tolist() for p in effect.pins] == [[[1, 2]]]


@pytest.mark.parametrize("ratio", [True, False])
@pytest.mark.parametrize("off", [True, False])
def test_dropout_at_inference_passes_channels(ratio: bool, off: bool) -> None:
    rng = np.random.default_rng(0)
    wide = plant(rng, base_layers(rng, (6, 5)), builders.Planting(2))
    proto = mlp(wide, "Dropout")
    for node in proto.graph.node:
        if node.op_type == "Dropout":
            node.input.extend(["half" if ratio else "", "off"] if off else ["half"] if ratio else [])
    for name, value in (("half", np.array(0.5, np.float32)), ("off", np.array(False))):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    done = lossless(proto)
    assert done.widths() == [6, 5]
    assert_same_outputs(proto, done.proto)


def test_the_mask_of_dropout_keeps_its_channels_together() -> None:
    """The mask is read as a number again: its labels are those of the data."""
    rng = np.random.default_rng(0)
    stored = {"w": rng.standard_normal((7, 6)).astype(np.float32), "u": np.zeros((6, 4), np.float32)}
    stored["u"][:3] = 1.0
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Dropout", ["a"], ["d", "mask"]),
        helper.make_node("Cast", ["mask"], ["m"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", ["d", "m"], ["h"]),
        helper.make_node("MatMul", ["h", "u"], ["y"]),
    ]
    proto = builders.model(nodes, stored, {"x": ["N", 7]}, {"y": ["N", 4]})
    done = lossless(proto)
    assert done.widths() == [3]
    assert_same_outputs(proto, done.proto)


@pytest.mark.parametrize("op", ["Gelu", "FastGelu", "QuickGelu", "BiasGelu"])
def test_contrib_activations_merge_equal_rows(op: str) -> None:
    rng = np.random.default_rng(0)
    row = rng.standard_normal((3, 7))
    stored = {"w": np.repeat(row, 2, 0).T.astype(np.float32), "u": rng.standard_normal((6, 4)).astype(np.float32)}
    stored["b"] = np.repeat(rng.standard_normal(3), 2).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node(op, ["a", "b"] if op in ("BiasGelu", "FastGelu") else ["a"], ["h"], domain="com.microsoft"),
        helper.make_node("MatMul", ["h", "u"], ["y"]),
    ]
    proto = builders.model(nodes, stored, {"x": ["N", 7]}, {"y": ["N", 4]})
    done = lossless(proto)
    assert done.widths() == [3]
    assert_same_outputs(proto, done.proto)


def test_a_gate_drops_both_sides_but_merges_neither_alone() -> None:
    """For y = u (a * sigmoid(b)): copies in a alone are no copies of the product."""
    rng = np.random.default_rng(0)

    def widths(a: Any, b: Any) -> list[int]:
        stored = {"w": a.T.astype(np.float32), "v": b.T.astype(np.float32)}
        stored["u"] = rng.standard_normal((6, 4)).astype(np.float32)
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["a"]),
            helper.make_node("MatMul", ["x", "v"], ["b"]),
            helper.make_node("Sigmoid", ["b"], ["s"]),
            helper.make_node("Mul", ["s", "a"], ["h"]),
            helper.make_node("MatMul", ["h", "u"], ["y"]),
        ]
        proto = builders.model(nodes, stored, {"x": ["N", 7]}, {"y": ["N", 4]})
        done = lossless(proto)
        assert_same_outputs(proto, done.proto)
        return done.widths()

    rows, other = rng.standard_normal((3, 7)), rng.standard_normal((6, 7))
    twice = np.repeat(rows, 2, 0)
    assert widths(twice, other) == [6]
    assert widths(other, twice) == [6]
    assert widths(twice * np.tile([[1.0], [3.0]], (3, 1)), np.repeat(other[:3], 2, 0)) == [3]
    silent = other.copy()
    silent[:2] = 0.0
    assert widths(silent, other) == [4]


def test_bfloat16_weights_are_read_and_written() -> None:
    """ONNX Runtime has no kernels for it here, so only the numbers are compared."""
    rng = np.random.default_rng(0)
    proto = mlp(plant(rng, base_layers(rng, (6, 5)), builders.Planting(2)), "Relu")
    kind = onnx.TensorProto.BFLOAT16
    for t in proto.graph.initializer:
        t.CopyFrom(helper.make_tensor(t.name, kind, t.dims, onnx.numpy_helper.to_array(t).reshape(-1)))
    for v in (*proto.graph.input, *proto.graph.output):
        v.type.tensor_type.elem_type = kind
    done = lossless(proto)
    assert done.widths() == [6, 5]
    network = load(done.proto)
    assert {str(network.constant(n).dtype) for n in ("w0", "w1", "b1")} == {"bfloat16"}  # type: ignore[union-attr]
