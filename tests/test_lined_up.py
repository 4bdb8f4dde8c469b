"""Redundant channels of groups and heads that lie at other places in every part: they come to one place, and go."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import attention_nets
import numpy as np
import onnx
import pytest
from builders import assert_same_outputs, feed_for
from convnets import Array, assembled
from grouped import AROUND, single
from onnx import helper

from onnx_condense import condense
from onnx_condense.carriers import Carrier
from onnx_condense.grids import apart, moved_back
from onnx_condense.lined_up import lined_up
from onnx_condense.network.model import Network, load
from onnx_condense.ready import ready
from onnx_condense.spaces import find_spaces

NODE = helper.make_node
PLACES = 6

Copies = Mapping[int, Mapping[int, int]]
"""By group, which channel is a multiple of which."""


def spoiled(weight: Array, bias: Array, copies: Copies) -> None:
    """Make channels [groups, places, ...] multiples of others in their group."""
    for group, pairs in copies.items():
        for copy, of in pairs.items():
            factor = 0.5 + 0.25 * copy
            weight[group, copy], bias[group, copy] = factor * weight[group, of], factor * bias[group, of]


def behind_groups(groups: int, copies: Copies) -> onnx.ModelProto:
    """A grouped convolution whose rows a plain one reads."""
    rng = np.random.default_rng(groups)
    k, d = rng.standard_normal((groups, PLACES, 2, 3, 3)), rng.uniform(-1, 1, (groups, PLACES))
    spoiled(k, d, copies)
    stored = {"k": k.reshape(-1, 2, 3, 3), "d": d.reshape(-1), "v": rng.standard_normal((5, PLACES * groups, 3, 3))}
    nodes = [
        NODE("Conv", ["x", "k", "d"], ["z"], group=groups, **AROUND),
        NODE("Relu", ["z"], ["h"]),
        NODE("Conv", ["h", "v"], ["y"], **AROUND),
    ]
    return assembled(nodes, single(stored), {"x": ("N", 2 * groups, 7, 6)})


def before_groups(groups: int, copies: Copies, shuffle: int = 0) -> onnx.ModelProto:
    """Rows of a plain convolution, scaled and filtered one by one, that a grouped one reads, perhaps shuffled."""
    rng = np.random.default_rng(groups)
    wide = groups * PLACES
    w, b = rng.standard_normal((groups, PLACES, 3, 3, 3)), rng.uniform(-1, 1, (groups, PLACES))
    scale = rng.uniform(0.5, 2, (groups, PLACES))
    kernels = rng.standard_normal((groups, PLACES, 1, 3, 3))
    spoiled(w, b, copies)
    for g, pairs in copies.items():
        for copy, of in pairs.items():
            scale[g, copy], kernels[g, copy] = scale[g, of], kernels[g, of]
    stored: dict[str, Array] = {
        "w": w.reshape(-1, 3, 3, 3),
        "b": b.reshape(-1),
        "scale": scale.reshape(-1),
        "shift": np.zeros(wide),
        "mean": np.zeros(wide),
        "variance": np.ones(wide),
        "f": kernels.reshape(-1, 1, 3, 3),
        "k": rng.standard_normal((2 * groups, PLACES, 3, 3)),
        "v": rng.standard_normal((5, 2 * groups, 3, 3)),
    }
    lists: dict[str, Array] = {}
    nodes = [
        NODE("Conv", ["x", "w", "b"], ["z"], **AROUND),
        NODE("BatchNormalization", ["z", "scale", "shift", "mean", "variance"], ["n"], epsilon=1e-12),
        NODE("Relu", ["n"], ["h"]),
        NODE("Conv", ["h", "f"], ["r"], group=wide, **AROUND),
    ]
    if shuffle:
        lists = {"apart": np.array([0, shuffle, wide // shuffle, 7, 6]), "line": np.array([0, wide, 7, 6])}
        nodes += [
            NODE("Reshape", ["r", "apart"], ["s"]),
            NODE("Transpose", ["s"], ["t"], perm=[0, 2, 1, 3, 4]),
            NODE("Reshape", ["t", "line"], ["q"]),
        ]
    nodes += [
        NODE("Conv", ["q" if shuffle else "r", "k"], ["g"], group=groups, **AROUND),
        NODE("Relu", ["g"], ["e"]),
        NODE("Conv", ["e", "v"], ["y"], **AROUND),
    ]
    return assembled(nodes, single(stored | lists), {"x": ("N", 3, 7, 6)})


def stack(copies: Copies) -> onnx.ModelProto:
    """Two networks side by side, as one stack of matrices."""
    rng = np.random.default_rng(5)
    w, b = rng.standard_normal((2, PLACES, 7)), rng.uniform(-1, 1, (2, PLACES))
    spoiled(w, b, copies)
    stored = {"w": w.transpose(0, 2, 1), "d": b[:, None], "v": rng.standard_normal((2, PLACES, 3))}
    nodes = [
        NODE("MatMul", ["x", "w"], ["z"]),
        NODE("Add", ["z", "d"], ["s"]),
        NODE("Relu", ["s"], ["h"]),
        NODE("MatMul", ["h", "v"], ["y"]),
    ]
    return assembled(nodes, single(stored), {"x": ("N", 2, 4, 7)})


def shuffled(copies: Copies) -> onnx.ModelProto:
    """The same behind a shuffle whose groups are others: what a place is follows from both."""
    return before_groups(2, copies, 3)


def attention(copies: Copies) -> onnx.ModelProto:
    """Values of two heads, nothing planted."""
    assert not copies
    return attention_nets.network(attention_nets.SEPARATE["stored"], noise=None)


# What is a copy in one part is none in the other, nor has it one there.
UNLIKE: Copies = {0: {1: 0, 2: 0}, 1: {4: 3, 5: 3}}
# What is made, at the places where copies lie, and the space of it.
NETWORKS: dict[str, Callable[[Copies], onnx.ModelProto]] = {
    "rows of two groups": functools.partial(behind_groups, 2),
    "rows of three groups": functools.partial(behind_groups, 3),
    "columns of two groups": functools.partial(before_groups, 2),
    "columns of three groups": functools.partial(before_groups, 3),
}
MOVED = {**NETWORKS, "stack": stack, "shuffled": shuffled, "heads": attention}


def widths(proto: onnx.ModelProto, multiple_of: int | None = None) -> tuple[list[int], onnx.ModelProto]:
    found = condense(proto, threads=1, multiple_of=multiple_of)
    return [s.after for s in found.report.spaces if s.after < s.before], found.model


@pytest.mark.parametrize("name", NETWORKS)
def test_copies_go_wherever_they_lie_in_every_part(name: str) -> None:
    groups = 3 if "three" in name else 2
    copies = {0: {1: 0, 3: 2}, 1: {0: 3, 2: 1}, 2: {2: 1, 3: 1}}
    proto = NETWORKS[name]({g: copies[g] for g in range(groups)})
    left, found = widths(proto)
    assert left == [PLACES - 2]
    assert_same_outputs(proto, found)
    again = condense(found, threads=1)
    assert again.report.status == "unchanged"


@pytest.mark.parametrize("name", NETWORKS)
def test_as_many_go_as_the_part_with_the_fewest_copies_has(name: str) -> None:
    groups = 3 if "three" in name else 2
    copies = {0: {1: 0, 3: 2}, 1: {2: 0}, 2: {0: 3, 2: 1, 1: 3}}
    left, _ = widths(NETWORKS[name]({g: copies[g] for g in range(groups)}))
    assert left == [PLACES - 1]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("copies", [{}, {1: {2: 0, 3: 1}}])
def test_what_one_part_lacks_stays_in_all(name: str, copies: Copies) -> None:
    proto = NETWORKS[name](copies)
    found = condense(proto, threads=1)
    assert found.report.status == "unchanged"
    assert found.model.SerializeToString(deterministic=True) == proto.SerializeToString(deterministic=True)


@pytest.mark.parametrize("name", MOVED)
def test_channels_of_a_part_in_any_order_are_one_function(name: str) -> None:
    proto = MOVED[name]({})
    network = ready(proto)
    view = find_spaces(network)
    found = apart(network, view)
    assert found.grids
    for grid in found.grids:
        parts, places = grid.cells.shape
        order = np.stack([np.roll(np.arange(places), part + 1) for part in range(parts)])
        moved = found.reordered({grid.space: order})
        assert moved.SerializeToString() != network.proto.SerializeToString()
        assert_same_outputs(proto, moved)
        back = load(moved_back(moved, view, {grid.space: order}, (network, network)))
        for stored in network.proto.graph.initializer:
            np.testing.assert_array_equal(back.constant(stored.name), network.constant(stored.name))


def beside_scaled(copies: Copies) -> onnx.ModelProto:
    """The rows of two groups, and beside them a plain layer of as many channels, each with a factor of its own."""
    rng = np.random.default_rng(4)
    wide = 2 * PLACES
    k, d = rng.standard_normal((2, PLACES, 2, 3, 3)), rng.uniform(-1, 1, (2, PLACES))
    spoiled(k, d, copies)
    stored = {"k": k.reshape(-1, 2, 3, 3), "d": d.reshape(-1), "v": rng.standard_normal((5, wide, 3, 3))}
    stored |= {"w": rng.standard_normal((wide, 4, 1, 1)), "f": rng.uniform(1, 2, (wide, 1, 1)), "u": stored["v"][::-1]}
    nodes = [
        NODE("Conv", ["x", "k", "d"], ["z"], group=2, **AROUND),
        NODE("Relu", ["z"], ["h"]),
        NODE("Conv", ["h", "v"], ["p"], **AROUND),
        NODE("Conv", ["x", "w"], ["a"]),
        NODE("Sigmoid", ["a"], ["s"]),
        NODE("Mul", ["s", "f"], ["e"]),
        NODE("Conv", ["e", "u"], ["q"], **AROUND),
        NODE("Add", ["p", "q"], ["y"]),
    ]
    return assembled(nodes, single(stored), {"x": ("N", 4, 7, 6)})


def lined(network: Network) -> Network:
    """With channels where exact steps can take them, from any space."""
    return lined_up(network, find_spaces(network), find_spaces, lambda n: [s.writers for s in find_spaces(n).spaces])


def test_what_others_carry_does_not_get_in_the_way() -> None:
    proto = beside_scaled({0: {1: 0, 3: 2}, 1: {0: 3, 2: 1}})
    network = ready(proto)
    found = lined(network)
    assert found is not network
    assert_same_outputs(proto, found.proto)


def in_a_row(depth: int) -> onnx.ModelProto:
    """Grouped convolutions, one after the other."""
    rng = np.random.default_rng(depth)
    stored = {f"k{i}": rng.standard_normal((4, 2, 1, 1)) for i in range(depth)}
    nodes = [NODE("Conv", [f"h{i}" if i else "x", f"k{i}"], [f"h{i + 1}"], group=2) for i in range(depth)]
    nodes.append(NODE("Conv", [f"h{depth}", "v"], ["y"]))
    return assembled(nodes, single(stored | {"v": rng.standard_normal((3, 4, 1, 1))}), {"x": ("N", 4, 3, 3)})


def test_the_work_grows_with_the_number_of_grids_not_with_its_square(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Carrier.reordered
    looks: list[int] = []

    def counted(self: Carrier, value: Array, moved: Array) -> Array | None:
        looks.append(1)
        return plain(self, value, moved)

    monkeypatch.setattr(Carrier, "reordered", counted)
    work = []
    for depth in (8, 16):
        network = ready(in_a_row(depth))
        looks.clear()
        assert len(apart(network, find_spaces(network)).grids) == depth
        work.append(len(looks))
    assert work[1] <= 2 * work[0] + 4


@pytest.mark.parametrize("copies", [{}, {0: {1: 0, 3: 2}}, {0: {1: 0, 3: 2}, 1: {1: 0, 3: 2}}])
def test_nothing_moves_where_as_much_can_go_as_it_is(copies: Copies) -> None:
    network = ready(behind_groups(2, copies))
    assert lined(network) is network


def test_nothing_moves_where_no_channel_goes_in_the_end() -> None:
    """Of 6 places 2 could go, of the other 6 as well, but widths are to be multiples of 4, and then of 6."""
    proto = before_groups(2, UNLIKE)
    assert widths(proto, multiple_of=4)[0] == [PLACES - 2]
    found = condense(proto, threads=1, multiple_of=6)
    assert found.report.status == "unchanged"
    two = beside_groups()
    narrow, model = widths(two, multiple_of=3)
    assert narrow == [3]
    before, after = (load(m) for m in (two, model))
    for name in ("k", "d", "v"):
        np.testing.assert_array_equal(after.constant(name), before.constant(name))


def beside_groups() -> onnx.ModelProto:
    """Two grouped convolutions side by side: of the rows of the first 2 of 6 can go in each group, of the other 3."""
    rng = np.random.default_rng(6)
    nodes, stored = [], dict[str, Array]()
    for letters, copies in (("kdv", UNLIKE), ("abc", {0: {1: 0, 2: 0, 4: 0}, 1: {4: 3, 5: 3, 0: 3}})):
        k, d = rng.standard_normal((2, PLACES, 2, 3, 3)), rng.uniform(-1, 1, (2, PLACES))
        spoiled(k, d, copies)
        values = (k.reshape(-1, 2, 3, 3), d.reshape(-1), rng.standard_normal((5, 2 * PLACES, 3, 3)))
        stored |= dict(zip(letters, values, strict=True))
        nodes += [
            NODE("Conv", ["x", letters[0], letters[1]], [f"z{letters}"], group=2, **AROUND),
            NODE("Relu", [f"z{letters}"], [f"h{letters}"]),
            NODE("Conv", [f"h{letters}", letters[2]], [f"y{letters}"], **AROUND),
        ]
    nodes.append(NODE("Add", ["ykdv", "yabc"], ["y"]))
    return assembled(nodes, single(stored), {"x": ("N", 4, 7, 6)})


def test_numbers_that_are_all_alike_may_be_stored_once() -> None:
    proto = beside_groups()
    for node in proto.graph.node:
        node.input[:] = ["d" if name == "b" else name for name in node.input]
    alike = next(t for t in proto.graph.initializer if t.name == "d")
    network = ready(proto)
    assert not apart(network, find_spaces(network)).grids
    alike.CopyFrom(onnx.numpy_helper.from_array(np.full(2 * PLACES, 0.5, np.float32), "d"))
    network = ready(proto)
    found = apart(network, find_spaces(network))
    assert len(found.grids) == 2
    first = found.grids[0]
    turned = found.reordered({first.space: np.stack([np.roll(np.arange(PLACES), part + 1) for part in range(2)])})
    assert_same_outputs(proto, turned)
    assert [t.name for t in turned.graph.initializer] == [t.name for t in network.proto.graph.initializer]


def test_a_weight_that_others_read_is_not_stored_twice() -> None:
    proto = behind_groups(2, {})
    proto.graph.node.append(NODE("ReduceMax", ["k"], ["m"], keepdims=0))
    proto.graph.output.append(helper.make_tensor_value_info("m", onnx.TensorProto.FLOAT, []))
    network = ready(proto)
    assert not apart(network, find_spaces(network)).grids


# ---- what samples tell ----


def nearly(proto: onnx.ModelProto, name: str = "d") -> onnx.ModelProto:
    """The same, a little off, so that the weights alone prove nothing."""
    stored = next(t for t in proto.graph.initializer if t.name == name)
    value = onnx.numpy_helper.to_array(stored)
    noise = np.random.default_rng(1).uniform(-1e-4, 1e-4, value.shape).astype(np.float32)
    stored.CopyFrom(onnx.numpy_helper.from_array(value + noise, name))
    return proto


def samples(proto: onnx.ModelProto, count: int = 120) -> dict[str, Array]:
    return feed_for(proto, count, seed=3)


FITTED: dict[str, Callable[[Copies], onnx.ModelProto]] = {
    "rows of two groups": functools.partial(behind_groups, 2),
    "stack": stack,
}


@pytest.mark.parametrize("name", FITTED)
def test_near_copies_go_wherever_they_lie(name: str, tmp_path: Path) -> None:
    proto = nearly(FITTED[name](UNLIKE))
    found = condense(proto, calibration=samples(proto), tolerance=0.01, threads=1, multiple_of=1)
    assert [s.after for s in found.report.spaces if s.after < s.before] == [PLACES - 2]
    assert not found.kept
    found.save_plan(tmp_path / "plan.json")
    again = condense(proto, calibration=samples(proto), plan=tmp_path / "plan.json", threads=1)
    assert again.model.SerializeToString(deterministic=True) == found.model.SerializeToString(deterministic=True)
