"""What becomes of networks that err too much on the samples that judge: wider ones are tried, down to the dense one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from mlps import Array, Net, mlp, normal

from onnx_condense import condense
from onnx_condense.cost import count_parameters
from onnx_condense.errors import BudgetError
from onnx_condense.metrics import Judge, Measurement
from onnx_condense.proving import proof
from onnx_condense.search import candidates
from onnx_condense.search.budget import Point, back_off

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

X = normal(400, 3)
WIDTH, USED, LATE = 64, 16, 3


def test_backing_off_is_counted_and_ends_within_the_tolerance(monkeypatch: pytest.MonkeyPatch) -> None:
    verdicts = [9.0, 1.8]

    class Strict(Judge):
        """Says no to the first candidates that come for verification."""

        def measure(self, model: onnx.ModelProto | Path) -> Measurement:
            measured = super().measure(model)
            # Samples that were fitted on are not asked.
            if self._optimize or len(self._indices) != len(X) // 5 or not verdicts:
                return measured
            factor = verdicts.pop()
            (output,) = measured.outputs
            worse = type(output)(output.name, output.squared * factor**2, output.spread, 0.0, None)
            return Measurement((worse,), measured.groups)

    plain = condense(mlp(), threads=1, calibration=X, tolerance=0.05)
    monkeypatch.setattr(proof, "Judge", Strict)
    strict = condense(mlp(), threads=1, calibration=X, tolerance=0.05)
    assert strict.report.error is not None
    assert plain.report.error is not None
    assert (plain.report.error.back_offs, strict.report.error.back_offs) == (0, 2)
    assert strict.report.error.value <= 0.05
    assert count_parameters(strict.model) > count_parameters(plain.model)


def test_backing_off_ends_at_the_dense_network(monkeypatch: pytest.MonkeyPatch) -> None:
    class Never(Judge):
        """Never content."""

        def measure(self, model: onnx.ModelProto | Path) -> Measurement:
            measured = super().measure(model)
            (output,) = measured.outputs
            shift = 0.0 if self._optimize else 9.0
            return Measurement((type(output)("y", output.squared + shift, output.spread, 0.0, None),), measured.groups)

    monkeypatch.setattr(proof, "Judge", Never)
    found = condense(mlp(), threads=1, calibration=X, tolerance=0.05)
    assert found.report.status == "unchanged"
    assert found.report.reason is not None
    assert found.report.reason.code == "tolerance"


def test_a_network_that_answers_with_nan_is_never_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Judge):
        """All candidates overflow on the samples that verify."""

        def measure(self, model: onnx.ModelProto | Path) -> Measurement:
            measured = super().measure(model)
            (output,) = measured.outputs
            bad = 0.0 if self._optimize else np.inf
            return Measurement((type(output)("y", output.squared, output.spread, bad, None),), measured.groups)

    monkeypatch.setattr(proof, "Judge", Broken)
    with pytest.raises(BudgetError):
        condense(mlp(), threads=1, calibration=X, keep=0.5)


def test_an_error_that_does_not_fall_takes_longer_steps_back(monkeypatch: pytest.MonkeyPatch) -> None:
    errors, seen = [0.2, 0.15, 0.15, 0.16, 0.1], list[int]()

    class Stubborn(Judge):
        """Candidates err by what is written here."""

        def measure(self, model: onnx.ModelProto | Path) -> Measurement:
            measured = super().measure(model)
            if self._optimize or len(self._indices) != len(X) // 5 or not errors:
                return measured
            (output,) = measured.outputs
            squared = output.squared * (errors.pop(0) / measured.value) ** 2
            return Measurement((type(output)("y", squared, output.spread, 0.0, None),), measured.groups)

    def noting(path: Sequence[Point], at: int, excess: float, times: int) -> int:
        seen.append(times)
        return max(1, back_off(path, at, excess, 1))

    monkeypatch.setattr(proof, "Judge", Stubborn)
    monkeypatch.setattr(candidates, "back_off", noting)
    found = condense(mlp(), calibration=X, tolerance=0.05, threads=1)
    assert seen == [1, 2, 5, 8, 9]
    assert found.report.error is not None
    assert found.report.error.back_offs == 5


# ---- channels that were silent where the network was fitted ----


def silent(late: int) -> onnx.ModelProto:
    """From x [N, 4] by 64 hidden units to y [N, 2]: some of them work, some wait for x[3], the rest are of no use.

    late: how many wait.
    """
    rng = np.random.default_rng(0)
    first, bias = 0.1 * rng.normal(size=(4, WIDTH)), np.full(WIDTH, -9.0)
    first[:, :USED], bias[:USED] = rng.normal(size=(4, USED)), 0.5
    second = 0.3 * rng.normal(size=(WIDTH, 2))
    first[3, :USED] = 0.0
    waiting = rng.permutation(np.arange(USED, WIDTH))[:late]
    first[3, waiting], second[waiting] = 20.0, 3.0
    net = Net({"x": ["n", 4]})
    hidden = net.node("Gemm", "x", net.weight("w1", first), net.weight("b1", bias))
    net.node("Gemm", net.node("Relu", hidden), net.weight("w2", second), out="y")
    return net.model({"y": ["n", 2]})


def flagged(count: int, shown: int) -> Array:
    """Inputs of which so many show what the late units wait for."""
    x = normal(count, 4, seed=count)
    x[:, 3] = np.arange(count) < shown
    return x


def test_of_what_seemed_free_a_part_stays_where_samples_that_judge_need_it() -> None:
    """Before, all of what calibration had not seen at work came back, and the network with it."""
    calibration, verification = flagged(400, 0), flagged(80, 8)
    free = condense(silent(0), calibration=calibration, verification=verification, tolerance=1e-3, threads=1)
    found = condense(silent(LATE), calibration=calibration, verification=verification, tolerance=1e-3, threads=1)
    assert free.report.error is not None
    assert found.report.error is not None
    assert free.report.error.back_offs == 0
    assert found.report.status == "condensed"
    assert found.report.error.back_offs > 0
    assert found.report.error.value <= 1e-3
    dense, sizes = count_parameters(silent(0)), [count_parameters(f.model) for f in (free, found)]
    assert sizes[0] < sizes[1] < dense
