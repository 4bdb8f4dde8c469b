"""Train a surrogate of methane ignition: one 1e-6 s step of constant-pressure combustion as an MLP.

Makes everything itself: Cantera integrates ignitions of CH4/air with gri30 (the mechanism file ships
inside the wheel), PyTorch trains, and three files come out next to each other:

* ``NAME.onnx``           the network, dynamic batch, inputs and outputs z-scored;
* ``NAME.npz``            unlabeled calibration inputs (key = the network's input name);
* ``NAME_labelled.npz``   inputs and labels of ignitions that training never saw, with the scaling.

A state is (T, p, Y_1..Y_S). Mass fractions pass through the Box-Cox transform (Y^0.1 - 1)/0.1, everything
is z-scored; the label is the z-scored change of T and of the transformed Y over the step. The recipe
follows Zhang, Yi, Xu et al., Combustion and Flame 2022 (arXiv 2201.03549).

    pip install 'onnx-condense[tools]'
    python tools/train_ignition.py --out models/ignition
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import multiprocessing
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer

Floats = npt.NDArray[np.float64]

STEP_S = 1e-6
BOX_COX = 0.1
# Below this a mass fraction is integrator noise; Y^0.1 would blow the noise up into a feature.
SMALLEST_FRACTION = 1e-15
BURST_WALK, BURST_PERTURBED = 10, 5


@dataclasses.dataclass(frozen=True)
class Samples:
    """Reactor states before and after one step; ``run`` says which ignition a row belongs to.

    before: [n, 2 + S] (T in K, p in Pa, mass fractions); after: [n, 1 + S] (T, mass fractions); run: [n].
    """

    before: Floats
    after: Floats
    run: npt.NDArray[np.int64]

    @staticmethod
    def joined(parts: list[Samples]) -> Samples:
        """One after the other."""
        return Samples(
            np.concatenate([p.before for p in parts]),
            np.concatenate([p.after for p in parts]),
            np.concatenate([p.run for p in parts]),
        )


@dataclasses.dataclass(frozen=True)
class Scaling:
    """Mean and spread of network inputs [2 + S] and outputs [1 + S], fitted on the training share."""

    x_mean: Floats
    x_std: Floats
    y_mean: Floats
    y_std: Floats


def box_cox(fractions: Floats) -> Floats:
    """(Y^0.1 - 1) / 0.1, with Y floored where it is noise."""
    return np.asarray((np.maximum(fractions, SMALLEST_FRACTION) ** BOX_COX - 1.0) / BOX_COX)


def transformed(samples: Samples) -> tuple[Floats, Floats]:
    """Inputs [n, 2 + S] and labels [n, 1 + S] before z-scoring."""
    x = np.concatenate([samples.before[:, :2], box_cox(samples.before[:, 2:])], axis=1)
    change_t = samples.after[:, :1] - samples.before[:, :1]
    change_y = box_cox(samples.after[:, 1:]) - x[:, 2:]
    return x, np.concatenate([change_t, change_y], axis=1)


def fit_scaling(x: Floats, y: Floats) -> Scaling:
    """z-scores; a feature that does not vary keeps spread 1 and so becomes 0."""
    stds = [a.std(axis=0) for a in (x, y)]
    x_std, y_std = (np.where(s > 1e-9 * s.max(), s, 1.0) for s in stds)
    return Scaling(x.mean(axis=0), x_std, y.mean(axis=0), y_std)


def _reactor(gas: Any) -> tuple[Any, Any]:
    import cantera as ct

    reactor = ct.IdealGasConstPressureReactor(gas, clone=False)
    net = ct.ReactorNet([reactor])
    net.rtol, net.atol = 1e-8, 1e-18
    return reactor, net


def _burst(gas: Any, temperature: float, pressure: float, fractions: Floats, steps: int) -> list[Floats]:
    """States [2 + S] at 0, dt, 2 dt, ... from one start."""
    gas.TPY = temperature, pressure, fractions
    reactor, net = _reactor(gas)
    states = [np.r_[reactor.T, pressure, gas.Y]]
    for k in range(steps):
        net.advance((k + 1) * STEP_S)
        states.append(np.r_[reactor.T, pressure, gas.Y])
    return states


def _ignition(gas: Any, rng: np.random.Generator) -> tuple[float, Floats, Floats] | None:
    """Pressure, temperatures [m] and mass fractions [m, S] along one ignition; None if nothing ignited."""
    import cantera as ct

    start, pressure = rng.uniform(1200, 2000), ct.one_atm * rng.uniform(0.9, 1.1)
    gas.set_equivalence_ratio(rng.uniform(0.5, 2.0), "CH4", "O2:1,N2:3.76")
    gas.TP = start, pressure
    reactor, net = _reactor(gas)
    temperatures, fractions = [reactor.T], [gas.Y.copy()]
    while net.time < 0.2 and len(temperatures) < 3000:
        net.step()
        temperatures.append(reactor.T)
        fractions.append(gas.Y.copy())
        settled = len(temperatures) > 20 and abs(temperatures[-1] - temperatures[-20]) < 0.01
        if settled and start + 400 < reactor.T:
            break
    ignited = max(temperatures) > start + 300
    return (pressure, np.array(temperatures), np.array(fractions)) if ignited else None


def _pick(rng: np.random.Generator, temperatures: Floats) -> int:
    """Mostly even in temperature (the flame front is short in time), partly even in time steps."""
    if rng.random() < 0.7:
        return int(np.abs(temperatures - rng.uniform(temperatures.min(), temperatures.max())).argmin())
    return int(rng.integers(len(temperatures)))


def _perturbed(rng: np.random.Generator, temperature: float, fractions: Floats) -> tuple[float, Floats]:
    """A neighbour off the ignition path, as splitting and transport errors make: T +- 10 K, ln Y +- 0.1 (1 sigma)."""
    y = np.clip(fractions, 0, None) * np.exp(0.1 * rng.normal(size=len(fractions)))
    return float(np.clip(temperature + rng.normal() * 10, 300, 3500)), y / y.sum()


def _worker(job: tuple[str, int, int]) -> Samples:
    """At least the asked number of samples from one process, with its own seed."""
    import cantera as ct

    mechanism, count, seed = job
    gas, rng = ct.Solution(mechanism, transport_model=None), np.random.default_rng(seed)
    before: list[Floats] = []
    after: list[Floats] = []
    runs: list[int] = []
    run = 0
    while len(before) < count:
        run += 1
        path = _ignition(gas, rng)
        if path is None:
            continue
        pressure, temperatures, fractions = path
        for kind in [0] * 6 + [1] * 12:
            i = _pick(rng, temperatures)
            start = (float(temperatures[i]), fractions[i])
            start = _perturbed(rng, *start) if kind else start
            states = _burst(gas, start[0], pressure, start[1], BURST_PERTURBED if kind else BURST_WALK)
            before += states[:-1]
            after += [np.delete(s, 1) for s in states[1:]]
            runs += [1_000_000 * seed + run] * (len(states) - 1)
    return Samples(np.array(before)[:count], np.array(after)[:count], np.array(runs)[:count])


def make_samples(mechanism: str, count: int, jobs: int, seed: int) -> Samples:
    """`count` samples; the same for the same (mechanism, count, jobs, seed)."""
    share = math.ceil(count / jobs)
    work = [(mechanism, share, seed * 100 + j) for j in range(jobs)]
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        return Samples.joined(pool.map(_worker, work))


def split_by_run(run: npt.NDArray[np.int64], held_out: float, seed: int) -> npt.NDArray[np.bool_]:
    """Mask [n] of the rows whose whole ignition is held out."""
    names = np.unique(run)
    chosen = np.random.default_rng(seed).permutation(names)[: max(1, round(held_out * len(names)))]
    return np.isin(run, chosen)


def train(x: Floats, y: Floats, widths: list[int], epochs: int, batch: int, seed: int) -> Any:
    """A GELU MLP under L1 loss, Adam with cosine decay; returns the torch module."""
    import torch
    from torch import nn

    torch.manual_seed(seed)
    sizes = [x.shape[1], *widths, y.shape[1]]
    layers: list[Any] = []
    for i, (a, b) in enumerate(itertools.pairwise(sizes)):
        layers += [nn.Linear(a, b)] + ([nn.GELU()] if i < len(sizes) - 2 else [])
    model = nn.Sequential(*layers)
    inputs, labels = torch.from_numpy(x.astype("f4")), torch.from_numpy(y.astype("f4"))
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    steps = epochs * math.ceil(len(x) / batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    started = time.monotonic()
    for epoch in range(epochs):
        total = 0.0
        for rows in torch.randperm(len(x)).split(batch):
            loss = nn.functional.l1_loss(model(inputs[rows]), labels[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += float(loss.detach()) * len(rows)
        print(f"epoch {epoch + 1}/{epochs}: L1 {total / len(x):.4f}, {time.monotonic() - started:.0f} s", flush=True)
    return model.eval()


def export(model: Any, features: int, path: Path) -> None:
    """Write the network as ONNX with a dynamic batch and no external data."""
    import torch

    torch.onnx.export(
        model,
        (torch.zeros(2, features),),
        str(path),
        input_names=["state"],
        output_names=["change"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        opset_version=20,
        external_data=False,
        verbose=False,
    )


def evaluate(path: Path, x: npt.NDArray[np.float32], y: npt.NDArray[np.float32]) -> float:
    """Mean absolute error of the written file on labelled samples, by ONNX Runtime."""
    import onnxruntime as ort

    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    parts = [session.run(None, {"state": x[i : i + 1024]})[0] for i in range(0, len(x), 1024)]
    return float(np.abs(np.concatenate(parts) - y).mean())


def _cached_samples(cache: Path | None, mechanism: str, count: int, jobs: int, seed: int) -> Samples:
    if cache is not None and cache.exists():
        stored = np.load(cache)
        return Samples(stored["before"], stored["after"], stored["run"])
    started = time.monotonic()
    samples = make_samples(mechanism, count, jobs, seed)
    runs, seconds = len(np.unique(samples.run)), time.monotonic() - started
    print(f"{len(samples.before)} samples from {runs} ignitions, {seconds:.0f} s")
    if cache is not None:
        np.savez_compressed(cache, **dataclasses.asdict(samples))
    return samples


def main(
    out: Annotated[Path, typer.Option(help="Path and stem of the files to write.")] = Path("models/ignition"),
    widths: Annotated[str, typer.Option(help="Hidden widths, joined by commas.")] = "800,400,200",
    samples: Annotated[int, typer.Option(help="Training and held-out samples together.")] = 80_000,
    epochs: int = 40,
    batch: int = 256,
    seed: int = 0,
    calibration: Annotated[int, typer.Option(help="Unlabeled inputs to write.")] = 4096,
    labelled: Annotated[int, typer.Option(help="Labelled held-out samples to write.")] = 2048,
    held_out: Annotated[float, typer.Option(help="Share of the ignitions kept from training.")] = 0.05,
    mechanism: Annotated[str, typer.Option(help="Cantera mechanism file.")] = "gri30.yaml",
    jobs: Annotated[int, typer.Option(help="Processes that make samples.")] = 2,
    cache: Annotated[Path | None, typer.Option(help="npz to take the samples from, or to write them to.")] = None,
) -> None:
    """Make samples, train, export, and write calibration and labelled data beside the network."""
    data = _cached_samples(cache, mechanism, samples, jobs, seed)
    held = split_by_run(data.run, held_out, seed)
    x_raw, y_raw = transformed(data)
    scaling = fit_scaling(x_raw[~held], y_raw[~held])
    x, y = (x_raw - scaling.x_mean) / scaling.x_std, (y_raw - scaling.y_mean) / scaling.y_std
    model = train(x[~held], y[~held], [int(w) for w in widths.split(",")], epochs, batch, seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    network = out.with_suffix(".onnx")
    export(model, x.shape[1], network)
    rng = np.random.default_rng(seed)
    fit_rows = rng.permutation(np.flatnonzero(~held))[:calibration]
    test_rows = rng.permutation(np.flatnonzero(held))[:labelled]
    inputs, labels = x[test_rows].astype("f4"), y[test_rows].astype("f4")
    np.savez_compressed(out.with_suffix(".npz"), state=x[fit_rows].astype("f4"), group=data.run[fit_rows])
    np.savez_compressed(
        out.with_name(out.name + "_labelled.npz"),
        state=inputs,
        change=labels,
        run=data.run[test_rows],
        **dataclasses.asdict(scaling),
    )
    print(f"{network}: held-out L1 {evaluate(network, inputs, labels):.4f} on {len(inputs)} labelled states")


if __name__ == "__main__":
    typer.run(main)
