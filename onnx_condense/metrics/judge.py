"""The error of one network against another, per output, with its sampling uncertainty.

`relative` (see docs/design.md): sqrt(sum (y - y0)^2 / sum (y0 - mean y0)^2), y0 the dense network's output, the
mean taken per output feature; the largest over the outputs counts.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from onnx_condense.data.samples import Rows, Samples
from onnx_condense.errors import CalibrationError, ModelError
from onnx_condense.metrics.details import Pairs, details
from onnx_condense.metrics.measurement import Measurement, OutputMeasure
from onnx_condense.plan import FloatArray, IntArray
from onnx_condense.report.data import WorstFeature
from onnx_condense.runtime import Array, Runtime, Session, run

# A feature whose spread is below this share of its magnitude does not vary.
STILL = 1e-6
# Features below this share of the largest spread are left out of the worst-feature search.
SMALL = 0.01

Sizes = Sequence[int | str | None]
Passes = Sequence[tuple[list[Array], IntArray]]
"""All outputs and the samples that they answer, pass by pass."""


class Judge:
    """Compares networks with the dense one on fixed samples; the dense outputs are computed once.

    Args:
        dense: what the others are compared with, weights inside or as a file.
        samples: the source.
        indices: which of its samples.
        runtime: how to run.
        rows: samples per pass at most.
        shapes: what is known of the outputs' shapes beyond what the network declares, by name.
        optimize: whether ONNX Runtime may optimize the graphs.
        detailed: whether measurements tell more than the error; see `details`.

    Raises:
        CalibrationError: the dense network itself answers with NaN or infinity.
        ModelError: it does not run, or an output is no tensor.
    """

    def __init__(
        self,
        dense: onnx.ModelProto | Path,
        samples: Samples,
        indices: IntArray,
        runtime: Runtime,
        rows: int,
        *,
        shapes: Mapping[str, Sizes] | None = None,
        optimize: bool = True,
        detailed: bool = False,
    ) -> None:
        self._samples, self._indices, self._runtime = samples, indices, runtime
        self._rows, self._shapes, self._optimize = rows, shapes or {}, optimize
        self._detailed = detailed
        session = runtime.session(dense, optimize=optimize)
        self._outputs = session.get_outputs()
        self._block = (samples.block or 1) if isinstance(samples, Rows) else 0
        for output in self._outputs:
            if not output.type.startswith("tensor"):
                text = f"output {output.name} is a {output.type}: only networks with tensor outputs are supported"
                raise ModelError("output-type", text, output.name)
        self._dense = self._passes(session)
        for i, output in enumerate(self._outputs):
            bad = [int(k) for y, at in self._dense for k in _not_finite(y[i], at)]
            if bad:
                raise CalibrationError(
                    "calibration-output",
                    f"output {output.name} of the network is NaN or infinite on {_samples(bad)}: check the inputs",
                    output.name,
                )

    @property
    def empty(self) -> bool:
        """Whether some output has no elements on any of the samples, so that nothing is judged by it."""
        return any(not any(y[i].size for y, _ in self._dense) for i in range(len(self._outputs)))

    def _passes(self, session: Session) -> Passes:
        return [(run(session, b.feed), b.samples) for b in self._samples.batches(self._indices, self._rows)]

    def measure(self, model: onnx.ModelProto | Path) -> Measurement:
        """Error of a network on the judged samples; infinite where it answers with NaN or infinity."""
        return self._compared(self._passes(self._runtime.session(model, optimize=self._optimize)))

    def beside(self, other: Judge) -> Measurement:
        """How far the dense network's answers to another judge of the same samples lie from those to this one."""
        return self._compared(other._dense)

    def _compared(self, found: Passes) -> Measurement:
        outputs = []
        for i, output in enumerate(self._outputs):
            pairs = [(y[i], y0[i], len(s)) for (y, s), (y0, _) in zip(found, self._dense, strict=True)]
            shapes = (output.shape, self._shapes.get(output.name, ()))
            outputs.append(_measure(output.name, pairs, shapes, self._block, detailed=self._detailed))
        order = np.concatenate([s for _, s in self._dense])
        return Measurement(tuple(outputs), self._samples.groups[order], order)


def _not_finite(value: Array, samples: IntArray) -> IntArray:
    """Which of the samples of one pass a float answer is NaN or infinite on."""
    if value.dtype.kind != "f" or (finite := np.isfinite(value)).all():
        return samples[:0]
    by_row = value.ndim > 0 and len(value) == len(samples)
    return samples[~finite.reshape(len(value), -1).all(1)] if by_row else samples


def _samples(indices: Sequence[int]) -> str:
    """Their places in words."""
    return f"sample {indices[0]}" + (f" and {len(indices) - 1} more" if len(indices) > 1 else "")


def _measure(name: str, pairs: Pairs, shapes: Sequence[Sizes], block: int, *, detailed: bool = False) -> OutputMeasure:
    """One output from (found, dense, samples) per pass; shapes and block as for `_Layout`."""
    if pairs[0][1].dtype.kind != "f":
        return _changed(name, pairs)
    count = sum(n for _, _, n in pairs)
    shaped_alike = all(y.shape == y0.shape for y, y0, _ in pairs)
    if not shaped_alike or not all(np.isfinite(y).all() for y, _, _ in pairs):
        fault = "is NaN or infinite" if shaped_alike else "has another shape"
        return OutputMeasure(name, np.zeros(count), np.ones(count), np.inf, None, fault=fault)
    if not any(y0.size for _, y0, _ in pairs):
        return OutputMeasure(name, np.zeros(count), np.zeros(count), 0.0, None)
    layout = _Layout.of(shapes, [(y0, n) for _, y0, n in pairs], block)
    shaped = [(layout.featured(y, n), layout.featured(y0, n)) for y, y0, n in pairs]
    # Rows of one feature: [samples, positions, features]; the mean is per feature.
    total = sum(y0.shape[0] * y0.shape[1] for _, y0 in shaped)
    mean = sum(y0.sum((0, 1)) for _, y0 in shaped) / total
    counts = [n for _, _, n in pairs]
    squared = [_by_sample(((y - y0) ** 2).sum(1), n) for (y, y0), n in zip(shaped, counts, strict=True)]
    spread = [_by_sample(((y0 - mean) ** 2).sum(1), n) for (_, y0), n in zip(shaped, counts, strict=True)]
    error, own = np.concatenate(squared), np.concatenate(spread)
    magnitude = np.sqrt(sum((y0**2).sum((0, 1)) for _, y0 in shaped) / total)
    varies = np.sqrt(own.sum(0) / total) > STILL * magnitude
    still = _still_error(error.sum(0) / total, magnitude, varies)
    worst = _worst(error.sum(0), own.sum(0), varies)
    more = details(pairs, shaped) if detailed else None
    return OutputMeasure(name, error[:, varies].sum(1), own[:, varies].sum(1), still, worst, details=more)


@dataclasses.dataclass(frozen=True)
class _Layout:
    """Which axes of one output are features.

    block: rows per sample along axis 0, or 0 where a pass is one sample as a whole.
    fixed: feature axes: those of a size that is known beforehand and really constant, the sample axis aside.
    """

    block: int
    fixed: tuple[int, ...]

    @classmethod
    def of(cls, shapes: Sequence[Sizes], dense: Sequence[tuple[Array, int]], block: int) -> _Layout:
        """From shapes that are known (declared, inferred; empty where not) and the dense outputs with their samples."""
        rank = dense[0][0].ndim
        # Exports with dynamic axes tend to declare every size a symbol, also the number of features.
        told = [s for s in shapes if len(s) == rank]
        by_row = rank > 0 and block > 0 and all(len(y0) == n * block for y0, n in dense)
        first = 1 if by_row else 0
        sizes = [{y0.shape[axis] for y0, _ in dense} for axis in range(rank)]
        fixed = (a for a in range(first, rank) if len(sizes[a]) == 1 and any(isinstance(s[a], int) for s in told))
        return cls(block if by_row else 0, tuple(fixed))

    def featured(self, value: Array, samples: int) -> FloatArray:
        """[samples, positions, features] as float64."""
        wide = np.asarray(value, np.float64)
        features = math.prod(wide.shape[a] for a in self.fixed)
        loose = [a for a in range(wide.ndim) if a not in self.fixed]
        rows = samples if self.block else 1
        return wide.transpose([*loose, *self.fixed]).reshape(rows, wide.size // max(rows * features, 1), features)


def _by_sample(sums: FloatArray, samples: int) -> FloatArray:
    """[samples, features]: where a pass has one row for all of them (it gives out a weight) each gets its share."""
    return sums if len(sums) == samples else np.repeat(sums / samples, samples, axis=0)


def _changed(name: str, pairs: Pairs) -> OutputMeasure:
    """Integers, bools and strings: share of changed elements."""
    shares = []
    for y, y0, n in pairs:
        if y.shape != y0.shape:
            shares.append(np.ones(n))
            continue
        differs = np.asarray(y != y0, np.float64)
        by_sample = differs.reshape(n, -1).mean(1) if differs.size % n == 0 else np.full(n, differs.mean())
        shares.append(by_sample if differs.size else np.zeros(n))
    changed = np.concatenate(shares)
    return OutputMeasure(name, changed, np.ones(len(changed)), 0.0, None, power=1.0)


def _still_error(error: FloatArray, magnitude: FloatArray, varies: npt.NDArray[np.bool_]) -> float:
    if varies.all():
        return 0.0
    scale = np.where(magnitude > 0, magnitude, magnitude.max(initial=0.0) or 1.0)
    relative = float((np.sqrt(error) / scale)[~varies].max())
    return relative if relative > STILL else 0.0


def _worst(error: FloatArray, own: FloatArray, varies: npt.NDArray[np.bool_]) -> WorstFeature | None:
    judged = varies & (np.sqrt(own) >= SMALL * np.sqrt(own.max(initial=0.0)))
    if not judged.any():
        return None
    relative = np.where(judged, np.sqrt(error / np.where(judged, own, 1.0)), -1.0)
    index = int(relative.argmax())
    return WorstFeature(index, float(relative[index]))
