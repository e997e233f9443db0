"""From a matrix and names to an AnnData: the matrix type that every reader returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from ..errors import InputError, warn
from .files import examples

if TYPE_CHECKING:
    from anndata import AnnData

LARGEST_COUNT = 2**24
"""float32 represents all integers up to here."""


def to_csr(matrix: Any) -> sparse.csr_matrix:
    """``matrix`` (spots × genes) as canonical CSR, float32: sorted, no duplicates, no explicit zeros.

    float32 represents counts up to 2^24 exactly, with half the memory of the types that most files use.

    Raises
    ------
    ValueError
        Indices are negative or out of range, or row pointers decrease.
    """
    check_indices(matrix)
    matrix = sparse.csr_matrix(matrix, dtype=np.float32)
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    return matrix


def check_indices(matrix: Any) -> None:
    """Check the indices of a CSR or CSC matrix from a file; out of range, they corrupt memory in scipy's functions.

    Raises
    ------
    ValueError
        They are no integers, negative or out of range, or row pointers decrease.
    """
    if not sparse.issparse(matrix) or matrix.format not in ("csr", "csc"):
        return
    for name in ("indices", "indptr"):
        if getattr(matrix, name).dtype.kind not in "iu":  # NaN passes scipy's check
            raise ValueError(f"{name} must be integers; found {getattr(matrix, name).dtype}")
    pointers = matrix.indptr
    if pointers.ndim != 1 or len(pointers) == 0 or pointers[0] != 0 or (pointers[1:] < pointers[:-1]).any():
        raise ValueError("row pointers must begin with 0 and not decrease")
    # done only on request, and not if the last pointer is 0
    matrix.check_format(full_check=True)


def without_rows(matrix: sparse.csr_matrix, left_out: np.ndarray) -> sparse.csr_matrix:
    """``matrix`` without the rows ``left_out`` (n,), bool; in its own memory, so that it is no longer usable."""
    matrix.data[np.repeat(left_out, np.diff(matrix.indptr))] = 0
    matrix.eliminate_zeros()
    indptr = np.concatenate([[0], matrix.indptr[1:][~left_out]])
    shape = (len(indptr) - 1, matrix.shape[1])
    return sparse.csr_matrix((matrix.data, matrix.indices, indptr), shape=shape)


class GrowingArray:
    """A one-dimensional array whose length is not known in advance.

    Blocks that are joined at the end need twice their memory; the allocator extends a large array in place.
    """

    def __init__(self, dtype: Any) -> None:
        self._array = np.empty(0, dtype=dtype)
        self._length = 0

    def extend(self, values: np.ndarray) -> None:
        """Append ``values`` (m,), converted to the type of the array."""
        stop = self._length + len(values)
        if stop > len(self._array):
            # numpy fills what it adds with zeros, so that all of it takes memory
            self._array.resize(max(stop, 17 * len(self._array) // 16), refcheck=False)
        self._array[self._length : stop] = values
        self._length = stop

    @property
    def values(self) -> np.ndarray:
        """The array; nothing can be appended afterwards."""
        self._array.resize(self._length, refcheck=False)
        return self._array


def assemble(matrix: Any, obs: pd.DataFrame, var: pd.DataFrame, source: Path) -> AnnData:
    """An AnnData of ``matrix`` (n spots × d genes) with unique names.

    Parameters
    ----------
    matrix
        Counts, (n, d): CSR, or a matrix on disk.
    obs, var
        Columns of the spots (n rows) and genes (d rows), indexed by their names.
    source
        The file, for messages.

    Raises
    ------
    InputError
        The numbers of names do not match the shape; or a count is so large that it cannot be one.
    """
    # not at the top: anndata takes half a second to import
    from anndata import AnnData

    if matrix.shape != (len(obs), len(var)):
        raise InputError(
            f"{source} is inconsistent: the matrix has {matrix.shape[0]} spots × {matrix.shape[1]} genes, "
            f"but there are names of {len(obs)} spots and {len(var)} genes. Download it again."
        )
    if sparse.issparse(matrix):
        _refuse_large(matrix, obs.index, var.index, source)
    obs.index = unique(obs.index, "spot names", source)
    var.index = unique(var.index, "gene names", source)
    return AnnData(X=matrix, obs=obs, var=var)


def _refuse_large(matrix: sparse.csr_matrix, spots: pd.Index, genes: pd.Index, source: Path) -> None:
    """Refuse counts from 2^24 on, which float32 does not represent exactly and no instrument yields."""
    if not matrix.data.max(initial=0) >= LARGEST_COUNT:  # without the memory of a comparison of each
        return
    wrong = np.flatnonzero(matrix.data >= LARGEST_COUNT)
    at = wrong[0]
    spot = np.searchsorted(matrix.indptr, at, side="right") - 1
    raise InputError(
        f"{source}: expected counts below {LARGEST_COUNT:,}; found {matrix.data[at]:g} for gene "
        f"{str(genes[matrix.indices[at]])!r} in spot {str(spots[spot])!r}, and {len(wrong) - 1} other such values. "
        "Correct them, or leave out the spots or genes. Is a column of the table not a gene?"
    )


def leave_out(
    adata: AnnData, source: Path, controls: Mapping[str, str], types: pd.Series | None = None
) -> tuple[AnnData, dict[str, int]]:
    """Leave out features that are not genes.

    Parameters
    ----------
    adata
        n spots × d features.
    source
        The file, for messages.
    controls
        What the features are → regular expression of their names, by the naming of the vendor.
    types
        What each feature is, (d,); missing for genes.

    Returns
    -------
    tuple of (AnnData, dict)
        The genes, and the number of features left out of each kind.

    Raises
    ------
    InputError
        No gene remains.
    """
    kinds = kinds_of(adata.var_names, controls)
    if types is not None:
        kinds = types.where(types.notna(), kinds.to_numpy())
    genes = kinds.isna().to_numpy()
    if not genes.any():
        raise InputError(
            f"{source} has no genes: all {len(genes)} features are controls (e.g. {examples(adata.var_names)})."
        )
    left_out = {str(kind): int(count) for kind, count in kinds.value_counts().items()}
    return (adata if genes.all() else adata[:, genes].copy()), left_out


def kinds_of(names: Sequence[str] | pd.Index, controls: Mapping[str, str]) -> pd.Series:
    """The key of ``controls`` whose regular expression each name matches, (d,); missing for the others."""
    text = pd.Series(names, dtype=object).astype(str)
    kinds = pd.Series(None, index=text.index, dtype=object)
    for kind, pattern in controls.items():
        kinds[text.str.contains(pattern, case=False)] = kind
    return kinds


def unique(names: pd.Index, what: str, source: Path | str) -> pd.Index:
    """``names`` as text; "-1", "-2", ... is appended to repeated ones, with a warning."""
    from anndata.utils import make_index_unique

    # without the name of the column they came from, which AnnData would try to store
    names = names.astype(str).rename(None)
    repeated = names.duplicated()
    if not repeated.any():
        return names
    warn(
        f"{source}: {repeated.sum()} of {len(names)} {what} repeat an earlier one "
        f"(e.g. {examples(names[repeated].unique())}); '-1', '-2', ... were appended to make them unique."
    )
    return make_index_unique(names)
