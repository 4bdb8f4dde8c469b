"""Grouping of rows that are equal up to rounding."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onnx_condense.plan import FloatArray, IntArray


def leaders(keys: IntArray, rows: FloatArray, tolerance: FloatArray) -> IntArray:
    """The first row that each row equals.

    Two rows are equal if their keys are the same and the Euclidean distance of their values is at most the sum
    of their tolerances. |p.a - p.b| <= ||a - b|| for a unit vector p, so sorting by one projection leaves only
    near neighbours to compare: O(n log n) for rows in general position.

    Args:
        keys: [n, m] integers, compared exactly.
        rows: [n, d] values.
        tolerance: [n] absolute uncertainty of each row.

    Returns:
        [n] index of the earliest equal row (its own index where there is none).
    """
    count = len(rows)
    _, exact = np.unique(keys, axis=0, return_inverse=True) if keys.size else (None, np.zeros(count, np.int64))
    exact = exact.reshape(-1)
    direction = np.random.default_rng(0).standard_normal(max(rows.shape[1], 1))[: rows.shape[1]]
    length = float(np.linalg.norm(direction)) or 1.0
    place = rows @ (direction / length)
    order = np.lexsort((np.arange(count), place, exact))
    found = np.arange(count)
    start = 0
    reach = 2 * float(tolerance.max(initial=0.0))
    for at, row in enumerate(order.tolist()):
        while exact[order[start]] != exact[row] or place[row] - place[order[start]] > reach:
            start += 1
        found[row] = _match(row, order[start:at], found, rows, tolerance)
    return _earliest(found)


def _match(row: int, window: IntArray, found: IntArray, rows: FloatArray, tolerance: FloatArray) -> int:
    """The leader among the rows before this one in projection order, or the row itself."""
    for candidate in np.unique(found[window]).tolist():
        if np.linalg.norm(rows[row] - rows[candidate]) <= tolerance[row] + tolerance[candidate]:
            return int(candidate)
    return row


def _earliest(found: IntArray) -> IntArray:
    """Name every group by its smallest member."""
    _, group = np.unique(found, return_inverse=True)
    first: npt.NDArray[np.int64] = np.full(group.max(initial=-1) + 1, len(found), np.int64)
    np.minimum.at(first, group, np.arange(len(found)))
    return first[group]
