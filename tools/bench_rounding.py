"""Whether rounded widths pay: networks of the same budget with and without them, timed against each other.

Every network is condensed to a share of its multiply-accumulates three times: with any widths (`--multiple-of 1`), by
default, and with `--multiple-of auto`. The last two are then timed against the first, paired, in fresh sessions, at
every batch. Rounded widths spend a budget a little otherwise, so the work that each keeps stands beside it.

    python tools/bench_rounding.py dense.onnx inputs.npz other.onnx other.npz --share 0.5 --batch 1,16,256 --threads 1
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from bench_common import header, row, work_of

from onnx_condense import condense
from onnx_condense.data import input_specs
from onnx_condense.data import load as load_samples
from onnx_condense.errors import CondenseError, UsageError
from onnx_condense.network.model import load
from onnx_condense.options.goal import batches_of
from onnx_condense.proving import latency
from onnx_condense.proving.feeding import timed_feeds
from onnx_condense.runtime import Feed, Runtime

ROUNDINGS: dict[str, Any] = {"any": 1, "default": None, "auto": "auto"}


def made(network: Path, inputs: Path, share: float, threads: int, folder: Path) -> dict[str, tuple[Path, str, str]]:
    """By rounding: the network's file, the work that it keeps in percent, and its error."""
    most = int(share * work_of(network, inputs))
    found = {}
    for name, multiple in ROUNDINGS.items():
        options: dict[str, Any] = {"max_macs": most, "threads": threads, "allow_slower": True, "multiple_of": multiple}
        result = condense(network, calibration=str(inputs), **options)
        assert result.report.macs is not None
        assert result.report.error is not None
        kept = 100 * result.report.macs.after / result.report.macs.before
        result.save(folder / f"{name}.onnx")
        found[name] = (folder / f"{name}.onnx", f"{kept:.1f}", f"{result.report.error.value:.2g}")
    return found


def weights(path: Path) -> list[bytes]:
    """What tells two condensed networks apart."""
    return [t.SerializeToString(deterministic=True) for t in load(path).proto.graph.initializer]


def feeds_of(network: Path, inputs: Path, batches: tuple[int, ...]) -> dict[int, Feed]:
    """What to time, by batch; of a network that fixes its batch whatever it takes."""
    samples = load_samples(inputs, input_specs(load(network).proto.graph))
    every = np.arange(len(samples))
    try:
        return dict(zip(batches, timed_feeds(samples, every, batches), strict=True))
    except UsageError:
        return {batches[0]: timed_feeds(samples, every)[0]}


def rows_of(network: Path, inputs: Path, share: float, batches: tuple[int, ...], threads: int) -> list[str]:
    """The rows of one network."""
    runtime = Runtime(threads=threads)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            found = made(network, inputs, share, threads, Path(scratch))
        except CondenseError as fault:
            return [row(network.stem, "", fault.text, *[""] * (1 + len(batches)))]
        feeds = feeds_of(network, inputs, batches)
        plain, *first = found.pop("any")
        rows = [row(network.stem, "any", *first, *[""] * len(batches))]
        for name, (path, kept, error) in found.items():
            if weights(path) == weights(plain):
                rows.append(row(network.stem, name, kept, error, *["the same network"] * len(batches)))
                continue
            times = {
                b: latency.compare(plain, path, feed, runtime, batch=b, effort=latency.CLOSE)
                for b, feed in feeds.items()
            }
            cells = {b: f"{t.speedup:.2f} ({t.interval[0]:.2f} to {t.interval[1]:.2f})" for b, t in times.items()}
            rows.append(row(network.stem, name, kept, error, *(cells.get(b, "") for b in batches)))
    return rows


def main(
    pairs: Annotated[list[Path], typer.Argument(help="Networks, each with its inputs behind it.")],
    share: Annotated[float, typer.Option(help="Share of the multiply-accumulates.")] = 0.5,
    batch: Annotated[str, typer.Option(help="Joined by commas.")] = "1,16,256",
    threads: Annotated[int, typer.Option(help="0: ONNX Runtime's default.")] = 0,
) -> None:
    """Print three rows per network."""
    if len(pairs) % 2:
        raise typer.BadParameter("give inputs for every network")
    batches = batches_of(batch)
    columns = [f"faster than any, batch {b}" for b in batches]
    print(header("network", "widths", "MACs kept, %", "error", *columns))
    for network, inputs in zip(pairs[::2], pairs[1::2], strict=True):
        print("\n".join(rows_of(network, inputs, share, batches, threads)), flush=True)


if __name__ == "__main__":
    typer.run(main)
