"""A saved plan on a network: made of what a run found, and matched with a network that it is to be used on again.

What exact steps merged has to be proved again from this network's weights; what they do not prove any more is fitted
like everything else. Bases of mixed channels depend on the weights, so only their number comes from the plan.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from onnx_condense import __version__
from onnx_condense.errors import ModelError, UsageError
from onnx_condense.evidence.weights import lossless_plan
from onnx_condense.fit.choices import Choice
from onnx_condense.grids import Order, apart
from onnx_condense.heat import kept_channels
from onnx_condense.network.model import Network
from onnx_condense.network.nodes import bodies_of
from onnx_condense.options.goal import METHODS, Goal
from onnx_condense.options.held import Held
from onnx_condense.options.naming import Layers
from onnx_condense.options.yardstick import DEFAULT_TOLERANCE, METRICS, RELATIVE, Metric, Tolerance, metric_name
from onnx_condense.outcome import Candidate
from onnx_condense.plan import ChannelSpace, ChannelView, IntArray, Plan
from onnx_condense.proving.provenance import plan_digest
from onnx_condense.saved.plans import Asked, Document, Source, SpacePlan, load_plan
from onnx_condense.spaces import find_spaces

# Of several spaces so many are named.
TOLD = 3


def architecture_digest(network: Network) -> str:
    """SHA-256 of all that a network is but its numbers: nodes, names, shapes and types."""
    proto = network.proto
    parts = [sorted((o.domain, o.version) for o in proto.opset_import), _graph(proto.graph)]
    parts += [[f.domain, f.name, [_node(node) for node in f.node]] for f in proto.functions]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _graph(graph: onnx.GraphProto) -> list[Any]:
    ends = [[v.name, v.type.SerializeToString(deterministic=True).hex()] for v in (*graph.input, *graph.output)]
    stored = sorted([t.name, t.data_type, list(t.dims)] for t in graph.initializer)
    sparse = sorted([s.values.name, s.values.data_type, list(s.dims)] for s in graph.sparse_initializer)
    return [ends, stored, sparse, [_node(node) for node in graph.node]]


def _node(node: onnx.NodeProto) -> list[Any]:
    attributes = sorted((a.name, _attribute(a)) for a in node.attribute)
    return [node.domain, node.op_type, node.name, list(node.input), list(node.output), attributes]


def _attribute(attribute: onnx.AttributeProto) -> Any:
    """A stored tensor by its type and shape, bodies node by node, all else as it is."""
    if attribute.HasField("t"):
        return ["tensor", attribute.t.data_type, list(attribute.t.dims)]
    if bodies := list(bodies_of(attribute)):
        return ["graphs", [_graph(body) for body in bodies]]
    return attribute.SerializeToString(deterministic=True).hex()


# ---- options ----


def document_of(plan: Document | str | os.PathLike[str] | None) -> tuple[Document, str] | None:
    """A plan that was given, and what to call it.

    Raises:
        InputError: it can't be read.
    """
    if plan is None:
        return None
    return (plan, "the plan") if isinstance(plan, Document) else (load_plan(os.fspath(plan)), os.fspath(plan))


def wish_by(document: Document, tolerance: Tolerance, metric: Metric, *, calibrated: bool) -> tuple[Tolerance, Metric]:
    """Tolerance and metric of a run with a plan: the plan's where neither is given and there are samples to judge on.

    Raises:
        UsageError: one is given without the other, nothing is to be fitted, or the plan was judged by a function.
    """
    if tolerance == 0.0:
        raise UsageError("plan", "--plan and --tolerance 0 exclude each other: a plan is refitted where need be")
    if tolerance is None and metric != RELATIVE:
        raise UsageError("metric", "--plan and --metric need --tolerance: that of the plan is in its own metric")
    if tolerance is not None or not calibrated:
        return tolerance, metric
    if document.goal.metric not in METRICS:
        text = f"--plan was judged by {document.goal.metric!r}, which no file can hold"
        raise UsageError("plan", f"{text}: give --metric and --tolerance")
    return document.goal.tolerance, document.goal.metric


def goal_by(document: Document, asked: Goal) -> Goal:
    """What was asked for, with what the plan decides.

    Raises:
        UsageError: an option would decide that too, or the method of the plan is unknown.
    """
    given = [*asked.sizes, *(["--method"] if asked.method != "fit" else []), *asked.control.given()]
    given += ["--threshold"] if asked.threshold is not None else []
    given += ["--multiple-of"] if asked.multiple_of is not None else []
    given += ["--front"] if asked.front else []
    given += ["--rounds"] if asked.tune is not None and asked.tune.rounds > 1 else []
    if given:
        raise UsageError("plan", f"--plan and {given[0]} exclude each other: the plan says what goes")
    if document.method not in METHODS:
        raise UsageError("plan", f"--plan: its method {document.method!r} is unknown; there are {', '.join(METHODS)}")
    return dataclasses.replace(asked, method=document.method)


# ---- saving ----


@dataclasses.dataclass(frozen=True)
class Origins:
    """What plans are saved of: the dense network with its channels, and what was left alone.

    sha256: of the network's file.
    """

    network: Network
    view: ChannelView
    held: Held
    sha256: str


def saved(origins: Origins, goal: Goal, candidate: Candidate | None) -> Document:
    """The plan of a candidate; None: nothing was done.

    Raises:
        UsageError: its steps divided a space, which this form can't tell.
    """
    network = origins.network
    plans = candidate.plans if candidate else ()
    source = Source(network.path.name if network.path else "", origins.sha256, architecture_digest(network))
    staged = {None: None, True: "staged", False: "at once"}[candidate.staged if candidate else None]
    return Document(
        version=__version__,
        source=source,
        plan_sha256=plan_digest(plans) if plans else None,
        method=goal.method,
        refit=staged,
        trained=candidate.steps if candidate else 0,
        goal=_asked(goal),
        error=candidate.proved.error if candidate else None,
        spaces=tuple(_spaces(origins, plans, candidate)),
    )


def _asked(goal: Goal) -> Asked:
    tolerance = dict(goal.tolerances) or goal.tolerance
    sizes = {**({} if goal.keep is None else {"--keep": goal.keep}), **goal.limits.given()}
    return Asked(metric_name(goal.metric), tolerance, sizes, goal.multiple_of, goal.seed, goal.augment)


def _spaces(origins: Origins, plans: Sequence[Plan], candidate: Candidate | None) -> Iterator[SpacePlan]:
    names, moves = (candidate.names, candidate.moves) if candidate else ({}, {})
    view, layers = origins.view, Layers(origins.network, origins.view)
    exact = kept_channels([p for p in plans if p.kind == "lossless"], {})
    kept = kept_channels(plans, names)
    turned = {names.get(r.space, r.space) for p in plans for r in p.rotations}
    lefts = {names.get(s.space, s.space): len(s.keep) for p in plans for s in p.selections}
    mixed = {name: lefts[name] for name in turned}
    errors = {names.get(name, name): error for p in plans for name, error in p.errors.items()}
    _check_told(view, plans, names, kept.keys() | mixed.keys())
    for space in view.spaces:
        every = np.arange(space.width)
        left = exact.get(space.name, every)
        move = moves.get(space.name)
        stays = None if space.name in mixed else kept.get(space.name, every)
        yield SpacePlan(
            space.name,
            layers.writers(space),
            space.width,
            mixed[space.name] if stays is None else len(stays),
            None if stays is None else tuple(stays.tolist()),
            tuple(left.tolist()),
            next((origins.held.reasons[w] for w in space.writers if w in origins.held.reasons), ""),
            errors.get(space.name, 0.0),
            () if move is None or isinstance(move, tuple) else tuple(map(tuple, move.tolist())),
            isinstance(move, tuple),
        )


def _check_told(view: ChannelView, plans: Sequence[Plan], names: Mapping[str, str], told: set[str]) -> None:
    found = {names.get(s.space, s.space) for p in plans for s in p.selections}
    if strange := sorted(found - (told & {s.name for s in view.spaces})):
        raise UsageError("save-plan", f"--save-plan: the steps divided a layer ({strange[0]}), which a plan can't tell")


# ---- using again ----


class Reuse:
    """A saved plan, matched with a network.

    Args:
        document: the plan; label: what messages call it.
        network: what it is to be used on.
        same: whether the very weights are those that the plan was made for.

    Attributes:
        view: the network's channels, with what the plan left alone pinned; held: that.
        exact: what of the plan's exact steps the weights of this network prove.
        complete: whether that is all that the plan does.
        notes: remarks for the user.

    Raises:
        ModelError: the plan does not fit the network.
    """

    def __init__(self, document: Document, label: str, network: Network, *, same: bool) -> None:
        self.document, self.label, self.same = document, label, same
        self._network = network
        self._plans = {s.name: s for s in document.spaces}
        plain = find_spaces(network)
        self.held = self._held(plain)
        self.view = self.held.view(network) if self.held.reasons else plain
        self._check()
        stay = {s.name: np.array(s.exact, np.int64) for s in document.spaces}
        merges = any(len(s.exact) < s.before for s in document.spaces)
        # Looking for what is not to go either way would take longer than all the rest.
        self.exact = lossless_plan(network, self.view, stay=stay) if merges else Plan("lossless", (), ())
        self.notes: tuple[str, ...] = ()
        if document.source.architecture != architecture_digest(network):
            self.notes = (f"{label} was made for another architecture, but all of its layers are there",)

    @property
    def staged(self) -> bool:
        """Whether readers are refitted stage by stage."""
        return self.document.refit == "staged"

    @property
    def complete(self) -> bool:
        """Whether the exact step is all there is to do."""
        proved = {s.space: len(s.keep) for s in self.exact.selections}
        return all(proved.get(s.name, s.before) == s.after for s in self.document.spaces)

    @property
    def idle(self) -> bool:
        """Whether the plan changes nothing."""
        return all(s.before == s.after for s in self.document.spaces)

    def goal(self, goal: Goal) -> Goal:
        """With a tolerance for what has to be fitted, where the plan itself was exact."""
        exact = goal.tolerance == 0.0 and not self.complete
        return dataclasses.replace(goal, tolerance=DEFAULT_TOLERANCE) if exact else goal

    def proved(self) -> Plan:
        """The plan, where this network's weights prove all of it.

        Raises:
            UsageError: they do not.
        """
        proved = {s.space: len(s.keep) for s in self.exact.selections}
        more = [(s.name, proved.get(s.name, s.before) - s.after) for s in self.document.spaces]
        if left := [f"{name}: {count} channels" for name, count in more if count]:
            names = ", ".join(left[:TOLD]) + (f" and {len(left) - TOLD} more" if len(left) > TOLD else "")
            text = f"--plan {self.label} removes more than these weights prove redundant ({names})"
            raise UsageError("plan", f"{text}: give --calibration to fit it on")
        return self.exact

    def choices(self, view: ChannelView, exact: Plan | None) -> list[Choice]:
        """What the plan wants of the spaces that can be narrowed.

        Args:
            view: of the network that is fitted.
            exact: the step that made it of the dense one, if there was one.
        """
        names = {s.writers: s.name for s in self.view.spaces}
        left = {s.space: s.keep for s in exact.selections} if exact else {}
        found = []
        for space in view.spaces:
            if space.reducible:
                plan = self._plans[names.get(space.writers, space.name)]
                found.append(self._choice(plan, left.get(plan.name, np.arange(plan.before))))
        return found

    def places(self, network: Network, view: ChannelView) -> dict[str, Order]:
        """Where the plan moves channels of groups first, by space, where there are as many as it knows.

        Args:
            network: what is fitted.
            view: its channels.
        """
        if not any(plan.places for plan in self.document.spaces):
            return {}
        names = {s.writers: s.name for s in self.view.spaces}
        plans = {s.name: self._plans[names.get(s.writers, s.name)] for s in view.spaces}
        cells = {g.space: g.cells for g in apart(network, view).grids}
        orders = {space: np.array(plans[space].places, np.int64) for space in cells if plans[space].places}
        return {space: order for space, order in orders.items() if order.shape == cells[space].shape}

    def turned(self, view: ChannelView) -> list[str]:
        """The spaces of a view in which the plan mixes the channels of every head or group first."""
        names = {s.writers: s.name for s in self.view.spaces}
        return [s.name for s in view.spaces if self._plans[names.get(s.writers, s.name)].turned]

    def _choice(self, plan: SpacePlan, left: IntArray) -> Choice:
        """left: positions of the channels that are still there."""
        if plan.kept is None:
            return Choice(np.empty(0, np.int64), plan.after if plan.after < len(left) else 0)
        gone = np.flatnonzero(~np.isin(left, plan.kept))
        return Choice(gone, error=plan.error, exact=self.same)

    def told(self, plan: Plan, names: Mapping[str, str]) -> Plan:
        """A plan made again, with the errors that were predicted for these very weights, where they were."""
        if not self.same:
            return plan
        errors = {name: self._plans[names.get(name, name)].error for name in plan.errors}
        return dataclasses.replace(plan, errors=errors)

    def told_anew(self, worse: Mapping[str, float]) -> list[str]:
        """What to say of spaces whose channels were chosen anew; worse: how many times those of the plan would be."""
        if not worse:
            return []
        names = ", ".join(f"{name}: {factor:.3g} times" for name, factor in list(worse.items())[:TOLD])
        more = f" and {len(worse) - TOLD} more" if len(worse) > TOLD else ""
        text = f"of {self.label} only the widths were used for some layers, and their channels chosen anew: "
        return [f"{text}the plan's would do worse with these weights ({names}{more}, in the error at the readers)"]

    def missed(self, error: str, goal: Goal) -> str:
        """What to say where the result is not within the tolerance; error: its, in words."""
        gate = f"a tolerance of {goal.said}" if goal.said else "any bound"
        text = f"--plan {self.label} gives an error of {error} with these weights, above {gate}: "
        if self.document.trained and goal.tune is None:
            return f"{text}it was trained after the fit, so give --tune, or a larger --tolerance"
        return f"{text}give a larger --tolerance, or search anew without --plan"

    # ---- matching ----

    def _held(self, view: ChannelView) -> Held:
        """What the user wanted left alone when the plan was made."""
        layers = Layers(self._network, view)
        reasons = {s.writers: s.held for s in self.document.spaces if s.held}
        found = {w: reasons[names] for s in view.spaces if (names := layers.writers(s)) in reasons for w in s.writers}
        return Held(found)

    def _check(self) -> None:
        layers = Layers(self._network, self.view)
        there = {s.name: s for s in self.view.spaces}
        for plan in self.document.spaces:
            space = there.get(plan.name)
            if space is None:
                raise self._misfit(plan.name, "is not in the network")
            if plan.before != space.width:
                raise self._misfit(plan.name, f"is {plan.before} wide in the plan and {space.width} in the network")
            if (writers := layers.writers(space)) != plan.writers:
                was, now = (", ".join(part) for part in (plan.writers, writers))
                raise self._misfit(plan.name, f"is written by {was} in the plan and by {now} in the network")
            self._check_pinned(plan, space)
        if missing := next((name for name in there if name not in self._plans), None):
            raise self._misfit(missing, "is not in the plan")
        if fault := self._empty_part():
            raise self._misfit(fault, "would leave a tensor without channels")

    def _check_pinned(self, plan: SpacePlan, space: ChannelSpace) -> None:
        """What has to stay stays, and what goes has somebody to take over."""
        gone = np.ones(space.width, bool)
        gone[list(plan.exact if plan.kept is None else plan.kept)] = False
        if plan.after < plan.before and not space.readers:
            raise self._misfit(plan.name, "can't be narrowed: nothing reads it that could take over")
        if (gone & space.pinned).any() or (plan.kept is None and plan.after < plan.before and space.pinned.any()):
            at = int(np.flatnonzero(space.pinned)[0] if plan.kept is None else np.flatnonzero(gone & space.pinned)[0])
            label = int(space.channels[at])
            why = next((r.reason for r in self.view.refusals if label in r.labels), "pinned")
            raise self._misfit(plan.name, f"channel {at} can't go in this network ({why})")

    def _empty_part(self) -> str:
        """The space whose loss would leave some tensor without channels; "" if none would be."""
        kept, owner = set[int](), dict[int, str]()
        for space in self.view.spaces:
            plan = self._plans[space.name]
            at = range(plan.after) if plan.kept is None else plan.kept
            kept.update(space.channels[list(at)].tolist())
            owner |= dict.fromkeys(space.channels.tolist(), space.name)
        empty = (part for part in self.view.parts if kept.isdisjoint(part.tolist()))
        return next((owner[int(part[0])] for part in empty), "")

    def _misfit(self, space: str, text: str) -> ModelError:
        name = self._network.path.name if self._network.path else "the network"
        return ModelError("plan-space", f"{self.label} does not fit {name}: space {space!r} {text}", space)
