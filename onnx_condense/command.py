"""What one call of the command does: checks what it may, condenses or proves again, writes and shows.

It owns the paths that it is given (nothing is overwritten by accident, all files or none), the JSON file and progress.
Heavy packages are imported only once the call is known to be sound, so that usage errors answer at once.
"""

import contextlib
import dataclasses
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from onnx_condense.errors import UsageError
from onnx_condense.options.control import Control
from onnx_condense.options.goal import batches_of, thresholds_of
from onnx_condense.options.limits import Limits, count_of, multiple_of
from onnx_condense.options.tuning import tune_of
from onnx_condense.options.yardstick import RELATIVE, tolerances_of, wish_for
from onnx_condense.paths import check_new_folder, check_source, check_writable, ready, same_file, status_of
from onnx_condense.report.data import Report

PROGRAM = "onnx-condense"
STDOUT = "-"
NO_TOLERANCE = "--plan and --metric need --tolerance: that of the plan is in its own metric"

Progress = Callable[[str, float], None]


@dataclasses.dataclass(frozen=True)
class Call:
    """What the user asked for; field names as the options."""

    source: Path
    target: Path | None
    calibration: str | None
    verification: Path | None
    tolerance: tuple[str, ...]
    metric: str | None
    keep: float | None
    max_parameters: str | None
    max_macs: str | None
    max_bytes: str | None
    max_latency: float | None
    speedup: float | None
    multiple_of: str | None
    front: Path | None
    providers: tuple[str, ...]
    threads: int
    json: str | None
    dry_run: bool
    seed: int
    force: bool
    quiet: bool
    verbose: bool
    allow_slower: bool
    augment: int
    method: str
    threshold: tuple[str, ...]
    also_verify: tuple[str, ...]
    batch: str
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    min_width: int | None
    max_cut: float | None
    plan: Path | None
    save_plan: Path | None
    tune: bool
    tune_minutes: float | None
    tune_steps: int | None
    tune_data: Path | None
    tune_loss: str
    rounds: int
    verify_only: Path | None
    report: Path | None

    @property
    def limits(self) -> dict[str, Any]:
        """The limits on size and speed beside `keep`, by name.

        Raises:
            UsageError: one of them is no number.
        """
        counts = {name: getattr(self, name) for name in ("max_parameters", "max_macs", "max_bytes")}
        counts = {name: count_of(f"--{name.replace('_', '-')}", text) for name, text in counts.items()}
        return {**counts, "max_latency": self.max_latency, "speedup": self.speedup}

    @property
    def training(self) -> dict[str, Any]:
        """The options about training, by name."""
        names = ("tune", "tune_minutes", "tune_steps", "tune_data", "tune_loss", "rounds")
        return {name: getattr(self, name) for name in names}

    @property
    def json_file(self) -> Path | None:
        """Where the JSON goes if it goes into a file."""
        return Path(self.json) if self.json is not None and self.json != STDOUT else None

    @property
    def written(self) -> Path | None:
        """OUT, if this call writes it."""
        return None if self.dry_run else self.target

    @property
    def tells(self) -> bool:
        """Whether anybody gets to see what is measured for the report alone."""
        return not self.quiet or self.json is not None or self.report is not None

    @property
    def papers(self) -> dict[str, Path]:
        """Files that tell what happened, by the option that names them."""
        named = {"--json": self.json_file, "--report": self.report, "--save-plan": self.save_plan}
        return {option: path for option, path in named.items() if path is not None}


def run(call: Call) -> None:
    """All of it, from the checks to what is printed.

    Raises:
        CondenseError: see `errors`. No file was written then, unless the last step failed: printing, or the rename of a
            report that lies ready beside its place.
    """
    _check_options(call)
    check_source(call.source)
    _check_weights(call)
    # Libraries that print to stdout must not spoil JSON that goes there.
    with _progress(call) as progress, contextlib.redirect_stdout(sys.stderr):
        report, condensed = _verified(call, progress) if call.verify_only else _condensed(call, progress)
    with contextlib.ExitStack() as beside:
        # Where one of them can't be written, none stands, and what stood there before still does.
        puts = [_ready(path, text, beside) for path, text in _papers(call, report, condensed)]
        with contextlib.ExitStack() as undo:
            if call.front is not None and not call.dry_run:
                _save_front(call.front, call.source.stem, condensed)
                undo.callback(shutil.rmtree, call.front, ignore_errors=True)
            if call.written is not None:
                _save(call.written, condensed)
            undo.pop_all()
        for put in puts:
            put()
    if call.json == STDOUT:
        write_json(call, report)
    if not call.quiet:
        made = condensed.front if condensed and call.front and not call.dry_run else ()
        _show(call, report, len(made))


def _condensed(call: Call, progress: Progress | None) -> tuple[Report, Any]:
    from onnx_condense import pipeline

    found = pipeline.condense(
        call.source,
        metric=RELATIVE if call.metric is None else call.metric,
        keep=call.keep,
        **call.limits,
        multiple_of=multiple_of(call.multiple_of),
        front=call.front is not None,
        allow_slower=call.allow_slower,
        augment=call.augment,
        method=call.method,
        threshold=thresholds_of(call.threshold),
        include=call.include,
        exclude=call.exclude,
        min_width=call.min_width,
        max_cut=call.max_cut,
        plan=call.plan,
        **call.training,
        profile=call.verbose,
        dry_run=call.dry_run,
        **_common(call, progress),
    )
    return _with_command(call, found.report), found


def _verified(call: Call, progress: Progress | None) -> tuple[Report, None]:
    from onnx_condense.proving.rechecking import recheck

    assert call.verify_only is not None
    report = recheck(
        call.source,
        call.verify_only,
        metric=call.metric,
        **_common(call, progress),
    )
    return _with_command(call, report), None


def _common(call: Call, progress: Progress | None) -> dict[str, Any]:
    """What making a network and proving one again are told alike."""
    return {
        "calibration": call.calibration,
        "verification": call.verification,
        "tolerance": tolerances_of(call.tolerance),
        "providers": call.providers,
        "threads": call.threads,
        "seed": call.seed,
        "also_verify": call.also_verify,
        "batches": batches_of(call.batch),
        "footprint": call.tells,
        "progress": progress,
    }


def _with_command(call: Call, report: Report) -> Report:
    """With what only the command knows of where it all came from."""
    assert report.origin is not None
    command = (PROGRAM, *sys.argv[1:])
    result = call.verify_only or call.written
    return dataclasses.replace(
        report, origin=dataclasses.replace(report.origin, command=command, result=str(result) if result else None)
    )


def _papers(call: Call, report: Report, condensed: Any) -> Iterator[tuple[Path, str]]:
    """The files that tell what happened, one after the other, with their text."""
    if call.json_file is not None:
        yield call.json_file, _as_json(report)
    if call.save_plan is not None:
        yield call.save_plan, condensed.planned().text()
    if call.report is not None:
        from onnx_condense.report import html
        from onnx_condense.report.figures import Figures

        yield call.report, html.page(report, condensed.figures() if condensed else Figures())


def _save(path: Path, condensed: Any) -> None:
    try:
        condensed.save(path)
    except OSError as error:
        raise UsageError("out-write", f"{path}: can't be written: {error.strerror or error}") from error


def _save_front(folder: Path, name: str, condensed: Any) -> None:
    from onnx_condense.search.front import save_front

    save_front(condensed, name, folder)


def _check_options(call: Call) -> None:
    if call.quiet and call.verbose:
        raise UsageError("options", "--quiet and --verbose exclude each other")
    if not call.providers:
        raise UsageError("provider", "--providers: name at least one, for example CPUExecutionProvider")
    batches_of(call.batch)
    if call.plan is not None and call.metric is not None and not call.tolerance:
        raise UsageError("metric", NO_TOLERANCE)
    _check_sizes(call)
    given = {name.removeprefix("tune_"): value for name, value in call.training.items()}
    tune_of(**given | {"data": call.tune_data is not None})
    wish_for(tolerances_of(call.tolerance), RELATIVE if call.metric is None else call.metric)
    # Drawn inputs lie in no file; where one has that name it is meant.
    calibration = None if call.calibration is None else Path(call.calibration)
    inputs = {"IN": call.source, "--calibration": calibration, "--verification": call.verification, "--plan": call.plan}
    inputs["--tune-data"] = call.tune_data
    if call.verify_only is not None:
        _check_verify_only(call)
        inputs["--verify-only"] = call.verify_only
    if call.target is not None:
        check_writable(call.target, "OUT", inputs)
        if status_of(call.target, follow=False) is not None and not (call.force or call.dry_run):
            raise UsageError("out-exists", f"{call.target}: exists; --force overwrites it")
    taken: dict[str, Path | None] = {**inputs, "OUT": call.target}
    for option, path in call.papers.items():
        check_writable(path, option, taken, pipes=True)
        taken[option] = path
    _check_beside_front(call)
    if call.report is not None:
        from onnx_condense.report.needs import missing

        if what := missing():
            raise UsageError("report", f"--report: {what}")


def _check_sizes(call: Call) -> None:
    Limits(**call.limits).check()
    if multiple_of(call.multiple_of) == 0:
        raise UsageError("multiple-of", "--multiple-of 0: give a number of at least 1, or auto")
    if call.front is not None:
        check_new_folder(call.front, "--front")


def _check_beside_front(call: Call) -> None:
    """The folder of the front takes the place of an empty one, so nothing else may be put into it before."""
    for name, path in {"OUT": call.target, **call.papers}.items():
        if call.front and path and (same_file(path, call.front) or same_file(path.parent, call.front)):
            raise UsageError("same-file", f"{path}: {name} lies in the folder of --front; name another one")


def _check_verify_only(call: Call) -> None:
    """Nothing is made, so nothing that tells how to make it fits."""
    made = {
        "OUT": call.target is not None,
        "--keep": call.keep is not None,
        **dict.fromkeys(Limits(**call.limits).given(), True),
        "--multiple-of": call.multiple_of is not None,
        "--front": call.front is not None,
        "--augment": bool(call.augment),
        "--method": call.method != "fit",
        "--threshold": bool(call.threshold),
        "--plan": call.plan is not None,
        "--save-plan": call.save_plan is not None,
        **dict.fromkeys(Control(call.include, call.exclude, call.min_width, call.max_cut).given(), True),
        "--tune": call.tune,
        "--allow-slower": call.allow_slower,
        "--force": call.force,
    }
    if name := next((name for name, given in made.items() if given), ""):
        raise UsageError("verify-only", f"--verify-only and {name} exclude each other: no network is made")
    assert call.verify_only is not None
    check_source(call.verify_only)


def _check_weights(call: Call) -> None:
    """Weights lie in files that only the network names; no output may take the place of one."""
    from onnx_condense.files import check_target, weights_of

    networks = {"IN": call.source, "CONDENSED": call.verify_only}
    for whose, network in networks.items():
        weights = weights_of(network) if network else ()
        for name, target in {"OUT": call.target, **call.papers}.items():
            if network and target:
                check_target(target, name, call.target, network.parent, weights, whose)


def _show(call: Call, report: Report, made: int) -> None:
    from onnx_condense.report.terminal import closing_line, emit, page
    from onnx_condense.report.words import front_lines

    stream = sys.stderr if call.json == STDOUT else sys.stdout
    color = stream is not None and stream.isatty()
    width = shutil.get_terminal_size().columns
    text = page(report, width=width, color=color)
    closing = [closing_line(report, call.source, call.written)] if call.target or call.dry_run else []
    if call.front is not None and not call.dry_run:
        closing += front_lines(report, made, call.front, written=call.target is not None)
    emit("\n".join([text, *closing, ""]), stream)


def write_json(call: Call, report: Report) -> None:
    """The report as JSON, to where the call wants it, if it does.

    Raises:
        UsageError: it can't be written.
    """
    if call.json_file is not None:
        with contextlib.ExitStack() as beside:
            _ready(call.json_file, _as_json(report), beside)()
    elif call.json is not None:
        from onnx_condense.report.terminal import emit

        emit(_as_json(report), sys.stdout)


def _as_json(report: Report) -> str:
    data = report.as_dict()
    ordered = {"schema": data.pop("schema"), **data}
    return f"{json.dumps(finite(ordered), indent=2, allow_nan=False)}\n"


def _ready(path: Path, text: str, beside: contextlib.ExitStack) -> Callable[[], None]:
    """Write the text beside its place; what comes back puts it there, links are followed."""
    with _writing(path):
        put = beside.enter_context(ready(Path(os.path.realpath(path)), text))

    def named() -> None:
        with _writing(path):
            put()

    return named


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError("json-write", f"{path}: can't be written: {error.strerror or error}") from error


def finite(value: Any) -> Any:
    """The same data with null for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _progress(call: Call) -> contextlib.AbstractContextManager[Progress | None]:
    """A progress bar on stderr, if a person can see it; log lines would tear it apart."""
    if call.quiet or call.verbose or sys.stderr is None or not sys.stderr.isatty():
        return contextlib.nullcontext()
    from onnx_condense.report.terminal import progress_bar

    return progress_bar(sys.stderr)
