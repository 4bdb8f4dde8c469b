"""The command's contract: exit codes, what goes to which stream, and that nothing is overwritten by accident."""

from __future__ import annotations

import dataclasses
import importlib
import json
import logging
import os
import re
import signal
import subprocess
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

import onnx_condense
from onnx_condense import errors
from onnx_condense.cli import app
from onnx_condense.report import terminal
from onnx_condense.report.data import (
    Change,
    ErrorSummary,
    Latency,
    Origin,
    OutputError,
    Reason,
    RefusalRow,
    Report,
    SpaceRow,
    WorstFeature,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from typer.testing import Result

HEAVY = {"numpy", "onnx", "onnxruntime", "onnx_graphsurgeon", "scipy", "torch"}

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
UNCHANGED = Report(
    "unchanged",
    dry_run=False,
    reason=Reason("tight", "no channel can go"),
    parameters=Change(10, 10),
    origin=ORIGIN,
)


class FakePipeline:
    """Stands in for the pipeline: answers with a report, or raises; remembers how it was called."""

    def __init__(self) -> None:
        self.report = CONDENSED
        self.action: Callable[[], None] = lambda: None
        self.save_action: Callable[[], None] = lambda: None
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


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakePipeline:
    stand_in = FakePipeline()
    try:
        module = importlib.import_module("onnx_condense.pipeline")
    except ModuleNotFoundError:
        module = types.ModuleType("onnx_condense.pipeline")
        monkeypatch.setitem(sys.modules, "onnx_condense.pipeline", module)
    monkeypatch.setattr(module, "condense", stand_in.condense, raising=False)
    monkeypatch.chdir(tmp_path)
    Path("net.onnx").write_bytes(b"dense")
    return stand_in


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments], env={"COLUMNS": "80", "NO_COLOR": "1"})


def assert_one_line(result: Result, exit_code: int, *words: str) -> None:
    assert result.exit_code == exit_code, result.output
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("onnx-condense: error: ")
    for word in words:
        assert word in result.stderr


def test_help_and_version_import_nothing_heavy() -> None:
    code = (
        "import sys\nfrom onnx_condense.cli import app\n"
        "try: app([sys.argv[1]])\nexcept SystemExit as end: assert not end.code\n"
        f"found = {HEAVY!r} & set(sys.modules)\nassert not found, found"
    )
    for option, words in (("--help", "--allow-slower"), ("-h", "IN"), ("--version", onnx_condense.__version__)):
        done = subprocess.run([sys.executable, "-c", code, option], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert words in done.stdout


def test_writes_out_and_says_so(fake: FakePipeline) -> None:
    result = call("net.onnx", "slim.onnx", "--calibration", "x.npz")
    assert result.exit_code == 0
    assert Path("slim.onnx").read_bytes() == b"condensed"
    last = result.stdout.splitlines()[-1]
    assert last == "wrote slim.onnx: 0.447 M of 6.92 M parameters (6.5 %), error 0.0093 (tolerance 0.01)"
    assert result.stderr == ""
    assert fake.calls[0]["calibration"] == "x.npz"


def test_every_option_reaches_the_pipeline(fake: FakePipeline) -> None:
    options = ["--calibration", "c", "--verification", "v", "--tolerance", "0.1", "--keep", "0.5", "--threads", "2"]
    extra = ["--augment", "3", "--method", "condensation", "--threshold", "0.9", "--threshold", "fc*=0.8"]
    extra += ["--also-verify", "C", "--also-verify", "D", "--batch", "1, 64", "--verbose"]
    extra += ["--metric", "max-abs", "--tolerance", "box*=0.3"]
    extra += ["--max-parameters", "250k", "--max-macs", "1.5M", "--max-bytes", "7", "--max-latency", "0.5"]
    extra += ["--speedup", "2", "--multiple-of", "16", "--front", "made"]
    extra += [
        "--include",
        "fc*",
        "--include",
        "h",
        "--exclude",
        "fc3",
        "--min-width",
        "8",
        "--max-cut",
        "0.5",
        "--plan",
        "p.json",
    ]
    extra += ["--tune", "--tune-minutes", "1.5", "--tune-steps", "9", "--tune-data", "t", "--tune-loss", "l1"]
    extra += ["--rounds", "2"]
    result = call(
        "net.onnx", "o.onnx", *options, "--providers", "A, B", "--seed", "7", "--allow-slower", "--dry-run", *extra
    )
    assert result.exit_code == 0
    fake.calls[0].pop("progress")
    assert fake.calls == [
        {
            "model": Path("net.onnx"),
            "calibration": "c",
            "verification": Path("v"),
            "tolerance": {"*": 0.1, "box*": 0.3},
            "metric": "max-abs",
            "keep": 0.5,
            "max_parameters": 250_000,
            "max_macs": 1_500_000,
            "max_bytes": 7,
            "max_latency": 0.5,
            "speedup": 2.0,
            "multiple_of": 16,
            "front": True,
            "providers": ("A", "B"),
            "threads": 2,
            "seed": 7,
            "allow_slower": True,
            "augment": 3,
            "method": "condensation",
            "threshold": {"*": 0.9, "fc*": 0.8},
            "also_verify": ("C", "D"),
            "batches": (1, 64),
            "include": ("fc*", "h"),
            "exclude": ("fc3",),
            "min_width": 8,
            "max_cut": 0.5,
            "plan": Path("p.json"),
            "tune": True,
            "tune_minutes": 1.5,
            "tune_steps": 9,
            "tune_data": Path("t"),
            "tune_loss": "l1",
            "rounds": 2,
            "footprint": True,
            "profile": True,
            "dry_run": True,
        }
    ]


def test_defaults(fake: FakePipeline) -> None:
    call("net.onnx", "slim.onnx")
    options = fake.calls[0]
    assert options["tolerance"] is None
    assert options["metric"] == "relative"
    assert options["keep"] is None
    assert (options["method"], options["threshold"]) == ("fit", None)
    assert options["threads"] == 0
    assert options["seed"] == 0
    assert options["providers"] == ("CPUExecutionProvider",)
    assert (options["also_verify"], options["batches"], options["profile"]) == ((), (), False)
    assert not options["dry_run"]


@pytest.mark.parametrize("arguments", [["net.onnx"], ["net.onnx", "slim.onnx", "--dry-run"]])
def test_dry_run_writes_nothing(fake: FakePipeline, arguments: list[str]) -> None:
    result = call(*arguments)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1].startswith("dry run: nothing written")
    assert fake.calls[0]["dry_run"]
    assert os.listdir() == ["net.onnx"]  # noqa: PTH208  # names, not paths


def test_unchanged_says_why_and_that_out_is_a_copy(fake: FakePipeline) -> None:
    fake.report = UNCHANGED
    result = call("net.onnx", "slim.onnx")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == "unchanged: no channel can go; slim.onnx is a copy of net.onnx"
    assert call("net.onnx").stdout.splitlines()[-1] == "unchanged: no channel can go; dry run: nothing written"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["net.onnx", "slim.onnx", "more"],
        ["net.onnx", "--bogus"],
        ["net.onnx", "--tolerance", "abc"],
        ["net.onnx", "--keep", ""],
        ["net.onnx", "--max-macs", ""],
        ["net.onnx", "--max-bytes", "1 MB"],
        ["net.onnx", "--max-parameters", "0"],
        ["net.onnx", "--speedup", "1"],
        ["net.onnx", "--max-latency", "-2"],
        ["net.onnx", "--multiple-of", "0"],
        ["net.onnx", "--multiple-of", "some"],
        ["net.onnx", "--threads", "-1"],
        ["net.onnx", "--threads", "0"],
        ["net.onnx", "--threads", "1.5"],
        ["net.onnx", "--seed", "-1"],
        ["net.onnx", "--calibration"],
        ["net.onnx", "--providers", " , "],
        ["net.onnx", "net.onnx", "--force"],
        ["net.onnx", "./net.onnx", "--dry-run"],
        ["net.onnx", "."],
        ["net.onnx", "taken.onnx"],
        ["net.onnx", "link.onnx"],
        ["net.onnx", "nowhere/slim.onnx"],
        ["net.onnx", "net.onnx/slim.onnx"],
        ["net.onnx", "/dev/null", "--force"],
        ["net.onnx", "taken.onnx", "--force", "--calibration", "taken.onnx"],
        ["net.onnx", "--json", "net.onnx"],
        ["net.onnx", "--json", "."],
        ["net.onnx", "--json", "nowhere/report.json"],
        ["net.onnx", "slim.onnx", "--json", "slim.onnx"],
        ["net.onnx", "--json", "x.npz", "--verification", "x.npz"],
    ],
)
def test_usage_errors_end_in_2_before_any_work(fake: FakePipeline, arguments: list[str]) -> None:
    Path("taken.onnx").write_bytes(b"taken")
    Path("link.onnx").symlink_to("gone.onnx")
    before = sorted(Path().iterdir())
    assert_one_line(call(*arguments), 2)
    assert fake.calls == []
    assert sorted(Path().iterdir()) == before
    assert Path("taken.onnx").read_bytes() == b"taken"
    assert Path("net.onnx").read_bytes() == b"dense"


def test_quiet_and_verbose_exclude_each_other(fake: FakePipeline) -> None:
    assert call("net.onnx", "--quiet", "--verbose").exit_code == 2
    assert fake.calls == []


def test_force_overwrites(fake: FakePipeline) -> None:
    Path("slim.onnx").write_bytes(b"old")
    assert call("net.onnx", "slim.onnx", "--force").exit_code == 0
    assert Path("slim.onnx").read_bytes() == b"condensed"
    assert len(fake.calls) == 1


def test_a_dry_run_needs_no_force(fake: FakePipeline) -> None:
    Path("slim.onnx").write_bytes(b"old")
    assert call("net.onnx", "slim.onnx", "--dry-run").exit_code == 0
    assert Path("slim.onnx").read_bytes() == b"old"
    assert len(fake.calls) == 1


def test_folders_without_permission(fake: FakePipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    # os.access, because these tests may run as root, who is always permitted.
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert_one_line(call("net.onnx", "slim.onnx"), 2, "permission")
    assert_one_line(call("net.onnx", "--json", "r.json"), 2, "permission")
    assert_one_line(call("net.onnx"), 1, "permission")
    assert fake.calls == []


def test_out_that_fails_while_writing_is_a_usage_error(fake: FakePipeline) -> None:
    def full() -> None:
        raise OSError(28, "No space left on device")

    fake.save_action = full
    assert_one_line(call("net.onnx", "slim.onnx", "--json", "r.json"), 2, "slim.onnx", "No space left")
    assert not Path("r.json").exists()


@pytest.mark.parametrize(
    ("name", "word"), [("gone.onnx", "no such file"), (".", "folder"), ("/dev/null", "device"), ("net.onnx/x", "read")]
)
def test_a_missing_input_ends_in_1_with_json(fake: FakePipeline, name: str, word: str) -> None:
    assert_one_line(call(name, "slim.onnx", "--json", "r.json"), 1, name, word)
    data = json.loads(Path("r.json").read_text(encoding="utf-8"))
    assert data["status"] == "failed"
    assert data["reason"]["code"].startswith("model-")
    assert fake.calls == []


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (errors.ModelError("model-invalid", "bad\nmodel", "node_7"), 1),
        (errors.CalibrationError("calibration-shape", "bad\nmodel", "node_7"), 1),
        (errors.BudgetError("keep", "bad\nmodel", "node_7"), 3),
        (errors.DefectError("plan", "bad\nmodel", "node_7"), 4),
    ],
)
def test_errors_map_to_exit_codes_and_json(fake: FakePipeline, error: errors.CondenseError, exit_code: int) -> None:
    fake.raises(error)
    assert_one_line(call("net.onnx", "slim.onnx", "--json", "r.json", "--quiet"), exit_code, "bad model")
    data = json.loads(Path("r.json").read_text(encoding="utf-8"))
    assert next(iter(data)) == "schema"
    assert (data["schema"], data["status"], data["dry_run"]) == (2, "failed", False)
    assert data["reason"] == {"code": error.code, "text": "bad\nmodel", "node": "node_7"}
    assert data["seconds"] >= 0
    assert not Path("slim.onnx").exists()


def test_usage_errors_of_the_pipeline_write_no_json(fake: FakePipeline) -> None:
    fake.raises(errors.UsageError("tolerance", "--tolerance needs --calibration"))
    assert_one_line(call("net.onnx", "slim.onnx", "--json", "r.json"), 2, "--tolerance needs --calibration")
    assert not Path("r.json").exists()


def test_json_on_stdout_leaves_the_table_to_stderr(fake: FakePipeline) -> None:
    fake.action = lambda: print("a library talks")  # noqa: T201  # what is tested
    result = call("net.onnx", "slim.onnx", "--json", "-")
    data = json.loads(result.stdout)
    assert data["status"] == "condensed"
    assert data["spaces"][0] == {
        "name": "h",
        "writers": ["/fc1/Gemm"],
        "readers": ["/fc2/Gemm"],
        "before": 3200,
        "after": 301,
        "error": 0.0042,
        "ms": None,
    }
    assert "a library talks" in result.stderr
    assert "wrote slim.onnx" in result.stderr


def test_failure_json_on_stdout(fake: FakePipeline) -> None:
    fake.raises(errors.BudgetError("keep", "smallest share reachable is 0.2"))
    result = call("net.onnx", "--keep", "0.1", "--json", "-")
    assert result.exit_code == 3
    assert json.loads(result.stdout)["reason"]["text"] == "smallest share reachable is 0.2"
    assert json.loads(result.stdout)["dry_run"]


def test_json_has_null_for_what_json_can_not_say(fake: FakePipeline) -> None:
    latency = Latency("CPUExecutionProvider", 1, 1, 1.0, 1.0, float("nan"), (float("-inf"), float("inf")))
    fake.report = Report("condensed", dry_run=False, latency=(latency,), origin=ORIGIN)
    assert call("net.onnx", "slim.onnx", "--json", "r.json").exit_code == 0
    data = json.loads(Path("r.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert data["latency"][0]["speedup"] is None
    assert data["latency"][0]["interval"] == [None, None]


def test_json_keeps_symlinks_and_leaves_no_temporary_file(fake: FakePipeline) -> None:
    assert fake.report is CONDENSED
    Path("r.json").symlink_to("real.json")
    Path("real.json").write_text("old", encoding="utf-8")
    assert call("net.onnx", "slim.onnx", "--json", "r.json").exit_code == 0
    assert Path("r.json").is_symlink()
    assert json.loads(Path("real.json").read_text(encoding="utf-8"))["status"] == "condensed"
    assert {p.name for p in Path().iterdir()} == {"net.onnx", "slim.onnx", "r.json", "real.json"}


def test_json_into_a_device_does_not_replace_it(fake: FakePipeline) -> None:
    assert call("net.onnx", "--json", "/dev/null").exit_code == 0
    assert not Path("/dev/null").is_file()
    assert len(fake.calls) == 1


def test_json_that_can_not_be_written_after_all(fake: FakePipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    assert_one_line(call("net.onnx", "--json", "r.json"), 2, "r.json", "No space left")
    fake.raises(errors.DefectError("plan", "disagrees"))
    result = call("net.onnx", "--json", "r.json")
    assert result.exit_code == 4
    assert result.stderr.count("onnx-condense: error: ") == 2


@pytest.mark.parametrize(
    ("arguments", "footprint"), [([], True), (["--quiet"], False), (["--quiet", "--json", "r.json"], True)]
)
def test_what_nobody_sees_is_not_measured(fake: FakePipeline, arguments: list[str], footprint: bool) -> None:
    call("net.onnx", "slim.onnx", *arguments)
    assert fake.calls[0]["footprint"] is footprint


def test_quiet_prints_nothing(fake: FakePipeline) -> None:
    result = call("net.onnx", "slim.onnx", "--quiet")
    assert (result.exit_code, result.output) == (0, "")
    assert fake.calls[0]["progress"] is None


def test_verbose_logs_to_stderr_and_cleans_up(fake: FakePipeline) -> None:
    logger = logging.getLogger("onnx_condense.something")
    fake.action = lambda: logger.info("planning")
    assert "planning" in call("net.onnx", "--verbose").stderr
    assert call("net.onnx").stderr == ""
    assert logging.getLogger("onnx_condense").handlers == []


def test_verbose_shows_where_an_expected_error_came_from(fake: FakePipeline) -> None:
    fake.raises(errors.ModelError("model-invalid", "bad"))
    result = call("net.onnx", "--verbose")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1] == "onnx-condense: error: bad"


def test_internal_errors_end_in_70(fake: FakePipeline) -> None:
    fake.raises(IndexError("list index\nout of range"))
    result = call("net.onnx", "slim.onnx", "--json", "r.json")
    assert_one_line(result, 70, "internal error: IndexError: list index out of range", "--verbose")
    assert not Path("r.json").exists()
    loud = call("net.onnx", "--verbose")
    assert loud.exit_code == 70
    assert "Traceback" in loud.stderr


def test_ctrl_c_ends_in_130(fake: FakePipeline) -> None:
    # A process that was started in the background ignores the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    fake.action = lambda: signal.raise_signal(signal.SIGINT)
    try:
        assert_one_line(call("net.onnx", "slim.onnx"), 130, "interrupted")
    finally:
        signal.signal(signal.SIGINT, before)
    assert not Path("slim.onnx").exists()


def test_sigterm_unwinds_and_ends_in_143(fake: FakePipeline) -> None:
    cleaned = []

    def action() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            # The second signal must not keep this from being reached.
            signal.raise_signal(signal.SIGTERM)
            cleaned.append(True)

    fake.action = action
    before = signal.getsignal(signal.SIGTERM)
    assert_one_line(call("net.onnx", "slim.onnx"), 143, "terminated")
    assert cleaned == [True]
    assert signal.getsignal(signal.SIGTERM) is before


def test_errors_with_hostile_names_are_inert(fake: FakePipeline) -> None:
    fake.raises(errors.ModelError("model-invalid", "node \x1b[2J[red]x\r\n\u202e"))
    result = call("net.onnx")
    assert_one_line(result, 1, "\\x1b[2J[red]x", "\\u202e")


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


@pytest.mark.usefixtures("fake")
def test_out_is_not_written_where_json_can_not_be(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    assert_one_line(call("net.onnx", "slim.onnx", "--json", "r.json"), 2, "r.json", "No space left")
    assert not Path("slim.onnx").exists()


def test_json_does_not_tell_of_a_file_that_could_not_be_written(fake: FakePipeline) -> None:
    def full() -> None:
        raise OSError(28, "No space left on device")

    fake.save_action = full
    assert_one_line(call("net.onnx", "slim.onnx", "--json", "r.json"), 2, "slim.onnx", "No space left")
    assert not Path("slim.onnx").exists()
    assert not Path("r.json").exists()


@pytest.mark.parametrize("link", [False, True])
def test_a_report_that_stood_there_stays_where_out_fails(fake: FakePipeline, link: bool) -> None:
    def full() -> None:
        raise OSError(28, "No space left on device")

    fake.save_action = full
    Path("old.json").write_text("earlier", encoding="utf-8")
    if link:
        Path("r.json").symlink_to("old.json")
    assert call("net.onnx", "slim.onnx", "--json", "r.json" if link else "old.json").exit_code == 2
    assert Path("old.json").read_text(encoding="utf-8") == "earlier"
    assert {p.name for p in Path().iterdir()} == {"net.onnx", "old.json", *({"r.json"} if link else ())}
