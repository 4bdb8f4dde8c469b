"""What a person sees: progress, then one short table, what had to stay, a summary, a closing line.

Tensor and node names come out of untrusted files: they are printed as text, never as markup, and control characters
are escaped. Nothing here decides or measures; the JSON file holds the same report in full.
"""

from __future__ import annotations

import contextlib
import io
import os
import time
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table
from rich.text import Text

from onnx_condense.errors import UsageError
from onnx_condense.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path
    from typing import TextIO

    from rich.console import RenderableType

    from onnx_condense.report.data import (
        Change,
        Coverage,
        ErrorSummary,
        Footprint,
        Latency,
        RefusalRow,
        Report,
        Served,
        SpaceRow,
        Tuning,
    )

SPACE_ROWS = 20
REFUSAL_ROWS = 10
NOTE_ROWS = 10
NARROWEST = 60
MAX_NAME = 200
REFRESH_SECONDS = 0.1
WORST_FEATURE_FACTOR = 10.0
"""A feature this many times above the tolerance is worth a warning: pooling over features hides it."""

_VERDICT_STYLES = {"faster": "green", "slower": "red"}


def inert(text: str) -> str:
    """The text with everything escaped that could move the cursor, change colours or break the line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def shortened(text: str, width: int) -> str:
    """At most `width` characters; the middle goes, and more of the end stays, where exporters put what differs."""
    text = inert(text)
    if len(text) <= width:
        return text
    head = max((width - 3) // 3, 0)
    return f"{text[:head]}...{text[len(text) - (width - 3 - head) :]}"


def windows(names: Sequence[str], width: int) -> list[str]:
    """Each name cut to the stretch in which the names differ, with as much around it as `width` allows."""
    names = [inert(name) for name in names]
    prefix = _common_start(names)
    suffix = _common_start([name[prefix:][::-1] for name in names])
    return [_window(name, width, prefix, len(name) - suffix) for name in names]


def _common_start(names: Sequence[str]) -> int:
    """How many leading characters all names share: those that the first and the last in order share."""
    low, high = min(names), max(names)
    return next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), 0)


def _window(name: str, width: int, start: int, stop: int) -> str:
    spare = width - 6 - (stop - start)
    if len(name) <= width or start == 0 or spare < 0:
        return shortened(name, width)
    start = max(start - (spare + 1) // 2, 0)
    stop = min(start + width - 6, len(name))
    start = max(stop - (width - 6), 0)
    head = name[:start] if start <= 3 else "..."
    tail = name[stop:] if len(name) - stop <= 3 else "..."
    return f"{head}{name[start:stop]}{tail}"


def scaled(values: Sequence[int], unit: str = "") -> list[str]:
    """Counts with three significant digits, all in the prefix that suits the largest."""
    top = max(values, default=0)
    if top < 10_000:
        return [f"{value:,} {unit}".strip() for value in values]
    factor, prefix = 1e3, "k"
    for bigger in "MGT":
        if top < 999.5 * factor:
            break
        factor, prefix = factor * 1e3, bigger
    return [f"{_digits(value / factor)} {prefix}{unit}" for value in values]


def _digits(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:,.0f}"


def share(change: Change) -> str:
    """What is left, as a percentage."""
    return f"{100 * change.after / change.before:.1f} %" if change.before else "-"


def render(report: Report, width: int = 80) -> list[RenderableType]:
    """The parts of the page in reading order; empty parts are left out.

    Args:
        report: what happened.
        width: columns available; names are shortened to fit.
    """
    parts: list[RenderableType] = []
    if report.spaces:
        parts.append(_space_part(report.spaces, width))
    if report.refusals:
        parts.append(_refusal_part(report.refusals, width))
    parts.append(_summary(report))
    return parts


def print_report(report: Report, console: Console) -> None:
    """Print the page, parts separated by an empty line."""
    for index, part in enumerate(render(report, console.width)):
        if index:
            console.print()
        console.print(part, highlight=False)


def page(report: Report, *, width: int, color: bool) -> str:
    """The page as text, with escape sequences only if `color`."""
    buffer = io.StringIO()
    console = Console(file=buffer, width=max(width, NARROWEST), force_terminal=color, legacy_windows=False)
    print_report(report, console)
    # Rich pads cells to the column's width; what is piped into a file needs no trailing blanks.
    return buffer.getvalue() if color else "".join(f"{line.rstrip()}\n" for line in buffer.getvalue().splitlines())


def closing_line(report: Report, source: Path, target: Path | None) -> str:
    """One plain sentence: what was written, and what it is."""
    if report.status == "unchanged":
        reason = inert(report.reason.text) if report.reason else "nothing can be removed"
        copy = f"{inert(str(target))} is a copy of {inert(str(source))}" if target else "dry run: nothing written"
        return f"unchanged: {reason}; {copy}"
    if report.status == "verified":
        result = report.origin.result if report.origin else None
        return f"verified: {inert(str(result))} stands for {inert(str(source))}: {_gist(report)}"
    return (f"wrote {inert(str(target))}: " if target else "dry run: nothing written; it would have ") + _gist(report)


def _gist(report: Report) -> str:
    facts = []
    if report.parameters:
        before, after = scaled([report.parameters.before, report.parameters.after])
        facts.append(f"{after} of {before} parameters ({share(report.parameters)})")
    if report.error:
        gate = "" if report.error.tolerance is None else f" (tolerance {report.error.tolerance:g})"
        facts.append(f"error {report.error.value:.3g}{gate}")
    return ", ".join(facts) or "the same function"


def _space_part(spaces: Sequence[SpaceRow], width: int) -> RenderableType:
    # Most channels saved first to decide who is shown; shown in the network's order.
    order = sorted(range(len(spaces)), key=lambda i: (spaces[i].after - spaces[i].before, i))[:SPACE_ROWS]
    shown = [spaces[i] for i in sorted(order)]
    digits = len(str(max(row.before for row in shown)))
    places: list[list[Sequence[str]]] = [
        [(row.name,) for row in shown],
        [row.writers for row in shown],
        [row.readers for row in shown],
    ]
    needs = [max(len(_joined([names], MAX_NAME)[0]) for names in column) for column in places]
    room = _fair(needs, width - 2 * digits - 4 - 7 - 8)
    columns = [_joined(column, limit) for column, limit in zip(places, room, strict=True)]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("space", "written by", "read by"):
        table.add_column(title, no_wrap=True)
    table.add_column("width", no_wrap=True, justify="right")
    table.add_column("error", no_wrap=True, justify="right")
    profiled = any(row.ms for row in shown)
    if profiled:
        table.add_column("ms", no_wrap=True, justify="right")
    for row, *cells in zip(shown, *columns, strict=True):
        change = f"{row.before} -> {row.after:>{digits}}"
        style = "dim" if row.before == row.after else ""
        last = [Text(change), Text(_predicted(row)), *([Text(_spent(row))] if profiled else [])]
        table.add_row(*(Text(cell) for cell in cells), *last, style=style)
    return Group(table, *_left_out(len(spaces) - len(shown), "space"))


def _predicted(row: SpaceRow) -> str:
    if row.before == row.after:
        return "-"
    return f"{row.error:.2g}" if row.error else "exact"


def _spent(row: SpaceRow) -> str:
    return f"{_digits(row.ms[0])} -> {_digits(row.ms[1])}" if row.ms else "-"


def _fair(needs: Sequence[int], room: int) -> list[int]:
    """Widths that share `room`: who needs little gets it, the others split the rest evenly."""
    grants = [0] * len(needs)
    for left, i in enumerate(sorted(range(len(needs)), key=needs.__getitem__)):
        grants[i] = max(min(needs[i], (room - sum(grants)) // (len(needs) - left)), 10)
    return grants


def _joined(places: Sequence[Sequence[str]], width: int) -> list[str]:
    """The first name of each and how many more there are."""
    more = [f" +{len(names) - 1}" if len(names) > 1 else "" for names in places]
    firsts = windows([names[0] if names else "-" for names in places], width - max(map(len, more)))
    return [first + rest for first, rest in zip(firsts, more, strict=True)]


def _left_out(count: int, noun: str) -> list[RenderableType]:
    return [Text(f"... and {counted(count, f'more {noun}')} (--json has all)", style="dim")] if count > 0 else []


def _refusal_part(refusals: Sequence[RefusalRow], width: int) -> RenderableType:
    groups: dict[str, dict[str, None]] = {}
    for row in refusals:
        groups.setdefault(row.reason, {})[row.node or row.space] = None
    lines: list[RenderableType] = [Text("had to stay", style="bold")]
    for reason, places in list(groups.items())[:REFUSAL_ROWS]:
        lines.append(Padding(Text(f"{_places(list(places), width // 2)}: {inert(reason)}"), (0, 0, 0, 2)))
    return Group(*lines, *_left_out(len(groups) - REFUSAL_ROWS, "reason"))


def _places(names: list[str], width: int) -> str:
    if len(names) == 1:
        return shortened(names[0], width)
    return f"{len(names)} nodes (first: {shortened(names[0], width)})"


def _summary(report: Report) -> RenderableType:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, style="bold")
    grid.add_column(overflow="fold")
    for label, value in _summary_rows(report):
        grid.add_row(label, value)
    return grid


def _summary_rows(report: Report) -> Iterator[tuple[str, Text]]:
    if report.evidence == "synthetic":
        yield "evidence", Text("synthetic: inputs were drawn, which says less than real ones", style="yellow")
    if report.method != "fit":
        yield "method", Text(_method(report))
    for label, change, unit in (
        ("parameters", report.parameters, ""),
        ("MACs", report.macs, ""),
        ("bytes", report.bytes, "B"),
    ):
        if change:
            before, after = scaled([change.before, change.after], unit)
            yield label, Text(f"{before} -> {after}  ({share(change)})")
    if report.error:
        yield from _error_rows(report.error, report.coverage)
    yield from _tuning_rows(report.tuning) if report.tuning else ()
    for latency in report.latency:
        yield f"batch {latency.batch}", _latency_text(latency)
    if report.footprint:
        yield "loading", _footprint_text(report.footprint)
    yield from _note_rows(report.notes)
    yield "time", Text(f"{report.seconds:.1f} s")


def _method(report: Report) -> str:
    """Which one it was, if it is not ours, and the thresholds."""
    cosines = report.threshold or {}
    told = ", ".join(f"{cosine:g}" if name == "*" else f"{inert(name)}={cosine:g}" for name, cosine in cosines.items())
    return f"{report.method}  (threshold {told})" if told else report.method


def _error_rows(error: ErrorSummary, coverage: Coverage | None) -> Iterator[tuple[str, Text]]:
    facts = [] if error.metric == "relative" else [shortened(error.metric, 24)]
    if error.output and len(error.outputs) > 1:
        facts.append(f"at {shortened(error.output, 24)}")
    facts += [] if error.tolerance is None else [f"tolerance {error.tolerance:g}"]
    facts.append(counted(error.samples, "unseen sample"))
    if coverage:
        facts.append(f"{coverage.seen:.3g} on seen ones")
    if error.back_offs:
        facts.append(f"{error.back_offs} steps back" if error.back_offs > 1 else "1 step back")
    yield "error", Text(f"{error.value:.3g}  ({', '.join(facts)})")
    interval = error.interval or next((o.interval for o in error.outputs if o.value == error.value), None)
    if interval and interval[0] < interval[1]:
        yield "99 % range", Text("{:.3g} to {:.3g}".format(*interval))
    yield from _served_rows(error)
    features = [(o.worst_feature.value, o.name, o.worst_feature.index) for o in error.outputs if o.worst_feature]
    if not features:
        return
    value, name, index = max(features)
    text = Text(f"{value:.3g}  (feature {index} of {shortened(name, 24)})")
    if error.metric == "relative" and error.tolerance and value > WORST_FEATURE_FACTOR * error.tolerance:
        text.append(f" warning: above {WORST_FEATURE_FACTOR:g} x tolerance", style="yellow")
    yield "worst", text


def _tuning_rows(tuning: Tuning) -> Iterator[tuple[str, Text]]:
    """What training did to the error, round by round, and what it took."""
    told = [f"{r.bare:.3g} -> {r.error:.3g}{'' if r.kept else ' (given back)'}" for r in tuning.rounds]
    facts = (
        f"{counted(tuning.steps, 'step')}, {tuning.seconds:.0f} s, {counted(tuning.samples, 'sample')}, {tuning.loss}"
    )
    yield "training", Text(f"{'; '.join(told)}  ({facts})")


def _served_rows(error: ErrorSummary) -> Iterator[tuple[str, Text]]:
    """As served on the first provider only where that differs; further ones were asked for, so they are told."""
    for index, served in enumerate(error.served):
        if index or f"{served.value:.3g}" != f"{error.value:.3g}":
            yield "as served", Text(f"{served.value:.3g}  ({_provider(served.provider)}{_bound(served)})")


def _bound(served: Served) -> str:
    if served.bound is None:
        return ""
    return f"; bound there {served.bound:.3g}, as it rounds by {served.rounding:.2g}"


def _provider(name: str) -> str:
    return inert(name).removesuffix("ExecutionProvider")


def _footprint_text(footprint: Footprint) -> Text:
    (load, loaded), (peak, peaked) = footprint.load_ms, footprint.peak_mb
    return Text(f"{_digits(load)} -> {_digits(loaded)} ms;  memory {_digits(peak)} -> {_digits(peaked)} MB")


def _latency_text(latency: Latency) -> Text:
    low, high = latency.interval
    threads = f", {latency.threads} thread{'s' * (latency.threads > 1)}" if latency.threads else ""
    provider = _provider(latency.provider)
    text = Text(f"{_digits(latency.before_ms)} -> {_digits(latency.after_ms)} ms  ({latency.speedup:.2f}x")
    text.append(f" [{low:.2f}, {high:.2f}], ").append(
        latency.verdict, style=_VERDICT_STYLES.get(latency.verdict, "dim")
    )
    return text.append(f"; {provider}{threads})")


def _note_rows(notes: Iterable[str]) -> Iterator[tuple[str, Text]]:
    texts = list(notes)
    for text in texts[:NOTE_ROWS]:
        yield "note", Text(inert(" ".join(text.split())))
    if len(texts) > NOTE_ROWS:
        yield "", Text(f"... and {len(texts) - NOTE_ROWS} more (--json has all)", style="dim")


def emit(text: str, stream: TextIO | None) -> None:
    """Write to a stream that may be closed, narrow in its encoding, or a pipe whose reader has left.

    Raises:
        UsageError: the stream can't take the text (a reader that left is no error: it has read enough).
    """
    if stream is None:
        return
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
    except OSError as error:
        # What is still buffered would fail again at exit, with a traceback.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        if not isinstance(error, BrokenPipeError):
            raise UsageError("stream-write", f"can't print: {error.strerror or error}") from error


@contextlib.contextmanager
def progress_bar(stream: TextIO) -> Iterator[Callable[[str, float], None]]:
    """A bar that the yielded function moves (what is being done, share done); gone when the block ends."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn())
    # No refresh thread: it would run beside the timing of both networks.
    bar = Progress(*columns, console=Console(file=stream), transient=True, auto_refresh=False)
    shown = ("", 0.0)
    with bar:
        task = bar.add_task("", total=1.0)

        def update(stage: str, fraction: float) -> None:
            nonlocal shown
            now = time.monotonic()
            due = stage != shown[0] or now - shown[1] > REFRESH_SECONDS
            bar.update(task, description=inert(stage), completed=fraction, refresh=due)
            shown = (stage, now) if due else shown

        yield update
