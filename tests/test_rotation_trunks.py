"""Which spaces are linear trunks, and that mixing their channels gives what the plan says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import trunk_nets
from mlps import Array, Net, weight_of
from onnx import helper
from trunk_nets import INPUTS, RANK, WIDTH, Planted, convolutions, gemms, residual, samples

from onnx_condense import condense
from onnx_condense.data import input_specs
from onnx_condense.data import load as load_samples
from onnx_condense.evidence.trunks import linear_trunks, places_of
from onnx_condense.fit import turning
from onnx_condense.fit.fitting import Fitter
from onnx_condense.network.model import Network, load
from onnx_condense.plan import Plan
from onnx_condense.proving.verify import check_graph, check_numbers
from onnx_condense.runtime import Runtime, run
from onnx_condense.spaces import find_spaces

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RUNTIME = Runtime(threads=1)


def trunks(model: onnx.ModelProto) -> frozenset[str]:
    network = Network(model)
    return linear_trunks(network, find_spaces(network))


def fitter_of(model: onnx.ModelProto, count: int = trunk_nets.ROWS) -> Fitter:
    network = Network(model)
    source = load_samples(samples(model, count), input_specs(model.graph))
    rows = np.arange(count)
    return Fitter(network, find_spaces(network), source, rows[::2], rows[1::2], RUNTIME)


def planned(model: onnx.ModelProto, width: int, *, sequential: bool = True) -> tuple[Plan, onnx.ModelProto]:
    """A plan with the first space narrowed, checked against the dense network at full width."""
    fitter = fitter_of(model)
    widths = [width, *(s.width for s in fitter.spaces[1:])]
    plan, made = fitter.plan(widths, sequential=sequential)
    check_graph(model, made)
    check_numbers(fitter.network, fitter.view, plan, made, [samples(model, 32)], RUNTIME)
    return plan, made


def error(model: onnx.ModelProto, made: onnx.ModelProto) -> float:
    """Largest relative RMS difference of an output, optimizations off."""
    feed = samples(model, 64)
    pairs = zip(*(run(RUNTIME.session(m, optimize=False), feed) for m in (model, made)), strict=True)
    wide = [(a.astype(np.float64), b.astype(np.float64)) for a, b in pairs]
    return max(float(np.linalg.norm(a - b) / np.linalg.norm(a - a.mean(0))) for a, b in wide)


# ---- what is a trunk ----


def passes(op: str, **attributes: Any) -> Callable[[Planted, str], str]:
    return lambda planted, t: planted.net.node(op, t, **attributes)


def with_constant(op: str, value: Array, first: bool = False) -> Callable[[Planted, str], str]:
    def put(planted: Planted, t: str) -> str:
        k = planted.stored("k", value)
        return planted.net.node(op, *((k, t) if first else (t, k)))

    return put


def transposed(planted: Planted, t: str) -> str:
    return planted.net.node("Transpose", planted.net.node("Transpose", t, perm=[1, 0]), perm=[1, 0])


def squeezed(planted: Planted, t: str) -> str:
    axes = planted.net.weight("axes", np.array([2, 3]))
    return planted.net.node("Squeeze", planted.net.node("Unsqueeze", t, axes), axes)


def averaged(planted: Planted, t: str) -> str:
    """Zeros beside it, and the mean over these."""
    net = planted.net
    wide = net.node("Unsqueeze", t, net.weight("axes", np.array([2])))
    wide = net.node("Pad", wide, net.weight("pads", np.array([0, 0, 1, 0, 0, 1])))
    return net.node("ReduceMean", wide, axes=[2], keepdims=0)


def swapped(planted: Planted, t: str) -> str:
    net = planted.net
    halves = [
        net.node("Slice", t, *(planted.stored("at", np.array([n])) for n in at)) for at in ((32, 64, 1), (0, 32, 1))
    ]
    return net.node("Concat", *halves, axis=1)


def doubled(planted: Planted, t: str) -> str:
    return planted.net.node("Add", t, t)


def second_writer(planted: Planted, t: str) -> str:
    return planted.net.node("Sub", planted.writes(), t)


def reshaped(planted: Planted, t: str) -> str:
    """By a shape that is put together from the batch size, which the graph reads."""
    net = planted.net
    batch = net.node("Gather", net.node("Shape", t), net.weight("zero", np.array([0])), axis=0)
    return net.node("Reshape", t, net.node("Concat", batch, net.weight("rest", np.array([-1])), axis=0))


VECTOR = np.linspace(0.5, 2, WIDTH)

LINEAR: dict[str, Callable[[Planted, str], str]] = {
    "identity": passes("Identity"),
    "dropout": passes("Dropout"),
    "negated": passes("Neg"),
    "transposed": transposed,
    "squeezed": squeezed,
    "averaged, padded": averaged,
    "a sum with itself": doubled,
    "a second writer": second_writer,
    "a bias of its own": with_constant("Add", VECTOR),
    "a row of biases": with_constant("Add", VECTOR[None]),
    "taken from biases": with_constant("Sub", VECTOR, first=True),
    "one factor": with_constant("Mul", np.array(1.7)),
    "one divisor": with_constant("Div", np.array([[0.3]])),
    "reshaped": reshaped,
}
BROKEN: dict[str, Callable[[Planted, str], str]] = {
    "activation": passes("Relu"),
    "odd function": passes("Tanh"),
    "cast": passes("Cast", to=1),
    "factors": with_constant("Mul", VECTOR),
    "divisors": with_constant("Div", VECTOR),
    "number over it": with_constant("Div", np.array(2.0), first=True),
    "number added to all": with_constant("Add", np.array(0.5)),
    "two halves swapped": swapped,
    "shuffled": lambda p, t: p.net.node("Gather", t, p.stored("order", np.arange(WIDTH)[::-1].copy()), axis=1),
    "squared": lambda p, t: p.net.node("Mul", t, t),
    "softmax": passes("Softmax", axis=1),
    "largest": lambda p, t: p.net.node("Max", t, t),
}


@pytest.mark.parametrize("name", LINEAR)
def test_what_is_linear_alike_in_all_channels_makes_a_trunk(name: str) -> None:
    model = gemms(LINEAR[name])
    assert trunks(model) == {"gemm_0"}
    plan, made = planned(model, RANK + 2)
    assert [len(r.into) for r in plan.rotations] == [RANK + 2]
    # Biases of their own only move the mean.
    assert error(model, made) < 1e-5


@pytest.mark.parametrize("name", BROKEN)
def test_what_tells_channels_apart_makes_none(name: str) -> None:
    assert not trunks(gemms(BROKEN[name]))


@pytest.mark.parametrize("name", ["activation", "factors", "number added to all"])
def test_without_a_trunk_nothing_changes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = gemms(BROKEN[name])
    plan, made = planned(model, 20)
    assert not plan.rotations
    monkeypatch.setattr(turning, "linear_trunks", lambda *_: frozenset())
    assert planned(model, 20)[1].SerializeToString() == made.SerializeToString()


def test_pinned_channels_are_not_mixed() -> None:
    planted = Planted(Net({"x": ["N", INPUTS]}))
    trunk = planted.writes()
    planted.reads(trunk, "y")
    assert not trunks(planted.net.model({"y": ["N", 20], trunk: ["N", WIDTH]}))


def test_what_a_branch_reads_is_not_mixed() -> None:
    planted = Planted(Net({"x": ["N", INPUTS]}))
    trunk = planted.writes()
    planted.reads(trunk, "y")
    inner = helper.make_graph(
        [helper.make_node("Identity", [trunk], ["inner"])],
        "branch",
        [],
        [helper.make_tensor_value_info("inner", onnx.TensorProto.FLOAT, None)],
    )
    condition = planted.net.weight("yes", np.array(1, np.int64))
    planted.net.node("If", planted.net.node("Cast", condition, to=9), out="z", then_branch=inner, else_branch=inner)
    assert not trunks(planted.net.model({"y": ["N", 20], "z": ["N", WIDTH]}))


def test_batch_normalization_and_filters_make_none() -> None:
    def model(between: Callable[[Planted, str], str]) -> onnx.ModelProto:
        planted = Planted(Net({"x": ["N", 3, 6, 6]}))
        t = planted.net.node("Conv", "x", planted.stored("w", planted.rows(3).T.reshape(WIDTH, 3, 1, 1)))
        V = planted.stored("v", planted.rng.standard_normal((4, WIDTH, 1, 1)))
        planted.net.node("Conv", between(planted, t), V, out="y")
        return planted.net.model({"y": ["N", 4, "H", "W"]})

    def norm(planted: Planted, t: str) -> str:
        return planted.net.node("BatchNormalization", t, *(planted.stored("n", VECTOR) for _ in range(4)))

    def depthwise(planted: Planted, t: str) -> str:
        return planted.net.node("Conv", t, planted.stored("d", np.ones((WIDTH, 1, 1, 1))), group=WIDTH)

    assert trunks(model(passes("AveragePool", kernel_shape=[2, 2], pads=[1, 1, 1, 1], count_include_pad=1)))
    assert not trunks(model(passes("MaxPool", kernel_shape=[2, 2])))
    assert not trunks(model(norm))
    assert not trunks(model(depthwise))


def test_places_lie_in_blocks_or_copies() -> None:
    channels = np.array([5, 7, 9])
    np.testing.assert_array_equal(places_of(np.array([5, 5, 7, 7, 9, 9]), channels), [[0, 1], [2, 3], [4, 5]])
    np.testing.assert_array_equal(places_of(np.array([5, 7, 9, 5, 7, 9]), channels), [[0, 3], [1, 4], [2, 5]])
    for labels in ([7, 5, 9], [5, 7], [5, 7, 9, 9], [5, 7, 9, 7, 5, 9]):
        assert places_of(np.array(labels), channels) is None


# ---- planted ranks ----

EPS = {np.float32: 2.0**-23, np.float16: 2.0**-10}
PLANTED: dict[str, Callable[[], onnx.ModelProto]] = {
    "gemm": gemms,
    "convolution": lambda: convolutions(writer=3),
    "padded": lambda: convolutions(3, 3),
    "residual": residual,
    "half precision": lambda: gemms(dtype=np.float16),
    "half precision, convolutions": lambda: convolutions(writer=3, dtype=np.float16),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_rank_is_found(name: str) -> None:
    model = PLANTED[name]()
    eps = EPS[np.float16 if "half" in name else np.float32]
    found = condense(model, calibration=samples(model), tolerance=max(1e-4, 4 * eps), allow_slower=True)
    assert [len(r.into) for p in found.plan for r in p.rotations] == [RANK]
    # Rounding of some 64 terms per sum, in three sums one after the other.
    assert error(model, found.model) < 3 * WIDTH**0.5 * eps
    assert found.report.spaces[0].after == RANK


@pytest.mark.parametrize(
    ("name", "sequential"), [*((name, True) for name in PLANTED), ("gemm", False), ("residual", False)]
)
def test_below_the_rank_mixing_beats_picking(name: str, sequential: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = PLANTED[name]()
    _, made = planned(model, RANK - 2, sequential=sequential)
    monkeypatch.setattr(turning, "linear_trunks", lambda *_: frozenset())
    plan, picked = planned(model, RANK - 2, sequential=sequential)
    assert not plan.rotations
    assert error(model, made) < 0.95 * error(model, picked)


def test_picking_stays_where_mixing_gains_nothing() -> None:
    """Channels that are independent, and heard alike: every basis is as good as theirs."""
    rng = np.random.default_rng(0)
    net = Net({"x": ["N", WIDTH]})
    t = net.node("Gemm", "x", net.weight("w", np.diag(0.5 ** np.arange(WIDTH))))
    net.node("Gemm", t, net.weight("v", np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0]), out="y")
    model = net.model({"y": ["N", WIDTH]})
    assert trunks(model)
    assert not fitter_of(model, 4000).plan([20], sequential=False)[0].rotations


def test_a_flattened_trunk_is_mixed_position_by_position() -> None:
    planted = Planted(Net({"x": ["N", 3, 4, 4]}))
    net = planted.net
    t = net.node("Conv", "x", planted.stored("w", planted.rows(3).T.reshape(WIDTH, 3, 1, 1)))
    V = planted.rng.standard_normal((WIDTH * 16, 10)) / 32
    net.node("Gemm", net.node("Flatten", t), planted.stored("v", V), out="y")
    model = net.model({"y": ["N", 10]})
    plan, made = planned(model, 3)
    assert plan.rotations
    assert weight_of(made, "v2").shape == (3 * 16, 10)
    assert error(model, made) < 1e-5


# ---- weights that are used elsewhere too ----


def test_a_writer_used_elsewhere_is_cloned() -> None:
    planted = Planted(Net({"x": ["N", INPUTS]}))
    trunk = planted.writes()
    planted.net.node("Gemm", "x", "w1", "b2", out="z")
    planted.reads(trunk, "y")
    model = planted.net.model({"y": ["N", 20], "z": ["N", WIDTH]})
    plan, made = planned(model, RANK)
    assert plan.rotations
    np.testing.assert_array_equal(weight_of(made, "w1"), weight_of(model, "w1"))
    assert error(model, made) < 1e-5


def test_a_writer_that_a_branch_uses_is_cloned() -> None:
    planted = Planted(Net({"x": ["N", INPUTS]}))
    planted.reads(planted.writes(), "y")
    inner = helper.make_graph(
        [helper.make_node("Identity", ["b2"], ["inner"])],
        "branch",
        [],
        [helper.make_tensor_value_info("inner", onnx.TensorProto.FLOAT, [WIDTH])],
    )
    condition = planted.net.weight("yes", np.array(1, np.int64))
    planted.net.node("If", planted.net.node("Cast", condition, to=9), out="z", then_branch=inner, else_branch=inner)
    model = planted.net.model({"y": ["N", 20], "z": [WIDTH]})
    plan, made = planned(model, RANK)
    assert plan.rotations
    np.testing.assert_array_equal(weight_of(made, "b2"), weight_of(model, "b2"))
    assert error(model, made) < 1e-5


def test_writers_that_share_a_weight_go_on_sharing() -> None:
    planted = Planted(Net({"x": ["N", INPUTS]}))
    net = planted.net
    first = planted.writes()
    second = net.node("Gemm", net.node("Tanh", "x"), "w1", "b2")
    planted.reads(net.node("Add", first, second), "y")
    model = net.model({"y": ["N", 20]})
    plan, made = planned(model, RANK)
    assert plan.rotations
    assert weight_of(made, "w1").shape == (INPUTS, RANK)
    assert {n.input[1] for n in made.graph.node if n.op_type == "Gemm"} == {"w1", "v3"}
    assert error(model, made) < 1e-5


def test_a_writer_that_is_refitted_itself_is_mixed_with_its_offset() -> None:
    """Behind a hidden layer that is narrowed too, with a bias that an Add behind the product holds."""
    planted = Planted(Net({"x": ["N", INPUTS]}))
    net, rng = planted.net, planted.rng
    weights = planted.stored("h", rng.standard_normal((INPUTS, 30))), planted.stored("hb", rng.standard_normal(30))
    hidden = net.node("Relu", net.node("Gemm", "x", *weights))
    product = net.node("MatMul", hidden, planted.stored("w", planted.rows(30)))
    planted.reads(net.node("Add", product, planted.stored("b", planted.bias())), "y")
    model = net.model({"y": ["N", 20]})
    fitter, errors = fitter_of(model), []
    for sequential in (False, True):
        plan, made = fitter.plan([16, RANK - 2], sequential=sequential)
        assert [len(r.into) for r in plan.rotations] == [RANK - 2]
        assert [u.use for u in plan.updates] == [1, 2]
        check_numbers(fitter.network, fitter.view, plan, made, [samples(model, 32)], RUNTIME)
        errors.append(error(model, made))
    # Towards dense targets, on what the narrower prefix delivers: this is where joint moments are mixed on one side.
    assert errors[1] < errors[0]


# ---- files ----


def test_a_mixed_network_is_saved_as_it_is(tmp_path: Path) -> None:
    model = residual()
    found = condense(model, calibration=samples(model), tolerance=1e-4, allow_slower=True)
    assert found.plan[-1].rotations
    found.save(tmp_path / "out.onnx")
    feed = samples(model, 8)
    models = load(tmp_path / "out.onnx").proto, found.model
    stored, made = (run(RUNTIME.session(m, optimize=False), feed) for m in models)
    for a, b in zip(stored, made, strict=True):
        np.testing.assert_array_equal(a, b)
