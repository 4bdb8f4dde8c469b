"""Condensing and training in turn: what comes out, what is told of it, and what is given back."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from mlps import Net, mlp, normal, plant_copies, weight_of
from tuned import DENSE, X, plain, run, untouched
from typer.testing import CliRunner

from onnx_condense.cli import app
from onnx_condense.cost import count_parameters
from onnx_condense.errors import BudgetError, DefectError, ModelError
from onnx_condense.network.model import serialized
from onnx_condense.outcome import Condensed
from onnx_condense.proving.provenance import Provenance, plan_digest, result_digest
from onnx_condense.runtime import Runtime
from onnx_condense.runtime import run as answer


def error(found: Condensed) -> float:
    assert found.report.error is not None
    return found.report.error.value


def sizes(found: Condensed) -> tuple[int, int]:
    """Parameters before and after."""
    assert found.report.parameters is not None
    return found.report.parameters.before, found.report.parameters.after


def off(model: Any, dense: Any = DENSE, x: Any = None) -> float:
    """Relative error on inputs that nobody has seen."""
    feed = {"x": normal(800, 3, seed=77) if x is None else x}
    y, t = (answer(Runtime(threads=1).session(m, optimize=False), feed)[0] for m in (model, dense))
    return float((((y - t) ** 2).mean() / t.var(0).mean()) ** 0.5)


def graph(model: onnx.ModelProto) -> bytes:
    return model.graph.SerializeToString(deterministic=True)


def check(found: Condensed, dense: Any = DENSE) -> None:
    """What every result is: same ends, its provenance, and what the report says of it."""
    model, report = found.model, found.report
    assert report.status == "condensed"
    onnx.checker.check_model(model, full_check=True)
    assert (model.graph.input, model.graph.output) == (dense.graph.input, dense.graph.output)
    assert model.opset_import == dense.opset_import
    assert sizes(found) == (count_parameters(dense), count_parameters(model))
    assert sizes(found)[1] < sizes(found)[0]
    # The spaces of a chain are the outputs of its layers, in order.
    assert [s.after for s in report.spaces] == [weight_of(model, f"W{i}").shape[1] for i in range(3)]
    assert report.origin is not None
    assert report.origin.result_sha256 == result_digest(model, found.source)
    stamp = Provenance.of(model)
    assert stamp is not None
    assert stamp.plan_sha256 == plan_digest(found.plan)
    assert stamp.error == f"{error(found):.3g}"
    assert found.planned().trained == int(stamp.trained)
    assert off(model, dense) == pytest.approx(error(found), rel=0.5)


# ---- what comes out ----


def test_a_tolerance_is_met_by_a_smaller_network() -> None:
    options = {"tolerance": 0.1, "method": "drop"}
    bare, found = plain(**options), run(**options)
    check(found)
    assert error(found) <= 0.1
    assert sizes(found)[1] < 0.9 * sizes(bare)[1]
    told = found.report.tuning
    assert told is not None
    assert told.bare > 0.1
    assert (told.loss, told.samples) == ("mse", 360)
    assert told.rounds[-1].error == error(found)
    assert told.rounds[-1].parameters == sizes(found)[1]
    assert 0 < told.rounds[-1].steps <= told.steps
    stamp = Provenance.of(found.model)
    assert stamp is not None
    assert (stamp.tolerance, stamp.trained) == ("0.1", str(told.rounds[-1].steps))
    assert serialized(run(**options).model) == serialized(found.model)


@pytest.mark.parametrize("options", [{"keep": 0.3}, {"max_parameters": 200}], ids=str)
def test_a_size_is_met_with_a_smaller_error(options: dict[str, Any]) -> None:
    bare, found = plain(method="drop", **options), run(method="drop", tune_steps=150, **options)
    check(found)
    assert bare.report.tuning is None
    assert found.report.parameters == bare.report.parameters
    assert error(found) < 0.75 * error(bare)
    assert off(found.model) < 0.75 * off(bare.model)
    assert found.report.tuning is not None
    assert found.report.tuning.bare == error(bare)
    assert len(found.report.tuning.rounds) == 1


def test_least_squares_first_then_training() -> None:
    found = run(keep=0.3, tune_steps=200)
    check(found)
    assert error(found) < error(plain(keep=0.3))


def worse(model: onnx.ModelProto) -> None:
    weights = next(t for t in model.graph.initializer if t.name == "W2")
    weights.CopyFrom(onnx.numpy_helper.from_array(2 * onnx.numpy_helper.to_array(weights), "W2"))


@pytest.mark.parametrize("change", [worse, lambda _: None], ids=["worse", "same"])
def test_training_that_does_not_help_is_given_back(change: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = plain(keep=0.4)
    untouched(monkeypatch, change)
    found = run(keep=0.4)
    check(found)
    assert graph(found.model) == graph(bare.model)
    assert any(note.startswith("training was given back: it took the error from") for note in found.report.notes)
    assert found.planned().trained == 0
    assert found.report.tuning is not None
    assert found.report.tuning.steps == 7


def test_without_success_a_tolerance_is_met_without_training(monkeypatch: pytest.MonkeyPatch) -> None:
    came = untouched(monkeypatch).parameters
    found = run(tolerance=0.1)
    check(found)
    assert error(found) <= 0.1
    # Two attempts, the second with a wider network.
    assert len(came) == 2
    assert came[0] < came[1]
    assert found.planned().trained == 0
    assert sizes(found)[1] <= sizes(plain(tolerance=0.1))[1] * 1.05


# ---- rounds ----


def test_rounds_lead_to_a_size_step_by_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    dense = plant_copies(mlp((3, 24, 20, 2)), 0, 8)
    came = untouched(monkeypatch).parameters
    found = run(dense, keep=0.15, rounds=3)
    check(found, dense)
    told = found.report.tuning
    assert told is not None
    made = [r.parameters for r in told.rounds]
    assert made == came
    assert len(made) == 3
    assert made[-1] == sizes(found)[1] <= 0.15 * count_parameters(dense)
    # Each round takes about the same share of what is there; the first one starts after the exact step.
    shares = [after / before for before, after in itertools.pairwise(made)]
    assert max(shares) < 0.75
    assert max(shares) / min(shares) < 1.6
    assert [p.kind for p in found.plan] == ["lossless", "fitted", "fitted", "fitted"]
    # What training did not touch tells which channels stayed: least squares leaves what writes them.
    first, second = found.planned().spaces[:2]
    assert first.kept is not None
    assert second.kept is not None
    assert np.array_equal(weight_of(found.model, "W0"), weight_of(dense, "W0")[:, list(first.kept)])
    assert len(second.kept) == weight_of(found.model, "W1").shape[1]
    assert np.array_equal(found.kept["gemm_0"], first.kept)
    assert set(first.kept) <= set(first.exact)
    assert len(first.exact) == 24

    found.save_plan(tmp_path / "plan.json")
    again = plain(dense, plan=tmp_path / "plan.json")
    check(again, dense)
    assert again.report.parameters == found.report.parameters
    assert np.array_equal(weight_of(again.model, "W0"), weight_of(found.model, "W0"))
    monkeypatch.undo()
    trained = run(dense, plan=tmp_path / "plan.json", tune_steps=150)
    check(trained, dense)
    assert trained.report.parameters == found.report.parameters
    assert error(trained) < error(again)
    assert trained.report.tuning is not None
    assert trained.report.tuning.bare == error(again)


def test_rounds_that_train(tmp_path: Path) -> None:
    found = run(keep=0.3, rounds=3, method="drop", front=True)
    check(found)
    told = found.report.tuning
    assert told is not None
    assert len(told.rounds) == 3
    assert told.rounds[-1].error == error(found)
    assert told.rounds[-1].bare == told.bare
    assert told.steps == sum(r.steps for r in told.rounds)
    # The networks of all rounds come out that no smaller one beats, each with a stamp of its own.
    errors = [min(r.error, r.bare) for r in told.rounds]
    best = [r for i, r in enumerate(told.rounds) if errors[i] < min([*errors[i + 1 :], np.inf])]
    assert [row.parameters for _, row in found.front] == [r.parameters for r in best]
    for (model, row), trained in zip(found.front, best, strict=True):
        assert row.error == min(trained.error, trained.bare)
        assert count_parameters(model) == trained.parameters
        assert model is not found.model
    (last, _), stamps = found.front[-1], [Provenance.of(m) for m in (found.front[-1][0], found.model)]
    assert graph(last) == graph(found.model)
    assert stamps[0] == dataclasses.replace(stamps[1] or pytest.fail("no stamp"), tolerance="")
    found.save(tmp_path / "slim.onnx")
    assert off(onnx.load(tmp_path / "slim.onnx")) == off(found.model)
    # What a plan tells is what was trained, and can't be had without that.
    plan = found.planned()
    assert plan.trained == told.rounds[-1].steps
    with pytest.raises(BudgetError, match="it was trained after the fit, so give --tune"):
        plain(plan=plan, tolerance=1.1 * error(found))


def test_a_stamp_of_the_front_is_not_the_results() -> None:
    found = run(tolerance=0.3, rounds=2, method="drop", front=True)
    check(found)
    stamp = Provenance.of(found.model)
    assert stamp is not None
    assert stamp.tolerance == "0.3"
    assert error(found) <= 0.3


def test_rounds_by_a_threshold() -> None:
    options = {"method": "condensation", "threshold": 0.97}
    bare, found = plain(**options), run(rounds=2, tune_steps=100, **options)
    check(found)
    told = found.report.tuning
    assert told is not None
    assert told.rounds[0].parameters == sizes(bare)[1]
    assert told.rounds[0].error < error(bare)
    if len(told.rounds) == 2:
        assert told.rounds[1].parameters < told.rounds[0].parameters
    with pytest.raises(BudgetError, match="--threshold gives an error of"):
        run(tolerance=1e-6, **options)


# ---- what is refused ----


def test_what_can_not_be_trained_is_refused_before_any_work() -> None:
    net = Net({"x": ["L", 1, 4]})
    h = net.node("Conv", net.node("Transpose", "x", perm=[1, 2, 0]), net.weight("W0", normal(6, 4, 1)))
    h = net.node("Transpose", net.node("Relu", h), perm=[2, 0, 1])
    W, R = net.weight("W", normal(1, 20, 6)), net.weight("R", normal(1, 20, 5))
    net.nodes.append(onnx.helper.make_node("LSTM", [h, W, R], ["y"], name="/recurrent", hidden_size=5))
    model = net.model({"y": ["L", 1, 1, 5]})
    with pytest.raises(ModelError, match="/recurrent") as caught:
        run(model, calibration="nowhere.npz")
    assert caught.value.code == "tune"


def test_samples_that_judge_are_left_out_of_training() -> None:
    judge, fresh = normal(40, 3, seed=5), normal(30, 3, seed=6)
    options = {"keep": 0.4, "verification": judge, "tune_data": np.concatenate([judge[:9], fresh])}
    found = run(**options)
    check(found)
    assert "left out of --tune-data: 9 samples among those that search or judge" in found.report.notes
    assert found.report.tuning is not None
    alone = run(keep=0.4, verification=judge).report.tuning
    assert alone is not None
    assert found.report.tuning.samples == alone.samples + 30


def longer(model: onnx.ModelProto) -> None:
    bias = next(t for t in model.graph.initializer if t.name == "b2")
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias)[None], "b2"))


def renamed(model: onnx.ModelProto) -> None:
    model.graph.node[1].name = "other"


def sharper(model: onnx.ModelProto) -> None:
    model.graph.node[1].op_type = "Sigmoid"


def scaled(model: onnx.ModelProto) -> None:
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("alpha", 2.0))


@pytest.mark.parametrize("change", [longer, renamed, sharper, scaled], ids=lambda f: f.__name__)
def test_training_may_change_numbers_only(change: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    untouched(monkeypatch, change)
    with pytest.raises(DefectError) as caught:
        run(keep=0.4)
    assert caught.value.code == "tuned"


@pytest.mark.parametrize("attribute", ["value", "value_floats"])
def test_weights_in_constant_nodes(attribute: str) -> None:
    model = mlp((3, 16, 12, 2))
    bias = next(t for t in model.graph.initializer if t.name == "b2")
    value: Any = bias if attribute == "value" else onnx.numpy_helper.to_array(bias).tolist()
    node = onnx.helper.make_node("Constant", [], ["b2"])
    node.attribute.append(onnx.helper.make_attribute(attribute, value))
    model.graph.node.insert(0, node)
    model.graph.initializer.remove(bias)
    found = run(model, keep=0.4, method="drop")
    check(found, model)
    assert found.planned().trained > 0


# ---- the command ----


def test_the_command(tmp_path: Path) -> None:
    onnx.save(DENSE, tmp_path / "net.onnx")
    np.savez(tmp_path / "x.npz", x=X)
    net, slim, x, told = (str(tmp_path / name) for name in ("net.onnx", "slim.onnx", "x.npz", "r.json"))
    options = ["--calibration", x, "--tune", "--tune-steps", "50", "--tune-data", x, "--allow-slower", "--threads", "1"]
    result = CliRunner().invoke(app, [net, slim, *options, "--keep", "0.4", "--method", "drop", "--json", told])
    assert result.exit_code == 0, result.output
    report = json.loads(Path(told).read_text())
    assert report["tuning"]["rounds"][0]["steps"] == report["tuning"]["steps"] <= 50
    assert report["error"]["value"] < report["tuning"]["bare"]
    model = onnx.load(slim)
    assert off(model) == pytest.approx(report["error"]["value"], rel=0.5)
    stamp = Provenance.of(model)
    assert stamp is not None
    assert int(stamp.trained) == report["tuning"]["steps"]
