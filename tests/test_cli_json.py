"""The command's JSON: where it goes, what it holds, and when it is not written."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from command import CONDENSED, ORIGIN, FakePipeline, assert_one_line, call

from onnx_condense import errors
from onnx_condense.report.data import Latency, Report


def test_json_on_stdout_leaves_the_table_to_stderr(fake: FakePipeline) -> None:
    fake.action = lambda: sys.stdout.write("a library talks\n")
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
