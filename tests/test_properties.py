"""Laws that condensing keeps on random networks: exact widths, no order of channels, nothing left to do twice."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import random_convnets
import random_nets
from builders import lossless
from convnets import assert_same
from dag_files import File, Layout, constants, written
from hypothesis import Phase, assume, example, given, settings
from hypothesis import strategies as st
from planted_dags import Dag

from onnx_condense.data import input_specs, load
from onnx_condense.fit.fitting import Fitter
from onnx_condense.network.model import Network, serialized
from onnx_condense.runtime import Runtime
from onnx_condense.spaces import find_spaces

pytestmark = pytest.mark.usefixtures("one_thread")
SEEDS = st.integers(0, 2**32 - 1)
HASHED = (3, 14, 46)
SAMPLES = 90


def bounded(examples: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The same examples at every run; the seed tells all, so there is nothing to shrink."""
    return settings(
        max_examples=examples, derandomize=True, deadline=None, database=None, phases=[Phase.explicit, Phase.generate]
    )


def assert_as(plain: onnx.ModelProto, made: onnx.ModelProto) -> None:
    """Same nodes and sizes; readers may have got a bias (a number or two that rounding leaves over)."""
    wanted, found = constants(plain), constants(made)
    added = set(found) - set(wanted)
    assert all(name.endswith("_bias") for name in added)
    assert {n: found[n][: len(sizes)] for n, sizes in wanted.items()} == wanted


# ---- exact widths ----


# Two seeds with rows that are multiples of one another before a Clip, and before a sum.
@bounded(60)
@given(SEEDS)
@example(121)
@example(129)
def test_planted_copies_and_dead_channels_go_and_nothing_else(seed: int) -> None:
    dag = Dag(seed)
    plain, wide = written(dag, "plain"), written(dag, "planted", seed)
    done = lossless(wide)
    assert_as(plain, done.proto)
    assert_same(plain, wide, seed=seed)
    assert_same(wide, done.proto, seed=seed)


@bounded(15)
@given(SEEDS)
def test_nothing_goes_where_nothing_is_redundant(seed: int) -> None:
    for kind in ("plain", "moved"):
        proto = written(Dag(seed), kind, seed)
        assert serialized(lossless(proto).proto) == serialized(proto)


# ---- order of channels ----


@bounded(10)
@given(SEEDS)
def test_planted_in_two_ways_the_same_is_left(seed: int) -> None:
    """Other copies, other factors, another order: the widths and answers are the same."""
    dag = Dag(seed)
    one, other = (lossless(written(dag, "planted", s)).proto for s in (seed, seed + 1))
    assert_same(one, other, seed=seed)
    assert_as(written(dag, "plain"), one)
    assert_as(written(dag, "plain"), other)


def fitter(proto: onnx.ModelProto, count: int = SAMPLES) -> Fitter:
    network = Network(proto)
    shape = [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim][1:]
    x = np.random.default_rng(0).standard_normal((count, *shape)).astype(np.float32)
    fit, search = np.split(np.arange(count), [count * 7 // 9])
    return Fitter(network, find_spaces(network), load(x, input_specs(proto.graph)), fit, search, Runtime(threads=1))


def narrower(fit: Fitter) -> list[int]:
    """Two thirds of what may go goes."""
    return [s.width - 2 * len(e.order) // 3 for s, e in zip(fit.spaces, fit.eliminations, strict=True)]


def kept(dag: Dag, file: File, fit: Fitter) -> set[int]:
    """Labels of the dag's channels that stay; of rotated spaces none does, so all count."""
    made, _ = fit.plan(narrower(fit), sequential=False)
    rotated = {r.space for r in made.rotations}
    mixed = {int(c) for s in fit.view.spaces if s.name in rotated for c in s.channels}
    gone = made.dropped(fit.view.spaces) - mixed
    found = set()
    for tensor, units in file.units.items():
        labels = fit.view.labels[f"t{tensor}"].reshape(-1)
        if labels.size == len(units.at):
            places = zip(units.at.tolist(), labels.tolist(), strict=True)
            found |= {dag.labels(tensor)[at] for at, label in places if label not in gone}
    return found


@bounded(8)
@given(SEEDS)
def test_the_same_channels_are_fitted_in_any_order(seed: int) -> None:
    dag = Dag(seed)
    files = [File(dag, Layout(dag, seed, kind)) for kind in ("plain", "moved")]
    one, other = (kept(dag, file, fitter(file.proto())) for file in files)
    assert one == other
    # Where all that may go is mixed the sets say nothing.
    assume(one < {label for tensor in range(len(dag.tensors)) for label in dag.labels(tensor)})


# ---- once is enough ----


def once(proto: onnx.ModelProto) -> onnx.ModelProto:
    made = lossless(proto).proto
    del made.metadata_props[:]
    return made


@bounded(15)
@given(SEEDS)
def test_planted_networks_are_done_after_one_run(seed: int) -> None:
    made = once(written(Dag(seed), "planted", seed))
    assert serialized(once(made)) == serialized(made)


@bounded(40)
@given(SEEDS, st.sampled_from([random_convnets.random_network, random_nets.random_network]))
def test_random_networks_are_done_after_one_run(seed: int, network: Callable[[int], onnx.ModelProto]) -> None:
    made = once(network(seed))
    assert serialized(once(made)) == serialized(made)


# ---- nothing depends on hash order ----


def digests() -> list[str]:
    """Of what is made of some networks, without and with data."""
    found = []
    for seed in HASHED:
        wide = written(Dag(seed), "planted", seed)
        fit = fitter(wide, 36)
        _, fitted = fit.plan(narrower(fit), sequential=True)
        found += [hashlib.sha256(serialized(p)).hexdigest() for p in (lossless(wide).proto, fitted)]
    return found


def test_the_bytes_do_not_depend_on_hash_order() -> None:
    path = os.pathsep.join([os.fspath(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-P", "-c", "import test_properties; print(*test_properties.digests())"]
    runs = [
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": path},
        )
        for seed in ("0", "1", "2")
    ]
    answers = [run.communicate(timeout=120)[0].split() for run in runs]
    assert [len(a) for a in answers] == [2 * len(HASHED)] * 3
    assert answers[0] == answers[1] == answers[2]
