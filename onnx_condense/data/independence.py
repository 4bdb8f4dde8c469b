"""Whether samples may be cut from one another: the network is asked, by running them together and alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from onnx_condense import runtime
from onnx_condense.data.samples import Rows
from onnx_condense.errors import CalibrationError, ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnx_condense.data.samples import Samples
    from onnx_condense.plan import IntArray
    from onnx_condense.runtime import Array, Session

PROBE = 4
"""How many samples are compared with themselves when the effect of slicing is measured."""


def check_independent(samples: Samples, session: Session, output_names: Sequence[str]) -> None:
    """Measures that slicing does not change the function: samples run together and alone must agree.

    Any source: the same feed run twice must agree. Sliced sources with free rows: up to 4 samples spread over all are
    run together and alone; every output must have one row a sample, equal within 1e-3 of the output's magnitude
    (1e-2 for 16-bit floats), and for other types within 1 % of the elements.

    Raises:
        CalibrationError: the network is random, or the outputs of a sample depend on its batch.
        ModelError: the network runs neither a single sample nor several.
    """

    def attempt(indices: IntArray) -> list[Array] | ModelError:
        (batch,) = samples.batches(indices, PROBE)
        try:
            return runtime.run(session, batch.feed, output_names)
        except ModelError as error:
            return error

    picked = np.unique(np.linspace(0, len(samples) - 1, PROBE).astype(np.int64))
    first, *others = picked[:, None]
    once, twice = attempt(first), attempt(first)
    if isinstance(once, list) and isinstance(twice, list):
        _check_repeatable(once, twice, output_names)
    cuttable = isinstance(samples, Rows) and samples.block is None and len(picked) > 1
    joint = attempt(picked) if cuttable else once
    if isinstance(once, ModelError) and isinstance(joint, ModelError):
        raise joint
    if cuttable:
        _check_rows([joint, once, *map(attempt, others)], output_names)


def _check_repeatable(once: Sequence[Array], twice: Sequence[Array], names: Sequence[str]) -> None:
    for name, first, second in zip(names, once, twice, strict=True):
        if not _agree(first, second):
            text = f"output '{name}' differs between two runs of one feed: the network is random; remove its random ops"
            raise CalibrationError("calibration-random", text, name)


def _check_rows(runs: Sequence[list[Array] | ModelError], names: Sequence[str]) -> None:
    """Compares the first run, of all samples together, with the others, of each alone."""
    outputs = [run for run in runs if isinstance(run, list)]
    if len(outputs) < len(runs):
        raise _dependent(names[0])
    for name, (together, *alone) in zip(names, zip(*outputs, strict=True), strict=True):
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
