"""The shape of the package: who may import whom, what is public, and how long things may grow.

Read from the source with `ast`, so imports inside functions and under TYPE_CHECKING count as well.
"""

from __future__ import annotations

import ast
import functools
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import onnx_condense

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = "onnx_condense"
ROOT = Path(onnx_condense.__file__).parent
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

# Highest first. A module imports from lower layers, and from its own except among stages; never in a circle.
# A name stands for a module or for all of a folder.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("cli",),
    ("command",),
    # Orchestration: who calls which stage when; only these know several stages.
    (
        "pipeline",
        "run",
        "fit",
        "carriers",
        "grids",
        "heat",
        "lined_up",
        "options",
        "outcome",
        "proving",
        "ready",
        "saved",
        "search",
        "synthetic",
        "tune",
        "tuner",
    ),
    (
        "cost",
        "draw",
        "evidence",
        "fit.compensate",
        "metrics",
        "proving.footprint",
        "proving.latency",
        "proving.profiled",
        "proving.verify",
        "report",
        "rewrite",
        "search.budget",
        "search.probes",
        "select",
        "spaces",
        "unseen",
    ),
    # Samples are an abstraction to run networks on, not a step: moments, error and drawn inputs are made from them.
    ("data",),
    ("ops",),
    ("files",),
    ("network", "runtime", "sessions"),
    ("network.external",),
    ("options.limits", "options.yardstick", "paths", "plan", "report.data", "report.figures", "saved.plans"),
    ("errors", "wording"),
)
STAGES = next(layer for layer in LAYERS if "evidence" in layer)

# Stages do not know each other: they meet in plan.py and report/data.py. Exceptions, each with its reason.
ALLOWED: dict[tuple[str, str], str] = {
    ("select", "fit.compensate"): "both factorize one matrix in one way: the ridged covariance of what a reader reads",
}

# Third-party packages that stay behind few doors.
DOORS: dict[str, frozenset[str]] = {
    "onnx_graphsurgeon": frozenset({"network.nodes"}),
    "onnxruntime": frozenset({"runtime", "sessions"}),
    "typer": frozenset({"cli"}),
    "rich": frozenset({"report.terminal"}),
    "matplotlib": frozenset({"report.plots"}),
    "jinja2": frozenset({"report.html"}),
    "torch": frozenset(
        f"tune.{name}"
        for name in (
            *("losses", "network", "soap", "step", "training"),
            *("lower_conv", "lower_math", "lower_resize", "lower_rows", "lower_shape"),
        )
    ),
}


@functools.cache
def modules() -> dict[str, ast.Module]:
    """Every module of the package by its dotted name below the package; the package itself is ''."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return found


def imported(name: str) -> set[str]:
    """Full dotted names that the module imports; `from package import module` names the module."""
    found: set[str] = set()
    for node in ast.walk(modules()[name]):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            base = node.module or ""
            for alias in node.names:
                inside = f"{base}.{alias.name}".removeprefix(f"{PACKAGE}.")
                found.add(f"{base}.{alias.name}" if base.startswith(PACKAGE) and inside in modules() else base)
    return found


def internal(name: str) -> set[str]:
    """Modules of this package that the module imports, as in `modules`."""
    inside = {i for i in imported(name) if i == PACKAGE or i.startswith(f"{PACKAGE}.")}
    return {i.removeprefix(PACKAGE).removeprefix(".") for i in inside}


def home(name: str) -> str:
    """The entry of LAYERS that the module belongs to: the most specific one."""
    entries = [e for layer in LAYERS for e in layer if name == e or name.startswith(f"{e}.")]
    return max(entries, key=len, default="")


def level(entry: str) -> int:
    """Position of an entry in LAYERS; 0 is the top."""
    return next(i for i, layer in enumerate(LAYERS) if entry in layer)


def fault(name: str, target: str) -> str | None:
    """Why the module may not import the target, or None."""
    if target == "":
        names = {
            a.name
            for n in ast.walk(modules()[name])
            if isinstance(n, ast.ImportFrom) and n.module == PACKAGE
            for a in n.names
        }
        return None if names - set(modules()) <= {"__version__"} else "only the version comes from the package itself"
    mine, other = home(name), home(target)
    if mine == other:
        return None
    if level(other) < level(mine):
        return "imports flow down only"
    if mine in STAGES and other in STAGES and (mine, other) not in ALLOWED:
        return "stages do not import each other"
    return None


@pytest.mark.parametrize("name", [n for n in modules() if n])
def test_every_module_has_a_layer_and_imports_flow_one_way(name: str) -> None:
    assert home(name), f"{name}: name its layer in LAYERS"
    faults = {target: why for target in internal(name) if (why := fault(name, target))}
    assert not faults, f"{name} imports {faults}"


def test_there_are_no_import_cycles() -> None:
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"cycle: {' -> '.join((*path, name))}"
        if name in done or name not in modules():
            return
        # '' is the package itself, which fetches the pipeline on first use.
        for target in internal(name) - {""}:
            visit(target, (*path, name))
        done.add(name)

    for name in modules():
        if name:
            visit(name, ())


def test_exceptions_are_still_needed() -> None:
    used = {(home(n), home(t)) for n in modules() if n for t in internal(n) if t}
    stale = [pair for pair in ALLOWED if pair not in used]
    assert not stale, f"not imported any more: {stale}"


@pytest.mark.parametrize(("library", "doors"), DOORS.items())
def test_libraries_stay_behind_their_doors(library: str, doors: frozenset[str]) -> None:
    users = {n for n in modules() if any(i == library or i.startswith(f"{library}.") for i in imported(n))}
    assert users == doors, f"{library} is imported by {sorted(users)}"


def test_errors_imports_nothing() -> None:
    assert imported("errors") <= {"__future__"}


def bound(body: list[ast.stmt]) -> Iterator[str]:
    """Names of ours that the statements bind: definitions, assignments, imports from this package."""
    for node in body:
        if isinstance(node, ast.If):  # TYPE_CHECKING: names that __getattr__ fetches on first use
            yield from bound(node.body)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE):
            yield from (alias.asname or alias.name for alias in node.names)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


def test_all_names_what_is_public() -> None:
    public = {name for name in bound(modules()[""].body) if not name.startswith("_")}
    names: list[str] = list(getattr(onnx_condense, "__all__", ()))
    assert set(names) - {"__version__"} == public
    assert len(names) == len(set(names))
    for name in names:
        assert getattr(onnx_condense, name) is not None
    with pytest.raises(AttributeError):
        _ = onnx_condense.no_such_name  # type: ignore[attr-defined,unused-ignore]


@pytest.mark.parametrize("name", modules())
def test_sizes(name: str) -> None:
    path = ROOT / Path(*name.split(".")) if name else ROOT
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_FILE_LINES, f"{path.name} has {lines} lines"
    long = {
        node.name: length
        for node in ast.walk(modules()[name])
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and (length := body_lines(node)) > MAX_FUNCTION_LINES
    }
    assert not long, f"{path.name}: {long}"


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines below the signature and the docstring."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return function.end_lineno - body[0].lineno + 1 if body and function.end_lineno else 0
