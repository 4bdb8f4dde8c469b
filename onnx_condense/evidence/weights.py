"""The lossless plan: which channels the weights alone prove redundant, and what their readers become.

A channel goes if at every reader it is an affine copy of one channel that stays, if it is constant, or if
nothing that matters reads it. All three are exact up to rounding of the weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from onnx_condense.evidence.values import CONSTANT, ROUNDINGS, Numbering, Values, stored_weight, type_eps
from onnx_condense.model import Network
from onnx_condense.plan import PINNED, ChannelSpace, ChannelView, FloatArray, IntArray, Plan, ReaderUpdate, Selection


@dataclasses.dataclass(frozen=True)
class _Column:
    """How one channel looks at one reader: value = ratio * value of the representative + offset."""

    ratio: float
    offset: float


def lossless_plan(network: Network, view: ChannelView) -> Plan:
    """The plan that removes everything the weights prove redundant; an empty one where that is nothing."""
    numbering = Numbering(network, view)
    readers = [_reader_values(network, view, numbering, i) for i in range(len(view.linear))]
    stands_for: dict[int, int] = {}
    for space in view.spaces:
        stands_for.update(_representatives(space, view, readers))
    columns = [_merge(network, view, i, readers[i], stands_for) for i in range(len(view.linear))]
    keep = _with_survivors(view, stands_for, _live(view, columns, stands_for))
    selections, updates = [], []
    for space in view.spaces:
        kept = [p for p, c in enumerate(space.channels.tolist()) if space.pinned[p] or c in keep]
        if len(kept) < space.width:
            selections.append(Selection(space.name, np.array(kept, np.int64)))
    gone = Plan("lossless", tuple(selections), ()).dropped(view.spaces)
    for i, use in enumerate(view.linear):
        if np.isin(use.columns, list(gone)).any():
            weight, offset, _ = columns[i]
            updates.append(_update(network, view, i, weight, offset, gone, readers[i]))
    return Plan("lossless", tuple(selections), tuple(updates), {s.space: 0.0 for s in selections})


def _reader_values(network: Network, view: ChannelView, numbering: Numbering, index: int) -> Values:
    use = view.linear[index]
    name = network.nodes[use.activation.node].inputs[use.activation.position]
    return numbering.of(name, use.act_axis, len(use.columns))


def _positions(space: ChannelSpace, view: ChannelView) -> list[tuple[int, Mapping[int, list[int]]]]:
    """Per reader of a space, the columns that each channel owns."""
    found = []
    for i in space.readers:
        owned: dict[int, list[int]] = {}
        for position, label in enumerate(view.linear[i].columns.tolist()):
            owned.setdefault(label, []).append(position)
        found.append((i, owned))
    return found


def _representatives(space: ChannelSpace, view: ChannelView, readers: list[Values]) -> dict[int, int]:
    """Which channel stands for which [label -> label]; a constant channel is stood for by PINNED (a bias)."""
    positions = _positions(space, view)
    groups: dict[tuple[int, ...], list[int]] = {}
    free = [c for c, pinned in zip(space.channels.tolist(), space.pinned.tolist(), strict=True) if not pinned]
    for channel in free:
        key = tuple(int(readers[i].classes[p]) for i, owned in positions for p in owned.get(channel, ()))
        groups.setdefault(key, []).append(channel)
    result: dict[int, int] = {}
    for key, members in groups.items():
        if not key:
            # Read by nobody: liveness decides.
            result.update({m: m for m in members})
        elif all(k == CONSTANT for k in key):
            result.update(dict.fromkeys(members, PINNED))
        else:
            result.update(_stand_ins(members, positions, view, readers))
    return result


def _stand_ins(
    members: list[int],
    positions: list[tuple[int, Mapping[int, list[int]]]],
    view: ChannelView,
    readers: list[Values],
) -> dict[int, int]:
    """The member of largest scale stands for the others, so that merging never magnifies its rounding."""

    def scales(channel: int) -> FloatArray:
        return np.concatenate([readers[i].scale[owned[channel]] for i, owned in positions if channel in owned])

    best = max(members, key=lambda m: (float(np.abs(scales(m)).max()), -m))
    result = {}
    for member in members:
        same = _agree_where_shared(scales(member), scales(best), positions, view, member)
        result[member] = best if same else member
    return result


def _agree_where_shared(
    mine: FloatArray,
    best: FloatArray,
    positions: list[tuple[int, Mapping[int, list[int]]]],
    view: ChannelView,
    member: int,
) -> bool:
    """Uses of one stored weight must all merge with the same ratio, or the weight could not stay shared."""
    group = {u: g for g, uses in enumerate(view.shared) for u in uses}
    ratios: dict[int, float] = {}
    cursor = 0
    for i, owned in positions:
        for _ in owned.get(member, ()):
            ratio = mine[cursor] / best[cursor] if best[cursor] else 1.0
            known = ratios.setdefault(group.get(i, -1 - i), ratio)
            if i in group and abs(known - ratio) > ROUNDINGS * np.finfo(np.float32).eps * abs(known):
                return False
            cursor += 1
    return True


def _merge(
    network: Network,
    view: ChannelView,
    index: int,
    values: Values,
    stands_for: Mapping[int, int],
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Columns [O, K] and offset [O] of a reader once stand-ins have taken over, and the rounding level [O, K]."""
    use = view.linear[index]
    weight = stored_weight(network, use)
    assert weight is not None
    original = weight.copy()
    offset = np.zeros(len(weight))
    size = np.abs(original)
    eps = ROUNDINGS * type_eps(network, use)
    noise = np.zeros_like(weight)
    home = _first_positions(use.columns)
    for position, label in enumerate(use.columns.tolist()):
        target = stands_for.get(label, label)
        if label == PINNED or target == label:
            continue
        weight[:, position] = 0.0
        if target == PINNED:
            offset += original[:, position] * values.offset[position]
            continue
        at = home[target]
        column = _column(values, position, at)
        weight[:, at] += original[:, position] * column.ratio
        offset += original[:, position] * column.offset
        noise[:, at] += eps * (size[:, position] * abs(column.ratio) + size[:, at])
    return weight, use.gain * offset, noise


def _first_positions(columns: IntArray) -> dict[int, int]:
    labels, first = np.unique(columns, return_index=True)
    return dict(zip(labels.tolist(), first.tolist(), strict=True))


def _column(values: Values, position: int, at: int) -> _Column:
    if values.classes[position] == CONSTANT:
        return _Column(0.0, float(values.offset[position]))
    ratio = float(values.scale[position] / values.scale[at])
    return _Column(ratio, float(values.offset[position] - ratio * values.offset[at]))


def _live(
    view: ChannelView,
    columns: list[tuple[FloatArray, FloatArray, FloatArray]],
    stands_for: Mapping[int, int],
) -> set[int]:
    """Channels that stand for themselves and reach something that can't go through nonzero weights."""
    live: set[int] = set()
    grew = True
    while grew:
        grew = False
        for use, (weight, _, noise) in zip(reversed(view.linear), reversed(columns), strict=True):
            # A row that is merged away or constant is not computed any more, so it wants nothing.
            needed = [r == PINNED or (r in live and stands_for.get(r, r) == r) for r in use.rows.tolist()]
            wanted = np.array(needed or [True] * len(weight))
            seen = (np.abs(weight[wanted]) > noise[wanted]).any(axis=0)
            new = {int(c) for c in np.unique(use.columns[seen])} - live - {PINNED}
            if new:
                live |= new
                grew = True
    return live


def _with_survivors(view: ChannelView, stands_for: Mapping[int, int], live: set[int]) -> set[int]:
    """Live channels, and one of every space that would otherwise vanish."""
    keep = {c for c in live if stands_for.get(c, c) == c}
    for space in view.spaces:
        channels = space.channels.tolist()
        if not space.pinned.any() and keep.isdisjoint(channels):
            keep.add(next((c for c in channels if stands_for.get(c, c) == c), channels[0]))
    return keep


def _update(
    network: Network,
    view: ChannelView,
    index: int,
    weight: FloatArray,
    offset: FloatArray,
    gone: frozenset[int],
    values: Values,
) -> ReaderUpdate:
    """The merged columns, with those of channels that go at zero.

    A constant channel that has to stay (its space would vanish) keeps its column; its share leaves the offset.
    """
    use = view.linear[index]
    original = stored_weight(network, use)
    assert original is not None
    weight, offset = weight.copy(), offset.copy()
    for position, label in enumerate(use.columns.tolist()):
        if label in gone:
            weight[:, position] = 0.0
        elif label != PINNED and values.classes[position] == CONSTANT and not weight[:, position].any():
            weight[:, position] = original[:, position]
            offset -= use.gain * original[:, position] * values.offset[position]
    return ReaderUpdate(index, weight, offset)
