"""What a result is judged and timed on: samples of the user, or inputs that are drawn where there are none.

The gate is the error with graph optimizations off on the CPU, where sums are held in full precision, and next to it the
error as the networks are served: optimized, on the providers of the user, and on further ones that were named. A
provider may round more coarsely (TF32, fp16); what that does to the dense network alone widens the bound there.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

from onnx_condense.data import Samples, check_repeatable, input_specs, spread
from onnx_condense.data import load as load_samples
from onnx_condense.draw import drawings
from onnx_condense.errors import CalibrationError, ModelError, UsageError
from onnx_condense.metrics import Judge, Measurement
from onnx_condense.network.external import external_tensors
from onnx_condense.network.model import Network, inlined, serialized
from onnx_condense.options.yardstick import MAX_ABS, Yardstick
from onnx_condense.plan import ChannelView, IntArray, Plan
from onnx_condense.proving import footprint, latency, profiled
from onnx_condense.proving.feeding import latency_batch, rows_per_pass, single, timed_feeds
from onnx_condense.proving.verify import check_graph, check_numbers
from onnx_condense.report.data import Footprint, Latency, Reason, Served
from onnx_condense.runtime import CPU, Feed, Runtime, first_line

# So many samples show whether the rewrite did what its plan says.
CHECKED = 64
# Either network rounds, so each may lie this far from what it is without.
SIDES = 2.0
POOLED = "samples that were fitted on included"


@dataclasses.dataclass(frozen=True)
class Setting:
    """One way of serving: its judge, and how far the dense network moves there (see `report.data.Served`).

    relative: the same by relative errors, whatever the metric.
    """

    provider: str
    judge: Judge
    rounding: float
    relative: float = 0.0


@dataclasses.dataclass(frozen=True)
class Proved:
    """Errors of a network: optimizations off, and as it is served, (setting, error) each.

    relative: the same by relative errors, where another metric or tolerances by output judge.
    known: with optimizations off on samples that were fitted on, if these were looked at.
    """

    measured: Measurement
    served: tuple[tuple[Setting, float], ...] = ()
    relative: Proved | None = None
    known: Measurement | None = None

    @property
    def value(self) -> float:
        """The error with optimizations off, on the scale of all outputs."""
        return self.measured.value

    @property
    def exact(self) -> Proved:
        """What exact steps are judged by: relative errors, whatever the metric."""
        return self.relative or self

    @property
    def unit(self) -> float:
        """What turns scaled errors into those of the output that is nearest to its tolerance."""
        nearest = self.measured.nearest
        return 1.0 if nearest is None else 1.0 / nearest.scale

    @property
    def error(self) -> float:
        """The error of that output, with optimizations off."""
        return self.value * self.unit

    def _over(self, gate: float) -> list[tuple[float, float, str]]:
        """Error over what it may be, error, and in which setting."""
        errors = [(self.value, gate, "")]
        if self.known is not None and not self.known.value <= gate:
            errors.append((self._pooled(self.known), gate, POOLED))
        errors += [(error, gate + SIDES * at.rounding, f"optimized, {at.provider}") for at, error in self.served]
        return [(_ratio(error, bound), error, setting) for error, bound, setting in errors]

    def _pooled(self, known: Measurement) -> float:
        """The error over both kinds of samples: where errors are rare and large few samples say little.

        Of means of squares; that of other means is no larger. A largest error is the larger one.
        """
        if known.nearest is not None and known.nearest.metric == MAX_ABS:
            return known.value
        counts = [len(m.groups) for m in (self.measured, known)]
        return math.sqrt(sum(n * v**2 for n, v in zip(counts, (self.value, known.value), strict=True)) / sum(counts))

    def excess(self, gate: float) -> float:
        """The largest error over what it may be; gate: the tolerance with optimizations off."""
        return max(ratio for ratio, _, _ in self._over(gate))

    def worst(self, gate: float) -> str:
        """The error that `excess` speaks of, in words, with the setting if optimizations and provider make it."""
        _, error, setting = max(self._over(gate), key=lambda o: o[0])
        return f"{error * self.unit:.3g}" + (f" ({setting})" if setting else "")

    def told(self, gate: float | None) -> tuple[Served, ...]:
        """For the report."""
        unit, found = self.unit, []
        for at, error in self.served:
            bound = None if gate is None else unit * (gate + SIDES * at.rounding)
            found.append(Served(at.provider, unit * error, unit * at.rounding, bound))
        return tuple(found)


def _ratio(error: float, bound: float) -> float:
    """Error over bound; infinite wherever the network broke down."""
    if not math.isfinite(error):
        return math.inf
    return error / bound if bound > 0 else (math.inf if error > 0 else 0.0)


@dataclasses.dataclass(frozen=True)
class Proof:
    """What a result is judged on.

    count: samples that judge it. feeds: some of them as feeds, for the check against the plan.
    timed: (samples, feed) to time both networks on; single: one sample as a feed.
    settings: the ways of serving to judge it in as well. known: a judge on samples that were fitted on, made when asked
    for; None where these do not stand beside those that judge.
    """

    judge: Judge
    count: int
    feeds: Sequence[Feed]
    timed: Sequence[tuple[int, Feed]]
    single: Feed
    settings: tuple[Setting, ...] = ()
    known: Callable[[], Judge] | None = None

    def measure(self, model: onnx.ModelProto | Path, gate: float = math.inf) -> Proved:
        """The errors of a network; of one that errs more than a gate with optimizations off no others are measured."""
        measured = self.judge.measure(model)
        if math.isfinite(gate) and not measured.value <= gate:
            return Proved(measured, relative=Proved(measured.relative))
        served, relative = list[tuple[Setting, float]](), list[tuple[Setting, float]]()
        for setting in self.settings:
            found = setting.judge.measure(model)
            served.append((setting, found.value))
            relative.append((dataclasses.replace(setting, rounding=setting.relative), found.relative.value))
        known = self.known and self.known().measure(model)
        return Proved(measured, tuple(served), Proved(measured.relative, tuple(relative)), known)


def _as_given(network: Network) -> Path | onnx.ModelProto:
    """The network as it came, so that nothing that was made of it on the way proves itself."""
    if network.path:
        return network.path
    whole = inlined(network)
    return whole if any(external_tensors(network.given)) else network.given


class Prover:
    """Makes proofs for one dense network and applies them.

    Args:
        network: the dense one.
        runtime: as the user asked for.
        further: providers to prove and time it on as well; one that is named again counts once.
        batches: samples per pass to time; empty: one, and a larger batch where the network takes one.
        by: the metric, and what errors may be.
        effort: how long to time what is to be written.

    Attributes:
        dense: the network as ONNX Runtime gets it: by its file where it has one, since external weights lie beside it.

    Raises:
        UsageError: a further provider is not there or can't run the network.
    """

    def __init__(
        self,
        network: Network,
        runtime: Runtime,
        further: Sequence[str] = (),
        batches: Sequence[int] = (),
        by: Yardstick | None = None,
        *,
        effort: latency.Effort = latency.FULL,
    ) -> None:
        self._network, self._batches, self._by, self._effort = network, batches, by, effort
        self.dense = _as_given(network)
        others = [self._on(provider, runtime.threads) for provider in dict.fromkeys(further)]
        self._served = [runtime, *(other for other in others if other.providers[0] != runtime.providers[0])]
        self._plain = self._exact(runtime)

    @property
    def weights(self) -> Mapping[str, float]:
        """How much a squared error of each output counts, by name: more where less is allowed."""
        by = self._by or Yardstick()
        return {output: by.scale(output) ** 2 for output in self._network.outputs}

    def _on(self, provider: str, threads: int) -> Runtime:
        runtime = Runtime(tuple(dict.fromkeys((provider, *CPU))), threads, option="--also-verify")
        # ONNX Runtime goes on silently on the CPU where a provider can't start.
        try:
            used = runtime.session(self.dense).get_providers()[0]
        except ModelError as error:
            raise UsageError("provider", f"--also-verify: {provider}: {error.text}") from error
        if used != provider:
            raise UsageError("provider", f"--also-verify: {provider} does not start here; is its driver installed?")
        return runtime

    def _exact(self, runtime: Runtime) -> Runtime:
        """The CPU, where the network runs there."""
        if runtime.providers == CPU:
            return runtime
        plain = Runtime(CPU, runtime.threads)
        try:
            plain.session(self.dense, optimize=False)
        except ModelError:
            return runtime
        return plain

    def judge(
        self, samples: Samples, indices: IntArray, rows: int = 0, *, optimize: bool = False, at: Runtime | None = None
    ) -> Judge:
        """Measures networks on some samples.

        rows: samples per pass, 0: as many as memory allows. at: the providers, if not those of the proof; those asked
        for where the graph may be optimized.
        """
        rows = rows or rows_per_pass(self._network, samples, indices)
        runtime = at or (self._served[0] if optimize else self._plain)
        shapes, detailed = self._network.shapes, not optimize
        return Judge(
            self.dense,
            samples,
            indices,
            runtime,
            rows,
            shapes=shapes,
            optimize=optimize,
            detailed=detailed,
            by=self._by,
        )

    def on_samples(self, samples: Samples, indices: IntArray) -> Proof:
        """A proof on some of the samples of a source.

        Raises:
            CalibrationError: the dense network answers with NaN or infinity, in words that name the provider.
        """
        rows = rows_per_pass(self._network, samples, indices)
        feeds = [batch.feed for batch in samples.batches(spread(indices, CHECKED), rows)]
        first = single(samples, indices)
        most = latency_batch(self._network, first)
        timed = [(self._batch(feed), feed) for feed in timed_feeds(samples, indices, self._batches, most)]
        plain = self.judge(samples, indices, rows)
        settings = tuple(self._setting(plain, at, samples, indices, rows) for at in self._served)
        return Proof(plain, len(indices), feeds, timed, first, settings)

    def _setting(self, plain: Judge, at: Runtime, samples: Samples, indices: IntArray, rows: int) -> Setting:
        provider = at.providers[0]
        try:
            judge = self.judge(samples, indices, rows, optimize=True, at=at)
        except CalibrationError as error:
            raise CalibrationError(error.code, f"{provider}, optimized: {error.text}", error.node) from error
        moved = plain.beside(judge)
        return Setting(provider, judge, moved.value, moved.relative.value)

    def on_drawn(self, seed: int) -> Proof:
        """A proof on the first inputs drawn that the network takes, if possible such that no output is empty.

        Raises:
            ModelError: the network takes none of them. CalibrationError: it is random.
        """
        graph = self._network.proto.graph
        specs, refused = input_specs(graph), list[ModelError | CalibrationError]()
        taken: list[Proof] = []
        for feeds in drawings(graph, seed):
            samples = load_samples(feeds, specs)
            every = np.arange(len(samples))
            try:
                judge = self.judge(samples, every, 1)
                settings = tuple(self._setting(judge, at, samples, every, 1) for at in self._served)
            except (ModelError, CalibrationError) as error:
                refused.append(error)
                continue
            check_repeatable(samples, self._plain.session(self.dense, optimize=False), graph)
            timed = [(self._batch(feeds[0]), feeds[0])]
            taken.append(Proof(judge, len(samples), feeds, timed, feeds[0], settings))
            if not judge.empty:
                return taken[-1]
        if taken:
            return taken[0]
        text = f"the network does not take drawn inputs ({refused[0].text}): give --calibration"
        raise ModelError("drawn-inputs", text) from refused[0]

    def check(self, network: Network, view: ChannelView, plan: Plan, condensed: onnx.ModelProto, proof: Proof) -> None:
        """The condensed network against its plan; see `verify`.

        Raises:
            DefectError: they differ.
        """
        check_graph(inlined(self._network), condensed)
        check_numbers(network, view, plan, condensed, proof.feeds, self._plain)

    def time(self, model: onnx.ModelProto, proof: Proof) -> list[Latency]:
        """Both networks in alternation, on every provider and batch."""
        before, after = self._files(model)
        timings = []
        for runtime in self._served:
            for batch, feed in proof.timed:
                seen = latency.compare(before, after, feed, runtime, batch=batch, effort=self._effort)
                timings.append(latency.confirmed(before, after, feed, runtime, seen=seen))
        return timings

    def glance(self, model: onnx.ModelProto, proof: Proof) -> list[Latency]:
        """As `time`, but short: good enough to choose what to time in full."""
        before, after = self._files(model)
        return [
            latency.compare(before, after, feed, at, batch=batch, effort=latency.GLANCE)
            for at in self._served
            for batch, feed in proof.timed
        ]

    def beside(self, one: onnx.ModelProto, other: onnx.ModelProto, proof: Proof) -> list[Latency]:
        """Two networks made of the dense one in alternation, on every batch."""
        files = serialized(one), serialized(other)
        return [latency.compare(*files, feed, self._served[0], batch=batch) for batch, feed in proof.timed]

    def weigh(self, model: onnx.ModelProto, proof: Proof) -> Footprint | Reason:
        """What loading either network takes, or why it could not be measured."""
        before, after = self._files(model)
        return footprint.measure(before, after, proof.single, self._served[0])

    def spent(
        self, view: ChannelView, model: onnx.ModelProto, proof: Proof
    ) -> Mapping[str, tuple[float, float]] | Reason:
        """What each space takes of one pass, in ms, before and after, or why it could not be measured."""
        before, after = self._files(model)
        try:
            return profiled.spent(before, after, self._network, view, proof.timed[-1][1], self._served[0])
        except ModelError as error:
            return Reason("profile", error.text)
        except (OSError, ValueError) as error:
            return Reason("profile", f"the profile could not be written or read: {first_line(error)}")

    def _files(self, model: onnx.ModelProto) -> tuple[Path | bytes, bytes]:
        return self.dense if isinstance(self.dense, Path) else serialized(self.dense), serialized(model)

    def _batch(self, feed: Feed) -> int:
        """How many rows a feed has: the first axis of the first input that has one to spare, else 1."""
        for spec in input_specs(self._network.proto.graph):
            if spec.has_free_rows or len(spec.shape) > 1:
                return int(np.shape(feed[spec.name])[0])
        return 1
