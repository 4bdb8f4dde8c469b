"""Times of nodes, by what they write; and what of that belongs to each channel space."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_condense import condense
from onnx_condense.errors import ModelError
from onnx_condense.network import model
from onnx_condense.proving import profiled
from onnx_condense.runtime import Runtime
from onnx_condense.spaces import find_spaces

RUNTIME = Runtime(threads=1)
WIDTH = 6


def graph_of(nodes: Sequence[onnx.NodeProto], weights: Mapping[str, Any], width: int = WIDTH) -> onnx.ModelProto:
    """A network from x [batch, width] to y."""
    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", None]),
    ]
    stored = [numpy_helper.from_array(np.asarray(v, "f4"), k) for k, v in weights.items()]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def mlp(hidden: int = WIDTH, names: Sequence[str] = ("", "", ""), bias: str = "") -> onnx.ModelProto:
    """MatMul, Sigmoid, MatMul; bias: the node names' Add behind the second one, which takes over its result."""
    rng = np.random.default_rng(0)
    weights = {"w0": rng.normal(size=(WIDTH, hidden)), "w1": rng.normal(size=(hidden, 3))}
    last = "inner" if bias else "y"
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["h"], name=names[0]),
        helper.make_node("Sigmoid", ["h"], ["a"], name=names[1]),
        helper.make_node("MatMul", ["a", "w1"], [last], name=names[2]),
    ]
    if bias:
        weights["b"] = rng.normal(size=3)
        nodes.append(helper.make_node(bias, ["inner", "b"], ["y"]))
    return graph_of(nodes, weights)


def feed(rows: int = 4, width: int = WIDTH) -> dict[str, Any]:
    return {"x": np.ones((rows, width), "f4")}


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test needs exact times."""
    monkeypatch.setattr(profiled, "SECONDS", 0.05)


@pytest.mark.parametrize(
    "names", [("", "", ""), ("n", "n", "n"), ("onnx-condense-node-1", "onnx-condense-node-0", "a/b")]
)
def test_every_node_has_a_time_whatever_it_is_called(names: Sequence[str]) -> None:
    found = profiled.times(mlp(names=names).SerializeToString(), feed(), RUNTIME)
    assert found.keys() == {"h", "a", "y"}
    assert min(found.values()) >= 0


def test_a_file_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(mlp(), path, save_as_external_data=True, location="net.data", size_threshold=0)
    data = path.read_bytes()
    assert profiled.times(path, feed(), RUNTIME).keys() == {"h", "a", "y"}
    assert path.read_bytes() == data


def test_times_belong_to_their_nodes() -> None:
    """The second product is 1000 times the first and the third."""
    rng = np.random.default_rng(0)
    sizes = [10, 1000, 1000, 10]
    weights = {f"w{k}": rng.normal(size=sizes[k : k + 2]) for k in range(3)}
    tensors = ["x", "narrow", "wide", "y"]
    nodes = [helper.make_node("MatMul", [tensors[k], f"w{k}"], [tensors[k + 1]], name="same") for k in range(3)]
    found = profiled.times(graph_of(nodes, weights, 10).SerializeToString(), feed(64, 10), RUNTIME)
    assert found["wide"] > 3 * max(found["narrow"], found["y"])


def test_nodes_in_bodies_are_not_taken_for_others() -> None:
    """A body may use any names of nodes; it has no time of its own, its node has."""
    inner = [helper.make_node("Neg", ["h"], ["inner"], name="onnx-condense-node-0")]
    value = helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)
    body = helper.make_graph(inner, "body", [], [value])
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("ReduceSum", ["h"], ["sum"], keepdims=0),
        helper.make_node("Cast", ["sum"], ["flag"], to=TensorProto.BOOL),
        helper.make_node("If", ["flag"], ["y"], then_branch=body, else_branch=body),
    ]
    proto = graph_of(nodes, {"w": rng.normal(size=(WIDTH, 3))})
    loaded = profiled._loaded(proto.SerializeToString())
    assert [i.name for n in loaded.graph.node for i in profiled._inner(n)] == ["", ""]
    assert profiled.times(proto.SerializeToString(), feed(), RUNTIME).keys() == {"h", "sum", "flag", "y"}


def test_the_first_result_may_have_no_name() -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Constant", [], ["axes"], value_ints=[0]),
        helper.make_node("Unsqueeze", ["x", "axes"], ["steps"]),
        helper.make_node("LSTM", ["steps", "W", "R"], ["", "last"], hidden_size=2),
        helper.make_node("Squeeze", ["last", "axes"], ["y"]),
    ]
    weights = {"W": rng.normal(size=(1, 8, WIDTH)), "R": rng.normal(size=(1, 8, 2))}
    found = profiled.times(graph_of(nodes, weights).SerializeToString(), feed(), RUNTIME)
    assert found.keys() == {"steps", "last", "y"}


def test_no_file_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for place in ("temporary", "here"):
        (tmp_path / place).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path / "here")
    profiled.times(mlp().SerializeToString(), feed(), RUNTIME)
    with pytest.raises(ModelError, match="can't run"):
        profiled.times(mlp().SerializeToString(), {"x": np.ones((2, 2), "f4")}, RUNTIME)
    assert {p.name for p in tmp_path.rglob("*")} == {"temporary", "here"}


# ---- events ----


def events(index: int, durations: Sequence[int], provider: str = "CPUExecutionProvider") -> list[dict[str, Any]]:
    name = f"onnx-condense-node-{index}_kernel_time"
    return [{"name": name, "dur": d, "args": {"provider": provider}} for d in durations]


def test_first_runs_and_outliers_do_not_count() -> None:
    durations = [900, 800, 10, 11, 10, 11, 500, 10]
    assert profiled._per_node(events(3, durations)) == {3: pytest.approx(0.0105)}


def test_a_network_that_ran_twice_has_a_time() -> None:
    assert profiled._per_node(events(0, [900, 20])) == {0: pytest.approx(0.02)}
    assert profiled._per_node(events(0, [900])) == {}


def test_what_a_gpu_runs_has_no_time() -> None:
    """The profiler sees how long it takes to start it."""
    seen = [*events(0, [5] * 8, "CUDAExecutionProvider"), *events(1, [5] * 8)]
    assert profiled._per_node(seen).keys() == {1}


def test_other_events_are_passed_over() -> None:
    seen: list[Mapping[str, Any]] = [
        {"name": "model_run", "dur": 5},
        {"dur": 5},
        {"name": "onnx-condense-node-1_fence_before", "dur": 5},
    ]
    assert profiled._per_node([*seen, *events(1, [7] * 8)]) == {1: pytest.approx(0.007)}


# ---- spaces ----


def spent(
    after: onnx.ModelProto, times: Sequence[Mapping[str, float]], monkeypatch: pytest.MonkeyPatch
) -> dict[str, tuple[float, float]]:
    """Of the plain MLP before, with given times of (dense, condensed) nodes."""
    dense = mlp()
    seen = list[str]()

    def profile(proto: onnx.ModelProto, *_: object) -> Mapping[str, float]:
        which = int(len(proto.graph.initializer[0].raw_data) != len(dense.graph.initializer[0].raw_data))
        seen.append("ab"[which])
        return times[which]

    monkeypatch.setattr(profiled, "_profile", profile)
    network = model.load(dense)
    found = profiled.spent(
        dense.SerializeToString(), after.SerializeToString(), network, find_spaces(network), feed(), RUNTIME
    )
    assert "".join(seen) == "abbaab"
    return found


def test_a_space_takes_what_its_writers_and_readers_take(monkeypatch: pytest.MonkeyPatch) -> None:
    dense, narrow = {"h": 8.0, "a": 100.0, "y": 4.0}, {"h": 2.0, "a": 100.0, "y": 1.0}
    found = spent(mlp(3), (dense, narrow), monkeypatch)
    assert found["h"] == (12.0, 3.0)


def test_a_bias_that_was_put_behind_a_reader_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    dense, narrow = {"h": 8.0, "a": 100.0, "y": 4.0}, {"h": 2.0, "a": 100.0, "inner": 1.0, "y": 0.5}
    assert spent(mlp(3, bias="Add"), (dense, narrow), monkeypatch)["h"] == (12.0, 3.5)


def test_spaces_of_nodes_that_are_not_found_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    dense, narrow = {"h": 8.0, "a": 100.0, "y": 4.0}, {"h": 2.0, "a": 100.0, "inner": 1.0, "y": 0.5}
    assert "h" not in spent(mlp(3, bias="Mul"), (dense, narrow), monkeypatch)
    gone = mlp(3)
    gone.graph.node[0].output[0] = gone.graph.node[1].input[0] = "other"
    assert "h" not in spent(gone, (dense, {**narrow, "other": 2.0}), monkeypatch)
    assert "h" not in spent(mlp(3), (dense, {"h": 2.0, "a": 100.0}), monkeypatch)
    assert "h" not in spent(mlp(3), ({"h": 2.0, "a": 100.0}, narrow), monkeypatch)


def test_an_add_of_the_dense_network_is_no_bias_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another node of the dense network wrote what the Add reads."""
    odd = mlp(3)
    odd.graph.node[2].CopyFrom(helper.make_node("MatMul", ["a", "w1"], ["z"]))
    odd.graph.node.append(helper.make_node("Add", ["h", "z"], ["y"]))
    times = {"h": 1.0, "a": 1.0, "y": 1.0, "z": 1.0}
    assert "h" not in spent(odd, (times, times), monkeypatch)


def test_disturbed_sessions_are_outvoted() -> None:
    seen = [{"h": 1.0, "y": 2.0}, {"h": 50.0, "y": 3.0}, {"h": 2.0}]
    assert profiled._medians(seen) == {"h": 2.0}


def test_a_network_that_was_really_condensed() -> None:
    """A channel that is always 0.5 leaves an offset; the reader has no bias, so an Add takes it."""
    dense = mlp()
    first = numpy_helper.to_array(dense.graph.initializer[0]).copy()
    first[:, 2] = 0.0
    dense.graph.initializer[0].CopyFrom(numpy_helper.from_array(first, "w0"))
    result = condense(dense, threads=1, allow_slower=True)
    assert [n.op_type for n in result.model.graph.node] == ["MatMul", "Sigmoid", "MatMul", "Add"]
    network = model.load(dense)
    after = result.model.SerializeToString()
    found = profiled.spent(dense.SerializeToString(), after, network, find_spaces(network), feed(), RUNTIME)
    assert found.keys() == {s.name for s in find_spaces(network).spaces}
    assert min(min(pair) for pair in found.values()) >= 0
