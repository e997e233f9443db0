"""A sparse matrix from entries (row, column, count) that arrive in chunks and in any order."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

from ..errors import InputError
from .files import PathLike, reading, text_in
from .matrix import LARGEST_COUNT

_log = logging.getLogger("amilst_lite")

Progress = Callable[[int, int], None]
"""Called with the number of bytes read of a file, and its size."""

CHUNK_LINES = 2**18
"""Lines of text that are parsed at a time, 25 to 50 MB in the parser."""

_COLUMN_BITS = 20
_LARGEST_ROW = 2 ** (63 - _COLUMN_BITS) - 1
_PENDING = 2**18  # entries that wait to be merged, 3 MB and four times as much while they are sorted
_BLOCK = 2**18  # entries that are moved at a time
_GENERAL = (["integer", "general"], ["real", "general"])
_MISSING = ["", "NA", "NaN", "nan", "null"]


class EntryMatrix:
    """Entries of a sparse matrix, summed where row and column agree.

    The entries so far are kept as a CSR matrix, into which sorted batches of new ones are merged in place,
    from the back. The memory needed is hence that of the result plus one batch, whatever the order of the
    entries and however many of them there are.

    Attributes
    ----------
    rows : ndarray of int64, (n_rows,)
        Keys of the rows that have entries, ascending.
    """

    def __init__(self) -> None:
        self.rows = np.zeros(0, dtype=np.int64)
        self._indptr = np.zeros(1, dtype=np.int64)
        self._columns = np.zeros(0, dtype=np.int32)
        self._counts = np.zeros(0, dtype=np.float32)
        self._pending: list[tuple[np.ndarray, np.ndarray]] = []
        self._n_pending = 0

    def add(self, rows: np.ndarray, columns: np.ndarray, counts: np.ndarray) -> None:
        """Add entries.

        Parameters
        ----------
        rows
            Keys of the rows (m,), integers from 0 to 2^43 - 1.
        columns
            Columns (m,), integers from 0 to 2^20 - 1.
        counts
            Counts (m,), from 0 to `LARGEST_COUNT`.

        Raises
        ------
        ValueError
            A row or a column is out of range.
        """
        if not len(rows):
            return
        for what, values, largest in (
            ("row", rows, _LARGEST_ROW),
            ("column", columns, 2**_COLUMN_BITS - 1),
        ):
            if values.min() < 0 or values.max() > largest:
                raise ValueError(
                    f"{what}s must lie between 0 and {largest}; found {values.min()} to {values.max()}"
                )
        keys = (rows.astype(np.int64) << _COLUMN_BITS) | columns
        self._pending.append(_sum_equal(keys, counts.astype(np.float32)))
        self._n_pending += len(self._pending[-1][0])
        if self._n_pending >= max(_PENDING, len(self._counts) // 32):
            self._merge()

    def finish(self, n_columns: int, n_rows: int | None = None) -> sparse.csr_matrix:
        """The matrix of all entries, canonical CSR float32.

        Parameters
        ----------
        n_columns
            Number of columns.
        n_rows
            Number of rows, for keys that are numbers of rows, among which some may have no entries. Default: the
            rows are `rows`.

        Returns
        -------
        csr_matrix
            (n_rows, n_columns) or (number of keys, n_columns).

        Raises
        ------
        ValueError
            A sum exceeds `LARGEST_COUNT`.
        """
        self._merge()
        if self._counts.size and self._counts.max() >= LARGEST_COUNT:
            raise ValueError(
                f"a count adds up to {LARGEST_COUNT} or more, which float32 does not represent exactly"
            )
        indptr = self._indptr
        if n_rows is not None:
            lengths = np.zeros(n_rows + 1, dtype=np.int64)
            lengths[self.rows + 1] = np.diff(indptr)
            indptr = np.cumsum(lengths)
        shape = (len(indptr) - 1, n_columns)
        matrix = sparse.csr_matrix((self._counts, self._columns, indptr), shape=shape)
        matrix.has_canonical_format = True
        matrix.eliminate_zeros()
        return matrix

    def _merge(self) -> None:
        """Move what is pending into the matrix."""
        if not self._pending:
            return
        pending, self._pending, self._n_pending = self._pending, [], 0
        keys, counts = (
            np.concatenate([key for key, _ in pending]),
            np.concatenate([count for _, count in pending]),
        )
        del pending  # half of the memory that sorting needs
        keys, counts = _sum_equal(keys, counts)
        positions, new = self._locate(keys, counts)
        keys, counts, positions = keys[new], counts[new], positions[new]

        first = _first_of_equal(keys >> _COLUMN_BITS)
        rows, lengths = keys[first] >> _COLUMN_BITS, np.diff(first, append=len(keys))
        together = np.sort(np.concatenate([self.rows, rows]), kind="stable")
        together = together[_first_of_equal(together)]
        n_entries = np.zeros(len(together), dtype=np.int64)
        n_entries[np.searchsorted(together, self.rows)] = np.diff(self._indptr)
        n_entries[np.searchsorted(together, rows)] += lengths
        self.rows, self._indptr = together, np.concatenate([[0], np.cumsum(n_entries)])

        destinations = positions + np.arange(len(keys))
        _insert(self._columns, destinations, (keys & (2**_COLUMN_BITS - 1)).astype(np.int32))
        _insert(self._counts, destinations, counts)

    def _locate(self, keys: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where entries with sorted ``keys`` belong, and which are new; the counts of others are added."""
        n_entries = len(self._counts)
        positions = np.full(len(keys), n_entries)
        new = np.ones(len(keys), dtype=bool)
        first_row = int(np.searchsorted(self.rows, keys[0] >> _COLUMN_BITS))
        start, done = int(self._indptr[first_row]), 0
        while start < n_entries and done < len(keys):
            stop = min(start + _BLOCK, n_entries)
            first, last = np.searchsorted(self._indptr, [start, stop - 1], side="right") - 1
            ends = np.clip(self._indptr[first : last + 2], start, stop)
            block = np.repeat(self.rows[first : last + 1] << _COLUMN_BITS, np.diff(ends))
            block |= self._columns[start:stop]
            here = slice(done, done + int(np.searchsorted(keys[done:], block[-1], side="right")))
            at = np.searchsorted(block, keys[here])
            positions[here] = start + at
            equal = block[at] == keys[here]
            self._counts[start + at[equal]] += counts[here][equal]
            new[here] = ~equal
            start, done = stop, here.stop
        return positions, new


_CATEGORIES_ARE_TEXT = int(pd.__version__.split(".")[0]) < 3
"""Later versions of pandas turn categories that are all numbers into numbers, and 007 into 7."""


class Names:
    """Codes 0, 1, ... for names, in the order in which they first appear."""

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._codes)

    def encode(self, column: pd.Series) -> np.ndarray:
        """The codes of a categorical column (m,), int64."""
        codes = column.cat.codes.to_numpy()
        known = np.zeros(len(column.cat.categories), dtype=np.int64)
        for code in pd.unique(codes):
            # setdefault sees the length before it adds the name
            known[code] = self._codes.setdefault(column.cat.categories[code], len(self._codes))
        return known[codes]

    @property
    def index(self) -> pd.Index:
        """The names in the order of their codes."""
        return pd.Index(list(self._codes), dtype=object)


class Lines(NamedTuple):
    """Consecutive lines of a text table, and the number of the first one in the file, from 1."""

    first: int
    frame: pd.DataFrame


def read_lines(
    path: Path,
    columns: dict[int, tuple[str, Any]],
    *,
    separator: str,
    skip: int,
    progress: Progress | None = None,
) -> Iterator[Lines]:
    """Some columns of a text table (gzip or not), `CHUNK_LINES` lines at a time.

    Parameters
    ----------
    path
        The file.
    columns
        Position of a column in the file → its name here and its dtype. Fractional numbers may be missing (NaN).
    separator
        Between fields.
    skip
        Lines before the data.
    progress
        Called after every chunk.

    Raises
    ------
    InputError
        A field is missing or is not of its dtype, or the file is truncated.
    """
    size, reported = path.stat().st_size, 0
    fractional = [position for position, (_, dtype) in columns.items() if dtype is np.float64]
    with reading(path, "a table of counts"), path.open("rb") as raw, text_in(raw) as handle:
        for _ in range(skip):
            handle.readline()  # an iterator would read ahead
        try:
            chunks = pd.read_csv(
                handle,
                sep=r"\s+" if separator == " " else separator,
                header=None,
                usecols=list(columns),
                dtype={
                    position: str if dtype == "category" and not _CATEGORIES_ARE_TEXT else dtype
                    for position, (_, dtype) in columns.items()
                },
                # genes may be called NA, and an empty integer is an error
                keep_default_na=False,
                na_filter=bool(fractional),
                na_values=dict.fromkeys(fractional, _MISSING),
                index_col=False,
                chunksize=CHUNK_LINES,
            )
        except pd.errors.EmptyDataError:
            return
        line = skip + 1
        names = {at: name for at, (name, _) in columns.items()}
        categories = {name: "category" for name, dtype in columns.values() if dtype == "category"}
        for frame in chunks:
            yield Lines(line, frame.rename(columns=names).astype(categories))
            line += len(frame)
            if progress is not None:
                progress(raw.tell(), size)
            if line - reported > 10_000_000:
                _log.info("%s: %.0f million lines read", path, line / 1e6)
                reported = line


def read_matrix_market(path: Path) -> sparse.csr_matrix:
    """The transpose of a matrix in a Matrix Market file (gzip or not), canonical CSR float32.

    It is read in chunks; lines may come in any order, and those of the same place are summed.

    Raises
    ------
    InputError
        The file is not such a matrix, is truncated, or has an entry out of range.

    References
    ----------
    NIST, "Matrix Market exchange formats", math.nist.gov/MatrixMarket/formats.html.
    """
    expected = "a Matrix Market file"
    with reading(path, expected):
        with path.open("rb") as raw, text_in(raw) as handle:
            first = handle.readline().lower().split()
            skip, line = 1, "%"
            while line.startswith("%") or line.isspace():
                skip, line = skip + 1, handle.readline()
        if first[:3] != ["%%matrixmarket", "matrix", "coordinate"] or first[3:] not in _GENERAL:
            raise ValueError(
                f"expected a general matrix of coordinates and numbers; found {' '.join(first)!r}"
            )
        shape = tuple(map(int, line.split()))
        if len(shape) != 3:
            raise ValueError(f"expected the numbers of rows, columns and entries; found {line.strip()!r}")
        entries, n_read = EntryMatrix(), 0
        columns: dict[int, tuple[str, Any]] = {
            0: ("row", np.int64),
            1: ("column", np.int64),
            2: ("count", np.float64),
        }
        for lines in read_lines(path, columns, separator=" ", skip=skip):
            check_counts(path, lines)
            places = lines.frame[["row", "column"]].to_numpy()
            if places.min() < 1 or (places.max(axis=0) > shape[:2]).any():
                raise ValueError(
                    f"expected entries within {shape[0]} rows and {shape[1]} columns; found others"
                )
            entries.add(places[:, 1] - 1, places[:, 0] - 1, lines.frame["count"].to_numpy())
            n_read += len(places)
        if n_read != shape[2]:
            raise ValueError(f"expected {shape[2]} entries; found {n_read}")
        return entries.finish(shape[0], n_rows=shape[1])


def check_counts(path: PathLike, lines: Lines, *, positions: tuple[str, ...] = ()) -> None:
    """Refuse lines with a negative or too large ``count``, or a negative coordinate in ``positions``.

    Raises
    ------
    InputError
        The message names the first such line and what it holds.
    """
    frame = lines.frame
    counts = frame["count"].to_numpy()
    wrong = ~((counts >= 0) & (counts < LARGEST_COUNT))  # NaN, too
    expected = f"counts from 0 to {LARGEST_COUNT - 1:,}"
    for name in positions:
        if not wrong.any():
            wrong = frame[name].to_numpy() < 0
            expected = "coordinates that are not negative"
    if wrong.any():
        at = int(np.argmax(wrong))
        found = ", ".join(f"{name} {value}" for name, value in frame.iloc[at].items())
        raise InputError(
            f"{path}, line {lines.first + at}: expected {expected}; found {found} (and {wrong.sum() - 1} more "
            "such lines of those read so far). Is the file complete, and are its columns in the right order?"
        )


def _sum_equal(keys: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct keys in ascending order, and the sum of the counts of each."""
    order = np.argsort(keys, kind="stable")  # merges what is sorted already
    keys, counts = keys[order], counts[order]
    first = _first_of_equal(keys)
    return (keys, counts) if len(first) == len(keys) else (keys[first], np.add.reduceat(counts, first))


def _first_of_equal(keys: np.ndarray) -> np.ndarray:
    """Where each distinct value of sorted keys begins."""
    return np.flatnonzero(np.diff(keys, prepend=keys[:1] - 1))


def _insert(array: np.ndarray, destinations: np.ndarray, values: np.ndarray) -> None:
    """Insert ``values`` into ``array``, in place, so that they end up at ``destinations`` (ascending)."""
    # The allocator moves pages to extend a large array; np.insert would need a second one.
    array.resize(len(array) + len(values), refcheck=False)
    stop = len(array)
    while stop > 0:
        start = max(0, stop - _BLOCK)
        low, high = np.searchsorted(destinations, [start, stop])
        if high == 0:
            break  # what is left stays where it is
        block = np.empty(stop - start, dtype=array.dtype)
        inserted = np.zeros(len(block), dtype=bool)
        inserted[destinations[low:high] - start] = True
        block[inserted] = values[low:high]
        block[~inserted] = array[start - low : stop - high]
        array[start:stop] = block
        stop = start
