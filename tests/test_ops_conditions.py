"""Comparisons, conditions, integers: channels pass element by element; proofs want equality to the last bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from builders import Outcome, assert_same_outputs, lossless, model
from onnx import TensorProto, helper

from onnx_condense.ops import Law, find

Array = npt.NDArray[Any]
F = np.float32
NODE = helper.make_node
OF = np.array([0, 1, 2, 0, 1, 2, 2])
"""Which of 3 channels each of 7 is a copy of."""


def rows(seed: int, factor: Array | None = None) -> Array:
    """Weights [5, 7]: copies, perhaps times factors."""
    return np.asarray(np.random.default_rng(seed).standard_normal((5, 3))[:, OF] * (1 if factor is None else factor))


def network(between: Sequence[onnx.NodeProto], *, two: bool = False, **stored: Any) -> onnx.ModelProto:
    """Chain x -> Gemm w -> a (x -> Gemm u -> b) -> nodes that lead to h -> MatMul v -> y."""
    rng = np.random.default_rng(9)
    tensors = {"w": rows(0), "v": rng.standard_normal((7, 4))} | ({"u": rows(1)} if two else {}) | stored
    nodes = [NODE("Gemm", ["x", "w"], ["a"]), *([NODE("Gemm", ["x", "u"], ["b"])] if two else []), *between]
    single = {n: np.asarray(v).astype(F) if np.asarray(v).dtype == float else v for n, v in tensors.items()}
    return model([*nodes, NODE("MatMul", ["h", "v"], ["y"])], single, {"x": ["N", 5]}, {"y": ["N", 4]})


def condensed(proto: onnx.ModelProto, *widths: int) -> Outcome:
    done = lossless(proto)
    assert done.widths() == list(widths)
    assert_same_outputs(proto, done.proto)
    return done


def softplus() -> list[onnx.NodeProto]:
    """As torch writes it: linear above a threshold."""
    return [
        NODE("Mul", ["a", "beta"], ["s"]),
        NODE("Greater", ["s", "limit"], ["c"]),
        NODE("Exp", ["s"], ["e"]),
        NODE("Add", ["e", "one"], ["p"]),
        NODE("Log", ["p"], ["l"]),
        NODE("Div", ["l", "beta"], ["d"]),
        NODE("Where", ["c", "a", "d"], ["h"]),
    ]


NUMBERS = {"beta": np.array(1.5), "limit": np.array(0.75), "one": np.array(1.0)}


def test_a_softplus_with_a_threshold() -> None:
    condensed(network(softplus(), **cast("Any", NUMBERS)), 3)


def test_limits_that_differ_by_channel_go_along() -> None:
    limit = np.array([0.0, 1.0, 2.0])[OF]
    done = condensed(network(softplus(), **cast("Any", NUMBERS | {"limit": limit})), 3)
    sizes = {t.name: list(t.dims) for t in done.proto.graph.initializer}
    assert sizes["limit"] == [3]
    limit[3] = 0.5
    condensed(network(softplus(), **cast("Any", NUMBERS | {"limit": limit})), 4)


@pytest.mark.parametrize("op", ["Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal"])
def test_what_is_compared_and_chosen_is_tied(op: str) -> None:
    nodes = [NODE(op, ["a", "b"], ["c"]), NODE("Where", ["c", "a", "b"], ["h"])]
    done = condensed(network(nodes, two=True), 3)
    assert len(done.view.spaces[0].writers) == 2
    # Copies in one of them alone are no copies.
    condensed(network(nodes, two=True, u=np.random.default_rng(2).standard_normal((5, 7))), 7)


@pytest.mark.parametrize("op", ["And", "Or", "Xor"])
def test_conditions_of_conditions(op: str) -> None:
    nodes = [
        NODE("Greater", ["a", "zero"], ["c"]),
        NODE("IsNaN", ["b"], ["n"]),
        NODE("Not", ["n"], ["d"]),
        NODE(op, ["c", "d"], ["e"]),
        NODE("Cast", ["e"], ["h"], to=TensorProto.FLOAT),
    ]
    condensed(network(nodes, two=True, zero=np.array(0.0)), 3)


def test_copies_up_to_rounding_may_lie_on_two_sides_of_a_limit() -> None:
    """Without a jump they are copies."""
    moved = rows(0).astype(F)
    moved[:, 3:] = np.nextafter(moved[:, 3:], F(np.inf))
    condensed(network([NODE("Tanh", ["a"], ["h"])], w=moved), 3)
    done = lossless(
        network([NODE("Greater", ["a", "z"], ["c"]), NODE("Cast", ["c"], ["h"], to=1)], w=moved, z=np.zeros(1))
    )
    assert done.widths() == [6]


def test_multiples_are_no_copies_behind_a_limit() -> None:
    factor = np.array([1, 1, 1, 2, -1, 1, 3.0])
    done = lossless(network(softplus(), w=rows(0, factor), **cast("Any", NUMBERS)))
    assert done.widths() == [6]


def test_integers_have_other_laws() -> None:
    """Twice a whole part is not the whole part of twice a number; and 3 / 2 is 1."""
    whole = NODE("Cast", ["a"], ["i"], to=TensorProto.INT32)
    halved = [whole, NODE("Div", ["i", "k"], ["j"]), NODE("Cast", ["j"], ["h"], to=TensorProto.FLOAT)]
    factor = np.array([1, 1, 1, 2, 3, 4, 1.0])
    condensed(network(halved, w=8 * rows(0), k=np.array(2, np.int32)), 3)
    condensed(network(halved, w=8 * rows(0, factor), k=np.array(2, np.int32)), 6)


def test_what_is_divided_and_multiplied_back_is_not_what_it_was() -> None:
    nodes = [
        NODE("Cast", ["a"], ["i"], to=TensorProto.INT32),
        NODE("Div", ["i", "k"], ["d"]),
        NODE("Mul", ["d", "k"], ["j"]),
        NODE("Cast", ["j"], ["h"], to=TensorProto.FLOAT),
    ]
    factor = np.array([1, 1, 1, 2, 2, 2, 3], np.int32)
    condensed(network(nodes, w=8 * rows(0), k=factor), 7)
    condensed(network(nodes, w=8 * rows(0), k=np.full(7, 2, np.int32)), 3)


def test_constants_behind_a_limit_stay_what_they_are() -> None:
    """They are equal to each other, but no number: a constant may come out on either side of what it is compared to."""
    first, bias = rows(0), np.linspace(-1, 1, 7)
    first[:, :4], bias[:4] = 0, [0.25, 0.25, 0.5, 2.0]
    nodes = [NODE("Add", ["a", "k"], ["t"]), NODE("Greater", ["t", "z"], ["c"]), NODE("Where", ["c", "t", "z"], ["h"])]
    proto = network(nodes, w=first, k=bias, z=np.array(0.3))
    done = lossless(proto)
    assert_same_outputs(proto, done.proto)
    assert done.widths() == [6]


def test_only_the_type_of_a_model_counts() -> None:
    """CastLike: what says the type is neither tied nor pinned."""
    nodes = [
        NODE("CastLike", ["one", "a"], ["o"]),
        NODE("CastLike", ["b", "a"], ["t"]),
        NODE("Add", ["t", "o"], ["r"]),
        NODE("Relu", ["r"], ["h"]),
    ]
    proto = network(nodes, two=True, one=np.array(1, np.int64), v=np.pad(np.ones((5, 4)), ((0, 2), (0, 0))))
    done = lossless(proto)
    assert_same_outputs(proto, done.proto)
    assert [r for r in done.view.refusals if "CastLike" in r.node] == []
    assert all(len(s.writers) == 1 for s in done.view.spaces)


@pytest.mark.parametrize("op", ["BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Max", "Mod"])
def test_integers_of_two_operands(op: str) -> None:
    whole = [NODE("Cast", [n], [f"{n}_i"], to=TensorProto.UINT32) for n in ("p", "q")]
    nodes = [
        NODE("Abs", ["a"], ["p"]),
        NODE("Exp", ["b"], ["q"]),
        *whole,
        NODE(op, ["p_i", "q_i"], ["j"], **({"direction": "LEFT"} if op == "BitShift" else {})),
        NODE("Cast", ["j"], ["h"], to=TensorProto.FLOAT),
    ]
    rule = find("", op, 20)
    assert rule is not None
    done = lossless(network(nodes, two=True))
    assert done.widths() == [3]


ELEMENTWISE = """
Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike Ceil Celu
Clip Cos Cosh Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish Identity IsInf IsNaN
LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or PRelu Pow Reciprocal Relu Round Selu Shrink Sigmoid
Sign Sin Sinh Softplus Softsign Sqrt Sub Sum Swish Tan Tanh ThresholdedRelu Where Xor
"""


@pytest.mark.parametrize("op", ELEMENTWISE.split())
def test_every_op_on_elements_has_a_rule_at_all_its_opsets(op: str) -> None:
    versions = {s.since_version for s in onnx.defs.get_all_schemas_with_history() if s.name == op and not s.domain}
    assert versions
    for version in {v for v in versions if v > 6} | {26}:
        broadcasts = op not in {"Max", "Mean", "Min", "Sum"} or version > 7
        assert not broadcasts or find("", op, version) is not None


def test_ops_with_conditions_for_results_jump() -> None:
    for schema in onnx.defs.get_all_schemas():
        rule = None if schema.domain else find("", schema.name, 26)
        kinds = {t.type_param_str: t.allowed_type_strs for t in schema.type_constraints}
        out = schema.outputs[0].type_str if schema.outputs else ""
        if rule is not None and set(kinds.get(out, [out])) == {"tensor(bool)"}:
            assert rule.law is Law.STEP, schema.name
