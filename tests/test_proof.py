"""What a result is held against: without optimizations, as served, on further providers; and how it is timed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from mlps import mlp, normal, plant_copies
from onnx import helper
from providers import NEEDS_CUDA

from onnx_condense import condense
from onnx_condense.data import input_specs, load
from onnx_condense.errors import CalibrationError, ModelError, UsageError
from onnx_condense.metrics import Judge, Measurement, OutputMeasure
from onnx_condense.network.model import Network
from onnx_condense.proving import latency, profiled, proof, verify
from onnx_condense.proving.proof import SIDES, Proved, Prover, Setting
from onnx_condense.report.data import Latency
from onnx_condense.runtime import CPU, Feed, Runtime

X = normal(400, 3)
AZURE = "AzureExecutionProvider"
"""Comes with every build of ONNX Runtime for the CPU, takes no op, so that all run on the CPU."""


@pytest.fixture(autouse=True)
def timed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """Timing is faked, as it takes seconds; what it was asked for: (provider, batch, rows of the feed)."""
    seen: list[tuple[str, int, int]] = []

    def compare(_: Any, __: Any, feed: Feed, runtime: Runtime, *, batch: int, **_rest: Any) -> Latency:
        seen.append((runtime.providers[0], batch, len(feed["x"])))
        return Latency(runtime.providers[0], 1, batch, 1.0, 0.5, 2.0, (1.9, 2.1))

    monkeypatch.setattr(latency, "compare", compare)
    return seen


def worse(measured: Measurement, factor: float) -> Measurement:
    """The same with an error so many times as large."""
    (output,) = measured.outputs
    return Measurement(
        (type(output)(output.name, output.squared * factor**2, output.spread, 0.0, None),), measured.groups
    )


def served_worse(monkeypatch: pytest.MonkeyPatch, by: float, *, first: int = 10**9) -> None:
    """As served, the first so many candidates err so many times as much; the search is not touched."""

    class Served(Judge):
        left = first

        def measure(self, model: Any) -> Measurement:
            measured = super().measure(model)
            if not self._optimize or len(self._indices) != 80 or Served.left < 1 or not Served.proving:
                return measured
            Served.left -= 1
            return worse(measured, by)

        proving = False

    def proving(self: proof.Proof, model: Any, *gate: float) -> Proved:
        Served.proving = True
        try:
            return plain(self, model, *gate)
        finally:
            Served.proving = False

    plain = proof.Proof.measure
    monkeypatch.setattr(proof.Proof, "measure", proving)
    monkeypatch.setattr(proof, "Judge", Served)


# ---- as served ----


def test_the_error_as_served_is_told_beside_the_other() -> None:
    found = condense(mlp(), calibration=X, tolerance=0.05, threads=1)
    assert found.report.error is not None
    (served,) = found.report.error.served
    assert served.provider == CPU[0]
    assert served.value == pytest.approx(found.report.error.value, rel=1e-3)
    assert 0 <= served.rounding < 1e-5
    assert served.bound == 0.05 + SIDES * served.rounding


def test_a_network_that_is_worse_as_served_backs_off(monkeypatch: pytest.MonkeyPatch) -> None:
    served_worse(monkeypatch, 3.0, first=1)
    found = condense(mlp(), calibration=X, tolerance=0.05, threads=1)
    assert found.report.error is not None
    assert found.report.error.back_offs == 1


def test_a_network_that_is_never_good_enough_as_served_is_not_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    served_worse(monkeypatch, 1e6)
    assert condense(mlp(), calibration=X, tolerance=0.05, threads=1).report.status == "unchanged"


def test_exact_merges_are_held_against_rounding_as_served_too(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = plant_copies(mlp((3, 12, 10, 2)), 0, 5)
    assert condense(dense, calibration=X, tolerance=0, threads=1).report.status == "condensed"

    class Served(Judge):
        def measure(self, model: Any) -> Measurement:
            measured = super().measure(model)
            (output,) = measured.outputs
            shift = 1e-3 * float(output.spread.sum()) if self._optimize else 0.0
            moved = type(output)("y", output.squared + shift / len(output.squared), output.spread, 0.0, None)
            return Measurement((moved,), measured.groups)

    monkeypatch.setattr(proof, "Judge", Served)
    found = condense(dense, calibration=X, tolerance=0, threads=1)
    assert found.report.status == "unchanged"
    (note,) = found.report.notes
    assert "exact merges were given back" in note
    assert "optimized, CPUExecutionProvider" in note


def setting(rounding: float) -> Setting:
    dense = mlp()
    samples = load(X[:4], input_specs(dense.graph))
    return Setting("P", Judge(dense, samples, np.arange(4), Runtime(threads=1), 4), rounding)


def proved(value: float, *served: tuple[float, float]) -> Proved:
    output = OutputMeasure("y", np.array([value**2]), np.ones(1), 0.0, None)
    return Proved(Measurement((output,), np.zeros(1, np.int64)), tuple((setting(r), e) for r, e in served))


@pytest.mark.parametrize(
    ("errors", "excess"),
    [
        (proved(0.02), 2.0),
        (proved(0.005, (0.0, 0.02)), 2.0),
        # Its own rounding widens the bound of a provider, twice.
        (proved(0.005, (0.01, 0.03)), 1.0),
        (proved(0.005, (0.0, np.nan)), np.inf),
        (proved(0.005, (0.0, np.inf)), np.inf),
        (proved(0.015, (0.01, 0.03)), 1.5),
    ],
)
def test_the_worst_setting_counts(errors: Proved, excess: float) -> None:
    assert errors.excess(0.01) == pytest.approx(excess)


def test_without_a_tolerance_only_what_breaks_down_is_too_much() -> None:
    assert proved(3.0, (0.0, 9.0)).excess(np.inf) == 0.0
    assert proved(3.0, (0.0, np.nan)).excess(np.inf) == np.inf
    assert proved(3.0, (0.1, 9.0)).told(None)[0].bound is None


# ---- further providers ----


def test_a_further_provider_is_proved_and_timed(timed: list[tuple[str, int, int]]) -> None:
    found = condense(mlp(), calibration=X, tolerance=0.05, threads=1, also_verify=[AZURE])
    assert found.report.error is not None
    assert [s.provider for s in found.report.error.served] == [CPU[0], AZURE]
    assert [t.provider for t in found.report.latency] == [CPU[0]] * 2 + [AZURE] * 2
    assert timed == [(p, n, n) for p in (CPU[0], AZURE) for n in (1, 80)]


def test_a_provider_that_is_named_again_is_proved_once(timed: list[tuple[str, int, int]]) -> None:
    found = condense(mlp(), calibration=X, tolerance=0.05, threads=1, also_verify=[AZURE, CPU[0], AZURE])
    assert found.report.error is not None
    assert [s.provider for s in found.report.error.served] == [CPU[0], AZURE]
    assert timed == [(p, n, n) for p in (CPU[0], AZURE) for n in (1, 80)]


def test_slower_on_a_further_provider_is_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    def compare(_: Any, __: Any, ___: Any, runtime: Runtime, *, batch: int, **_rest: Any) -> Latency:
        speedup = 0.5 if runtime.providers[0] == AZURE else 2.0
        return Latency(runtime.providers[0], 1, batch, 1.0, 1 / speedup, speedup, (speedup, speedup))

    monkeypatch.setattr(latency, "compare", compare)
    found = condense(mlp(), calibration=X, tolerance=0.05, threads=1, also_verify=[AZURE])
    assert found.report.reason is not None
    assert found.report.reason.code == "slower"
    assert AZURE in found.report.reason.text


def test_a_provider_that_is_not_there_is_named_with_its_option() -> None:
    with pytest.raises(UsageError, match="--also-verify: no CUDAExecutionProvidr in this installation"):
        condense(mlp(), calibration=X, also_verify=["CUDAExecutionProvidr"])


def test_a_provider_that_does_not_start_is_no_silent_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Runtime.session

    def fallen_back(self: Runtime, *arguments: Any, **options: Any) -> Any:
        return session(Runtime(CPU, 1) if AZURE in self.providers else self, *arguments, **options)

    monkeypatch.setattr(Runtime, "session", fallen_back)
    with pytest.raises(UsageError, match=f"{AZURE} does not start here"):
        condense(mlp(), calibration=X, threads=1, also_verify=[AZURE])


@NEEDS_CUDA
def test_cuda_is_proved_within_its_own_bound() -> None:
    found = condense(mlp((3, 64, 64, 2)), calibration=X, tolerance=0.02, also_verify=["CUDAExecutionProvider"])
    assert found.report.error is not None
    served = found.report.error.served[-1]
    assert served.provider == "CUDAExecutionProvider"
    assert served.bound is not None
    assert served.value <= served.bound


# ---- what is timed ----


def test_batches_asked_for_are_timed(timed: list[tuple[str, int, int]]) -> None:
    condense(mlp(), calibration=X, tolerance=0.05, threads=1, batches=[2, 500])
    assert timed == [(CPU[0], 2, 2), (CPU[0], 500, 500)]


@pytest.mark.parametrize(
    ("options", "words"),
    [({"batches": [0]}, "--batch 0"), ({"batches": [4], "calibration": None}, "--batch needs --calibration")],
)
def test_batches_that_can_not_be(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        condense(mlp(), **{"calibration": X, **options})


# ---- networks that can't be proved ----


def noisy() -> onnx.ModelProto:
    """A network with copies to remove and noise on top."""
    model = plant_copies(mlp((3, 12, 10, 2)), 0, 5)
    model.graph.node[-1].output[0] = "clean"
    model.graph.node.append(helper.make_node("RandomNormalLike", ["clean"], ["noise"], scale=0.5))
    model.graph.node.append(helper.make_node("Add", ["clean", "noise"], ["y"]))
    return model


@pytest.mark.parametrize("calibration", [None, X], ids=["drawn", "samples"])
def test_a_random_network_is_refused_by_name(calibration: Any) -> None:
    with pytest.raises(CalibrationError, match="output 'y' differs between two runs of one feed"):
        condense(noisy(), calibration=calibration, threads=1)


def test_a_dense_network_that_is_nan_only_as_served_names_the_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(mlp())

    class Broken(Judge):
        def _passes(self, session: Any) -> Any:
            found = super()._passes(session)
            return [([y * np.nan for y in ys], s) for ys, s in found] if self._optimize else found

    monkeypatch.setattr(proof, "Judge", Broken)
    samples = load(X, input_specs(network.proto.graph))
    with pytest.raises(CalibrationError, match="CPUExecutionProvider, optimized: output y of the network is NaN"):
        Prover(network, Runtime(threads=1)).on_samples(samples, np.arange(20))


def test_a_candidate_that_overflows_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong with a network that was given back is told; the gate itself is tested elsewhere."""

    class Broken(Judge):
        left = 1

        def measure(self, model: Any) -> Measurement:
            measured = super().measure(model)
            if self._optimize or not Broken.left:
                return measured
            Broken.left -= 1
            (output,) = measured.outputs
            bad = type(output)("y", output.squared, output.spread, np.inf, None, fault="is NaN or infinite")
            return Measurement((bad,), measured.groups)

    monkeypatch.setattr(proof, "Judge", Broken)
    found = condense(mlp(), calibration=X, tolerance=0.05, threads=1)
    assert "a narrower network was given back: output y is NaN or infinite on samples that judge" in found.report.notes


def test_the_plan_is_checked_where_sums_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """A provider may round as coarsely as it likes: the check against the plan runs on the CPU."""
    seen: list[tuple[str, ...]] = []
    check = verify.check_numbers

    def watched(*arguments: Any) -> None:
        seen.append(arguments[-1].providers)
        check(*arguments)

    monkeypatch.setattr(proof, "check_numbers", watched)
    found = condense(mlp(), calibration=X, tolerance=0.05, threads=1, providers=[AZURE, *CPU])
    assert found.report.status == "condensed"
    assert set(seen) == {CPU}
    assert found.report.error is not None
    assert [s.provider for s in found.report.error.served] == [AZURE]


@pytest.mark.usefixtures("timed")
@pytest.mark.parametrize("error", [ModelError("runtime", "no room"), OSError(28, "no room"), ValueError("no room")])
def test_a_profile_that_fails_throws_no_result_away(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(profiled, "spent", failing)
    found = condense(mlp(), calibration=X, tolerance=0.05, threads=1, profile=True).report
    assert found.status == "condensed"
    assert any("no room" in note for note in found.notes)
    assert all(row.ms is None for row in found.spaces)


# ---- samples that were fitted on ----


def measured(error: float, count: int) -> Measurement:
    """Each sample errs as much, of a spread of 1."""
    output = OutputMeasure("y", np.full(count, error**2), np.ones(count), 0.0, None)
    return Measurement((output,), np.arange(count))


@pytest.mark.parametrize(
    ("known", "ratio"),
    [(0.009, 0.8), (0.01, 0.8), (0.02, np.sqrt((100 * 0.8**2 + 300 * 2.0**2) / 400)), (np.inf, np.inf)],
)
def test_the_gate_holds_with_samples_that_were_fitted_on_too(known: float, ratio: float) -> None:
    """Where chance keeps rare large errors from those that judge."""
    found = Proved(measured(0.008, 100), known=measured(known, 300))
    assert found.excess(0.01) == pytest.approx(ratio)
    assert ("fitted on included" in found.worst(0.01)) == (ratio > 0.8)
    assert found.value == pytest.approx(0.008)
    assert Proved(measured(0.008, 100)).excess(0.01) == pytest.approx(0.8)


@pytest.mark.parametrize(("gate", "looks"), [(0.1, 3), (np.inf, 3), (0.01, 1)])
def test_what_fails_with_optimizations_off_is_measured_nowhere_else(gate: float, looks: int) -> None:
    """It backs off in any case, and each look is a pass over the samples. Without a gate everything is told."""
    seen: list[str] = []

    def judge(name: str) -> Any:
        def measure(_: Any) -> Measurement:
            seen.append(name)
            return measured(0.02, 4)

        return SimpleNamespace(measure=measure)

    settings = (Setting("P", judge("served"), 0.0),)
    whole = proof.Proof(judge("plain"), 4, (), (), {}, settings, known=lambda: judge("known"))
    found = whole.measure(mlp(), gate)
    assert seen == ["plain", "served", "known"][:looks]
    assert found.excess(0.01) == pytest.approx(2.0)
    assert found.exact.value == pytest.approx(0.02)


def test_the_largest_difference_is_the_larger_one_of_both_kinds_of_samples() -> None:
    pair = [OutputMeasure("y", np.full(9, e), np.ones(9), 0.0, None, metric="max-abs") for e in (0.008, 0.02)]
    first, second = (Measurement((o,), np.arange(9)) for o in pair)
    found = Proved(first, known=second)
    assert found.excess(0.01) == pytest.approx(second.value / 0.01)
    assert second.value > 0.01


def test_what_errs_more_on_samples_that_were_fitted_on_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = condense(mlp(), calibration=X, tolerance=0.05, threads=1)
    judges: list[Judge] = []

    def known(self: Any, samples: Any, indices: Any, *args: Any, **options: Any) -> Judge:
        judge = make(self, samples, indices, *args, **options)
        if not options and not args:
            judges.append(judge)
        return judge

    def measure(self: Judge, model: Any) -> Measurement:
        found = look(self, model)
        return worse(found, 3.0) if self in judges else found

    make, look = Prover.judge, Judge.measure
    monkeypatch.setattr(Prover, "judge", known)
    monkeypatch.setattr(Judge, "measure", measure)
    strict = condense(mlp(), calibration=X, tolerance=0.05, threads=1)
    assert judges
    assert strict.report.error is not None
    assert strict.report.error.back_offs > 0
    assert strict.report.parameters is not None
    assert plain.report.parameters is not None
    assert strict.report.parameters.after > plain.report.parameters.after
    # Samples that were brought to judge by stand alone.
    judges.clear()
    alone = condense(mlp(), calibration=X, verification=X[:200], tolerance=0.05, threads=1)
    assert alone.report.error is not None
    assert alone.report.error.back_offs == 0
