"""Runs that condense and train a small MLP, and training that changes nothing."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import onnx
import pytest
from mlps import mlp, normal

from onnx_condense import condense, tune
from onnx_condense.cost import count_parameters
from onnx_condense.outcome import Condensed

DENSE = mlp((3, 24, 20, 2))
X = normal(600, 3)


def plain(model: Any = DENSE, **options: Any) -> Condensed:
    """Condensed without training."""
    return condense(model, **{"threads": 1, "allow_slower": True, "calibration": X, **options})


def run(model: Any = DENSE, **options: Any) -> Condensed:
    """Condensed and trained for 60 steps."""
    return plain(model, **{"tune": True, "tune_steps": 60, **options})


@dataclasses.dataclass(frozen=True)
class Came:
    """What came to be trained: by training, parameters of the network and what was asked for."""

    parameters: list[int]
    recipes: list[tune.Recipe]


def untouched(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[onnx.ModelProto], None] = lambda _: None, *, real: int = 0
) -> Came:
    """After so many real trainings, those that change nothing, or what a test wants changed."""
    came = Came([], [])
    distil = tune.distil

    def fake(student: onnx.ModelProto, teacher: Any, recipe: tune.Recipe, progress: Any) -> tune.Tuned:
        came.parameters.append(count_parameters(student))
        came.recipes.append(recipe)
        if len(came.recipes) <= real:
            return distil(student, teacher, recipe, progress)
        model = copy.deepcopy(student)
        change(model)
        return tune.Tuned(model, 7, 0.5, 1.0, 1.0, 1e-3)

    monkeypatch.setattr(tune, "distil", fake)
    return came
