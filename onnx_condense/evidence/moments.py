"""Means and second moments of what readers read, accumulated inside the ONNX Runtime graph.

Activations never leave the runtime: per batch only a mean [K] and a centred product [K, L] come back. They add
up over batches (and shards, and machines) by the pairwise update of Chan, Golub & LeVeque (1979), in float64.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper

from onnx_condense.data.samples import Samples
from onnx_condense.errors import CalibrationError
from onnx_condense.plan import IntArray, Moments
from onnx_condense.runtime import Runtime, run

# fp32 sums over more rows than this lose digits; the rest is summed on the host in fp64.
ROWS = 1024


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two tensors of one graph whose features along an axis are to be correlated; all other axes are rows."""

    left: str
    left_axis: int
    right: str
    right_axis: int


def of_axis(tensor: str, axis: int) -> Pair:
    """A tensor with itself."""
    return Pair(tensor, axis, tensor, axis)


def collect(
    proto: onnx.ModelProto,
    pairs: Sequence[Pair],
    ranks: Mapping[str, int],
    samples: Samples,
    indices: IntArray,
    runtime: Runtime,
) -> list[Moments]:
    """Moments of each pair over the given samples.

    Args:
        proto: a network that holds all named tensors, weights inside.
        pairs: what to correlate.
        ranks: rank of every named tensor.
        samples: the source.
        indices: which of its samples.
        runtime: how to run.

    Raises:
        CalibrationError: a tensor is infinite or too large for second moments in float32.
    """
    if not pairs:
        return []
    session = runtime.session(_with_moments(proto, pairs, ranks))
    totals: list[Moments | None] = [None] * len(pairs)
    for batch in samples.batches(indices, ROWS):
        found = run(session, batch.feed)
        for i in range(len(pairs)):
            count, left, right, product = found[4 * i : 4 * i + 4]
            wide = [np.asarray(a, np.float64) for a in (left.reshape(-1), right.reshape(-1), product)]
            if not all(np.isfinite(a).all() for a in wide):
                raise CalibrationError(
                    "calibration-range",
                    f"tensor {pairs[i].left} is not finite or too large (above about 1e18) on these samples: "
                    "check the inputs, or condense without --calibration",
                    pairs[i].left,
                )
            new = Moments(float(count.reshape(-1)[0]), *wide)
            old = totals[i]
            totals[i] = new if old is None else old.plus(new)
    return [t for t in totals if t is not None]


def _with_moments(proto: onnx.ModelProto, pairs: Sequence[Pair], ranks: Mapping[str, int]) -> onnx.ModelProto:
    """The network with moments as its only outputs (what does not lead there is not computed)."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    builder = _Builder(copy, ranks)
    del copy.graph.output[:]
    for i, pair in enumerate(pairs):
        left, left_mean, count = builder.centred(pair.left, pair.left_axis)
        right, right_mean, _ = builder.centred(pair.right, pair.right_axis)
        # Gemm needs a third input before opset 11.
        product = builder.node("MatMul", [builder.node("Transpose", [left], perm=[1, 0]), right])
        for name, kind in ((count, 7), (left_mean, 1), (right_mean, 1), (product, 1)):
            out = builder.node("Identity", [name], out=f"moments_{i}_{len(copy.graph.output)}")
            copy.graph.output.append(helper.make_tensor_value_info(out, kind, None))
    return copy


class _Builder:
    """Appends the nodes that turn tensors into moments."""

    def __init__(self, proto: onnx.ModelProto, ranks: Mapping[str, int]) -> None:
        self._graph = proto.graph
        self._ranks = ranks
        self._opset = next(o.version for o in proto.opset_import if o.domain in ("", "ai.onnx"))
        self._done: dict[tuple[str, int], tuple[str, str, str]] = {}
        self._count = 0

    def node(self, op: str, inputs: list[str], out: str = "", **attributes: Any) -> str:
        self._count += 1
        out = out or f"moments/{op}_{self._count}"
        self._graph.node.append(helper.make_node(op, inputs, [out], **attributes))
        return out

    def _integers(self, values: list[int]) -> str:
        self._count += 1
        name = f"moments/constant_{self._count}"
        self._graph.node.append(
            helper.make_node("Constant", [], [name], value=onnx.numpy_helper.from_array(np.array(values, np.int64)))
        )
        return name

    def centred(self, tensor: str, axis: int) -> tuple[str, str, str]:
        """Rows minus their mean [n, K], the mean [1, K] and n, in float32."""
        key = (tensor, axis)
        if key in self._done:
            return self._done[key]
        rank = self._ranks[tensor]
        flat = self.node("Cast", [tensor], to=onnx.TensorProto.FLOAT)
        if rank > 1 and axis != rank - 1:
            order = [a for a in range(rank) if a != axis] + [axis]
            flat = self.node("Transpose", [flat], perm=order)
        if rank == 1:
            flat = self.node("Reshape", [flat, self._integers([1, -1])])
        elif rank > 2:
            # -1 must be the rows: keep the last axis by name through Flatten.
            flat = self.node("Flatten", [flat], axis=rank - 1)
        if self._opset >= 18:
            mean = self.node("ReduceMean", [flat, self._integers([0])], keepdims=1)
        else:
            mean = self.node("ReduceMean", [flat], axes=[0], keepdims=1)
        shape = self.node("Shape", [flat])
        count = self.node("Gather", [shape, self._integers([0])])
        self._done[key] = (self.node("Sub", [flat, mean]), mean, count)
        return self._done[key]


PREFIX = "condensed/"


def side_by_side(dense: onnx.ModelProto, condensed: onnx.ModelProto) -> onnx.ModelProto:
    """Both networks in one graph over the same inputs; the condensed one's tensors carry PREFIX."""
    joint, other = onnx.ModelProto(), onnx.GraphProto()
    joint.CopyFrom(dense)
    other.CopyFrom(condensed.graph)
    del joint.graph.value_info[:]
    stored = {t.name for t in other.initializer} | {t.values.name for t in other.sparse_initializer}
    _prefix(other, frozenset(i.name for i in other.input if i.name not in stored))
    joint.graph.node.extend(other.node)
    joint.graph.initializer.extend(other.initializer)
    joint.graph.sparse_initializer.extend(other.sparse_initializer)
    return joint


def _prefix(graph: onnx.GraphProto, fed: frozenset[str]) -> None:
    """Rename everything but what is fed, in bodies too (onnx.compose leaves what bodies take from outside)."""

    def renamed(name: str) -> str:
        return PREFIX + name if name and name not in fed else name

    for tensor in (*graph.initializer, *(s.values for s in graph.sparse_initializer)):
        tensor.name = renamed(tensor.name)
    for value in (*graph.input, *graph.output):
        value.name = renamed(value.name)
    del graph.value_info[:]
    for node in graph.node:
        # ONNX Runtime wants names of nodes to differ too.
        node.name = renamed(node.name)
        node.input[:] = [renamed(name) for name in node.input]
        node.output[:] = [renamed(name) for name in node.output]
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
                _prefix(body, fed)
