"""What has to stay of one network because the user wants it so (`control`), found by name and told by reasons.

A space is named by what writes it. An excluded one keeps all of its channels; what it reads may still be narrowed, so
its columns may go and its weights may change.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from onnx_condense.errors import UsageError
from onnx_condense.network.model import Network
from onnx_condense.options.control import Control
from onnx_condense.options.naming import Layers
from onnx_condense.plan import ChannelSpace, ChannelView
from onnx_condense.select.obs import Elimination
from onnx_condense.spaces import find_spaces


@dataclasses.dataclass(frozen=True)
class Held:
    """What has to stay of one network, whatever steps change its names: by index of the linear uses that write it.

    reasons: why all channels of a space stay, one entry per writer. floors: how many stay of other spaces.
    notes: patterns that change nothing, in words.
    """

    reasons: Mapping[int, str] = dataclasses.field(default_factory=dict)
    floors: Mapping[int, int] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def view(self, network: Network, *, named: bool = False) -> ChannelView:
        """The channels of the network, or of one that exact steps made of it, with all that is held pinned."""
        return find_spaces(network, named=named, held=self.reasons)

    def least(self, view: ChannelView) -> Mapping[str, int]:
        """By space, how many channels stay at least, where that is more than none."""
        found = {s.name: max((self.floors.get(w, 0) for w in s.writers), default=0) for s in view.spaces}
        return {name: floor for name, floor in found.items() if floor}

    def cut(
        self, view: ChannelView, spaces: Sequence[ChannelSpace], eliminations: Sequence[Elimination]
    ) -> tuple[Elimination, ...]:
        """Eliminations, one per space, that end where the floor of the space is reached."""
        least = self.least(view)
        pairs = zip(spaces, eliminations, strict=True)
        return tuple(_shortened(e, s.width - least.get(s.name, 0)) for s, e in pairs)


NOTHING = Held()


def _shortened(elimination: Elimination, most: int) -> Elimination:
    most = max(most, 0)
    return Elimination(elimination.order[:most], elimination.cost[: most + 1])


def held_by(network: Network, control: Control) -> Held:
    """What a control holds of a network.

    Raises:
        UsageError: a pattern matches nothing, or what is included can't be narrowed.
    """
    if not control.given():
        return NOTHING
    view = find_spaces(network)
    layers = Layers(network, view)
    for pattern in control.include:
        layers.check_free(pattern, "include")
    notes = [text for pattern in control.exclude if (text := layers.why_fixed(pattern, "exclude"))]
    excluded = {name: pattern for pattern in control.exclude for name in layers.matched(pattern, "exclude")}
    included = {name for pattern in control.include for name in layers.matched(pattern, "include")}
    _check_both(control, layers, excluded)
    reasons, floors = {}, {}
    for space in view.spaces:
        if not space.reducible:
            continue
        reason = _reason(control, space, excluded.get(space.name), included=space.name in included)
        for writer in space.writers:
            if reason:
                reasons[writer] = reason
            elif floor := control.least(space.width):
                floors[writer] = floor
    return Held(reasons, floors, tuple(notes))


def _check_both(control: Control, layers: Layers, excluded: Mapping[str, str]) -> None:
    """Raises: UsageError: a pattern includes nothing that is not excluded."""
    for pattern in control.include:
        names = layers.matched(pattern, "include")
        if names and excluded.keys() >= set(names):
            text = f"--include {pattern!r}: all that it matches is excluded by --exclude {excluded[names[0]]!r}"
            raise UsageError("include", text)


def _reason(control: Control, space: ChannelSpace, excluded: str | None, *, included: bool) -> str:
    """Why a space is left alone; "" if it is not."""
    if excluded is not None:
        return f"excluded by --exclude {excluded!r}"
    if control.include and not included:
        return f"not matched by --include {', '.join(map(repr, control.include))}"
    if control.least(space.width) < space.width:
        return ""
    return f"held at {space.width} channels by {' and '.join(_numbers(control, space.width))}"


def _numbers(control: Control, width: int) -> Iterator[str]:
    """The options that each hold all of so many channels."""
    if control.min_width is not None and control.min_width >= width:
        yield f"--min-width {control.min_width}"
    if control.max_cut is not None and not control.most(width):
        yield f"--max-cut {control.max_cut:g}"
