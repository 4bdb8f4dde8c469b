"""Widths of all spaces together: a greedy path from dense to tiny, and where on it a tolerance is met.

The path spends, step by step, the least added error per parameter saved. Added error comes from each space's
elimination curve, scaled by what probes of the whole network measured; squared errors of spaces add up. Where
the path meets the tolerance is then decided by measurement, not by the prediction.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet

import numpy as np

from onnx_condense.plan import FloatArray

# One step narrows one space by this share of its width.
STEP = 0.04
MAX_MEASUREMENTS = 9
# The search stops once the bracket is this narrow in parameters.
NARROW = 0.02
# A stop whose measured error is this close below the tolerance is far enough.
CLOSE = 0.03
# How much further than interpolation says the search goes after each measurement, to get on where errors are flat.
GROWTH = 1.1
# What the first back-off gives up beyond the excess it saw; each further one gives up twice as much.
BACK_OFF = 0.01
# A guess that leaves more than this share of the bracket was a poor one; so many in a row are borne.
SLOW, PATIENCE = 0.75, 2
# What saves less than this share of the parameters is not worth another fit.
WORTH = 0.005
HUGE = 1e100
# Where nothing was seen (no answer flipped) the next guess is at so many times the predicted error.
JUMP = 4.0

Saving = Callable[[Sequence[int], int, int], int]
Worth = Callable[[Sequence[int], int, int], float]
"""What narrowing saves, and what that is worth: of (widths, space, new width)."""


@dataclasses.dataclass(frozen=True)
class SpaceCurve:
    """What narrowing one space costs.

    width, least: channels now and at least; local [width - least + 1]: relative squared error at the readers
    after each removal; probes: ((removed, measured squared end-to-end error), ...), at least one.
    multiple: widths to stop at are multiples of it, as long as there is one.
    """

    width: int
    least: int
    local: FloatArray
    probes: tuple[tuple[int, float], ...]
    multiple: int = 1

    def narrower(self, width: int, by: int) -> int:
        """The width to stop at next."""
        wish = max(self.least, width - by)
        rounded = wish - wish % self.multiple
        return rounded if rounded >= max(self.least, self.multiple) else wish

    def predicted(self) -> FloatArray:
        """Squared end-to-end error per channels removed [width - least + 1]: probes joined in log-log."""
        tiny = np.finfo(np.float64).tiny
        local = np.maximum(self.local, tiny)
        # What was silent tells no scale, as long as another probe does.
        seen = [(r, e) for r, e in self.probes if e > 0.0] or self.probes
        # A probe may answer with infinity (overflow in fp16): any huge number will do.
        points = sorted((math.log(local[r]), math.log(min(max(e, tiny), HUGE))) for r, e in seen if local[r] > tiny)
        if not points:
            return np.zeros_like(self.local)
        x, y = np.array(points).T
        at = np.log(local)
        result = np.interp(at, x, y)
        # Beyond the probes squared end-to-end error grows like the squared local error.
        result = np.where(at < x[0], y[0] + at - x[0], np.where(at > x[-1], y[-1] + at - x[-1], result))
        return np.asarray(np.maximum.accumulate(np.where(self.local > 0, np.exp(result), 0.0)))


@dataclasses.dataclass(frozen=True)
class Point:
    """One stop on the path: widths per space, predicted error (not squared), parameters."""

    widths: tuple[int, ...]
    error: float
    parameters: int


def greedy_path(
    curves: Sequence[SpaceCurve],
    total: int,
    saving: Saving,
    start: Sequence[int] | None = None,
    frozen: AbstractSet[int] = frozenset(),
    worth: Worth | None = None,
    allied: Sequence[Sequence[int]] = (),
) -> list[Point]:
    """Stops from dense to as small as can be; each narrows one space by one step, or allied ones together.

    Args:
        curves: one per space.
        total: parameters at the start.
        saving: parameters saved by (widths, space, new width); see `cost.WidthCosts.saving`.
        start: widths to start from instead of the dense ones.
        frozen: spaces that keep theirs.
        worth: what a step is worth, of the same arguments; None: the parameters that it saves.
        allied: sets of spaces that share a weight. Narrowing one of them alone may only add a copy of it.
    """
    predicted = [c.predicted() for c in curves]
    widths = [c.width for c in curves] if start is None else list(start)
    squared = [float(p[c.width - w]) for p, c, w in zip(predicted, curves, widths, strict=True)]
    path = [Point(tuple(widths), math.sqrt(sum(squared)), total)]
    costs = _Costs(curves, predicted, saving, worth or saving)
    groups = [free for group in allied if len(free := [i for i in group if i not in frozen]) > 1]
    while True:
        best = _best_step(costs, widths, [i for i in range(len(curves)) if i not in frozen], groups)
        if best is None:
            return path
        for space, width in best.to.items():
            widths[space], squared[space] = width, costs.error(space, width)
        total -= best.saved
        path.append(Point(tuple(widths), math.sqrt(sum(squared)), total))


@dataclasses.dataclass(frozen=True)
class _Step:
    """Some spaces narrowed at once: new widths by space, what that is worth, the parameters saved."""

    to: Mapping[int, int]
    gain: float
    saved: int


@dataclasses.dataclass(frozen=True)
class _Costs:
    """What widths cost. predicted: squared errors of each space by the channels removed."""

    curves: Sequence[SpaceCurve]
    predicted: Sequence[FloatArray]
    saving: Saving
    worth: Worth

    def error(self, space: int, width: int) -> float:
        """Squared error of one space at a width."""
        return float(self.predicted[space][self.curves[space].width - width])

    def rate(self, step: _Step, widths: Sequence[int]) -> float:
        """What it is worth over the squared error that it adds."""
        added = sum(self.error(i, width) - self.error(i, widths[i]) for i, width in step.to.items())
        return step.gain / max(added, np.finfo(np.float64).tiny ** 0.5)

    def step(self, widths: Sequence[int], group: Sequence[int], times: int) -> _Step | None:
        """All of a group narrowed by so many steps; None where all are at their ends."""
        after, gain, saved = list(widths), 0.0, 0
        for i in group:
            curve, width = self.curves[i], widths[i]
            if width > curve.least:
                width = curve.narrower(width, times * max(1, round(STEP * width)))
                gain, saved = gain + self.worth(after, i, width), saved + self.saving(after, i, width)
                after[i] = width
        to = {i: after[i] for i in group if after[i] != widths[i]}
        return _Step(to, gain, saved) if to else None


def _best_step(
    costs: _Costs, widths: Sequence[int], spaces: Sequence[int], groups: Sequence[Sequence[int]]
) -> _Step | None:
    """The step of most worth for its error; groups move where one of them can't alone."""
    found, stuck = list[_Step](), set[int]()
    for i in spaces:
        first = costs.step(widths, [i], 1)
        if first and first.gain <= 0:
            stuck.add(i)
        found += _worthwhile(costs, widths, [i])
    for group in groups:
        if not stuck.isdisjoint(group):
            found += _worthwhile(costs, widths, group)
    return max(found, key=lambda step: costs.rate(step, widths), default=None)


def _worthwhile(costs: _Costs, widths: Sequence[int], group: Sequence[int]) -> list[_Step]:
    """The shortest step of a group that is worth anything, if there is one.

    The first cut of a shared weight may cost a copy that only a wider one pays back.
    """
    times = 1
    while step := costs.step(widths, group, times):
        if step.gain > 0:
            return [step]
        if all(width == costs.curves[i].least for i, width in step.to.items()):
            break
        times *= 2
    return []


def search(
    path: Sequence[Point], measure: Callable[[int], float], tolerance: float, limit: int = MAX_MEASUREMENTS
) -> int:
    """The furthest stop whose measured error is within the tolerance, or one that comes CLOSE to it.

    Narrows a bracket by interpolating measured against predicted error, at most `limit` times. Stop 0 is known to
    be within the tolerance; any other answer was measured.
    """
    low, high = 0, len(path)
    error_low, error_high, slow = 0.0, math.inf, 0
    for count in range(limit):
        left = high - low
        if left <= 1 or (low and _gap(path, low, high) < NARROW):
            break
        guess = _guess(path, tolerance, (low, error_low), (high, error_high), count)
        # Predictions that lead nowhere twice in a row are wrong: half-way then.
        guess = (low + high) // 2 if slow == PATIENCE else guess
        error = measure(guess)
        if (1.0 - CLOSE) * tolerance <= error <= tolerance:
            return guess
        if error <= tolerance:
            low, error_low = guess, error
        else:
            high, error_high = guess, error
        slow = slow % PATIENCE + 1 if high - low > SLOW * left else 0
    return low


def _gap(path: Sequence[Point], low: int, high: int) -> float:
    return 1.0 - path[min(high, len(path) - 1)].parameters / max(path[low].parameters, 1)


def _guess(path: Sequence[Point], tolerance: float, low: tuple[int, float], high: tuple[int, float], count: int) -> int:
    """Where to measure next, strictly inside the bracket of (stop, measured error).

    One end known: scale its prediction by what its measurement was off, a little further every time. Both known:
    in between by the logarithms of the errors, away from the ends so that the bracket shrinks for sure.
    """
    tiny = float(np.finfo(np.float64).tiny)
    aim = tolerance * (1.0 - CLOSE / 2)
    (near, error_near), (far, error_far) = low, high
    # What goes for nothing at first tells no scale; what follows it does.
    predicted_near = path[near].error or path[min(near + 1, len(path) - 1)].error
    predicted_far = path[min(far, len(path) - 1)].error
    growth = GROWTH ** max(count - 1, 0)
    if count and not predicted_far > path[near + 1].error > 0.0:
        # The prediction tells these stops not apart.
        return (near + far) // 2
    if near and far < len(path):
        part = 0.5
        if error_near > 0.0 and math.isfinite(error_far):
            part = math.log(aim / error_near) / math.log(error_far / error_near)
        target = predicted_near * (predicted_far / predicted_near) ** min(max(part, 0.2), 0.8)
    elif near and error_near == 0.0:
        target = predicted_near * JUMP
    elif near:
        target = predicted_near * min(aim / max(error_near, tiny), HUGE) * growth
    elif far < len(path):
        target = predicted_far * aim / min(error_far, HUGE) / growth
    else:
        target = aim
    errors = np.array([p.error for p in path])
    return int(np.clip(np.searchsorted(errors, target, side="right") - 1, near + 1, far - 1))


def back_off(path: Sequence[Point], at: int, excess: float, times: int) -> int:
    """An earlier stop whose predicted error is smaller by as much as the measured one was too large, and a bit.

    Where no stop is predicted to err so little, predictions have said all they can (channels that were silent on the
    samples that the path was made from seem to be free): then one that saves at most half as much.

    Args:
        path: the stops.
        at: the one that failed.
        excess: its measured error over the tolerance, above 1 (infinite where the network broke down).
        times: how often it has failed now; the bit doubles every time.

    Returns:
        The stop; 0 where what is left to try would save next to nothing.
    """
    target = path[at].error / excess * (1.0 - BACK_OFF * 2 ** (times - 1))
    calm = [i for i in range(1, at) if path[i].error <= target] if target > 0.0 else []
    if calm:
        return calm[-1]
    saved = [path[0].parameters - p.parameters for p in path[: at + 1]]
    found = max((i for i in range(1, at) if 2 * saved[i] <= saved[at]), default=0)
    return found if saved[found] >= WORTH * path[0].parameters else 0
