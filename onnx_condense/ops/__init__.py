"""Op knowledge as data. Importing this package fills the registry."""

from __future__ import annotations

from onnx_condense.ops import elementwise, linear
from onnx_condense.ops.registry import Call, Effect, Law, OpRule, Value, find, pinned_like, registered

__all__ = ["Call", "Effect", "Law", "OpRule", "Value", "elementwise", "find", "linear", "pinned_like", "registered"]
