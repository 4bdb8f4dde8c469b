"""Value numbering: what the weights alone prove about each channel of each tensor.

Every channel is described as scale * v + offset, where v is a function of the network's inputs with a number
(its class) and class CONSTANT means that the channel is its offset for every input. Two channels of one class
are affine copies of each other, whatever the input. Classes come from walking the graph once in its own order:
a linear op combines classes (columns of one class are summed before rows are compared, so copies with split
outgoing weights are seen), an element-wise op maps them by its declared law. Networks are acyclic, so one walk
finds what partition refinement would.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from onnx_condense import ops
from onnx_condense.evidence.cluster import leaders
from onnx_condense.model import Network, Node
from onnx_condense.ops import Law
from onnx_condense.plan import ChannelView, FloatArray, IntArray, LinearUse
from onnx_condense.runtime import evaluate_node

CONSTANT = 0

# Equality is judged to this many units in the last place of the weights' type, relative to the row's norm.
ROUNDINGS = 8.0
VAGUE = 100.0


@dataclasses.dataclass(frozen=True)
class Values:
    """Channels along one axis of a tensor: value[c] = scale[c] * v(classes[c]) + offset[c].

    axis: which axis of the tensor; noise[c]: absolute uncertainty of scale and offset from rounded weights.
    All arrays [C].
    """

    axis: int
    classes: IntArray
    scale: FloatArray
    offset: FloatArray
    noise: FloatArray

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def constant(self) -> npt.NDArray[np.bool_]:
        """Which channels do not depend on the input."""
        return self.classes == CONSTANT


class Numbering:
    """Values of the tensors of one network."""

    def __init__(self, network: Network, view: ChannelView) -> None:
        self._network = network
        self._view = view
        self._count = CONSTANT
        self._values: dict[str, Values] = {}
        self._opaque: dict[tuple[str, int, int], Values] = {}
        self._contents: dict[tuple[int, ...], int] = {}
        uses = {use.weight.node: use for use in view.linear}
        for node in network.nodes:
            rule = ops.find(node.domain, node.op, node.opset)
            labels = view.labels.get(node.outputs[0]) if node.outputs else None
            axis = _only_axis(labels)
            if rule is None or axis is None:
                continue
            if node.index in uses:
                values = self._linear(node, uses[node.index], axis)
            elif rule.trace is ops.elementwise.trace:
                values = self._elementwise(node, rule, axis)
            else:
                continue
            if values is not None:
                self._values[node.outputs[0]] = values

    def of(self, tensor: str, axis: int, size: int) -> Values:
        """Values along an axis; each position its own unknown where nothing is known."""
        known = self._values.get(tensor)
        if known is not None and known.axis == axis and len(known) == size:
            return known
        key = (tensor, axis, size)
        if key not in self._opaque:
            self._opaque[key] = Values(axis, self._fresh(size), np.ones(size), np.zeros(size), np.zeros(size))
        return self._opaque[key]

    def _fresh(self, count: int) -> IntArray:
        self._count += count
        return np.arange(self._count - count + 1, self._count + 1, dtype=np.int64)

    def _classes(self, found: IntArray) -> IntArray:
        """New class numbers for groups given by their leaders [n]."""
        _, group = np.unique(found, return_inverse=True)
        return self._fresh(int(group.max(initial=-1)) + 1)[group]

    def _linear(self, node: Node, use: LinearUse, axis: int) -> Values | None:
        weight = stored_weight(self._network, use)
        bias = self._addend(node, use, len(use.rows))
        if weight is None or bias is None or not np.isfinite(weight).all() or not np.isfinite(bias).all():
            return None
        x = self.of(node.inputs[use.activation.position], use.act_axis, weight.shape[1])
        eps = ROUNDINGS * type_eps(self._network, use)
        combined = _sum_by_class(weight * x.scale, x.classes) * use.gain
        offset = use.gain * (weight @ x.offset) + bias
        raw = np.sqrt(use.gain**2 * ((weight * x.scale) ** 2).sum(1) + bias**2)
        noise = eps * raw + abs(use.gain) * np.sqrt((weight**2) @ (x.noise**2))
        length = np.linalg.norm(combined, axis=1)
        constant = length <= noise
        length[constant] = 1.0
        rows = combined / length[:, None]
        rows *= (sign := _signs(rows))[:, None]
        rows[constant] = 0.0
        # A row that all but cancels points nowhere in particular: it stays a class of its own.
        vague = ~constant & (length < VAGUE * noise)
        keys = np.where(vague, np.arange(len(rows)) + 2, constant)
        found = leaders(keys[:, None].astype(np.int64), rows, np.where(constant | vague, 0.0, noise / length))
        classes = np.where(constant, CONSTANT, self._classes(found))
        return Values(axis, classes, np.where(constant, 0.0, sign * length), offset, noise)

    def _addend(self, node: Node, use: LinearUse, rows: int) -> FloatArray | None:
        """Gemm's constant C as one number per row (other linear ops have none); None if it is not that."""
        name = node.inputs[2] if node.op == "Gemm" and len(node.inputs) > 2 else ""
        constant = self._network.constant(name) if name else np.zeros(1)
        if constant is None:
            return None
        aligned = constant.reshape((1,) * (2 - constant.ndim) + constant.shape).astype(np.float64)
        across = aligned.shape[1 - (use.result_axis or 0)]
        if across != 1:
            return None
        return float(node.attributes.get("beta", 1.0)) * np.broadcast_to(aligned.reshape(-1), rows)

    def _elementwise(self, node: Node, rule: ops.OpRule, axis: int) -> Values | None:
        shape = self._view.labels[node.outputs[0]].shape
        operands = [self._operand(name, axis - len(shape), shape[axis]) for name in node.inputs if name]
        if any(not np.isfinite(v.offset).all() for v in operands):
            return None
        constant = np.logical_and.reduce([v.constant for v in operands])
        result = _LAWS[rule.law](self, rule, operands)
        if not constant.any() or not self._foldable(node):
            return dataclasses.replace(result, axis=axis)
        folded = self._fold(node, operands, constant)
        noise = np.where(constant, sum(v.noise for v in operands), result.noise)
        return Values(
            axis,
            np.where(constant, CONSTANT, result.classes),
            np.where(constant, 0.0, result.scale),
            np.where(constant, folded, result.offset),
            noise,
        )

    def _operand(self, name: str, axis: int, size: int) -> Values:
        """One operand along the result's channel axis (negative: counted from the end), broadcast to its size."""
        constant = self._network.constant(name)
        if constant is not None:
            return self._constant_operand(constant, axis, size)
        shape = self._network.shape(name)
        if shape is None or len(shape) < -axis or shape[axis] == 1:
            single = self.of(name, -1, 1)
            return Values(axis, *(np.repeat(a, size) for a in (single.classes, single.scale)), *np.zeros((2, size)))
        return self.of(name, len(shape) + axis, size)

    def _constant_operand(self, constant: npt.NDArray[np.generic], axis: int, size: int) -> Values:
        """A constant is its values where it has one per channel, else a function known by its content."""
        along = constant.shape[axis] if constant.ndim >= -axis else 1
        if constant.size == along:
            numbers = np.broadcast_to(constant.reshape(-1).astype(np.float64), size)
            eps = ROUNDINGS * _eps(constant.dtype)
            return Values(axis, np.zeros(size, np.int64), np.zeros(size), numbers.copy(), eps * np.abs(numbers))
        slices = np.moveaxis(constant, axis, 0) if along > 1 else constant[None]
        ids = [self._content(part.tobytes()) for part in slices]
        return Values(axis, np.resize(np.array(ids), size), np.ones(size), np.zeros(size), np.zeros(size))

    def _content(self, data: bytes) -> int:
        key = (hash(data), len(data))
        if key not in self._contents:
            self._contents[key] = int(self._fresh(1)[0])
        return self._contents[key]

    def _foldable(self, node: Node) -> bool:
        """Conditions and integers keep their types only inside the network: leave those unevaluated."""
        constants = [self._network.constant(name) for name in node.inputs if name]
        return node.op != "Cast" and all(c is None or c.dtype.kind == "f" for c in constants)

    def _fold(self, node: Node, operands: Sequence[Values], constant: npt.NDArray[np.bool_]) -> FloatArray:
        """Run the op itself on the channels that are constant [C]."""
        arrays = []
        for name, values in zip(filter(None, node.inputs), operands, strict=True):
            value = self._network.constant(name)
            arrays.append(value if value is not None and value.size == 1 else values.offset[constant])
        result = np.zeros(len(constant))
        result[constant] = evaluate_node(self._network.proto, node.index, arrays)
        return result

    # ---- one method per law; each answers for channels with at least one varying operand ----

    def _identity(self, _: ops.OpRule, operands: Sequence[Values]) -> Values:
        return operands[0]

    def _negate(self, _: ops.OpRule, operands: Sequence[Values]) -> Values:
        x = operands[0]
        return dataclasses.replace(x, scale=-x.scale, offset=-x.offset)

    def _add(self, rule: ops.OpRule, operands: Sequence[Values]) -> Values:
        a, b = operands
        if rule.law is Law.SUBTRACT:
            b = dataclasses.replace(b, scale=-b.scale, offset=-b.offset)
        noise = np.hypot(a.noise, b.noise)
        same = (a.classes == b.classes) | a.constant | b.constant
        one = np.where(a.constant, b.classes, a.classes)
        scale = a.scale + b.scale
        gone = same & (np.abs(scale) <= noise)
        length = np.hypot(a.scale, b.scale)
        length[length == 0.0] = 1.0
        sign = np.where(a.scale < 0, -1.0, 1.0)
        rows = np.stack([a.scale, b.scale], 1) * (sign / length)[:, None]
        two = self._grouped([a, b], rows, noise / length)
        classes = np.where(gone, CONSTANT, np.where(same, one, two))
        scale = np.where(gone, 0.0, np.where(same, scale, sign * length))
        return Values(a.axis, classes, scale, a.offset + b.offset, noise)

    def _multiply(self, rule: ops.OpRule, operands: Sequence[Values]) -> Values:
        a, b = operands
        divide = rule.law is Law.DIVIDE
        if a.constant.any() and not divide:
            # Put the constant factor second, channel by channel.
            swap = a.constant & ~b.constant
            a, b = _exchanged(a, b, swap)
        by_number = b.constant & ((b.offset != 0) | (not divide))
        factor = np.where(by_number, b.offset, 1.0)
        factor = 1.0 / factor if divide else factor
        pure = (a.offset == 0) & (b.offset == 0) & ~a.constant & ~b.constant
        product = np.where(pure, a.scale / np.where(pure, b.scale, 1.0) if divide else a.scale * b.scale, 1.0)
        mixed = np.where(pure, 0.0, np.stack([a.scale, a.offset, b.scale, b.offset])).T
        classes = self._grouped([a, b], np.c_[mixed, pure], np.hypot(a.noise, b.noise))
        scale = np.where(by_number, a.scale * factor, product)
        zero = by_number & (scale == 0)
        classes = np.where(zero, CONSTANT, np.where(by_number, a.classes, classes))
        relative = a.noise + np.abs(a.scale) * _relative(b)
        noise = np.where(by_number, relative * np.abs(factor), np.abs(product) * (_relative(a) + _relative(b)))
        return Values(a.axis, classes, scale, np.where(by_number, a.offset * factor, 0.0), noise)

    def _homogeneous(self, _: ops.OpRule, operands: Sequence[Values]) -> Values:
        x = operands[0]
        length = np.where(x.constant, 1.0, np.abs(x.scale))
        others = [part for v in operands[1:] for part in (v.scale, v.offset)]
        rows = np.stack([np.sign(x.scale), x.offset / length, *others], 1)
        classes = self._grouped(operands, rows, x.noise / length)
        return Values(x.axis, classes, length, np.zeros(len(x)), x.noise)

    def _odd(self, rule: ops.OpRule, operands: Sequence[Values]) -> Values:
        x = operands[0]
        sign = np.where(x.scale < 0, -1.0, 1.0)
        classes = self._grouped(operands, np.stack([np.abs(x.scale), sign * x.offset], 1), x.noise)
        return Values(x.axis, classes, sign, rule.centre * (1.0 - sign), np.zeros(len(x)))

    def _any(self, _: ops.OpRule, operands: Sequence[Values]) -> Values:
        rows = np.stack([part for v in operands for part in (v.scale, v.offset)], 1)
        noise = np.sqrt(sum(v.noise**2 for v in operands))
        classes = self._grouped(operands, rows, noise)
        size = len(classes)
        return Values(operands[0].axis, classes, np.ones(size), np.zeros(size), np.zeros(size))

    def _grouped(self, operands: Sequence[Values], rows: FloatArray, noise: FloatArray) -> IntArray:
        """Classes of results whose operands agree in class and, up to rounding, in the given numbers."""
        return self._classes(leaders(np.stack([v.classes for v in operands], 1), rows, noise))


_LAWS = {
    Law.IDENTITY: Numbering._identity,
    Law.NEGATE: Numbering._negate,
    Law.ADD: Numbering._add,
    Law.SUBTRACT: Numbering._add,
    Law.MULTIPLY: Numbering._multiply,
    Law.DIVIDE: Numbering._multiply,
    Law.HOMOGENEOUS: Numbering._homogeneous,
    Law.ODD: Numbering._odd,
    Law.ANY: Numbering._any,
}


def _only_axis(labels: IntArray | None) -> int | None:
    """The one axis along which channels differ, or None."""
    axes = [] if labels is None else [axis for axis, n in enumerate(labels.shape) if n > 1]
    return axes[0] if len(axes) == 1 else None


def _signs(rows: FloatArray) -> FloatArray:
    """A sign per row so that parallel and opposite rows come out equal."""
    probe = np.random.default_rng(1).standard_normal(rows.shape[1])
    return np.where(rows @ probe < 0, -1.0, 1.0)


def _sum_by_class(columns: FloatArray, classes: IntArray) -> FloatArray:
    """Columns [O, K] summed by class; constant columns are left out."""
    varying = np.flatnonzero(classes != CONSTANT)
    kinds, group = np.unique(classes[varying], return_inverse=True)
    if len(kinds) == len(varying):
        return columns[:, varying]
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(len(kinds)))
    return np.asarray(np.add.reduceat(columns[:, varying[order]], starts, axis=1))


def _exchanged(a: Values, b: Values, swap: npt.NDArray[np.bool_]) -> tuple[Values, Values]:
    def pick(x: Values, y: Values) -> Values:
        parts = ((x.classes, y.classes), (x.scale, y.scale), (x.offset, y.offset), (x.noise, y.noise))
        return Values(x.axis, *(np.where(swap, q, p) for p, q in parts))

    return pick(a, b), pick(b, a)


def _relative(values: Values) -> FloatArray:
    size = np.maximum(np.abs(values.scale), np.abs(values.offset))
    return values.noise / np.where(size == 0, 1.0, size)


def _eps(dtype: np.dtype[np.generic]) -> float:
    """Unit in the last place of a float type; integers and bool are exact."""
    if dtype.kind in "iub":
        return 0.0
    return float(np.finfo(dtype).eps) if dtype.kind == "f" else 2.0**-7


def type_eps(network: Network, use: LinearUse) -> float:
    """Unit in the last place of the stored weight's type."""
    value = network.constant(network.nodes[use.weight.node].inputs[use.weight.position])
    assert value is not None
    return _eps(value.dtype)


def stored_weight(network: Network, use: LinearUse) -> FloatArray | None:
    """The weight of a linear use as [O, K] float64; a weight vector is one row."""
    value = network.constant(network.nodes[use.weight.node].inputs[use.weight.position])
    if value is None:
        return None
    wide = value.astype(np.float64)
    if use.out_axis is None:
        return wide[None, :]
    return wide if use.in_axis == 1 else wide.T
