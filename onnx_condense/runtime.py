"""ONNX Runtime sessions (`sessions` sets their options): made for networks of any form, run, fed on devices."""

from __future__ import annotations

import contextlib
import ctypes
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import threadpoolctl
from google.protobuf.message import EncodeError

from onnx_condense.errors import ModelError, UsageError
from onnx_condense.sessions import Settings, make

if TYPE_CHECKING:
    from pathlib import Path

Array = npt.NDArray[Any]
Feed = Mapping[str, Array]
Session = ort.InferenceSession

CPU = ("CPUExecutionProvider",)
# "[ONNXRuntimeError] : 1 : FAIL : ", and a file of its sources with a line and the function there.
_INSIDE = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : |/onnxruntime_src/\S+:\d+ .*?\)(?: const)?(?= [A-Z])")

# Providers that compute beside the CPU, and what ONNX Runtime's bindings call the memory that they compute in.
DEVICES: Mapping[str, str] = {
    "CANNExecutionProvider": "cann",
    "CUDAExecutionProvider": "cuda",
    "DmlExecutionProvider": "dml",
    "MIGraphXExecutionProvider": "cuda",
    "NvTensorRTRTXExecutionProvider": "cuda",
    "ROCMExecutionProvider": "cuda",
    "TensorrtExecutionProvider": "cuda",
    "WebGpuExecutionProvider": "webgpu",
}


def check_providers(providers: Sequence[str], option: str = "--providers") -> tuple[str, ...]:
    """The providers, or UsageError that names the option and lists those this installation has."""
    available = ort.get_available_providers()
    for name in providers:
        if name not in available:
            raise UsageError("provider", f"{option}: no {name} in this installation; it has {', '.join(available)}")
    return tuple(providers)


@contextlib.contextmanager
def limited_threads(threads: int) -> Iterator[None]:
    """BLAS keeps to the same number of threads as ONNX Runtime (0: leave both alone)."""
    with threadpoolctl.threadpool_limits(limits=threads or None):
        yield


def release() -> None:
    """Hand memory that is free back to the system: glibc keeps what came in pieces below 32 MB, as weights do."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


class Runtime:
    """How sessions are made in one run: providers in fallback order, threads (0: ONNX Runtime's default)."""

    def __init__(self, providers: Sequence[str] = CPU, threads: int = 0, option: str = "--providers") -> None:
        self.providers = check_providers(providers, option)
        self.threads = threads

    def settings(self, *, optimize: bool = True, spin: bool = False, profile: str = "") -> Settings:
        """The same as plain data; see `sessions.Settings`."""
        return Settings(self.providers, self.threads, optimize=optimize, spin=spin, profile=profile)

    def session(
        self, model: onnx.ModelProto | bytes | Path, *, optimize: bool = True, spin: bool = False, profile: str = ""
    ) -> ort.InferenceSession:
        """A session over the model.

        optimize: False switches every graph optimization off (for proofs).
        spin: worker threads burn CPU between runs and memory is kept, as serving does; only right for timing.
        profile: start of the name of the file that times of nodes go to, "": none.

        Raises:
            ModelError: ONNX Runtime does not take the model.
        """
        source: Any = model
        if not isinstance(model, bytes) and hasattr(model, "SerializeToString"):
            try:
                source = model.SerializeToString()
            except EncodeError as error:
                raise ModelError("model-too-large", "ONNX Runtime takes no network over 2 GiB from memory") from error
        elif not isinstance(model, bytes):
            source = str(model)
        try:
            return make(source, self.settings(optimize=optimize, spin=spin, profile=profile))
        except RUNTIME_ERRORS as error:
            text = f"ONNX Runtime {ort.__version__} does not load the network, which has to run there to be condensed"
            raise ModelError("runtime", f"{text}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """The first line of an error's text, for one-line messages, without its number and the place in ONNX Runtime."""
    lines = _INSIDE.sub("", str(error)).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _runtime_errors() -> tuple[type[Exception], ...]:
    """ONNX Runtime raises its own types, one per status code, all direct children of Exception, and RuntimeError."""
    state = vars(ort.capi.onnxruntime_pybind11_state).values()
    return (RuntimeError, ValueError, *(v for v in state if isinstance(v, type) and issubclass(v, Exception)))


RUNTIME_ERRORS = _runtime_errors()


def run(session: ort.InferenceSession, feed: Feed, names: Sequence[str] | None = None) -> list[Array]:
    """One pass; outputs as arrays in the order of `names` (default: all graph outputs).

    Raises:
        ModelError: the pass fails.
    """
    try:
        outputs = session.run(list(names) if names is not None else None, dict(feed))
    except RUNTIME_ERRORS as error:
        raise ModelError("runtime", f"ONNX Runtime can't run the network: {first_line(error)}") from error
    return [np.asarray(value) for value in outputs]


def bound(session: ort.InferenceSession, feed: Feed, device: str) -> Callable[[], None]:
    """One pass, to be called again and again: inputs are put on a device once, outputs stay there and are waited for.

    The first pass is made in here, so that what the device does not take is told at once. Dropping the callable drops
    the session as well.

    Raises:
        ModelError: this ONNX Runtime does not know the device, or takes no such tensors there (strings).
    """
    if not hasattr(ort.capi.onnxruntime_pybind11_state.OrtDevice, device):
        raise ModelError("binding", f"this ONNX Runtime knows no device {device}")
    binding = session.io_binding()
    try:
        # Kept as long as the callable: a value in the CPU's memory is but a view of its array.
        values = {name: ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(a), device) for name, a in feed.items()}
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        for output in session.get_outputs():
            on_device = output.type.startswith("tensor(") and output.type != "tensor(string)"
            binding.bind_output(output.name, device if on_device else "cpu")
        binding.synchronize_inputs()

        def once(_held: Mapping[str, ort.OrtValue] = values) -> None:
            session.run_with_iobinding(binding)
            # A device may still be at work when the call comes back.
            binding.synchronize_outputs()

        once()
    except RUNTIME_ERRORS as error:
        raise ModelError("binding", f"ONNX Runtime can't run the network on {device}: {first_line(error)}") from error
    return once


def run_node(proto: onnx.ModelProto, node: onnx.NodeProto, arrays: Iterable[Array]) -> Array:
    """The first result of one node of a network on the given operands (those that it has, in order).

    Raises:
        ModelError: ONNX Runtime can't run it on its own.
    """
    alone = onnx.NodeProto()
    alone.CopyFrom(node)
    feed = dict(zip((f"operand_{i}" for i, name in enumerate(node.input) if name), arrays, strict=True))
    names = iter(feed)
    alone.input[:] = [next(names) if name else "" for name in node.input]
    inputs = [
        onnx.helper.make_tensor_value_info(k, onnx.helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
        for k, v in feed.items()
    ]
    graph = onnx.helper.make_graph([alone], "node", inputs, [onnx.ValueInfoProto(name=alone.output[0])])
    model = onnx.helper.make_model(graph, opset_imports=proto.opset_import, ir_version=proto.ir_version)
    return run(Runtime(threads=1).session(model, optimize=False), feed)[0]


def evaluate_node(
    proto: onnx.ModelProto, index: int, operands: Sequence[Array], dtype: npt.DTypeLike = np.float32
) -> Array:
    """Run one node of the main graph on given operands (those it has, in order), as ONNX Runtime would.

    Operands come as float64 and are cast to the element type that keeps the op's arithmetic.

    Returns:
        The first output, flattened, float64.

    Raises:
        ModelError: ONNX Runtime can't run it on its own.
    """
    result = run_node(proto, proto.graph.node[index], [np.asarray(a, dtype) for a in operands])
    return np.asarray(result, np.float64).reshape(-1)
