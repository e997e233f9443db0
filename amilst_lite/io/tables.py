"""A text table of counts, with a table of coordinates."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

from ..errors import AmilstWarning, InputError
from .coordinates import SpotTable, join_table, suffix_hint
from .files import PathLike, TextTable, examples, existing_file, is_number, reading
from .matrix import assemble, to_csr

if TYPE_CHECKING:
    from anndata import AnnData


def read_table(counts: PathLike, coordinates: PathLike) -> AnnData:
    """Read counts from a text table, in either orientation, and coordinates from another table.

    Parameters
    ----------
    counts
        Table with a header and names in the first column: spots × genes or genes × spots. Separated by
        tabs, commas, semicolons or spaces; compressed with gzip or not. It is read row by row into a sparse
        matrix; the dense matrix is never in memory. The header may be missing from a spots × genes table;
        genes are then named ``gene_1``, ``gene_2``, ...
    coordinates
        Table with one row per spot, see `join_coordinates`. The axis of the counts that agrees better with
        it is the axis of the spots.

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
    table = SpotTable.read(coordinates)
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
    best = in_rows
    if in_columns.found > in_rows.found:
        best = in_columns
        row_names, column_names, matrix = column_names, row_names, matrix.T
    deselected, _ = table.deselected()
    listed = best.identifiers[~deselected & best.identifiers.notna()]
    without_counts = listed[~listed.isin(row_names)]
    if len(without_counts):
        warnings.warn(
            f"{path} has counts of {len(listed) - len(without_counts)} spots, but {table.path} lists "
            f"{len(listed)}: {len(without_counts)} have no counts (e.g. {examples(without_counts)}). "
            "Check that the table of counts is complete.",
            AmilstWarning,
            stacklevel=2,
        )
    obs, var = pd.DataFrame(index=row_names), pd.DataFrame(index=column_names)
    return join_table(assemble(to_csr(matrix), obs, var, path), table, copy=False)


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


def _read_matrix(path: Path, spots: SpotTable) -> tuple[pd.Index, pd.Index, sparse.csr_matrix]:
    """Names of rows and columns, and the numbers as CSR, float32."""
    table = TextTable.sniff(path)
    n_columns = len(table.first) - 1
    has_header = _has_header(table, spots)
    column_names = table.first[1:] if has_header else [f"gene_{i + 1}" for i in range(n_columns)]
    if not has_header:
        warnings.warn(
            f"{path} has no header: its first line has the counts of spot {table.first[0]!r}. The genes are "
            f"named gene_1 to gene_{n_columns}.",
            AmilstWarning,
            stacklevel=3,
        )
    row_names: list[str] = []
    columns: list[np.ndarray] = []
    values: list[np.ndarray] = []
    with reading(path, "a table of counts"):
        for line, (name, *cells) in table.rows(header=has_header):
            if len(cells) != n_columns:
                raise InputError(
                    f"{path}, line {line}: row {name!r} has {len(cells) + 1} fields, the first line has "
                    f"{n_columns + 1}. The file may be truncated; download it again if in doubt."
                )
            try:
                row = np.array(cells, dtype=np.float32)
            except ValueError as error:
                raise InputError(
                    f"{path}, line {line}: counts must be numbers; row {name!r}: {error}."
                ) from error
            nonzero = np.flatnonzero(row)
            row_names.append(name)
            columns.append(nonzero.astype(np.int32))
            values.append(row[nonzero])
    indptr = np.cumsum([0, *map(len, columns)])
    shape = (len(row_names), n_columns)
    matrix = sparse.csr_matrix((np.concatenate(values), np.concatenate(columns), indptr), shape=shape)
    return pd.Index(row_names, dtype=object), pd.Index(column_names, dtype=object), matrix
