"""What is known of small integer tensors (shapes, axes, pads) that a network computes from constants.

Nodes are run by ONNX Runtime itself, one at a time: on values where all operands are known, on positions where a node
only moves elements, so that what is known of some elements is not lost beside those that depend on the input.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnx_condense.errors import ModelError
from onnx_condense.plan import IntArray
from onnx_condense.runtime import run_node
from onnx_condense.shapes import Shape

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

LIMIT = 1024
"""Tensors with more elements are no shapes."""

# Which operands give the elements of the result; the others say where these go.
_MOVES: dict[str, slice] = {
    "Concat": slice(None),
    **dict.fromkeys(("Flatten", "Gather", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"), slice(0, 1)),
}
_SAME = frozenset({"Cast", "Identity"})
# The same operands give the same result, which is not much larger than they are.
_PURE = """
Abs Add And Ceil ConstantOfShape Div Equal Floor Greater GreaterOrEqual Less LessOrEqual Max Min Mod Mul Neg Not Or
Pow ReduceMax ReduceMin ReduceProd ReduceSum Round Sqrt Sub Where
"""
_RUN = frozenset(_PURE.split()) | _MOVES.keys() | _SAME
_INTEGERS = frozenset({onnx.TensorProto.INT32, onnx.TensorProto.INT64})


class Knowledge:
    """Known elements of the tensors of one network, worked out when first asked for.

    Inside, a tensor is an array of its element type where all of it is known, else an array of objects: a number, a
    `Size` or None per element.

    Args:
        proto: the network.
        constant: the value of a stored tensor, by name; shape: the shape of any tensor.
        types: element types by name.
        hidden: (domain, op type) of functions of the network that go by the name of a standard op.
    """

    def __init__(
        self,
        proto: onnx.ModelProto,
        constant: Callable[[str], Array | None],
        shape: Callable[[str], Shape | None],
        types: Mapping[str, int],
        hidden: AbstractSet[tuple[str, str]],
    ) -> None:
        self._proto = proto
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

    def of(self, name: str) -> Known | None:
        """What is known per element of an integer tensor of rank 0 or 1; None where not even its size is known."""
        self._work_out(name)
        value = self._value(name)
        if value is None or value.ndim > 1 or value.dtype.kind not in "iuO":
            return None
        return tuple(value.reshape(-1).tolist())

    def traces(self, name: str) -> bool:
        """Whether it is known for every element of a computed tensor where it comes from."""
        self._work_out(name)
        return self._found.get(name) is not None

    def _work_out(self, name: str) -> None:
        if self._types.get(name) in _INTEGERS:
            for index in sorted(self._cone(name)):
                node = self._proto.graph.node[index]
                self._found[node.output[0]] = self._worked_out(node)

    def _cone(self, name: str) -> set[int]:
        """Nodes whose results are not worked out yet and lead to a tensor."""
        cone: set[int] = set()
        waiting = [name]
        while waiting:
            tensor = waiting.pop()
            index = self._makers.get(tensor)
            if index is None or index in cone or tensor in self._found:
                continue
            cone.add(index)
            node = self._proto.graph.node[index]
            if node.op_type in _RUN:
                waiting += node.input
        return cone

    def _value(self, name: str) -> Array | None:
        """What is known of a tensor so far; None: nothing, or too large."""
        if name in self._found and self._found[name] is not None:
            return self._found[name]
        shape = self._shape(name)
        if shape is None or any(not isinstance(n, int) for n in shape):
            return None
        sizes = [n for n in shape if isinstance(n, int)]
        if math.prod(sizes) > LIMIT:
            return None
        value = self._constant(name)
        if value is None and self._types.get(name) in _INTEGERS:
            return np.full(sizes, None, object)
        return value if value is not None and value.dtype.kind in "fiub" else None

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
        fixed = name in self._inputs
        every = [n if fixed and isinstance(n, int) else Size(name, axis, n) for axis, n in enumerate(shape)]
        return np.array(every[ends.get("start", 0) : ends.get("end")], object)

    def _computed(self, node: onnx.NodeProto, arrays: list[Array]) -> Array | None:
        if node.op_type == "ConstantOfShape" and math.prod(arrays[0].tolist()) > LIMIT:
            return None
        return self._ran(node, arrays)

    def _moved(self, node: onnx.NodeProto, arrays: list[Array]) -> Array | None:
        """Run a node that moves elements on their positions."""
        if node.op_type == "Identity" or (node.op_type == "Cast" and _casts_to(node) in _INTEGERS):
            return arrays[0]
        part = _MOVES.get(node.op_type)
        if part is None or any(v.dtype == object for v in _without(arrays, part)):
            return None
        elements = np.concatenate([v.astype(object).reshape(-1) for v in arrays[part]])
        ends = np.cumsum([v.size for v in arrays[part]])
        arrays[part] = [
            np.arange(end - v.size, end).reshape(v.shape) for v, end in zip(arrays[part], ends, strict=True)
        ]
        places = self._ran(node, arrays)
        if places is None:
            return None
        # One element alone comes without its array.
        moved = np.asarray(elements[places], object)
        if not all(isinstance(n, int) for n in moved.reshape(-1).tolist()):
            return moved
        return moved.astype(onnx.helper.tensor_dtype_to_np_dtype(self._types[node.output[0]]))

    def _ran(self, node: onnx.NodeProto, arrays: Iterable[Array]) -> Array | None:
        """The first result of a node, or None where ONNX Runtime can't tell or it is large."""
        try:
            value = run_node(self._proto, node, arrays)
        except ModelError:
            return None
        return value if value.size <= LIMIT else None


def _casts_to(node: onnx.NodeProto) -> int:
    return next((a.i for a in node.attribute if a.name == "to"), 0)


def _without(arrays: list[Array], part: slice) -> list[Array]:
    rest = arrays.copy()
    del rest[part]
    return rest
