"""Visium sections in the output folders of Space Ranger 1 to 4."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from .. import keys
from ..errors import InputError, MissingExtraError, warn
from .coordinates import join_columns, join_coordinates, visium_pixel_size
from .files import PathLike, examples, existing, existing_file, find_one, holds, listing, open_text, reading
from .platform import Platform
from .tenx import MATRIX_NAMES, TENX_H5, is_10x_mtx, read_10x_h5, read_10x_mtx

if TYPE_CHECKING:
    from anndata import AnnData

_log = logging.getLogger("amilst_lite")

POSITIONS = (
    "tissue_positions.csv",  # Space Ranger 2+
    "tissue_positions_list.csv",  # Space Ranger 1
    "tissue_positions.csv.gz",
    "tissue_positions_list.csv.gz",
    "tissue_positions_list.txt",  # as published with the sections of the human cortex
    "tissue_positions.parquet",  # Visium HD
)
_COUNTS = (
    "filtered_feature_bc_matrix.h5",
    "filtered_feature_bc_matrix",
    "raw_feature_bc_matrix.h5",  # all spots of the array; those off the tissue are left out
    "raw_feature_bc_matrix",
    *MATRIX_NAMES,
    ".h5",
)
_IMAGES = {"hires": "tissue_hires_image", "lowres": "tissue_lowres_image"}


def is_visium(path: Path) -> bool:
    """Whether ``path`` is a folder with positions, or a matrix beside or above which they lie."""
    if path.is_dir() and not holds(path, MATRIX_NAMES):
        return (path / "spatial").is_dir() or holds(path, POSITIONS)
    places = (path, path.parent) if path.is_dir() else (path.parent,)
    has_positions = any(holds(place / "spatial", POSITIONS) or holds(place, POSITIONS) for place in places)
    return has_positions and (is_10x_mtx(path) or TENX_H5.recognizes(path))


def find_positions(folder: Path) -> Path | None:
    """The table of positions in ``folder/spatial`` or ``folder``, or None."""
    return find_one(folder / "spatial", POSITIONS) or find_one(folder, POSITIONS)


def read_visium(
    path: PathLike,
    *,
    genome: str | None = None,
    library_id: str | None = None,
    gene_expression_only: bool = True,
) -> AnnData:
    """Read a Visium section from Space Ranger's output folder.

    Parameters
    ----------
    path
        Folder that contains ``filtered_feature_bc_matrix.h5`` or the folder ``filtered_feature_bc_matrix``,
        and ``spatial/tissue_positions[_list].csv``; or the counts in such a folder, to choose among several.
        File names with a prefix, and positions next to the counts, are accepted, as in public archives.
    genome, gene_expression_only
        See `read_10x_h5`.
    library_id
        Name of the section in ``uns["spatial"]``; by default that in the HDF5 file, or else of the folder.

    Returns
    -------
    AnnData
        The n spots in tissue. ``X``: counts, CSR, float32. ``obsm["spatial"]``: (n, 2), float64, pixels of
        the full-resolution image, x (column) before y (row); ``uns["amilst_input"]["micrometers_per_unit"]``, from
        the spots' distance of 100 µm. ``obs``: ``in_tissue``, ``array_row``,
        ``array_col`` and the columns of ``metadata.tsv`` if the folder has one.
        ``uns["spatial"][library_id]``, as in scanpy and squidpy: ``scalefactors``; ``metadata`` with
        ``hires_image_path`` and ``lowres_image_path``; and ``images``, which is empty because images stay
        on disk (see `load_image`).

    Warns
    -----
    AmilstWarning
        Spots were left out or have no metadata, names repeat, or x and y appear to be swapped.

    Raises
    ------
    InputError
        Counts or positions are missing or broken, or belong to different sections.
    """
    path = existing(path)
    # A folder that contains matrix.mtx is the counts, unless it contains the positions, too.
    is_section = path.is_dir() and (find_positions(path) is not None or find_one(path, MATRIX_NAMES) is None)
    folder = path if is_section else path.parent
    positions = find_positions(folder)
    if positions is None:
        raise InputError(
            f"{folder} has no positions of the spots: expected spatial/tissue_positions.csv (Space Ranger 2+) "
            f"or spatial/tissue_positions_list.csv (Space Ranger 1), found {listing(folder)}."
        )
    counts = _find_counts(folder) if is_section else path
    if counts.is_dir() or ".mtx" in counts.name:
        adata = read_10x_mtx(counts, gene_expression_only=gene_expression_only)
        attributes: dict[str, Any] = {}
    else:
        adata = read_10x_h5(counts, genome=genome, gene_expression_only=gene_expression_only)
        with reading(counts, "a 10x HDF5 matrix"), h5py.File(counts, "r") as file:
            attributes = {name: np.ravel(value)[0] for name, value in file.attrs.items() if np.size(value)}
    adata = join_coordinates(adata, positions, copy=False)
    metadata = find_one(folder, ("metadata.tsv", "metadata.tsv.gz"))
    if metadata is not None:
        join_columns(adata, metadata)
    library = library_id or as_text(attributes.get("library_ids", folder.resolve().name))
    adata.uns[keys.SPATIAL] = {library: describe_images(positions, attributes)}
    size = _pixel_size(adata, positions)
    details = {} if size is None else {"micrometers_per_unit": size}
    return VISIUM.describe(adata, path, left_out=adata.uns[keys.INPUT]["left_out"], **details)


def _pixel_size(adata: AnnData, positions: Path) -> float | None:
    """Size of a pixel in µm, if the places of the spots on the array tell it; warns if the array is mirrored."""
    if not {"array_row", "array_col"} <= set(adata.obs):
        return None
    size = visium_pixel_size(adata.obsm[keys.SPATIAL], adata.obs["array_row"], adata.obs["array_col"])
    # CytAssist takes its own image of the array, which may be mirrored
    if size is not None and size < 0 and not holds(positions.parent, ("cytassist_image.tiff",)):
        warn(
            f"{positions}: x and y of the spots appear to be swapped: compared with array_col and array_row, the "
            "section is mirrored. Expected pxl_row_in_fullres before pxl_col_in_fullres. Domains are not affected, "
            "but the tissue image will not fit. Correct the table, or ignore this if the image was mirrored."
        )
    return None if size is None else abs(size)


def load_image(adata: AnnData, library_id: str | None = None) -> tuple[np.ndarray, float] | None:
    """Load the tissue image and its scale, to draw spots on it.

    Parameters
    ----------
    adata
        With ``uns["spatial"]`` as written by `read_visium`, scanpy or squidpy. The image of high resolution
        is preferred to that of low resolution, and an image in memory to one on disk.
    library_id
        The section; may be None if there is only one.

    Returns
    -------
    tuple of (numpy.ndarray, float) or None
        Image, (height, width, 3 or 4), uint8 or float in [0, 1], and the factor from ``obsm["spatial"]`` to
        its pixels. None if there is no image, or none that can be read.

    Warns
    -----
    AmilstWarning
        An image file is missing or cannot be read; the message names it.

    Raises
    ------
    MissingExtraError
        matplotlib, which reads the file, is not installed.
    InputError
        The library is unknown or ambiguous.
    """
    libraries = adata.uns.get(keys.SPATIAL, {})
    if not libraries:
        return None
    if library_id is None and len(libraries) == 1:
        library_id = next(iter(libraries))
    if library_id not in libraries:
        raise InputError(f"library_id must be one of {examples(libraries, 12)}; found {library_id!r}.")
    return tissue_image(libraries[library_id])


def tissue_image(library: Mapping[str, Any]) -> tuple[np.ndarray, float] | None:
    """`load_image` of one entry of ``uns["spatial"]``."""
    for resolution in _IMAGES:
        scale = library.get("scalefactors", {}).get(f"tissue_{resolution}_scalef")
        image = library.get("images", {}).get(resolution)
        path = library.get("metadata", {}).get(f"{resolution}_image_path")
        if scale is None or (image is None and path is None):
            continue
        if image is not None:
            return np.asarray(image), float(scale)
        try:
            return _read_image(path), float(scale)
        except InputError as error:
            warn(f"The tissue image is not used: {error}")
    return None


def _find_counts(folder: Path) -> Path:
    counts = find_one(folder, _COUNTS)
    if counts is None:
        raise InputError(
            f"{folder} has positions of spots but no counts: expected filtered_feature_bc_matrix.h5 or the "
            f"folder filtered_feature_bc_matrix, found {listing(folder)}. "
            + (
                f"Give the folder above, {folder.resolve().parent}."
                if find_one(folder.resolve().parent, _COUNTS) is not None
                else "Copy Space Ranger's matrix there."
            )
        )
    return counts


def as_text(value: Any) -> str:
    """An attribute of an HDF5 file as text."""
    return value.decode() if isinstance(value, bytes) else str(value)


def describe_images(positions: Path, attributes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The entry of ``uns["spatial"]``; file names have the same prefix as the positions, if any."""
    prefix = positions.name[: positions.name.index("tissue_positions")]
    folder = positions.parent.resolve()
    scalefactors: dict[str, float] = {}
    path = find_one(folder, [f"{prefix}scalefactors_json.json{ending}" for ending in ("", ".gz")])
    if path is None:
        _log.info("%s has no scale factors: spot size and image scale are unknown", folder)
    else:
        with reading(path, "scale factors (JSON)"), open_text(existing(path), at_once=True) as handle:
            scalefactors = {name: float(value) for name, value in json.load(handle).items()}
    metadata: dict[str, str] = {}
    for name in ("chemistry_description", "software_version"):
        if name in attributes:
            metadata[name] = as_text(attributes[name])
    for resolution, stem in _IMAGES.items():
        endings = ("png", "jpg", "jpeg", "tif", "tiff")
        image = find_one(folder, [f"{prefix}{stem}.{ending}" for ending in endings])
        if image is not None:
            metadata[f"{resolution}_image_path"] = str(image)
    return {"images": {}, "scalefactors": scalefactors, "metadata": metadata}


def _read_image(path: PathLike) -> np.ndarray:
    try:
        from matplotlib.image import imread
    except ImportError as error:
        raise MissingExtraError.for_package("matplotlib", "plot", "reading the tissue image") from error
    path = existing_file(path, "an image")
    with reading(path, "an image"):
        return imread(path)


VISIUM = Platform(
    name="visium",
    title="Visium",
    files=(
        "output folder of Space Ranger 1 to 4: `filtered_feature_bc_matrix.h5` or folder, and `spatial/`; columns of "
        "a `metadata.tsv` are joined to `obs` by barcode"
    ),
    read=read_visium,
    recognizes=is_visium,
    options=("genome", "library_id"),
    unit="pixel",
    geometry="hexagonal",
)
