"""How far the timing of two networks can be trusted on this machine: verdicts over repeated comparisons.

A/A compares a network with itself: nearly every verdict must be "no measurable difference". A/B compares it with
another one. `mlps` makes both networks, the second one with half of the width: every verdict must be "faster", unless
both are so small (64 wide, batch 1) that a run is mostly the call itself. `networks` takes them from files. With --busy
other processes burn so many cores meanwhile.

    python tools/bench_latency.py mlps --width 1000 --batch 256 --trials 20
    python tools/bench_latency.py networks dense.onnx --inputs calibration.npz --batch 1 --trials 20 --busy 2
    python tools/bench_latency.py networks dense.onnx --other slim.onnx --inputs calibration.npz --batch 1 --trials 20
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import onnx
import onnxruntime
import typer
from bench_common import header, row
from onnx import TensorProto, helper, numpy_helper

from onnx_condense.data import input_specs, load
from onnx_condense.proving import latency
from onnx_condense.proving.feeding import timed_feeds
from onnx_condense.runtime import Feed, Runtime

if TYPE_CHECKING:
    from onnx_condense.report.data import Latency

FEATURES = 32
VERDICTS = ("no measurable difference", "faster", "slower")

app = typer.Typer(help=__doc__, add_completion=False, rich_markup_mode=None)
Batch = Annotated[list[int] | None, typer.Option("--batch", help="Samples in a run; repeatable.")]
Trials = Annotated[int, typer.Option(help="Comparisons of each kind.")]
Threads = Annotated[int, typer.Option(help="0: ONNX Runtime's default.")]
Busy = Annotated[int, typer.Option(help="Cores that other processes burn meanwhile.")]


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


def _burn(parent: int) -> None:
    """Keep a core busy for as long as whoever started this lives."""
    while os.getppid() == parent:
        sum(range(100_000))


@contextlib.contextmanager
def burning(cores: int) -> Iterator[None]:
    """So many processes that do nothing but use a core each."""
    context = multiprocessing.get_context("spawn")
    burners = [context.Process(target=_burn, args=(os.getpid(),), daemon=True) for _ in range(cores)]
    for burner in burners:
        burner.start()
    try:
        yield
    finally:
        for burner in burners:
            burner.terminate()
            burner.join()


def machine() -> str:
    """What the numbers hold for."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    for line in info.read_text(encoding="utf-8").splitlines() if info.exists() else []:
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
    return f"{os.cpu_count()} cores, {cpu}, Python {platform.python_version()}, onnxruntime {onnxruntime.__version__}"


def head() -> str:
    """Versions, and the head of the table that `compared` fills."""
    columns = ("comparison", "trials", *VERDICTS, "speedups", "interval, median", "before, ms", "seconds each")
    return f"{machine()}\n\n{header(*columns)}"


def compared(
    name: str, models: tuple[bytes | Path, bytes | Path], feed: Feed, runtime: Runtime, batch: int, trials: int
) -> str:
    """Repeated comparisons as one row of the table."""
    results: list[Latency] = []
    seconds: list[float] = []
    for _ in range(trials):
        start = time.perf_counter()
        results.append(latency.compare(*models, feed, runtime, batch=batch))
        seconds.append(time.perf_counter() - start)
    counts = collections.Counter[str](r.verdict for r in results)
    speedups = sorted(r.speedup for r in results)
    return row(
        name,
        trials,
        *(counts[v] for v in VERDICTS),
        f"{speedups[0]:.3g} to {speedups[-1]:.3g}",
        f"{100 * statistics.median(r.interval[1] / r.interval[0] - 1.0 for r in results):.0f} % wide",
        f"{statistics.median(r.before_ms for r in results):.3g}",
        f"{statistics.median(seconds):.1f}",
    )


@app.command()
def mlps(
    width: Annotated[int, typer.Option(help="Width of the hidden layers.")] = 1000,
    depth: Annotated[int, typer.Option(help="Hidden layers.")] = 3,
    half: Annotated[int, typer.Option(help="Width of the network in A/B; 0: half.")] = 0,
    batch: Batch = None,
    trials: Trials = 20,
    threads: Threads = 0,
    busy: Busy = 0,
) -> None:
    """A/A and A/B of networks with random weights."""
    runtime = Runtime(threads=threads)
    dense, other = mlp(width, depth, 0), mlp(half or width // 2, depth, 1)
    print(head())
    with burning(busy):
        for rows, (after, text) in itertools.product(
            batch or [256], ((dense, "itself"), (other, f"{half or width // 2} wide"))
        ):
            feed = {"x": np.random.default_rng(0).normal(size=(rows, FEATURES)).astype("f4")}
            name = f"{width} wide against {text}, batch {rows}, {busy} cores busy"
            print(compared(name, (dense, after), feed, runtime, rows, trials), flush=True)


@app.command()
def networks(
    network: Annotated[Path, typer.Argument(help="A network.")],
    inputs: Annotated[Path, typer.Option(help="Inputs of it, .npz or a folder.")],
    other: Annotated[list[Path] | None, typer.Option(help="Compared with it; none: itself. Repeatable.")] = None,
    batch: Batch = None,
    trials: Trials = 20,
    threads: Threads = 0,
    busy: Busy = 0,
) -> None:
    """A/A, or A/B with each of the others."""
    runtime = Runtime(threads=threads)
    samples = load(inputs, input_specs(onnx.load(network, load_external_data=False).graph))
    print(head())
    with burning(busy):
        for rows, after in itertools.product(batch or [1], other or [network]):
            (feed,) = timed_feeds(samples, np.arange(len(samples)), [rows])
            text = "itself" if after == network else after.stem
            name = f"{network.stem} against {text}, batch {rows}, {busy} cores busy"
            print(compared(name, (network, after), feed, runtime, rows, trials), flush=True)


if __name__ == "__main__":
    app()
