"""Behind tensors of unknown rank: ops that take one rank alone go on, others refuse with a reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from mlps import Net, normal
from onnx import TensorProto, helper

from onnx_condense import condense
from onnx_condense.network.model import Network
from onnx_condense.ops.linear import UNKNOWN_RANK, trace_matmul
from onnx_condense.ops.registry import Call, Value
from onnx_condense.plan import PINNED
from onnx_condense.runtime import Runtime, run
from onnx_condense.spaces import HIDDEN, find_spaces

WIDTH = 12
COPIES = [0, 1, 1, 2, 0, 2, 3, 4, 4, 5, 3, 5]


def looped(op: str, shape: list[Any], weights: list[Any], head: Any, **attributes: Any) -> onnx.ModelProto:
    """A loop over x, then an op whose rows are copies of one another, Relu, and a head: (weight, op)."""
    net = Net({"x": shape})
    kind = onnx.TensorProto.FLOAT
    state = [helper.make_tensor_value_info(name, kind, shape) for name in ("s", "t")]
    flags = [helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("c", "d")]
    nodes = [helper.make_node("Tanh", ["s"], ["t"]), helper.make_node("Identity", ["c"], ["d"])]
    count = helper.make_tensor_value_info("i", TensorProto.INT64, [])
    body = helper.make_graph(nodes, "body", [count, flags[0], state[0]], [flags[1], state[1]])
    loop = net.node("Loop", net.weight("trips", np.array(3)), "", "x", body=body)
    stored = [net.weight(f"w{i}", value) for i, value in enumerate(weights)]
    hidden = net.node("Relu", net.node(op, loop, *stored, **attributes, out="h"))
    net.node(head[0], hidden, net.weight("v", head[1]), out="y")
    return net.model({"y": ["M", 3, 9] if op == "Conv" else ["M", 3]})


def gemm() -> onnx.ModelProto:
    return looped("Gemm", ["N", 5], [normal(5, 6)[:, COPIES], normal(6)[COPIES]], ("MatMul", normal(WIDTH, 3)))


def transposed() -> onnx.ModelProto:
    weights = [normal(6, 5)[COPIES], normal(6)[COPIES]]
    return looped("Gemm", [5, "N"], weights, ("MatMul", normal(WIDTH, 3)), transA=1, transB=1)


def conv() -> onnx.ModelProto:
    weights = [normal(6, 2, 3)[COPIES], normal(6)[COPIES]]
    return looped("Conv", ["N", 2, 9], weights, ("Conv", normal(3, WIDTH, 1)), pads=[1, 1])


def matmul() -> onnx.ModelProto:
    return looped("MatMul", ["N", 5], [normal(5, 6)[:, COPIES]], ("MatMul", normal(WIDTH, 3)))


@pytest.mark.parametrize("make", [gemm, transposed, conv])
def test_an_op_that_takes_one_rank_alone_has_a_space_behind_a_loop(make: Any) -> None:
    model = make()
    assert Network(onnx.ModelProto.FromString(model.SerializeToString())).shape("h") is not None
    result = condense(model, threads=1, allow_slower=True)
    (space,) = [s for s in result.report.spaces if s.name == "h"]
    assert (space.before, space.after) == (WIDTH, 6)
    dims = [d.dim_value or d.dim_param for d in model.graph.input[0].type.tensor_type.shape.dim]
    shape: Any = [7 if d in ("N", "") else d for d in dims]
    feed = {"x": normal(*shape)}
    before, after = (run(Runtime(threads=1).session(m), feed)[0] for m in (model, result.model))
    np.testing.assert_allclose(after, before, atol=1e-5)


def test_a_product_of_unknown_rank_stays_with_a_reason() -> None:
    view = find_spaces(Network(matmul()))
    spaces = {s.name: s for s in view.spaces}
    assert spaces["h"].width == WIDTH
    assert spaces["h"].pinned.all()
    assert HIDDEN in {r.reason for r in view.refusals if r.space == "h"}
    report = condense(matmul(), threads=1).report
    assert "h" in {r.space for r in report.refusals}


@pytest.mark.parametrize("swapped", [False, True])
def test_the_rule_of_products_pins_what_it_can_not_place(*, swapped: bool) -> None:
    operands = [Value("x", None, None, None), Value("w", None, (5, 8), np.ones((5, 8), np.float32))]
    call = Call(0, {}, tuple(operands[:: -1 if swapped else 1]), None, lambda n: np.arange(1, n + 1))
    effect = trace_matmul(call)
    (use,) = effect.linear
    assert effect.output is None
    assert len(use.rows) == (5 if swapped else 8)
    assert (use.columns == PINNED).all()
    ((pinned, reason),) = effect.pins
    assert pinned is use.rows
    assert reason == UNKNOWN_RANK
