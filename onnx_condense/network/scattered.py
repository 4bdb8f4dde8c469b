"""What is put by index, laid out by the width of what is put there.

Graph networks add up messages: ScatterElements or ScatterND into zeros that are as wide as a number says that is stored
somewhere, by an index that (of ScatterElements) is repeated as often. Where both follow the size of the messages
instead, the channels of these can go. Messages cut to the size of such an index are cut to their own, so not at all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnx_condense.network.freeing import Labels, freeing, held
from onnx_condense.network.known import Size
from onnx_condense.network.listed import standard
from onnx_condense.network.live import DEFAULTS, prune
from onnx_condense.network.model import Network
from onnx_condense.network.names import Names
from onnx_condense.network.nodes import Node
from onnx_condense.runtime import Array

# Ops that are put in.
_PUT = frozenset(("", op) for op in ("Concat", "Constant", "ConstantOfShape", "Expand", "Gather", "Slice"))
# Bytes of single precision.
_SINGLE = 4


@dataclasses.dataclass(frozen=True)
class _Laid:
    """A tensor that says the same of all channels: what is repeated along the last axis, and by which list.

    value: one number or a column; source: a computed column instead. sizes: of the axes before the last, or the list of
    all sizes that is stored or computed somewhere. order: in which the axes before the last of that list come.
    """

    sizes: tuple[int, ...] | str
    value: Array | None = None
    source: str = ""
    order: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class _Place:
    """A Scatter whose operands can be laid out anew; None: they stay as they are. updates: what is put."""

    node: Node
    updates: str
    data: _Laid | None
    index: _Laid | None


def scattered(network: Network, labels: Labels) -> Network:
    """A network whose Scatters are as wide as what they put, where channels can go then that had to stay.

    Args:
        network: as it is.
        labels: tells which channels can go.

    Returns:
        `network` itself where there is no such place.
    """
    places = [] if _PUT & network.functions else [p for n in network.nodes if (p := _place(network, n))]
    chosen = held(network, places, lambda place: (place.updates,), labels)

    def write(places: Sequence[_Place]) -> tuple[Network, list[tuple[str]]]:
        return _rewritten(network, places), [(p.updates,) for p in places]

    return freeing(network, chosen, write, labels)


def _place(network: Network, node: Node) -> _Place | None:
    """What can be laid out anew around a node; None if that is nothing."""
    if not standard(network, node, "ScatterElements", "ScatterND"):
        return None
    dtype = network.dtype(node.inputs[0])
    # On a CPU ONNX Runtime adds up half precision only where everything around it is stored or cast.
    summed_in_half = dtype.itemsize < _SINGLE and node.attributes.get("reduction", "none") != "none"
    if dtype.kind != "f" or summed_in_half:
        return None
    updates = _uncut(network, node.inputs[2])
    shape = network.shape(updates)
    width = shape[-1] if shape else None
    elements = node.op == "ScatterElements"
    along_width = shape is None or (elements and node.attributes.get("axis", 0) % len(shape) == len(shape) - 1)
    if along_width or not isinstance(width, int) or width < 2 or network.root(updates):
        return None
    data = _laid(network, node.inputs[0], width, several=False)
    index = _laid(network, node.inputs[1], width, several=True) if elements else None
    found = _Place(node, updates, data, index)
    return None if data is index is None and updates == node.inputs[2] else found


def _laid(network: Network, name: str, width: int, *, several: bool) -> _Laid | None:
    """How a tensor is laid out that says the same of all channels, if its width is a number.

    several: it may hold a number for every row.
    """
    maker = network.producers.get(name)
    if network.root(name):
        stored = network.constant(name)
        return None if stored is None else _stored(stored, width, several=several)
    if maker is not None and standard(network, maker, "Transpose"):
        return _turned(network, maker, width)
    if maker is None or not standard(network, maker, "ConstantOfShape", "Expand"):
        return None
    return _repeated(network, maker, width, several=several)


def _repeated(network: Network, maker: Node, width: int, *, several: bool) -> _Laid | None:
    """One number, or a column, repeated by a list that ends in the width."""
    sizes, shape = maker.inputs[-1], network.shape(maker.outputs[0]) or (None,)
    known = network.known(sizes) or ()
    # Inference may not know the result of a list that is handed on.
    if not known or width not in (known[-1], shape[-1]):
        return None
    if maker.op == "ConstantOfShape":
        value = maker.attributes.get("value")
        return _Laid(sizes, np.zeros(1, np.float32) if value is None else value.values.reshape(1))
    own, stored = network.shape(maker.inputs[0]), network.constant(maker.inputs[0])
    if stored is not None and stored.size == 1:
        return _Laid(sizes, stored.reshape(1))
    column = several and own and len(own) == len(known) and own[-1] == 1
    return _Laid(sizes, source=maker.inputs[0]) if column else None


def _turned(network: Network, maker: Node, width: int) -> _Laid | None:
    """One number throughout whose axes before the last were put in another order."""
    laid = _laid(network, maker.inputs[0], width, several=False)
    order = tuple(maker.attributes.get("perm", ()))
    if laid is None or isinstance(laid.sizes, tuple) or laid.order or not order or order[-1] != len(order) - 1:
        return None
    return dataclasses.replace(laid, order=order[:-1])


def _stored(value: Array, width: int, *, several: bool) -> _Laid | None:
    if value.ndim < 2 or value.shape[-1] != width or not value.size:
        return None
    column = value[..., :1]
    alike = bool((value == (column if several else value.flat[0])).all())
    return _Laid(value.shape[:-1], column if several else value.reshape(-1)[:1]) if alike else None


def _uncut(network: Network, name: str) -> str:
    """What a Slice that cuts off nothing was given; the tensor itself if it is no such Slice.

    Its ends are the shape of a tensor that is as large, by sizes that are numbers or that the inputs leave open.
    """
    maker = network.producers.get(name)
    if maker is None or not standard(network, maker, "Slice") or not 3 <= len(maker.inputs) <= 4:
        return name
    starts, ends = (network.known(t) or () for t in maker.inputs[1:3])
    axes = network.known(maker.inputs[3]) if len(maker.inputs) == 4 and maker.inputs[3] else tuple(range(len(starts)))
    shape = network.shape(maker.inputs[0]) or ()
    whole = len(ends) == len(shape) and set(starts) == {0} and axes == tuple(range(len(shape)))
    open_ = {n for given in network.inputs for n in network.shape(given) or ()} - {None}

    def same(end: object, axis: int) -> bool:
        size = _size(network, end) if isinstance(end, Size) and end.axis == axis else None
        return size == shape[axis] and (isinstance(size, int) or size in open_)

    return maker.inputs[0] if whole and all(same(end, axis) for axis, end in enumerate(ends)) else name


def _size(network: Network, named: Size) -> int | str | None:
    """What a size is, though inference may not know it of what is repeated by sizes that are handed on."""
    maker = network.producers.get(named.tensor)
    if maker is None or not standard(network, maker, "Expand"):
        return named.size
    own, sizes = network.shape(maker.inputs[0]) or (), network.known(maker.inputs[1]) or ()
    if len(own) != len(sizes):
        return named.size
    entry = sizes[named.axis]
    told = entry.size if isinstance(entry, Size) else entry
    return told if own[named.axis] == 1 else (own[named.axis] if told == 1 else named.size)


# ---- writing ----


def _rewritten(network: Network, places: Sequence[_Place]) -> Network:
    proto = onnx.ModelProto()
    proto.CopyFrom(network.proto)
    names = Names(proto)
    for place in sorted(places, key=lambda p: -p.node.index):
        made = _Layout(place, names)
        node = proto.graph.node[place.node.index]
        node.input[2] = place.updates
        for at, laid in ((0, place.data), (1, place.index)):
            if laid is not None:
                node.input[at] = made.tensor(laid)
        for before in reversed(made.nodes):
            proto.graph.node.insert(place.node.index, before)
    prune(proto.graph, interface=proto.ir_version >= DEFAULTS)
    return Network(proto, network.path, network.given)


class _Layout:
    """Nodes that lay tensors out as wide as what is put at one place."""

    def __init__(self, place: _Place, names: Names) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._names, self._wish = names, place.node.outputs[0]
        shape = self._node("Shape", [place.updates])
        self._width = self._node("Gather", [shape, self._stored(np.array([-1]))])

    def tensor(self, laid: _Laid) -> str:
        """One of them."""
        ahead = laid.sizes
        if isinstance(ahead, str):
            first, last = self._stored(np.array([0])), self._stored(np.array([-1]))
            rows = self._node("Slice", [ahead, first, last])
            if laid.order:
                rows = self._node("Gather", [rows, self._stored(np.array(laid.order))])
        else:
            rows = self._stored(np.array(ahead, np.int64))
        sizes = self._node("Concat", [rows, self._width], axis=0)
        if laid.source or laid.value is None or laid.value.size > 1:
            column = laid.source if laid.value is None else self._stored(laid.value)
            return self._node("Expand", [column, sizes])
        return self._node("ConstantOfShape", [sizes], value=numpy_helper.from_array(laid.value.reshape(1)))

    def _stored(self, value: Array) -> str:
        name = self._names.fresh(f"{self._wish}_numbers")
        self.nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value)))
        return name

    def _node(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        name = self._names.fresh(f"{self._wish}_{op}")
        self.nodes.append(helper.make_node(op, inputs, [name], **attributes))
        return name
