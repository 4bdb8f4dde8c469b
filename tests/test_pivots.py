"""Elimination to a known width against elimination of everything."""

from __future__ import annotations

import numpy as np
import pytest
import test_obs
from test_obs import averaged, blind, reader, shuffled

from onnx_condense.plan import FloatArray
from onnx_condense.select.obs import ReaderCost, eliminate
from onnx_condense.select.pivots import AHEAD, eliminate_to, pivots

RIDGE = 1e-9
CHANNELS = 60


def spanned(rank: int, channels: int, seed: int = 0) -> FloatArray:
    """Moments of channels of which `rank` span all, each a mixture of these but for a little of its own."""
    rng = np.random.default_rng(seed)
    mixture = rng.standard_normal((rank, channels)) * np.geomspace(1.0, 0.1, rank)[:, None]
    rows = rng.standard_normal((400, rank)) @ mixture + 1e-4 * rng.standard_normal((400, channels))
    return np.asarray(np.cov(rows.T, bias=True))


def wide(seed: int = 0) -> ReaderCost:
    weight = np.random.default_rng(seed).standard_normal((7, CHANNELS))
    return ReaderCost(weight, spanned(8, CHANNELS, seed), np.arange(CHANNELS)[:, None])


def scattered() -> ReaderCost:
    """Channels of one to three columns each, anywhere on the axis."""
    sizes = np.random.default_rng(3).integers(1, 4, CHANNELS).tolist()
    return test_obs.blocks(5, sizes, seed=2)


@pytest.mark.parametrize(
    "readers",
    [
        [wide()],
        [wide(), shuffled(wide(1))],
        [wide(), blind(reader(4, CHANNELS, 5), range(10, 30))],
        [scattered()],
    ],
    ids=["one", "two", "blind", "blocks"],
)
@pytest.mark.parametrize("left", [4, 8, 12])
def test_it_does_about_as_well_as_the_whole_elimination(readers: list[ReaderCost], left: int) -> None:
    every = np.arange(CHANNELS)
    found = eliminate_to(readers, every, left, RIDGE)
    best = eliminate(readers, every, RIDGE)
    ours, theirs = (averaged(readers, e.order[: CHANNELS - left]) for e in (found, best))
    assert ours < 1.5 * theirs + 1e-7


def test_any_channels_would_not_do() -> None:
    """What the bound above is worth."""
    readers = [wide()]
    gone = np.random.default_rng(1).permutation(CHANNELS)[: CHANNELS - 8]
    best = eliminate(readers, np.arange(CHANNELS), RIDGE).order[: CHANNELS - 8]
    assert averaged(readers, gone) > 3.0 * averaged(readers, best)


def test_only_candidates_are_looked_at_one_by_one() -> None:
    left = 5
    found = eliminate_to([wide()], np.arange(CHANNELS), left, RIDGE)
    out = CHANNELS - AHEAD * left
    assert not found.cost[: out + 1].any()
    assert found.cost[out + 1] > 0.0
    assert sorted(found.order[:out]) == sorted(pivots([wide()], np.arange(CHANNELS))[AHEAD * left :])
    assert len(set(found.order.tolist())) == len(found.order) == CHANNELS - 1


def test_its_costs_are_those_of_refitted_candidates() -> None:
    """From the candidates on they are the errors that are added; what the others cost is not counted."""
    readers, left = [reader(6, CHANNELS)], 6
    found = eliminate_to(readers, np.arange(CHANNELS), left, RIDGE)
    out = CHANNELS - AHEAD * left
    before, after = (averaged(readers, found.order[:n]) for n in (out, CHANNELS - left))
    kept = 1.0 - before
    assert found.cost[CHANNELS - left] == pytest.approx((after - before) / kept, rel=1e-3)


def test_where_nothing_is_to_be_saved_it_is_the_elimination() -> None:
    readers, every = [reader(6, 20)], np.arange(20)
    found, whole = eliminate_to(readers, every, 5, RIDGE), eliminate(readers, every, RIDGE)
    assert np.array_equal(found.order, whole.order)
    assert np.array_equal(found.cost, whole.cost)


@pytest.mark.parametrize("left", [0, 1, 3])
def test_channels_that_stay_are_none_of_them(left: int) -> None:
    removable = np.arange(10, CHANNELS)
    found = eliminate_to([wide()], removable, left, RIDGE)
    assert set(found.order.tolist()) <= set(removable.tolist())
    assert len(found.order) >= len(removable) - max(left, 1)


def test_no_reader_and_nothing_that_varies() -> None:
    every = np.arange(30)
    silent = ReaderCost(np.ones((2, 30)), np.zeros((30, 30)), every[:, None])
    for readers in ([], [silent]):
        found = eliminate_to(readers, every, 3, RIDGE)
        assert len(set(found.order.tolist())) == len(found.order) == len(every) - 1


@pytest.mark.parametrize("strong", [3, 17])
def test_what_readers_weigh_most_is_picked_first(strong: int) -> None:
    weight = np.ones((1, 30))
    weight[:, strong] = 5.0
    order = pivots([ReaderCost(weight, np.eye(30), np.arange(30)[:, None])], np.arange(30))
    assert order[0] == strong


def test_a_copy_is_picked_last() -> None:
    covariance = test_obs.covariance(30)
    covariance[12], covariance[:, 12] = covariance[4], covariance[:, 4]
    weight = np.full((1, 30), 1.0)
    # Strong as it is, the other one has said it all.
    weight[:, 12] = weight[:, 4] = 100.0
    order = pivots([ReaderCost(weight, covariance, np.arange(30)[:, None])], np.arange(30))
    assert order[-1] in (4, 12)


def test_readers_are_weighed_by_their_own_spread() -> None:
    """A reader of large numbers does not drown another one."""
    loud, soft = np.zeros(10), np.zeros(10)
    loud[:3], soft[3:5] = (1e3, 1e3, 100.0), 1.0
    every = np.arange(10)
    readers = [ReaderCost(np.diag(w), np.eye(10), every[:, None]) for w in (loud, soft)]
    assert set(pivots(readers, every)[:4].tolist()) == {0, 1, 3, 4}


def test_a_channel_without_columns_counts_nothing() -> None:
    only = ReaderCost(np.array([[1.0, 9.0]]), np.eye(2), np.array([[0], [-1], [1]]))
    assert pivots([only], np.arange(3)).tolist() == [2, 0, 1]
