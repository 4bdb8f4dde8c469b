"""Reading networks, constants wherever they are stored, and copies that keep every field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import builders
import numpy as np
import onnx
import pytest
from builders import base_layers, mlp
from onnx import TensorProto, helper, numpy_helper

from onnx_condense.errors import ModelError, UsageError
from onnx_condense.files import copy_unchanged, write_atomically
from onnx_condense.network.external import external_files
from onnx_condense.network.model import (
    Network,
    inlined,
    load,
    replace_tensor,
    serialized,
)
from onnx_condense.spaces import find_spaces

F = np.float32


def small() -> onnx.ModelProto:
    return mlp(base_layers(np.random.default_rng(0), (6, 5)), "Relu")


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda p: p / "none.onnx", "model-missing"),
        (lambda p: p, "model-not-a-file"),
        (lambda p: _written(p / "a.onnx", b""), "model-not-onnx"),
        (lambda p: _written(p / "a.onnx", b"\x00\xffnot onnx"), "model-not-onnx"),
        (lambda p: _written(p / "a.onnx", small().SerializeToString()[:-40]), "model-not-onnx"),
        (lambda p: _written(p / "a.onnx", _invalid().SerializeToString()), "model-invalid"),
    ],
)
def test_files_that_are_no_network(tmp_path: Path, make: object, code: str) -> None:
    assert callable(make)
    with pytest.raises(ModelError) as raised:
        load(make(tmp_path))
    assert raised.value.code == code
    assert "\n" not in raised.value.text


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def _invalid() -> onnx.ModelProto:
    proto = small()
    proto.graph.node[0].input[0] = "nowhere"
    return proto


def external(folder: Path) -> Path:
    proto = small()
    onnx.save(proto, folder / "net.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    return folder / "net.onnx"


def test_external_weights(tmp_path: Path) -> None:
    network = load(external(tmp_path))
    assert external_files(network.proto) == ("weights.bin",)
    assert network.shape("w0") == (6, 7)
    np.testing.assert_array_equal(network.constant("w0"), load(small()).constant("w0"))
    assert serialized(inlined(network)) == serialized(inlined(load(inlined(network))))
    (tmp_path / "other").mkdir()
    copy_unchanged(network, tmp_path / "other" / "copy.onnx")
    assert (tmp_path / "other" / "copy.onnx").read_bytes() == (tmp_path / "net.onnx").read_bytes()
    np.testing.assert_array_equal(load(tmp_path / "other" / "copy.onnx").constant("w1"), network.constant("w1"))


def test_missing_external_weights(tmp_path: Path) -> None:
    path = external(tmp_path)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelError) as raised:
        load(path)
    assert raised.value.code == "model-data"


def test_external_weights_in_constant_nodes_are_found() -> None:
    tensor = onnx.TensorProto(name="c", data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="deep.bin")
    out = helper.make_tensor_value_info("o", TensorProto.FLOAT, [2])
    body = helper.make_graph([helper.make_node("Constant", [], ["o"], value=tensor)], "body", [], [out])
    node = helper.make_node("If", ["flag"], ["y"], then_branch=body, else_branch=body)
    proto = helper.make_model(helper.make_graph([node], "g", [], []))
    assert external_files(proto) == ("deep.bin",)


def test_strings_need_not_be_text() -> None:
    proto = small()
    proto.graph.node[0].attribute.add(name="note", type=onnx.AttributeProto.STRING, s=b"\xff\xfe")
    body = helper.make_graph([proto.graph.node[0]], "body", [], [])
    proto.graph.node[1].attribute.add(name="body", type=onnx.AttributeProto.GRAPH, g=body)
    network = Network(proto)
    assert [n.op for n in network.nodes] == ["Gemm", "Relu", "Gemm", "Relu", "Gemm"]
    assert find_spaces(network).linear
    assert proto.graph.node[0].attribute[-1].s == b"\xff\xfe"


@pytest.mark.parametrize(
    ("attribute", "value"), [("value_float", 2.0), ("value_floats", [1.0, 2.0]), ("value_ints", [1, 2])]
)
def test_constants_as_plain_numbers(attribute: str, value: Any) -> None:
    fields: dict[str, Any] = {attribute: value}
    nodes = [
        helper.make_node("Constant", [], ["c"], **fields),
        helper.make_node("Identity", ["c"], ["d"]),
        helper.make_node("Relu", ["x"], ["y"]),
    ]
    network = load(builders.model(nodes, {}, {"x": [2]}, {"y": [2]}))
    for name in ("c", "d"):
        found = network.constant(name)
        assert found is not None
        assert found.tolist() == value
    assert network.constant("x") is None
    assert network.root("d") == "c"
    assert network.shape("d") == np.shape(np.asarray(value))


def test_default_values_that_callers_may_override_are_not_constant() -> None:
    proto = small()
    proto.graph.input.append(helper.make_tensor_value_info("w0", TensorProto.FLOAT, [6, 7]))
    assert load(proto).constant("w0") is None
    assert load(proto).inputs == ("x",)


def test_nodes_are_named_by_name_or_output() -> None:
    network = load(small())
    assert [n.place for n in network.nodes][:2] == ["fc0 (Gemm)", "h0 (Relu)"]


def test_writing_is_all_or_nothing(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a.onnx", b"data")
    assert (tmp_path / "a.onnx").read_bytes() == b"data"
    with pytest.raises(UsageError):
        write_atomically(tmp_path / "no" / "a.onnx", b"data")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError):
        write_atomically(tmp_path / "folder", b"data")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.onnx", "folder"]


def test_scalars_keep_their_rank() -> None:
    """numpy_helper must not see them as vectors."""
    tensor = numpy_helper.from_array(np.array(1.0, F), "s")
    replace_tensor(tensor, np.array(2.0))
    assert list(tensor.dims) == []
    assert numpy_helper.to_array(tensor) == 2.0


def test_weights_of_another_network_are_not_overwritten(tmp_path: Path) -> None:
    network = load(external(tmp_path))
    other = tmp_path / "other"
    other.mkdir()
    (other / "weights.bin").write_bytes(b"somebody else's")
    with pytest.raises(UsageError, match=r"weights\.bin"):
        copy_unchanged(network, other / "copy.onnx")
    assert (other / "weights.bin").read_bytes() == b"somebody else's"
    assert {p.name for p in other.iterdir()} == {"weights.bin"}
    (other / "weights.bin").write_bytes((tmp_path / "weights.bin").read_bytes())
    copy_unchanged(network, other / "copy.onnx")
    assert load(other / "copy.onnx")


def test_the_ending_of_a_file_means_nothing(tmp_path: Path) -> None:
    for name in ("net.json", "net.onnxtxt", "net.textproto"):
        assert load(_written(tmp_path / name, small().SerializeToString())).inputs == ("x",)
        with pytest.raises(ModelError) as raised:
            load(_written(tmp_path / name, b"{ nothing of ours"))
        assert raised.value.code == "model-not-onnx"


def test_links_are_written_through(tmp_path: Path) -> None:
    (tmp_path / "real.onnx").write_bytes(b"old")
    (tmp_path / "link.onnx").symlink_to("real.onnx")
    write_atomically(tmp_path / "link.onnx", b"new")
    assert (tmp_path / "link.onnx").is_symlink()
    assert (tmp_path / "real.onnx").read_bytes() == b"new"


def test_shapes_behind_a_scaler_are_known() -> None:
    """Pipelines of scikit-learn start with one; onnx itself infers nothing for it."""
    nodes = [
        helper.make_node("Scaler", ["x"], ["s"], domain="ai.onnx.ml", scale=[2.0], offset=[1.0]),
        helper.make_node("MatMul", ["s", "w"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.INT64, ["N", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])],
        [onnx.numpy_helper.from_array(np.ones((3, 2), F), "w")],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("ai.onnx.ml", 3)]
    network = load(helper.make_model(graph, opset_imports=opsets, ir_version=9))
    assert network.shape("s") == ("N", 3)
    assert network.types["s"] == TensorProto.FLOAT
    assert [s.width for s in find_spaces(network).spaces] == [2]
