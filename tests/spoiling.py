"""What breaks a rewrite: wrong numbers, invalid graphs, other signatures."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from mlps import Array
from onnx import helper, numpy_helper

from onnx_condense.fit.fitting import Fitter
from onnx_condense.network.model import Network
from onnx_condense.plan import ChannelView, IntArray, Plan
from onnx_condense.rewrite import apply_plan


@dataclasses.dataclass(frozen=True)
class Rewrite:
    """What the rewrite was given and what it made, before it goes on."""

    network: Network
    view: ChannelView
    plan: Plan
    model: onnx.ModelProto

    def stored(self, beside: int = 0) -> onnx.TensorProto:
        """The weight of the last reader that the plan changes; beside: operands further on, its bias for one."""
        operand = self.view.linear[self.plan.updates[-1].use].weight
        name = self.network.nodes[operand.node].name
        node = next(n for n in self.model.graph.node if n.name == name)
        wanted = node.input[operand.position + beside]
        return next(t for t in self.model.graph.initializer if t.name == wanted)

    def change(self, edit: Callable[[Array], Array], beside: int = 0) -> None:
        """Break that weight."""
        tensor = self.stored(beside)
        value = edit(numpy_helper.to_array(tensor).copy())
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value), tensor.name))


def flipped_column(made: Rewrite) -> None:
    made.change(lambda W: np.concatenate([-W[:, :1], W[:, 1:]], 1))


def swapped_columns(made: Rewrite) -> None:
    made.change(lambda W: W[:, [1, 0, *range(2, W.shape[1])]])


def swapped_rows(made: Rewrite) -> None:
    made.change(lambda W: W[[1, 0, *range(2, len(W))]])


def column_of_zeros(made: Rewrite) -> None:
    made.change(lambda W: np.concatenate([0 * W[:, :1], W[:, 1:]], 1))


def wrong_bias(made: Rewrite) -> None:
    made.change(lambda b: b + np.eye(len(b), dtype=b.dtype)[-1] / 50, beside=1)


def forgotten_offset(made: Rewrite) -> None:
    made.change(lambda b: 0 * b, beside=1)


def weight_nan(made: Rewrite) -> None:
    made.change(lambda W: np.where(np.arange(W.size).reshape(W.shape), W, np.nan).astype(W.dtype))


def weight_infinite(made: Rewrite) -> None:
    made.change(lambda W: np.where(np.arange(W.size).reshape(W.shape), W, np.inf).astype(W.dtype))


def swapped_outputs(made: Rewrite) -> None:
    y, z = (n for n in made.model.graph.node if n.output[0] in "yz")
    y.output[0], z.output[0] = "z", "y"


def lost_activation(made: Rewrite) -> None:
    """A valid graph without one of its nodes."""
    at = next(i for i, n in enumerate(made.model.graph.node) if n.op_type in ("Tanh", "Relu"))
    gone = made.model.graph.node[at]
    for node in made.model.graph.node:
        node.input[:] = [gone.input[0] if name == gone.output[0] else name for name in node.input]
    del made.model.graph.node[at]


def lost_node(made: Rewrite) -> None:
    """No valid graph: what the node made is read."""
    del made.model.graph.node[0]


def lost_weight(made: Rewrite) -> None:
    made.model.graph.initializer.remove(made.stored())


def wrong_width(made: Rewrite) -> None:
    made.change(lambda W: W[:, 1:])


def other_opset(made: Rewrite) -> None:
    made.model.opset_import[0].version += 1


def other_ir(made: Rewrite) -> None:
    made.model.ir_version += 1


def other_domain(made: Rewrite) -> None:
    made.model.opset_import.append(helper.make_opsetid("com.example", 1))


def other_metadata(made: Rewrite) -> None:
    made.model.metadata_props[0].value = "another"


def lost_metadata(made: Rewrite) -> None:
    del made.model.metadata_props[:]


def other_name(made: Rewrite) -> None:
    made.model.graph.input[0].name = made.model.graph.node[0].input[0] = "other"


def fixed_batch(made: Rewrite) -> None:
    made.model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 300


def one_output_more(made: Rewrite) -> None:
    made.model.graph.output.append(helper.make_tensor_value_info(made.model.graph.node[0].output[0], 1, ["N", "M"]))


Break = Callable[[Rewrite], None]
NUMBERS: tuple[Break, ...] = (
    flipped_column,
    swapped_columns,
    swapped_rows,
    column_of_zeros,
    wrong_bias,
    forgotten_offset,
    weight_nan,
    weight_infinite,
    lost_activation,
)
INVALID: tuple[Break, ...] = (lost_node, lost_weight, wrong_width)
SIGNATURE: tuple[Break, ...] = (
    other_opset,
    other_ir,
    other_domain,
    other_metadata,
    lost_metadata,
    other_name,
    fixed_batch,
    one_output_more,
)


def broken(patch: pytest.MonkeyPatch, spoil: Break, *, late: bool) -> None:
    """Every rewrite is spoiled, whoever asks for it; late: only once the search is over."""
    if late:
        once_searched(patch, lambda: broken(patch, spoil, late=False))
        return

    def apply(network: Network, view: ChannelView, plan: Plan) -> onnx.ModelProto:
        model = apply_plan(network, view, plan)
        spoil(Rewrite(network, view, plan, model))
        return model

    for name, module in list(sys.modules.items()):
        ours = name.startswith("onnx_condense.") and not name.startswith("onnx_condense.rewrite")
        if ours and "apply_plan" in vars(module):
            patch.setattr(module, "apply_plan", apply)


def once_searched(patch: pytest.MonkeyPatch, then: Callable[[], None]) -> None:
    """Do something when the search of widths is over."""
    plain = Fitter.use_all

    def use_all(self: Fitter, search: IntArray) -> None:
        plain(self, search)
        then()

    patch.setattr(Fitter, "use_all", use_all)
