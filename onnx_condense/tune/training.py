"""The training loop: a student's weights moved so that it answers as its teacher does.

SOAP (see `soap`) with a short warm-up, since the student starts near an optimum that full steps would leave, and cosine
decay. The rate is the largest of a few that a short schedule of its own recovers from. What counts is the loss on
samples that are not trained on: the state that does best there comes out. Whether it is better than the start is for
others to judge: least squares may have seen these samples.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import onnx
import torch

from onnx_condense.cost import count_macs
from onnx_condense.errors import ModelError
from onnx_condense.network.model import Network
from onnx_condense.network.sized import sized
from onnx_condense.runtime import Array, Feed, run
from onnx_condense.tune.network import Torched
from onnx_condense.tune.soap import Soap
from onnx_condense.tune.teacher import Lesson, Teacher

RATES = (1e-3, 3e-4, 1e-4, 3e-5)
# A rate is tried for this share of the time, or steps, at most so many; it will do if the loss is no more than so many
# times that at the start then.
TRIAL, TRIAL_STEPS, RECOVERED = 0.05, 150, 16.0
WARM_UP = 0.02
# The samples that tell when to stop are looked at so often, and training stops early once it was in vain for so long.
LOOKS, PATIENCE = 50, 0.5
# Of large networks less often: looking takes at most this share of the time, but for so many looks.
LOOKING, FEWEST_LOOKS = 0.1, 8
# Samples of a step: as many as keep it short, within these bounds.
STEP_MACS, LEAST_ROWS, MOST_ROWS = 2**27, 32, 256
# Elements of activations of one step, all of which wait for the way back.
STEP_ELEMENTS = 2**28
# Longer gradients are cut: one odd batch must not throw the student off.
LONGEST = 10.0

Progress = Callable[[float, str], None]
State = dict[str, torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How long to train.

    minutes: wall time, None: any. steps: None: any; with both the first one that is reached ends it.
    seed: of the order of the samples. rows: samples of a step, 0: as suits the network.
    """

    minutes: float | None = 3.0
    steps: int | None = None
    seed: int = 0
    rows: int = 0


@dataclasses.dataclass(frozen=True)
class Tuned:
    """What training gave.

    model: the best state after some training. steps: made, trials of rates aside; seconds: all of it.
    before, after: loss on the samples that are not trained on. rate: of the steps. curve: (step, that loss).
    """

    model: onnx.ModelProto
    steps: int
    seconds: float
    before: float
    after: float
    rate: float
    curve: tuple[tuple[int, float], ...] = ()


def distil(student: onnx.ModelProto, teacher: Teacher, recipe: Recipe, progress: Progress | None = None) -> Tuned:
    """Train a network on what its teacher answers.

    Args:
        student: same inputs and outputs as the dense network; not changed.
        teacher: see `Teacher`.
        recipe: how long.
        progress: called with the share of the work done and words about it.

    Raises:
        ModelError: part of it can't be trained through, or nothing is there to train that an output depends on.
    """
    threads = torch.get_num_threads()
    if teacher.runtime.threads:
        torch.set_num_threads(teacher.runtime.threads)
    try:
        return _Training(student, teacher, recipe, progress or (lambda _, __: None)).run()
    finally:
        torch.set_num_threads(threads)


class _Clock:
    """How far a schedule is: the larger share of its steps and of its time."""

    def __init__(self, minutes: float | None, steps: int | None) -> None:
        self._seconds = math.inf if minutes is None else 60.0 * minutes
        self._most = math.inf if steps is None else float(steps)
        self._started = time.monotonic()
        self.steps = 0

    @property
    def done(self) -> float:
        """Between 0 and 1."""
        spent = time.monotonic() - self._started
        if spent >= self._seconds or self.steps >= self._most:
            return 1.0
        return max(self.steps / self._most, spent / self._seconds)

    @property
    def left(self) -> str:
        """Time that is left, in words."""
        spent, done = time.monotonic() - self._started, self.done
        seconds = spent * (1.0 - done) / max(done, 1e-3)
        return f"{seconds:.0f} s left" if seconds < 99.5 else f"{seconds / 60:.0f} min left"


class _Training:
    """One student in training."""

    def __init__(self, student: onnx.ModelProto, teacher: Teacher, recipe: Recipe, progress: Progress) -> None:
        self._teacher, self._recipe, self._progress = teacher, recipe, progress
        network = Network(student)
        on_cuda = "CUDAExecutionProvider" in teacher.runtime.providers and torch.cuda.is_available()
        self._device = torch.device("cuda" if on_cuda else "cpu")
        self._module = Torched(network).to(self._device)
        prefix = self._module.prefix()
        self._prefix = None if prefix is None else teacher.runtime.session(prefix)
        self._scales = [scale and scale.on(self._device) for scale in teacher.scales]
        self._rows = recipe.rows or _rows_for(student, teacher.example(1))

    def run(self) -> Tuned:
        """The best state that was reached."""
        started = time.monotonic()
        before, start = self._tested(), self._state()
        looks = _looks(time.monotonic() - started, self._recipe.minutes)
        self._progress(0.0, "choosing a rate")
        rate = self._rate_for(start, before)
        self._module.load_state_dict(start)
        spent = (time.monotonic() - started) / 60.0
        minutes = None if self._recipe.minutes is None else max(self._recipe.minutes - spent, 0.0)
        clock = _Clock(minutes, self._recipe.steps)
        state, curve = start, [(0, before)]
        # The start may have been fitted on these very samples, so it is no mark to be beaten.
        best, gained = math.inf, 0.0
        for done in self._trained(rate, clock, self._recipe.seed, looks):
            loss = self._tested()
            curve.append((clock.steps, loss))
            if loss < best:
                best, gained, state = loss, done, self._state()
            share = 100 * best / before if before else 100.0
            self._progress(done, f"loss {share:.0f} % of its start, {clock.left}")
            if done - gained > PATIENCE:
                break
        self._module.load_state_dict(state)
        seconds = time.monotonic() - started
        after = best if math.isfinite(best) else before
        return Tuned(self._module.tuned(), clock.steps, seconds, before, after, rate, tuple(curve))

    def _rate_for(self, start: State, before: float) -> float:
        """The largest rate that a short schedule recovers from; before: the loss at the start.

        Which rate does best on a short schedule tells little of a long one: that always likes smaller ones.
        """
        bound = RECOVERED * before if math.isfinite(before) else 0.0
        return next((r for r in RATES[:-1] if self._tried(r, start) <= bound), RATES[-1])

    def _tried(self, rate: float, start: State) -> float:
        """The loss after a short schedule; infinite where it breaks down."""
        minutes, steps = self._recipe.minutes, self._recipe.steps
        few = TRIAL_STEPS if steps is None else max(1, min(TRIAL_STEPS, round(TRIAL * steps)))
        self._module.load_state_dict(start)
        clock = _Clock(None if minutes is None else TRIAL * minutes, few)
        for _ in self._trained(rate, clock, self._recipe.seed, looks=1):
            pass
        loss = self._tested()
        return loss if math.isfinite(loss) else math.inf

    def _trained(self, rate: float, clock: _Clock, seed: int, looks: int) -> Iterator[float]:
        """Steps of one schedule; the share that is done, so many times, the last time at its end."""
        optimiser = Soap(self._module.parameters(), lr=rate)
        steps = self._teacher.steps(np.random.default_rng(seed), self._rows)
        looked = 0
        while (done := clock.done) < 1.0:
            if done * looks >= looked + 1:
                looked = int(done * looks)
                yield done
            for group in optimiser.param_groups:
                group["lr"] = rate * min(1.0, (done + 1e-4) / WARM_UP) * 0.5 * (1.0 + math.cos(math.pi * done))
            self._step(optimiser, next(steps))
            clock.steps += 1
        yield 1.0

    def _step(self, optimiser: torch.optim.Optimizer, lessons: Sequence[Lesson]) -> None:
        optimiser.zero_grad()
        count = sum(lesson.count for lesson in lessons)
        for lesson in lessons:
            loss = self._loss(lesson) * (lesson.count / count)
            if not loss.requires_grad:
                text = "--tune: no output that varies depends on a weight that can be trained; leave it away"
                raise ModelError("tune", text)
            torch.autograd.backward(loss)
        length = torch.nn.utils.clip_grad_norm_(self._module.parameters(), LONGEST)
        if math.isfinite(length):
            optimiser.step()

    def _loss(self, lesson: Lesson) -> torch.Tensor:
        given = self._given(lesson.feed)
        found = self._module({name: self._tensor(given[name]) for name in self._module.needs})
        losses = [
            scale.of(y, self._tensor(wanted).to(y.dtype))
            for scale, y, wanted in zip(self._scales, found, lesson.answers, strict=True)
            if scale is not None
        ]
        return torch.stack(losses).sum()

    def _given(self, feed: Feed) -> Feed:
        """What the module reads."""
        if self._prefix is None:
            return feed
        names = [o.name for o in self._prefix.get_outputs()]
        wanted = {i.name: feed[i.name] for i in self._prefix.get_inputs()}
        return {**feed, **dict(zip(names, run(self._prefix, wanted), strict=True))}

    def _tensor(self, array: Array) -> torch.Tensor:
        return torch.from_numpy(np.require(array, requirements=["C", "W"])).to(self._device)

    def _tested(self) -> float:
        """Loss on the samples that are not trained on, mean over them."""
        total, count = 0.0, 0
        with torch.no_grad():
            for lesson in self._teacher.tests(self._rows):
                total += float(self._loss(lesson)) * lesson.count
                count += lesson.count
        return total / max(count, 1)

    def _state(self) -> State:
        return {name: value.detach().clone() for name, value in self._module.state_dict().items()}


def _looks(seconds: float, minutes: float | None) -> int:
    """How often to look at the samples that tell when to stop; seconds: what a look takes."""
    if minutes is None:
        return LOOKS
    return int(np.clip(60.0 * minutes * LOOKING / max(seconds, 1e-9), FEWEST_LOOKS, LOOKS))


def _rows_for(student: onnx.ModelProto, example: Lesson) -> int:
    """Samples of a step: by the work and the memory that one sample takes, its sizes put in for those left open."""
    network = sized(Network(student), example.feed)
    kept = sum(math.prod(d for d in shape if isinstance(d, int)) for shape in network.shapes.values())
    by_work = int(np.clip(STEP_MACS * example.count // max(count_macs(network), 1), LEAST_ROWS, MOST_ROWS))
    return max(1, min(by_work, STEP_ELEMENTS * example.count // max(kept, 1)))
