"""The optimizer: where it is far ahead of Adam, and for every form of weight."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from mlps import normal

from onnx_condense.tune import soap
from onnx_condense.tune.soap import Soap


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def badly_scaled() -> tuple[Any, Any]:
    """Inputs that are nearly alike, as channels that least squares leaves are, and what a layer answers to them."""
    turned = np.linalg.qr(normal(12, 12, seed=1, dtype=np.float64))[0]
    x = normal(300, 12, dtype=np.float64) * np.logspace(0, -2, 12) @ turned
    return torch.from_numpy(x), torch.from_numpy(x @ normal(12, 5, seed=2, dtype=np.float64))


def steps_to(kind: Any, share: float, most: int = 1200) -> int:
    """Steps that an optimizer needs to take the loss down to a share of its start."""
    x, y = badly_scaled()
    weight = torch.nn.Parameter(torch.zeros(12, 5, dtype=torch.float64))
    optimiser = kind([weight], lr=0.03)
    start = float((y**2).mean())
    for step in range(most):
        optimiser.param_groups[0]["lr"] = 0.03 * (1.0 - step / most)
        optimiser.zero_grad()
        loss = ((x @ weight - y) ** 2).mean()
        if loss.item() < share * start:
            return step
        loss.backward()
        optimiser.step()
    return most


def test_far_fewer_steps_than_adam_where_inputs_are_nearly_alike() -> None:
    soapy, plain = steps_to(Soap, 1e-6), steps_to(torch.optim.Adam, 1e-6)
    assert soapy < plain / 3


def moved(weight: Any, steps: int = 25, lr: float = 0.01) -> Any:
    """A weight after some steps towards another one."""
    goal = torch.from_numpy(normal(*weight.shape, seed=9)) if weight.dim() else torch.tensor(0.5)
    parameter = torch.nn.Parameter(weight.clone())
    optimiser = Soap([parameter], lr=lr)
    for _ in range(steps):
        optimiser.zero_grad()
        torch.autograd.backward(((parameter - goal) ** 2).sum())
        optimiser.step()
    before, after = (float(((w - goal) ** 2).sum()) for w in (weight, parameter.detach()))
    assert after < before
    return parameter.detach()


@pytest.mark.parametrize("shape", [(), (1,), (7,), (4, 6), (6, 4), (1, 5), (5, 1), (4, 3, 3, 3), (6, 1, 3, 3)])
def test_every_form_of_weight(shape: tuple[int, ...]) -> None:
    weight = torch.from_numpy(np.asarray(normal(*shape), np.float32))
    found = moved(weight)
    assert found.shape == weight.shape
    assert torch.equal(found, moved(weight))
    # A step of Adam is about as long as the rate in every weight, in whatever basis.
    norm = float((found - weight).norm())
    assert norm <= 25 * 0.01 * 1.3 * max(1, weight.numel()) ** 0.5


def test_the_first_gradient_moves_nothing() -> None:
    weight = torch.from_numpy(normal(4, 6))
    parameter = torch.nn.Parameter(weight.clone())
    idle = torch.nn.Parameter(weight.clone())
    optimiser = Soap([parameter, idle], lr=0.1)
    for moves in (False, True):
        parameter.grad = torch.ones_like(parameter)
        optimiser.step()
        assert torch.equal(parameter, weight) is not moves
    assert torch.equal(idle, weight)


def test_a_turned_problem_is_solved_by_turned_steps() -> None:
    """What Adam does not have: steps do not depend on the axes in which a weight is written down, Adam's do."""
    gradients = [torch.from_numpy(normal(5, 5, seed=i, dtype=np.float64)) for i in range(20)]
    left, right = (torch.from_numpy(np.linalg.qr(normal(5, 5, seed=n, dtype=np.float64))[0]) for n in (6, 4))

    def after(kind: Any, *, turn: bool) -> Any:
        weight = torch.nn.Parameter(torch.zeros(5, 5, dtype=torch.float64))
        optimiser = kind([weight], lr=0.1)
        for gradient in gradients:
            weight.grad = left @ gradient @ right if turn else gradient.clone()
            optimiser.step()
        return weight.detach()

    for kind, same in ((Soap, True), (torch.optim.Adam, False)):
        straight, turned = after(kind, turn=False), after(kind, turn=True)
        assert torch.allclose(left @ straight @ right, turned, rtol=0, atol=1e-6) is same


def test_wide_sides_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soap, "WIDEST", 5)
    basis = soap._Basis(torch.from_numpy(normal(6, 5)))
    wide, narrow = basis._sides
    assert (wide._mean, narrow._mean is None) == (None, False)
    eye = torch.eye(6)
    assert torch.equal(wide.into(eye), eye)
    assert torch.equal(wide.back(eye), eye)
    monkeypatch.setattr(soap, "WIDEST", 3)
    # Without any basis it is Adam, one step late.
    weight = torch.nn.Parameter(torch.zeros(6, 4))
    adam = torch.nn.Parameter(torch.zeros(6, 4))
    optimisers = [Soap([weight], lr=0.1), torch.optim.Adam([adam], lr=0.1, betas=soap.BETAS, eps=soap.TINY)]
    for i in range(8):
        weight.grad, adam.grad = (torch.from_numpy(normal(6, 4, seed=i)) for _ in range(2))
        for optimiser in optimisers[: 2 if i else 1]:
            optimiser.step()
    assert torch.allclose(weight, adam, atol=1e-5)


def test_a_closure_is_asked_first() -> None:
    weight = torch.nn.Parameter(torch.zeros(3, 2))
    weight.grad = torch.ones(3, 2)
    assert Soap([weight], lr=0.1).step(lambda: 4.5) == 4.5


def test_the_first_basis_is_worked_out_in_double_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """One gradient's mean is singular; single precision failed to converge on such a one of 1024 x 48."""
    seen = []
    plain = torch.linalg.eigh

    def eigh(matrix: Any) -> Any:
        seen.append(matrix.dtype)
        return plain(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", eigh)
    weight = torch.nn.Parameter(torch.zeros(6, 4))
    weight.grad = torch.ones(6, 4)
    Soap([weight], 1e-3).step()
    assert seen == [torch.float64, torch.float64]
