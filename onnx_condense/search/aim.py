"""Where on a path the limits are met, and what its steps are worth for them.

Sizes are predicted and then counted on the network that a stop makes; time is measured on a few stops.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import onnx

from onnx_condense.cost import WidthCosts, bytes_per_parameter, count_parameters
from onnx_condense.fit.narrowed import Narrower
from onnx_condense.network.model import inlined
from onnx_condense.search.bounds import Bounds
from onnx_condense.search.budget import Point
from onnx_condense.search.mac_cost import MacCosts

# A size that is undershot by more asks for finer steps too.
UNDERSHOT = 0.95
# Stops that are timed beside the first one, while they lie further apart than this in multiply-accumulates.
TIMINGS, NARROW = 6, 0.03
# A stop has to look so much faster than asked for, since the last timing decides by the bad end of its interval.
SAFETY = 1.05
# Where time is the goal, spaces that together can save no more than this of both costs keep their channels.
NEGLIGIBLE = 0.01

Lacking = Callable[[onnx.ModelProto], float]
"""How many times faster a network has to get to meet the limits on time, by a short timing."""


class Aim:
    """What a search over widths aims at, beside the tolerance.

    Args:
        fitter: makes the networks.
        bounds: the limits.
        lacking: asked where time is limited.
    """

    def __init__(self, fitter: Narrower, bounds: Bounds, lacking: Lacking) -> None:
        self._fitter, self._bounds, self._time = fitter, bounds, lacking
        at = {s.name: i for i, s in enumerate(fitter.view.spaces)}
        self._places = [at[s.name] for s in fitter.spaces]
        self._full = [s.width for s in fitter.view.spaces]
        self._parameters = WidthCosts(fitter.network, fitter.view)
        self._macs = MacCosts(fitter.network, fitter.view, bounds.work)
        self._costs: dict[str, WidthCosts | MacCosts] = {"parameters": self._parameters, "macs": self._macs}
        self._totals = {kind: max(cost.total(self._full), 1) for kind, cost in self._costs.items()}

    @property
    def total(self) -> int:
        """Parameters to start from."""
        return self._totals["parameters"]

    @property
    def sized(self) -> bool:
        """Whether there is anything to aim at."""
        return bool(self._bounds)

    def _every(self, widths: Sequence[int]) -> list[int]:
        """Widths of all spaces, from those that can be narrowed."""
        every = list(self._full)
        for place, width in zip(self._places, widths, strict=True):
            every[place] = width
        return every

    def saving(self, widths: Sequence[int], space: int, width: int) -> int:
        """Parameters that narrowing one space saves."""
        return self._parameters.saving(self._every(widths), self._places[space], width)

    def worth(self, widths: Sequence[int], space: int, width: int) -> float:
        """What narrowing one space is worth: shares of the costs that are limited."""
        every, place = self._every(widths), self._places[space]
        return sum(self._costs[k].saving(every, place, width) / self._totals[k] for k in self._bounds.kinds)

    def allied(self) -> list[list[int]]:
        """Sets of spaces, of those that can be narrowed, that share a weight."""
        at = {place: i for i, place in enumerate(self._places)}
        return [[at[place] for place in places if place in at] for places in self._parameters.allied()]

    def negligible(self) -> frozenset[int]:
        """Spaces that keep their channels, as narrowing them costs error and buys no time.

        Those with the smallest shares, as long as all of them together could save next to nothing.
        """
        if not self._bounds.pace.timed or self._bounds.ceilings:
            return frozenset()
        widths = [s.width for s in self._fitter.spaces]
        least = [w - len(e.order) for w, e in zip(widths, self._fitter.eliminations, strict=True)]
        shares = []
        for i, width in enumerate(least):
            saved = (c.saving(self._full, self._places[i], width) / self._totals[k] for k, c in self._costs.items())
            shares.append((max(saved), i))
        found, sum_of = set[int](), 0.0
        for share, i in sorted(shares):
            sum_of += share
            if sum_of > NEGLIGIBLE:
                break
            found.add(i)
        return frozenset(found)

    def undershot(self, path: Sequence[Point], at: int) -> bool:
        """Whether a stop is so much smaller than asked for that finer steps will do better."""
        return at > 0 and bool(self._bounds.ceilings) and self._excess(path[at]) < UNDERSHOT

    def met_at_once(self, path: Sequence[Point]) -> bool:
        """Whether nothing has to be narrowed to meet the limits."""
        return self._small(path[0]) and (not self._bounds.pace.timed or self._lacks(path[0]) <= 1.0)

    def stop(self, path: Sequence[Point], last: int) -> int:
        """The first stop that meets the limits; `last`, the furthest one that may be taken, where none does."""
        at = self._first_small(path, last)
        return self._first_fast(path, at, last) if self._bounds.pace.timed else at

    def narrower(self, path: Sequence[Point], at: int, last: int, lacking: float) -> int:
        """A later stop, up to the last, that should be so many times faster."""
        work = [self._macs.total(self._every(p.widths)) for p in path]
        return next((i for i in range(at + 1, last) if work[i] * lacking <= work[at]), last)

    # ---- sizes ----

    def _excess(self, stop: Point) -> float:
        """Predicted sizes over what they may be; infinite where copies of shared weights eat up what is saved."""
        if self._grown(stop, stop.parameters):
            return math.inf
        return self._bounds.excess(
            {
                "parameters": stop.parameters,
                "macs": self._macs.total(self._every(stop.widths)),
                "bytes": self._bytes_left(stop),
            }
        )

    def _grown(self, stop: Point, parameters: int) -> bool:
        return parameters >= self.total and self._every(stop.widths) != self._full

    def _bytes_left(self, stop: Point) -> int:
        if all(c.kind != "bytes" for c in self._bounds.ceilings):
            return 0
        return round(self._bytes - (self.total - stop.parameters) * self._per_parameter)

    @functools.cached_property
    def _bytes(self) -> int:
        return self._bounds.counts(inlined(self._fitter.network))["bytes"]

    @functools.cached_property
    def _per_parameter(self) -> float:
        return bytes_per_parameter(self._fitter.network.proto)

    def _small(self, stop: Point) -> bool:
        if not self._bounds.ceilings:
            return True
        made = self._made(stop)
        return self._bounds.small(made) and not self._grown(stop, count_parameters(made))

    def _made(self, stop: Point) -> onnx.ModelProto:
        return self._fitter.plan(stop.widths, sequential=False)[1]

    def _first_small(self, path: Sequence[Point], last: int) -> int:
        """The first stop whose network is small enough, or the last.

        The prediction leaves out biases that the refit adds and what else a file holds, so what it says is tried.
        """
        at = next((i for i, p in enumerate(path[:last]) if self._excess(p) <= 1.0), last)
        while at > 0 and self._cautious and self._small(path[at - 1]):
            at -= 1
        while at < last and not self._small(path[at]):
            at += 1
        return at

    @property
    def _cautious(self) -> bool:
        """Whether a prediction may be too large."""
        return any(c.kind == "bytes" for c in self._bounds.ceilings)

    # ---- time ----

    def _lacks(self, stop: Point) -> float:
        return SAFETY * self._time(self._made(stop))

    def _first_fast(self, path: Sequence[Point], first: int, last: int) -> int:
        """The first stop that is fast enough, as far as a few short timings tell; the last one where none was."""
        work = [math.log(max(self._macs.total(self._every(p.widths)), 1)) for p in path]
        low, high = first, last
        lacks: dict[int, float] = {first: math.log(max(self._lacks(path[first]), 1e-9))}
        if lacks[first] <= 0.0:
            return first
        for _ in range(TIMINGS):
            # The last stop is taken untimed only if all before it are too slow.
            if high - low <= (1 if high in lacks else 0) or work[low] - work[high] < NARROW:
                break
            at = _guess(work, lacks, low, high)
            lacks[at] = math.log(max(self._lacks(path[at]), 1e-9))
            if lacks[at] <= 0.0:
                high = at
            elif at == last:
                return last
            else:
                low = at
        return high


def _guess(work: Sequence[float], lacks: dict[int, float], low: int, high: int) -> int:
    """Where to time next, after `low` and before `high` (or there, if it was not timed).

    Time goes with the multiply-accumulates, or in between two timings by their logarithms.
    """
    target = work[low] - lacks[low]
    if high in lacks:
        part = lacks[low] / (lacks[low] - lacks[high])
        target = work[low] + min(max(part, 0.2), 0.8) * (work[high] - work[low])
    end = high - 1 if high in lacks else high
    return next((i for i in range(low + 1, end) if work[i] <= target), end)
