"""Which channels are left at given widths. Part of the pipeline, below what makes plans of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from onnx_condense.plan import ChannelSpace, ChannelView, Plan, Selection
from onnx_condense.select.obs import Elimination


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
