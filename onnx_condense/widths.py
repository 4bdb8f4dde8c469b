"""How wide every space becomes: paths from dense to tiny, and the stop that the goal asks for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import onnx

from onnx_condense import budget, ops
from onnx_condense.cost import WidthCosts, count_parameters
from onnx_condense.goal import Goal
from onnx_condense.metrics import Judge, Measurement
from onnx_condense.model import Network
from onnx_condense.plan import ChannelSpace, ChannelView, IntArray, Plan
from onnx_condense.report.data import CurvePoint
from onnx_condense.select.obs import Elimination

CONFIDENCE = 0.95
# Every space is probed alone with these shares of its channels gone; what lies beyond the last is a guess.
PROBES = (0.5, 0.85, 0.97)
# Widths are multiples of what runs well; where no such width will do, of less.
COARSER = (1, 2, 8)
# A size that is undershot by more asks for finer steps too.
UNDERSHOT = 0.95
# Where one space ends the path the others go on, so many times, with so many measurements each, until close.
FILLS, MEASUREMENTS, CLOSE = 3, 4, 0.9
# Refits stage by stage may measure so much worse: the last fit has more samples, which helps them more.
MARGIN = 1.05


class Narrower(Protocol):
    """Makes networks of given widths: by least squares (`fitting.Fitter`) or by weights alone (`methods.Merger`).

    network, view: what is condensed. spaces: those that can be narrowed; eliminations: the order in which channels go,
    one per space. light: whether `sequential` plans are cheap enough for every step of a search.
    """

    network: Network
    view: ChannelView
    spaces: tuple[ChannelSpace, ...]
    eliminations: tuple[Elimination, ...]
    light: bool

    def plan(self, widths: Sequence[int], *, sequential: bool) -> tuple[Plan, onnx.ModelProto]:
        """The plan for given widths, one per space of `spaces`, and the network it makes."""

    def use_all(self, search: IntArray) -> None:
        """From now on learn from the search share as well."""

    def rows_per_channel(self, widths: Sequence[int]) -> Mapping[str, float]:
        """Rows fitted on over channels kept, per space narrowed to these widths; empty where nothing is fitted."""


def better_refit(fitter: Narrower, hunter: Judge, widths: Sequence[int]) -> tuple[bool, Measurement]:
    """Whether refits stage by stage do better than refits all at once, and what the better ones measured."""
    staged, at_once = (hunter.measure(fitter.plan(widths, sequential=s)[1]) for s in (True, False))
    better = staged.value <= MARGIN * at_once.value
    return better, staged if better else at_once


class Widths:
    """Chooses widths for one fitter.

    Args:
        fitter: makes the networks; hunter: measures them, its upper confidence bound has to meet the tolerance.
        goal: tolerance, size, or both; a size out of reach gives the smallest that is in reach.
        wanted: parameters to stay within if a size is asked for.
        measuring: called before each measurement.
    """

    def __init__(
        self, fitter: Narrower, hunter: Judge, goal: Goal, wanted: float, measuring: Callable[[], None]
    ) -> None:
        self._fitter, self._hunter, self._goal = fitter, hunter, goal
        self._wanted, self._measuring = wanted, measuring
        self._errors: dict[tuple[int, ...], float] = {}
        self._curve: list[CurvePoint] = []
        self._staged: bool | None = None
        self._total = count_parameters(fitter.network.proto)
        self._costs = WidthCosts(fitter.network, fitter.view)
        at = {s.name: i for i, s in enumerate(fitter.view.spaces)}
        self._places = [at[s.name] for s in fitter.spaces]
        self._curves = [_curve(fitter, i, hunter) for i in range(len(fitter.spaces))]

    def find(self) -> tuple[list[budget.Point], int]:
        """A path, and the stop on it that the goal asks for."""
        path, at = self._found(1)
        for part in COARSER[1:]:
            if not self._wants_finer(path[at], at) or all(c.multiple == 1 for c in self._curves):
                break
            path, at = self._found(part)
        return self._filled(path, at) if self._goal.keep is None else (path, at)

    @property
    def curve(self) -> tuple[CurvePoint, ...]:
        """What the search measured, most parameters first."""
        return tuple(sorted(self._curve, key=lambda p: -p.parameters))

    def _found(self, part: int) -> tuple[list[budget.Point], int]:
        curves = [dataclasses.replace(c, multiple=max(1, c.multiple // part)) for c in self._curves]
        path = budget.greedy_path(curves, self._total, self._saving)
        return path, self._stop(path)

    def _wants_finer(self, stop: budget.Point, at: int) -> bool:
        return at == 0 or (self._goal.keep is not None and stop.parameters < UNDERSHOT * self._wanted)

    def _saving(self, widths: Sequence[int], space: int, width: int) -> int:
        every = [s.width for s in self._fitter.view.spaces]
        for place, w in zip(self._places, widths, strict=True):
            every[place] = w
        return self._costs.saving(every, self._places[space], width)

    def _stop(self, path: Sequence[budget.Point]) -> int:
        """The furthest within the tolerance, or the first small enough."""
        last = len(path) - 1
        reachable = last if self._goal.tolerance is None else budget.search(path, self._measure(path), self._tolerance)
        if self._goal.keep is None:
            return reachable
        at = next((i for i, p in enumerate(path) if p.parameters <= self._wanted), last)
        # The path leaves out biases that the refit adds.
        while 0 < at < reachable and self._parameters(path[at]) > self._wanted:
            at += 1
        return min(at, reachable)

    @property
    def _tolerance(self) -> float:
        return self._goal.tolerance or 0.0

    def _measure(self, path: Sequence[budget.Point]) -> Callable[[int], float]:
        def measure(at: int) -> float:
            widths = path[at].widths
            if widths not in self._errors:
                self._measuring()
                undecided = self._fitter.light and self._staged is None
                found = self._better(widths) if undecided else self._tried(widths, sequential=self._fitter.light)
                self._errors[widths] = found.upper(CONFIDENCE, self._goal.seed)
                self._curve.append(CurvePoint(path[at].parameters, self._errors[widths]))
            return self._errors[widths]

        return measure

    def staged(self, widths: Sequence[int]) -> bool:
        """Whether refits stage by stage pay: measured once, at the first widths that are asked about."""
        if self._staged is None:
            self._better(widths)
        return bool(self._staged)

    def _better(self, widths: Sequence[int]) -> Measurement:
        """Both kinds of refit, measured; the better one is taken from now on."""
        self._staged, found = better_refit(self._fitter, self._hunter, widths)
        return found

    def _tried(self, widths: Sequence[int], *, sequential: bool) -> Measurement:
        _, model = self._fitter.plan(widths, sequential=sequential and self._staged is not False)
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
            more = budget.greedy_path(self._curves, start.parameters, self._saving, start.widths, frozen)
            path = [*path[:at], *more]
            at += budget.search(more, self._measure(more), self._tolerance, MEASUREMENTS)
        return path, at

    def _parameters(self, stop: budget.Point) -> int:
        _, model = self._fitter.plan(stop.widths, sequential=False)
        return count_parameters(model)


def _curve(fitter: Narrower, index: int, hunter: Judge) -> budget.SpaceCurve:
    full = [s.width for s in fitter.spaces]
    elimination = fitter.eliminations[index]
    probes: dict[int, float] = {}
    for share in PROBES if elimination.order.size else ():
        removed = min(max(1, round(share * full[index])), len(elimination.order))
        widths = [*full[:index], full[index] - removed, *full[index + 1 :]]
        _, model = fitter.plan(widths, sequential=False)
        probes[removed] = hunter.measure(model).value ** 2
    least = full[index] - len(elimination.order)
    multiple = width_multiple(fitter.network, fitter.view, fitter.spaces[index])
    return budget.SpaceCurve(full[index], least, elimination.cost, tuple(probes.items()), multiple)


def width_multiple(network: Network, view: ChannelView, space: ChannelSpace) -> int:
    """What the width of a space should be a multiple of, for the sake of the ops that write and read it."""
    around = [network.nodes[view.linear[i].weight.node] for i in (*space.writers, *space.readers)]
    rules = [ops.find(n.domain, n.op, n.opset) for n in around]
    return math.lcm(*(rule.multiple for rule in rules if rule is not None))
