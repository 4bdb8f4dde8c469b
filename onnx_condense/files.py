"""Writing networks: whole or not at all, weights beside them where they were beside the input.

A condensed network whose input kept its weights in files of their own keeps them in one file,
`<OUT without its ending>.<8 hex digits>.data`. The digits are the start of the SHA-256 of what is in it, so that a
file is never overwritten by another one: whoever still loads an older OUT finds its weights as they were. Older files
are therefore left alone, and one with the same name and content is used again.
"""

from __future__ import annotations

import contextlib
import filecmp
import hashlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, numpy_helper

from onnx_condense.errors import UsageError
from onnx_condense.network.external import Key, byte_count, external_files, is_external, refer, stored_tensors
from onnx_condense.network.model import PROTOBUF_LIMIT, Network, serialized
from onnx_condense.paths import same_file, status_of

# Smaller tensors stay in the network: a file of their own would save nothing, and readers want them at once.
SMALLEST = 1024
# Large tensors start on a page, so that they can be mapped into memory; others on a cache line.
LARGE, PAGE, LINE = 2**20, 4096, 64
DIGITS = 8
# The longest name that file systems take, with what else says where a tensor lies.
REFERENCE = 255 + 128


def save_condensed(model: onnx.ModelProto, source: Network, path: Path) -> None:
    """Write a condensed network, its weights beside it if those of its source lay in files of their own.

    A tensor stays in the network if it did so in the source, or if it has less than 1 KiB; the others go into the
    weights file, in the order in which the network stores them. The same network gives the same bytes of both files.
    The weights are written first and taken back if the network itself can't be written. Links at `path` are followed
    for the network, but the weights lie beside `path` itself.

    Raises:
        ModelError: the network alone is over 2 GiB. UsageError: one of the files can't be written, or something else
            has its name.
    """
    check_target(path, "OUT", path, source.weights.folder, external_files(source.proto))
    with contextlib.ExitStack() as undo:
        if external_files(source.proto):
            model = _with_weights_beside(model, source.proto, path, undo)
        write_atomically(path, serialized(model))
        undo.pop_all()


def written_size(model: onnx.ModelProto, source: Network) -> int:
    """Bytes that `save_condensed` writes at most, weights beside the network included.

    How much at most: each tensor that lies outside names its file, and how long that name is nobody knows yet.
    """
    total = model.ByteSize()
    if not external_files(source.proto):
        return total
    inside = {key for key, tensor in stored_tensors(source.proto) if not is_external(tensor)}
    end = 0
    for key, tensor in stored_tensors(model):
        if _goes_out(key, tensor, inside):
            gap = -end % (PAGE if byte_count(tensor) >= LARGE else LINE)
            total, end = total + gap + REFERENCE, end + gap + byte_count(tensor)
    return total


def copy_unchanged(network: Network, path: Path) -> None:
    """The input file, byte for byte, at another place; its external weights go along under their own names.

    Raises:
        UsageError: another file has the name of the weights there, or the place can't be written.
    """
    names = external_files(network.proto)
    folder = network.weights.folder
    check_target(path, "OUT", path, folder, names)
    data = serialized(network.given) if network.path is None else network.path.read_bytes()
    with contextlib.ExitStack() as undo:
        if folder.resolve() != path.parent.resolve():
            _copy_weights(folder, path.parent, names, undo)
        write_atomically(path, data)
        undo.pop_all()


def check_target(
    target: Path, name: str, out: Path | None, folder: Path, weights: Sequence[str], whose: str = "IN"
) -> None:
    """See that no weights are in the way of a file that is going to be written.

    Args:
        target: the file.
        name: how messages name it.
        out: where the network goes; an unchanged one takes its weights along.
        folder: the folder of the network that is read.
        weights: locations of its weights in there.
        whose: how messages name that network.

    Raises:
        UsageError: the file is one of the weights, or would be one of those that go along.
    """
    for location in weights:
        if same_file(target, folder / location):
            raise UsageError("same-file", f"{target}: {name} is the file of {whose}'s weights; name another one")
        if out is not None and same_file(target, out.parent / location):
            text = f"{target}: {name} has the name of the weights that lie beside OUT; name another one"
            raise UsageError("same-file", text)
    if weights and out is not None and _may_be_weights(target, out):
        raise UsageError("same-file", f"{target}: {name} has a name that OUT's weights may get; name another one")


def _may_be_weights(target: Path, out: Path) -> bool:
    name = rf"{re.escape(out.stem)}\.[0-9a-f]{{{DIGITS}}}\.data"
    return re.fullmatch(name, target.name) is not None and same_file(target.parent, out.parent)


def weights_of(path: Path) -> tuple[str, ...]:
    """Locations of a network's external weights; none where there is no network: reading it will tell why."""
    try:
        if path.stat().st_size > PROTOBUF_LIMIT:
            return ()
        return external_files(onnx.load(path, format="protobuf", load_external_data=False))
    except (DecodeError, OSError):
        return ()


def write_atomically(path: Path, data: bytes) -> None:
    """Write beside the target and rename, so that a half-written file never stands there; links are followed.

    Raises:
        UsageError: the folder is missing or not writable.
    """
    path = Path(os.path.realpath(path))
    with _new_file_beside(path) as temporary:
        with temporary.open("wb") as file:
            file.write(data)
        _put(temporary, path)


@contextlib.contextmanager
def _new_file_beside(path: Path) -> Iterator[Path]:
    """An empty file in the same folder, gone at the end unless it was renamed.

    Raises:
        UsageError: it can't be written; also for an OSError inside the block.
    """
    temporary = None
    try:
        handle, name = tempfile.mkstemp(prefix=".onnx-condense.", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
    except OSError as error:
        raise UsageError("out-not-writable", f"{path}: can't be written: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _put(temporary: Path, path: Path) -> None:
    """Rename a finished file once it is on the disk, with the permissions of any new file."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    umask = os.umask(0)
    os.umask(umask)
    temporary.chmod(0o666 & ~umask)
    temporary.replace(path)


# ---- weights of a condensed network ----


def _with_weights_beside(
    model: onnx.ModelProto, source: onnx.ModelProto, path: Path, undo: contextlib.ExitStack
) -> onnx.ModelProto:
    """A copy that refers to the weights file, which is written here."""
    _check_name(path)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    inside = {key for key, tensor in stored_tensors(source) if not is_external(tensor)}
    moved = [tensor for key, tensor in stored_tensors(copy) if _goes_out(key, tensor, inside)]
    if not moved:
        return copy
    with _new_file_beside(path) as temporary:
        digits = _write_weights(moved, temporary)
        # ONNX takes two dots in a row for a way out of the folder, wherever they stand.
        stem = re.sub(r"\.{2,}", ".", path.stem)
        target = path.with_name(f"{stem}.{digits}.data")
        if not _is_there(temporary, target):
            _put(temporary, target)
            undo.callback(target.unlink, missing_ok=True)
    for tensor in moved:
        tensor.external_data[0].value = target.name
    return copy


def _goes_out(key: Key, tensor: TensorProto, inside: set[Key]) -> bool:
    return key not in inside and tensor.data_type != TensorProto.STRING and byte_count(tensor) >= SMALLEST


def _write_weights(tensors: Sequence[TensorProto], path: Path) -> str:
    """Move the data of tensors into a file, the location left open; the digits that name its content."""
    digest = hashlib.sha256()
    end = 0
    with path.open("wb") as file:
        for tensor in tensors:
            raw = tensor.raw_data or numpy_helper.from_array(numpy_helper.to_array(tensor)).raw_data
            gap = -end % (PAGE if len(raw) >= LARGE else LINE)
            for piece in (bytes(gap), raw):
                file.write(piece)
                digest.update(piece)
            refer(tensor, "", end + gap, len(raw))
            end += gap + len(raw)
    return digest.hexdigest()[:DIGITS]


def _check_name(path: Path) -> None:
    """A network names its weights file as text, so a name in bytes of another kind can't be written down."""
    try:
        path.name.encode()
    except UnicodeEncodeError as error:
        text = f"{os.fsencode(path)!r}: OUT's name is not UTF-8, as ONNX wants the name of its weights; choose another"
        raise UsageError("out-name", text) from error


# ---- weights of an unchanged network ----


def _copy_weights(source: Path, folder: Path, names: Sequence[str], undo: contextlib.ExitStack) -> None:
    """Copy weights files that are not there yet; a file of that name with other content is somebody else's."""
    missing = [name for name in names if not _is_there(source / name, folder / name)]
    for name in missing:
        target = folder / name
        for parent in [p for p in reversed(target.parents) if not p.exists()]:
            parent.mkdir()
            undo.callback(parent.rmdir)
        with _new_file_beside(target) as temporary:
            shutil.copyfile(source / name, temporary)
            _put(temporary, target)
            undo.callback(target.unlink, missing_ok=True)


def _is_there(wanted: Path, target: Path) -> bool:
    """Whether a weights file is at its place already.

    Raises:
        UsageError: something else is there, or a link, which ONNX does not follow for weights.
    """
    status = status_of(target, follow=False)
    if status is None:
        return False
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        raise UsageError("out-exists", f"{target}: weights go here, but it is no plain file (a link?); remove it")
    if not filecmp.cmp(wanted, target, shallow=False):
        text = f"{target}: exists and holds other weights than those that go here; write to another folder"
        raise UsageError("out-exists", text)
    return True
