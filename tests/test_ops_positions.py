"""Products along another axis than the channels' own: adjacency @ features, Fourier matrices, attention @ values."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from builders import assert_same_outputs, lossless, model, outputs
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from onnx_condense import condense
from onnx_condense.evidence.laws import CONSTANT
from onnx_condense.evidence.trunks import linear_trunks
from onnx_condense.evidence.values import Numbering
from onnx_condense.network.model import load
from onnx_condense.ops import linear
from onnx_condense.ops.product import passing
from onnx_condense.ops.registry import Call, Value
from onnx_condense.spaces import find_spaces

Array = npt.NDArray[Any]
NODE = helper.make_node
F = np.float32
POSITIONS, FEATURES = 5, 7
rng = np.random.default_rng(3)

# By channel: which of 4 functions it is, by what factor, and what is added to it.
OF = np.array([0, 1, 2, 3, 2, 0, 1, 1, 3])
COPIES = len(OF)


@dataclasses.dataclass(frozen=True)
class Mix:
    """Nodes from `h` [2, 5, C] to `u` [2, k, C], what they store, and further inputs."""

    nodes: Sequence[onnx.NodeProto]
    stored: dict[str, Array] = dataclasses.field(default_factory=dict)
    inputs: dict[str, Sequence[int | str]] = dataclasses.field(default_factory=dict)


def turned(tensor: str, result: str, *perm: int) -> onnx.NodeProto:
    """Axes in another order."""
    return NODE("Transpose", [tensor], [result], perm=perm or (0, 2, 1))


C, D = rng.standard_normal((4, POSITIONS)), rng.standard_normal((POSITIONS, 4))
MIXES = {
    "stored left": Mix([NODE("MatMul", ["c", "h"], ["u"])], {"c": C}),
    "stored left, one more axis": Mix([NODE("MatMul", ["c", "h"], ["u"])], {"c": C[None]}),
    "stored left, a stack": Mix(
        [
            NODE("Unsqueeze", ["h", "at"], ["q"]),
            NODE("MatMul", ["c", "q"], ["p"]),
            NODE("ReduceSum", ["p", "at"], ["u"], keepdims=0),
        ],
        {"c": rng.standard_normal((3, 4, POSITIONS)), "at": np.array([1])},
    ),
    "stored vector": Mix(
        [NODE("MatMul", ["c", "h"], ["v"]), NODE("Unsqueeze", ["v", "at"], ["u"])], {"c": C[0], "at": np.array([1])}
    ),
    "stored right": Mix([turned("h", "t"), NODE("MatMul", ["t", "d"], ["v"]), turned("v", "u")], {"d": D}),
    "stored right vector": Mix(
        [turned("h", "t"), NODE("MatMul", ["t", "d"], ["v"]), NODE("Unsqueeze", ["v", "at"], ["u"])],
        {"d": D[:, 0], "at": np.array([1])},
    ),
    "stored, batch axis": Mix(
        [turned("h", "t", 2, 0, 1), NODE("MatMul", ["t", "d"], ["v"]), turned("v", "u", 1, 2, 0)], {"d": D}
    ),
    "stored vector, batch axis": Mix(
        [
            turned("h", "t", 2, 0, 1),
            NODE("MatMul", ["t", "d"], ["v"]),
            turned("v", "g", 1, 0),
            NODE("Unsqueeze", ["g", "at"], ["u"]),
        ],
        {"d": D[:, 0], "at": np.array([1])},
    ),
    "two stored": Mix(
        [NODE("MatMul", ["c", "h"], ["g"]), NODE("MatMul", ["e", "g"], ["u"])],
        {"c": C, "e": rng.standard_normal((6, 4))},
    ),
    "given left": Mix([NODE("MatMul", ["a", "h"], ["u"])], inputs={"a": [2, 4, POSITIONS]}),
    "given left, one for all": Mix([NODE("MatMul", ["a", "h"], ["u"])], inputs={"a": ["k", POSITIONS]}),
    "given right": Mix(
        [turned("h", "t"), NODE("MatMul", ["t", "a"], ["v"]), turned("v", "u")], inputs={"a": [2, POSITIONS, 4]}
    ),
    "given, batch axis": Mix(
        [turned("h", "t", 2, 0, 1), NODE("MatMul", ["t", "a"], ["v"]), turned("v", "u", 1, 2, 0)],
        inputs={"a": [1, POSITIONS, 4]},
    ),
    "given, batch axis on the right": Mix(
        [turned("h", "t", 2, 1, 0), NODE("MatMul", ["a", "t"], ["v"]), turned("v", "u", 2, 1, 0)],
        inputs={"a": [4, POSITIONS]},
    ),
    "attention": Mix(
        [
            NODE("MatMul", ["x", "wq"], ["q"]),
            NODE("MatMul", ["x", "wk"], ["k"]),
            turned("k", "kt"),
            NODE("MatMul", ["q", "kt"], ["s"]),
            NODE("Softmax", ["s"], ["a"]),
            NODE("MatMul", ["a", "h"], ["u"]),
        ],
        {"wq": rng.standard_normal((FEATURES, 3)), "wk": rng.standard_normal((FEATURES, 3))},
    ),
    "FusedMatMul": Mix(
        [NODE("FusedMatMul", ["h", "d"], ["v"], domain="com.microsoft", transA=1, alpha=0.5), turned("v", "u")],
        {"d": D},
    ),
    "FusedMatMul, given": Mix(
        [
            turned("h", "t"),
            NODE("FusedMatMul", ["a", "t"], ["u"], domain="com.microsoft", transA=1, transB=1, alpha=2.0),
        ],
        inputs={"a": [2, POSITIONS, 4]},
    ),
}


def network(
    mix: Mix,
    rows: Array,
    shift: Array,
    activation: str = "Relu",
    columns: Array | None = None,
) -> onnx.ModelProto:
    """X [2, 5, 7] -> MatMul rows [7, C] -> Add shift [C] -> activation -> h, mix, u -> MatMul -> y."""
    columns = np.random.default_rng(8).standard_normal((len(shift), 3)) if columns is None else columns
    stored = {"w": rows, "b": shift, "last": columns, **mix.stored}
    nodes = [
        NODE("MatMul", ["x", "w"], ["m"]),
        NODE("Add", ["m", "b"], ["z"]),
        NODE(activation, ["z"], ["h"]),
        *mix.nodes,
        NODE("MatMul", ["u", "last"], ["y"]),
    ]
    return model(
        nodes,
        {k: n if n.dtype.kind == "i" else n.astype(F) for k, n in stored.items()},
        {"x": [2, POSITIONS, FEATURES], **mix.inputs},
        {"y": ["a", "b", 3]},
    )


def planted(of: Array = OF, *, zero: int = 0, level: Sequence[float] = ()) -> tuple[Array, Array]:
    """Rows [7, C] and shifts [C]: multiples of a few functions, zeros, and constants of some level."""
    draw = np.random.default_rng(5)
    factor = draw.uniform(0.5, 2, len(of))
    rows = draw.standard_normal((FEATURES, of.max() + 1))[:, of] * factor
    shift = draw.standard_normal(of.max() + 1)[of] * factor
    more = np.zeros((FEATURES, zero + len(level)))
    return np.concatenate([rows, more], 1), np.concatenate([shift, np.zeros(zero), level])


# ---- what the weights alone prove ----


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
def test_copies_and_multiples_go(mix: Mix) -> None:
    proto = network(mix, *planted())
    done = lossless(proto)
    assert done.widths()[0] == 4
    assert_same_outputs(proto, done.proto)


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
def test_zeros_go_and_constants_are_multiples_of_one(mix: Mix) -> None:
    """A constant is no constant behind it: what rows of the weight sum to differs from position to position."""
    proto = network(mix, *planted(zero=2, level=[0.5, 2.0, 1.5]))
    done = lossless(proto)
    assert done.widths()[0] == 4 + 1
    assert_same_outputs(proto, done.proto)


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
def test_copies_with_other_offsets_stay(mix: Mix) -> None:
    rows, shift = planted(np.array([0, 1, 2, 2, 2]))
    rows[:, 3], rows[:, 4] = rows[:, 2], -2 * rows[:, 2]
    shift[2:] = 0.25, 1.25, -0.5
    proto = network(mix, rows, shift, "Identity")
    done = lossless(proto)
    # The last one is the same multiple of row and shift; the one before is not.
    assert done.widths()[0] == 4
    assert_same_outputs(proto, done.proto)


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
def test_what_nobody_reads_goes(mix: Mix) -> None:
    columns = np.random.default_rng(8).standard_normal((6, 3))
    columns[[1, 4]] = 0
    proto = network(mix, *planted(np.arange(6)), columns=columns)
    done = lossless(proto)
    assert done.widths()[0] == 4
    assert_same_outputs(proto, done.proto)


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
def test_different_channels_stay(mix: Mix) -> None:
    assert lossless(network(mix, *planted(np.arange(6)))).widths()[0] == 6


def test_two_layers_of_a_graph_network() -> None:
    """Numbers behind the first product are those that the next layer combines."""
    rows, shift = planted()
    middle = np.random.default_rng(2).standard_normal((COPIES, 3))[:, [0, 1, 2, 1, 0]]
    nodes = [
        NODE("MatMul", ["x", "w"], ["m"]),
        NODE("Add", ["m", "b"], ["z"]),
        NODE("Relu", ["z"], ["h"]),
        NODE("MatMul", ["a", "h"], ["u"]),
        NODE("MatMul", ["u", "n"], ["k"]),
        NODE("Tanh", ["k"], ["g"]),
        NODE("MatMul", ["a", "g"], ["p"]),
        NODE("MatMul", ["p", "last"], ["y"]),
    ]
    stored = {"w": rows, "b": shift, "n": middle, "last": np.ones((5, 3))}
    inputs = {"x": [2, POSITIONS, FEATURES], "a": [2, POSITIONS, POSITIONS]}
    proto = model(nodes, {k: n.astype(F) for k, n in stored.items()}, inputs, {"y": [2, POSITIONS, 3]})
    done = lossless(proto)
    assert done.widths() == [4, 3]
    assert_same_outputs(proto, done.proto)


# ---- random shapes ----


@st.composite
def products(draw: st.DrawFn) -> tuple[onnx.ModelProto, bool]:
    """A product of planted channels on some axis with a stored or given tensor, and whether copies go."""
    sizes = st.integers(2, 4)
    rank = draw(st.integers(2, 4))
    shape = [draw(sizes) for _ in range(rank)]
    axis = draw(st.integers(0, rank - 1))
    at, stored = draw(st.sampled_from([0, 1])), draw(st.booleans())
    shape[axis] = COPIES
    contracted = rank - 1 if at == 0 else rank - 2
    batch = [draw(st.sampled_from([1, n])) for n in shape[:-2]]
    cut = draw(st.integers(-1, len(batch)))
    batch = batch[cut:] if cut >= 0 else [2, *batch]
    inner = [shape[contracted], draw(sizes)]
    vector = not batch and draw(st.booleans())
    other = [inner[0]] if vector else [*batch, *(inner if at == 0 else inner[::-1])]
    alone = len(other) < rank - axis or other[axis - rank] == 1
    goes = stored if axis == contracted else axis >= rank - 2 or alone
    return _built(shape, axis, at, other, stored=stored, seed=draw(st.integers(0, 99))), goes


def _built(
    shape: Sequence[int], axis: int, at: int, other: Sequence[int], *, stored: bool, seed: int
) -> onnx.ModelProto:
    """X [.., 7] -> MatMul -> Relu -> its last axis moved to `axis` -> product -> the axis last -> MatMul -> y."""
    draw = np.random.default_rng(seed)
    rest = [n for i, n in enumerate(shape) if i != axis]
    there = list(range(len(rest)))
    there.insert(axis, len(rest))
    weights = {"w": planted()[0], "o": draw.standard_normal(other)}
    dense = [np.zeros(shape), weights["o"]] if at == 0 else [weights["o"], np.zeros(shape)]
    result = np.matmul(*dense).shape
    # From the end, a vector takes the last axis away; of a left operand the rows are then last.
    back = axis - len(shape) + (len(other) == 1 and not (at == 1 and axis == len(shape) - 1))
    contracted = axis == len(shape) - 1 - at
    last = result[-1] if contracted or not result else result[back]
    perm = list(range(len(result)))
    if not contracted:
        perm.append(perm.pop(back))
    weights["last"] = draw.standard_normal((last, 3))
    kept = {k: v.astype(F) for k, v in weights.items() if stored or k != "o"}
    nodes = [
        NODE("MatMul", ["x", "w"], ["m"]),
        NODE("Relu", ["m"], ["z"]),
        NODE("Transpose", ["z"], ["h"], perm=there),
        NODE("MatMul", ["h", "o"] if at == 0 else ["o", "h"], ["p"]),
        NODE("Transpose", ["p"], ["u"], perm=perm),
        NODE("MatMul", ["u", "last"], ["y"]),
    ]
    inputs = {"x": [*rest, FEATURES], **({} if stored else {"o": list(other)})}
    return model(nodes, kept, inputs, {"y": [f"s{i}" for i in range(len(result))]})


@given(products())
@settings(max_examples=150, deadline=None)
def test_random_products(drawn: tuple[onnx.ModelProto, bool]) -> None:
    proto, goes = drawn
    done = lossless(proto)
    # An axis that is contracted with a stored weight is read, as everywhere.
    kept = {s.space: len(s.keep) for s in done.plan.selections}
    assert kept.get("m", COPIES) == (4 if goes else COPIES)
    assert_same_outputs(proto, done.proto)


# ---- what stays ----


def refused(proto: onnx.ModelProto) -> set[tuple[str, str]]:
    """Nodes and reasons that hold the first space; none of it goes."""
    view = find_spaces(load(proto))
    assert view.spaces[0].pinned.all()
    return {(r.node, r.reason) for r in view.refusals if r.space == view.spaces[0].name}


def products_of(*nodes: onnx.NodeProto, **inputs: Sequence[int | str]) -> onnx.ModelProto:
    """H [2, 5, 9] from x, what nodes make of it, as an output without a declared shape."""
    stored = {"w": planted()[0].astype(F)}
    return model(
        [NODE("MatMul", ["x", "w"], ["h"]), *nodes],
        stored,
        {"x": [2, POSITIONS, FEATURES], **inputs},
        {"y": ["a", "b", "c"]},
    )


def test_the_contracted_axis_stays() -> None:
    reasons = refused(products_of(NODE("MatMul", ["h", "k"], ["y"], name="scores"), k=[2, COPIES, 4]))
    assert ("scores (MatMul)", linear.COMPUTED_WEIGHT) in reasons


def test_a_vector_of_channels_is_contracted() -> None:
    stored = {"w": planted()[0].astype(F)}
    nodes = [NODE("MatMul", ["x", "w"], ["h"]), NODE("MatMul", ["k", "h"], ["y"], name="scores")]
    proto = model(nodes, stored, {"x": [FEATURES], "k": [4, COPIES]}, {"y": [4]})
    assert ("scores (MatMul)", linear.COMPUTED_WEIGHT) in refused(proto)


@pytest.mark.parametrize(
    ("labels", "other", "result"),
    [
        ((2, 1, 3), (4, 1), (2, 4, 3)),
        ((1, 3), (4, 1), (4,)),
        ((1, 3), (4, 1), None),
        ((1, 3), None, (4, 3)),
        ((1, 3), (), (1, 3)),
    ],
)
def test_shapes_that_tell_nothing_let_nothing_pass(
    labels: tuple[int, ...], other: tuple[int, ...] | None, result: tuple[int, ...] | None
) -> None:
    """Channels on two axes, ranks that can't be, and ranks that are not known."""
    x = Value("x", np.arange(1, np.prod(labels) + 1).reshape(labels), labels, None)
    call = Call(0, {}, (Value("o", None, other, None), x), result, lambda n: np.zeros(n, np.int64))
    assert passing(call, 1) is None
    told = Value("x", np.arange(1, 4).reshape(1, 3), (1, 3), None)
    passed = passing(dataclasses.replace(call, operands=(Value("o", None, (4, 1), None), told), result_shape=(4, 3)), 1)
    assert passed is not None
    assert passed.tolist() == [[1, 2, 3]]


def test_of_two_operands_with_channels_those_of_the_right_one_pass() -> None:
    """An element belongs to one channel: linear attention keeps its keys and narrows its values."""
    draw = np.random.default_rng(4)
    values = draw.standard_normal((FEATURES, 3))[:, [0, 1, 2, 1, 0, 2]]
    stored = {
        "w": planted()[0],
        "v": values,
        "r": draw.standard_normal((COPIES, 4)),
        "last": draw.standard_normal((6, 2)),
    }
    nodes = [
        NODE("MatMul", ["x", "w"], ["k"]),
        NODE("MatMul", ["x", "v"], ["h"]),
        turned("k", "kt"),
        NODE("MatMul", ["kt", "h"], ["kv"], name="sum"),
        NODE("MatMul", ["q", "kv"], ["u"]),
        NODE("MatMul", ["u", "last"], ["y"]),
    ]
    inputs = {"x": [2, POSITIONS, FEATURES], "q": [2, POSITIONS, COPIES]}
    proto = model(nodes, {k: n.astype(F) for k, n in stored.items()}, inputs, {"y": [2, POSITIONS, 2]})
    done = lossless(proto)
    assert done.widths() == [3]
    assert ("sum (MatMul)", linear.PAIRED) in {(r.node, r.reason) for r in done.view.refusals if r.space == "k"}
    assert_same_outputs(proto, done.proto)


@pytest.mark.parametrize("size", [COPIES, "k"])
def test_a_batch_axis_that_the_other_operand_may_have_stays(size: int | str) -> None:
    """Another matrix per channel, or perhaps."""
    nodes = [turned("h", "t", 2, 1, 0), NODE("MatMul", ["a", "t"], ["y"], name="each")]
    assert ("each (MatMul)", linear.COMPUTED_WEIGHT) in refused(products_of(*nodes, a=[size, 4, POSITIONS]))


def test_a_stack_with_a_matrix_per_channel_stays() -> None:
    nodes = [turned("h", "t", 2, 0, 1), NODE("MatMul", ["t", "d"], ["p"], name="each"), turned("p", "u", 1, 2, 0)]
    proto = network(Mix(nodes, {"d": rng.standard_normal((COPIES, POSITIONS, 4))}), *planted())
    assert ("each (MatMul)", linear.NOT_CONTRACTED) in refused(proto)


def test_a_weight_writes_channels_of_its_own_where_none_could_go() -> None:
    """Positions are mixed in a hidden layer; the channels that pass are those of the output."""
    hidden = np.random.default_rng(6).standard_normal((3, POSITIONS))[[0, 1, 2, 1, 0]]
    stored = {"w": planted()[0], "d": hidden, "e": np.random.default_rng(7).standard_normal((4, 5))}
    nodes = [
        NODE("MatMul", ["x", "w"], ["h"]),
        NODE("MatMul", ["d", "h"], ["p"], name="mix"),
        NODE("Tanh", ["p"], ["t"]),
        NODE("MatMul", ["e", "t"], ["y"]),
    ]
    proto = model(
        nodes, {k: n.astype(F) for k, n in stored.items()}, {"x": [2, POSITIONS, FEATURES]}, {"y": [2, 4, COPIES]}
    )
    assert ("mix (MatMul)", linear.NOT_CONTRACTED) in refused(proto)
    done = lossless(proto)
    assert done.widths() == [3]
    assert_same_outputs(proto, done.proto)


def test_a_weight_with_infinite_numbers_lets_nothing_pass() -> None:
    broken = C.copy()
    broken[0, 0] = np.inf
    proto = network(Mix([NODE("MatMul", ["c", "h"], ["u"], name="mix")], {"c": broken}), *planted(zero=1))
    assert ("mix (MatMul)", linear.NOT_FINITE) in refused(proto)


# ---- Gemm ----


def gemm(inputs: Sequence[str], stored: dict[str, Array], **attributes: Any) -> onnx.ModelProto:
    """X [5, 7] -> MatMul -> Relu -> h, Gemm of h and c -> u [4, 9] -> MatMul -> y."""
    rows, shift = planted()
    nodes = [
        NODE("MatMul", ["x", "w"], ["m"]),
        NODE("Add", ["m", "b"], ["z"]),
        NODE("Relu", ["z"], ["h"]),
        NODE("Gemm", inputs, ["u"], name="mix", **attributes),
        NODE("MatMul", ["u", "last"], ["y"]),
    ]
    stored = {"w": rows, "b": shift, "last": np.random.default_rng(8).standard_normal((COPIES, 3)), **stored}
    given = {"a": [4, POSITIONS]} if "a" in inputs else {}
    given |= {"s": [4, COPIES]} if "s" in inputs else {}
    return model(
        nodes, {k: n.astype(F) for k, n in stored.items()}, {"x": [POSITIONS, FEATURES], **given}, {"y": [4, 3]}
    )


@pytest.mark.parametrize(
    ("inputs", "attributes"),
    [
        (["a", "h"], {"alpha": 0.5}),
        (["a", "h", "one"], {"beta": 0.0}),
        (["c", "h"], {}),
        (["ct", "h"], {"transA": 1}),
    ],
)
def test_gemm_along_positions(inputs: Sequence[str], attributes: dict[str, Any]) -> None:
    stored = {"c": C, "ct": C.T, "one": np.ones(1)}
    proto = gemm(inputs, {k: v for k, v in stored.items() if k in inputs}, **attributes)
    done = lossless(proto)
    assert done.widths()[0] == 4
    assert_same_outputs(proto, done.proto)


@pytest.mark.parametrize("shape", [(1,), (COPIES,), (4, 1), (4, COPIES)])
@pytest.mark.parametrize("left", ["a", "c"])
def test_gemm_that_adds_something_makes_no_multiples(left: str, shape: tuple[int, ...]) -> None:
    """The channels pass, with their own part of what is added, but nothing is known of them."""
    added = np.random.default_rng(9).standard_normal(shape)
    columns = np.random.default_rng(8).standard_normal((COPIES, 3))
    columns[2] = 0
    stored = {"add": added, "last": columns, **({"c": C} if left == "c" else {})}
    proto = gemm([left, "h", "add"], stored)
    done = lossless(proto)
    assert done.widths()[0] == COPIES - 1
    assert_same_outputs(proto, done.proto)


@pytest.mark.parametrize("left", ["a", "c"])
def test_gemm_that_adds_what_is_computed_keeps_all(left: str) -> None:
    proto = gemm([left, "h", "s"], {"c": C} if left == "c" else {})
    assert refused(proto) & {("mix (Gemm)", linear.ADDEND), ("mix (Gemm)", linear.NOT_CONTRACTED)}
    assert "m" not in {s.space for s in lossless(proto).plan.selections}


# ---- trunks and fits ----


@pytest.mark.parametrize("name", ["stored left", "given left", "attention", "FusedMatMul"])
def test_channels_may_be_mixed_through_it(name: str) -> None:
    proto = network(MIXES[name], *planted(np.arange(6)), "Identity")
    loaded = load(proto)
    assert "m" in linear_trunks(loaded, find_spaces(loaded))


@pytest.mark.parametrize("name", ["stored left", "stored right", "given left", "attention"])
@pytest.mark.parametrize("activation", ["Tanh", "Identity"])
def test_fits_hold_on_unseen_samples(name: str, activation: str) -> None:
    """24 channels of 6 functions, all but: what is left over is small."""
    draw = np.random.default_rng(11)
    of = np.repeat(np.arange(6), 4)
    rows, shift = draw.standard_normal((FEATURES, 6))[:, of], draw.standard_normal(6)[of]
    rows = rows + 0.003 * draw.standard_normal(rows.shape)
    proto = network(MIXES[name], rows, shift, activation)
    for value in proto.graph.input:
        value.type.tensor_type.shape.dim[0].dim_param = "n"
    samples = {v.name: [d.dim_value or 400 for d in v.type.tensor_type.shape.dim] for v in proto.graph.input}
    feed = {k: draw.standard_normal(n).astype(F) for k, n in samples.items()}
    found = condense(proto, calibration=feed, tolerance=0.03, allow_slower=True)
    assert found.report.error is not None
    assert found.report.error.value < 0.03
    assert found.report.spaces[0].after <= 8
    fresh = {k: draw.standard_normal(n).astype(F) for k, n in samples.items()}
    a, b = outputs(proto, fresh)[0], outputs(found.model, fresh)[0]
    assert np.sqrt(np.mean((a - b) ** 2)) < 0.04 * a.std()


# ---- heads ----


def heads(proto_heads: int, width: int, values: Array, out: Array) -> onnx.ModelProto:
    """Attention of several heads over x [n, 5, 7]: values [7, H d], out [H d, 3]."""
    split, joined = np.array([0, 0, proto_heads, width]), np.array([0, 0, -1])
    draw = np.random.default_rng(12)
    stored = {"wv": values, "last": out}
    stored |= {k: draw.standard_normal((FEATURES, proto_heads * 2)) for k in ("wq", "wk")}
    nodes = []
    for name in ("q", "k", "v"):
        shape = "split" if name == "v" else "narrow"
        nodes += [
            NODE("MatMul", ["x", f"w{name}"], [f"{name}0"]),
            NODE("Reshape", [f"{name}0", shape], [f"{name}1"]),
            turned(f"{name}1", name, *((0, 2, 3, 1) if name == "k" else (0, 2, 1, 3))),
        ]
    nodes += [
        NODE("MatMul", ["q", "k"], ["s"]),
        NODE("Softmax", ["s"], ["a"]),
        NODE("MatMul", ["a", "v"], ["o"]),
        turned("o", "p", 0, 2, 1, 3),
        NODE("Reshape", ["p", "joined"], ["u"]),
        NODE("MatMul", ["u", "last"], ["y"]),
    ]
    kept = {k: n.astype(F) for k, n in stored.items()}
    kept |= {"split": split, "narrow": np.array([0, 0, proto_heads, 2]), "joined": joined}
    return model(nodes, kept, {"x": ["n", POSITIONS, FEATURES]}, {"y": ["n", POSITIONS, 3]})


def test_values_of_all_heads_go_together() -> None:
    """Places 1 and 3 are copies in both heads; place 4 is one of place 0 in the first head only."""
    draw = np.random.default_rng(13)
    values = draw.standard_normal((FEATURES, 2, 5))
    values[..., 3] = 2 * values[..., 1]
    values[:, 0, 4] = values[:, 0, 0]
    proto = heads(2, 5, values.reshape(FEATURES, 10), draw.standard_normal((10, 3)))
    done = lossless(proto)
    sizes = {t.name: list(t.dims) for t in done.proto.graph.initializer}
    assert (sizes["wv"], sizes["last"]) == ([FEATURES, 2 * 4], [2 * 4, 3])
    assert_same_outputs(proto, done.proto)


def test_copies_with_other_factors_per_head_stay() -> None:
    draw = np.random.default_rng(13)
    values = draw.standard_normal((FEATURES, 2, 4))
    values[:, 0, 3], values[:, 1, 3] = 2 * values[:, 0, 1], 3 * values[:, 1, 1]
    proto = heads(2, 4, values.reshape(FEATURES, 8), draw.standard_normal((8, 3)))
    assert "v0" not in {s.space for s in lossless(proto).plan.selections}


# ---- numbers ----


def test_a_constant_is_none_behind_a_product() -> None:
    proto = network(MIXES["stored left"], *planted(np.arange(2), zero=1, level=[2.0]))
    loaded = load(proto)
    numbers = Numbering(loaded, find_spaces(loaded))
    before, after = numbers.known("h"), numbers.known("u")
    assert before is not None
    assert after is not None
    assert [c == CONSTANT for c in before.classes] == [False, False, True, True]
    assert [c == CONSTANT for c in after.classes] == [False, False, True, False]
