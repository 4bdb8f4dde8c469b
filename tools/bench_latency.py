"""How far the timing of two networks can be trusted on this machine: verdicts over repeated comparisons.

A/A compares a network with itself: nearly every verdict must be "no measurable difference". A/B compares it with
one of half the width: every verdict must be "faster", unless both are so small (64 wide, batch 1) that a run is
mostly the call itself.

    python tools/bench_latency.py --width 1000 --batch 256 --trials 20
"""

from __future__ import annotations

import collections
import itertools
import statistics
import time
from typing import TYPE_CHECKING, Annotated

import numpy as np
import onnx
import typer
from onnx import TensorProto, helper, numpy_helper

from onnx_condense import latency
from onnx_condense.runtime import Runtime

if TYPE_CHECKING:
    from onnx_condense.report.data import Latency

FEATURES = 32


def mlp(width: int, depth: int, seed: int) -> bytes:
    """A serialized ReLU MLP, `depth` hidden layers `width` wide, random weights."""
    rng = np.random.default_rng(seed)
    sizes = [FEATURES, *[width] * depth, FEATURES]
    nodes, weights, name = [], [], "x"
    for k, (a, b) in enumerate(itertools.pairwise(sizes)):
        weight, bias = rng.normal(size=(a, b)) / a**0.5, rng.normal(size=b)
        weights += [
            numpy_helper.from_array(weight.astype("f4"), f"w{k}"),
            numpy_helper.from_array(bias.astype("f4"), f"b{k}"),
        ]
        out = "y" if k == depth else f"h{k}"
        nodes.append(helper.make_node("Gemm", [name, f"w{k}", f"b{k}"], [out]))
        if k < depth:
            nodes.append(helper.make_node("Relu", [out], [f"a{k}"]))
            name = f"a{k}"
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", FEATURES]) for n in ("x", "y")]
    graph = helper.make_graph(nodes, "mlp", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def summary(name: str, results: list[Latency], seconds: list[float]) -> str:
    """One line: counts of verdicts, and how wide the intervals and how long the comparisons were."""
    counts = collections.Counter(r.verdict for r in results)
    verdicts = ", ".join(f"{counts[v]} {v}" for v in ("no measurable difference", "faster", "slower"))
    width = statistics.median(r.interval[1] / r.interval[0] - 1.0 for r in results)
    speedups = sorted(r.speedup for r in results)
    return (
        f"{name}: {verdicts}; speedup {speedups[0]:.2f} to {speedups[-1]:.2f}, interval {100 * width:.0f} % wide, "
        f"{statistics.median(r.before_ms for r in results):.3f} ms, {statistics.median(seconds):.1f} s each"
    )


def main(
    width: Annotated[int, typer.Option(help="Width of the hidden layers.")] = 1000,
    depth: Annotated[int, typer.Option(help="Hidden layers.")] = 3,
    batch: Annotated[int, typer.Option(help="Samples in a run.")] = 256,
    trials: Annotated[int, typer.Option(help="Comparisons of each kind.")] = 20,
    threads: Annotated[int, typer.Option(help="0: ONNX Runtime's default.")] = 0,
    half: Annotated[int, typer.Option(help="Width of the network in A/B; 0: half.")] = 0,
) -> None:
    """Print counts of verdicts over A/A and A/B comparisons."""
    runtime = Runtime(threads=threads)
    feed = {"x": np.random.default_rng(0).normal(size=(batch, FEATURES)).astype("f4")}
    dense, other = mlp(width, depth, 0), mlp(half or width // 2, depth, 1)
    for name, after in (("A/A", dense), ("A/B", other)):
        results, seconds = [], []
        for _ in range(trials):
            start = time.perf_counter()
            results.append(latency.compare(dense, after, feed, runtime, batch=batch))
            seconds.append(time.perf_counter() - start)
        print(summary(f"{name} width {width} batch {batch}", results, seconds), flush=True)


if __name__ == "__main__":
    typer.run(main)
