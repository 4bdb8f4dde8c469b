"""Channels that a saved plan has chosen for one space, and whether they still do on other weights.

Where training went on from the same weights a channel stays what it was; after training from scratch its place means
nothing. Which of the two it is is measured on held-out samples: the plan's channels stay where they do about as well as
the plan said, or as as many channels chosen anew; else those chosen anew are taken, at the plan's width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from onnx_condense.plan import ChannelView, IntArray
from onnx_condense.select.obs import Elimination

# The plan's channels may do so much worse, in the error at the readers.
WORSE = 1.25


@dataclasses.dataclass(frozen=True)
class Choice:
    """What a plan wants of one space.

    gone: positions of the channels that go; empty where they are mixed.
    mixed: into how many all of them are mixed; 0: they are not.
    error: the plan's, relative, at the readers; exact: the same weights, so that nothing is to be found out.
    fresh: in which order others would go, if not by least squares.
    """

    gone: IntArray
    mixed: int = 0
    error: float = 0.0
    exact: bool = False
    fresh: Elimination | None = None

    def as_planned(self) -> Elimination:
        """The channels of the plan, with its own error."""
        return _at_once(self.gone, self.error**2)


def untouched(view: ChannelView) -> list[Choice]:
    """Choices by which every channel stays."""
    return [Choice(np.empty(0, np.int64)) for space in view.spaces if space.reducible]


def settled(
    choice: Choice, error_without: Callable[[IntArray], float], eliminate: Callable[[], Elimination]
) -> tuple[Elimination, float | None]:
    """Who goes, with the cost on held-out samples.

    Args:
        choice: of channels that are not mixed.
        error_without: relative and squared, at the readers on held-out samples, without some channels.
        eliminate: makes an order anew.

    Returns:
        an order that ends at the plan's width; and how many times worse the plan's channels would have done, None where
        they stay.
    """
    held = error_without(choice.gone)
    if held <= (WORSE * choice.error) ** 2:
        return _at_once(choice.gone, held), None
    fresh = choice.fresh or eliminate()
    others = fresh.order[: len(choice.gone)]
    error = error_without(others) if len(others) == len(choice.gone) else np.inf
    if held <= WORSE**2 * error:
        return _at_once(choice.gone, held), None
    return _at_once(others, error), float(np.sqrt(held / max(error, np.finfo(np.float64).tiny)))


def _at_once(gone: IntArray, cost: float) -> Elimination:
    """All of them go or none; what lies between is not asked about."""
    return Elimination(gone, np.r_[0.0, np.full(len(gone), cost)])
