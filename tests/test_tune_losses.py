"""The losses of training: each against its formula in numpy, and where there is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from mlps import Array, normal

from onnx_condense.tune.losses import FEATURES, KL, L1, LOSSES, MSE, STILL, TEMPERATURE, scale_of

# Features at quite different places and spreads.
UNITS = np.array([0.5, 1.0, 30.0, 5.0], np.float32)
T = UNITS * (normal(50, 4) + 3.0).astype(np.float32)
Y = T + UNITS * normal(50, 4, seed=1) / 10


def loss(
    kind: str, wanted: Array = T, found: Array = Y, weight: float = 1.0, cuts: tuple[int, ...] = (20, 33)
) -> float:
    """The teacher's answers come in passes of several sizes."""
    scale = scale_of(kind, np.split(wanted, cuts), weight)
    assert scale is not None
    return float(scale.of(torch.from_numpy(found), torch.from_numpy(wanted)))


def softmax(z: Array, axis: int) -> Array:
    e = np.exp(z.astype(np.float64) - z.max(axis, keepdims=True))
    return np.asarray(e / e.sum(axis, keepdims=True))


def divergence(wanted: Array, found: Array, axis: int) -> float:
    """T^2 KL of two answers of logits, mean over all positions."""
    p, q = softmax(wanted / TEMPERATURE, axis), softmax(found / TEMPERATURE, axis)
    return float(TEMPERATURE**2 * (p * np.log(p / q)).sum(axis).mean())


def by_features(wanted: Array, found: Array) -> float:
    return float(np.mean(((found - wanted) ** 2).mean(0) / wanted.var(0)))


FORMULAS: dict[str, Callable[[Array, Array], float]] = {
    MSE: lambda t, y: float(((y - t) ** 2).sum() / ((t - t.mean(0)) ** 2).sum()),
    FEATURES: by_features,
    L1: lambda t, y: float(np.abs(y - t).sum() / np.abs(t - t.mean(0)).sum()),
    KL: lambda t, y: divergence(t, y, 1),
}


@pytest.mark.parametrize("kind", LOSSES)
def test_formulas(kind: str) -> None:
    assert loss(kind) == pytest.approx(FORMULAS[kind](T.astype(np.float64), Y.astype(np.float64)), rel=1e-4)
    # Weights are those of squares.
    factor = 7.0**0.5 if kind == L1 else 7.0
    assert loss(kind, weight=7.0) == pytest.approx(factor * loss(kind), rel=1e-5)
    assert loss(kind, found=T) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("kind", [MSE, FEATURES])
def test_a_student_that_knows_the_mean_only_has_a_loss_of_one(kind: str) -> None:
    assert loss(kind, found=np.broadcast_to(T.mean(0), T.shape).copy()) == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize(("shape", "axis"), [((30, 4, 3, 2), 1), ((30, 3, 4), 2), ((30, 4), 1)])
def test_features_and_classes_lie_along_axis_1_of_pictures_and_last_elsewhere(
    shape: tuple[int, ...], axis: int
) -> None:
    wide = UNITS.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    t, y = wide * normal(*shape), wide * normal(*shape, seed=2)
    flat = [np.moveaxis(a, axis, -1).reshape(-1, 4).astype(np.float64) for a in (t, y)]
    for kind in LOSSES:
        assert loss(kind, t, y) == pytest.approx(FORMULAS[kind](*flat), rel=1e-3), kind


def test_probabilities_are_taken_as_such() -> None:
    """The same student and teacher with and without their softmax have the same divergence."""
    t, y = normal(40, 5), normal(40, 5, seed=1)
    p, q = (softmax(a, 1).astype(np.float32) for a in (t, y))
    assert loss(KL, p, q) == pytest.approx(divergence(t, y, 1), rel=1e-3)
    # What sums to another number, or is negative, is none.
    assert loss(KL, 1.01 * p, q) == pytest.approx(divergence(1.01 * p, q, 1), rel=1e-3)
    assert loss(KL, t - t.mean(1, keepdims=True) + 0.2, y) == pytest.approx(divergence(t, y, 1), rel=1e-3)
    zero = np.eye(5, dtype=np.float32)[np.arange(40) % 5]
    assert np.isfinite(loss(KL, zero, zero[::-1].copy()))


@pytest.mark.parametrize("shape", [(50, 1), (50, 1, 3, 3), (50,)])
def test_without_classes_to_choose_from_the_squares_count(shape: tuple[int, ...]) -> None:
    t, y = normal(*shape), normal(*shape, seed=1)
    scale = scale_of(KL, [t])
    assert scale is not None
    assert scale.kind == MSE
    assert loss(KL, t, y) == loss(MSE, t, y) == pytest.approx(((y - t) ** 2).mean() / t.var(), rel=1e-4)


@pytest.mark.parametrize("kind", LOSSES)
def test_answers_without_a_feature_axis_are_one_feature(kind: str) -> None:
    t, y = normal(50), normal(50, seed=1)
    formula = FORMULAS[kind if kind != KL else MSE]
    assert loss(kind, t, y) == pytest.approx(formula(t[:, None], y[:, None]), rel=1e-4)
    one = scale_of(kind, [np.array(a, np.float32) for a in (1.0, 3.0)])
    assert one is not None
    squared = float(one.of(torch.tensor(5.0), torch.tensor(3.0)))
    assert squared == pytest.approx(2.0 if kind == L1 else 4.0)


@pytest.mark.parametrize("kind", LOSSES)
def test_feeds_may_have_other_numbers_of_features_each(kind: str) -> None:
    answers = [normal(1, n, seed=n) for n in (3, 7, 5)]
    scale = scale_of(kind, answers)
    assert scale is not None
    for answer in answers:
        assert float(scale.of(torch.from_numpy(answer + 1), torch.from_numpy(answer))) > (-1e-6 if kind == KL else 0.1)


@pytest.mark.parametrize("kind", LOSSES)
def test_a_pass_may_be_empty(kind: str) -> None:
    assert loss(kind, cuts=(0, 20)) == loss(kind, cuts=(20,))


@pytest.mark.parametrize("kind", LOSSES)
def test_what_gives_no_gradient(kind: str) -> None:
    assert scale_of(kind, [np.arange(12).reshape(3, 4)]) is None
    assert scale_of(kind, [np.ones((3, 4), bool)]) is None
    assert scale_of(kind, [np.zeros((0, 4), np.float32)]) is None
    still = np.tile(np.arange(4, dtype=np.float32), (9, 1))
    assert scale_of(kind, [still, still]) is None
    assert scale_of(kind, [still, still + 1]) is not None


def test_a_still_feature_does_not_outweigh_all_others() -> None:
    t = T.copy()
    t[:, 1] = 2.0
    t[:, 1] += normal(50) * 1e-7
    y = t + 0.1
    spread = t.astype(np.float64).var(0)
    wanted = 0.01 * np.mean(1.0 / np.maximum(spread, STILL**2 * spread.max()))
    assert loss(FEATURES, t, y) == pytest.approx(wanted, rel=1e-3)
    assert wanted < 0.01 * np.mean(1.0 / spread) / 100


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_types(kind: str, dtype: Any) -> None:
    t, y = T.astype(dtype), Y.astype(dtype)
    scale = scale_of(kind, [t])
    assert scale is not None
    found = torch.from_numpy(y).double()
    wanted = FORMULAS[kind](t.astype(np.float64), y.astype(np.float64))
    assert float(scale.of(found, torch.from_numpy(t).double())) == pytest.approx(wanted, rel=1e-3)
