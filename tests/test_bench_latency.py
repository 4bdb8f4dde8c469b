"""The table about timing counts what it says, and what burns cores meanwhile ends with it."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import bench_latency
import numpy as np
import pytest
from mlps import mlp
from onnx import save
from typer.testing import CliRunner

from onnx_condense.proving import latency
from onnx_condense.report.data import Latency
from onnx_condense.runtime import Feed


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, object, int, int]]:
    """What was compared: both networks, rows of the feed, batch on record; verdicts come in turns."""
    calls: list[tuple[object, object, int, int]] = []

    def compare(before: object, after: object, feed: Feed, _runtime: object, *, batch: int) -> Latency:
        calls.append((before, after, len(next(iter(feed.values()))), batch))
        low, high = ((0.9, 1.1), (1.2, 1.5), (0.5, 0.8), (0.9, 1.2))[(len(calls) - 1) % 4]
        return Latency("CPUExecutionProvider", 0, batch, 2.0, 1.0, (low + high) / 2, (low, high))

    monkeypatch.setattr(latency, "compare", compare)
    return calls


def table(*arguments: str) -> list[list[str]]:
    done = CliRunner().invoke(bench_latency.app, list(arguments), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    rows = [line for line in done.output.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in rows[2:]]


def test_a_network_is_compared_with_itself(tmp_path: Path, asked: list[tuple[object, object, int, int]]) -> None:
    net, inputs = tmp_path / "net.onnx", tmp_path / "inputs.npz"
    save(mlp((3, 8, 2)), net)
    np.savez(inputs, x=np.random.default_rng(0).normal(size=(10, 3)).astype("f4"))
    rows = table("networks", str(net), "--inputs", str(inputs), "--batch", "1", "--batch", "16", "--trials", "8")
    assert asked == [(net, net, 1, 1)] * 8 + [(net, net, 16, 16)] * 8
    assert [row[:5] for row in rows] == [
        ["net against itself, batch 1, 0 cores busy", "8", "4", "2", "2"],
        ["net against itself, batch 16, 0 cores busy", "8", "4", "2", "2"],
    ]


def test_a_network_is_compared_with_others(tmp_path: Path, asked: list[tuple[object, object, int, int]]) -> None:
    net, other, inputs = tmp_path / "net.onnx", tmp_path / "slim.onnx", tmp_path / "inputs.npz"
    for path in (net, other):
        save(mlp((3, 8, 2)), path)
    np.savez(inputs, x=np.random.default_rng(0).normal(size=(10, 3)).astype("f4"))
    (row,) = table("networks", str(net), "--inputs", str(inputs), "--other", str(other), "--trials", "1")
    assert asked == [(net, other, 1, 1)]
    assert row[0] == "net against slim, batch 1, 0 cores busy"


def test_made_networks_are_compared_with_themselves_and_with_narrower_ones(
    asked: list[tuple[object, object, int, int]],
) -> None:
    rows = table("mlps", "--width", "20", "--batch", "3", "--trials", "1")
    assert [row[0] for row in rows] == [
        "20 wide against itself, batch 3, 0 cores busy",
        "20 wide against 10 wide, batch 3, 0 cores busy",
    ]
    (first, same, *_), (dense, narrow, *_) = asked
    assert first == same == dense
    assert isinstance(dense, bytes)
    assert isinstance(narrow, bytes)
    assert len(narrow) < len(dense)


def test_cores_burn_only_meanwhile() -> None:
    def cut_short() -> None:
        with bench_latency.burning(2):
            assert len(multiprocessing.active_children()) == 2
            raise KeyError

    with pytest.raises(KeyError):
        cut_short()
    assert not multiprocessing.active_children()
