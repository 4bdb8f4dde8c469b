"""The rewrite broken on purpose, through the command: defects are told, and what is only worse meets the tolerance."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from command import assert_one_line, call, state
from mlps import Array, Net, normal
from onnx import helper
from spoiling import INVALID, NUMBERS, SIGNATURE, Break, broken, lost_activation, once_searched, swapped_outputs

from onnx_condense.fit.fitting import Fitter
from onnx_condense.plan import Plan, ReaderUpdate
from onnx_condense.rewrite import apply_plan

pytestmark = pytest.mark.usefixtures("folder")
COPIES = 4
FITTED = ("--calibration", "x.npz", "--tolerance", "0.1")
MODES: dict[str, tuple[str, ...]] = {
    "drawn": (),
    "lossless": ("--calibration", "x.npz", "--tolerance", "0"),
    "fitted": FITTED,
}


# ---- networks: smooth in few inputs, so that much can be fitted away, with some channels stored twice ----


class Planted(Net):
    """Numbers are drawn in turn; the first rows of hidden weights come twice."""

    rng: np.random.Generator

    def drawn(self, name: str, *shape: int, scale: float = 1.0, twice: bool = True) -> str:
        """A weight [rows, ...] with its first rows once more, or just as many rows more."""
        value = self.rng.standard_normal(shape) * scale / math.prod(shape[1:]) ** 0.5
        return self.weight(name, np.concatenate([value, value[:COPIES]]) if twice else value)


def planted(shape: list[int | str]) -> Planted:
    net = Planted({"x": shape})
    net.rng = np.random.default_rng(0)
    return net


def dense_layer(net: Planted, tensor: str, i: int, before: int, after: int, out: str = "") -> str:
    twice = not out
    W, b = net.drawn(f"W{i}", after, before, twice=twice), net.drawn(f"b{i}", after, scale=0.5, twice=twice)
    return net.node("Gemm", tensor, W, b, transB=1, out=out)


def perceptron() -> onnx.ModelProto:
    net = planted(["N", 3])
    h = net.node("Tanh", dense_layer(net, "x", 0, 3, 16))
    h = net.node("Tanh", dense_layer(net, h, 1, 16 + COPIES, 14))
    dense_layer(net, h, 2, 14 + COPIES, 2, "y")
    return net.model({"y": ["N", 2]})


def two_heads() -> onnx.ModelProto:
    net = planted(["N", 3])
    h = net.node("Tanh", dense_layer(net, "x", 0, 3, 20))
    for i, name in enumerate("yz"):
        dense_layer(net, h, i + 1, 20 + COPIES, 2, name)
    return net.model({"y": ["N", 2], "z": ["N", 2]})


def convolutional() -> onnx.ModelProto:
    net = planted(["N", 1, 6, 6])
    tensor, before = "x", 1
    for i, after in enumerate((12, 12)):
        W, b = net.drawn(f"W{i}", after, before, 3, 3), net.drawn(f"b{i}", after, scale=0.5)
        tensor = net.node("Relu", net.node("Conv", tensor, W, b))
        before = after + COPIES
    tensor = net.node("Flatten", net.node("GlobalAveragePool", tensor))
    dense_layer(net, tensor, 2, before, 3, "y")
    return net.model({"y": ["N", 3]})


NETWORKS = {"mlp": perceptron, "two outputs": two_heads, "conv": convolutional}
# Lossless steps on samples differ from those on drawn inputs by what is fed alone.
RUNS = [(make, mode) for make in NETWORKS for mode in MODES if make == "mlp" or mode != "lossless"]


def samples(model: onnx.ModelProto) -> Array:
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    return normal(300, *shape, seed=5)


# ---- the command ----


def put(model: onnx.ModelProto) -> None:
    helper.set_model_props(model, {"author": "somebody"})
    onnx.save(model, "net.onnx")
    np.savez("x.npz", x=samples(model))


def assert_defect(code: str, words: str, *options: str) -> None:
    """Exit 4, one line, nothing written but the JSON that tells it."""
    Path("slim.onnx").write_bytes(b"what lay there before")
    before = state()
    result = call("net.onnx", "slim.onnx", "--force", "--json", "r.json", *options)
    assert_one_line(result, 4, words)
    report = json.loads(Path("r.json").read_text())
    assert (report["status"], report["reason"]["code"]) == ("failed", code)
    assert report["reason"]["text"] in result.stderr
    assert all(report[key] is None for key in ("parameters", "error", "evidence"))
    Path("r.json").unlink()
    assert state() == before


@pytest.mark.parametrize(("make", "mode"), RUNS)
def test_unbroken_they_are_written(make: str, mode: str) -> None:
    """Else nothing below would say anything."""
    put(NETWORKS[make]())
    result = call("net.onnx", "slim.onnx", *MODES[mode], "--json", "r.json")
    assert result.exit_code == 0, result.output
    report = json.loads(Path("r.json").read_text())
    assert report["status"] == "condensed"
    assert report["parameters"]["after"] < report["parameters"]["before"]
    assert Path("slim.onnx").exists()


@pytest.mark.parametrize(("make", "mode"), RUNS)
@pytest.mark.parametrize("spoil", NUMBERS, ids=lambda f: f.__name__)
def test_wrong_numbers_are_told(monkeypatch: pytest.MonkeyPatch, spoil: Break, make: str, mode: str) -> None:
    put(NETWORKS[make]())
    broken(monkeypatch, spoil, late=mode == "fitted")
    if spoil is lost_activation and mode == "fitted":
        # What its reader reads is not there to be refitted on.
        assert_defect("tensor", "the condensed network has lost tensor", *MODES[mode])
        return
    alone = make == "two outputs" and spoil is not lost_activation
    # Only the reader of the second output is spoiled; a lost activation spoils both.
    assert_defect("numbers", f"output {'z' if alone else 'y'} of the condensed network", *MODES[mode])


@pytest.mark.parametrize("mode", MODES)
def test_swapped_outputs_are_told(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    put(two_heads())
    broken(monkeypatch, swapped_outputs, late=mode == "fitted")
    assert_defect("numbers", "output y", *MODES[mode])


@pytest.mark.parametrize(("make", "mode"), RUNS)
@pytest.mark.parametrize("spoil", INVALID, ids=lambda f: f.__name__)
def test_an_invalid_graph_is_told(monkeypatch: pytest.MonkeyPatch, spoil: Break, make: str, mode: str) -> None:
    put(NETWORKS[make]())
    broken(monkeypatch, spoil, late=mode == "fitted")
    assert_defect("invalid-graph", "not valid", *MODES[mode])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("spoil", SIGNATURE, ids=lambda f: f.__name__)
def test_another_signature_is_told(monkeypatch: pytest.MonkeyPatch, spoil: Break, mode: str) -> None:
    put(perceptron())
    broken(monkeypatch, spoil, late=mode == "fitted")
    assert_defect("signature", "than the dense network", *MODES[mode])


@pytest.mark.parametrize("make", NETWORKS)
@pytest.mark.parametrize("spoil", [*NUMBERS, *INVALID], ids=lambda f: f.__name__)
def test_broken_from_the_start_it_is_a_defect(monkeypatch: pytest.MonkeyPatch, spoil: Break, make: str) -> None:
    """The search must not take errors that are none of the network's for a reason to change nothing."""
    put(NETWORKS[make]())
    broken(monkeypatch, spoil, late=False)
    before = state()
    result = call("net.onnx", "slim.onnx", *FITTED)
    assert result.exit_code == 4, result.output
    assert state() == before


# ---- how small an error is found ----


def one_column_by(factor: float) -> Break:
    return lambda made: made.change(lambda W: np.concatenate([W[:, :1] * W.dtype.type(factor), W[:, 1:]], 1))


@pytest.mark.parametrize("make", NETWORKS)
def test_a_column_off_by_a_millionth_is_told_and_one_off_by_rounding_is_none(
    monkeypatch: pytest.MonkeyPatch, make: str
) -> None:
    put(NETWORKS[make]())
    with monkeypatch.context() as patch:
        broken(patch, one_column_by(1 + 1e-6), late=True)
        assert_defect("weights", "the weight of /", *FITTED)
    with monkeypatch.context() as patch:
        broken(patch, one_column_by(1 + 1e-7), late=True)
        assert call("net.onnx", "slim.onnx", "--force", *FITTED).exit_code == 0


# ---- worse, but as planned: for the tolerance to find ----


def misfitted(patch: pytest.MonkeyPatch, spoil: Callable[[Array], Array], times: int) -> None:
    """So many plans made after the search get other weights than least squares gives; the rewrite follows them."""
    plain = Fitter.plan
    left = times

    def planned(self: Fitter, widths: Sequence[int], *, sequential: bool) -> tuple[Plan, onnx.ModelProto]:
        nonlocal left
        plan, model = plain(self, widths, sequential=sequential)
        if not left:
            return plan, model
        left -= 1
        *others, last = plan.updates
        worse = ReaderUpdate(last.use, spoil(last.weight), last.offset)
        plan = dataclasses.replace(plan, updates=(*others, worse))
        return plan, apply_plan(self.network, self.view, plan)

    once_searched(patch, lambda: patch.setattr(Fitter, "plan", planned))


MISFITS: dict[str, Callable[[Array], Array]] = {
    "too large": lambda W: 1.5 * W,
    "a column too many": lambda W: W + 0.5 * np.roll(W, 1, axis=1) * (W != 0),
    "nothing": lambda W: 0 * W,
    "NaN": lambda W: np.where(W != 0, np.nan, W),
    "infinite": lambda W: np.where(W != 0, np.inf, W),
}


def error_of(path: str) -> float:
    """Relative error of a written network on all samples, the largest over the outputs."""
    x = np.load("x.npz")["x"]
    dense, other = (ort.InferenceSession(name).run(None, {"x": x}) for name in ("net.onnx", path))
    return max(
        float(np.sqrt(((y - y0) ** 2).sum() / ((y0 - y0.mean(0)) ** 2).sum()))
        for y, y0 in zip(other, dense, strict=True)
    )


@pytest.mark.parametrize("make", ["mlp", "two outputs"])
@pytest.mark.parametrize("misfit", ["too large", "a column too many"])
def test_a_worse_fit_backs_off(monkeypatch: pytest.MonkeyPatch, misfit: str, make: str) -> None:
    put(NETWORKS[make]())
    misfitted(monkeypatch, MISFITS[misfit], 1)
    result = call("net.onnx", "slim.onnx", *FITTED, "--json", "r.json")
    assert result.exit_code == 0, result.output
    report = json.loads(Path("r.json").read_text())
    assert (report["status"], report["evidence"]) == ("condensed", "samples")
    assert report["error"]["back_offs"] >= 1
    assert report["error"]["value"] <= 0.1
    assert error_of("slim.onnx") < 0.13


@pytest.mark.parametrize("make", NETWORKS)
@pytest.mark.parametrize("misfit", MISFITS)
def test_where_every_fit_is_worse_none_is_written(monkeypatch: pytest.MonkeyPatch, misfit: str, make: str) -> None:
    put(NETWORKS[make]())
    misfitted(monkeypatch, MISFITS[misfit], -1)
    result = call("net.onnx", "slim.onnx", *FITTED, "--json", "r.json")
    assert result.exit_code == 0, result.output
    report = json.loads(Path("r.json").read_text())
    # What the weights prove may still go, where that leaves widths that run well.
    assert report["status"] == "unchanged" or report["evidence"] == "weights"
    assert error_of("slim.onnx") < 1e-5


# ---- names ----


def test_tensors_of_any_names_are_proved() -> None:
    """What the proof puts in must not meet a name of the network's own, like those that it once used."""
    model = perceptron()
    names = {"gemm_0": "masked/gemm_2", "tanh_1": "masked/weight_1", "tanh_3": "masked/offset_2", "W1": "masked/bias_1"}
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for tensor in model.graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    put(model)
    for options in MODES.values():
        assert call("net.onnx", "slim.onnx", "--force", *options).exit_code == 0
