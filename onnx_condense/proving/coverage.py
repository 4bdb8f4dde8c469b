"""How well calibration stands for what a result is judged on: told from what was measured, never assumed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from onnx_condense.data import Samples, spread
from onnx_condense.metrics import Measurement
from onnx_condense.options.yardstick import RELATIVE
from onnx_condense.outcome import Candidate
from onnx_condense.plan import IntArray
from onnx_condense.report.data import Coverage, ThinSpace

# Fewer rows than this per kept channel leave a least-squares fit to chance.
ROWS = 10.0
# Where the error on unseen samples is this many times that on seen ones, these do not stand for those.
APART = 2.0
# Where so few of at least so many samples make half of a squared error, chance decides how many of these judge.
RARE, MANY = 2, 100
CONFIDENCE = 0.95
# So many of the samples that were fitted on are measured at least, if there are as many.
LEAST = 256


def seen(fit: IntArray, judged: int) -> IntArray:
    """Of the samples that were fitted on as many as judge the result, evenly spread."""
    return spread(fit, max(judged, LEAST))


def summary(samples: Samples, indices: IntArray, known: Measurement, rows: Mapping[str, float]) -> Coverage:
    """What a report says of coverage.

    Args:
        samples: the calibration.
        indices: of it, samples that were fitted on.
        known: the result's error on these.
        rows: per narrowed space, rows fitted on over channels kept.
    """
    thin = sorted((ThinSpace(name, count) for name, count in rows.items() if count < ROWS), key=lambda t: t.rows)
    # Equal samples are a group too: a few of these are not what a user means by groups.
    grouped = 2 * len(np.unique(samples.groups)) <= len(samples)
    return Coverage(known.value, len(indices), grouped, tuple(thin))


def covered(
    fitted: Candidate, samples: Samples, indices: IntArray, known: Measurement, seed: int
) -> tuple[Candidate, list[str]]:
    """The candidate with what samples that it was fitted on say of those that judge it, and warnings.

    Args:
        fitted: the candidate.
        samples: the calibration.
        indices: of it, samples that were fitted on.
        known: its error on these.
        seed: of the confidence bound.
    """
    found = summary(samples, indices, known, fitted.rows)
    found = dataclasses.replace(found, seen=found.seen * fitted.proved.unit)
    return dataclasses.replace(fitted, coverage=found), [
        *notes(found, known, fitted.proved.value, seed),
        *rare(known, fitted.proved.measured),
    ]


def rare(known: Measurement, unseen: Measurement) -> list[str]:
    """A warning, in words, where one or two samples make half of the squared error, be they seen or not."""
    for measured, what in ((unseen, "judge"), (known, "were fitted on")):
        nearest = measured.nearest
        if nearest is None or nearest.metric != RELATIVE or len(nearest.squared) < MANY:
            continue
        largest = np.cumsum(np.sort(nearest.squared)[: -RARE - 1 : -1])
        count = int(np.searchsorted(2 * largest, nearest.squared.sum(), side="right")) + 1
        if count <= RARE:
            text = (
                f"{count} of {len(nearest.squared)} samples that {what} make{'s' * (count == 1)} more than half of the "
            )
            return [f"{text}squared error: how often such inputs come is not known from so few; give more samples"]
    return []


def notes(coverage: Coverage, known: Measurement, unseen: float, seed: int) -> list[str]:
    """Warnings, in words, where unseen samples come off much worse than seen ones, or a fit had few rows."""
    found = []
    if unseen > APART * known.cautious(CONFIDENCE, seed):
        what = "groups" if coverage.grouped else "samples"
        more = f"{unseen / known.value:.1f} times" if known.value else "far above"
        found.append(
            f"the error on unseen {what} is {more} that on seen ones ({coverage.seen:.2g}): "
            f"calibration does not stand for all inputs; give more {what}, and more different ones"
        )
    if coverage.thin:
        first = coverage.thin[0]
        found.append(
            f"{len(coverage.thin)} space{'s' * (len(coverage.thin) > 1)} had fewer than {ROWS:g} rows per kept channel "
            f"to fit on (fewest: {first.rows:.2g}, {first.name}): more calibration samples would help"
        )
    return found
