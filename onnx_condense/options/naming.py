"""Which channel spaces a pattern of the user means: by the names of what writes them, of its weights, or their own."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterator

from onnx_condense.errors import UsageError
from onnx_condense.network.model import Network
from onnx_condense.plan import ChannelSpace, ChannelView

# Of several reasons why a space stays so many are told.
TOLD = 2


class Layers:
    """The channel spaces of one network, by the names that users know.

    Args:
        network, view: what is asked about.
    """

    def __init__(self, network: Network, view: ChannelView) -> None:
        self._network, self._view = network, view
        self._names = {s.name: frozenset(self._names_of(s)) for s in view.spaces}
        self._spaces = {s.name: s for s in view.spaces}

    def writers(self, space: ChannelSpace) -> tuple[str, ...]:
        """The nodes that write a space, as reports name them."""
        nodes = [self._network.nodes[self._view.linear[w].weight.node] for w in space.writers]
        return tuple(node.name or node.result for node in nodes)

    def matched(self, pattern: str, option: str) -> tuple[str, ...]:
        """Names of the spaces that a pattern matches, in the network's order.

        Raises:
            UsageError: there is none; the message names what is there.
        """
        # Names may hold brackets, which mean something else in patterns.
        found = [s for s, own in self._names.items() if pattern in own or _any_like(own, pattern)]
        if not found and pattern != "*":
            raise UsageError(option, self._unmatched(pattern, option))
        return tuple(found)

    def why_fixed(self, pattern: str, option: str) -> str:
        """What to say of a pattern that matches only spaces that stay as they are; "" for another one.

        Raises:
            UsageError: as `matched`.
        """
        found = [self._spaces[name] for name in self.matched(pattern, option)]
        if not found or any(s.reducible for s in found):
            return ""
        names = ", ".join(f"{s.name}: {self._reason(s)}" for s in found[:TOLD])
        more = f" and {len(found) - TOLD} more" if len(found) > TOLD else ""
        return f"--{option}: {pattern!r} matches only layers that stay as they are ({names}{more})"

    def check_free(self, pattern: str, option: str) -> None:
        """See that a pattern matches something that can be narrowed.

        Raises:
            UsageError: it does not.
        """
        if text := self.why_fixed(pattern, option):
            raise UsageError(option, text)

    def _reason(self, space: ChannelSpace) -> str:
        reasons = dict.fromkeys(r.reason for r in self._view.refusals if r.space == space.name)
        if space.pinned.all() and reasons:
            return "; ".join(list(reasons)[:TOLD])
        return "a single channel" if space.width == 1 else "nothing reads it that could take over"

    def _names_of(self, space: ChannelSpace) -> Iterator[str]:
        yield space.name
        for index in space.writers:
            operand = self._view.linear[index].weight
            node = self._network.nodes[operand.node]
            yield node.name or node.result
            yield from self._stored(node.inputs[operand.position])

    def _stored(self, name: str) -> Iterator[str]:
        """A weight as the op knows it, and what it is made of, down to what is stored."""
        while True:
            root = self._network.root(name)
            yield from filter(None, (name, root))
            sources = self._network.sources(root)
            if not sources:
                return
            name = sources[0]

    def _unmatched(self, pattern: str, option: str) -> str:
        names = sorted(set().union(*self._names.values()))
        near = difflib.get_close_matches(pattern, names, cutoff=0.4) or names[:3]
        hint = f"; there are {', '.join(near)}" if near else "; there is no layer to condense"
        return f"--{option}: {pattern!r} matches no node that writes channels, no weight of one and no space{hint}"


def _any_like(names: frozenset[str], pattern: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for name in names)
