"""Random small graphs, full of copies, dead and constant units, odd layouts and barriers.

Weights are drawn from a handful of numbers and rows are repeated, so that almost every network has something that
can go; broadcasting, constants on either side, shared weights and biases, aliases, outputs and captures in the
middle decide whether it may.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[Any]
SIZES = (1, 2, 3, 4, 6)
UNARY = ("Relu", "Tanh", "Sigmoid", "Abs", "LeakyRelu", "Erf", "Identity", "Neg", "Gelu", "Dropout", "Softplus", "Elu")
BINARY = ("Add", "Sub", "Mul", "Max", "Div")
BARRIER = ("Softmax", "ReduceSum", "Transpose")


class Sketch:
    """A graph that grows node by node; the shape of every tensor is known."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.stored: dict[str, Array] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.computed: list[str] = []

    def pick(self, options: Sequence[Any]) -> Any:
        """One of the options."""
        return options[int(self.rng.integers(len(options)))]

    def coin(self, chance: float) -> bool:
        """True with the given chance."""
        return bool(self.rng.random() < chance)

    def emit(self, op: str, inputs: Sequence[str], shape: tuple[int, ...], **attributes: Any) -> str:
        """Append a node; the name of its result."""
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], **attributes))
        self.shapes[name] = shape
        self.computed.append(name)
        return name


class Writer(Sketch):
    """Tensors have rank 2 (or 3 with a fixed middle axis)."""

    def constant(self, shape: tuple[int, ...], kind: str) -> str:
        """A stored constant of a shape: often one that is there already, sometimes in a Constant node or an alias."""
        same = [n for n, v in self.stored.items() if v.shape == shape and n.startswith(kind)]
        if same and self.coin(0.4):
            return str(self.pick(same))
        if kind == "w":
            value = self.rng.choice([-1.0, 0.0, 0.5, 1.0], shape) * self.rng.choice([1.0, 1.0, 0.0], (shape[0], 1))
            value = value + self.rng.choice([0.0, 1e-3], shape) * self.rng.standard_normal(shape)
            value = value[self.rng.integers(0, shape[0], shape[0])]
            value = value[:, self.rng.integers(0, shape[1], shape[1])] if self.coin(0.3) else value
            value = value.T.copy().reshape(shape) if shape[0] == shape[1] and self.coin(0.5) else value
        else:
            value = self.rng.choice([-1.0, 0.5, 1.0, 2.0], shape)
        name = f"{kind}{len(self.stored)}"
        self.stored[name] = np.asarray(value, np.float32)
        if self.coin(0.1):
            alias = f"{kind}{len(self.stored)}_alias"
            self.nodes.append(helper.make_node("Identity", [name], [alias]))
            return alias
        return name

    def linear(self, x: str) -> str:
        """MatMul or Gemm with the constant on either side."""
        *batch, size = self.shapes[x]
        width = int(self.pick(SIZES))
        choice = self.rng.random()
        if len(batch) == 1 and choice < 0.5:
            return self.gemm(x, batch[0], size, width)
        if choice < 0.65:
            return self.emit("MatMul", [self.constant((width, batch[-1]), "w"), x], (*batch[:-1], width, size))
        return self.emit("MatMul", [x, self.constant((size, width), "w")], (*batch, width))

    def gemm(self, x: str, rows: int, size: int, width: int) -> str:
        """Gemm in any of its layouts."""
        trans_a, trans_b, left = self.coin(0.2), self.coin(0.5), self.coin(0.2)
        alpha, beta = float(self.pick([1.0, 0.5, -2.0])), float(self.pick([1.0, 0.0, 3.0]))
        attributes = {"transA": int(trans_a), "transB": int(trans_b), "alpha": alpha, "beta": beta}
        if left:
            inner, cols = (size, rows) if trans_b else (rows, size)
            weight = self.constant((inner, width) if trans_a else (width, inner), "w")
            inputs, shape = [weight, x], (width, cols)
        else:
            rows, inner = (size, rows) if trans_a else (rows, size)
            weight = self.constant((width, inner) if trans_b else (inner, width), "w")
            inputs, shape = [x, weight], (rows, width)
        m, n = shape
        if self.coin(0.7):
            inputs.append(self.addend(m, n))
        return self.emit("Gemm", inputs, shape, **attributes)

    def addend(self, m: int, n: int) -> str:
        """Gemm's C in any of the shapes that it may have, stored or computed."""
        fits = [t for t in self.computed if self.shapes[t] in ((m, n), (1, n), (m, 1))]
        if fits and self.coin(0.2):
            return str(self.pick(fits))
        return self.constant(self.pick([(), (1,), (n,), (1, n), (m, 1), (m, n)]), "b")

    def with_constant(self, x: str) -> str:
        """An element-wise op with a constant of any extent."""
        shape = self.shapes[x]
        part = tuple(n if self.coin(0.7) else 1 for n in shape)[int(self.rng.integers(0, len(shape) + 1)) :]
        part = (1, *part) if len(part) == len(shape) == 2 and self.coin(0.1) else part
        inputs = [x, self.constant(part, "b")]
        out = tuple(np.broadcast_shapes(shape, part))
        if self.coin(0.15) and len(part) <= len(shape):
            return self.emit("PRelu", inputs, out)
        return self.emit(self.pick(BINARY), inputs if self.coin(0.7) else inputs[::-1], out)

    def joined(self, x: str) -> str:
        """Two computed tensors element by element, perhaps by broadcasting."""
        shape = self.shapes[x]
        others = [t for t in self.computed if _broadcast(self.shapes[t], shape)]
        same = [t for t in others if self.shapes[t] == shape]
        other = str(self.pick(same if same and self.coin(0.7) else others))
        return self.emit(self.pick(BINARY[:4]), [x, other], _broadcast(self.shapes[other], shape) or shape)

    def barrier(self, x: str) -> str:
        """An op without a rule."""
        shape = self.shapes[x]
        op = self.pick(BARRIER)
        if op == "Transpose":
            return self.emit(op, [x], tuple(reversed(shape)))
        return self.emit(op, [x], (1,) * len(shape)) if op == "ReduceSum" else self.emit(op, [x], shape)

    def step(self) -> None:
        """One more node on one of the latest tensors."""
        x = self.pick(self.computed[-4:])
        kind = self.rng.random()
        if kind < 0.4:
            self.linear(x)
        elif kind < 0.65:
            self.emit(self.pick(UNARY), [x], self.shapes[x])
        elif kind < 0.8:
            self.with_constant(x)
        elif kind < 0.95:
            self.joined(x)
        else:
            self.barrier(x)

    def capture(self, x: str) -> str:
        """An If whose bodies read x and maybe a stored bias."""
        name = self.pick(sorted(self.stored)) if self.stored else x
        bodies = []
        for i, taken in enumerate((x, x if self.stored.get(name, np.zeros(0)).shape != self.shapes[x] else name)):
            out = helper.make_tensor_value_info(f"body{len(self.nodes)}_{i}", TensorProto.FLOAT, None)
            bodies.append(helper.make_graph([helper.make_node("Relu", [taken], [out.name])], "body", [], [out]))
        self.stored.setdefault("flag", np.array(True))
        return self.emit("If", ["flag"], self.shapes[x], then_branch=bodies[0], else_branch=bodies[1])


def _broadcast(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...] | None:
    try:
        return tuple(np.broadcast_shapes(a, b))
    except ValueError:
        return None


def random_network(seed: int) -> onnx.ModelProto:
    """One network; every tensor that nothing reads is an output, and now and then one in the middle."""
    writer = Writer(seed)
    writer.shapes["x"] = (3, 4) if writer.coin(0.7) else (2, 3, 4)
    writer.computed.append("x")
    for _ in range(int(writer.rng.integers(3, 14))):
        writer.step()
    if writer.coin(0.15):
        writer.capture(writer.pick(writer.computed[-3:]))
    read = {name for node in writer.nodes for name in node.input}
    ends = [t for t in writer.computed[1:] if t not in read]
    middle = [t for t in writer.computed[1:] if t in read and writer.coin(0.05)]
    constants = [name for name in writer.stored if writer.coin(0.03) and name != "flag"]
    shapes = writer.shapes | {n: writer.stored[n].shape for n in constants}
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shapes[n]) for n in (*ends, *middle, *constants)]
    ir = 3 if writer.coin(0.2) and "flag" not in writer.stored else 9
    return _assembled(writer, infos, ir)


def _assembled(writer: Writer, outputs: list[onnx.ValueInfoProto], ir: int) -> onnx.ModelProto:
    shown = {o.name for o in outputs}
    inner = {n: v for n, v in writer.stored.items() if n not in shown and ir > 3 and writer.coin(0.2)}
    nodes = [
        helper.make_node("Constant", [], [n], value=numpy_helper.from_array(v, n)) for n, v in inner.items()
    ] + writer.nodes
    tensors = [numpy_helper.from_array(v, n) for n, v in writer.stored.items() if n not in inner]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, writer.shapes["x"])]
    if ir < 4:
        inputs += [helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in tensors]
    graph = helper.make_graph(nodes, "random", inputs, outputs, tensors)
    if writer.coin(0.5):
        kinds = ((n, s) for n, s in writer.shapes.items() if n != "x" and n not in shown)
        graph.value_info.extend(helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in kinds)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=ir)
