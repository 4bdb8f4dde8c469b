"""condense() by other metrics and with tolerances by output, from the option to the report and back to the proof."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from mlps import Array, mlp, normal, plant_copies
from onnx import helper, numpy_helper
from typer.testing import CliRunner

from onnx_condense import condense
from onnx_condense.cli import app
from onnx_condense.cost import count_parameters
from onnx_condense.errors import DefectError, UsageError
from onnx_condense.metrics import Measurement, OutputMeasure
from onnx_condense.metrics.scores import of_means
from onnx_condense.options.yardstick import restored, stored, tolerances_of, wish_for
from onnx_condense.proving.coverage import notes as coverage_notes
from onnx_condense.proving.proof import Prover
from onnx_condense.proving.provenance import Provenance
from onnx_condense.proving.rechecking import recheck
from onnx_condense.report import html, terminal
from onnx_condense.report.data import Coverage, Report
from onnx_condense.rewrite import apply_plan
from onnx_condense.runtime import Runtime
from onnx_condense.search import candidates
from onnx_condense.search.probes import Probe, standing_in

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnx_condense.outcome import Condensed

X = normal(600, 3)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def two_headed(factor: float = 100.0) -> onnx.ModelProto:
    """y, and z = factor * its square root."""
    model = mlp((3, 24, 20, 3))
    stored = numpy_helper.from_array(np.array(factor, np.float32), "factor")
    model.graph.initializer.append(stored)
    model.graph.node.extend(
        [helper.make_node("Softplus", ["y"], ["s"]), helper.make_node("Mul", ["s", "factor"], ["z"])]
    )
    shape = [d.dim_param or d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim]
    model.graph.output.append(helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, shape))
    return model


def answers(model: onnx.ModelProto, x: Array) -> list[Array]:
    return [np.asarray(y, np.float64) for y in Runtime(threads=1).session(model, optimize=False).run(None, {"x": x})]


def mean_difference(dense: Mapping[str, Array], condensed: Mapping[str, Array]) -> Array:
    return np.asarray(np.abs(dense["y"] - condensed["y"]).mean(1))


def run(model: Any, **options: Any) -> Condensed:
    return condense(model, **{"threads": 1, "calibration": X, **options})


# ---- the search ----


@pytest.mark.parametrize(
    ("metric", "tolerance"), [("per-feature", 0.1), ("max-abs", 0.2), ("agreement", 0.05), (mean_difference, 0.05)]
)
def test_every_metric_is_met_and_not_wasted(metric: Any, tolerance: float) -> None:
    dense = mlp((3, 24, 20, 3))
    found = run(dense, metric=metric, tolerance=tolerance)
    error = found.report.error
    assert error is not None
    assert error.tolerance == tolerance
    assert 0.2 * tolerance < error.value <= tolerance
    assert count_parameters(found.model) < 0.9 * count_parameters(dense)
    assert error.metric == (metric if isinstance(metric, str) else "mean_difference")
    # Many more samples say much the same.
    x = normal(5000, 3, seed=5)
    (y,), (y0,) = answers(found.model, x), answers(dense, x)
    again = {
        "per-feature": (np.sqrt(((y - y0) ** 2).mean(0)) / y0.std(0)).max() / 2,
        "max-abs": np.abs(y - y0).max() / 5,
        "agreement": (y.argmax(1) != y0.argmax(1)).mean() / 2,
        "mean_difference": np.abs(y - y0).mean() / 2,
    }
    assert again[error.metric] < tolerance
    # The search measured in the same metric, and so did the comparison with samples that were fitted on.
    assert min(p.error for p in found.report.curve) <= tolerance
    assert found.report.coverage is not None
    assert found.report.coverage.seen <= 1.5 * tolerance


@pytest.mark.parametrize("tolerance", [{"*": 0}, {"*": 0.0, "y": 0}, {"y": 0.0, "*": 0.0}])
def test_no_tolerance_at_any_output_is_lossless(tolerance: dict[str, float]) -> None:
    dense = plant_copies(mlp(), 0, 6)
    found = run(dense, tolerance=tolerance)
    assert found.report.evidence == "weights"
    assert count_parameters(found.model) < count_parameters(dense)
    assert [plan.kind for plan in found.plan] == ["lossless"]


def test_exact_merges_go_before_a_fit_in_every_metric() -> None:
    dense = plant_copies(mlp((3, 24, 20, 3)), 0, 6)
    for options in ({"metric": "per-feature"}, {"metric": "agreement"}, {"tolerance": {"*": 0.01, "y": 0.02}}):
        assert run(dense, **options).plan[0].kind == "lossless"


@pytest.mark.parametrize("metric", ["per-feature", "max-abs", "agreement", mean_difference])
def test_a_larger_tolerance_gives_a_smaller_network(metric: Any) -> None:
    sizes = [count_parameters(run(mlp((3, 24, 20, 3)), metric=metric, tolerance=t).model) for t in (0.01, 0.3)]
    assert sizes[0] > sizes[1]


def test_a_size_needs_no_tolerance_in_any_metric() -> None:
    found = run(mlp(), metric="max-abs", keep=0.6)
    report = found.report
    assert report.error is not None
    assert report.error.tolerance is None
    assert report.error.interval is None
    assert report.error.outputs[0].tolerance is None
    again = recheck(mlp(), found.model, calibration=X).error
    assert again is not None
    assert (again.metric, again.tolerance, again.value) == ("max-abs", None, report.error.value)


def test_exact_merges_are_judged_by_rounding_whatever_a_metric_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rewrite that shifts the answers by 0.02 is within 5.0, and is not exact."""

    def shifted(*arguments: Any) -> onnx.ModelProto:
        model = apply_plan(*arguments)
        bias = next(t for t in model.graph.initializer if t.name == "b2")
        bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(0.02), "b2"))
        return model

    monkeypatch.setattr(Prover, "check", lambda *_: None)
    dense = plant_copies(mlp(), 0, 6)
    told = run(dense, metric="max-abs", tolerance=5.0).report
    assert not any("exact merges were given back" in note for note in told.notes)
    monkeypatch.setattr(candidates, "apply_plan", shifted)
    told = run(dense, metric="max-abs", tolerance=5.0).report
    assert any("exact merges were given back" in note for note in told.notes)


def test_probes_that_show_nothing_stand_by_their_relative_errors() -> None:
    """A scale on which they are smaller than all that was seen."""
    first, second = standing_in([{1: Probe(0.0, 0.01), 2: Probe(0.2, 0.1)}, {1: Probe(0.0, 0.0), 4: Probe(0.4, 0.1)}])
    assert first == {1: pytest.approx(0.02), 2: 0.2}
    assert second == {1: 0.0, 4: 0.4}
    assert standing_in([{1: Probe(0.0, 0.3)}]) == [{1: 0.3}]


def test_one_flip_among_unseen_samples_is_no_reason_to_doubt_calibration() -> None:
    def share(flips: int, count: int) -> Measurement:
        score = of_means([np.r_[np.ones(flips), np.zeros(count - flips)]])
        output = OutputMeasure("y", np.zeros(count), np.ones(count), 0.0, None, score=score, metric="agreement")
        return Measurement((output,), np.arange(count))

    known = share(0, 100)
    told = Coverage(known.value, 100, grouped=False)
    assert coverage_notes(told, known, 0.01, 0) == []
    assert coverage_notes(told, known, 0.2, 0) != []


# ---- tolerances by output ----


def test_every_output_keeps_to_its_own_tolerance() -> None:
    dense = two_headed()
    loose = run(dense, tolerance={"*": 0.3})
    tight = run(dense, tolerance={"*": 0.3, "z": 0.02})
    error = tight.report.error
    assert error is not None
    assert [o.tolerance for o in error.outputs] == [0.3, 0.02]
    assert all(o.tolerance is not None and o.value <= o.tolerance for o in error.outputs)
    assert (error.output, error.tolerance) == ("z", 0.02)
    assert error.value == error.outputs[1].value
    assert count_parameters(tight.model) > count_parameters(loose.model)
    # The curve and what is served are on the scale of that tolerance.
    assert any(0.3 * 0.02 < point.error <= 0.02 for point in tight.report.curve)
    assert tight.report.coverage is not None
    assert 0.3 * error.value < tight.report.coverage.seen < 2 * error.value
    assert error.served[0].bound == pytest.approx(0.02, rel=1e-3)
    assert error.served[0].value == pytest.approx(error.value, rel=1e-3)


def test_outputs_in_their_own_units() -> None:
    """One is a hundred times the other, and may be off by a hundred times as much."""
    report = run(two_headed(), metric="max-abs", tolerance={"y": 0.3, "z": 30.0}).report
    assert report.error is not None
    assert all(o.value <= (o.tolerance or 0.0) for o in report.error.outputs)
    assert max(o.value / (o.tolerance or 1.0) for o in report.error.outputs) > 0.2
    assert report.status == "condensed"


# ---- options ----


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"metric": "relativ"}, r"--metric 'relativ': did you mean relative\?"),
        ({"metric": "x"}, "there are relative, per-feature, max-abs, agreement"),
        ({"metric": "max-abs"}, "--metric max-abs needs --tolerance"),
        ({"metric": mean_difference}, "--metric mean_difference needs --tolerance"),
        ({"metric": "max-abs", "tolerance": 0}, "exclude each other"),
        ({"metric": "agreement", "calibration": None}, "--metric agreement needs --calibration"),
        ({"metric": mean_difference, "tolerance": {"*": 1, "y": 2}}, "judges all outputs together"),
        ({"tolerance": {}}, "names no pattern"),
        ({"tolerance": {"y": -1}}, "--tolerance y=-1: give a number"),
        ({"tolerance": {"y": float("nan")}}, "--tolerance y=nan: give a number"),
        ({"tolerance": {"y": 0.0}}, "for all outputs or for none"),
        ({"tolerance": {"*": 0.1, "Y": 0.2}}, "'Y' matches no output; there are y"),
    ],
)
def test_what_has_no_meaning_is_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        run(mlp(), **options)


def test_a_tolerance_is_read_and_stored_and_restored() -> None:
    assert tolerances_of(()) is None
    assert tolerances_of(("0.1", "0.2")) == 0.2
    assert tolerances_of(("y=0.1", "0.2", "y=0.3")) == {"*": 0.2, "y": 0.3}
    moved = tolerances_of(("y=1", "a=b=2", "y=3"))
    assert isinstance(moved, dict)
    assert list(moved) == ["a=b", "y"]
    with pytest.raises(UsageError, match="--tolerance 'y=': give a number"):
        tolerances_of(("y=",))
    assert wish_for({"y": 0.5}, "relative").number == 0.01
    assert wish_for({"y": 0.5, "z": 2.0}, "max-abs").number == 2.0
    for patterns in ({}, {"*": 0.1, 'a "b"': 0.3}):
        assert restored(stored(0.1, patterns)) == (patterns or 0.1)
    assert restored(stored(None, {})) is None
    for wrong, words in (("x", "convert"), ("{}", "{}"), ('{"y": "z"}', '"y": "z"')):
        with pytest.raises(ValueError, match=re.escape(words)):
            restored(wrong)


# ---- what is told, and the proof once more ----


def command(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.parametrize("rest", [(), ("--verify-only", "net.onnx")])
def test_an_empty_name_is_no_metric(rest: tuple[str, ...]) -> None:
    onnx.save(mlp(), "net.onnx")
    np.savez("x.npz", x=X)
    result = command("net.onnx", "--calibration", "x.npz", "--metric", "", *rest)
    assert (result.exit_code, "--metric is empty" in result.stderr) == (2, True), result.output


def test_the_proof_is_repeated_in_the_metric_that_it_was_made_in() -> None:
    onnx.save(two_headed(), "net.onnx")
    np.savez("x.npz", x=X)
    made = command(
        *("net.onnx", "slim.onnx", "--calibration", "x.npz", "--metric", "max-abs", "--json", "a.json"),
        *("--tolerance", "0.3", "--tolerance", "z=30", "--report", "r.html"),
    )
    assert made.exit_code == 0, made.output
    told = json.loads(Path("a.json").read_text())["error"]
    assert told["metric"] == "max-abs"
    assert f"(max-abs, at {told['output']}, tolerance {told['tolerance']:g}" in " ".join(made.stdout.split())
    assert "elative error" not in Path("r.html").read_text()
    stamp = Provenance.of(onnx.load("slim.onnx"))
    assert stamp is not None
    assert (stamp.metric, json.loads(stamp.tolerance)) == ("max-abs", {"*": 0.3, "z": 30.0})
    again = command("net.onnx", "--verify-only", "slim.onnx", "--calibration", "x.npz", "--json", "b.json")
    assert again.exit_code == 0, again.output
    repeated = json.loads(Path("b.json").read_text())["error"]
    assert {k: repeated[k] for k in ("metric", "value", "tolerance", "output")} == {
        k: told[k] for k in ("metric", "value", "tolerance", "output")
    }
    with pytest.raises(DefectError, match="above a tolerance of"):
        recheck("net.onnx", "slim.onnx", calibration="x.npz", tolerance={"*": 0.3, "z": 1e-4})
    with pytest.raises(UsageError, match="needs --calibration"):
        recheck("net.onnx", "slim.onnx", metric="agreement")
    # In another metric the tolerance that it was made within means nothing.
    other = recheck("net.onnx", "slim.onnx", calibration="x.npz", metric="relative", tolerance=0.9)
    assert other.error is not None
    assert other.error.metric == "relative"
    with pytest.raises(DefectError, match=r"above a tolerance of 0\.01"):
        recheck("net.onnx", "slim.onnx", calibration="x.npz", metric="relative")


def test_a_function_has_to_be_given_again() -> None:
    onnx.save(mlp(), "net.onnx")
    found = condense("net.onnx", calibration=X, metric=mean_difference, tolerance=0.05, threads=1)
    found.save("slim.onnx")
    with pytest.raises(UsageError, match="was judged by a function, mean_difference: give --metric"):
        recheck("net.onnx", "slim.onnx", calibration=X)
    again = recheck("net.onnx", "slim.onnx", calibration=X, metric=mean_difference)
    assert again.error is not None
    assert found.report.error is not None
    assert (again.error.value, again.error.tolerance) == (found.report.error.value, 0.05)


def test_a_network_stamped_before_there_were_metrics_is_read() -> None:
    found = run(mlp(), tolerance=0.05).model
    kept = [(p.key, p.value) for p in found.metadata_props if not p.key.endswith("metric")]
    del found.metadata_props[:]
    for key, value in kept:
        found.metadata_props.add(key=key, value=value)
    stamp = Provenance.of(found)
    assert stamp is not None
    assert stamp.metric == "relative"
    assert recheck(mlp(), found, calibration=X).status == "verified"
    next(p for p in found.metadata_props if p.key.endswith("tolerance")).value = "some"
    with pytest.raises(UsageError, match="give --tolerance"):
        recheck(mlp(), found, calibration=X)


@pytest.mark.parametrize("metric", ["per-feature", "max-abs", "agreement", mean_difference])
def test_no_report_calls_another_metric_relative(metric: Any) -> None:
    found = run(mlp((3, 24, 20, 3)), metric=metric, tolerance=0.2)
    text = html.page(found.report, found.figures())
    assert "elative error" not in text
    assert "error is relative" not in text
    assert "of their spread" not in text
    name = metric if isinstance(metric, str) else "mean_difference"
    assert f"({name}, tolerance 0.2" in " ".join(terminal.page(found.report, width=200, color=False).split())
    plain = run(mlp((3, 24, 20, 3)), tolerance=0.2)
    assert "Relative error" in html.page(plain.report, plain.figures())


def test_a_report_as_a_whole_goes_into_json() -> None:
    report: Report = run(mlp((3, 24, 20, 3)), metric="agreement", tolerance=0.05).report
    told = json.loads(json.dumps(report.as_dict()))["error"]
    assert told["outputs"][0]["metric"] == told["metric"] == "agreement"
    assert told["interval"][0] <= told["value"] <= told["interval"][1]


def test_a_share_of_flips_is_below_one() -> None:
    for tolerance in (1.0, {"*": 0.1, "y": 2.0}):
        with pytest.raises(UsageError, match="share of flips"):
            wish_for(tolerance, "agreement")
    assert wish_for({"*": 0.1}, "agreement").number == 0.1
