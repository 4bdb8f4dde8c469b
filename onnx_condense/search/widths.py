"""How wide every space becomes: paths from dense to tiny, and the stop that the goal asks for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from onnx_condense.fit.narrowed import Narrower
from onnx_condense.metrics import Judge, Measurement
from onnx_condense.options.goal import Goal
from onnx_condense.report.data import CurvePoint
from onnx_condense.search import budget
from onnx_condense.search.aim import Aim
from onnx_condense.search.front import stops
from onnx_condense.search.grid import WELL, Grid
from onnx_condense.search.probes import Probe, standing_in

CONFIDENCE = 0.95
# Every space is probed alone with these shares of its channels gone; what lies beyond the last is a guess.
PROBES = (0.5, 0.85, 0.97)
# Where a tolerance alone is asked for no share is probed beyond one that errs so many times as much, and where already
# the first one does, this smaller one is.
BEYOND, LITTLE = 3.0, 0.15
# Widths are multiples of what runs well; where no such width will do, of less.
COARSER = (1, 2, 8)
# Where one space ends the path the others go on, so many times, with so many measurements each, until close.
FILLS, MEASUREMENTS, CLOSE = 3, 4, 0.9
# Refits stage by stage may measure so much worse: the last fit has more samples, which helps them more.
MARGIN = 1.05
# Where these are costly a search goes by refits all at once, and is corrected so many times by what it found.
CORRECTIONS = 4
TINY = float(np.finfo(np.float64).tiny)


def better_refit(fitter: Narrower, hunter: Judge, widths: Sequence[int]) -> tuple[bool, Measurement]:
    """Whether refits stage by stage do better than refits all at once, and what the better ones measured."""
    staged, at_once = (hunter.measure(fitter.plan(widths, sequential=s)[1]) for s in (True, False))
    better = staged.value <= MARGIN * at_once.value
    return better, staged if better else at_once


class Widths:
    """Chooses widths for one fitter.

    Args:
        fitter: makes the networks; hunter: measures them, its upper confidence bound has to meet the tolerance.
        goal: holds the tolerance. aim: the limits; one out of reach gives the furthest stop that is in reach.
        measuring: called before each measurement.
        grid: which widths spaces may stop at.

    Attributes:
        furthest: the last stop of the path found that is within the tolerance on the search share.
    """

    def __init__(
        self,
        fitter: Narrower,
        hunter: Judge,
        goal: Goal,
        aim: Aim,
        measuring: Callable[[], None],
        grid: Grid = WELL,
    ) -> None:
        self._fitter, self._hunter, self._goal = fitter, hunter, goal
        self._aim, self._measuring, self._grid = aim, measuring, grid
        self.furthest = 0
        self._first: list[budget.Point] = []
        # Upper bounds of errors by widths: of the better kind of refit, of refits all at once, and by what the first
        # are estimated from the second.
        self._errors: dict[tuple[int, ...], float] = {}
        self._at_once: dict[tuple[int, ...], float] = {}
        self._gain = 1.0
        self._parameters: dict[tuple[int, ...], int] = {}
        self._staged: bool | None = None
        alone = goal.tolerance is not None and not aim.sized and not goal.front
        bound = BEYOND * self._tolerance if alone else math.inf
        probes = standing_in([_probed(fitter, i, hunter, bound) for i in range(len(fitter.spaces))])
        self._curves = [_curve(fitter, i, found, grid) for i, found in enumerate(probes)]

    def find(self) -> tuple[list[budget.Point], int]:
        """A path, and the stop on it that the goal asks for."""
        path, at = self._found(1)
        for part in COARSER[1:]:
            if self._grid.strict or not self._wants_finer(path, at) or all(c.multiple == 1 for c in self._curves):
                break
            path, at = self._found(part)
        return (path, at) if self._aim.sized else self._filled(path, at)

    @property
    def curve(self) -> tuple[CurvePoint, ...]:
        """What the search measured, most parameters first."""
        found = (CurvePoint(self._parameters[widths], error) for widths, error in self._errors.items())
        return tuple(sorted(found, key=lambda p: -p.parameters))

    def _found(self, part: int) -> tuple[list[budget.Point], int]:
        curves = [dataclasses.replace(c, multiple=max(1, c.multiple // part)) for c in self._curves]
        aim = self._aim
        frozen, allied = aim.negligible(), aim.allied()
        path = budget.greedy_path(curves, aim.total, aim.saving, frozen=frozen, worth=aim.worth, allied=allied)
        self._first = path
        return path, self._stop(path)

    def _wants_finer(self, path: Sequence[budget.Point], at: int) -> bool:
        if at == 0:
            return not (self._aim.sized and self._aim.met_at_once(path))
        return self._aim.undershot(path, at)

    def _stop(self, path: Sequence[budget.Point]) -> int:
        """The furthest within the tolerance, or the first that meets the limits."""
        last = len(path) - 1
        self.furthest = last if self._goal.tolerance is None else self._search(path)
        return self._aim.stop(path, self.furthest) if self._aim.sized else self.furthest

    def measured(self, widths: Sequence[int]) -> float | None:
        """The upper bound of the error that the search found at some widths; None where it did not look."""
        return self._errors.get(tuple(widths))

    def front(self, error: float) -> list[budget.Point]:
        """Stops of the front up to an error, on the path that the goal was searched on."""
        path = self._first
        return stops(path, self._reached(path, error, MEASUREMENTS))

    def _search(self, path: Sequence[budget.Point]) -> int:
        return self._reached(path, self._tolerance)

    @property
    def _tolerance(self) -> float:
        return self._goal.tolerance or 0.0

    def _reached(self, path: Sequence[budget.Point], error: float, limit: int = budget.MAX_MEASUREMENTS) -> int:
        """The furthest stop within an error, or one that comes close to it.

        Where refits stage by stage are costly, refits all at once are measured and scaled by how much less the others
        err: at the stop found so, until that is close; in the end it is the furthest that was really measured.
        """
        if self._fitter.light:
            return budget.search(path, lambda at: self._measured(path[at]), error, limit)
        if self._staged is None:
            budget.search(path, lambda at: self._estimated(path[at]), error, limit)
            self._decide(error)
        for corrections in range(CORRECTIONS):
            aim = (1.0 - corrections * budget.CLOSE) * error
            at = budget.search(path, lambda at: self._estimated(path[at]), aim, limit)
            if at == 0 or path[at].widths in self._errors:
                return at
            estimated, found = self._estimated(path[at]), self._measured(path[at])
            self._gain *= found / max(estimated, TINY)
            if CLOSE * error <= found <= error:
                return at
        return max((i for i, p in enumerate(path) if self._errors.get(p.widths, math.inf) <= error), default=0)

    def _decide(self, error: float) -> None:
        """See which kind of refit pays where errors are next to the one asked for; elsewhere they may be noise."""
        if self._at_once:
            widths = min(self._at_once, key=lambda w: abs(math.log(max(self._at_once[w], TINY) / max(error, TINY))))
            self._errors[widths] = self._better(widths).upper(CONFIDENCE, self._goal.seed)
            self._gain = self._errors[widths] / max(self._at_once[widths], TINY)

    def _measured(self, point: budget.Point) -> float:
        """The error of the better kind of refit at a stop."""
        widths = point.widths
        if widths not in self._errors:
            self._measuring()
            found = self._better(widths) if self._staged is None else self._tried(widths, sequential=self._staged)
            self._errors[widths] = found.upper(CONFIDENCE, self._goal.seed)
            self._parameters[widths] = point.parameters
        return self._errors[widths]

    def _estimated(self, point: budget.Point) -> float:
        """The same, measured or estimated."""
        if self._staged is False or point.widths in self._errors:
            return self._measured(point)
        if point.widths not in self._at_once:
            self._measuring()
            found = self._tried(point.widths, sequential=False)
            self._at_once[point.widths] = found.upper(CONFIDENCE, self._goal.seed)
            self._parameters[point.widths] = point.parameters
        return self._gain * self._at_once[point.widths]

    def staged(self, widths: Sequence[int]) -> bool:
        """Whether refits stage by stage pay: measured once, at the first widths that are asked about."""
        if self._staged is None:
            self._better(widths)
        return bool(self._staged)

    def _better(self, widths: Sequence[int]) -> Measurement:
        """Both kinds of refit, measured; the better one is taken from now on."""
        self._staged, found = better_refit(self._fitter, self._hunter, widths)
        if not self._staged:
            self._errors |= self._at_once
        return found

    def _tried(self, widths: Sequence[int], *, sequential: bool) -> Measurement:
        _, model = self._fitter.plan(widths, sequential=sequential)
        return self._hunter.measure(model)

    def _filled(self, path: list[budget.Point], at: int) -> tuple[list[budget.Point], int]:
        """Go on from a stop with the spaces that did not end the path."""
        frozen: set[int] = set()
        for _ in range(FILLS):
            if not 0 < at < len(path) - 1 or self._errors.get(path[at].widths, 0.0) > CLOSE * self._tolerance:
                break
            pairs = zip(path[at].widths, path[at + 1].widths, strict=True)
            frozen |= {i for i, (now, then) in enumerate(pairs) if now != then}
            start = path[at]
            aim = self._aim
            more = budget.greedy_path(
                self._curves, start.parameters, aim.saving, start.widths, frozen, allied=aim.allied()
            )
            path = [*path[:at], *more]
            at += self._reached(more, self._tolerance, MEASUREMENTS)
        return path, at


def _probed(fitter: Narrower, index: int, hunter: Judge, bound: float) -> dict[int, Probe]:
    """Errors of the whole network with channels of one space gone, by how many.

    bound: of errors beyond which nobody asks.
    """
    most = len(fitter.eliminations[index].order)
    probes: dict[int, Probe] = {}
    for share in PROBES if most else ():
        probes |= _probe(fitter, index, hunter, share)
        if max(p.error for p in probes.values()) > bound:
            break
    if len(probes) == 1 and max(p.error for p in probes.values()) > bound:
        probes |= _probe(fitter, index, hunter, LITTLE)
    return probes


def _probe(fitter: Narrower, index: int, hunter: Judge, share: float) -> dict[int, Probe]:
    full = [s.width for s in fitter.spaces]
    removed = min(max(1, round(share * full[index])), len(fitter.eliminations[index].order))
    widths = [*full[:index], full[index] - removed, *full[index + 1 :]]
    found = hunter.measure(fitter.plan(widths, sequential=False)[1])
    return {removed: Probe(found.value, found.relative.value)}


def _curve(fitter: Narrower, index: int, probes: Mapping[int, float], grid: Grid) -> budget.SpaceCurve:
    """From the errors of one space alone."""
    width, elimination = fitter.spaces[index].width, fitter.eliminations[index]
    multiple = grid.multiple(fitter.network, fitter.view, fitter.spaces[index])
    least = grid.least(width - len(elimination.order), multiple, width)
    squared = tuple((removed, error**2) for removed, error in probes.items())
    return budget.SpaceCurve(width, least, elimination.cost, squared, multiple)
