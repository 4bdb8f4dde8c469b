"""The methods other than our own: condensation as its founders meant it, and the baselines that both are compared with.

| method | who goes | what the readers become |
|---|---|---|
| fit | what least squares on calibration inputs can do without (`fit/fitting.py`) | refitted by least squares |
| condensation | what points in the direction of another (`select/cosine.py`) | the representative's columns take over |
| condensation-refit | the same | refitted by least squares |
| drop | the smallest L2 norms (`select/magnitude.py`) | unchanged: no compensation at all |
| drop-refit | the same | refitted by least squares |

None of them but "fit" starts with the lossless step: a table of methods has to show each of them alone, and a method
with a refit picks the very channels that the one without it picks. What is proved to be one is merged by condensation
too: its cosine is 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import onnx

from onnx_condense.data import Samples
from onnx_condense.evidence.directions import Direction, Directions
from onnx_condense.evidence.values import stored_weight
from onnx_condense.fit.choices import Choice
from onnx_condense.fit.fitting import Fitter
from onnx_condense.fit.narrowed import Narrower, narrowed
from onnx_condense.grids import Move
from onnx_condense.network.model import Network
from onnx_condense.options.goal import CONDENSATION, EVERYWHERE, Goal
from onnx_condense.options.held import NOTHING, Held
from onnx_condense.options.naming import Layers
from onnx_condense.plan import ChannelSpace, ChannelView, FloatArray, IntArray, Plan, ReaderUpdate
from onnx_condense.rewrite import apply_plan
from onnx_condense.runtime import Runtime
from onnx_condense.select.cosine import agglomerated, grouped, representatives
from onnx_condense.select.magnitude import by_norm
from onnx_condense.select.obs import Elimination

NOBODY = -1
"""Stands for a channel whose columns are dropped without a trace."""
STAYS = Elimination(np.empty(0, np.int64), np.zeros(1))


@dataclasses.dataclass(frozen=True)
class Orders:
    """In which order the channels of one network go by weights alone.

    eliminations, directions: one per space that can be narrowed. notes: spaces left as they are, with reasons.
    named: the view with names for channels that have to stay.
    """

    eliminations: tuple[Elimination, ...]
    directions: tuple[Direction, ...]
    named: ChannelView
    notes: tuple[str, ...]


def orders_of(network: Network, view: ChannelView, goal: Goal, held: Held = NOTHING) -> Orders:
    """The orders of a method that goes by weights.

    Raises:
        UsageError: a pattern of the threshold names nothing.
    """
    cosines = thresholds(network, view, goal)
    named = held.view(network, named=True)
    directions, found, notes = Directions(network, named), list[tuple[Elimination, Direction]](), list[str]()
    for space in view.spaces:
        if not space.reducible:
            continue
        direction = directions.of(space)
        elimination = STAYS
        if not direction.finite:
            notes.append(f"{space.name} stays as it is: its weights do not compare (norms beyond the range of numbers)")
        elif goal.threshold is None or space.name in cosines:
            share = _shares(network, view, space, direction)
            elimination = _elimination(space, direction, share, goal, cosines.get(space.name))
        found.append((elimination, direction))
    return Orders(tuple(e for e, _ in found), tuple(d for _, d in found), named, tuple(notes))


def narrower(
    goal: Goal,
    network: Network,
    view: ChannelView,
    samples: Samples,
    shares: tuple[IntArray, IntArray],
    runtime: Runtime,
    held: Held = NOTHING,
    choices: Sequence[Choice] | None = None,
) -> tuple[Narrower, tuple[str, ...]]:
    """What makes smaller networks by the method asked for, and what to tell about it.

    Args:
        goal: names the method.
        network: what to condense.
        view: what is known of its channels.
        samples: the source.
        shares: which of them to fit on, and which to search on.
        runtime: how to run.
        held: what the user wants left alone.
        choices: of a saved plan, one per space that can be narrowed.
    """
    if goal.method == "fit":
        return Fitter(network, view, samples, *shares, runtime, choices), ()
    orders = orders_of(network, view, goal, held)
    if goal.fits:
        given = orders.eliminations if choices is None else _with_orders(choices, orders)
        return Fitter(network, view, samples, *shares, runtime, given), orders.notes
    if choices is not None:
        # Nothing tells on samples how well they do, so they stay.
        fixed = tuple(Elimination(c.gone, np.full(len(c.gone) + 1, c.error**2)) for c in choices)
        orders = dataclasses.replace(orders, eliminations=fixed)
    return Merger(network, view, orders, merge=goal.method == "condensation"), orders.notes


def _with_orders(choices: Sequence[Choice], orders: Orders) -> list[Choice]:
    """The same, with the order of the method for channels chosen anew."""
    pairs = zip(choices, orders.eliminations, strict=True)
    return [dataclasses.replace(choice, fresh=elimination) for choice, elimination in pairs]


def _elimination(
    space: ChannelSpace, direction: Direction, share: FloatArray, goal: Goal, threshold: float | None
) -> Elimination:
    if goal.method not in CONDENSATION:
        return by_norm(direction.norm, space.pinned, share)
    if threshold is None:
        return agglomerated(direction.cosine, direction.norm, space.pinned, share)
    return grouped(direction.cosine, direction.norm, space.pinned, share, threshold)


def thresholds(network: Network, view: ChannelView, goal: Goal) -> Mapping[str, float]:
    """The threshold of each space, by its name: that of the last pattern that matches it, a writer or its weight.

    Raises:
        UsageError: a pattern matches nothing that can be narrowed.
    """
    layers = Layers(network, view)
    found: dict[str, float] = {}
    for pattern, threshold in (goal.threshold or {}).items():
        if pattern != EVERYWHERE:
            layers.check_free(pattern, "threshold")
        found |= dict.fromkeys(layers.matched(pattern, "threshold"), threshold)
    return found


def _shares(network: Network, view: ChannelView, space: ChannelSpace, direction: Direction) -> FloatArray:
    """How much of its readers' squared sums each channel makes [C], were all of them of unit direction and apart."""
    total = np.zeros(space.width)
    for index in space.readers:
        use = view.linear[index]
        weight = (stored_weight(network, use) ** 2).sum(axis=0).reshape(len(use.columns), -1).sum(axis=1)
        at = {label: i for i, label in enumerate(space.channels.tolist())}
        own = np.zeros(space.width)
        for label, square in zip(use.columns.tolist(), weight.tolist(), strict=True):
            if label in at:
                own[at[label]] += square
        own *= direction.read[index] ** 2
        total += own / max(own.sum(), np.finfo(np.float64).tiny)
    return total / max(len(space.readers), 1)


class Merger:
    """Makes plans from weights alone: what goes is merged into a representative, or dropped; see `widths.Narrower`.

    Args:
        network, view: what to condense; orders: who goes; merge: whether representatives take over.
    """

    light = True
    anew: Mapping[str, float] = MappingProxyType({})
    moves: Mapping[str, Move] = MappingProxyType({})

    def __init__(self, network: Network, view: ChannelView, orders: Orders, *, merge: bool) -> None:
        self.network, self.view = network, view
        self.spaces = tuple(s for s in view.spaces if s.reducible)
        self.eliminations = orders.eliminations
        self._directions, self._merge = orders.directions, merge
        self._columns = [_positions(use.columns) for use in orders.named.linear]

    def use_all(self, search: IntArray) -> None:
        """Nothing is fitted, so no sample changes anything."""

    def rows_per_channel(self, widths: Sequence[int]) -> Mapping[str, float]:
        """Nothing."""
        del widths
        return {}

    def plan(self, widths: Sequence[int], *, sequential: bool) -> tuple[Plan, onnx.ModelProto]:
        """The plan for given widths (one per space of `spaces`) and the network it makes; sequential: all the same."""
        del sequential
        selections, errors = narrowed(self.view, self.spaces, self.eliminations, widths)
        gone = Plan("fitted", selections, ()).dropped(self.view.spaces)
        updates: dict[int, ReaderUpdate] = {}
        lead = {u: uses[0] for uses in self.view.shared for u in uses}
        stand_ins = self._stand_ins(gone)
        for index, use in enumerate(self.view.linear):
            if not gone.isdisjoint(use.columns.tolist()):
                updates[index] = self._merged(index, lead.get(index, index), stand_ins)
        plan = Plan("merged" if self._merge else "dropped", selections, tuple(updates.values()), errors)
        return plan, apply_plan(self.network, self.view, plan)

    def _stand_ins(self, gone: frozenset[int]) -> Mapping[int, int]:
        """The label of the representative for each label that goes, or NOBODY."""
        found: dict[int, int] = {}
        for space, direction in zip(self.spaces, self._directions, strict=True):
            leaving = np.isin(space.channels, list(gone))
            out, keep = np.flatnonzero(leaving), np.flatnonzero(~leaving)
            heads = representatives(direction.cosine, keep, out) if self._merge else np.full(len(out), -1)
            labels = np.where(heads < 0, NOBODY, space.channels[heads])
            found |= dict(zip(space.channels[out].tolist(), labels.tolist(), strict=True))
        return found

    def _merged(self, index: int, lead: int, stand_ins: Mapping[int, int]) -> ReaderUpdate:
        """New columns of one reader; lead: the use of the same stored weight that tells the amplitudes for all."""
        use = self.view.linear[index]
        weight = stored_weight(self.network, use).reshape(-1, len(use.columns), use.taps)
        columns = self._columns[index]
        amplitude = {**self._amplitudes(index), **self._amplitudes(lead)}
        for label, mine in columns.items():
            if label not in stand_ins:
                continue
            head = stand_ins[label]
            if head != NOBODY and amplitude[head] > 0.0:
                # A channel lies where its representative does, as often, in the same order (`Directions`).
                weight[:, columns[head]] += weight[:, mine] * (amplitude[label] / amplitude[head])
            weight[:, mine] = 0.0
        return ReaderUpdate(index, weight.reshape(len(weight), -1), np.zeros(len(weight)))

    def _amplitudes(self, index: int) -> Mapping[int, float]:
        """Of the channels that a use reads, by label."""
        found: dict[int, float] = {}
        for space, direction in zip(self.spaces, self._directions, strict=True):
            if index in direction.read:
                found |= dict(zip(space.channels.tolist(), direction.read[index].tolist(), strict=True))
        return found


def _positions(labels: IntArray) -> dict[int, list[int]]:
    """Where each channel stands among the columns of a reader."""
    found: dict[int, list[int]] = {}
    for position, label in enumerate(labels.tolist()):
        found.setdefault(label, []).append(position)
    return found
