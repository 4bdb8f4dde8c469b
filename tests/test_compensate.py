"""The refit of one reader against numpy's least squares."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_condense.fit.compensate import factorized, mean_variance, refit
from onnx_condense.plan import FloatArray, IntArray, Moments

TINY = 1e-12


def moments(left: FloatArray, right: FloatArray) -> Moments:
    a, b = left.mean(0), right.mean(0)
    return Moments(len(left), a, b, (left - a).T @ (right - b))


def problem(seed: int = 0) -> tuple[FloatArray, FloatArray, IntArray, FloatArray]:
    """W [3, 6], dense t [500, 6] with means, what stays of it, and h [500, 4], a noisy copy of that."""
    rng = np.random.default_rng(seed)
    t = rng.standard_normal((500, 6)) @ rng.standard_normal((6, 6)) + rng.standard_normal(6) * 3
    keep = np.array([0, 2, 3, 5])
    return rng.standard_normal((3, 6)), t, keep, t[:, keep] + 0.3 * rng.standard_normal((500, 4)) + 1


def test_without_a_ridge_it_is_least_squares_with_a_constant() -> None:
    W, t, keep, h = problem()
    fitted, offset = refit(W, moments(t, h), moments(h, h), keep, TINY)
    solution, *_ = np.linalg.lstsq(np.c_[h, np.ones(len(h))], t @ W.T, rcond=None)
    np.testing.assert_allclose(fitted, solution[:4].T, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(offset, solution[4], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("ridge", [1e-3, 0.3])
def test_the_ridge_pulls_towards_the_dense_weights(ridge: float) -> None:
    W, t, keep, h = problem()
    fitted, offset = refit(W, moments(t, h), moments(h, h), keep, ridge)
    # Ridge regression around W_S: extra rows sqrt(n ridge level) (W' - W_S) = 0.
    level = mean_variance(np.cov(h.T, bias=True))
    strength = np.sqrt(len(h) * ridge * level)
    centred_h, centred_t = h - h.mean(0), t - t.mean(0)
    rows = np.r_[centred_h, strength * np.eye(4)]
    targets = np.r_[centred_t @ W.T, strength * W[:, keep].T]
    solution, *_ = np.linalg.lstsq(rows, targets, rcond=None)
    np.testing.assert_allclose(fitted, solution.T, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(offset, (t @ W.T).mean(0) - h.mean(0) @ fitted.T, rtol=1e-6, atol=1e-8)


def test_nothing_gone_changes_nothing() -> None:
    W, t, _, _ = problem()
    fitted, offset = refit(W, moments(t, t), moments(t, t), np.arange(6), 1e-4)
    np.testing.assert_allclose(fitted, W, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(offset, 0, atol=1e-8)


def test_a_dropped_copy_is_taken_over_exactly() -> None:
    W, t, _, _ = problem()
    t[:, 5] = 2 * t[:, 1] + 7
    keep = np.arange(5)
    fitted, offset = refit(W, moments(t, t[:, keep]), moments(t[:, keep], t[:, keep]), keep, 1e-10)
    expected = W[:, :5].copy()
    expected[:, 1] += 2 * W[:, 5]
    np.testing.assert_allclose(fitted, expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(offset, 7 * W[:, 5], rtol=1e-6, atol=1e-6)


def test_what_does_not_vary_keeps_its_weights() -> None:
    W, t, keep, _ = problem()
    still = np.ones((500, 6)) * np.arange(6.0)
    fitted, offset = refit(W, moments(still, still[:, keep]), moments(still[:, keep], still[:, keep]), keep, 1e-6)
    np.testing.assert_allclose(fitted, W[:, keep], rtol=1e-6)
    gone = [1, 4]
    np.testing.assert_allclose(offset, W[:, gone] @ np.arange(6.0)[gone], rtol=1e-6)
    assert t.shape == still.shape


# ---- several columns of a channel pooled ----


def pooled_moments(left: FloatArray, right: FloatArray) -> Moments:
    """Of [n, b, K] and [n, b, L]."""
    a, b = left.mean(0), right.mean(0)
    return Moments(len(left), a, b, np.einsum("nbk,nbl->kl", left - a, right - b))


def pooled_problem() -> tuple[FloatArray, FloatArray, IntArray, FloatArray]:
    """W [2, 3, 6] (output, tap, channel), t [400, 3, 6] with a mean of its own per tap, keep, and h [400, 3, 4]."""
    rng = np.random.default_rng(1)
    t = rng.standard_normal((400, 3, 6)) @ rng.standard_normal((6, 6)) + 4 * rng.standard_normal((3, 6))
    keep = np.array([0, 2, 3, 5])
    h = t[:, :, keep] + 0.3 * rng.standard_normal((400, 3, 4)) + rng.standard_normal((3, 4))
    return rng.standard_normal((2, 3, 6)), t, keep, h


@pytest.mark.parametrize("ridge", [TINY, 1e-3, 0.3])
def test_pooled_columns_are_rows_of_one_least_squares_problem(ridge: float) -> None:
    W, t, keep, h = pooled_problem()
    stacked = W.reshape(6, 6)
    fitted, offset = refit(stacked, pooled_moments(t, h), pooled_moments(h, h), keep, ridge)
    # Every tap of every sample is a row; each tap has its own mean.
    centred_t, centred_h = ((x - x.mean(0)).reshape(1200, -1) for x in (t, h))
    level = np.square(centred_h).sum() / 400 / 4
    strength = np.sqrt(400 * ridge * level)
    rows = np.r_[centred_h, strength * np.eye(4)]
    targets = np.r_[centred_t @ stacked.T, strength * stacked[:, keep].T]
    solution, *_ = np.linalg.lstsq(rows, targets, rcond=None)
    np.testing.assert_allclose(fitted, solution.T, rtol=1e-6, atol=1e-8)
    # The mean of what the reader answers is that of the dense one, exactly.
    before = np.einsum("obk,nbk->no", W, t).mean(0)
    after = np.einsum("obl,nbl->no", fitted.reshape(2, 3, 4), h).mean(0) + offset
    np.testing.assert_allclose(after, before, rtol=1e-10, atol=1e-10)


def test_one_mixing_of_channels_serves_all_pooled_columns() -> None:
    W, t, keep, h = pooled_problem()
    fitted, _ = refit(W.reshape(6, 6), pooled_moments(t, h), pooled_moments(h, h), keep, TINY)
    cross, own = pooled_moments(t, h).product, pooled_moments(h, h).product
    mixing = cross @ np.linalg.inv(own)
    for tap in range(3):
        np.testing.assert_allclose(fitted.reshape(2, 3, 4)[:, tap], W[:, tap] @ mixing, rtol=1e-6, atol=1e-8)


def test_one_pooled_column_is_none() -> None:
    W, t, keep, h = problem()
    plain = refit(W, moments(t, h), moments(h, h), keep, 1e-3)
    single = refit(W, pooled_moments(t[:, None], h[:, None]), pooled_moments(h[:, None], h[:, None]), keep, 1e-3)
    for a, b in zip(plain, single, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-12, atol=1e-12)


def test_an_indefinite_covariance_gets_a_larger_ridge() -> None:
    C = np.diag([1.0, 1.0, -1e-6])
    factor, lower = factorized(C, 1e-12)
    assert lower
    product = np.tril(factor) @ np.tril(factor).T
    assert np.isfinite(product).all()
    np.testing.assert_allclose(product, C, atol=2e-5)
    assert np.linalg.eigvalsh(product).min() > 0


def test_the_level_is_the_mean_variance_or_one() -> None:
    assert mean_variance(np.diag([1.0, 3.0])) == 2.0
    assert mean_variance(np.zeros((2, 2))) == 1.0
