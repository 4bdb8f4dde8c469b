"""Value numbering: what the weights alone prove about each channel of each tensor.

Every channel is described as scale * v + offset, where v is a function of the network's inputs with a number
(its class) and class CONSTANT means that the channel is its offset for every input. Two channels of one class
are affine copies of each other, whatever the input. Classes come from walking the graph once in its own order:
a linear op combines classes (columns of one class are summed before rows are compared, so copies with split
outgoing weights are seen), an element-wise op maps them by its declared law. Networks are acyclic, so one walk
finds what partition refinement would.

Numbers are compared element by element, each to the rounding of the weights that went into it: a small weight may
meet a large input, so no element hides behind the size of its row.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx

from onnx_condense import ops
from onnx_condense.errors import ModelError
from onnx_condense.evidence.cluster import leaders
from onnx_condense.evidence.laws import (
    CONSTANT,
    PARTS,
    VAGUE,
    BoolArray,
    Values,
    affine_of,
    chosen,
    directions,
    eps_of,
    exact,
    lengths,
    result_of,
    step_of,
)
from onnx_condense.evidence.moves import MOVES, filtered, laid_out, moved, only_axis, put
from onnx_condense.evidence.sums import activated, of_stack, sum_by_class
from onnx_condense.network.model import Network, Node
from onnx_condense.ops import Law
from onnx_condense.plan import ChannelView, FloatArray, IntArray, LinearUse
from onnx_condense.runtime import evaluate_node

# A stored weight is trusted to so many units in the last place; two weights are equal within twice that.
ROUNDINGS = 2.0

_FLOATS = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16}


class Numbering:
    """Values of the tensors of one network.

    trusted: units in the last place that stored weights are taken for uncertain by. With 0, only what is equal to
    the last bit is one, and ops that jump can be asked as well.
    """

    def __init__(self, network: Network, view: ChannelView, trusted: float = ROUNDINGS) -> None:
        self._network = network
        self._view = view
        self._trusted = trusted
        self._count = CONSTANT
        self._values: dict[str, Values] = {}
        self._opaque: dict[tuple[str, int, int], Values] = {}
        self._padded: dict[tuple[str, int, int], Values] = {}
        self._one = int(self.fresh(1)[0])
        self._contents: dict[tuple[tuple[int, ...], str, bytes], int] = {}
        uses = {use.weight.node: use for use in view.linear}
        for node in network.nodes:
            for name, values in self._visit(node, uses.get(node.index)):
                if values.finite:
                    self._values[name] = values

    @property
    def network(self) -> Network:
        """What is numbered."""
        return self._network

    @property
    def labels(self) -> Mapping[str, IntArray]:
        """Channel labels of its tensors."""
        return self._view.labels

    def _visit(self, node: Node, use: LinearUse | None) -> Iterable[tuple[str, Values]]:
        """What is known of the results of a node, by name."""
        rule = ops.find(node.domain, node.op, node.opset)
        if rule is None or not node.outputs:
            return ()
        if (alike := laid_out(self, node, rule)) is not None:
            return ((node.outputs[0], alike),)
        if self._network.types.get(node.outputs[0]) not in _FLOATS:
            if rule.trace is not ops.elementwise.trace:
                return ()
            # Arithmetic of integers and conditions keeps other laws.
            rule = dataclasses.replace(rule, law=Law.STEP)
        with np.errstate(over="ignore", invalid="ignore"):
            constants = [self._network.constant(name) if name else None for name in node.inputs]
            law = rule.law_of(node.attributes, constants)
            if use is None and law in MOVES:
                return tuple(moved(self, node, rule, law))
            values = self._computed(node, use, rule, law)
            return () if values is None else ((node.outputs[0], values),)

    def _computed(self, node: Node, use: LinearUse | None, rule: ops.OpRule, law: Law) -> Values | None:
        axis = only_axis(self._view.labels.get(node.outputs[0]))
        if axis is None:
            return None
        if use is not None or law is Law.FILTER:
            sums = self._filtered(node, rule, axis) if use is None else self._linear(node, use, rule, axis)
            return self._whole(node, use, rule, sums)
        if rule.affine is not None:
            return self._affine(node, rule.affine, axis)
        if law is Law.STEP and self._trusted:
            return self._jumping(node.outputs[0])
        if rule.per_channel or rule.trace is ops.elementwise.trace:
            return self._elementwise(node, rule, axis)
        return put(self, rule, law, node, self._operands(node, axis)) if ops.rows.puts(rule) else None

    def known(self, tensor: str) -> Values | None:
        """Values of a tensor's channels, or None where nothing is known."""
        return self._values.get(tensor)

    def of(self, tensor: str, axis: int, size: int) -> Values:
        """Values along an axis; each position its own unknown where nothing is known."""
        known = self._values.get(tensor)
        if known is not None and known.axis == axis and len(known) == size:
            return known
        key = (tensor, axis, size)
        if key not in self._opaque:
            self._opaque[key] = exact(axis, self.fresh(size))
        return self._opaque[key]

    def read_by(self, use: LinearUse) -> Values:
        """Values of what a linear op reads, as it reads them."""
        tensor = self._network.nodes[use.activation.node].inputs[use.activation.position]
        values = self.of(tensor, use.act_axis, len(use.columns))
        return self.beside_zeros(tensor, values) if use.padded else values

    def beside_zeros(self, tensor: str, x: Values) -> Values:
        """The same channels to someone who reads zeros beside them: no offset is the same everywhere any more.

        s v + o becomes s (v + o / s), a function of its own for every o / s; constants are multiples of one.
        """
        key = (tensor, x.axis, len(x))
        if key in self._padded:
            return self._padded[key]
        shifted = np.abs(x.offset) > x.offset_noise
        safe = np.where(x.constant, 1.0, x.scale)
        place, blur = x.offset / safe, (x.offset_noise + np.abs(x.offset / safe) * x.scale_noise) / np.abs(safe)
        moved = self.group(x.classes[:, None], place[:, None], blur[:, None])
        classes = np.where(x.constant, np.where(shifted, self._one, CONSTANT), np.where(shifted, moved, x.classes))
        scale = np.where(x.constant, np.where(shifted, x.offset, 0.0), x.scale)
        noise = np.where(x.constant, np.where(shifted, x.offset_noise, 0.0), x.scale_noise)
        zeros = np.zeros(len(x))
        self._padded[key] = Values(x.axis, classes, scale, zeros, noise, zeros)
        return self._padded[key]

    def fresh(self, count: int) -> IntArray:
        """Class numbers that were never used before [count]."""
        self._count += count
        return np.arange(self._count - count + 1, self._count + 1, dtype=np.int64)

    def group(self, keys: IntArray, rows: FloatArray, tolerance: FloatArray) -> IntArray:
        """New class numbers for channels that agree in keys and, up to rounding, in numbers."""
        leads = leaders(keys, rows, tolerance)
        own = leads == np.arange(len(leads))
        if own.all():
            return self.fresh(len(leads))
        return np.asarray(self.fresh(int(own.sum()))[(own.cumsum() - 1)[leads]])

    def _rounding(self, weight: FloatArray, eps: float, step: float) -> FloatArray:
        """Uncertainty of each stored weight; a zero is a zero."""
        return np.where(weight == 0, 0.0, self._trusted * (eps * np.abs(weight) + step))

    # ---- linear ops ----

    def _linear(self, node: Node, use: LinearUse, rule: ops.OpRule, axis: int) -> Values | None:
        weight = stored_weight(self._network, use)
        bias = self._addend(node, use, rule)
        if bias is None:
            return None
        x = per_tap(self.read_by(use), use.taps)
        eps, size = type_eps(self._network, use), np.abs(weight)
        rounding = self._rounding(size, eps, type_step(self._network, use))
        noise = rounding * np.abs(x.scale) + size * x.scale_noise
        combined, noise = sum_by_class(x.classes, weight * x.scale, noise)
        combined, noise = use.gain * combined, abs(use.gain) * noise
        offset = use.gain * (weight @ x.offset) + bias
        blur = rounding @ np.abs(x.offset) + size @ x.offset_noise
        blur = abs(use.gain) * blur + self._trusted * eps * np.abs(bias)
        unit, tolerance, length = directions(combined, noise)
        constant, spread = (np.abs(combined) <= noise).all(axis=1), lengths(noise)
        vague = ~constant & (np.abs(length) < VAGUE * spread)
        keys = np.where(vague, np.arange(len(unit)) + 2, constant)[:, None].astype(np.int64)
        classes = np.where(constant, CONSTANT, self.group(keys, unit, tolerance))
        scale, noise = np.where(constant, 0.0, (length, spread))
        values = Values(axis, classes, scale, offset, noise, blur)
        # A row that all but cancels points nowhere in particular: it is an unknown of its own.
        return chosen(vague, exact(axis, classes), values)

    def _whole(self, node: Node, use: LinearUse | None, rule: ops.OpRule, sums: Values | None) -> Values | None:
        """The result of a linear op whose sums are known."""
        if sums is not None and use is not None and use.spread:
            sums = of_stack(self, sums, self._view.labels[node.outputs[0]].shape[sums.axis])
        if sums is None or rule.activation is None:
            return sums
        function = rule.activation(node.attributes)
        if function is not None and function.rule.law is Law.STEP and self._trusted:
            return self._jumping(node.outputs[0])
        at, rank = rule.residual, self._view.labels[node.outputs[0]].ndim
        name = node.inputs[at] if at is not None and len(node.inputs) > at else ""
        residual = self._operand(name, sums.axis - rank, len(sums)) if name else None
        return activated(self, sums, residual, function)

    def _addend(self, node: Node, use: LinearUse, rule: ops.OpRule) -> FloatArray | None:
        """The op's own constant bias as one number per row, zeros where it has none; None if it is not that."""
        rows = len(use.rows)
        name = node.inputs[rule.bias] if rule.bias is not None and len(node.inputs) > rule.bias else ""
        if not name:
            return np.zeros(rows)
        constant = self._network.constant(name)
        if constant is None:
            return None
        aligned = constant.reshape((1,) * (2 - constant.ndim) + constant.shape).astype(np.float64)
        # The checker lets biases of any length pass.
        if aligned.shape[1 - (use.result_axis or 0)] != 1 or aligned.size not in {1, rows}:
            return None
        line = aligned.reshape(-1)
        return float(node.attributes.get("beta", 1.0)) * (line if line.size == rows else np.repeat(line, rows))

    # ---- ops on one operand that keep its channels apart ----

    def _filtered(self, node: Node, rule: ops.OpRule, axis: int) -> Values | None:
        """A depthwise convolution."""
        stored = self._network.constant(node.inputs[1])
        before = self._view.labels.get(node.inputs[0])
        if stored is None or before is None or rule.pads is None or only_axis(before) != axis:
            return None
        channels, results = before.shape[axis], self._view.labels[node.outputs[0]].shape[axis]
        kernels = stored.astype(np.float64).reshape(results, -1)
        name = node.inputs[2] if len(node.inputs) > 2 else ""
        bias = self._network.constant(name) if name else np.zeros(results)
        if bias is None or bias.size != results:
            return None
        x = self.of(node.inputs[0], axis, channels)
        if rule.pads(node.attributes, stored.shape[2:]):
            x = self.beside_zeros(node.inputs[0], x)
        eps, step = eps_of(stored.dtype), step_of(stored.dtype)
        return filtered(self, x, kernels, bias.astype(np.float64), lambda w: self._rounding(w, eps, step))

    def _affine(self, node: Node, affine: ops.Affine, axis: int) -> Values | None:
        """K a + s with stored numbers per channel."""
        stored = [self._network.constant(name) for name in node.inputs[1:]]
        if any(v is None for v in stored):
            return None
        x = self.of(node.inputs[0], axis, self._view.labels[node.outputs[0]].shape[axis])
        numbers = [v for v in stored if v is not None]
        factor, shift, terms = affine(node.attributes, [v.astype(np.float64) for v in numbers])
        eps = self._trusted * max(eps_of(v.dtype) for v in numbers)
        return affine_of(x, factor, shift, terms, eps)

    # ---- element-wise ops ----

    @functools.cached_property
    def _strict(self) -> Numbering:
        """The same where nothing is taken for equal up to rounding."""
        return Numbering(self._network, self._view, trusted=0.0)

    def _jumping(self, result: str) -> Values | None:
        """What an op makes that jumps: arguments that differ by a rounding may land on either side."""
        found = self._strict.known(result)
        if found is None:
            return None
        numbers = np.stack([found.scale, found.offset], 1)
        return exact(found.axis, self.group(found.classes[:, None], numbers, np.zeros_like(numbers)))

    def _elementwise(self, node: Node, rule: ops.OpRule, axis: int) -> Values | None:
        operands = self._operands(node, axis, per_channel=rule.per_channel)
        if not all(v.finite for v in operands):
            return None
        result = result_of(rule, operands, self.group)
        if result is None:
            return None
        constant = np.logical_and.reduce([v.constant for v in operands])
        # An op that sees the whole channel makes of a constant one what numbers alone do not tell.
        folded = None if rule.per_channel else self._fold(node, operands, constant)
        if folded is not None:
            noise = np.sum([v.offset_noise for v in operands], axis=0)
            zeros = np.zeros(len(constant))
            known = Values(axis, np.zeros_like(result.classes), zeros, folded, zeros, noise)
            result = chosen(constant, known, result)
        return Values(axis, *(getattr(result, n) for n in PARTS))

    def _operands(self, node: Node, axis: int, *, per_channel: bool = False) -> list[Values]:
        """What a node reads, along an axis of its result; per_channel: all but the first are vectors."""
        shape = self._view.labels[node.outputs[0]].shape
        places = [-1 if per_channel and i else axis - len(shape) for i in range(len(node.inputs))]
        return [self._operand(n, place, shape[axis]) for n, place in zip(node.inputs, places, strict=True) if n]

    def _operand(self, name: str, axis: int, size: int) -> Values:
        """One operand along the result's channel axis (negative: counted from the end), broadcast to its size."""
        constant = self._network.constant(name)
        if constant is not None:
            return self._constant_operand(constant, axis, size)
        shape = self._network.shape(name)
        if shape is None or len(shape) < -axis or shape[axis] == 1:
            # One number for all channels: the tensor as a whole is the unknown.
            return exact(axis, np.repeat(self.of(name, -1, 1).classes, size))
        return self.of(name, len(shape) + axis, size)

    def _constant_operand(self, constant: npt.NDArray[np.generic], axis: int, size: int) -> Values:
        """A constant is its values where it has one per channel, else a function known by its content."""
        along = constant.shape[axis] if constant.ndim >= -axis else 1
        lines = np.moveaxis(constant, axis, -1).reshape(-1, along) if along > 1 else constant.reshape(-1, 1)
        if along in (1, size) and _numeric(constant) and len(lines) and (lines == lines[0]).all():
            numbers = np.broadcast_to(lines[0].astype(np.float64), size)
            zeros = np.zeros(size)
            noise = self._trusted * eps_of(constant.dtype) * np.abs(numbers)
            return Values(axis, np.zeros(size, np.int64), zeros, numbers.copy(), zeros, noise)
        parts = np.split(constant, along, axis) if along > 1 else [constant]
        return exact(axis, np.resize([self._content(part) for part in parts], size))

    def _content(self, part: npt.NDArray[np.generic]) -> int:
        """The class of what does not vary with the input, by element type, extent and bytes."""
        shape = part.shape
        while shape and shape[0] == 1:
            shape = shape[1:]
        key = (shape, str(part.dtype), repr(part.tolist()).encode() if part.dtype.hasobject else part.tobytes())
        if key not in self._contents:
            self._contents[key] = int(self.fresh(1)[0])
        return self._contents[key]

    def _fold(self, node: Node, operands: Sequence[Values], constant: BoolArray) -> FloatArray | None:
        """Run the op itself on the channels that are constant [C]; None where there are none or that can't be done."""
        if not constant.any():
            return None
        inputs = [name for name in node.inputs if name]
        values = [self._network.constant(name) for name in inputs]
        # Conditions and integers keep their types only inside the network: leave those unevaluated.
        if any(v is not None and v.dtype.kind != "f" for v in values):
            return None
        if any(v is None and self._network.types.get(n) not in _FLOATS for n, v in zip(inputs, values, strict=True)):
            return None
        arrays = [
            v.reshape(()) if v is not None and v.size == 1 else o.offset[constant]
            for v, o in zip(values, operands, strict=True)
        ]
        wide = self._network.types.get(node.outputs[0]) == onnx.TensorProto.DOUBLE
        try:
            numbers = evaluate_node(self._network.proto, node.index, arrays, np.float64 if wide else np.float32)
        except ModelError:
            return None
        if numbers.size != constant.sum() or not np.isfinite(numbers).all():
            return None
        result = np.zeros(len(constant))
        result[constant] = numbers
        return result


def per_tap(values: Values, taps: int) -> Values:
    """Values of the columns of a weight matrix [K T]: at every tap a function of its own.

    Class numbers stay different, and CONSTANT stays CONSTANT; they only compare with one another.
    """
    if taps == 1:
        return values
    classes = (values.classes[:, None] * taps + np.arange(taps)).reshape(-1)
    classes = np.where(np.repeat(values.constant, taps), CONSTANT, classes)
    return Values(values.axis, classes, *(np.repeat(getattr(values, n), taps) for n in PARTS[1:]))


def _numeric(constant: npt.NDArray[np.generic]) -> bool:
    return constant.dtype.kind in "fiub" or "float" in constant.dtype.name


def type_eps(network: Network, use: LinearUse) -> float:
    """Unit in the last place of the stored weight's type."""
    return eps_of(_stored(network, use).dtype)


def type_step(network: Network, use: LinearUse) -> float:
    """The smallest number of the stored weight's type: how far apart numbers near zero are."""
    return step_of(_stored(network, use).dtype)


def _stored(network: Network, use: LinearUse) -> npt.NDArray[np.generic]:
    value = network.constant(network.nodes[use.weight.node].inputs[use.weight.position])
    assert value is not None
    return value


def stored_weight(network: Network, use: LinearUse) -> FloatArray:
    """The weight of a linear use as [O, K T] float64; a weight vector is one row."""
    return use.matrix(_stored(network, use))
