"""The proof once more for two files: what passes, and every way in which the second is not what it should be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from command import call
from mlps import Array, mlp, normal, plant_copies
from onnx import numpy_helper

from onnx_condense import condense
from onnx_condense.errors import CalibrationError, DefectError, ModelError, UsageError
from onnx_condense.proving import proof
from onnx_condense.proving.rechecking import DRAWN, NO_PROVENANCE, NOT_COMPARED, SAME, SHARE, recheck
from onnx_condense.report.data import Reason, Report
from onnx_condense.synthetic import NOTE

X = normal(300, 3)
TOLERANCE = 0.05


@pytest.fixture(autouse=True)
def folder(folder: Path) -> Path:
    """Also a network with redundancy."""
    onnx.save(plant_copies(mlp(), 0, 8), "wide.onnx")
    return folder


def fitted(**options: Any) -> Report:
    """slim.onnx, within the tolerance, and the report about it."""
    made = condense("net.onnx", **{"calibration": "x.npz", "tolerance": TOLERANCE, **options})
    assert made.report.status == "condensed"
    made.save("slim.onnx")
    return made.report


def exact() -> Report:
    """slim.onnx of wide.onnx, by what the weights prove."""
    made = condense("wide.onnx")
    assert made.report.status == "condensed"
    made.save("slim.onnx")
    return made.report


def change(edit: Callable[[onnx.ModelProto], None], name: str = "slim.onnx") -> None:
    model = onnx.load(name)
    edit(model)
    onnx.save(model, name)


def weights(edit: Callable[[Array], Array], name: str = "W2") -> Callable[[onnx.ModelProto], None]:
    def spoil(model: onnx.ModelProto) -> None:
        tensor = next(t for t in model.graph.initializer if t.name == name)
        value = np.ascontiguousarray(edit(numpy_helper.to_array(tensor).copy()))
        tensor.CopyFrom(numpy_helper.from_array(value, name))

    return spoil


def unstamped(model: onnx.ModelProto) -> None:
    del model.metadata_props[:]


# ---- what passes ----


def test_the_samples_that_judged_it_judge_it_again() -> None:
    made = fitted(seed=3)
    found = recheck("net.onnx", "slim.onnx", calibration="x.npz", seed=3)
    assert found.status == "verified"
    assert found.error is not None
    assert made.error is not None
    assert found.error.value == made.error.value
    assert found.error.outputs == made.error.outputs
    assert (found.error.tolerance, found.error.samples) == (TOLERANCE, 60)
    other = recheck("net.onnx", "slim.onnx", calibration="x.npz", seed=4)
    assert other.error is not None
    assert other.error.value != made.error.value


def test_the_report_has_both_networks() -> None:
    made = fitted()
    found = recheck("net.onnx", "slim.onnx", calibration="x.npz")
    assert (found.parameters, found.macs) == (made.parameters, made.macs)
    assert found.bytes is not None
    assert found.bytes.before == Path("net.onnx").stat().st_size
    assert found.bytes.after == Path("slim.onnx").stat().st_size
    assert [timing.batch for timing in found.latency] == [1, 60]
    assert found.footprint is None
    weighed = recheck("net.onnx", "slim.onnx", calibration="x.npz", footprint=True)
    assert weighed.footprint is not None
    assert found.evidence == "samples"
    assert found.notes == (SHARE,)
    assert found.origin is not None
    assert made.origin is not None
    assert found.origin.source_sha256 == made.origin.source_sha256
    assert found.origin.plan_sha256 == made.origin.plan_sha256
    assert found.origin.result == "slim.onnx"
    assert found.seconds > 0


def test_samples_of_their_own_all_judge() -> None:
    fitted()
    np.save("v.npy", normal(40, 3, seed=8))
    for calibration in (None, "x.npz"):
        found = recheck("net.onnx", "slim.onnx", calibration=calibration, verification="v.npy")
        assert found.error is not None
        assert found.error.samples == 40
        assert found.notes == ()
    np.save("v.npy", normal(4, 3, seed=8))
    with pytest.raises(CalibrationError, match="at least 5"):
        recheck("net.onnx", "slim.onnx", verification="v.npy")


def test_exact_steps_are_proved_on_drawn_inputs_or_on_all_samples() -> None:
    exact()
    found = recheck("wide.onnx", "slim.onnx")
    assert found.error is not None
    assert found.error.tolerance == 0.0
    assert found.error.value < 1e-5
    assert found.evidence == "synthetic"
    assert found.notes == (DRAWN,)
    found = recheck("wide.onnx", "slim.onnx", calibration="x.npz")
    assert found.error is not None
    assert found.error.samples == len(X)
    assert (found.evidence, found.notes) == ("samples", ())


def test_drawn_inputs_as_calibration_are_drawn_again() -> None:
    made = fitted(calibration="synthetic:200", tolerance=0.1)
    found = recheck("net.onnx", "slim.onnx", calibration="synthetic:200")
    assert found.error is not None
    assert made.error is not None
    assert found.error.value == made.error.value
    assert found.evidence == "synthetic"
    assert found.notes == (NOTE, SHARE)


def test_the_tolerance_is_what_was_asked_for_then_what_it_was_made_within_then_the_usual_one() -> None:
    fitted()

    def tolerance(**options: Any) -> float | None:
        found = recheck("net.onnx", "slim.onnx", calibration="x.npz", **options)
        assert found.error is not None
        return found.error.tolerance

    assert tolerance(tolerance=0.2) == 0.2
    assert tolerance() == TOLERANCE
    change(unstamped)
    with pytest.raises(DefectError, match=r"above a tolerance of 0\.01"):
        tolerance()


def test_of_a_size_the_error_is_only_told() -> None:
    fitted(tolerance=None, keep=0.3)
    found = recheck("net.onnx", "slim.onnx", calibration="x.npz")
    assert found.error is not None
    assert found.error.tolerance is None
    assert found.error.value > 0.0
    with pytest.raises(DefectError, match="above a tolerance of"):
        recheck("net.onnx", "slim.onnx", calibration="x.npz", tolerance=1e-3)


def test_networks_without_files() -> None:
    fitted()
    dense, slim = onnx.load("net.onnx"), onnx.load("slim.onnx")
    slim.metadata_props.add(key="more", value="is no harm")
    found = recheck(dense, slim, calibration={"x": X})
    assert found.status == "verified"
    assert found.origin is not None
    assert (found.origin.source, found.origin.result) == (None, None)
    next(p for p in slim.metadata_props if p.key == "onnx_condense.source_sha256").value = "0" * 64
    assert NOT_COMPARED in recheck(dense, slim, calibration={"x": X}).notes


def test_what_carries_no_provenance_is_told_so() -> None:
    exact()
    change(unstamped)
    assert recheck("wide.onnx", "slim.onnx").notes == (NO_PROVENANCE, DRAWN)


def test_a_copy_is_told_as_one() -> None:
    fitted()
    shutil.copy("slim.onnx", "copy.onnx")
    found = recheck("slim.onnx", "copy.onnx")
    assert found.notes == (SAME, DRAWN)
    assert found.error is not None
    assert found.error.value == 0.0


def test_a_footprint_that_can_not_be_measured_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    exact()
    fails = SimpleNamespace(measure=lambda *_: Reason("footprint", "no memory"))
    monkeypatch.setattr(proof, "footprint", fails)
    found = recheck("wide.onnx", "slim.onnx", footprint=True)
    assert found.footprint is None
    assert found.notes == (DRAWN, "load time and memory were not measured: no memory")


# ---- what does not ----


@pytest.mark.parametrize("which", ["net.onnx", "slim.onnx"])
@pytest.mark.parametrize("content", [None, b"no network", b""])
def test_files_that_are_no_networks_are_named(which: str, content: bytes | None) -> None:
    fitted()
    Path(which).unlink()
    if content is not None:
        Path(which).write_bytes(content)
    with pytest.raises(ModelError, match=f"^{which}: "):
        recheck("net.onnx", "slim.onnx", calibration="x.npz")


def test_another_source_is_told() -> None:
    fitted()
    change(weights(lambda W: W * 1.00001, "W0"), "net.onnx")
    with pytest.raises(DefectError, match=r"slim\.onnx was made from another network than net\.onnx") as caught:
        recheck("net.onnx", "slim.onnx", calibration="x.npz")
    assert caught.value.code == "another-source"


def test_another_source_is_told_before_what_else_differs() -> None:
    fitted()

    def older(model: onnx.ModelProto) -> None:
        model.opset_import[0].version -= 1

    change(older, "net.onnx")
    with pytest.raises(DefectError) as caught:
        recheck("net.onnx", "slim.onnx", calibration="x.npz")
    assert caught.value.code == "another-source"
    change(unstamped)
    with pytest.raises(DefectError, match="has other opsets"):
        recheck("net.onnx", "slim.onnx", calibration="x.npz")


def flipped(W: Array) -> Array:
    return np.concatenate([-W[:1], W[1:]])


@pytest.mark.parametrize("tolerance", [None, 0.06])
def test_a_changed_weight_is_off_by_more_than_the_tolerance(tolerance: float | None) -> None:
    fitted()
    change(weights(flipped))
    with pytest.raises(DefectError) as caught:
        recheck("net.onnx", "slim.onnx", calibration="x.npz", tolerance=tolerance)
    assert (caught.value.code, caught.value.node) == ("tolerance", "y")
    assert f"at output y, above a tolerance of {tolerance or TOLERANCE}, on 60 samples" in caught.value.text


@pytest.mark.parametrize("samples", [None, "x.npz"])
def test_an_exact_step_may_be_off_by_rounding_only(samples: str | None) -> None:
    exact()
    change(weights(lambda W: W * np.float32(1.001)))
    with pytest.raises(DefectError) as caught:
        recheck("wide.onnx", "slim.onnx", calibration=samples)
    assert caught.value.code == "tolerance"


@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.parametrize("options", [{}, {"keep": 0.3, "tolerance": None}], ids=["gate", "size"])
def test_nan_is_named_whatever_the_tolerance(number: float, options: dict[str, Any]) -> None:
    fitted(**options)
    change(weights(lambda W: np.where(np.arange(W.size).reshape(W.shape), W, number).astype(W.dtype)))
    with pytest.raises(DefectError, match=r"slim\.onnx: output y .* on samples that judge") as caught:
        recheck("net.onnx", "slim.onnx", calibration="x.npz")
    assert (caught.value.code, caught.value.node) == ("not-finite", "y")


def other_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = model.graph.node[-1].output[0] = "other"


def other_batch(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 7


def other_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version += 1


@pytest.mark.parametrize("edit", [other_output, other_batch, other_opset], ids=lambda f: f.__name__)
def test_another_signature_is_told(edit: Callable[[onnx.ModelProto], None]) -> None:
    fitted()
    change(edit)
    with pytest.raises(DefectError, match=r"^slim\.onnx has other .* than the dense network") as caught:
        recheck("net.onnx", "slim.onnx", calibration="x.npz")
    assert caught.value.code == "signature"


def test_a_network_that_does_not_run_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted()

    def fails(*_: Any) -> None:
        raise ModelError("runtime", "ONNX Runtime can't run the network: no memory")

    monkeypatch.setattr("onnx_condense.proving.proof.Proof.measure", fails)
    with pytest.raises(DefectError, match=r"slim\.onnx does not run: ONNX Runtime") as caught:
        recheck("net.onnx", "slim.onnx", calibration="x.npz")
    assert caught.value.code == "does-not-run"


def test_what_was_fitted_needs_samples() -> None:
    fitted()
    with pytest.raises(UsageError, match=r"within a tolerance of 0\.05: give --calibration or --verification"):
        recheck("net.onnx", "slim.onnx")
    fitted(tolerance=None, keep=0.3)
    with pytest.raises(UsageError, match="to a size: give --calibration"):
        recheck("net.onnx", "slim.onnx")
    change(unstamped)
    with pytest.raises(UsageError, match=r"within a tolerance of 0\.1: give --calibration"):
        recheck("net.onnx", "slim.onnx", tolerance=0.1)
    with pytest.raises(DefectError, match="above a tolerance"):
        recheck("net.onnx", "slim.onnx")


@pytest.mark.parametrize("options", [{"tolerance": -1.0}, {"seed": -1}, {"batches": [0]}])
def test_options_are_checked_first(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        recheck("missing.onnx", "missing.onnx", **options)


# ---- the command ----


def test_the_command_says_verified(folder: Path) -> None:
    fitted()
    before = sorted(folder.iterdir())
    result = call("net.onnx", "--verify-only", "slim.onnx", "--calibration", "x.npz", "--json", "r.json")
    assert result.exit_code == 0, result.output
    assert sorted(folder.iterdir()) == sorted([*before, folder / "r.json"])
    report = json.loads(Path("r.json").read_text())
    assert report["status"] == "verified"
    assert report["origin"]["result"] == "slim.onnx"
    assert "verified" in result.stdout


def test_the_command_ends_in_4_where_it_is_off() -> None:
    fitted()
    change(weights(flipped))
    result = call("net.onnx", "--verify-only", "slim.onnx", "--calibration", "x.npz", "--json", "r.json")
    assert result.exit_code == 4
    assert result.stdout == ""
    assert result.stderr.startswith("onnx-condense: error: slim.onnx is off by ")
    assert result.stderr.count("\n") == 1
    report = json.loads(Path("r.json").read_text())
    assert (report["status"], report["reason"]["code"]) == ("failed", "tolerance")


def test_drawn_inputs_have_no_batches_to_choose() -> None:
    with pytest.raises(UsageError, match="--batch needs --calibration or --verification"):
        recheck("wide.onnx", "slim.onnx", batches=[4])


@pytest.mark.parametrize("option", ["--json", "--report"])
def test_no_report_takes_the_place_of_the_condensed_networks_weights(folder: Path, option: str) -> None:
    onnx.save(onnx.load("net.onnx"), "slim.onnx", save_as_external_data=True, location="w.data", size_threshold=0)
    before = Path("w.data").read_bytes()
    result = call("net.onnx", "--verify-only", "slim.onnx", "--calibration", "x.npz", option, "w.data")
    assert result.exit_code == 2
    assert "the file of CONDENSED's weights" in result.stderr
    assert (folder / "w.data").read_bytes() == before


@pytest.mark.parametrize("option", ["--force", "--allow-slower"])
def test_options_about_writing_do_not_go_with_verify_only(option: str) -> None:
    result = call("net.onnx", "--verify-only", "net.onnx", option)
    assert result.exit_code == 2
    assert option in result.stderr
