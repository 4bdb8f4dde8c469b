"""The plan applied to a network: the only stage that changes a graph.

Works on a copy of the ModelProto and touches nothing but what the plan changes: weights and carried constants
are sliced, readers get their new columns, offsets go into biases, value_info follows. Same input, same bytes.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from onnx_condense import ops
from onnx_condense.errors import DefectError
from onnx_condense.model import Network, Node, inlined, replace_tensor
from onnx_condense.plan import ChannelView, ConstantUse, FloatArray, IntArray, LinearUse, Operand, Plan, SizeUse

Array = npt.NDArray[Any]


@dataclasses.dataclass
class _Draft:
    """What is to change, collected before the copy is touched."""

    network: Network
    gone: npt.NDArray[np.bool_]
    values: dict[Operand, Array] = dataclasses.field(default_factory=dict)
    new_bias: dict[int, Array] = dataclasses.field(default_factory=dict)
    add_after: dict[int, Array] = dataclasses.field(default_factory=dict)

    def current(self, operand: Operand) -> Array:
        """The constant at an operand as it will be."""
        if operand in self.values:
            return self.values[operand]
        value = self.network.constant(self.network.nodes[operand.node].inputs[operand.position])
        assert value is not None
        return value


def apply_plan(network: Network, view: ChannelView, plan: Plan) -> onnx.ModelProto:
    """A new network in which only the channels that the plan keeps are left.

    Raises:
        DefectError: channels that go do not form whole slices of some constant (a defect of the analysis).
    """
    draft = _Draft(network, _mask(view, plan))
    updates = {u.use: u for u in plan.updates}
    for i, use in enumerate(view.linear):
        _draft_weight(draft, use, updates[i].weight if i in updates else None)
    for constant in view.constants:
        _draft_constant(draft, constant)
    for size in view.sizes:
        _draft_size(draft, size)
    for i, update in sorted(updates.items()):
        rows = view.linear[i].rows
        offset = update.offset[~draft.gone[rows]] if rows.size else update.offset
        if offset.any():
            _draft_offset(draft, view.linear[i], offset)
    proto = onnx.ModelProto()
    proto.CopyFrom(inlined(network))
    roots = _write_constants(draft, proto) | _insert_biases(draft, proto)
    _drop_unused(network, proto, roots)
    _patch_shapes(draft, view, proto)
    return proto


def _mask(view: ChannelView, plan: Plan) -> npt.NDArray[np.bool_]:
    """Whether the channel of each label goes [label]."""
    labels = [s.channels for s in view.spaces] + [u.columns for u in view.linear]
    mask = np.zeros(max((int(a.max(initial=0)) for a in labels), default=0) + 1, np.bool_)
    mask[sorted(plan.dropped(view.spaces))] = True
    return mask


def kept_positions(labels: IntArray, axis: int, gone: npt.NDArray[np.bool_]) -> IntArray:
    """Positions along an axis that stay, for labels whose channels go as whole slices.

    Raises:
        DefectError: a slice is only partly gone.
    """
    slices = gone[np.moveaxis(labels, axis, 0).reshape(labels.shape[axis], -1)]
    if (slices.any(axis=1) != slices.all(axis=1)).any():
        raise DefectError("partial-slice", "channels that go do not form whole slices of a tensor")
    return np.flatnonzero(~slices.any(axis=1))


def _draft_weight(draft: _Draft, use: LinearUse, updated: FloatArray | None) -> None:
    stored = draft.current(use.weight)
    keep_in = np.flatnonzero(~draft.gone[use.columns])
    keep_out = np.flatnonzero(~draft.gone[use.rows])
    if updated is None and len(keep_in) == use.columns.size and len(keep_out) == use.rows.size:
        return
    value = stored
    if updated is not None:
        value = use.as_stored(updated, stored).astype(stored.dtype)
    value = value.take(keep_in, axis=use.in_axis)
    if use.out_axis is not None:
        value = value.take(keep_out, axis=use.out_axis)
    draft.values[use.weight] = value


def _draft_constant(draft: _Draft, constant: ConstantUse) -> None:
    value = draft.current(constant.operand)
    changed = False
    for axis, extent in enumerate(constant.labels.shape):
        if extent == 1:
            continue
        keep = kept_positions(constant.labels, axis, draft.gone)
        if len(keep) < extent:
            value, changed = value.take(keep, axis=axis), True
    if changed:
        draft.values[constant.operand] = value


def _draft_size(draft: _Draft, size: SizeUse) -> None:
    kept = int((~draft.gone[size.labels]).sum())
    if kept < len(size.labels):
        value = draft.current(size.operand).copy()
        value.reshape(-1)[size.index] = kept
        draft.values[size.operand] = value


def _draft_offset(draft: _Draft, use: LinearUse, offset: FloatArray) -> None:
    """Put an offset [rows kept] into the bias that follows the reader; make one where there is none."""
    node = draft.network.nodes[use.weight.node]
    rank = len(draft.network.shape(node.outputs[0]) or ())
    trailing = 0 if use.result_axis is None else rank - 1 - use.result_axis
    shaped = offset.reshape((-1, *(1,) * trailing)) if use.result_axis is not None else offset.reshape(())
    rule = ops.find(node.domain, node.op, node.opset)
    if _own_bias(draft, node, offset if rule is not None and rule.flat_bias else shaped):
        return
    if _following_bias(draft, use, node, shaped):
        return
    draft.add_after[node.index] = shaped.astype(draft.current(use.weight).dtype)


def _own_bias(draft: _Draft, node: Node, offset: FloatArray) -> bool:
    """Add an offset to the op's own bias (Gemm's C); False where it has none or computes it."""
    rule = ops.find(node.domain, node.op, node.opset)
    position = None if rule is None else rule.bias
    if position is None:
        return False
    beta = float(node.attributes.get("beta", 1.0))
    name = node.inputs[position] if len(node.inputs) > position else ""
    if not name or beta == 0.0:
        dtype = next(v for n in node.inputs[:position] if (v := draft.network.constant(n)) is not None).dtype
        draft.new_bias[node.index] = offset.astype(dtype)
        return True
    if draft.network.constant(name) is None:
        return False
    operand = Operand(node.index, position)
    bias = draft.current(operand)
    draft.values[operand] = (bias.astype(np.float64) + offset / beta).astype(bias.dtype)
    return True


def _following_bias(draft: _Draft, use: LinearUse, node: Node, offset: FloatArray) -> bool:
    """Add an offset to a constant of the only node that reads the result (an Add, a normalisation), if it can be."""
    network, result = draft.network, node.outputs[0]
    consumers = network.consumers.get(result, [])
    if len(consumers) != 1 or result in network.outputs or result in network.captured:
        return False
    after, position = consumers[0]
    rule = ops.find(after.domain, after.op, after.opset)
    if rule is None:
        return False
    factor = 1.0
    if rule.law is ops.Law.ADD:
        operand = Operand(after.index, 1 - position)
    elif rule.absorbs is not None and position == 0 and use.result_axis == 1:
        at, factor = rule.absorbs
        operand, offset = Operand(after.index, at), offset.reshape(-1)
    else:
        return False
    if network.constant(after.inputs[operand.position]) is None:
        return False
    bias = draft.current(operand)
    draft.values[operand] = (bias.astype(np.float64) + factor * offset).astype(bias.dtype)
    return True


def _write_constants(draft: _Draft, proto: onnx.ModelProto) -> set[str]:
    """Replace constants in place where all their uses agree, clone them where they do not; which were touched."""
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
    store = _Store(network, proto)
    for root, operands in by_root.items():
        direct = [o for o in operands if network.nodes[o.node].inputs[o.position] == root]
        free = len(direct) == len(uses[root]) and root not in network.outputs and root not in network.captured
        _write_versions(draft, store, root, sorted(operands, key=lambda o: (o.node, o.position)), free)
    return set(by_root)


class _Names:
    """Fresh names; nodes and tensors share one supply, since ONNX Runtime wants node names to be unique too."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        graph = proto.graph
        self._taken = {t.name for t in graph.initializer} | {i.name for i in graph.input}
        self._taken |= {v.name for v in graph.value_info} | {s.values.name for s in graph.sparse_initializer}
        self._add(graph)

    def _add(self, graph: onnx.GraphProto) -> None:
        """Bodies may not define a name that is known outside."""
        for node in graph.node:
            self._taken.update((*node.input, *node.output, node.name))
            for attribute in node.attribute:
                for body in (attribute.g, *attribute.graphs):
                    self._taken |= {v.name for v in body.input} | {t.name for t in body.initializer}
                    self._add(body)

    def fresh(self, wish: str) -> str:
        name, count = wish, 1
        while name in self._taken:
            count += 1
            name = f"{wish}_{count}"
        self._taken.add(name)
        return name


class _Store:
    """The stored tensors of the copy, by name."""

    def __init__(self, network: Network, proto: onnx.ModelProto) -> None:
        self.proto = proto
        self._network = network
        self._names = _Names(proto)
        self._tensors = {t.name: t for t in proto.graph.initializer}
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
        if root in self._declared:
            # A scalar bias that takes over an offset becomes a vector.
            shape = self._declared[root].type.tensor_type.shape
            if len(shape.dim) != value.ndim:
                del shape.dim[:]
                for size in value.shape:
                    shape.dim.add(dim_value=size)
            _set_shape(self._declared[root], dict(enumerate(value.shape)))


def _write_versions(draft: _Draft, store: _Store, root: str, operands: Iterable[Operand], free: bool) -> None:
    """Store each distinct value once; the first takes the original's place if nothing else needs that."""
    stored: dict[tuple[tuple[int, ...], bytes], str] = {}
    for operand in operands:
        value = draft.values[operand]
        key = (value.shape, value.tobytes())
        if key not in stored:
            if free and not stored:
                store.replace(root, value)
                stored[key] = root
            else:
                stored[key] = store.add(f"{root}_condensed", value)
        store.proto.graph.node[operand.node].input[operand.position] = stored[key]


def _drop_unused(network: Network, proto: onnx.ModelProto, roots: Iterable[str]) -> None:
    """Remove constants (and copies of them) that the edits left without a reader."""
    candidates = set(roots) | {n.outputs[0] for n in network.nodes if n.outputs and network.root(n.outputs[0]) in roots}
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


def _insert_biases(draft: _Draft, proto: onnx.ModelProto) -> set[str]:
    """Gemm without C gets one; other readers get an Add behind them that takes over their output name.

    Returns:
        Names of constants that lost a reader.
    """
    left = set()
    store = _Store(draft.network, proto)
    by_output = {node.output[0]: i for i, node in enumerate(proto.graph.node) if node.output}
    for index, value in sorted(draft.new_bias.items()):
        node = proto.graph.node[by_output[draft.network.nodes[index].outputs[0]]]
        left |= {root for name in node.input[2:] if (root := draft.network.root(name))}
        node.input[:] = [*node.input[:2], store.add(f"{node.output[0]}_bias", value)]
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


def _patch_shapes(draft: _Draft, view: ChannelView, proto: onnx.ModelProto) -> None:
    """Let value_info follow the new widths."""
    for info in proto.graph.value_info:
        labels = view.labels.get(info.name)
        if labels is None or not draft.gone[labels].any():
            continue
        axes = [axis for axis, n in enumerate(labels.shape) if n > 1]
        _set_shape(info, {axis: len(kept_positions(labels, axis, draft.gone)) for axis in axes})


def _set_shape(info: onnx.ValueInfoProto, sizes: Mapping[int, int]) -> None:
    dims = info.type.tensor_type.shape.dim
    for axis, size in sizes.items():
        if axis < len(dims) and dims[axis].HasField("dim_value"):
            dims[axis].dim_value = size
