"""What is printed: it fits 80 columns, says what matters, and names out of files stay text."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

import pytest
from command import CONDENSED
from rich.console import Console

from onnx_condense import errors
from onnx_condense.report import terminal
from onnx_condense.report.data import ErrorSummary, OutputError, RefusalRow, Report, SpaceRow, WorstFeature


def test_a_reader_that_left_is_no_error(tmp_path: Path) -> None:
    """As in `onnx-condense net.onnx | true`."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stream:
        terminal.emit("text\n", stream)
    with Path("/dev/full").open("w", encoding="ascii") as full, pytest.raises(errors.UsageError, match="can't print"):
        terminal.emit("text\n", full)
    with (tmp_path / "narrow").open("w+", encoding="ascii") as narrow:
        terminal.emit("é\udc80\n", narrow)
        narrow.seek(0)
        assert narrow.read() == "\\xe9\\udc80\n"
    terminal.emit("nobody listens", None)


def page(report: Report, width: int = 80) -> str:
    return terminal.page(report, width=width, color=False)


def test_the_table_fits_80_columns_and_says_what_matters() -> None:
    text = page(CONDENSED)
    assert max(map(len, text.splitlines())) <= 80
    for words in (
        "3200 ->  301",
        "/fc1/Gemm",
        "0.0042",
        "/fc3/Gemm: graph output",
        "6.92 M -> 0.447 M  (6.5 %)",
        "27.7 MB -> 1.8 MB",
        "tolerance 0.01, 1,638 unseen samples, 1 step back",
        "0.0088 to 0.0099",
        "0.302  (feature 31 of y) warning: above 10 x tolerance",
        "1.23 -> 0.183 ms  (6.72x [6.40, 7.10], faster; CPU, 2 threads)",
    ):
        assert words in text


def test_one_of_something_is_said_in_the_singular() -> None:
    assert CONDENSED.error is not None
    one = dataclasses.replace(CONDENSED, error=dataclasses.replace(CONDENSED.error, samples=1))
    assert "1 unseen sample," in page(one)


def test_many_spaces_show_the_largest_savings_in_network_order() -> None:
    name = "/backbone/stages.{}/blocks.1/mlp/fc1/MatMul_output_0"
    rows = tuple(SpaceRow(name.format(i), ("w",) * 3, (), 1000, 1000 - i * 37 % 1000, 0.0) for i in range(120))
    text = page(Report("condensed", dry_run=False, spaces=rows))
    best = sorted(sorted(range(120), key=lambda i: i * 37 % 1000)[-terminal.SPACE_ROWS :])
    assert [int(found) for found in re.findall(r"ages\.(\d+)/", text)] == best
    assert "... and 100 more spaces (--json has all)" in text
    assert "w +2" in text
    assert "exact" in text
    assert max(map(len, text.splitlines())) <= 80


def test_equal_reasons_collapse_and_long_lists_end() -> None:
    refusals = [RefusalRow("s", f"/softmax_{i}", "softmax over the axis") for i in range(50)]
    refusals += [RefusalRow("s", f"/n{i}", f"reason {i}") for i in range(12)]
    text = page(Report("unchanged", dry_run=True, refusals=tuple(refusals)))
    assert "50 nodes (first: /softmax_0): softmax over the axis" in text
    assert "/n8: reason 8" in text
    assert "reason 9" not in text
    assert "... and 3 more reasons (--json has all)" in text


def test_hostile_names_are_printed_as_text() -> None:
    bad = "[red]a[/red]\x1b[2J\n[/]"
    report = Report(
        "condensed",
        dry_run=False,
        error=ErrorSummary("relative", 0.1, None, 5, 0, (OutputError(bad, 0.1, WorstFeature(0, 0.1), (0.09, 0.11)),)),
        spaces=(SpaceRow(bad, (bad,), (bad,), 9, 4, 0.1),),
        refusals=(RefusalRow(bad, bad, bad),),
        notes=(bad,),
    )
    text = terminal.page(report, width=200, color=True)
    assert text.count("[red]a[/red]\\x1b[2J") >= 5
    assert "\x1b[2J" not in text
    assert "\\x1b[2J" in terminal.closing_line(report, Path("a"), Path(bad))


def test_an_empty_report_prints() -> None:
    assert page(Report("unchanged", dry_run=True)) == "time  0.0 s\n"
    assert "the same function" in terminal.closing_line(Report("condensed", dry_run=True), Path("a"), None)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], []),
        ([9412, 12], ["9,412", "12"]),
        ([10_000, 999_499], ["10 k", "999 k"]),
        ([999_500, 1], ["1 M", "1e-06 M"]),
        ([6_921_454, 447_213], ["6.92 M", "0.447 M"]),
        ([3 * 10**15], ["3,000 T"]),
    ],
)
def test_counts_share_a_prefix(values: list[int], expected: list[str]) -> None:
    assert terminal.scaled(values) == expected


def test_long_names_keep_what_tells_them_apart() -> None:
    names = [f"/a/very/long/prefix/{i}/and/a/very/long/end" for i in range(12)]
    cut = terminal.windows(names, 20)
    assert len(set(cut)) == 12
    assert all(len(name) <= 20 and "..." in name for name in cut)
    assert terminal.windows(["short", "names"], 20) == ["short", "names"]
    assert all(len(terminal.shortened("x" * 50, width)) == width for width in (10, 20, 49))


def test_progress_shows_stages_as_text(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w+", encoding="utf-8") as stream:
        with terminal.progress_bar(stream) as update:
            update("reading [red]net\x1b[2J", 0.1)
            update("measuring", 1.0)
        stream.seek(0)
        assert "\x1b[2J" not in stream.read()


def test_parts_print_to_any_console(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.print_report(CONDENSED, Console(width=100))
    assert "6.92 M" in capsys.readouterr().out
