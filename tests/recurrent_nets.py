"""Networks with a recurrent layer behind planted channels, and the recurrence itself.

It is written down in numpy, from the formulas of the operators, so that layouts which ONNX Runtime does not run and
what is done to the bias are judged by something else than the package.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from builders import ACTIVATIONS, Form, Layer, Planting, model, plant
from onnx import helper, numpy_helper

Array = npt.NDArray[Any]
F = np.float32
OPS = ("LSTM", "GRU", "RNN")
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}
SEQ, IN, WIDTH, HIDDEN = 6, 7, 5, 3


@dataclasses.dataclass(frozen=True)
class Case:
    """One recurrent layer behind Relu behind a linear layer: how it is written down."""

    op: str = "LSTM"
    direction: str = "forward"
    bias: bool = True
    layout: int = 0
    linear: str = "MatMul"
    dtype: Any = F
    opset: int = 17
    outs: tuple[str, ...] = ("y", "y_h")
    more: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def parts(self) -> int:
        """How many directions."""
        return DIRECTIONS[self.direction]

    @property
    def rows(self) -> int:
        """Gates times hidden."""
        return GATES[self.op] * HIDDEN


def planted(case: Case, planting: Planting) -> tuple[list[Layer], dict[str, Array]]:
    """The layers x -> hidden -> rows of W, and the recurrent operands; the shift of planted constants is in B."""
    rng = np.random.default_rng(0)
    total = case.parts * case.rows
    base = [
        Layer(rng.standard_normal((WIDTH, IN)), rng.standard_normal(WIDTH)),
        Layer(rng.standard_normal((total, WIDTH)) / 2, np.zeros(total)),
    ]
    wide = plant(rng, base, planting, ACTIVATIONS["Relu"], lambda a: max(a, 0.0))
    weights = {
        "W": wide[1].weight.reshape(case.parts, case.rows, -1),
        "R": rng.standard_normal((case.parts, case.rows, HIDDEN)) / 2,
    }
    if case.bias:
        own = wide[1].bias.reshape(case.parts, -1) + rng.standard_normal((case.parts, case.rows)) / 3
        weights["B"] = np.concatenate([own, rng.standard_normal((case.parts, case.rows)) / 3], axis=1)
    return wide, weights


def written(case: Case, layers: Sequence[Layer], weights: Mapping[str, Array]) -> onnx.ModelProto:
    """Linear, Relu, recurrent; its first operands are W, R and, where it is among the weights, B."""
    stored = {"w": layers[0].weight.T, "b": layers[0].bias, **weights}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "b"], ["z"])]
    if case.linear == "Gemm":
        stored["w"] = layers[0].weight
        nodes = [
            helper.make_node("Gemm", ["flat", "w", "b"], ["zz"], transB=1),
            helper.make_node("Reshape", ["zz", "there"], ["z"]),
        ]
        nodes.insert(0, helper.make_node("Reshape", ["x", "flat_to"], ["flat"]))
    nodes.append(helper.make_node("Relu", ["z"], ["h"]))
    attributes: dict[str, Any] = {"layout": 1} if case.layout else {}
    operands = ["h", "W", "R", *(["B"] if "B" in weights else [])]
    nodes.append(
        helper.make_node(
            case.op,
            operands,
            list(case.outs),
            hidden_size=HIDDEN,
            direction=case.direction,
            name="rnn",
            **attributes,
            **case.more,
        )
    )
    kept = {name: np.asarray(v).astype(case.dtype) for name, v in stored.items()}
    if case.linear == "Gemm":
        kept |= {"flat_to": np.array([-1, IN]), "there": np.array([SEQ, -1, len(layers[0].weight)])}
    shape: list[int | str] = ["N", SEQ, IN] if case.layout else [SEQ, "N", IN]
    form = Form(dtype=case.dtype, opset=case.opset, ir=8)
    asked: dict[str, list[int | str]] = {
        "y": ["N", SEQ, case.parts, HIDDEN] if case.layout else [SEQ, case.parts, "N", HIDDEN],
        "y_h": ["N", case.parts, HIDDEN] if case.layout else [case.parts, "N", HIDDEN],
    }
    return model(nodes, kept, {"x": shape}, {name: asked[name] for name in case.outs if name}, form)


def network(case: Case, planting: Planting) -> onnx.ModelProto:
    """What `planted` plants, written down."""
    return written(case, *planted(case, planting))


def tensor(proto: onnx.ModelProto, name: str) -> Array:
    return next(numpy_helper.to_array(t) for t in proto.graph.initializer if t.name == name)


def node(proto: onnx.ModelProto, op: str) -> onnx.NodeProto:
    return next(n for n in proto.graph.node if n.op_type == op)


def fed(proto: onnx.ModelProto) -> dict[str, Array]:
    """Four normal samples."""
    rng = np.random.default_rng(1)
    feed = {}
    for value in proto.graph.input:
        kind = value.type.tensor_type
        shape = [d.dim_value or 4 for d in kind.shape.dim]
        feed[value.name] = rng.standard_normal(shape).astype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
    return feed


# ---- the formulas of the operators, in float64 ----


def sigmoid(a: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-a)))


def step(op: str, wx: Array, h: Array, c: Array, R: Array, Rb: Array, *, before: bool) -> tuple[Array, Array]:
    """One step; wx [N, G H]: what the input gives, Wb in it. before: linear_before_reset."""
    if op == "RNN":
        return np.tanh(wx + h @ R.T + Rb), c
    if op == "LSTM":
        i, o, f, g = np.split(wx + h @ R.T + Rb, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        return sigmoid(o) * np.tanh(c), c
    (xz, xr, xh), (Rz, Rr, Rh), (bz, br, bh) = np.split(wx, 3, 1), np.split(R, 3), np.split(Rb, 3)
    z, r = sigmoid(xz + h @ Rz.T + bz), sigmoid(xr + h @ Rr.T + br)
    new = np.tanh(xh + (r * (h @ Rh.T + bh) if before else (r * h) @ Rh.T + bh))
    return (1 - z) * new + z * h, c


def by_hand(proto: onnx.ModelProto, x: Array) -> list[Array]:
    """Outputs y and y_h of a network of `written` (linear as MatMul)."""
    layer = node(proto, next(n.op_type for n in proto.graph.node if n.op_type in OPS))
    given = {a.name: helper.get_attribute_value(a) for a in layer.attribute}
    z = x.astype(np.float64) @ tensor(proto, "w").astype(np.float64) + tensor(proto, "b").astype(np.float64)
    z = np.maximum(z, 0)
    z = z.swapaxes(0, 1) if given.get("layout") else z
    W, R = (tensor(proto, name).astype(np.float64) for name in layer.input[1:3])
    has = len(layer.input) > 3 and layer.input[3]
    B = tensor(proto, layer.input[3]).astype(np.float64) if has else np.zeros((len(W), 2 * W.shape[1]))
    ways = []
    for d in range(len(W)):
        back = given["direction"] == b"reverse" or d == 1
        h = c = np.zeros((z.shape[1], HIDDEN))
        seen = []
        for at in range(len(z))[:: -1 if back else 1]:
            wx = z[at] @ W[d].T + B[d, : W.shape[1]]
            before = bool(given.get("linear_before_reset", 0))
            h, c = step(layer.op_type, wx, h, c, R[d], B[d, W.shape[1] :], before=before)
            seen.append(h)
        ways.append((np.stack(seen[:: -1 if back else 1]), h))
    y, last = np.stack([s for s, _ in ways], 1), np.stack([h for _, h in ways])
    return [y.transpose(2, 0, 1, 3), last.swapaxes(0, 1)] if given.get("layout") else [y, last]


def assert_alike(before: Sequence[Array], after: Sequence[Array], eps: float = 2.0**-23) -> None:
    """Equal up to rounding: outputs are below 1 and sums below 30, over up to SEQ steps."""
    for a, b in zip(before, after, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(b.astype(np.float64), a.astype(np.float64), rtol=0, atol=400 * eps)
