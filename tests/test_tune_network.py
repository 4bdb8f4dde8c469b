"""Networks as PyTorch modules: what is trained, what stays, what is left to ONNX Runtime, and the way back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from convnets import Array
from mlps import Net, mlp, normal, weight_of
from onnx import TensorProto, helper, numpy_helper

from onnx_condense.errors import ModelError
from onnx_condense.network.model import Network, load
from onnx_condense.runtime import Runtime, run
from onnx_condense.tune.network import Torched, check_trainable

MODELS = Path(__file__).parent.parent / "models"


def reference(model: onnx.ModelProto, feed: Mapping[str, Array]) -> list[Array]:
    """What ONNX Runtime gives, optimizations off."""
    return run(Runtime(threads=1).session(model, optimize=False), feed)


def given(module: Torched, feed: Mapping[str, Array]) -> dict[str, Any]:
    """What `forward` wants, made from the graph inputs as a caller has to."""
    known = dict(feed)
    if (prefix := module.prefix()) is not None:
        session = Runtime(threads=1).session(prefix, optimize=False)
        needed = {i.name: feed[i.name] for i in session.get_inputs()}
        known |= zip((o.name for o in prefix.graph.output), run(session, needed), strict=True)
    return {name: torch.from_numpy(np.array(known[name])) for name in module.needs}


def agree(model: onnx.ModelProto, feed: Mapping[str, Array], tolerance: float = 1e-5) -> Torched:
    """The module of a network, found to give what ONNX Runtime gives."""
    module = Torched(load(model))
    for found, wanted in zip(module(given(module, feed)), reference(model, feed), strict=True):
        scale = max(float(np.abs(wanted.astype(np.float64)).max()), 1e-30)
        np.testing.assert_allclose(found.detach().numpy(), wanted, rtol=0, atol=tolerance * scale)
    return module


def stepped(module: Torched, feed: Mapping[str, Array], rate: float = 0.01) -> tuple[float, float]:
    """One step of gradient descent towards outputs of 0; the loss before and after."""
    known = given(module, feed)

    def loss() -> Any:
        return sum((y**2).mean() for y in module(known) if y.requires_grad)

    before = loss()
    before.backward()
    assert all(w.grad is not None and bool((w.grad != 0).any()) for w in module.parameters())
    torch.optim.SGD(module.parameters(), lr=rate).step()
    return before.item(), loss().item()


@pytest.mark.parametrize("name", ["digits", "ignition"])
def test_models_of_this_project(name: str) -> None:
    model = onnx.load(MODELS / f"{name}.onnx")
    with np.load(MODELS / f"{name}.npz") as file:
        feed = {i.name: file[i.name][:8] for i in model.graph.input}
    module = agree(model, feed)
    assert module.prefix() is None
    weights = {t.name for t in model.graph.initializer if t.data_type == TensorProto.FLOAT}
    statistics = {n for node in model.graph.node if node.op_type == "BatchNormalization" for n in node.input[3:]}
    assert set(module.names) >= weights - statistics - {t.name for t in model.graph.initializer if not t.dims}


@pytest.mark.parametrize("op", ["Gemm", "MatMul"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_every_type_of_weights(op: str, dtype: type[Any]) -> None:
    model = mlp(op=op, dtype=dtype, opset=17)
    module = agree(model, {"x": normal(16, 3, dtype=dtype)}, 20 * float(np.finfo(dtype).eps))
    assert set(module.names) == {"W0", "b0", "W1", "b1", "W2", "b2"}
    wide = torch.float64 if dtype == np.float64 else torch.float32
    assert {w.dtype for w in module.parameters()} == {wide}
    assert module.tuned() == model
    before, after = stepped(module, {"x": normal(16, 3, dtype=dtype)})
    assert after < before
    tuned = module.tuned()
    assert {t.name: (t.data_type, tuple(t.dims)) for t in tuned.graph.initializer} == {
        t.name: (t.data_type, tuple(t.dims)) for t in model.graph.initializer
    }
    assert not np.array_equal(weight_of(tuned, "W0"), weight_of(model, "W0"))
    agree(tuned, {"x": normal(16, 3, dtype=dtype)}, 20 * float(np.finfo(dtype).eps))


def test_what_a_narrow_type_can_not_hold_ends_at_its_limits() -> None:
    module = Torched(load(mlp(dtype=np.float16)))
    with torch.no_grad():
        module.weights[0].fill_(1e6)
    assert np.array_equal(np.unique(weight_of(module.tuned(), "W0")), [np.finfo(np.float16).max])


def test_brain_floats_come_back_as_such() -> None:
    """A weight in bfloat16, cast for its reader."""
    net = Net({"x": ["N", 3]})
    array = normal(3, 4, seed=1)
    net.stored.append(helper.make_tensor("W", TensorProto.BFLOAT16, (3, 4), array.reshape(-1).tolist()))
    net.node("MatMul", "x", net.node("Cast", "W", to=TensorProto.FLOAT), out="y")
    model = net.model({"y": ["N", 4]})
    module = agree(model, {"x": normal(8, 3)})
    assert module.names == ("W",)
    assert module.tuned() == model
    before, after = stepped(module, {"x": normal(8, 3)})
    assert after < before
    assert module.tuned().graph.initializer[0].data_type == TensorProto.BFLOAT16
    agree(module.tuned(), {"x": normal(8, 3)}, 0.02)


def convolutional() -> onnx.ModelProto:
    """Conv, BatchNormalization, Relu, MaxPool, a residual sum of grouped convolutions, pooled and read by a Gemm."""
    net = Net({"x": ["N", 3, 9, 8]})
    h = net.node("Conv", "x", net.weight("W0", normal(8, 3, 3, 3) / 5), pads=[1, 1, 1, 1])
    scale, bias = net.weight("scale", np.ones(8)), net.weight("bias", normal(8, seed=1) / 9)
    mean, variance = net.weight("mean", normal(8, seed=2) / 9), net.weight("variance", np.linspace(0.5, 2, 8))
    h = net.node("Relu", net.node("BatchNormalization", h, scale, bias, mean, variance))
    h = net.node("MaxPool", h, kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1])
    z = net.node("Conv", h, net.weight("W1", normal(8, 4, 3, 1) / 3), net.weight("b1", normal(8) / 9), group=2,
                 pads=[1, 0, 1, 0])  # fmt: skip
    h = net.node("GlobalAveragePool", net.node("Relu", net.node("Add", z, h)))
    net.node("Gemm", net.node("Flatten", h), net.weight("W2", normal(8, 4)), net.weight("b2", normal(4)), out="y")
    return net.model({"y": ["N", 4]})


def transformer() -> onnx.ModelProto:
    """Embedding -> attention -> LayerNormalization -> Gelu by Erf -> the embedding again as output layer."""
    net = Net({"mask": ["N", "L"]}, opset=17)
    net.inputs.append(helper.make_tensor_value_info("ids", TensorProto.INT64, ["N", "L"]))
    h = net.node("Gather", net.weight("table", normal(11, 6)), "ids")
    q, k, v = (net.node("MatMul", h, net.weight(f"W{n}", normal(6, 6, seed=i) / 2)) for i, n in enumerate("qkv"))
    q = net.node("Add", q, net.weight("bq", normal(6, seed=9) / 3))
    away = net.node("Mul", net.node("Sub", net.weight("one", 1.0), "mask"), net.weight("far", -1e4))
    away = net.node("Unsqueeze", away, net.weight("axes", np.array([1])))
    scores = net.node(
        "Div", net.node("MatMul", q, net.node("Transpose", k, perm=[0, 2, 1])), net.weight("root", 6**0.5)
    )
    h = net.node("Add", h, net.node("MatMul", net.node("Softmax", net.node("Add", scores, away)), v))
    h = net.node("LayerNormalization", h, net.weight("scale", np.ones(6)), net.weight("shift", np.zeros(6)))
    e = net.node("Add", net.node("Erf", net.node("Div", h, net.weight("two", 2**0.5))), "one")
    net.node("MatMul", net.node("Mul", h, e), net.node("Transpose", "table", perm=[1, 0]), out="y")
    return net.model({"y": ["N", "L", 11]})


def test_a_convolutional_network() -> None:
    model = convolutional()
    feed = {"x": normal(4, 3, 9, 8)}
    module = agree(model, feed)
    assert set(module.names) == {"W0", "scale", "bias", "W1", "b1", "W2", "b2"}
    before, after = stepped(module, feed)
    assert after < before
    tuned = module.tuned()
    for name in ("mean", "variance"):
        assert np.array_equal(weight_of(tuned, name), weight_of(model, name))
    agree(tuned, feed)


def test_a_transformer_with_tied_weights() -> None:
    model = transformer()
    rng = np.random.default_rng(0)
    feed: dict[str, Array] = {"ids": rng.integers(0, 11, (3, 5)), "mask": (rng.random((3, 5)) < 0.8).astype(np.float32)}
    module = agree(model, feed)
    # Single numbers are part of formulas; the table is read twice and stays one tensor.
    assert set(module.names) == {"table", "Wq", "Wk", "Wv", "bq", "scale", "shift"}
    prefix = module.prefix()
    assert prefix is not None
    assert [n.op_type for n in prefix.graph.node] == ["Sub", "Mul", "Unsqueeze"]
    before, after = stepped(module, feed)
    assert after < before
    agree(module.tuned(), feed)


def test_frozen_nodes_are_left_to_onnx_runtime() -> None:
    """An unknown op, an embedding and a normalization in front of the first weight."""
    net = Net({"x": ["N", 6]})
    k = net.weight("k", np.array([4]))
    net.nodes.append(helper.make_node("TopK", ["x", k], ["top", "places"]))
    h = net.node("Div", "top", net.weight("std", 3.0))
    h = net.node("Relu", net.node("MatMul", h, net.weight("W0", normal(4, 5))))
    net.node("Sum", h, net.node("Mul", "x", net.weight("one", 1.0)), out="never")
    net.nodes.pop()
    net.node("MatMul", h, net.weight("W1", normal(5, 2)), out="y")
    model = net.model({"y": ["N", 2]})
    module = agree(model, {"x": normal(8, 6)})
    assert module.needs == (model.graph.node[1].output[0],)
    prefix = module.prefix()
    assert prefix is not None
    assert [n.op_type for n in prefix.graph.node] == ["TopK", "Div"]
    assert not prefix.graph.initializer[-1].name.startswith("W")


def test_what_follows_from_nothing_is_a_constant() -> None:
    """It has no axis of samples, so it is no part of the prefix."""
    net = Net({"x": ["N", 3]})
    filled = net.node("ConstantOfShape", net.weight("shape", np.array([4])))
    more = net.node("Exp", net.node("Add", filled, net.weight("third", 1 / 3)))
    net.node("Mul", net.node("MatMul", "x", net.weight("W", normal(3, 4))), more, out="y")
    module = agree(net.model({"y": ["N", 4]}), {"x": normal(8, 3)})
    assert module.names == ("W",)
    assert module.needs == ("x",)
    assert module.prefix() is None


def test_random_numbers_are_no_constants() -> None:
    net = Net({"x": [4, 3]})
    noise = net.node("RandomNormal", dtype=1, shape=[4, 2], seed=1.0)
    net.node("Add", net.node("MatMul", "x", net.weight("W", normal(3, 2))), noise, out="y")
    module = Torched(load(net.model({"y": [4, 2]})))
    assert set(module.needs) == {"x", noise}


def test_outputs_that_no_weight_changes_come_from_outside() -> None:
    net = Net({"x": ["N", 3]})
    net.node("MatMul", "x", net.weight("W", normal(3, 2)), out="y")
    net.node("Tanh", "x", out="frozen")
    net.node("Identity", net.weight("c", normal(2)), out="constant")
    module = agree(net.model({"frozen": ["N", 3], "y": ["N", 2], "constant": [2]}), {"x": normal(8, 3)})
    assert module.needs == ("x", "frozen")
    frozen, y, constant = module(given(module, {"x": normal(8, 3)}))
    assert [t.requires_grad for t in (frozen, y, constant)] == [False, True, False]


def test_a_shared_weight_is_one_parameter() -> None:
    net = Net({"x": ["N", 4]})
    W = net.weight("W", normal(4, 4))
    h = net.node("Tanh", net.node("MatMul", "x", W))
    net.node("MatMul", h, net.node("Transpose", W), out="y")
    model = net.model({"y": ["N", 4]})
    module = agree(model, {"x": normal(8, 4)})
    assert module.names == ("W",)
    assert len(list(module.parameters())) == 1
    before, after = stepped(module, {"x": normal(8, 4)})
    assert after < before
    agree(module.tuned(), {"x": normal(8, 4)})


FORMS: Mapping[str, Callable[[Array], dict[str, Any]]] = {
    "value": lambda v: {"value": numpy_helper.from_array(v)},
    "value_floats": lambda v: {"value_floats": v.tolist()},
}


@pytest.mark.parametrize("form", FORMS)
def test_weights_in_constant_nodes(form: str) -> None:
    net = Net({"x": ["N", 3]})
    bias = net.node("Constant", **FORMS[form](normal(2, seed=3)))
    W = net.node("Constant", value=numpy_helper.from_array(normal(3, 2)))
    net.node("Add", net.node("MatMul", "x", W), net.node("Identity", bias), out="y")
    model = net.model({"y": ["N", 2]})
    module = agree(model, {"x": normal(8, 3)})
    assert set(module.names) == {W, bias}
    assert module.tuned() == model
    before, after = stepped(module, {"x": normal(8, 3)})
    assert after < before
    tuned = module.tuned()
    assert np.allclose(
        reference(tuned, {"x": normal(8, 3)})[0], module({"x": torch.from_numpy(normal(8, 3))})[0].detach()
    )
    assert tuned.graph.node[0] != model.graph.node[0]


def test_weights_beside_the_file(tmp_path: Path) -> None:
    model = mlp()
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    onnx.save(copy, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0, location="w.bin")
    module = Torched(load(tmp_path / "m.onnx"))
    assert [t.name for t in module.tuned().graph.initializer] == [t.name for t in model.graph.initializer]
    assert np.array_equal(weight_of(module.tuned(), "W0"), weight_of(model, "W0"))


def chain(
    middle: Callable[[Net, str], str], outputs: Mapping[str, Sequence[int | str]] | None = None
) -> onnx.ModelProto:
    """X -> MatMul by W0 -> something -> MatMul by W1 -> y."""
    net = Net({"x": ["N", 3]})
    h = net.node("MatMul", "x", net.weight("W0", normal(3, 4)))
    net.node("MatMul", middle(net, h), net.weight("W1", normal(4, 2)), out="y")
    declared: dict[str, Any] = {"y": ["N", 2], **(outputs or {})}
    return net.model(declared)


def branch(net: Net, h: str) -> str:
    """An If that takes W2 from outside."""
    net.weight("W2", normal(4))
    value = helper.make_tensor_value_info("r", TensorProto.FLOAT, None)
    bodies: dict[str, Any] = {
        key: helper.make_graph([helper.make_node(op, ["W2"], ["r"])], key, [], [value])
        for key, op in (("then_branch", "Neg"), ("else_branch", "Exp"))
    }
    total = net.node("ReduceSum", "x", keepdims=0)
    return net.node("Add", h, net.node("If", net.node("Greater", total, net.weight("none", 0.0)), **bodies))


KEPT: Mapping[str, tuple[Callable[[Net, str], str], Mapping[str, Sequence[int | str]]]] = {
    "a graph output": (lambda net, h: net.node("Add", h, net.weight("c", normal(4))), {"c": [4]}),
    "an exponent": (
        lambda net, h: net.node("Pow", net.node("Abs", net.node("Add", h, net.weight("c", [1, 1.2, 0.9, 1.1]))), "c"),
        {},
    ),
    "captured by a body": (lambda net, h: net.node("Mul", branch(net, h), "W2"), {}),
    "an infinite mask": (
        lambda net, h: net.node("Max", h, net.node("Add", net.weight("c", [-np.inf, 0, 1, -np.inf]), h)),
        {},
    ),
    "read by an unknown op": (
        lambda net, h: net.node("Add", net.node("Mul", h, net.weight("c", normal(4))), net.node("Hardmax", "c")),
        {},
    ),
    "statistics": (
        lambda net, h: net.node("BatchNormalization", net.node("Add", h, net.weight("c", np.ones(4))),
                                net.weight("s", np.ones(4)), net.weight("b", np.ones(4)), "c", "c"),
        {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("why", KEPT)
def test_stored_tensors_that_must_not_change_stay(why: str) -> None:
    middle, outputs = KEPT[why]
    model = chain(middle, outputs)
    module = agree(model, {"x": normal(8, 3)})
    assert {"W0", "W1"} <= set(module.names)
    assert not {"c", "W2"} & set(module.names)
    before, after = stepped(module, {"x": normal(8, 3)})
    assert after < before
    trained = set(module.names)
    for tensor, old in zip(module.tuned().graph.initializer, model.graph.initializer, strict=True):
        assert (tensor == old) == (old.name not in trained)


def test_defaults_that_a_caller_may_override_stay() -> None:
    model = mlp(ir=8)
    bias = next(t for t in model.graph.initializer if t.name == "b0")
    model.graph.input.append(helper.make_tensor_value_info("b0", TensorProto.FLOAT, list(bias.dims)))
    module = agree(model, {"x": normal(8, 3)})
    assert set(module.names) == {"W0", "W1", "b1", "W2", "b2"}
    assert module.needs == ("x",)


def test_quantized_weights_stay_and_what_is_behind_them_is_trained() -> None:
    net = Net({"x": ["N", 3]})
    net.stored.append(numpy_helper.from_array(np.arange(12, dtype=np.int8).reshape(3, 4), "q"))
    W = net.node("DequantizeLinear", "q", net.weight("step", 0.1))
    h = net.node("MatMul", "x", W)
    net.node("MatMul", h, net.weight("V", normal(4, 2)), out="y")
    module = agree(net.model({"y": ["N", 2]}), {"x": normal(8, 3)})
    assert module.names == ("V",)


def test_a_weight_that_no_gradient_reaches_is_not_trained() -> None:
    net = Net({"x": ["N", 3]})
    net.node("MatMul", "x", net.weight("W", normal(3, 4)), out="y")
    net.node("ArgMax", net.node("MatMul", "x", net.weight("V", normal(3, 4))), axis=1, out="best")
    model = net.model({"y": ["N", 4]})
    model.graph.output.append(helper.make_tensor_value_info("best", TensorProto.INT64, ["N", 1]))
    assert agree(model, {"x": normal(8, 3)}).names == ("W",)


def lstm(net: Net, h: str) -> str:
    sequence = net.node("Unsqueeze", h, net.weight("axis", np.array([0])))
    weights = net.weight("R", normal(1, 16, 4)), net.weight("K", normal(1, 16, 4, seed=1))
    cell = net.node("LSTM", sequence, *weights, hidden_size=4)
    return net.node("Squeeze", cell, net.weight("axes", np.array([0, 1])))


@pytest.mark.parametrize(
    ("middle", "op"),
    [(lstm, "LSTM"), (lambda net, h: branch(net, h) and branch_on(net, h), "If")],
    ids=["recurrent", "control flow"],
)
def test_refusals_name_the_node(middle: Callable[[Net, str], str], op: str) -> None:
    with pytest.raises(ModelError, match=rf"\({op}\): .*leave --tune away") as caught:
        check_trainable(load(chain(middle)))
    assert caught.value.code == "tune"


def branch_on(net: Net, h: str) -> str:
    """An If whose bodies take what a weight computed."""
    value = helper.make_tensor_value_info("r2", TensorProto.FLOAT, None)
    bodies: dict[str, Any] = {
        key: helper.make_graph([helper.make_node(op, [h], ["r2"])], key, [], [value])
        for key, op in (("then_branch", "Neg"), ("else_branch", "Exp"))
    }
    total = net.node("ReduceSum", "x", keepdims=0)
    return net.node("If", net.node("Greater", total, net.weight("naught", 0.0)), **bodies)


def test_a_function_that_hides_an_op_is_refused() -> None:
    model = chain(lambda net, h: net.node("Relu", h))
    body = [helper.make_node("Neg", ["a"], ["b"])]
    opsets = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("", "Relu", ["a"], ["b"], body, opsets))
    with pytest.raises(ModelError, match=r"\(Relu\): no lowering"):
        check_trainable(Network(model))


def test_an_unknown_op_in_front_is_no_matter() -> None:
    net = Net({"x": ["N", 4]})
    net.node("MatMul", net.node("Hardmax", "x"), net.weight("W", normal(4, 2)), out="y")
    agree(net.model({"y": ["N", 2]}), {"x": normal(8, 4)})


def test_nothing_to_train() -> None:
    net = Net({"x": ["N", 4]})
    net.node("Mul", net.node("Tanh", "x"), net.weight("two", 2.0), out="y")
    with pytest.raises(ModelError, match="no stored float weights") as caught:
        check_trainable(load(net.model({"y": ["N", 4]})))
    assert caught.value.code == "tune"


def test_names_of_any_kind() -> None:
    """Dots and slashes are no names of PyTorch's."""
    net = Net({"x": ["N", 4]})
    net.node("MatMul", "x", net.weight("layer.0/weight:0", normal(4, 2)), out="y")
    assert agree(net.model({"y": ["N", 2]}), {"x": normal(8, 4)}).names == ("layer.0/weight:0",)


def test_intermediate_tensors_are_let_go() -> None:
    """Without gradients a pass holds no more than what is still to be read."""
    module = Torched(load(mlp((3, 8, 8, 8, 8, 2))))
    left: list[int] = []
    steps = module._steps

    class Watch:
        def __init__(self, step: Any) -> None:
            self.step = step

        def __call__(self, values: dict[str, Any]) -> None:
            self.step(values)
            left.append(len(values))

    module._steps = [Watch(step) for step in steps]  # type: ignore[misc]
    with torch.no_grad():
        module({"x": torch.zeros(2, 3)})
    assert max(left) <= len(module.names) + 1


def test_lists_of_sizes_stay_on_the_host() -> None:
    """The weights elsewhere, in a place that knows no numbers: whatever were read from there would fail."""
    net = Net({"x": ["N", 2, 4, 3]})
    h = net.node("Conv", "x", net.weight("W", normal(5, 2, 1, 1)))
    h = net.node("Pad", h, net.weight("pads", np.array([0, 0, 1, 0, 0, 0, 0, 1])), net.weight("edge", 0.5))
    h = net.node("Resize", h, "", net.weight("scales", [1.0, 1, 2, 3]))
    h = net.node("Gather", h, net.weight("odd", np.array([0, 2, 4])), axis=1)
    count = net.node("Slice", net.node("Shape", h), *(net.weight(f"at{i}", np.array([i])) for i in (0, 1)))
    sizes = net.node("Concat", count, net.weight("rest", np.array([-1])), axis=0)
    h = net.node("Mul", net.node("Reshape", h, sizes), net.node("Cast", count, to=TensorProto.FLOAT))
    net.node("Add", h, net.weight("b", normal(3 * 10 * 12)), out="y")
    model = net.model({"y": ["N", 360]})
    module = agree(model, {"x": normal(7, 2, 4, 3)})
    (y,) = module.to("meta")({"x": torch.zeros((7, 2, 4, 3), device="meta")})
    assert y.device.type == "meta"
    assert y.shape == (7, 360)
