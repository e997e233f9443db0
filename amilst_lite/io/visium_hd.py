"""Visium HD: the binned outputs of Space Ranger 3 and 4."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import keys
from ..errors import AmilstWarning, InputError, MissingExtraError
from .coordinates import VISIUM_COLUMNS
from .files import PathLike, examples, existing, existing_file, find_one, holds, listing, reading
from .hdf5 import open_hdf5
from .platform import Platform
from .tenx import read_10x_h5
from .visium import as_text, describe_images

if TYPE_CHECKING:
    from anndata import AnnData

DEFAULT_BIN_SIZE = 8
"""µm; the bins that Space Ranger itself clusters, about the size of a cell."""

_BIN_FOLDER = re.compile(r"square_(\d{3})um")
_COUNTS = ("raw_feature_bc_matrix.h5", "filtered_feature_bc_matrix.h5")
_POSITIONS = "tissue_positions.parquet"
_SCALE_FACTORS = "scalefactors_json.json"


def read_visium_hd(
    path: PathLike,
    *,
    bin_size: int | None = None,
    filtered_counts_file: bool = True,
    genome: str | None = None,
    library_id: str | None = None,
    gene_expression_only: bool = True,
) -> AnnData:
    """Read the square bins of one size of a Visium HD section.

    Parameters
    ----------
    path
        Space Ranger's output folder, ``binned_outputs`` in it, the folder of one bin size in that
        (``square_008um``, also under another name), or the matrix in such a folder.
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
        The n bins in tissue. ``X``: counts, CSR, float32. ``obsm["spatial"]``: (n, 2), float64, pixels of the
        full-resolution image, x (column) before y (row). ``obs``: ``in_tissue``, ``array_row``, ``array_col``.
        ``uns["spatial"][library_id]``: as `read_visium`; its ``scalefactors`` have ``bin_size_um`` and
        ``microns_per_pixel``, which is also ``uns["amilst_input"]["micrometers_per_unit"]``.

    Warns
    -----
    AmilstWarning
        Bins have no position, or names repeat.

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
    if path.is_dir():
        folder = _bin_folder(path, bin_size)
        counts = find_one(folder, (_COUNTS[filtered_counts_file],))
        if counts is None:
            raise InputError(
                f"{folder} has no {_COUNTS[filtered_counts_file]}; found {listing(folder)}. Copy it there, or choose "
                f"{_COUNTS[not filtered_counts_file]} with filtered_counts_file={not filtered_counts_file}."
            )
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
    with open_hdf5(existing_file(counts, "a 10x HDF5 file"), "a 10x HDF5 matrix") as file:
        attributes = {name: np.ravel(value)[0] for name, value in file.attrs.items() if np.size(value)}
    adata = read_10x_h5(counts, genome=genome, gene_expression_only=gene_expression_only)
    adata, left_out = located.join(adata, adata.uns[keys.INPUT]["left_out"])

    section = describe_images(positions, attributes)
    library = library_id or as_text(attributes.get("library_ids", folder.resolve().name))
    adata.uns[keys.SPATIAL] = {library: section}
    VISIUM_HD.describe(adata, path, left_out=left_out)
    if "microns_per_pixel" in section["scalefactors"]:
        adata.uns[keys.INPUT]["micrometers_per_unit"] = section["scalefactors"]["microns_per_pixel"]
    return adata


class _Positions:
    """A table of positions in parquet.

    It stays in Arrow's memory until it is joined: at 2 µm there are eleven million bins, whose barcodes would take a
    gigabyte as Python objects.
    """

    def __init__(self, path: Path) -> None:
        try:
            import pyarrow.compute
            import pyarrow.parquet
        except ImportError as error:
            raise MissingExtraError.for_package("pyarrow", "parquet", f"reading {path}") from error
        self.path = existing_file(path, "a parquet file")
        with reading(path, "a table of positions (parquet)"), path.open("rb") as source:
            missing = set(VISIUM_COLUMNS) - set(pyarrow.parquet.read_schema(source).names)
            if missing:
                raise InputError(
                    f"{path} has no column {examples(sorted(missing))}; expected {', '.join(VISIUM_COLUMNS)}."
                )
            source.seek(0)
            table = pyarrow.parquet.read_table(source, columns=list(VISIUM_COLUMNS))
            barcodes = table["barcode"].cast(pyarrow.string())
            if pyarrow.compute.count_distinct(barcodes).as_py() != len(barcodes):
                raise InputError(
                    f"{path}: barcodes repeat; expected one row for each bin. Download it again."
                )
            self.barcodes: Any = barcodes.combine_chunks()
            self.columns: Any = table.drop_columns(["barcode"])
        del table, barcodes
        pyarrow.default_memory_pool().release_unused()  # before the counts need memory

    def join(self, adata: AnnData, left_out: dict[str, int]) -> tuple[AnnData, dict[str, int]]:
        """The bins of ``adata`` that are in tissue, with their positions, and what has been left out."""
        import pyarrow as pa
        import pyarrow.compute as pc

        names = pa.array(adata.obs_names, type=pa.string())
        rows = pc.fill_null(pc.index_in(names, value_set=self.barcodes), -1).to_numpy()
        del names
        absent = rows < 0
        if absent.all():
            raise InputError(
                f"{self.path}: 0 of {len(rows)} bins match one of its {len(self.barcodes)} rows. Expected the same "
                f"barcodes in both; found {examples(adata.obs_names)} among the counts and "
                f"{examples(self.barcodes[:4].to_pylist())} in the table. Are they of the same bin size?"
            )
        if absent.any():
            warnings.warn(
                f"{self.path}: {absent.sum()} of {len(rows)} bins left out, which have no row (e.g. "
                f"{examples(adata.obs_names[absent])}).",
                AmilstWarning,
                stacklevel=3,
            )
        del self.barcodes
        off_tissue = ~absent & (self.columns["in_tissue"].to_numpy()[rows] != 1)
        kept = ~absent & ~off_tissue
        if not kept.any():
            raise InputError(
                f"{self.path}: no bin is in tissue (in_tissue is 1 nowhere). Is the file complete?"
            )
        if not kept.all():
            adata, rows = adata[kept].copy(), rows[kept]
        for name in VISIUM_COLUMNS[1:4]:
            adata.obs[name] = self.columns[name].to_numpy()[rows]
        spatial = np.empty((len(rows), 2))
        for axis, name in enumerate(("pxl_col_in_fullres", "pxl_row_in_fullres")):
            spatial[:, axis] = self.columns[name].to_numpy()[rows]
        adata.obsm[keys.SPATIAL] = spatial
        _refuse_missing(adata, spatial, self.path)
        return adata, {
            **left_out,
            "bins off the tissue": int(off_tissue.sum()),
            "bins without position": int(absent.sum()),
        }


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
        try:
            return int(json.loads((place / _SCALE_FACTORS).read_text())["bin_size_um"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
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
        "`filtered_feature_bc_matrix.h5` and `spatial/tissue_positions.parquet`"
    ),
    read=read_visium_hd,
    recognizes=_recognizes,
    options=("bin_size", "genome", "library_id"),
    unit="pixel",
    geometry="square",
)
