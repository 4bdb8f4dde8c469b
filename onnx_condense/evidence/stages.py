"""Passes of the dense and of a condensed network side by side that go on where an earlier pass ended.

Readers are refitted stage by stage, from the inputs on. What lies before a stage does not change any more, so a pass
may leave its activations there (a cut) for the passes of later stages, as long as these are small enough to hold.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet

import onnx
from onnx import helper

from onnx_condense.data.samples import Batch, Samples
from onnx_condense.evidence.moments import PREFIX, Pair, collect_parts, side_by_side
from onnx_condense.network.model import Network
from onnx_condense.network.nodes import read_by
from onnx_condense.plan import IntArray, Moments
from onnx_condense.runtime import Array, Runtime

# Bytes of the activations that are held between two passes, at most.
HELD = 2**29


@dataclasses.dataclass(frozen=True)
class Ahead:
    """What passes have to reach.

    settled: per tensor, the first stage that finds it final: that many refits lie upstream (0 where it is missing).
    ends: per stage, the tensors that its readers read.
    """

    settled: Mapping[str, int]
    ends: Mapping[int, frozenset[str]]

    def after(self, stage: int) -> frozenset[str]:
        """What readers of later stages read."""
        return frozenset().union(*(names for s, names in self.ends.items() if s > stage))


class Stages:
    """The passes of one plan, in the order of its stages.

    Args:
        network: the dense one; proto: the same with all weights inside.
        ahead: the stages.
        samples, indices: what to run on; batch: samples per pass at most; runtime: how to run.
    """

    def __init__(
        self,
        network: Network,
        proto: onnx.ModelProto,
        ahead: Ahead,
        samples: Samples,
        indices: IntArray,
        batch: int,
        runtime: Runtime,
    ) -> None:
        self._network, self._proto, self._ahead = network, proto, ahead
        self._samples, self._indices, self._batch, self._runtime = samples, indices, batch, runtime
        self._cut: frozenset[str] = frozenset()
        self._held: list[dict[str, Array]] = []

    def collect(
        self, condensed: onnx.ModelProto, pairs: Sequence[Pair], ranks: Mapping[str, int], stage: int
    ) -> list[Moments]:
        """Moments of each pair (names of the condensed network carry PREFIX).

        Args:
            condensed: the network in which the readers of all earlier stages have got their final weights.
            pairs: what to correlate.
            ranks: see `moments.collect`.
            stage: that of the readers; later calls are of later stages.
        """
        cut = self._next_cut(stage, {name for node in condensed.graph.node for name in node.output})
        ends = {side.tensor.removeprefix(PREFIX) for pair in pairs for side in (pair.left, pair.right)}
        types = {name: self._network.types[name] for name in self._cut}
        dense, other = (part_of(proto, types, ends | (cut - self._cut)) for proto in (self._proto, condensed))
        keeper = _Keeper([prefix + name for name in sorted(cut) for prefix in ("", PREFIX)], self._held)
        joint = side_by_side(dense, other, self._cut)
        del dense, other
        found = collect_parts(joint, pairs, ranks, self._batches(), self._runtime, keeper.names, keeper.add)
        if keeper.held:
            self._cut, self._held = cut, keeper.held
        return found

    def _batches(self) -> Iterator[Batch]:
        batches = self._samples.batches(self._indices, self._batch)
        if not self._held:
            yield from batches
            return
        for part, held in zip(batches, self._held, strict=True):
            yield Batch({**part.feed, **held}, part.samples)

    def _next_cut(self, stage: int, made: AbstractSet[str]) -> frozenset[str]:
        """What is settled now on the way to later readers; made: tensors that the condensed network has as well.

        Lists of sizes need not be among these: the rewrite may make others for single readers.
        """
        cut: set[str] = set()
        waiting = list(self._ahead.after(stage))
        seen = set(waiting)
        while waiting:
            name = waiting.pop()
            node = self._network.producers.get(name)
            if node is None or self._network.root(name):
                continue
            # A node that has to run for another result can't be cut behind one of them.
            typed = self._network.types.keys() >= set(node.outputs) - {""}
            if typed and name in made and self._ahead.settled.get(name, 0) <= stage:
                cut.add(name)
                continue
            more = {*node.inputs, *node.captured} - seen - {""}
            seen |= more
            waiting += more
        return frozenset(cut)


class _Keeper:
    """Takes what passes leave, until it is too much.

    wanted: tensors; before: what earlier passes left, from which some may be had. names: what passes have to give.
    """

    def __init__(self, wanted: Sequence[str], before: Sequence[Mapping[str, Array]]) -> None:
        known = before[0].keys() if before else ()
        self._old = [{name: held[name] for name in wanted if name in known} for held in before]
        self.names = tuple(name for name in wanted if name not in known)
        self.held: list[dict[str, Array]] = []
        self._count, self._room = 0, HELD

    def add(self, values: Sequence[Array]) -> None:
        """One pass's values, in the order of `names`."""
        kept = dict(self._old[self._count]) if self._old else {}
        kept.update(zip(self.names, values, strict=True))
        self._count += 1
        self._room -= sum(v.nbytes for v in kept.values())
        if self._room < 0:
            self.held = []
        elif kept:
            self.held.append(kept)


def part_of(proto: onnx.ModelProto, start: Mapping[str, int], ends: AbstractSet[str]) -> onnx.ModelProto:
    """The part of a network that leads from its inputs and some tensors to others, which are its outputs.

    Args:
        proto: the network, weights inside.
        start: element types of tensors that need not be computed, by name; they become inputs.
        ends: what to compute.
    """
    needed, nodes = set(ends), []
    for node in reversed(proto.graph.node):
        if needed.isdisjoint(set(node.output) - start.keys()):
            continue
        nodes.append(node)
        needed.update(read_by(node))
    part = onnx.ModelProto(ir_version=proto.ir_version)
    part.opset_import.extend(proto.opset_import)
    part.functions.extend(proto.functions)
    graph = part.graph
    graph.node.extend(reversed(nodes))
    graph.initializer.extend(t for t in proto.graph.initializer if t.name in needed)
    graph.sparse_initializer.extend(s for s in proto.graph.sparse_initializer if s.values.name in needed)
    graph.input.extend(i for i in proto.graph.input if i.name in needed)
    graph.input.extend(helper.make_tensor_value_info(n, start[n], None) for n in sorted(start.keys() & needed))
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(ends))
    return part
