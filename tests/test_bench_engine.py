"""The table of refits compares what it says."""

from __future__ import annotations

import numpy as np
import pytest
from bench_engine import Case, Sweeper, chosen_widths
from mlps import mlp, normal

from onnx_condense.cost import count_parameters
from onnx_condense.data import input_specs, load
from onnx_condense.network.model import Network
from onnx_condense.runtime import Runtime
from onnx_condense.spaces import find_spaces


@pytest.fixture(scope="module")
def case() -> Case:
    network = Network(mlp((3, 24, 20, 16, 2)))
    samples = load(normal(400, 3), input_specs(network.proto.graph))
    return Case(network, find_spaces(network), samples, np.arange(300), np.arange(300, 400), Runtime(threads=1))


@pytest.fixture(scope="module")
def fitter(case: Case) -> Sweeper:
    return Sweeper(case.network, case.view, case.samples, case.fit, case.search, case.runtime)


def test_a_second_sweep_of_refits_changes_nothing(fitter: Sweeper) -> None:
    plan, staged = fitter.plan([12, 10, 8], sequential=True)
    _, at_once = fitter.plan([12, 10, 8], sequential=False)
    again = fitter.again(plan, staged)
    assert again.SerializeToString(deterministic=True) == staged.SerializeToString(deterministic=True)
    # The sweep does refit: from other weights it ends at the same ones.
    assert at_once.SerializeToString(deterministic=True) != staged.SerializeToString(deterministic=True)
    healed = fitter.again(plan, at_once)
    assert healed.SerializeToString(deterministic=True) == staged.SerializeToString(deterministic=True)


def test_widths_are_the_first_within_each_share(case: Case, fitter: Sweeper) -> None:
    total = count_parameters(case.network.proto)
    shares = [0.6, 0.3]
    kept = [count_parameters(fitter.plan(w, sequential=False)[1]) / total for w in chosen_widths(case, fitter, shares)]
    assert all(0.8 * share < found <= share for share, found in zip(shares, kept, strict=True))
