"""Loom files (HDF5), as of osmFISH."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd
from scipy import sparse

from .. import keys
from ..errors import InputError
from .coordinates import SpotTable, join_coordinates
from .files import PathLike, examples, existing_file, hdf5_has
from .hdf5 import open_hdf5
from .matrix import assemble, to_csr
from .platform import Platform

if TYPE_CHECKING:
    from anndata import AnnData

_BLOCK = 32_000_000
"""Bytes of the dense matrix that are read at once."""


def is_loom(file: h5py.File) -> bool:
    """Whether an open HDF5 file is a loom file."""
    return {"matrix", "row_attrs", "col_attrs"} <= set(file)


def read_loom(
    path: PathLike,
    coordinates: PathLike | None = None,
    *,
    obs_names: str = "CellID",
    var_names: str = "Gene",
) -> AnnData:
    """Read a loom file with the coordinates of its cells.

    Parameters
    ----------
    path
        File with ``matrix`` (genes × cells), ``row_attrs`` and ``col_attrs``.
    coordinates
        Table of cells (`join_coordinates`), for a file without coordinates.
    obs_names, var_names
        Attributes with the names of cells and genes; without them, cells are numbered.

    Returns
    -------
    AnnData
        n cells × d genes. ``X``: the matrix, CSR, float32. ``obsm["spatial"]``: ``X`` and ``Y`` of ``col_attrs``
        (or other names in `COORDINATE_COLUMNS`), (n, 2) or (n, 3), float64, in the unit of the file. ``obs`` and
        ``var``: the other one-dimensional attributes.

    Warns
    -----
    AmilstWarning
        Names repeat.

    Raises
    ------
    InputError
        The file is missing, broken or not loom, or has neither coordinates nor names of genes.

    References
    ----------
    "Loom file format specification", linnarssonlab.org/loompy; Codeluppi et al. (2018), Nat. Methods 15:932
    (osmFISH); argument names as in scanpy.
    """
    path = existing_file(path, "a loom file")
    with open_hdf5(path, "a loom file") as file:
        if not is_loom(file):
            raise InputError(
                f"{path} is not a loom file: expected 'matrix', 'row_attrs' and 'col_attrs', found {examples(file, 8)}."
            )
        n_genes, n_cells = file["matrix"].shape
        obs, var = _attributes(file["col_attrs"], n_cells), _attributes(file["row_attrs"], n_genes)
        table = SpotTable(path, obs)
        axes = table.coordinate_columns()
        if axes is None and coordinates is None:
            raise InputError(
                f"{path} has no coordinates: expected X and Y in col_attrs, found {examples(obs.columns, 12)}. Add a "
                "table of coordinates: coordinates=TABLE, on the command line --coordinates TABLE."
            )
        if var_names not in var:
            raise InputError(
                f"{path} has no names of genes: expected {var_names!r} in row_attrs, found "
                f"{examples(var.columns, 12)}. Choose one with var_names= of read_loom."
            )
        counts = _read_matrix(file["matrix"])
    if obs_names in obs:
        obs.index = pd.Index(obs[obs_names].astype(str))
    points = table.coordinates() if axes is not None else None
    obs = obs.drop(columns=[obs_names, *(axes or ())], errors="ignore")
    var = var.set_index(var_names)
    adata = assemble(counts, obs, var, path)
    if points is not None:
        adata.obsm[keys.SPATIAL] = points
    if coordinates is not None:
        adata = join_coordinates(adata, coordinates, copy=False)
    return LOOM.describe(adata, path)


def _attributes(group: h5py.Group, n: int) -> pd.DataFrame:
    """The attributes with one value for each row or column of the matrix."""
    columns: dict[str, Any] = {}
    for name, item in group.items():
        if isinstance(item, h5py.Dataset) and item.shape == (n,):
            if item.dtype.kind in "biuf":  # pandas takes the byte order of the machine only
                columns[name] = item[:].astype(item.dtype.newbyteorder("="))
            else:
                columns[name] = item.asstr()[:].astype(object)
    return pd.DataFrame(columns, index=pd.RangeIndex(n))


def _read_matrix(dataset: h5py.Dataset) -> sparse.csr_matrix:
    """Cells × genes as CSR; read in blocks of genes."""
    n_genes, n_cells = dataset.shape
    step = max(1, _BLOCK // max(1, n_cells * dataset.dtype.itemsize))
    blocks = [sparse.csr_matrix(dataset[i : i + step], dtype=np.float32) for i in range(0, n_genes, step)]
    return to_csr(sparse.vstack(blocks, format="csr").T)


LOOM = Platform(
    name="loom",
    title="osmFISH and other loom files",
    files="`.loom` with `X` and `Y` in `col_attrs`, or with `--coordinates TABLE`",
    read=read_loom,
    recognizes=lambda path: hdf5_has(path, is_loom),
    options=("coordinates",),
)
