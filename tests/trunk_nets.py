"""Networks with a linear trunk whose channels are sums of few: every writer's rows (and biases) lie in one subspace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from mlps import Array, Net, normal

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx

INPUTS, WIDTH, RANK, ROWS = 12, 64, 8, 400


class Planted:
    """Writers and readers of a trunk [.., WIDTH] of rank RANK, drawn from one seed."""

    def __init__(self, net: Net, seed: int = 0) -> None:
        self.net, self.rng = net, np.random.default_rng(seed)
        self._basis = self.rng.standard_normal((RANK, WIDTH)) / RANK**0.5
        self._count = 0

    def rows(self, inputs: int) -> Array:
        """[inputs, WIDTH] of rank RANK."""
        return np.asarray(self.rng.standard_normal((inputs, RANK)) / inputs**0.5 @ self._basis)

    def bias(self) -> Array:
        """[WIDTH], also in the subspace."""
        return np.asarray(self.rng.standard_normal(RANK) @ self._basis)

    def name(self, wish: str) -> str:
        """A fresh one."""
        self._count += 1
        return f"{wish}{self._count}"

    def writes(self, x: str = "x") -> str:
        """A Gemm with a bias."""
        return self.net.node("Gemm", x, self.stored("w", self.rows(INPUTS)), self.stored("b", self.bias()))

    def reads(self, trunk: str, out: str, outputs: int = 20) -> str:
        """A Gemm with a bias."""
        weight = self.stored("v", self.rng.standard_normal((WIDTH, outputs)) / WIDTH**0.5)
        return self.net.node("Gemm", trunk, weight, self.stored("c", self.rng.standard_normal(outputs)), out=out)

    def stored(self, wish: str, value: Array) -> str:
        """A weight under a fresh name."""
        return self.net.weight(self.name(wish), value)


def gemms(between: Callable[[Planted, str], str] | None = None, dtype: type[Any] = np.float32) -> onnx.ModelProto:
    """Gemm, something in between, Gemm."""
    planted = Planted(Net({"x": ["N", INPUTS]}, dtype=dtype))
    trunk = planted.writes()
    planted.reads(between(planted, trunk) if between else trunk, "y")
    return planted.net.model({"y": ["N", 20]})


def convolutions(kernel: int = 1, writer: int = 1, dtype: type[Any] = np.float32) -> onnx.ModelProto:
    """Two convolutions; the second one pads where its kernel is larger than 1."""
    planted = Planted(Net({"x": ["N", 3, 6, 6]}, dtype=dtype))
    W = planted.rows(3 * writer * writer).T.reshape(WIDTH, 3, writer, writer)
    given: dict[str, Any] = {"pads": [writer // 2] * 4} if writer > 1 else {}
    trunk = planted.net.node("Conv", "x", planted.stored("w", W), planted.stored("b", planted.bias()), **given)
    V = planted.rng.standard_normal((16, WIDTH, kernel, kernel)) / (8 * kernel)
    given = {"pads": [kernel // 2] * 4} if kernel > 1 else {}
    planted.net.node("Conv", trunk, planted.stored("v", V), out="y", **given)
    return planted.net.model({"y": ["N", 16, 6, 6]})


def residual() -> onnx.ModelProto:
    """Three writers, added up one by one, and a reader behind each sum."""
    planted = Planted(Net({"x": ["N", INPUTS]}))
    trunk = planted.writes()
    planted.reads(trunk, "y0")
    for i in (1, 2):
        branch = planted.writes(planted.net.node("Tanh" if i == 1 else "Sin", "x"))
        trunk = planted.net.node("Add", trunk, branch)
        planted.reads(trunk, f"y{i}")
    return planted.net.model({f"y{i}": ["N", 20] for i in range(3)})


def samples(model: onnx.ModelProto, count: int = ROWS) -> dict[str, Array]:
    """N(0, 1) for x, of its type."""
    (x,) = model.graph.input
    shape = [d.dim_value for d in x.type.tensor_type.shape.dim][1:]
    dtype = np.float16 if x.type.tensor_type.elem_type == 10 else np.float32
    return {"x": normal(count, *shape, dtype=dtype)}
