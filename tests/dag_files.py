"""A `Dag` written down as a network: as it is, with its channels in other places, or with planted redundancy.

Channels that always follow one another form a run. A `Layout` replaces every run by units in some order: its own
channels, copies of them (with a factor of their own, where everything up to the readers lets factors through), and dead
channels that no reader has a weight for. Every op then does to units what it does to channels, so that tied
channels stay tied however they are joined, cut and shuffled.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from planted_dags import INPUT, Dag, Step

Array = npt.NDArray[Any]
DEAD, END = -1, -2


@dataclasses.dataclass(frozen=True)
class Units:
    """One tensor's channels in a layout: place of each in the base tensor (or DEAD) and its number.

    starts: where the run begins whose first channel has a place in the base tensor.
    """

    at: Array
    ids: Array
    starts: dict[int, int] = dataclasses.field(default_factory=dict)


class Layout:
    """What every run of channels becomes.

    kind: "plain", "moved" (another order) or "planted".
    """

    def __init__(self, dag: Dag, seed: int, kind: str) -> None:
        self.rng = np.random.default_rng(seed)
        self.dag, self.kind = dag, kind
        self.ratio: list[float] = []
        self._runs: dict[int, tuple[int, list[tuple[int, int]]]] = {}
        fixed, rigid = dag.marked(dag.fixed), dag.marked(dag.rigid)
        for run in runs(dag):
            free = fixed.isdisjoint(run)
            self._runs[run[0]] = (len(run), self._units(len(run), free=free, scaled=rigid.isdisjoint(run)))

    def _units(self, size: int, *, free: bool, scaled: bool) -> list[tuple[int, int]]:
        rng, members = self.rng, list(range(size))
        if free and self.kind == "planted":
            copies = rng.integers(1, 4, size)
            members = np.repeat(members, copies).tolist() + [DEAD] * int(rng.choice([0, 0, 1, 2]))
        if free and self.kind != "plain":
            members = [members[i] for i in rng.permutation(len(members))]
        units = []
        for member in members:
            units.append((member, len(self.ratio)))
            plain = not (free and scaled and self.kind == "planted") or rng.random() < 0.3
            self.ratio.append(1.0 if plain else float(np.exp(rng.uniform(-1, 1))))
        return units

    def laid_out(self, labels: Sequence[int]) -> Units:
        """The units of a line of resolved labels that consists of whole runs."""
        at: list[int] = []
        ids: list[int] = []
        starts: dict[int, int] = {}
        place = 0
        while place < len(labels):
            starts[place] = len(at)
            size, units = self._runs[labels[place]]
            at += [DEAD if member == DEAD else place + member for member, _ in units]
            ids += [number for _, number in units]
            place += size
        starts[place] = len(at)
        return Units(np.array(at), np.array(ids), starts)

    def factors(self, units: Units) -> Array:
        """By what each unit differs from its channel."""
        return np.array([self.ratio[i] for i in units.ids])


def runs(dag: Dag) -> list[tuple[int, ...]]:
    """Labels that follow one another wherever they occur, as long as possible."""
    after: dict[int, set[int]] = {}
    before: dict[int, set[int]] = {}
    for tensor, known in enumerate(dag.tensors):
        if not known.stirred:
            for a, b in itertools.pairwise([END, *dag.labels(tensor), END]):
                after.setdefault(a, set()).add(b)
                before.setdefault(b, set()).add(a)
    for step in dag.steps:
        groups = step.attributes.get("groups", 1)
        line = dag.labels(step.inputs[0])
        for a, b in ((line[i - 1], line[i]) for i in range(len(line) // groups, len(line), len(line) // groups)):
            after.setdefault(a, set()).add(END)
            before.setdefault(b, set()).add(END)
    glued = {a: next(iter(f)) for a, f in after.items() if len(f) == 1 and before[next(iter(f))] == {a}}
    glued = {a: b for a, b in glued.items() if END not in (a, b) and a != b}
    found = []
    for first in sorted(set(before) - {END} - set(glued.values())):
        run = [first]
        while run[-1] in glued:
            run.append(glued[run[-1]])
        found.append(tuple(run))
    return found


class File:
    """The nodes and constants of one dag in one layout."""

    def __init__(self, dag: Dag, layout: Layout) -> None:
        self.dag, self.layout, self.rng = dag, layout, layout.rng
        self.nodes: list[onnx.NodeProto] = []
        self.stored: dict[str, Array] = {}
        self.units = {0: layout.laid_out([INPUT] * 3)}
        for number, step in enumerate(dag.steps):
            kind: Callable[[Step, str], None] = getattr(self, f"_{step.op.lower()}", self._alone)
            kind(step, f"n{number}")

    def proto(self) -> onnx.ModelProto:
        """The network."""
        inputs = [helper.make_tensor_value_info("t0", TensorProto.FLOAT, ["N", 3, *self.dag.tensors[0].size])]
        shaped = ["N", None, None, None]
        flat = {s.outputs[0] for s in self.dag.steps if s.op in ("Gemm", "Flatten")}
        flat |= {s.outputs[0] for s in self.dag.steps if s.op == "Relu" and s.inputs[0] in flat}
        outputs = [
            helper.make_tensor_value_info(f"t{t}", TensorProto.FLOAT, shaped[: 2 if t in flat else 4])
            for t in self.dag.ends
        ]
        tensors = [numpy_helper.from_array(v, n) for n, v in self.stored.items()]
        graph = helper.make_graph(self.nodes, "dag", inputs, outputs, tensors)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)

    # ---- writing ----

    def _keep(self, name: str, value: Any) -> str:
        array = np.asarray(value)
        self.stored[name] = array.astype(np.float32 if array.dtype.kind == "f" else np.int64)
        return name

    def _emit(self, op: str, step: Step, name: str, more: Sequence[str] = (), **attributes: Any) -> None:
        inputs, outputs = [f"t{t}" for t in step.inputs], [f"t{t}" for t in step.outputs]
        self.nodes.append(helper.make_node(op, [*inputs, *more], outputs, name=name, **attributes))

    def _rows(self, units: Units, base: Array, factors: Array | None = None) -> Array:
        """One row per unit; those of dead ones are anything."""
        rows: Array = base[np.maximum(units.at, 0)].astype(np.float64)
        rows *= (np.ones(len(rows)) if factors is None else factors).reshape(-1, *(1,) * (rows.ndim - 1))
        dead = units.at == DEAD
        rows[dead] = np.abs(self.rng.standard_normal(rows[dead].shape)) + 0.1
        return rows

    def _columns(self, units: Units, weight: Array) -> Array:
        """[O, K, ...]: what a channel's copies get adds up to its column, for every output and tap."""
        share = self.rng.exponential(size=(len(weight), len(units.at), *weight.shape[2:])) + 0.1
        if self.layout.kind != "planted":
            share[:] = 1.0
        share[:, units.at == DEAD] = 0.0
        columns = weight[:, np.maximum(units.at, 0)]
        for place in set(units.at.tolist()) - {DEAD}:
            copies = units.at == place
            share[:, copies] /= share[:, copies].sum(axis=1, keepdims=True)
        return np.asarray(columns * share / self.layout.factors(units).reshape(-1, *(1,) * (weight.ndim - 2)))

    def _writer(self, step: Step) -> tuple[Units, Array]:
        units = self.layout.laid_out(self.dag.labels(step.outputs[0]))
        self.units[step.outputs[0]] = units
        return units, self.layout.factors(units)

    # ---- linear ops ----

    def _conv(self, step: Step, name: str) -> None:
        source, groups = self.units[step.inputs[0]], step.attributes["groups"]
        units, factors = self._writer(step)
        normalised = "scale" in step.weights
        own = factors
        if normalised and self.layout.kind == "planted":
            own = self.rng.uniform(0.5, 1.5, len(factors)) * self.rng.choice([-1.0, 1.0], len(factors))
        rows = self._rows(units, step.weights["weight"], own)
        parts, weights = np.split(np.arange(len(source.at)), groups), []
        width = len(self.dag.labels(step.inputs[0])) // groups
        for j, (part, mine) in enumerate(zip(parts, np.split(rows, groups), strict=True)):
            at = source.at[part]
            assert ((at == DEAD) | (at // width == j)).all()
            weights.append(self._columns(Units(np.where(at == DEAD, DEAD, at - j * width), source.ids[part]), mine))
        more = [self._keep(f"{name}.weight", np.concatenate(weights))]
        if "bias" in step.weights:
            more.append(self._keep(f"{name}.bias", self._rows(units, step.weights["bias"], own)))
        attributes: dict[str, Any] = {"pads": step.attributes["pads"]}
        if groups > 1:
            attributes["group"] = groups
        if not normalised:
            self._emit("Conv", step, name, more, **attributes)
            return
        source_name, result = f"t{step.inputs[0]}", f"t{step.outputs[0]}"
        self.nodes.append(helper.make_node("Conv", [source_name, *more], [f"{name}.z"], name=name, **attributes))
        more = self._statistics(step, f"{name}.norm", units, factors / own, own, factors)
        self.nodes.append(helper.make_node("BatchNormalization", [f"{name}.z", *more], [result], name=f"{name}.norm"))

    def _statistics(self, step: Step, name: str, units: Units, *factors: Array) -> list[str]:
        """Scale, shift, mean and variance; factors: of scale, mean and shift."""
        scale, mean, shift = factors
        numbers = {"scale": scale, "shift": shift, "mean": mean, "variance": None}
        return [self._keep(f"{name}.{n}", self._rows(units, step.weights[n], f)) for n, f in numbers.items()]

    def _convtranspose(self, step: Step, name: str) -> None:
        source = self.units[step.inputs[0]]
        units, factors = self._writer(step)
        rows = self._rows(units, np.moveaxis(step.weights["weight"], 1, 0), factors)
        weight = np.moveaxis(self._columns(source, rows), 0, 1)
        more = [self._keep(f"{name}.weight", weight)]
        more.append(self._keep(f"{name}.bias", self._rows(units, step.weights["bias"], factors)))
        self._emit("ConvTranspose", step, name, more, strides=[step.attributes["stride"]] * 2)

    def _matmul(self, step: Step, name: str) -> None:
        source = self.units[step.inputs[0]]
        units, factors = self._writer(step)
        weight = self._columns(source, self._rows(units, step.weights["weight"], factors)).T
        x, y = f"t{step.inputs[0]}", f"t{step.outputs[0]}"
        node = helper.make_node
        self.nodes += [
            node("Transpose", [x], [f"{name}.last"], name=f"{name}.there", perm=[0, 2, 3, 1]),
            node("MatMul", [f"{name}.last", self._keep(f"{name}.weight", weight)], [f"{name}.z"], name=name),
            node("Transpose", [f"{name}.z"], [y], name=f"{name}.back", perm=[0, 3, 1, 2]),
        ]

    def _gemm(self, step: Step, name: str) -> None:
        source = self.units[step.inputs[0]]
        units, factors = self._writer(step)
        weight = self._columns(source, self._rows(units, step.weights["weight"], factors))
        more = [self._keep(f"{name}.weight", weight.reshape(len(weight), -1))]
        more.append(self._keep(f"{name}.bias", self._rows(units, step.weights["bias"], factors)))
        self._emit("Gemm", step, name, more, transB=1)

    # ---- ops that keep channels apart ----

    def _alone(self, step: Step, name: str) -> None:
        """Without numbers per channel."""
        units = self.units[step.inputs[0]]
        for other in step.inputs[1:]:
            ids = self.units[other].ids
            assert len(ids) == 1 or (ids == units.ids).all()
        self.units[step.outputs[0]] = units
        attributes = dict(step.attributes)
        counted = attributes.pop("counted", 0)
        if step.op.endswith("Pool") and "pads" in attributes:
            attributes["kernel_shape"] = [2, 2]
            if step.op == "AveragePool":
                attributes["count_include_pad"] = counted
        if step.op in ("DepthToSpace", "SpaceToDepth"):
            attributes["blocksize"] = 2
        more = [self._keep("low", np.array(-0.5)), self._keep("high", np.array(1.0))] if step.op == "Clip" else []
        self._emit(step.op, step, name, more, **attributes)

    def _depthwise(self, step: Step, name: str) -> None:
        units = self.units[step.inputs[0]]
        self.units[step.outputs[0]] = units
        more = [self._keep(f"{name}.kernel", self._rows(units, step.weights["kernel"]))]
        if "bias" in step.weights:
            bias = self._rows(units, step.weights["bias"], self.layout.factors(units))
            more.append(self._keep(f"{name}.bias", bias))
        self._emit("Conv", step, name, more, group=len(units.at), pads=[1] * 4)

    def _batchnormalization(self, step: Step, name: str) -> None:
        units = self.units[step.inputs[0]]
        self.units[step.outputs[0]] = units
        factors = self.layout.factors(units)
        more = self._statistics(step, name, units, np.ones(len(factors)), factors, factors)
        self._emit(step.op, step, name, more)

    def _instancenormalization(self, step: Step, name: str) -> None:
        units = self.units[step.inputs[0]]
        self.units[step.outputs[0]] = units
        more = [self._keep(f"{name}.{n}", self._rows(units, step.weights[n])) for n in ("scale", "shift")]
        self._emit(step.op, step, name, more)

    def _prelu(self, step: Step, name: str) -> None:
        units = self.units[step.inputs[0]]
        self.units[step.outputs[0]] = units
        slope = self._rows(units, step.weights["slope"]).reshape(-1, 1, 1)
        self._emit(step.op, step, name, [self._keep(f"{name}.slope", slope)])

    def _resize(self, step: Step, name: str) -> None:
        units = self.units[step.inputs[0]]
        self.units[step.outputs[0]] = units
        if not step.attributes["sizes"]:
            more = ["", self._keep(f"{name}.scales", np.array([1.0, 1, 2, 2]))]
            self._emit(step.op, step, name, more, mode="linear")
            return
        sizes = np.array([len(units.at), *self.dag.tensors[step.outputs[0]].size])
        more = ["", "", self._keep(f"{name}.sizes", sizes)]
        self._emit(step.op, step, name, more, mode="nearest", axes=[1, 2, 3])

    # ---- ops that join, cut and shuffle ----

    def _concat(self, step: Step, name: str) -> None:
        parts = [self.units[x] for x in step.inputs]
        widths = np.cumsum([0, *(len(self.dag.labels(x)) for x in step.inputs)])
        at = [np.where(p.at == DEAD, DEAD, p.at + n) for p, n in zip(parts, widths, strict=False)]
        joined = Units(np.concatenate(at), np.concatenate([p.ids for p in parts]))
        self.units[step.outputs[0]] = joined
        self._emit(step.op, step, name, axis=1)

    def _spacetodepth(self, step: Step, name: str) -> None:
        units, width = self.units[step.inputs[0]], len(self.dag.labels(step.inputs[0]))
        at = np.concatenate([np.where(units.at == DEAD, DEAD, units.at + i * width) for i in range(4)])
        self.units[step.outputs[0]] = Units(at, np.tile(units.ids, 4))
        self._emit(step.op, step, name, blocksize=2)

    def _depthtospace(self, step: Step, name: str) -> None:
        units = self.layout.laid_out(self.dag.labels(step.outputs[0]))
        assert (np.tile(units.ids, 4) == self.units[step.inputs[0]].ids).all()
        self.units[step.outputs[0]] = units
        self._emit(step.op, step, name, blocksize=2)

    def _picked(self, step: Step) -> list[Array]:
        """Places of the units that go into every result."""
        source = self.layout.laid_out(self.dag.labels(step.inputs[0]))
        found = []
        for result, places in zip(step.outputs, step.attributes["places"], strict=True):
            units = self.layout.laid_out(self.dag.labels(result))
            runs_at = sorted(units.starts)
            picks = []
            for a, b in itertools.pairwise(runs_at):
                start = source.starts[places[a]]
                picks.append(start + np.arange(units.starts[b] - units.starts[a]))
            found.append(np.concatenate(picks))
            assert (source.ids[found[-1]] == units.ids).all()
            self.units[result] = units
        return found

    def _split(self, step: Step, name: str) -> None:
        sizes = np.array([len(picks) for picks in self._picked(step)])
        self._emit(step.op, step, name, [self._keep(f"{name}.sizes", sizes)], axis=1)

    def _slice(self, step: Step, name: str) -> None:
        picks, width = self._picked(step)[0], len(self.units[step.inputs[0]].at)
        start, stop = int(picks[0]), int(picks[-1]) + 1
        stop = stop if stop < width else 2**31
        if step.attributes["backwards"]:
            start, stop = start - width if start else 0, stop - width if stop < width else stop
        numbers = {"starts": [start], "ends": [stop], "axes": [1]}
        self._emit(step.op, step, name, [self._keep(f"{name}.{n}", np.array(v)) for n, v in numbers.items()])

    def _gather(self, step: Step, name: str) -> None:
        self._emit(step.op, step, name, [self._keep(f"{name}.picks", self._picked(step)[0])], axis=1)

    def _shuffle(self, step: Step, name: str) -> None:
        units, g = self.units[step.inputs[0]], step.attributes["groups"]
        width = len(self.dag.labels(step.inputs[0])) // g
        assert (units.ids.reshape(g, -1) == units.ids.reshape(g, -1)[0]).all()
        at = np.where(units.at == DEAD, DEAD, units.at % width * g + units.at // width)
        order = np.arange(len(at)).reshape(g, -1).T.reshape(-1)
        self.units[step.outputs[0]] = Units(at[order], units.ids[order])
        size, count = self.dag.tensors[step.inputs[0]].size, len(at)
        last = -1 if step.attributes["open"] else count // g
        apart = self._keep(f"{name}.apart", np.array([0, g, last, *size]))
        whole = self._keep(f"{name}.whole", np.array([0, -1 if step.attributes["open"] else count, *size]))
        node = helper.make_node
        self.nodes += [
            node("Reshape", [f"t{step.inputs[0]}", apart], [f"{name}.a"], name=f"{name}.apart"),
            node("Transpose", [f"{name}.a"], [f"{name}.b"], name=f"{name}.turn", perm=[0, 2, 1, 3, 4]),
            node("Reshape", [f"{name}.b", whole], [f"t{step.outputs[0]}"], name=f"{name}.whole"),
        ]


def written(dag: Dag, kind: str, seed: int = 0) -> onnx.ModelProto:
    """The network of a dag, "plain", "moved" or "planted"."""
    return File(dag, Layout(dag, seed, kind)).proto()


def constants(proto: onnx.ModelProto) -> dict[str, list[tuple[int, ...]]]:
    """Per node, shapes of the numbers that it reads and values of the integers, in attributes too."""
    stored = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    found: dict[str, list[tuple[int, ...]]] = {}
    for node in proto.graph.node:
        values = [stored[n] for n in node.input if n in stored]
        known = [v.shape if v.dtype.kind == "f" else tuple(v.tolist()) for v in values]
        group: list[tuple[int, ...]] = [(a.i,) for a in node.attribute if a.name == "group"]
        found[node.name] = group + known
    return found
