"""The files that the command reads and writes: may it, and how to do it without harm."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from onnx_condense.errors import ModelError, UsageError


def check_writable(path: Path, name: str, others: dict[str, Path | None], *, pipes: bool = False) -> None:
    """UsageError unless a file can be put at `path` without harm to the others."""
    for other_name, other in others.items():
        if other is not None and same_file(path, other):
            raise UsageError("same-file", f"{path}: {name} and {other_name} are the same file")
    status = status_of(path)
    if status is not None and stat.S_ISDIR(status.st_mode):
        raise UsageError("out-folder", f"{path}: {name} is a folder; name a file")
    if status is not None and not stat.S_ISREG(status.st_mode):
        # A rename would replace the device or pipe itself.
        if pipes and os.access(path, os.W_OK):
            return
        raise UsageError("out-special", f"{path}: {name} is not a regular file")
    folder = status_of(path.parent)
    if folder is None or not stat.S_ISDIR(folder.st_mode):
        raise UsageError("out-folder-missing", f"{path}: {name} can't be written: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UsageError("out-not-writable", f"{path}: {name} can't be written: no permission in {path.parent}")


def check_new_folder(folder: Path, name: str) -> None:
    """UsageError unless a folder can be made at `folder`, or an empty one is there."""
    status = status_of(folder, follow=False)
    if status is not None and not stat.S_ISDIR(status.st_mode):
        raise UsageError("out-exists", f"{folder}: {name} makes a folder, but that is something else; name another one")
    if status is not None and any(folder.iterdir()):
        raise UsageError("out-exists", f"{folder}: {name} needs a new or an empty folder; name another one")
    if same_file(folder, Path()):
        raise UsageError("out-folder", f"{folder}: {name} is the folder that you are in; name a new one")
    parent = status_of(folder.parent)
    if parent is None or not stat.S_ISDIR(parent.st_mode):
        raise UsageError("out-folder-missing", f"{folder}: {name} can't be made: there is no folder {folder.parent}")
    if not os.access(folder.parent, os.W_OK | os.X_OK):
        raise UsageError("out-not-writable", f"{folder}: {name} can't be made: no permission in {folder.parent}")


def status_of(path: Path, *, follow: bool = True) -> os.stat_result | None:
    """What is at a path, or None."""
    try:
        return path.stat(follow_symlinks=follow)
    except OSError:
        return None


def same_file(one: Path, other: Path) -> bool:
    """Whether two paths lead to one file, by links of either kind."""
    first, second = status_of(one), status_of(other)
    if first is not None and second is not None:
        return os.path.samestat(first, second)
    return os.path.realpath(one) == os.path.realpath(other)


def check_source(source: Path) -> None:
    """ModelError unless IN is a file that can be read."""
    try:
        mode = source.stat().st_mode
    except FileNotFoundError as error:
        raise ModelError("model-missing", f"{source}: no such file") from error
    except OSError as error:
        raise ModelError("model-unreadable", f"{source}: can't be read: {error.strerror}") from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a device or pipe"
        raise ModelError("model-not-a-file", f"{source}: is {kind}, not an ONNX file")
    if not os.access(source, os.R_OK):
        raise ModelError("model-unreadable", f"{source}: can't be read: no permission")


@contextlib.contextmanager
def ready(path: Path, text: str) -> Iterator[Callable[[], object]]:
    """A text on the disk beside its place; what is yielded puts it there, so that nobody ever reads half a file.

    What stood there stays until then, and for good where that is not called. A pipe or device is written to at once.
    """
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8")
        yield lambda: None
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        yield lambda: temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def put_text(path: Path, text: str) -> None:
    """A text at its place, as `ready` puts it there."""
    with ready(path, text) as put:
        put()
