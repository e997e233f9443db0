"""Files that are replaced once their new content is complete.

The new content has a hidden name beside the file, which says what process writes it:
``.NAME.amilst-part-HOST-PROCESS-1a2b3c4d``. Whoever writes the same file next removes those of processes that were
killed.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["HOST", "replacing"]

HOST = re.sub(r"[^A-Za-z0-9]", "_", socket.gethostname())[:32]
"""This machine, in names of files: processes of other machines cannot be asked whether they have ended."""


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield a name beside ``target`` for its new content, which replaces it once the body has succeeded.

    If the body raises, or leaves no file, ``target`` is unchanged and nothing is left behind.

    Parameters
    ----------
    target : Path
        In an existing folder.

    Raises
    ------
    OSError
        The file cannot be written.
    """
    _remove_leftovers(target)
    temporary = target.with_name(f"{_prefix(target)}{HOST}-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        yield temporary
        with temporary.open("rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, target)
    finally:
        with suppress(OSError):
            temporary.unlink()


def _prefix(target: Path) -> str:
    return f".{target.name[:40]}.amilst-part-"  # names have at most 255 bytes


def _remove_leftovers(target: Path) -> None:
    ours = re.compile(re.escape(_prefix(target)) + re.escape(HOST) + r"-(\d+)-[0-9a-f]{8}")
    with suppress(OSError):  # a folder that must not be listed
        for path in list(target.parent.iterdir()):
            found = ours.fullmatch(path.name)
            if found and not _is_alive(int(found[1])):
                path.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    if os.name != "posix":  # where there is no such question
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # of another user
        return True
    return True
