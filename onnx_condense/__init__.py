"""Condense a trained ONNX network: smaller, faster, same inputs and outputs, within a measured tolerance."""

from __future__ import annotations

__version__ = "0.1.0"
