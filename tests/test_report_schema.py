"""The schema of the JSON report: in step with the dataclasses, shipped, and kept by what real runs write."""

from __future__ import annotations

import copy
import importlib
import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import onnx
import pytest
from command import call
from mlps import mlp, plant_copies

from onnx_condense.command import finite
from onnx_condense.report import data

SHIPPED = resources.files("onnx_condense.report") / "schema.json"

Json = dict[str, Any]


@pytest.fixture(scope="module", name="tool")
def _tool() -> ModuleType:
    return importlib.import_module("report_schema")


def check(report: Any) -> None:
    """Raises where the report is not what the shipped schema says."""
    schema = json.loads(SHIPPED.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(schema).validate(report)


# ---- the file ----


def test_the_file_is_what_the_dataclasses_say(tool: ModuleType) -> None:
    told = f"report/data.py and report/schema.json differ: run {tool.COMMAND}"
    assert SHIPPED.read_text(encoding="utf-8") == tool.text(), told
    assert tool.FILE.read_text(encoding="utf-8") == tool.text(), told


def test_it_is_a_schema_of_its_draft() -> None:
    schema = json.loads(SHIPPED.read_text(encoding="utf-8"))
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    jsonschema.Draft202012Validator.check_schema(schema)


def test_every_object_is_closed_complete_and_told() -> None:
    schema = json.loads(SHIPPED.read_text(encoding="utf-8"))
    for name, part in {"": schema, **schema["$defs"]}.items():
        assert part["additionalProperties"] is False, name
        assert part["required"] == list(part["properties"]), name
        assert part["description"], name
        for field, told in part["properties"].items():
            assert len(told["description"]) > 3, f"{name}.{field}"
    assert schema["properties"]["schema"]["const"] == data.SCHEMA
    assert schema["properties"]["status"]["enum"] == ["condensed", "unchanged", "failed", "verified"]


def test_a_docstring_is_taken_apart_at_the_names_of_fields_only(tool: ModuleType) -> None:
    doc = """What it is: a thing.

    one, two: of both: really,
    and more. *_hash: of it; four / five: None
    where: unknown.
    """
    names = ["one", "two", "a_hash", "b_hash", "four", "five"]
    assert tool.sections(doc, names) == (
        "What it is: a thing.",
        {
            **dict.fromkeys(["one", "two"], "of both: really, and more."),
            **dict.fromkeys(["a_hash", "b_hash"], "of it"),
            **dict.fromkeys(["four", "five"], "None where: unknown."),
        },
    )
    with pytest.raises(LookupError, match="one is described twice"):
        tool.sections("one: this. one: that.", ["one"])
    assert tool.sections("Nothing more", ["one"]) == ("Nothing more", {})


def test_a_field_that_nothing_describes_is_no_schema(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {key: text for key, text in tool.TEXTS.items() if key != "Change.before"}
    monkeypatch.setattr(tool, "TEXTS", texts)
    with pytest.raises(LookupError, match=r"Change\.before is described nowhere"):
        tool.schema()
    monkeypatch.setattr(tool, "TEXTS", {**texts, "Change.before": "Was.", "Change.between": "Odd."})
    with pytest.raises(LookupError, match=r"what is not there: Change\.between"):
        tool.schema()
    monkeypatch.setattr(tool, "TEXTS", {**texts, "Change.before": "Was.", "CurvePoint.error": "Again."})
    with pytest.raises(LookupError, match=r"CurvePoint\.error is described twice"):
        tool.schema()


# ---- what real runs write ----


@pytest.fixture
def _files(folder: Path) -> None:
    """More networks."""
    onnx.save(plant_copies(mlp(), 0, 8), folder / "wide.onnx")
    (folder / "broken.onnx").write_bytes(b"no network")


def report(*arguments: str) -> Json:
    call(*arguments, "--json", "r.json")
    found: Json = json.loads(Path("r.json").read_text(encoding="utf-8"))
    return found


FITTED = ("--calibration", "x.npz", "--tolerance", "0.1")
RUNS: dict[str, tuple[tuple[str, ...], str]] = {
    "condensed": (("net.onnx", "slim.onnx", *FITTED), "condensed"),
    "dry run": (("net.onnx", "slim.onnx", *FITTED, "--dry-run"), "condensed"),
    "a size": (("net.onnx", "slim.onnx", "--calibration", "x.npz", "--keep", "0.6"), "condensed"),
    "a threshold": (
        ("net.onnx", "--calibration", "x.npz", "--method", "condensation-refit", "--threshold", "0.5"),
        "condensed",
    ),
    "drawn inputs": (("net.onnx", "--calibration", "synthetic:200", "--tolerance", "0.1"), "condensed"),
    "lossless": (("wide.onnx", "slim.onnx"), "condensed"),
    "unchanged": (("net.onnx", "slim.onnx"), "unchanged"),
    "bad network": (("broken.onnx", "slim.onnx"), "failed"),
    "out of reach": (("net.onnx", "slim.onnx", "--calibration", "x.npz", "--keep", "0.001"), "failed"),
}


@pytest.mark.usefixtures("_files")
@pytest.mark.parametrize("name", RUNS)
def test_what_a_run_writes_is_what_the_schema_says(name: str) -> None:
    arguments, status = RUNS[name]
    found = report(*arguments)
    assert found["status"] == status
    check(found)


def test_numbers_that_json_does_not_have_are_null() -> None:
    numbers = data.CurvePoint(12, float("inf")), data.CurvePoint(8, float("nan"))
    found = finite(data.Report("failed", dry_run=False, curve=numbers, seconds=float("nan")).as_dict())
    assert [point["error"] for point in found["curve"]] == [None, None]
    check(found)


def drop(key: str) -> Callable[[Json], None]:
    def spoil(found: Json) -> None:
        del found[key]

    return spoil


def put(value: Any, *keys: Any) -> Callable[[Json], None]:
    def spoil(found: Json) -> None:
        at: Any = found
        for key in keys[:-1]:
            at = at[key]
        at[keys[-1]] = value

    return spoil


SPOILED: dict[str, Callable[[Json], None]] = {
    "a field is missing": drop("bytes"),
    "a field too many": put(1, "verdict"),
    "one too many inside": put(1, "error", "outputs", 0, "p99"),
    "an unknown status": put("fine", "status"),
    "unknown evidence": put("hope", "evidence"),
    "another form": put(1, "schema"),
    "a number as text": put("0.1", "error", "value"),
    "half a count": put(1.5, "parameters", "after"),
    "half an interval": put([1.0], "latency", 0, "interval"),
    "no name": put(None, "spaces", 0, "name"),
}


@pytest.mark.usefixtures("_files")
def test_a_spoiled_report_is_not_what_the_schema_says() -> None:
    good = report("net.onnx", *FITTED)
    check(good)
    for name, spoil in SPOILED.items():
        bad = copy.deepcopy(good)
        spoil(bad)
        with pytest.raises(jsonschema.ValidationError):
            check(bad)
        assert bad != good, name
