"""Calibration sources: files or arrays in, checked feeds out, split into shares.

Owns what may be used as a sample of a network's inputs. Two kinds of source exist. *Sliced*: one array per input whose
axis 0 counts samples, so that batches can be gathered by index. *Feeds*: whole calls of the network, one sample each,
never cut. Which features are computed from the samples is the business of the stages.
"""

from onnx_condense.data.conform import GROUP
from onnx_condense.data.independence import check_independent, check_repeatable
from onnx_condense.data.samples import Batch, InputSpec, Samples, input_specs
from onnx_condense.data.shares import SMALLEST_SHARE, Shares, split, spread
from onnx_condense.data.sources import FeedReader, Source, load

__all__ = [
    "GROUP",
    "SMALLEST_SHARE",
    "Batch",
    "FeedReader",
    "InputSpec",
    "Samples",
    "Shares",
    "Source",
    "check_independent",
    "check_repeatable",
    "input_specs",
    "load",
    "split",
    "spread",
]
