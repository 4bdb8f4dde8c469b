"""Random networks over images without redundancy.

A `Dag` is drawn from a seed: convolutions of all kinds, normalisation, sums, gates, joins, cuts, shuffles, pools and
heads, with generic weights, so that nothing in it is redundant. Which of its channels have to go together is
worked out here on its own. `dag_files` writes it down: as it is, with channels in other places, or with copies of them.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
INPUT = 0
SCALED = ("Relu", "Relu", "LeakyRelu", "Abs")
RIGID = ("Sigmoid", "Tanh", "Gelu", "HardSwish", "Clip", "Elu", "Softplus")
WIDTHS = (2, 3, 4, 4, 5, 6)
POOLS = ("MaxPool", "AveragePool", "AveragePool")
LARGEST, WIDEST = 12, 16


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Labels of its channels, in order; height and width. stirred: channels of several groups take turns."""

    labels: tuple[int, ...]
    size: tuple[int, int]
    stirred: int = 0


@dataclasses.dataclass(frozen=True)
class Step:
    """One op, or a few that go together; weights as in the file, float64."""

    op: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    weights: Mapping[str, Array]
    attributes: Mapping[str, Any]


class Dag:
    """Steps over tensors 0, 1, ...; tensor 0 is the input."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.steps: list[Step] = []
        self.tensors = [Tensor((INPUT,) * 3, (6, 5))]
        self.read: set[int] = set()
        self.ends: list[int] = []
        self.rigid: set[int] = set()
        self.fixed: set[int] = {INPUT}
        self._parent = [INPUT]
        self._grow()

    # ---- labels ----

    def root(self, label: int) -> int:
        """The label that stands for all that are tied to this one."""
        while self._parent[label] != label:
            label = self._parent[label]
        return label

    def labels(self, tensor: int) -> list[int]:
        """Resolved labels of a tensor."""
        return [self.root(label) for label in self.tensors[tensor].labels]

    def marked(self, marks: set[int]) -> set[int]:
        """Resolved labels that are tied to one of the marked ones."""
        return {self.root(label) for label in marks}

    def _fresh(self, count: int) -> tuple[int, ...]:
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        return tuple(range(start, start + count))

    def _tie(self, *lines: Sequence[int]) -> None:
        for a, b in ((a, b) for line in lines[1:] for a, b in zip(lines[0], line, strict=True)):
            low, high = sorted((self.root(a), self.root(b)))
            self._parent[high] = low

    # ---- growing ----

    def pick(self, options: Sequence[Any]) -> Any:
        """One of the options."""
        return options[int(self.rng.integers(len(options)))]

    def coin(self, chance: float) -> bool:
        """True with the given chance."""
        return bool(self.rng.random() < chance)

    def add(
        self, op: str, inputs: Sequence[int], results: Sequence[Tensor], weights: Any = (), **attributes: Any
    ) -> int:
        """Append a step; the number of its first result."""
        outputs = tuple(range(len(self.tensors), len(self.tensors) + len(results)))
        self.tensors += results
        self.read.update(inputs)
        self.steps.append(Step(op, tuple(inputs), outputs, dict(weights), attributes))
        return outputs[0]

    def _grow(self) -> None:
        self.convolve(0)
        moves: Sequence[tuple[Callable[[int], int | None], float]] = (
            (self.convolve, 3), (self.bend, 3), (self.activate, 3), (self.filter, 1.5), (self.normalise, 1.5),
            (self.sum, 2), (self.gate, 1.5), (self.look, 0.7), (self.join, 2), (self.split, 1.5), (self.slice, 1),
            (self.gather, 1), (self.shuffle, 1.5), (self.pool, 1.5), (self.resize, 0.7), (self.to_pixels, 0.7),
            (self.to_channels, 0.5), (self.transposed, 0.8), (self.last, 0.8),
        )  # fmt: skip
        chances = np.array([chance for _, chance in moves])
        for _ in range(int(self.rng.integers(3, 14))):
            x = int(self.pick([y for y in range(1, len(self.tensors)) if self._several(y)][-4:]))
            moves[int(self.rng.choice(len(moves), p=chances / chances.sum()))][0](x)
        for x in range(1, len(self.tensors)):
            if x not in self.read:
                self.end(x)
        equal: set[int] = set()
        for step in self.steps:
            if step.op == "Conv" and step.attributes["groups"] == 1 and "scale" not in step.weights:
                self._trap(step, equal)

    def _trap(self, step: Step, equal: set[int]) -> None:
        """Make one row a multiple of another where what follows still tells them apart."""
        tensor = step.outputs[0]
        labels, readers = self.labels(tensor), [s for s in self.steps if tensor in s.inputs]
        if len(labels) < 3:
            return
        i, j = self.rng.permutation(len(labels))[:2].tolist()
        ops = {s.op for s in readers}
        others = {t for s in readers for t in s.inputs} - {tensor}
        factor = 0.0
        if ops & {"Relu", "LeakyRelu", "PRelu"}:
            factor = -1.0
        elif ops & set(RIGID):
            factor = 2.0
        elif [s.op for s in readers] == ["Add"] and not others & equal and others:
            equal.add(tensor)
            factor = 1.0
        if factor and labels[i] != labels[j]:
            for weight in step.weights.values():
                weight[j] = factor * weight[i]

    def _several(self, x: int) -> bool:
        """Of one channel all 1 x 1 filters are multiples."""
        return len(self.tensors[x].labels) > 1

    def _normal(self, *shape: int) -> Array:
        weight: Array = self.rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:], dtype=int))
        return weight

    def _norm(self, count: int) -> dict[str, Array]:
        rng = self.rng
        signs = rng.choice([-1.0, 1.0], count)
        return {
            "scale": rng.uniform(0.5, 1.5, count) * signs,
            "shift": rng.standard_normal(count),
            "mean": rng.standard_normal(count),
            "variance": rng.uniform(0.5, 2, count),
        }

    def convolve(self, x: int, out: int = 0, size: int = 0) -> int:
        """A convolution: now and then in groups, or normalised, or with a kernel of 1 x 1."""
        tensor = self.tensors[x]
        channels = len(tensor.labels)
        taps, out = size or int(self.pick([1, 3, 3])), out or int(self.pick(WIDTHS))
        groups = 1
        divisors = [g for g in (2, 3, 4) if channels % g == 0 and channels > g and x]
        if divisors and not size and self.coin(0.2):
            groups = int(self.pick(divisors))
            out = groups * int(self.pick([1, 2, 3]))
            parts = np.array(tensor.labels).reshape(groups, -1).tolist()
            self._tie(*parts)
            if tensor.stirred and (channels // groups) % tensor.stirred:
                self.fixed.update(tensor.labels)
        pads = int(taps == 3 and (min(tensor.size) < 3 or self.coin(0.6)))
        weights = {"weight": self._normal(out, channels // groups, taps, taps)}
        if self.coin(0.7):
            weights["bias"] = self.rng.standard_normal(out)
        if self.coin(0.25):
            weights |= self._norm(out)
        grown = (tensor.size[0] + 2 * pads - taps + 1, tensor.size[1] + 2 * pads - taps + 1)
        rows = self._fresh(out // groups) * groups
        return self.add("Conv", [x], [Tensor(rows, grown)], weights, groups=groups, pads=[pads] * 4)

    def bend(self, x: int) -> int:
        """A convolution and an activation right behind it."""
        return self.activate(self.convolve(x))

    def transposed(self, x: int) -> int | None:
        """A transposed convolution."""
        tensor = self.tensors[x]
        if max(tensor.size) > LARGEST // 2:
            return None
        out = int(self.pick(WIDTHS))
        weights = {"weight": self._normal(len(tensor.labels), out, 2, 2), "bias": self.rng.standard_normal(out)}
        stride = int(self.pick([1, 2]))
        grown = ((tensor.size[0] - 1) * stride + 2, (tensor.size[1] - 1) * stride + 2)
        return self.add("ConvTranspose", [x], [Tensor(self._fresh(out), grown)], weights, stride=stride)

    def last(self, x: int) -> int:
        """A product over the last axis, where a Transpose brings the channels."""
        tensor, out = self.tensors[x], int(self.pick(WIDTHS))
        weights = {"weight": self._normal(out, len(tensor.labels))}
        return self.add("MatMul", [x], [Tensor(self._fresh(out), tensor.size)], weights)

    def activate(self, x: int) -> int:
        """An activation; most let factors through."""
        tensor = self.tensors[x]
        weights: dict[str, Array] = {}
        op = str(self.pick(SCALED if self.coin(0.7) else RIGID))
        if self.coin(0.1):
            op, weights = "PRelu", {"slope": self.rng.uniform(0.1, 0.9, len(tensor.labels))}
        if op in RIGID:
            self.rigid.update(tensor.labels)
        return self.add(op, [x], [tensor], weights)

    def filter(self, x: int) -> int | None:
        """A depthwise convolution."""
        tensor = self.tensors[x]
        if len(tensor.labels) < 2:
            return None
        weights = {"kernel": self._normal(len(tensor.labels), 1, 3, 3)}
        if self.coin(0.7):
            weights["bias"] = self.rng.standard_normal(len(tensor.labels))
        return self.add("Depthwise", [x], [tensor], weights)

    def normalise(self, x: int) -> int:
        """By stored statistics, or by those of each channel."""
        tensor = self.tensors[x]
        weights = self._norm(len(tensor.labels))
        if self.coin(0.7) or np.prod(tensor.size) < 4:
            return self.add("BatchNormalization", [x], [tensor], weights)
        self.rigid.update(tensor.labels)
        weights = {name: weights[name] for name in ("scale", "shift")}
        return self.add("InstanceNormalization", [x], [tensor], weights)

    def sum(self, x: int) -> int | None:
        """With a tensor that is there or a new one."""
        tensor = self.tensors[x]
        same = [y for y, t in enumerate(self.tensors) if y not in (0, x) and t.size == tensor.size]
        same = [y for y in same if len(self.tensors[y].labels) == len(tensor.labels)]
        if same and self.coin(0.6):
            other = int(self.pick(same))
        else:
            like = [y for y, t in enumerate(self.tensors) if t.size == tensor.size and self._several(y)]
            other = self.convolve(int(self.pick(like)), len(tensor.labels), 1)
        self._unite(x, other)
        return self.add("Add", [x, other] if self.coin(0.5) else [other, x], [tensor])

    def _unite(self, *tensors: int) -> None:
        self._tie(*(self.tensors[x].labels for x in tensors))
        if any(self.tensors[x].stirred for x in tensors):
            self.fixed.update(label for x in tensors for label in self.tensors[x].labels)

    def gate(self, x: int) -> int:
        """Squeeze and excitation."""
        tensor = self.tensors[x]
        mean = self.add("GlobalAveragePool", [x], [dataclasses.replace(tensor, size=(1, 1))])
        inner = self.convolve(mean, int(self.pick([2, 3])), 1)
        inner = self.add("Relu", [inner], [self.tensors[inner]])
        outer = self.convolve(inner, len(tensor.labels), 1)
        outer = self.add("Sigmoid", [outer], [self.tensors[outer]])
        self._unite(x, outer)
        self.rigid.update(tensor.labels)
        return self.add("Mul", [x, outer], [tensor])

    def look(self, x: int) -> int:
        """Every position times a number of its own: an image of one channel, which stays."""
        tensor = self.tensors[x]
        image = self.convolve(x, 1, 1)
        self.fixed.update(self.tensors[image].labels)
        image = self.add("Sigmoid", [image], [self.tensors[image]])
        self.rigid.update(tensor.labels)
        return self.add("Mul", [x, image], [tensor])

    def join(self, x: int) -> int | None:
        """Two or three of one size side by side."""
        like = [y for y, t in enumerate(self.tensors) if t.size == self.tensors[x].size]
        parts = [x, *(int(self.pick(like)) for _ in range(int(self.pick([1, 1, 2]))))]
        labels = tuple(label for y in parts for label in self.tensors[y].labels)
        if len(labels) > WIDEST:
            return None
        stirred = WIDEST * any(self.tensors[y].stirred for y in parts)
        return self.add("Concat", parts, [Tensor(labels, self.tensors[x].size, stirred)])

    def _whole(self, x: int, least: int) -> bool:
        tensor = self.tensors[x]
        return not tensor.stirred and len(tensor.labels) >= least and len(set(self.labels(x))) == len(tensor.labels)

    def split(self, x: int) -> int | None:
        """Into two or three parts."""
        if not self._whole(x, 4):
            return None
        size = len(self.tensors[x].labels)
        cuts = [2, 4] if size > 5 and self.coin(0.5) else [int(self.rng.integers(2, size - 1))]
        ends = list(itertools.pairwise((0, *cuts, size)))
        parts = [dataclasses.replace(self.tensors[x], labels=self.tensors[x].labels[a:b]) for a, b in ends]
        return self.add("Split", [x], parts, places=[range(a, b) for a, b in ends])

    def slice(self, x: int) -> int | None:
        """What is cut off is read elsewhere."""
        if not self._whole(x, 3):
            return None
        size = len(self.tensors[x].labels)
        start = int(self.rng.integers(0, size - 1))
        stop = int(self.rng.integers(start + 2, size + 1))
        self.convolve(x, 2, 1)
        part = dataclasses.replace(self.tensors[x], labels=self.tensors[x].labels[start:stop])
        return self.add("Slice", [x], [part], places=[range(start, stop)], backwards=self.coin(0.3))

    def gather(self, x: int) -> int | None:
        """Some of the channels in another order."""
        if not self._whole(x, 3):
            return None
        size = len(self.tensors[x].labels)
        picks = self.rng.permutation(size)[: int(self.rng.integers(2, size + 1))].tolist()
        self.convolve(x, 2, 1)
        part = dataclasses.replace(self.tensors[x], labels=tuple(self.tensors[x].labels[i] for i in picks))
        return self.add("Gather", [x], [part], places=[picks])

    def shuffle(self, x: int) -> int | None:
        """Channels of g groups take turns."""
        tensor = self.tensors[x]
        groups = [g for g in (2, 3) if len(tensor.labels) % g == 0 and len(tensor.labels) > g]
        if not groups or tensor.stirred or INPUT in tensor.labels:
            return None
        g = int(self.pick(groups))
        parts = np.array(tensor.labels).reshape(g, -1)
        self._tie(*parts.tolist())
        result = Tensor(tuple(parts.T.reshape(-1).tolist()), tensor.size, g)
        return self.add("Shuffle", [x], [result], groups=g, open=self.coin(0.5))

    def pool(self, x: int) -> int | None:
        """A pool of any kind."""
        tensor, op = self.tensors[x], str(self.pick(POOLS))
        if min(tensor.size) < 2:
            return None
        pads, counted = int(self.coin(0.3)), int(self.coin(0.5))
        grown = (tensor.size[0] + 2 * pads - 1, tensor.size[1] + 2 * pads - 1)
        result = dataclasses.replace(tensor, size=grown)
        return self.add(op, [x], [result], pads=[pads] * 4, counted=counted)

    def resize(self, x: int) -> int | None:
        """Twice as large."""
        tensor = self.tensors[x]
        if max(tensor.size) > LARGEST // 2:
            return None
        grown = dataclasses.replace(tensor, size=(2 * tensor.size[0], 2 * tensor.size[1]))
        return self.add("Resize", [x], [grown], sizes=self.coin(0.5))

    def to_pixels(self, x: int) -> int | None:
        """DepthToSpace behind a convolution with 4 times as many channels."""
        tensor, out = self.tensors[x], int(self.pick([2, 3]))
        if max(tensor.size) > LARGEST // 2:
            return None
        x = self.convolve(x, 4 * out, 1)
        parts = np.array(self.tensors[x].labels).reshape(4, -1).tolist()
        self._tie(*parts)
        grown = (2 * tensor.size[0], 2 * tensor.size[1])
        return self.add("DepthToSpace", [x], [Tensor(tuple(parts[0]), grown)])

    def to_channels(self, x: int) -> int | None:
        """SpaceToDepth."""
        tensor = self.tensors[x]
        if tensor.size[0] % 2 or tensor.size[1] % 2 or 4 * len(tensor.labels) > WIDEST:
            return None
        shrunk = (tensor.size[0] // 2, tensor.size[1] // 2)
        return self.add("SpaceToDepth", [x], [Tensor(tensor.labels * 4, shrunk, tensor.stirred)])

    def end(self, x: int) -> None:
        """A head for what nothing reads: an image, or features with or without a hidden layer."""
        kind = str(self.pick(["image", "mean", "mean", "flat", "flat", "as is"]))
        if kind == "as is":
            self.fixed.update(self.tensors[x].labels)
            self.ends.append(x)
            return
        if kind == "image":
            y = self.convolve(x, 2, 1)
            self.fixed.update(self.tensors[y].labels)
            self.ends.append(y)
            return
        tensor = self.tensors[x]
        if kind == "mean":
            x = self.add("GlobalAveragePool", [x], [dataclasses.replace(tensor, size=(1, 1))])
        x = self.add("Flatten", [x], [self.tensors[x]])
        for out in (4, 2) if self.coin(0.5) else (2,):
            taps = int(np.prod(self.tensors[x].size))
            weights = {"weight": self._normal(out, len(self.tensors[x].labels), taps)}
            weights["bias"] = self.rng.standard_normal(out)
            x = self.add("Gemm", [x], [Tensor(self._fresh(out), (1, 1))], weights)
            if out == 4:
                x = self.add("Relu", [x], [self.tensors[x]])
        self.fixed.update(self.tensors[x].labels)
        self.ends.append(x)
