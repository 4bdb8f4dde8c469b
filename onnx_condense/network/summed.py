"""Sums over channels, as the products that they are.

What multiplies the answers of two networks and sums over the channels (as operator networks do with branch and trunk)
reads these channels with weights that are all one. Written so, they can go like those of any other layer: of two that
are alike one stays and counts twice, and what else goes is made up for by the weights of those that stay. A sum of what
is never negative (squares, say) is left alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnx_condense.network.freeing import Labels, freeing, held
from onnx_condense.network.listed import numbers_of, standard
from onnx_condense.network.live import DEFAULTS, prune
from onnx_condense.network.model import Network
from onnx_condense.network.names import Names
from onnx_condense.network.nodes import Node

# From this opset on Squeeze and Unsqueeze have their axes as an operand.
_OPERANDS = 13
# Ops that are put in.
_PUT = frozenset(("", op) for op in ("Constant", "MatMul", "Mul", "Squeeze", "Unsqueeze"))
# Pow is nearly always a square.
_NEVER_NEGATIVE = ("Abs", "Exp", "HardSigmoid", "Pow", "Relu", "Sigmoid", "Softmax", "Softplus", "Sqrt")


@dataclasses.dataclass(frozen=True)
class _Sum:
    """A sum over the last axis; factors: what is summed, or two tensors whose products are.

    axis: the one that is summed over; width: its size; stays: whether the result has an axis of one in its place.
    ones: axes that the first factor has not, and the product has.
    """

    node: Node
    factors: tuple[str, ...]
    axis: int
    width: int
    stays: bool
    ones: tuple[int, ...] = ()


def summed(network: Network, labels: Labels) -> Network:
    """A network with products for its sums, where channels can go then that had to stay.

    Args:
        network: as it is.
        labels: tells which channels can go.

    Returns:
        `network` itself where there is no such place.
    """
    sums = [] if _PUT & network.functions else [s for node in network.nodes if (s := _sum(network, node))]
    chosen = held(network, sums, lambda found: found.factors, labels)

    def write(sums: Sequence[_Sum]) -> tuple[Network, list[tuple[str, ...]]]:
        return _with_products(network, sums), [s.factors for s in sums]

    return freeing(network, chosen, write, labels)


def _sum(network: Network, node: Node) -> _Sum | None:
    """The sum over the last axis that a node is, or None."""
    names, ones = _factors(network, node)
    shapes = [network.shape(name) or () for name in names]
    if not all(shapes) or not shapes or network.dtype(names[0]).kind != "f":
        return None
    # The axes of one that the first factor gets count, too.
    width, axis = shapes[0][-1], len(shapes[0]) + len(ones) - 1
    if any((len(shape), shape[-1]) != (axis + 1, width) for shape in shapes[1:]):
        return None
    if not isinstance(width, int) or width < 2 or all(network.root(name) for name in names):
        return None
    # A root or a logarithm may stand on a sum of what is never negative; refitted weights could take it below zero.
    if _never_negative(network, *names):
        return None
    if node.op == "Einsum":
        return _Sum(node, names, axis, width, stays=False, ones=ones)
    axes = [a % (axis + 1) for a in numbers_of(network, node, 1, "axes")]
    return _Sum(node, names, axis, width, bool(node.attributes.get("keepdims", 1))) if axes == [axis] else None


def _never_negative(network: Network, *factors: str) -> bool:
    """Whether a product of tensors can't be below zero, whatever they hold, as far as the ops that make them tell."""
    makers = [network.producers.get(name) for name in factors]
    if len(factors) == 2 and factors[0] == factors[1]:
        return True
    if len(factors) == 1 and makers[0] is not None and standard(network, makers[0], "Mul"):
        return _never_negative(network, *makers[0].inputs)
    return all(maker is not None and standard(network, maker, *_NEVER_NEGATIVE) for maker in makers)


def _factors(network: Network, node: Node) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """What is summed: a tensor, or two that are multiplied element by element; nothing if it is another op.

    Returns:
        Their names, and the axes of the second one that the first has not.
    """
    if standard(network, node, "ReduceSum"):
        return node.inputs[:1], ()
    if not standard(network, node, "Einsum") or len(node.inputs) != 2:
        return (), ()
    sides = str(node.attributes.get("equation", "")).replace(" ", "").split("->")
    # The shorter one first: it is what is laid out along the axes of the other.
    pairs = sorted(zip(sides[0].split(","), node.inputs, strict=False), key=lambda pair: len(pair[0]))
    terms, names = [term for term, _ in pairs], tuple(name for _, name in pairs)
    plain = len(sides) == len(terms) == 2 and all(t.isalpha() and len(set(t)) == len(t) for t in terms)
    if not plain or sides[1] != terms[1][:-1] or terms[0][-1] != terms[1][-1] or len(terms[1]) < 2:
        return (), ()
    ones = tuple(at for at, letter in enumerate(terms[1]) if letter not in terms[0])
    laid = "".join(letter for letter in terms[1] if letter in terms[0])
    return (names, ones) if laid == terms[0] else ((), ())


def _with_products(network: Network, sums: Sequence[_Sum]) -> Network:
    proto = onnx.ModelProto()
    proto.CopyFrom(network.proto)
    names = Names(proto)
    for found in sorted(sums, key=lambda s: -s.node.index):
        made = _nodes(network, found, names)
        del proto.graph.node[found.node.index]
        for node in reversed(made):
            proto.graph.node.insert(found.node.index, node)
    prune(proto.graph, interface=proto.ir_version >= DEFAULTS)
    return Network(proto, network.path, network.given)


def _nodes(network: Network, found: _Sum, names: Names) -> list[onnx.NodeProto]:
    """What takes the place of a sum; the product bears its name."""
    made: list[onnx.NodeProto] = []

    def stored(wish: str, value: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> str:
        name = names.fresh(wish)
        made.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value)))
        return name

    node, result, x = found.node, found.node.outputs[0], found.factors[0]
    if found.ones:
        laid = names.fresh(f"{x}_laid_out")
        if node.opset < _OPERANDS:
            made.append(helper.make_node("Unsqueeze", [x], [laid], axes=list(found.ones)))
        else:
            made.append(helper.make_node("Unsqueeze", [x, stored("axes", np.array(found.ones))], [laid]))
        x = laid
    if len(found.factors) > 1:
        factors = [x, found.factors[1]]
        x = names.fresh(f"{result}_factors")
        made.append(helper.make_node("Mul", factors, [x]))
    ones = stored(f"{result}_weight", np.ones((found.width, 1), network.dtype(found.factors[0])))
    out = result if found.stays else names.fresh(f"{result}_product")
    made.append(helper.make_node("MatMul", [x, ones], [out], name=node.name))
    if not found.stays and node.opset < _OPERANDS:
        made.append(helper.make_node("Squeeze", [out], [result], axes=[found.axis]))
    elif not found.stays:
        made.append(helper.make_node("Squeeze", [out, stored("axes", np.array([found.axis]))], [result]))
    return made
