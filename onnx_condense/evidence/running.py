"""What BatchNormalization saw in training: the mean and variance of each of its channels, stored in the network.

Where nobody knows the inputs, these tell how far drawn ones are from those of the training.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
import onnx

from onnx_condense.network.model import Network, inlined
from onnx_condense.plan import FloatArray
from onnx_condense.runtime import Array, Feed, Runtime, run

# A channel counts as no farther off than this, so that a few dead ones don't decide.
FARTHEST = 20.0
# Relative to the stored variance: below it a spread is none.
FLOOR = 1e-5


@dataclasses.dataclass(frozen=True)
class Running:
    """One normalised tensor, channels on axis 1, and what training saw there [channels]."""

    tensor: str
    mean: FloatArray
    variance: FloatArray


def running_statistics(network: Network) -> tuple[Running, ...]:
    """Those of every BatchNormalization of the main graph that uses stored ones and normalises what is computed."""
    found = {}
    for node in network.nodes:
        if node.domain or node.op != "BatchNormalization" or len(node.inputs) < 5 or len(node.outputs) > 1:
            continue
        mean, variance = (network.constant(name) for name in node.inputs[3:5])
        if mean is None or variance is None or node.attributes.get("training_mode") or network.root(node.inputs[0]):
            continue
        numbers = (np.asarray(a, np.float64).reshape(-1) for a in (mean, variance))
        found[node.inputs[0]] = Running(node.inputs[0], *numbers)
    return tuple(found.values())


class Memory:
    """Tells how far inputs are from those of the training, by what BatchNormalization reads.

    statistics: at least one, see `running_statistics`.
    """

    def __init__(self, network: Network, statistics: tuple[Running, ...], runtime: Runtime) -> None:
        self._statistics = statistics
        copy = onnx.ModelProto()
        copy.CopyFrom(inlined(network))
        del copy.graph.output[:]
        copy.graph.output.extend(onnx.ValueInfoProto(name=s.tensor) for s in statistics)
        self._session = runtime.session(copy)

    def distance(self, feeds: Iterable[Feed]) -> float:
        """Divergence of the training from these inputs, were each channel Gaussian; mean of channels and nodes.

        Raises:
            ModelError: the network does not take them.
        """
        totals: list[FloatArray] = []
        for feed in feeds:
            sums = [_sums(y) for y in run(self._session, feed)]
            totals = [a + b for a, b in zip(totals, sums, strict=True)] if totals else sums
        return float(np.mean([_divergence(s, t) for s, t in zip(self._statistics, totals, strict=True)]))


def _sums(values: Array) -> FloatArray:
    """Count, sum and sum of squares per channel [3, channels]."""
    rows = np.moveaxis(values, 1, 0).reshape(values.shape[1], -1).astype(np.float64)
    return np.stack([np.full(len(rows), float(rows.shape[1])), rows.sum(axis=1), (rows**2).sum(axis=1)])


def _divergence(seen: Running, totals: FloatArray) -> float:
    """Kullback and Leibler's, of N(mean, variance) as stored from that of the sums, mean of the channels."""
    with np.errstate(all="ignore"):
        mean = totals[1] / totals[0]
        variance = totals[2] / totals[0] - mean**2
        floor = FLOOR * seen.variance + np.finfo(np.float32).tiny
        ratio = (seen.variance + floor) / (np.maximum(variance, 0.0) + floor)
        apart = (seen.mean - mean) ** 2 / (np.maximum(variance, 0.0) + floor)
        found = 0.5 * (ratio + apart - 1 - np.log(ratio))
    # What is no number (an overflow) is as far off as can be.
    return float(np.mean(np.minimum(np.nan_to_num(found, nan=FARTHEST, posinf=FARTHEST), FARTHEST)))
