"""Which channels exist, what ties them, and what pins them: every refusal with its reason and place."""

from __future__ import annotations

from typing import Any

import builders
import numpy as np
import onnx
import pytest
from builders import assert_same_outputs, base_layers, lossless, mlp
from onnx import TensorProto, helper, numpy_helper

from onnx_condense import spaces
from onnx_condense.network.model import load
from onnx_condense.ops import linear
from onnx_condense.ops.elementwise import OUTER, UNKNOWN_SIZE
from onnx_condense.plan import ChannelView

F = np.float32
NODE = helper.make_node


def view_of(proto: onnx.ModelProto) -> ChannelView:
    return spaces.find_spaces(load(proto))


def network(nodes: list[onnx.NodeProto], shape: Any = ("N", 7), **stored: Any) -> onnx.ModelProto:
    """Chain x -> w -> a -> the given nodes -> y; w has 6 rows, all alike, so that whatever is free would go."""
    weights = {"w": np.ones((7, 6), F), "u": np.ones((6, 4), F), **stored}
    graph = helper.make_graph(
        [NODE("MatMul", ["x", "w"], ["a"], name="first"), *nodes],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(v, n) for n, v in weights.items()],
    )
    graph.output[0].CopyFrom(onnx.ValueInfoProto(name="y"))
    domains = [helper.make_opsetid(d, v) for d, v in (("", 20), ("custom", 1), ("com.microsoft", 1))]
    proto = helper.make_model(graph, opset_imports=domains, ir_version=9)
    inferred = onnx.shape_inference.infer_shapes(proto).graph.output[0]
    known = inferred.type.tensor_type.HasField("shape")
    default = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])
    proto.graph.output[0].CopyFrom(inferred if known else default)
    return proto


HEAD = NODE("MatMul", ["h", "u"], ["y"], name="head")


def body(op: str) -> onnx.GraphProto:
    out = helper.make_tensor_value_info(f"inner_{op}", TensorProto.FLOAT, None)
    return helper.make_graph([NODE(op, ["a"], [out.name])], "body", [], [out])


REFUSED: dict[str, tuple[onnx.ModelProto, str, str]] = {
    "graph output": (network([NODE("Relu", ["a"], ["y"], name="end")]), "y", spaces.GRAPH_OUTPUT),
    "mixing op": (
        network([NODE("Softmax", ["a"], ["h"], name="s"), HEAD]),
        "s (Softmax)",
        "normalised over the channels",
    ),
    "custom op": (
        network([NODE("Odd", ["a"], ["h"], domain="custom"), HEAD]),
        "h (Odd)",
        "no rule for Odd",
    ),
    "subgraph": (
        network(
            [
                NODE("If", ["flag"], ["c"], then_branch=body("Relu"), else_branch=body("Abs")),
                NODE("Add", ["a", "c"], ["y"]),
            ],
            flag=np.array(True),
        ),
        "a",
        spaces.CAPTURED,
    ),
    "input added": (
        network([NODE("Add", ["a", "x"], ["h"], name="skip"), HEAD], ("N", 6), w=np.ones((6, 6), F)),
        "skip (Add)",
        spaces.FIXED,
    ),
    "training dropout": (
        network([NODE("Dropout", ["a", "", "on"], ["h"], name="drop"), HEAD], on=np.array(True)),
        "drop (Dropout)",
        "draws random numbers (Dropout in training mode)",
    ),
    "computed weight": (
        network([NODE("Transpose", ["a"], ["t"]), NODE("MatMul", ["a", "t"], ["y"], name="core")]),
        "core (MatMul)",
        linear.COMPUTED_WEIGHT,
    ),
    "not contracted": (
        network([NODE("MatMul", ["r", "a"], ["y"], name="rows")], (3, 7), r=np.ones((2, 3), F)),
        "rows (MatMul)",
        linear.NOT_CONTRACTED,
    ),
    "integer weight": (
        network(
            [NODE("Cast", ["a"], ["i"], to=TensorProto.INT32), NODE("MatMul", ["i", "b"], ["y"], name="whole")],
            b=np.ones((6, 4), np.int32),
        ),
        "whole (MatMul)",
        linear.INTEGER_WEIGHT,
    ),
    "weight not finite": (
        network([NODE("MatMul", ["a", "b"], ["y"], name="nan")], b=np.full((6, 4), np.nan, F)),
        "nan (MatMul)",
        linear.NOT_FINITE,
    ),
    "computed addend": (
        network([NODE("Relu", ["a"], ["c"]), NODE("Gemm", ["x", "w", "c"], ["h"], name="sum"), HEAD]),
        "sum (Gemm)",
        linear.ADDEND,
    ),
    "outer sum": (
        network(
            [NODE("MatMul", ["q", "x"], ["c"]), NODE("Add", ["a", "c"], ["y"], name="outer")],
            (7, 7),
            w=np.ones((7, 1), F),
            q=np.ones((1, 7), F),
        ),
        "outer (Add)",
        OUTER,
    ),
    "unknown size": (
        network([NODE("Add", ["a", "e"], ["h"], name="maybe"), NODE("Expand", ["x", "shape"], ["e"]), HEAD]),
        "maybe (Add)",
        UNKNOWN_SIZE,
    ),
}
UNSORTED = REFUSED["unknown size"][0]
UNSORTED.graph.node.insert(0, UNSORTED.graph.node[2])
del UNSORTED.graph.node[3]
UNSORTED.graph.input.append(helper.make_tensor_value_info("shape", TensorProto.INT64, [2]))


@pytest.mark.parametrize("case", REFUSED)
def test_barriers_pin_with_reason_and_place(case: str) -> None:
    proto, place, reason = REFUSED[case]
    view = view_of(proto)
    assert (place, reason) in {(r.node, r.reason) for r in view.refusals}
    assert all(s.pinned.all() for s in view.spaces if s.name == "a")
    assert not [s for s in lossless(proto).plan.selections if s.space == "a"]


def test_only_what_is_touched_is_pinned() -> None:
    """A barrier at the end leaves the hidden layer free."""
    nodes = [NODE("Relu", ["a"], ["h"]), NODE("MatMul", ["h", "u"], ["b"]), NODE("Softmax", ["b"], ["y"])]
    view = view_of(network(nodes))
    assert {s.name: bool(s.pinned.any()) for s in view.spaces} == {"a": False, "b": True}
    assert {r.space for r in view.refusals} == {"b"}


def test_residual_additions_join_writers_into_one_space() -> None:
    nodes = [
        NODE("MatMul", ["x", "w"], ["b"]),
        NODE("MatMul", ["a", "v"], ["c"]),
        NODE("Add", ["a", "c"], ["d"]),
        NODE("Add", ["d", "b"], ["h"]),
        HEAD,
    ]
    view = view_of(network(nodes, v=np.ones((6, 6), F)))
    (hidden,) = (s for s in view.spaces if s.name == "a")
    assert [view.linear[w].weight.node for w in hidden.writers] == [0, 1, 2]
    assert [view.linear[r].weight.node for r in hidden.readers] == [2, 5]
    assert hidden.width == 6
    assert hidden.reducible


@pytest.mark.parametrize("shape", [(6,), (1, 6), (), (1,), (3, 1), (3, 6), (1, 1, 6), (2, 1, 6)])
@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div", "Max", "Pow", "PRelu"])
@pytest.mark.parametrize("swapped", [False, True])
def test_constants_of_every_extent_are_carried(shape: tuple[int, ...], op: str, swapped: bool) -> None:
    if op == "PRelu" and (swapped or len(shape) > 2):
        pytest.skip("the slope broadcasts one way only")
    constant = np.arange(1, 1 + np.prod(shape), dtype=F).reshape(shape) / 7
    rng = np.random.default_rng(0)
    w = rng.standard_normal((7, 6)).astype(F)
    u = np.r_[rng.standard_normal((3, 4)), np.zeros((3, 4))].astype(F)
    inputs = ["p", "c"][:: -1 if swapped else 1]
    nodes = [NODE("Abs", ["a"], ["p"]), NODE(op, inputs, ["h"]), HEAD]
    proto = network(nodes, (3, 7), w=w, u=u, c=constant)
    done = lossless(proto)
    assert done.widths() == [3]
    assert_same_outputs(proto, done.proto)


def test_an_unbounded_shape_pins_only_itself() -> None:
    """A tensor of unknown rank (the result of an op without shape inference) hides what it meets."""
    nodes = [
        NODE("Odd", ["x"], ["o"], domain="custom"),
        NODE("Add", ["a", "o"], ["s"], name="meet"),
        NODE("MatMul", ["x", "w"], ["b"]),
        NODE("MatMul", ["b", "u"], ["q"]),
        NODE("Add", ["q", "s"], ["y"]),
    ]
    view = view_of(network(nodes))
    assert {s.name: bool(s.pinned.all()) for s in view.spaces} == {"a": True, "b": False, "q": True}
    assert ("meet (Add)", spaces.HIDDEN) in {(r.node, r.reason) for r in view.refusals}


@pytest.mark.parametrize("declared", [["N", 9], ["N", 2, 6], [], [6]])
def test_stale_declarations_are_not_believed(declared: list[Any]) -> None:
    proto = network([NODE("Relu", ["a"], ["h"]), NODE("Add", ["h", "h"], ["g"]), NODE("MatMul", ["g", "u"], ["y"])])
    for name in ("a", "h"):
        proto.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, declared))
    view = view_of(proto)
    assert [s.name for s in view.spaces if not s.pinned.any()] == ["a"]
    assert view.labels["h"].shape == (1, 6)


@pytest.mark.parametrize("declared", [["N", 2, 6], [], [6]])
def test_wrong_declarations_behind_unknown_ops_end_in_no_crash(declared: list[Any]) -> None:
    nodes = [NODE("Odd", ["a"], ["o"], domain="custom"), NODE("Add", ["o", "a"], ["h"]), HEAD]
    proto = network(nodes)
    for name in ("o", "h"):
        proto.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, declared))
    assert view_of(proto).spaces[0].pinned.all()


def test_defaults_that_callers_may_override_are_no_weights() -> None:
    proto = network([NODE("Relu", ["a"], ["h"]), HEAD])
    proto.graph.input.append(helper.make_tensor_value_info("u", TensorProto.FLOAT, [6, 4]))
    view = view_of(proto)
    assert ("head (MatMul)", linear.COMPUTED_WEIGHT) in {(r.node, r.reason) for r in view.refusals}
    proto.ir_version, proto.opset_import[0].version = 3, 8
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [7, 6]))
    assert not view_of(proto).spaces[0].pinned.any()


def test_functions_of_the_model_hide_standard_ops() -> None:
    proto = network([NODE("Gelu", ["a"], ["h"], domain="com.microsoft", name="own"), HEAD])
    version = [helper.make_opsetid("", 20)]
    assert not view_of(proto).spaces[0].pinned.any()
    proto.functions.append(
        helper.make_function("com.microsoft", "Gelu", ["i"], ["o"], [NODE("Softmax", ["i"], ["o"])], version)
    )
    assert ("own (Gelu)", "no rule for Gelu") in {(r.node, r.reason) for r in view_of(proto).refusals}


def test_a_sparse_weight_is_a_barrier() -> None:
    proto = network([NODE("Relu", ["a"], ["h"]), NODE("MatMul", ["h", "s"], ["y"], name="sparse")])
    values = numpy_helper.from_array(np.ones(2, F), "s")
    indices = numpy_helper.from_array(np.array([0, 5], np.int64), "at")
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [6, 4]))
    reasons = {(r.node, r.reason) for r in view_of(proto).refusals}
    assert reasons == {("sparse (MatMul)", linear.COMPUTED_WEIGHT)}


@pytest.mark.parametrize("widths", [(1, 5), (5, 1), (1, 1)])
def test_layers_of_one_unit(widths: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    layers = base_layers(rng, widths)
    layers[1].weight[:] = rng.standard_normal(layers[1].weight.shape)
    proto = mlp(layers, "Tanh")
    done = lossless(proto)
    assert done.widths() == list(widths)
    assert_same_outputs(proto, done.proto)


def test_axes_without_elements() -> None:
    proto = network([NODE("Relu", ["a"], ["h"]), HEAD], w=np.ones((7, 0), F), u=np.ones((0, 4), F))
    assert not lossless(proto).plan.selections


def test_labels_broadcast_to_their_tensors() -> None:
    layers = base_layers(np.random.default_rng(0), (6, 5))
    view = view_of(mlp(layers, "Relu", builders.Form("MatMul")))
    assert view.labels["h0"].shape == (1, 6)
    assert (view.labels["x"] == 0).all()
    np.testing.assert_array_equal(view.labels["m0"], view.labels["h0"])
    assert [c.labels.shape for c in view.constants] == [(6,), (5,), (4,)]
