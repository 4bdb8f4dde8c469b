"""Exact widths through ops that join, split and pick channels: copies are found, tied and different ones stay."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from builders import lossless
from convnets import assembled, assert_same
from onnx import helper, numpy_helper

from onnx_condense import condense

Array = Any
NODE = helper.make_node
RNG = np.random.default_rng(0)
FACTORS = (2.0, 2.0, 3.0, 0.5)


def kernels(out: int, channels: int, size: int = 3) -> Array:
    return RNG.standard_normal((out, channels, size, size))


def doubled(weight: Array, factors: Sequence[float] = FACTORS) -> Array:
    """Rows, and their multiples behind them."""
    return np.concatenate([weight, weight * np.reshape(factors, (-1, *[1] * (weight.ndim - 1)))])


def relu(x: str, y: str) -> onnx.NodeProto:
    return NODE("Relu", [x], [y])


@dataclasses.dataclass(frozen=True)
class Case:
    """Nodes over x, their constants, and the widths that must be left."""

    nodes: Sequence[onnx.NodeProto]
    stored: dict[str, Array]
    widths: list[int]
    shape: Sequence[int | str] = ("N", 3, 8, 8)


ROWS = doubled(kernels(4, 3))
TWO = [NODE("Conv", ["x", "A"], ["a"]), relu("a", "ar"), NODE("Conv", ["x", "B"], ["b"]), relu("b", "br")]
ONE = [NODE("Conv", ["x", "A"], ["a"], pads=[1] * 4), relu("a", "r")]
HALVES = [
    relu("p", "pr"),
    NODE("Tanh", ["q"], ["qt"]),
    NODE("Conv", ["pr", "V"], ["v"]),
    NODE("Conv", ["qt", "U"], ["u"]),
    NODE("Add", ["u", "v"], ["y"]),
]
READ = NODE("Conv", ["c", "V"], ["y"])
# Three of one half are copies of one, three of the other too; equal halves of four likewise.
UNEVEN = np.concatenate([ROWS[[0, 4, 1]], ROWS[[2, 2, 3, 3, 3]]])
EVEN = np.concatenate([ROWS[[0, 4, 1, 5]], ROWS[[2, 2, 3, 3]]])
PIXELS = kernels(4, 3)
GENERATED = RNG.standard_normal((4, 16, 8))

CASES = {
    "Concat": Case(
        [*TWO, NODE("Concat", ["ar", "br"], ["c"], axis=1), READ],
        {"A": ROWS, "B": doubled(kernels(3, 3), (1, 2, 1)), "V": kernels(2, 14)},
        [4, 3],
    ),
    "Concat with the input": Case(
        [*ONE, NODE("Concat", ["x", "r"], ["c"], axis=1), READ], {"A": ROWS, "V": kernels(2, 11)}, [4]
    ),
    "Concat of positions": Case(
        [*TWO, NODE("Concat", ["ar", "br"], ["c"], axis=2), READ],
        {"A": ROWS, "B": doubled(kernels(4, 3)), "V": kernels(2, 8)},
        [4],
    ),
    "Concat of positions, copies in one only": Case(
        [*TWO, NODE("Concat", ["ar", "br"], ["c"], axis=2), READ],
        {"A": ROWS, "B": kernels(8, 3), "V": kernels(2, 8)},
        [8],
    ),
    "Split": Case(
        [NODE("Conv", ["x", "A"], ["a"]), NODE("Split", ["a", "sizes"], ["p", "q"], axis=1), *HALVES],
        {"A": UNEVEN, "V": kernels(2, 3), "U": kernels(2, 5), "sizes": np.array([3, 5])},
        [4],
    ),
    "Split in halves": Case(
        [NODE("Conv", ["x", "A"], ["a"]), NODE("Split", ["a"], ["p", "q"], axis=1, num_outputs=2), *HALVES],
        {"A": EVEN, "V": kernels(2, 4), "U": kernels(2, 4)},
        [4],
    ),
    "Split of which one part is read by zeros": Case(
        [NODE("Conv", ["x", "A"], ["a"]), NODE("Split", ["a", "sizes"], ["p", "q"], axis=1), *HALVES],
        {"A": kernels(6, 3), "V": kernels(2, 3), "U": np.zeros((2, 3, 3, 3)), "sizes": np.array([3, 3])},
        [4],
    ),
    "Slice and Gather": Case(
        [
            *ONE,
            NODE("Slice", ["r", "from", "to", "axes"], ["p"]),
            NODE("Gather", ["r", "picks"], ["q"], axis=1),
            *HALVES,
        ],
        {
            "A": ROWS[[0, 1, 4, 2, 5, 2, 3, 7]],
            "V": kernels(2, 5),
            "U": kernels(2, 3),
            "from": np.array([-6]),
            "to": np.array([7]),
            "axes": np.array([1]),
            # The first two are read nowhere; of the slice only the two that are picked are copies at both readers.
            "picks": np.array([7, 3, 5]),
        },
        [5],
    ),
    "channel shuffle": Case(
        [
            *ONE,
            NODE("Reshape", ["r", "split"], ["p"]),
            NODE("Transpose", ["p"], ["t"], perm=[0, 2, 1, 3, 4]),
            NODE("Reshape", ["t", "join"], ["c"]),
            READ,
        ],
        {
            "A": ROWS[[0, 4, 1, 5, 2, 6, 3, 7]],
            "V": kernels(2, 8),
            "split": np.array([0, 2, 4, 8, 8]),
            "join": np.array([0, 8, 8, 8]),
        },
        [4],
    ),
    "pixel shuffle, CRD": Case(
        [*ONE, NODE("DepthToSpace", ["r"], ["c"], blocksize=2, mode="CRD"), READ],
        {"A": np.concatenate([PIXELS, 2 * PIXELS]), "V": kernels(2, 2)},
        [1],
    ),
    "pixel shuffle, DCR": Case(
        [*ONE, NODE("DepthToSpace", ["r"], ["c"], blocksize=2, mode="DCR"), READ],
        {"A": np.stack([PIXELS, 2 * PIXELS], 1).reshape(8, 3, 3, 3), "V": kernels(2, 2)},
        [1],
    ),
    "pixel shuffle of other multiples": Case(
        [*ONE, NODE("DepthToSpace", ["r"], ["c"], blocksize=2, mode="CRD"), READ],
        {"A": np.concatenate([PIXELS, PIXELS * np.reshape([2, 2, 3, 2], (4, 1, 1, 1))]), "V": kernels(2, 2)},
        [2],
    ),
    "SpaceToDepth": Case(
        [*ONE, NODE("SpaceToDepth", ["r"], ["c"], blocksize=2), READ], {"A": ROWS, "V": kernels(2, 32)}, [4]
    ),
    "LpPool": Case(
        [*ONE, NODE("LpPool", ["r"], ["c"], kernel_shape=[2, 2]), READ],
        {"A": doubled(kernels(4, 3), (1, 1, 1, 3)), "V": kernels(2, 8)},
        [5],
    ),
    "features made an image": Case(
        [
            NODE("Gemm", ["x", "G"], ["a"], transB=1),
            relu("a", "r"),
            NODE("Reshape", ["r", "image"], ["c"]),
            READ,
        ],
        {
            "G": np.concatenate([GENERATED, 2 * GENERATED]).reshape(128, 8),
            "image": np.array([-1, 8, 4, 4]),
            "V": kernels(2, 8),
        },
        [4],
        ("N", 8),
    ),
    "squeeze and excite": Case(
        [
            *ONE,
            NODE("GlobalAveragePool", ["r"], ["g"]),
            NODE("Conv", ["g", "D"], ["d"]),
            relu("d", "dr"),
            NODE("Conv", ["dr", "E"], ["e"]),
            NODE("Sigmoid", ["e"], ["s"]),
            NODE("Mul", ["r", "s"], ["c"]),
            READ,
        ],
        {"A": ROWS, "D": kernels(3, 8, 1), "E": doubled(kernels(4, 3, 1), (1, 1, 1, 1)), "V": kernels(2, 8)},
        [4, 3],
    ),
    "squeeze and excite by sizes that the graph reads": Case(
        [
            *ONE,
            NODE("Shape", ["r"], ["sizes"]),
            NODE("Slice", ["sizes", "zero", "two"], ["flat"]),
            NODE("GlobalAveragePool", ["r"], ["g"]),
            NODE("Reshape", ["g", "flat"], ["f"]),
            NODE("Gemm", ["f", "D"], ["d"], transB=1),
            relu("d", "dr"),
            NODE("Gemm", ["dr", "E"], ["e"], transB=1),
            NODE("Sigmoid", ["e"], ["s"]),
            NODE("Concat", ["flat", "ones"], ["high"], axis=0),
            NODE("Reshape", ["s", "high"], ["gate"]),
            NODE("Mul", ["r", "gate"], ["c"]),
            READ,
        ],
        {
            "A": ROWS,
            "D": RNG.standard_normal((3, 8)),
            "E": doubled(RNG.standard_normal((4, 3)), (1, 1, 1, 1)),
            "V": kernels(2, 8),
            "zero": np.array([0]),
            "two": np.array([2]),
            "ones": np.array([1, 1]),
        },
        [4, 3],
    ),
    "squeeze and excite, other gates": Case(
        [
            *ONE,
            NODE("GlobalAveragePool", ["r"], ["g"]),
            NODE("Conv", ["g", "E"], ["e"]),
            NODE("Sigmoid", ["e"], ["s"]),
            NODE("Mul", ["r", "s"], ["c"]),
            READ,
        ],
        {"A": ROWS, "E": kernels(8, 8, 1), "V": kernels(2, 8)},
        [8],
    ),
}


def test_channels_whose_number_lays_out_something_else_stay() -> None:
    nodes = [
        NODE("Gemm", ["x", "G"], ["a"], transB=1),
        relu("a", "r"),
        NODE("Shape", ["r"], ["sizes"]),
        NODE("Reshape", ["x", "sizes"], ["also"]),
        NODE("Gemm", ["r", "H"], ["y"]),
    ]
    rows = doubled(RNG.standard_normal((4, 8)))
    stored = {"G": rows.astype(np.float32), "H": RNG.standard_normal((8, 2)).astype(np.float32)}
    done = lossless(assembled(nodes, stored, {"x": ("N", 8)}, ends=("y", "also")))
    assert not done.plan.selections
    assert any("size is read" in r.reason for r in done.view.refusals)


@pytest.mark.parametrize("name", CASES)
def test_copies_are_found_exactly(name: str) -> None:
    case = CASES[name]
    stored = {n: np.asarray(v, np.float32) if v.dtype.kind == "f" else v for n, v in case.stored.items()}
    proto = onnx.shape_inference.infer_shapes(assembled(case.nodes, stored, {"x": case.shape}))
    done = lossless(proto)
    assert done.widths() == case.widths
    assert_same(proto, done.proto)
    assert not lossless(done.proto).plan.selections


def test_a_weight_stored_once_is_not_copied_to_drop_some_of_its_columns() -> None:
    """Half of one use is read by nobody; cutting it would store the weight twice."""
    nodes = [
        NODE("MatMul", ["x", "w"], ["y"]),
        NODE("MatMul", ["z", "w"], ["s"]),
        NODE("Slice", ["s", "from", "to", "axes"], ["t"]),
    ]
    stored = {"w": RNG.standard_normal((8, 16)).astype(np.float32)}
    stored |= {"from": np.array([0]), "to": np.array([4]), "axes": np.array([1])}
    found = condense(assembled(nodes, stored, {"x": ("N", 8), "z": ("N", 8)}, ends=("y", "t")))
    assert found.report.status == "unchanged"
    assert any("stored once" in note or "used often" in note for note in found.report.notes)


def test_a_partly_known_shape_gives_a_result_its_rank() -> None:
    """At opset 12 inference finds nothing; what the graph puts together says enough."""
    nodes = [
        NODE("Conv", ["x", "A"], ["a"]),
        NODE("Shape", ["a"], ["sizes"]),
        NODE("Slice", ["sizes", "from", "to", "from"], ["two"]),
        NODE("Concat", ["two", "rest"], ["flat"], axis=0),
        NODE("Reshape", ["a", "flat"], ["r"]),
        NODE("Transpose", ["r"], ["t"], perm=[0, 2, 1]),
        NODE("MatMul", ["t", "H"], ["y"]),
    ]
    stored = {"A": doubled(kernels(4, 3, 1)).astype(np.float32), "H": RNG.standard_normal((8, 2)).astype(np.float32)}
    stored |= {"from": np.array([0]), "to": np.array([2]), "rest": np.array([-1])}
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 3, "h", "w"])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", "hw", 2])],
        [numpy_helper.from_array(v, n) for n, v in stored.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)], ir_version=7)
    assert lossless(proto).widths() == [4]
