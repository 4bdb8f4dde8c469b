"""What a network costs, and what it will cost at any widths."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlps import Array, Net, mlp
from onnx import TensorProto, helper, numpy_helper

from onnx_condense.cost import WidthCosts, count_macs, count_parameters
from onnx_condense.network.model import Network
from onnx_condense.plan import Plan, ReaderUpdate, Selection
from onnx_condense.rewrite import apply_plan
from onnx_condense.spaces import find_spaces

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from onnx_condense.plan import ChannelView


def test_all_weights_that_ops_read_count() -> None:
    assert count_parameters(mlp((3, 24, 20, 2))) == 3 * 24 + 24 + 24 * 20 + 20 + 20 * 2 + 2


def test_a_shared_tensor_counts_once_and_an_unread_one_not_at_all() -> None:
    net = Net({"x": ["N", 4]})
    W = net.weight("W", np.ones((4, 4)))
    net.weight("unread", np.ones(1000))
    net.node("MatMul", net.node("MatMul", "x", W), W, out="y")
    assert count_parameters(net.model({"y": ["N", 4]})) == 16


@pytest.mark.parametrize(
    ("dtype", "counted"), [("int8", 12), ("uint8", 12), ("float16", 12), ("int64", 0), ("bool", 0)]
)
def test_quantized_tensors_count_and_shapes_do_not(dtype: str, counted: int) -> None:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    node = helper.make_node("Identity", ["w"], ["y"])
    stored = numpy_helper.from_array(np.ones((3, 4), dtype), "w")
    graph = helper.make_graph([node], "g", [], [helper.make_tensor_value_info("y", kind, [3, 4])], [stored])
    assert count_parameters(helper.make_model(graph)) == counted


def test_constants_count_whatever_attribute_holds_them() -> None:
    nodes = [
        helper.make_node("Constant", [], ["a"], value=numpy_helper.from_array(np.ones((2, 3), np.float32))),
        helper.make_node("Constant", [], ["b"], value_floats=[1.0, 2.0, 3.0]),
        helper.make_node("Constant", [], ["c"], value_float=1.0),
        helper.make_node("Constant", [], ["unread"], value_floats=[1.0] * 9),
        helper.make_node("Constant", [], ["shape"], value_ints=[1, 2]),
        helper.make_node("Sum", ["a", "b", "c"], ["s"]),
        helper.make_node("Expand", ["s", "shape"], ["y"]),
    ]
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    assert count_parameters(helper.make_model(helper.make_graph(nodes, "g", [], [out]))) == 6 + 3 + 1


def test_what_only_nodes_without_an_effect_read_does_not_count() -> None:
    net = Net({"x": ["N", 4]})
    idle = net.node("MatMul", "x", net.weight("a", np.ones((4, 9))))
    net.node("Add", idle, net.weight("b", np.ones(9)))
    net.node("MatMul", "x", net.weight("w", np.ones((4, 3))), out="y")
    assert count_parameters(net.model({"y": ["N", 3]})) == 12


def test_subgraphs_count_with_what_they_take_from_outside_once() -> None:
    def body(name: str) -> onnx.GraphProto:
        inner = numpy_helper.from_array(np.ones(5, np.float32), f"inner_{name}")
        node = helper.make_node("Sum", ["outer", f"inner_{name}"], [f"out_{name}"])
        out = helper.make_tensor_value_info(f"out_{name}", TensorProto.FLOAT, [5])
        return helper.make_graph([node], name, [], [out], [inner])

    node = helper.make_node("If", ["flag"], ["y"], then_branch=body("then"), else_branch=body("else"))
    flag = helper.make_tensor_value_info("flag", TensorProto.BOOL, [])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [5])
    outer = numpy_helper.from_array(np.ones(5, np.float32), "outer")
    model = helper.make_model(helper.make_graph([node], "g", [flag], [out], [outer]))
    assert count_parameters(model) == 15


@pytest.mark.parametrize("op", ["Gemm", "MatMul"])
def test_macs_are_those_of_one_sample(op: str) -> None:
    assert count_macs(Network(mlp((3, 24, 20, 2), op=op))) == 3 * 24 + 24 * 20 + 20 * 2
    assert count_macs(Network(mlp((3, 24, 2), op="MatMul", middle=(7,)))) == 7 * (3 * 24 + 24 * 2)


def test_macs_of_layouts_and_convolutions() -> None:
    net = Net({"x": ["N", 4, 8, 8]})
    net.node("Conv", "x", net.weight("K", np.ones((6, 2, 3, 3))), group=2, pads=[1, 1, 1, 1], out="y")
    assert count_macs(Network(net.model({"y": ["N", 6, 8, 8]}))) == 6 * 8 * 8 * 2 * 9
    net = Net({"x": [5, "N"]})
    net.node("Gemm", "x", net.weight("W", np.ones((7, 5))), transA=1, transB=1, out="y")
    assert count_macs(Network(net.model({"y": ["N", 7]}))) == 5 * 7
    net = Net({"x": [5, 3]})
    net.node("MatMul", net.weight("W", np.ones((7, 5))), "x", out="y")
    assert count_macs(Network(net.model({"y": [7, 3]}))) == 7 * 5 * 3


# ---- widths ----


def shared_weight() -> onnx.ModelProto:
    """Two branches through one stored W (tied as one), then apart."""
    rng = np.random.default_rng(0)
    net = Net({"x": ["N", 5], "z": ["N", 5]})
    W = net.weight("W", rng.standard_normal((5, 12)))
    b = net.weight("b", rng.standard_normal(12))
    V = net.weight("V", rng.standard_normal((12, 9)))
    c = net.weight("c", rng.standard_normal(9))
    heads = []
    for name in ("x", "z"):
        h = net.node("Relu", net.node("Gemm", name, W, b))
        h = net.node("Tanh", net.node("Gemm", h, V, c))
        heads.append(
            net.node("Gemm", h, net.weight(f"U{name}", rng.standard_normal((9, 2))), net.weight(f"u{name}", np.ones(2)))
        )
    net.node("Add", *heads, out="y")
    return net.model({"y": ["N", 2]})


def untied_weight() -> onnx.ModelProto:
    """W is a writer whose rows are free in one place and pinned (graph output) in the other; b is read twice."""
    rng = np.random.default_rng(0)
    net = Net({"x": ["N", 5]})
    W, b = net.weight("W", rng.standard_normal((5, 12))), net.weight("b", rng.standard_normal(12))
    free = net.node("Tanh", net.node("Gemm", "x", W, b))
    net.node("Gemm", free, net.weight("V", rng.standard_normal((12, 3))), net.weight("c", np.ones(3)), out="y")
    net.node("Gemm", "x", W, b, out="z")
    return net.model({"y": ["N", 3], "z": ["N", 12]})


def readers_apart() -> onnx.ModelProto:
    """V reads the same channels in two places that are refitted apart, as their gains differ."""
    rng = np.random.default_rng(0)
    net = Net({"x": ["N", 4]})
    h = net.node(
        "Relu", net.node("Gemm", "x", net.weight("W", rng.standard_normal((4, 9))), net.weight("b", np.ones(9)))
    )
    V = net.weight("V", rng.standard_normal((9, 3)))
    net.node("Gemm", h, V, net.weight("c", np.ones(3)), out="y")
    net.node("Gemm", h, V, net.weight("d", np.ones(3)), alpha=2.0, out="z")
    return net.model({"y": ["N", 3], "z": ["N", 3]})


def read_elsewhere() -> onnx.ModelProto:
    """The bias of a free layer is an operand of a graph output too: it has to stay as it is."""
    rng = np.random.default_rng(0)
    net = Net({"x": ["N", 4], "w": ["N", 6]})
    b = net.weight("b", rng.standard_normal(6))
    h = net.node("Relu", net.node("Gemm", "x", net.weight("W", rng.standard_normal((4, 6))), b))
    net.node("Gemm", h, net.weight("V", rng.standard_normal((6, 3))), net.weight("c", np.ones(3)), out="y")
    net.node("Mul", "w", b, out="z")
    return net.model({"y": ["N", 3], "z": ["N", 6]})


def three_axes() -> onnx.ModelProto:
    return mlp((3, 7, 6, 2), op="MatMul", middle=(5,))


def viewed(*ways: tuple[str, ...]) -> onnx.ModelProto:
    """One stored W that two layers read, each in its own way (the ops in between) or in the same."""
    rng = np.random.default_rng(0)
    net = Net({"x": ["N", 9]})
    half = any("Cast" in ops for ops in ways)
    stored = {
        "W": rng.standard_normal((9, 9)).astype("f2" if half else "f4"),
        "V": rng.standard_normal((9, 2)).astype("f4"),
    }
    net.stored += [numpy_helper.from_array(value, name) for name, value in stored.items()]
    made: dict[tuple[str, ...], str] = {}
    options: dict[str, dict[str, Any]] = {"Cast": {"to": TensorProto.FLOAT}}
    tensor = "x"
    for ops in ways:
        weight = made.get(ops, "W")
        for op in ops if ops not in made else ():
            weight = net.node(op, weight, **options.get(op, {}))
        made[ops] = weight
        bias = net.weight(f"b{len(net.nodes)}", np.ones(9))
        tensor = net.node("Tanh", net.node("Gemm", tensor, weight, bias))
    net.node("Gemm", tensor, "V", net.weight("c", np.ones(2)), out="y")
    return net.model({"y": ["N", 2]})


NETS: dict[str, Callable[[], onnx.ModelProto]] = {
    "gemm": lambda: mlp((3, 9, 8, 2)),
    "matmul": lambda: mlp((3, 9, 8, 2), op="MatMul"),
    "three axes": three_axes,
    "shared weight": shared_weight,
    "weight not tied": untied_weight,
    "readers apart": readers_apart,
    "read elsewhere": read_elsewhere,
    "cast weight": lambda: viewed(("Cast",)),
    "one cast weight in two places": lambda: viewed(("Cast",), ("Cast",)),
    "weight cast and turned": lambda: viewed(("Cast",), ("Cast", "Transpose")),
    "weight cast and turned before": lambda: viewed(("Transpose", "Cast"), ("Cast",)),
    "weight turned and as it is": lambda: viewed((), ("Transpose",)),
}


def plan_of(view: ChannelView, widths: Sequence[int]) -> Plan:
    """Any plan of these widths: random refits; equal ones within shared groups, as the fitter makes them."""
    rng = np.random.default_rng(0)
    selections = tuple(Selection(s.name, np.arange(w)) for s, w in zip(view.spaces, widths, strict=True) if w < s.width)
    gone = Plan("fitted", selections, ()).dropped(view.spaces)
    together = {u: uses[0] for uses in view.shared for u in uses}
    values: dict[int, tuple[Array, Array]] = {}
    updates = []
    for i, use in enumerate(view.linear):
        lost = np.isin(use.columns, list(gone))
        if lost.any():
            rows = len(use.rows) or 1
            group = together.get(i, i)
            weight, offset = values.setdefault(
                group, (rng.standard_normal((rows, len(lost))), rng.standard_normal(rows))
            )
            updates.append(ReaderUpdate(i, np.where(lost, 0.0, weight), offset))
    return Plan("fitted", selections, tuple(updates))


@pytest.mark.parametrize("name", NETS)
@given(data=st.data())
@settings(max_examples=12, deadline=None)
def test_the_prediction_is_what_the_rewrite_makes(name: str, data: st.DataObject) -> None:
    network = Network(NETS[name]())
    view = find_spaces(network)
    costs = WidthCosts(network, view)
    full = [s.width for s in view.spaces]
    assert costs.total(full) == count_parameters(network.proto)
    widths = [w if s.pinned.any() else data.draw(st.integers(1, w)) for s, w in zip(view.spaces, full, strict=True)]
    condensed = apply_plan(network, view, plan_of(view, widths))
    assert costs.total(widths) == count_parameters(condensed)
    space = data.draw(st.integers(0, len(full) - 1))
    width = data.draw(st.integers(1, full[space]))
    after = [width if i == space else w for i, w in enumerate(widths)]
    assert costs.saving(widths, space, width) == costs.total(widths) - costs.total(after)


def test_the_cases_are_what_they_say() -> None:
    views = {name: find_spaces(Network(make())) for name, make in NETS.items()}
    assert views["shared weight"].shared
    assert not views["weight not tied"].shared
    assert len(views["weight not tied"].spaces) == 3
    assert not views["readers apart"].shared
    assert len(views["readers apart"].spaces[0].readers) == 2
