"""What is known of small integer tensors (shapes, axes, pads) that a network computes from constants.

Nodes are run by ONNX Runtime itself, one at a time: on values where all operands are known, on positions where a node
only moves elements, so that what is known of some elements is not lost beside those that depend on the input. The
positions also tell which elements are stored numbers that were only moved.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnx_condense.errors import ModelError
from onnx_condense.network.shapes import Shape
from onnx_condense.plan import IntArray
from onnx_condense.runtime import run_node

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Size:
    """The size of an axis of a tensor, whatever it is when the network runs; size: what it is in the network as it is.

    Two are equal if they are of one axis. labels: of the axis, for rules, if channels lie along it [size]; of the
    whole tensor if they lie along others too.
    """

    tensor: str
    axis: int
    size: int | str | None = dataclasses.field(default=None, compare=False)
    labels: IntArray | None = dataclasses.field(default=None, compare=False)


Known = tuple[int | Size | None, ...]
Pieces = tuple[int | float | None, ...]

LIMIT = 1024
"""Tensors with more elements are no shapes."""

# Which operands give the elements of the result; the others say where these go.
_MOVES: dict[str, slice] = {
    "Concat": slice(None),
    **dict.fromkeys(("Flatten", "Gather", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"), slice(0, 1)),
    "Where": slice(1, 3),
}
_SAME = frozenset({"Cast", "Identity"})
HANDS_ON: dict[str, slice] = _MOVES | dict.fromkeys(_SAME, slice(0, 1))
# The elements lie behind one another as before.
_IN_ORDER = _SAME | {"Flatten", "Reshape", "Squeeze", "Unsqueeze"}
# The same operands give the same result, which is not much larger than they are.
_PURE = """
Abs Add And Ceil ConstantOfShape Div Equal Floor Greater GreaterOrEqual Less LessOrEqual Max Min Mod Mul Neg Not Or
Pow ReduceMax ReduceMin ReduceProd ReduceSum Round Sqrt Sub
"""
ARITHMETIC = frozenset(_PURE.split())
_RUN = ARITHMETIC | _MOVES.keys() | _SAME
INTEGERS = frozenset({onnx.TensorProto.INT32, onnx.TensorProto.INT64})
_WORKED_OUT = INTEGERS | {onnx.TensorProto.BOOL}
_FLOATS = frozenset({onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE})


class Knowledge:
    """Known elements of the tensors of one network, worked out when first asked for.

    Inside, a tensor is an array of its element type where all of it is known, else an array of objects: a number, a
    `Size` or None per element.

    Args:
        proto: the network.
        constant: the value of a stored tensor, by name; shape: the shape of any tensor.
        types: element types by name.
        hidden: (domain, op type) of functions of the network that go by the name of a standard op.
        now: sizes count as what they are in the network as it is, whatever may become of them.
    """

    def __init__(
        self,
        proto: onnx.ModelProto,
        constant: Callable[[str], Array | None],
        shape: Callable[[str], Shape | None],
        types: Mapping[str, int],
        hidden: AbstractSet[tuple[str, str]],
        *,
        now: bool = False,
    ) -> None:
        self._proto = proto
        self._now = now
        self._constant = constant
        self._shape = shape
        self._types = types
        stored = {t.name for t in proto.graph.initializer}
        self._inputs = {i.name for i in proto.graph.input} - stored
        self._makers = {
            name: index
            for index, node in enumerate(proto.graph.node)
            for name in node.output[:1]
            if node.domain in ("", "ai.onnx") and ("", node.op_type) not in hidden
        }
        self._found: dict[str, Array | None] = {}
        self._origins: dict[str, IntArray | None] = {}
        self._pieces: dict[str, Pieces] = {}
        self._ran: dict[tuple[object, ...], Array | None] = {}

    def of(self, name: str) -> Known | None:
        """What is known per element of an integer tensor of rank 0 or 1; None where not even its size is known."""
        self._work_out(name)
        value = self._value(name)
        if value is None or value.ndim > 1 or value.dtype.kind not in "iuO":
            return None
        return tuple(value.reshape(-1).tolist())

    def whole(self, name: str) -> Array | None:
        """The value of a tensor, of floats too, if all of it is known."""
        for index in sorted(self._cone(name, _RUN, self._found)):
            node = self._proto.graph.node[index]
            self._found[node.output[0]] = self._worked_out(node)
        value = self._value(name)
        return None if value is None or value.dtype == object else value

    def traces(self, name: str) -> bool:
        """Whether it is known for every element of a computed tensor where it comes from."""
        self._work_out(name)
        return self._found.get(name) is not None

    def pieces(self, name: str) -> Pieces:
        """Per element of a computed list the stored number that was moved there unchanged, to no other place in it.

        None where there is no such number; nothing for what is not a list of moved numbers, or too large.
        """
        for index in sorted(self._cone(name, HANDS_ON.keys(), self._pieces)):
            node = self._proto.graph.node[index]
            self._pieces[node.output[0]] = self._pieces_of(node)
        return self._pieces.get(name, ())

    def origins(self, name: str) -> IntArray | None:
        """Where a node takes each element of its result from: (operand, element of it) [elements, 2].

        None where it does not only move elements.
        """
        if name not in self._origins:
            self._origins[name] = self._traced(self._proto.graph.node[self._makers[name]])
        return self._origins[name]

    def _pieces_of(self, node: onnx.NodeProto) -> Pieces:
        origins = self.origins(node.output[0])
        if origins is None:
            return ()
        found = [(int(p), int(e)) for p, e in origins]
        numbers = {p: self._stored_numbers(node.input[p]) for p, _ in found}
        often = collections.Counter(found)
        return tuple(numbers[p][e] if often[p, e] == 1 and e < len(numbers[p]) else None for p, e in found)

    def _stored_numbers(self, name: str) -> Pieces:
        """The elements of a stored tensor, or those of a computed one that are stored elsewhere."""
        value = self._constant(name)
        if value is None or value.dtype.kind not in "fiu":
            return self._pieces.get(name, ())
        return tuple(value.reshape(-1).tolist())

    def _work_out(self, name: str) -> None:
        if self._types.get(name) in _WORKED_OUT:
            for index in sorted(self._cone(name, _RUN, self._found)):
                node = self._proto.graph.node[index]
                self._found[node.output[0]] = self._worked_out(node)

    def _cone(self, name: str, ops: AbstractSet[str], done: Mapping[str, object]) -> set[int]:
        """Nodes whose results are not done yet and lead to a tensor through some ops."""
        cone: set[int] = set()
        waiting = [name]
        while waiting:
            tensor = waiting.pop()
            index = self._makers.get(tensor)
            if index is None or index in cone or tensor in done:
                continue
            cone.add(index)
            node = self._proto.graph.node[index]
            if node.op_type in ops:
                waiting += node.input
        return cone

    def _value(self, name: str) -> Array | None:
        """What is known of a tensor so far; None: nothing, or too large."""
        if (found := self._found.get(name)) is not None:
            return found
        value = self._constant(name)
        if value is not None:
            return value if value.size <= LIMIT and value.dtype.kind in "fiub" else None
        shape = self._shape(name) if self._types.get(name) in INTEGERS else None
        if shape is None or _count(shape) > LIMIT:
            return None
        return np.full([n for n in shape if isinstance(n, int)], None, object)

    def _worked_out(self, node: onnx.NodeProto) -> Array | None:
        if node.op_type == "Shape":
            return self._sizes(node)
        values = [self._value(name) if name else None for name in node.input]
        if node.op_type not in _RUN or any(v is None for v, name in zip(values, node.input, strict=True) if name):
            return None
        arrays = [v for v in values if v is not None]
        if all(v.dtype != object for v in arrays):
            return self._computed(node, arrays)
        return self._moved(node, arrays)

    def _sizes(self, node: onnx.NodeProto) -> Array | None:
        """Sizes of a graph input are known; those of other tensors may change with the widths."""
        name = node.input[0]
        shape = self._shape(name)
        if shape is None:
            return None
        ends = {a.name: a.i for a in node.attribute}
        fixed = self._now or name in self._inputs
        every = [n if fixed and isinstance(n, int) else Size(name, axis, n) for axis, n in enumerate(shape)]
        return self._typed(node, np.array(every[ends.get("start", 0) : ends.get("end")], object))

    def _computed(self, node: onnx.NodeProto, arrays: list[Array]) -> Array | None:
        if node.op_type == "ConstantOfShape" and math.prod(arrays[0].tolist()) > LIMIT:
            return None
        return self._run(node, arrays)

    def _moved(self, node: onnx.NodeProto, arrays: list[Array]) -> Array | None:
        """The elements of a node that only moves them or compares them."""
        whole = self._types.get(node.input[0]) in INTEGERS
        if node.op_type == "Identity" or (node.op_type == "Cast" and whole and _casts_to(node) in INTEGERS):
            return arrays[0]
        if node.op_type == "Equal":
            found = np.asarray(np.frompyfunc(_equal, 2, 1)(*arrays), object)
            # Where one answer depends on a size the result counts as unknown, so that this size counts as read.
            return None if None in found.reshape(-1).tolist() else found.astype(bool)
        part = _MOVES.get(node.op_type)
        if part is None or any(v.dtype == object for v in _without(arrays, part)):
            return None
        places = self._positions(node, arrays, part)
        if places is None:
            return None
        elements = np.concatenate([v.astype(object).reshape(-1) for v in arrays[part]])
        # One element alone comes without its array.
        return self._typed(node, np.asarray(elements[places], object))

    def _typed(self, node: onnx.NodeProto, elements: Array) -> Array:
        """An array of the result's element type if all elements are known."""
        kind = self._types.get(node.output[0])
        if kind is None or not all(isinstance(n, int) for n in elements.reshape(-1).tolist()):
            return elements
        return elements.astype(onnx.helper.tensor_dtype_to_np_dtype(kind))

    def _positions(self, node: onnx.NodeProto, arrays: Sequence[Array], part: slice) -> Array | None:
        """Where each element of a result lies among those of the operands that it is moved from."""
        fed = list(arrays)
        ends = np.cumsum([v.size for v in arrays[part]])
        fed[part] = [np.arange(end - v.size, end).reshape(v.shape) for v, end in zip(arrays[part], ends, strict=True)]
        return self._run(node, fed)

    def _traced(self, node: onnx.NodeProto) -> IntArray | None:
        part = HANDS_ON.get(node.op_type)
        if part is None or (node.op_type == "Cast" and not self._keeps_numbers(node)):
            return None
        moved = range(len(node.input))[part]
        rooms = {i: self._room(node.input[i]) for i in moved}
        sizes = {i: room.size for i, room in rooms.items() if room is not None}
        if len(sizes) < len(moved) or sum(sizes.values()) > LIMIT:
            return None
        every = np.array([(i, e) for i, size in sizes.items() for e in range(size)], np.int64).reshape(-1, 2)
        if node.op_type in _IN_ORDER or (
            node.op_type == "Concat" and all(r is not None and r.ndim == 1 for r in rooms.values())
        ):
            return every
        arrays = [rooms[i] if i in rooms else self._control(name) for i, name in enumerate(node.input) if name]
        given = [a for a in arrays if a is not None]
        places = self._positions(node, given, part) if len(given) == len(arrays) else None
        return None if places is None else every[places.reshape(-1)]

    def _keeps_numbers(self, node: onnx.NodeProto) -> bool:
        """Whether a Cast leaves whole numbers as they are, and others other than whole."""
        to = _casts_to(node)
        stored = self._constant(node.input[0])
        whole = self._types.get(node.input[0]) in INTEGERS if stored is None else stored.dtype.kind in "iu"
        return to in _FLOATS or (to in INTEGERS and whole)

    def _control(self, name: str) -> Array | None:
        """The value of an operand that says where elements go."""
        self._work_out(name)
        value = self._value(name)
        return None if value is None or value.dtype == object else value

    def _room(self, name: str) -> Array | None:
        """An array of the shape of a small tensor."""
        shape = self._shape(name)
        sizes = [n for n in shape or () if isinstance(n, int)]
        return np.empty(sizes, np.int64) if shape is not None and _count(shape) <= LIMIT else None

    def _run(self, node: onnx.NodeProto, arrays: Sequence[Array]) -> Array | None:
        """The first result of a node, or None where ONNX Runtime can't tell or it is large.

        Networks compute the same shapes again and again; all that a result depends on tells them apart.
        """
        attributes = [a.SerializeToString(deterministic=True) for a in node.attribute]
        operands = [(a.dtype.str, a.shape, a.tobytes()) for a in arrays]
        key = (node.op_type, *map(bool, node.input), *attributes, *operands)
        if key not in self._ran:
            self._ran[key] = self._ran_alone(node, arrays)
        return self._ran[key]

    def _ran_alone(self, node: onnx.NodeProto, arrays: Sequence[Array]) -> Array | None:
        try:
            value = run_node(self._proto, node, arrays)
        except ModelError:
            return None
        # It is handed out more than once.
        value.flags.writeable = False
        return value if value.size <= LIMIT else None


def _count(shape: Shape) -> float:
    """How many elements a tensor has; no end to them where a size is not known."""
    return 0 if 0 in shape else math.prod(n if isinstance(n, int) else math.inf for n in shape)


def _equal(one: int | Size | None, other: int | Size | None) -> bool | None:
    """Whether two elements are equal, as far as that is known."""
    if one is None or other is None:
        return None
    if isinstance(one, int) == isinstance(other, int):
        return True if one == other else (False if isinstance(one, int) else None)
    number = one if isinstance(one, int) else other
    assert isinstance(number, int)
    # No size is below zero.
    return False if number < 0 else None


def _casts_to(node: onnx.NodeProto) -> int:
    return next((a.i for a in node.attribute if a.name == "to"), 0)


def _without(arrays: list[Array], part: slice) -> list[Array]:
    rest = arrays.copy()
    del rest[part]
    return rest
