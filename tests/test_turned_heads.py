"""Channels of heads and groups are mixed, each part by itself, where all between writers and readers is linear."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from builders import assert_same_outputs, outputs
from endtoend import run, timer  # noqa: F401 - a fixture that every test uses
from mlps import Array, Net

from onnx_condense.carriers import Turn
from onnx_condense.evidence.trunks import linear_trunks
from onnx_condense.fit import placing
from onnx_condense.grids import apart, moved, moved_back
from onnx_condense.network.model import Network
from onnx_condense.ready import ready
from onnx_condense.search import candidates
from onnx_condense.spaces import find_spaces

POINTS, WIDE, HEADS, SIZE, RANK = 5, 12, 3, 6, 4
INNER = HEADS * SIZE


def heard(rng: np.random.Generator, columns: int, parts: int = HEADS) -> Array:
    """[parts SIZE, columns]: of every part RANK sums are heard, in which all channels are."""
    blocks = [rng.standard_normal((SIZE, RANK)) @ rng.standard_normal((RANK, columns)) for _ in range(parts)]
    return np.concatenate(blocks)


def attention(seed: int = 0, *, bend: str = "", bias: bool = True) -> onnx.ModelProto:
    """Attention over POINTS, of whose values few sums are heard in every head. bend: an op on the values."""
    rng = np.random.default_rng(seed)
    net = Net({"x": ["N", POINTS, WIDE]})
    into, out = [net.weight(n, np.array(v)) for n, v in (("grid", [0, 0, HEADS, SIZE]), ("line", [0, 0, INNER]))]

    def heads(name: str, value: Array, order: list[int]) -> str:
        line = net.node("MatMul", "x", net.weight(f"w_{name}", value))
        if bias:
            line = net.node("Add", line, net.weight(f"b_{name}", rng.standard_normal(INNER)))
        return net.node("Transpose", net.node("Reshape", line, into), perm=order)

    turns = {"q": [0, 2, 1, 3], "k": [0, 2, 3, 1], "v": [0, 2, 1, 3]}
    q, k, v = (heads(name, rng.standard_normal((WIDE, INNER)) / 3, order) for name, order in turns.items())
    v = net.node(bend, v) if bend else v
    seen = net.node("MatMul", net.node("Softmax", net.node("MatMul", q, k), axis=-1), v)
    line = net.node("Reshape", net.node("Transpose", seen, perm=[0, 2, 1, 3]), out)
    net.node("MatMul", line, net.weight("w_o", heard(rng, 8)), out="y")
    return net.model({"y": ["N", POINTS, 8]})


def one_unheard() -> onnx.ModelProto:
    """The same, but nothing reads what the last head says."""
    model = attention()
    back = next(i for i, n in enumerate(model.graph.node) if n.op_type == "Transpose" and n.output[0] in seen_as(model))
    given = model.graph.node[back].input[0]
    cut = onnx.helper.make_node("Slice", [given, "from", "to", "from_axis"], ["heads"])
    model.graph.node[back].input[0] = "heads"
    model.graph.node.insert(back, cut)
    numbers = {"from": [0], "to": [HEADS - 1], "from_axis": [1], "line": [0, 0, INNER - SIZE]}
    kept = [t for t in model.graph.initializer if t.name not in (*numbers, "w_o")]
    weight = next(onnx.numpy_helper.to_array(t) for t in model.graph.initializer if t.name == "w_o")
    stored = {**{n: np.array(v) for n, v in numbers.items()}, "w_o": weight[: INNER - SIZE]}
    del model.graph.initializer[:]
    model.graph.initializer.extend([*kept, *(onnx.numpy_helper.from_array(v, n) for n, v in stored.items())])
    return model


def seen_as(model: onnx.ModelProto) -> set[str]:
    """What is laid out in a line again."""
    return {n.input[0] for n in model.graph.node if n.op_type == "Reshape" and n.input[1] == "line"}


def joined() -> onnx.ModelProto:
    """The same with one layer for queries, keys and values; the channels of the first two are pinned."""
    rng = np.random.default_rng(4)
    net = Net({"x": ["N", POINTS, WIDE]})
    line = net.node("MatMul", "x", net.weight("w", rng.standard_normal((WIDE, 3 * INNER)) / 3))
    line = net.node("Add", line, net.weight("b", rng.standard_normal(3 * INNER)))
    grid = net.node("Reshape", line, net.weight("grid", np.array([0, 0, 3, HEADS, SIZE])))
    there = net.node("Transpose", grid, perm=[2, 0, 3, 1, 4])
    net.stored += [onnx.numpy_helper.from_array(np.array(i), f"at{i}") for i in range(3)]
    q, k, v = (net.node("Gather", there, f"at{i}", axis=0) for i in range(3))
    scores = net.node("MatMul", q, net.node("Transpose", k, perm=[0, 1, 3, 2]))
    seen = net.node("MatMul", net.node("Softmax", scores, axis=-1), v)
    line = net.weight("line", np.array([0, 0, INNER]))
    line = net.node("Reshape", net.node("Transpose", seen, perm=[0, 2, 1, 3]), line)
    net.node("MatMul", line, net.weight("w_o", heard(rng, 8)), out="y")
    return net.model({"y": ["N", POINTS, 8]})


def grouped() -> onnx.ModelProto:
    """A plain convolution that one with two groups reads, with nothing between them."""
    rng = np.random.default_rng(1)
    net = Net({"x": ["N", 3, 7, 7]})
    z = net.node("Conv", "x", net.weight("k", rng.standard_normal((2 * SIZE, 3, 3, 3)) / 5))
    reader = heard(rng, 8, 2).reshape(2, SIZE, 8).transpose(0, 2, 1).reshape(16, SIZE, 1, 1)
    net.node("Conv", z, net.weight("u", reader), group=2, out="y")
    return net.model({"y": ["N", 16, 5, 5]})


def stack() -> onnx.ModelProto:
    """Two networks of two linear layers each, as stacks of matrices."""
    rng = np.random.default_rng(2)
    net = Net({"x": [2, "N", WIDE]})
    z = net.node("MatMul", "x", net.weight("v", rng.standard_normal((2, WIDE, SIZE)) / 3))
    h = net.node("Add", z, net.weight("b", rng.standard_normal((2, 1, SIZE))))
    net.node("MatMul", h, net.weight("u", heard(rng, 8, 2).reshape(2, SIZE, 8)), out="y")
    return net.model({"y": [2, "N", 8]})


MADE: dict[str, Callable[[], onnx.ModelProto]] = {
    "heads": attention,
    "heads without a bias": lambda: attention(bias=False),
    "heads with a linear op between": lambda: attention(bend="Neg"),
    "heads of one layer": joined,
    "columns of groups": grouped,
    "stack": stack,
}


def drawn(proto: onnx.ModelProto, count: int = 600, seed: int = 5) -> Array:
    sizes = [d.dim_value or count for d in proto.graph.input[0].type.tensor_type.shape.dim]
    return np.random.default_rng(seed).standard_normal(sizes).astype(np.float32)


def fitted(proto: onnx.ModelProto, **options: Any) -> Any:
    x = drawn(proto)
    feeds: Any = {"x": x} if len(x) == 600 else [{"x": x[:, i : i + 1]} for i in range(x.shape[1])]
    return run(proto, calibration=feeds, allow_slower=True, **options)


def width(found: Any) -> int:
    """Of a part; what else is in the space stays."""
    (row,) = (s for s in found.report.spaces if s.before in (SIZE, 3 * SIZE) and s.readers)
    return int(row.after) - int(row.before) + SIZE


@pytest.mark.parametrize("name", MADE)
def test_parts_of_low_rank_get_as_narrow(name: str) -> None:
    dense = MADE[name]()
    found = fitted(dense, tolerance=1e-4, multiple_of=1)
    assert width(found) == RANK
    onnx.checker.check_model(found.model, full_check=True)
    feed = {"x": drawn(dense, 7, seed=8)}
    before, after = outputs(dense, feed)[0], outputs(found.model, feed)[0]
    assert np.linalg.norm(after - before) < 3e-4 * np.linalg.norm(before)


def test_a_part_that_nothing_reads_is_no_obstacle() -> None:
    dense = one_unheard()
    found = fitted(dense, tolerance=1e-4, multiple_of=1)
    assert_same_outputs(dense, found.model, eps=1e-3)


@pytest.mark.parametrize("name", ["heads", "stack"])
def test_without_mixing_nothing_of_them_goes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tests above say is of mixing alone."""
    monkeypatch.setattr(candidates, "turned", lambda *_: {})
    found = fitted(MADE[name](), tolerance=1e-4, multiple_of=1)
    assert found.report.status == "unchanged"


@pytest.mark.parametrize("bend", ["Relu", "Tanh", "Abs"])
def test_what_bends_every_channel_by_itself_is_not_mixed(bend: str) -> None:
    network = ready(attention(bend=bend))
    view = find_spaces(network)
    assert apart(network, view).grids
    assert not linear_trunks(network, view, copies=True)


def test_a_factor_for_every_channel_is_not_mixed() -> None:
    model = attention(bend="Neg")
    at = next(i for i, n in enumerate(model.graph.node) if n.op_type == "Neg")
    name = model.graph.node[at].input[0]
    factors = onnx.numpy_helper.from_array(np.linspace(1, 2, SIZE, dtype=np.float32), "factors")
    model.graph.initializer.append(factors)
    model.graph.node[at].CopyFrom(onnx.helper.make_node("Mul", [name, "factors"], list(model.graph.node[at].output)))
    network = ready(model)
    assert not linear_trunks(network, find_spaces(network), copies=True)


def turns(network: Network, seed: int = 0) -> dict[str, tuple[Turn, ...]]:
    """Any matrices, and their inverses."""
    rng, view = np.random.default_rng(seed), find_spaces(network)
    linear, found = linear_trunks(network, view, copies=True), {}
    for grid in apart(network, view).grids:
        parts, places = grid.cells.shape
        made = [np.eye(places) + 0.3 * rng.standard_normal((places, places)) for _ in range(parts)]
        if grid.space in linear:
            found[grid.space] = tuple(Turn(m, np.asarray(np.linalg.inv(m), np.float64)) for m in made)
    return found


@pytest.mark.parametrize("name", MADE)
def test_mixed_parts_are_one_function_and_come_back_to_the_bit(name: str) -> None:
    network = ready(MADE[name]())
    view, moves = find_spaces(network), turns(network)
    assert moves
    there = moved(network, view, moves)
    stored = {t.name: t for t in network.proto.graph.initializer}
    assert sum(t != stored.get(t.name) for t in there.proto.graph.initializer) >= 2
    assert_same_outputs(network.proto, there.proto)
    back = moved_back(there.proto, view, moves, (network, there))
    assert {t.name: t for t in back.graph.initializer} == stored


def test_what_another_step_changed_is_turned_back_up_to_rounding() -> None:
    network = ready(attention())
    view, moves = find_spaces(network), turns(network)
    there = moved(network, view, moves)
    other = onnx.ModelProto.FromString(there.proto.SerializeToString())
    weight = next(t for t in other.graph.initializer if t.name == "w_o")
    weight.CopyFrom(onnx.numpy_helper.from_array(2 * onnx.numpy_helper.to_array(weight), "w_o"))
    back = moved_back(other, view, moves, (network, there))
    found, dense = ({t.name: t for t in p.graph.initializer} for p in (back, network.proto))
    assert found["w_v"] == dense["w_v"]
    after, before = (onnx.numpy_helper.to_array(stored["w_o"]) for stored in (found, dense))
    np.testing.assert_allclose(after, 2 * before, rtol=0, atol=1e-5)


def test_a_space_that_keeps_its_channels_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mixed before the search, then held by it."""
    dense = attention()
    monkeypatch.setattr(placing, "_better", lambda *_: True)
    held = run(dense, calibration={"x": drawn(dense)}, tolerance=1e-4, min_width=SIZE, allow_slower=True)
    assert held.report.status == "unchanged"
    assert held.model.SerializeToString() == dense.SerializeToString()


def test_a_saved_plan_mixes_again(tmp_path: Path) -> None:
    dense, plan = attention(), tmp_path / "plan.json"
    first = fitted(dense, tolerance=1e-4, multiple_of=1)
    first.save_plan(plan)
    (told,) = (s for s in json.loads(plan.read_text())["spaces"] if s["before"] == SIZE and s["after"] == RANK)
    assert told["turned"] is True
    same = fitted(dense, plan=plan)
    assert same.model.graph.SerializeToString() == first.model.graph.SerializeToString()
    other = fitted(attention(seed=3), plan=plan, tolerance=1e-4)
    assert width(other) == RANK
