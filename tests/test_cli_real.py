"""The command with the real pipeline behind it, on real files: what comes out of good ones."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from command import call, state
from mlps import mlp, normal, plant_copies
from onnx import numpy_helper

X = normal(300, 3)
pytestmark = pytest.mark.usefixtures("folder")

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
