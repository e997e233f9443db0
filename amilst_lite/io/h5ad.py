"""AnnData's own files."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from scipy import sparse

from .. import keys
from ..errors import InputError
from .files import PathLike, examples, existing, reading
from .matrix import to_csr, unique

if TYPE_CHECKING:
    from anndata import AnnData


def is_h5ad(file: h5py.File) -> bool:
    """Whether an open HDF5 file is an AnnData (files before anndata 0.7 carry no mark)."""
    return file.attrs.get("encoding-type") == "anndata" or {"X", "obs", "var"} <= set(file)


def read_h5ad(path: PathLike, *, backed: bool = False) -> AnnData:
    """Read an ``.h5ad`` file.

    Parameters
    ----------
    path
        File written by ``AnnData.write_h5ad``.
    backed
        Leave ``X`` on disk, to be read by blocks of rows.

    Returns
    -------
    AnnData
        As stored, but for two things: counts in ``X`` (no value below zero or with a fraction) become
        CSR in float32, in whatever form they were, and names are made unique. An ``X`` that holds
        anything else is left alone, and so is one on disk. ``obsm["spatial"]`` may be missing; what
        needs it will say so.

    Warns
    -----
    AmilstWarning
        Names of spots or genes repeat.

    Raises
    ------
    InputError
        No such file; no AnnData in it; broken; without any expression matrix.
    """
    # here, not at the top: anndata takes half a second to import
    import anndata

    path = existing(path)
    with reading(path, "an h5ad file"):
        with h5py.File(path, "r") as file:
            if not is_h5ad(file):
                raise InputError(
                    f"{path} is no h5ad file: expected 'X', 'obs', 'var', found {examples(file, 8)}."
                )
        with warnings.catch_warnings():
            # our own warning below says the same, and what was done about it
            warnings.filterwarnings("ignore", message=".* names are not unique", category=UserWarning)
            adata = anndata.read_h5ad(path, backed="r" if backed else None)
        if adata.X is None and keys.COUNTS not in adata.layers:
            raise InputError(
                f"{path} holds no expression: expected counts in X or layers[{keys.COUNTS!r}], "
                f"found no X and the layers {examples(adata.layers)}."
            )
        if adata.X is not None and not backed and _are_counts(adata.X):
            adata.X = to_csr(adata.X)
    adata.obs_names = unique(adata.obs_names, "spot names", path)
    adata.var_names = unique(adata.var_names, "gene names", path)
    return adata


def _are_counts(matrix: Any) -> bool:
    values = matrix.data if sparse.issparse(matrix) else np.asarray(matrix)
    blocks = np.array_split(values, max(1, values.size // 1_000_000))
    # float32, the form to come, holds whole numbers up to 2^24; NaN fails the first comparison
    return all(bool(np.all((one >= 0) & (one <= 2**24) & (one == np.floor(one)))) for one in blocks)
