"""Small networks for the tests of stages and pipeline, built node by node."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Array = npt.NDArray[Any]
Shape = list[int | str]


class Net:
    """Collects nodes and weights; tensors are named by the caller or counted."""

    def __init__(
        self, inputs: Mapping[str, Shape], *, opset: int = 17, ir: int = 8, dtype: type[Any] = np.float32
    ) -> None:
        self.dtype, self.opset, self.ir = np.dtype(dtype), opset, ir
        self.kind = helper.np_dtype_to_tensor_dtype(self.dtype)
        self.inputs = [helper.make_tensor_value_info(n, self.kind, shape) for n, shape in inputs.items()]
        self.nodes: list[onnx.NodeProto] = []
        self.stored: list[onnx.TensorProto] = []

    def weight(self, name: str, value: npt.ArrayLike) -> str:
        """Store a tensor of the network's type (integers stay integers)."""
        array = np.asarray(value)
        array = array if array.dtype.kind in "iu" else array.astype(self.dtype)
        self.stored.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def node(self, op: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        """Append a node; its output's name."""
        out = out or f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [out], name=f"/{out}", **attributes))
        return out

    def model(self, outputs: Mapping[str, Shape | None], kind: int | None = None) -> onnx.ModelProto:
        """The checked network."""
        declared = [helper.make_tensor_value_info(n, kind or self.kind, shape) for n, shape in outputs.items()]
        graph = helper.make_graph(self.nodes, "net", self.inputs, declared, self.stored)
        if self.ir < 4:
            graph.input.extend(helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in self.stored)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=self.ir)
        onnx.checker.check_model(model, full_check=True)
        return model


def mlp(
    widths: Sequence[int] = (3, 24, 20, 2),
    *,
    op: str = "Gemm",
    activation: str = "Tanh",
    batch: int | str = "N",
    seed: int = 0,
    bias: bool = True,
    gain: float = 1.0,
    opset: int = 17,
    ir: int = 8,
    dtype: type[Any] = np.float32,
    middle: Sequence[int] = (),
) -> onnx.ModelProto:
    """A random MLP x [batch, *middle, widths[0]] -> y; smooth in few inputs, so much of it can be fitted away.

    op: Gemm, or MatMul with Add; gain: of all weights; middle: sizes of further axes.
    """
    rng = np.random.default_rng(seed)
    net = Net({"x": [batch, *middle, widths[0]]}, opset=opset, ir=ir, dtype=dtype)
    tensor = "x"
    for i, (before, after) in enumerate(itertools.pairwise(widths)):
        last = i == len(widths) - 2
        W = net.weight(f"W{i}", gain * rng.standard_normal((before, after)) / before**0.5)
        b = net.weight(f"b{i}", rng.standard_normal(after) / 2) if bias else ""
        out = "y" if last else ""
        if op == "Gemm":
            # Before opset 11 Gemm has to have a C.
            tensor = net.node("Gemm", tensor, W, *([b] if b else []), out=out)
        else:
            tensor = net.node("MatMul", tensor, W, out="" if b else out)
            tensor = net.node("Add", tensor, b, out=out) if b else tensor
        tensor = tensor if last else net.node(activation, tensor)
    return net.model({"y": [batch, *middle, widths[-1]]})


def plant_copies(model: onnx.ModelProto, layer: int, count: int, seed: int = 0) -> onnx.ModelProto:
    """Replicate `count` hidden units of a Gemm `mlp` once and split their outgoing columns: nothing changes."""
    rng = np.random.default_rng(seed)
    stored = {t.name: t for t in model.graph.initializer}
    W, b, V = (numpy_helper.to_array(stored[n]) for n in (f"W{layer}", f"b{layer}", f"W{layer + 1}"))
    picked = rng.choice(W.shape[1], count, replace=False)
    share = rng.uniform(0.2, 0.8, (count, 1))
    V = V.astype(np.float64).copy()
    extra = V[picked] * share
    V[picked] -= extra
    for name, value in (
        (f"W{layer}", np.concatenate([W, W[:, picked]], 1)),
        (f"b{layer}", np.concatenate([b, b[picked]])),
        (f"W{layer + 1}", np.concatenate([V, extra])),
    ):
        stored[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value.astype(W.dtype)), name))
    return model


def normal(*shape: int, seed: int = 0, dtype: type[Any] = np.float32) -> Array:
    """N(0, 1) samples."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def weight_of(model: onnx.ModelProto, name: str) -> Array:
    """A stored tensor."""
    return numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name))


__all__ = ["Array", "Net", "TensorProto", "mlp", "normal", "plant_copies", "weight_of"]
