"""Attention as exporters write it: its values narrow, as many per head, however heads are laid out and put together."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
from attention_nets import (
    BOTH,
    COUNTED,
    FIRST,
    GATHERED,
    HEAD,
    INTO,
    JOINED,
    LAST,
    LINE,
    OLD,
    ROWS,
    SCORES,
    SEPARATE,
    STACKED,
    TURNED,
    WIDE,
    F,
    assert_bits,
    joined,
    network,
    seen,
)
from builders import feed_for, outputs, text_model

from onnx_condense import condense
from onnx_condense.cost import WidthCosts, count_macs, count_parameters
from onnx_condense.network.model import Network, load
from onnx_condense.network.parted import parted
from onnx_condense.ops.layout import NOT_WHOLE, UNKNOWN_SIZES
from onnx_condense.search.mac_cost import MacCosts
from onnx_condense.spaces import find_spaces


def sizes(proto: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Shapes of the stored weights, by name."""
    return {t.name: tuple(t.dims) for t in proto.graph.initializer if t.name.startswith(("w", "c"))}


def check(proto: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Condense from the weights alone; the answers stay for every size of batch and positions. What is left of them."""
    found = condense(proto, threads=1, allow_slower=True).model
    onnx.checker.check_model(found, full_check=True)
    for rows, seed in ((3, 1), (1, 2), (7, 3)):
        feed = feed_for(proto, rows, seed)
        (y,), (z,) = outputs(proto, feed), outputs(found, feed)
        np.testing.assert_allclose(z, y, atol=1e-5 * max(1.0, float(np.abs(y).max())))
    return sizes(found)


@pytest.mark.parametrize("name", SEPARATE)
def test_a_layer_for_each(name: str) -> None:
    left = check(network(SEPARATE[name]))
    assert (left["w_v"], left["c_v"], left["w_out"]) == ((INTO, 4), (4,), (4, 4))
    assert (left["w_q"], left["w_k"]) == ((INTO, WIDE), (INTO, WIDE))


@pytest.mark.parametrize("name", JOINED)
def test_one_layer_for_all(name: str) -> None:
    """Queries and keys keep their 8 channels each, values 2 of 4 per head."""
    left = check(network(joined(name)))
    assert (left["w"], left["c"], left["w_out"]) == ((INTO, 20), (20,), (4, 4))


@pytest.mark.parametrize("lists", ["", BOTH + COUNTED])
def test_heads_that_are_merged_with_the_batch(lists: str) -> None:
    """Of a batch that is left open nobody knows the size."""
    middle = (BOTH if not lists else "") + lists + LINE + FIRST + STACKED + ROWS
    left = check(network(middle))
    assert (left["w"], left["c"], left["w_out"]) == ((INTO, 20), (20,), (4, 4))


def test_an_older_opset() -> None:
    """There axes and sizes of parts are attributes."""
    for name in ("split", "sliced", "gathered as lists", "computed"):
        middle = joined(name).replace("Split<axis = 0>(u)", "Split<axis = 0, split = [1, 1, 1]>(u)")
        middle = (
            middle.replace("Squeeze(a", "Squeeze<axes = [0]>(a").replace(", k0) k", ") k").replace(", k0) v", ") v")
        )
        middle = middle.replace(", k0) t =", ") t =")
        left = check(network(middle, OLD))
        assert (left["w"], left["w_out"]) == ((INTO, 20), (4, 4))


def test_keys_and_values_in_one_layer() -> None:
    """The queries come from elsewhere; what would have been some here goes, since nobody reads it."""
    middle = "zq = MatMul(x, w_q) lq = Add(zq, c_q) hq = Reshape(lq, heads) q = Transpose<perm = [0, 2, 1, 3]>(hq) "
    middle += LINE + "l2 = Slice(l, k8, far, m1) g = Reshape(l2, two) " + TURNED
    middle += GATHERED[GATHERED.index("k = ") :].replace("i1", "i0").replace("i2", "i1") + SCORES + LAST
    left = check(network(middle))
    assert (left["w"], left["w_q"], left["w_out"]) == ((INTO, 12), (INTO, WIDE), (4, 4))


@pytest.mark.parametrize("middle", [joined("gathered"), joined("by head"), SEPARATE["stored"]])
def test_within_a_tolerance(middle: str) -> None:
    """Values that are nearly, but not quite, redundant go where samples say so."""
    proto = network(middle, noise=1e-3)
    assert condense(proto, threads=1).model.SerializeToString() == proto.SerializeToString()
    samples = np.random.default_rng(5).standard_normal((400, 5, INTO)).astype(F)
    found = condense(proto, calibration={"x": samples}, tolerance=0.05, threads=1, allow_slower=True)
    assert found.report.error is not None
    assert found.report.error.value <= 0.05
    assert sizes(found.model)["w_out"] == (4, 4)


def test_what_narrower_values_cost() -> None:
    """Queries and keys of the same layer stay, so what goes is all of the values' share."""
    proto = network(joined("gathered"))
    for dim, size in zip(proto.graph.input[0].type.tensor_type.shape.dim, (2, 5, INTO), strict=True):
        dim.dim_value = size
    left = load(condense(proto, threads=1, allow_slower=True).model)
    dense = freed(proto)
    view = find_spaces(dense)
    widths = [s.width - 2 * (s.name == "z") for s in view.spaces]
    assert WidthCosts(dense, view).total(widths) == count_parameters(left.proto)
    assert MacCosts(dense, view).total(widths) == count_macs(left)


# ---- what is told apart ----


def freed(proto: onnx.ModelProto) -> Network:
    return parted(load(proto), lambda found: find_spaces(found).labels)


@pytest.mark.parametrize("name", JOINED)
def test_nothing_changes_where_nothing_goes(name: str) -> None:
    proto = network(joined(name), noise=None)
    assert condense(proto, threads=1).model.SerializeToString() == proto.SerializeToString()


def test_a_grid_stays_where_its_values_have_to() -> None:
    """Every channel of the values is seen outside."""
    network_ = load(seen(network(joined("gathered")), "m"))
    assert parted(network_, lambda found: find_spaces(found).labels) is network_


def test_only_grids_that_hold_something_are_taken_apart() -> None:
    """Of two layers one has values that are seen outside."""
    second = joined("gathered", "")
    made = set(re.findall(r"(\w+) = [A-Z]", second))
    second = re.sub(rf"\b({'|'.join(made)})\b", r"\1_", second)
    given_one = load(seen(network(joined("gathered") + second), "m_"))
    found = freed(given_one.proto)
    assert ("g_" in found.producers, "g" in found.producers) == (True, False)
    assert_bits(given_one.proto, found.proto)


@pytest.mark.parametrize("name", JOINED)
def test_the_same_to_the_last_bit(name: str) -> None:
    """What is taken apart is only laid out in another way."""
    proto = network(joined(name))
    found = freed(proto)
    assert "g" not in found.producers
    assert_bits(proto, found.proto)


# ---- positions merged with sizes that nobody knows ----


def merged(last: int) -> onnx.ModelProto:
    """12 channels, of which every fourth one is twice the one before, laid out behind a batch that is left open."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((INTO, 12)).astype(F)
    w[:, 3::4] = 2 * w[:, 2::4]
    stored = {"w": w, "at": np.array([3, -1, last]), "w_out": rng.standard_normal((last, 4)).astype(F)}
    text = f"""{HEAD} g (float[3,B,{INTO}] x) => (float[3,C,4] y) {{
        h = MatMul(x, w) r = Reshape(h, at) y = MatMul(r, w_out) }}"""
    return text_model(text, stored)


def test_rows_that_are_shorter_or_longer() -> None:
    """Of 3 parts of 4 channels one goes in each; 2 positions in one row bring every channel twice."""
    for last, w, v in ((4, 9, 3), (24, 9, 18), (2, 12, 2)):
        proto = merged(last)
        found = condense(proto, threads=1, allow_slower=True).model
        assert (sizes(found)["w"], sizes(found)["w_out"]) == ((INTO, w), (v, 4))
        feed = feed_for(proto, 4)
        np.testing.assert_allclose(outputs(found, feed)[0], outputs(proto, feed)[0], atol=1e-4)


def test_rows_that_do_not_fit() -> None:
    view = find_spaces(load(merged(8)))
    assert {r.reason for r in view.refusals if "Reshape" in r.node} == {NOT_WHOLE}
    text = f"""{HEAD} g (float[3,B,{INTO}] x) => (float y) {{
        h = MatMul(x, w) n = Transpose<perm = [0, 2, 1]>(h) r = Reshape(n, at) y = MatMul(r, v) }}"""
    w = np.ones((INTO, 12), F)
    view = find_spaces(load(text_model(text, {"w": w, "at": np.array([3, -1, 4]), "v": np.ones((4, 4), F)})))
    assert {r.reason for r in view.refusals if "Reshape" in r.node} == {UNKNOWN_SIZES}
