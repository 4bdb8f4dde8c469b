"""Is the rewritten graph what its plan says: honest rewrites pass, every broken one is told."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from mlps import Array, Net, mlp, normal, weight_of
from onnx import helper, numpy_helper

from onnx_condense.errors import DefectError, ModelError
from onnx_condense.network.model import Network
from onnx_condense.plan import Plan, ReaderUpdate, Rotation, Selection
from onnx_condense.proving.verify import (
    _relative_difference,
    blaming,
    check_graph,
    check_numbers,
    check_weights,
    masked,
    rounding_level,
)
from onnx_condense.rewrite import apply_plan
from onnx_condense.runtime import Runtime
from onnx_condense.spaces import find_spaces

if TYPE_CHECKING:
    from collections.abc import Callable

    from onnx_condense.plan import ChannelView

RUNTIME = Runtime(threads=1)


def some_plan(view: ChannelView, network: Network) -> Plan:
    """Every second free channel goes; readers double what is left and shift."""
    selections = tuple(
        Selection(s.name, np.arange(0, s.width, 2)) for s in view.spaces if s.width > 1 and not s.pinned.any()
    )
    gone = list(Plan("fitted", selections, ()).dropped(view.spaces))
    updates = []
    for i, use in enumerate(view.linear):
        lost = np.isin(use.columns, gone)
        if lost.any():
            stored = network.constant(network.nodes[use.weight.node].inputs[use.weight.position])
            assert stored is not None
            W = stored.astype(np.float64)
            W = W[None] if use.out_axis is None else (W if use.in_axis == 1 else W.T)
            updates.append(ReaderUpdate(i, np.where(lost, 0.0, 1.5 * W), np.linspace(0.2, 0.4, len(W))))
    return Plan("fitted", selections, tuple(updates))


class Case:
    """A network, a plan, and what the rewrite makes of it."""

    def __init__(self, model: onnx.ModelProto, feed: dict[str, Array] | None = None) -> None:
        self.network = Network(model)
        self.view = find_spaces(self.network)
        self.plan = some_plan(self.view, self.network)
        assert self.plan.updates
        self.condensed = apply_plan(self.network, self.view, self.plan)
        self.feeds = [feed or {"x": normal(16, 3)}]

    def check(self) -> None:
        """Both checks, as the pipeline makes them."""
        check_graph(self.network.proto, self.condensed)
        check_numbers(self.network, self.view, self.plan, self.condensed, self.feeds, RUNTIME)

    def change(self, name: str, edit: Callable[[Array], Array]) -> None:
        """Break one stored tensor of the condensed network."""
        tensor = next(t for t in self.condensed.graph.initializer if t.name == name)
        tensor.CopyFrom(numpy_helper.from_array(edit(numpy_helper.to_array(tensor).copy()), name))


def vector_reader() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    net = Net({"x": ["N", 3]})
    h = net.node("Tanh", net.node("MatMul", "x", net.weight("W", rng.standard_normal((3, 8)))))
    net.node("MatMul", h, net.weight("v", rng.standard_normal(8)), out="y")
    return net.model({"y": ["N"]})


def left_reader() -> onnx.ModelProto:
    """Weights on the left: channels along axis 0."""
    rng = np.random.default_rng(0)
    net = Net({"x": [3, "N"]})
    h = net.node("Tanh", net.node("MatMul", net.weight("W", rng.standard_normal((8, 3))), "x"))
    net.node("MatMul", net.weight("V", rng.standard_normal((2, 8))), h, out="y")
    return net.model({"y": [2, "N"]})


def alpha_beta() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    net = Net({"x": ["N", 3]})
    h = net.node("Tanh", net.node("Gemm", "x", net.weight("W", rng.standard_normal((8, 3))), transB=1))
    b = net.weight("b", rng.standard_normal(2))
    net.node("Gemm", h, net.weight("V", rng.standard_normal((8, 2))), b, alpha=0.5, beta=2.0, out="y")
    return net.model({"y": ["N", 2]})


def wide_bias() -> onnx.ModelProto:
    """Old IR: weights are declared as inputs too."""
    return mlp((3, 12, 8, 2), ir=3, opset=9)


@pytest.mark.parametrize(
    "make",
    [
        mlp,
        lambda: mlp(op="MatMul"),
        lambda: mlp(op="MatMul", bias=False),
        lambda: mlp(bias=False),
        lambda: mlp(dtype=np.float16),
        lambda: mlp(dtype=np.float64),
        vector_reader,
        alpha_beta,
        wide_bias,
    ],
)
def test_an_honest_rewrite_passes(make: Callable[[], onnx.ModelProto]) -> None:
    model = make()
    kind = helper.tensor_dtype_to_np_dtype(model.graph.input[0].type.tensor_type.elem_type)
    Case(model, {"x": normal(16, 3).astype(kind)}).check()


def test_channels_on_another_axis_than_the_last() -> None:
    Case(left_reader(), {"x": normal(3, 16)}).check()


def test_an_output_that_is_left_of_large_sums_is_no_defect() -> None:
    # Inputs hardly vary and the last offset takes the mean away: what is left is a thousandth of what was summed.
    feed = {"x": 1e-3 * normal(16, 3)}
    case = Case(mlp((3, 32, 32, 2)), feed)
    reference = RUNTIME.session(masked(case.network, case.view, case.plan)).run(None, feed)[0]
    *others, last = case.plan.updates
    small = ReaderUpdate(last.use, last.weight, last.offset - reference.mean(0).astype(np.float64))
    case.plan = Plan("fitted", case.plan.selections, (*others, small))
    case.condensed = apply_plan(case.network, case.view, case.plan)
    case.check()
    case.change("b2", lambda v: np.asarray(v + 0.02 * np.abs(reference - reference.mean(0)).max()))
    with pytest.raises(DefectError):
        case.check()


def test_nan_must_stand_where_the_plan_has_it() -> None:
    nan, one = np.array([1.0, np.nan]), np.array([1.0, 1.0])
    assert _relative_difference([nan], [nan]) == 0.0
    assert _relative_difference([one], [nan]) == math.inf
    assert _relative_difference([nan], [one]) == math.inf


def flip_column(value: Array) -> Array:
    value[2] = -value[2]
    return value


def swap_columns(value: Array) -> Array:
    return np.ascontiguousarray(value[:, [1, 0, *range(2, value.shape[1])]])


def nudge_bias(value: Array) -> Array:
    value[0] += 0.01
    return value


def spoil(value: Array) -> Array:
    value.flat[0] = np.nan
    return value


@pytest.mark.parametrize(
    ("name", "edit"),
    [("W1", flip_column), ("W0", swap_columns), ("b1", nudge_bias), ("b2", nudge_bias), ("W2", spoil), ("b0", spoil)],
)
def test_a_wrong_number_is_a_defect(name: str, edit: Callable[[Array], Array]) -> None:
    case = Case(mlp())
    case.change(name, edit)
    with pytest.raises(DefectError, match="output y") as caught:
        case.check()
    assert caught.value.code == "numbers"
    assert caught.value.node == "y"


def test_a_flipped_column_is_told_in_half_precision_too() -> None:
    case = Case(mlp(dtype=np.float16), {"x": normal(16, 3, dtype=np.float16)})
    case.change("W1", flip_column)
    with pytest.raises(DefectError):
        case.check()


def silent() -> Case:
    """The channels that stay of the second layer answer with 0, whatever the samples are."""
    model = mlp(activation="Relu")
    next(t for t in model.graph.initializer if t.name == "b1").CopyFrom(
        numpy_helper.from_array(np.full(20, -1e3, np.float32), "b1")
    )
    return Case(model)


@pytest.mark.parametrize("name", ["W1", "W2"])
@pytest.mark.parametrize("edit", [flip_column, swap_columns, spoil], ids=lambda f: f.__name__)
def test_a_wrong_weight_that_no_sample_shows_is_a_defect(name: str, edit: Callable[[Array], Array]) -> None:
    case = silent()
    case.check()
    case.change(name, edit)
    with pytest.raises(DefectError) as caught:
        case.check()
    # NaN shows even where it is multiplied by 0.
    assert caught.value.code == ("numbers" if edit is spoil else "weights")
    if edit is not spoil:
        assert (
            caught.value.text
            == f"the weight of /{'y' if name == 'W2' else 'gemm_2'} (Gemm) does not hold the numbers of its plan"
        )


def off_by(factor: float) -> Callable[[Array], Array]:
    def edit(value: Array) -> Array:
        value[2] *= value.dtype.type(factor)
        return value

    return edit


@pytest.mark.parametrize(("dtype", "found"), [(np.float16, 3e-3), (np.float32, 5e-7), (np.float64, 1e-15)])
def test_a_weight_may_be_off_by_its_last_places_only(dtype: type[Any], found: float) -> None:
    case = Case(mlp(dtype=dtype), {"x": normal(16, 3, dtype=dtype)})
    case.change("W1", off_by(1 + found / 4))
    case.check()
    case.change("W1", off_by(1 + found))
    with pytest.raises(DefectError) as caught:
        case.check()
    assert caught.value.code in {"numbers", "weights"}


def test_a_weight_that_the_plan_leaves_alone_is_looked_at() -> None:
    case = Case(mlp((3, 16, 12, 10, 2)))
    # Without the last step nothing that the last layer reads or writes goes.
    *others, _ = case.plan.updates
    case.plan = Plan("fitted", case.plan.selections[:-1], tuple(others))
    case.condensed = apply_plan(case.network, case.view, case.plan)
    case.check()
    case.change("W3", off_by(1 + 1e-6))
    with pytest.raises(DefectError, match="weight of /y"):
        case.check()


def test_a_weight_that_is_no_constant_any_more_is_a_defect() -> None:
    case = Case(mlp())
    reader = case.condensed.graph.node[2]
    case.condensed.graph.node.insert(0, helper.make_node("Neg", [reader.input[1]], ["opposite"]))
    case.condensed.graph.node.insert(1, helper.make_node("Neg", ["opposite"], ["again"]))
    reader = case.condensed.graph.node[4]
    reader.input[1] = "again"
    with pytest.raises(DefectError, match="weight of /gemm_2"):
        case.check()


def test_a_layer_more_is_a_defect() -> None:
    case = Case(mlp())
    eye = numpy_helper.from_array(np.eye(2, dtype=np.float32), "eye")
    case.condensed.graph.initializer.append(eye)
    case.condensed.graph.node[-1].output[0] = "before"
    case.condensed.graph.node.append(helper.make_node("Gemm", ["before", "eye"], ["y"]))
    with pytest.raises(DefectError) as caught:
        case.check()
    assert caught.value.code == "nodes"


def test_mixed_channels_are_left_to_the_numbers() -> None:
    """Their rows are sums: what is stored is none of the plan's numbers."""
    case = Case(mlp())
    space = case.view.spaces[0].name
    mixed = Rotation(space, np.eye(12, 24), np.eye(24, 12))
    other = dataclasses.replace(case.plan, rotations=(mixed,))
    case.change("W1", off_by(1 + 1e-6))
    with pytest.raises(DefectError):
        check_weights(case.network, case.view, case.plan, case.condensed)
    check_weights(case.network, case.view, other, case.condensed)


def test_a_forgotten_refit_is_a_defect() -> None:
    case = Case(mlp())
    dense = weight_of(case.network.proto, "W1")
    case.change("W1", lambda v: np.ascontiguousarray(dense[::2, ::2][: v.shape[0], : v.shape[1]]))
    with pytest.raises(DefectError):
        case.check()


def two_outputs() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    net = Net({"x": ["N", 3]})
    h = net.node("Tanh", net.node("Gemm", "x", net.weight("W", rng.standard_normal((3, 8)))))
    for name in "yz":
        net.node("Gemm", h, net.weight(f"V{name}", rng.standard_normal((8, 2))), out=name)
    return net.model({"y": ["N", 2], "z": ["N", 2]})


def test_swapped_outputs_are_a_defect() -> None:
    case = Case(two_outputs())
    y, z = (n for n in case.condensed.graph.node if n.output[0] in "yz")
    y.output[0], z.output[0] = "z", "y"
    with pytest.raises(DefectError):
        case.check()


def rename_output(model: onnx.ModelProto) -> None:
    model.graph.node[-1].output[0] = model.graph.output[1].name = "other"


def reorder_outputs(model: onnx.ModelProto) -> None:
    first, second = list(model.graph.output)
    del model.graph.output[:]
    model.graph.output.extend([second, first])


def rename_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = model.graph.node[0].input[0] = "other"


def retype_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "M"


def raise_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version += 1


def raise_ir(model: onnx.ModelProto) -> None:
    model.ir_version += 1


def add_metadata(model: onnx.ModelProto) -> None:
    model.metadata_props.add(key="author", value="somebody")


def rename_producer(model: onnx.ModelProto) -> None:
    model.producer_name = "somebody"


def add_function(model: onnx.ModelProto) -> None:
    model.functions.append(
        helper.make_function(
            "own", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
        )
    )


@pytest.mark.parametrize(
    "edit",
    [
        rename_output,
        reorder_outputs,
        rename_input,
        retype_input,
        raise_opset,
        raise_ir,
        add_metadata,
        rename_producer,
        add_function,
    ],
    ids=lambda f: f.__name__,
)
def test_another_signature_is_a_defect(edit: Callable[[onnx.ModelProto], None]) -> None:
    case = Case(two_outputs())
    edit(case.condensed)
    with pytest.raises(DefectError) as caught:
        case.check()
    assert caught.value.code == "signature"


@pytest.mark.parametrize("edit", [add_metadata, rename_producer], ids=lambda f: f.__name__)
def test_others_may_say_more_about_a_network(edit: Callable[[onnx.ModelProto], None]) -> None:
    case = Case(two_outputs())
    edit(case.condensed)
    check_graph(case.network.proto, case.condensed, rewritten=False)
    raise_ir(case.condensed)
    with pytest.raises(DefectError):
        check_graph(case.network.proto, case.condensed, rewritten=False)


@pytest.mark.parametrize("place", ["input", "output"])
def test_the_first_end_that_differs_is_named(place: str) -> None:
    case = Case(mlp())
    (end,) = getattr(case.condensed.graph, place)
    end.type.tensor_type.shape.dim[0].dim_value = 7
    with pytest.raises(
        DefectError, match=rf"^slim.onnx has other {place}s than the dense network: {end.name}\[.*7"
    ) as found:
        check_graph(case.network.proto, case.condensed, rewritten=False, label="slim.onnx")
    assert found.value.text.count(f"{end.name}[") == 2


def test_an_output_too_many_is_named() -> None:
    case = Case(mlp())
    case.condensed.graph.output.append(
        helper.make_tensor_value_info(case.condensed.graph.node[0].output[0], 1, ["N", 12])
    )
    with pytest.raises(DefectError, match=r"has other outputs than the dense network: \w+\[FLOAT, Nx12\], not none$"):
        check_graph(case.network.proto, case.condensed, rewritten=False)


def drop_node(model: onnx.ModelProto) -> None:
    del model.graph.node[0]


def wrong_width(model: onnx.ModelProto) -> None:
    name = model.graph.initializer[0].name
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((3, 2), np.float32), name))


@pytest.mark.parametrize("edit", [drop_node, wrong_width], ids=lambda f: f.__name__)
def test_an_invalid_graph_is_a_defect(edit: Callable[[onnx.ModelProto], None]) -> None:
    case = Case(mlp())
    edit(case.condensed)
    with pytest.raises(DefectError) as caught:
        check_graph(case.network.proto, case.condensed)
    assert caught.value.code == "invalid-graph"


def test_where_a_run_fails_the_graph_is_blamed_only_if_it_is_at_fault() -> None:
    case = Case(mlp())

    def run() -> None:
        with blaming(case.network.proto, case.condensed):
            raise ModelError("runtime", "no memory")

    with pytest.raises(ModelError, match="no memory"):
        run()
    wrong_width(case.condensed)
    with pytest.raises(DefectError, match="not valid"):
        run()


def test_a_graph_that_does_not_run_is_a_defect() -> None:
    case = Case(mlp())
    wrong_width(case.condensed)
    with pytest.raises(DefectError) as caught:
        check_numbers(case.network, case.view, case.plan, case.condensed, case.feeds, RUNTIME)
    assert caught.value.code == "does-not-run"


def test_numbers_that_overflow_as_planned_are_no_defect() -> None:
    # The tolerance has to say no to these, not the check against the plan.
    case = Case(mlp(dtype=np.float16), {"x": normal(16, 3, dtype=np.float16)})
    first, *rest = case.plan.updates
    huge = ReaderUpdate(first.use, first.weight, np.full_like(first.offset, 1e9))
    case.plan = Plan("fitted", case.plan.selections, (huge, *rest))
    with np.errstate(over="ignore"):
        case.condensed = apply_plan(case.network, case.view, case.plan)
    check_numbers(case.network, case.view, case.plan, case.condensed, case.feeds, RUNTIME)


def test_classes_may_flip_at_a_tie_but_not_more() -> None:
    def classifier(**options: Any) -> onnx.ModelProto:
        model = mlp((3, 24, 16, 4), **options)
        model.graph.node[-1].output[0] = "scores"
        model.graph.node.append(helper.make_node("ArgMax", ["scores"], ["y"], axis=1, keepdims=0))
        del model.graph.output[:]
        model.graph.output.append(helper.make_tensor_value_info("y", onnx.TensorProto.INT64, ["N"]))
        return model

    case = Case(classifier(), {"x": normal(64, 3)})
    case.check()
    case.change("b2", lambda v: np.asarray(-v * 3))
    with pytest.raises(DefectError):
        case.check()


def test_the_rounding_level_grows_with_layers_and_lengths() -> None:
    def level(**options: Any) -> float:
        network = Network(mlp(**options))
        return rounding_level(network, find_spaces(network))

    assert level(widths=(3, 8, 2)) < level(widths=(3, 200, 2)) < level(widths=(3, 200, 200, 200, 2)) < 1e-4
    assert level(widths=(3, 200, 2), dtype=np.float64) < 1e-12
    assert level(widths=(3, 200, 2)) < level(widths=(3, 200, 2), dtype=np.float16) < 0.01


def test_wrong_shapes_that_the_dense_network_declares_are_no_defect() -> None:
    """Exporters leave such; ONNX Runtime only warns."""
    dense = mlp()
    dense.graph.value_info.append(helper.make_tensor_value_info(dense.graph.node[0].output[0], 1, ["N"]))
    with pytest.raises(onnx.shape_inference.InferenceError):
        onnx.shape_inference.infer_shapes(dense, strict_mode=True, check_type=True)
    check_graph(dense, dense)
    with pytest.raises(DefectError):
        check_graph(mlp(), dense)
