"""Which batches are timed."""

from __future__ import annotations

import numpy as np
import pytest
from builders import text_model

from onnx_condense.data import InputSpec, Samples, load
from onnx_condense.errors import UsageError
from onnx_condense.network.model import Network
from onnx_condense.proving.feeding import (
    LATENCY_BATCH,
    LATENCY_MACS,
    MAX_ELEMENTS,
    latency_batch,
    rows_per_pass,
    timed_feeds,
)

FREE = (InputSpec("x", np.dtype(np.float32), ("batch", 3)),)
FIXED = (InputSpec("x", np.dtype(np.float32), (4, 3)),)


def rows(count: int, specs: tuple[InputSpec, ...] = FREE) -> Samples:
    """Samples whose rows all differ."""
    return load({"x": np.arange(3.0 * count, dtype="f4").reshape(count, 3)}, specs)


def heights(samples: Samples, indices: list[int], batches: list[int]) -> list[int]:
    return [len(feed["x"]) for feed in timed_feeds(samples, np.array(indices), batches)]


def test_one_sample_and_a_larger_batch_where_nothing_is_asked_for() -> None:
    samples = rows(400)
    assert [len(f["x"]) for f in timed_feeds(samples, np.arange(400))] == [1, LATENCY_BATCH]
    assert [len(f["x"]) for f in timed_feeds(samples, np.arange(5))] == [1, 5]


@pytest.mark.parametrize("declared", [True, False], ids=["sizes declared", "left open"])
@pytest.mark.parametrize(
    ("pixels", "batch"), [(1, 256), (2**25, 256), (2**26, 128), (2**32, 2), (2**33, 1), (2**34, 1)]
)
def test_heavy_networks_are_timed_on_fewer(pixels: int, batch: int, *, declared: bool) -> None:
    assert LATENCY_MACS == 2**33
    single = {"x": np.broadcast_to(np.float32(1), (1, 1, 1, pixels))}
    assert latency_batch(pointwise(str(pixels) if declared else "W"), single) == batch


def pointwise(width: str) -> Network:
    ends = f"float[N, 1, 1, {width}]"
    head = '<ir_version: 8, opset_import: ["": 13]>'
    text = f"{head} agraph ({ends} x) => ({ends} y) {{ y = Conv(x, w) }}"
    return Network(text_model(text, {"w": np.ones((1, 1, 1, 1), "f4")}))


@pytest.mark.parametrize("width", ["65536", "W"])
def test_passes_are_small_enough_for_a_cache(width: str) -> None:
    specs = (InputSpec("x", np.dtype(np.float32), ("N", 1, 1, width if width == "W" else int(width))),)
    samples = load({"x": np.zeros((3, 1, 1, 65536), "f4")}, specs)
    assert rows_per_pass(pointwise(width), samples, np.arange(3)) == MAX_ELEMENTS // 65536


def test_large_weights_leave_passes_large() -> None:
    """Nor do views of weights count."""
    text = """<ir_version: 8, opset_import: ["": 13]> agraph (float[N, 8] x) => (float[N, 8] z)
        { y = MatMul(x, w)  t = Transpose(w)  z = MatMul(y, t) }"""
    wide = Network(text_model(text, {"w": np.zeros((8, MAX_ELEMENTS // 4), "f4")}))
    specs = (InputSpec("x", np.dtype(np.float32), ("N", 8)),)
    samples = load({"x": np.zeros((5, 8), "f4")}, specs)
    assert rows_per_pass(wide, samples, np.arange(5)) == 4


def test_the_larger_batch_has_no_more_than_that() -> None:
    assert [len(f["x"]) for f in timed_feeds(rows(400), np.arange(400), most=7)] == [1, 7]
    assert [len(f["x"]) for f in timed_feeds(rows(400), np.arange(400), most=1)] == [1]


def test_exactly_the_batches_asked_for() -> None:
    assert heights(rows(10), list(range(10)), [7, 2, 7]) == [7, 2]


def test_samples_are_repeated_to_fill_a_batch() -> None:
    (feed,) = timed_feeds(rows(10), np.array([8, 2, 5]), [7])
    assert (feed["x"][:, 0] / 3).tolist() == [8, 2, 5, 8, 2, 5, 8]


def test_a_fixed_number_of_rows_is_the_only_one() -> None:
    samples = rows(12, FIXED)
    (feed,) = timed_feeds(samples, np.array([1, 2]), [4])
    assert (feed["x"][:, 0] / 3).tolist() == [4, 5, 6, 7]
    with pytest.raises(UsageError, match=r"--batch 8: the network takes 4 rows at a time.*give --batch 4") as caught:
        timed_feeds(samples, np.array([1, 2]), [4, 8])
    assert caught.value.code == "batch"


def test_whole_feeds_are_not_cut() -> None:
    samples = load([{"x": np.ones((2, 3), "f4")}, {"x": np.zeros((5, 3), "f4")}], FREE)
    assert not samples.sliced
    assert [len(f["x"]) for f in timed_feeds(samples, np.array([1]))] == [5]
    with pytest.raises(UsageError, match="--batch 2: the samples are whole feeds") as caught:
        timed_feeds(samples, np.array([0, 1]), [2])
    assert caught.value.code == "batch"


def test_a_batch_has_rows() -> None:
    with pytest.raises(UsageError, match="--batch 0: give one or more"):
        timed_feeds(rows(3), np.arange(3), [1, 0])
