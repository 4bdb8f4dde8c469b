"""The one data object that the terminal table, the JSON file and later pages are made from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

SCHEMA = 1

Status = Literal["condensed", "unchanged", "failed"]
Evidence = Literal["samples", "synthetic", "weights"]


@dataclasses.dataclass(frozen=True)
class Reason:
    """Why a run failed, or why nothing changed."""

    code: str
    text: str
    node: str | None = None


@dataclasses.dataclass(frozen=True)
class Change:
    """A count before and after."""

    before: int
    after: int


@dataclasses.dataclass(frozen=True)
class WorstFeature:
    """The output feature with the largest error relative to its own spread.

    index: position along the output's fixed-size axes, flattened in C order.
    """

    index: int
    value: float


@dataclasses.dataclass(frozen=True)
class OutputError:
    """Error of one graph output; worst_feature is None where features are not compared."""

    name: str
    value: float
    worst_feature: WorstFeature | None


@dataclasses.dataclass(frozen=True)
class ErrorSummary:
    """The largest output error on samples that the search did not see.

    tolerance is None where the error was reported but not a gate.
    """

    metric: str
    value: float
    tolerance: float | None
    samples: int
    back_offs: int
    outputs: tuple[OutputError, ...]


@dataclasses.dataclass(frozen=True)
class ThinSpace:
    """A narrowed space with few rows to fit on; rows: per kept channel, at the reader that has fewest."""

    name: str
    rows: float


@dataclasses.dataclass(frozen=True)
class Coverage:
    """How well calibration stands for what judged the result.

    seen: the error on samples that were fitted on, to hold beside `ErrorSummary.value`; samples: how many of them.
    grouped: whether samples belong together, two or more to a group on average; none of a judging sample's group was
        fitted on.
    thin: narrowed spaces with fewer than 10 rows per kept channel, fewest first.
    """

    seen: float
    samples: int
    grouped: bool
    thin: tuple[ThinSpace, ...] = ()


@dataclasses.dataclass(frozen=True)
class Latency:
    """Paired timing of both networks: medians in ms, speedup = before / after with its 99 % interval."""

    provider: str
    threads: int
    batch: int
    before_ms: float
    after_ms: float
    speedup: float
    interval: tuple[float, float]

    @property
    def verdict(self) -> str:
        """Faster or slower only where the interval says so."""
        if self.interval[0] > 1.0:
            return "faster"
        return "slower" if self.interval[1] < 1.0 else "no measurable difference"


@dataclasses.dataclass(frozen=True)
class SpaceRow:
    """Width of one channel space before and after.

    error: predicted relative error at its readers (share of their variance lost, square root), 0 for exact steps.
    """

    name: str
    writers: tuple[str, ...]
    readers: tuple[str, ...]
    before: int
    after: int
    error: float


@dataclasses.dataclass(frozen=True)
class RefusalRow:
    """Channels that had to stay, the node that pins them, and why."""

    space: str
    node: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Report:
    """What happened, as data. `after` counts equal `before` when the status is "unchanged".

    macs: multiply-accumulates of one pass, symbolic sizes counted as 1 (a fixed batch as it is).
    coverage: None where nothing was fitted on samples.
    latency: empty where nothing was timed (unchanged or failed).
    evidence: what tells that channels are redundant, or that none is: given samples, drawn inputs (weaker: the error
    holds on such inputs only, or on the verification samples), or the weights alone (for all inputs); None: it failed.
    method: what chose the channels and made the weights; threshold: of condensation, by patterns of names, if given.
    notes: remarks for the user in order of appearance (casts made, weak coverage, per-feature warnings).
    """

    status: Status
    dry_run: bool
    reason: Reason | None = None
    parameters: Change | None = None
    macs: Change | None = None
    bytes: Change | None = None
    error: ErrorSummary | None = None
    coverage: Coverage | None = None
    latency: tuple[Latency, ...] = ()
    spaces: tuple[SpaceRow, ...] = ()
    refusals: tuple[RefusalRow, ...] = ()
    evidence: Evidence | None = None
    method: str = "fit"
    threshold: Mapping[str, float] | None = None
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    schema: int = SCHEMA

    def as_dict(self) -> dict[str, Any]:
        """Plain dicts, lists and numbers, ready for JSON."""
        return dataclasses.asdict(self)
