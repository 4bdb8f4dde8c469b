"""The command with the real pipeline behind it, on real files: every bad input, and what comes out of good ones."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from mlps import mlp, normal, plant_copies
from onnx import numpy_helper
from typer.testing import CliRunner

from onnx_condense.cli import app

if TYPE_CHECKING:
    from collections.abc import Callable

    from typer.testing import Result

X = normal(300, 3)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a network and samples."""
    monkeypatch.chdir(tmp_path)
    onnx.save(mlp(), "net.onnx")
    np.savez("x.npz", x=X)
    return tmp_path


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments], env={"COLUMNS": "100", "NO_COLOR": "1"})


def state(folder: Path) -> dict[str, str]:
    """What lies in the folder, by content."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "folder"
        for p in sorted(folder.rglob("*"))
    }


def assert_refused(folder: Path, exit_code: int, words: str, *arguments: str) -> None:
    """One line that says `words`, the exit code, nothing written, nothing touched."""
    before = state(folder)
    result = call(*arguments)
    assert result.exit_code == exit_code, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("onnx-condense: error: ")
    assert result.stderr.count("\n") == 1
    assert words in result.stderr
    assert state(folder) == before


# ---- what comes out ----


@pytest.mark.parametrize("tolerance", ["0.02", "0.1"])
def test_a_condensed_network_is_written_with_its_report(folder: Path, tolerance: str) -> None:
    before = state(folder)
    result = call("net.onnx", "slim.onnx", "--calibration", "x.npz", "--tolerance", tolerance, "--json", "r.json")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    after = state(folder)
    assert {k: after[k] for k in before} == before
    assert set(after) - set(before) == {"slim.onnx", "r.json"}
    onnx.checker.check_model("slim.onnx", full_check=True)
    y, y0 = (ort.InferenceSession(n).run(None, {"x": X})[0] for n in ("slim.onnx", "net.onnx"))
    assert np.sqrt(((y - y0) ** 2).sum() / ((y0 - y0.mean(0)) ** 2).sum()) < 1.2 * float(tolerance)
    report = json.loads(Path("r.json").read_text())
    assert report["status"] == "condensed"
    assert report["bytes"] == {"before": Path("net.onnx").stat().st_size, "after": Path("slim.onnx").stat().st_size}
    assert report["error"]["value"] <= report["error"]["tolerance"] == float(tolerance)


def test_the_json_has_what_the_contract_lists() -> None:
    result = call("net.onnx", "--calibration", "x.npz", "--tolerance", "0.1", "--json", "-")
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert next(iter(report)) == "schema"
    assert report["schema"] == 2
    assert report["dry_run"] is True
    assert report["reason"] is None
    for name in ("parameters", "macs", "bytes"):
        assert set(report[name]) == {"before", "after"}
        assert report[name]["after"] < report[name]["before"]
    assert set(report["error"]) > {"metric", "value", "tolerance", "samples", "back_offs", "outputs", "served"}
    assert report["error"]["metric"] == "relative"
    assert report["error"]["samples"] == 60
    (output,) = report["error"]["outputs"]
    assert set(output) > {"name", "value", "worst_feature", "interval", "max_abs"}
    assert set(output["worst_feature"]) == {"index", "value"}
    for entry in report["latency"]:
        assert set(entry) > {"provider", "threads", "batch", "before_ms", "after_ms", "speedup", "interval", "verdict"}
    assert [entry["batch"] for entry in report["latency"]] == [1, 60]
    assert {"name", "writers", "readers", "before", "after", "error"} <= set(report["spaces"][0])
    assert report["refusals"] == [{"space": "y", "node": "y", "reason": "graph output"}]
    assert report["seconds"] > 0


def test_without_out_every_layer_is_told_and_nothing_written(folder: Path) -> None:
    before = state(folder)
    result = call("net.onnx", "--calibration", "x.npz")
    assert result.exit_code == 0
    assert state(folder) == before
    for word in ("gemm_0", "gemm_2", "24 ->", "20 ->", "nothing written"):
        assert word in result.stdout


def test_nothing_redundant_gives_a_copy_byte_for_byte(folder: Path) -> None:
    result = call("net.onnx", "slim.onnx")
    assert result.exit_code == 0
    assert "unchanged" in result.stdout
    assert Path("slim.onnx").read_bytes() == Path("net.onnx").read_bytes()
    assert call("net.onnx", "slim.onnx").exit_code == 2
    assert call("net.onnx", "slim.onnx", "--force").exit_code == 0
    assert set(state(folder)) == {"net.onnx", "slim.onnx", "x.npz"}


def test_planted_redundancy_goes_without_samples() -> None:
    onnx.save(plant_copies(mlp(), 0, 8), "wide.onnx")
    result = call("wide.onnx", "slim.onnx", "--json", "-")
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert report["spaces"][0]["before"], report["spaces"][0]["after"] == (32, 24)
    assert report["error"]["value"] < 1e-5


def test_same_call_same_bytes() -> None:
    options = ("--calibration", "x.npz", "--tolerance", "0.05", "--threads", "1", "--seed", "3")
    for name in ("a.onnx", "b.onnx"):
        assert call("net.onnx", name, *options).exit_code == 0
    assert Path("a.onnx").read_bytes() == Path("b.onnx").read_bytes()


def test_a_folder_of_test_data_is_a_calibration(folder: Path) -> None:
    for i in range(30):
        data = folder / "feeds" / f"test_data_set_{i}"
        data.mkdir(parents=True)
        (data / "input_0.pb").write_bytes(numpy_helper.from_array(normal(4, 3, seed=i), "x").SerializeToString())
    result = call("net.onnx", "slim.onnx", "--calibration", "feeds", "--tolerance", "0.1", "--json", "-")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["error"]["samples"] == 6


def test_drawn_inputs_are_called_so(folder: Path) -> None:
    result = call("net.onnx", "slim.onnx", "--calibration", "synthetic:200", "--tolerance", "0.1", "--json", "r.json")
    assert result.exit_code == 0, result.output
    assert "evidence    synthetic: inputs were drawn" in result.stdout
    report = json.loads(Path("r.json").read_text())
    assert report["evidence"] == "synthetic"
    assert "calibration inputs were drawn, not given: the error holds on such inputs only" in report["notes"]
    assert report["error"]["samples"] == 40
    # A file of that name is meant by its path, and where it exists by its name.
    Path("x.npz").rename("synthetic")
    for name in ("synthetic", "./synthetic"):
        result = call("net.onnx", "--calibration", name, "--tolerance", "0.1", "--json", "r.json")
        assert result.exit_code == 0, result.output
        assert "evidence" not in result.stdout
        assert json.loads(Path("r.json").read_text())["evidence"] == "samples"
    assert set(state(folder)) == {"net.onnx", "slim.onnx", "r.json", "synthetic"}


def test_keep_and_verification() -> None:
    np.save("v.npy", normal(40, 3, seed=8))
    arguments = ("--calibration", "x.npz", "--verification", "v.npy", "--keep", "0.6", "--json", "-")
    report = json.loads(call("net.onnx", "slim.onnx", *arguments).stdout)
    assert report["error"]["samples"] == 40
    assert report["error"]["tolerance"] is None
    assert report["parameters"]["after"] <= 0.6 * report["parameters"]["before"]


# ---- the network ----


def not_onnx() -> None:
    Path("net.onnx").write_bytes(b"this is no protobuf at all, is it? \xff\xff\xff")


def truncated() -> None:
    Path("net.onnx").write_bytes(Path("net.onnx").read_bytes()[:-200])


def cut_behind_the_nodes() -> None:
    # A cut at a field boundary leaves a protobuf that parses.
    model = onnx.load("net.onnx")
    model.ClearField("opset_import")
    onnx.save(model, "net.onnx")


def empty() -> None:
    Path("net.onnx").write_bytes(b"")


def missing() -> None:
    Path("net.onnx").unlink()


def a_folder() -> None:
    Path("net.onnx").unlink()
    Path("net.onnx").mkdir()


def text() -> None:
    Path("net.onnx").write_text("hello\n")


def weights_missing() -> None:
    onnx.save(mlp(), "net.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    Path("w.bin").unlink()


def weights_truncated() -> None:
    onnx.save(mlp(), "net.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    Path("w.bin").write_bytes(Path("w.bin").read_bytes()[:100])


def unknown_op() -> None:
    model = mlp()
    model.graph.node[1].op_type = "NoSuchOp"
    onnx.save(model, "net.onnx")


def dangling() -> None:
    model = mlp()
    del model.graph.node[0]
    onnx.save(model, "net.onnx")


def wrong_shapes() -> None:
    model = mlp()
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((5, 7), np.float32), "W0"))
    onnx.save(model, "net.onnx")


BAD_NETWORKS = [
    not_onnx,
    truncated,
    cut_behind_the_nodes,
    empty,
    missing,
    a_folder,
    text,
    weights_missing,
    weights_truncated,
    unknown_op,
    dangling,
    wrong_shapes,
]


@pytest.mark.parametrize("options", [("--calibration", "x.npz"), ()], ids=["calibrated", "alone"])
@pytest.mark.parametrize("spoil", BAD_NETWORKS, ids=lambda f: f.__name__)
def test_a_bad_network_is_exit_1(folder: Path, spoil: Callable[[], None], options: tuple[str, ...]) -> None:
    spoil()
    assert_refused(folder, 1, "", "net.onnx", "slim.onnx", *options)


def test_a_bad_network_is_told_in_json(folder: Path) -> None:
    truncated()
    result = call("net.onnx", "slim.onnx", "--json", "r.json")
    assert result.exit_code == 1
    report = json.loads(Path("r.json").read_text())
    assert report["status"] == "failed"
    assert set(report["reason"]) == {"code", "text", "node"}
    assert report["reason"]["text"] in result.stderr
    assert not (folder / "slim.onnx").exists()


# ---- samples ----


def empty_folder(name: str) -> None:
    Path(name).unlink()
    Path(name).mkdir()


BAD_SAMPLES: dict[str, tuple[Callable[[], Any], str]] = {
    "no such file": (lambda: None, "x.npz"),
    "wrong name": (lambda: np.savez("x.npz", z=X), "'z'"),
    "shape": (lambda: np.savez("x.npz", x=X[:, :2]), "[300, 2]"),
    "rank": (lambda: np.savez("x.npz", x=X[None]), "reshape"),
    "dtype": (lambda: np.savez("x.npz", x=X.astype(str)), "dtype"),
    "lossy dtype": (lambda: np.savez("x.npz", x=X.astype(np.float64) + 1e-12), "float64"),
    "complex": (lambda: np.savez("x.npz", x=X + 1j), "complex"),
    "NaN": (lambda: np.savez("x.npz", x=np.where(X[17, 1] == X, np.nan, X)), "sample 17"),
    "infinity": (lambda: np.savez("x.npz", x=np.where(X[17, 1] == X, np.inf, X)), "sample 17"),
    "no samples": (lambda: np.savez("x.npz", x=X[:0]), ""),
    "too few samples": (lambda: np.savez("x.npz", x=X[:4]), "at least"),
    "pickled objects": (lambda: np.savez("x.npz", x=np.array([{1: 2}], object)), "x.npz"),
    "nothing inside": (lambda: np.savez("x.npz"), "x"),
    "empty file": (lambda: Path("x.npz").write_bytes(b""), "x.npz"),
    "text": (lambda: Path("x.npz").write_text("1 2 3\n"), "x.npz"),
    "truncated": (lambda: Path("x.npz").write_bytes(Path("x.npz").read_bytes()[:-300]), "x.npz"),
    "an empty folder": (lambda: empty_folder("x.npz"), "x.npz"),
}


@pytest.mark.parametrize("option", ["--calibration", "--verification"])
@pytest.mark.parametrize("name", BAD_SAMPLES)
def test_bad_samples_are_exit_1(folder: Path, name: str, option: str) -> None:
    spoil, words = BAD_SAMPLES[name]
    arguments = ["net.onnx", "slim.onnx"]
    if option == "--verification":
        np.savez("good.npz", x=X)
        arguments += ["--calibration", "good.npz"]
    if name == "no such file":
        Path("x.npz").unlink()
    else:
        spoil()
    assert_refused(folder, 1, words, *arguments, option, "x.npz")


def test_samples_of_one_group_are_too_few_groups(folder: Path) -> None:
    np.savez("x.npz", x=X, group=np.zeros(300))
    assert_refused(folder, 1, "group", "net.onnx", "slim.onnx", "--calibration", "x.npz")


def test_a_network_that_answers_with_nan_is_exit_1(folder: Path) -> None:
    model = mlp()
    model.graph.node[-1].output[0] = "positive"
    model.graph.node.append(onnx.helper.make_node("Log", ["positive"], ["y"]))
    onnx.save(model, "net.onnx")
    assert_refused(folder, 1, "NaN", "net.onnx", "slim.onnx", "--calibration", "x.npz")


def test_drawn_inputs_that_do_not_fit_ask_for_calibration(folder: Path) -> None:
    model = plant_copies(mlp(), 0, 5)
    model.graph.node[0].input[0] = "root"
    model.graph.node.insert(0, onnx.helper.make_node("Sqrt", ["x"], ["root"]))
    onnx.save(model, "net.onnx")
    assert_refused(folder, 1, "--calibration", "net.onnx", "slim.onnx")


# ---- options ----


@pytest.mark.parametrize(
    "options",
    [
        ["--tolerance", "-0.1"],
        ["--tolerance", "nan"],
        ["--tolerance", "abc"],
        ["--tolerance", "0.1"],
        ["--keep", "0.5"],
        ["--verification", "x.npz"],
        ["--calibration", "synthetic:0"],
        ["--calibration", "synthetic:abc"],
        ["--calibration", "synthetic:24"],
        ["--calibration", "x.npz", "--keep", "0"],
        ["--calibration", "x.npz", "--keep", "1"],
        ["--calibration", "x.npz", "--keep", "1.5"],
        ["--calibration", "x.npz", "--keep", "0.5", "--tolerance", "0"],
        ["--seed", "-1"],
        ["--seed", "x"],
        ["--threads", "0"],
        ["--threads", "many"],
        ["--providers", "NoSuchProvider"],
        ["--providers", ""],
        ["--no-such-option"],
        ["third"],
    ],
    ids=" ".join,
)
def test_bad_options_are_exit_2(folder: Path, options: list[str]) -> None:
    assert_refused(folder, 2, "", "net.onnx", "slim.onnx", *options)


def test_a_missing_provider_lists_those_there_are(folder: Path) -> None:
    assert_refused(folder, 2, "CPUExecutionProvider", "net.onnx", "slim.onnx", "--providers", "NoSuchProvider")


def test_out_that_can_not_be_written_is_exit_2(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_refused(folder, 2, "no folder", "net.onnx", "missing/slim.onnx")
    (folder / "taken").mkdir()
    assert_refused(folder, 2, "folder", "net.onnx", "taken")
    assert_refused(folder, 2, "same file", "net.onnx", "net.onnx", "--force")
    (folder / "old.onnx").write_bytes(b"old")
    assert_refused(folder, 2, "--force", "net.onnx", "old.onnx")
    (folder / "locked").mkdir(mode=0o500)
    monkeypatch.setattr(os, "access", lambda path, _: "locked" not in str(path))
    assert_refused(folder, 2, "permission", "net.onnx", "locked/slim.onnx")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_folder_without_permission_is_exit_2(folder: Path) -> None:
    (folder / "locked").mkdir(mode=0o500)
    assert_refused(folder, 2, "permission", "net.onnx", "locked/slim.onnx")


# ---- a size out of reach ----


def test_keep_out_of_reach_is_exit_3_and_names_what_works(folder: Path) -> None:
    arguments = ("net.onnx", "slim.onnx", "--calibration", "x.npz")
    assert_refused(folder, 3, "smallest share is", *arguments, "--keep", "0.001")
    result = call(*arguments, "--keep", "0.001", "--json", "r.json")
    assert result.exit_code == 3
    assert json.loads(Path("r.json").read_text())["reason"]["code"] == "keep"
    named = result.stderr.split()[-1]
    assert call(*arguments, "--keep", named).exit_code == 0


# ---- as a process ----


def test_the_installed_command_with_real_timing(folder: Path) -> None:
    start = time.monotonic()
    done = subprocess.run(
        [
            *(sys.executable, "-c", "from onnx_condense.cli import app; app()", "net.onnx", "slim.onnx"),
            *("--calibration", "x.npz", "--tolerance", "0.1", "--allow-slower", "--json", "-"),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["status"] == "condensed"
    assert all(entry["before_ms"] > 0 for entry in report["latency"])
    assert "parameters" in done.stderr
    assert time.monotonic() - start < 60


@pytest.mark.usefixtures("real_footprint")
def test_loading_is_measured_in_processes_of_their_own() -> None:
    result = call("net.onnx", "slim.onnx", "--calibration", "x.npz", "--tolerance", "0.1", "--json", "r.json")
    assert result.exit_code == 0
    taken = json.loads(Path("r.json").read_text(encoding="utf-8"))["footprint"]
    assert taken["provider"] == "CPUExecutionProvider"
    assert min(*taken["load_ms"], *taken["peak_mb"]) > 0
    # What the other tests get in its stead.
    assert taken["load_ms"] != [4.0, 2.0]


@pytest.mark.real_timing
def test_both_networks_are_really_timed() -> None:
    result = call("net.onnx", "--calibration", "x.npz", "--tolerance", "0.1", "--allow-slower", "--json", "r.json")
    assert result.exit_code == 0
    (one, many) = json.loads(Path("r.json").read_text(encoding="utf-8"))["latency"]
    for entry in (one, many):
        assert len(entry["rounds"]) >= 4
        assert len({before for before, _ in entry["rounds"]}) > 1
