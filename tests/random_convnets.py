"""Random small graphs over images, full of copies, dead and constant channels, paddings and barriers.

As `random_nets`: weights are drawn from a handful of numbers and rows are repeated, so that almost every network has
something that can go; paddings, pools, normalisation, sums, products and heads decide whether it may.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from random_nets import Sketch

Array = npt.NDArray[Any]
WIDTHS = (1, 2, 3, 4, 4, 6)
UNARY = ("Relu", "Relu", "Tanh", "Sigmoid", "Abs", "LeakyRelu", "Erf", "Identity", "Neg", "Gelu", "HardSwish", "Clip")
BINARY = ("Add", "Add", "Sub", "Mul", "Max")
POOLS = ("MaxPool", "AveragePool", "AveragePool", "LpPool")
CHANCES = (0.28, 0.22, 0.1, 0.08, 0.04, 0.02, 0.08, 0.05, 0.03, 0.03, 0.07)
FLAT = (0.4, 0.2, 0.15, 0.1, 0.15)
LARGE = 200
DIGITS = "0123456789"
MODES = ("constant", "edge", "reflect")


class Writer(Sketch):
    """Tensors have rank 4 with 2 samples, or rank 2 behind a head."""

    def keep(self, value: Array, kind: str) -> str:
        """Store a constant; sometimes a weight or bias of its shape that is there already."""
        same = [
            n for n, v in self.stored.items() if n.rstrip(DIGITS) == kind and v.shape == value.shape and kind in "wab"
        ]
        if same and self.coin(0.3):
            return str(self.pick(same))
        name = f"{kind}{len(self.stored)}"
        self.stored[name] = value if value.dtype == np.int64 else value.astype(np.float32)
        return name

    def weight(self, shape: tuple[int, ...]) -> str:
        """Few different numbers, repeated and scaled rows, repeated columns, empty rows."""
        rng, size = self.rng, shape[0]
        value = rng.choice([-1.0, 0.0, 0.5, 1.0], shape)
        if self.coin(0.5):
            value = value + rng.standard_normal(shape) * 0.5
        if self.coin(0.7):
            value = value[rng.integers(0, size, size)]
        if self.coin(0.4):
            value = value[:, rng.integers(0, shape[1], shape[1])]
        factors = rng.choice([1.0, 1.0, 2.0, -1.0, 0.0], size)
        value = value * factors.reshape(-1, *(1,) * (value.ndim - 1))
        if self.coin(0.2):
            value *= rng.choice([0.0, 1.0], (1, shape[1], *(1,) * (value.ndim - 2)))
        return self.keep(value / math.sqrt(value[0].size), "w")

    def transposed(self, shape: tuple[int, int]) -> str:
        """A weight for MatMul, from the shape that others have."""
        drawn = self.weight(shape)
        value = self.stored[drawn]
        if drawn == list(self.stored)[-1] and all(drawn not in node.input for node in self.nodes):
            del self.stored[drawn]
        return self.keep(value.T.copy(), "w")

    def numbers(self, shape: tuple[int, ...], kind: str = "b") -> str:
        """A bias or the like."""
        return self.keep(self.rng.choice([-1.0, 0.0, 0.5, 0.5, 2.0], shape), kind)

    def borders(self, height: int, width: int, kernel: Sequence[int]) -> tuple[dict[str, Any], tuple[int, int]]:
        """Attributes of a window over an image, and the size of the result."""
        kind = self.pick(["none", "none", "pads", "pads", "SAME_UPPER", "SAME_LOWER", "VALID"])
        # A stride beyond the window would need negative padding.
        strides = [min(int(self.pick([1, 1, 2])), k) for k in kernel]
        attributes: dict[str, Any] = {"strides": strides}
        extra = [0, 0]
        if kind == "pads":
            pads = [int(self.rng.integers(0, k)) for k in (*kernel, *kernel)]
            attributes["pads"], extra = pads, [pads[0] + pads[2], pads[1] + pads[3]]
        elif kind != "none":
            attributes["auto_pad"] = kind
        sizes = tuple(
            -(-n // s) if kind.startswith("SAME") else (n + e - k) // s + 1
            for n, e, k, s in zip((height, width), extra, kernel, strides, strict=True)
        )
        return attributes, (sizes[0], sizes[1])

    def kernel(self, height: int, width: int) -> list[int]:
        """Sizes of a window that fits."""
        return [int(self.rng.integers(1, min(3, n) + 1)) for n in (height, width)]

    # ---- images ----

    def conv(self, x: str) -> str:
        """A convolution, now and then in groups."""
        n, c, height, width = self.shapes[x]
        kernel = self.kernel(height, width)
        attributes, sizes = self.borders(height, width, kernel)
        out = int(self.pick(WIDTHS))
        if self.coin(0.05):
            attributes["group"], out = c, c * int(self.pick([1, 2]))
        inputs = [x, self.weight((out, c // int(attributes.get("group", 1)), *kernel))]
        if self.coin(0.7):
            inputs.append(self.numbers((out,)))
        return self.emit("Conv", inputs, (n, out, *sizes), **attributes)

    def pool(self, x: str) -> str:
        """A pool of any kind."""
        n, c, height, width = self.shapes[x]
        op = self.pick(POOLS)
        kernel = self.kernel(height, width)
        attributes, sizes = self.borders(height, width, kernel)
        if op == "AveragePool" and self.coin(0.5):
            attributes["count_include_pad"] = 1
        return self.emit(op, [x], (n, c, *sizes), kernel_shape=kernel, **attributes)

    def norm(self, x: str) -> str:
        """Stored statistics, few different numbers."""
        size = self.shapes[x][1]
        scale, shift, mean = (self.numbers((size,)) for _ in range(3))
        variance = self.keep(self.rng.choice([0.25, 1.0, 1.0, 4.0], size), "k")
        return self.emit("BatchNormalization", [x, scale, shift, mean, variance], self.shapes[x])

    def pad(self, x: str) -> str:
        """Values beside the image: zero, another number, or its own."""
        n, c, height, width = self.shapes[x]
        before, after = self.rng.integers(0, 2, (2, 2))
        mode = self.pick(MODES) if min(height, width) > 1 else "constant"
        inputs = [x, self.keep(np.array([0, 0, *before, 0, 0, *after], np.int64), "pads")]
        if mode == "constant" and self.coin(0.5):
            inputs.append(self.numbers((), "value"))
        top, left = before + after
        return self.emit("Pad", inputs, (n, c, height + int(top), width + int(left)), mode=mode)

    def resize(self, x: str) -> str:
        """Twice as large."""
        n, c, height, width = self.shapes[x]
        if self.coin(0.5):
            inputs = [x, "", self.keep(np.array([1, 1, 2, 2], np.float32), "scales")]
        else:
            inputs = [x, "", "", self.keep(np.array([n, c, 2 * height, 2 * width], np.int64), "sizes")]
        mode = self.pick(["nearest", "linear", "cubic"])
        return self.emit("Resize", inputs, (n, c, 2 * height, 2 * width), mode=mode)

    def joined(self, x: str) -> str:
        """Two images of one size, or gates for each channel."""
        n, c, *_ = shape = self.shapes[x]
        same = [t for t in self.computed if self.shapes[t] == shape]
        gates = [t for t in self.computed if self.shapes[t] in ((n, c, 1, 1), (n, 1, *shape[2:]))]
        other = str(self.pick(gates if gates and self.coin(0.5) else same))
        return self.emit(self.pick(BINARY), [x, other] if self.coin(0.8) else [other, x], shape)

    def with_constant(self, x: str) -> str:
        """A constant per channel, per pixel or for all."""
        _, c, height, width = shape = self.shapes[x]
        part = self.pick([(c, 1, 1), (1, c, 1, 1), (), (1, 1), (height, width), (c, height, width), (1, height, 1)])
        inputs = [x, self.numbers(part, "a")]
        if self.coin(0.15):
            return self.emit("PRelu", inputs, shape)
        return self.emit(self.pick(BINARY), inputs if self.coin(0.7) else inputs[::-1], shape)

    def mixed(self, x: str) -> str:
        """Channels joined, normalised over or put on another axis."""
        n, c, height, width = self.shapes[x]
        kind = self.pick(["Concat", "Softmax", "Transpose", "ReduceMean", "DepthToSpace", "Split"])
        if kind == "Concat":
            other = str(self.pick([t for t in self.computed if self.shapes[t] == self.shapes[x]]))
            return self.emit(kind, [x, other], (n, 2 * c, height, width), axis=1)
        if kind == "Transpose":
            order = self.pick([[0, 2, 1, 3], [0, 3, 2, 1], [0, 2, 3, 1], [0, 1, 3, 2]])
            return self.emit(kind, [x], tuple(self.shapes[x][axis] for axis in order), perm=order)
        if kind == "ReduceMean":
            axes = self.pick([[1], [2], [3], [2, 3]])
            kept = tuple(1 if axis in axes else size for axis, size in enumerate(self.shapes[x]))
            return self.emit(kind, [x, self.keep(np.array(axes, np.int64), "axes")], kept)
        if kind == "Split" and c > 1:
            places = (self.keep(np.array([k]), "index") for k in (0, c - 1, 1))
            return self.emit("Slice", [x, *places], (n, c - 1, height, width))
        if kind == "DepthToSpace" and c % 4 == 0:
            return self.emit(kind, [x], (n, c // 4, 2 * height, 2 * width), blocksize=2)
        return self.emit("Softmax", [x], self.shapes[x], axis=int(self.pick([1, -1])))

    def last(self, x: str) -> str:
        """A product over the last axis, where channels lie when a Transpose brought them there."""
        shape = self.shapes[x]
        if self.coin(0.6):
            shape = tuple(shape[axis] for axis in (0, 2, 3, 1))
            x = self.emit("Transpose", [x], shape, perm=[0, 2, 3, 1])
        out = int(self.pick(WIDTHS))
        return self.emit("MatMul", [x, self.transposed((out, shape[-1]))], (*shape[:-1], out))

    # ---- heads ----

    def head(self, x: str) -> str:
        """To rank 2."""
        n, c, *sizes = self.shapes[x]
        if self.coin(0.4):
            x = self.emit(self.pick(["GlobalAveragePool", "GlobalMaxPool"]), [x], (n, c, 1, 1))
            sizes = [1, 1]
        if self.coin(0.3):
            x = self.emit("Transpose", [x], (n, *sizes, c), perm=[0, 2, 3, 1])
        size = c * math.prod(sizes)
        inputs = [x] if self.coin(0.4) else [x, self.named(x, (n, size))]
        return self.emit("Flatten" if len(inputs) == 1 else "Reshape", inputs, (n, size))

    def dense(self, x: str) -> str:
        """Gemm or MatMul."""
        n, size = self.shapes[x]
        out = int(self.pick(WIDTHS))
        if self.coin(0.5):
            return self.emit("MatMul", [x, self.transposed((out, size))], (n, out))
        return self.emit("Gemm", [x, self.weight((out, size)), self.numbers((out,))], (n, out), transB=1)

    def unary(self, x: str) -> str:
        """An activation."""
        op = self.pick(UNARY)
        inputs = [x, self.keep(np.array(0.0), "low"), self.keep(np.array(1.0), "high")] if op == "Clip" else [x]
        return self.emit(op, inputs, self.shapes[x])

    def flat_constant(self, x: str) -> str:
        """A constant per position of rank 2, or for all."""
        size = self.shapes[x][1]
        inputs = [x, self.numbers(self.pick([(size,), (1, size), (), (1,)]), "a")]
        return self.emit(self.pick(BINARY), inputs if self.coin(0.7) else inputs[::-1], self.shapes[x])

    def flat_joined(self, x: str) -> str:
        """Two of one size element by element, or side by side."""
        n, size = self.shapes[x]
        other = str(self.pick([t for t in self.computed if self.shapes[t] == (n, size)]))
        if self.coin(0.2):
            return self.emit("Concat", [x, other], (n, 2 * size), axis=1)
        return self.emit(self.pick(BINARY), [x, other], (n, size))

    def image(self, x: str) -> str:
        """Back to rank 4: positions become channels, pixels or both."""
        n, size = self.shapes[x]
        shapes = [(n, size, 1, 1), (n, 1, 1, size)]
        shapes += [(n, size // k, k, 1) for k in (2, 3, 4, 6) if size % k == 0]
        shapes += [(n, size // k**2, k, k) for k in (2, 3, 4, 5) if size % k**2 == 0]
        shape = self.pick(shapes)
        return self.emit("Reshape", [x, self.named(x, shape)], shape)

    def named(self, x: str, shape: tuple[int, ...]) -> str:
        """A shape: stored, with a part left open or copied, or with sizes that the graph reads from a tensor."""
        names = list(shape)
        if self.coin(0.5):
            names[int(self.rng.integers(len(names)))] = -1
        if len(shape) == 2 and self.coin(0.3):
            names[0] = 0
        if self.coin(0.6):
            return self.keep(np.array(names, np.int64), "shape")
        sizes = f"{self.emit('Shape', [x], ())}"
        self.computed.remove(sizes)
        first, rest = self.keep(np.array([0], np.int64), "index"), self.keep(np.array(names[1:], np.int64), "rest")
        batch = self.emit("Gather", [sizes, first], (1,))
        whole = self.emit("Concat", [batch, rest], (len(names),), axis=0)
        self.computed = [t for t in self.computed if t not in (batch, whole)]
        return whole

    def step(self) -> None:
        """One more node on one of the latest tensors."""
        x = str(self.pick(self.computed[-3:]))
        moves: Sequence[Callable[[str], str]]
        chances: Sequence[float]
        if len(self.shapes[x]) == 2:
            moves, chances = (self.dense, self.unary, self.flat_constant, self.flat_joined, self.image), FLAT
        elif math.prod(self.shapes[x][2:]) > LARGE:
            moves, chances = (self.conv, self.head), (0.5, 0.5)
        else:
            moves = (self.conv, self.unary, self.pool, self.norm, self.pad, self.resize, self.joined)
            moves, chances = (*moves, self.with_constant, self.last, self.mixed, self.head), CHANCES
        moves[int(self.rng.choice(len(moves), p=chances))](x)


def random_network(seed: int) -> onnx.ModelProto:
    """One network; every tensor that nothing reads is an output, and now and then one in the middle."""
    writer = Writer(seed)
    writer.shapes["x"] = (2, int(writer.pick([1, 2, 3])), int(writer.pick([4, 5, 6])), int(writer.pick([4, 5])))
    writer.computed.append("x")
    writer.conv("x")
    for _ in range(int(writer.rng.integers(3, 13))):
        writer.step()
    read = {name for node in writer.nodes for name in node.input}
    names = [t for t in writer.computed[1:] if t not in read or writer.coin(0.03)]
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, writer.shapes[n]) for n in names]
    inner = {n for n in writer.stored if writer.coin(0.1)}
    tensors = {n: numpy_helper.from_array(v, n) for n, v in writer.stored.items()}
    nodes = [helper.make_node("Constant", [], [n], value=tensors[n]) for n in sorted(inner)] + writer.nodes
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, writer.shapes["x"])]
    graph = helper.make_graph(nodes, "random", inputs, outputs, [t for n, t in tensors.items() if n not in inner])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
