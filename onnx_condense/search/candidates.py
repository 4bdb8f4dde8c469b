"""The networks that may go out: exact merges, and fits by the method asked for; each made, checked and measured."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from onnx_condense.cost import Work, count_parameters
from onnx_condense.data import Samples
from onnx_condense.data.augment import augmented, variants_of
from onnx_condense.errors import BudgetError
from onnx_condense.evidence.weights import lossless_plan
from onnx_condense.fit.choices import Choice, untouched
from onnx_condense.fit.fitting import Fitter
from onnx_condense.fit.methods import narrower
from onnx_condense.fit.narrowed import Narrower
from onnx_condense.fit.placing import placed, turned
from onnx_condense.grids import Move, apart, moved, moved_back
from onnx_condense.network.model import Network
from onnx_condense.options.goal import Goal
from onnx_condense.options.held import NOTHING, Held
from onnx_condense.options.yardstick import RELATIVE
from onnx_condense.outcome import GIVEN_BACK, Candidate, too_little
from onnx_condense.plan import ChannelView, IntArray, Plan
from onnx_condense.proving.proof import Proof, Prover
from onnx_condense.proving.verify import rounding_level
from onnx_condense.report.data import CurvePoint
from onnx_condense.rewrite import apply_plan
from onnx_condense.runtime import Runtime
from onnx_condense.saved.reuse import Reuse
from onnx_condense.search.aim import Aim
from onnx_condense.search.bounds import Bounds
from onnx_condense.search.budget import Point, back_off
from onnx_condense.search.front import largest_error
from onnx_condense.search.grid import Grid
from onnx_condense.search.widths import Widths, better_refit

# Exact merges of several layers in a row may differ by this many times the rounding of one evaluation.
EXACT = 64
# In half precision that would allow anything.
LARGEST_ROUNDING = 0.01
# Networks that are timed in full where time is limited.
TIMINGS = 4
# A failure that errs no less than the one before it counts so many times: predictions do not tell what makes the error.
STUCK = 3

Progress = Callable[[str, float], None]


@dataclasses.dataclass(frozen=True)
class Shares:
    """Samples by their roles: what is fitted and searched on, and what judges."""

    samples: Samples
    fit: IntArray
    search: IntArray
    proof: Proof


@dataclasses.dataclass(frozen=True)
class Route:
    """A path that was found, and what its stops are made and judged with.

    at: the stop that was asked for; error: upper bound of its error on the search share, where it was measured.
    furthest: the last stop that the search share allows. staged: whether refits go stage by stage.
    gate: what errors may be on the samples that judge. exact: what the path starts from.
    """

    fitter: Narrower
    path: tuple[Point, ...]
    at: int
    error: float | None
    furthest: int
    staged: bool
    gate: float
    aim: Aim
    exact: Candidate | None
    proof: Proof
    curve: tuple[CurvePoint, ...]


class Maker:
    """Makes candidates for one dense network.

    Args:
        network, view: what is condensed. goal: what was asked for. prover, runtime: how it is judged and run.
        progress: called with a stage and the share of the work done. held: what the user wants left alone.
        work: counts multiply-accumulates.

    Attributes:
        notes: remarks for the user, in order of appearance.
        front: what was made for the front, if one was asked for.
    """

    def __init__(
        self,
        network: Network,
        view: ChannelView,
        goal: Goal,
        prover: Prover,
        runtime: Runtime,
        progress: Progress,
        held: Held = NOTHING,
        work: Work | None = None,
    ) -> None:
        self.network, self.view, self.goal, self.held = network, view, goal, held
        self.prover, self.runtime, self.progress = prover, runtime, progress
        self.notes: list[str] = []
        self.front: list[Candidate] = []
        self.parameters = count_parameters(network.proto)
        self.bounds = Bounds(goal, network, work)
        self.grid = Grid(goal.multiple_of if isinstance(goal.multiple_of, int) else None)

    def exact(self, plan: Plan, proof: Proof) -> Iterator[Candidate]:
        """The lossless step, then one that keeps a few redundant channels: it is only made if the first is slower."""
        if exact := self.lossless(plan, proof):
            yield exact
        aligned = self.aligned_plan() if plan.selections else plan
        kept = [[s.keep.tolist() for s in p.selections] for p in (plan, aligned)]
        if kept[0] != kept[1] and (second := self.lossless(aligned, proof)):
            yield second

    def aligned_plan(self) -> Plan:
        """The lossless plan that leaves widths which run well."""
        return self.grid.exact(self.network, self.view, self._lossless_plan)

    def narrowed(self) -> frozenset[tuple[int, ...]]:
        """The writers of the spaces that exact steps narrow."""
        plan = self.lossless_plan() if self.goal.lossless else self.aligned_plan()
        names = {s.space for s in plan.selections}
        return frozenset(s.writers for s in self.view.spaces if s.name in names)

    def lossless_plan(self) -> Plan:
        """What the weights prove redundant, but for what is held."""
        return self.aligned_plan() if self.grid.strict else self._lossless_plan()

    def _lossless_plan(self, multiples: Mapping[str, int] | None = None) -> Plan:
        return lossless_plan(self.network, self.view, multiples, self.held.least(self.view))

    def lossless(self, plan: Plan, proof: Proof) -> Candidate | None:
        """The lossless step, proved on the samples; None where nothing can go."""
        if not plan.selections:
            return None
        condensed = apply_plan(self.network, self.view, plan)
        if count_parameters(condensed) >= self.parameters:
            self.notes.append(f"{GIVEN_BACK}they would store copies of weights that are used often")
            return None
        self.prover.check(self.network, self.view, plan, condensed, proof)
        # Nothing was fitted.
        proved = dataclasses.replace(proof, known=None).measure(condensed)
        # Exact is what rounding explains, in relative error, however much another metric allows.
        bound = min(EXACT * rounding_level(self.network, self.view), LARGEST_ROUNDING)
        plain = self.goal.lossless or (self.goal.metric == RELATIVE and not self.goal.tolerances)
        bound = min(bound, self.goal.tolerance or math.inf) if plain else bound
        if proved.exact.excess(bound) > 1.0 or (not plain and proved.excess(self.goal.gate) > 1.0):
            self.notes.append(
                f"{GIVEN_BACK}they changed the outputs by {proved.exact.worst(bound)}, "
                f"more than rounding explains or the tolerance allows ({bound:.1e})"
            )
            return None
        return Candidate(condensed, (plan,), proved, gate=bound if plain else self.goal.tolerance)

    def fitted(self, exact: Candidate | None, shares: Shares) -> Candidate | None:
        """Condensation by the method asked for, on top of the lossless step; None where nothing more can go."""
        if self.goal.threshold is not None:
            found = self.at_threshold(exact, shares)
            return found and self.gated(found)
        route = self.search(exact, shares)
        if route is None:
            return None
        found = self.in_time(route) if self.bounds.pace.timed else self.within(route, route.at)[0]
        return found and dataclasses.replace(found, curve=route.curve)

    def search(self, exact: Candidate | None, shares: Shares, reach: float = 1.0) -> Route | None:
        """A path of networks, and the stop on it that the goal asks for; None where nothing can go.

        reach: how many times the tolerance errors may be.
        """
        fitter = self._narrower(exact, shares)
        if not fitter.spaces:
            return None
        goal = self.goal
        if goal.tolerance is not None:
            goal = dataclasses.replace(goal, tolerance=reach * goal.tolerance)
        self._try_rewrite(fitter, shares.proof)
        self.progress("probing spaces", 0.3)
        hunter = self.prover.judge(shares.samples, shares.search, optimize=True)
        done = 0.35

        def measuring() -> None:
            nonlocal done
            done += 0.04
            self.progress("searching widths", min(done, 0.75))

        aim = Aim(fitter, self.bounds, lambda model: self.bounds.pace.lacking(self.prover.glance(model, shares.proof)))
        widths = Widths(fitter, hunter, goal, aim, measuring, self.grid)
        path, at = widths.find()
        staged = at > 0 and widths.staged(path[at].widths)
        ahead = (
            widths.front(largest_error(goal.tolerance))
            if goal.front and not (goal.tune and goal.tune.rounds > 1)
            else []
        )
        self.progress("refitting", 0.75)
        fitter.use_all(shares.search)
        # Nothing is a gate for the front.
        alone = dataclasses.replace(shares.proof, known=None)
        for stop in ahead:
            self.progress("making the front", 0.76)
            self.front.append(self._proved(fitter, stop.widths, widths.staged(stop.widths), exact, 0, alone))
        furthest, error = max(at, widths.furthest), widths.measured(path[at].widths)
        return Route(
            fitter, tuple(path), at, error, furthest, staged, goal.gate, aim, exact, shares.proof, widths.curve
        )

    def _narrower(self, exact: Candidate | None, shares: Shares, reuse: Reuse | None = None) -> Narrower:
        """What narrows the network, or what an earlier step made of it, by the method asked for or a saved plan."""
        samples, fit, search = shares.samples, shares.fit, shares.search
        network = Network(exact.model) if exact else self.network
        view = self.held.view(network) if exact else self.view
        self.progress("collecting moments", 0.1)
        if self.goal.augment:
            fit = variants_of(fit, len(samples), self.goal.augment)
            samples = augmented(samples, self.goal.augment, self.goal.seed)
            self.notes.append(f"also fitted on variants of the samples, {self.goal.augment} of each")
        choices = reuse.choices(view, exact.plans[0] if exact else None) if reuse else None

        def made(moves: Mapping[str, Move], choices: Sequence[Choice] | None) -> tuple[Narrower, Sequence[str]]:
            there = moved(network, view, moves)
            seen = view if there is network else self.held.view(there)
            found, notes = narrower(self.goal, there, seen, samples, (fit, search), self.runtime, self.held, choices)
            found.moves = moves
            return found, notes

        moves = dict[str, Move]()
        if reuse:
            moves |= reuse.places(network, view)
            if names := reuse.turned(view):
                first, _ = made({}, untouched(view))
                moves |= turned(first, apart(network, view), names) if isinstance(first, Fitter) else {}
        fitter, notes = made(moves, choices)
        if reuse is None and (moves := self._moves(fitter, exact)):
            fitter, notes = made(moves, None)
        fitter.eliminations = self.held.cut(fitter.view, fitter.spaces, fitter.eliminations)
        self.notes += notes
        return fitter

    def _moves(self, fitter: Narrower, exact: Candidate | None) -> dict[str, Move]:
        """What is done first with channels of groups, heads and stacks; what was fitted before had its turn."""
        if not isinstance(fitter, Fitter) or self.goal.method != "fit" or (exact and exact.rows):
            return {}
        found = apart(fitter.network, fitter.view)
        return {**placed(fitter, found), **turned(fitter, found)}

    def reused(self, reuse: Reuse, exact: Candidate | None, shares: Shares) -> Candidate:
        """What a saved plan makes of the network, refitted; exact: the step that its exact part was proved by."""
        fitter = self._narrower(exact, shares, reuse)
        self.notes += reuse.told_anew(fitter.anew)
        widths = [s.width - len(e.order) for s, e in zip(fitter.spaces, fitter.eliminations, strict=True)]
        self.progress("refitting", 0.75)
        fitter.use_all(shares.search)
        found = self._proved(fitter, widths, reuse.staged, exact, 0, shares.proof)
        return dataclasses.replace(found, plans=(*found.plans[:-1], reuse.told(found.plans[-1], found.names)))

    def _try_rewrite(self, fitter: Narrower, proof: Proof) -> None:
        """See that narrow networks are what their plans say, before the search takes what it measures for their error.

        Raises:
            DefectError: they are not.
        """
        most = [len(e.order) for e in fitter.eliminations]
        widths = [s.width - gone // 2 for s, gone in zip(fitter.spaces, most, strict=True)]
        if any(gone > 1 for gone in most):
            plan, model = fitter.plan(widths, sequential=False)
            self.prover.check(fitter.network, fitter.view, plan, model, proof)

    def within(self, route: Route, at: int, gate: float | None = None) -> tuple[Candidate | None, int]:
        """The first candidate from a stop back towards the dense network that stays within a gate; its stop.

        gate: what errors may be; None: the route's.
        """
        back_offs, gate = 0, route.gate if gate is None else gate
        times, before = 0, math.inf
        while at > 0:
            self.progress("verifying", 0.85)
            found = self.made(route, at, back_offs, gate)
            excess = found.proved.excess(gate)
            if excess <= 1.0:
                little = too_little(route.fitter.network, found, self.goal, self.bounds.work)
                self.notes += [little] if little else []
                return (None if little else found), at
            if fault := found.proved.measured.fault:
                self.notes.append(f"a narrower network was given back: {fault} on samples that judge")
            back_offs += 1
            times += 1 if excess < before else STUCK
            at, before = back_off(route.path, at, excess, times), excess
        return None, 0

    def made(self, route: Route, at: int, back_offs: int = 0, gate: float = math.inf) -> Candidate:
        """The candidate of one stop; gate: above it errors are not measured in every setting."""
        widths = route.path[at].widths
        return self._proved(route.fitter, widths, route.staged, route.exact, back_offs, route.proof, gate)

    def in_time(self, route: Route) -> Candidate | None:
        """The first candidate that also meets the limits on time for sure; the fastest one where none does."""
        tried: list[tuple[float, Candidate]] = []
        at = route.at
        for _ in range(TIMINGS):
            found, at = self.within(route, at)
            if found is None:
                break
            self.progress("timing", 0.87)
            timings = self.prover.time(found.model, route.proof)
            lacking = self.bounds.pace.lacking(timings, sure=True)
            tried.append((lacking, dataclasses.replace(found, latency=tuple(timings))))
            # What verification gave back was narrower already.
            if lacking <= 1.0 or found.back_offs or at >= route.furthest:
                break
            at = route.aim.narrower(route.path, at, route.furthest, lacking)
        return min(tried, key=lambda pair: pair[0], default=(0.0, None))[1]

    def at_threshold(self, exact: Candidate | None, shares: Shares) -> Candidate | None:
        """What a threshold merges, no less and no more; None where that saves nothing."""
        fitter = self._narrower(exact, shares)
        widths = [s.width - len(e.order) for s, e in zip(fitter.spaces, fitter.eliminations, strict=True)]
        if widths == [s.width for s in fitter.spaces]:
            return None
        self._try_rewrite(fitter, shares.proof)
        self.progress("probing spaces", 0.3)
        hunter = self.prover.judge(shares.samples, shares.search, optimize=True)
        staged = self.goal.fits and better_refit(fitter, hunter, widths)[0]
        self.progress("refitting", 0.75)
        fitter.use_all(shares.search)
        self.progress("verifying", 0.85)
        found = self._proved(fitter, widths, staged, exact, 0, shares.proof)
        before = exact.parameters if exact else self.parameters
        return found if found.parameters < before else None

    def gated(self, found: Candidate) -> Candidate:
        """What a threshold gave, where that is within the tolerance.

        Raises:
            BudgetError: it is not.
        """
        if found.proved.excess(self.goal.gate) > 1.0:
            gate = "any bound" if self.goal.tolerance is None else f"--tolerance {self.goal.said}"
            error = found.proved.worst(self.goal.gate)
            text = f"--threshold gives an error of {error}, above {gate}: give a larger threshold"
            raise BudgetError("threshold", text)
        return found

    def _proved(
        self,
        fitter: Narrower,
        widths: Sequence[int],
        staged: bool,
        exact: Candidate | None,
        back_offs: int,
        proof: Proof,
        gate: float = math.inf,
    ) -> Candidate:
        """The candidate of these widths, checked against its plan and measured."""
        plan, condensed = fitter.plan(widths, sequential=staged)
        self.prover.check(fitter.network, fitter.view, plan, condensed, proof)
        touched = {s.space for s in plan.selections}
        still = {name: move for name, move in fitter.moves.items() if name not in touched}
        if still:
            before = Network(exact.model) if exact else self.network
            condensed = moved_back(condensed, fitter.view, still, (before, fitter.network), self.held.view)
        plans = (*(exact.plans if exact else ()), plan)
        # Where a bias was added the tensor that names a space got another name.
        old = {s.writers: s.name for s in self.view.spaces}
        names = {s.name: old.get(s.writers, s.name) for s in fitter.view.spaces}
        earlier = exact.names if exact else {}
        rows = {names.get(name, name): count for name, count in fitter.rows_per_channel(widths).items()}
        proved = proof.measure(condensed, gate)
        found = Candidate(condensed, plans, proved, self.goal.tolerance, back_offs, {**earlier, **names}, rows)
        moves = {names.get(n, n): move for n, move in fitter.moves.items() if n in touched}
        moves |= exact.moves if exact else {}
        steps = exact.steps if exact else 0
        return dataclasses.replace(found, staged=staged if plan.kind == "fitted" else None, steps=steps, moves=moves)
