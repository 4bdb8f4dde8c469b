"""The path of widths, and the search on it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_condense.search import budget
from onnx_condense.search.budget import Point, SpaceCurve, back_off, greedy_path, search


def curve(
    width: int, least: int = 1, scale: float = 1.0, probes: Sequence[tuple[int, float]] = (), multiple: int = 1
) -> SpaceCurve:
    """Local error that grows like the square of the share removed; probed where it says itself, by default."""
    local = scale * (np.arange(width - least + 1) / width) ** 2
    removed = (width - least + 1) // 2
    return SpaceCurve(width, least, local, tuple(probes) or ((removed, float(local[removed])),), multiple)


def chain(outer: int, *, last: int) -> Callable[[Sequence[int]], int]:
    """Parameters of a chain of dense layers."""

    def total(widths: Sequence[int]) -> int:
        sizes = [outer, *widths, last]
        return sum(a * b for a, b in itertools.pairwise(sizes))

    return total


def path_of(
    curves: Sequence[SpaceCurve],
    total: Callable[[Sequence[int]], int],
    allied: Sequence[Sequence[int]] = (),
    frozen: AbstractSet[int] = frozenset(),
) -> list[Point]:
    def saving(widths: Sequence[int], space: int, width: int) -> int:
        after = [width if i == space else w for i, w in enumerate(widths)]
        return total(widths) - total(after)

    return greedy_path(curves, total([c.width for c in curves]), saving, allied=allied, frozen=frozen)


widths_and_scales = st.lists(st.tuples(st.integers(2, 60), st.floats(0, 10)), min_size=1, max_size=4)


@given(widths_and_scales)
@settings(max_examples=40, deadline=None)
def test_the_path_goes_down_in_parameters_and_up_in_error(spaces: list[tuple[int, float]]) -> None:
    total = chain(7, last=5)
    path = path_of([curve(w, scale=s) for w, s in spaces], total)
    assert path[0] == Point(tuple(w for w, _ in spaces), 0.0, total([w for w, _ in spaces]))
    assert path[-1].widths == (1,) * len(spaces)
    for before, after in itertools.pairwise(path):
        assert after.parameters == total(after.widths) < before.parameters
        assert after.error >= before.error
        assert sum(a != b for a, b in zip(before.widths, after.widths, strict=True)) == 1
        assert all(a <= b for a, b in zip(after.widths, before.widths, strict=True))


def test_the_cheapest_error_per_parameter_goes_first() -> None:
    path = path_of([curve(50, scale=1.0), curve(50, scale=1e-4)], chain(50, last=50))
    narrow_second = next(p for p in path if p.parameters < 4000)
    assert narrow_second.widths[0] == 50 > narrow_second.widths[1]


def test_equal_error_goes_where_more_is_saved() -> None:
    path = path_of([curve(50), curve(50)], chain(2, last=200))
    assert path[1].widths[0] == 50 > path[1].widths[1]


def test_no_space_goes_below_its_least_width() -> None:
    path = path_of([curve(30, least=11), curve(20, least=20)], chain(9, last=9))
    assert path[-1].widths == (11, 20)


sizes = st.tuples(st.integers(2, 90), st.integers(1, 90), st.sampled_from([1, 2, 3, 4, 8, 12])).map(
    lambda size: (size[0], min(size[1], size[0]), size[2])
)


@given(sizes, st.data())
@settings(max_examples=200, deadline=None)
def test_the_next_width_is_a_multiple_as_long_as_there_is_one(size: tuple[int, int, int], data: st.DataObject) -> None:
    width, least, multiple = size
    space = curve(width, least, multiple=multiple)
    now = data.draw(st.integers(least, width))
    step = data.draw(st.integers(1, 20))
    wish = max(least, now - step)
    good = [w for w in range(least, wish + 1) if w % multiple == 0]
    found = space.narrower(now, step)
    assert found == max(good, default=wish)
    assert least <= found <= now
    assert found < now or now == least


@given(st.lists(sizes, min_size=1, max_size=3))
@settings(max_examples=40, deadline=None)
def test_stops_are_multiples_and_every_space_gets_to_its_least(spaces: list[tuple[int, int, int]]) -> None:
    path = path_of([curve(w, least, multiple=m) for w, least, m in spaces], chain(7, last=5))
    assert path[-1].widths == tuple(least for _, least, _ in spaces)
    for before, after in itertools.pairwise(path):
        assert after.parameters < before.parameters
        for old, new, (_, least, multiple) in zip(before.widths, after.widths, spaces, strict=True):
            assert least <= new <= old
            if new < old and new % multiple:
                # Only where no multiple is left below.
                assert not [w for w in range(least, old) if w % multiple == 0 and w <= new]


def test_steps_that_save_nothing_are_not_taken() -> None:
    assert len(greedy_path([curve(30)], 100, lambda *_: 0)) == 1
    assert len(greedy_path([curve(30)], 100, lambda *_: -3)) == 1


def test_a_first_cut_that_costs_a_copy_is_taken_in_one_larger_step() -> None:
    def total(widths: Sequence[int]) -> int:
        # Narrowing means a copy of a shared weight: dearer until half is gone.
        return 100 if widths[0] == 40 else 5 * widths[0]

    path = path_of([curve(40)], total)
    assert path[1].widths[0] < 20
    assert path[1].parameters < path[0].parameters
    assert path[-1].widths == (1,)


def tied(widths: Sequence[int]) -> int:
    """An encoder of 40 neurons and a decoder of 40 through 6, by one weight of each size as long as nothing goes."""
    first, middle, last = widths
    outer = 20 * 40 if first == last == 40 else 20 * (first + last)
    inner = 40 * 6 if first == last == 40 and middle == 6 else middle * (first + last)
    return outer + inner


def test_spaces_that_share_a_weight_go_together_where_one_of_them_can_not() -> None:
    """Alone either costs a copy, however narrow; the 6 in the middle would have to go all but one for it."""
    curves = [curve(40), curve(6, scale=1e6), curve(40, scale=2.0)]
    together = path_of(curves, tied, [(0, 2), (0, 1, 2)])
    assert together[1].widths[1] == 6
    assert together[1].widths[0] < 20
    assert together[1].widths[2] < 20
    assert together[1].error < 2.0
    sizes = [point.parameters for point in together]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[1:] == [tied(point.widths) for point in together[1:]]
    assert together[-1].widths == (1, 1, 1)
    alone = path_of(curves, tied)
    assert len(alone) == 1 or alone[1].error > 100.0


def test_allied_spaces_that_can_move_alone_do() -> None:
    total = chain(7, last=5)
    curves = [curve(30), curve(20)]
    assert path_of(curves, total, [(0, 1)]) == path_of(curves, total)


def test_frozen_spaces_are_no_allies() -> None:
    assert len(path_of([curve(40), curve(6), curve(40)], tied, [(0, 2)], frozenset({1, 2}))) == 1


def test_predictions_pass_through_the_probes_and_never_fall() -> None:
    wanted = curve(100, probes=((50, 1e-3), (85, 2e-2)))
    predicted = wanted.predicted()
    assert predicted[0] == 0.0
    assert predicted[50] == pytest.approx(1e-3)
    assert predicted[85] == pytest.approx(2e-2)
    assert (np.diff(predicted) >= 0).all()


@pytest.mark.parametrize("probed", [0.0, math.inf, 1e300])
def test_extreme_probes_keep_the_prediction_finite(probed: float) -> None:
    predicted = curve(20, probes=((5, probed), (10, probed))).predicted()
    assert np.isfinite(predicted).all()
    assert len(path_of([curve(20, probes=((5, probed), (10, probed)))], chain(3, last=3))) > 2


def test_free_channels_cost_nothing() -> None:
    free = SpaceCurve(10, 1, np.zeros(10), ((5, 0.0), (8, 0.0)))
    assert not free.predicted().any()
    assert path_of([free], chain(3, last=3))[-1].error == 0.0


def straight(stops: int, slope: float = 1 / 128) -> list[Point]:
    return [Point((stops - i,), slope * i, 10_000 - 90 * i) for i in range(stops)]


class Recorder:
    """Measures by a function of the stop, and remembers."""

    def __init__(self, error: Callable[[int], float]) -> None:
        self.error, self.seen = error, dict[int, float]()

    def __call__(self, at: int) -> float:
        """The error at a stop that was not asked for before."""
        assert at > 0
        assert at not in self.seen
        self.seen[at] = self.error(at)
        return self.seen[at]


@given(st.integers(1, 300), st.lists(st.floats(0, 10), min_size=300, max_size=300), st.floats(1e-6, 10))
@settings(max_examples=200, deadline=None)
def test_the_answer_was_measured_within_the_tolerance_or_is_dense(
    stops: int, errors: list[float], tolerance: float
) -> None:
    measure = Recorder(lambda at: errors[at])
    found = search(straight(stops), measure, tolerance)
    assert 0 <= found < stops
    assert found == 0 or measure.seen[found] <= tolerance
    assert len(measure.seen) <= budget.MAX_MEASUREMENTS


@pytest.mark.parametrize("factor", [1e-6, 0.2, 1.0, 3.0, 1e4])
@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_a_monotone_error_is_met_closely(factor: float, power: float) -> None:
    path = straight(100)

    def error(at: int) -> float:
        return float(factor * path[at].error ** power)

    for tolerance in (error(3), error(50), error(97)):
        best = max(i for i in range(100) if error(i) <= tolerance)
        found = search(path, Recorder(error), tolerance)
        assert found <= best
        near = error(found) >= (1 - budget.CLOSE) * tolerance
        assert near or path[found].parameters <= path[best].parameters * 1.05


@pytest.mark.parametrize("limit", [1, 2, 7, 60, 150])
def test_a_path_whose_prediction_says_nothing_is_halved(limit: int) -> None:
    flat = [Point((200 - i,), 0.0, 10_000 - 40 * i) for i in range(200)]
    measure = Recorder(lambda at: 0.001 if at <= limit else math.inf)
    found = search(flat, measure, 0.01)
    assert found <= limit
    assert found > limit - 20
    assert found > 0 or limit < 20


@pytest.mark.parametrize("free", [1, 5, 39])
def test_stops_that_cost_nothing_are_no_end(free: int) -> None:
    """The first stops are free and said to be, yet the search measured one of them."""
    path = [Point((40 - i,), max(0, i - free) / 10, 10_000 - 200 * i) for i in range(40)]
    for limit in range(free, 40):
        errors = [0.0 if at <= free else 0.001 if at <= limit else 10.0 for at in range(40)]
        assert free <= search(path, Recorder(errors.__getitem__), 0.01) <= limit
    assert search(path, Recorder(lambda at: 0.5 if at <= free else 10.0), 1.0) == free


@pytest.mark.parametrize("limit", [8, 23, 30])
def test_predictions_that_lead_nowhere_are_left(limit: int) -> None:
    """They fall by orders of magnitude from stop to stop, where what is measured hardly does."""
    errors = [*np.geomspace(1e-154, 1e-4, 38), *np.linspace(0.4, 1.0, 12)]
    path = [Point((50 - at,), float(error), 10_000 - 100 * at) for at, error in enumerate(errors)]
    measure = Recorder(lambda at: 0.0 if at <= limit else 0.05 + 0.02 * (at - limit))
    found = search(path, measure, 0.02)
    assert limit - 4 <= found <= limit


def test_a_silent_probe_tells_no_scale() -> None:
    """Half of the channels are silent but for rounding; what follows costs what the other probes say."""
    local = np.r_[np.linspace(0.0, 1e-18, 42), 0.01 * np.arange(1, 24)]
    predicted = SpaceCurve(65, 1, local, ((32, 0.0), (54, 0.05), (62, 0.2))).predicted()
    assert predicted[41] < 1e-15
    assert predicted[42] > 1e-3
    assert not SpaceCurve(65, 1, local, ((32, 0.0),)).predicted()[32] > 1e-15


def test_a_stop_close_below_the_tolerance_ends_the_search() -> None:
    path = straight(1000)
    measure = Recorder(lambda at: 1.3 * path[at].error)
    found = search(path, measure, 0.5)
    assert 0.5 * (1 - budget.CLOSE) <= measure.seen[found] <= 0.5
    assert len(measure.seen) <= 4


def test_everything_within_the_tolerance_ends_at_the_last_stop() -> None:
    measure = Recorder(lambda _: 0.0)
    assert search(straight(50), measure, 0.5) == 49
    assert len(measure.seen) == 1


def test_nothing_is_measured_where_there_is_only_the_dense_network() -> None:
    assert search(straight(1), Recorder(lambda _: 0.0), 1.0) == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=200), st.data())
@settings(max_examples=60, deadline=None)
def test_backing_off_always_ends_at_dense(errors: list[float], data: st.DataObject) -> None:
    path = [Point((0,), e, 1000 - i) for i, e in enumerate(sorted(errors))]
    path[0] = Point((0,), 0.0, 1000)
    at = data.draw(st.integers(0, len(path) - 1))
    # The bit of the eighth time leaves nothing of the target, and then what is saved halves.
    for times in range(1, 20):
        if at == 0:
            break
        earlier = back_off(path, at, data.draw(st.floats(1.0, 3.0)), times)
        assert earlier < at
        at = earlier
    assert at == 0


def test_backing_off_follows_how_far_the_error_was_off() -> None:
    path = straight(101)
    assert back_off(path, 100, 1.0, 1) == 99
    assert back_off(path, 100, 1.25, 1) == 79
    assert back_off(path, 50, 1.25, 3) == 38
    assert back_off(path, 100, 1.0, 8) == 50


@pytest.mark.parametrize("excess", [1.5, math.inf, math.nan])
def test_where_everything_seems_free_but_fails_half_of_it_is_given_back(excess: float) -> None:
    """Predictions do not tell how far to go back; what breaks down (infinity, NaN) is no nearer to what holds."""
    path = [Point((100 - i,), 0.0, 1000 - i) for i in range(101)]
    assert [back_off(path, at, excess, 1) for at in (100, 50, 25, 12, 10)] == [50, 25, 12, 6, 5]
    # 0.5 % of the parameters are worth a fit, 0.4 % are not.
    assert back_off(path, 9, excess, 1) == 0
    assert back_off(path, 1, excess, 1) == 0


def test_stops_that_seem_free_come_next_behind_the_last_with_an_error() -> None:
    path = [Point((9 - i,), max(0.0, i - 4), 900 - 100 * i) for i in range(8)]
    assert back_off(path, 5, 1.5, 1) == 4
    assert back_off(path, 4, 1.5, 2) == 2
