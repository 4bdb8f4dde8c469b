"""The plan applied to a network: the only stage that changes a graph.

Works on a copy of the ModelProto and touches nothing but what the plan changes: weights and carried constants
are sliced, readers get their new columns, offsets go into biases, value_info follows. Same input, same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnx_condense.network.model import Network, inlined
from onnx_condense.plan import ChannelView, Operand, Plan, Rotation
from onnx_condense.rewrite.draft import (
    Draft,
    draft_constant,
    draft_offset,
    draft_size,
    draft_weight,
    kept_positions,
)
from onnx_condense.rewrite.lists import write_lists
from onnx_condense.rewrite.store import drop_unused, insert_biases, set_shape, write_attributes, write_constants

__all__ = ["apply_plan", "kept_positions", "with_values"]


def apply_plan(network: Network, view: ChannelView, plan: Plan) -> onnx.ModelProto:
    """A new network in which only the channels that the plan keeps are left.

    Raises:
        DefectError: channels that go do not form whole slices of some constant (a defect of the analysis).
    """
    draft = Draft(network, _mask(view, plan), _rotations(view, plan))
    updates = {u.use: u for u in plan.updates}
    for i, use in enumerate(view.linear):
        draft_weight(draft, use, updates[i].weight if i in updates else None)
    for constant in view.constants:
        draft_constant(draft, constant)
    for size in view.sizes:
        draft_size(draft, size)
    for i, update in sorted(updates.items()):
        rows, offset = view.linear[i].rows, update.offset
        rotation = draft.rotation(rows)
        if rotation is not None:
            offset = rotation.into @ offset
        elif rows.size:
            offset = offset[~draft.gone[rows]]
        if offset.any():
            draft_offset(draft, view.linear[i], offset)
    proto = onnx.ModelProto()
    proto.CopyFrom(inlined(network))
    write_attributes(draft, proto)
    roots, casts = write_constants(draft, proto)
    roots |= write_lists(draft, proto) | insert_biases(draft, proto)
    for node in reversed(casts):
        proto.graph.node.insert(0, node)
    drop_unused(network, proto, roots)
    _patch_shapes(draft, view, proto)
    return proto


def with_values(network: Network, values: Mapping[Operand, npt.NDArray[Any]]) -> onnx.ModelProto:
    """A network with other numbers, of the same shapes, at some of its operands."""
    proto = onnx.ModelProto()
    proto.CopyFrom(inlined(network))
    draft = Draft(network, np.zeros(1, np.bool_), values=dict(values))
    roots, casts = write_constants(draft, proto)
    for node in reversed(casts):
        proto.graph.node.insert(0, node)
    drop_unused(network, proto, roots)
    return proto


def _mask(view: ChannelView, plan: Plan) -> npt.NDArray[np.bool_]:
    """Whether the channel of each label goes [label]."""
    labels = [s.channels for s in view.spaces] + [u.columns for u in view.linear]
    mask = np.zeros(max((int(a.max(initial=0)) for a in labels), default=0) + 1, np.bool_)
    mask[sorted(plan.dropped(view.spaces))] = True
    return mask


def _rotations(view: ChannelView, plan: Plan) -> dict[int, Rotation]:
    """By the channels of the spaces that they mix."""
    channels = {s.name: s.channels.tolist() for s in view.spaces}
    return {label: rotation for rotation in plan.rotations for label in channels[rotation.space]}


def _patch_shapes(draft: Draft, view: ChannelView, proto: onnx.ModelProto) -> None:
    """Let value_info follow the new widths."""
    for info in proto.graph.value_info:
        labels = view.labels.get(info.name)
        if labels is None or not draft.gone[labels].any():
            continue
        axes = [axis for axis, n in enumerate(labels.shape) if n > 1]
        set_shape(info, {axis: len(kept_positions(labels, axis, draft.gone)) for axis in axes})
