"""The training loop: the loss goes down, the best state comes out, and the same steps give the same bytes."""

from __future__ import annotations

import importlib
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from mlps import Array, Net, mlp, normal, weight_of
from onnx import TensorProto, helper, numpy_helper

from onnx_condense.data import input_specs, load
from onnx_condense.network.model import serialized
from onnx_condense.runtime import Runtime, run
from onnx_condense.tune import Lesson, Recipe, Teacher, Tuned, distil
from onnx_condense.tune.soap import Soap

module: Any = importlib.import_module("onnx_condense.tune.training")

ONE = Runtime(threads=1)
FIT, SEARCH = np.arange(150), np.arange(150, 200)
X = normal(200, 3)


def teacher(model: onnx.ModelProto, values: Any = X, **options: Any) -> Teacher:
    return Teacher(model, load(values, input_specs(model.graph)), FIT, SEARCH, ONE, **options)


def shaken(model: onnx.ModelProto, size: float = 0.1, seed: int = 0) -> onnx.ModelProto:
    """The same network with other weights."""
    rng, found = np.random.default_rng(seed), onnx.ModelProto()
    found.CopyFrom(model)
    for tensor in found.graph.initializer:
        old = numpy_helper.to_array(tensor)
        if old.dtype.kind == "f" and old.size > 1:
            new = old + size * old.std() * rng.standard_normal(old.shape)
            tensor.CopyFrom(numpy_helper.from_array(new.astype(old.dtype), tensor.name))
    return found


def error(student: onnx.ModelProto, dense: onnx.ModelProto, feed: dict[str, Array]) -> float:
    """Relative error of all outputs, as ONNX Runtime computes them."""
    pairs = zip(*(run(ONE.session(m, optimize=False), feed) for m in (student, dense)), strict=True)
    parts = [((y - t).astype(np.float64) ** 2).mean() / t.astype(np.float64).var() for y, t in pairs]
    return math.sqrt(sum(parts))


def tuned(
    dense: onnx.ModelProto, *, values: Any = X, steps: int = 60, size: float = 0.1, rows: int = 0, **options: Any
) -> Tuned:
    return distil(shaken(dense, size), teacher(dense, values, **options), Recipe(None, steps, rows=rows))


# ---- what comes out ----


def test_the_loss_goes_down_and_the_network_is_the_one_that_has_it() -> None:
    dense = mlp()
    student = shaken(dense)
    before = serialized(student)
    found = distil(student, teacher(dense), Recipe(None, 200))
    assert serialized(student) == before
    assert found.steps == 200
    assert found.after < found.before / 20
    assert found.rate in module.RATES
    assert found.curve[0] == (0, found.before)
    assert found.after == min(loss for _, loss in found.curve)
    assert [step for step, _ in found.curve] == sorted({step for step, _ in found.curve})
    # The loss is the square of the relative error, by the spread of what it is trained on.
    feed = {"x": X[SEARCH]}
    y, t, fit = (
        run(ONE.session(m), {"x": x})[0] for m, x in ((student, X[SEARCH]), (dense, X[SEARCH]), (dense, X[FIT]))
    )
    assert found.before == pytest.approx(((y - t) ** 2).mean() / fit.var(0).mean(), rel=1e-3)
    assert error(found.model, dense, feed) < error(student, dense, feed) / 4
    assert error(found.model, dense, {"x": normal(300, 3, seed=4)}) < error(student, dense, feed) / 4
    assert found.model.graph.node == student.graph.node
    assert found.seconds > 0


def test_the_same_steps_give_the_same_bytes() -> None:
    threads = torch.get_num_threads()
    once, twice = (tuned(mlp(), steps=40) for _ in range(2))
    assert serialized(once.model) == serialized(twice.model)
    assert once.curve == twice.curve
    assert torch.get_num_threads() == threads
    other = distil(shaken(mlp()), teacher(mlp()), Recipe(None, 40, seed=1))
    assert serialized(other.model) != serialized(once.model)


def test_threads_are_those_of_the_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", seen.append)
    tuned(mlp(), steps=1)
    assert seen == [1, torch.get_num_threads()]


def worse(self: Any, closure: Any = None) -> None:
    del closure
    with torch.no_grad():
        for group in self.param_groups:
            for weight in group["params"]:
                weight.add_(weight, alpha=0.02)


def test_a_run_that_gets_worse_ends_and_leaves_it_to_others_to_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The start may have been fitted on the samples that tell when to stop."""
    monkeypatch.setattr(Soap, "step", worse)
    student = shaken(mlp(), 0.01)
    found = distil(student, teacher(mlp()), Recipe(None, 100))
    assert found.model != student
    assert found.after == min(loss for _, loss in found.curve[1:]) > found.before
    assert found.curve[-1][1] > 4 * found.before
    # It has not fallen for so long that there is no point in going on.
    assert 0.9 * module.PATIENCE < found.steps / 100 < module.PATIENCE + 0.1


def test_pictures_of_any_size_go_by_their_own_size() -> None:
    """Sizes that are left open count as 1 where nobody puts them in."""
    net = Net({"x": ["N", 3, "H", "W"]})
    net.node("Conv", "x", net.weight("W", normal(16, 3, 3, 3)), pads=[1, 1, 1, 1], out="h")
    net.node("GlobalAveragePool", "h", out="y")
    model = net.model({"y": ["N", 16, 1, 1]})
    rows = [module._rows_for(model, Lesson({"x": normal(1, 3, size, size)}, (), 1)) for size in (8, 128, 4096)]
    assert rows == [module.MOST_ROWS, module.LEAST_ROWS, 1]


def test_the_best_state_on_the_way_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    real, steps = Soap.step, [0]

    def step(self: Any, closure: Any = None) -> None:
        steps[0] += 1
        # After the trials, and half of the run.
        (worse if steps[0] > 30 + 100 else real)(self, closure)

    monkeypatch.setattr(Soap, "step", step)
    found = tuned(mlp(), steps=200)
    assert found.after < found.before / 5
    assert found.curve[-1][1] > 4 * found.after
    wanted = distil(found.model, teacher(mlp()), Recipe(None, 1)).before
    assert wanted == pytest.approx(found.after, rel=1e-3)


def test_a_student_that_is_the_teacher_stays() -> None:
    net = Net({"x": ["N", 3]})
    net.node("Mul", "x", net.weight("w", [1.0, 2.0, 4.0]), out="y")
    model = net.model({"y": ["N", 3]})
    found = distil(model, teacher(model), Recipe(None, 20))
    assert found.model == model
    assert (found.before, found.after) == (0.0, 0.0)


# ---- rates ----


@pytest.mark.parametrize(
    ("times", "tried"),
    [
        ((0.1, 0.01, 0.01), 1),
        ((15.9, 0.01, 0.01), 1),
        ((16.1, 1.0, 0.01), 2),
        ((math.inf, 16.1, 1.0), 3),
        ((math.inf, math.inf, math.inf), 3),
    ],
)
def test_the_rate_is_the_largest_that_training_recovers_from(
    times: tuple[float, ...], tried: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, seen = tuned(mlp(), steps=1).before, list[float]()

    def fake(_: Any, rate: float, __: Any) -> Any:
        seen.append(rate)
        return times[module.RATES.index(rate)] * start

    monkeypatch.setattr(module._Training, "_tried", fake)
    rate = tuned(mlp(), steps=1).rate
    assert seen == list(module.RATES[:tried])
    # The last one is taken without a trial.
    assert rate == module.RATES[3 if min(times) > module.RECOVERED else tried - 1]


def test_a_rate_that_breaks_down_does_not_win(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Soap.step

    def step(self: Any, closure: Any = None) -> None:
        real(self, closure)
        if self.defaults["lr"] > 5e-4:
            with torch.no_grad():
                self.param_groups[0]["params"][0].fill_(math.nan)

    monkeypatch.setattr(Soap, "step", step)
    found = tuned(mlp(), steps=60)
    assert found.rate <= 5e-4
    assert found.after < found.before
    assert all(np.isfinite(weight_of(found.model, n)).all() for n in ("W0", "b0", "W1"))


def test_gradients_that_are_no_numbers_move_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = module._Training._loss, [0]

    def loss(self: Any, lesson: Any) -> Any:
        calls[0] += 1
        return real(self, lesson) * (math.nan if torch.is_grad_enabled() and calls[0] % 2 else 1.0)

    monkeypatch.setattr(module._Training, "_loss", loss)
    found = tuned(mlp(), steps=60)
    assert found.after < found.before
    assert all(math.isfinite(loss) for _, loss in found.curve)


# ---- time ----


class Clock:
    """A second passes whenever somebody looks."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        """In place of `time.monotonic`."""
        self.now += 1.0
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=found.monotonic))
    return found


def test_minutes_end_it(clock: Clock) -> None:
    dense = mlp()
    found = distil(shaken(dense), teacher(dense), Recipe(2.0))
    assert 10 < found.steps < 120
    assert 60 < clock.now < 135
    assert found.seconds < 135
    assert found.after < found.before


def test_what_comes_first_ends_it(clock: Clock) -> None:
    dense = mlp()
    assert distil(shaken(dense), teacher(dense), Recipe(2.0, steps=7)).steps == 7
    assert clock.now < 60


@pytest.mark.parametrize("minutes", [1e-9, 0.05])
def test_hardly_any_time_returns_the_start(minutes: float, clock: Clock) -> None:
    del clock
    dense = mlp()
    student = shaken(dense)
    found = distil(student, teacher(dense), Recipe(minutes))
    assert found.steps == 0
    assert found.model == student


def test_progress_is_told(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    del clock
    monkeypatch.setattr(module, "PATIENCE", 1.0)
    dense, seen = mlp(), list[tuple[float, str]]()
    distil(shaken(dense), teacher(dense), Recipe(5.0), lambda done, text: seen.append((done, text)))
    assert seen[0] == (0.0, "choosing a rate")
    shares = [done for done, _ in seen]
    assert shares == sorted(shares)
    assert shares[-1] <= 1.0
    assert 10 < len(seen) <= module.LOOKS + 2
    assert " % of its start, " in seen[5][1]
    assert seen[3][1].endswith("min left")
    assert seen[-1][1].endswith("0 s left")


# ---- other networks ----


def fixed_batch() -> tuple[onnx.ModelProto, Any]:
    return mlp(batch=2), normal(400, 3)


def half() -> tuple[onnx.ModelProto, Any]:
    return mlp(dtype=np.float16), normal(200, 3, dtype=np.float16)


def pictures() -> tuple[onnx.ModelProto, Any]:
    net = Net({"x": ["N", 2, 5, 5]})
    h = net.node("Relu", net.node("Conv", "x", net.weight("W0", normal(6, 2, 3, 3) / 4), net.weight("b0", normal(6))))
    net.node("Conv", h, net.weight("W1", normal(3, 6, 1, 1) / 2), out="y")
    return net.model({"y": ["N", 3, 3, 3]}), normal(200, 2, 5, 5)


def frozen_prefix() -> tuple[onnx.ModelProto, Any]:
    """What stands before the first weight has no lowering, and does not read every input."""
    net = Net({"x": ["N", 3], "z": ["N", 2]})
    net.inputs.append(helper.make_tensor_value_info("n", TensorProto.INT64, ["N", 1]))
    net.node("Cast", net.node("Shrink", "n", lambd=0.5), out="f", to=TensorProto.FLOAT)
    values = net.node("Concat", "f", "x", axis=1)
    h = net.node("Tanh", net.node("Gemm", values, net.weight("W0", normal(4, 8)), net.weight("b0", normal(8))))
    h = net.node("Concat", h, "z", axis=1)
    net.node("Gemm", h, net.weight("W1", normal(10, 2) / 3), net.weight("b1", normal(2)), out="y")
    model = net.model({"y": ["N", 2]})
    return model, {"x": X, "z": normal(200, 2, seed=3), "n": np.arange(200).reshape(-1, 1) % 5 - 2}


@pytest.mark.parametrize("make", [fixed_batch, half, pictures, frozen_prefix], ids=lambda f: f.__name__)
def test_networks_of_every_form(make: Any) -> None:
    dense, values = make()
    found = tuned(dense, values=values, steps=150, size=0.2, rows=16)
    assert found.after < found.before / 3
    student = shaken(dense, 0.2)
    given = values if isinstance(values, dict) else {"x": values}
    rows = 2 if make is fixed_batch else 50
    feed = {name: array[-rows:] for name, array in given.items()}
    assert error(found.model, dense, feed) < error(student, dense, feed) / 1.5
    assert [(t.name, t.data_type, t.dims) for t in found.model.graph.initializer] == [
        (t.name, t.data_type, t.dims) for t in student.graph.initializer
    ]
    onnx.checker.check_model(found.model, full_check=True)


@pytest.mark.parametrize("loss", ["mse", "features", "l1", "kl"])
def test_every_loss_trains(loss: str) -> None:
    dense = mlp((3, 12, 4))
    found = tuned(dense, loss=loss)
    assert found.after < found.before / 2
    assert error(found.model, dense, {"x": X}) < error(shaken(dense), dense, {"x": X})


def test_outputs_without_a_gradient_do_not_stand_in_the_way() -> None:
    net = Net({"x": ["N", 3]})
    net.node("Gemm", "x", net.weight("W", normal(3, 4)), net.weight("b", normal(4)), out="y")
    net.node("ArgMax", "y", axis=1, keepdims=0, out="class")
    model = net.model({"y": ["N", 4]})
    model.graph.output.append(helper.make_tensor_value_info("class", TensorProto.INT64, ["N"]))
    found = tuned(model)
    assert found.after < found.before / 3


def test_rows_of_a_step_go_by_the_work() -> None:
    def rows(width: int, asked: int = 0) -> int:
        dense = mlp((3, width, 2))
        training = module._Training(dense, teacher(dense), Recipe(None, 1, rows=asked), lambda *_: None)
        assert isinstance(training._rows, int)
        return training._rows

    assert rows(4) == module.MOST_ROWS
    assert rows(4, asked=9) == 9


@pytest.mark.parametrize(
    ("seconds", "minutes", "looks"), [(0.01, 3.0, 50), (0.9, 3.0, 20), (30.0, 3.0, 8), (30.0, None, 50), (0.0, 0.1, 50)]
)
def test_looking_takes_a_tenth_of_the_time_at_most(seconds: float, minutes: float | None, looks: int) -> None:
    assert module._looks(seconds, minutes) == looks
