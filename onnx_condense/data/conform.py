"""Whether arrays fit the inputs of a network: names, shapes, values, and casts that lose nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from onnx_condense.errors import CalibrationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from onnx_condense.data.samples import InputSpec
    from onnx_condense.runtime import Array

GROUP = "group"
"""Key of the array that tells which samples belong together, unless the network has an input of that name."""


def check_feed(where: str, values: Mapping[str, Any], specs: Sequence[InputSpec]) -> tuple[dict[str, Array], list[str]]:
    """One whole feed with the network's shapes and dtypes, and notes."""
    arrays, group = match_names(where, values, specs)
    notes = [] if group is None else ["the group arrays of single feeds are not read: each feed is its own group"]
    for spec in specs:
        arrays[spec.name] = conform(where, spec, arrays[spec.name], None, notes)
        if not arrays[spec.name].size and 0 not in spec.shape:
            refuse("empty", where, spec, "has no elements; give at least one sample")
    return arrays, notes


def match_names(
    where: str, values: Mapping[str, Any], specs: Sequence[InputSpec]
) -> tuple[dict[str, Array], object | None]:
    """The arrays of the network's inputs, in its order, and the group array."""
    wanted = {spec.name for spec in specs}
    extra = [name for name in values if name not in wanted and name != GROUP]
    if extra:
        text = f"{where}: {extra[0]!r} is no input of the network; its inputs are {quoted(specs)}; rename or remove it"
        raise CalibrationError("calibration-names", text, str(extra[0]))
    for spec in specs:
        if spec.name not in values:
            refuse("names", where, spec, f"is missing; the network's inputs are {quoted(specs)}; add it")
    group = None if GROUP in wanted else values.get(GROUP)
    return {spec.name: _as_array(where, spec, values[spec.name]) for spec in specs}, group


def _as_array(where: str, spec: InputSpec, value: object) -> Array:
    try:
        return np.asarray(value)
    except ValueError:
        refuse("shape", where, spec, f"is ragged; give an array of shape {show_shape(spec.shape)}")


def conform(where: str, spec: InputSpec, array: Array, step: int | None, notes: list[str]) -> Array:
    """The array with the dtype of the input, checked; `step` rows are one sample (None: all of it); adds to notes."""
    fixed = spec.shape if step is None else (None, *spec.shape[1:])
    if array.ndim != len(fixed) or any(isinstance(d, int) and d != n for d, n in zip(fixed, array.shape, strict=True)):
        rows = " (axis 0 counts samples)" if step else ""
        text = f"has shape {show_shape(array.shape)}, the network takes {show_shape(spec.shape)}{rows}; reshape it"
        refuse("shape", where, spec, text)
    if spec.dtype.kind == "O":
        cast = _strings(where, spec, array)
    else:
        _check_values(where, spec, array, step)
        cast = _cast(where, spec, array)
    if cast.dtype != array.dtype:
        notes.append(f"input '{spec.name}': {array.dtype} cast to {_type(spec)} without loss")
    return cast


def _strings(where: str, spec: InputSpec, array: Array) -> Array:
    if array.dtype.kind == "U" or all(isinstance(value, str) for value in array.flat):
        return array.astype(object)
    return refuse("dtype", where, spec, f"has dtype {array.dtype}, the network takes strings; give str values")


def _check_values(where: str, spec: InputSpec, array: Array, step: int | None) -> None:
    """Refuses what is no number, NaN and infinity."""
    if array.dtype.kind not in "biufc" and (array.dtype.kind != "V" or array.dtype.type is np.void):
        text = f"has dtype {array.dtype}, the network takes {_type(spec)}; give a plain numeric array"
        refuse("dtype", where, spec, text)
    if array.dtype.kind in "biu":
        return
    # numpy calls the types of ml_dtypes void and has no isfinite for all of them; all fit float64.
    finite = np.isfinite(array.astype(np.float64) if array.dtype.kind == "V" else array)
    if not finite.all():
        bad = np.flatnonzero(~finite.reshape(len(array), -1).all(axis=1))[0] // step if step else None
        place = "" if bad is None else f", first in sample {bad}"
        refuse("values", where, spec, f"holds NaN or infinity{place}; remove such samples")


def _cast(where: str, spec: InputSpec, array: Array) -> Array:
    if array.dtype == spec.dtype:
        return array
    if "c" not in {array.dtype.kind, spec.dtype.kind}:
        with np.errstate(all="ignore"):
            cast = array.astype(spec.dtype)
            if _is_lossless(array, cast):
                return cast
    text = f"has dtype {array.dtype} with values that {_type(spec)} can't hold exactly; "
    return refuse("dtype", where, spec, f"{text}the network takes {_type(spec)}: cast it before saving")


def _is_lossless(before: Array, after: Array) -> bool:
    """Whether a cast kept every value."""
    for integers, others in ((before, after), (after, before)):
        # Out of range, some processors saturate, and the round trip of 2^63 - 1 would seem exact.
        limit = float(np.iinfo(integers.dtype).max) + 1 if integers.dtype.kind in "iu" else np.inf
        if others.dtype.kind == "f" and bool((others >= limit).any()):
            return False
    # A round trip alone lets -1 -> uint64 -> -1 pass; comparing alone lets int64 -> float64 pass, which rounds both.
    standard = {before.dtype.kind, after.dtype.kind} <= set("biuf")
    same = np.array_equal(after.astype(before.dtype), before)
    return same and (not standard or np.array_equal(before, after))


def refuse(slug: str, where: str, spec: InputSpec, text: str) -> NoReturn:
    """Raises one line that names the source and the input."""
    raise CalibrationError(f"calibration-{slug}", f"{where}: input '{spec.name}' {text}", spec.name)


def quoted(specs: Sequence[InputSpec]) -> str:
    """The names, quoted."""
    return ", ".join(f"'{spec.name}'" for spec in specs)


def show_shape(shape: Sequence[int | str | None]) -> str:
    """As [N, 3, ?]."""
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in shape) + "]"


def _type(spec: InputSpec) -> str:
    return "string" if spec.dtype.kind == "O" else str(spec.dtype)
