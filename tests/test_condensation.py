"""Merging by direction: exact where planted channels are parallel, whatever lies between them and their readers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from builders import ACTIVATIONS, Planting, base_layers, plant
from builders import mlp as written
from mlps import Array, Net
from planted_rows import IMAGE, Done, Planted, goal, merged, noisy, planted

from onnx_condense.errors import UsageError
from onnx_condense.fit.methods import orders_of
from onnx_condense.network.model import Network
from onnx_condense.spaces import find_spaces

# ---- plain layers ----


def test_parallel_neurons_merge_exactly() -> None:
    rng = np.random.default_rng(0)
    layers = plant(rng, base_layers(rng, (9, 6)), Planting(copies=3), ACTIVATIONS["Relu"])
    done = merged(written(layers, "Relu"))
    assert done.widths() == {"z0": 9, "z1": 6}
    assert done.off() < 1e-5


def test_what_is_alike_up_to_the_threshold_merges() -> None:
    """The bias is a coordinate of the direction: without it the cosines would not be these."""
    assert merged(noisy(0.97), 0.95).widths() == {"z": 8}
    assert merged(noisy(0.97), 0.9699).widths() == {"z": 8}
    assert merged(noisy(0.97), 0.9701).widths() == {}
    assert merged(noisy(0.97), 0.99).widths() == {}


def test_the_larger_amplitude_represents() -> None:
    done = merged(noisy(0.97), 0.95)
    assert done.plan.selections[0].keep.tolist() == list(range(8, 16))
    (update,) = done.plan.updates
    v = onnx.numpy_helper.to_array(done.before.graph.initializer[2]).T
    np.testing.assert_allclose(update.weight[:, 8:], v[:, 8:] + v[:, :8] / 1.5, rtol=1e-5)
    assert not update.weight[:, :8].any()
    assert not update.offset.any()


def test_opposite_neurons_do_not_merge() -> None:
    p = planted(copies=1, base=4)
    net = Net({"x": ["N", 6]})
    rows = p.rows(6)
    z = net.node("MatMul", "x", net.weight("w", np.concatenate([rows, -rows]).T), out="z")
    net.node("MatMul", net.node("Relu", z), net.weight("v", p.rng.standard_normal((8, 2))), out="y")
    assert merged(net.model({"y": ["N", 2]}), 0.95).widths() == {}


def test_a_bias_of_its_own_node_and_scales_are_folded() -> None:
    p = planted()
    net = Net({"x": ["N", 6]})
    later = p.rng.uniform(0.5, 2.0, 15)
    rows, bias = p.rows(6), p.rows()
    z = net.node("MatMul", "x", net.weight("w", (rows / later[:, None]).T))
    z = net.node("Mul", z, net.weight("k", later))
    z = net.node("Sub", net.weight("b", bias), net.node("Neg", z))
    net.node("MatMul", net.node("Relu", z), net.weight("v", p.columns(2).T), out="y")
    done = merged(net.model({"y": ["N", 2]}))
    assert list(done.widths().values()) == [5]
    assert done.off() < 1e-5


@pytest.mark.parametrize("uniform", [False, True])
def test_numbers_behind_the_activation_count(uniform: bool) -> None:
    """A factor and a shift per channel behind the ReLU; parallel in all of it."""
    p = planted()
    net = Net({"x": ["N", 6]})
    factor = p.rng.uniform(0.5, 2.0, 15)
    shift = np.full(15, 0.3) if uniform else p.rows() * factor
    h = net.node("Relu", net.node("Gemm", "x", net.weight("w", p.rows(6)), net.weight("b", p.rows()), transB=1))
    h = net.node("Add", net.node("Mul", h, net.weight("k", factor)), net.weight("s", shift))
    net.node("MatMul", net.node("Relu", h), net.weight("v", p.columns(2).T), out="y")
    done = merged(net.model({"y": ["N", 2]}), 1 - 1e-7)
    assert sum(done.widths().values()) == (0 if uniform else 5)
    assert done.off() < 1e-5


@pytest.mark.parametrize("alike", [False, True])
def test_slopes_have_to_be_alike(alike: bool) -> None:
    p = planted()
    net = Net({"x": ["N", 6]})
    slopes = np.where(p.of % 2, 0.1, 0.5) if alike else p.rng.uniform(-2, 2, 15)
    h = net.node("PRelu", net.node("MatMul", "x", net.weight("w", p.rows(6).T)), net.weight("s", slopes))
    net.node("MatMul", h, net.weight("v", p.columns(2).T), out="y")
    done = merged(net.model({"y": ["N", 2]}), 0.99999)
    assert sum(done.widths().values()) == (5 if alike else 0)
    assert done.off() < 1e-5


# ---- what scales, and what does not ----


def gated(p: Planted, opening: str, scale: Array) -> Done:
    """Channels times a gate of their own, made by another layer whose rows are scaled apart."""
    net = Net({"x": ["N", 6]})
    up = net.node("MatMul", "x", net.weight("w", p.rows(6).T), out="z")
    gate = net.node(opening, net.node("MatMul", "x", net.weight("g", p.rows(6, scale=scale).T)))
    net.node("MatMul", net.node("Mul", net.node("Relu", up), gate), net.weight("v", p.columns(2).T), out="y")
    return merged(net.model({"y": ["N", 2]}))


def test_both_sides_of_a_product_scale() -> None:
    p = planted()
    done = gated(p, "Relu", np.exp(p.rng.uniform(-1, 1, 15)))
    assert done.widths() == {"z": 5}
    assert done.off() < 1e-5


@pytest.mark.parametrize("opening", ["Sigmoid", "HardSigmoid"])
def test_the_scale_of_a_gate_is_no_scale_of_what_it_opens(opening: str) -> None:
    done = gated(planted(), opening, np.ones(15))
    assert done.widths() == {"z": 5}
    assert done.off() < 1e-5


@pytest.mark.parametrize("swapped", [False, True])
def test_a_product_with_itself_scales_once(swapped: bool) -> None:
    """SiLU in two nodes; copies of one scale merge exactly, and the amplitude is that of the row."""
    p = planted(spread=0.0)
    net = Net({"x": ["N", 6]})
    z = net.node("MatMul", "x", net.weight("w", p.rows(6).T), out="z")
    sides = (z, net.node("Sigmoid", z))
    net.node("MatMul", net.node("Mul", *sides[:: -1 if swapped else 1]), net.weight("v", p.columns(2).T), out="y")
    done = merged(net.model({"y": ["N", 2]}))
    assert done.widths() == {"z": 5}
    assert done.off() < 1e-5
    (direction,) = done.orders.directions
    (read,) = direction.read.values()
    np.testing.assert_allclose(read, direction.norm)
    assert np.ptp(read) > 0.1


def test_normalisation_takes_scales_away() -> None:
    p = planted()
    net = Net({"x": IMAGE})
    z = net.node("Conv", "x", net.weight("w", p.rows(3, 3, 3)), out="z", pads=[1] * 4)
    stored = [net.weight(n, p.rng.standard_normal(5)[p.of]) for n in ("g", "s")]
    h = net.node("Relu", net.node("InstanceNormalization", z, *stored, epsilon=0.0))
    net.node("Conv", h, net.weight("v", p.columns(2, 1, 1)), out="y")
    done = merged(net.model({"y": ["N", 2, 6, 6]}))
    assert done.widths() == {"z": 5}
    assert done.off() < 1e-4


# ---- who stands for whom ----


def test_a_channel_that_stays_may_stand_for_others() -> None:
    """The first two channels are an output too; copies of them go, they never do, small as they are."""
    p = Planted(np.array([0, 1, 2, 0, 1, 2]), np.array([0.1, 0.1, 1.0, 2.0, 3.0, 0.5]), np.random.default_rng(0))
    net = Net({"x": ["N", 6]})
    h = net.node("Relu", net.node("MatMul", "x", net.weight("w", p.rows(6).T), out="z"))
    ends = [net.weight(n, np.array([v])) for n, v in (("from", 0), ("to", 2), ("axis", 1))]
    net.node("Slice", h, *ends, out="seen")
    net.node("MatMul", h, net.weight("v", p.columns(2).T), out="y")
    done = merged(net.model({"seen": ["N", 2], "y": ["N", 2]}))
    assert done.plan.selections[0].keep.tolist() == [0, 1, 2]
    assert done.off() < 1e-5


def test_channels_of_different_places_do_not_stand_for_one_another() -> None:
    """Halves of a layer go different ways before they are joined: parallel rows in both say nothing."""
    p = Planted(np.array([0, 1, 2, 0, 1, 1]), np.ones(6), np.random.default_rng(0))
    net = Net({"x": ["N", 6]})
    z = net.node("MatMul", "x", net.weight("w", p.rows(6).T), out="z")
    net.nodes.append(onnx.helper.make_node("Split", [z, net.weight("parts", np.array([3, 3]))], ["a", "b"], axis=1))
    h = net.node("Concat", net.node("Relu", "a"), net.node("Tanh", "b"), axis=1)
    net.node("MatMul", h, net.weight("v", p.columns(2).T), out="y")
    done = merged(net.model({"y": ["N", 2]}))
    assert len(done.plan.selections[0].keep) == 5
    assert done.off() < 1e-5


def test_dead_rows_point_nowhere() -> None:
    rng = np.random.default_rng(0)
    net = Net({"x": ["N", 6]})
    rows = np.zeros((6, 8))
    rows[:, :4] = rng.standard_normal((6, 4))
    h = net.node("Relu", net.node("MatMul", "x", net.weight("w", rows), out="z"))
    net.node("MatMul", h, net.weight("v", rng.standard_normal((8, 2))), out="y")
    assert merged(net.model({"y": ["N", 2]}), 0.99).widths() == {}


def test_rows_beyond_the_range_of_numbers_leave_the_space_alone() -> None:
    rng = np.random.default_rng(0)
    net = Net({"x": ["N", 6]}, dtype=np.float64)
    h = net.node("Relu", net.node("MatMul", "x", net.weight("w", 1e200 * rng.standard_normal((6, 8))), out="z"))
    net.node("MatMul", h, net.weight("v", rng.standard_normal((8, 2))), out="y")
    network = Network(net.model({"y": ["N", 2]}))
    orders = orders_of(network, find_spaces(network), goal(method="drop"))
    assert not orders.eliminations[0].order.size
    assert orders.notes == ("z stays as it is: its weights do not compare (norms beyond the range of numbers)",)


# ---- thresholds by name ----


def two_layers() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    layers = plant(rng, base_layers(rng, (9, 6)), Planting(copies=3), ACTIVATIONS["Relu"])
    proto = written(layers, "Relu")
    linear = [n for n in proto.graph.node if n.op_type == "Gemm"]
    for node, name in zip(linear, ("enc/fc", "dec/fc", "out"), strict=True):
        node.name = name
    return proto


@pytest.mark.parametrize(
    ("thresholds", "widths"),
    [
        (0.999, {"z0": 9, "z1": 6}),
        ({"enc/*": 0.999}, {"z0": 9}),
        ({"z1": 0.999}, {"z1": 6}),
        ({"?1": 0.999}, {"z1": 6}),
        ({"*": 0.2, "*/fc": 0.999}, {"z0": 9, "z1": 6}),
        ({"dec/fc": 0.2, "*": 0.999}, {"z0": 9, "z1": 6}),
        ({"*": 1.0}, {"z0": 9, "z1": 6}),
    ],
)
def test_thresholds_by_name(thresholds: Any, widths: Mapping[str, int]) -> None:
    """Patterns name nodes that write, or spaces; the last one that matches counts."""
    assert merged(two_layers(), thresholds).widths() == widths


def test_a_pattern_may_merge_more() -> None:
    widths = merged(two_layers(), {"*": 0.999, "dec/*": 0.2}).widths()
    assert widths["z0"] == 9
    assert widths["z1"] < 6


@pytest.mark.parametrize(
    ("pattern", "hint"), [("enc/cf", "enc/fc"), ("Dec/fc", "dec/fc"), ("qqq", "there are dec/fc, enc/fc, out")]
)
def test_a_pattern_that_matches_nothing_is_refused(pattern: str, hint: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"{pattern!r} matches no node")) as error:
        merged(two_layers(), {"*": 0.9, pattern: 0.99})
    assert hint in error.value.text
    assert error.value.code == "threshold"


# ---- amplitudes as numbers ----


W, OWN, EXTRA = np.array([[3.0, 0.0], [0.0, 4.0]]), np.array([1.0, -2.0]), np.array([5.0, 1.0])


@pytest.mark.parametrize(
    ("op", "first", "length"),
    [
        ("Neg", "", [(9 + 16) ** 0.5, (16 + 9) ** 0.5]),
        ("Identity", "", [(9 + 36) ** 0.5, (16 + 1) ** 0.5]),
        ("Mul", "z", [(225 + 100) ** 0.5, (16 + 1) ** 0.5]),
        ("Mul", "c", [(225 + 100) ** 0.5, (16 + 1) ** 0.5]),
        ("Div", "z", [(0.36 + 5.2**2) ** 0.5, (16 + 1) ** 0.5]),
        ("Sub", "z", [(9 + 1) ** 0.5, (16 + 4) ** 0.5]),
        ("Sub", "c", [(9 + 81) ** 0.5, (16 + 16) ** 0.5]),
    ],
)
def test_what_is_folded(op: str, first: str, length: list[float]) -> None:
    """[w, b] behind an op with the constant c, and c added after that."""
    net = Net({"x": ["N", 2]})
    z = net.node("Gemm", "x", net.weight("w", W), net.weight("b", OWN), out="z")
    c = net.weight("c", EXTRA)
    sides = [z] if not first else [z, c] if first == "z" else [c, z]
    h = net.node("Relu", net.node("Add", net.node(op, *sides), c))
    net.node("MatMul", h, net.weight("v", np.ones((2, 2))), out="y")
    (direction,) = merged(net.model({"y": ["N", 2]})).orders.directions
    np.testing.assert_allclose(direction.norm, length, rtol=1e-6)
    np.testing.assert_allclose(next(iter(direction.read.values())), length, rtol=1e-6)


def test_a_sum_is_as_long_as_its_rows_end_to_end() -> None:
    net = Net({"x": ["N", 2]})
    a, b = (net.node("MatMul", "x", net.weight(n, w)) for n, w in (("a", W), ("b", np.array([[1, 1], [1, 1]]) * 2.0)))
    h = net.node("Relu", net.node("Add", a, b))
    net.node("MatMul", h, net.weight("v", np.ones((2, 2))), out="y")
    (direction,) = merged(net.model({"y": ["N", 2]})).orders.directions
    for found in (direction.norm, *direction.read.values()):
        np.testing.assert_allclose(found, [17**0.5, 24**0.5], rtol=1e-6)
    np.testing.assert_allclose(direction.cosine[0, 1], 8 / (17 * 24) ** 0.5, rtol=1e-6)
