"""What --tune asks for, refused before any work where it can't be; and all else without PyTorch."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from mlps import mlp, normal
from typer.testing import CliRunner

from onnx_condense import condense
from onnx_condense.cli import app
from onnx_condense.errors import UsageError
from onnx_condense.options.tuning import LOSSES, MINUTES, Tune, tune_of
from onnx_condense.options.yardstick import METRICS

X = normal(200, 3)
OPTIONS: dict[str, Any] = {"tune": True, "minutes": None, "steps": None, "data": False, "loss": "auto", "rounds": 1}
INSTALL = "pip install 'onnx-condense[tune]'"


def of(**options: Any) -> Tune | None:
    return tune_of(**{**OPTIONS, **options})


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, Tune(MINUTES, None, "auto", 1)),
        ({"minutes": 0.5}, Tune(0.5, None, "auto", 1)),
        ({"steps": 7}, Tune(None, 7, "auto", 1)),
        ({"steps": 7, "minutes": 2.0}, Tune(2.0, 7, "auto", 1)),
        ({"loss": "kl", "rounds": 4, "data": True}, Tune(MINUTES, None, "kl", 4)),
        ({"tune": False}, None),
    ],
)
def test_what_is_asked_for(given: dict[str, Any], found: Tune | None) -> None:
    assert of(**given) == found


@pytest.mark.parametrize(
    ("given", "option"),
    [
        ({"minutes": 1.0}, "--tune-minutes"),
        ({"steps": 10}, "--tune-steps"),
        ({"data": True}, "--tune-data"),
        ({"loss": "mse"}, "--tune-loss"),
        ({"rounds": 2}, "--rounds"),
    ],
)
def test_nothing_goes_without_tune(given: dict[str, Any], option: str) -> None:
    with pytest.raises(UsageError, match=f"^{option} needs --tune"):
        of(tune=False, **given)
    names = {"rounds": "rounds", "data": "tune_data"}
    (name, value), *_ = given.items()
    keyword: dict[str, Any] = {names.get(name, f"tune_{name}"): X if name == "data" else value}
    with pytest.raises(UsageError, match=f"^{option} needs --tune"):
        condense(mlp(), calibration=X, **keyword)


@pytest.mark.parametrize(
    ("given", "code", "text"),
    [
        ({"minutes": 0.0}, "tune-minutes", "--tune-minutes 0.0: give a number above 0"),
        ({"minutes": -1.0}, "tune-minutes", "--tune-minutes -1.0: give a number above 0"),
        ({"minutes": float("nan")}, "tune-minutes", "--tune-minutes nan: give a number above 0"),
        ({"minutes": float("inf")}, "tune-minutes", "--tune-minutes inf: give a number above 0"),
        ({"steps": 0}, "tune-steps", "--tune-steps 0: give an integer of at least 1"),
        ({"rounds": 0}, "rounds", "--rounds 0: give an integer of at least 1"),
        ({"loss": "feature"}, "tune-loss", "--tune-loss 'feature': did you mean features?"),
        ({"loss": "hinge"}, "tune-loss", "--tune-loss 'hinge': there are auto, mse, features, l1, kl"),
    ],
)
def test_out_of_range(given: dict[str, Any], code: str, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        of(**given)
    assert (caught.value.code, caught.value.text) == (code, text)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "--tune needs --calibration: there is nothing to train on"),
        ({"calibration": X, "tolerance": 0.0}, "--tune and --tolerance 0 exclude each other"),
    ],
)
def test_goals_that_leave_nothing_to_train(options: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text) as caught:
        condense(mlp(), tune=True, **options)
    assert caught.value.code == "tune"


def test_the_loss_goes_with_the_metric() -> None:
    found = {metric: Tune().loss_for(metric) for metric in METRICS}
    assert found == {"relative": "mse", "per-feature": "features", "max-abs": "mse", "agreement": "kl"}
    assert Tune().loss_for(lambda *_: 0.0) == "mse"
    assert Tune(loss="l1").loss_for("agreement") == "l1"
    pytest.importorskip("torch")
    from onnx_condense.tune.losses import LOSSES as KNOWN  # noqa: PLC0415

    assert ("auto", *KNOWN) == LOSSES


# ---- without PyTorch ----


def test_without_pytorch_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "torch" else real(name, *a))
    with pytest.raises(UsageError) as caught:
        of()
    assert caught.value.text == f"--tune: training needs PyTorch: {INSTALL}"
    assert of(tune=False) is None
    # What is wrong with the options comes first.
    with pytest.raises(UsageError, match="tune-steps"):
        of(steps=0)


BLOCKED = """
import sys

class Hidden:
    # importlib.util.find_spec asks all finders in turn: one in front of them could only say yes.
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            return None
        return self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Hidden(finder) for finder in sys.meta_path]
from onnx_condense.cli import app
app()
"""


def blocked(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command where no torch can be found."""
    return subprocess.run(
        [sys.executable, "-c", BLOCKED, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    onnx.save(mlp(), tmp_path / "net.onnx")
    np.savez(tmp_path / "x.npz", x=X)
    return tmp_path


def test_all_else_works_without_pytorch(folder: Path) -> None:
    options = ["net.onnx", "slim.onnx", "--calibration", "x.npz", "--tolerance", "0.1", "--allow-slower"]
    found = blocked(folder, *options)
    assert found.returncode == 0, found.stderr
    assert any(p.key == "onnx_condense.trained" for p in onnx.load(folder / "slim.onnx").metadata_props)
    found = blocked(folder, *options, "--force", "--tune")
    assert found.returncode == 2
    assert INSTALL in found.stderr
    assert "Traceback" not in found.stderr


# ---- the command ----


def call(folder: Path, *arguments: str) -> tuple[int, str]:
    paths = [str(folder / "net.onnx"), *(str(folder / a) if "." in a and "onnx" in a else a for a in arguments)]
    result = CliRunner().invoke(app, paths, env={"COLUMNS": "200", "NO_COLOR": "1"})
    return result.exit_code, result.stderr


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--tune"], "--tune needs --calibration"),
        (["--tune", "--tune-steps", "0"], "--tune-steps 0: give an integer of at least 1"),
        (["--tune-steps", "9"], "--tune-steps needs --tune"),
        (["--tune-minutes", "9"], "--tune-minutes needs --tune"),
        (["--tune-data", "x.npz"], "--tune-data needs --tune"),
        (["--tune-loss", "kl"], "--tune-loss needs --tune"),
        (["--rounds", "2"], "--rounds needs --tune"),
        (["--tune", "--tune-loss", "kll"], "did you mean kl?"),
        (["--tune", "--tolerance", "0"], "--tune"),
    ],
)
def test_wrong_options_end_in_2(folder: Path, arguments: list[str], text: str) -> None:
    code, error = call(folder, "slim.onnx", *arguments)
    assert code == 2
    assert text in error
    assert not (folder / "slim.onnx").exists()


def test_no_output_takes_the_place_of_further_inputs(folder: Path) -> None:
    np.savez(folder / "more.npz", x=X)
    more = str(folder / "more.npz")
    options = ["--calibration", str(folder / "x.npz"), "--tune", "--tune-data", more, "--json", more]
    code, error = call(folder, "slim.onnx", *options)
    assert code == 2
    assert "--tune-data" in error


def test_tune_does_not_go_with_verify_only(folder: Path) -> None:
    code, error = call(folder, "--verify-only", "net.onnx", "--tune")
    assert code == 2
    assert "--verify-only and --tune exclude each other" in error
