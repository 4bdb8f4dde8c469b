"""What a result is judged and timed on: samples of the user, or inputs that are drawn where there are none."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

from onnx_condense import latency
from onnx_condense.data import Samples, input_specs
from onnx_condense.data import load as load_samples
from onnx_condense.draw import drawings
from onnx_condense.errors import CalibrationError, ModelError
from onnx_condense.feeding import rows_per_pass, timed_feeds
from onnx_condense.metrics import Judge
from onnx_condense.model import Network, inlined, serialized
from onnx_condense.plan import ChannelView, IntArray, Plan
from onnx_condense.report.data import Latency
from onnx_condense.runtime import Feed, Runtime
from onnx_condense.verify import check_graph, check_numbers

# So many samples show whether the rewrite did what its plan says.
CHECKED = 64


@dataclasses.dataclass(frozen=True)
class Proof:
    """What a result is judged on.

    count: samples that judge it. feeds: some of them as feeds, for the check against the plan.
    timed: (samples, feed) to time both networks on.
    """

    judge: Judge
    count: int
    feeds: Sequence[Feed]
    timed: Sequence[tuple[int, Feed]]


class Prover:
    """Makes proofs for one dense network and applies them.

    dense: the network as ONNX Runtime gets it: by its file where it has one, since external weights lie beside that.
    """

    def __init__(self, network: Network, runtime: Runtime) -> None:
        self._network, self._runtime = network, runtime
        self.dense: Path | onnx.ModelProto = network.path or inlined(network)

    def judge(self, samples: Samples, indices: IntArray, rows: int = 0, *, optimize: bool = False) -> Judge:
        """Measures networks on some samples; rows: samples per pass, 0: as many as memory allows."""
        rows = rows or rows_per_pass(self._network, samples, indices)
        shapes = self._network.shapes
        return Judge(self.dense, samples, indices, self._runtime, rows, shapes=shapes, optimize=optimize)

    def on_samples(self, samples: Samples, indices: IntArray) -> Proof:
        """A proof on some of the samples of a source."""
        rows = rows_per_pass(self._network, samples, indices)
        feeds = [next(iter(samples.batches(indices[:CHECKED], rows))).feed]
        timed = [(self._batch(feed), feed) for feed in timed_feeds(samples, indices)]
        return Proof(self.judge(samples, indices, rows), len(indices), feeds, timed)

    def on_drawn(self, seed: int) -> Proof:
        """A proof on the first inputs drawn that the network takes, if possible such that no output is empty.

        Raises:
            ModelError: the network takes none of them.
        """
        graph = self._network.proto.graph
        specs, refused = input_specs(graph), list[ModelError | CalibrationError]()
        taken: list[Proof] = []
        for feeds in drawings(graph, seed):
            samples = load_samples(feeds, specs)
            try:
                judge = self.judge(samples, np.arange(len(samples)), 1)
            except (ModelError, CalibrationError) as error:
                refused.append(error)
                continue
            taken.append(Proof(judge, len(samples), feeds, [(self._batch(feeds[0]), feeds[0])]))
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
        check_numbers(network, view, plan, condensed, proof.feeds, self._runtime)

    def time(self, model: onnx.ModelProto, proof: Proof) -> list[Latency]:
        """Both networks in alternation."""
        before = self.dense if isinstance(self.dense, Path) else serialized(self.dense)
        after, timings = serialized(model), []
        for batch, feed in proof.timed:
            seen = latency.compare(before, after, feed, self._runtime, batch=batch)
            timings.append(latency.confirmed(before, after, feed, self._runtime, seen=seen))
        return timings

    def _batch(self, feed: Feed) -> int:
        """How many rows a feed has: the first axis of the first input that has one to spare, else 1."""
        for spec in input_specs(self._network.proto.graph):
            if spec.has_free_rows or len(spec.shape) > 1:
                return int(np.shape(feed[spec.name])[0])
        return 1
