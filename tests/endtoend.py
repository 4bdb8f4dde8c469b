"""Running condense() on small networks, and comparing what comes out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from mlps import Array, normal

from onnx_condense import condense
from onnx_condense.outcome import Condensed
from onnx_condense.proving import latency
from onnx_condense.report.data import Latency
from onnx_condense.runtime import Runtime

X = normal(400, 3)


class FakeTimer:
    """Stands in for the timing: always the same speedup, unless told otherwise for single calls."""

    def __init__(self) -> None:
        self.speedups: list[float] = []
        self.batches: list[int] = []

    def compare(self, _before: Any, _after: Any, _feed: Any, runtime: Runtime, *, batch: int, **_: Any) -> Latency:
        """As `latency.compare`."""
        self.batches.append(batch)
        speedup = self.speedups.pop(0) if self.speedups else 2.0
        return Latency("CPUExecutionProvider", runtime.threads, batch, 1.0, 1 / speedup, speedup, (speedup, speedup))

    def confirmed(self, *_: Any, seen: Latency) -> Latency:
        """As `latency.confirmed`."""
        return seen


@pytest.fixture(autouse=True)
def timer(monkeypatch: pytest.MonkeyPatch) -> FakeTimer:
    fake = FakeTimer()
    timed_by(monkeypatch, fake)
    return fake


def timed_by(monkeypatch: pytest.MonkeyPatch, fake: Any) -> None:
    """Something that stands in for the stopwatch."""
    monkeypatch.setattr(latency, "compare", fake.compare)
    monkeypatch.setattr(latency, "confirmed", fake.confirmed)


def run(model: Any, **options: Any) -> Condensed:
    return condense(model, **{"threads": 1, **options})


def outputs(model: onnx.ModelProto, feed: Mapping[str, Array]) -> list[Array]:
    found: list[Array] = Runtime(threads=1).session(model, optimize=False).run(None, dict(feed))
    return found


def relative(model: onnx.ModelProto, dense: onnx.ModelProto, x: Array) -> float:
    y, y0 = (outputs(m, {"x": x})[0].astype(np.float64) for m in (model, dense))
    return float(np.sqrt(((y - y0) ** 2).sum() / ((y0 - y0.mean(0)) ** 2).sum()))
