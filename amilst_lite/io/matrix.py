"""From names and numbers to an AnnData: the form in which every reader hands over its counts."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from ..errors import AmilstWarning, InputError
from .files import examples

if TYPE_CHECKING:
    from anndata import AnnData


def to_csr(matrix: Any) -> sparse.csr_matrix:
    """``matrix`` (spots × genes) as canonical CSR in float32: sorted, no duplicates, no stored zeros.

    float32 holds every count up to 2^24 exactly, at half the memory of what most files use.

    Raises
    ------
    ValueError
        Indices are negative or beyond the shape, or row pointers fall.
    """
    matrix = sparse.csr_matrix(matrix, dtype=np.float32)
    # scipy checks shapes only unless asked; an index beyond them would read foreign memory later
    matrix.check_format(full_check=True)
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    return matrix


def assemble(matrix: Any, obs: pd.DataFrame, var: pd.DataFrame, source: Path) -> AnnData:
    """An AnnData of ``matrix`` (n spots × d genes), its names made unique.

    Parameters
    ----------
    matrix
        Counts, n × d: CSR, or a matrix on disk.
    obs, var
        Columns of the spots (n rows) and genes (d rows), indexed by their names.
    source
        Named in messages.

    Raises
    ------
    InputError
        The numbers of names do not fit the matrix.
    """
    # here, not at the top: anndata takes half a second to import
    from anndata import AnnData

    if matrix.shape != (len(obs), len(var)):
        raise InputError(
            f"{source} contradicts itself: the matrix has {matrix.shape[0]} spots × {matrix.shape[1]} genes, "
            f"but {len(obs)} spots and {len(var)} genes are named."
        )
    obs.index = unique(obs.index, "spot names", source)
    var.index = unique(var.index, "gene names", source)
    return AnnData(X=matrix, obs=obs, var=var)


def unique(names: pd.Index, what: str, source: Path) -> pd.Index:
    """``names`` as text, with "-1", "-2", ... added to repeats, and a warning if there are any."""
    from anndata.utils import make_index_unique

    # the name of the column they came from, if any, goes: AnnData would try to store it
    names = names.astype(str).rename(None)
    repeated = names.duplicated()
    if not repeated.any():
        return names
    warnings.warn(
        f"{source}: {repeated.sum()} of {len(names)} {what} repeat an earlier one "
        f"(e.g. {examples(names[repeated].unique())}); '-1', '-2', ... were added to tell them apart.",
        AmilstWarning,
        stacklevel=2,
    )
    return make_index_unique(names)
