"""Grouping of rows that are equal up to rounding."""

from __future__ import annotations

import functools

import numpy as np

from onnx_condense.plan import FloatArray, IntArray

# Equal rows may come out of the projection with other roundings.
PROJECTION = 1e-12


def leaders(keys: IntArray, rows: FloatArray, tolerance: FloatArray) -> IntArray:
    """A row that each row equals, the same one for all rows of a group.

    Two rows are equal if their keys are the same and every element differs by at most the sum of the two
    tolerances. |p.(a - b)| <= |p|.(s + t) for a projection p and tolerances s and t, so sorting by one projection
    leaves only near neighbours to compare: O(n log n) for rows in general position. Rows are compared with the
    first of a group only, so that groups do not drift.

    Args:
        keys: [n, m] integers, compared exactly.
        rows: [n, d] values.
        tolerance: [n, d] absolute uncertainty of each element.

    Returns:
        [n] index of the row that leads the group (its own index where there is none).
    """
    count, size = rows.shape
    direction, extent = _direction(size)
    place = rows @ direction
    reach = (tolerance + PROJECTION * np.abs(rows)) @ extent
    widest = float(reach.max(initial=0.0))
    found = np.arange(count)
    # Stable: of rows at one place the first comes first.
    order = np.lexsort((place, *keys.T))
    ranked, line = keys[order], place[order]
    apart = (ranked[1:] != ranked[:-1]).any(axis=1)
    far = line[1:] - line[:-1] > reach[order[1:]] + widest
    if (apart | far).all():
        return found
    exact = np.empty_like(found)
    exact[order] = np.cumsum(np.r_[0, apart])
    heads: list[int] = []
    start = 0
    for row in order.tolist():
        while start < len(heads) and (
            exact[heads[start]] != exact[row] or place[row] - place[heads[start]] > reach[row] + widest
        ):
            start += 1
        if start < len(heads):
            found[row] = _match(row, np.array(heads[start:]), rows, tolerance, place, reach)
        if found[row] == row:
            heads.append(row)
    return found


@functools.cache
def _direction(size: int) -> tuple[FloatArray, FloatArray]:
    """Any direction [size], and its magnitudes."""
    direction = np.random.default_rng(0).standard_normal(size)
    return direction, np.abs(direction)


def _match(
    row: int, heads: IntArray, rows: FloatArray, tolerance: FloatArray, place: FloatArray, reach: FloatArray
) -> int:
    """The first of the given heads that the row equals, or the row itself."""
    near = heads[place[row] - place[heads] <= reach[row] + reach[heads]]
    equal = (np.abs(rows[near] - rows[row]) <= tolerance[near] + tolerance[row]).all(axis=1)
    return int(near[equal.argmax()]) if equal.any() else row
