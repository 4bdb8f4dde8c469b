"""Small convolutional networks of random weights, stage by stage, and what tests do with them.

Nothing in them is redundant; `convplant` makes them so. Numbers are float64 until they are written down.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from builders import Form, Outcome, feed_for, lossless, outputs
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

Array = npt.NDArray[Any]
EPSILON = 1e-3
PLAIN = Form()
SHAPE = ("N", 3, 8, 8)


@dataclasses.dataclass(frozen=True)
class Act:
    """scales: f(r a) = r f(a) for r > 0; centre: f(-a) = 2 centre - f(a); flat: f(a) = 0 for a < 0; zero: f(0) = 0."""

    scales: bool = False
    centre: float | None = None
    flat: bool = False
    zero: bool = True


ACTS = {
    "Relu": Act(scales=True, flat=True),
    "LeakyRelu": Act(scales=True),
    "Tanh": Act(centre=0.0),
    "Erf": Act(centre=0.0),
    "Sigmoid": Act(centre=0.5, zero=False),
    "Gelu": Act(),
    "HardSwish": Act(),
    "Clip": Act(flat=True),
    "Elu": Act(),
}


@dataclasses.dataclass(frozen=True)
class Move:
    """A node between activation and reader, for images. zeros: lets zeros in; maximum: no negative factor passes."""

    op: str
    attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    inputs: tuple[tuple[str, Array], ...] = ()
    zeros: bool = False
    maximum: bool = False


_WINDOW = {"kernel_shape": [3, 3], "strides": [2, 2]}
_AROUND = {**_WINDOW, "pads": [1, 1, 1, 1]}
MOVES = {
    "max": Move("MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2]}, maximum=True),
    "max-padded": Move("MaxPool", _AROUND, maximum=True),
    "average": Move("AveragePool", _WINDOW),
    "average-padded": Move("AveragePool", _AROUND),
    "average-zeros": Move("AveragePool", {**_AROUND, "count_include_pad": 1}, zeros=True),
    "average-same": Move("AveragePool", {**_WINDOW, "auto_pad": "SAME_UPPER", "count_include_pad": 1}, zeros=True),
    "average-whole": Move("AveragePool", {**_WINDOW, "count_include_pad": 1}),
    "pad": Move("Pad", inputs=(("pads", np.array([0, 0, 1, 0, 0, 0, 2, 1])),), zeros=True),
    "resize": Move("Resize", {"mode": "nearest"}, (("", np.empty(0)), ("scales", np.array([1, 1, 2, 2], np.float32)))),
    "identity": Move("Identity"),
}

HEADS: dict[str, tuple[Move, ...]] = {
    "conv": (),
    "flatten": (Move("Flatten"),),
    "reshape-rest": (Move("Reshape", inputs=(("shape", np.array([0, -1])),)),),
    "reshape-number": (Move("Reshape", inputs=(("shape", np.array([-1, 0])),)),),
    "reshape-both": (Move("Reshape", inputs=(("shape", np.array([0, 0])),)),),
    "nhwc": (
        Move("Transpose", {"perm": [0, 2, 3, 1]}),
        Move("Reshape", inputs=(("shape", np.array([0, -1])),)),
    ),
    "gap": (Move("GlobalAveragePool"), Move("Flatten")),
    "gap-squeeze": (Move("GlobalAveragePool"), Move("Squeeze", inputs=(("axes", np.array([2, 3])),))),
    "gmp": (Move("GlobalMaxPool", maximum=True), Move("Flatten")),
    "mean": (Move("ReduceMean", {"keepdims": 0}, (("axes", np.array([2, 3])),)),),
    "mean-kept": (Move("ReduceMean", {"keepdims": 1}, (("axes", np.array([-2, -1])),)), Move("Flatten")),
    "matmul": (Move("GlobalAveragePool"), Move("Flatten")),
}
"""What leads to the last reader. A zero at position 1 of a Reshape's shape stands for channels times pixels."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """One convolution with what follows it: norm "before" or "after" the activation, then moves.

    skip: instead two convolutions whose result is added to what comes in, as in a residual block.
    """

    width: int = 5
    kernel: tuple[int, ...] = (3, 3)
    conv: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    act: str = "Relu"
    norm: str = ""
    then: tuple[str, ...] = ()
    bias: bool = True
    skip: bool = False

    @property
    def padded(self) -> bool:
        """Whether the convolution reads zeros beside its input."""
        return any(self.conv.get("pads", ())) or "SAME" in self.conv.get("auto_pad", "")


@dataclasses.dataclass(frozen=True)
class Linear:
    """weight [O, K, taps...], bias [O] or None, float64. norm: (scale, shift, mean, variance) [4, O] right behind it.

    source / target: the spaces that it reads and writes, "" for input and output. layout: how the file stores it.
    """

    weight: Array
    bias: Array | None
    source: str
    target: str
    norm: Array | None = None
    layout: str = "conv"

    def stored(self) -> Array:
        """The weight as it is written down."""
        rows = len(self.weight)
        if self.layout == "nhwc":
            return np.moveaxis(self.weight, 1, -1).reshape(rows, -1)
        if self.layout == "conv":
            return self.weight
        flat = self.weight.reshape(rows, -1)
        return flat.T.copy() if self.layout == "matmul" else flat


@dataclasses.dataclass(frozen=True)
class Space:
    """Channels between writers and readers. norm: [4, width] behind the activation; fixed: no offset may differ."""

    width: int
    act: Act
    zeros: bool = False
    maximum: bool = False
    fixed: bool = False
    norm: Array | None = None


@dataclasses.dataclass(frozen=True)
class Net:
    """Nodes, and the numbers that planting replaces. sizes: pixels per channel for every shape that names them."""

    nodes: tuple[onnx.NodeProto, ...]
    shape: tuple[int, ...]
    linears: Mapping[str, Linear]
    spaces: Mapping[str, Space]
    constants: Mapping[str, Array]
    sizes: Mapping[str, tuple[str, int]]

    def proto(self, form: Form = PLAIN) -> onnx.ModelProto:
        """The network as a file holds it."""
        stored: dict[str, Array] = {}
        for name, linear in self.linears.items():
            stored[f"{name}.w"] = linear.stored().astype(form.dtype)
            if linear.bias is not None:
                stored[f"{name}.b"] = linear.bias.astype(form.dtype)
        norms = {name: linear.norm for name, linear in self.linears.items()}
        norms |= {name: space.norm for name, space in self.spaces.items() if space.norm is not None}
        for name, norm in norms.items():
            if norm is not None:
                stored |= {f"{name}.{p}": v.astype(form.dtype) for p, v in zip("gsmv", norm, strict=True)}
        for name, value in self.constants.items():
            stored[name] = value.astype(form.dtype) if name.startswith("limit") else value
        for name, (space, pixels) in self.sizes.items():
            shape = stored[name].copy()
            shape[1] = self.spaces[space].width * pixels
            stored[name] = shape
        return assembled(self.nodes, stored, {"x": ("N", *self.shape)}, form)


def assembled(
    nodes: Sequence[onnx.NodeProto],
    stored: Mapping[str, Array],
    inputs: Mapping[str, Sequence[int | str]],
    form: Form = PLAIN,
    ends: Sequence[str] = ("y",),
) -> onnx.ModelProto:
    """A checked network whose outputs are declared with the shapes that inference finds."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(form.dtype))
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()]
    before = [helper.make_node("Constant", [], [t.name], value=t) for t in tensors] if form.constants else []
    graph = helper.make_graph(
        [*before, *nodes],
        "net",
        [helper.make_tensor_value_info(n, kind, s) for n, s in inputs.items()],
        [onnx.ValueInfoProto(name=name) for name in ends],
        [] if form.constants else tensors,
    )
    domains = sorted({n.domain for n in nodes} - {""})
    opsets = [helper.make_opsetid("", form.opset), *(helper.make_opsetid(d, 1) for d in domains)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=form.ir)
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True).graph.output
    for value, found in zip(proto.graph.output, inferred, strict=True):
        value.CopyFrom(found)
    onnx.checker.check_model(proto)
    return proto


class _Builder:
    """Collects nodes of one network while its stages are laid down."""

    def __init__(self, rng: np.random.Generator, shape: tuple[int, ...]) -> None:
        self.rng = rng
        self.shape = shape
        self.nodes: list[onnx.NodeProto] = []
        self.linears: dict[str, Linear] = {}
        self.spaces: dict[str, Space] = {}
        self.constants: dict[str, Array] = {}
        self.sizes: dict[str, tuple[str, int]] = {}
        self.tensor, self.space = "x", ""

    def emit(self, op: str, inputs: Sequence[str], result: str, **attributes: Any) -> None:
        self.nodes.append(helper.make_node(op, inputs, [result], **attributes))
        self.tensor = result

    def touch(self, **changes: Any) -> None:
        """Change what the current space allows."""
        if self.space:
            self.spaces[self.space] = dataclasses.replace(self.spaces[self.space], **changes)

    def norm(self, width: int) -> Array:
        rng = self.rng
        factor = rng.uniform(0.5, 1.5, width) * rng.choice([-1.0, 1.0], width)
        return np.stack([factor, *rng.uniform(-1, 1, (2, width)), rng.uniform(0.5, 2, width)])

    def conv(self, name: str, stage: Stage, target: str) -> None:
        """One convolution, perhaps normalised; its space may exist already."""
        size = self.spaces[self.space].width if self.space else self.shape[0]
        weight = self.rng.standard_normal((stage.width, size, *stage.kernel))
        weight /= math.sqrt(weight[0].size)
        bias = self.rng.uniform(-1, 1, stage.width) if stage.bias else None
        norm = self.norm(stage.width) if stage.norm == "before" else None
        self.touch(**({"zeros": True} if stage.padded else {}), **({} if stage.bias else {"fixed": True}))
        self.linears[name] = Linear(weight, bias, self.space, target, norm)
        inputs = [self.tensor, f"{name}.w", *([f"{name}.b"] if stage.bias else [])]
        self.emit("Conv", inputs, f"{name}.z", **stage.conv)
        if norm is not None:
            self.normalise(name)

    def normalise(self, name: str) -> None:
        inputs = [self.tensor, *(f"{name}.{p}" for p in "gsmv")]
        self.emit("BatchNormalization", inputs, f"{self.tensor}.n", epsilon=EPSILON)

    def activate(self, kind: str) -> None:
        limits: list[str] = []
        if kind == "Clip":
            limits = ["limit.low", "limit.high"]
            self.constants |= {"limit.low": np.array(0.0), "limit.high": np.array(1.0)}
        self.emit(kind, [self.tensor, *limits], f"{self.tensor}.h")

    def move(self, move: Move) -> None:
        place = f"{move.op}{len(self.nodes)}"
        names = [f"{place}.{name}" if name else "" for name, _ in move.inputs]
        self.constants |= {n: value for n, (_, value) in zip(names, move.inputs, strict=True) if n}
        self.touch(**({"zeros": True} if move.zeros else {}), **({"maximum": True} if move.maximum else {}))
        if move.op == "Reshape" and move.inputs[0][1][1] == 0:
            self.sizes[names[0]] = (self.space, math.prod(self.pixels()))
        self.emit(move.op, [self.tensor, *names], f"{place}.r", **move.attributes)

    def stage(self, name: str, stage: Stage) -> None:
        act = ACTS[stage.act]
        if not stage.skip:
            self.conv(name, stage, name)
            self.spaces[name] = Space(stage.width, act, norm=self.norm(stage.width) if stage.norm == "after" else None)
            self.space = name
            self.activate(stage.act)
            if stage.norm == "after":
                self.normalise(name)
        else:
            outer, skipped = self.space, self.tensor
            self.conv(f"{name}a", stage, f"{name}a")
            self.spaces[f"{name}a"] = Space(stage.width, act)
            self.activate(stage.act)
            self.space = f"{name}a"
            self.conv(f"{name}b", dataclasses.replace(stage, width=self.spaces[outer].width), outer)
            self.emit("Add", [skipped, self.tensor], f"{name}.sum")
            self.space = outer
            self.activate(stage.act)
        for kind in stage.then:
            self.move(MOVES[kind])

    def pixels(self) -> tuple[int, ...]:
        """Spatial sizes of the current tensor."""
        net = Net(tuple(self.nodes), self.shape, self.linears, self.spaces, self.constants, self.sizes)
        renamed = dataclasses.replace(net, nodes=(*self.nodes, helper.make_node("Identity", [self.tensor], ["y"])))
        dims = renamed.proto().graph.output[0].type.tensor_type.shape.dim[2:]
        return tuple(d.dim_value for d in dims)

    def head(self, kind: str) -> None:
        """The last reader, of 4 outputs."""
        if kind == "conv":
            self.conv("head", Stage(4, (1,) * (len(self.shape) - 1)), "")
            self.nodes[-1].output[0] = "y"
            return
        moves = HEADS[kind]
        taps = self.pixels() if len(moves) == 1 or kind == "nhwc" else ()
        taps = () if kind == "mean" else taps
        for move in moves:
            self.move(move)
        weight = self.rng.standard_normal((4, self.spaces[self.space].width, *taps))
        weight /= math.sqrt(weight[0].size)
        layout = kind if kind in ("nhwc", "matmul") else "gemm"
        self.linears["head"] = Linear(weight, self.rng.uniform(-1, 1, 4), self.space, "", layout=layout)
        if kind == "matmul":
            self.emit("MatMul", [self.tensor, "head.w"], "head.z")
            self.emit("Add", [self.tensor, "head.b"], "y")
        else:
            self.emit("Gemm", [self.tensor, "head.w", "head.b"], "y", transB=1)


def base(rng: np.random.Generator, stages: Sequence[Stage], head: str, shape: tuple[int, ...] = (3, 11, 10)) -> Net:
    """A network of random weights without redundancy; shape: of the input, channels first."""
    builder = _Builder(rng, shape)
    for i, stage in enumerate(stages):
        builder.stage(f"s{i}", stage)
    builder.head(head)
    return Net(tuple(builder.nodes), shape, builder.linears, builder.spaces, builder.constants, builder.sizes)


def by_definition(proto: onnx.ModelProto, feed: Mapping[str, Array]) -> list[Array]:
    """All outputs by onnx's own reference, which knows types that ONNX Runtime does not."""
    return [np.asarray(value) for value in ReferenceEvaluator(proto).run(None, dict(feed))]


def assert_same(
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    eps: float = 2.0**-23,
    seed: int = 1,
    outputs: Callable[[onnx.ModelProto, Mapping[str, Array]], list[Array]] = outputs,
) -> None:
    """Both networks agree within 64 roundings per linear layer, times the root of the longest reduction."""
    feed = feed_for(before, rows=2, seed=seed)
    layers = sum(n.op_type in ("Conv", "Gemm", "MatMul") for n in before.graph.node) or 1
    longest = max((math.prod(t.dims[1:]) for t in before.graph.initializer), default=16)
    for a, b in zip(outputs(before, feed), outputs(after, feed), strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        size = float(np.abs(a.astype(np.float64)).max(initial=0.0))
        bound = 64 * eps * layers * longest**0.5 * max(size, 1.0)
        np.testing.assert_allclose(b.astype(np.float64), a.astype(np.float64), rtol=0, atol=bound)


def rows(seed: int, *factors: float, size: int = 3) -> tuple[Array, Array]:
    """Weights [3 len(factors), size, 3, 3] and bias: three random channels and their multiples."""
    rng = np.random.default_rng(seed)
    weight, bias = rng.standard_normal((3, size, 3, 3)), rng.uniform(-1, 1, 3)
    return np.concatenate([f * weight for f in factors]), np.concatenate([f * bias for f in factors])


def network(
    between: Sequence[onnx.NodeProto],
    shape: Sequence[int | str] = SHAPE,
    reader: dict[str, Any] | None = None,
    ends: Sequence[str] = ("y",),
    **stored: Any,
) -> onnx.ModelProto:
    """Chain x -> Conv w, b -> z -> the given nodes -> h -> Conv v, c -> y (reader None: the nodes lead to y)."""
    rng = np.random.default_rng(9)
    tensors = dict(stored)
    nodes = [helper.make_node("Conv", ["x", "w", *(["b"] if "b" in stored else [])], ["z"], name="first"), *between]
    if reader is not None:
        tensors.setdefault("v", rng.standard_normal((4, len(stored["w"]), 3, 3)))
        tensors["c"] = rng.standard_normal(4)
        nodes.append(helper.make_node("Conv", ["h", "v", "c"], ["y"], name="second", **reader))
    single = {n: np.asarray(v).astype(np.float32) if np.asarray(v).dtype == float else v for n, v in tensors.items()}
    return assembled(nodes, single, {"x": shape}, ends=ends)


def condensed(proto: onnx.ModelProto, *widths: int) -> Outcome:
    """The widths that are left, and equal outputs."""
    done = lossless(proto)
    assert done.widths() == list(widths)
    assert_same(proto, done.proto)
    return done
