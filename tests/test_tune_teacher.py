"""What a student is shown: the dense network's own answers, each sample in its turn, and nothing that judges."""

from __future__ import annotations

import importlib
import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
from mlps import Array, Net, mlp, normal
from onnx import TensorProto, helper

from onnx_condense.data import Samples, input_specs, load
from onnx_condense.errors import ModelError
from onnx_condense.runtime import Runtime, run
from onnx_condense.tune import mixing
from onnx_condense.tune.losses import KL, MSE
from onnx_condense.tune.mixing import mixed
from onnx_condense.tune.teacher import Lesson, Source, Teacher

module: Any = importlib.import_module("onnx_condense.tune.teacher")

X = normal(100, 3)
FIT, SEARCH, VERIFY = np.arange(0, 60), np.arange(60, 80), np.arange(80, 100)
ONE = Runtime(threads=1)


def rows(values: Any = X, model: Any = None) -> Samples:
    return load(values, input_specs((model or mlp()).graph))


def teacher(model: Any = None, samples: Samples | None = None, **options: Any) -> Teacher:
    model = model or mlp()
    return Teacher(model, samples or rows(model=model), FIT, SEARCH, ONE, **options)


def answers(model: Any, feed: Any) -> list[Array]:
    return run(ONE.session(model), feed)


def check(lesson: Lesson, model: Any) -> None:
    """Answers are those that ONNX Runtime gives."""
    for told, wanted in zip(lesson.answers, answers(model, lesson.feed), strict=True):
        np.testing.assert_allclose(told, wanted, rtol=1e-5, atol=1e-6)


@pytest.fixture
def unmixed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixing, "EACH", 0)


def shown(found: Teacher, steps: int, size: int = 16) -> list[list[Lesson]]:
    return list(itertools.islice(found.steps(np.random.default_rng(0), size), steps))


def keys(lessons: list[list[Lesson]]) -> Counter[bytes]:
    return Counter(row.tobytes() for step in lessons for lesson in step for row in lesson.feed["x"])


def of(values: Array) -> Counter[bytes]:
    return Counter(row.tobytes() for row in values)


# ---- answers ----


@pytest.mark.parametrize("held", [2**30, 0])
def test_answers_are_those_of_the_dense_network(held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HELD_BYTES", held)
    found = teacher()
    assert bool(found._answers[0]._held) == bool(held)
    lessons = [lesson for step in shown(found, 30) for lesson in step]
    lessons += [*found.tests(7), found.example(5)]
    assert all(lesson.count == len(lesson.feed["x"]) for lesson in lessons)
    for lesson in lessons:
        check(lesson, mlp())


def test_kept_or_not_the_same_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = shown(teacher(), 25)
    monkeypatch.setattr(module, "HELD_BYTES", 0)
    for a, b in zip(itertools.chain(*kept), itertools.chain(*shown(teacher(), 25)), strict=True):
        assert np.array_equal(a.feed["x"], b.feed["x"])
        np.testing.assert_allclose(a.answers[0], b.answers[0], rtol=1e-5, atol=1e-6)


def test_large_answers_are_not_all_held_to_tell_their_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = module.scale_of

    def scale_of(kind: str, passes: list[Array], weight: float) -> Any:
        seen.append(len(passes))
        return real(kind, passes, weight)

    monkeypatch.setattr(module, "scale_of", scale_of)
    monkeypatch.setattr(module, "ROWS", 10)
    teacher()
    monkeypatch.setattr(module, "HELD_BYTES", 2 * 10 * 2 * 4)
    teacher()
    assert seen == [6, 3]


def test_the_tests_are_the_search_share_in_order() -> None:
    found = np.concatenate([lesson.feed["x"] for lesson in teacher().tests(6)])
    assert np.array_equal(found, X[SEARCH])
    assert np.array_equal(teacher().example(4).feed["x"], X[FIT[:4]])


# ---- order ----


def test_every_sample_once_before_any_again(unmixed: None) -> None:
    del unmixed
    found = teacher()
    assert found.count == len(FIT)
    lessons = shown(found, 8)
    assert [sum(lesson.count for lesson in step) for step in lessons] == [15] * 8
    assert keys(lessons[:4]) == keys(lessons[4:]) == of(X[FIT])
    assert keys(lessons[:1]) != keys(lessons[4:5])
    again = shown(teacher(), 8)
    assert all(np.array_equal(a[0].feed["x"], b[0].feed["x"]) for a, b in zip(lessons, again, strict=True))
    other = next(found.steps(np.random.default_rng(1), 16))
    assert not np.array_equal(other[0].feed["x"], lessons[0][0].feed["x"])


def test_no_step_is_of_a_few_samples_only(unmixed: None) -> None:
    del unmixed
    assert [len(s[0].feed["x"]) for s in shown(teacher(), 3, 29)] == [30, 30, 30]
    assert len(shown(teacher(), 1, 1000)[0][0].feed["x"]) == 60


def test_what_is_mixed_is_shown_as_well() -> None:
    found = teacher()
    assert found.count == len(FIT)
    # 60 samples and 240 between them, 15 a step.
    lessons = keys(shown(found, 20))
    assert len(lessons) == 300
    assert set(of(X[FIT])) <= set(lessons)
    assert set(lessons).isdisjoint(of(X[SEARCH]))
    assert set(lessons).isdisjoint(of(X[VERIFY]))


# ---- further inputs ----


def test_further_inputs_without_what_judges(unmixed: None) -> None:
    del unmixed
    fresh = normal(30, 3, seed=9)
    more = rows(np.concatenate([X[VERIFY[:4]], fresh, X[SEARCH[3:5]], X[FIT[:2]]]))
    found = teacher(more=more, apart=[Source(rows(), VERIFY)])
    assert found.left_out == 6
    assert found.count == 60 + 32
    steps = 4 + 2
    assert keys(shown(found, steps)) == of(X[FIT]) + of(fresh) + of(X[FIT[:2]])
    for step in shown(found, steps):
        check(step[0], mlp())


def test_further_inputs_may_be_none_that_is_left() -> None:
    found = teacher(more=rows(X[SEARCH]))
    assert (found.left_out, found.count) == (len(SEARCH), len(FIT))
    assert set(keys(shown(found, 40))).isdisjoint(of(X[SEARCH]))


# ---- other forms of samples ----


def test_a_network_with_a_fixed_batch_takes_several_passes_a_step() -> None:
    model = mlp(batch=5)
    samples = rows(normal(500, 3), model)
    assert len(samples) == 100
    found = teacher(model, samples)
    steps = shown(found, 3, 20)
    assert [len(step) for step in steps] == [20, 20, 20]
    assert all(lesson.feed["x"].shape == (5, 3) and lesson.count == 1 for step in steps for lesson in step)
    assert keys(steps) == of(normal(500, 3)[:300])
    for step in steps:
        check(step[7], model)
    assert len(list(found.tests(8))) == len(SEARCH)


def feeds() -> tuple[Any, Samples]:
    model = mlp(op="MatMul", middle=["L"])  # type: ignore[list-item]
    given = [{"x": normal(1 + i % 3, 2 + i % 5, 3, seed=i)} for i in range(100)]
    return model, load(iter(given), input_specs(model.graph))


@pytest.mark.parametrize("loss", [MSE, KL])
def test_feeds_are_shown_one_by_one(loss: str) -> None:
    model, samples = feeds()
    found = teacher(model, samples, loss=loss)
    steps = shown(found, 6, 10)
    assert [len(step) for step in steps] == [10] * 6
    for step in steps:
        check(step[0], model)
    assert len({lesson.feed["x"].tobytes() for step in steps for lesson in step}) == 60
    assert not found._answers[0]._held
    assert len(list(found.tests(8))) == len(SEARCH)
    assert found.scales[0] is not None


# ---- losses ----


def several() -> Any:
    """Outputs that vary, do not, and are integers."""
    net = Net({"x": ["N", 3]})
    net.node("MatMul", "x", net.weight("W", normal(3, 4)), out="y")
    net.node("Tanh", "y", out="z")
    net.node("Mul", "z", net.weight("zero", 0.0), out="still")
    net.node("ArgMax", "y", axis=1, keepdims=0, out="class")
    model = net.model({"y": ["N", 4], "z": ["N", 4], "still": ["N", 4]})
    model.graph.output.append(helper.make_tensor_value_info("class", TensorProto.INT64, ["N"]))
    return model


def test_every_output_has_a_scale_of_its_own() -> None:
    found = teacher(several(), weights={"z": 9.0, "class": 5.0}).scales
    assert [None if s is None else s.weight for s in found] == [1.0, 9.0, None, None]
    y = X[FIT] @ normal(3, 4)
    assert found[0] is not None
    assert float(found[0].spread) == pytest.approx(y.var(0).mean(), rel=1e-4)


@pytest.mark.parametrize("outputs", [2, 3])
def test_nothing_to_learn_is_told(outputs: int) -> None:
    model = several()
    kept = list(model.graph.output)[outputs : outputs + 1]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    with pytest.raises(ModelError, match="no output varies"):
        teacher(model)


# ---- inputs between near ones ----


def segments(samples: Samples, fit: Array, values: Array) -> None:
    """Every mixed input lies between a sample of `fit` and another one of them."""
    (batch,) = samples.batches(np.arange(len(samples)), 10**6)
    made = batch.feed["x"].astype(np.float64).reshape(len(samples), -1)
    base = values[fit].astype(np.float64).reshape(len(fit), -1)
    for i, point in enumerate(made):
        start = base[i % len(fit)]
        ways, off = base - start, point - start
        assert off.any(), "a sample mixed with itself"
        length = (ways**2).sum(1)
        part = np.divide(ways @ off, length, out=np.zeros(len(ways)), where=length > 0)
        apart = ((off - part[:, None] * ways) ** 2).sum(1) ** 0.5
        fits = (apart < 1e-5) & (part > -1e-5) & (part < 1 + 1e-5) & (length > 0)
        assert fits.any(), i


def test_mixed_inputs_lie_between_two_samples_of_the_fit_share() -> None:
    found = mixed(rows(), FIT, 0)
    assert found is not None
    assert len(found) == mixing.EACH * len(FIT)
    segments(found, FIT, X)
    again, other = mixed(rows(), FIT, 0), mixed(rows(), FIT, 1)
    assert again is not None
    assert other is not None
    every = np.arange(len(found))
    same = [next(s.batches(every, 999)).feed["x"] for s in (found, again, other)]
    assert np.array_equal(same[0], same[1])
    assert not np.array_equal(same[0], same[2])


def test_pictures_too() -> None:
    net = Net({"x": ["N", 2, 4, 4]})
    net.node("Conv", "x", net.weight("W", normal(3, 2, 3, 3)), out="y")
    values = normal(20, 2, 4, 4)
    found = mixed(rows(values, net.model({"y": ["N", 3, 2, 2]})), np.arange(5, 15), 0)
    assert found is not None
    segments(found, np.arange(5, 15), values)


def test_near_ones_are_preferred_by_the_spread_of_each_feature() -> None:
    """Two clusters that differ in a feature of small numbers: next to nothing is made between them."""
    values = normal(200, 3) * np.array([1e-3, 1000.0, 1.0], np.float32)
    values[:, 0] += np.repeat([0.0, 1.0], 100).astype(np.float32)
    found = mixed(rows(values), np.arange(200), 0)
    assert found is not None
    made = next(found.batches(np.arange(len(found)), 10**6)).feed["x"][:, 0]
    # Of any two, half lie in different clusters.
    assert ((made < 0.1) | (made > 0.9)).mean() > 0.97


def test_a_still_feature_stays_and_copies_do_no_harm() -> None:
    values = np.repeat(normal(10, 3), 3, axis=0)
    values[:, 1] = 4.0
    found = mixed(rows(values), np.arange(30), 0)
    assert found is not None
    made = next(found.batches(np.arange(len(found)), 10**6)).feed["x"]
    assert np.isfinite(made).all()
    assert (made[:, 1] == 4.0).all()


def test_counts_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    def count(fit: Array = FIT) -> int:
        found = mixed(rows(), fit, 0)
        return 0 if found is None else len(found)

    assert count(FIT[:2]) == 8
    assert count(FIT[:1]) == 0
    monkeypatch.setattr(mixing, "MOST", 100)
    assert count() == 40
    monkeypatch.setattr(mixing, "MOST_BYTES", 17 * 12)
    assert count() == 17
    monkeypatch.setattr(mixing, "MOST", 50)
    assert count() == 0


def test_bands_do_not_change_what_is_near(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = mixed(rows(), FIT, 0)
    monkeypatch.setattr(mixing, "BAND", 1)
    banded = mixed(rows(), FIT, 0)
    assert whole is not None
    assert banded is not None
    every = np.arange(len(whole))
    found = [next(s.batches(every, 999)).feed["x"] for s in (whole, banded)]
    assert np.array_equal(found[0], found[1])


def test_none_for_integers_feeds_and_fixed_batches() -> None:
    net = Net({"x": ["N", 3]})
    net.inputs.append(helper.make_tensor_value_info("ids", TensorProto.INT64, ["N"]))
    net.node("Add", net.node("Gather", net.weight("E", normal(9, 3)), "ids"), "x", out="y")
    model = net.model({"y": ["N", 3]})
    samples = rows({"x": X, "ids": np.arange(100) % 9}, model)
    assert mixed(samples, FIT, 0) is None
    assert mixed(feeds()[1], FIT, 0) is None
    assert mixed(rows(normal(500, 3), mlp(batch=5)), FIT, 0) is None
    found = teacher(model, samples)
    for step in shown(found, 5):
        check(step[0], model)
