"""`read`: recognize the format of an input and call its reader."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import h5py

from ..errors import InputError
from ..runtime import total_memory
from .coordinates import join_coordinates
from .files import PathLike, examples, existing, find_one, listing, open_text, reading
from .h5ad import is_h5ad, read_h5ad
from .tables import read_table
from .tenx import MATRIX_NAMES, is_10x, read_10x_h5, read_10x_mtx
from .visium import find_positions, read_visium

if TYPE_CHECKING:
    from anndata import AnnData

_KNOWN = (
    "an .h5ad file, a Visium folder (Space Ranger), or with a coordinate table: a 10x HDF5 file, "
    "a Matrix Market folder or a table of counts (csv, tsv)"
)


def read(
    path: PathLike,
    *,
    coordinates: PathLike | None = None,
    genome: str | None = None,
    library_id: str | None = None,
    backed: bool | Literal["auto"] = False,
) -> AnnData:
    """Read a section from any supported input, recognized by its content.

    Parameters
    ----------
    path
        One of

        - an ``.h5ad`` file (`read_h5ad`);
        - a Visium folder of Space Ranger 1 to 4, or the matrix in it (`read_visium`);
        - a 10x HDF5 file (`read_10x_h5`) or Matrix Market folder (`read_10x_mtx`), with ``coordinates``;
        - a text table of counts in either orientation, with ``coordinates`` (`read_table`);
        - a folder that contains exactly one of the first three.
    coordinates
        Table with one row per spot: name, x, y and optionally z (`join_coordinates`). Required for inputs
        without coordinates; replaces those of other inputs.
    genome
        For 10x HDF5 files with several genomes.
    library_id
        For Visium folders: name of the section in ``uns["spatial"]``.
    backed
        Leave the counts on disk, to be read in blocks of rows: for ``.h5ad`` and 10x HDF5 files that do not
        fit into memory. "auto": if they would need more than a third of the memory of this machine. If
        spots or features have to be left out, the others are read into memory.

    Returns
    -------
    AnnData
        n spots × d genes: counts in ``X`` (CSR, float32) and coordinates in ``obsm["spatial"]``, (n, 2) or
        (n, 3), float64, in the unit of the input. For an ``.h5ad`` file, everything in it; coordinates may
        then be missing.

    Warns
    -----
    AmilstWarning
        Names repeat, spots were left out (without coordinates or off the tissue), or a table of counts may
        be incomplete.

    Raises
    ------
    InputError
        The input is missing, empty, broken, of an unknown format or without coordinates; or names in its
        parts do not match. The message says what was expected, what was found and what to do.
    """
    kind, path = recognize(path)
    # a matrix inside a Visium folder uses the positions there, unless others are given
    if kind.startswith("10x") and coordinates is None and find_positions(path.parent) is not None:
        kind = "visium"
    if genome is not None and kind not in ("10x_h5", "visium"):
        raise InputError(
            f"genome={genome!r} applies to 10x HDF5 files only; {path} is not one. Remove the option."
        )
    if library_id is not None and kind != "visium":
        raise InputError(
            f"library_id={library_id!r} applies to Visium folders only; {path} is not one. Remove the option."
        )

    if backed == "auto":
        backed = kind in ("h5ad", "10x_h5") and _is_large(path)
    elif backed and kind not in ("h5ad", "10x_h5"):
        raise InputError(f"backed=True applies to .h5ad and 10x HDF5 files only; {path} is neither.")

    if kind == "table":
        if coordinates is None:
            raise _no_coordinates(path)
        return read_table(path, coordinates)
    if kind == "visium":
        adata = read_visium(path, genome=genome, library_id=library_id)
    elif kind == "h5ad":
        adata = read_h5ad(path, backed=backed)
    elif coordinates is None:
        raise _no_coordinates(path)
    else:
        adata = read_10x_h5(path, genome=genome, backed=backed) if kind == "10x_h5" else read_10x_mtx(path)
    return adata if coordinates is None else join_coordinates(adata, coordinates, copy=False)


def recognize(path: PathLike) -> tuple[str, Path]:
    """The kind and the path of an input; for a folder that contains a single input, of that input.

    Returns
    -------
    tuple of (str, Path)
        One of "h5ad", "visium", "10x_h5", "10x_mtx" and "table", and the file or folder to read.

    Raises
    ------
    InputError
        It is missing, empty, broken or of an unknown format, or contains several inputs.
    """
    path = existing(path)
    if path.is_dir():
        return _recognize_folder(path)
    if h5py.is_hdf5(path):
        with reading(path, "an HDF5 file"), h5py.File(path, "r") as file:
            if is_h5ad(file):
                return "h5ad", path
            if is_10x(file):
                return "10x_h5", path
            found = examples(file, 8)
        raise InputError(
            f"{path} is an HDF5 file, but neither h5ad (groups 'X', 'obs', 'var') nor a 10x matrix "
            f"(group 'matrix', or one group per genome); it contains {found}."
        )
    try:
        with reading(path, "text"), open_text(path) as handle:
            head = handle.read(4096)
    except InputError as error:
        # bytes that are not text mean another format, not a broken file
        if not isinstance(error.__cause__, UnicodeDecodeError):
            raise
        head = "\0"
    if "\0" in head:
        raise InputError(f"The format of {path} is unknown. Expected {_KNOWN}.")
    return ("10x_mtx" if head.startswith("%%MatrixMarket") else "table"), path


def _is_large(path: Path) -> bool:
    """Whether the counts of an HDF5 file would need more than a third of the memory."""
    entries = 0

    def count(name: str, item: h5py.Group | h5py.Dataset) -> None:
        nonlocal entries
        if isinstance(item, h5py.Dataset) and name in ("X", "X/data", "matrix/data"):
            entries = item.size

    with reading(path, "an HDF5 file"), h5py.File(path, "r") as file:
        file.visititems(count)
    memory = total_memory()
    return memory is not None and 8 * entries > memory / 3


def _recognize_folder(folder: Path) -> tuple[str, Path]:
    if _is_visium(folder):
        return "visium", folder
    if find_one(folder, MATRIX_NAMES) is not None:
        return "10x_mtx", folder
    inside = sorted(_inputs_inside(folder))
    if len(inside) == 1:
        return recognize(inside[0])
    if inside:
        names = examples((entry.relative_to(folder) for entry in inside), 20)
        raise InputError(f"{folder} contains {len(inside)} inputs: {names}. Choose one of them.")
    raise InputError(
        f"{folder} contains no input of a known format; found {listing(folder)}. Expected {_KNOWN}."
    )


def _inputs_inside(folder: Path) -> Iterator[Path]:
    for entry in folder.iterdir():
        if entry.suffix in (".h5ad", ".h5") and entry.is_file():
            yield entry
        # Space Ranger writes the results of DIR to DIR/outs
        for place in (entry, entry / "outs"):
            if place.is_dir() and (_is_visium(place) or find_one(place, MATRIX_NAMES) is not None):
                yield place


def _is_visium(folder: Path) -> bool:
    return (folder / "spatial").is_dir() or find_positions(folder) is not None


def _no_coordinates(path: Path) -> InputError:
    return InputError(
        f"{path} has counts but no coordinates. Add a table with one row per spot (name, x, y): "
        "coordinates=TABLE, on the command line --coordinates TABLE."
    )
