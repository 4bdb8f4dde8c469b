"""Axes of a tensor and of one with the same elements in another shape, in blocks that hold the same elements."""

from __future__ import annotations

import itertools
import math

from onnx_condense.network.shapes import Shape
from onnx_condense.plan import IntArray

Block = tuple[range, Shape]
"""Neighbouring axes of the operand, and the sizes of the axes of the result that hold the same elements."""
_Extent = tuple[int, tuple[str, ...]]


def sizes_of(labels: IntArray, shape: Shape) -> Shape:
    """Sizes of axes; labels know some that shape inference does not."""
    return tuple(n if n > 1 else size for n, size in zip(labels.shape, shape, strict=True))


def narrow(labels: IntArray) -> IntArray:
    """Extent 1 along every axis on which labels do not differ."""
    for axis, size in enumerate(labels.shape):
        first = labels[(slice(None),) * axis + (slice(1),)]
        if size > 1 and (labels == first).all():
            labels = first
    return labels


def filled(sizes: Shape, count: int) -> list[int] | None:
    """Sizes of axes that hold `count` elements together; at most one may be unknown."""
    known = [n for n in sizes if isinstance(n, int)]
    rest = math.prod(known)
    if len(known) == len(sizes):
        return known if rest == count else None
    if len(known) < len(sizes) - 1 or count % rest:
        return None
    return [n if isinstance(n, int) else count // rest for n in sizes]


def blocks_of(before: Shape, after: Shape) -> list[Block]:
    """The finest split of both shapes into blocks of the same elements that can be told; what is left is one block.

    Leading sizes of equal product hold the same elements in the same order, and so do trailing ones.
    """
    front = _cuts(before, after)
    back = [(len(before) - i, len(after) - j) for i, j in _cuts(before[::-1], after[::-1])]
    i, j = front[-1]
    cuts = sorted({*front, *(cut for cut in back if cut[0] >= i and cut[1] >= j), (len(before), len(after))})
    return [(range(i, k), after[j:m]) for (i, j), (k, m) in itertools.pairwise(cuts)]


def _cuts(before: Shape, after: Shape) -> list[tuple[int, int]]:
    """Lengths of leading parts of equal extent, shortest first."""
    cuts = [(0, 0)]
    i = j = 1
    while i <= len(before) and j <= len(after):
        (a, b), (start, end) = cuts[-1], (i, j)
        left, right = _extent(before[a:i]), _extent(after[b:j])
        if left is None or right is None:
            break
        if left == right:
            cuts.append((i, j))
            i, j = i + 1, j + 1
            continue
        behind = _behind(left, right)
        i, j = start + (behind <= 0), end + (behind >= 0)
    return cuts


def _behind(left: _Extent, right: _Extent) -> int:
    """Which of two unequal extents has to grow to become the other: -1 the left, 1 the right, 0 both."""
    if left[1] == right[1]:
        return -1 if left[0] < right[0] else 1
    lacks_left = any(left[1].count(s) < right[1].count(s) for s in right[1])
    lacks_right = any(right[1].count(s) < left[1].count(s) for s in left[1])
    return int(lacks_right) - int(lacks_left)


def _extent(shape: Shape) -> _Extent | None:
    """Number of elements as (known factor, symbols); None where a size is not known."""
    if any(n is None for n in shape):
        return None
    return math.prod(n for n in shape if isinstance(n, int)), tuple(sorted(n for n in shape if isinstance(n, str)))
