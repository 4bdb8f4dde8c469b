"""Condense a trained ONNX network: smaller, faster, same inputs and outputs, within a measured tolerance."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from onnx_condense.errors import (
    BudgetError,
    CalibrationError,
    CondenseError,
    DefectError,
    InputError,
    ModelError,
    UsageError,
)

if TYPE_CHECKING:
    from onnx_condense.outcome import Condensed
    from onnx_condense.pipeline import condense
    from onnx_condense.proving.rechecking import recheck
    from onnx_condense.report.data import Report

__all__ = [
    "BudgetError",
    "CalibrationError",
    "CondenseError",
    "Condensed",
    "DefectError",
    "InputError",
    "ModelError",
    "Report",
    "UsageError",
    "condense",
    "recheck",
]

__version__ = "0.1.0"

_LAZY = {"Condensed": "outcome", "condense": "pipeline", "recheck": "proving.rechecking", "Report": "report.data"}


def __getattr__(name: str) -> Any:
    """Heavy parts are imported on first use, so that `--help` stays quick."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
