"""The tables about tuning: rows of any network, made by really training a small one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bench_tune
import numpy as np
import onnx
import pytest
from mlps import mlp
from trials import Made, Setting
from typer.testing import CliRunner


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    onnx.save(mlp((3, 16, 12, 2)), tmp_path / "net.onnx")
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).normal(size=(400, 3)).astype("f4"))
    return ["network", "--network", str(tmp_path / "net.onnx"), "--calibration", str(tmp_path / "x.npz")]


def table(*arguments: str) -> list[list[str]]:
    done = CliRunner().invoke(bench_tune.app, list(arguments), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    rows = [line for line in done.output.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in rows]


def test_bare_rows_need_no_torch(files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench_tune.can_tune", lambda: False)
    found = table(*files, "--keeps", "0.6,0.4", "--kinds", "bare", "--seeds", "0,1", "--unseen", files[-1])
    assert found[0][:5] == ["network", "parameters", "share, %", "error, verify share", "error, unseen"]
    assert [row[0] for row in found[2:]] == [f"keep {k}, seed {s}, bare" for s in (0, 1) for k in (0.6, 0.4)]
    for row in found[2:]:
        assert float(row[2]) <= 100 * float(row[0].split()[1].rstrip(","))
        assert float(row[3]) > 0.0
        assert float(row[4]) > 0.0
        assert row[5:7] == ["", ""]


def test_without_torch_the_command_says_what_to_install(files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench_tune.can_tune", lambda: False)
    done = CliRunner().invoke(bench_tune.app, files)
    assert done.exit_code == 2
    assert "onnx-condense[tune]" in done.output.replace("\n", " ")


def test_from_scratch_follows_the_tuned_row_and_takes_its_steps(
    files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench_tune.can_tune", lambda: True)
    likes: list[int] = []

    def tuned(self: Setting, *_: Any) -> Made:
        return Made(onnx.load(self.network), steps=7, seconds=2.0)

    def scratch(self: Setting, like: Made, _seed: int) -> Made:
        likes.append(like.steps)
        return Made(onnx.load(self.network), like.steps, 3.0)

    monkeypatch.setattr(Setting, "tuned", tuned)
    monkeypatch.setattr(Setting, "scratch", scratch)
    found = table(*files, "--keeps", "0.6")
    assert [row[0].split(", ")[-1] for row in found[2:]] == ["bare", "tuned", "scratch"]
    assert likes == [7]
    assert [row[4:6] for row in found[3:]] == [["7", "2"], ["7", "3"]]


def test_methods_and_rounds_have_rows_of_their_own(files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours last, whose steps from scratch takes."""
    monkeypatch.setattr("bench_tune.can_tune", lambda: True)
    asked: list[tuple[Any, ...]] = []

    def tuned(self: Setting, *given: Any) -> Made:
        asked.append(given)
        return Made(onnx.load(self.network), steps=len(asked), seconds=1.0)

    monkeypatch.setattr(Setting, "tuned", tuned)
    monkeypatch.setattr(Setting, "scratch", lambda self, like, _: Made(onnx.load(self.network), like.steps, 1.0))
    options = ("--kinds", "tuned,scratch", "--methods", "fit,condensation-refit", "--rounds", "3")
    found = table(*files, "--keeps", "0.6", *options)[2:]
    paper = "keep 0.6, seed 0, paper's: merge + refit"
    assert [row[0] for row in found] == [
        *(f"{paper}, tuned", f"{paper}, 3 rounds"),
        *("keep 0.6, seed 0, tuned", "keep 0.6, seed 0, 3 rounds", "keep 0.6, seed 0, scratch"),
    ]
    methods = [(0.6, 0, "condensation-refit"), (0.6, 0, "condensation-refit", 3), (0.6, 0, "fit"), (0.6, 0, "fit", 3)]
    assert asked == methods
    assert found[-1][4] == found[-3][4] == "3"


def test_an_unknown_method_is_refused(files: list[str]) -> None:
    done = CliRunner().invoke(bench_tune.app, [*files, "--methods", "magic"])
    assert done.exit_code == 2
    assert "give some of condensation" in done.output.replace("\n", " ")


def test_nothing_from_scratch_where_nothing_was_tuned(files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench_tune.can_tune", lambda: True)
    monkeypatch.setattr(Setting, "tuned", lambda self, *_: Made(onnx.load(self.network)))
    found = table(*files, "--keeps", "0.6", "--kinds", "tuned,scratch")
    assert [row[0] for row in found[2:]] == ["keep 0.6, seed 0, tuned"]


def test_what_is_out_of_reach_is_said(files: list[str]) -> None:
    (row,) = table(*files, "--keeps", "0.0001", "--kinds", "bare")[2:]
    assert "0.0001" in row[1] or "keep" in row[1]
    assert len(row) == 7


def test_from_scratch_is_really_trained(files: list[str]) -> None:
    """Slow ends of the same thing: the layout of a network, trained by itself, comes closer than its first state."""
    torch: Any = pytest.importorskip("torch")
    torch.set_num_threads(1)
    net, inputs = Path(files[2]), Path(files[4])
    setting = Setting(net, inputs, threads=1)
    fresh = setting.scratch(Made(onnx.load(net), steps=1))
    longer = setting.scratch(Made(onnx.load(net), steps=300))
    judge = setting.judge()
    assert fresh.model != onnx.load(net)
    assert judge.error(longer.model) < 0.75 * judge.error(fresh.model)
    assert longer.steps == 300
