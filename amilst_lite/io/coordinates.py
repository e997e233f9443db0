"""Tables with one row per spot (coordinates, annotations): read, match by name, join."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .. import keys
from ..errors import InputError, warn
from .files import PathLike, TextTable, comma_hint, examples, existing_file, is_number, open_text, reading
from .parquet import read_parquet

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
    ("x", "y", "z"),
    ("pxl_col_in_fullres", "pxl_row_in_fullres"),  # Space Ranger
    ("imagecol", "imagerow"),  # Seurat, spatialLIBD
    ("pixel_x", "pixel_y"),
    ("x_px", "y_px", "z_px"),
    ("x_um", "y_um", "z_um"),
    ("x_centroid", "y_centroid", "z_centroid"),  # Xenium
    ("center_x", "center_y", "center_z"),  # MERSCOPE
    ("x_coord", "y_coord", "z_coord"),  # Slide-seq
    ("new_x", "new_y"),
    ("array_col", "array_row"),
    ("col", "row"),
)
"""Names of the columns that hold x, y and, where there may be one, z. The first entry whose x and y a table
has is used; case, dots and underscores are ignored."""

_UNITS = {
    "pixel": ("pxl_col_in_fullres", "imagecol", "pixel_x", "x_px"),
    "micrometer": ("x_um",),
}
"""Unit → names of x that state it."""

_VISIUM_PITCH = 100.0  # µm
_MOST_ANISOTROPIC = 1.05
_MOST_COMPARED = 10_000  # names, for the hint of a message

SELECTION_COLUMNS = ("in_tissue", "selected")
"""Columns in which 0 marks spots to leave out."""


@dataclass(frozen=True)
class Match:
    """The identifiers of a table that agree best with a list of spot names, and how many names they match."""

    column: str
    identifiers: pd.Index
    found: int


@dataclass(frozen=True)
class SpotTable:
    """A table with one row per spot; NaN where a cell is empty.

    Attributes
    ----------
    path : Path
    frame : pandas.DataFrame
        Text, but for columns of fractional numbers; or, where the format defines the columns, numbers where
        possible.
    identifier : Index, optional
        Names of the spots (n rows), where the format defines them; otherwise `match` finds them.
    axes : tuple of str, optional
        The columns of the coordinates, where the format defines them; otherwise `coordinate_columns` does.
    """

    path: Path
    frame: pd.DataFrame
    identifier: pd.Index | None = None
    axes: tuple[str, ...] | None = None

    @classmethod
    def read(cls, path: PathLike, *, text: Sequence[str | int] = ()) -> SpotTable:
        """Read a text table (any usual separator, gzip or not) or a parquet file.

        Text without a header, that is, with a first line that holds only numbers after its first field,
        is accepted with three columns (name, x, y) and with the six of Space Ranger 1.

        Parameters
        ----------
        path
        text
            Names or positions of the columns to keep as text, if the format defines them; all others are then
            numbers where possible, which need a seventh of the memory.

        Raises
        ------
        InputError
            The file is missing, a folder, empty or not a table.
        MissingExtraError
            A parquet file, and pyarrow is not installed.
        """
        path = existing_file(path, "a table (csv, tsv or parquet) with one row per spot")
        with reading(path, "a table of spots"), path.open("rb") as handle:
            is_parquet = handle.read(4) == b"PAR1"
        frame = _read_parquet(path, text) if is_parquet else cls._read_text(path, text)
        if frame.empty:
            raise InputError(f"{path} has no rows; expected a header and one row per spot.")
        return cls(path, frame)

    @staticmethod
    def _read_text(path: Path, text: Sequence[str | int]) -> pd.DataFrame:
        table = TextTable.sniff(path)
        has_header = not table.first_is_numeric
        columns = table.first if has_header else _columns_without_header(table)
        repeated = pd.Index(columns)[pd.Index(columns).duplicated()]
        if len(repeated):
            raise InputError(
                f"{path}, line 1: expected names of columns, each once; {examples(repeated.unique())} repeat. Is the "
                "header missing?"
            )
        options = {
            "sep": r"\s+" if table.separator == " " else table.separator,
            "header": 0 if has_header else None,
            "names": columns,
            "index_col": False,
        }
        if text:
            kept = [columns[one] if isinstance(one, int) else one for one in text]
            with reading(path, "a table of spots"), open_text(path, at_once=True) as handle:
                return pd.read_csv(handle, dtype=dict.fromkeys(kept, str), low_memory=False, **options)
        with reading(path, "a table of spots"):
            with open_text(path, at_once=True) as handle:
                head = pd.read_csv(handle, dtype=str, nrows=1000, **options)
            numbers = dict.fromkeys(filter(lambda name: _are_fractional(head[name]), columns[1:]), np.float64)
            with open_text(path, at_once=True) as handle:
                try:
                    return pd.read_csv(handle, dtype={**dict.fromkeys(columns, str), **numbers}, **options)
                except ValueError:  # a word among the numbers of a later row, or a broken table
                    handle.seek(0)
                    return pd.read_csv(handle, dtype=str, **options)

    @classmethod
    def read_known(
        cls, path: PathLike, names: Sequence[str | int], axes: Sequence[str], what: str
    ) -> SpotTable:
        """Read a table whose format defines the columns of names and coordinates.

        Parameters
        ----------
        path
        names
            The columns that make up the name of a spot, joined by ``_``; by name or position.
        axes
            The columns of the coordinates.
        what
            Describes the table in the message.

        Raises
        ------
        InputError
            As `read`; or a column is missing.
        """
        table = cls.read(path, text=names)
        columns = table.frame.columns
        known = [columns[name] if isinstance(name, int) else name for name in names]
        missing = [name for name in (*known, *axes) if name not in columns]
        if missing:
            raise InputError(
                f"{table.path} has no column {examples(missing)}: expected {what} with the columns "
                f"{', '.join((*known, *axes))}; found {examples(columns, 12)}."
            )
        first, *others = (table.frame[name] for name in known)
        identifier = first.str.cat(others, "_") if others else first
        return replace(table, identifier=pd.Index(identifier, name=known[0]), axes=tuple(axes))

    def column(self, *names: str) -> str | None:
        """The first of ``names`` that is a column, as the table spells it."""
        here = {_plain(column): column for column in reversed(self.frame.columns)}
        return next((here[_plain(name)] for name in names if _plain(name) in here), None)

    def coordinate_columns(self) -> tuple[str, ...] | None:
        """The columns of x, y and, if there is one with at least two different values, z; or None."""
        if self.axes is not None:
            return self.axes
        for names in COORDINATE_COLUMNS:
            x, y, *rest = (self.column(name) for name in names)
            if x is None or y is None:
                continue
            z = [name for name in rest if name is not None and self.frame[name].nunique() > 1]
            return (x, y, *z)
        return None

    def coordinates(self) -> np.ndarray:
        """Coordinates of every row, (n, 2) or with z (n, 3), float64; NaN where the cell is empty.

        Raises
        ------
        InputError
            There are no such columns, or they hold something other than numbers.
        """
        columns = self.coordinate_columns()
        if columns is None:
            known = ", ".join("/".join(names) for names in COORDINATE_COLUMNS)
            raise InputError(
                f"{self.path} has no coordinates: expected columns named {known} (z is optional); "
                f"found {examples(self.frame.columns, 12)}."
            )
        numbers = []
        for column in columns:
            cells = self.frame[column]
            values = pd.to_numeric(cells, errors="coerce")
            wrong = values.isna() & cells.notna()
            if wrong.any():
                raise InputError(
                    f"{self.path}: coordinates must be numbers; column {column!r} contains "
                    f"{examples(cells[wrong])} ({wrong.sum()} of {len(cells)} rows)."
                    f"{comma_hint(cells[wrong].iloc[0])} Correct them or drop the rows."
                )
            numbers.append(values.to_numpy(dtype=np.float64))
        return np.column_stack(numbers)  # (n, 2 or 3)

    def description(self) -> dict[str, Any]:
        """``coordinate_unit`` and ``geometry``, for `Platform.describe`, as far as the table states them."""
        x = _plain((self.coordinate_columns() or ("",))[0])
        units = [unit for unit, names in _UNITS.items() if x in map(_plain, names)]
        array = [self.column(name) for name in VISIUM_COLUMNS[2:4]]
        places = [pd.to_numeric(self.frame[name], errors="coerce") for name in array if name is not None]
        hexagonal = len(places) == 2 and is_visium_array(*places)
        return {
            "coordinate_unit": units[0] if units else "unknown",
            "geometry": "hexagonal" if hexagonal else "free",
        }

    def deselected(self) -> tuple[np.ndarray, str | None]:
        """Rows that a column of `SELECTION_COLUMNS` marks with 0 (n,), bool, and the name of that column."""
        column = self.column(*SELECTION_COLUMNS)
        if column is None:
            return np.zeros(len(self.frame), dtype=bool), None
        return self.frame[column].astype(str).str.lower().isin(["0", "0.0", "false"]).to_numpy(
            dtype=bool
        ), column

    def match(self, names: pd.Index) -> Match:
        """Find the identifiers that agree best with ``names`` (spot names as text).

        Candidates are the first column, every text column, and the spot names of the Spatial
        Transcriptomics platform, ``"{x}x{y}"`` with rounded coordinates. A column of coordinates is not a
        candidate: an x of 22 is not the name of spot "22".
        """
        if self.identifier is not None:
            found = int(names.isin(self.identifier).sum())
            return Match(str(self.identifier.name), self.identifier, found)
        frame, columns = self.frame, self.coordinate_columns() or ()
        candidates = {
            column: pd.Index(frame[column])
            for i, column in enumerate(frame.columns)
            if column not in columns and (i == 0 or not is_number(frame[column].iloc[0]))
        }
        if columns:
            # Cells that are not numbers match nothing; `coordinates` reports them.
            # Adding 0 turns -0 into 0.
            x, y = (np.rint(pd.to_numeric(frame[axis], errors="coerce")) + 0.0 for axis in columns[:2])
            grid_names = pd.Series([f"{i:.0f}x{j:.0f}" for i, j in zip(x, y, strict=True)], dtype=object)
            candidates["{x}x{y}"] = pd.Index(grid_names.where(x.notna() & y.notna()))
        matches = [
            Match(column, identifiers, int(names.isin(identifiers).sum()))
            for column, identifiers in candidates.items()
        ]
        return max(matches, key=lambda match: match.found)  # the first of equals

    def expect_match(self, names: pd.Index) -> Match:
        """`match`, with at least one name.

        Raises
        ------
        InputError
            No name is in the table.
        """
        best = self.match(names)
        if best.found == 0:
            raise InputError(
                f"{self.path}: 0 of {len(names)} spots match one of its {len(self.frame)} rows. "
                f"Expected the same names in both; found {examples(names)} among the spots and "
                f"{examples(best.identifiers)} in column {best.column!r} of the table."
                f"{suffix_hint(names, best.identifiers)}"
            )
        return best

    def locate(self, names: pd.Index) -> tuple[np.ndarray, str]:
        """The row of each name (n,), int64, -1 if there is none; and the column that holds the names.

        Raises
        ------
        InputError
            No name is in the table, or a spot has several rows.
        """
        best = self.expect_match(names)
        repeated = best.identifiers[best.identifiers.duplicated() & best.identifiers.notna()]
        if len(repeated):
            raise InputError(
                f"{self.path}: {repeated.nunique()} spots have more than one row (column {best.column!r}, "
                f"e.g. {examples(repeated.unique())}); expected one row per spot. Remove the duplicates."
            )
        row_of = {identifier: row for row, identifier in enumerate(best.identifiers)}
        return np.array([row_of.get(name, -1) for name in names], dtype=np.int64), best.column

    def columns_at(self, rows: np.ndarray, *, without: Iterable[str] = ()) -> dict[str, np.ndarray]:
        """The named columns in the order of ``rows``, as numbers if possible; NaN where the row is -1."""
        # -1 is not in the index, so that reindex returns missing values for such rows
        taken = self.frame.reindex(rows)
        left_out = {"", *without}
        return {name: _numbers_if_possible(taken[name]) for name in taken.columns if name not in left_out}


def join_coordinates(adata: AnnData, path: PathLike, *, copy: bool = True) -> AnnData:
    """Add the coordinates in a table to the spots.

    Parameters
    ----------
    adata
        n spots.
    path
        Table with one row per spot: an identifier, x, y and optionally z, in columns named as in
        `COORDINATE_COLUMNS`. The identifier is the first column, a text column or ``"{x}x{y}"`` (rounded),
        whichever agrees best with the spot names.
    copy
        Leave ``adata`` unchanged. If false it may be changed and returned, which saves memory.

    Returns
    -------
    AnnData
        The spots that have a row and are not marked 0 in ``in_tissue`` or ``selected``, in the order of
        ``adata``. ``obsm["spatial"]``: (n, 2), or (n, 3) if the table has a z that varies; float64, in the
        unit of the table. The other columns of the table are in ``obs`` and replace columns of the same
        name.

    Warns
    -----
    AmilstWarning
        Spots were left out.

    Raises
    ------
    InputError
        The table has no coordinates, or they are not numbers; no name matches; a spot has several rows; or
        no spot is left.
    """
    return join_table(adata, SpotTable.read(path), copy=copy)


def join_table(adata: AnnData, table: SpotTable, *, copy: bool) -> AnnData:
    """As `join_coordinates`, with a table that has been read."""
    coordinates = table.coordinates()
    rows, identifier = table.locate(adata.obs_names)
    marked, selection = table.deselected()
    absent = rows < 0
    deselected = ~absent & marked[rows]
    kept = ~absent & ~deselected
    if not kept.all():
        reasons = []
        if absent.any():
            reasons.append(f"{absent.sum()} have no row (e.g. {examples(adata.obs_names[absent])})")
        if deselected.any():
            reasons.append(f"{deselected.sum()} are marked 0 in {selection!r}")
        message = f"{table.path}: {np.sum(~kept)} of {len(rows)} spots left out: {', '.join(reasons)}."
        if not kept.any():
            raise InputError(f"{message} No spot remains; is this the table of another section?")
        warn(message)
        adata = adata[kept]
    rows = rows[kept]
    if adata.isbacked and (copy or adata.is_view):
        adata = adata.to_memory()  # anndata copies a backed object only to another file
    elif copy or adata.is_view:
        adata = adata.copy()
    joined = {identifier, *(table.coordinate_columns() or ())}
    for name, values in table.columns_at(rows, without=joined).items():
        adata.obs[name] = values
    adata.obsm[keys.SPATIAL] = coordinates[rows]
    _log.info("%s: %d of %d rows are spots with counts", table.path, len(rows), len(coordinates))
    return adata


def join_columns(adata: AnnData, path: PathLike) -> list[str]:
    """Add the columns of a table to ``adata.obs``, in place, matched by spot name.

    Parameters
    ----------
    adata
        n spots.
    path
        Table with one row per spot; see `join_coordinates` for how rows are matched.

    Returns
    -------
    list of str
        The columns added (or replaced). They are NaN for spots without a row.

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
    """As `join_columns`, and determine which of the columns is the annotation.

    Returns
    -------
    str
        The only column, or else the only text column with repeated values.

    Raises
    ------
    InputError
        As `join_columns`; or the annotation is ambiguous or missing (``adata`` is then unchanged).
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
            f"{examples(columns, 12)}. Keep only the spot names and one annotation in the table."
        )
    for name, values in columns.items():
        adata.obs[name] = values
    return choice[0]


def is_visium_array(rows: pd.Series, columns: pd.Series) -> bool:
    """Whether ``array_row`` and ``array_col`` are places on Visium's array: every second column in each row."""
    places = np.column_stack([rows, columns]).astype(np.float64)
    varies = (places != places[:1]).any(axis=0).all()
    return bool(varies and (places.sum(axis=1) % 2 == 0).all())  # NaN is not 0


def visium_pixel_size(points: np.ndarray, rows: Any, columns: Any) -> float | None:
    """Micrometers per unit of the coordinates of Visium spots, from their places on the array.

    In each row, spots have every second ``array_col`` and are 100 µm apart; rows are 100 √¾ µm apart (10x Genomics).
    The diameter of a spot is 55 µm, but Space Ranger's ``spot_diameter_fullres`` is not: it wrote 65 % of the
    distance, or 70 %.

    Parameters
    ----------
    points
        (n, 2).
    rows, columns
        ``array_row`` and ``array_col``, (n,).

    Returns
    -------
    float or None
        Negative if the array is mirrored in the coordinates. None if ``rows`` and ``columns`` are no such places, or
        the coordinates are no image of them: anisotropic, or of another slide.
    """
    rows, columns = (pd.to_numeric(pd.Series(one), errors="coerce") for one in (rows, columns))
    if len(points) < 3 or not np.isfinite(points).all() or not is_visium_array(rows, columns):
        return None
    places = np.column_stack([columns, rows]) * [_VISIUM_PITCH / 2, _VISIUM_PITCH * 0.75**0.5]  # µm
    places -= places.mean(axis=0)
    centered = points - points.mean(axis=0)
    linear = np.linalg.lstsq(places, centered, rcond=None)[0]  # centered = places @ linear, (2, 2)
    along, across = np.linalg.svd(linear, compute_uv=False)
    if (
        across <= 0 or along / across > _MOST_ANISOTROPIC
    ):  # such as the numbers of rows and columns themselves
        return None
    if np.abs(centered - places @ linear).max() > 0.5 * _VISIUM_PITCH * across:
        return None
    return float(np.sign(np.linalg.det(linear)) * (along * across) ** -0.5)


def suffix_hint(names: pd.Index, identifiers: pd.Index) -> str:
    """A hint for the message if names, of many the first, match without the "-1" that 10x appends to barcodes."""
    bare_names, bare_identifiers = (
        index.astype(str).str.replace(r"-\d+$", "", regex=True)
        for index in (names[:_MOST_COMPARED], identifiers)
    )
    found = bare_names.isin(bare_identifiers).sum()
    if not found:
        return ""
    those = "" if len(names) <= _MOST_COMPARED else f" of the first {_MOST_COMPARED}"
    return f" {found}{those} would match without the suffix ('-1'): add it to one side or remove it from the other."


def _columns_for(adata: AnnData, path: PathLike) -> dict[str, np.ndarray]:
    """The columns of a table for the spots, with a warning if some have no row."""
    table = SpotTable.read(path)
    rows, identifier = table.locate(adata.obs_names)
    absent = rows < 0
    if absent.any():
        warn(
            f"{table.path}: {absent.sum()} of {len(rows)} spots have no row (e.g. "
            f"{examples(adata.obs_names[absent])}); their annotation is missing (NaN)."
        )
    return table.columns_at(rows, without=[identifier])


def _are_fractional(cells: pd.Series) -> bool:
    """Whether a column of text holds fractional numbers, which need a seventh of the memory as numbers."""
    known = cells.dropna()
    return bool(known.str.contains(".", regex=False).any()) and all(map(is_number, known))


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", str(name).lower())


def _numbers_if_possible(column: pd.Series) -> np.ndarray:
    try:
        return pd.to_numeric(column).to_numpy()
    except (TypeError, ValueError):
        return column.to_numpy(dtype=object)


def _columns_without_header(table: TextTable) -> list[str]:
    fields = table.first
    if len(fields) == 3:
        return ["barcode", "x", "y"]
    if len(fields) == len(VISIUM_COLUMNS) and fields[1] in ("0", "1"):
        return list(VISIUM_COLUMNS)
    raise InputError(
        f"{table.path} has no header, and which of its {len(fields)} columns are coordinates is ambiguous. "
        "Expected a header, or the three columns name, x, y, or the positions of Space Ranger 1."
    )


def _read_parquet(path: Path, text: Sequence[str | int] = ()) -> pd.DataFrame:
    frame = read_parquet(path, "a parquet table")
    if not isinstance(frame.index, pd.RangeIndex):  # pandas stores an index as such: names of the spots
        names = frame.index.to_frame(index=False)
        frame = frame.reset_index(drop=True)
        frame = pd.concat([names.loc[:, ~names.columns.isin(frame.columns)], frame], axis=1)
    frame = frame.set_axis(frame.columns.astype(str), axis=1).reset_index(drop=True)
    if not frame.columns.is_unique:
        repeated = frame.columns[frame.columns.duplicated()].unique()
        raise InputError(f"{path}: expected names of columns, each once; {examples(repeated)} repeat.")
    kept = {frame.columns[one] if isinstance(one, int) else one for one in text}
    for name in frame.columns:
        column = frame[name]
        if column.dtype == object:
            column = column.map(
                lambda cell: cell.decode(errors="replace") if isinstance(cell, bytes) else cell
            )
        elif column.dtype.kind == "f" or (kept and name not in kept):
            continue
        frame[name] = column.astype(str).where(column.notna())  # text, but missing cells NaN
    return frame
