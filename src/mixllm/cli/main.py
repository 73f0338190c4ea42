"""The program: its commands, and what each way of ending looks like.

Exit codes: 0 done; 1 an error in mixllm itself, with its traceback, or, with no word, a reader of standard
output that went away; 2 something the user gave, one line on standard error; 130 stopped by Ctrl-C or
SIGTERM.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, NoReturn

import typer

from mixllm import __version__
from mixllm.cli import demo, evaluate, export, generate, inspect, plan, quantize, report
from mixllm.cli.console import ready_streams
from mixllm.cli.options import with_home
from mixllm.errors import Interrupted, MixllmError

READER_GONE, USER, INTERRUPTED = 1, 2, 130
# What the operating system refuses for reasons that the user can mend.
_REFUSALS = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EISDIR,
    errno.EEXIST, errno.ENOTEMPTY, errno.ENAMETOOLONG, errno.ELOOP,
}  # fmt: skip
# typer has had click inside and outside of itself; the class is reached through what it has always exported.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]

_HELP = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(
    help="Quantize LLMs to mixed 4- and 8-bit output channels with int8 activations, and run them.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings=_HELP,
)
# What each name runs, and an example for its help.
_COMMANDS: dict[str, tuple[Callable[..., None], str]] = {
    "quantize": (quantize.quantize, "meta-llama/Llama-3.2-1B -o llama-w4.4 --calibration wiki.train.raw"),
    "plan": (plan.plan, "llama-w4.4 --bits 4.8 -o plan.json"),
    "inspect": (inspect.inspect, "llama-w4.4"),
    "eval": (evaluate.evaluate, "llama-w4.4 --model meta-llama/Llama-3.2-1B --text wiki.test.raw"),
    "export": (export.export, "llama-w4.4 -o dense"),
    "report": (report.report, "llama-w4.4 --model meta-llama/Llama-3.2-1B --text wiki.test.raw"),
    "compare": (report.compare, "llama-w4.4 llama-w8 --model meta-llama/Llama-3.2-1B --text wiki.test.raw"),
    "generate": (generate.generate, "llama-w4.4 -p 'The sky is'"),
    "chat": (generate.chat, "llama-w4.4"),
    "demo": (demo.demo, "-o demo-out"),
}
for _name, (_command, _example) in _COMMANDS.items():
    app.command(_name, context_settings=_HELP, epilog=f"Example: mixllm {_name} {_example}")(
        with_home(_command)
    )


@app.callback(invoke_without_command=True)
def _program(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(f"mixllm {__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> None:
    """The program: end with run()'s exit code."""
    ready_streams()
    # Processes of torchrun may wait for each other where nothing interrupts them.
    if "WORLD_SIZE" not in os.environ:
        signal.signal(signal.SIGTERM, _stop)
    sys.exit(run(sys.argv[1:]))


def _stop(*_: object) -> NoReturn:
    """SIGTERM, by which systems ask for an end: as Ctrl-C, so that nothing half-made stays behind."""
    raise KeyboardInterrupt


def run(arguments: Sequence[str]) -> int:
    """Run the command line `arguments` and return the exit code."""
    try:
        ended = app(list(arguments), prog_name="mixllm", standalone_mode=False)
        sys.stdout.flush()  # what can't be written is said here, not by the interpreter at its end
        # Typer turns Ctrl-C into this value or into an Abort, by its version.
        return _fail("interrupted", INTERRUPTED) if ended == INTERRUPTED else 0
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", INTERRUPTED)
    except Interrupted as error:
        return _fail(str(error), INTERRUPTED)
    except MixllmError as error:
        return _fail(str(error), USER)
    except _UsageError as error:
        return _fail(error.format_message().replace("Value error, ", ""), USER)  # type: ignore[attr-defined]  # every click error has it
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the interpreter's own flush
        return READER_GONE
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        # An open file's error has no name: standard output's, since others are named where they are written.
        return _fail(f"{error.filename or 'output'}: {error.strerror}", USER)


def _fail(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code
