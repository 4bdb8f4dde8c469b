"""The command's options: what reaches the pipeline, what is refused before any work; nothing is overwritten."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command import ORIGIN, FakePipeline, assert_one_line, call

import onnx_condense
from onnx_condense.report.data import Change, Reason, Report

HEAVY = {"numpy", "onnx", "onnxruntime", "onnx_graphsurgeon", "scipy", "torch"}
UNCHANGED = Report(
    "unchanged",
    dry_run=False,
    reason=Reason("tight", "no channel can go"),
    parameters=Change(10, 10),
    origin=ORIGIN,
)


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
    assert_one_line(call("net.onnx", "--front", "sizes"), 2, "permission")
    assert_one_line(call("net.onnx"), 1, "permission")
    assert fake.calls == []


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


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["--calibration", ""], "--calibration"),
        (["--verification="], "--verification"),
        (["--exclude", "a*", "--exclude", ""], "--exclude"),
        ([""], "OUT"),
    ],
)
def test_an_empty_text_is_no_value(fake: FakePipeline, arguments: list[str], name: str) -> None:
    """What a variable that is not set leaves; an empty path would be the folder that the user is in."""
    assert_one_line(call("net.onnx", *arguments), 2, f"{name} is empty")
    assert fake.calls == []
