"""What the fitter makes of filters, groups and transposed convolutions: each group is fitted by itself."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from conv_fits import AROUND, FIT, X, conv, error, fetch, fitter, gemm, rows, start, two_thirds
from mlps import Array, Net, normal
from windows import EPS, RUNTIME, Geometry

from onnx_condense.cost import count_parameters
from onnx_condense.fit import fitting
from onnx_condense.fit.fitting import USUAL_RIDGE, Fitter
from onnx_condense.plan import Plan, ReaderUpdate
from onnx_condense.proving.verify import check_graph, check_numbers, masked
from onnx_condense.rewrite import apply_plan
from onnx_condense.select.obs import Elimination

pytestmark = pytest.mark.usefixtures("one_thread")


# ---- networks ----


def ended(net: Net, rng: np.random.Generator, tensor: str, width: int) -> onnx.ModelProto:
    gemm(net, rng, net.node("Flatten", net.node("GlobalAveragePool", tensor)), "y", (width, 3))
    return net.model({"y": ["N", 3]})


def depthwise(kernels: int = 1, taps: int = 1, *, bias: bool = True) -> onnx.ModelProto:
    """Channels that are filtered, by some kernels each, and then mixed by so many taps in a row."""
    net, rng = start(kernels)
    h = net.node("Relu", conv(net, rng, "x", "a", (12, 2, 3, 3), pads=AROUND))
    h = conv(net, rng, h, "f", (12 * kernels, 1, 3, 3), pads=AROUND, group=12, strides=[2, 1], bias=bias)
    h = net.node("Relu", conv(net, rng, net.node("Relu", h), "b", (9, 12 * kernels, 1, taps), pads=[0, 0, 0, taps - 1]))
    return ended(net, rng, h, 9)


def grouped(groups: int = 3) -> onnx.ModelProto:
    """Four channels per group are read, and three written."""
    net, rng = start(groups)
    h = net.node("Relu", conv(net, rng, "x", "a", (4 * groups, 2, 3, 3), pads=AROUND))
    h = conv(net, rng, h, "g", (3 * groups, 4, 2, 3), pads=[0, 1, 1, 1], group=groups, dilations=[1, 1])
    h = net.node("Relu", conv(net, rng, net.node("Tanh", h), "b", (7, 3 * groups, 3, 3), pads=AROUND))
    return ended(net, rng, h, 7)


def transpose(net: Net, rng: np.random.Generator, tensor: str, out: str, shape: tuple[int, ...], **more: Any) -> str:
    """A transposed convolution with weight [K, O / group, ...] and a bias."""
    weight = net.weight(f"{out}.w", rng.standard_normal(shape) / math.sqrt(shape[0]))
    written = shape[1] * more.get("group", 1)
    bias = net.weight(f"{out}.b", rng.standard_normal(written) / 2)
    return net.node("ConvTranspose", tensor, weight, bias, out=out, **more)


def transposed(groups: int = 1) -> onnx.ModelProto:
    """Down and up again; groups 10: up by a kernel for every channel."""
    net, rng = start(5)
    h = net.node("Relu", conv(net, rng, "x", "a", (10, 2, 3, 3), pads=AROUND, strides=[2, 2]))
    size = {"strides": [2, 2], "pads": [1, 0, 0, 1], "output_padding": [1, 0]}
    shape = (10, 9, 3, 3) if groups == 1 else (10, 1, 3, 3)
    h = net.node("Relu", transpose(net, rng, h, "t", shape, group=groups, **size))
    h = net.node("Relu", conv(net, rng, h, "b", (7, 9 if groups == 1 else 10, 3, 3), pads=AROUND))
    return ended(net, rng, h, 7)


@dataclasses.dataclass(frozen=True)
class Case:
    """A network; tensors behind its readers; widths of its spaces; the parameters of what is left.

    parameters: of the widths that stay; group: the attribute of a node that writes a tensor, of the widths.
    """

    make: Callable[[], onnx.ModelProto]
    ends: tuple[str, ...]
    widths: tuple[int, ...]
    parameters: Callable[[list[int]], int]
    groups: Callable[[list[int]], dict[str, int]]


def first(width: int, taps: int = 9) -> int:
    """Parameters of the first convolution."""
    return width * 2 * taps + width


CASES = {
    "depthwise": Case(
        lambda: depthwise(1, 3),
        ("b", "y"),
        (12, 9),
        lambda w: first(w[0]) + 10 * w[0] + 3 * w[0] * w[1] + w[1] + 3 * w[1] + 3,
        lambda w: {"f": w[0]},
    ),
    "two kernels": Case(
        lambda: depthwise(2),
        ("b", "y"),
        (12, 9),
        lambda w: first(w[0]) + 20 * w[0] + 2 * w[0] * w[1] + w[1] + 3 * w[1] + 3,
        lambda w: {"f": w[0]},
    ),
    "two kernels and taps": Case(
        lambda: depthwise(2, 2),
        ("b", "y"),
        (12, 9),
        lambda w: first(w[0]) + 20 * w[0] + 4 * w[0] * w[1] + w[1] + 3 * w[1] + 3,
        lambda w: {"f": w[0]},
    ),
    "three kernels without bias": Case(
        lambda: depthwise(3, bias=False),
        ("b", "y"),
        (12, 9),
        lambda w: first(w[0]) + 27 * w[0] + 3 * w[0] * w[1] + w[1] + 3 * w[1] + 3,
        lambda w: {"f": w[0]},
    ),
    "grouped": Case(
        grouped,
        ("g", "b", "y"),
        (4, 3, 7),
        lambda w: first(3 * w[0]) + 3 * (6 * w[0] * w[1] + w[1]) + 27 * w[1] * w[2] + w[2] + 3 * w[2] + 3,
        lambda _: {"g": 3},
    ),
    "two groups": Case(
        lambda: grouped(2),
        ("g", "b", "y"),
        (4, 3, 7),
        lambda w: first(2 * w[0]) + 2 * (6 * w[0] * w[1] + w[1]) + 18 * w[1] * w[2] + w[2] + 3 * w[2] + 3,
        lambda _: {"g": 2},
    ),
    "transposed": Case(
        transposed,
        ("t", "b", "y"),
        (10, 9, 7),
        lambda w: first(w[0]) + 9 * w[0] * w[1] + w[1] + 9 * w[1] * w[2] + w[2] + 3 * w[2] + 3,
        lambda _: {"t": 1},
    ),
    "transposed depthwise": Case(
        lambda: transposed(10),
        ("b", "y"),
        (10, 7),
        lambda w: first(w[0]) + 10 * w[0] + 9 * w[0] * w[1] + w[1] + 3 * w[1] + 3,
        lambda w: {"t": w[0]},
    ),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


# ---- means, sizes, and the plan as it was meant ----


@every_case
def test_every_reader_answers_with_the_mean_of_the_dense_one(case: Case, mode: str) -> None:
    model = case.make()
    made = fitter(model, X)
    assert [s.width for s in made.spaces] == list(case.widths)
    assert any(r.pooled for r in made._readers) == (mode == "pooled")
    widths = two_thirds(made)
    plan, condensed = made.plan(widths, sequential=True)
    gone = list(plan.dropped(made.view.spaces))
    dense, narrow = (fetch(m, X[FIT], *case.ends) for m in (model, condensed))
    for name, before, after in zip(case.ends, dense, narrow, strict=True):
        labels = np.broadcast_to(made.view.labels[name].reshape(-1), before.shape[1:2])
        kept = rows(before)[:, ~np.isin(labels, gone)]
        bound = 64 * EPS * kept.std()
        np.testing.assert_allclose(rows(after).mean(0), kept.mean(0), rtol=0, atol=bound)
    assert 1e-6 < error(condensed, model, X) < 2.0


@every_case
def test_what_is_written_is_the_plan_at_its_widths(case: Case, mode: str) -> None:
    model = case.make()
    made = fitter(model, X)
    widths = two_thirds(made)
    assert all(w < s.width for w, s in zip(widths, made.spaces, strict=True))
    plan, condensed = made.plan(widths, sequential=True)
    check_graph(model, condensed)
    check_numbers(made.network, made.view, plan, condensed, [{"x": X}], RUNTIME)
    full = masked(made.network, made.view, plan)
    (wanted,), (found,) = fetch(full, X, "y"), fetch(condensed, X, "y")
    np.testing.assert_allclose(found, wanted, rtol=0, atol=256 * EPS * np.abs(wanted).max())
    dense = [s.width for s in made.spaces]
    assert count_parameters(model) == case.parameters(dense)
    assert count_parameters(condensed) == case.parameters(widths)
    for name, group in case.groups(widths).items():
        node = next(n for n in condensed.graph.node if n.output[0] == name)
        assert next((a.i for a in node.attribute if a.name == "group"), 1) == group
    assert any(r.pooled for r in made._readers) == (mode == "pooled")


@every_case
def test_nothing_to_drop_is_nothing_to_change(case: Case) -> None:
    model = case.make()
    made = fitter(model, X)
    plan, condensed = made.plan([s.width for s in made.spaces], sequential=True)
    assert not plan.updates
    assert condensed.SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)


@every_case
def test_the_refit_helps(case: Case, mode: str) -> None:
    """Against the same channels gone with readers as they were."""
    model = case.make()
    made = fitter(model, X)
    plan, condensed = made.plan(two_thirds(made), sequential=True)
    gone = list(plan.dropped(made.view.spaces))
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    bare = []
    for update in plan.updates:
        use = made.view.linear[update.use]
        weight = use.matrix(stored[made.network.nodes[use.weight.node].inputs[1]])
        weight[:, np.isin(np.repeat(use.columns, use.taps), gone)] = 0.0
        bare.append(ReaderUpdate(update.use, weight, np.zeros(len(weight))))
    cut = apply_plan(made.network, made.view, dataclasses.replace(plan, updates=tuple(bare)))
    assert error(condensed, model, X) < 0.8 * error(cut, model, X)
    assert any(r.pooled for r in made._readers) == (mode == "pooled")


# ---- groups by brute force ----


def patches(groups: int) -> tuple[Array, Array, Array]:
    """What the grouped reader reads [n, group, K, T], its weight [group, O, K, T], and its bias."""
    model = grouped(groups)
    (t,) = fetch(model, X[FIT], next(n.input[0] for n in model.graph.node if n.output[0] == "g"))
    geometry = Geometry((2, 3), pads=(0, 1, 1, 1), dilations=(1, 1))
    stored = {i.name: onnx.numpy_helper.to_array(i).astype(np.float64) for i in model.graph.initializer}
    read = geometry.patches(t).reshape(-1, groups, 4, 6)
    return read, stored["g.w"].reshape(groups, 3, 4, 6), stored["g.b"]


def least_squares(read: Array, weight: Array, keep: Array, ridge: float) -> tuple[Array, Array, float]:
    """Kept columns [O, L T], offset and mean squared error of one group, by numpy's own solver."""
    t = read.reshape(len(read), -1)
    W = weight.reshape(len(weight), -1)
    at = (keep[:, None] * 6 + np.arange(6)).reshape(-1)
    h, mean = t[:, at] - t[:, at].mean(0), t.mean(0)
    level = ridge * np.square(h).mean()
    target = (t - mean) @ W.T
    # Rows that pull towards the dense columns, so that the pull counts as much as its ridge says.
    pull = math.sqrt(level * len(h)) * np.eye(len(at))
    solved = np.linalg.lstsq(np.concatenate([h, pull]), np.concatenate([target, pull @ W[:, at].T]), rcond=None)[0]
    offset = W @ mean - solved.T @ mean[at]
    return solved.T, offset, float(np.square(target - h @ solved).sum() / len(h))


def planned(groups: int, keep: Array) -> tuple[Fitter, Plan]:
    """Only the channels of the first space go, those that are not kept."""
    made = fitter(grouped(groups), X)
    gone = np.setdiff1d(np.arange(4), keep)
    rest = [made.spaces[0].width - len(gone), *(s.width for s in made.spaces[1:])]
    order = np.r_[gone, keep[:-1]]
    known = made.eliminations[0]
    made.eliminations = (Elimination(order, known.cost), *made.eliminations[1:])
    plan, _ = made.plan(rest, sequential=True)
    return made, plan


@pytest.mark.parametrize("groups", [2, 3])
@pytest.mark.parametrize("keep", [[0, 1, 3], [1, 2], [2]], ids=str)
def test_each_group_is_refitted_by_itself(groups: int, keep: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "FULL", 10**9)
    monkeypatch.setattr(fitting, "RICH", 0)
    made, plan = planned(groups, np.array(keep))
    (selection,) = plan.selections
    np.testing.assert_array_equal(selection.keep, keep)
    (update,) = plan.updates
    use = made.view.linear[update.use]
    assert use.groups == groups
    read, weight, _ = patches(groups)
    cells = update.weight.reshape(groups, 3, groups, 4, 6)
    for j in range(groups):
        fitted, offset, _ = least_squares(read[:, j], weight[j], np.array(keep), USUAL_RIDGE)
        found = cells[j, :, j][:, keep].reshape(3, -1)
        # Moments are summed in fp32.
        np.testing.assert_allclose(found, fitted, rtol=0, atol=1e-3 * np.abs(fitted).max())
        np.testing.assert_allclose(update.offset.reshape(groups, 3)[j], offset, rtol=0, atol=1e-3)
        assert not np.delete(cells[j, :, j], keep, axis=1).any()
        assert not np.delete(cells[j], j, axis=1).any()
    assert made._readers[0].groups == groups


@pytest.mark.parametrize("groups", [2, 3])
def test_the_order_of_elimination_counts_every_group(groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Step by step the channel goes whose least squares lose least, on the mean of the groups' relative errors."""
    monkeypatch.setattr(fitting, "FULL", 10**9)
    monkeypatch.setattr(fitting, "RICH", 0)
    made = fitter(grouped(groups), X)
    elimination = made.eliminations[0]
    read, weight, _ = patches(groups)

    def lost(keep: Array) -> float:
        shares = []
        for j in range(groups):
            t = read[:, j].reshape(len(read), -1)
            total = np.square((t - t.mean(0)) @ weight[j].reshape(3, -1).T).sum() / len(t)
            shares.append(least_squares(read[:, j], weight[j], keep, 1e-9)[2] / total)
        return float(np.mean(shares))

    live = np.arange(4)
    for step, gone in enumerate(elimination.order.tolist(), start=1):
        costs = {c: lost(live[live != c]) for c in live.tolist()}
        assert min(costs, key=lambda c: costs[c]) == gone
        assert elimination.cost[step] == pytest.approx(costs[gone], rel=5e-3)
        live = live[live != gone]
    assert len(elimination.order) == 3
    assert len(set(np.round(elimination.cost, 6))) == 4


def test_pooled_groups_are_fitted_by_one_mixing_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pooled, the taps of a channel count as rows: all are mixed alike, group by group."""
    monkeypatch.setattr(fitting, "FULL", 0)
    monkeypatch.setattr(fitting, "RICH", 0)
    groups, keep = 2, np.array([0, 3])
    made, plan = planned(groups, keep)
    (update,) = plan.updates
    assert made._readers[0].pooled == 6
    read, weight, _ = patches(groups)
    cells = update.weight.reshape(groups, 3, groups, 4, 6)
    for j in range(groups):
        t = (read[:, j] - read[:, j].mean(0)).transpose(0, 2, 1).reshape(-1, 4)
        h = t[:, keep]
        level = USUAL_RIDGE * np.square(h).mean()
        cross, own = t.T @ h / len(h), h.T @ h / len(h) + level * np.eye(len(keep))
        W = weight[j].transpose(0, 2, 1).reshape(-1, 4)
        fitted = np.linalg.solve(own, (W @ cross + level * W[:, keep]).T).T
        found = cells[j, :, j][:, keep].transpose(0, 2, 1).reshape(-1, len(keep))
        np.testing.assert_allclose(found, fitted, rtol=0, atol=1e-4 * np.abs(fitted).max())


# ---- planted redundancy ----


def mixed(op: str) -> onnx.ModelProto:
    """Channels that are mixes of fewer: 4 of 9 before a transposed reader; per group 2 of 4 before a grouped one."""
    net, rng = start(3)
    if op == "ConvTranspose":
        mix = rng.standard_normal((9, 4))
        kernel = np.tensordot(mix, rng.standard_normal((4, 2, 3, 3)) / 18**0.5, 1)
        h = net.node("Conv", "x", net.weight("a.w", kernel), out="a", pads=AROUND)
        transpose(net, rng, h, "y", (9, 5, 3, 3), strides=[2, 1], pads=[1, 0, 0, 1])
        return net.model({"y": ["N", 5, "H", "W"]})
    mixes = rng.standard_normal((2, 4, 2))
    kernel = np.einsum("gab,gbkxy->gakxy", mixes, rng.standard_normal((2, 2, 2, 3, 3)) / 18**0.5)
    h = net.node("Conv", "x", net.weight("a.w", kernel.reshape(8, 2, 3, 3)), out="a", pads=AROUND)
    conv(net, rng, h, "y", (6, 4, 3, 3), group=2, pads=AROUND)
    return net.model({"y": ["N", 6, "H", "W"]})


@pytest.mark.parametrize(("op", "dense", "rank"), [("ConvTranspose", 9, 4), ("Conv", 4, 2)])
def test_mixes_go_down_to_the_planted_rank(
    op: str, dense: int, rank: int, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "SELECTION_RIDGE", 1e-7)
    monkeypatch.setattr(fitting, "USUAL_RIDGE", 1e-7)
    model, x = mixed(op), normal(450, 2, 6, 7)
    made = fitter(model, x)
    assert {bool(r.pooled) for r in made._readers} == {mode == "pooled"}
    (elimination,) = made.eliminations
    assert elimination.cost[dense - rank] < 1e-4
    assert elimination.cost[dense - rank + 1] > 0.01
    _, condensed = made.plan([rank], sequential=True)
    assert error(condensed, model, x) < 1e-4
    _, less = made.plan([rank - 1], sequential=True)
    assert error(less, model, x) > 0.05
