"""The table of ops in docs/ops.md, made from the registry.

python tools/optable.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from bench_common import header, row

from onnx_condense.ops import Law, OpRule, Role, registered

PAGE = Path(__file__).parent.parent / "docs" / "ops.md"

INTRO = """# Ops

Made by `tools/optable.py` from the registry in `onnx_condense/ops`. An op that is not here, or not at its opset, is a
barrier: the channels that it touches stay, and the report says "no rule for" it.

| role | what the op does to channels |
| --- | --- |
| reads and writes | sums over the channels of its input with a stored weight, and writes new ones |
| reads | the same, but what it writes keeps its width |
| carries | every channel by itself; operands of equal size tie their channels; biases and factors go along |
| moves | elements change places or are combined along axes that are not the channels' own |
| joins and picks | channels are put behind one another, taken apart or picked |
| barrier | every channel that it touches stays, for the reason given |

An op that lets channels pass may still refuse some of its nodes, by name; the report gives the reason. The law is what
the proofs from the weights alone may use; "by node" depends on its attributes or constants.
"""

COLUMNS = ("op", "domain", "opsets", "role", "law")

LAST = 2**31


def role(rule: OpRule) -> str:
    """What an op does to channels; of a barrier with its reason."""
    return f"{rule.role.value}: {rule.reason}" if rule.reason else rule.role.value


def law(rule: OpRule) -> str:
    """The law of an op that lets channels pass; `by node` where it depends."""
    if rule.refine is not None:
        return "by node"
    linear = rule.role in {Role.WRITES, Role.READS}
    says_nothing = rule.role is Role.BARRIER or (linear and rule.law is Law.ANY)
    return "-" if says_nothing else rule.law.value


def page() -> str:
    """The whole page."""
    lines = [INTRO, header(*COLUMNS)]
    for rule in registered():
        opsets = f"{rule.since} to {rule.until}" if rule.until < LAST else f"from {rule.since}"
        lines.append(row(rule.op, rule.domain or "ai.onnx", opsets, role(rule), law(rule)))
    return "\n".join([*lines, ""])


def main(out: Annotated[Path, typer.Option(dir_okay=False, help="The page to write.")] = PAGE) -> None:
    """Write docs/ops.md from the registry."""
    out.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
