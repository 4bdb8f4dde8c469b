"""What the fitter makes of convolutional networks: means are kept, planted redundancy goes, at little cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from conv_fits import (
    AROUND,
    FIT,
    X,
    conv,
    error,
    every_net,
    fetch,
    fitter,
    gemm,
    normalised,
    plain,
    residual,
    rows,
    shared,
    start,
    strided,
    two_thirds,
)
from mlps import Array, normal
from windows import EPS

from onnx_condense import runtime
from onnx_condense.cost import count_parameters
from onnx_condense.evidence import moments
from onnx_condense.fit import fitting
from onnx_condense.fit.fitting import Fitter
from onnx_condense.plan import Plan

pytestmark = pytest.mark.usefixtures("one_thread")

# ---- means ----


@every_net
def test_every_reader_answers_with_the_mean_of_the_dense_one(
    make: Callable[[int], onnx.ModelProto], ends: Sequence[str], mode: str
) -> None:
    model = make(0)
    made = fitter(model, X)
    assert any(r.pooled for r in made._readers) == (mode == "pooled")
    plan, condensed = made.plan(two_thirds(made), sequential=True)
    gone = list(plan.dropped(made.view.spaces))
    for name, before, after in zip(ends, fetch(model, X[FIT], *ends), fetch(condensed, X[FIT], *ends), strict=True):
        labels = np.broadcast_to(made.view.labels[name].reshape(-1), before.shape[1:2])
        kept = rows(before)[:, ~np.isin(labels, gone)]
        # Two means in fp32, of sums of up to 2^7 products each: borders and all.
        bound = 64 * EPS * kept.std()
        np.testing.assert_allclose(rows(after).mean(0), kept.mean(0), rtol=0, atol=bound)
    assert 1e-6 < error(condensed, model, X) < 2.0


def replaced(model: onnx.ModelProto, plan: Plan, made: Fitter, use: int) -> onnx.ModelProto:
    """The dense network with one reader as the plan has it: what goes has columns of zeros."""
    (update,) = (u for u in plan.updates if u.use == use)
    linear = made.view.linear[use]
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    node = copy.graph.node[linear.weight.node]
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    weight, bias = stored[node.input[1]], stored[node.input[2]]
    node.input[1], node.input[2] = "other.w", "other.b"
    other = {"other.w": linear.as_stored(update.weight, weight), "other.b": bias + update.offset}
    for name, value in other.items():
        copy.graph.initializer.append(onnx.numpy_helper.from_array(value.astype(np.float32), name))
    return copy


def test_uses_of_one_kernel_share_one_offset_for_the_mean_of_both(mode: str) -> None:
    model = shared()
    made = fitter(model, X)
    plan, condensed = made.plan([7], sequential=False)
    first, second = next(r.uses for r in made._readers if len(r.uses) == 2)
    means, before = [], fetch(model, X[FIT], "b", "c")
    for use, name in ((first, "b"), (second, "c")):
        means.append(rows(fetch(replaced(model, plan, made, use), X[FIT], name)[0]))
    expected = np.concatenate([rows(t) for t in before])
    found = np.concatenate(means)
    np.testing.assert_allclose(found.mean(0), expected.mean(0), rtol=0, atol=64 * EPS * expected.std())
    # Each by itself is off, since they have only one offset.
    assert np.abs(means[0].mean(0) - rows(before[0]).mean(0)).max() > 1e-3
    assert any(r.pooled for r in made._readers) == (mode == "pooled")
    b, c = (n for n in condensed.graph.node if n.output[0] in ("b", "c"))
    assert list(b.input[1:]) == list(c.input[1:])
    assert [tuple(t.dims) for t in condensed.graph.initializer if len(t.dims) == 4] == [(7, 2, 3, 3), (7, 7, 3, 3)]


def test_the_offset_of_a_convolution_goes_into_the_mean_behind_it() -> None:
    made = fitter(normalised(), X)
    _, condensed = made.plan(two_thirds(made), sequential=True)
    assert [len(n.input) for n in condensed.graph.node if n.op_type == "Conv"] == [2, 2, 2]
    # Widths 8, 7, 6: kernels, four numbers per normalised channel, and the head.
    expected = 9 * (8 * 2 + 7 * 8 + 6 * 7) + 4 * (8 + 7 + 6) + (6 * 3 + 3)
    assert count_parameters(condensed) == expected


# ---- planted redundancy ----


def mixed(rank: int, bias: str, pads: Sequence[int], head: str) -> onnx.ModelProto:
    """Ten channels that are mixes of `rank` ones, read by a padded convolution or at every position.

    bias: of the ten: none, "mixed" like the channels, or "own" to each.
    """
    net, rng = start(3)
    mix = rng.standard_normal((10, rank))
    kernel = np.tensordot(mix, rng.standard_normal((rank, 2, 3, 3)) / 18**0.5, 1)
    offsets = {"mixed": mix @ rng.standard_normal(rank), "own": rng.standard_normal(10)}
    inputs = [net.weight("a.w", kernel), *([net.weight("a.b", offsets[bias])] if bias else [])]
    h = net.node("Conv", "x", *inputs, out="a")
    if head == "average":
        h = net.node("AveragePool", h, kernel_shape=[2, 2], pads=[1, 0, 0, 1])
    if head == "flatten":
        gemm(net, rng, net.node("Flatten", h), "y", (200, 4))
        return net.model({"y": ["N", 4]})
    conv(net, rng, h, "y", (6, 10, 3, 3), pads=pads)
    return net.model({"y": ["N", 6, "H", "W"]})


PLANTED = {
    "no bias": (mixed(4, "", AROUND, "conv"), 4),
    "a bias that is mixed as well": (mixed(4, "mixed", AROUND, "conv"), 4),
    "a bias beside padding is a channel of its own": (mixed(4, "own", AROUND, "conv"), 5),
    "a bias without padding": (mixed(4, "own", [0, 0, 0, 0], "conv"), 4),
    "pooled on the way": (mixed(3, "", [1, 0, 2, 1], "average"), 3),
    "at every position": (mixed(4, "own", AROUND, "flatten"), 4),
    "one is all": (mixed(1, "", AROUND, "conv"), 1),
}


@pytest.mark.parametrize(("model", "rank"), PLANTED.values(), ids=PLANTED.keys())
def test_mixes_of_other_channels_go_down_to_the_planted_rank(
    model: onnx.ModelProto, rank: int, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Small ridges, so that only the arithmetic is left.
    monkeypatch.setattr(fitting, "SELECTION_RIDGE", 1e-7)
    monkeypatch.setattr(fitting, "USUAL_RIDGE", 1e-7)
    x = normal(450, 2, 6, 7)
    made = fitter(model, x)
    assert {bool(r.pooled) for r in made._readers} == {mode == "pooled"}
    (elimination,) = made.eliminations
    assert elimination.cost[10 - rank] < 1e-4
    if rank > 1:
        assert elimination.cost[10 - rank + 1] > 0.005
        _, less = made.plan([rank - 1], sequential=True)
        assert error(less, model, x) > 0.05
    for sequential in (True, False):
        _, condensed = made.plan([rank], sequential=sequential)
        assert error(condensed, model, x) < 1e-4


# ---- what helps ----


@pytest.mark.parametrize("make", [plain, strided, residual, normalised])
def test_stage_by_stage_is_better_than_at_once(make: Callable[[int], onnx.ModelProto], mode: str) -> None:
    model = make(1)
    made = fitter(model, X)
    widths = two_thirds(made)
    staged, at_once = (error(made.plan(widths, sequential=s)[1], model, X[FIT]) for s in (True, False))
    assert staged < 0.99 * at_once
    assert any(r.pooled for r in made._readers) == (mode == "pooled")


# ---- layout: what is pooled, which rows are looked at ----


def layout(made: Fitter) -> dict[str, tuple[int, int]]:
    """By tensor: (columns of a channel pooled, rows taken of each sample)."""
    return {c.tensor: (c.per_channel, c.take) for r in made._readers for c in r.columns}


def test_wide_readers_and_those_with_few_rows_are_pooled(monkeypatch: pytest.MonkeyPatch) -> None:
    # On 70 samples the convolution has 42 rows each for 108 columns, the head 1 for 210.
    monkeypatch.setattr(fitting, "RICH", 10)
    assert layout(fitter(plain(), X)) == {"relu_1": (0, 0), "flatten_4": (42, 0)}
    monkeypatch.setattr(fitting, "RICH", 42 * 70 // 108 + 1)
    assert layout(fitter(plain(), X)) == {"relu_1": (9, 0), "flatten_4": (42, 0)}
    monkeypatch.setattr(fitting, "RICH", 0)
    monkeypatch.setattr(fitting, "FULL", 108)
    assert layout(fitter(plain(), X)) == {"relu_1": (0, 0), "flatten_4": (42, 0)}
    monkeypatch.setattr(fitting, "FULL", 107)
    assert layout(fitter(plain(), X)) == {"relu_1": (9, 0), "flatten_4": (42, 0)}
    monkeypatch.setattr(fitting, "FULL", 210)
    assert layout(fitter(plain(), X)) == {"relu_1": (0, 0), "flatten_4": (0, 0)}


def test_rows_of_pooled_columns_count_where_ridges_are_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    # The head keeps 3 channels and has 70 rows for each of 42 positions: 2940 in all.
    chosen = {}
    for rich in (40, 2940 // 3, 2940 // 3 + 1):
        monkeypatch.setattr(fitting, "RICH", rich)
        made = fitter(plain(), X)
        assert layout(made) == {"relu_1": (9, 0), "flatten_4": (42, 0)}
        made.plan([3, 3], sequential=True)
        chosen[rich] = len(made._ridge_of)
    # The convolution has 2940 rows of 9 columns each.
    assert list(chosen.values()) == [0, 0, 1]


def test_of_many_rows_some_are_taken(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = plain()
    every = fitter(model, X)
    counts = {c.tensor: m.count for c, m in every._fit.found.items()}
    assert counts == {"relu_1": 42 * 70, "flatten_4": 70}
    monkeypatch.setattr(fitting, "LEAST_ROWS", 600)
    monkeypatch.setattr(fitting, "ROWS_PER_COLUMN", 9)
    some = fitter(model, X)
    # 9 for each of 108 columns are 972 rows, 14 of each sample; pooled, 9 columns make a row each: 600.
    take = {"full": 14, "pooled": 9}[mode]
    assert layout(some)["relu_1"] == ({"full": 0, "pooled": 9}[mode], take)
    assert layout(some)["flatten_4"][1] == 0
    counts = {c.tensor: m.count for c, m in some._fit.found.items()}
    assert counts == {"relu_1": take * 70, "flatten_4": 70}
    widths = [9, 5]
    full, thinned = (error(made.plan(widths, sequential=True)[1], model, X, "b") for made in (every, some))
    assert full < thinned < 1.5 * full
    # A pooled row counts for all of its 9 columns: 900 each for 12 are 1200 rows, 18 of each sample.
    monkeypatch.setattr(fitting, "ROWS_PER_COLUMN", 900)
    assert layout(fitter(model, X))["relu_1"] == {"full": (0, 0), "pooled": (9, 18)}[mode]


def test_passes_are_as_short_as_rows_and_numbers_ask_for(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []

    def spy(session: Any, feed: dict[str, Array]) -> list[Array]:
        lengths.append(len(feed["x"]))
        return runtime.run(session, feed)

    monkeypatch.setattr(moments, "run", spy)
    monkeypatch.setattr(fitting, "RICH", 0)
    monkeypatch.setattr(fitting, "FULL", 108)

    def longest() -> int:
        lengths.clear()
        fitter(plain(), X)
        # The first pass counts rows.
        return max(lengths[1:])

    assert longest() == 70
    # 42 rows of 108 numbers each.
    monkeypatch.setattr(fitting, "PASS_ELEMENTS", 42 * 108 * 11)
    assert longest() == 11
    monkeypatch.setattr(fitting, "LEAST_ROWS", 600)
    monkeypatch.setattr(fitting, "ROWS_PER_COLUMN", 9)
    monkeypatch.setattr(fitting, "PASS_ROWS", 14 * 6)
    assert longest() == 6
    monkeypatch.setattr(fitting, "PASS_ROWS", 5)
    assert longest() == 1


def test_after_the_search_all_rows_count(mode: str) -> None:
    made = fitter(residual(), X)
    before = [sum(m.count for m in made._learned(r)) for r in made._readers]
    made.use_all(np.arange(70, 90))
    for readers, count in zip(made._readers, before, strict=True):
        learned = made._learned(readers)
        assert sum(m.count for m in learned) == count * 90 / 70
        assert {m.left.ndim for m in learned} == {2 if readers.pooled else 1}
    assert any(r.pooled for r in made._readers) == (mode == "pooled")
    _, condensed = made.plan(two_thirds(made), sequential=True)
    b, after = fetch(residual(), X, "y")[0], fetch(condensed, X, "y")[0]
    np.testing.assert_allclose(after.mean(0), b.mean(0), rtol=0, atol=64 * EPS * b.std())
