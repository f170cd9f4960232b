"""``harness``: the command line. It imports nothing heavy until a command needs it."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from harness.cli.lazy import LazyGroup
from harness.errors import HarnessError, InfraError, UsageError

COMMANDS = {
    "run": ("harness.cli.run:run", "Quantize, generate, score, measure; print the table."),
    "report": ("harness.cli.report:report", "Print the table of a run again."),
    "compare": ("harness.cli.compare:compare", "Paired differences against one row of a run."),
    "show": ("harness.cli.show:show", "Show a method, a model, a run or an artifact."),
    "list": ("harness.cli.listing:listing", "List methods, models, suites or metrics."),
    "verify": ("harness.cli.verify:verify", "Check quantized models; say what they hold."),
    "diagnose": ("harness.cli.diagnose:diagnose", "Where and when a quantized model goes wrong."),
    "fetch": ("harness.cli.fetch:fetch", "Fetch the VBench environment and weights."),
    "doctor": ("harness.cli.doctor:doctor", "Say what this machine has and what it lacks."),
    "gc": ("harness.cli.gc:gc", "Remove leftovers and old results from the store."),
}
INTERRUPTED = 130
_DEBUG = "--debug"


@click.group(
    cls=LazyGroup, table=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(package_name="vdit-quant-harness", prog_name="harness")
def cli() -> None:
    """Compare post-training quantization methods for video diffusion transformers.

    The first thing to type:

        harness run --methods s2q,ptq4dit --bits w4a6
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; every error is two lines and an exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = _DEBUG in given
    given = [argument for argument in given if argument != _DEBUG]
    try:
        result = cli.main(
            given, prog_name="harness", standalone_mode=False, auto_envvar_prefix="HARNESS"
        )
    except SystemExit:  # click ends so when the reader of our output went away (`| head`)
        raise
    except BaseException as error:
        # Usage errors come with no surprise; a traceback is for what went wrong inside.
        if debug and not isinstance(error, (click.ClickException, click.exceptions.Exit)):
            raise
        sys.exit(report_error(error))
    sys.exit(result if isinstance(result, int) else 0)


def report_error(error: BaseException) -> int:
    """Print an error as two lines; returns the exit code."""
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    if isinstance(error, BrokenPipeError):
        # The reader went away (`| head`); Python would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    found = as_harness_error(error)
    print(found, file=sys.stderr)
    return found.exit_code


def as_harness_error(error: BaseException) -> HarnessError:
    """Any exception as the two lines."""
    if isinstance(error, HarnessError):
        return error
    if isinstance(error, click.NoSuchOption):
        near = f"did you mean {error.possibilities[0]}? " if error.possibilities else ""
        return UsageError(f"option '{error.option_name}' is unknown", f"{near}see `{_help(error)}`")
    if isinstance(error, click.ClickException):
        message = error.format_message().replace("\n", " ").rstrip(".")
        return UsageError(message[:1].lower() + message[1:], f"see `{_help(error)}`")
    first = next(iter(str(error).strip().splitlines()), "")
    kind = type(error).__name__
    if isinstance(error, OSError):
        return InfraError(f"{kind}: {first}", "check the disk and the rights; --debug shows where")
    return InfraError(
        f"unexpected {kind}: {first}", "this is a bug; the same command with --debug shows where"
    )


def _help(error: Any) -> str:
    ctx = getattr(error, "ctx", None)
    return f"{ctx.command_path} --help" if ctx is not None else "harness --help"


if __name__ == "__main__":
    main()
