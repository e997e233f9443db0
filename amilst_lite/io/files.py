"""Common to all readers: finding files, opening text tables, reporting unreadable files."""

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
from typing import Any, TextIO

from ..errors import AmilstError, InputError

PathLike = str | os.PathLike[str]


def checked_path(path: PathLike) -> Path:
    """``path`` as a Path, ``~`` expanded.

    Raises
    ------
    InputError
        It is not a path, or an empty string (which pathlib takes for the current folder).
    """
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise InputError(f"Expected the path of a file or folder; found {path!r}.")
    return Path(path).expanduser()


def existing(path: PathLike) -> Path:
    """``path`` as the Path of an existing folder or of an existing file that is not empty.

    Raises
    ------
    InputError
        Nothing has that name (the message lists similar names), or the file has no content.
    """
    path = checked_path(path)
    if not path.exists():
        folder = path.parent
        if not folder.is_dir():
            raise InputError(f"There is no file or folder {path}: its folder {folder} does not exist.")
        near = difflib.get_close_matches(path.name, [entry.name for entry in folder.iterdir()], cutoff=0.5)
        advice = f"Did you mean {examples(near)}?" if near else f"{folder} contains {listing(folder)}."
        raise InputError(f"There is no file or folder {path}. {advice}")
    if path.is_file() and path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes). Download or write it again.")
    return path


def existing_file(path: PathLike, expected: str) -> Path:
    """As `existing`, for a reader that does not take folders; ``expected`` describes the file.

    Raises
    ------
    InputError
        As `existing`; or it is a folder.
    """
    path = existing(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder; expected {expected}. It contains {listing(path)}.")
    return path


@contextmanager
def reading(path: Path, expected: str) -> Iterator[None]:
    """Turn any error that h5py, pandas, scipy or gzip raise in the body into an InputError.

    Parsers raise many types on broken files (OSError, KeyError, EOFError, zlib.error, anndata's own, ...),
    hence the broad clause. Our own errors pass unchanged, and so does MemoryError, which does not mean
    that the file is broken.
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
    """The content of a folder for a message, hidden files last."""
    names = sorted(item.name for item in folder.iterdir())
    return examples(sorted(names, key=lambda name: str(name).startswith(".")), 8)


def find_one(folder: Path, names: Sequence[str]) -> Path | None:
    """The file in ``folder`` with one of ``names``, in order of preference; None if there is none.

    If there is no exact match, names with a prefix are accepted, as in public archives
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
                f"{folder} contains {len(prefixed)} files whose names end in {name!r} "
                f"({examples(entry.name for entry in prefixed)}); expected one. "
                "Use one folder for each section, or give the files: the counts as the input and the "
                "positions as coordinates=."
            )
        if prefixed:
            return prefixed[0]
    return None


def open_text(path: Path) -> TextIO:
    """Open UTF-8 text, compressed with gzip or not; the content decides, not the extension."""
    with path.open("rb") as handle:
        gzipped = handle.read(2) == b"\x1f\x8b"
    opener: Callable[..., TextIO] = gzip.open if gzipped else open
    # utf-8-sig: spreadsheet programs write a byte order mark before the first column name
    return opener(path, "rt", encoding="utf-8-sig", newline="")


@dataclass(frozen=True)
class TextTable:
    """A text table with a known separator.

    Attributes
    ----------
    path : Path
    separator : str
        Tab, comma, semicolon or space.
    first : list of str
        Fields of the first line. If it is one field shorter than the second line, as R's ``write.table``
        writes headers (without a name for the row names), an empty name is put in front.
    """

    path: Path
    separator: str
    first: list[str]

    @classmethod
    def sniff(cls, path: Path) -> TextTable:
        """Determine the separator from the first two lines.

        The separator is the first of tab, comma, semicolon and space that splits the second line into
        several fields and the first line into the same number, or one fewer. Space comes last because
        labels such as "invasive cancer" contain spaces.

        Raises
        ------
        InputError
            Fewer than two lines, or no separator fits.
        """
        with reading(path, "a text table"), open_text(path) as handle:
            lines = list(islice((line for line in handle if line.strip()), 2))
        if len(lines) < 2:
            raise InputError(
                f"{path} contains {len(lines)} line(s) of text; expected a header and at least one row."
            )
        for separator in "\t,; ":
            first, second = split_rows(lines, separator)
            if len(second) > 1 and len(first) in (len(second), len(second) - 1):
                return cls(path, separator, [""] * (len(second) - len(first)) + first)
        raise InputError(
            f"{path} is not a text table: its first two lines do not split into the same number of fields "
            "by tab, comma, semicolon or space."
        )

    @property
    def first_is_numeric(self) -> bool:
        """Whether the first line may be data: all its fields but the first (not empty) are numbers."""
        return bool(self.first[0]) and all(map(is_number, self.first[1:]))

    def rows(self, *, header: bool = True) -> Iterator[tuple[int, list[str]]]:
        """Line number (from 1) and fields of every row; empty lines are skipped, and so is the header."""
        with open_text(self.path) as handle:
            reader = split_rows(handle, self.separator)
            rows = ((reader.line_num, row) for row in reader if row)
            yield from islice(rows, int(header), None)


def split_rows(lines: Iterable[str], separator: str) -> Any:
    """A csv reader over ``lines``; consecutive spaces count as one separator."""
    if separator == " ":
        return csv.reader((line.strip() for line in lines), delimiter=" ", skipinitialspace=True)
    return csv.reader(lines, delimiter=separator)


def is_number(field: object) -> bool:
    """Whether a field of a table converts to float."""
    try:
        float(field)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
    return True
