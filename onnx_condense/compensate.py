"""How a reader takes over what was dropped: least squares on moments.

With t what the dense network reads and h what is left of it in the condensed one,
B = Cov(t, h) (Cov(h, h) + ridge)^-1, W' = W B, and the bias takes W (mean t - B mean h).
"""

from __future__ import annotations

import numpy as np
import scipy.linalg

from onnx_condense.evidence.moments import Moments
from onnx_condense.plan import FloatArray


def refit(weight: FloatArray, cross: Moments, kept: Moments, ridge: float) -> tuple[FloatArray, FloatArray]:
    """New columns and offset of one reader.

    Args:
        weight: [O, K] dense columns.
        cross: moments of (t [K], h [L]).
        kept: moments of (h, h) on the same rows.
        ridge: relative to the mean variance of h.

    Returns:
        W' [O, L] and W (mean t - B mean h) [O].
    """
    C = kept.covariance
    target = weight @ cross.covariance
    fitted = scipy.linalg.cho_solve(factorized(C, ridge), target.T, overwrite_b=True, check_finite=False).T
    return fitted, weight @ cross.left - fitted @ cross.right


def factorized(C: FloatArray, ridge: float) -> tuple[FloatArray, bool]:
    """Cholesky factor of C [K, K] + ridge x mean variance, for `scipy.linalg.cho_solve`.

    Moments summed in fp32 may be indefinite by rounding; the ridge then grows until they are not.
    """
    level = float(np.trace(C)) / max(len(C), 1)
    # Where nothing varies any level will do.
    level = level if level > 0 else 1.0
    while True:
        raised = C.copy()
        raised.flat[:: len(C) + 1] += ridge * level
        try:
            factor, lower = scipy.linalg.cho_factor(raised, lower=True, overwrite_a=True, check_finite=False)
        except np.linalg.LinAlgError:
            ridge *= 10
            continue
        return factor, lower
