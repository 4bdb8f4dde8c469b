"""Condensed ignition surrogates in time: roll the network out from unburnt mixtures and compare ignition delays.

One-step errors say little about a network that is applied to its own answers thousands of times. Takes what
train_ignition.py writes (the network, its calibration inputs, and the scaling in its labelled file). Every trajectory
starts at 1800 K or above, in methane and air of random pressure and equivalence ratio; Cantera integrates the same
starts. The ignition delay is the time at which the temperature has risen by 400 K, interpolated between steps of 1 us.

    python tools/bench_rollout.py --network full.onnx --calibration full.npz --labelled full_labelled.npz
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from bench_common import Job, condense_apart, header, row
from train_ignition import BOX_COX, STEP_S, Scaling, box_cox

from onnx_condense.runtime import Array, Runtime, run

Floats = npt.NDArray[np.float64]

HOTTEST, COLDEST = 2000.0, 1800.0
# A mixture has ignited once it is warmer by so many kelvin than at the start.
RISE = 400.0
COLUMNS = (
    "network",
    "parameters kept, %",
    "error, verify share",
    "ignited",
    "delay off, mean %",
    "delay off, largest %",
    "temperature off, RMS K",
    "end temperature off, largest K",
)


@dataclasses.dataclass(frozen=True)
class Rollout:
    """Temperatures [steps + 1, n] in K over time; inputs: what the network was fed with [n, steps, features]."""

    temperature: Floats
    inputs: Array | None = None

    @property
    def delays(self) -> Floats:
        """When each trajectory has ignited [n] in s; NaN where it has not."""
        warm = self.temperature >= self.temperature[0] + RISE
        after = warm.argmax(axis=0)
        column = np.arange(warm.shape[1])
        low, high = self.temperature[after - 1, column], self.temperature[after, column]
        part = (self.temperature[0] + RISE - low) / np.where(high > low, high - low, 1.0)
        return np.where(warm.any(axis=0), (after - 1 + part) * STEP_S, np.nan)


def mixtures(gas: Any, count: int, seed: int) -> Floats:
    """Unburnt states [count, 2 + S]: T in K, p in Pa, mass fractions."""
    import cantera as ct

    rng, states = np.random.default_rng(seed), []
    for _ in range(count):
        gas.set_equivalence_ratio(rng.uniform(0.5, 2.0), "CH4", "O2:1,N2:3.76")
        states.append(np.r_[rng.uniform(COLDEST, HOTTEST), ct.one_atm * rng.uniform(0.9, 1.1), gas.Y])
    return np.array(states)


def integrated(gas: Any, starts: Floats, steps: int) -> Rollout:
    """What Cantera says."""
    import cantera as ct

    columns = []
    for start in starts:
        gas.TPY = start[0], start[1], start[2:]
        reactor = ct.IdealGasConstPressureReactor(gas, clone=False)
        net = ct.ReactorNet([reactor])
        net.rtol, net.atol = 1e-8, 1e-18
        temperatures = [reactor.T]
        for k in range(steps):
            net.advance((k + 1) * STEP_S)
            temperatures.append(reactor.T)
        columns.append(temperatures)
    return Rollout(np.array(columns).T)


def rolled(network: Path, scaling: Scaling, starts: Floats, steps: int) -> Rollout:
    """What the network says, fed with its own answers: mass fractions clipped and normalized after each step."""
    session = Runtime(threads=1).session(network)
    name = session.get_inputs()[0].name
    temperature, pressure, fractions = starts[:, :1], starts[:, 1:2], starts[:, 2:]
    temperatures, inputs = [temperature], []
    for _ in range(steps):
        x = (np.concatenate([temperature, pressure, box_cox(fractions)], axis=1) - scaling.x_mean) / scaling.x_std
        inputs.append(x.astype(np.float32))
        change = run(session, {name: inputs[-1]})[0].astype(np.float64) * scaling.y_std + scaling.y_mean
        temperature = temperature + change[:, :1]
        moved = np.maximum(BOX_COX * (box_cox(fractions) + change[:, 1:]) + 1.0, 0.0) ** (1.0 / BOX_COX)
        fractions = moved / moved.sum(axis=1, keepdims=True)
        temperatures.append(temperature)
    return Rollout(np.concatenate(temperatures, axis=1).T, np.stack(inputs, axis=1))


def calibrate(given: Path, more: Rollout | None, every: int, out: Path) -> None:
    """Write the calibration: what is given, and each `every`-th state of rollouts, one group per trajectory."""
    with np.load(given) as data:
        x = data["state"]
        group = data["group"] if "group" in data else np.arange(len(x))
    if more is not None and more.inputs is not None:
        states = more.inputs[:, ::every]
        runs = np.repeat(group.max() + 1 + np.arange(len(states)), states.shape[1])
        x, group = np.concatenate([x, states.reshape(-1, x.shape[1])]), np.concatenate([group, runs])
    np.savez(out, state=x, group=group)


def cells(found: Rollout, reference: Rollout) -> list[str]:
    """How far a rollout is from another, on trajectories that ignite in the other."""
    ignites = np.isfinite(reference.delays)
    both = ignites & np.isfinite(found.delays)
    off = 100 * np.abs(found.delays[both] / reference.delays[both] - 1.0)
    apart = (found.temperature - reference.temperature)[:, ignites]
    return [
        f"{both.sum()} of {ignites.sum()}",
        *(f"{v:.2f}" for v in ((off.mean(), off.max()) if both.any() else (np.nan, np.nan))),
        f"{np.sqrt((apart**2).mean()):.1f}",
        f"{np.abs(apart[-1]).max():.1f}",
    ]


def main(
    network: Annotated[Path, typer.Option(exists=True, dir_okay=False)],
    calibration: Annotated[Path, typer.Option(exists=True, dir_okay=False)],
    labelled: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="Holds the scaling.")],
    tolerances: Annotated[str, typer.Option(help="Joined by commas.")] = "0.005,0.01,0.02",
    keeps: Annotated[str, typer.Option(help="Shares of the parameters, joined by commas.")] = "0.07",
    starts: Annotated[int, typer.Option(help="Trajectories.")] = 48,
    calibrated: Annotated[int, typer.Option(help="Other trajectories of the dense network to calibrate on too.")] = 0,
    every: Annotated[int, typer.Option(help="Of these each so many-th state.")] = 5,
    steps: Annotated[int, typer.Option(help="Of 1e-6 s.")] = 600,
    mechanism: str = "gri30.yaml",
    threads: int = 0,
    seed: int = 0,
) -> None:
    """Condense at several goals and roll each result out beside the dense network."""
    import cantera as ct

    gas = ct.Solution(mechanism, transport_model=None)
    with np.load(labelled) as data:
        scaling = Scaling(*(data[f.name] for f in dataclasses.fields(Scaling)))
    begin = mixtures(gas, starts, seed)
    dense = rolled(network, scaling, begin, steps)
    print(header(*COLUMNS), flush=True)
    print(row("dense, against Cantera", "100", "", *cells(dense, integrated(gas, begin, steps))), flush=True)
    goals: list[tuple[float | None, float | None]] = [(float(t), None) for t in tolerances.split(",") if t]
    goals += [(None, float(k)) for k in keeps.split(",") if k]
    more = rolled(network, scaling, mixtures(gas, calibrated, seed + 1), steps) if calibrated else None
    with tempfile.TemporaryDirectory() as scratch:
        states = Path(scratch, "states.npz")
        calibrate(calibration, more, every, states)
        for tolerance, keep in goals:
            job = Job(network, states, Path(scratch, "slim.onnx"), tolerance, keep, threads=threads, seed=seed)
            outcome = condense_apart(job)
            label = f"keep {keep:g}" if tolerance is None else f"tolerance {tolerance:g}"
            found = [outcome.failed] if outcome.failed else [f"{100 * outcome.kept:.2f}", f"{outcome.error:.4f}"]
            found += [] if outcome.failed else cells(rolled(job.out, scaling, begin, steps), dense)
            print(row(label, *found, *[""] * (len(COLUMNS) - 1 - len(found))), flush=True)


if __name__ == "__main__":
    typer.run(main)
