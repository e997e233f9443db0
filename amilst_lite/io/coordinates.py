"""Tables with a row for each spot: coordinates, annotations. Read, matched by name, joined."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from .. import keys
from ..errors import AmilstWarning, InputError
from .files import PathLike, TextTable, examples, existing, open_text, reading

if TYPE_CHECKING:
    from anndata import AnnData

_log = logging.getLogger("amilst_lite")

VISIUM_COLUMNS = (
    "barcode",
    "in_tissue",
    "array_row",
    "array_col",
    "pxl_row_in_fullres",
    "pxl_col_in_fullres",
)
"""Columns of Space Ranger's tissue_positions; version 1 wrote them without a header."""

COORDINATE_COLUMNS = (
    ("x", "y"),
    ("pxl_col_in_fullres", "pxl_row_in_fullres"),  # Space Ranger
    ("imagecol", "imagerow"),  # Seurat, spatialLIBD
    ("pixel_x", "pixel_y"),
    ("x_centroid", "y_centroid"),  # Xenium
    ("center_x", "center_y"),  # MERSCOPE
    ("x_coord", "y_coord"),  # Slide-seq
    ("new_x", "new_y"),
    ("array_col", "array_row"),
    ("col", "row"),
)
"""Pairs of columns taken for x and y. The first pair that a table has wins; capitals, dots and
underscores do not matter."""

SELECTION_COLUMNS = ("in_tissue", "selected")
"""Columns whose zeros mark spots to leave out."""


@dataclass(frozen=True)
class Match:
    """How the rows of a table were recognised in a list of spot names."""

    column: str
    identifiers: pd.Index
    found: int


@dataclass(frozen=True)
class SpotTable:
    """A table with a row for each spot, all cells as text (missing ones NaN)."""

    path: Path
    frame: pd.DataFrame

    @classmethod
    def read(cls, path: PathLike) -> SpotTable:
        """Read text with a header (any usual separator, gzipped or not), or Space Ranger's positions.

        Without a header (the first line then holds numbers, its first field aside) three columns are
        name, x, y, and six are Space Ranger 1's positions.

        Raises
        ------
        InputError
            No such file, a folder, empty, no table, or a parquet file without a package to read it.
        """
        path = existing(path)
        if path.is_dir():
            raise InputError(f"{path} is a folder; expected a table (csv or tsv) with a row for each spot.")
        with path.open("rb") as handle:
            if handle.read(4) == b"PAR1":
                return cls(path, _read_parquet(path))
        table = TextTable.sniff(path)
        columns = table.header
        has_header = not columns[0] or not all(_is_number(field) for field in columns[1:])
        if not has_header:
            columns = _columns_without_header(columns, path)
        with reading(path, "a table of spots"), open_text(path) as handle:
            frame = pd.read_csv(
                handle,
                sep=r"\s+" if table.separator == " " else table.separator,
                header=0 if has_header else None,
                names=columns,
                index_col=False,
                dtype=str,
            )
        return cls(path, frame)

    def column(self, *names: str) -> str | None:
        """The first of ``names`` that is a column here, in the table's own spelling."""
        here = {_plain(column): column for column in reversed(self.frame.columns)}
        return next((here[_plain(name)] for name in names if _plain(name) in here), None)

    def coordinate_columns(self) -> tuple[str, str] | None:
        """The columns of x and y by `COORDINATE_COLUMNS`, or None."""
        for pair in COORDINATE_COLUMNS:
            x, y = (self.column(name) for name in pair)
            if x is not None and y is not None:
                return x, y
        return None

    def coordinates(self) -> np.ndarray:
        """x and y of every row, n × 2, float64; NaN where the cell is empty.

        Raises
        ------
        InputError
            There are no such columns, or they hold something other than numbers.
        """
        columns = self.coordinate_columns()
        if columns is None:
            known = ", ".join("/".join(pair) for pair in COORDINATE_COLUMNS)
            raise InputError(
                f"{self.path} has no coordinates: expected two columns with one of the names {known}; "
                f"found {examples(self.frame.columns, 12)}."
            )
        numbers = []
        for column in columns:
            cells = self.frame[column]
            values = pd.to_numeric(cells, errors="coerce")
            wrong = values.isna() & cells.notna()
            if wrong.any():
                raise InputError(
                    f"{self.path}: coordinates must be numbers; column {column!r} holds "
                    f"{examples(cells[wrong])} ({wrong.sum()} of {len(cells)} rows). "
                    "Correct them or drop the rows."
                )
            numbers.append(values.to_numpy(dtype=np.float64))
        return np.column_stack(numbers)  # n × 2

    def match(self, names: pd.Index) -> Match:
        """Find the identifiers that agree best with ``names`` (spot names as text).

        Candidates are the first column, every column of text, and the name that Spatial
        Transcriptomics gives its spots, ``"{x}x{y}"`` of the rounded coordinates. Coordinates by
        themselves are none: an x of 22 is not the spot called "22".
        """
        frame, xy = self.frame, self.coordinate_columns() or ()
        candidates = {
            column: pd.Index(frame[column])
            for i, column in enumerate(frame.columns)
            if column not in xy and (i == 0 or not _is_number(frame[column].iloc[0]))
        }
        if xy:
            # cells that are no number match nothing; whether they matter is not decided here
            rounded = (np.rint(pd.to_numeric(frame[axis], errors="coerce")) + 0.0 for axis in xy)  # no "-0"
            names_by_place = [f"{x:.0f}x{y:.0f}" for x, y in zip(*rounded, strict=True)]
            candidates["{x}x{y}"] = pd.Index(names_by_place, dtype=object)
        matches = [
            Match(column, identifiers, int(names.isin(identifiers).sum()))
            for column, identifiers in candidates.items()
        ]
        return max(matches, key=lambda match: match.found)  # the earliest of equals

    def locate(self, names: pd.Index) -> tuple[np.ndarray, str]:
        """The row of each of ``names`` (n integers, -1 where there is none), and the column that told.

        Raises
        ------
        InputError
            No name is in the table, or a spot has several rows.
        """
        best = self.match(names)
        if best.found == 0:
            raise InputError(
                f"{self.path}: 0 of the {len(names)} spots match one of its {len(self.frame)} rows. "
                f"Expected the same names in both; found {examples(names)} among the spots and "
                f"{examples(best.identifiers)} in column {best.column!r} of the table."
                f"{suffix_hint(names, best.identifiers)}"
            )
        repeated = best.identifiers[best.identifiers.duplicated() & best.identifiers.notna()]
        if len(repeated):
            raise InputError(
                f"{self.path}: {repeated.nunique()} spots have more than one row (column {best.column!r}, "
                f"e.g. {examples(repeated.unique())}); expected one row for each spot. Remove the others."
            )
        row_of = {identifier: row for row, identifier in enumerate(best.identifiers)}
        return np.array([row_of.get(name, -1) for name in names]), best.column

    def columns_at(self, rows: np.ndarray, *, without: Iterable[str] = ()) -> dict[str, np.ndarray]:
        """The named columns in the order of ``rows``: numbers as numbers, missing where the row is -1."""
        # -1 is no label of the index, so that reindex leaves such rows missing
        taken = self.frame.reindex(rows)
        left_out = {"", *without}
        return {name: _numbers_if_possible(taken[name]) for name in taken.columns if name not in left_out}


def join_coordinates(adata: AnnData, path: PathLike, *, copy: bool = True) -> AnnData:
    """Give the spots the coordinates that a table holds for them.

    Parameters
    ----------
    adata
        n spots.
    path
        Text table with a row for each spot: an identifier and x and y. x and y are the first pair of
        `COORDINATE_COLUMNS` that the table has. The identifier is the first column, a column of text
        or ``"{x}x{y}"`` (rounded), whichever agrees best with the spots' names.
    copy
        Leave ``adata`` as it is. If false it may be changed and returned, which spares memory.

    Returns
    -------
    AnnData
        The spots that the table holds and does not mark with a zero in ``in_tissue`` or ``selected``,
        in the order of ``adata``. ``obsm["spatial"]``: n × 2, float64, in the table's unit. The table's
        other columns are in ``obs`` (taking the place of columns of the same name).

    Warns
    -----
    AmilstWarning
        Spots were left out.

    Raises
    ------
    InputError
        No coordinates in the table, or not numbers; no name matches; a spot has several rows; no spot
        is left.
    """
    table = SpotTable.read(path)
    coordinates = table.coordinates()
    rows, identifier = table.locate(adata.obs_names)
    selection = table.column(*SELECTION_COLUMNS)
    deselected = np.zeros(len(rows), dtype=bool)
    if selection is not None:
        marked = table.frame[selection].str.lower().isin(["0", "0.0", "false"]).to_numpy()
        deselected = (rows >= 0) & marked[rows]
    absent = rows < 0
    kept = ~absent & ~deselected
    if not kept.all():
        reasons = []
        if absent.any():
            reasons.append(f"{absent.sum()} have no row (e.g. {examples(adata.obs_names[absent])})")
        if deselected.any():
            reasons.append(f"{deselected.sum()} are marked 0 in {selection!r}")
        message = f"{table.path}: {np.sum(~kept)} of {len(rows)} spots left out: {', '.join(reasons)}."
        if not kept.any():
            raise InputError(f"{message} None remains; is this the table of another section?")
        warnings.warn(message, AmilstWarning, stacklevel=2)
        adata = adata[kept]
    rows = rows[kept]
    if copy or adata.is_view:
        adata = adata.copy()
    joined = {identifier, *(table.coordinate_columns() or ())}
    for name, values in table.columns_at(rows, without=joined).items():
        adata.obs[name] = values
    adata.obsm[keys.SPATIAL] = coordinates[rows]
    _log.info("%s: %d of its %d rows are spots with counts", table.path, len(rows), len(coordinates))
    return adata


def join_columns(adata: AnnData, path: PathLike) -> list[str]:
    """Add the columns of a table to ``adata.obs``, in place, by the spots' names.

    Parameters
    ----------
    adata
        n spots.
    path
        Text table with a row for each spot; see `join_coordinates` for how rows are recognised.

    Returns
    -------
    list of str
        The columns added (or replaced). Spots without a row have NaN in them.

    Warns
    -----
    AmilstWarning
        Some spots have no row.

    Raises
    ------
    InputError
        No name matches, or a spot has several rows.
    """
    columns = _columns_for(adata, path)
    for name, values in columns.items():
        adata.obs[name] = values
    return list(columns)


def join_annotation(adata: AnnData, path: PathLike) -> str:
    """As `join_columns`, and tell which of the columns is the annotation.

    Returns
    -------
    str
        The only column; of several, the only one of text in which a value comes twice.

    Raises
    ------
    InputError
        As `join_columns`; or more than one column, or none, could be meant (``adata`` is then as it was).
    """
    columns = _columns_for(adata, path)
    labels = [
        name
        for name, values in columns.items()
        if values.dtype == object and pd.Series(values).dropna().duplicated().any()
    ]
    choice = list(columns) if len(columns) == 1 else labels
    if len(choice) != 1:
        raise InputError(
            f"{path}: expected one column of labels, found {examples(labels)} among the columns "
            f"{examples(columns, 12)}. Keep the spots' names and one annotation in the table."
        )
    for name, values in columns.items():
        adata.obs[name] = values
    return choice[0]


def _columns_for(adata: AnnData, path: PathLike) -> dict[str, np.ndarray]:
    """The columns that a table has for the spots, with a warning if some are missing."""
    table = SpotTable.read(path)
    rows, identifier = table.locate(adata.obs_names)
    absent = rows < 0
    if absent.any():
        warnings.warn(
            f"{table.path}: {absent.sum()} of {len(rows)} spots have no row (e.g. "
            f"{examples(adata.obs_names[absent])}); their annotation is missing (NaN).",
            AmilstWarning,
            stacklevel=3,
        )
    return table.columns_at(rows, without=[identifier])


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", str(name).lower())


def _is_number(field: object) -> bool:
    try:
        float(field)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
    return True


def _numbers_if_possible(column: pd.Series) -> np.ndarray:
    try:
        return pd.to_numeric(column).to_numpy()
    except (TypeError, ValueError):
        return column.to_numpy(dtype=object)


def _columns_without_header(first_line: list[str], path: Path) -> list[str]:
    if len(first_line) == 3:
        return ["barcode", "x", "y"]
    if len(first_line) == len(VISIUM_COLUMNS) and first_line[1] in ("0", "1"):
        return list(VISIUM_COLUMNS)
    raise InputError(
        f"{path} has no header, and its {len(first_line)} columns do not tell which of them are coordinates. "
        "Expected a header, or the three columns name, x, y, or Space Ranger's positions."
    )


def suffix_hint(names: pd.Index, identifiers: pd.Index) -> str:
    """Say so if names would match but for the "-1" that 10x puts behind barcodes."""
    bare_names, bare_identifiers = (
        index.astype(str).str.replace(r"-\d+$", "", regex=True) for index in (names, identifiers)
    )
    found = bare_names.isin(bare_identifiers).sum()
    if not found:
        return ""
    return f" {found} would match without the suffix ('-1'): add it to one side or strip it from the other."


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        with reading(path, "a parquet table"):
            return pd.read_parquet(path).astype(str)
    except InputError as error:
        if not isinstance(error.__cause__, ImportError):
            raise
        raise InputError(
            f"{path} is a parquet file, and neither pyarrow nor fastparquet is installed. Install one "
            "(pip install pyarrow), or save the table as tissue_positions.csv beside it."
        ) from error
