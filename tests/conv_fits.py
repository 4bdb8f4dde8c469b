"""Small convolutional networks and what the fitter makes of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
import windows
from mlps import Array, Net, normal
from windows import RUNTIME

from onnx_condense.data import input_specs, load
from onnx_condense.fit.fitting import Fitter
from onnx_condense.network.model import Network
from onnx_condense.spaces import find_spaces

FIT = np.arange(70)
AROUND = [1, 1, 1, 1]


def fitter(model: onnx.ModelProto, x: Array) -> Fitter:
    """A fitter that fits on the first seven ninths of the samples."""
    network = Network(model)
    samples = load(x, input_specs(model.graph))
    fit, search = np.split(np.arange(len(x)), [len(x) * 7 // 9])
    return Fitter(network, find_spaces(network), samples, fit, search, RUNTIME)


def fetch(model: onnx.ModelProto, x: Array, *names: str) -> list[Array]:
    """Tensors of a network in float64, inner ones too."""
    return [a.astype(np.float64) for a in windows.fetch(model, {"x": x}, *names, optimize=False)]


def error(condensed: onnx.ModelProto, dense: onnx.ModelProto, x: Array, name: str = "y") -> float:
    """Relative error of one tensor."""
    (a,), (b,) = fetch(condensed, x, name), fetch(dense, x, name)
    return float(np.sqrt(np.square(a - b).sum() / np.square(b - b.mean(0)).sum()))


# ---- networks ----


def conv(net: Net, rng: np.random.Generator, tensor: str, out: str, shape: Sequence[int], **options: Any) -> str:
    """One convolution with weight [O, K, ...] and, unless bias=False, a bias."""
    bias = options.pop("bias", True)
    weight = net.weight(f"{out}.w", rng.standard_normal(shape) / math.sqrt(math.prod(shape[1:])))
    more = [net.weight(f"{out}.b", rng.standard_normal(shape[0]) / 2)] if bias else []
    return net.node("Conv", tensor, weight, *more, out=out, **options)


def gemm(net: Net, rng: np.random.Generator, tensor: str, out: str, shape: tuple[int, int]) -> str:
    """One dense layer with weight [K, O] and a bias."""
    weight = net.weight(f"{out}.w", rng.standard_normal(shape) / math.sqrt(shape[0]))
    return net.node("Gemm", tensor, weight, net.weight(f"{out}.b", rng.standard_normal(shape[1])), out=out)


def start(seed: int) -> tuple[Net, np.random.Generator]:
    """A network of images [N, 2, 6, 7], and what its weights are drawn with."""
    return Net({"x": ["N", 2, 6, 7]}), np.random.default_rng(seed)


def plain(seed: int = 0) -> onnx.ModelProto:
    """Padded readers, then all positions weighed."""
    net, rng = start(seed)
    h = net.node("Relu", conv(net, rng, "x", "a", (12, 2, 3, 3), pads=AROUND))
    h = net.node("Relu", conv(net, rng, h, "b", (5, 12, 3, 3), pads=AROUND))
    gemm(net, rng, net.node("Flatten", h), "y", (210, 3))
    return net.model({"y": ["N", 3]})


def channels_last(seed: int = 0) -> onnx.ModelProto:
    """As `plain`, asymmetric pads, and positions are weighed before channels."""
    net, rng = start(seed)
    h = net.node("Relu", conv(net, rng, "x", "a", (12, 2, 3, 3), pads=AROUND))
    h = net.node("Tanh", conv(net, rng, h, "b", (5, 12, 2, 3), pads=[0, 2, 1, 0], dilations=[1, 1]))
    h = net.node("Transpose", h, perm=[0, 2, 3, 1])
    gemm(net, rng, net.node("Flatten", h), "y", (210, 3))
    return net.model({"y": ["N", 3]})


def strided(seed: int = 0) -> onnx.ModelProto:
    """Strides, SAME, a reader of one tap with strides, pooling over all positions."""
    net, rng = start(seed)
    h = net.node("Relu", conv(net, rng, "x", "a", (12, 2, 3, 3), pads=AROUND))
    h = net.node("Relu", conv(net, rng, h, "b", (10, 12, 4, 4), strides=[2, 2], auto_pad="SAME_LOWER"))
    h = net.node("Relu", conv(net, rng, h, "c", (8, 10, 1, 1), strides=[2, 1]))
    gemm(net, rng, net.node("Flatten", net.node("GlobalAveragePool", h)), "y", (8, 3))
    return net.model({"y": ["N", 3]})


def maximum(seed: int = 0) -> onnx.ModelProto:
    """The largest of neighbours is what is read."""
    net, rng = start(seed)
    h = net.node("Relu", conv(net, rng, "x", "a", (12, 2, 3, 3), pads=AROUND))
    h = net.node("MaxPool", h, kernel_shape=[2, 2], strides=[2, 2], pads=[0, 1, 0, 0])
    h = net.node("Relu", conv(net, rng, h, "b", (10, 12, 3, 3), pads=AROUND))
    gemm(net, rng, net.node("Flatten", h), "y", (120, 3))
    return net.model({"y": ["N", 3]})


def residual(seed: int = 0) -> onnx.ModelProto:
    """A block whose result is added to what comes in."""
    net, rng = start(seed)
    skip = net.node("Relu", conv(net, rng, "x", "a", (10, 2, 3, 3), pads=AROUND))
    h = net.node("Relu", conv(net, rng, skip, "b", (12, 10, 3, 3), pads=AROUND))
    h = conv(net, rng, h, "c", (10, 12, 3, 3), pads=AROUND)
    h = net.node("Relu", net.node("Add", skip, h))
    h = net.node("Relu", conv(net, rng, h, "d", (8, 10, 3, 3), strides=[2, 2], pads=AROUND))
    gemm(net, rng, net.node("Flatten", net.node("GlobalAveragePool", h)), "y", (8, 3))
    return net.model({"y": ["N", 3]})


def normalised(seed: int = 0) -> onnx.ModelProto:
    """Convolutions without a bias, normalised."""
    net, rng = start(seed)
    h = conv(net, rng, "x", "a", (12, 2, 3, 3), pads=AROUND, bias=False)
    for out, shape in (("b", (10, 12, 3, 3)), ("c", (8, 10, 3, 3))):
        h = net.node("Relu", norm(net, rng, h, shape[1]))
        h = conv(net, rng, h, out, shape, pads=AROUND, bias=False)
    h = net.node("Relu", norm(net, rng, h, 8))
    gemm(net, rng, net.node("Flatten", net.node("GlobalAveragePool", h)), "y", (8, 3))
    return net.model({"y": ["N", 3]})


def norm(net: Net, rng: np.random.Generator, tensor: str, size: int) -> str:
    """A BatchNormalization."""
    ranges = {"scale": (0.5, 1.5), "shift": (-1, 1), "mean": (-1, 1), "variance": (0.5, 2)}
    stored = [net.weight(f"{tensor}.{n}", rng.uniform(*limits, size)) for n, limits in ranges.items()]
    return net.node("BatchNormalization", tensor, *stored, out=f"{tensor}.n")


def shared(seed: int = 0) -> onnx.ModelProto:
    """One kernel, used twice with different pads."""
    net, rng = start(seed)
    h = net.node("Relu", conv(net, rng, "x", "a", (10, 2, 3, 3), pads=AROUND))
    kernel = net.weight("w", rng.standard_normal((10, 10, 3, 3)) / 90**0.5)
    h = net.node("Relu", net.node("Conv", h, kernel, net.weight("b.b", rng.standard_normal(10)), pads=AROUND, out="b"))
    h = net.node("Relu", net.node("Conv", h, kernel, "b.b", strides=[2, 2], out="c"))
    gemm(net, rng, net.node("Flatten", net.node("GlobalAveragePool", h)), "y", (10, 3))
    return net.model({"y": ["N", 3]})


NETS: Mapping[str, tuple[Callable[[int], onnx.ModelProto], tuple[str, ...]]] = {
    "plain": (plain, ("b", "y")),
    "channels last": (channels_last, ("b", "y")),
    "strided": (strided, ("b", "c", "y")),
    "maximum": (maximum, ("b", "y")),
    "residual": (residual, ("b", "c", "d", "y")),
    "normalised": (normalised, ("b.n", "c.n", "y")),
}
"""With the tensors behind their readers."""
every_net = pytest.mark.parametrize(("make", "ends"), NETS.values(), ids=NETS.keys())
X = normal(90, 2, 6, 7)


def two_thirds(made: Fitter) -> list[int]:
    """Widths, rounded up."""
    return [-(-2 * s.width // 3) for s in made.spaces]


def rows(tensor: Array) -> Array:
    """[N, C, positions...] -> [n, C]."""
    moved = np.moveaxis(tensor, 1, -1)
    return moved.reshape(-1, moved.shape[-1])
