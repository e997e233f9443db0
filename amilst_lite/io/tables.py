"""A table of counts as text, with a table of coordinates."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

from ..errors import InputError
from .coordinates import SpotTable, join_coordinates, suffix_hint
from .files import PathLike, TextTable, examples, existing, reading
from .matrix import assemble, to_csr

if TYPE_CHECKING:
    from anndata import AnnData


def read_table(counts: PathLike, coordinates: PathLike) -> AnnData:
    """Read counts from a text table, either way round, and coordinates from another.

    Parameters
    ----------
    counts
        Table with a header and names in the first column: spots × genes or genes × spots. Separated
        by tabs, commas, semicolons or blanks; gzipped or not. It is read row by row into a sparse
        matrix; the dense one never exists.
    coordinates
        Table with a row for each spot, as `join_coordinates` takes it. Whichever axis of the counts
        it agrees with better is the spots'.

    Returns
    -------
    AnnData
        ``X``: counts, CSR, float32, n spots × d genes; ``obsm["spatial"]``: n × 2; the further columns
        of the coordinate table in ``obs``.

    Warns
    -----
    AmilstWarning
        Spots were left out, or names repeat.

    Raises
    ------
    InputError
        A file is missing, empty, broken or no table; a cell is no number; neither axis matches.
    """
    path = existing(counts)
    table = SpotTable.read(coordinates)
    table.coordinates()  # complain about a small file before reading a large one
    row_names, column_names, matrix = _read_matrix(path)
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
    return join_coordinates(assemble(to_csr(matrix), obs, var, path), table.path, copy=False)


def _read_matrix(path: Path) -> tuple[pd.Index, pd.Index, sparse.csr_matrix]:
    """Names of rows and columns, and the numbers between them, CSR, float32."""
    table = TextTable.sniff(path)
    names: list[str] = []
    columns: list[np.ndarray] = []
    values: list[np.ndarray] = []
    with reading(path, "a table of counts"):
        for name, *cells in table.rows():
            if len(cells) != len(table.header) - 1:
                raise InputError(
                    f"{path}: row {name!r} has {len(cells) + 1} fields, the first has {len(table.header)}. "
                    "The file may be cut off."
                )
            try:
                row = np.array(cells, dtype=np.float32)
            except ValueError as error:
                raise InputError(f"{path}: counts must be numbers; row {name!r}: {error}.") from error
            occupied = np.flatnonzero(row)
            names.append(name)
            columns.append(occupied.astype(np.int32))
            values.append(row[occupied])
    pointers = np.cumsum([0, *map(len, columns)])
    shape = (len(names), len(table.header) - 1)
    matrix = sparse.csr_matrix((np.concatenate(values), np.concatenate(columns), pointers), shape=shape)
    return pd.Index(names, dtype=object), pd.Index(table.header[1:], dtype=object), matrix
