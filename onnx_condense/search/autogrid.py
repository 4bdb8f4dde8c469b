"""Which widths run well here: networks at neighbouring widths, timed against each other.

Around one kind of layers a coarser grid is taken as long as the next finer stop below is for sure not as fast as its
saved work would have it: then the channels in between cost next to nothing. Where that is not for sure, what is known
of the ops decides. All layers of a kind are tried at once, since the difference of one alone would drown in the time of
the others; kinds with little of the work keep the grid that their ops like.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import onnx

from onnx_condense.cost import Work
from onnx_condense.fit.methods import Merger, orders_of
from onnx_condense.network.model import Network
from onnx_condense.options.goal import Goal
from onnx_condense.plan import ChannelView
from onnx_condense.report.data import Latency, WidthTiming
from onnx_condense.search.grid import WELL, Grid, Kind, kind_of
from onnx_condense.search.mac_cost import MacCosts

STEPS = (1, 4, 8, 16, 32)
# Widths are tried below this share of the dense one.
SHARE = 0.75
# Half of the channels of a kind have to take so much of the work.
MATTERS = 0.1

Compare = Callable[[onnx.ModelProto, onnx.ModelProto], Sequence[Latency]]
"""Times the second network against the first, on every batch."""


def measured_grid(
    network: Network, view: ChannelView, goal: Goal, compare: Compare, work: Work | None = None
) -> tuple[Grid, list[WidthTiming]]:
    """The grid that pays, by kind of layers, and the timings that it was read off.

    Args:
        network: the dense one; any channels go, since time does not know which.
        view: its channels.
        goal: gives the seed.
        compare: the timing.
        work: counts multiply-accumulates.
    """
    asked = Goal(None, None, allow_slower=True, seed=goal.seed, method="drop")
    merger = Merger(network, view, orders_of(network, view, asked), merge=False)
    work = work or Work()
    table: list[WidthTiming] = []
    found: dict[Kind, int] = {}
    for kind in sorted({kind_of(network, view, s) for s in merger.spaces}):
        if not _matters(merger, kind, work):
            continue
        rows = list(_climb(merger, kind, compare, work))
        table += rows
        if rows:
            # An answer that is not for sure leaves it to what is known.
            known = 1 if rows[-1].pays or rows[-1].interval[0] > 1.0 else _known(merger, kind)
            found[kind] = max([known, *(row.multiple for row in rows if row.pays)])
    return Grid(measured=found), table


def _matters(merger: Merger, kind: Kind, work: Work) -> bool:
    view, names = merger.view, {s.name for s in merger.spaces if _of(merger, s.name) == kind}
    costs, full = MacCosts(merger.network, view, work), [s.width for s in view.spaces]
    half = [s.width // 2 if s.name in names else s.width for s in view.spaces]
    return costs.total(full) - costs.total(half) >= MATTERS * costs.total(full)


def _known(merger: Merger, kind: Kind) -> int:
    like = (WELL.multiple(merger.network, merger.view, s) for s in merger.spaces if _of(merger, s.name) == kind)
    return max(like, default=1)


def _of(merger: Merger, name: str) -> Kind:
    space = next(s for s in merger.spaces if s.name == name)
    return kind_of(merger.network, merger.view, space)


def _climb(merger: Merger, kind: Kind, compare: Compare, work: Work) -> Iterator[WidthTiming]:
    """From every step to the next, until the finer widths may be faster or no layer is so wide."""
    full = [s.width for s in merger.spaces]
    for fine, coarse in itertools.pairwise(STEPS):
        wide = [_wide(merger, i, kind, coarse) for i in range(len(full))]
        narrow = [w - fine if w != f else f for w, f in zip(wide, full, strict=True)]
        if wide == full:
            return
        models = [merger.plan(widths, sequential=False)[1] for widths in (wide, narrow)]
        counts = [work.of(Network(model)) for model in models]
        best = max(compare(*models), key=lambda t: t.interval[1])
        ideal = counts[0] / max(counts[1], 1)
        pays = best.speedup < math.sqrt(ideal) and best.interval[1] < ideal
        yield WidthTiming("+".join(kind), coarse, fine, best.batch, ideal, best.speedup, best.interval, pays)
        if not pays:
            return


def _wide(merger: Merger, index: int, kind: Kind, multiple: int) -> int:
    """An odd multiple below the width of a space, so that none twice as large is tried; the width if there is none."""
    space, order = merger.spaces[index], merger.eliminations[index].order
    count = int(SHARE * space.width) // multiple
    wide = (count - 1 + count % 2) * multiple
    least = max(space.width - len(order), 1)
    fits = wide - multiple // 2 >= least and kind_of(merger.network, merger.view, space) == kind
    return wide if fits else space.width
