"""Label propagation: from a network to its channel spaces and to what pins them. Changes nothing.

Every tensor carries an array of channel labels that broadcasts to its shape. Linear ops read the labels of the
axis that they contract and write new ones; element-wise ops tie labels (union-find); everything without a rule
pins what it touches.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from onnx_condense import ops
from onnx_condense.network.model import Network, Node
from onnx_condense.plan import (
    PINNED,
    ChannelSpace,
    ChannelView,
    ConstantUse,
    IndexUse,
    IntArray,
    LinearUse,
    Refusal,
    SizeUse,
    SplitUse,
)

GRAPH_OUTPUT = "graph output"
CAPTURED = "used inside a subgraph"
HIDDEN = "combined with a tensor of unknown rank"
FIXED = "combined element by element with a tensor that owns no channels"


class _Labels:
    """Union-find over channel labels with a pin per class; label 0 (PINNED) is no channel and is never tied."""

    def __init__(self) -> None:
        self._parent: list[int] = [PINNED]
        self._pinned: list[bool] = [True]

    def fresh(self, count: int) -> IntArray:
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        self._pinned.extend([False] * count)
        return np.arange(start, start + count, dtype=np.int64)

    def root(self, label: int) -> int:
        while self._parent[label] != label:
            self._parent[label] = self._parent[self._parent[label]]
            label = self._parent[label]
        return label

    def tie(self, a: int, b: int) -> None:
        low, high = sorted((self.root(a), self.root(b)))
        self._parent[high] = low
        self._pinned[low] = self._pinned[low] or self._pinned[high]

    def pin(self, labels: IntArray) -> None:
        for label in set(labels.reshape(-1).tolist()):
            self._pinned[self.root(label)] = True

    def pinned(self, labels: IntArray) -> tuple[bool, ...]:
        return tuple(self._pinned[self.root(label)] for label in labels.tolist())

    def classes(self) -> IntArray:
        """The class of every label [number of labels], named by its smallest label."""
        return np.array([self.root(label) for label in range(len(self._parent))], np.int64)

    def removable(self) -> IntArray:
        """The same, with PINNED for the classes that must stay."""
        classes = self.classes()
        return np.where(np.array(self._pinned)[classes], PINNED, classes)


class _Tracer:
    """One forward walk over the main graph; collects what rules answer."""

    def __init__(self, network: Network, writing: frozenset[int] = frozenset(), *, apart: bool = False) -> None:
        self.network, self.apart = network, apart
        # Nodes whose weights write channels of their own, whatever could pass.
        self.writing = writing
        self.through: dict[int, IntArray] = {}
        self.union = _Labels()
        self.labels: dict[str, IntArray] = {}
        self.linear: list[LinearUse] = []
        self.constants: list[ConstantUse] = []
        self.sizes: list[SizeUse | SplitUse | IndexUse] = []
        self.pins: list[tuple[IntArray, str, str]] = []
        self.ties: list[tuple[IntArray, IntArray, str]] = []

    def walk(self) -> None:
        """Trace all nodes, then pin what leaves the graph."""
        for name in (*self.network.inputs, *self.network.overridable):
            self._set(name, ops.pinned_like(self.network.shape(name)))
        for sparse in self.network.proto.graph.sparse_initializer:
            self._set(sparse.values.name, ops.pinned_like(tuple(sparse.dims)))
        for node in self.network.nodes:
            self._visit(node)
        for name in self.network.outputs:
            self._pin(name, GRAPH_OUTPUT, name)
        for name in sorted(self.network.captured):
            self._pin(name, CAPTURED, name)

    def _set(self, name: str, labels: IntArray | None) -> None:
        if name and labels is not None:
            self.labels[name] = labels

    def _pin(self, name: str, reason: str, place: str) -> None:
        if name in self.labels:
            self.pins.append((self.labels[name], reason, place))

    def _visit(self, node: Node) -> None:
        rule = None if (node.domain, node.op) in self.network.functions else ops.find(node.domain, node.op, node.opset)
        call = ops.call_of(self.network, node, self.labels, self.union.fresh)
        call = dataclasses.replace(call, writes=node.index in self.writing, apart=self.apart)
        reason = f"no rule for {node.op}" if rule is None else rule.guard(call)
        if rule is None or reason:
            self._barrier(node, reason)
            return
        computed = [v for v in call.operands if v is not None and v.constant is None]
        effect = rule.trace(call)
        if any(v.labels is None for v in computed):
            # A tensor of unknown rank hides its channels, and so does what is made of it.
            hidden = [v.labels for v in computed if v.labels is not None] + [u.rows for u in effect.linear]
            effect = ops.Effect(None, linear=effect.linear, pins=tuple((labels, HIDDEN) for labels in hidden))
        if effect.through is not None:
            self.through[node.index] = effect.through
        self.linear += effect.linear
        self.constants += effect.constants
        self.sizes += effect.sizes
        self.ties += [(a, b, node.place) for a, b in effect.ties]
        self.pins += [(labels, why, node.place) for labels, why in effect.pins]
        outputs = effect.outputs or (effect.output,) * len(node.outputs)
        for name, labels in zip(node.outputs, outputs, strict=True):
            self._set(name, ops.pinned_like(self.network.shape(name)) if labels is None else labels)

    def settle(self) -> frozenset[int]:
        """Apply ties and pins; the nodes that let pass what has to stay anyway."""
        for a, b, place in self.ties:
            pairs = sorted(set(zip(a.reshape(-1).tolist(), b.reshape(-1).tolist(), strict=True)))
            for i, j in pairs:
                if PINNED not in (i, j):
                    self.union.tie(i, j)
            lone = np.array([max(pair) for pair in pairs if PINNED in pair], np.int64)
            self.pins.append((lone, FIXED, place))
        for pinned, _, _ in self.pins:
            self.union.pin(pinned)
        return frozenset(i for i, labels in self.through.items() if all(self.union.pinned(labels.reshape(-1))))

    def _barrier(self, node: Node, reason: str) -> None:
        for name in node.inputs:
            self._pin(name, reason, node.place)
        for name in node.outputs:
            self._set(name, ops.pinned_like(self.network.shape(name)))


def find_spaces(
    network: Network,
    *,
    named: bool = False,
    held: Mapping[int, str] = MappingProxyType({}),
    apart: bool = False,
) -> ChannelView:
    """Trace channels through a network.

    Args:
        network: what to look through.
        named: channels that have to stay keep labels of their own in tensors and uses, instead of PINNED.
        held: linear uses (indices into `ChannelView.linear`) whose rows have to stay, each with the reason.
        apart: channels of one place in several groups, heads or matrices keep labels of their own, which tells which of
            them may change places; a view to remove channels by it is not. Columns are then those of every matrix
            of a stack, one after the other.

    Returns:
        labels, weight uses, spaces and refusals; labels in it are resolved: equal labels are one channel.
    """
    tracer = _settled(network)
    if apart:
        tracer = _Tracer(network, tracer.writing, apart=True)
        tracer.walk()
        tracer.settle()
    union = tracer.union
    for index, reason in held.items():
        use = tracer.linear[index]
        tracer.pins.append((use.rows, reason, network.nodes[use.weight.node].place))
        union.pin(use.rows)
    shared = _tie_shared(network, tracer)
    classes, removable = union.classes(), union.removable()
    spaces = _spaces(network, tracer.linear, classes, removable)
    if named:
        removable = classes
    labels = {name: np.asarray(removable[found]) for name, found in tracer.labels.items()}
    return ChannelView(
        labels=labels,
        linear=tuple(_resolved_use(use, removable) for use in tracer.linear),
        constants=tuple(ConstantUse(c.operand, removable[c.labels]) for c in tracer.constants),
        sizes=tuple(_resolved_size(s, removable) for s in tracer.sizes),
        shared=shared,
        spaces=spaces,
        refusals=_refusals(tracer, classes, spaces),
        parts=_parts(labels, spaces),
    )


def _settled(network: Network) -> _Tracer:
    """A walk with ties and pins, by which no weight lets channels pass in vain.

    What the user holds counts later: which uses there are may not depend on it, since it names them by number.
    """
    writing: frozenset[int] = frozenset()
    while True:
        tracer = _Tracer(network, writing)
        tracer.walk()
        idle = tracer.settle()
        if not idle:
            return tracer
        writing |= idle


def _parts(labels: Mapping[str, IntArray], spaces: Sequence[ChannelSpace]) -> tuple[IntArray, ...]:
    """The channels of every tensor that consists of removable ones only, each set once; whole spaces left out."""
    whole = {np.unique(s.channels).tobytes() for s in spaces}
    found: dict[bytes, IntArray] = {}
    seen: set[tuple[tuple[int, ...], bytes]] = set()
    for array in labels.values():
        key = (array.shape, array.tobytes())
        if key in seen or not array.size:
            continue
        seen.add(key)
        channels = np.unique(array)
        if channels[0] != PINNED and channels.tobytes() not in whole:
            found[channels.tobytes()] = channels
    return tuple(found.values())


def _resolved_use(use: LinearUse, removable: IntArray) -> LinearUse:
    return dataclasses.replace(use, columns=removable[use.columns], rows=removable[use.rows])


def _resolved_size(use: SizeUse | SplitUse | IndexUse, removable: IntArray) -> SizeUse | SplitUse | IndexUse:
    if isinstance(use, SplitUse):
        return dataclasses.replace(use, labels=tuple(removable[part] for part in use.labels))
    return dataclasses.replace(use, labels=removable[use.labels])


def _tie_shared(network: Network, tracer: _Tracer) -> tuple[tuple[int, ...], ...]:
    """Tie the channels of weights that are stored once and used often, so that they can stay stored once.

    Only uses that are pinned alike are tied: a tie never costs one use its freedom because of another. The
    rewrite clones the weight for the others.
    """
    by_root: dict[tuple[str, int, float], list[int]] = {}
    for index, use in enumerate(tracer.linear):
        name = network.nodes[use.weight.node].inputs[use.weight.position]
        by_root.setdefault((network.root(name), use.in_axis, use.gain), []).append(index)
    groups = []
    for uses in by_root.values():
        if len(uses) == 1:
            continue
        alike: dict[tuple[bool, ...], list[int]] = {}
        for u in uses:
            alike.setdefault(tracer.union.pinned(_channels(tracer.linear[u])), []).append(u)
        for members in alike.values():
            for a, b in itertools.pairwise(members):
                _tie_sides(tracer, _channels(tracer.linear[a]), _channels(tracer.linear[b]))
        groups += [tuple(members) for members in alike.values() if len(members) > 1]
    return tuple(groups)


def _channels(use: LinearUse) -> IntArray:
    return np.concatenate([use.columns, use.rows])


def _tie_sides(tracer: _Tracer, one: IntArray, other: IntArray) -> None:
    for i, j in zip(one.tolist(), other.tolist(), strict=True):
        if PINNED not in (i, j):
            tracer.union.tie(i, j)


def _spaces(
    network: Network, uses: list[LinearUse], classes: IntArray, removable: IntArray
) -> tuple[ChannelSpace, ...]:
    """Group channels by the writers that tie them. classes: of every label before pins were applied."""
    home = _homes(uses, classes)
    writers: dict[int, list[int]] = {}
    readers: dict[int, set[int]] = {}
    for index, use in enumerate(uses):
        if use.rows.size:
            writers.setdefault(home[int(classes[use.rows[0]])], []).append(index)
        for channel in set(classes[use.columns].tolist()):
            if channel in home:
                readers.setdefault(home[channel], set()).add(index)
    spaces = []
    for first, written in sorted(writers.items()):
        rows = np.concatenate([classes[uses[w].rows] for w in written])
        _, at = np.unique(rows, return_index=True)
        channels = rows[np.sort(at)]
        name = network.nodes[uses[first].weight.node].result
        read = tuple(sorted(readers.get(first, ())))
        spaces.append(ChannelSpace(name, channels, removable[channels] == PINNED, tuple(written), read))
    return tuple(spaces)


def _homes(uses: list[LinearUse], classes: IntArray) -> dict[int, int]:
    """The first of the writers that each channel is tied to, directly or through others."""
    parent = list(range(len(uses)))

    def root(use: int) -> int:
        while parent[use] != use:
            parent[use] = parent[parent[use]]
            use = parent[use]
        return use

    owner: dict[int, int] = {}
    for index, use in enumerate(uses):
        for channel in classes[use.rows].tolist():
            low, high = sorted((root(owner.setdefault(channel, index)), root(index)))
            parent[high] = low
    return {channel: root(index) for channel, index in owner.items()}


def _refusals(tracer: _Tracer, classes: IntArray, spaces: tuple[ChannelSpace, ...]) -> tuple[Refusal, ...]:
    """Every pin that touches a channel of a space, once per (place, reason, space)."""
    owner = {int(c): s.name for s in spaces for c in s.channels}
    found: dict[tuple[str, str, str], set[int]] = {}
    for labels, reason, place in tracer.pins:
        for channel in sorted(set(classes[labels].reshape(-1).tolist())):
            if channel in owner:
                found.setdefault((place, reason, owner[channel]), set()).add(channel)
    return tuple(Refusal(place, reason, frozenset(c), space) for (place, reason, space), c in found.items())
