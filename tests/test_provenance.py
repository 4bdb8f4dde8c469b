"""What a condensed network says of where it comes from."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from mlps import mlp, normal, plant_copies

from onnx_condense import __version__, condense
from onnx_condense.network.model import load, serialized
from onnx_condense.plan import Plan, ReaderUpdate, Selection
from onnx_condense.proving.provenance import Provenance, plan_digest, source_digest


def sha(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()


def plan(keep: tuple[int, ...] = (0, 2), weight: float = 1.0, name: str = "h") -> Plan:
    update = ReaderUpdate(1, np.full((2, 2), weight), np.zeros(2))
    return Plan("fitted", (Selection(name, np.array(keep)),), (update,), {name: 0.1})


def test_a_file_is_known_by_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(mlp(), path)
    assert source_digest(load(path)) == sha(path.read_bytes())


def test_external_weights_count(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(mlp((3, 64, 64, 2)), path, save_as_external_data=True, location="w.data", size_threshold=64)
    assert source_digest(load(path)) == sha(path.read_bytes(), (tmp_path / "w.data").read_bytes())


def test_a_network_in_memory_is_known_by_its_serialization() -> None:
    dense = mlp()
    assert source_digest(load(dense)) == sha(serialized(dense))


@pytest.mark.parametrize(
    "other",
    [
        (plan(keep=(0, 1)),),
        (plan(weight=1.0 + 1e-12),),
        (plan(name="g"),),
        (plan(), plan()),
        (dataclasses.replace(plan(), kind="merged"),),
        (dataclasses.replace(plan(), errors={"h": 0.2}),),
    ],
)
def test_plans_that_differ_have_other_digests(other: tuple[Plan, ...]) -> None:
    assert plan_digest((plan(),)) == plan_digest((plan(),))
    assert plan_digest(other) != plan_digest((plan(),))


def test_the_metadata_tell_source_plan_error_and_tolerance(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(mlp(), path)
    found = condense(path, calibration=normal(400, 3), tolerance=0.05, threads=1)
    told = Provenance.of(found.model)
    assert told is not None
    assert found.report.error is not None
    assert told == Provenance(
        __version__, sha(path.read_bytes()), plan_digest(found.plan), f"{found.report.error.value:.3g}", "0.05"
    )
    origin = found.report.origin
    assert origin is not None
    assert (origin.source, origin.source_sha256, origin.plan_sha256) == (
        str(path),
        told.source_sha256,
        told.plan_sha256,
    )
    assert origin.versions["onnx-condense"] == __version__
    assert origin.versions["onnxruntime"]


def test_exact_steps_stamp_no_rounding() -> None:
    found = condense(plant_copies(mlp((3, 12, 10, 2)), 0, 5), threads=1)
    told = Provenance.of(found.model)
    assert found.report.error is not None
    assert found.report.error.value > 0
    assert told is not None
    assert (told.error, told.tolerance) == ("0", "0")


def test_an_unchanged_network_gets_none_but_the_report_names_it() -> None:
    dense = mlp()
    found = condense(dense, threads=1)
    assert found.report.status == "unchanged"
    assert Provenance.of(found.model) is None
    assert found.report.origin is not None
    assert found.report.origin.source_sha256 == sha(serialized(dense))
    assert found.report.origin.plan_sha256 is None


def test_other_metadata_stay_and_an_earlier_stamp_goes() -> None:
    dense = plant_copies(mlp((3, 12, 10, 2)), 0, 5)
    dense.metadata_props.add(key="author", value="somebody")
    dense.metadata_props.add(key="onnx_condense.version", value="old")
    dense.metadata_props.add(key="onnx_condense.gone", value="old")
    found = condense(dense, threads=1).model
    stored = [(p.key, p.value) for p in found.metadata_props]
    assert stored[0] == ("author", "somebody")
    assert len(stored) == 1 + len(dataclasses.fields(Provenance))
    assert ("onnx_condense.version", __version__) in stored


def test_half_a_stamp_is_none() -> None:
    model = mlp()
    model.metadata_props.add(key="onnx_condense.version", value="1")
    assert Provenance.of(model) is None
