"""Widths that are multiples of what was asked for, whatever makes them narrower."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import random_convnets
import random_nets
from convnets import network as convnet
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mlps import Net, mlp, normal, plant_copies
from onnx import helper

from onnx_condense import condense
from onnx_condense.cost import count_macs
from onnx_condense.errors import BudgetError, CalibrationError, ModelError, UsageError
from onnx_condense.network.model import Network
from onnx_condense.options.goal import Goal
from onnx_condense.proving.proof import Prover
from onnx_condense.report.data import Latency
from onnx_condense.search.autogrid import measured_grid
from onnx_condense.search.grid import WELL, Grid, kind_of
from onnx_condense.spaces import find_spaces

if TYPE_CHECKING:
    from collections.abc import Callable

    from onnx_condense.outcome import Condensed


X = normal(400, 3)


def run(model: Any, **options: Any) -> Condensed:
    return condense(model, **{"threads": 1, **options})


def widths(found: Condensed) -> list[tuple[int, int]]:
    return [(s.before, s.after) for s in found.report.spaces]


def fits(found: Condensed, number: int) -> bool:
    """Whether all narrowed widths are multiples, of spaces that are at least so wide."""
    return all(after % number == 0 for before, after in widths(found) if number <= before != after)


@pytest.mark.parametrize("number", [1, 5, 7])
@pytest.mark.parametrize("options", [{"tolerance": 0.05}, {"keep": 0.5}, {"method": "drop", "keep": 0.6}])
def test_fitted_widths_are_multiples(number: int, options: dict[str, Any]) -> None:
    dense = plant_copies(mlp((3, 24, 18, 6, 2)), 0, 4)
    found = run(dense, calibration=X, multiple_of=number, **options)
    assert found.report.status == "condensed"
    assert fits(found, number)


def test_a_layer_that_is_too_narrow_for_it_may_have_any_width() -> None:
    dense = mlp((3, 24, 6, 2))
    found = run(dense, calibration=X, keep=0.2, multiple_of=8)
    assert widths(found)[0] == (24, 8)
    assert widths(found)[1][1] < 6


def test_a_number_alone_may_ask_for_more_than_there_is() -> None:
    with pytest.raises(BudgetError, match="smallest share is"):
        run(mlp((3, 24, 16, 2)), calibration=X, keep=0.05, multiple_of=12)


@pytest.mark.parametrize(("extra", "number", "left"), [(9, 8, 16), (3, 8, 20), (4, 8, 16), (3, 1, 17), (3, 20, 20)])
@pytest.mark.parametrize("calibrated", [True, False])
def test_exact_widths_are_multiples(extra: int, number: int, left: int, *, calibrated: bool) -> None:
    """20 channels, some of them copies: those that are too few for the next multiple stay."""
    dense = plant_copies(mlp((3, 20 - extra, 8, 2)), 0, extra)
    options: dict[str, Any] = {"calibration": X, "tolerance": 0.0} if calibrated else {}
    found = run(dense, multiple_of=number, **options)
    assert widths(found)[0] == (20, left)


def test_a_floor_and_a_multiple_hold_both() -> None:
    found = run(mlp((3, 24, 20, 2)), calibration=X, keep=0.5, multiple_of=4, min_width=9)
    assert all(after % 4 == 0 and after >= 12 for _, after in widths(found)[:2])


def test_one_frees_convolutions_from_what_runs_well() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((11, 3, 3, 3))
    w = np.concatenate([rows, np.einsum("ij,jklm->iklm", rng.standard_normal((13, 11)) / 3, rows)])
    between = [helper.make_node("Identity", ["z"], ["h"])]
    dense = convnet(between, reader={}, shape=["N", 3, 8, 8], w=w, b=np.zeros(24))
    x = rng.standard_normal((200, 3, 8, 8)).astype(np.float32)
    left = {n: widths(run(dense, calibration=x, tolerance=1e-3, multiple_of=n))[0][1] for n in (None, 1, 12, 24)}
    assert left == {None: 16, 1: 11, 12: 12, 24: 24}


def test_what_ops_like_is_no_must() -> None:
    network = Network(convnet([helper.make_node("Relu", ["z"], ["h"])], reader={}, w=np.ones((20, 3, 3, 3))))
    view = find_spaces(network)
    assert WELL.multiple(network, view, view.spaces[0]) == 8
    assert WELL.least(3, 8, 20) == 3
    assert [Grid(8).least(least, 8, 20) for least in (1, 8, 9, 17)] == [8, 8, 16, 20]


@example(seed=32, number=2, calibrated=False)  # what is spared in one space costs another one a channel
@given(seed=st.integers(0, 10**6), number=st.integers(1, 4), calibrated=st.booleans())
@pytest.mark.parametrize("make", [random_nets.random_network, random_convnets.random_network])
@settings(max_examples=25, deadline=None)
def test_so_are_those_of_random_networks(
    make: Callable[[int], onnx.ModelProto], seed: int, number: int, *, calibrated: bool
) -> None:
    dense = make(seed)
    shape = [d.dim_value for d in dense.graph.input[0].type.tensor_type.shape.dim]
    feeds = [{"x": normal(*shape, seed=i)} for i in range(40)]
    options: dict[str, Any] = {"calibration": feeds, "tolerance": 0.3} if calibrated else {}
    try:
        found = run(dense, multiple_of=number, **options)
    except (CalibrationError, ModelError):
        return  # drawn networks may answer with infinity, or depend on the batch
    assert fits(found, number)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"multiple_of": 0}, "at least 1"),
        ({"multiple_of": "some"}, "at least 1"),
        ({"multiple_of": "auto"}, "needs --calibration"),
        ({"multiple_of": 8, "calibration": X, "method": "condensation", "threshold": 0.9}, "exclude each other"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        run(mlp(), **options)


# ---- measured ----


class Blocks:
    """Stands in for the timing: kernels work in blocks of so many channels, whatever the op."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.asked: list[tuple[int, ...]] = []
        self.spread = 1.0

    def ms(self, model: onnx.ModelProto) -> float:
        """Of one pass: the multiply-accumulates of full blocks."""
        proto = onnx.ModelProto()
        proto.CopyFrom(model)
        for tensor in proto.graph.initializer:
            for axis, size in enumerate(tensor.dims):
                tensor.dims[axis] = math.ceil(size / self.size) * self.size if size > 3 else size
        del proto.graph.value_info[:]
        return float(count_macs(Network(proto)))

    def compare(self, wide: onnx.ModelProto, narrow: onnx.ModelProto) -> list[Latency]:
        """Of two networks."""
        self.asked.append(tuple(t.dims[0] for t in wide.graph.initializer if len(t.dims) == 4))
        ratio = self.ms(wide) / self.ms(narrow)
        return [
            Latency("CPU", 1, batch, 1.0, 1 / ratio, ratio, (ratio / self.spread, ratio * self.spread))
            for batch in (1, 64)
        ]


def wide_net() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    net = Net({"x": ["N", 3, 6, 6]})
    h = net.node("Relu", net.node("Conv", "x", net.weight("a", rng.standard_normal((128, 3, 3, 3)))))
    h = net.node("Relu", net.node("Conv", h, net.weight("b", rng.standard_normal((128, 128, 3, 3)))))
    h = net.node("Flatten", net.node("GlobalAveragePool", h))
    h = net.node("Relu", net.node("MatMul", h, net.weight("c", rng.standard_normal((128, 128)))))
    h = net.node("Relu", net.node("MatMul", h, net.weight("d", rng.standard_normal((128, 128)))))
    net.node("MatMul", h, net.weight("e", rng.standard_normal((128, 2))), out="y")
    return net.model({"y": ["N", 2]})


@pytest.mark.parametrize(("size", "found"), [(1, 1), (4, 4), (8, 8), (16, 16), (32, 32), (64, 32)])
def test_the_coarsest_grid_is_taken_whose_finer_widths_are_no_faster(size: int, found: int) -> None:
    network = Network(wide_net())
    view = find_spaces(network)
    grid, table = measured_grid(network, view, Goal(None, None, allow_slower=True, seed=0), Blocks(size).compare)
    kinds = {kind_of(network, view, s) for s in view.spaces if s.reducible}
    assert kinds == {("Conv",), ("Conv", "MatMul"), ("MatMul",)}
    # The head takes next to none of the work: it keeps what ops like.
    kinds.remove(("MatMul",))
    assert grid.measured == dict.fromkeys(kinds, found)
    assert not grid.strict
    assert [grid.multiple(network, view, s) for s in view.spaces if s.reducible] == [found, found, 1, 1]
    assert all(row.finer < row.multiple for row in table)
    assert {row.ops for row in table} == {"Conv", "Conv+MatMul"}
    last = {row.ops: row.pays for row in table}
    assert set(last.values()) == {size >= 32}


def test_widths_are_tried_that_are_no_multiples_of_more() -> None:
    network = Network(wide_net())
    blocks = Blocks(32)
    measured_grid(network, find_spaces(network), Goal(None, None, allow_slower=True, seed=0), blocks.compare)
    assert blocks.asked[:4] == [(92, 128), (88, 128), (80, 128), (96, 128)]


def test_narrow_layers_are_not_tried() -> None:
    network = Network(mlp((3, 5, 4, 2)))
    grid, table = measured_grid(
        network, find_spaces(network), Goal(None, None, allow_slower=True, seed=0), Blocks(8).compare
    )
    assert table == []
    assert grid.measured == {}


def test_what_is_not_for_sure_is_left_to_what_ops_like() -> None:
    network = Network(wide_net())
    view, blocks = find_spaces(network), Blocks(32)
    blocks.spread = 1.5
    grid, table = measured_grid(network, view, Goal(None, None, allow_slower=True, seed=0), blocks.compare)
    assert [row.pays for row in table] == [False, False]
    assert grid.measured == {("Conv",): 8, ("Conv", "MatMul"): 8}


def test_what_was_measured_decides_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = Blocks(16)
    monkeypatch.setattr(Prover, "beside", lambda _, wide, narrow, __: blocks.compare(wide, narrow))
    x = normal(150, 3, 6, 6)
    found = run(wide_net(), calibration=x, tolerance=0.3, multiple_of="auto")
    assert found.report.status == "condensed"
    assert fits(found, 16)
    assert {(row.multiple, row.pays) for row in found.report.widths} == {(4, True), (8, True), (16, True), (32, False)}
    monkeypatch.setattr(Prover, "beside", lambda _, wide, narrow, __: Blocks(1).compare(wide, narrow))
    assert not fits(run(wide_net(), calibration=x, tolerance=0.3, multiple_of="auto"), 8)
