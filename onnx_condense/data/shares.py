"""Which samples fit, steer the search and verify: whole groups, dealt at random."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from onnx_condense.errors import CalibrationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnx_condense.data.samples import Samples
    from onnx_condense.plan import IntArray
from onnx_condense.wording import counted

SMALLEST_SHARE = 5


@dataclasses.dataclass(frozen=True, eq=False)
class Shares:
    """Which samples fit the readers, steer the search, and verify the result: ascending int64 indices."""

    fit: IntArray
    search: IntArray
    verify: IntArray


def split(samples: Samples, seed: int, *, separate_verification: bool = False) -> Shares:
    """Deals whole groups, shuffled by the seed, into 60 % fit, 20 % search, 20 % verify as closely as they allow.

    Args:
        samples: n samples.
        seed: same seed and groups, same shares.
        separate_verification: verification has a source of its own: 75 % fit, 25 % search, none verify.

    Raises:
        CalibrationError: a share would have fewer than 5 samples.
    """
    weights = (3, 1) if separate_verification else (3, 1, 1)
    shares = _deal(samples.groups, weights, seed)
    if min(len(share) for share in shares) < SMALLEST_SHARE:
        raise _too_few(samples, weights)
    fit, search, *verify = shares
    return Shares(fit, search, verify[0] if verify else np.empty(0, np.int64))


def spread(indices: IntArray, count: int) -> IntArray:
    """At most so many of the indices, evenly spread."""
    if len(indices) <= count:
        return indices
    return indices[np.linspace(0, len(indices) - 1, count).astype(np.int64)]


def _deal(groups: IntArray, weights: Sequence[int], seed: int) -> list[IntArray]:
    """Largest group first, ties in random order, each to the share that lacks most; none stays empty if avoidable."""
    _, inverse, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    lacks = [weight * len(groups) for weight in weights]
    full = list(lacks)
    every = range(len(weights))
    owners: list[int] = []
    for left, size in zip(range(len(order), 0, -1), sizes[order].tolist(), strict=True):
        # The last groups go to empty shares; asked only when few are left, for speed.
        empty = [s for s in every if lacks[s] == full[s]] if left <= len(every) else []
        share = max(empty if left <= len(empty) else every, key=lacks.__getitem__)
        owners.append(share)
        lacks[share] -= sum(weights) * size
    owner = np.empty(len(order), np.int64)
    owner[order] = owners
    return [np.flatnonzero(owner[inverse] == share).astype(np.int64) for share in every]


def _too_few(samples: Samples, weights: Sequence[int]) -> CalibrationError:
    count, distinct = len(samples), len(np.unique(samples.groups))
    needed = SMALLEST_SHARE * sum(weights)
    whole = "" if samples.sliced else " (of a folder, every file is one sample; for a row each, give one .npz)"
    has = f"calibration: {counted(count, 'sample')}"
    if count < needed:
        return CalibrationError("calibration-few", f"{has}, at least {needed} are needed; give more{whole}")
    text = f"{has} in {counted(distinct, 'group')}, which never split: {len(weights)} shares of at least "
    text += f"{counted(SMALLEST_SHARE, 'sample')} need at least {counted(len(weights), 'group')}"
    return CalibrationError("calibration-groups", f"{text}; give more groups (equal samples are one)")
