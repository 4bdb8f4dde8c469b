"""Small networks with planted redundancy, and what tests do with them.

A base network has random weights. Planting replicates its units in all hidden layers at once and in random order,
splits their outgoing columns by random weights that sum to 1, scales or mirrors copies where the activation
allows, and adds dead and constant units. The widths of the base network are what must come back.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnx_condense.evidence.weights import lossless_plan
from onnx_condense.network.model import load
from onnx_condense.plan import ChannelView, Plan
from onnx_condense.rewrite import apply_plan
from onnx_condense.runtime import Runtime, run
from onnx_condense.spaces import find_spaces

Array = npt.NDArray[Any]
INPUT, OUTPUT = 7, 4


@dataclasses.dataclass(frozen=True)
class Activation:
    """Nodes from z to h. scales: f(r a) = r f(a); centre: f(-a) = 2 centre - f(a), where that holds."""

    scales: bool = False
    centre: float | None = None


ACTIVATIONS = {
    "Relu": Activation(scales=True),
    "LeakyRelu": Activation(scales=True),
    "Abs": Activation(scales=True),
    "PRelu": Activation(scales=True),
    "Tanh": Activation(centre=0.0),
    "Erf": Activation(centre=0.0),
    "Sigmoid": Activation(centre=0.5),
    "Gelu": Activation(),
    "gelu-decomposed": Activation(),
    "silu-decomposed": Activation(),
    "Elu": Activation(),
    "Clip": Activation(),
}


def activation_nodes(kind: str, z: str, h: str, dtype: npt.DTypeLike) -> tuple[list[onnx.NodeProto], dict[str, Array]]:
    """The nodes of one activation and the constants that they need."""
    node = helper.make_node
    one = {f"{h}_half": np.array(0.5, dtype), f"{h}_one": np.array(1, dtype), f"{h}_root": np.array(2**0.5, dtype)}
    if kind == "gelu-decomposed":
        return [
            node("Div", [z, f"{h}_root"], [f"{h}_d"]),
            node("Erf", [f"{h}_d"], [f"{h}_e"]),
            node("Add", [f"{h}_e", f"{h}_one"], [f"{h}_a"]),
            node("Mul", [z, f"{h}_a"], [f"{h}_m"]),
            node("Mul", [f"{h}_m", f"{h}_half"], [h]),
        ], one
    if kind == "silu-decomposed":
        return [node("Sigmoid", [z], [f"{h}_s"]), node("Mul", [z, f"{h}_s"], [h])], {}
    if kind == "Clip":
        limits = {f"{h}_low": np.array(-0.5, dtype), f"{h}_high": np.array(1, dtype)}
        return [node("Clip", [z, *limits], [h])], limits
    if kind == "PRelu":
        return [node("PRelu", [z, f"{h}_slope"], [h])], {f"{h}_slope": np.array([0.3], dtype)}
    return [node(kind, [z], [h])], {}


@dataclasses.dataclass(frozen=True)
class Layer:
    """weight [O, K], bias [O], float64."""

    weight: Array
    bias: Array


def base_layers(
    rng: np.random.Generator, widths: Sequence[int], size_in: int = INPUT, out: int = OUTPUT
) -> list[Layer]:
    """Random layers without redundancy."""
    sizes = [size_in, *widths, out]
    return [
        Layer(rng.standard_normal((n, k)) / np.sqrt(k), rng.standard_normal(n)) for k, n in itertools.pairwise(sizes)
    ]


@dataclasses.dataclass(frozen=True)
class Planting:
    """How many copies of every unit, and how many dead and constant units in every hidden layer."""

    copies: int = 3
    dead: int = 0
    constant: int = 0


def plant(
    rng: np.random.Generator,
    layers: Sequence[Layer],
    planting: Planting,
    activation: Activation = Activation(),
    value: Any = None,
) -> list[Layer]:
    """The same function with redundant units in all hidden layers.

    value: the activation as a function, needed for constant units (their share leaves the bias).
    """
    wide = list(layers)
    for i in range(len(wide) - 1):
        here, after = wide[i], wide[i + 1]
        width = len(here.weight)
        of = np.repeat(np.arange(width), planting.copies)
        split = rng.dirichlet(np.ones(planting.copies), (len(after.weight), width)).reshape(len(after.weight), -1)
        scale = np.exp(rng.uniform(-1, 1, len(of))) if activation.scales else np.ones(len(of))
        bias = after.bias.copy()
        columns = after.weight[:, of] * split / scale
        if activation.centre is not None:
            scale *= (mirrored := rng.choice([-1.0, 1.0], len(of)))
            columns *= mirrored
            bias += 2 * activation.centre * (columns * (mirrored < 0)).sum(1)
        rows, own = here.weight[of] * scale[:, None], here.bias[of] * scale
        fan_in = here.weight.shape[1]
        for _ in range(planting.dead):
            rows = np.r_[rows, rng.standard_normal((1, fan_in))]
            own = np.r_[own, rng.standard_normal(1)]
            columns = np.c_[columns, np.zeros(len(columns))]
        for _ in range(planting.constant):
            rows = np.r_[rows, np.zeros((1, fan_in))]
            own = np.r_[own, (level := rng.uniform(0.1, 1.0, 1))]
            columns = np.c_[columns, (outgoing := rng.standard_normal((len(columns), 1)))]
            bias -= outgoing[:, 0] * float(value(level[0]))
        order = rng.permutation(len(rows))
        wide[i] = Layer(rows[order], own[order])
        wide[i + 1] = Layer(columns[:, order], bias)
    return wide


@dataclasses.dataclass(frozen=True)
class Form:
    """How a network is written down: linear op, element type, weights as initializers or Constant nodes, IR."""

    linear: str = "Gemm"
    dtype: npt.DTypeLike = np.float32
    constants: bool = False
    ir: int = 9
    opset: int = 20


def mlp(layers: Sequence[Layer], kind: str, form: Form = Form()) -> onnx.ModelProto:
    """Chain x -> linear -> activation -> ... -> linear -> y, with weights w0, w1, ..., biases b0, b1, ..."""
    nodes: list[onnx.NodeProto] = []
    stored: dict[str, Array] = {}
    tensor = "x"
    for i, layer in enumerate(layers):
        last = i == len(layers) - 1
        z = "y" if last else f"z{i}"
        stored |= {f"w{i}": layer.weight.astype(form.dtype), f"b{i}": layer.bias.astype(form.dtype)}
        nodes += linear_nodes(form.linear, i, tensor, z, stored)
        if not last:
            extra, constants = activation_nodes(kind, z, f"h{i}", form.dtype)
            nodes, stored, tensor = nodes + extra, stored | constants, f"h{i}"
    size_in, size_out = layers[0].weight.shape[1], len(layers[-1].weight)
    return model(nodes, stored, {"x": ["N", size_in]}, {"y": ["N", size_out]}, form)


def linear_nodes(op: str, i: int, x: str, z: str, stored: dict[str, Array]) -> list[onnx.NodeProto]:
    """One layer as Gemm, as Gemm with factors, or as MatMul + Add; adapts the stored weight and bias."""
    weight, bias = f"w{i}", f"b{i}"
    if op == "Gemm":
        return [helper.make_node("Gemm", [x, weight, bias], [z], name=f"fc{i}", transB=1)]
    if op == "Gemm-factors":
        stored[weight] = (stored[weight].T * 2).astype(stored[weight].dtype)
        stored[bias] = (stored[bias][None, :] / 4).astype(stored[bias].dtype)
        return [helper.make_node("Gemm", [x, weight, bias], [z], name=f"fc{i}", alpha=0.5, beta=4.0)]
    stored[weight] = np.ascontiguousarray(stored[weight].T)
    return [
        helper.make_node("MatMul", [x, weight], [f"m{i}"], name=f"fc{i}"),
        helper.make_node("Add", [bias, f"m{i}"], [z], name=f"add{i}"),
    ]


def model(
    nodes: Sequence[onnx.NodeProto],
    stored: Mapping[str, Array],
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Mapping[str, Sequence[int | str]],
    form: Form = Form(),
    **fields: Any,
) -> onnx.ModelProto:
    """A checked network. fields: further arguments of make_graph."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(form.dtype))
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()]
    before = [helper.make_node("Constant", [], [t.name], value=t) for t in tensors] if form.constants else []
    declared = [helper.make_tensor_value_info(n, kind, s) for n, s in inputs.items()]
    if form.ir < 4 and not form.constants:
        declared += [helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in tensors]
    graph = helper.make_graph(
        [*before, *nodes],
        "net",
        declared,
        [helper.make_tensor_value_info(n, kind, s) for n, s in outputs.items()],
        [] if form.constants else tensors,
        **fields,
    )
    opsets = [helper.make_opsetid("", form.opset)]
    domains = {n.domain for n in nodes} - {""}
    opsets += [helper.make_opsetid(d, 1) for d in sorted(domains)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=form.ir)
    onnx.checker.check_model(proto)
    return proto


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A lossless run: what was seen, planned and made."""

    view: ChannelView
    plan: Plan
    proto: onnx.ModelProto

    def widths(self) -> list[int]:
        """Widths of the spaces that have something removable, after the plan."""
        kept = {s.space: len(s.keep) for s in self.plan.selections}
        return [kept.get(s.name, s.width) for s in self.view.spaces if not s.pinned.all()]


def lossless(proto: onnx.ModelProto) -> Outcome:
    """Analyse, plan and rewrite; the result is valid and has the same signature."""
    network = load(proto)
    view = find_spaces(network)
    plan = lossless_plan(network, view)
    made = apply_plan(network, view, plan)
    onnx.checker.check_model(made, full_check=bool(plan.selections))
    assert [o.SerializeToString() for o in made.graph.output] == [o.SerializeToString() for o in proto.graph.output]
    return Outcome(view, plan, made)


def outputs(proto: onnx.ModelProto, feed: Mapping[str, Array]) -> list[Array]:
    """All outputs under ONNX Runtime, graph optimizations off."""
    return run(Runtime(threads=1).session(proto, optimize=False), feed)


def feed_for(proto: onnx.ModelProto, rows: int = 5, seed: int = 1) -> dict[str, Array]:
    """Normal samples for every input that is not stored; symbolic sizes are `rows`."""
    rng = np.random.default_rng(seed)
    stored = {t.name for t in proto.graph.initializer}
    feed = {}
    for value in proto.graph.input:
        kind = value.type.tensor_type
        if value.name not in stored:
            shape = [d.dim_value or rows for d in kind.shape.dim]
            dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
            draw = rng.standard_normal(shape) if dtype.kind == "f" else rng.integers(0, 2, shape)
            feed[value.name] = np.asarray(draw).astype(dtype)
    return feed


def assert_same_outputs(before: onnx.ModelProto, after: onnx.ModelProto, eps: float = 2.0**-23, seed: int = 1) -> None:
    """Both networks agree within 64 roundings per linear layer, times the root of the longest reduction."""
    feed = feed_for(before, seed=seed)
    layers = sum(n.op_type in ("Gemm", "MatMul") for n in before.graph.node) or 1
    longest = max((d for t in before.graph.initializer for d in t.dims), default=16)
    for a, b in zip(outputs(before, feed), outputs(after, feed), strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        size = float(np.abs(a.astype(np.float64)).max(initial=0.0))
        bound = 64 * eps * layers * longest**0.5 * max(size, 1.0)
        np.testing.assert_allclose(b.astype(np.float64), a.astype(np.float64), rtol=0, atol=bound)


def text_model(text: str, stored: Mapping[str, Array] | None = None) -> onnx.ModelProto:
    """A network in ONNX text format, with weights put in by name."""
    proto = onnx.parser.parse_model(text)
    for name, value in (stored or {}).items():
        proto.graph.initializer.append(numpy_helper.from_array(value, name))
    onnx.checker.check_model(proto)
    return proto


FLOAT = TensorProto.FLOAT
