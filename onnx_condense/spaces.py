"""Label propagation: from a network to its channel spaces and to what pins them. Changes nothing.

Every tensor carries an array of channel labels that broadcasts to its shape. Linear ops read the labels of the
axis that they contract and write new ones; element-wise ops tie labels (union-find); everything without a rule
pins what it touches.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping

import numpy as np

from onnx_condense import ops
from onnx_condense.model import Network, Node
from onnx_condense.plan import PINNED, ChannelSpace, ChannelView, ConstantUse, IntArray, LinearUse, Refusal

GRAPH_OUTPUT = "graph output"
CAPTURED = "used inside a subgraph"
FIXED = "combined element by element with a tensor that owns no channels"


class _Labels:
    """Union-find over channel labels; label 0 (PINNED) is no channel and is never tied."""

    def __init__(self) -> None:
        self.parent: list[int] = [PINNED]

    def fresh(self, count: int) -> IntArray:
        start = len(self.parent)
        self.parent.extend(range(start, start + count))
        return np.arange(start, start + count, dtype=np.int64)

    def root(self, label: int) -> int:
        while self.parent[label] != label:
            self.parent[label] = self.parent[self.parent[label]]
            label = self.parent[label]
        return label

    def tie(self, a: int, b: int) -> None:
        low, high = sorted((self.root(a), self.root(b)))
        self.parent[high] = low

    def resolved(self) -> IntArray:
        """The class of every label [number of labels], the smallest label of the class."""
        return np.array([self.root(label) for label in range(len(self.parent))], np.int64)


class _Tracer:
    """One forward walk over the main graph; collects what rules answer."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.union = _Labels()
        self.labels: dict[str, IntArray] = {}
        self.linear: list[LinearUse] = []
        self.constants: list[ConstantUse] = []
        self.pins: list[tuple[IntArray, str, str]] = []
        self.ties: list[tuple[IntArray, IntArray, str]] = []

    def walk(self) -> None:
        """Trace all nodes, then pin what leaves the graph."""
        for name in (*self.network.inputs, *self.network.overridable):
            self._set(name, ops.pinned_like(self.network.shape(name)))
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
        rule = ops.find(node.domain, node.op, node.opset)
        call = self._call(node)
        reason = f"no rule for {node.op}" if rule is None else rule.guard(call)
        if rule is None or reason:
            if any(value is not None and value.constant is None for value in call.operands) or node.captured:
                self._barrier(node, reason)
            return
        effect = rule.trace(call)
        for value in call.operands:
            # A tensor of unknown rank hides its channels, and so does what is made of it.
            if value is not None and value.constant is None and value.labels is None:
                effect = ops.Effect(None, pins=(*effect.pins, *((e, "shape not known") for e in self._known(call))))
        self.linear += effect.linear
        self.constants += effect.constants
        self.ties += [(a, b, node.place) for a, b in effect.ties]
        self.pins += [(labels, why, node.place) for labels, why in effect.pins]
        for name in node.outputs:
            own = ops.pinned_like(self.network.shape(name)) if effect.output is None else effect.output
            self._set(name, own)

    def _known(self, call: ops.Call) -> Iterable[IntArray]:
        return (v.labels for v in call.operands if v is not None and v.labels is not None)

    def _barrier(self, node: Node, reason: str) -> None:
        for name in node.inputs:
            self._pin(name, reason, node.place)
        for name in node.outputs:
            self._set(name, ops.pinned_like(self.network.shape(name)))

    def _call(self, node: Node) -> ops.Call:
        operands = tuple(self._value(name) if name else None for name in node.inputs)
        result = self.network.shape(node.outputs[0]) if node.outputs else None
        return ops.Call(node.index, node.attributes, operands, result, self.union.fresh)

    def _value(self, name: str) -> ops.Value:
        return ops.Value(name, self.labels.get(name), self.network.shape(name), self.network.constant(name))


def find_spaces(network: Network) -> ChannelView:
    """Trace channels through a network.

    Returns:
        labels, weight uses, spaces and refusals; labels in it are resolved: equal labels are one channel.
    """
    tracer = _Tracer(network)
    tracer.walk()
    for a, b, place in tracer.ties:
        pairs = np.unique(np.stack([a.reshape(-1), b.reshape(-1)], 1), axis=0)
        for i, j in pairs[(pairs != PINNED).all(axis=1)].tolist():
            tracer.union.tie(i, j)
        lone = pairs[(pairs == PINNED).any(axis=1)].max(axis=1)
        tracer.pins.append((lone, FIXED, place))
    shared = _tie_shared(network, tracer)
    resolved = tracer.union.resolved()
    resolved = np.where(np.isin(resolved, _pinned_classes(tracer, resolved)), PINNED, resolved)
    names = tracer.union.resolved()
    linear = tuple(_resolved_use(use, resolved) for use in tracer.linear)
    spaces = _spaces(network, tracer.linear, linear, names, resolved)
    return ChannelView(
        labels={name: resolved[labels] for name, labels in tracer.labels.items()},
        linear=linear,
        constants=tuple(ConstantUse(c.operand, resolved[c.labels]) for c in tracer.constants),
        shared=shared,
        spaces=spaces,
        refusals=_refusals(tracer, names, spaces),
    )


def _pinned_classes(tracer: _Tracer, resolved: IntArray) -> IntArray:
    pinned = [resolved[labels].reshape(-1) for labels, _, _ in tracer.pins]
    return np.unique(np.concatenate([*pinned, np.zeros(1, np.int64)]))


def _resolved_use(use: LinearUse, resolved: IntArray) -> LinearUse:
    return LinearUse(
        use.weight,
        use.activation,
        use.in_axis,
        use.out_axis,
        use.act_axis,
        use.result_axis,
        resolved[use.columns],
        resolved[use.rows],
        use.gain,
    )


def _tie_shared(network: Network, tracer: _Tracer) -> tuple[tuple[int, ...], ...]:
    """Tie the channels of weights that are stored once and used often, so that they can stay stored once.

    A tie that would pin channels of one use because of another is not made: the rewrite then clones the weight.
    """
    by_root: dict[tuple[str, int], list[int]] = {}
    for index, use in enumerate(tracer.linear):
        node = network.nodes[use.weight.node]
        by_root.setdefault((network.root(node.inputs[use.weight.position]), use.in_axis), []).append(index)
    groups = []
    for uses in by_root.values():
        if len(uses) < 2:
            continue
        resolved = tracer.union.resolved()
        pinned = set(_pinned_classes(tracer, resolved).tolist())
        alike = [u for u in uses if _same_pins(tracer.linear[uses[0]], tracer.linear[u], resolved, pinned)]
        for a, b in itertools.pairwise(alike):
            for x, y in _sides(tracer.linear[a], tracer.linear[b]):
                for i, j in zip(x.tolist(), y.tolist(), strict=True):
                    if PINNED not in (i, j):
                        tracer.union.tie(i, j)
        if len(alike) > 1:
            groups.append(tuple(alike))
    return tuple(groups)


def _sides(a: LinearUse, b: LinearUse) -> tuple[tuple[IntArray, IntArray], ...]:
    return ((a.columns, b.columns), (a.rows, b.rows))


def _same_pins(a: LinearUse, b: LinearUse, resolved: IntArray, pinned: set[int]) -> bool:
    if a.gain != b.gain:
        return False
    sides = _sides(a, b)
    return all(
        (int(resolved[i]) in pinned) == (int(resolved[j]) in pinned)
        for x, y in sides
        for i, j in zip(x.tolist(), y.tolist(), strict=True)
    )


def _spaces(
    network: Network,
    raw: list[LinearUse],
    linear: tuple[LinearUse, ...],
    names: IntArray,
    resolved: IntArray,
) -> tuple[ChannelSpace, ...]:
    """Group channels by the writers that tie them. names: class of every label before pins were applied."""
    group: dict[int, int] = {}
    writers: dict[int, list[int]] = {}
    for index, use in enumerate(raw):
        if not use.rows.size:
            continue
        met = {group[c] for c in names[use.rows].tolist() if c in group}
        home = min(met, default=index)
        for channel, old in list(group.items()):
            if old in met and old != home:
                group[channel] = home
        writers[home] = sorted({index, *itertools.chain.from_iterable(writers.pop(m) for m in met)})
        group.update(dict.fromkeys((c for c in names[use.rows].tolist() if c != PINNED), home))
    readers = _readers(raw, names, group)
    return tuple(
        _space(network, raw, home, tuple(used), tuple(sorted(readers.get(home, ()))), names, resolved)
        for home, used in sorted(writers.items())
    )


def _readers(raw: list[LinearUse], names: IntArray, group: Mapping[int, int]) -> dict[int, set[int]]:
    readers: dict[int, set[int]] = {}
    for index, use in enumerate(raw):
        for channel in np.unique(names[use.columns]).tolist():
            if channel in group:
                readers.setdefault(group[channel], set()).add(index)
    return readers


def _space(
    network: Network,
    raw: list[LinearUse],
    home: int,
    writers: tuple[int, ...],
    readers: tuple[int, ...],
    names: IntArray,
    resolved: IntArray,
) -> ChannelSpace:
    rows = np.concatenate([names[raw[w].rows] for w in writers])
    _, first = np.unique(rows, return_index=True)
    channels = rows[np.sort(first)]
    node = network.nodes[raw[home].weight.node]
    return ChannelSpace(node.outputs[0], channels, resolved[channels] == PINNED, writers, readers)


def _refusals(tracer: _Tracer, names: IntArray, spaces: tuple[ChannelSpace, ...]) -> tuple[Refusal, ...]:
    """Every pin that touches a channel of a space, once per (place, reason, space)."""
    owner = {int(c): s.name for s in spaces for c in s.channels}
    found: dict[tuple[str, str, str], set[int]] = {}
    for labels, reason, place in tracer.pins:
        for channel in np.unique(names[labels]).tolist():
            if channel in owner:
                found.setdefault((place, reason, owner[channel]), set()).add(channel)
    return tuple(Refusal(place, reason, frozenset(c), space) for (place, reason, space), c in found.items())
