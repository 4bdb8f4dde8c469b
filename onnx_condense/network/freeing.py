"""Writing a network in another form, but only in places where channels can go then that had to stay."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from onnx_condense.network.model import Network
from onnx_condense.plan import IntArray

Labels = Callable[[Network], Mapping[str, IntArray]]
"""The labels of the channels of every tensor of a network; 0 is what has to stay."""

Place = TypeVar("Place")


def free(labels: IntArray | None) -> bool:
    """Whether some of several channels along the last axis can go."""
    return labels is not None and labels.ndim > 0 and labels.shape[-1] > 1 and bool(labels.any())


def held(
    network: Network, places: Sequence[Place], names: Callable[[Place], Sequence[str]], labels: Labels
) -> list[Place]:
    """The places of which no tensor, by name, is free as the network is."""
    before = labels(network) if places else {}
    return [place for place in places if not any(free(before.get(name)) for name in names(place))]


def freeing(
    network: Network,
    places: Sequence[Place],
    write: Callable[[Sequence[Place]], tuple[Network, Sequence[Sequence[str]]]],
    labels: Labels,
) -> Network:
    """A network written in another form at as many places as that frees channels at.

    Args:
        network: as it is.
        places: where it could be written so.
        write: does it at some of them, and tells for each the tensors that are to be free then.
        labels: tells which channels can go.

    Returns:
        `network` itself where that frees none.
    """
    while places:
        found, names = write(places)
        after = labels(found)
        freed = [place for place, own in zip(places, names, strict=True) if all(free(after.get(n)) for n in own)]
        if len(freed) == len(places):
            return found
        places = freed
    return network
