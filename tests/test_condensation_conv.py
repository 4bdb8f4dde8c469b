"""Merging by direction in convolutional networks: what is folded, tied, or takes several columns."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from mlps import Array, Net
from planted_rows import IMAGE, Planted, merged, norm, planted

# ---- convolutions ----


@pytest.mark.parametrize("bias", [False, True])
def test_batch_normalization_is_folded_for_the_comparison(bias: bool) -> None:
    p = planted()
    rows, shift = p.rows(3, 3, 3), p.rows()
    net = Net({"x": IMAGE})
    z, raw = norm(net, "z", "n", p, rows, shift)
    own = [net.weight("b", np.zeros(15))] if bias else []
    conv = onnx.helper.make_node("Conv", ["x", net.weight("w", raw), *own], ["z"], name="first", pads=[1] * 4)
    net.nodes.insert(0, conv)
    h = net.node("Relu", z)
    net.node("Conv", h, net.weight("v", p.columns(4, 3, 3)), out="y", pads=[1] * 4)
    proto = net.model({"y": ["N", 4, 6, 6]})
    done = merged(proto)
    assert done.widths() == {"z": 5}
    assert done.off() < 1e-5
    # It stays in the file.
    assert [n.op_type for n in done.after.graph.node] == [n.op_type for n in proto.graph.node]


def bottleneck(p: Planted, kernels: Array, *, early: bool = False, shift: bool = True) -> onnx.ModelProto:
    """Conv 1x1, ReLU, depthwise conv, BatchNormalization, ReLU, Conv 1x1; early: one more reader before the kernels.

    kernels: [C, 1, 3, 3], scaled against the base by what scales them beyond their rows.
    """
    net = Net({"x": IMAGE})
    z = net.node("Conv", "x", net.weight("e", p.rows(3, 1, 1)), net.weight("eb", p.rows()), out="z")
    h = net.node("Relu", z)
    lengths = np.linalg.norm(kernels.reshape(len(kernels), -1), axis=1)
    level = p.rng.standard_normal(p.of.max() + 1)[p.of] * lengths * p.scale if shift else np.zeros(len(kernels))
    place = len(net.nodes)
    d, raw = norm(net, "d", "n", p, kernels, level)
    net.nodes.insert(
        place, onnx.helper.make_node("Conv", [h, net.weight("k", raw)], ["d"], pads=[1] * 4, group=len(raw))
    )
    y = net.node("Conv", net.node("Relu", d), net.weight("v", p.columns(4, 1, 1)))
    if early:
        y = net.node("Add", y, net.node("Conv", h, net.weight("u", p.columns(4, 1, 1))))
    net.node("Identity", y, out="y")
    return net.model({"y": ["N", 4, 6, 6]})


@pytest.mark.parametrize("early", [False, True])
def test_rows_and_depthwise_kernels_go_together(early: bool) -> None:
    """Scales of both multiply; a reader between the two sees those of the rows alone."""
    p = planted()
    strength = np.exp(p.rng.uniform(-1, 1, 15))
    done = merged(bottleneck(p, p.rows(1, 3, 3, scale=strength), early=early))
    assert done.widths() == {"z": 5}
    assert done.off() < 1e-5


def test_parallel_rows_with_other_kernels_stay() -> None:
    p = planted()
    done = merged(bottleneck(p, p.rng.standard_normal((15, 1, 3, 3))), 0.9)
    assert done.widths() == {}


def test_cosines_of_rows_and_kernels_multiply() -> None:
    p = planted(base=1, copies=2)
    kernels = np.zeros((2, 1, 3, 3))
    kernels[:, 0, 0, 0], kernels[1, 0, 0, 1] = (1.0, 0.8), 0.6
    done = merged(bottleneck(p, kernels, shift=False), 0.79)
    np.testing.assert_allclose(done.orders.directions[0].cosine, [[1, 0.8], [0.8, 1]], atol=1e-6)
    assert done.widths() == {"z": 1}


def test_writers_of_a_sum_are_one_row() -> None:
    """Two convolutions add up; channels parallel in both of them merge if both have one factor."""
    for apart, width in ((False, 5), (True, 15)):
        p = planted()
        scale = p.scale * [1 + p.of[:i].tolist().count(base) for i, base in enumerate(p.of)] if apart else None
        net = Net({"x": IMAGE})
        a = net.node("Conv", "x", net.weight("a", p.rows(3, 1, 1)), out="a1")
        b = net.node("Conv", "x", net.weight("b", p.rows(3, 3, 3, scale=scale)), pads=[1] * 4)
        h = net.node("Relu", net.node("Add", a, b))
        net.node("Conv", h, net.weight("v", p.columns(2, 1, 1)), out="y")
        done = merged(net.model({"y": ["N", 2, 6, 6]}), 0.99999)
        assert done.widths().get("a1", 15) == width
        assert done.off() < 1e-5


def test_groups_of_a_convolution() -> None:
    """What a grouped convolution reads is tied across its groups, and so is what it writes."""
    p = planted(base=3, copies=2)
    net = Net({"x": IMAGE})
    rows = np.concatenate([p.rows(3, 1, 1), p.rows(3, 1, 1)])
    h = net.node("Relu", net.node("Conv", "x", net.weight("w", rows), out="z"))
    g = net.weight("g", np.concatenate([p.columns(6, 3, 3), p.columns(6, 3, 3)]))
    h = net.node("Relu", net.node("Conv", h, g, pads=[1] * 4, group=2))
    net.node("Conv", h, net.weight("v", p.rng.standard_normal((2, 12, 1, 1))), out="y")
    done = merged(net.model({"y": ["N", 2, 6, 6]}))
    assert done.widths() == {"z": 3}
    assert done.off() < 1e-5


def test_channels_that_own_several_columns() -> None:
    p = planted()
    net = Net({"x": IMAGE})
    h = net.node("Relu", net.node("Conv", "x", net.weight("w", p.rows(3, 3, 3)), out="z"))
    h = net.node("Flatten", net.node("MaxPool", h, kernel_shape=[2, 2], strides=[2, 2]))
    net.node("Gemm", h, net.weight("v", p.rng.standard_normal((15 * 4, 3))), out="y")
    done = merged(net.model({"y": ["N", 3]}))
    assert done.widths() == {"z": 5}
    assert done.off() < 1e-5


def test_readers_that_share_a_weight() -> None:
    p = planted()
    net = Net({"x": ["N", 6], "u": ["N", 6]})
    w, v = net.weight("w", p.rows(6).T), net.weight("v", p.columns(2).T)
    heads = [net.node("MatMul", net.node("Relu", net.node("MatMul", i, w)), v) for i in ("x", "u")]
    net.node("Add", *heads, out="y")
    done = merged(net.model({"y": ["N", 2]}))
    assert sum(done.widths().values()) == 5
    assert len(done.after.graph.initializer) == 2
    assert done.off() < 1e-5
