"""The plan applied to a network: the only stage that changes a graph.

Works on a copy of the ModelProto and touches nothing but what the plan changes: weights and carried constants
are sliced, readers get their new columns, offsets go into biases, value_info follows. Same input, same bytes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from onnx_condense.errors import DefectError
from onnx_condense.model import Network, Node, inlined, replace_tensor
from onnx_condense.plan import ChannelView, ConstantUse, FloatArray, IntArray, LinearUse, Operand, Plan

Array = npt.NDArray[Any]


@dataclasses.dataclass
class _Draft:
    """What is to change, collected before the copy is touched."""

    network: Network
    gone: frozenset[int]
    values: dict[Operand, Array] = dataclasses.field(default_factory=dict)
    new_bias: dict[int, Array] = dataclasses.field(default_factory=dict)
    add_after: dict[int, Array] = dataclasses.field(default_factory=dict)
    reset_beta: set[int] = dataclasses.field(default_factory=set)

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
    draft = _Draft(network, plan.dropped(view.spaces))
    updates = {u.use: u for u in plan.updates}
    for i, use in enumerate(view.linear):
        _draft_weight(draft, use, updates[i].weight if i in updates else None)
    for constant in view.constants:
        _draft_constant(draft, constant)
    for i, update in sorted(updates.items()):
        rows = view.linear[i].rows
        offset = update.offset[~_going(rows, draft.gone)] if rows.size else update.offset
        if offset.any():
            _draft_offset(draft, view.linear[i], offset)
    proto = onnx.ModelProto()
    proto.CopyFrom(inlined(network))
    _write_constants(draft, proto)
    _insert_biases(draft, proto)
    _patch_shapes(draft, view, proto)
    return proto


def _going(labels: IntArray, gone: frozenset[int]) -> npt.NDArray[np.bool_]:
    return np.isin(labels, np.fromiter(gone, np.int64, len(gone)))


def kept_positions(labels: IntArray, axis: int, gone: frozenset[int]) -> IntArray:
    """Positions along an axis that stay, for labels whose channels go as whole slices.

    Raises:
        DefectError: a slice is only partly gone.
    """
    slices = _going(np.moveaxis(labels, axis, 0).reshape(labels.shape[axis], -1), gone)
    if (slices.any(axis=1) != slices.all(axis=1)).any():
        raise DefectError("partial-slice", "channels that go do not form whole slices of a tensor")
    return np.flatnonzero(~slices.any(axis=1))


def _draft_weight(draft: _Draft, use: LinearUse, updated: FloatArray | None) -> None:
    stored = draft.current(use.weight)
    keep_in = np.flatnonzero(~_going(use.columns, draft.gone))
    keep_out = np.flatnonzero(~_going(use.rows, draft.gone))
    if updated is None and len(keep_in) == use.columns.size and len(keep_out) == use.rows.size:
        return
    value = stored
    if updated is not None:
        wide = updated[0] if use.out_axis is None else (updated if use.in_axis == 1 else updated.T)
        value = wide.astype(stored.dtype)
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


def _draft_offset(draft: _Draft, use: LinearUse, offset: FloatArray) -> None:
    """Put an offset [rows kept] into the bias that follows the reader; make one where there is none."""
    node = draft.network.nodes[use.weight.node]
    rank = len(draft.network.shape(node.outputs[0]) or ())
    trailing = 0 if use.result_axis is None else rank - 1 - use.result_axis
    shaped = offset.reshape((-1, *(1,) * trailing)) if use.result_axis is not None else offset.reshape(())
    if node.op == "Gemm" and _gemm_bias(draft, node, shaped):
        return
    follower = _following_add(draft.network, node)
    if follower is not None:
        bias = draft.current(follower)
        draft.values[follower] = (bias.astype(np.float64) + shaped).astype(bias.dtype)
        return
    draft.add_after[node.index] = shaped.astype(draft.current(use.weight).dtype)


def _gemm_bias(draft: _Draft, node: Node, offset: FloatArray) -> bool:
    """Add an offset to Gemm's C; False where C is computed."""
    beta = float(node.attributes.get("beta", 1.0))
    name = node.inputs[2] if len(node.inputs) > 2 else ""
    operand = Operand(node.index, 2)
    if not name or beta == 0.0:
        dtype = next(v for p in (0, 1) if (v := draft.network.constant(node.inputs[p])) is not None).dtype
        draft.new_bias[node.index] = offset.astype(dtype)
        draft.reset_beta.add(node.index)
        return True
    if draft.network.constant(name) is None:
        return False
    bias = draft.current(operand)
    draft.values[operand] = (bias.astype(np.float64) + offset / beta).astype(bias.dtype)
    return True


def _following_add(network: Network, node: Node) -> Operand | None:
    """The constant operand of an Add that is the only one to read the node's result."""
    result = node.outputs[0]
    consumers = network.consumers.get(result, [])
    if len(consumers) != 1 or result in network.outputs or result in network.captured:
        return None
    after, position = consumers[0]
    if after.op != "Add" or after.domain or network.constant(after.inputs[1 - position]) is None:
        return None
    return Operand(after.index, 1 - position)


def _write_constants(draft: _Draft, proto: onnx.ModelProto) -> None:
    """Replace constants in place where all their uses agree, clone them where they do not."""
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
    names = _Names(proto)
    for root, operands in by_root.items():
        direct = [o for o in operands if network.nodes[o.node].inputs[o.position] == root]
        free = len(direct) == len(uses[root]) and root not in network.outputs and root not in network.captured
        _write_versions(draft, proto, names, root, sorted(operands, key=lambda o: (o.node, o.position)), free)
    _drop_unused(network, proto, by_root)


class _Names:
    """Fresh tensor names."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        graph = proto.graph
        self._taken = {t.name for t in graph.initializer} | {i.name for i in graph.input}
        self._taken |= {name for node in graph.node for name in (*node.input, *node.output)}

    def fresh(self, wish: str) -> str:
        name, count = wish, 1
        while name in self._taken:
            count += 1
            name = f"{wish}_{count}"
        self._taken.add(name)
        return name


def _write_versions(
    draft: _Draft, proto: onnx.ModelProto, names: _Names, root: str, operands: Iterable[Operand], free: bool
) -> None:
    """Store each distinct value once; the first takes the original's place if nothing else needs that."""
    stored: dict[tuple[tuple[int, ...], bytes], str] = {}
    for operand in operands:
        value = draft.values[operand]
        key = (value.shape, value.tobytes())
        if key not in stored:
            if free and not stored:
                _replace(draft.network, proto, root, value)
                stored[key] = root
            else:
                stored[key] = _add_initializer(proto, names.fresh(f"{root}_condensed"), value)
        proto.graph.node[operand.node].input[operand.position] = stored[key]


def _replace(network: Network, proto: onnx.ModelProto, root: str, value: Array) -> None:
    for tensor in proto.graph.initializer:
        if tensor.name == root:
            replace_tensor(tensor, value)
            for declared in (*proto.graph.input, *proto.graph.value_info):
                if declared.name == root:
                    _set_shape(declared, dict(enumerate(value.shape)))
            return
    node = proto.graph.node[network.producers[root].index]
    old = next(a for a in node.attribute if a.name.startswith("value"))
    name = old.t.name if old.name == "value" else ""
    fresh = onnx.helper.make_attribute("value", numpy_helper.from_array(np.ascontiguousarray(value), name))
    old.CopyFrom(fresh)


def _add_initializer(proto: onnx.ModelProto, name: str, value: Array) -> str:
    tensor = numpy_helper.from_array(np.ascontiguousarray(value), name)
    proto.graph.initializer.append(tensor)
    if proto.ir_version < 4:
        # Before IR 4 every initializer is declared as an input too.
        info = onnx.helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims))
        proto.graph.input.append(info)
    return name


def _drop_unused(network: Network, proto: onnx.ModelProto, roots: Iterable[str]) -> None:
    """Remove constants (and copies of them) that the edits left without a reader."""
    candidates = set(roots) | {n.outputs[0] for n in network.nodes if n.outputs and network.root(n.outputs[0]) in roots}
    while True:
        used = {name for node in proto.graph.node for name in node.input} | set(network.outputs) | network.captured
        dead = [n for n in proto.graph.node if len(n.output) == 1 and n.output[0] in candidates - used]
        if not dead:
            break
        for node in dead:
            proto.graph.node.remove(node)
    for field in (proto.graph.initializer, proto.graph.input, proto.graph.value_info):
        for entry in [e for e in field if e.name in candidates - used]:
            field.remove(entry)


def _insert_biases(draft: _Draft, proto: onnx.ModelProto) -> None:
    """Gemm without C gets one; other readers get an Add behind them that takes over their output name."""
    names = _Names(proto)
    by_output = {node.output[0]: (i, node) for i, node in enumerate(proto.graph.node) if node.output}
    for index, value in sorted(draft.new_bias.items()):
        _, node = by_output[draft.network.nodes[index].outputs[0]]
        name = _add_initializer(proto, names.fresh(f"{node.output[0]}_bias"), value)
        node.input[:] = [*node.input[:2], name]
        if index in draft.reset_beta:
            for attribute in [a for a in node.attribute if a.name == "beta"]:
                node.attribute.remove(attribute)
    for index, value in sorted(draft.add_after.items(), reverse=True):
        at, node = by_output[draft.network.nodes[index].outputs[0]]
        result = node.output[0]
        node.output[0] = names.fresh(f"{result}_before_bias")
        bias = _add_initializer(proto, names.fresh(f"{result}_bias"), value)
        add = onnx.helper.make_node("Add", [node.output[0], bias], [result], name=f"{node.name}_bias")
        proto.graph.node.insert(at + 1, add)


def _patch_shapes(draft: _Draft, view: ChannelView, proto: onnx.ModelProto) -> None:
    """Let value_info follow the new widths."""
    for info in proto.graph.value_info:
        labels = view.labels.get(info.name)
        if labels is None or not _going(labels, draft.gone).any():
            continue
        axes = [axis for axis, n in enumerate(labels.shape) if n > 1]
        _set_shape(info, {axis: len(kept_positions(labels, axis, draft.gone)) for axis in axes})


def _set_shape(info: onnx.ValueInfoProto, sizes: Mapping[int, int]) -> None:
    dims = info.type.tensor_type.shape.dim
    for axis, size in sizes.items():
        if axis < len(dims) and dims[axis].HasField("dim_value"):
            dims[axis].dim_value = size
