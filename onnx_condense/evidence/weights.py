"""The lossless plan: which channels the weights alone prove redundant, and what their readers become.

A channel goes if at every reader it is an affine copy of one channel that stays, if it is constant, or if
nothing that matters reads it. All three are exact up to rounding of the weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from onnx_condense.evidence.laws import CONSTANT, Values
from onnx_condense.evidence.values import ROUNDINGS, Numbering, stored_weight, type_eps
from onnx_condense.network.model import Network
from onnx_condense.plan import PINNED, ChannelSpace, ChannelView, FloatArray, IntArray, Plan, ReaderUpdate, Selection

BoolArray = npt.NDArray[np.bool_]

_NOBODY = np.empty(0, np.int64)


@dataclasses.dataclass(frozen=True)
class _Merged:
    """A reader once stand-ins have taken over.

    weight: [O, K, T]; offset: [O], before the gain; noise: [O, K, T], below which a sum of columns has cancelled.
    """

    weight: FloatArray
    offset: FloatArray
    noise: FloatArray


def lossless_plan(
    network: Network,
    view: ChannelView,
    multiples: Mapping[str, int] | None = None,
    least: Mapping[str, int] | None = None,
    stay: Mapping[str, IntArray] | None = None,
) -> Plan:
    """The plan that removes everything the weights prove redundant; an empty one where that is nothing.

    Args:
        network: what to look through.
        view: what is known of its channels.
        multiples: by space, what widths should be multiples of; some redundant channels then stay as they are.
        least: by space, how many channels stay at least.
        stay: by space, positions of channels that stay in any case.
    """
    finder = _Finder(network, view)
    stands_for = finder.stands_for()
    merged = finder.merge(stands_for)
    while too_large := finder.overflowing(merged):
        stands_for = finder.without_merges_at(too_large, stands_for)
        merged = finder.merge(stands_for)
    keep = _with_survivors(view, stands_for, finder.live(merged, stands_for))
    spared = np.zeros(len(keep), np.bool_)
    # What is spared in one space may cost another one channels that it had: until nothing is missing.
    while (more := _spared(view, keep, multiples or {}, least or {}, stay or {}) & ~spared).any():
        spared |= more
        stands_for = np.where(spared, np.arange(len(spared)), stands_for)
        merged = finder.merge(stands_for)
        # What they are made of has to stay as well.
        keep = _with_survivors(view, stands_for, finder.live(merged, stands_for)) | spared
    selections = []
    gone = np.zeros(len(stands_for), np.bool_)
    for space in view.spaces:
        kept = space.pinned | keep[space.channels]
        if not kept.all():
            selections.append(Selection(space.name, np.flatnonzero(kept)))
            gone[space.channels[~kept]] = True
    updates = [finder.update(i, merged, gone) for i, use in enumerate(view.linear) if gone[use.columns].any()]
    return Plan("lossless", tuple(selections), tuple(updates), {s.space: 0.0 for s in selections})


class _Finder:
    """The readers of one network, and what value numbering says about what they read.

    Arrays indexed by label have one entry per label of the view; `stands_for[c]` is the channel that takes over
    for c, c itself, or PINNED where c is constant and a bias takes over.
    """

    def __init__(self, network: Network, view: ChannelView) -> None:
        self._network, self._view = network, view
        numbering = Numbering(network, view)
        self._values = [numbering.read_by(use) for use in view.linear]
        self._columns = [_positions(use.columns) for use in view.linear]
        self._first = {u: uses[0] for uses in view.shared for u in uses}
        top = [s.channels.max(initial=0) for s in view.spaces] + [u.columns.max(initial=0) for u in view.linear]
        self._labels = int(max(top, default=0)) + 1

    def _weight(self, index: int) -> FloatArray:
        """[O, K, T]."""
        use = self._view.linear[index]
        weight = stored_weight(self._network, use)
        return weight.reshape(len(weight), -1, use.taps)

    # ---- who stands for whom ----

    def stands_for(self) -> IntArray:
        """Which channel stands for which [label]."""
        result = np.arange(self._labels)
        for space in self._view.spaces:
            groups: dict[tuple[tuple[int, int], ...], list[int]] = {}
            for channel in space.channels[~space.pinned].tolist():
                groups.setdefault(self._seen_as(space, channel), []).append(channel)
            for key, members in groups.items():
                if key and all(kind == CONSTANT for _, kind in key):
                    result[members] = PINNED
                elif key and len(members) > 1:
                    self._choose_stand_in(space, members, result)
        return result

    def _seen_as(self, space: ChannelSpace, channel: int) -> tuple[tuple[int, int], ...]:
        """Reader and class, for every column that the channel owns."""
        return tuple(
            (i, int(self._values[i].classes[p])) for i in space.readers for p in self._columns[i].get(channel, ())
        )

    def _choose_stand_in(self, space: ChannelSpace, members: Sequence[int], result: IntArray) -> None:
        """The member of largest scale stands for the others, so that merging does not magnify its rounding."""
        scales = {m: self._scales(space, m) for m in members}
        best = max(members, key=lambda m: (float(np.abs(scales[m]).max()), -m))
        for member in members:
            if member != best and self._agrees(space, member, best):
                result[member] = best

    def _scales(self, space: ChannelSpace, channel: int) -> FloatArray:
        return np.concatenate([self._values[i].scale[self._columns[i].get(channel, [])] for i in space.readers])

    def _agrees(self, space: ChannelSpace, member: int, best: int) -> bool:
        """Uses of one stored weight must all merge with the same ratio, or the weight could not stay shared."""
        for i in space.readers:
            first = self._first.get(i, i)
            if first == i:
                continue
            for p, at in zip(self._columns[i].get(member, ()), self._columns[i].get(best, ()), strict=True):
                ratio, known = _ratio(self._values[i], p, at), _ratio(self._values[first], p, at)
                slack = 4 * ROUNDINGS * type_eps(self._network, self._view.linear[i])
                if abs(ratio - known) > slack * abs(known):
                    return False
        return True

    def without_merges_at(self, readers: Sequence[int], stands_for: IntArray) -> IntArray:
        """The same without the spaces that the given readers read."""
        result = stands_for.copy()
        for space in self._view.spaces:
            if not set(space.readers).isdisjoint(readers):
                result[space.channels] = space.channels
        return result

    # ---- what readers become ----

    def merge(self, stands_for: IntArray) -> Mapping[int, _Merged]:
        """The readers that change."""
        touched = stands_for != np.arange(len(stands_for))
        return {i: self._merge(i, stands_for) for i, u in enumerate(self._view.linear) if touched[u.columns].any()}

    def _merge(self, index: int, stands_for: IntArray) -> _Merged:
        use, values, columns = self._view.linear[index], self._values[index], self._columns[index]
        original = self._weight(index)
        weight, offset, noise = original.copy(), np.zeros(len(original)), np.zeros_like(original)
        eps = ROUNDINGS * type_eps(self._network, use)
        lead = self._values[self._first.get(index, index)]
        for label, mine in columns.items():
            target = int(stands_for[label])
            if target == label:
                continue
            weight[:, mine] = 0.0
            if target == PINNED:
                offset += original[:, mine].sum(axis=2) @ values.offset[mine]
                continue
            for p, at in zip(mine, columns[target], strict=True):
                ratio = _ratio(lead, p, at)
                weight[:, at] += original[:, p] * ratio
                shift = values.offset[p] - ratio * values.offset[at]
                if abs(shift) > values.offset_noise[p] + abs(ratio) * values.offset_noise[at]:
                    offset += original[:, p].sum(axis=1) * shift
                noise[:, at] += eps * (np.abs(original[:, p] * ratio) + np.abs(original[:, at]))
        return _Merged(weight, offset, noise)

    def overflowing(self, merged: Mapping[int, _Merged]) -> list[int]:
        """Readers whose new numbers their type can't hold."""
        found = []
        for i, reader in merged.items():
            operand = self._view.linear[i].weight
            stored = self._network.constant(self._network.nodes[operand.node].inputs[operand.position])
            assert stored is not None
            with np.errstate(over="ignore"):
                numbers = [np.isfinite(a.astype(stored.dtype)).all() for a in (reader.weight, reader.offset)]
            if not all(numbers):
                found.append(i)
        return found

    def live(self, merged: Mapping[int, _Merged], stands_for: IntArray) -> BoolArray:
        """Channels [label] that reach something that can't go, through nonzero weights."""
        own = stands_for == np.arange(len(stands_for))
        live = np.zeros(len(stands_for), np.bool_)
        live[PINNED] = True
        grew = True
        while grew:
            grew = False
            for i, use in reversed(tuple(enumerate(self._view.linear))):
                # A row that is merged away or constant is not computed any more, so it wants nothing.
                wanted = live[use.rows] & own[use.rows] if use.rows.size else np.ones(1, np.bool_)
                if live[use.columns].all() or not wanted.any():
                    continue
                seen = use.columns[self._weighs(i, merged, wanted)]
                grew = grew or not live[seen].all()
                live[seen] = True
        result: BoolArray = live & own
        return result

    def _weighs(self, index: int, merged: Mapping[int, _Merged], rows: BoolArray) -> BoolArray:
        """Columns [K] that the given rows have a weight for."""
        if index not in merged:
            return np.asarray((self._weight(index)[rows] != 0).any(axis=(0, 2)))
        reader = merged[index]
        return np.asarray((np.abs(reader.weight[rows]) > reader.noise[rows]).any(axis=(0, 2)))

    def update(self, index: int, merged: Mapping[int, _Merged], gone: BoolArray) -> ReaderUpdate:
        """The columns of a reader, with those of channels that go at zero."""
        use = self._view.linear[index]
        weight = self._weight(index).copy() if index not in merged else merged[index].weight
        offset = np.zeros(len(weight)) if index not in merged else merged[index].offset
        weight[:, gone[use.columns]] = 0.0
        return ReaderUpdate(index, weight.reshape(len(weight), -1), use.gain * offset)


def _positions(columns: IntArray) -> dict[int, list[int]]:
    """The columns that each channel owns, in order."""
    owned: dict[int, list[int]] = {}
    for position, label in enumerate(columns.tolist()):
        if label != PINNED:
            owned.setdefault(label, []).append(position)
    return owned


def _ratio(values: Values, position: int, at: int) -> float:
    """What the stand-in is multiplied by; any number would do for two constants."""
    return 1.0 if values.classes[at] == CONSTANT else float(values.scale[position] / values.scale[at])


def _spared(
    view: ChannelView,
    keep: BoolArray,
    multiples: Mapping[str, int],
    least: Mapping[str, int],
    stay: Mapping[str, IntArray],
) -> BoolArray:
    """Redundant channels [label] that stay: asked for, needed, or as widths are the next multiples that can be had."""
    spared = np.zeros(len(keep), np.bool_)
    for space in view.spaces:
        asked = space.channels[stay.get(space.name, _NOBODY)]
        gone = space.channels[~(space.pinned | keep[space.channels] | np.isin(space.channels, asked))]
        wanted = max(space.width - len(gone), least.get(space.name, 0))
        rounded = wanted + -wanted % multiples.get(space.name, 1)
        missing = (rounded if rounded <= space.width else wanted) - (space.width - len(gone))
        spared[gone[:missing]] = True
        spared[asked] = True
    for part in view.parts:
        if not (keep | spared)[part].any():
            spared[part[0]] = True
    return spared


def _with_survivors(view: ChannelView, stands_for: IntArray, live: BoolArray) -> BoolArray:
    """Live channels, and one of every space that would otherwise vanish."""
    keep = live.copy()
    own = stands_for == np.arange(len(stands_for))
    for space in view.spaces:
        if not space.pinned.any() and not keep[space.channels].any():
            keep[space.channels[own[space.channels].argmax()]] = True
    return keep
