"""Lossless proofs for images where the graph decides: storage, sharing, broadcasting, heads and barriers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from builders import lossless
from convnets import SHAPE, assert_same, condensed, network, rows
from onnx import helper, numpy_helper

from onnx_condense import condense
from onnx_condense.errors import ModelError
from onnx_condense.network.model import serialized

Array = Any
NODE = helper.make_node
SAME: dict[str, Any] = {"pads": [1, 1, 1, 1]}
RELU = [NODE("Relu", ["z"], ["h"])]


def copies(*factors: float) -> dict[str, Array]:
    weight, bias = rows(0, *(factors or (1, 2)))
    return {"w": weight, "b": bias}


def refused(proto: onnx.ModelProto) -> list[str]:
    """The reasons of a network in which nothing may go."""
    before = serialized(proto)
    done = lossless(proto)
    assert done.widths() == []
    assert serialized(done.proto) == before
    return [r.reason for r in done.view.refusals]


# ---- storage ----


def test_a_weight_that_is_computed_stays() -> None:
    nodes = [*RELU, NODE("Mul", ["half", "twice"], ["v"]), NODE("Conv", ["h", "v"], ["y"])]
    stored: dict[str, Array] = {"half": np.random.default_rng(0).standard_normal((4, 6, 1, 1)), "twice": np.array(2.0)}
    assert "computed weight" in refused(network(nodes, **copies(), **stored))


@pytest.mark.parametrize("shared", [False, True])
def test_a_weight_that_is_only_laid_out_anew_is_written_laid_out(*, shared: bool) -> None:
    """A reshaped, transposed constant is a weight like others; what it was made of goes unless something reads it."""
    rng = np.random.default_rng(0)
    layout = [NODE("Transpose", ["flat"], ["turned"], perm=[1, 0]), NODE("Reshape", ["turned", "to"], ["v"])]
    nodes = [*RELU, *layout, NODE("Conv", ["h", "v"], ["y"])]
    ends = ["y"]
    if shared:
        nodes.append(NODE("Relu", ["turned"], ["also"]))
        ends.append("also")
    stored: dict[str, Array] = {"flat": rng.standard_normal((6, 4)), "to": np.array([4, 6, 1, 1])}
    done = condensed(network(nodes, ends=ends, **copies(), **stored), 3)
    names = {t.name for t in done.proto.graph.initializer}
    assert ("flat" in names) == shared
    assert "to" not in names


@pytest.mark.parametrize("op", ["Softmax", "DepthToSpace", "InstanceNormalization"])
def test_ops_without_a_rule_are_refused(op: str) -> None:
    rng = np.random.default_rng(0)
    ends = {
        "Softmax": NODE(op, ["h"], ["y"], axis=1),
        "DepthToSpace": NODE(op, ["h"], ["y"], blocksize=2),
        "InstanceNormalization": NODE(op, ["h", "g", "s"], ["y"]),
    }
    stored: dict[str, Array] = (
        copies(1, 2) if op != "DepthToSpace" else {n: np.repeat(v[:2], 4, 0) for n, v in copies(1).items()}
    )
    extra: dict[str, Array] = {"v": rng.standard_normal((6, 4, 3, 3)), "g": np.ones(6), "s": np.zeros(6)}
    used: dict[str, Array] = {n: v for n, v in extra.items() if n in ends[op].input}
    proto = network([*RELU, ends[op]], **stored, **used)
    assert refused(proto)


@pytest.mark.parametrize("part", ["b", "w", "v"])
def test_what_a_caller_may_override_is_no_constant(part: str) -> None:
    """From IR 4 on an initializer that is an input too is a default only."""
    proto = network(RELU, reader=SAME, **copies(1, 1))
    stored = next(t for t in proto.graph.initializer if t.name == part)
    proto.graph.input.append(helper.make_tensor_value_info(part, stored.data_type, list(stored.dims)))
    done = lossless(proto)
    assert not done.plan.selections
    assert serialized(done.proto) == serialized(proto)


def test_a_bias_that_is_computed_keeps_its_rows() -> None:
    nodes = [
        NODE("ReduceMean", ["x", "all"], ["m"], keepdims=0),
        NODE("Expand", ["m", "six"], ["b2"]),
        NODE("Conv", ["z", "w2", "b2"], ["t"]),
        NODE("Relu", ["t"], ["h"]),
    ]
    stored: dict[str, Array] = {
        "w": np.random.default_rng(3).standard_normal((6, 3, 3, 3)),
        "w2": rows(0, 1, 2, size=6)[0],
    }
    stored |= {"all": np.arange(4), "six": np.array([6])}
    v = np.random.default_rng(4).standard_normal((4, 6, 3, 3))
    v[:, 2] = 0.0
    proto = network(nodes, reader=SAME, v=v, **stored)
    done = lossless(proto)
    assert not done.plan.selections
    assert_same(proto, done.proto)


@pytest.mark.parametrize("shape", [(6, 1, 1), (1, 6, 1, 1)])
def test_a_bias_added_behind_the_convolution(shape: tuple[int, ...]) -> None:
    weight, bias = rows(0, 1, 2)
    nodes = [NODE("Add", ["z", "a"], ["t"]), NODE("Relu", ["t"], ["h"])]
    condensed(network(nodes, reader=SAME, w=weight, a=bias.reshape(shape)), 3)
    condensed(network(nodes, reader=SAME, w=weight, a=np.tile(bias[:3], 2).reshape(shape)), 6)


def test_constants_leave_through_a_reader_without_bias() -> None:
    """The reader gets a bias of its own."""
    stored: dict[str, Array] = {"w": np.r_[copies(1)["w"], np.zeros((2, 3, 3, 3))], "b": np.r_[copies(1)["b"], 0.5, 2]}
    v = np.random.default_rng(0).standard_normal((4, 5, 3, 3))
    done = condensed(network([*RELU, NODE("Conv", ["h", "v"], ["y"], name="second")], v=v, **stored), 3)
    assert np.abs(numpy_helper.to_array(done.proto.graph.initializer[0])).max() > 0


# ---- one weight, several uses ----


def shared(first: tuple[float, ...], second: tuple[float, ...], **other: Any) -> onnx.ModelProto:
    """Two writers, read by one stored weight."""
    (w, b), (w2, b2) = rows(0, *first), rows(1, *second)
    nodes = [
        *RELU,
        NODE("Conv", ["x", "w2", "b2"], ["z2"]),
        NODE("Relu", ["z2"], ["h2"]),
        NODE("Conv", ["h", "v"], ["y"], name="one"),
        NODE("Conv", ["h2", "v"], ["q"], name="two", **other),
    ]
    v = np.random.default_rng(2).standard_normal((4, 6, 3, 3))
    return network(nodes, ends=("y", "q"), w=w, b=b, w2=w2, b2=b2, v=v)


@pytest.mark.parametrize(
    ("first", "second", "left"), [((1, 1), (1, 1), 3), ((1, 2), (1, 2), 3), ((1, 2), (1, 3), 6), ((1, 1), (1, -1), 6)]
)
def test_readers_that_share_a_weight_merge_alike(
    first: tuple[float, ...], second: tuple[float, ...], left: int
) -> None:
    done = condensed(shared(first, second), left)
    assert len({t.name for t in done.proto.graph.initializer} & {"v"}) == 1


def test_readers_that_share_a_weight_with_other_padding() -> None:
    """A constant in both: the padded use keeps it, and so must the other, or the weight could not stay shared."""
    proto = shared((1, 0), (1, 0), **SAME)
    for name in ("b", "b2"):
        stored = next(t for t in proto.graph.initializer if t.name == name)
        bias = numpy_helper.to_array(stored).copy()
        bias[3:] = [0.5, 0.25, 1.0]
        stored.CopyFrom(numpy_helper.from_array(bias, name))
    done = lossless(proto)
    assert done.widths()[0] in (4, 6)
    assert_same(proto, done.proto)


def test_writers_that_share_a_weight() -> None:
    """The same filters on two images, read by different things: rows go where both may do without them."""
    weight, bias = rows(0, 1, 2)
    v, v2 = np.random.default_rng(0).standard_normal((2, 4, 6, 3, 3))
    pool = NODE("AveragePool", ["x"], ["small"], kernel_shape=[2, 2], strides=[2, 2])
    nodes = [
        pool,
        NODE("Conv", ["small", "w", "b"], ["z2"]),
        *RELU,
        NODE("Relu", ["z2"], ["h2"]),
        NODE("Conv", ["h", "v"], ["y"]),
        NODE("Conv", ["h2", "v2"], ["q"], **SAME),
    ]
    stored: dict[str, Array] = {"w": weight, "b": bias, "v": v, "v2": v2}
    condensed(network(nodes, ends=("y", "q"), **stored), 3)
    nodes[3] = NODE("Gelu", ["z2"], ["h2"])
    condensed(network(nodes, ends=("y", "q"), **stored), 6)


# ---- broadcasting ----


@pytest.mark.parametrize(("factor", "left"), [(1.0, 3), (2.0, 6)])
def test_a_number_per_pixel_is_no_offset(factor: float, left: int) -> None:
    """2 z + p is not 2 (z + p)."""
    pixels = np.random.default_rng(0).standard_normal((1, 1, 6, 6))
    nodes = [NODE("Add", ["z", "p"], ["t"]), NODE("Relu", ["t"], ["h"])]
    condensed(network(nodes, reader={}, p=pixels, **copies(1, factor)), left)


def test_a_constant_plus_a_number_per_pixel_varies() -> None:
    stored: dict[str, Array] = {"w": np.zeros((4, 3, 3, 3)), "b": np.array([0.5, 0.5, 1.0, 2.0])}
    pixels = np.random.default_rng(0).standard_normal((1, 1, 6, 6))
    nodes = [NODE("Add", ["z", "p"], ["t"]), NODE("Gelu", ["t"], ["h"])]
    condensed(network(nodes, reader={}, p=pixels, **stored), 3)


@pytest.mark.parametrize(("second", "left"), [(1.0, 3), (1.5, 6)])
def test_slopes_must_agree(second: float, left: int) -> None:
    slope = np.r_[np.full(3, 0.1), np.full(3, 0.1 * second)].reshape(6, 1, 1)
    nodes = [NODE("PRelu", ["z", "slope"], ["h"])]
    condensed(network(nodes, reader=SAME, slope=slope, **copies()), left)


@pytest.mark.parametrize(("gate", "left"), [("Sigmoid", 3), ("HardSigmoid", 3)])
@pytest.mark.parametrize("alike", [True, False])
def test_gates_from_the_mean_of_each_channel(gate: str, left: int, alike: bool) -> None:
    """Squeeze and excitation: both factors must be copies."""
    rng = np.random.default_rng(0)
    reduce, expand = rng.standard_normal((2, 6, 1, 1)), rng.standard_normal((6, 2, 1, 1))
    if alike:
        expand[3:] = expand[:3]
    nodes = [
        NODE("Relu", ["z"], ["r"]),
        NODE("GlobalAveragePool", ["r"], ["p"]),
        NODE("Conv", ["p", "reduce"], ["s"]),
        NODE("Relu", ["s"], ["s2"]),
        NODE("Conv", ["s2", "expand"], ["e"]),
        NODE(gate, ["e"], ["g"]),
        NODE("Mul", ["r", "g"], ["h"]),
    ]
    proto = network(nodes, reader=SAME, reduce=reduce, expand=expand, **copies())
    condensed(proto, left if alike else 6, 2)


# ---- places of the channel axis ----

AROUND: dict[str, Any] = {"kernel_shape": [3, 3], **SAME}
PRODUCT = NODE("MatMul", ["k", "u"], ["y"])
MOVED = {
    "convolved across": [NODE("Transpose", ["h"], ["t"], perm=[0, 2, 1, 3]), NODE("Conv", ["t", "v"], ["y"])],
    "pooled": [NODE("Transpose", ["h"], ["t"], perm=[0, 2, 3, 1]), NODE("MaxPool", ["t"], ["k"], **AROUND), PRODUCT],
    "averaged": [NODE("Transpose", ["h"], ["t"], perm=[0, 3, 2, 1]), NODE("LpPool", ["t"], ["k"], **AROUND), PRODUCT],
    "reduced": [NODE("ReduceMean", ["h", "one"], ["k"]), PRODUCT],
    "reduced to one": [NODE("ReduceMax", ["h"], ["k"]), NODE("MatMul", ["k", "line"], ["y"])],
    "reduced from behind": [NODE("ReduceSum", ["h", "back"], ["k"], keepdims=0), PRODUCT],
    "shifted": [NODE("Pad", ["h", "pads"], ["k"]), NODE("Conv", ["k", "v"], ["y"])],
    "resized": [NODE("Resize", ["h", "", "scales"], ["k"], mode="nearest"), PRODUCT],
    "mixed with pixels": [NODE("Reshape", ["h", "wrong"], ["k"]), PRODUCT],
    "flattened late": [NODE("Flatten", ["h"], ["f"], axis=2), NODE("MatMul", ["f", "pixels"], ["y"])],
    "multiplied elsewhere": [NODE("MatMul", ["h", "u"], ["y"])],
    "places of maxima": [
        NODE("MaxPool", ["h"], ["p", "i"], kernel_shape=[2, 2]),
        NODE("Cast", ["i"], ["c"], to=1),
        NODE("Add", ["p", "c"], ["k"]),
        NODE("Conv", ["k", "v"], ["y"]),
    ],
}
AXES: dict[str, Array] = {
    "v": np.random.default_rng(0).standard_normal((4, 6, 3, 3)),
    "u": np.random.default_rng(0).standard_normal((6, 4)),
    "pixels": np.random.default_rng(0).standard_normal((36, 4)),
    "line": np.ones((1, 4)),
    "one": np.array([1]),
    "back": np.array([-3]),
    "pads": np.array([0, 1, 0, 0, 0, -1, 0, 0]),
    "scales": np.array([1, 2, 1, 1], np.float32),
    "wrong": np.array([0, 36, 6]),
}


@pytest.mark.parametrize("case", MOVED)
def test_what_touches_the_channel_axis_keeps_it(case: str) -> None:
    """The image is as high as it has channels, so that sizes alone do not tell the axes apart."""
    nodes = MOVED[case]
    names = {n for node in nodes for n in node.input}
    stored: dict[str, Array] = {n: v for n, v in AXES.items() if n in names}
    assert refused(network([*RELU, *nodes], **copies(), **stored))


@pytest.mark.parametrize(
    ("op", "names", "attributes", "offset"),
    [
        ("Pad", ("pads",), {"mode": "reflect"}, 3),
        ("Pad", ("pads",), {"mode": "edge"}, 3),
        ("Pad", ("pads", "value"), {}, 6),
        ("Pad", ("crop",), {}, 3),
        ("Resize", ("", "scales"), {"mode": "linear"}, 3),
        ("Resize", ("", "scales"), {"mode": "cubic", "exclude_outside": 1}, 3),
        ("Resize", ("", "", "sizes"), {"mode": "nearest"}, 3),
        ("AveragePool", (), {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1, "count_include_pad": 1}, 6),
        ("AveragePool", (), {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}, 3),
        ("Resize", ("roi", "scales"), {"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize"}, 6),
        ("ReduceSum", ("width",), {}, 6),
        ("ReduceMean", ("width",), {}, 3),
        ("LpPool", (), {"kernel_shape": [2, 2]}, 6),
        ("MaxPool", (), {"kernel_shape": [3, 3], "dilations": [2, 2], "pads": [2, 2, 2, 2]}, 3),
    ],
)
def test_what_happens_beside_the_image(op: str, names: tuple[str, ...], attributes: Any, offset: int) -> None:
    """Copies with a factor and an offset: at most as many merge as the op lets pass, and outputs are equal."""
    stored: dict[str, Array] = {
        "pads": np.array([0, 0, 1, 1, 0, 0, 2, 1]),
        "crop": np.array([0, 0, -1, 0, 0, 0, 0, -1]),
        "value": np.array(0.7),
        "scales": np.array([1, 1, 2, 1.5], np.float32),
        "sizes": np.array([2, 6, 9, 12]),
        "roi": np.array([0, 0, -0.2, 0, 1, 1, 1.2, 1]),
        "width": np.array([3]),
    }
    nodes = [NODE("Relu", ["z"], ["r"]), NODE("Mul", ["r", "k"], ["m"]), NODE("Add", ["m", "d"], ["n"])]
    nodes.append(NODE(op, ["n", *names], ["h"], **attributes))
    factors, offsets = np.r_[1, 1, 1, 2, 2, 3.0].reshape(6, 1, 1), np.linspace(-1, 1, 6).reshape(6, 1, 1)
    used: dict[str, Array] = {n: v for n, v in stored.items() if n in names}
    used["v"] = np.random.default_rng(0).standard_normal((4, 6, 1, 1))
    proto = network(nodes, (2, *SHAPE[1:]), reader={}, k=factors, d=offsets, **used, **copies(1, 1))
    done = lossless(proto)
    assert done.widths() in ([offset], [])
    assert_same(proto, done.proto)


HEADS = {
    "flatten": [NODE("Flatten", ["h"], ["f"])],
    "flatten from behind": [NODE("Flatten", ["h"], ["f"], axis=-3)],
    "rest": [NODE("Reshape", ["h", "rest"], ["f"])],
    "number": [NODE("Reshape", ["h", "number"], ["f"])],
    "two steps": [NODE("Reshape", ["h", "lines"], ["k"]), NODE("Flatten", ["k"], ["f"])],
    "squeezed": [NODE("Unsqueeze", ["h", "axis"], ["k"]), NODE("Flatten", ["k"], ["f"])],
    "last": [NODE("Transpose", ["h"], ["k"], perm=[0, 2, 3, 1]), NODE("Reshape", ["k", "number"], ["f"])],
    "middle": [NODE("Transpose", ["h"], ["k"], perm=[0, 2, 1, 3]), NODE("Flatten", ["k"], ["f"])],
}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("tail", ["Gemm", "MatMul"])
def test_one_channel_owns_its_pixels_in_a_head(head: str, tail: str) -> None:
    """Scaled copies, constants and a channel of which one pixel is read."""
    weight, bias = rows(0, 1, 2)
    weight, bias = np.r_[weight, np.zeros((2, 3, 3, 3))], np.r_[bias, 0.5, 1.5]
    u = np.random.default_rng(0).standard_normal((288, 4))
    shapes: dict[str, Array] = {
        "rest": np.array([0, -1]),
        "number": np.array([-1, 288]),
        "lines": np.array([0, 8, -1]),
        "axis": np.array([1]),
    }
    names = {n for node in HEADS[head] for n in node.input}
    stored: dict[str, Array] = {n: v for n, v in shapes.items() if n in names}
    nodes = [*RELU, *HEADS[head], NODE(tail, ["f", "u"], ["y"])]
    condensed(network(nodes, w=weight, b=bias, u=u, **stored), 3)


@pytest.mark.parametrize("pixel", [0, 17, 35])
def test_a_channel_of_which_one_pixel_is_read_stays(pixel: int) -> None:
    weight, bias = rows(0, 1, 1)
    u = np.random.default_rng(0).standard_normal((6, 36, 4))
    u[3:] = 0.0
    nodes = [NODE("Gelu", ["z"], ["h"]), NODE("Flatten", ["h"], ["f"]), NODE("MatMul", ["f", "u"], ["y"])]
    bias[3:] += 1
    condensed(network(nodes, w=weight, b=bias, u=u.reshape(216, 4)), 3)
    u[4, pixel, 1] = 1e-3
    condensed(network(nodes, w=weight, b=bias, u=u.reshape(216, 4)), 4)


@pytest.mark.parametrize("value", [0.0, 0.7])
def test_a_border_that_is_not_zero_takes_no_factor(value: float) -> None:
    nodes = [NODE("Relu", ["z"], ["r"]), NODE("Pad", ["r", "pads", "value"], ["h"])]
    proto = network(nodes, reader={}, pads=np.array([0, 0, 1, 1, 0, 0, 1, 1]), value=np.array(value), **copies(1, 2))
    done = lossless(proto)
    assert done.widths() in ([[6], []] if value else [[3]])
    assert_same(proto, done.proto)


def test_a_channel_of_which_one_tap_is_read_stays() -> None:
    v = np.random.default_rng(0).standard_normal((4, 6, 3, 3))
    v[:, 3:] = 0.0
    stored: dict[str, Array] = {"w": np.random.default_rng(1).standard_normal((6, 3, 3, 3)), "b": np.arange(6.0)}
    condensed(network([NODE("Gelu", ["z"], ["h"])], reader=SAME, v=v, **stored), 3)
    v[1, 4, 2, 2] = 1e-3
    condensed(network([NODE("Gelu", ["z"], ["h"])], reader=SAME, v=v, **stored), 4)


@pytest.mark.parametrize(("moved", "left"), [(False, 2), (True, 4)])
def test_pixels_of_one_channel_are_apart(*, moved: bool, left: int) -> None:
    """Rows of a layer behind a head that read the same channels at other pixels are no copies."""
    rng = np.random.default_rng(0)
    u = np.repeat(rng.standard_normal((2, 3, 36)), 2, 0)
    if moved:
        u[1::2] = np.roll(u[::2], 1, -1)
    stored: dict[str, Array] = {"u": u.reshape(4, -1).T, "end": rng.standard_normal((4, 2)), **copies(1)}
    nodes = [*RELU, NODE("Flatten", ["h"], ["f"]), NODE("MatMul", ["f", "u"], ["k"]), NODE("Relu", ["k"], ["l"])]
    condensed(network([*nodes, NODE("MatMul", ["l", "end"], ["y"])], **stored), 3, left)


def test_a_head_over_a_fixed_batch() -> None:
    """Samples and pixels side by side in one row."""
    u = np.random.default_rng(0).standard_normal((432, 4))
    nodes = [*RELU, NODE("Flatten", ["h"], ["f"], axis=0), NODE("MatMul", ["f", "u"], ["y"])]
    proto = network(nodes, (2, *SHAPE[1:]), u=u, **copies())
    done = lossless(proto)
    assert done.widths() in ([3], [])
    assert_same(proto, done.proto)


@pytest.mark.parametrize("op", ["Conv", "Gemm"])
def test_biases_of_a_wrong_length_stay_as_they_are(op: str) -> None:
    """The checker and strict shape inference let them pass; ONNX Runtime does not, and says so."""
    w, b = rows(0, 1.0, 1.0)
    size = len(w)
    if op == "Conv":
        nodes = [NODE("Relu", ["z"], ["h"]), NODE("Conv", ["h", "v", "c"], ["y"])]
        proto = network(nodes, w=w, b=b, v=np.ones((2, size, 3, 3)), c=np.ones(4))
    else:
        nodes = [NODE("Relu", ["z"], ["h"]), NODE("GlobalAveragePool", ["h"], ["p"]), NODE("Flatten", ["p"], ["f"])]
        proto = network([*nodes, NODE("Gemm", ["f", "u", "c"], ["y"])], w=w, b=b, u=np.ones((size, 2)), c=np.ones(4))
    with pytest.raises(ModelError, match="ONNX Runtime"):
        condense(proto)
    lossless(proto)
