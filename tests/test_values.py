"""Value numbering and clustering: what is claimed of channels is true of the numbers that flow."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from builders import ACTIVATIONS, Form, Planting, base_layers, feed_for, mlp, plant
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import helper
from random_nets import random_network

from onnx_condense.evidence.cluster import leaders
from onnx_condense.evidence.laws import CONSTANT
from onnx_condense.evidence.values import Numbering, stored_weight
from onnx_condense.network.model import load
from onnx_condense.runtime import Runtime, run
from onnx_condense.spaces import find_spaces

Array = npt.NDArray[Any]


def test_leaders_by_hand() -> None:
    rows = np.array([[0.0, 1.0], [5.0, 5.0], [0.0, 1.01], [5.0, 5.0], [0.0, 1.0], [0.0, 1.02]])
    keys = np.array([[0], [0], [0], [1], [0], [0]])
    tolerance = np.full(rows.shape, 0.004)
    found = leaders(keys, rows, tolerance)
    assert found[0] == found[4]
    assert found[1] == 1
    assert found[3] == 3
    assert len({int(found[i]) for i in (0, 2, 5)}) == 3
    assert len(leaders(np.zeros((0, 1), np.int64), np.zeros((0, 2)), np.zeros((0, 2)))) == 0


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(
        np.float64, st.tuples(st.integers(1, 12), st.integers(0, 3)), elements=st.sampled_from([0.0, 1.0, 1.1, 2.0])
    ),
    st.sampled_from([0.0, 0.06, 0.5]),
    st.integers(0, 1000),
)
def test_leaders_lead_rows_that_are_near(rows: Array, tolerance: float, seed: int) -> None:
    keys = np.random.default_rng(seed).integers(0, 2, (len(rows), 1))
    found = leaders(keys, rows, np.full(rows.shape, tolerance))
    np.testing.assert_array_equal(found[found], found)
    np.testing.assert_array_equal(keys[found], keys)
    assert (np.abs(rows[found] - rows) <= 2 * tolerance).all()
    heads = np.unique(found)
    for a in heads:
        for b in heads:
            apart = keys[a] != keys[b] or (np.abs(rows[a] - rows[b]) > 2 * tolerance).any()
            assert a == b or apart


def test_leaders_compare_every_element_on_its_own() -> None:
    rows = np.array([[1.0, 1e-9], [1.0, 2e-9]])
    assert leaders(np.zeros((2, 1), np.int64), rows, 1e-7 * rows).tolist() == [0, 1]


def check_claims(proto: Any, feeds: int = 3) -> int:
    """Every channel is scale * v(class) + offset in the numbers that flow; returns how many claims were tested."""
    network = load(proto)
    view = find_spaces(network)
    numbering = Numbering(network, view)
    copy = type(proto)()
    copy.CopyFrom(proto)
    names = list(numbering._values)
    shown = {o.name for o in copy.graph.output}
    kind = copy.graph.input[0].type.tensor_type.elem_type
    copy.graph.output.extend(helper.make_tensor_value_info(n, kind, None) for n in names if n not in shown)
    session = Runtime(threads=1).session(copy, optimize=False)
    tested = 0
    for seed in range(feeds):
        feed = feed_for(proto, seed=seed)
        flowing = dict(zip(names, run(session, feed, names), strict=True)) if names else {}
        for name, values in numbering._values.items():
            numbers = np.moveaxis(flowing[name].astype(np.float64), values.axis, 0).reshape(len(values), -1)
            known: dict[int, Array] = {}
            for c, kind in enumerate(values.classes.tolist()):
                if not np.isfinite(numbers[c]).all():
                    continue
                size = max(float(np.abs(numbers).max()), float(np.abs(values.offset).max()), 1.0)
                if kind == CONSTANT:
                    np.testing.assert_allclose(numbers[c], values.offset[c], atol=1e-4 * size)
                    tested += 1
                elif abs(values.scale[c]) > 1e-3:
                    v = (numbers[c] - values.offset[c]) / values.scale[c]
                    first = known.setdefault(kind, v)
                    np.testing.assert_allclose(v, first, atol=1e-4 * size / abs(values.scale[c]))
                    tested += first is not v
    return tested


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_claims_about_planted_networks_hold(kind: str) -> None:
    rng = np.random.default_rng(0)
    layers = plant(rng, base_layers(rng, (6, 5)), Planting(3), ACTIVATIONS[kind])
    layers[0].weight[:3] = 0.0
    assert check_claims(mlp(layers, kind)) > 30


@pytest.mark.parametrize("block", range(4))
def test_claims_about_random_networks_hold(block: int) -> None:
    tested = sum(check_claims(random_network(seed)) for seed in range(1000 + 40 * block, 1040 + 40 * block))
    assert tested > 100


@pytest.mark.parametrize("linear", ["Gemm", "MatMul"])
def test_stored_weights_read_the_same_whatever_their_layout(linear: str) -> None:
    rng = np.random.default_rng(0)
    layers = base_layers(rng, (6, 5))
    network = load(mlp(layers, "Relu", Form(linear)))
    for use, layer in zip(find_spaces(network).linear, layers, strict=True):
        found = stored_weight(network, use)
        assert found is not None
        np.testing.assert_array_equal(found, layer.weight.astype(np.float32))
