"""Planted redundancy goes through groups, transposed convolutions, gates and views of weights; nothing else does."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from builders import Form
from convnets import Array, assembled, network
from grouped import AROUND, IMAGE, group_of, reduced, shape_of, single, twice, untouched
from onnx import helper, numpy_helper

NODE = helper.make_node


# ---- groups ----


def grouped(groups: int, planted: str, reader: dict[str, Any] | None = None) -> onnx.ModelProto:
    """Per group 3 channels are read, of which the last is a copy of the first "everywhere", in one group, or nowhere.

    The grouped convolution writes 2 rows per group, and they are read by a plain one.
    """
    rng = np.random.default_rng(groups)
    w, b = rng.standard_normal((groups, 3, 3, 3, 3)), rng.uniform(-1, 1, (groups, 3))
    factor = np.exp(rng.uniform(-1, 1, groups))
    where = {"everywhere": range(groups), "one": range(1), "nowhere": range(0)}[planted]
    for g in where:
        w[g, 2], b[g, 2] = factor[g] * w[g, 0], factor[g] * b[g, 0]
    between = [
        NODE("Relu", ["z"], ["f"]),
        NODE("Conv", ["f", "k", "d"], ["g"], name="groups", group=groups, **AROUND),
        NODE("Relu", ["g"], ["h"]),
    ]
    stored: dict[str, Any] = {
        "w": w.reshape(-1, 3, 3, 3),
        "b": b.reshape(-1),
        "k": rng.standard_normal((2 * groups, 3, 3, 2)),
        "d": rng.uniform(-1, 1, 2 * groups),
        "v": rng.standard_normal((4, 2 * groups, 3, 3)),
    }
    return network(between, reader=reader or {}, **stored)


@pytest.mark.parametrize("groups", [2, 4])
def test_copies_go_where_every_group_has_them(groups: int) -> None:
    done = reduced(grouped(groups, "everywhere"), 2, 2)
    assert group_of(done.proto, "groups") == groups
    assert shape_of(done.proto, "k") == [2 * groups, 2, 3, 2]
    assert shape_of(done.proto, "w") == [2 * groups, 3, 3, 3]
    untouched(grouped(groups, "one"))
    untouched(grouped(groups, "nowhere"))


def group_rows(groups: int, planted: str) -> onnx.ModelProto:
    """A grouped convolution straight behind the input writes 3 rows per group; copies as above."""
    rng = np.random.default_rng(groups)
    k, d = rng.standard_normal((groups, 3, 2, 3, 3)), rng.uniform(-1, 1, (groups, 3))
    where = {"everywhere": range(groups), "one": range(1), "nowhere": range(0)}[planted]
    for g in where:
        k[g, 2], d[g, 2] = (1.5 + g) * k[g, 0], (1.5 + g) * d[g, 0]
    stored: dict[str, Any] = {
        "k": k.reshape(-1, 2, 3, 3),
        "d": d.reshape(-1),
        "v": rng.standard_normal((5, 3 * groups, 3, 3)),
        "c": rng.standard_normal(5),
    }
    nodes = [
        NODE("Conv", ["x", "k", "d"], ["z"], name="groups", group=groups, **AROUND),
        NODE("Relu", ["z"], ["h"]),
        NODE("Conv", ["h", "v", "c"], ["y"], **AROUND),
    ]
    return assembled(nodes, single(stored), {"x": ("N", 2 * groups, 7, 6)})


@pytest.mark.parametrize("groups", [2, 4])
def test_rows_go_where_every_group_has_copies(groups: int) -> None:
    done = reduced(group_rows(groups, "everywhere"), 2)
    assert group_of(done.proto, "groups") == groups
    assert shape_of(done.proto, "k") == [2 * groups, 2, 3, 3]
    assert shape_of(done.proto, "v") == [5, 2 * groups, 3, 3]
    untouched(group_rows(groups, "one"))
    untouched(group_rows(groups, "nowhere"))


@pytest.mark.parametrize("groups", [2, 4])
def test_groups_that_are_filtered_between(groups: int) -> None:
    """A channel is then one position of every group, and the filter has as many groups as all of them together."""
    rng = np.random.default_rng(groups)
    k, d = rng.standard_normal((groups, 3, 2, 3, 3)), rng.uniform(-1, 1, (groups, 3))
    f = rng.standard_normal((groups, 3, 1, 3, 3))
    k[:, 2], d[:, 2], f[:, 2] = 2 * k[:, 0], 2 * d[:, 0], -f[:, 0]
    stored: dict[str, Any] = {
        "k": k.reshape(-1, 2, 3, 3),
        "d": d.reshape(-1),
        "f": f.reshape(-1, 1, 3, 3),
        "v": rng.standard_normal((2 * groups, 3, 3, 3)),
    }
    nodes = [
        NODE("Conv", ["x", "k", "d"], ["z"], name="groups", group=groups, **AROUND),
        NODE("Relu", ["z"], ["a"]),
        NODE("Conv", ["a", "f"], ["h"], name="filter", group=3 * groups, **AROUND),
        NODE("Conv", ["h", "v"], ["y"], name="last", group=groups),
    ]

    def proto() -> onnx.ModelProto:
        return assembled(nodes, single(stored), {"x": ("N", 2 * groups, 7, 6)})

    done = reduced(proto(), 2)
    assert [group_of(done.proto, n) for n in ("groups", "filter", "last")] == [groups, 2 * groups, groups]
    stored["f"][-1] = rng.standard_normal((1, 3, 3))
    untouched(proto())


def test_equal_rows_of_two_groups_are_no_copies() -> None:
    """They read other channels."""
    proto = group_rows(2, "nowhere")
    (k,) = (t for t in proto.graph.initializer if t.name == "k")
    array = numpy_helper.to_array(k).copy()
    array[3:] = array[:3]
    k.CopyFrom(numpy_helper.from_array(array, "k"))
    untouched(proto)


# ---- transposed ----

UP: dict[str, dict[str, Any]] = {
    "plain": {},
    "strides": {"strides": [2, 2]},
    "pads": {"strides": [2, 1], "pads": [1, 0, 0, 1]},
    "output padding": {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 0]},
    "dilations": {"dilations": [2, 1]},
    "output shape": {"strides": [2, 2], "output_shape": [12, 13]},
    "same": {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
}


def decoder(copies: int, attributes: dict[str, Any], kernel: tuple[int, int], act: str = "Relu") -> onnx.ModelProto:
    """Down, up by a transposed convolution, and a last one: 3 and 4 channels."""
    rng = np.random.default_rng(3)
    of, share = twice(rng, 3, copies)
    up, up_share = twice(rng, 4, copies)
    r, s = (np.exp(rng.uniform(-1, 1, len(v))) if act == "Relu" and copies > 1 else np.ones(len(v)) for v in (of, up))
    k = rng.standard_normal((3, 4, *kernel))[of][:, up] * (share / r)[:, None, None, None] * s[:, None, None]
    stored: dict[str, Any] = {
        "w": rng.standard_normal((3, 3, 3, 3))[of] * r[:, None, None, None],
        "b": rng.uniform(-1, 1, 3)[of] * r,
        "k": k,
        "d": rng.uniform(-1, 1, 4)[up] * s,
        "v": rng.standard_normal((4, 4, 3, 3))[:, up] * (up_share / s)[:, None, None],
    }
    between = [
        NODE(act, ["z"], ["f"]),
        NODE("ConvTranspose", ["f", "k", "d"], ["g"], name="up", **attributes),
        NODE(act, ["g"], ["h"]),
    ]
    return network(between, reader=AROUND, **stored)


@pytest.mark.parametrize("attributes", UP.values(), ids=UP.keys())
@pytest.mark.parametrize("act", ["Relu", "Softplus"])
def test_copies_around_a_transposed_convolution(attributes: dict[str, Any], act: str) -> None:
    done = reduced(decoder(2, attributes, (3, 3), act), 3, 4)
    assert shape_of(done.proto, "k") == [3, 4, 3, 3]
    assert shape_of(done.proto, "d") == [4]
    untouched(decoder(1, attributes, (3, 3), act))


def test_a_constant_before_a_transposed_convolution() -> None:
    """Spread by a kernel it is a pattern; by one tap at every place it is a number."""

    def proto(kernel: int, **attributes: Any) -> onnx.ModelProto:
        rng = np.random.default_rng(0)
        w = np.r_[rng.standard_normal((3, 3, 3, 3)), np.zeros((2, 3, 3, 3))]
        stored = {
            "w": w,
            "b": np.r_[rng.uniform(-1, 1, 3), 0.5, 0.8],
            "k": rng.standard_normal((5, 2, kernel, kernel)),
            "d": rng.uniform(-1, 1, 2),
        }
        nodes = [NODE("Relu", ["z"], ["h"]), NODE("ConvTranspose", ["h", "k", "d"], ["y"], **attributes)]
        return network(nodes, **stored)

    reduced(proto(1), 3)
    reduced(proto(1, strides=[2, 2]), 4)
    reduced(proto(3), 4)


# ---- ops that see a whole channel ----


def instance(copies: int, *, twist: str = "") -> onnx.ModelProto:
    """Exact copies, normalised image by image; twist: what one copy has of its own."""
    rng = np.random.default_rng(4)
    of, share = twice(rng, 3, copies)
    stored: dict[str, Any] = {
        "w": rng.standard_normal((3, 3, 3, 3))[of],
        "b": rng.uniform(-1, 1, 3)[of],
        "g": rng.uniform(0.5, 1.5, 3)[of],
        "s": rng.uniform(-1, 1, 3)[of],
        "v": rng.standard_normal((4, 3, 3, 3))[:, of] * share[:, None, None],
    }
    if twist:
        stored[twist][0] += 0.25
    return network(
        [NODE("InstanceNormalization", ["z", "g", "s"], ["i"]), NODE("Relu", ["i"], ["h"])], reader=AROUND, **stored
    )


def test_copies_through_instance_normalisation() -> None:
    done = reduced(instance(2), 3)
    assert shape_of(done.proto, "g") == [3]
    assert shape_of(done.proto, "s") == [3]
    untouched(instance(1))


@pytest.mark.parametrize("twist", ["w", "s"])
def test_copies_that_are_normalised_apart_stay(twist: str) -> None:
    reduced(instance(2, twist=twist), 4)


@pytest.mark.parametrize("op", ["InstanceNormalization", "Softmax"])
def test_multiples_that_are_normalised_are_no_multiples(op: str) -> None:
    """Behind the one they are copies, more or less (epsilon), behind the other something else."""
    rng = np.random.default_rng(4)
    w = rng.standard_normal((3, 3, 3, 3)) / 4
    stored: dict[str, Any] = {"w": np.r_[w, 2 * w], "v": rng.standard_normal((4, 6, 3, 3))}
    node = NODE("Softmax", ["z"], ["h"], axis=3)
    if op == "InstanceNormalization":
        stored |= {"g": np.full(6, 0.7), "s": np.full(6, 0.2)}
        node = NODE(op, ["z", "g", "s"], ["h"], epsilon=0.5)
    untouched(network([node], reader=AROUND, **stored))


def excited(copies: int) -> onnx.ModelProto:
    """Channels that a gate weighs, which is made of their means: 4 channels, squeezed to 3."""
    rng = np.random.default_rng(6)
    of, share = twice(rng, 4, copies)
    squeezed, squeezed_share = twice(rng, 3, copies)
    r = np.exp(rng.uniform(-1, 1, len(of))) if copies > 1 else np.ones(len(of))
    s = np.exp(rng.uniform(-1, 1, len(squeezed))) if copies > 1 else np.ones(len(squeezed))
    down = rng.standard_normal((3, 4, 1, 1))[squeezed][:, of] * s[:, None, None, None]
    up = rng.standard_normal((4, 3, 1, 1))[of][:, squeezed]
    stored: dict[str, Any] = {
        "w": rng.standard_normal((4, 3, 3, 3))[of] * r[:, None, None, None],
        "b": rng.uniform(-1, 1, 4)[of] * r,
        "p": down * (share / r)[:, None, None],
        "pb": rng.uniform(-1, 1, 3)[squeezed] * s,
        "q": up * (squeezed_share / s)[:, None, None],
        "qb": rng.uniform(-1, 1, 4)[of],
        "v": rng.standard_normal((4, 4, 3, 3))[:, of] * (share / r)[:, None, None],
    }
    between = [
        NODE("Relu", ["z"], ["f"]),
        NODE("GlobalAveragePool", ["f"], ["mean"]),
        NODE("Conv", ["mean", "p", "pb"], ["less"]),
        NODE("Relu", ["less"], ["few"]),
        NODE("Conv", ["few", "q", "qb"], ["more"]),
        NODE("Sigmoid", ["more"], ["gate"]),
        NODE("Mul", ["f", "gate"], ["h"]),
    ]
    return network(between, reader=AROUND, **stored)


@pytest.mark.parametrize("copies", [2, 3])
def test_a_gate_of_the_channels_themselves(copies: int) -> None:
    reduced(excited(copies), 4, 3)
    untouched(excited(1))


def test_a_copy_with_a_gate_of_its_own_stays() -> None:
    proto = excited(2)
    (q,) = (t for t in proto.graph.initializer if t.name == "q")
    array = numpy_helper.to_array(q).copy()
    array[0, 0] += 0.5
    q.CopyFrom(numpy_helper.from_array(array, "q"))
    done = reduced(proto, 5, 3)
    assert shape_of(done.proto, "w")[0] == 5


SOFT = [
    ("Softmax", 17, 2, True),
    ("Softmax", 17, 3, True),
    ("LogSoftmax", 17, -1, True),
    ("Softmax", 11, 2, True),
    ("Softmax", 11, 3, True),
    ("LpNormalization", 17, 2, True),
    ("Softmax", 17, 1, False),
    ("Softmax", 17, -3, False),
    ("Softmax", 11, 1, False),
    ("Softmax", 11, 0, False),
    ("LpNormalization", 17, 1, False),
]


@pytest.mark.parametrize(("op", "opset", "axis", "apart"), SOFT, ids=str)
def test_normalised_along_one_axis(op: str, opset: int, axis: int, *, apart: bool) -> None:
    rng = np.random.default_rng(7)
    of, share = twice(rng, 3, 2)
    stored: dict[str, Any] = {
        "w": rng.standard_normal((3, 3, 3, 3))[of],
        "b": rng.uniform(-1, 1, 3)[of],
        "v": rng.standard_normal((4, 3, 3, 3))[:, of] * share[:, None, None],
    }
    nodes = [NODE("Conv", ["x", "w", "b"], ["z"]), NODE(op, ["z"], ["h"], axis=axis), NODE("Conv", ["h", "v"], ["y"])]
    proto = assembled(nodes, single(stored), IMAGE, Form(opset=opset, ir=7))
    if apart:
        reduced(proto, 3)
    else:
        untouched(proto)


# ---- weights that are views ----


def viewed(kind: str, copies: int = 2) -> onnx.ModelProto:
    """The transposed, reshaped or unsqueezed form of what is stored is what the convolutions read."""
    rng = np.random.default_rng(8)
    of, share = twice(rng, 3, copies)
    n = len(of)
    w, k = rng.standard_normal((3, 3, 3, 3))[of], rng.standard_normal((3, 1, 3, 3))[of]
    v = rng.standard_normal((4, 3, 1, 1))[:, of] * share[:, None, None]
    stored: dict[str, Any] = {"w": w, "k": k, "v": v, "b": rng.uniform(-1, 1, 3)[of], "c": rng.standard_normal(4)}
    nodes: list[onnx.NodeProto] = []

    def view(name: str, op: str, value: Array, *operands: Array, **attributes: Any) -> None:
        names = [f"{name}.{i}" for i in range(len(operands))]
        stored.update(zip(names, operands, strict=True))
        stored[f"{name}.stored"] = value
        del stored[name]
        nodes.append(NODE(op, [f"{name}.stored", *names], [name], **attributes))

    if kind == "transposed":
        view("w", "Transpose", w.transpose(2, 3, 1, 0), perm=[3, 2, 0, 1])
        view("k", "Transpose", k.transpose(2, 3, 1, 0), perm=[3, 2, 0, 1])
        view("v", "Transpose", v.transpose(1, 0, 2, 3), perm=[1, 0, 2, 3])
    if kind == "reshaped":
        view("w", "Reshape", w.reshape(n, 27), np.array([n, 3, 3, 3]))
        view("k", "Reshape", k.reshape(n, 9), np.array([n, 1, 3, 3]))
        view("b", "Reshape", stored["b"].reshape(1, n), np.array([-1]))
    if kind == "unsqueezed":
        view("k", "Unsqueeze", k[:, 0], np.array([1]))
        view("v", "Unsqueeze", v[:, :, 0, 0], np.array([2, 3]))
    if kind == "squeezed":
        view("w", "Squeeze", w[None], np.array([0]))
        view("b", "Squeeze", stored["b"][:, None], np.array([1]))
    nodes += [
        NODE("Conv", ["x", "w", "b"], ["z"], **AROUND),
        NODE("Relu", ["z"], ["f"]),
        NODE("Conv", ["f", "k"], ["g"], name="filter", group=n, **AROUND),
        NODE("Conv", ["g", "v", "c"], ["y"]),
    ]
    return assembled(nodes, single(stored), IMAGE)


VIEWS = ["transposed", "reshaped", "unsqueezed", "squeezed"]


@pytest.mark.parametrize("kind", VIEWS)
def test_views_of_weights_are_weights(kind: str) -> None:
    done = reduced(viewed(kind), 3)
    assert group_of(done.proto, "filter") == 3
    untouched(viewed(kind, copies=1))
