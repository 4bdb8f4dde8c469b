"""The HTML report: one file that fetches nothing and runs nothing, whatever names and numbers it is about."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import math
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from pages import Page, numbers, page_of
from reports import HOSTILE, cosines, failed, figures, full, timing, unchanged, verified

from onnx_condense.report import html, needs, plots, words
from onnx_condense.report.data import Change, Coverage, CurvePoint, ErrorSummary, Latency, Report
from onnx_condense.report.figures import Cloud, Figures, Heat

REPORTS = {"full": full(), "unchanged": unchanged(), "failed": failed(), "verified": verified()}
DRAWN: dict[str, str] = {}


@pytest.fixture(autouse=True)
def drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes most of the time, and most of these tests draw the same."""

    def once(draw: Callable[..., str], *arguments: Any) -> str:
        key = repr((draw.__name__, *(a.tobytes() if isinstance(a, np.ndarray) else a for a in arguments)))
        if key not in DRAWN:
            DRAWN[key] = draw(*arguments)
        return DRAWN[key]

    for name in ("curve", "scatter", "histogram", "rounds", "heat"):
        monkeypatch.setattr(plots, name, functools.partial(once, getattr(plots, name)))


@pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS)
@pytest.mark.parametrize("name", [HOSTILE[0], "plain"])
def test_nothing_is_fetched_and_nothing_runs(report: Report, name: str) -> None:
    page = page_of(report, figures(name))
    assert not {"script", "link", "iframe", "object", "embed", "base", "form", "a"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        assert not [n for n in attributes if n.startswith("on")], (tag, attributes)
        for attribute in ("href", "src", "xlink:href", "action", "data", "srcset"):
            assert attributes.get(attribute, "#").startswith(("#", "data:image/png;base64,"))
        for value in attributes.values():
            assert all(found == "#" for found in re.findall(r"url\(\s*['\"]?(.)", value)), (tag, value)
    assert "@import" not in html.page(report, Figures())
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert {"default-src 'none'", "style-src 'unsafe-inline'", "img-src data:"} <= set(policy.split("; "))
    assert not re.search("script-src|connect-src|font-src", policy)


def test_identifiers_are_unique_and_all_references_lead_somewhere() -> None:
    pictures = figures()
    pictures = Figures(pictures.clouds * 3, pictures.heats * 3)  # the same drawing several times
    page = page_of(full(), pictures)
    ids = page.ids()
    assert len(set(ids)) == len(ids)
    for _, attributes in page.tags:
        wanted = [attributes["href"][1:]] if attributes.get("href", "").startswith("#") else []
        wanted += attributes.get("aria-labelledby", "").split()
        wanted += re.findall(r"url\(#([^)]*)\)", " ".join(attributes.values()))
        assert set(wanted) <= set(ids)


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_names_are_text(name: str) -> None:
    """The elements are those of a report with plain names; the names are there to be read."""
    plain, hostile = page_of(full(), figures()), page_of(full(name), figures(name))
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in plain.tags]
    for (_, one), (_, other) in zip(plain.tags, hostile.tags, strict=True):
        assert set(one) | {"title"} == set(other) | {"title"}
    assert " ".join(words.short(name).split()) in hostile.text
    assert "49" not in re.findall(r"-->(\S*)", hostile.text)


def test_what_moves_the_cursor_or_turns_the_text_is_shown_escaped() -> None:
    source = html.page(full("\x1b[2J\x00 \u202etxt\u2066 \ud800"), figures("\u202e"))
    assert not [c for c in source if not c.isprintable() and c not in {"\n", "\N{NO-BREAK SPACE}"}]
    assert "\\x1b[2J\\x00" in source
    source.encode("utf-8")


def test_long_names_are_shortened_with_the_whole_as_tooltip() -> None:
    page = page_of(dataclasses.replace(full("x" * 500), refusals=(), notes=(), origin=None))
    assert "x" * 200 not in page.text
    assert "x" * 500 in [a.get("title") for t, a in page.tags if t == "bdi"]


TOLD = (
    # headline and key figures
    *("Gemm.onnx keeps 30.3 % of its parameters", "456 k → 138 k", "1.83 MB → 0.562 MB", "0.0037 to 0.0048"),
    *("within the tolerance of 0.01", "14 → 6 ms", "20 → 9.5 MB", "12.3 s"),
    # error by output, as served, coverage
    *("Verification asked 2 times", "0.0123 (no. 3)", "0.31 0.999987 99.51 %", "1417 (0.0815)"),
    *("CPU 0.0043 1e\N{MINUS SIGN}7 0.01 within", "hidden/Gemm 0.02 0.002 0.014 above"),
    *("fitted on 812 0.0036 never seen 819 0.0042", "at: hidden/Gemm (7.5 rows each)", "Samples that belong together"),
    "200,000 0.0051 0.0021 1,000 138,102 0.0163 0.0042 2,100",
    # times, widths, what had to stay
    "256 CPU (2 threads) 2 1 2.69\N{MULTIPLICATION SIGN} 2.50 to 2.90 faster",
    *("by hidden/Gemm:0 and 1 more 800 → 217 0.0031 1.25 → 0.375"),
    *("64 → 60 exact", "graph output hidden/Gemm, aux", "Softmax of hidden/Gemm soft", "Before: 800 channels 24 shown"),
    # where it comes from
    *("a remark about hidden/Gemm", "onnx 1.20.0, numpy 2.3.1", "x86_64, Linux, 2 cores"),
    *("ab" * 32, "12" * 32, "cd" * 32, "onnx-condense hidden/Gemm slim.onnx"),
)


def test_everything_is_told() -> None:
    page = page_of(full(), figures())
    assert page.section_ids() == [
        *(
            "curve",
            "widths",
            "condensation",
            "accuracy",
            "served",
            "speed",
            "refusals",
            "training",
            "coverage",
            "notes",
            "origin",
        )
    ]
    for text in TOLD:
        assert text in page.text, text


@pytest.mark.parametrize(
    ("section", "lacking"),
    [
        ("curve", {"curve": ()}),
        ("widths", {"spaces": ()}),
        ("accuracy served", {"error": None}),
        ("speed", {"latency": ()}),
        ("refusals", {"refusals": ()}),
        ("training", {"tuning": None}),
        ("coverage", {"coverage": None}),
        ("notes", {"notes": ()}),
        ("origin", {"origin": None}),
    ],
)
def test_what_is_not_there_leaves_no_frame(section: str, lacking: dict[str, Any]) -> None:
    every = page_of(full()).section_ids()
    left = page_of(dataclasses.replace(full(), **lacking)).section_ids()
    gone = set(section.split()) | ({"curve"} if section.startswith("accuracy") else set())
    assert left == [s for s in every if s not in gone]


def test_a_network_that_stays() -> None:
    page = page_of(unchanged())
    assert page.section_ids() == ["widths", "refusals", "origin"]
    assert "Gemm.onnx stays as it is" in page.text
    assert "No channel can go within tolerance 0.0001 (at hidden/Gemm)." in page.text
    assert "→" not in page.text
    assert not [a for t, a in page.tags if t == "svg"]


def test_a_run_that_failed_and_a_proof_repeated() -> None:
    page = page_of(failed())
    assert page.section_ids() == []
    assert "The network could not be condensed" in page.text
    assert "--keep 0.01 can't be reached (at hidden/Gemm)." in page.text
    page = page_of(verified(), Figures(figures().clouds))
    assert page.section_ids() == ["accuracy", "served", "speed", "notes", "origin"]
    assert "Gemm.onnx: the proof holds" in page.text
    error = verified().error
    assert error is not None
    wrong = dataclasses.replace(verified(), error=dataclasses.replace(error, value=0.02))
    assert "the proof does not hold" in page_of(wrong).text
    assert "above the tolerance of 0.01" in page_of(wrong).text
    open_end = dataclasses.replace(verified(), error=dataclasses.replace(error, tolerance=None))
    assert "were compared anew" in page_of(open_end).text


@pytest.mark.parametrize(
    ("intervals", "said", "unsaid"),
    [
        ([(1.1, 1.3)], "1.2 times faster at batch 1.", "slower"),
        ([(0.9, 1.3)], "No measurable difference in speed.", "faster"),
        ([(0.7, 0.8)], "0.748 times the speed, which is slower, at batch 1.", "faster"),
        ([(0.9, 1.3), (2.0, 2.1)], "No measurable difference at batch 1; 2.05 times faster at batch 2.", "slower"),
        ([(2.0, 2.1)] * 5, "2.05 times faster at batch 1; 2.05 times faster at batch 2;", "slower"),
    ],
)
def test_faster_is_only_said_where_the_interval_says_so(
    intervals: list[tuple[float, float]], said: str, unsaid: str
) -> None:
    latency = tuple(timing(*interval, batch=i + 1) for i, interval in enumerate(intervals))
    report = dataclasses.replace(full(), latency=latency)
    remarks = " ".join(words.remarks(report))
    assert said in remarks
    assert unsaid not in remarks
    assert len(remarks) < 400


def test_weak_evidence_and_other_methods_are_told() -> None:
    assert "Lossless" not in " ".join(words.remarks(full()))
    assert "Lossless: the weights prove" in " ".join(words.remarks(dataclasses.replace(full(), evidence="weights")))
    assert "Inputs were drawn" in " ".join(words.remarks(dataclasses.replace(full(), evidence="synthetic")))
    assert "the smallest neurons were dropped" in " ".join(words.remarks(dataclasses.replace(full(), method="drop")))
    assert "Dry run" in " ".join(words.remarks(dataclasses.replace(full(), dry_run=True)))
    assert "least squares" not in page_of(dataclasses.replace(full(), method="drop"), figures()).text


def test_same_data_same_bytes_whatever_the_user_plots_with() -> None:
    first = html.page(full(), figures())
    DRAWN.clear()
    before = dict(mpl.rcParams)
    with mpl.rc_context(
        {"axes.grid": True, "xtick.direction": "in", "font.size": 30, "svg.fonttype": "path", "svg.hashsalt": "x"}
    ):
        assert html.page(full(), figures()) == first
        assert mpl.rcParams["font.size"] == 30
    assert dict(mpl.rcParams) == before


def test_the_state_of_pyplot_is_not_touched() -> None:
    code = "import sys; import onnx_condense.report.html; assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_largest_page_is_small() -> None:
    """As much as is ever shown of everything."""
    many = figures(points=20_000)
    cloud, wide = many.clouds[0], cosines(192)
    pictures = Figures((cloud,) * 50, (Heat("s", 5000, 2000, wide, wide),) * 4)
    report = full()
    error = report.error
    assert error is not None
    report = dataclasses.replace(
        report,
        error=dataclasses.replace(error, outputs=error.outputs * 500),
        spaces=report.spaces * 1000,
        refusals=tuple(dataclasses.replace(r, reason=f"{r.reason} {i}") for i in range(2000) for r in report.refusals),
        notes=report.notes * 1000,
        latency=tuple(timing(1.1, 1.3, batch=i + 1, rounds=96) for i in range(20)),
    )
    source = html.page(report, pictures)
    assert len(source.encode()) < 1_500_000
    text = Page(source).text
    for left_out in ("2,700 more spaces", "940 more outputs", "900 more notes", "46 more outputs have no picture here"):
        assert left_out in text, left_out
    assert "more reasons" in text
    assert text.count("graph output") <= html.REASONS


@pytest.mark.parametrize(
    "cloud",
    [
        Cloud("o", numbers(), numbers(), numbers()),
        Cloud("o", numbers(1.0, 1.0), numbers(1.0, 1.0), numbers(0.0, 0.0)),
        Cloud("o", numbers(math.nan, math.inf), numbers(1.0, 2.0), numbers(math.nan, math.inf)),
        Cloud("o", numbers(1e300, -1e300), numbers(1e300, -1e300), numbers(1e300, 1e301)),
        Cloud("o", numbers(5.0), numbers(5.0), numbers(0.1)),
    ],
    ids=["empty", "constant", "not finite", "huge", "single"],
)
def test_clouds_that_show_nothing_are_left_out(cloud: Cloud) -> None:
    page = page_of(dataclasses.replace(full(), latency=(), curve=()), Figures((cloud,)))
    assert not [tag for tag, _ in page.tags if tag == "figure"]


@pytest.mark.parametrize(
    "cloud",
    [
        Cloud("o", numbers(0.0, 1.0), numbers(0.0, 1.0), numbers(0.0, 1e-9, 1e9)),
        Cloud("o", numbers(0.0, 1e-30), numbers(1e-30, 0.0), numbers(0.5, 0.5)),
        Cloud("o", numbers(1e90, math.nan, -1e90), numbers(1e90, 1.0, -1e90), numbers(1e-90, 1e90, math.inf)),
    ],
    ids=["far apart", "tiny", "large"],
)
def test_odd_clouds_are_drawn(cloud: Cloud) -> None:
    page = page_of(dataclasses.replace(full(), latency=(), curve=()), Figures((cloud,)))
    assert len([tag for tag, _ in page.tags if tag == "figure"]) == 2


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0])
def test_odd_errors_are_told_and_not_drawn(value: float) -> None:
    report = full()
    error = report.error
    assert error is not None
    outputs = (dataclasses.replace(error.outputs[0], value=value, interval=(value, value)),)
    report = dataclasses.replace(report, error=dataclasses.replace(error, value=value, outputs=outputs))
    page = page_of(report, figures())
    assert "curve" not in page.section_ids()
    assert f"Its answers differ by {words.number(value)} " in page.text
    assert ("within the tolerance" in page.text) == (value == 0.0)


def test_a_tolerance_of_zero_and_empty_counts() -> None:
    error = ErrorSummary("relative", 0.0, 0.0, 1, 0, ())
    report = dataclasses.replace(full(), error=error, parameters=Change(0, 0), macs=Change(0, 0), spaces=())
    assert "on 1 sample that" in page_of(report).text


def test_times_without_rounds_have_no_drawing() -> None:
    bare = Latency("CPUExecutionProvider", 0, 1, 2.0, 1.0, 2.0, (1.9, 2.1))
    page = page_of(dataclasses.replace(full(), latency=(bare,), curve=()))
    assert "speed" in page.section_ids()
    assert not [tag for tag, _ in page.tags if tag == "figure"]


def test_a_curve_of_one_point_is_none() -> None:
    assert "curve" not in page_of(dataclasses.replace(full(), curve=(CurvePoint(400_000, 0.001),))).section_ids()


def test_samples_that_are_independent() -> None:
    report = dataclasses.replace(full(), coverage=Coverage(0.0036, 812, grouped=False))
    assert "independent of each other" in page_of(report).text
    assert "Few samples" not in page_of(report).text


# ---- installation ----


def test_what_is_missing_is_told_without_importing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert needs.missing() == ""
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == "matplotlib" else there(n))
    assert needs.missing() == "the HTML report needs matplotlib: pip install 'onnx-condense[report]'"
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert "jinja2 and matplotlib" in needs.missing()
    monkeypatch.undo()
    code = "import sys; from onnx_condense.report.needs import missing; missing(); "
    code += "assert not {'matplotlib', 'jinja2'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
