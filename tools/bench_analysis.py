"""How long it takes to look through a network: loading, finding spaces, and the lossless plan, in seconds.

The networks are generated, with few channels, so that what is timed is the work per node. The cost should grow with
the number of nodes, not faster; the last column says how it grew since the line above, per node.

    python tools/bench_analysis.py --sizes 500,5000,20000
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import onnx
import typer
from bench_common import header, row
from onnx import TensorProto, helper, numpy_helper

from onnx_condense.evidence.weights import lossless_plan
from onnx_condense.network.model import load
from onnx_condense.spaces import find_spaces

COLUMNS = ("network", "nodes", "load", "spaces", "lossless plan", "all", "ms per node", "growth per node")


class Graph:
    """Collects nodes and weights until there are enough."""

    def __init__(self, size: int, channels: int) -> None:
        self.size, self.channels = size, channels
        self.rng = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.stored: list[onnx.TensorProto] = []

    @property
    def full(self) -> bool:
        """Whether there are as many nodes as asked for."""
        return len(self.nodes) >= self.size

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Append a node; the name of its result."""
        out = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [out], **attributes))
        return out

    def weight(self, value: npt.ArrayLike) -> str:
        """Store a tensor; its name."""
        array = np.asarray(value)
        name = f"c{len(self.stored)}"
        self.stored.append(numpy_helper.from_array(array if array.dtype.kind == "i" else array.astype("f"), name))
        return name

    def conv(self, x: str, kernel: int = 3) -> str:
        """A convolution that keeps channels and size."""
        c = self.channels
        weight = self.rng.standard_normal((c, c, kernel, kernel)) / (math.sqrt(c) * kernel)
        return self.node("Conv", x, self.weight(weight), pads=[kernel // 2] * 4)

    def gemm(self, x: str) -> str:
        """A product with a weight and a bias that keeps the number of channels."""
        c = self.channels
        bias = self.weight(self.rng.standard_normal(c))
        return self.node("Gemm", x, self.weight(self.rng.standard_normal((c, c)) / math.sqrt(c)), bias)

    def matmul(self, x: str) -> str:
        """The same without a bias."""
        c = self.channels
        return self.node("MatMul", x, self.weight(self.rng.standard_normal((c, c)) / math.sqrt(c)))

    def norm(self, x: str) -> str:
        """BatchNormalization."""
        numbers = self.rng.uniform(0.5, 1.5, (4, self.channels))
        return self.node("BatchNormalization", x, *map(self.weight, numbers))

    def model(self, end: str, shape: tuple[int | str, ...]) -> onnx.ModelProto:
        """The network x -> y; both have the same shape."""
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)
        self.nodes.append(helper.make_node("Identity", [end], ["y"]))
        graph = helper.make_graph(self.nodes, "net", [x], [y], self.stored)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    def images(self, end: str) -> onnx.ModelProto:
        """The network with an image as its input."""
        return self.model(end, ("N", self.channels, 8, 8))


def chain(size: int, channels: int) -> onnx.ModelProto:
    """Conv, BatchNormalization, Relu, one after the other."""
    graph, x = Graph(size, channels), "x"
    while not graph.full:
        x = graph.node("Relu", graph.norm(graph.conv(x)))
    return graph.images(graph.conv(x, 1))


def residual(size: int, channels: int) -> onnx.ModelProto:
    """Blocks of two convolutions whose result is added to what comes in, all of them one space."""
    graph = Graph(size, channels)
    x = graph.conv("x")
    while not graph.full:
        inner = graph.node("Relu", graph.norm(graph.conv(x)))
        x = graph.node("Relu", graph.node("Add", x, graph.norm(graph.conv(inner))))
    return graph.images(graph.conv(x, 1))


def branchy(size: int, channels: int) -> onnx.ModelProto:
    """Four branches that are added up, again and again."""
    graph = Graph(size, channels)
    x = graph.conv("x")
    while not graph.full:
        branches = [graph.node("Relu", graph.conv(x, kernel)) for kernel in (1, 3, 1)]
        pooled = graph.node("AveragePool", x, kernel_shape=[3, 3], pads=[1] * 4)
        total = functools.reduce(lambda a, b: graph.node("Add", a, b), branches, pooled)
        x = graph.conv(graph.node("Relu", total), 1)
    return graph.images(x)


def depthwise(size: int, channels: int) -> onnx.ModelProto:
    """Inverted residuals: wider by one tap, filtered channel by channel, narrower again and added."""
    graph = Graph(size, channels)
    low, high = graph.weight(np.float32(0)), graph.weight(np.float32(6))
    x = graph.conv("x")
    while not graph.full:
        wide = graph.node("Clip", graph.conv(x, 1), low, high)
        kernels = graph.weight(graph.rng.standard_normal((channels, 1, 3, 3)) / 3)
        wide = graph.node("Conv", wide, kernels, pads=[1] * 4, group=channels)
        x = graph.node("Add", x, graph.conv(graph.node("Clip", wide, low, high), 1))
    return graph.images(graph.conv(x, 1))


def mlp(size: int, channels: int) -> onnx.ModelProto:
    """Gemm and Tanh."""
    graph, x = Graph(size, channels), "x"
    while not graph.full:
        x = graph.node("Tanh", graph.gemm(x))
    return graph.model(graph.gemm(x), ("N", channels))


def decomposed(size: int, channels: int) -> onnx.ModelProto:
    """MatMul, Add and a GELU of five nodes."""
    graph, x = Graph(size, channels), "x"
    root, one, half = (graph.weight(np.float32(v)) for v in (math.sqrt(2), 1, 0.5))
    while not graph.full:
        z = graph.node("Add", graph.matmul(x), graph.weight(graph.rng.standard_normal(channels)))
        curve = graph.node("Add", graph.node("Erf", graph.node("Div", z, root)), one)
        x = graph.node("Mul", graph.node("Mul", z, curve), half)
    return graph.model(graph.matmul(x), ("N", channels))


def shapes(size: int, channels: int) -> onnx.ModelProto:
    """Flattened by computed shapes and put back, as exporters write `x.view(x.size(0), -1)`."""
    graph = Graph(size, channels)
    x = graph.conv("x")
    zero, rest = graph.weight(np.array(0)), graph.weight(np.array([-1]))
    first = graph.weight(np.array([0]))
    back = graph.weight(np.array([channels, 8, 8]))
    while not graph.full:
        x = graph.node("Relu", graph.conv(x))
        batch = graph.node("Unsqueeze", graph.node("Gather", graph.node("Shape", x), zero), first)
        flat = graph.node("Reshape", x, graph.node("Concat", batch, rest, axis=0))
        x = graph.node("Reshape", flat, graph.node("Concat", batch, back, axis=0))
    return graph.images(graph.conv(x, 1))


def heads(size: int, channels: int) -> onnx.ModelProto:
    """Blocks that upsample to a computed size: Shape, Slice, Concat, Resize."""
    graph = Graph(size, channels)
    x = graph.conv("x")
    ends = [graph.weight(np.array([i])) for i in (0, 2)]
    grown = graph.weight(np.array([8, 8]))
    while not graph.full:
        x = graph.node("Relu", graph.conv(x))
        fixed = graph.node("Slice", graph.node("Shape", x), *ends)
        x = graph.node("Resize", x, "", "", graph.node("Concat", fixed, grown, axis=0))
    return graph.images(graph.conv(x, 1))


def weights(size: int, channels: int) -> onnx.ModelProto:
    """Weights that are views: every MatMul reads a Transpose of what is stored."""
    graph, x = Graph(size, channels), "x"
    while not graph.full:
        stored = graph.weight(graph.rng.standard_normal((channels, channels)) / math.sqrt(channels))
        x = graph.node("Relu", graph.node("MatMul", x, graph.node("Transpose", stored, perm=[1, 0])))
    return graph.model(graph.matmul(x), ("N", channels))


NETWORKS: dict[str, Callable[[int, int], onnx.ModelProto]] = {
    "Conv-BN-Relu chain": chain,
    "residual": residual,
    "branchy": branchy,
    "inverted residual": depthwise,
    "Gemm-Tanh chain": mlp,
    "MatMul-GELU chain": decomposed,
    "computed Reshape": shapes,
    "computed Resize": heads,
    "transposed weights": weights,
}


@dataclasses.dataclass(frozen=True)
class Seconds:
    """Wall time of the stages."""

    load: float
    spaces: float
    plan: float

    @property
    def all(self) -> float:
        """Their sum."""
        return self.load + self.spaces + self.plan


def measured(proto: onnx.ModelProto) -> Seconds:
    """Time one network, stage by stage."""
    marks = [time.process_time()]
    network = load(proto)
    marks.append(time.process_time())
    view = find_spaces(network)
    marks.append(time.process_time())
    lossless_plan(network, view)
    marks.append(time.process_time())
    return Seconds(*(b - a for a, b in itertools.pairwise(marks)))


def main(
    sizes: Annotated[str, typer.Option(help="Nodes, joined by commas.")] = "500,5000,20000",
    networks: Annotated[str, typer.Option(help=f"Some of: {', '.join(NETWORKS)}; joined by commas.")] = "",
    channels: int = 8,
) -> None:
    """Print one markdown table."""
    print(header(*COLUMNS))
    chosen = [name.strip() for name in networks.split(",")] if networks else list(NETWORKS)
    for name in chosen:
        before = math.nan
        for size in map(int, sizes.split(",")):
            proto = NETWORKS[name](size, channels)
            count = len(proto.graph.node)
            seconds = measured(proto)
            each = 1000 * seconds.all / count
            stages = (f"{v:.2f}" for v in (seconds.load, seconds.spaces, seconds.plan, seconds.all))
            growth = "" if math.isnan(before) else f"{each / before:.2f}"
            print(row(name, str(count), *stages, f"{each:.2f}", growth), flush=True)
            before = each


if __name__ == "__main__":
    typer.run(main)
