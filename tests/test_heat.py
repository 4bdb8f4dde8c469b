"""Pictures of how alike channels are: which spaces, in which order, what is left out."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from mlps import Array, Net, mlp

from onnx_condense import heat
from onnx_condense.heat import heats, kept_channels, ordered
from onnx_condense.network.model import Network
from onnx_condense.plan import Plan, Rotation, Selection


def directions(count: int, *, of: int = 5, width: int = 12, seed: int = 0) -> Array:
    """Channels [count, width] of a few directions, shuffled, with a little noise."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((of, width))[rng.integers(0, of, count)]
    return np.asarray(rows + 0.05 * rng.standard_normal((count, width)))


def layered(*weights: Array, dtype: type[Any] = np.float32) -> Network:
    """Gemm layers of these weights [O, I], and one that puts out a single number."""
    net = Net({"x": ["n", weights[0].shape[1]]}, dtype=dtype)
    last = "x"
    for i, weight in enumerate((*weights, np.ones((1, len(weights[-1]))))):
        stored = [net.weight(f"w{i}", weight), net.weight(f"b{i}", np.zeros(len(weight)))]
        last = net.node("Gemm", last, *stored, out=f"h{i}", transB=1)
        last = net.node("Relu", last) if i < len(weights) else last
    return Network(net.model({last: ["n", 1]}))


def cosines(weight: Array) -> Array:
    unit = weight.astype(np.float32).astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    return np.asarray(unit @ unit.T)


def steps(order: Array, cosine: Array) -> float:
    """How much neighbours differ, on average."""
    return float(np.mean(1.0 - cosine[order[:-1], order[1:]]))


def test_pictures_show_cosines_before_and_of_what_stays() -> None:
    weight = directions(20)
    keep = np.array([0, 3, 4, 11])
    (found,) = heats(layered(weight), {"h0": keep})
    assert (found.space, found.width, found.left) == ("h0", 20, 4)
    order = ordered(cosines(weight))
    left = [i for i in order.tolist() if i in keep]
    np.testing.assert_allclose(found.before, cosines(weight)[np.ix_(order, order)], atol=1e-6)
    np.testing.assert_allclose(found.after, cosines(weight)[np.ix_(left, left)], atol=1e-6)


def test_alike_channels_lie_together() -> None:
    cosine = cosines(directions(60))
    order = ordered(cosine)
    assert sorted(order.tolist()) == list(range(60))
    assert steps(order, cosine) < 0.25 * steps(np.arange(60), cosine)
    assert ordered(np.ones((1, 1))).tolist() == [0]


def test_most_condensed_spaces_come_first_and_few_are_shown() -> None:
    weights = [directions(16, width=12, seed=i) if i == 0 else directions(16, width=16, seed=i) for i in range(6)]
    kept = {f"h{i}": np.arange(left) for i, left in enumerate((15, 4, 12, 3, 9, 16))}
    found = heats(layered(*weights), kept)
    assert [h.space for h in found] == ["h3", "h1", "h4", "h2"]
    assert len(found) == heat.MOST


@pytest.mark.parametrize("width", [heat.FEWEST - 1, heat.FEWEST])
def test_small_spaces_have_no_picture(width: int) -> None:
    assert len(heats(layered(directions(width)), {"h0": np.arange(2)})) == (width >= heat.FEWEST)


def test_wide_spaces_have_no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    network = layered(directions(20))
    assert heats(network, {"h0": np.arange(5)})
    monkeypatch.setattr(heat, "WIDEST", 19)
    assert not heats(network, {"h0": np.arange(5)})


def test_an_even_choice_of_many_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heat, "SHOWN", 10)
    weight = directions(40)
    (found,) = heats(layered(weight), {"h0": np.arange(0, 40, 2)})
    assert found.before.shape == found.after.shape == (10, 10)
    assert (found.width, found.left) == (40, 20)
    order = ordered(cosines(weight))
    chosen = order[np.linspace(0, 39, 10).round().astype(int)]
    np.testing.assert_allclose(found.before, cosines(weight)[np.ix_(chosen, chosen)], atol=1e-6)


def test_weights_that_do_not_compare_have_no_picture() -> None:
    """Their squares overflow."""
    weight = directions(20)
    assert heats(layered(weight, dtype=np.float64), {"h0": np.arange(5)})
    weight[3] *= 1e200
    assert not heats(layered(weight, dtype=np.float64), {"h0": np.arange(5)})


def test_channels_that_can_not_stand_for_others_have_no_picture() -> None:
    """Half of them lie in one tensor more than the others."""
    net = Net({"x": ["n", 12]})
    hidden = net.node("Relu", net.node("Gemm", "x", net.weight("w", directions(16)), out="h0", transB=1))
    bounds = [net.weight(n, np.array(v, np.int64)) for n, v in (("start", [0]), ("end", [8]), ("axis", [1]))]
    part = net.node("Slice", hidden, *bounds)
    net.node("MatMul", hidden, net.weight("all", np.ones((16, 1))), out="one")
    net.node("MatMul", part, net.weight("half", np.ones((8, 1))), out="two")
    network = Network(net.model({"one": ["n", 1], "two": ["n", 1]}))
    assert not heats(network, {"h0": np.arange(5)})
    assert heats(layered(directions(16)), {"h0": np.arange(5)})


def test_what_kept_everything_or_is_unknown_has_no_picture() -> None:
    network = layered(directions(20))
    assert not heats(network, {"h0": np.arange(20)})
    assert not heats(network, {"elsewhere": np.arange(2)})
    assert not heats(network, {"h0": np.array([25])})
    assert not heats(network, {})


def test_nothing_is_changed() -> None:
    network = Network(mlp())
    before = network.proto.SerializeToString()
    assert heats(network, {"gemm_0": np.arange(4)})
    assert network.proto.SerializeToString() == before


def test_wide_spaces_are_quick() -> None:
    started = time.monotonic()
    (found,) = heats(layered(directions(2000, of=40, width=30)), {"h0": np.arange(0, 2000, 3)})
    assert found.before.shape == (heat.SHOWN, heat.SHOWN)
    assert time.monotonic() - started < 20.0


def plan(*selections: Selection, rotations: tuple[Rotation, ...] = ()) -> Plan:
    return Plan("fitted", selections, (), rotations=rotations)


def test_plans_in_a_row_keep_what_both_keep() -> None:
    first = plan(Selection("a", np.array([1, 3, 5, 7])), Selection("b", np.array([0, 2])))
    second = plan(Selection("new a", np.array([0, 3])), Selection("c", np.array([4])))
    kept = kept_channels((first, second), {"new a": "a"})
    assert {n: k.tolist() for n, k in kept.items()} == {"a": [1, 7], "b": [0, 2], "c": [4]}


def test_mixed_channels_are_left_out() -> None:
    mixed = Rotation("new a", np.ones((1, 2)), np.ones((2, 1)))
    first, second = plan(Selection("b", np.array([0]))), plan(Selection("new a", np.array([0])), rotations=(mixed,))
    assert list(kept_channels((first, second), {"new a": "a"})) == ["b"]


def test_spaces_that_do_not_follow_from_each_other_are_left_out() -> None:
    first, second = plan(Selection("a", np.array([2, 4]))), plan(Selection("a", np.array([0, 2])))
    assert not kept_channels((first, second), {})
