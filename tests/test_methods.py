"""The methods to compare with, through condense(): goals, gates, what is refused and what is told."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from builders import ACTIVATIONS, Planting, base_layers, plant
from builders import mlp as written
from endtoend import FakeTimer, relative, timer
from mlps import Net, mlp, normal
from onnx import numpy_helper
from planted_rows import noisy
from typer.testing import CliRunner

from onnx_condense import condense
from onnx_condense.cli import app
from onnx_condense.cost import count_parameters
from onnx_condense.data import input_specs, load
from onnx_condense.errors import BudgetError, UsageError
from onnx_condense.fit.fitting import Fitter
from onnx_condense.fit.methods import orders_of
from onnx_condense.network.model import Network
from onnx_condense.options.goal import METHODS, Goal, thresholds_of
from onnx_condense.report import terminal
from onnx_condense.report.data import Report
from onnx_condense.runtime import Runtime
from onnx_condense.select.cosine import agglomerated, grouped, representatives
from onnx_condense.select.magnitude import by_norm
from onnx_condense.spaces import find_spaces

if TYPE_CHECKING:
    from typer.testing import Result

    from onnx_condense.outcome import Condensed

__all__ = ["FakeTimer", "timer"]

MODELS = Path(__file__).parent.parent / "models"
OTHERS = [m for m in METHODS if m != "fit"]


def parallel() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    layers = plant(rng, base_layers(rng, (9, 6)), Planting(copies=3), ACTIVATIONS["Relu"])
    return written(layers, "Relu")


def run(model: Any, **options: Any) -> Condensed:
    return condense(model, **{"threads": 1, "calibration": normal(400, 7), **options})


def after(found: Condensed) -> list[int]:
    return [s.after for s in found.report.spaces]


# ---- by threshold ----


@pytest.mark.parametrize("method", ["condensation", "condensation-refit"])
def test_parallel_neurons_merge_to_rounding(method: str) -> None:
    model = parallel()
    found = run(model, method=method, threshold=0.999)
    assert after(found) == [9, 6, 4]
    assert found.report.error is not None
    assert found.report.error.tolerance is None
    # A refit is pulled by its ridge, if only a little.
    assert found.report.error.value < (1e-5 if method == "condensation" else 0.02)
    assert relative(found.model, model, normal(500, 7, seed=8)) < (1e-5 if method == "condensation" else 0.02)
    assert [p.kind for p in found.plan] == ["merged" if method == "condensation" else "fitted"]


def test_the_same_threshold_picks_the_same_channels_with_and_without_a_refit() -> None:
    model, x = noisy(0.97), normal(400, 39)
    keeps = [
        [s.keep.tolist() for s in run(model, calibration=x, method=m, threshold=0.95).plan[0].selections]
        for m in ("condensation", "condensation-refit")
    ]
    assert keeps[0] == keeps[1] == [list(range(8, 16))]


def test_nothing_alike_is_unchanged_and_says_so() -> None:
    found = run(noisy(0.97), calibration=normal(400, 39), method="condensation", threshold=0.99)
    assert found.report.status == "unchanged"
    assert found.report.reason is not None
    assert found.report.reason.code == "threshold"
    assert found.report.method == "condensation"


def test_a_tolerance_beside_a_threshold_is_a_gate() -> None:
    options: dict[str, Any] = {"calibration": normal(400, 39), "method": "condensation", "threshold": 0.95}
    bare = run(noisy(0.97), **options).report.error
    assert bare is not None
    assert 0.05 < bare.value < 0.5
    assert run(noisy(0.97), **options, tolerance=bare.value + 1e-6).report.status == "condensed"
    with pytest.raises(BudgetError, match=f"an error of {bare.value:.3g}, above --tolerance 0.01") as error:
        run(noisy(0.97), **options, tolerance=0.01)
    assert (error.value.exit_code, error.value.code) == (3, "threshold")


# ---- by tolerance and size ----


@pytest.mark.parametrize("method", OTHERS)
def test_every_method_meets_a_tolerance(method: str) -> None:
    dense = mlp(activation="Relu")
    found = condense(dense, calibration=normal(400, 3), tolerance=0.3, method=method, threads=1)
    assert found.report.status == "condensed"
    assert found.report.error is not None
    assert found.report.error.value <= 0.3 == found.report.error.tolerance
    assert count_parameters(found.model) < 0.95 * count_parameters(dense)
    assert relative(found.model, dense, normal(2000, 3, seed=9)) < 0.45
    assert found.report.method == method


@pytest.mark.parametrize("method", OTHERS)
def test_every_method_meets_a_size(method: str) -> None:
    dense = mlp()
    found = condense(dense, calibration=normal(400, 3), keep=0.5, method=method, threads=1)
    assert count_parameters(found.model) <= 0.5 * count_parameters(dense)
    assert len(found.plan) == 1


def test_the_search_merges_what_is_parallel_first() -> None:
    found = run(parallel(), method="condensation", tolerance=0.001)
    assert after(found) == [9, 6, 4]


def test_channels_that_go_for_nothing_do_not_stop_the_search() -> None:
    """What no reader reads costs nothing at all, which tells the search no scale."""
    dense = mlp((6, 20, 12, 3), activation="Relu", seed=1)
    weights = {t.name: numpy_helper.to_array(t).copy() for t in dense.graph.initializer}
    weights["W0"][:, 3:9], weights["b0"][3:9] = 0, 0
    for tensor in dense.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(weights[tensor.name], tensor.name))
    found = condense(dense, calibration=normal(300, 6), tolerance=0.3, method="drop", threads=1)
    assert after(found)[0] <= 14


def test_a_drop_is_not_compensated() -> None:
    """Half of the neurons are copies: dropping loses their share, a merge nothing."""
    errors = {}
    for method in OTHERS:
        report = run(parallel(), method=method, keep=0.6).report
        assert report.error is not None
        errors[method] = report.error.value
    assert errors["condensation"] < 1e-5 < errors["drop"]
    assert errors["drop-refit"] < 0.1 * errors["drop"]


def test_on_the_ignition_network_a_refit_beats_a_bare_drop() -> None:
    with np.load(MODELS / "ignition.npz") as stored:
        states = {name: value[::8] for name, value in stored.items()}
    errors = {}
    for method in ("drop", "drop-refit", "fit"):
        found = condense(MODELS / "ignition.onnx", calibration=states, keep=0.4, method=method, threads=1)
        assert found.report.error is not None
        errors[method] = found.report.error.value
    assert errors["fit"] < errors["drop-refit"] < 0.05 * errors["drop"]


def test_a_refit_takes_the_order_that_it_is_given() -> None:
    network = Network(mlp())
    view, x = find_spaces(network), normal(200, 3)
    orders = orders_of(network, view, Goal(0.1, None, allow_slower=True, seed=0, method="drop"))
    samples = load(x, input_specs(network.proto.graph))
    rows = np.arange(200)
    fitter = Fitter(network, view, samples, rows[:100], rows[100:], Runtime(threads=1), orders.eliminations)
    for mine, given in zip(fitter.eliminations, orders.eliminations, strict=True):
        assert mine.order.tolist() == given.order.tolist()
        assert len(mine.cost) == len(given.cost)
        # What it costs is what a refit leaves.
        assert mine.cost[len(mine.cost) // 2] < 0.5 * given.cost[len(given.cost) // 2]


# ---- what is refused ----


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "condense"}, "--method 'condense': did you mean condensation"),
        ({"method": "xyz"}, "there are fit, condensation, condensation-refit, drop, drop-refit"),
        ({"method": "drop", "calibration": None}, "--method drop needs --calibration"),
        ({"method": "drop", "tolerance": 0.0}, "--method drop and --tolerance 0 exclude each other"),
        ({"method": "drop", "augment": 1}, "--augment and --method drop exclude each other"),
        ({"threshold": 0.9}, "--threshold needs --method condensation or condensation-refit"),
        ({"method": "drop", "threshold": 0.9}, "--threshold needs --method condensation"),
        ({"method": "condensation", "threshold": 0.9, "keep": 0.5}, "--threshold and --keep exclude each other"),
        ({"method": "condensation", "threshold": {}}, "names no pattern"),
        ({"method": "condensation", "threshold": 1.1}, "--threshold 1.1: give a cosine above 0, at most 1"),
        ({"method": "condensation", "threshold": {"a": 0.0}}, "--threshold a=0.0: give a cosine"),
        ({"method": "condensation", "threshold": float("nan")}, "--threshold nan: give a cosine"),
        ({"method": "condensation", "threshold": {"w9": 0.9}}, "'w9' matches no node that writes channels"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        run(parallel(), **options)


def test_a_threshold_may_be_any_real_number() -> None:
    found = run(parallel(), method="condensation", threshold=np.float32(0.999))
    assert after(found) == [9, 6, 4]
    json.dumps(found.report.as_dict())


@pytest.mark.parametrize("threshold", ["0.9", {"*": "0.9"}, [0.9], {"*": None}])
def test_a_threshold_that_is_no_number_is_refused(threshold: Any) -> None:
    with pytest.raises(UsageError, match=r"give a cosine above 0, at most 1"):
        run(parallel(), method="condensation", threshold=threshold)


def test_thresholds_as_the_command_gets_them() -> None:
    assert thresholds_of([]) is None
    assert thresholds_of(["0.9"]) == {"*": 0.9}
    found = thresholds_of(["a=0.5", "0.9", "x=y=0.7", "a=0.6"])
    assert found == {"*": 0.9, "x=y": 0.7, "a": 0.6}
    assert list(found) == ["*", "x=y", "a"]
    for text in ("", "a=", "=", "high", "0,9"):
        with pytest.raises(UsageError, match="give a number, or GLOB=NUMBER"):
            thresholds_of([text])


# ---- what is told ----


def test_the_report_names_the_method() -> None:
    found = run(parallel(), method="condensation", threshold={"*": 0.999, "z1": 0.99}).report
    assert (found.method, found.threshold) == ("condensation", {"*": 0.999, "z1": 0.99})
    assert found.as_dict()["threshold"] == {"*": 0.999, "z1": 0.99}
    text = terminal.page(found, width=100, color=False)
    assert "method      condensation  (threshold 0.999, z1=0.99)" in text


def test_nothing_is_said_of_our_own() -> None:
    assert "method" not in terminal.page(Report("condensed", dry_run=False), width=80, color=False)
    assert "method  drop\n" in terminal.page(Report("condensed", dry_run=False, method="drop"), width=80, color=False)


# ---- selections ----


COSINE = np.array(
    [
        [1.0, 0.9, 0.5, 0.0],
        [0.9, 1.0, 0.8, 0.0],
        [0.5, 0.8, 1.0, -0.9],
        [0.0, 0.0, -0.9, 1.0],
    ]
)
FREE = np.zeros(4, bool)
EVEN = np.full(4, 0.25)


def test_members_are_alike_to_their_representative_not_to_one_another() -> None:
    """2 is like 1, but 1 went to 0; only what stays represents."""
    found = grouped(COSINE, np.array([3.0, 2.0, 1.0, 0.5]), FREE, EVEN, 0.8)
    assert found.order.tolist() == [1]
    np.testing.assert_allclose(found.cost, [0, 0.25 * (1 - 0.81)])
    found = grouped(COSINE, np.array([2.0, 3.0, 1.0, 0.5]), FREE, EVEN, 0.8)
    assert found.order.tolist() == [0, 2]
    np.testing.assert_allclose(found.cost, [0, 0.25 * (1 - 0.81), 0.25 * (1 - 0.81 + 1 - 0.64)])


def test_pinned_channels_represent_first_and_never_go() -> None:
    pinned = np.array([False, True, False, True])
    assert grouped(COSINE, np.array([9.0, 1.0, 9.0, 1.0]), pinned, EVEN, 0.7).order.tolist() == [0, 2]
    assert agglomerated(COSINE, np.array([9.0, 1.0, 9.0, 1.0]), pinned, EVEN).order.tolist() == [0]


def test_the_most_alike_go_first_and_the_smaller_of_two() -> None:
    found = agglomerated(COSINE, np.array([1.0, 2.0, 1.0, 3.0]), FREE, EVEN)
    assert found.order.tolist() == [0, 2, 1]
    np.testing.assert_allclose(found.cost, 0.25 * np.array([0, 1 - 0.81, 2 - 0.81 - 0.64, 3.0]))


def test_costs_never_fall() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((30, 6))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    found = agglomerated(rows @ rows.T, rng.uniform(1, 2, 30), np.zeros(30, bool), np.full(30, 1 / 30))
    assert sorted(found.order.tolist()) == sorted(set(found.order.tolist()))
    assert len(found.order) == 29
    assert (np.diff(found.cost) >= 0).all()


@pytest.mark.parametrize("seed", range(8))
def test_merging_goes_step_by_step_to_the_most_alike_that_is_left(seed: int) -> None:
    """Against the same in plain words; some can't stand for others, some have to stay."""
    rng = np.random.default_rng(seed)
    count = 12
    cosine = np.where(rng.random((count, count)) < 0.2, -1.0, rng.uniform(-1, 1, (count, count)))
    norm, share, pinned = rng.random(count), rng.random(count), rng.random(count) < 0.15 * (seed % 3)
    found = agglomerated(cosine, norm, pinned, share)
    left, order, costs = set(range(count)), list[int](), [0.0]
    while len(left & set(np.flatnonzero(~pinned).tolist())) > 1:
        pairs = [(cosine[i, j], i, j) for i in left for j in left if i != j and not pinned[i]]
        _, one, other = max(pairs)
        both = not pinned[other] and cosine[other, one] >= cosine[one, other]
        order.append(other if both and norm[other] < norm[one] else one)
        left.remove(order[-1])
        near = {i: max(0.0, *(cosine[i, j] for j in left)) for i in order}
        costs.append(sum(share[i] * (1 - near[i] ** 2) for i in order))
    assert found.order.tolist() == order
    np.testing.assert_allclose(found.cost, np.maximum.accumulate(costs), atol=1e-12)


def test_a_wide_layer_of_few_directions_merges_in_no_time() -> None:
    """Each of a group is the nearest to the next larger one: a look at all of them per step would take minutes."""
    norm, free = np.linspace(1, 2, 1500), np.zeros(1500, bool)
    started = time.process_time()
    assert agglomerated(np.ones((1500, 1500)), norm, free, norm).order.tolist() == list(range(1499))
    assert grouped(np.ones((1500, 1500)), norm, free, norm, 0.9).order.tolist() == list(range(1499))
    assert time.process_time() - started < 2


def test_who_can_not_be_stood_for_by_the_larger_goes_to_nobody_larger() -> None:
    """Of a pair where only one way is possible, that one goes, though it is larger."""
    one_way = np.array([[1.0, 0.9], [-1.0, 1.0]])
    assert agglomerated(one_way, np.array([2.0, 1.0]), np.zeros(2, bool), np.full(2, 0.5)).order.tolist() == [0]


def test_representatives_are_the_nearest_of_those_that_stay() -> None:
    assert representatives(COSINE, np.array([0, 2]), np.array([1, 3])).tolist() == [0, -1]
    assert representatives(COSINE, np.empty(0, np.int64), np.array([1, 3])).tolist() == [-1, -1]


def test_magnitude_drops_the_weakest_first() -> None:
    found = by_norm(
        np.array([3.0, 1.0, 2.0, 0.5]), np.array([False, False, False, True]), np.array([0.4, 0.3, 0.2, 0.1])
    )
    assert found.order.tolist() == [1, 2]
    np.testing.assert_allclose(found.cost, [0, 0.3, 0.5])


def test_what_a_magnitude_is() -> None:
    """The norm of weights and bias behind a folded scale."""
    net = Net({"x": ["N", 2]})
    w, b, k = np.array([[3.0, 0.3, 4.0], [4.0, 0.4, 0.0]]), np.array([0.0, 1.2, 3.0]), np.array([0.1, 10.0, 1.0])
    z = net.node("Gemm", "x", net.weight("w", w), net.weight("b", b), out="z")
    h = net.node("Relu", net.node("Mul", z, net.weight("k", k)))
    net.node("MatMul", h, net.weight("v", np.ones((3, 2))), out="y")
    network = Network(net.model({"y": ["N", 2]}))
    orders = orders_of(network, find_spaces(network), Goal(0.1, None, allow_slower=True, seed=0, method="drop"))
    np.testing.assert_allclose(orders.directions[0].norm, [0.5, 13.0, 5.0], rtol=1e-6)
    assert orders.eliminations[0].order.tolist() == [0, 2]


# ---- the command ----


def called(tmp_path: Path, *options: str) -> Result:
    onnx.save(parallel(), tmp_path / "net.onnx")
    np.save(tmp_path / "x.npy", normal(400, 7))
    paths = [str(tmp_path / name) for name in ("net.onnx", "slim.onnx")]
    json_file = str(tmp_path / "report.json")
    return CliRunner().invoke(app, [*paths, "--calibration", str(tmp_path / "x.npy"), "--json", json_file, *options])


def test_the_command_merges_by_a_threshold(tmp_path: Path) -> None:
    result = called(tmp_path, "--method", "condensation", "--threshold", "0.5", "--threshold", "z?=0.999")
    assert result.exit_code == 0, result.output
    told = json.loads((tmp_path / "report.json").read_text())
    assert (told["method"], told["threshold"]) == ("condensation", {"*": 0.5, "z?": 0.999})
    assert [s["after"] for s in told["spaces"]] == [9, 6, 4]
    assert "threshold 0.5, z?=0.999" in result.stdout


def test_the_command_writes_nothing_where_the_gate_is_missed(tmp_path: Path) -> None:
    result = called(tmp_path, "--method", "condensation", "--threshold", "0.3", "--tolerance", "0.0001")
    assert result.exit_code == 3, result.output
    assert "--threshold gives an error of 1." in result.stderr
    assert not (tmp_path / "slim.onnx").exists()
    told = json.loads((tmp_path / "report.json").read_text())
    assert (told["status"], told["method"], told["reason"]["code"]) == ("failed", "condensation", "threshold")


def test_the_command_refuses_what_names_nothing(tmp_path: Path) -> None:
    result = called(tmp_path, "--method", "condensation", "--threshold", "Z1=0.5")
    assert result.exit_code == 2
    assert "'Z1' matches no node that writes channels, no weight of one and no space; there are z1" in result.stderr
    assert not (tmp_path / "slim.onnx").exists()
