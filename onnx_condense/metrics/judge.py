"""The error of one network against another, per output, with its sampling uncertainty.

What the metrics are stands in `yardstick`; the relative error is worked out whatever counts.
`relative` (see docs/design.md): sqrt(sum (y - y0)^2 / sum (y0 - mean y0)^2), y0 the dense network's output, the
mean taken per output feature (see `layout`); the largest over the outputs counts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnx_condense.data.samples import Batch, Rows, Samples
from onnx_condense.errors import CalibrationError, ModelError, UsageError
from onnx_condense.metrics.details import Pairs, details
from onnx_condense.metrics.layout import STILL, Fed, Layout, Sizes
from onnx_condense.metrics.measurement import Measurement, OutputMeasure
from onnx_condense.metrics.scores import Score, of_features, of_flips, of_largest, of_means
from onnx_condense.options.yardstick import AGREEMENT, MAX_ABS, PER_FEATURE, RELATIVE, Yardstick, metric_name
from onnx_condense.plan import FloatArray, IntArray
from onnx_condense.report.data import WorstFeature
from onnx_condense.runtime import Array, Runtime, Session, run

# Features below this share of the largest spread are left out of the worst-feature search.
SMALL = 0.01

CHANGED = "changed"
CHANGED_NOTE = "its share of changed elements counts"
NO_CLASSES_NOTE = "it has no classes to choose from: its relative error counts"
SMALL_NOTE = "features that vary by less than 1 % of the largest spread count together with all others only, here {}"

Passes = list[tuple[list[Array], IntArray]]
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
        by: the metric and what errors may be.

    Attributes:
        notes: what counts where the metric has no meaning, in words.

    Raises:
        UsageError: the metric can't judge any output, or is a function that gives something else than errors.
        CalibrationError: the dense network itself answers with NaN or infinity.
        ModelError: it does not run, or an output is no tensor.
    """

    def __init__(  # noqa: PLR0913 - two networks' setting in full; the options by keyword
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
        by: Yardstick | None = None,
    ) -> None:
        self._by = by or Yardstick()
        self._samples, self._indices, self._runtime = samples, indices, runtime
        self._rows, self._shapes, self._optimize = rows, shapes or {}, optimize
        self._detailed = detailed
        session = runtime.session(dense, optimize=optimize)
        self._outputs = session.get_outputs()
        for output in self._outputs:
            if not output.type.startswith("tensor"):
                text = f"output {output.name} is a {output.type}: only networks with tensor outputs are supported"
                raise ModelError("output-type", text, output.name)
        opened = [i.name for i in session.get_inputs() if i.shape and not isinstance(i.shape[0], int)]
        self._dense: Passes = []
        lengths = []
        for answers, batch in self._passes(session):
            self._dense.append((answers, batch.samples))
            lengths.append(frozenset(len(batch.feed[n]) for n in opened if n in batch.feed))
        free = any(not isinstance(d, int) for i in session.get_inputs() for d in i.shape[1:])
        self._fed = Fed((samples.block or 1) if isinstance(samples, Rows) else 0, free, lengths)
        for i, output in enumerate(self._outputs):
            bad = [int(k) for y, at in self._dense for k in _not_finite(y[i], at)]
            if bad:
                raise CalibrationError(
                    "calibration-output",
                    f"output {output.name} of the network is NaN or infinite on {_samples(bad)}: check the inputs",
                    output.name,
                )
        self.notes = () if self._by.metric == RELATIVE else self._told()

    def _told(self) -> tuple[str, ...]:
        """What counts at each output, seen on the dense network's own answers.

        Raises:
            UsageError: nothing that was meant.
        """
        same = self._compared(self._dense)
        outputs = same.outputs
        if self._by.called:
            return self._checked_function(same.value)
        if self._by.metric == AGREEMENT and all(o.metric == RELATIVE for o in outputs):
            text = "--metric agreement: no output has classes to choose from; --metric relative judges all"
            raise UsageError("metric", text)
        notes = [f"output {o.name}: {CHANGED_NOTE}" for o in outputs if o.metric == CHANGED]
        if self._by.metric == AGREEMENT:
            notes += [f"output {o.name}: {NO_CLASSES_NOTE}" for o in outputs if o.metric == RELATIVE]
        notes += [f"output {o.name}: {SMALL_NOTE.format(o.small)}" for o in outputs if o.small]
        return tuple(notes)

    def _checked_function(self, value: float) -> tuple[str, ...]:
        """No notes; value: what the function says of equal answers.

        Raises:
            UsageError: it finds errors there that are above the tolerance.
        """
        if self._by.reference is not None and not value <= self._by.reference:
            text = f"the metric {metric_name(self._by.metric)} gives {value:.3g} for equal answers: errors are needed"
            raise UsageError("metric", f"{text}, 0 where nothing differs")
        return ()

    @property
    def empty(self) -> bool:
        """Whether some output has no elements on any of the samples, so that nothing is judged by it."""
        return any(not any(y[i].size for y, _ in self._dense) for i in range(len(self._outputs)))

    def _passes(self, session: Session) -> Iterator[tuple[list[Array], Batch]]:
        """Its answers, and what they answer."""
        for batch in self._samples.batches(self._indices, self._rows):
            yield run(session, batch.feed), batch

    def measure(self, model: onnx.ModelProto | Path) -> Measurement:
        """Error of a network on the judged samples; infinite where it answers with NaN or infinity."""
        session = self._runtime.session(model, optimize=self._optimize)
        return self._compared([(answers, batch.samples) for answers, batch in self._passes(session)])

    def beside(self, other: Judge) -> Measurement:
        """How far the dense network's answers to another judge of the same samples lie from those to this one."""
        return self._compared(other._dense)

    def _compared(self, found: Passes) -> Measurement:
        outputs: list[OutputMeasure] = []
        for i, output in enumerate(self._outputs):
            pairs = [(y[i], y0[i], len(s)) for (y, s), (y0, _) in zip(found, self._dense, strict=True)]
            shapes = (output.shape, self._shapes.get(output.name, ()))
            outputs.append(_measure(output.name, pairs, shapes, self._fed, self._by, detailed=self._detailed))
        order = np.concatenate([s for _, s in self._dense])
        overall = self._overall(found, outputs) if self._by.called else None
        return Measurement(tuple(outputs), self._samples.groups[order], order, overall)

    def _overall(self, found: Passes, outputs: Sequence[OutputMeasure]) -> OutputMeasure:
        """What a function says of all outputs together."""
        name, tolerance = metric_name(self._by.metric), self._by.reference
        count = sum(len(s) for _, s in self._dense)
        fault = next((f"output {o.name} {o.fault}" for o in outputs if o.fault), "")
        bare = OutputMeasure("", np.zeros(count), np.zeros(count), 0.0, None, metric=name, tolerance=tolerance)
        if fault:
            return dataclasses.replace(bare, still=np.inf, fault=fault)
        names = [output.name for output in self._outputs]
        errors = [
            _called(self._by.metric, names, y0, y, len(s)) for (y, s), (y0, _) in zip(found, self._dense, strict=True)
        ]
        if not all(np.isfinite(e).all() for e in errors):
            return dataclasses.replace(bare, still=np.inf, fault=f"the error by {name} is NaN or infinite")
        return dataclasses.replace(bare, score=of_means(errors))


def _called(
    metric: Any, names: Sequence[str], dense: Sequence[Array], found: Sequence[Array], count: int
) -> FloatArray:
    """Errors [count] of the samples of one pass, by a function of the user.

    Raises:
        UsageError: it gives something else.
    """
    answers = [dict(zip(names, map(_kept, values), strict=True)) for values in (dense, found)]
    given = metric(*answers)
    errors = _errors(given, count)
    if errors is None:
        text = f"the metric {metric_name(metric)} gave {type(given).__name__} of shape {np.shape(given)}: "
        raise UsageError("metric", f"{text}{count} errors of samples are needed, or one number")
    return errors


def _errors(given: Any, count: int) -> FloatArray | None:
    """As [count] numbers; None where they are none."""
    if given is None:
        return None
    try:
        errors = np.asarray(given, np.float64)
        return np.array(np.broadcast_to(errors.reshape(-1) if errors.size == 1 else errors, (count,)))
    except (TypeError, ValueError):
        return None


def _kept(value: Array) -> Array:
    """The same, read-only: a metric that changed its arguments would spoil what comes after."""
    view = value.view()
    view.flags.writeable = False
    return view


def _not_finite(value: Array, samples: IntArray) -> IntArray:
    """Which of the samples of one pass a float answer is NaN or infinite on."""
    if value.dtype.kind != "f" or (finite := np.isfinite(value)).all():
        return samples[:0]
    by_row = value.ndim > 0 and len(value) == len(samples)
    return samples[~finite.reshape(len(value), -1).all(1)] if by_row else samples


def _samples(indices: Sequence[int]) -> str:
    """Their places in words."""
    return f"sample {indices[0]}" + (f" and {len(indices) - 1} more" if len(indices) > 1 else "")


def _measure(
    name: str, pairs: Pairs, shapes: Sequence[Sizes], fed: Fed, by: Yardstick, *, detailed: bool
) -> OutputMeasure:
    """One output from (found, dense, samples) per pass; shapes and fed as for `Layout`."""
    is_float = pairs[0][1].dtype.kind == "f"
    plain = _relative(name, pairs, shapes, fed, by, detailed=detailed) if is_float else _changed(name, pairs)
    tolerance = None if by.called else by.tolerances.get(name, by.reference)
    plain = dataclasses.replace(plain, tolerance=tolerance, scale=by.scale(name))
    score: Score | None = None
    if plain.fault or not any(y0.size for _, y0, _ in pairs):
        return plain
    if by.metric == MAX_ABS and not all(y.shape == y0.shape for y, y0, _ in pairs):
        return dataclasses.replace(plain, still=np.inf, fault="has another shape")
    if by.metric == MAX_ABS:
        score = of_largest(pairs)
    elif by.metric == AGREEMENT and is_float:
        score = of_flips(pairs)
    return plain if score is None else dataclasses.replace(plain, score=score, metric=str(by.metric))


def _relative(
    name: str, pairs: Pairs, shapes: Sequence[Sizes], fed: Fed, by: Yardstick, *, detailed: bool
) -> OutputMeasure:
    """A float output by its relative error, and by its features where these count."""
    count = sum(n for _, _, n in pairs)
    shaped_alike = all(y.shape == y0.shape for y, y0, _ in pairs)
    if not shaped_alike or not all(np.isfinite(y).all() for y, _, _ in pairs):
        fault = "is NaN or infinite" if shaped_alike else "has another shape"
        return OutputMeasure(name, np.zeros(count), np.ones(count), np.inf, None, fault=fault)
    if not any(y0.size for _, y0, _ in pairs):
        return OutputMeasure(name, np.zeros(count), np.zeros(count), 0.0, None)
    layout = Layout.of(shapes, [(y0, n) for _, y0, n in pairs], fed)
    shaped = [(layout.featured(y, n), layout.featured(y0, n)) for y, y0, n in pairs]
    # [samples, positions, centred, features]; each element of the last two has a mean of its own.
    rows = sum(y0.shape[0] * y0.shape[1] for _, y0 in shaped)
    total = rows * shaped[0][1].shape[2]
    mean = sum(y0.sum((0, 1)) for _, y0 in shaped) / rows
    counts = [n for _, _, n in pairs]
    squared = [_by_sample(((y - y0) ** 2).sum((1, 2)), n) for (y, y0), n in zip(shaped, counts, strict=True)]
    spread = [_by_sample(((y0 - mean) ** 2).sum((1, 2)), n) for (_, y0), n in zip(shaped, counts, strict=True)]
    error, own = np.concatenate(squared), np.concatenate(spread)
    magnitude = np.sqrt(sum((y0**2).sum((0, 1, 2)) for _, y0 in shaped) / total)
    varies = np.sqrt(own.sum(0) / total) > STILL * magnitude
    still = _still_error(error.sum(0) / total, magnitude, varies)
    judged = _judged(own.sum(0), varies)
    worst = _worst(error.sum(0), own.sum(0), judged)
    more = details(pairs, shaped) if detailed else None
    # Where features are in doubt an element that stands still may be one of many of a feature that does not.
    counted = varies if layout.sure or not varies.any() else np.ones_like(varies)
    error, own, judged = error[:, counted], own[:, counted], judged[counted]
    plain = OutputMeasure(name, error.sum(1), own.sum(1), still, worst, details=more)
    if by.metric != PER_FEATURE:
        return plain
    score = of_features(error, own, judged, still)
    return dataclasses.replace(plain, score=score, metric=PER_FEATURE, small=int((~judged).sum()))


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
    return OutputMeasure(name, changed, np.ones(len(changed)), 0.0, None, power=1.0, metric=CHANGED)


def _still_error(error: FloatArray, magnitude: FloatArray, varies: npt.NDArray[np.bool_]) -> float:
    if varies.all():
        return 0.0
    scale = np.where(magnitude > 0, magnitude, magnitude.max(initial=0.0) or 1.0)
    relative = float((np.sqrt(error) / scale)[~varies].max())
    return relative if relative > STILL else 0.0


def _judged(own: FloatArray, varies: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Features that are judged by themselves [features]."""
    return np.asarray(varies & (np.sqrt(own) >= SMALL * np.sqrt(own.max(initial=0.0))))


def _worst(error: FloatArray, own: FloatArray, judged: npt.NDArray[np.bool_]) -> WorstFeature | None:
    if not judged.any():
        return None
    relative = np.where(judged, np.sqrt(error / np.where(judged, own, 1.0)), -1.0)
    index = int(relative.argmax())
    return WorstFeature(index, float(relative[index]))
