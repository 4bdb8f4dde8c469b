"""One ONNX Runtime session from plain settings: the only place that sets its options.

Run as a script, it is a process that does nothing but load a network and run it once, and tells what that took. So it
imports nothing of this package and nothing that ONNX Runtime does not need itself.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a session is made.

    providers: in fallback order. threads: 0 is ONNX Runtime's default. optimize: False switches every graph
    optimization off. spin: worker threads burn CPU between runs and memory is kept, as serving does.
    profile: start of the name of the file that times of nodes go to; "": none.
    """

    providers: tuple[str, ...]
    threads: int
    optimize: bool = True
    spin: bool = False
    profile: str = ""


def make(source: bytes | str, settings: Settings) -> ort.InferenceSession:
    """A session over a serialized network or a file; ONNX Runtime's own errors come out as they are."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = settings.threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if settings.spin else "0")
    # The arena keeps what it once had, several times the largest tensor.
    options.enable_cpu_mem_arena = settings.spin
    if not settings.optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if settings.profile:
        options.enable_profiling = True
        options.profile_file_prefix = settings.profile
    return ort.InferenceSession(source, options, providers=list(settings.providers))


# ---- as a process of its own ----


def resident() -> tuple[int, int]:
    """Bytes of this process that are in memory now, and at most so far; the latter twice where only that is told."""
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="ascii", errors="replace").splitlines() if status.exists() else []
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith("Vm")}
    # Before getrusage, which on Linux hands the parent's peak on to a child that was started by vfork and exec.
    if {"VmRSS", "VmHWM"} <= sizes.keys():
        return sizes["VmRSS"], sizes["VmHWM"]
    import resource  # noqa: PLC0415 - the module does not exist on Windows, where the rest must import

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return peak, peak


def taken(model: str, names: list[str], feed: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Load a network and run it once: seconds until the session stands, bytes at most beyond what was held before.

    names: of the inputs; feed: an .npz file with one array each, in that order.
    """
    with np.load(feed) as arrays:
        given = dict(zip(names, (arrays[f"arr_{i}"] for i in range(len(names))), strict=True))
    before, _ = resident()
    start = time.perf_counter()
    session = make(model, Settings(**settings))
    seconds = time.perf_counter() - start
    session.run(None, given)
    _, peak = resident()
    return {"provider": session.get_providers()[0], "seconds": seconds, "bytes": max(peak - before, 0)}


if __name__ == "__main__":
    sys.stdout.write("\n" + json.dumps(taken(**json.load(sys.stdin))) + "\n")
