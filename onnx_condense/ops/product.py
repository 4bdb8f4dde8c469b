"""Products along another axis than the channels' own: each channel by itself, and all of them in the same way.

An element of A @ B is a sum over the contracted axis. Channels on the rows of A, on the columns of B, or on a batch
axis that the other operand does not have, are not summed over, and what they are multiplied with is the same for all
of them: adjacency @ features, a Fourier matrix over positions, attention @ values.
"""

from __future__ import annotations

from onnx_condense.ops.registry import Call
from onnx_condense.plan import IntArray


def passing(call: Call, at: int) -> IntArray | None:
    """Labels of A' @ B' that are those of the operand at a position, or None where they can't pass."""
    x, other = call.operands[at], call.operands[1 - at]
    shape = None if other is None else other.shape if other.constant is None else other.constant.shape
    if x is None or x.labels is None or not shape or x.labels.ndim < 2:
        return None
    labels, rank = x.labels, product_rank(len(shape), x.labels.ndim)
    own = [axis - labels.ndim for axis, n in enumerate(labels.shape) if n > 1]
    # Declared shapes may be wrong: believe no rank that can't be.
    if call.result_shape is None or len(call.result_shape) != rank:
        return None
    if call.apart and len(own) > 1:
        return _passing_apart(call, labels, rank, at)
    if len(own) != 1:
        return None
    free = -2 if bool(call.attributes.get(("transA", "transB")[at], 0)) == bool(at) else -1
    # A vector has no rows or columns to give: the result is shorter by that axis.
    lost = len(shape) == 1
    if own[0] == free:
        place = -1 if at or lost else -2
    elif own[0] < -2 and (len(shape) < -own[0] or shape[own[0]] == 1):
        place = own[0] + lost
    else:
        return None
    return labels.reshape([-1 if axis == rank + place else 1 for axis in range(rank)])


def _passing_apart(call: Call, labels: IntArray, rank: int, at: int) -> IntArray | None:
    """The same for labels that vary along batch axes as well, of a plain product of matrices."""
    plain = not any(call.attributes.get(name, 0) for name in ("transA", "transB"))
    lines = rank >= labels.ndim and labels.shape[-1 - at] == 1
    return labels.reshape((1,) * (rank - labels.ndim) + labels.shape) if plain and lines else None


def product_rank(weight: int, activation: int) -> int:
    """The rank of a product; -1 where there is none."""
    if not activation:
        return -1
    return activation - 1 if weight == 1 else weight - 1 if activation == 1 else max(weight, activation)
