"""A text table in long format: one line for each spot and gene with counts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .. import keys
from ..errors import InputError
from .coordinates import SpotTable
from .entries import EntryMatrix, Names, Progress, check_counts, read_lines
from .files import PathLike, TextTable, examples, existing_file, reading, split_rows, text_head
from .matrix import assemble
from .platform import Platform
from .tables import join_cells

if TYPE_CHECKING:
    from anndata import AnnData

_COLUMNS = {
    "spot": (
        "spot",
        "spotid",
        "spotname",
        "barcode",
        "cell",
        "cellid",
        "cellname",
        "bead",
        "beadid",
        "bin",
        "binid",
    ),
    "gene": (
        "gene",
        "geneid",
        "genename",
        "genesymbol",
        "symbol",
        "feature",
        "featurename",
        "featureid",
        "target",
    ),
    "count": (
        "count",
        "counts",
        "umi",
        "umis",
        "umicount",
        "umicounts",
        "ncounts",
        "midcount",
        "midcounts",
        "n",
    ),
    "x": ("x", "xcoord", "xcentroid", "centerx"),
    "y": ("y", "ycoord", "ycentroid", "centery"),
}
"""Our name of a column → its names in files, in lower case, without dots, spaces and underscores."""

_MOST_COLUMNS = 20  # a header with more is that of a matrix, in which genes may have any name


def read_long_table(
    path: PathLike, coordinates: PathLike | None = None, *, progress: Progress | None = None
) -> AnnData:
    """Read counts from a text table with one line for each spot and gene.

    Parameters
    ----------
    path
        Table with a header: a spot (``spot``, ``barcode``, ``cell_id``, ...), a gene (``gene``, ``feature_name``,
        ...), a count (``count``, ``umi``, ``n``, ...) and optionally x and y, in any order and with any further
        columns. Separated by tabs, commas, semicolons or spaces; gzip or not. Lines may come in any order; those
        of the same spot and gene are summed. It is read in chunks.
    coordinates
        Table with one row per spot (`join_coordinates`); required unless the lines have x and y.
    progress
        Called with the bytes read and the size of the file.

    Returns
    -------
    AnnData
        Spots and genes in the order in which they first appear. ``X``: counts, CSR, float32;
        ``obsm["spatial"]``: (n, 2), or (n, 3) from a table of coordinates, float64, in the unit of the table.

    Warns
    -----
    AmilstWarning
        Spots were left out or have no counts, as `read_table`.

    Raises
    ------
    InputError
        A file is missing, empty, truncated or not such a table; a count is not a number, is negative or too
        large for float32; a spot has several positions; or there are no coordinates.
    """
    path = existing_file(path, "a table of counts")
    table = TextTable.sniff(path)
    columns = _find_columns(table.first)
    if not {"spot", "gene", "count"} <= set(columns):
        raise InputError(
            f"{path} is not a table in long format: expected columns of the spot (spot, barcode, cell_id), the gene "
            f"(gene, feature_name) and the count; found {examples(table.first, 12)}."
        )
    spots_table = None if coordinates is None else SpotTable.read(coordinates)
    has_positions = {"x", "y"} <= set(columns)
    if spots_table is not None:
        spots_table.coordinates()  # report errors in a small file before reading a large one
    elif not has_positions:
        raise InputError(
            f"{path} has counts but no coordinates: neither columns x and y nor a table of them. Add a table with one "
            "row per spot (name, x, y): coordinates=TABLE, on the command line --coordinates TABLE."
        )
    dtypes: dict[str, Any] = {"spot": "category", "gene": "category", "count": np.float64}
    if spots_table is None:
        dtypes |= {"x": np.float64, "y": np.float64}
    wanted = {columns[name]: (name, dtype) for name, dtype in dtypes.items()}

    entries, spots, genes, positions = EntryMatrix(), Names(), Names(), _Positions(path)
    with table.body() as (_, n_before):
        pass
    for lines in read_lines(path, wanted, separator=table.separator, skip=n_before, progress=progress):
        check_counts(path, lines)
        rows, columns_of_genes = spots.encode(lines.frame["spot"]), genes.encode(lines.frame["gene"])
        if spots_table is None:
            positions.add(spots, rows, lines.frame[["x", "y"]].to_numpy())
        with reading(path, "a table of counts"):
            entries.add(rows, columns_of_genes, lines.frame["count"].to_numpy())
    with reading(path, "a table of counts"):
        matrix = entries.finish(len(genes))
    # every spot has a line, and hence an entry
    adata = assemble(matrix, pd.DataFrame(index=spots.index), pd.DataFrame(index=genes.index), path)
    if spots_table is not None:
        adata = join_cells(adata, spots_table, path)
    else:
        adata.obsm[keys.SPATIAL] = positions.values
    return LONG_TABLE.describe(adata, path, **({} if spots_table is None else spots_table.description()))


class _Positions:
    """The position of each spot, which all of its lines must share."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values = np.zeros((0, 2))

    def add(self, spots: Names, rows: np.ndarray, positions: np.ndarray) -> None:
        if len(spots) > len(self.values):
            new = np.full((len(spots) - len(self.values), 2), np.nan)
            seen, first = np.unique(rows, return_index=True)
            self.values = np.concatenate([self.values, new])
            unknown = np.isnan(self.values[seen, 0])
            self.values[seen[unknown]] = positions[first[unknown]]
        differs = (positions != self.values[rows]).any(axis=1)  # and so does NaN
        if differs.any():
            at = int(np.argmax(differs))
            found = " and ".join(str(tuple(one[at].tolist())) for one in (self.values[rows], positions))
            raise InputError(
                f"{self.path}: spot {spots.index[rows[at]]!r} has the positions {found}; expected one position for "
                "each spot, and numbers. If x and y "
                "are those of molecules, give the positions of the spots in a table (coordinates=TABLE)."
            )


def _find_columns(header: list[str]) -> dict[str, int]:
    """Our name of a column → its position, for those that are there."""
    if len(header) > _MOST_COLUMNS:
        return {}
    plain = [re.sub(r"[^a-z0-9]", "", name.lower()) for name in header]
    return {
        ours: next(plain.index(name) for name in theirs if name in plain)
        for ours, theirs in _COLUMNS.items()
        if set(theirs) & set(plain)
    }


def _recognizes(path: Path) -> bool:
    first = next(iter((text_head(path) or "").splitlines()), "")
    headers: list[list[str]] = [next(split_rows([first], separator), []) for separator in "\t,; "]
    return any({"spot", "gene", "count"} <= set(_find_columns(header)) for header in headers)


LONG_TABLE = Platform(
    name="long_table",
    title="long table",
    files="text with one line for each spot and gene: columns spot, gene, count and x, y (or `--coordinates TABLE`)",
    read=read_long_table,
    recognizes=_recognizes,
    options=("coordinates",),
)
