"""The lossless plan finds all redundancy planted in convolutional networks, and nothing that is not there."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import convnets
import numpy as np
import onnx
import pytest
from builders import Form, lossless, outputs
from convnets import MOVES, Stage, assert_same, base
from convplant import Planting, expected, plant
from random_convnets import random_network

from onnx_condense import condense

SAME, VALID = {"pads": [1, 1, 1, 1]}, {"auto_pad": "VALID"}
ONE, THREE = (3, 14), (2, 6, 7, 5)
IMAGE = (3, 11, 10)


def chain(*stages: Stage, head: str = "flatten", shape: tuple[int, ...] = IMAGE) -> tuple[Any, ...]:
    return stages, head, shape


PLAIN = {act: chain(Stage(5, act=act), Stage(4, act=act), head="flatten") for act in convnets.ACTS}
PADDED = {
    f"{act}-padded": chain(Stage(5, act=act, conv=SAME), Stage(4, act=act, conv=SAME), head="gap")
    for act in ("Relu", "LeakyRelu", "Tanh", "Sigmoid", "Gelu", "Clip")
}
NORMS = {
    f"{norm}-{act}{'-padded' * bool(conv)}": chain(
        Stage(5, act=act, norm=norm, conv=conv), Stage(4, act=act, norm=norm, conv=conv), head="gap"
    )
    for norm in ("before", "after")
    for act in ("Relu", "Tanh", "Sigmoid", "HardSwish")
    for conv in ({}, SAME)
}
POOLS = {
    f"{kind}-{act}": chain(Stage(5, act=act, then=(kind,)), Stage(4, act=act), head="gap")
    for kind in MOVES
    for act in ("Relu", "Tanh")
} | {
    "max-after": chain(Stage(5, norm="after", then=("max",)), Stage(4, norm="after", conv=SAME), head="gmp"),
    "average-Sigmoid": chain(Stage(5, act="Sigmoid", then=("average",)), Stage(4, act="Sigmoid"), head="gap"),
    "zeros-Sigmoid": chain(Stage(5, act="Sigmoid", then=("average-zeros",)), Stage(4, act="Sigmoid"), head="gap"),
    "zeros-after": chain(Stage(5, norm="after", then=("average-zeros",)), Stage(4, norm="after"), head="flatten"),
    "two-pools": chain(Stage(4, then=("max", "average")), Stage(3, (1, 1)), head="mean"),
}
HEADS = {
    f"{head}-{act}": chain(Stage(5, act=act, conv=SAME), Stage(4, act=act, then=("max",)), head=head)
    for head in convnets.HEADS
    for act in ("Relu", "Sigmoid")
} | {"flatten-after": chain(Stage(4, norm="after", then=("average",)), head="nhwc")}
KERNELS = {
    "1d": chain(Stage(5, (3,)), Stage(4, (2,), {"dilations": [2]}), head="flatten", shape=ONE),
    "1d-same": chain(Stage(5, (3,), {"auto_pad": "SAME_LOWER"}), Stage(4, (4,), {"pads": [2, 1]}), shape=ONE),
    "3d": chain(Stage(4, (3, 3, 3)), Stage(3, (1, 2, 2)), head="flatten", shape=THREE),
    "3d-padded": chain(Stage(4, (3, 3, 3)), Stage(3, (1, 3, 1), {"pads": [0, 1, 0, 0, 1, 0]}), shape=THREE),
    "strided": chain(Stage(5, conv={"strides": [2, 1]}), Stage(4, (3, 2), {"strides": [1, 2]})),
    "dilated": chain(Stage(5, conv={"dilations": [2, 1]}), Stage(4, (3, 2), {"dilations": [2, 3]})),
    "same-strided": chain(Stage(5), Stage(4, conv={"auto_pad": "SAME_UPPER", "strides": [2, 2]}, act="Tanh")),
    "valid": chain(Stage(5, conv=VALID), Stage(4, conv=VALID)),
    "one-sided": chain(Stage(5), Stage(4, conv={"pads": [0, 0, 0, 1]})),
    "pointwise": chain(Stage(5, (1, 1)), Stage(4, (1, 1), act="Sigmoid"), Stage(4, (1, 1), act="Sigmoid")),
    "no-bias": chain(Stage(5, bias=False), Stage(4, bias=False), head="flatten"),
    "no-bias-padded": chain(Stage(5, bias=False, conv=SAME), Stage(4, bias=False, conv=SAME), head="gap"),
    "no-bias-Sigmoid": chain(Stage(5, bias=False, act="Sigmoid"), Stage(4, bias=False, act="Sigmoid"), head="gap"),
    "no-bias-before": chain(Stage(5, bias=False, norm="before"), Stage(4, bias=False, norm="before", conv=SAME)),
}
RESIDUALS = {
    f"skip-{act}-{norm}-{len(conv)}": chain(
        Stage(5, act=act, norm=norm, conv=SAME),
        Stage(4, (3, 3) if conv else (1, 1), act=act, norm=norm, conv=conv, skip=True),
        Stage(3, (3, 3) if conv else (1, 1), act=act, norm=norm, conv=conv, skip=True),
        head="gap",
    )
    for act in ("Relu", "Tanh")
    for norm in ("", "before")
    for conv in ({}, SAME)
}
FAMILIES = PLAIN | PADDED | NORMS | POOLS | HEADS | KERNELS | RESIDUALS


@pytest.mark.parametrize("family", FAMILIES)
def test_planted_channels_are_found_completely(family: str) -> None:
    """Copies (scaled or mirrored where allowed), dead and constant channels: the base widths come back."""
    rng = np.random.default_rng(len(family))
    planting = Planting(copies=3, dead=1, constant=2, zero=2)
    net = base(rng, *FAMILIES[family])
    proto = plant(rng, net, planting).proto()
    done = lossless(proto)
    assert done.widths() == expected(net, planting)
    assert_same(proto, done.proto)
    again = lossless(done.proto)
    assert not again.plan.selections


@pytest.mark.parametrize("family", ["flatten-Relu", "after-Sigmoid", "skip-Relu-before-1", "1d-same"])
def test_copies_alone_leave_the_base_function(family: str) -> None:
    """The planter itself: copies with split columns compute what the base network does, before and after."""
    rng = np.random.default_rng(1)
    net = base(rng, *FAMILIES[family])
    wide = plant(rng, net, Planting(copies=3)).proto()
    assert_same(net.proto(), wide)
    assert_same(net.proto(), lossless(wide).proto)


@pytest.mark.parametrize(
    ("dtype", "eps"), [(np.float16, 2.0**-10), (np.float32, 2.0**-23), (np.float64, 2.0**-52)], ids=["f2", "f4", "f8"]
)
@pytest.mark.parametrize("form", [{}, {"constants": True}, {"ir": 4, "opset": 11}], ids=["plain", "nodes", "old"])
def test_every_type_and_storage(dtype: Any, eps: float, form: dict[str, Any]) -> None:
    rng = np.random.default_rng(5)
    net = base(rng, (Stage(4), Stage(3, conv=SAME, then=("max",))), "reshape-number")
    planting = Planting(copies=2, dead=1, constant=1, zero=1)
    proto = plant(rng, net, planting).proto(Form(dtype=dtype, **form))
    done = lossless(proto)
    assert done.widths() == expected(net, planting)
    assert_same(proto, done.proto, eps, outputs=convnets.by_definition if dtype is np.float64 else outputs)


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_planted_gives_an_empty_plan(family: str) -> None:
    done = lossless(base(np.random.default_rng(0), *FAMILIES[family]).proto())
    assert not done.plan.selections
    assert not done.plan.updates


UNCHANGED = ["Sigmoid-padded", "before-Relu-padded", "after-Tanh", "max-Relu", "nhwc-Relu", "reshape-number-Relu",
             "skip-Relu-before-1", "1d-same", "3d"]  # fmt: skip


@pytest.mark.parametrize("family", UNCHANGED)
def test_nothing_planted_comes_back_byte_for_byte(family: str, tmp_path: Path) -> None:
    given, written = tmp_path / "in.onnx", tmp_path / "out.onnx"
    for seed in range(20):
        rng = np.random.default_rng(100 + seed)
        onnx.save(base(rng, *FAMILIES[family]).proto(), given)
        found = condense(given)
        assert found.report.status == "unchanged", seed
        found.save(written)
        assert written.read_bytes() == given.read_bytes(), seed


def test_a_condensed_network_equals_the_planted_one(tmp_path: Path) -> None:
    """The whole way, verification against the plan included."""
    rng = np.random.default_rng(2)
    net = base(rng, *FAMILIES["skip-Relu-before-1"])
    proto = plant(rng, net, Planting(3, 1, 1, 1)).proto()
    found = condense(proto)
    assert found.report.status == "condensed"
    found.save(tmp_path / "out.onnx")
    assert_same(proto, onnx.load(tmp_path / "out.onnx"))
    assert condense(tmp_path / "out.onnx").report.status == "unchanged"


@pytest.mark.parametrize("act", ["Relu", "Sigmoid", "Gelu"])
@pytest.mark.parametrize(("conv", "left"), [({}, 0), (SAME, 1)], ids=["valid", "padded"])
def test_constants_of_a_padded_reader_are_multiples_of_one(act: str, conv: dict[str, Any], left: int) -> None:
    rng = np.random.default_rng(0)
    net = base(rng, (Stage(5, act=act), Stage(4, conv=conv)), "gap")
    for constant in (1, 2, 4):
        proto = plant(rng, net, Planting(constant=constant)).proto()
        done = lossless(proto)
        assert done.widths() == [5 + left, 4]
        assert_same(proto, done.proto)


def test_positive_scales_do_not_merge_without_homogeneity() -> None:
    """Elsewhere scaled copies are planted only where they may merge; here everywhere."""
    for act in ("Clip", "HardSwish", "Gelu", "Elu", "Tanh", "Sigmoid"):
        rng = np.random.default_rng(0)
        net = base(rng, (Stage(5, act=act), Stage(4, act=act)), "flatten")
        scaled = {n: dataclasses.replace(s, act=convnets.Act(scales=True)) for n, s in net.spaces.items()}
        wide = plant(rng, dataclasses.replace(net, spaces=scaled), Planting(copies=2)).proto()
        assert lossless(wide).widths() == [10, 8], act


@pytest.mark.parametrize("block", range(4))
def test_random_networks_keep_their_outputs(block: int) -> None:
    """Whatever the structure: no crash, equal outputs, and a second run finds nothing more."""
    found = 0
    for seed in range(30 * block, 30 * block + 30):
        proto = random_network(seed)
        done = lossless(proto)
        if done.plan.selections:
            found += 1
            assert_same(proto, done.proto)
            assert not lossless(done.proto).plan.selections, seed
    assert found >= 3
