"""What a reader reads, row by row, where there are fewer rows than columns.

Moments of all columns with each other would then be larger than the rows, and take longer to collect than all that is
asked of them: what a few columns make of the reader's sums.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from onnx_condense.fit.compensate import columns_for
from onnx_condense.plan import FloatArray, IntArray
from onnx_condense.select.obs import ReaderCost, placed

TINY = np.finfo(np.float64).tiny


@dataclasses.dataclass(frozen=True)
class Sight:
    """One set of readers of one tensor axis, stacked, and some rows of it, in single precision.

    weight: [O, K]; columns: [channels, b], see `ReaderCost`.
    fit: [n, K] what is fitted on, about its means; held: [m, K] what judges that, about the same means.
    """

    weight: FloatArray
    columns: IntArray
    fit: FloatArray
    held: FloatArray

    @functools.cached_property
    def sums(self) -> FloatArray:
        """[n, O] what the readers make of the rows that are fitted on."""
        return np.asarray(self.fit @ self.weight.T.astype(np.float32))

    @functools.cached_property
    def answers(self) -> FloatArray:
        """[m, O] what they make of the others."""
        return np.asarray(self.held @ self.weight.T.astype(np.float32))

    @property
    def spread(self) -> float:
        """What errors on the rows that are fitted on are relative to."""
        return _squares(self.sums) / max(len(self.sums), 1)

    def products(self, at: IntArray, weight: FloatArray) -> FloatArray:
        """[C, C] second moments of some columns, each times a weight."""
        part = self.fit[:, at] * (weight / max(len(self.fit), 1) ** 0.5).astype(np.float32)
        return np.asarray(part.T @ part)

    def without(self, gone: IntArray, ridge: float) -> ReaderCost:
        """The readers, refitted on what they read of the other channels."""
        keep = self._left(gone)
        weight, covariance = self._refitted(keep, ridge)
        return ReaderCost(weight, covariance, placed(self.columns, keep, self.weight.shape[1]))

    def error(self, gone: IntArray, ridge: float) -> float:
        """Relative squared error without some channels, on the rows that judge, after a refit on the others."""
        keep = self._left(gone)
        if not keep.size:
            return 1.0
        fitted, _ = self._refitted(keep, ridge)
        rest = self.answers - self.held[:, keep] @ fitted.T.astype(np.float32)
        return _squares(rest) / max(_squares(self.answers), TINY)

    def _left(self, gone: IntArray) -> IntArray:
        columns = self.columns[gone]
        return np.setdiff1d(np.arange(self.weight.shape[1]), columns[columns >= 0])

    def _refitted(self, keep: IntArray, ridge: float) -> tuple[FloatArray, FloatArray]:
        """Columns for what is kept, and its covariance."""
        part, count = self.fit[:, keep], max(len(self.fit), 1)
        covariance, cross = (np.asarray(a.T @ part, np.float64) / count for a in (part, self.sums))
        return columns_for(cross, self.weight[:, keep], covariance, ridge), covariance


def error_of(sights: list[Sight], gone: IntArray, ridge: float) -> float:
    """The same of several, averaged; see `curves.held_out_error`."""
    return sum(s.error(gone, ridge) for s in sights) / max(len(sights), 1)


def _squares(rows: FloatArray) -> float:
    return float(np.einsum("ij,ij->", rows, rows, dtype=np.float64))
