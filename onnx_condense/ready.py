"""A network as it is looked at: loaded, and written so that the rules for single ops reach what they can."""

from __future__ import annotations

import os
from collections.abc import Mapping

import onnx

from onnx_condense.network.broadcast import broadcast
from onnx_condense.network.folded import folded
from onnx_condense.network.live import live
from onnx_condense.network.model import Network, load
from onnx_condense.network.multiplied import multiplied, weighed
from onnx_condense.network.parted import parted
from onnx_condense.network.scattered import scattered
from onnx_condense.network.settled import settled
from onnx_condense.network.summed import summed
from onnx_condense.plan import IntArray
from onnx_condense.spaces import find_spaces


def ready(source: str | os.PathLike[str] | onnx.ModelProto) -> Network:
    """A network in a form that answers the same, to rounding, and can be narrowed in more places.

    Dead nodes go; weights worked out from stored numbers are stored; Einsum becomes MatMul; nothing is laid out that
    element-wise ops repeat themselves; sizes worked out are stored where inference is sure; what is put by index is as
    wide as what is put; sums over channels become products; grids that hold several tensors are taken apart. Where none
    of that applies it is the network as it came, which `given` always is.

    Raises:
        ModelError: it can't be read, or is no valid network.
    """
    found = settled(broadcast(multiplied(folded(live(load(source))))))
    for write in (weighed, scattered, summed, parted):
        found = write(found, _labels)
    return found


def _labels(network: Network) -> Mapping[str, IntArray]:
    return find_spaces(network).labels
