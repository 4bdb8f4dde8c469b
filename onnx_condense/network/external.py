"""Weights that lie in files beside the network: which tensors, where, whether they can be read, and their bytes.

Follows what ONNX's own checker accepts, so that a network is refused here with a line that names the file and the
tensor before a library refuses it with one that does not.
"""

from __future__ import annotations

import dataclasses
import math
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx
from onnx import TensorProto, numpy_helper
from onnx.external_data_helper import load_external_data_for_tensor

from onnx_condense.errors import ModelError

Key = tuple[str, ...]

# Element types that are stored several to a byte.
_BITS: dict[int, int] = {
    TensorProto.INT2: 2,
    TensorProto.UINT2: 2,
    TensorProto.INT4: 4,
    TensorProto.UINT4: 4,
    TensorProto.FLOAT4E2M1: 4,
}


def stored_tensors(proto: onnx.ModelProto) -> Iterator[tuple[Key, TensorProto]]:
    """Every tensor that a network stores, those of attributes, bodies and functions too.

    Each comes with a key that stays the same when other tensors and nodes come and go.
    """
    yield from _of_graph(proto.graph, ())
    for function in proto.functions:
        yield from _of_nodes(function.node, ("function", function.domain, function.name))


def _of_graph(graph: onnx.GraphProto, scope: Key) -> Iterator[tuple[Key, TensorProto]]:
    for tensor in graph.initializer:
        yield (*scope, tensor.name), tensor
    for sparse in graph.sparse_initializer:
        yield (*scope, sparse.values.name, "values"), sparse.values
        yield (*scope, sparse.values.name, "indices"), sparse.indices
    yield from _of_nodes(graph.node, scope)


def _of_nodes(nodes: Iterable[onnx.NodeProto], scope: Key) -> Iterator[tuple[Key, TensorProto]]:
    for node in nodes:
        place = next(filter(None, node.output), node.name)
        for attribute in node.attribute:
            here = (*scope, place, attribute.name)
            tensors = [attribute.t] if attribute.HasField("t") else attribute.tensors
            for i, tensor in enumerate(tensors):
                yield (*here, str(i)), tensor
            for i, body in enumerate([attribute.g] if attribute.HasField("g") else attribute.graphs):
                yield from _of_graph(body, (*here, str(i)))


def is_external(tensor: TensorProto) -> bool:
    """Whether a tensor's data lies in another file."""
    return tensor.data_location == TensorProto.EXTERNAL


def external_tensors(proto: onnx.ModelProto) -> Iterator[TensorProto]:
    """The stored tensors whose data lies in another file."""
    return (tensor for _, tensor in stored_tensors(proto) if is_external(tensor))


def external_files(proto: onnx.ModelProto) -> tuple[str, ...]:
    """Locations of external weights relative to the network's folder, each once."""
    found = (_entries(tensor).get("location", "") for tensor in external_tensors(proto))
    return tuple(dict.fromkeys(name for name in found if _may_be_a_file(name)))


def byte_count(tensor: TensorProto) -> int:
    """How many bytes a tensor's elements take as raw data.

    Raises:
        ValueError: its element type has no raw form (strings) or is unknown.
    """
    kind = tensor.data_type
    if kind == TensorProto.STRING or kind not in TensorProto.DataType.values():
        raise ValueError(f"elements of type {kind} have no raw form")
    bits = _BITS.get(kind) or 8 * onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize
    return -(-math.prod(tensor.dims) * bits // 8)


@dataclasses.dataclass(frozen=True)
class Source:
    """Where external tensors are looked for. label: how messages name the network."""

    folder: Path
    label: str

    def check(self, tensor: TensorProto) -> None:
        """See that a tensor's data is there.

        Raises:
            ModelError: it is not; the line names the network, the tensor and the file.
        """
        location = _entries(tensor).get("location", "")
        if not _may_be_a_file(location):
            raise self.error(tensor, "no weights file is named for its data; write the network again")
        file = self.folder / location
        if fault := self._misplaced(location) or _unreadable(file) or _misfit(tensor, file):
            raise self.error(tensor, f"its weights file {file} {fault}")

    def _misplaced(self, location: str) -> str:
        outward = Path(location).is_absolute() or Path(os.path.normpath(location)).parts[0] == os.pardir
        # Also by a link among the folders in between.
        if outward or not (self.folder / location).parent.resolve().is_relative_to(self.folder.resolve()):
            return "lies outside the network's folder, which ONNX forbids; move it there and name it relative to it"
        return ""

    def array(self, tensor: TensorProto) -> npt.NDArray[Any]:
        """The values of a stored tensor, read now if they lie in a file.

        Raises:
            ModelError: they can't be read.
        """
        located = self._located(tensor) if is_external(tensor) else tensor
        try:
            return numpy_helper.to_array(located, base_dir=str(self.folder))
        except (OSError, ValueError, onnx.checker.ValidationError) as error:
            raise self.error(tensor, f"its data can't be read: {error}") from error

    def bring_in(self, tensor: TensorProto) -> None:
        """Put a tensor's external data into the tensor; its name, shape, doc and metadata stay.

        Raises:
            ModelError: the data can't be read.
        """
        located = self._located(tensor)
        try:
            load_external_data_for_tensor(located, str(self.folder))
        except (OSError, ValueError, onnx.checker.ValidationError) as error:
            raise self.error(tensor, f"its data can't be read: {error}") from error
        tensor.CopyFrom(located)

    def _located(self, tensor: TensorProto) -> TensorProto:
        """A checked copy that says where its data ends; entries that ONNX does not know of are left out."""
        self.check(tensor)
        entries = _entries(tensor)
        copy = TensorProto()
        copy.CopyFrom(tensor)
        refer(copy, entries["location"], int(entries.get("offset", "0")), byte_count(tensor))
        return copy

    def error(self, tensor: TensorProto, text: str) -> ModelError:
        """What is wrong with a tensor's data, as an error to raise."""
        return ModelError("model-data", f"{self.label}: tensor {tensor.name or 'without a name'}: {text}", tensor.name)


def _entries(tensor: TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def _may_be_a_file(location: str) -> bool:
    return bool(location) and "\0" not in location


def _unreadable(file: Path) -> str:
    try:
        status = file.lstat()
    except FileNotFoundError:
        return "is missing; put it beside the network"
    except OSError as error:
        return f"can't be read: {error.strerror}"
    if stat.S_ISLNK(status.st_mode):
        return "is a symbolic link, which ONNX forbids; put a copy of the file in its place"
    if not stat.S_ISREG(status.st_mode):
        return "is a folder, not a file" if stat.S_ISDIR(status.st_mode) else "is not a regular file"
    if status.st_nlink > 1:
        return "has several hard links, which ONNX forbids; put a copy of the file in its place"
    return "" if os.access(file, os.R_OK) else "can't be read: no permission"


def _misfit(tensor: TensorProto, file: Path) -> str:
    """What is wrong with the stretch of the file that a tensor names, or ""."""
    entries = _entries(tensor)
    try:
        needed = byte_count(tensor)
        offset = int(entries.get("offset", "0"))
        length = int(entries.get("length", needed))
    except ValueError as error:
        return f"can't be used for it: {error}"
    if length != needed or offset < 0:
        return f"is said to hold it in {length} bytes from byte {offset} on, but its shape takes {needed}"
    size = file.stat().st_size
    if offset + needed > size:
        return f"is too short: it has {size} bytes, the tensor ends at byte {offset + needed}; is it cut off?"
    return ""


def refer(tensor: TensorProto, location: str, offset: int, length: int) -> None:
    """Let a tensor have its data in a file; what it held itself goes."""
    for field in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
        tensor.ClearField(field)
    del tensor.external_data[:]
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
