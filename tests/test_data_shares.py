"""How samples are split: proportions, groups that stay whole, and too few of either."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from test_data import X, ramp

from onnx_condense import data
from onnx_condense.errors import CalibrationError

if TYPE_CHECKING:
    from onnx_condense.plan import IntArray


def grouped(groups: list[int] | IntArray) -> data.Samples:
    return data.load({"x": ramp(len(groups), 3), "group": np.asarray(groups)}, (X,))


def sizes(shares: data.Shares) -> tuple[int, int, int]:
    return len(shares.fit), len(shares.search), len(shares.verify)


def assert_partition(shares: data.Shares, count: int) -> None:
    parts = (shares.fit, shares.search, shares.verify)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(count))
    assert all(part.dtype == np.int64 and np.all(np.diff(part) > 0) for part in parts)


@pytest.mark.parametrize("count", [25, 100, 1000])
def test_split_is_60_20_20_without_groups(count: int) -> None:
    shares = data.split(data.load(ramp(count, 3), (X,)), 0)
    assert sizes(shares) == (count * 3 // 5, count // 5, count // 5)
    assert_partition(shares, count)


def test_split_depends_on_the_seed_alone() -> None:
    samples = data.load(ramp(100, 3), (X,))
    one, same, other = (data.split(samples, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.search, same.search)
    assert not np.array_equal(one.search, other.search)


@pytest.mark.parametrize("seed", range(5))
def test_groups_are_never_split(seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = rng.permutation(np.repeat(np.arange(20), rng.integers(1, 30, 20)))
    shares = data.split(grouped(groups), seed)
    assert_partition(shares, len(groups))
    owners = [set(groups[part].tolist()) for part in (shares.fit, shares.search, shares.verify)]
    assert sum(len(owner) for owner in owners) == len(set(groups.tolist()))
    assert np.allclose(np.array(sizes(shares)) / len(groups), (0.6, 0.2, 0.2), atol=0.06)


def test_three_groups_make_three_shares() -> None:
    assert sizes(data.split(grouped(np.repeat([0, 1, 2], 30)), 0)) == (30, 30, 30)


def test_separate_verification_leaves_75_25() -> None:
    shares = data.split(data.load(ramp(40, 3), (X,)), 0, separate_verification=True)
    assert sizes(shares) == (30, 10, 0)
    assert_partition(shares, 40)
    assert sizes(data.split(grouped(np.repeat([0, 1], 10)), 0, separate_verification=True)) == (10, 10, 0)


def few(samples: data.Samples, code: str, *words: str, separate: bool = False) -> None:
    with pytest.raises(CalibrationError) as caught:
        data.split(samples, 0, separate_verification=separate)
    assert caught.value.code == code
    for word in words:
        assert word in caught.value.text


def test_too_few_samples_or_groups() -> None:
    few(data.load(ramp(20, 3), (X,)), "calibration-few", "20 samples", "25")
    few(data.load(ramp(15, 3), (X,)), "calibration-few", "15 samples", "20", separate=True)
    feeds = data.load([{"x": row[None]} for row in ramp(20, 3)], (X,))
    few(feeds, "calibration-few", "20 samples", "of a folder, every file is one sample")
    few(grouped(np.repeat([0, 1], 50)), "calibration-groups", "100 samples in 2 groups", "at least 3 groups")
    few(grouped([0] * 96 + [1] * 2 + [2] * 2), "calibration-groups", "in 3 groups", "at least 5", "more groups")
    few(grouped([4] * 40), "calibration-groups", "1 group,", "at least 2 groups", separate=True)


@pytest.mark.parametrize("values", [[0.0, np.nan] * 20, np.array(["NaT", "2020-01-01"] * 20, "datetime64[D]")])
def test_nan_is_no_group(values: Any) -> None:
    with pytest.raises(CalibrationError, match="'group' holds NaN, which is no group") as caught:
        grouped(values)
    assert caught.value.code == "calibration-groups"


def test_equal_samples_are_one_group() -> None:
    """What was fitted on would judge itself."""
    distinct = np.random.default_rng(0).standard_normal((40, 3)).astype(np.float32)
    samples = data.load({"x": distinct[np.tile(np.arange(40), 5)]}, (X,))
    np.testing.assert_array_equal(samples.groups, np.tile(np.arange(40), 5))
    assert any("160 of 200 samples repeat" in note for note in samples.notes)
    shares = data.split(samples, 0)
    parts = [set((share % 40).tolist()) for share in (shares.fit, shares.search, shares.verify)]
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]


def test_zeros_of_either_sign_are_equal() -> None:
    rows = np.zeros((200, 3), np.float32)
    rows[::2] *= -1
    assert len(np.unique(data.load({"x": rows}, (X,)).groups)) == 1


def test_samples_that_never_vary_judge_nothing() -> None:
    samples = data.load({"x": np.ones((200, 3), np.float32)}, (X,))
    with pytest.raises(CalibrationError) as raised:
        data.split(samples, 0)
    assert raised.value.code == "calibration-groups"


@pytest.mark.parametrize(("count", "chosen"), [(9, [2, 4, 6, 8]), (4, [2, 4, 6, 8]), (2, [2, 8]), (1, [2])])
def test_spread_takes_at_most_so_many_evenly(count: int, chosen: list[int]) -> None:
    assert data.spread(np.array([2, 4, 6, 8]), count).tolist() == chosen
