"""The same layout from scratch: what a condensed network's own weights are worth.

``reinitialized`` forgets what a network has learned and keeps its layout; ``trained`` then gives it the training that a
condensed network gets: the same teacher, the same inputs, the same number of steps.

| what | becomes |
|---|---|
| weights of Gemm, MatMul, Conv, ConvTranspose and the recurrent layers | uniform within +-gain / sqrt(fan-in) |
| their biases (the Add behind a MatMul too), shifts of normalizations | 0 |
| scales of normalizations | 1 |
| BatchNormalization: running mean and variance | 0 and 1 |
| slopes of PRelu | 0.25 |
| other constants of one axis (scaling of inputs and outputs, epsilons) | as they are |

A graph for inference has its running statistics frozen, so that a BatchNormalization from scratch normalizes nothing,
and one that was folded into its Conv isn't there at all. Deep ReLU networks without it need a gain of sqrt(6) (He et
al., ICCV 2015) where sqrt(3) keeps linear layers as they are; 1 is what PyTorch starts with.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from onnx_condense.errors import ModelError
from onnx_condense.network.model import Network, Node, bodies_of, inlined, load, replace_tensor
from onnx_condense.runtime import Array

if TYPE_CHECKING:
    from onnx_condense.tune import Recipe, Teacher, Tuned

# Where each op has weights, what starts at 0 and what starts at 1.
Places = Mapping[str, tuple[int, ...]]
NORMS = ("LayerNormalization", "GroupNormalization", "InstanceNormalization")
WEIGHTS: Places = {
    **dict.fromkeys(("Conv", "FusedConv", "ConvTranspose"), (1,)),
    **dict.fromkeys(("Gemm", "FusedGemm", "MatMul", "FusedMatMul"), (0, 1)),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), (1, 2)),
}
ZEROS: Places = {
    **dict.fromkeys(("Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", *NORMS), (2,)),
    **dict.fromkeys(("GRU", "RNN"), (3,)),
    "BatchNormalization": (2, 3),
    "LSTM": (3, 7),
}
ONES: Places = {**dict.fromkeys((*NORMS, "RMSNormalization"), (1,)), "BatchNormalization": (1, 4)}
SLOPES: Places = {"PRelu": (1,)}
SLOPE = 0.25
# What may stand between a weight and its bias.
LAYOUT = frozenset({"Cast", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
FLOATING = frozenset({onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE})


def reinitialized(proto: onnx.ModelProto, seed: int, gain: float = 1.0) -> onnx.ModelProto:
    """A copy of a network with fresh weights in the same shapes and element types.

    Args:
        proto: the network, weights inside.
        seed: same seed, same weights.
        gain: of the bound gain / sqrt(fan-in) on weights.

    Raises:
        ModelError: something of more than one axis would stay as it was learned.
    """
    network = load(proto)
    fresh = onnx.ModelProto()
    fresh.CopyFrom(inlined(network))
    # It is not the network any more that these tell of.
    del fresh.metadata_props[:]
    tensors, rng, done = dict(_constants(fresh)), np.random.default_rng(seed), set[str]()
    for node in network.nodes:
        for position, value in _values(network, node, gain):
            name = _stored(network, node.inputs[position])
            if name in tensors and name not in done and tensors[name].data_type in FLOATING:
                done.add(name)
                replace_tensor(tensors[name], _drawn(value, tuple(tensors[name].dims), rng))
    _check_forgotten(fresh, network, {name: t for name, t in tensors.items() if name not in done})
    return fresh


def trained(proto: onnx.ModelProto, teacher: Teacher, recipe: Recipe, gain: float = 1.0) -> Tuned:
    """The layout of a network, its weights drawn anew by the recipe's seed and trained as a condensed one is tuned.

    Raises:
        ModelError: see `reinitialized`; or it can't be trained.
    """
    from onnx_condense.tune import distil

    return distil(reinitialized(proto, recipe.seed, gain), teacher, recipe)


def sizes_of(text: str) -> list[float]:
    """Shares of the parameters from percents joined by commas: "41.7,20" is [0.417, 0.2].

    Raises:
        ValueError: one is no number above 0 and below 100.
    """
    percents = [float(part.strip().removesuffix("%")) for part in text.split(",") if part.strip()]
    wrong = [p for p in percents if not 0.0 < p < 100.0]
    if wrong:
        raise ValueError(f"{wrong[0]:g}: give percents above 0 and below 100")
    return [p / 100 for p in percents]


def _constants(proto: onnx.ModelProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """Stored tensors of the main graph by the name that nodes read."""
    yield from ((t.name, t) for t in proto.graph.initializer)
    for node in proto.graph.node:
        if node.op_type == "Constant":
            yield from ((node.output[0], a.t) for a in node.attribute if a.name == "value")


def _drawn(value: float | tuple[float, float], shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """One number everywhere, or draws between two."""
    return np.full(shape, value) if isinstance(value, float) else rng.uniform(value[0], value[1], shape)


def _stored(network: Network, name: str) -> str:
    """The stored tensor that a constant is a view of, "" where it is computed."""
    root = network.root(name)
    while sources := network.sources(root):
        root = network.root(sources[0])
    return root


def _values(network: Network, node: Node, gain: float) -> Iterator[tuple[int, float | tuple[float, float]]]:
    """Operands of a node that are learned, with the number that they become or the range they are drawn from."""
    proto = network.proto.graph.node[node.index]
    there = [p for p, name in enumerate(node.inputs) if name and network.root(name)]
    for position in there:
        if position in WEIGHTS.get(node.op, ()):
            bound = gain / math.sqrt(fan_in(proto, position, _shape(network, node.inputs[position])))
            yield position, (-bound, bound)
        elif position in ZEROS.get(node.op, ()) or (node.op == "Add" and _behind_weight(network, node, position)):
            yield position, 0.0
        elif position in ONES.get(node.op, ()):
            yield position, 1.0
        elif position in SLOPES.get(node.op, ()):
            yield position, SLOPE


def _shape(network: Network, name: str) -> tuple[int, ...]:
    """The shape of a constant."""
    value = network.constant(name)
    if value is None:
        raise ModelError("scratch", f"'{name}' has no dense value; a network from scratch can't be made", name)
    return tuple(value.shape)


def fan_in(node: onnx.NodeProto, position: int, shape: tuple[int, ...]) -> int:
    """How many products sum up in one output; of recurrent layers the hidden size, as PyTorch has it."""
    attributes: dict[str, Any] = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type in ("LSTM", "GRU", "RNN"):
        return int(attributes["hidden_size"])
    if node.op_type == "ConvTranspose":
        return max(shape[0] // int(attributes.get("group", 1)) * math.prod(shape[2:]), 1)
    if node.op_type in ("Conv", "FusedConv"):
        return max(math.prod(shape[1:]), 1)
    # Of matrices the axis that is summed over: the last of the first operand, the last but one of the second.
    turned = bool(attributes.get("transB" if position else "transA", 0))
    return max(shape[-2 if turned != bool(position) and len(shape) > 1 else -1], 1)


def _behind_weight(network: Network, node: Node, position: int) -> bool:
    """Whether an operand of an Add is a bias: the other one is the result of a weight, at most laid out anew."""
    other = node.inputs[1 - position]
    while (maker := network.producers.get(other)) is not None and maker.op in LAYOUT:
        other = maker.inputs[0]
    wide = sum(size > 1 for size in _shape(network, node.inputs[position]))
    if maker is None or wide > 1:
        return False
    return any(network.root(maker.inputs[p]) for p in WEIGHTS.get(maker.op, ()) if p < len(maker.inputs))


def _check_forgotten(proto: onnx.ModelProto, network: Network, left: Mapping[str, onnx.TensorProto]) -> None:
    """Refuse to call a network fresh that still knows something.

    Raises:
        ModelError: a matrix, a sparse tensor or a body with weights is left.
    """
    read = {_stored(network, name) for node in network.nodes for name in node.inputs if name}
    for name, tensor in left.items():
        if name in read and tensor.data_type in FLOATING and sum(size > 1 for size in tensor.dims) > 1:
            readers = sorted({n.op for n in network.nodes if name in {_stored(network, i) for i in n.inputs if i}})
            text = f"'{name}' {list(tensor.dims)} is read by {', '.join(readers)}, for which there is no rule"
            raise ModelError("scratch", f"a network from scratch can't be made: {text}", name)
    bodies = (body for node in proto.graph.node for a in node.attribute for body in bodies_of(a))
    if any(bodies) or proto.graph.sparse_initializer:
        text = "there are bodies or sparse weights, for which there is no rule"
        raise ModelError("scratch", f"a network from scratch can't be made: {text}")
