"""What all tests share: nothing is started beside them that they do not ask for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from onnx_condense import footprint as real
from onnx_condense import proof
from onnx_condense.report.data import Footprint


@pytest.fixture(autouse=True)
def footprint(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command measures load time and memory in processes of their own, for seconds; `real_footprint` lets it."""

    def measure(*_: Any) -> Footprint:
        return Footprint("CPUExecutionProvider", (4.0, 2.0), (8.0, 5.0))

    monkeypatch.setattr(proof, "footprint", SimpleNamespace(measure=measure))


@pytest.fixture
def real_footprint(monkeypatch: pytest.MonkeyPatch, footprint: None) -> None:  # noqa: ARG001 - after the other one
    """Undoes it."""
    monkeypatch.setattr(proof, "footprint", real)
