"""What the user asked for, checked before anything is read."""

from __future__ import annotations

import dataclasses
import difflib
import math
import numbers
from collections.abc import Mapping, Sequence

from onnx_condense.errors import UsageError

DEFAULT_TOLERANCE = 0.01
CONDENSATION = ("condensation", "condensation-refit")
METHODS = ("fit", *CONDENSATION, "drop", "drop-refit")
EVERYWHERE = "*"

Threshold = float | Mapping[str, float] | None
"""One cosine for all spaces, or by patterns of names (the last that matches counts); None: found by the search."""


@dataclasses.dataclass(frozen=True)
class Goal:
    """What the user asked for.

    tolerance: largest error allowed; 0: lossless; None: not a gate.
    keep: share of the parameters to keep; None: as few as the tolerance allows.
    allow_slower: take a result that measures slower.
    seed: of the split, the bootstrap, the drawn inputs and the variants.
    augment: variants of each picture to fit on as well.
    method: one of METHODS. threshold: of condensation, by patterns of names; None: as the rest of the goal asks for.
    also_verify: further providers to prove and time the result on. batches: samples per pass to time; empty: as fits.
    footprint: whether load time and memory are measured. profile: whether the time of each space is.
    """

    tolerance: float | None
    keep: float | None
    allow_slower: bool
    seed: int
    augment: int = 0
    method: str = "fit"
    threshold: Mapping[str, float] | None = None
    also_verify: tuple[str, ...] = ()
    batches: tuple[int, ...] = ()
    footprint: bool = False
    profile: bool = False

    @property
    def fits(self) -> bool:
        """Whether least squares is part of the method."""
        return self.method not in ("condensation", "drop")

    @property
    def lossless(self) -> bool:
        """Whether only what the weights prove may go."""
        return self.tolerance == 0.0

    @property
    def gate(self) -> float:
        """What an error may be; infinite where it is only told (a network that answers with NaN passes no gate)."""
        return math.inf if self.tolerance is None else self.tolerance


def thresholds_of(texts: Sequence[str]) -> Mapping[str, float] | None:
    """What the command got as --threshold: numbers, and GLOB=NUMBER; None where it got none.

    Raises:
        UsageError: something else.
    """
    found: dict[str, float] = {}
    for text in texts:
        pattern, number = text.rpartition("=")[::2]
        pattern = pattern if "=" in text else EVERYWHERE
        try:
            value = float(number)
        except ValueError:
            raise UsageError("threshold", f"--threshold {text!r}: give a number, or GLOB=NUMBER") from None
        # The last one that matches counts, so one that is given again moves to the end.
        found.pop(pattern, None)
        found[pattern] = value
    return found or None


def batches_of(text: str) -> tuple[int, ...]:
    """What the command got as --batch: numbers between commas, in order, each once.

    Raises:
        UsageError: something else.
    """
    parts = [part.strip() for part in text.split(",")] if text else []
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UsageError("batch", f"--batch {text!r}: give integers of at least 1, separated by commas")
    return tuple(dict.fromkeys(int(part) for part in parts))


def by_pattern(threshold: Threshold) -> Mapping[str, float] | None:
    """A threshold by patterns of names; one number holds everywhere."""
    return threshold if threshold is None or isinstance(threshold, Mapping) else {EVERYWHERE: threshold}


def check_goal(asked: Goal, *, calibrated: bool, verified: bool) -> Goal:
    """The goal, with defaults filled in.

    Args:
        asked: the options as given.
        calibrated: whether there are calibration samples.
        verified: whether there is a verification source of its own.

    Raises:
        UsageError: a value is out of range, or options exclude or need each other.
    """
    _check_ranges(asked)
    cosines = None if asked.threshold is None else _checked_threshold(asked.method, asked.threshold, asked.keep)
    _check_method(asked, calibrated=calibrated)
    tolerance = asked.tolerance
    if not calibrated:
        _check_without_samples(asked, verified=verified)
        tolerance = 0.0
    elif tolerance is None and asked.keep is None and cosines is None:
        tolerance = DEFAULT_TOLERANCE
    if tolerance == 0.0 and asked.keep is not None:
        raise UsageError("keep", "--keep and --tolerance 0 exclude each other: lossless steps can't aim at a size")
    return dataclasses.replace(asked, tolerance=tolerance, threshold=cosines)


def _check_without_samples(asked: Goal, *, verified: bool) -> None:
    if asked.augment:
        raise UsageError("augment", "--augment needs --calibration: there is nothing to make variants of")
    if asked.tolerance:
        raise UsageError("tolerance", "--tolerance above 0 needs --calibration: there is nothing to measure it on")
    if asked.keep is not None:
        raise UsageError("keep", "--keep needs --calibration: there is nothing to fit the smaller network on")
    if asked.batches:
        raise UsageError("batch", "--batch needs --calibration: drawn inputs are timed as they are drawn")
    if verified:
        raise UsageError("verification", "--verification needs --calibration")


def _check_method(asked: Goal, *, calibrated: bool) -> None:
    method = asked.method
    if method not in METHODS:
        near = difflib.get_close_matches(method, METHODS, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(METHODS)}"
        raise UsageError("method", f"--method {method!r}: {hint}")
    if method == "fit":
        return
    if not calibrated:
        raise UsageError("method", f"--method {method} needs --calibration: there is nothing to measure its error on")
    if asked.tolerance == 0.0:
        raise UsageError("method", f"--method {method} and --tolerance 0 exclude each other: it is not lossless")
    if asked.augment and method in ("condensation", "drop"):
        raise UsageError("augment", f"--augment and --method {method} exclude each other: nothing is fitted")


def _checked_threshold(method: str, cosines: Mapping[str, float], keep: float | None) -> Mapping[str, float]:
    """As numbers that JSON takes."""
    if method in METHODS and method not in CONDENSATION:
        raise UsageError("threshold", f"--threshold needs --method {' or '.join(CONDENSATION)}")
    if keep is not None:
        raise UsageError("threshold", "--threshold and --keep exclude each other: a threshold decides what goes")
    if not cosines:
        raise UsageError("threshold", "the threshold names no pattern: give a number, or patterns with numbers")
    for pattern, cosine in cosines.items():
        if not (isinstance(cosine, numbers.Real) and 0.0 < cosine <= 1.0):
            which = "" if pattern == EVERYWHERE else f"{pattern}="
            raise UsageError("threshold", f"--threshold {which}{cosine}: give a cosine above 0, at most 1")
    return {pattern: float(cosine) for pattern, cosine in cosines.items()}


def _check_ranges(asked: Goal) -> None:
    tolerance, keep, seed, augment = asked.tolerance, asked.keep, asked.seed, asked.augment
    if tolerance is not None and not (0.0 <= tolerance < math.inf):
        raise UsageError("tolerance", f"--tolerance {tolerance}: give a number of at least 0")
    if keep is not None and not 0.0 < keep < 1.0:
        raise UsageError("keep", f"--keep {keep}: give a share between 0 and 1")
    if seed < 0:
        raise UsageError("seed", f"--seed {seed}: give an integer of at least 0")
    if augment < 0:
        raise UsageError("augment", f"--augment {augment}: give an integer of at least 0")
    if any(batch < 1 for batch in asked.batches):
        raise UsageError("batch", f"--batch {','.join(map(str, asked.batches))}: give integers of at least 1")
