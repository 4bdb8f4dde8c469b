"""Op knowledge as data. Importing this package fills the registry."""

from __future__ import annotations

from onnx_condense.ops import (
    conv,
    elementwise,
    fused,
    join,
    layout,
    linear,
    mixing,
    norm,
    pick,
    recurrent,
    rows,
    spatial,
)
from onnx_condense.ops.calls import call_of
from onnx_condense.ops.registry import (
    Activation,
    Affine,
    Call,
    Effect,
    Law,
    OpRule,
    Role,
    Value,
    find,
    pinned_like,
    registered,
)

__all__ = [
    "Activation",
    "Affine",
    "Call",
    "Effect",
    "Law",
    "OpRule",
    "Role",
    "Value",
    "call_of",
    "conv",
    "elementwise",
    "find",
    "fused",
    "join",
    "layout",
    "linear",
    "mixing",
    "norm",
    "pick",
    "pinned_like",
    "recurrent",
    "registered",
    "rows",
    "spatial",
]
