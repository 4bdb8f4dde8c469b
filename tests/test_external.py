"""Weights in files beside the network: read where they are, written where they were, refused with a clear line."""

from __future__ import annotations

import errno
import os
import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf.message import EncodeError
from mlps import mlp, normal, plant_copies
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

import onnx_condense
from onnx_condense import files
from onnx_condense.cli import app
from onnx_condense.errors import ModelError, UsageError
from onnx_condense.files import copy_unchanged, save_condensed, weights_of
from onnx_condense.network import model
from onnx_condense.network.external import Source, byte_count, external_files, external_tensors, stored_tensors
from onnx_condense.network.model import inlined, load, serialized
from onnx_condense.runtime import Runtime, run

X = normal(40, 3)


def dense() -> onnx.ModelProto:
    """W1 has more than 1 KiB before and after its copies go."""
    return plant_copies(mlp((3, 24, 20, 2)), 0, 10)


def put(proto: onnx.ModelProto, folder: Path, name: str = "net.onnx", threshold: int = 0) -> Path:
    folder.mkdir(exist_ok=True)
    onnx.save(proto, folder / name, save_as_external_data=True, location="w.bin", size_threshold=threshold)
    return folder / name


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that can be condensed, all its weights outside; not to be changed."""
    return put(dense(), tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def found(source: Path) -> onnx_condense.Condensed:
    """It condensed (timing takes a while, so only once)."""
    return condense(source)


def condense(network: Path | onnx.ModelProto) -> onnx_condense.Condensed:
    found = onnx_condense.condense(network, allow_slower=True)
    assert found.report.status == "condensed"
    return found


def answers(path: Path) -> list[Any]:
    return run(Runtime().session(path, optimize=False), {"x": X})


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def cli(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200", "NO_COLOR": "1"})
    return result.exit_code, result.stderr


# ---- where results go ----


def test_weights_that_were_outside_stay_outside(source: Path, found: onnx_condense.Condensed, tmp_path: Path) -> None:
    out = tmp_path
    found.save(out / "slim.onnx")
    (weights,) = names(out) - {"slim.onnx"}
    assert re.fullmatch(r"slim\.[0-9a-f]{8}\.data", weights)
    saved = onnx.load(out / "slim.onnx", load_external_data=False)
    assert external_files(saved) == (weights,)
    # W0, b0 ... are small; W1 is [24, 20] again.
    assert [(t.name, list(t.dims)) for t in external_tensors(saved)] == [("W1", [24, 20])]
    onnx.checker.check_model(str(out / "slim.onnx"), full_check=True)
    np.testing.assert_allclose(answers(out / "slim.onnx")[0], answers(source)[0], atol=1e-5)


def test_the_same_network_gives_the_same_bytes(source: Path, found: onnx_condense.Condensed, tmp_path: Path) -> None:
    for folder, one in (("a", found), ("b", condense(source))):
        (tmp_path / folder).mkdir()
        one.save(tmp_path / folder / "slim.onnx")
    assert names(tmp_path / "a") == names(tmp_path / "b")
    for name in names(tmp_path / "a"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_command_writes_what_save_writes(
    source: Path, found: onnx_condense.Condensed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From another folder than the network's, too."""
    (tmp_path / "in").mkdir()
    for path in source.parent.iterdir():
        (tmp_path / "in" / path.name).write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    code, error = cli("in/net.onnx", "slim.onnx", "--allow-slower")
    assert (code, error) == (0, "")
    (tmp_path / "api").mkdir()
    found.save(tmp_path / "api" / "slim.onnx")
    assert names(tmp_path) == {"in", "api"} | names(tmp_path / "api")
    for name in names(tmp_path / "api"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "api" / name).read_bytes()


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    source = put(dense(), tmp_path)
    before = names(tmp_path)
    assert cli(source, tmp_path / "slim.onnx", "--dry-run")[0] == 0
    assert names(tmp_path) == before


def test_weights_inside_stay_inside(tmp_path: Path) -> None:
    onnx.save(dense(), tmp_path / "net.onnx")
    condense(tmp_path / "net.onnx").save(tmp_path / "slim.onnx")
    assert names(tmp_path) == {"net.onnx", "slim.onnx"}


def mixed(folder: Path) -> Path:
    """Of two large tensors one is outside."""
    proto = mlp((3, 40, 41, 2))
    path = put(proto, folder, threshold=10**9)
    values = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    (folder / "w.bin").write_bytes(values["W2"].tobytes())
    refer(next(t for t in proto.graph.initializer if t.name == "W2"), "w.bin", 0, values["W2"].nbytes)
    path.write_bytes(proto.SerializeToString())
    return path


def refer(tensor: TensorProto, location: str, offset: object = None, length: object = None) -> TensorProto:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))
    return tensor


def test_each_tensor_stays_where_it_was_and_new_ones_go_by_size(tmp_path: Path) -> None:
    network = load(mixed(tmp_path / "in"))
    result = onnx.ModelProto()
    result.CopyFrom(inlined(network))
    for size in (255, 256):
        result.graph.initializer.append(numpy_helper.from_array(np.zeros(size, np.float32), f"new{size}"))
    result.graph.initializer.append(helper.make_tensor("fields", TensorProto.FLOAT, [300], np.arange(300.0)))
    result.graph.initializer.append(
        TensorProto(name="text", data_type=TensorProto.STRING, dims=[300], string_data=[b"word"] * 300)
    )
    # 82 numbers: outside before, but too few to go out again.
    save_condensed(result, network, tmp_path / "o.onnx")
    saved = onnx.load(tmp_path / "o.onnx", load_external_data=False)
    assert [t.name for t in external_tensors(saved)] == ["new256", "fields"]
    again = onnx.load(tmp_path / "o.onnx")
    for tensor, other in zip(again.graph.initializer, result.graph.initializer, strict=True):
        np.testing.assert_array_equal(numpy_helper.to_array(tensor), numpy_helper.to_array(other))
    assert result.graph.initializer[-2].float_data, "the result in memory is left as it is"


def test_large_tensors_start_on_pages_and_others_on_cache_lines(tmp_path: Path) -> None:
    network = load(put(dense(), tmp_path / "in"))
    result = onnx.ModelProto()
    result.CopyFrom(inlined(network))
    for name, size in (("odd", 1027), ("large", 2**20), ("small", 1024)):
        result.graph.initializer.append(numpy_helper.from_array(np.ones(size, np.uint8), name))
    save_condensed(result, network, tmp_path / "o.onnx")
    saved = onnx.load(tmp_path / "o.onnx", load_external_data=False)
    places = {t.name: {e.key: e.value for e in t.external_data} for t in external_tensors(saved)}
    offsets = {name: int(entries["offset"]) for name, entries in places.items()}
    assert offsets["large"] % 4096 == 0
    assert offsets["large"] > offsets["odd"]
    assert all(offset % 64 == 0 for offset in offsets.values())
    assert {int(places[n]["length"]) for n in ("odd", "large", "small")} == {1027, 2**20, 1024}
    size = (tmp_path / places["small"]["location"]).stat().st_size
    assert size == offsets["small"] + 1024


def test_only_small_weights_left_need_no_file(tmp_path: Path) -> None:
    source = put(plant_copies(mlp((3, 9, 8, 2)), 0, 4), tmp_path / "in")
    condense(source).save(tmp_path / "o.onnx")
    assert names(tmp_path) == {"in", "o.onnx"}
    assert onnx.load(tmp_path / "o.onnx", load_external_data=False).graph.initializer[0].raw_data


def test_weights_of_a_proto_are_found_from_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = put(dense(), tmp_path)
    monkeypatch.chdir(tmp_path)
    proto = onnx.load(source, load_external_data=False)
    (tmp_path / "out").mkdir()
    save_condensed(inlined(load(proto)), load(proto), Path("out/slim.onnx"))
    assert len(names(tmp_path / "out")) == 2
    copy_unchanged(load(proto), tmp_path / "out" / "copy.onnx")
    np.testing.assert_array_equal(answers(tmp_path / "out" / "copy.onnx")[0], answers(source)[0])


def test_a_weights_file_with_this_content_is_used_again(found: onnx_condense.Condensed, tmp_path: Path) -> None:
    found.save(tmp_path / "o.onnx")
    (weights,) = tmp_path.glob("o.*.data")
    before = weights.stat()
    (tmp_path / "o.00000000.data").write_bytes(b"of a former run")
    found.save(tmp_path / "o.onnx")
    after = weights.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert (tmp_path / "o.00000000.data").read_bytes() == b"of a former run"


@pytest.mark.parametrize("kind", ["other", "folder", "link", "hard link"])
def test_something_else_with_the_name_of_the_weights_is_not_touched(
    found: onnx_condense.Condensed, tmp_path: Path, kind: str
) -> None:
    found.save(tmp_path / "o.onnx")
    (weights,) = tmp_path.glob("o.*.data")
    (tmp_path / "o.onnx").unlink()
    data = weights.read_bytes()
    weights.unlink()
    if kind == "other":
        weights.write_bytes(bytes(len(data)))
    elif kind == "folder":
        weights.mkdir()
    else:
        (tmp_path / "real").write_bytes(data)
        (weights.symlink_to if kind == "link" else weights.hardlink_to)(tmp_path / "real")
    before = names(tmp_path)
    with pytest.raises(UsageError, match=re.escape(weights.name)) as raised:
        found.save(tmp_path / "o.onnx")
    assert raised.value.code == "out-exists"
    assert names(tmp_path) == before


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("known", [True, False], ids=["reused", "fresh"])
def test_where_the_network_can_not_be_written_no_weights_stay(
    found: onnx_condense.Condensed, tmp_path: Path, known: bool
) -> None:
    if known:
        found.save(tmp_path / "o.onnx")
        (tmp_path / "o.onnx").unlink()
    (tmp_path / "o.onnx").mkdir()
    before = names(tmp_path)
    with pytest.raises(UsageError) as raised:
        found.save(tmp_path / "o.onnx")
    assert raised.value.code == "out-not-writable"
    assert names(tmp_path) == before


@pytest.mark.parametrize("at", ["fsync", "chmod"])
def test_a_full_disk_leaves_nothing_behind(
    found: onnx_condense.Condensed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    monkeypatch.setattr(os if at == "fsync" else Path, at, full)
    with pytest.raises(UsageError, match="No space left"):
        found.save(tmp_path / "o.onnx")
    assert names(tmp_path) == set()


def test_an_interrupt_leaves_nothing_behind(
    found: onnx_condense.Condensed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def interrupt(_path: Path, _data: bytes) -> None:
        assert list(tmp_path.glob("o.*.data")), "the weights come first"
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "write_atomically", interrupt)
    with pytest.raises(KeyboardInterrupt):
        found.save(tmp_path / "o.onnx")
    assert names(tmp_path) == set()


def test_a_name_that_is_no_text_is_refused(found: onnx_condense.Condensed, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as raised:
        found.save(tmp_path / os.fsdecode(b"\xff.onnx"))
    assert raised.value.code == "out-name"
    assert raised.value.text.isprintable()
    assert names(tmp_path) == set()


# ---- unchanged copies ----


def test_a_copy_that_fails_takes_its_weights_back(tmp_path: Path) -> None:
    proto = mlp()
    values = numpy_helper.to_array(proto.graph.initializer[0])
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "deep" / "w.bin").write_bytes(values.tobytes())
    refer(proto.graph.initializer[0], "deep/w.bin")
    (tmp_path / "in" / "net.onnx").write_bytes(proto.SerializeToString())
    network = load(tmp_path / "in" / "net.onnx")
    out = tmp_path / "out"
    (out / "o.onnx").mkdir(parents=True)
    with pytest.raises(UsageError):
        copy_unchanged(network, out / "o.onnx")
    assert names(out) == {"o.onnx"}
    (out / "o.onnx").rmdir()
    copy_unchanged(network, out / "o.onnx")
    assert (out / "o.onnx").read_bytes() == (tmp_path / "in" / "net.onnx").read_bytes()
    np.testing.assert_array_equal(load(out / "o.onnx").constant("W0"), values)


@pytest.mark.parametrize("name", ["in/w.bin", "in/../in/w.bin", "out/w.bin", "in/link"])
@pytest.mark.parametrize("option", ["OUT", "--json"])
def test_outputs_in_the_place_of_weights_are_refused_before_work(tmp_path: Path, name: str, option: str) -> None:
    source = put(dense(), tmp_path / "in")
    (tmp_path / "out").mkdir()
    (tmp_path / "in" / "link").symlink_to("w.bin")
    before = (tmp_path / "in" / "w.bin").read_bytes()
    target = tmp_path / name
    arguments = (target, "--force") if option == "OUT" else (tmp_path / "out" / "o.onnx", "--json", target)
    code, error = cli(source, *arguments)
    assert code == 2
    assert error.count("\n") == 1
    assert option in error
    assert "weights" in error
    assert names(tmp_path / "out") == set()
    assert (tmp_path / "in" / "w.bin").read_bytes() == before
    if option == "OUT":
        with pytest.raises(UsageError, match="weights"):
            save_condensed(mlp(), load(source), target)
        with pytest.raises(UsageError, match="weights"):
            copy_unchanged(load(source), target)


def test_json_may_not_get_the_name_of_weights_to_come(source: Path, tmp_path: Path) -> None:
    code, error = cli(source, tmp_path / "o.onnx", "--json", tmp_path / "o.0a1b2c3d.data")
    assert code == 2
    assert "--json" in error
    assert names(tmp_path) == set()
    for name in ("o", "o.0a1b2c3.data", "p.0a1b2c3d.data", "o.onnx.data"):
        files.check_target(tmp_path / name, "--json", tmp_path / "o.onnx", source.parent, ("w.bin",))
    files.check_target(tmp_path / "o.0a1b2c3d.data", "--json", tmp_path / "o.onnx", source.parent, ())


def test_what_is_no_network_names_no_weights(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"\xff\x00")
    assert weights_of(tmp_path / "a.onnx") == weights_of(tmp_path / "none") == weights_of(tmp_path) == ()


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
