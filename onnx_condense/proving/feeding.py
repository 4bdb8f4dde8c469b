"""How samples are fed: how many per pass, and which batches are timed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from onnx_condense.cost import Work
from onnx_condense.data import Samples
from onnx_condense.data.samples import Rows
from onnx_condense.errors import UsageError
from onnx_condense.network.model import Network
from onnx_condense.network.sized import sized
from onnx_condense.plan import IntArray
from onnx_condense.runtime import Feed

# Samples per pass: moments want at most 1024 rows, large inputs fewer. Passes whose tensors fit into a cache take up to
# half the time per sample of larger ones.
MAX_ROWS = 1024
MAX_ELEMENTS = 2**22
# The larger batch that is timed: so many samples, of heavy networks as many as take some tenths of a second.
LATENCY_BATCH, LATENCY_MACS = 256, 2**33


def single(samples: Samples, indices: IntArray | None = None) -> Feed:
    """The feed of the first sample, or of the first of those at some indices."""
    return next(iter(samples.batches(np.arange(1) if indices is None else indices[:1], 1))).feed


def latency_batch(network: Network, sample: Feed) -> int:
    """How many samples to time at once; 1 where a single one is all that can be waited for.

    sample: the feed of one.
    """
    return int(np.clip(LATENCY_MACS // max(Work(sample).of(network), 1), 1, LATENCY_BATCH))


def timed_feeds(
    samples: Samples, indices: IntArray, batches: Sequence[int] = (), most: int = LATENCY_BATCH
) -> list[Feed]:
    """What to time: one sample, and a larger batch where the network takes one; or exactly the batches asked for.

    batches: rows of each; where there are fewer samples they are repeated. most: samples in the larger batch.

    Raises:
        UsageError: the network, or the form of the samples, does not allow one of the batches.
    """
    if batches:
        return [_batch_of(samples, indices, rows) for rows in dict.fromkeys(batches)]
    counts = {1, min(most, len(indices))} if samples.sliced else {1}
    firsts = [(count, next(iter(samples.batches(indices[:count], count)))) for count in sorted(counts)]
    return [batch.feed for count, batch in firsts if len(batch.samples) == count]


def _batch_of(samples: Samples, indices: IntArray, rows: int) -> Feed:
    """A feed of so many rows."""
    if rows < 1:
        raise UsageError("batch", f"--batch {rows}: give one or more rows")
    if not isinstance(samples, Rows):
        text = "the samples are whole feeds, which can't be cut or joined: leave it away, or give arrays"
        raise UsageError("batch", f"--batch {rows}: {text} with a row per sample")
    if samples.block not in {None, rows}:
        text = f"the network takes {samples.block} rows at a time, no other number: give --batch {samples.block}"
        raise UsageError("batch", f"--batch {rows}: {text} or leave it away")
    count = rows // (samples.block or 1)
    return next(iter(samples.batches(np.resize(indices, count), count))).feed


def rows_per_pass(network: Network, samples: Samples, indices: IntArray) -> int:
    """Samples per pass, fewer where one is large, or some tensor between input and output (as far as shapes tell).

    What is stored does not count: weights are there once, however many samples pass.
    """
    first = single(samples, indices)
    fed = sized(network, first)
    shapes = (shape for name, shape in fed.shapes.items() if not fed.root(name))
    inside = (math.prod(d for d in shape if isinstance(d, int)) for shape in shapes)
    size = max(1, *(np.size(a) for a in first.values()), *inside)
    return int(np.clip(MAX_ELEMENTS // size, 1, MAX_ROWS))
