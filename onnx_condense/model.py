"""A network on disk and in memory: reading, a connected read-only view, and atomic writing.

Owns every quirk of onnx-graphsurgeon, protobuf and external data. The ModelProto is the source of truth and
keeps every field; graphsurgeon only supplies the connected view (its exporter would drop metadata and sharing).
"""

from __future__ import annotations

import dataclasses
import filecmp
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs
from google.protobuf.message import DecodeError
from onnx import numpy_helper
from onnx_graphsurgeon.logger import G_LOGGER

from onnx_condense.errors import ModelError, UsageError
from onnx_condense.shapes import Shape, infer

G_LOGGER.severity = G_LOGGER.ERROR
G_LOGGER.colors = False

PROTOBUF_LIMIT = 2**31 - 1


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    """One node of the main graph. inputs: tensor names, "" for one left out; opset: version of its domain."""

    index: int
    op: str
    domain: str
    opset: int
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    captured: frozenset[str]

    @property
    def place(self) -> str:
        """How messages name this node."""
        return f"{self.name or next(filter(None, self.outputs), 'unnamed')} ({self.op})"


class Network:
    """A read-only view over one ModelProto.

    Attributes:
        proto: the network; never changed through this view.
        path: the file it came from, or None.
        nodes: the main graph's nodes in file order.
        inputs: names of graph inputs that are not initializers.
        outputs: names of graph outputs.
        shapes, types: known shapes and element types of tensors, by name.
        functions: (domain, op type) of the functions that the model brings along; these hide standard ops.
    """

    def __init__(self, proto: onnx.ModelProto, path: Path | None = None) -> None:
        self.proto = proto
        self.path = path
        self.shapes, self.types = infer(proto)
        self.functions = frozenset((_plain(f.domain), f.name) for f in proto.functions)
        self._stored = {t.name: t for t in proto.graph.initializer}
        declared = {i.name for i in proto.graph.input}
        # From IR 4 on an initializer that is also an input is a default that the caller may override.
        self.overridable = frozenset(self._stored.keys() & declared) if proto.ir_version >= 4 else frozenset()
        self.inputs = tuple(i.name for i in proto.graph.input if i.name not in self._stored)
        self.outputs = tuple(o.name for o in proto.graph.output)
        self.nodes = tuple(_nodes(proto))
        self._aliases: dict[str, str] = {}
        self._constants: dict[str, npt.NDArray[Any]] = {}
        for node in self.nodes:
            if node.op == "Constant" and not node.domain and _constant_attribute(proto.graph.node[node.index]):
                self._aliases[node.outputs[0]] = node.outputs[0]
            elif node.op == "Identity" and not node.domain and self.root(node.inputs[0]):
                self._aliases[node.outputs[0]] = self.root(node.inputs[0])
        self.producers = {name: node for node in self.nodes for name in node.outputs if name}
        self.consumers: dict[str, list[tuple[Node, int]]] = {}
        for node in self.nodes:
            for position, name in enumerate(node.inputs):
                self.consumers.setdefault(name, []).append((node, position))
        self.captured = frozenset[str]().union(*(n.captured for n in self.nodes))

    def root(self, name: str) -> str:
        """The initializer or Constant output that a tensor is a copy of, or "" where it is computed."""
        if name in self._stored and name not in self.overridable:
            return name
        return self._aliases.get(name, "")

    def constant(self, name: str) -> npt.NDArray[Any] | None:
        """The value of a constant tensor, or None where it is computed, overridable or sparse."""
        root = self.root(name)
        if not root:
            return None
        if root not in self._constants:
            tensor = self._stored.get(root)
            self._constants[root] = self.array(tensor) if tensor is not None else self._constant_node(root)
        return self._constants[root]

    def _constant_node(self, root: str) -> npt.NDArray[Any]:
        return _constant_value(self.proto.graph.node[self.producers[root].index], self.array)

    def array(self, tensor: onnx.TensorProto) -> npt.NDArray[Any]:
        """The values of a stored tensor.

        Raises:
            ModelError: its external data is missing or broken.
        """
        try:
            return numpy_helper.to_array(tensor, base_dir=str(self.path.parent) if self.path else "")
        except (OSError, ValueError, onnx.checker.ValidationError) as error:
            raise ModelError(
                "model-data", f"tensor {tensor.name}: its data can't be read: {error}", tensor.name
            ) from error

    def shape(self, name: str) -> Shape | None:
        """The shape of a tensor: ints, names of symbolic sizes or None per axis; None where the rank is unknown."""
        tensor = self._stored.get(self.root(name))
        if tensor is not None:
            return tuple(tensor.dims)
        value = self.constant(name)
        return tuple(value.shape) if value is not None else self.shapes.get(name)


def _plain(domain: str) -> str:
    """The default domain has two names."""
    return "" if domain == "ai.onnx" else domain


def _constant_attribute(node: onnx.NodeProto) -> str:
    """Which attribute of a Constant node holds a dense tensor or numbers, or ""."""
    names = ("value", "value_float", "value_floats", "value_int", "value_ints")
    return next((a.name for a in node.attribute if a.name in names), "")


def _constant_value(node: onnx.NodeProto, array: Any) -> npt.NDArray[Any]:
    attribute = next(a for a in node.attribute if a.name == _constant_attribute(node))
    value = onnx.helper.get_attribute_value(attribute)
    if attribute.name == "value":
        return np.asarray(array(value))
    return np.asarray(value, np.float32 if "float" in attribute.name else np.int64)


def _nodes(proto: onnx.ModelProto) -> Iterator[Node]:
    """The main graph's nodes, each tied to its proto by position."""
    versions = {_plain(o.domain): o.version for o in proto.opset_import}
    view = _surgeon_view(proto)
    for index, (node, raw) in enumerate(zip(view.nodes, proto.graph.node, strict=True)):
        domain = _plain(raw.domain)
        yield Node(
            index=index,
            op=node.op,
            domain=domain,
            opset=versions.get(domain, 1),
            name=node.name,
            inputs=tuple(raw.input),
            outputs=tuple(raw.output),
            attributes={k: v for k, v in node.attrs.items() if not isinstance(v, gs.Graph)},
            captured=frozenset().union(*(_captured(v) for v in node.attrs.values() if isinstance(v, gs.Graph))),
        )


def _surgeon_view(proto: onnx.ModelProto) -> gs.Graph:
    try:
        return gs.import_onnx(proto)
    except UnicodeDecodeError:
        # Strings need not be UTF-8 in ONNX; no rule reads them, so the view may go without.
        copy = onnx.ModelProto()
        copy.CopyFrom(proto)
        for nodes in (copy.graph.node, *(f.node for f in copy.functions)):
            _clear_strings(nodes)
        return gs.import_onnx(copy)


def _clear_strings(nodes: Iterable[onnx.NodeProto]) -> None:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.s:
                attribute.s = b""
            del attribute.strings[:]
            for body in _bodies(attribute):
                _clear_strings(body.node)


def _bodies(attribute: onnx.AttributeProto) -> Iterator[onnx.GraphProto]:
    if attribute.HasField("g"):
        yield attribute.g
    yield from attribute.graphs


def _captured(graph: gs.Graph) -> frozenset[str]:
    """Names that a body takes from outside (a superset is harmless: it only pins more)."""
    names = {t.name for node in graph.nodes for t in node.inputs if t.name} | {t.name for t in graph.outputs}
    for node in graph.nodes:
        for value in node.attrs.values():
            if isinstance(value, gs.Graph):
                names |= _captured(value)
    return frozenset(names)


def load(source: str | os.PathLike[str] | onnx.ModelProto) -> Network:
    """Read and check a network.

    Raises:
        ModelError: missing, not a file, not ONNX, truncated or invalid.
    """
    if isinstance(source, onnx.ModelProto):
        return _checked(source, None, "the network")
    path = Path(source)
    if not path.exists():
        raise ModelError("model-missing", f"{path}: no such file")
    if not path.is_file():
        raise ModelError("model-not-a-file", f"{path}: not a file; give the path of an .onnx file")
    try:
        # By content, not by the file's ending.
        proto = onnx.load(path, format="protobuf", load_external_data=False)
    except DecodeError as error:
        raise ModelError("model-not-onnx", f"{path}: not an ONNX file, or cut off: {error}") from error
    except OSError as error:
        raise ModelError("model-unreadable", f"{path}: can't be read: {error.strerror}") from error
    return _checked(proto, path, str(path))


def _checked(proto: onnx.ModelProto, path: Path | None, label: str) -> Network:
    if not proto.HasField("graph") or not proto.graph.output or not proto.opset_import:
        raise ModelError("model-not-onnx", f"{label}: not an ONNX network (empty or cut off?)")
    _check_external(proto, path, label)
    try:
        onnx.checker.check_model(str(path) if path else proto)
    except onnx.checker.ValidationError as error:
        text = " ".join(str(error).split())
        raise ModelError("model-invalid", f"{label}: not a valid ONNX network: {text[:300]}") from error
    return Network(proto, path)


def _check_external(proto: onnx.ModelProto, path: Path | None, label: str) -> None:
    for name in external_files(proto):
        where = (path.parent if path else Path()) / name
        if not where.is_file():
            raise ModelError("model-data", f"{label}: its weights file {where} is missing; put it beside the network")


def external_files(proto: onnx.ModelProto) -> tuple[str, ...]:
    """Locations of external weights relative to the network's folder, each once."""
    found: dict[str, None] = {}
    for tensor in _external_tensors(proto.graph):
        found.update({entry.value: None for entry in tensor.external_data if entry.key == "location"})
    return tuple(found)


def _external_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Stored tensors of a graph and its bodies whose data lies in another file."""
    stored = list(graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            stored += [attribute.t] if attribute.HasField("t") else attribute.tensors
            for body in _bodies(attribute):
                yield from _external_tensors(body)
    yield from (t for t in stored if t.data_location == onnx.TensorProto.EXTERNAL)


def inlined(network: Network) -> onnx.ModelProto:
    """A copy of the network with all weights inside; the same object where they already are."""
    if not external_files(network.proto):
        return network.proto
    copy = onnx.ModelProto()
    copy.CopyFrom(network.proto)
    for tensor in _external_tensors(copy.graph):
        replace_tensor(tensor, network.array(tensor))
    return copy


def replace_tensor(tensor: onnx.TensorProto, value: npt.NDArray[Any]) -> None:
    """Give a stored tensor new values and shape in the same element type; its name, doc and metadata stay."""
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    fresh = numpy_helper.from_array(value.astype(dtype, order="C"), tensor.name)
    fresh.doc_string = tensor.doc_string
    fresh.metadata_props.extend(tensor.metadata_props)
    if not tensor.doc_string:
        fresh.ClearField("doc_string")
    tensor.CopyFrom(fresh)


def serialized(proto: onnx.ModelProto) -> bytes:
    """The bytes of a network, the same for the same network.

    Raises:
        ModelError: it is over protobuf's 2 GiB.
    """
    if proto.ByteSize() > PROTOBUF_LIMIT:
        raise ModelError("model-too-large", "the network is over 2 GiB, which one protobuf file can't hold")
    return proto.SerializeToString(deterministic=True)


def write_atomically(path: Path, data: bytes) -> None:
    """Write beside the target and rename, so that a half-written file never stands there; links are followed.

    Raises:
        UsageError: the folder is missing or not writable.
    """
    path = Path(os.path.realpath(path))
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise UsageError("out-not-writable", f"{path}: can't be written: {error.strerror}") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(path)
    except OSError as error:
        raise UsageError("out-not-writable", f"{path}: can't be written: {error.strerror}") from error
    finally:
        Path(temporary).unlink(missing_ok=True)


def copy_unchanged(network: Network, path: Path) -> None:
    """The input file, byte for byte, at another place; its external weights go along.

    Raises:
        UsageError: another file has the name of the weights there, or the place can't be written.
    """
    if network.path is None:
        write_atomically(path, serialized(network.proto))
        return
    if network.path.parent.resolve() != path.parent.resolve():
        _copy_weights(network.path.parent, path.parent, external_files(network.proto))
    write_atomically(path, network.path.read_bytes())


def _copy_weights(source: Path, folder: Path, names: tuple[str, ...]) -> None:
    """Copy weight files that are not there yet; a file of that name with other content is somebody else's."""
    missing = []
    for name in names:
        target = folder / name
        if target.exists() and not filecmp.cmp(source / name, target, shallow=False):
            text = f"{target}: exists and holds other weights than {source / name}; write to another folder"
            raise UsageError("out-exists", text)
        if not target.exists():
            missing.append(name)
    for name in missing:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.partial")
        try:
            shutil.copyfile(source / name, partial)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
