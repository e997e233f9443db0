"""A text table of counts, with a table of coordinates."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

from ..errors import InputError, warn
from .coordinates import SpotTable, join_table, suffix_hint
from .entries import EntryMatrix
from .files import (
    PathLike,
    TextTable,
    comma_hint,
    examples,
    existing_file,
    is_number,
    reading,
    split_rows,
    text_head,
)
from .matrix import GrowingArray, assemble, to_csr
from .platform import Platform

if TYPE_CHECKING:
    from anndata import AnnData

_log = logging.getLogger("amilst_lite")

_BLOCK = 2_000_000
"""Characters of a table of counts that are parsed at once: at most a million numbers."""


def read_table(counts: PathLike, coordinates: PathLike, *, complete: bool = True) -> AnnData:
    """Read counts from a text table, in either orientation, and coordinates from another table.

    Parameters
    ----------
    counts
        Table with a header and names in the first column: spots × genes or genes × spots. Separated by
        tabs, commas, semicolons or spaces; compressed with gzip or not. It is read in blocks into a sparse
        matrix; the dense matrix is never in memory. The header may be missing from a spots × genes table;
        genes are then named ``gene_1``, ``gene_2``, ...
    coordinates
        Table with one row per spot, see `join_coordinates`. The axis of the counts that agrees better with
        it is the axis of the spots.
    complete
        Whether spots of the coordinate table without counts mean that the counts may be incomplete.

    Returns
    -------
    AnnData
        ``X``: counts, CSR, float32, n spots × d genes; ``obsm["spatial"]``: (n, 2) or (n, 3), float64; the
        other columns of the coordinate table in ``obs``.

    Warns
    -----
    AmilstWarning
        Spots were left out; names repeat; the counts have no header; or spots of the coordinate table have
        no counts, as when the file was truncated at the end of a line.

    Raises
    ------
    InputError
        A file is missing, empty, truncated or not a table; a cell is not a number; neither axis matches; or
        whether the first line is a header is ambiguous.
    """
    path = existing_file(counts, "a table of counts (csv or tsv)")
    return read_with_spots(path, SpotTable.read(coordinates), complete=complete)


def read_with_spots(path: Path, table: SpotTable, *, complete: bool) -> AnnData:
    """As `read_table`, with a table of coordinates that has been read."""
    table.coordinates()  # report errors in a small file before reading a large one
    row_names, column_names, matrix = _read_matrix(path, table)
    in_rows, in_columns = table.match(row_names), table.match(column_names)
    if in_rows.found == in_columns.found == 0:
        hint = suffix_hint(row_names, in_rows.identifiers) or suffix_hint(
            column_names, in_columns.identifiers
        )
        raise InputError(
            f"Neither the rows of {path} (e.g. {examples(row_names)}) nor its columns (e.g. "
            f"{examples(column_names)}) are spots of {table.path} (e.g. {examples(in_rows.identifiers)}, "
            f"column {in_rows.column!r}): 0 of {len(row_names)} rows and 0 of {len(column_names)} columns "
            f"match.{hint}"
        )
    if in_columns.found > in_rows.found:
        row_names, column_names, matrix = column_names, row_names, matrix.T
    obs, var = pd.DataFrame(index=row_names), pd.DataFrame(index=column_names)
    adata = join_cells(assemble(to_csr(matrix), obs, var, path), table, path, complete=complete)
    return TABLE.describe(adata, path, **table.description())


def is_table(path: Path) -> bool:
    """Whether a file is text other than Matrix Market."""
    head = text_head(path)
    return head is not None and not head.startswith("%%MatrixMarket")


def join_cells(adata: AnnData, table: SpotTable, source: Path, *, complete: bool = True) -> AnnData:
    """`join_table`, with a warning if spots of the table have no counts in ``source``.

    Parameters
    ----------
    complete
        Whether every spot of the table should have counts; if not, their number is logged.
    """
    names = adata.obs_names
    joined = join_table(adata, table, copy=False)
    identifiers = table.match(names).identifiers
    deselected, _ = table.deselected()
    listed = identifiers[~deselected & identifiers.notna()]
    without_counts = listed[~listed.isin(names)]
    if len(without_counts):
        message = (
            f"{source} has counts of {len(listed) - len(without_counts)} spots, but {table.path} lists "
            f"{len(listed)}: {len(without_counts)} have no counts (e.g. {examples(without_counts)})."
        )
        if complete:
            message += " Check that the table of counts is complete."
            warn(message)
        else:
            _log.info(message)
    return joined


def _has_header(table: TextTable, spots: SpotTable) -> bool:
    """Whether the first line of a table of counts holds names rather than counts.

    Raises
    ------
    InputError
        It holds only numbers, which may be names (of genes or spots) or counts.
    """
    if not table.first_is_numeric:
        return True
    name, *fields = table.first
    if not is_number(name):
        if spots.match(pd.Index([name])).found:
            return False
        if len(set(fields)) == len(fields):  # names do not repeat, counts do
            return True
    raise InputError(
        f"{table.path}, line 1: expected names, found numbers ({examples([name, *fields])}), which may be "
        "counts of a table without a header. Add a first line with the names of the columns, and names of "
        "the rows as the first column if there are none."
    )


def _read_matrix(
    path: Path, spots: SpotTable
) -> tuple[pd.Index, pd.Index, sparse.csr_matrix | sparse.csc_matrix]:
    """Names of rows and columns, and the numbers, float32: as CSR, or as CSC if the columns are spots."""
    table = TextTable.sniff(path)
    n_columns = len(table.first) - 1
    has_header = _has_header(table, spots)
    column_names = table.first[1:] if has_header else [f"gene_{i + 1}" for i in range(n_columns)]
    if not has_header:
        warn(
            f"{path} has no header: its first line has the counts of spot {table.first[0]!r}. The genes are "
            f"named gene_1 to gene_{n_columns}."
        )
    columns = pd.Index(column_names, dtype=object)
    by_column = has_header and spots.match(columns).found > 0
    names, matrix = read_numbers(table, has_header=has_header, by_column=by_column)
    return pd.Index(names[:, 0], dtype=object), columns, matrix


def read_numbers(
    table: TextTable,
    *,
    n_names: int = 1,
    has_header: bool = True,
    kept: np.ndarray | None = None,
    by_column: bool = False,
) -> tuple[np.ndarray, sparse.csr_matrix | sparse.csc_matrix]:
    """Read a table of counts in blocks of lines; the dense matrix is never in memory.

    Parameters
    ----------
    table
        n rows.
    n_names
        Number of columns, at the left, that hold names.
    has_header
        Skip the first line.
    kept
        Which of the d columns of numbers to keep, (d,), bool; default all.
    by_column
        Collect the numbers by columns, as their transpose is needed: it takes more time, but not
        the memory of both.

    Returns
    -------
    names : numpy.ndarray
        (n, n_names), object.
    matrix : scipy.sparse.csr_matrix or csc_matrix
        The numbers, (n, number of columns kept), float32; CSC if ``by_column``. Its memory is needed, and that of
        one block.

    Raises
    ------
    InputError
        A row has another number of fields than the first line, or a field that is not a number.
    """
    n_columns = len(table.first) - n_names
    kept = np.ones(n_columns, dtype=bool) if kept is None else kept
    names: list[str] = []
    entries = _ByColumn() if by_column else _ByRow()
    with reading(table.path, "a table of counts"), table.body(has_header=has_header) as (handle, done):
        while lines := handle.readlines(_BLOCK):
            block = _parse_lines(lines, table.separator, n_names, n_columns)
            if block is None:
                block = _parse_rows(lines, table, n_names, n_columns, done)
            done += len(lines)
            names += block[0]
            numbers = _nonzero(block[1], kept)
            del lines, block  # before the next ones need memory
            entries.add(numbers)
            del numbers
        matrix = entries.finish(int(kept.sum()))
    return np.array(names, dtype=object).reshape(matrix.shape[0], n_names), matrix


class _ByRow:
    """Blocks of rows that become a CSR matrix."""

    def __init__(self) -> None:
        self._data, self._indices = GrowingArray(np.float32), GrowingArray(np.int32)
        self._lengths = [np.zeros(1, dtype=np.int64)]

    def add(self, block: sparse.csr_matrix) -> None:
        self._data.extend(block.data)
        self._indices.extend(block.indices)
        self._lengths.append(np.diff(block.indptr))

    def finish(self, n_columns: int) -> sparse.csr_matrix:
        indptr = np.cumsum(np.concatenate(self._lengths))
        arrays = (self._data.values, self._indices.values, indptr)
        return sparse.csr_matrix(arrays, shape=(len(indptr) - 1, n_columns))


class _ByColumn:
    """Blocks of rows that become a CSC matrix."""

    def __init__(self) -> None:
        self._entries = EntryMatrix()
        self._n_rows = 0

    def add(self, block: sparse.csr_matrix) -> None:
        rows = np.repeat(np.arange(block.shape[0]), np.diff(block.indptr)) + self._n_rows
        self._n_rows += block.shape[0]
        self._entries.add(block.indices, rows, block.data)

    def finish(self, n_columns: int) -> sparse.csc_matrix:
        return self._entries.finish(self._n_rows, n_columns).T


def _nonzero(numbers: np.ndarray, kept: np.ndarray) -> sparse.csr_matrix:
    """The nonzero ``numbers`` (m, d) in the columns ``kept`` (d,)."""
    rows, columns = np.nonzero(numbers)
    if not kept.all():
        inside = kept[columns]
        rows, columns = rows[inside], columns[inside]
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(numbers)))])
    with np.errstate(over="ignore"):  # `matrix.assemble` refuses what is too large
        values = numbers[rows, columns].astype(np.float32)
    position = np.cumsum(kept, dtype=np.int32) - 1  # among the columns kept
    return sparse.csr_matrix((values, position[columns], indptr), shape=(len(numbers), int(kept.sum())))


def _parse_lines(
    lines: list[str], separator: str, n_names: int, n_columns: int
) -> tuple[list[str], np.ndarray] | None:
    """Names, row by row, and numbers of lines without quotes but around names; None if they hold anything else.

    Several times as fast as the csv module, as numpy reads a block at once.
    """
    names: list[str] = []
    fields: list[str] = []
    if separator == " ":
        return None
    for line in lines:
        parts = line.rstrip("\r\n").split(separator, n_names)
        if len(parts) != n_names + 1 or parts[-1].count(separator) != n_columns - 1:
            return None
        if '"' in line:
            parts = [*map(_without_quotes, parts[:-1]), parts[-1]]
            if any('"' in part for part in parts):
                return None
        names += parts[:n_names]
        fields.append(parts[-1])
    text = separator.join(fields)
    del fields
    numbers = None
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)  # numpy's for text that is not a number
        for dtype in (np.int64, np.float64):  # integers are read faster
            try:
                numbers = np.fromstring(text, dtype=dtype, sep=separator)
                break
            except (ValueError, DeprecationWarning):
                continue
    # between tabs, numpy skips empty fields
    if numbers is None or numbers.size != len(lines) * n_columns:
        return None
    return names, numbers.reshape(len(lines), n_columns)


def _without_quotes(field: str) -> str:
    """A field without the quotes around it."""
    return field[1:-1] if len(field) > 1 and field[0] == field[-1] == '"' else field


def _parse_rows(
    lines: list[str], table: TextTable, n_names: int, n_columns: int, done: int
) -> tuple[list[str], np.ndarray]:
    """Names, row by row, and numbers of any lines; ``done`` lines were before them."""
    names: list[str] = []
    numbers: list[np.ndarray] = []
    reader = split_rows(lines, table.separator)
    for row in reader:
        if not row:
            continue
        line = done + reader.line_num
        label = row[: max(1, n_names)]
        if len(row) != n_names + n_columns:
            raise InputError(
                f"{table.path}, line {line}: row {'_'.join(label)!r} has {len(row)} fields, the first line has "
                f"{n_names + n_columns}. The file may be truncated; download it again if in doubt."
            )
        try:
            numbers.append(np.array(row[n_names:], dtype=np.float32))
        except ValueError as error:
            wrong = next(field for field in row[n_names:] if not is_number(field))
            raise InputError(
                f"{table.path}, line {line}: counts must be numbers; row {'_'.join(label)!r}: {error}."
                f"{comma_hint(wrong)}"
            ) from error
        names += row[:n_names]
    return names, np.array(numbers, dtype=np.float32).reshape(len(numbers), n_columns)


TABLE = Platform(
    name="table",
    title="table of counts",
    files="text, spots in rows or in columns, `.gz` or not, with `--coordinates TABLE`",
    read=read_table,
    recognizes=is_table,
    options=("coordinates",),
    needs_coordinates=True,
)
