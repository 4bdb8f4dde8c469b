"""Whether samples may be cut from one another: the network is asked, by running them together and alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from onnx_condense import runtime
from onnx_condense.data.samples import Rows
from onnx_condense.errors import CalibrationError, ModelError
from onnx_condense.network.nodes import read_by

if TYPE_CHECKING:
    from collections.abc import Sequence
    from collections.abc import Set as AbstractSet

    import onnx

    from onnx_condense.data.samples import Samples
    from onnx_condense.plan import IntArray
    from onnx_condense.runtime import Array, Session

PROBE = 4
"""How many samples are compared with themselves when the effect of slicing is measured."""


def check_independent(samples: Samples, session: Session, graph: onnx.GraphProto) -> None:
    """Measures that slicing does not change the function: samples run together and alone must agree.

    Any source: the same feed run twice must agree. Sliced sources with free rows: up to 4 samples spread over all are
    run together and alone; every output must have one row a sample, equal within 1e-3 of the output's magnitude
    (1e-2 for 16-bit floats), and for other types within 1 % of the elements. Outputs that no input reaches (a weight
    that is given out) have no rows to compare.

    Args:
        samples: the source.
        session: the network, ready to run.
        graph: its main graph, nodes in order.

    Raises:
        CalibrationError: the network is random, or the outputs of a sample depend on its batch, or its rows are none.
        ModelError: the network runs neither a single sample nor several.
    """
    output_names = [o.name for o in graph.output]

    def attempt(indices: IntArray) -> list[Array] | ModelError:
        (batch,) = samples.batches(indices, max(PROBE, len(indices)))
        try:
            return runtime.run(session, batch.feed, output_names)
        except ModelError as error:
            return error

    picked = np.unique(np.linspace(0, len(samples) - 1, PROBE).astype(np.int64))
    first, *others = picked[:, None]
    once, twice = attempt(first), attempt(first)
    if isinstance(once, list) and isinstance(twice, list):
        _check_equal(once, twice, output_names)
    cuttable = isinstance(samples, Rows) and samples.block is None and len(picked) > 1
    joint = attempt(picked) if cuttable else once
    if isinstance(once, ModelError) and isinstance(joint, ModelError):
        if cuttable and isinstance(attempt(np.arange(len(samples))), list):
            text = "the network runs on all rows of the arrays at once, but not on some: their first axis is no "
            raise CalibrationError("calibration-slicing", f"{text}axis of samples; give a folder, one file per feed")
        raise joint
    if cuttable:
        _check_rows([joint, once, *map(attempt, others)], output_names, _fed(graph))


def check_repeatable(samples: Samples, session: Session, graph: onnx.GraphProto) -> None:
    """The first sample run twice gives the same answers, as far as `check_independent` looks.

    Raises:
        CalibrationError: it does not: the network is random, or keeps a state. ModelError: it does not run.
    """
    names = [o.name for o in graph.output]
    (batch,) = samples.batches(np.arange(1), 1)
    once, twice = (runtime.run(session, batch.feed, names) for _ in range(2))
    _check_equal(once, twice, names)


def _fed(graph: onnx.GraphProto) -> frozenset[str]:
    """The tensors that some input of the network reaches; inputs with a stored default are not fed."""
    stored = {t.name for t in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
    found = {i.name for i in graph.input} - stored
    for node in graph.node:
        if not found.isdisjoint(read_by(node)):
            found.update(node.output)
    return frozenset(found)


def _check_equal(once: Sequence[Array], twice: Sequence[Array], names: Sequence[str]) -> None:
    for name, first, second in zip(names, once, twice, strict=True):
        if not _agree(first, second):
            text = f"output '{name}' differs between two runs of one feed: the network is random or keeps a state; "
            text += "remove such ops"
            raise CalibrationError("calibration-random", text, name)


def _check_rows(runs: Sequence[list[Array] | ModelError], names: Sequence[str], fed: AbstractSet[str]) -> None:
    """Compares the first run, of all samples together, with the others, of each alone; fed: see `_fed`."""
    outputs = [run for run in runs if isinstance(run, list)]
    if len(outputs) < len(runs):
        raise _dependent(names[0])
    for name, (together, *alone) in zip(names, zip(*outputs, strict=True), strict=True):
        if name not in fed:
            continue
        stackable = {rows.shape for rows in alone} == {(1, *together.shape[1:])}
        if not stackable or not _agree(together, np.concatenate(alone)):
            raise _dependent(name)


def _dependent(name: str) -> CalibrationError:
    text = f"output '{name}' of one sample depends on the others in its batch (recurrent op, CumSum or Reshape along "
    text += "it, or a random op): the samples can't be sliced; give a folder, one file per feed"
    return CalibrationError("calibration-slicing", text, name)


def _agree(left: Array, right: Array) -> bool:
    if left.shape != right.shape:
        return False
    if left.dtype.kind != "f":
        return not left.size or float(np.mean(left != right)) <= 0.01
    share = 1e-2 if left.dtype.itemsize < 4 else 1e-3
    finite = np.isfinite(left)
    scale = float(np.abs(left[finite], dtype=np.float64).max(initial=0.0))
    return bool(np.allclose(left.astype(np.float64), right.astype(np.float64), 0, share * scale, equal_nan=True))
