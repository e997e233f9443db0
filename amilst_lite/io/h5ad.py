"""What identifies an h5ad file, and what identifies counts."""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np
from scipy import sparse


def is_h5ad(file: h5py.File) -> bool:
    """Whether an open HDF5 file is an AnnData (anndata before 0.7 wrote no ``encoding-type``)."""
    return file.attrs.get("encoding-type") == "anndata" or {"X", "obs", "var"} <= set(file)


def are_counts(matrix: Any) -> bool:
    """Whether a matrix, dense or sparse, holds no negative, fractional or missing values."""
    values = matrix.data if sparse.issparse(matrix) else np.asarray(matrix)
    blocks = np.array_split(values, max(1, values.size // 1_000_000))
    # float32 represents integers up to 2^24 exactly; NaN fails the first comparison
    return all(bool(np.all((one >= 0) & (one <= 2**24) & (one == np.floor(one)))) for one in blocks)
