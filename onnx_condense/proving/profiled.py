"""Where the time of a pass goes: ONNX Runtime's profiler, node by node, and per channel space.

Graph optimizations are off, so that there is a time for every node of the file: what nodes are fused into would carry
no name of theirs. So these times say which layers the time is saved in, not how fast the network is served; that is
what `latency` measures.
"""

from __future__ import annotations

import collections
import json
import math
import statistics
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from onnx_condense.network.model import Network
from onnx_condense.network.nodes import bodies_of
from onnx_condense.plan import ChannelView
from onnx_condense.runtime import DEVICES, Feed, Runtime, run

# Sessions of either network in `spent`; times of two sessions of one network differ by several percent.
SESSIONS = 3
# The first runs of a session, one of so many, do not count.
WARM_UPS = 4
FEWEST_RUNS = 2
MOST_RUNS = 100
SECONDS = 1.0

_EVENT = "_kernel_time"
_PREFIX = "onnx-condense-node-"


def times(model: bytes | Path, feed: Feed, runtime: Runtime) -> Mapping[str, float]:
    """Time in ms of every node of the main graph in one pass, by its first output that has a name.

    Args:
        model: serialized or a file.
        feed: of one pass.
        runtime: providers and threads of the session.

    Returns:
        No entry for nodes that were not run as they are (a constant, a function that was put in its place, nodes that a
        provider joined), nor for those on a GPU: the profiler sees how long it takes to start them, not to run them.

    Raises:
        ModelError: the network does not load or does not run.
    """
    return _profile(_loaded(model), feed, runtime)


def spent(
    before: bytes | Path, after: bytes | Path, network: Network, view: ChannelView, feed: Feed, runtime: Runtime
) -> dict[str, tuple[float, float]]:
    """Time in ms of the nodes that write and read each space, in one pass of the dense and of the condensed network.

    A node that reads and writes counts for both of its spaces, so that the sum over spaces is more than a pass.

    Args:
        before: the dense network, serialized or a file.
        after: what it was condensed to.
        network: the dense network.
        view: its spaces.
        feed: of one pass.
        runtime: providers and threads of the sessions.

    Returns:
        By name of the space; none where the time of one of its nodes is not known in one of the networks.

    Raises:
        ModelError: one of them does not load or does not run.
    """
    protos = _loaded(before), _loaded(after)
    seen: tuple[list[Mapping[str, float]], list[Mapping[str, float]]] = [], []
    for index in range(SESSIONS):
        for which in (0, 1) if index % 2 == 0 else (1, 0):
            seen[which].append(_profile(protos[which], feed, runtime))
    dense, condensed = _medians(seen[0]), _medians(seen[1])
    matches = _matches(network, protos[1])
    found: dict[str, tuple[float, float]] = {}
    for space in view.spaces:
        nodes = sorted({view.linear[i].weight.node for i in (*space.writers, *space.readers)})
        names = [network.nodes[i].result for i in nodes]
        after_names = [name for i in nodes for name in matches.get(i, ("",))]
        if dense.keys() >= set(names) and condensed.keys() >= set(after_names):
            found[space.name] = sum(dense[n] for n in names), sum(condensed[n] for n in after_names)
    return found


def _matches(network: Network, condensed: onnx.ModelProto) -> dict[int, tuple[str, ...]]:
    """Results of the nodes that do in the condensed network what each node does in the dense one.

    That is the node with the same result; where the rewrite put an Add behind it, which took over the result, both.
    """
    makers = {name: node for node in condensed.graph.node for name in node.output if name}
    found: dict[int, tuple[str, ...]] = {}
    for node in network.nodes:
        now = makers.get(node.result)
        if now is None:
            continue
        if now.op_type == node.op:
            found[node.index] = (node.result,)
        elif now.op_type == "Add" and now.input[0] not in network.producers:
            inner = makers.get(now.input[0])
            if inner is not None and inner.op_type == node.op:
                found[node.index] = (node.result, now.input[0])
    return found


def _loaded(model: bytes | Path) -> onnx.ModelProto:
    """The network with all weights inside, its nodes named such that the profile tells them apart."""
    proto = onnx.load_from_string(model) if isinstance(model, bytes) else onnx.load(model, format="protobuf")
    for index, node in enumerate(proto.graph.node):
        node.name = f"{_PREFIX}{index}"
    for nodes in (*(_inner(node) for node in proto.graph.node), *(f.node for f in proto.functions)):
        for node in nodes:
            node.name = ""
    return proto


def _inner(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """All nodes in the bodies of a node."""
    own = [inner for attribute in node.attribute for body in bodies_of(attribute) for inner in body.node]
    return [found for inner in own for found in (inner, *_inner(inner))]


def _profile(proto: onnx.ModelProto, feed: Feed, runtime: Runtime) -> Mapping[str, float]:
    """As `times`."""
    with tempfile.TemporaryDirectory(prefix="onnx-condense.", ignore_cleanup_errors=True) as folder:
        session = runtime.session(proto, optimize=False, spin=True, profile=str(Path(folder) / "profile"))
        start, runs = time.perf_counter(), 0
        while runs < FEWEST_RUNS or (runs < MOST_RUNS and time.perf_counter() - start < SECONDS):
            run(session, feed)
            runs += 1
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8", errors="replace"))
    results = [next(filter(None, node.output), "") for node in proto.graph.node]
    return {results[i]: ms for i, ms in _per_node(events).items() if results[i]}


def _per_node(events: Iterable[Mapping[str, Any]]) -> dict[int, float]:
    """Time in ms per run of each node, by its index; the first runs do not count."""
    taken: dict[int, list[float]] = collections.defaultdict(list)
    for event in events:
        name = event.get("name", "")
        if not (name.startswith(_PREFIX) and name.endswith(_EVENT)):
            continue
        if event.get("args", {}).get("provider") not in DEVICES:
            taken[int(name.removeprefix(_PREFIX).removesuffix(_EVENT))].append(event["dur"] / 1e3)
    return {i: _middle(ms[math.ceil(len(ms) / WARM_UPS) :]) for i, ms in taken.items() if len(ms) > 1}


def _middle(values: Sequence[float]) -> float:
    """Mean of the middle half: the profiler counts whole microseconds, too coarse for a median of short ones."""
    cut = len(values) // 4
    return statistics.fmean(sorted(values)[cut : len(values) - cut])


def _medians(seen: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of the nodes that have a time in every session."""
    names = set(seen[0]).intersection(*seen[1:])
    return {name: statistics.median(one[name] for one in seen) for name in names}
