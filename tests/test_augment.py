"""Variants of pictures: which samples they are of, that they stay pictures, and who gets to see them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from mlps import Net

from onnx_condense import UsageError, condense
from onnx_condense.data import input_specs
from onnx_condense.data import load as load_samples
from onnx_condense.data.augment import VARIANTS, Augmented, augmented, variants_of
from onnx_condense.data.samples import Samples
from onnx_condense.runtime import Runtime

Array = npt.NDArray[Any]


def pictures(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).uniform(-2, 3, shape).astype(np.float32)


def source(array: Array) -> Samples:
    net = Net({"x": ["N", *array.shape[1:]]})
    net.node("ReduceMean", "x", out="y", axes=[1, 2, 3], keepdims=0)
    return load_samples(array, input_specs(net.model({"y": ["N"]}).graph))


def fed(samples: Samples, indices: list[int], rows: int = 1024) -> Array:
    return np.concatenate([b.feed["x"] for b in samples.batches(np.array(indices), rows)])


def test_samples_come_first_and_as_they_are() -> None:
    x = pictures(5, 3, 12, 16)
    found = augmented(source(x), 2, 0)
    assert len(found) == 15
    np.testing.assert_array_equal(fed(found, [3, 0, 4]), x[[3, 0, 4]])
    assert variants_of(np.array([1, 3]), 5, 2).tolist() == [1, 3, 6, 8, 11, 13]
    assert found.groups.tolist() == [*found.groups[:5]] * 3


def test_a_variant_depends_on_its_index_and_the_seed_alone() -> None:
    samples = source(pictures(6, 3, 16, 16))
    found = augmented(samples, 1, 0)
    once = fed(found, list(range(6, 12)))
    np.testing.assert_array_equal(fed(found, [11, 7, 6], rows=2), once[[5, 1, 0]])
    assert not np.allclose(once, fed(augmented(samples, 1, 1), list(range(6, 12))))
    assert len({a.tobytes() for a in once}) == 6


@pytest.mark.parametrize("shape", [(40, 3, 16, 16), (40, 16, 12, 3), (40, 1, 9, 8), (40, 8, 8, 4)])
def test_variants_are_pictures_in_the_range_of_the_samples(shape: tuple[int, ...]) -> None:
    x = pictures(*shape)
    axis = 1 if shape[1] < 8 else 3
    x *= np.arange(1, shape[axis] + 1, dtype=np.float32).reshape([-1 if a == axis else 1 for a in range(4)])
    new = fed(augmented(source(x), 1, 0), list(range(40, 80)))
    others = tuple(a for a in range(4) if a != axis)
    assert (new.dtype, new.shape) == (x.dtype, x.shape)
    slack = 1e-5 * np.abs(x).max()
    assert (new.min(others) >= x.min(others) - slack).all()
    assert (new.max(others) <= x.max(others) + slack).all()
    assert all(np.abs(a - b).mean() > 0.01 for a, b in zip(new, x, strict=True))


def test_where_the_channels_lie_does_not_matter() -> None:
    x = pictures(10, 3, 16, 16)
    first = fed(augmented(source(x), 1, 0), list(range(10, 20)))
    y = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    last = fed(augmented(source(y), 1, 0), list(range(10, 20)))
    np.testing.assert_allclose(last.transpose(0, 3, 1, 2), first, rtol=1e-6)


@pytest.mark.parametrize("vary", VARIANTS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("size", [(16, 16), (9, 14)])
def test_every_kind_keeps_the_size_and_changes_the_picture(vary: Any, size: tuple[int, int]) -> None:
    x = np.random.default_rng(0).random((3, *size))
    changed = [vary(x, np.random.default_rng(seed)) for seed in range(8)]
    assert {y.shape for y in changed} == {x.shape}
    assert all(y.min() >= 0 and y.max() <= 1 for y in changed)
    assert sum(not np.array_equal(y, x) for y in changed) >= 4


@pytest.mark.parametrize("shape", [(20, 5, 16, 16), (20, 3, 16, 4)])
def test_what_holds_no_pictures_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="--augment: no input holds pictures"):
        augmented(source(pictures(*shape)), 1, 0)
    assert UsageError.exit_code == 2


def network() -> Net:
    """A hidden channel that only negative values of the first colour wake."""
    net = Net({"x": ["N", 3, 8, 8]})
    w = np.zeros((12, 3, 1, 1))
    w[:11] = np.random.default_rng(0).standard_normal((11, 3, 1, 1))
    w[11, 0] = -4.0
    b = np.r_[np.full(11, 0.2), 0.0]
    h = net.node("Relu", net.node("Conv", "x", net.weight("w", w), net.weight("b", b)))
    net.node("Conv", h, net.weight("v", np.random.default_rng(1).standard_normal((4, 12, 1, 1))), out="y")
    return net


def test_what_samples_do_not_show_is_kept_where_variants_show_it() -> None:
    model = network().model({"y": ["N", 4, 8, 8]})
    x = pictures(60, 3, 8, 8)
    x[:, 0] = np.abs(x[:, 0])
    x[0, 0, 0, 0] = -3.0  # the range is known, hardly more
    unseen = pictures(50, 3, 8, 8, seed=1)
    errors = []
    for augment in (0, 2):
        found = condense(model, calibration=x, keep=0.75, seed=1, augment=augment, threads=1, allow_slower=True)
        errors.append(_error(model, found.model, unseen))
    assert errors[1] < 0.7 * errors[0]


def _error(dense: Any, condensed: Any, x: Array) -> float:
    y, z = (Runtime(threads=1).session(m).run(None, {"x": x})[0] for m in (dense, condensed))
    return float(np.sqrt(((y - z) ** 2).sum() / ((y - y.mean(0)) ** 2).sum()))


@pytest.mark.parametrize(("augment", "words"), [(1, "needs --calibration"), (-1, "at least 0")])
def test_options_that_make_no_sense_are_refused(augment: int, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        condense(network().model({"y": ["N", 4, 8, 8]}), augment=augment)


def test_only_the_fit_sees_variants(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    batches = Augmented.batches

    def counted(self: Augmented, indices: Array, rows: int = 1024) -> Any:
        seen.extend(np.asarray(indices).tolist())
        return batches(self, indices, rows)

    monkeypatch.setattr(Augmented, "batches", counted)
    report = condense(
        network().model({"y": ["N", 4, 8, 8]}), calibration=pictures(50, 3, 8, 8), keep=0.75, augment=1, threads=1
    ).report
    fitted = {i % 50 for i in seen if i >= 50}
    assert len(fitted) == 30
    assert any("variants" in note for note in report.notes)
