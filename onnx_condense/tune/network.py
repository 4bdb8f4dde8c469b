"""A network as a PyTorch module: its stored weights are parameters, its nodes functions; and the way back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch

from onnx_condense.evidence.stages import part_of
from onnx_condense.network.model import Network, Node, inlined, replace_tensor
from onnx_condense.tune.lowering import rule_of
from onnx_condense.tune.scope import find_scope, values_of
from onnx_condense.tune.step import HOST, Run, Tensor, array_of

Array = npt.NDArray[Any]


def check_trainable(network: Network) -> None:
    """See that a network can be trained, before any work.

    Raises:
        ModelError: it names the first node that can't be trained through, and why, or says that nothing is there
            to train.
    """
    find_scope(network)


class Torched(torch.nn.Module):
    """What of a network depends on trained weights, as a module; the rest is left to ONNX Runtime (`prefix`).

    Every stored tensor is one parameter, whatever reads it. Half precision is trained and computed in single;
    statistics of normalization stay. Lists of sizes are computed on the host, wherever the weights are.

    Args:
        network: the network to train.

    Attributes:
        names: of the stored tensors that are trained, in the order of `parameters()`.
        needs: of the tensors that `forward` wants: graph inputs, and what frozen nodes make of them.
        outputs: of the tensors that `forward` gives: the graph outputs.

    Raises:
        ModelError: see `check_trainable`.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        scope = find_scope(network)
        self.network = network
        self.names, self.needs, self.outputs = scope.trained, scope.needs, network.outputs
        self.weights = torch.nn.ParameterList(_parameter(network, name) for name in self.names)
        self._steps = [_Lowered(network, node, run) for node, run in scope.live]
        elsewhere = {*self.outputs}.union(*(step.tensors for step in self._steps))
        self._held: dict[str, Tensor] = {}
        self._buffered: dict[str, str] = {}
        for i, (name, value) in enumerate(values_of(network, scope.fixed).items()):
            tensor = array_of(value)
            if tensor.is_floating_point() and name in elsewhere:
                self._buffered[name] = f"constant_{i}"
                self.register_buffer(self._buffered[name], tensor, persistent=False)
            else:
                self._held[name] = tensor
        last = {name: step for step in self._steps for name in step.inputs if name}
        for name, step in last.items():
            if name not in self.outputs:
                step.done.append(name)

    def prefix(self) -> onnx.ModelProto | None:
        """The network that computes `needs` from the graph inputs, as far as they are not graph inputs themselves.

        Returns:
            A network for ONNX Runtime; None where the graph inputs are all that is needed.
        """
        ends = set(self.needs) - set(self.network.inputs)
        return part_of(inlined(self.network), {}, ends) if ends else None

    def forward(self, given: Mapping[str, Tensor]) -> list[Tensor]:
        """The graph outputs, in order.

        Args:
            given: a tensor for each name in `needs`.

        Returns:
            One tensor per output; half precision as single. Those that depend on trained weights carry gradients.
        """
        values: dict[str, Tensor] = {name: _single(given[name]) for name in self.needs}
        values |= self._held
        values |= {name: self.get_buffer(key) for name, key in self._buffered.items()}
        values |= dict(zip(self.names, self.weights, strict=True))
        for step in self._steps:
            step(values)
        return [values[name] for name in self.outputs]

    def tuned(self) -> onnx.ModelProto:
        """A copy of the network, weights inside, with the parameters' values in the types in which they are stored.

        Values that a narrow type can't hold end at its limits; what training did not change stays byte for byte.
        """
        copy = onnx.ModelProto()
        copy.CopyFrom(inlined(self.network))
        stored = {tensor.name: tensor for tensor in copy.graph.initializer}
        for name, weight in zip(self.names, self.weights, strict=True):
            value, before = weight.detach().cpu().numpy(), self.network.constant(name)
            assert before is not None
            if np.array_equal(before.astype(value.dtype), value):
                continue
            if name in stored:
                replace_tensor(stored[name], _fitting(value, stored[name].data_type))
            else:
                _replace_constant(copy.graph.node[self.network.producers[name].index], value)
        return copy


class _Lowered:
    """One node: reads and writes tensors by name.

    tensors: what it reads, but for lists of numbers; done: those that nothing reads after it.
    """

    def __init__(self, network: Network, node: Node, run: Run) -> None:
        rule = rule_of(network, node)
        assert rule is not None
        self.inputs, self._outputs, self._run, self._lists = node.inputs, node.outputs, run, rule.lists
        self.tensors = {name for i, name in enumerate(node.inputs) if i not in rule.lists}
        self.done: list[str] = []

    def __call__(self, values: dict[str, Tensor]) -> None:
        operands = self._together([values[name] if name else None for name in self.inputs])
        found = self._run(*operands)
        results = found if isinstance(found, tuple) else (found,)
        values.update((name, value) for name, value in zip(self._outputs, results, strict=False) if name)
        for name in self.done:
            del values[name]

    def _together(self, operands: list[Tensor | None]) -> list[Tensor | None]:
        """Operands on one device: what is on the host follows what is not, but for lists of numbers."""
        moved = {i: t for i, t in enumerate(operands) if t is not None and i not in self._lists}
        device = next((t.device for t in moved.values() if t.device != HOST), HOST)
        return [moved[i].to(device) if i in moved else t for i, t in enumerate(operands)]


def _single(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in {torch.float16, torch.bfloat16} else tensor


def _parameter(network: Network, name: str) -> torch.nn.Parameter:
    value = network.constant(name)
    assert value is not None
    return torch.nn.Parameter(array_of(value))


def _fitting(value: Array, kind: int) -> Array:
    if kind != onnx.TensorProto.FLOAT16:
        return value
    limit = np.finfo(np.float16).max
    return np.clip(value, -limit, limit)


def _replace_constant(node: onnx.NodeProto, value: Array) -> None:
    for attribute in node.attribute:
        if attribute.name == "value":
            replace_tensor(attribute.t, _fitting(value, attribute.t.data_type))
        elif attribute.name == "value_floats":
            attribute.floats[:] = value.tolist()
        elif attribute.name == "value_float":
            attribute.f = float(value)
