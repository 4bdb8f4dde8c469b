"""Linear trunks: spaces in which nothing but mixing-proof linear ops lies between all writers and all readers.

What such ops do is the same for every channel (sums, moves, one factor for all), so the channels may be mixed: the
writers' rows by a matrix and the readers' columns by its inverse, and no tensor in between needs to know. Whether an op
is one of these is told by its law in the registry.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx

from onnx_condense import ops
from onnx_condense.network.model import Network, Node
from onnx_condense.ops import Law
from onnx_condense.plan import ChannelSpace, ChannelView, ConstantUse, IntArray, LinearUse, Operand

# Linear in their first operand, alike in all channels.
_UNARY = frozenset({Law.IDENTITY, Law.NEGATE, Law.MOVE, Law.PADDED})
_SUMS = frozenset({Law.ADD, Law.SUBTRACT})
_FACTORS = frozenset({Law.MULTIPLY, Law.DIVIDE})


def linear_trunks(network: Network, view: ChannelView, *, copies: bool = False) -> frozenset[str]:
    """Names of the spaces whose channels may be mixed: reducible, nothing pinned, every op on the way linear.

    copies: those, too, of which a writer writes every channel several times (once per head, say), or of which some
        channels are pinned (queries beside values); the others may then be mixed within every head.
    """
    spaces = {s.name: s for s in view.spaces if s.reducible and (copies or not s.pinned.any())}
    if copies:
        spaces = {name: _free(space) for name, space in spaces.items()}
    owner = {int(c): s.name for s in spaces.values() for c in s.channels}
    finder = _Finder(network, view, spaces, owner, copies=copies)
    out = {name for node in network.nodes for name in finder.broken_by(node)}
    return frozenset(spaces.keys() - out)


def _free(space: ChannelSpace) -> ChannelSpace:
    """A space without the channels that are pinned."""
    channels = space.channels[~space.pinned]
    return dataclasses.replace(space, channels=channels, pinned=np.zeros(len(channels), np.bool_))


def places_of(labels: IntArray, channels: IntArray) -> IntArray | None:
    """Where each channel lies along an axis [channels, b], if the labels are the channels, each one b times.

    In order, as blocks or as copies: the j-th places of all channels then belong together. None otherwise.
    """
    b, rest = divmod(len(labels), max(len(channels), 1))
    if rest or not b:
        return None
    at = np.arange(len(labels))
    if np.array_equal(labels, np.repeat(channels, b)):
        return at.reshape(-1, b)
    return at.reshape(b, -1).T if np.array_equal(labels, np.tile(channels, b)) else None


class _Finder:
    """Asks each node which of the candidate spaces it breaks."""

    def __init__(
        self,
        network: Network,
        view: ChannelView,
        spaces: Mapping[str, ChannelSpace],
        owner: Mapping[int, str],
        *,
        copies: bool,
    ) -> None:
        self._copies = copies
        self._network, self._labels, self._spaces, self._owner = network, view.labels, spaces, owner
        self._uses: dict[int, list[LinearUse]] = {}
        for use in view.linear:
            self._uses.setdefault(use.weight.node, []).append(use)
        self._constants: dict[Operand, ConstantUse] = {c.operand: c for c in view.constants}
        self._of: dict[str, set[str]] = {name: self._in(labels) for name, labels in view.labels.items()}

    def broken_by(self, node: Node) -> Iterator[str]:
        """Names of spaces that this node reads or writes in a way that mixing would change."""
        touched = {name for t in (*node.inputs, *node.outputs) for name in self._of.get(t, ())}
        for use in self._constants_of(node):
            touched |= self._in(use.labels)
        for name in sorted(touched):
            if not self._passes(node, self._spaces[name]):
                yield name

    def _in(self, labels: IntArray) -> set[str]:
        """The candidate spaces that some labels belong to."""
        return {self._owner[c] for c in set(labels.reshape(-1).tolist()) if c in self._owner}

    def _constants_of(self, node: Node) -> list[ConstantUse]:
        operands = (Operand(node.index, i) for i in range(len(node.inputs)))
        return [self._constants[o] for o in operands if o in self._constants]

    def _passes(self, node: Node, space: ChannelSpace) -> bool:
        rule = ops.find(node.domain, node.op, node.opset)
        read = [i for i, t in enumerate(node.inputs) if space.name in self._of.get(t, ())]
        written = [t for t in node.outputs if space.name in self._of.get(t, ())]
        whole = [self._whole(self._labels[t], space) for t in (*(node.inputs[i] for i in read), *written)]
        if rule is None or not all(whole):
            return False
        if uses := self._uses.get(node.index):
            return self._reads(uses, read, space) and (not written or self._writes(node, rule, uses, space))
        if not written and all(self._network.types.get(t) == onnx.TensorProto.INT64 for t in node.outputs if t):
            # A result without labels depends on no channel: this one holds sizes of other axes.
            return True
        return self._alike(node, rule, read, written, space)

    def _alike(
        self, node: Node, rule: ops.OpRule, read: Sequence[int], written: Sequence[str], space: ChannelSpace
    ) -> bool:
        """Whether a node without weights does something linear, and the same to all channels."""
        constants = [self._network.constant(name) if name else None for name in node.inputs]
        law = rule.law_of(node.attributes, constants)
        others = [Operand(node.index, i) for i, name in enumerate(node.inputs) if name and i not in read]
        if law in _UNARY:
            # A second result that bears the labels (a mask) is something else.
            return read == [0] and (law is Law.MOVE or len(written) == 1)
        if law is Law.WEIGHED:
            # Whichever operand brings the channels; the other one has none of them.
            return len(read) == len(written) == 1
        if law in _SUMS:
            return bool(written) and all(self._mixes(o, space) for o in others)
        if law in _FACTORS:
            same = all(constants[o.position] is not None and o not in self._constants for o in others)
            return len(read) == 1 and same and (law is Law.MULTIPLY or read == [0])
        return False

    def _whole(self, labels: IntArray, space: ChannelSpace) -> bool:
        """Whether the channels of a space, and nothing else, lie along one axis of a tensor."""
        one_axis = sum(n > 1 for n in labels.shape) == 1
        return one_axis and places_of(self._own(labels, space), space.channels) is not None

    def _own(self, labels: IntArray, space: ChannelSpace) -> IntArray:
        """Labels in a row; where copies may be, those of the space alone."""
        return labels[np.isin(labels, space.channels)] if self._copies else labels.reshape(-1)

    def _reads(self, uses: Sequence[LinearUse], read: Sequence[int], space: ChannelSpace) -> bool:
        """Whether nothing but products with all channels read the space."""
        reading = [u for u in uses if u.activation.position in read]
        # Where every part is mixed by itself it does not matter that only some rows read it.
        single = self._copies or all(u.groups == 1 and (u.taps == 1 or len(u.columns) == space.width) for u in reading)
        fits = single and all(places_of(self._own(u.columns, space), space.channels) is not None for u in reading)
        return fits and {u.activation.position for u in reading} == set(read)

    def _writes(self, node: Node, rule: ops.OpRule, uses: Sequence[LinearUse], space: ChannelSpace) -> bool:
        """Whether the rows of one matrix, and a bias that can be mixed like them, make the channels."""
        if len(uses) != 1 or len([t for t in node.outputs if t]) != 1:
            return False
        use = uses[0]
        plain = use.groups == 1 and isinstance(use.out_axis, int) and use.result_axis is not None
        if not (plain or self._copies) or not self._all(use.rows, space):
            return False
        if rule.activation is not None and rule.activation(node.attributes) is not None:
            return False
        factors = {use.weight.position, use.activation.position}
        added = [Operand(node.index, i) for i, name in enumerate(node.inputs) if name and i not in factors]
        return all(self._mixes(o, space) for o in added)

    def _all(self, labels: IntArray, space: ChannelSpace) -> bool:
        """Whether these are the channels of a space, in order; several times, where copies may be."""
        if self._copies:
            return places_of(self._own(labels, space), space.channels) is not None
        return np.array_equal(labels, space.channels)

    def _mixes(self, operand: Operand, space: ChannelSpace) -> bool:
        """Whether what is added is a constant with a number of its own for every channel."""
        use = self._constants.get(operand)
        if use is None:
            return False
        own = [n for n in use.labels.shape if n > 1]
        return len(own) == 1 and self._all(use.labels.reshape(-1), space)
