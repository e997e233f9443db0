"""Denoised expression: the expression of its genes that the embedding of a spot predicts."""

from __future__ import annotations

from collections.abc import Sequence

import anndata as ad
import numpy as np
from scipy import sparse

from .. import keys
from ..errors import InputError, MissingKeyError
from ..preprocess import CountRows
from ..runtime import total_memory
from ..slots import counts_of, sections_of

__all__ = ["denoise", "expected_expression"]

_RIDGE = 1e-3
"""As a share of the mean variance of the embedding's columns."""
_ROWS = 8192


def denoise(
    adata: ad.AnnData,
    genes: str | Sequence[str] | None = None,
    *,
    key_added: str = keys.DEFAULT_KEY,
    layer: str | None = None,
) -> None:
    """Write denoised expression of chosen genes into a layer.

    The log-normalized expression of each gene is regressed on the embedding of the spots, which the spatial filter
    and the network have denoised, and is replaced by what the regression predicts. Any gene can be denoised,
    not only those that were used to find the domains. With several sections, the regression is one within sections, so
    that section effects are removed.

    Parameters
    ----------
    adata : AnnData
        With the results of `amilst_lite.identify_domains` or `apply_model`, and counts.
    genes : str or sequence of str, optional
        Names in ``var_names``; all if not given, which takes 4 bytes for each spot and gene.
    key_added : str
        As in the run.
    layer : str, optional
        Its name; ``"amilst_denoised"`` (``f"{key_added}_denoised"``) if not given. It is replaced.

    Raises
    ------
    MissingKeyError
        No results, counts, or genes of these names.
    InputError
        The layer would need more than half of the memory.

    Notes
    -----
    The unit is the logarithm of 1 + counts per median total. The layer has the shape of ``X``: dense for all genes,
    else CSC in which the columns of other genes are empty. The accuracy on held-out counts is measured in
    ``benchmarks/denoising.py``.

    Examples
    --------
    >>> amilst_lite.denoise(adata, ["MOBP", "PCP4"])
    >>> scanpy.pl.spatial(adata, color="MOBP", layer="amilst_denoised")
    """
    names = keys.ResultKeys(key_added)
    if names.embedding not in adata.obsm:
        raise MissingKeyError(
            f"adata has no results under key_added={key_added!r}. Run identify_domains first."
        )
    columns = _columns(adata, genes)
    needed, memory = 4 * adata.n_obs * len(columns), total_memory()
    if memory is not None and needed > memory / 2:
        raise InputError(
            f"the denoised expression of {len(columns)} genes would take {needed / 2**30:.1f} GiB, more than half of "
            "the memory. Choose some genes."
        )
    embedding = np.asarray(adata.obsm[names.embedding], dtype=np.float32)
    sections = sections_of(adata, key_added, None).codes
    values = expected_expression(counts_of(adata), columns, embedding, sections)
    if len(columns) == adata.n_vars:
        result = np.empty_like(values)
        result[:, columns] = values
    else:
        order = np.argsort(columns)
        ends = np.zeros(adata.n_vars + 1, dtype=np.int64)
        ends[columns + 1] = adata.n_obs
        result = sparse.csc_matrix(
            (
                np.ascontiguousarray(values[:, order].T).ravel(),
                np.tile(np.arange(adata.n_obs), len(columns)),
                np.cumsum(ends),
            ),
            shape=adata.shape,
        )
    adata.layers[names.denoised if layer is None else layer] = result


def expected_expression(
    counts: object, columns: np.ndarray, embedding: np.ndarray, sections: np.ndarray
) -> np.ndarray:
    """Regression of log-normalized expression on an embedding.

    Parameters
    ----------
    counts : see `CountRows`, (N, n_genes)
    columns : ndarray of int, (G,)
        The genes wanted.
    embedding : ndarray of float32, (N, C)
    sections : ndarray of int, (N,)
        0..S-1. The regression is one within sections, its intercept the mean over all spots.

    Returns
    -------
    ndarray of float32, (N, G)
        Not negative.
    """
    rows = CountRows(counts)
    totals = rows.totals()
    target = float(np.median(totals[totals > 0])) if totals.any() else 1.0
    factors = np.divide(target, totals, out=np.zeros(len(totals)), where=totals > 0)
    sizes = np.bincount(sections).astype(np.float64)
    n_sections, n_columns = len(sizes), embedding.shape[1]
    centers = (
        np.stack(
            [np.bincount(sections, embedding[:, place], minlength=n_sections) for place in range(n_columns)],
            axis=1,
        )
        / np.maximum(sizes, 1)[:, None]
    )  # (S, C)
    gram = np.zeros((n_columns, n_columns))
    cross = np.zeros((n_columns, len(columns)))
    means = np.zeros((n_sections, len(columns)))
    for place, block in rows:
        expression = block[:, columns].astype(np.float64)
        expression.data = np.log1p(expression.data * np.repeat(factors[place], np.diff(expression.indptr)))
        here = sections[place]
        E = embedding[place] - centers[here]
        gram += E.T @ E
        cross += (expression.T @ E).T
        member = sparse.csr_matrix(
            (np.ones(len(here)), (here, np.arange(len(here)))), shape=(n_sections, len(here))
        )
        means += (member @ expression).toarray()
    means /= np.maximum(sizes, 1)[:, None]
    ridge = _RIDGE * max(np.trace(gram) / n_columns, 1e-30) * np.eye(n_columns)
    slopes = np.linalg.solve(gram + ridge, cross).astype(np.float32)
    # all sections get the intercept of the whole: their own differ by the section effect
    overall, center = sizes @ means / sizes.sum(), sizes @ centers / sizes.sum()
    result = np.empty((len(embedding), len(columns)), np.float32)
    for start in range(0, len(embedding), _ROWS):
        block = slice(start, start + _ROWS)
        result[block] = (embedding[block] - center.astype(np.float32)) @ slopes + overall
    return np.maximum(result, 0, out=result)


def _columns(adata: ad.AnnData, genes: str | Sequence[str] | None) -> np.ndarray:
    """Positions of the genes in ``var_names``."""
    if genes is None:
        return np.arange(adata.n_vars)
    wanted = [genes] if isinstance(genes, str) else list(dict.fromkeys(genes))
    missing = [name for name in wanted if name not in adata.var_names]
    if missing or not wanted:
        raise MissingKeyError(
            f"var_names has no {', '.join(map(repr, missing[:5])) or 'genes: none were given'}; it has "
            f"{', '.join(map(repr, adata.var_names[:3]))}, ... ({adata.n_vars} genes)."
        )
    if not adata.var_names.is_unique:
        raise InputError("var_names holds names more than once. Call adata.var_names_make_unique() first.")
    return np.asarray(adata.var_names.get_indexer(wanted), dtype=np.int64)
