"""The benchmark against other tools: how a ratio is found, at what size two are compared, what rows and the end say."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest


@pytest.fixture(scope="module", name="bench")
def _bench() -> ModuleType:
    return importlib.import_module("bench_peers")


@pytest.fixture(scope="module", name="peers")
def _peers() -> ModuleType:
    return importlib.import_module("peers")


# ---- the ratio ----


@pytest.mark.parametrize("target", [750, 500, 30])
def test_the_ratio_found_is_the_nearest_from_above(peers: ModuleType, target: int) -> None:
    def size(ratio: float) -> int:
        return 10 * round(100 * (1 - ratio))

    found = size(peers.closest(size, target))
    assert target <= found < target + 10


def test_a_size_out_of_reach_gives_the_smallest_there_is(peers: ModuleType) -> None:
    found = peers.closest(lambda ratio: 1000 - round(70 * ratio), 500)
    assert found > 0.99


def test_a_tool_that_removes_nothing_gets_no_ratio(peers: ModuleType) -> None:
    assert peers.closest(lambda _: 1000, 500) == 0.0


def test_a_layer_that_is_left_alone_at_a_high_ratio_misleads_nobody(peers: ModuleType) -> None:
    def size(ratio: float) -> int:
        return 1000 if ratio > 0.9 else round(1000 - 300 * ratio)

    assert size(peers.closest(size, 500)) < 760


def test_a_step_across_the_target_ends_above_it(peers: ModuleType) -> None:
    found = peers.closest(lambda ratio: 900 if ratio < 0.4 else 600, 750)
    assert found == 0.0 or 0 < found < 0.4


# ---- the size ours is run at ----


@pytest.mark.parametrize(("share", "keep"), [(0.7503, 0.75), (0.7599, 0.75), (0.7639, 0.763), (1.02, 1.0)])
def test_ours_never_keeps_more_than_what_it_is_compared_with(bench: ModuleType, share: float, keep: float) -> None:
    assert bench.same_size(share, 0.75) == keep


def test_ours_is_run_at_the_target_or_where_the_peer_ended(bench: ModuleType) -> None:
    shares = {"structured": 0.505, "wanda": 0.93, "wanda-refit": math.nan, "torch-pruning": math.nan}
    asked: list[tuple[str, float]] = []

    def theirs(kind: str, _: float) -> object:
        share = shares[kind]
        return bench.Result(share, why="removes nothing") if math.isnan(share) else bench.Result(share, 0.3)

    def ours(method: str, keep: float) -> object:
        asked.append((method, keep))
        return bench.Result(keep, 0.1)

    pairs = bench.compared(theirs, ours, "fit", 0.5, tuple(bench.PEERS))
    assert asked == [("fit", 0.5), ("fit", 0.93)]
    assert [bool(p.theirs.why) for p in pairs.values()] == [False, False, True, True]


# ---- rows ----


def line(bench: ModuleType, name: str, ours: float, theirs: float, target: float = 0.5, share: float = 0.5) -> Any:
    """One network with one peer; nan for an error that there is none of."""
    mine = bench.Result(target, ours, "can't be reached" if math.isnan(ours) else "")
    other = bench.Result(share, theirs, "does not load" if math.isnan(theirs) else "")
    return bench.Line(name, target, {"fit": mine}, {"onnxsim": bench.Pair(other, mine)})


def test_a_row_says_both_errors_and_their_ratio(bench: ModuleType) -> None:
    assert list(line(bench, "net", 0.01, 0.25).cells()) == ["net", "50", "0.01 at 50.0 %", "0.25", "25.0"]


def test_a_row_says_where_a_peer_ended_above_the_target(bench: ModuleType) -> None:
    assert list(line(bench, "net", 0.01, 0.25, share=0.63).cells())[3] == "0.25 at 63.0 %, ours 0.01"


def test_a_row_says_why_there_is_no_error(bench: ModuleType) -> None:
    assert list(line(bench, "net", math.nan, math.nan).cells())[2:] == ["can't be reached", "does not load", ""]


def test_a_row_is_read_as_it_was_written(bench: ModuleType) -> None:
    found = line(bench, "net", 0.01, 0.25)
    assert bench.Line.read(json.dumps(dataclasses.asdict(found))) == found


def test_the_lowest_of_the_others_is_what_counts(bench: ModuleType) -> None:
    mine = bench.Result(0.5, 0.1)
    pairs = {n: bench.Pair(bench.Result(0.5, e), mine) for n, e in (("a", 0.9), ("b", 0.2), ("c", math.nan))}
    assert bench.Line("net", 0.5, {"fit": mine}, pairs).closest is pairs["b"]


@pytest.mark.parametrize(("text", "found"), [("two\nlines | here", "two lines / here"), ("x" * 61, "x" * 57 + "...")])
def test_a_cell_is_one_short_line(bench: ModuleType, text: str, found: str) -> None:
    assert bench.cell(text) == found


# ---- the end ----


def test_the_end_counts_networks_and_names_the_others(bench: ModuleType) -> None:
    errors = {"far": (0.01, 0.3), "near": (0.05, 0.5), "poor": (0.4, 0.5), "lost": (0.2, 0.1), "none": (math.nan, 0.5)}
    errors["tied"] = (0.0, 0.0)
    lines = [line(bench, name, *pair) for name, pair in errors.items()]
    lines += [line(bench, "alone", 0.01, math.nan), line(bench, "far", 0.01, 0.02, target=0.75)]
    three_quarters, half = bench.summary(lines)
    assert three_quarters.startswith("At 75 %: lower on 1 of 1 networks; in the median 2.0 times lower over the 1")
    assert "lower on 3 of 6 networks; equal on tied; not on lost, none; no other tool gives a network for alone" in half
    assert "in the median 10.0 times lower over the 3 where ours is below 0.1" in half


# ---- fewer samples ----


def test_fewer_rows_are_spread_over_all_and_stay_together(bench: ModuleType, tmp_path: Path) -> None:
    source = tmp_path / "all.npz"
    np.savez(source, x=np.arange(100).reshape(100, 1), group=np.arange(100) // 10, rate=np.array(8000))
    with np.load(bench.fewer(source, 5, tmp_path)) as found:
        assert found["x"].ravel().tolist() == [0, 24, 49, 74, 99]
        assert found["group"].tolist() == [0, 2, 4, 7, 9]
        assert found["rate"] == 8000


def test_fewer_files_of_a_folder(bench: ModuleType, tmp_path: Path) -> None:
    source = tmp_path / "all"
    source.mkdir()
    for i in range(10):
        np.savez(source / f"{i}.npz", x=np.zeros(i))
    found = bench.fewer(source, 3, tmp_path)
    assert sorted(file.name for file in found.iterdir()) == ["0.npz", "4.npz", "9.npz"]


def test_samples_that_suffice_are_all_there(bench: ModuleType, tmp_path: Path) -> None:
    assert bench.fewer(tmp_path / "all.npz", 0, tmp_path) == tmp_path / "all.npz"
