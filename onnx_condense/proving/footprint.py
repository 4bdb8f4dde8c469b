"""What loading a network takes: time and memory, each in a fresh process.

In this process both would be wrong: what is imported and mapped already costs nothing again, and memory that the
network got may be memory that the run had given back. So a process of its own loads one network, runs it once and ends
(`sessions`, run as a script); the two networks take turns, and who goes first alternates.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from onnx_condense import sessions
from onnx_condense.report.data import Footprint, Reason
from onnx_condense.runtime import Feed, Runtime

PAIRS = 5
# Fewer have no median that one disturbed process leaves alone.
FEWEST_PAIRS = 3
# No further pair is begun that would end after this, once there are FEWEST_PAIRS.
SECONDS = 15.0
# One process; a network that takes longer than this is not worth waiting for.
LIMIT_S = 120.0


@dataclasses.dataclass(frozen=True)
class Taken:
    """What one process said."""

    provider: str
    seconds: float
    bytes: int


class ChildError(Exception):
    """A process that said nothing; its text tells why. Caught in here."""


def measure(before: bytes | Path, after: bytes | Path, feed: Feed, runtime: Runtime) -> Footprint | Reason:
    """Load time and peak memory of both networks.

    Args:
        before: the dense network, serialized or a file.
        after: the network it is compared with.
        feed: what the one pass gets; one sample.
        runtime: providers and threads of the sessions.

    Returns:
        Why they could not be measured where a process of its own can't be had, or one of them fails (for want of
        memory, say): no reason to throw a result away.
    """
    interpreter = python()
    if not interpreter:
        return Reason("footprint", "there is no Python interpreter to start as a process of its own")
    try:
        with tempfile.TemporaryDirectory(prefix="onnx-condense.", ignore_cleanup_errors=True) as folder:
            jobs = tuple(
                _job(Path(folder), name, model, feed, runtime) for name, model in (("a", before), ("b", after))
            )
            pairs = _pairs(lambda which: _apart(interpreter, jobs[which]), time.perf_counter)
    except ChildError as error:
        return Reason("footprint", str(error))
    except OSError as error:
        return Reason("footprint", f"a process of its own could not be prepared: {error.strerror or error}")
    return _summary(pairs)


def python() -> str:
    """The interpreter that runs this, "" where that is another program (frozen into one, or embedded)."""
    path = Path(sys.executable or "")
    plain = path.name.lower().startswith(("python", "pypy")) and not getattr(sys, "frozen", False)
    return str(path) if plain and path.is_file() else ""


def _job(folder: Path, name: str, model: bytes | Path, feed: Feed, runtime: Runtime) -> str:
    """What to tell the process, as JSON; files that it needs and that are not there yet are put into the folder."""
    arrays = folder / f"{name}.npz"
    # By position: inputs may have names that are no names of files or arguments.
    with arrays.open("wb") as file:
        np.savez(file, *(a.astype(np.str_) if a.dtype.hasobject else a for a in map(np.asarray, feed.values())))
    if isinstance(model, bytes):
        stored = folder / f"{name}.onnx"
        stored.write_bytes(model)
        model = stored
    settings = dataclasses.asdict(runtime.settings(spin=True))
    facts = {"model": str(model), "names": list(feed), "feed": str(arrays), "settings": settings}
    return json.dumps(facts)


def _apart(interpreter: str, job: str) -> Taken:
    """Run one process to its end.

    Raises:
        ChildError: it did not start, failed, was killed or takes too long.
    """
    # -P: modules of ours that lie beside the script must not hide those of the standard library.
    command = [interpreter, "-P", sessions.__file__]
    try:
        done = subprocess.run(  # noqa: S603 - a list, no shell: this interpreter and our own sessions.py
            command, input=job, capture_output=True, encoding="utf-8", errors="replace", check=False, timeout=LIMIT_S
        )
    except subprocess.TimeoutExpired as error:
        raise ChildError(f"the network was not loaded and run within {LIMIT_S:g} s") from error
    except OSError as error:
        raise ChildError(f"no process of its own could be started: {error.strerror or error}") from error
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["killed, for want of memory?"])[-1]
        raise ChildError(f"the process that loads the network ended with {done.returncode}: {said}")
    try:
        return Taken(**json.loads(done.stdout.strip().splitlines()[-1]))
    except (IndexError, TypeError, ValueError) as error:
        raise ChildError("the process that loads the network said nothing that can be read") from error


def _pairs(taken: Callable[[int], Taken], clock: Callable[[], float]) -> list[tuple[Taken, Taken]]:
    """Pairs of what both networks (0 and 1) took; which one goes first alternates."""
    start = clock()
    done: list[tuple[Taken, Taken]] = []
    while _goes_on(len(done), clock() - start):
        if len(done) % 2:
            second, first = taken(1), taken(0)
        else:
            first, second = taken(0), taken(1)
        done.append((first, second))
    return done


def _goes_on(count: int, elapsed: float) -> bool:
    """Whether there is to be another pair."""
    if count < FEWEST_PAIRS:
        return True
    return count < PAIRS and elapsed * (count + 1) / count <= SECONDS


def _summary(pairs: list[tuple[Taken, Taken]]) -> Footprint:
    first, second = zip(*pairs, strict=True)
    return Footprint(
        provider=second[-1].provider,
        load_ms=(_load_ms(first), _load_ms(second)),
        peak_mb=(_peak_mb(first), _peak_mb(second)),
    )


def _load_ms(runs: tuple[Taken, ...]) -> float:
    return 1e3 * statistics.median(r.seconds for r in runs)


def _peak_mb(runs: tuple[Taken, ...]) -> float:
    return statistics.median(r.bytes for r in runs) / 1e6
