"""onnx-condense against every other tool that removes channels, at equal size and without training: one Markdown table.

NETWORKS and INPUTS are those of bench_zoo.py: NAME.onnx, NAME.npz (or a folder NAME) to calibrate on, NAME_u.npz that
nothing was calibrated on, on which all errors are measured against the dense network. peers.py says what the others do,
and which versions they have. Every run is a process of its own with a limit of time.

A peer takes one ratio for the whole network. It is brought as near to the target as its ratio allows and never below
it, while ours stays at the target or below; where a peer ends more than a percentage point above the target its cell
says where, and ours is run again at its size. Cells without an error say why there is none. The last column is the
lowest error of the others over ours at the same size.

    pip install onnxsim==0.8.1 torch-pruning==1.6.1 onnx2torch==1.5.15
    nice python tools/bench_peers.py networks inputs --samples 8192 --threads 1 --results peers.jsonl

With --results a run that was interrupted goes on where it was, and rows made by several runs end up in one table.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import bench_zoo
import numpy as np
import peers
import typer
from bench_common import Job, apart, condense_apart, header, row

from onnx_condense.data import spread

# Columns, and the argument of peers.py.
PEERS = {
    "onnxsim": "structured",
    "onnxsim Wanda": "wanda",
    "onnxsim Wanda, refit": "wanda-refit",
    "Torch-Pruning": "torch-pruning",
}
# A peer that ends so much above the target is compared at its own size.
CLOSE = 0.01
# Above it a network is of little use, so that ratios say little.
USEFUL = 0.1
# Characters of what a cell says in words.
WORDS = 60

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclasses.dataclass(frozen=True)
class Result:
    """One network: share of the parameters, error on the unseen set (nan: none), why there is none."""

    share: float = math.nan
    error: float = math.nan
    why: str = ""


@dataclasses.dataclass(frozen=True)
class Pair:
    """What a peer gave, and ours at its size."""

    theirs: Result
    ours: Result

    @property
    def ratio(self) -> float:
        """Error of theirs over ours, 1 where neither has any; nan without theirs, 0 without ours."""
        theirs, ours = self.theirs.error, self.ours.error
        if math.isnan(theirs):
            return math.nan
        if math.isnan(ours):
            return 0.0
        return theirs / ours if ours else math.inf if theirs else 1.0


@dataclasses.dataclass(frozen=True)
class Line:
    """One network at one target: ours by method, pairs by peer."""

    network: str
    target: float
    ours: dict[str, Result]
    pairs: dict[str, Pair]

    @property
    def closest(self) -> Pair | None:
        """The pair that is worst for ours, None if no peer gave a network."""
        found = [p for p in self.pairs.values() if not math.isnan(p.ratio)]
        return min(found, key=lambda p: p.ratio, default=None)

    def cells(self) -> Iterator[str]:
        """Of a Markdown table."""
        yield self.network
        yield f"{100 * self.target:g}"
        for found in self.ours.values():
            yield found.why or f"{found.error:.3g} at {100 * found.share:.1f} %"
        for pair in self.pairs.values():
            yield pair.theirs.why or errors(pair, self.target)
        yield f"{self.closest.ratio:.1f}" if self.closest else ""

    @classmethod
    def read(cls, text: str) -> Line:
        """From JSON."""
        fields: dict[str, Any] = json.loads(text)
        ours = {name: Result(**found) for name, found in fields["ours"].items()}
        pairs = {n: Pair(Result(**p["theirs"]), Result(**p["ours"])) for n, p in fields["pairs"].items()}
        return cls(fields["network"], fields["target"], ours, pairs)


def errors(pair: Pair, target: float) -> str:
    """A peer's error, and where it ended above the target also that and ours."""
    theirs = f"{pair.theirs.error:.3g}"
    if pair.theirs.share <= target + CLOSE:
        return theirs
    ours = pair.ours.why or f"{pair.ours.error:.3g}"
    return f"{theirs} at {100 * pair.theirs.share:.1f} %, ours {ours}"


def same_size(share: float, target: float) -> float:
    """What ours is asked to keep beside a peer's network; never more than that."""
    return target if share <= target + CLOSE else math.floor(1000 * min(share, 1.0)) / 1000


def summary(lines: Sequence[Line]) -> Iterator[str]:
    """For every target on how many networks ours is lower, and by how much in the median."""
    for target in sorted({line.target for line in lines}, reverse=True):
        here = [line for line in lines if line.target == target]
        pairs = {line.network: line.closest for line in here}
        lower = [name for name, pair in pairs.items() if pair and pair.ratio > 1]
        equal = [name for name, pair in pairs.items() if pair and pair.ratio == 1]
        higher = [name for name, pair in pairs.items() if pair and pair.ratio < 1]
        alone = [name for name, pair in pairs.items() if pair is None]
        ratios = [pair.ratio for pair in pairs.values() if pair and pair.ours.error < USEFUL]
        text = f"At {100 * target:g} %: lower on {len(lower)} of {len(lower + equal + higher)} networks"
        text += f"; equal on {', '.join(equal)}" if equal else ""
        text += f"; not on {', '.join(higher)}" if higher else ""
        text += f"; no other tool gives a network for {', '.join(alone)}" if alone else ""
        yield f"{text}; {median(ratios)} over the {len(ratios)} where ours is below {USEFUL:g}."


def median(ratios: Sequence[float]) -> str:
    """The median ratio in words."""
    return f"in the median {np.median(ratios):.1f} times lower" if ratios else "no median"


# ---- runs ----


@dataclasses.dataclass(frozen=True)
class Bench:
    """One network with its inputs. scratch: a folder for what is written."""

    network: Path
    seen: Path
    unseen: Path
    scratch: Path
    threads: int
    seed: int
    limit: float

    def judged(self, out: Path, share: float) -> Result:
        """A written network on the unseen set."""
        command = [sys.executable, bench_zoo.__file__, "judge", str(self.network), str(out), str(self.unseen)]
        done = apart([*command, f"--threads={self.threads}"], self.limit)
        if done.failed:
            return Result(share, why=cell(f"judging: {done.failed}"))
        found = json.loads(done.last)
        if found["wrong"]:
            return Result(share, why=cell(f"invalid: {found['wrong'][0]}"))
        return Result(share, found["unseen"], "" if math.isfinite(found["unseen"]) else "not finite")

    def theirs(self, kind: str, target: float) -> Result:
        """A peer at a target."""
        out = self.scratch / f"{kind}.onnx"
        command = [sys.executable, "-W", "ignore", peers.__file__, kind, str(self.network), str(self.seen), str(out)]
        done = apart([*command, str(target), f"--threads={self.threads}"], self.limit)
        if done.failed:
            return Result(why=cell(done.failed))
        found = json.loads(done.last)
        return Result(why=cell(found["failed"])) if "failed" in found else self.judged(out, found["share"])

    def ours(self, method: str, keep: float) -> Result:
        """One of our methods at a share; "fit" is what condense() does unasked."""
        out = self.scratch / "ours.onnx"
        job = Job(self.network, self.seen, out, keep=keep, threads=self.threads, seed=self.seed, limit=self.limit)
        job = dataclasses.replace(job, allow_slower=True, method="" if method == "fit" else method)
        outcome = condense_apart(job)
        if outcome.failed or outcome.status != "condensed":
            return Result(why=cell(outcome.failed or f"{outcome.status}: {outcome.reason}"))
        return self.judged(out, outcome.kept)

    def lines(self, targets: Iterable[float], methods: Sequence[str], kinds: Sequence[str]) -> Iterator[Line]:
        """One for each target; the first method is what the others are compared with."""
        ours = functools.cache(self.ours)
        for target in targets:
            found = {method: ours(method, target) for method in methods}
            yield Line(self.network.stem, target, found, compared(self.theirs, ours, methods[0], target, kinds))


def compared(
    theirs: Callable[[str, float], Result],
    ours: Callable[[str, float], Result],
    method: str,
    target: float,
    kinds: Sequence[str],
) -> dict[str, Pair]:
    """Every peer at a target with ours at its size; nothing of ours is run beside what failed."""
    pairs = {}
    for name in kinds:
        found = theirs(PEERS[name], target)
        beside = Result() if math.isnan(found.error) else ours(method, same_size(found.share, target))
        pairs[name] = Pair(found, beside)
    return pairs


def cell(text: str) -> str:
    """Text fit for a cell: one line, not too long."""
    line = " ".join(text.split()).replace("|", "/")
    return line if len(line) <= WORDS else line[: WORDS - 3] + "..."


def fewer(source: Path, samples: int, scratch: Path) -> Path:
    """A source of at most so many samples, evenly spread over those that there are (0: all)."""
    if not samples:
        return source
    if source.is_dir():
        files = sorted(source.iterdir())
        for file in [files[i] for i in spread(np.arange(len(files)), samples)]:
            (scratch / "seen" / file.name).parent.mkdir(exist_ok=True)
            (scratch / "seen" / file.name).write_bytes(file.read_bytes())
        return scratch / "seen"
    with np.load(source) as arrays:
        held = dict(arrays)
    count = max(len(a) for a in held.values() if a.ndim)
    rows = spread(np.arange(count), samples)
    # What goes with every sample stays whole.
    kept = {name: a[rows] if a.shape[:1] == (count,) else a for name, a in held.items()}
    np.savez(scratch / "seen.npz", allow_pickle=False, **kept)
    return scratch / "seen.npz"


def shares(text: str) -> list[float]:
    """Shares of the parameters, joined by commas."""
    return [float(word) for word in text.split(",")]


@app.command()
def table(
    networks: Annotated[Path, typer.Argument(exists=True, file_okay=False)],
    inputs: Annotated[Path, typer.Argument(exists=True, file_okay=False)],
    targets: Annotated[str, typer.Option(help="Shares of the parameters, joined by commas.")] = "0.75,0.5",
    methods: Annotated[str, typer.Option(help="Of ours, joined by commas; the first is compared.")] = "fit",
    only: Annotated[str, typer.Option(help="Names joined by commas; empty: all.")] = "",
    samples: Annotated[int, typer.Option(help="Calibration samples at most; 0: all.")] = 0,
    limit: Annotated[float, typer.Option(help="Seconds for one run.")] = 600.0,
    threads: int = 0,
    seed: int = 0,
    results: Annotated[Path | None, typer.Option(help="Rows as JSON lines: read first, then added to.")] = None,
) -> None:
    """Bring every network to every target by every tool and print one row for each, and a summary."""
    peers.check_pins()
    print(header("network", "target, %", *(f"ours, {m}" for m in methods.split(",")), *PEERS, "ratio"), flush=True)
    lines = [Line.read(text) for text in results.read_text().splitlines()] if results and results.exists() else []
    for line in lines:
        print(row(*line.cells()), flush=True)
    made = {(line.network, line.target) for line in lines}
    for network, seen, unseen in bench_zoo.cases(networks, inputs, only):
        todo = [share for share in shares(targets) if (network.stem, share) not in made]
        with tempfile.TemporaryDirectory() as scratch:
            data = fewer(seen, samples, Path(scratch)) if todo else seen
            bench = Bench(network, data, unseen, Path(scratch), threads, seed, limit)
            for line in bench.lines(todo, methods.split(","), tuple(PEERS)):
                print(row(*line.cells()), flush=True)
                lines.append(line)
                if results:
                    with results.open("a") as file:
                        file.write(json.dumps(dataclasses.asdict(line)) + "\n")
    print("", *summary(lines), sep="\n")


if __name__ == "__main__":
    app()
