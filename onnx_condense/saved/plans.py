"""A plan as a file that people can review, keep, and use again: which channels of which layers stay, and how.

Owns the form (`plan.schema.json` describes it) and what two plans have in common; `reuse` applies one to a network.
Positions count the channels of the dense network's space from 0.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from onnx_condense.errors import InputError

SCHEMA = 1
# Ranges of channels that one cell of a table shows.
SHOWN = 8

Number = (int, float)
_RANGE = re.compile(r"(\d+)(?:-(\d+))?", re.ASCII)


@dataclasses.dataclass(frozen=True)
class SpacePlan:
    """What becomes of one channel space.

    name, writers: as in reports. before, after: its width.
    kept: positions of the channels that stay; None where the channels that exact steps left are mixed into fewer.
    exact: positions that were left by what the weights alone prove.
    held: why the user wanted it left alone; "" if not. error: predicted relative error at its readers.
    places: of what is laid out in groups, heads or a stack and was moved after exact steps: per part, which of its
        channels came to each place; `kept` names places after that.
    turned: whether the channels of each part were mixed after exact steps, those first that count most; `kept` names
        what came out.
    """

    name: str
    writers: tuple[str, ...]
    before: int
    after: int
    kept: tuple[int, ...] | None
    exact: tuple[int, ...]
    held: str = ""
    error: float = 0.0
    places: tuple[tuple[int, ...], ...] = ()
    turned: bool = False

    @property
    def fitted(self) -> bool:
        """Whether more goes than the weights alone prove."""
        return self.after < len(self.exact)


@dataclasses.dataclass(frozen=True)
class Source:
    """The network that a plan was made for.

    name: of its file; "" if it had none. sha256: as `provenance.source_digest`. architecture: the same for all networks
    that differ in their numbers only.
    """

    name: str
    sha256: str
    architecture: str


@dataclasses.dataclass(frozen=True)
class Asked:
    """What the run that saved a plan was asked for.

    metric, tolerance: how errors were measured, and what they had to stay within: a number, numbers by patterns of
    outputs, or None. sizes: by option. multiple_of, seed, augment: as the options.
    """

    metric: str
    tolerance: float | Mapping[str, float] | None
    sizes: Mapping[str, float]
    multiple_of: int | str | None
    seed: int
    augment: int


@dataclasses.dataclass(frozen=True)
class Document:
    """A saved plan.

    version: of this package. plan_sha256: of the plan with its weights, None where nothing was done.
    method: what chose the channels. refit: "staged", "at once", or None where nothing was fitted.
    trained: steps of the last training after the refit, 0: none.
    goal: what was asked for. error: as verified; None where nothing was done.
    """

    version: str
    source: Source
    plan_sha256: str | None
    method: str
    refit: str | None
    trained: int
    goal: Asked
    error: float | None
    spaces: tuple[SpacePlan, ...]

    def text(self) -> str:
        """The file's content."""
        spaces = [_space_data(space) for space in self.spaces]
        rest = {"schema": SCHEMA, **dataclasses.asdict(self), "error": _finite(self.error), "spaces": spaces}
        return f"{json.dumps(rest, indent=2, ensure_ascii=False, allow_nan=False)}\n"


def _space_data(space: SpacePlan) -> dict[str, Any]:
    kept = None if space.kept is None else as_ranges(space.kept)
    return {**dataclasses.asdict(space), "kept": kept, "exact": as_ranges(space.exact), "error": _finite(space.error)}


def _finite(number: float | None) -> float | None:
    return None if number is None or not math.isfinite(number) else number


def as_ranges(positions: Sequence[int]) -> str:
    """Ascending positions, for example "0-3,5"."""
    runs: list[list[int]] = []
    for position in positions:
        if runs and position == runs[-1][1] + 1:
            runs[-1][1] = position
        else:
            runs.append([position, position])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


# ---- reading ----


def load_plan(path: Path | str) -> Document:
    """A saved plan.

    Raises:
        InputError: it can't be read, or it is none; the message names the place in the file.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError("plan", f"{path}: is no plan: not a text file") from error
    except OSError as error:
        raise InputError("plan", f"{path}: can't be read: {error.strerror or error}") from error
    return read_plan(text, str(path))


def read_plan(text: str, label: str) -> Document:
    """A plan from its text; label: what messages call it.

    Raises:
        InputError: it is none.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError("plan", f"{label}: is no plan: {error}") from error
    return _Reader(label).document(data)


class _Reader:
    """Takes data apart, and says where they are not a plan; label: what messages call the file."""

    def __init__(self, label: str) -> None:
        self._label = label

    def document(self, data: Any) -> Document:
        """The whole file."""
        if not isinstance(data, dict) or "schema" not in data:
            raise self._fault("is no plan: it has no `schema`")
        if "status" in data:
            raise self._fault("is no plan but a report; --save-plan saves a plan")
        if data["schema"] != SCHEMA or isinstance(data["schema"], bool):
            raise self._fault(f"is a plan of form {data['schema']!r}; this version reads form {SCHEMA}")
        # Plans that were saved before there was training do not tell.
        data = {"trained": 0, **data}
        self._fields(data, "", ("schema", *_names(Document)))
        spaces = tuple(self._space(item, i) for i, item in enumerate(self._list(data["spaces"], "spaces")))
        for twice in _repeated(s.name for s in spaces):
            raise self._fault(f"space {twice!r} is there twice")
        if data["refit"] not in ("staged", "at once", None):
            raise self._fault(f"refit: {data['refit']!r} is none of 'staged', 'at once', null")
        return Document(
            version=self._text(data["version"], "version"),
            source=self._source(data["source"]),
            plan_sha256=None if data["plan_sha256"] is None else self._text(data["plan_sha256"], "plan_sha256"),
            method=self._text(data["method"], "method"),
            refit=data["refit"],
            trained=self._count(data["trained"], "trained"),
            goal=self._asked(data["goal"]),
            error=self._number(data["error"], "error"),
            spaces=spaces,
        )

    def _source(self, data: Any) -> Source:
        self._fields(self._object(data, "source"), "source.", _names(Source))
        return Source(**{name: self._text(data[name], f"source.{name}") for name in _names(Source)})

    def _asked(self, data: Any) -> Asked:
        self._fields(self._object(data, "goal"), "goal.", _names(Asked))
        tolerance = data["tolerance"]
        by_output = isinstance(tolerance, dict)
        return Asked(
            self._text(data["metric"], "goal.metric"),
            self._numbers(tolerance, "goal.tolerance") if by_output else self._number(tolerance, "goal.tolerance"),
            self._numbers(data["sizes"], "goal.sizes"),
            self._multiple(data["multiple_of"]),
            self._count(data["seed"], "goal.seed"),
            self._count(data["augment"], "goal.augment"),
        )

    def _multiple(self, data: Any) -> int | str | None:
        return data if data is None or data == "auto" else self._count(data, "goal.multiple_of", 1)

    def _numbers(self, data: Any, place: str) -> dict[str, float]:
        found = {key: self._number(value, f"{place}.{key}") for key, value in self._object(data, place).items()}
        if none := [key for key, value in found.items() if value is None]:
            raise self._fault(f"{place}.{none[0]}: null is no number of at least 0")
        return {key: value for key, value in found.items() if value is not None}

    def _space(self, data: Any, index: int) -> SpacePlan:
        place = f"spaces[{index}]"
        # Plans that were saved before channels changed places, or were mixed in heads, do not tell.
        data = {"places": [], "turned": False, **self._object(data, place)}
        self._fields(self._object(data, place), f"{place}.", _names(SpacePlan))
        name = self._text(data["name"], f"{place}.name")
        place = f"space {name!r}"
        before, after = (self._count(data[key], f"{place}: {key}", 1) for key in ("before", "after"))
        exact = self._positions(data["exact"], before, f"{place}: exact")
        kept = None if data["kept"] is None else self._positions(data["kept"], before, f"{place}: kept")
        if kept is not None and len(kept) != after:
            raise self._fault(f"{place}: kept names {len(kept)} channels, but after is {after}")
        if kept is not None and (outside := sorted(set(kept) - set(exact))):
            raise self._fault(f"{place}: kept names channel {outside[0]}, which is not among exact")
        if after > len(exact):
            raise self._fault(f"{place}: after is {after}, but exact leaves {len(exact)} channels")
        writers = self._list(data["writers"], f"{place}: writers")
        places = [self._order(row, len(exact), f"{place}: places") for row in self._list(data["places"], place)]
        if len({len(row) for row in places}) > 1:
            raise self._fault(f"{place}: places: not all orders are of the same length")
        if not isinstance(data["turned"], bool):
            raise self._fault(f"{place}: turned is {data['turned']!r}, neither true nor false")
        return SpacePlan(
            name,
            tuple(self._text(writer, f"{place}: writers") for writer in writers),
            before,
            after,
            kept,
            exact,
            self._text(data["held"], f"{place}: held"),
            self._number(data["error"], f"{place}: error") or 0.0,
            tuple(places),
            data["turned"],
        )

    def _order(self, data: Any, width: int, place: str) -> tuple[int, ...]:
        """Every number below a width that is reached, each once."""
        found = tuple(self._count(n, place) for n in self._list(data, place))
        if sorted(found) != list(range(len(found))) or len(found) > width:
            raise self._fault(f"{place}: {data!r} is no order of at most {width} channels")
        return found

    def _positions(self, data: Any, width: int, place: str) -> tuple[int, ...]:
        """Ranges as positions, all of them below a width, ascending, each once."""
        found: list[int] = []
        for part in self._text(data, place).split(","):
            match = _RANGE.fullmatch(part)
            if match is None:
                raise self._fault(f"{place}: {part!r} is no range of channels such as 0-3,5")
            first, last = int(match[1]), int(match[2] or match[1])
            if max(first, last) >= width:
                raise self._fault(f"{place}: channel {max(first, last)} is out of range, there are {width}")
            if last < first or (found and first <= found[-1]):
                raise self._fault(f"{place}: {part!r} names channels twice or not in order")
            found += range(first, last + 1)
        return tuple(found)

    def _count(self, data: Any, place: str, least: int = 0) -> int:
        if not isinstance(data, int) or isinstance(data, bool) or data < least:
            raise self._fault(f"{place}: {data!r} is no integer of at least {least}")
        return data

    def _number(self, data: Any, place: str) -> float | None:
        if data is None:
            return None
        if isinstance(data, bool) or not isinstance(data, Number) or not (math.isfinite(data) and data >= 0):
            raise self._fault(f"{place}: {data!r} is no number of at least 0")
        return float(data)

    def _text(self, data: Any, place: str) -> str:
        found: str = self._checked(data, place, str, "a text")
        return found

    def _list(self, data: Any, place: str) -> list[Any]:
        found: list[Any] = self._checked(data, place, list, "a list")
        return found

    def _object(self, data: Any, place: str) -> dict[str, Any]:
        found: dict[str, Any] = self._checked(data, place, dict, "an object")
        return found

    def _checked(self, data: Any, place: str, kind: type, words: str) -> Any:
        if not isinstance(data, kind):
            raise self._fault(f"{place}: {data!r} is not {words}")
        return data

    def _fields(self, data: Mapping[str, Any], place: str, names: Sequence[str]) -> None:
        if missing := [name for name in names if name not in data]:
            raise self._fault(f"{place}{missing[0]} is missing")
        if unknown := [name for name in data if name not in names]:
            raise self._fault(f"{place}{unknown[0]} is unknown")

    def _fault(self, text: str) -> InputError:
        return InputError("plan", f"{self._label}: {text}")


def _names(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind))


def _repeated(names: Iterator[str]) -> Iterator[str]:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            yield name
        seen.add(name)


# ---- comparing ----


def compare(one: Document, other: Document, labels: tuple[str, str]) -> list[str]:
    """What two plans do differently, per space, as lines for people; labels: what to call them."""
    marked = zip("AB", (one, other), labels, strict=True)
    lines = [f"{mark}  {_about(document, label)}" for mark, document, label in marked]
    if one.source.architecture != other.source.architecture:
        lines.append("made for networks of different architecture")
    elif one.source.sha256 != other.source.sha256:
        lines.append("made for the same architecture with other weights")
    spaces = [{s.name: s for s in document.spaces} for document in (one, other)]
    names = list(dict.fromkeys(name for part in spaces for name in part))
    rows: list[tuple[str, ...]] = [("space", "before", "A", "B", "share in common", "only in A", "only in B")]
    pairs = [(name, spaces[0].get(name), spaces[1].get(name)) for name in names]
    rows += [_row(*pair) for pair in pairs if pair[1] != pair[2]]
    same = len(names) - len(rows) + 1
    if len(rows) > 1:
        lines += ["", *_columns(rows)]
    if same:
        lines += ["", f"{same} of {len(names)} spaces are the same in both"]
    return lines


def _about(document: Document, label: str) -> str:
    error = "" if document.error is None else f", error {document.error:.3g}"
    before, after = (sum(getattr(s, key) for s in document.spaces) for key in ("before", "after"))
    source = f" for {document.source.name}" if document.source.name else ""
    return f"{label}{source}: {before} -> {after} channels, method {document.method}{error}"


def _row(name: str, one: SpacePlan | None, other: SpacePlan | None) -> tuple[str, ...]:
    if one is None or other is None:
        there = one or other
        assert there is not None
        widths = tuple("-" if s is None else str(s.after) for s in (one, other))
        return name, str(there.before), *widths, f"only {'A' if other is None else 'B'} has this space", "", ""
    before = str(one.before) if one.before == other.before else f"{one.before} / {other.before}"
    widths = str(one.after), str(other.after)
    if one.kept is None or other.kept is None:
        which = "both" if one.kept == other.kept else "A" if one.kept is None else "B"
        return name, before, *widths, f"mixed channels in {which}", "", ""
    mine, theirs = set(one.kept), set(other.kept)
    share = len(mine & theirs) / len(mine | theirs)
    apart = (_few(as_ranges(sorted(part))) or "-" for part in (mine - theirs, theirs - mine))
    return name, before, *widths, f"{100 * share:.0f} %", *apart


def _few(ranges: str) -> str:
    """Ranges, or the first of them where there are many."""
    parts = ranges.split(",")
    return ranges if len(parts) <= SHOWN else f"{','.join(parts[:SHOWN])}, ..."


def _columns(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Rows with their cells below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    pads: list[Callable[[str, int], str]] = [str.ljust, *[str.rjust] * 3, *[str.ljust] * (len(widths) - 4)]
    for row in rows:
        yield "  ".join(pad(cell, width) for pad, cell, width in zip(pads, row, widths, strict=True)).rstrip()
