"""The networks that may go out: exact merges, and fits by the method asked for; each made, checked and measured."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

from onnx_condense.budget import Point, back_off
from onnx_condense.cost import count_parameters
from onnx_condense.data import Samples
from onnx_condense.data.augment import augmented, variants_of
from onnx_condense.errors import BudgetError
from onnx_condense.evidence.weights import lossless_plan
from onnx_condense.goal import Goal
from onnx_condense.methods import narrower
from onnx_condense.metrics import Judge
from onnx_condense.model import Network
from onnx_condense.outcome import Candidate, too_little
from onnx_condense.plan import ChannelView, IntArray, Plan
from onnx_condense.proof import Proof, Prover
from onnx_condense.rewrite import apply_plan
from onnx_condense.runtime import Runtime
from onnx_condense.spaces import find_spaces
from onnx_condense.verify import rounding_level
from onnx_condense.widths import Narrower, Widths, better_refit, width_multiple

# Exact merges of several layers in a row may differ by this many times the rounding of one evaluation.
EXACT = 64
# In half precision that would allow anything.
LARGEST_ROUNDING = 0.01

Progress = Callable[[str, float], None]


class Maker:
    """Makes candidates for one dense network.

    Args:
        network, view: what is condensed. goal: what was asked for. prover, runtime: how it is judged and run.
        progress: called with a stage and the share of the work done.

    Attributes:
        notes: remarks for the user, in order of appearance.
    """

    def __init__(
        self, network: Network, view: ChannelView, goal: Goal, prover: Prover, runtime: Runtime, progress: Progress
    ) -> None:
        self.network, self.view, self.goal = network, view, goal
        self.prover, self.runtime, self.progress = prover, runtime, progress
        self.notes: list[str] = []
        self.parameters = count_parameters(network.proto)

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
        multiples = {s.name: width_multiple(self.network, self.view, s) for s in self.view.spaces}
        return lossless_plan(self.network, self.view, multiples)

    def lossless(self, plan: Plan, proof: Proof) -> Candidate | None:
        """The lossless step, proved on the samples; None where nothing can go."""
        if not plan.selections:
            return None
        condensed = apply_plan(self.network, self.view, plan)
        if count_parameters(condensed) >= self.parameters:
            self.notes.append("exact merges were given back: they would store copies of weights that are used often")
            return None
        self.prover.check(self.network, self.view, plan, condensed, proof)
        proved = proof.measure(condensed)
        bound = min(EXACT * rounding_level(self.network, self.view), LARGEST_ROUNDING, self.goal.tolerance or math.inf)
        if proved.excess(bound) > 1.0:
            self.notes.append(
                f"exact merges were given back: they changed the outputs by {proved.worst(bound)}, "
                f"more than rounding explains or the tolerance allows ({bound:.1e})"
            )
            return None
        return Candidate(condensed, (plan,), proved, gate=bound)

    def fitted(
        self, exact: Candidate | None, samples: Samples, fit: IntArray, search: IntArray, proof: Proof
    ) -> Candidate | None:
        """Condensation by the method asked for, on top of the lossless step; None where nothing more can go."""
        network = Network(exact.model) if exact else self.network
        view = find_spaces(network) if exact else self.view
        self.progress("collecting moments", 0.1)
        if self.goal.augment:
            fit = variants_of(fit, len(samples), self.goal.augment)
            samples = augmented(samples, self.goal.augment, self.goal.seed)
            self.notes.append(f"also fitted on variants of the samples, {self.goal.augment} of each")
        fitter, notes = narrower(self.goal, network, view, samples, (fit, search), self.runtime)
        self.notes += notes
        if not fitter.spaces:
            return None
        self._try_rewrite(fitter, proof)
        self.progress("probing spaces", 0.3)
        hunter = self.prover.judge(samples, search, optimize=True)
        if self.goal.threshold is not None:
            return self._at_threshold(fitter, hunter, search, proof)
        done = 0.35

        def measuring() -> None:
            nonlocal done
            done += 0.04
            self.progress("searching widths", min(done, 0.75))

        wanted = (self.goal.keep or 0.0) * self.parameters
        widths = Widths(fitter, hunter, self.goal, wanted, measuring)
        path, at = widths.find()
        staged = at > 0 and widths.staged(path[at].widths)
        self.progress("refitting", 0.75)
        fitter.use_all(search)
        found = self._within(fitter, path, at, staged, exact, proof)
        return found and dataclasses.replace(found, curve=widths.curve)

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

    def _within(
        self,
        fitter: Narrower,
        path: Sequence[Point],
        at: int,
        staged: bool,
        exact: Candidate | None,
        proof: Proof,
    ) -> Candidate | None:
        """The first candidate from a stop back towards the dense network that stays within the goal."""
        back_offs = 0
        while at > 0:
            self.progress("verifying", 0.85)
            found = self._proved(fitter, path[at].widths, staged, exact, back_offs, proof)
            excess = found.proved.excess(self.goal.gate)
            if excess <= 1.0:
                little = too_little(fitter.network, found, self.goal)
                self.notes += [little] if little else []
                return None if little else found
            if fault := found.proved.measured.fault:
                self.notes.append(f"a narrower network was given back: {fault} on samples that judge")
            back_offs += 1
            at = back_off(path, at, excess, back_offs)
        return None

    def _at_threshold(self, fitter: Narrower, hunter: Judge, search: IntArray, proof: Proof) -> Candidate | None:
        """What a threshold merges, no less and no more; None where that saves nothing.

        Raises:
            BudgetError: its error is larger than the tolerance.
        """
        widths = [s.width - len(e.order) for s, e in zip(fitter.spaces, fitter.eliminations, strict=True)]
        if widths == [s.width for s in fitter.spaces]:
            return None
        staged = self.goal.fits and better_refit(fitter, hunter, widths)[0]
        self.progress("refitting", 0.75)
        fitter.use_all(search)
        self.progress("verifying", 0.85)
        found = self._proved(fitter, widths, staged, None, 0, proof)
        if found.proved.excess(self.goal.gate) > 1.0:
            gate = "any bound" if self.goal.tolerance is None else f"--tolerance {self.goal.tolerance}"
            error = found.proved.worst(self.goal.gate)
            text = f"--threshold gives an error of {error}, above {gate}: give a larger threshold"
            raise BudgetError("threshold", text)
        return found if found.parameters < self.parameters else None

    def _proved(
        self,
        fitter: Narrower,
        widths: Sequence[int],
        staged: bool,
        exact: Candidate | None,
        back_offs: int,
        proof: Proof,
    ) -> Candidate:
        """The candidate of these widths, checked against its plan and measured."""
        plan, condensed = fitter.plan(widths, sequential=staged)
        self.prover.check(fitter.network, fitter.view, plan, condensed, proof)
        plans = (*(exact.plans if exact else ()), plan)
        # Where a bias was added the tensor that names a space got another name.
        old = {s.writers: s.name for s in self.view.spaces}
        names = {s.name: old.get(s.writers, s.name) for s in fitter.view.spaces}
        rows = {names.get(name, name): count for name, count in fitter.rows_per_channel(widths).items()}
        return Candidate(condensed, plans, proof.measure(condensed), self.goal.tolerance, back_offs, names, rows)
