"""One door for every format: look at what is there, then call the reader for it."""

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
    """Read a section from any supported input, recognised by its content.

    Parameters
    ----------
    path
        One of

        - an ``.h5ad`` file (`read_h5ad`);
        - a Visium folder of Space Ranger 1 to 4, or its matrix (`read_visium`);
        - a 10x HDF5 file (`read_10x_h5`) or Matrix Market folder (`read_10x_mtx`), with ``coordinates``;
        - a text table of counts, either way round, with ``coordinates`` (`read_table`);
        - a folder that holds exactly one of the first three.
    coordinates
        Table with a row for each spot, its name and its x and y (`join_coordinates`). Needed by inputs
        that have no coordinates; takes the place of those of inputs that have.
    genome
        For 10x HDF5 files with several genomes.
    library_id
        For Visium folders: name of the section in ``uns["spatial"]``.
    backed
        Leave the counts on disk, to be read by blocks of rows: for ``.h5ad`` and 10x HDF5 files that do not
        fit into memory. "auto": if they would take more than a third of this machine's.

    Returns
    -------
    AnnData
        n spots × d genes: counts in ``X`` (CSR, float32) and coordinates in ``obsm["spatial"]`` (n × 2,
        float64, in the input's unit). Of an ``.h5ad`` file all that it holds.

    Warns
    -----
    AmilstWarning
        Names repeat, or spots were left out because they have no coordinates or lie off the tissue.

    Raises
    ------
    InputError
        The file is missing, empty, broken, of no known format, or without coordinates; or names in its
        parts do not match. The message says what was expected, what was found and what to do.
    """
    kind, path = recognise(path)
    # matrix files inside a Visium folder find their positions there, unless others are given
    if kind.startswith("10x") and coordinates is None and find_positions(path.parent) is not None:
        kind = "visium"
    if genome is not None and kind not in ("10x_h5", "visium"):
        raise InputError(
            f"genome={genome!r} was asked for, but only 10x HDF5 files know genomes; {path} is none."
        )
    if library_id is not None and kind != "visium":
        raise InputError(f"library_id={library_id!r} was given, but {path} is no Visium folder.")

    if backed == "auto":
        backed = kind in ("h5ad", "10x_h5") and _is_large(path)
    elif backed and kind not in ("h5ad", "10x_h5"):
        raise InputError(f"backed=True is for .h5ad and 10x HDF5 files; {path} is none of them.")

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


def recognise(path: PathLike) -> tuple[str, Path]:
    """What ``path`` is, and where: a folder that holds a single section leads to that section.

    Returns
    -------
    tuple of (str, Path)
        One of "h5ad", "visium", "10x_h5", "10x_mtx" and "table", and the file or folder to read.

    Raises
    ------
    InputError
        It is missing, empty, broken, of no known format, or holds several sections.
    """
    path = existing(path)
    if path.is_dir():
        return _recognise_folder(path)
    if h5py.is_hdf5(path):
        with reading(path, "an HDF5 file"), h5py.File(path, "r") as file:
            if is_h5ad(file):
                return "h5ad", path
            if is_10x(file):
                return "10x_h5", path
            found = examples(file, 8)
        raise InputError(
            f"{path} is an HDF5 file, but neither h5ad (groups 'X', 'obs', 'var') nor a 10x matrix "
            f"(group 'matrix', or one for each genome); it holds {found}."
        )
    try:
        with reading(path, "text"), open_text(path) as handle:
            head = handle.read(4096)
    except InputError as error:
        # other bytes than text say that it is something else, not that it is broken
        if not isinstance(error.__cause__, UnicodeDecodeError):
            raise
        head = "\0"
    if "\0" in head:
        raise InputError(f"{path} is of no known format. Expected {_KNOWN}.")
    return ("10x_mtx" if head.startswith("%%MatrixMarket") else "table"), path


def _is_large(path: Path) -> bool:
    """Whether the counts of an HDF5 file would take more than a third of the memory."""
    entries = 0

    def count(name: str, item: h5py.Group | h5py.Dataset) -> None:
        nonlocal entries
        if isinstance(item, h5py.Dataset) and name in ("X", "X/data", "matrix/data"):
            entries = item.size

    with reading(path, "an HDF5 file"), h5py.File(path, "r") as file:
        file.visititems(count)
    memory = total_memory()
    return memory is not None and 8 * entries > memory / 3


def _recognise_folder(folder: Path) -> tuple[str, Path]:
    if _is_visium(folder):
        return "visium", folder
    if find_one(folder, MATRIX_NAMES) is not None:
        return "10x_mtx", folder
    inside = sorted(_inputs_inside(folder))
    if len(inside) == 1:
        return recognise(inside[0])
    if inside:
        names = examples((entry.relative_to(folder) for entry in inside), 20)
        raise InputError(f"{folder} holds {len(inside)} inputs: {names}. Name one of them.")
    raise InputError(f"{folder} holds no input of a known format, but {listing(folder)}. Expected {_KNOWN}.")


def _inputs_inside(folder: Path) -> Iterator[Path]:
    for entry in folder.iterdir():
        if entry.suffix in (".h5ad", ".h5") and entry.is_file():
            yield entry
        # Space Ranger puts its results for DIR in DIR/outs
        for place in (entry, entry / "outs"):
            if place.is_dir() and (_is_visium(place) or find_one(place, MATRIX_NAMES) is not None):
                yield place


def _is_visium(folder: Path) -> bool:
    return (folder / "spatial").is_dir() or find_positions(folder) is not None


def _no_coordinates(path: Path) -> InputError:
    return InputError(
        f"{path} holds counts but no coordinates. Give a table with a row for each spot, its name and its x "
        "and y: coordinates=TABLE, on the command line --coordinates TABLE."
    )
