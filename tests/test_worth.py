"""A fit that saves next to nothing is not worth its error."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from onnx_condense import condense

INPUTS, SIDE = 300, 10
X = np.random.default_rng(1).standard_normal((4000, INPUTS)).astype(np.float32)


def net(faint: int) -> onnx.ModelProto:
    """A wide layer that can't be narrowed, and one of 10 neurons beside it of which some are hardly read.

    Every neuron looks at an input of its own, so that none can stand in for another.
    """
    read = np.ones((SIDE, 3)) * [1.0, -1.0, 0.5]
    read[:faint] *= 1e-4
    stored = {"w": np.eye(INPUTS), "b": np.full(INPUTS, 0.1), "v": np.ones((INPUTS, 3)), "c": np.zeros(3)}
    stored |= {"w2": np.eye(INPUTS, SIDE), "b2": np.full(SIDE, 0.2), "v2": read, "c2": np.zeros(3)}
    tensors = [helper.make_tensor(k, 1, v.shape, v.reshape(-1)) for k, v in stored.items()]
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["z"]),
        helper.make_node("Tanh", ["z"], ["h"]),
        helper.make_node("Gemm", ["h", "v", "c"], ["y1"]),
        helper.make_node("Gemm", ["x", "w2", "b2"], ["z2"]),
        helper.make_node("Sin", ["z2"], ["h2"]),
        helper.make_node("Gemm", ["h2", "v2", "c2"], ["y2"]),
        helper.make_node("Sub", ["y1", "y2"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(n, 1, ["N", size]) for n, size in (("x", INPUTS), ("y", 3))]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.mark.parametrize(("faint", "status"), [(1, "unchanged"), (5, "condensed")])
def test_less_than_half_a_percent_is_given_back(faint: int, status: str) -> None:
    found = condense(net(faint), calibration=X, tolerance=2e-3, threads=1).report
    assert found.status == status
    told = [note for note in found.notes if "given back" in note]
    assert bool(told) == (status == "unchanged")
    assert not told or "0.32 % of the parameters" in told[0]


def test_a_size_that_was_asked_for_is_given() -> None:
    found: Any = condense(net(1), calibration=X, keep=0.998, threads=1).report
    assert found.status == "condensed"
    assert found.parameters.after == found.parameters.before - INPUTS - 4
