"""Planted redundancy goes through filters of single channels (depthwise convolutions); nothing else does."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from convnets import Array, assembled, network
from grouped import AROUND, IMAGE, group_of, reduced, shape_of, single, twice, untouched
from onnx import helper

NODE = helper.make_node
BASE, COPIES = 3, 2


# ---- depthwise ----


@dataclasses.dataclass(frozen=True)
class Filter:
    """Channels of a first convolution, filtered by m kernels each. Copies: factors on rows [C'], on kernels [m C'].

    act behind the first, then behind the filter; loose: what is added to the bias of copies (an offset).
    """

    kernels: int = 1
    conv: dict[str, Any] = dataclasses.field(default_factory=dict)
    bias: bool = True
    act: str = "Relu"
    then: str = "Identity"
    reader: dict[str, Any] = dataclasses.field(default_factory=dict)
    negative: bool = False
    loose: float = 0.0
    transposed: bool = False
    copies: int = COPIES

    def parts(self) -> dict[str, Array]:
        """Weights of the net, copies in random order."""
        rng = np.random.default_rng(5)
        m, n = self.kernels, BASE * self.copies
        of = rng.permutation(np.repeat(np.arange(BASE), self.copies))
        rows, bias = rng.standard_normal((BASE, 3, 3, 3)), rng.uniform(-1, 1, BASE)
        kernels, shift = rng.standard_normal((BASE, m, 3, 3)), rng.uniform(-1, 1, (BASE, m))
        r = np.exp(rng.uniform(-1, 1, n)) if self.act in ("Relu", "Identity") else np.ones(n)
        s = np.exp(rng.uniform(-1, 1, (n, m)))
        if self.negative:
            s *= rng.choice([-1.0, 1.0], (n, m))
        if self.copies == 1:
            r, s = np.ones(n), np.ones((n, m))
        # What is filtered is r times as large already.
        wide = kernels[of] * s[:, :, None, None]
        stored = {
            "w": rows[of] * r[:, None, None, None],
            "b": bias[of] * r,
            "k": wide if self.transposed else wide.reshape(n * m, 1, 3, 3),
            "v": rng.standard_normal((4, n * m, 3, 3)),
        }
        if self.bias:
            stored["d"] = (shift[of] * s * r[:, None] + self.loose * rng.uniform(-1, 1, (n, m))).reshape(-1)
        return stored

    def proto(self, **changes: Array) -> onnx.ModelProto:
        """The network; changes: other weights."""
        stored: dict[str, Any] = {**self.parts(), **changes}
        inputs = ["f", "k", *(["d"] if "d" in stored else [])]
        op = "ConvTranspose" if self.transposed else "Conv"
        between = [
            NODE(self.act, ["z"], ["f"]),
            NODE(op, inputs, ["g"], name="filter", group=len(stored["w"]), **self.conv),
            NODE(self.then, ["g"], ["h"]),
        ]
        return network(between, reader=self.reader, **stored)


DEPTHWISE = {
    "plain": Filter(),
    "padded": Filter(conv=AROUND),
    "asymmetric": Filter(conv={"pads": [2, 0, 0, 1]}, act="Tanh"),
    "same": Filter(conv={"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "stride": Filter(conv={"strides": [2, 1], **AROUND}, then="Relu"),
    "dilation": Filter(conv={"dilations": [2, 1], **AROUND}, reader=AROUND),
    "without bias": Filter(bias=False, conv=AROUND, reader=AROUND),
    "negative kernels": Filter(negative=True, conv=AROUND),
    "negative kernels, padded reader": Filter(negative=True, conv=AROUND, reader=AROUND),
    "negative kernels of odd": Filter(negative=True, act="Tanh", then="Tanh"),
    "offsets": Filter(loose=1.0, negative=True),
    "two kernels": Filter(kernels=2, conv=AROUND),
    "two negative kernels": Filter(kernels=2, negative=True, reader=AROUND),
    "three kernels": Filter(kernels=3, conv={**AROUND, "strides": [1, 2]}, then="Relu", bias=False),
    "three kernels and offsets": Filter(kernels=3, loose=0.5, negative=True),
    "three copies": Filter(copies=3, kernels=2, conv=AROUND, then="LeakyRelu"),
    "transposed": Filter(transposed=True),
    "transposed, strides": Filter(
        transposed=True, conv={"strides": [2, 2], **AROUND, "output_padding": [1, 1]}, then="Relu"
    ),
    "transposed, two kernels": Filter(transposed=True, kernels=2, negative=True, reader=AROUND),
    "transposed, three kernels without bias": Filter(transposed=True, kernels=3, bias=False, conv={"strides": [2, 1]}),
}


def spread(net: Filter) -> dict[str, Array]:
    """Changes that leave copies of kernels a sign, where what is behind the filter passes no other factor."""
    if net.then != "Tanh":
        return {}
    parts = net.parts()
    norm = np.abs(parts["k"]).sum(axis=(1, 2, 3), keepdims=True)
    base: dict[str, Array] = {"k": parts["k"] / norm}
    if "d" in parts:
        base["d"] = parts["d"] / norm.reshape(-1)
    return base


@pytest.mark.parametrize("net", DEPTHWISE.values(), ids=DEPTHWISE.keys())
def test_copies_go_through_a_filter(net: Filter) -> None:
    done = reduced(net.proto(**spread(net)), BASE)
    assert group_of(done.proto, "filter") == BASE
    expected = [BASE, net.kernels, 3, 3] if net.transposed else [BASE * net.kernels, 1, 3, 3]
    assert shape_of(done.proto, "k") == expected
    assert not net.bias or shape_of(done.proto, "d") == [BASE * net.kernels]


@pytest.mark.parametrize("net", DEPTHWISE.values(), ids=DEPTHWISE.keys())
def test_without_copies_a_filter_stays_byte_for_byte(net: Filter) -> None:
    untouched(dataclasses.replace(net, copies=1).proto())


@pytest.mark.parametrize("kernels", [1, 2, 3])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_copy_with_another_kernel_stays(kernels: int, *, transposed: bool) -> None:
    net = Filter(kernels=kernels, transposed=transposed, conv=AROUND)
    k = net.parts()["k"].copy()
    # The last kernel of one copy: shifted, so that sums and norms are what they were.
    k[-1, -1] = np.roll(k[-1, -1], 1, 0)
    reduced(net.proto(k=k), BASE + 1)


def test_a_copy_with_another_offset_stays_before_padding_and_activations() -> None:
    net = Filter(conv=AROUND, loose=1.0)
    reduced(net.proto(), BASE)
    untouched(dataclasses.replace(net, reader=AROUND).proto())
    untouched(dataclasses.replace(net, then="Relu").proto())


def test_opposite_kernels_stay_before_relu() -> None:
    net = Filter(conv=AROUND, then="Relu")
    parts = net.parts()
    sign = np.ones(BASE * COPIES)
    reduced(net.proto(), BASE)
    sign[0] = -1
    reduced(net.proto(k=parts["k"] * sign[:, None, None, None], d=parts["d"] * sign), BASE + 1)


def constants(levels: Sequence[float], kernels: Array, **options: Any) -> onnx.ModelProto:
    """A depthwise net with constant channels behind the three that vary, with the given kernels."""
    net = Filter(copies=1, **options)
    parts = net.parts()
    rng = np.random.default_rng(0)
    more = len(levels)
    return net.proto(
        w=np.r_[parts["w"], np.zeros((more, 3, 3, 3))],
        b=np.r_[parts["b"], levels],
        k=np.r_[parts["k"], kernels],
        d=np.r_[parts["d"], rng.uniform(0.1, 1, more)],
        v=rng.standard_normal((4, BASE + more, 3, 3)),
    )


def test_constants_through_a_filter() -> None:
    rng = np.random.default_rng(1)
    one, other = rng.standard_normal((2, 1, 1, 3, 3))
    alike, apart = np.concatenate([one, -2 * one]), np.concatenate([one, other])
    # Without padding they are numbers.
    reduced(constants([0.5, 0.7], apart), BASE)
    # With padding each is a pattern at the borders: parallel kernels make multiples of one.
    reduced(constants([0.5, 0.7], alike, conv=AROUND), BASE + 1)
    untouched(constants([0.5, 0.7], apart, conv=AROUND))
    untouched(constants([0.5, 0.7], apart, conv={"auto_pad": "SAME_LOWER"}))
    reduced(constants([0.5, 0.7], apart, conv={"auto_pad": "VALID"}), BASE)
    untouched(constants([0.5], one, conv=AROUND))
    # What Relu makes zero is zero behind every kernel; its bias is a number.
    reduced(constants([-0.5, -0.7], apart, conv=AROUND), BASE)
    # One number stays for a reader that sees zeros beside it.
    reduced(constants([0.5, 0.7], apart, reader=AROUND), BASE + 1)
    # So do kernels of zeros.
    reduced(constants([0.5, 0.7], 0 * apart, conv=AROUND), BASE)


def test_a_dead_channel_goes_with_its_kernel() -> None:
    net = Filter(kernels=2, conv=AROUND, copies=1)
    v = net.parts()["v"].copy()
    v[:, 2:4] = 0
    done = reduced(net.proto(v=v), BASE - 1)
    assert group_of(done.proto, "filter") == BASE - 1
    # Half of what a channel makes is not all of it.
    v = net.parts()["v"].copy()
    v[:, 2] = 0
    untouched(net.proto(v=v))


# ---- a block of a mobile network ----


def mobile(copies: int, *, norm: bool) -> onnx.ModelProto:
    """Stem, two inverted residual blocks with ReLU6, pooling and a head. 4 channels, 6 and 5 in the blocks."""
    rng = np.random.default_rng(2)
    stem, stem_share = twice(rng, 4, copies)
    stored: dict[str, Any] = {"low": np.array(0.0), "high": np.array(6.0)}
    nodes: list[onnx.NodeProto] = []

    def normalise(name: str, size: int, of: Array) -> str:
        if not norm:
            return name
        numbers = rng.uniform(0.5, 1.5, (4, size))[:, of]
        stored.update({f"{name}.{p}": v for p, v in zip("gsmv", numbers, strict=True)})
        nodes.append(NODE("BatchNormalization", [name, *(f"{name}.{p}" for p in "gsmv")], [f"{name}.n"]))
        return f"{name}.n"

    def conv(x: str, name: str, weight: Array, of: Array, share: Array | None, **more: Any) -> str:
        rows = len(weight)
        wide = weight if share is None else weight[:, stem_of[name]] * share[:, None, None]
        stored[f"{name}.w"] = wide[of]
        stored[f"{name}.b"] = rng.uniform(-1, 1, rows)[of]
        nodes.append(NODE("Conv", [x, f"{name}.w", f"{name}.b"], [name], name=name, **more))
        return normalise(name, rows, of)

    def clip(x: str) -> str:
        nodes.append(NODE("Clip", [x, "low", "high"], [f"{x}.c"]))
        return f"{x}.c"

    stem_of: dict[str, Array] = {}
    x = conv("x", "stem", rng.standard_normal((4, 3, 3, 3)), stem, None, pads=[1] * 4)
    for i, size in enumerate((6, 5)):
        inner, inner_share = twice(rng, size, copies)
        stem_of |= {f"up{i}": stem, f"down{i}": inner}
        h = clip(conv(x, f"up{i}", rng.standard_normal((size, 4, 1, 1)), inner, stem_share))
        more = {"group": len(inner), "strides": [1, 1], **AROUND}
        h = clip(conv(h, f"deep{i}", rng.standard_normal((size, 1, 3, 3)), inner, None, **more))
        h = conv(h, f"down{i}", rng.standard_normal((4, size, 1, 1)), stem, inner_share)
        nodes.append(NODE("Add", [x, h], [f"sum{i}"]))
        x = f"sum{i}"
    head = rng.standard_normal((5, 4))[:, stem] * stem_share
    stored |= {"head.w": head, "head.b": rng.standard_normal(5)}
    nodes += [
        NODE("GlobalAveragePool", [x], ["pool"]),
        NODE("Flatten", ["pool"], ["flat"]),
        NODE("Gemm", ["flat", "head.w", "head.b"], ["y"], transB=1),
    ]
    return assembled(nodes, single(stored), IMAGE)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("copies", [2, 3])
def test_inverted_residual_blocks(copies: int, *, norm: bool) -> None:
    done = reduced(mobile(copies, norm=norm), 4, 6, 5)
    assert [group_of(done.proto, f"deep{i}") for i in range(2)] == [6, 5]
    untouched(mobile(1, norm=norm))
