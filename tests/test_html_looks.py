"""How the HTML report looks and reads aloud: headings, colours of both themes, drawings."""

from __future__ import annotations

import html as standard
import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
from pages import Page, numbers, page_of
from reports import figures, full

from onnx_condense.report import html, plots


def test_headings_tables_and_drawings_can_be_read_aloud() -> None:
    page = page_of(full(), figures())
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    assert ("html", {"lang": "en"}) in page.tags
    assert all(a.get("scope") in ("col", "row") for t, a in page.tags if t == "th")
    drawn = [a for t, a in page.tags if t == "svg"]
    assert drawn
    assert all(a["role"] == "img" and len(a["aria-labelledby"].split()) == 2 for a in drawn)
    scrolling = [a for _, a in page.tags if a.get("class") == "scroll"]
    assert scrolling
    assert all(a["tabindex"] == "0" and a["aria-label"] and a["role"] == "region" for a in scrolling)


def luminance(color: str) -> float:
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def themes() -> list[dict[str, str]]:
    """The colours of light and dark."""
    style = (Path(html.__file__).parent / "style.css").read_text(encoding="utf-8")
    blocks = re.findall(r":root \{([^}]*)\}", style)
    return [dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", block)) for block in blocks]


@pytest.mark.parametrize("theme", themes(), ids=["light", "dark"])
def test_text_stands_out_in_both_themes(theme: dict[str, str]) -> None:
    for text in ("ink", "muted", "accent", "limit"):
        for ground in ("page", "panel"):
            assert contrast(theme[text], theme[ground]) >= 4.5, (text, ground)
    assert contrast(theme["dense"], theme["page"]) >= 3.0


def test_drawings_take_colours_and_fonts_of_the_page() -> None:
    source = html.page(full(), figures())
    drawings = re.findall(r"<svg.*?</svg>", source, re.DOTALL)
    assert len(drawings) == 7
    known = {name for theme in themes() for name in theme}
    for drawing in drawings:
        bare = re.sub(r"data:image/png;base64,[\w+/=]*", "", drawing)
        assert not re.search(r"#[0-9a-f]{6}\b|font-family|<style|<metadata|\$", bare)
        assert set(re.findall(r"var\(--(\w+)\)", bare)) <= known


@pytest.mark.parametrize("text", ["<b>&\"'</b>", "]]>", "</svg>"])
def test_titles_of_drawings_are_escaped(text: str) -> None:
    drawing = plots.heat("k", text, text, np.eye(3))
    page = Page(drawing)
    assert [part for part in page.parts if part.strip()] == [text, text]
    assert [tag for tag, _ in page.tags].count("svg") == 1
    assert standard.escape(text, quote=False) in drawing


def test_cosines_are_told_by_hue_and_opacity() -> None:
    tinted = plots._tinted(numbers(1.0, 0.0, -1.0, 0.5, math.nan).reshape(1, -1))[0]
    assert tinted[:, 3].tolist() == [255, 0, 255, 131, 0]
    assert tinted[0, :3].tolist() == list(plots.ALIKE)
    assert tinted[2, :3].tolist() == list(plots.OPPOSED)


def test_the_line_of_a_curve_joins_what_nothing_smaller_beats() -> None:
    points = np.array([(30.0, 0.01), (20.0, 0.02), (25.0, 0.03), (40.0, 0.01), (50.0, 0.001)])
    assert plots._front(points).tolist() == [[20.0, 0.02], [30.0, 0.01], [50.0, 0.001]]


@pytest.mark.parametrize(("low", "high"), [(0.3, 9.0), (1e-9, 1e9), (4e-4, 0.03), (1e-80, 1e80)])
def test_ticks_of_logarithmic_axes_are_few_and_inside(low: float, high: float) -> None:
    ticks = plots._decades(low, high)
    assert 2 <= len(ticks) <= 9
    assert all(low <= tick <= high for tick in ticks)
