"""Is the rewritten graph what its plan says? Checker, shapes, signature, and numbers.

The numbers come from the plan evaluated independently of the rewrite: the dense network at full width, readers
with their new columns (zero where a channel went) and offsets added by nodes of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnx_condense.errors import DefectError, ModelError
from onnx_condense.model import PROTOBUF_LIMIT, Network, inlined
from onnx_condense.plan import ChannelView, Plan
from onnx_condense.runtime import Array, Runtime, run

# Rounding grows with the root of the reduction length per layer and adds up over layers.
SLACK = 8.0


def check_graph(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    """The new graph is valid and has the old one's inputs, outputs, opsets and IR version.

    Raises:
        DefectError: it is not.
    """
    try:
        if after.ByteSize() <= PROTOBUF_LIMIT:
            onnx.checker.check_model(after)
            onnx.shape_inference.infer_shapes(after, strict_mode=True, check_type=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        text = " ".join(str(error).split())[:300]
        raise DefectError("invalid-graph", f"the condensed graph is not valid: {text}") from error
    for what, old, new in (
        ("inputs", _signature(before, before.graph.input), _signature(after, after.graph.input)),
        ("outputs", _signature(before, before.graph.output), _signature(after, after.graph.output)),
        (
            "opsets",
            [o.SerializeToString() for o in before.opset_import],
            [o.SerializeToString() for o in after.opset_import],
        ),
        ("IR version", [before.ir_version], [after.ir_version]),
    ):
        if old != new:
            raise DefectError("signature", f"the condensed graph has other {what} than the dense one")


def _signature(proto: onnx.ModelProto, values: Sequence[onnx.ValueInfoProto]) -> list[object]:
    stored = {t.name for t in proto.graph.initializer}
    return [v.SerializeToString() for v in values if v.name not in stored]


def masked(network: Network, view: ChannelView, plan: Plan) -> onnx.ModelProto:
    """The plan at full width: only readers differ from the dense network."""
    proto = onnx.ModelProto()
    proto.CopyFrom(inlined(network))
    outputs = {node.output[0]: node for node in proto.graph.node if node.output}
    for update in plan.updates:
        use = view.linear[update.use]
        dense = network.nodes[use.weight.node]
        stored = network.constant(dense.inputs[use.weight.position])
        assert stored is not None
        node = outputs[dense.outputs[0]]
        weight = update.weight[0] if use.out_axis is None else update.weight
        if use.out_axis is not None and use.in_axis == 0:
            weight = weight.T
        node.input[use.weight.position] = _initializer(
            proto, f"masked/weight_{update.use}", weight.astype(stored.dtype)
        )
        result = dense.outputs[0]
        rank = len(network.shape(result) or ())
        trailing = 0 if use.result_axis is None else rank - 1 - use.result_axis
        shape = () if use.result_axis is None else (-1, *(1,) * trailing)
        offset = _initializer(proto, f"masked/offset_{update.use}", update.offset.reshape(shape).astype(stored.dtype))
        node.output[0] = f"masked/{result}"
        at = list(proto.graph.node).index(node)
        proto.graph.node.insert(at + 1, helper.make_node("Add", [node.output[0], offset], [result]))
    return proto


def _initializer(proto: onnx.ModelProto, name: str, value: Array) -> str:
    tensor = numpy_helper.from_array(np.ascontiguousarray(value), name)
    proto.graph.initializer.append(tensor)
    if proto.ir_version < 4:
        proto.graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims)))
    return name


def check_numbers(
    network: Network,
    view: ChannelView,
    plan: Plan,
    condensed: onnx.ModelProto,
    feeds: Sequence[Mapping[str, Array]],
    runtime: Runtime,
) -> None:
    """The condensed network equals its plan on these feeds, up to rounding, graph optimizations off.

    Raises:
        DefectError: it does not, or it can't be run.
    """
    reference = runtime.session(masked(network, view, plan), optimize=False)
    try:
        session = runtime.session(condensed, optimize=False)
        pairs = [(run(session, feed), run(reference, feed)) for feed in feeds]
    except ModelError as error:
        raise DefectError("does-not-run", f"the condensed network does not run: {error.text}") from error
    bound = SLACK * rounding_level(network, view)
    for i, name in enumerate(network.outputs):
        difference = _relative_difference([(a[i], b[i]) for a, b in pairs])
        if not difference <= bound:
            raise DefectError(
                "numbers",
                f"output {name} of the condensed network is off from its plan by {difference:.2e} "
                f"(rounding allows {bound:.2e})",
                name,
            )


def rounding_level(network: Network, view: ChannelView) -> float:
    """Relative rounding to expect of two summation orders: eps sqrt(longest reduction), per linear layer."""
    lengths = [len(u.columns) for u in view.linear]
    stored = [network.constant(network.nodes[u.weight.node].inputs[u.weight.position]) for u in view.linear]
    eps = max((_eps(v.dtype) for v in stored if v is not None), default=float(np.finfo(np.float32).eps))
    return eps * max(lengths, default=1) ** 0.5 * max(len(lengths), 1)


def _eps(dtype: np.dtype[np.generic]) -> float:
    return float(np.finfo(dtype).eps) if dtype.kind == "f" else 2.0**-7


def _relative_difference(pairs: Sequence[tuple[Array, Array]]) -> float:
    """RMS difference over RMS reference over all feeds; share of changed elements where not floats."""
    if any(a.shape != b.shape for a, b in pairs):
        return float("inf")
    if pairs[0][0].dtype.kind != "f":
        changed = sum(int((a != b).sum()) for a, b in pairs)
        # An argmax may flip at a tie within rounding.
        return 0.0 if changed <= 0.01 * sum(b.size for _, b in pairs) + 1 else float("inf")
    difference = sum(float(((a.astype(np.float64) - b) ** 2).sum()) for a, b in pairs)
    size = sum(float((b.astype(np.float64) ** 2).sum()) for _, b in pairs)
    return (difference / size) ** 0.5 if size > 0 else difference**0.5
