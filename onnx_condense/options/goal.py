"""What the user asked for, checked before anything is read."""

from __future__ import annotations

import dataclasses
import difflib
import math
import numbers
from collections.abc import Mapping, Sequence

from onnx_condense.errors import UsageError
from onnx_condense.options.control import EVERYTHING, Control
from onnx_condense.options.limits import AUTO, NO_LIMITS, Limits, Multiple
from onnx_condense.options.tuning import Tune
from onnx_condense.options.yardstick import RELATIVE, Metric, check_known, metric_name, said

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
    metric: how errors are measured. tolerances: by patterns of outputs; `tolerance` is what they are scaled to.
    footprint: whether load time and memory are measured. profile: whether the time of each space is.
    control: what is left alone.
    limits: on size and speed, beside `keep`. multiple_of: what narrowed widths are multiples of; None: what runs well.
    front: whether networks of other sizes are made as well.
    tune: how the result is trained; None: not at all.
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
    metric: Metric = RELATIVE
    tolerances: Mapping[str, float] = dataclasses.field(default_factory=dict)
    control: Control = EVERYTHING
    limits: Limits = NO_LIMITS
    multiple_of: Multiple = None
    front: bool = False
    tune: Tune | None = None

    @property
    def fits(self) -> bool:
        """Whether least squares is part of the method."""
        return self.method not in ("condensation", "drop")

    @property
    def sized(self) -> bool:
        """Whether a size or a speed is asked for."""
        return self.keep is not None or bool(self.limits.given())

    @property
    def sizes(self) -> tuple[str, ...]:
        """The options that ask for a size or a speed."""
        return (*(["--keep"] if self.keep is not None else []), *self.limits.given())

    @property
    def lossless(self) -> bool:
        """Whether only what the weights prove may go."""
        return self.tolerance == 0.0

    @property
    def said(self) -> str:
        """The tolerance as it was asked for."""
        return said(self.tolerance, self.tolerances)

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


def check_goal(asked: Goal, *, calibrated: bool, verified: bool, planned: bool = False) -> Goal:
    """The goal, with defaults filled in.

    Args:
        asked: the options as given.
        calibrated: whether there are calibration samples.
        verified: whether there is a verification source of its own.
        planned: whether a saved plan says what goes; its exact steps are fitted where they are exact no more.

    Raises:
        UsageError: a value is out of range, or options exclude or need each other.
    """
    _check_ranges(asked)
    asked.control.check()
    asked.limits.check()
    cosines = None if asked.threshold is None else _checked_threshold(asked.method, asked.threshold, asked.sizes)
    if asked.front and (cosines is not None or asked.tolerance == 0.0):
        other = "--tolerance 0" if cosines is None else "--threshold"
        raise UsageError("front", f"--front and {other} exclude each other: that leads to one network")
    if cosines is not None and asked.multiple_of is not None:
        raise UsageError("threshold", "--threshold and --multiple-of exclude each other: a threshold decides what goes")
    _check_method(asked, calibrated=calibrated)
    tolerance = asked.tolerance
    if not calibrated:
        _check_without_samples(asked, verified=verified)
        tolerance = 0.0
    elif tolerance is None and not asked.sized and cosines is None:
        tolerance = check_known(asked.metric, None)
    if tolerance == 0.0 and asked.metric != RELATIVE:
        name = metric_name(asked.metric)
        text = f"--metric {name} and --tolerance 0 exclude each other: exact steps are judged by rounding"
        raise UsageError("metric", text)
    _check_sizes(dataclasses.replace(asked, tolerance=tolerance))
    if tolerance == 0.0 and asked.tune is not None:
        raise UsageError("tune", "--tune and --tolerance 0 exclude each other: exact steps leave nothing to train")
    if tolerance == 0.0 and not planned:
        _check_lossless(asked)
    return dataclasses.replace(asked, tolerance=tolerance, threshold=cosines)


def _check_without_samples(asked: Goal, *, verified: bool) -> None:
    if asked.augment:
        raise UsageError("augment", "--augment needs --calibration: there is nothing to make variants of")
    if asked.metric != RELATIVE:
        name = metric_name(asked.metric)
        raise UsageError("metric", f"--metric {name} needs --calibration: there is nothing to measure it on")
    if asked.tolerance:
        raise UsageError("tolerance", "--tolerance above 0 needs --calibration: there is nothing to measure it on")
    if asked.sized:
        option = asked.sizes[0]
        raise UsageError(option[2:], f"{option} needs --calibration: there is nothing to fit the smaller network on")
    if asked.front:
        raise UsageError("front", "--front needs --calibration: there is nothing to fit smaller networks on")
    if asked.multiple_of == AUTO:
        raise UsageError("multiple-of", "--multiple-of auto needs --calibration: there is nothing to time")
    if asked.tune is not None:
        raise UsageError("tune", "--tune needs --calibration: there is nothing to train on")
    if asked.batches:
        raise UsageError("batch", "--batch needs --calibration: drawn inputs are timed as they are drawn")
    if verified:
        raise UsageError("verification", "--verification needs --calibration")


def _check_lossless(asked: Goal) -> None:
    if asked.augment:
        raise UsageError("augment", "--augment and --tolerance 0 exclude each other: nothing is fitted")
    if asked.multiple_of == AUTO:
        text = "--multiple-of auto and --tolerance 0 exclude each other: exact steps are not timed; give a number"
        raise UsageError("multiple-of", text)


def _check_sizes(asked: Goal) -> None:
    if asked.tolerance == 0.0 and asked.sized:
        option = asked.sizes[0]
        text = f"{option} and --tolerance 0 exclude each other: lossless steps can't aim at a size"
        raise UsageError(option[2:], text)
    if asked.allow_slower and asked.limits.speedup is not None:
        raise UsageError("speedup", "--speedup and --allow-slower exclude each other: leave one of them away")


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


def _checked_threshold(method: str, cosines: Mapping[str, float], sizes: Sequence[str]) -> Mapping[str, float]:
    """As numbers that JSON takes."""
    if method in METHODS and method not in CONDENSATION:
        raise UsageError("threshold", f"--threshold needs --method {' or '.join(CONDENSATION)}")
    if sizes:
        raise UsageError("threshold", f"--threshold and {sizes[0]} exclude each other: a threshold decides what goes")
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
    if asked.multiple_of not in (None, AUTO) and not (isinstance(asked.multiple_of, int) and asked.multiple_of >= 1):
        raise UsageError("multiple-of", f"--multiple-of {asked.multiple_of}: give an integer of at least 1, or auto")
    if any(batch < 1 for batch in asked.batches):
        raise UsageError("batch", f"--batch {','.join(map(str, asked.batches))}: give integers of at least 1")
