"""Limits on size and speed: how they are read, checked and said."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_condense.errors import UsageError
from onnx_condense.options.goal import Goal, check_goal
from onnx_condense.options.limits import Limits, count_of, said_count, said_factor, said_ms, said_share


@pytest.mark.parametrize(
    ("text", "count"),
    [("7", 7), ("250k", 250_000), ("1.5M", 1_500_000), ("2G", 2 * 10**9), ("0.001k", 1), ("3.0", 3), (None, None)],
)
def test_counts_take_decimal_suffixes(text: str | None, count: int | None) -> None:
    assert count_of("--max-macs", text) == count


@pytest.mark.parametrize("text", ["", "k", "1K", "1 k", "-1", "1e6", "1,5M", "0x10", "\u0661"])
def test_other_texts_are_refused_by_the_name_of_the_option(text: str) -> None:
    with pytest.raises(UsageError, match="--max-bytes") as caught:
        count_of("--max-bytes", text)
    assert caught.value.code == "max-bytes"


@pytest.mark.parametrize("text", ["1.5", "0.0015k", "1.999", "0.3"])
def test_parts_of_things_are_no_counts(text: str) -> None:
    with pytest.raises(UsageError, match=f"--max-parameters '{text}': give a whole number, .* with k, M or G"):
        count_of("--max-parameters", text)


@given(st.integers(1, 10**11))
def test_a_count_that_was_said_is_no_smaller_and_hardly_larger(count: int) -> None:
    again = count_of("--max-macs", said_count(count))
    assert again is not None
    assert count <= again <= 1.01 * count + 1


@given(st.floats(1e-6, 1e6))
def test_best_values_are_rounded_to_the_side_that_can_be_asked_for(value: float) -> None:
    for said in (said_share, said_ms):
        assert value <= float(said(value)) * (1 + 1e-12)
        assert float(said(value)) <= 1.0101 * value
    assert 0.99 * value <= float(said_factor(value)) <= value * (1 + 1e-12)


@pytest.mark.parametrize(
    ("wrong", "option"),
    [
        ({"max_parameters": 0}, "--max-parameters"),
        ({"max_macs": -3}, "--max-macs"),
        ({"max_bytes": 0}, "--max-bytes"),
        ({"max_bytes": 1.5}, "--max-bytes"),
        ({"max_macs": float("inf")}, "--max-macs"),
        ({"max_latency": 0.0}, "--max-latency"),
        ({"max_latency": float("nan")}, "--max-latency"),
        ({"speedup": 1.0}, "--speedup"),
        ({"speedup": float("inf")}, "--speedup"),
    ],
)
def test_values_out_of_range_are_refused(wrong: dict[str, Any], option: str) -> None:
    with pytest.raises(UsageError, match=option) as caught:
        Limits(**wrong).check()
    assert caught.value.code == option[2:]


EVERY = [
    {"max_parameters": 9},
    {"max_macs": 9},
    {"max_bytes": 9},
    {"max_latency": 9.0},
    {"speedup": 2.0},
]


@pytest.mark.parametrize("limit", EVERY)
@pytest.mark.parametrize(
    ("other", "calibrated", "match"),
    [
        ({}, False, "needs --calibration"),
        ({"tolerance": 0.0}, True, "exclude each other"),
        ({"method": "condensation", "threshold": {"*": 0.9}}, True, "exclude each other"),
    ],
)
def test_what_no_size_can_be_asked_of_is_refused(
    limit: dict[str, Any], other: dict[str, Any], match: str, *, calibrated: bool
) -> None:
    options = {"tolerance": None, "keep": None, "allow_slower": False, "seed": 0, **other}
    asked = Goal(**options, limits=Limits(**limit))
    with pytest.raises(UsageError, match=match) as caught:
        check_goal(asked, calibrated=calibrated, verified=False)
    assert next(iter(Limits(**limit).given())) in caught.value.text


@pytest.mark.parametrize("limit", EVERY)
def test_a_limit_alone_sets_no_tolerance(limit: dict[str, Any]) -> None:
    asked = Goal(None, None, allow_slower=False, seed=0, limits=Limits(**limit))
    assert check_goal(asked, calibrated=True, verified=False).tolerance is None


def test_a_speed_up_that_may_be_slower_makes_no_sense() -> None:
    asked = Goal(None, None, allow_slower=True, seed=0, limits=Limits(speedup=2.0))
    with pytest.raises(UsageError, match="--allow-slower"):
        check_goal(asked, calibrated=True, verified=False)


@pytest.mark.parametrize(("option", "value"), [("multiple_of", "auto"), ("augment", 1)])
def test_what_only_fits_is_refused_where_nothing_is_fitted(option: str, value: Any) -> None:
    asked = dataclasses.replace(Goal(0.0, None, allow_slower=False, seed=0), **{option: value})
    with pytest.raises(UsageError, match=f"--{option.replace('_', '-')}.* and --tolerance 0 exclude each other"):
        check_goal(asked, calibrated=True, verified=False)
    # What an exact plan removes is fitted where the weights are others.
    assert check_goal(asked, calibrated=True, verified=False, planned=True).tolerance == 0.0
