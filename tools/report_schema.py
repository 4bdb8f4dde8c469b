"""The JSON Schema of the report that `--json` writes, made from the dataclasses in onnx_condense/report/data.py.

python tools/report_schema.py

What the fields mean comes from the docstrings there; what they leave to a field's name is told here.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import inspect
import itertools
import json
import re
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import core_schema

from onnx_condense.report import data

FILE = Path(__file__).parent.parent / "onnx_condense" / "report" / "schema.json"
COMMAND = "python tools/report_schema.py"

Json = dict[str, Any]

INTRO = """What `onnx-condense --json` writes. A number that is NaN or infinite, which JSON does not have, is null.
Every version of the package has a schema of its own; the number `schema` is raised when a field goes or changes."""

TEXTS: Mapping[str, str] = {
    "Change.before": "Of the dense network.",
    "Change.after": "Of the condensed network.",
    "CurvePoint.parameters": "Learned numbers of that network.",
    "ErrorSummary.back_offs": "How often verification asked for wider layers.",
    "ErrorSummary.outputs": "Every graph output, in the network's order.",
    "ErrorSummary.samples": "How many samples judged.",
    "ErrorSummary.value": "The error of the output that is nearest to its tolerance.",
    "Footprint.provider": "ONNX Runtime's execution provider.",
    "Latency.after_ms": "Median of the condensed network.",
    "Latency.batch": "Samples per pass.",
    "Latency.before_ms": "Median of the dense network.",
    "Latency.interval": "Of `speedup`, 99 %.",
    "Latency.provider": "ONNX Runtime's execution provider.",
    "Latency.speedup": "before_ms / after_ms.",
    "Latency.threads": "Threads of ONNX Runtime; 0: its default.",
    "OutputError.name": "The graph output.",
    "OutputError.value": "Its error, as `metric` says.",
    "Reason.code": "A stable slug, for programs.",
    "Reason.node": "The node or tensor at fault, if there is one.",
    "Reason.text": "One line, for people.",
    "RefusalRow.node": "The node that pins them.",
    "RefusalRow.reason": "Why they had to stay.",
    "RefusalRow.space": "The channel space, or the tensor where no space was made.",
    "Report.bytes": "Size of the files, external weights included.",
    "Report.dry_run": "Whether nothing was to be written.",
    "Report.error": "None where nothing was measured (unchanged or failed).",
    "Report.parameters": "Learned numbers.",
    "Report.reason": "Why it failed or nothing changed; else None.",
    "Report.refusals": "Why channels had to stay.",
    "Report.schema": "Version of this form.",
    "Report.seconds": "What the run took.",
    "Report.spaces": "Every channel space, in the network's order.",
    "Report.status": "What happened.",
    "Served.provider": "ONNX Runtime's execution provider.",
    "SpaceRow.after": "Channels of the condensed network.",
    "SpaceRow.before": "Channels of the dense network.",
    "SpaceRow.name": "The tensor that carries the channels first.",
    "SpaceRow.readers": "The nodes whose columns use the channels.",
    "SpaceRow.writers": "The nodes whose rows make the channels.",
    "ThinSpace.name": "As in `spaces`.",
    "WorstFeature.value": "Its error over its own spread.",
}


class _Generator(GenerateJsonSchema):
    """pydantic's, for numbers as the command writes them."""

    def float_schema(self, schema: core_schema.FloatSchema) -> Json:  # noqa: ARG002 - pydantic's signature
        """Any of them may be null: the command writes every number that JSON does not have as that."""
        return {"type": ["number", "null"]}


def schema() -> Json:
    """The whole schema.

    Raises:
        LookupError: a field that nothing describes, or a text for a field that is not there or told already.
    """
    made = _tidied(TypeAdapter(data.Report).json_schema(mode="serialization", schema_generator=_Generator))
    parts = {"Report": made, **made["$defs"]}
    for name, part in parts.items():
        _add_derived(getattr(data, name), part)
    told = {name: _described(getattr(data, name)) for name in parts}
    for name, (about, fields) in told.items():
        parts[name]["description"] = _sentence(about)
        for field, text in fields.items():
            parts[name]["properties"][field]["description"] = text
    known = {f"{name}.{field}" for name in parts for field in parts[name]["properties"]}
    if idle := sorted(key for key in TEXTS if key not in known):
        raise LookupError(f"TEXTS describes what is not there: {', '.join(idle)}")
    made["properties"]["schema"] = {**made["properties"]["schema"], "const": data.SCHEMA}
    made["description"] = f"{' '.join(INTRO.split())} {made['description']}"
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Report of onnx-condense"}
    return {**head, **made, "$defs": dict(sorted(made["$defs"].items()))}


def _add_derived(kind: type, part: Json) -> None:
    """Fields that follow from others (`init=False`) are written too, but pydantic leaves them out."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if not field.init:
            part["properties"][field.name] = TypeAdapter(hints[field.name]).json_schema(schema_generator=_Generator)
            part["required"].append(field.name)


def _described(kind: type) -> tuple[str, dict[str, str]]:
    """What a dataclass is, and what its fields are."""
    about, fields = sections(inspect.getdoc(kind) or "", names := [f.name for f in dataclasses.fields(kind)])
    for name in names:
        key = f"{kind.__name__}.{name}"
        if (name in fields) == (key in TEXTS):
            how = "is described twice" if name in fields else "is described nowhere"
            raise LookupError(f"{key} {how}: say what it is in its docstring or in TEXTS")
        fields.setdefault(name, TEXTS.get(key, ""))
    return about, {name: _sentence(fields[name]) for name in names}


def sections(doc: str, names: list[str]) -> tuple[str, dict[str, str]]:
    """A docstring taken apart: what stands before the first label, and what follows the label of each field.

    A label is `name: `, `a, b: ` or `a / b: ` at the start of a sentence or line; the names may have a `*`. Only names
    of fields make one, so that prose may use colons.
    """
    # One line per paragraph start; what goes on in the next line is joined by a blank all the same.
    text = re.sub(r"\s*\n\s*", "\n", doc)
    found: list[tuple[int, int, list[str]]] = []
    for match in re.finditer(r"(?:^|(?<=[.;] )|(?<=\n))([\w*]+(?:(?:, | / )[\w*]+)*):\s", text):
        patterns = re.split(r", | / ", match[1])
        matched = [name for name in names if any(fnmatch.fnmatchcase(name, p) for p in patterns)]
        if all(any(fnmatch.fnmatchcase(name, p) for name in names) for p in patterns):
            found.append((match.start(), match.end(), matched))
    found.append((len(text), 0, []))
    fields: dict[str, str] = {}
    for (_, start, labelled), (end, _, _) in itertools.pairwise(found):
        for name in labelled:
            if name in fields:
                raise LookupError(f"{name} is described twice in one docstring")
            fields[name] = " ".join(text[start:end].split()).rstrip(";")  # as in "one: what it is; two: ..."
    return " ".join(text[: found[0][0]].split()).rstrip(";"), fields


def _sentence(text: str) -> str:
    """In JSON's words, with a full stop, and a capital where it starts with a plain word."""
    text = re.sub(r"\bNone\b", "null", text)
    start = text[:1].upper() + text[1:] if re.match(r"[a-z-]+(?=[ ,.:;]|$)", text) else text
    return start if start.endswith(".") else f"{start}."


def _tidied(node: Any) -> Any:
    """Objects closed and complete, as the command always writes all fields; without what pydantic adds by itself."""
    if isinstance(node, list):
        return [_tidied(item) for item in node]
    if not isinstance(node, dict):
        return node
    named = {key: {k: _tidied(v) for k, v in node[key].items()} for key in ("properties", "$defs") if key in node}
    rest = {k: _tidied(v) for k, v in node.items() if k not in {"title", "default", "description", "required", *named}}
    if "properties" in node:
        rest |= {"additionalProperties": False, "required": list(node["properties"])}
    return _merged({**rest, **named})


def _merged(node: Json) -> Json:
    """Alternatives that are bare types as one list of types."""
    bare = [option["type"] for option in node.get("anyOf", []) if set(option) == {"type"}]
    if len(bare) < len(node.get("anyOf", [])) or not bare:
        return node
    types = dict.fromkeys(itertools.chain.from_iterable([t] if isinstance(t, str) else t for t in bare))
    return {**{k: v for k, v in node.items() if k != "anyOf"}, "type": list(types)}


def text() -> str:
    """The file's content."""
    return f"{json.dumps(schema(), indent=2, ensure_ascii=False)}\n"


def main(out: Annotated[Path, typer.Option(dir_okay=False, help="The file to write.")] = FILE) -> None:
    """Write the schema of the JSON report."""
    out.write_text(text(), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
