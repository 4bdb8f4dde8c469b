"""The HTML report in a browser: nothing sticks out, nothing is asked for, nothing runs, in light and dark."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
from reports import HOSTILE, figures, full, timing, unchanged

from onnx_condense import condense
from onnx_condense.proving import footprint, latency
from onnx_condense.report import html
from onnx_condense.report.data import Footprint, Latency, Report
from onnx_condense.report.figures import Figures

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Dialog

MODELS = Path(__file__).parents[1] / "models"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OFFLINE = ("--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync")
Scheme = Literal["light", "dark"]
SCREENS: tuple[tuple[int, Scheme], ...] = ((1280, "light"), (1280, "dark"), (390, "light"), (390, "dark"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium that asks nobody for anything."""
    api = pytest.importorskip("playwright.sync_api", reason="no playwright")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with api.sync_playwright() as play:
        started = play.chromium.launch(executable_path=CHROMIUM, args=list(OFFLINE))
        yield started
        started.close()


def faults(browser: Browser, file: Path, width: int, scheme: Scheme) -> list[str]:
    """What is wrong with a page on one screen."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    found: list[str] = []
    page = context.new_page()

    def dismissed(dialog: Dialog) -> None:
        found.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    page.on("console", lambda message: found.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: found.append(f"error: {error}"))
    page.on("dialog", dismissed)
    page.on("request", lambda request: found.append(f"request: {request.url}"))
    page.goto(file.as_uri())
    seen = page.evaluate(
        """() => [document.documentElement.scrollWidth, innerWidth, document.scripts.length, document.title,
            getComputedStyle(document.body).backgroundColor,
            [...document.querySelectorAll('main *, header *')].filter(e => !e.closest('.scroll, svg'))
                .filter(e => e.getBoundingClientRect().right > innerWidth + 0.5).map(e => e.outerHTML.slice(0, 200))]"""
    )
    context.close()
    if seen[0] > seen[1] or seen[5]:
        found.append(f"sticks out: {seen[0]} of {seen[1]}: {seen[5][:3]}")
    if seen[2] or not seen[3]:
        found.append(f"{seen[2]} scripts, title {seen[3]!r}")
    if (sum(map(int, seen[4].strip("rgb()").split(","))) < 384) != (scheme == "dark"):
        found.append(f"not {scheme}: {seen[4]}")
    # Pictures inside the file are requests as well, to the browser.
    own = f"request: {file.as_uri()}"
    return [f for f in found if f != own and not f.startswith("request: data:image/png")]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Reports on networks that come with the project, and made by hand."""
    folder = tmp_path_factory.mktemp("pages")
    made: dict[str, tuple[Report, Figures]] = {
        "ignition": condensed("ignition", "state", keep=0.3),
        "digits": condensed("digits", "image", keep=0.6),
        "stays": condensed("digits", "image", tolerance=1e-12),
        "full": (full(), figures()),
        "unchanged": (unchanged(), Figures()),
    }
    for i, name in enumerate(HOSTILE):
        undrawn = dataclasses.replace(full(name), latency=(), curve=())
        made[f"hostile {i}"] = undrawn, dataclasses.replace(figures(name, channels=8), clouds=())
    for name, (report, pictures) in made.items():
        (folder / f"{name}.html").write_text(html.page(report, pictures), encoding="utf-8")
    return {name: folder / f"{name}.html" for name in made}


def condensed(name: str, key: str, **goal: Any) -> tuple[Report, Figures]:
    """By a method that is quick; times are made up, as measuring takes seconds."""

    def compare(*_: Any, batch: int, **__: Any) -> Latency:
        return timing(1.2, 1.4, batch=batch)

    with np.load(MODELS / f"{name}.npz") as stored:
        inputs = stored[key][:300]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "compare", compare)
        patch.setattr(latency, "confirmed", lambda *_, seen, **__: seen)
        patch.setattr(footprint, "measure", lambda *_: Footprint("CPUExecutionProvider", (9.0, 4.0), (8.0, 3.0)))
        found = condense(MODELS / f"{name}.onnx", calibration={key: inputs}, method="condensation", **goal)
    return found.report, found.figures()


NAMES = ("ignition", "digits", "stays", "full", "unchanged")


@pytest.mark.parametrize(("width", "scheme"), SCREENS)
@pytest.mark.parametrize("name", NAMES)
def test_pages_fit_and_keep_to_themselves(
    browser: Browser, files: dict[str, Path], name: str, width: int, scheme: Scheme
) -> None:
    assert faults(browser, files[name], width, scheme) == []


@pytest.mark.parametrize("name", ["ignition", "full"])
def test_paper_is_light_and_wide_enough(browser: Browser, files: dict[str, Path], name: str) -> None:
    """A4 and letter leave about 690 px."""
    page = browser.new_page(viewport={"width": 690, "height": 900}, color_scheme="dark")
    page.goto(files[name].as_uri())
    page.emulate_media(media="print")
    assert page.evaluate("document.documentElement.scrollWidth") <= 690
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    page.close()


@pytest.mark.parametrize("index", range(len(HOSTILE)))
def test_hostile_names_do_nothing(browser: Browser, files: dict[str, Path], index: int) -> None:
    assert faults(browser, files[f"hostile {index}"], 390, "light") == []


def test_real_reports_have_what_they_should(files: dict[str, Path]) -> None:
    for name, shown, hidden in (
        ("ignition", ("widths", "condensation", "accuracy", "speed"), ()),
        ("digits", ("widths", "condensation", "accuracy", "speed"), ()),
        ("stays", ("widths", "refusals"), ("curve", "condensation", "accuracy", "speed")),
    ):
        source = files[name].read_text(encoding="utf-8")
        for section in shown:
            assert f'<section id="{section}">' in source, (name, section)
        for section in hidden:
            assert f'<section id="{section}">' not in source, (name, section)


@pytest.mark.parametrize(
    "body",
    [
        '<p style="width: 2000px">wide</p>',
        '<img src="https://example.invalid/a.png" alt="">',
        "<script>console.error('runs')</script>",
        "<script>alert(1)</script>",
    ],
)
def test_faults_are_found(browser: Browser, tmp_path: Path, body: str) -> None:
    """Without this the tests above could be blind."""
    source = html.page(dataclasses.replace(unchanged(), origin=None), Figures())
    open_to_all = source.replace('http-equiv="Content-Security-Policy"', "").replace("<main>", f"<main>{body}")
    file = tmp_path / "bad.html"
    file.write_text(open_to_all, encoding="utf-8")
    assert faults(browser, file, 390, "light")


@pytest.mark.parametrize(
    "body", ["<script>document.title = ''</script>", '<img src="x.png" onerror="alert(1)" alt="">']
)
def test_what_slips_through_is_stopped_by_the_policy(browser: Browser, tmp_path: Path, body: str) -> None:
    file = tmp_path / "bad.html"
    file.write_text(html.page(unchanged(), Figures()).replace("<main>", f"<main>{body}"), encoding="utf-8")
    found = faults(browser, file, 390, "light")
    assert any("Content Security Policy" in fault for fault in found)
    assert not [fault for fault in found if fault.startswith("dialog")]
