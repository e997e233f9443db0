"""AnnData on disk: h5ad files, compressed or not, and zarr stores; with the counts wherever they are."""

from __future__ import annotations

import gzip
import logging
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import keys
from ..errors import InputError, warn
from .bounds import most_memory
from .coordinates import SpotTable
from .files import PathLike, examples, existing, existing_file, hdf5_has, reading
from .h5ad import are_counts, is_h5ad
from .hdf5 import open_hdf5
from .matrix import check_indices, to_csr, unique
from .platform import Platform
from .write import scratch_folder
from .zarr_store import is_zarr_group, open_zarr

if TYPE_CHECKING:
    from anndata import AnnData

_log = logging.getLogger("amilst_lite")

_OTHER_SPATIAL = "X_spatial"  # of ``obsm``: scanpy's name of embeddings, used for coordinates, too

RAW = "raw"
"""``layer`` for ``AnnData.raw``, unless there is a layer of that name."""

_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


def read_h5ad(path: PathLike, *, layer: str | None = None, backed: bool = False) -> AnnData:
    """Read an ``.h5ad`` file, compressed with gzip or not.

    Parameters
    ----------
    path
        File written by ``AnnData.write_h5ad``. A compressed file is decompressed into the temporary folder.
    layer
        Where the raw counts are, if neither in ``layers["counts"]`` nor in ``X``: a name in ``layers``, or
        "raw" for ``AnnData.raw``, whose genes then replace those of ``X``.
    backed
        Leave ``X`` on disk, to be read in blocks of rows.

    Returns
    -------
    AnnData
        As stored, with three exceptions. The layer chosen is ``layers["counts"]``; raw counts of other genes
        than those of ``X`` are in ``X``. Counts (no negative and no fractional values) in ``X`` and
        ``layers["counts"]`` are converted to canonical CSR, float32, from any matrix type. Names are made
        unique. An ``X`` with other values, or on disk, is unchanged. Without ``obsm["spatial"]``, coordinates are
        those of ``obsm["X_spatial"]``, or of columns of ``obs`` named as in `COORDINATE_COLUMNS`, if all of them are
        finite numbers; the log says so. They may be missing; functions that need them raise `MissingKeyError`.

    Warns
    -----
    AmilstWarning
        Names of spots or genes repeat; or ``X`` does not hold counts while ``raw`` or a layer does.

    Raises
    ------
    InputError
        The file is missing, a folder, broken or not an AnnData, has no expression matrix or not that layer.
    """
    # not at the top: anndata takes half a second to import
    import anndata

    path = existing_file(path, "an h5ad file")
    if backed and layer is not None:
        raise InputError(f"layer={layer!r} and backed=True exclude each other: only X can be left on disk.")
    if backed and _is_compressed(path):
        raise InputError(
            f"{path} is compressed and cannot be left on disk. Decompress it first: gunzip {path.name}"
        )
    with reading(path, "an h5ad file"), _decompressed(path) as plain:
        with open_hdf5(plain, "an h5ad file", source=path) as file:
            if not is_h5ad(file):
                raise InputError(
                    f"{path} is not an h5ad file: expected 'X', 'obs', 'var', found {examples(file, 8)}."
                )
            _check_shapes(file, path)
        with _without_name_warnings():
            adata = anndata.read_h5ad(plain, backed="r" if backed else None)
        adata = _with_coordinates(prepare(adata, path, layer), path)
    platform = H5AD_GZ if _is_compressed(path) else H5AD
    # a file that was converted by `read` says more about its input than its own format does
    return adata if keys.INPUT in adata.uns else platform.describe(adata, path)


def read_zarr(path: PathLike, *, layer: str | None = None) -> AnnData:
    """Read an AnnData from a zarr store, format 2 or 3.

    Parameters
    ----------
    path
        Folder written by ``AnnData.write_zarr``.
    layer
        See `read_h5ad`.

    Returns
    -------
    AnnData
        As `read_h5ad`.

    Warns
    -----
    AmilstWarning
        As `read_h5ad`.

    Raises
    ------
    InputError
        The folder is missing, incomplete or not an AnnData, has no expression matrix or not that layer.
    MissingExtraError
        zarr is not installed.
    """
    return _with_coordinates(load_zarr(existing(path), layer), Path(path))


def load_zarr(path: Path, layer: str | None) -> AnnData:
    """`read_zarr`, without coordinates if they are not in ``obsm["spatial"]``."""
    import anndata

    if not is_anndata_zarr(path):
        raise InputError(
            f"{path} is not an AnnData in zarr format: expected a folder with 'X', 'obs' and 'var'. A SpatialData "
            "store holds it in tables/NAME (read_spatialdata)."
        )
    with reading(path, "an AnnData in zarr format"):
        group = open_zarr(path)
        _check_shapes(group, path)
        _check_chunks(group, path)
        with _without_name_warnings():
            adata = anndata.read_zarr(str(path))
        adata = prepare(adata, path, layer)
    return adata if keys.INPUT in adata.uns else ANNDATA_ZARR.describe(adata, path)


def prepare(adata: AnnData, path: Path, layer: str | None) -> AnnData:
    """Put the counts where they belong, in canonical form, and make names unique; see `read_h5ad`.

    Parameters
    ----------
    adata
        As stored; changed in place where possible. ``X`` may be on disk.
    path
        Its file, for messages.
    layer
        See `read_h5ad`.

    Raises
    ------
    InputError
        There is no expression matrix, or not that layer; or names of columns repeat.
    """
    for slot in ("obs", "var"):
        columns = getattr(adata, slot).columns
        if columns.has_duplicates:
            raise InputError(
                f"{path}: the columns {examples(columns[columns.duplicated()].unique())} of {slot} are there more than "
                "once. Write the file again with unique names."
            )
    _check_matrices(adata, path)
    if layer is not None:
        adata = _with_layer(adata, path, layer)
    counts = adata.layers.get(keys.COUNTS)
    if adata.X is None and counts is None:
        places = _places(adata)
        raise InputError(
            f"{path} has no expression matrix: expected counts in X or layers[{keys.COUNTS!r}], found no X, and "
            f"{examples(places)}. " + (f"Choose one with layer={places[0]!r} (--layer)." if places else "")
        )
    if counts is not None and are_counts(counts):
        adata.layers[keys.COUNTS] = to_csr(counts)
    if adata.X is not None and not adata.isbacked:
        if are_counts(adata.X):
            adata.X = to_csr(adata.X)
        elif counts is None:
            _say_where_counts_are(adata, path)
    adata.obs_names = unique(adata.obs_names, "spot names", path)
    adata.var_names = unique(adata.var_names, "gene names", path)
    return adata


def _with_coordinates(adata: AnnData, path: Path) -> AnnData:
    """Fill ``obsm["spatial"]`` from other places where coordinates are common, if it is missing."""
    if keys.SPATIAL in adata.obsm:
        return adata
    places: dict[str, Any] = {}
    if _OTHER_SPATIAL in adata.obsm:
        places[f"obsm[{_OTHER_SPATIAL!r}]"] = adata.obsm[_OTHER_SPATIAL]
    columns = SpotTable(path, adata.obs).coordinate_columns()
    if columns is not None:
        places[f"obs[{list(columns)}]"] = adata.obs[list(columns)]
    for name, found in places.items():
        try:
            points = np.asarray(found, dtype=np.float64)
        except (TypeError, ValueError):  # words, or a matrix that is not dense
            continue
        if points.ndim == 2 and points.shape[1] in (2, 3) and np.isfinite(points).all():
            adata.obsm[keys.SPATIAL] = points
            _log.info("%s has no obsm[%r]; coordinates are %s", path, keys.SPATIAL, name)
            break
    return adata


def is_anndata_zarr(path: Path) -> bool:
    """Whether ``path`` is the folder of an AnnData in zarr format, 2 or 3."""
    return is_zarr_group(path) and is_zarr_group(path / "obs") and is_zarr_group(path / "var")


def _places(adata: AnnData) -> list[str]:
    """Values of ``layer`` that are possible."""
    layers = [name for name in adata.layers if name is not None]  # None is X in anndata 0.13
    return [*layers, *([RAW] if adata.raw is not None and RAW not in layers else [])]


def _with_layer(adata: AnnData, path: Path, layer: str) -> AnnData:
    if layer in adata.layers:
        adata.layers[keys.COUNTS] = adata.layers.pop(layer)
        return adata
    if layer != RAW or adata.raw is None:
        raise InputError(f"{path} has no layer {layer!r}; it has {examples(_places(adata), 12)}.")
    raw = adata.raw
    if raw.var_names.equals(adata.var_names):
        adata.layers[keys.COUNTS] = raw.X
        return adata
    whole = raw.to_adata()  # with obs, obsm, obsp and uns
    del adata.raw
    return whole


def _say_where_counts_are(adata: AnnData, path: Path) -> None:
    """Warn if ``X`` does not hold counts while something else does."""
    for place in _places(adata):
        in_layers = place in adata.layers
        if are_counts(adata.layers[place] if in_layers else adata.raw.X):
            name = f"layers[{place!r}]" if in_layers else RAW
            warn(
                f"{path}: X does not hold counts (it has fractional, negative or too large values), but {name} does. "
                f"Use them with layer={place!r} (--layer {place})."
            )
            return


def _check_shapes(group: Any, path: Path) -> None:
    """Refuse sparse matrices with other row pointers than their shape says, for which anndata allocates memory first.

    Parameters
    ----------
    group
        Of HDF5 or zarr, inspected before.
    """
    for name in group:
        item = group[name]
        if not hasattr(item, "keys") or hasattr(item, "shape"):  # an array, or a type
            continue
        if "indptr" not in item:
            _check_shapes(item, path)
            continue
        attributes = dict(item.attrs)
        declared: Any = attributes.get("shape", attributes.get("h5sparse_shape", ()))
        shape = np.ravel(declared)
        n_pointers = int(np.prod(item["indptr"].shape, dtype=np.int64))
        if shape.dtype.kind not in "iu" or len(shape) != 2 or n_pointers - 1 not in shape.tolist():
            raise InputError(
                f"{path} is inconsistent: {name} declares the shape {tuple(shape.tolist())} and has {n_pointers:,} row "
                "pointers; expected one more than rows. Download it again."
            )


def _check_matrices(adata: AnnData, path: Path) -> None:
    """Refuse matrices in memory that are not of numbers, and sparse ones whose indices do not fit their shape.

    scipy looks at neither: it would read and write outside of their memory.
    """
    matrices = {
        "X": None if adata.isbacked else adata.X,
        "raw": None if adata.raw is None or adata.isbacked else adata.raw.X,
        **{f"layers[{name!r}]": adata.layers[name] for name in adata.layers if name is not None},
    }
    for name, matrix in matrices.items():
        if matrix is None:
            continue
        dtype = np.dtype(matrix.dtype)
        if dtype.kind not in "biuf" or dtype.itemsize > 8:
            raise InputError(f"{path}: {name} has the dtype {dtype}; expected integers, float32 or float64.")
    others = {
        f"{slot}[{name!r}]": getattr(adata, slot)[name]
        for slot in ("obsm", "varm", "obsp", "varp")
        for name in getattr(adata, slot)
    }
    for name, matrix in {**matrices, **others}.items():
        try:
            check_indices(matrix)
        except ValueError as error:
            raise InputError(f"{path}: {name} is corrupt ({error}). Download the file again.") from error


def _check_chunks(group: Any, path: Path) -> None:
    """Refuse a sparse ``X`` that lacks chunks: zarr would fill the gaps with zeros and say nothing."""
    if "X" not in group or hasattr(group["X"], "shape"):
        return
    for name in ("data", "indices"):
        array = group["X"][name]
        if array.nchunks_initialized < array.nchunks:
            raise InputError(
                f"{path} is incomplete: {array.nchunks - array.nchunks_initialized} of {array.nchunks} chunks of "
                f"X/{name} are missing. Copy or download it again."
            )


def _is_compressed(path: Path) -> bool:
    """Whether a file is HDF5 inside gzip; never raises."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as handle:
            if handle.read(2) != b"\x1f\x8b":
                return False
        with gzip.open(path) as content:
            return content.read(len(_HDF5_SIGNATURE)) == _HDF5_SIGNATURE
    except (OSError, EOFError, zlib.error):
        return False


@contextmanager
def _decompressed(path: Path) -> Iterator[Path]:
    """``path``, or a decompressed copy that is removed afterwards; HDF5 needs random access."""
    if not _is_compressed(path):
        yield path
        return
    with scratch_folder() as folder:
        plain = folder / path.name.removesuffix(".gz")
        most, length = most_memory(path.stat().st_size), 0
        with gzip.open(path) as content, plain.open("wb") as copy:
            while piece := content.read(2**20):
                length += len(piece)
                if length > most:
                    raise InputError(
                        f"{path} holds more than {most:,} bytes in {path.stat().st_size:,}, as no file of counts does. "
                        "It is broken; download it again."
                    )
                copy.write(piece)
        yield plain


@contextmanager
def _without_name_warnings() -> Iterator[None]:
    """`unique` warns of repeated names, and says what was done."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* names are not unique", category=UserWarning)
        yield


H5AD = Platform(
    name="h5ad",
    title="AnnData",
    files=(
        '`.h5ad` with raw counts in `layers["counts"]`, `X` or elsewhere (`--layer NAME`, `--layer raw`), and '
        'coordinates in `obsm["spatial"]`'
    ),
    read=read_h5ad,
    recognizes=lambda path: hdf5_has(path, is_h5ad),
    options=("layer", "backed"),
)
H5AD_GZ = Platform(
    name="h5ad_gz",
    title="AnnData (gzip)",
    files="`.h5ad.gz`, as `.h5ad`",
    read=read_h5ad,
    recognizes=_is_compressed,
    options=("layer",),
)
ANNDATA_ZARR = Platform(
    name="anndata_zarr",
    title="AnnData (zarr)",
    files="folder written by `AnnData.write_zarr`, zarr format 2 or 3, as `.h5ad`",
    read=read_zarr,
    recognizes=is_anndata_zarr,
    options=("layer",),
)
