"""Einsums as the products that they are: with a stored weight, or of two computed tensors.

A rule for channels knows products of matrices and stacks of matrices. An Einsum of a tensor and a weight that sums over
one axis is such a product once axes stand where a product has them, and one that sums over several once these are one.
Weights are laid out anew by nodes on what is stored, which run once when a network is loaded; of the tensors, no
more is transposed than an Einsum does inside.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnx_condense.network.freeing import Labels, freeing
from onnx_condense.network.live import DEFAULTS, prune
from onnx_condense.network.model import Network
from onnx_condense.network.names import Names
from onnx_condense.network.nodes import Node

# From this opset on Unsqueeze has its axes as an operand.
_OPERANDS = 13
_USED = frozenset(("", op) for op in ("Constant", "Einsum", "MatMul", "Reshape", "Squeeze", "Transpose", "Unsqueeze"))


@dataclasses.dataclass(frozen=True)
class _Product:
    """One product: letters of the axes of both operands and of the result, as a MatMul has them; "1": an axis of one.

    at: which operand is the weight. first: which operand stands on the left.
    summed, own: sizes of the axes that are summed and of the weight's own ones, where the product has each of these as
    one axis (the weight is a matrix); else ().
    """

    at: int
    first: int
    weight: str
    given: str
    result: str
    summed: tuple[int, ...] = ()
    own: tuple[int, ...] = ()


def multiplied(network: Network) -> Network:
    """A network with products for its Einsums; `network` itself where none is a product with a stored weight."""
    return _written(network, {node.index: product for node in network.nodes if (product := _product(network, node))})


def weighed(network: Network, labels: Labels) -> Network:
    """A network with products for its Einsums of two computed tensors, where channels can go then that had to stay.

    Attention weighs values so: each channel of them by itself, which a rule for Einsum would not know.

    Args:
        network: as it is.
        labels: tells which channels can go.

    Returns:
        `network` itself where there is no such place.
    """
    products = [(node, product) for node in network.nodes if (product := _pair(network, node))]

    def write(places: Sequence[tuple[Node, _Product]]) -> tuple[Network, list[tuple[str]]]:
        found = {node.index: product for node, product in places}
        return _written(network, found), [(node.inputs[product.at],) for node, product in places]

    return freeing(network, products, write, labels)


def _written(network: Network, found: Mapping[int, _Product]) -> Network:
    """A network with products for some nodes, by index; itself for none."""
    if not found:
        return network
    proto = onnx.ModelProto()
    proto.CopyFrom(network.proto)
    writer = _Writer(proto)
    for index in sorted(found, reverse=True):
        made = writer.nodes(network.nodes[index], found[index])
        del proto.graph.node[index]
        for node in reversed(made):
            proto.graph.node.insert(index, node)
    prune(proto.graph, interface=proto.ir_version >= DEFAULTS)
    return Network(proto, network.path, network.given)


def _product(network: Network, node: Node) -> _Product | None:
    """The product with a stored weight that a node is, or None."""
    terms = _einsum(network, node)
    stored = [bool(network.root(name)) for name in node.inputs]
    if terms is None or sum(stored) != 1:
        return None
    at = stored.index(True)
    shape = network.shape(node.inputs[at]) or ()
    sizes = {letter: n for letter, n in zip(terms[at], shape, strict=True) if isinstance(n, int)}
    return _by_a_matrix(at, terms, sizes) or _laid_out(at, terms[at], terms[1 - at], terms[2])


def _pair(network: Network, node: Node) -> _Product | None:
    """The product of two computed tensors that a node is, one of which has channels of its own along its last axis."""
    terms = _einsum(network, node)
    if terms is None or any(network.root(name) for name in node.inputs):
        return None
    for at in (1, 0):
        if terms[at] and terms[at][-1] not in terms[1 - at]:
            return _laid_out(at, terms[at], terms[1 - at], terms[2])
    return None


def _einsum(network: Network, node: Node) -> tuple[str, str, str] | None:
    """The letters of an Einsum of two tensors of floats that says the same as a product; None for other nodes."""
    if node.domain or node.op != "Einsum" or _USED & network.functions or len(node.inputs) != 2:
        return None
    terms = _terms(str(node.attributes.get("equation", "")))
    first, second = (network.shape(name) or () for name in node.inputs)
    kinds = {network.dtype(name).kind for name in node.inputs}
    if not terms or (len(first), len(second)) != (len(terms[0]), len(terms[1])) or kinds != {"f"}:
        return None
    # An Einsum sums one number over and over where the other operand has many, which no product does.
    summed = (set(terms[0]) & set(terms[1])) - set(terms[2])
    sizes = [(first[terms[0].index(n)], second[terms[1].index(n)]) for n in summed]
    return terms if all(one == other is not None for one, other in sizes) else None


def _by_a_matrix(at: int, terms: Sequence[str], sizes: Mapping[str, int]) -> _Product | None:
    """A product by one matrix: several axes are summed, or the weight has several own ones, with which the result ends.

    sizes: of the weight's axes, by letter.
    """
    given, result = terms[1 - at], terms[2]
    own = "".join(n for n in result if n not in given)
    rows, summed = result.removesuffix(own), "".join(n for n in given if n not in result)
    plain = own and summed and rows and rows + own == result and len(own + summed) > 2
    if not plain or set(sizes) != {*summed, *own}:
        return None
    lengths = (tuple(sizes[letter] for letter in side) for side in (summed, own))
    return _Product(at, 1 - at, summed + own, rows + summed, result, *lengths)


def _terms(equation: str) -> tuple[str, str, str] | None:
    """Letters of two operands and of the result, every one once in a term; None for what says less or more."""
    sides = equation.replace(" ", "").split("->")
    terms = [*sides[0].split(","), *sides[1:]]
    plain = len(sides) == 2 and len(terms) == 3 and all(t.isalpha() or not t for t in terms)
    if not plain or any(len(set(t)) < len(t) for t in terms):
        return None
    return terms[0], terms[1], terms[2]


def _laid_out(at: int, weight: str, given: str, result: str) -> _Product | None:
    """How a product does it with fewest transpositions of tensors."""
    summed = [n for n in weight if n in given and n not in result]
    alone = (set(weight) ^ set(given)) - set(result)
    stack = [n for n in result if n in weight and n in given]
    own = [n for n in result if n in weight and n not in given]
    rows = [n for n in result if n in given and n not in weight]
    if len(summed) != 1 or alone or not own:
        return None
    c, head = summed[0], "".join([*stack, *own[:-1]])
    # Axes of one before all others go without saying.
    ones, room = "1" * max(len(rows) - 1, 0) if head else "", "1" * len(own[:-1]) if stack else ""
    tail = "".join(rows) or "1"
    found = [_Product(at, 1 - at, head + ones + c + own[-1], "".join(stack) + room + tail + c, head + tail + own[-1])]
    if rows:
        before, last = "".join(rows[:-1]), rows[-1]
        tensor = "".join(stack) + room + before + c + last
        found.append(_Product(at, at, head + ones + own[-1] + c, tensor, head + before + own[-1] + last))
    return min(found, key=lambda p: (_plain(p.given) != given) + (_plain(p.result) != result))


def _plain(letters: str) -> str:
    return letters.replace("1", "")


class _Writer:
    """Makes nodes for one network."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self._names = Names(proto)
        self._opset = next(o.version for o in proto.opset_import if o.domain in {"", "ai.onnx"})
        self._made: list[onnx.NodeProto] = []

    def nodes(self, node: Node, product: _Product) -> list[onnx.NodeProto]:
        """What takes the place of an Einsum; the product bears its name."""
        self._made = []
        terms = _terms(str(node.attributes["equation"]))
        assert terms is not None
        at = product.at
        weight = self._arranged(node.inputs[at], terms[at], product.weight)
        given = self._arranged(node.inputs[1 - at], terms[1 - at], product.given)
        sides = [weight, given] if product.first == at else [given, weight]
        if product.own:
            return self._by_a_matrix(node, product, sides)
        last = product.result == terms[2]
        out = node.outputs[0] if last else self._names.fresh(f"{node.outputs[0]}_product")
        self._made.append(helper.make_node("MatMul", sides, [out], name=node.name))
        if not last:
            self._back(out, product.result, terms[2], node.outputs[0])
        return self._made

    def _by_a_matrix(self, node: Node, product: _Product, sides: Sequence[str]) -> list[onnx.NodeProto]:
        """A product with a weight that is one matrix, and what makes one axis of several and several of one."""
        given, weight = sides
        summed, rows = math.prod(product.summed), [0] * (len(product.result) - len(product.own))
        weight = self._node("Reshape", weight, "", self._numbers([summed, math.prod(product.own)]))
        if len(product.summed) > 1:
            given = self._node("Reshape", given, "", self._numbers([*rows, summed]))
        several = len(product.own) > 1
        out = self._names.fresh(f"{node.outputs[0]}_product") if several else node.outputs[0]
        self._made.append(helper.make_node("MatMul", [given, weight], [out], name=node.name))
        if several:
            self._node("Reshape", out, node.outputs[0], self._numbers([*rows, *product.own]))
        return self._made

    def _numbers(self, numbers: Sequence[int]) -> str:
        stored = self._names.fresh("numbers")
        value = numpy_helper.from_array(np.array(numbers, np.int64))
        self._made.append(helper.make_node("Constant", [], [stored], value=value))
        return stored

    def _arranged(self, name: str, letters: str, wanted: str) -> str:
        """A tensor with its axes in the order wanted, and axes of one between them."""
        plain = _plain(wanted)
        if plain != letters:
            name = self._node("Transpose", name, perm=[letters.index(n) for n in plain])
        ones = [at for at, n in enumerate(wanted) if n == "1"]
        return self._sized("Unsqueeze", name, ones) if ones else name

    def _back(self, name: str, letters: str, wanted: str, out: str) -> None:
        ones, plain = [at for at, n in enumerate(letters) if n == "1"], _plain(letters)
        if ones:
            name = self._sized("Squeeze", name, ones, out if plain == wanted else "")
        if plain != wanted:
            self._node("Transpose", name, out, perm=[plain.index(n) for n in wanted])

    def _sized(self, op: str, name: str, axes: Sequence[int], out: str = "") -> str:
        if self._opset < _OPERANDS:
            return self._node(op, name, out, axes=list(axes))
        return self._node(op, name, out, self._numbers(axes))

    def _node(self, op: str, name: str, out: str = "", *more: str, **attributes: Any) -> str:
        out = out or self._names.fresh(f"{name}_{op}")
        self._made.append(helper.make_node(op, [name, *more], [out], **attributes))
        return out
