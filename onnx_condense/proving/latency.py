"""Paired timing of two networks with ONNX Runtime: is the second one faster, and how sure is that?

What disturbs such a comparison, and what is done about it:

* Two sessions of the very same network differ by several percent for as long as they live (where their
  memory happens to lie). So every round makes fresh sessions, and the rounds are the sample: their
  spread, not the spread of single runs, says how far the answer can be trusted.
* The worker threads of a session spin for about 100 ms after its last run and take a core away from
  whatever runs next (60 % slower on two cores). So the two sessions of a round never live together: one is
  made, warmed up, timed and dropped, then the other; who goes first alternates, which cancels drift.
* Others on the machine only ever add time to a run, and on a busy one to most runs. So a session counts by its
  fastest tenth: on two cores with five times as much to do, the ratio of two medians spreads four times as far
  from round to round as that of two fastest tenths.
* A shared machine changes speed, up to twofold, several times a second. Many short rounds keep the two halves of a
  round close in time; the rounds that straddle a change are outliers of either sign, which a trimmed mean with its
  own Student's t bears.

On a GPU the inputs are put there once and the outputs stay there, as serving does it: copies over the bus would be
timed along and hide what the networks differ by. The outputs are waited for within the timed call.

Owns no session options (sessions.py does) and takes no decision: the verdict is read off the interval.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from scipy import stats

from onnx_condense import runtime as ort
from onnx_condense.errors import ModelError
from onnx_condense.report.data import Latency

if TYPE_CHECKING:
    from pathlib import Path

Clock = Callable[[], float]
Run = Callable[[], object]

LEVEL = 0.99
# Looking at the ratios before the last round lets clear cases end early; shares of the risk that add up to one keep the
# whole at LEVEL (Bonferroni). The first look is for networks that are several times as fast, which a tenth shows.
LOOKS = {8: 0.1, 16: 0.45}
LAST_LOOK = 1.0 - sum(LOOKS.values())


@dataclasses.dataclass(frozen=True)
class Effort:
    """How long to time.

    rounds: most pairs of fresh sessions; even, at least FEWEST_ROUNDS.
    seconds: about how long fast networks are timed; a clear difference takes a third of it, a plain one a sixth.
        Networks that take 0.1 s to load or to run take longer, up to about LIMIT_S.
    first_look: rounds before which no difference is plain enough to end.
    """

    rounds: int = 48
    seconds: float = 3.0
    first_look: int = 0


FULL = Effort()
# Where it matters how many times as fast.
CLOSE = Effort(first_look=max(LOOKS))
# For a choice that another timing confirms.
GLANCE = Effort(rounds=6, seconds=0.5)

# Fewer rounds than this leave Student's t so wide that nothing is ever found.
FEWEST_ROUNDS = 4
# Networks that are slow to load or to run may take longer than asked, but no new rounds start after this.
LIMIT_S = 20.0
# Share of the rounds set aside at either end; a fifth is the usual compromise between bursts borne and rounds wasted.
TRIM = 0.2
# Shorter runs are timed several at once: a clock read and the call cost some 0.1 us, scheduling noise more.
BLOCK_S = 2e-4
FEWEST_BLOCKS = 3
# Share of a session's blocks that are faster than the one that counts; of fewer than ten the fastest counts.
FAST = 0.1
MOST_WARM_UPS = 50
# A network is warm when so many runs in a row were no faster than one before them; one alone may be a disturbed run.
STEADY = 4
GAIN = 0.95


@dataclasses.dataclass(frozen=True)
class Round:
    """Time of one undisturbed run of either network, in s."""

    before: float
    after: float

    @property
    def log_ratio(self) -> float:
        """ln(before / after): positive where the second network is faster."""
        return math.log(self.before / self.after)


class Candidate:
    """One of the two networks: makes fresh sessions and says which provider they run on.

    device: where inputs and outputs stay between runs, "" for the memory of this process, without bindings.
    """

    def __init__(self, model: bytes | Path, feed: ort.Feed, runtime: ort.Runtime, device: str = "") -> None:
        self.model, self.feed, self.runtime, self.device = model, dict(feed), runtime, device
        self.provider = ""

    def fresh(self) -> Run:
        """One run of a new session; dropping the callable ends the session and its threads.

        Raises:
            ModelError: the network does not load or does not run.
        """
        session = self.runtime.session(self.model, spin=True)
        self.provider = session.get_providers()[0]
        ort.run(session, self.feed)  # Reports what is wrong with the feed; the timed runs skip that wrapping.
        if self.device:
            return ort.bound(session, self.feed, self.device)
        feed = self.feed
        return lambda: session.run(None, feed)


def device_of(model: bytes | Path, feed: ort.Feed, runtime: ort.Runtime) -> str:
    """Where to leave inputs and outputs of a network: "" on a CPU, and where the device does not take such tensors.

    Raises:
        ModelError: the network does not load.
    """
    if runtime.providers[0] not in ort.DEVICES:
        return ""
    session = runtime.session(model)
    # A provider that does not start (no driver) leaves its place to the next one.
    device = ort.DEVICES.get(session.get_providers()[0], "")
    try:
        if device:
            ort.bound(session, feed, device)
    except ModelError:
        return ""
    return device


def centre(log_ratios: Sequence[float]) -> float:
    """Trimmed mean: the TRIM smallest and largest values do not count."""
    cut = int(TRIM * len(log_ratios))
    return statistics.fmean(sorted(log_ratios)[cut : len(log_ratios) - cut])


def interval(log_ratios: Sequence[float], level: float = LEVEL) -> tuple[float, float]:
    """Confidence interval of exp(trimmed mean), by Tukey and McLaughlin (Sankhya A 25, 1963).

    With n values, g = int(TRIM n) of them cut at either end and s the standard deviation after the cut values
    were moved to the nearest one left: mean +- t(n - 2g - 1, (1 + level) / 2) s / ((1 - 2g / n) sqrt(n)). For
    g = 0 that is Student's own.

    log_ratios: at least two, taken as independent draws.
    """
    count, cut = len(log_ratios), int(TRIM * len(log_ratios))
    ranked = sorted(log_ratios)
    low, high = ranked[cut], ranked[count - 1 - cut]
    spread = statistics.stdev(min(max(value, low), high) for value in ranked)
    quantile = float(stats.t.ppf((1.0 + level) / 2.0, count - 2 * cut - 1))
    half = quantile * spread * math.sqrt(count) / (count - 2 * cut)
    middle = centre(log_ratios)
    return math.exp(middle - half), math.exp(middle + half)


def order(index: int) -> tuple[int, int]:
    """Who is timed first and second in a round: A B, B A, A B, ..."""
    return (0, 1) if index % 2 == 0 else (1, 0)


def timed(run: Run, repeats: int, clock: Clock) -> float:
    """Seconds per run over one block."""
    start = clock()
    for _ in range(repeats):
        run()
    return (clock() - start) / repeats


def warm_up(run: Run, clock: Clock, seconds: float) -> float:
    """Run until STEADY runs in a row are no faster than the best before them by a margin, or time is up.

    Returns:
        The fastest run in s.
    """
    start = clock()
    fastest, steady = timed(run, 1, clock), 0
    for _ in range(MOST_WARM_UPS):
        if steady == STEADY or clock() - start >= seconds:
            break
        last = timed(run, 1, clock)
        steady = steady + 1 if last > GAIN * fastest else 0
        fastest = min(last, fastest)
    return fastest


def typical(run: Run, clock: Clock, seconds: float) -> float:
    """Seconds per run in the fastest tenth of blocks that together take about `seconds`, warm-up included."""
    start = clock()
    fastest = warm_up(run, clock, seconds / 4)
    # A clock too coarse to see a run says 0.
    repeats = math.ceil(BLOCK_S / max(fastest, 1e-7))
    blocks: list[float] = []
    while len(blocks) < FEWEST_BLOCKS or clock() - start < seconds:
        blocks.append(timed(run, repeats, clock))
    return sorted(blocks)[int(FAST * len(blocks))]


def enough(done: Sequence[Round], elapsed: float, effort: Effort) -> bool:
    """Whether to stop: only after an even number of rounds, so that both orders weigh the same.

    The ratios themselves are looked at after as many rounds as LOOKS says: stopping whenever they look good would
    make every network faster. Running out of time depends on what the two cost together.
    """
    count = len(done)
    if count % 2 or count < FEWEST_ROUNDS:
        return False
    if count >= effort.rounds or elapsed * (count + 2) / count > LIMIT_S:
        return True
    if count >= max(LOOKS) and elapsed > effort.seconds:
        return True
    return count >= effort.first_look and count in LOOKS and decided(at_look(done, LOOKS[count]))


def decided(speedup: tuple[float, float]) -> bool:
    """Whether an interval leaves 1 out."""
    low, high = speedup
    return low > 1.0 or high < 1.0


def at_look(done: Sequence[Round], share: float) -> tuple[float, float]:
    """Interval of the speedup that is wrong with `share` of the whole risk."""
    return interval([r.log_ratio for r in done], 1.0 - (1.0 - LEVEL) * share)


def speedup_interval(done: Sequence[Round]) -> tuple[float, float]:
    """Interval of the speedup at the look that ended the rounds: all looks together hold at LEVEL."""
    found = at_look(done, LOOKS.get(len(done), LAST_LOOK))
    return found if decided(found) else at_look(done, LAST_LOOK)


def measure(fresh: tuple[Callable[[], Run], Callable[[], Run]], effort: Effort, clock: Clock) -> list[Round]:
    """Rounds of paired times; `fresh` makes a new session of the first and of the second network."""
    start = clock()
    done: list[Round] = []
    while not enough(done, clock() - start, effort):
        seen = [0.0, 0.0]
        for which in order(len(done)):
            seen[which] = _alone(fresh[which], clock, effort.seconds / effort.rounds / 2)
        done.append(Round(before=seen[0], after=seen[1]))
    return done


def _alone(fresh: Callable[[], Run], clock: Clock, share: float) -> float:
    """Seconds per run of one session that lives only here; making it counts, up to half of the share."""
    start = clock()
    run = fresh()
    return typical(run, clock, max(share - (clock() - start), share / 2))


def compare(
    before: bytes | Path,
    after: bytes | Path,
    feed: ort.Feed,
    runtime: ort.Runtime,
    *,
    batch: int,
    effort: Effort = FULL,
    device: str | None = None,
) -> Latency:
    """Time both networks on the same feed, with all of ONNX Runtime's optimizations.

    Args:
        before: the dense network, serialized or a file.
        after: the network it is compared with.
        feed: one batch of inputs for either.
        runtime: providers and threads of the sessions.
        batch: samples in the feed, for the record.
        effort: how long to time.
        device: where inputs and outputs stay between runs, "" in the memory of this process; None: as `device_of`.
        closely: how many times as fast matters, too, so that a plain difference is timed as long as a clear one.

    Raises:
        ModelError: one of them does not load or does not run.
    """
    where = device_of(before, feed, runtime) if device is None else device
    first, second = Candidate(before, feed, runtime, where), Candidate(after, feed, runtime, where)
    done = measure((first.fresh, second.fresh), effort, time.perf_counter)
    # In ms before the medians, so that these are to the last bit those of the rounds that the report lists.
    told = tuple((1e3 * r.before, 1e3 * r.after) for r in done)
    return Latency(
        provider=second.provider,
        threads=runtime.threads,
        batch=batch,
        before_ms=statistics.median(before for before, _ in told),
        after_ms=statistics.median(after for _, after in told),
        speedup=math.exp(centre([r.log_ratio for r in done])),
        interval=speedup_interval(done),
        rounds=told,
    )


# Factors this much apart are seen to contradict each other.
APART = 1.1


def apart(timings: Iterable[Latency]) -> Iterator[str]:
    """Notes on timings whose medians say something else than their pairs of rounds."""
    for timing in timings:
        low, high = timing.interval
        medians = timing.before_ms / timing.after_ms
        told_apart = abs(math.log(medians / timing.speedup)) > math.log(APART)
        if told_apart and not low <= medians <= high:
            yield (
                f"batch {timing.batch}: this machine changed its speed while timing; {timing.speedup:.2f}x is of pairs "
                f"of rounds, the two medians alone would say {medians:.2f}x"
            )


def confirmed(
    before: bytes | Path, after: bytes | Path, feed: ort.Feed, runtime: ort.Runtime, *, seen: Latency
) -> Latency:
    """The timing to decide on: `seen`, or a second one where that says "slower", before work is thrown away for it."""
    if seen.verdict != "slower":
        return seen
    return compare(before, after, feed, runtime, batch=seen.batch)
