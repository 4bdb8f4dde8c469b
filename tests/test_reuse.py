"""A saved plan used again: the same bytes on the same network, a refit on other weights, a misfit in one line."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
from endtoend import FakeTimer, relative, timer
from mlps import mlp, normal, plant_copies, weight_of
from onnx import numpy_helper
from test_plans import SCHEMA
from trunk_nets import gemms, samples
from typer.testing import CliRunner

from onnx_condense import condense
from onnx_condense.cli import app
from onnx_condense.errors import BudgetError, ModelError, UsageError
from onnx_condense.network.model import Network, serialized
from onnx_condense.options.goal import METHODS
from onnx_condense.outcome import Condensed
from onnx_condense.proving.provenance import plan_digest
from onnx_condense.saved.plans import Document, SpacePlan
from onnx_condense.saved.reuse import architecture_digest
from onnx_condense.search.widths import Widths

__all__ = ["FakeTimer", "timer"]

X = normal(400, 3)


def copies(seed: int = 0) -> onnx.ModelProto:
    """gemm_0 is 32 wide, eight of them copies; gemm_2 20."""
    return plant_copies(mlp(seed=seed), 0, 8)


def shaken(model: onnx.ModelProto, size: float, seed: int = 0) -> onnx.ModelProto:
    """The same network after a little more training, as it were: no two channels are exact copies any more."""
    rng, found = np.random.default_rng(seed), onnx.ModelProto()
    found.CopyFrom(model)
    for tensor in found.graph.initializer:
        old = numpy_helper.to_array(tensor)
        new = old + size * old.std() * rng.standard_normal(old.shape)
        tensor.CopyFrom(numpy_helper.from_array(new.astype(old.dtype), tensor.name))
    return found


def run(model: Any, **options: Any) -> Condensed:
    return condense(model, **{"threads": 1, "allow_slower": True, "calibration": X, **options})


def again(model: Any, plan: Any, **options: Any) -> Condensed:
    return run(model, plan=plan, **options)


def widths(found: Condensed) -> list[int]:
    return [s.after for s in found.report.spaces]


# ---- on the same network ----

RUNS: list[Mapping[str, Any]] = [
    {"tolerance": 0.05},
    {"tolerance": 0.3},
    {"tolerance": 0.05, "exclude": ["gemm_2"]},
    {"tolerance": 0.3, "min_width": 12, "max_cut": 0.5},
    {"keep": 0.4},
    {"tolerance": {"y": 0.05}},
    {"tolerance": 0.2, "metric": "max-abs"},
    {"tolerance": 0.0},
    {"calibration": None},
    {"calibration": None, "min_width": 28},  # of eight copies four stay, which have to be the same ones again
    {"seed": 3, "tolerance": 0.05},
    *({"keep": 0.6, "method": method} for method in METHODS[1:]),
    {"method": "condensation", "threshold": 0.9},
]


@pytest.mark.parametrize("options", RUNS)
def test_the_same_plan_gives_the_same_bytes(
    options: Mapping[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(copies(), **options)
    assert first.report.status == "condensed"
    first.save_plan(tmp_path / "plan.json")
    jsonschema.Draft202012Validator(SCHEMA).validate(json.loads((tmp_path / "plan.json").read_text()))
    monkeypatch.setattr(Widths, "find", None)  # nothing may be searched
    rest = {key: value for key, value in options.items() if key in ("calibration", "seed")}
    second = again(copies(), tmp_path / "plan.json", **rest)
    assert serialized(second.model) == serialized(first.model)
    # What the first run was asked for is not asked for again.
    assert dataclasses.replace(second.planned(), goal=first.planned().goal) == first.planned()
    told = [dataclasses.replace(f.report.error, outputs=()) for f in (first, second) if f.report.error]
    assert told[0] == dataclasses.replace(told[1], back_offs=told[0].back_offs)
    assert second.planned().plan_sha256 == plan_digest(first.plan) == plan_digest(second.plan)


def test_mixed_channels_are_mixed_anew() -> None:
    model = gemms()
    x = samples(model)
    first = run(model, calibration=x, tolerance=0.01)
    plan = first.planned()
    assert [s.kept is None for s in plan.spaces] == [True, False]
    second = again(model, plan, calibration=x)
    assert serialized(second.model) == serialized(first.model)
    other = again(shaken(model, 1e-3), plan, calibration=x, tolerance=0.1)
    assert widths(other) == widths(first)
    assert other.plan[-1].rotations


def test_a_plan_of_what_stays_as_it_is() -> None:
    model = mlp((3, 4, 4, 2), seed=2)
    first = run(model, tolerance=1e-9)
    assert first.report.status == "unchanged"
    second = again(model, first.planned())
    assert second.report.status == "unchanged"
    assert second.report.reason is not None
    assert second.report.reason.text == "the plan leaves every layer as it is"


# ---- on other weights ----


def test_more_training_keeps_the_channels() -> None:
    plan = run(copies(), tolerance=0.1).planned()
    model = shaken(copies(), 0.003)
    found = again(model, plan, tolerance=0.2)
    assert found.planned().spaces[0].kept == plan.spaces[0].kept
    assert found.planned().spaces[1].kept == plan.spaces[1].kept
    assert not any("anew" in n for n in found.report.notes)
    assert found.report.error is not None
    assert found.report.error.value <= 0.15
    assert relative(found.model, model, normal(1000, 3, seed=7)) < 0.2


def test_what_is_not_proved_any_more_is_fitted() -> None:
    plan = run(copies(), tolerance=0.1).planned()
    assert plan.spaces[0].fitted
    assert len(plan.spaces[0].exact) == 24
    assert [p.kind for p in again(copies(), plan).plan] == ["lossless", "fitted"]
    found = again(shaken(copies(), 0.003), plan, tolerance=0.2)
    assert [p.kind for p in found.plan] == ["fitted"]
    assert widths(found) == [s.after for s in plan.spaces]


def test_other_training_keeps_the_widths_alone() -> None:
    plan = run(copies(), tolerance=0.1).planned()
    found = again(copies(seed=4), plan, tolerance=10.0)
    assert widths(found) == [s.after for s in plan.spaces]
    assert found.planned().spaces[1].kept != plan.spaces[1].kept
    (note,) = [n for n in found.report.notes if "anew" in n]
    assert note.startswith("of the plan only the widths were used for some layers")
    assert "gemm_2: " in note


def test_a_method_of_its_own_chooses_anew_by_its_own_order() -> None:
    plan = run(copies(), keep=0.5, method="drop-refit").planned()
    found = again(copies(seed=4), plan, tolerance=10.0)
    fresh = run(copies(seed=4), keep=0.5, method="drop-refit")
    chosen = [(a.kept, b.kept) for a, b in zip(found.planned().spaces, fresh.planned().spaces, strict=True)]
    narrowed = [(*pair, s.kept) for pair, s in zip(chosen, plan.spaces, strict=True) if s.before != s.after]
    # Sets of one order lie in each other.
    nested = [set(a or ()) <= set(b or ()) or set(b or ()) <= set(a or ()) for a, b, _ in narrowed]
    assert any(found != old for found, _, old in narrowed)
    assert all(inside or found == old for inside, (found, _, old) in zip(nested, narrowed, strict=True))


def test_an_error_above_the_tolerance_of_the_plan_is_told() -> None:
    plan = run(copies(), tolerance=0.05).planned()
    with pytest.raises(BudgetError) as error:
        again(shaken(copies(), 0.5), plan)
    assert error.value.text.startswith("--plan the plan gives an error of 0.")
    assert "above a tolerance of 0.05: give a larger --tolerance, or search anew" in error.value.text
    assert error.value.exit_code == 3


def test_what_is_slower_is_refused(timer: FakeTimer) -> None:
    plan = run(copies(), tolerance=0.05).planned()
    timer.speedups = [0.5] * 8
    with pytest.raises(BudgetError, match="--plan the plan: the condensed network was measured slower"):
        again(copies(), plan, allow_slower=False)


def test_an_exact_plan_without_samples() -> None:
    plan = run(copies(), calibration=None).planned()
    assert plan.refit is None
    with pytest.raises(UsageError, match=r"more than these weights prove redundant \(gemm_0: 8 channels\): give --cal"):
        again(shaken(copies(), 0.01), plan, calibration=None)
    found = again(shaken(copies(), 0.001), plan)
    assert widths(found) == [24, 20, 2]
    assert [p.kind for p in found.plan] == ["fitted"]


def test_a_fitted_plan_needs_samples() -> None:
    plan = run(copies(), tolerance=0.05).planned()
    with pytest.raises(UsageError, match="give --calibration to fit it on"):
        again(copies(), plan, calibration=None)


# ---- networks that do not fit ----


def spaces_of(plan: Document, index: int, **fields: Any) -> Document:
    spaces = list(plan.spaces)
    spaces[index] = dataclasses.replace(spaces[index], **fields)
    return dataclasses.replace(plan, spaces=tuple(spaces))


@pytest.fixture(scope="module", name="plan")
def _plan() -> Document:
    return run(copies(), calibration=None).planned()


@pytest.mark.parametrize(
    ("index", "fields", "text"),
    [
        (0, {"name": "gemm_9"}, "space 'gemm_9' is not in the network"),
        (0, {"before": 40}, "space 'gemm_0' is 40 wide in the plan and 32 in the network"),
        (1, {"writers": ("/a", "/b")}, "space 'gemm_2' is written by /a, /b in the plan and by /gemm_2 in the network"),
        (2, {"after": 1, "kept": (1,)}, "space 'y' can't be narrowed: nothing reads it"),
    ],
)
def test_a_plan_for_another_network(plan: Document, index: int, fields: Mapping[str, Any], text: str) -> None:
    with pytest.raises(ModelError) as error:
        again(copies(), spaces_of(plan, index, **fields))
    assert error.value.text == f"the plan does not fit the network: {text}" or text in error.value.text
    assert error.value.exit_code == 1


def test_spaces_that_the_plan_does_not_know(plan: Document) -> None:
    with pytest.raises(ModelError, match="space 'gemm_2' is not in the plan"):
        again(copies(), dataclasses.replace(plan, spaces=(plan.spaces[0], plan.spaces[2])))


def test_channels_that_have_to_stay_in_this_network(plan: Document) -> None:
    model = copies()
    model.graph.output.append(onnx.helper.make_tensor_value_info("gemm_2", 1, ["N", 20]))
    few = spaces_of(plan, 1, after=2, kept=(3, 4))
    with pytest.raises(ModelError, match=r"space 'gemm_2' channel 0 can't go in this network \(graph output\)"):
        again(model, few)


def test_channels_that_can_not_be_mixed(plan: Document) -> None:
    with pytest.raises(
        ModelError, match="gemm_2: the plan mixes its channels, but in this network they can't be mixed"
    ):
        again(copies(), spaces_of(plan, 1, after=3, kept=None), tolerance=10.0)


def test_another_architecture_with_the_same_layers_is_told(plan: Document) -> None:
    model = copies()
    model.graph.node[1].op_type = "Sigmoid"
    found = again(model, plan)
    assert "made for another architecture" in found.report.notes[0]


def test_the_architecture_is_all_but_the_numbers() -> None:
    mine = architecture_digest(Network(copies()))
    assert architecture_digest(Network(copies(seed=5))) == mine
    assert architecture_digest(Network(shaken(copies(), 0.1))) == mine
    others = [mlp((3, 33, 20, 2)), mlp((3, 32, 20, 2), activation="Relu"), mlp((3, 32, 20, 2), opset=18)]
    assert len({mine, *(architecture_digest(Network(m)) for m in others)}) == 4
    assert weight_of(copies(), "W0").shape == (3, 32)


# ---- options ----


@pytest.mark.parametrize(
    "options",
    [
        {"keep": 0.5},
        {"method": "drop"},
        {"threshold": 0.9},
        {"max_macs": 100},
        {"speedup": 2.0},
        {"multiple_of": 8},
        {"include": ["gemm_0"]},
        {"exclude": ["gemm_0"]},
        {"min_width": 4},
        {"max_cut": 0.5},
        {"tolerance": 0.0},
    ],
)
def test_what_a_plan_decides_is_no_option(plan: Document, options: Mapping[str, Any]) -> None:
    name = next(iter(options)).replace("_", "-")
    with pytest.raises(UsageError, match=f"^--plan and --{name}( 0)? exclude each other"):
        again(copies(), plan, **options)


def test_a_metric_needs_its_tolerance(plan: Document) -> None:
    with pytest.raises(UsageError, match="--plan and --metric need --tolerance"):
        again(copies(), plan, metric="max-abs")


def test_a_metric_that_no_file_can_hold() -> None:
    def mine(dense: Any, condensed: Any) -> Any:
        return np.abs(dense["y"] - condensed["y"]).mean()

    plan = run(copies(), metric=mine, tolerance=0.05).planned()
    with pytest.raises(UsageError, match="--plan was judged by 'mine', which no file can hold: give --metric"):
        again(copies(), plan)
    assert again(copies(), plan, metric=mine, tolerance=0.05).report.status == "condensed"


def test_an_unknown_method(plan: Document) -> None:
    with pytest.raises(UsageError, match="--plan: its method 'magic' is unknown; there are fit"):
        again(copies(), dataclasses.replace(plan, method="magic"))


# ---- the command ----


def call(*arguments: str) -> Any:
    return CliRunner().invoke(app, [*arguments, "--threads", "1", "--allow-slower"], env={"COLUMNS": "80"})


@pytest.fixture(name="files")
def _files(tmp_path: Path) -> dict[str, str]:
    onnx.save(copies(), tmp_path / "net.onnx")
    np.save(tmp_path / "x.npy", X)
    return {name: str(tmp_path / name) for name in ("net.onnx", "x.npy", "slim.onnx", "slim2.onnx", "plan.json")}


def test_the_command_saves_and_applies(files: dict[str, str]) -> None:
    given = [files["net.onnx"], files["slim.onnx"], "--calibration", files["x.npy"]]
    result = call(*given, "--save-plan", files["plan.json"], "--tolerance", "0.05")
    assert result.exit_code == 0, result.output
    assert json.loads(Path(files["plan.json"]).read_text())["source"]["name"] == "net.onnx"
    given[1] = files["slim2.onnx"]
    result = call(*given, "--plan", files["plan.json"])
    assert result.exit_code == 0, result.output
    assert Path(files["slim.onnx"]).read_bytes() == Path(files["slim2.onnx"]).read_bytes()


def test_a_dry_run_saves_the_plan_too(files: dict[str, str]) -> None:
    result = call(files["net.onnx"], files["slim.onnx"], "--dry-run", "--save-plan", files["plan.json"])
    assert result.exit_code == 0, result.output
    assert Path(files["plan.json"]).exists()
    assert not Path(files["slim.onnx"]).exists()


def test_a_plan_is_not_written_over_what_is_read(files: dict[str, str]) -> None:
    run(copies(), calibration=None).save_plan(files["plan.json"])
    for other in ("net.onnx", "plan.json"):
        result = call(files["net.onnx"], "--plan", files["plan.json"], "--save-plan", files[other])
        assert result.exit_code == 2
        assert "are the same file" in result.stderr


@pytest.mark.parametrize("option", ["--plan", "--save-plan"])
def test_verifying_makes_nothing(files: dict[str, str], option: str) -> None:
    result = call(files["net.onnx"], "--verify-only", files["net.onnx"], option, files["plan.json"])
    assert result.exit_code == 2


def test_a_broken_plan_is_told_in_one_line(files: dict[str, str]) -> None:
    Path(files["plan.json"]).write_text('{"schema": 7}')
    result = call(files["net.onnx"], "--plan", files["plan.json"])
    assert result.exit_code == 1
    assert (
        result.stderr == f"onnx-condense: error: {files['plan.json']}: is a plan of form 7; this version reads form 1\n"
    )


def test_the_python_api_takes_paths(tmp_path: Path) -> None:
    first = run(copies(), calibration=None)
    with pytest.raises(UsageError, match="can't be written"):
        first.save_plan(tmp_path / "none" / "plan.json")
    first.save_plan(str(tmp_path / "plan.json"))
    assert widths(again(copies(), str(tmp_path / "plan.json"), calibration=None)) == [24, 20, 2]


def test_space_plans_know_whether_they_fit() -> None:
    space = SpacePlan("h", ("a",), 4, 2, (0, 1), (0, 1))
    assert not space.fitted
    assert dataclasses.replace(space, exact=(0, 1, 2)).fitted
