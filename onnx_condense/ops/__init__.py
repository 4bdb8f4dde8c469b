"""Op knowledge as data. Importing this package fills the registry."""

from __future__ import annotations

from onnx_condense.ops import elementwise, layout, linear, norm
from onnx_condense.ops.registry import Affine, Call, Effect, Law, OpRule, Value, find, pinned_like, registered

__all__ = [
    "Affine",
    "Call",
    "Effect",
    "Law",
    "OpRule",
    "Value",
    "elementwise",
    "find",
    "layout",
    "linear",
    "norm",
    "pinned_like",
    "registered",
]
