"""What the HTML report says of an error, metric by metric; one that is not named here is a function of the user."""

from __future__ import annotations

from collections.abc import Mapping

RELATIVE, LARGEST, SHARE = "relative", "max-abs", "agreement"

TITLES: Mapping[str, str] = {
    RELATIVE: "Relative error",
    "per-feature": "Error of the worst feature",
    LARGEST: "Largest difference",
    SHARE: "Share of changed classes",
}

ACCURACY: Mapping[str, str] = {
    RELATIVE: "Its answers differ by {} of their spread",
    "per-feature": "Its worst output feature differs by {} of its own spread",
    LARGEST: "Its answers differ by {} at most",
    SHARE: "A share of {} of its answers names another class",
}

MEANINGS: Mapping[str, str] = {
    RELATIVE: "is relative: the root mean square of the difference over the spread of the dense network's output",
    "per-feature": "is that of the worst feature: the root mean square of its difference over its own spread",
    LARGEST: "is the largest absolute difference of any element, in the output's own unit",
    SHARE: "is the share of samples (of positions) at which another class has the largest value",
}


def title(metric: str) -> str:
    """What a key figure is called."""
    return TITLES.get(metric, "Error")


def meaning(metric: str) -> str:
    """What stands behind "The error"."""
    return MEANINGS.get(metric, f"is what the function {metric} says of all outputs together")
