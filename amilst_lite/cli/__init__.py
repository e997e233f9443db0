"""The command line: parses arguments, calls `pipeline` and `results`, reports progress."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import AmilstError
from .console import Console, write
from .parser import build_parser

__all__ = ["build_parser", "main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line.

    Returns
    -------
    int
        0 on success, 1 if ``result.h5ad`` could not be written, 2 for input that cannot be used, 130 if
        interrupted.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal without Unicode shows escapes instead of failing
            stream.reconfigure(errors="backslashreplace")
    try:
        return _main(arguments)
    except BrokenPipeError:  # from the help of argparse, before Python 3.11
        return 0
    finally:
        write(sys.stdout, "")


def _main(arguments: Sequence[str] | None) -> int:
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
            return options.call(options, console) or 0
        except (AmilstError, OSError, MemoryError) as error:
            if options.debug:
                raise
            console.error(f"error: {' '.join(str(error).split()) or type(error).__name__}")
            return 2
        except KeyboardInterrupt:
            console.error("interrupted; nothing was written")
            return 130
