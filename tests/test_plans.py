"""Saved plans as files: what is written is read again and is what the schema says; what is none is refused by place."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from onnx_condense.cli import app
from onnx_condense.errors import InputError
from onnx_condense.saved.plans import Asked, Document, Source, SpacePlan, as_ranges, compare, load_plan, read_plan

SCHEMA = json.loads((resources.files("onnx_condense") / "plan.schema.json").read_text(encoding="utf-8"))

PLAN = Document(
    "0.1.0",
    Source("net.onnx", "aa", "bb"),
    "cc",
    "fit",
    "staged",
    120,
    Asked("relative", 0.01, {"--keep": 0.5}, 8, 0, 0),
    0.0093,
    (
        SpacePlan("h1", ("fc1",), 6, 3, (0, 2, 3), (0, 1, 2, 3), error=0.1),
        SpacePlan("h2", ("fc2", "fc3"), 4, 2, None, (0, 1, 3)),
        SpacePlan("y", ("fc4",), 2, 2, (0, 1), (0, 1), "excluded by --exclude 'fc4'"),
    ),
)
VARIANTS = [
    PLAN,
    dataclasses.replace(PLAN, refit=None, trained=0, plan_sha256=None, error=None, spaces=()),
    dataclasses.replace(PLAN, goal=dataclasses.replace(PLAN.goal, tolerance={"y": 0.5, "*": 1e-300}, multiple_of=None)),
    dataclasses.replace(PLAN, goal=dataclasses.replace(PLAN.goal, tolerance=None, multiple_of="auto")),
]


def data() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(PLAN.text())
    return found


def valid(document: Any) -> bool:
    return jsonschema.Draft202012Validator(SCHEMA).is_valid(document)


# ---- there and back ----


@pytest.mark.parametrize("plan", VARIANTS)
def test_what_is_written_is_read_again(plan: Document, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(plan.text(), encoding="utf-8")
    assert load_plan(path) == plan
    assert valid(json.loads(plan.text()))


def test_it_can_be_read_by_people() -> None:
    first = data()["spaces"][0]
    assert first == {
        "name": "h1",
        "writers": ["fc1"],
        "before": 6,
        "after": 3,
        "kept": "0,2-3",
        "exact": "0-3",
        "held": "",
        "error": 0.1,
        "places": [],
        "turned": False,
    }


@given(st.sets(st.integers(0, 60), min_size=1))
@settings(deadline=None, max_examples=50)
def test_ranges(positions: set[int]) -> None:
    ordered = tuple(sorted(positions))
    space = SpacePlan("h", ("a",), 61, len(ordered), ordered, tuple(range(61)))
    text = dataclasses.replace(PLAN, spaces=(space,)).text()
    assert read_plan(text, "p").spaces == (space,)
    assert valid(json.loads(text))
    assert as_ranges(ordered).count(",") == sum(p - 1 not in positions for p in ordered) - 1


def test_the_schema_has_the_fields_of_the_document() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    kinds = {"": Document, "source": Source, "goal": Asked, "space": SpacePlan}
    for place, kind in kinds.items():
        part = SCHEMA if not place else SCHEMA["$defs"].get(place) or SCHEMA["properties"][place]
        names = [f.name for f in dataclasses.fields(kind)]
        assert list(part["properties"]) == (["schema"] if not place else []) + names
        # What plans that were saved by earlier versions do not tell of.
        later = {"": ("trained",), "space": ("places", "turned")}.get(place, ())
        assert part["required"] == [name for name in part["properties"] if name not in later]
        assert part["additionalProperties"] is False
        assert all("description" in p for p in part["properties"].values())


def test_a_plan_of_an_earlier_version_may_leave_out_what_it_did_not_know() -> None:
    data = json.loads(PLAN.text())
    del data["trained"]
    for space in data["spaces"]:
        del space["places"], space["turned"]
    assert read_plan(json.dumps(data), "p.json") == dataclasses.replace(PLAN, trained=0)


def test_places_are_kept_and_checked() -> None:
    space = SpacePlan("h", ("a",), 4, 2, (0, 1), (0, 1, 2), places=((2, 0, 1), (0, 1, 2)))
    text = dataclasses.replace(PLAN, spaces=(space,)).text()
    assert read_plan(text, "p").spaces == (space,)
    assert valid(json.loads(text))
    for wrong in ([0, 0, 1], [0, 1, 3], [0, 1, 2, 3]):
        data = json.loads(text)
        data["spaces"][0]["places"][1] = wrong
        with pytest.raises(InputError, match=r"space 'h': places: .* is no order of at most 3 channels"):
            read_plan(json.dumps(data), "p")
    data["spaces"][0]["places"][1] = [1, 0]
    with pytest.raises(InputError, match="space 'h': places: not all orders are of the same length"):
        read_plan(json.dumps(data), "p")
    data["spaces"][0] |= {"places": [], "turned": 1}
    with pytest.raises(InputError, match="space 'h': turned is 1, neither true nor false"):
        read_plan(json.dumps(data), "p")


# ---- what is no plan ----

DELETE = object()
# Where, what is put there, what the message says, and whether a JSON Schema can tell too.
FAULTS: list[tuple[tuple[Any, ...], Any, str, bool]] = [
    (("schema",), 2, "is a plan of form 2; this version reads form 1", True),
    (("schema",), True, "is a plan of form True", True),
    (("schema",), DELETE, "is no plan: it has no `schema`", True),
    (("method",), DELETE, "method is missing", True),
    (("method",), 3, "method: 3 is not a text", True),
    (("more",), 3, "more is unknown", True),
    (("refit",), "twice", "refit: 'twice' is none of", True),
    (("error",), -1.0, "error: -1.0 is no number", True),
    (("error",), "big", "error: 'big' is no number", True),
    (("error",), True, "error: True is no number", True),
    (("plan_sha256",), 1, "plan_sha256: 1 is not a text", True),
    (("version",), None, "version: None is not a text", True),
    (("source",), [], "source: [] is not an object", True),
    (("source", "name"), DELETE, "source.name is missing", True),
    (("goal",), None, "goal: None is not an object", True),
    (("goal", "seed"), -1, "goal.seed: -1 is no integer of at least 0", True),
    (("goal", "augment"), 0.5, "goal.augment: 0.5 is no integer of at least 0", True),
    (("goal", "tolerance"), {"y": None}, "goal.tolerance.y: null is no number", True),
    (("goal", "tolerance"), "low", "goal.tolerance: 'low' is no number", True),
    (("goal", "sizes"), 1, "goal.sizes: 1 is not an object", True),
    (("goal", "multiple_of"), "most", "goal.multiple_of: 'most' is no integer of at least 1", True),
    (("spaces",), {}, "spaces: {} is not a list", True),
    (("spaces", 1), 5, "spaces[1]: 5 is not an object", True),
    (("spaces", 1, "kept"), DELETE, "spaces[1].kept is missing", True),
    (("spaces", 1, "extra"), 0, "spaces[1].extra is unknown", True),
    (("spaces", 1, "name"), 0, "spaces[1].name: 0 is not a text", True),
    (("spaces", 1, "name"), "h1", "space 'h1' is there twice", False),
    (("spaces", 0, "before"), 0, "space 'h1': before: 0 is no integer of at least 1", True),
    (("spaces", 0, "after"), 2.5, "space 'h1': after: 2.5 is no integer", True),
    (("spaces", 0, "after"), 2, "space 'h1': kept names 3 channels, but after is 2", False),
    (("spaces", 0, "kept"), "0,2,6", "space 'h1': kept: channel 6 is out of range, there are 6", False),
    (("spaces", 0, "kept"), "0-9999999999", "space 'h1': kept: channel 9999999999 is out of range", False),
    (("spaces", 0, "kept"), "0,2,2", "space 'h1': kept: '2' names channels twice or not in order", False),
    (("spaces", 0, "kept"), "2,0-1", "space 'h1': kept: '0-1' names channels twice or not in order", False),
    (("spaces", 0, "kept"), "3-1", "space 'h1': kept: '3-1' names channels twice or not in order", False),
    (("spaces", 0, "kept"), "", "space 'h1': kept: '' is no range of channels such as 0-3,5", True),
    (("spaces", 0, "kept"), "0, 2-3", "space 'h1': kept: ' 2-3' is no range of channels", True),
    (("spaces", 0, "kept"), "0,2-3\n", "is no range of channels", False),
    (("spaces", 0, "kept"), [0, 2, 3], "space 'h1': kept: [0, 2, 3] is not a text", True),
    (("spaces", 0, "kept"), "0,2,5", "space 'h1': kept names channel 5, which is not among exact", False),
    (("spaces", 0, "exact"), None, "space 'h1': exact: None is not a text", True),
    (("spaces", 1, "after"), 4, "space 'h2': after is 4, but exact leaves 3 channels", False),
    (("spaces", 0, "writers"), "fc1", "space 'h1': writers: 'fc1' is not a list", True),
    (("spaces", 0, "writers"), [1], "space 'h1': writers: 1 is not a text", True),
    (("spaces", 0, "held"), None, "space 'h1': held: None is not a text", True),
    (("spaces", 0, "error"), -1, "space 'h1': error: -1 is no number", True),
]


@pytest.mark.parametrize(("where", "value", "text", "schema"), FAULTS)
def test_what_is_no_plan_is_refused_by_its_place(where: tuple[Any, ...], value: Any, text: str, schema: bool) -> None:
    broken = copy.deepcopy(data())
    part = broken
    for key in where[:-1]:
        part = part[key]
    if value is DELETE:
        del part[where[-1]]
    else:
        part[where[-1]] = value
    with pytest.raises(InputError) as error:
        read_plan(json.dumps(broken), "some/plan.json")
    assert error.value.text.startswith("some/plan.json: ")
    assert text in error.value.text
    assert "\n" not in error.value.text
    assert valid(broken) is not schema


@pytest.mark.parametrize("text", ["", "[1]", "{}", "nothing", '{"schema": 1', "[" * 100_000, '{"schema": NaN}', "null"])
def test_text_that_is_no_plan(text: str) -> None:
    with pytest.raises(InputError, match=r"^p: is (no|a) plan"):
        read_plan(text, "p")


def test_numbers_that_json_does_not_have() -> None:
    with pytest.raises(InputError, match="error: nan is no number of at least 0"):
        read_plan(PLAN.text().replace("0.0093", "NaN"), "p")


@pytest.mark.parametrize("what", ["missing", "folder", "binary"])
def test_files_that_can_not_be_read(what: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    if what == "folder":
        path.mkdir()
    if what == "binary":
        path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError) as error:
        load_plan(path)
    assert str(path) in error.value.text


# ---- comparing ----


def rows(one: Document, other: Document) -> dict[str, list[str]]:
    lines = compare(one, other, ("a.json", "b.json"))
    start = lines.index("") + 1
    return {
        line.split()[0]: line.split()[1:]
        for line in lines[start:]
        if line and line.split()[0] in {"h1", "h2", "h3", "y"}
    }


def changed(index: int, **fields: Any) -> Document:
    spaces = list(PLAN.spaces)
    spaces[index] = dataclasses.replace(spaces[index], **fields)
    return dataclasses.replace(PLAN, spaces=tuple(spaces))


def test_equal_plans_say_so() -> None:
    lines = compare(PLAN, PLAN, ("a.json", "b.json"))
    assert lines == [
        "A  a.json for net.onnx: 12 -> 7 channels, method fit, error 0.0093",
        "B  b.json for net.onnx: 12 -> 7 channels, method fit, error 0.0093",
        "",
        "3 of 3 spaces are the same in both",
    ]


@pytest.mark.parametrize(
    ("fields", "row"),
    [
        ({"after": 4, "kept": (0, 1, 2, 3)}, ["6", "3", "4", "75", "%", "-", "1"]),
        ({"after": 2, "kept": (2, 3)}, ["6", "3", "2", "67", "%", "0", "-"]),
        ({"kept": (0, 1, 2)}, ["6", "3", "3", "50", "%", "3", "1"]),
        ({"kept": None}, ["6", "3", "3", "mixed", "channels", "in", "B"]),
        ({"before": 7}, ["6", "/", "7", "3", "3", "100", "%", "-", "-"]),
    ],
)
def test_spaces_that_differ_are_told(fields: Mapping[str, Any], row: list[str]) -> None:
    assert rows(PLAN, changed(0, **fields)) == {"h1": row}


def test_spaces_that_only_one_has() -> None:
    other = changed(1, name="h3")
    assert rows(PLAN, other) == {
        "h2": ["4", "2", "-", "only", "A", "has", "this", "space"],
        "h3": ["4", "-", "2", "only", "B", "has", "this", "space"],
    }


def test_other_networks_are_told() -> None:
    other = dataclasses.replace(PLAN, source=Source("n", "aa2", "bb"))
    assert "made for the same architecture with other weights" in compare(PLAN, other, ("a", "b"))
    other = dataclasses.replace(PLAN, source=Source("n", "aa2", "bb2"))
    assert "made for networks of different architecture" in compare(PLAN, other, ("a", "b"))


def test_many_channels_are_cut_short() -> None:
    wide = SpacePlan("h1", ("a",), 100, 50, tuple(range(0, 100, 2)), tuple(range(100)))
    other = dataclasses.replace(wide, kept=tuple(range(1, 100, 2)))
    plans = [dataclasses.replace(PLAN, spaces=(s,)) for s in (wide, other)]
    assert max(map(len, compare(plans[0], plans[1], ("a", "b")))) < 120


def call(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "80"})


def test_the_command_compares(tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in ("a.json", "b.json")]
    Path(paths[0]).write_text(PLAN.text(), encoding="utf-8")
    Path(paths[1]).write_text(changed(0, name="h\x1b[1m").text(), encoding="utf-8")
    result = call("--compare-plans", *paths)
    assert result.exit_code == 0, result.output
    assert "only A has this space" in result.stdout
    assert "\x1b" not in result.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "b.json"]


@pytest.mark.parametrize(
    ("more", "name"),
    [
        (["net.onnx"], "IN"),
        (["--quiet"], "--quiet"),
        (["--keep", "0.5"], "--keep"),
        (["--save-plan", "x"], "--save-plan"),
    ],
)
def test_comparing_goes_with_nothing_else(more: list[str], name: str) -> None:
    result = call("--compare-plans", "a", "b", *more)
    assert result.exit_code == 2
    assert f"--compare-plans and {name} exclude each other" in result.stderr
    assert result.stdout == ""


def test_comparing_needs_plans(tmp_path: Path) -> None:
    result = call("--compare-plans", str(tmp_path / "a"), str(tmp_path / "b"))
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "can't be read" in result.stderr


def test_a_report_is_no_plan() -> None:
    text = json.dumps({"schema": 2, "status": "condensed", "spaces": []})
    with pytest.raises(InputError, match=r"^r.json: is no plan but a report; --save-plan saves a plan$"):
        read_plan(text, "r.json")


def test_without_plans_to_compare_a_network_is_needed() -> None:
    result = call("--dry-run")
    assert result.exit_code == 2
    assert "Missing argument 'IN'." in result.stderr
