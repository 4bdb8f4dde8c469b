"""Load time and peak memory, each in a process of its own; and what happens where there can be none."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_condense import sessions
from onnx_condense.proving import footprint
from onnx_condense.report.data import Footprint, Reason
from onnx_condense.runtime import Runtime

POSIX = pytest.mark.skipif(os.name != "posix", reason="needs scripts that start as programs")


def mlp(width: int, name: str = "x") -> bytes:
    """Two layers, width * width stored numbers in the first."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.normal(size=shape).astype("f4"), f"w{k}")
        for k, shape in enumerate([(width, width), (width, 2)])
    ]
    nodes = [helper.make_node("MatMul", [name, "w0"], ["h"]), helper.make_node("MatMul", ["h", "w1"], ["y"])]
    ends = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", size]) for n, size in ((name, width), ("y", 2))
    ]
    graph = helper.make_graph(nodes, "mlp", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def ones(width: int, name: str = "x") -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    return {name: np.ones((1, width), np.float32)}


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where temporary files go."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """One pair is enough where no number counts."""
    monkeypatch.setattr(footprint, "PAIRS", 1)
    monkeypatch.setattr(footprint, "FEWEST_PAIRS", 1)


@pytest.mark.usefixtures("quick")
def test_stored_weights_are_memory(folder: Path, tmp_path: Path) -> None:
    width = 2000
    large, padded = mlp(width), tmp_path / "small.onnx"
    # The same input, next to no weights.
    graph = helper.make_graph(
        [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)],
        "sum",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [])],
    )
    small = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    padded.write_bytes(small.SerializeToString())
    found = footprint.measure(large, padded, ones(width), Runtime(threads=1))
    assert isinstance(found, Footprint)
    assert found.provider == "CPUExecutionProvider"
    assert min(found.load_ms) > 0
    assert found.peak_mb[0] - found.peak_mb[1] > 0.9 * 4 * width**2 / 1e6
    turned = footprint.measure(padded, large, ones(width), Runtime(threads=1))
    assert isinstance(turned, Footprint)
    assert turned.peak_mb[1] - turned.peak_mb[0] > 0.9 * 4 * width**2 / 1e6
    assert not list(folder.iterdir())


@pytest.mark.usefixtures("quick")
def test_what_a_pass_needs_is_memory() -> None:
    """Nothing is stored, but 20 MB lie between input and output."""
    ends = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1000])]
    ends.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, []))
    shape = numpy_helper.from_array(np.array([5000, 1000]), "shape")
    nodes = [
        helper.make_node("Expand", ["x", "shape"], ["wide"]),
        helper.make_node("ReduceSum", ["wide"], ["y"], keepdims=0),
    ]
    wide = helper.make_graph(nodes, "wide", ends[:1], ends[1:], [shape])
    plain = helper.make_graph([helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)], "sum", ends[:1], ends[1:])
    models = [helper.make_model(g, opset_imports=[helper.make_opsetid("", 17)], ir_version=8) for g in (wide, plain)]
    before, after = (m.SerializeToString() for m in models)
    found = footprint.measure(before, after, ones(1000), Runtime(threads=1))
    assert isinstance(found, Footprint)
    assert found.peak_mb[0] - found.peak_mb[1] > 15


@pytest.mark.usefixtures("quick")
def test_memory_of_this_process_does_not_count() -> None:
    """Linux hands the peak of a parent on to its child, as getrusage tells it."""
    held = np.ones(30_000_000)
    found = footprint.measure(mlp(10), mlp(10), ones(10), Runtime(threads=1))
    assert isinstance(found, Footprint)
    assert max(found.peak_mb) < held.nbytes / 1e6 / 2


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", ["file", "a/../b:0", "arr_1", "allow_pickle"])
def test_inputs_may_have_any_name(name: str) -> None:
    assert isinstance(footprint.measure(mlp(10, name), mlp(10, name), ones(10, name), Runtime()), Footprint)


@pytest.mark.usefixtures("quick")
def test_strings_are_fed() -> None:
    ends = [helper.make_tensor_value_info(n, TensorProto.STRING, [1]) for n in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "same", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    feed = {"x": np.array(["word"], object)}
    assert isinstance(footprint.measure(model, model, feed, Runtime()), Footprint)


def test_the_session_is_the_one_that_is_timed(folder: Path) -> None:
    runtime = Runtime(threads=3)
    told = json.loads(footprint._job(folder, "a", mlp(10), ones(10), runtime))
    settings = sessions.Settings(**{**told["settings"], "providers": tuple(told["settings"]["providers"])})
    assert settings == runtime.settings(spin=True)
    assert settings.threads == 3
    said = sessions.taken(**told)
    assert said["provider"] == "CPUExecutionProvider"
    assert said["seconds"] > 0
    assert said["bytes"] >= 0


def test_the_process_holds_nothing_of_ours() -> None:
    """What this package imports would be memory, and hide memory, in every process."""
    text = "import runpy, sys; runpy.run_path(sys.argv[1]); print(*sys.modules)"
    command = [sys.executable, "-P", "-c", text, sessions.__file__]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not {"onnx_condense", "onnx", "scipy", "threadpoolctl"} & set(done.stdout.split())


def test_the_script_imports_nothing_of_this_package() -> None:
    tree = ast.parse(Path(sessions.__file__).read_text(encoding="utf-8"))
    modules = {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert not [m for m in modules if m.startswith("onnx_condense")]


def test_a_system_without_proc_tells_its_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(Path, "exists", lambda _self: False)
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for system, scale in (("darwin", 1), ("freebsd", 1024)):
        monkeypatch.setattr(sys, "platform", system)
        now, peak = sessions.resident()
        assert now == peak
        assert scale * usage <= peak < 2 * scale * usage


# ---- pairs ----


class Turns:
    """Processes that take `seconds` each; `log` holds who ran."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.now, self.log = seconds, 0.0, list[int]()

    def clock(self) -> float:
        """The time in s."""
        return self.now

    def taken(self, which: int) -> footprint.Taken:
        """One process."""
        self.log.append(which)
        self.now += self.seconds
        return footprint.Taken("CPUExecutionProvider", 1.0 + which, 1000 * (which + 1) + len(self.log))


@pytest.mark.parametrize(("seconds", "pairs"), [(0.1, 5), (1.5, 5), (1.6, 4), (2.5, 3), (60.0, 3)])
def test_slow_networks_are_loaded_fewer_times(seconds: float, pairs: int) -> None:
    turns = Turns(seconds)
    assert len(footprint._pairs(turns.taken, turns.clock)) == pairs


def test_who_goes_first_alternates_and_numbers_stay_with_their_network() -> None:
    turns = Turns(0.1)
    pairs = footprint._pairs(turns.taken, turns.clock)
    assert turns.log == [0, 1, 1, 0, 0, 1, 1, 0, 0, 1]
    assert all((a.seconds, b.seconds) == (1.0, 2.0) for a, b in pairs)


def test_medians_over_pairs() -> None:
    def of(seconds: float, size: int) -> footprint.Taken:
        return footprint.Taken("CPUExecutionProvider", seconds, size)

    pairs = [(of(0.1, 2_000_000), of(0.02, 1_000_000)), (of(9.0, 90_000_000), of(0.03, 1_500_000))]
    pairs.append((of(0.2, 3_000_000), of(0.9, 1_100_000)))
    found = footprint._summary(pairs)
    assert found.load_ms == pytest.approx((200.0, 30.0))
    assert found.peak_mb == pytest.approx((3.0, 1.1))


# ---- where nothing can be measured ----


def reason(found: Footprint | Reason) -> str:
    assert isinstance(found, Reason)
    assert found.code == "footprint"
    return found.text


def test_a_network_that_does_not_load_is_no_error(folder: Path) -> None:
    found = footprint.measure(mlp(10), b"no network", ones(10), Runtime())
    assert "ended with 1" in reason(found)
    assert not list(folder.iterdir())


@pytest.mark.parametrize("executable", ["", None, "/nowhere/python", "blender"])
def test_without_an_interpreter_nothing_is_started(
    executable: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if executable == "blender":
        (tmp_path / executable).write_text("", encoding="ascii")
        executable = str(tmp_path / executable)
    monkeypatch.setattr(sys, "executable", executable)
    assert "no Python interpreter" in reason(footprint.measure(mlp(10), mlp(10), ones(10), Runtime()))


def test_a_frozen_program_is_no_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert "no Python interpreter" in reason(footprint.measure(mlp(10), mlp(10), ones(10), Runtime()))


@POSIX
@pytest.mark.parametrize(
    ("script", "text"),
    [
        ("kill -9 $$", "ended with -9: killed"),
        ("true", "said nothing that can be read"),
        ("echo '[1, 2]'", "said nothing that can be read"),
        ("echo '{\"seconds\": 1}'", "said nothing that can be read"),
        ("echo of memory >&2; exit 3", "ended with 3: of memory"),
        ("printf '\\377\\n' >&2; exit 3", "ended with 3: \ufffd"),
        # Beside the script lie modules named like some of the standard library (select).
        ('echo "$1" >&2; exit 3', "ended with 3: -P"),
    ],
)
def test_a_process_that_ends_badly_is_a_reason(
    script: str, text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path
) -> None:
    false = tmp_path / "python3"
    false.write_text(f"#!/bin/sh\ncat > /dev/null\n{script}\n", encoding="ascii")
    false.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(false))
    assert text in reason(footprint.measure(mlp(10), mlp(10), ones(10), Runtime()))
    assert not list(folder.iterdir())


@POSIX
def test_a_file_that_is_no_program_is_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    false = tmp_path / "python3"
    false.write_text("", encoding="ascii")
    monkeypatch.setattr(sys, "executable", str(false))
    assert "could be started" in reason(footprint.measure(mlp(10), mlp(10), ones(10), Runtime()))


def test_a_process_that_hangs_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footprint, "LIMIT_S", 0.001)
    assert "within 0.001 s" in reason(footprint.measure(mlp(10), mlp(10), ones(10), Runtime()))


def test_no_room_for_temporary_files_is_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    assert "could not be prepared" in reason(footprint.measure(mlp(10), mlp(10), ones(10), Runtime()))
