"""How an error is measured, and what it may be: what was asked for, and what that means for the outputs of a network.

| metric | error of an output |
|---|---|
| relative | RMS difference over the spread of the output |
| per-feature | the same of its worst feature, over that feature's own spread: for outputs in mixed units |
| max-abs | largest absolute difference of any element, in the output's own unit |
| agreement | share of samples (of positions) at which another class has the largest value |
| a function | what it says of all outputs together |

Measures nothing itself; `metrics` does.
"""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import json
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from onnx_condense.errors import UsageError

RELATIVE, PER_FEATURE, MAX_ABS, AGREEMENT = METRICS = ("relative", "per-feature", "max-abs", "agreement")
EVERYWHERE = "*"
DEFAULT_TOLERANCE = 0.01

Metric = str | Callable[[Mapping[str, Any], Mapping[str, Any]], Any]
"""One of METRICS, or f(dense, condensed) -> errors [n] of the n samples of a pass, or one for all of them.

Both arguments are read-only arrays by the name of the output. The error is the mean over all samples, 0 below zero.
"""

Tolerance = float | Mapping[str, float] | None
"""One number for all outputs, or by patterns of their names: the last that matches counts, "*" is the default."""


def metric_name(metric: Metric) -> str:
    """What a metric is called in reports."""
    return metric if isinstance(metric, str) else str(getattr(metric, "__name__", type(metric).__name__))


def default_tolerance(metric: Metric) -> float | None:
    """What holds where nothing is said; None where only the user can know."""
    return None if callable(metric) or metric == MAX_ABS else DEFAULT_TOLERANCE


def tolerances_of(texts: Sequence[str]) -> Tolerance:
    """What the command got as --tolerance: numbers, and GLOB=NUMBER; None where it got none.

    Raises:
        UsageError: something else.
    """
    found: dict[str, float] = {}
    for text in texts:
        pattern, equals, number = text.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            raise UsageError("tolerance", f"--tolerance {text!r}: give a number, or GLOB=NUMBER") from None
        # The last one that matches counts, so one that is given again moves to the end.
        name = pattern if equals else EVERYWHERE
        found.pop(name, None)
        found[name] = value
    return found[EVERYWHERE] if list(found) == [EVERYWHERE] else found or None


@dataclasses.dataclass(frozen=True)
class Wish:
    """The tolerance as asked for, checked.

    number: the default, or the largest where there is none; None: nothing was asked for.
    patterns: by patterns of outputs; empty where one number holds for all.
    """

    number: float | None
    patterns: Mapping[str, float] = dataclasses.field(default_factory=dict)


def wish_for(tolerance: Tolerance, metric: Metric) -> Wish:
    """A tolerance, checked.

    Raises:
        UsageError: the metric is none, a number is out of range, or 0 holds for some outputs only.
    """
    _check_metric(metric)
    numbers_given = tolerance.values() if isinstance(tolerance, Mapping) else (tolerance or 0.0,)
    if metric == "agreement" and any(isinstance(n, numbers.Real) and float(n) >= 1.0 for n in numbers_given):
        raise UsageError("tolerance", "--tolerance with --metric agreement is a share of flips: give a number below 1")
    if tolerance is None or not isinstance(tolerance, Mapping):
        return Wish(None if tolerance is None else _checked(EVERYWHERE, tolerance))
    if not tolerance:
        raise UsageError("tolerance", "the tolerance names no pattern: give a number, or patterns with numbers")
    patterns = {pattern: _checked(pattern, number) for pattern, number in tolerance.items()}
    number = patterns.get(EVERYWHERE, default_tolerance(metric))
    lossless = [value == 0.0 for value in (*patterns.values(), *(() if number is None else (number,)))]
    if any(lossless) and not all(lossless):
        raise UsageError("tolerance", "--tolerance 0 holds for all outputs or for none: exact steps know no outputs")
    if callable(metric) and list(patterns) != [EVERYWHERE]:
        text = f"the metric {metric_name(metric)} judges all outputs together: give one --tolerance"
        raise UsageError("tolerance", text)
    if list(patterns) == [EVERYWHERE]:
        return Wish(number)
    return Wish(max(patterns.values()) if number is None else number, patterns)


def _checked(pattern: str, number: object) -> float:
    if not (isinstance(number, numbers.Real) and 0.0 <= float(number) < math.inf):
        which = "" if pattern == EVERYWHERE else f"{pattern}="
        raise UsageError("tolerance", f"--tolerance {which}{number}: give a number of at least 0")
    return float(number)


def _check_metric(metric: Metric) -> None:
    if callable(metric) or metric in METRICS:
        return
    near = difflib.get_close_matches(str(metric), METRICS, 1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(METRICS)}"
    raise UsageError("metric", f"--metric {metric!r}: {hint}")


def check_known(metric: Metric, tolerance: float | None) -> float:
    """A tolerance where one is needed: the default if none was given.

    Raises:
        UsageError: there is no default in this metric.
    """
    found = default_tolerance(metric) if tolerance is None else tolerance
    if found is None:
        unit = "in the outputs' own unit" if metric == MAX_ABS else "only you know its scale"
        raise UsageError("tolerance", f"--metric {metric_name(metric)} needs --tolerance ({unit})")
    return found


def said(tolerance: float | None, patterns: Mapping[str, float]) -> str:
    """A tolerance as it is asked for, on one line."""
    if not patterns:
        return "" if tolerance is None else f"{tolerance:g}"
    return " ".join(f"{number:g}" if name == EVERYWHERE else f"{name}={number:g}" for name, number in patterns.items())


def stored(tolerance: float | None, patterns: Mapping[str, float]) -> str:
    """A tolerance as text out of which `restored` makes the same again; "" where there is none."""
    return json.dumps(dict(patterns)) if patterns else said(tolerance, {})


def restored(text: str) -> Tolerance:
    """A tolerance out of `stored`.

    Raises:
        ValueError: the text is something else.
    """
    if not text.startswith("{"):
        return float(text) if text else None
    found = json.loads(text)
    if not (found and all(isinstance(number, float) for number in found.values())):
        raise ValueError(text)
    return dict(found)


@dataclasses.dataclass(frozen=True)
class Yardstick:
    """How one network is judged.

    metric: see `Metric`. reference: what errors are held against, once scaled; None: only told.
    tolerances: by output; empty where nothing is a gate or the metric judges all together.
    """

    metric: Metric = RELATIVE
    reference: float | None = None
    tolerances: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def called(self) -> bool:
        """Whether a function of the user judges."""
        return callable(self.metric)

    @property
    def plain(self) -> bool:
        """Whether errors are relative, with one tolerance for all."""
        return self.metric == RELATIVE and all(t == self.reference for t in self.tolerances.values())

    def scale(self, output: str) -> float:
        """What the error of an output is multiplied by, so that all may be as large as the reference."""
        own = self.tolerances.get(output, self.reference)
        return self.reference / own if self.reference and own else 1.0


def yardstick(
    metric: Metric, reference: float | None, patterns: Mapping[str, float], names: Sequence[str]
) -> Yardstick:
    """What tolerances by pattern mean for the outputs of a network.

    Args:
        metric: how errors are measured.
        reference: the tolerance of outputs that no pattern matches; None: errors are only told.
        patterns: tolerances by patterns of names.
        names: the outputs.

    Raises:
        UsageError: a pattern matches no output, or an output has no tolerance.
    """
    if reference is None or callable(metric):
        return Yardstick(metric, reference)
    found: dict[str, float] = {}
    for pattern, number in patterns.items():
        # Names may hold brackets, which mean something else in patterns.
        matched = [name for name in names if name == pattern or fnmatch.fnmatchcase(name, pattern)]
        if not matched and pattern != EVERYWHERE:
            raise UsageError("tolerance", _unmatched(pattern, names))
        found |= dict.fromkeys(matched, number)
    left = [name for name in names if name not in found]
    if patterns and left and EVERYWHERE not in patterns and default_tolerance(metric) is None:
        text = f"--metric {metric_name(metric)} needs --tolerance for output {left[0]} too: add a number for all others"
        raise UsageError("tolerance", text)
    return Yardstick(metric, reference, {name: found.get(name, reference) for name in names})


def _unmatched(pattern: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(pattern, names, cutoff=0.4) or list(names[:3])
    return f"--tolerance: {pattern!r} matches no output; there are {', '.join(near)}"
