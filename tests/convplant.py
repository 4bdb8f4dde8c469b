"""Planted redundancy in the networks of `convnets`.

As in `builders`: planting replicates the channels of all hidden spaces at once and in random order, splits their
outgoing columns by random weights that sum to 1 for every output and tap, scales or mirrors copies where activation,
pooling and padding allow, and adds dead channels and constant ones. The widths that must come back are known exactly:
those of the base, and one constant more where a reader sees zeros beside the activation.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt
from convnets import EPSILON, Act, Linear, Net, Space

Array = npt.NDArray[Any]
COPY, CONSTANT, ZERO, DEAD = range(4)


@dataclasses.dataclass(frozen=True)
class Planting:
    """How many copies of every channel, and how many dead, constant and zero channels in every space."""

    copies: int = 1
    dead: int = 0
    constant: int = 0
    zero: int = 0


@dataclasses.dataclass(frozen=True)
class _Units:
    """The channels of one widened space; readers see ratio * base + offset. All arrays [J], norm [4, J].

    kind: COPY, CONSTANT, ZERO or DEAD; base: which of the base's channels or constants it is.
    argument: factor on what the activation takes.
    """

    kind: Array
    base: Array
    argument: Array
    ratio: Array
    offset: Array
    norm: Array | None


def plant(rng: np.random.Generator, net: Net, planting: Planting) -> Net:
    """The same network with redundant channels in all spaces."""
    units = {name: _units(rng, space, planting) for name, space in net.spaces.items()}
    extra = planting.constant + planting.zero
    linears = {}
    for name, linear in net.linears.items():
        wide = linear
        if linear.source:
            weight = linear.weight
            more = rng.standard_normal((len(weight), extra, *weight.shape[2:])) / math.sqrt(weight[0].size)
            wide = dataclasses.replace(wide, weight=np.concatenate([weight, more], 1))
        if linear.target:
            wide = _with_rows(rng, wide, units[linear.target], net.spaces[linear.target].act)
        if linear.source:
            wide = _with_columns(rng, wide, units[linear.source])
        linears[name] = wide
    spaces = {
        name: dataclasses.replace(space, width=len(units[name].kind), norm=units[name].norm)
        for name, space in net.spaces.items()
    }
    return dataclasses.replace(net, linears=linears, spaces=spaces)


def expected(net: Net, planting: Planting) -> list[int]:
    """Widths that must be left of the planted network."""
    widths = []
    for name, space in net.spaces.items():
        writers = [v for v in net.linears.values() if v.target == name]
        spoken = any(v.bias is not None or v.norm is not None for v in writers)
        varied = spoken or space.norm is not None or not space.act.zero
        nonzero = (planting.constant > 0 and varied) or (
            planting.zero > 0 and not (space.act.zero or space.norm is not None)
        )
        widths.append(space.width + bool(space.zeros and nonzero))
    return widths


def _folded(norm: Array) -> tuple[Array, Array]:
    """A normalisation as factor and shift."""
    factor = norm[0] / np.sqrt(norm[3] + EPSILON)
    return factor, norm[1] - factor * norm[2]


def _unfolded(rng: np.random.Generator, factor: Array, shift: Array, plain: Array) -> Array:
    """A normalisation with that factor and shift; plain ones have mean 0."""
    mean, variance = rng.uniform(-1, 1, len(factor)), rng.uniform(0.5, 2, len(factor))
    mean = np.where(plain, 0.0, mean)
    return np.stack([factor * np.sqrt(variance + EPSILON), shift + factor * mean, mean, variance])


def _signs(rng: np.random.Generator, size: int) -> Array:
    return rng.choice([-1.0, 1.0], size)


def _units(rng: np.random.Generator, space: Space, planting: Planting) -> _Units:
    act, still = space.act, space.zeros or space.fixed
    counts = [space.width * planting.copies, planting.constant, planting.zero, planting.dead]
    constants = space.width + np.arange(planting.constant + planting.zero)
    order = rng.permutation(sum(counts))
    kind = np.repeat(np.arange(4), counts)[order]
    of = np.r_[np.repeat(np.arange(space.width), planting.copies), constants, np.zeros(planting.dead, np.int64)][order]
    argument = np.exp(rng.uniform(-1, 1, len(of))) if act.scales else np.ones(len(of))
    free = act.centre == 0 or not still or space.norm is not None
    if act.centre is not None and free and not space.maximum:
        argument *= _signs(rng, len(of))
    ratio = argument if act.scales else np.sign(argument)
    offset = (act.centre or 0.0) * (1 - np.sign(argument))
    norm = None
    if space.norm is not None:
        factor, shift = (v[np.where(kind == COPY, of, 0)] for v in _folded(space.norm))
        gain = rng.uniform(0.5, 1.5, len(of)) * (1.0 if space.maximum else _signs(rng, len(of)))
        ratio, offset = gain * ratio, gain * factor * offset - gain * ratio * shift
        own = -offset if still else rng.uniform(-1, 1, len(of))
        own = np.where(kind == ZERO, 0.0, np.where(kind == CONSTANT, rng.uniform(0.5, 1, len(of)), own))
        norm, offset = _unfolded(rng, gain * factor, own, kind == ZERO), offset + own
    copy = kind == COPY
    return _Units(kind, of, argument, np.where(copy, ratio, 1.0), np.where(copy, offset, 0.0), norm)


def _with_rows(rng: np.random.Generator, linear: Linear, units: _Units, act: Act) -> Linear:
    """Copies, constants and dead channels on the writing side."""
    kind, size = units.kind, len(units.kind)
    of = np.where(kind == COPY, units.base, 0)
    target = np.where(kind == ZERO, -rng.uniform(0.2, 1, size) if act.flat else 0.0, rng.uniform(0.2, 1, size))
    apart = rng.uniform(0.5, 1.5, size) * _signs(rng, size) if linear.norm is not None else units.argument
    weight = _times(linear.weight[of], apart)
    weight[(kind == CONSTANT) | (kind == ZERO)] = 0.0
    weight[kind == DEAD] = rng.standard_normal(weight[kind == DEAD].shape)
    bias, norm = linear.bias, None
    level, copy = target, kind == COPY
    if linear.norm is not None:
        plain = kind == ZERO
        away = np.where(plain, 0.0, rng.uniform(-1, 1, size)) * (linear.bias is not None)
        level = away
        factor, shift = (v[of] for v in _folded(linear.norm))
        factor = units.argument * factor / apart
        shift = np.where(copy, units.argument * shift, target) - factor * away
        norm = _unfolded(rng, factor, shift, plain)
    if bias is not None:
        bias = np.where(copy, bias[of] * apart + (level if norm is not None else 0.0), level)
    return dataclasses.replace(linear, weight=weight, bias=bias, norm=norm)


def _times(rows: Array, factors: Array) -> Array:
    return rows * factors.reshape(-1, *(1,) * (rows.ndim - 1))


def _with_columns(rng: np.random.Generator, linear: Linear, units: _Units) -> Linear:
    """Columns split among copies for every output and tap; the bias takes what their offsets add."""
    split = rng.exponential(size=(len(linear.weight), len(units.kind), *linear.weight.shape[2:])) + 0.1
    split[:, units.kind == DEAD] = 0.0
    total = np.zeros(linear.weight.shape)
    for i, base in enumerate(units.base):
        total[:, base] += split[:, i]
    share = split / np.where(total[:, units.base] == 0, 1.0, total[:, units.base])
    columns = np.moveaxis(linear.weight[:, units.base] * share, 1, 0)
    weight = np.moveaxis(_times(columns, 1 / units.ratio), 0, 1)
    added = np.einsum("oj...,j->o", weight.reshape(*weight.shape[:2], -1).sum(2), units.offset)
    bias = linear.bias if linear.bias is None or not units.offset.any() else linear.bias - added
    return dataclasses.replace(linear, weight=weight, bias=bias)
