"""Each rule of the lossless proofs for images, on networks whose outputs a looser rule would change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from builders import lossless
from convnets import assembled, assert_same, condensed, network, rows
from onnx import helper

Array = Any
NODE = helper.make_node
SAME: dict[str, Any] = {"pads": [1, 1, 1, 1]}


def act(kind: str) -> list[onnx.NodeProto]:
    return [NODE(kind, ["z", "low", "high"] if kind == "Clip" else ["z"], ["h"])]


LIMITS = {"low": np.array(0.0), "high": np.array(6.0)}


@pytest.mark.parametrize("kind", ["Clip", "HardSwish", "Gelu", "Elu", "Softplus", "Sigmoid", "Tanh", "Mish"])
def test_scaled_copies_stay_where_scales_do_not_pass(kind: str) -> None:
    weight, bias = rows(0, 1, 2)
    limits: dict[str, Array] = LIMITS if kind == "Clip" else {}
    condensed(network(act(kind), reader={}, w=weight, b=bias, **limits), 6)
    weight, bias = rows(0, 1, 1)
    condensed(network(act(kind), reader=SAME, w=weight, b=bias, **limits), 3)


@pytest.mark.parametrize(("factor", "left"), [(2.0, 3), (0.5, 3), (-1.0, 6)])
@pytest.mark.parametrize("reader", [{}, SAME], ids=["valid", "padded"])
def test_relu_takes_positive_scales_only(factor: float, left: int, reader: dict[str, Any]) -> None:
    weight, bias = rows(0, 1, factor)
    condensed(network(act("Relu"), reader=reader, w=weight, b=bias), left)


def test_biases_must_agree_with_their_rows() -> None:
    weight, bias = rows(0, 1, 2)
    condensed(network(act("Relu"), reader={}, w=weight, b=np.r_[bias[:3], bias[:3]]), 6)
    weight, bias = rows(0, 1, 1)
    condensed(network(act("Relu"), reader={}, w=weight, b=np.r_[bias[:3], bias[:3] + 0.1]), 6)


@pytest.mark.parametrize(
    "change",
    [lambda w: np.roll(w, 1, -1), lambda w: w[..., ::-1], lambda w: w.transpose(0, 1, 3, 2)],
    ids=["rolled", "mirrored", "transposed"],
)
def test_kernels_are_compared_tap_by_tap(change: Any) -> None:
    """Shifted, mirrored and transposed kernels have equal sums and norms."""
    weight, bias = rows(0, 1, 1)
    weight[3:] = change(weight[:3])
    condensed(network(act("Relu"), reader={}, w=weight, b=bias), 6)


def test_columns_cancel_tap_by_tap() -> None:
    """Two copies read with opposite kernels are nothing; read with opposite, shifted kernels they are not."""
    weight, bias = rows(0, 1, 1)
    v = np.random.default_rng(1).standard_normal((5, 6, 3, 3))
    tail = [NODE("Relu", ["z"], ["g"]), NODE("Conv", ["g", "v", "a"], ["t"]), NODE("Tanh", ["t"], ["h"])]
    stored: dict[str, Array] = {"w": weight, "b": bias, "a": np.full(5, 0.5), "u": np.ones((2, 5, 3, 3))}
    end = NODE("Conv", ["h", "u"], ["y"])
    v[0, 3:] = -v[0, :3]
    condensed(network([*tail, end], v=v, **stored), 3, 4)
    v[0, 3:] = -np.roll(v[0, :3], 1, -1)
    condensed(network([*tail, end], v=v, **stored), 3, 5)


PADDED: dict[str, dict[str, Any]] = {
    "pads": SAME,
    "upper": {"auto_pad": "SAME_UPPER"},
    "lower": {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
    "one side": {"pads": [0, 0, 0, 1]},
}
VALID: dict[str, dict[str, Any]] = {
    "nothing": {},
    "valid": {"auto_pad": "VALID"},
    "zeros": {"pads": [0, 0, 0, 0]},
    "dilated": {"dilations": [1, 2]},
}


def constants(levels: Sequence[float]) -> dict[str, Array]:
    """Three channels that vary and constant ones."""
    weight, bias = rows(0, 1)
    return {"w": np.r_[weight, np.zeros((len(levels), 3, 3, 3))], "b": np.r_[bias, levels]}


@pytest.mark.parametrize("reader", PADDED)
def test_one_constant_stays_before_padding(reader: str) -> None:
    condensed(network(act("Relu"), reader=PADDED[reader], **constants([0.3, 0.5, 0.9])), 4)
    condensed(network(act("Relu"), reader=PADDED[reader], **constants([-0.3, -0.5])), 3)
    condensed(network(act("Identity"), reader=PADDED[reader], **constants([-0.3, 0.5])), 4)


@pytest.mark.parametrize("reader", VALID)
def test_all_constants_go_where_nothing_is_padded(reader: str) -> None:
    condensed(network(act("Relu"), reader=VALID[reader], **constants([0.3, 0.5, -0.9])), 3)


def test_a_constant_read_twice_stays_for_the_padded_reader() -> None:
    nodes = [*act("Relu"), NODE("Conv", ["h", "v"], ["p"], **SAME), NODE("Conv", ["h", "v2"], ["q"])]
    rng = np.random.default_rng(0)
    extra: dict[str, Array] = {"v": rng.standard_normal((4, 6, 3, 3)), "v2": rng.standard_normal((4, 6, 3, 3))}
    condensed(network(nodes, ends=("p", "q"), **constants([0.3, 0.5, 0.9]), **extra), 4)


@pytest.mark.parametrize("reader", [SAME, {"pads": [1, 1, 1, 1], "dilations": [1, 1]}])
def test_a_constant_read_at_the_centre_only_is_right(reader: dict[str, Any]) -> None:
    """The padding is never under a nonzero weight, so that the constant may go or stay."""
    v = np.random.default_rng(0).standard_normal((4, 5, 3, 3))
    v[:, 3:] *= np.eye(3)[1] * np.eye(3)[1][:, None]
    proto = network(act("Relu"), reader=reader, v=v, **constants([0.3, 0.5]))
    done = lossless(proto)
    assert done.widths()[0] in (3, 4)
    assert_same(proto, done.proto)


@pytest.mark.parametrize("reader", [{}, SAME], ids=["valid", "padded"])
def test_what_reads_a_constant_beside_zeros_varies_over_the_image(reader: dict[str, Any]) -> None:
    """Rows that differ only in how they read a constant, with equal sums, are copies where nothing is padded."""
    rng = np.random.default_rng(0)
    v = np.repeat(rng.standard_normal((2, 4, 3, 3)), 2, 0)
    v[1::2, 3] = np.roll(v[::2, 3], 1, -1)
    u = rng.standard_normal((3, 4, 3, 3))
    nodes = [*act("Relu"), NODE("Conv", ["h", "v"], ["t"], **reader), NODE("Gelu", ["t"], ["g"])]
    nodes.append(NODE("Conv", ["g", "u"], ["y"]))
    condensed(network(nodes, v=v, u=u, **constants([0.7])), *((4, 4) if reader else (3, 2)))


def test_what_reads_only_constants_beside_zeros_is_no_constant() -> None:
    v, u = np.random.default_rng(0).standard_normal((2, 4, 4, 3, 3))
    nodes = [*act("Relu"), NODE("Conv", ["h", "v"], ["g"], **SAME), NODE("Conv", ["g", "u"], ["y"])]
    proto = network(nodes, v=v, u=u, w=np.zeros((4, 3, 3, 3)), b=np.full(4, 0.5))
    condensed(proto, 1, 4)


def test_a_network_of_zeros_keeps_one_channel() -> None:
    condensed(network(act("Relu"), reader=SAME, w=np.zeros((4, 3, 3, 3)), b=np.full(4, -0.5)), 1)
    weight, bias = rows(0, 1, 1)
    condensed(network(act("Gelu"), reader=SAME, w=weight, b=bias, v=np.zeros((4, 6, 3, 3))), 1)


def normed(changes: dict[str, Array], weight: Array, bias: Array) -> dict[str, Array]:
    """Two copies of three channels with equal statistics, but for the changes."""
    rng = np.random.default_rng(3)
    stored: dict[str, Array] = {n: np.tile(rng.uniform(0.5, 1.5, 3), 2) for n in "gsmk"}
    return {"w": weight, "b": bias, **stored, **changes}


def norm(x: str, y: str) -> onnx.NodeProto:
    return NODE("BatchNormalization", [x, "g", "s", "m", "k"], [y])


@pytest.mark.parametrize("kind", ["Relu", "Gelu"])
@pytest.mark.parametrize("part", "gsmk")
def test_copies_with_other_statistics_stay(part: str, kind: str) -> None:
    base: dict[str, Array] = normed({}, *rows(0, 1, 1))
    nodes = [norm("z", "n"), NODE(kind, ["n"], ["h"])]
    condensed(network(nodes, reader=SAME, **base), 3)
    base[part] = base[part] * np.r_[1, 1, 1, 1.3, 1.3, 1.3]
    condensed(network(nodes, reader=SAME, **base), 6)


def test_statistics_make_copies_of_other_rows() -> None:
    base: dict[str, Array] = normed({}, *rows(0, 1, -2))
    for part, factor in {"g": -1.0, "m": -2.0, "k": 4.0}.items():
        base[part][3:] = base[part][:3] * factor
    base["k"] += np.r_[np.zeros(3), np.full(3, 3e-5)]
    condensed(network([norm("z", "n"), NODE("Gelu", ["n"], ["h"])], reader=SAME, **base), 3)


def after(*offsets: float) -> tuple[list[onnx.NodeProto], dict[str, Array]]:
    """Copies that a normalisation behind the activation doubles and moves apart."""
    stored: dict[str, Array] = normed({"m": np.zeros(6), "k": np.ones(6)}, *rows(0, 1, 1))
    stored["g"][3:] = 2 * stored["g"][:3]
    stored["s"][3:] = 2 * stored["s"][:3] + offsets
    return [NODE("Relu", ["z"], ["r"]), norm("r", "n")], stored


IDENTITY: tuple[Any, ...] = ("Identity", {}, ())
POOL: dict[str, Any] = {"kernel_shape": [3, 3]}
OUT: dict[str, Any] = {**POOL, **SAME}
OFFSETS: dict[str, tuple[tuple[Any, ...], dict[str, Any], int]] = {
    "valid": (IDENTITY, {}, 3),
    "padded": (IDENTITY, SAME, 6),
    "same": (IDENTITY, {"auto_pad": "SAME_UPPER"}, 6),
    "average": (("AveragePool", POOL, ()), {}, 3),
    "average, zeros left out": (("AveragePool", OUT, ()), {}, 3),
    "average, zeros counted": (("AveragePool", {**OUT, "count_include_pad": 1}, ()), {}, 6),
    "average, same": (("AveragePool", {**POOL, "auto_pad": "SAME_UPPER", "count_include_pad": 1}, ()), {}, 6),
    "maximum": (("MaxPool", OUT, ()), {}, 3),
    "pad": (("Pad", {}, ("eight",)), {}, 6),
}


@pytest.mark.parametrize("case", OFFSETS)
def test_another_offset_passes_where_no_zeros_come_in(case: str) -> None:
    (op, attributes, names), reader, left = OFFSETS[case]
    nodes, stored = after(0.5, -0.25, 1.0)
    nodes.append(NODE(op, ["n", *names], ["h"], **attributes))
    stored["eight"] = np.array([0, 0, 1, 1, 0, 0, 1, 1])
    condensed(network(nodes, reader=reader, **stored), left)
    nodes[:2], exact = after(0, 0, 0)
    condensed(network(nodes, reader=reader, **(stored | exact)), 3)


MIRRORS = [
    ("Tanh", "MaxPool", POOL, {}, 6),
    ("Tanh", "AveragePool", POOL, {}, 3),
    ("Tanh", "AveragePool", {**OUT, "count_include_pad": 1}, SAME, 3),
    ("Erf", "MaxPool", OUT, SAME, 6),
    ("Identity", "MaxPool", POOL, {}, 6),
    ("Identity", "AveragePool", POOL, SAME, 3),
    ("Tanh", "LpPool", POOL, {}, 6),
    ("Sigmoid", "MaxPool", POOL, {}, 6),
    ("Sigmoid", "AveragePool", POOL, {}, 3),
    ("Sigmoid", "AveragePool", {**OUT, "count_include_pad": 1}, {}, 6),
    ("Sigmoid", "Identity", {}, SAME, 6),
    ("Sigmoid", "Identity", {}, {}, 3),
]


@pytest.mark.parametrize(("kind", "op", "attributes", "reader", "left"), MIRRORS)
def test_mirrors_pass_averages_but_no_maximum(
    kind: str, op: str, attributes: dict[str, Any], reader: dict[str, Any], left: int
) -> None:
    weight, bias = rows(0, 1, -1)
    nodes = [NODE(kind, ["z"], ["a"]), NODE(op, ["a"], ["h"], **attributes)]
    condensed(network(nodes, reader=reader, w=weight, b=bias), left)


REDUCTIONS = {"GlobalMaxPool": 6, "GlobalAveragePool": 3, "GlobalLpPool": 6, "ReduceMax": 6, "ReduceMin": 6,
              "ReduceMean": 3, "ReduceSum": 3, "ReduceL2": 6}  # fmt: skip


@pytest.mark.parametrize(("op", "left"), REDUCTIONS.items())
def test_mirrors_before_a_global_pool(op: str, left: int) -> None:
    weight, bias = rows(0, 1, -1)
    u = np.random.default_rng(0).standard_normal((6, 4))
    axes: dict[str, Array] = {"axes": np.array([2, -1])} if op.startswith("Reduce") else {}
    nodes = [NODE("Tanh", ["z"], ["a"]), NODE(op, ["a", *axes], ["p"]), NODE("Flatten", ["p"], ["f"])]
    condensed(network([*nodes, NODE("MatMul", ["f", "u"], ["y"])], w=weight, b=bias, u=u, **axes), left)


def test_a_negative_factor_before_a_maximum() -> None:
    nodes, stored = after(0, 0, 0)
    stored["g"][3:] *= -1
    nodes.append(NODE("MaxPool", ["n"], ["h"], **POOL))
    condensed(network(nodes, reader={}, **stored), 6)
    nodes[-1] = NODE("AveragePool", ["n"], ["h"], **POOL)
    condensed(network(nodes, reader={}, **stored), 3)


def test_mirrors_read_before_and_after_a_maximum_stay() -> None:
    weight, bias = rows(0, 1, -1)
    v = np.random.default_rng(0).standard_normal((4, 6, 1, 1))
    nodes = [
        NODE("Tanh", ["z"], ["a"]),
        NODE("MaxPool", ["a"], ["p"], **POOL),
        NODE("Conv", ["a", "v"], ["y"]),
        NODE("Conv", ["p", "v2"], ["q"]),
    ]
    condensed(network(nodes, ends=("y", "q"), w=weight, b=bias, v=v, v2=v[::-1].copy()), 6)


@pytest.mark.parametrize(("copies", "left"), [((1, 1), 3), ((1, 0), 6), ((0, 1), 6)])
def test_both_writers_of_a_sum_must_be_copied(copies: tuple[int, int], left: int) -> None:
    (w, b), (w2, b2) = (rows(seed, 1, 1) for seed in (0, 1))
    rng = np.random.default_rng(2)
    w, w2 = (a if copied else rng.standard_normal(a.shape) for a, copied in zip((w, w2), copies, strict=True))
    nodes = [
        NODE("Conv", ["x", "w2", "b2"], ["t"]),
        NODE("Tanh", ["t"], ["k"]),
        NODE("Add", ["z", "k"], ["s"]),
        NODE("Relu", ["s"], ["h"]),
    ]
    condensed(network(nodes, reader=SAME, w=w, b=b, w2=w2, b2=b2), left)


OTHERS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"dilations": [1, 1]}, {"dilations": [2, 2], "pads": [1, 1, 1, 1]}),
    ({"strides": [2, 2], "pads": [1, 1, 1, 1]}, {"strides": [2, 2], "pads": [0, 0, 1, 1]}),
    ({"strides": [2, 2], "pads": [3, 3, 3, 3]}, {}),
    ({"strides": [2, 2], "auto_pad": "SAME_UPPER"}, {"strides": [2, 2], "auto_pad": "SAME_LOWER"}),
]


@pytest.mark.parametrize(("one", "other"), OTHERS)
def test_one_weight_with_other_attributes_is_another_function(one: dict[str, Any], other: dict[str, Any]) -> None:
    """The difference of the two would be zero if they were the same."""
    w, v = np.random.default_rng(0).standard_normal((2, 4, 4, 3, 3))
    nodes = [
        NODE("Conv", ["x", "w"], ["p"], **one),
        NODE("Conv", ["x", "w"], ["q"], **other),
        NODE("Sub", ["p", "q"], ["d"]),
        NODE("Conv", ["d", "v"], ["y"]),
    ]
    proto = assembled(nodes, {"w": w.astype(np.float32), "v": v.astype(np.float32)}, {"x": ("N", 4, 8, 8)})
    condensed(proto, 4)


def test_other_windows_are_other_functions() -> None:
    weight, bias = rows(0, 1)
    pools = [NODE("MaxPool", ["z"], ["p"], **OUT), NODE("AveragePool", ["z"], ["q"], **OUT)]
    condensed(network([*pools, NODE("Sub", ["p", "q"], ["h"])], reader={}, w=weight, b=bias), 3)


@pytest.mark.parametrize("shift", [1.0, 0.1, 0.001])
def test_statistics_that_all_but_cancel_are_compared_to_their_rounding(shift: float) -> None:
    """Copies whose shift s - f m is small beside s and f m: it is known no better than those."""
    base = normed({}, *rows(0, 1, -2))
    base["g"][3:], base["m"][3:] = 0.75 * base["g"][:3], [-0.3, 0.77, 0.5]
    base["g"][3:] *= -1
    base["k"] = np.ones(6)
    factor = base["g"] / np.sqrt(1 + 1e-5)
    base["s"] = factor * base["m"] + shift * np.r_[np.ones(3), np.full(3, 1.5)]
    del base["b"]
    condensed(network([norm("z", "n"), NODE("Relu", ["n"], ["h"])], reader=SAME, **base), 3)
