"""What this machine's ONNX Runtime can run on."""

from __future__ import annotations

import onnxruntime
import pytest

NEEDS_CUDA = pytest.mark.skipif(
    "CUDAExecutionProvider" not in onnxruntime.get_available_providers(),
    reason="no CUDAExecutionProvider in this ONNX Runtime",
)
