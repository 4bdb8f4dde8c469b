"""The edits of the copy: constants in place or cloned, biases put in, what lost its readers taken out."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from onnx_condense.network.model import Network, replace_tensor
from onnx_condense.network.names import Names
from onnx_condense.plan import Operand
from onnx_condense.rewrite.draft import Array, Draft


def write_constants(draft: Draft, proto: onnx.ModelProto) -> tuple[set[str], list[onnx.NodeProto]]:
    """Replace constants in place where all their uses agree, clone them where they do not.

    Returns:
        Which were touched, and casts of new ones that are to be put in front of all nodes in the end.
    """
    network = draft.network
    uses: dict[str, list[Operand]] = {}
    for node in network.nodes:
        for position, name in enumerate(node.inputs):
            if name and network.root(name):
                uses.setdefault(network.root(name), []).append(Operand(node.index, position))
    by_root: dict[str, list[Operand]] = {}
    for operand in draft.values:
        name = network.nodes[operand.node].inputs[operand.position]
        by_root.setdefault(network.root(name), []).append(operand)
    store = Store(network, proto)
    for root, operands in by_root.items():
        place = _place(network, uses, root, operands)
        _write_versions(draft, store, root, sorted(operands, key=lambda o: (o.node, o.position)), place)
    return set(by_root), store.casts


def _place(network: Network, uses: Mapping[str, Sequence[Operand]], root: str, operands: Sequence[Operand]) -> str:
    """The stored constant to replace so that all of these operands and nobody else get something new; or ""."""
    if len(uses[root]) != len(operands) or root in network.outputs or root in network.captured:
        return ""
    if any(network.nodes[o.node].inputs[o.position] != root for o in operands):
        return ""
    if not network.sources(root):
        return root
    # A view is no place to store anything, but what it casts to a wider type is.
    view, source = network.producers[root], network.sources(root)[0]
    wider = view.op == "Cast" and network.dtype(source).itemsize <= network.dtype(root).itemsize
    if not wider or network.root(source) != source or network.sources(source):
        return ""
    return _place(network, uses, source, [Operand(view.index, 0)])


class Store:
    """The stored tensors of the copy, by name."""

    def __init__(self, network: Network, proto: onnx.ModelProto) -> None:
        self.proto = proto
        self._network = network
        self._names = Names(proto)
        self._tensors = {t.name: t for t in proto.graph.initializer}
        self.casts: list[onnx.NodeProto] = []
        self._declared = {v.name: v for v in proto.graph.value_info}
        self._declared |= {v.name: v for v in proto.graph.input}

    def add(self, wish: str, value: Array) -> str:
        """A new initializer under a free name."""
        name = self._names.fresh(wish)
        tensor = numpy_helper.from_array(value, name)
        self.proto.graph.initializer.append(tensor)
        if self.proto.ir_version < 4:
            # Before IR 4 every initializer is declared as an input too.
            info = onnx.helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims))
            self.proto.graph.input.append(info)
        return name

    def add_as(self, wish: str, value: Array, dtype: np.dtype[Any]) -> str:
        """A new constant for readers that want a type: stored as it comes if that is narrower, and cast for them."""
        if value.dtype.itemsize >= dtype.itemsize:
            return self.add(wish, value.astype(dtype, copy=False))
        stored = self.add(f"{wish}_stored", value)
        kind = onnx.helper.np_dtype_to_tensor_dtype(dtype)
        self.casts.append(onnx.helper.make_node("Cast", [stored], [self.fresh(wish)], to=kind))
        return self.casts[-1].output[0]

    def fresh(self, wish: str) -> str:
        """A free name."""
        return self._names.fresh(wish)

    def replace(self, root: str, value: Array) -> None:
        """New values for an initializer or a Constant node."""
        if root in self._tensors:
            replace_tensor(self._tensors[root], value)
        else:
            node = self.proto.graph.node[self._network.producers[root].index]
            old = next(a for a in node.attribute if a.name.startswith("value"))
            old.CopyFrom(onnx.helper.make_attribute("value", numpy_helper.from_array(value, old.t.name)))
        self.declare(root, value.shape)

    def declare(self, name: str, sizes: Sequence[int]) -> None:
        """Let the declaration of a constant follow, if it has one."""
        if name in self._declared:
            # A scalar bias that takes over an offset becomes a vector.
            shape = self._declared[name].type.tensor_type.shape
            if len(shape.dim) != len(sizes):
                del shape.dim[:]
                for size in sizes:
                    shape.dim.add(dim_value=size)
            set_shape(self._declared[name], dict(enumerate(sizes)))


def _write_versions(draft: Draft, store: Store, root: str, operands: Iterable[Operand], place: str) -> None:
    """Store each distinct value once; the first takes the original's place if there is one that nothing else needs."""
    stored: dict[tuple[tuple[int, ...], bytes], str] = {}
    for operand in operands:
        value = draft.values[operand]
        key = (value.shape, value.tobytes())
        if key not in stored:
            if place and not stored:
                store.replace(place, value)
                store.declare(root, value.shape)
                stored[key] = root
            else:
                stored[key] = store.add_as(f"{root}_condensed", value, draft.network.dtype(root))
        store.proto.graph.node[operand.node].input[operand.position] = stored[key]


def write_attributes(draft: Draft, proto: onnx.ModelProto) -> None:
    """Attributes that count channels, and lists of sizes that a node had no need for so far."""
    store = Store(draft.network, proto)
    nodes = proto.graph.node
    for attribute in draft.without:
        node = nodes[attribute.node]
        node.attribute.remove(next(a for a in node.attribute if a.name == attribute.name))
    for attribute, value in draft.attributes.items():
        node = nodes[attribute.node]
        for old in [a for a in node.attribute if a.name == attribute.name]:
            node.attribute.remove(old)
        node.attribute.append(onnx.helper.make_attribute(attribute.name, value))
    for operand, sizes in sorted(draft.new_operands.items(), key=lambda item: item[0].node):
        node = nodes[operand.node]
        while len(node.input) <= operand.position:
            node.input.append("")
        node.input[operand.position] = store.add(f"{node.output[0]}_sizes", sizes)


def drop_unused(network: Network, proto: onnx.ModelProto, roots: Iterable[str]) -> None:
    """Remove constants (and copies of them) that the edits left without a reader."""
    roots = _with_sources(network, roots)
    candidates = roots | {n.outputs[0] for n in network.nodes if n.outputs and network.root(n.outputs[0]) in roots}
    outside = {*network.outputs, *network.captured}
    readers = collections.Counter(name for node in proto.graph.node for name in node.input)
    dead = []
    for at in range(len(proto.graph.node) - 1, -1, -1):
        node = proto.graph.node[at]
        if len(node.output) == 1 and (name := node.output[0]) in candidates - outside and not readers[name]:
            readers.subtract(node.input)
            dead.append(at)
    for at in dead:
        del proto.graph.node[at]
    gone = {name for name in candidates - outside if not readers[name]}
    graph = proto.graph
    for at in [i for i, t in enumerate(graph.initializer) if t.name in gone][::-1]:
        del graph.initializer[at]
    for declared in (graph.input, graph.value_info):
        for at in [i for i, v in enumerate(declared) if v.name in gone][::-1]:
            del declared[at]


def _with_sources(network: Network, roots: Iterable[str]) -> set[str]:
    """Constants, and what views among them are made of."""
    found, waiting = set[str](), list(roots)
    while waiting:
        root = network.root(waiting.pop())
        if root and root not in found:
            found.add(root)
            waiting += network.sources(root)
    return found


def insert_biases(draft: Draft, proto: onnx.ModelProto) -> set[str]:
    """Ops without their bias get one; other readers get an Add behind them that takes over their output name.

    Returns:
        Names of constants that lost a reader.
    """
    left = set()
    store = Store(draft.network, proto)
    by_output = {name: i for i, node in enumerate(proto.graph.node) for name in node.output if name}
    for operand, value in sorted(draft.new_bias.items(), key=lambda item: item[0].node):
        result, at = draft.network.nodes[operand.node].result, operand.position
        node = proto.graph.node[by_output[result]]
        node.input.extend([""] * (at + 1 - len(node.input)))
        left |= {root} if (root := draft.network.root(node.input[at])) else set()
        node.input[at] = store.add(f"{result}_bias", value)
        for attribute in [a for a in node.attribute if a.name == "beta"]:
            node.attribute.remove(attribute)
    # Last node first, so that the places of the others stay.
    for index, value in sorted(draft.add_after.items(), reverse=True):
        at = by_output[draft.network.nodes[index].outputs[0]]
        node = proto.graph.node[at]
        result = node.output[0]
        node.output[0] = store.fresh(f"{result}_before_bias")
        inputs = [node.output[0], store.add(f"{result}_bias", value)]
        name = store.fresh(f"{node.name}_bias") if node.name else ""
        proto.graph.node.insert(at + 1, onnx.helper.make_node("Add", inputs, [result], name=name))
    return left


def set_shape(info: onnx.ValueInfoProto, sizes: Mapping[int, int]) -> None:
    """New sizes by axis, where the declaration has numbers."""
    dims = info.type.tensor_type.shape.dim
    for axis, size in sizes.items():
        if axis < len(dims) and dims[axis].HasField("dim_value"):
            dims[axis].dim_value = size
