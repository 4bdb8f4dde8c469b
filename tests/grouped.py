"""Checks and small parts that tests of filters and groups share."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from builders import Outcome, lossless
from convnets import Array, assert_same

AROUND: dict[str, Any] = {"pads": [1, 1, 1, 1]}
IMAGE = {"x": ("N", 3, 8, 8)}


def reduced(proto: onnx.ModelProto, *widths: int) -> Outcome:
    """The widths that are left, equal outputs, and nothing more to find."""
    done = lossless(proto)
    assert done.widths() == list(widths)
    assert_same(proto, done.proto)
    again = lossless(done.proto)
    assert not again.plan.selections
    assert again.proto.SerializeToString(deterministic=True) == done.proto.SerializeToString(deterministic=True)
    return done


def untouched(proto: onnx.ModelProto) -> None:
    """Nothing goes, byte for byte."""
    done = lossless(proto)
    assert not done.plan.selections
    assert done.proto.SerializeToString(deterministic=True) == proto.SerializeToString(deterministic=True)


def single(stored: dict[str, Any]) -> dict[str, Array]:
    """Floats as fp32, integers as they are."""
    arrays = {n: np.asarray(v) for n, v in stored.items()}
    return {n: v.astype(np.float32) if v.dtype == float else v for n, v in arrays.items()}


def group_of(proto: onnx.ModelProto, name: str) -> int:
    """The group attribute of a node."""
    node = next(n for n in proto.graph.node if n.name == name)
    return next((a.i for a in node.attribute if a.name == "group"), 1)


def shape_of(proto: onnx.ModelProto, name: str) -> list[int]:
    return list(next(t for t in proto.graph.initializer if t.name == name).dims)


def twice(rng: np.random.Generator, size: int, copies: int) -> tuple[Array, Array]:
    """Which channel each copy is of [J], in random order, and the share that each of them takes [J]."""
    of = rng.permutation(np.repeat(np.arange(size), copies))
    share = rng.uniform(0.5, 1.5, len(of))
    return of, share / np.bincount(of, share)[of]
