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
        cross: moments of (t [K], h [L]); kept: of (h, h) on the same rows.
        ridge: relative to the mean variance of h.

    Returns:
        W' [O, L] and W (mean t - B mean h) [O].
    """
    C = kept.covariance
    level = float(np.trace(C)) / max(len(C), 1)
    # A tiny absolute floor keeps the factorization defined where h does not vary at all.
    C = C + (ridge * level + np.finfo(np.float64).tiny ** 0.5) * np.eye(len(C))
    target = weight @ cross.covariance
    fitted = scipy.linalg.solve(C, target.T, assume_a="pos").T
    return fitted, weight @ cross.left - fitted @ cross.right
