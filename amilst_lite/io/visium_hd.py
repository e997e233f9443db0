"""Visium HD: the binned outputs of Space Ranger 3 and 4, and the cells of Space Ranger 4."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .. import keys
from ..errors import InputError, warn
from .coordinates import VISIUM_COLUMNS
from .files import PathLike, examples, existing, existing_file, find_one, holds, listing, open_text, reading
from .hdf5 import open_hdf5
from .parquet import open_parquet, rows_at_once
from .platform import Platform
from .spatialdata import polygon_moments
from .tenx import read_10x_h5
from .visium import as_text, describe_images

if TYPE_CHECKING:
    from anndata import AnnData

DEFAULT_BIN_SIZE = 8
"""µm; the bins that Space Ranger itself clusters, about the size of a cell."""

_BIN_FOLDER = re.compile(r"square_(\d{3})um")
_COUNTS = ("raw_feature_bc_matrix.h5", "filtered_feature_bc_matrix.h5")
_TABLE = "a table of positions (parquet)"
_POSITIONS = "tissue_positions.parquet"
_SCALE_FACTORS = "scalefactors_json.json"
_CELL_COUNTS = ("raw_feature_cell_matrix.h5", "filtered_feature_cell_matrix.h5")
_OUTLINES = ("cell_segmentations.geojson", "graphclust_annotated_cell_segmentations.geojson")
_BLOCK = 2**20  # characters of the outlines that are read at a time


def read_visium_hd(
    path: PathLike,
    *,
    bin_size: int | None = None,
    filtered_counts_file: bool = True,
    genome: str | None = None,
    library_id: str | None = None,
    gene_expression_only: bool = True,
) -> AnnData:
    """Read the square bins of one size of a Visium HD section, or its cells.

    Parameters
    ----------
    path
        Space Ranger's output folder, ``binned_outputs`` in it, the folder of one bin size in that
        (``square_008um``, also under another name), or the matrix in such a folder. For cells the folder
        ``segmented_outputs`` of Space Ranger 4, or the matrix in it.
    bin_size
        Edge length of the bins in µm, of which Space Ranger writes 2, 8 and 16 by default. Default: that of the
        folder or, if there are several, `DEFAULT_BIN_SIZE`.
    filtered_counts_file
        Read ``filtered_feature_bc_matrix.h5`` rather than ``raw_feature_bc_matrix.h5``; as in spatialdata-io.
    genome, gene_expression_only
        See `read_10x_h5`.
    library_id
        Name of the section in ``uns["spatial"]``; by default that in the HDF5 file, or else of the folder.

    Returns
    -------
    AnnData
        The n bins in tissue, or n cells. ``X``: counts, CSR, float32. ``obsm["spatial"]``: (n, 2), float64, pixels
        of the full-resolution image, x (column) before y (row). ``obs``: ``in_tissue``, ``array_row``, ``array_col``.
        ``uns["spatial"][library_id]``: as `read_visium`; its ``scalefactors`` have ``bin_size_um`` and
        ``microns_per_pixel``, which is also ``uns["amilst_input"]["micrometers_per_unit"]``. Of cells, the
        coordinates are the centroids of their outlines (``cell_segmentations.geojson``), and ``obs`` is empty.

    Warns
    -----
    AmilstWarning
        Bins have no position or cells no outline, or names repeat.

    Raises
    ------
    InputError
        The bin size, counts or positions are missing or broken, or belong to different sections.
    MissingExtraError
        pyarrow, which reads the positions, is not installed.

    References
    ----------
    10x Genomics, "Space Ranger HD outputs", Space Ranger documentation.
    """
    path = existing(path)
    options: dict[str, Any] = {"genome": genome, "gene_expression_only": gene_expression_only}
    folder = None if bin_size is not None else _cell_folder(path)
    if folder is not None and (outlines := find_one(folder, _OUTLINES)) is not None:
        counts = path if path.is_file() else _find_counts(folder, _CELL_COUNTS, filtered_counts_file)
        images = (folder / "spatial" if (folder / "spatial").is_dir() else folder) / _POSITIONS
        section = _section(counts, images, library_id)
        adata, left_out = _read_cells(outlines, read_10x_h5(counts, **options))
        return _describe(adata, path, section, geometry="free", left_out=left_out)
    if path.is_dir():
        folder = _bin_folder(path, bin_size)
        counts = _find_counts(folder, _COUNTS, filtered_counts_file)
    else:
        folder = path.parent
        counts = path
        _bin_folder(folder, bin_size)  # refuses another size
    positions = find_one(folder / "spatial", (_POSITIONS,)) or find_one(folder, (_POSITIONS,))
    if positions is None:
        raise InputError(
            f"{folder} has no positions of the bins: expected spatial/{_POSITIONS}, found {listing(folder)}."
        )
    located = _Positions(positions)
    section = _section(counts, positions, library_id)
    adata = read_10x_h5(counts, **options)
    adata, left_out = located.join(adata, adata.uns[keys.INPUT]["left_out"])
    return _describe(adata, path, section, left_out=left_out)


def _find_counts(folder: Path, names: tuple[str, str], filtered: bool) -> Path:
    """The raw or the filtered counts in a folder."""
    counts = find_one(folder, (names[filtered],))
    if counts is None:
        raise InputError(
            f"{folder} has no {names[filtered]}; found {listing(folder)}. Copy it there, or choose "
            f"{names[not filtered]} with filtered_counts_file={not filtered}."
        )
    return counts


def _section(counts: Path, positions: Path, library_id: str | None) -> dict[str, dict[str, Any]]:
    """``uns["spatial"]``; images and scale factors lie beside ``positions``."""
    with open_hdf5(existing_file(counts, "a 10x HDF5 file"), "a 10x HDF5 matrix") as file:
        attributes = {name: np.ravel(value)[0] for name, value in file.attrs.items() if np.size(value)}
    library = library_id or as_text(attributes.get("library_ids", counts.parent.resolve().name))
    return {library: describe_images(positions, attributes)}


def _describe(adata: AnnData, path: Path, section: dict[str, dict[str, Any]], **details: Any) -> AnnData:
    adata.uns[keys.SPATIAL] = section
    (library,) = section.values()
    if "microns_per_pixel" in library["scalefactors"]:
        details["micrometers_per_unit"] = library["scalefactors"]["microns_per_pixel"]
    return VISIUM_HD.describe(adata, path, **details)


# --- cells ----------------------------------------------------------------------------------


def _cell_folder(path: Path) -> Path | None:
    """The folder of the cells, if ``path`` is it, its matrix, or a folder with cells but without bins."""
    if path.is_file():
        return path.parent if path.name.endswith(_CELL_COUNTS) and holds(path.parent, _OUTLINES) else None
    for place in (path, path / "segmented_outputs", path / "outs" / "segmented_outputs"):
        if holds(place, _CELL_COUNTS, _OUTLINES):
            return None if place != path and _bin_folders(path) else place
    return None


def _read_cells(outlines: Path, adata: AnnData) -> tuple[AnnData, dict[str, int]]:
    """Add the centroids of the outlines; the cells that have one, and what has been left out."""
    with reading(outlines, "outlines of cells (GeoJSON)"):
        centroids = _centroids(outlines)
    # barcodes are cellid_000000001-1, and the outlines have the number
    numbers = pd.to_numeric(
        adata.obs_names.to_series().str.extract(r"^cellid_(\d+)-\d+$")[0], errors="coerce"
    )
    spatial = centroids.reindex(numbers).to_numpy()
    absent = np.isnan(spatial).any(axis=1)
    if absent.any():
        found = f"{absent.sum()} of {len(absent)} cells have no outline (e.g. {examples(adata.obs_names[absent])})"
        if absent.all():
            raise InputError(
                f"{outlines}: {found}. Expected the numbers of the barcodes as cell_id; found "
                f"{examples(centroids.index)}. Are both files of one section?"
            )
        warn(f"{outlines}: {found}; they were left out.")
        adata, spatial = adata[~absent].copy(), spatial[~absent]
    adata.obsm[keys.SPATIAL] = spatial
    return adata, {**adata.uns[keys.INPUT]["left_out"], "cells without an outline": int(absent.sum())}


def _centroids(path: Path) -> pd.DataFrame:
    """Centroids of the outlines, indexed by the numbers of the cells."""
    numbers, points = [], []
    for feature in _features(path):
        shape = feature["geometry"]
        parts = shape["coordinates"] if shape["type"] == "MultiPolygon" else [shape["coordinates"]]
        moments = np.sum([polygon_moments(np.asarray(part[0], dtype=np.float64)) for part in parts], axis=0)
        numbers.append(int(feature["properties"]["cell_id"]))
        points.append(moments[1:] / moments[0])
    table = pd.DataFrame(np.reshape(points, (-1, 2)), index=numbers)
    if table.index.has_duplicates:
        raise InputError(f"{path}: cell_id repeats; expected one outline for each cell. Download it again.")
    return table


def _features(path: Path) -> Iterator[dict[str, Any]]:
    """The features of a GeoJSON file one by one; all of them would need gigabytes as Python objects."""
    decode, skip = json.JSONDecoder().raw_decode, re.compile(r"[\s,]*").match
    with open_text(path) as handle:
        text = handle.read(_BLOCK)
        start = re.search(r'"features"\s*:\s*\[', text)
        if start is None:
            raise ValueError("it does not begin with a list of features")
        at = start.end()
        while True:
            at = skip(text, at).end()  # type: ignore[union-attr]
            if text.startswith("]", at):
                return
            try:
                feature, at = decode(text, at)
            except json.JSONDecodeError:  # or its end has not been read
                block = handle.read(_BLOCK)
                if not block or len(text) - at > 64 * _BLOCK:
                    raise
                text, at = text[at:] + block, 0
            else:
                yield feature


# --- bins -----------------------------------------------------------------------------------


class _Positions:
    """A table of positions in parquet, read a part at a time: at 2 µm it has eleven million rows."""

    def __init__(self, path: Path) -> None:
        self.path = existing_file(path, "a parquet file")
        with open_parquet(self.path, _TABLE) as file:  # errors in a small file before a large one is read
            missing = set(VISIUM_COLUMNS) - set(file.schema_arrow.names)
            if missing:
                raise InputError(
                    f"{path} has no column {examples(sorted(missing))}; expected {', '.join(VISIUM_COLUMNS)}."
                )
            from pyarrow import types

            kinds = {name: file.schema_arrow.field(name).type for name in VISIUM_COLUMNS[1:]}
            words = [f"{name} ({kind})" for name, kind in kinds.items() if not _is_number(types, kind)]
            if words:
                raise InputError(f"{path}: expected numbers in {', '.join(kinds)}; found {', '.join(words)}.")

    def join(self, adata: AnnData, left_out: dict[str, int]) -> tuple[AnnData, dict[str, int]]:
        """The bins of ``adata`` that are in tissue, with their positions, and what has been left out."""
        columns = self._columns_of(adata.obs_names)
        absent = ~columns.pop("found")
        off_tissue = ~absent & (columns["in_tissue"] != 1)
        if absent.any():
            warn(
                f"{self.path}: {absent.sum()} of {len(absent)} bins left out, which have no row (e.g. "
                f"{examples(adata.obs_names[absent])})."
            )
        kept = ~absent & ~off_tissue
        if not kept.any():
            raise InputError(
                f"{self.path}: no bin is in tissue (in_tissue is 1 nowhere). Is the file complete?"
            )
        if not kept.all():
            adata, columns = adata[kept].copy(), {name: values[kept] for name, values in columns.items()}
        for name in VISIUM_COLUMNS[1:4]:
            adata.obs[name] = columns[name]
        spatial = np.column_stack([columns[name] for name in ("pxl_col_in_fullres", "pxl_row_in_fullres")])
        adata.obsm[keys.SPATIAL] = spatial.astype(np.float64, copy=False)
        _refuse_missing(adata, spatial, self.path)
        return adata, {
            **left_out,
            "bins off the tissue": int(off_tissue.sum()),
            "bins without position": int(absent.sum()),
        }

    def _columns_of(self, names: pd.Index) -> dict[str, np.ndarray]:
        """The columns of the table for bins, and whether they were ``found``; each (number of bins,)."""
        index = pd.Index(names.to_numpy())  # its hash table is not kept with ``names``
        found, n_rows = np.zeros(len(names), dtype=bool), 0
        first: list[str] = []
        columns: dict[str, np.ndarray] = {}
        with open_parquet(self.path, _TABLE) as file:
            for batch in file.iter_batches(
                rows_at_once(self.path, file.metadata), columns=list(VISIUM_COLUMNS)
            ):
                barcodes = batch["barcode"].cast("string").to_numpy(zero_copy_only=False)
                first, n_rows = first or list(barcodes[:4]), n_rows + len(barcodes)
                at = index.get_indexer(barcodes)
                inside = at >= 0
                at = at[inside]
                if found[at].any() or len(np.unique(at)) < len(at):
                    raise InputError(
                        f"{self.path}: barcodes repeat; expected one row for each bin. Download it again."
                    )
                found[at] = True
                for name in VISIUM_COLUMNS[1:]:
                    values = batch[name].to_numpy(zero_copy_only=False)
                    columns.setdefault(name, np.zeros(len(names), values.dtype))[at] = values[inside]
        if not found.any():
            raise InputError(
                f"{self.path}: 0 of {len(names)} bins match one of its {n_rows} rows. Expected the same "
                f"barcodes in both; found {examples(names)} among the counts and "
                f"{examples(first)} in the table. Are they of the same bin size?"
            )
        return {**columns, "found": found}


def _is_number(types: Any, kind: Any) -> bool:
    """Whether a type of pyarrow is one of numbers that numpy has."""
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind))


def _refuse_missing(adata: AnnData, spatial: np.ndarray, path: Path) -> None:
    broken = ~np.isfinite(spatial).all(axis=1)
    if broken.any():
        raise InputError(
            f"{path}: {broken.sum()} bins have no finite position (e.g. {examples(adata.obs_names[broken])}). "
            "Download the file again."
        )


def _bin_size(folder: Path) -> int | None:
    """The size of the bins in a folder, in µm: from its name, or else from its scale factors."""
    match = _BIN_FOLDER.fullmatch(folder.resolve().name)
    if match:
        return int(match[1])
    for place in (folder / "spatial", folder) if holds(folder, _COUNTS) else ():
        # exceptions of many types, of a file that is not what it seems
        with suppress(Exception), open_text(place / _SCALE_FACTORS, at_once=True) as handle:
            return int(json.load(handle)["bin_size_um"])
    return None


def _bin_folders(path: Path) -> dict[int, Path]:
    """Bin size in µm → its folder: ``path`` itself, or those in it or in its ``binned_outputs``."""
    own = _bin_size(path)
    if own is not None:
        return {own: path}
    found = {}
    for place in (path, path / "binned_outputs", path / "outs" / "binned_outputs"):
        if place.is_dir():
            for folder in place.iterdir():
                match = _BIN_FOLDER.fullmatch(folder.name)
                if match and folder.is_dir():
                    found[int(match[1])] = folder
    return found


def _bin_folder(path: Path, bin_size: int | None) -> Path:
    folders = _bin_folders(path)
    if not folders:
        raise InputError(
            f"{path} is not a Visium HD folder: expected binned_outputs/square_008um (or 002um, 016um) with "
            f"{_COUNTS[True]} and spatial/{_POSITIONS}; found {listing(path)}."
        )
    size = bin_size
    if size is None:
        size = next(iter(folders)) if len(folders) == 1 else DEFAULT_BIN_SIZE
    if size not in folders:
        sizes = ", ".join(str(one) for one in sorted(folders))
        raise InputError(
            f"{path} has bins of {sizes} µm, but none of {size} µm. Choose one of them with bin_size (--bin-size)."
        )
    return folders[size]


def _recognizes(path: Path) -> bool:
    try:
        if _cell_folder(path) is not None:
            return True
        if path.is_dir():
            return bool(_bin_folders(path))
        return path.name.endswith(_COUNTS) and _bin_size(path.parent) is not None
    except OSError:
        return False


VISIUM_HD = Platform(
    name="visium_hd",
    title="Visium HD",
    files=(
        "output folder of Space Ranger 3 or 4: `binned_outputs/square_008um/` (2, 8 or 16 µm: `--bin-size`) with "
        "`filtered_feature_bc_matrix.h5` and `spatial/tissue_positions.parquet`; cells: `segmented_outputs/` of Space "
        "Ranger 4"
    ),
    read=read_visium_hd,
    recognizes=_recognizes,
    options=("bin_size", "genome", "library_id"),
    unit="pixel",
    geometry="square",
)
