"""How a reader takes over what was dropped: least squares on moments, pulled towards the dense weights.

With t what the dense network reads, h what is left of it in the condensed one and W_S the dense columns of what
stays, W' minimizes mean ||W t - W' h - c||^2 + ridge ||W' - W_S||^2:

    W' = (W Cov(t, h) + ridge W_S) (Cov(h, h) + ridge)^-1,   c = W mean t - W' mean h.

Directions in which the samples say nothing keep their dense weights, so that inputs unlike the samples are not
answered with shrunk ones (docs/benchmarks.md has the comparison with a pull towards zero).
"""

from __future__ import annotations

import numpy as np
import scipy.linalg

from onnx_condense.plan import FloatArray, IntArray, Moments


def refit(
    weight: FloatArray, cross: Moments, kept: Moments, keep: IntArray, ridge: float
) -> tuple[FloatArray, FloatArray]:
    """New columns and offset of one reader.

    Args:
        weight: [O, K] dense columns; [O b, K] where b columns of a channel are pooled.
        cross: moments of (t [K], h [L]).
        kept: moments of (h, h) on the same rows.
        keep: [L] which columns stay.
        ridge: relative to the mean variance of h.

    Returns:
        W' [O, L] ([O b, L]) and c [O].
    """
    fitted = columns_of(weight, cross.covariance, kept.covariance, keep, ridge)
    return fitted, _means(weight, cross.left) - _means(fitted, cross.right)


def columns_of(weight: FloatArray, cross: FloatArray, kept: FloatArray, keep: IntArray, ridge: float) -> FloatArray:
    """W' [O, L] from Cov(t, h) [K, L] and Cov(h, h) [L, L]; see `refit`."""
    return columns_for(weight @ cross, weight[:, keep], kept, ridge)


def columns_for(cross: FloatArray, dense: FloatArray, kept: FloatArray, ridge: float) -> FloatArray:
    """The same from Cov(W t, h) [O, L] and the dense columns W_S [O, L] themselves."""
    target = cross + ridge * mean_variance(kept) * dense
    fitted = scipy.linalg.cho_solve(factorized(kept, ridge), target.T, overwrite_b=True, check_finite=False).T
    return np.asarray(fitted)


def _means(weight: FloatArray, means: FloatArray) -> FloatArray:
    """What a weight [O b, K] makes of means [b, K] (or [K]): [O]."""
    rows = np.atleast_2d(means)
    return np.asarray(np.einsum("obk,bk->o", weight.reshape(-1, *rows.shape), rows, optimize=True))


def mean_variance(C: FloatArray) -> float:
    """What ridges are relative to; 1 where nothing varies and any level will do."""
    level = float(np.trace(C)) / max(len(C), 1)
    return level if level > 0 else 1.0


def factorized(C: FloatArray, ridge: float) -> tuple[FloatArray, bool]:
    """Cholesky factor of C [K, K] + ridge x mean variance, for `scipy.linalg.cho_solve`.

    Moments summed in fp32 may be indefinite by rounding; the ridge then grows until they are not.
    """
    while True:
        # LAPACK's own order: any other would be copied once more.
        raised = C.copy(order="F")
        raised.flat[:: len(C) + 1] += ridge * mean_variance(C)
        try:
            factor, lower = scipy.linalg.cho_factor(raised, lower=True, overwrite_a=True, check_finite=False)
        except np.linalg.LinAlgError:
            ridge *= 10
            continue
        return factor, lower
