"""What is said of a result in words: headline of the HTML report, remarks beside it, numbers as a person reads them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path, PurePath

from onnx_condense.report import metrics
from onnx_condense.report.data import ErrorSummary, Latency, Report
from onnx_condense.report.terminal import inert, share, shortened
from onnx_condense.wording import counted

LONGEST = 160
"""Characters of a name that are shown; the whole name is its tooltip."""

WHOLE = 2000

MOST_TIMINGS = 3

STATUS = {"condensed": "Condensed", "unchanged": "Unchanged", "failed": "Failed", "verified": "Proof repeated"}

_METHODS = {
    "condensation": "neurons that point in one direction were merged",
    "condensation-refit": "neurons that point in one direction were merged, their readers refitted",
    "drop": "the smallest neurons were dropped",
    "drop-refit": "the smallest neurons were dropped, their readers refitted",
}


def short(text: object) -> str:
    """A name out of a file, fit to be shown."""
    return shortened(str(text), LONGEST)


def whole(text: object) -> str:
    """The same, fit to be looked up."""
    return shortened(str(text), WHOLE)


def number(value: float) -> str:
    """Three significant digits."""
    if not math.isfinite(value):
        return inert(str(value))
    text = f"{value:.3g}" if abs(value) < 999.5 else f"{value:,.0f}"
    return text.replace("e-0", "e-").replace("e+0", "e").replace("-", "\N{MINUS SIGN}")


def span(interval: tuple[float, float]) -> str:
    """An interval, both ends with the same three digits."""
    return f"{number(interval[0])} to {number(interval[1])}"


def provider(name: str) -> str:
    """An execution provider without what all of them are called."""
    return short(name).removesuffix("ExecutionProvider")


def place(report: Report) -> str:
    """What is condensed: the file's name."""
    source = report.origin.source if report.origin else None
    return short(PurePath(source.replace("\\", "/")).name or source) if source else "The network"


def tied(text: str) -> str:
    """Percent signs kept on the line of their number."""
    return text.replace(" %", "\N{NO-BREAK SPACE}%")


def headline(report: Report) -> str:
    """What came out, in a sentence."""
    name = place(report)
    if report.status == "failed":
        return f"{name} could not be condensed"
    if report.status == "unchanged":
        return f"{name} stays as it is"
    if report.status == "verified":
        return _proof(name, report.error)
    if report.parameters is None:
        return f"{name} was condensed"
    return tied(f"{name} keeps {share(report.parameters)} of its parameters")


def _proof(name: str, error: ErrorSummary | None) -> str:
    if error is None or error.tolerance is None:
        return f"{name} and its condensed network were compared anew"
    return f"{name}: the proof {'holds' if error.value <= error.tolerance else 'does not hold'}"


def remarks(report: Report) -> Iterator[str]:
    """What belongs beside the headline, most important first."""
    if report.reason:
        where = f" (at {short(report.reason.node)})" if report.reason.node else ""
        yield _sentence(f"{_said(report.reason.text)}{where}")
    if report.dry_run:
        yield "Dry run: nothing was written."
    if report.error:
        yield _accuracy(report.error)
    yield from _speed(report)
    if report.status == "condensed" and report.evidence == "weights":
        yield "Lossless: the weights prove that what went was redundant, for all inputs."
    if report.evidence == "synthetic":
        yield "Inputs were drawn, not given: that says less than real ones."
    if report.method in _METHODS and report.status != "verified":
        yield _sentence(f"by the method {report.method}: {_METHODS[report.method]}")


def _accuracy(error: ErrorSummary) -> str:
    samples = counted(error.samples, "sample")
    said = metrics.ACCURACY.get(error.metric, f"Its error by {short(error.metric)} is {{}}").format(number(error.value))
    text = f"{said} on {samples} that the search did not see"
    if error.tolerance is None:
        return f"{text}."
    side = "within" if error.value <= error.tolerance else "above"
    return f"{text}, {side} the tolerance of {number(error.tolerance)}."


def _speed(report: Report) -> Iterator[str]:
    """Timing by timing; the words of the verdict are the report's own."""
    if not report.latency:
        return
    if all(timing.verdict == "no measurable difference" for timing in report.latency):
        yield "No measurable difference in speed."
        return
    told = [f"{pace(timing)} at batch {timing.batch:,}" for timing in report.latency[:MOST_TIMINGS]]
    if len(report.latency) > MOST_TIMINGS:
        told.append("more below")
    yield _sentence("; ".join(told))


def pace(timing: Latency) -> str:
    """The speed-up with its verdict: "faster" only where the interval says so."""
    if timing.verdict == "no measurable difference":
        return timing.verdict
    return f"{number(timing.speedup)} times {'the speed, which is slower,' if timing.verdict == 'slower' else 'faster'}"


def _said(text: str) -> str:
    return inert(" ".join(text.split()))


def _sentence(text: str) -> str:
    """With a capital and a full stop."""
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith(('.', '!', '?')) else '.'}"


def front_lines(report: Report, made: int, folder: Path, *, written: bool) -> Iterator[str]:
    """What became of the networks of a front, and of the one that was reported; written: whether that was, too."""
    yield f"wrote {made} network{'s' * (made != 1)} of the front to {inert(str(folder))}"
    if report.status == "condensed" and not written:
        yield "the network above was not written: name an OUT to have it as well"
