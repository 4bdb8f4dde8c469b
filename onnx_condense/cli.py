"""The command `onnx-condense IN [OUT]`: arguments, exit codes, logs and interrupts; `command` does the work."""

import contextlib
import logging
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand

from onnx_condense import __version__
from onnx_condense.command import PROGRAM, Call, run, write_json
from onnx_condense.errors import CondenseError, UsageError
from onnx_condense.report.data import Reason, Report

EXIT_INTERNAL = 70
OPERANDS = {"source": "IN", "target": "OUT"}
EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_TERMINATED = 128 + signal.SIGTERM
JSON_ON_EXIT = (1, 3, 4)
"""Failures that the JSON file tells too; after a usage error nothing at all is written."""


class Command(TyperCommand):
    """Says usage errors in one line, like every other error."""

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        """Refuse empty texts, which variables that are not set leave: as a path they would be the folder we are in."""
        given, _, _ = self.make_parser(ctx).parse_args(list(args))
        for option in self.params:
            value = given.get(str(option.name))
            if "" in (value if isinstance(value, (list, tuple)) else (value,)):
                ctx.fail(f"{OPERANDS.get(str(option.name), option.opts[0])} is empty: is a variable not set?")
        return super().parse_args(ctx, args)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run and exit; Typer's own errors get our prefix and keep their exit code."""
        try:
            code = super().main(*args, **{**kwargs, "standalone_mode": False})
        except typer.TyperException as error:
            _complain(f"{error.format_message()} (--help lists the options)")
            code = error.exit_code
        sys.exit(code)


app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


class _Terminated(KeyboardInterrupt):
    """SIGTERM: travels as Ctrl-C does, so that temporary files are removed on the way out."""


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"{PROGRAM} {__version__}")
        raise typer.Exit


@app.command(cls=Command, context_settings={"help_option_names": ["-h", "--help"]})
def main(  # noqa: PLR0913  # the signature is the command line
    context: typer.Context,
    source: Annotated[
        Path | None, typer.Argument(metavar="IN", readable=False, help="The trained network; never touched.")
    ] = None,
    target: Annotated[
        Path | None,
        typer.Argument(metavar="OUT", readable=False, help="The condensed network; left away: report only."),
    ] = None,
    *,
    calibration: Annotated[
        str | None,
        typer.Option(
            metavar="PATH", help="Unlabeled inputs: .npz, .npy, or a folder of feeds; synthetic[:N] draws them."
        ),
    ] = None,
    verification: Annotated[
        Path | None,
        typer.Option(metavar="PATH", readable=False, help="Inputs to verify on, not a share of --calibration."),
    ] = None,
    tolerance: Annotated[
        list[str] | None,
        typer.Option(metavar="[GLOB=]X", help="Largest error, also by output; default 0.01, lossless without data."),
    ] = None,
    metric: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of errors: relative (default), per-feature, max-abs, agreement.")
    ] = None,
    keep: Annotated[
        float | None, typer.Option(metavar="X", help="Instead: share of the parameters to keep, between 0 and 1.")
    ] = None,
    max_parameters: Annotated[
        str | None, typer.Option(metavar="N", help="Or: parameters to have at most; 250k, 1.5M and 2G are numbers too.")
    ] = None,
    max_macs: Annotated[
        str | None,
        typer.Option(metavar="N", help="Or: multiply-accumulates of one pass to have at most, on the first sample."),
    ] = None,
    max_bytes: Annotated[
        str | None, typer.Option(metavar="N", help="Or: bytes of OUT at most, weights beside it included.")
    ] = None,
    max_latency: Annotated[
        float | None, typer.Option(metavar="MS", help="Or: ms of one pass, of every batch that is timed (--batch).")
    ] = None,
    speedup: Annotated[
        float | None, typer.Option(metavar="X", help="Or: X times as fast as IN, at every batch that is timed.")
    ] = None,
    multiple_of: Annotated[
        str | None, typer.Option(metavar="N", help="Narrowed widths are multiples of N; auto: of what runs well here.")
    ] = None,
    front: Annotated[
        Path | None,
        typer.Option(metavar="DIR", readable=False, help="Write networks of other sizes too, into a new folder."),
    ] = None,
    providers: Annotated[
        str, typer.Option(metavar="NAMES", help="ONNX Runtime's fallback order, separated by commas.")
    ] = "CPUExecutionProvider",
    threads: Annotated[
        int | None, typer.Option(min=1, max=1024, metavar="N", help="Threads of ONNX Runtime and BLAS; default theirs.")
    ] = None,
    json: Annotated[
        str | None, typer.Option(metavar="PATH", help="Report as JSON; '-' is stdout, the table then goes to stderr.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Do everything but write OUT.")] = False,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seed of the split and of drawn inputs.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Overwrite OUT if it exists.")] = False,
    allow_slower: Annotated[
        bool, typer.Option("--allow-slower", help="Write OUT even if it measures slower than IN.")
    ] = False,
    augment: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="Fit on N variants of each picture too: light, colour, turned, shrunk."),
    ] = 0,
    method: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="To compare with: condensation, drop, each with -refit for least squares after."
        ),
    ] = "fit",
    threshold: Annotated[
        list[str] | None,
        typer.Option(metavar="[GLOB=]X", help="Of condensation: cosine from which on neurons merge; repeatable."),
    ] = None,
    also_verify: Annotated[
        list[str] | None,
        typer.Option(metavar="PROVIDER", help="Prove and time on this ONNX Runtime provider too; repeatable."),
    ] = None,
    batch: Annotated[
        str, typer.Option(metavar="N,...", help="Samples per pass to time; default 1, and up to 256 where that works.")
    ] = "",
    include: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Touch only these layers, by node, weight or space; repeatable."),
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="Leave all channels of these layers; repeatable.")
    ] = None,
    min_width: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="No layer gets narrower than N channels.")
    ] = None,
    max_cut: Annotated[
        float | None, typer.Option(metavar="X", help="No layer loses more than this share of its channels.")
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(metavar="PATH", readable=False, help="Search nothing: which channels go is in this saved plan."),
    ] = None,
    save_plan: Annotated[
        Path | None,
        typer.Option(metavar="PATH", readable=False, help="Save which channels stay, to be reviewed and used again."),
    ] = None,
    compare_plans: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="A B", help="Print what two saved plans do differently, and nothing else."),
    ] = None,
    tune: Annotated[
        bool,
        typer.Option("--tune", help="Train OUT to answer as IN does, without labels; smaller before (extra: tune)."),
    ] = False,
    tune_minutes: Annotated[
        float | None, typer.Option(metavar="X", help="Time of all training; default 3, or --tune-steps alone.")
    ] = None,
    tune_steps: Annotated[
        int | None, typer.Option(metavar="N", help="Steps of each training; the same steps give the same OUT.")
    ] = None,
    tune_data: Annotated[
        Path | None,
        typer.Option(metavar="PATH", readable=False, help="More inputs to train on: .npz, .npy, or a folder of feeds."),
    ] = None,
    tune_loss: Annotated[
        str, typer.Option(metavar="NAME", help="mse, features, l1, or kl of classes; default as --metric asks for.")
    ] = "auto",
    rounds: Annotated[int, typer.Option(metavar="N", help="Condense and train in turn, so many times.")] = 1,
    verify_only: Annotated[
        Path | None,
        typer.Option(metavar="CONDENSED", readable=False, help="Write no network: repeat the proof for this one."),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(metavar="PATH", readable=False, help="Report as one HTML page, with pictures (extra: report)."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log to stderr what is done, with tracebacks.")] = False,
    version: Annotated[  # noqa: ARG001  # its callback answers and exits
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Write a smaller, faster ONNX network with the same inputs and outputs, within a measured tolerance.

    Exit codes: 0 done (also when nothing can go), 1 bad input file, 2 usage, 3 size or tolerance not reachable, 4
    verification found a defect, 70 internal error, 130 and 143 interrupted.
    """
    if compare_plans is not None:
        raise typer.Exit(_compared(context, compare_plans))
    if source is None:
        context.fail("Missing argument 'IN'.")
    call = Call(
        source=source,
        target=target,
        calibration=calibration,
        verification=verification,
        tolerance=tuple(tolerance or ()),
        metric=metric,
        keep=keep,
        max_parameters=max_parameters,
        max_macs=max_macs,
        max_bytes=max_bytes,
        max_latency=max_latency,
        speedup=speedup,
        multiple_of=multiple_of,
        front=front,
        providers=tuple(name.strip() for name in providers.split(",") if name.strip()),
        threads=threads or 0,
        json=json,
        dry_run=dry_run or (target is None and front is None),
        seed=seed,
        force=force,
        quiet=quiet,
        verbose=verbose,
        allow_slower=allow_slower,
        augment=augment,
        method=method,
        threshold=tuple(threshold or ()),
        also_verify=tuple(also_verify or ()),
        batch=batch,
        include=tuple(include or ()),
        exclude=tuple(exclude or ()),
        min_width=min_width,
        max_cut=max_cut,
        plan=plan,
        save_plan=save_plan,
        tune=tune,
        tune_minutes=tune_minutes,
        tune_steps=tune_steps,
        tune_data=tune_data,
        tune_loss=tune_loss,
        rounds=rounds,
        verify_only=verify_only,
        report=report,
    )
    raise typer.Exit(_guarded(call))


def _compared(context: typer.Context, plans: tuple[Path, Path]) -> int:
    """Print what two plans do differently; the exit code."""
    from onnx_condense.report.terminal import emit, inert
    from onnx_condense.saved.plans import compare, load_plan

    sources = {name: context.get_parameter_source(name) for name in context.params}
    named = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    if other := next((name for name in named if name != "compare_plans"), None):
        option = OPERANDS.get(other, "--" + other.replace("_", "-"))
        _complain(f"--compare-plans and {option} exclude each other: nothing but the two plans is read")
        return UsageError.exit_code
    try:
        one, two = map(load_plan, plans)
        for line in compare(one, two, (str(plans[0]), str(plans[1]))):
            emit(f"{inert(line)}\n", sys.stdout)
    except CondenseError as error:
        _complain(error.text)
        return error.exit_code
    return 0


def _guarded(call: Call) -> int:
    """The run's exit code; nothing but SystemExit leaves this function."""
    started = time.perf_counter()
    try:
        with _terminable(), _logs(verbose=call.verbose):
            try:
                run(call)
            except CondenseError as error:
                logging.getLogger(__name__).debug("where it was raised", exc_info=error)
                return _fail(call, error, time.perf_counter() - started)
    except _Terminated:
        _complain("terminated")
        return EXIT_TERMINATED
    except KeyboardInterrupt:
        _complain("interrupted")
        return EXIT_INTERRUPTED
    except Exception as error:  # noqa: BLE001  # the one place where a defect of ours becomes an exit code
        if call.verbose:
            traceback.print_exc()
        hint = "" if call.verbose else " (--verbose shows the details)"
        _complain(f"internal error: {type(error).__name__}: {error}{hint}")
        return EXIT_INTERNAL
    return 0


def _fail(call: Call, error: CondenseError, seconds: float) -> int:
    """Tell the error, and write it into the JSON file where the contract says so."""
    _complain(error.text)
    if error.exit_code in JSON_ON_EXIT:
        reason = Reason(error.code, error.text, error.node)
        try:
            write_json(call, Report("failed", call.dry_run, reason=reason, seconds=seconds, method=call.method))
        except UsageError as second:
            _complain(second.text)
    return error.exit_code


def _complain(text: str) -> None:
    from onnx_condense.report.terminal import emit, inert

    with contextlib.suppress(UsageError):
        emit(f"{PROGRAM}: error: {inert(' '.join(text.split()))}\n", sys.stderr)


@contextlib.contextmanager
def _logs(*, verbose: bool) -> Iterator[None]:
    """Our log and Python's warnings go to stderr if asked for, else nowhere: what users must know is in the report."""
    handler = logging.StreamHandler() if verbose else logging.NullHandler()
    handler.setFormatter(logging.Formatter("%(relativeCreated)6.0f ms  %(name)s: %(message)s"))
    loggers = (logging.getLogger(__package__), logging.getLogger("py.warnings"))
    logging.captureWarnings(capture=True)
    for logger in loggers:
        logger.setLevel(logging.DEBUG if verbose else logging.WARNING)
        logger.addHandler(handler)
    try:
        yield
    finally:
        logging.captureWarnings(capture=False)
        for logger in loggers:
            logger.removeHandler(handler)
            logger.setLevel(logging.NOTSET)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM raises, so that `finally` blocks run; only the main thread may say so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(signum: int, _frame: FrameType | None) -> NoReturn:
        # A second signal must not cut the cleaning-up short.
        signal.signal(signum, signal.SIG_IGN)
        raise _Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
