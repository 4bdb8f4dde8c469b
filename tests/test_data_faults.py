"""Faults of calibration sources: damage, pickles, names, shapes, values, and casts that would lose something."""

from __future__ import annotations

import contextlib
import pickle
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from test_data import BLOCK, F32, ID, SCALE, X, gather_all, ramp, refused

from onnx_condense import data
from onnx_condense.data import InputSpec
from onnx_condense.errors import CalibrationError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from onnx_condense.runtime import Array


# Faults of paths and files


def test_missing_path(tmp_path: Path) -> None:
    refused("calibration-missing", tmp_path / "no.npz", (X,), "no.npz", "check the path")


def test_name_that_no_file_system_takes(tmp_path: Path) -> None:
    refused("calibration-missing", tmp_path / ("n" * 5000), (X,), "check the path")


def test_folder_without_feeds(tmp_path: Path) -> None:
    (tmp_path / "readme.md").write_text("")
    refused("calibration-empty", tmp_path, (X,), str(tmp_path), ".npz")


def npz_bytes(tmp_path: Path) -> bytes:
    np.savez_compressed(tmp_path / "good.npz", x=ramp(50, 3))
    return (tmp_path / "good.npz").read_bytes()


def flip(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda _: b"", id="empty"),
        pytest.param(lambda _: b"a,b\n1,2\n", id="text"),
        pytest.param(lambda good: good[: len(good) // 2], id="truncated"),
        pytest.param(lambda good: flip(good, 120), id="flipped byte"),
        pytest.param(lambda _: pickle.dumps({"x": [1]}), id="pickle"),
        pytest.param(lambda _: b"\x93NUMPY\x01\x00\x04\x00oops", id="npy header"),
    ],
)
@pytest.mark.parametrize("in_folder", [False, True])
def test_damaged_file(tmp_path: Path, damage: Callable[[bytes], bytes], in_folder: bool) -> None:
    good = npz_bytes(tmp_path)
    folder = tmp_path / "f"
    folder.mkdir()
    (folder / "bad.npz").write_bytes(damage(good))
    refused("calibration-format", folder if in_folder else folder / "bad.npz", (X,), "bad.npz", "numpy.savez")


def test_any_flipped_byte_is_refused_or_read(tmp_path: Path) -> None:
    good = npz_bytes(tmp_path)
    path = tmp_path / "bad.npz"
    refusals = 0
    for at in range(0, len(good), 3):
        path.write_bytes(flip(good, at))
        with contextlib.suppress(CalibrationError):
            data.load(path, (X,))
            continue
        refusals += 1
    assert refusals > len(good) // 6


class Bomb:
    """Ends the test run if unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return sys.exit, ("unpickled",)


@pytest.mark.parametrize("name", ["a.npz", "a.npy"])
def test_pickled_objects_are_never_loaded(tmp_path: Path, name: str) -> None:
    array = np.array([Bomb(), 1], dtype=object)
    if name.endswith("z"):
        np.savez(tmp_path / name, x=array)
    else:
        np.save(tmp_path / name, array)
    refused("calibration-dtype", tmp_path / name, (X,), name, "pickled", "plain numeric")


def test_wrong_names(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", y=ramp(2, 3))
    error = refused("calibration-names", tmp_path / "a.npz", (X, ID), "a.npz", "'y'", "'x', 'id'", "rename")
    assert error.node == "y"
    np.savez(tmp_path / "a.npz", x=ramp(2, 3))
    error = refused("calibration-names", tmp_path / "a.npz", (X, ID), "a.npz", "'id' is missing", "'x', 'id'", "add")
    assert error.node == "id"
    np.save(tmp_path / "a.npy", ramp(2, 3))
    refused("calibration-names", tmp_path / "a.npy", (X, ID), "a.npy", "'x', 'id'", ".npz")


@pytest.mark.parametrize("shape", [(5,), (5, 4), (5, 3, 1), ()])
def test_wrong_shape(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros(shape, np.float32))
    shown = str(list(shape))
    assert refused("calibration-shape", tmp_path / "a.npz", (X,), "a.npz", "'x'", shown, "[N, 3]").node == "x"


def test_wrong_shape_of_fixed_and_whole_inputs() -> None:
    refused("calibration-shape", ramp(8, 4), (BLOCK,), "[8, 4]", "[4, 3]")
    refused("calibration-shape", ramp(8), (BLOCK,), "[8]", "[4, 3]")
    refused("calibration-shape", {"x": ramp(4, 3), "scale": ramp(4)}, (X, SCALE), "'scale'", "[4]", "[]")
    refused("calibration-shape", {"x": [[1, 2, 3], [4]]}, (X,), "'x'", "ragged")


def test_zero_samples(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=ramp(0, 3))
    refused("calibration-empty", tmp_path / "a.npz", (X,), "a.npz", "'x'", "at least 1")
    refused("calibration-empty", ramp(3, 3), (BLOCK,), "3 rows", "at least 4")


def test_different_lengths() -> None:
    refused("calibration-length", {"x": ramp(5, 3), "id": np.arange(4)}, (X, ID), "'id' has 4", "'x' has 5")


def test_sample_axis_on_another_axis_can_not_be_sliced() -> None:
    adjacency = InputSpec("a", F32, ("N", "N"))
    error = refused(
        "calibration-slicing", {"x": ramp(4, 3), "a": ramp(4, 4)}, (X, adjacency), "'a'", "[N, N]", "one file"
    )
    assert error.node == "a"
    mask = InputSpec("m", F32, (1, "N"))
    refused("calibration-slicing", {"x": ramp(4, 3), "m": ramp(1, 4)}, (X, mask), "'m'", "one file per feed")


def test_different_fixed_batches_can_not_be_sliced() -> None:
    source = {"x": ramp(8, 3), "y": ramp(4, 3)}
    refused("calibration-slicing", source, (BLOCK, InputSpec("y", F32, (2, 3))), "'y'", "'x'", "one file per feed")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nan_and_infinity_name_input_and_sample(tmp_path: Path, value: float, dtype: Any) -> None:
    x = ramp(9, 3, dtype=dtype)
    x[6, 1] = x[8, 0] = value
    np.savez(tmp_path / "a.npz", x=x)
    refused("calibration-values", tmp_path / "a.npz", (X,), "a.npz", "'x'", "sample 6")
    refused("calibration-values", tmp_path / "a.npz", (BLOCK,), "sample 1")


# Dtypes


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (np.array([0.5, -2.0, 0.0]), np.float32),
        (np.array([1, -3]), np.float32),
        (np.array([True, False]), np.float32),
        (np.array([3.0, -2.0]), np.int64),
        (np.array([0, 255]), np.uint8),
        (np.array([0, 1]), np.bool_),
        (np.array([0.5, 1.5]), np.float16),
        (np.array([2**60, -(2**63)]), np.float64),
        (np.array([1.5], ">f4"), np.float32),
    ],
)
def test_lossless_casts_are_made_and_noted(values: Array, wanted: Any) -> None:
    spec = InputSpec("v", np.dtype(wanted), ("N",))
    samples = data.load(values, (spec,))
    got = gather_all(samples, "v")
    assert got.dtype == np.dtype(wanted)
    np.testing.assert_array_equal(got.astype(object), values.astype(object))
    assert samples.notes == (f"input 'v': {values.dtype} cast to {np.dtype(wanted)} without loss",)


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (np.array([0.1]), np.float32),
        (np.array([1e300]), np.float32),
        (np.array([1e-300]), np.float32),
        (np.array([2**24 + 1]), np.float32),
        (np.array([2**63 - 1]), np.float64),
        (np.array([2.0**63]), np.int64),
        (np.array([0.5]), np.int64),
        (np.array([-1]), np.uint64),
        (np.array([-1], np.int8), np.uint64),
        (np.array([2**63], np.uint64), np.int64),
        (np.array([300]), np.uint8),
        (np.array([2]), np.bool_),
        (np.array([1j]), np.float32),
        (np.array(["1"]), np.float32),
        (np.array([b"\x01\x02"], "V2"), np.float32),
        (np.array([None], object), np.float32),
        (np.array(["2020-01-01"], "M8[D]"), np.int64),
        (np.array([1]), np.object_),
        (np.array([b"s"]), np.object_),
    ],
)
def test_lossy_casts_are_refused(values: Array, wanted: Any) -> None:
    spec = InputSpec("v", np.dtype(wanted), ("N",))
    name = "string" if wanted is np.object_ else str(np.dtype(wanted))
    assert refused("calibration-dtype", {"v": values}, (spec,), "'v'", str(values.dtype), name).node == "v"


def test_casts_to_types_that_numpy_lacks() -> None:
    bfloat16 = np.dtype(helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16))
    spec = InputSpec("v", bfloat16, ("N",))
    samples = data.load(np.array([1.5, -2]), (spec,))
    assert gather_all(samples, "v").dtype == bfloat16
    assert len(data.load(gather_all(samples, "v"), (spec,)).notes) == 0
    refused("calibration-dtype", np.array([1.001]), (spec,), "bfloat16")
    refused("calibration-values", np.array([1.0, np.nan]).astype(bfloat16), (spec,), "sample 1")


def test_strings_of_a_string_network(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", v=np.array(["a", "bc"]))
    spec = InputSpec("v", np.dtype(object), ("N",))
    got = gather_all(data.load(tmp_path / "a.npz", (spec,)), "v")
    assert (got.tolist(), got.dtype) == (["a", "bc"], np.dtype(object))


def test_casts_of_many_files_are_noted_once(tmp_path: Path) -> None:
    for k in range(3):
        np.save(tmp_path / f"{k}.npy", ramp(2, 3, dtype=np.float64))
    samples = data.load(tmp_path, (X,))
    assert samples.notes == ("input 'x': float64 cast to float32 without loss",)
    assert gather_all(samples).dtype == np.float32
