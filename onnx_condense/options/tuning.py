"""What --tune asks for, checked before anything is read. PyTorch is looked for, not imported."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import math

from onnx_condense.errors import UsageError
from onnx_condense.options.yardstick import AGREEMENT, PER_FEATURE, Metric

AUTO = "auto"
LOSSES = (AUTO, "mse", "features", "l1", "kl")
MINUTES = 3.0


@dataclasses.dataclass(frozen=True)
class Tune:
    """How a condensed network is trained.

    minutes: wall time of all training, None: any. steps: of each training, None: as many as time allows.
    loss: one of LOSSES; auto: as the metric asks for. rounds: condense and train in turn so many times.
    """

    minutes: float | None = MINUTES
    steps: int | None = None
    loss: str = AUTO
    rounds: int = 1

    def loss_for(self, metric: Metric) -> str:
        """The loss that goes with a metric, if none was asked for."""
        if self.loss != AUTO:
            return self.loss
        return {AGREEMENT: "kl", PER_FEATURE: "features"}.get(metric if isinstance(metric, str) else "", "mse")


def tune_of(*, tune: bool, minutes: float | None, steps: int | None, data: bool, loss: str, rounds: int) -> Tune | None:
    """The options as one; None where nothing is to be trained.

    minutes, steps: where neither is given, MINUTES; where only one is, the other one is no limit.
    data: whether further inputs are given.

    Raises:
        UsageError: one of them is out of range, or given without --tune, or PyTorch is missing.
    """
    given = {
        "--tune-minutes": minutes is not None,
        "--tune-steps": steps is not None,
        "--tune-data": data,
        "--tune-loss": loss != AUTO,
        "--rounds": rounds != 1,
    }
    if not tune:
        if lonely := next((option for option, there in given.items() if there), None):
            raise UsageError("tune", f"{lonely} needs --tune: nothing is trained without it")
        return None
    if minutes is not None and not 0.0 < minutes < math.inf:
        raise UsageError("tune-minutes", f"--tune-minutes {minutes}: give a number above 0")
    if steps is not None and steps < 1:
        raise UsageError("tune-steps", f"--tune-steps {steps}: give an integer of at least 1")
    if rounds < 1:
        raise UsageError("rounds", f"--rounds {rounds}: give an integer of at least 1")
    if loss not in LOSSES:
        near = difflib.get_close_matches(loss, LOSSES, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(LOSSES)}"
        raise UsageError("tune-loss", f"--tune-loss {loss!r}: {hint}")
    if what := missing():
        raise UsageError("tune", f"--tune: {what}")
    return Tune(MINUTES if minutes is None and steps is None else minutes, steps, loss, rounds)


def missing() -> str:
    """What to install for --tune, in words; "" if it is there."""
    if importlib.util.find_spec("torch") is not None:
        return ""
    return "training needs PyTorch: pip install 'onnx-condense[tune]'"
