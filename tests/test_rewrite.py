"""The rewrite changes what the plan says and nothing else: sharing, aliases, names, declarations, order."""

from __future__ import annotations

from typing import Any

import builders
import numpy as np
import onnx
import pytest
from builders import ACTIVATIONS, Form, Layer, Planting, assert_same_outputs, base_layers, lossless, mlp, plant
from onnx import TensorProto, helper, numpy_helper
from random_nets import random_network

from onnx_condense.errors import DefectError
from onnx_condense.network.model import load
from onnx_condense.rewrite import apply_plan, kept_positions
from onnx_condense.spaces import find_spaces

Array = Any
X: dict[str, list[int | str]] = {"x": ["N", 7]}


def tensors(proto: onnx.ModelProto) -> dict[str, Array]:
    return {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}


def copies(rng: np.random.Generator, base: int, size_in: int) -> Array:
    """[size_in, 2 base] with every unit twice."""
    return np.repeat(rng.standard_normal((base, size_in)), 2, 0).T.astype(np.float32)


def test_a_plan_without_selections_changes_nothing() -> None:
    proto = mlp(base_layers(np.random.default_rng(0), (6, 5)), "Relu")
    network = load(proto)
    view = find_spaces(network)
    assert lossless(proto).proto.SerializeToString() == proto.SerializeToString()
    assert not lossless(proto).plan.selections
    assert view.linear
    assert network.proto is proto


def test_the_input_is_never_touched() -> None:
    rng = np.random.default_rng(0)
    proto = mlp(plant(rng, base_layers(rng, (6, 5)), Planting(2)), "Gelu")
    before = proto.SerializeToString()
    assert lossless(proto).plan.selections
    assert proto.SerializeToString() == before


def test_fields_that_do_not_change_stay() -> None:
    rng = np.random.default_rng(0)
    proto = mlp(plant(rng, base_layers(rng, (6, 5)), Planting(2)), "Gelu")
    proto.doc_string, proto.producer_name = "a network", "a maker"
    proto.metadata_props.add(key="k", value="v")
    proto.graph.initializer[0].doc_string = "first weight"
    proto.graph.node[0].doc_string = "first node"
    made = lossless(proto).proto
    assert (made.doc_string, made.producer_name, made.metadata_props[0].value) == ("a network", "a maker", "v")
    assert made.graph.initializer[0].doc_string == "first weight"
    assert list(made.graph.node) == list(proto.graph.node)
    assert [t.name for t in made.graph.initializer] == [t.name for t in proto.graph.initializer]


def shared_weight(rng: np.random.Generator, *, pinned: bool) -> onnx.ModelProto:
    """Two towers with one weight; one of them may end in an output right away."""
    stored = {
        "w": copies(rng, 3, 7),
        "u": rng.standard_normal((6, 4)).astype(np.float32),
        "v": rng.standard_normal((6, 4)).astype(np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("MatMul", ["r", "w"], ["b"]),
        helper.make_node("Tanh", ["a"], ["ta"]),
        helper.make_node("Tanh", ["b"], ["tb"]),
        helper.make_node("MatMul", ["ta", "u"], ["p"]),
        helper.make_node("MatMul", ["tb", "v"], ["q"]),
        helper.make_node("Add", ["p", "q"], ["y"]),
    ]
    outputs: dict[str, Any] = {"y": ["N", 4]} | ({"b": ["N", 6]} if pinned else {})
    return builders.model(nodes, stored, X, outputs)


def test_a_shared_weight_stays_stored_once_where_its_uses_agree() -> None:
    proto = shared_weight(np.random.default_rng(0), pinned=False)
    done = lossless(proto)
    assert {n: v.shape for n, v in tensors(done.proto).items()} == {"w": (7, 3), "u": (3, 4), "v": (3, 4)}
    assert_same_outputs(proto, done.proto)


def test_a_shared_weight_is_cloned_where_one_use_is_pinned() -> None:
    proto = shared_weight(np.random.default_rng(0), pinned=True)
    done = lossless(proto)
    shapes = {n: v.shape for n, v in tensors(done.proto).items()}
    assert shapes == {"w": (7, 6), "w_condensed": (7, 3), "u": (3, 4), "v": (6, 4)}
    assert_same_outputs(proto, done.proto)


@pytest.mark.parametrize("depth", [2, 3, 4, 5])
def test_one_weight_in_consecutive_layers(depth: int) -> None:
    rng = np.random.default_rng(depth)
    base = rng.standard_normal((3, 3))
    weight = (np.repeat(np.repeat(base, 2, 0), 2, 1) / 2).T.astype(np.float32)
    nodes, tensor = [], "x"
    for i in range(depth):
        nodes.append(helper.make_node("MatMul", [tensor, "w"], [f"z{i}"]))
        nodes.append(helper.make_node("Tanh", [f"z{i}"], [f"h{i}"]))
        tensor = f"h{i}"
    proto = builders.model(nodes, {"w": weight}, {"x": ["N", 6]}, {tensor: ["N", 6]})
    done = lossless(proto)
    assert done.widths() == [3] * (1 if depth > 3 else depth - 1)
    assert_same_outputs(proto, done.proto)
    assert len(tensors(done.proto)) == min(depth, 3)


@pytest.mark.parametrize("linear", ["Gemm", "MatMul"])
def test_a_bias_shared_by_layers_that_are_cut_differently_is_cloned(linear: str) -> None:
    """The F2 trap of other tools: two zero biases of equal width, stored once."""
    rng = np.random.default_rng(0)
    first, second = (np.repeat(rng.standard_normal((n, k)), 6 // n, 0) for n, k in ((3, 7), (2, 6)))
    layers = [Layer(first, np.zeros(6)), Layer(second, np.zeros(6)), Layer(rng.standard_normal((4, 6)), np.zeros(4))]
    proto = mlp(layers, "Relu", Form(linear))
    for node in proto.graph.node:
        node.input[:] = ["b0" if name == "b1" else name for name in node.input]
    del proto.graph.initializer[3]
    done = lossless(proto)
    assert done.widths() == [3, 2]
    assert sorted(v.shape for n, v in tensors(done.proto).items() if n.startswith("b0")) == [(2,), (3,)]
    assert_same_outputs(proto, done.proto)


def relu_body(name: str, taken: str) -> onnx.GraphProto:
    out = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
    return helper.make_graph([helper.make_node("Relu", [taken], [name])], "body", [], [out])


@pytest.mark.parametrize("also", ["graph output", "subgraph"])
def test_a_stored_bias_that_is_read_elsewhere_keeps_its_value(also: str) -> None:
    rng = np.random.default_rng(0)
    stored = {
        "w": copies(rng, 3, 7),
        "b": np.repeat(rng.standard_normal(3), 2).astype(np.float32),
        "u": rng.standard_normal((6, 4)).astype(np.float32),
        "flag": np.array(True),
    }
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["z"]),
        helper.make_node("Relu", ["z"], ["h"]),
        helper.make_node("MatMul", ["h", "u"], ["y"]),
    ]
    outputs: dict[str, Any] = {"y": ["N", 4]}
    if also == "graph output":
        outputs["b"] = [6]
    else:
        bodies: dict[str, Any] = {"then_branch": relu_body("b_condensed", "b"), "else_branch": relu_body("other", "b")}
        nodes.append(helper.make_node("If", ["flag"], ["c"], **bodies))
        outputs["c"] = [6]
    proto = builders.model(nodes, stored, X, outputs)
    done = lossless(proto)
    assert done.widths() == [3]
    np.testing.assert_array_equal(tensors(done.proto)["b"], stored["b"])
    assert_same_outputs(proto, done.proto)


def test_a_weight_that_is_also_its_own_addend() -> None:
    rng = np.random.default_rng(0)
    stored = {"w": np.repeat(rng.standard_normal((7, 3)), 2, 1).astype(np.float32)}
    stored["u"] = rng.standard_normal((6, 4)).astype(np.float32)
    nodes = [helper.make_node("Gemm", ["x", "w", "w"], ["z"]), helper.make_node("MatMul", ["z", "u"], ["y"])]
    proto = builders.model(nodes, stored, {"x": [7, 7]}, {"y": [7, 4]})
    assert_same_outputs(proto, lossless(proto).proto)


@pytest.mark.parametrize("shape", [None, (), (1,), (6,), (1, 6), (5, 1), (5, 6)])
@pytest.mark.parametrize("beta", [1.0, 0.0, 2.0])
def test_every_addend_of_gemm(shape: tuple[int, ...] | None, beta: float) -> None:
    """The second layer's addend takes over the share of a constant unit whatever its shape and factor."""
    rng = np.random.default_rng(1)
    first = rng.standard_normal((6, 7))
    first[:2] = 0.0
    stored = {"w": first.T.astype(np.float32), "b": rng.uniform(1, 2, 6).astype(np.float32)}
    stored |= {"u": rng.standard_normal((6, 6)).astype(np.float32), "v": rng.standard_normal((6, 4)).astype(np.float32)}
    inputs = ["h", "u"]
    if shape is not None:
        stored["c"] = rng.standard_normal(shape).astype(np.float32)
        inputs.append("c")
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["z"]),
        helper.make_node("Relu", ["z"], ["h"]),
        helper.make_node("Gemm", inputs, ["p"], beta=beta, alpha=0.5),
        helper.make_node("Relu", ["p"], ["q"]),
        helper.make_node("MatMul", ["q", "v"], ["y"]),
    ]
    proto = builders.model(nodes, stored, {"x": [5, 7]}, {"y": [5, 4]})
    done = lossless(proto)
    assert done.widths() == [4, 6]
    assert_same_outputs(proto, done.proto)


@pytest.mark.parametrize("follower", ["Add", "graph output", "two readers", "Mul"])
def test_an_offset_behind_matmul(follower: str) -> None:
    """It goes into a bias that is there, or into an Add of its own that takes over the output's name."""
    rng = np.random.default_rng(1)
    first = rng.standard_normal((6, 7))
    first[:2] = 0.0
    stored = {"w": first.T.astype(np.float32), "b": rng.uniform(1, 2, 6).astype(np.float32)}
    stored |= {"u": rng.standard_normal((6, 4)).astype(np.float32), "c": rng.standard_normal(4).astype(np.float32)}
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["z"]), helper.make_node("Relu", ["z"], ["h"])]
    nodes.append(helper.make_node("MatMul", ["h", "u"], ["p"]))
    outputs: dict[str, Any] = {"p": ["N", 4]}
    if follower in ("Add", "Mul"):
        nodes.append(helper.make_node(follower, ["p", "c"], ["y"]))
        outputs = {"y": ["N", 4]}
    elif follower == "two readers":
        nodes += [helper.make_node("Add", ["p", "c"], ["y"]), helper.make_node("Relu", ["p"], ["y2"])]
        outputs = {"y": ["N", 4], "y2": ["N", 4]}
    proto = builders.model(nodes, stored, X, outputs)
    done = lossless(proto)
    assert done.widths() == [4]
    assert len(done.proto.graph.node) == len(nodes) + (follower != "Add")
    assert_same_outputs(proto, done.proto)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("vector", [False, True])
def test_matmul_of_every_rank(rank: int, side: str, vector: bool) -> None:
    """Constants on both sides, activations of rank 1 to 3, weight vectors as readers; with a constant unit."""
    rng = np.random.default_rng(1)
    rows = np.repeat(rng.standard_normal((4, 7)), 2, 0)
    rows[:2] = 0.0
    bias = np.repeat(rng.uniform(1, 2, 4), 2).astype(np.float32)
    reader = rng.standard_normal((8,) if vector else (5, 8)).astype(np.float32)
    batch = [2, 3][: max(rank - 1, 0)]
    shape = [*batch, 7] if side == "right" or rank == 1 else [*batch[1:], 7, 3]
    stored = {"w": rows.astype(np.float32), "u": reader, "b": bias}
    if side == "right":
        stored |= {"w": np.ascontiguousarray(stored["w"].T), "u": np.ascontiguousarray(reader.T)}
    elif rank > 1:
        stored["b"] = bias[:, None]

    def flip(a: str, b: str) -> list[str]:
        return [a, b] if side == "right" else [b, a]

    nodes = [
        helper.make_node("MatMul", flip("x", "w"), ["m"]),
        helper.make_node("Add", ["b", "m"], ["z"]),
        helper.make_node("Softsign", ["z"], ["h"]),
        helper.make_node("MatMul", flip("h", "u"), ["y"]),
    ]
    h = np.zeros([8 if n == 7 else n for n in shape])
    result = np.matmul(h, stored["u"]) if side == "right" else np.matmul(stored["u"], h)
    proto = builders.model(nodes, stored, {"x": shape}, {"y": result.shape})
    done = lossless(proto)
    assert done.widths() == [3]
    assert_same_outputs(proto, done.proto)


def test_constant_nodes_and_aliases_are_followed() -> None:
    rng = np.random.default_rng(0)
    proto = mlp(plant(rng, base_layers(rng, (6, 5)), Planting(2)), "Gelu")
    for i, name in enumerate(("w0", "b1", "w2")):
        proto.graph.node.insert(0, helper.make_node("Identity", [name], [f"alias{i}"]))
        for node in list(proto.graph.node)[1:]:
            node.input[:] = [f"alias{i}" if n == name and node.op_type == "Gemm" else n for n in node.input]
    onnx.checker.check_model(proto)
    done = lossless(proto)
    assert done.widths() == [6, 5]
    assert {n.op_type for n in done.proto.graph.node} == {"Gemm", "Gelu"}
    assert_same_outputs(proto, done.proto)


def test_declared_shapes_follow() -> None:
    rng = np.random.default_rng(0)
    proto = mlp(plant(rng, base_layers(rng, (6, 5)), Planting(2)), "Gelu")
    full = onnx.shape_inference.infer_shapes(proto)
    full.graph.value_info.append(helper.make_tensor_value_info("w0", TensorProto.FLOAT, [12, 7]))
    made = lossless(full).proto
    sizes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in made.graph.value_info}
    assert sizes == {"z0": [0, 6], "h0": [0, 6], "z1": [0, 5], "h1": [0, 5], "w0": [6, 7]}
    onnx.shape_inference.infer_shapes(made, strict_mode=True, check_type=True)


def test_before_ir_4_stored_tensors_stay_declared() -> None:
    proto = shared_weight(np.random.default_rng(0), pinned=True)
    old = mlp_like(proto, ir=3)
    made = lossless(old).proto
    declared = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in made.graph.input}
    assert {n: list(v.shape) for n, v in tensors(made).items()}.items() <= declared.items()
    assert_same_outputs(old, made)


def mlp_like(proto: onnx.ModelProto, ir: int) -> onnx.ModelProto:
    """The same network at another IR version, stored tensors declared as inputs."""
    old = onnx.ModelProto()
    old.CopyFrom(proto)
    old.ir_version = ir
    old.opset_import[0].version = 8
    for t in old.graph.initializer:
        old.graph.input.append(helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)))
    onnx.checker.check_model(old)
    return old


def test_names_of_ours_give_way() -> None:
    """Also to names that only a body defines."""
    proto = shared_weight(np.random.default_rng(0), pinned=True)
    proto.graph.node.append(helper.make_node("Relu", ["x"], ["w_condensed"]))
    bodies: dict[str, Any] = {
        "then_branch": relu_body("w_condensed_2", "x"),
        "else_branch": relu_body("w_condensed_3", "x"),
    }
    proto.graph.initializer.append(numpy_helper.from_array(np.array(True), "flag"))
    proto.graph.node.append(helper.make_node("If", ["flag"], ["c"], **bodies))
    for name in ("w_condensed", "c"):
        proto.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 7]))
    done = lossless(proto)
    assert tensors(done.proto)["w_condensed_4"].shape == (7, 3)
    assert_same_outputs(proto, done.proto)


def test_a_slice_that_is_only_partly_gone_is_a_defect() -> None:
    gone = np.array([False, False, True])
    with pytest.raises(DefectError):
        kept_positions(np.array([[1, 2], [1, 1]]), 0, gone)
    assert kept_positions(np.array([[1, 2], [1, 2]]), 1, gone).tolist() == [0]


def test_plans_apply_to_newer_weights_of_the_same_network() -> None:
    rng = np.random.default_rng(0)
    proto = mlp(plant(rng, base_layers(rng, (6, 5)), Planting(2, dead=1)), "Gelu")
    network = load(proto)
    view = find_spaces(network)
    plan = lossless(proto).plan
    assert apply_plan(network, view, plan).SerializeToString() == lossless(proto).proto.SerializeToString()


@pytest.mark.parametrize("block", range(4))
def test_random_networks_keep_their_outputs(block: int) -> None:
    """Whatever the structure: no crash, equal outputs, and a second run finds nothing more."""
    found = 0
    for seed in range(40 * block, 40 * block + 40):
        proto = random_network(seed)
        done = lossless(proto)
        if done.plan.selections:
            found += 1
            assert_same_outputs(proto, done.proto)
            assert not lossless(done.proto).plan.selections, seed
    assert found >= 3


def test_a_declared_scalar_bias_that_becomes_a_vector() -> None:
    """Before IR 4 its declaration as an input must follow."""
    proto = random_network(23666)
    done = lossless(proto)
    assert done.plan.selections
    assert_same_outputs(proto, done.proto)


def test_the_rule_for_activations_is_tested_for_each_of_them() -> None:
    assert {k for k, v in ACTIVATIONS.items() if v.scales} == {"Relu", "LeakyRelu", "Abs", "PRelu"}


def test_a_new_node_takes_no_name_that_is_in_use() -> None:
    """Reader l2 needs a bias of its own; the Add of the layer before is already called l2_bias."""
    rng = np.random.default_rng(0)
    w, b = rng.standard_normal((7, 6)).astype(np.float32), rng.standard_normal(6).astype(np.float32)
    w[:, 2] = 0
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], name="l1"),
        helper.make_node("Add", ["m", "b"], ["z"], name="l2_bias"),
        helper.make_node("Tanh", ["z"], ["h"], name="l2_before_bias"),
        helper.make_node("MatMul", ["h", "u"], ["y"], name="l2"),
    ]
    stored = {"w": w, "b": b, "u": rng.standard_normal((6, 4)).astype(np.float32)}
    proto = builders.model(nodes, stored, {"x": ["N", 7]}, {"y": ["N", 4]})
    done = lossless(proto)
    assert done.widths() == [5]
    assert_same_outputs(proto, done.proto)
    names = [n.name for n in done.proto.graph.node]
    assert len(names) == len(set(names))


def test_a_bias_that_was_switched_off_leaves_no_dead_constant() -> None:
    rng = np.random.default_rng(0)
    w = rng.standard_normal((7, 6)).astype(np.float32)
    w[:, 2] = 0
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["z"]),
        helper.make_node("Tanh", ["z"], ["h"]),
        helper.make_node("Gemm", ["h", "u", "c"], ["y"], beta=0.0),
    ]
    stored = {"w": w, "b": np.ones(6, np.float32), "u": rng.standard_normal((6, 4)).astype(np.float32)}
    proto = builders.model(nodes, stored | {"c": np.ones(4, np.float32)}, {"x": ["N", 7]}, {"y": ["N", 4]})
    done = lossless(proto)
    assert done.widths() == [5]
    assert_same_outputs(proto, done.proto)
    read = {name for n in done.proto.graph.node for name in n.input}
    assert {t.name for t in done.proto.graph.initializer} <= read
