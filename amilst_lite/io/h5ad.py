"""What identifies an h5ad file, counts, and an AnnData that was read lazily."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from scipy import sparse

from ..errors import InputError
from .matrix import LARGEST_COUNT

if TYPE_CHECKING:
    from anndata import AnnData


def is_h5ad(file: h5py.File) -> bool:
    """Whether an open HDF5 file is an AnnData, by the names of its members; no value is read.

    anndata before 0.7 wrote no ``encoding-type``. MuData has ``mod``, too.
    """
    names = set(file)
    return {"obs", "var"} <= names and "mod" not in names and ("X" in names or "encoding-type" in file.attrs)


def are_counts(matrix: Any) -> bool:
    """Whether a matrix, dense or sparse, holds no negative, fractional, missing or too large values."""
    values = matrix.data if sparse.issparse(matrix) else np.asarray(matrix)
    blocks = np.array_split(values, max(1, values.size // 1_000_000))
    # NaN fails the first comparison
    return all(bool(np.all((one >= 0) & (one < LARGEST_COUNT) & (one == np.floor(one)))) for one in blocks)


def refuse_lazy(adata: AnnData) -> None:
    """Refuse an AnnData of ``anndata.experimental.read_lazy``, whose arrays are dask's and whose tables xarray's.

    Raises
    ------
    InputError
        It is one; the message says how to load it.
    """
    parts = {"X": adata.X, "obs": adata.obs, **{f"obsm[{name!r}]": adata.obsm[name] for name in adata.obsm}}
    lazy = [
        name
        for name, part in parts.items()
        if type(part).__module__.split(".")[0] in ("dask", "xarray") or type(part).__name__ == "Dataset2D"
    ]
    if lazy:
        raise InputError(
            f"adata was read lazily ({', '.join(lazy)}), and results cannot be added to it. Load it "
            "(adata = adata.to_memory()), or leave only the counts on disk: amilst_lite.read(path, backed=True)."
        )
