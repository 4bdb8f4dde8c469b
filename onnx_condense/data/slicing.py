"""Samples from arrays: which inputs are cut along axis 0, how many rows make a sample, and what belongs together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_condense.data.conform import GROUP, check_feed, conform, match_names, refuse, show_shape
from onnx_condense.data.samples import Rows, make_feeds
from onnx_condense.errors import CalibrationError
from onnx_condense.wording import counted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from onnx_condense.data.samples import InputSpec, Samples
    from onnx_condense.plan import IntArray
    from onnx_condense.runtime import Array


def load_rows(where: str, values: Mapping[str, Any], specs: Sequence[InputSpec]) -> Samples:
    """Checked samples from arrays whose axis 0 counts them, or the one feed that they are; see `load`."""
    arrays, group = match_names(where, values, specs)
    sliced, block = _find_sliced(where, arrays, specs)
    if not sliced:
        feed, notes = check_feed(where, values, specs)
        return make_feeds(1, notes, lambda _: feed)
    size = block or 1
    notes = []
    for spec in specs:
        cut = spec in sliced
        arrays[spec.name] = conform(where, spec, arrays[spec.name], size if cut else None, notes)
        if not cut:
            notes.append(f"input '{spec.name}' has no sample axis: passed whole with each batch")
    rows = _count_rows(where, arrays, sliced, size)
    count, rest = divmod(rows, size)
    if rest:
        notes.append(f"the last {rest} of {rows} rows are left out: the network takes {size} rows at a time")
    rowwise = {spec.name: arrays.pop(spec.name) for spec in sliced}
    groups = _equal_samples(rowwise, count) if group is None else _group_codes(where, group, rows, size)
    repeats = count - len(np.unique(groups)) if group is None else 0
    if repeats:
        again = f"{repeats} of {counted(count, 'sample')} {'repeats' if repeats == 1 else 'repeat'} others"
        notes.append(f"{again}: equal samples stay on one side of the split")
    return Rows(groups, tuple(notes), rowwise, whole=arrays, block=block)


def _equal_samples(rowwise: Mapping[str, Array], count: int) -> IntArray:
    """One group per distinct sample [count]: a copy of what was fitted on would judge nothing."""
    groups = np.zeros(count, np.int64)
    for array in rowwise.values():
        size = len(array) // count
        rows = np.ascontiguousarray(array[: size * count]).reshape(count, -1)
        if rows.dtype.kind == "f":
            rows = rows + rows.dtype.type(0)  # zeros of either sign are one number in other bytes
        if not rows.shape[1]:
            continue
        if rows.dtype.hasobject:
            rows = rows.astype(np.str_)
        _, codes = np.unique(rows.view(np.dtype((np.void, rows.itemsize * rows.shape[1]))), return_inverse=True)
        _, groups = np.unique(np.stack([groups, codes.reshape(-1)], 1), axis=0, return_inverse=True)
    # Named by the first sample of each, so that distinct samples number as they stand.
    _, first, codes = np.unique(groups.reshape(-1), return_index=True, return_inverse=True)
    return np.asarray(first[codes.reshape(-1)], np.int64)


def _find_sliced(
    where: str, arrays: Mapping[str, Array], specs: Sequence[InputSpec]
) -> tuple[list[InputSpec], int | None]:
    """The inputs whose axis 0 counts samples, and the rows of one sample where the network fixes them."""
    free = [spec for spec in specs if spec.has_free_rows]
    symbols = {spec.shape[0] for spec in free} - {None}
    for spec in specs:
        if symbols & set(spec.shape[1:]):
            # Cutting rows would also have to cut this axis: the samples are tied to each other.
            text = f"repeats the sample axis, shape {show_shape(spec.shape)}; give a folder, one file per feed"
            refuse("slicing", where, spec, text)
    if free:
        return free, None
    sliced: list[InputSpec] = []
    block = None
    for spec in specs:
        array, size = arrays[spec.name], spec.shape[0] if spec.shape else None
        if not isinstance(size, int) or size == 0 or array.ndim != len(spec.shape) or len(array) == size:
            continue
        block = block or size
        if size != block:
            text = f"has another fixed first dimension than '{sliced[0].name}'; give a folder, one file per feed"
            refuse("slicing", where, spec, text)
        sliced.append(spec)
    return sliced, block


def _count_rows(where: str, arrays: Mapping[str, Array], sliced: Sequence[InputSpec], block: int) -> int:
    first = sliced[0]
    rows = len(arrays[first.name])
    for spec in sliced:
        if (own := len(arrays[spec.name])) != rows:
            text = f"has {own} rows, '{first.name}' has {rows}; give the same number, or a folder, one file per feed"
            refuse("length", where, spec, text)
    if rows < block:
        refuse("empty", where, first, f"has {rows} rows: no sample; give at least {block}")
    return rows


def _group_codes(where: str, group: object, rows: int, block: int) -> IntArray:
    """One integer a sample from one value a row."""
    values = np.asarray(group)
    if values.shape != (rows,):
        text = f"{where}: '{GROUP}' has shape {show_shape(values.shape)}; give one value per row, [{rows}]"
        raise CalibrationError("calibration-groups", text, GROUP)
    if values.dtype.kind in "fcmM" and np.isnan(values).any():
        text = f"{where}: '{GROUP}' holds NaN, which is no group; give every row a value"
        raise CalibrationError("calibration-groups", text, GROUP)
    values = values.astype(str) if values.dtype.kind == "O" else values
    codes = np.unique(values, return_inverse=True)[1].astype(np.int64)
    blocks = codes[: rows - rows % block].reshape(-1, block)
    mixed = np.flatnonzero((blocks != blocks[:, :1]).any(axis=1))
    if mixed.size:
        text = f"{where}: '{GROUP}' differs within rows {block * mixed[0]} to {block * mixed[0] + block - 1}, which "
        raise CalibrationError("calibration-groups", text + "the network takes at once; give them one value", GROUP)
    return blocks[:, 0].copy()
