"""What tells how good an ignition surrogate is: labels, species, rollouts in time, and time per state.

For networks of train_ignition.py; bench_rollout.py has the trajectories.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from bench_mlps import Labelled, outputs
from bench_rollout import Floats, Rollout, cells, integrated, mixtures, rolled
from train_ignition import BOX_COX, STEP_S, Scaling, split_by_run

from onnx_condense.proving import latency
from onnx_condense.runtime import Array, Runtime

BATCHES = (1, 256)
TIMED_S = 0.5
# Integrators: as exact as the labels, and as much as engineers commonly ask for (relative, absolute).
TOLERANCES = ((1e-8, 1e-18), (1e-6, 1e-12))
TIMED_STATES, PASSES = 200, 3
JUDGED_SHARE = 0.2
EVERY = 5
# States with a feature this many times as far out as any that is given are nonsense.
FAR = 1.5
MAIN_SPECIES = ("CH4", "O2", "CO2", "H2O", "CO", "H2", "OH", "H", "O", "HO2", "H2O2", "CH3", "CH2O", "HCO", "NO")
SPECIES_HEAD = ("network", "median", "largest", "T")
COLUMNS = (
    *("network", "seed", "parameters", "share, %", "error, verify share", "labelled L1", "over dense"),
    *("worst species", "median species", "ignited", "delay off Cantera, mean %", "largest %", "T off Cantera, RMS K"),
    *("delay off dense, mean %", "largest %", "T off dense, RMS K", "batch 1, us/state", "batch 256, us/state"),
    *("steps", "tuning, s"),
)


@dataclasses.dataclass(frozen=True)
class Files:
    """Unlabeled inputs in three files: what judges, what is condensed on, and what is tuned on besides."""

    verification: Path
    calibration: Path
    more: Path


def parted(states: Path, folder: Path, samples: int, seed: int) -> Files:
    """Set a fifth of the ignitions aside to judge on; of the rest `samples` rows to condense on, the others to tune on.

    Files without groups are split by row. None of the three files is empty as long as there are more than `samples`
    rows to share out.
    """
    with np.load(states) as data:
        x = data["state"]
        group = data["group"] if "group" in data else np.arange(len(x))
    judged = split_by_run(group, JUDGED_SHARE, seed)
    rest = np.flatnonzero(~judged)
    found = Files(*(folder / f"{field.name}.npz" for field in dataclasses.fields(Files)))
    rows = (np.flatnonzero(judged), rest[:samples], rest[samples:] if len(rest) > samples else rest)
    for path, part in zip((found.verification, found.calibration, found.more), rows, strict=True):
        np.savez(path, state=x[part], group=group[part])
    return found


@dataclasses.dataclass(frozen=True)
class Roller:
    """Lets networks run on their own answers, to tune on the states that they get into.

    A network in use sees what it made itself, and drifts to where nobody taught it; the dense network's answers there
    lead back (Ross, Gordon and Bagnell 2011). No label tells what these should have been.

    gas: Cantera's. scaling: of inputs and outputs. count: trajectories. steps: of each. seed: of their starts.
    """

    gas: Any
    scaling: Scaling
    count: int
    steps: int
    seed: int

    def more(self, given: Path, networks: Sequence[Path], out: Path) -> Path:
        """The file `out`: what is given and each EVERY-th state of the networks' trajectories, those far off aside."""
        with np.load(given) as data:
            x, group = [data["state"]], [data["group"]]
        farthest = FAR * np.abs(x[0]).max(axis=0)
        for network in networks:
            told = rolled(network, self.scaling, mixtures(self.gas, self.count, self.seed), self.steps).inputs
            assert told is not None
            states = told[:, ::EVERY].reshape(-1, x[0].shape[1])
            runs = np.repeat(group[-1].max() + 1 + np.arange(self.count), len(states) // self.count)
            near = (np.abs(states) <= farthest).all(axis=1)
            x, group = [*x, states[near]], [*group, runs[near]]
        np.savez(out, state=np.concatenate(x), group=np.concatenate(group))
        return out


@dataclasses.dataclass(frozen=True)
class BySpecies:
    """Mean absolute errors against the labels [1 + S], of T and the transformed mass fractions, z-scored.

    names: T and the species; varies: those whose labels are not all the same.
    """

    names: Sequence[str]
    errors: Floats
    varies: npt.NDArray[np.bool_]

    @staticmethod
    def of(y: Array, labels: Array, species: Sequence[str]) -> BySpecies:
        """From answers and labels [n, 1 + S]."""
        off = np.abs(y.astype(np.float64) - labels).mean(axis=0)
        return BySpecies(("T", *species), off, np.ptp(labels, axis=0) > 0)

    @property
    def worst(self) -> tuple[str, float]:
        """The species that is the farthest off."""
        at = int(np.where(self.varies, self.errors, -1.0)[1:].argmax()) + 1
        return self.names[at], float(self.errors[at])

    @property
    def median(self) -> float:
        """Over the species that vary."""
        return float(np.median(self.errors[1:][self.varies[1:]]))

    def cells(self, species: Sequence[str]) -> list[str]:
        """Median, the worst one, temperature, and each of the named species."""
        name, largest = self.worst
        own = dict(zip(self.names, self.errors, strict=True))
        return [f"{self.median:.4f}", f"{largest:.4f} ({name})", *(f"{own[s]:.4f}" for s in ("T", *species))]


class Trajectories:
    """Ignitions by Cantera and by the dense network, to compare others with; only those that ignite in the dense one.

    Args:
        gas: Cantera's. network: the dense one. scaling: of its inputs and outputs. count: how many starts.
        steps: of STEP_S.
    """

    def __init__(self, gas: Any, network: Path, scaling: Scaling, count: int, steps: int, seed: int) -> None:
        starts = mixtures(gas, count, seed)
        dense = rolled(network, scaling, starts, steps)
        ignites = np.isfinite(dense.delays)
        self._starts, self._scaling, self._steps = starts[ignites], scaling, steps
        self._dense = Rollout(dense.temperature[:, ignites])
        self._cantera = integrated(gas, self._starts, steps)
        self.count = len(starts)

    def cells(self, network: Path) -> list[str]:
        """Ignited of those that Cantera ignites; delays and temperatures off Cantera and off the dense network."""
        if not len(self._starts):
            return ["none of the dense network's", *[""] * 6]
        found = rolled(network, self._scaling, self._starts, self._steps)
        return [*cells(found, self._cantera)[:4], *cells(found, self._dense)[1:4]]


@dataclasses.dataclass(frozen=True)
class Referee:
    """Measures networks on what they were not made with."""

    labelled: Labelled
    species: Sequence[str]
    trajectories: Trajectories | None
    threads: int

    def by_species(self, network: Path) -> BySpecies:
        """Errors against the labels."""
        return BySpecies.of(outputs(network, "state", self.labelled.x)[0], self.labelled.labels, self.species)

    def cells(self, network: Path) -> list[str]:
        """Labelled L1, its ratio to the dense network's, species, rollouts, and microseconds per state."""
        y = outputs(network, "state", self.labelled.x)[0]
        found, l1 = BySpecies.of(y, self.labelled.labels, self.species), self.labelled.l1(y)
        name, worst = found.worst
        told = [f"{l1:.4f}", f"{l1 / self.labelled.l1(self.labelled.dense):.3f}"]
        told += [f"{worst:.4f} ({name})", f"{found.median:.4f}"]
        told += self.trajectories.cells(network) if self.trajectories else [""] * 7
        return [*told, *(f"{state_us(network, self.labelled.x[:n], self.threads):.2f}" for n in BATCHES)]


def state_us(network: Path, x: Array, threads: int) -> float:
    """Microseconds that a network takes for one of the rows x [n, features], fed together."""
    once = latency.Candidate(network, {"state": x}, Runtime(threads=threads)).fresh()
    return 1e6 * latency.typical(once, time.perf_counter, TIMED_S) / len(x)


def physical(x: Array, scaling: Scaling) -> Floats:
    """States [n, 2 + S] (K, Pa, mass fractions) of network inputs."""
    raw = x * scaling.x_std + scaling.x_mean
    fractions = np.maximum(BOX_COX * raw[:, 2:] + 1.0, 0.0) ** (1.0 / BOX_COX)
    return np.concatenate([raw[:, :2], fractions / fractions.sum(axis=1, keepdims=True)], axis=1)


def cantera_us(gas: Any, states: Floats, tolerances: tuple[float, float]) -> float:
    """Microseconds that Cantera takes to move one state by STEP_S, each on its own as in operator splitting.

    One integrator is used for all; it starts anew with each state, as its neighbour in time is another cell's. The
    fastest of some passes over all states counts.
    """
    import cantera as ct

    gas.TPY = states[0, 0], states[0, 1], states[0, 2:]
    reactor = ct.IdealGasConstPressureReactor(gas, clone=False)
    net = ct.ReactorNet([reactor])
    net.rtol, net.atol = tolerances
    passes = []
    for _ in range(PASSES):
        started = time.perf_counter()
        for state in states:
            gas.TPY = state[0], state[1], state[2:]
            reactor.syncState()
            net.initial_time = 0.0
            net.reinitialize()
            net.advance(STEP_S)
        passes.append(time.perf_counter() - started)
    return 1e6 * min(passes) / len(states)


def cantera_row(gas: Any, x: Array, scaling: Scaling, tolerances: tuple[float, float]) -> list[str]:
    """The cells of COLUMNS that an integrator has."""
    us = cantera_us(gas, physical(x[:TIMED_STATES], scaling), tolerances)
    told = {"network": f"Cantera, rtol {tolerances[0]:g}", "batch 1, us/state": f"{us:.0f}"}
    return [told.get(column, "") for column in COLUMNS]


def known(species: Sequence[str]) -> list[str]:
    """Of MAIN_SPECIES those that a mechanism has."""
    return [name for name in MAIN_SPECIES if name in species]
