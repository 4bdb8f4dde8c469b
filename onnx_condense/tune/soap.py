"""SOAP: Adam in the basis in which the gradients of each weight are least correlated.

Vyas et al., "SOAP: Improving and Stabilizing Shampoo using Adam" (2024). A weight [O, K] keeps running means of G G^T
and G^T G of its gradients; Adam works on gradients turned into their eigenvectors, and its steps are turned back. What
least squares leaves is badly scaled: columns of channels that are nearly alike are large and cancel each other. Steps
of one size in every weight, as Adam makes them, spoil that first; here they are small where the network is stiff.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import overload

import torch

BETAS = 0.95, 0.95
# The basis follows the gradients this often, in steps; a side that is wider is left as it is.
EVERY, WIDEST = 10, 1024
TINY = 1e-8


class Soap(torch.optim.Optimizer):
    """The optimizer.

    Args:
        parameters: what is trained; of more than two axes as matrices, the first axis against all others.
        lr: length of a step, as Adam's.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Move every parameter that has a gradient; the first one only tells the basis."""
        loss = closure() if closure else None
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                gradient = weight.grad.reshape(weight.shape[0] if weight.dim() else 1, -1)
                if not (state := self.state[weight]):
                    state["basis"] = _Basis(gradient)
                    continue
                weight.add_(state["basis"].update(gradient).reshape(weight.shape), alpha=-group["lr"])
        return loss


class _Basis:
    """The running means of one weight's gradients, and Adam's in their basis."""

    def __init__(self, gradient: torch.Tensor) -> None:
        self._sides = [_Side(gradient), _Side(gradient.T)]
        self._mean, self._square = torch.zeros_like(gradient), torch.zeros_like(gradient)
        self._steps = 0

    def update(self, gradient: torch.Tensor) -> torch.Tensor:
        """What the weight moves by, at a rate of -1."""
        self._steps += 1
        first, second = BETAS
        self._mean.lerp_(gradient, 1.0 - first)
        turned = self._turned(gradient)
        self._square.lerp_(turned * turned, 1.0 - second)
        mean = self._turned(self._mean) / (1.0 - first**self._steps)
        spread = (self._square / (1.0 - second**self._steps)).sqrt_().add_(TINY)
        left, right = self._sides
        moved = right.back(left.back(mean / spread).T).T
        for side, seen in zip(self._sides, (gradient, gradient.T), strict=True):
            side.follow(seen, again=self._steps % EVERY == 0)
        return moved

    def _turned(self, gradient: torch.Tensor) -> torch.Tensor:
        left, right = self._sides
        return right.into(left.into(gradient).T).T


class _Side:
    """One side of a weight: the mean of G G^T, and a basis that follows its eigenvectors; nothing where it is wide."""

    def __init__(self, gradient: torch.Tensor) -> None:
        self._mean: torch.Tensor | None = None
        if 1 < len(gradient) <= WIDEST:
            self._mean = gradient @ gradient.T
            # One gradient's is singular, which single precision does not always get through.
            self._basis = torch.linalg.eigh(self._mean.double())[1].to(gradient.dtype)

    def into(self, gradient: torch.Tensor) -> torch.Tensor:
        """In the basis."""
        return gradient if self._mean is None else self._basis.T @ gradient

    def back(self, turned: torch.Tensor) -> torch.Tensor:
        """Out of it."""
        return turned if self._mean is None else self._basis @ turned

    def follow(self, gradient: torch.Tensor, *, again: bool) -> None:
        """Take a gradient into the mean; again: let the basis follow, by one step of the power iteration."""
        if self._mean is None:
            return
        self._mean.lerp_(gradient @ gradient.T, 1.0 - BETAS[1])
        if again:
            self._basis = torch.linalg.qr(self._mean @ self._basis)[0]
