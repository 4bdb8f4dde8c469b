"""More inputs out of those that are there: between near ones, where nobody but the teacher knows the answer.

A few thousand samples are soon learned by heart. A point somewhere between a sample and one that is near it is as
likely an input as they are, and the dense network answers it. (Mixing any two, as Zhang et al. (2018) do, leaves the
inputs that occur where these lie on thin sheets, such as states of a reaction.)
"""

from __future__ import annotations

import dataclasses

import numpy as np

from onnx_condense.data import Samples
from onnx_condense.data.samples import Rows
from onnx_condense.plan import FloatArray, IntArray
from onnx_condense.runtime import Array

# Inputs made for each one that is there, up to so many in all, and up to so many bytes.
EACH, MOST, MOST_BYTES = 4, 32768, 2**29
# The near one is the nearest of so many that are drawn.
DRAWN = 64
# Features that are compared, about.
COMPARED = 512
# Samples that are compared at a time, in elements of the inputs.
BAND = 2**22


def mixed(samples: Samples, rows: IntArray, seed: int) -> Samples | None:
    """Inputs between near ones of the given rows; None where inputs are no arrays of floats, or one alone."""
    if not isinstance(samples, Rows) or samples.block is not None or len(rows) < 2:
        return None
    if not all(array.dtype.kind == "f" for array in samples.arrays.values()):
        return None
    size = sum(array.nbytes // len(array) for array in samples.arrays.values())
    count = min(EACH * len(rows), max(MOST - len(rows), 0), MOST_BYTES // max(size, 1))
    if not count:
        return None
    rng = np.random.default_rng(seed)
    ones = rows[np.arange(count) % len(rows)]
    others, part = rows[_near(samples, ones, rows, rng)], rng.random(count)
    arrays = {name: _between(array, ones, others, part) for name, array in samples.arrays.items()}
    return dataclasses.replace(samples, groups=np.arange(count), notes=(), arrays=arrays)


def _between(array: Array, ones: IntArray, others: IntArray, part: FloatArray) -> Array:
    shaped = part.reshape(-1, *(1,) * (array.ndim - 1)).astype(array.dtype)
    start = array[ones]
    start += (array[others] - start) * shaped
    return start


def _near(samples: Rows, ones: IntArray, rows: IntArray, rng: np.random.Generator) -> IntArray:
    """For each of some samples the position in `rows` of one that is near it, features over their spread."""
    flat = np.concatenate([a[rows].reshape(len(rows), -1) for a in samples.arrays.values()], axis=1)
    # Every so many features tell as well who is near, in a fraction of the time.
    flat = flat[:, :: max(1, flat.shape[1] // COMPARED)].astype(np.float32)
    spread = flat.std(axis=0)
    flat /= np.where(spread > 0, spread, 1.0)
    place = {int(row): at for at, row in enumerate(rows)}
    own = np.array([place[int(row)] for row in ones])
    drawn = rng.integers(0, len(rows) - 1, (len(ones), min(DRAWN, len(rows) - 1)))
    # Any but itself.
    drawn += drawn >= own[:, None]
    found = np.empty(len(ones), np.int64)
    step = max(1, BAND // (drawn.shape[1] * flat.shape[1]))
    for start in range(0, len(ones), step):
        band = slice(start, start + step)
        apart = ((flat[own[band], None] - flat[drawn[band]]) ** 2).sum(axis=2)
        found[band] = np.take_along_axis(drawn[band], apart.argmin(axis=1)[:, None], axis=1)[:, 0]
    return found
