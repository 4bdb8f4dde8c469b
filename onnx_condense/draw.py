"""Drawn inputs: feeds for verification where the user gave none.

Drawn feeds only have to run and to reach every part of the network; they say nothing about real data.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_condense.data import InputSpec, input_specs
from onnx_condense.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import onnx

    from onnx_condense.runtime import Array

SIZES = (2, 3, 5)
"""What symbolic and unknown dimensions take, one feed each; primes, so that no reshape fits by accident."""

LARGER = ((32, 64, 96), (128, 256, 384), (1024, 2048, 4096), (16384, 32768, 65536))
"""What they take where a network needs more: kernels without pads, sizes that are halved and doubled again, sound."""

MOST = 2**22
"""Elements of one feed at most, if it is not of the smallest sizes."""

_FLOATS = frozenset({"float16", "bfloat16", "float32", "float64"})
_CARRIES_VALUES = frozenset({"Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Transpose"})
_DEFAULT_DOMAINS = frozenset({"", "ai.onnx"})


def drawings(graph: onnx.GraphProto, seed: int) -> Iterator[list[dict[str, Array]]]:
    """Sets of three feeds for a network to try in turn, from small ones to large ones, each with other shapes.

    First all free dimensions are small; then all but the rows, which are first axes and whatever goes by the name of
    one; then those too. See `draw_feeds`.

    Raises:
        ModelError: see `draw_feeds`.
    """
    seen = []
    for rows, sizes in ((SIZES, SIZES), *((SIZES, s) for s in LARGER), *((s, s) for s in LARGER)):
        shapes = [_shapes(input_specs(graph), *both) for both in zip(rows, sizes, strict=True)]
        small = sizes == SIZES or all(sum(map(math.prod, s.values())) <= MOST for s in shapes)
        if small and shapes not in seen:
            seen.append(shapes)
            yield draw_feeds(graph, seed, rows, sizes)


def draw_feeds(
    graph: onnx.GraphProto, seed: int, rows: Sequence[int] = SIZES, sizes: Sequence[int] = SIZES
) -> list[dict[str, Array]]:
    """Feeds whose symbolic dimensions are 2, then 3, then 5; fixed ones as declared.

    Floats are N(0, 1). Integers lie in [0, rows) of the smallest constant that they index through Gather, directly or
    through ops that only move or cast them; other integers and booleans in {0, 1}.

    Args:
        graph: the network's.
        seed: of the values.
        rows: what first axes take instead, one feed each.
        sizes: what other axes take instead.

    Returns:
        One dict per feed, input name to array of the declared dtype and rank; the same for the same graph and seed.

    Raises:
        ModelError: an input is no tensor, or has a dtype (string, complex, ...) that can't be drawn.
    """
    specs = input_specs(graph)
    limits = {spec.name: _index_limit(graph, spec) for spec in specs if spec.dtype.kind in "iu"}
    rng = np.random.default_rng(seed)
    shapes = [_shapes(specs, *both) for both in zip(rows, sizes, strict=True)]
    return [{spec.name: _draw(spec, shape[spec.name], limits, rng) for spec in specs} for shape in shapes]


def _shapes(specs: Sequence[InputSpec], rows: int, size: int) -> dict[str, tuple[int, ...]]:
    """The shapes of one feed, by input name."""
    counted = {spec.shape[0] for spec in specs if spec.shape} - {None}
    found: dict[str, tuple[int, ...]] = {}
    for spec in specs:
        free = [rows if dim in counted or (dim is None and axis == 0) else size for axis, dim in enumerate(spec.shape)]
        found[spec.name] = tuple(d if isinstance(d, int) else n for d, n in zip(spec.shape, free, strict=True))
    return found


def _draw(spec: InputSpec, shape: tuple[int, ...], limits: Mapping[str, int], rng: np.random.Generator) -> Array:
    if spec.dtype.name in _FLOATS:
        return np.asarray(rng.standard_normal(shape)).astype(spec.dtype)
    if spec.dtype.kind in "biu":
        return np.asarray(rng.integers(0, limits.get(spec.name, 2), shape)).astype(spec.dtype)
    kind = "string" if spec.dtype.kind == "O" else spec.dtype.name
    text = f"input '{spec.name}' is of type {kind}, for which no values can be drawn; give real ones with --calibration"
    raise ModelError("draw-type", text, spec.name)


def _index_limit(graph: onnx.GraphProto, spec: InputSpec) -> int:
    """The number of rows that the input may index: those of the smallest constant it reaches; 2 if it reaches none."""
    constants = _constant_shapes(graph)
    reached = {spec.name}
    found: list[int] = []
    # Nodes are in topological order, so one pass sees every op after what it reads.
    for node in graph.node:
        if node.domain not in _DEFAULT_DOMAINS or not reached.intersection(node.input):
            continue
        if node.op_type in _CARRIES_VALUES and node.input[0] in reached:
            reached.update(node.output)
        elif node.op_type == "Gather" and node.input[0] in constants:
            axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
            found.append(constants[node.input[0]][axis])
    return max(1, min(*found, int(np.iinfo(spec.dtype).max) + 1)) if found else 2


def _constant_shapes(graph: onnx.GraphProto) -> dict[str, tuple[int, ...]]:
    """Shapes of initializers and of Constant nodes that hold a tensor."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        value: Any = next((a.t for a in node.attribute if a.name == "value"), None)
        if node.op_type == "Constant" and value is not None:
            shapes[node.output[0]] = tuple(value.dims)
    return shapes
