"""What the user wants left alone stays, through every step and method; patterns that name nothing are told."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from endtoend import FakeTimer, relative, timer
from mlps import Net, mlp, normal, plant_copies
from test_fitting_groups import grouped
from typer.testing import CliRunner

from onnx_condense import condense
from onnx_condense.cli import app
from onnx_condense.errors import UsageError
from onnx_condense.network.model import Network
from onnx_condense.options.control import Control
from onnx_condense.options.goal import METHODS
from onnx_condense.options.naming import Layers
from onnx_condense.outcome import Condensed
from onnx_condense.spaces import find_spaces

__all__ = ["FakeTimer", "timer"]

X = normal(400, 3)
GLOBS = [{"exclude": ["gemm_0"]}, {"exclude": ["/gemm_0"]}, {"exclude": ["W0"]}, {"include": ["*2"]}]


def copies() -> onnx.ModelProto:
    """gemm_0 is 32 wide, eight of them copies; gemm_2 20."""
    return plant_copies(mlp(), 0, 8)


def run(model: Any = None, **options: Any) -> Condensed:
    return condense(copies() if model is None else model, **{"threads": 1, "allow_slower": True, **options})


def widths(found: Condensed) -> Mapping[str, int]:
    return {s.name: s.after for s in found.report.spaces}


# ---- by name ----


@pytest.mark.parametrize("control", GLOBS)
@pytest.mark.parametrize("calibration", [None, X])
def test_what_is_left_alone_keeps_all_its_channels(control: Mapping[str, Any], calibration: Any) -> None:
    """Without samples the copies would go, with them more."""
    assert widths(run(calibration=calibration, tolerance=None))["gemm_0"] <= 24
    found = run(calibration=calibration, tolerance=None, **control)
    assert widths(found)["gemm_0"] == 32
    assert (widths(found)["gemm_2"] < 20) == (calibration is not None)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_leaves_it_alone(method: str) -> None:
    options = {"calibration": X, "method": method, "keep": 0.7}
    assert widths(run(**options))["gemm_0"] < 32
    found = run(exclude=["gemm_0"], **options)
    assert widths(found)["gemm_0"] == 32
    assert relative(found.model, copies(), X) < 1.0


@pytest.mark.parametrize(
    ("control", "reason"),
    [
        ({"exclude": ["gemm_*0"]}, "excluded by --exclude 'gemm_*0'"),
        ({"exclude": ["W0", "gemm_0"]}, "excluded by --exclude 'gemm_0'"),
        ({"include": ["gemm_2"]}, "not matched by --include 'gemm_2'"),
        ({"min_width": 32}, "held at 32 channels by --min-width 32"),
        ({"max_cut": 0.03}, "held at 32 channels by --max-cut 0.03"),
        ({"max_cut": 0.03, "min_width": 40}, "held at 32 channels by --min-width 40 and --max-cut 0.03"),
    ],
)
def test_the_report_says_why(control: Mapping[str, Any], reason: str) -> None:
    report = run(**control).report
    told = [(r.node, r.reason) for r in report.refusals if r.space == "gemm_0"]
    assert told == [("/gemm_0 (Gemm)", reason)]
    assert report.status == "unchanged"


def test_exclude_wins_over_include() -> None:
    found = run(calibration=X, include=["gemm*"], exclude=["gemm_0"])
    assert widths(found)["gemm_0"] == 32
    assert widths(found)["gemm_2"] < 20


def test_a_space_with_several_writers_is_named_by_any_of_them() -> None:
    net = Net({"x": ["N", 3]})
    rng = np.random.default_rng(0)
    sides = [net.node("Gemm", "x", net.weight(f"side{i}", rng.standard_normal((3, 12)))) for i in range(2)]
    trunk = net.node("Tanh", net.node("Add", *sides))
    net.node("Gemm", trunk, net.weight("last", rng.standard_normal((12, 2))), out="y")
    model = net.model({"y": ["N", 2]})
    assert widths(run(model, calibration=X, tolerance=0.1))["gemm_0"] < 12
    for pattern in ("side1", "/gemm_1", "side0"):
        assert widths(run(model, calibration=X, tolerance=0.1, exclude=[pattern]))["gemm_0"] == 12


def test_names_of_readers_do_not_count() -> None:
    """W1 reads gemm_0 and writes gemm_2."""
    found = run(calibration=X, exclude=["W1"])
    assert widths(found)["gemm_0"] < 24
    assert widths(found)["gemm_2"] == 20


# ---- how far ----


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("floor", [3, 11, 28])
def test_no_layer_gets_narrower_than_asked(method: str, floor: int) -> None:
    """A tolerance that everything meets, so that only the floor holds; the lossless step alone would leave 24."""
    for tolerance in (None, 1e6):
        if method != "fit" and tolerance is None:
            continue
        calibration = X if tolerance else None
        found = widths(run(calibration=calibration, tolerance=tolerance, method=method, min_width=floor))
        assert found["gemm_0"] == (floor if tolerance else max(24, floor))
        assert found["gemm_2"] == (min(floor, 20) if tolerance else 20)


@pytest.mark.parametrize(("cut", "left"), [(0.5, [16, 10]), (0.1, [29, 18]), (0.99, [1, 1]), (0.05, [31, 19])])
def test_no_layer_loses_more_than_asked(cut: float, left: list[int]) -> None:
    assert [*widths(run(calibration=X, tolerance=1e6, max_cut=cut)).values()] == [*left, 2]


def test_a_threshold_stops_at_the_floor_with_what_is_most_alike_gone() -> None:
    options = {"calibration": X, "method": "condensation", "threshold": -0.0 + 1e-3}
    free = widths(run(**options))["gemm_0"]
    found = run(**options, min_width=24)
    assert free < 24 == widths(found)["gemm_0"]
    # The copies have a cosine of one.
    assert relative(found.model, copies(), X) < relative(run(**options).model, copies(), X)


def test_floors_hold_where_parts_of_a_layer_go_together() -> None:
    """Three groups: a channel is one place in each, 1/3 of the rows."""
    model, x = grouped(3), normal(300, 3, 6, 6)
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim][1:]
    x = normal(300, *(n or 6 for n in shape))
    free = run(model, calibration=x, tolerance=1e6).report.spaces
    held = run(model, calibration=x, tolerance=1e6, min_width=2).report.spaces
    narrowed = [(f, h) for f, h in zip(free, held, strict=True) if f.after < f.before]
    assert narrowed
    assert all(h.after == max(f.after, 2) for f, h in narrowed)
    assert any(f.after < 2 for f, _ in narrowed)


def test_the_share_is_of_the_dense_width_not_of_what_lossless_steps_left() -> None:
    found = run(calibration=X, tolerance=1e6, max_cut=0.5)
    assert len(found.plan) == 2
    assert widths(found)["gemm_0"] == 16


# ---- patterns that name nothing ----


@pytest.mark.parametrize("option", ["include", "exclude"])
@pytest.mark.parametrize(("pattern", "near"), [("gem_0", "gemm_0"), ("w0", "W0"), ("/gem_2", "/gemm_2")])
def test_a_pattern_that_matches_nothing_is_refused(option: str, pattern: str, near: str) -> None:
    with pytest.raises(UsageError, match=f"--{option}: '{pattern}' matches no node that writes channels") as error:
        run(**{option: [pattern]})
    assert near in error.value.text
    assert error.value.code == option


@pytest.mark.parametrize(
    "options",
    [{"include": ["y"]}, {"include": ["gemm_0", "W2"]}, {"method": "condensation", "threshold": {"*": 0.9, "W2": 0.8}}],
)
def test_a_pattern_that_matches_only_what_must_stay_is_refused(options: Mapping[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"matches only layers that stay as they are \(y: graph output\)"):
        run(calibration=X, **options)


def test_a_threshold_for_what_is_excluded_is_refused() -> None:
    with pytest.raises(UsageError, match=r"stay as they are \(gemm_0: excluded by --exclude 'gemm_0'\)"):
        run(calibration=X, method="condensation", threshold={"*": 0.9, "W0": 0.8}, exclude=["gemm_0"])


def test_including_only_what_is_excluded_is_refused() -> None:
    with pytest.raises(UsageError, match="--include 'W0': all that it matches is excluded by --exclude 'gemm\\*'"):
        run(include=["W0"], exclude=["gemm*"])


def test_excluding_what_stays_anyway_is_told() -> None:
    found = run(exclude=["y", "gemm_0"])
    assert found.report.notes[0] == "--exclude: 'y' matches only layers that stay as they are (y: graph output)"
    assert len([n for n in found.report.notes if "--exclude" in n]) == 1


@pytest.mark.parametrize(
    "options", [{"min_width": 0}, {"max_cut": 0.0}, {"max_cut": 1.0}, {"max_cut": -0.5}, {"max_cut": float("nan")}]
)
def test_numbers_out_of_range(options: Mapping[str, Any]) -> None:
    name = next(iter(options)).replace("_", "-")
    with pytest.raises(UsageError, match=f"--{name} .*: give"):
        run(**options)


def test_views_of_weights_have_the_names_of_what_is_stored() -> None:
    net = Net({"x": ["N", 3]})
    turned = net.node("Transpose", net.weight("stored", normal(8, 3)), perm=[1, 0])
    hidden = net.node("Tanh", net.node("MatMul", "x", turned))
    net.node("MatMul", hidden, net.weight("last", normal(8, 2)), out="y")
    seen = Network(net.model({"y": ["N", 2]}))
    layers = Layers(seen, find_spaces(seen))
    assert layers.matched("stored", "exclude") == layers.matched(turned, "exclude") == ("matmul_1",)


# ---- the command ----


def test_the_command(tmp_path: Path) -> None:
    onnx.save(copies(), tmp_path / "net.onnx")
    np.save(tmp_path / "x.npy", X)
    files = [str(tmp_path / name) for name in ("net.onnx", "slim.onnx", "x.npy", "report.json")]
    options = ["--calibration", files[2], "--json", files[3], "--allow-slower", "--threads", "1"]
    options += ["--exclude", "W0", "--max-cut", "0.5", "--min-width", "12", "--tolerance", "1e6"]
    result = CliRunner().invoke(app, [*files[:2], *options])
    assert result.exit_code == 0, result.output
    told = json.loads((tmp_path / "report.json").read_text())
    assert [s["after"] for s in told["spaces"]] == [32, 12, 2]
    assert "excluded by --exclude 'W0'" in result.stdout


@pytest.mark.parametrize("option", [["--include", "a"], ["--exclude", "a"], ["--min-width", "3"], ["--max-cut", "0.5"]])
def test_verifying_makes_nothing_so_nothing_is_left_alone(tmp_path: Path, option: list[str]) -> None:
    onnx.save(copies(), tmp_path / "net.onnx")
    path = str(tmp_path / "net.onnx")
    result = CliRunner().invoke(app, [path, "--verify-only", path, *option])
    assert result.exit_code == 2
    assert f"--verify-only and {option[0]} exclude each other" in result.stderr


def test_shares_that_are_whole_but_for_rounding() -> None:
    assert [Control(max_cut=0.1).least(n) for n in (10, 30, 70)] == [9, 27, 63]
    assert Control(max_cut=0.29).least(100) == 71
