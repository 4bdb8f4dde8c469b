"""Lowering of Resize and Upsample: each axis on its own, by the formulas of the operator's specification.

Source: https://onnx.ai/onnx/operators/onnx__Resize.html. Coordinates are computed in single precision as ONNX Runtime
does, so that ties between neighbours are broken alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from onnx_condense.tune.step import RefusedError, Rule, Run, Step, Tensor, indices, integers

Array = npt.NDArray[Any]
_ONE = np.float32(1)
_HALF = np.float32(0.5)


@dataclasses.dataclass(frozen=True)
class Stretch:
    """One axis: sizes before and after, and the factor between them, which rounded sizes need not tell."""

    axis: int
    old: int
    new: int
    scale: np.float32


Place = Callable[[Array, Stretch], Array]
"""Coordinates before from coordinates after, both float32."""


def _half_pixel(x: Array, s: Stretch) -> Array:
    return (x + _HALF) / s.scale - _HALF


def _symmetric(x: Array, s: Stretch) -> Array:
    adjustment = np.float32(s.new) / (s.scale * np.float32(s.old))
    centre = np.float32(s.old) / np.float32(2)
    return centre * (_ONE - adjustment) + _half_pixel(x, s)


def _pytorch(x: Array, s: Stretch) -> Array:
    return _half_pixel(x, s) if s.new > 1 else np.zeros_like(x)


def _corners(x: Array, s: Stretch) -> Array:
    return x * np.float32(s.old - 1) / np.float32(s.new - 1) if s.new > 1 else np.zeros_like(x)


def _asymmetric(x: Array, s: Stretch) -> Array:
    return x / s.scale


def _tf_half_pixel(x: Array, s: Stretch) -> Array:
    return (x + _HALF) / s.scale


PLACES: Mapping[str, Place] = {
    "half_pixel": _half_pixel,
    "half_pixel_symmetric": _symmetric,
    "pytorch_half_pixel": _pytorch,
    "align_corners": _corners,
    "asymmetric": _asymmetric,
    "tf_half_pixel_for_nn": _tf_half_pixel,
}

ROUNDINGS: Mapping[str, Callable[[Array], Array]] = {
    "round_prefer_floor": lambda x: np.ceil(x - _HALF),
    "round_prefer_ceil": lambda x: np.floor(x + _HALF),
    "floor": np.floor,
    "ceil": np.ceil,
}


def _nearest(x: Tensor, s: Stretch, place: Place, rounding: Callable[[Array], Array]) -> Tensor:
    at = rounding(place(np.arange(s.new, dtype=np.float32), s))
    return x.index_select(s.axis, indices(np.clip(at, 0, s.old - 1), x))


def _linear(x: Tensor, s: Stretch, place: Place) -> Tensor:
    at = np.clip(place(np.arange(s.new, dtype=np.float32), s), 0, s.old - 1)
    low = np.floor(at)
    part = torch.from_numpy((at - low).astype(np.float32)).to(x.device, x.dtype)
    part = part.reshape(-1, *[1] * (x.ndim - 1 - s.axis))
    below, above = (indices(np.minimum(low + i, s.old - 1), x) for i in (0, 1))
    return x.index_select(s.axis, below) * (1 - part) + x.index_select(s.axis, above) * part


def _stretched(step: Step, place: Place, rounding: Callable[[Array], Array]) -> Callable[[Tensor, Stretch], Tensor]:
    mode = step.get("mode", "nearest")
    if mode == "nearest":
        return lambda x, s: _nearest(x, s, place, rounding)
    if mode == "linear":
        return lambda x, s: _linear(x, s, place)
    raise RefusedError(f"mode = {mode}")


def _apply(x: Tensor, one: Callable[[Tensor, Stretch], Tensor], stretches: list[Stretch]) -> Tensor:
    for s in stretches:
        if s.old != s.new or s.scale != _ONE:
            x = one(x, s)
    return x


def _by_scales(x: Tensor, axes: list[int], scales: list[float]) -> list[Stretch]:
    singles = [np.float32(s) for s in scales]
    return [Stretch(a, x.shape[a], int(np.floor(x.shape[a] * s)), s) for a, s in zip(axes, singles, strict=True)]


def _by_sizes(x: Tensor, axes: list[int], sizes: list[int]) -> list[Stretch]:
    return [Stretch(a, x.shape[a], n, np.float32(n) / np.float32(x.shape[a])) for a, n in zip(axes, sizes, strict=True)]


def _resize(step: Step) -> Run:
    if step.opset < 11:
        return _scaled(step)
    transform, rounding = (
        step.get("coordinate_transformation_mode", "half_pixel"),
        step.get("nearest_mode", "round_prefer_floor"),
    )
    if transform not in PLACES or rounding not in ROUNDINGS:
        raise RefusedError(f"coordinate_transformation_mode = {transform}, nearest_mode = {rounding}")
    step.only("antialias", 0)
    step.only("keep_aspect_ratio_policy", "stretch")
    # These speak of cubic interpolation, and of what lies outside of a crop.
    step.get("cubic_coeff_a")
    step.get("extrapolation_value")
    step.only("exclude_outside", 0)
    given = step.get("axes")
    one = _stretched(step, PLACES[transform], ROUNDINGS[rounding])

    def run(x: Tensor, _roi: Tensor | None = None, scales: Tensor | None = None, sizes: Tensor | None = None) -> Tensor:
        axes = list(range(x.ndim)) if given is None else [axis % x.ndim for axis in given]
        # One that is not meant may be there, and empty.
        if sizes is not None and sizes.numel():
            return _apply(x, one, _by_sizes(x, axes, integers(sizes)))
        assert scales is not None
        return _apply(x, one, _by_scales(x, axes, scales.reshape(-1).tolist()))

    return run


def _scaled(step: Step) -> Run:
    """Upsample and the first Resize: scales, places without half pixels, rounded down."""
    scales = step.get("scales")
    one = _stretched(step, _asymmetric, np.floor)

    def run(x: Tensor, operand: Tensor | None = None) -> Tensor:
        factors = scales if operand is None else operand.reshape(-1).tolist()
        return _apply(x, one, _by_scales(x, list(range(x.ndim)), factors))

    return run


RULES: Mapping[str, Rule] = {
    "Resize": Rule(_resize, lists=frozenset({1, 2, 3}), since=10),
    "Upsample": Rule(_scaled, lists=frozenset({1})),
}
