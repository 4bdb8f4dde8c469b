"""Sizes that inference gets wrong, because ONNX Runtime makes others, are not certain."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from builders import assert_same_outputs, text_model

from onnx_condense import condense

POOLS = {
    "rounded up": "MaxPool<kernel_shape=[2,2], strides=[3,3], ceil_mode=1>",
    "rounded up, of averages": "AveragePool<kernel_shape=[1,1], strides=[2,2], ceil_mode=1>",
    "gaps": 'LpPool<kernel_shape=[3,3], strides=[1,1], auto_pad="SAME_UPPER", dilations=[2,2]>',
}


def pooled(pool: str) -> onnx.ModelProto:
    """What is pooled, divided by the square root of its height; neurons are stored twice."""
    rng = np.random.default_rng(0)
    text = (
        '<ir_version: 8, opset_import: ["": 18]> agraph (float[N, 3, 6, 6] x) => (float[N, 4, h, v] y) { '
        f"a = Conv(x, w) b = Relu(a) p = {pool}(b) s = Shape(p) g = Gather<axis=0>(s, two) "
        "f = Cast<to=1>(g) e = Sqrt(f) q = Div(p, e) y = Conv(q, u) }"
    )
    stored = {"w": np.repeat(rng.standard_normal((4, 3, 1, 1)), 2, 0).astype("f4"), "two": np.array([2])}
    return text_model(text, {**stored, "u": rng.standard_normal((4, 8, 1, 1)).astype("f4")})


@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
def test_sizes_that_inference_gets_wrong_are_none(pool: str) -> None:
    found = condense(pooled(pool), threads=1, allow_slower=True)
    assert found.report.spaces[0].after == 4
    assert_same_outputs(pooled(pool), found.model)


@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
def test_a_wrong_number_does_not_prove_itself(pool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were such a size believed, the network as it came would tell."""
    monkeypatch.setattr("onnx_condense.network.certain.Certain._differs", lambda *_: False)
    found = condense(pooled(pool), threads=1, allow_slower=True)
    assert found.report.status == "unchanged"
    assert found.model == pooled(pool)
