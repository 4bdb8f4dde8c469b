"""Where samples come from: files, folders, arrays, feeds and readers."""

from __future__ import annotations

import lzma
import os
import re
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from onnx_condense.data.conform import check_feed, quoted
from onnx_condense.data.samples import make_feeds
from onnx_condense.data.slicing import load_rows
from onnx_condense.errors import CalibrationError
from onnx_condense.runtime import Array

if TYPE_CHECKING:
    from onnx_condense.data.samples import InputSpec, Samples

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
        return load_rows("calibration array", _name_single("calibration array", source, specs), specs)
    if isinstance(source, Mapping):
        return load_rows("calibration arrays", source, specs)
    return _load_feeds(_drain(source), specs)


def _load_path(path: Path, specs: Sequence[InputSpec]) -> Samples:
    try:
        if path.is_dir():
            return _load_folder(path, specs)
        path.stat()
    except OSError as error:
        text = f"{path}: no such file or folder, or no right to read it; check the path"
        raise CalibrationError("calibration-missing", text) from error
    return load_rows(str(path), _read_arrays(path, specs), specs)


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
    text = f"{where}: a single array, but the network's inputs are {quoted(specs)}; give an .npz with these names"
    raise CalibrationError("calibration-names", text)


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
        return check_feed(str(path), (_read_protos if path.is_dir() else _read_arrays)(path, specs), specs)

    notes = [f"{folder}: {others} other entries ignored"] if others else []
    for index in range(len(paths)):
        notes += read(index)[1]
    return make_feeds(len(paths), notes, lambda index: read(index)[0])


def _is_feed(path: Path) -> bool:
    if path.name.startswith("."):
        return False
    return path.name.startswith("test_data_set_") if path.is_dir() else path.suffix.lower() in {".npz", ".npy"}


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
        arrays, found = check_feed(f"feed {index}", feed, specs)
        checked.append(arrays)
        notes += found
    if not checked:
        text = "calibration: no feeds came; give at least one (a reader or generator that was used up starts anew)"
        raise CalibrationError("calibration-empty", text)
    return make_feeds(len(checked), notes, checked.__getitem__)
