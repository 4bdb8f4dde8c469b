"""Networks with parallel rows, and what merging by direction makes of them.

`Planted` copies the channels of small random networks: `of[i]` is the channel that channel i is `scale[i]` times.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx
from mlps import Array, Net

from onnx_condense.fit.methods import Merger, Orders, orders_of
from onnx_condense.network.model import Network
from onnx_condense.options.goal import Goal, by_pattern, check_goal
from onnx_condense.plan import Plan
from onnx_condense.runtime import Runtime, run
from onnx_condense.spaces import find_spaces

EPS = 1e-3
IMAGE: list[int | str] = ["N", 3, 6, 6]


def goal(threshold: Any = None, method: str = "condensation") -> Goal:
    """A threshold of the cosine, or a tolerance of 0.1."""
    asked = Goal(
        None if threshold else 0.1, None, allow_slower=True, seed=0, method=method, threshold=by_pattern(threshold)
    )
    return check_goal(asked, calibrated=True, verified=False)


@dataclasses.dataclass(frozen=True)
class Done:
    """A network merged by a threshold, with its plan."""

    before: onnx.ModelProto
    after: onnx.ModelProto
    plan: Plan
    orders: Orders

    def widths(self) -> dict[str, int]:
        """Of every space that lost channels."""
        return {s.space: len(s.keep) for s in self.plan.selections}

    def off(self, seed: int = 5) -> float:
        """Largest difference of the outputs relative to the largest number among them."""
        graph = self.before.graph
        rng = np.random.default_rng(seed)
        stored = {t.name for t in graph.initializer}
        feed = {
            i.name: rng.standard_normal([d.dim_value or 3 for d in i.type.tensor_type.shape.dim]).astype(np.float32)
            for i in graph.input
            if i.name not in stored
        }
        a, b = (run(Runtime(threads=1).session(m, optimize=False), feed) for m in (self.before, self.after))
        return max(float(np.abs(x - y).max() / np.abs(x).max()) for x, y in zip(a, b, strict=True))


def merged(proto: onnx.ModelProto, threshold: Any = 0.999) -> Done:
    """Merge what is alike up to the threshold."""
    network = Network(proto)
    view = find_spaces(network)
    orders = orders_of(network, view, goal(threshold))
    merger = Merger(network, view, orders, merge=True)
    widths = [s.width - len(e.order) for s, e in zip(merger.spaces, merger.eliminations, strict=True)]
    plan, model = merger.plan(widths, sequential=False)
    return Done(proto, model, plan, orders)


@dataclasses.dataclass(frozen=True)
class Planted:
    """Channel i is scale[i] times channel of[i] of a base network."""

    of: Array
    scale: Array
    rng: np.random.Generator

    def rows(self, *shape: int, scale: Array | None = None) -> Array:
        """Rows of a writer [C, *shape]: those of the base, scaled."""
        rows = self.rng.standard_normal((self.of.max() + 1, *shape))[self.of]
        return rows * (self.scale if scale is None else scale).reshape(-1, *(1,) * len(shape))

    def columns(self, count: int, *shape: int) -> Array:
        """Columns of a reader [count, C, *shape], unlike one another."""
        return self.rng.standard_normal((count, len(self.of), *shape))


def planted(seed: int = 0, base: int = 5, copies: int = 3, spread: float = 1.0) -> Planted:
    """Copies of every base channel in random order, scaled by exp(-spread) to exp(spread)."""
    rng = np.random.default_rng(seed)
    of = rng.permutation(np.repeat(np.arange(base), copies))
    return Planted(of, np.exp(rng.uniform(-spread, spread, len(of))), rng)


def norm(net: Net, tensor: str, name: str, p: Planted, rows: Array, shift: Array) -> tuple[str, Array]:
    """A BatchNormalization with other numbers for every channel; the rows in front of it that give `rows` behind it."""
    size = len(rows)
    gamma = p.rng.uniform(0.5, 2.0, size) * p.rng.choice([-1.0, 1.0], size)
    mean, variance = p.rng.standard_normal(size), p.rng.uniform(0.5, 2.0, size)
    factor = gamma / np.sqrt(variance + EPS)
    stored = {"g": gamma, "s": shift + factor * mean, "m": mean, "v": variance}
    names = [net.weight(f"{name}.{k}", v) for k, v in stored.items()]
    out = net.node("BatchNormalization", tensor, *names, epsilon=EPS)
    return out, rows / factor.reshape(-1, *(1,) * (rows.ndim - 1))


def noisy(cosine: float) -> onnx.ModelProto:
    """16 neurons in 8 pairs, each pair at this cosine."""
    rng = np.random.default_rng(3)
    first = rng.standard_normal((8, 40))
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    other = rng.standard_normal((8, 40))
    other -= (other * first).sum(1, keepdims=True) * first
    other /= np.linalg.norm(other, axis=1, keepdims=True)
    rows = np.concatenate([first, 1.5 * (cosine * first + (1 - cosine**2) ** 0.5 * other)])
    net = Net({"x": ["N", 39]})
    z = net.node("Gemm", "x", net.weight("w", rows[:, :39]), net.weight("b", rows[:, 39]), transB=1, out="z")
    net.node("Gemm", net.node("Relu", z), net.weight("v", rng.standard_normal((16, 3))), out="y")
    return net.model({"y": ["N", 3]})
