"""Whether what makes the HTML report is installed; asked before any work is done, so nothing of it is imported."""

from __future__ import annotations

import importlib.util

PACKAGES = ("jinja2", "matplotlib")


def can_plot() -> bool:
    """Whether plots can be drawn."""
    return importlib.util.find_spec("matplotlib") is not None


def missing() -> str:
    """What to install for `report.html`, in words; "" if it is all there."""
    lacking = [package for package in PACKAGES if importlib.util.find_spec(package) is None]
    if not lacking:
        return ""
    return f"the HTML report needs {' and '.join(lacking)}: pip install 'onnx-condense[report]'"
