"""What readers with windows read, cut out of activations by numpy: an independent reference."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from mlps import Array, Net

from onnx_condense.evidence.columns import Builder, Columns
from onnx_condense.fit.reading import find_readers
from onnx_condense.network.model import Network
from onnx_condense.plan import Moments
from onnx_condense.runtime import Runtime, run
from onnx_condense.spaces import find_spaces

RUNTIME = Runtime(threads=1)
EPS = float(np.finfo(np.float32).eps)


@dataclasses.dataclass(frozen=True)
class Geometry:
    """A kernel and how it moves; what is left empty is not written into the node."""

    kernel: tuple[int, ...]
    pads: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    auto_pad: str = ""

    @property
    def attributes(self) -> dict[str, Any]:
        """The node's, kernel_shape left to the weight."""
        lists = {"pads": self.pads, "strides": self.strides, "dilations": self.dilations}
        given: dict[str, Any] = {name: list(value) for name, value in lists.items() if value}
        return given | ({"auto_pad": self.auto_pad} if self.auto_pad else {})

    def sides(self, axis: int, size: int) -> tuple[int, int]:
        """Zeros before and behind one spatial axis, by the operator's definition."""
        extent = (self.kernel[axis] - 1) * (self.dilations or (1,) * 9)[axis] + 1
        if self.auto_pad.startswith("SAME"):
            stride = (self.strides or (1,) * 9)[axis]
            total = max((math.ceil(size / stride) - 1) * stride + extent - size, 0)
            small, large = total // 2, total - total // 2
            return (small, large) if self.auto_pad == "SAME_UPPER" else (large, small)
        if not self.pads:
            return 0, 0
        return self.pads[axis], self.pads[axis + len(self.kernel)]

    def patches(self, x: Array) -> Array:
        """[N, C, size...] -> [N, P, C T]: channel by channel, tap by tap."""
        axes = range(len(self.kernel))
        x = np.pad(x, [(0, 0), (0, 0), *(self.sides(a, x.shape[a + 2]) for a in axes)])
        strides, dilations = (given or (1,) * len(self.kernel) for given in (self.strides, self.dilations))
        spans = [(k - 1) * d + 1 for k, d in zip(self.kernel, dilations, strict=True)]
        starts = [range(0, x.shape[a + 2] - spans[a] + 1, strides[a]) for a in axes]
        cut = [
            x[:, :, *(slice(s, s + spans[a], dilations[a]) for a, s in enumerate(at))].reshape(len(x), -1)
            for at in itertools.product(*starts)
        ]
        return np.stack(cut, axis=1)


GEOMETRIES = {
    "1d": Geometry((3,), pads=(1, 1)),
    "1d asymmetric": Geometry((4,), pads=(0, 3), strides=(2,), dilations=(2,)),
    "2d": Geometry((3, 3), pads=(1, 1, 1, 1)),
    "2d asymmetric": Geometry((3, 2), pads=(2, 0, 1, 3)),
    "2d without pads": Geometry((2, 3)),
    "2d strides": Geometry((3, 3), pads=(1, 1, 1, 1), strides=(2, 3)),
    "2d dilations": Geometry((3, 2), pads=(2, 1, 0, 1), dilations=(2, 3)),
    "2d everything": Geometry((2, 3), pads=(1, 2, 0, 1), strides=(3, 2), dilations=(2, 1)),
    "2d same upper": Geometry((2, 4), strides=(2, 1), auto_pad="SAME_UPPER"),
    "2d same lower": Geometry((2, 4), strides=(2, 1), auto_pad="SAME_LOWER"),
    "2d same upper, strides": Geometry((4, 4), strides=(3, 2), auto_pad="SAME_UPPER"),
    "2d valid": Geometry((3, 2), strides=(2, 1), auto_pad="VALID"),
    "2d not set": Geometry((3, 2), pads=(1, 0, 0, 1), auto_pad="NOTSET"),
    "one tap": Geometry((1, 1)),
    "one tap with strides": Geometry((1, 1), strides=(2, 3)),
    "one tap with pads": Geometry((1, 1), pads=(1, 0, 2, 1)),
    "3d": Geometry((2, 3, 2), pads=(1, 0, 1, 0, 2, 1), strides=(1, 2, 1), dilations=(1, 1, 2)),
}
SIZES = {1: (11,), 2: (7, 8), 3: (5, 6, 4)}
every_geometry = pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES.keys())


# ---- networks, and what is read in them ----


def conv_net(
    geometry: Geometry, *, opset: int = 17, dtype: type[Any] = np.float32, size: Sequence[int | str] = ()
) -> onnx.ModelProto:
    """Chain x [N, 2, size...] -> Conv of one tap -> t [N, 5, size...] -> the reader, Conv of the geometry -> y."""
    rng = np.random.default_rng(len(geometry.kernel))
    spatial = len(geometry.kernel)
    shape = ["N", 2, *(size or SIZES[spatial])]
    net = Net({"x": shape}, opset=opset, dtype=dtype)
    first = net.weight("v", rng.standard_normal((5, 2, *(1,) * spatial)))
    net.node("Tanh", net.node("Conv", "x", first), out="t")
    weight = net.weight("w", rng.standard_normal((4, 5, *geometry.kernel)))
    net.node("Conv", "t", weight, net.weight("b", rng.standard_normal(4)), out="y", **geometry.attributes)
    return net.model({"y": ["N", 4, *(f"out{i}" for i in range(spatial))]})


def fetch(model: onnx.ModelProto, feed: Mapping[str, Array], *names: str, optimize: bool = True) -> list[Array]:
    """Tensors of a network, inner ones too."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return run(RUNTIME.session(copy, optimize=optimize), feed)


def rows_of(model: onnx.ModelProto, columns: Columns, rank: int, feed: Mapping[str, Array]) -> Array:
    """What the nodes lay out."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    rows = Builder(copy, {columns.tensor: rank}).rows(columns)
    (found,) = fetch(copy, feed, rows)
    return found


def reader_columns(model: onnx.ModelProto) -> tuple[Columns, Array]:
    """The columns of the only reader of t, and its weight [O, Q]."""
    network = Network(model)
    view = find_spaces(network)
    (readers,) = find_readers(network, view, [s for s in view.spaces if s.reducible])
    return readers.columns[0], readers.weight


def moments_by_definition(left: Array, right: Array) -> Moments:
    """Of [n, K] and [n, L], or with the columns of a channel pooled: of [n, b, K] and [n, b, L]."""
    left, right = left.astype(np.float64), right.astype(np.float64)
    means = left.mean(0), right.mean(0)
    product = np.zeros((left.shape[-1], right.shape[-1]))
    for a, b in zip(left - means[0], right - means[1], strict=True):
        product += np.atleast_2d(a).T @ np.atleast_2d(b)
    return Moments(len(left), *means, product)


def assert_close(found: Moments, expected: Moments) -> None:
    """Up to sums of products in fp32; means are subtracted before, so that errors are relative to the spread."""
    assert found.count == expected.count
    bound = 2 * EPS * expected.count**0.5
    for name in ("left", "right", "product"):
        a, b = getattr(found, name), getattr(expected, name)
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=bound, atol=bound * max(float(np.abs(b).max()), 1.0))
