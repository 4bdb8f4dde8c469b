"""Training beside other options: what is told of it, what is left out of it, and what nobody may overlook."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from mlps import normal
from tuned import DENSE, plain, run, untouched

from onnx_condense import outcome, tune
from onnx_condense.data.samples import Rows
from onnx_condense.errors import UsageError
from onnx_condense.fit import methods
from onnx_condense.options.goal import Goal
from onnx_condense.options.tuning import Tune
from onnx_condense.proving.provenance import Provenance
from onnx_condense.report.data import Tuning, TuningRound
from onnx_condense.report.terminal import _tuning_rows
from onnx_condense.tune.teacher import Source, _fresh
from onnx_condense.tuner import Tuner

# ---- what is told ----


def test_weights_of_an_earlier_training_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    untouched(monkeypatch, real=1)
    found = run(keep=0.3, rounds=2, method="drop")
    told, stamp = found.report.tuning, Provenance.of(found.model)
    assert told is not None
    assert stamp is not None
    assert [r.kept for r in told.rounds] == [True, False]
    assert int(stamp.trained) == found.planned().trained == told.rounds[0].steps > 0


@pytest.mark.parametrize("better", [True, False])
def test_what_is_kept_is_told_by_the_tolerances_not_by_the_number(
    better: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Errors are those of the output nearest to its tolerance, which may be another one after training."""
    untouched(monkeypatch)
    bare = dataclasses.make_dataclass("Bare", ["model", "parameters", "proved", "trained", "steps"])
    teacher: Any = SimpleNamespace(left_out=0, loss="mse", count=9)
    goal = Goal(tolerance=1.0, keep=None, allow_slower=True, seed=0)
    tuner = Tuner(goal, Tune(steps=7), lambda: teacher, lambda *_: None)
    proof: Any = SimpleNamespace(measure=lambda _: SimpleNamespace(excess=lambda _: 1.5 if better else 3.0, error=0.2))
    before: Any = bare(DENSE, 9, SimpleNamespace(excess=lambda _: 2.0, error=0.1 if better else 0.3), None, 0)
    found = tuner(before, proof, 1.0, 0.5)
    assert found.trained is not None
    assert found.trained.kept is better
    assert (found.steps == 7) is better
    ((_, text),) = _tuning_rows(tuner.told([found.trained]))
    assert ("given back" in text.plain) is not better


def test_what_was_given_back_is_told_in_the_terminal() -> None:
    ((_, text),) = _tuning_rows(Tuning(0.1, 7, 1.0, "mse", 9, (TuningRound(9, 0.2, 0.1, 7, 1.0, kept=False),)))
    assert "given back" in text.plain


def test_nothing_that_could_be_trained_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    recipes = untouched(monkeypatch).recipes
    found = run(tolerance=1e-9)
    assert not recipes
    assert any(note.startswith("nothing was trained") for note in found.report.notes)
    recipes = untouched(monkeypatch).recipes
    found = run(keep=0.4)
    assert recipes
    assert not any(note.startswith("nothing was trained") for note in found.report.notes)


def test_a_note_of_every_round_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    untouched(monkeypatch)
    real, calls = methods.narrower, []

    def noting(*given: Any) -> Any:
        calls.append(given)
        fitter, notes = real(*given)
        return fitter, [*notes, "said each time"]

    monkeypatch.setattr("onnx_condense.search.candidates.narrower", noting)
    notes = run(keep=0.3, rounds=2).report.notes
    assert len(calls) == 2
    assert notes.count("said each time") == 1


@pytest.mark.parametrize("options", [{"keep": 0.4}, {"tolerance": 0.1}], ids=str)
def test_what_the_search_measured_is_told(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    untouched(monkeypatch, real=2)
    assert bool(run(method="drop", **options).report.curve) is ("tolerance" in options)


def test_what_saves_too_little_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcome, "WORTH", 1.0)
    found = run(tolerance=0.2, method="drop")
    assert found.report.status == "unchanged"
    assert any(note.startswith("a fit was given back") for note in found.report.notes)


# ---- beside a plan ----


def test_a_plan_is_trained_once_with_all_of_the_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    plain(tolerance=0.1).save_plan(path)
    with pytest.raises(UsageError, match="--plan and --rounds exclude each other"):
        run(plan=path, rounds=2)
    recipes = untouched(monkeypatch).recipes
    run(plan=path, tolerance=0.2, tune_minutes=0.5, tune_steps=None)
    assert [r.minutes for r in recipes] == [0.5]


# ---- PyTorch and samples ----


def test_pytorch_that_can_not_be_loaded_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx_condense.tune", None)
    with pytest.raises(UsageError, match="PyTorch is there but can't be loaded"):
        run()


def test_the_seed_is_that_of_the_inputs_made_between(monkeypatch: pytest.MonkeyPatch) -> None:
    untouched(monkeypatch)
    seeds: list[Any] = []
    real = tune.Teacher

    def recording(*given: Any, **more: Any) -> Any:
        seeds.append(more["seed"])
        return real(*given, **more)

    monkeypatch.setattr(tune, "Teacher", recording)
    run(keep=0.4, seed=5)
    assert seeds == [5]


@pytest.mark.parametrize(("block", "fresh"), [(None, [0, 1, 2, 3, 9, 10, 11]), (2, [0, 1, 5])])
def test_rows_that_judge_are_found_in_other_blocks(block: int | None, fresh: list[int]) -> None:
    """Rows 4 to 8 of the further inputs judge; a block that holds one of them is left out."""
    x = normal(12, 3)

    def samples(rows: Any) -> Rows:
        return Rows(np.arange(len(rows) // (block or 1)), (), {"x": rows}, {}, block)

    judging = samples(np.concatenate([normal(1, 3, seed=9), x[4:9]]))
    assert _fresh(samples(x), [Source(judging, np.arange(len(judging)))]).tolist() == fresh
