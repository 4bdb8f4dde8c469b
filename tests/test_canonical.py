"""Networks that ONNX Runtime loads though the standard asks for more: out of order, undeclared, and beyond help."""

from __future__ import annotations

import itertools
from pathlib import Path

import mlps
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from builders import Form, Planting, assert_same_outputs, base_layers, lossless, mlp, model, plant, text_model
from onnx import helper
from onnxruntime.transformers.float16 import convert_float_to_float16

from onnx_condense import condense
from onnx_condense.errors import ModelError
from onnx_condense.network.model import load, serialized

NODE = helper.make_node
PLAIN = Form()
CHAIN = """<ir_version: 9, opset_import: ["" : 17]>
g (float[N,3] x) => (float[N,3] y) { p = Relu(x) q = Neg(p) r = Abs(x) s = Add(q, r) y = Tanh(s) }"""


def planted(form: Form = PLAIN, copies: int = 3) -> onnx.ModelProto:
    """Two hidden layers of which 6 and 5 units are different."""
    rng = np.random.default_rng(2)
    return mlp(plant(rng, base_layers(rng, [6, 5]), Planting(copies=copies)), "Tanh", form)


def reordered(proto: onnx.ModelProto, order: list[int]) -> onnx.ModelProto:
    """The same with its nodes in another order."""
    copy = onnx.ModelProto.FromString(proto.SerializeToString())
    del copy.graph.node[:]
    copy.graph.node.extend(proto.graph.node[at] for at in order)
    return copy


def shuffled(proto: onnx.ModelProto, seed: int = 0) -> onnx.ModelProto:
    """The same with its nodes in any order, which is not the right one."""
    made = reordered(proto, np.random.default_rng(seed).permutation(len(proto.graph.node)).tolist())
    with pytest.raises(onnx.checker.ValidationError, match="topologically"):
        onnx.checker.check_model(made)
    return made


def results(proto: onnx.ModelProto) -> list[str]:
    return [node.output[0] for node in proto.graph.node]


# ---- order ----


@pytest.mark.parametrize(
    ("order", "sorted_to"),
    [
        ([0, 1, 2, 3, 4], "pqrsy"),
        ([2, 0, 1, 3, 4], "rpqsy"),  # in order, though not in that of the text
        ([1, 2, 3, 4, 0], "pqrsy"),
        ([0, 1, 3, 4, 2], "pqrsy"),
        ([4, 3, 2, 1, 0], "rpqsy"),
        ([2, 3, 1, 0, 4], "rpqsy"),
    ],
)
def test_nodes_stay_where_they_are_and_what_they_need_comes_before(order: list[int], sorted_to: str) -> None:
    network = load(reordered(text_model(CHAIN), order))
    assert "".join(results(network.proto)) == sorted_to
    assert [node.result for node in network.nodes] == list(sorted_to)


def test_what_is_in_order_is_not_copied() -> None:
    proto = text_model(CHAIN)
    network = load(proto)
    assert network.proto is proto
    assert network.given is proto


def test_the_network_given_is_not_changed() -> None:
    proto = shuffled(planted())
    before = proto.SerializeToString()
    network = load(proto)
    assert network.proto is not proto
    assert network.given is proto
    assert proto.SerializeToString() == before


@pytest.mark.parametrize("seed", range(3))
def test_redundancy_is_found_in_any_order_and_written_in_order(seed: int) -> None:
    dense = shuffled(planted(Form(constants=seed == 2)), seed)
    done = lossless(dense)
    assert done.widths() == [6, 5]
    onnx.checker.check_model(done.proto)
    assert_same_outputs(dense, done.proto)


def test_a_long_chain_backwards() -> None:
    """Longer than Python may recurse."""
    names = ["x", *(f"t{i}" for i in range(3000)), "y"]
    nodes = [NODE("Relu", [a], [b]) for a, b in itertools.pairwise(names)]
    proto = model(nodes, {}, {"x": ["N", 3]}, {"y": ["N", 3]})
    assert results(load(reordered(proto, list(range(3001))[::-1])).proto) == names[1:]


BODIES = """<ir_version: 9, opset_import: ["" : 17]>
g (float[3] x, bool c) => (float[3] y) {
  p = Relu(x)
  y = If(c) <
    then_branch = t () => (float[3] q) { o = Neg(p) q = Abs(o) },
    else_branch = e () => (float[3] r) { r = Neg(x) }
  >
}"""


def test_bodies_need_what_they_take_from_outside() -> None:
    proto = reordered(text_model(BODIES), [1, 0])
    ort.InferenceSession(proto.SerializeToString())
    assert results(load(proto).proto) == ["p", "y"]


def test_bodies_are_put_in_order_too() -> None:
    proto = text_model(BODIES)
    body = proto.graph.node[1].attribute[0].g
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in body.node]
    del body.node[:]
    body.node.extend(nodes[::-1])
    sorted_body = load(proto).proto.graph.node[1].attribute[0].g
    assert [node.output[0] for node in sorted_body.node] == ["o", "q"]


def test_what_a_body_calls_by_the_name_of_something_else_is_its_own() -> None:
    """A body that makes an h of its own does not wait for the h outside, which waits for the body."""
    inner = helper.make_graph(
        [NODE("Neg", ["x"], ["h"]), NODE("Abs", ["h"], ["o"])], "b", [], [helper.make_tensor_value_info("o", 1, [3])]
    )
    nodes = [
        NODE("Relu", ["h"], ["y"]),
        NODE("Neg", ["t"], ["h"]),
        NODE("If", ["c"], ["t"], then_branch=inner, else_branch=inner),
        NODE("Greater", ["x", "x"], ["d"]),
        NODE("ReduceMax", ["x"], ["m"], keepdims=0),
        NODE("Greater", ["m", "m"], ["c"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(nodes, "g", [value("x", 1, [3])], [value("y", 1, [3])])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    order = results(load(proto).proto)
    assert order.index("t") < order.index("h") < order.index("y")


@pytest.mark.parametrize("ahead", [0, 1])
def test_a_circle_is_refused_by_the_name_of_a_node_in_it(ahead: int) -> None:
    nodes = [
        NODE("Relu", ["x"], ["a"], name="before"),
        NODE("Add", ["a", "c"], ["b"], name="in"),
        NODE("Neg", ["b"], ["c"], name="in"),
        NODE("Abs", ["c"], ["y"], name="behind"),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(nodes[ahead:] + nodes[:ahead], "g", [value("x", 1, [3])], [value("y", 1, [3])])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    with pytest.raises(ModelError, match=r"node in \((Add|Neg)\) needs its own result") as raised:
        load(proto)
    assert raised.value.code == "model-invalid"
    assert "\n" not in raised.value.text


def test_what_nobody_makes_is_still_refused() -> None:
    proto = reordered(text_model(CHAIN), [4, 3, 2, 1])
    with pytest.raises(ModelError) as raised:
        load(proto)
    assert raised.value.code == "model-invalid"


def test_onnxruntimes_half_precision_is_taken() -> None:
    """It puts the casts of the inputs behind everything else."""
    dense = planted()
    half = convert_float_to_float16(onnx.ModelProto.FromString(dense.SerializeToString()), keep_io_types=True)
    with pytest.raises(onnx.checker.ValidationError, match="topologically"):
        onnx.checker.check_model(half)
    done = lossless(half)
    assert done.widths() == [6, 5]
    assert_same_outputs(dense, done.proto, 2.0**-10)


# ---- files ----


@pytest.mark.parametrize("outside", [False, True])
def test_unchanged_is_the_file_as_it_was(tmp_path: Path, outside: bool) -> None:
    path, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save(shuffled(mlps.mlp()), path, save_as_external_data=outside, location="in.data", size_threshold=0)
    before = path.read_bytes()
    found = condense(path, threads=1)
    found.save(out)
    assert found.report.status == "unchanged"
    assert out.read_bytes() == path.read_bytes() == before
    assert found.report.bytes is not None
    assert found.report.bytes.before == len(before) + sum(f.stat().st_size for f in tmp_path.glob("*.data"))


def test_unchanged_is_the_network_given(tmp_path: Path) -> None:
    dense, out = shuffled(mlps.mlp()), tmp_path / "out.onnx"
    found = condense(dense, threads=1)
    found.save(out)
    assert found.model is dense
    assert out.read_bytes() == serialized(dense)


def test_weights_outside_of_an_unsorted_network(tmp_path: Path) -> None:
    path, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    dense = shuffled(planted())
    onnx.save(onnx.ModelProto.FromString(dense.SerializeToString()), path, save_as_external_data=True, size_threshold=0)
    found = condense(path, threads=1, allow_slower=True)
    found.save(out)
    assert [s.after for s in found.report.spaces][:2] == [6, 5]
    onnx.checker.check_model(str(out), full_check=True)
    assert_same_outputs(dense, onnx.load(out))


# ---- initializers that are no inputs ----


def bare(declared: int = 0, copies: int = 3) -> onnx.ModelProto:
    """IR 3, with so many of its initializers declared."""
    proto = planted(Form(ir=3, opset=8), copies)
    del proto.graph.input[1 + declared :]
    with pytest.raises(onnx.checker.ValidationError):
        onnx.checker.check_model(proto)
    return proto


@pytest.mark.parametrize("declared", [0, 2])
def test_initializers_are_declared_before_ir_4(declared: int) -> None:
    proto = bare(declared=declared)
    network = load(proto)
    assert network.inputs == ("x",)
    assert [i.name for i in network.given.graph.input] == ["x", "w0", "b0"][: 1 + declared]
    assert sorted(i.name for i in network.proto.graph.input) == sorted(
        ["x", *(t.name for t in proto.graph.initializer)]
    )
    assert network.constant("w0") is not None
    done = lossless(proto)
    assert done.widths() == [6, 5]
    assert_same_outputs(proto, done.proto)


def test_initializers_stay_undeclared_from_ir_4_on() -> None:
    proto = planted()
    assert load(proto).proto is proto


def test_a_bare_network_that_is_unchanged_stays_bare(tmp_path: Path) -> None:
    path, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save(bare(copies=0), path)
    found = condense(path, threads=1)
    found.save(out)
    assert found.report.status == "unchanged"
    assert out.read_bytes() == path.read_bytes()
    assert [i.name for i in found.model.graph.input] == ["x"]
    dense = bare(copies=0)
    change = condense(dense, threads=1).report.bytes
    assert change is not None
    assert change.before == change.after == dense.ByteSize()


def test_a_bare_network_of_which_something_goes(tmp_path: Path) -> None:
    path, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save(bare(), path)
    condense(path, threads=1, allow_slower=True).save(out)
    onnx.checker.check_model(str(out))
    assert [i.name for i in ort.InferenceSession(str(out)).get_inputs()] == ["x"]
    assert_same_outputs(onnx.load(path), onnx.load(out))


# ---- beyond help ----


def normalised() -> onnx.ModelProto:
    """A layer normalisation in the ops that opset 12 has."""
    nodes = [
        NODE("ReduceMean", ["x"], ["m"], axes=[-1]),
        NODE("Sub", ["x", "m"], ["c"]),
        NODE("Pow", ["c", "two"], ["q"]),
        NODE("ReduceMean", ["q"], ["v"], axes=[-1]),
        NODE("Add", ["v", "eps"], ["e"]),
        NODE("Sqrt", ["e"], ["d"]),
        NODE("Div", ["c", "d"], ["n"]),
        NODE("Mul", ["n", "g"], ["k"]),
        NODE("Add", ["k", "b"], ["y"]),
    ]
    f = np.float32
    stored = {"two": np.array(2, f), "eps": np.array(1e-5, f), "g": np.ones(8, f), "b": np.ones(8, f)}
    return model(nodes, stored, {"x": ["N", 8]}, {"y": ["N", 8]}, Form(opset=12))


def test_what_onnxruntime_made_of_an_old_opset_is_refused_with_advice(tmp_path: Path) -> None:
    path = tmp_path / "optimized.onnx"
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 3
    ort.InferenceSession(normalised().SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert "LayerNormalization" in [node.op_type for node in onnx.load(path).graph.node]
    advice = "optimized by ONNX Runtime: condense first, optimize after .LayerNormalization is not in its opset"
    with pytest.raises(ModelError, match=advice) as raised:
        load(path)
    assert raised.value.code == "model-invalid"
    assert "\n" not in raised.value.text


@pytest.mark.parametrize(("op", "domain"), [("LayerNormalization", "com.other"), ("Nonsense", "com.other")])
def test_others_get_no_such_advice(op: str, domain: str) -> None:
    proto = normalised()
    proto.graph.node[5].op_type = op
    proto.opset_import.append(helper.make_opsetid(domain, 1))
    with pytest.raises(ModelError) as raised:
        load(proto)
    assert op in raised.value.text
    assert "optimize" not in raised.value.text


def test_other_faults_of_its_files_get_no_such_advice() -> None:
    proto = normalised()
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    load(proto)
    proto.graph.node[0].input[0] = "nowhere"
    with pytest.raises(ModelError) as raised:
        load(proto)
    assert "optimize" not in raised.value.text
