"""The basis of a trunk against singular values, plain least squares and every selection of channels."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from onnx_condense.plan import FloatArray, Moments
from onnx_condense.select import rotation
from onnx_condense.select.curves import Trial
from onnx_condense.select.obs import ReaderCost
from onnx_condense.select.rotation import best_basis, left_mixed, mixed, mixed_moments, shortened, turned

TIGHT = 1e-10


def reader(seed: int, width: int = 8, outputs: int = 12, taps: int = 1) -> ReaderCost:
    """Correlated channels; of a kernel, channel by channel."""
    rng = np.random.default_rng(seed)
    size = width * taps
    C = np.cov(rng.standard_normal((size, 3 * size)) * np.linspace(0.1, 2, size)[:, None])
    return ReaderCost(rng.standard_normal((outputs, size)), C, np.arange(size).reshape(width, taps))


def lost(readers: list[ReaderCost], into: FloatArray) -> float:
    """The relative squared error of the best readers of `into` times the trunk, averaged."""
    total = 0.0
    for r in readers:
        B = np.zeros((len(into) * r.columns.shape[1], r.weight.shape[1]))
        for j, own in enumerate(r.columns.T):
            B[j * len(into) : (j + 1) * len(into), own] = into
        L = np.linalg.cholesky(r.covariance)
        W = np.linalg.lstsq((B @ L).T, (r.weight @ L).T, rcond=None)[0].T
        total += float((((r.weight - W @ B) @ L) ** 2).sum() / ((r.weight @ L) ** 2).sum())
    return total / len(readers)


def trial(r: ReaderCost) -> Trial:
    return Trial(r, lambda: r.covariance)


def test_the_basis_has_its_inverse_and_rows_of_length_one() -> None:
    basis = best_basis([reader(0), reader(1)], TIGHT)
    np.testing.assert_allclose(basis.into @ basis.out, np.eye(8), atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(basis.into, axis=1), 1.0)


def test_of_one_reader_the_costs_are_the_tail_of_its_singular_values() -> None:
    one = reader(0)
    singular = np.linalg.svd(one.weight @ np.linalg.cholesky(one.covariance), compute_uv=False)
    tail = (singular**2)[::-1].cumsum() / (singular**2).sum()
    found = shortened([turned(trial(one), best_basis([one], TIGHT)).reader], TIGHT)
    np.testing.assert_array_equal(found.order, np.arange(7, 0, -1))
    np.testing.assert_allclose(found.cost[1:], tail[:-1], rtol=1e-6)


@pytest.mark.parametrize("readers", [[reader(0)], [reader(0), reader(3), reader(5)], [reader(2, taps=3)]])
def test_costs_are_those_of_plain_least_squares(readers: list[ReaderCost]) -> None:
    basis = best_basis(readers, TIGHT)
    found = shortened([turned(trial(r), basis).reader for r in readers], TIGHT)
    expected = [lost(readers, basis.into[: 8 - gone]) for gone in range(1, 8)]
    np.testing.assert_allclose(found.cost, [0.0, *expected], rtol=1e-5, atol=1e-9)


def ratios(readers: list[ReaderCost]) -> list[float]:
    """By width: what mixing loses over what the best selection of channels loses."""
    found = shortened([turned(trial(r), best_basis(readers, TIGHT)).reader for r in readers], TIGHT).cost[:0:-1]
    every = [itertools.combinations(range(8), kept) for kept in range(1, 8)]
    picked = [min(lost(readers, np.eye(8)[list(keep)]) for keep in keeps) for keeps in every]
    return [float(a / b) for a, b in zip(found, picked, strict=True)]


@pytest.mark.parametrize("seed", range(4))
def test_for_one_reader_no_selection_of_channels_is_better(seed: int) -> None:
    assert max(ratios([reader(seed)])) < 1


@pytest.mark.parametrize("seed", range(4))
def test_for_several_readers_no_selection_is_better_on_average(seed: int) -> None:
    assert np.log(ratios([reader(10 * seed + i) for i in range(3)])).mean() < 0


def test_several_readers_are_served_better_than_by_the_basis_of_their_mean() -> None:
    """Of readers whose channels vary in unlike ways: what a pooled covariance says is not what they hear."""
    readers = [reader(i, width=16, outputs=24) for i in range(3)]
    C = np.mean([r.covariance for r in readers], axis=0)
    scaled = [r.weight / np.sqrt(np.trace(r.weight @ r.covariance @ r.weight.T)) for r in readers]
    L = np.linalg.cholesky(C)
    _, _, V = np.linalg.svd(np.concatenate(scaled) @ L)
    pooled = V @ np.linalg.inv(L)
    own = best_basis(readers, TIGHT).into
    assert all(lost(readers, own[:k]) < lost(readers, pooled[:k]) for k in (4, 8, 12))


def test_above_a_limit_of_work_readers_count_as_one_of_the_mean_covariance(monkeypatch: pytest.MonkeyPatch) -> None:
    readers = [reader(i) for i in range(3)]
    C = np.mean([r.covariance for r in readers], axis=0)
    scaled = [r.weight / np.sqrt(np.trace(r.weight @ r.covariance @ r.weight.T)) for r in readers]
    expected = best_basis([ReaderCost(np.concatenate(scaled), C, readers[0].columns)], TIGHT)
    apart = best_basis(readers, TIGHT)
    monkeypatch.setattr(rotation, "WORK", 3 * 8**3)
    np.testing.assert_array_equal(best_basis(readers, TIGHT).into, apart.into)
    monkeypatch.setattr(rotation, "WORK", 3 * 8**3 - 1)
    found = best_basis(readers, TIGHT)
    np.testing.assert_allclose(np.abs(found.into), np.abs(expected.into), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(found.into @ found.out, np.eye(8), atol=1e-9)
    assert not np.allclose(found.into, apart.into)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_a_reader_counts_the_same_at_any_scale(scale: float) -> None:
    readers = [reader(i) for i in range(3)]
    other = [*readers[:2], ReaderCost(readers[2].weight * scale, readers[2].covariance, readers[2].columns)]
    found, expected = (best_basis(r, TIGHT).into for r in (other, readers))
    np.testing.assert_allclose(np.abs(found), np.abs(expected), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("width", [2, 3, 8])
def test_readers_that_hear_nothing_and_channels_that_never_vary_have_a_basis(width: int) -> None:
    own = np.arange(width)[:, None]
    silent = ReaderCost(np.zeros((4, width)), np.eye(width), own)
    constant = ReaderCost(np.ones((4, width)), np.zeros((width, width)), own)
    for readers in ([silent], [constant], [silent, constant], [silent, constant, reader(0, width)]):
        basis = best_basis(readers, 1e-5)
        np.testing.assert_allclose(basis.into @ basis.out, np.eye(width), atol=1e-9)
        assert np.abs(basis.out).max() < 1e3
        assert np.isfinite(shortened([turned(trial(r), basis).reader for r in readers], 1e-5).cost).all()


def test_features_without_variance_come_last_and_are_not_blown_up() -> None:
    rng = np.random.default_rng(0)
    factors = rng.standard_normal((8, 3))
    flat = ReaderCost(rng.standard_normal((5, 8)), factors @ factors.T, np.arange(8)[:, None])
    basis = best_basis([flat], 1e-5)
    assert np.abs(basis.out).max() < 10
    kept = shortened([turned(trial(flat), basis).reader], 1e-5).cost
    assert kept[5] < 1e-4 < kept[6]


def test_moments_are_those_of_mixed_rows() -> None:
    rng = np.random.default_rng(0)
    rows, others, matrix = rng.standard_normal((50, 6)), rng.standard_normal((50, 2)), rng.standard_normal((3, 3))
    columns = np.array([[0, 1], [2, 3], [4, 5]])

    def moments(a: FloatArray, b: FloatArray) -> Moments:
        return Moments(50.0, a.mean(0), b.mean(0), (a - a.mean(0)).T @ (b - b.mean(0)))

    new = (matrix @ rows.reshape(50, 3, 2)).reshape(50, 6)
    np.testing.assert_allclose(mixed(rows, columns, matrix), new)
    for found, expected in (
        (mixed_moments(moments(rows, rows), columns, matrix), moments(new, new)),
        (left_mixed(moments(rows, others), columns, matrix), moments(new, others)),
    ):
        np.testing.assert_allclose(found.product, expected.product)
        np.testing.assert_allclose(found.left, expected.left)
        np.testing.assert_allclose(found.right, expected.right)
