"""Which axes of an output are features where sizes are not declared."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_condense import condense
from onnx_condense.data import input_specs, load
from onnx_condense.metrics import Judge, Measurement
from onnx_condense.metrics.layout import Fed, Layout
from onnx_condense.network.model import Network
from onnx_condense.options.yardstick import PER_FEATURE, RELATIVE, Metric, Yardstick
from onnx_condense.runtime import Runtime

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Array = np.ndarray[Any, np.dtype[Any]]
Size = int | str | None
RUNTIME = Runtime(threads=1)
OFFSETS = np.array([0, 100], np.float32)
"""Of features that are far from each other: around one mean of all, their distance would be the spread."""


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def measured(
    dense: onnx.ModelProto, other: onnx.ModelProto, source: Any, rows: int = 1024, **given: Any
) -> Measurement:
    samples = load(source, input_specs(dense.graph))
    options: dict[str, Any] = {"shapes": Network(dense).shapes, "optimize": False} | given
    return Judge(dense, samples, np.arange(len(samples)), RUNTIME, rows, **options).measure(other)


def by_definition(y: Array, y0: Array, axes: int | tuple[int, ...]) -> float:
    """The error with means over some axes."""
    return math.sqrt(((y - y0) ** 2).sum() / ((y0 - y0.mean(axes, keepdims=True)) ** 2).sum())


def network(
    nodes: Sequence[onnx.NodeProto], stored: dict[str, Array], given: Sequence[Size], declared: Sequence[Size]
) -> onnx.ModelProto:
    """From x to y."""
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", given), ("y", declared)))
    weights = [numpy_helper.from_array(value, name) for name, value in stored.items()]
    graph = helper.make_graph(list(nodes), "g", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def grid(gain: float, given: Sequence[Size] = ("N", "w"), *, told: bool = True, places: int = 0) -> onnx.ModelProto:
    """[N, w] to [N, places, 2], the second feature times gain; every size of the output is declared a symbol.

    told: whether shape inference can see the 2 all the same. places: flatten batch and places into one axis, if 1.
    """
    stored = {"gains": np.array([1, gain], np.float32), "offsets": OFFSETS, "sizes": np.array([0, -1, 2])}
    stored |= {"zero": np.array([0]), "one": np.array([1]), "rest": np.array([-1]), "two": np.array([2])}
    nodes = [
        helper.make_node("Reshape", ["x", "sizes"], ["boxes"]),
        helper.make_node("Mul", ["boxes", "gains"], ["scaled"]),
        helper.make_node("Add", ["scaled", "offsets"], ["moved"]),
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Slice", ["shape", "zero", "one"], ["batch"]),
        # Nobody looks through a size that is worked out from a size in the graph.
        helper.make_node("Div", ["batch", "batch"], ["unit"]),
        helper.make_node("Mul", ["unit", "two"], ["width"]),
        helper.make_node(
            "Concat", [*(["rest"] if places else ["batch", "rest"]), "two" if told else "width"], ["computed"], axis=0
        ),
        helper.make_node("Reshape", ["moved", "computed"], ["y"]),
    ]
    return network(nodes, stored, given, ["b", "c"] if places else ["b", "n", "c"])


def boxes(x: Array) -> tuple[Array, Array]:
    """What `grid` answers with gains of 1.4 and of 1 [N, places, 2]."""
    y, y0 = (x.reshape(len(x), -1, 2) * np.array([1, g]) + OFFSETS for g in (1.4, 1.0))
    return y, y0


def head(gain: float, kind: str, declared: Sequence[Size] = ("n", "anchors", "feat")) -> onnx.ModelProto:
    """Of a detector: [n, 3, 4, 4] to [n, 16, 6]; gain: of the inputs, 0: the answers don't depend on them."""
    rng = np.random.default_rng(0)
    stored = {
        "w0": (rng.standard_normal((12, 3, 1, 1)) * 0.3 * gain).astype(np.float32),
        "w1": (rng.standard_normal((6, 12, 1, 1)) * 0.02).astype(np.float32),
        "b1": np.array([0, 10, 20, -10, 5, -20], np.float32),
        "zero": np.array(0), "ax0": np.array([0]), "ax1": np.array([1]), "two": np.array([2]),
        "rest": np.array([6, -1]), "three": np.array([2, 3, -1]),
    }  # fmt: skip
    make = helper.make_node
    nodes = [
        make("Conv", ["x", "w0"], ["c"]),
        make("Relu", ["c"], ["r"]),
        make("Conv", ["r", "w1", "b1"], ["d"]),
        make("Shape", ["x"], ["s"]),
        make("Gather", ["s", "zero"], ["s0"], axis=0),
        make("Unsqueeze", ["s0", "ax0"], ["s1"]),
    ]
    if kind == "chunk":
        # As legacy exports cut a tensor of open batch into two.
        nodes += [make("Concat", ["s1", "rest"], ["sc"], axis=0), make("Reshape", ["d", "sc"], ["e"])]
        nodes += [make("Shape", ["e"], ["q"]), make("Gather", ["q", "ax1"], ["q1"], axis=0)]
        nodes += [make("Div", ["q1", "two"], ["half"]), make("Mul", ["half", "two"], ["end"])]
        nodes += [make("Slice", ["e", "ax0", "half", "ax1"], ["l"]), make("Slice", ["e", "half", "end", "ax1"], ["h"])]
        nodes += [make("Sub", ["h", "l"], ["u"]), make("Add", ["h", "l"], ["v"])]
        nodes += [make("Concat", ["u", "v"], ["uv"], axis=1), make("Transpose", ["uv"], ["y"], perm=[0, 2, 1])]
        return network(nodes, stored, ["n", 3, 4, 4], declared)
    # Anchors and their numbers apart, then numbers last, all places in one.
    stored["last"] = np.array([-1])
    nodes += [make("Concat", ["s1", "three"], ["sc"], axis=0), make("Reshape", ["d", "sc"], ["e"])]
    nodes += [make("Transpose", ["e"], ["t"], perm=[0, 1, 3, 2]), make("Shape", ["t"], ["q"])]
    nodes += [make("Gather", ["q", "three_at"], ["q3"], axis=0), make("Concat", ["s1", "last", "q3"], ["sy"], axis=0)]
    stored["three_at"] = np.array([3])
    return network([*nodes, make("Reshape", ["t", "sy"], ["y"])], stored, ["n", 3, 4, 4], declared)


@pytest.mark.parametrize("kind", ["chunk", "view"])
@pytest.mark.parametrize("rows", [1024, 7, 1])
def test_a_detector_that_ignores_its_input_is_wrong_whatever_it_declares(kind: str, rows: int) -> None:
    x = normal(30, 3, 4, 4)
    found = measured(head(1, kind), head(0, kind), x, rows).value
    assert found > 0.9
    sizes = {"chunk": (16, 6), "view": (32, 3)}[kind]
    assert found == pytest.approx(measured(head(1, kind, ("n", *sizes)), head(0, kind), x, rows).value, rel=1e-6)


def test_a_detector_of_unknown_sizes_is_condensed_within_its_tolerance() -> None:
    x, fresh = normal(300, 3, 4, 4), normal(200, 3, 4, 4, seed=1)
    dense = head(1, "chunk")
    found = condense(dense, calibration=x, tolerance=0.05, allow_slower=True, threads=1)
    y, y0 = (RUNTIME.session(m).run(None, {"x": fresh})[0].astype(float) for m in (found.model or dense, dense))
    assert by_definition(y, y0, (0, 1)) < 0.1


def test_sizes_that_are_told_make_features_and_others_are_centred_on() -> None:
    x = normal(40, 6)
    y, y0 = boxes(x)
    found = measured(grid(1), grid(1.4), x, 16)
    assert found.value == pytest.approx(by_definition(y, y0, 0), rel=1e-3)
    assert by_definition(y, y0, (0, 1)) <= found.value < 1.05 * by_definition(y, y0, (0, 1))
    assert found.value > 10 * by_definition(y, y0, (0, 1, 2))
    worst = found.outputs[0].worst
    assert worst is not None
    assert worst.index == 1


@pytest.mark.parametrize("given", [("N", "w"), ("N", 6)])
def test_features_are_found_where_nothing_tells_about_them(given: Sequence[Size]) -> None:
    x = normal(40, 6)
    y, y0 = boxes(x)
    found = measured(grid(1, given, told=False), grid(1.4, given, told=False), x, 16, shapes={})
    assert found.value == pytest.approx(by_definition(y, y0, 0), rel=1e-3)


def test_places_that_vary_are_pooled() -> None:
    feeds = [{"x": normal(2, 2 * n, seed=n)} for n in (3, 5, 2, 6)]
    pairs = [boxes(f["x"]) for f in feeds]
    y, y0 = (np.concatenate([v.reshape(-1, 2) for v in values]) for values in zip(*pairs, strict=True))
    found = measured(grid(1, told=False), grid(1.4, told=False), feeds, shapes={})
    assert found.value == pytest.approx(by_definition(y, y0, 0), rel=1e-3)


@pytest.mark.parametrize("rows", [1024, 16, 20, 1])
def test_samples_and_places_in_one_axis_are_taken_apart(rows: int) -> None:
    x = normal(40, 6)
    y, y0 = boxes(x)
    found = measured(grid(1, told=False, places=1), grid(1.4, told=False, places=1), x, rows, shapes={})
    assert found.value == pytest.approx(by_definition(y, y0, 0), rel=1e-3)
    np.testing.assert_allclose(found.outputs[0].squared, ((y - y0) ** 2).sum((1, 2)), rtol=1e-3)


@pytest.mark.parametrize("count", [1, 2])
def test_few_samples_never_make_an_error_smaller_than_one_by_features(count: int) -> None:
    x = normal(count, 12)
    y, y0 = boxes(x)
    found = measured(grid(1, told=False), grid(1.4, told=False), x, shapes={})
    assert by_definition(y, y0, (0, 1)) * (1 - 1e-3) <= found.value < math.inf


def test_a_single_feature_is_told_by_no_axis_of_size_1() -> None:
    # Declared [n, c, 1, 1]: the 1 are places.
    def pooled(moved: float) -> onnx.ModelProto:
        gains = np.array([1, moved], np.float32).reshape(2, 1, 1)
        nodes = [helper.make_node("Mul", ["x", "gains"], ["a"]), helper.make_node("Add", ["a", "offsets"], ["y"])]
        stored = {"gains": gains, "offsets": OFFSETS.reshape(2, 1, 1)}
        return network(nodes, stored, ["n", "c", "h", "w"], ["n", "c", 1, 1])

    x = normal(50, 2, 1, 1)
    y, y0 = (x * np.array([1, g]).reshape(2, 1, 1) + OFFSETS.reshape(2, 1, 1) for g in (1.4, 1.0))
    assert measured(pooled(1), pooled(1.4), x, shapes={}).value == pytest.approx(by_definition(y, y0, 0), rel=1e-3)


def test_every_feature_counts_by_itself_where_inputs_have_fixed_sizes() -> None:
    x, given = normal(60, 6), ("N", 6)
    dense, other = grid(1, given, told=False), grid(1.4, given, told=False)
    y, y0 = (v.reshape(60, 6) for v in boxes(x))
    worst = np.sqrt(((y - y0) ** 2).sum(0) / ((y0 - y0.mean(0)) ** 2).sum(0)).max()
    found = measured(dense, other, x, shapes={}, by=Yardstick(PER_FEATURE))
    assert found.value == pytest.approx(worst, rel=1e-3)


@pytest.mark.parametrize("metric", [RELATIVE, PER_FEATURE])
def test_an_element_that_stands_still_counts_with_the_others_where_features_are_in_doubt(metric: Metric) -> None:
    def masked(moved: float) -> onnx.ModelProto:
        stored = {"mask": np.array([1, 1, 0], np.float32), "moved": np.array([100, 100, 100 + moved], np.float32)}
        nodes = [
            helper.make_node("Mul", ["x", "mask"], ["a"]),
            helper.make_node("Add", ["a", "moved"], ["b"]),
            # Hides that there are 3.
            helper.make_node("Shape", ["x"], ["shape"]),
            helper.make_node("Abs", ["shape"], ["sizes"]),
            helper.make_node("Reshape", ["b", "sizes"], ["y"]),
        ]
        return network(nodes, stored, ["n", 3], ["n", "places"])

    x = normal(50, 3)
    found = measured(masked(0), masked(5), x, shapes={}, by=Yardstick(metric)).value
    # By its magnitude of 100 it would be 0.05.
    assert found == pytest.approx(5 / math.sqrt(x[:, :2].var(0).sum()), rel=1e-3)


def layout(
    shapes: Sequence[tuple[int, ...]], counts: Sequence[int], told: Sequence[Size] = (), **fed: Any
) -> tuple[Layout, list[Array]]:
    values = [normal(*shape, seed=i) for i, shape in enumerate(shapes)]
    settings: dict[str, Any] = {"block": 1, "free": True, "rows": [frozenset[int]()] * len(counts)} | fed
    return Layout.of([told], list(zip(values, counts, strict=True)), Fed(**settings)), values


@pytest.mark.parametrize(
    ("shapes", "counts", "told", "fed", "expected"),
    [
        ([(8, 4, 6), (3, 4, 6)], [8, 3], (), {}, (8, 1, 1, 24)),
        ([(8, 4, 6), (3, 4, 6)], [8, 3], ("n", None, 6), {}, (8, 1, 4, 6)),
        ([(8, 4, 6), (3, 4, 6)], [8, 3], ("n", None, 6), {"free": False}, (8, 1, 1, 24)),
        ([(8, 4, 6), (3, 5, 6)], [8, 3], (), {}, (8, 4, 1, 6)),
        # Not by row: samples along the last axis, as a size that differs or that is just theirs.
        ([(6, 8), (6, 3)], [8, 3], (), {}, (1, 8, 1, 6)),
        ([(6, 8), (6, 8)], [8, 8], (), {}, (1, 8, 1, 6)),
        # Which axis goes through the samples can't be told: no axis is given up.
        ([(16, 8), (16, 8)], [8, 8], (), {}, (1, 1, 1, 128)),
        ([(16, 8), (16, 8)], [8, 8], (16, "n"), {}, (1, 8, 1, 16)),
        # Batch and places in one.
        ([(16, 6), (6, 6)], [8, 3], (), {}, (8, 1, 1, 12)),
        ([(16,), (6,)], [8, 3], (), {}, (8, 1, 1, 2)),
        # A weight that is given out; one row per sample.
        ([(4, 2), (4, 2)], [8, 3], (4, 2), {}, (1, 1, 1, 8)),
        ([(8,), (3,)], [8, 3], (), {}, (8, 1, 1, 1)),
        # Whole feeds: rows as many as those of an input, lengths that vary, and such that don't.
        ([(5, 6), (5, 6)], [1, 1], (), {"block": 0, "rows": [{5}, {5}]}, (1, 5, 1, 6)),
        ([(1, 4, 6), (1, 7, 6)], [1, 1], (), {"block": 0, "rows": [{1}, {1}]}, (1, 4, 1, 6)),
        ([(1, 4, 6), (1, 4, 6)], [1, 1], (), {"block": 0, "rows": [{1}, {1}]}, (1, 1, 1, 24)),
        ([(), ()], [1, 1], (), {"block": 0}, (1, 1, 1, 1)),
    ],
)
def test_axes_of_sizes_that_never_change_are_features(
    shapes: Sequence[tuple[int, ...]], counts: Sequence[int], told: Sequence[Size], fed: Any, expected: Any
) -> None:
    found, values = layout(shapes, counts, told, **fed)
    assert found.featured(values[0], counts[0]).shape == expected


@pytest.mark.parametrize("told", [(), ("n", "t", "c")])
def test_a_single_sample_is_judged_by_its_places_or_by_one_mean(told: Sequence[Size]) -> None:
    value = normal(1, 5, 2) + OFFSETS
    of = Layout.of([told], [(value, 1)], Fed(1, free=False, rows=[frozenset()]))
    assert of.featured(value, 1).shape == (1, 5, 1, 2)
    still = np.repeat(np.array([[[1], [2], [4]]], np.float32), 2, 2)
    # Around means of places nothing would be left.
    assert Layout.of([told], [(still, 1)], Fed(1, free=False, rows=[frozenset()])).features == (2,)
    alone = normal(1, 5)
    assert Layout.of([()], [(alone, 1)], Fed(1, free=False, rows=[frozenset()])).featured(alone, 1).shape == (
        1,
        5,
        1,
        1,
    )


def random_shapes(seed: int) -> tuple[Array, int]:
    rng = np.random.default_rng(seed)
    count, sizes = int(rng.integers(1, 6)), rng.integers(2, 5, int(rng.integers(1, 4)))
    value = rng.standard_normal((count, *sizes))
    for axis in range(1, value.ndim):
        value += 50 * rng.standard_normal([s if a == axis else 1 for a, s in enumerate(value.shape)])
    return value, count


def spread(of: Callable[[Array, int], Array], value: Array, count: int) -> float:
    parted = of(value, count)
    return float(((parted - parted.mean((0, 1))) ** 2).sum())


@pytest.mark.parametrize("seed", range(40))
def test_the_spread_is_never_larger_than_by_any_one_axis(seed: int) -> None:
    value, count = random_shapes(seed)
    of = Layout.of([()], [(value, count)], Fed(1, free=True, rows=[frozenset()]))
    found = spread(of.featured, value, count)
    for axis in range(1, value.ndim):
        others = tuple(a for a in range(value.ndim) if a != axis)
        single = float(((value - value.mean(others, keepdims=True)) ** 2).sum())
        # A single sample of a single axis: nothing but one mean is left.
        assert found <= single + 1e-9 or (single < 1e-9 and count == 1)
