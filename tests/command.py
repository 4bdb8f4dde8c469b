"""The command, called as from a shell, with a pipeline that only remembers or with the real one."""

from __future__ import annotations

import hashlib
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typer.testing import CliRunner

from onnx_condense.cli import app
from onnx_condense.report.data import (
    Change,
    ErrorSummary,
    Latency,
    Origin,
    OutputError,
    RefusalRow,
    Report,
    SpaceRow,
    WorstFeature,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from typer.testing import Result

ORIGIN = Origin({"onnx-condense": "0"}, "a machine", None, "net.onnx", "aa")
Y = OutputError("y", 0.0093, WorstFeature(31, 0.302), (0.0088, 0.0099))
CONDENSED = Report(
    "condensed",
    dry_run=False,
    parameters=Change(6_921_454, 447_213),
    macs=Change(6_916_200, 445_999),
    bytes=Change(27_691_234, 1_799_321),
    error=ErrorSummary("relative", 0.0093, 0.01, 1638, 1, (Y,)),
    latency=(Latency("CPUExecutionProvider", 2, 1, 1.234, 0.1834, 6.72, (6.4, 7.1)),),
    spaces=(SpaceRow("h", ("/fc1/Gemm",), ("/fc2/Gemm",), 3200, 301, 0.0042),),
    refusals=(RefusalRow("y", "/fc3/Gemm", "graph output"),),
    origin=ORIGIN,
    seconds=38.2,
)


class FakePipeline:
    """Stands in for the pipeline: answers with a report, or raises; remembers how it was called."""

    def __init__(self) -> None:
        self.report = CONDENSED
        self.action: Callable[[], object] = lambda: None
        self.save_action: Callable[[], object] = lambda: None
        self.calls: list[dict[str, Any]] = []

    def condense(self, model: Path, **options: Any) -> types.SimpleNamespace:
        """As the pipeline's."""
        self.calls.append({"model": model, **options})
        self.action()
        return types.SimpleNamespace(report=self.report, save=self.save)

    def save(self, path: Path) -> None:
        """As the result's."""
        self.save_action()
        path.write_bytes(b"condensed")

    def raises(self, error: BaseException) -> None:
        """Let every call end in `error`."""

        def action() -> None:
            raise error

        self.action = action


def call(*arguments: str) -> Result:
    """What comes of it, in a terminal of 100 columns without colours."""
    return CliRunner().invoke(app, [*arguments], env={"COLUMNS": "100", "NO_COLOR": "1"})


def assert_one_line(result: Result, exit_code: int, *words: str) -> None:
    """The exit code, nothing on stdout, and one line on stderr that has all `words`."""
    assert result.exit_code == exit_code, result.output
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("onnx-condense: error: ")
    for word in words:
        assert word in result.stderr


def state(folder: Path = Path()) -> dict[str, str]:
    """What lies in the folder, by content; hidden files too."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "folder"
        for p in sorted(folder.rglob("*"))
    }
