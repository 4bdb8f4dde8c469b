"""Which stored tensors of a network are trained, and which nodes have to be run by PyTorch for that."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from onnx_condense.errors import ModelError
from onnx_condense.evidence.stages import part_of
from onnx_condense.network.model import Network, Node, inlined
from onnx_condense.runtime import Runtime, run
from onnx_condense.tune.lowering import lower, rule_of
from onnx_condense.tune.step import TYPES, RefusedError, Run

Array = npt.NDArray[Any]

_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE})

# What these deliver follows from nothing, and is another thing each time.
_RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)


@dataclasses.dataclass(frozen=True)
class Scope:
    """What training has to do with a network.

    trained: names of stored tensors (initializers, results of Constant nodes).
    live: nodes that depend on these, in order, with what PyTorch does in their place.
    needs: tensors from graph inputs, or made of them alone, that live nodes read or the network gives out.
    fixed: other tensors that live nodes read or the network gives out; they follow from nothing and stay.
    """

    trained: tuple[str, ...]
    live: tuple[tuple[Node, Run], ...]
    needs: tuple[str, ...]
    fixed: tuple[str, ...]


def find_scope(network: Network) -> Scope:
    """What is trained, and what has to be run for that.

    Raises:
        ModelError: a node that depends on a trained tensor can't be lowered, or nothing is there to train.
    """
    nodes = _needed(network)
    trained = _trained(network, nodes)
    if not trained:
        raise ModelError("tune", "no stored float weights that training could change; leave --tune away")
    behind = _behind(nodes, set(trained))
    live = [node for node in nodes if not (behind - set(trained)).isdisjoint(node.outputs)]
    lowered = tuple((node, _lower(network, node)) for node in live)
    given = _behind([n for n in nodes if n not in set(live)], {*network.inputs, *_random(nodes)})
    read = dict.fromkeys([name for node in live for name in node.inputs if name] + list(network.outputs))
    outer = [name for name in read if name not in behind]
    needs = tuple(name for name in outer if name in given)
    for name in (*needs, *network.outputs):
        if network.types.get(name) not in TYPES and not network.root(name):
            raise ModelError("tune", f"{name}: not a tensor of numbers that PyTorch has; leave --tune away", name)
    return Scope(trained, lowered, needs, tuple(name for name in outer if name not in given))


def _lower(network: Network, node: Node) -> Run:
    try:
        return lower(network, node)
    except RefusedError as error:
        raise ModelError(
            "tune", f"{node.place}: {error}: can't be trained through; leave --tune away", node.name
        ) from error


def _needed(network: Network) -> list[Node]:
    """Nodes that lead to graph outputs, in order."""
    wanted, found = set(network.outputs), []
    for node in reversed(network.nodes):
        if wanted.isdisjoint(filter(None, node.outputs)):
            continue
        found.append(node)
        wanted.update(node.inputs, node.captured)
    return found[::-1]


def _behind(nodes: list[Node], start: set[str]) -> set[str]:
    """Tensors that depend on some others, with these."""
    found = set(start)
    for node in nodes:
        if not found.isdisjoint(filter(None, node.inputs)) or not found.isdisjoint(node.captured):
            found.update(filter(None, node.outputs))
    return found


def _random(nodes: list[Node]) -> Iterator[str]:
    return (name for node in nodes if node.op in _RANDOM and not node.domain for name in node.outputs)


def origin(network: Network, name: str) -> str:
    """The stored tensor that a tensor is a view of, or "" where it is computed."""
    root = network.root(name)
    while root and (sources := network.sources(root)):
        root = network.root(sources[0])
    return root


def _trained(network: Network, nodes: list[Node]) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for node in nodes:
        rule = rule_of(network, node)
        for position in sorted(rule.trains) if rule else ():
            name = origin(network, node.inputs[position]) if position < len(node.inputs) else ""
            if name and name not in found and _trainable(network, name, wide=rule is not None and rule.wide):
                found[name] = None
    reached, kept = _reached(network, nodes), _kept(network)
    return tuple(name for name in found if name in reached and name not in kept)


def _trainable(network: Network, name: str, *, wide: bool) -> bool:
    value = network.constant(name)
    if value is None or value.dtype.name not in {"float16", "bfloat16", "float32", "float64"}:
        return False
    if not value.size or (wide and value.size == 1):
        return False
    # A mask that holds infinities is no weight.
    return bool(np.isfinite(value.astype(np.float32)).all())


def _reached(network: Network, nodes: list[Node]) -> set[str]:
    """Tensors from which a gradient may come: floats lead to a float output."""
    found = {name for name in network.outputs if network.types.get(name) in _FLOATS}
    for node in reversed(nodes):
        if found.isdisjoint(filter(None, node.outputs)):
            continue
        rule = rule_of(network, node)
        for position, name in enumerate(node.inputs):
            stays = rule is not None and position in rule.lists | rule.fixed
            if not stays and network.types.get(name, TensorProto.FLOAT) in _FLOATS:
                found.add(name)
        found |= node.captured
    return found


def _kept(network: Network) -> set[str]:
    """Stored tensors that must not change, for one of their uses."""
    found = {origin(network, name) for name in (*network.outputs, *network.captured)}
    for node in network.nodes:
        rule = rule_of(network, node)
        stays = range(len(node.inputs)) if rule is None else rule.lists | rule.fixed
        found |= {origin(network, node.inputs[i]) for i in stays if i < len(node.inputs)}
    return found


def values_of(network: Network, names: tuple[str, ...]) -> Mapping[str, Array]:
    """Values of tensors that follow from nothing: stored, or computed once by ONNX Runtime.

    Raises:
        ModelError: ONNX Runtime can't compute one.
    """
    stored = {t.name: t for t in network.proto.graph.initializer}
    found = {name: network.array(stored[name]) for name in names if name in stored}
    for name in names:
        value = network.constant(name) if name not in found and network.root(name) == name else None
        if value is not None and value.dtype == network.dtype(name):
            found[name] = value
    if rest := [name for name in names if name not in found]:
        part = part_of(inlined(network), {}, frozenset(rest))
        names_out = [o.name for o in part.graph.output]
        found |= dict(zip(names_out, run(Runtime(threads=1).session(part, optimize=False), {}), strict=True))
    return found
