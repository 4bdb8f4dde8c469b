"""What a limit on work gives in time: multiply-accumulates saved beside the speed-up that is measured.

Every network is condensed to each share of its multiply-accumulates and timed against the dense one, paired, in fresh
sessions, at every batch. The error is the one on samples that the search did not see.

    python tools/bench_budgets.py dense.onnx inputs.npz other.onnx other.npz --shares 0.5,0.25 --batch 1,16,256
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from bench_common import header, row, work_of

from onnx_condense import condense
from onnx_condense.errors import CondenseError, UsageError
from onnx_condense.options.goal import batches_of


def measured(network: Path, inputs: Path, share: float, batches: tuple[int, ...], threads: int) -> str:
    """One row of the table."""
    most = int(share * work_of(network, inputs))
    options: dict[str, Any] = {"max_macs": most, "threads": threads, "allow_slower": True}
    try:
        try:
            report = condense(network, calibration=str(inputs), batches=batches, **options).report
        except UsageError as error:
            if error.code != "batch":
                raise
            # A network that fixes its batch is timed at that.
            report = condense(network, calibration=str(inputs), **options).report
    except CondenseError as error:
        return row(network.stem, f"{share:g}", error.text, *[""] * (2 + len(batches)))
    assert report.macs is not None
    assert report.parameters is not None
    assert report.error is not None
    times = {t.batch: f"{t.speedup:.2f} ({t.interval[0]:.2f} to {t.interval[1]:.2f})" for t in report.latency}
    # Of a network that fixes its batch.
    elsewhere = [f"batch {batch}: {text}" for batch, text in times.items() if batch not in batches]
    return row(
        network.stem,
        f"{share:g}",
        f"{report.macs.before / report.macs.after:.2f}",
        f"{report.parameters.before / report.parameters.after:.2f}",
        f"{report.error.value:.2g}",
        *(times.get(batch, elsewhere.pop(0) if elsewhere else "") for batch in batches),
    )


def main(
    pairs: Annotated[list[Path], typer.Argument(metavar="NET INPUTS ...", help="Networks, each with inputs of it.")],
    shares: Annotated[str, typer.Option(help="Of the multiply-accumulates to keep, joined by commas.")] = "0.5,0.25",
    batch: Annotated[str, typer.Option(help="Samples per pass, joined by commas.")] = "1,16,256",
    threads: Annotated[int, typer.Option(help="0: ONNX Runtime's default.")] = 0,
) -> None:
    """Print one row per network and share."""
    if len(pairs) % 2:
        raise typer.BadParameter("give inputs for every network")
    batches = batches_of(batch)
    columns = [f"faster, batch {b}" for b in batches]
    print(header("network", "share asked for", "MACs before / after", "parameters before / after", "error", *columns))
    for network, inputs in zip(pairs[::2], pairs[1::2], strict=True):
        for share in shares.split(","):
            print(measured(network, inputs, float(share), batches, threads), flush=True)


if __name__ == "__main__":
    typer.run(main)
