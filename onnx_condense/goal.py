"""What the user asked for, checked before anything is read."""

from __future__ import annotations

import dataclasses
import math

from onnx_condense.errors import UsageError

DEFAULT_TOLERANCE = 0.01


@dataclasses.dataclass(frozen=True)
class Goal:
    """What the user asked for.

    tolerance: largest error allowed; 0: lossless; None: not a gate.
    keep: share of the parameters to keep; None: as few as the tolerance allows.
    allow_slower: take a result that measures slower.
    seed: of the split, the bootstrap, the drawn inputs and the variants.
    augment: variants of each picture to fit on as well.
    """

    tolerance: float | None
    keep: float | None
    allow_slower: bool
    seed: int
    augment: int = 0

    @property
    def lossless(self) -> bool:
        """Whether only what the weights prove may go."""
        return self.tolerance == 0.0

    def allows(self, error: float) -> bool:
        """Whether a measured error is acceptable; a network that answers with NaN never is."""
        return math.isfinite(error) and (self.tolerance is None or error <= self.tolerance)


def check_goal(
    *,
    tolerance: float | None,
    keep: float | None,
    allow_slower: bool,
    seed: int,
    calibrated: bool,
    verified: bool,
    augment: int = 0,
) -> Goal:
    """The goal, with defaults filled in.

    Args:
        tolerance: as given, or None.
        keep: as given, or None.
        allow_slower: as given.
        seed: as given.
        calibrated: whether there are calibration samples.
        verified: whether there is a verification source of its own.
        augment: as given.

    Raises:
        UsageError: a value is out of range, or options exclude or need each other.
    """
    _check_ranges(tolerance, keep, seed, augment)
    if not calibrated:
        if augment:
            raise UsageError("augment", "--augment needs --calibration: there is nothing to make variants of")
        if tolerance:
            raise UsageError("tolerance", "--tolerance above 0 needs --calibration: there is nothing to measure it on")
        if keep is not None:
            raise UsageError("keep", "--keep needs --calibration: there is nothing to fit the smaller network on")
        if verified:
            raise UsageError("verification", "--verification needs --calibration")
        tolerance = 0.0
    elif tolerance is None and keep is None:
        tolerance = DEFAULT_TOLERANCE
    if tolerance == 0.0 and keep is not None:
        raise UsageError("keep", "--keep and --tolerance 0 exclude each other: lossless steps can't aim at a size")
    return Goal(tolerance, keep, allow_slower, seed, augment)


def _check_ranges(tolerance: float | None, keep: float | None, seed: int, augment: int) -> None:
    if tolerance is not None and not (0.0 <= tolerance < math.inf):
        raise UsageError("tolerance", f"--tolerance {tolerance}: give a number of at least 0")
    if keep is not None and not 0.0 < keep < 1.0:
        raise UsageError("keep", f"--keep {keep}: give a share between 0 and 1")
    if seed < 0:
        raise UsageError("seed", f"--seed {seed}: give an integer of at least 0")
    if augment < 0:
        raise UsageError("augment", f"--augment {augment}: give an integer of at least 0")
