"""What a saved plan is worth on other weights of the same network: trained on a little, and trained from another seed.

python tools/bench_plans.py [--widths 1200,600,300 --epochs 24 --tolerance 0.02]

MLPs (GELU) that are taught by the ignition net on its own calibration inputs, condensed afresh and by the first one's
plan.
Prints rows of a markdown table: parameters kept, error, CPU seconds; and what was used of the plan.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

MODELS = Path(__file__).parent.parent / "models"
BATCH = 128
RATE = 2e-3
# Of further training: share of the epochs, rate, and noise on the inputs.
MORE, SLOWER, NOISE = 5, 5e-4, 0.02


def build(sizes: list[int], seed: int) -> Any:
    """An untrained MLP."""
    import torch
    from torch import nn

    torch.manual_seed(seed)
    layers: list[Any] = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), nn.GELU()]
    return nn.Sequential(*layers[:-1])


def train(model: Any, x: Any, y: Any, epochs: int, rate: float, seed: int, noise: float = 0.0) -> Any:
    """The same model, trained."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(model.parameters(), lr=rate)
    steps = epochs * -(-len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(BATCH):
            inputs = x[rows] + noise * torch.randn(x[rows].shape, generator=generator)
            loss = ((model(inputs) - y[rows]) ** 2).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return model


def export(model: Any, inputs: int, path: Path) -> None:
    """Write it as ONNX with a dynamic batch."""
    import torch

    torch.onnx.export(
        model.eval(),
        (torch.zeros(2, inputs),),
        str(path),
        input_names=["state"],
        output_names=["change"],
        dynamic_axes={"state": {0: "batch"}, "change": {0: "batch"}},
        dynamo=False,
        opset_version=20,
    )


def students(folder: Path, widths: list[int], epochs: int) -> dict[str, Path]:
    """The three networks."""
    import onnxruntime as ort
    import torch

    torch.set_num_threads(1)
    states = np.load(MODELS / "ignition.npz")["state"].astype(np.float32)
    teacher = ort.InferenceSession(str(MODELS / "ignition.onnx"), providers=["CPUExecutionProvider"])
    x, y = torch.from_numpy(states), torch.from_numpy(teacher.run(None, {"state": states})[0])
    sizes = [x.shape[1], *widths, y.shape[1]]
    paths = {name: folder / f"{name.replace(' ', '_')}.onnx" for name in ("first", "trained on", "other seed")}
    model = train(build(sizes, 0), x, y, epochs, RATE, 0)
    export(model, x.shape[1], paths["first"])
    export(train(model, x, y, max(epochs // MORE, 2), SLOWER, 5, NOISE), x.shape[1], paths["trained on"])
    export(train(build(sizes, 1), x, y, epochs, RATE, 1), x.shape[1], paths["other seed"])
    return paths


def row(label: str, network: Path, **options: Any) -> Any:
    """Condense, print a row, and hand the result on."""
    from onnx_condense import condense

    started = time.process_time()
    calibration = MODELS / "ignition.npz"
    found = condense(network, calibration=calibration, threads=1, allow_slower=True, **options)
    report = found.report
    assert report.parameters is not None
    assert report.error is not None
    kept = 100 * report.parameters.after / report.parameters.before
    what = "channels chosen anew" if any("anew" in note for note in report.notes) else ""
    print(f"| {label} | {kept:.2f} % | {report.error.value:.4f} | {time.process_time() - started:.1f} | {what} |")
    return found


def main(
    widths: Annotated[str, typer.Option(help="Neurons of the hidden layers.")] = "1200,600,300",
    epochs: int = 24,
    tolerance: float = 0.02,
) -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder:
        networks = students(Path(folder), [int(width) for width in widths.split(",")], epochs)
        plan = Path(folder) / "plan.json"
        print("| weights | kept | error | CPU s | |\n|---|---|---|---|---|")
        row("first, fresh", networks["first"], tolerance=tolerance).save_plan(plan)
        for name, network in networks.items():
            if name != "first":
                row(f"{name}, fresh", network, tolerance=tolerance)
            # Above any error, so that all of them are shown.
            row(f"{name}, by the plan", network, plan=plan, tolerance=100.0)


if __name__ == "__main__":
    typer.run(main)
