"""Pages taken apart, for the tests of the HTML report."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import numpy as np

from onnx_condense.report import html
from onnx_condense.report.data import Report
from onnx_condense.report.figures import Figures

VOID = {"meta", "br", "img", "link", "hr", "input"}
BLOCKS = {"td", "th", "dt", "dd", "p", "div", "section", "h1", "h2", "h3", "br", "figcaption", "small", "desc", "title"}


class Page(HTMLParser):
    """What a page consists of: every start tag in order, and the text between."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.parts: list[str] = []
        self.feed(source)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        assert len({name for name, _ in attrs}) == len(attrs), f"attribute twice: {tag} {attrs}"
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag in BLOCKS:
            self.parts.append(" ")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """It has to close the one that is open."""
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Note text that is shown."""
        if "style" not in self.open:
            self.parts.append(data)

    @property
    def text(self) -> str:
        """All of it, blanks folded."""
        return " ".join("".join(self.parts).split())

    def ids(self) -> list[str]:
        """Of all elements."""
        return [attributes["id"] for _, attributes in self.tags if "id" in attributes]

    def section_ids(self) -> list[str]:
        """Of the sections, in order."""
        return [attributes["id"] for tag, attributes in self.tags if tag == "section"]


def page_of(report: Report, pictures: Figures | None = None) -> Page:
    """The page of a report."""
    return Page(html.page(report, Figures() if pictures is None else pictures))


def numbers(*values: float) -> Any:
    """An array [n], float64."""
    return np.array(values, float)
