"""The fitted plan of one network: moments, elimination orders, and for any widths the refitted readers.

Part of the pipeline: the one place that joins evidence, selection, compensation and rewrite.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from onnx_condense.compensate import refit
from onnx_condense.data.samples import Samples
from onnx_condense.evidence import moments
from onnx_condense.evidence.moments import PREFIX, Pair
from onnx_condense.evidence.values import stored_weight
from onnx_condense.model import Network, inlined
from onnx_condense.plan import (
    PINNED,
    ChannelSpace,
    ChannelView,
    FloatArray,
    IntArray,
    Moments,
    Plan,
    ReaderUpdate,
    Selection,
)
from onnx_condense.rewrite import apply_plan
from onnx_condense.runtime import Runtime
from onnx_condense.select.obs import Elimination, ReaderCost, eliminate

SELECTION_RIDGE = 1e-5
# Relative to the mean variance. With RICH rows per kept channel the choice does not matter (docs/benchmarks.md).
RICH = 10
USUAL_RIDGE = 1e-4
RIDGES = (1e-4, 1e-3, 1e-2)


@dataclasses.dataclass(frozen=True)
class _Group:
    """Readers that are refitted together: one, or all uses of a weight that is stored once.

    weight: [O, K]; columns: labels [K]; level: how many refitted readers lie upstream at most.
    """

    uses: tuple[int, ...]
    weight: FloatArray
    columns: IntArray
    level: int


class Fitter:
    """Fits plans for one network on one calibration set.

    Args:
        network, view: what to condense; samples: the source; fit: samples to fit on; search: held-out samples
        for choosing the ridge; runtime: how to run.
    """

    def __init__(
        self,
        network: Network,
        view: ChannelView,
        samples: Samples,
        fit: IntArray,
        search: IntArray,
        runtime: Runtime,
    ) -> None:
        self.network, self.view = network, view
        self._samples, self._runtime = samples, runtime
        self._proto = inlined(network)
        self.spaces = tuple(s for s in view.spaces if s.reducible)
        self._groups = self._find_groups()
        self._axes = sorted({self._axis(u) for g in self._groups for u in g.uses})
        self._fit_rows, self._fit = fit, self._dense(fit)
        self._held = self._dense(search)
        # Ridges are chosen on what the search share was held out from, also once it is fitted on.
        self._chosen_on = self._fit
        self._ridge_of: dict[tuple[int, ...], float] = {}
        self.eliminations = tuple(self._eliminate(s) for s in self.spaces)

    def use_all(self, search: IntArray) -> None:
        """From now on fit on fit + search together; ridges are still chosen with search held out."""
        self._fit = {axis: self._fit[axis].plus(self._held[axis]) for axis in self._axes}
        self._fit_rows = np.sort(np.concatenate([self._fit_rows, search]))

    # ---- what reads what ----

    def _axis(self, use: int) -> tuple[str, int]:
        linear = self.view.linear[use]
        return self.network.nodes[linear.activation.node].inputs[linear.activation.position], linear.act_axis

    def _find_groups(self) -> list[_Group]:
        removable = {int(c) for s in self.spaces for c in s.channels[~s.pinned]}
        reading = [i for i, u in enumerate(self.view.linear) if not removable.isdisjoint(u.columns.tolist())]
        together = {u: uses for uses in self.view.shared for u in uses}
        members = sorted({tuple(u for u in together.get(i, (i,)) if u in reading) for i in reading})
        levels = _levels(self.network, {self.view.linear[i].weight.node for i in reading})
        groups = []
        for uses in members:
            weight = stored_weight(self.network, self.view.linear[uses[0]])
            assert weight is not None
            level = max(levels.get(self._axis(u)[0], 0) for u in uses)
            groups.append(_Group(uses, weight, self.view.linear[uses[0]].columns, level))
        return groups

    # ---- moments ----

    def _ranks(self) -> dict[str, int]:
        return {name: len(self.network.shape(name) or ()) for name, _ in self._axes}

    def _dense(self, indices: IntArray) -> dict[tuple[str, int], Moments]:
        pairs = [moments.of_axis(*axis) for axis in self._axes]
        found = moments.collect(self._proto, pairs, self._ranks(), self._samples, indices, self._runtime)
        return dict(zip(self._axes, found, strict=True))

    def _pooled(self, source: Mapping[tuple[str, int], Moments], group: _Group) -> Moments:
        return functools.reduce(Moments.plus, (source[self._axis(u)] for u in group.uses))

    # ---- selection ----

    def _eliminate(self, space: ChannelSpace) -> Elimination:
        """Order for one space; groups that read the very same axes are stacked into one."""
        stacks: dict[tuple[tuple[str, int], ...], list[_Group]] = {}
        for group in self._groups:
            if np.isin(group.columns, space.channels[~space.pinned]).any():
                stacks.setdefault(tuple(self._axis(u) for u in group.uses), []).append(group)
        readers = []
        for groups in stacks.values():
            columns = groups[0].columns
            where = {int(c): p for p, c in enumerate(columns) if c != PINNED}
            position = np.array([where.get(int(c), -1) for c in space.channels])
            weight = np.concatenate([g.weight * self.view.linear[g.uses[0]].gain for g in groups])
            readers.append(ReaderCost(weight, self._pooled(self._fit, groups[0]).covariance, position))
        return eliminate(readers, np.flatnonzero(~space.pinned), SELECTION_RIDGE)

    # ---- plans ----

    def plan(self, widths: Sequence[int], *, sequential: bool) -> tuple[Plan, onnx.ModelProto]:
        """The plan for given widths (one per space of `spaces`) and the network it makes.

        sequential: refit stage by stage on what the already condensed prefix delivers, towards dense targets, with
        ridges chosen on held-out samples; otherwise, for probes, every reader is refitted once on the dense
        network's own activations.
        """
        selections, errors = [], {}
        for space, elimination, width in zip(self.spaces, self.eliminations, widths, strict=True):
            removed = space.width - width
            if removed:
                keep = np.setdiff1d(np.arange(space.width), elimination.order[:removed])
                selections.append(Selection(space.name, keep))
                errors[space.name] = float(np.sqrt(elimination.cost[removed]))
        gone = Plan("fitted", tuple(selections), ()).dropped(self.view.spaces)
        touched = [g for g in self._groups if np.isin(g.columns, list(gone)).any()]
        updates: dict[int, ReaderUpdate] = {}
        for group in touched:
            # Readers further down only want a start: their stage comes.
            careful = sequential and group.level == 0
            self._refit(group, gone, updates, None, careful=careful)
        plan = Plan("fitted", tuple(selections), _ordered(updates), errors)
        condensed = apply_plan(self.network, self.view, plan)
        if sequential:
            for level in sorted({g.level for g in touched} - {0}):
                stage = [g for g in touched if g.level == level]
                self._refit_stage(stage, gone, updates, condensed)
                plan = dataclasses.replace(plan, updates=_ordered(updates))
                condensed = apply_plan(self.network, self.view, plan)
        return plan, condensed

    def _refit_stage(
        self,
        stage: Sequence[_Group],
        gone: frozenset[int],
        updates: dict[int, ReaderUpdate],
        condensed: onnx.ModelProto,
    ) -> None:
        """Refit the readers of one level on joint moments of the dense and the condensed network."""
        joint = moments.side_by_side(self._proto, condensed)
        axes = sorted({self._axis(u) for g in stage for u in g.uses})
        pairs = [
            p for name, at in axes for p in (Pair(name, at, PREFIX + name, at), moments.of_axis(PREFIX + name, at))
        ]
        ranks = self._ranks()
        ranks |= {PREFIX + name: rank for name, rank in ranks.items()}
        found = moments.collect(joint, pairs, ranks, self._samples, self._fit_rows, self._runtime)
        crossed = {axis: (found[2 * i], found[2 * i + 1]) for i, axis in enumerate(axes)}
        for group in stage:
            parts = [crossed[self._axis(u)] for u in group.uses]
            cross = functools.reduce(Moments.plus, (c for c, _ in parts))
            kept = functools.reduce(Moments.plus, (k for _, k in parts))
            self._refit(group, gone, updates, (cross, kept), careful=True)

    def _refit(
        self,
        group: _Group,
        gone: frozenset[int],
        updates: dict[int, ReaderUpdate],
        joint: tuple[Moments, Moments] | None,
        *,
        careful: bool,
    ) -> None:
        keep = np.flatnonzero(~np.isin(group.columns, list(gone)))
        if joint is None:
            dense = self._pooled(self._fit, group)
            joint = dense.part(np.arange(len(group.columns)), keep), dense.part(keep, keep)
        ridge = self._ridge(group, keep) if careful else USUAL_RIDGE
        fitted, offset = refit(group.weight, *joint, keep, ridge)
        weight = np.zeros_like(group.weight)
        weight[:, keep] = fitted
        for use in group.uses:
            updates[use] = ReaderUpdate(use, weight, offset * self.view.linear[use].gain)

    def _ridge(self, group: _Group, keep: IntArray) -> float:
        """The ridge whose one-shot refit does best on the search share; the smallest where rows abound."""
        dense, held = self._pooled(self._chosen_on, group), self._pooled(self._held, group)
        if dense.count >= RICH * len(keep):
            return USUAL_RIDGE
        key = (*group.uses, len(keep))
        if key not in self._ridge_of:
            everything = np.arange(len(group.columns))
            cross, kept = dense.part(everything, keep), dense.part(keep, keep)
            target, own = group.weight @ held.covariance[:, keep], held.covariance[np.ix_(keep, keep)]

            def held_out_error(ridge: float) -> float:
                fitted, _ = refit(group.weight, cross, kept, keep, ridge)
                return float(np.einsum("ij,ij->", fitted @ own - 2 * target, fitted))

            self._ridge_of[key] = min(RIDGES, key=held_out_error)
        return self._ridge_of[key]


def _ordered(updates: Mapping[int, ReaderUpdate]) -> tuple[ReaderUpdate, ...]:
    return tuple(updates[i] for i in sorted(updates))


def _levels(network: Network, refitted: set[int]) -> dict[str, int]:
    """Per tensor, the largest number of refitted nodes on a path to it."""
    levels: dict[str, int] = {}
    for node in network.nodes:
        level = max((levels.get(name, 0) for name in (*node.inputs, *node.captured)), default=0)
        levels.update(dict.fromkeys(node.outputs, level + (node.index in refitted)))
    return levels
