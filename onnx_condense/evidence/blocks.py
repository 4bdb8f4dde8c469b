"""What makes the channels of a space as alike as they are: pieces of weights, and how tensors are made of them.

See `directions.py`, which finds them in a graph.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from onnx_condense.plan import FloatArray, IntArray

# The part of a writer in what is read: its rows add up with others, multiply them, or only open and close a gate.
SUMMAND, FACTOR, GATE = range(3)


@dataclasses.dataclass(frozen=True)
class Block:
    """Numbers that some node brings into a space: rows [C, D] of factors, shift [C, m], `base` [C] what they act on."""

    rows: FloatArray
    shift: FloatArray
    base: FloatArray | None

    @property
    def amplitude(self) -> FloatArray:
        """What comes of channels whose amplitude was `base` [C]."""
        base = np.ones(len(self.rows)) if self.base is None else self.base
        return np.asarray(np.sqrt(base**2 * (self.rows**2).sum(1) + (self.shift**2).sum(1)))


@dataclasses.dataclass(frozen=True)
class State:
    """What a tensor holds of a space: its amplitude [C], and which blocks made it, each in which part."""

    blocks: Mapping[int, int]
    amplitude: FloatArray

    def extent(self) -> tuple[int, int]:
        """Larger for what is made of more; a gate is less than what it opens."""
        return len(self.blocks), -sum(self.blocks.values())


def multiplied(a: State, b: State) -> State:
    """A product; where one side is made of the other (x sigmoid(x)) the larger of them tells its length."""
    blocks, longer = together(a.blocks, b.blocks), max(a, b, key=State.extent)
    if len(blocks) == len(longer.blocks):
        return State(blocks, longer.amplitude)
    first, second = (a, b) if min(a.blocks.values()) <= min(b.blocks.values()) else (b, a)
    factors = {block: max(part, FACTOR) for block, part in second.blocks.items() if block not in first.blocks}
    return State({**blocks, **factors}, a.amplitude * b.amplitude)


def added(a: State, b: State) -> State:
    """A sum, or anything else of two tensors."""
    blocks, longer = together(a.blocks, b.blocks), max(a, b, key=State.extent)
    if len(blocks) == len(longer.blocks):
        return State(blocks, longer.amplitude)
    return State(blocks, np.hypot(a.amplitude, b.amplitude))


def together(a: Mapping[int, int], b: Mapping[int, int]) -> dict[int, int]:
    """The blocks of both, each in the plainest part that it has in either."""
    return {block: min(m.get(block, GATE) for m in (a, b)) for block in {**a, **b}}


def gathered(rows: FloatArray, line: IntArray, channels: IntArray) -> FloatArray:
    """Rows [O, D] of labels `line` [O] joined per channel [C, m D], zeros where a channel has fewer than m."""
    place = {int(label): i for i, label in enumerate(channels)}
    count = np.zeros(len(channels), np.int64)
    target = np.full((len(line), 2), -1)
    for row, label in enumerate(line.tolist()):
        if label in place:
            at = place[label]
            target[row] = at, count[at]
            count[at] += 1
    result = np.zeros((len(channels), int(count.max(initial=1)), rows.shape[1]))
    own = target[:, 0] >= 0
    result[target[own, 0], target[own, 1]] = rows[own]
    return result.reshape(len(channels), -1)


def inner(rows: FloatArray) -> FloatArray:
    """Inner products of rows [C, D] with one another [C, C]."""
    return rows @ rows.T


def cosines(gram: FloatArray) -> FloatArray:
    """Cosines from inner products; those of nothing with anything are 0."""
    length = np.sqrt(np.maximum(gram.diagonal(), 0.0))
    safe = np.where(length > 0.0, length, 1.0)
    return np.asarray(np.clip(gram / safe[:, None] / safe[None, :], -1.0, 1.0))
