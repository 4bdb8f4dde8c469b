"""What a comparison of two networks came to, per output, and how far chance may have moved it."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from onnx_condense.metrics.details import Details
from onnx_condense.plan import FloatArray, IntArray
from onnx_condense.report.data import OutputError, WorstFeature, WorstSample
from onnx_condense.report.figures import Cloud

RESAMPLES = 1000
# More units than this are resampled in bundles of neighbours: the same spread of a mean, at a fixed cost.
UNITS = 1000
# Of what is told of the error of an output.
LEVEL = 0.99
WORST = 5


@dataclasses.dataclass(frozen=True)
class OutputMeasure:
    """One output: squared error and squared spread per sample [n], and what single features say.

    still: error of features that do not vary, relative to their magnitude; 0 within `judge.STILL`.
    power: error = (sum squared / sum spread) ** power; 1 where `squared` is a share already.
    fault: what is wrong with answers that can't be compared, else "".
    details: where they were asked for and the output is float.
    """

    name: str
    squared: FloatArray
    spread: FloatArray
    still: float
    worst: WorstFeature | None
    power: float = 0.5
    fault: str = ""
    details: Details | None = None

    def pooled(self, squared: npt.ArrayLike, spread: npt.ArrayLike) -> FloatArray:
        """Error from summed squares and spreads (scalars or one per resample)."""
        squared, spread = np.asarray(squared), np.asarray(spread)
        # Where nothing varies `still` alone speaks.
        relative = np.where(spread > 0, squared / np.where(spread > 0, spread, 1.0), 0.0) ** self.power
        return np.asarray(np.maximum(relative, self.still))

    @property
    def value(self) -> float:
        """Error over all samples."""
        return float(self.pooled(self.squared.sum(), self.spread.sum()))

    @property
    def by_sample(self) -> FloatArray:
        """The error of each sample [n]: root of its mean squared difference over the spread of the output."""
        mean = self.spread.mean() if self.spread.size else 0.0
        relative = (self.squared / mean if mean > 0 else np.zeros_like(self.squared)) ** self.power
        return np.asarray(relative, np.float64)


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Error of a network on a set of samples.

    groups [n]: samples of one group are resampled together. indices [n]: places of the samples in their source.
    """

    outputs: tuple[OutputMeasure, ...]
    groups: IntArray
    indices: IntArray | None = None

    @property
    def value(self) -> float:
        """The largest output error."""
        return max((o.value for o in self.outputs), default=0.0)

    @property
    def fault(self) -> str:
        """What is wrong with answers that can't be compared, in words that name the output; "" if nothing."""
        return next((f"output {o.name} {o.fault}" for o in self.outputs if o.fault), "")

    def upper(self, level: float, seed: int) -> float:
        """Upper bootstrap bound of `value` over samples (over groups where there are any)."""
        worst = np.zeros(RESAMPLES)
        for errors in self._resampled(seed):
            worst = np.maximum(worst, errors)
        # Interpolation between two infinite values would be NaN.
        return float(np.quantile(worst, level, method="higher"))

    def _resampled(self, seed: int) -> list[FloatArray]:
        """The error of each output on bootstrap resamples, [RESAMPLES] each."""
        _, group = np.unique(self.groups, return_inverse=True)
        count = int(group.max(initial=-1)) + 1
        if count > UNITS:
            group, count = group * UNITS // count, UNITS
        rng = np.random.default_rng(seed)
        weights = rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES).astype(np.float64)
        sums = [[weights @ np.bincount(group, v, count) for v in (o.squared, o.spread)] for o in self.outputs]
        return [o.pooled(*both) for o, both in zip(self.outputs, sums, strict=True)]

    def summary(self, seed: int) -> tuple[OutputError, ...]:
        """Per output, for the report."""
        found = []
        for output, errors in zip(self.outputs, self._resampled(seed), strict=True):
            low = float(np.quantile(errors, (1 - LEVEL) / 2, method="lower"))
            high = float(np.quantile(errors, (1 + LEVEL) / 2, method="higher"))
            more = output.details
            told = OutputError(
                output.name,
                output.value,
                output.worst,
                (low, high),
                max_abs=more.max_abs if more else None,
                cosine=more.cosine if more else None,
                agreement=more.agreement if more else None,
                worst_samples=self._worst_samples(output),
            )
            found.append(told)
        return tuple(found)

    def _worst_samples(self, output: OutputMeasure) -> tuple[WorstSample, ...]:
        """Those that differ most, largest first; equal ones in their order."""
        if self.indices is None:
            return ()
        errors = output.by_sample
        order = np.argsort(-errors, kind="stable")[:WORST].tolist()
        return tuple(WorstSample(int(self.indices[i]), float(errors[i])) for i in order if errors[i] > 0)

    def clouds(self) -> tuple[Cloud, ...]:
        """What pictures of the answers are drawn from, of the outputs that have details."""
        return tuple(Cloud(o.name, *o.details.cloud, o.by_sample) for o in self.outputs if o.details)
