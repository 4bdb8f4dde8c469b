"""What a network costs: parameters and multiply-accumulates, before and for every width."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
import onnx.inliner
from onnx import TensorProto

from onnx_condense.network.external import byte_count
from onnx_condense.network.live import idle
from onnx_condense.network.model import Network
from onnx_condense.network.shapes import Shape
from onnx_condense.network.sized import sized
from onnx_condense.ops import macs
from onnx_condense.plan import PINNED, ChannelView, IntArray
from onnx_condense.runtime import Array

# Tensors of these types hold what a network learned; int64 and the like hold shapes and indices.
_LEARNED = {
    getattr(TensorProto, name)
    for name in TensorProto.DataType.keys()  # noqa: SIM118 - a protobuf enum wrapper, not a dict
    if name.startswith(("FLOAT", "BFLOAT", "DOUBLE", "INT8", "UINT8", "INT4", "UINT4", "INT2", "UINT2"))
}


def count_parameters(proto: onnx.ModelProto) -> int:
    """Elements of all floating-point and quantized initializers and Constants that ops read on the way to an output.

    A tensor that many ops read counts once, and so does one in a function that is called often; subgraphs count too.
    """
    return sum(_graph_parameters(g) for start in (proto.graph, *_bodies(proto)) for g in _graphs(start))


def _bodies(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """The network's own functions as graphs."""
    for function in proto.functions:
        yield onnx.GraphProto(node=function.node, output=[onnx.ValueInfoProto(name=o) for o in function.output])


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in _nodes(graph):
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
                yield from _graphs(body)


def _nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Those that outputs depend on."""
    without = set(idle(graph))
    return [node for at, node in enumerate(graph.node) if at not in without]


def _graph_parameters(graph: onnx.GraphProto) -> int:
    used = {name for g in _graphs(graph) for node in _nodes(g) for name in node.input}
    used |= {o.name for g in _graphs(graph) for o in g.output}
    total = sum(math.prod(t.dims) for t in graph.initializer if t.name in used and t.data_type in _LEARNED)
    total += sum(
        math.prod(s.values.dims)
        for s in graph.sparse_initializer
        if s.values.name in used and s.values.data_type in _LEARNED
    )
    for node in graph.node:
        if node.op_type == "Constant" and node.output[0] in used:
            total += sum(_attribute_elements(a) for a in node.attribute)
    return total


def _attribute_elements(attribute: onnx.AttributeProto) -> int:
    if attribute.name == "value" and attribute.t.data_type in _LEARNED:
        return math.prod(attribute.t.dims)
    return {"value_float": 1, "value_floats": len(attribute.floats)}.get(attribute.name, 0)


def bytes_per_parameter(proto: onnx.ModelProto) -> float:
    """How many bytes one of the learned numbers takes, on average over the initializers of the main graph."""
    learned = [t for t in proto.graph.initializer if t.data_type in _LEARNED]
    return sum(byte_count(t) for t in learned) / max(sum(math.prod(t.dims) for t in learned), 1)


def count_macs(network: Network) -> int:
    """Multiply-accumulates of one pass of the main graph, symbolic sizes counted as 1 (a fixed batch as it is).

    Calls of the network's own functions count by what is in these.
    """
    if network.functions:
        network = Network(onnx.inliner.inline_local_functions(network.proto), network.path)
    shapes = known_shapes(network)
    return sum(node_macs(node, shapes_around(node, shapes)) for node in network.proto.graph.node)


class Work:
    """Counts the multiply-accumulates of networks with the same inputs.

    Attributes:
        sample: the feed of one sample, by input; sizes that a network leaves open are those in it, and 1 without one.
    """

    def __init__(self, sample: Mapping[str, Array] | None = None) -> None:
        self.sample = sample or {}

    def sized(self, network: Network) -> Network:
        """The network with the sizes that count; see `network.sized`."""
        return sized(network, self.sample) if self._open(network) else network

    def of(self, network: Network) -> int:
        """Multiply-accumulates of one pass of the main graph; see `count_macs`."""
        return count_macs(self.sized(network))

    def told(self, network: Network) -> tuple[str, ...]:
        """What users should know of these counts: a note where an input's sizes, besides the first, are left open."""
        names = self._open(network)
        if not names:
            return ()
        if not self.sample:
            return (f"MACs, and limits on them, count sizes that the network leaves open as 1: {', '.join(names)}",)
        sizes = (f"{name} of {' x '.join(map(str, np.shape(self.sample[name])))}" for name in names)
        return (f"MACs, and limits on them, are those of the first sample: {', '.join(sizes)}",)

    def _open(self, network: Network) -> tuple[str, ...]:
        """Inputs with open sizes behind the first axis, or in whose sample the first is not one."""
        declared = {i.name: i.type.tensor_type.shape.dim for i in network.proto.graph.input}
        left = {n: [i for i, d in enumerate(declared[n]) if d.dim_value <= 0] for n in network.inputs}
        return tuple(n for n, axes in left.items() if axes and (any(axes) or len(self.sample.get(n, (0,))) != 1))


def known_shapes(network: Network) -> dict[str, Shape]:
    """Shapes of all tensors, stored ones too."""
    shapes, proto = dict(network.shapes), network.proto
    shapes |= {t.name: tuple(t.dims) for t in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            shapes[node.output[0]] = tuple(node.attribute[0].t.dims)
    return shapes


def shapes_around(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> macs.Shapes:
    """Of the first two operands and the result of a node: what makes its count."""
    first, second = (*node.input, "", "")[:2]
    return shapes.get(first), shapes.get(second), shapes.get(node.output[0])


def node_macs(node: onnx.NodeProto, around: macs.Shapes) -> int:
    """Multiply-accumulates of one node; around: see `shapes_around`."""
    return macs.of_node(node.op_type, {a.name: a.i for a in node.attribute}, around)


NO_READER = 0


@dataclasses.dataclass(frozen=True)
class _Axis:
    """One axis of a constant: positions that stay, and per space how many positions each channel that may go owns.

    spaces: also how many channels of the space have to stay.
    """

    fixed: int
    spaces: tuple[tuple[int, float, int], ...]


class WidthCosts:
    """Parameters of the condensed network as a function of the widths of its spaces.

    Follows what the rewrite does: a constant whose uses are cut alike stays stored once, others are cloned, and so are
    the uses of different views of it.
    Biases that the refit may add are left out (a few numbers per reader).
    """

    def __init__(self, network: Network, view: ChannelView) -> None:
        self._full = [s.width for s in view.spaces]
        self._stay = [int(s.pinned.sum()) for s in view.spaces]
        self._space = {int(c): i for i, s in enumerate(view.spaces) for c in s.channels[~s.pinned]}
        self._total = count_parameters(network.proto)
        # Tags of readers: those of one group share theirs.
        group = {u: g for g, uses in enumerate(view.shared, 1) for u in uses}
        # Per stored constant, per use: its axes (of a weight: rows, columns, taps), the tag of its reader and the view.
        self._uses: dict[str, list[tuple[tuple[_Axis, ...], int, str]]] = {}
        for i, use in enumerate(view.linear):
            name = network.nodes[use.weight.node].inputs[use.weight.position]
            tag = group.get(i, -1 - i)
            rows = self._axis(use.rows) if use.rows.size else _Axis(1, ())
            axes = (rows, self._axis(use.columns[: len(use.columns) // use.groups]), _Axis(use.taps, ()))
            self._uses.setdefault(_source(network, name), []).append((axes, tag, network.root(name)))
        for constant in view.constants:
            name = network.nodes[constant.operand.node].inputs[constant.operand.position]
            value = network.constant(name)
            assert value is not None
            labels = np.broadcast_to(constant.labels, value.shape)
            lines = tuple(self._axis(_line(labels, axis)) for axis in range(labels.ndim))
            self._uses.setdefault(_source(network, name), []).append((lines, NO_READER, network.root(name)))
        self._held = _held(network, {r: len(uses) for r, uses in self._uses.items()})
        self._elements = {root: _elements(uses[0][0], self._full) for root, uses in self._uses.items()}
        self._touching: dict[int, list[str]] = {}
        self._touched = {
            root: tuple(sorted({s for axes, *_ in uses for a in axes for s, *_ in a.spaces}))
            for root, uses in self._uses.items()
        }
        for root, spaces in self._touched.items():
            for s in spaces:
                self._touching.setdefault(s, []).append(root)
        # A path asks for the same widths of a few spaces again and again.
        self._known: dict[tuple[str, tuple[int, ...]], int] = {}

    def _axis(self, labels: IntArray) -> _Axis:
        owners = [self._space.get(c, -1) for c in labels.tolist() if c != PINNED]
        found, stay, full = [s for s in sorted(set(owners)) if s >= 0], self._stay, self._full
        spaces = tuple((s, owners.count(s) / (full[s] - stay[s]), stay[s]) for s in found)
        return _Axis(len(labels) - sum(owners.count(s) for s in found), spaces)

    def total(self, widths: Sequence[int]) -> int:
        """Parameters at these widths, one per space of the view."""
        return self._total + sum(self._stored(r, widths) - self._elements[r] for r in self._uses)

    def saving(self, widths: Sequence[int], space: int, width: int) -> int:
        """Parameters saved by narrowing one space from where it is."""
        after = list(widths)
        after[space] = width
        roots = self._touching.get(space, ())
        return sum(self._stored(r, widths) for r in roots) - sum(self._stored(r, after) for r in roots)

    def allied(self) -> list[tuple[int, ...]]:
        """Sets of spaces that are axes of one stored constant which is used more than once."""
        shared = {self._touched[root] for root, uses in self._uses.items() if len(uses) > 1}
        return sorted(spaces for spaces in shared if len(spaces) > 1)

    def _stored(self, root: str, widths: Sequence[int]) -> int:
        key = root, tuple(widths[s] for s in self._touched[root])
        if key not in self._known:
            self._known[key] = self._counted(root, widths)
        return self._known[key]

    def _counted(self, root: str, widths: Sequence[int]) -> int:
        # What something else reads as it is stays as it is.
        versions: dict[tuple[object, ...], int] = {(): self._elements[root]} if root in self._held else {}
        for axes, tag, seen in self._uses[root]:
            cut = tuple(tuple(s for s, *_ in a.spaces if widths[s] < self._full[s]) for a in axes)
            # Readers that are refitted apart get different numbers even where the same columns go.
            refitted = tag if tag != NO_READER and cut[1] else None
            key = (*cut, refitted, seen) if any(cut) else ()
            versions[key] = _elements(axes, widths)
        return sum(versions.values())


def _held(network: Network, tracked: Mapping[str, int]) -> frozenset[str]:
    """Stored constants that are also read where no channel is cut, and by how many the analysis follows."""
    reads = collections.Counter(
        _source(network, name)
        for node in network.nodes
        # A copy or view of a constant is no reader: its own readers are counted.
        if not (node.outputs and network.root(node.outputs[0]))
        for name in node.inputs
        if name
    )
    outside = {_source(network, name) for name in (*network.outputs, *network.captured)}
    return frozenset(r for r, uses in tracked.items() if reads[r] > uses or r in outside)


def _source(network: Network, name: str) -> str:
    """What is stored of a constant that may be a view of it; "" of what is computed."""
    root = network.root(name)
    while made_of := network.sources(root):
        root = network.root(made_of[0])
    return root


def _line(labels: IntArray, axis: int) -> IntArray:
    return np.asarray(np.moveaxis(labels, axis, 0).reshape(labels.shape[axis], -1)[:, 0] if labels.size else labels)


def _elements(axes: Sequence[_Axis], widths: Sequence[int]) -> int:
    return math.prod(a.fixed + round(sum((widths[s] - stay) * per for s, per, stay in a.spaces)) for a in axes)
