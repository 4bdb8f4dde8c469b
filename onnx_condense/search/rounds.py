"""Condense and train in turn: how far to narrow before a training, and what to keep of it.

Training takes errors down by a factor that only it can tell, so networks are narrowed beyond the tolerance first, and
once more by what the first training showed. With several rounds each starts from what the one before made, and the
sizes between the dense network and the one asked for lie evenly on a logarithmic scale.
"""

from __future__ import annotations

import copy
import dataclasses
import math

from onnx_condense.outcome import Candidate, too_little
from onnx_condense.report.data import TuningRound
from onnx_condense.saved.reuse import Reuse
from onnx_condense.search.candidates import Maker, Route, Shares
from onnx_condense.tuner import Tuner

# How many times the tolerance the error may be before training: searched up to, and taken first.
REACH, FIRST = 5.0, 2.5
# Trainings of one round where a tolerance is to be met; another one is made only if it is worth so much.
ATTEMPTS, WORTH = 2, 0.95
# What the factor of one training promises for the next is believed but for this.
CAUTION = 0.95
# Shares of the run's work that are done when the first training starts, and when the last one ends.
STARTS, ENDS = 0.5, 0.88


class Rounds:
    """The strategy for one run.

    Args:
        maker: makes networks. tuner: trains them. shares: the samples.
    """

    def __init__(self, maker: Maker, tuner: Tuner, shares: Shares) -> None:
        self._maker, self._tuner, self._shares = maker, tuner, shares
        self._gate = maker.goal.gate
        self._told: list[TuningRound] = []
        self._tried: list[TuningRound] = []
        # A size is aimed at directly, a tolerance by trying.
        self._attempts = 1 if maker.bounds or maker.goal.threshold is not None else ATTEMPTS

    def run(self, exact: Candidate | None) -> Candidate | None:
        """The smallest network that is within the tolerance once trained; None where nothing can go.

        Raises:
            BudgetError: channels merged by a threshold cost more than the tolerance, training included.
        """
        base, rounds = exact, self._tuner.rounds
        for left in range(rounds, 0, -1):
            found = self._round(base, left)
            if found is None:
                break
            base = self._kept(found)
        if base is None or base is exact:
            return None
        # Where nothing that was trained goes out it is told all the same what was tried.
        told = self._told or self._tried
        base = dataclasses.replace(base, tuning=self._tuner.told(told) if told else None)
        if self._maker.goal.threshold is not None:
            return self._maker.gated(base)
        # A size on the way is no gate, and the last round may have found nothing.
        self._missed(base)
        return base if base.proved.excess(self._gate) <= 1.0 else None

    def reused(self, reuse: Reuse, exact: Candidate | None) -> Candidate:
        """What a saved plan makes of the network, trained."""
        self._attempts = 1
        found = self._kept(self._train(self._maker.reused(reuse, exact, self._shares)))
        return dataclasses.replace(found, tuning=self._tuner.told(self._told))

    def _kept(self, found: Candidate) -> Candidate:
        """A round's result, noted for the report and the front."""
        if found.trained is not None:
            self._told.append(found.trained)
        if self._maker.goal.front:
            # The result gets a stamp of its own.
            self._maker.front.append(dataclasses.replace(found, model=copy.deepcopy(found.model)))
        return found

    def _train(self, bare: Candidate) -> Candidate:
        trainings = self._tuner.rounds * self._attempts
        at = STARTS + (ENDS - STARTS) * len(self._tried) / trainings
        found = self._tuner(bare, self._shares.proof, 1.0 / trainings, at)
        if found.trained is not None:
            self._tried.append(dataclasses.replace(found.trained, kept=False))
        return found

    def _round(self, base: Candidate | None, left: int) -> Candidate | None:
        """One of the rounds that are left, on top of what there is; None where nothing more can go."""
        if self._maker.goal.threshold is not None:
            merged = self._maker.at_threshold(base, self._shares)
            return merged and self._train(merged)
        route = self._maker.search(base, self._shares, REACH)
        if route is None or route.at == 0:
            return None
        found = self._to_size(route, left) if self._maker.bounds else self._to_tolerance(route)
        return found and self._worth(route, found)

    def _worth(self, route: Route, found: Candidate) -> Candidate | None:
        """The same with what the search measured; None where it saves too little for its error."""
        if little := too_little(route.fitter.network, found, self._maker.goal, self._maker.bounds.work):
            self._tuner.notes.append(little)
            return None
        return dataclasses.replace(found, curve=route.curve)

    def _to_size(self, route: Route, left: int) -> Candidate | None:
        """The network of the size that is this round's, trained."""
        if left > 1:
            return self._train(self._maker.made(route, _on_the_way(route, left)))
        pace = self._maker.bounds.pace
        bare = self._maker.in_time(route) if pace.timed else self._maker.within(route, route.at)[0]
        if bare is None or pace.lacking(bare.latency, sure=True) > 1.0:
            # Training makes nothing faster.
            return bare
        found = self._train(bare)
        if found.proved.excess(self._gate) <= 1.0:
            return found
        # The size is too small for the tolerance: what is within it tells what can be reached.
        self._missed(found)
        return self._maker.within(route, route.at, self._gate)[0]

    def _to_tolerance(self, route: Route) -> Candidate | None:
        """The narrowest network that a training brought within the tolerance, or that is so without."""
        best: Candidate | None = None
        tolerance = self._maker.goal.tolerance or 0.0
        reached, last = route.error or REACH * tolerance, route.path[route.at].error
        at = _stop(route, last * FIRST * tolerance / reached)
        for _ in range(ATTEMPTS):
            if at == 0:
                break
            found = self._train(self._maker.made(route, at))
            self._missed(found)
            excess = found.proved.excess(self._gate)
            if excess <= 1.0:
                best = found
            if not math.isfinite(excess):
                break
            # Errors of wider or narrower networks should fall by the same factor.
            wanted = _stop(route, route.path[at].error * CAUTION / excess) if excess > 0.0 else route.at
            parameters = [route.path[i].parameters for i in (at, wanted)]
            if best is not None and (wanted <= at or parameters[1] > WORTH * parameters[0]):
                break
            at = wanted if best is not None else min(wanted, at - 1)
        return best or self._maker.within(route, _stop(route, last * tolerance / reached), self._gate)[0]

    def _missed(self, found: Candidate) -> None:
        """Say what training could not do, where it could not."""
        if found.proved.excess(self._gate) > 1.0:
            text = f"training brought {found.parameters:,} parameters to an error of {found.proved.worst(self._gate)}"
            self._tuner.notes.append(f"{text}, which is not within the tolerance: given back")


def _stop(route: Route, error: float) -> int:
    """The last stop with at most this predicted error, up to the one that was searched for."""
    return max((i for i in range(route.at + 1) if route.path[i].error <= error), default=0)


def _on_the_way(route: Route, left: int) -> int:
    """The stop that leaves as large a factor in parameters to each of the rounds that are left."""
    path, at = route.path, route.at
    target = path[0].parameters * (path[at].parameters / path[0].parameters) ** (1.0 / left)
    return next((i for i in range(1, at) if path[i].parameters <= target), at)
