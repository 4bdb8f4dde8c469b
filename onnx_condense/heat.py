"""How alike the channels of the most condensed spaces are, before and after: what the report's heat maps show.

Told from the dense network's weights alone, whatever it was that chose the channels: directions as in
`evidence/directions.py`, which is the picture that the founding paper shows. Channels are put into an order that brings
alike ones together, and those that stay keep that order, so that both pictures can be held beside each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

from onnx_condense.evidence.directions import APART, Directions
from onnx_condense.network.model import Network
from onnx_condense.plan import FloatArray, IntArray, Plan
from onnx_condense.report.figures import Heat
from onnx_condense.spaces import find_spaces

MOST = 4
"""Spaces that are shown."""

SHOWN = 192
"""Channels that are shown of one space: more are not told apart on a page, and the page has to stay small."""

# Pictures of fewer channels than this show nothing.
FEWEST = 8

# The cosines of so many take 128 MiB, and several such matrices are needed to make them.
WIDEST = 4096


def kept_channels(plans: Sequence[Plan], names: Mapping[str, str]) -> Mapping[str, IntArray]:
    """Which channels of the dense network's spaces stay once several plans were applied, one on the result of another.

    Args:
        plans: in the order they were applied.
        names: the dense network's name of each space whose name an earlier plan changed.

    Returns:
        by the dense network's names, positions in ascending order. Spaces whose channels were mixed are left out: what
        stays of them are sums of all; and so are those that a plan made anew.
    """
    kept: dict[str, IntArray] = {}
    lost: set[str] = set()
    for plan in plans:
        lost |= {names.get(rotation.space, rotation.space) for rotation in plan.rotations}
        for selection in plan.selections:
            name, keep = names.get(selection.space, selection.space), selection.keep
            before = kept.get(name)
            if before is not None and len(keep) and keep[-1] >= len(before):
                lost.add(name)
            else:
                kept[name] = keep if before is None else before[keep]
    return {name: keep for name, keep in kept.items() if name not in lost}


def heats(network: Network, kept: Mapping[str, IntArray]) -> tuple[Heat, ...]:
    """The cosines of the most condensed spaces, the one that lost the largest share of its channels first.

    Args:
        network: the dense one.
        kept: positions of the channels that stay, by the name of their space; see `kept_channels`.
    """
    found: list[Heat] = []
    for heat in _told(network, kept) if kept else ():
        found.append(heat)
        if len(found) == MOST:
            break
    return tuple(found)


def _told(network: Network, kept: Mapping[str, IntArray]) -> Iterator[Heat]:
    """One by one, since each costs a walk through the graph and a matrix of all its channels."""
    view = find_spaces(network, named=True)
    spaces = [s for s in view.spaces if FEWEST <= s.width <= WIDEST and 0 < len(kept.get(s.name, ())) < s.width]
    directions = Directions(network, view)
    for space in sorted(spaces, key=lambda s: len(kept[s.name]) / s.width):
        cosine, keep = directions.of(space).cosine, kept[space.name]
        # Some channels can't stand for others here (APART), or the weights do not compare (NaN): no picture tells that.
        if keep[-1] < space.width and (cosine > APART).all():
            yield _heat(space.name, cosine, keep)


def _heat(name: str, cosine: FloatArray, keep: IntArray) -> Heat:
    order = ordered(cosine)
    left = order[np.isin(order, keep)]
    before, after = _even(order), _even(left)
    return Heat(name, len(order), len(left), cosine[np.ix_(before, before)].copy(), cosine[np.ix_(after, after)].copy())


def ordered(cosine: FloatArray) -> IntArray:
    """An order of the channels [n] in which alike ones lie together: the leaves of their average-linkage tree.

    cosine: [n, n], finite.
    """
    if len(cosine) < 2:
        return np.arange(len(cosine))
    # Rounding leaves cosines a little asymmetric and above 1.
    apart = np.clip(1.0 - (cosine + cosine.T) / 2.0, 0.0, None)
    np.fill_diagonal(apart, 0.0)
    tree = hierarchy.linkage(squareform(apart, checks=False), "average")
    return np.asarray(hierarchy.leaves_list(tree), np.int64)


def _even(order: IntArray) -> IntArray:
    """At most `SHOWN` of them, evenly spread."""
    if len(order) <= SHOWN:
        return order
    return order[np.linspace(0, len(order) - 1, SHOWN).round().astype(np.int64)]
