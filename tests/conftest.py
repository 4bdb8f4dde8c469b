"""What all tests share: nothing is started beside them that they do not ask for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from onnx_condense.proving import footprint as real
from onnx_condense.proving import latency, proof
from onnx_condense.report.data import Footprint, Latency


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

    def compare(*_: Any, batch: int) -> Latency:
        return Latency("CPUExecutionProvider", 1, batch, 1.0, 0.5, 2.0, (1.9, 2.1))

    monkeypatch.setattr(latency, "compare", compare)


@pytest.fixture
def real_footprint(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undoes it: what is autouse comes first."""
    monkeypatch.setattr(proof, "footprint", real)
