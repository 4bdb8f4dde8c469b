"""What tests share: nothing is started beside them that they do not ask for, and where they work."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from command import FakePipeline
from mlps import mlp, normal

from onnx_condense import pipeline
from onnx_condense.fit import fitting
from onnx_condense.proving import footprint as real
from onnx_condense.proving import latency, proof
from onnx_condense.report.data import Footprint, Latency
from onnx_condense.runtime import limited_threads


@pytest.fixture(autouse=True)
def footprint(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command measures load time and memory in processes of their own, for seconds; `real_footprint` lets it."""

    def measure(*_: Any) -> Footprint:
        return Footprint("CPUExecutionProvider", (4.0, 2.0), (8.0, 5.0))

    monkeypatch.setattr(proof, "footprint", SimpleNamespace(measure=measure))


@pytest.fixture(autouse=True)
def quick_timing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every result is twice as fast, at once: timing takes seconds, and may say no on a busy machine.

    `@pytest.mark.real_timing` leaves the stopwatch in.
    """
    if request.node.get_closest_marker("real_timing"):
        return

    def compare(*_: Any, batch: int, **__: Any) -> Latency:
        return Latency("CPUExecutionProvider", 1, batch, 1.0, 0.5, 2.0, (1.9, 2.1))

    monkeypatch.setattr(latency, "compare", compare)


@pytest.fixture
def real_footprint(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undoes it: what is autouse comes first."""
    monkeypatch.setattr(proof, "footprint", real)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a network and samples."""
    monkeypatch.chdir(tmp_path)
    onnx.save(mlp(), "net.onnx")
    np.savez("x.npz", x=normal(300, 3))
    return tmp_path


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakePipeline:
    """A working folder with what may be a network, and a pipeline that only remembers."""
    stand_in = FakePipeline()
    monkeypatch.setattr(pipeline, "condense", stand_in.condense)
    monkeypatch.chdir(tmp_path)
    Path("net.onnx").write_bytes(b"dense")
    return stand_in


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Networks as small as these are slower with more."""
    with limited_threads(1):
        yield


@pytest.fixture(params=["full", "pooled"])
def mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every reader as it is, or the columns of each channel pooled."""
    monkeypatch.setattr(fitting, "FULL", 10**9 if request.param == "full" else 0)
    monkeypatch.setattr(fitting, "RICH", 0)
    return str(request.param)
