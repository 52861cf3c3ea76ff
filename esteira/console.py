"""How a command line of ours speaks and ends: one JSON document or a letter of three lines, and an exit code of DESIGN 9, rule 8.

Knows no command; `esteira` and the door of each step are conducted by the same function.
"""

import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click


def emit(document: Any) -> None:
    """Print one JSON document on standard output."""
    click.echo(json.dumps(document, ensure_ascii=False, default=str))


def show(text: str) -> None:
    """Print what a command was asked for, as text, on standard output: what is read, filtered and kept."""
    click.echo(text)


def say(text: str) -> None:
    """Tell a person something beside the answer, on standard error: progress, a warning, a hint, an error."""
    click.echo(text, err=True)


@contextmanager
def interruptible(
    note: str = "", *, numbers: Sequence[signal.Signals] = (signal.SIGINT,)
) -> Iterator[Callable[[], bool]]:
    """Whether somebody asked to stop: the first of these signals asks, the second ends the process at once.

    Args:
        note: said when it is asked for.
    """
    asked = threading.Event()

    def ask(_signal: int, _frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        if note:
            say(note)

    # Only the main thread may; a program that calls a command in another keeps its own handlers.
    main = threading.current_thread() is threading.main_thread()
    former = {number: signal.signal(number, ask) for number in numbers} if main else {}
    try:
        yield asked.is_set
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def fail(error: dict[str, Any], *, as_json: bool) -> None:
    """Print an error: one JSON document, or a letter of at most three lines."""
    if as_json:
        emit({"error": {key: error[key] for key in ("code", "message", "where", "cure")}})
        return
    say(click.style("error: ", fg="red", bold=True) + str(error["message"]))
    for key in ("where", "cure"):
        if error[key]:
            say(f"  {key}: {error[key]}")


def conduct(command: click.Command, argv: Sequence[str], *, prog: str) -> None:
    """Call a command and end the process with its exit code (0 ok, 1 said no, 2 wrong, 3 quota).

    Args:
        command: what it returns is the exit code, when that is a number.
        argv: `--json` makes an error a document; `--debug`, which no command needs to know, lets a traceback through.
        prog: what the command is called in messages.
    """
    arguments = list(argv)
    as_json, debug = "--json" in arguments, "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        code = command.main(arguments, prog_name=prog, standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except (KeyboardInterrupt, click.Abort):
        cure = "run it again; nothing half-done was kept"
        fail({"code": "interrupted", "message": "stopped before its end", "where": "", "cure": cure}, as_json=as_json)
        sys.exit(1)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except click.exceptions.NoArgsIsHelpError as error:
        say(error.format_message())
        sys.exit(2)
    except click.ClickException as error:
        usage = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else prog
        fail(
            {"code": "usage", "message": error.format_message(), "where": usage, "cure": f"see `{usage} --help`"},
            as_json=as_json,
        )
        sys.exit(2)
    except Exception as error:
        from esteira.errors import EsteiraError

        if debug:
            raise
        if isinstance(error, EsteiraError):
            fail(error.to_dict(), as_json=as_json)
            sys.exit(error.exit_code)
        if isinstance(error, OSError) and error.filename is not None:
            fail(
                {
                    "code": "file",
                    "message": f"a file or folder must be there and be ours to use, but: {error.strerror}",
                    "where": str(error.filename),
                    "cure": "check the path, who may read and write there, and that a folder is not where a file belongs",
                },
                as_json=as_json,
            )
            sys.exit(2)
        fail(
            {
                "code": "internal",
                "message": f"{type(error).__name__}: {str(error)[:500]}",
                "where": "",
                "cure": "this is a fault of ours or of a library; run it again with --debug for a traceback",
            },
            as_json=as_json,
        )
        sys.exit(2)
