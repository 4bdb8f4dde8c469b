"""The one data object that the terminal table, the JSON file and later pages are made from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

SCHEMA = 2

Status = Literal["condensed", "unchanged", "failed", "verified"]
Evidence = Literal["samples", "synthetic", "weights"]
Verdict = Literal["faster", "slower", "no measurable difference"]


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
class WorstSample:
    """One of the samples with the largest errors.

    index: its place in the source that judged, in that source's order.
    value: its error in the metric of the output; of a relative one the root of its mean squared difference over the
        spread of the output.
    """

    index: int
    value: float


@dataclasses.dataclass(frozen=True)
class OutputError:
    """Error of one graph output.

    worst_feature: None where features are not compared.
    interval: of `value`, 99 %, by bootstrap over samples (over groups where there are any); of a largest difference
        both ends are that itself, since chance tells nothing of a maximum.
    max_abs: largest absolute difference of any element; None unless the output is float.
    cosine: between both answers to one sample, mean over the samples; None unless the output is float, or where a
        sample has a single element.
    agreement: share of equal argmax: along the last axis, of rank 4 and more along axis 1; None as for `cosine`.
    worst_samples: largest first.
    metric: what `value` is; "changed": share of changed elements.
    tolerance: what `value` may be; None where it is no gate.
    """

    name: str
    value: float
    worst_feature: WorstFeature | None
    interval: tuple[float, float]
    max_abs: float | None = None
    cosine: float | None = None
    agreement: float | None = None
    worst_samples: tuple[WorstSample, ...] = ()
    metric: str = "relative"
    tolerance: float | None = None


@dataclasses.dataclass(frozen=True)
class Served:
    """The same error with both networks as they are served: optimized, on one provider.

    value: the largest output error there, on the scale of the summary's tolerance.
    rounding: how far the dense network itself moves from its own answers on the CPU without optimizations; large where
        a provider computes in TF32 or fp16.
    bound: what `value` may be there: the tolerance and twice that rounding; None where there is no gate.
    """

    provider: str
    value: float
    rounding: float
    bound: float | None


@dataclasses.dataclass(frozen=True)
class ErrorSummary:
    """The output error nearest to its tolerance, on samples that the search did not see, graph optimizations off.

    metric: "relative", "per-feature", "max-abs", "agreement" (share of samples with another argmax), or the name of a
        function.
    tolerance: of that output; None where the error was reported but not a gate.
    interval: of `value`, as of the output; None where chance tells nothing of it (a maximum).
    output: the one that is nearest to its tolerance; None where a function judges all together.
    served: the same as the networks are served, first on the providers that were asked for, then on further ones.
    """

    metric: str
    value: float
    tolerance: float | None
    samples: int
    back_offs: int
    outputs: tuple[OutputError, ...]
    served: tuple[Served, ...] = ()
    interval: tuple[float, float] | None = None
    output: str | None = None


@dataclasses.dataclass(frozen=True)
class CurvePoint:
    """A network that the search measured.

    error: upper 95 % bound on the search share, on the scale of the tolerance of `ErrorSummary`.
    """

    parameters: int
    error: float


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
class TuningRound:
    """One training.

    parameters: of the network. bare, error: before and after it, on the samples that judge. steps, seconds: it took.
    kept: whether it was; else it was given back.
    """

    parameters: int
    bare: float
    error: float
    steps: int
    seconds: float
    kept: bool = True


@dataclasses.dataclass(frozen=True)
class Tuning:
    """Training of the condensed network on the dense one's answers (`--tune`).

    bare: the error before the last training. steps, seconds: of all trainings, also of what was not kept.
    loss: "mse", "features", "l1" or "kl". samples: trained on. rounds: the trainings that led to the result, in order.
    """

    bare: float
    steps: int
    seconds: float
    loss: str
    samples: int
    rounds: tuple[TuningRound, ...]


@dataclasses.dataclass(frozen=True)
class Latency:
    """Paired timing of both networks: medians over rounds in ms, speedup = before / after with its 99 % interval.

    rounds: what the medians and the interval are made from: (before, after) in ms, a pair of fresh sessions each, of
        which the fastest tenth of the runs counts.
    verdict: faster or slower only where the interval says so.
    """

    provider: str
    threads: int
    batch: int
    before_ms: float
    after_ms: float
    speedup: float
    interval: tuple[float, float]
    rounds: tuple[tuple[float, float], ...] = ()
    verdict: Verdict = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        low, high = self.interval
        verdict = "faster" if low > 1.0 else "slower" if high < 1.0 else "no measurable difference"
        object.__setattr__(self, "verdict", verdict)


@dataclasses.dataclass(frozen=True)
class WidthTiming:
    """Two networks that differ in their widths, timed to see which widths run well here (`--multiple-of auto`).

    ops: around the layers that were tried, joined by +. multiple: of the wider ones; finer: how many channels less the
    other network had in each of them. batch: where that network did best. work: how many times the other's
    multiply-accumulates the wider one takes. speedup: of the other. interval: of `speedup`, 99 %. pays: whether that is
    less than what the work would give, for sure, and less than half of it, so that widths stop at multiples.
    """

    ops: str
    multiple: int
    finer: int
    batch: int
    work: float
    speedup: float
    interval: tuple[float, float]
    pays: bool


@dataclasses.dataclass(frozen=True)
class FrontTiming:
    """How much faster one network of a front is than the dense one; as in `Latency`."""

    provider: str
    batch: int
    speedup: float
    interval: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class FrontRow:
    """One network of a front (`--front`); error: on samples that the search did not see.

    file: its name in the folder, "" where none was written. share: of the dense network's parameters.
    """

    file: str
    share: float
    parameters: int
    macs: int
    bytes: int
    error: float
    speedups: tuple[FrontTiming, ...]


@dataclasses.dataclass(frozen=True)
class Footprint:
    """What loading and one pass at batch 1 take in a fresh process, medians over pairs of processes.

    load_ms: until a session stands, (before, after). peak_mb: most memory resident beyond what the process held before
    it loaded the network, (before, after), 10^6 bytes.
    """

    provider: str
    load_ms: tuple[float, float]
    peak_mb: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where the result comes from, so that it can be made again.

    versions: of Python and the packages that matter, by name. machine: processor, system, cores.
    command: the command line, or None if it was called from Python.
    source, result: paths, or None. *_sha256: of the network's file (external weights are files of their own), of the
    plans in their order; None where there is none, or where the result's weights lie in a file of their own.
    """

    versions: Mapping[str, str]
    machine: str
    command: tuple[str, ...] | None
    source: str | None
    source_sha256: str
    plan_sha256: str | None = None
    result: str | None = None
    result_sha256: str | None = None


@dataclasses.dataclass(frozen=True)
class SpaceRow:
    """Width of one channel space before and after.

    error: predicted relative error at its readers (share of their variance lost, square root), 0 for exact steps.
    ms: time of the nodes that write and read it in one pass, (before, after), optimizations off; None unless profiled.
    """

    name: str
    writers: tuple[str, ...]
    readers: tuple[str, ...]
    before: int
    after: int
    error: float
    ms: tuple[float, float] | None = None


@dataclasses.dataclass(frozen=True)
class RefusalRow:
    """Channels that had to stay, the node that pins them, and why."""

    space: str
    node: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Report:
    """What happened, as data. `after` counts equal `before` when the status is "unchanged".

    macs: multiply-accumulates of one pass over one sample (a fixed batch as it is); sizes that the network leaves open
        are those of the first sample, without samples 1.
    coverage: None where nothing was fitted on samples.
    tuning: None where nothing was trained.
    curve: what the search measured, most parameters first; empty where it did not search.
    latency: empty where nothing was timed (unchanged or failed); footprint: None where it was not measured.
    widths: what told which widths run well; empty where that was not measured.
    origin: None if it failed.
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
    tuning: Tuning | None = None
    curve: tuple[CurvePoint, ...] = ()
    latency: tuple[Latency, ...] = ()
    footprint: Footprint | None = None
    widths: tuple[WidthTiming, ...] = ()
    spaces: tuple[SpaceRow, ...] = ()
    refusals: tuple[RefusalRow, ...] = ()
    evidence: Evidence | None = None
    method: str = "fit"
    threshold: Mapping[str, float] | None = None
    origin: Origin | None = None
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    schema: int = SCHEMA

    def as_dict(self) -> dict[str, Any]:
        """Plain dicts, lists and numbers, ready for JSON."""
        return dataclasses.asdict(self)
