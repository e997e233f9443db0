"""`read`: recognize the format of an input and call its reader."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import h5py
import numpy as np

from .. import keys
from ..errors import InputError
from ..runtime import memory_limit
from .anndata_store import ANNDATA_ZARR, H5AD, H5AD_GZ
from .arrays import SLIDESEQ, ST
from .coordinates import SpotTable, join_table
from .files import (
    PathLike,
    TextTable,
    binary_head,
    examples,
    existing,
    existing_file,
    listing,
    open_text,
    reading,
)
from .hdf5 import open_hdf5
from .imaging import COSMX, MERSCOPE, SEQFISH
from .long_table import LONG_TABLE
from .loom import LOOM
from .platform import Platform
from .spatialdata import SPATIALDATA
from .stereoseq import STEREOSEQ
from .tables import TABLE
from .tenx import TENX_H5, TENX_MTX
from .visium import VISIUM
from .visium_hd import VISIUM_HD
from .xenium import XENIUM

if TYPE_CHECKING:
    from anndata import AnnData

PLATFORMS: tuple[Platform, ...] = (
    H5AD,
    H5AD_GZ,
    SPATIALDATA,  # before the tables that it contains
    ANNDATA_ZARR,
    # the folders of other platforms before the matrices that they contain
    XENIUM,
    VISIUM_HD,  # a folder of bins has the layout of Visium
    VISIUM,
    MERSCOPE,
    COSMX,
    SEQFISH,
    SLIDESEQ,
    LOOM,
    TENX_H5,
    TENX_MTX,
    STEREOSEQ,
    # any other text
    LONG_TABLE,
    ST,
    TABLE,
)
"""Every platform, in order of recognition: the first that recognizes an input reads it."""

_ABOUT_COUNTS = ("platform", "left_out")
"""Entries of ``uns["amilst_input"]`` that hold with other coordinates, too."""

_OTHER_FORMATS = {
    **dict.fromkeys(
        (b"PK\x03\x04", b"7z\xbc\xaf", b"Rar!", b"ustar"),
        "an archive, which is not read: unpack it and give what it contains",
    ),
    **dict.fromkeys(
        (b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"),
        "compressed by another program than gzip: decompress it and give the result",
    ),
    **dict.fromkeys(
        (b"RDX", b"RDA", b"X\n\x00\x00"),
        "a file of R objects, which only R reads: write the object as h5ad there, with coordinates in obsm['spatial']",
    ),
}
"""First bytes of formats that are often tried → what they are and what to do."""

_INSIDE = (".h5ad", ".h5", ".loom", ".h5ad.gz", ".gem", ".gem.gz", ".gef")
"""Endings of files that are looked for in a folder; text could be anything."""


def read(
    path: PathLike,
    *,
    platform: str | None = None,
    coordinates: PathLike | None = None,
    genome: str | None = None,
    library_id: str | None = None,
    bin_size: int | None = None,
    layer: str | None = None,
    table: str | None = None,
    coordinate_system: str | None = None,
    backed: bool | Literal["auto"] = False,
) -> AnnData:
    """Read a section from the files of any supported platform, recognized by their content.

    Parameters
    ----------
    path
        A file or folder; README.md lists what is expected for each platform. Also a folder that contains
        exactly one input other than text.
    platform
        Name of the platform, if the files are not recognized: one of those in `PLATFORMS`.
    coordinates
        Table with one row per spot: name, x, y and optionally z (`join_coordinates`). Required for inputs
        without coordinates; replaces those of other inputs.
    genome
        For 10x HDF5 files with several genomes.
    library_id
        For Visium folders: name of the section in ``uns["spatial"]``.
    bin_size
        For platforms with square bins: the side of a bin; µm for Visium HD, spots of the chip for Stereo-seq.
    layer
        For AnnData and SpatialData: the layer that holds the counts, or "raw".
    table
        For SpatialData: the name of the table, if there are several.
    coordinate_system
        For SpatialData: the name of the coordinate system, see `read_spatialdata`.
    backed
        Leave the counts on disk, to be read in blocks of rows: for ``.h5ad`` and 10x HDF5 files that do not
        fit into memory. "auto": if they would need more than half of the memory that a run may use. If
        spots or features have to be left out, the others are read into memory.

    Returns
    -------
    AnnData
        n spots × d genes: counts in ``X`` (CSR, float32) and coordinates in ``obsm["spatial"]``, (n, 2) or
        (n, 3), float64. ``uns["amilst_input"]``: ``platform``; ``coordinate_unit``, "micrometer", "pixel",
        "spot" or "unknown"; ``geometry`` of the spots, "hexagonal", "square" or "free"; and ``left_out``, what
        was left out → how many. For an ``.h5ad`` file, everything in it; coordinates may then be missing.

    Warns
    -----
    AmilstWarning
        Names repeat, spots were left out (without coordinates or off the tissue), or a table of counts may
        be incomplete.

    Raises
    ------
    InputError
        The input is missing, empty, broken, of an unknown format or without coordinates; names in its parts do
        not match; or an option does not apply to it. The message says what was expected, what was found and
        what to do.
    MissingExtraError
        A parquet or zarr file, and the package that reads it is not installed.
    """
    found, path = recognize(path, platform, alone=coordinates is not None)
    given = {
        "genome": genome,
        "library_id": library_id,
        "bin_size": bin_size,
        "layer": layer,
        "table": table,
        "coordinate_system": coordinate_system,
    }
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if backed == "auto":
        backed = "backed" in found.options and layer is None and _is_large(path)
    if backed:
        options["backed"] = True
    for name, value in options.items():
        if name not in found.options:
            titles = [one.title for one in PLATFORMS if name in one.options]
            raise InputError(
                f"{name}={value!r} applies to {', '.join(titles) or 'no platform'} only; {path} is read as "
                f"{found.title}. Remove the option."
            )
    if found is TABLE:
        TextTable.sniff(existing_file(path, "a table of counts (csv or tsv)"))  # is it one?
    if found.needs_coordinates and coordinates is None:
        raise InputError(
            f"{path} has counts but no coordinates. Add a table with one row per spot (name, x, y): "
            "coordinates=TABLE, on the command line --coordinates TABLE."
        )
    joins = "coordinates" in found.options  # itself
    if joins and coordinates is not None:
        options["coordinates"] = coordinates
    adata = found.read(path, **options)
    if coordinates is not None and not joins:
        places = SpotTable.read(coordinates)
        adata = join_table(adata, places, copy=False)
        # what the file says of its own coordinates no longer applies
        known = {name: value for name, value in adata.uns[keys.INPUT].items() if name in _ABOUT_COUNTS}
        adata.uns[keys.INPUT] = {**known, **places.description()}
    if adata.n_obs == 0 or adata.n_vars == 0:
        raise InputError(
            f"{path} has {adata.n_obs} spots and {adata.n_vars} genes; expected at least one of each. Check that "
            "the file is complete."
        )
    if found not in (H5AD, H5AD_GZ, ANNDATA_ZARR):  # which are returned as they are
        _refuse_missing(adata, path if coordinates is None else Path(coordinates))
    return adata


def recognize(path: PathLike, platform: str | None = None, *, alone: bool = False) -> tuple[Platform, Path]:
    """The platform and the path of an input; for a folder that contains a single input, of that input.

    Parameters
    ----------
    path
    platform
        Name of the platform, if it should not be recognized.
    alone
        Take a matrix as such, even if it lies in a folder of Visium.

    Raises
    ------
    InputError
        It is missing, empty, broken or of an unknown format, or contains several inputs; or there is no such
        platform.
    """
    path = existing(path)
    candidates = PLATFORMS if platform is None else (_named(platform),)
    if alone and platform is None and path.is_file():
        candidates = tuple(one for one in PLATFORMS if one is not VISIUM)
    found = _first(path, candidates)
    if found is not None:
        return found, path
    inside = _inside(path, candidates) if path.is_dir() else []
    if len(inside) == 1:
        return inside[0]
    if inside:
        names = examples((entry.relative_to(path) for _, entry in inside), 20)
        raise InputError(f"{path} contains {len(inside)} inputs: {names}. Choose one of them.")
    if platform is not None:
        return candidates[0], path  # its reader says what is missing
    raise _unknown(path)


def _refuse_missing(adata: AnnData, source: Path) -> None:
    """Refuse coordinates that are not finite, and name the spots."""
    wrong = ~np.isfinite(adata.obsm[keys.SPATIAL]).all(axis=1)
    if wrong.any():
        raise InputError(
            f"{source}: {wrong.sum()} of {len(wrong)} spots have missing or infinite coordinates: "
            f"{examples(adata.obs_names[wrong], 8)}. Correct them, or remove the rows of these spots."
        )


def input_table() -> str:
    """The rows of the table of inputs in README.md, in Markdown."""
    lines = ["| platform | files | coordinates | `--platform` |", "|---|---|---|---|"]
    lines += [f"| {one.title} | {one.files} | {_unit(one)} | `{one.name}` |" for one in PLATFORMS]
    return "\n".join(lines)


def _unit(platform: Platform) -> str:
    units = {"unknown": "as given", "micrometer": "µm", "pixel": "pixels", "spot": "spots of the array"}
    return units.get(platform.unit, platform.unit)


def _named(name: str) -> Platform:
    names = [one.name for one in PLATFORMS]
    if name not in names:
        near = difflib.get_close_matches(str(name).lower(), names, n=1)
        advice = f" Did you mean {near[0]!r}?" if near else ""
        raise InputError(f"platform must be one of {', '.join(names)}; found {name!r}.{advice}")
    return PLATFORMS[names.index(name)]


def _is_large(path: Path) -> bool:
    """Whether the counts of an HDF5 file would need more than half of the memory that a run may use."""
    entries = 0

    def count(name: str, item: h5py.Group | h5py.Dataset) -> None:
        nonlocal entries
        if isinstance(item, h5py.Dataset) and name in ("X", "X/data", "matrix/data"):
            entries = item.size

    with open_hdf5(path, "an HDF5 file") as file:
        file.visititems(count)
    memory, _ = memory_limit()
    return memory is not None and 8 * entries > memory / 2


def _first(path: Path, candidates: Sequence[Platform]) -> Platform | None:
    """The first platform that recognizes ``path``; None if there is none."""
    try:
        return next((one for one in candidates if one.recognizes(path)), None)
    except OSError:  # a folder that must not be read
        return None


def _inside(folder: Path, candidates: tuple[Platform, ...]) -> list[tuple[Platform, Path]]:
    """The inputs in a folder that is none itself, by name."""
    found = []
    for place in sorted(_places_inside(folder)):
        one = _first(place, candidates)
        if one is not None:
            found.append((one, place))
    return found


def _places_inside(folder: Path) -> Iterator[Path]:
    with reading(folder, "a folder"):
        for entry in folder.iterdir():
            if entry.is_dir():
                yield entry
                yield entry / "outs"  # Space Ranger writes the results of DIR to DIR/outs
            elif entry.name.endswith(_INSIDE):
                yield entry


def _unknown(path: Path) -> InputError:
    """The error for an input that no platform recognizes."""
    titles = ", ".join(one.title for one in PLATFORMS)
    expected = (
        f"Expected the files of one of: {titles}. If it is one of them, name it with platform= (--platform)."
    )
    parent = path.resolve().parent
    above = _first(parent, PLATFORMS)
    if above is not None:
        expected = f"The folder above is an input ({above.title}): give {parent}."
    if path.is_dir():
        return InputError(f"{path} contains no input of a known format; found {listing(path)}. {expected}")
    if h5py.is_hdf5(path):
        with open_hdf5(path, "an HDF5 file") as file:
            return InputError(
                f"{path} is an HDF5 file of an unknown format; it contains {examples(file, 8)}. {expected}"
            )
    head = binary_head(path)
    if head[257:262] == b"ustar":
        head = b"ustar"
    known = next((known for start, known in _OTHER_FORMATS.items() if head.startswith(start)), None)
    if known is not None:
        return InputError(f"{path} is {known}. {expected}")
    try:
        with reading(path, "text"), open_text(path) as handle:
            handle.read(4096)
    except InputError as error:
        # bytes that are not text mean another format, not a broken file
        if not isinstance(error.__cause__, UnicodeError):
            raise
    return InputError(f"The format of {path} is unknown. {expected}")
