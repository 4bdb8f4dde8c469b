"""Channels grouped by the cosine of their feature directions: the selection of the condensation method.

Chen & Xu (*Efficient and Flexible Method for Reducing Moderate-Size Deep Neural Networks with Condensation*, Entropy
26(7):567, 2024) merge neurons of one layer that point in one direction. What is here is a **reconstruction**: no code
was published, and thresholds, the merge formula and the treatment of BatchNormalization are not told in what we could
read. It follows what the authors' work on condensation defines (direction [w, b] / |[w, b]|, amplitude |[w, b]|) and
what merging aligned neurons has to be under a positively homogeneous activation: one representative r stays, and the
outgoing columns of the others are added to its own, scaled by A_i / A_r. The paper trains shortly after that; nothing
here does.

By threshold: from the largest amplitude on, a channel joins the representative most like it, if their cosine reaches
the threshold, or becomes one. Automatic: step by step the two channels most alike become one, and the one of less
amplitude goes; what that costs is told by 1 - cos^2 of what went with the nearest that stays, weighted by how much of
the readers' sums it makes. A channel that has to stay may represent others.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onnx_condense.plan import FloatArray, IntArray
from onnx_condense.select.obs import Elimination

# Cosines of multiples are 1 up to the rounding of sums in fp64.
SLACK = 1e-12

BoolArray = npt.NDArray[np.bool_]


def grouped(
    cosine: FloatArray, norm: FloatArray, pinned: BoolArray, share: FloatArray, threshold: float
) -> Elimination:
    """The channels that a threshold merges, most alike first; those that stay are the representatives.

    Args:
        cosine: [C, C] of what goes with what would stand for it.
        norm: [C] amplitudes.
        pinned: [C] which have to stay.
        share: [C] share of the readers' squared sums that each channel makes, for the cost.
        threshold: least cosine with the representative.
    """
    leads: list[int] = []
    gone: list[tuple[float, int]] = []
    for channel in np.lexsort((-norm, ~pinned)).tolist():
        likeness = cosine[channel, leads].max() if leads else -1.0
        if not pinned[channel] and likeness >= threshold - SLACK:
            gone.append((-float(likeness), channel))
        else:
            leads.append(channel)
    order = np.array([channel for _, channel in sorted(gone)], np.int64)
    return Elimination(order, _costs(cosine, share, order))


def agglomerated(cosine: FloatArray, norm: FloatArray, pinned: BoolArray, share: FloatArray) -> Elimination:
    """The order in which channels go if two that are most alike become one, until one of those that may go is left.

    Args: see `grouped`.
    """
    likeness = cosine.copy()
    np.fill_diagonal(likeness, -np.inf)
    order: list[int] = []
    removable = ~pinned
    # Two that both have to stay are no pair, so only rows of removable channels are asked for their best partner.
    best = likeness.argmax(axis=1)
    value = np.where(removable, likeness[np.arange(len(best)), best], -np.inf)
    gone, count = np.zeros(len(best), bool), int(removable.sum())
    while len(order) < count - 1:
        one = int(value.argmax())
        other = int(best[one])
        if gone[other]:
            # Those that are left are at most as like, so nobody has to be asked before his turn.
            best[one] = other = int(likeness[one].argmax())
            value[one] = likeness[one, other]
            continue
        smaller = (norm[other], -other) < (norm[one], -one)
        lost = other if removable[other] and smaller and cosine[other, one] >= cosine[one, other] else one
        order.append(lost)
        removable[lost], gone[lost] = False, True
        value[lost] = -np.inf
        likeness[:, lost] = -np.inf
    found = np.array(order, np.int64)
    return Elimination(found, _costs(cosine, share, found))


def representatives(cosine: FloatArray, keep: IntArray, gone: IntArray) -> IntArray:
    """Who of those that stay takes over for each that goes [len(gone)]; -1 where nobody points the same way at all."""
    if not gone.size or not keep.size:
        return np.full(len(gone), -1)
    among = cosine[np.ix_(gone, keep)]
    best = among.argmax(axis=1)
    return np.where(among[np.arange(len(gone)), best] > 0.0, keep[best], -1)


def _costs(cosine: FloatArray, share: FloatArray, order: IntArray) -> FloatArray:
    """What is lost once the first i of an order are gone [len(order) + 1], never less than before."""
    likeness = np.maximum(cosine, 0.0)
    gone = np.zeros(len(share), bool)
    gone[order] = True
    near = likeness[:, ~gone].max(axis=1, initial=0.0)
    costs = []
    # From the last one back: whoever returns can only bring others nearer to one that stays.
    for channel in reversed(order.tolist()):
        costs.append(float(share[gone] @ (1.0 - near[gone] ** 2)))
        gone[channel] = False
        near = np.maximum(near, likeness[:, channel])
    return np.asarray(np.maximum.accumulate(np.maximum([0.0, *reversed(costs)], 0.0)))
