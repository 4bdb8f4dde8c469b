"""The error/size front of one run: which networks are on it, and how they are written."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from mlps import mlp, normal, plant_copies
from typer.testing import CliRunner

from onnx_condense import condense, pipeline
from onnx_condense.cli import app
from onnx_condense.cost import count_macs, count_parameters
from onnx_condense.errors import UsageError
from onnx_condense.network.model import Network
from onnx_condense.proving import latency
from onnx_condense.proving.rechecking import recheck
from onnx_condense.report.data import Latency
from onnx_condense.search import front
from onnx_condense.search.budget import Point

if TYPE_CHECKING:
    from pathlib import Path

    from onnx_condense.outcome import Condensed

X = normal(400, 3)


@pytest.fixture(autouse=True)
def _untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    def compare(_: Any, after: bytes, *__: Any, batch: int, **___: Any) -> Latency:
        speed = 1e4 / len(after)
        return Latency("CPUExecutionProvider", 0, batch, 1.0, 1 / speed, speed, (0.9 * speed, 1.1 * speed))

    monkeypatch.setattr(latency, "compare", compare)
    monkeypatch.setattr(latency, "confirmed", lambda *_, seen: seen)


def run(**options: Any) -> Condensed:
    return condense(mlp((3, 40, 30, 2)), **{"threads": 1, "calibration": X, "front": True, **options})


def test_the_front_goes_from_near_the_dense_network_to_what_is_still_sensible() -> None:
    found = run(tolerance=0.02)
    rows = [row for _, row in found.front]
    assert 4 <= len(rows) <= 8
    assert [r.parameters for r in rows] == sorted((r.parameters for r in rows), reverse=True)
    assert [r.error for r in rows] == sorted(r.error for r in rows)
    assert 0.02 < rows[-1].error < 0.6
    assert rows[0].share > 0.5 > rows[-1].share
    dense = count_parameters(found.source.proto)
    for model, row in found.front:
        assert row.parameters == count_parameters(model) == pytest.approx(row.share * dense)
        assert row.macs == count_macs(Network(model))
        assert row.bytes == model.ByteSize()
        assert [t.batch for t in row.speedups] == [1, 80]
        assert any(p.key.startswith("onnx_condense.") for p in model.metadata_props)
    assert found.report.status == "condensed"
    assert run(tolerance=0.02, front=False).front == ()
    alone = run(tolerance=0.02, front=False)
    assert alone.model.SerializeToString() == found.model.SerializeToString()


@pytest.mark.parametrize(("tolerance", "largest"), [(None, 0.5), (0.01, 0.2), (0.1, 0.5)])
def test_how_far_the_front_goes(tolerance: float | None, largest: float) -> None:
    assert front.largest_error(tolerance) == pytest.approx(largest)


def test_stops_lie_evenly_in_the_logarithm_of_their_size() -> None:
    path = [Point((i,), 0.0, round(10**6 * 0.99**i)) for i in range(400)]
    sizes = [p.parameters for p in front.stops(path, 300)]
    ratios = [b / a for a, b in zip([10**6, *sizes], sizes, strict=False)]
    assert len(sizes) == 8
    assert max(ratios) / min(ratios) < 1.02
    assert sizes[-1] == path[300].parameters
    assert front.stops(path, 0) == []
    assert front.stops(path[:3], 2) == path[1:3]


def test_networks_that_others_beat_are_left_out() -> None:
    def made(parameters: int, error: float) -> Any:
        model = mlp((3, 2))
        return SimpleNamespace(model=model, parameters=parameters, proved=SimpleNamespace(error=error))

    given = [made(90, 0.01), made(70, 0.3), made(60, 0.2), made(60, 0.25), made(120, 0.001), made(30, 0.4)]
    timed: list[int] = []

    def time(candidate: Any) -> list[Latency]:
        timed.append(candidate.parameters)
        return []

    rows = [row for _, row in front.members(given, 100, time)]
    assert [(r.parameters, r.error, r.share) for r in rows] == [(90, 0.01, 0.9), (60, 0.2, 0.6), (30, 0.4, 0.3)]
    assert timed == [90, 60, 30]


def test_the_command_writes_a_folder(tmp_path: Path) -> None:
    onnx.save(mlp((3, 40, 30, 2)), tmp_path / "net.onnx")
    np.save(tmp_path / "x.npy", X)
    arguments = [str(tmp_path / "net.onnx"), "--calibration", str(tmp_path / "x.npy"), "--tolerance", "0.02"]
    arguments += ["--front", str(tmp_path / "made")]
    dry = CliRunner().invoke(app, [*arguments, "--dry-run"])
    assert dry.exit_code == 0
    assert not (tmp_path / "made").exists()
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0
    rows = json.loads((tmp_path / "made" / "front.json").read_text())
    files = {p.name for p in (tmp_path / "made").iterdir()}
    assert files == {"front.json", "front.md", "front.svg", *(row["file"] for row in rows)}
    assert result.stdout.splitlines()[-2:] == [
        f"wrote {len(rows)} networks of the front to {tmp_path / 'made'}",
        "the network above was not written: name an OUT to have it as well",
    ]
    for row in rows:
        assert re.fullmatch(r"net-\d+\.onnx", row["file"])
        assert abs(float(row["file"][4:-5]) - 100 * row["share"]) <= 0.5
        model = onnx.load(tmp_path / "made" / row["file"])
        assert row["parameters"] == count_parameters(model)
        assert row["bytes"] == (tmp_path / "made" / row["file"]).stat().st_size
    table = (tmp_path / "made" / "front.md").read_text().splitlines()
    assert len(table) == 2 + len(rows)
    assert table[0] == "| file | parameters | MACs | bytes | error | faster, CPU, batch 1 | faster, CPU, batch 80 |"
    drawing = (tmp_path / "made" / "front.svg").read_text()
    assert drawing.startswith("<svg xmlns=")
    assert "var(" not in drawing
    beside = [arguments[0], str(tmp_path / "slim.onnx"), *arguments[1:-1], str(tmp_path / "other")]
    assert "was not written" not in CliRunner().invoke(app, beside).stdout
    taken = CliRunner().invoke(app, arguments)
    assert taken.exit_code == 2
    assert "needs a new or an empty folder" in taken.stderr


def test_a_front_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run(tolerance=0.05)
    calls = []

    def failing(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 3:
            raise OSError(28, "no space")

    monkeypatch.setattr(front, "save_condensed", failing)
    (tmp_path / "made").mkdir()
    with pytest.raises(UsageError, match="no space"):
        front.save_front(found, "net", tmp_path / "made")
    assert [p.name for p in tmp_path.iterdir()] == ["made"]
    assert list((tmp_path / "made").iterdir()) == []


def test_files_of_one_size_get_names_of_their_own() -> None:
    row: Any = SimpleNamespace(share=0.3333)
    assert front._file("n", row, []) == "n-33.onnx"
    assert front._file("n", row, ["n-33.onnx"]) == "n-33.3.onnx"


def test_networks_of_a_front_pass_their_own_proof(tmp_path: Path) -> None:
    found = run(tolerance=0.02)
    front.save_front(found, "net", tmp_path / "made")
    rows = json.loads((tmp_path / "made" / "front.json").read_text())
    assert rows[-1]["error"] > 0.02
    for row in rows:
        report = recheck(mlp((3, 40, 30, 2)), tmp_path / "made" / row["file"], calibration=X, threads=1)
        assert report.error is not None
        assert report.error.value == pytest.approx(row["error"], rel=1e-3)
        assert report.error.tolerance is None


def test_what_exact_merges_leave_is_on_the_front() -> None:
    planted = plant_copies(mlp((3, 40, 30, 2)), 1, 6)
    alone = condense(planted, calibration=X, tolerance=0.02, max_cut=0.1, threads=1)
    found = condense(planted, calibration=X, tolerance=0.02, max_cut=0.1, threads=1, front=True)
    assert found.model.SerializeToString() == alone.model.SerializeToString()
    exact = condense(planted, threads=1, max_cut=0.1)
    assert exact.report.parameters is not None
    assert found.front[0][1].parameters == exact.report.parameters.after
    assert found.front[0][1].error < 1e-5


def test_bytes_of_a_front_are_those_on_the_disk(tmp_path: Path) -> None:
    net = tmp_path / "net.onnx"
    onnx.save(mlp((3, 40, 30, 2)), net, save_as_external_data=True, location="w.bin", size_threshold=0)
    found = condense(net, calibration=X, tolerance=0.02, front=True, threads=1)
    front.save_front(found, "net", tmp_path / "made")
    rows = json.loads((tmp_path / "made" / "front.json").read_text())
    for row in rows:
        stem = row["file"].removesuffix(".onnx")
        files = [f for f in (tmp_path / "made").iterdir() if f.name == row["file"] or f.match(f"{stem}.????????.data")]
        assert row["bytes"] == sum(f.stat().st_size for f in files)
    assert list((tmp_path / "made").glob("*.data"))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (["o.onnx", "--front", "o.onnx"], "o.onnx: OUT lies in the folder of --front"),
        (["empty/o.onnx", "--front", "empty"], "OUT lies in the folder of --front"),
        (["--front", "empty", "--json", "empty/report.json"], "--json lies in the folder of --front"),
        (["--front", "new", "--save-plan", "new"], "--save-plan lies in the folder of --front"),
        (["--front", ""], "--front is empty"),
        (["--front", "../here"], "--front is the folder that you are in"),
    ],
)
def test_folders_that_a_front_cannot_have_are_refused_at_once(
    options: list[str], match: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx.save(mlp((3, 40, 30, 2)), tmp_path / "net.onnx")
    np.save(tmp_path / "x.npy", X)
    (tmp_path / "here" / "empty").mkdir(parents=True)
    if options[-1] in ("", "../here"):
        (tmp_path / "here" / "empty").rmdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(pipeline, "condense", None)
    result = CliRunner().invoke(app, ["../net.onnx", "--calibration", "../x.npy", *options])
    assert result.exit_code == 2
    assert match in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"calibration": None}, "needs --calibration"),
        ({"tolerance": 0.0}, "--tolerance 0"),
        ({"method": "condensation", "threshold": 0.9}, "--threshold"),
    ],
)
def test_where_there_is_one_network_only_a_front_is_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        run(**options)
