"""Which widths of a convolution run well: time per run of a small CNN at many widths, in alternation.

Two 3x3 convolutions with ReLUs over 28x28 pictures, both `width` wide, every width against the widest. The median of
the ratios says how much faster; a narrower network that is slower than a wider one is what condensing must not write.

    python tools/bench_widths.py --widths 64,63,62,60,58,56,52,48,44,40,36,33,32
"""

from __future__ import annotations

import time
from typing import Annotated

import numpy as np
import onnx
import typer
from onnx import TensorProto, helper, numpy_helper

from onnx_condense.runtime import Array, Runtime, Session

SIZE, COLOURS = 28, 3


def cnn(width: int) -> bytes:
    """A serialized CNN with random weights."""
    rng = np.random.default_rng(width)
    shapes = {"w0": (width, COLOURS, 3, 3), "w1": (width, width, 3, 3), "w2": (8, width, 1, 1)}
    weights = [numpy_helper.from_array(rng.normal(size=s).astype("f4"), n) for n, s in shapes.items()]
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w1"], ["c"], pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Conv", ["d", "w2"], ["y"]),
    ]
    ends = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", c, SIZE, SIZE])
        for n, c in (("x", COLOURS), ("y", 8))
    ]
    graph = helper.make_graph(nodes, "cnn", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def timed(session: Session, feed: dict[str, Array]) -> float:
    start = time.perf_counter()
    session.run(None, feed)
    return time.perf_counter() - start


def main(
    widths: Annotated[str, typer.Option(help="Joined by commas; the first is what others are compared with.")] = (
        "64,63,62,60,58,56,54,52,50,48,44,40,36,33,32,28,24,20,16"
    ),
    batches: Annotated[str, typer.Option(help="Joined by commas.")] = "1,32",
    rounds: Annotated[int, typer.Option(help="Runs of every width.")] = 60,
    threads: Annotated[int, typer.Option(help="0: ONNX Runtime's default.")] = 1,
) -> None:
    """Print one row per width: speed relative to the first, for every batch."""
    numbers = [int(w) for w in widths.split(",")]
    sessions = [Runtime(threads=threads).session(cnn(w)) for w in numbers]
    columns = []
    for batch in map(int, batches.split(",")):
        feed = {"x": np.random.default_rng(0).normal(size=(batch, COLOURS, SIZE, SIZE)).astype("f4")}
        runs = np.array([[timed(s, feed) for s in sessions] for _ in range(rounds)])
        columns.append(np.median(runs[:, :1] / runs, axis=0))
    print("| width | " + " | ".join(f"faster than {numbers[0]}, batch {b}" for b in batches.split(",")) + " |")
    print("| --- |" + " --- |" * len(columns))
    for i, width in enumerate(numbers):
        print(f"| {width} | " + " | ".join(f"{c[i]:.2f}x" for c in columns) + " |")


if __name__ == "__main__":
    typer.run(main)
