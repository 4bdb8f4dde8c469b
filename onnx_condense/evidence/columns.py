"""What a reader reads, as a matrix: one row per sample and position, one column per number that it weighs.

A product with a weight matrix reads an axis. A convolution reads patches: its columns are (channel, tap), and the
zeros of its padding are read like any number. The nodes that lay them out run inside the ONNX Runtime graph.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnx_condense.network.nodes import MARK
from onnx_condense.plan import FloatArray
from onnx_condense.runtime import Array

OWN = f"moments/{MARK}/"
PLACES = f"{OWN}places"


@dataclasses.dataclass(frozen=True)
class Window:
    """Where the taps of a convolution lie: its op, its kernel's shape and other attributes, as (name, value) pairs."""

    op: str
    kernel: tuple[int, ...]
    attributes: tuple[tuple[str, Any], ...]

    @property
    def taps(self) -> int:
        """Positions of the kernel."""
        return math.prod(self.kernel)


@dataclasses.dataclass(frozen=True)
class Columns:
    """The columns of one reader.

    tensor, axis: what is read, and which of its axes the channels lie on; all others make rows.
    window: of a convolution; its columns are ordered by channel, then tap.
    per_channel: how many neighbouring columns belong to one channel, if they are pooled: as rows of their own, one
        column per channel; by_channel: whether those of one channel lie side by side (else C apart). 0: not pooled.
    take: rows of each sample that are looked at, evenly spread; 0: all.
    stack: axes of fixed size before the channels' whose places have columns of their own, place by place.
    """

    tensor: str
    axis: int
    window: Window | None = None
    per_channel: int = 0
    by_channel: bool = True
    take: int = 0
    stack: tuple[int, ...] = ()

    def arranged(self, columns: FloatArray) -> FloatArray:
        """Numbers per column [..., Q] -> [..., per channel, C] where they are pooled, else as they are."""
        return arranged(columns, self.per_channel, by_channel=self.by_channel) if self.per_channel else columns

    @property
    def draw(self) -> str:
        """The name of the input that says which rows to take, or ""; equal for tensors with equally many rows."""
        return f"{PLACES}_{'window' if self.window else 'rows'}_{self.take}" if self.take else ""

    def places(self, rng: np.random.Generator, samples: int) -> Array:
        """Numbers in [0, 1), evenly spread: which rows of one pass to take."""
        count = self.take * (1 if self.window else samples)
        return (np.arange(count) + rng.random(count)) / count


def arranged(columns: FloatArray, per_channel: int, *, by_channel: bool) -> FloatArray:
    """[..., Q] -> [..., per channel, C]."""
    rest = columns.shape[:-1]
    if by_channel:
        return np.swapaxes(columns.reshape(*rest, -1, per_channel), -1, -2)
    return columns.reshape(*rest, per_channel, -1)


def unarranged(cells: FloatArray, *, by_channel: bool) -> FloatArray:
    """[..., per channel, C] -> [..., Q], the inverse of `arranged`."""
    return (np.swapaxes(cells, -1, -2) if by_channel else cells).reshape(*cells.shape[:-2], -1)


class Builder:
    """Appends nodes to a graph that lay out columns, and those that sum them."""

    def __init__(self, proto: onnx.ModelProto, ranks: Mapping[str, int]) -> None:
        self._graph = proto.graph
        self._ranks = ranks
        self._opset = next(o.version for o in proto.opset_import if o.domain in ("", "ai.onnx"))
        self._count = 0
        self._centred: dict[Columns, tuple[str, str, str]] = {}
        self.draws: dict[str, Columns] = {}

    def node(self, op: str, inputs: list[str], out: str = "", **attributes: Any) -> str:
        """The name of the new node's result."""
        self._count += 1
        out = out or f"{OWN}{op}_{self._count}"
        self._graph.node.append(helper.make_node(op, inputs, [out], **attributes))
        return out

    def constant(self, value: Array) -> str:
        """The name of a new constant."""
        self._count += 1
        name = f"{OWN}constant_{self._count}"
        self._graph.node.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value)))
        return name

    def _integers(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def centred(self, columns: Columns) -> tuple[str, str, str]:
        """Rows minus their mean [n, Q], the mean [1, Q] and n [1], in float32; pooled: the former as [n b, C]."""
        if columns not in self._centred:
            rows = self.rows(columns)
            mean = self._mean(rows)
            count = self.node("Gather", [self.node("Shape", [rows]), self._integers(0)])
            self._centred[columns] = (self._pooled(self.node("Sub", [rows, mean]), columns), mean, count)
        return self._centred[columns]

    def _mean(self, rows: str) -> str:
        if self._opset >= 18:
            return self.node("ReduceMean", [rows, self._integers(0)], keepdims=1)
        return self.node("ReduceMean", [rows], axes=[0], keepdims=1)

    def _pooled(self, rows: str, columns: Columns) -> str:
        b = columns.per_channel
        if not b:
            return rows
        if columns.by_channel:
            cells = self.node("Reshape", [rows, self._integers(0, -1, b)])
            cells = self.node("Transpose", [cells], perm=[0, 2, 1])
        else:
            cells = self.node("Reshape", [rows, self._integers(0, b, -1)])
        return self.node("Flatten", [cells], axis=2)

    def rows(self, columns: Columns) -> str:
        """[n, Q] in float32."""
        x = self.node("Cast", [columns.tensor], to=onnx.TensorProto.FLOAT)
        return self._axis(x, columns) if columns.window is None else self._patches(x, columns, columns.window)

    def _axis(self, x: str, columns: Columns) -> str:
        rank = self._ranks[columns.tensor]
        if rank == 1:
            return self.node("Reshape", [x, self._integers(1, -1)])
        last = (*columns.stack, columns.axis)
        order = [*(a for a in range(rank) if a not in last), *last]
        if order != list(range(rank)):
            x = self.node("Transpose", [x], perm=order)
        if rank > 2:
            # -1 must be the rows: keep the last axes by name through Flatten.
            x = self.node("Flatten", [x], axis=rank - len(last))
        return self._taken(x, 0, columns)

    def _patches(self, x: str, columns: Columns, window: Window) -> str:
        """[N, K, size...] -> [N P, K T], by a convolution whose filters each pick one tap."""
        shape = self.node("Shape", [x])
        head = self.node("Gather", [shape, self._integers(0, 1)])
        size = self.node("Gather", [shape, self._integers(*range(2, 2 + len(window.kernel)))])
        alone = self.node("Concat", [self._integers(-1, 1), size], axis=0)
        # [filters, 1, kernel...], or [1, filters, kernel...] for a transposed convolution.
        filters = (window.taps, 1) if window.op == "Conv" else (1, window.taps)
        picks = np.eye(window.taps, dtype=np.float32).reshape(*filters, *window.kernel)
        inputs = [self.node("Reshape", [x, alone]), self.constant(picks)]
        patches = self.node(window.op, inputs, **dict(window.attributes))
        split = self.node("Concat", [head, self._integers(window.taps, -1)], axis=0)
        patches = self._taken(self.node("Reshape", [patches, split]), 3, columns)
        return self.node("Flatten", [self.node("Transpose", [patches], perm=[0, 3, 1, 2])], axis=2)

    def _taken(self, x: str, axis: int, columns: Columns) -> str:
        """Only the rows (positions) along an axis that the input `Columns.draw` names."""
        if not columns.take:
            return x
        if columns.draw not in self.draws:
            self.draws[columns.draw] = columns
            info = helper.make_tensor_value_info(columns.draw, onnx.TensorProto.DOUBLE, [None])
            self._graph.input.append(info)
        size = self.node("Gather", [self.node("Shape", [x]), self._integers(axis)])
        at = self.node("Mul", [columns.draw, self.node("Cast", [size], to=onnx.TensorProto.DOUBLE)])
        return self.node("Gather", [x, self.node("Cast", [at], to=onnx.TensorProto.INT64)], axis=axis)
