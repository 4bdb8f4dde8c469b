"""Paired timing of real sessions, with inputs and outputs that stay on a device where one is bound."""

from __future__ import annotations

import gc
import itertools
import math
import statistics
import types
import weakref
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from providers import NEEDS_CUDA

from onnx_condense import runtime as ort
from onnx_condense.errors import ModelError
from onnx_condense.proving import latency
from onnx_condense.report.data import Latency
from onnx_condense.runtime import Runtime

if TYPE_CHECKING:
    from collections.abc import Callable


pytestmark = pytest.mark.real_timing


def mlp(width: int) -> bytes:
    """Two square layers between 16 inputs and outputs; the wider, the slower."""
    rng = np.random.default_rng(width)
    sizes = [16, width, width, 16]
    weights = [
        numpy_helper.from_array(rng.normal(size=(a, b)).astype("f4"), f"w{k}")
        for k, (a, b) in enumerate(itertools.pairwise(sizes))
    ]
    names = ["x", "h0", "h1", "y"]
    nodes = [helper.make_node("MatMul", [names[k], f"w{k}"], [names[k + 1]]) for k in range(3)]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 16]) for n in ("x", "y")]
    graph = helper.make_graph(nodes, "mlp", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


FEED = {"x": np.ones((64, 16), "f4")}


def test_real_sessions() -> None:
    """40 times the parameters are slower to run, whichever network comes first."""
    large, small, runtime = mlp(1000), mlp(150), Runtime(threads=1)
    result = latency.compare(large, small, FEED, runtime, batch=64, effort=latency.Effort(seconds=1.0))
    assert result.verdict == "faster"
    assert (result.provider, result.threads, result.batch) == ("CPUExecutionProvider", 1, 64)
    assert result.interval[0] <= result.speedup <= result.interval[1]
    assert result.before_ms > result.after_ms
    assert len(result.rounds) >= latency.FEWEST_ROUNDS
    assert result.before_ms == statistics.median(before for before, _ in result.rounds)
    assert result.after_ms == statistics.median(after for _, after in result.rounds)
    ratios = [math.log(before / after) for before, after in result.rounds]
    assert math.isclose(result.speedup, math.exp(latency.centre(ratios)))
    reverse = latency.compare(small, large, FEED, runtime, batch=64, effort=latency.Effort(seconds=1.0))
    assert reverse.verdict == "slower"
    assert latency.confirmed(small, large, FEED, runtime, seen=reverse).verdict == "slower"


def test_medians_follow_from_the_rounds_that_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit, where the mean of two rounds in s, times 1000, is another number than that of both in ms."""
    times = (8.72648571444058e-06, 1.6321188600327942e-06)
    assert 1e3 * statistics.median(times) != statistics.median([1e3 * s for s in times])
    rounds = [latency.Round(before, 2.0 * before) for before in times * 4]
    monkeypatch.setattr(latency, "measure", lambda *_args, **_options: rounds)
    result = latency.compare(mlp(4), mlp(4), FEED, Runtime(threads=1), batch=64)
    assert result.before_ms == statistics.median(before for before, _ in result.rounds)
    assert result.after_ms == statistics.median(after for _, after in result.rounds)


def test_only_the_verdict_slower_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def latency_of(low: float, high: float) -> Latency:
        return Latency("CPUExecutionProvider", 0, 1, 1.0, 1.0, statistics.fmean((low, high)), (low, high))

    again = latency_of(0.8, 1.2)
    answers = [again]
    monkeypatch.setattr(latency, "compare", lambda *_args, **_options: answers.pop())
    runtime = Runtime()
    faster = latency_of(1.1, 1.2)
    assert latency.confirmed(b"", b"", {}, runtime, seen=faster) is faster
    assert len(answers) == 1
    assert latency.confirmed(b"", b"", {}, runtime, seen=latency_of(0.8, 0.9)) is again
    assert not answers


def test_a_feed_that_does_not_fit_is_an_error_of_ours() -> None:
    with pytest.raises(ModelError, match="can't run the network"):
        latency.compare(mlp(20), mlp(20), {"x": np.ones((2, 3), "f4")}, Runtime(), batch=2)


# ---- inputs and outputs that stay on a device ----


class Binding:
    """A binding that writes down what happens to it."""

    def __init__(self, binding: onnxruntime.IOBinding) -> None:
        self.binding, self.log = binding, list[str]()

    def bind_ortvalue_input(self, name: str, value: onnxruntime.OrtValue) -> None:
        """An input is put on a device."""
        self.log.append(f"in {name} {value.device_name()}")
        self.binding.bind_ortvalue_input(name, value)

    def bind_output(self, name: str, device: str) -> None:
        """An output is to stay on a device."""
        self.log.append(f"out {name} {device}")
        self.binding.bind_output(name, device)

    def synchronize_inputs(self) -> None:
        """Inputs are waited for."""
        self.log.append("inputs")
        self.binding.synchronize_inputs()

    def synchronize_outputs(self) -> None:
        """Outputs are waited for."""
        self.log.append("outputs")
        self.binding.synchronize_outputs()


class BoundSession:
    """A session that hands out one such binding."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self.session, self.binding = session, Binding(session.io_binding())

    def io_binding(self) -> Binding:
        """The one."""
        return self.binding

    def get_outputs(self) -> list[onnxruntime.NodeArg]:
        """As they are."""
        return list(self.session.get_outputs())

    def run_with_iobinding(self, binding: Binding) -> None:
        """One pass."""
        binding.log.append("run")
        self.session.run_with_iobinding(binding.binding)


def check_bound(runtime: Runtime, device: str) -> None:
    session = runtime.session(mlp(30))
    watched = BoundSession(session)
    once = ort.bound(watched, FEED, device)
    once()
    log = watched.binding.log
    assert log == [f"in x {device}", f"out y {device}", "inputs", "run", "outputs", "run", "outputs"]
    (bound,) = watched.binding.binding.copy_outputs_to_cpu()
    np.testing.assert_allclose(bound, session.run(None, dict(FEED))[0], rtol=1e-5)


def test_a_bound_pass_copies_inputs_once_and_waits_for_outputs() -> None:
    check_bound(Runtime(threads=1), "cpu")


@NEEDS_CUDA
def test_a_bound_pass_on_a_gpu() -> None:
    check_bound(Runtime(["CUDAExecutionProvider", "CPUExecutionProvider"]), "cuda")


def test_bound_inputs_live_as_long_as_the_pass() -> None:
    """A value in the memory of the CPU is only a view of its array; not every ONNX Runtime's binding keeps it."""
    values: list[weakref.ref[onnxruntime.OrtValue]] = []
    binding = types.SimpleNamespace(
        bind_ortvalue_input=lambda _name, value: values.append(weakref.ref(value)),
        synchronize_inputs=lambda: None,
        synchronize_outputs=lambda: None,
    )
    session = types.SimpleNamespace(
        io_binding=lambda: binding, get_outputs=tuple, run_with_iobinding=lambda _binding: None
    )
    once = ort.bound(session, {"x": np.ones((4, 4), "f4")}, "cpu")
    gc.collect()
    assert [value() is not None for value in values] == [True]
    del once
    gc.collect()
    assert [value() for value in values] == [None]


def test_only_tensors_stay_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2]), helper.make_tensor_value_info("y", 1, [2])]
    words = helper.make_tensor_value_info("words", TensorProto.STRING, [2])
    parts = helper.make_tensor_sequence_value_info("parts", TensorProto.FLOAT, [2])
    nodes = [
        helper.make_node("Neg", ["x"], ["y"]),
        helper.make_node("Cast", ["x"], ["words"], to=TensorProto.STRING),
        helper.make_node("SequenceConstruct", ["x"], ["parts"]),
    ]
    graph = helper.make_graph(nodes, "three", ends[:1], [ends[1], words, parts])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    watched = BoundSession(Runtime(threads=1).session(model))

    class Anywhere(Binding):
        """Where a device was asked for that this machine may lack, the CPU does."""

        def bind_output(self, name: str, device: str) -> None:
            self.log.append(f"out {name} {device}")
            self.binding.bind_output(name, "cpu")

    watched.binding = Anywhere(watched.session.io_binding())
    on_cpu = onnxruntime.OrtValue.ortvalue_from_numpy
    monkeypatch.setattr(onnxruntime.OrtValue, "ortvalue_from_numpy", lambda array, _device: on_cpu(array))
    ort.bound(watched, {"x": np.ones(2, "f4")}, "cuda")
    log = [entry for entry in watched.binding.log if entry.startswith("out ")]
    assert log == ["out y cuda", "out words cpu", "out parts cpu"]


def test_bound_sessions_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The path that a GPU takes, on the device that every machine has."""
    plain, passes = list[int](), list[int]()
    make, real = ort.bound, onnxruntime.InferenceSession.run

    def counted(session: onnxruntime.InferenceSession, feed: ort.Feed, device: str) -> Callable[[], None]:
        assert device == "cpu"
        once = make(session, feed, device)

        def counting() -> None:
            passes.append(1)
            once()

        return counting

    def run(*args: object) -> object:
        plain.append(1)
        return real(*args)

    monkeypatch.setattr(ort, "bound", counted)
    monkeypatch.setattr(onnxruntime.InferenceSession, "run", run)
    result = latency.compare(
        mlp(1000), mlp(150), FEED, Runtime(threads=1), batch=64, effort=latency.Effort(seconds=0.5), device="cpu"
    )
    assert result.verdict == "faster"
    # Once per session, to tell what is wrong with a feed.
    assert len(plain) == 2 * len(result.rounds)
    assert len(passes) > 4 * len(result.rounds)


@NEEDS_CUDA
def test_timing_on_a_gpu_is_bound() -> None:
    runtime = Runtime(["CUDAExecutionProvider", "CPUExecutionProvider"])
    assert latency.device_of(mlp(30), FEED, runtime) == "cuda"
    result = latency.compare(mlp(30), mlp(30), FEED, runtime, batch=64, effort=latency.Effort(seconds=1.0))
    assert result.provider == "CUDAExecutionProvider"


def test_what_a_cpu_runs_is_not_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Runtime, "session", lambda *_: pytest.fail("a session for nothing"))
    assert latency.device_of(mlp(30), FEED, Runtime()) == ""


def test_the_device_is_that_of_the_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "DEVICES", {"CPUExecutionProvider": "cpu"})
    assert latency.device_of(mlp(30), FEED, Runtime()) == "cpu"


def test_a_provider_that_did_not_start_has_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Runtime()
    session = Runtime().session(mlp(30))
    runtime.providers = ("CUDAExecutionProvider", "CPUExecutionProvider")
    monkeypatch.setattr(runtime, "session", lambda *_: session)
    monkeypatch.setattr(ort, "bound", lambda *_: pytest.fail("bound to the device of another provider"))
    assert latency.device_of(mlp(30), FEED, runtime) == ""


def test_what_can_not_be_bound_is_timed_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "DEVICES", {"CPUExecutionProvider": "nowhere"})
    assert latency.device_of(mlp(30), FEED, Runtime()) == ""
    monkeypatch.setattr(ort, "DEVICES", {"CPUExecutionProvider": "cpu"})
    ends = [helper.make_tensor_value_info(n, TensorProto.STRING, [1]) for n in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "same", ends[:1], ends[1:])
    words = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    feed = {"x": np.array(["word"], object)}
    assert latency.device_of(words, feed, Runtime()) == ""
    assert latency.compare(words, words, feed, Runtime(), batch=1, effort=latency.Effort(rounds=4, seconds=0.1)).rounds


def test_a_device_that_is_not_there_is_an_error_of_ours() -> None:
    with pytest.raises(ModelError, match="knows no device nowhere"):
        ort.bound(Runtime().session(mlp(30)), FEED, "nowhere")
    # Known by name everywhere, though only a build for it has it.
    if NEEDS_CUDA.args != (False,):
        with pytest.raises(ModelError, match="can't run the network on cuda"):
            ort.bound(Runtime().session(mlp(30)), FEED, "cuda")


def test_every_device_is_one_that_onnxruntime_names() -> None:
    providers = set(onnxruntime.get_all_providers()) | {"ROCMExecutionProvider", "NvTensorRTRTXExecutionProvider"}
    assert providers >= ort.DEVICES.keys()
    known = onnxruntime.capi.onnxruntime_pybind11_state.OrtDevice
    assert all(hasattr(known, device) for device in ort.DEVICES.values())
