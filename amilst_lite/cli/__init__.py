"""The command line: parses arguments, calls `pipeline` and `results`, reports progress."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from .console import Console, write
from .interrupt import Interrupted, interruptible

if TYPE_CHECKING:
    import argparse

__all__ = ["build_parser", "main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line.

    Returns
    -------
    int
        0 on success, 1 if ``result.h5ad`` could not be written, 2 for input that cannot be used and places that
        cannot be written, 130 if interrupted (Ctrl-C), 143 if ended by SIGTERM.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal without Unicode shows escapes instead of failing
            stream.reconfigure(errors="backslashreplace")

    try:
        with interruptible(_show, to_the_end=arguments is None):
            return _main(arguments)
    except KeyboardInterrupt as error:  # `Interrupted`, unless not in the main thread
        interrupted = error if isinstance(error, Interrupted) else Interrupted(signal.SIGINT)
        _show(str(interrupted))
        if arguments is None:  # run as a program: without the second that torch takes to end in order
            os._exit(interrupted.status)
        return interrupted.status
    except BrokenPipeError:  # from the help of argparse, before Python 3.11
        return 0
    finally:
        write(sys.stdout, "")


def _show(text: str) -> None:
    console = Console(quiet=False)
    console.open_line = console.on_terminal  # there may be a bar
    console.error(text)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    # not at the top: NumPy and scikit-learn take a second, in which an interrupt would not be answered
    from . import parser

    return parser.build_parser()


def _limited_memory(gib: float | None) -> AbstractContextManager[None]:
    if gib is None:
        return nullcontext()
    from ..runtime import limited_memory  # not at the top: it imports torch

    return limited_memory(gib)


def _main(arguments: Sequence[str] | None) -> int:
    from ..errors import AmilstError

    parser = build_parser()
    options = parser.parse_args(arguments)
    # for the record, without the folders of this machine
    words = sys.argv[1:] if arguments is None else arguments
    options.line = shlex.join(
        ["amilst", *(Path(one).name if Path(one).is_absolute() else one for one in words)]
    )
    if options.command is None:
        parser.print_help()
        return 2
    console = Console(quiet=options.quiet)
    with console.listening():
        try:
            with _limited_memory(getattr(options, "memory", None)):
                return options.call(options, console) or 0
        except (AmilstError, OSError, MemoryError) as error:
            if options.debug:
                raise
            console.error(f"error: {' '.join(str(error).split()) or type(error).__name__}")
            return 2
