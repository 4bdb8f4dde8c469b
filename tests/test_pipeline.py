"""condense() from end to end, on small networks with known answers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from endtoend import FakeTimer, X, relative, run, timer
from mlps import mlp, normal, plant_copies, weight_of
from onnx import helper, numpy_helper

from onnx_condense.cost import count_parameters
from onnx_condense.errors import BudgetError, CalibrationError, DefectError, ModelError, UsageError
from onnx_condense.fit import fitting
from onnx_condense.network.model import serialized
from onnx_condense.proving import proof
from onnx_condense.rewrite import apply_plan

if TYPE_CHECKING:
    from pathlib import Path


# A fixture that acts on all tests here.
__all__ = ["timer"]

# ---- with calibration ----


@pytest.mark.parametrize("op", ["Gemm", "MatMul"])
@pytest.mark.parametrize("tolerance", [0.02, 0.1])
def test_the_error_on_unseen_samples_is_within_the_tolerance(op: str, tolerance: float) -> None:
    dense = mlp(op=op)
    found = run(dense, calibration=X, tolerance=tolerance)
    report = found.report
    assert report.status == "condensed"
    assert report.error is not None
    assert report.error.value <= tolerance == report.error.tolerance
    assert report.error.samples == 80
    assert report.parameters is not None
    assert report.parameters.before == count_parameters(dense)
    assert report.parameters.after == count_parameters(found.model) < 0.8 * report.parameters.before
    assert relative(found.model, dense, normal(2000, 3, seed=9)) < 1.5 * tolerance
    assert [o.name for o in found.model.graph.output] == ["y"]


def test_a_larger_tolerance_gives_a_smaller_network() -> None:
    sizes = [count_parameters(run(mlp(), calibration=X, tolerance=t).model) for t in (0.01, 0.05, 0.3)]
    assert sizes[0] > sizes[1] > sizes[2]


def test_the_default_tolerance() -> None:
    report = run(mlp(), calibration=X).report
    assert report.error is not None
    assert report.error.tolerance == 0.01


def test_the_report_says_what_became_of_every_space() -> None:
    found = run(mlp(op="MatMul", bias=False), calibration=X, tolerance=0.1)
    first, second, last = found.report.spaces
    assert (first.before, second.before, last.before, last.after) == (24, 20, 2, 2)
    assert weight_of(found.model, "W1").shape == (first.after, second.after)
    assert weight_of(found.model, "W2").shape == (second.after, 2)
    assert first.writers == ("/matmul_0",)
    assert first.readers == ("/matmul_2",)
    assert first.error > 0
    assert [r.reason for r in found.report.refusals] == ["graph output"]
    assert found.report.macs is not None
    assert found.report.macs.before == 3 * 24 + 24 * 20 + 20 * 2
    assert found.report.bytes is not None
    assert found.report.bytes.after == len(serialized(found.model)) < found.report.bytes.before
    assert found.report.seconds > 0


def test_spaces_keep_their_names_where_exact_steps_add_biases() -> None:
    # The constant unit of the first layer becomes a bias that the second MatMul did not have.
    dense = mlp((3, 24, 20, 2), op="MatMul", bias=False, activation="Sigmoid")
    W = weight_of(dense, "W0").copy()
    W[:, 5] = 0
    dense.graph.initializer[0].CopyFrom(numpy_helper.from_array(W, "W0"))
    found = run(dense, calibration=X, tolerance=0.1)
    assert [p.kind for p in found.plan] == ["lossless", "fitted"]
    widths = [s.after for s in found.report.spaces]
    assert weight_of(found.model, "W1").shape == (widths[0], widths[1])
    assert widths[1] < 20
    assert found.report.spaces[1].error > 0


def test_exact_steps_come_first_and_both_are_counted() -> None:
    dense = plant_copies(mlp(), 0, 10)
    found = run(dense, calibration=X, tolerance=0.05)
    assert [p.kind for p in found.plan] == ["lossless", "fitted"]
    assert found.report.parameters is not None
    assert found.report.parameters.before == count_parameters(dense)
    assert found.report.spaces[0].before == 34
    assert found.report.spaces[0].after < 24


@pytest.mark.parametrize("keep", [0.7, 0.35])
def test_keep_is_met_from_below_within_a_step(keep: float) -> None:
    dense = mlp((3, 40, 30, 2))
    for model in (dense, mlp((3, 40, 30, 2), op="MatMul", bias=False)):
        found = run(model, calibration=X, keep=keep)
        share = count_parameters(found.model) / count_parameters(model)
        assert keep - 0.06 < share <= keep
        assert found.report.error is not None
        assert found.report.error.tolerance is None
        assert found.report.error.value > 0


def test_keep_can_be_met_by_exact_steps_alone() -> None:
    dense = plant_copies(mlp((3, 8, 8, 2)), 0, 8)
    found = run(dense, calibration=X, keep=0.99 * count_parameters(mlp((3, 8, 8, 2))) / count_parameters(dense) + 0.02)
    assert found.report.status == "condensed"


@pytest.mark.parametrize("options", [{}, {"tolerance": 0.03}, {"tolerance": 1e-4}])
@pytest.mark.parametrize("bias", [True, False])
def test_a_share_out_of_reach_names_one_that_works(options: dict[str, float], *, bias: bool) -> None:
    dense = mlp(op="MatMul", bias=bias)
    with pytest.raises(BudgetError) as caught:
        run(dense, calibration=X, keep=0.01, **options)
    assert caught.value.exit_code == 3
    named = re.search(r"smallest share is ([0-9.]+)$", caught.value.text)
    if named is None:
        assert "no channel can go within tolerance" in caught.value.text
        assert options == {"tolerance": 1e-4}
        return
    found = run(dense, calibration=X, keep=float(named[1]), **options)
    assert count_parameters(found.model) <= float(named[1]) * count_parameters(dense)


def test_keep_where_nothing_can_go_says_why() -> None:
    with pytest.raises(BudgetError, match="for the outputs alone"):
        run(mlp((3, 2)), calibration=X, keep=0.5)


def test_a_verification_source_takes_the_place_of_a_share() -> None:
    other = normal(37, 3, seed=5)
    found = run(mlp(), calibration=X, verification=other, tolerance=0.05)
    assert found.report.error is not None
    assert found.report.error.samples == 37
    assert found.report.error.value == pytest.approx(relative(found.model, mlp(), other), rel=1e-3)


def test_a_verification_unlike_the_calibration_is_what_decides() -> None:
    narrow, wide = run(mlp(), calibration=X / 10, tolerance=0.02), None
    wide = run(mlp(), calibration=X / 10, verification=3 * normal(60, 3, seed=5), tolerance=0.02)
    assert count_parameters(wide.model) > count_parameters(narrow.model)
    assert wide.report.error is None or wide.report.error.value <= 0.02


def test_a_verification_source_is_checked_as_well() -> None:
    with pytest.raises(CalibrationError) as caught:
        run(mlp(), calibration=X, verification=normal(30, 4))
    assert caught.value.code == "calibration-shape"


def test_groups_are_never_split(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[set[int], set[int]]] = []
    original = fitting.Fitter.__init__

    def spy(self: Any, network: Any, view: Any, samples: Any, fit: Any, search: Any, *rest: Any) -> None:
        seen.append((set(samples.groups[fit].tolist()), set(samples.groups[search].tolist())))
        original(self, network, view, samples, fit, search, *rest)

    monkeypatch.setattr(fitting.Fitter, "__init__", spy)
    run(mlp(), calibration={"x": X, "group": np.repeat(np.arange(20), 20)}, tolerance=0.05)
    ((fit, search),) = seen
    assert not fit & search
    assert len(fit | search) < 20


def test_too_few_samples_ask_for_more() -> None:
    with pytest.raises(CalibrationError, match="25"):
        run(mlp(), calibration=X[:20])


def test_a_rewrite_that_disagrees_with_its_plan_is_a_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> onnx.ModelProto:
        model = apply_plan(*arguments)
        tensor = next(t for t in model.graph.initializer if t.name == "b1")
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(0.02), "b1"))
        return model

    monkeypatch.setattr(fitting, "apply_plan", broken)
    with pytest.raises(DefectError):
        run(mlp(), calibration=X, tolerance=0.5)


# ---- lossless ----


def test_without_calibration_what_is_planted_is_found() -> None:
    dense = plant_copies(plant_copies(mlp((3, 12, 10, 2)), 0, 5), 1, 4)
    found = run(dense)
    assert [s.after for s in found.report.spaces] == [12, 10, 2]
    assert count_parameters(found.model) == count_parameters(mlp((3, 12, 10, 2)))
    assert found.report.error is not None
    assert found.report.error.value < 1e-5
    assert found.report.error.tolerance == 0.0
    assert relative(found.model, dense, X) < 1e-5


def test_where_nothing_is_redundant_nothing_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(*_: Any) -> None:
        pytest.fail("drawn")

    monkeypatch.setattr(proof, "drawings", drawn)
    found = run(mlp())
    assert found.report.status == "unchanged"
    assert found.report.reason is not None
    assert found.report.reason.code == "nothing-redundant"
    assert found.report.latency == ()


def picky() -> onnx.ModelProto:
    """Redundant, and runs on batches of 7 only."""
    model = plant_copies(mlp((3, 12, 2)), 0, 5)
    model.graph.node[-1].output[0] = "free"
    model.graph.initializer.append(numpy_helper.from_array(np.array([7, 2], np.int64), "shape"))
    model.graph.node.append(helper.make_node("Reshape", ["free", "shape"], ["y"]))
    return model


def unstable() -> onnx.ModelProto:
    """Redundant, and NaN on negative inputs."""
    model = plant_copies(mlp((3, 12, 2)), 0, 5)
    model.graph.node[0].input[0] = "root"
    model.graph.node.insert(0, helper.make_node("Sqrt", ["x"], ["root"]))
    return model


@pytest.mark.parametrize("make", [picky, unstable])
def test_drawn_inputs_that_do_not_fit_ask_for_calibration(make: Any) -> None:
    with pytest.raises(ModelError, match="--calibration") as caught:
        run(make())
    assert caught.value.exit_code == 1


def image_network(reach: int, cut: int = 0) -> onnx.ModelProto:
    """A convolution without pads that makes 3 channels twice, and one that reads them from pixels some way apart.

    cut: so many lines are taken off the result.
    """
    rng = np.random.default_rng(0)
    w = rng.standard_normal((6, 3, 3, 3)).astype(np.float32)
    w[3:] = w[:3]
    stored = {"w": w, "u": rng.standard_normal((2, 6, 3, 3)).astype(np.float32)}
    stored |= {"from": np.array([cut]), "to": np.array([2**62]), "axis": np.array([2])}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1] * 4 if cut else [0] * 4),
        helper.make_node("Relu", ["a"], ["h"]),
        helper.make_node("Conv", ["h", "u"], ["z"], dilations=[reach] * 2, pads=[reach] * 4 if cut else [0] * 4),
        helper.make_node("Slice", ["z", "from", "to", "axis"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, ["N", 3, "H", "W"])],
        [helper.make_tensor_value_info("y", 1, ["N", 2, None, None])],
        [numpy_helper.from_array(value, name) for name, value in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.mark.parametrize(("reach", "cut", "size"), [(1, 0, 32), (20, 0, 128), (1, 10, 32), (1, 99, 128), (1, 4, 2)])
def test_sizes_that_a_network_takes_are_looked_for(
    reach: int, cut: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels without pads take something off, and of 2, 3 and 5 nothing is left; nor where lines are cut away."""
    checked: list[int] = []
    real = vars(proof)["check_numbers"]

    def check(*args: Any) -> None:
        checked.extend(feed["x"].shape[2] for feed in args[4])
        real(*args)

    monkeypatch.setattr(proof, "check_numbers", check)
    found = run(image_network(reach, cut))
    assert [s.after for s in found.report.spaces] == [3, 2]
    assert checked[0] == size


def test_outputs_that_stay_empty_are_no_reason_to_refuse() -> None:
    assert run(image_network(1, cut=10**6)).report.status == "condensed"


def test_tolerance_zero_is_lossless_and_verified_on_all_samples() -> None:
    dense = plant_copies(mlp((3, 12, 10, 2)), 0, 5)
    # Too few for shares, of which there is no need.
    found = run(dense, calibration=X[:12], tolerance=0)
    assert found.report.status == "condensed"
    assert [s.after for s in found.report.spaces] == [12, 10, 2]
    assert found.report.error is not None
    assert found.report.error.samples == 12
    assert run(mlp(), calibration=X, tolerance=0).report.status == "unchanged"


def test_a_tolerance_below_rounding_gives_exact_merges_back() -> None:
    dense = plant_copies(mlp((3, 12, 10, 2)), 0, 5)
    found = run(dense, calibration=X, tolerance=1e-12)
    assert found.report.status == "unchanged"
    assert "given back" in found.report.notes[0]


# ---- unchanged ----


def test_unchanged_is_a_copy_byte_for_byte(tmp_path: Path) -> None:
    dense = mlp()
    dense.metadata_props.add(key="who", value="me")
    source, target = tmp_path / "in.onnx", tmp_path / "out.onnx"
    # Not the bytes that we would write: fields in another order.
    source.write_bytes(dense.SerializeToString() + onnx.ModelProto(doc_string="late").SerializeToString())
    before = source.read_bytes()
    found = run(source)
    found.save(target)
    assert found.report.status == "unchanged"
    assert target.read_bytes() == source.read_bytes() == before
    assert found.report.bytes is not None
    assert found.report.bytes.before == found.report.bytes.after == len(before)


def test_slower_is_unchanged_unless_allowed(timer: FakeTimer) -> None:
    timer.speedups = [2.0, 0.5]
    found = run(mlp(), calibration=X, tolerance=0.05)
    assert found.report.status == "unchanged"
    assert found.report.reason is not None
    assert found.report.reason.code == "slower"
    assert "--allow-slower" in found.report.reason.text
    assert found.report.latency == ()
    timer.speedups = [2.0, 0.5]
    allowed = run(mlp(), calibration=X, tolerance=0.05, allow_slower=True)
    assert allowed.report.status == "condensed"
    assert [t.verdict for t in allowed.report.latency] == ["faster", "slower"]


def test_slower_falls_back_on_the_exact_step(timer: FakeTimer) -> None:
    timer.speedups = [0.5, 2.0]
    found = run(plant_copies(mlp(), 0, 10), calibration=X, tolerance=0.05)
    assert [p.kind for p in found.plan] == ["lossless"]
    assert found.report.spaces[0].after == 24


def test_a_size_to_be_had_only_slower_is_a_budget_error(timer: FakeTimer) -> None:
    timer.speedups = [0.5]
    with pytest.raises(BudgetError, match="--allow-slower"):
        run(plant_copies(mlp(), 0, 10), calibration=X, keep=0.5)


def test_latency_is_timed_at_one_sample_and_a_batch(timer: FakeTimer) -> None:
    run(mlp(), calibration=X, tolerance=0.05)
    assert timer.batches == [1, 80]
    timer.batches.clear()
    run(mlp(batch=2), calibration=X, tolerance=0.05)
    assert timer.batches == [2]


# ---- what a run depends on ----


@pytest.mark.parametrize("threads", [1, 2])
def test_same_input_same_bytes(threads: int) -> None:
    first, second = (run(plant_copies(mlp(), 0, 4), calibration=X, tolerance=0.05, threads=threads) for _ in range(2))
    assert serialized(first.model) == serialized(second.model)


def test_the_seed_decides_the_shares() -> None:
    first, second = (run(mlp(), calibration=X, tolerance=0.05, seed=s).report.error for s in (0, 1))
    assert first is not None
    assert second is not None
    assert first.value != second.value


def test_progress_runs_from_start_to_end() -> None:
    seen: list[tuple[str, float]] = []
    run(mlp(), calibration=X, tolerance=0.05, progress=lambda stage, share: seen.append((stage, share)))
    shares = [share for _, share in seen]
    assert shares == sorted(shares)
    assert seen[-1] == ("done", 1.0)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"tolerance": -0.1}, "tolerance"),
        ({"tolerance": float("nan")}, "tolerance"),
        ({"tolerance": 0.1}, "tolerance"),
        ({"keep": 0.5}, "keep"),
        ({"verification": X}, "verification"),
        ({"calibration": X, "keep": 0.0}, "keep"),
        ({"calibration": X, "keep": 1.0}, "keep"),
        ({"calibration": X, "keep": float("nan")}, "keep"),
        ({"calibration": X, "keep": 0.5, "tolerance": 0}, "keep"),
        ({"calibration": X, "seed": -1}, "seed"),
        ({"providers": ["NoSuchProvider"]}, "provider"),
    ],
)
def test_options_are_checked_before_anything_is_read(options: dict[str, Any], code: str) -> None:
    with pytest.raises(UsageError) as caught:
        run("no such file.onnx", **options)
    assert caught.value.code == code
