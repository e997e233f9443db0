"""Spatially variable genes: genes whose expression is similar in neighboring spots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from .. import keys
from ..preprocess import CountRows, NormalizedCounts
from ..slots import counts_of, graph_of, order_of, sections_of
from ..spatial.autocorrelation import spatial_autocorrelation
from .multiple_testing import benjamini_hochberg

__all__ = ["spatially_variable", "spatially_variable_genes"]


def spatially_variable(
    expression: np.ndarray | sparse.csr_matrix,
    graph: sparse.csr_matrix,
    genes: Sequence[str] | pd.Index,
    *,
    row_normalize: bool = True,
    **options: Any,
) -> pd.DataFrame:
    """Moran's I and Geary's C of every gene, from arrays.

    Parameters
    ----------
    expression : ndarray or csr_matrix, (n_spots, n_genes)
        Log-normalized expression.
    graph : csr_matrix, (n_spots, n_spots)
        Weights of the neighbors, or ones.
    genes : sequence of str, (n_genes,)
        The index of the result.
    row_normalize : bool
        See `spatially_variable_genes`.
    **options
        See `amilst_lite.spatial.autocorrelation.spatial_autocorrelation`.

    Returns
    -------
    DataFrame
        One row per gene, in decreasing order of Moran's I, genes without variance last. For each of ``moran`` and
        ``geary``: the statistic (``moran_i``, ``geary_c``), ``*_z``, the one-sided analytic ``*_p`` for positive
        autocorrelation and ``*_p_adjusted`` (Benjamini and Hochberg); with permutations also ``*_p_permutation`` and
        ``*_p_permutation_adjusted``.
    """
    weights = sparse.csr_matrix(graph, dtype=np.float64)
    if row_normalize:
        sums = np.asarray(weights.sum(axis=1)).ravel()
        weights = sparse.csr_matrix(
            sparse.diags(np.divide(1, sums, out=np.zeros_like(sums), where=sums > 0)) @ weights
        )
    moran, geary = spatial_autocorrelation(expression, weights, **options)
    columns: dict[str, np.ndarray] = {}
    for name, letter, found in (("moran", "i", moran), ("geary", "c", geary)):
        columns[f"{name}_{letter}"] = found.statistic
        columns[f"{name}_z"] = found.z
        columns[f"{name}_p"] = found.p
        columns[f"{name}_p_adjusted"] = benjamini_hochberg(found.p)
        if found.p_permutation is not None:
            columns[f"{name}_p_permutation"] = found.p_permutation
            columns[f"{name}_p_permutation_adjusted"] = benjamini_hochberg(found.p_permutation)
    table = pd.DataFrame(columns, index=pd.Index(genes, name="gene"))
    return table.sort_values("moran_i", ascending=False, kind="stable")


def spatially_variable_genes(
    adata: ad.AnnData,
    *,
    moments: str = "normality",
    row_normalize: bool = True,
    n_permutations: int = 0,
    seed: int = 0,
    connectivities_key: str | None = None,
    sample_key: str | None = None,
    key_added: str = keys.DEFAULT_KEY,
) -> pd.DataFrame:
    """Moran's I and Geary's C of every gene.

    Parameters
    ----------
    adata : AnnData
        Raw counts in ``layers["counts"]`` or ``X``, in memory; they are log-normalized for the analysis. A neighbor
        graph in ``obsp``.
    moments : {"normality", "randomization"}
        Assumption of the analytic p-values, see `amilst_lite.spatial.autocorrelation.spatial_autocorrelation`.
    row_normalize : bool
        Divide the weights of each spot's neighbors by their sum, as squidpy does.
    n_permutations : int
        Random orders of the spots, within sections, for permutation p-values; 0 for none. Their smallest possible
        value is 1 / (1 + n_permutations).
    seed : int
        Of the permutations.
    connectivities_key : str, optional
        The graph in ``obsp``. Default: that of the run ``key_added``, otherwise squidpy's.
    sample_key : str, optional
        Column of ``obs`` with the section of each spot. Default: that of the run ``key_added``. With several
        sections, each gene is centered on its mean in each section first, so that a difference between sections is
        no spatial pattern.
    key_added : str
        Prefix of the slot written.

    Returns
    -------
    DataFrame
        Also written to ``uns["amilst_spatially_variable"]``: one row per gene, in decreasing order of Moran's I,
        with the columns of `spatially_variable`.

    Raises
    ------
    MissingKeyError
        No counts, no graph, or no such column.
    InputError
        Unusable counts or graph, an unknown option.
    """
    graph = graph_of(adata, key_added, connectivities_key)
    codes = sections_of(adata, key_added, sample_key).codes
    counts = CountRows(counts_of(adata))
    expression = NormalizedCounts(sparse.csr_matrix(counts[:]))[:]
    if n_permutations:
        order = order_of(adata, codes)
        expression, graph, codes = expression[order], graph[order][:, order], codes[order]
    table = spatially_variable(
        expression,
        graph,
        genes=adata.var_names,
        moments=moments,
        row_normalize=row_normalize,
        n_permutations=n_permutations,
        sections=codes,
        seed=seed,
    )
    adata.uns[keys.ResultKeys(key_added).spatially_variable] = table
    return table
