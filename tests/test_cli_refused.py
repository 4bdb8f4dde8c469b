"""The command with the real pipeline behind it, on real files: every bad network, sample and option is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from command import assert_one_line, call, state
from mlps import mlp, normal, plant_copies
from onnx import numpy_helper

if TYPE_CHECKING:
    from collections.abc import Callable


X = normal(300, 3)


def assert_refused(folder: Path, exit_code: int, words: str, *arguments: str) -> None:
    """One line that says `words`, the exit code, nothing written, nothing touched."""
    before = state(folder)
    assert_one_line(call(*arguments), exit_code, words)
    assert state(folder) == before


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


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions of a folder do not bind root")
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
