"""Holds networks against the limits that were asked for: sizes are counted, times are measured.

What can't be reached is told with the best that can, rounded so that asking for that succeeds.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx

from onnx_condense.cost import Work, count_parameters
from onnx_condense.errors import BudgetError
from onnx_condense.files import written_size
from onnx_condense.network.model import Network
from onnx_condense.options import limits
from onnx_condense.options.goal import Goal
from onnx_condense.options.limits import Limits
from onnx_condense.outcome import file_size
from onnx_condense.proving.provenance import largest_stamp
from onnx_condense.report.data import Latency

# Of the bootstrap of a median over rounds.
DRAWS, LEVEL = 1000, 0.99


@dataclasses.dataclass(frozen=True)
class Ceiling:
    """One limit on a size.

    option, asked: as given. kind: what is counted. most: what the count may be. dense: the count of the dense network
    where the limit is a share of it.
    """

    option: str
    asked: str
    kind: str
    most: float
    dense: int | None = None

    def said(self, count: int) -> str:
        """The smallest that can be asked for where a network has this count."""
        if self.dense is not None:
            return f"share is {limits.said_share(count / self.dense)}"
        return f"is {limits.said_count(count)} {NAMES[self.kind]}"


NAMES = {"parameters": "parameters", "macs": "MACs", "bytes": "bytes"}


class Bounds:
    """The limits of one run on one dense network.

    Attributes:
        ceilings: limits on sizes.
        kinds: what the path should save, of "parameters" and "macs": bytes go with parameters, time goes with MACs.
        work: counts these.
    """

    def __init__(self, goal: Goal, network: Network, work: Work | None = None) -> None:
        self.work = work or Work()
        self._goal, self._network = goal, network
        self.ceilings = tuple(_ceilings(goal, network))
        self.pace = Pace(goal.limits)
        asked = [c.kind for c in self.ceilings] + ["macs"] * goal.limits.timed
        self.kinds = tuple(dict.fromkeys({"bytes": "parameters"}.get(kind, kind) for kind in asked)) or ("parameters",)

    def __bool__(self) -> bool:
        return self._goal.sized

    def counts(self, model: onnx.ModelProto) -> Mapping[str, int]:
        """Of a network, by kind, as far as limits ask for them; bytes: at most."""
        counters: Mapping[str, Callable[[onnx.ModelProto], int]] = {
            "parameters": count_parameters,
            "macs": lambda proto: self.work.of(Network(proto)),
            "bytes": lambda proto: written_size(proto, self._network) + self._stamp,
        }
        return {kind: counters[kind](model) for kind in dict.fromkeys(c.kind for c in self.ceilings)}

    @functools.cached_property
    def _stamp(self) -> int:
        """What provenance will add to the file, at most."""
        return largest_stamp(self._goal)

    def excess(self, counts: Mapping[str, int]) -> float:
        """The largest count over what it may be; 0 where no size is limited."""
        return max((counts[c.kind] / c.most for c in self.ceilings), default=0.0)

    def small(self, model: onnx.ModelProto) -> bool:
        """Whether a network meets the limits on sizes."""
        return self.excess(self.counts(model)) <= 1.0

    def dense_is_small(self) -> bool:
        """Whether the dense network meets the limits on sizes."""
        if not self.ceilings:
            return True
        proto = self._network.given
        counts = {"parameters": count_parameters(proto), "macs": self.work.of(self._network)}
        return self.excess({**counts, "bytes": file_size(self._network)}) <= 1.0

    @property
    def all_asked(self) -> str:
        """All limits as they were given."""
        return " and ".join([*self.asked(timed=False), *self.asked(timed=True)])

    def too_large(self, models: Sequence[onnx.ModelProto], why: Callable[[], str]) -> BudgetError:
        """What to raise where none of some networks meets the limits on sizes.

        why: why there are none, where there are none.
        """
        counts = min((self.counts(m) for m in models), key=self.excess, default=None)
        missed = [c for c in self.ceilings if counts is None or counts[c.kind] > c.most]
        text = f"{' and '.join(c.asked for c in missed)} can't be reached{self._within()}: "
        if counts is None:
            return BudgetError(missed[0].option.removeprefix("--"), text + why())
        best = ", ".join(f"the smallest {c.said(counts[c.kind])}" for c in missed)
        return BudgetError(missed[0].option.removeprefix("--"), text + best)

    def too_slow(self, tried: Sequence[tuple[Sequence[Latency], float]], why: Callable[[], str]) -> BudgetError:
        """What to raise where none of some networks, (timings, error) each, meets the limits on time."""
        asked = " and ".join(self.asked(timed=True))
        text, code = f"{asked} can't be reached{self._within()}: ", asked.split()[0].removeprefix("--")
        if not tried:
            return BudgetError(code, text + why())
        timings, error = min(tried, key=lambda pair: self.pace.lacking(pair[0], sure=True))
        return BudgetError(code, f"{text}{self.pace.said(timings)}, with an error of {error:.3g}")

    def asked(self, *, timed: bool) -> list[str]:
        """The limits as they were given; timed: those on time alone, else those on sizes."""
        if timed:
            given = self._goal.limits.given()
            return [f"{o} {given[o]:g}" for o in ("--max-latency", "--speedup") if o in given]
        return [c.asked for c in self.ceilings]

    def _within(self) -> str:
        gate = self._goal.tolerance
        return "" if gate is None else f" within --tolerance {self._goal.said}"


def _ceilings(goal: Goal, network: Network) -> list[Ceiling]:
    found = []
    if goal.keep is not None:
        dense = count_parameters(network.given)
        found.append(Ceiling("--keep", f"--keep {goal.keep}", "parameters", goal.keep * dense, dense))
    for option, most in goal.limits.given().items():
        kind = option.removeprefix("--max-")
        if kind in NAMES:
            found.append(Ceiling(option, f"{option} {most}", kind, most))
    return found


class Pace:
    """Holds timings against limits on time: every one of them has to do."""

    def __init__(self, asked: Limits) -> None:
        self.asked = asked

    @property
    def timed(self) -> bool:
        """Whether there is such a limit."""
        return self.asked.timed

    def lacking(self, timings: Sequence[Latency], *, sure: bool = False) -> float:
        """How many times faster a network has to get; at most 1 where it meets the limits.

        sure: by the bad ends of the intervals, else by the estimates.
        """
        return max((max(self._lacks(t, sure=sure).values(), default=0.0) for t in timings), default=0.0)

    def _lacks(self, timing: Latency, *, sure: bool) -> dict[str, float]:
        found = {}
        if self.asked.speedup is not None:
            found["speedup"] = self.asked.speedup / (timing.interval[0] if sure else timing.speedup)
        if self.asked.max_latency is not None:
            found["latency"] = (slowest(timing) if sure else timing.after_ms) / self.asked.max_latency
        return found

    def said(self, timings: Sequence[Latency]) -> str:
        """The best that was reached, and where; rounded to the safe side."""
        worst: dict[str, Latency] = {}
        for timing in timings:
            for name, lack in self._lacks(timing, sure=True).items():
                if name not in worst or lack > self._lacks(worst[name], sure=True)[name]:
                    worst[name] = timing
        parts = {
            "speedup": lambda t: f"a speed-up of {limits.said_factor(t.interval[0])}",
            "latency": lambda t: f"{limits.said_ms(slowest(t))} ms",
        }
        reached = [f"{parts[name](t)} at batch {t.batch}" for name, t in worst.items()]
        return f"the best is {' and '.join(reached)}"


def slowest(timing: Latency) -> float:
    """The upper end of the condensed network's time in ms: bootstrap of the median over rounds."""
    if not timing.rounds:
        return timing.after_ms
    after = np.array([after for _, after in timing.rounds])
    drawn = np.random.default_rng(0).choice(after, (DRAWS, len(after)))
    return float(np.quantile(np.median(drawn, axis=1), (1.0 + LEVEL) / 2.0))
