"""Paired timing: the statistics, with a clock that tests wind by hand."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy import stats

from onnx_condense.proving import latency
from onnx_condense.report.data import Latency

if TYPE_CHECKING:
    from collections.abc import Callable


pytestmark = pytest.mark.real_timing


class FakeClock:
    """Time passes only when somebody spends it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """The time in s."""
        return self.now

    def spend(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds


class FakeNetwork:
    """Makes runners that cost `seconds` times a factor drawn once per session; records who was alive when."""

    def __init__(self, name: str, seconds: float, clock: FakeClock, log: list[str], *, load: float = 0.0) -> None:
        self.name, self.seconds, self.clock, self.log, self.load = name, seconds, clock, log, load
        self.rng = np.random.default_rng(len(name) + ord(name[0]))
        self.runs = 0

    def fresh(self) -> latency.Run:
        """A runner of a new session."""
        self.log.append(self.name)
        self.clock.spend(self.load)
        factor = math.exp(0.03 * self.rng.normal())

        def run() -> None:
            self.runs += 1
            self.clock.spend(self.seconds * factor)

        return run


def fake_rounds(
    before: float, after: float, *, load: float = 0.0, first_look: int = 0
) -> tuple[list[latency.Round], list[str], FakeClock]:
    clock, log = FakeClock(), list[str]()
    networks = FakeNetwork("a", before, clock, log, load=load), FakeNetwork("b", after, clock, log, load=load)
    effort = latency.Effort(first_look=first_look)
    done = latency.measure((networks[0].fresh, networks[1].fresh), effort, clock)
    return done, log, clock


def test_interval_of_few_rounds_is_students() -> None:
    values = [0.1, -0.05, 0.2, 0.02]
    expected = stats.t.interval(0.99, 3, loc=np.mean(values), scale=stats.sem(values))
    np.testing.assert_allclose(latency.interval(values, 0.99), np.exp(expected), rtol=1e-12)


def test_interval_of_many_rounds_is_that_of_the_trimmed_mean() -> None:
    values = np.random.default_rng(0).standard_t(2, 30).tolist()
    center = float(stats.trim_mean(values, latency.TRIM))
    error = float(stats.mstats.trimmed_stde(values, (0.2, 0.2)))
    expected = stats.t.interval(0.99, 30 - 12 - 1, loc=center, scale=error)
    assert math.isclose(latency.centre(values), center, rel_tol=1e-12)
    np.testing.assert_allclose(latency.interval(values, 0.99), np.exp(expected), rtol=1e-3)


@pytest.mark.parametrize("count", [4, 8, 16, 48])
@pytest.mark.parametrize("tail", ["normal", "bursts"])
def test_interval_covers_equal_networks_at_its_level(count: int, tail: str) -> None:
    """1000 comparisons of equal networks: at 99 % about 10 verdicts are wrong; 25 would be five sigma."""
    rng = np.random.default_rng(count)
    wrong = 0
    for _ in range(1000):
        values = 0.03 * rng.normal(size=count)
        if tail == "bursts":
            values += 0.7 * rng.choice([-1, 0, 1], size=count, p=[0.1, 0.8, 0.1])
        low, high = latency.interval(values.tolist(), 0.99)
        wrong += low > 1 or high < 1
    assert wrong < 25


def test_bursts_do_not_hide_a_difference() -> None:
    rng = np.random.default_rng(0)
    values = 0.1 + 0.02 * rng.normal(size=40)
    values[:6] += [0.7, -0.7, 0.6, -0.6, 0.7, -0.7]
    low, high = latency.interval(values.tolist())
    assert 1.05 < low < math.exp(0.1) < high < 1.16


def test_the_first_to_be_timed_alternates() -> None:
    assert [latency.order(k) for k in range(3)] == [(0, 1), (1, 0), (0, 1)]
    _, log, _ = fake_rounds(1e-3, 1e-3)
    assert "".join(log) == "abba" * (len(log) // 4)


def test_sessions_of_a_round_never_live_together() -> None:
    """Worker threads of a living session slow its rival down."""
    alive: list[str] = []
    clock = FakeClock()

    class Runner:
        def __init__(self, name: str) -> None:
            assert not alive
            self.name = name
            alive.append(name)

        def __call__(self) -> None:
            clock.spend(1e-3)

        def __del__(self) -> None:
            alive.remove(self.name)

    makers: tuple[Callable[[], latency.Run], Callable[[], latency.Run]] = (lambda: Runner("a"), lambda: Runner("b"))
    assert latency.measure(makers, latency.Effort(rounds=4, seconds=1.0), clock)
    assert not alive


def test_equal_networks_take_all_the_time_asked_for() -> None:
    done, _, clock = fake_rounds(1e-3, 1e-3)
    low, high = latency.speedup_interval(done)
    assert low < 1 < high
    assert 0.8 * latency.FULL.seconds < clock.now < 1.2 * latency.FULL.seconds


@pytest.mark.parametrize(
    ("before", "first_look", "rounds"),
    [
        pytest.param(2e-3, 0, 8, id="plain"),
        pytest.param(2e-3, 16, 16, id="plain, timed closely"),
        pytest.param(1.06e-3, 0, 16, id="clear"),
        pytest.param(5e-4, 0, 8, id="plainly slower"),
    ],
)
def test_differences_end_at_the_look_that_shows_them(before: float, first_look: int, rounds: int) -> None:
    done, _, clock = fake_rounds(before, 1e-3, first_look=first_look)
    assert len(done) == rounds
    assert clock.now < latency.FULL.seconds * 1.2 * rounds / latency.FULL.rounds
    low, high = latency.speedup_interval(done)
    assert 0.8 * before < 1e-3 * low < before < 1e-3 * high < 1.2 * before


def test_all_looks_together_hold_at_the_level() -> None:
    """4000 comparisons of equal networks: at 99 % about 40 verdicts are wrong; 70 would be nearly five sigma."""
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(4000):
        done = [latency.Round(math.exp(value), 1.0) for value in 0.03 * rng.normal(size=latency.FULL.rounds)]
        ends = next(k for k in range(1, len(done) + 1) if latency.enough(done[:k], 0.0, latency.FULL))
        wrong += latency.decided(latency.speedup_interval(done[:ends]))
    assert wrong < 70


def test_rounds_that_time_ends_are_told_as_the_last_look() -> None:
    """Slow networks get eight rounds where that is all the time there is."""
    done = [latency.Round(1.0 + 0.02 * (k % 4), 1.0) for k in range(8)]
    assert not latency.decided(latency.at_look(done, latency.LOOKS[8]))
    assert latency.speedup_interval(done) == latency.at_look(done, latency.LAST_LOOK)


@pytest.mark.parametrize(("before", "after", "load"), [(0.2, 0.2, 0.0), (0.2, 0.2, 0.3), (2.0, 0.1, 0.0)])
def test_slow_networks_get_few_rounds(before: float, after: float, load: float) -> None:
    done, _, clock = fake_rounds(before, after, load=load)
    assert len(done) >= latency.FEWEST_ROUNDS
    assert len(done) % 2 == 0
    fewest = latency.FEWEST_ROUNDS * 5.5 * (before + after + 2 * load)
    assert clock.now < max(1.2 * latency.LIMIT_S, fewest)


def test_short_runs_are_timed_in_blocks() -> None:
    clock = FakeClock()
    reads = 0

    def counting_clock() -> float:
        nonlocal reads
        reads += 1
        return clock.now

    network = FakeNetwork("a", 1e-6, clock, [])
    seconds = latency.typical(network.fresh(), counting_clock, 0.02)
    assert math.isclose(seconds, 1e-6, rel_tol=0.2)
    assert network.runs > 10 * reads


def test_runs_that_others_disturb_do_not_count() -> None:
    """Six of seven runs wait for somebody else: medians would compare how long."""
    clock = FakeClock()
    costs = itertools.cycle([5e-3, 9e-3, 7e-3, 1e-3, 6e-3, 8e-3, 4e-3])
    assert math.isclose(latency.typical(lambda: clock.spend(next(costs)), clock, 0.2), 1e-3)


def test_a_run_of_luck_does_not_count() -> None:
    """One block in fifty that is far too fast says nothing about the others."""
    clock = FakeClock()
    costs = itertools.cycle([1e-3] * 49 + [1e-4])
    assert math.isclose(latency.typical(lambda: clock.spend(next(costs)), clock, 0.2), 1e-3)


def test_a_clock_that_stands_still_during_a_run_is_survived() -> None:
    clock = FakeClock()
    ticks = iter(range(10_000))

    def coarse() -> float:
        return 1e-2 * (next(ticks) // 100)

    assert latency.typical(lambda: clock.spend(0.0), coarse, 0.02) >= 0


@pytest.mark.parametrize(
    "costs",
    [
        pytest.param([8.0, 4.0, 2.0, 1.0], id="faster with every run"),
        pytest.param([8.0, 8.0, 4.0, 4.0, 4.0, 2.0, 2.0, 1.0], id="in steps"),
        pytest.param([8.0, 4.0, 7.0, 2.0, 5.0, 5.0, 1.0], id="disturbed"),
    ],
)
def test_warm_up_goes_on_while_runs_get_faster(costs: list[float]) -> None:
    clock = FakeClock()
    left = iter([*costs, *[1.0] * 10])
    fastest = latency.warm_up(lambda: clock.spend(next(left)), clock, 100.0)
    assert fastest == 1.0
    assert len(list(left)) == 10 - latency.STEADY


def test_warm_up_of_a_network_that_never_settles_ends() -> None:
    clock = FakeClock()
    costs = (0.9**k for k in itertools.count())
    latency.warm_up(lambda: clock.spend(next(costs)), clock, 3.0)
    assert 3.0 <= clock.now < 4.0


def test_warm_up_of_a_slow_network_is_one_run() -> None:
    clock = FakeClock()
    assert latency.warm_up(lambda: clock.spend(5.0), clock, 0.1) == 5.0
    assert clock.now == 5.0


@pytest.mark.parametrize(("after_ms", "told"), [(0.95, None), (0.9, None), (0.8, "1.25x")])
def test_medians_that_contradict_the_factor_are_told(after_ms: float, told: str | None) -> None:
    """Where the machine has two speeds, one median may be of slow rounds and the other not."""
    timing = Latency("CPUExecutionProvider", 1, 16, 1.0, after_ms, 1.05, (1.02, 1.07))
    text = f"1.05x is of pairs of rounds, the two medians alone would say {told}"
    notes = list(latency.apart([timing]))
    assert [note.endswith(text) and note.startswith("batch 16: ") for note in notes] == [True] * bool(told)
