"""What the weights say of how alike the channels of a space are: their feature directions and amplitudes.

A neuron h = f(w x + b) has the direction [w, b] / |[w, b]| and the amplitude |[w, b]|; neurons of one direction carry
one feature ("condensation", see `select/cosine.py`). What is told here is how that extends to whole spaces:

* Affine ops with stored numbers directly behind a writer (BatchNormalization, a bias, a scale) are folded into its
  rows, for the comparison only.
* Of several writers (a residual sum) the rows are joined end to end.
* A depthwise kernel behind that multiplies: of rows w and kernel k the direction is that of w (x) k, so cosines
  multiply, and so do amplitudes; what is added behind is a coordinate of its own. Numbers per channel anywhere else (a
  scale behind the activation) count as kernels of one tap; those that are no factors (slopes of a PRelu) only have to
  be alike.
* Of what is multiplied (gated units) cosines and amplitudes multiply as well.
* The amplitude is told per tensor, since readers may lie on either side of a kernel. It does not pass ops whose
  results do not grow with their arguments (`OpRule.steady`): normalisations and gates.

A channel stands for another only if it lies in every tensor that the other one lies in, as often in each. Raw inner
products presume inputs of unit variance and no correlation; that is the method's presumption, not ours.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from onnx_condense import ops
from onnx_condense.evidence.blocks import (
    FACTOR,
    GATE,
    SUMMAND,
    Block,
    State,
    added,
    cosines,
    gathered,
    inner,
    multiplied,
    together,
)
from onnx_condense.evidence.moves import only_axis
from onnx_condense.evidence.values import stored_weight
from onnx_condense.network.model import Network, Node
from onnx_condense.ops import Law, OpRule, Role
from onnx_condense.plan import ChannelSpace, ChannelView, ConstantUse, FloatArray, IntArray, LinearUse

APART = -1.0
"""The cosine of channels that can't stand for one another."""

BoolArray = npt.NDArray[np.bool_]
Numbers = tuple[FloatArray, FloatArray]
"""Factor and shift of an affine op, [positions] each."""


@dataclasses.dataclass(frozen=True)
class Direction:
    """How alike the C channels of one space are.

    cosine: [C, C] of what goes with what stands for it, APART where that can't be.
    norm: [C] amplitude behind everything that makes the space.
    read: amplitude [C] of what a linear use reads, by its index in `ChannelView.linear`.
    """

    cosine: FloatArray
    norm: FloatArray
    read: Mapping[int, FloatArray]

    @property
    def finite(self) -> bool:
        """Whether the weights give numbers that compare."""
        arrays = (self.cosine, self.norm, *self.read.values())
        return all(bool(np.isfinite(array).all()) for array in arrays)


class Directions:
    """Directions of the spaces of one network; analysis only, nothing is changed.

    view: with names for channels that have to stay; see `spaces.find_spaces`.
    """

    def __init__(self, network: Network, view: ChannelView) -> None:
        self._network, self._view = network, view
        self._uses = {use.weight.node: i for i, use in enumerate(view.linear)}
        top = [int(a.max(initial=0)) for a in (*view.labels.values(), *(s.channels for s in view.spaces))]
        self._labels = max(top, default=0) + 1
        self._at = {s.name: i for i, s in enumerate(view.spaces)}
        self._homes = self._spaces_of_tensors()

    def _spaces_of_tensors(self) -> Mapping[str, frozenset[int]]:
        """Which spaces each tensor carries channels of."""
        home = np.full(self._labels, -1)
        for i, space in enumerate(self._view.spaces):
            home[space.channels] = i
        return {n: frozenset(np.unique(home[a]).tolist()) - {-1} for n, a in self._view.labels.items()}

    def _comparable(self, space: ChannelSpace) -> BoolArray:
        """Whether the second of two channels [C, C] lies wherever the first one does, as often."""
        at, counts = self._at[space.name], []
        for name, homes in self._homes.items():
            if at in homes:
                counts.append(np.bincount(self._view.labels[name].reshape(-1), minlength=self._labels)[space.channels])
        kinds, kind = np.unique(np.array(counts), axis=1, return_inverse=True)
        first, second = kinds[:, :, None], kinds[:, None, :]
        kind = kind.reshape(-1)
        return np.asarray(((first == 0) | (first == second)).all(axis=0)[np.ix_(kind, kind)])

    def of(self, space: ChannelSpace) -> Direction:
        """The direction of one space of the view."""
        with np.errstate(all="ignore"):
            homes = frozenset(n for n, spaces in self._homes.items() if self._at[space.name] in spaces)
            walk = _Walk(self._network, self._view, self._uses, homes, space)
            return walk.direction(self._comparable(space))


class _Walk:
    """One walk down the graph from the writers of one space."""

    def __init__(
        self,
        network: Network,
        view: ChannelView,
        uses: Mapping[int, int],
        homes: frozenset[str],
        space: ChannelSpace,
    ) -> None:
        self._network, self._view, self._uses, self._homes = network, view, uses, homes
        self._space = space
        self._writers: list[int] = []
        self._blocks: list[Block] = []
        self._states: dict[str, State] = {}
        self._folded: set[int] = set()
        self._carried: dict[int, list[ConstantUse]] = {}
        for constant in view.constants:
            if np.isin(constant.labels, space.channels).any():
                self._carried.setdefault(constant.operand.node, []).append(constant)
        # Several writers may lie in one node's wake, so all nodes are looked at once, in their order.
        for node in network.nodes:
            self._visit(node)

    def direction(self, comparable: BoolArray) -> Direction:
        """The blocks together; comparable: [C, C] who can stand for whom."""
        parts = self._parts()
        gram = parts[0]
        for part, factor in enumerate(parts[1:], 1):
            gram = gram * (factor if part == FACTOR else cosines(factor))
        for i, block in enumerate(self._blocks):
            if i not in self._writers:
                assert block.base is not None
                base = cosines(gram) * np.outer(block.base, block.base)
                gram = base * inner(block.rows) + inner(block.shift)
        norm = np.sqrt(np.maximum(gram.diagonal(), 0.0))
        cosine = np.where(comparable, cosines(gram), APART)
        return Direction(cosine, norm, {i: self._read(i, norm) for i in self._space.readers})

    def _parts(self) -> list[FloatArray]:
        """Inner products [C, C] of the writers' rows by part; of several that add up the sum, 1 where there is none."""
        read = [s for s in (self._state_read(i) for i in self._space.readers) if s is not None]
        part = {w: min((s.blocks[w] for s in read if w in s.blocks), default=SUMMAND) for w in self._writers}
        # A layer that reaches its readers through a gate alone has no other part than this.
        least = min(part.values(), default=SUMMAND)
        found = []
        for kind in (SUMMAND, FACTOR, GATE):
            mine = [w for w in self._writers if (SUMMAND if part[w] == least else part[w]) == kind]
            grams = [inner(self._blocks[w].rows) + inner(self._blocks[w].shift) for w in mine]
            found.append(sum(grams, np.zeros((self._space.width,) * 2)) if mine else np.ones((self._space.width,) * 2))
        return found

    def _state_read(self, index: int) -> State | None:
        use = self._view.linear[index]
        return self._states.get(self._network.nodes[use.activation.node].inputs[use.activation.position])

    def _read(self, index: int, norm: FloatArray) -> FloatArray:
        state = self._state_read(index)
        return norm if state is None else state.amplitude

    # ---- nodes ----

    def _visit(self, node: Node) -> None:
        index = self._uses.get(node.index)
        if index is not None:
            if index in self._space.writers:
                self._write(node, self._view.linear[index])
            return
        if node.index in self._folded:
            return
        states = [(name, self._states[name]) for name in node.inputs if name in self._states]
        outputs = [name for name in node.outputs if name in self._homes]
        rule = ops.find(node.domain, node.op, node.opset)
        if not states or not outputs or rule is None:
            return
        state, end = self._through(node, rule, states), outputs[0]
        if rule.law is Law.FILTER:
            state, end = self._filter(node, rule, state)
        elif (numbers := self._affine(node, rule, states[0][0])) is not None:
            state, end = self._scaled(node, numbers, state)
        else:
            state = self._alike(node, state)
        if rule.steady:
            state = State(dict.fromkeys(state.blocks, GATE), np.ones(self._space.width))
        self._states.update(dict.fromkeys({*outputs, end}, state))

    def _through(self, node: Node, rule: OpRule, states: Sequence[tuple[str, State]]) -> State:
        """What operands make together."""
        result = states[0][1]
        if rule.role is Role.JOINS:
            amplitude = np.zeros(self._space.width)
            for name, state in reversed(states):
                there = np.isin(self._space.channels, self._view.labels[name])
                amplitude = np.where(there, state.amplitude, amplitude)
            return State(functools.reduce(together, (s.blocks for _, s in states)), amplitude)
        product = rule.law_of(node.attributes, [None] * len(node.inputs)) in (Law.MULTIPLY, Law.DIVIDE)
        for _, state in states[1:]:
            result = multiplied(result, state) if product else added(result, state)
        return result

    def _write(self, node: Node, use: LinearUse) -> None:
        rows = use.gain * stored_weight(self._network, use)
        rule = ops.find(node.domain, node.op, node.opset)
        assert rule is not None
        shift = self._own_bias(node, rule, len(rows), use.result_axis)
        factor, shift, end = self._chain(node, rule, shift)
        self._writers.append(len(self._blocks))
        state = self._put(rows * factor[:, None], shift, use.rows, None)
        self._states[end] = state
        for position, name in enumerate(node.inputs):
            # A tensor that the op itself adds.
            if name in self._states and position not in (use.activation.position, use.weight.position):
                self._states[end] = state = added(state, self._states[name])

    def _filter(self, node: Node, rule: OpRule, before: State) -> tuple[State, str]:
        """A depthwise convolution."""
        stored, labels = self._network.constant(node.inputs[1]), self._view.labels[node.outputs[0]].reshape(-1)
        assert stored is not None
        rows = stored.astype(np.float64).reshape(len(labels), -1)
        factor, shift, end = self._chain(node, rule, self._own_bias(node, rule, len(rows), 1))
        return self._put(rows * factor[:, None], shift, labels, before), end

    def _scaled(self, node: Node, numbers: Numbers, before: State) -> tuple[State, str]:
        """Numbers per channel that stand apart from a writer: a kernel of one tap. The same for all: nothing."""
        if all(np.ptp(n) == 0.0 for n in numbers):
            return before, node.outputs[0]
        rule = ops.find(node.domain, node.op, node.opset)
        assert rule is not None
        factor, shift, end = self._chain(node, rule, numbers[1])
        line = self._line(node.outputs[0])
        assert line is not None
        return self._put((numbers[0] * factor)[:, None], shift, line, before), end

    def _alike(self, node: Node, before: State) -> State:
        """Other numbers per channel have to be alike: a factor that lengthens nothing."""
        blocks, mine = dict(before.blocks), self._space.channels
        for constant in self._carried.get(node.index, ()):
            stored = self._network.constant(node.inputs[constant.operand.position])
            assert stored is not None
            labels = np.broadcast_to(constant.labels, stored.shape).reshape(-1)
            found = gathered(stored.astype(np.float64).reshape(-1, 1), labels, mine)
            rows = np.c_[np.ones(len(found)), found]
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
            blocks[len(self._blocks)] = SUMMAND
            self._blocks.append(Block(rows, np.zeros((len(rows), 1)), before.amplitude))
        return State(blocks, before.amplitude)

    def _put(self, rows: FloatArray, shift: FloatArray, line: IntArray, before: State | None) -> State:
        """A block of rows [O, D] and a shift [O] of channels `line` [O], and what comes of it."""
        mine = self._space.channels
        base = None if before is None else before.amplitude
        block = Block(gathered(rows, line, mine), gathered(shift[:, None], line, mine), base)
        if before is not None:
            # What the block does not touch passes.
            outside = ~np.isin(mine, line)
            block.rows[outside, 0] = 1.0
        self._blocks.append(block)
        return State({**(before.blocks if before else {}), len(self._blocks) - 1: SUMMAND}, block.amplitude)

    # ---- affine numbers ----

    def _own_bias(self, node: Node, rule: OpRule, rows: int, axis: int | None) -> FloatArray:
        """What the op itself adds to its rows [rows]; zeros where that is not stored."""
        name = node.inputs[rule.bias] if rule.bias is not None and len(node.inputs) > rule.bias else ""
        numbers = None
        if name:
            rank = 1 if rule.flat_bias else 2
            numbers = self._numbers(name, rank, 0 if rule.flat_bias else (axis or 0), rows)
        beta = float(node.attributes.get("beta", 1.0))
        return np.zeros(rows) if numbers is None else beta * numbers

    def _chain(self, node: Node, rule: OpRule, shift: FloatArray) -> tuple[FloatArray, FloatArray, str]:
        """Factor and shift [O] once affine ops directly behind a node are folded, and the tensor at their end."""
        factor, tensor = np.ones(len(shift)), node.outputs[0]
        while rule.activation is None and (behind := self._only_reader(tensor)) is not None:
            after = ops.find(behind.domain, behind.op, behind.opset)
            line = self._line(behind.outputs[0])
            if after is None or line is None or len(line) != len(shift):
                break
            numbers = self._affine(behind, after, tensor)
            if numbers is None:
                break
            factor, shift, tensor = factor * numbers[0], shift * numbers[0] + numbers[1], behind.outputs[0]
            self._folded.add(behind.index)
        return factor, shift, tensor

    def _only_reader(self, tensor: str) -> Node | None:
        readers = self._network.consumers.get(tensor, ())
        if len(readers) != 1 or tensor in self._network.outputs or tensor in self._network.captured:
            return None
        node = readers[0][0]
        return None if node.index in self._uses else node

    def _affine(self, node: Node, rule: OpRule, tensor: str) -> Numbers | None:
        """Factor and shift of an op on one computed operand, per position of its channels; None: it is not affine."""
        line = self._line(node.outputs[0])
        if line is None or sum(self._network.constant(n) is None for n in node.inputs if n) != 1:
            return None
        if rule.affine is not None:
            stored = [self._numbers(name, 1, 0, len(line)) for name in node.inputs[1:]]
            known = [s for s in stored if s is not None]
            return rule.affine(node.attributes, known)[:2] if len(known) == len(stored) else None
        return self._arithmetic(node, rule, tensor, len(line))

    def _arithmetic(self, node: Node, rule: OpRule, tensor: str, size: int) -> Numbers | None:
        constants = [self._network.constant(name) for name in node.inputs if name]
        law, one, zero = rule.law_of(node.attributes, constants), np.ones(size), np.zeros(size)
        if law in (Law.IDENTITY, Law.NEGATE):
            return (one if law is Law.IDENTITY else -one), zero
        if law not in (Law.ADD, Law.SUBTRACT, Law.MULTIPLY, Law.DIVIDE) or len(node.inputs) != 2:
            return None
        first = node.inputs[0] == tensor
        labels = self._view.labels[node.outputs[0]]
        axis = only_axis(labels)
        number = None if axis is None else self._numbers(node.inputs[first], labels.ndim, axis, size)
        if number is None or (law is Law.DIVIDE and not first):
            return None
        if law is Law.ADD:
            return one, number
        if law is Law.SUBTRACT:
            return (one, -number) if first else (-one, number)
        return (number if law is Law.MULTIPLY else 1.0 / number), zero

    def _line(self, tensor: str) -> IntArray | None:
        """The labels of a tensor [positions] whose channels lie on one axis."""
        labels = self._view.labels.get(tensor)
        return None if labels is None or only_axis(labels) is None else labels.reshape(-1)

    def _numbers(self, name: str, rank: int, axis: int, size: int) -> FloatArray | None:
        """A constant as one number per position of an axis of a tensor [size], or None where it is not that."""
        constant = self._network.constant(name) if name else None
        if constant is None or constant.ndim > rank or constant.dtype.kind not in "fiuV":
            return None
        aligned = constant.astype(np.float64).reshape((1,) * (rank - constant.ndim) + constant.shape)
        if aligned.size != aligned.shape[axis] or aligned.size not in (1, size):
            return None
        return np.broadcast_to(aligned.reshape(-1), size).copy()
