"""Where widths stop: multiples that run well first, finer ones where these will not do, and redundant ones spared."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from convnets import network
from onnx import helper

from onnx_condense import condense
from onnx_condense.evidence.weights import lossless_plan
from onnx_condense.network.model import Network
from onnx_condense.options.goal import Goal
from onnx_condense.proving.proof import Prover
from onnx_condense.search import widths
from onnx_condense.search.aim import Aim
from onnx_condense.search.bounds import Bounds
from onnx_condense.search.budget import Point, SpaceCurve, greedy_path, search
from onnx_condense.search.widths import Widths, better_refit
from onnx_condense.spaces import find_spaces


@pytest.fixture(autouse=True)
def _untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Prover, "time", lambda *_: [])


Array = Any
NODE = helper.make_node
PASS = [NODE("Identity", ["z"], ["h"])]


def mixed(width: int, rank: int) -> onnx.ModelProto:
    """A Conv whose last rows are mixes of the first ones, nothing but linear behind it."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((rank, 3, 3, 3))
    mixes = rng.standard_normal((width - rank, rank)) / rank**0.5
    w = np.concatenate([rows, np.einsum("ij,jklm->iklm", mixes, rows)])
    return network(PASS, reader={}, shape=["N", 3, 8, 8], w=w, b=np.zeros(width))


@pytest.mark.parametrize(("width", "rank", "stop"), [(16, 12, 12), (24, 11, 16), (32, 24, 24)])
def test_the_widest_steps_that_meet_the_tolerance_are_taken(width: int, rank: int, stop: int) -> None:
    """Multiples of 8 if one is within the tolerance, else of 4, else any."""
    x = np.random.default_rng(1).standard_normal((200, 3, 8, 8)).astype(np.float32)
    found = condense(mixed(width, rank), calibration=x, tolerance=1e-3, threads=1, allow_slower=True)
    assert found.report.spaces[0].after == stop


def test_a_size_that_coarse_steps_undershoot_is_met_by_finer_ones() -> None:
    x = np.random.default_rng(1).standard_normal((200, 3, 8, 8)).astype(np.float32)
    proto = mixed(16, 16)
    found = condense(proto, calibration=x, keep=0.8, threads=1, allow_slower=True)
    assert found.report.spaces[0].after == 12


def copies(width: int, extra: int) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    w, b = rng.standard_normal((width - extra, 3, 3, 3)), rng.standard_normal(width - extra)
    return network(
        [NODE("Relu", ["z"], ["h"])],
        reader={},
        w=np.concatenate([w, 2 * w[:extra]]),
        b=np.concatenate([b, 2 * b[:extra]]),
    )


@pytest.mark.parametrize(("width", "extra", "left"), [(16, 1, 16), (16, 8, 8), (24, 9, 16), (20, 3, 17), (20, 4, 16)])
def test_redundant_channels_are_spared_up_to_the_next_multiple(width: int, extra: int, left: int) -> None:
    """17 of 20: there are not enough redundant ones to reach 24."""
    view = find_spaces(Network(copies(width, extra)))
    plan = lossless_plan(Network(copies(width, extra)), view, {view.spaces[0].name: 8})
    kept = {s.space: len(s.keep) for s in plan.selections}.get(view.spaces[0].name, width)
    assert kept == left


def curve(errors: list[float], multiple: int = 1) -> SpaceCurve:
    local = np.array([0.0, *errors])
    return SpaceCurve(len(errors) + 1, 1, local, ((1, errors[0]), (len(errors), errors[-1])), multiple)


def test_a_path_goes_on_without_frozen_spaces() -> None:
    def saving(widths: Any, space: int, width: int) -> int:
        return int(widths[space]) - width

    curves = [curve([1e-4, 1e-3, 1e-2]), curve([1e-1, 1.0, 10.0])]
    whole = greedy_path(curves, 8, saving)
    rest = greedy_path(curves, 6, saving, start=(2, 4), frozen={1})
    assert [p.widths for p in rest] == [(2, 4), (1, 4)]
    assert rest[0].error == pytest.approx(next(p.error for p in whole if p.widths == (2, 4)))
    assert [p.widths for p in greedy_path(curves, 6, saving, start=(2, 4), frozen={0})][1:] == [(2, 3), (2, 2), (2, 1)]


def test_a_search_keeps_to_its_limit() -> None:
    path = greedy_path([curve(list(np.geomspace(1e-6, 1.0, 99)))], 100, lambda w, s, n: int(w[s]) - n)
    asked: list[int] = []

    def measure(at: int) -> float:
        asked.append(at)
        return path[at].error ** 3

    free = search(path, measure, 1e-4)
    needed = len(asked)
    asked.clear()
    assert search(path, measure, 1e-4, 1) <= free
    assert len(asked) == 1 < needed


@dataclasses.dataclass
class Tried:
    """Stands for the fitter and the judge: a network is whether it was refitted stage by stage."""

    staged: float
    at_once: float
    light: bool = True
    spaces: tuple[()] = ()
    asked: list[bool] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        self.network = Network(mixed(8, 8))
        self.view = find_spaces(self.network)

    def plan(self, _: Any, *, sequential: bool) -> tuple[None, bool]:
        """As the fitter does."""
        self.asked.append(sequential)
        return None, sequential

    def measure(self, sequential: bool) -> Any:
        """As the judge does."""
        error = self.staged if sequential else self.at_once
        return SimpleNamespace(value=error, upper=lambda *_: error)


@pytest.mark.parametrize(("staged", "at_once"), [(0.1, 0.2), (0.2, 0.1)])
def test_the_better_kind_of_refit_is_found_out_once(staged: float, at_once: float) -> None:
    tried: Any = Tried(staged, at_once)
    goal = Goal(0.5, None, allow_slower=True, seed=0)
    widths = Widths(tried, tried, goal, Aim(tried, Bounds(goal, tried.network), lambda _: 1.0), lambda: None)
    path = [Point((i,), 0.0, 10 - i) for i in range(3)]
    assert [widths._measured(path[i]) for i in (1, 2, 1)] == [min(staged, at_once)] * 3
    assert tried.asked == [True, False, staged < at_once]
    assert widths.staged((9,)) == (staged < at_once)
    assert len(tried.asked) == 3


@pytest.mark.parametrize(("staged", "better"), [(0.104, True), (0.106, False)])
def test_refits_stage_by_stage_may_measure_a_little_worse(staged: float, better: bool) -> None:
    tried: Any = Tried(staged, 0.1)
    assert better_refit(tried, tried, (1,))[0] == better


def heavy(at_once: Callable[[int], float], staged: Callable[[int], float]) -> tuple[Any, int, list[bool]]:
    """A search for 0.04, by errors at every one of 100 stops."""
    path = [Point((100 - i,), 1e-3 * i, 100 - i) for i in range(100)]

    class Heavy(Tried):
        def plan(self, given: Any, *, sequential: bool) -> Any:
            super().plan(given, sequential=sequential)
            return None, (staged if sequential else at_once)(100 - given[0])

        def measure(self, error: Any) -> Any:
            return SimpleNamespace(value=error, upper=lambda *_: error)

    tried: Any = Heavy(0.0, 0.0, light=False)
    goal = Goal(0.04, None, allow_slower=True, seed=0)
    widths = Widths(tried, tried, goal, Aim(tried, Bounds(goal, tried.network), lambda _: 1.0), lambda: None)
    return widths, widths._search(path), tried.asked


@pytest.mark.parametrize(("gain", "furthest"), [(0.5, 80), (0.9, 44), (1.5, 40)])
def test_a_heavy_network_is_searched_with_one_shot_refits(gain: float, furthest: int) -> None:
    """Refits stage by stage are made at few stops, and yet the stop is what they allow."""
    widths, at, asked = heavy(lambda i: 1e-3 * i, lambda i: gain * 1e-3 * i)
    better = min(gain, 1.0)
    assert 0.9 * furthest <= at <= furthest
    assert widths.measured((100 - at,)) == pytest.approx(better * 1e-3 * at)
    assert 1 <= asked.count(True) <= 3
    assert [p.parameters for p in widths.curve] == sorted((p.parameters for p in widths.curve), reverse=True)
    assert all(p.error == pytest.approx(better * 1e-3 * (100 - p.parameters)) for p in widths.curve)


def test_which_refits_pay_is_seen_where_errors_matter() -> None:
    """Far below the tolerance the better one is a matter of chance."""
    widths, at, _ = heavy(lambda i: 1e-5 * i if i < 50 else 0.06, lambda i: 1.5e-5 * i if i < 50 else 0.03 + 1e-4 * i)
    assert widths.staged((1,))
    assert at == 99


@pytest.mark.parametrize(
    ("options", "shares"),
    [
        ({"tolerance": 1e-3}, {0.5, 0.15}),
        ({"tolerance": 10.0}, {0.5, 0.85, 0.97}),
        ({"tolerance": 1e-3, "keep": 0.9}, {0.5, 0.85, 0.97}),
        ({"tolerance": 1e-3, "front": True}, {0.5, 0.85, 0.97}),
    ],
)
def test_what_a_tolerance_rules_out_is_not_probed(
    options: dict[str, Any], shares: set[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tight layer errs far beyond the tolerance with half of its channels gone: fewer are tried, not more."""
    seen: list[float] = []
    probe = widths._probe

    def recorded(*given: Any) -> Any:
        seen.append(given[-1])
        return probe(*given)

    monkeypatch.setattr(widths, "_probe", recorded)
    x = np.random.default_rng(1).standard_normal((200, 3, 8, 8)).astype(np.float32)
    condense(mixed(16, 16), calibration=x, threads=1, allow_slower=True, **options)
    assert set(seen) == shares
    assert len(seen) == len(shares)
