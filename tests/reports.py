"""Reports and figures made by hand, for the tests of what is printed and drawn."""

from __future__ import annotations

import dataclasses

import numpy as np

from onnx_condense.report.data import (
    Change,
    Coverage,
    CurvePoint,
    ErrorSummary,
    Footprint,
    Latency,
    Origin,
    OutputError,
    Reason,
    RefusalRow,
    Report,
    Served,
    SpaceRow,
    ThinSpace,
    Tuning,
    TuningRound,
    WorstFeature,
    WorstSample,
)
from onnx_condense.report.figures import Cloud, Figures, Heat

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</svg></title></desc><script>alert(2)</script>",
    "]]><script>alert(3)</script><![CDATA[",
    "-->{{ 7 * 7 }}{% for a in b %}${7*7}",
    "javascript:alert(4)",
    "$\\frac{a}{$ \\sqrt[3] $x^2$",
    "\x00\x08\x1b[31mred\x7f\ud800\ufffe",
    "\u202egpj.exe\u2066\u200b\ufeff",
    "&lt;b&gt; &#60;b&#62; %3Cscript%3E",
    "</style><style>*{display:none}</style>",
    "url(#x) #010101 #hash",
    "long/" * 2000,
)
"""What names out of files may hold."""


def timing(low: float, high: float, *, batch: int = 1, rounds: int = 16) -> Latency:
    """A timing with this interval."""
    rng = np.random.default_rng(batch)
    pairs = zip(2.0 + 0.1 * rng.random(rounds), 1.0 + 0.1 * rng.random(rounds), strict=True)
    return Latency(
        "CPUExecutionProvider", 2, batch, 2.0, 1.0, (low * high) ** 0.5, (low, high), tuple((a, b) for a, b in pairs)
    )


def full(name: str = "hidden/Gemm") -> Report:
    """A report that has everything; name: of all nodes, tensors and files."""
    output = OutputError(
        name, 0.0042, WorstFeature(3, 0.0123), (0.0037, 0.0048), 0.31, 0.999987, 0.9951, (WorstSample(1417, 0.0815),)
    )
    other = dataclasses.replace(output, name="other", value=0.001, interval=(0.0009, 0.0011), agreement=None)
    served = (
        Served("CPUExecutionProvider", 0.0043, 1e-7, 0.01),
        Served(f"{name}ExecutionProvider", 0.02, 0.002, 0.014),
    )
    return Report(
        status="condensed",
        dry_run=False,
        parameters=Change(456_254, 138_102),
        macs=Change(455_000, 137_000),
        bytes=Change(1_833_860, 561_624),
        error=ErrorSummary("relative", 0.0042, 0.01, 819, 2, (output, other), served),
        coverage=Coverage(0.0036, 812, grouped=True, thin=(ThinSpace(name, 7.5),)),
        tuning=Tuning(
            0.0163,
            3100,
            61.5,
            "mse",
            7654,
            (TuningRound(200_000, 0.0051, 0.0021, 1000, 20.0), TuningRound(138_102, 0.0163, 0.0042, 2100, 41.5)),
        ),
        curve=tuple(CurvePoint(456_254 - 40_000 * i, 0.0008 * 1.6**i) for i in range(9)),
        latency=(timing(1.1, 1.3), timing(2.5, 2.9, batch=256)),
        footprint=Footprint("CPUExecutionProvider", (14.0, 6.0), (20.0, 9.5)),
        spaces=(
            SpaceRow(name, (f"{name}:0", "second"), ("reader",), 800, 217, 0.0031, (1.25, 0.375)),
            SpaceRow("merged", ("writer",), ("reader",), 64, 60, 0.0),
            SpaceRow("out", ("last",), (), 54, 54, 0.0),
        ),
        refusals=(
            RefusalRow("out", name, "graph output"),
            RefusalRow("out", "aux", "graph output"),
            RefusalRow("attention", "soft", f"Softmax of {name}"),
        ),
        evidence="samples",
        origin=Origin(
            {"onnx": "1.20.0", "numpy": "2.3.1"},
            "x86_64, Linux, 2 cores",
            ("onnx-condense", name, "slim.onnx"),
            f"models/{name}.onnx",
            "ab" * 32,
            "12" * 32,
            name,
            "cd" * 32,
        ),
        notes=(f"a remark about {name}",),
        seconds=12.3,
    )


def unchanged(name: str = "hidden/Gemm") -> Report:
    """A report on a network that stays."""
    dense = full(name)
    count = Change(456_254, 456_254)
    return Report(
        status="unchanged",
        dry_run=False,
        reason=Reason("tolerance", "no channel can go within tolerance 0.0001", name),
        parameters=count,
        macs=count,
        bytes=count,
        spaces=tuple(dataclasses.replace(row, after=row.before, error=0.0, ms=None) for row in dense.spaces),
        refusals=dense.refusals,
        evidence="samples",
        origin=dense.origin,
    )


def failed(name: str = "hidden/Gemm") -> Report:
    """A report on a run that came to nothing."""
    return Report(status="failed", dry_run=False, reason=Reason("keep", "--keep 0.01 can't be reached", name))


def verified(name: str = "hidden/Gemm") -> Report:
    """A proof repeated for two files that lie there."""
    return dataclasses.replace(
        full(name), status="verified", spaces=(), refusals=(), curve=(), coverage=None, tuning=None
    )


def figures(name: str = "hidden/Gemm", *, points: int = 400, channels: int = 24) -> Figures:
    """Pictures of one output and one space."""
    rng = np.random.default_rng(0)
    dense = rng.standard_normal(points)
    errors = np.exp(rng.standard_normal(points) - 5.5)
    return Figures(
        (Cloud(name, dense, dense + 0.004 * rng.standard_normal(points), errors),),
        (Heat(name, 800, 217, cosines(channels), cosines(channels // 2)),),
    )


def cosines(count: int) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Of random directions."""
    rows = np.random.default_rng(count).standard_normal((count, 20))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows @ rows.T, np.float64).reshape(count, count)
