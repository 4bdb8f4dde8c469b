"""Calibration sources: every kind of source, every fault, the split, and the measured effect of slicing."""

from __future__ import annotations

import contextlib
import pickle
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser
from onnxruntime.quantization import CalibrationDataReader

from onnx_condense import data
from onnx_condense.data import InputSpec
from onnx_condense.errors import CalibrationError, ModelError
from onnx_condense.runtime import Runtime

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from onnx_condense.plan import IntArray
    from onnx_condense.runtime import Array

F32 = np.dtype(np.float32)
I64 = np.dtype(np.int64)
X = InputSpec("x", F32, ("N", 3))
ID = InputSpec("id", I64, ("N",))
SCALE = InputSpec("scale", F32, ())
BLOCK = InputSpec("x", F32, (4, 3))


def ramp(*shape: int, dtype: Any = np.float32) -> Array:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def gather_all(samples: data.Samples, name: str = "x") -> Array:
    return np.concatenate([b.feed[name] for b in samples.batches(np.arange(len(samples)))])


def refused(code: str, source: Any, specs: tuple[InputSpec, ...], *words: str) -> CalibrationError:
    """Loads a source that must be refused in one line that holds all the words."""
    with pytest.raises(CalibrationError) as caught:
        data.load(source, specs)
    assert caught.value.code == code
    assert "\n" not in caught.value.text
    for word in words:
        assert word in caught.value.text
    return caught.value


def write_test_set(folder: Path, tensors: list[TensorProto]) -> Path:
    folder.mkdir(parents=True)
    for number, tensor in enumerate(tensors):
        (folder / f"input_{number}.pb").write_bytes(tensor.SerializeToString())
    (folder / "output_0.pb").write_bytes(b"never read")
    return folder


# Inputs of the network


def graph_of(text: str) -> onnx.GraphProto:
    return parser.parse_graph(text)


def test_specs_hold_fixed_symbolic_and_unknown_sizes_and_skip_initializers() -> None:
    graph = graph_of("g (float[N,3,?] x, int64 k, float[2] w) => (float[N] y) <float[2] w = {1,2}> { y = Identity(x) }")
    assert data.input_specs(graph) == (InputSpec("x", F32, ("N", 3, None)), InputSpec("k", I64, ()))


def test_specs_take_minus_one_as_unknown() -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT16, [-1, 4])
    graph = helper.make_graph([], "g", [value], [])
    assert data.input_specs(graph) == (InputSpec("x", np.dtype(np.float16), (None, 4)),)


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, [2]), "sequence"),
        (onnx.ValueInfoProto(name="x"), "untyped"),
        (helper.make_tensor_value_info("x", TensorProto.FLOAT, None), "shape"),
        (helper.make_tensor_value_info("x", TensorProto.UNDEFINED, [2]), "element type"),
    ],
)
def test_specs_refuse_what_is_no_shaped_tensor(value: onnx.ValueInfoProto, word: str) -> None:
    with pytest.raises(ModelError, match=f"'x'.*{word}") as caught:
        data.input_specs(helper.make_graph([], "g", [value], []))
    assert (caught.value.code, caught.value.node) == ("input-type", "x")


# Sliced sources


@pytest.mark.parametrize("kind", ["npz", "npy", "mapping", "array", "text path"])
def test_rows_are_samples(tmp_path: Path, kind: str) -> None:
    x = ramp(5, 3)
    np.savez(tmp_path / "a.npz", x=x)
    np.save(tmp_path / "a.npy", x)
    path = tmp_path / "a.npz"
    sources: dict[str, Any] = {"npz": path, "npy": tmp_path / "a.npy", "mapping": {"x": x}, "array": x}
    samples = data.load(sources.get(kind, str(path)), (X,))
    assert (len(samples), samples.sliced, samples.notes) == (5, True, ())
    np.testing.assert_array_equal(samples.groups, np.arange(5))
    assert samples.groups.dtype == np.int64
    np.testing.assert_array_equal(gather_all(samples), x)


def test_batches_gather_by_index_in_order() -> None:
    samples = data.load({"x": ramp(9, 3), "id": np.arange(9)}, (X, ID))
    batches = list(samples.batches(np.array([8, 1, 5, 0, 3]), rows=2))
    assert [b.samples.tolist() for b in batches] == [[8, 1], [5, 0], [3]]
    assert [b.feed["id"].tolist() for b in batches] == [[8, 1], [5, 0], [3]]
    np.testing.assert_array_equal(batches[0].feed["x"], ramp(9, 3)[[8, 1]])


def test_default_batch_is_1024_rows() -> None:
    samples = data.load(ramp(1500, 3), (X,))
    assert [len(b.samples) for b in samples.batches(np.arange(1500))] == [1024, 476]


def test_input_without_sample_axis_is_passed_whole() -> None:
    table = InputSpec("t", F32, (2, 3))
    samples = data.load({"x": ramp(4, 3), "scale": np.float32(2), "t": ramp(2, 3)}, (X, SCALE, table))
    batches = list(samples.batches(np.arange(4), rows=3))
    assert [b.feed["x"].shape for b in batches] == [(3, 3), (1, 3)]
    assert all(b.feed["scale"] == 2 and b.feed["t"].shape == (2, 3) for b in batches)
    assert sum("no sample axis" in note for note in samples.notes) == 2


def test_fixed_batch_gives_blocks_and_drops_the_rest_with_a_note() -> None:
    samples = data.load(ramp(14, 3), (BLOCK,))
    assert (len(samples), samples.sliced) == (3, True)
    batches = list(samples.batches(np.array([2, 0])))
    assert [b.samples.tolist() for b in batches] == [[2], [0]]
    np.testing.assert_array_equal(batches[0].feed["x"], ramp(14, 3)[8:12])
    np.testing.assert_array_equal(batches[1].feed["x"], ramp(14, 3)[:4])
    assert any("last 2 of 14 rows" in note for note in samples.notes)


def test_fixed_batch_of_one_slices_rows_and_passes_single_rows_whole() -> None:
    specs = (InputSpec("x", F32, (1, 3)), InputSpec("c", F32, (1, 2)))
    samples = data.load({"x": ramp(6, 3), "c": ramp(1, 2)}, specs)
    assert len(samples) == 6
    (batch,) = samples.batches(np.array([4]))
    assert (batch.feed["x"].tolist(), batch.feed["c"].shape) == ([[12, 13, 14]], (1, 2))
    assert any("'c'" in note for note in samples.notes)


def test_exactly_the_declared_shapes_are_one_feed() -> None:
    samples = data.load({"x": ramp(4, 3)}, (BLOCK,))
    assert (len(samples), samples.sliced) == (1, False)
    (batch,) = samples.batches(np.array([0]))
    assert batch.feed["x"].shape == (4, 3)


def test_faults_of_a_single_feed_name_the_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", x=np.full((4, 3), np.nan, np.float32))
    refused("calibration-values", tmp_path / "one.npz", (BLOCK,), "one.npz", "'x'")


def test_group_array_becomes_codes(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=ramp(4, 3), group=np.array(["b", "a", "b", "c"]))
    groups = data.load(tmp_path / "a.npz", (X,)).groups
    assert groups.tolist() == [1, 0, 1, 2]
    assert groups.dtype == np.int64


def test_group_of_python_objects_in_memory() -> None:
    group = np.array(["r1", 7, "r1"], dtype=object)
    assert data.load({"x": ramp(3, 3), "group": group}, (X,)).groups.tolist() == [1, 0, 1]


def test_group_of_blocks() -> None:
    source = {"x": ramp(9, 3), "group": np.repeat([5, 2, 9], [4, 4, 1])}
    assert data.load(source, (BLOCK,)).groups.tolist() == [1, 0]
    source["group"] = np.repeat([5, 2], [5, 4])
    refused("calibration-groups", source, (BLOCK,), "rows 4 to 7")


def test_group_of_wrong_length_is_refused() -> None:
    refused("calibration-groups", {"x": ramp(4, 3), "group": np.arange(3)}, (X,), "'group'", "[3]", "[4]")


def test_an_input_called_group_is_an_input() -> None:
    samples = data.load({"group": np.array([7, 7, 7])}, (InputSpec("group", I64, ("N",)),))
    assert samples.groups.tolist() == [0, 1, 2]
    assert gather_all(samples, "group").tolist() == [7, 7, 7]


# Feeds


def test_folder_of_files_is_one_feed_and_group_a_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "b.npz", x=ramp(2, 3), group=np.zeros(2))
    np.save(tmp_path / "a.npy", ramp(5, 3))
    (tmp_path / "notes.txt").write_text("not a feed")
    (tmp_path / ".hidden.npz").write_text("not a feed")
    samples = data.load(tmp_path, (X,))
    assert (len(samples), samples.sliced, samples.groups.tolist()) == (2, False, [0, 1])
    batches = list(samples.batches(np.array([1, 0]), rows=1))
    assert [(b.samples.tolist(), b.feed["x"].shape) for b in batches] == [([1], (2, 3)), ([0], (5, 3))]
    assert any("2 other entries" in note for note in samples.notes)
    assert any("group" in note for note in samples.notes)


def test_folder_is_read_lazily_and_again_checked(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ramp(2, 3))
    samples = data.load(tmp_path, (X,))
    np.save(tmp_path / "a.npy", np.full((2, 3), np.inf, np.float32))
    with pytest.raises(CalibrationError, match=r"a\.npy: input 'x' holds NaN"):
        list(samples.batches(np.array([0])))


def test_every_file_of_a_folder_is_checked_at_once(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ramp(2, 3))
    np.save(tmp_path / "b.npy", ramp(2, 4))
    refused("calibration-shape", tmp_path, (X,), "b.npy", "'x'", "[2, 4]", "[N, 3]")


def test_test_data_sets_by_name_and_by_position(tmp_path: Path) -> None:
    x, ids = numpy_helper.from_array(ramp(2, 3)), numpy_helper.from_array(np.array([4, 5]))
    write_test_set(tmp_path / "test_data_set_0", [x, ids])
    named = [numpy_helper.from_array(np.array([6]), "id"), numpy_helper.from_array(ramp(1, 3), "x")]
    write_test_set(tmp_path / "test_data_set_1", named)
    (tmp_path / "model.onnx").write_bytes(b"")
    samples = data.load(tmp_path, (X, ID))
    assert (len(samples), samples.sliced) == (2, False)
    first, second = samples.batches(np.arange(2))
    assert (first.feed["id"].tolist(), first.feed["x"].shape) == ([4, 5], (2, 3))
    assert (second.feed["id"].tolist(), second.feed["x"].shape) == ([6], (1, 3))


def test_a_single_test_data_set_counts_positions_as_numbers(tmp_path: Path) -> None:
    specs = tuple(InputSpec(f"i{k}", I64, ()) for k in range(11))
    folder = write_test_set(tmp_path / "any", [numpy_helper.from_array(np.array(k)) for k in range(11)])
    samples = data.load(folder, specs)
    (batch,) = samples.batches(np.array([0]))
    assert len(samples) == 1
    assert [int(batch.feed[f"i{k}"]) for k in range(11)] == list(range(11))


def test_test_data_set_with_one_input_too_many(tmp_path: Path) -> None:
    folder = write_test_set(tmp_path / "s", [numpy_helper.from_array(ramp(1, 3)), numpy_helper.from_array(ramp(1))])
    refused("calibration-names", folder, (X,), "input_1.pb", "'x'")


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xff garbage", numpy_helper.from_array(ramp(9)).SerializeToString()[:-9]]
)
def test_damaged_protobuf_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "input_0.pb").write_bytes(content)
    refused("calibration-format", tmp_path, (X,), "input_0.pb", "onnx.save_tensor")


def test_iterables_are_drained_once() -> None:
    samples = data.load(({"x": ramp(k, 3)} for k in (1, 2)), (X,))
    assert (len(samples), samples.sliced) == (2, False)
    for _ in range(2):
        assert [len(b.feed["x"]) for b in samples.batches(np.arange(2))] == [1, 2]


class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is untyped
    """Gives three feeds."""

    def __init__(self) -> None:
        self.left = 3

    def get_next(self) -> dict[str, Array] | None:
        """The next feed."""
        self.left -= 1
        return {"x": ramp(self.left + 1, 3)} if self.left >= 0 else None


def test_calibration_data_reader() -> None:
    reader = Reader()
    samples = data.load(reader, (X,))
    assert [len(b.feed["x"]) for b in samples.batches(np.arange(3))] == [3, 2, 1]
    refused("calibration-empty", reader, (X,), "no feeds")


def test_faults_of_feeds_name_the_feed() -> None:
    feeds = [{"x": ramp(1, 3)}, {"x": [[1, np.nan, 2]]}]
    refused("calibration-values", feeds, (X,), "feed 1", "'x'", "NaN")
    refused("calibration-format", [ramp(2, 3)], (X,), "feed 0", "mappings")
    refused("calibration-format", 7, (X,), "int")
    refused("calibration-empty", [], (X,), "at least one")
    refused("calibration-empty", [{"x": ramp(0, 3)}], (X,), "feed 0", "'x'", "at least one")


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


# Split


def grouped(groups: list[int] | IntArray) -> data.Samples:
    return data.load({"x": ramp(len(groups), 3), "group": np.asarray(groups)}, (X,))


def sizes(shares: data.Shares) -> tuple[int, int, int]:
    return len(shares.fit), len(shares.search), len(shares.verify)


def assert_partition(shares: data.Shares, count: int) -> None:
    parts = (shares.fit, shares.search, shares.verify)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(count))
    assert all(part.dtype == np.int64 and np.all(np.diff(part) > 0) for part in parts)


@pytest.mark.parametrize("count", [25, 100, 1000])
def test_split_is_60_20_20_without_groups(count: int) -> None:
    shares = data.split(data.load(ramp(count, 3), (X,)), 0)
    assert sizes(shares) == (count * 3 // 5, count // 5, count // 5)
    assert_partition(shares, count)


def test_split_depends_on_the_seed_alone() -> None:
    samples = data.load(ramp(100, 3), (X,))
    one, same, other = (data.split(samples, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.search, same.search)
    assert not np.array_equal(one.search, other.search)


@pytest.mark.parametrize("seed", range(5))
def test_groups_are_never_split(seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = rng.permutation(np.repeat(np.arange(20), rng.integers(1, 30, 20)))
    shares = data.split(grouped(groups), seed)
    assert_partition(shares, len(groups))
    owners = [set(groups[part].tolist()) for part in (shares.fit, shares.search, shares.verify)]
    assert sum(len(owner) for owner in owners) == len(set(groups.tolist()))
    assert np.allclose(np.array(sizes(shares)) / len(groups), (0.6, 0.2, 0.2), atol=0.06)


def test_three_groups_make_three_shares() -> None:
    assert sizes(data.split(grouped(np.repeat([0, 1, 2], 30)), 0)) == (30, 30, 30)


def test_separate_verification_leaves_75_25() -> None:
    shares = data.split(data.load(ramp(40, 3), (X,)), 0, separate_verification=True)
    assert sizes(shares) == (30, 10, 0)
    assert_partition(shares, 40)
    assert sizes(data.split(grouped(np.repeat([0, 1], 10)), 0, separate_verification=True)) == (10, 10, 0)


def few(samples: data.Samples, code: str, *words: str, separate: bool = False) -> None:
    with pytest.raises(CalibrationError) as caught:
        data.split(samples, 0, separate_verification=separate)
    assert caught.value.code == code
    for word in words:
        assert word in caught.value.text


def test_too_few_samples_or_groups() -> None:
    few(data.load(ramp(20, 3), (X,)), "calibration-few", "20 samples", "25")
    few(data.load(ramp(15, 3), (X,)), "calibration-few", "15 samples", "20", separate=True)
    few(grouped(np.repeat([0, 1], 50)), "calibration-groups", "100 samples in 2 groups", "at least 3 groups")
    few(grouped([0] * 96 + [1] * 2 + [2] * 2), "calibration-groups", "in 3 groups", "at least 5", "more groups")
    few(grouped([4] * 40), "calibration-groups", "1 groups", "at least 2 groups", separate=True)


# Effect of slicing

HEADER = '<ir_version: 10, opset_import: ["" : 21]>'


def check(text: str, samples: data.Samples) -> None:
    model = parser.parse_model(HEADER + text)
    data.check_independent(samples, Runtime(threads=1).session(model), [value.name for value in model.graph.output])


def dependent(text: str, samples: data.Samples, code: str, *words: str) -> None:
    with pytest.raises(CalibrationError) as caught:
        check(text, samples)
    assert caught.value.code == code
    assert "\n" not in caught.value.text
    for word in words:
        assert word in caught.value.text


def rows(count: int = 10) -> data.Samples:
    return data.load(np.random.default_rng(0).standard_normal((count, 3)).astype(np.float32), (X,))


@pytest.mark.parametrize(
    "body",
    [
        "g (float[N,3] x) => (float[N,3] y) { y = Softmax(x) }",
        "g (float[N,3] x) => (int64[N,1] y, bool[N,3] z) { y = ArgMax<axis=1>(x) z = Greater(x, x) }",
    ],
)
def test_networks_with_independent_rows_pass(body: str) -> None:
    check(body, rows())


@pytest.mark.parametrize(
    "body",
    [
        pytest.param("y = CumSum(x, zero)", id="cumsum"),
        pytest.param("s = ReduceSum(x) y = Div(x, s)", id="statistics over the batch"),
        pytest.param("m = ReduceMean<keepdims=0>(x) y = Identity(m)", id="scalar output"),
        pytest.param("y = Reshape(x, flat)", id="other row count"),
        pytest.param("y = Reshape(x, two)", id="no single run"),
        pytest.param("y = Reshape(x, one)", id="only single runs"),
        pytest.param("p = Greater(x, half) y = NonZero(p)", id="varying trailing shape"),
        pytest.param("s = CumSum(x, zero) y = Greater(s, half)", id="bool"),
    ],
)
def test_dependent_rows_are_found(body: str) -> None:
    kinds = {"NonZero": "int64", "Greater(s": "bool"}
    kind = next((k for word, k in kinds.items() if word in body), "float")
    constants = (
        "int64 zero = {0}, int64[1] flat = {-1}, int64[2] two = {4, 3}, int64[2] one = {1, 3}, float half = {0.5}"
    )
    text = f"g (float[N,3] x) => ({kind}[?] y) <{constants}> {{ {body} }}"
    text = text.replace("[?]", "") if "scalar" in text else text
    dependent(text, rows(), "calibration-slicing", "'y'", "one file per feed")


def test_a_small_output_beside_a_large_one_is_not_drowned() -> None:
    text = "g (float[N,3] x) => (float[N,3] a, float[N,3] b) <int64 zero = {0}, float k = {1e-6}, float m = {1e6}>"
    dependent(text + "{ a = Mul(x, m) s = CumSum(x, zero) b = Mul(s, k) }", rows(), "calibration-slicing", "'b'")


RANDOM = "{ r = RandomNormalLike(x) y = Add(x, r) }"


@pytest.mark.parametrize("kind", ["rows", "feeds", "blocks"])
def test_random_networks_are_called_random_for_any_source(kind: str) -> None:
    shape = "4" if kind == "blocks" else "N"
    sources = {"rows": rows(), "feeds": data.load([{"x": ramp(4, 3)}], (X,)), "blocks": data.load(ramp(8, 3), (BLOCK,))}
    text = f"g (float[{shape},3] x) => (float[{shape},3] y) {RANDOM}"
    dependent(text, sources[kind], "calibration-random", "'y'", "random")


def test_random_shapes_are_called_random() -> None:
    body = "{ r = RandomNormalLike(x) p = Greater(r, k) y = NonZero(p) }"
    text = "g (float[N,3] x) => (int64[2,M] y) <float k = {0}>" + body
    dependent(text, data.load([{"x": ramp(500, 3)}], (X,)), "calibration-random", "'y'")


CUMSUM = "g (float[N,3] x) => (float[N,3] y) <int64 zero = {0}> { y = CumSum(x, zero) }"


def test_feeds_blocks_and_single_samples_may_depend_on_their_batch() -> None:
    check(CUMSUM, data.load([{"x": ramp(4, 3)}, {"x": ramp(2, 3)}], (X,)))
    check(CUMSUM, rows(1))
    check(CUMSUM.replace("N", "4"), data.load(ramp(8, 3), (BLOCK,)))


@pytest.mark.parametrize("kind", ["rows", "feeds"])
def test_a_network_that_never_runs_is_the_networks_fault(kind: str) -> None:
    text = "g (float[N,3] x) => (float[M,7] y) <int64[2] bad = {-1, 7}> { y = Reshape(x, bad) }"
    with pytest.raises(ModelError, match="can't run"):
        check(text, rows() if kind == "rows" else data.load([{"x": ramp(2, 3)}], (X,)))
