"""Calibration inputs that are drawn where none are given: `--calibration synthetic[:N]`.

Owns what the word means, how many inputs are drawn and of which sizes: the first that the network takes. What values
they have is the business of `draw`; which of its looks, of what BatchNormalization remembers of the training.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import onnx

from onnx_condense.cost import count_macs
from onnx_condense.data import SMALLEST_SHARE, Samples, check_independent
from onnx_condense.data import load as load_samples
from onnx_condense.data.samples import make_feeds
from onnx_condense.draw import LARGER, MOST, PLAIN, SIZES, Drawer, Look
from onnx_condense.errors import CalibrationError, ModelError, UsageError
from onnx_condense.evidence.running import Memory, running_statistics
from onnx_condense.network.model import Network, inlined
from onnx_condense.runtime import Runtime, Session, run

WORD = "synthetic"
# Three shares, of which the largest has three times the samples of the others.
FEWEST = 5 * SMALLEST_SHARE
# How many are drawn if not told otherwise: fewer where they are large or the network is, then at least so many.
USUAL, LEAST = 4096, 256
ELEMENTS = 2**26
# What is asked for may hold so many numbers at most.
LARGEST = 2**31
WORK = 10**11
# As feeds of their own, which run one by one.
USUAL_FEEDS = 512
# Sizes of free axes other than the rows, in the order in which they are tried.
ONE_SIZE = (64, 128, 256, 512, 1024, 4096, 16384, 32, 16, *SIZES)
FEED_SIZES = (LARGER[0], LARGER[1], SIZES, *LARGER[2:])
# Samples that the network is asked about: whether it takes them, and what it remembers of their like: so many of them,
# as long as that is less than so many numbers.
PROBE, ASKED, ASKED_ELEMENTS = 4, (8, 64), 2**17

# Looks that the search starts from: spreads, and means in spreads; it ends with steps of a sixteenth (of a doubling).
SPREADS, MEANS, FALL = (1 / 8, 1.0, 8.0, 64.0), (-1.0, 0.0, 1.0), 1.0
LAST_STEP = 1 / 16
# Pictures fall by about 1, the softest ones by this.
STEEPEST = 2.0
# A look is taken if it comes that much closer to the training than a plain one, and about as close as real inputs do:
# one that only comes closer may serve worse (docs/benchmarks.md).
CLOSER, CLOSE = 0.8, 0.1

NOTE = "calibration inputs were drawn, not given: the error holds on such inputs only"
NOTE_JUDGED = "calibration inputs were drawn, not given: only the verification samples speak of real inputs"


@dataclasses.dataclass(frozen=True)
class Synthetic:
    """The wish for so many drawn inputs; 0: as many as usual."""

    count: int = 0


def wish_of(source: object) -> Synthetic | None:
    """The wish that a calibration source is, or None.

    A file or folder of that very name is no wish, nor is any other way to write a path.

    Raises:
        UsageError: the number is none, too small to be split, or too large for any computer.
    """
    if not isinstance(source, str) or source.partition(":")[0] != WORD or os.path.lexists(source):
        return None
    _, colon, number = source.partition(":")
    if not colon:
        return Synthetic()
    if not (number.isascii() and number.isdigit()):
        text = f"--calibration {source}: {number!r} is no number of inputs; give one, as in {WORD}:1000"
        raise UsageError("synthetic", f"{text} (a file of that name: ./{source})")
    if len(number) > len(str(LARGEST)):
        raise _too_many(source, LARGEST)
    if int(number) < FEWEST:
        text = f"--calibration {source}: at least {FEWEST} inputs are needed to fit, search and verify on; draw more"
        raise UsageError("synthetic", text)
    return Synthetic(int(number))


def _too_many(source: str, most: int) -> UsageError:
    return UsageError("synthetic", f"--calibration {source}: draw at most {most}")


def draw_samples(wish: Synthetic, network: Network, session: Session, runtime: Runtime, seed: int) -> Samples:
    """Drawn samples that the network takes, each independent of the others.

    Where the network holds BatchNormalization their look is the one that comes closest to what that saw in training.

    Args:
        wish: how many; as usual means fewer where they are large.
        network: the dense one.
        session: the same, ready to run.
        runtime: how to run.
        seed: same seed, same samples.

    Raises:
        ModelError: no values can be drawn for an input, or the network takes none of the sizes tried.
        UsageError: more are wished for than can be held.
    """
    way = _taken(network, Drawer(network.proto.graph, seed), session)
    if wish.count > way.most:
        raise _too_many(f"{WORD}:{wish.count}", way.most)
    look, notes = way.look(runtime)
    samples = way.samples(wish.count or way.usual, look)
    return dataclasses.replace(samples, notes=(*samples.notes, *notes))


def _taken(network: Network, drawer: Drawer, session: Session) -> _Rows | _Feeds:
    """The first way to draw that the network takes, if possible such that no output is empty.

    Raises:
        ModelError: it takes none.
    """
    refused: list[str] = []
    poor: list[_Rows | _Feeds] = []
    for way in _ways(network, drawer):
        try:
            probe = way.samples(PROBE, PLAIN)
            check_independent(probe, session, network.proto.graph)
        except (CalibrationError, ModelError) as error:
            refused.append(error.text)
            continue
        (first,) = probe.batches(np.arange(1))
        if all(y.size for y in run(session, first.feed)):
            return way
        poor.append(way)
    if poor:
        return poor[0]
    why = f" ({refused[0]})" if refused else ""
    raise ModelError("drawn-inputs", f"the network does not take drawn inputs{why}: give real ones with --calibration")


def _ways(network: Network, drawer: Drawer) -> Iterator[_Rows | _Feeds]:
    """Ways to draw, the likeliest first; none whose samples would be huge, but for the smallest sizes."""
    if drawer.sliced:
        for size in ONE_SIZE if drawer.resizable else ONE_SIZE[:1]:
            way = _Rows(network, drawer, size)
            if way.elements <= MOST or size in SIZES or not drawer.resizable:
                yield way
    for sizes in FEED_SIZES:
        for rows in (SIZES, sizes):
            shapes = tuple(zip(rows, sizes, strict=True))
            if sizes == SIZES or all(drawer.elements(*both) <= MOST for both in shapes):
                yield _Feeds(drawer, shapes)


@dataclasses.dataclass(frozen=True)
class _Feeds:
    """Feeds of their own, in turn of so many rows and such sizes."""

    drawer: Drawer
    shapes: Sequence[tuple[int, int]]
    usual: int = USUAL_FEEDS
    most: int = 1000 * USUAL_FEEDS

    def samples(self, count: int, _: Look) -> Samples:
        """So many; their look is always plain."""
        shapes = list(itertools.islice(itertools.cycle(self.shapes), count))
        return make_feeds(count, (), lambda index: self.drawer.feed(index, *shapes[index]))

    def look(self, _: Runtime) -> tuple[Look, Sequence[str]]:
        """The plain one."""
        return PLAIN, ()


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Rows of arrays, all free axes of one size."""

    network: Network
    drawer: Drawer
    size: int

    def samples(self, count: int, look: Look) -> Samples:
        """So many of this look."""
        return load_samples(self.drawer.rows(count, self.size, look), self.drawer.specs)

    @property
    def usual(self) -> int:
        """How many are drawn if not told otherwise."""
        return max(min(USUAL, ELEMENTS // self.elements, WORK // max(self._work(), 1)), LEAST)

    @property
    def most(self) -> int:
        """How many can be drawn."""
        return LARGEST // self.elements

    @property
    def elements(self) -> int:
        """Numbers of one sample."""
        return max(1, sum(math.prod(self.drawer.shape(spec, self.size)) for spec in self.drawer.specs))

    def _work(self) -> int:
        """Multiply-accumulates of one sample."""
        if not self.drawer.resizable:
            return count_macs(self.network)
        sized = onnx.ModelProto()
        sized.CopyFrom(inlined(self.network))
        by_name = {value.name: value for value in sized.graph.input}
        for spec in self.drawer.specs:
            dims = by_name[spec.name].type.tensor_type.shape.dim
            for dim, declared in zip(dims[spec.has_free_rows :], spec.shape[spec.has_free_rows :], strict=True):
                if not isinstance(declared, int):
                    dim.dim_value = self.size
        del sized.graph.value_info[:]
        return count_macs(Network(sized))

    def look(self, runtime: Runtime) -> tuple[Look, Sequence[str]]:
        """The one that comes closest to what BatchNormalization saw in training, and a note on it."""
        statistics = running_statistics(self.network)
        if not statistics or not self.drawer.has_floats:
            return PLAIN, ()
        memory = Memory(self.network, statistics, runtime)
        asked = int(np.clip(ASKED_ELEMENTS // self.elements, *ASKED))

        @functools.cache
        def distance(look: Look) -> float:
            drawn = self.samples(asked, look)
            return memory.distance(batch.feed for batch in drawn.batches(np.arange(asked), ASKED[0]))

        pictures = self.drawer.has_pictures(self.size)
        plain, found = distance(PLAIN), closest(distance, falls=pictures)
        if not distance(found) < min(CLOSER * plain, CLOSE):
            return PLAIN, ()
        text = f"drawn inputs have spread {found.scale:.3g} and mean {found.shift:.3g}"
        text += f", amplitudes that fall with frequency to the power {found.fall:.3g}" if pictures else ""
        text += ": closest to what BatchNormalization saw in training"
        return found, (f"{text} (divergence {distance(found):.2g}, of plain inputs {plain:.2g})",)


def closest(distance: Callable[[Look], float], *, falls: bool) -> Look:
    """The look of least distance that a search by smaller and smaller steps finds.

    falls: whether the spectrum is searched as well.
    """
    starts = [_look(FALL * falls, math.log2(s), m) for s in SPREADS for m in MEANS]
    best = min(starts, key=distance)
    step = 1.0
    while step >= LAST_STEP:
        better = min(_around(best, step, falls=falls), key=distance)
        if distance(better) < distance(best):
            best = better
        else:
            step /= 2
    return best


def _around(look: Look, step: float, *, falls: bool) -> list[Look]:
    fall, spread, mean = look.fall or 0.0, math.log2(look.scale), look.shift / look.scale
    found = [_look(fall, spread, mean + step), _look(fall, spread, mean - step)]
    for other in (spread + step, spread - step):
        # The mean as it is, and with the spread.
        found += [Look(fall, 2.0**other, look.shift), _look(fall, other, mean)]
    turns = (fall + step / 2, fall - step / 2) if falls else ()
    return found + [_look(min(max(turn, 0.0), STEEPEST), spread, mean) for turn in turns]


def _look(fall: float, spread: float, mean: float) -> Look:
    """From the power of the fall, the binary logarithm of the spread, and the mean in spreads."""
    return Look(fall, 2.0**spread, mean * 2.0**spread)
