"""What condensing graph networks gives: message passing trained to take heat a step further on random meshes.

Trains a small encode-process-decode network per row (PyTorch; a minute or two each), exports it with open numbers of
nodes and edges, condenses it on graphs of 40 to 80 nodes and measures it on larger ones that it never saw.

    python tools/bench_graphs.py --tolerance 0.05 --folder graphs
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from bench_common import Job, condense_apart, header, row, speedup
from scipy.spatial import cKDTree

from onnx_condense.runtime import Array, Runtime, run

NODES, NEIGHBOURS, STEPS, RATE = (40, 80), 5, 12, 0.1
GRAPHS, UNSEEN, LARGER = 160, 40, (100, 200)
EPOCHS, LEARNING = 30, 2e-3
COLUMNS = ("network", "exporter", "parameters kept, %", "MACs kept, %", "error", "unseen, larger graphs")
MORE = ("against the truth, before", "after", "times as fast, one larger graph", "seconds")

Feed = dict[str, Array]


def graph(rng: np.random.Generator, nodes: tuple[int, int]) -> tuple[Feed, Array]:
    """A mesh of random points with its temperatures [n, 1], and these after STEPS steps of diffusion."""
    points = rng.uniform(size=(int(rng.integers(*nodes)), 2))
    near = np.asarray(cKDTree(points).query(points, NEIGHBOURS + 1)[1])
    pairs = np.stack([near[:, 1:].reshape(-1), np.repeat(np.arange(len(points)), NEIGHBOURS)])
    edges = np.unique(np.concatenate([pairs, pairs[::-1]], axis=1), axis=1)
    centres, spread = rng.uniform(size=(3, 2)), rng.uniform(0.1, 0.3, 3)
    distance = ((points[:, None] - centres) ** 2).sum(-1)
    start = (rng.normal(size=3) * np.exp(-distance / spread**2)).sum(1)
    source, target = edges
    degree = np.bincount(target, minlength=len(points))
    after = start.copy()
    for _ in range(STEPS):
        flow = np.bincount(target, after[source] - after[target], len(points))
        after = after + RATE * 5.0 * flow / degree
    arrows = points[source] - points[target]
    told = np.c_[arrows, np.linalg.norm(arrows, axis=1)]
    feed = {"x": start[:, None].astype(np.float32), "e": edges.astype(np.int64), "f": told.astype(np.float32)}
    return feed, (after - start)[:, None].astype(np.float32)


def build(width: int, *, mean: bool, norm: bool) -> Any:
    """An untrained network: three rounds of messages with residuals."""
    import torch
    from torch import nn

    def mlp(inputs: int, outputs: int) -> Any:
        layers = [nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, outputs)]
        return nn.Sequential(*layers, *([nn.LayerNorm(outputs)] if norm and outputs == width else []))

    class Net(nn.Module):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.nodes, self.edges, self.last = mlp(1, width), mlp(3, width), mlp(width, 1)
            self.messages = nn.ModuleList(mlp(3 * width, width) for _ in range(3))
            self.updates = nn.ModuleList(mlp(2 * width, width) for _ in range(3))

        def forward(self, x: Any, e: Any, f: Any) -> Any:
            h, edge = self.nodes(x), self.edges(f)
            for message, update in zip(self.messages, self.updates, strict=True):
                edge = edge + message(torch.cat([h[e[0]], h[e[1]], edge], -1))
                index = e[1][:, None].expand_as(edge)
                heard = torch.zeros(x.shape[0], edge.shape[1]).scatter_add(0, index, edge)
                if mean:
                    count = torch.zeros(x.shape[0]).scatter_add(0, e[1], torch.ones_like(f[:, 0]))
                    heard = heard / count.clamp(min=1)[:, None]
                h = h + update(torch.cat([h, heard], -1))
            return self.last(h)

    torch.manual_seed(0)
    return Net()


def trained(net: Any, graphs: list[tuple[Feed, Array]]) -> Any:
    """The same network, trained a graph at a time."""
    import torch

    rng = np.random.default_rng(0)
    optimiser = torch.optim.Adam(net.parameters(), lr=LEARNING)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING, total_steps=EPOCHS * len(graphs))
    for _ in range(EPOCHS):
        for at in rng.permutation(len(graphs)):
            feed, target = graphs[at]
            loss = ((net(*map(torch.from_numpy, feed.values())) - torch.from_numpy(target)) ** 2).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return net.eval()


def export(net: Any, feed: Feed, path: Path, *, dynamo: bool) -> None:
    """Write it as ONNX with open numbers of nodes and edges."""
    import torch

    n, m = torch.export.Dim("n"), torch.export.Dim("m")
    told: dict[str, Any] = {"dynamic_axes": {"x": {0: "n"}, "e": {1: "m"}, "f": {0: "m"}, "y": {0: "n"}}}
    if dynamo:
        told = {"dynamic_shapes": ({0: n}, {1: m}, {0: m}), "external_data": False, "verbose": False}
    inputs = tuple(map(torch.from_numpy, feed.values()))
    told |= {"input_names": ["x", "e", "f"], "output_names": ["y"]}
    torch.onnx.export(net, inputs, str(path), dynamo=dynamo, opset_version=18, **told)


def errors(answer: Callable[[Path], list[Array]], dense: Path, made: Path, truth: list[Array]) -> tuple[float, ...]:
    """Relative errors: the condensed network's against the dense one, and either's against the truth."""
    before, after, true = (np.concatenate(parts)[:, 0] for parts in (answer(dense), answer(made), truth))

    def apart(y: Array, y0: Array) -> float:
        return float(np.sqrt(((y - y0) ** 2).mean() / y0.var()))

    return apart(after, before), apart(before, true), apart(after, true)


def main(
    folder: Annotated[Path | None, typer.Option(help="Where networks and graphs go.")] = None,
    tolerance: float = 0.05,
    width: int = 64,
    threads: int = 1,
) -> None:
    """Print the table."""
    import torch

    logging.disable(logging.WARNING)
    torch.set_num_threads(threads)
    rng = np.random.default_rng(0)
    graphs = [graph(rng, NODES) for _ in range(GRAPHS)]
    unseen = [graph(rng, LARGER) for _ in range(UNSEEN)]
    place = folder or Path(tempfile.mkdtemp())
    feeds = place / "feeds"
    feeds.mkdir(parents=True, exist_ok=True)
    for at, (feed, _) in enumerate(graphs):
        np.savez(feeds / f"{at:03}.npz", x=feed["x"], e=feed["e"], f=feed["f"])

    def answer(path: Path) -> list[Array]:
        session = Runtime(threads=1).session(path, optimize=False)
        return [run(session, feed)[0] for feed, _ in unseen]

    print(header(*COLUMNS, *MORE), flush=True)
    for name, mean, norm in (("sums", False, False), ("means", True, False), ("means, LayerNorm", True, True)):
        net = trained(build(width, mean=mean, norm=norm), graphs)
        for dynamo in (False, True):
            kind = "dynamo" if dynamo else "TorchScript"
            dense, made = (place / f"{name}_{kind}{end}.onnx" for end in ("", "_slim"))
            export(net, graphs[0][0], dense, dynamo=dynamo)
            outcome = condense_apart(Job(dense, feeds, made, tolerance=tolerance, threads=threads, allow_slower=True))
            if outcome.failed or outcome.status != "condensed":
                print(row(name, kind, outcome.failed or outcome.reason, *[""] * 7), flush=True)
                continue
            error, before, after = errors(answer, dense, made, [truth for _, truth in unseen])
            cells = (
                f"{100 * outcome.kept:.1f}",
                f"{100 * outcome.macs_kept:.1f}",
                f"{outcome.error:.4f}",
                f"{error:.4f}",
            )
            times = speedup(dense, made, unseen[0][0], 1, threads)
            print(row(name, kind, *cells, f"{before:.4f}", f"{after:.4f}", times, f"{outcome.seconds:.0f}"), flush=True)


if __name__ == "__main__":
    typer.run(main)
