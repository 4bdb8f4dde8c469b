"""What the user wants left alone, as asked for: layers by name, and how far any of them may be narrowed."""

from __future__ import annotations

import dataclasses
import math

from onnx_condense.errors import UsageError

# Shares times widths that are whole numbers but for rounding.
SLACK = 1e-9


@dataclasses.dataclass(frozen=True)
class Control:
    """What may be narrowed, and how far; as asked for.

    include: patterns of names, only what one of them matches is touched; empty: everything may be.
    exclude: patterns of names, nothing that one of them matches is touched.
    min_width: channels that every space keeps at least; None: one. max_cut: share of its channels that a space may
    lose at most; None: all but one.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    min_width: int | None = None
    max_cut: float | None = None

    def given(self) -> tuple[str, ...]:
        """The options that were used."""
        fields = ((f.name, getattr(self, f.name)) for f in dataclasses.fields(self))
        return tuple(f"--{name.replace('_', '-')}" for name, value in fields if value not in ((), None))

    def check(self) -> None:
        """See that the numbers are in range.

        Raises:
            UsageError: one is not.
        """
        if self.min_width is not None and self.min_width < 1:
            raise UsageError("min-width", f"--min-width {self.min_width}: give an integer of at least 1")
        if self.max_cut is not None and not 0.0 < self.max_cut < 1.0:
            raise UsageError("max-cut", f"--max-cut {self.max_cut}: give a share between 0 and 1")

    def least(self, width: int) -> int:
        """How many of so many channels stay."""
        return max(width - self.most(width), min(self.min_width or 0, width))

    def most(self, width: int) -> int:
        """How many of so many channels may go by `max_cut` alone."""
        return width if self.max_cut is None else math.floor(width * self.max_cut + SLACK)


EVERYTHING = Control()
