"""What every reader shares: finding files, opening text, saying clearly what went wrong."""

from __future__ import annotations

import csv
import difflib
import gzip
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TextIO

from ..errors import AmilstError, InputError

PathLike = str | os.PathLike[str]


def existing(path: PathLike) -> Path:
    """``path`` as a Path that is there and, if it is a file, not empty.

    Raises
    ------
    InputError
        Nothing has that name (the message offers the nearest names), or the file has no content.
    """
    path = Path(path).expanduser()
    if not path.exists():
        folder = path.parent
        if not folder.is_dir():
            raise InputError(f"There is no file or folder {path}: its folder {folder} does not exist.")
        near = difflib.get_close_matches(path.name, [entry.name for entry in folder.iterdir()], cutoff=0.5)
        advice = f"Did you mean {examples(near)}?" if near else f"{folder} holds {listing(folder)}."
        raise InputError(f"There is no file or folder {path}. {advice}")
    if path.is_file() and path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes). Download or write it again.")
    return path


@contextmanager
def reading(path: Path, expected: str) -> Iterator[None]:
    """Turn whatever h5py, pandas, scipy or gzip raise inside into an InputError that names the file.

    Parsers meet broken files with a zoo of exceptions (OSError, KeyError, EOFError, zlib.error,
    anndata's own, ...), hence the broad clause; what we raise ourselves passes unchanged, as does a
    lack of memory, which says nothing about the file.
    """
    try:
        yield
    except (AmilstError, MemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(
            f"{path} cannot be read as {expected} ({reason}). "
            "Check that the file is complete and readable; download it again if in doubt."
        ) from error


def examples(names: Iterable[object], n: int = 3) -> str:
    """The first ``n`` of ``names`` for a message: ``'a', 'b', 'c', ...``."""
    shown = [repr(str(name)) for name in islice(names, n + 1)]
    return ", ".join([*shown[:n], "..."] if len(shown) > n else shown) or "nothing"


def listing(folder: Path) -> str:
    """What a folder holds, for a message."""
    return examples(sorted(entry.name for entry in folder.iterdir()), 8)


def find_one(folder: Path, names: Sequence[str]) -> Path | None:
    """The file in ``folder`` with one of ``names``, earlier ones preferred; None if there is none.

    Failing exact names, names with something put before them count, as public archives do
    (``GSM123_matrix.mtx.gz``), provided that there is only one such file.

    Raises
    ------
    InputError
        Several files match with different prefixes.
    """
    if not folder.is_dir():
        return None
    for name in names:
        if (folder / name).exists():
            return folder / name
    for name in names:
        prefixed = sorted(entry for entry in folder.iterdir() if entry.name.endswith(name))
        if len(prefixed) > 1:
            raise InputError(
                f"{folder} holds {len(prefixed)} files ending in {name!r} "
                f"({examples(entry.name for entry in prefixed)}); expected one. "
                "Keep each section in a folder of its own, or name its files: the counts, and the positions "
                "as coordinates=."
            )
        if prefixed:
            return prefixed[0]
    return None


def open_text(path: Path) -> TextIO:
    """Open UTF-8 text, gzipped or not; told apart by the content, whatever the name says."""
    with path.open("rb") as handle:
        gzipped = handle.read(2) == b"\x1f\x8b"
    opener: Callable[..., TextIO] = gzip.open if gzipped else open
    # utf-8-sig: spreadsheets put a byte order mark before the first header
    return opener(path, "rt", encoding="utf-8-sig", newline="")


@dataclass(frozen=True)
class TextTable:
    """A text table whose separator has been found out.

    ``header`` is the first line, as long as the rows below it: where it is one shorter (R's
    ``write.table`` leaves out the name of the row names), an empty name is put in front.
    """

    path: Path
    separator: str
    header: list[str]

    @classmethod
    def sniff(cls, path: Path) -> TextTable:
        """Find the separator from the first two lines.

        The first of tab, comma, semicolon and blank wins that splits the second line into several
        fields and the first line into as many, or one fewer. (Blank comes last, since labels such as
        "invasive cancer" hold blanks.)

        Raises
        ------
        InputError
            Fewer than two lines, or no separator makes them agree.
        """
        with reading(path, "a text table"), open_text(path) as handle:
            lines = list(islice((line for line in handle if line.strip()), 2))
        if len(lines) < 2:
            raise InputError(
                f"{path} holds {len(lines)} line(s) of text; expected a header and rows below it."
            )
        for separator in "\t,; ":
            header, row = split_rows(lines, separator)
            if len(row) > 1 and len(header) in (len(row), len(row) - 1):
                return cls(path, separator, [""] * (len(row) - len(header)) + header)
        raise InputError(
            f"{path} is no text table: its first two lines do not split into the same number of fields "
            "by tab, comma, semicolon or blank."
        )

    def rows(self) -> Iterator[list[str]]:
        """The rows below the header, one list of fields each; blank lines are passed over."""
        with open_text(self.path) as handle:
            rows = split_rows(handle, self.separator)
            yield from islice((row for row in rows if row), 1, None)


def split_rows(lines: Iterable[str], separator: str) -> Iterator[list[str]]:
    """Fields of each line; several blanks count as one separator, quotes are taken off."""
    if separator == " ":
        return csv.reader((line.strip() for line in lines), delimiter=" ", skipinitialspace=True)
    return csv.reader(lines, delimiter=separator)
