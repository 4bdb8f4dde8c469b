"""What probes of a network tell a budget where a metric tells little: a share of flips may be 0 for half the widths."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Probe:
    """Errors of one network: in the metric that counts, and relative ones, which no change leaves at 0."""

    error: float
    relative: float


def standing_in(spaces: Sequence[Mapping[int, Probe]]) -> list[dict[int, float]]:
    """The errors of each probe in the metric; where that is 0, the relative one on its scale.

    That scale is the lowest at which a probe showed an error: what showed none is smaller.

    Args:
        spaces: per space, probes by channels removed.
    """
    seen = [p for probes in spaces for p in probes.values() if 0.0 < p.error < np.inf and 0.0 < p.relative < np.inf]
    scale = min((p.error / p.relative for p in seen), default=1.0)
    return [{gone: p.error or scale * p.relative for gone, p in probes.items()} for probes in spaces]
