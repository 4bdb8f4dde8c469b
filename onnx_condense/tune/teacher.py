"""What a student is shown: batches of inputs, with what the dense network answers to them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from onnx_condense.data import Samples
from onnx_condense.data.samples import Batch, Rows
from onnx_condense.errors import ModelError
from onnx_condense.plan import IntArray
from onnx_condense.runtime import Array, Feed, Runtime, Session, run
from onnx_condense.tune.losses import MSE, Scale, scale_of
from onnx_condense.tune.mixing import mixed

# Answers of one source are kept up to this size; what is larger is worked out anew each time it is shown.
HELD_BYTES = 2**28
# So many samples tell the scale of the answers.
SEEN = 4096
ROWS = 256


@dataclasses.dataclass(frozen=True)
class Lesson:
    """One pass: the feed, the teacher's answers (one per output), and how many samples that are."""

    feed: Feed
    answers: Sequence[Array]
    count: int


@dataclasses.dataclass(frozen=True)
class Source:
    """Samples, and which of them are meant."""

    samples: Samples
    rows: IntArray

    def passes(self, rows: int) -> Iterator[Batch]:
        """In their order, at most so many rows each."""
        return self.samples.batches(self.rows, rows)


class Teacher:
    """The dense network and the samples that it teaches on.

    Args:
        dense: weights inside or as a file.
        samples: unlabeled inputs.
        fit: which of them are trained on; search: which tell when to stop.
        runtime: how the dense network is run.
        loss: one of `losses.LOSSES`.
        more: further unlabeled inputs to train on; those that are among `apart`, or search, are left out.
        apart: what nothing may be trained on.
        weights: of outputs by name, 1 for the others.
        seed: of the inputs that are made between near ones; see `mixing`.

    Attributes:
        count: samples to train on, those made aside. left_out: how many further inputs were left out.
        scales: of each output's loss, None where it gives none. loss: what kinds these are.

    Raises:
        ModelError: no output gives a gradient, or the network does not run.
    """

    def __init__(  # noqa: PLR0913 - a network and the roles of its samples; the options by keyword
        self,
        dense: onnx.ModelProto | Path,
        samples: Samples,
        fit: IntArray,
        search: IntArray,
        runtime: Runtime,
        loss: str = MSE,
        *,
        more: Samples | None = None,
        apart: Sequence[Source] = (),
        weights: Mapping[str, float] | None = None,
        seed: int = 0,
    ) -> None:
        self.runtime = runtime
        session = runtime.session(dense)
        self._sources = [Source(samples, fit)]
        searched = Source(samples, search)
        self.left_out = 0
        if more is not None:
            fresh = _fresh(more, [searched, *apart])
            self.left_out = len(more) - len(fresh)
            self._sources.append(Source(more, fresh))
        self.count = sum(len(s.rows) for s in self._sources)
        if (between := mixed(samples, fit, seed)) is not None:
            self._sources.append(Source(between, np.arange(len(between))))
        self._answers = [_Answers(session, source) for source in (*self._sources, searched)]
        # Between near ones, and on further inputs, the dense network may answer with what nobody can learn.
        self._sources = [answers.source for answers in self._answers[:-1]]
        names = [o.name for o in session.get_outputs()]
        seen = list(_first(lesson.answers for lesson in self._answers[0].lessons(fit[:SEEN], ROWS)))
        self.scales: Sequence[Scale | None] = [
            scale_of(loss, [answers[i] for answers in seen], (weights or {}).get(name, 1.0))
            for i, name in enumerate(names)
        ]
        self.loss = " and ".join(sorted({scale.kind for scale in self.scales if scale is not None}))
        if not any(self.scales):
            raise ModelError("tune", "--tune: no output varies with the inputs, so that nothing can be learned")

    def steps(self, rng: np.random.Generator, rows: int) -> Iterator[list[Lesson]]:
        """So many samples at a time, endlessly; all of them in a drawn order before any comes again."""
        while True:
            chunks = [(at, chunk) for at, s in enumerate(self._sources) for chunk in _chunks(rng, s.rows, rows)]
            for place in rng.permutation(len(chunks)):
                at, chunk = chunks[place]
                yield list(self._answers[at].lessons(chunk, len(chunk)))

    def tests(self, rows: int) -> Iterator[Lesson]:
        """The samples that tell when to stop."""
        last = self._answers[-1]
        return last.lessons(last.source.rows, rows)

    def example(self, rows: int) -> Lesson:
        """Some samples to try a student on."""
        return next(iter(self._answers[0].lessons(self._sources[0].rows[:rows], rows)))


class _Answers:
    """The dense network's answers to the samples of one source, kept where they are not too large."""

    def __init__(self, session: Session, source: Source) -> None:
        self._session, self.source = session, source
        self._held: list[Array] = []
        self._place: dict[int, int] = {}
        if len(source.rows) and isinstance(source.samples, Rows):
            self._hold()

    def _hold(self) -> None:
        """Answers that have a row per sample, of all samples."""
        parts: list[list[Array]] = []
        for batch in self.source.passes(ROWS):
            parts.append(run(self._session, batch.feed))
            sizes = [a.nbytes for a in parts[0]]
            small = sum(sizes) / len(batch.samples) * len(self.source.rows) <= HELD_BYTES
            if not small or not all(a.ndim and len(a) == len(batch.samples) for a in parts[-1]):
                return
        self._held = [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]
        self._place = {int(row): at for at, row in enumerate(self.source.rows)}
        rows = self.source.rows[np.logical_and.reduce([_finite(a) for a in self._held])]
        self.source = Source(self.source.samples, rows)

    def lessons(self, indices: IntArray, rows: int) -> Iterator[Lesson]:
        """Some samples of the source."""
        for batch in self.source.samples.batches(indices, rows):
            yield Lesson(batch.feed, self._of(batch), len(batch.samples))

    def _of(self, batch: Batch) -> Sequence[Array]:
        if not self._held:
            return run(self._session, batch.feed)
        places = [self._place[int(row)] for row in batch.samples]
        return [answers.take(places, axis=0) for answers in self._held]


def _finite(answers: Array) -> npt.NDArray[np.bool_]:
    """Which samples have answers without NaN and infinity."""
    if answers.dtype.kind != "f":
        return np.ones(len(answers), np.bool_)
    return np.asarray(np.isfinite(answers).reshape(len(answers), -1).all(axis=1))


def _first(passes: Iterable[Sequence[Array]]) -> Iterator[Sequence[Array]]:
    """Answers up to the size that is kept: of large pictures a few tell the scale as well."""
    size = 0
    for answers in passes:
        yield answers
        size += sum(a.nbytes for a in answers)
        if size > HELD_BYTES:
            break


def _chunks(rng: np.random.Generator, rows: IntArray, size: int) -> Iterable[IntArray]:
    """All rows in a drawn order, about so many at a time: a last chunk of a few would be a noisy step."""
    return np.array_split(rng.permutation(rows), max(1, round(len(rows) / size))) if len(rows) else ()


def _fresh(samples: Samples, apart: Sequence[Source]) -> IntArray:
    """Samples that are none of those."""
    taken = {mark for source in apart for marks in _marks(source) for mark in marks}
    marks = _marks(Source(samples, np.arange(len(samples))))
    return np.array([i for i, found in enumerate(marks) if taken.isdisjoint(found)], np.int64)


def _marks(source: Source) -> Iterator[set[bytes]]:
    """Digests of each sample, the same for equal ones: one, or one per row of a block."""
    samples = source.samples
    for row in source.rows:
        feed = next(samples.batches(np.array([row]), 1)).feed
        if not isinstance(samples, Rows) or samples.block is None:
            yield {_mark(feed)}
            continue
        # The same rows may be cut into other blocks there.
        yield {_mark({**feed, **{n: feed[n][i : i + 1] for n in samples.arrays}}) for i in range(samples.block)}


def _mark(feed: Feed) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(feed):
        digest.update(f"{name} {feed[name].shape} {feed[name].dtype}".encode())
        digest.update(np.ascontiguousarray(feed[name]).tobytes())
    return digest.digest()
