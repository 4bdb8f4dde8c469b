"""LSTM, GRU and RNN as fitted readers: least squares at their sums, the offset in B, and a proof of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from builders import Layer, Planting
from onnx import helper, numpy_helper
from recurrent_nets import (
    HIDDEN,
    IN,
    OPS,
    SEQ,
    WIDTH,
    Array,
    Case,
    F,
    fed,
    network,
    node,
    planted,
    tensor,
)

from onnx_condense import condense
from onnx_condense.cost import WidthCosts, count_macs, count_parameters
from onnx_condense.data import input_specs
from onnx_condense.data import load as load_samples
from onnx_condense.errors import DefectError
from onnx_condense.fit.fitting import Fitter
from onnx_condense.network.model import Network
from onnx_condense.plan import Plan, ReaderUpdate, Selection
from onnx_condense.proving.verify import check_graph, check_numbers
from onnx_condense.rewrite import apply_plan
from onnx_condense.runtime import Runtime
from onnx_condense.spaces import find_spaces

RUNTIME = Runtime(threads=1)


def fitter(proto: onnx.ModelProto, x: Array) -> Fitter:
    found = Network(proto)
    samples = load_samples(x, input_specs(found.proto.graph))
    rows = np.arange(len(samples))
    return Fitter(found, find_spaces(found), samples, rows[: len(rows) // 2], rows[len(rows) // 2 :], RUNTIME)


def along(case: Case) -> onnx.ModelProto:
    """The network with samples first: x [N, SEQ, IN] -> Transpose -> ... -> Transpose, free channels as they are."""
    proto = network(case, Planting(copies=1))
    proto.graph.node.insert(0, helper.make_node("Transpose", ["x"], ["turned"], perm=[1, 0, 2]))
    node(proto, "MatMul").input[0] = "turned"
    dims = proto.graph.input[0].type.tensor_type.shape.dim
    dims[0].dim_param, dims[1].dim_value = "N", SEQ
    layer = node(proto, case.op)
    layer.output[0] = "sequence"
    del layer.output[1:]
    proto.graph.node.append(helper.make_node("Transpose", ["sequence"], ["y"], perm=[2, 0, 1, 3]))
    del proto.graph.output[:]
    proto.graph.output.append(helper.make_tensor_value_info("y", 1, ["N", SEQ, case.parts, HIDDEN]))
    onnx.checker.check_model(proto, full_check=True)
    return proto


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("bias", [True, False], ids=["B", "no B"])
@pytest.mark.parametrize("direction", ["reverse", "bidirectional"])
def test_the_refit_is_least_squares(op: str, direction: str, *, bias: bool) -> None:
    case = Case(op, direction, bias)
    proto = along(case)
    x = np.random.default_rng(4).standard_normal((600, SEQ, IN)).astype(F)
    made = fitter(proto, x)
    (space,) = made.spaces
    plan, after = made.plan([WIDTH - 2], sequential=True)
    (keep,) = (s.keep for s in plan.selections)
    assert len(keep) == WIDTH - 2
    w, b, W = (tensor(proto, name).astype(np.float64) for name in ("w", "b", "W"))
    h = np.maximum(x[:300].astype(np.float64) @ w + b, 0).reshape(-1, WIDTH)
    sums = h @ W.reshape(-1, WIDTH).T
    direct, *_ = np.linalg.lstsq(np.c_[h[:, keep], np.ones(len(h))], sums, rcond=None)
    found = tensor(after, "W").astype(np.float64).reshape(-1, len(keep))
    np.testing.assert_allclose(found, direct[:-1].T, rtol=0, atol=2e-3 * np.abs(direct).max())
    new = tensor(after, node(after, op).input[3]).astype(np.float64)
    old = tensor(proto, "B").astype(np.float64) if bias else np.zeros_like(new)
    rows = case.rows
    np.testing.assert_allclose((new - old)[:, :rows].reshape(-1), direct[-1], rtol=0, atol=2e-3 * np.abs(direct).max())
    np.testing.assert_array_equal(new[:, rows:], old[:, rows:])
    # The error that was predicted is the one at the sums.
    rest = sums - np.c_[h[:, keep], np.ones(len(h))] @ direct
    assert plan.errors[space.name] == pytest.approx(
        float(np.sqrt((rest**2).sum() / ((sums - sums.mean(0)) ** 2).sum())), rel=1e-2
    )
    check_graph(proto, after)
    check_numbers(made.network, made.view, plan, after, [{"x": x[:20]}], RUNTIME)


def test_the_costs_are_those_of_the_file() -> None:
    x = np.random.default_rng(0).standard_normal((60, SEQ, IN)).astype(F)
    made = fitter(along(Case("GRU", "bidirectional")), x)
    costs = WidthCosts(made.network, made.view)
    for width in (WIDTH, 3, 1):
        _, after = made.plan([width], sequential=False)
        widths = [width if s.reducible else s.width for s in made.view.spaces]
        assert costs.total(widths) == count_parameters(after)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_multiply_accumulates(op: str, direction: str) -> None:
    case = Case(op, direction)
    own = SEQ * case.parts * case.rows * (WIDTH + HIDDEN)
    assert count_macs(Network(network(case, Planting(copies=1)))) == own + SEQ * IN * WIDTH


def test_a_condensed_network_is_verified_and_smaller() -> None:
    """Two numbers lie behind all channels, so that some of them are enough."""
    case = Case("LSTM", "bidirectional")
    rng = np.random.default_rng(0)
    layers = [Layer(rng.standard_normal((40, 2)) @ rng.standard_normal((2, IN)) / 4, rng.standard_normal(40) / 4)]
    _, weights = planted(case, Planting(copies=1))
    weights["W"] = rng.standard_normal((2, case.rows, 40)) / 40
    base = along(case)
    for name, array in {"w": layers[0].weight.T, "b": layers[0].bias, "W": weights["W"]}.items():
        next(t for t in base.graph.initializer if t.name == name).CopyFrom(
            numpy_helper.from_array(np.ascontiguousarray(array).astype(F), name)
        )
    x = rng.standard_normal((400, SEQ, IN)).astype(F)
    done = condense(base, calibration={"x": x}, tolerance=0.01, threads=1, allow_slower=True)
    assert done.report.status == "condensed"
    (row,) = [s for s in done.report.spaces if s.before > s.after]
    assert row.before == 40
    assert row.after <= 32
    assert tensor(done.model, "W").shape == (2, case.rows, row.after)
    assert done.report.error is not None
    assert done.report.error.value <= 0.01


# ---- the proof is one of its own ----


def some_plan(proto: onnx.ModelProto) -> tuple[Network, Any, Plan]:
    """Half of the channels go, the rest is doubled and shifted by numbers that differ by row."""
    found = Network(proto)
    view = find_spaces(found)
    space = view.spaces[0]
    keep = np.arange(0, space.width, 2)
    matrix = view.linear[1].matrix(tensor(proto, "W"))
    matrix = 2 * np.where(np.isin(np.arange(space.width), keep), matrix, 0.0)
    update = ReaderUpdate(1, matrix, np.linspace(-0.5, 0.5, len(matrix)))
    return found, view, Plan("fitted", (Selection(space.name, keep),), (update,))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("bias", [True, False], ids=["B", "no B"])
@pytest.mark.parametrize("outs", [("y", "y_h"), ("", "y_h")])
@pytest.mark.parametrize("dtype", [F, np.float16])
def test_any_plan_is_what_its_rewrite_does(op: str, outs: tuple[str, ...], dtype: Any, *, bias: bool) -> None:
    proto = network(Case(op, "bidirectional", bias, outs=outs, dtype=dtype), Planting(copies=1))
    found, view, plan = some_plan(proto)
    after = apply_plan(found, view, plan)
    check_graph(proto, after)
    check_numbers(found, view, plan, after, [fed(proto)], RUNTIME)


BREAKS: dict[str, Callable[[Array], Array]] = {
    "half of it": lambda added: added / 2,
    "none of it": np.zeros_like,
    "other directions": lambda added: added[::-1],
    "other rows": lambda added: np.roll(added, 1, axis=1),
}


@pytest.mark.parametrize("how", BREAKS)
def test_a_wrong_bias_is_told(how: str) -> None:
    proto = network(Case("GRU", "bidirectional"), Planting(copies=1))
    found, view, plan = some_plan(proto)
    after = apply_plan(found, view, plan)
    stored = next(t for t in after.graph.initializer if t.name == "B")
    old = tensor(proto, "B")
    broken = old + BREAKS[how](tensor(after, "B") - old)
    stored.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(broken), "B"))
    with pytest.raises(DefectError, match="off from its plan"):
        check_numbers(found, view, plan, after, [fed(proto)], RUNTIME)


def test_the_half_matters_to_a_gru_that_resets_the_sum() -> None:
    """With linear_before_reset Rb of the new state is reset, and Wb is not."""
    case = Case("GRU", bias=False, more={"linear_before_reset": 1})
    proto = network(case, Planting(copies=1))
    found, view, plan = some_plan(proto)
    after = apply_plan(found, view, plan)
    check_numbers(found, view, plan, after, [fed(proto)], RUNTIME)
    name = node(after, "GRU").input[3]
    stored = next(t for t in after.graph.initializer if t.name == name)
    stored.CopyFrom(numpy_helper.from_array(np.roll(tensor(after, name), case.rows, axis=1), name))
    with pytest.raises(DefectError, match="off from its plan"):
        check_numbers(found, view, plan, after, [fed(proto)], RUNTIME)
