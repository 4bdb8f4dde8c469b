"""Weights in files beside the network: written where they were, or copied, and nothing else is touched."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from mlps import mlp, normal, plant_copies
from onnx import TensorProto, helper, numpy_helper
from outside import cli, dense, names, put, refer

import onnx_condense
from onnx_condense import files
from onnx_condense.errors import UsageError
from onnx_condense.files import copy_unchanged, save_condensed, weights_of
from onnx_condense.network.external import external_files, external_tensors
from onnx_condense.network.model import inlined, load
from onnx_condense.runtime import Runtime, run

X = normal(40, 3)


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
