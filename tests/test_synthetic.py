"""Condensing on inputs that are drawn: the wish, what is drawn, and what the report says of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from endtoend import FakeTimer, relative, timed_by
from mlps import Net, mlp, normal, plant_copies
from onnx import TensorProto, helper, parser
from windows import fetch

from onnx_condense import Condensed, condense, synthetic
from onnx_condense.data.samples import Feeds, Rows, Samples
from onnx_condense.draw import PLAIN, Drawer, Look
from onnx_condense.errors import ModelError, UsageError
from onnx_condense.evidence.running import Memory, running_statistics
from onnx_condense.network.model import Network, load, serialized
from onnx_condense.runtime import Array, Runtime
from onnx_condense.synthetic import NOTE, NOTE_JUDGED, Synthetic, closest, draw_samples, wish_of

MODELS = Path(__file__).parent.parent / "models"
RUNTIME = Runtime(threads=1)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    timed_by(monkeypatch, FakeTimer())


def run(model: Any, calibration: Any, **options: Any) -> Condensed:
    return condense(model, calibration=calibration, threads=1, **options)


def drawn(model: onnx.ModelProto, count: int = 64, seed: int = 0) -> Samples:
    network = load(model)
    return draw_samples(Synthetic(count), network, RUNTIME.session(model), RUNTIME, seed)


def everything(samples: Samples, name: str = "x") -> Array:
    return np.concatenate([batch.feed[name] for batch in samples.batches(np.arange(len(samples)))])


def drawer(text: str, seed: int = 0) -> Drawer:
    return Drawer(parser.parse_graph(f"g ({text}) => (float[N] y) {{ }}"), seed)


# ---- the wish ----


@pytest.mark.parametrize(("word", "count"), [("synthetic", 0), ("synthetic:25", 25), ("synthetic:04096", 4096)])
def test_the_word_is_a_wish(word: str, count: int) -> None:
    assert wish_of(word) == Synthetic(count)


@pytest.mark.parametrize(
    "source", ["./synthetic", "synthetic.npz", "synthetics", "Synthetic", "", Path("synthetic"), None, normal(3, 2), {}]
)
def test_all_else_is_a_source(source: Any) -> None:
    assert wish_of(source) is None


@pytest.mark.parametrize("number", ["0", "24", "-30", "abc", "", "1e3", " 50", "50:50", "\u0665\u0660"])
def test_what_is_no_number_or_too_small_is_refused_in_one_line(number: str) -> None:
    with pytest.raises(UsageError, match=f"^--calibration synthetic:{number}: ") as caught:
        condense("no such network", calibration=f"synthetic:{number}")
    assert caught.value.exit_code == 2
    assert "\n" not in caught.value.text


def test_the_fewest_can_be_split() -> None:
    assert run(mlp(), f"synthetic:{synthetic.FEWEST}", tolerance=0.5).report.status == "condensed"


@pytest.mark.parametrize("name", ["synthetic", "synthetic:100"])
def test_a_file_of_that_name_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with Path(name).open("wb") as file:
        np.savez(file, x=normal(60, 3))
    found = run(mlp(), name, tolerance=0.2)
    assert found.report.evidence == "samples"
    assert found.report.error is not None
    assert found.report.error.samples == 12
    assert NOTE not in found.report.notes
    assert run(mlp(), "synthetic:250", tolerance=0.2).report.evidence == "synthetic"


# ---- what is drawn ----


def test_floats_are_standard_normal_and_rows_are_samples() -> None:
    samples = drawn(mlp((5, 4, 2)), 4000)
    x = everything(samples)
    assert isinstance(samples, Rows)
    assert x.shape == (4000, 5)
    assert x.dtype.name == "float32"
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=0.08)
    np.testing.assert_allclose(np.cov(x.T), np.eye(5), atol=0.1)


def test_same_seed_same_samples() -> None:
    one, same, other = (everything(drawn(mlp(), 30, seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one, same)
    assert not np.isclose(one, other).all()


def test_a_fixed_batch_makes_one_sample() -> None:
    samples = drawn(mlp(batch=4), 30)
    assert isinstance(samples, Rows)
    assert (len(samples), samples.block) == (30, 4)


def test_inputs_of_another_first_size_are_whole() -> None:
    shapes = {name: a.shape for name, a in drawer("float[N,2] x, float[3,N,M] h, int64 n").rows(7, 11).items()}
    assert shapes == {"x": (7, 2), "h": (3, 11, 11), "n": ()}
    shapes = {name: a.shape for name, a in drawer("float[2,4] x, float[2] y, float[3,4] h").rows(7, 11).items()}
    assert shapes == {"x": (14, 4), "y": (14,), "h": (3, 4)}


@pytest.mark.parametrize(("shape", "axis"), [("N,3,32,32", 1), ("N,32,32,1", 3), ("1,3,H,W", 1)])
def test_pictures_have_the_spectrum_of_photos(shape: str, axis: int) -> None:
    x = np.moveaxis(drawer(f"float[{shape}] x").rows(60, 32)["x"], axis, 1)
    assert x.shape[1] in (1, 3)
    np.testing.assert_allclose(x.std(axis=(1, 2, 3)), 1, rtol=1e-3)
    power = np.abs(np.fft.fft2(x)).mean(axis=(0, 1))
    assert power[0, 1] > 5 * power[0, 8] > 5 * 1.3 * power[0, 16]
    white = drawer(f"float[{shape}] x").rows(60, 32, Look(0.0, 3.0, 7.0))["x"]
    assert abs(white.mean() - 7) < 0.5
    power = np.abs(np.fft.fft2(np.moveaxis(white, axis, 1))).mean(axis=(0, 1))
    assert 0.8 < power[0, 1] / power[0, 8] < 1.25


def test_pictures_of_bytes_are_between_0_and_255() -> None:
    x = drawer("uint8[N,16,16,3] x").rows(40, 1)["x"]
    assert x.dtype == np.uint8
    assert 20 < x.std() < 90
    assert 100 < x.mean() < 155
    assert set(np.unique(drawer("uint8[N,5] x").rows(40, 1)["x"])) == {0, 1}


def test_integers_index_and_condense() -> None:
    rng = np.random.default_rng(0)
    net = Net({"unused": ["N", 1]})
    net.inputs = [helper.make_tensor_value_info("k", TensorProto.INT64, ["N", 6])]
    table = net.weight("table", rng.standard_normal((9, 4)))
    flat = net.node("Flatten", net.node("Gather", table, "k"))
    hidden = net.node("Tanh", net.node("MatMul", flat, net.weight("W", 0.05 * rng.standard_normal((24, 40)))))
    net.node("MatMul", hidden, net.weight("V", rng.standard_normal((40, 2))), out="y")
    model = net.model({"y": ["N", 2]})
    assert set(np.unique(everything(drawn(model, 200), "k"))) == set(range(9))
    found = run(model, "synthetic:600", tolerance=0.1)
    assert found.report.status == "condensed"
    assert found.report.evidence == "synthetic"


def test_free_axes_take_the_first_size_that_the_network_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net({"x": ["N", 1, "L"]})
    conv = net.node("Conv", "x", net.weight("W", normal(4, 1, 70)))
    net.node("ReduceMean", conv, out="y", axes=[2], keepdims=0)
    model = net.model({"y": ["N", 4]})
    assert everything(drawn(model, 30)).shape == (30, 1, 128)
    monkeypatch.setattr(synthetic, "ONE_SIZE", (8, 69))
    monkeypatch.setattr(synthetic, "FEED_SIZES", ((5, 6, 7),))
    with pytest.raises(ModelError, match=r"does not take drawn inputs .*--calibration"):
        drawn(model, 30)


def test_sizes_that_would_fill_the_memory_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network takes pictures of 224 x 224 alone, though it says that it takes any; and rows by sevens."""
    tried: list[int] = []
    array = Drawer._array

    def spied(self: Drawer, spec: Any, shape: tuple[int, ...], *rest: Any) -> Array:
        tried.append(math.prod(shape))
        assert tried[-1] <= 2**24
        return array(self, spec, shape, *rest)

    monkeypatch.setattr(Drawer, "_array", spied)
    net = Net({"x": ["N", 1, "H", "W"]})
    net.node("MatMul", net.node("Flatten", "x"), net.weight("W", normal(224 * 224, 1)), out="y")
    with pytest.raises(ModelError, match="does not take drawn inputs"):
        drawn(net.model({"y": ["N", 1]}), 30)
    net = Net({"x": ["N", 600]})
    net.node("Reshape", "x", net.weight("to", np.array([7, 600])), out="y")
    with pytest.raises(ModelError, match="does not take drawn inputs"):
        drawn(net.model({"y": [7, 600]}), 30)
    assert max(tried) > 2**20


def test_an_output_that_is_always_empty_hinders_nothing() -> None:
    net = Net({"x": ["N", 3]})
    net.node("MatMul", "x", net.weight("W", normal(3, 2)), out="y")
    net.node("Slice", "x", *(net.weight(n, np.array([v])) for n, v in (("from", 3), ("to", 9), ("axis", 1))), out="z")
    assert everything(drawn(net.model({"y": ["N", 2], "z": ["N", 0]}), 30)).shape == (30, 3)


@pytest.mark.parametrize("count", [2**31 // 3 + 1, 10**20])
def test_more_than_can_be_held_is_refused_before_it_is_drawn(count: int) -> None:
    with pytest.raises(UsageError, match=rf"^--calibration synthetic:{count}: draw at most \d+$"):
        run(mlp(), f"synthetic:{count}")


def test_samples_that_depend_on_each_other_are_feeds() -> None:
    net = Net({"x": ["T", 3]})
    total = net.node("CumSum", "x", net.weight("axis", np.int64(0)))
    net.node("MatMul", total, net.weight("W", normal(3, 2)), out="y")
    samples = drawn(net.model({"y": ["T", 2]}), 12)
    assert isinstance(samples, Feeds)
    feeds = [batch.feed["x"] for batch in samples.batches(np.arange(12))]
    assert {len(x) for x in feeds} == {2, 3, 5}
    assert len({x.tobytes() for x in feeds}) == 12
    again = [batch.feed["x"] for batch in samples.batches(np.arange(12))]
    assert all(np.array_equal(a, b) for a, b in zip(feeds, again, strict=True))


def test_strings_can_not_be_drawn() -> None:
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("Identity", ["x"], ["y"])],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.STRING, ["N"])],
            [helper.make_tensor_value_info("y", TensorProto.STRING, ["N"])],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    with pytest.raises(ModelError, match=r"'x' is of type string.*--calibration"):
        drawn(model)


def test_fewer_are_drawn_where_they_are_large_or_the_network_is(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mlp((100, 40, 2))

    def usual() -> int:
        return len(drawn(model, 0))

    assert usual() == synthetic.USUAL
    monkeypatch.setattr(synthetic, "ELEMENTS", 100 * 1000)
    assert usual() == 1000
    monkeypatch.setattr(synthetic, "WORK", 700 * (100 * 40 + 40 * 2))
    assert usual() == 700
    monkeypatch.setattr(synthetic, "WORK", 1)
    assert usual() == synthetic.LEAST


def test_work_counts_the_sizes_that_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net({"x": ["N", 1, "H", "W"]})
    conv = net.node("Conv", "x", net.weight("W", normal(4, 1, 3, 3)), pads=[1, 1, 1, 1])
    net.node("ReduceMean", conv, out="y", axes=[2, 3], keepdims=0)
    monkeypatch.setattr(synthetic, "WORK", 300 * 64 * 64 * 4 * 9)
    assert len(drawn(net.model({"y": ["N", 4]}), 0)) == 300


# ---- the result and its report ----


def test_the_tolerance_holds_on_inputs_of_that_kind() -> None:
    dense = mlp()
    found = run(dense, "synthetic:600", tolerance=0.05)
    report = found.report
    assert report.status == "condensed"
    assert report.error is not None
    assert report.error.samples == 120
    assert report.error.value <= 0.05
    assert relative(found.model, dense, normal(2000, 3, seed=9)) < 0.075
    assert report.evidence == "synthetic"
    assert NOTE in report.notes
    assert report.as_dict()["evidence"] == "synthetic"


def test_the_default_tolerance_stays() -> None:
    error = run(mlp(), "synthetic:300").report.error
    assert error is not None
    assert error.tolerance == 0.01


def test_same_seed_same_bytes() -> None:
    one, same, other = (run(mlp(), "synthetic:200", tolerance=0.1, seed=s).model for s in (0, 0, 1))
    assert serialized(one) == serialized(same) != serialized(other)


def test_real_inputs_may_judge() -> None:
    found = run(mlp(), "synthetic:200", verification=0.5 * normal(50, 3, seed=5), tolerance=0.3)
    assert found.report.error is not None
    assert found.report.error.samples == 50
    assert found.report.evidence == "synthetic"
    assert NOTE_JUDGED in found.report.notes
    assert NOTE not in found.report.notes


def test_evidence_is_what_told_of_redundancy() -> None:
    copies = plant_copies(mlp(), 0, 10)
    assert condense(copies, threads=1).report.evidence == "weights"
    assert run(copies, "synthetic:50", tolerance=0).report.evidence == "weights"
    assert run(copies, normal(60, 3), tolerance=1e-6).report.evidence == "weights"
    assert run(copies, normal(60, 3), tolerance=0.2).report.evidence == "samples"
    assert run(mlp(), "synthetic:50", tolerance=1e-7).report.evidence == "synthetic"
    assert condense(mlp(), threads=1).report.evidence == "weights"


@pytest.mark.parametrize(("name", "count"), [("ignition", 150), ("digits", 200)])
def test_real_networks_hold_what_they_promise(name: str, count: int) -> None:
    found = run(str(MODELS / f"{name}.onnx"), f"synthetic:{count}", tolerance=0.1)
    assert found.report.status == "condensed"
    assert found.report.error is not None
    assert found.report.error.value <= 0.1
    assert found.report.evidence == "synthetic"
    # Digits remembers its inputs: pixels between 0 and 1.
    assert sum("BatchNormalization" in note for note in found.report.notes) == (name == "digits")


# ---- what BatchNormalization remembers ----


def convnet(mean: Array, variance: Array, *, seed: int = 0, axes: str = "x") -> onnx.ModelProto:
    rng = np.random.default_rng(seed)
    net = Net({axes: ["N", 2, 16]})
    conv = net.node(
        "Conv", axes, net.weight("K", rng.standard_normal((6, 2, 3))), net.weight("b", rng.standard_normal(6))
    )
    parameters = [net.weight(n, v) for n, v in (("s", np.ones(6)), ("t", np.zeros(6)), ("m", mean), ("v", variance))]
    normed = net.node("BatchNormalization", net.node("Relu", conv), *parameters)
    net.node("ReduceMean", net.node("Relu", normed), out="y", axes=[2], keepdims=0)
    return net.model({"y": ["N", 6]})


def trained_on(x: Array) -> onnx.ModelProto:
    """A network whose statistics are those of x [n, 2, 16]."""
    proto = convnet(np.zeros(6), np.ones(6))
    (h,) = fetch(proto, {"x": x}, proto.graph.node[2].input[0])
    return convnet(h.mean(axis=(0, 2)), h.var(axis=(0, 2)))


def memory(model: onnx.ModelProto) -> Memory:
    network = load(model)
    return Memory(network, running_statistics(network), RUNTIME)


def test_distance_is_nothing_for_what_was_seen_and_grows() -> None:
    x = normal(500, 2, 16)
    found = memory(trained_on(x))
    assert found.distance([{"x": x[:200]}, {"x": x[200:]}]) < 1e-5
    near, far, farther = (found.distance([{"x": x * k + k - 1}]) for k in (1.2, 2.0, 4.0))
    assert 0.005 < near < far < farther
    assert found.distance([{"x": x * np.float32(1e30)}]) <= 20


def test_statistics_are_those_of_the_graph() -> None:
    model = convnet(np.arange(6.0), np.arange(1.0, 7.0))
    (found,) = running_statistics(load(model))
    assert found.tensor == model.graph.node[2].input[0]
    np.testing.assert_array_equal(found.mean, np.arange(6))
    np.testing.assert_array_equal(found.variance, np.arange(1, 7))
    assert not running_statistics(load(mlp()))
    model.graph.node[2].input[3] = "x"
    assert not running_statistics(Network(model))


@pytest.mark.parametrize(("spread", "mean"), [(0.3, 0.4), (5.0, -8.0), (60.0, 120.0)])
def test_drawn_inputs_look_like_those_of_the_training(spread: float, mean: float) -> None:
    samples = drawn(trained_on((spread * normal(500, 2, 16) + mean).astype(np.float32)), 300)
    x = everything(samples)
    assert spread / 1.5 < x.std() < 1.5 * spread
    assert abs(x.mean() - mean) < 0.6 * spread
    assert len(samples.notes) == 1
    assert "closest to what BatchNormalization saw" in samples.notes[0]
    assert "frequency" not in samples.notes[0]


def test_plain_inputs_stay_where_they_are_as_close() -> None:
    samples = drawn(trained_on(normal(2000, 2, 16)), 300)
    assert samples.notes == ()
    assert abs(everything(samples).std() - 1) < 0.05


def test_a_look_that_only_comes_closer_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained_on((5 * normal(500, 2, 16) - 8).astype(np.float32))
    assert drawn(model, 30).notes
    monkeypatch.setattr(synthetic, "CLOSE", 1e-9)
    samples = drawn(model, 300)
    assert samples.notes == ()
    assert abs(everything(samples).std() - 1) < 0.05


def test_the_search_finds_what_is_closest() -> None:
    def distance(look: Look) -> float:
        assert look.fall is not None
        off = (math.log2(look.scale) - 4.6, look.shift / look.scale + 1.3, look.fall - 0.7)
        return sum(o * o for o in off)

    found = closest(distance, falls=True)
    assert found.fall == pytest.approx(0.7, abs=0.13)
    assert math.log2(found.scale) == pytest.approx(4.6, abs=0.2)
    assert found.shift / found.scale == pytest.approx(-1.3, abs=0.2)
    assert closest(distance, falls=False).fall == 0
    assert (closest(lambda look: -(look.fall or 0.0), falls=True).fall or 0) <= synthetic.STEEPEST
    assert Look() == PLAIN
