"""What is large is not held twice: worked on in bands, made when asked for, dropped once it is not needed."""

from __future__ import annotations

import ctypes
import functools
import platform
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from mlps import Array, mlp, normal

from onnx_condense import condense, plan, run
from onnx_condense.data import input_specs, load
from onnx_condense.evidence.columns import Columns
from onnx_condense.evidence.moments import collect, with_itself
from onnx_condense.plan import FloatArray, Moments, add_product, bands
from onnx_condense.proving.verify import _forget
from onnx_condense.runtime import Runtime, release
from onnx_condense.select.curves import Trial, held_out_error
from onnx_condense.select.obs import ReaderCost, eliminate

STATUS = Path("/proc/self/status")


def moments(x: FloatArray, y: FloatArray) -> Moments:
    left, right = x - x.mean(0), y - y.mean(0)
    return Moments(len(x), x.mean(0), y.mean(0), left.T @ right)


@pytest.mark.parametrize("shape", [(7, 3), (1, 100), (100, 1), (0, 5), (5, 0)])
@pytest.mark.parametrize("size", [1, 6, 1000])
def test_bands_are_all_rows_once(shape: tuple[int, int], size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "BAND", size)
    matrix = np.arange(shape[0] * shape[1]).reshape(shape)
    parts = [matrix[rows] for rows in bands(matrix)]
    assert [row for part in parts for row in part.tolist()] == matrix.tolist()
    assert all(part.size <= size or len(part) == 1 for part in parts)


@pytest.mark.parametrize("size", [20, 10**6])
def test_products_are_added_in_bands(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "BAND", size)
    left, right, total = normal(2, 9), normal(2, 7), normal(9, 7).astype(np.float64)
    expected = total + 0.3 * left.astype(np.float64).T @ right
    add_product(total, left.astype(np.float64), right.astype(np.float64), 0.3)
    np.testing.assert_allclose(total, expected, rtol=1e-12)


def test_moments_about_other_means(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "BAND", 12)
    x, means = normal(30, 5).astype(np.float64) + 2, np.arange(5.0)
    np.testing.assert_allclose(moments(x, x).about(means), (x - means).T @ (x - means) / 30, rtol=1e-12)


@pytest.mark.parametrize("per_channel", [0, 2])
def test_passes_add_up_to_the_very_numbers_of_plus(per_channel: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "BAND", 50)
    model, x = mlp((3, 24, 20, 2)), normal(50, 3) + 1
    samples = load(x, input_specs(model.graph))
    hidden = next(n.input[0] for n in model.graph.node if "W1" in n.input)
    pairs = [with_itself(Columns(hidden, 1, per_channel=per_channel)), with_itself(Columns("x", 1))]

    def found(indices: Array) -> list[Moments]:
        return collect(model, pairs, {hidden: 2, "x": 2}, samples, indices, Runtime(threads=1), 16)

    apart = [found(np.arange(start, min(start + 16, 50))) for start in range(0, 50, 16)]
    for whole, *parts in zip(found(np.arange(50)), *apart, strict=True):
        expected = functools.reduce(Moments.plus, parts)
        assert whole.count == expected.count == 50
        for name in ("left", "right", "product"):
            np.testing.assert_array_equal(getattr(whole, name), getattr(expected, name))


def test_collecting_leaves_the_network_as_it_was() -> None:
    model = mlp()
    before = model.SerializeToString()
    samples = load(normal(9, 3), input_specs(model.graph))
    collect(model, [with_itself(Columns("x", 1))], {"x": 2}, samples, np.arange(9), Runtime(threads=1))
    assert model.SerializeToString() == before


@pytest.mark.parametrize("width", [1, 3])
def test_an_elimination_in_bands_is_the_same(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((900, 60 * width)) @ rng.standard_normal((60 * width, 60 * width))
    at = rng.permutation(60 * width).reshape(60, width)
    readers = [ReaderCost(rng.standard_normal((n, 60 * width)), np.cov(x.T), at) for n in (4, 70)]
    expected = eliminate(readers, np.arange(60), 1e-6)
    monkeypatch.setattr(plan, "BAND", 700)
    found = eliminate(readers, np.arange(60), 1e-6)
    np.testing.assert_array_equal(found.order, expected.order)
    # The scale of the costs is a sum in single precision.
    np.testing.assert_allclose(found.cost, expected.cost, rtol=1e-6)


def test_held_out_moments_are_made_once_and_only_if_asked_for() -> None:
    made: list[FloatArray] = []

    def told() -> FloatArray:
        made.append(np.eye(6))
        return made[-1]

    trial = Trial(ReaderCost(np.ones((2, 6)), np.eye(6), np.arange(6)[:, None]), told)
    assert not made
    errors = [held_out_error([trial], np.arange(count), 1e-6) for count in (1, 2, 3)]
    assert errors == pytest.approx([1 / 6, 2 / 6, 3 / 6])
    assert len(made) == 1


def test_only_tensors_that_nothing_reads_are_forgotten() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 3, opset_import: ["" : 17]>
        g (float[2] x, bool c, float[2] read, float[2] unread, float[2] inside, float[2] kept)
            => (float[2] y, float[2] given)
        <float[2] read = {1, 1}, float[2] unread = {1, 1}, float[2] inside = {1, 1}, float[2] given = {1, 1},
         float[2] kept = {1, 1}> {
            z = Add (x, read)
            y = If (c) <then_branch = t () => (float[2] a) { a = Add (z, inside) },
                        else_branch = e () => (float[2] b) { b = Neg (z) }>
        }"""
    )
    _forget(model, {"read", "unread", "inside", "given"})
    assert {t.name for t in model.graph.initializer} == {"read", "inside", "given", "kept"}
    assert [i.name for i in model.graph.input] == ["x", "c", "read", "inside", "kept"]


def test_memory_is_kept_between_runs_for_timing_only() -> None:
    model = mlp()
    for spin in (False, True):
        options = Runtime(threads=1).session(model, spin=spin).get_session_options()
        assert options.enable_cpu_mem_arena == spin


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or not STATUS.exists(), reason="only glibc has malloc_trim, only Linux /proc"
)
def test_what_is_free_goes_back_to_the_system() -> None:
    def resident() -> int:
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1])

    # Once a piece of 30 MB was freed, smaller ones are kept.
    held = bytearray(30 * 2**20)
    del held
    pieces = [bytearray(b"\1" * 2**20) for _ in range(101)]
    last = pieces.pop()
    pieces.clear()
    before = resident()
    release()
    assert resident() < before - 50 * 2**10
    assert last[-1] == 1


def test_elsewhere_nothing_is_asked_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(ctypes, "CDLL", asked.append)
    monkeypatch.setattr(sys, "platform", "win32")
    release()
    assert not asked


def test_every_stage_of_a_run_begins_with_what_the_last_one_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    monkeypatch.setattr(run, "release", lambda: events.append("release"))
    condense(mlp((3, 8, 2)), calibration=normal(60, 3), threads=1, progress=lambda stage, _: events.append(stage))
    assert events[::2] == ["release"] * (len(events) // 2)
    assert events[-1] == "done"
