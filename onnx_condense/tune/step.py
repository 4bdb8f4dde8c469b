"""What a lowering is given and what it is: one node, and the function of PyTorch tensors that does the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from onnx import TensorProto

from onnx_condense.network.nodes import Node

Tensor = torch.Tensor
Run = Callable[..., Tensor | tuple[Tensor, ...]]
"""Results of a node from its operands in order, None for one left out."""

HOST = torch.device("cpu")

# Half precision is computed in single: PyTorch's gradients would underflow, and ONNX Runtime's CPU does so as well.
TYPES: Mapping[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.FLOAT16: torch.float32,
    TensorProto.BFLOAT16: torch.float32,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.INT8: torch.int8,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.UINT8: torch.uint8,
    TensorProto.BOOL: torch.bool,
}


class RefusedError(Exception):
    """A variant of an op that is not in the table; its text says which."""


@dataclasses.dataclass(frozen=True)
class Step:
    """One node, to be lowered.

    attributes: by name, strings decoded; constant: the value of a constant tensor, None where it is computed.
    shape: what is known of a tensor's shape, None where not even the rank is.
    read: attributes that the lowering has asked for; one that nobody asks for is a reason to refuse.
    """

    node: Node
    attributes: Mapping[str, Any]
    constant: Callable[[str], npt.NDArray[Any] | None]
    shape: Callable[[str], tuple[int | str | None, ...] | None]
    read: set[str] = dataclasses.field(default_factory=set)

    @property
    def opset(self) -> int:
        """Version of the node's operator set."""
        return self.node.opset

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute, or the default where it is left out."""
        self.read.add(name)
        return self.attributes.get(name, default)

    def only(self, name: str, usual: Any) -> None:
        """Refuse every value of an attribute but the usual one, which is the default."""
        if (value := self.get(name, usual)) != usual:
            raise RefusedError(f"{name} = {value}")

    def has(self, position: int) -> bool:
        """Whether an operand is given."""
        return position < len(self.node.inputs) and bool(self.node.inputs[position])

    def value(self, position: int) -> npt.NDArray[Any] | None:
        """The value of an operand, or None where it is computed or left out."""
        return self.constant(self.node.inputs[position]) if self.has(position) else None

    def rank(self, position: int) -> int | None:
        """How many axes an operand has, as far as that is known."""
        shape = self.shape(self.node.inputs[position]) if self.has(position) else None
        return None if shape is None else len(shape)

    def numbers(self, name: str, position: int) -> Callable[[tuple[Tensor | None, ...]], list[int] | None]:
        """A list of integers that is an attribute in older opsets and an operand in later ones.

        Returns:
            What finds it among the operands; None where there is no such list.
        """
        given = self.get(name)
        if given is not None:
            return lambda _: list(given)

        def found(operands: tuple[Tensor | None, ...]) -> list[int] | None:
            operand = operands[position] if position < len(operands) else None
            return None if operand is None else integers(operand)

        return found


@dataclasses.dataclass(frozen=True)
class Rule:
    """How an op kind is lowered.

    build: from a node to its function; raises RefusedError.
    trains: positions of operands whose stored values are trained.
    wide: only tensors with axes and more than one element are (single numbers are part of a formula).
    lists: positions of operands that are read as numbers on the host.
    fixed: positions of other operands that stay as stored (statistics, limits).
    since: first opset that the lowering knows.
    """

    build: Callable[[Step], Run]
    trains: frozenset[int] = frozenset()
    wide: bool = False
    lists: frozenset[int] = frozenset()
    fixed: frozenset[int] = frozenset()
    since: int = 7


def plain(function: Run) -> Rule:
    """The rule of an op without attributes."""
    return Rule(lambda _: function)


def integers(tensor: Tensor) -> list[int]:
    """The elements of a tensor in order."""
    return [int(n) for n in tensor.reshape(-1).tolist()]


def indices(values: npt.ArrayLike, like: Tensor) -> Tensor:
    """Positions for a tensor's axis, on its device."""
    return torch.from_numpy(np.array(values, np.int64)).to(like.device)


def type_of(kind: int) -> torch.dtype:
    """PyTorch's name of an element type.

    Raises:
        RefusedError: it has none.
    """
    if kind not in TYPES:
        raise RefusedError(f"element type {TensorProto.DataType.Name(kind)}")
    return TYPES[kind]


def array_of(value: npt.NDArray[Any]) -> Tensor:
    """A tensor with a copy of the values, half precision (which numpy may not know) as single.

    Raises:
        RefusedError: PyTorch has no such type.
    """
    wide = value.astype(np.float32) if value.dtype.name in {"float16", "bfloat16"} else np.array(value, order="C")
    try:
        return torch.from_numpy(wide)
    except TypeError as error:
        raise RefusedError(f"element type {value.dtype.name}") from error
