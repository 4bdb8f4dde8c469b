"""How samples are fed: how many per pass, and which batches are timed."""

from __future__ import annotations

import math

import numpy as np

from onnx_condense.data import Samples
from onnx_condense.model import Network
from onnx_condense.plan import IntArray
from onnx_condense.runtime import Feed

# Samples per pass: moments want at most 1024 rows, large inputs fewer.
MAX_ROWS = 1024
MAX_ELEMENTS = 2**25
LATENCY_BATCH = 256


def timed_feeds(samples: Samples, indices: IntArray) -> list[Feed]:
    """What to time: one sample, and a larger batch where the network takes one."""
    counts = {1, min(LATENCY_BATCH, len(indices))} if samples.sliced else {1}
    batches = [(count, next(iter(samples.batches(indices[:count], count)))) for count in sorted(counts)]
    return [batch.feed for count, batch in batches if len(batch.samples) == count]


def rows_per_pass(network: Network, samples: Samples, indices: IntArray) -> int:
    """Samples per pass, fewer where one is large, or some tensor between input and output (as far as shapes tell)."""
    first = next(iter(samples.batches(indices[:1], 1))).feed
    inside = (math.prod(d for d in shape if isinstance(d, int)) for shape in network.shapes.values())
    size = max(1, *(np.size(a) for a in first.values()), *inside)
    return int(np.clip(MAX_ELEMENTS // size, 1, MAX_ROWS))
