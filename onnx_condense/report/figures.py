"""What the report's pictures are drawn from: too large for JSON, plain arrays all the same."""

from __future__ import annotations

import dataclasses

from onnx_condense.plan import FloatArray


@dataclasses.dataclass(frozen=True)
class Cloud:
    """Answers of both networks to samples that the search did not see, for one output.

    dense, condensed: the same elements of the output, drawn at random from all of them, [points].
    errors: root of the mean squared difference of each sample over the spread of the output, [samples].
    """

    output: str
    dense: FloatArray
    condensed: FloatArray
    errors: FloatArray


@dataclasses.dataclass(frozen=True)
class Heat:
    """How alike the channels of one space are before and after: cosines of their directions, [n, n] and [m, m].

    Channels lie in an order that brings alike ones together; of very wide spaces an even choice is shown.
    width, left: of the space before and after, in channels.
    """

    space: str
    width: int
    left: int
    before: FloatArray
    after: FloatArray


@dataclasses.dataclass(frozen=True)
class Figures:
    """All of one run; empty where there is nothing to show (an unchanged network has no clouds)."""

    clouds: tuple[Cloud, ...] = ()
    heats: tuple[Heat, ...] = ()
