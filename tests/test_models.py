"""The networks that ship in models/ are what models/README.md says: it is what users try first."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from onnx import helper

from onnx_condense.data import GROUP

MODELS = Path(__file__).parent.parent / "models"
README = (MODELS / "README.md").read_text()

Arrays = dict[str, npt.NDArray[Any]]


def read(name: str) -> Arrays:
    with np.load(MODELS / name) as stored:
        return dict(stored)


def outputs(name: str, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    session = ort.InferenceSession(str(MODELS / name))
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0])


def written(pattern: str) -> float:
    """The one number that README.md gives at this place."""
    (number,) = re.findall(pattern, README)
    return float(number)


@pytest.mark.parametrize(("name", "key"), [("ignition", "state"), ("digits", "image")])
def test_calibration_and_labelled_inputs_fit_the_network(name: str, key: str) -> None:
    model = onnx.load(MODELS / f"{name}.onnx")
    onnx.checker.check_model(model, full_check=True)
    (declared,) = model.graph.input
    sizes = [d.dim_param or d.dim_value for d in declared.type.tensor_type.shape.dim]
    assert declared.name == key
    assert sizes[0] == "batch"
    calibration, labelled = read(f"{name}.npz"), read(f"{name}_labelled.npz")
    assert set(calibration) - {GROUP} == {key}
    for x in (calibration[key], labelled[key]):
        assert x.dtype == np.float32
        assert list(x.shape[1:]) == sizes[1:]
        assert len(outputs(f"{name}.onnx", x[:3])) == 3
    # Held out means held out.
    seen = {row.tobytes() for row in calibration[key]}
    assert len(seen) > 0.99 * len(calibration[key])
    assert not any(row.tobytes() in seen for row in labelled[key])


def test_ignitions_are_groups_that_the_labelled_ones_are_not_among() -> None:
    calibration = read("ignition.npz")
    ignitions = np.unique(calibration[GROUP])
    assert len(calibration[GROUP]) == len(calibration["state"])
    assert len(ignitions) == written(r"of (\d+) training ignitions")
    assert not np.isin(read("ignition_labelled.npz")["run"], ignitions).any()
    # States of one ignition share its pressure, the second number, which no disturbance touches.
    pressure = calibration["state"][:, 1]
    assert all(np.ptp(pressure[calibration[GROUP] == i]) == 0 for i in ignitions)


def test_ignition_is_as_exact_as_the_readme_says() -> None:
    data = read("ignition_labelled.npz")
    error = np.abs(outputs("ignition.onnx", data["state"]) - data["change"]).mean()
    assert error == pytest.approx(written(r"mean absolute error ([\d.]+) of z-scored"), abs=5e-5)


def test_digits_classifies_as_well_as_the_readme_says() -> None:
    data = read("digits_labelled.npz")
    hits = outputs("digits.onnx", data["image"]).argmax(axis=1) == data["label"]
    assert hits.mean() >= written(r"share of right answers ([\d.]+)")


def test_digits_has_its_normalization_unfolded() -> None:
    graph = onnx.load(MODELS / "digits.onnx").graph
    kinds = [n.op_type for n in graph.node]
    for kind, count in {"Conv": 4, "BatchNormalization": 4, "MaxPool": 1, "Add": 1, "Flatten": 1, "Gemm": 2}.items():
        assert kinds.count(kind) == count, kind
    for node in graph.node:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "Conv":
            assert attributes["pads"] == [1, 1, 1, 1]
        if node.op_type == "BatchNormalization":
            assert not attributes.get("training_mode", 0)
    # The head reads every channel at several positions.
    flatten = next(n for n in graph.node if n.op_type == "Flatten")
    shapes = {v.name: v for v in onnx.shape_inference.infer_shapes(onnx.load(MODELS / "digits.onnx")).graph.value_info}
    assert [d.dim_value for d in shapes[flatten.input[0]].type.tensor_type.shape.dim][1:] == [64, 4, 4]
