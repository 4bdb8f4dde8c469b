"""Lowering of what picks and puts by index: the Gather and Scatter ops.

Source: https://onnx.ai/onnx/operators/onnx__ScatterElements.html and its neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from onnx_condense.tune.step import RefusedError, Rule, Run, Step, Tensor

# Reductions as ONNX and as PyTorch calls them.
_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _positive(index: Tensor, size: int) -> Tensor:
    """Positions counted from the front."""
    return torch.where(index < 0, index + size, index).to(torch.int64)


def _gather(step: Step) -> Run:
    axis = step.get("axis", 0)

    def run(x: Tensor, index: Tensor) -> Tensor:
        at = axis % x.ndim
        positive = _positive(index, x.shape[at])
        picked = x.index_select(at, positive.reshape(-1))
        return picked.reshape(x.shape[:at] + index.shape + x.shape[at + 1 :])

    return run


def _gather_elements(step: Step) -> Run:
    axis = step.get("axis", 0)

    def run(x: Tensor, index: Tensor) -> Tensor:
        return torch.gather(x, axis, _positive(index, x.shape[axis]))

    return run


def _gather_nd(step: Step) -> Run:
    step.only("batch_dims", 0)
    return lambda x, index: x[index.to(torch.int64).unbind(-1)]


def _scatter_elements(step: Step) -> Run:
    axis, reduction = step.get("axis", 0), step.get("reduction", "none")

    def run(x: Tensor, index: Tensor, updates: Tensor) -> Tensor:
        at = _positive(index, x.shape[axis])
        if reduction == "none":
            return x.scatter(axis, at, updates)
        return x.scatter_reduce(axis, at, updates, _REDUCTIONS[reduction])

    return run


def _scatter_nd(step: Step) -> Run:
    reduction = step.get("reduction", "none")
    if reduction not in {"none", "add"}:
        raise RefusedError(f"reduction = {reduction}")

    def run(x: Tensor, index: Tensor, updates: Tensor) -> Tensor:
        return x.index_put(index.to(torch.int64).unbind(-1), updates, accumulate=reduction == "add")

    return run


RULES: Mapping[str, Rule] = {
    "Gather": Rule(_gather, fixed=frozenset({1})),
    "GatherElements": Rule(_gather_elements, fixed=frozenset({1})),
    "GatherND": Rule(_gather_nd, fixed=frozenset({1})),
    "ScatterElements": Rule(_scatter_elements, fixed=frozenset({1}), since=11),
    "ScatterND": Rule(_scatter_nd, fixed=frozenset({1}), since=11),
}
