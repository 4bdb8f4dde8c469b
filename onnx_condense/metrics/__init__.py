"""The error of one network against another; see `judge`."""

from onnx_condense.metrics.judge import Judge
from onnx_condense.metrics.measurement import Measurement, OutputMeasure

__all__ = ["Judge", "Measurement", "OutputMeasure"]
