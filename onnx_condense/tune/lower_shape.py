"""Lowerings of ops that move, pick, join and repeat elements, and of what is computed about shapes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch.nn import functional as fun

from onnx_condense.tune.step import HOST, RefusedError, Rule, Run, Step, Tensor, array_of, indices, integers

Operands = tuple[Tensor | None, ...]


def _data(operands: Operands) -> Tensor:
    first = operands[0]
    assert first is not None
    return first


def _flatten(step: Step) -> Run:
    axis = step.get("axis", 1)

    def run(x: Tensor) -> Tensor:
        at = axis % x.ndim if axis < 0 else axis
        return x.reshape(math.prod(x.shape[:at]), math.prod(x.shape[at:]))

    return run


def _reshape(step: Step) -> Run:
    keep_zero = step.get("allowzero", 0)

    def run(x: Tensor, shape: Tensor) -> Tensor:
        sizes = integers(shape)
        return x.reshape([x.shape[i] if n == 0 and not keep_zero else n for i, n in enumerate(sizes)])

    return run


def _transpose(step: Step) -> Run:
    order = step.get("perm")
    return lambda x: x.permute(order if order is not None else tuple(reversed(range(x.ndim))))


def _squeeze(step: Step) -> Run:
    axes_of = step.numbers("axes", 1)

    def run(*operands: Tensor | None) -> Tensor:
        x, axes = _data(operands), axes_of(operands)
        if axes is None:
            return x.squeeze()
        gone = {axis % x.ndim for axis in axes}
        return x.reshape([n for axis, n in enumerate(x.shape) if axis not in gone])

    return run


def _unsqueeze(step: Step) -> Run:
    axes_of = step.numbers("axes", 1)

    def run(*operands: Tensor | None) -> Tensor:
        x, axes = _data(operands), axes_of(operands)
        assert axes is not None
        rank = x.ndim + len(axes)
        for axis in sorted(axis % rank for axis in axes):
            x = x.unsqueeze(axis)
        return x

    return run


def _concat(step: Step) -> Run:
    axis = step.get("axis")
    return lambda *operands: torch.cat(operands, axis)


def _split(step: Step) -> Run:
    axis, count = step.get("axis", 0), step.get("num_outputs", len(step.node.outputs))
    sizes_of = step.numbers("split", 1)

    def run(*operands: Tensor | None) -> tuple[Tensor, ...]:
        x, sizes = _data(operands), sizes_of(operands)
        if sizes is None:
            # The last part is smaller where they can't be equal.
            part, size = math.ceil(x.shape[axis] / count), x.shape[axis]
            sizes = [part] * (count - 1) + [size - part * (count - 1)]
        return torch.split_with_sizes(x, sizes, axis)

    return run


def _slice(step: Step) -> Run:
    lists = [step.numbers(name, i + 1) for i, name in enumerate(("starts", "ends", "axes", "steps"))]

    def run(*operands: Tensor | None) -> Tensor:
        x = _data(operands)
        starts, ends, axes, steps = (found(operands) for found in lists)
        assert starts is not None
        assert ends is not None
        axes = list(range(len(starts))) if axes is None else axes
        steps = [1] * len(starts) if steps is None else steps
        for start, end, axis, stride in zip(starts, ends, axes, steps, strict=True):
            x = _sliced(x, axis, slice(start, end, stride))
        return x

    return run


def _sliced(x: Tensor, axis: int, part: slice) -> Tensor:
    size = x.shape[axis]
    if part.step > 0:
        start, end, stride = part.indices(size)
        return x[(slice(None),) * (axis % x.ndim) + (slice(start, max(start, end), stride),)]
    # As ONNX has it: an end that is negative counts from behind, unless it lies before the first element.
    low = -1 if part.stop < -size else part.stop + size * (part.stop < 0)
    high = min(max(part.start + size * (part.start < 0), 0), size - 1)
    return x.index_select(axis, indices(np.arange(high, min(low, size - 1), part.step), x))


def _expand(x: Tensor, shape: Tensor) -> Tensor:
    return x.expand(np.broadcast_shapes(x.shape, tuple(integers(shape))))


def _tile(x: Tensor, repeats: Tensor) -> Tensor:
    return x.repeat(integers(repeats))


_PADDINGS = ("reflect", "edge", "wrap")


def _pad(step: Step) -> Run:
    mode = step.get("mode", "constant")
    if mode not in {"constant", *_PADDINGS}:
        raise RefusedError(f"mode = {mode}")
    pads_of, axes_of, value = step.numbers("pads", 1), step.numbers("axes", 3), step.get("value", 0.0)

    def run(*operands: Tensor | None) -> Tensor:
        x, pads = _data(operands), pads_of(operands)
        assert pads is not None
        axes = axes_of(operands)
        axes = list(range(x.ndim)) if axes is None else [axis % x.ndim for axis in axes]
        pairs = dict(zip(axes, zip(pads[: len(axes)], pads[len(axes) :], strict=True), strict=True))
        if mode != "constant":
            return functools.reduce(functools.partial(_padded, mode=mode), pairs.items(), x)
        number = operands[2] if len(operands) > 2 else None
        flat = [n for axis in reversed(range(x.ndim)) for n in pairs.get(axis, (0, 0))]
        return fun.pad(x, flat, value=value if number is None else number.item())

    return run


def _padded(x: Tensor, where: tuple[int, tuple[int, int]], mode: str) -> Tensor:
    axis, (before, after) = where
    if not before and not after:
        return x
    kept = np.arange(max(-before, 0), x.shape[axis] - max(-after, 0))
    # ONNX and numpy share the names of modes; which one it is, is known only here, where the overloads want a literal.
    wide = np.pad(kept, (max(before, 0), max(after, 0)), mode)  # type: ignore[call-overload]
    return x.index_select(axis, indices(wide, x))


def _depth_to_space(step: Step) -> Run:
    size, mode = step.get("blocksize"), step.get("mode", "DCR")
    if mode not in {"DCR", "CRD"}:
        raise RefusedError(f"mode = {mode}")

    def run(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        if mode == "CRD":
            return fun.pixel_shuffle(x, size)
        parts = x.reshape(n, size, size, c // size**2, h, w)
        return parts.permute(0, 3, 4, 1, 5, 2).reshape(n, c // size**2, h * size, w * size)

    return run


def _space_to_depth(step: Step) -> Run:
    size = step.get("blocksize")

    def run(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        parts = x.reshape(n, c, h // size, size, w // size, size)
        return parts.permute(0, 3, 5, 1, 2, 4).reshape(n, c * size**2, h // size, w // size)

    return run


def _shape(step: Step) -> Run:
    part = slice(step.get("start", 0), step.get("end"))
    return lambda x: torch.tensor(x.shape[part], dtype=torch.int64, device=HOST)


def _size(x: Tensor) -> Tensor:
    return torch.tensor(x.numel(), dtype=torch.int64, device=HOST)


def _range(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype, device=HOST)


def _constant_of_shape(step: Step) -> Run:
    value = step.get("value")
    number = torch.zeros(()) if value is None else array_of(value).reshape(())
    return lambda shape: number.expand(integers(shape)).clone()


def _trilu(step: Step) -> Run:
    upper = step.get("upper", 1)

    def run(x: Tensor, k: Tensor | None = None) -> Tensor:
        diagonal = 0 if k is None else int(k.item())
        return x.triu(diagonal) if upper else x.tril(diagonal)

    return run


def _arg(function: Callable[..., Tensor]) -> Rule:
    def build(step: Step) -> Run:
        axis, keep = step.get("axis", 0), bool(step.get("keepdims", 1))
        step.only("select_last_index", 0)
        return lambda x: function(x, axis, keepdim=keep)

    return Rule(build)


def _listed(build: Callable[[Step], Run], *positions: int) -> Rule:
    return Rule(build, lists=frozenset(positions))


def _as_it_is(function: Run, positions: Sequence[int]) -> Rule:
    return Rule(lambda _: function, lists=frozenset(positions))


RULES: Mapping[str, Rule] = {
    "Flatten": Rule(_flatten),
    "Reshape": _listed(_reshape, 1),
    "Transpose": Rule(_transpose),
    "Squeeze": _listed(_squeeze, 1),
    "Unsqueeze": _listed(_unsqueeze, 1),
    "Concat": Rule(_concat),
    "Split": _listed(_split, 1),
    "Slice": _listed(_slice, 1, 2, 3, 4),
    "Expand": _as_it_is(_expand, [1]),
    "Tile": _as_it_is(_tile, [1]),
    "Pad": _listed(_pad, 1, 2, 3),
    "DepthToSpace": Rule(_depth_to_space),
    "SpaceToDepth": Rule(_space_to_depth),
    "Shape": Rule(_shape),
    "Size": _as_it_is(_size, []),
    "Range": _as_it_is(_range, [0, 1, 2]),
    "ConstantOfShape": _listed(_constant_of_shape, 0),
    "Trilu": _listed(_trilu, 1),
    "ArgMax": _arg(torch.argmax),
    "ArgMin": _arg(torch.argmin),
}
