"""How wide every space becomes: a path from dense to tiny, and the stop on it that the goal asks for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from onnx_condense import budget, ops
from onnx_condense.cost import WidthCosts, count_parameters
from onnx_condense.fitting import Fitter
from onnx_condense.goal import Goal
from onnx_condense.metrics import Judge
from onnx_condense.model import Network
from onnx_condense.plan import ChannelSpace, ChannelView

CONFIDENCE = 0.95
# Every space is probed alone with these shares of its channels gone.
PROBES = (0.5, 0.85)


def find_path(fitter: Fitter, hunter: Judge) -> list[budget.Point]:
    """Probe every space alone, then join the curves into one path; widths as in `fitter.spaces`."""
    network, view = fitter.network, fitter.view
    costs = WidthCosts(network, view)
    at = {s.name: i for i, s in enumerate(view.spaces)}

    def saving(widths: Sequence[int], space: int, width: int) -> int:
        every = [s.width for s in view.spaces]
        for s, w in zip(fitter.spaces, widths, strict=True):
            every[at[s.name]] = w
        return costs.saving(every, at[fitter.spaces[space].name], width)

    curves = [_curve(fitter, i, hunter) for i in range(len(fitter.spaces))]
    return budget.greedy_path(curves, count_parameters(network.proto), saving)


def _curve(fitter: Fitter, index: int, hunter: Judge) -> budget.SpaceCurve:
    full = [s.width for s in fitter.spaces]
    elimination = fitter.eliminations[index]
    probes: dict[int, float] = {}
    for share in PROBES if elimination.order.size else ():
        removed = min(max(1, round(share * full[index])), len(elimination.order))
        widths = [*full[:index], full[index] - removed, *full[index + 1 :]]
        _, model = fitter.plan(widths, sequential=False)
        probes[removed] = hunter.measure(model).value ** 2
    least = full[index] - len(elimination.order)
    multiple = width_multiple(fitter.network, fitter.view, fitter.spaces[index])
    return budget.SpaceCurve(full[index], least, elimination.cost, tuple(probes.items()), multiple)


def width_multiple(network: Network, view: ChannelView, space: ChannelSpace) -> int:
    """What the width of a space should be a multiple of, for the sake of the ops that write and read it."""
    around = [network.nodes[view.linear[i].weight.node] for i in (*space.writers, *space.readers)]
    rules = [ops.find(n.domain, n.op, n.opset) for n in around]
    return math.lcm(*(rule.multiple for rule in rules if rule is not None))


def choose(
    path: Sequence[budget.Point],
    fitter: Fitter,
    hunter: Judge,
    goal: Goal,
    wanted: float,
    measuring: Callable[[], None],
) -> int:
    """The stop on the path that the goal asks for: the furthest within the tolerance, or the first small enough.

    Args:
        path: as from `find_path`.
        fitter: makes the networks.
        hunter: measures them; its upper confidence bound has to meet the tolerance.
        goal: tolerance, size, or both; a size out of reach gives the smallest that is in reach.
        wanted: parameters to stay within if a size is asked for.
        measuring: called before each measurement.
    """

    def measure(at: int) -> float:
        measuring()
        _, model = fitter.plan(path[at].widths, sequential=fitter.light)
        return hunter.measure(model).upper(CONFIDENCE, goal.seed)

    last = len(path) - 1
    reachable = last if goal.tolerance is None else budget.search(path, measure, goal.tolerance)
    if goal.keep is None:
        return reachable
    at = next((i for i, p in enumerate(path) if p.parameters <= wanted), last)
    # The path leaves out biases that the refit adds.
    while 0 < at < reachable and _parameters(fitter, path[at]) > wanted:
        at += 1
    return min(at, reachable)


def _parameters(fitter: Fitter, stop: budget.Point) -> int:
    _, model = fitter.plan(stop.widths, sequential=False)
    return count_parameters(model)
