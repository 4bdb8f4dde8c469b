"""Attempts at a tolerance: the strategy alone, on networks that are numbers."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

from onnx_condense.search.budget import Point
from onnx_condense.search.rounds import FIRST, REACH, Rounds


def stub(excesses: list[float], stops: int = 9) -> tuple[Rounds, list[int], Any]:
    """The strategy alone: networks are stops of a path, and their errors over the tolerance given; what is trained."""
    trained: list[int] = []
    path = tuple(Point((i,), 0.05 * i / (stops - 1), 1000 - 100 * i) for i in range(stops))
    route = SimpleNamespace(path=path, at=stops - 1, error=0.0499, gate=0.01)

    def made(_: Any, at: int) -> Any:
        return SimpleNamespace(
            at=at, proved=SimpleNamespace(value=path[at].error, excess=lambda _: excesses[len(trained) - 1])
        )

    def train(bare: Any, *_: Any) -> Any:
        trained.append(bare.at)
        at = len(trained) - 1
        proved = SimpleNamespace(value=1.0, excess=lambda _: excesses[at], worst=lambda _: "0.1")
        return SimpleNamespace(at=bare.at, parameters=7, proved=proved, trained=None)

    asked = SimpleNamespace(tolerance=0.01, threshold=None, gate=0.01, front=False)
    maker = SimpleNamespace(goal=asked, bounds=(), made=made, within=lambda _, at, __: (("untrained", at), at))
    tuner = type("Fake", (), {"rounds": 1, "notes": [], "__call__": lambda _, *a: train(*a), "told": lambda *_: None})()
    parts: tuple[Any, ...] = (maker, tuner, SimpleNamespace(proof=None))
    return Rounds(*parts), trained, route


@pytest.mark.parametrize(
    ("excesses", "trained", "best"),
    [
        # Within it: once more, as much further as the first one showed.
        ([0.5, 0.9], [4, 7], 7),
        ([0.5, 1.5], [4, 7], 4),
        ([0.0, 1.5], [4, 8], 4),
        ([0.98], [4], 4),
        # Beyond it: back by as much.
        ([2.0, 0.9], [4, 1], 1),
        ([1.01, 0.9], [4, 3], 3),
        ([2.0, 1.2], [4, 1], ("untrained", 1)),
        ([float("inf")], [4], ("untrained", 1)),
        ([100.0], [4], ("untrained", 1)),
    ],
)
def test_attempts_at_a_tolerance(excesses: list[float], trained: list[int], best: Any) -> None:
    rounds, came, route = stub(excesses)
    found: Any = rounds._to_tolerance(route)
    assert came == trained
    assert (found if isinstance(found, tuple) else found.at) == best
    assert route.path[4].error == pytest.approx(FIRST * 0.01)
    assert route.path[8].error == pytest.approx(REACH * 0.01)


@pytest.mark.parametrize(("excess", "passes"), [(0.9, True), (1.1, False)])
def test_no_size_on_the_way_is_a_result_that_is_off(
    excess: float, passes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last round may find nothing more: what the one before made is held against the tolerance then."""
    rounds, _, _ = stub([])
    step = dataclasses.make_dataclass("Step", ["proved", "trained", "tuning", "parameters"])
    on_the_way = step(SimpleNamespace(excess=lambda _: excess, worst=lambda _: "0.1"), None, None, 7)
    left = iter([on_the_way, None])
    monkeypatch.setattr(rounds, "_round", lambda *_: next(left))
    monkeypatch.setattr(rounds._tuner, "rounds", 2)
    assert (rounds.run(None) == on_the_way) is passes
    assert bool(rounds._tuner.notes) is not passes
