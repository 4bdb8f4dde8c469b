"""Lowerings of convolutions, pooling and normalization.

Padding, windows and their sizes: https://onnx.ai/onnx/operators/ (Conv, ConvTranspose, MaxPool, AveragePool).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch.nn import functional as fun

from onnx_condense.tune.step import RefusedError, Rule, Run, Step, Tensor

Pairs = list[tuple[int, int]]
PLANE = 2

_CONV: Mapping[int, Callable[..., Tensor]] = {1: fun.conv1d, 2: fun.conv2d, 3: fun.conv3d}
_TRANSPOSED: Mapping[int, Callable[..., Tensor]] = {
    1: fun.conv_transpose1d,
    2: fun.conv_transpose2d,
    3: fun.conv_transpose3d,
}
_MAXIMUM: Mapping[int, Callable[..., Tensor]] = {1: fun.max_pool1d, 2: fun.max_pool2d, 3: fun.max_pool3d}
_AVERAGE: Mapping[int, Callable[..., Tensor]] = {1: fun.avg_pool1d, 2: fun.avg_pool2d, 3: fun.avg_pool3d}


@dataclasses.dataclass(frozen=True)
class Window:
    """Where windows lie. strides, dilations: one per axis, or () for ones; pads: begins, then ends, or ()."""

    auto: str
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    ceil: bool = False

    def steps(self, axes: int) -> tuple[int, ...]:
        """Strides for so many axes."""
        return self.strides or (1,) * axes

    def gaps(self, axes: int) -> tuple[int, ...]:
        """Dilations for so many axes."""
        return self.dilations or (1,) * axes

    def pairs(self, sizes: Sequence[int], kernel: Sequence[int]) -> Pairs:
        """What is put before and behind each axis."""
        axes = len(sizes)
        if self.auto == "NOTSET":
            pads = self.pads or (0,) * (2 * axes)
            return list(zip(pads[:axes], pads[axes:], strict=True))
        if self.auto == "VALID":
            return [(0, 0)] * axes
        spans = self.spans(kernel)
        needed = [
            max((math.ceil(size / step) - 1) * step + span - size, 0)
            for size, step, span in zip(sizes, self.steps(axes), spans, strict=True)
        ]
        return [shared(total, upper=self.auto == "SAME_UPPER") for total in needed]

    def spans(self, kernel: Sequence[int]) -> list[int]:
        """What one window covers along each axis."""
        return [(k - 1) * gap + 1 for k, gap in zip(kernel, self.gaps(len(kernel)), strict=True)]

    def beyond(self, sizes: Sequence[int], kernel: Sequence[int], pairs: Pairs) -> list[int]:
        """How far the last window reaches behind the padding, where sizes are rounded up."""
        result = []
        steps, spans = self.steps(len(sizes)), self.spans(kernel)
        for size, step, span, (before, after) in zip(sizes, steps, spans, pairs, strict=True):
            count = math.ceil((size + before + after - span) / step) + 1
            # A window that would start behind the data is none.
            count -= (count - 1) * step >= size + before
            result.append(max((count - 1) * step + span - size - before - after, 0) if self.ceil else 0)
        return result


def shared(total: int, *, upper: bool) -> tuple[int, int]:
    """Padding in two halves; the larger one goes behind the data (upper) or before it."""
    less = total // 2
    return (less, total - less) if upper else (total - less, less)


def _window(step: Step, *, dilated: bool = True) -> Window:
    auto = step.get("auto_pad", "NOTSET")
    if auto not in {"NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"}:
        raise RefusedError(f"auto_pad = {auto}")
    for position in (0, 1):
        if (step.rank(position) or 3) not in {3, 4, 5} and step.node.op in {"Conv", "ConvTranspose"}:
            raise RefusedError(f"{step.rank(position)} axes")
    if (step.rank(0) or 3) not in {3, 4, 5}:
        raise RefusedError(f"{step.rank(0)} axes")
    strides, dilations, pads = (tuple(step.get(name) or ()) for name in ("strides", "dilations", "pads"))
    if not dilated and any(n != 1 for n in dilations):
        raise RefusedError("dilations")
    if auto.startswith("SAME") and any(n != 1 for n in dilations):
        raise RefusedError(f"dilations with auto_pad = {auto}, which ONNX Runtime does not take")
    return Window(auto, strides, dilations, pads, bool(step.get("ceil_mode", 0)))


def _around(x: Tensor, pairs: Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
    """The tensor with its last axes padded (or cut, where numbers are negative)."""
    flat = [n for pair in reversed(pairs) for n in pair]
    return fun.pad(x, flat, value=value) if any(flat) else x


def _conv(step: Step) -> Run:
    window, groups = _window(step), step.get("group", 1)
    step.get("kernel_shape")  # that of the weight

    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        axes = x.ndim - 2
        pairs = window.pairs(x.shape[2:], weight.shape[2:])
        even = all(before == after >= 0 for before, after in pairs)
        padding = [before for before, _ in pairs] if even else [0] * axes
        x = x if even else _around(x, pairs)
        if axes == PLANE and x.device.type == "cpu":
            # Channels last: depthwise convolutions, back and forth, take half the time, others as long as before.
            x, weight = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))
        return _CONV[axes](x, weight, bias, window.steps(axes), padding, window.gaps(axes), groups)

    return run


def _transposed(step: Step) -> Run:
    window, groups = _window(step), step.get("group", 1)
    wanted, extra = step.get("output_shape"), step.get("output_padding")
    step.get("kernel_shape")

    def pairs_of(full: Sequence[int], sizes: Sequence[int], kernel: Sequence[int]) -> Pairs:
        """What is cut off before and behind; full: sizes of the result with nothing cut off."""
        same = window.auto.startswith("SAME")
        if wanted is None and not same:
            return window.pairs(sizes, kernel)
        targets = wanted or [n * step for n, step in zip(sizes, window.steps(len(sizes)), strict=True)]
        totals = [n - target for n, target in zip(full, targets[-len(sizes) :], strict=True)]
        upper = window.auto == "SAME_UPPER"
        # More than there is to give: zeros behind, as far as a shape asks for them.
        return [shared(n, upper=upper) if n >= 0 else (0, n if wanted else 0) for n in totals]

    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        axes = x.ndim - 2
        more = extra or [0] * axes
        whole = _TRANSPOSED[axes](x, weight, None, window.steps(axes), groups=groups, dilation=window.gaps(axes))
        full = [n + plus for n, plus in zip(whole.shape[2:], more, strict=True)]
        cut = pairs_of(full, x.shape[2:], weight.shape[2:])
        result = _around(whole, [(-before, plus - after) for (before, after), plus in zip(cut, more, strict=True)])
        return result if bias is None else result + bias.reshape(-1, *[1] * axes)

    return run


def _max_pool(step: Step) -> Run:
    window, kernel = _window(step), tuple(step.get("kernel_shape"))
    step.get("storage_order")  # of the indices, which are refused

    def run(x: Tensor) -> Tensor:
        pairs = window.pairs(x.shape[2:], kernel)
        beyond = window.beyond(x.shape[2:], kernel, pairs)
        ends = [(before, after + more) for (before, after), more in zip(pairs, beyond, strict=True)]
        x = _around(x, ends, -math.inf)
        axes = len(kernel)
        return _MAXIMUM[axes](x, kernel, window.steps(axes), 0, window.gaps(axes))

    return run


def _average_pool(step: Step) -> Run:
    window, kernel = _window(step, dilated=False), tuple(step.get("kernel_shape"))
    count_padding = step.get("count_include_pad", 0)
    axes = len(kernel)

    def run(x: Tensor) -> Tensor:
        sizes = x.shape[2:]
        pairs = window.pairs(sizes, kernel)
        ends = [(0, more) for more in window.beyond(sizes, kernel, pairs)]
        result = _AVERAGE[axes](_around(_around(x, pairs), ends), kernel, window.steps(axes))
        if not any(n for pair in (*pairs, *ends) for n in pair):
            return result
        ones = torch.ones((1, 1, *sizes), dtype=x.dtype, device=x.device)
        counted = _around(_around(ones, pairs, float(count_padding)), ends)
        return result / _AVERAGE[axes](counted, kernel, window.steps(axes))

    return run


def _global(function: Callable[[Tensor, list[int]], Tensor]) -> Rule:
    def run(x: Tensor) -> Tensor:
        return function(x, list(range(2, x.ndim)))

    return Rule(lambda _: run)


def _mean(x: Tensor, axes: list[int]) -> Tensor:
    return x.mean(axes, keepdim=True)


def _largest(x: Tensor, axes: list[int]) -> Tensor:
    return x.amax(axes, keepdim=True)


def _along(values: Tensor, x: Tensor) -> Tensor:
    """Numbers per channel, to broadcast against [N, C, ...]."""
    return values.reshape(-1, *[1] * (x.ndim - 2))


def _batch_norm(step: Step) -> Run:
    epsilon = step.get("epsilon", 1e-5)
    step.get("momentum")
    for name, usual in (("training_mode", 0), ("spatial", 1)):
        step.only(name, usual)

    def run(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        return fun.batch_norm(x, mean, variance, scale, bias, training=False, eps=epsilon)

    return run


def _instance_norm(step: Step) -> Run:
    epsilon = step.get("epsilon", 1e-5)

    def run(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        return fun.layer_norm(x, x.shape[2:], eps=epsilon) * _along(scale, x) + _along(bias, x)

    return run


def _group_norm(step: Step) -> Run:
    epsilon, groups = step.get("epsilon", 1e-5), step.get("num_groups")
    step.only("stash_type", 1)

    def run(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        parts = x.reshape(x.shape[0], groups, -1)
        level = fun.layer_norm(parts, parts.shape[2:], eps=epsilon).reshape(x.shape)
        return level * _along(scale, x) + _along(bias, x)

    return run


def _layer_norm(step: Step) -> Run:
    epsilon, axis = step.get("epsilon", 1e-5), step.get("axis", -1)
    step.only("stash_type", 1)

    def run(x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
        shape = x.shape[axis:]
        if scale.shape == shape and (bias is None or bias.shape == shape):
            return fun.layer_norm(x, shape, scale, bias, epsilon)
        level = fun.layer_norm(x, shape, eps=epsilon) * scale
        return level if bias is None else level + bias

    return run


def _rms_norm(step: Step) -> Run:
    epsilon, axis = step.get("epsilon", 1e-5), step.get("axis", -1)
    step.only("stash_type", 1)

    def run(x: Tensor, scale: Tensor) -> Tensor:
        axes = list(range(axis % x.ndim, x.ndim))
        return x * torch.rsqrt((x * x).mean(axes, keepdim=True) + epsilon) * scale

    return run


_WEIGHT = frozenset({1, 2})

RULES: Mapping[str, Rule] = {
    "Conv": Rule(_conv, trains=_WEIGHT),
    "ConvTranspose": Rule(_transposed, trains=_WEIGHT),
    "MaxPool": Rule(_max_pool),
    "AveragePool": Rule(_average_pool),
    "GlobalAveragePool": _global(_mean),
    "GlobalMaxPool": _global(_largest),
    "BatchNormalization": Rule(_batch_norm, trains=_WEIGHT, fixed=frozenset({3, 4})),
    "InstanceNormalization": Rule(_instance_norm, trains=_WEIGHT),
    # Before that scale and bias belong to groups, and the checker takes no such network.
    "GroupNormalization": Rule(_group_norm, trains=_WEIGHT, since=21),
    "LayerNormalization": Rule(_layer_norm, trains=_WEIGHT),
    "RMSNormalization": Rule(_rms_norm, trains=frozenset({1})),
}
