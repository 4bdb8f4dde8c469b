"""Means and second moments of what readers read, accumulated inside the ONNX Runtime graph.

Activations never leave the runtime: per batch only means and a centred product come back. They add up over batches
(and shards, and machines) by the pairwise update of Chan, Golub & LeVeque (1979), in float64.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet

import numpy as np
import onnx
from onnx import helper

from onnx_condense.data.samples import Batch, Samples
from onnx_condense.errors import CalibrationError
from onnx_condense.evidence.columns import OWN, Builder, Columns
from onnx_condense.network.nodes import MARK
from onnx_condense.plan import IntArray, Moments, add_product
from onnx_condense.runtime import Array, Runtime, release, run

# fp32 sums over more rows than this lose digits; the rest is summed on the host in fp64.
ROWS = 1024

# What the names of a condensed network begin with beside the dense one; see `nodes.MARK`.
PREFIX = f"condensed/{MARK}/"


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two sets of columns of one graph that are to be correlated, row by row."""

    left: Columns
    right: Columns


def with_itself(columns: Columns) -> Pair:
    """A set of columns with itself."""
    return Pair(columns, columns)


def collect(
    proto: onnx.ModelProto,
    pairs: Sequence[Pair],
    ranks: Mapping[str, int],
    samples: Samples,
    indices: IntArray,
    runtime: Runtime,
    batch: int = ROWS,
) -> list[Moments]:
    """Moments of each pair over the given samples.

    Args:
        proto: a network that holds all named tensors, weights inside.
        pairs: what to correlate.
        ranks: rank of every named tensor.
        samples: the source.
        indices: which of its samples.
        runtime: how to run.
        batch: samples per pass at most.

    Raises:
        CalibrationError: a tensor is infinite or too large for second moments in float32.
    """
    if not pairs:
        return []
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    return collect_parts(copy, pairs, ranks, samples.batches(indices, batch), runtime)


def collect_parts(
    proto: onnx.ModelProto,
    pairs: Sequence[Pair],
    ranks: Mapping[str, int],
    parts: Iterable[Batch],
    runtime: Runtime,
    also: Sequence[str] = (),
    take: Callable[[Sequence[Array]], None] = lambda _: None,
) -> list[Moments]:
    """The same over passes that are given; what else they hold than the network's inputs is left out.

    proto: is changed: a copy would hold all weights once more.
    also: tensors whose values of each pass are given to `take`, in this order.
    """
    draws = _put_moments(proto, pairs, ranks)
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in also)
    session = runtime.session(proto)
    # The session has its own weights.
    proto.Clear()
    release()
    fed = {i.name for i in session.get_inputs()}
    rng = np.random.default_rng(0)
    totals = [_Total(pair) for pair in pairs]
    for part in parts:
        drawn = {name: columns.places(rng, len(part.samples)) for name, columns in draws.items()}
        found = run(session, {**{name: value for name, value in part.feed.items() if name in fed}, **drawn})
        take(found[4 * len(pairs) :])
        del found[4 * len(pairs) :]
        for total in reversed(totals):
            # Each is let go of once it is added: together they are as large as what they are added to.
            total.add(*(found.pop() for _ in range(4)))
    del session
    release()
    return [t.moments for t in totals if t.count]


class _Total:
    """Moments of one pair that grow pass by pass: what `Moments.plus` makes, in place."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self.count = 0.0
        self._left = self._right = self._product = np.zeros(0)

    @property
    def moments(self) -> Moments:
        return Moments(self.count, self._left, self._right, self._product)

    def add(self, product: Array, right: Array, left: Array, count: Array) -> None:
        """One pass: what `_put_moments` gives out, backwards, in float32."""
        _check_finite(self._pair, (left, right, product))
        means = (np.asarray(a, np.float64).reshape(-1) for a in (left, right))
        sides = (self._pair.left, self._pair.right)
        first, second = (side.arranged(mean) for side, mean in zip(sides, means, strict=True))
        new, old = float(count.reshape(-1)[0]), self.count
        self.count += new
        if not old:
            self._left, self._right, self._product = first, second, np.asarray(product, np.float64)
            return
        share = new / self.count
        first, second = first - self._left, second - self._right
        self._product += product
        add_product(self._product, np.atleast_2d(first), np.atleast_2d(second), old * share)
        self._left, self._right = self._left + share * first, self._right + share * second


def _check_finite(pair: Pair, numbers: Iterable[Array]) -> None:
    if not all(np.isfinite(a).all() for a in numbers):
        raise _out_of_range(pair.left)


def _out_of_range(columns: Columns) -> CalibrationError:
    tensor = columns.tensor.removeprefix(PREFIX)
    text = f"tensor {tensor} is not finite or too large (above about 1e18) on these samples: "
    return CalibrationError("calibration-range", f"{text}check the inputs, or condense without --calibration", tensor)


def read_rows(
    proto: onnx.ModelProto,
    columns: Sequence[Columns],
    ranks: Mapping[str, int],
    samples: Samples,
    indices: IntArray,
    runtime: Runtime,
    batch: int = ROWS,
) -> list[Array]:
    """The rows themselves [n, Q] of each set of columns, in float32: only for few samples. See `collect`.

    Raises:
        CalibrationError: a tensor is infinite or too large for second moments in float32.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    builder = Builder(copy, ranks)
    del copy.graph.output[:]
    for i, side in enumerate(columns):
        out = builder.node("Identity", [builder.rows(side)], out=f"{OWN}read_{i}")
        copy.graph.output.append(helper.make_tensor_value_info(out, onnx.TensorProto.FLOAT, None))
    session = runtime.session(copy)
    copy.Clear()
    release()
    rng = np.random.default_rng(0)
    parts = []
    for part in samples.batches(indices, batch):
        drawn = {name: side.places(rng, len(part.samples)) for name, side in builder.draws.items()}
        parts.append(run(session, {**part.feed, **drawn}))
    found = [np.concatenate(of_all) for of_all in zip(*parts, strict=True)]
    for side, rows in zip(columns, found, strict=True):
        level = float(np.abs(rows).max(initial=0.0))
        if not level**2 * len(rows) < float(np.finfo(np.float32).max):
            raise _out_of_range(side)
    return found


def count_rows(
    proto: onnx.ModelProto,
    columns: Sequence[Columns],
    ranks: Mapping[str, int],
    samples: Samples,
    indices: IntArray,
    runtime: Runtime,
) -> list[int]:
    """How many rows each set of columns has in the first sample."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    builder = Builder(copy, ranks)
    del copy.graph.output[:]
    for i, side in enumerate(columns):
        shape = builder.node("Shape", [builder.rows(dataclasses.replace(side, take=0))], out=f"{OWN}rows_{i}")
        copy.graph.output.append(helper.make_tensor_value_info(shape, onnx.TensorProto.INT64, None))
    first = next(iter(samples.batches(indices[:1], 1)))
    return [int(shape[0]) for shape in run(runtime.session(copy), first.feed)] if columns else []


def _put_moments(proto: onnx.ModelProto, pairs: Sequence[Pair], ranks: Mapping[str, int]) -> Mapping[str, Columns]:
    """Give a network moments as its only outputs (what does not lead there is not computed).

    Returns:
        Its new inputs.
    """
    builder = Builder(proto, ranks)
    del proto.graph.output[:]
    for i, pair in enumerate(pairs):
        left, left_mean, count = builder.centred(pair.left)
        right, right_mean, _ = builder.centred(pair.right)
        # Gemm needs a third input before opset 11.
        product = builder.node("MatMul", [builder.node("Transpose", [left], perm=[1, 0]), right])
        for name, kind in ((count, 7), (left_mean, 1), (right_mean, 1), (product, 1)):
            out = builder.node("Identity", [name], out=f"{OWN}{i}_{len(proto.graph.output)}")
            proto.graph.output.append(helper.make_tensor_value_info(out, kind, None))
    return builder.draws


def side_by_side(
    dense: onnx.ModelProto, condensed: onnx.ModelProto, apart: AbstractSet[str] = frozenset()
) -> onnx.ModelProto:
    """Both networks in one graph over the same inputs; the condensed one's tensors carry PREFIX.

    apart: inputs that are not the same in both.
    """
    joint, other = onnx.ModelProto(), onnx.GraphProto()
    joint.CopyFrom(dense)
    other.CopyFrom(condensed.graph)
    del joint.graph.value_info[:]
    stored = {t.name for t in other.initializer} | {t.values.name for t in other.sparse_initializer}
    inputs = frozenset(i.name for i in other.input if i.name not in stored)
    _prefix(other, inputs - apart)
    known = {i.name for i in joint.graph.input}
    given = inputs - apart | {PREFIX + name for name in inputs & apart}
    joint.graph.input.extend(i for i in other.input if i.name in given - known)
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
