"""Numbers that networks work out from sizes: what is cut at half its width narrows as what is cut at a stored place."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from builders import Array, assert_same_outputs, feed_for, outputs, text_model
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from onnx_condense import condense
from onnx_condense.cost import count_parameters
from onnx_condense.network.known import Size
from onnx_condense.network.model import load
from onnx_condense.network.settled import settled
from onnx_condense.outcome import Condensed

HEAD = '<ir_version: 9, opset_import: ["" : 17]>'
NUMBERS = {f"k{n}": np.array([n]) for n in (0, 1, 2, 3, 6, 12, 24)} | {"i0": np.array(0), "i1": np.array(1)}
NUMBERS |= {"i2": np.array(2), "i3": np.array(3), "far": np.array([2**63 - 1]), "m1": np.array([-1])}
# The size of h's axis of channels, as a list and as a number.
WIDTH = "s = Shape(h) c = Gather<axis = 0>(s, k1) "
ALL = """sizes = Shape(t) nb = Gather(sizes, i0) ch = Gather(sizes, i1) ro = Gather(sizes, i2) co = Gather(sizes, i3)
half = Div(ch, i2) nb1 = Unsqueeze(nb, k0) ch1 = Unsqueeze(ch, k0) ro1 = Unsqueeze(ro, k0) co1 = Unsqueeze(co, k0)
half1 = Unsqueeze(half, k0) there = Concat<axis = 0>(nb1, k2, half1, ro1, co1)
back = Concat<axis = 0>(nb1, ch1, ro1, co1) """
SHUFFLED = "v = Reshape(t, there) u = Transpose<perm = [0, 2, 1, 3, 4]>(v) r = Reshape(u, back) "


def cut(part: int) -> str:
    """One part of h, as PyTorch's older exporter writes torch.chunk."""
    numbers = f"e{part} = Mul(d, k{part}) f{part} = Mul(d, k{part + 1}) "
    return numbers + f"p{part} = Slice(h, e{part}, f{part}, k1) "


CHUNKS2 = WIDTH + "d1 = Add(c, k1) d = Div(d1, k2) " + cut(0) + cut(1)
CHUNKS3 = WIDTH + "d2 = Add(c, k2) d = Div(d2, k3) " + cut(0) + cut(1) + cut(2)
FIXED2 = "p0 = Slice(h, k0, k12, k1) p1 = Slice(h, k12, k24, k1) "
HALF = "p = Relu(h) q = Slice(p, k0, k12, k1) "
GATE = "a0 = Tanh(p0) a1 = Sigmoid(p1) q = Mul(a0, a1) "
# What a network computes, and the same with stored numbers; both lead from h to q.
THREE = "a0 = Relu(p0) a1 = Relu(p1) a2 = Tanh(p2) m = Mul(a0, a1) q = Add(m, a2) "
BESIDE = "a1 = Sigmoid(p1) m = Mul(p0, a1) q = Add(m, o)"
CASES: dict[str, tuple[str, str]] = {
    "gate": (CHUNKS2 + GATE, FIXED2 + GATE),
    "gated linear unit": (CHUNKS2 + "a1 = Sigmoid(p1) q = Mul(p0, a1) ", FIXED2 + "a1 = Sigmoid(p1) q = Mul(p0, a1) "),
    "three parts": (
        CHUNKS3 + THREE,
        "p0 = Slice(h, k0, e8, k1) p1 = Slice(h, e8, e16, k1) p2 = Slice(h, e16, k24, k1) " + THREE,
    ),
    "counted from the end": (
        WIDTH + "d = Div(c, k2) e = Neg(d) p0 = Slice(h, k0, e, k1) p1 = Slice(h, e, far, k1) " + GATE,
        "p0 = Slice(h, k0, m12, k1) p1 = Slice(h, m12, far, k1) " + GATE,
    ),
    "parts apart": (
        CHUNKS2 + "a0 = Relu(p0) a1 = Relu(p1) m0 = Conv(a0, v0) m1 = Conv(a1, v1) q = Add(m0, m1)",
        FIXED2 + "a0 = Relu(p0) a1 = Relu(p1) m0 = Conv(a0, v0) m1 = Conv(a1, v1) q = Add(m0, m1)",
    ),
    # C2f: the second half goes on, and all that came comes together.
    "joined again": (
        CHUNKS2 + "a1 = Relu(p1) m1 = Conv(a1, v1) m2 = Relu(m1) q = Concat<axis = 1>(p0, p1, m2)",
        FIXED2 + "a1 = Relu(p1) m1 = Conv(a1, v1) m2 = Relu(m1) q = Concat<axis = 1>(p0, p1, m2)",
    ),
    "shuffled": ("t = Relu(h) " + ALL + SHUFFLED + "q = Relu(r)", "t = Relu(h) " + SHUFFLED + "q = Relu(r)"),
    # ShuffleNet: one half passes, both are shuffled.
    "shuffled halves": (
        CHUNKS2 + "a1 = Relu(p1) m1 = Conv(a1, v1) t = Concat<axis = 1>(p0, m1) "
        + ALL + SHUFFLED + "q = Relu(r)",
        FIXED2 + "a1 = Relu(p1) m1 = Conv(a1, v1) t = Concat<axis = 1>(p0, m1) " + SHUFFLED + "q = Relu(r)",
    ),
    "split": (
        WIDTH + "d = Div(c, k2) dd = Concat<axis = 0>(d, d) p0, p1 = Split<axis = 1>(h, dd) " + GATE,
        "p0, p1 = Split<axis = 1>(h, k1212) " + GATE,
    ),
    "as wide as another": (
        "o = Conv(x, u12) so = Shape(o) co = Slice(so, k1, k2) p0 = Slice(h, k0, co, k1) p1 = Slice(h, co, far, k1) "
        + BESIDE,
        "o = Conv(x, u12) p0 = Slice(h, k0, k12, k1) p1 = Slice(h, k12, far, k1) " + BESIDE,
    ),
    "a number that the width gave": (
        WIDTH + "f = Cast<to = 1>(c) g = Sqrt(f) m = Div(h, g) q = Tanh(m)",
        "m = Div(h, root) q = Tanh(m)",
    ),
    "expanded": (
        WIDTH + "n = Gather<axis = 0>(s, k0) l = Concat<axis = 0>(n, c, k6, k6) m = Expand(h, l) q = Tanh(m)",
        "s = Shape(h) n = Gather<axis = 0>(s, k0) l = Concat<axis = 0>(n, k24, k6, k6) m = Expand(h, l) q = Tanh(m)",
    ),
}  # fmt: skip
EIGHTS = {"e8": np.array([8]), "e16": np.array([16]), "m12": np.array([-12]), "k1212": np.array([12, 12])}


# How many channels q has, by what is found in the nodes that make it.
WIDTHS = {"q = Concat": 36, "Reshape": 24, "m = Div": 24, "Expand": 24, "p2": 8}


def doubled(rng: np.random.Generator, rows: int, columns: int) -> Array:
    """Kernels of 1 x 1 of which every second writes what the one before it writes."""
    return np.repeat(rng.standard_normal((rows // 2, columns, 1, 1)), 2, axis=0).astype(np.float32)


def network(middle: str, head: str = HEAD) -> onnx.ModelProto:
    """24 channels h, of which every second is a copy, go through some nodes to 4 outputs."""
    rng = np.random.default_rng(3)
    wide = next((n for mark, n in WIDTHS.items() if mark in middle), 12)
    stored = NUMBERS | EIGHTS | {
        "w": doubled(rng, 24, 3), "u12": doubled(rng, 12, 3), "v0": doubled(rng, 12, 12), "v1": doubled(rng, 12, 12),
        "v2": doubled(rng, 12, 12),
        "o4": rng.standard_normal((4, wide, 1, 1)).astype(np.float32),
        "root": np.sqrt(np.array([24], np.float32)),
        "four": np.arange(4), "there": np.array([-1, 2, 12, 6, 6]), "back": np.array([-1, 24, 6, 6]),
    }  # fmt: skip
    text = f"{head} g (float[N,3,6,6] x) => (float[N,4,6,6] y) {{ h = Conv(x, w) {middle} y = Conv(q, o4) }}"
    read = {name for node in onnx.parser.parse_model(text).graph.node for name in node.input}
    made = {name for node in onnx.parser.parse_model(text).graph.node for name in node.output}
    return text_model(text, {k: v for k, v in stored.items() if k in read - made})


def left(found: Condensed) -> dict[str, tuple[int, int]]:
    return {s.name: (s.before, s.after) for s in found.report.spaces}


@pytest.mark.parametrize("name", CASES)
def test_worked_out_places_narrow_as_stored_ones(name: str) -> None:
    computed, stored = (network(middle) for middle in CASES[name])
    assert_same_outputs(computed, stored)
    found, expected = (condense(proto, threads=1) for proto in (computed, stored))
    assert left(found) == left(expected)
    for proto, made in ((computed, found), (stored, expected)):
        assert made.report.parameters is not None
        assert made.report.parameters.before == count_parameters(proto)
    # What is worked out in one file (a root of the width) may be a stored number of the other, and of both results.
    assert count_parameters(found.model) == count_parameters(expected.model)
    assert any(after < before for before, after in left(found).values())
    for seed, rows in ((2, 5), (3, 1)):
        feed = feed_for(computed, rows, seed)
        (y,), (z,) = outputs(computed, feed), outputs(found.model, feed)
        np.testing.assert_allclose(z, y, atol=1e-4)
    onnx.checker.check_model(found.model, full_check=True)


def unit(at: int, *, computed: bool) -> str:
    """ShuffleNet's, from h or the last r to the next r, in the form of opset 11; the first only shuffles."""
    x, t, r = f"r{at - 1}", f"t{at}", f"r{at}"
    cuts = f"s{at} = Shape({x}) c{at} = Gather(s{at}, k1) d{at} = Div(c{at}, k2) " if computed else ""
    half = f"d{at}" if computed else "k12"
    inside = (
        f"p{at} = Slice({x}, k0, {half}, k1) o{at} = Slice({x}, {half}, far, k1) m{at} = Conv(o{at}, v{at}) "
        f"n{at} = Relu(m{at}) {t} = Concat<axis = 1>(p{at}, n{at}) "
    )
    before = cuts + inside if at else f"{t} = Relu(h) "
    sizes = "".join(
        f"y{at}_{i} = Shape({t}) g{at}_{i} = Gather(y{at}_{i}, i{i}) w{at}_{i} = Unsqueeze<axes = [0]>(g{at}_{i}) "
        for i in range(4)
    )
    sizes += f"b{at} = Div(g{at}_1, i2) a{at} = Unsqueeze<axes = [0]>(b{at}) "
    sizes += f"l{at} = Concat<axis = 0>(w{at}_0, k2, a{at}, w{at}_2, w{at}_3) "
    sizes += f"f{at} = Concat<axis = 0>(w{at}_0, w{at}_1, w{at}_2, w{at}_3) "
    there, back = (f"l{at}", f"f{at}") if computed else ("there", "back")
    shuffle = f"z{at} = Reshape({t}, {there}) u{at} = Transpose<perm = [0, 2, 1, 3, 4]>(z{at}) "
    return f"{before} {sizes if computed else ''} {shuffle} {r} = Reshape(u{at}, {back}) "


def test_units_in_a_row_in_an_older_opset() -> None:
    """There inference makes nothing of lists that it knows in part, so nothing of what comes after the first unit."""
    head = HEAD.replace("17", "11")
    given, stored = (network(unit(0, computed=c) + unit(1, computed=c) + "q = Relu(r1) ", head) for c in (True, False))
    assert_same_outputs(given, stored)
    found, expected = condense(given, threads=1), condense(stored, threads=1)
    assert left(found) == left(expected)
    assert any(after < before for before, after in left(found).values())
    for rows in (1, 5):
        feed = feed_for(given, rows)
        np.testing.assert_allclose(outputs(found.model, feed)[0], outputs(given, feed)[0], atol=1e-4)


@pytest.mark.parametrize("name", ["gate", "shuffled halves"])
def test_within_a_tolerance(name: str) -> None:
    samples = np.random.default_rng(5).standard_normal((400, 3, 6, 6)).astype(np.float32)
    found, expected = (
        condense(network(middle), calibration={"x": samples}, tolerance=0.1, threads=1) for middle in CASES[name]
    )
    assert left(found) == left(expected)
    assert found.report.error is not None
    assert found.report.error.value <= 0.1


# ---- what is told apart ----


def test_what_is_handed_on_stays() -> None:
    """The rules follow a copy of the operand's own size; nothing is stored for it."""
    text = "s = Shape(h) l = Gather<axis = 0>(s, four) f = Reshape(h, l) q = Relu(f)"
    given = load(network(text))
    assert settled(given) is given


def test_stored_lists_and_no_lists() -> None:
    for middle in (FIXED2 + GATE, HALF):
        given = load(network(middle))
        assert settled(given) is given


def test_what_is_only_declared_is_not_certain() -> None:
    """A size that nothing in the network tells, whatever a declaration says, stays what it is when the network runs."""
    text = f"""{HEAD} g (float[N,4] x, int64[R] sizes) => (float[K,3] y) <float[6,4] h>
    {{ h = Reshape(x, sizes) s = Shape(h) n = Gather<axis = 0>(s, k0) d = Div(n, k2)
       top = Slice(h, k0, d, k0) y = MatMul(top, w) }}"""
    w = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    given = load(text_model(text, {"w": w, "k0": np.array([0]), "k2": np.array([2])}))
    assert given.shape("h") == (6, 4)
    assert settled(given) is given


OPEN = {
    "of two inputs": ("float[N,6] a, float[N,6] b", ""),
    "that nothing tells": (
        "float[N,6] x, bool[N] p, bool[N] z",
        "a = Compress<axis = 0>(x, p) b = Compress<axis = 0>(x, z)",
    ),
}


@pytest.mark.parametrize("name", OPEN)
def test_two_sizes_that_are_left_open_are_not_one(name: str) -> None:
    """Nobody insists on the names of sizes, and those that inference makes up mean nothing."""
    inputs, made = OPEN[name]
    text = f"""{HEAD} g ({inputs}) => (float[A,B] y, int64[1] d) {{
        {made} s = Shape(b) n = Gather<axis = 0>(s, k0) l = Concat<axis = 0>(n, m1) r = Reshape(a, l)
        t = Shape(r) c = Gather<axis = 0>(t, k1) d = Div(c, k2) y = Slice(r, k0, d, k1) }}"""
    read = ("k0", "k1", "k2", "m1")
    proto = text_model(text, {k: NUMBERS[k] for k in read})
    found = settled(load(proto))
    rows = np.arange(24, dtype=np.float32).reshape(4, 6)
    given = {"a": rows, "b": rows[:2], "x": rows, "p": np.ones(4, bool), "z": np.arange(4) < 2}
    feed = {i.name: given[i.name] for i in proto.graph.input}
    y, d = outputs(found.proto, feed)
    assert (y.shape, d.tolist()) == ((2, 6), [6])


def test_one_number_in_a_list_with_the_batch() -> None:
    """Of [N, 2, c / 2, 6, 6] the numbers are stored, the batch stays what it is."""
    found = settled(load(network(CASES["shuffled"][0])))
    assert found.known("there") == (Size("t", 0), 2, 12, 6, 6)
    assert found.known("back") == (Size("t", 0), 24, 6, 6)
    shape = found.shape("r")
    assert shape is not None
    assert shape[1:] == (24, 6, 6)


def test_sizes_that_inference_leaves_open_are_stored() -> None:
    """In older opsets it makes nothing of a list that is put together, though all sizes are certain."""
    middle = WIDTH + "n = Gather<axis = 0>(s, k0) l = Concat<axis = 0>(n, c, k6, m1) q = Reshape(h, l) "
    proto = network(middle, HEAD.replace("17", "11"))
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 3
    given = load(proto)
    assert given.shape("q") == (3, 24, 6, None)
    found = settled(given)
    assert (found.shape("q"), found.known("l")) == ((3, 24, 6, 6), (3, 24, 6, -1))


def test_nothing_is_left_of_what_led_to_a_number() -> None:
    given = load(network(CASES["gate"][0]))
    found = settled(given)
    assert "Shape" in {n.op for n in given.nodes}
    assert {n.op for n in found.nodes} <= {"Constant", "Conv", "Slice", "Tanh", "Sigmoid", "Mul"}
    read = {name for n in found.nodes for name in n.inputs}
    assert {t.name for t in found.proto.graph.initializer} <= read
    assert found.given is given.given


def test_a_long_chain_of_cuts_takes_one_walk() -> None:
    """Every size follows from the one before it."""
    step = """s{0} = Shape(h{0}) c{0} = Gather<axis = 0>(s{0}, k1) d{0} = Div(c{0}, k2) a{0} = Slice(h{0}, k0, d{0}, k1)
    b{0} = Slice(h{0}, d{0}, far, k1) h{1} = Concat<axis = 1>(b{0}, a{0}) """
    middle = "h0 = Relu(h) " + "".join(step.format(i, i + 1) for i in range(40)) + HALF.replace("(h)", "(h40)")
    given = load(network(middle))
    found = settled(given)
    assert found.shape("h40") == ("N", 24, 6, 6)
    assert not {"Shape", "Div"} & {n.op for n in found.nodes}
    assert_same_outputs(given.proto, found.proto)


@st.composite
def trees(draw: st.DrawFn) -> list[onnx.NodeProto]:
    """Nodes that work with the sizes of h, made one after the other; every result has one element."""
    nodes = [helper.make_node("Shape", ["h"], ["s"])]
    nodes += [helper.make_node("Gather", ["s", f"k{i}"], [f"t{i}"], axis=0) for i in (0, 1, 2)]
    for at in range(3, draw(st.integers(4, 12))):
        x = f"t{draw(st.integers(0, at - 1))}"
        y = draw(st.sampled_from([f"t{draw(st.integers(0, at - 1))}", "k2", "k3"]))
        op = draw(st.sampled_from(["Add", "Sub", "Mul", "Div", "Max", "Min", "Neg", "Abs", "Identity", "Floats"]))
        if op == "Div":
            y = "k3"
        if op == "Floats":
            nodes += [
                helper.make_node("Cast", [x], [f"f{at}"], to=1),
                helper.make_node("Div", [f"f{at}", "half"], [f"g{at}"]),
                helper.make_node("Floor", [f"g{at}"], [f"e{at}"]),
                helper.make_node("Cast", [f"e{at}"], [f"t{at}"], to=7),
            ]
        else:
            operands = [x] if op in ("Neg", "Abs", "Identity") else [x, y]
            nodes.append(helper.make_node(op, operands, [f"t{at}"]))
    return nodes


@settings(max_examples=40, deadline=None)
@given(trees())
def test_every_number_is_what_the_network_works_out(nodes: list[onnx.NodeProto]) -> None:
    proto = network(HALF)
    made = {name for node in nodes for name in node.output} | {t.name for t in proto.graph.initializer}
    for name in sorted({n for node in nodes for n in node.input} - made - {"h"}):
        value = np.array(2.5, np.float32) if name == "half" else NUMBERS[name]
        proto.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    proto.graph.node.extend(nodes)
    numbers = [node.output[0] for node in nodes if node.output[0].startswith("t")]
    proto.graph.output.extend(helper.make_tensor_value_info(n, onnx.TensorProto.INT64, [1]) for n in numbers)
    found = settled(load(proto)).proto
    for rows in (1, 4):
        feed = feed_for(proto, rows)
        for before, after in zip(outputs(proto, feed), outputs(found, feed), strict=True):
            np.testing.assert_array_equal(after, before)


SIZES_OF_X = "s = Shape(x) b = Gather<axis = 0>(s, k0) c = Gather<axis = 0>(s, k1) "


@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize("handed_on", [False, True])
def test_widths_that_follow_from_the_input_can_be_written(counted: bool, handed_on: bool) -> None:
    """As PyTorch's older exporter writes x.view(n, 2, c // 2) and x.view(n, c) of x's own sizes."""
    size = (
        "half = Div(c, k2) there = Concat<axis = 0>(b, k2, half) "
        if counted
        else "there = Concat<axis = 0>(b, k2, k12) "
    )
    back = "back = Concat<axis = 0>(b, c) " if handed_on else "back = Concat<axis = 0>(b, k24) "
    body = "z = MatMul(x, w) h = Tanh(z) g = Reshape(h, there) e = Relu(g) f = Reshape(e, back) y = MatMul(f, v)"
    rng = np.random.default_rng(0)
    w, v = rng.standard_normal((24, 24)).astype(np.float32), rng.standard_normal((24, 3)).astype(np.float32)
    # Of every half the last four are copies of others.
    w[:, [8, 9, 10, 11, 20, 21, 22, 23]] = w[:, [0, 1, 2, 3, 12, 13, 14, 15]]
    text = f"{HEAD} g (float[N,24] x) => (float[N,3] y) {{ {SIZES_OF_X}{size}{back}{body} }}"
    read = {name for name in NUMBERS if name in text}
    proto = text_model(text, {n: NUMBERS[n] for n in read} | {"w": w, "v": v})
    found = condense(proto, threads=1)
    assert [s.after for s in found.report.spaces if s.after < s.before] == [8]
    assert_same_outputs(proto, found.model)
