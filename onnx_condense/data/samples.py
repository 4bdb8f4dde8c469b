"""What a network must be fed, and the checked samples that feed it."""

from __future__ import annotations

import abc
import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnx

from onnx_condense.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from onnx_condense.plan import IntArray
    from onnx_condense.runtime import Array


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """One graph input that is no initializer; `shape` holds sizes, symbolic names, and None for unknown."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...]

    @property
    def has_free_rows(self) -> bool:
        """Whether axis 0 exists and takes any size."""
        return bool(self.shape) and not isinstance(self.shape[0], int)


def input_specs(graph: onnx.GraphProto) -> tuple[InputSpec, ...]:
    """What the graph must be fed, in its order.

    Raises:
        ModelError: an input is no tensor, or has no element type or no shape.
    """
    given = {t.name for t in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
    return tuple(_input_spec(value) for value in graph.input if value.name not in given)


def _input_spec(value: onnx.ValueInfoProto) -> InputSpec:
    kind = value.type.WhichOneof("value") or "untyped value"
    if kind != "tensor_type":
        text = f"input '{value.name}' is a {kind.removesuffix('_type')}: only networks with tensor inputs are supported"
        raise ModelError("input-type", text, value.name)
    tensor = value.type.tensor_type
    if not tensor.elem_type or not tensor.HasField("shape"):
        text = f"input '{value.name}' declares no element type or no shape: export the network with both"
        raise ModelError("input-type", text, value.name)
    # Old exporters write -1 for an unknown size.
    shape = tuple(
        (d.dim_value if d.dim_value >= 0 else None) if d.HasField("dim_value") else d.dim_param or None
        for d in tensor.shape.dim
    )
    return InputSpec(value.name, np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)), shape)


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """One call of the network and the indices of the samples in it, in the order of the rows."""

    feed: dict[str, Array]
    samples: IntArray


@dataclasses.dataclass(frozen=True, eq=False)
class Samples(abc.ABC):
    """Checked samples.

    sliced: whether a sample is a slice of arrays (else a feed of its own).
    groups: [n] int64, equal for samples that must end up in the same share.
    notes: what was cast, dropped or passed whole, for the report.
    """

    sliced: ClassVar[bool]
    groups: IntArray
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.groups)

    @abc.abstractmethod
    def batches(self, indices: IntArray, rows: int = 1024) -> Iterator[Batch]:
        """Feeds with the samples `indices` [k], in that order; at most `rows` rows each where rows are free.

        Raises:
            CalibrationError: a file of a folder changed since it was checked.
        """


@dataclasses.dataclass(frozen=True, eq=False)
class Rows(Samples):
    """Sliced samples: `arrays` by axis 0, `whole` with each batch; `block` rows a sample if the network fixes them."""

    sliced: ClassVar[bool] = True
    arrays: Mapping[str, Array]
    whole: Mapping[str, Array]
    block: int | None

    def batches(self, indices: IntArray, rows: int = 1024) -> Iterator[Batch]:
        """Gathers the rows of up to `rows` samples, or one block at a time."""
        step = rows if self.block is None else 1
        for start in range(0, len(indices), step):
            chunk = np.asarray(indices[start : start + step], np.int64)
            picked = chunk if self.block is None else chunk[0] * self.block + np.arange(self.block)
            yield Batch({**{n: a.take(picked, axis=0) for n, a in self.arrays.items()}, **self.whole}, chunk)


@dataclasses.dataclass(frozen=True, eq=False)
class Feeds(Samples):
    """Whole feeds, fetched one at a time."""

    sliced: ClassVar[bool] = False
    fetch: Callable[[int], dict[str, Array]]

    def batches(self, indices: IntArray, rows: int = 1024) -> Iterator[Batch]:
        """One feed each, as it is."""
        del rows  # a feed is never cut or joined
        for index in indices:
            yield Batch(dict(self.fetch(int(index))), np.array([index], np.int64))


def make_feeds(count: int, notes: Iterable[str], fetch: Callable[[int], dict[str, Array]]) -> Feeds:
    """`count` feeds, each its own group; equal notes are kept once."""
    return Feeds(np.arange(count, dtype=np.int64), tuple(dict.fromkeys(notes)), fetch)
