"""Ops that make of every channel something of its own: equal channels give equal results, and no others do."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from builders import Form, lossless
from convnets import Array, assembled, condensed, network, rows
from onnx import helper

NODE = helper.make_node
PLACES = {"axes": np.array([2, 3])}
F = np.float32


def reduced(op: str, weight: Array, bias: Array, *, old: bool = False, keep: int = 0) -> onnx.ModelProto:
    """Conv, Softplus (above zero, as logarithms want it), a reduction of both axes of the image, a product."""
    attributes: dict[str, Any] = {"keepdims": keep} | ({"axes": [2, 3]} if old else {})
    stored = {"w": weight / 16, "b": bias, "u": np.random.default_rng(0).standard_normal((len(bias), 4))}
    single: dict[str, Array] = {n: v.astype(F) for n, v in stored.items()} | ({} if old else PLACES)
    nodes = [
        NODE("Conv", ["x", "w", "b"], ["z"]),
        NODE("Softplus", ["z"], ["a"]),
        NODE(op, ["a", *([] if old else PLACES)], ["p"], **attributes),
        NODE("Flatten", ["p"], ["f"]),
        NODE("MatMul", ["f", "u"], ["y"]),
    ]
    return assembled(nodes, single, {"x": ("N", 3, 5, 5)}, Form(opset=11 if old else 18, ir=8))


REDUCTIONS = ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceProd", "ReduceSumSquare")


@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("op", REDUCTIONS)
def test_copies_are_one_behind_a_reduction(op: str, *, old: bool, keep: int) -> None:
    condensed(reduced(op, *rows(0, 1, 1), old=old, keep=keep), 3)
    # Half as large before, and something else behind.
    condensed(reduced(op, *rows(0, 1, 0.5), old=old, keep=keep), 6)


@pytest.mark.parametrize("size", [2, 4])
def test_as_many_channels_as_axes_are_no_matter(size: int) -> None:
    weight, bias = rows(0, 1, 1)
    half = size // 2
    at = np.r_[np.arange(half), np.arange(half)]
    condensed(reduced("ReduceL2", weight[at], bias[at]), half)


def test_different_channels_stay() -> None:
    condensed(reduced("ReduceL2", *rows(0, 1)), 3)


def test_an_image_of_one_element_is_no_reason_to_take_channels_for_one() -> None:
    weight, bias = rows(0, 1)
    nodes = [
        NODE("Conv", ["x", "w", "b"], ["z"]),
        NODE("GlobalAveragePool", ["z"], ["a"]),
        NODE("ReduceL1", ["a", "axes"], ["p"], keepdims=0),
        NODE("MatMul", ["p", "u"], ["y"]),
    ]
    u = np.random.default_rng(0).standard_normal((3, 4)).astype(F)
    stored: dict[str, Array] = {"w": weight.astype(F), "b": bias.astype(F), "u": u, **PLACES}
    condensed(assembled(nodes, stored, {"x": ("N", 3, 5, 5)}, Form(opset=18, ir=8)), 3)


# ---- ops that go on as an image ----

IMAGES: dict[str, tuple[onnx.NodeProto, dict[str, Any], tuple[int, int, int]]] = {
    # Node, stored numbers, and the widths where half of six channels are copies, multiples and opposites.
    "layer": (NODE("LayerNormalization", ["z", "s"], ["h"], axis=2, epsilon=0.5), {"s": np.ones((6, 6))}, (3, 6, 6)),
    "places": (NODE("MeanVarianceNormalization", ["z"], ["h"], axes=[2, 3]), {}, (3, 6, 6)),
    "sums": (NODE("CumSum", ["z", "two"], ["h"], reverse=1), {"two": np.array(2)}, (3, 3, 3)),
    "largest": (NODE("TopK", ["z", "k"], ["h", "i"], axis=3), {"k": np.array([4])}, (3, 6, 6)),
    "hard": (NODE("Hardmax", ["z"], ["h"], axis=3), {}, (3, 6, 6)),
}


@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize(("node", "stored", "left"), IMAGES.values(), ids=IMAGES)
def test_what_is_one_behind_an_op_along_the_image(
    node: onnx.NodeProto, stored: dict[str, Any], left: tuple[int, int, int], at: int
) -> None:
    weight, bias = rows(0, 1, (1, 2, -1)[at])
    condensed(network([node], reader={}, w=weight, b=bias, **stored), left[at])


@pytest.mark.parametrize("op", ["TopK", "Hardmax"])
def test_what_jumps_wants_equal_bits(op: str) -> None:
    weight, bias = rows(0, 1, 1)
    weight, bias = weight.astype(F), bias.astype(F)
    node = NODE(op, ["z", *(["k"] if op == "TopK" else [])], ["h", *(["i"] if op == "TopK" else [])], axis=3)
    stored: dict[str, Any] = {"k": np.array([4])} if op == "TopK" else {}
    weight[3] = np.nextafter(weight[0], F(9))
    done = lossless(network([node], reader={}, w=weight, b=bias, **stored))
    assert done.widths() == [4]
    # Ops without a jump take them for one.
    assert lossless(network([NODE("Tanh", ["z"], ["h"])], reader={}, w=weight, b=bias)).widths() == [3]


@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
def test_channels_whose_places_are_read_are_free_but_not_proved(op: str) -> None:
    weight, bias = rows(0, 1, 1)
    nodes = [NODE(op, ["z"], ["i"], axis=3), NODE("Cast", ["i"], ["h"], to=onnx.TensorProto.FLOAT)]
    done = lossless(network(nodes, reader={"pads": [0, 1, 0, 1]}, w=weight, b=bias))
    assert done.widths() == [6]
    assert not done.view.spaces[0].pinned.any()
