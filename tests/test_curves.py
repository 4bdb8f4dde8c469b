"""What narrowing costs on held-out samples, against least squares on the rows themselves."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_condense.plan import FloatArray, IntArray, Moments
from onnx_condense.select.curves import GRID, Trial, best_judged, held_out_error, judged, overfits
from onnx_condense.select.obs import Elimination, ReaderCost, eliminate

RIDGE = 1e-8


def moments(x: FloatArray) -> Moments:
    mean = x.mean(0)
    return Moments(float(len(x)), mean, mean, (x - mean).T @ (x - mean))


def rows(count: int, channels: int, seed: int, mix: int = 0, shift: float = 0.0) -> FloatArray:
    """Correlated features; mix: which correlation."""
    factors = np.random.default_rng(mix).standard_normal((channels, channels)) / np.arange(1, channels + 1)[:, None]
    return np.asarray(np.random.default_rng(seed).standard_normal((count, channels)) @ factors + shift)


def trial(fit: FloatArray, held: FloatArray, outputs: int = 4, seed: int = 0) -> Trial:
    weight = np.random.default_rng(seed).standard_normal((outputs, fit.shape[1]))
    seen = moments(fit)
    reader = ReaderCost(weight, seen.covariance, np.arange(fit.shape[1])[:, None])
    return Trial(reader, lambda: moments(held).about(seen.left))


def by_rows(fit: FloatArray, held: FloatArray, weight: FloatArray, gone: IntArray) -> float:
    """Refit with an offset on the rows of the fit share, judged on the held-out rows."""
    keep = np.setdiff1d(np.arange(fit.shape[1]), gone)
    design = np.c_[fit[:, keep], np.ones(len(fit))]
    solution = np.linalg.lstsq(design, fit @ weight.T, rcond=None)[0]
    error = held @ weight.T - np.c_[held[:, keep], np.ones(len(held))] @ solution
    spread = (held - fit.mean(0)) @ weight.T
    return float((error**2).sum() / (spread**2).sum())


@pytest.mark.parametrize("gone", [[], [3], [0, 2, 7], list(range(10))])
@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_the_error_is_that_of_a_fit_with_offset_on_the_rows(gone: list[int], shift: float) -> None:
    fit, held = rows(200, 12, 1), rows(90, 12, 2, shift=shift)
    found = trial(fit, held)
    expected = by_rows(fit, held, found.reader.weight, np.array(gone, np.int64))
    assert held_out_error([found], np.array(gone, np.int64), RIDGE) == pytest.approx(expected, rel=1e-4, abs=1e-12)


def test_readers_are_averaged_and_nothing_left_is_all_lost() -> None:
    fit, held = rows(200, 8, 1), rows(90, 8, 2)
    both = [trial(fit, held, seed=1), trial(fit, held, seed=2)]
    gone = np.array([1, 5])
    each = [held_out_error([t], gone, RIDGE) for t in both]
    assert held_out_error(both, gone, RIDGE) == pytest.approx(sum(each) / 2)
    assert held_out_error(both, np.arange(8), RIDGE) == pytest.approx(1.0)


def order_of(found: Trial, ridge: float = 1e-6) -> Elimination:
    return eliminate([found.reader], np.arange(found.reader.weight.shape[1]), ridge)


def test_few_rows_and_other_rows_are_seen_as_overfitted() -> None:
    many, few = rows(4000, 20, 1), rows(25, 20, 1)
    cases = [(many, rows(4000, 20, 2)), (few, rows(4000, 20, 2)), (many, rows(4000, 20, 2, mix=9))]
    found = [overfits(order_of(t), [t], RIDGE) for t in (trial(*case) for case in cases)]
    assert found == [False, True, True]


def test_costs_are_the_held_out_ones_and_grow() -> None:
    found = trial(rows(60, 40, 1), rows(500, 40, 2))
    own = order_of(found)
    new = judged(own, [found], RIDGE)
    np.testing.assert_array_equal(new.order, own.order)
    assert len(new.cost) == len(own.cost)
    assert new.cost[0] == 0.0
    assert (np.diff(new.cost) >= -1e-15).all()
    last = round(GRID[-1] * len(own.order))
    assert new.cost[last] == pytest.approx(held_out_error([found], own.order[:last], RIDGE), rel=1e-9)
    assert new.cost[len(own.order) // 2] > own.cost[len(own.order) // 2]


def test_the_last_channels_are_never_free() -> None:
    """Between a few channels and one the error grows as well; a flat end would tempt a search to take them all."""
    found = trial(rows(60, 200, 1), rows(500, 200, 2))
    own = order_of(found)
    new = judged(own, [found], RIDGE)
    assert new.cost[-1] == pytest.approx(held_out_error([found], own.order, RIDGE), rel=1e-9)
    assert new.cost[-1] > 1.05 * new.cost[-8]


def test_the_order_that_does_best_on_held_out_samples_is_taken() -> None:
    """Half of the channels are silent on the fit share; an order that takes these first does badly elsewhere."""
    fit, held = rows(400, 16, 1), rows(400, 16, 2)
    fit[:, 8:] *= 1e-4
    found = trial(fit, held)
    trusting, careful = order_of(found, 1e-9), order_of(found, 1.0)
    assert set(trusting.order[:6].tolist()) <= set(range(8, 16))
    best = best_judged([trusting, careful], [found], 1e-1)
    costs = {id(e): judged(e, [found], 1e-1) for e in (trusting, careful)}
    geometric = {key: float(np.log(e.cost[1:]).mean()) for key, e in costs.items()}
    winner = trusting if geometric[id(trusting)] < geometric[id(careful)] else careful
    assert geometric[id(trusting)] != geometric[id(careful)]
    np.testing.assert_array_equal(best.order, winner.order)
