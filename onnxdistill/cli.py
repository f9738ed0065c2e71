"""The command line: runs a command, and turns errors into exit codes.

Exit codes: 0 done; 1 it ran and the result is refused; 2 wrong usage; 130 interrupted.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from types import FrameType

import click

import onnxdistill
from onnxdistill.commands.bench import bench_command
from onnxdistill.commands.compress import compress_command
from onnxdistill.commands.doctor import doctor_command
from onnxdistill.commands.explain import explain_command
from onnxdistill.commands.profile import profile_command
from onnxdistill.errors import OnnxDistillError, UsageError, explained, memory_error

_INTERRUPTED = 130


def _print_version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        click.echo(f"onnxdistill {onnxdistill.__version__}")
        ctx.exit()


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version.",
)
def cli() -> None:
    """Turn a slow PyTorch teacher into a small, measured, verified int8 ONNX student."""


for command in (compress_command, bench_command, profile_command, explain_command, doctor_command):
    cli.add_command(command)


def main() -> None:
    """Runs the command line and ends the process with the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A console that cannot show a character gets a question mark instead of a traceback.
            stream.reconfigure(errors="replace")
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        # Whoever starts it with `nohup` wants it to go on when the terminal is closed.
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)
    sys.exit(_run())


def _end(number: int, _frame: FrameType | None) -> None:
    """Ends like any other exit, so that nothing half-written stays behind."""
    sys.exit(128 + number)


def _run() -> int:
    try:
        code = cli.main(prog_name="onnxdistill", standalone_mode=False)
        if sys.stdout is not None:  # as a program without a terminal has it
            sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("Interrupted.", err=True)
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader, as `head`, has seen enough.
        _abandon_output()
        return 1
    except (OnnxDistillError, OSError, MemoryError) as error:
        return _refuse(error)
    except Exception as error:  # what a user's code raises may come from a lack of memory
        if (known := memory_error(error)) is None:
            raise
        return _refuse(known)
    return int(code or 0)


def _refuse(error: OnnxDistillError | OSError | MemoryError) -> int:
    """Says what went wrong, in one paragraph, and returns the exit code."""
    if isinstance(error, OSError):
        known: OnnxDistillError = explained(error, "The output")
        _abandon_output()
    elif isinstance(error, MemoryError):
        known = memory_error(error) or UsageError(str(error))
    else:
        known = error
    click.echo(f"Error: {' '.join(str(known).split())}", err=True)
    return known.exit_code


def _abandon_output() -> None:
    """What cannot be written now could not be at the end either, when Python flushes once more and complains."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
