"""Which widths spaces may stop at: what the ops around them like, or multiples that were asked for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

from onnx_condense import ops
from onnx_condense.network.model import Network
from onnx_condense.plan import ChannelSpace, ChannelView, Plan

Kind = tuple[str, ...]
"""What is written and read by one set of ops, in alphabetical order."""


def kind_of(network: Network, view: ChannelView, space: ChannelSpace) -> Kind:
    """The kind of layers that a space lies between."""
    uses = (view.linear[i].weight.node for i in (*space.writers, *space.readers))
    return tuple(sorted({network.nodes[node].op for node in uses}))


@dataclasses.dataclass(frozen=True)
class Grid:
    """The widths that spaces may stop at.

    asked: every narrowed width is a multiple of it, of spaces that are at least so wide; None: where the ops around a
    space like multiples it stops at these, as long as they will do. measured: such multiples, by kind of layers.
    """

    asked: int | None = None
    measured: Mapping[Kind, int] = dataclasses.field(default_factory=dict)

    @property
    def strict(self) -> bool:
        """Whether other widths are out of the question."""
        return self.asked is not None

    def multiple(self, network: Network, view: ChannelView, space: ChannelSpace) -> int:
        """What the width of a space should be a multiple of."""
        if self.asked is not None:
            return self.asked if space.width >= self.asked else 1
        if (here := self.measured.get(kind_of(network, view, space))) is not None:
            return here if space.width >= here else 1
        around = [network.nodes[view.linear[i].weight.node] for i in (*space.writers, *space.readers)]
        rules = [ops.find(n.domain, n.op, n.opset) for n in around]
        return math.lcm(*(rule.multiple for rule in rules if rule is not None))

    def least(self, least: int, multiple: int, width: int) -> int:
        """How narrow a space may get that can lose all but so many channels; its width: not at all."""
        if not self.strict:
            return least
        return min(max(multiple, least + -least % multiple), width)

    def exact(self, network: Network, view: ChannelView, plan: Callable[[Mapping[str, int]], Plan]) -> Plan:
        """Exact steps that leave such widths.

        plan: what the weights prove, by what the width of each space should be a multiple of if there are enough
            redundant channels. Where there are not, and no other width will do, all of them stay.
        """
        multiples = {s.name: self.multiple(network, view, s) for s in view.spaces}
        found = plan(multiples)
        while self.strict and (off := [s for s in found.selections if len(s.keep) % multiples[s.space]]):
            widths = {s.name: s.width for s in view.spaces}
            multiples |= {s.space: widths[s.space] for s in off}
            found = plan(multiples)
        return found


WELL = Grid()
"""What runs well, by what is known of ops."""
