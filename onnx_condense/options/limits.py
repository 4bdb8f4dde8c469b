"""Limits on size and speed, as they are asked for: what they mean, how they are read and how they are said.

Counts nothing itself; `bounds` holds a network against them.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Literal

from onnx_condense.errors import UsageError

SUFFIXES: Mapping[str, int] = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}
_COUNT = re.compile(r"(\d+(?:\.\d+)?)([kMG]?)", re.ASCII)
COUNTS = ("max-parameters", "max-macs", "max-bytes")
# What best reachable values are rounded to.
DIGITS = 3


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a network may be at most; None: anything.

    max_parameters, max_macs, max_bytes: as the report counts them; bytes are those of the file, with weights beside it.
    max_latency: ms of one pass. speedup: how many times as fast as the dense network, at least.
    The last two hold for every batch that is timed, on every provider.
    """

    max_parameters: int | None = None
    max_macs: int | None = None
    max_bytes: int | None = None
    max_latency: float | None = None
    speedup: float | None = None

    def given(self) -> Mapping[str, float]:
        """The limits that were asked for, by option."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {f"--{name.replace('_', '-')}": value for name, value in fields.items() if value is not None}

    @property
    def timed(self) -> bool:
        """Whether a stopwatch has to tell if they are met."""
        return self.max_latency is not None or self.speedup is not None

    def check(self) -> None:
        """See that every limit is one.

        Raises:
            UsageError: a value is out of range.
        """
        for option, value in self.given().items():
            code = option.removeprefix("--")
            if option == "--speedup" and not 1.0 < value < math.inf:
                raise UsageError(code, f"--speedup {value}: give a factor above 1")
            if option == "--max-latency" and not 0.0 < value < math.inf:
                raise UsageError(code, f"--max-latency {value}: give milliseconds above 0")
            if code in COUNTS and not (1 <= value < math.inf and value == int(value)):
                raise UsageError(code, f"{option} {value}: give a whole number of at least 1")


AUTO = "auto"
Multiple = int | Literal["auto"] | None
"""What narrowed widths are multiples of; auto: what measures well; None: what is known to run well."""


def multiple_of(text: str | None) -> Multiple:
    """What the command got as --multiple-of.

    Raises:
        UsageError: neither a number nor "auto".
    """
    if text is None:
        return None
    if text == AUTO:
        return "auto"
    if not (text.isdecimal() and text.isascii()):
        raise UsageError("multiple-of", f"--multiple-of {text!r}: give a number, or auto")
    return int(text)


NO_LIMITS = Limits()


def count_of(option: str, text: str | None) -> int | None:
    """What the command got as a limit on a count: a number, perhaps with k, M or G (decimal) behind it; None for None.

    Raises:
        UsageError: something else, or no whole number of things.
    """
    if text is None:
        return None
    match = _COUNT.fullmatch(text)
    if match is None:
        code = option.removeprefix("--")
        raise UsageError(code, f"{option} {text!r}: give a number, for example 250000, 250k, 1.5M or 2G")
    whole, _, part = match[1].partition(".")
    numerator, denominator = int(whole + part) * SUFFIXES[match[2]], int(10 ** len(part))
    if numerator % denominator:
        text = f"{option} {text!r}: give a whole number, for example 250000, or one with k, M or G, for example 1.5M"
        raise UsageError(option.removeprefix("--"), text)
    return numerator // denominator


def said_count(count: float) -> str:
    """A count as options take it, rounded up to three digits, so that asking for it succeeds."""
    for suffix, unit in sorted(SUFFIXES.items(), key=lambda pair: -pair[1]):
        if suffix and count >= unit:
            return _rounded(count / unit, math.ceil) + suffix
    return f"{math.ceil(count)}"


def said_share(share: float) -> str:
    """A share rounded up to three digits."""
    return _rounded(share, math.ceil)


def said_ms(ms: float) -> str:
    """Milliseconds rounded up to three digits."""
    return _rounded(ms, math.ceil)


def said_factor(factor: float) -> str:
    """A speed-up rounded down to three digits."""
    return _rounded(factor, math.floor)


def _rounded(value: float, to: Callable[[float], int]) -> str:
    digits: int = max(DIGITS - 1 - math.floor(math.log10(value)), 0)
    return f"{to(value * 10**digits) / 10**digits:.{digits}f}"
