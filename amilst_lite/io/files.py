"""Common to all readers: finding files, opening text tables, reporting unreadable files."""

from __future__ import annotations

import csv
import difflib
import gzip
import io
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import h5py

from ..errors import AmilstError, InputError
from .bounds import most_text

PathLike = str | os.PathLike[str]

_LONGEST_LINE = 2**25
"""Bytes of a line of compressed text: a million columns have half of it."""

_PIECE = 2**16

COMMENT = "#DGE"
"""Start of the lines that Drop-seq's tools write before the header of a table of counts."""


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
        Nothing has that name (the message lists similar names); it is a symbolic link to nothing, a pipe or a
        device; it must not be read; or the file has no content.
    """
    path = checked_path(path)
    try:
        exists = path.exists()
    except PermissionError:
        raise InputError(f"{path.parent} must not be read (permission denied).") from None
    if not exists:
        if path.is_symlink():
            raise InputError(
                f"{path} is a symbolic link to {os.readlink(path)}, which does not exist. Correct the link or "
                "give the file itself."
            )
        folder = path.parent
        if not folder.is_dir():
            raise InputError(f"There is no file or folder {path}: its folder {folder} does not exist.")
        near = difflib.get_close_matches(path.name, [entry.name for entry in folder.iterdir()], cutoff=0.5)
        there = "The current folder" if folder == Path() else str(folder)
        advice = f"Did you mean {examples(near)}?" if near else f"{there} contains {listing(folder)}."
        raise InputError(f"There is no file or folder {path}. {advice}")
    if not path.is_file() and not path.is_dir():
        # opening a pipe would wait for its writer, and every reader opens its input several times
        raise InputError(
            f"{path} is a pipe, a socket or a device; expected a file or folder. Write its content to a file."
        )
    if not os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0)):
        raise InputError(f"{path} must not be read (permission denied). Change its permissions (chmod u+r).")
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
    """The content of a folder for a message, hidden files last; without what runs that write there leave for a time."""
    names = sorted(item.name for item in folder.iterdir() if ".amilst-" not in item.name)
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


def holds(folder: Path, *names: Sequence[str]) -> bool:
    """Whether a folder has, for each of ``names``, an entry that ends in one of them."""
    try:
        found = [entry.name for entry in folder.iterdir()]
    except OSError:  # not a folder, or unreadable
        return False
    return all(any(name.endswith(tuple(endings)) for name in found) for endings in names)


def open_text(path: Path, *, at_once: bool = False) -> TextIO:
    """Open UTF-8 or UTF-16 text, compressed with gzip or not; the content decides, not the extension.

    Parameters
    ----------
    path
    at_once
        All of it will be in memory: compressed text that is longer than a file of its size should hold is an error
        when it is read. So is a line of more than 2^25 bytes, always.

    Raises
    ------
    InputError
        As `existing`, of a pipe for example.
    """
    return text_in(existing(path).open("rb"), most=most_text(path.stat().st_size) if at_once else None)


def text_in(raw: BinaryIO, *, most: int | None = None) -> io.TextIOWrapper:
    """The text in an open file, which is closed with it, as `open_text`; ``raw`` tells how far it has been read."""
    content: Any = _Gunzip(raw, most) if raw.read(2) == b"\x1f\x8b" else raw
    raw.seek(0)
    try:
        mark = content.read(2)
        content.seek(0)
    except BaseException:
        raw.close()
        raise
    # Spreadsheet programs write a byte order mark before the first column name; "Unicode text" is UTF-16.
    encoding = "utf-16" if mark in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    # all line ends become "\n": of "\n\r", pandas' parser takes gigabytes and minutes
    return io.TextIOWrapper(content, encoding=encoding)


class _Gunzip(gzip.GzipFile):
    """Decompressed text that is not longer than ``most`` bytes, and has no line of more than 2^25 bytes."""

    def __init__(self, raw: BinaryIO, most: int | None) -> None:
        super().__init__(fileobj=raw, mode="rb")
        self.myfileobj = raw  # type: ignore[assignment]  # to be closed
        self._most, self._line = most, 0

    def read(self, size: int | None = -1) -> bytes:
        """So many bytes, or all that are left."""
        if size is not None and size >= 0:
            return super().read(size)
        return b"".join(iter(lambda: self.read1(_PIECE), b""))

    def read1(self, size: int = -1) -> bytes:
        """What the next step of the decompression yields; this is how `TextIOWrapper` reads lines."""
        piece = super().read1(size)
        end = max(piece.rfind(b"\n"), piece.rfind(b"\r"))
        self._line = len(piece) - end - 1 + (self._line if end < 0 else 0)
        if self._line > _LONGEST_LINE:
            raise ValueError(f"it has a line of more than {_LONGEST_LINE:,} bytes")
        if self._most is not None and self.tell() > self._most:
            raise ValueError(f"it holds more than {self._most:,} bytes of text")
        return piece


def hdf5_has(path: Path, test: Callable[[h5py.File], bool]) -> bool:
    """Whether ``path`` is an HDF5 file that passes ``test``; False if it cannot be read."""
    try:
        if not path.is_file() or not h5py.is_hdf5(path):
            return False
        with h5py.File(path, "r") as file:
            return test(file)
    except Exception:  # h5py raises many types on broken files
        return False


def binary_head(path: Path) -> bytes:
    """The first 512 bytes of a file, or of what is in it if it is compressed with gzip; empty if it is broken."""
    try:
        with path.open("rb") as handle:
            head = handle.read(512)
        if head.startswith(b"\x1f\x8b"):
            with gzip.open(path, "rb") as content:
                head = content.read(512)
    except (OSError, EOFError, zlib.error):
        return b""
    return head


def text_head(path: Path) -> str | None:
    """The first 4096 characters of a text file; None if ``path`` is no text or cannot be read."""
    try:
        if not path.is_file():
            return None
        with open_text(path) as handle:
            head = handle.read(4096)
    except (OSError, EOFError, ValueError, zlib.error):
        return None
    return None if "\0" in head else head


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

        The separator is that of tab, comma and semicolon that splits the second line into the most fields,
        at least two, and the first line into the same number, or one fewer; the first of equals. Space is
        used if none of them does, because labels such as "invasive cancer" contain spaces.

        Raises
        ------
        InputError
            As `existing`; fewer than two lines; or no separator fits.
        """
        path = existing(path)
        with reading(path, "a text table"), open_text(path) as handle:
            lines = list(
                islice((line for line in handle if line.strip() and not line.startswith(COMMENT)), 2)
            )
        if len(lines) < 2:
            raise InputError(
                f"{path} contains {len(lines)} line(s) of text; expected a header and at least one row."
            )
        best: TextTable | None = None
        for separator in "\t,; ":
            try:
                rows = list(split_rows(lines, separator))
            except csv.Error:  # a line of 131072 characters without this separator
                continue
            if len(rows) != 2:  # a field in quotes that goes on in the next line
                continue
            first, second = rows
            fits = len(second) > 1 and len(first) in (len(second), len(second) - 1)
            n_found = len(best.first) if best is not None else 0
            if fits and len(second) > n_found and (best is None or separator != " "):
                best = cls(path, separator, [""] * (len(second) - len(first)) + first)
        if best is not None:
            return best
        raise InputError(
            f"{path} is not a text table: its first two lines do not split into the same number of fields "
            "by tab, comma, semicolon or space."
        )

    @property
    def first_is_numeric(self) -> bool:
        """Whether the first line may be data: all its fields but the first (not empty) are numbers."""
        return bool(self.first[0]) and all(map(is_number, self.first[1:]))

    @contextmanager
    def body(self, *, has_header: bool = True) -> Iterator[tuple[TextIO, int]]:
        """The open file after the header, if there is one, and the number of lines before."""
        with open_text(self.path) as handle:
            n_before = 0
            while has_header:
                line = handle.readline()
                n_before += 1
                has_header = not line.strip() or line.startswith(COMMENT)
            yield handle, n_before


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


def comma_hint(field: object) -> str:
    """A hint for the message if a field is a number with a decimal comma."""
    text = str(field).strip()
    comma = text.count(",") == 1 and not is_number(text) and is_number(text.replace(",", "."))
    return f" {text!r} has a decimal comma; write {text.replace(',', '.')!r}." if comma else ""
