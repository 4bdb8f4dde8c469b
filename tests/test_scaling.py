"""The work of the analysis grows with the size of a network, not faster; counted in calls, not in seconds."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import numpy as np
import onnx
import pytest
from mlps import Net

from onnx_condense.evidence.weights import lossless_plan
from onnx_condense.network.model import Network
from onnx_condense.spaces import find_spaces

CHANNELS = 3
AROUND = [1, 1, 1, 1]


class Blocks:
    """Lays down one block after the other."""

    def __init__(self, shape: list[int | str]) -> None:
        self.net = Net({"x": shape})
        self.shape = shape
        self.rng = np.random.default_rng(0)
        self._names = itertools.count()

    def weight(self, *shape: int) -> str:
        """A stored tensor of random numbers."""
        return self.net.weight(f"w{next(self._names)}", self.rng.standard_normal(shape))

    def conv(self, x: str, **attributes: Any) -> str:
        """A convolution that keeps channels and size; group: depthwise."""
        read = CHANNELS // attributes.get("group", 1)
        kernel = self.weight(CHANNELS, read, 3, 3)
        return self.net.node("Conv", x, kernel, self.weight(CHANNELS), pads=AROUND, **attributes)

    def model(self, x: str) -> onnx.ModelProto:
        """What has been laid down, up to a tensor."""
        self.net.node("Identity", x, out="y")
        return self.net.model({"y": self.shape})


def images() -> Blocks:
    return Blocks(["N", CHANNELS, 4, 4])


def chain(blocks: int) -> onnx.ModelProto:
    """Conv, BatchNormalization, Relu."""
    b, x = images(), "x"
    for _ in range(blocks):
        numbers = [b.weight(CHANNELS) for _ in range(3)]
        spread = b.net.weight(f"{x}.spread", np.ones(CHANNELS))
        x = b.net.node("Relu", b.net.node("BatchNormalization", b.conv(x), *numbers, spread))
    return b.model(x)


def residual(blocks: int) -> onnx.ModelProto:
    """One space from end to end, inner ones that are filtered."""
    b = images()
    x = b.conv("x")
    for _ in range(blocks):
        inner = b.conv(b.net.node("Relu", b.conv(x)), group=CHANNELS)
        x = b.net.node("Relu", b.net.node("Add", x, b.conv(inner)))
    return b.model(b.conv(x))


def dense(blocks: int) -> onnx.ModelProto:
    """Gemm and Tanh."""
    b, x = Blocks(["N", CHANNELS]), "x"
    for _ in range(blocks):
        x = b.net.node("Tanh", b.net.node("Gemm", x, b.weight(CHANNELS, CHANNELS), b.weight(CHANNELS)))
    return b.model(x)


def shared(blocks: int) -> onnx.ModelProto:
    """One weight for all."""
    b, x = Blocks(["N", CHANNELS]), "x"
    weight = b.weight(CHANNELS, CHANNELS)
    for _ in range(blocks):
        x = b.net.node("Relu", b.net.node("MatMul", x, weight))
    return b.model(x)


def computed(blocks: int) -> onnx.ModelProto:
    """Shapes that the graph works out."""
    b, x = images(), "x"
    back = b.net.weight("back", np.array([CHANNELS, 4, 4]))
    first, rest = (b.net.weight(n, np.array([v])) for n, v in (("first", 0), ("rest", -1)))
    for _ in range(blocks):
        x = b.net.node("Relu", b.conv(x))
        size = b.net.node("Gather", b.net.node("Shape", x), first)
        flat = b.net.node("Reshape", x, b.net.node("Concat", size, rest, axis=0))
        x = b.net.node("Reshape", flat, b.net.node("Concat", size, back, axis=0))
    return b.model(x)


def analysed(model: onnx.ModelProto) -> None:
    network = Network(model)
    lossless_plan(network, find_spaces(network))


def calls(model: onnx.ModelProto) -> int:
    """Python functions that are called while a network is looked through."""
    count = 0

    def counted(_: FrameType, event: str, __: object) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(counted)
    try:
        analysed(model)
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("make", [chain, residual, dense, shared, computed])
def test_twice_the_nodes_take_twice_the_calls(make: Callable[[int], onnx.ModelProto]) -> None:
    # What is done once and for all comes first.
    analysed(make(1))
    small, large, twice = (calls(make(n)) for n in (1, 13, 25))
    assert twice - small == pytest.approx(2 * (large - small), rel=0.02)


@pytest.mark.parametrize("make", [residual, dense])
def test_long_networks_need_no_deep_stack(make: Callable[[int], onnx.ModelProto]) -> None:
    model = make(120)
    frame, depth = sys._getframe(), 0
    while frame.f_back is not None:
        frame, depth = frame.f_back, depth + 1
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(depth + 100)
    try:
        analysed(model)
    finally:
        sys.setrecursionlimit(limit)
