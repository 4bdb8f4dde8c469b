"""Products whose stored weight has batch axes: a stack of matrices that write the same channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from builders import assert_same_outputs, feed_for, lossless, model, outputs
from onnx import helper

from onnx_condense import condense
from onnx_condense.network.model import load
from onnx_condense.ops import linear
from onnx_condense.plan import Plan, ReaderUpdate, Selection
from onnx_condense.proving.verify import check_numbers, masked
from onnx_condense.rewrite import apply_plan
from onnx_condense.runtime import Runtime
from onnx_condense.spaces import find_spaces

Array = npt.NDArray[Any]
F = np.float32
OF = np.array([0, 1, 2, 2, 0, 1, 1])
"""Which of 3 channels each of 7 is a copy of."""


def chain(
    first: Array, second: Array, x: Sequence[int], *, left: bool = False, bias: Array | None = None, behind: str = ""
) -> onnx.ModelProto:
    """X -> MatMul first -> (Add) -> Relu -> MatMul second -> y; left: weights on the left of what they multiply."""
    stored = {"w": first.astype(F), "v": second.astype(F)}
    nodes = [helper.make_node("MatMul", ["w", "x"] if left else ["x", "w"], ["z"], name="first")]
    if bias is not None:
        stored["b"] = bias.astype(F)
        nodes.append(helper.make_node("Add", ["z", "b"], ["a"]))
    nodes.append(helper.make_node("Relu", ["a" if bias is not None else "z"], ["h"]))
    nodes.append(
        helper.make_node("MatMul", ["v", "h"] if left else ["h", "v"], ["p" if behind else "y"], name="second")
    )
    if behind:
        stored["c"] = np.full((4, 1) if left else 4, 2.0, F)
        nodes.append(helper.make_node(behind, ["p", "c"], ["y"]))
    shape = (first @ np.zeros(x) if left else np.zeros(x) @ first).shape
    hidden = np.zeros(shape)
    out = (second @ hidden if left else hidden @ second).shape
    return model(nodes, stored, {"x": list(x)}, {"y": list(out)})


def weights(batch: Sequence[int], *, left: bool, seed: int = 0) -> tuple[Array, Array]:
    """Stacks over 3 channels that are stored as 7; copies have factors of their own, one per channel."""
    rng = np.random.default_rng(seed)
    factor = rng.uniform(0.5, 2, 7)
    first = rng.standard_normal((*batch, 5, 3))[..., OF] * factor
    second = rng.standard_normal((*batch, 7, 4))
    return (np.swapaxes(first, -1, -2), np.swapaxes(second, -1, -2)) if left else (first, second)


SHAPES = {
    "one": ((1,), (2, 6, 5)),
    "one more than it is multiplied with": ((1,), (6, 5)),
    "two ones": ((1, 1), (2, 6, 5)),
    "stack": ((3,), (3, 6, 5)),
    "stack of one tensor": ((3,), (1, 6, 5)),
    "stack of one matrix": ((3,), (6, 5)),
    "stack behind another axis": ((3,), (2, 3, 6, 5)),
    "stack with an axis of one": ((3, 1), (3, 2, 6, 5)),
    "two axes": ((2, 3), (2, 3, 6, 5)),
}


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize(("batch", "x"), SHAPES.values(), ids=SHAPES)
def test_copies_in_all_matrices_go(batch: tuple[int, ...], x: tuple[int, ...], left: bool) -> None:
    shape = (*x[:-2], 5, 6) if left else x
    proto = chain(*weights(batch, left=left), shape, left=left)
    done = lossless(proto)
    assert done.widths() == [3]
    assert_same_outputs(proto, done.proto)


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("batch", [(1,), (3,), (2, 3)])
def test_vectors_times_a_stack(batch: tuple[int, ...], left: bool) -> None:
    first, _ = weights(batch, left=left)
    proto = chain(first, np.random.default_rng(1).standard_normal((4, batch[-1]) if left else (7, 4)), (5,), left=left)
    done = lossless(proto)
    # On the left a matrix reads the axis of the stack instead of the channels.
    assert done.widths() == ([] if left else [3])
    assert_same_outputs(proto, done.proto)


@pytest.mark.parametrize("left", [True, False])
def test_copies_in_one_matrix_only_stay(left: bool) -> None:
    first, second = weights((3,), left=left)
    first = first.copy()
    first[1] = np.random.default_rng(5).standard_normal(first[1].shape)
    assert lossless(chain(first, second, (3, 5, 6) if left else (3, 6, 5), left=left)).widths() == [7]


@pytest.mark.parametrize("level", ["equal", "other"])
def test_constant_channels_go(level: str) -> None:
    """Those whose constant is one number; another one per matrix is no bias that a reader of all could take over."""
    first, second = weights((3,), left=False)
    first[..., :3], first[..., 3:] = 0, np.random.default_rng(3).standard_normal((3, 5, 4))
    bias = np.broadcast_to(np.linspace(0.5, 1, 7), (3, 1, 7)).copy()
    if level == "other":
        bias[1, 0, 0] = 3.0
    bias = bias if level == "other" else bias[0, 0]
    proto = chain(first, second, (3, 6, 5), bias=bias)
    done = lossless(proto)
    assert done.widths() == ([4] if level == "equal" else [7])
    assert_same_outputs(proto, done.proto)


def test_channels_that_nobody_reads_go() -> None:
    first, second = weights((3,), left=False)
    first = np.random.default_rng(3).standard_normal(first.shape)
    second[:, 2:4] = 0
    second[1:, 4] = 0
    proto = chain(first, second, (3, 6, 5), bias=np.ones((3, 1, 7)))
    done = lossless(proto)
    assert done.widths() == [5]
    assert_same_outputs(proto, done.proto)


@pytest.mark.parametrize("behind", ["", "Add"])
@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize(("batch", "x"), SHAPES.values(), ids=SHAPES)
def test_offsets_of_every_matrix(batch: tuple[int, ...], x: tuple[int, ...], left: bool, behind: str) -> None:
    first, second = weights(batch, left=left)
    proto = chain(first, second, (*x[:-2], 5, 6) if left else x, left=left, behind=behind)
    network = load(proto)
    view = find_spaces(network)
    use = view.linear[1]
    matrix = use.matrix(second)
    np.testing.assert_array_equal(use.as_stored(matrix, second), second)
    matrix[:, 4:] = 0
    offset = np.arange(1.0, len(matrix) + 1) if len(matrix) > 4 else np.arange(1.0, 5)
    plan = Plan("fitted", (Selection(view.spaces[0].name, np.arange(4)),), (ReaderUpdate(1, matrix, offset),))
    made = apply_plan(network, view, plan)
    feed = feed_for(proto)
    inner = batch if int(np.prod(batch)) > 1 else (1,) * len(batch)
    shift = offset.reshape(*inner, 4, 1) if left else offset.reshape(*inner, 1, 4)
    cut = use.as_stored(matrix, second)
    hidden = np.maximum(first @ feed["x"] if left else feed["x"] @ first, 0)
    wanted = (cut @ hidden if left else hidden @ cut) + shift + (2 if behind else 0)
    for found in (made, masked(network, view, plan)):
        np.testing.assert_allclose(outputs(found, feed)[0], wanted, atol=1e-4)
    check_numbers(network, view, plan, made, [feed], Runtime(threads=1))


@pytest.mark.parametrize("x", [(50, 1, 6, 5), (50, 3, 6, 5)])
def test_a_stack_is_fitted(x: tuple[int, ...]) -> None:
    first, second = weights((3,), left=False)
    rng = np.random.default_rng(2)
    proto = chain(first + 1e-3 * rng.standard_normal(first.shape), second, x)
    for value in (proto.graph.input[0], proto.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    result = condense(proto, calibration={"x": rng.standard_normal(x).astype(F)}, tolerance=0.02, allow_slower=True)
    assert result.report.status == "condensed"
    assert result.report.spaces[0].after == 3


def test_weights_of_no_numbers_pin() -> None:
    first, second = weights((3,), left=False)
    second[1, 0, 0] = np.nan
    done = lossless(chain(first, second, (3, 6, 5)))
    assert done.plan.selections == ()
    assert linear.NOT_FINITE in {refusal.reason for refusal in done.view.refusals}


@pytest.mark.parametrize("rank", [2, 5, 6])
def test_products_of_many_axes(rank: int) -> None:
    first, second = weights((), left=False)
    proto = chain(first, second, (*[2] * (rank - 1), 5))
    done = lossless(proto)
    assert done.widths() == [3]
    assert_same_outputs(proto, done.proto)
