"""What the fitter makes of convolutional networks: means are kept, planted redundancy goes, at little cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from mlps import Array, Net, normal

from onnx_condense import runtime
from onnx_condense.cost import count_parameters
from onnx_condense.data import input_specs, load
from onnx_condense.evidence import moments
from onnx_condense.fit import fitting
from onnx_condense.fit.fitting import Fitter
from onnx_condense.network.model import Network
from onnx_condense.plan import Plan
from onnx_condense.runtime import Runtime, limited_threads, run
from onnx_condense.spaces import find_spaces

RUNTIME = Runtime(threads=1)
EPS = float(np.finfo(np.float32).eps)
FIT = np.arange(70)
AROUND = [1, 1, 1, 1]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks as small as these are slower with more."""
    with limited_threads(1):
        yield


def fitter(model: onnx.ModelProto, x: Array) -> Fitter:
    network = Network(model)
    samples = load(x, input_specs(model.graph))
    fit, search = np.split(np.arange(len(x)), [len(x) * 7 // 9])
    return Fitter(network, find_spaces(network), samples, fit, search, RUNTIME)


def fetch(model: onnx.ModelProto, x: Array, *names: str) -> list[Array]:
    """Tensors of a network in float64, inner ones too."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return [a.astype(np.float64) for a in run(RUNTIME.session(copy, optimize=False), {"x": x})]


def error(condensed: onnx.ModelProto, dense: onnx.ModelProto, x: Array, name: str = "y") -> float:
    (a,), (b,) = fetch(condensed, x, name), fetch(dense, x, name)
    return float(np.sqrt(np.square(a - b).sum() / np.square(b - b.mean(0)).sum()))


@pytest.fixture(params=["full", "pooled"])
def mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every reader as it is, or the columns of each channel pooled."""
    monkeypatch.setattr(fitting, "FULL", 10**9 if request.param == "full" else 0)
    monkeypatch.setattr(fitting, "RICH", 0)
    return str(request.param)


# ---- networks ----


def conv(net: Net, rng: np.random.Generator, tensor: str, out: str, shape: Sequence[int], **options: Any) -> str:
    """One convolution with weight [O, K, ...] and, unless bias=False, a bias."""
    bias = options.pop("bias", True)
    weight = net.weight(f"{out}.w", rng.standard_normal(shape) / math.sqrt(math.prod(shape[1:])))
    more = [net.weight(f"{out}.b", rng.standard_normal(shape[0]) / 2)] if bias else []
    return net.node("Conv", tensor, weight, *more, out=out, **options)


def gemm(net: Net, rng: np.random.Generator, tensor: str, out: str, shape: tuple[int, int]) -> str:
    weight = net.weight(f"{out}.w", rng.standard_normal(shape) / math.sqrt(shape[0]))
    return net.node("Gemm", tensor, weight, net.weight(f"{out}.b", rng.standard_normal(shape[1])), out=out)


def start(seed: int) -> tuple[Net, np.random.Generator]:
    return Net({"x": ["N", 2, 6, 7]}), np.random.default_rng(seed)


def plain(seed: int = 0) -> onnx.ModelProto:
    """Padded readers, then all positions weighed."""
    net, rng = start(seed)
    h = net.node("Relu", conv(net, rng, "x", "a", (12, 2, 3, 3), pads=AROUND))
    h = net.node("Relu", conv(net, rng, h, "b", (5, 12, 3, 3), pads=AROUND))
    gemm(net, rng, net.node("Flatten", h), "y", (210, 3))
    return net.model({"y": ["N", 3]})


def channels_last(seed: int = 0) -> onnx.ModelProto:
    """As `plain`, asymmetric pads, and positions are weighed before channels."""
    net, rng = start(seed)
    h = net.node("Relu", conv(net, rng, "x", "a", (12, 2, 3, 3), pads=AROUND))
    h = net.node("Tanh", conv(net, rng, h, "b", (5, 12, 2, 3), pads=[0, 2, 1, 0], dilations=[1, 1]))
    h = net.node("Transpose", h, perm=[0, 2, 3, 1])
    gemm(net, rng, net.node("Flatten", h), "y", (210, 3))
    return net.model({"y": ["N", 3]})


def strided(seed: int = 0) -> onnx.ModelProto:
    """Strides, SAME, a reader of one tap with strides, pooling over all positions."""
    net, rng = start(seed)
    h = net.node("Relu", conv(net, rng, "x", "a", (12, 2, 3, 3), pads=AROUND))
    h = net.node("Relu", conv(net, rng, h, "b", (10, 12, 4, 4), strides=[2, 2], auto_pad="SAME_LOWER"))
    h = net.node("Relu", conv(net, rng, h, "c", (8, 10, 1, 1), strides=[2, 1]))
    gemm(net, rng, net.node("Flatten", net.node("GlobalAveragePool", h)), "y", (8, 3))
    return net.model({"y": ["N", 3]})


def maximum(seed: int = 0) -> onnx.ModelProto:
    """The largest of neighbours is what is read."""
    net, rng = start(seed)
    h = net.node("Relu", conv(net, rng, "x", "a", (12, 2, 3, 3), pads=AROUND))
    h = net.node("MaxPool", h, kernel_shape=[2, 2], strides=[2, 2], pads=[0, 1, 0, 0])
    h = net.node("Relu", conv(net, rng, h, "b", (10, 12, 3, 3), pads=AROUND))
    gemm(net, rng, net.node("Flatten", h), "y", (120, 3))
    return net.model({"y": ["N", 3]})


def residual(seed: int = 0) -> onnx.ModelProto:
    """A block whose result is added to what comes in."""
    net, rng = start(seed)
    skip = net.node("Relu", conv(net, rng, "x", "a", (10, 2, 3, 3), pads=AROUND))
    h = net.node("Relu", conv(net, rng, skip, "b", (12, 10, 3, 3), pads=AROUND))
    h = conv(net, rng, h, "c", (10, 12, 3, 3), pads=AROUND)
    h = net.node("Relu", net.node("Add", skip, h))
    h = net.node("Relu", conv(net, rng, h, "d", (8, 10, 3, 3), strides=[2, 2], pads=AROUND))
    gemm(net, rng, net.node("Flatten", net.node("GlobalAveragePool", h)), "y", (8, 3))
    return net.model({"y": ["N", 3]})


def normalised(seed: int = 0) -> onnx.ModelProto:
    """Convolutions without a bias, normalised."""
    net, rng = start(seed)
    h = conv(net, rng, "x", "a", (12, 2, 3, 3), pads=AROUND, bias=False)
    for out, shape in (("b", (10, 12, 3, 3)), ("c", (8, 10, 3, 3))):
        h = net.node("Relu", norm(net, rng, h, shape[1]))
        h = conv(net, rng, h, out, shape, pads=AROUND, bias=False)
    h = net.node("Relu", norm(net, rng, h, 8))
    gemm(net, rng, net.node("Flatten", net.node("GlobalAveragePool", h)), "y", (8, 3))
    return net.model({"y": ["N", 3]})


def norm(net: Net, rng: np.random.Generator, tensor: str, size: int) -> str:
    ranges = {"scale": (0.5, 1.5), "shift": (-1, 1), "mean": (-1, 1), "variance": (0.5, 2)}
    stored = [net.weight(f"{tensor}.{n}", rng.uniform(*limits, size)) for n, limits in ranges.items()]
    return net.node("BatchNormalization", tensor, *stored, out=f"{tensor}.n")


def shared(seed: int = 0) -> onnx.ModelProto:
    """One kernel, used twice with different pads."""
    net, rng = start(seed)
    h = net.node("Relu", conv(net, rng, "x", "a", (10, 2, 3, 3), pads=AROUND))
    kernel = net.weight("w", rng.standard_normal((10, 10, 3, 3)) / 90**0.5)
    h = net.node("Relu", net.node("Conv", h, kernel, net.weight("b.b", rng.standard_normal(10)), pads=AROUND, out="b"))
    h = net.node("Relu", net.node("Conv", h, kernel, "b.b", strides=[2, 2], out="c"))
    gemm(net, rng, net.node("Flatten", net.node("GlobalAveragePool", h)), "y", (10, 3))
    return net.model({"y": ["N", 3]})


NETS: Mapping[str, tuple[Callable[[int], onnx.ModelProto], tuple[str, ...]]] = {
    "plain": (plain, ("b", "y")),
    "channels last": (channels_last, ("b", "y")),
    "strided": (strided, ("b", "c", "y")),
    "maximum": (maximum, ("b", "y")),
    "residual": (residual, ("b", "c", "d", "y")),
    "normalised": (normalised, ("b.n", "c.n", "y")),
}
"""With the tensors behind their readers."""
every_net = pytest.mark.parametrize(("make", "ends"), NETS.values(), ids=NETS.keys())
X = normal(90, 2, 6, 7)


def two_thirds(made: Fitter) -> list[int]:
    return [-(-2 * s.width // 3) for s in made.spaces]


def rows(tensor: Array) -> Array:
    """[N, C, positions...] -> [n, C]."""
    moved = np.moveaxis(tensor, 1, -1)
    return moved.reshape(-1, moved.shape[-1])


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
    counts = {c.tensor: m.count for c, m in every._fit.items()}
    assert counts == {"relu_1": 42 * 70, "flatten_4": 70}
    monkeypatch.setattr(fitting, "LEAST_ROWS", 600)
    monkeypatch.setattr(fitting, "ROWS_PER_COLUMN", 9)
    some = fitter(model, X)
    # 9 for each of 108 columns are 972 rows, 14 of each sample; pooled, 9 columns make a row each: 600.
    take = {"full": 14, "pooled": 9}[mode]
    assert layout(some)["relu_1"] == ({"full": 0, "pooled": 9}[mode], take)
    assert layout(some)["flatten_4"][1] == 0
    counts = {c.tensor: m.count for c, m in some._fit.items()}
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
