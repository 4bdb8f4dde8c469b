"""Rows picked and put by index, as graph networks pass messages: GatherND, ScatterElements, ScatterND.

Channels lie along axes that no index says anything of, and pass. What is put, what it is put into and, element by
element, the index have the same channels; ConstantOfShape lays out what is put into as wide as a tensor is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from onnx_condense.network.known import Size
from onnx_condense.ops.join import spread
from onnx_condense.ops.layout import SIZE_READ, UNKNOWN_RANK, checked, places_of
from onnx_condense.ops.pick import moves_by_channels
from onnx_condense.ops.registry import Call, Constants, Effect, Law, OpRule, Role, Value, register
from onnx_condense.plan import PINNED, ConstantUse, IntArray, Operand

ALONG = "picked or put by index along the channels"
STORED = "put by a stored index that names every channel"
PART = "put into some of the channels"
# Reductions that add: a multiple of what is put is put as that multiple.
_ADDS = frozenset({"none", "add"})


def trace_gather_nd(call: Call) -> Effect:
    """Channels along the axes behind those that the index names pass."""
    x, index = call.operands[0], call.operands[1]
    if x is None or x.labels is None:
        return Effect(None)
    named = _named(index)
    if named is None or index is None or index.shape is None:
        return Effect(None, pins=((x.labels, UNKNOWN_RANK),))
    first = call.attributes.get("batch_dims", 0) + named
    if first > x.labels.ndim or any(n > 1 for n in x.labels.shape[:first]):
        return Effect(None, pins=((x.labels, ALONG),))
    return checked(call, x.labels, x.labels.reshape((1,) * (len(index.shape) - 1) + x.labels.shape[first:]))


def trace_scatter_elements(call: Call) -> Effect:
    """Along every axis but the one that is scattered along, all three operands have the same channels."""
    data, index, updates = call.operands[:3]
    labels = [v.labels for v in (data, updates) if v is not None and v.labels is not None]
    if updates is None or updates.labels is None or data is None:
        return Effect(None, pins=tuple((own, UNKNOWN_RANK) for own in labels))
    rank = updates.labels.ndim
    axes = places_of([call.attributes.get("axis", 0)], rank)
    if axes is None or any(own.ndim != rank or own.shape[axes[0]] > 1 for own in labels):
        return Effect(None, pins=tuple((own, ALONG) for own in labels))
    if index is not None and index.constant is not None and any((own != PINNED).any() for own in labels):
        return Effect(None, pins=tuple((own, STORED) for own in labels))
    pair = None if index is None or index.labels is None else _pair(updates.labels, index.labels)
    return _put(call, data, updates.labels, [] if pair is None else [pair])


def trace_scatter_nd(call: Call) -> Effect:
    """Channels along the axes behind those that the index names are those of what is put there."""
    data, index, updates = call.operands[:3]
    labels = [v.labels for v in (data, updates) if v is not None and v.labels is not None]
    named = _named(index)
    if updates is None or updates.labels is None or data is None or named is None or data.shape is None:
        return Effect(None, pins=tuple((own, UNKNOWN_RANK) for own in labels))
    rest = len(data.shape) - named
    ahead = [own.shape[: own.ndim - rest] for own in labels]
    if rest < 0 or any(n > 1 for sizes in ahead for n in sizes):
        return Effect(None, pins=tuple((own, ALONG) for own in labels))
    return _put(
        call, data, updates.labels.reshape((1,) * named + updates.labels.shape[updates.labels.ndim - rest :]), []
    )


def _put(call: Call, data: Value, labels: IntArray, ties: list[tuple[IntArray, IntArray]]) -> Effect:
    """Something with channels put into data: into channels of its own, or into what is stored for each."""
    if data.constant is None:
        # Elements may be put into some of the channels.
        pair = None if data.labels is None else _pair(labels, data.labels)
        if data.labels is None or pair is None:
            return Effect(None, pins=tuple((own, PART) for own in (labels, data.labels) if own is not None))
        ties.append(pair)
        return Effect(np.maximum(*pair), ties=tuple(ties))
    # One number per place: those of a channel go with it.
    if data.constant.ndim != labels.ndim or any(
        n != own > 1 for n, own in zip(data.constant.shape, labels.shape, strict=True)
    ):
        return Effect(None, pins=((labels, UNKNOWN_RANK),))
    own = (labels != PINNED).any()
    return Effect(labels, ties=tuple(ties), constants=(ConstantUse(Operand(call.index, 0), labels),) if own else ())


def _pair(a: IntArray, b: IntArray) -> tuple[IntArray, IntArray] | None:
    """Labels of as many channels side by side; None where there are more of them in one than in the other."""
    if a.ndim != b.ndim or any(n != m and 1 not in (n, m) for n, m in zip(a.shape, b.shape, strict=True)):
        return None
    one, other = np.broadcast_arrays(a, b)
    return one, other


def _named(index: Value | None) -> int | None:
    """How many axes a list of positions names."""
    last = None if index is None or not index.shape else index.shape[-1]
    return last if isinstance(last, int) else None


def trace_constant_of_shape(call: Call) -> Effect:
    """As wide as a tensor has channels: these go with its own."""
    sizes = call.operands[0]
    if (found := spread(call, (), sizes)) is not None:
        return found
    entries = () if sizes is None or sizes.known is None else sizes.known
    lines = [entry.labels for entry in entries if isinstance(entry, Size) and entry.labels is not None]
    return Effect(None, pins=tuple((labels, SIZE_READ) for labels in lines))


def _law(attributes: Mapping[str, Any], _: Constants) -> Law:
    """What is added up, or put as it is, is a sum of channels."""
    return Law.ADD if attributes.get("reduction", "none") in _ADDS else Law.ANY


def puts(rule: OpRule) -> bool:
    """Whether an op is one that puts by index."""
    return rule.trace in (trace_scatter_elements, trace_scatter_nd)


def _steered(call: Call) -> str:
    """The index alone says where elements go."""
    return moves_by_channels(dataclasses.replace(call, operands=call.operands[:2]))


register(
    OpRule("GatherND", trace_gather_nd, since=11, law=Law.MOVE, guard=moves_by_channels),
    OpRule("ScatterElements", trace_scatter_elements, since=11, refine=_law),
    OpRule("ScatterND", trace_scatter_nd, since=11, refine=_law, guard=_steered),
    OpRule("ConstantOfShape", trace_constant_of_shape, since=9),
    role=Role.JOINS,
)
