"""How counts are said. Imports nothing."""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    """A number with its noun: "1 sample", "1,200 samples"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
