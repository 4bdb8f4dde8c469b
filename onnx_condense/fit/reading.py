"""How the readers of one network are seen by the fit: which columns they weigh, and which of them go together.

Part of the pipeline, beside `fit/fitting.py`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from onnx_condense.evidence.columns import Columns, Window, arranged, unarranged
from onnx_condense.evidence.values import stored_weight
from onnx_condense.network.model import Network
from onnx_condense.plan import PINNED, ChannelSpace, ChannelView, FloatArray, IntArray, LinearUse

# Above so many columns a covariance costs more time than it is worth: those of one channel are pooled.
FULL = 2048
# With fewer rows per column (samples that fix a least-squares problem) they are pooled too.
RICH = 10


@dataclasses.dataclass(frozen=True)
class Readers:
    """Readers that are refitted together: one, or all uses of a weight that is stored once.

    uses: indices into `ChannelView.linear`; columns: what each of them reads.
    weight: [O, F], or [O b, F] where the b columns of a channel are pooled; labels: of each feature [F].
    level: how many refitted readers lie upstream at most. pooled: see `Columns.per_channel`.
    groups: rows and features fall into so many equal parts that have nothing to do with each other.
    stacked: whether these are the matrices of a stack, which are stored without the zeros between them.
    """

    uses: tuple[int, ...]
    columns: tuple[Columns, ...]
    weight: FloatArray
    labels: IntArray
    level: int
    groups: int = 1
    stacked: bool = False

    def parts(self) -> Iterator[tuple[slice, slice]]:
        """Rows and features of each group."""
        rows, features = len(self.weight) // self.groups, len(self.labels) // self.groups
        for j in range(self.groups):
            yield slice(j * rows, j * rows + rows), slice(j * features, j * features + features)

    @property
    def pooled(self) -> int:
        """How many columns of a channel are pooled; 0: none."""
        return self.columns[0].per_channel

    def rows(self, of_one: int) -> int:
        """Rows that one sample counts for; of_one: that it has."""
        return max(min(self.columns[0].take or of_one, of_one), 1) * max(self.pooled, 1)

    def products(self, of_one: int) -> int:
        """Multiply-accumulates of the moments of what they read in one sample."""
        return len(self.columns) * self.rows(of_one) * len(self.labels) ** 2

    def matrix(self, weight: FloatArray) -> FloatArray:
        """A weight like `weight` -> [O, Q], columns as the reader has them."""
        if self.stacked:
            parts = weight.reshape(self.groups, len(weight) // self.groups, self.groups, -1)
            return np.concatenate([parts[j, :, j] for j in range(self.groups)])
        if not self.pooled:
            return weight
        cells = weight.reshape(-1, self.pooled, weight.shape[1])
        return unarranged(cells, by_channel=self.columns[0].by_channel)

    def owned(self, space: ChannelSpace, part: slice) -> IntArray:
        """The features of each channel of a space within a part [channels, b], -1 where it has fewer."""
        where: dict[int, list[int]] = {}
        for at, label in enumerate(self.labels[part].tolist()):
            if label != PINNED:
                where.setdefault(label, []).append(at)
        lists = [where.get(c, []) for c in space.channels.tolist()]
        result = np.full((len(lists), max(map(len, lists), default=0)), -1)
        for row, owned in zip(result, lists, strict=True):
            row[: len(owned)] = owned
        return result


def find_readers(network: Network, view: ChannelView, spaces: Sequence[ChannelSpace]) -> list[Readers]:
    """The readers of the given spaces, nothing pooled."""
    removable = {int(c) for s in spaces for c in s.channels[~s.pinned]}
    reading = [i for i, u in enumerate(view.linear) if not removable.isdisjoint(u.columns.tolist())]
    together = {u: uses for uses in view.shared for u in uses}
    members = sorted({tuple(u for u in together.get(i, (i,)) if u in reading) for i in reading})
    levels = _levels(network, {view.linear[i].weight.node for i in reading})
    return [_reading(network, view, uses, levels) for uses in members]


def _reading(network: Network, view: ChannelView, uses: tuple[int, ...], levels: Mapping[str, int]) -> Readers:
    """The uses of one weight as readers."""
    found = {_stack(network, view.linear[u]) for u in uses}
    stack = found.pop() if len(found) == 1 else ()
    places = tuple(axis for axis, _ in stack)
    columns = tuple(dataclasses.replace(_columns(network, view, u), stack=places) for u in uses)
    level = max(levels.get(c.tensor, 0) for c in columns)
    first = view.linear[uses[0]]
    labels = np.repeat(first.columns, first.taps)
    if stack:
        first = dataclasses.replace(first, groups=math.prod(size for _, size in stack))
        labels = np.tile(labels, first.groups)
    return Readers(uses, columns, stored_weight(network, first), labels, level, first.groups, stacked=bool(stack))


def _stack(network: Network, use: LinearUse) -> tuple[tuple[int, int], ...]:
    """Axes of what is read, with their sizes, whose every place has a matrix of its own; () where all read the same.

    So many columns that their covariance would not do are taken as one: all matrices are fitted on what is read at
    any place.
    """
    node = network.nodes[use.activation.node]
    weight, read = (network.shape(node.inputs[o.position]) or () for o in (use.weight, use.activation))
    stored = [n if isinstance(n, int) else 0 for n in weight]
    if use.inside or len(read) < 2:
        return ()
    # Both are aligned at their last axes.
    places = tuple((a + len(read) - len(stored), stored[a]) for a in use.row_axes[:-1] if stored[a] > 1)
    fits = all(axis >= 0 and read[axis] == size for axis, size in places)
    wide = len(use.columns) * math.prod(size for _, size in places) > FULL
    return places if fits and not wide else ()


def _columns(network: Network, view: ChannelView, use: int) -> Columns:
    linear = view.linear[use]
    node = network.nodes[linear.activation.node]
    tensor = node.inputs[linear.activation.position]
    if linear.taps == 1 and not linear.padded and all(s == 1 for s in node.attributes.get("strides", ())):
        return Columns(tensor, linear.act_axis)
    names = ("auto_pad", "dilations", "output_padding", "output_shape", "pads", "strides")
    given = [(n, node.attributes[n]) for n in names if n in node.attributes]
    attributes = tuple((n, tuple(v) if isinstance(v, list) else v) for n, v in given)
    weight = network.shape(node.inputs[linear.weight.position]) or ()
    op = "Conv" if linear.out_axis == 0 else "ConvTranspose"
    return Columns(tensor, linear.act_axis, Window(op, tuple(int(n or 0) for n in weight[2:]), attributes))


def pooled(readers: Readers, taps: int) -> Readers | None:
    """The same readers with the columns of each channel pooled; None where channels do not own them evenly.

    taps: of the convolution; 1 for a product, whose channels may own several columns behind a Flatten.
    """
    b = taps if taps > 1 else _multiplicity(readers.labels)
    # Copies of a channel in several groups are read by unlike rows, and each group has to keep features of its own.
    apart = taps == 1 and readers.groups > 1
    if b == 1 or apart or len(readers.labels) % b:
        return None
    for by_channel in (True, False):
        labels = arranged(readers.labels.astype(np.float64), b, by_channel=by_channel)
        if (labels == labels[0]).all():
            weight = arranged(readers.weight, b, by_channel=by_channel)
            columns = tuple(dataclasses.replace(c, per_channel=b, by_channel=by_channel) for c in readers.columns)
            return dataclasses.replace(
                readers,
                columns=columns,
                weight=weight.reshape(-1, weight.shape[-1]),
                labels=labels[0].astype(np.int64),
            )
    return None


def _multiplicity(labels: IntArray) -> int:
    """How many columns every removable channel owns; 1 where that differs."""
    counts = np.unique(np.unique(labels[labels != PINNED], return_counts=True)[1])
    return int(counts[0]) if len(counts) == 1 else 1


def stages_of(network: Network, view: ChannelView, readers: Sequence[Readers]) -> Mapping[str, int]:
    """Per tensor, the first stage that finds it final, if readers get their weights level by level."""
    at = {view.linear[u].weight.node: r.level for r in readers for u in r.uses}
    stages: dict[str, int] = {}
    for node in network.nodes:
        stage = max((stages.get(name, 0) for name in (*node.inputs, *node.captured)), default=0)
        stages.update(dict.fromkeys(node.outputs, max(stage, at.get(node.index, -1) + 1)))
    return stages


def _levels(network: Network, refitted: set[int]) -> Mapping[str, int]:
    """Per tensor, the largest number of refitted nodes on a path to it."""
    levels: dict[str, int] = {}
    for node in network.nodes:
        level = max((levels.get(name, 0) for name in (*node.inputs, *node.captured)), default=0)
        levels.update(dict.fromkeys(node.outputs, level + (node.index in refitted)))
    return levels
