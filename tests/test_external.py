"""Weights in files beside the network: read where they are, and refused with a clear line."""

from __future__ import annotations

import os
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf.message import EncodeError
from mlps import mlp, normal
from onnx import TensorProto, helper, numpy_helper
from outside import cli, dense, names, put, refer

from onnx_condense.errors import ModelError
from onnx_condense.files import save_condensed
from onnx_condense.network import model
from onnx_condense.network.external import Source, byte_count, external_files, external_tensors, stored_tensors
from onnx_condense.network.model import inlined, load, serialized
from onnx_condense.runtime import Runtime

# ---- bad weights ----


def spoiled(folder: Path, spoil: Callable[[Path], None]) -> Path:
    source = put(mlp(), folder)
    spoil(folder)
    return source


def relocate(folder: Path, location: str, offset: object = 0, length: object = 288) -> None:
    """Let W0 [3, 24] lie elsewhere."""
    proto = onnx.load(folder / "net.onnx", load_external_data=False)
    refer(proto.graph.initializer[0], location, offset, length)
    (folder / "net.onnx").write_bytes(proto.SerializeToString())


def linked(folder: Path, to: str) -> None:
    (folder / "w.bin").rename(folder / "real.bin")
    (folder / "w.bin").symlink_to(folder / to)


def outside(folder: Path) -> None:
    (folder.parent / "up.bin").write_bytes(bytes(288))
    relocate(folder, "../up.bin")


def outside_by_link(folder: Path) -> None:
    (folder.parent / "up.bin").write_bytes(bytes(288))
    (folder / "door").symlink_to("..")
    relocate(folder, "door/up.bin")


def folder_there(folder: Path) -> None:
    (folder / "w.bin").unlink()
    (folder / "w.bin").mkdir()


def pipe_there(folder: Path) -> None:
    (folder / "w.bin").unlink()
    os.mkfifo(folder / "w.bin")


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing": (lambda f: (f / "w.bin").unlink(), "is missing"),
    "short": (lambda f: os.truncate(f / "w.bin", 100), "too short: it has 100 bytes, the tensor ends at byte 288"),
    "absolute": (lambda f: relocate(f, str(f / "w.bin")), "outside"),
    "above": (outside, "outside"),
    "above by a link": (outside_by_link, "outside"),
    "link": (lambda f: linked(f, "real.bin"), "symbolic link"),
    "dangling link": (lambda f: linked(f, "none.bin"), "symbolic link"),
    "hard link": (lambda f: os.link(f / "w.bin", f / "other.bin"), "hard links"),
    "folder": (folder_there, "is a folder"),
    "pipe": (pipe_there, "not a regular file"),
    "file as folder": (lambda f: relocate(f, "w.bin/w.bin"), "Not a directory"),
    "past the end": (lambda f: relocate(f, "w.bin", 10**7), "too short"),
    "before the start": (lambda f: relocate(f, "w.bin", -4), "from byte -4"),
    "wrong length": (lambda f: relocate(f, "w.bin", 0, 284), "in 284 bytes from byte 0 on, but its shape takes 288"),
    "no number": (lambda f: relocate(f, "w.bin", "four"), "four"),
    "no place": (lambda f: relocate(f, ""), "no weights file"),
    "half a name": (lambda f: relocate(f, "w.bin\0x"), "no weights file"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_weights_are_one_line(tmp_path: Path, case: str) -> None:
    spoil, words = BAD[case]
    source = spoiled(tmp_path / "in", spoil)
    with pytest.raises(ModelError) as raised:
        load(source)
    error = raised.value
    assert error.code == "model-data"
    assert error.node == "W0"
    assert "\n" not in error.text
    for word in (words, str(source), "tensor W0"):
        assert word in error.text
    if "no weights file" not in words:
        assert ".bin" in error.text.replace(str(source), "")
    assert cli(source, tmp_path / "o.onnx")[0] == 1
    assert names(tmp_path) - {"up.bin"} == {"in"}


def test_weights_without_permission_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = put(mlp(), tmp_path)
    monkeypatch.setattr(os, "access", lambda path, _mode: Path(path).name != "w.bin")
    with pytest.raises(ModelError, match=r"W0: its weights file .*w\.bin can't be read: no permission"):
        load(source)


def test_weights_that_go_while_we_work_are_one_line(tmp_path: Path) -> None:
    network = load(put(mlp(), tmp_path))
    (tmp_path / "w.bin").unlink()
    for read in (lambda: network.constant("W1"), lambda: inlined(network)):
        with pytest.raises(ModelError, match=r"net\.onnx: tensor W\d: its weights file .*w\.bin is missing"):
            read()


# ---- reading ----


def branching(folder: Path) -> onnx.ModelProto:
    """Weights outside in a Constant node and in bodies; a shape outside as well."""
    folder.mkdir(exist_ok=True)
    (folder / "w.bin").write_bytes(np.array([-1, 8], np.int64).tobytes() + normal(64).tobytes())

    def tensor(name: str) -> TensorProto:
        return refer(TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[8, 8]), "w.bin", 16)

    def body(name: str) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(name, TensorProto.FLOAT, [8, 8])
        nodes = [
            helper.make_node("Constant", [], ["c"], value=tensor("c")),
            helper.make_node("Add", ["c", "i"], [name]),
        ]
        return helper.make_graph(nodes, name, [], [out], [tensor("i")])

    shape = refer(TensorProto(name="s", data_type=TensorProto.INT64, dims=[2]), "w.bin", 0, 16)
    nodes = [
        helper.make_node("Reshape", ["x", "s"], ["r"]),
        helper.make_node("Constant", [], ["w"], value=tensor("v")),
        helper.make_node("MatMul", ["r", "w"], ["h"]),
        helper.make_node("If", ["flag"], ["z"], then_branch=body("t"), else_branch=body("e")),
        helper.make_node("MatMul", ["h", "z"], ["y"]),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2, 4]),
        helper.make_tensor_value_info("flag", TensorProto.BOOL, []),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["M", 8])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [shape])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def test_weights_in_nodes_and_bodies_are_read(tmp_path: Path) -> None:
    proto = branching(tmp_path)
    (tmp_path / "net.onnx").write_bytes(proto.SerializeToString())
    network = load(tmp_path / "net.onnx")
    np.testing.assert_array_equal(network.constant("w"), normal(64).reshape(8, 8))
    assert network.shape("r") == (None, 8) or network.shape("r") == ("unk__0", 8)
    whole = inlined(network)
    assert not list(external_tensors(whole))
    assert {t.name for t in external_tensors(network.proto)} == {"s", "v", "c", "i"}
    keys = [key for key, _ in stored_tensors(proto)]
    assert len(keys) == len(set(keys)) == 6
    onnx.checker.check_model(whole, full_check=True)
    # Nothing moved in: neither may the bodies' weights, which have 256 bytes each.
    save_condensed(whole, network, tmp_path / "o.onnx")
    assert not list(external_tensors(onnx.load(tmp_path / "o.onnx", load_external_data=False)))


def test_bad_weights_in_a_body_are_refused(tmp_path: Path) -> None:
    proto = branching(tmp_path)
    body = proto.graph.node[3].attribute[0].g
    refer(body.initializer[0], "none.bin")
    (tmp_path / "net.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match=r"net\.onnx: tensor i: its weights file .*none\.bin is missing"):
        load(tmp_path / "net.onnx")


def test_weights_of_functions_are_found(tmp_path: Path) -> None:
    proto = mlp()
    tensor = refer(TensorProto(name="c", data_type=TensorProto.FLOAT, dims=[2]), "f.bin")
    node = helper.make_node("Constant", [], ["c"], value=tensor)
    proto.functions.append(helper.make_function("own", "F", [], ["c"], [node], [helper.make_opsetid("", 17)]))
    assert external_files(proto) == ("f.bin",)
    (tmp_path / "net.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match=r"tensor c: its weights file .*f\.bin is missing"):
        load(tmp_path / "net.onnx")


def test_only_what_is_asked_for_is_read_and_all_of_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    check = Source.check

    def noting(source: Source, tensor: TensorProto) -> None:
        read.append(tensor.name)
        check(source, tensor)

    monkeypatch.setattr(Source, "check", noting)
    path = put(mlp((3, 80, 80, 2)), tmp_path)
    network = load(path)
    assert network.constant("W1") is not None
    assert read.count("W1") == 2, "once when loaded, to see that it is there"
    assert network.constant("W1") is network.constant("W1")
    assert inlined(network) is inlined(network)
    assert read.count("W1") == 3


@pytest.mark.parametrize(
    ("kind", "count", "size"),
    [
        (TensorProto.FLOAT, 3, 12),
        (TensorProto.INT4, 3, 2),
        (TensorProto.FLOAT4E2M1, 4, 2),
        (TensorProto.UINT2, 5, 2),
        (TensorProto.BFLOAT16, 3, 6),
        (TensorProto.BOOL, 3, 3),
        (TensorProto.COMPLEX64, 3, 24),
        (TensorProto.FLOAT, 0, 0),
    ],
)
def test_sizes_of_elements(kind: int, count: int, size: int) -> None:
    assert byte_count(TensorProto(data_type=kind, dims=[count])) == size
    zeros = np.zeros(count, helper.tensor_dtype_to_np_dtype(kind))
    assert len(numpy_helper.from_array(zeros).raw_data) == size


def test_text_has_no_raw_form() -> None:
    with pytest.raises(ValueError, match="raw"):
        byte_count(TensorProto(data_type=TensorProto.STRING, dims=[1]))


def test_weights_without_a_length_and_with_notes_of_others(tmp_path: Path) -> None:
    """ONNX allows to leave offset and length out; ONNX Runtime writes keys of its own."""
    proto = mlp()
    values = numpy_helper.to_array(proto.graph.initializer[0])
    (tmp_path / "w.bin").write_bytes(values.tobytes() + b"padding")
    refer(proto.graph.initializer[0], "w.bin").external_data.add(key="prepacked_0", value="1|2|3")
    (tmp_path / "net.onnx").write_bytes(proto.SerializeToString())
    np.testing.assert_array_equal(load(tmp_path / "net.onnx").constant("W0"), values)


# ---- over 2 GiB ----


@pytest.fixture
def tiny_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if protobuf held no more than 2000 bytes."""
    monkeypatch.setattr(model, "PROTOBUF_LIMIT", 2000)


@pytest.mark.usefixtures("tiny_limit")
def test_a_network_over_the_limit_with_nothing_to_remove_is_copied(tmp_path: Path) -> None:
    source = put(mlp(), tmp_path / "in")
    assert source.stat().st_size < 2000 < (tmp_path / "in" / "w.bin").stat().st_size
    (tmp_path / "out").mkdir()
    code, error = cli(source, tmp_path / "out" / "o.onnx", "--quiet")
    assert (code, error) == (0, "")
    assert (tmp_path / "out" / "o.onnx").read_bytes() == source.read_bytes()
    assert (tmp_path / "out" / "w.bin").read_bytes() == (tmp_path / "in" / "w.bin").read_bytes()


@pytest.mark.usefixtures("tiny_limit")
@pytest.mark.parametrize("calibrated", [True, False])
def test_a_network_over_the_limit_is_not_condensed(tmp_path: Path, calibrated: bool) -> None:
    source = put(dense(), tmp_path / "in")
    np.save(tmp_path / "in" / "x.npy", normal(300, 3))
    options = ("--calibration", tmp_path / "in" / "x.npy") if calibrated else ()
    code, error = cli(source, tmp_path / "o.onnx", *options)
    assert code == 1
    assert error.count("\n") == 1
    assert str(source) in error
    assert "over 2 GiB can't be condensed" in error
    assert names(tmp_path) == {"in"}


def test_a_file_over_the_limit_is_refused_unread(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").touch()
    os.truncate(tmp_path / "net.onnx", 2**31)
    code, error = cli(tmp_path / "net.onnx", tmp_path / "o.onnx")
    assert code == 1
    assert error.count("\n") == 1
    assert "external data" in error
    assert names(tmp_path) == {"net.onnx"}


@pytest.mark.usefixtures("tiny_limit")
def test_what_is_over_the_limit_is_not_serialized() -> None:
    with pytest.raises(ModelError) as raised:
        serialized(mlp())
    assert raised.value.code == "model-too-large"


def test_what_protobuf_gives_up_on_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """A real one takes several GB and half a minute."""

    def give_up(*_: object, **__: object) -> bytes:
        raise EncodeError("Failed to serialize proto")

    small = mlp()
    large: Any = types.SimpleNamespace(SerializeToString=give_up)
    monkeypatch.setattr(onnx.checker, "check_model", give_up)
    for use in (lambda: serialized(large), lambda: Runtime().session(large), lambda: load(small)):
        with pytest.raises(ModelError, match="over 2 GiB") as raised:
            use()
        assert raised.value.code == "model-too-large"
