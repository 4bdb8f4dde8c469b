"""Op knowledge as data. Importing this package fills the registry."""

from __future__ import annotations

from onnx_condense.ops import conv, elementwise, join, layout, linear, mixing, norm, pick, spatial
from onnx_condense.ops.calls import call_of
from onnx_condense.ops.registry import Affine, Call, Effect, Law, OpRule, Value, find, pinned_like, registered

__all__ = [
    "Affine",
    "Call",
    "Effect",
    "Law",
    "OpRule",
    "Value",
    "call_of",
    "conv",
    "elementwise",
    "find",
    "join",
    "layout",
    "linear",
    "mixing",
    "norm",
    "pick",
    "pinned_like",
    "registered",
    "spatial",
]
