"""What networks in solvers' inner loops are made of: ensembles, labels, weights that are worked out, rare inputs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from builders import Array, assert_same_outputs, feed_for, outputs, text_model
from onnx import helper, numpy_helper

from onnx_condense import condense
from onnx_condense.cost import count_parameters
from onnx_condense.metrics import Measurement
from onnx_condense.metrics.measurement import OutputMeasure
from onnx_condense.network.folded import folded
from onnx_condense.network.live import live
from onnx_condense.network.model import Network, load
from onnx_condense.network.multiplied import multiplied, weighed
from onnx_condense.proving.coverage import rare
from onnx_condense.proving.rechecking import recheck
from onnx_condense.spaces import find_spaces

HEAD = '<ir_version: 9, opset_import: ["" : 18]>'
F = np.float32


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(F)


# ---- ensembles: a stack of matrices, one for each member ----


def ensemble(places: tuple[int, ...], *, left: bool = False) -> onnx.ModelProto:
    """A stack of nets 4 - 3 - 2 on one input, of which channel 2 copies another channel in each member: `places`."""
    first, second = normal(len(places), 4, 3), normal(len(places), 3, 2, seed=1)
    for member, place in enumerate(places):
        first[member, :, 2] = first[member, :, place]
    stored = {"w": first, "v": second, "axes": np.array([0])}
    products = "z = MatMul(x, w) h = Tanh(z) m = MatMul(h, v)"
    shapes = "float[N, 4] x) => (float[N, 2]"
    if left:
        stored |= {"w": np.swapaxes(first, 1, 2), "v": np.swapaxes(second, 1, 2)}
        products = "t = Transpose<perm = [1, 0]>(x) z = MatMul(w, t) h = Tanh(z) n = MatMul(v, h) "
        products += "m = Transpose<perm = [0, 2, 1]>(n)"
    return text_model(f"{HEAD} agraph ({shapes} y) {{ {products} y = ReduceMean<keepdims = 0>(m, axes) }}", stored)


@pytest.mark.parametrize("left", [False, True])
def test_each_member_of_a_stack_is_fitted_on_what_it_reads(left: bool) -> None:
    """Channel 2 copies channel 0 in one member and channel 1 in the others: it can go, by other columns in each."""
    proto = ensemble((0, 1, 1), left=left)
    found = condense(proto, calibration=normal(1000, 4, seed=3), tolerance=1e-3, threads=1, allow_slower=True)
    assert next((s.before, s.after) for s in found.report.spaces) == (3, 2)
    assert_same_outputs(proto, found.model, eps=1e-4)


# ---- labels ----


def test_a_classifier_that_gives_words() -> None:
    labels = np.array(["ignites", "extinguishes", "neither"], object)
    stored = {"w": normal(5, 12), "v": np.repeat(normal(4, 3, seed=1), 3, axis=0)}
    stored["w"][:, :] = np.repeat(stored["w"][:, ::3], 3, axis=1)
    text = f"{HEAD} agraph (float[N, 5] x) => (string[N] label, float[N, 3] p) {{ "
    text += "z = MatMul(x, w) h = Relu(z) q = MatMul(h, v) p = Softmax(q) a = ArgMax<axis = 1, keepdims = 0>(q) "
    proto = text_model(text + "label = Gather(labels, a) }", {**stored, "labels": labels})
    found = condense(proto, calibration=normal(400, 5, seed=3), tolerance=0.05, threads=1, allow_slower=True)
    assert found.report.status == "condensed"
    assert next(s.after for s in found.report.spaces) <= 4


# ---- weights that are worked out ----


def worked_out(made: str, stored: dict[str, Array], more: str = "") -> onnx.ModelProto:
    """From x by MatMul, Tanh and MatMul with a weight v [6, 2] that some nodes make."""
    text = f"{HEAD} agraph (float[N, 4] x{more}) => (float[N, 2] y) {{ {made} "
    return text_model(text + "z = MatMul(x, w) h = Tanh(z) y = MatMul(h, v) }", {"w": normal(4, 6), **stored})


NORMED = "length = ReduceL2<keepdims = 1>(d, axes) unit = Div(d, length) v = Mul(unit, g)"
PARTS = {"d": normal(6, 2, seed=1), "g": normal(1, 2, seed=2), "axes": np.array([0])}
MADE = {
    "direction and length": (NORMED, PARTS),
    "positive": ("e = Exp(d) v = Neg(e)", {"d": normal(6, 2, seed=1)}),
    "of two": ("v = Mul(d, c)", {"d": normal(6, 2, seed=1), "c": normal(6, 2, seed=2)}),
}


@pytest.mark.parametrize(("made", "stored"), MADE.values(), ids=MADE)
def test_a_weight_worked_out_from_stored_numbers_is_a_weight(made: str, stored: dict[str, Array]) -> None:
    proto = worked_out(made, stored)
    # Two channels that are one.
    w = numpy_helper.to_array(proto.graph.initializer[0]).copy()
    w[:, 5] = w[:, 4]
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(w, proto.graph.initializer[0].name))
    found = condense(proto, threads=1)
    assert next((s.before, s.after) for s in found.report.spaces) == (6, 5)
    assert_same_outputs(proto, found.model)
    assert [n.op_type for n in found.model.graph.node if n.op_type != "Constant"] == ["MatMul", "Tanh", "MatMul"]
    # The dense network is the one that was given, as one who measures both files finds it.
    again = recheck(proto, found.model, threads=1)
    assert found.report.parameters is not None
    assert found.report.parameters.before == count_parameters(proto)
    assert (found.report.parameters, found.report.macs) == (again.parameters, again.macs)


LARGER: dict[str, tuple[str, dict[str, Array]]] = {
    "quantized": (
        "f = DequantizeLinear(d, one) v = Identity(f)",
        {"d": np.arange(12, dtype=np.int8).reshape(6, 2), "one": np.array(0.1, F)},
    ),
    "low rank": ("v = MatMul(d, c)", {"d": normal(6, 1, seed=1), "c": normal(1, 2, seed=2)}),
    "8 bits of a float": ("f = Cast<to = 17>(d) v = Cast<to = 1>(f)", {"d": normal(6, 2, seed=1)}),
    "in a sequence": (
        "s = SequenceConstruct(d, c) v = SequenceAt(s, at)",
        {"d": normal(6, 2, seed=1), "c": normal(7, 3, seed=2), "at": np.array(0)},
    ),
    "drawn": ("n = RandomNormalLike(d) v = Mul(n, d)", {"d": normal(6, 2, seed=1)}),
    "read elsewhere": (
        "e = Exp(d) v = Neg(e) s = Shape(x) i = Gather(s, at) r = Gather(d, i)",
        {"d": normal(6, 2, seed=1), "at": np.array(1)},
    ),
}


@pytest.mark.parametrize("kind", LARGER)
def test_what_would_take_more_room_or_is_drawn_stays(kind: str) -> None:
    made, stored = LARGER[kind]
    proto = worked_out(made, stored)
    if kind == "read elsewhere":
        proto.graph.output.append(helper.make_tensor_value_info("r", 1, [2]))
    network = live(load(proto))
    assert folded(network) is network


SHARED: dict[str, tuple[str, str]] = {
    "two weights": ("v = Exp(d) r = Neg(d)", "float[6, 2] r"),
    "a weight and places": ("v = Exp(d) r = ArgMax<axis = 0, keepdims = 0>(d)", "int64[2] r"),
    "a weight in another layout": ("t = Transpose<perm = [1, 0]>(d) u = Exp(t) v = Reshape(u, at) r = Identity(d)", ""),
}


@pytest.mark.parametrize("kind", SHARED)
def test_what_is_also_stored_for_others_makes_no_room(kind: str) -> None:
    made, output = SHARED[kind]
    proto = worked_out(made, {"d": normal(6, 2, seed=1)} | ({} if output else {"at": np.array([6, 2])}))
    text = onnx.parser.parse_graph(f"g () => ({output or 'float[6, 2] r'}) {{ }}")
    proto.graph.output.extend(text.output)
    network = live(load(proto))
    assert folded(network) is network


def test_what_is_worked_out_further_down_makes_no_second_weight() -> None:
    proto = worked_out("r = Exp(d) v = Neg(r)", {"d": normal(6, 2, seed=1)})
    proto.graph.output.append(helper.make_tensor_value_info("r", 1, [6, 2]))
    found = folded(live(load(proto)))
    assert [n.op for n in found.nodes if n.op in ("Exp", "Neg")] == ["Neg"]


def test_a_default_that_callers_may_override_stays() -> None:
    proto = worked_out("v = Exp(d)", {"d": normal(6, 2, seed=1)}, ", float[6, 2] d")
    network = live(load(proto))
    assert "d" in network.overridable
    assert folded(network) is network


# ---- Einsums ----

AS_PRODUCTS = """
bi,io->bo bi,oi->bo bti,io->bto bi,eij->ebj ebi,eij->ebj beh,eho->beo bi,eih->beh bixy,ioxy->boxy bi,ihd->bhd
bci,oi->bco bct,oc->bot btqi,ieo->bteqo bthi,hio->obth i,io->o ei,eio->oe
bid,iod->bo bthd,hdo->bto bij,ijo->bo bji,ijho->bho
"""


def einsum(equation: str, at: int, opset: int) -> tuple[onnx.ModelProto, Array]:
    """An Einsum of x and a stored w, which is operand `at`, and the value of w; every letter has a size of its own."""
    terms = equation.replace("->", ",").split(",")
    letters = sorted({n for n in equation if n.isalpha()})
    sizes = [[2 + letters.index(n) for n in term] for term in terms]
    given = {"w": normal(*sizes[at])}
    ends = [helper.make_tensor_value_info(n, 1, s) for n, s in (("x", sizes[1 - at]), ("y", sizes[2]))]
    node = helper.make_node("Einsum", ["w", "x"] if at == 0 else ["x", "w"], ["y"], equation=equation, name="sum")
    stored = [numpy_helper.from_array(value, name) for name, value in given.items()]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), given["w"]


@pytest.mark.parametrize("opset", [12, 18])
@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("equation", AS_PRODUCTS.split())
def test_an_einsum_with_a_weight_is_a_product(equation: str, at: int, opset: int) -> None:
    if at == 0:
        first, second, result = equation.replace("->", ",").split(",")
        equation = f"{second}, {first} -> {result}"
    proto, w = einsum(equation.replace(" ", ""), at, opset)
    found = multiplied(live(load(proto)))
    assert {n.op for n in found.nodes} <= {"MatMul", "Transpose", "Unsqueeze", "Squeeze", "Constant", "Reshape"}
    (product,) = (n for n in found.nodes if n.op == "MatMul")
    assert product.name == "sum"
    onnx.checker.check_model(found.proto, full_check=True)
    x = feed_for(proto)["x"]
    expected = np.einsum(equation, *((w, x) if at == 0 else (x, w)))
    np.testing.assert_allclose(outputs(found.proto, {"x": x})[0], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("equation", ["bi,i->b", "bi,io->b", "bii,io->bo", "bij,ijo->ob", "bi,ij->bij", "bij,io->bo"])
def test_what_is_no_product_of_matrices_stays_an_einsum(equation: str) -> None:
    network = live(load(einsum(equation, 1, 18)[0]))
    assert multiplied(network) is network


@pytest.mark.parametrize(("given", "stored"), [(1, 5), ("C", 5), (5, 1)])
def test_one_number_that_is_summed_as_often_as_the_other_has_some(given: int | str, stored: int) -> None:
    node = helper.make_node("Einsum", ["x", "w"], ["y"], equation="bi,io->bo")
    x, y = helper.make_tensor_value_info("x", 1, ["B", given]), helper.make_tensor_value_info("y", 1, ["B", 3])
    graph = helper.make_graph([node], "g", [x], [y], [numpy_helper.from_array(normal(stored, 3), "w")])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    network = live(load(proto))
    assert multiplied(network) is network
    assert condense(proto, threads=1).model == proto


@pytest.mark.parametrize(("op", "pass_"), [("Constant", folded), ("Constant", multiplied), ("Exp", folded)])
def test_a_function_that_goes_by_the_name_of_an_op(op: str, pass_: Callable[[Network], Network]) -> None:
    made = 'v = Exp(d) r = Einsum<equation = "ebi,eij->ebj">(k, u)'
    proto = worked_out(made, {"d": normal(6, 2), "u": normal(3, 2, 2)}, ", float[3, N, 2] k")
    proto.graph.output.append(helper.make_tensor_value_info("r", 1, [3, "N", 2]))
    assert pass_(load(proto)) is not load(proto)
    body = [helper.make_node("Neg", ["a"], ["b"])]
    proto.functions.append(helper.make_function("", op, ["a"], ["b"], body, [helper.make_opsetid("", 18)]))
    network = live(load(proto))
    assert pass_(network) is network


def test_no_more_is_transposed_than_has_to_be() -> None:
    """The weight stands on the side where channels lie; where an axis of a stack leads, nothing is moved."""
    for equation, at in (("bct,oc->bot", 1), ("oc,bct->bot", 0), ("ebi,eij->ebj", 1), ("bi,eij->ebj", 1)):
        ops = [n.op for n in multiplied(live(load(einsum(equation, at, 18)[0]))).nodes]
        assert "Transpose" not in ops, equation


def test_own_axes_at_the_end_are_one_product_and_no_stack() -> None:
    """As Keras projects into heads; a stack of small products was up to 3.5 times as slow as the Einsum."""
    for equation in ("abc,cde->abde", "bi,eih->beh", "bi,ihd->bhd"):
        found = multiplied(live(load(einsum(equation, 1, 18)[0])))
        assert [n.op for n in found.nodes if n.op != "Constant" and not found.root(n.outputs[0])] == [
            "MatMul",
            "Reshape",
        ]
        (product,) = (n for n in found.nodes if n.op == "MatMul")
        assert len(found.shape(product.inputs[1]) or ()) == 2


@pytest.mark.parametrize("equation", ["abcd,cde->abe", "bid,ido->bo"])
def test_axes_that_are_summed_together_are_one(equation: str) -> None:
    """As Keras brings heads together; the tensor is laid out, nothing of it moved."""
    found = multiplied(live(load(einsum(equation, 1, 18)[0])))
    ops = [n.op for n in found.nodes if n.op != "Constant" and not found.root(n.outputs[0])]
    assert ops == ["Reshape", "MatMul"]


HEADS = {
    "written": 'z = Einsum<equation = "bc,cde->bde">(x, w) h = Relu(z) f = Reshape(h, line) y = MatMul(f, v)',
    "summed": 'z = MatMul(x, w) h = Reshape(z, grid) y = Einsum<equation = "bij,ijo->bo">(h, v)',
}


@pytest.mark.parametrize("kind", HEADS)
def test_channels_of_heads_that_an_einsum_writes_or_sums_go(kind: str) -> None:
    """Place 2 of both heads is a multiple of place 0."""
    first, second = normal(5, 2, 4), normal(2, 4, 3, seed=1)
    first[:, :, 2] = 1.5 * first[:, :, 0]
    weights = (first, second.reshape(8, 3)) if kind == "written" else (first.reshape(5, 8), second)
    text = f"{HEAD} agraph (float[N, 5] x) => (float[N, 3] y) {{ {HEADS[kind]} }}"
    lines = {"line": np.array([0, 8])} if kind == "written" else {"grid": np.array([0, 2, 4])}
    proto = text_model(text, dict(zip("wv", weights, strict=True)) | lines)
    found = condense(proto, threads=1, allow_slower=True)
    assert [(s.before, s.after) for s in found.report.spaces if s.after < s.before] == [(4, 3)]
    assert_same_outputs(proto, found.model, eps=1e-5)


WEIGHED = ["bhqk,bkhe->bqhe", "bkhe,bhqk->bqhe", "bhqk,bkhe->bhqe", "bhqk,bkhe->qbhe"]


def attention(equation: str) -> tuple[onnx.ModelProto, Array]:
    """As Keras and Flax write it: two heads of four; place 2 of the values is a multiple of place 0 in both."""
    weights = {name: normal(5, 2, 4, seed=seed) for seed, name in enumerate("qkv")}
    weights["v"][:, :, 2] = 1.5 * weights["v"][:, :, 0]
    pair = "p, vs" if equation.startswith("bhqk") else "vs, p"
    text = f"{HEAD} agraph (float[N, 6, 5] x) => (float[N, 6, 3] y) {{ "
    text += " ".join(f'{n}s = Einsum<equation = "abc,cde->abde">(x, {n})' for n in "qkv")
    text += ' s = Einsum<equation = "bqhe,bkhe->bhqk">(qs, ks) p = Softmax<axis = -1>(s)'
    text += f' z0 = Einsum<equation = "{equation}">({pair})'
    order = {"bqhe": (0, 1, 2, 3), "bhqe": (0, 2, 1, 3), "qbhe": (1, 0, 2, 3)}[equation[-4:]]
    text += f' z = Transpose<perm = {list(order)}>(z0) y = Einsum<equation = "abcd,cde->abe">(z, o) }}'
    return text_model(text, weights | {"o": normal(2, 4, 3, seed=4)}), weights["v"]


@pytest.mark.parametrize("equation", WEIGHED)
def test_values_that_an_einsum_weighs_go(equation: str) -> None:
    proto, _ = attention(equation)
    found = condense(proto, threads=1, allow_slower=True)
    assert [(s.before, s.after) for s in found.report.spaces if s.after < s.before] == [(4, 3)]
    # Queries and keys stay an Einsum: no channels go there.
    assert [n.op_type for n in found.model.graph.node].count("Einsum") == 1
    assert_same_outputs(proto, found.model, eps=1e-5)


def test_answers_of_experts_that_a_gate_weighs_go() -> None:
    """Each of three writes six channels, of which the last is the first in all of them."""
    first, last = normal(3, 4, 6), normal(6, 2, seed=1)
    first[:, :, 5] = first[:, :, 0]
    text = f"{HEAD} agraph (float[N, 4] x, float[N, 3] g) => (float[N, 2] y) {{ "
    text += 'z = Einsum<equation = "bi,eio->beo">(x, w) m = Einsum<equation = "be,beo->bo">(g, z) '
    proto = text_model(text + "h = Tanh(m) y = MatMul(h, v) }", {"w": first, "v": last})
    found = condense(proto, threads=1, allow_slower=True)
    assert [(s.before, s.after) for s in found.report.spaces if s.after < s.before] == [(6, 5)]
    assert_same_outputs(proto, found.model, eps=1e-5)


@pytest.mark.parametrize("equation", ["bi,bj->bij", "bhk,bke->bh", "bhk,bkf->bfh", "bhk,bkef->bhef", "bhk,bke->bhe"])
def test_einsums_of_two_tensors_that_are_left(equation: str) -> None:
    """No sum, none left alone, channels on another axis, two axes of them; or nothing there could go."""
    letters = {"b": 2, "h": 3, "k": 4, "e": 5, "f": 6, "i": 7, "j": 8}
    terms = equation.split("->", maxsplit=1)[0].split(",")
    inputs = ", ".join(f"float{[letters[n] for n in term]} x{at}" for at, term in enumerate(terms))
    text = f"{HEAD} agraph ({inputs}) => (float{[letters[n] for n in equation.split('->')[1]]} y) {{ "
    text += f'y = Einsum<equation = "{equation}">(x0, x1) }}'
    network = load(text_model(text, {}))
    assert weighed(network, lambda n: find_spaces(n).labels) is network


def test_channels_between_einsums_go() -> None:
    """Experts that read one input, mixed by a gate: channel 2 copies another one in each of them."""
    first, second = normal(3, 4, 3), normal(3, 3, 2, seed=1)
    for member, place in enumerate((0, 1, 1)):
        first[member, :, 2] = first[member, :, place]
    text = f"{HEAD} agraph (float[N, 4] x, float[N, 3] g) => (float[N, 2] y) {{ "
    text += 'z = Einsum<equation = "bi,eih->beh">(x, w) h = Tanh(z) m = Einsum<equation = "beh,eho->beo">(h, v) '
    proto = text_model(text + 'y = Einsum<equation = "beo,be->bo">(m, g) }', {"w": first, "v": second})
    calibration = {"x": normal(1000, 4, seed=3), "g": normal(1000, 3, seed=4)}
    found = condense(proto, calibration=calibration, tolerance=1e-3, threads=1, allow_slower=True)
    assert next((s.before, s.after) for s in found.report.spaces) == (3, 2)
    assert_same_outputs(proto, found.model, eps=1e-4)


# ---- rare samples ----


def measured(squared: Array, metric: str = "relative") -> Measurement:
    output = OutputMeasure("y", squared, np.ones(len(squared)), 0.0, None, metric=metric)
    return Measurement((output,), np.arange(len(squared)))


def test_it_is_told_where_one_sample_makes_the_error() -> None:
    even, one, two = np.ones(200), np.ones(200), np.ones(200)
    one[7], two[:2] = 300.0, 150.0
    assert rare(measured(even), measured(even)) == []
    (note,) = rare(measured(even), measured(one))
    assert note.startswith("1 of 200 samples that judge makes more than half")
    (note,) = rare(measured(two), measured(even))
    assert note.startswith("2 of 200 samples that were fitted on make more than half")


def test_nothing_is_told_of_few_samples_no_error_or_other_metrics() -> None:
    few, one = np.zeros(50), np.zeros(200)
    few[0] = one[0] = 1.0
    for found in (measured(few), measured(np.zeros(200)), measured(one, "max-abs")):
        assert rare(found, found) == []
