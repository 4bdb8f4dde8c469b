"""Networks that join, split and pick channels: what is left of them after any plan is what the plan says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from builders import Form, assert_same_outputs, feed_for, lossless
from convnets import assembled, assert_same
from onnx import helper

from onnx_condense import spaces
from onnx_condense.network.model import Network, load
from onnx_condense.ops import layout, pick
from onnx_condense.plan import ChannelView, Plan, ReaderUpdate, Selection
from onnx_condense.proving.verify import check_graph, check_numbers
from onnx_condense.rewrite import apply_plan
from onnx_condense.runtime import Runtime
from onnx_condense.spaces import find_spaces

Array = npt.NDArray[Any]
NODE = helper.make_node
FAR = 2**63 - 1
IMAGE = ("N", 3, 8, 8)
SAME = {"pads": [1, 1, 1, 1]}


def conv(x: str, name: str, y: str | None = None, **attributes: Any) -> list[onnx.NodeProto]:
    """Convolution and activation, with the weight and bias of that name."""
    node = NODE("Conv", [x, f"{name}.w", f"{name}.b"], [f"{name}.z"], name=name, **(SAME | attributes))
    return [node, NODE("LeakyRelu", [f"{name}.z"], [y or name], alpha=0.3)]


def linear(x: str, name: str, y: str | None = None) -> list[onnx.NodeProto]:
    """Gemm and activation."""
    return [
        NODE("Gemm", [x, f"{name}.w", f"{name}.b"], [f"{name}.z"], name=name, transB=1),
        NODE("LeakyRelu", [f"{name}.z"], [y or name], alpha=0.3),
    ]


def net(
    nodes: Sequence[onnx.NodeProto],
    weights: Mapping[str, tuple[int, ...]],
    stored: Mapping[str, Any] | None = None,
    opset: int = 20,
    shape: Sequence[int | str] = IMAGE,
) -> onnx.ModelProto:
    """A network from x to y; weights: the shape of each, by the name of its layer."""
    rng = np.random.default_rng(5)
    tensors: dict[str, Array] = {n: np.asarray(v) for n, v in (stored or {}).items()}
    for name, size in weights.items():
        fan_in = max(int(np.prod(size[1:])), 1)
        tensors[f"{name}.w"] = (rng.standard_normal(size) / np.sqrt(fan_in)).astype(np.float32)
        tensors[f"{name}.b"] = rng.standard_normal(size[0]).astype(np.float32)
    used = {i for n in nodes for i in n.input}
    tensors = {n: v for n, v in tensors.items() if n in used}
    return assembled(nodes, tensors, {"x": shape}, Form(opset=opset, ir=8 if opset < 20 else 9))


def some_plan(network: Network, view: ChannelView, seed: int) -> Plan:
    """Half of what may go, as long as no tensor loses all of its channels; readers shrink and get offsets."""
    rng = np.random.default_rng(seed)
    free = sorted({int(c) for s in view.spaces for c in s.channels[~s.pinned]})
    tensors = [set(np.unique(labels).tolist()) for labels in view.labels.values()]
    gone: set[int] = set()
    for channel in rng.permutation(free).tolist():
        if len(gone) < len(free) / 2 and not any(t <= gone | {channel} for t in tensors if channel in t):
            gone.add(channel)
    selections = [Selection(s.name, np.flatnonzero(~np.isin(s.channels, list(gone)))) for s in view.spaces]
    updates = []
    for i, use in enumerate(view.linear):
        stored = network.constant(network.nodes[use.weight.node].inputs[use.weight.position])
        assert stored is not None
        columns = np.repeat(np.isin(use.columns, list(gone)), use.taps)
        matrix = use.matrix(stored) * rng.uniform(0.5, 1.5)
        matrix[:, columns] = 0.0
        offset = rng.standard_normal(len(matrix)) if columns.any() else np.zeros(len(matrix))
        updates.append(ReaderUpdate(i, matrix, offset))
    return Plan("fitted", tuple(s for s in selections if s.keep.size), tuple(updates))


def check(proto: onnx.ModelProto, expected: Mapping[str, int], seeds: Sequence[int] = (0, 1, 2)) -> ChannelView:
    """Whatever goes, what is left is the plan; expected: how many free channels the space of each layer has."""
    network = load(proto)
    view = find_spaces(network)
    free = {s.name.removesuffix(".z"): int((~s.pinned).sum()) for s in view.spaces if not s.pinned.all()}
    assert free == dict(expected), view.refusals
    for seed in seeds:
        plan = some_plan(network, view, seed)
        made = apply_plan(network, view, plan)
        dropped = plan.dropped(view.spaces)
        assert dropped
        check_graph(proto, made)
        before, after = (sum(int(np.prod(t.dims)) for t in p.graph.initializer) for p in (proto, made))
        assert after < before
        check_numbers(network, view, plan, made, [feed_for(proto, rows=2, seed=seed)], Runtime(threads=1))
    return view


def refusal(proto: onnx.ModelProto) -> set[str]:
    """Reasons for channels to stay, but for those of the graph's output."""
    view = find_spaces(load(proto))
    return {r.reason for r in view.refusals if r.reason != spaces.GRAPH_OUTPUT}


def test_dense_block() -> None:
    nodes = [
        *conv("x", "a"),
        *conv("a", "b"),
        NODE("Concat", ["a", "b"], ["ab"], axis=1),
        *conv("ab", "c"),
        NODE("Concat", ["ab", "c", "x"], ["abcx"], axis=-3),
        NODE("BatchNormalization", ["abcx", "one", "zero", "zero", "one"], ["n"]),
        *conv("n", "d", "y"),
    ]
    weights = {"a": (4, 3, 3, 3), "b": (5, 4, 3, 3), "c": (6, 9, 3, 3), "d": (4, 18, 3, 3)}
    norm = {"one": np.ones(18, np.float32), "zero": np.zeros(18, np.float32)}
    check(net(nodes, weights, norm), {"a": 4, "b": 5, "c": 6})


def test_stored_channels_in_between_stay() -> None:
    nodes = [*conv("x", "a"), NODE("Concat", ["a", "k", "a"], ["h"], axis=1), *conv("h", "d", "y")]
    stored = {"k": np.ones((2, 2, 8, 8), np.float32)}
    view = check(net(nodes, {"a": (4, 3, 3, 3), "d": (4, 10, 3, 3)}, stored, shape=(2, 3, 8, 8)), {"a": 4})
    assert np.count_nonzero(view.linear[-1].columns) == 8


def test_inception() -> None:
    """Branches of other kernels, pooled and joined, read by a head behind Flatten."""
    nodes = [
        *conv("x", "a", pads=[0, 0, 0, 0]),
        *conv("x", "b"),
        NODE("MaxPool", ["x"], ["p"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        *conv("p", "c", pads=[0, 0, 0, 0]),
        NODE("Concat", ["a", "b", "c"], ["h"], axis=1),
        NODE("AveragePool", ["h"], ["q"], kernel_shape=[4, 4], strides=[4, 4]),
        NODE("Flatten", ["q"], ["f"]),
        *linear("f", "d", "y"),
    ]
    weights = {"a": (3, 3, 1, 1), "b": (4, 3, 3, 3), "c": (1, 3, 1, 1), "d": (5, 32)}
    check(net(nodes, weights), {"a": 3, "b": 4, "c": 1})


C2F: dict[str, tuple[list[onnx.NodeProto], dict[str, Any], int]] = {
    "split 11": ([NODE("Split", ["a"], ["p", "q"], axis=1, split=[4, 4])], {}, 11),
    "split 11 in equal parts": ([NODE("Split", ["a"], ["p", "q"], axis=1)], {}, 11),
    "split 13": ([NODE("Split", ["a", "parts"], ["p", "q"], axis=-3)], {"parts": [4, 4]}, 13),
    "split 13 in equal parts": ([NODE("Split", ["a"], ["p", "q"], axis=1)], {}, 13),
    "split 18 in equal parts": ([NODE("Split", ["a"], ["p", "q"], axis=1, num_outputs=2)], {}, 18),
    "slices": (
        [NODE("Slice", ["a", "zero", "four", "one"], ["p"]), NODE("Slice", ["a", "four", "far", "one"], ["q"])],
        {"zero": [0], "one": [1], "four": [4], "far": [FAR]},
        20,
    ),
    "slices from the end": (
        [NODE("Slice", ["a", "zero", "four", "one"], ["p"]), NODE("Slice", ["a", "four", "far", "one"], ["q"])],
        {"zero": [-FAR], "one": [-3], "four": [-4], "far": [8]},
        20,
    ),
    "slices 9": (
        [
            NODE("Slice", ["a"], ["p"], axes=[1], starts=[0], ends=[4]),
            NODE("Slice", ["a"], ["q"], axes=[1, 2], starts=[-4, 0], ends=[FAR, 8]),
        ],
        {},
        9,
    ),
    "picks": (
        [NODE("Gather", ["a", "even"], ["p"], axis=1), NODE("Gather", ["a", "odd"], ["q"], axis=1)],
        {"even": [0, 2, 4, 6], "odd": [-1, 3, -3, 1]},
        20,
    ),
}


@pytest.mark.parametrize("name", C2F)
def test_two_parts_of_which_one_goes_on(name: str) -> None:
    nodes, numbers, opset = C2F[name]
    stored = {n: np.array(v, np.int64) for n, v in numbers.items()}
    every = [
        *conv("x", "a"),
        *nodes,
        *conv("q", "b"),
        NODE("Concat", ["p", "q", "b"], ["h"], axis=1),
        *conv("h", "d", "y"),
    ]
    weights = {"a": (8, 3, 3, 3), "b": (5, 4, 3, 3), "d": (4, 13, 3, 3)}
    check(net(every, weights, stored, opset), {"a": 8, "b": 5})


@pytest.mark.parametrize("opset", [11, 13, 18])
def test_gated_units(opset: int) -> None:
    """Halves of one layer that are multiplied go in pairs."""
    more: dict[str, Any] = {"num_outputs": 2} if opset == 18 else {}
    nodes = [
        *linear("x", "a"),
        NODE("Split", ["a"], ["p", "q"], axis=-1, **more),
        NODE("Sigmoid", ["q"], ["g"]),
        NODE("Mul", ["p", "g"], ["h"]),
        *linear("h", "d", "y"),
    ]
    view = check(net(nodes, {"a": (12, 7), "d": (4, 6)}, opset=opset, shape=("N", 7)), {"a": 6})
    assert len(view.spaces[0].channels) == 6


def test_three_parts_of_other_sizes() -> None:
    nodes = [
        *linear("x", "a"),
        NODE("Split", ["a"], ["p", "q", "r"], axis=1, num_outputs=3),
        NODE("Concat", ["r", "p", "q"], ["h"], axis=1),
        *linear("h", "d", "y"),
    ]
    view = check(net(nodes, {"a": (8, 7), "d": (4, 8)}, opset=18, shape=("N", 7)), {"a": 8})
    rows = view.linear[0].rows
    assert view.linear[1].columns.tolist() == np.roll(rows, 2).tolist()


def test_u_net_skip() -> None:
    nodes = [
        *conv("x", "a"),
        NODE("MaxPool", ["a"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        *conv("p", "b"),
        NODE("Resize", ["b", "", "scales"], ["u"], mode="nearest"),
        NODE("Concat", ["u", "a"], ["h"], axis=1),
        *conv("h", "c"),
        NODE("Slice", ["c", "crop", "far", "axes"], ["s"]),
        *conv("s", "d", "y"),
    ]
    stored = {"scales": np.array([1, 1, 2, 2], np.float32), "crop": [1, 2], "far": [-1, FAR], "axes": [2, 3]}
    weights = {"a": (4, 3, 3, 3), "b": (6, 4, 3, 3), "c": (5, 10, 3, 3), "d": (4, 5, 3, 3)}
    check(net(nodes, weights, stored), {"a": 4, "b": 6, "c": 5})


@pytest.mark.parametrize("inner", [3, -1])
def test_channel_shuffle(inner: int) -> None:
    """Channels of one place in all groups go together, and end up where they belong."""
    nodes = [
        *conv("x", "a"),
        NODE("Reshape", ["a", "apart"], ["g"]),
        NODE("Transpose", ["g"], ["t"], perm=[0, 2, 1, 3, 4]),
        NODE("Reshape", ["t", "whole"], ["h"]),
        *conv("h", "d", "y"),
    ]
    stored = {"apart": [2, 2, inner, 8, 8], "whole": [2, 6, 8, 8]}
    view = check(net(nodes, {"a": (6, 3, 3, 3), "d": (4, 6, 3, 3)}, stored, shape=(2, 3, 8, 8)), {"a": 3})
    rows, columns = view.linear[0].rows, view.linear[1].columns
    assert rows.tolist() == [*rows[:3], *rows[:3]]
    assert columns.tolist() == np.repeat(rows[:3], 2).tolist()


def test_shuffle_of_joined_branches() -> None:
    nodes = [
        *conv("x", "a"),
        *conv("x", "b", pads=[0, 0, 0, 0]),
        NODE("Concat", ["a", "b"], ["ab"], axis=1),
        NODE("Reshape", ["ab", "apart"], ["g"]),
        NODE("Transpose", ["g"], ["t"], perm=[0, 2, 1, 3, 4]),
        NODE("Reshape", ["t", "whole"], ["h"]),
        NODE("Split", ["h", "halves"], ["p", "q"], axis=1),
        *conv("q", "c"),
        NODE("Concat", ["p", "c"], ["k"], axis=1),
        *conv("k", "d", "y"),
    ]
    stored = {"apart": [0, 2, 4, 8, 8], "whole": [-1, 8, 8, 8], "halves": [4, 4]}
    weights = {"a": (4, 3, 3, 3), "b": (4, 3, 1, 1), "c": (4, 4, 3, 3), "d": (4, 8, 3, 3)}
    check(net(nodes, weights, stored), {"a": 4, "c": 4})


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_pixel_shuffle(mode: str) -> None:
    nodes = [
        *conv("x", "a"),
        NODE("DepthToSpace", ["a"], ["h"], blocksize=2, mode=mode),
        *conv("h", "b"),
        NODE("SpaceToDepth", ["b"], ["s"], blocksize=4),
        *conv("s", "d", "y"),
    ]
    check(net(nodes, {"a": (12, 3, 3, 3), "b": (4, 3, 3, 3), "d": (4, 64, 3, 3)}), {"a": 3, "b": 4})


def test_heads() -> None:
    """Rows of a layer laid out as heads and back; what goes, goes in every head."""
    nodes = [
        *linear("x", "a"),
        NODE("Reshape", ["a", "heads"], ["h"]),
        NODE("Transpose", ["h"], ["t"], perm=[0, 2, 1]),
        NODE("Relu", ["t"], ["r"]),
        NODE("Transpose", ["r"], ["u"], perm=[0, 2, 1]),
        NODE("Reshape", ["u", "flat"], ["f"]),
        *linear("f", "d", "y"),
    ]
    stored = {"heads": [-1, 3, 4], "flat": [0, 12]}
    check(net(nodes, {"a": (12, 7), "d": (4, 12)}, stored, shape=("N", 7)), {"a": 4})


def test_repeated_channels() -> None:
    nodes = [
        *conv("x", "a"),
        NODE("Tile", ["a", "twice"], ["t"]),
        NODE("GlobalAveragePool", ["t"], ["m"]),
        NODE("Expand", ["m", "size"], ["e"]),
        *conv("e", "d", "y"),
    ]
    stored = {"twice": [1, 2, 1, 3], "size": [1, 8, 4, 4]}
    check(net(nodes, {"a": (4, 3, 3, 3), "d": (4, 8, 3, 3)}, stored), {"a": 4})


def test_patches_side_by_side() -> None:
    """Focus: every second pixel, joined along the channels; and rows joined along the height."""
    nodes = [
        *conv("x", "a"),
        NODE("Slice", ["a", "zero", "far", "two", "step"], ["p"]),
        NODE("Slice", ["a", "one", "far", "two", "step"], ["q"]),
        NODE("Concat", ["p", "q", "p"], ["h"], axis=1),
        *conv("h", "b"),
        *conv("h", "c"),
        NODE("Concat", ["b", "c"], ["k"], axis=2),
        *conv("k", "d", "y"),
    ]
    stored = {"zero": [0], "one": [1], "far": [FAR], "two": [2], "step": [2]}
    weights = {"a": (4, 3, 3, 3), "b": (5, 12, 3, 3), "c": (5, 12, 3, 3), "d": (4, 5, 3, 3)}
    check(net(nodes, weights, stored), {"a": 4, "b": 5})


def test_the_end_stays_the_end_when_all_behind_it_goes() -> None:
    """x[:, :-2] of which the last two go: -0 would be the start."""
    for opset in (9, 20):
        by_name = NODE("Slice", ["a"], ["h"], axes=[1], starts=[0], ends=[-2])
        part = by_name if opset == 9 else NODE("Slice", ["a", "s", "e", "i"], ["h"])
        stored = {"s": [0], "e": [-2], "i": [1]}
        proto = net(
            [*conv("x", "a"), part, *conv("h", "d", "y")], {"a": (6, 3, 3, 3), "d": (4, 4, 3, 3)}, stored, opset
        )
        network = load(proto)
        view = find_spaces(network)
        plan = Plan("lossless", (Selection("a.z", np.arange(4)),), ())
        made = apply_plan(network, view, plan)
        check_graph(proto, made)
        check_numbers(network, view, plan, made, [feed_for(proto, rows=2)], Runtime(threads=1))


# ---- what the weights prove: laws say no more than is true ----


def copies(proto: onnx.ModelProto, name: str, of: Sequence[int]) -> onnx.ModelProto:
    """The same network with rows of one layer replaced by copies of others."""
    for tensor in proto.graph.initializer:
        if tensor.name in (f"{name}.w", f"{name}.b"):
            value = onnx.numpy_helper.to_array(tensor)[list(of)]
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(value), tensor.name))
    return proto


def test_copies_in_one_group_only_are_no_copies() -> None:
    """A place in all groups is one channel: all its rows have to be copies."""
    nodes = [
        *linear("x", "a"),
        NODE("Reshape", ["a", "heads"], ["h"]),
        NODE("Flatten", ["h"], ["f"]),
        *linear("f", "d", "y"),
    ]
    for of in ([0, 0, 2, 3, 4, 5], [0, 1, 2, 3, 3, 5]):
        proto = copies(net(nodes, {"a": (6, 7), "d": (4, 6)}, {"heads": [-1, 2, 3]}, shape=("N", 7)), "a", of)
        done = lossless(proto)
        assert done.widths() == [3]
        assert_same_outputs(proto, done.proto)


def test_windows_of_one_tensor_differ() -> None:
    """The same channels seen through two windows are no copies, whether joined or summed."""
    nodes = [
        *conv("x", "a"),
        NODE("Slice", ["a", "zero", "six", "two"], ["p"]),
        NODE("Slice", ["a", "two", "far", "two"], ["q"]),
        NODE("Concat", ["p", "q"], ["h"], axis=1),
        *conv("h", "b", pads=[0, 0, 0, 0]),
        *conv("b", "d", "y"),
    ]
    stored = {"zero": [0], "two": [2], "six": [6], "far": [FAR]}
    proto = net(nodes, {"a": (4, 3, 3, 3), "b": (5, 8, 1, 1), "d": (4, 5, 3, 3)}, stored)
    for tensor in proto.graph.initializer:
        if tensor.name == "b.w":
            # Row 1 reads from the second window what row 0 reads from the first.
            value = onnx.numpy_helper.to_array(tensor).copy()
            value[:2] = 0
            value[0, :4, 0, 0] = value[1, 4:, 0, 0] = [1, 2, 3, 4]
            tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
        if tensor.name == "b.b":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.zeros(5, np.float32), tensor.name))
    assert lossless(proto).widths() == [4, 5]


def test_rows_joined_along_the_height_differ() -> None:
    """Channels that are copies in one of two images put above each other are no copies."""
    nodes = [*conv("x", "a"), *conv("x", "b"), NODE("Concat", ["a", "b"], ["h"], axis=2), *conv("h", "d", "y")]
    weights = {"a": (4, 3, 3, 3), "b": (4, 3, 3, 3), "d": (4, 4, 3, 3)}
    for name in "ab":
        assert lossless(copies(net(nodes, weights), name, [0, 0, 2, 3])).widths() == [4]


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_copies_among_pixels(mode: str) -> None:
    """Pixels of one channel are no copies of another's unless all are; then the channels merge."""
    nodes = [*conv("x", "a"), NODE("DepthToSpace", ["a"], ["h"], blocksize=2, mode=mode), *conv("h", "d", "y")]
    weights = {"a": (8, 3, 3, 3), "d": (4, 2, 3, 3)}
    one, two = ([0, 1, 2, 3], [4, 5, 6, 7]) if mode == "CRD" else ([0, 2, 4, 6], [1, 3, 5, 7])
    some, every = list(range(8)), list(range(8))
    for i, j in zip(one, two, strict=True):
        every[j] = i
        some[j] = i if j != two[-1] else j
    assert lossless(copies(net(nodes, weights), "a", some)).widths() == [2]
    proto = copies(net(nodes, weights), "a", every)
    done = lossless(proto)
    assert done.widths() == [1]
    assert_same(proto, done.proto)


def test_copies_in_every_group_merge() -> None:
    nodes = [
        *conv("x", "a"),
        *conv("x", "b"),
        NODE("Concat", ["a", "b"], ["ab"], axis=1),
        NODE("Reshape", ["ab", "apart"], ["g"]),
        NODE("Transpose", ["g"], ["t"], perm=[0, 2, 1, 3, 4]),
        NODE("Reshape", ["t", "whole"], ["h"]),
        *conv("h", "d", "y"),
    ]
    weights = {"a": (3, 3, 3, 3), "b": (3, 3, 3, 3), "d": (4, 6, 3, 3)}
    dense = net(nodes, weights, {"apart": [-1, 2, 3, 8, 8], "whole": [0, 6, 8, 8]})
    assert lossless(copies(dense, "a", [0, 0, 2])).widths() == [3]
    proto = copies(dense, "b", [0, 0, 2])
    done = lossless(proto)
    assert done.widths() == [2]
    assert_same(proto, done.proto)


def test_copies_in_joined_branches_merge() -> None:
    nodes = [*conv("x", "a"), *conv("x", "b"), NODE("Concat", ["a", "b"], ["h"], axis=1), *conv("h", "d", "y")]
    proto = net(nodes, {"a": (4, 3, 3, 3), "b": (4, 3, 3, 3), "d": (4, 8, 3, 3)})
    proto = copies(copies(proto, "a", [0, 1, 1, 3]), "b", [2, 1, 2, 2])
    done = lossless(proto)
    assert done.widths() == [3, 2]
    assert_same(proto, done.proto)


# ---- refusals ----

A, D = conv("x", "a"), conv("h", "d", "y")
PLACE = [NODE("Shape", ["x"], ["s"]), NODE("Slice", ["s", "one", "two"], ["n"])]
REFUSED: dict[str, tuple[list[onnx.NodeProto], dict[str, Any], str]] = {
    "joined with stored rows": (
        [NODE("Concat", ["a", "k"], ["h"], axis=2)],
        {"k": np.ones((2, 6, 1, 8))},
        spaces.FIXED,
    ),
    "parts that share channels": (
        [NODE("Reshape", ["a", "to"], ["g"]), NODE("Reshape", ["g", "back"], ["h"])],
        {"to": [2, 4, 96], "back": [2, 6, 8, 8]},
        layout.NOT_WHOLE,
    ),
    "a step": (
        [NODE("Slice", ["a", "zero", "far", "one", "two"], ["h"])],
        {"zero": [0], "one": [1], "two": [2], "far": [FAR]},
        pick.STEPPED,
    ),
    "computed ends": (
        [NODE("Shape", ["a"], ["s"]), NODE("Slice", ["s", "one", "two"], ["n"]), NODE("Sub", ["n", "one"], ["m"]),
         NODE("Slice", ["a", "zero", "m", "one"], ["h"])],
        {"zero": [0], "one": [1], "two": [2]},
        pick.COMPUTED_CUT,
    ),
    "computed picks": (
        [*PLACE, NODE("Sub", ["n", "one"], ["m"]), NODE("Gather", ["a", "m"], ["h"], axis=1)],
        {"one": [1], "two": [2]},
        pick.PICKED,
    ),
    "one pick": (
        [NODE("Gather", ["a", "k"], ["g"], axis=1), NODE("Unsqueeze", ["g", "one"], ["h"])],
        {"k": 3, "one": [1]},
        pick.PICKED,
    ),
    "expanded to a computed width": (
        [*PLACE, NODE("Add", ["n", "n"], ["six"]), NODE("Shape", ["a"], ["t"]),
         NODE("Slice", ["t", "zero", "one"], ["m"]), NODE("Concat", ["m", "six", "eight"], ["to"], axis=0),
         NODE("Expand", ["a", "to"], ["h"])],
        {"zero": [0], "one": [1], "two": [2], "eight": [8, 8]},
        layout.COMPUTED_WIDTH,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    nodes, stored, reason = REFUSED[name]
    typed = {n: np.asarray(v, np.float32 if np.ndim(v) > 1 else np.int64) for n, v in stored.items()}
    made = onnx.shape_inference.infer_shapes(
        assembled(
            [*A, *nodes],
            {"a.w": np.ones((6, 3, 3, 3), np.float32), "a.b": np.ones(6, np.float32)} | typed,
            {"x": (2, 3, 8, 8)},
            ends=("h",),
        )
    )
    width = made.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    proto = net([*A, *nodes, *D], {"a": (6, 3, 3, 3), "d": (4, width, 3, 3)}, typed, shape=(2, 3, 8, 8))
    assert reason in refusal(proto)
    view = find_spaces(load(proto))
    assert not any(s.name == "a.z" and s.reducible for s in view.spaces)
