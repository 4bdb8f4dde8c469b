"""Weights that are stored in a narrower float type than they are read in, with a Cast in between."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import mlps
import numpy as np
import numpy.typing as npt
import onnx
import pytest
from builders import Array, Form, Planting, assert_same_outputs, base_layers, lossless, mlp, model, plant
from onnx import TensorProto, helper, numpy_helper

from onnx_condense import condense
from onnx_condense.cost import count_parameters
from onnx_condense.network.model import Network, load, serialized
from onnx_condense.plan import Plan, ReaderUpdate, Selection
from onnx_condense.proving.verify import OWN, masked, rounding_level
from onnx_condense.rewrite import apply_plan
from onnx_condense.spaces import find_spaces

NODE = helper.make_node
EPS = {np.float16: 2.0**-10, ml_dtypes.bfloat16: 2.0**-7, np.float32: 2.0**-23}


def stored_as(proto: onnx.ModelProto, narrow: npt.DTypeLike, *, constants: bool = False) -> onnx.ModelProto:
    """The same with each weight stored in another type, cast back for its readers; as Constant nodes on request."""
    copy = onnx.ModelProto.FromString(proto.SerializeToString())
    front = []
    for tensor in list(copy.graph.initializer):
        name, kind = tensor.name, tensor.data_type
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(narrow), f"{name}_narrow"))
        if constants:
            front.append(NODE("Constant", [], [tensor.name], value=tensor))
        front.append(NODE("Cast", [f"{name}_narrow"], [name], to=kind))
    if constants:
        del copy.graph.initializer[:]
    for node in reversed(front):
        copy.graph.node.insert(0, node)
    onnx.checker.check_model(copy, full_check=narrow is not ml_dtypes.bfloat16)
    return copy


def planted(form: Form | None = None) -> onnx.ModelProto:
    """Two hidden layers of which 6 and 5 units are different."""
    rng = np.random.default_rng(2)
    return mlp(plant(rng, base_layers(rng, [6, 5]), Planting(copies=3)), "Tanh", form or Form())


def types(proto: onnx.ModelProto) -> dict[str, int]:
    return {t.name: t.data_type for t in proto.graph.initializer}


# ---- lossless ----


@pytest.mark.parametrize("constants", [False, True])
@pytest.mark.parametrize("narrow", [np.float16, ml_dtypes.bfloat16, np.float32])
@pytest.mark.parametrize("linear", ["Gemm", "MatMul"])
def test_redundancy_is_found_and_stays_stored_in_the_narrow_type(linear: str, narrow: Any, constants: bool) -> None:
    """Copies agree to the rounding of what is stored, not to that of what is read."""
    wide = np.float64 if narrow is np.float32 else np.float32
    dense = stored_as(planted(Form(linear, dtype=wide)), narrow, constants=constants)
    done = lossless(dense)
    assert done.widths() == [6, 5]
    assert_same_outputs(dense, done.proto, EPS[narrow])
    assert count_parameters(done.proto) == 6 * 7 + 6 + 6 * 5 + 5 + 5 * 4 + 4
    # In place: the same nodes, and nothing stored in another type.
    assert [n.op_type for n in done.proto.graph.node] == [n.op_type for n in dense.graph.node]
    assert types(done.proto) == types(dense)
    assert not lossless(done.proto).plan.selections


def test_what_it_is_worth_in_bytes() -> None:
    dense = stored_as(mlps.plant_copies(mlps.mlp((30, 60, 50, 20)), 0, 30), np.float16)
    slim = stored_as(mlps.mlp((30, 60, 50, 20)), np.float16)
    done = lossless(dense)
    assert len(serialized(done.proto)) < 1.02 * len(serialized(slim))


def test_a_weight_that_is_read_apart_is_cloned_in_the_narrow_type() -> None:
    """W makes channels that may go in one place and a graph output in the other."""
    rng = np.random.default_rng(0)
    W = rng.standard_normal((5, 12)).astype("f2")
    W[:, 6:] = W[:, :6]
    V = rng.standard_normal((12, 3)).astype("f4")
    nodes = [
        NODE("Cast", ["W"], ["w"], to=TensorProto.FLOAT),
        NODE("MatMul", ["x", "w"], ["a"]),
        NODE("Tanh", ["a"], ["h"]),
        NODE("MatMul", ["h", "V"], ["y"]),
        NODE("MatMul", ["x", "w"], ["z"]),
    ]
    dense = model(nodes, {"W": W, "V": V}, {"x": ["N", 5]}, {"y": ["N", 3], "z": ["N", 12]})
    done = lossless(dense)
    assert sorted(s.width for s in done.view.spaces if not s.pinned.any()) == [12]
    assert count_parameters(done.proto) == 5 * 12 + 5 * 6 + 6 * 3
    assert sorted(t.data_type for t in done.proto.graph.initializer if t.dims[0] == 5) == [TensorProto.FLOAT16] * 2
    assert [n.op_type for n in done.proto.graph.node].count("Cast") == 2
    assert_same_outputs(dense, done.proto)


@pytest.mark.parametrize("ops", [("Cast", "Transpose"), ("Transpose", "Cast"), ("Cast", "Cast", "Transpose")])
def test_other_views_before_and_behind(ops: tuple[str, ...]) -> None:
    """What is cast and laid out anew is stored anew, narrow, with one cast."""
    rng = np.random.default_rng(0)
    W = rng.standard_normal((12, 5)).astype("f2")
    W[6:] = W[:6]
    names = ["W", *(f"v{i}" for i in range(len(ops)))]
    kinds = iter([TensorProto.FLOAT16, TensorProto.FLOAT][-ops.count("Cast") :])
    views = [
        NODE(op, [names[i]], [names[i + 1]], **({"to": next(kinds)} if op == "Cast" else {"perm": [1, 0]}))
        for i, op in enumerate(ops)
    ]
    nodes = [
        *views,
        NODE("MatMul", ["x", names[-1]], ["a"]),
        NODE("Tanh", ["a"], ["h"]),
        NODE("MatMul", ["h", "V"], ["y"]),
    ]
    stored = {"W": W, "V": rng.standard_normal((12, 3)).astype("f4")}
    dense = model(nodes, stored, {"x": ["N", 5]}, {"y": ["N", 3]})
    done = lossless(dense)
    assert done.widths() == [6]
    assert count_parameters(done.proto) == 5 * 6 + 6 * 3
    assert sorted(types(done.proto).values()) == [TensorProto.FLOAT, TensorProto.FLOAT16]
    assert [n.op_type for n in done.proto.graph.node].count("Cast") == 1
    assert_same_outputs(dense, done.proto)


def test_what_numpy_does_not_know_is_laid_out_anew() -> None:
    rng = np.random.default_rng(0)
    W = rng.standard_normal((12, 5)).astype(ml_dtypes.bfloat16)
    W[6:] = W[:6]
    nodes = [
        NODE("Cast", ["W"], ["v"], to=TensorProto.FLOAT),
        NODE("Transpose", ["v"], ["w"], perm=[1, 0]),
        NODE("MatMul", ["x", "w"], ["a"]),
        NODE("Tanh", ["a"], ["h"]),
        NODE("MatMul", ["h", "V"], ["y"]),
    ]
    stored = {"W": W, "V": rng.standard_normal((12, 3)).astype("f4")}
    dense = model(nodes, stored, {"x": ["N", 5]}, {"y": ["N", 3]})
    np.testing.assert_array_equal(load(dense).constant("w"), W.T)
    done = lossless(dense)
    assert done.widths() == [6]
    assert sorted(types(done.proto).values()) == [TensorProto.FLOAT, TensorProto.BFLOAT16]
    assert_same_outputs(dense, done.proto)


def test_a_narrower_reader_gets_what_it_reads() -> None:
    """Stored in single, read in half precision: what is new is stored in half precision, without a cast."""
    dense = stored_as(planted(Form(dtype=np.float16)), np.float32)
    done = lossless(dense)
    assert done.widths() == [6, 5]
    assert_same_outputs(dense, done.proto, EPS[np.float16])
    kept = {name: kind for name, kind in types(done.proto).items() if kind == TensorProto.FLOAT}
    assert not any(name.startswith("w") for name in kept)
    assert not any(n.op_type == "Cast" and n.output[0].startswith("w") for n in done.proto.graph.node)


def test_integers_that_are_cast_are_no_weights() -> None:
    rng = np.random.default_rng(0)
    W = rng.integers(-9, 9, (5, 12)).astype(np.int8)
    W[:, 6:] = W[:, :6]
    nodes = [
        NODE("Cast", ["W"], ["w"], to=TensorProto.FLOAT),
        NODE("MatMul", ["x", "w"], ["a"]),
        NODE("Tanh", ["a"], ["h"]),
        NODE("MatMul", ["h", "V"], ["y"]),
    ]
    stored = {"W": W, "V": rng.standard_normal((12, 3)).astype("f4")}
    dense = model(nodes, stored, {"x": ["N", 5]}, {"y": ["N", 3]})
    assert load(dense).constant("w") is None
    assert not lossless(dense).plan.selections


def test_declared_shapes_follow() -> None:
    dense = stored_as(planted(), np.float16)
    for tensor in dense.graph.initializer:
        name = tensor.name.removesuffix("_narrow")
        dense.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, list(tensor.dims)))
    done = lossless(dense)
    assert done.widths() == [6, 5]
    declared = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in done.proto.graph.value_info}
    assert declared == {t.name.removesuffix("_narrow"): list(t.dims) for t in done.proto.graph.initializer}


# ---- what the constant says of itself ----


def test_a_constant_has_the_stored_type_and_its_readers_their_own() -> None:
    network = load(stored_as(planted(), np.float16))
    value = network.constant("w0")
    assert value is not None
    assert value.dtype == np.float16
    assert network.dtype("w0") == np.float32
    assert network.dtype("w0_narrow") == np.float16
    assert network.shape("w0") == value.shape
    narrowed = load(stored_as(planted(Form(dtype=np.float16)), np.float32))
    value = narrowed.constant("w0")
    assert value is not None
    assert value.dtype == narrowed.dtype("w0") == np.float16


def test_half_precision_counts_as_rounding() -> None:
    def level(proto: onnx.ModelProto) -> float:
        network = Network(proto)
        return rounding_level(network, find_spaces(network))

    plain = mlps.mlp((3, 8, 2))
    assert level(stored_as(plain, np.float16)) == pytest.approx(level(mlps.mlp((3, 8, 2), dtype=np.float16)))
    assert level(stored_as(plain, np.float16)) > 100 * level(plain)


def test_the_plan_is_rounded_as_it_is_stored() -> None:
    """The plan at full width, evaluated on its own, weighs by the numbers of the condensed file, to the last bit."""
    network = load(stored_as(mlps.mlp((3, 8, 2)), np.float16))
    view = find_spaces(network)
    rng = np.random.default_rng(0)
    (reader,) = view.spaces[0].readers
    weight = rng.standard_normal((2, 8))
    weight[:, 6:] = 0
    offset = rng.standard_normal(2)
    plan = Plan("fitted", (Selection(view.spaces[0].name, np.arange(6)),), (ReaderUpdate(reader, weight, offset),))
    full, made = masked(network, view, plan), apply_plan(network, view, plan)
    onnx.checker.check_model(made, full_check=True)
    found = {t.name: numpy_helper.to_array(t) for t in full.graph.initializer}[f"{OWN}weight_{reader}"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, weight.T.astype(np.float16).astype(np.float32))
    np.testing.assert_array_equal(
        {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}["W1_narrow"], found[:6]
    )
    assert_same_outputs(full, made, EPS[np.float16])


# ---- fitted ----


@pytest.mark.parametrize("bias", [True, False])
def test_fitted_weights_are_stored_narrow(bias: bool) -> None:
    dense = stored_as(mlps.mlp((3, 24, 20, 2), bias=bias), np.float16)
    x = mlps.normal(400, 3)
    found = condense(dense, calibration=x, tolerance=0.1, threads=1, allow_slower=True)
    assert found.report.status == "condensed"
    change = found.report.parameters
    assert change is not None
    assert change.after < 0.8 * change.before
    assert len(serialized(found.model)) < len(serialized(dense))
    weights = [t for t in found.model.graph.initializer if len(t.dims) == 2]
    assert {t.data_type for t in weights} == {TensorProto.FLOAT16}


def test_what_half_precision_can_not_hold_is_not_merged() -> None:
    """Two equal channels whose columns add up to more than that."""
    rng = np.random.default_rng(0)
    W = rng.standard_normal((5, 4)).astype("f4")
    W[:, 2:] = W[:, :2]
    V = np.full((4, 3), 4e4, "f2")
    nodes = [
        NODE("Cast", ["V"], ["v"], to=TensorProto.FLOAT),
        NODE("MatMul", ["x", "W"], ["a"]),
        NODE("Tanh", ["a"], ["h"]),
        NODE("MatMul", ["h", "v"], ["y"]),
    ]
    dense = model(nodes, {"W": W, "V": V}, {"x": ["N", 5]}, {"y": ["N", 3]})
    assert not lossless(dense).plan.selections
    halved: dict[str, Array] = {"W": W, "V": V / 2}
    assert lossless(model(nodes, halved, {"x": ["N", 5]}, {"y": ["N", 3]})).widths() == [2]
