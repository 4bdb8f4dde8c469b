"""Every op lowering against ONNX Runtime: attributes, opsets, paddings and sizes, behind a trained weight."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from onnx_condense.errors import ModelError
from onnx_condense.network.model import Network, load
from onnx_condense.runtime import Runtime, run
from onnx_condense.tune.lowering import RULES
from onnx_condense.tune.network import Torched, check_trainable

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Case:
    """One node that reads x * w with a stored w. shape: of x; more: its further operands, None for one left out.

    low, high: range of x; outputs: how many results; dims: how the network declares x.
    """

    op: str
    shape: tuple[int, ...] = (2, 3, 5)
    more: tuple[npt.ArrayLike | None, ...] = ()
    opset: int = 18
    low: float = -2.0
    high: float = 2.0
    outputs: int = 1
    dtype: type[Any] = np.float32
    attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def label(self) -> str:
        """For the names of tests."""
        values = ",".join(f"{k}={v}" for k, v in self.attributes.items())
        more = ",".join("-" if m is None else "x".join(map(str, np.shape(m))) for m in self.more)
        return f"{self.op}-{self.opset}[{values}]({more})"


def _ramp(*shape: int) -> npt.NDArray[np.float64]:
    """Numbers of such a shape, none of them twice."""
    return np.linspace(-1, 2, math.prod(shape)).reshape(shape)


def case(op: str, *more: npt.ArrayLike | None, **fields: Any) -> Case:
    """Fields of Case by name; all others are attributes of the node."""
    names = {f.name for f in dataclasses.fields(Case)}
    own = {k: v for k, v in fields.items() if k in names}
    return Case(op, more=more, attributes={k: v for k, v in fields.items() if k not in names}, **own)


def network(c: Case) -> onnx.ModelProto:
    """X -> Mul by w -> the node -> y0, y1, ..."""
    # One number per position of the last axis; an axis in front keeps a single one from being a mere factor.
    w = np.linspace(0.8, 1.2, max(c.shape[-1], 2))[: c.shape[-1]] if c.shape[-1] > 1 else np.full(c.shape, 0.9)
    stored = {"w": w.astype(c.dtype)}
    names = []
    for i, value in enumerate(c.more):
        names.append("" if value is None else f"more{i}")
        if value is not None:
            array = np.asarray(value)
            stored[f"more{i}"] = array.astype(c.dtype) if array.dtype.kind == "f" else array
    outputs = [f"y{i}" for i in range(c.outputs)]
    nodes = [
        helper.make_node("Mul", ["x", "w"], ["h"]),
        helper.make_node(c.op, ["h", *names], outputs, **c.attributes),
    ]
    shape = [f"d{i}" for i in range(len(c.shape))]
    return graph_of(nodes, stored, {"x": shape}, outputs, opset=c.opset, dtype=c.dtype)


def graph_of(
    nodes: Sequence[onnx.NodeProto],
    stored: Mapping[str, Array],
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Sequence[str],
    *,
    opset: int = 18,
    dtype: npt.DTypeLike = np.float32,
) -> onnx.ModelProto:
    """A network whose outputs are not typed yet."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs.items()],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def close(found: Sequence[Any], wanted: Sequence[Array], terms: int, eps: float) -> None:
    """Equal but for rounding: sums of so many terms, each as large as the largest result."""
    assert len(found) == len(wanted)
    for tensor, array in zip(found, wanted, strict=True):
        value = tensor.detach().numpy()
        assert value.shape == array.shape
        scale = np.abs(array[np.isfinite(array)].astype(np.float64)).max(initial=1.0)
        np.testing.assert_allclose(value, array, rtol=0, atol=8 * eps * terms**0.5 * scale)


def both(model: onnx.ModelProto, feed: Mapping[str, Array]) -> tuple[Torched, list[Any], list[Array]]:
    """The module, its results and those of ONNX Runtime with optimizations off, which tell the outputs' types."""
    wanted = run(Runtime(threads=1).session(model, optimize=False), feed)
    for output, value in zip(model.graph.output, wanted, strict=True):
        kind = helper.np_dtype_to_tensor_dtype(value.dtype)
        output.CopyFrom(helper.make_tensor_value_info(output.name, kind, [None] * value.ndim))
    module = Torched(load(model))
    given = dict(feed)
    if (prefix := module.prefix()) is not None:
        session = Runtime(threads=1).session(prefix, optimize=False)
        needed = {i.name: feed[i.name] for i in session.get_inputs()}
        given |= zip((o.name for o in prefix.graph.output), run(session, needed), strict=True)
    return module, module({n: torch.from_numpy(np.array(given[n])) for n in module.needs}), wanted


def norm_operands(channels: int, seed: int = 1) -> list[Array]:
    """Scale, bias, mean, variance."""
    rng = np.random.default_rng(seed)
    return [*rng.standard_normal((3, channels)), rng.uniform(0.5, 2, channels)]


UNARY = """
Abs Asinh Atan Ceil Cos Cosh Elu Erf Exp Floor HardSigmoid HardSwish Identity LeakyRelu LogSoftmax LpNormalization Mish
Neg Reciprocal Relu Round Selu Celu Sigmoid Sign Sin Sinh Softmax Softplus Softsign Tanh ThresholdedRelu
Flatten Squeeze Transpose ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceSum
ReduceSumSquare ReduceLogSumExp Max Min Sum Mean
"""
MATH = [
    *(case(op) for op in UNARY.split()),
    *(case(op, low=0.2, high=3) for op in ("Log", "Sqrt", "ReduceLogSum")),
    *(case(op, low=-0.8, high=0.8) for op in ("Acos", "Asin", "Atanh", "Tan")),
    case("Acosh", low=1.5, high=4),
    case("Gelu", opset=20),
    case("Gelu", opset=20, approximate="tanh"),
    case("Swish", opset=24, alpha=0.7),
    case("Elu", alpha=0.3),
    case("Celu", alpha=0.7),
    case("Selu", alpha=1.1, gamma=0.6),
    case("LeakyRelu", alpha=0.3),
    case("HardSigmoid", alpha=0.4, beta=0.3),
    case("ThresholdedRelu", alpha=0.4),
    case("PRelu", np.array([[0.1], [0.2], [0.3]])),
    case("PRelu", np.array([0.25])),
    *(case(op, np.linspace(0.5, 2, 5)) for op in ("Add", "Sub", "Mul", "Div")),
    *(case(op, np.linspace(0.5, 2, 3)[:, None]) for op in ("Add", "Max", "Min", "Sum", "Mean")),
    case("Max", np.linspace(-1, 1, 5), np.array(0.3)),
    case("Mean", np.linspace(-1, 1, 5), np.array(0.3)),
    case("Pow", np.array(2.0)),
    case("Pow", np.array(3, np.int64)),
    case("Pow", np.array([0.5, 1.5, 2, 3, 1]), low=0.2),
    case("Mod", np.array(0.7), fmod=1),
    case("Clip", np.array(-0.5), np.array(0.7)),
    case("Clip", np.array(-0.5), None),
    case("Clip", None, np.array(0.7)),
    case("Clip"),
    case("Clip", opset=10, min=-0.5, max=0.7),
    case("Clip", opset=10, max=0.7),
    case("Dropout"),
    case("Dropout", np.array(0.7)),
    case("Dropout", np.array(0.7), np.array(False)),
    case("Dropout", opset=10, ratio=0.4),
    *(
        case(op, opset=opset, axis=axis)
        for op in ("Softmax", "LogSoftmax")
        for opset in (11, 13)
        for axis in (0, 1, -1)
    ),
    case("Softmax", opset=11),
    case("LpNormalization", axis=1, p=1),
    case("LpNormalization", low=0, high=0),
    case("Gemm", np.ones((5, 4)) / 3, shape=(7, 5)),
    case("Gemm", np.ones((4, 5)) / 3, np.arange(4) / 4, shape=(7, 5), transB=1),
    case("Gemm", np.ones((4, 5)) / 3, np.arange(7.0)[:, None], shape=(5, 7), transA=1, transB=1, alpha=0.3, beta=0.6),
    case("Gemm", np.ones((5, 4)) / 3, np.array(0.5), shape=(7, 5), opset=7, alpha=0.3),
    case("MatMul", np.ones((5, 4)) / 3),
    case("MatMul", np.arange(30.0).reshape(2, 5, 3) / 9),
    case("MatMul", np.arange(5.0), shape=(4, 5)),
    case("Einsum", np.arange(20.0).reshape(5, 4), equation="bij , jk -> bik"),
    case("Cast", to=TensorProto.DOUBLE),
    case("LayerNormalization", *norm_operands(5)[:2]),
    case("LayerNormalization", norm_operands(5)[0], axis=-1, epsilon=0.1),
    case("LayerNormalization", np.arange(15.0).reshape(3, 5), np.arange(15.0).reshape(3, 5), axis=1),
    case("LayerNormalization", np.arange(5.0), np.arange(5.0), axis=1),
]

_AXES = np.array([0, -1])
REDUCTIONS = [
    *(case(op, opset=opset, axes=[-1, 0], keepdims=keep) for op, opset, keep in itertools.product(
        ("ReduceMean", "ReduceMax", "ReduceProd", "ReduceL2"), (11, 13, 17), (0, 1))),
    case("ReduceSum", opset=11, axes=[1]),
    *(case(op, _AXES, opset=18, keepdims=keep) for op, keep in itertools.product(
        ("ReduceMean", "ReduceMin", "ReduceSum", "ReduceL1", "ReduceLogSumExp", "ReduceSumSquare"), (0, 1))),
    case("ReduceSum", np.array([1]), opset=13, keepdims=0),
    case("ReduceSum", np.array([], np.int64), opset=13),
    case("ReduceSum", opset=13, noop_with_empty_axes=1),
    case("ReduceMean", np.array([], np.int64), opset=18, keepdims=0),
]  # fmt: skip

MOVES = [
    *(case("Flatten", axis=axis) for axis in (0, 2, 3, -1)),
    case("Reshape", np.array([0, -1])),
    case("Reshape", np.array([5, 0, 2]), shape=(2, 3, 5)),
    case("Reshape", np.array([0, 3, 2]), shape=(2, 0, 3), allowzero=1),
    case("Transpose", perm=[2, 0, 1]),
    case("Squeeze", np.array([-2, 0]), shape=(1, 3, 1, 4)),
    case("Squeeze", opset=11, axes=[0, 2], shape=(1, 3, 1, 4)),
    case("Squeeze", opset=11, shape=(1, 3, 1, 4)),
    case("Unsqueeze", np.array([-1, 0])),
    case("Unsqueeze", np.array([3, 1])),
    case("Unsqueeze", opset=11, axes=[0, 3]),
    case("Concat", np.ones((2, 1, 5)), axis=-2),
    case("Split", outputs=2, opset=13, shape=(4, 6)),
    case("Split", np.array([1, 4]), outputs=2, axis=-1),
    case("Split", outputs=2, opset=11, axis=2, split=[2, 3]),
    case("Split", outputs=2, opset=18, axis=2, num_outputs=2),
    case("Split", outputs=3, opset=18, axis=0, num_outputs=3, shape=(7, 2)),
    case("Slice", opset=9, starts=[0, 1], ends=[9, -1], axes=[0, 2]),
    case("Slice", opset=9, starts=[1], ends=[2]),
    case("Slice", np.array([1, -9]), np.array([2**62, 3])),
    case("Slice", np.array([0, 1]), np.array([2, -1]), np.array([-3, 2]), np.array([1, 2])),
    case("Slice", np.array([3]), np.array([1]), np.array([2])),
    *(case("Slice", np.array([start]), np.array([end]), np.array([-1]), np.array([stride])) for start, end, stride in
      itertools.product((9, 3, -1, -2, -9), (-(2**62), -9, -4, 0, 1, 4), (-1, -2))),
    case("Gather", np.array([[0, -1], [2, 1]]), axis=1),
    case("Gather", np.array(-1), axis=-1),
    case("Gather", np.array([1, 0, 1], np.int32)),
    case("GatherElements", np.array([[[0, 1, -1, 2, 0]], [[1, 1, 0, -2, 2]]]), axis=1),
    case("GatherND", np.array([[0, 1], [1, -1]])),
    case("ScatterElements", np.array([[[0, 1, -1, 2, 0]], [[1, 1, 0, -2, 2]]]), _ramp(2, 1, 5), axis=1),
    *(case("ScatterElements", np.array([[0, -1], [0, 1], [2, 1], [0, 0]]), _ramp(4, 2), shape=(3, 2), opset=18,
           reduction=r) for r in ("add", "mul", "max", "min")),
    case("ScatterND", np.array([[0, 1], [1, -1]]), _ramp(2, 5)),
    case("ScatterND", np.array([[1], [-1], [1]]), _ramp(3, 2), shape=(3, 2), opset=18, reduction="add"),
    case("Expand", np.array([4, 1, 3, 1]), shape=(2, 3, 1)[1:]),
    case("Tile", np.array([1, 3, 2])),
    case("Pad", np.array([0, 1, -2, 0, 2, 1])),
    case("Pad", np.array([0, 1, 2, 0, 0, 1]), np.array(0.7)),
    case("Pad", np.array([2, 1, 1, -1]), None, np.array([-1, 1])),
    case("Pad", opset=10, pads=[0, 1, 2, 1, 0, 0], value=0.3),
    *(case("Pad", np.array([0, 1, 2, 1, 2, 4]), mode=mode) for mode in ("reflect", "edge")),
    case("Pad", np.array([0, 1, 2, 1, 2, 4]), mode="wrap", opset=19),
    case("DepthToSpace", shape=(2, 12, 3, 2), blocksize=2),
    case("DepthToSpace", shape=(2, 12, 3, 2), blocksize=2, mode="CRD"),
    case("SpaceToDepth", shape=(2, 3, 4, 6), blocksize=2),
    case("Trilu", np.array(1)),
    case("Trilu", upper=0),
]  # fmt: skip


def _weights(*shape: int) -> Array:
    return np.asarray(np.random.default_rng(len(shape)).standard_normal(shape))


_PICTURE = (2, 4, 7, 6)
CONVOLUTIONS = [
    case("Conv", _weights(5, 4, 3), shape=(2, 4, 9)),
    case("Conv", _weights(5, 4, 3), _weights(5), shape=(2, 4, 9), strides=[2], dilations=[2], pads=[1, 3]),
    case("Conv", _weights(6, 2, 3, 2), _weights(6), shape=_PICTURE, group=2, pads=[1, 0, 1, 0]),
    case("Conv", _weights(4, 1, 3, 3), shape=_PICTURE, group=4, pads=[0, 1, 2, 1], strides=[2, 1]),
    case("Conv", _weights(2, 4, 2, 2, 2), shape=(1, 4, 3, 4, 5), pads=[1, 0, 0, 0, 1, 1], kernel_shape=[2, 2, 2]),
    *(case("Conv", _weights(3, 4, *kernel), shape=_PICTURE, auto_pad=auto, strides=strides) for auto, kernel, strides in
      itertools.product(("SAME_UPPER", "SAME_LOWER", "VALID"), ((3, 2), (1, 4)), ([1, 1], [2, 3]))),
    case("ConvTranspose", _weights(4, 5, 3), _weights(5), shape=(2, 4, 6)),
    case("ConvTranspose", _weights(4, 3, 3, 2), shape=_PICTURE, group=2, strides=[2, 3], pads=[1, 0, 0, 1]),
    case("ConvTranspose", _weights(4, 3, 3, 3), _weights(3), shape=_PICTURE, strides=[2, 2], pads=[1, 1, 1, 1],
         output_padding=[1, 1]),
    case("ConvTranspose", _weights(4, 3, 2, 2), _weights(3), shape=_PICTURE, strides=[3, 3], output_padding=[2, 1]),
    case("ConvTranspose", _weights(4, 3, 3, 3), shape=_PICTURE, dilations=[2, 1], strides=[2, 1]),
    *(case("ConvTranspose", _weights(4, 3, *kernel), shape=_PICTURE, strides=[2, 2], auto_pad=auto) for auto, kernel in
      itertools.product(("SAME_UPPER", "SAME_LOWER", "VALID"), ((3, 3), (4, 3)))),
    *(case("ConvTranspose", _weights(4, 3, 3, 3), shape=_PICTURE, output_shape=[14, 12], strides=[2, 2], **more)
      for more in
      ({}, {"auto_pad": "SAME_UPPER"}, {"auto_pad": "SAME_LOWER"})),
    case("ConvTranspose", _weights(4, 3, 2, 2), shape=_PICTURE, strides=[3, 3], auto_pad="SAME_UPPER"),
    case("ConvTranspose", _weights(4, 3, 2, 2), shape=_PICTURE, strides=[3, 3], output_shape=[22, 17]),
    case("ConvTranspose", _weights(4, 2, 2, 2, 2), shape=(1, 4, 2, 3, 2), strides=[2, 1, 2]),
]  # fmt: skip

POOLS = [
    *(case(op, shape=shape, kernel_shape=[3] * (len(shape) - 2)) for op in ("MaxPool", "AveragePool") for shape in
      ((2, 3, 8), (2, 3, 7, 6), (1, 2, 5, 4, 6))),
    *(case(op, shape=(2, 3, *size), kernel_shape=[3, 2], strides=[2, 3], pads=pads, ceil_mode=ceil, opset=opset)
      for op, size, pads, ceil, opset in itertools.product(
          ("MaxPool", "AveragePool"), ((7, 6), (8, 9)), ([0, 0, 0, 0], [1, 0, 2, 1], [1, 1, 1, 1]), (0, 1), (10, 19))),
    *(case("AveragePool", shape=(2, 3, *size), kernel_shape=[3, 3], strides=strides, pads=pads, ceil_mode=ceil,
           count_include_pad=1, opset=19)
      for size, strides, pads, ceil in itertools.product(
          ((7, 6), (8, 9)), ([2, 2], [1, 3]), ([0, 1, 2, 1], [1, 1, 1, 1]), (0, 1))),
    *(case(op, shape=(2, 3, 7, 6), kernel_shape=[3, 2], strides=strides, auto_pad=auto) for op, strides, auto in
      itertools.product(("MaxPool", "AveragePool"), ([1, 1], [2, 2]), ("SAME_UPPER", "SAME_LOWER", "VALID"))),
    case("MaxPool", shape=(2, 3, 9, 9), kernel_shape=[3, 2], dilations=[2, 3]),
    *(case(op, shape=shape) for op in ("GlobalAveragePool", "GlobalMaxPool") for shape in ((2, 3, 4, 5), (2, 3, 4))),
]  # fmt: skip

NORMS = [
    *(case("BatchNormalization", *norm_operands(3), shape=shape, opset=opset)
      for shape in ((4, 3), (2, 3, 4), (2, 3, 4, 5))
      for opset in (9, 14, 15)),
    case("BatchNormalization", *norm_operands(3), epsilon=0.1, momentum=0.5),
    *(case("InstanceNormalization", *norm_operands(3)[:2], shape=shape, epsilon=0.01) for shape in
      ((2, 3, 4), (2, 3, 4, 5))),
    case("GroupNormalization", *norm_operands(6)[:2], shape=(2, 6, 4, 3), num_groups=2, opset=21),
    case("RMSNormalization", norm_operands(5)[0], opset=23),
]  # fmt: skip

_MAP = (1, 2, 5, 4)
RESIZES = [
    *(case("Resize", None, np.array(scales), shape=_MAP, mode=mode, coordinate_transformation_mode=place, **more)
      for scales, (mode, more), place in itertools.product(
          ([1.0, 1, 2, 2], [1.0, 1, 1.6, 0.6], [1.0, 1, 0.7, 3]),
          (("linear", {}), *(("nearest", {"nearest_mode": r}) for r in
                             ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil"))),
          ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"))),
    case("Resize", None, np.array([1.0, 1, 1.6, 0.6]), shape=_MAP, mode="linear", opset=19,
         coordinate_transformation_mode="half_pixel_symmetric"),
    case("Resize", np.array([], np.float32), np.array([1.0, 1, 2.0, 1.6]), shape=_MAP, opset=11,
         coordinate_transformation_mode="tf_half_pixel_for_nn"),
    *(case("Resize", None, None, np.array([1, 2, *sizes]), shape=_MAP, mode=mode)
      for sizes, mode in itertools.product(((7, 9), (1, 3), (5, 4)), ("nearest", "linear"))),
    *(case("Resize", None, None, np.array([1, 2, 1, 1]), shape=_MAP, mode="linear",
           coordinate_transformation_mode=place)
      for place in ("pytorch_half_pixel", "align_corners", "half_pixel")),
    case("Resize", None, None, np.array([7, 9]), shape=_MAP, mode="linear", axes=[-2, -1]),
    case("Resize", np.array([], np.float32), np.array([], np.float32), np.array([1, 2, 9, 3]), shape=_MAP, opset=11),
    *(case("Resize", np.array([1.0, 1, 1.6, 2]), shape=_MAP, opset=10, mode=mode) for mode in ("nearest", "linear")),
    *(case("Upsample", np.array([1.0, 1, 3, 2]), shape=_MAP, opset=9, mode=mode) for mode in ("nearest", "linear")),
    case("Upsample", shape=_MAP, opset=7, mode="nearest", scales=[1.0, 1, 2, 2]),
]  # fmt: skip

CASES = [*MATH, *REDUCTIONS, *MOVES, *CONVOLUTIONS, *POOLS, *NORMS, *RESIZES]


@pytest.mark.parametrize("one", CASES, ids=[c.label for c in CASES])
def test_a_node_behind_a_weight_gives_what_onnx_runtime_gives(one: Case) -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(one.low, one.high, one.shape).astype(one.dtype)
    module, found, wanted = both(network(one), {"x": x})
    assert module.names[0] == "w"
    assert module.needs == ("x",)
    close(found, wanted, max(x.size, 1), float(np.finfo(one.dtype).eps))


BLUNT = ("IsNaN", "Size", "Shape", "ArgMax", "ArgMin", "Greater", "Equal", "Less", "GreaterOrEqual", "LessOrEqual")


def aside(op: str) -> onnx.ModelProto:
    """A Gemm whose result is given out, and read by an op that no gradient passes."""
    more = ["limit"] if op[:4] in {"Grea", "Equa", "Less"} else []
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["y"]),
        helper.make_node("Round", ["y"], ["round"]),
        helper.make_node(op, ["round", *more], ["z"]),
        helper.make_node("Cast", ["z"], ["whole"], to=TensorProto.INT64),
    ]
    stored: dict[str, Array] = {
        "w": np.arange(12, dtype=np.float32).reshape(3, 4) / 5 - 1,
        "limit": np.array(0, np.float32),
    }
    return graph_of(nodes, stored, {"x": ["N", 3]}, ["y", "whole"])


@pytest.mark.parametrize("op", BLUNT)
def test_ops_that_no_gradient_passes(op: str) -> None:
    x = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
    _, (y, whole), wanted = both(aside(op), {"x": x})
    assert y.requires_grad
    close([y, whole], wanted, 3, float(np.finfo(np.float32).eps))


@pytest.mark.parametrize("op", ["And", "Or", "Xor"])
def test_conditions_behind_a_weight(op: str) -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["h"]),
        helper.make_node("Greater", ["h", "low"], ["above"]),
        helper.make_node("Less", ["h", "high"], ["below"]),
        helper.make_node("Not", ["below"], ["beyond"]),
        helper.make_node(op, ["above", "beyond"], ["mask"]),
        helper.make_node("Where", ["mask", "h", "low"], ["y"]),
    ]
    stored: dict[str, Array] = {"low": np.array(-0.2, np.float32), "high": np.array(0.4, np.float32)}
    stored["w"] = np.arange(12, dtype=np.float32).reshape(3, 4) / 5 - 1
    x = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
    _, found, wanted = both(graph_of(nodes, stored, {"x": ["N", 3]}, ["y"]), {"x": x})
    close(found, wanted, 3, float(np.finfo(np.float32).eps))


@pytest.mark.parametrize("parts", [("Gather", {"axis": 0}), ("Slice", {})], ids=lambda p: p[0])
def test_sizes_computed_behind_a_weight(parts: tuple[str, dict[str, Any]]) -> None:
    """The first two sizes of a product, joined to others, tell a Reshape; a mask over their count makes a factor."""
    op, attributes = parts
    picked = ["shape", "first"] if op == "Gather" else ["shape", "zero", "two"]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Shape", ["h"], ["shape"]),
        helper.make_node(op, picked, ["some"], **attributes),
        helper.make_node("Concat", ["some", "rest"], ["sizes"], axis=0),
        helper.make_node("Reshape", ["h", "sizes"], ["parts"]),
        helper.make_node("ConstantOfShape", ["some"], ["ones"], value=numpy_helper.from_array(np.ones(1, np.float32))),
        helper.make_node("Unsqueeze", ["ones", "last"], ["more"]),
        helper.make_node("Unsqueeze", ["more", "last"], ["more_still"]),
        helper.make_node("Add", ["parts", "more_still"], ["sum"]),
        helper.make_node("Size", ["shape"], ["rank"]),
        helper.make_node("Range", ["none", "rank", "one"], ["count"]),
        helper.make_node("Less", ["count", "one"], ["mask"]),
        helper.make_node("Where", ["mask", "shape", "count"], ["chosen"]),
        helper.make_node("ReduceSum", ["chosen"], ["total"], keepdims=0),
        helper.make_node("Cast", ["total"], ["factor"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["sum", "factor"], ["y"]),
    ]
    lists = {"first": [0, 1], "zero": [0], "two": [2], "rest": [2, -1], "last": [-1]}
    stored: dict[str, Array] = {name: np.array(value, np.int64) for name, value in lists.items()}
    stored |= {"none": np.array(0, np.int64), "one": np.array(1, np.int64)}
    stored["w"] = np.arange(24, dtype=np.float32).reshape(3, 8) / 9 - 1
    model = graph_of(nodes, stored, {"x": ["N", 4, 3]}, ["y"])
    x = np.random.default_rng(0).standard_normal((5, 4, 3)).astype(np.float32)
    module, found, wanted = both(model, {"x": x})
    assert module.needs == ("x",)
    close(found, wanted, 8, float(np.finfo(np.float32).eps))


REFUSED = [
    (case("Gelu", opset=20, approximate="other"), "approximate"),
    (case("Dropout", np.array(0.5), np.array(True)), "training mode"),
    (case("Dropout", outputs=2), "first result"),
    (case("MaxPool", shape=(2, 3, 6), kernel_shape=[2], outputs=2), "first result"),
    (case("AveragePool", shape=(2, 3, 6), kernel_shape=[2], dilations=[2], opset=19), "dilations"),
    (case("BatchNormalization", *norm_operands(3), training_mode=1), "training_mode"),
    (case("BatchNormalization", *norm_operands(3), spatial=0, opset=7), "spatial"),
    (case("ArgMax", select_last_index=1), "select_last_index"),
    (case("GatherND", np.array([[0], [1]]), batch_dims=1), "batch_dims"),
    (case("ScatterND", np.array([[1]]), _ramp(1, 3, 5), opset=18, reduction="max"), "reduction = max"),
    (case("LayerNormalization", norm_operands(5)[0], stash_type=16), "stash_type"),
    (case("Resize", None, np.array([1.0, 1, 2, 2]), shape=_MAP, mode="cubic"), "mode = cubic"),
    (case("Resize", None, np.array([1.0, 1, 0.5, 0.5]), shape=_MAP, mode="linear", antialias=1), "antialias"),
    (case("Resize", None, np.array([1.0, 1, 2, 2]), shape=_MAP, coordinate_transformation_mode="tf_crop_and_resize"),
     "tf_crop_and_resize"),
    (case("Conv", _weights(3, 4, 3), shape=(2, 4, 9), auto_pad="SAME_UPPER", dilations=[2]), "dilations"),
    (case("Conv", _weights(3, 4, 1, 1, 1, 1), shape=(2, 4, 3, 3, 3, 3)), "6 axes"),
    (case("Cast", to=TensorProto.STRING), "STRING"),
    (case("Hardmax"), "no lowering"),
    (case("TopK", np.array([2]), outputs=2), "no lowering"),
]  # fmt: skip


@pytest.mark.parametrize(("one", "reason"), REFUSED, ids=[c.label for c, _ in REFUSED])
def test_other_variants_are_refused_before_any_work(one: Case, reason: str) -> None:
    model = network(one)
    # What comes out behind it is a float, whatever the op gives.
    for output, name in zip(model.graph.output, model.graph.node[-1].output, strict=True):
        output.CopyFrom(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    with pytest.raises(ModelError, match=reason) as caught:
        check_trainable(Network(model))
    assert caught.value.code == "tune"
    assert f"({one.op})" in caught.value.text
    assert "leave --tune away" in caught.value.text


def test_older_opsets_are_refused() -> None:
    model = network(case("Relu", opset=6))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y0", TensorProto.FLOAT, None))
    with pytest.raises(ModelError, match="opset 6"):
        check_trainable(Network(model))


def test_an_attribute_that_no_lowering_knows_is_refused() -> None:
    model = network(case("Relu"))
    model.graph.node[1].attribute.append(helper.make_attribute("novel", 1))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y0", TensorProto.FLOAT, None))
    with pytest.raises(ModelError, match="attribute novel"):
        check_trainable(Network(model))


def test_every_lowering_is_compared() -> None:
    """No record stands in the table without a case above."""
    compared = {c.op for c in CASES} | {*BLUNT, "And", "ConstantOfShape", "Not", "Or", "Range", "Where", "Xor"}
    assert {op for _, op in RULES} == compared
