"""What shape inference does not work out by itself and can be told: sizes that a network computes (of Pad, Reshape)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnx_condense.network.known import Known, Size
from onnx_condense.network.shapes import Shape

Facts = Mapping[str, npt.NDArray[Any]]
Hints = Mapping[str, onnx.ValueInfoProto]

# Element types of sizes, axes and pads.
_SIZES = (onnx.TensorProto.INT32, onnx.TensorProto.INT64)


def facts_of(
    proto: onnx.ModelProto,
    known: Callable[[str], Known | None],
    shapes: Mapping[str, Shape],
    types: Mapping[str, int],
) -> Facts:
    """Known values of computed integer tensors that are read where the result's shape is not known.

    Args:
        proto: the network.
        known: see `Network.known`; None for what is stored.
        shapes: of the tensors, as far as inference tells, by name.
        types: their element types, by name.
    """
    found = {}
    # Inference invents symbols for sizes that it does not know.
    told = {d for i in proto.graph.input for d in shapes.get(i.name, ())} - {None}
    for node in proto.graph.node:
        sizes = shapes.get(node.output[0]) if node.output else ()
        if sizes is not None and all(isinstance(d, int) or d in told for d in sizes):
            continue
        for name in node.input:
            kind = types.get(name)
            if kind not in _SIZES or len(shapes.get(name) or (0, 0)) > 1:
                continue
            values = known(name)
            if values is not None and all(isinstance(v, int) for v in values):
                array = np.array(values, onnx.helper.tensor_dtype_to_np_dtype(kind))
                found[name] = array.reshape(()) if shapes[name] == () else array
    return found


def hints_of(
    proto: onnx.ModelProto,
    known: Callable[[str], Known | None],
    shapes: Mapping[str, Shape],
    types: Mapping[str, int],
) -> Hints:
    """What can be said of tensors whose rank is unknown; the same arguments.

    Partly known shapes tell of the results of Reshape, and some ops take operands of one rank alone.
    """
    found = dict(_operands(proto, shapes, types))
    for node in proto.graph.node:
        reshapes = node.op_type == "Reshape" and node.domain in ("", "ai.onnx") and len(node.input) > 1
        if not reshapes or shapes.get(node.output[0]) is not None:
            continue
        entries, kind = known(node.input[1]), types.get(node.input[0])
        if entries is None or kind is None:
            continue
        sizes = [e.size if isinstance(e, Size) else e for e in entries]
        dims = [n if isinstance(n, str) or (n is not None and n > 0) else None for n in sizes]
        found[node.output[0]] = onnx.helper.make_tensor_value_info(node.output[0], kind, dims)
    return found


def _operands(
    proto: onnx.ModelProto, shapes: Mapping[str, Shape], types: Mapping[str, int]
) -> Iterator[tuple[str, onnx.ValueInfoProto]]:
    """Operands of unknown rank whose rank the op that reads them tells (what a loop makes has none, for example)."""
    stored = {t.name: t for t in proto.graph.initializer}

    def rank_of(name: str) -> int | None:
        """None: not known."""
        if (shape := shapes.get(name)) is not None:
            return len(shape)
        return len(stored[name].dims) if name in stored else None

    for node in proto.graph.node:
        if node.domain not in ("", "ai.onnx") or len(node.input) < 2:
            continue
        one, other = node.input[:2]
        if node.op_type == "Gemm":
            sides = [(one, other), (other, one)]
        elif node.op_type in ("Conv", "ConvTranspose"):
            sides = [(one, other)]
        else:
            continue
        for name, beside in sides:
            if rank_of(name) is not None or not (rank := rank_of(beside)):
                continue
            kind = types.get(name) or types.get(beside)
            if kind is not None:
                yield name, onnx.helper.make_tensor_value_info(name, kind, [None] * rank)
