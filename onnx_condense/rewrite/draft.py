"""What is to change, collected from the plan before the copy is touched."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnx_condense import ops
from onnx_condense.errors import DefectError
from onnx_condense.network.model import Network, Node
from onnx_condense.plan import (
    Attribute,
    ConstantUse,
    FloatArray,
    IndexUse,
    IntArray,
    LinearUse,
    Operand,
    Rotation,
    SizeUse,
    SplitUse,
)

Array = npt.NDArray[Any]


@dataclasses.dataclass
class Draft:
    """What is to change, collected before the copy is touched."""

    network: Network
    gone: npt.NDArray[np.bool_]
    # By each channel of a space whose channels are mixed.
    rotations: Mapping[int, Rotation] = dataclasses.field(default_factory=dict)
    values: dict[Operand, Array] = dataclasses.field(default_factory=dict)
    new_bias: dict[Operand, Array] = dataclasses.field(default_factory=dict)
    add_after: dict[int, Array] = dataclasses.field(default_factory=dict)
    attributes: dict[Attribute, int | list[int]] = dataclasses.field(default_factory=dict)
    # Lists of numbers that a node does not have yet or computes, and attributes that it has to lose.
    new_operands: dict[Operand, Array] = dataclasses.field(default_factory=dict)
    # Positions in a computed list, and the numbers that come there.
    lists: dict[Operand, dict[int, int]] = dataclasses.field(default_factory=dict)
    without: set[Attribute] = dataclasses.field(default_factory=set)

    def current(self, operand: Operand) -> Array:
        """The constant at an operand as it will be."""
        if operand in self.values:
            return self.values[operand]
        value = self.network.constant(self.network.nodes[operand.node].inputs[operand.position])
        assert value is not None
        return value

    def rotation(self, labels: IntArray) -> Rotation | None:
        """How the channels along an axis are mixed, if they are; it is all of a space or nothing."""
        return self.rotations.get(int(labels.flat[0])) if labels.size else None


def kept_positions(labels: IntArray, axis: int, gone: npt.NDArray[np.bool_]) -> IntArray:
    """Positions along an axis that stay, for labels whose channels go as whole slices.

    Raises:
        DefectError: a slice is only partly gone.
    """
    slices = gone[np.moveaxis(labels, axis, 0).reshape(labels.shape[axis], -1)]
    if (slices.any(axis=1) != slices.all(axis=1)).any():
        raise DefectError("partial-slice", "channels that go do not form whole slices of a tensor")
    return np.flatnonzero(~slices.any(axis=1))


def draft_weight(draft: Draft, use: LinearUse, updated: FloatArray | None) -> None:
    """Rows and columns of a weight go with their channels, or are mixed; a reader gets its new columns."""
    stored = draft.current(use.weight)
    # The columns of every group are the same ones: they are stored once.
    keep_in = np.flatnonzero(~draft.gone[use.columns[: len(use.columns) // use.groups]])
    cut = draft.gone[use.rows].any()
    if updated is None and len(keep_in) == use.columns.size // use.groups and not cut:
        return
    value = stored
    mixed_in = draft.rotation(use.columns)
    if mixed_in is not None:
        updated = _mixed_columns(use, updated, mixed_in)
    if updated is not None:
        value = use.as_stored(updated, stored)
    value = value.take(keep_in, axis=use.in_axis)
    mixed_out = draft.rotation(use.rows)
    if mixed_out is not None:
        (axis,) = use.row_axes
        value = mixed_along(value, axis, mixed_out.into)
    elif cut:
        *_, last = use.row_axes
        rows = use.rows.reshape([stored.shape[axis] for axis in use.row_axes])
        value = value.take(kept_positions(rows, rows.ndim - 1, draft.gone), axis=last)
    draft.values[use.weight] = value.astype(stored.dtype)


def _mixed_columns(use: LinearUse, updated: FloatArray | None, rotation: Rotation) -> FloatArray:
    """Columns [O, K T] for mixed channels, in the places of the first of them; the other places are to go."""
    if updated is None:
        raise DefectError("unread-rotation", "channels are mixed, but one of their readers gets no new columns")
    channels, first = np.unique(use.columns, return_index=True)
    channels = channels[np.argsort(first)]
    # A channel may own several places (behind a Flatten): the j-th of each belong together.
    own = np.stack([np.flatnonzero(use.columns == c) for c in channels])
    cells = updated.reshape(len(updated), len(use.columns), use.taps)
    result = np.zeros_like(cells)
    result[:, own[: len(rotation.into)]] = np.einsum("ocjt,ck->okjt", cells[:, own], rotation.out, optimize=True)
    return result.reshape(updated.shape)


def mixed_along(value: Array, axis: int, matrix: FloatArray) -> FloatArray:
    """The slices along an axis, mixed: the k-th is sum_c matrix[k, c] times the c-th."""
    return np.moveaxis(np.tensordot(matrix, value.astype(np.float64), (1, axis)), 0, axis)


def draft_constant(draft: Draft, constant: ConstantUse) -> None:
    """Carried constants are sliced along, or mixed."""
    value = stored = draft.current(constant.operand)
    rotation = draft.rotation(constant.labels)
    changed = False
    for axis, extent in enumerate(constant.labels.shape):
        if extent == 1:
            continue
        keep = kept_positions(constant.labels, axis, draft.gone)
        if rotation is not None:
            value, changed = mixed_along(value, axis, rotation.into), True
        elif len(keep) < extent:
            value, changed = value.take(keep, axis=axis), True
    if changed:
        draft.values[constant.operand] = value.astype(stored.dtype)


def draft_size(draft: Draft, use: SizeUse | SplitUse | IndexUse) -> None:
    """Stored integers follow the widths."""
    if isinstance(use, SplitUse):
        _draft_split(draft, use)
    elif isinstance(use, IndexUse):
        _draft_indices(draft, use)
    else:
        _draft_count(draft, use)


def _draft_count(draft: Draft, use: SizeUse) -> None:
    kept = int((~draft.gone[use.labels]).sum())
    if kept == len(use.labels):
        return
    if isinstance(use.operand, Operand):
        _draft_number(draft, use, use.operand, kept)
        return
    number = _counted(use, kept, np.dtype(np.int64))
    now = draft.attributes.get(use.operand, draft.network.nodes[use.operand.node].attributes.get(use.operand.name))
    if isinstance(now, (list, tuple)):
        draft.attributes[use.operand] = [*now[: use.index], number, *now[use.index + 1 :]]
    else:
        draft.attributes[use.operand] = number


def _draft_number(draft: Draft, use: SizeUse, where: Operand, kept: int) -> None:
    """A number in a list: stored, in one that is known as a whole, or moved there from where it is stored."""
    network, name = draft.network, draft.network.nodes[where.node].inputs[where.position]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(network.types.get(name, onnx.TensorProto.INT64))
    numbers = network.known(name) or ()
    if network.root(name):
        value = draft.current(where).copy()
        value.reshape(-1)[use.index] = _counted(use, kept, value.dtype)
        draft.values[where] = value
    elif all(isinstance(n, int) for n in numbers):
        value = draft.new_operands.get(where, np.array(numbers, dtype)).copy()
        value[use.index] = _counted(use, kept, dtype)
        draft.new_operands[where] = value
    else:
        draft.lists.setdefault(where, {})[use.index] = _counted(use, kept, dtype)


def _counted(use: SizeUse, kept: int, dtype: np.dtype[Any]) -> int:
    """The number that counts so many channels; none from the end is the end itself, where 0 would be the start."""
    return use.sign * kept if kept or use.sign > 0 else int(np.iinfo(dtype).max)


def _draft_split(draft: Draft, use: SplitUse) -> None:
    if not any(draft.gone[part].any() for part in use.labels):
        return
    sizes = [int((~draft.gone[part]).sum()) for part in use.labels]
    node = draft.network.nodes[use.where.node]
    if isinstance(use.where, Attribute):
        draft.attributes[use.where] = sizes
    elif len(node.inputs) > use.where.position and draft.network.root(node.inputs[use.where.position]):
        draft.values[use.where] = np.array(sizes, np.int64)
    else:
        draft.new_operands[use.where] = np.array(sizes, np.int64)
    if use.without and use.without in node.attributes:
        draft.without.add(Attribute(node.index, use.without))


def _draft_indices(draft: Draft, use: IndexUse) -> None:
    gone = draft.gone[use.labels]
    if not gone.any():
        return
    old = draft.current(use.operand)
    at = old.reshape(-1) % len(use.labels)
    # Negative positions count from the end; written as positive ones they need no second thought.
    new = (np.cumsum(~gone) - 1)[at[~gone[at]]]
    draft.values[use.operand] = new.astype(old.dtype)


def draft_offset(draft: Draft, use: LinearUse, offset: FloatArray) -> None:
    """Put an offset [rows kept] into the bias that follows the reader; make one where there is none."""
    node = draft.network.nodes[use.weight.node]
    if use.inside:
        _offset_inside(draft, use, node, offset)
        return
    rank = len(draft.network.shape(node.outputs[0]) or ())
    trailing = 0 if use.result_axis is None else rank - 1 - use.result_axis
    shaped = offset.reshape(() if use.result_axis is None else use.spread or (-1, *(1,) * trailing))
    rule = ops.find(node.domain, node.op, node.opset)
    at = None if rule is None else rule.bias
    own = offset if rule is not None and rule.flat_bias else shaped
    if at is not None and _own_bias(draft, node, at, own):
        return
    # Behind an activation it would be too late.
    if (rule is None or rule.activation is None) and _following_bias(draft, use, node, shaped):
        return
    dtype = draft.network.dtype(node.inputs[use.weight.position])
    if at is not None and not _beta(node, at):
        draft.new_bias[Operand(node.index, at)] = own.astype(dtype)
    else:
        draft.add_after[node.index] = shaped.astype(dtype)


def _offset_inside(draft: Draft, use: LinearUse, node: Node, offset: FloatArray) -> None:
    """Add an offset to the bias of an op that makes more of its product than its result."""
    rule, weight = ops.find(node.domain, node.op, node.opset), draft.current(use.weight)
    if rule is None or rule.in_bias is None or rule.bias is None:
        raise DefectError("no-bias", f"{node.place} has no bias that could take an offset")
    own = rule.in_bias(offset, weight.shape)
    if not _own_bias(draft, node, rule.bias, own):
        dtype = draft.network.dtype(node.inputs[use.weight.position])
        draft.new_bias[Operand(node.index, rule.bias)] = own.astype(dtype)


def _own_bias(draft: Draft, node: Node, at: int, offset: FloatArray) -> bool:
    """Add an offset to the op's own bias (Gemm's C, at its operand `at`); False where it has none or computes it."""
    beta = _beta(node, at)
    if not beta or draft.network.constant(node.inputs[at]) is None:
        return False
    operand = Operand(node.index, at)
    bias = draft.current(operand)
    draft.values[operand] = (bias.astype(np.float64) + offset / beta).astype(bias.dtype)
    return True


def _beta(node: Node, at: int) -> float:
    """What the op's own bias counts by; 0 where it has none."""
    return float(node.attributes.get("beta", 1.0)) if len(node.inputs) > at and node.inputs[at] else 0.0


def _following_bias(draft: Draft, use: LinearUse, node: Node, offset: FloatArray) -> bool:
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
    elif rule.absorbs is not None and position == 0 and use.result_axis == 1 and not use.spread:
        at, factor = rule.absorbs
        operand, offset = Operand(after.index, at), offset.reshape(-1)
    else:
        return False
    if network.constant(after.inputs[operand.position]) is None:
        return False
    bias = draft.current(operand)
    draft.values[operand] = (bias.astype(np.float64) + factor * offset).astype(bias.dtype)
    return True
