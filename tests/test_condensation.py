"""Merging by direction: exact where planted channels are parallel, whatever lies between them and their readers.

`Planted` copies the channels of small random networks: `of[i]` is the channel that channel i is `scale[i]` times.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from builders import ACTIVATIONS, Planting, base_layers, plant
from builders import mlp as written
from mlps import Array, Net

from onnx_condense.errors import UsageError
from onnx_condense.fit.methods import Merger, Orders, orders_of
from onnx_condense.network.model import Network
from onnx_condense.options.goal import Goal, by_pattern, check_goal
from onnx_condense.plan import Plan
from onnx_condense.runtime import Runtime, run
from onnx_condense.spaces import find_spaces

EPS = 1e-3


def goal(threshold: Any = None, method: str = "condensation") -> Goal:
    asked = Goal(
        None if threshold else 0.1, None, allow_slower=True, seed=0, method=method, threshold=by_pattern(threshold)
    )
    return check_goal(asked, calibrated=True, verified=False)


@dataclasses.dataclass(frozen=True)
class Done:
    """A network merged by a threshold, with its plan."""

    before: onnx.ModelProto
    after: onnx.ModelProto
    plan: Plan
    orders: Orders

    def widths(self) -> dict[str, int]:
        """Of every space that lost channels."""
        return {s.space: len(s.keep) for s in self.plan.selections}

    def off(self, seed: int = 5) -> float:
        """Largest difference of the outputs relative to the largest number among them."""
        graph = self.before.graph
        rng = np.random.default_rng(seed)
        stored = {t.name for t in graph.initializer}
        feed = {
            i.name: rng.standard_normal([d.dim_value or 3 for d in i.type.tensor_type.shape.dim]).astype(np.float32)
            for i in graph.input
            if i.name not in stored
        }
        a, b = (run(Runtime(threads=1).session(m, optimize=False), feed) for m in (self.before, self.after))
        return max(float(np.abs(x - y).max() / np.abs(x).max()) for x, y in zip(a, b, strict=True))


def merged(proto: onnx.ModelProto, threshold: Any = 0.999) -> Done:
    network = Network(proto)
    view = find_spaces(network)
    orders = orders_of(network, view, goal(threshold))
    merger = Merger(network, view, orders, merge=True)
    widths = [s.width - len(e.order) for s, e in zip(merger.spaces, merger.eliminations, strict=True)]
    plan, model = merger.plan(widths, sequential=False)
    return Done(proto, model, plan, orders)


@dataclasses.dataclass(frozen=True)
class Planted:
    """Channel i is scale[i] times channel of[i] of a base network."""

    of: Array
    scale: Array
    rng: np.random.Generator

    def rows(self, *shape: int, scale: Array | None = None) -> Array:
        """Rows of a writer [C, *shape]: those of the base, scaled."""
        rows = self.rng.standard_normal((self.of.max() + 1, *shape))[self.of]
        return rows * (self.scale if scale is None else scale).reshape(-1, *(1,) * len(shape))

    def columns(self, count: int, *shape: int) -> Array:
        """Columns of a reader [count, C, *shape], unlike one another."""
        return self.rng.standard_normal((count, len(self.of), *shape))


def planted(seed: int = 0, base: int = 5, copies: int = 3, spread: float = 1.0) -> Planted:
    rng = np.random.default_rng(seed)
    of = rng.permutation(np.repeat(np.arange(base), copies))
    return Planted(of, np.exp(rng.uniform(-spread, spread, len(of))), rng)


def norm(net: Net, tensor: str, name: str, p: Planted, rows: Array, shift: Array) -> tuple[str, Array]:
    """A BatchNormalization with other numbers for every channel; the rows in front of it that give `rows` behind it."""
    size = len(rows)
    gamma = p.rng.uniform(0.5, 2.0, size) * p.rng.choice([-1.0, 1.0], size)
    mean, variance = p.rng.standard_normal(size), p.rng.uniform(0.5, 2.0, size)
    factor = gamma / np.sqrt(variance + EPS)
    stored = {"g": gamma, "s": shift + factor * mean, "m": mean, "v": variance}
    names = [net.weight(f"{name}.{k}", v) for k, v in stored.items()]
    out = net.node("BatchNormalization", tensor, *names, epsilon=EPS)
    return out, rows / factor.reshape(-1, *(1,) * (rows.ndim - 1))


IMAGE: list[int | str] = ["N", 3, 6, 6]


# ---- plain layers ----


def test_parallel_neurons_merge_exactly() -> None:
    rng = np.random.default_rng(0)
    layers = plant(rng, base_layers(rng, (9, 6)), Planting(copies=3), ACTIVATIONS["Relu"])
    done = merged(written(layers, "Relu"))
    assert done.widths() == {"z0": 9, "z1": 6}
    assert done.off() < 1e-5


def noisy(cosine: float) -> onnx.ModelProto:
    """16 neurons in 8 pairs, each pair at this cosine."""
    rng = np.random.default_rng(3)
    first = rng.standard_normal((8, 40))
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    other = rng.standard_normal((8, 40))
    other -= (other * first).sum(1, keepdims=True) * first
    other /= np.linalg.norm(other, axis=1, keepdims=True)
    rows = np.concatenate([first, 1.5 * (cosine * first + (1 - cosine**2) ** 0.5 * other)])
    net = Net({"x": ["N", 39]})
    z = net.node("Gemm", "x", net.weight("w", rows[:, :39]), net.weight("b", rows[:, 39]), transB=1, out="z")
    net.node("Gemm", net.node("Relu", z), net.weight("v", rng.standard_normal((16, 3))), out="y")
    return net.model({"y": ["N", 3]})


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


# ---- convolutions ----


@pytest.mark.parametrize("bias", [False, True])
def test_batch_normalization_is_folded_for_the_comparison(bias: bool) -> None:
    p = planted()
    rows, shift = p.rows(3, 3, 3), p.rows()
    net = Net({"x": IMAGE})
    z, raw = norm(net, "z", "n", p, rows, shift)
    own = [net.weight("b", np.zeros(15))] if bias else []
    conv = onnx.helper.make_node("Conv", ["x", net.weight("w", raw), *own], ["z"], name="first", pads=[1] * 4)
    net.nodes.insert(0, conv)
    h = net.node("Relu", z)
    net.node("Conv", h, net.weight("v", p.columns(4, 3, 3)), out="y", pads=[1] * 4)
    proto = net.model({"y": ["N", 4, 6, 6]})
    done = merged(proto)
    assert done.widths() == {"z": 5}
    assert done.off() < 1e-5
    # It stays in the file.
    assert [n.op_type for n in done.after.graph.node] == [n.op_type for n in proto.graph.node]


def bottleneck(p: Planted, kernels: Array, *, early: bool = False, shift: bool = True) -> onnx.ModelProto:
    """Conv 1x1, ReLU, depthwise conv, BatchNormalization, ReLU, Conv 1x1; early: one more reader before the kernels.

    kernels: [C, 1, 3, 3], scaled against the base by what scales them beyond their rows.
    """
    net = Net({"x": IMAGE})
    z = net.node("Conv", "x", net.weight("e", p.rows(3, 1, 1)), net.weight("eb", p.rows()), out="z")
    h = net.node("Relu", z)
    lengths = np.linalg.norm(kernels.reshape(len(kernels), -1), axis=1)
    level = p.rng.standard_normal(p.of.max() + 1)[p.of] * lengths * p.scale if shift else np.zeros(len(kernels))
    place = len(net.nodes)
    d, raw = norm(net, "d", "n", p, kernels, level)
    net.nodes.insert(
        place, onnx.helper.make_node("Conv", [h, net.weight("k", raw)], ["d"], pads=[1] * 4, group=len(raw))
    )
    y = net.node("Conv", net.node("Relu", d), net.weight("v", p.columns(4, 1, 1)))
    if early:
        y = net.node("Add", y, net.node("Conv", h, net.weight("u", p.columns(4, 1, 1))))
    net.node("Identity", y, out="y")
    return net.model({"y": ["N", 4, 6, 6]})


@pytest.mark.parametrize("early", [False, True])
def test_rows_and_depthwise_kernels_go_together(early: bool) -> None:
    """Scales of both multiply; a reader between the two sees those of the rows alone."""
    p = planted()
    strength = np.exp(p.rng.uniform(-1, 1, 15))
    done = merged(bottleneck(p, p.rows(1, 3, 3, scale=strength), early=early))
    assert done.widths() == {"z": 5}
    assert done.off() < 1e-5


def test_parallel_rows_with_other_kernels_stay() -> None:
    p = planted()
    done = merged(bottleneck(p, p.rng.standard_normal((15, 1, 3, 3))), 0.9)
    assert done.widths() == {}


def test_cosines_of_rows_and_kernels_multiply() -> None:
    p = planted(base=1, copies=2)
    kernels = np.zeros((2, 1, 3, 3))
    kernels[:, 0, 0, 0], kernels[1, 0, 0, 1] = (1.0, 0.8), 0.6
    done = merged(bottleneck(p, kernels, shift=False), 0.79)
    np.testing.assert_allclose(done.orders.directions[0].cosine, [[1, 0.8], [0.8, 1]], atol=1e-6)
    assert done.widths() == {"z": 1}


def test_writers_of_a_sum_are_one_row() -> None:
    """Two convolutions add up; channels parallel in both of them merge if both have one factor."""
    for apart, width in ((False, 5), (True, 15)):
        p = planted()
        scale = p.scale * [1 + p.of[:i].tolist().count(base) for i, base in enumerate(p.of)] if apart else None
        net = Net({"x": IMAGE})
        a = net.node("Conv", "x", net.weight("a", p.rows(3, 1, 1)), out="a1")
        b = net.node("Conv", "x", net.weight("b", p.rows(3, 3, 3, scale=scale)), pads=[1] * 4)
        h = net.node("Relu", net.node("Add", a, b))
        net.node("Conv", h, net.weight("v", p.columns(2, 1, 1)), out="y")
        done = merged(net.model({"y": ["N", 2, 6, 6]}), 0.99999)
        assert done.widths().get("a1", 15) == width
        assert done.off() < 1e-5


def test_groups_of_a_convolution() -> None:
    """What a grouped convolution reads is tied across its groups, and so is what it writes."""
    p = planted(base=3, copies=2)
    net = Net({"x": IMAGE})
    rows = np.concatenate([p.rows(3, 1, 1), p.rows(3, 1, 1)])
    h = net.node("Relu", net.node("Conv", "x", net.weight("w", rows), out="z"))
    g = net.weight("g", np.concatenate([p.columns(6, 3, 3), p.columns(6, 3, 3)]))
    h = net.node("Relu", net.node("Conv", h, g, pads=[1] * 4, group=2))
    net.node("Conv", h, net.weight("v", p.rng.standard_normal((2, 12, 1, 1))), out="y")
    done = merged(net.model({"y": ["N", 2, 6, 6]}))
    assert done.widths() == {"z": 3}
    assert done.off() < 1e-5


def test_channels_that_own_several_columns() -> None:
    p = planted()
    net = Net({"x": IMAGE})
    h = net.node("Relu", net.node("Conv", "x", net.weight("w", p.rows(3, 3, 3)), out="z"))
    h = net.node("Flatten", net.node("MaxPool", h, kernel_shape=[2, 2], strides=[2, 2]))
    net.node("Gemm", h, net.weight("v", p.rng.standard_normal((15 * 4, 3))), out="y")
    done = merged(net.model({"y": ["N", 3]}))
    assert done.widths() == {"z": 5}
    assert done.off() < 1e-5


def test_readers_that_share_a_weight() -> None:
    p = planted()
    net = Net({"x": ["N", 6], "u": ["N", 6]})
    w, v = net.weight("w", p.rows(6).T), net.weight("v", p.columns(2).T)
    heads = [net.node("MatMul", net.node("Relu", net.node("MatMul", i, w)), v) for i in ("x", "u")]
    net.node("Add", *heads, out="y")
    done = merged(net.model({"y": ["N", 2]}))
    assert sum(done.widths().values()) == 5
    assert len(done.after.graph.initializer) == 2
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
