"""SpatialData stores: a table of counts with coordinates, and labels written back into it."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .. import keys
from ..errors import AmilstWarning, InputError, MissingExtraError, MissingKeyError
from .anndata_store import is_anndata_zarr, read_zarr
from .files import PathLike, examples, existing, listing, reading
from .matrix import unique
from .platform import Platform
from .zarr_store import is_zarr_group, open_zarr

if TYPE_CHECKING:
    from anndata import AnnData

_log = logging.getLogger("amilst_lite")

_ATTRIBUTES = "spatialdata_attrs"  # of ``uns``: region, region_key, instance_key
_GLOBAL = "global"  # of ``obsm``: where spatialdata-io puts CosMx's positions in the whole section
_TABLES = ("tables", "table")  # the second until spatialdata 0.1
_LABEL_ROWS = 1024  # of an image that are read at a time


def read_spatialdata(path: PathLike, *, table: str | None = None, layer: str | None = None) -> AnnData:
    """Read a table of a SpatialData store, with the coordinates of its instances.

    Parameters
    ----------
    path
        The store (``NAME.zarr``, zarr format 2 or 3), or one of its tables (``NAME.zarr/tables/TABLE``).
    table
        The table; may be left out if there is only one.
    layer
        Where the raw counts are, see `read_h5ad`.

    Returns
    -------
    AnnData
        As `read_zarr`, with ``obsm["spatial"]``, (n, 2) or (n, 3), float64, in the coordinate system of the
        elements themselves; transformations to another one are not applied. The coordinates are the first of:
        ``obsm["global"]`` (CosMx: positions in the section, where ``obsm["spatial"]`` has those in the field
        of view), ``obsm["spatial"]``, and the centroids of the table's regions: shapes (circles, polygons),
        points or labels.

    Warns
    -----
    AmilstWarning
        Instances without a shape were left out; or as `read_h5ad`.

    Raises
    ------
    InputError
        The store or a part of it is missing or broken; there are several tables; or there are no coordinates.
    MissingExtraError
        zarr, or pyarrow for shapes and points, is not installed.

    References
    ----------
    Marconato L, et al. Nature Methods 22:58 (2025). The layout is that of spatialdata's design document.
    """
    store, name = _find_table(existing(path), table)
    folder = _table_folders(store)[name]
    adata = read_zarr(folder, layer=layer)
    left_out = {}
    if _GLOBAL in adata.obsm:
        adata.obsm[keys.SPATIAL] = np.asarray(adata.obsm[_GLOBAL], dtype=np.float64)
        _log.info("%s: coordinates are obsm[%r]", folder, _GLOBAL)
    elif keys.SPATIAL not in adata.obsm:
        spatial = _from_regions(adata, store, folder)
        located = np.isfinite(spatial).all(axis=1)
        if not located.all():
            absent = adata.obs_names[~located]
            found = (
                f"{len(absent)} of {len(located)} instances are not in its regions (e.g. {examples(absent)})"
            )
            message = f"{folder}: {found}"
            if not located.any():
                raise InputError(
                    f"{message}. Expected the identifiers of the regions in the column of instances."
                )
            warnings.warn(f"{message}; they were left out.", AmilstWarning, stacklevel=2)
            adata, spatial = adata[located].copy(), spatial[located]
            left_out = {"instances without a shape": len(absent)}
        adata.obsm[keys.SPATIAL] = spatial
    return SPATIALDATA.describe(adata, store, left_out=left_out)


def write_labels(
    path: PathLike,
    adata: AnnData,
    columns: Sequence[str],
    *,
    table: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write columns of ``adata.obs`` into a table of a SpatialData store, matched by the names of the instances.

    The other contents of the store are not touched. The column appears in the table only when it is complete.

    Parameters
    ----------
    path
        The store, or one of its tables.
    adata
        From `read_spatialdata` of the same table; instances that were left out get missing values.
    columns
        Columns of ``adata.obs``, such as ``"amilst_domain"``.
    table
        The table; may be left out if there is only one.
    overwrite
        Replace columns of the same name.

    Raises
    ------
    InputError
        The store is missing or must not be written; it has such a column already; or ``adata`` is not of
        this table.
    MissingKeyError
        ``adata.obs`` has no such column.
    MissingExtraError
        zarr is not installed.
    """
    from anndata.io import read_elem, write_elem

    store, name = _find_table(existing(path), table)
    folder = _table_folders(store)[name]
    missing = [column for column in columns if column not in adata.obs]
    if missing:
        raise MissingKeyError(f"obs has no column {examples(missing)}; it has {examples(adata.obs, 12)}.")
    with reading(folder, "a table of a SpatialData store"):
        obs = open_zarr(folder, "r+")["obs"]
        names = _as_read(read_elem(obs[obs.attrs["_index"]]), folder)
        order = list(obs.attrs["column-order"])
        taken = [column for column in columns if column in order]
        if taken and not overwrite:
            raise InputError(
                f"{folder} has the column {examples(taken)} already. Choose another key_added, or overwrite=True."
            )
        unknown = adata.obs_names[~adata.obs_names.isin(names)]
        if len(unknown):
            raise InputError(
                f"{folder}: {len(unknown)} of {adata.n_obs} observations are not in the table (e.g. "
                f"{examples(unknown)}). Expected those of read_spatialdata of the same table."
            )
        for column in columns:
            values = adata.obs[column].reindex(names)
            if values.dtype == object:
                values = values.astype("category")
            with _without_zarr_warnings():
                write_elem(
                    obs, column, values.to_numpy() if isinstance(values.dtype, np.dtype) else values.array
                )
        obs.attrs["column-order"] = [*order, *(column for column in columns if column not in order)]
        for group in (folder, store):
            _consolidate(group)


# --- tables ---------------------------------------------------------------------------------


def _table_folders(store: Path) -> dict[str, Path]:
    return {
        folder.name: folder
        for place in _TABLES
        if (store / place).is_dir()
        for folder in sorted((store / place).iterdir())
        if is_anndata_zarr(folder)
    }


def _store_of(path: Path) -> Path | None:
    """The store of a table, or of the folder of tables; None if ``path`` is neither."""
    path = path.absolute()
    for depth in (0, 1):
        place = path.parents[depth - 1] if depth else path
        if place.name in _TABLES and is_zarr_group(place.parent):
            return place.parent
    return None


def _find_table(path: Path, table: str | None) -> tuple[Path, str]:
    """The store and the name of the table."""
    store = _store_of(path)
    if store is not None and is_anndata_zarr(path):
        if table not in (None, path.name):
            raise InputError(
                f"{path} is the table {path.name!r}; table={table!r} is another one. Give the store."
            )
        return store, path.name
    store = store or path
    tables = _table_folders(store) if store.is_dir() else {}
    if not tables:
        found = listing(store) if store.is_dir() else "a file"
        raise InputError(
            f"{path} is not a SpatialData store with a table: expected tables/NAME, found {found}. Aggregate the "
            "points by shapes first (SpatialData.aggregate)."
        )
    if table is None and len(tables) == 1:
        table = next(iter(tables))
    if table not in tables:
        raise InputError(
            f"{store} has {'several tables' if table is None else f'no table {table!r}, but'}: "
            f"{examples(tables, 12)}. Choose one with table= (--table)."
        )
    return store, table


def _as_read(names: Any, source: Path) -> pd.Index:
    """Names as reading makes them unique, without the warning that it gave."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AmilstWarning)
        return unique(pd.Index(names), "spot names", source)


def _consolidate(folder: Path) -> None:
    """Renew the copy of all metadata in a group, if it has one, from which readers take them."""
    description = folder / "zarr.json"
    has_copy = (folder / ".zmetadata").exists()
    if description.exists():
        has_copy = bool(json.loads(description.read_text()).get("consolidated_metadata"))
    if has_copy:
        import zarr

        with _without_zarr_warnings():
            zarr.consolidate_metadata(str(folder))


@contextmanager
def _without_zarr_warnings() -> Iterator[None]:
    """Those on features of format 3, which the store has already, and on defaults to come."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(Consolidated metadata|autosharding).*")
        yield


# --- coordinates of regions -----------------------------------------------------------------


def _from_regions(adata: AnnData, store: Path, folder: Path) -> np.ndarray:
    """Centroids of the instances, (n, 2 or 3), NaN where there is none."""
    attributes = adata.uns.get(_ATTRIBUTES, {})
    region_key, instance_key = (attributes.get(name) for name in ("region_key", "instance_key"))
    if region_key not in adata.obs or instance_key not in adata.obs:
        raise InputError(
            f"{folder} has no coordinates: expected obsm[{keys.SPATIAL!r}], or uns[{_ATTRIBUTES!r}] with the "
            f"region_key and instance_key by which its rows refer to shapes; found obsm {examples(adata.obsm)}. "
            "Add the coordinates as obsm, or as a table (coordinates=TABLE)."
        )
    of_row = adata.obs[region_key].astype(str).to_numpy()
    instances = adata.obs[instance_key].astype(str).to_numpy()
    spatial = np.full((adata.n_obs, 3), np.nan)
    for region in pd.unique(of_row):
        rows = np.flatnonzero(of_row == region)
        identifiers, centroids = _read_element(store, region, folder)
        at = identifiers.get_indexer(instances[rows])
        spatial[rows[at >= 0], : centroids.shape[1]] = centroids[at[at >= 0]]
    return spatial if np.isfinite(spatial[:, 2]).any() else spatial[:, :2]


def _read_element(store: Path, region: str, folder: Path) -> tuple[pd.Index, np.ndarray]:
    """Identifiers, as text, and centroids (m, 2 or 3) of a shapes, points or labels element."""
    for kind, read in (("shapes", _read_shapes), ("points", _read_points), ("labels", _read_labels)):
        element = store / kind / region
        if element.is_dir():
            with reading(element, f"{kind} of a SpatialData store"):
                identifiers, centroids = read(element)
            identifiers = pd.Index(identifiers).astype(str)
            if identifiers.has_duplicates:
                raise InputError(
                    f"{element}: identifiers repeat; expected one {kind} element for each instance."
                )
            return identifiers, centroids
    raise InputError(
        f"{folder} has no obsm[{keys.SPATIAL!r}], and its region {region!r} is neither in shapes nor in points or "
        f"labels of {store}. Add the coordinates as obsm[{keys.SPATIAL!r}], or as a table (coordinates=TABLE)."
    )


def _read_shapes(element: Path) -> tuple[Any, np.ndarray]:
    file = element / "shapes.parquet"
    if not file.exists():  # spatialdata before 0.1
        group = open_zarr(element)
        if "radius" not in group:
            raise InputError(
                f"{element} holds polygons in the format of spatialdata before 0.1. Read and write the store with a "
                "newer spatialdata, or add obsm['spatial'] to the table."
            )
        return np.asarray(group["Index"][:]), np.asarray(group["coords"][:], dtype=np.float64)
    frame = _read_parquet(file)
    column = "geometry" if "geometry" in frame else frame.columns[0]
    return frame.index, centroids_of_wkb(frame[column].tolist())


def _read_points(element: Path) -> tuple[Any, np.ndarray]:
    frame = _read_parquet(element / "points.parquet")
    axes = [axis for axis in ("x", "y", "z") if axis in frame]
    return frame.index, frame[axes].to_numpy(dtype=np.float64)


def _read_labels(element: Path) -> tuple[Any, np.ndarray]:
    """Centroids of the pixels of each label."""
    group = open_zarr(element)
    attributes = dict(group.attrs)
    scales = attributes.get("ome", attributes)["multiscales"][0]["datasets"]
    image = group[scales[0]["path"]]
    if len(image.shape) != 2:
        raise InputError(f"{element} has {len(image.shape)} dimensions; expected labels in two (y, x).")
    parts = []
    for start in range(0, image.shape[0], _LABEL_ROWS):
        block = np.asarray(image[start : start + _LABEL_ROWS])
        y, x = np.nonzero(block)
        label, of_pixel = np.unique(block[y, x], return_inverse=True)
        sums = [np.bincount(of_pixel, weights, len(label)) for weights in (None, x, y + start)]
        parts.append(pd.DataFrame(np.column_stack(sums), index=label))
    total = pd.concat(parts).groupby(level=0).sum().to_numpy()
    identifiers = np.unique(np.concatenate([part.index.to_numpy() for part in parts]))
    return identifiers, total[:, 1:] / total[:, :1]


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError.for_package("pyarrow", "parquet", f"reading {path}") from error
    if path.is_dir():  # written in parts by dask
        frames = [pd.read_parquet(part) for part in sorted(path.glob("*.parquet"))]
        return pd.concat(frames)
    with path.open("rb") as source:
        return pyarrow.parquet.read_table(source).to_pandas()


def centroids_of_wkb(geometries: Sequence[bytes]) -> np.ndarray:
    """Centroids (m, 2) of points, polygons and multipolygons in well-known binary form.

    Those of polygons are of their area without holes, which shapes of cells do not have.

    Raises
    ------
    ValueError, TypeError
        A geometry is of another type or in another encoding.

    References
    ----------
    OGC 06-103r4, "Simple feature access, part 1", section 8.2.
    """
    point = b"\x01\x01\x00\x00\x00"
    if all(isinstance(one, bytes) and len(one) == 21 and one.startswith(point) for one in geometries):
        layout = np.dtype([("header", "V5"), ("xy", "<f8", 2)])
        return np.frombuffer(b"".join(geometries), dtype=layout)["xy"].copy()
    moments = np.array([_moments(one, 0)[0] for one in geometries])
    return moments[:, 1:] / moments[:, :1]


def _moments(wkb: Any, start: int) -> tuple[np.ndarray, int]:
    """Area, area·x and area·y of a geometry, and where it ends; the area of a point is 1."""
    if not isinstance(wkb, bytes):
        raise TypeError(f"expected geometries as well-known binary (WKB); found {type(wkb).__name__}")
    order = "<" if wkb[start] == 1 else ">"
    kind, n_parts = np.frombuffer(wkb, f"{order}u4", 2, start + 1) if len(wkb) - start > 8 else (0, 0)
    if kind == 1:
        x, y = np.frombuffer(wkb, f"{order}f8", 2, start + 5)
        return np.array([1.0, x, y]), start + 21
    at, total = start + 9, np.zeros(3)
    if kind == 6:
        for _ in range(int(n_parts)):
            moments, at = _moments(wkb, at)
            total += moments
        return total, at
    if kind != 3:
        raise ValueError(
            f"expected points, polygons and multipolygons; found a geometry of type {kind} (WKB)"
        )
    for ring in range(int(n_parts)):
        n_corners = int(np.frombuffer(wkb, f"{order}u4", 1, at)[0])
        corners = np.frombuffer(wkb, f"{order}f8", 2 * n_corners, at + 4).reshape(n_corners, 2)
        at += 4 + 16 * n_corners
        if ring == 0:
            total = polygon_moments(corners)
    return total, at


def polygon_moments(corners: np.ndarray) -> np.ndarray:
    """Area, area·x and area·y of a closed ring (m, 2), by the trapezoid formula."""
    origin = corners[0]  # large coordinates would cost digits
    x, y = (corners - origin).T
    cross = x[:-1] * y[1:] - x[1:] * y[:-1]
    area = cross.sum() / 2
    if area == 0:  # a line: its corners
        return np.array([1.0, *corners[:-1].mean(axis=0)])
    center = (
        np.array([((x[:-1] + x[1:]) * cross).sum(), ((y[:-1] + y[1:]) * cross).sum()]) / (6 * area) + origin
    )
    return abs(area) * np.array([1.0, *center])


def _recognizes(path: Path) -> bool:
    try:
        if is_anndata_zarr(path):
            return _store_of(path) is not None
        return bool(_table_folders(_store_of(path) or path))
    except OSError:
        return False


SPATIALDATA = Platform(
    name="spatialdata",
    title="SpatialData",
    files="`STORE.zarr` with a table (`tables/NAME`; several: `--table NAME`), zarr format 2 or 3",
    read=read_spatialdata,
    recognizes=_recognizes,
    options=("table", "layer"),
)
