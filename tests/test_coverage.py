"""What a run says of how well its calibration stands for what judges it."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from onnx import helper

from onnx_condense import condense
from onnx_condense.metrics import Measurement
from onnx_condense.proving.coverage import ROWS, notes, seen
from onnx_condense.report.data import Coverage

Array = Any
WIDTH, INPUTS = 60, 12


def mlp() -> Any:
    """12 - 60 - 60 - 3 with tanh, of which no channel is redundant."""
    rng = np.random.default_rng(0)
    sizes = (INPUTS, WIDTH, WIDTH, 3)
    stored, nodes, flow = [], [], "x"
    for i, (a, b) in enumerate(itertools.pairwise(sizes)):
        values = {"w": rng.standard_normal((a, b)) / a**0.5, "b": rng.standard_normal(b)}
        stored += [helper.make_tensor(f"{k}{i}", 1, v.shape, v.reshape(-1)) for k, v in values.items()]
        out = "y" if i == len(sizes) - 2 else f"z{i}"
        nodes.append(helper.make_node("Gemm", [flow, f"w{i}", f"b{i}"], [out], name=f"layer{i}"))
        flow = out if out == "y" else f"h{i}"
        nodes += [] if out == "y" else [helper.make_node("Tanh", [out], [flow])]
    ends = [helper.make_tensor_value_info(n, 1, ["N", size]) for n, size in (("x", INPUTS), ("y", 3))]
    graph = helper.make_graph(nodes, "mlp", ends[:1], ends[1:], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def draws(count: int, seed: int = 1, scale: float = 1.0) -> Array:
    """Inputs on a plane through the origin."""
    rng = np.random.default_rng(seed)
    plane = np.random.default_rng(5).standard_normal((3, INPUTS))
    return (scale * rng.standard_normal((count, 3)) @ plane).astype(np.float32)


def test_seen_and_unseen_errors_stand_side_by_side() -> None:
    found = condense(mlp(), calibration=draws(4000), keep=0.5, threads=1).report
    assert found.coverage is not None
    assert found.error is not None
    assert found.coverage.seen == pytest.approx(found.error.value, rel=0.3)
    assert found.coverage.samples == found.error.samples == 800
    assert not found.coverage.grouped
    assert found.coverage.thin == ()
    assert not [n for n in found.notes if "seen ones" in n or "rows per kept" in n]


def test_a_warning_where_unseen_samples_come_off_much_worse() -> None:
    """The verification samples lie farther out than calibration."""
    found = condense(mlp(), calibration=draws(4000), verification=draws(500, 2, 3.0), keep=0.5, threads=1).report
    assert found.coverage is not None
    assert found.error is not None
    assert found.error.value > 2 * found.coverage.seen
    (note,) = [n for n in found.notes if "seen ones" in n]
    assert "on unseen samples" in note
    assert f"({found.coverage.seen:.2g})" in note


def test_a_warning_where_seen_samples_show_no_error_at_all() -> None:
    known = Measurement((), np.arange(100))
    (note,) = notes(Coverage(0.0, 100, grouped=False), known, 0.3, 0)
    assert note.startswith("the error on unseen samples is far above that on seen ones (0): ")


def test_groups_are_named_as_such() -> None:
    group = np.repeat(np.arange(200), 20)
    x = draws(4000) + np.repeat(np.random.default_rng(7).standard_normal((200, INPUTS)), 20, axis=0)
    found = condense(mlp(), calibration={"x": x.astype(np.float32), "group": group}, keep=0.5, threads=1).report
    assert found.coverage is not None
    assert found.coverage.grouped


def test_a_few_repeated_samples_are_no_groups() -> None:
    x = draws(4000)
    x[:5] = x[5:10]
    found = condense(mlp(), calibration=x, keep=0.5, threads=1).report
    assert found.coverage is not None
    assert not found.coverage.grouped


def test_few_rows_per_kept_channel_are_told() -> None:
    """120 samples, 96 of them fitted on in the end, for about 40 channels."""
    found = condense(mlp(), calibration=draws(120), keep=0.5, threads=1).report
    assert found.coverage is not None
    kept = {row.name: row.after for row in found.spaces if row.after < row.before}
    assert {t.name: t.rows for t in found.coverage.thin} == pytest.approx(
        {name: 96 / width for name, width in kept.items() if 96 / width < ROWS}
    )
    rows = [t.rows for t in found.coverage.thin]
    assert rows == sorted(rows)
    (note,) = [n for n in found.notes if "rows per kept" in n]
    assert found.coverage.thin[0].name in note


def test_nothing_is_said_where_nothing_was_fitted() -> None:
    assert condense(mlp(), calibration=draws(200), tolerance=0.0, threads=1).report.coverage is None


def test_seen_samples_are_spread_over_all_that_were_fitted_on() -> None:
    fit = np.arange(0, 2000, 2)
    chosen = seen(fit, 300)
    assert len(chosen) == 300
    assert (chosen[0], chosen[-1]) == (0, 1998)
    assert len(seen(fit, 10)) == 256
    assert len(seen(fit[:40], 10)) == 40
