"""Plots of the HTML report as SVG elements: numbers in, text out; the only door to matplotlib.

No name out of a file is drawn: names stand in the page around a plot, and in its title, where they are escaped.
Colours are stand-ins here and variables of the page's style sheet in the end, so that one plot serves light and dark.
Identifiers get a prefix per plot, and what differs from run to run is left out: the same numbers give the same text.
"""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, Literal, ParamSpec
from xml.etree import ElementTree as ET

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from onnx_condense.plan import FloatArray

INK, MUTED, RULE, ACCENT, DENSE, LIMIT = (f"#{n:02x}{n:02x}{n:02x}" for n in range(1, 7))
VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    RULE: "var(--rule)",
    ACCENT: "var(--accent)",
    DENSE: "var(--dense)",
    LIMIT: "var(--limit)",
}
ALIKE, OPPOSED = (31, 119, 208), (217, 102, 31)
"""Red, green, blue of cosines of 1 and -1; 0 is transparent, which suits light and dark."""

POINTS = 1500
BINS = 40
# Axes of numbers that differ by more than this are logarithmic.
WIDE = 20.0
# Beyond this squares overflow, and nothing is told by a picture.
HUGE = 1e100
# So many steps of opacity: more are not told apart and take more room.
STEPS = 32

STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "path.simplify": False,
    "font.size": 9.5,
    "axes.labelsize": 9.5,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": RULE,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "text.color": INK,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 9.0,
    "ytick.labelsize": 9.0,
}

P = ParamSpec("P")
Draw = Callable[Concatenate[Figure, P], bool]


def _plot(width: float, height: float) -> Callable[[Draw[P]], Callable[Concatenate[str, str, str, P], str]]:
    """Make what draws on a figure of this size (in points) into what returns SVG, "" where there is nothing to draw.

    The first three arguments are then what identifiers begin with, the title and the description.
    """

    def decorate(draw: Draw[P]) -> Callable[Concatenate[str, str, str, P], str]:
        @functools.wraps(draw)
        def drawn(key: str, title: str, about: str, /, *args: P.args, **kwargs: P.kwargs) -> str:
            with mpl.rc_context():
                mpl.rcdefaults()  # the style of the user's own plots is none of ours
                mpl.rcParams.update(STYLE)
                mpl.rcParams["svg.hashsalt"] = key
                figure = Figure(figsize=(width / 72, height / 72), layout="constrained", frameon=False)
                return _element(figure, key, title, about) if draw(figure, *args, **kwargs) else ""

        return drawn

    return decorate


# ---- plots ----


@_plot(340, 230)
def curve(
    figure: Figure,
    points: Sequence[tuple[float, float]],
    chosen: tuple[float, float, tuple[float, float]],
    tolerance: float | None,
    label: str = "relative error",
) -> bool:
    """Error against size.

    Args:
        figure: to draw on.
        points: (percent of the parameters kept, error) of what the search measured.
        chosen: the same of the result, with the interval of its error.
        tolerance: drawn as a line, or None.
        label: what the error is called.
    """
    size, error, interval = chosen
    measured = np.array([p for p in points if p[0] > 0.0 and 0.0 < p[1] < HUGE], float).reshape(-1, 2)
    if len(measured) < 2 or not 0.0 < error < HUGE:
        return False
    axes = figure.add_subplot()
    axes.plot(*_front(measured).T, "-", color=DENSE, linewidth=1.2, alpha=0.6)
    axes.plot(*measured.T, "o", color=DENSE, markersize=4)
    _bar(axes, size, interval)
    axes.plot([size], [error], "o", color=ACCENT, markersize=8)
    _scale(axes, "x", [*measured[:, 0], size])
    _scale(axes, "y", [*measured[:, 1], error, *([tolerance] if tolerance else [])])
    if tolerance:
        axes.axhline(tolerance, color=LIMIT, linewidth=1.2, linestyle=(0, (4, 3)))
        at = (1.0, tolerance)
        axes.annotate(
            f"tolerance {tolerance:g}", at, (0, 4), axes.get_yaxis_transform(), "offset points", color=LIMIT, ha="right"
        )
    aside, side = (-9, "right") if _beyond(axes, size, 0.5) else (9, "left")
    axes.annotate(
        "result", (size, error), (aside, -11), textcoords="offset points", color=ACCENT, ha=side, weight="bold"
    )
    axes.set(xlabel="parameters kept, %", ylabel=label)
    return True


@_plot(340, 230)
def front(figure: Figure, points: Sequence[tuple[float, float]]) -> bool:
    """Error against size of several networks, (percent of the parameters kept, error) each."""
    made = np.array([p for p in points if 0.0 < p[1] < HUGE], float).reshape(-1, 2)
    axes = figure.add_subplot()
    axes.plot(*made.T, "o-", color=ACCENT, markersize=5, linewidth=1.2)
    _scale(axes, "x", made[:, 0].tolist())
    _scale(axes, "y", made[:, 1].tolist())
    axes.set(xlabel="parameters kept, %", ylabel="error")
    return True


@_plot(340, 260)
def scatter(figure: Figure, dense: FloatArray, condensed: FloatArray) -> bool:
    """Answers of both networks, elements of one output against each other."""
    both = np.stack([np.asarray(dense, float), np.asarray(condensed, float)])
    both = both[:, (np.abs(both) < HUGE).all(axis=0)]
    if not both.size or not np.ptp(both):
        return False
    both = both[:, np.linspace(0, both.shape[1] - 1, min(POINTS, both.shape[1])).round().astype(int)]
    low, high = float(both.min()), float(both.max())
    low, high = low - 0.04 * (high - low), high + 0.04 * (high - low)
    axes = figure.add_subplot()
    axes.plot([low, high], [low, high], color=RULE, linewidth=1.2)
    # One path of strokes without length, whose round ends are the points: a third of the text that markers take.
    ends = np.repeat(both.T, 2, axis=0)
    path = Path(ends, np.tile([Path.MOVETO, Path.LINETO], len(both.T)))
    axes.add_patch(PathPatch(path, fill=False, edgecolor=ACCENT, linewidth=3, capstyle="round", alpha=0.7))
    axes.set(xlim=(low, high), ylim=(low, high), xlabel="dense network", ylabel="condensed network")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5))
        axis.set_major_formatter(FuncFormatter(_number))
    return True


@_plot(340, 260)
def histogram(figure: Figure, errors: FloatArray, pooled: float, tolerance: float | None) -> bool:
    """How many samples have which error.

    Args:
        figure: to draw on.
        errors: of every sample.
        pooled: that of all together, which a tolerance is about.
        tolerance: drawn as a line, or None.
    """
    errors = np.asarray(errors, float)
    errors = errors[(errors >= 0.0) & (errors < HUGE)]
    positive = errors[errors > 0.0]
    if len(positive) < 2:
        return False
    errors = np.maximum(errors, positive.min())
    marks = [value for value in (pooled, tolerance) if value and value < HUGE]
    axes = figure.add_subplot()
    low, high = _scale(axes, "x", [*errors.tolist(), *marks])
    spaced = np.geomspace if axes.get_xscale() == "log" else np.linspace
    counts, edges = np.histogram(errors, spaced(low, high, BINS + 1))
    axes.stairs(counts, edges, fill=True, color=ACCENT, alpha=0.75, linewidth=0)
    axes.set_ylim(0, max(counts) * 1.28)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    _mark(axes, pooled, "all together", INK, "-", 0.98)
    _mark(axes, tolerance, "tolerance", LIMIT, (0, (4, 3)), 0.88)
    axes.set(xlabel="error of a sample", ylabel="samples")
    return True


@_plot(340, 230)
def rounds(
    figure: Figure,
    pairs: Sequence[tuple[float, float]],
    medians: tuple[float, float],
    speedup: tuple[float, float, float],
) -> bool:
    """Times of both networks, round by round.

    Args:
        figure: to draw on.
        pairs: ms before and after.
        medians: of both.
        speedup: low end of the interval, value, high end.
    """
    times = np.array([p for p in pairs if min(p) > 0.0 and max(p) < HUGE], float).reshape(-1, 2)
    if len(times) < 2 or not min(speedup) > 0.0:
        return False
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    left.plot([0, 1], times.T, "-", color=DENSE, linewidth=0.7, alpha=0.45)
    for x, color in enumerate((DENSE, ACCENT)):
        left.plot(np.full(len(times), x), times[:, x], "o", color=color, markersize=3, alpha=0.8)
        left.plot([x - 0.13, x + 0.13], [medians[x]] * 2, color=INK, linewidth=2)
    left.set(xlim=(-0.4, 1.4), ylim=(0, times.max() * 1.06), ylabel="ms per run")
    left.set_xticks([0, 1], ["before", "after"])
    left.yaxis.set_major_locator(MaxNLocator(5))
    left.yaxis.set_major_formatter(FuncFormatter(_number))
    ratios = times[:, 0] / times[:, 1]
    right.axhline(1.0, color=LIMIT, linewidth=1.2, linestyle=(0, (4, 3)))
    right.plot(_spread(len(ratios)), ratios, "o", color=ACCENT, markersize=3, alpha=0.6)
    _bar(right, 0.0, (speedup[0], speedup[2]), INK)
    right.plot([-0.13, 0.13], [speedup[1]] * 2, color=INK, linewidth=2)
    _scale(right, "y", [*ratios.tolist(), *speedup, 1.0])
    right.set(xlim=(-0.5, 0.5), ylabel="before / after")
    right.set_xticks([0], ["each round"])
    return True


@_plot(240, 240)
def heat(figure: Figure, cosines: FloatArray) -> bool:
    """Cosines of directions [n, n] as a square."""
    figure.set_layout_engine("none")
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0), frameon=False)
    axes.set_axis_off()
    axes.imshow(_tinted(cosines), interpolation="none", aspect="equal")
    return True


# ---- parts ----


def _front(measured: FloatArray) -> FloatArray:
    """Of points [n, 2] those than which no smaller one has a smaller error, by size."""
    by_size = measured[np.lexsort((measured[:, 1], measured[:, 0]))]
    least = np.minimum.accumulate(by_size[:, 1])
    return np.asarray(by_size[np.r_[True, by_size[1:, 1] < least[:-1]]])


def _tinted(cosines: FloatArray) -> npt.NDArray[np.uint8]:
    """Red, green, blue and opacity [n, n, 4]: the hue tells the sign, the opacity the size."""
    size = np.clip(np.abs(np.nan_to_num(cosines)), 0.0, 1.0)
    picture = np.empty((*cosines.shape, 4), np.uint8)
    picture[..., :3] = np.where((cosines >= 0.0)[..., None], ALIKE, OPPOSED)
    picture[..., 3] = np.round(size * (STEPS - 1)) * (255 / (STEPS - 1))
    return picture


def _number(value: float, _: int | None = None) -> str:
    return f"{value:.6g}".replace("e-0", "e-").replace("e+0", "e").replace("-", "\N{MINUS SIGN}")


def _scale(axes: Axes, name: Literal["x", "y"], values: Sequence[float]) -> tuple[float, float]:
    """Ticks and limits around positive values: logarithmic where they lie far apart. The limits."""
    low, high = min(values), max(values)
    log = high > WIDE * low
    axes.set(**{f"{name}scale": "log" if log else "linear"})
    axis = axes.xaxis if name == "x" else axes.yaxis
    room = (high / low) ** 0.06 if log else 0.06 * (high - low or high)
    low, high = (low / room, high * room) if log else (max(low - room, 0.0), high + room)
    if log:
        axis.set_major_locator(FixedLocator(_decades(low, high)))
        axis.set_minor_locator(NullLocator())
    else:
        axis.set_major_locator(MaxNLocator(5))
    axis.set_major_formatter(FuncFormatter(_number))
    axes.set(**{f"{name}lim": (low, high)})
    return low, high


def _decades(low: float, high: float) -> list[float]:
    """Ticks of a logarithmic axis: 1, 2 and 5 of every decade, or whole decades where that would be too many."""
    first, last = int(np.floor(np.log10(low))), int(np.ceil(np.log10(high)))
    steps = (1.0, 2.0, 5.0) if last - first <= 3 else (1.0,)
    skip = -(-(last - first) // 7)
    ticks = [step * 10.0**power for power in range(first, last + 1, max(skip, 1)) for step in steps]
    return [tick for tick in ticks if low <= tick <= high]


def _beyond(axes: Axes, x: float, part: float) -> bool:
    """Whether a place lies right of that part of the axes."""
    return bool(axes.transAxes.inverted().transform(axes.transData.transform((x, 1.0)))[0] > part)


def _bar(axes: Axes, x: float, interval: tuple[float, float], color: str = ACCENT) -> None:
    low, high = interval
    if 0.0 < low <= high < HUGE:
        axes.plot([x, x], [low, high], color=color, linewidth=2, solid_capstyle="round")


def _mark(axes: Axes, value: float | None, text: str, color: str, line: Any, height: float) -> None:
    """A vertical line with its name, on the side where there is room."""
    if not value or not value < HUGE:
        return
    axes.axvline(value, ymax=height, color=color, linewidth=1.2, linestyle=line)
    aside, side = (-4, "right") if _beyond(axes, value, 0.8) else (4, "left")
    at = axes.get_xaxis_transform()
    axes.annotate(text, (value, height), (aside, 0), at, "offset points", color=color, ha=side, va="top")


def _spread(count: int) -> FloatArray:
    """Places beside each other, in an order that looks like none: multiples of the golden ratio."""
    return np.asarray(0.5 * ((np.arange(count) * 0.6180339887498949) % 1.0) - 0.25, np.float64)


# ---- SVG ----

_SVG = "{http://www.w3.org/2000/svg}"
_LINK = "{http://www.w3.org/1999/xlink}href"
_REFERENCE = re.compile(r"#([\w.-]+)")
_LONG = re.compile(r"-?\d+\.\d{3,}")
_FAMILY = re.compile(r"font-family: [^;]*; ?")
_COORDINATES = frozenset({"d", "x", "y", "points", "width", "height"})


def _element(figure: Figure, key: str, title: str, about: str) -> str:
    """The figure as an element of an HTML page: no identifiers but what it needs, the page's fonts and colours."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    source = ET.fromstring(buffer.getvalue())  # noqa: S314 - no foreign XML: matplotlib wrote it a line above
    root = ET.Element("svg", {"viewBox": source.attrib["viewBox"], "class": "plot", "role": "img"})
    root.set("aria-labelledby", f"{key}-title {key}-about")
    for name, text in (("title", title), ("about", about)):
        ET.SubElement(root, "title" if name == "title" else "desc", {"id": f"{key}-{name}"}).text = text
    ids = _identifiers(source, key)
    root.extend(_plain(child, ids) for child in source if child.tag not in (f"{_SVG}metadata", f"{_SVG}defs"))
    # One of the lists of what is shared holds a style that would be the whole page's.
    root.extend(_plain(child, ids) for child in source.findall(f"{_SVG}defs") if child.find(f"{_SVG}style") is None)
    return ET.tostring(root, encoding="unicode", short_empty_elements=False)


def _identifiers(source: ET.Element, key: str) -> dict[str, str]:
    """New names of the identifiers that something refers to."""
    values = [v for e in source.iter() for n, v in e.attrib.items() if n == _LINK or v.startswith("url(")]
    used = {i for v in values if not v.startswith("data:") for i in _REFERENCE.findall(v)}
    known = [e.attrib["id"] for e in source.iter() if e.attrib.get("id") in used]
    return {name: f"{key}-{i}" for i, name in enumerate(dict.fromkeys(known))}


def _plain(element: ET.Element, ids: dict[str, str]) -> ET.Element:
    """The element without namespaces, with short numbers, our identifiers and the page's colours."""
    plain = ET.Element(element.tag.removeprefix(_SVG))
    for name, value in element.attrib.items():
        if name == "id":
            if value in ids:
                plain.set("id", ids[value])
        elif name == _LINK or value.startswith("url("):
            plain.set(name.removeprefix("{http://www.w3.org/1999/xlink}"), _linked(value, ids))
        elif name == "style":
            plain.set(name, _styled(value))
        elif name in _COORDINATES:
            plain.set(name, _LONG.sub(_rounded, " ".join(value.split())))
        elif not name.startswith("{") and not value.startswith("rotate(-0 "):
            plain.set(name, value)
    plain.text = (element.text or "").strip() or None
    plain.extend(_plain(child, ids) for child in element)
    return plain


def _linked(value: str, ids: dict[str, str]) -> str:
    if value.startswith("data:"):
        return "".join(value.split())
    return _REFERENCE.sub(lambda found: f"#{ids[found.group(1)]}", value)


def _styled(style: str) -> str:
    style = _FAMILY.sub("", style)
    for color, variable in VARIABLES.items():
        style = style.replace(color, variable)
    return style


def _rounded(found: re.Match[str]) -> str:
    return f"{float(found.group()):.2f}".rstrip("0").rstrip(".")
