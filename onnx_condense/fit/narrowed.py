"""Which channels are left at given widths, and what makes networks of them. Part of the pipeline, below the makers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import onnx

from onnx_condense.grids import Move
from onnx_condense.network.model import Network
from onnx_condense.plan import ChannelSpace, ChannelView, IntArray, Plan, Selection
from onnx_condense.select.obs import Elimination


class Narrower(Protocol):
    """Makes networks of given widths: by least squares (`fitting.Fitter`) or by weights alone (`methods.Merger`).

    network, view: what is condensed. spaces: those that can be narrowed; eliminations: the order in which channels go,
    one per space. moves: by space, what was done with channels of groups and heads before. light: whether `sequential`
    plans are cheap enough for every step of a search. anew: spaces whose channels were chosen anew instead of by a
    saved plan, and how many times worse these would do.
    """

    network: Network
    view: ChannelView
    spaces: tuple[ChannelSpace, ...]
    eliminations: tuple[Elimination, ...]
    moves: Mapping[str, Move]
    light: bool

    @property
    def anew(self) -> Mapping[str, float]:
        """See above."""

    def plan(self, widths: Sequence[int], *, sequential: bool) -> tuple[Plan, onnx.ModelProto]:
        """The plan for given widths, one per space of `spaces`, and the network it makes."""

    def use_all(self, search: IntArray) -> None:
        """From now on learn from the search share as well."""

    def rows_per_channel(self, widths: Sequence[int]) -> Mapping[str, float]:
        """Rows fitted on over channels kept, per space narrowed to these widths; empty where nothing is fitted."""


def narrowed(
    view: ChannelView, spaces: Sequence[ChannelSpace], eliminations: Sequence[Elimination], widths: Sequence[int]
) -> tuple[tuple[Selection, ...], Mapping[str, float]]:
    """The channels that stay, of the spaces that lose some, and the error that their eliminations predict.

    Args:
        view: of the network.
        spaces: those that can be narrowed.
        eliminations: the order in which channels go, one per space.
        widths: one per space.
    """
    selections, errors = [], {}
    for space, elimination, width in zip(spaces, eliminations, widths, strict=True):
        removed = space.width - width
        if removed:
            keep = np.setdiff1d(np.arange(space.width), elimination.order[:removed])
            selections.append(Selection(space.name, keep))
            errors[space.name] = float(np.sqrt(elimination.cost[removed]))
    return _without_empty_parts(view, spaces, eliminations, selections), errors


def _without_empty_parts(
    view: ChannelView,
    spaces: Sequence[ChannelSpace],
    eliminations: Sequence[Elimination],
    selections: Sequence[Selection],
) -> tuple[Selection, ...]:
    """Where a tensor would lose all its channels the one that went last stays."""
    result = list(selections)
    for part in view.parts:
        gone = Plan("fitted", tuple(result), ()).dropped(view.spaces)
        if not gone.issuperset(part.tolist()):
            continue
        for space, elimination in zip(spaces, eliminations, strict=True):
            last = [p for p in elimination.order.tolist() if space.channels[p] in part][-1:]
            at = next((j for j, s in enumerate(result) if s.space == space.name), None)
            if last and at is not None:
                result[at] = Selection(space.name, np.sort(np.append(result[at].keep, last)))
                break
    return tuple(result)
