"""Drawn inputs: feeds for verification where the user gave none, and calibration inputs where he has none.

The former only have to run and to reach every part of the network. The latter should look like what the network was
trained on, as far as shapes and types tell: z-scored numbers, noise with the spectrum of photos, symbols.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from onnx_condense.data import InputSpec, input_specs
from onnx_condense.data.augment import PINK, photo_noise, picture_axis
from onnx_condense.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from onnx_condense.runtime import Array

SIZES = (2, 3, 5)
"""What symbolic and unknown dimensions take, one feed each; primes, so that no reshape fits by accident."""

LARGER = ((32, 64, 96), (128, 256, 384), (1024, 2048, 4096), (16384, 32768, 65536))
"""What they take where a network needs more: kernels without pads, sizes that are halved and doubled again, sound."""

MOST = 2**22
"""Elements of one feed at most, if it is not of the smallest sizes."""

MIDDLE, CONTRAST = 127.5, 64.0
"""Brightness and spread of pictures of bytes."""

_FLOATS = frozenset({"float16", "bfloat16", "float32", "float64"})
_CARRIES_VALUES = frozenset({"Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Transpose", "Expand"})
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
        small = sizes == SIZES or all(_elements(s) <= MOST for s in shapes)
        if small and shapes not in seen:
            seen.append(shapes)
            yield draw_feeds(graph, seed, rows, sizes)


def draw_feeds(
    graph: onnx.GraphProto, seed: int, rows: Sequence[int] = SIZES, sizes: Sequence[int] = SIZES
) -> list[dict[str, Array]]:
    """Feeds whose symbolic dimensions are 2, then 3, then 5; fixed ones as declared.

    Floats are N(0, 1). Integers lie in [0, rows) of the smallest constant that they index through Gather, directly or
    through ops that only move or cast them, or below the number of values that a one-hot code of them tells apart
    (OneHot, Equal with a stored table); other integers and booleans in {0, 1}.

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


def _elements(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Numbers of one feed."""
    return sum(map(math.prod, shapes.values()))


def _draw(spec: InputSpec, shape: tuple[int, ...], limits: Mapping[str, int], rng: np.random.Generator) -> Array:
    if spec.dtype.name in _FLOATS:
        return np.asarray(rng.standard_normal(shape)).astype(spec.dtype)
    if spec.dtype.kind in "biu":
        return np.asarray(rng.integers(0, limits.get(spec.name, 2), shape)).astype(spec.dtype)
    kind = "string" if spec.dtype.kind == "O" else spec.dtype.name
    text = f"input '{spec.name}' is of type {kind}, for which no values can be drawn; give real ones with --calibration"
    raise ModelError("draw-type", text, spec.name)


@dataclasses.dataclass(frozen=True)
class Look:
    """How floats are drawn: noise of spread 1, times `scale`, plus `shift`.

    fall: the power of the frequency by which amplitudes fall; None: as in photos for pictures, 0 (white) for the rest.
    """

    fall: float | None = None
    scale: float = 1.0
    shift: float = 0.0


PLAIN = Look()


class Drawer:
    """Draws samples for the inputs of one graph.

    Floats are N(0, 1), integers and booleans as in `draw_feeds`; what has the shape of pictures (see `data.augment`)
    is noise with their spectrum, of mean 0 and spread 1, and from 0 to 255 where it is of unsigned bytes.

    Raises:
        ModelError: see `draw_feeds`.
    """

    def __init__(self, graph: onnx.GraphProto, seed: int) -> None:
        self.specs = input_specs(graph)
        self._limits = {s.name: _index_limit(graph, s) for s in self.specs if s.dtype.kind in "iu"}
        self._seed = seed
        for spec in self.specs:
            _draw(spec, (0,), self._limits, np.random.default_rng(0))

    @property
    def resizable(self) -> bool:
        """Whether an axis other than the rows has no fixed size."""
        free = [{d for d in s.shape[s.has_free_rows :] if not isinstance(d, int)} for s in self.specs]
        return bool(set().union(*free))

    @property
    def has_floats(self) -> bool:
        """Whether there are inputs that a look changes."""
        return any(s.dtype.name in _FLOATS for s in self.specs)

    @property
    def sliced(self) -> bool:
        """Whether samples can be rows of arrays."""
        return any(s.has_free_rows or (s.shape and s.shape[0]) for s in self.specs)

    def has_pictures(self, size: int) -> bool:
        """Whether an input of floats has the shape of pictures."""
        floats = [s for s in self.specs if s.dtype.name in _FLOATS]
        return any(picture_axis((1,) * s.has_free_rows + self.shape(s, size)) is not None for s in floats)

    def shape(self, spec: InputSpec, size: int) -> tuple[int, ...]:
        """What one sample of an input has, sizes that are free replaced; without rows where these are free."""
        return tuple(d if isinstance(d, int) else size for d in spec.shape[spec.has_free_rows :])

    def rows(self, count: int, size: int, look: Look = PLAIN) -> dict[str, Array]:
        """So many samples as arrays by input name, as `data.load` slices them; only where that can be, see `sliced`.

        Where rows are free each is a sample, else as many as the network declares; `size` is that of all other free
        axes. Equal for equal arguments, graph and seed.
        """
        free = any(s.has_free_rows for s in self.specs)
        block = next((s.shape[0] for s in self.specs if s.shape and s.shape[0]), None)
        arrays = {}
        for number, spec in enumerate(self.specs):
            shape = self.shape(spec, size)
            if spec.has_free_rows:
                shape = (count, *shape)
            elif not free and spec.shape and shape[0] == block:
                shape = (count * shape[0], *shape[1:])
            arrays[spec.name] = self._array(spec, shape, np.random.default_rng((self._seed, number)), look)
        return arrays

    def elements(self, rows: int, size: int) -> int:
        """Numbers of one feed of such sizes."""
        return _elements(_shapes(self.specs, rows, size))

    def feed(self, index: int, rows: int, size: int) -> dict[str, Array]:
        """The feed of this index, with so many rows where these are free, and `size` along all other free axes."""
        shapes = _shapes(self.specs, rows, size)
        rng = np.random.default_rng((self._seed, len(self.specs), index))
        return {s.name: self._array(s, shapes[s.name], rng, PLAIN) for s in self.specs}

    def _array(self, spec: InputSpec, shape: tuple[int, ...], rng: np.random.Generator, look: Look) -> Array:
        axis = picture_axis(shape)
        floats, bytes_ = spec.dtype.name in _FLOATS, spec.dtype == np.uint8 and self._limits[spec.name] == 2
        if not floats and (axis is None or not bytes_):
            return _draw(spec, shape, self._limits, rng)
        noise = _white(shape, rng) if axis is None else _photos(shape, axis, look.fall, rng)
        if bytes_:
            return np.clip(MIDDLE + CONTRAST * noise, 0, 255).astype(np.uint8)
        return (look.scale * noise + look.shift).astype(spec.dtype)


def _white(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    return np.asarray(rng.standard_normal(shape, np.float32))


def _photos(shape: tuple[int, ...], axis: int, fall: float | None, rng: np.random.Generator) -> Array:
    """Pictures [N, ...] of noise, the axis of colours at `axis`."""
    result = np.empty(shape, np.float32)
    sizes = tuple(shape[a] for a in (axis, *(a for a in (1, 2, 3) if a != axis)))
    for at in range(len(result)):
        noise = photo_noise(sizes, rng.uniform(*PINK) if fall is None else fall, rng)
        result[at] = np.moveaxis(noise, 0, axis - 1)
    return result


def _index_limit(graph: onnx.GraphProto, spec: InputSpec) -> int:
    """The number of rows that the input may index: those of the smallest constant it reaches; 2 if it reaches none."""
    constants = _constants(graph)
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
            found.append(constants[node.input[0]].dims[axis])
        elif node.op_type in {"OneHot", "Equal"}:
            found += _one_hot_limit(
                node.op_type, [constants.get(name) for name in node.input], node.input[0] in reached
            )
    return max(1, min(*found, int(np.iinfo(spec.dtype).max) + 1)) if found else 2


def _one_hot_limit(op: str, operands: Sequence[onnx.TensorProto | None], first: bool) -> list[int]:
    """How many values are told apart, as far as it is stored; first: whether the first operand is the input's."""
    table = operands[1] if op == "OneHot" or first else operands[0]
    if table is None or table.data_location == table.EXTERNAL:
        return []
    values = onnx.numpy_helper.to_array(table).reshape(-1)
    if op == "OneHot":
        return [int(abs(values[0]))] if first and values.size else []
    # A comparison with a single number is a condition, no code.
    return [int(values.max()) + 1] if values.size > 1 and values.dtype.kind in "iu" and values.max() > 0 else []


def _constants(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Initializers and what Constant nodes hold as a tensor."""
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        value: Any = next((a.t for a in node.attribute if a.name == "value"), None)
        if node.op_type == "Constant" and value is not None:
            found[node.output[0]] = value
    return found
