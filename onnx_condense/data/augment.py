"""Variants of pictures for the fit: what the samples show is not all that the network will see.

A channel that is silent on a few photos looks free, and the network forgets what it was for. Variants wake more of the
channels: other light and colours, turned and shrunk pictures, negatives, and noise with the spectrum of photos.
They only join what readers are fitted on; search and verification stay with the samples as they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar

import numpy as np

from onnx_condense.data.samples import Batch, Rows, Samples
from onnx_condense.errors import UsageError
from onnx_condense.plan import FloatArray, IntArray
from onnx_condense.runtime import Array

# Smaller arrays with as many axes are no pictures.
LEAST_SIDE = 8
COLOURS = (1, 3, 4)
# Brightness: a factor, and a shift of each channel, of pictures between 0 and 1.
FACTOR, SHIFT = (0.6, 1.4), 0.15
# Amplitudes of noise fall with frequency to this power, as they do in photos.
PINK = (0.7, 1.3)
CONTRAST = 0.25


@dataclasses.dataclass(frozen=True, eq=False)
class Augmented(Samples):
    """Sliced samples and variants of them: variant j of sample i has the index j n + i, the sample itself j = 0."""

    sliced: ClassVar[bool] = True
    source: Rows
    pictures: Mapping[str, _Pictures]
    seed: int

    def batches(self, indices: IntArray, rows: int = 1024) -> Iterator[Batch]:
        """Like the source, with variants made on the way."""
        count = len(self.source)
        step = rows if self.source.block is None else 1
        for start in range(0, len(indices), step):
            chunk = np.asarray(indices[start : start + step], np.int64)
            (batch,) = self.source.batches(chunk % count, step)
            feed = dict(batch.feed)
            for name, kind in self.pictures.items():
                feed[name] = kind.varied(feed[name], np.repeat(chunk, self.source.block or 1), count, self.seed)
            yield Batch(feed, chunk)


@dataclasses.dataclass(frozen=True, eq=False)
class _Pictures:
    """One input of pictures: its channel axis (of one picture), and the range of each channel [C, 1, 1]."""

    axis: int
    low: FloatArray
    high: FloatArray

    def varied(self, pictures: Array, indices: IntArray, count: int, seed: int) -> Array:
        """The pictures, each as its index says."""
        result = pictures.copy()
        for at, index in enumerate(indices.tolist()):
            if index >= count:
                result[at] = self._variant(pictures[at], np.random.default_rng((seed, index)))
        return result

    def _variant(self, picture: Array, rng: np.random.Generator) -> Array:
        span = np.where(self.high > self.low, self.high - self.low, 1.0)
        plain = (np.moveaxis(picture.astype(np.float64), self.axis, 0) - self.low) / span
        new = _lit(VARIANTS[rng.integers(len(VARIANTS))](plain, rng), rng)
        new = np.moveaxis(new * span + self.low, 0, self.axis)
        return (np.rint(new) if picture.dtype.kind in "iu" else new).astype(picture.dtype)


def _lit(picture: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Another light, and perhaps mirrored."""
    if rng.random() < 0.5:
        picture = picture[:, :, ::-1]
    return np.asarray(np.clip(picture * rng.uniform(*FACTOR) + rng.uniform(-SHIFT, SHIFT, (len(picture), 1, 1)), 0, 1))


def _recoloured(picture: FloatArray, rng: np.random.Generator) -> FloatArray:
    return picture[rng.permutation(len(picture))]


def _turned(picture: FloatArray, rng: np.random.Generator) -> FloatArray:
    """By quarters; a picture that is no square only upside down."""
    square = picture.shape[1] == picture.shape[2]
    return np.rot90(picture, int(rng.integers(1, 4)) if square else 2, (1, 2))


def _negative(picture: FloatArray, _: np.random.Generator) -> FloatArray:
    return 1.0 - picture


def _shrunk(picture: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Four of half the size, each turned or recoloured."""
    height, width = picture.shape[1] // 2, picture.shape[2] // 2
    small = picture[:, : 2 * height : 2, : 2 * width : 2]
    result = picture.copy()
    for top in (0, height):
        for left in (0, width):
            piece = _recoloured(small, rng) if rng.random() < 0.5 else _turned(small, rng)
            result[:, top : top + height, left : left + width] = piece
    return result


def _noise(picture: FloatArray, rng: np.random.Generator) -> FloatArray:
    return np.asarray(np.clip(0.5 + CONTRAST * photo_noise(picture.shape, rng.uniform(*PINK), rng), 0, 1))


def photo_noise(shape: tuple[int, ...], fall: float, rng: np.random.Generator) -> FloatArray:
    """Noise [C, H, W] with the mixed colours of photos, whose amplitudes fall with frequency to the power `fall`.

    Of spread 1. In photos `fall` lies in PINK.
    """
    channels, height, width = shape
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    waves = np.fft.rfft2(rng.standard_normal(shape)) / np.maximum(frequency, 1 / max(height, width)) ** fall
    mixed = np.tensordot(rng.standard_normal((channels, channels)), np.fft.irfft2(waves, s=(height, width)), 1)
    return np.asarray(mixed / mixed.std())


VARIANTS: tuple[Callable[[FloatArray, np.random.Generator], FloatArray], ...] = (
    _recoloured,
    _turned,
    _negative,
    _shrunk,
    _noise,
)


def augmented(samples: Samples, times: int, seed: int) -> Augmented:
    """The samples and so many variants of each.

    Raises:
        UsageError: they are no arrays of pictures: [N, C, H, W] or [N, H, W, C] with 1, 3 or 4 channels.
    """
    found = {}
    if isinstance(samples, Rows):
        found = {name: kind for name, a in samples.arrays.items() if (kind := _pictures(a)) is not None}
    if not isinstance(samples, Rows) or not found:
        text = "--augment: no input holds pictures ([N, C, H, W] or [N, H, W, C] with 1, 3 or 4 channels) as arrays"
        raise UsageError("augment", text)
    return Augmented(np.tile(samples.groups, times + 1), samples.notes, samples, found, seed)


def variants_of(indices: IntArray, count: int, times: int) -> IntArray:
    """Indices of samples, then those of their variants; count: samples in all."""
    return np.concatenate([indices + j * count for j in range(times + 1)])


def _pictures(array: Array) -> _Pictures | None:
    """How pictures lie in an array, or None."""
    if array.ndim != 4 or array.dtype.kind == "b":
        return None
    axis = picture_axis(array.shape)
    if axis is None:
        return None
    others = tuple(a for a in range(4) if a != axis)
    low, high = (np.asarray(f(array, axis=others), np.float64)[:, None, None] for f in (np.min, np.max))
    return _Pictures(axis - 1, low, high)


def picture_axis(shape: tuple[int, ...]) -> int | None:
    """The axis of the colours where an array of this shape may hold pictures, else None."""
    return next((axis for axis in (1, 3) if len(shape) == 4 and _is_picture(shape, axis)), None)


def _is_picture(shape: tuple[int, ...], axis: int) -> bool:
    return shape[axis] in COLOURS and min(n for a, n in enumerate(shape) if a not in (0, axis)) >= LEAST_SIDE
