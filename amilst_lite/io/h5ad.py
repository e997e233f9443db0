"""h5ad files."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from scipy import sparse

from .. import keys
from ..errors import InputError
from .files import PathLike, examples, existing_file, reading
from .matrix import to_csr, unique

if TYPE_CHECKING:
    from anndata import AnnData


def is_h5ad(file: h5py.File) -> bool:
    """Whether an open HDF5 file is an AnnData (anndata before 0.7 wrote no ``encoding-type``)."""
    return file.attrs.get("encoding-type") == "anndata" or {"X", "obs", "var"} <= set(file)


def read_h5ad(path: PathLike, *, backed: bool = False) -> AnnData:
    """Read an ``.h5ad`` file.

    Parameters
    ----------
    path
        File written by ``AnnData.write_h5ad``.
    backed
        Leave ``X`` on disk, to be read in blocks of rows.

    Returns
    -------
    AnnData
        As stored, with two exceptions. Counts (no negative and no fractional values) in ``X`` and
        ``layers["counts"]`` are converted to canonical CSR, float32, from any matrix type. Names are made
        unique. An ``X`` with other values, or on disk, is unchanged. ``obsm["spatial"]`` may be missing;
        functions that need it raise `MissingKeyError`.

    Warns
    -----
    AmilstWarning
        Names of spots or genes repeat.

    Raises
    ------
    InputError
        The file is missing, a folder, broken or not an AnnData, or has no expression matrix.
    """
    # not at the top: anndata takes half a second to import
    import anndata

    path = existing_file(path, "an h5ad file")
    with reading(path, "an h5ad file"):
        with h5py.File(path, "r") as file:
            if not is_h5ad(file):
                raise InputError(
                    f"{path} is not an h5ad file: expected 'X', 'obs', 'var', found {examples(file, 8)}."
                )
        with warnings.catch_warnings():
            # `unique` warns below, and says what was done
            warnings.filterwarnings("ignore", message=".* names are not unique", category=UserWarning)
            adata = anndata.read_h5ad(path, backed="r" if backed else None)
        if adata.X is None and keys.COUNTS not in adata.layers:
            raise InputError(
                f"{path} has no expression matrix: expected counts in X or layers[{keys.COUNTS!r}], "
                f"found no X and the layers {examples(adata.layers)}."
            )
        if adata.X is not None and not backed and are_counts(adata.X):
            adata.X = to_csr(adata.X)
        counts = adata.layers.get(keys.COUNTS)
        if counts is not None and are_counts(counts):
            adata.layers[keys.COUNTS] = to_csr(counts)
    adata.obs_names = unique(adata.obs_names, "spot names", path)
    adata.var_names = unique(adata.var_names, "gene names", path)
    return adata


def are_counts(matrix: Any) -> bool:
    """Whether a matrix, dense or sparse, holds no negative, fractional or missing values."""
    values = matrix.data if sparse.issparse(matrix) else np.asarray(matrix)
    blocks = np.array_split(values, max(1, values.size // 1_000_000))
    # float32 represents integers up to 2^24 exactly; NaN fails the first comparison
    return all(bool(np.all((one >= 0) & (one <= 2**24) & (one == np.floor(one)))) for one in blocks)
