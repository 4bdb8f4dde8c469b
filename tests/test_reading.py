"""Which columns readers weigh, whose they are, and which of them are pooled."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from mlps import Net, mlp, weight_of

from onnx_condense.evidence.columns import Columns
from onnx_condense.fit.reading import Readers, find_readers, pooled
from onnx_condense.network.model import Network
from onnx_condense.plan import PINNED, ChannelSpace, ChannelView, IntArray
from onnx_condense.spaces import find_spaces

EVERY = slice(None)


def read(model: onnx.ModelProto) -> tuple[ChannelView, list[Readers]]:
    network = Network(model)
    view = find_spaces(network)
    return view, find_readers(network, view, [s for s in view.spaces if s.reducible])


def space(view: ChannelView, name: str) -> ChannelSpace:
    return next(s for s in view.spaces if s.name == name)


def conv_net(head: str = "flatten", middle: int = 4) -> onnx.ModelProto:
    """Chain x [N, 2, 4, 3] -> Conv c0 [5] -> Relu -> Conv c1 [middle] -> Relu -> head of one Gemm -> y [N, 3]."""
    rng, net = np.random.default_rng(0), Net({"x": ["N", 2, 4, 3]})
    net.node("Conv", "x", net.weight("w0", rng.standard_normal((5, 2, 3, 3))), pads=[1, 1, 1, 1], out="c0")
    second = net.weight("w1", rng.standard_normal((middle, 5, 2, 3)))
    net.node("Conv", net.node("Relu", "c0"), second, pads=[0, 1, 1, 1], dilations=[1, 1], out="c1")
    h = net.node("Relu", "c1", out="h")
    if head == "nhwc":
        h = net.node("Transpose", h, perm=[0, 2, 3, 1])
    net.node(
        "Gemm", net.node("Flatten", h, out="flat"), net.weight("w2", rng.standard_normal((middle * 12, 3))), out="y"
    )
    return net.model({"y": ["N", 3]})


def test_a_convolution_owns_its_taps_channel_by_channel() -> None:
    view, readers = read(conv_net())
    conv = next(r for r in readers if r.columns[0].window)
    channels = space(view, "c0").channels
    np.testing.assert_array_equal(conv.labels, np.repeat(channels, 6))
    (columns,) = conv.columns
    assert (columns.axis, columns.per_channel, columns.take) == (1, 0, 0)
    window = columns.window
    assert window is not None
    assert (window.kernel, window.taps) == ((2, 3), 6)
    assert dict(window.attributes) == {"pads": (0, 1, 1, 1), "dilations": (1, 1)}
    np.testing.assert_array_equal(conv.owned(space(view, "c0"), EVERY), np.arange(30).reshape(5, 6))
    np.testing.assert_array_equal(conv.weight, weight_of(conv_net(), "w1").reshape(4, 30))


@pytest.mark.parametrize("head", ["flatten", "nhwc"])
def test_a_head_owns_the_positions_of_each_channel(head: str) -> None:
    view, readers = read(conv_net(head))
    gemm = next(r for r in readers if not r.columns[0].window)
    maps = space(view, "c1")
    assert gemm.columns == (Columns("flat", 1),)
    by_channel = head == "flatten"
    owned = np.arange(48).reshape(4, 12) if by_channel else np.arange(48).reshape(12, 4).T
    np.testing.assert_array_equal(gemm.labels[owned], np.repeat(maps.channels[:, None], 12, axis=1))
    np.testing.assert_array_equal(gemm.owned(maps, EVERY), owned)

    alike = pooled(gemm, 1)
    assert alike is not None
    (columns,) = alike.columns
    assert columns == Columns("flat", 1, per_channel=12, by_channel=by_channel)
    assert alike.pooled == 12
    np.testing.assert_array_equal(alike.labels, maps.channels)
    np.testing.assert_array_equal(alike.owned(maps, EVERY), np.arange(4)[:, None])
    for output, position, channel in ((0, 0, 0), (2, 7, 3), (1, 11, 2)):
        expected = gemm.weight[output, owned[channel, position]]
        assert alike.weight[output * 12 + position, channel] == expected
    np.testing.assert_array_equal(alike.matrix(alike.weight), gemm.weight)
    assert gemm.matrix(gemm.weight) is gemm.weight


def test_the_taps_of_a_convolution_are_pooled() -> None:
    view, readers = read(conv_net())
    conv = next(r for r in readers if r.columns[0].window)
    alike = pooled(conv, 6)
    assert alike is not None
    assert (alike.columns[0].per_channel, alike.columns[0].by_channel) == (6, True)
    assert alike.columns[0].window == conv.columns[0].window
    np.testing.assert_array_equal(alike.labels, space(view, "c0").channels)
    np.testing.assert_array_equal(alike.weight[6 * 2 + 4], conv.weight[2, 4::6])
    np.testing.assert_array_equal(alike.matrix(alike.weight), conv.weight)
    changed = alike.weight.copy()
    changed[:, 3] = 0
    np.testing.assert_array_equal(np.flatnonzero((alike.matrix(changed) == 0).all(axis=0)), np.arange(18, 24))


def loose(labels: Sequence[int]) -> Readers:
    """A reader of one output whose columns belong to the given channels."""
    weight = np.arange(float(len(labels)))[None]
    return Readers((0,), (Columns("t", 1),), weight, np.array(labels, np.int64), 0)


@pytest.mark.parametrize(
    "labels",
    [
        [1, 1, 2, 1, 2, 2],
        [1, 1, 2],
        [1, 1, 2, 2, 2, 2],
        [1, 2, 2, 1],
        [PINNED, 1, 1, 2, 2],
        [PINNED, 1, 1, 2, 2, PINNED],
        [1, 2, 3],
        [PINNED, PINNED],
    ],
)
def test_uneven_owners_are_not_pooled(labels: list[int]) -> None:
    assert pooled(loose(labels), 1) is None


def test_channels_are_not_pooled_over_groups() -> None:
    """Every group of rows reads columns of its own, though a channel lies in all groups."""
    labels = [1, 2, 3, 1, 2, 3]
    assert pooled(loose(labels), 1) is not None
    assert pooled(dataclasses.replace(loose(labels), groups=2), 1) is None


@pytest.mark.parametrize(
    ("labels", "channels", "by_channel"),
    [
        ([1, 1, 2, 2, 3, 3], [1, 2, 3], True),
        ([1, 2, 3, 1, 2, 3], [1, 2, 3], False),
        ([5, 5, 5], [5], True),
        ([PINNED, PINNED, 2, 2, PINNED, PINNED], [PINNED, 2, PINNED], True),
        ([PINNED, 2, PINNED, 2], [PINNED, 2], False),
    ],
)
def test_even_owners_are_pooled(labels: list[int], channels: list[int], *, by_channel: bool) -> None:
    alike = pooled(loose(labels), 1)
    assert alike is not None
    assert alike.labels.tolist() == channels
    assert alike.labels.dtype == np.int64
    assert alike.columns[0].by_channel is by_channel
    np.testing.assert_array_equal(alike.matrix(alike.weight), loose(labels).weight)


def test_the_taps_of_a_convolution_are_pooled_whoever_owns_its_channels() -> None:
    # Channel 1 comes in twice, so that it owns four columns of two taps each.
    alike = pooled(loose([1, 1, 1, 1, 2, 2]), 2)
    assert alike is not None
    assert alike.labels.tolist() == [1, 1, 2]
    assert alike.columns[0].per_channel == 2


def test_features_of_a_channel_are_padded_where_it_has_fewer() -> None:
    channels = np.array([4, 2, 9, 7])
    whole = ChannelSpace("s", channels, np.zeros(4, bool), (), ())
    found: IntArray = loose([2, 4, 2, PINNED, 7, 2]).owned(whole, EVERY)
    assert found.tolist() == [[1, -1, -1], [0, 2, 5], [-1, -1, -1], [4, -1, -1]]
    blind = loose([PINNED, 3]).owned(whole, EVERY)
    assert blind.shape == (4, 0)


def shared_conv(**second: list[int]) -> onnx.ModelProto:
    """One stored kernel [4, 4, 3, 3] used by two convolutions."""
    rng, net = np.random.default_rng(0), Net({"x": ["N", 2, 6, 6]})
    h = net.node("Conv", "x", net.weight("w0", rng.standard_normal((4, 2, 1, 1))))
    kernel = net.weight("w", rng.standard_normal((4, 4, 3, 3)))
    net.node("Conv", net.node("Tanh", h, out="a"), kernel, pads=[1, 1, 1, 1], out="s0")
    net.node("Conv", net.node("Tanh", "s0", out="b"), kernel, out="s1", **second)
    pool = net.node("Flatten", net.node("GlobalAveragePool", net.node("Tanh", "s1")))
    net.node("Gemm", pool, net.weight("v", rng.standard_normal((4, 2))), out="y")
    return net.model({"y": ["N", 2]})


def test_all_uses_of_a_shared_kernel_are_one_reader() -> None:
    view, readers = read(shared_conv(strides=[2, 2]))
    (both,) = (r for r in readers if len(r.uses) > 1)
    assert [c.tensor for c in both.columns] == ["a", "b"]
    windows = [dict(c.window.attributes) for c in both.columns if c.window]
    assert windows == [{"pads": (1, 1, 1, 1)}, {"strides": (2, 2)}]
    np.testing.assert_array_equal(both.labels, np.repeat(view.linear[both.uses[0]].columns, 9))
    alike = pooled(both, 9)
    assert alike is not None
    assert [c.per_channel for c in alike.columns] == [9, 9]
    assert [c.tensor for c in alike.columns] == ["a", "b"]


def test_readers_know_how_many_come_before() -> None:
    _, readers = read(conv_net())
    assert [(r.columns[0].tensor, r.level) for r in readers] == [("relu_1", 0), ("flat", 1)]
    _, readers = read(mlp((3, 8, 8, 8, 2)))
    assert [r.level for r in readers] == [0, 1, 2]
    # A reader that is used twice comes after both.
    _, readers = read(shared_conv())
    assert [(len(r.uses), r.level) for r in readers] == [(2, 1), (1, 2)]


def test_what_cannot_lose_channels_is_not_read() -> None:
    view, readers = read(conv_net())
    first = next(i for i, u in enumerate(view.linear) if u.taps == 9)
    assert all(first not in r.uses for r in readers)
