"""What a transposed convolution reads, laid out inside ONNX Runtime, is what its definition says, zeros and all."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import onnx
import pytest
from mlps import Array, Net, normal
from windows import EPS, RUNTIME, SIZES, assert_close, fetch, moments_by_definition, reader_columns, rows_of

from onnx_condense.data import input_specs, load
from onnx_condense.evidence.moments import collect, count_rows, with_itself

# ---- an independent reference ----


@dataclasses.dataclass(frozen=True)
class Spread:
    """A kernel and how its results are laid out; what is left empty is not written into the node."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    output_padding: tuple[int, ...] = ()
    output_shape: tuple[int, ...] = ()
    auto_pad: str = ""

    @property
    def attributes(self) -> dict[str, Any]:
        """The node's."""
        names = ("strides", "pads", "dilations", "output_padding", "output_shape")
        given = {n: list(getattr(self, n)) for n in names if getattr(self, n)}
        return given | ({"auto_pad": self.auto_pad} if self.auto_pad else {})

    def axis(self, a: int, size: int) -> tuple[int, int, int, int]:
        """Stride, dilation, what is cut in front, and the size of the result along one spatial axis."""
        ones, zeros = (1,) * len(self.kernel), (0,) * 2 * len(self.kernel)
        stride, dilation = (self.strides or ones)[a], (self.dilations or ones)[a]
        extent = (self.kernel[a] - 1) * dilation + 1
        full = stride * (size - 1) + (self.output_padding or zeros)[a] + extent
        if self.output_shape or self.auto_pad.startswith("SAME"):
            wanted = self.output_shape[a] if self.output_shape else stride * size
            total = max(full - wanted, 0)
            return stride, dilation, total // 2 if self.auto_pad == "SAME_UPPER" else total - total // 2, wanted
        pads = self.pads or zeros
        return stride, dilation, pads[a], full - pads[a] - pads[a + len(self.kernel)]

    def patches(self, x: Array) -> Array:
        """[N, C, size...] -> [N, P, C T]: element i of x meets tap t at place i stride + t dilation - cut."""
        axes = [self.axis(a, n) for a, n in enumerate(x.shape[2:])]
        result = np.zeros((*x.shape[:2], math.prod(self.kernel), *(size for *_, size in axes)), x.dtype)
        for number, tap in enumerate(itertools.product(*map(range, self.kernel))):
            for i in itertools.product(*map(range, x.shape[2:])):
                at = [e * s + t * d - cut for e, t, (s, d, cut, _) in zip(i, tap, axes, strict=True)]
                if all(0 <= p < size for p, (*_, size) in zip(at, axes, strict=True)):
                    source: tuple[Any, ...] = (slice(None), slice(None), *i)
                    target: tuple[Any, ...] = (slice(None), slice(None), number, *at)
                    result[target] = x[source]
        return (
            result.reshape(*x.shape[:2], result.shape[2], -1)
            .transpose(0, 3, 1, 2)
            .reshape(len(x), -1, x.shape[1] * result.shape[2])
        )


SPREADS = {
    "1d": Spread((3,)),
    "1d strides": Spread((4,), strides=(3,), pads=(1, 2)),
    "2d": Spread((3, 2)),
    "2d strides": Spread((2, 2), strides=(2, 2)),
    "2d gaps": Spread((2, 1), strides=(3, 2)),
    "2d pads": Spread((3, 3), strides=(2, 1), pads=(1, 0, 0, 2)),
    "2d output padding": Spread((3, 3), strides=(2, 2), pads=(1, 1, 1, 1), output_padding=(1, 0)),
    "2d dilations": Spread((2, 3), strides=(1, 2), pads=(0, 1, 1, 0), dilations=(2, 1)),
    "2d same upper": Spread((3, 4), strides=(2, 2), auto_pad="SAME_UPPER"),
    "2d same lower": Spread((3, 4), strides=(2, 2), auto_pad="SAME_LOWER"),
    "2d valid": Spread((3, 2), strides=(2, 1), auto_pad="VALID"),
    "2d output shape": Spread((3, 3), strides=(2, 2), output_shape=(14, 16)),
    "one tap": Spread((1, 1)),
    "one tap with pads": Spread((1, 1), pads=(1, 0, 2, 0)),
    "one tap with strides": Spread((1, 1), strides=(2, 3)),
    "one tap with output padding": Spread((1, 1), strides=(2, 2), output_padding=(1, 1)),
    "3d": Spread((2, 1, 2), strides=(1, 2, 2), pads=(1, 0, 0, 0, 0, 1)),
}
every_spread = pytest.mark.parametrize("spread", SPREADS.values(), ids=SPREADS.keys())


def up_net(spread: Spread) -> onnx.ModelProto:
    """Chain x [N, 2, size...] -> Conv of one tap -> t [N, 5, size...] -> the reader -> y [N, 4, ...]."""
    rng = np.random.default_rng(len(spread.kernel))
    spatial = len(spread.kernel)
    net = Net({"x": ["N", 2, *SIZES[spatial]]})
    first = net.weight("v", rng.standard_normal((5, 2, *(1,) * spatial)))
    net.node("Tanh", net.node("Conv", "x", first), out="t")
    weight = net.weight("w", rng.standard_normal((5, 4, *spread.kernel)))
    net.node("ConvTranspose", "t", weight, net.weight("b", rng.standard_normal(4)), out="y", **spread.attributes)
    return net.model({"y": ["N", 4, *(f"out{i}" for i in range(spatial))]})


@every_spread
def test_rows_are_what_each_place_sees_and_times_the_weight_the_result(spread: Spread) -> None:
    model = up_net(spread)
    x = normal(3, 2, *SIZES[len(spread.kernel)], seed=1)
    columns, weight = reader_columns(model)
    t, y, b = fetch(model, {"x": x}, "t", "y", "b")
    found = rows_of(model, columns, t.ndim, {"x": x})
    np.testing.assert_array_equal(found, spread.patches(t).reshape(-1, weight.shape[1]))
    answer = np.moveaxis(y, 1, -1).reshape(-1, 4)
    bound = EPS * weight.shape[1] * (np.abs(found) @ np.abs(weight).T + np.abs(b))
    assert (np.abs(found @ weight.T + b - answer) <= bound).all()


@every_spread
def test_moments_count_the_zeros_between_and_beside(spread: Spread) -> None:
    model = up_net(spread)
    x = normal(9, 2, *SIZES[len(spread.kernel)], seed=2)
    columns, weight = reader_columns(model)
    samples, ranks = load(x, input_specs(model.graph)), {"t": x.ndim}
    (found,) = collect(model, [with_itself(columns)], ranks, samples, np.arange(9), RUNTIME, batch=4)
    read = spread.patches(fetch(model, {"x": x}, "t")[0])
    assert count_rows(model, [columns], ranks, samples, np.arange(9), RUNTIME) == [read.shape[1]]
    read = read.reshape(-1, weight.shape[1])
    assert_close(found, moments_by_definition(read, read))
