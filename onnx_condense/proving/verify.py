"""Is the rewritten graph what its plan says? Checker, shapes, signature, and numbers.

The numbers come from the plan evaluated independently of the rewrite: the dense network at full width, readers
with their new columns (zero where a channel went) and offsets added by nodes of their own. How far rounding may
take them apart is partly known (`rounding_level`) and partly measured, by moving what is new by one rounding.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from onnx_condense import ops
from onnx_condense.errors import DefectError, ModelError
from onnx_condense.network.model import Network, Node, inlined
from onnx_condense.network.nodes import MARK, read_by
from onnx_condense.plan import ChannelView, FloatArray, LinearUse, Plan, bands
from onnx_condense.runtime import Array, Runtime, run

# Rounding grows with the root of the reduction length per layer and adds up over layers.
SLACK = 8.0
# What a signature has.
ENDS = ("inputs", "outputs")
OWN = f"masked/{MARK}/"

Flags = npt.NDArray[np.bool_]


def check_graph(
    before: onnx.ModelProto, after: onnx.ModelProto, *, rewritten: bool = True, label: str = "the condensed graph"
) -> None:
    """The new graph is valid and has the old one's inputs, outputs, opsets and IR version.

    rewritten: it comes straight from the rewrite, which leaves metadata and functions as they are. label: of the new
    one, for messages.

    Raises:
        DefectError: it is not.
    """
    fault = _fault(after)
    # Declared shapes of the dense network may be wrong; what it got away with is no fault of the condensed one.
    if fault and not _fault(before):
        raise DefectError("invalid-graph", f"{label} is not valid: {fault}")
    for what, old, new in (
        ("inputs", _signature(before, before.graph.input), _signature(after, after.graph.input)),
        ("outputs", _signature(before, before.graph.output), _signature(after, after.graph.output)),
        (
            "opsets",
            sorted(o.SerializeToString() for o in before.opset_import),
            sorted(o.SerializeToString() for o in after.opset_import),
        ),
        ("IR version", before.ir_version, after.ir_version),
        *(_about(before, after) if rewritten else ()),
    ):
        if old != new:
            raise DefectError(
                "signature",
                f"{label} has other {what} than the dense network{_first_other(old, new) if what in ENDS else ''}",
            )


@contextlib.contextmanager
def blaming(before: onnx.ModelProto, after: onnx.ModelProto) -> Iterator[None]:
    """Where a run of the new graph fails, say whether it is the graph's fault.

    Raises:
        DefectError: the graph is not valid, or has another signature. ModelError: as it came, where it is neither.
    """
    try:
        yield
    except ModelError:
        check_graph(before, after)
        raise


def check_tensors(after: onnx.ModelProto, names: Iterable[str]) -> None:
    """See that tensors of the dense network that are looked at are there.

    Raises:
        DefectError: the new graph has lost one.
    """
    graph = after.graph
    there = {name for node in graph.node for name in node.output}
    there |= {value.name for value in graph.input} | {stored.name for stored in graph.initializer}
    for name in names:
        if name not in there:
            raise DefectError("tensor", f"the condensed network has lost tensor {name!r}")


def _about(before: onnx.ModelProto, after: onnx.ModelProto) -> Iterator[tuple[str, object, object]]:
    """All that a network says beside its graph and versions."""
    for field in before.DESCRIPTOR.fields:
        if field.name not in {"graph", "opset_import", "ir_version"}:
            yield field.name.replace("_", " "), getattr(before, field.name), getattr(after, field.name)


def _fault(proto: onnx.ModelProto) -> str:
    """What the checker or strict shape inference has against a network, or ""."""
    try:
        onnx.checker.check_model(proto)
        onnx.shape_inference.infer_shapes(proto, strict_mode=True, check_type=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return " ".join(str(error).split())[:300]
    return ""


def _signature(proto: onnx.ModelProto, values: Sequence[onnx.ValueInfoProto]) -> list[bytes]:
    stored = {t.name for t in proto.graph.initializer}
    return [v.SerializeToString() for v in values if v.name not in stored]


def _first_other(old: Sequence[bytes], new: Sequence[bytes]) -> str:
    """The first input or output that differs, in words."""
    for pair in itertools.zip_longest(old, new):
        if pair[0] != pair[1]:
            one, other = (_said(value) for value in pair)
            return f": {other}, not {one}"
    return ""


def _said(value: bytes | None) -> str:
    if value is None:
        return "none"
    return helper.printable_value_info(onnx.ValueInfoProto.FromString(value)).removeprefix("%")


def masked(network: Network, view: ChannelView, plan: Plan, jitter: int | None = None) -> onnx.ModelProto:
    """The plan at full width: only readers differ from the dense network.

    jitter: seed of a random relative change of every new number by up to one rounding; None: no change.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(inlined(network))
    rng = None if jitter is None else np.random.default_rng(jitter)
    place = {name: i for i, node in enumerate(proto.graph.node) for name in node.output if name}
    replaced = set[str]()
    # Last node first, so that the nodes put in leave the places of the others alone.
    updates = sorted(plan.updates, key=lambda u: -view.linear[u.use].weight.node)
    for update in updates:
        use = view.linear[update.use]
        dense = network.nodes[use.weight.node]
        name = dense.inputs[use.weight.position]
        stored = network.constant(name)
        assert stored is not None
        offset = update.offset.reshape(_offset_shape(network, use))
        rounded = [_rounded(value, stored.dtype, rng) for value in (use.as_stored(update.weight, stored), offset)]
        # Readers may get a wider type than the stored one, which the numbers are rounded to.
        new = [value.astype(network.dtype(name)) for value in rounded]
        put = _put_inside if use.inside else _put_before if _activates(dense) else _put_behind
        put(proto, place[dense.result], update.use, use, *new)
        replaced.add(network.root(name))
    _forget(proto, replaced)
    return proto


def _forget(proto: onnx.ModelProto, names: set[str]) -> None:
    """Leave out those stored tensors that nothing reads any more: the new ones are as large."""
    graph = proto.graph
    unread = names - {name for node in graph.node for name in read_by(node)} - {o.name for o in graph.output}
    for at in [i for i, tensor in enumerate(graph.initializer) if tensor.name in unread][::-1]:
        del graph.initializer[at]
    for at in [i for i, value in enumerate(graph.input) if value.name in unread][::-1]:
        del graph.input[at]


def _offset_shape(network: Network, use: LinearUse) -> tuple[int, ...]:
    """How an offset [O] lies so that it can be added to the result, or behind the weight where it stays inside."""
    if use.result_axis is None:
        return (-1,) if use.inside else ()
    node = network.nodes[use.weight.node]
    rule = ops.find(node.domain, node.op, node.opset)
    if rule is not None and rule.flat_bias and _activates(node):
        return (-1,)
    rank = len(network.shape(node.outputs[0]) or ())
    return use.spread or (-1, *(1,) * (rank - 1 - use.result_axis))


def _put_behind(proto: onnx.ModelProto, at: int, index: int, use: LinearUse, weight: Array, offset: Array) -> None:
    """A new weight, and an offset added to the result."""
    node = proto.graph.node[at]
    result = node.output[0]
    node.input[use.weight.position] = _initializer(proto, f"{OWN}weight_{index}", weight)
    node.output[0] = f"{OWN}{result}"
    added = _initializer(proto, f"{OWN}offset_{index}", offset)
    proto.graph.node.insert(at + 1, helper.make_node("Add", [node.output[0], added], [result]))


def _activates(node: Node) -> bool:
    """Whether a node applies a function to its own sums."""
    rule = ops.find(node.domain, node.op, node.opset)
    return rule is not None and rule.activation is not None


def _put_before(proto: onnx.ModelProto, at: int, index: int, use: LinearUse, weight: Array, offset: Array) -> None:
    """A new weight, and an offset added to the bias, the third operand, by a node of its own."""
    node = proto.graph.node[at]
    node.input[use.weight.position] = _initializer(proto, f"{OWN}weight_{index}", weight)
    factor = next((a.f for a in node.attribute if a.name == "beta"), 1.0)
    node.input.extend([""] * (3 - len(node.input)))
    before, total = node.input[2], f"{OWN}bias_{index}"
    if before and factor:
        scaled = _initializer(proto, f"{OWN}offset_{index}", (offset / factor).astype(offset.dtype))
        node.input[2] = total
        proto.graph.node.insert(at, helper.make_node("Add", [before, scaled], [total]))
        return
    node.input[2] = _initializer(proto, total, offset)
    for attribute in [a for a in node.attribute if a.name == "beta"]:
        node.attribute.remove(attribute)


def _put_inside(proto: onnx.ModelProto, at: int, index: int, use: LinearUse, weight: Array, offset: Array) -> None:
    """A new weight, and an offset as its column for one more channel of the activation, on its last axis, that is 1.

    The op's bias is left alone: that adding to it is adding to the product is what this is to prove.
    """
    node = proto.graph.node[at]
    size = weight.shape[use.in_axis]
    column = offset.reshape([n if axis in use.row_axes else 1 for axis, n in enumerate(weight.shape)])
    wider = np.concatenate([weight, column], axis=use.in_axis)
    copied = _initializer(proto, f"{OWN}copied_{index}", np.eye(size, size + 1, dtype=weight.dtype))
    one = _initializer(proto, f"{OWN}one_{index}", np.eye(1, size + 1, size, dtype=weight.dtype)[0])
    before, names = node.input[use.activation.position], [f"{OWN}{part}_{index}" for part in ("spread", "read")]
    node.input[use.weight.position] = _initializer(proto, f"{OWN}weight_{index}", wider)
    node.input[use.activation.position] = names[1]
    proto.graph.node.insert(at, helper.make_node("Add", [names[0], one], [names[1]]))
    proto.graph.node.insert(at, helper.make_node("MatMul", [before, copied], [names[0]]))


def _rounded(value: FloatArray, dtype: np.dtype[Any], rng: np.random.Generator | None) -> Array:
    """As stored, moved by up to one rounding where there is a generator."""
    with np.errstate(over="ignore"):  # what 16 bits can't hold becomes infinite, and the error with it
        return (value if rng is None else value * (1 + _eps(dtype) * rng.uniform(-1, 1, value.shape))).astype(dtype)


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
    """The condensed network equals its plan: on these feeds, up to rounding, graph optimizations off; in its weights.

    Raises:
        DefectError: it does not, or it can't be run.
    """

    def answers(model: onnx.ModelProto) -> list[list[Array]]:
        session = runtime.session(model, optimize=False)
        return [run(session, feed) for feed in feeds]

    try:
        found = answers(condensed)
    except ModelError as error:
        raise DefectError("does-not-run", f"the condensed network does not run: {error.text}") from error
    # One after the other, so that there is only one network at full width at a time.
    expected, moved = (answers(masked(network, view, plan, jitter)) for jitter in (None, 0))
    for i, name in enumerate(network.outputs):
        wanted = [y[i] for y in expected]
        noise = _relative_difference([y[i] for y in moved], wanted)
        bound = SLACK * max(rounding_level(network, view), noise if math.isfinite(noise) else 0.0)
        difference = _relative_difference([y[i] for y in found], wanted)
        if not difference <= bound:
            raise DefectError(
                "numbers",
                f"output {name} of the condensed network is off from its plan by {difference:.2e} "
                f"(rounding allows {bound:.2e})",
                name,
            )
    check_weights(network, view, plan, condensed)


def check_weights(network: Network, view: ChannelView, plan: Plan, condensed: onnx.ModelProto) -> None:
    """Every weight holds the numbers that the plan has for it, also those that no sample shows (a silent channel).

    Where channels are mixed the numbers are sums of many, and only `check_numbers` looks at them.

    Raises:
        DefectError: one does not.
    """
    after = Network(condensed)
    gone = list(plan.dropped(view.spaces))
    turned = {r.space for r in plan.rotations}
    mixed = [label for space in view.spaces if space.name in turned for label in space.channels.tolist()]
    updates = {update.use: update.weight for update in plan.updates}
    there = _counterparts(network, after, {use.weight.node for use in view.linear})
    for i, use in enumerate(view.linear):
        stored, found = (
            _operand(net, node, use) for net, node in ((network, use.weight.node), (after, there[use.weight.node]))
        )
        if np.isin(use.rows, mixed).any() or np.isin(use.columns, mixed).any():
            continue
        kept = ~np.isin(use.rows, gone), ~np.isin(use.columns, gone).repeat(use.taps)
        if not _holds(use, stored, found, updates.get(i), kept):
            place = network.nodes[use.weight.node].place
            raise DefectError("weights", f"the weight of {place} does not hold the numbers of its plan", place)


def _operand(network: Network, node: int, use: LinearUse) -> Array | None:
    return network.constant(network.nodes[node].inputs[use.weight.position])


def _counterparts(network: Network, after: Network, places: AbstractSet[int]) -> dict[int, int]:
    """The node of the condensed network for each of these: the rewrite puts in no op of their kinds."""
    kinds = {(network.nodes[at].domain, network.nodes[at].op) for at in places}
    old, new = ([n for n in net.nodes if (n.domain, n.op) in kinds] for net in (network, after))
    if [(n.domain, n.op) for n in old] != [(n.domain, n.op) for n in new]:
        raise DefectError("nodes", "the condensed network has other layers than the dense one")
    return {a.index: b.index for a, b in zip(old, new, strict=True)}


def _holds(
    use: LinearUse, stored: Array | None, found: Array | None, wanted: FloatArray | None, kept: tuple[Flags, Flags]
) -> bool:
    """Whether a weight as found holds, to its last places, what stays of the one wanted (None: the dense one)."""
    assert stored is not None
    if found is None:
        return False
    rows, columns = kept
    if wanted is None and rows.all() and columns.all():
        return np.array_equal(found, stored, equal_nan=True)
    matrix = use.matrix(stored) if wanted is None else wanted
    rest, eps = use.matrix(found), _eps(stored.dtype)
    at = np.flatnonzero(rows) if rows.size else np.arange(len(matrix))
    if rest.shape != (len(at), int(columns.sum())):
        return False
    tiny = float(np.finfo(stored.dtype).tiny) if stored.dtype.kind == "f" else 0.0
    for band in bands(rest):
        with np.errstate(over="ignore"):
            rounded = matrix[at[band]][:, columns].astype(stored.dtype).astype(np.float64)
        if not np.isclose(rest[band], rounded, 2 * eps, tiny, equal_nan=True).all():
            return False
    return True


def rounding_level(network: Network, view: ChannelView) -> float:
    """Relative rounding to expect of two evaluations, per linear layer: storing, and two orders of summation.

    Sums grow with the root of their length, and are held in at least fp32 by ONNX Runtime.
    """
    lengths = [len(u.columns) * u.taps for u in view.linear]
    stored = [network.constant(network.nodes[u.weight.node].inputs[u.weight.position]) for u in view.linear]
    single = float(np.finfo(np.float32).eps)
    eps = max((_eps(v.dtype) for v in stored if v is not None), default=single)
    return (eps + min(eps, single) * math.sqrt(max(lengths, default=1))) * max(len(lengths), 1)


def _eps(dtype: np.dtype[Any]) -> float:
    return float(np.finfo(dtype.type).eps) if issubclass(dtype.type, np.floating) else 2.0**-7


def _relative_difference(found: Sequence[Array], wanted: Sequence[Array]) -> float:
    """RMS difference over RMS of what is wanted, over all feeds; 0 or infinity where not floats.

    NaN and infinities must stand in the same places.
    """
    pairs = list(zip(found, wanted, strict=True))
    if any(a.shape != b.shape for a, b in pairs):
        return math.inf
    if wanted[0].dtype.kind != "f":
        changed = sum(int((a != b).sum()) for a, b in pairs)
        # An argmax may flip at a tie within rounding.
        return 0.0 if changed <= 0.01 * sum(b.size for b in wanted) + 1 else math.inf
    if any((np.isfinite(a) != np.isfinite(b)).any() for a, b in pairs):
        return math.inf
    finite = [(a[np.isfinite(b)].astype(np.float64), b[np.isfinite(b)].astype(np.float64)) for a, b in pairs]
    difference = sum(float(((a - b) ** 2).sum()) for a, b in finite)
    size = sum(float((b**2).sum()) for _, b in finite)
    return math.sqrt(difference / size) if size > 0 else math.sqrt(difference)
