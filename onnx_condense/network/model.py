"""A network on disk and in memory: reading, a connected read-only view, and its bytes.

The ModelProto is the source of truth and keeps every field; `nodes` supplies the view of its nodes, `canonical` what
has to be put right before there can be one.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError, EncodeError
from onnx import numpy_helper

from onnx_condense.errors import ModelError
from onnx_condense.network.canonical import canonical, written_by_onnxruntime
from onnx_condense.network.external import Source, byte_count, external_tensors
from onnx_condense.network.hints import Facts, Hints, facts_of, hints_of
from onnx_condense.network.known import Knowledge, Known, Pieces
from onnx_condense.network.nodes import Node, bodies_of, nodes_of, plain
from onnx_condense.network.shapes import Shape, infer
from onnx_condense.plan import IntArray
from onnx_condense.runtime import run_node

__all__ = [
    "PROTOBUF_LIMIT",
    "TOO_LARGE",
    "Network",
    "Node",
    "bodies_of",
    "inlined",
    "load",
    "replace_tensor",
    "serialized",
]

PROTOBUF_LIMIT = 2**31 - 1
TOO_LARGE = "is over 2 GiB, which one protobuf file can't hold; store its weights as external data"

# Ops that only lay out a constant in another way, or give it in another float type.
_VIEWS = frozenset({"Cast", "Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
_VIEWED = frozenset({onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE})
_CAST_FROM = _VIEWED | {onnx.TensorProto.BFLOAT16}

# How often shapes may tell of further shapes (a Reshape whose own shape is made of the result of another one).
ROUNDS = 16

# Bytes of the largest external tensor that shape inference may want to look into.
SMALL = 8192


class Network:
    """A read-only view over one ModelProto.

    Attributes:
        proto: the network; never changed through this view.
        given: the network as it came, which `proto` is but for the order of nodes and declarations (see `canonical`).
        path: the file it came from, or None.
        nodes: the main graph's nodes in file order.
        inputs: names of graph inputs that are not initializers.
        outputs: names of graph outputs.
        shapes, types: known shapes and element types of tensors, by name.
        weights: where external weights are looked for.
        functions: (domain, op type) of the functions that the model brings along; these hide standard ops.
    """

    def __init__(self, proto: onnx.ModelProto, path: Path | None = None, given: onnx.ModelProto | None = None) -> None:
        self.proto = proto
        self.given = proto if given is None else given
        self.path = path
        self.weights = Source(path.parent if path else Path(), str(path or "the network"))
        # Shape inference reads the values of small tensors (sizes, axes), wherever they lie.
        self.shapes, self.types = infer(self._with_inside(SMALL))
        self.functions = frozenset((plain(f.domain), f.name) for f in proto.functions)
        self._stored = {t.name: t for t in proto.graph.initializer}
        declared = {i.name for i in proto.graph.input}
        # From IR 4 on an initializer that is also an input is a default that the caller may override.
        self.overridable = frozenset(self._stored.keys() & declared) if proto.ir_version >= 4 else frozenset()
        self.inputs = tuple(i.name for i in proto.graph.input if i.name not in self._stored)
        self.outputs = tuple(o.name for o in proto.graph.output)
        self.nodes = tuple(nodes_of(proto))
        self._aliases: dict[str, str] = {}
        self._constants: dict[str, npt.NDArray[Any]] = {}
        self._views: dict[str, Node] = {}
        for node in self.nodes:
            if node.op == "Constant" and not node.domain and _constant_attribute(proto.graph.node[node.index]):
                self._aliases[node.outputs[0]] = node.outputs[0]
            elif node.op == "Identity" and not node.domain and self.root(node.inputs[0]):
                self._aliases[node.outputs[0]] = self.root(node.inputs[0])
            elif self._is_view(node):
                self._views[node.outputs[0]] = node
                self._aliases[node.outputs[0]] = node.outputs[0]
        self.producers = {name: node for node in self.nodes for name in node.outputs if name}
        self.consumers: dict[str, list[tuple[Node, int]]] = {}
        for node in self.nodes:
            for position, name in enumerate(node.inputs):
                self.consumers.setdefault(name, []).append((node, position))
        self.captured = frozenset[str]().union(*(n.captured for n in self.nodes))
        self._knowledge = Knowledge(proto, self.constant, self.shape, self.types, self.functions)
        self._look_again()

    def _look_again(self) -> None:
        """Tell inference what the network computes of sizes, as long as that leads to more."""
        facts: Facts = {}
        hints: Hints = {}
        for _ in range(ROUNDS):
            told = len(facts) + len(hints)
            facts = {**facts_of(self.proto, self._computed, self.shapes, self.types), **facts}
            hints = {**hints_of(self.proto, self.known, self.shapes, self.types), **hints}
            if len(facts) + len(hints) == told:
                return
            self.shapes, self.types = infer(self._with_inside(SMALL), facts, hints.values())
            self._knowledge = Knowledge(self.proto, self.constant, self.shape, self.types, self.functions)

    def _computed(self, name: str) -> Known | None:
        return None if self.root(name) else self.known(name)

    def _is_view(self, node: Node) -> bool:
        known = node.op in _VIEWS and not node.domain and self.types.get(node.outputs[0]) in _VIEWED
        if not known or not all(self.root(name) for name in node.inputs if name):
            return False
        return node.op != "Cast" or self._stored_type(self.root(node.inputs[0])) in _CAST_FROM

    def _stored_type(self, root: str) -> int | None:
        return self._stored[root].data_type if root in self._stored else self.types.get(root)

    def root(self, name: str) -> str:
        """The initializer, Constant output or view that a tensor is a copy of, or "" where it is computed.

        A view is a constant in another shape, order or float type (a transposed weight, a bias unsqueezed for its
        Add, a weight stored in half precision and cast for its reader).
        """
        if name in self._stored and name not in self.overridable:
            return name
        return self._aliases.get(name, "")

    def constant(self, name: str) -> npt.NDArray[Any] | None:
        """The value of a constant tensor, or None where it is computed, overridable or sparse.

        A view that is wider than what is stored has the stored type, so that its dtype tells how it was rounded;
        `dtype` tells what its readers get.
        """
        found = self._constants.get(name)
        if found is not None or not (root := self.root(name)):
            return found
        if root not in self._constants:
            self._constants[root] = self._read(root)
        return self._constants[root]

    def _read(self, root: str) -> npt.NDArray[Any]:
        if root in self._stored:
            return self.array(self._stored[root])
        if root not in self._views:
            return self._constant_node(root)
        view = self._views[root]
        found = (self.constant(name) for name in view.inputs if name)
        operands = [value for value in found if value is not None]
        first = operands[0]
        if view.op == "Cast" and self.dtype(root).itemsize >= first.itemsize:
            return first
        # ONNX Runtime takes no arrays of the types that numpy does not know; single precision holds these exactly.
        operands[0] = first.astype(np.float32) if first.dtype.kind == "V" else first
        moved = run_node(self.proto, self.proto.graph.node[view.index], operands)
        return moved if view.op == "Cast" else moved.astype(first.dtype, copy=False)

    def dtype(self, name: str) -> np.dtype[Any]:
        """The type in which the readers of a constant get it; of what is computed the type inferred, else float32."""
        root = self.root(name)
        kind = self._stored_type(root) if root else self.types.get(name)
        return onnx.helper.tensor_dtype_to_np_dtype(kind or onnx.TensorProto.FLOAT)

    def sources(self, root: str) -> tuple[str, ...]:
        """What a view is made of; nothing for what is stored."""
        return self._views[root].inputs if root in self._views else ()

    def _constant_node(self, root: str) -> npt.NDArray[Any]:
        return _constant_value(self.proto.graph.node[self.producers[root].index], self.array)

    def array(self, tensor: onnx.TensorProto) -> npt.NDArray[Any]:
        """The values of a stored tensor.

        Raises:
            ModelError: its external data is missing or broken.
        """
        return self.weights.array(tensor)

    @functools.cached_property
    def whole(self) -> onnx.ModelProto:
        """The network with all weights inside, read once; `proto` itself where they already are.

        Raises:
            ModelError: that is over protobuf's 2 GiB, or weights can't be read.
        """
        outside = list(external_tensors(self.proto))
        if not outside:
            return self.proto
        size = self.proto.ByteSize() + sum(byte_count(t) for t in outside)
        if size > PROTOBUF_LIMIT:
            text = f"has {size / 2**30:.1f} GiB; a network over 2 GiB can't be condensed (protobuf can't hold it whole)"
            raise ModelError("model-too-large", f"{self.weights.label}: {text}")
        return self._with_inside(size)

    def _with_inside(self, limit: int) -> onnx.ModelProto:
        """A copy with external tensors of up to so many bytes inside; `proto` itself where there are none."""
        if not any(byte_count(t) <= limit for t in external_tensors(self.proto)):
            return self.proto
        copy = onnx.ModelProto()
        copy.CopyFrom(self.proto)
        for tensor in external_tensors(copy):
            if byte_count(tensor) <= limit:
                self.weights.bring_in(tensor)
        return copy

    def shape(self, name: str) -> Shape | None:
        """The shape of a tensor: ints, names of symbolic sizes or None per axis; None where the rank is unknown."""
        root = self.root(name)
        if not root:
            return self.shapes.get(name)
        if root in self._stored:
            return tuple(self._stored[root].dims)
        if root in self._views and None not in self.shapes.get(name, (None,)):
            return self.shapes[name]
        value = self.constant(root)
        return None if value is None else tuple(value.shape)

    def known(self, name: str) -> Known | None:
        """What follows from constants of a small integer tensor of rank 0 or 1, even where it is computed.

        Returns:
            Per element a number, the axis whose size it is, or None; None if the number of elements is not known.
        """
        return self._knowledge.of(name)

    def pieces(self, name: str) -> Pieces:
        """Per element of a computed list the stored number that was moved there unchanged, to no other place in it.

        Returns:
            None where there is no such number; nothing for what is not a list of moved numbers, or too large.
        """
        return self._knowledge.pieces(name)

    def origins(self, name: str) -> IntArray | None:
        """Where the node that makes a tensor takes each element from: (operand, element of it) [elements, 2].

        Returns:
            None where the node does not only move elements.
        """
        return self._knowledge.origins(name)

    def traces(self, name: str) -> bool:
        """Whether every element of a computed tensor is known, or known to be moved from another tensor."""
        return self._knowledge.traces(name)


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
    if path.stat().st_size > PROTOBUF_LIMIT:
        raise ModelError("model-too-large", f"{path} {TOO_LARGE}")
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
    source = Source(path.parent if path else Path(), label)
    for tensor in external_tensors(proto):
        source.check(tensor)
    usual = canonical(proto, label)
    try:
        onnx.checker.check_model(str(path) if path and usual is proto else _without_outside(usual))
    except onnx.checker.ValidationError as error:
        text = " ".join(str(error).split())[:300]
        if op := written_by_onnxruntime(proto):
            text = f"it was optimized by ONNX Runtime: condense first, optimize after ({op} is not in its opset)"
        raise ModelError("model-invalid", f"{label}: not a valid ONNX network: {text}") from error
    except EncodeError as error:
        raise ModelError("model-too-large", f"{label} {TOO_LARGE}") from error
    return Network(usual, path, proto)


def _without_outside(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy for the checker that needs no files: external tensors are empty; or `proto` itself."""
    if not any(external_tensors(proto)):
        return proto
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for tensor in external_tensors(copy):
        tensor.CopyFrom(onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=[0]))
    return copy


def inlined(network: Network) -> onnx.ModelProto:
    """The network with all weights inside, not to be changed; see `Network.whole`."""
    return network.whole


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
    try:
        data = proto.SerializeToString(deterministic=True)
    except EncodeError as error:
        raise ModelError("model-too-large", f"the network {TOO_LARGE}") from error
    if len(data) > PROTOBUF_LIMIT:
        raise ModelError("model-too-large", f"the network {TOO_LARGE}")
    return data
