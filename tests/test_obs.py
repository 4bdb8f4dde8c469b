"""Backward elimination against brute force least squares."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest

from onnx_condense.plan import FloatArray, IntArray
from onnx_condense.select.obs import ReaderCost, eliminate

RIDGE = 1e-9


def covariance(channels: int, seed: int = 0, rows: int = 400) -> FloatArray:
    """Correlated features."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, channels)) @ rng.standard_normal((channels, channels))
    return np.asarray(np.cov(x.T, bias=True))


def reader(outputs: int, channels: int, seed: int = 0) -> ReaderCost:
    weight = np.random.default_rng(seed + 100).standard_normal((outputs, channels))
    return ReaderCost(weight, covariance(channels, seed), np.arange(channels)[:, None])


def residual(reader: ReaderCost, gone: IntArray) -> float:
    """Relative squared error of a reader once the columns of some channels are refitted away, by its definition."""
    C, W = reader.covariance, reader.weight
    lost = reader.columns[gone].reshape(-1)
    lost = lost[lost >= 0]
    keep = np.setdiff1d(np.arange(len(C)), lost)
    # Residual variance of what went, given what stays (Schur complement).
    left = C[np.ix_(lost, lost)] - C[np.ix_(lost, keep)] @ np.linalg.solve(C[np.ix_(keep, keep)], C[np.ix_(keep, lost)])
    return float(np.trace(W[:, lost] @ left @ W[:, lost].T) / np.trace(W @ C @ W.T))


def averaged(readers: Sequence[ReaderCost], gone: IntArray) -> float:
    return sum(residual(r, gone) for r in readers) / len(readers)


def blind(reader: ReaderCost, hidden: Sequence[int]) -> ReaderCost:
    """A reader that does not see some channels."""
    seen = [c for c in range(len(reader.columns)) if c not in hidden]
    position = np.full(len(reader.columns), -1)
    position[seen] = np.arange(len(seen))
    return ReaderCost(reader.weight[:, seen], reader.covariance[np.ix_(seen, seen)], position[:, None])


def shuffled(reader: ReaderCost, seed: int = 0) -> ReaderCost:
    """The same reader with its columns in another order than the channels."""
    order = np.random.default_rng(seed).permutation(len(reader.columns))
    position = np.argsort(order)
    return ReaderCost(reader.weight[:, order], reader.covariance[np.ix_(order, order)], position[:, None])


def blocks(outputs: int, sizes: Sequence[int], seed: int = 0, rows: int = 400) -> ReaderCost:
    """A reader of channels that own as many columns as `sizes` says, scattered over the axis."""
    total, widest = sum(sizes), max(sizes)
    order = iter(np.random.default_rng(seed + 50).permutation(total))
    columns = np.array([[next(order) if i < size else -1 for i in range(widest)] for size in sizes])
    # Gaps may lie anywhere in a row.
    columns = np.random.default_rng(seed + 60).permuted(columns, axis=1)
    weight = np.random.default_rng(seed + 100).standard_normal((outputs, total))
    return ReaderCost(weight, covariance(total, seed, rows), columns)


READERS = {
    "one": [reader(3, 9)],
    "one output": [reader(1, 9)],
    "columns in another order": [shuffled(reader(3, 9))],
    "several": [reader(3, 9), reader(5, 9, 1), shuffled(reader(2, 9, 2))],
    "some do not see all": [reader(3, 9), blind(reader(4, 9, 1), [0, 3, 4]), blind(reader(2, 9, 2), [8])],
    "blocks": [blocks(3, [3] * 9)],
    "blocks of one output": [blocks(1, [4] * 9)],
    "blocks of different sizes": [blocks(4, [1, 3, 2, 2, 1, 3, 3, 1, 2])],
    "blocks beside single columns": [reader(3, 9), blocks(4, [3] * 9, 1), blocks(2, [2] * 9, 2)],
    "blocks that some do not see": [blocks(3, [2] * 9), blocks(4, [0, 3, 2, 0, 0, 1, 3, 3, 2], 1)],
    "blocks beside columns of nobody": [
        dataclasses.replace(whole := blocks(3, [2] * 12), columns=whole.columns[:9]),
        blocks(2, [3] * 9, 1),
    ],
}


@pytest.mark.parametrize("readers", READERS.values(), ids=READERS.keys())
def test_costs_are_the_exact_least_squares_errors(readers: Sequence[ReaderCost]) -> None:
    found = eliminate(readers, np.arange(9), RIDGE)
    assert len(found.order) == 8
    assert len(set(found.order.tolist())) == 8
    assert found.cost[0] == 0.0
    for removed in range(1, 9):
        assert found.cost[removed] == pytest.approx(averaged(readers, found.order[:removed]), rel=1e-4)


@pytest.mark.parametrize("readers", READERS.values(), ids=READERS.keys())
def test_every_step_is_the_best_by_brute_force(readers: Sequence[ReaderCost]) -> None:
    order = eliminate(readers, np.arange(9), RIDGE).order.tolist()
    for step in range(8):
        left = [c for c in range(9) if c not in order[:step]]
        best = min(left, key=lambda c: averaged(readers, np.array([*order[:step], c])))
        assert order[step] == best


def test_blocks_stay_exact_and_close_to_the_best() -> None:
    # 120 channels: several go at once, chosen among the cheapest.
    readers = [reader(4, 120), shuffled(reader(4, 120, 1))]
    found = eliminate(readers, np.arange(120), RIDGE)
    for removed in (1, 2, 3, 30, 60, 100, 119):
        assert found.cost[removed] == pytest.approx(averaged(readers, found.order[:removed]), rel=1e-3, abs=1e-9)
    # ||W_p||^2 / G_pp is the exact cost of going first.
    first = np.zeros(120)
    for r in readers:
        own = np.square(r.weight).sum(0) / np.linalg.inv(r.covariance).diagonal()
        first += (own / np.trace(r.weight @ r.covariance @ r.weight.T))[r.columns[:, 0]]
    assert found.order[0] == first.argmin()


def test_many_blocks_of_several_columns_stay_exact() -> None:
    # Two of 60 channels go at once in the first passes; what is left is then downdated by all their columns.
    sizes = np.random.default_rng(3).integers(0, 4, 60).tolist()
    readers = [blocks(3, [3] * 60, 4, 1000), blocks(5, sizes, 5, 1000)]
    found = eliminate(readers, np.arange(60), RIDGE)
    for removed in (1, 2, 3, 20, 40, 59):
        assert found.cost[removed] == pytest.approx(averaged(readers, found.order[:removed]), rel=1e-3, abs=1e-9)
    first = min(range(60), key=lambda c: averaged(readers, np.array([c])))
    assert found.order[0] == first


@pytest.mark.parametrize("channels", [9, 120])
def test_a_block_of_one_column_is_that_column(channels: int) -> None:
    single = [shuffled(reader(3, channels)), reader(2, channels, 1)]
    wide = [dataclasses.replace(r, columns=np.c_[np.full(channels, -1), r.columns]) for r in single]
    expected, found = (eliminate(r, np.arange(channels), 1e-6) for r in (single, wide))
    np.testing.assert_array_equal(found.order, expected.order)
    np.testing.assert_allclose(found.cost, expected.cost, rtol=1e-6, atol=1e-12)


def test_a_channel_that_no_reader_sees_is_free() -> None:
    found = eliminate([blocks(3, [2, 2, 0, 2, 2]), blocks(3, [3, 1, 0, 1, 2], 1)], np.arange(5), RIDGE)
    assert found.order[0] == 2
    assert found.cost[1] == 0.0 < found.cost[2]


def test_copies_of_whole_blocks_cost_nothing_and_single_shared_columns_do() -> None:
    C = covariance(6)
    # Channel 3 mixes both columns of channel 0; channel 4 shares one column with channel 1 and has one of its own.
    mix = np.array([[1, 2, 0, 0, 0, 0], [-1, 1, 0, 0, 0, 0]])
    shared = np.eye(6)[[2]]
    x = np.random.default_rng(7).standard_normal((400, 7)) @ np.linalg.cholesky(_bordered(C)).T
    wide = np.c_[x[:, :6], x[:, :6] @ mix.T, x[:, :6] @ shared.T, x[:, 6:]]
    weight = np.random.default_rng(5).standard_normal((3, 10))
    costs = ReaderCost(weight, np.asarray(np.cov(wide.T, bias=True)), np.arange(10).reshape(5, 2))
    found = eliminate([costs], np.arange(5), 1e-8)
    assert found.order[0] in (0, 3)
    assert found.cost[1] < 1e-5 < found.cost[2]


def _bordered(C: FloatArray) -> FloatArray:
    """C with one more feature that varies by itself."""
    wide = np.eye(len(C) + 1)
    wide[:-1, :-1] = C
    return wide


def test_channels_that_may_not_go_never_do() -> None:
    removable = np.array([1, 4, 5, 7])
    found = eliminate(READERS["several"], removable, RIDGE)
    assert set(found.order.tolist()) < set(removable.tolist())
    assert len(found.order) == 3
    assert found.cost[3] == pytest.approx(averaged(READERS["several"], found.order), rel=1e-4)


def test_copies_and_constants_cost_nothing_and_go_first() -> None:
    C = covariance(6)
    wide = np.zeros((8, 8))
    source = [0, 1, 2, 3, 4, 5, 2]
    wide[:7, :7] = C[np.ix_(source, source)]  # 6 is a copy of 2; 7 is constant
    weight = np.random.default_rng(5).standard_normal((3, 8))
    found = eliminate([ReaderCost(weight, wide, np.arange(8)[:, None])], np.arange(8), 1e-7)
    assert 7 in found.order[:2]
    assert {2, 6} & set(found.order[:2].tolist())
    assert found.cost[2] < 1e-5 < found.cost[3]


def test_costs_never_fall_and_end_near_all_that_varies() -> None:
    cost = eliminate(READERS["several"], np.arange(9), RIDGE).cost
    assert (np.diff(cost) >= 0).all()
    assert 0.2 < cost[-1] <= 1.0


def test_a_reader_that_reads_nothing_is_free() -> None:
    silent = ReaderCost(np.zeros((3, 9)), covariance(9), np.arange(9)[:, None])
    assert eliminate([silent], np.arange(9), RIDGE).cost[-1] == 0.0
    assert np.isfinite(
        eliminate([ReaderCost(np.ones((3, 9)), np.zeros((9, 9)), np.arange(9)[:, None])], np.arange(9), RIDGE).cost
    ).all()


@pytest.mark.parametrize("count", [0, 1])
def test_one_channel_always_stays(count: int) -> None:
    found = eliminate([reader(3, 9)], np.arange(count), RIDGE)
    assert found.order.size == 0
    assert found.cost.tolist() == [0.0]


def test_the_inputs_are_left_as_they_are() -> None:
    for before in (reader(3, 30), blocks(3, [2] * 30)):
        copies = [a.copy() for a in (before.weight, before.covariance, before.columns)]
        eliminate([before], np.arange(30), RIDGE)
        for old, new in zip(copies, (before.weight, before.covariance, before.columns), strict=True):
            np.testing.assert_array_equal(old, new)


def test_a_reader_may_lose_all_that_it_sees_before_the_space_is_done() -> None:
    """Two parts of one space (Split), one reader each; the first sees only what costs nothing."""
    first = ReaderCost(np.full((1, 2), 1e-6), np.eye(2), np.array([[0], [1], [-1], [-1]]))
    second = ReaderCost(np.ones((1, 2)), np.array([[1.0, -0.9], [-0.9, 1.0]]), np.array([[-1], [-1], [0], [1]]))
    found = eliminate([first, second], np.arange(4), RIDGE)
    assert len(found.order) == 3
    assert np.isfinite(found.cost).all()
