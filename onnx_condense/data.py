"""Calibration sources: files or arrays in, checked feeds out, split into shares.

Owns what may be used as a sample of a network's inputs. Two kinds of source exist. *Sliced*: one array per input whose
axis 0 counts samples, so that batches can be gathered by index. *Feeds*: whole calls of the network, one sample each,
never cut. Which features are computed from the samples is the business of the stages.
"""

from __future__ import annotations

import abc
import dataclasses
import lzma
import os
import re
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeAlias, runtime_checkable

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from onnx_condense import runtime
from onnx_condense.errors import CalibrationError, ModelError
from onnx_condense.runtime import Array

if TYPE_CHECKING:
    import onnxruntime as ort

    from onnx_condense.plan import IntArray

GROUP = "group"
"""Key of the array that tells which samples belong together, unless the network has an input of that name."""

SMALLEST_SHARE = 5
PROBE = 4
"""How many samples are compared with themselves when the effect of slicing is measured."""

# What numpy, zipfile and protobuf raise on damaged files, found by flipping bytes. RuntimeError: an encrypted zip.
_ARRAY_ERRORS = (
    *(OSError, EOFError, ValueError, TypeError, KeyError, OverflowError, MemoryError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, tokenize.TokenError, SyntaxError),
)
_PROTO_ERRORS = (OSError, ValueError, TypeError, KeyError, MemoryError, DecodeError, onnx.checker.ValidationError)
_PROTO_INPUT = re.compile(r"input_(\d+)\.pb")


@runtime_checkable
class FeedReader(Protocol):
    """The protocol of ``onnxruntime.quantization.CalibrationDataReader``."""

    def get_next(self) -> Mapping[str, Any] | None:
        """The next feed, None after the last."""


Source: TypeAlias = str | os.PathLike[str] | Array | Mapping[str, Any] | FeedReader | Iterable[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """One graph input that is no initializer; `shape` holds sizes, symbolic names, and None for unknown."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...]

    @property
    def has_free_rows(self) -> bool:
        """Whether axis 0 exists and takes any size."""
        return bool(self.shape) and not isinstance(self.shape[0], int)


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """One call of the network and the indices of the samples in it, in the order of the rows."""

    feed: dict[str, Array]
    samples: IntArray


@dataclasses.dataclass(frozen=True, eq=False)
class Samples(abc.ABC):
    """Checked samples.

    groups: [n] int64, equal for samples that must end up in the same share.
    sliced: whether a sample is a slice of arrays (else a feed of its own).
    notes: what was cast, dropped or passed whole, for the report.
    """

    groups: IntArray
    sliced: bool
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.groups)

    @abc.abstractmethod
    def batches(self, indices: IntArray, rows: int = 1024) -> Iterator[Batch]:
        """Feeds with the samples `indices` [k], in that order; at most `rows` rows each where rows are free.

        Raises:
            CalibrationError: a file of a folder changed since it was checked.
        """


@dataclasses.dataclass(frozen=True, eq=False)
class _Rows(Samples):
    """Sliced samples: `arrays` by axis 0, `whole` with each batch; `block` rows a sample if the network fixes them."""

    arrays: Mapping[str, Array]
    whole: Mapping[str, Array]
    block: int | None

    def batches(self, indices: IntArray, rows: int = 1024) -> Iterator[Batch]:
        step = rows if self.block is None else 1
        for start in range(0, len(indices), step):
            chunk = np.asarray(indices[start : start + step], np.int64)
            picked = chunk if self.block is None else chunk[0] * self.block + np.arange(self.block)
            yield Batch({**{n: a[picked] for n, a in self.arrays.items()}, **self.whole}, chunk)


@dataclasses.dataclass(frozen=True, eq=False)
class _Feeds(Samples):
    """Whole feeds, fetched one at a time."""

    fetch: Callable[[int], dict[str, Array]]

    def batches(self, indices: IntArray, rows: int = 1024) -> Iterator[Batch]:
        del rows  # a feed is never cut or joined
        for index in indices:
            yield Batch(dict(self.fetch(int(index))), np.array([index], np.int64))


@dataclasses.dataclass(frozen=True, eq=False)
class Shares:
    """Which samples fit the readers, steer the search, and verify the result: ascending int64 indices."""

    fit: IntArray
    search: IntArray
    verify: IntArray


def input_specs(graph: onnx.GraphProto) -> tuple[InputSpec, ...]:
    """What the graph must be fed, in its order.

    Raises:
        ModelError: an input is no tensor, or has no element type or no shape.
    """
    given = {t.name for t in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
    return tuple(_input_spec(value) for value in graph.input if value.name not in given)


def _input_spec(value: onnx.ValueInfoProto) -> InputSpec:
    kind = value.type.WhichOneof("value") or "untyped value"
    if kind != "tensor_type":
        text = f"input '{value.name}' is a {kind.removesuffix('_type')}: only networks with tensor inputs are supported"
        raise ModelError("input-type", text, value.name)
    tensor = value.type.tensor_type
    if not tensor.elem_type or not tensor.HasField("shape"):
        text = f"input '{value.name}' declares no element type or no shape: export the network with both"
        raise ModelError("input-type", text, value.name)
    # Old exporters write -1 for an unknown size.
    shape = tuple(
        (d.dim_value if d.dim_value >= 0 else None) if d.HasField("dim_value") else d.dim_param or None
        for d in tensor.shape.dim
    )
    return InputSpec(value.name, np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)), shape)


def load(source: Source, specs: Sequence[InputSpec]) -> Samples:
    """Reads and checks a calibration source; nothing is ever unpickled.

    An .npz, .npy, mapping of arrays or single array is *sliced* along axis 0:

    - Inputs whose first dimension is symbolic or unknown are sliced, one row a sample. The others are passed whole with
      each batch and must have exactly the shape that the network declares.
    - If no input has such a dimension, those with more (or fewer) rows than the B that the network declares are sliced,
      B rows a sample; rows that don't fill a block are left out. The others are passed whole. If nothing differs from
      the declared shapes, the source is a single feed.

    A ``group`` array, one value a row, keeps samples together in `split`. A folder (of .npz and .npy files or
    ``test_data_set_*`` folders, or one such folder), an iterable of feeds and a CalibrationDataReader give one sample
    and one group a feed. Every file of a folder is read and checked here, one at a time, and read again when its turn
    comes: faults and casts are known before any work starts, and memory holds one feed.

    Args:
        source: path, arrays, or feeds; iterables and readers are drained and kept in memory.
        specs: the inputs of the network; arrays must have their shapes, and dtypes that cast to theirs without loss.

    Raises:
        CalibrationError: the source is missing, unreadable or empty, or does not fit the network.
    """
    if isinstance(source, (str, os.PathLike)):
        return _load_path(Path(source), specs)
    if isinstance(source, np.ndarray):
        return _load_rows("calibration array", _name_single("calibration array", source, specs), specs)
    if isinstance(source, Mapping):
        return _load_rows("calibration arrays", source, specs)
    return _load_feeds(_drain(source), specs)


def _load_path(path: Path, specs: Sequence[InputSpec]) -> Samples:
    try:
        if path.is_dir():
            return _load_folder(path, specs)
        path.stat()
    except OSError as error:
        text = f"{path}: no such file or folder, or no right to read it; check the path"
        raise CalibrationError("calibration-missing", text) from error
    return _load_rows(str(path), _read_arrays(path, specs), specs)


def _read_arrays(path: Path, specs: Sequence[InputSpec]) -> dict[str, Any]:
    """The arrays of one .npz or .npy by input name."""
    try:
        # Opened here: numpy leaves a file open whose zip directory is damaged.
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return _name_single(str(path), loaded, specs)
            return {name: loaded[name] for name in loaded.files}
    except _ARRAY_ERRORS as error:
        if "Object arrays" in str(error):
            text = f"{path}: holds pickled Python objects, which are never loaded; save plain numeric arrays"
            raise CalibrationError("calibration-dtype", text) from error
        text = f"{path}: not a readable .npz or .npy file (damaged or another format); write it with numpy.savez"
        raise CalibrationError("calibration-format", text) from error


def _name_single(where: str, array: Array, specs: Sequence[InputSpec]) -> dict[str, Any]:
    if len(specs) == 1:
        return {specs[0].name: array}
    text = f"{where}: a single array, but the network's inputs are {_names(specs)}; give an .npz with these names"
    raise CalibrationError("calibration-names", text)


def _read_protos(folder: Path, specs: Sequence[InputSpec]) -> dict[str, Any]:
    """The inputs of one ONNX test-data folder: by the name in the file, else by its number."""
    feed: dict[str, Any] = {}
    for number, path in _proto_inputs(folder):
        try:
            tensor = onnx.TensorProto.FromString(path.read_bytes())
            array = onnx.numpy_helper.to_array(tensor, str(folder))
        except _PROTO_ERRORS as error:
            text = f"{path}: not a readable tensor (damaged or another format); write it with onnx.save_tensor"
            raise CalibrationError("calibration-format", text) from error
        feed[tensor.name or (specs[number].name if number < len(specs) else path.name)] = array
    return feed


def _proto_inputs(folder: Path) -> list[tuple[int, Path]]:
    found = ((_PROTO_INPUT.fullmatch(path.name), path) for path in folder.iterdir())
    return sorted((int(match[1]), path) for match, path in found if match)


def _is_feed(path: Path) -> bool:
    if path.name.startswith("."):
        return False
    return path.name.startswith("test_data_set_") if path.is_dir() else path.suffix.lower() in {".npz", ".npy"}


def _load_folder(folder: Path, specs: Sequence[InputSpec]) -> Samples:
    if _proto_inputs(folder):
        paths, others = [folder], 0
    else:
        entries = sorted(folder.iterdir())
        paths = [path for path in entries if _is_feed(path)]
        others = len(entries) - len(paths)
    if not paths:
        text = f"{folder}: no .npz or .npy file and no test_data_set_* folder in it; check the path"
        raise CalibrationError("calibration-empty", text)

    def read(index: int) -> tuple[dict[str, Array], list[str]]:
        path = paths[index]
        return _check_feed(str(path), (_read_protos if path.is_dir() else _read_arrays)(path, specs), specs)

    notes = [f"{folder}: {others} other entries ignored"] if others else []
    for index in range(len(paths)):
        notes += read(index)[1]
    return _make_feeds(len(paths), notes, lambda index: read(index)[0])


def _make_feeds(count: int, notes: Iterable[str], fetch: Callable[[int], dict[str, Array]]) -> Samples:
    return _Feeds(np.arange(count, dtype=np.int64), sliced=False, notes=_unique(notes), fetch=fetch)


def _drain(source: object) -> list[Any]:
    # Iterating needs neither onnxruntime.quantization (heavy to import) nor a reader that derives from its class.
    if isinstance(source, FeedReader):
        feeds = []
        while (feed := source.get_next()) is not None:
            feeds.append(feed)
        return feeds
    if isinstance(source, Iterable):
        return list(source)
    text = f"calibration: {type(source).__name__} is no path, array, mapping of arrays or iterable of feeds; give one"
    raise CalibrationError("calibration-format", text)


def _load_feeds(feeds: Sequence[Any], specs: Sequence[InputSpec]) -> Samples:
    checked: list[dict[str, Array]] = []
    notes: list[str] = []
    for index, feed in enumerate(feeds):
        if not isinstance(feed, Mapping):
            text = f"feed {index}: {type(feed).__name__} is no feed; give mappings from input name to array"
            raise CalibrationError("calibration-format", text)
        arrays, found = _check_feed(f"feed {index}", feed, specs)
        checked.append(arrays)
        notes += found
    if not checked:
        text = "calibration: no feeds came; give at least one (a reader or generator that was used up starts anew)"
        raise CalibrationError("calibration-empty", text)
    return _make_feeds(len(checked), notes, checked.__getitem__)


def _check_feed(
    where: str, values: Mapping[str, Any], specs: Sequence[InputSpec]
) -> tuple[dict[str, Array], list[str]]:
    """One whole feed with the network's shapes and dtypes, and notes."""
    arrays, group = _match_names(where, values, specs)
    notes = [] if group is None else ["the group arrays of single feeds are not read: each feed is its own group"]
    for spec in specs:
        arrays[spec.name] = _conform(where, spec, arrays[spec.name], None, notes)
        if not arrays[spec.name].size and 0 not in spec.shape:
            _refuse("empty", where, spec, "has no elements; give at least one sample")
    return arrays, notes


def _load_rows(where: str, values: Mapping[str, Any], specs: Sequence[InputSpec]) -> Samples:
    arrays, group = _match_names(where, values, specs)
    sliced, block = _find_sliced(where, arrays, specs)
    if not sliced:
        feed, found = _check_feed(where, values, specs)
        return _make_feeds(1, found, lambda _: feed)
    notes: list[str] = []
    for spec in specs:
        step = (block or 1) if spec in sliced else None
        arrays[spec.name] = _conform(where, spec, arrays[spec.name], step, notes)
        if step is None:
            notes.append(f"input '{spec.name}' has no sample axis: passed whole with each batch")
    rows = _count_rows(where, arrays, sliced, block or 1)
    count, rest = divmod(rows, block or 1)
    if rest:
        notes.append(f"the last {rest} of {rows} rows are left out: the network takes {block} rows at a time")
    cut = {spec.name: arrays.pop(spec.name) for spec in sliced}
    groups = np.arange(count, dtype=np.int64) if group is None else _group_codes(where, group, rows, block or 1)
    return _Rows(groups, sliced=True, notes=_unique(notes), arrays=cut, whole=arrays, block=block)


def _find_sliced(
    where: str, arrays: Mapping[str, Array], specs: Sequence[InputSpec]
) -> tuple[list[InputSpec], int | None]:
    """The inputs whose axis 0 counts samples, and the rows of one sample where the network fixes them."""
    free = [spec for spec in specs if spec.has_free_rows]
    symbols = {spec.shape[0] for spec in free} - {None}
    for spec in specs:
        if symbols & set(spec.shape[1:]):
            # Cutting rows would also have to cut this axis: the samples are tied to each other.
            text = f"repeats the sample axis, shape {_show(spec.shape)}; give a folder, one file per feed"
            _refuse("slicing", where, spec, text)
    if free:
        return free, None
    sliced = [s for s in specs if s.shape and s.shape[0] and arrays[s.name].shape[:1] not in {(), s.shape[:1]}]
    sliced = [s for s in sliced if arrays[s.name].ndim == len(s.shape)]
    blocks = {spec.shape[0] for spec in sliced}
    if len(blocks) > 1:
        text = f"has another fixed first dimension than '{sliced[0].name}'; give a folder, one file per feed"
        _refuse("slicing", where, next(s for s in sliced if s.shape[0] != sliced[0].shape[0]), text)
    return sliced, next((block for block in blocks if isinstance(block, int)), None)


def _count_rows(where: str, arrays: Mapping[str, Array], sliced: Sequence[InputSpec], block: int) -> int:
    first = sliced[0]
    rows = len(arrays[first.name])
    for spec in sliced:
        if (own := len(arrays[spec.name])) != rows:
            text = f"has {own} rows, '{first.name}' has {rows}; give the same number, or a folder, one file per feed"
            _refuse("length", where, spec, text)
    if rows < block:
        _refuse("empty", where, first, f"has {rows} rows: no sample; give at least {block}")
    return rows


def _group_codes(where: str, group: object, rows: int, block: int) -> IntArray:
    """One integer a sample from one value a row."""
    values = np.asarray(group)
    if values.shape != (rows,):
        text = f"{where}: '{GROUP}' has shape {_show(values.shape)}; give one value per row, [{rows}]"
        raise CalibrationError("calibration-groups", text, GROUP)
    values = values.astype(str) if values.dtype.kind == "O" else values
    codes = np.unique(values, return_inverse=True)[1].astype(np.int64)
    blocks = codes[: rows - rows % block].reshape(-1, block)
    mixed = np.flatnonzero((blocks != blocks[:, :1]).any(axis=1))
    if mixed.size:
        text = f"{where}: '{GROUP}' differs within rows {block * mixed[0]} to {block * mixed[0] + block - 1}, which "
        raise CalibrationError("calibration-groups", text + "the network takes at once; give them one value", GROUP)
    return blocks[:, 0].copy()


def _match_names(
    where: str, values: Mapping[str, Any], specs: Sequence[InputSpec]
) -> tuple[dict[str, Array], object | None]:
    """The arrays of the network's inputs, in its order, and the group array."""
    wanted = {spec.name for spec in specs}
    extra = [name for name in values if name not in wanted and name != GROUP]
    if extra:
        text = f"{where}: {extra[0]!r} is no input of the network; its inputs are {_names(specs)}; rename or remove it"
        raise CalibrationError("calibration-names", text, str(extra[0]))
    for spec in specs:
        if spec.name not in values:
            _refuse("names", where, spec, f"is missing; the network's inputs are {_names(specs)}; add it")
    group = None if GROUP in wanted else values.get(GROUP)
    return {spec.name: _as_array(where, spec, values[spec.name]) for spec in specs}, group


def _as_array(where: str, spec: InputSpec, value: object) -> Array:
    try:
        return np.asarray(value)
    except ValueError:
        _refuse("shape", where, spec, f"is ragged; give an array of shape {_show(spec.shape)}")


def _conform(where: str, spec: InputSpec, array: Array, step: int | None, notes: list[str]) -> Array:
    """The array with the dtype of the input, checked; `step` rows are one sample (None: all of it); adds to notes."""
    fixed = spec.shape if step is None else (None, *spec.shape[1:])
    if array.ndim != len(fixed) or any(isinstance(d, int) and d != n for d, n in zip(fixed, array.shape, strict=True)):
        rows = " (axis 0 counts samples)" if step else ""
        text = f"has shape {_show(array.shape)}, the network takes {_show(spec.shape)}{rows}; reshape it"
        _refuse("shape", where, spec, text)
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
    return _refuse("dtype", where, spec, f"has dtype {array.dtype}, the network takes strings; give str values")


def _check_values(where: str, spec: InputSpec, array: Array, step: int | None) -> None:
    """Refuses what is no number, NaN and infinity."""
    if array.dtype.kind not in "biufc" and (array.dtype.kind != "V" or array.dtype.type is np.void):
        text = f"has dtype {array.dtype}, the network takes {_type(spec)}; give a plain numeric array"
        _refuse("dtype", where, spec, text)
    if array.dtype.kind in "biu":
        return
    # numpy calls the types of ml_dtypes void and has no isfinite for all of them; all fit float64.
    finite = np.isfinite(array.astype(np.float64) if array.dtype.kind == "V" else array)
    if not finite.all():
        bad = np.flatnonzero(~finite.reshape(len(array), -1).all(axis=1))[0] // step if step else None
        place = "" if bad is None else f", first in sample {bad}"
        _refuse("values", where, spec, f"holds NaN or infinity{place}; remove such samples")


def _cast(where: str, spec: InputSpec, array: Array) -> Array:
    if array.dtype == spec.dtype:
        return array
    if "c" not in {array.dtype.kind, spec.dtype.kind}:
        with np.errstate(all="ignore"):
            cast = array.astype(spec.dtype)
            if _is_lossless(array, cast):
                return cast
    text = f"has dtype {array.dtype} with values that {_type(spec)} can't hold exactly; "
    return _refuse("dtype", where, spec, f"{text}the network takes {_type(spec)}: cast it before saving")


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


def _refuse(slug: str, where: str, spec: InputSpec, text: str) -> NoReturn:
    raise CalibrationError(f"calibration-{slug}", f"{where}: input '{spec.name}' {text}", spec.name)


def _names(specs: Sequence[InputSpec]) -> str:
    return ", ".join(f"'{spec.name}'" for spec in specs)


def _show(shape: Sequence[int | str | None]) -> str:
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in shape) + "]"


def _type(spec: InputSpec) -> str:
    return "string" if spec.dtype.kind == "O" else str(spec.dtype)


def _unique(notes: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(notes))


def split(samples: Samples, seed: int, *, separate_verification: bool = False) -> Shares:
    """Deals whole groups, shuffled by the seed, into 60 % fit, 20 % search, 20 % verify as closely as they allow.

    Args:
        samples: n samples.
        seed: same seed and groups, same shares.
        separate_verification: verification has a source of its own: 75 % fit, 25 % search, none verify.

    Raises:
        CalibrationError: a share would have fewer than 5 samples.
    """
    weights = (3, 1) if separate_verification else (3, 1, 1)
    shares = _deal(samples.groups, weights, seed)
    if min(len(share) for share in shares) < SMALLEST_SHARE:
        raise _too_few(samples.groups, weights)
    return Shares(*shares, *([] if len(shares) == 3 else [np.empty(0, np.int64)]))


def _deal(groups: IntArray, weights: Sequence[int], seed: int) -> list[IntArray]:
    """Largest group first, ties in random order, each to the share that lacks most; none stays empty if avoidable."""
    _, inverse, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    lacks = [weight * len(groups) for weight in weights]
    full = list(lacks)
    owner = np.zeros(len(sizes), np.int64)
    for position, group in enumerate(order.tolist()):
        empty = [s for s, lack in enumerate(lacks) if lack == full[s]]
        choice = empty if len(order) - position <= len(empty) else range(len(weights))
        share = max(choice, key=lacks.__getitem__)
        owner[group] = share
        lacks[share] -= sum(weights) * int(sizes[group])
    return [np.flatnonzero(owner[inverse] == share).astype(np.int64) for share in range(len(weights))]


def _too_few(groups: IntArray, weights: Sequence[int]) -> CalibrationError:
    count, distinct = len(groups), len(np.unique(groups))
    needed = SMALLEST_SHARE * sum(weights)
    has = f"calibration: {count} samples"
    if count < needed:
        return CalibrationError("calibration-few", f"{has}, at least {needed} are needed; give more")
    text = f"{has} in {distinct} groups, which never split: {len(weights)} shares of at least {SMALLEST_SHARE} samples "
    return CalibrationError("calibration-groups", text + f"need at least {len(weights)} groups; give more groups")


def check_independent(samples: Samples, session: ort.InferenceSession, output_names: Sequence[str]) -> None:
    """Measures that slicing does not change the function: samples run together and alone must agree.

    Any source: the same feed run twice must agree. Sliced sources with free rows: up to 4 samples spread over all are
    run together and alone; every output must have one row a sample, equal within 1e-3 of the output's magnitude
    (1e-2 for 16-bit floats), and for other types within 1 % of the elements.

    Raises:
        CalibrationError: the network is random, or the outputs of a sample depend on its batch.
        ModelError: the network runs neither a single sample nor several.
    """

    def attempt(indices: IntArray) -> list[Array] | ModelError:
        (batch,) = samples.batches(indices, PROBE)
        try:
            return runtime.run(session, batch.feed, output_names)
        except ModelError as error:
            return error

    picked = np.unique(np.linspace(0, len(samples) - 1, PROBE).astype(np.int64))
    once, twice = attempt(picked[:1]), attempt(picked[:1])
    if isinstance(once, list) and isinstance(twice, list):
        _check_repeatable(once, twice, output_names)
    cuttable = isinstance(samples, _Rows) and samples.block is None and len(picked) > 1
    joint = attempt(picked) if cuttable else once
    if isinstance(once, ModelError) and isinstance(joint, ModelError):
        raise joint
    if not cuttable:
        return
    _check_rows(joint, [once, *(attempt(picked[i : i + 1]) for i in range(1, len(picked)))], output_names)


def _check_repeatable(once: Sequence[Array], twice: Sequence[Array], names: Sequence[str]) -> None:
    for name, first, second in zip(names, once, twice, strict=True):
        if not _agree(first, second):
            text = f"output '{name}' differs between two runs of one feed: the network is random; remove its random ops"
            raise CalibrationError("calibration-random", text, name)


def _check_rows(joint: list[Array] | ModelError, lone: list[list[Array] | ModelError], names: Sequence[str]) -> None:
    alone = [outputs for outputs in lone if isinstance(outputs, list)]
    for position, name in enumerate(names):
        if isinstance(joint, list) and len(alone) == len(lone):
            single = [outputs[position] for outputs in alone]
            together = joint[position]
            stackable = {rows.shape for rows in single} == {(1, *together.shape[1:])}
            if stackable and _agree(together, np.concatenate(single)):
                continue
        text = (
            f"output '{name}' of one sample depends on the others in its batch (recurrent op, CumSum or Reshape along "
        )
        text += "it, or a random op): the samples can't be sliced; give a folder, one file per feed"
        raise CalibrationError("calibration-slicing", text, name)


def _agree(left: Array, right: Array) -> bool:
    if left.shape != right.shape:
        return False
    if left.dtype.kind != "f":
        return not left.size or float(np.mean(left != right)) <= 0.01
    share = 1e-2 if left.dtype.itemsize < 4 else 1e-3
    finite = np.isfinite(left)
    scale = float(np.abs(left[finite], dtype=np.float64).max(initial=0.0))
    return bool(np.allclose(left.astype(np.float64), right.astype(np.float64), 0, share * scale, equal_nan=True))
