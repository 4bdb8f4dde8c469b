"""Passes that go on from a cut deliver the moments of passes from the inputs on, and run only what is left."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from mlps import Array, Net, normal
from onnx import helper

from onnx_condense.data import Samples, input_specs, load
from onnx_condense.evidence import moments, stages
from onnx_condense.evidence.columns import Columns
from onnx_condense.evidence.moments import PREFIX, Pair, collect, side_by_side, with_itself
from onnx_condense.evidence.stages import Ahead, Stages, part_of
from onnx_condense.fit.fitting import Fitter
from onnx_condense.network.model import Network
from onnx_condense.plan import Moments
from onnx_condense.runtime import Runtime, run
from onnx_condense.spaces import find_spaces

RUNTIME = Runtime(threads=1)
Make = Callable[[], onnx.ModelProto]


# ---- networks ----


def dense(net: Net, rng: np.random.Generator, x: str, out: str, shape: tuple[int, int], op: str = "Gemm") -> str:
    """A layer x W + b with random weights."""
    W = net.weight(f"{out}.w", rng.standard_normal(shape) / shape[0] ** 0.5)
    b = net.weight(f"{out}.b", rng.standard_normal(shape[1]) / 2)
    if op == "Gemm":
        return net.node("Gemm", x, W, b, out=out)
    return net.node("Add", net.node("MatMul", x, W), b, out=out)


def chain() -> onnx.ModelProto:
    """Four readers in a row."""
    net, rng = Net({"x": ["N", 4]}), np.random.default_rng(0)
    h = "x"
    for i, shape in enumerate([(4, 12), (12, 11), (11, 10), (10, 9)]):
        h = net.node("Tanh", dense(net, rng, h, f"h{i}", shape), out=f"a{i}")
    dense(net, rng, h, "y", (9, 2))
    return net.model({"y": ["N", 2]})


def bare() -> onnx.ModelProto:
    """Readers without a bias: the offsets of the fit become nodes."""
    net, rng = Net({"x": ["N", 4]}), np.random.default_rng(1)
    h = "x"
    for i, shape in enumerate([(4, 12), (12, 11), (11, 10)]):
        w = net.weight(f"w{i}", rng.standard_normal(shape) / 2)
        h = net.node("Sigmoid", net.node("MatMul", h, w), out=f"a{i}")
    net.node("MatMul", h, net.weight("v", rng.standard_normal((10, 2))), out="y")
    return net.model({"y": ["N", 2]})


def listed() -> onnx.ModelProto:
    """A list of sizes that the rewrite makes anew, since it names a width; readers of later stages lie behind it."""
    net, rng = Net({"x": ["N", 4]}), np.random.default_rng(5)
    h = "x"
    for i, shape in enumerate([(4, 12), (12, 12), (12, 12)]):
        h = net.node("Tanh", dense(net, rng, h, f"h{i}", shape), out=f"a{i}")
    first = net.node("Gather", net.node("Shape", "x"), net.weight("zero", [0]))
    sizes = net.node("Concat", first, net.weight("width", [12]), out="sizes", axis=0)
    h = net.node("Reshape", h, sizes, out="r")
    dense(net, rng, h, "y", (12, 2))
    return net.model({"y": ["N", 2]})


def one_norm() -> onnx.ModelProto:
    """Offsets go into the mean of what normalises, which two readers of different stages share."""
    net, rng = Net({"x": ["N", 2, 5, 5]}), np.random.default_rng(2)
    stored = [net.weight(f"n{i}", rng.uniform(0.5, 1.5, 8)) for i in range(4)]
    h = "x"
    for i, width in enumerate([2, 8, 8]):
        w = net.weight(f"w{i}", rng.standard_normal((8, width, 3, 3)) / width)
        h = net.node("Conv", h, w, pads=[1] * 4)
        h = net.node("Relu", net.node("BatchNormalization", h, *stored), out=f"a{i}")
    w = net.weight("v", rng.standard_normal((2, 8, 1, 1)))
    net.node("Conv", h, w, out="y")
    return net.model({"y": ["N", 2, 5, 5]})


def residual() -> onnx.ModelProto:
    """A stream that every block reads and adds to; the last reader reads what all of them left."""
    net, rng = Net({"x": ["N", 4]}), np.random.default_rng(3)
    h = dense(net, rng, "x", "in", (4, 12))
    for i in range(3):
        inner = net.node("Relu", dense(net, rng, h, f"up{i}", (12, 14), "MatMul"))
        h = net.node("Add", h, dense(net, rng, inner, f"down{i}", (14, 12), "MatMul"), out=f"s{i}")
    dense(net, rng, h, "y", (12, 3))
    return net.model({"y": ["N", 3]})


def shared() -> onnx.ModelProto:
    """One weight at two depths, and between them a reader of a lower stage whose input is not final yet."""
    net, rng = Net({"x": ["N", 4]}), np.random.default_rng(4)
    h = net.node("Tanh", dense(net, rng, "x", "in", (4, 12)))
    for i in range(2):
        w = ["w", "wb"] if i else [net.weight("w", rng.standard_normal((12, 10)) / 3), net.weight("wb", np.ones(10))]
        h = net.node("Tanh", net.node("Gemm", h, *w, out=f"low{i}"))
        h = net.node("Tanh", dense(net, rng, h, f"high{i}", (10, 12)), out=f"a{i}")
    dense(net, rng, h, "y", (12, 2))
    return net.model({"y": ["N", 2]})


def one_bias() -> onnx.ModelProto:
    """Readers of different stages with weights of their own and one bias."""
    net, rng = Net({"x": ["N", 9]}), np.random.default_rng(5)
    b = net.weight("b", rng.standard_normal(9))
    h = "x"
    for i in range(4):
        w = net.weight(f"w{i}", rng.standard_normal((9, 9)) / 3)
        h = net.node("Tanh", net.node("Gemm", h, w, b), out=f"a{i}")
    dense(net, rng, h, "y", (9, 2))
    return net.model({"y": ["N", 2]})


def branching(net: Net, h: str) -> str:
    """An If whose branches take `h` from outside; it makes a tensor `picked` and a sequence `pair`."""
    axes = net.weight("axes", np.array([0, 1]))
    flag = net.node("Greater", net.node("ReduceSum", "x", axes, keepdims=0), net.weight("zero", np.zeros(())))
    branches: dict[str, Any] = {}
    for name, op in (("then_branch", "Neg"), ("else_branch", "Exp")):
        one, two = f"{op}_one", f"{op}_two"
        inner = [helper.make_node(op, [h], [one]), helper.make_node("SequenceConstruct", [one, h], [two])]
        results = [helper.make_tensor_value_info(one, 1, ["N", 3])]
        results.append(helper.make_tensor_sequence_value_info(two, 1, ["N", 3]))
        branches[name] = helper.make_graph(inner, name, [], results)
    net.nodes.append(helper.make_node("If", [flag], ["picked", "pair"], **branches))
    return "picked"


def bodies() -> onnx.ModelProto:
    """Branches between the third and the fourth reader."""
    net, rng = Net({"x": ["N", 4]}), np.random.default_rng(6)
    h = "x"
    for i, shape in enumerate([(4, 12), (12, 11), (11, 3)]):
        h = net.node("Tanh", dense(net, rng, h, f"h{i}", shape), out=f"a{i}")
    h = branching(net, h)
    for i, shape in ((3, (3, 11)), (4, (11, 10))):
        h = net.node("Tanh", dense(net, rng, h, f"h{i}", shape), out=f"a{i}")
    dense(net, rng, h, "y", (10, 2))
    return net.model({"y": ["N", 2]})


def sequences() -> onnx.ModelProto:
    """Of two results of one node, one can be held and one can't; later readers need both."""
    net, rng = Net({"x": ["N", 4]}), np.random.default_rng(6)
    h = "x"
    for i, shape in enumerate([(4, 12), (12, 3)]):
        h = net.node("Tanh", dense(net, rng, h, f"h{i}", shape), out=f"a{i}")
    branching(net, h)
    for i, shape in ((2, (3, 11)), (3, (11, 3))):
        h = net.node("Tanh", dense(net, rng, h, f"h{i}", shape), out=f"a{i}")
    h = net.node("ConcatFromSequence", net.node("SequenceInsert", "pair", h), axis=1)
    h = net.node("Tanh", dense(net, rng, net.node("Concat", h, "picked", axis=1), "h4", (12, 11)), out="a4")
    dense(net, rng, h, "y", (11, 2))
    return net.model({"y": ["N", 2]})


def parts() -> onnx.ModelProto:
    """Both halves of a split lead on to later stages; hidden tensors are outputs of the network too."""
    net, rng = Net({"x": ["N", 4]}), np.random.default_rng(7)
    h = net.node("Tanh", dense(net, rng, "x", "h0", (4, 12)), out="a0")
    h = dense(net, rng, h, "h1", (12, 16))
    net.nodes.append(helper.make_node("Split", [h, net.weight("half", np.array([8, 8]))], ["u", "v"], axis=1))
    u = net.node("Tanh", dense(net, rng, net.node("Relu", "u"), "h2", (8, 10)), out="a2")
    u = net.node("Tanh", dense(net, rng, u, "h3", (10, 9)), out="a3")
    dense(net, rng, net.node("Concat", u, net.node("Sigmoid", "v"), axis=1), "y", (17, 2))
    return net.model({"y": ["N", 2], "h1": ["N", 16]})


def recurrent() -> onnx.ModelProto:
    """Recurrent layers at two depths; sequences of any length."""
    net, rng = Net({"x": ["T", "N", 4]}), np.random.default_rng(8)
    h = "x"
    for i, op in enumerate(("GRU", "LSTM")):
        gates = {"GRU": 3, "LSTM": 4}[op]
        h = net.node("Relu", dense(net, rng, h, f"h{i}", (4 if i == 0 else 6, 12), "MatMul"))
        W = net.weight(f"W{i}", rng.standard_normal((1, gates * 6, 12)) / 3)
        R = net.weight(f"R{i}", rng.standard_normal((1, gates * 6, 6)) / 3)
        sequence = net.node(op, h, W, R, hidden_size=6, out=f"r{i}")
        h = net.node("Squeeze", sequence, net.weight(f"axis{i}", np.array([1])), out=f"s{i}")
    h = net.node("Relu", dense(net, rng, h, "h2", (6, 10), "MatMul"))
    dense(net, rng, h, "y", (10, 2), "MatMul")
    return net.model({"y": ["T", "N", 2]})


def pixels() -> onnx.ModelProto:
    """Convolutions over images of any size, with a skip from the first to the last."""
    net, rng = Net({"x": ["N", 2, "H", "W"]}), np.random.default_rng(9)
    h = "x"
    for i, (before, after) in enumerate([(2, 10), (10, 9), (9, 10)]):
        w = net.weight(f"w{i}", rng.standard_normal((after, before, 3, 3)) / (3 * before**0.5))
        b = net.weight(f"b{i}", rng.standard_normal(after) / 3)
        h = net.node("Relu", net.node("Conv", h, w, b, pads=[1] * 4), out=f"a{i}")
    h = net.node("Concat", "a0", h, axis=1)
    net.node("Conv", h, net.weight("v", rng.standard_normal((2, 20, 1, 1))), out="y")
    return net.model({"y": ["N", 2, "H", "W"]})


# ---- the two kinds of passes ----


@dataclasses.dataclass
class Log:
    """What the passes of one plan computed, and what they found."""

    ran: list[frozenset[str]] = dataclasses.field(default_factory=list)
    fed: list[frozenset[str]] = dataclasses.field(default_factory=list)
    kept: list[tuple[str, ...]] = dataclasses.field(default_factory=list)
    found: list[tuple[Sequence[Moments], Sequence[Moments]]] = dataclasses.field(default_factory=list)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    """Every pass of Stages is repeated from the inputs on."""
    seen, through = Log(), Stages.collect

    def spy(proto: onnx.ModelProto, pairs: Sequence[Pair], ranks: Any, batches: Any, runtime: Any, *more: Any) -> Any:
        seen.ran.append(frozenset(name for node in proto.graph.node for name in node.output))
        seen.fed.append(frozenset(i.name for i in proto.graph.input))
        seen.kept.append(more[0])
        return moments.collect_parts(proto, pairs, ranks, batches, runtime, *more)

    def twice(
        self: Stages, condensed: onnx.ModelProto, pairs: Sequence[Pair], ranks: Mapping[str, int], stage: int
    ) -> list[Moments]:
        found = through(self, condensed, pairs, ranks, stage)
        both = side_by_side(self._proto, condensed)
        full = collect(both, pairs, ranks, self._samples, self._indices, RUNTIME, self._batch)
        seen.found.append((found, full))
        return found

    monkeypatch.setattr(stages, "collect_parts", spy)
    monkeypatch.setattr(Stages, "collect", twice)
    return seen


def narrowed(model: onnx.ModelProto, source: Any) -> Fitter:
    """A sequential plan is made in which every space loses a third."""
    network = Network(model)
    samples = load(source, input_specs(model.graph))
    rows = np.arange(len(samples))
    fitter = Fitter(network, find_spaces(network), samples, rows[: -len(rows) // 4], rows[-len(rows) // 4 :], RUNTIME)
    fitter.plan([max(1, s.width - s.width // 3) for s in fitter.spaces], sequential=True)
    return fitter


def rows_of(model: onnx.ModelProto) -> Array:
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    return normal(200, *shape[1:])


def of_any_size(rank: int) -> list[dict[str, Array]]:
    """Feeds of different shapes: sequences of different length, images of different size."""
    shapes = [(2 + i % 4, 1 + i % 3, 4) if rank == 3 else (1 + i % 2, 2, 4 + i % 3, 5 + i % 2) for i in range(40)]
    return [{"x": normal(*shape, seed=i)} for i, shape in enumerate(shapes)]


def assert_equal(log: Log) -> None:
    """All moments of the passes from a cut on are those of full passes, up to rounding."""
    assert log.found
    for found, full in log.found:
        assert len(found) == len(full)
        for a, b in zip(found, full, strict=True):
            assert a.count == b.count
            for left, right in ((a.left, b.left), (a.right, b.right), (a.product, b.product)):
                np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-5 * float(np.abs(right).max()))


@pytest.mark.parametrize("make", [chain, bare, one_norm, residual, shared, one_bias, bodies, sequences, parts, listed])
def test_moments_are_those_of_full_passes(make: Make, log: Log) -> None:
    model = make()
    narrowed(model, rows_of(model))
    assert_equal(log)
    assert len(log.found) > 1
    assert any(name.startswith(PREFIX) for name in log.fed[-1]), "no pass went on from a cut"


@pytest.mark.parametrize(("make", "rank"), [(recurrent, 3), (pixels, 4)])
def test_feeds_of_different_shapes_go_on_from_their_own_activations(make: Make, rank: int, log: Log) -> None:
    narrowed(make(), of_any_size(rank))
    assert_equal(log)
    assert any(name.startswith(PREFIX) for name in log.fed[-1])


def test_thinned_rows_are_the_same_rows(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnx_condense.fit.fitting.LEAST_ROWS", 100)
    monkeypatch.setattr("onnx_condense.fit.fitting.ROWS_PER_COLUMN", 1)
    narrowed(pixels(), of_any_size(4))
    # Without thinning these images have about 600 rows.
    assert max(m.count for found, _ in log.found for m in found) < 400
    assert_equal(log)


def test_batches_are_held_one_by_one(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "ROWS", 16)
    model = chain()
    passes = narrowed(model, rows_of(model))
    assert passes._batch == 16
    assert_equal(log)


# ---- what is run ----

BEHIND = {"low0", "high0", "a0", "low1", "high1", "a1"}


def both(*names: str) -> set[str]:
    return {prefix + name for name in names for prefix in ("", PREFIX)}


def test_nothing_before_the_cut_is_run_again(log: Log) -> None:
    model = chain()
    narrowed(model, rows_of(model))
    layers = [{name for name in ran if name.removeprefix(PREFIX) in {"h0", "h1", "h2", "h3", "y"}} for ran in log.ran]
    assert layers == [both("h0", "h1"), both("h2"), both("h3")]
    assert [set(kept) for kept in log.kept] == [both("a1"), both("a2"), set()]
    assert [fed - {"x"} for fed in log.fed] == [set(), both("a1"), both("a2")]


def test_a_cut_that_still_serves_is_not_computed_again(log: Log) -> None:
    """The skip from the first layer to the last is held through all stages."""
    model = pixels()
    narrowed(model, normal(60, 2, 6, 6))
    assert sum("a0" in ran for ran in log.ran) == 1
    assert sum("a0" in kept for kept in log.kept) == 1
    assert both("a0") <= log.fed[-1]
    assert_equal(log)


def test_what_bodies_take_from_outside_is_held(log: Log) -> None:
    model = bodies()
    narrowed(model, rows_of(model))
    assert both("a1") <= set(log.kept[0])
    assert_equal(log)


def test_what_is_not_final_is_not_held(log: Log) -> None:
    """Behind the first use of a shared weight nothing is final before the weight is, at its deeper use."""
    model = shared()
    narrowed(model, rows_of(model))
    # Stage 1 refits what lies between the uses, stage 2 the shared weight, stages 3 and 4 the readers behind both.
    between, weight, *_ = log.kept
    assert not {name.removeprefix(PREFIX) for name in (*between, *weight)} & BEHIND
    assert [both("low0") <= ran for ran in log.ran] == [True, True, True, False]
    assert_equal(log)


def test_too_much_to_hold_is_computed_again(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    model = chain()
    monkeypatch.setattr(stages, "HELD", 0)
    narrowed(model, rows_of(model))
    assert all(fed == {"x"} for fed in log.fed)
    assert all(both("h0") <= ran for ran in log.ran)
    assert_equal(log)


def test_where_the_next_cut_is_too_large_the_last_one_serves(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wide comes late: up to there passes go on from cuts, then from the last one that fitted."""
    net, rng = Net({"x": ["N", 4]}), np.random.default_rng(0)
    h = "x"
    for i, shape in enumerate([(4, 9), (9, 9), (9, 60), (60, 60)]):
        h = net.node("Tanh", dense(net, rng, h, f"h{i}", shape), out=f"a{i}")
    dense(net, rng, h, "y", (60, 2))
    model = net.model({"y": ["N", 2]})
    # 150 samples of 9 + 6 numbers fit, 60 + 40 do not.
    monkeypatch.setattr(stages, "HELD", 150 * 4 * 50)
    narrowed(model, rows_of(model))
    assert [fed - {"x"} for fed in log.fed] == [set(), both("a1"), both("a1")]
    assert [set(kept) for kept in log.kept] == [both("a1"), both("a2"), set()]
    assert_equal(log)


# ---- by hand ----


def by_hand(model: onnx.ModelProto, settled: Mapping[str, int], ends: Mapping[int, frozenset[str]]) -> Stages:
    samples: Samples = load(normal(30, 4), input_specs(model.graph))
    return Stages(Network(model), model, Ahead(settled, ends), samples, np.arange(30), 8, RUNTIME)


def full(model: onnx.ModelProto, other: onnx.ModelProto, name: str) -> Moments:
    samples = load(normal(30, 4), input_specs(model.graph))
    pair = with_itself(Columns(PREFIX + name, 1))
    return collect(side_by_side(model, other), [pair], {PREFIX + name: 2}, samples, np.arange(30), RUNTIME, 8)[0]


def changed(model: onnx.ModelProto, *names: str) -> onnx.ModelProto:
    """The network with some weights doubled."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name in names:
            tensor.CopyFrom(onnx.numpy_helper.from_array(2 * onnx.numpy_helper.to_array(tensor), tensor.name))
    return copy


def test_what_changes_behind_the_cut_is_seen_and_what_is_final_is_not_asked_for_again(log: Log) -> None:
    del log  # the passes of this test are compared here
    model = chain()
    ends = {1: frozenset({"a1"}), 2: frozenset({"a2"})}
    passes = by_hand(model, {"h0": 1, "a0": 1, "h1": 2, "a1": 2, "h2": 3, "a2": 3}, ends)
    pair = [with_itself(Columns(PREFIX + "a1", 1))]
    first = changed(model, "h0.w")
    assert passes.collect(first, pair, {PREFIX + "a1": 2}, 1)[0].left == pytest.approx(full(model, first, "a1").left)
    # A weight that should be final changes after all: the pass does not look there.
    second = changed(model, "h0.b", "h1.w")
    found = passes.collect(second, [with_itself(Columns(PREFIX + "a2", 1))], {PREFIX + "a2": 2}, 2)[0]
    expected = full(model, changed(model, "h0.w", "h1.w"), "a2")
    np.testing.assert_allclose(found.left, expected.left, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.product, expected.product, rtol=1e-4, atol=1e-5)


def test_after_counts_later_stages_only() -> None:
    ahead = Ahead({}, {0: frozenset("a"), 1: frozenset("b"), 3: frozenset("cd")})
    assert ahead.after(0) == frozenset("bcd")
    assert ahead.after(1) == frozenset("cd")
    assert ahead.after(3) == frozenset()


# ---- parts of a network ----


def names(part: onnx.ModelProto) -> dict[str, set[str]]:
    graph = part.graph
    return {
        "nodes": {node.output[0] for node in graph.node},
        "stored": {t.name for t in graph.initializer},
        "inputs": {i.name for i in graph.input},
        "outputs": {o.name for o in graph.output},
    }


def test_a_part_leaves_out_what_it_does_not_need() -> None:
    found = names(part_of(chain(), {"a0": 1}, {"a1", "h2"}))
    assert found == {
        "nodes": {"h1", "a1", "h2"},
        "stored": {"h1.w", "h1.b", "h2.w", "h2.b"},
        "inputs": {"a0"},
        "outputs": {"a1", "h2"},
    }


def test_a_part_that_starts_at_the_inputs_has_them() -> None:
    assert names(part_of(chain(), {}, {"a0"}))["inputs"] == {"x"}
    assert names(part_of(chain(), {"a0": 1}, {"a0"})) == {
        "nodes": set(),
        "stored": set(),
        "inputs": {"a0"},
        "outputs": {"a0"},
    }


def test_a_part_brings_what_bodies_take_from_outside() -> None:
    model = bodies()
    found = names(part_of(model, {}, {"picked"}))
    assert {"h0", "a0", "h2", "a2", "picked"} <= found["nodes"]
    assert names(part_of(model, {"a2": 1}, {"picked"}))["inputs"] == {"x", "a2"}


@pytest.mark.parametrize("make", [chain, residual, shared, bodies, parts, bare])
def test_a_part_computes_what_the_network_computes(make: Make) -> None:
    model = make()
    inner = [n.output[0] for n in model.graph.node if n.output[0] in Network(model).types]
    start, end = inner[len(inner) // 3], inner[-2]
    feed = {"x": normal(5, *(d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[1:]))}
    values = run(RUNTIME.session(part_of(model, {}, {start, end})), feed)
    known = dict(zip(sorted({start, end}), values, strict=True))
    part = part_of(model, {start: 1}, {end})
    session = RUNTIME.session(part)
    fed = {i.name for i in session.get_inputs()}
    (again,) = run(session, {k: v for k, v in {**feed, start: known[start]}.items() if k in fed})
    np.testing.assert_allclose(again, known[end], rtol=1e-5, atol=1e-6)


def test_a_part_keeps_versions_functions_and_sparse_weights() -> None:
    model = chain()
    model.opset_import.append(helper.make_opsetid("own", 1))
    body = [helper.make_node("Neg", ["a"], ["b"])]
    model.functions.append(helper.make_function("own", "F", ["a"], ["b"], body, [helper.make_opsetid("", 17)]))
    values = helper.make_tensor("spare", 1, [1], [1.0])
    at = helper.make_tensor("at", 7, [1], [0])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, at, [4]))
    part = part_of(model, {}, {"a0"})
    assert part.opset_import == model.opset_import
    assert part.functions == model.functions
    assert not part.graph.sparse_initializer
    model.graph.node[0].input[2] = "spare"
    assert part_of(model, {}, {"a0"}).graph.sparse_initializer == model.graph.sparse_initializer


def test_folders_of_feeds(tmp_path: Path, log: Log) -> None:
    """What lies in files is read again for every pass and meets its own activations."""
    for i, feed in enumerate(of_any_size(3)):
        np.savez(tmp_path / f"{i:03}.npz", x=feed["x"])
    narrowed(recurrent(), tmp_path)
    assert_equal(log)
