"""The error/size front of one run: networks between the dense one and the smallest sensible one, and their files.

Every one of them is refitted, checked against its plan, measured on samples that the search did not see, and timed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import onnx

from onnx_condense.cost import Work
from onnx_condense.errors import UsageError
from onnx_condense.files import save_condensed
from onnx_condense.network.model import Network, serialized
from onnx_condense.outcome import Candidate, Condensed
from onnx_condense.paths import check_new_folder, put_text
from onnx_condense.report.data import FrontRow, FrontTiming, Latency
from onnx_condense.report.needs import can_plot
from onnx_condense.search.budget import Point

# So many networks, up to this error, or this many times the tolerance where that is less.
STOPS, LARGEST, TIMES = 8, 0.5, 20.0

COLOURS = {"ink": "#111", "muted": "#555", "rule": "#bbb", "accent": "#1f77d0", "dense": "#777", "limit": "#b03030"}

Member = tuple[onnx.ModelProto, FrontRow]


def largest_error(tolerance: float | None) -> float:
    """Up to which error networks are made."""
    return LARGEST if not tolerance else min(LARGEST, TIMES * tolerance)


def stops(path: Sequence[Point], last: int) -> list[Point]:
    """Stops behind the first up to the last one, about evenly apart in the logarithm of their parameters."""
    most, least = (math.log(max(path[i].parameters, 1)) for i in (0, last))
    wanted = [most + (least - most) * i / STOPS for i in range(1, STOPS + 1)]
    nearest = (min(range(1, last + 1), key=lambda i: abs(math.log(max(path[i].parameters, 1)) - w)) for w in wanted)
    return [path[i] for i in dict.fromkeys(nearest)] if last else []


def members(
    candidates: Iterable[Candidate],
    dense: int,
    time: Callable[[Candidate], Sequence[Latency]],
    work: Work | None = None,
) -> list[Member]:
    """Networks with their rows, largest first; those that another one beats in size and error are left out.

    Args:
        candidates: all that were made.
        dense: parameters of the dense network.
        time: measures one of them.
        work: counts multiply-accumulates.
    """
    found: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda c: (c.parameters, c.proved.error)):
        if candidate.parameters < dense and all(candidate.proved.error < smaller.proved.error for smaller in found):
            found.append(candidate)
    return [(c.model, _row(c, dense, work or Work(), time(c))) for c in reversed(found)]


def _row(candidate: Candidate, dense: int, work: Work, timings: Sequence[Latency]) -> FrontRow:
    return FrontRow(
        file="",
        share=candidate.parameters / dense,
        parameters=candidate.parameters,
        macs=work.of(Network(candidate.model)),
        bytes=len(serialized(candidate.model)),
        error=candidate.proved.error,
        speedups=tuple(FrontTiming(t.provider, t.batch, t.speedup, t.interval) for t in timings),
    )


# ---- files ----


def save_front(condensed: Condensed, name: str, folder: Path) -> None:
    """Write all networks of a front, named NAME-PERCENT.onnx, with front.json, front.md and, if it can, front.svg.

    All or nothing: they are written beside the folder, which then takes its place.

    Raises:
        UsageError: the folder is taken, or it can't be written.
    """
    check_new_folder(folder, "--front")
    with _made(folder) as made:
        rows: list[FrontRow] = []
        for model, row in condensed.front:
            before, file = _size(made), _file(name, row, [r.file for r in rows])
            save_condensed(model, condensed.source, made / file)
            # Weights beside it name their file, and lie with gaps between them.
            rows.append(dataclasses.replace(row, file=file, bytes=_size(made) - before))
        text = json.dumps([dataclasses.asdict(row) for row in rows], indent=2, allow_nan=False)
        put_text(made / "front.json", f"{text}\n")
        put_text(made / "front.md", table(rows))
        if can_plot() and len(rows) > 1:
            from onnx_condense.report import plots

            points = [(100 * row.share, row.error) for row in rows]
            if drawn := plots.front("front", "error against size", "One point per network of the front.", points):
                put_text(made / "front.svg", _alone(drawn))


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[Path]:
    """A new folder that becomes the one named, if nothing goes wrong."""
    try:
        made = Path(tempfile.mkdtemp(prefix=".onnx-condense.", dir=folder.parent))
    except OSError as error:
        raise UsageError("front", f"{folder}: can't be written: {error.strerror or error}") from error
    try:
        yield made
        made.chmod(0o755)
        made.replace(folder)
    except OSError as error:
        raise UsageError("front", f"{folder}: can't be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _size(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(file.stat().st_size for file in folder.iterdir())


def _alone(element: str) -> str:
    """A plot as a file of its own, on white: no page gives it colours or its namespace."""
    for name, colour in COLOURS.items():
        element = element.replace(f"var(--{name})", colour)
    return element.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" style="background:#fff" ', 1) + "\n"


def _file(name: str, row: FrontRow, taken: Sequence[str]) -> str:
    """NAME-PERCENT.onnx, with as many digits as it takes to be the only one."""
    names = (f"{name}-{100 * row.share:.{digits}f}.onnx" for digits in range(17))
    return next(n for n in names if n not in taken)


def table(rows: Sequence[FrontRow]) -> str:
    """The front as a markdown table."""
    batches = (
        [f"{t.provider.removesuffix('ExecutionProvider')}, batch {t.batch}" for t in rows[0].speedups] if rows else []
    )
    columns = ["file", "parameters", "MACs", "bytes", "error", *(f"faster, {b}" for b in batches)]
    lines = [f"| {' | '.join(columns)} |", f"| --- |{' ---: |' * (len(columns) - 1)}"]
    for row in rows:
        times = [f"{t.speedup:.2f}x ({t.interval[0]:.2f} to {t.interval[1]:.2f})" for t in row.speedups]
        size = f"{row.parameters} ({100 * row.share:.3g} %)"
        lines.append(f"| {' | '.join([row.file, size, str(row.macs), str(row.bytes), f'{row.error:.3g}', *times])} |")
    return "\n".join(lines) + "\n"
