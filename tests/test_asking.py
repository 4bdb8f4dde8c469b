"""What is asked about a saved plan's channels: of how many samples, by rows or by moments, with the same answers."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx
import pytest
from conv_fits import plain
from mlps import mlp, normal

from onnx_condense.data import input_specs, load
from onnx_condense.evidence import moments
from onnx_condense.fit import fitting
from onnx_condense.fit.asking import LEAST, ROWS, Asking, Question
from onnx_condense.fit.choices import Choice
from onnx_condense.fit.fitting import Fitter
from onnx_condense.network.model import Network
from onnx_condense.plan import IntArray
from onnx_condense.runtime import Runtime
from onnx_condense.select.pivots import AHEAD
from onnx_condense.spaces import find_spaces

FIT, HELD = 1500, 500


def made(model: onnx.ModelProto, x: Any, gone: list[int]) -> Fitter:
    """A fitter by a plan that leaves out the first channels of each space, of the same weights."""
    network = Network(model)
    samples = load(x, input_specs(network.proto.graph))
    choices = [Choice(np.arange(count), exact=True) for count in gone]
    fit, held = np.arange(FIT), np.arange(FIT, FIT + HELD)
    return Fitter(network, find_spaces(network), samples, fit, held, Runtime(threads=1), choices)


def asking(fitter: Fitter, gone: list[int]) -> Asking:
    choices = [Choice(np.arange(count)) for count in gone]
    return fitter._asking(choices, np.arange(FIT, FIT + HELD))


def wide() -> Fitter:
    return made(mlp((6, 900, 700, 2)), normal(FIT + HELD, 6), [880, 670])


def test_so_many_samples_as_the_widest_choice_needs() -> None:
    fitter = wide()
    fit, held = asking(fitter, [880, 670])._parts
    # 30 stay, so 120 are candidates; of the samples that judge the same share is looked at, but not too few.
    assert len(fit) == ROWS * AHEAD * 30
    assert len(held) == LEAST
    assert set(fit.tolist()) <= set(range(FIT))
    assert set(held.tolist()) <= set(range(FIT, FIT + HELD))
    assert [len(part) for part in asking(fitter, [880, 400])._parts] == [FIT, HELD]
    assert [len(part) for part in asking(fitter, [899, 699])._parts] == [LEAST, LEAST]


def test_rows_are_read_where_they_are_fewer_numbers_than_moments() -> None:
    fitter = wide()
    assert asking(fitter, [880, 670])._by_rows
    # 1500 rows of 900 and 700 columns are more than 900 x 900 and 700 x 700 numbers.
    assert not asking(fitter, [880, 400])._by_rows


def questions(fitter: Fitter, gone: list[int], monkeypatch: pytest.MonkeyPatch) -> list[tuple[Question, Question]]:
    """Per space, by rows and by moments."""
    found = []
    for by_rows in (True, False):
        monkeypatch.setattr(Asking, "_by_rows", by_rows)
        asked = asking(fitter, gone)
        found.append([asked.about(space) for space in fitter.spaces])
    return list(zip(*found, strict=True))


def check_same(pair: tuple[Question, Question], out: IntArray, left: int) -> None:
    errors = [question.error(out) for question in pair]
    assert errors[0] == pytest.approx(errors[1], rel=2e-3)
    orders = [question.chosen(left, len(out), (1e-5,)).order[: len(out)] for question in pair]
    chosen = [pair[1].error(order) for order in orders]
    assert chosen[0] == pytest.approx(chosen[1], rel=0.1)
    assert chosen[0] < errors[1]


def test_rows_and_moments_tell_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    for pair, gone, left in zip(questions(wide(), [880, 670], monkeypatch), (880, 670), (20, 30), strict=True):
        check_same(pair, np.arange(gone), left)


@pytest.mark.parametrize("full", [300, 20], ids=["full", "pooled"])
def test_rows_of_patches_too(full: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "FULL", full)
    monkeypatch.setattr(fitting, "RICH", 0)
    model = plain()
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim][1:]
    fitter = made(model, normal(FIT + HELD, *shape), [6, 4])
    assert any(r.pooled for r in fitter._readers) == (full == 20)
    widths = [space.width for space in fitter.spaces]
    for pair, gone, width in zip(questions(fitter, [6, 4], monkeypatch), (6, 4), widths, strict=True):
        check_same(pair, np.arange(gone), width - gone)


def test_what_was_asked_is_not_worked_out_again() -> None:
    asked: list[int] = []

    def told(gone: IntArray) -> float:
        asked.append(len(gone))
        return 0.5

    question = Question(told, lambda _left, _ridge: pytest.fail("not asked"))
    assert [question.error(np.arange(n)) for n in (3, 3, 4)] == [0.5] * 3
    assert asked == [3, 4]


def test_nothing_is_collected_that_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The channels of the very same weights are refitted without moments of all, by stages from the first one on."""
    for name in ("collect", "read_rows"):
        monkeypatch.setattr(moments, name, None)
    fitter = wide()
    fitter.use_all(np.arange(FIT, FIT + HELD))
    plan, _ = fitter.plan([20, 30], sequential=True)
    assert len(plan.updates) == 2
    # 2000 samples for 20 and for 30 columns.
    assert fitter.rows_per_channel([20, 30]) == pytest.approx({"gemm_0": 100.0, "gemm_2": 2000 / 30})


def test_the_first_stage_fits_what_moments_fit() -> None:
    fitter = wide()
    early = fitter.plan([20, 30], sequential=True)[0].updates[0]
    plain_rows = fitter._fit_rows
    fitter.use_all(np.arange(0))
    assert np.array_equal(fitter._fit_rows, plain_rows)
    late = fitter.plan([20, 30], sequential=True)[0].updates[0]
    np.testing.assert_allclose(late.weight, early.weight, atol=2e-3 * float(np.abs(early.weight).max()))
    np.testing.assert_allclose(late.offset, early.offset, atol=2e-3 * float(np.abs(early.offset).max()))


def test_moments_that_are_asked_for_anyway_are_taken() -> None:
    """Where rows are few they choose the ridge, so that nothing is gained by looking at some samples."""
    fitter = wide()
    poor = dataclasses.replace(asking(fitter, [880, 670]), rich=False)
    assert not poor._by_rows
    assert poor._moments == (fitter._fit, fitter._held)
    # 1500 rows for 151 columns.
    assert [asking(fitter, [900 - left, 670]).rich for left in (150, 151)] == [True, False]
