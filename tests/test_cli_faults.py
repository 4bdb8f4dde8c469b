"""The command's faults: exit codes, one line on stderr, and nothing left behind."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from command import FakePipeline, assert_one_line, call

from onnx_condense import errors


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
