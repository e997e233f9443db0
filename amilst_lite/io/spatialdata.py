"""SpatialData stores: a table of counts with coordinates, and labels written back into it."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .. import keys
from ..errors import InputError, MissingKeyError, muted_warnings, warn
from .anndata_store import is_anndata_zarr, load_zarr
from .files import PathLike, examples, existing, listing, reading
from .matrix import unique
from .parquet import read_parquet
from .platform import COORDINATE_SYSTEM, Platform
from .transformations import OWN, Placement, placements
from .zarr_store import check_zarr, group_attributes, is_zarr_group, open_zarr

if TYPE_CHECKING:
    from anndata import AnnData

_log = logging.getLogger("amilst_lite")

_ATTRIBUTES = "spatialdata_attrs"  # of ``uns``: region, region_key, instance_key
_GLOBAL = "global"  # of ``obsm``: where spatialdata-io puts CosMx's positions in the whole section
_TABLES = ("tables", "table")  # the second until spatialdata 0.1
_ELEMENTS = ("shapes", "points", "labels")  # what a table may annotate
_LABEL_ROWS = 1024  # of an image that are read at a time


def read_spatialdata(
    path: PathLike,
    *,
    table: str | None = None,
    layer: str | None = None,
    coordinate_system: str | None = None,
) -> AnnData:
    """Read a table of a SpatialData store, with the coordinates of its instances.

    Parameters
    ----------
    path
        The store (``NAME.zarr``, zarr format 2 or 3), or one of its tables (``NAME.zarr/tables/TABLE``).
    table
        The table; may be left out if there is only one.
    layer
        Where the raw counts are, see `read_h5ad`.
    coordinate_system
        Name of the coordinate system of the result. Default: "global", or without one the only one that all
        regions of the table have, or that in which their own coordinates are unchanged.

    Returns
    -------
    AnnData
        As `read_zarr`, with ``obsm["spatial"]``, (n, 2) or (n, 3), float64, in the coordinate system, which
        ``uns["amilst_input"]["coordinate_system"]`` names. The coordinates are the first of:

        - ``obsm["global"]`` as it is (CosMx: positions in the section, where ``obsm["spatial"]`` has those in the
          field of view), unless a coordinate system is given;
        - ``obsm["spatial"]``, which is about the regions themselves, transformed like each of these;
        - the centroids of the table's regions: shapes (circles, polygons), points or labels (a pixel's center is at
          0.5), transformed.

        The unit is in ``uns["amilst_input"]`` where the store tells it; spatialdata usually does not.

    Warns
    -----
    AmilstWarning
        Instances without a shape were left out; the regions have no coordinate system in common, so that each
        keeps its own coordinates; or as `read_h5ad`.

    Raises
    ------
    InputError
        The store or a part of it is missing or broken; there are several tables, or coordinate systems of which
        none is the default; or there are no coordinates.
    MissingExtraError
        zarr, or pyarrow for shapes and points, is not installed.

    References
    ----------
    Marconato L, et al. Nature Methods 22:58 (2025). The layout is that of spatialdata's design document.
    """
    store, name = _find_table(existing(path), table)
    folder = _table_folders(store)[name]
    adata = load_zarr(folder, layer)
    left_out = {}
    if _GLOBAL in adata.obsm and coordinate_system is None:
        adata.obsm[keys.SPATIAL] = np.asarray(adata.obsm[_GLOBAL], dtype=np.float64)
        _log.info("%s: coordinates are obsm[%r]", folder, _GLOBAL)
        return SPATIALDATA.describe(adata, store)
    regions = _Regions.of(adata, store, folder)
    system, placed = regions.choose(coordinate_system)
    if keys.SPATIAL in adata.obsm:
        adata.obsm[keys.SPATIAL] = regions.transformed(
            np.asarray(adata.obsm[keys.SPATIAL], dtype=np.float64), placed
        )
    else:
        spatial = regions.transformed(_from_regions(adata, regions), placed)
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
            warn(f"{message}; they were left out.")
            adata, spatial = adata[located].copy(), spatial[located]
            left_out = {"instances without a shape": len(absent)}
        adata.obsm[keys.SPATIAL] = spatial
    details = {} if system is None else {COORDINATE_SYSTEM: system}
    units = [one.description() for one in placed.values()]
    if units and all(one == units[0] for one in units):
        details |= units[0]
    return SPATIALDATA.describe(adata, store, left_out=left_out, **details)


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
    with muted_warnings():
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


# --- regions --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Regions:
    """The elements of a store that a table is about.

    Attributes
    ----------
    store, folder : Path
        The store, and the table in it.
    key : str or None
        The column of ``obs`` with the region of each row.
    of_row : ndarray of str, (n,)
        That column; empty names in a table that is about no regions.
    """

    store: Path
    folder: Path
    key: str | None
    of_row: np.ndarray

    @classmethod
    def of(cls, adata: AnnData, store: Path, folder: Path) -> _Regions:
        key = adata.uns.get(_ATTRIBUTES, {}).get("region_key")
        if key not in adata.obs:
            return cls(store, folder, None, np.full(adata.n_obs, ""))
        return cls(store, folder, key, adata.obs[key].astype(str).to_numpy())

    def element(self, region: str) -> Path | None:
        """The folder of an element; None if there is none of that name in the store itself."""
        for kind in _ELEMENTS:
            element = self.store / kind / region
            is_name = element.name == region  # not "." or a path
            if is_name and element.is_dir() and element.resolve() == self.store.resolve() / kind / region:
                return element
        return None

    def choose(self, wanted: str | None) -> tuple[str | None, dict[str, Placement]]:
        """The coordinate system, None if it is that of each element itself; and region → where it lies in it."""
        known: dict[str, dict[str, Placement]] = {}
        for region in filter(None, pd.unique(self.of_row)):
            element = self.element(region)
            known[region] = {}
            if element is not None:
                with reading(element, "an element of a SpatialData store"):
                    known[region] = placements(group_attributes(element))
        first = next(iter(known.values()), {})
        shared = [name for name in first if all(name in systems for systems in known.values())]
        system = wanted or (_GLOBAL if _GLOBAL in shared else self._default(shared, known))
        if system is not None and system not in shared:
            found = examples({name: None for systems in known.values() for name in systems}, 12)
            raise InputError(
                f"{self.folder} has no coordinate system {system!r} that all of its regions ({examples(known)}) share; "
                f"they share {examples(shared, 12)} and have {found}. Choose another one, or leave it out."
            )
        if system is None and len(known) > 1 and all(known.values()):
            warn(
                f"{self.folder}: its {len(known)} regions have no coordinate system in common (e.g. "
                f"{examples(first)}); each keeps its own coordinates. Analyze them as sections: sample_key="
                f"{self.key!r} (--sample-key {self.key})."
            )
        if system is None:
            return None, dict.fromkeys(known, OWN)
        _log.info("%s: coordinates are those of the coordinate system %r", self.folder, system)
        return system, {region: systems[system] for region, systems in known.items()}

    def _default(self, shared: Sequence[str], known: dict[str, dict[str, Placement]]) -> str | None:
        """The coordinate system to use where none is "global"."""
        if not shared:
            return None
        in_place = [name for name in shared if all(systems[name].is_identity for systems in known.values())]
        first, *others = shared
        differ = any(
            not np.array_equal(systems[first].matrix, systems[name].matrix)
            for name in others
            for systems in known.values()
        )
        if differ and not in_place:
            raise InputError(
                f"{self.folder} has several coordinate systems, in which its regions lie differently: "
                f"{examples(shared, 12)}. Choose one with coordinate_system= (--coordinate-system)."
            )
        return in_place[0] if in_place else first

    def transformed(self, points: np.ndarray, placed: dict[str, Placement]) -> np.ndarray:
        """Coordinates (n, 2 or 3), each row like its region; those that are not (n, 2 or 3) are left to the caller."""
        if points.ndim != 2 or points.shape[1] not in (2, 3):
            return points
        for region, placement in placed.items():
            rows = self.of_row == region
            points[rows] = placement.apply(points[rows])
        return points


def _from_regions(adata: AnnData, regions: _Regions) -> np.ndarray:
    """Centroids of the instances, (n, 2 or 3), NaN where there is none."""
    instance_key = adata.uns.get(_ATTRIBUTES, {}).get("instance_key")
    if regions.key is None or instance_key not in adata.obs:
        raise InputError(
            f"{regions.folder} has no coordinates: expected obsm[{keys.SPATIAL!r}], or uns[{_ATTRIBUTES!r}] with the "
            f"region_key and instance_key by which its rows refer to shapes; found obsm {examples(adata.obsm)}. "
            "Add the coordinates as obsm, or as a table (coordinates=TABLE)."
        )
    instances = adata.obs[instance_key].astype(str).to_numpy()
    spatial = np.full((adata.n_obs, 3), np.nan)
    for region in pd.unique(regions.of_row):
        rows = np.flatnonzero(regions.of_row == region)
        identifiers, centroids = _read_element(regions, region)
        at = identifiers.get_indexer(instances[rows])
        spatial[rows[at >= 0], : centroids.shape[1]] = centroids[at[at >= 0]]
    return spatial if np.isfinite(spatial[:, 2]).any() else spatial[:, :2]


def _read_element(regions: _Regions, region: str) -> tuple[pd.Index, np.ndarray]:
    """Identifiers, as text, and centroids (m, 2 or 3) of a shapes, points or labels element."""
    element = regions.element(region)
    if element is None:
        raise InputError(
            f"{regions.folder} has no obsm[{keys.SPATIAL!r}], and its region {region!r} is neither in shapes nor in "
            f"points or labels of {regions.store}. Add the coordinates as obsm[{keys.SPATIAL!r}], or as a table "
            "(coordinates=TABLE)."
        )
    kind = element.parent.name
    read = {"shapes": _read_shapes, "points": _read_points, "labels": _read_labels}[kind]
    with reading(element, f"{kind} of a SpatialData store"):
        check_zarr(element)
        identifiers, centroids = read(element)
    identifiers = pd.Index(identifiers).astype(str)
    if identifiers.has_duplicates:
        raise InputError(f"{element}: identifiers repeat; expected one {kind} element for each instance.")
    return identifiers, centroids


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
    return identifiers, total[:, 1:] / total[:, :1] + 0.5  # from the corner of the image


def _read_parquet(path: Path) -> pd.DataFrame:
    if path.is_dir():  # written in parts by dask
        return pd.concat([read_parquet(part, "a parquet table") for part in sorted(path.glob("*.parquet"))])
    return read_parquet(path, "a parquet table")


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
    options=("table", "layer", "coordinate_system"),
)
