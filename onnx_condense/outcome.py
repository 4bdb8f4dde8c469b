"""What came out: a network on its way out, and the report about it."""

from __future__ import annotations

import collections
import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import onnx

from onnx_condense import ops
from onnx_condense.cost import Work, count_parameters
from onnx_condense.errors import UsageError
from onnx_condense.files import copy_unchanged, save_condensed
from onnx_condense.grids import Move
from onnx_condense.heat import heats
from onnx_condense.network.external import external_files
from onnx_condense.network.model import Network, serialized
from onnx_condense.options.goal import Goal
from onnx_condense.options.yardstick import metric_name
from onnx_condense.paths import put_text
from onnx_condense.plan import ChannelView, IntArray, Plan
from onnx_condense.proving.proof import Proved
from onnx_condense.report.data import (
    Change,
    Coverage,
    CurvePoint,
    ErrorSummary,
    Footprint,
    FrontRow,
    Latency,
    Reason,
    RefusalRow,
    Report,
    SpaceRow,
    Tuning,
    TuningRound,
)
from onnx_condense.report.figures import Cloud, Figures
from onnx_condense.saved.plans import Document
from onnx_condense.search.budget import WORTH
from onnx_condense.spaces import GRAPH_OUTPUT
from onnx_condense.unseen import unseen_layers
from onnx_condense.wording import counted

GIVEN_BACK = "exact merges were given back: "


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A condensed network with what made it.

    plans: in the order they were applied.
    proved: its errors on the samples that judge it; gate: what they may be, optimizations off; None: only told.
    back_offs: how often verification asked for a wider one.
    names: the dense network's name of each space whose name an earlier plan changed.
    rows: rows fitted on over channels kept, per narrowed space. coverage: what that and the seen error say.
    curve: what the search for it measured. staged: whether its readers were refitted stage by stage; None: not at all.
    latency: its timings, if it was timed on the way. moves: by the dense network's name of a space, what was done with
    channels of its groups and heads after exact steps.
    trained: what the last training did, also where it was given back. steps: of the last training that its weights come
    from, whatever was fitted after that, 0: none. tuning: all of it, for the report.
    """

    model: onnx.ModelProto
    plans: tuple[Plan, ...]
    proved: Proved
    gate: float | None
    back_offs: int = 0
    names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    rows: Mapping[str, float] = dataclasses.field(default_factory=dict)
    coverage: Coverage | None = None
    curve: tuple[CurvePoint, ...] = ()
    latency: tuple[Latency, ...] = ()
    staged: bool | None = None
    trained: TuningRound | None = None
    steps: int = 0
    tuning: Tuning | None = None
    moves: Mapping[str, Move] = dataclasses.field(default_factory=dict)

    @property
    def parameters(self) -> int:
        """As `cost.count_parameters`."""
        return count_parameters(self.model)


@dataclasses.dataclass(frozen=True)
class Condensed:
    """What condense() returns.

    model: the condensed network, or the one given where the status is "unchanged".
    plan: the plans applied, in order. report: see `report.data`.
    source: the dense network. planned: makes the plan as a document.
    clouds, kept: for the pictures: answers of both networks, and which channels stay, by the name of their space.
    front: networks between the dense and the smallest sensible one, if asked for, largest first, with their rows.
    """

    model: onnx.ModelProto
    plan: tuple[Plan, ...]
    report: Report
    source: Network = dataclasses.field(repr=False)
    planned: Callable[[], Document] = dataclasses.field(repr=False)
    clouds: tuple[Cloud, ...] = dataclasses.field(default=(), repr=False)
    kept: Mapping[str, IntArray] = dataclasses.field(default_factory=dict, repr=False)
    front: tuple[tuple[onnx.ModelProto, FrontRow], ...] = dataclasses.field(default=(), repr=False)

    def save_plan(self, path: str | os.PathLike[str]) -> None:
        """Write which channels stay, to be reviewed, compared, or used again (`condense(..., plan=path)`).

        Raises:
            UsageError: the path can't be written.
        """
        try:
            put_text(Path(path), self.planned().text())
        except OSError as error:
            raise UsageError("save-plan", f"{path}: can't be written: {error.strerror or error}") from error

    def figures(self) -> Figures:
        """What the pictures of a report are drawn from."""
        return Figures(self.clouds, heats(self.source, self.kept))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the network by atomic rename; an unchanged one is a copy of the input, byte for byte.

        Where the input's weights lay in files beside it, those of the result do so too; see `files`.

        Raises:
            UsageError: the path can't be written, or its name is that of weights.
        """
        if self.report.status == "unchanged":
            copy_unchanged(self.source, Path(path))
        else:
            save_condensed(self.model, self.source, Path(path))


def too_little(network: Network, found: Candidate, goal: Goal, work: Work) -> str:
    """Why a fit is not worth its error, in words; "" if it is, or if a size was asked for.

    It has to save half a percent of the parameters or of the multiply-accumulates. network: what it was fitted to.
    work: counts the latter.
    """
    before, after = (count_parameters(network.proto), work.of(network)), Network(found.model)
    left = [now / max(then, 1) for now, then in zip((found.parameters, work.of(after)), before, strict=True)]
    if left[0] < 1.0 and (goal.sized or min(left) <= 1.0 - WORTH):
        return ""
    parameters, macs = (f"{100 * max(1.0 - kept, 0.0):.2g} % of the" for kept in left)
    return (
        f"a fit was given back: an error of {found.proved.error:.2g} is too much for "
        f"{parameters} parameters and {macs} multiply-accumulates"
    )


def condensed_report(
    network: Network,
    view: ChannelView,
    goal: Goal,
    candidate: Candidate,
    *,
    samples: int,
    latency: Sequence[Latency],
    footprint: Footprint | None,
    spent: Mapping[str, tuple[float, float]],
) -> Report:
    """The report on a candidate that goes out; samples: how many judged it; spent: time per space."""
    dense, size = count_parameters(network.given), file_size(network)
    return Report(
        status="condensed",
        dry_run=False,
        parameters=Change(dense, candidate.parameters),
        bytes=Change(size, len(serialized(candidate.model))),
        error=error_summary(candidate.proved, goal, samples, candidate.gate, candidate.back_offs),
        coverage=candidate.coverage,
        tuning=candidate.tuning,
        curve=tuple(dataclasses.replace(p, error=p.error * candidate.proved.unit) for p in candidate.curve),
        latency=tuple(latency),
        footprint=footprint,
        spaces=tuple(dataclasses.replace(row, ms=spent.get(row.name)) for row in _space_rows(network, view, candidate)),
        refusals=_refusal_rows(network, view),
    )


def error_summary(proved: Proved, goal: Goal, samples: int, gate: float | None, back_offs: int = 0) -> ErrorSummary:
    """The errors for the report; gate: what they were held against."""
    outputs, served = proved.measured.summary(goal.seed), proved.told(gate)
    nearest, tolerance = proved.measured.nearest, goal.tolerance
    if tolerance is not None and nearest is not None and nearest.tolerance is not None:
        tolerance = nearest.tolerance
    found = ErrorSummary(metric_name(goal.metric), proved.error, tolerance, samples, back_offs, outputs, served)
    interval = proved.measured.interval(goal.seed)
    return dataclasses.replace(found, interval=interval, output=(nearest.name if nearest else "") or None)


def unchanged_report(network: Network, view: ChannelView, reason: Reason) -> Report:
    """The report where the dense network stays."""
    dense, size = count_parameters(network.given), file_size(network)
    return Report(
        status="unchanged",
        dry_run=False,
        reason=reason,
        parameters=Change(dense, dense),
        bytes=Change(size, size),
        spaces=_space_rows(network, view, None),
        refusals=_refusal_rows(network, view),
    )


def why_unchanged(network: Network, view: ChannelView, goal: Goal, notes: Sequence[str] = ()) -> Reason:
    """Why no narrower network was found; notes: what the user is told besides."""
    if not view.spaces:
        text = "no Conv, Gemm or MatMul with a stored weight and an input of known rank was found"
        return Reason("nothing-found", text + _hint(network))
    if not any(s.reducible for s in view.spaces):
        return Reason("nothing-free", _why_pinned(network, view))
    return _why_none(network, view, goal, notes)


def _why_none(network: Network, view: ChannelView, goal: Goal, notes: Sequence[str]) -> Reason:
    """Why no channel goes of those that could."""
    if goal.lossless and any(note.startswith(GIVEN_BACK) for note in notes):
        return Reason("given-back", "what the weights prove redundant was given back (see notes)")
    if goal.lossless:
        return Reason("nothing-redundant", "the weights alone prove no channel redundant")
    if goal.threshold is not None:
        return Reason("threshold", "no channels are so much alike that merging them by --threshold saves parameters")
    if goal.tolerance is None:
        return Reason("nothing-smaller", "no narrower network has fewer parameters")
    text = f"no channel can go within tolerance {goal.said}"
    if often := _used_often(network, view):
        first = f"{often[0]} and {counted(len(often) - 1, 'more weight')} are" if len(often) > 1 else f"{often[0]} is"
        text += f" and leave fewer parameters: {first} stored once and used often, so that narrowing may take copies"
    return Reason("tolerance", text)


def _used_often(network: Network, view: ChannelView) -> list[str]:
    """Weights that several linear ops use."""
    places = (use.weight for use in view.linear)
    uses = collections.Counter(_stored(network, network.nodes[at.node].inputs[at.position]) for at in places)
    return [name for name, count in uses.items() if name and count > 1]


def _stored(network: Network, name: str) -> str:
    """What a weight is stored as: transposed it is the same one; "" where it is computed."""
    root = network.root(name)
    while made := network.sources(root):
        root = network.root(made[0])
    return root


def _why_pinned(network: Network, view: ChannelView) -> str:
    """Why no space has a channel that could go."""
    start = "no hidden layer can be narrowed"
    narrow = [s.name for s in view.spaces if s.width == 1 and not s.pinned.any()]
    if any(r.reason != GRAPH_OUTPUT for r in view.refusals):
        return f"{start}: every channel is pinned (see refusals){' or the only one of its layer' if narrow else ''}"
    if narrow:
        layers = f"{narrow[0]} is" if len(narrow) == 1 else f"{len(narrow)} layers (first: {narrow[0]}) are"
        return f"{start}: {layers} 1 wide"
    where = " (see refusals)" if unseen_layers(network, view) else ""
    return f"no hidden layer was found{where}: channels are written for the outputs alone{_hint(network)}"


def _hint(network: Network) -> str:
    """What may have hidden the layers of a network that has none, and what to do about it."""
    rules = [ops.find(node.domain, node.op, node.opset) for node in network.nodes]
    unknown = {node.domain for node, rule in zip(network.nodes, rules, strict=True) if rule is None}
    if any(name in network.overridable for node in network.nodes for name in node.inputs[1:]):
        return "; its weights are inputs that callers may override: export it without (keep_initializers_as_inputs)"
    if advice := next((rule.advice for rule in rules if rule is not None and rule.advice), ""):
        return f"; {advice}"
    if any(domain.startswith("com.microsoft") for domain in unknown):
        return "; it was optimized by ONNX Runtime: give the network that it was made from"
    if any((node.domain, node.op) in network.functions for node in network.nodes):
        return "; its layers lie in functions of its own: inline them (onnx.inliner)"
    return ""


def file_size(network: Network) -> int:
    """Bytes on disk, external weights included; those of the proto where there is no file."""
    if network.path is None:
        return network.given.ByteSize()
    files = (network.path, *(network.path.parent / name for name in external_files(network.proto)))
    return sum(file.stat().st_size for file in files)


def _space_rows(network: Network, view: ChannelView, candidate: Candidate | None) -> tuple[SpaceRow, ...]:
    after: dict[str, tuple[int, float]] = {}
    for plan in candidate.plans if candidate else ():
        for selection in plan.selections:
            name = candidate.names.get(selection.space, selection.space) if candidate else selection.space
            after[name] = len(selection.keep), plan.errors.get(selection.space, 0.0)

    def places(uses: Sequence[int]) -> tuple[str, ...]:
        nodes = [network.nodes[view.linear[i].weight.node] for i in uses]
        return tuple(node.name or node.result for node in nodes)

    return tuple(
        SpaceRow(s.name, places(s.writers), places(s.readers), s.width, *after.get(s.name, (s.width, 0.0)))
        for s in view.spaces
    )


def _refusal_rows(network: Network, view: ChannelView) -> tuple[RefusalRow, ...]:
    return tuple(RefusalRow(r.space, r.node, r.reason) for r in (*view.refusals, *unseen_layers(network, view)))
