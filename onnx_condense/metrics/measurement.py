"""What a comparison of two networks came to, per output, and how far chance may have moved it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from onnx_condense.metrics.details import Details
from onnx_condense.metrics.scores import Largest, Score
from onnx_condense.options.yardstick import AGREEMENT
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

    These make up the relative error. Where `score` is given that counts instead, and they are for exact steps.

    still: error of features that do not vary, relative to their magnitude; 0 within `judge.STILL`.
    power: error = (sum squared / sum spread) ** power; 1 where `squared` is a share already.
    fault: what is wrong with answers that can't be compared, else "".
    details: where they were asked for and the output is float.
    metric: what counts here. tolerance: what the error may be; None where it is no gate. scale: what brings it to the
    scale on which all outputs compare. small: how many features no metric judges by themselves.
    """

    name: str
    squared: FloatArray
    spread: FloatArray
    still: float
    worst: WorstFeature | None
    power: float = 0.5
    fault: str = ""
    details: Details | None = None
    score: Score | None = None
    metric: str = "relative"
    tolerance: float | None = None
    scale: float = 1.0
    small: int = 0

    def pooled(self, squared: npt.ArrayLike, spread: npt.ArrayLike) -> FloatArray:
        """Error from summed squares and spreads (scalars or one per resample)."""
        squared, spread = np.asarray(squared), np.asarray(spread)
        # Where nothing varies `still` alone speaks.
        relative = np.where(spread > 0, squared / np.where(spread > 0, spread, 1.0), 0.0) ** self.power
        return np.asarray(np.maximum(relative, self.still))

    @property
    def value(self) -> float:
        """Error over all samples, in the output's own unit."""
        if self.score is not None:
            return self.score.value
        return float(self.pooled(self.squared.sum(), self.spread.sum()))

    @property
    def by_sample(self) -> FloatArray:
        """The error of each sample [n]: root of its mean squared difference over the spread of the output."""
        if self.score is not None:
            return self.score.by_sample
        mean = self.spread.mean() if self.spread.size else 0.0
        relative = (self.squared / mean if mean > 0 else np.zeros_like(self.squared)) ** self.power
        return np.asarray(relative, np.float64)

    def resampled(self, weights: FloatArray, group: IntArray) -> FloatArray:
        """Its error on resamples; see `scores.Score`."""
        if self.score is not None:
            return self.score.resampled(weights, group)
        count = weights.shape[1]
        return self.pooled(*(weights @ np.bincount(group, v, count) for v in (self.squared, self.spread)))

    @property
    def relative(self) -> OutputMeasure:
        """The same by its relative error, whatever the metric."""
        return dataclasses.replace(self, score=None, metric="relative", tolerance=None, scale=1.0)


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Error of a network on a set of samples.

    groups [n]: samples of one group are resampled together. indices [n]: places of the samples in their source.
    overall: where a metric judges all outputs together; then nothing else counts.
    """

    outputs: tuple[OutputMeasure, ...]
    groups: IntArray
    indices: IntArray | None = None
    overall: OutputMeasure | None = None

    @property
    def value(self) -> float:
        """The largest output error, scaled so that all outputs may be as large as one reference."""
        errors = [o.value * o.scale for o in self.counting]
        # Squares may overflow to infinity over infinity; `max` alone passes over what that gives.
        return math.inf if any(math.isnan(e) for e in errors) else max(errors, default=0.0)

    @property
    def counting(self) -> tuple[OutputMeasure, ...]:
        """What is held against a tolerance."""
        return self.outputs if self.overall is None else (self.overall,)

    @property
    def nearest(self) -> OutputMeasure | None:
        """What comes nearest to its tolerance, or exceeds it most."""
        return max(self.counting, key=lambda o: o.value * o.scale, default=None)

    @property
    def relative(self) -> Measurement:
        """The same by relative errors, whatever the metric: what exact steps are judged by."""
        return Measurement(tuple(o.relative for o in self.outputs), self.groups, self.indices)

    @property
    def fault(self) -> str:
        """What is wrong with answers that can't be compared, in words that name the output; "" if nothing."""
        outputs = (f"output {o.name} {o.fault}" for o in self.outputs if o.fault)
        return next(outputs, self.overall.fault if self.overall else "")

    def upper(self, level: float, seed: int) -> float:
        """Upper bootstrap bound of `value` over samples (over groups where there are any)."""
        worst = np.zeros(RESAMPLES)
        for output, errors in zip(self.counting, self._resampled(seed, self.counting), strict=True):
            worst = np.maximum(worst, errors * output.scale)
        # Interpolation between two infinite values would be NaN.
        return float(np.quantile(worst, level, method="higher"))

    def cautious(self, level: float, seed: int) -> float:
        """The same where no flip was seen, of which resamples know nothing."""
        return max(self.upper(level, seed), *(self._unseen(o, 1 - level) * o.scale for o in self.counting), 0.0)

    def _unseen(self, output: OutputMeasure, chance: float) -> float:
        """The share of flips that stays unseen with this chance, where none was seen; else 0."""
        if output.metric != AGREEMENT or output.value > 0.0:
            return 0.0
        return 1.0 - float(chance ** (1 / max(len(np.unique(self.groups)), 1)))

    def _resampled(self, seed: int, outputs: Sequence[OutputMeasure]) -> list[FloatArray]:
        """The errors of outputs on bootstrap resamples, [RESAMPLES] each."""
        _, group = np.unique(self.groups, return_inverse=True)
        count = int(group.max(initial=-1)) + 1
        if count > UNITS:
            group, count = group * UNITS // count, UNITS
        rng = np.random.default_rng(seed)
        weights = rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES).astype(np.float64)
        return [o.resampled(weights, group) for o in outputs]

    def interval(self, seed: int) -> tuple[float, float] | None:
        """Of the error that counts, 99 %; None where chance tells nothing of it (a maximum)."""
        nearest = self.nearest
        if nearest is None or isinstance(nearest.score, Largest):
            return None
        return self._interval(nearest, self._resampled(seed, [nearest])[0])

    def _interval(self, output: OutputMeasure, errors: FloatArray) -> tuple[float, float]:
        """Of the error of one output."""
        low = float(np.quantile(errors, (1 - LEVEL) / 2, method="lower"))
        high = float(np.quantile(errors, (1 + LEVEL) / 2, method="higher"))
        return low, max(high, self._unseen(output, (1 - LEVEL) / 2))

    def summary(self, seed: int) -> tuple[OutputError, ...]:
        """Per output, for the report."""
        found = []
        for output, errors in zip(self.outputs, self._resampled(seed, self.outputs), strict=True):
            more = output.details
            told = OutputError(
                output.name,
                output.value,
                output.worst,
                self._interval(output, errors),
                max_abs=more.max_abs if more else None,
                cosine=more.cosine if more else None,
                agreement=more.agreement if more else None,
                worst_samples=self._worst_samples(output),
                metric=output.metric,
                tolerance=output.tolerance,
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
