"""The registry of op rules: one frozen record per op kind, keyed by (domain, op type, opset range).

An op without a record is a barrier: every channel that it touches stays. Rules are pure: they look at labels
and answer with an `Effect`; only `spaces.py` applies it.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_condense.network.known import Known, Pieces
from onnx_condense.network.shapes import Shape
from onnx_condense.plan import ConstantUse, FloatArray, IndexUse, IntArray, LinearUse, SizeUse, SplitUse


class Law(enum.Enum):
    """What is known of an element-wise op f beyond being a function; what the lossless proofs may use."""

    ANY = "a continuous function: equal arguments give equal results"
    EACH = "every channel by itself, continuously: equal channels give equal results"
    STEP = "jumps: only arguments equal to the last bit give equal results"
    IDENTITY = "f(a) = a"
    NEGATE = "f(a) = -a"
    HOMOGENEOUS = "f(r a) = r f(a) for r > 0"
    ODD = "f(-a) = 2 c - f(a) with the record's centre c"
    ADD = "a + b"
    SUBTRACT = "a - b"
    MULTIPLY = "a * b"
    DIVIDE = "a / b"
    AFFINE = "k a + s, with numbers per channel from the record's `affine`"
    MOVE = "elements of a channel change places or are averaged: f(r a + s) = r f(a) + s"
    SELECT = "channels are picked, joined or put in another order; each stays as it is"
    FILTER = "each channel is filtered by a kernel of its own, and a number is added"
    MAXIMUM = "the largest of some elements of a channel: f(r a + s) = r f(a) + s for r > 0"
    PADDED = "as MOVE, but zeros come in: f(r a) = r f(a)"
    WEIGHED = "sums of a channel's elements, weighed alike in all channels that pass: f(r a) = r f(a)"


class Role(enum.Enum):
    """What an op does to channels."""

    WRITES = "reads and writes"
    READS = "reads"
    CARRIES = "carries"
    MOVES = "moves"
    JOINS = "joins and picks"
    BARRIER = "barrier"


@dataclasses.dataclass(frozen=True)
class Value:
    """One operand as a rule sees it.

    labels: broadcasts to the operand's shape; None for a constant and for a tensor of unknown rank.
    shape: None where the rank is unknown; constant: its stored value, or None where it is computed.
    known: what is known of a small 1-d integer tensor even where it is computed: a number, the axis
    whose size it is, or None per element.
    pieces: per element of a computed list that lays out a result, the stored number that is moved there, or None.
    """

    name: str
    labels: IntArray | None
    shape: Shape | None
    constant: npt.NDArray[Any] | None
    known: Known | None = None
    pieces: Pieces = ()

    def writable(self, at: int) -> bool:
        """Whether another number can be put at a position of this list of integers, for one reader alone."""
        if self.constant is not None:
            return True
        known = (None,) if self.known is None else self.known
        if all(isinstance(n, int) for n in known):
            return True
        return at < min(len(self.pieces), len(known)) and self.pieces[at] == known[at] is not None


@dataclasses.dataclass(frozen=True)
class Call:
    """One node with its operands (None where one is left out) and the shape of its first output.

    fresh(n): n new channel labels, for writers; results: how many outputs are asked for.
    writes: of a product with a stored weight, whether that writes channels of its own even where those along another
    axis could pass.
    wanted: of a Shape, positions of the result that are read by others than the ops that give its operand a new
    shape; None: perhaps all.
    apart: channels of one place in several groups, heads or matrices keep labels of their own, though they only go
    together. Nothing is removed by such labels, so no size is followed.
    """

    index: int
    attributes: Mapping[str, Any]
    operands: tuple[Value | None, ...]
    result_shape: Shape | None
    fresh: Callable[[int], IntArray]
    results: int = 1
    writes: bool = False
    wanted: frozenset[int] | None = None
    apart: bool = False


@dataclasses.dataclass(frozen=True)
class Effect:
    """What a node does to channels.

    output: labels of every output, or None: the outputs own no channel.
    outputs: labels per output instead, for ops whose outputs differ.
    ties: pairs of label arrays of equal shape that become one, position by position.
    sizes: stored integers that follow the widths.
    pins: (labels, reason) of channels that must stay.
    through: labels that pass a stored weight, which could have written channels of its own instead.
    """

    output: IntArray | None
    ties: tuple[tuple[IntArray, IntArray], ...] = ()
    linear: tuple[LinearUse, ...] = ()
    constants: tuple[ConstantUse, ...] = ()
    sizes: tuple[SizeUse | SplitUse | IndexUse, ...] = ()
    pins: tuple[tuple[IntArray, str], ...] = ()
    outputs: tuple[IntArray | None, ...] = ()
    through: IntArray | None = None


Trace = Callable[[Call], Effect]
Affine = Callable[[Mapping[str, Any], Sequence[FloatArray]], tuple[FloatArray, FloatArray, FloatArray]]
"""(k, s, |s|'s terms added up) [C] of an affine op from its attributes and its constant operands [C]."""
Constants = Sequence[npt.NDArray[Any] | None]


def never(_: Call) -> str:
    """The guard that lets every node pass."""
    return ""


@dataclasses.dataclass(frozen=True)
class OpRule:
    """Everything the package knows of one op kind, for opsets since <= version <= until.

    role: see `Role`; of a barrier, reason: why channels stay, and advice: what a caller can do about it, or "".
    trace: how channels pass; law: see `Law`; centre: of an odd op, f(-a) = 2 centre - f(a).
    refine: the law of one node from its attributes and constant operands (None where computed), instead of `law`.
    affine: of an op with Law.AFFINE. bias: position of an operand that is added to a linear op's rows; flat_bias:
    it has one axis whatever the rank of the result. in_bias: of an op that makes more of the product than its result,
    numbers [O] for the rows laid out like that operand, given the weight's shape.
    absorbs: (position, factor): adding s to the first operand is adding factor s to the operand at the position.
    multiple: widths that are multiples of it run well (docs/benchmarks.md); others may be slower than wider ones.
    per_channel: not element-wise, but each channel by itself, with vectors that have one number per channel.
    steady: its results do not grow with the length of its argument, not even near zero (a gate, a normalisation).
    pads: of a filter, whether zeros beside the activation are read, from its attributes and its kernel's shape.
    guard: a reason to treat this node as a barrier after all, or "".
    activation: of an op that applies a function to its own sums, which one, from its attributes. What is added to the
    sums then has to go into the op's own bias. residual: position of a tensor that is added before.
    """

    op: str
    trace: Trace
    domain: str = ""
    since: int = 1
    until: int = 2**31
    law: Law = Law.ANY
    centre: float = 0.0
    affine: Affine | None = None
    bias: int | None = None
    flat_bias: bool = False
    in_bias: Callable[[FloatArray, Sequence[int]], FloatArray] | None = None
    absorbs: tuple[int, float] | None = None
    multiple: int = 1
    per_channel: bool = False
    steady: bool = False
    pads: Callable[[Mapping[str, Any], Sequence[int]], bool] | None = None
    guard: Callable[[Call], str] = never
    refine: Callable[[Mapping[str, Any], Constants], Law] | None = None
    role: Role = Role.CARRIES
    reason: str = ""
    advice: str = ""
    activation: Callable[[Mapping[str, Any]], Activation | None] | None = None
    residual: int | None = None

    def law_of(self, attributes: Mapping[str, Any], constants: Constants) -> Law:
        """What is known of one node of this kind."""
        return self.law if self.refine is None else self.refine(attributes, constants)


@dataclasses.dataclass(frozen=True)
class Activation:
    """A function that an op applies to its own sums: the record of the op that is that function, and the function."""

    rule: OpRule
    of: Callable[[FloatArray], FloatArray]


_RULES: dict[tuple[str, str], list[OpRule]] = {}


def register(*rules: OpRule, role: Role | None = None) -> None:
    """Add records; ranges of one op must not overlap. role: of all of them, instead of their own."""
    for given in rules:
        rule = given if role is None else dataclasses.replace(given, role=role)
        known = _RULES.setdefault((rule.domain, rule.op), [])
        assert all(rule.since > k.until or rule.until < k.since for k in known), rule.op
        known.append(rule)


def find(domain: str, op: str, version: int) -> OpRule | None:
    """The record for an op at an opset version, or None: a barrier."""
    return next((r for r in _RULES.get((domain, op), ()) if r.since <= version <= r.until), None)


def registered() -> tuple[OpRule, ...]:
    """All records, sorted by domain and op."""
    return tuple(rule for key in sorted(_RULES) for rule in _RULES[key])


def pinned_like(shape: Shape | None) -> IntArray | None:
    """The labels of a tensor that owns no channel: every element is pinned."""
    return None if shape is None else np.zeros((1,) * len(shape), np.int64)
