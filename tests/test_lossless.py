"""The lossless plan finds all planted redundancy from the weights alone, and nothing that is not there."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import builders
import numpy as np
import onnx
import pytest
from builders import ACTIVATIONS, Form, Layer, Planting, assert_same_outputs, base_layers, lossless, mlp, plant
from onnx import helper

from onnx_condense.network.model import serialized

WIDTHS = (6, 5)
LINEAR = ["Gemm", "Gemm-factors", "MatMul"]

FUNCTIONS: dict[str, Callable[[float], float]] = {
    "Relu": lambda a: max(a, 0.0),
    "LeakyRelu": lambda a: a if a > 0 else 0.01 * a,
    "Abs": abs,
    "PRelu": lambda a: a if a > 0 else 0.3 * a,
    "Tanh": math.tanh,
    "Erf": math.erf,
    "Sigmoid": lambda a: 1 / (1 + math.exp(-a)),
    "Gelu": lambda a: 0.5 * a * (1 + math.erf(a / 2**0.5)),
    "gelu-decomposed": lambda a: 0.5 * a * (1 + math.erf(a / 2**0.5)),
    "silu-decomposed": lambda a: a / (1 + math.exp(-a)),
    "Elu": lambda a: a if a > 0 else math.exp(a) - 1,
    "Clip": lambda a: min(max(a, -0.5), 1.0),
}


@pytest.mark.parametrize("linear", LINEAR)
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_planted_units_are_found_completely(kind: str, linear: str) -> None:
    """Copies (scaled or mirrored where allowed), dead and constant units in all layers: the base widths come back."""
    rng = np.random.default_rng(len(kind) + len(linear))
    planting = Planting(copies=3, dead=2, constant=2)
    wide = plant(rng, base_layers(rng, WIDTHS), planting, ACTIVATIONS[kind], FUNCTIONS[kind])
    proto = mlp(wide, kind, Form(linear))
    done = lossless(proto)
    assert done.widths() == list(WIDTHS)
    assert_same_outputs(proto, done.proto)
    again = lossless(done.proto)
    assert not again.plan.selections


@pytest.mark.parametrize(
    ("dtype", "eps"), [(np.float16, 2.0**-10), (np.float32, 2.0**-23), (np.float64, 2.0**-52)], ids=["f2", "f4", "f8"]
)
@pytest.mark.parametrize("form", [{}, {"linear": "MatMul"}, {"constants": True}, {"ir": 3, "opset": 8}])
def test_planted_units_in_every_type_and_storage(dtype: Any, eps: float, form: dict[str, Any]) -> None:
    rng = np.random.default_rng(5)
    wide = plant(rng, base_layers(rng, WIDTHS), Planting(2, 1, 1), ACTIVATIONS["Relu"], FUNCTIONS["Relu"])
    proto = mlp(wide, "Relu", Form(dtype=dtype, **form))
    done = lossless(proto)
    assert done.widths() == list(WIDTHS)
    assert_same_outputs(proto, done.proto, eps)


@pytest.mark.parametrize("kind", ["Relu", "Gelu", "Tanh", "Sigmoid", "silu-decomposed"])
def test_nothing_planted_gives_an_empty_plan(kind: str) -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        done = lossless(mlp(base_layers(rng, (9, 12, 7)), kind, Form(LINEAR[seed % 3])))
        assert not done.plan.selections
        assert not done.plan.updates


@pytest.mark.parametrize("kind", ["Gelu", "Clip", "Tanh", "Sigmoid", "Elu", "gelu-decomposed", "silu-decomposed"])
def test_positive_scales_do_not_merge_without_homogeneity(kind: str) -> None:
    rng = np.random.default_rng(0)
    wide = plant(rng, base_layers(rng, WIDTHS), Planting(copies=2), builders.Activation(scales=True))
    assert lossless(mlp(wide, kind)).widths() == [12, 10]


@pytest.mark.parametrize("kind", ["Relu", "LeakyRelu", "Gelu", "Elu", "silu-decomposed", "PRelu"])
def test_opposite_rows_do_not_merge_without_symmetry(kind: str) -> None:
    rng = np.random.default_rng(0)
    wide = plant(rng, base_layers(rng, WIDTHS), Planting(copies=1))
    first = Layer(np.r_[wide[0].weight, -wide[0].weight], np.r_[wide[0].bias, -wide[0].bias])
    second = Layer(np.c_[wide[1].weight, rng.standard_normal(wide[1].weight.shape)], wide[1].bias)
    assert lossless(mlp([first, second, wide[2]], kind)).widths() == [12, 5]


@pytest.mark.parametrize("kind", ["Relu", "Tanh", "Gelu", "Abs", "Sigmoid"])
def test_equal_rows_with_other_biases_do_not_merge(kind: str) -> None:
    rng = np.random.default_rng(0)
    first, *rest = base_layers(rng, WIDTHS)
    first = Layer(np.repeat(first.weight[:3], 2, 0), first.bias)
    assert lossless(mlp([first, *rest], kind)).widths() == [6, 5]


def test_equal_rows_with_other_biases_merge_where_nothing_bends() -> None:
    rng = np.random.default_rng(0)
    first, *rest = base_layers(rng, WIDTHS)
    first = Layer(np.repeat(first.weight[:3], 2, 0), first.bias)
    proto = mlp([first, *rest], "Identity")
    done = lossless(proto)
    assert done.widths()[0] == 3
    assert_same_outputs(proto, done.proto)


def test_small_weights_on_large_inputs_count() -> None:
    """Rows that differ only in an element far below their norm are not copies: its input may be large."""
    rng = np.random.default_rng(0)
    first, *rest = base_layers(rng, WIDTHS)
    weight = np.repeat(first.weight[:3], 2, 0)
    weight[:, -1] = rng.uniform(1e-9, 9e-9, 6)
    assert lossless(mlp([Layer(weight, np.repeat(first.bias[:3], 2)), *rest], "Relu")).widths() == [6, 5]


def test_small_weights_beside_a_large_bias_are_no_constant() -> None:
    rng = np.random.default_rng(0)
    first, *rest = base_layers(rng, WIDTHS)
    small = Layer(first.weight * 1e-9, np.full(6, 2.0))
    assert lossless(mlp([small, *rest], "Relu")).widths() == [6, 5]


def test_constant_units_are_followed_through_layers() -> None:
    """A unit that only reads constant units is constant too."""
    rng = np.random.default_rng(3)
    layers = base_layers(rng, (5, 5, 5))
    for i in range(3):
        layers[i].weight[:2] = 0.0
        if i:
            layers[i].weight[:2, :2] = rng.standard_normal((2, 2))
    proto = mlp(layers, "Gelu", Form("MatMul"))
    done = lossless(proto)
    assert done.widths() == [3, 3, 3]
    assert_same_outputs(proto, done.proto)


def test_a_chain_of_dead_units_goes() -> None:
    rng = np.random.default_rng(3)
    layers = base_layers(rng, (5, 5, 5))
    layers[3].weight[:, 2:] = 0.0
    layers[2].weight[:2, 1:] = 0.0
    layers[1].weight[:1, 2:] = 0.0
    proto = mlp(layers, "Tanh")
    done = lossless(proto)
    assert done.widths() == [2, 1, 2]
    assert_same_outputs(proto, done.proto)


def test_a_network_that_is_constant_keeps_one_unit_per_layer() -> None:
    rng = np.random.default_rng(3)
    layers = base_layers(rng, WIDTHS)
    layers[0].weight[:] = 0.0
    proto = mlp(layers, "Sigmoid")
    done = lossless(proto)
    assert done.widths() == [1, 1]
    assert_same_outputs(proto, done.proto)
    assert not lossless(done.proto).plan.selections


def residual(rng: np.random.Generator, copies: tuple[bool, bool]) -> onnx.ModelProto:
    """Relu(W x + V x) with the rows of W and / or V replicated, read once."""

    def rows(copied: bool) -> Any:
        return np.repeat(rng.standard_normal((3, 7)), 2, 0) if copied else rng.standard_normal((6, 7))

    stored = {
        "w": rows(copies[0]).T.astype(np.float32),
        "v": rows(copies[1]).T.astype(np.float32),
        "u": rng.standard_normal((6, 4)).astype(np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("MatMul", ["x", "v"], ["b"]),
        helper.make_node("Tanh", ["b"], ["t"]),
        helper.make_node("Add", ["a", "t"], ["c"]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("MatMul", ["d", "u"], ["y"]),
    ]
    return builders.model(nodes, stored, {"x": ["N", 7]}, {"y": ["N", 4]})


@pytest.mark.parametrize(("copies", "width"), [((True, True), 3), ((True, False), 6), ((False, True), 6)])
def test_copies_must_agree_in_all_writers(copies: tuple[bool, bool], width: int) -> None:
    proto = residual(np.random.default_rng(0), copies)
    done = lossless(proto)
    assert done.widths() == [width]
    assert_same_outputs(proto, done.proto)


def test_a_constant_plus_something_that_varies_is_not_constant() -> None:
    proto = residual(np.random.default_rng(0), (False, False))
    weight = onnx.numpy_helper.to_array(proto.graph.initializer[0]) * 0
    proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight, "w"))
    assert lossless(proto).widths() == [6]


def test_a_space_read_before_and_after_an_activation_merges_where_both_agree() -> None:
    """Relu(a) merges scaled copies, Tanh(a) does not: read by both they stay; equal copies go."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((3, 7))

    def widths(scale: float) -> list[int]:
        stored = {
            "w": np.r_[rows, scale * rows].T.astype(np.float32),
            "u": rng.standard_normal((6, 4)).astype(np.float32),
            "v": rng.standard_normal((6, 4)).astype(np.float32),
        }
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["a"]),
            helper.make_node("Tanh", ["a"], ["t"]),
            helper.make_node("MatMul", ["a", "u"], ["p"]),
            helper.make_node("MatMul", ["t", "v"], ["q"]),
            helper.make_node("Mul", ["p", "q"], ["y"]),
        ]
        proto = builders.model(nodes, stored, {"x": ["N", 7]}, {"y": ["N", 4]})
        done = lossless(proto)
        assert_same_outputs(proto, done.proto)
        return done.widths()

    assert widths(2.0) == [6]
    assert widths(1.0) == [3]
    assert widths(-1.0) == [3]


def test_steps_merge_what_is_equal_to_the_last_bit() -> None:
    """Rounding apart, copies may fall on two sides of a jump."""
    rng = np.random.default_rng(0)
    wide = plant(rng, base_layers(rng, WIDTHS), Planting(copies=2))
    proto = mlp(wide, "Floor")
    done = lossless(proto)
    assert done.widths() == [6, 5]
    assert_same_outputs(proto, done.proto)
    first, *others = wide
    rows = first.weight.astype(np.float32)
    rows[::2] = np.nextafter(rows[::2], np.float32(np.inf))
    moved = [Layer(rows, first.bias), *others]
    assert lossless(mlp(moved, "Floor")).widths()[0] > 6
    assert lossless(mlp(moved, "Tanh")).widths() == [6, 5]


def test_merges_that_overflow_their_type_are_not_made() -> None:
    """60000 + 60000 is no float16."""
    rng = np.random.default_rng(0)
    first, second, *_ = base_layers(rng, (4,))
    first = Layer(np.repeat(first.weight[:2], 2, 0), np.repeat(first.bias[:2], 2))
    second = Layer(np.full(second.weight.shape, 60000.0), second.bias)
    done = lossless(mlp([first, second], "Relu", Form(dtype=np.float16)))
    assert done.widths() == [4]
    assert not done.plan.selections


def test_other_hash_seeds_give_the_same_bytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    wide = plant(rng, base_layers(rng, WIDTHS), Planting(2, 1, 1), ACTIVATIONS["Tanh"], FUNCTIONS["Tanh"])
    proto = mlp(wide, "Tanh", Form("MatMul"))
    path = tmp_path / "net.onnx"
    onnx.save(proto, path)
    code = "import builders, onnx, sys, hashlib; from onnx_condense.network.model import serialized; "
    code += "print(hashlib.sha256(serialized(builders.lossless(onnx.load(sys.argv[1])).proto)).hexdigest())"
    found = {
        subprocess.run(
            [sys.executable, "-c", code, path],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.fspath(Path(__file__).parent)},
            check=True,
            capture_output=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1
    assert serialized(lossless(proto).proto) == serialized(lossless(proto).proto)
