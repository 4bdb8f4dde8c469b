"""condense() from end to end on the trained convolutional network that comes with the project."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnx_condense import condense, ops
from onnx_condense.cost import count_parameters
from onnx_condense.network.model import serialized
from onnx_condense.outcome import Condensed
from onnx_condense.proving import latency
from onnx_condense.report.data import Latency
from onnx_condense.runtime import Runtime, run

MODELS = Path(__file__).parent.parent / "models"
TOLERANCE = 0.05
SEEN = Latency("CPUExecutionProvider", 2, 1, 1.0, 0.5, 2.0, (2.0, 2.0))


def condensed_digits(calibration: Any, tolerance: float) -> Condensed:
    model = MODELS / "digits.onnx"
    return condense(model, calibration=calibration, tolerance=tolerance, threads=2, allow_slower=True)


@pytest.fixture(scope="module")
def untimed() -> Iterator[None]:
    """How fast the networks are does not matter here, and to measure it would take long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "compare", lambda *_, batch, **__: dataclasses.replace(SEEN, batch=batch))
        patch.setattr(latency, "confirmed", lambda *_, seen: seen)
        yield


@pytest.fixture(scope="module")
def found(untimed: None) -> Condensed:
    """One run."""
    assert untimed is None
    return condensed_digits(MODELS / "digits.npz", TOLERANCE)


def answers(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    (logits,) = run(Runtime(threads=2).session(model), {"image": x})
    return logits.astype(np.float64)


def dense() -> onnx.ModelProto:
    return onnx.load(MODELS / "digits.onnx")


def test_it_gets_smaller_within_the_tolerance(found: Condensed) -> None:
    report = found.report
    assert report.status == "condensed"
    assert report.error is not None
    assert report.parameters is not None
    assert 0 < report.error.value <= TOLERANCE
    assert report.error.samples == 200
    assert report.parameters.before == count_parameters(dense())
    assert report.parameters.after == count_parameters(found.model) < 0.75 * report.parameters.before


def test_the_error_on_pictures_never_seen_is_much_the_same(found: Condensed) -> None:
    with np.load(MODELS / "digits_labelled.npz") as data:
        x = data["image"]
    y, y0 = answers(found.model, x), answers(dense(), x)
    relative = np.sqrt(np.square(y - y0).sum() / np.square(y0 - y0.mean(0)).sum())
    # They were written by other hands than those of the calibration.
    assert relative < 2 * TOLERANCE


def test_it_classifies_as_well_as_before(found: Condensed) -> None:
    with np.load(MODELS / "digits_labelled.npz") as data:
        x, label = data["image"], data["label"]
    before, after = ((answers(m, x).argmax(1) == label).mean() for m in (dense(), found.model))
    assert before > 0.9
    assert abs(after - before) <= 0.01


def test_widths_around_convolutions_are_what_their_kernels_want(found: Condensed) -> None:
    rule = ops.find("", "Conv", 17)
    assert rule is not None
    assert rule.multiple % 4 == 0
    stored = {t.name: tuple(t.dims) for t in found.model.graph.initializer}
    shapes = [stored[n.input[1]] for n in found.model.graph.node if n.op_type == "Conv"]
    assert len(shapes) == 4
    assert all(shape[0] % rule.multiple == 0 for shape in shapes)
    assert all(shape[1] % rule.multiple == 0 for shape in shapes[1:])
    widths = {s.name: (s.before, s.after) for s in found.report.spaces if "Conv" in s.name}
    assert any(after < before for before, after in widths.values())


def test_a_second_run_writes_the_same_bytes(untimed: None) -> None:
    assert untimed is None
    with np.load(MODELS / "digits.npz") as data:
        some = data["image"][:400]
    once, twice = (condensed_digits(some, 2 * TOLERANCE) for _ in range(2))
    assert once.report.status == "condensed"
    assert serialized(once.model) == serialized(twice.model)
