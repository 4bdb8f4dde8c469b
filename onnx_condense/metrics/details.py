"""What is told about the answers of two networks beyond the error that is the gate."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from onnx_condense.plan import FloatArray
from onnx_condense.runtime import Array

# Elements of an output that a picture shows.
POINTS = 2000
# From this rank on the classes lie along axis 1, as in maps of classes; below it they come last.
MAPS = 4

Pairs = Sequence[tuple[Array, Array, int]]
"""Answers of the judged and of the dense network, and how many samples they answer, pass by pass."""


@dataclasses.dataclass(frozen=True)
class Details:
    """Of one float output; see `report.data.OutputError`. cloud: (dense, condensed) elements, [points] each."""

    max_abs: float
    cosine: float | None
    agreement: float | None
    cloud: tuple[FloatArray, FloatArray]


def details(pairs: Pairs, shaped: Sequence[tuple[FloatArray, FloatArray]], seed: int = 0) -> Details:
    """Of finite answers of equal shapes, some of them not empty; shaped: the same, sample by sample along axis 0."""
    largest = max(float(np.abs(y - y0).max(initial=0.0)) for y, y0 in shaped)
    return Details(largest, _cosine(shaped), _agreement(pairs), _cloud(pairs, seed))


def _cosine(shaped: Sequence[tuple[FloatArray, FloatArray]]) -> float | None:
    """Between both answers to one sample, mean over samples; None where a sample has a single element."""
    found = []
    for y, y0 in shaped:
        a, b = (v.reshape(len(v), -1) for v in (y, y0))
        if a.shape[1] == 1:
            return None
        scale = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        # Two answers of nothing but zeros agree.
        alike = np.where(scale > 0, (a * b).sum(1) / np.where(scale > 0, scale, 1.0), (a == b).all(1))
        found.append(np.clip(alike, -1.0, 1.0))
    return float(np.concatenate(found).mean())


def class_axis(answer: Array) -> int | None:
    """The axis along which classes lie, or None where there are none to choose from."""
    axis = 1 if answer.ndim >= MAPS else answer.ndim - 1
    return axis if axis >= 1 and answer.shape[axis] >= 2 else None


def _agreement(pairs: Pairs) -> float | None:
    """Share of equal argmax; None where nothing can be told apart by it."""
    equal = total = 0
    for y, y0, _ in pairs:
        axis = class_axis(y)
        if axis is None:
            return None
        same = y.argmax(axis) == y0.argmax(axis)
        equal, total = equal + int(same.sum()), total + same.size
    return equal / total if total else None


def _cloud(pairs: Pairs, seed: int) -> tuple[FloatArray, FloatArray]:
    """Elements drawn evenly from all passes."""
    rng, total = np.random.default_rng(seed), sum(y0.size for _, y0, _ in pairs)
    picked = np.arange(total) if total <= POINTS else np.unique(rng.integers(0, total, POINTS))
    parts, start = [], 0
    for y, y0, _ in pairs:
        at = picked[(picked >= start) & (picked < start + y0.size)] - start
        parts.append([np.asarray(v.reshape(-1)[at], np.float64) for v in (y0, y)])
        start += y0.size
    return np.concatenate([a for a, _ in parts]), np.concatenate([b for _, b in parts])
