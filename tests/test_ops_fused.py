"""Products and convolutions that apply an activation themselves, as ONNX Runtime's optimizer writes them."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from builders import ACTIVATIONS, Form, Outcome, Planting, base_layers, feed_for, lossless, mlp, model, outputs, plant
from builders import assert_same_outputs as assert_same
from convnets import Stage, base
from convplant import Planting as ConvPlanting
from convplant import expected
from convplant import plant as plant_conv
from onnx import helper, numpy_helper

from onnx_condense import condense
from onnx_condense.network.model import load
from onnx_condense.network.shapes import infer_shapes
from onnx_condense.ops import Law, find, fused
from onnx_condense.plan import Plan, ReaderUpdate, Selection
from onnx_condense.proving.verify import check_numbers, masked
from onnx_condense.rewrite import apply_plan
from onnx_condense.runtime import Runtime
from onnx_condense.spaces import find_spaces

F = np.float32
DOMAIN = "com.microsoft"


def optimized(proto: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """A network as ONNX Runtime's "extended" optimizations leave it."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimized.onnx")


def ops_of(proto: onnx.ModelProto) -> collections.Counter[str]:
    return collections.Counter(node.op_type for node in proto.graph.node)


def reasons(outcome: Outcome) -> set[str]:
    return {refusal.reason for refusal in outcome.view.refusals}


# ---- what ONNX Runtime writes ----


@pytest.mark.parametrize("kind", ["Relu", "LeakyRelu", "Tanh", "Sigmoid", "Elu"])
def test_optimized_mlps_lose_what_is_planted(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    layers = plant(rng, base_layers(rng, (5, 6)), Planting(copies=3, dead=2), ACTIVATIONS[kind])
    proto = optimized(mlp(layers, kind), tmp_path)
    assert ops_of(proto)["FusedGemm"] == 2
    done = lossless(proto)
    assert done.widths() == [5, 6]
    assert_same(proto, done.proto)


@pytest.mark.parametrize("kind", ["Relu", "LeakyRelu", "Sigmoid", "Tanh"])
@pytest.mark.parametrize("pads", [{}, {"pads": [1, 1, 1, 1]}], ids=["valid", "padded"])
def test_optimized_convolutions_lose_what_is_planted(kind: str, pads: dict[str, Any], tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    net = base(rng, (Stage(5, act=kind, conv=pads), Stage(4, act=kind, conv=pads), Stage(6, (1, 1), act=kind)), "gap")
    planting = ConvPlanting(copies=3, dead=2, constant=1)
    proto = optimized(plant_conv(rng, net, planting).proto(), tmp_path)
    assert ops_of(proto)["FusedConv"] == 3
    done = lossless(proto)
    assert done.widths() == expected(net, planting)
    assert_same(proto, done.proto)


# ---- one op by itself ----


def gemm_net(function: str, layers: Sequence[Any], **attributes: Any) -> onnx.ModelProto:
    """Chain of FusedGemm, and a Gemm at the end."""
    nodes, stored, tensor = [], {}, "x"
    for i, layer in enumerate(layers):
        last = i == len(layers) - 1
        stored[f"w{i}"] = layer.weight.astype(F)
        stored[f"b{i}"] = layer.bias.astype(F)
        inputs = [tensor, f"w{i}", f"b{i}"]
        named = {} if last else {"domain": DOMAIN, "activation": function, **attributes}
        tensor = "y" if last else f"h{i}"
        nodes.append(helper.make_node("Gemm" if last else "FusedGemm", inputs, [tensor], transB=1, **named))
    return model(nodes, stored, {"x": ["N", 7]}, {"y": ["N", 4]})


PARAMETERS: dict[str, dict[str, Any]] = {
    "Relu": {},
    "Tanh": {},
    "Sigmoid": {},
    "Softplus": {},
    "Softsign": {},
    "LeakyRelu": {"activation_alpha": 0.3},
    "Elu": {"activation_alpha": 0.7},
    "Celu": {"activation_alpha": 0.7},
    "Selu": {"activation_alpha": 1.5, "activation_gamma": 1.1},
    "HardSigmoid": {"activation_alpha": 0.3, "activation_beta": 0.4},
}
LISTED = {
    "Relu": [],
    "Tanh": [],
    "Sigmoid": [],
    "LeakyRelu": [0.3],
    "Clip": [-0.5, 0.8],
    "HardSigmoid": [0.3, 0.4],
}
LAWS = {"Relu": Law.HOMOGENEOUS, "LeakyRelu": Law.HOMOGENEOUS} | dict.fromkeys(("Tanh", "Sigmoid", "Softsign"), Law.ODD)


@pytest.mark.parametrize("function", PARAMETERS)
def test_constant_units_leave_what_the_function_makes_of_them(function: str) -> None:
    rule = find(DOMAIN, "FusedGemm", 1)
    assert rule is not None
    assert rule.activation is not None
    attributes: dict[str, Any] = {"activation": function, **PARAMETERS[function]}
    activation = rule.activation(attributes)
    assert activation is not None
    assert activation.rule.law is LAWS.get(function, Law.ANY)
    rng = np.random.default_rng(5)
    planting = Planting(copies=2, dead=1, constant=2)
    law = ACTIVATIONS.get(function, ACTIVATIONS["Gelu"])
    proto = gemm_net(
        function, plant(rng, base_layers(rng, (5, 6)), planting, law, activation.of), **PARAMETERS[function]
    )
    done = lossless(proto)
    assert done.widths() == [5, 6]
    assert_same(proto, done.proto)
    assert ops_of(done.proto) == ops_of(proto)


def test_a_function_that_jumps_takes_copies_to_the_last_bit() -> None:
    rng = np.random.default_rng(5)
    layers = plant(rng, base_layers(rng, (5, 6)), Planting(copies=2))
    parameters = {"activation_alpha": 0.5}
    proto = gemm_net("ThresholdedRelu", layers, **parameters)
    done = lossless(proto)
    assert done.widths() == [5, 6]
    assert_same(proto, done.proto)
    moved = layers[0].weight.astype(F)
    moved[::2] = np.nextafter(moved[::2], F(np.inf))
    layers[0] = dataclasses.replace(layers[0], weight=moved)
    assert lossless(gemm_net("ThresholdedRelu", layers, **parameters)).widths()[0] > 5
    assert lossless(gemm_net("Softplus", layers)).widths() == [5, 6]


@pytest.mark.parametrize("op", ["FusedGemm", "FusedConv"])
def test_functions_are_those_of_onnx_runtime(op: str) -> None:
    x = np.linspace(-3, 3, 41)
    rule = find(DOMAIN, op, 1)
    assert rule is not None
    assert rule.activation is not None
    cases = (
        [(f, dict(p)) for f, p in PARAMETERS.items()]
        if op == "FusedGemm"
        else [(f, {"activation_params": p} if p else {}) for f, p in LISTED.items()]
    )
    for function, parameters in cases:
        attributes: dict[str, Any] = {"activation": function, **parameters}
        shape = [41, 1] if op == "FusedGemm" else [41, 1, 1]
        one = np.ones((1, 1) if op == "FusedGemm" else (1, 1, 1), F)
        proto = model(
            [helper.make_node(op, ["x", "w"], ["y"], domain=DOMAIN, **attributes)],
            {"w": one},
            {"x": shape},
            {"y": shape},
        )
        activation = rule.activation(attributes)
        assert activation is not None
        (found,) = outputs(proto, {"x": x.reshape(shape).astype(F)})
        np.testing.assert_allclose(activation.of(x), found.reshape(-1), atol=1e-5, err_msg=function)


def test_no_function_is_none() -> None:
    rule = find(DOMAIN, "FusedConv", 1)
    assert rule is not None
    assert rule.activation is not None
    assert rule.activation({}) is None
    proto = conv_net()
    for node in proto.graph.node:
        node.attribute.remove(next(a for a in node.attribute if a.name == "activation"))
    done = lossless(proto)
    assert done.widths() == [3]
    assert_same(proto, done.proto)


def conv_net(
    z: str = "", bias: bool = True, function: str = "Relu", copies: int = 2, group: int = 1, reader: str = "FusedConv"
) -> onnx.ModelProto:
    """Chain x -> FusedConv w (b) (z) -> h -> reader v -> y; z: "" or what is added inside the first one.

    Channels of h are 3 base ones, times `copies`; those of what is added have the same copies.
    """
    rng = np.random.default_rng(8)
    of = np.tile(np.arange(3), copies)
    stored = {
        "w": rng.standard_normal((3, 2, 3, 3))[of],
        "b": rng.standard_normal(3)[of],
        "u": rng.standard_normal((3, 2, 1, 1))[of],
        "k": rng.standard_normal((1, 3, 4, 4))[:, of],
        "v": rng.standard_normal((4, 3 * copies, 3, 3)),
        "c": rng.standard_normal(4),
        "d": rng.standard_normal((3, 1, 3, 3))[of],
    }
    nodes = []
    if z == "conv":
        nodes.append(helper.make_node("Conv", ["x", "u"], ["k"], name="side"))
    inputs = ["x", "w", "b" if bias else "", *(["k"] if z else [])]
    sides: dict[str, Any] = {"pads": [1, 1, 1, 1], "domain": DOMAIN, "activation": function}
    nodes.append(helper.make_node("FusedConv", inputs, ["h"], name="first", **sides))
    tensor = "h"
    if group > 1:
        nodes.append(helper.make_node("FusedConv", ["h", "d", "b", "h"], ["g"], name="filter", group=group, **sides))
        tensor = "g"
    if reader == "FusedConv":
        nodes.append(helper.make_node("FusedConv", [tensor, "v"], ["y"], domain=DOMAIN, activation="Tanh"))
        shape: list[int | str] = ["N", 4, 2, 2]
    else:
        nodes.append(helper.make_node(reader, [tensor], ["y"]))
        shape = ["N", 3 * copies, 1, 1]
    used = {name for node in nodes for name in node.input} - {name for node in nodes for name in node.output}
    kept = {name: value.astype(F) for name, value in stored.items() if name in used}
    return model(nodes, kept, {"x": ["N" if z != "constant" else 1, 2, 4, 4]}, {"y": shape})


@pytest.mark.parametrize("z", ["", "conv", "constant"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("function", ["Relu", "Sigmoid"])
def test_what_is_added_inside_goes_along(z: str, bias: bool, function: str) -> None:
    proto = conv_net(z, bias, function)
    done = lossless(proto)
    assert done.widths() == [3]
    assert_same(proto, done.proto)
    first = next(node for node in done.proto.graph.node if node.name == "first")
    assert len(first.input) == (4 if z else 3 if bias else len(first.input))


def test_other_tensors_added_inside_keep_copies_apart() -> None:
    proto = conv_net("conv")
    tensor = next(t for t in proto.graph.initializer if t.name == "u")
    tensor.CopyFrom(numpy_helper.from_array(np.random.default_rng(0).standard_normal((6, 2, 1, 1)).astype(F), "u"))
    assert lossless(proto).widths() == [6]


def test_filters_with_a_function_carry_channels() -> None:
    proto = conv_net(group=6)
    done = lossless(proto)
    assert done.widths() == [3]
    assert_same(proto, done.proto)


def test_a_tensor_without_channels_added_inside_pins() -> None:
    proto = conv_net("conv")
    proto.graph.input.append(helper.make_tensor_value_info("k", onnx.TensorProto.FLOAT, ["N", 6, 4, 4]))
    del proto.graph.node[0]
    done = lossless(proto)
    assert done.plan.selections == ()
    assert "combined element by element with a tensor that owns no channels" in reasons(done)


def test_what_is_added_to_no_channels_stays() -> None:
    proto = conv_net("conv")
    proto.graph.input.append(helper.make_tensor_value_info("w2", onnx.TensorProto.FLOAT, [6, 2, 3, 3]))
    next(node for node in proto.graph.node if node.name == "first").input[1] = "w2"
    done = lossless(proto)
    assert done.plan.selections == ()
    assert fused.RESIDUAL in reasons(done)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"activation": "Snake"}, fused.UNKNOWN_FUNCTION),
        ({"activation": "LeakyRelu", "activation_params": [1.0, 2.0]}, fused.UNKNOWN_FUNCTION),
        ({"bias": "b2"}, fused.COMPUTED_BIAS),
    ],
    ids=str,
)
def test_functions_and_biases_that_are_not_known_pin(change: dict[str, Any], reason: str) -> None:
    proto = conv_net()
    reader = proto.graph.node[-1]
    if "bias" in change:
        proto.graph.input.append(helper.make_tensor_value_info("b2", onnx.TensorProto.FLOAT, [4]))
        reader.input.append("b2")
    else:
        del reader.attribute[:]
        reader.attribute.extend(helper.make_attribute(name, value) for name, value in change.items())
    done = lossless(proto)
    assert done.plan.selections == ()
    assert reason in reasons(done)


# ---- offsets ----


@pytest.mark.parametrize("bias", ["none", "own", "scaled", "ignored"])
@pytest.mark.parametrize("behind", [True, False])
def test_offsets_go_in_front_of_the_function(bias: str, behind: bool) -> None:
    """An Add of a constant behind the op is no place for them, nor is one of its own."""
    rng = np.random.default_rng(1)
    stored = {
        "w": rng.standard_normal((6, 7)).astype(F),
        "v": rng.standard_normal((4, 6)).astype(F),
        "b": rng.standard_normal(4).astype(F),
        "a": np.ones(4, F),
    }
    beta: dict[str, Any] = {"scaled": {"beta": 0.5}, "ignored": {"beta": 0.0}}.get(bias, {})
    inputs = ["h", "v", *(["b"] if bias != "none" else [])]
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["h"], transB=1),
        helper.make_node(
            "FusedGemm", inputs, ["f" if behind else "y"], domain=DOMAIN, transB=1, activation="Tanh", **beta
        ),
        *([helper.make_node("Add", ["f", "a"], ["y"])] if behind else []),
    ]
    used = {name for node in nodes for name in node.input}
    proto = model(nodes, {n: v for n, v in stored.items() if n in used}, {"x": ["N", 7]}, {"y": ["N", 4]})
    network = load(proto)
    view = find_spaces(network)
    weight, offset = stored["v"].astype(float), np.array([0.5, -0.25, 1.0, 0.125])
    weight[:, 4:] = 0
    plan = Plan("fitted", (Selection(view.spaces[0].name, np.arange(4)),), (ReaderUpdate(1, weight, offset),))
    made = apply_plan(network, view, plan)
    feed = feed_for(proto)
    level = {"none": 0.0, "own": 1.0, "scaled": 0.5, "ignored": 0.0}[bias] * stored["b"]
    wanted = np.tanh(feed["x"] @ stored["w"].T @ weight.T + level + offset) + behind
    for found in (made, masked(network, view, plan)):
        np.testing.assert_allclose(outputs(found, feed)[0], wanted, atol=1e-5)
    assert ops_of(made) == ops_of(proto)
    check_numbers(network, view, plan, made, [feed], Runtime(threads=1))


@pytest.mark.parametrize("z", ["", "conv"])
def test_convolutions_are_fitted_at_what_goes_into_the_function(z: str) -> None:
    proto = conv_net(z, copies=4)
    noise = np.random.default_rng(0)
    for tensor in proto.graph.initializer:
        value = numpy_helper.to_array(tensor)
        moved = (value + 1e-3 * noise.standard_normal(value.shape)).astype(F)
        tensor.CopyFrom(numpy_helper.from_array(moved, tensor.name))
    x = np.random.default_rng(2).standard_normal((400, 2, 4, 4)).astype(F)
    result = condense(proto, calibration={"x": x}, tolerance=0.02, allow_slower=True)
    assert result.report.status == "condensed"
    assert [space.after for space in result.report.spaces if space.before == 12] == [3]
    assert ops_of(result.model) == ops_of(proto)


# ---- products that swap axes ----


def product_net(swap: Mapping[str, int], *, left: bool, rank: int, alpha: float = 0.5) -> onnx.ModelProto:
    """Chain x -> FusedMatMul -> Relu -> FusedMatMul -> y over a space of 3 channels, each twice."""
    rng = np.random.default_rng(7)
    of = np.array([0, 1, 2, 2, 0, 1])
    first, second = rng.standard_normal((5, 3))[:, of], rng.standard_normal((6, 4))
    stored, nodes, tensor = {}, [], "x"
    own = swap["transA" if left else "transB"]
    for i, right in enumerate((first, second)):
        names = [f"w{i}", tensor] if left else [tensor, f"w{i}"]
        weight = right.T if left else right
        stored[f"w{i}"] = np.ascontiguousarray(weight.T if own else weight).astype(F)
        tensor = "y" if i else "z"
        # Only what comes in is laid out the other way; in between nothing is swapped.
        other = "transB" if left else "transA"
        flags: dict[str, Any] = {**swap, other: swap[other] if not i else 0}
        nodes.append(helper.make_node("FusedMatMul", names, [tensor], domain=DOMAIN, alpha=alpha, **flags))
        if not i:
            nodes.append(helper.make_node("Relu", ["z"], ["h"]))
            tensor = "h"
    batch = [2, 3][: rank - 2]
    swapped = swap["transB" if left else "transA"]
    sides = ([5, 8] if not swapped else [8, 5]) if left else ([8, 5] if not swapped else [5, 8])
    return model(nodes, stored, {"x": [*batch, *sides]}, {"y": [*batch, *([4, 8] if left else [8, 4])]})


@pytest.mark.parametrize("rank", [2, 3, 4])
@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("swap", [{"transA": a, "transB": b} for a in (0, 1) for b in (0, 1)], ids=str)
def test_products_that_swap_axes(swap: Mapping[str, int], left: bool, rank: int) -> None:
    proto = product_net(swap, left=left, rank=rank)
    done = lossless(proto)
    assert done.widths() == [3]
    assert_same(proto, done.proto)


def test_products_that_move_batches_pin() -> None:
    proto = product_net({"transA": 0, "transB": 0}, left=False, rank=3)
    proto.graph.node[-1].attribute.append(helper.make_attribute("transBatchA", 1))
    done = lossless(proto)
    assert done.plan.selections == ()
    assert fused.SHUFFLED in reasons(done)


# ---- shapes ----


def test_shapes_of_ops_that_onnx_does_not_know() -> None:
    def node(op: str, inputs: Sequence[str], result: Sequence[str], **attributes: Any) -> onnx.NodeProto:
        return helper.make_node(op, inputs, result, domain=DOMAIN, **attributes)

    nodes = [
        node("FusedMatMul", ["x", "w"], ["a"], transB=1),
        node("FusedMatMul", ["x", "u"], ["b"], transA=1),
        node("FusedMatMul", ["x", "u"], ["c"], transBatchA=1),
        node("SkipLayerNormalization", ["x", "x", "s"], ["d", "", "", "e"]),
        node("FusedMatMul", ["x", "v"], ["y"]),
    ]
    stored = {"w": np.ones((4, 5), F), "u": np.ones((3, 6), F), "v": np.ones((5, 2), F), "s": np.ones(5, F)}
    proto = model(nodes, stored, {"x": ["N", 3, 5]}, {"y": ["N", 3, 2]}, dataclasses.replace(Form(), opset=17))
    shapes = infer_shapes(proto)
    assert {name: shapes.get(name) for name in "abcde"} == {
        "a": ("N", 3, 4),
        "b": ("N", 5, 6),
        "c": None,
        "d": ("N", 3, 5),
        "e": ("N", 3, 5),
    }
