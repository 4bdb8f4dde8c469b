"""The report as one HTML page: nothing is fetched, nothing runs, and names out of files are text whatever they hold.

The page works in light and dark, on paper and on narrow screens. What a report lacks is left out with its heading. The
same report gives the same bytes. Nothing here measures or decides.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from onnx_condense import __version__
from onnx_condense.report import metrics, plots, words
from onnx_condense.report.data import Change, ErrorSummary, OutputError, Report, SpaceRow
from onnx_condense.report.figures import Cloud, Figures, Heat
from onnx_condense.report.terminal import scaled, share
from onnx_condense.report.words import number, span
from onnx_condense.wording import counted

SPACES = 300
OUTPUTS = 60
CLOUDS = 4
TIMINGS = 6
REASONS = 40
NODES = 12
NOTES = 100
"""How much is shown of what may be long; how much was left out is told."""


@dataclasses.dataclass(frozen=True)
class Tile:
    """A key figure.

    before: what it was. left: share that is left (of the error: of the tolerance), drawn as a bar, or None.
    tone: "limit" where it is worse than asked for.
    """

    label: str
    value: str
    before: str = ""
    detail: str = ""
    left: float | None = None
    tone: str = ""


@dataclasses.dataclass(frozen=True)
class Plot:
    """A drawing with what stands above and below it; subject: the name it is about, out of a file."""

    svg: str
    title: str
    caption: str
    subject: str = ""


def page(report: Report, figures: Figures) -> str:
    """The report as one self-contained HTML document.

    Args:
        report: what happened; parts that are None or empty are left out.
        figures: what pictures are drawn from.
    """
    # All is escaped but drawings, which escape for themselves.
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    plain = (counted, words.short, words.whole, words.provider, number, span, scaled, share)
    environment.filters.update({function.__name__: function for function in plain})
    return environment.get_template("template.html").render(_content(report, figures)) + "\n"


def _content(report: Report, figures: Figures) -> dict[str, Any]:
    """Everything that the template names."""
    return {
        "version": __version__,
        "report": report,
        "status": words.STATUS[report.status],
        "headline": words.headline(report),
        "remarks": list(words.remarks(report)),
        "tiles": [*_sizes(report), *_errors(report), *_speeds(report), *_loads(report)],
        "curve": _curve(report),
        "widest": max((row.before for row in report.spaces), default=1),
        "spaces": _shown(report.spaces),
        "spaces_more": max(len(report.spaces) - SPACES, 0),
        "timed": any(row.ms for row in report.spaces),
        "heats": [_heat(i, heat) for i, heat in enumerate(figures.heats)],
        "clouds": list(_clouds(figures.clouds, report.error)),
        "clouds_more": max(len(figures.clouds) - CLOUDS, 0),
        "outputs": report.error.outputs[:OUTPUTS] if report.error else (),
        "outputs_more": max(len(report.error.outputs) - OUTPUTS, 0) if report.error else 0,
        "meaning": metrics.meaning(words.short(report.error.metric) if report.error else metrics.RELATIVE),
        "by_output": not report.error or report.error.metric in metrics.MEANINGS,
        "several": len({output.tolerance for output in report.error.outputs}) > 1 if report.error else False,
        "columns": _columns(report.error.outputs if report.error else ()),
        "rounds": list(_rounds(report)),
        "reasons": _reasons(report),
        "nodes_most": NODES,
        "notes": report.notes[:NOTES],
        "notes_more": max(len(report.notes) - NOTES, 0),
    }


# ---- key figures ----


def _sizes(report: Report) -> Iterator[Tile]:
    changes = (
        ("Parameters", report.parameters, ""),
        ("Multiply-accumulates", report.macs, ""),
        ("Size", report.bytes, "B"),
    )
    for label, change, unit in changes:
        if change is None:
            continue
        before, after = scaled([change.before, change.after], unit)
        if change.before == change.after:
            yield Tile(label, after, detail="as before")
        else:
            yield Tile(label, after, before, words.tied(f"{share(change)} left"), _left(change))


def _left(change: Change) -> float | None:
    return min(change.after / change.before, 1.0) if change.before else None


def _errors(report: Report) -> Iterator[Tile]:
    error = report.error
    if error is None:
        return
    facts = [f"99 % interval {span(interval)}"] if (interval := _interval(error)) else []
    if error.tolerance is not None:
        facts.append(f"tolerance {number(error.tolerance)}")
    tone = "limit" if error.tolerance is not None and not error.value <= error.tolerance else ""
    left = min(error.value / error.tolerance, 1.0) if error.tolerance and error.value >= 0.0 else None
    yield Tile(
        f"{metrics.title(error.metric)}, unseen samples",
        number(error.value),
        detail=words.tied("; ".join(facts)),
        left=left,
        tone=tone,
    )


def _interval(error: ErrorSummary) -> tuple[float, float] | None:
    """That of the error that counts."""
    if error.interval is not None or error.metric == metrics.LARGEST:
        return error.interval
    return next((output.interval for output in error.outputs if output.value == error.value), None)


def _speeds(report: Report) -> Iterator[Tile]:
    for timing in report.latency[:TIMINGS]:
        value = f"{timing.speedup:.2f}\N{MULTIPLICATION SIGN}"
        low, high = timing.interval
        where = f"batch {timing.batch:,}, {words.provider(timing.provider)}"
        detail = f"{timing.verdict}; 99 % interval {low:.2f} to {high:.2f}"
        yield Tile(
            f"Speed-up, {where}", value, detail=words.tied(detail), tone="limit" if timing.verdict == "slower" else ""
        )


def _loads(report: Report) -> Iterator[Tile]:
    if report.footprint is None:
        return
    pairs = (("Load time", report.footprint.load_ms, "ms"), ("Peak memory", report.footprint.peak_mb, "MB"))
    for label, (before, after), unit in pairs:
        detail = f"at batch 1, {words.provider(report.footprint.provider)}"
        yield Tile(label, f"{number(after)} {unit}", number(before), detail)


# ---- pictures ----


def _curve(report: Report) -> Plot | None:
    if report.parameters is None or report.error is None or not report.parameters.before:
        return None
    percent = 100.0 / report.parameters.before
    points = [(percent * point.parameters, point.error) for point in report.curve]
    size, error = percent * report.parameters.after, report.error
    interval = _interval(error) or (error.value, error.value)
    measured = counted(len(points), "network")
    about = f"{measured} measured; the result keeps {number(size)} % at an error of {number(error.value)}."
    svg = plots.curve(
        "curve",
        "Error against size",
        about,
        points,
        (size, error.value, interval),
        error.tolerance,
        metrics.title(error.metric).lower(),
    )
    caption = (
        "Every small dot is a network that the search measured: the upper 95 % bound of its error on the search's own "
        "samples. The large dot is the result: its error on samples that the search did not see, and the 99 % interval."
    ) + (" The small ones are not trained." if report.tuning else "")
    return Plot(svg, "Error against size", caption) if svg else None


def _heat(index: int, heat: Heat) -> tuple[Plot, Plot]:
    """Before and after."""
    told = []
    for when, count, cosines in (("before", heat.width, heat.before), ("after", heat.left, heat.after)):
        title = f"{when.capitalize()}: {counted(count, 'channel')}"
        about = f"Cosines of the directions of channels of {words.short(heat.space)}, {when} condensation."
        caption = f"{len(cosines)} shown" if len(cosines) < count else ""
        told.append(Plot(plots.heat(f"heat-{index}-{when}", title, about, cosines), title, caption, heat.space))
    return told[0], told[1]


def _clouds(clouds: Sequence[Cloud], error: ErrorSummary | None) -> Iterator[Plot]:
    outputs = {output.name: output for output in error.outputs} if error else {}
    for i, cloud in enumerate(clouds[:CLOUDS]):
        name = words.short(cloud.output)
        about = f"Elements of {name}: the condensed network's answers against the dense one's."
        svg = plots.scatter(f"cloud-{i}", "Dense against condensed", about, cloud.dense, cloud.condensed)
        if svg:
            caption = "Elements of the output on unseen samples; on the line both networks give the same answer."
            yield Plot(svg, "Dense against condensed", caption, cloud.output)
        if histogram := _histogram(i, cloud, outputs.get(cloud.output), error):
            yield histogram


def _histogram(index: int, cloud: Cloud, output: OutputError | None, error: ErrorSummary | None) -> Plot | None:
    """How many samples have which error; of classes, which change or do not, there is nothing to draw."""
    if output is not None and output.metric == metrics.SHARE:
        return None
    about = f"How many samples have which error of {words.short(cloud.output)}."
    tolerance = (output.tolerance if output else None) or _shared_tolerance(error)
    value = output.value if output else 0.0
    svg = plots.histogram(f"errors-{index}", "Error by sample", about, cloud.errors, value, tolerance)
    together = "the largest" if output and output.metric == metrics.LARGEST else "the error of all together"
    caption = f"Unseen samples by their own error. What is held against the tolerance is {together}."
    return Plot(svg, "Error by sample", caption, cloud.output) if svg else None


def _shared_tolerance(error: ErrorSummary | None) -> float | None:
    """The one for all outputs, unless a function judges them: then it is not about any output alone."""
    return error.tolerance if error and error.metric in metrics.MEANINGS else None


def _rounds(report: Report) -> Iterator[Plot]:
    for i, timing in enumerate(report.latency[:TIMINGS]):
        title = f"Batch {timing.batch:,}, {words.provider(timing.provider)}"
        about = f"{counted(len(timing.rounds), 'round')}; {timing.speedup:.2f} times, {timing.verdict}."
        low, high = timing.interval
        medians, speedup = (timing.before_ms, timing.after_ms), (low, timing.speedup, high)
        if svg := plots.rounds(f"rounds-{i}", title, about, timing.rounds, medians, speedup):
            yield Plot(svg, title, "")


# ---- tables ----


def _shown(spaces: Sequence[SpaceRow]) -> list[SpaceRow]:
    """Those that lost most channels, in the network's order."""
    order = sorted(range(len(spaces)), key=lambda i: (spaces[i].after - spaces[i].before, i))[:SPACES]
    return [spaces[i] for i in sorted(order)]


def _columns(outputs: Sequence[OutputError]) -> Mapping[str, bool]:
    """Which columns of the table of outputs hold something."""
    names = ("worst_feature", "max_abs", "cosine", "agreement", "worst_samples")
    return {name: any(getattr(output, name) not in (None, ()) for output in outputs) for name in names}


def _reasons(report: Report) -> list[tuple[str, list[str]]]:
    """Reasons with the nodes that they hold at, in order of appearance."""
    groups: dict[str, dict[str, None]] = {}
    for row in report.refusals:
        groups.setdefault(row.reason, {})[row.node or row.space] = None
    told = [(words.whole(reason), list(places)) for reason, places in groups.items()]
    rest = told[REASONS:]
    return [*told[:REASONS], *([(f"{len(rest)} more reasons", [p for _, at in rest for p in at])] if rest else [])]
