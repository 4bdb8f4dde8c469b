"""The one data object that the terminal table, the JSON file and later pages are made from."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

SCHEMA = 1

Status = Literal["condensed", "unchanged", "failed"]


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
    latency: empty where nothing was timed (unchanged or failed).
    notes: remarks for the user in order of appearance (casts made, weak coverage, per-feature warnings).
    """

    status: Status
    dry_run: bool
    reason: Reason | None = None
    parameters: Change | None = None
    macs: Change | None = None
    bytes: Change | None = None
    error: ErrorSummary | None = None
    latency: tuple[Latency, ...] = ()
    spaces: tuple[SpaceRow, ...] = ()
    refusals: tuple[RefusalRow, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    schema: int = SCHEMA

    def as_dict(self) -> dict[str, Any]:
        """Plain dicts, lists and numbers, ready for JSON."""
        return dataclasses.asdict(self)
