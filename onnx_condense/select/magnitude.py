"""Channels in order of magnitude: the baseline that every pruning method is compared with."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onnx_condense.plan import FloatArray
from onnx_condense.select.obs import Elimination


def by_norm(norm: FloatArray, pinned: npt.NDArray[np.bool_], share: FloatArray) -> Elimination:
    """The order in which channels go, weakest first, until one of those that may go is left.

    Args:
        norm: [C] amplitudes: L2 norms of the writers' rows with biases and scales.
        pinned: [C] which have to stay.
        share: [C] share of the readers' squared sums that each channel makes: what is lost with it.
    """
    removable = np.flatnonzero(~pinned)
    order = removable[np.argsort(norm[removable], kind="stable")][:-1]
    return Elimination(order, np.r_[0.0, np.cumsum(share[order])])
