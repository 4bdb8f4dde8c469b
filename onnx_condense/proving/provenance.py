"""Where a condensed network comes from: written into its metadata, and told in the report.

The metadata of the same input are the same: no dates, no paths, no machine.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnx_condense import __version__
from onnx_condense.network.external import external_files
from onnx_condense.network.model import Network, serialized
from onnx_condense.options.goal import Goal
from onnx_condense.options.yardstick import RELATIVE, metric_name, stored
from onnx_condense.plan import Plan
from onnx_condense.report.data import Origin

PREFIX = "onnx_condense."
PACKAGES = ("numpy", "onnx", "onnxruntime", "scipy", "torch")
BLOCK = 2**20


@dataclasses.dataclass(frozen=True)
class Provenance:
    """What a condensed network says of itself, as it stands in its metadata behind PREFIX.

    version: of this package. source_sha256: see `source_digest`. plan_sha256: see `plan_digest`.
    error: as verified, three digits; "0" of exact steps. tolerance: what it had to stay within (`yardstick.stored`);
    "" if it was no gate. metric: what both are in; networks written before there were metrics do not tell.
    trained: steps of the last training, "0": none; networks written before there was training do not tell.
    """

    version: str
    source_sha256: str
    plan_sha256: str
    error: str
    tolerance: str
    metric: str = RELATIVE
    trained: str = "0"

    @classmethod
    def of(cls, model: onnx.ModelProto) -> Provenance | None:
        """As found in a network; None where it carries none, or not all of it."""
        stored = {p.key.removeprefix(PREFIX): p.value for p in model.metadata_props if p.key.startswith(PREFIX)}
        stored = {"metric": RELATIVE, "trained": "0"} | stored
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: stored[name] for name in names}) if all(name in stored for name in names) else None

    def stamp(self, model: onnx.ModelProto) -> None:
        """Write it into a network, in place of what an earlier run wrote."""
        kept = [(p.key, p.value) for p in model.metadata_props if not p.key.startswith(PREFIX)]
        del model.metadata_props[:]
        for key, value in (*kept, *((PREFIX + name, text) for name, text in dataclasses.asdict(self).items())):
            model.metadata_props.add(key=key, value=value)


def provenance(source_sha256: str, plans: Sequence[Plan], error: float, goal: Goal, trained: int = 0) -> Provenance:
    """Of a network that plans have made of a source; trained: steps of training after them."""
    gate = stored(goal.tolerance, goal.tolerances)
    # What exact steps change is rounding, whose digits are the processor's.
    told = "0" if plans and all(plan.kind == "lossless" for plan in plans) else f"{error:.3g}"
    return Provenance(
        __version__, source_sha256, plan_digest(plans), told, gate, metric_name(goal.metric), str(trained)
    )


def largest_stamp(goal: Goal) -> int:
    """Bytes that the provenance adds to a network, at most."""
    longest = dataclasses.replace(provenance("0" * 64, (), -1.23e-300, goal, 10**12), plan_sha256="0" * 64)
    empty = onnx.ModelProto()
    longest.stamp(empty)
    return empty.ByteSize()


def source_digest(network: Network) -> str:
    """SHA-256 of a network's file, its external weights behind it in the order in which it names them.

    As of `cat NET.onnx WEIGHTS... | sha256sum`; of the serialized network where there is no file.
    """
    if network.path is None:
        return hashlib.sha256(serialized(network.given)).hexdigest()
    return files_digest([network.path, *(network.path.parent / name for name in external_files(network.proto))])


def files_digest(paths: Iterable[Path]) -> str:
    """SHA-256 of files, one behind the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
    return digest.hexdigest()


def result_digest(model: onnx.ModelProto, source: Network) -> str | None:
    """SHA-256 of the file that a condensed network becomes; None if its weights will lie in a file of their own."""
    return None if external_files(source.proto) else hashlib.sha256(serialized(model)).hexdigest()


def plan_digest(plans: Sequence[Plan]) -> str:
    """SHA-256 over everything that the plans say, in their order."""
    digest = hashlib.sha256()
    _feed(digest, tuple(plans))
    return digest.hexdigest()


def _feed(digest: Any, value: Any) -> None:
    """Every part with its kind and size, so that no two values read alike."""
    if dataclasses.is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, np.ndarray):
        digest.update(f"array {value.dtype.str} {value.shape};".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, Mapping):
        digest.update(f"mapping {len(value)};".encode())
        for key in sorted(value):
            _feed(digest, key)
            _feed(digest, value[key])
    elif isinstance(value, (tuple, list)):
        digest.update(f"sequence {len(value)};".encode())
        for item in value:
            _feed(digest, item)
    else:
        text = repr(value).encode()
        digest.update(f"value {len(text)};".encode() + text)


def origin(network: Network, source_sha256: str, plans: Sequence[Plan]) -> Origin:
    """For the report: what was run on what; the command and the result are for those who know them to fill in."""
    versions = {"onnx-condense": __version__, "python": platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in PACKAGES if _installed(name)}
    machine = f"{platform.processor() or platform.machine()}, {platform.system()}, {os.cpu_count()} cores"
    source = None if network.path is None else str(network.path)
    plan = plan_digest(plans) if plans else None
    return Origin(versions, machine, None, source, source_sha256, plan)


def _installed(name: str) -> bool:
    """Builds of ONNX Runtime for accelerators have other names."""
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
