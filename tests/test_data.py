"""Calibration sources: every kind of source, and helpers for its faults, the split and the effect of slicing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser
from onnxruntime.quantization import CalibrationDataReader

from onnx_condense import data
from onnx_condense.data import InputSpec
from onnx_condense.errors import CalibrationError, ModelError

if TYPE_CHECKING:
    from pathlib import Path

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


def test_specs_hold_fixed_symbolic_and_unknown_sizes_and_skip_initializers() -> None:
    graph = parser.parse_graph(
        "g (float[N,3,?] x, int64 k, float[2] w) => (float[N] y) <float[2] w = {1,2}> { y = Identity(x) }"
    )
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
    samples = data.load({"group": np.array([7, 8, 9])}, (InputSpec("group", I64, ("N",)),))
    assert samples.groups.tolist() == [0, 1, 2]
    assert gather_all(samples, "group").tolist() == [7, 8, 9]


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
