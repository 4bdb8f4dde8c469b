"""Frozen data that the stages hand on: where channels live, what pins them, which stay, what readers become.

Stages do not import each other; they meet here. Words as in docs/design.md.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

PINNED = 0
"""The label of elements that can't be removed; every channel's label is positive."""

BAND = 2**20
"""Elements of a large matrix that are worked on at a time where a copy of all of it would be needed."""


@dataclasses.dataclass(frozen=True)
class Operand:
    """One input position of one node: `inputs[position]` of the node at index `node` of the main graph."""

    node: int
    position: int


@dataclasses.dataclass(frozen=True)
class LinearUse:
    """One use of a constant weight by a linear op: out = act @ W (+ bias), whatever its layout in the file.

    A convolution reads each of its K channels at T taps (positions of the kernel). Its weight as a matrix is
    [O, K T], column k T + t belongs to channel k; T is 1 elsewhere.

    weight: the operand that holds the weight; activation: the operand that it multiplies.
    in_axis / out_axis: axes of the stored weight tensor; out_axis is None for a weight vector. Other axes are taps.
        Several axes [n, m] of n m rows (directions and gates, a stack of matrices) are a tuple; channels that go are
        whole slices of the last of them.
    act_axis: the contracted axis of the activation; result_axis: axis of the output that the rows write, None where
        there is none: a weight vector, or a product that stays inside the op (`inside`).
    columns: label of each channel that is read [K] (PINNED where it can't go).
    rows: label of each row's channel [O]; empty for a weight vector.
    gain: factor on the product (Gemm's alpha).
    groups: rows and channels fall into so many equal parts, row part j reads channel part j only; the weight is
    stored with K / groups columns, the same labels in every part.
    taps: T; padded: zeros beside the activation are read too, so that no constant of a channel passes unchanged.
    spread: shape in which numbers for the rows broadcast to the result, -1 for the axis of their channels; (): that of
    `result_axis` alone. Of a stack of matrices every one writes the same channels, with rows of its own.
    """

    weight: Operand
    activation: Operand
    in_axis: int
    out_axis: int | tuple[int, ...] | None
    act_axis: int
    result_axis: int | None
    columns: IntArray
    rows: IntArray
    gain: float = 1.0
    taps: int = 1
    padded: bool = False
    groups: int = 1
    spread: tuple[int, ...] = ()

    @property
    def row_axes(self) -> tuple[int, ...]:
        """The axes of the stored weight that the rows lie on, the first one varying slowest."""
        if isinstance(self.out_axis, tuple):
            return self.out_axis
        return () if self.out_axis is None else (self.out_axis,)

    @property
    def inside(self) -> bool:
        """Whether the op makes more of the product: what is added to it then has to be put into an operand."""
        return self.result_axis is None and self.out_axis is not None

    def matrix(self, stored: npt.NDArray[Any]) -> FloatArray:
        """A weight as stored -> [O, K T] float64; a weight vector is one row."""
        wide, axes = stored.astype(np.float64), self.row_axes
        if not axes:
            return wide[None, :]
        first = (*axes, self.in_axis)
        wide = wide.transpose(*first, *(a for a in range(wide.ndim) if a not in first))
        matrix: FloatArray = np.ascontiguousarray(wide).reshape(math.prod(wide.shape[: len(axes)]), -1)
        if self.groups == 1:
            return matrix
        parts = matrix.reshape(self.groups, -1, matrix.shape[1])
        spread = np.zeros((*parts.shape[:2], self.groups, matrix.shape[1]))
        for j, part in enumerate(parts):
            spread[j, :, j] = part
        return spread.reshape(len(matrix), -1)

    def as_stored(self, matrix: FloatArray, like: npt.NDArray[Any]) -> FloatArray:
        """The inverse of `matrix`: [O, K T] -> the layout of the stored weight `like` (same O and K)."""
        if not self.row_axes:
            return np.asarray(matrix[0])
        if self.groups > 1:
            parts = matrix.reshape(self.groups, len(matrix) // self.groups, self.groups, -1)
            matrix = np.concatenate([parts[j, :, j] for j in range(self.groups)])
        there, here = (*self.row_axes, self.in_axis), range(len(self.row_axes) + 1)
        shape = np.moveaxis(like, there, here).shape
        return np.asarray(np.moveaxis(matrix.reshape(shape), here, there))


@dataclasses.dataclass(frozen=True)
class ConstantUse:
    """A constant operand whose axes carry channels (bias, scale, slope): `labels` has the constant's rank."""

    operand: Operand
    labels: IntArray


@dataclasses.dataclass(frozen=True)
class Attribute:
    """An integer attribute of one node (`group`), or one that is a list (`split`)."""

    node: int
    name: str


@dataclasses.dataclass(frozen=True)
class SizeUse:
    """A stored integer that counts channels: element `index` of an operand or attribute is len(labels).

    sign: -1 where the number is counted backwards (a slice that starts at -len(labels)).
    """

    operand: Operand | Attribute
    index: int
    labels: IntArray
    sign: int = 1


@dataclasses.dataclass(frozen=True)
class SplitUse:
    """Sizes of parts that lie behind one another (Split): labels of each part, in order.

    where: the list, which is made where the node has none; without: an attribute that has to go then.
    """

    where: Operand | Attribute
    labels: tuple[IntArray, ...]
    without: str = ""


@dataclasses.dataclass(frozen=True)
class IndexUse:
    """Stored positions on an axis (Gather's indices): labels of the axis; positions of channels that go vanish."""

    operand: Operand
    labels: IntArray


@dataclasses.dataclass(frozen=True)
class Refusal:
    """Why channels must stay, and the node that says so."""

    node: str
    reason: str
    labels: frozenset[int] = frozenset()
    space: str = ""


@dataclasses.dataclass(frozen=True)
class ChannelSpace:
    """Channels that live and die together.

    name: the tensor that the first writer writes.
    channels: one label per channel [width], in the order of the first writer's rows.
    pinned: which of them can't be removed [width].
    writers / readers: indices into `ChannelView.linear`.
    """

    name: str
    channels: IntArray
    pinned: npt.NDArray[np.bool_]
    writers: tuple[int, ...]
    readers: tuple[int, ...]

    @property
    def width(self) -> int:
        """How many channels the space has."""
        return len(self.channels)

    @property
    def reducible(self) -> bool:
        """Whether some channel could go and some reader could take over."""
        return self.width > 1 and bool(self.readers) and not self.pinned.all()


@dataclasses.dataclass(frozen=True)
class ChannelView:
    """What the analysis found out about one network; nothing here changes it.

    labels: per tensor of the main graph, an array of channel labels that broadcasts to its shape.
    linear, constants: every use of a weight or per-channel constant that carries labels.
    sizes: every stored integer that follows the widths.
    shared: indices into `linear` of weight uses that must stay equal, one tuple per stored weight.
    spaces: sorted by the first writer; refusals: every pin with its place.
    parts: sets of channels of which one has to stay, since some tensor would be empty without them.
    """

    labels: Mapping[str, IntArray]
    linear: tuple[LinearUse, ...]
    constants: tuple[ConstantUse, ...]
    sizes: tuple[SizeUse | SplitUse | IndexUse, ...]
    shared: tuple[tuple[int, ...], ...]
    spaces: tuple[ChannelSpace, ...]
    refusals: tuple[Refusal, ...]
    parts: tuple[IntArray, ...] = ()


@dataclasses.dataclass(frozen=True)
class Moments:
    """Joint moments of two sets of features (often one set with itself).

    count: rows seen; left [K], right [L]: means; product [K, L]: sum of (l - left)(r - right)^T.
    Where b columns of a channel are pooled the means are [b, K] and [b, L], and the product sums over all b.
    """

    count: float
    left: FloatArray
    right: FloatArray
    product: FloatArray

    @property
    def covariance(self) -> FloatArray:
        """[K, L], product / count."""
        return self.product / max(self.count, 1.0)

    def about(self, means: FloatArray) -> FloatArray:
        """[K, K] second moments about other means than its own (of features with themselves)."""
        shift, result = np.atleast_2d(self.left - means), self.covariance
        add_product(result, shift, shift, 1.0)
        return result

    def plus(self, other: Moments) -> Moments:
        """Moments of both sets of rows together."""
        count = self.count + other.count
        share = other.count / count
        left, right = other.left - self.left, other.right - self.right
        product = self.product + other.product
        add_product(product, np.atleast_2d(left), np.atleast_2d(right), self.count * share)
        return Moments(count, self.left + share * left, self.right + share * right, product)

    def part(self, left: IntArray, right: IntArray) -> Moments:
        """Moments of some of the features."""
        return Moments(self.count, self.left[..., left], self.right[..., right], self.product[np.ix_(left, right)])


def bands(matrix: npt.NDArray[Any]) -> Iterator[slice]:
    """All rows of a matrix, so many at a time that what is computed for them is small beside a large matrix."""
    step = max(1, BAND // max(matrix.shape[1], 1))
    for start in range(0, len(matrix), step):
        yield slice(start, start + step)


def add_product(total: FloatArray, left: FloatArray, right: FloatArray, factor: float) -> None:
    """Add left [b, K] transposed times right [b, L], times a factor, to a total [K, L], in place."""
    for rows in bands(total):
        total[rows] += left[:, rows].T @ right * factor


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which channels of one space stay: positions into `ChannelSpace.channels`, ascending; see also `Rotation`."""

    space: str
    keep: IntArray


@dataclasses.dataclass(frozen=True)
class Rotation:
    """The channels of one space mixed into fewer: what stays of them are sums of all.

    The selection of the same space keeps as many places as there are sums, the first ones.

    into: [K, C] what the writers' rows, and constants added to the channels, become is `into` times them.
    out: [C, K] what a reader's columns W become is W `out`; `into @ out` is the identity.
    """

    space: str
    into: FloatArray
    out: FloatArray


@dataclasses.dataclass(frozen=True)
class ReaderUpdate:
    """The new columns of one linear use, at the dense network's shape.

    weight: [O, K T] float64 (see `LinearUse`), zero in the columns that go; of a rotated space, of rank `len(into)`.
    offset: [O] float64, added to the product (the gain is in it already).
    """

    use: int
    weight: FloatArray
    offset: FloatArray


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything the rewrite needs: who stays, and what readers become.

    kind: "lossless" (proved from the weights), "fitted" (least squares on calibration moments), "merged" or "dropped"
    (by directions or norms of the weights; see `methods`).
    errors: predicted relative error per space, for the report.
    rotations: of the spaces whose channels are mixed; the updates are what they are without.
    """

    kind: Literal["lossless", "fitted", "merged", "dropped"]
    selections: tuple[Selection, ...]
    updates: tuple[ReaderUpdate, ...]
    errors: Mapping[str, float] = dataclasses.field(default_factory=dict)
    rotations: tuple[Rotation, ...] = ()

    def dropped(self, spaces: Sequence[ChannelSpace]) -> frozenset[int]:
        """Labels of all channels that go."""
        by_name = {s.name: s for s in spaces}
        gone: set[int] = set()
        for selection in self.selections:
            channels = by_name[selection.space].channels
            gone.update(np.delete(channels, selection.keep).tolist())
        return frozenset(gone)
