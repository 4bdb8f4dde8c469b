"""Networks pass to and from onnxsim, onnxslim and ONNX Runtime's own optimizer, and lose nothing on the way.

What these write is taken as input, what is condensed is taken by them, outputs stay the same, and redundancy that was
planted before they rewrote a network is still found exactly.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import mlps
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from builders import ACTIVATIONS, Array, Form, base_layers, lossless, mlp, model
from builders import Planting as Units
from builders import plant as plant_units
from convnets import PLAIN, Stage, assembled, assert_same, base
from convplant import Planting, expected, plant
from dag_files import written
from grouped import AROUND, single, twice
from onnx import helper
from planted_dags import Dag

from onnx_condense import condense

NODE = helper.make_node
MODELS = Path(__file__).parent.parent / "models"
FLOATS = {np.float32: 2.0**-23, np.float16: 2.0**-10}

Tool = Callable[[onnx.ModelProto, Path], onnx.ModelProto]


# ---- the other tools ----


def by_onnxsim(proto: onnx.ModelProto, _: Path) -> onnx.ModelProto:
    made, checked = pytest.importorskip("onnxsim").simplify(proto)
    assert checked
    return onnx.ModelProto.FromString(made.SerializeToString())


def by_onnxslim(proto: onnx.ModelProto, _: Path) -> onnx.ModelProto:
    copy = onnx.ModelProto.FromString(proto.SerializeToString())
    return onnx.ModelProto.FromString(pytest.importorskip("onnxslim").slim(copy).SerializeToString())


def by_onnxruntime(proto: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(options.optimized_model_filepath)


TOOLS: Mapping[str, Tool] = {"onnxsim": by_onnxsim, "onnxslim": by_onnxslim, "onnxruntime": by_onnxruntime}


# ---- networks with planted redundancy ----


@dataclasses.dataclass(frozen=True)
class Planted:
    """A network, the widths that have to be left of it, and its precision."""

    proto: onnx.ModelProto
    widths: list[int]
    eps: float = FLOATS[np.float32]


def relu(value: Array) -> Array:
    return np.maximum(value, 0.0)


def chain(form: Form, kind: str = "Relu") -> Planted:
    """Two hidden layers with copies, dead and constant units."""
    rng, widths = np.random.default_rng(5), [6, 5]
    value = {"Relu": relu, "Tanh": np.tanh}[kind]
    wide = plant_units(rng, base_layers(rng, widths), Units(2, 1, 1), ACTIVATIONS[kind], value)
    return Planted(mlp(wide, kind, form), widths, FLOATS[np.dtype(form.dtype).type])


def images(head: str, form: Form = PLAIN) -> Planted:
    """A CNN with scaled copies, dead and constant channels in both spaces."""
    rng, planting = np.random.default_rng(3), Planting(copies=2, dead=1, constant=1)
    net = base(rng, [Stage(5, conv=AROUND, then=("max",)), Stage(4, act="Sigmoid")], head)
    return Planted(plant(rng, net, planting).proto(form), expected(net, planting), FLOATS[np.dtype(form.dtype).type])


def normalised(form: Form = PLAIN, *, skip: bool = False) -> Planted:
    """Convolutions, each normalised, as a chain or with one of them skipped.

    Copies have equal numbers: whoever folds the normalisation into the weights rounds both alike, and factors not.
    """
    rng = np.random.default_rng(6)
    of, share = twice(rng, 4, 2)
    stored: dict[str, Array] = {"v": rng.standard_normal((4, 3))[of] * share[:, None], "c": rng.standard_normal(3)}
    nodes, tensor = [], "x"
    for i in range(3):
        weight = rng.standard_normal((4, 4 if i else 3, 3, 3))[of]
        statistics = (rng.uniform(0.5, 1.5, 4), rng.standard_normal(4), rng.standard_normal(4), rng.uniform(0.5, 2, 4))
        stored |= {f"{n}{i}": v[of] for n, v in zip("gsmv", statistics, strict=True)}
        stored[f"w{i}"] = weight[:, of] * share[:, None, None] if i else weight
        nodes.append(NODE("Conv", [tensor, f"w{i}"], [f"a{i}"], name=f"conv{i}", **AROUND))
        nodes.append(NODE("BatchNormalization", [f"a{i}", *(f"{n}{i}" for n in "gsmv")], [f"n{i}"]))
        nodes += [NODE("Add", ["h0", "n2"], ["t"])] if skip and i == 2 else []
        nodes.append(NODE("Relu", ["t" if skip and i == 2 else f"n{i}"], [f"h{i}"]))
        tensor = f"h{i}"
    nodes += [NODE("GlobalAveragePool", [tensor], ["p"]), NODE("Flatten", ["p"], ["f"])]
    nodes.append(NODE("Gemm", ["f", "v", "c"], ["y"]))
    proto = assembled(nodes, single(stored), {"x": ("N", 3, 8, 8)}, form)
    return Planted(proto, [4, 4] if skip else [4, 4, 4])


def groups() -> Planted:
    """Two groups of 3 channels, of which the last is a copy in both."""
    rng = np.random.default_rng(2)
    w, b = rng.standard_normal((2, 3, 3, 3, 3)), rng.uniform(-1, 1, (2, 3))
    w[:, 2], b[:, 2] = 2 * w[:, 0], 2 * b[:, 0]
    stored = {"w": w.reshape(6, 3, 3, 3), "b": b.reshape(6), "k": rng.standard_normal((4, 3, 3, 3))}
    stored |= {"d": rng.uniform(-1, 1, 4), "v": rng.standard_normal((3, 4, 3, 3)), "c": rng.standard_normal(3)}
    nodes = [
        NODE("Conv", ["x", "w", "b"], ["z"], name="first", **AROUND),
        NODE("Relu", ["z"], ["h"]),
        NODE("Conv", ["h", "k", "d"], ["g"], name="groups", group=2, **AROUND),
        NODE("Relu", ["g"], ["r"]),
        NODE("Conv", ["r", "v", "c"], ["y"], name="last"),
    ]
    return Planted(assembled(nodes, single(stored), {"x": ("N", 3, 8, 8)}), [2, 2])


def joined() -> Planted:
    """Three convolutions side by side, cut into halves that go different ways; each has copies of its own."""
    rng = np.random.default_rng(7)
    of, share = np.array([0, 0, 1, 1, 2, 3, 2, 3]), np.array([0.3, 0.7, 0.4, 0.6, 0.2, 0.9, 0.8, 0.1])
    w, b = rng.standard_normal((4, 3, 3, 3))[of], rng.uniform(-1, 1, 4)[of]
    upper, lower = rng.standard_normal((2, 3, 2, 3, 3))
    stored: dict[str, Array] = {f"w{i}": part for i, part in enumerate(np.split(w, [2, 4]))}
    stored |= {f"b{i}": part for i, part in enumerate(np.split(b, [2, 4]))}
    stored |= {
        "u": upper[:, of[:4]] * share[:4, None, None],
        "l": lower[:, of[4:] - 2] * share[4:, None, None],
        "c": rng.standard_normal(3),
    }
    nodes = [
        *(NODE("Conv", ["x", f"w{i}", f"b{i}"], [f"z{i}"], name=f"conv{i}") for i in range(3)),
        NODE("Concat", ["z0", "z1", "z2"], ["z"], axis=1),
        NODE("Sigmoid", ["z"], ["h"]),
        NODE("Split", ["h"], ["h1", "h2"], axis=1, num_outputs=2),
        NODE("Conv", ["h1", "u", "c"], ["y1"], name="upper"),
        NODE("Conv", ["h2", "l", "c"], ["y2"], name="lower"),
        NODE("Add", ["y1", "y2"], ["y"]),
    ]
    return Planted(assembled(nodes, single(stored), {"x": ("N", 3, 8, 8)}), [1, 1, 2])


def feed_forward(kind: str) -> Planted:
    """Twice x + W2 f(W1 LayerNormalization(x)); hidden units have copies."""
    rng, width = np.random.default_rng(4), 6
    nodes, stored, tensor = [], dict[str, Array](), "x"
    for i in range(2):
        of, share = twice(rng, 5, 2)
        up, down = rng.standard_normal((width, 5)), rng.standard_normal((5, width))
        names = {n: f"{n}{i}" for n in ("s", "o", "w1", "b1", "w2", "b2")}
        stored |= {names["s"]: rng.uniform(0.5, 1.5, width), names["o"]: rng.standard_normal(width)}
        stored |= {names["w1"]: up[:, of], names["b1"]: rng.standard_normal(5)[of]}
        stored |= {names["w2"]: down[of] * share[:, None], names["b2"]: rng.standard_normal(width)}
        nodes += [
            NODE("LayerNormalization", [tensor, names["s"], names["o"]], [f"n{i}"], axis=-1),
            NODE("MatMul", [f"n{i}", names["w1"]], [f"m{i}"], name=f"up{i}"),
            NODE("Add", [f"m{i}", names["b1"]], [f"z{i}"]),
            NODE(kind, [f"z{i}"], [f"h{i}"]),
            NODE("MatMul", [f"h{i}", names["w2"]], [f"p{i}"], name=f"down{i}"),
            NODE("Add", [f"p{i}", names["b2"]], [f"q{i}"]),
            NODE("Add", [tensor, f"q{i}"], ["y" if i else "t"]),
        ]
        tensor = "t"
    return Planted(model(nodes, single(stored), {"x": ["N", 3, width]}, {"y": ["N", 3, width]}), [5, 5])


def fixed(planted: Planted, batch: int = 2) -> Planted:
    """The same for one batch size only."""
    proto = onnx.ModelProto.FromString(planted.proto.SerializeToString())
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    onnx.checker.check_model(proto, full_check=True)
    return dataclasses.replace(planted, proto=proto)


def drawn(seed: int) -> Planted:
    """A random network of joins, cuts, gates, shuffles and sums."""
    wide = written(Dag(seed), "planted", seed)
    return Planted(wide, lossless(wide).widths())


NETWORKS: Mapping[str, Callable[[], Planted]] = {
    "mlp": lambda: chain(Form()),
    "mlp of products": lambda: chain(Form("MatMul"), "Tanh"),
    "mlp, fixed batch": lambda: fixed(chain(Form())),
    "mlp, initializers are inputs": lambda: chain(Form(ir=3, opset=8)),
    "mlp of constants": lambda: chain(Form(constants=True)),
    "mlp in half precision": lambda: chain(Form(dtype=np.float16)),
    "cnn, flattened": lambda: images("flatten"),
    "cnn, averaged, of constants": lambda: images("gap", Form(constants=True)),
    "normalised": normalised,
    "normalised, fixed batch": lambda: fixed(normalised()),
    "residual": lambda: normalised(skip=True),
    "residual, of constants": lambda: normalised(Form(constants=True), skip=True),
    "groups": groups,
    "joined and cut": joined,
    "feed-forward, Relu": lambda: feed_forward("Relu"),
    "feed-forward, Gelu": lambda: feed_forward("Gelu"),
    **{f"drawn, {seed}": functools.partial(drawn, seed) for seed in (4, 9, 14, 45, 121)},
}


# ---- there and back ----


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("name", NETWORKS)
def test_planted_redundancy_is_found_after_another_tool(name: str, tool: str, tmp_path: Path) -> None:
    planted = NETWORKS[name]()
    rewritten = TOOLS[tool](planted.proto, tmp_path)
    done = lossless(rewritten)
    assert sorted(done.widths()) == sorted(planted.widths)
    assert_same(planted.proto, done.proto, planted.eps)


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_condensed_is_taken_by_another_tool(name: str, tool: str, tmp_path: Path) -> None:
    planted = NETWORKS[name]()
    made = lossless(planted.proto)
    assert sorted(made.widths()) == sorted(planted.widths)
    rewritten = TOOLS[tool](made.proto, tmp_path)
    assert_same(planted.proto, rewritten, planted.eps)
    again = lossless(rewritten)
    assert not again.plan.selections


@pytest.mark.parametrize("tool", TOOLS)
def test_a_real_network_keeps_what_can_go(tool: str, tmp_path: Path) -> None:
    """The digit classifier's channels are all as free as before."""
    proto = onnx.load(MODELS / "digits.onnx")
    rewritten = TOOLS[tool](proto, tmp_path)
    assert_same(proto, rewritten)
    assert lossless(rewritten).widths() == lossless(proto).widths()


@pytest.mark.parametrize("tool", TOOLS)
def test_files_through_the_whole_of_it(tool: str, tmp_path: Path) -> None:
    """Fitted on samples, written, rewritten by the other tool and fitted again: each time within the tolerance."""
    tool_in, made, tool_out = (tmp_path / name for name in ("in.onnx", "made.onnx", "out.onnx"))
    dense = mlps.mlp((3, 24, 20, 2), op="MatMul")
    onnx.save(TOOLS[tool](dense, tmp_path), tool_in)
    x = mlps.normal(600, 3)
    found = condense(tool_in, calibration=x, tolerance=0.1, threads=1, allow_slower=True)
    assert found.report.status == "condensed"
    assert found.report.parameters is not None
    assert found.report.parameters.after < 0.8 * found.report.parameters.before
    found.save(made)
    onnx.save(TOOLS[tool](onnx.load(made), tmp_path), tool_out)
    assert_same(found.model, onnx.load(tool_out))
    answers = [ort.InferenceSession(path).run(None, {"x": x})[0] for path in (dense.SerializeToString(), tool_out)]
    error = np.sqrt(((answers[1] - answers[0]) ** 2).mean() / answers[0].var(0).mean())
    assert error < 0.12
