"""What rows tell of columns is what their moments tell."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from test_curves import moments

from onnx_condense.plan import FloatArray, IntArray
from onnx_condense.select.curves import Trial, held_out_error
from onnx_condense.select.obs import ReaderCost
from onnx_condense.select.pivots import eliminate_to, pivots
from onnx_condense.select.sight import Sight, error_of

RIDGE = 1e-4
CHANNELS = 40


def rows(count: int, columns: int, seed: int) -> FloatArray:
    """Columns that a few numbers nearly span, and a little of their own."""
    factors = np.random.default_rng(3).standard_normal((10, columns)) * np.geomspace(1.0, 0.2, 10)[:, None]
    rng = np.random.default_rng(seed)
    return np.asarray(rng.standard_normal((count, 10)) @ factors + 0.02 * rng.standard_normal((count, columns)))


def both(outputs: int, columns: IntArray, seed: int = 0) -> tuple[Sight, Trial]:
    """The same readers by rows and by moments."""
    count = int(columns.max()) + 1
    weight = np.random.default_rng(seed).standard_normal((outputs, count))
    fit, held = rows(300, count, 2 * seed + 10) + 0.5, rows(120, count, 2 * seed + 11) + 0.7
    seen = moments(fit)
    cost = ReaderCost(weight, seen.covariance, columns)
    shares = ((share - fit.mean(0)).astype(np.float32) for share in (fit, held))
    return Sight(weight, columns, *shares), Trial(cost, lambda: moments(held).about(seen.left))


def single() -> IntArray:
    return np.random.default_rng(5).permutation(CHANNELS)[:, None]


def several() -> IntArray:
    """One to three columns each, and channels that are not seen at all."""
    rng = np.random.default_rng(6)
    columns = np.full((CHANNELS, 3), -1)
    places = iter(rng.permutation(3 * CHANNELS).tolist())
    for row, size in zip(columns, rng.integers(0, 4, CHANNELS).tolist(), strict=True):
        row[:size] = [next(places) for _ in range(size)]
    _, numbered = np.unique(columns, return_inverse=True)
    return np.asarray(numbered.reshape(columns.shape) - 1)


CASES = {
    "single": [both(5, single())],
    "several": [both(7, several())],
    "two readers": [both(5, single()), both(60, several(), 1)],
    "more outputs than columns": [both(90, single())],
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("gone", [[], [4], list(range(10, 30)), list(range(38)), list(range(CHANNELS))])
def test_errors_are_the_same(case: Sequence[tuple[Sight, Trial]], gone: list[int]) -> None:
    out = np.array(gone, np.int64)
    expected = held_out_error([trial for _, trial in case], out, RIDGE)
    assert error_of([sight for sight, _ in case], out, RIDGE) == pytest.approx(expected, rel=1e-2, abs=1e-5)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_the_same_channels_are_picked_first(case: Sequence[tuple[Sight, Trial]]) -> None:
    every = np.arange(CHANNELS)
    ours, theirs = pivots([s for s, _ in case], every), pivots([t.reader for _, t in case], every)
    assert ours[:8].tolist() == theirs[:8].tolist()
    assert sorted(ours.tolist()) == every.tolist()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("left", [5, 12])
def test_eliminations_are_the_same(case: Sequence[tuple[Sight, Trial]], left: int) -> None:
    every, gone = np.arange(CHANNELS), CHANNELS - left
    ours = eliminate_to([s for s, _ in case], every, left, RIDGE)
    theirs = eliminate_to([t.reader for _, t in case], every, left, RIDGE)
    assert len(ours.order) == len(set(ours.order.tolist())) == CHANNELS - 1
    assert ours.cost[gone] == pytest.approx(theirs.cost[gone], rel=0.02)
    found, expected = (held_out_error([t for _, t in case], o.order[:gone], RIDGE) for o in (ours, theirs))
    assert found == pytest.approx(expected, rel=0.05)


def test_channels_below_single_precision_are_still_told_apart() -> None:
    """LAPACK's own level for single precision would take 1e-6 of the largest variance for nothing."""
    strengths = np.r_[1.0, np.full(9, 1e-3), np.full(30, 1e-4)]
    noise = np.random.default_rng(0).standard_normal((300, CHANNELS)) * strengths
    shuffle = np.random.default_rng(1).permutation(CHANNELS)
    fit = (noise - noise.mean(0))[:, shuffle].astype(np.float32)
    sight = Sight(np.ones((1, CHANNELS)), np.arange(CHANNELS)[:, None], fit, fit)
    picked = pivots([sight], np.arange(CHANNELS))[:10]
    assert set(shuffle[picked].tolist()) == set(range(10))
