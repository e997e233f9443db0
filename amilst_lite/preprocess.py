"""Counts → features: choose genes, normalise, take principal components.

Nothing here makes the spots × genes matrix dense: normalising a sparse matrix keeps its zeros, and
the principal components centre and scale implicitly. The counts handed in are never changed.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import sparse

from .config import PreprocessConfig
from .decomposition import PCA
from .errors import AmilstWarning, InputError

__all__ = ["Preparation", "check_counts", "normalize", "prepare", "select_genes", "top_up_shallow"]

logger = logging.getLogger("amilst_lite")

_SELECTION_SPOTS = 20_000  # spots on which genes are chosen
_BLOCK_ENTRIES = 4_000_000  # entries made dense at a time, 16 MB


@dataclass(frozen=True)
class Preparation:
    """What `prepare` made.

    Attributes
    ----------
    features : ndarray, (n_spots, n_components), float32
        Principal components.
    genes : ndarray of bool, (n_genes,)
        Genes that were used.
    pca : PCA
        Fitted on the normalised expression of those genes.
    """

    features: np.ndarray
    genes: np.ndarray
    pca: PCA


def check_counts(counts: Any) -> sparse.csr_matrix:
    """Counts as CSR, after looking at what they are.

    Parameters
    ----------
    counts : scipy sparse or ndarray, (n_spots, n_genes)
        Raw counts. CSR float32 comes back as it is; anything else is converted once.

    Raises
    ------
    InputError
        NaN, infinite or negative values, or no genes at all.

    Warns
    -----
    AmilstWarning
        Values that are no whole numbers (normalised or logarithmic expression taken for counts),
        and spots without any count.
    """
    if counts.ndim != 2 or counts.shape[0] == 0 or counts.shape[1] == 0:
        raise InputError(f"expected counts of spots × genes; found an array of shape {counts.shape}.")
    matrix = counts if sparse.issparse(counts) and counts.format == "csr" else sparse.csr_matrix(counts)
    if matrix.dtype != np.float32:
        matrix = matrix.astype(np.float32)
    values = matrix.data
    if not np.isfinite(values).all():
        n_bad = int((~np.isfinite(values)).sum())
        raise InputError(
            f"counts must be finite; found {n_bad} NaN or infinite value(s). Remove or repair those spots."
        )
    if values.size and values.min() < 0:
        raise InputError(
            f"counts must not be negative; the smallest is {values.min():g}. Was the matrix centred or "
            'scaled? Put the raw counts into X or layers["counts"].'
        )
    if not np.array_equal(values, np.rint(values)):
        warnings.warn(
            f"counts should be whole numbers, but {np.mean(values != np.rint(values)):.0%} of the non-zero "
            f"values are not (largest {values.max():g}). If this is normalised or logarithmic expression, "
            'put the raw counts into X or layers["counts"]; going on with what is there.',
            AmilstWarning,
            stacklevel=2,
        )
    n_empty = int((np.asarray(matrix.sum(1)).ravel() == 0).sum())
    if n_empty == matrix.shape[0]:
        raise InputError("every spot is empty: all counts are zero.")
    if n_empty:
        warnings.warn(
            f"{n_empty} of {matrix.shape[0]} spots have no counts at all; their domain is decided by their "
            "neighbours alone.",
            AmilstWarning,
            stacklevel=2,
        )
    return matrix


def select_genes(counts: sparse.csr_matrix, n_genes: int, *, seed: int = 0) -> np.ndarray:
    """The genes whose Pearson residuals vary most, in the order of the columns.

    Residuals of a negative binomial with θ = 100 around depth × abundance, clipped at the square
    root of the number of spots (Lause, Berens & Kobak 2021). They favour neither abundant genes nor
    rare ones. Computed in blocks of genes, on at most 20,000 spots drawn with ``seed``.

    Parameters
    ----------
    counts : csr_matrix, (n_spots, n_genes)
        Raw counts.
    n_genes : int
        How many to keep; all when there are no more.

    Returns
    -------
    ndarray of int64
        Columns, ascending.
    """
    n_spots, n_all = counts.shape
    if n_all <= n_genes:
        return np.arange(n_all)
    if n_spots > _SELECTION_SPOTS:
        chosen = np.random.default_rng(seed).choice(n_spots, _SELECTION_SPOTS, replace=False)
        counts = counts[np.sort(chosen)]
    by_gene = counts.tocsc()
    totals = _totals(counts)
    share = (totals / totals.sum())[:, None].astype(np.float32)
    abundance = np.asarray(counts.sum(0, dtype=np.float64)).ravel().astype(np.float32)
    limit = np.float32(np.sqrt(counts.shape[0]))
    variance = np.empty(n_all)
    width = max(1, _BLOCK_ENTRIES // counts.shape[0])
    for start in range(0, n_all, width):
        block = slice(start, start + width)
        expected = share * abundance[block]  # spots × genes of the block
        residuals = by_gene[:, block].toarray() - expected
        residuals /= np.sqrt(expected + expected**2 / np.float32(100.0) + np.float32(1e-12))
        variance[block] = np.clip(residuals, -limit, limit, out=residuals).var(0, dtype=np.float64)
    return np.sort(np.argsort(-variance, kind="stable")[:n_genes])


def top_up_shallow(
    counts: sparse.csr_matrix, neighbors: sparse.csr_matrix, share: float
) -> sparse.csr_matrix:
    """Fill spots below a share of the median depth with their neighbours' mean profile.

    A spot with a tenth of the others' counts is mostly noise once scaled to the same total. It gets
    what its depth lacks from the pooled profile of its spatial neighbours; deeper spots stay as they
    are.

    Parameters
    ----------
    counts : csr_matrix, (n_spots, n_genes)
        Raw counts.
    neighbors : csr_matrix, (n_spots, n_spots)
        Spatial neighbours, ones.
    share : float
        Of the median depth.

    Returns
    -------
    csr_matrix, (n_spots, n_genes), float32
        The same object when no spot is shallow.
    """
    totals = _totals(counts)
    lacking = np.maximum(share * np.median(totals[totals > 0]) - totals, 0.0)
    shallow = np.flatnonzero(lacking > 0)
    if shallow.size == 0:
        return counts
    pooled = (neighbors[shallow] @ counts).tocsr()
    pooled_totals = _totals(pooled)
    factors = np.divide(lacking[shallow], pooled_totals, out=np.zeros(shallow.size), where=pooled_totals > 0)
    pooled.data *= np.repeat(factors, np.diff(pooled.indptr)).astype(np.float32)
    to_spot = sparse.csr_matrix(
        (np.ones(shallow.size, np.float32), (shallow, np.arange(shallow.size))),
        shape=(counts.shape[0], shallow.size),
    )
    return (counts + to_spot @ pooled).tocsr()


def normalize(
    counts: sparse.csr_matrix,
    config: PreprocessConfig | None = None,
    neighbors: sparse.csr_matrix | None = None,
    *,
    seed: int = 0,
) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Choose genes, fill shallow spots, scale every spot to one total, take log(1 + x).

    Parameters
    ----------
    counts : csr_matrix, (n_spots, n_genes)
        Non-negative; left as it is.
    config : PreprocessConfig
        ``min_spots``, ``n_top_genes``, ``top_up``, ``target_sum`` (None: the median total) and
        ``max_fraction`` (genes above this share of any spot are left out of the totals, though not
        out of the result).
    neighbors : csr_matrix, (n_spots, n_spots), optional
        Spatial neighbours, ones. Without them shallow spots are not filled.
    seed : int
        See `select_genes`.

    Returns
    -------
    normalised : csr_matrix, (n_spots, n_kept), float32
    genes : ndarray of bool, (n_genes,)
        The genes kept.

    Raises
    ------
    InputError
        No gene is left.
    """
    config = PreprocessConfig() if config is None else config
    # explicit zeros do not count as seen
    n_seen = np.bincount(counts.indices[counts.data > 0], minlength=counts.shape[1])
    kept = np.flatnonzero(n_seen >= max(config.min_spots, 1))
    if kept.size == 0:
        raise InputError(
            f"no gene is seen in at least {config.min_spots} of {counts.shape[0]} spots. Lower min_spots "
            "or check that the counts are spots × genes."
        )
    if config.n_top_genes is not None and kept.size > config.n_top_genes:
        kept = kept[select_genes(counts[:, kept], config.n_top_genes, seed=seed)]
    genes = np.zeros(counts.shape[1], dtype=bool)
    genes[kept] = True
    chosen = counts if genes.all() else counts[:, kept]
    if config.top_up > 0 and neighbors is not None:
        chosen = top_up_shallow(chosen, neighbors, config.top_up)
    normalised = chosen.copy() if chosen is counts else chosen
    totals = _totals(normalised, config.max_fraction)
    target = float(np.median(totals[totals > 0])) if config.target_sum is None else config.target_sum
    factors = np.divide(target, totals, out=np.zeros_like(totals), where=totals > 0)
    normalised.data *= np.repeat(factors, np.diff(normalised.indptr)).astype(np.float32)
    np.log1p(normalised.data, out=normalised.data)
    return normalised, genes


def _totals(counts: sparse.csr_matrix, max_fraction: float | None = None) -> np.ndarray:
    """Total of every spot (float64), without genes above ``max_fraction`` of any spot."""
    totals = np.asarray(counts.sum(1, dtype=np.float64)).ravel()
    if max_fraction is None:
        return totals
    limits = np.repeat(totals * max_fraction, np.diff(counts.indptr))
    high = np.zeros(counts.shape[1], dtype=bool)
    high[counts.indices[counts.data > limits]] = True
    quiet = counts @ (~high).astype(np.float64)
    # a spot that holds nothing else is scaled by all it has
    return np.where(quiet > 0, quiet, totals)


def prepare(
    counts: Any,
    config: PreprocessConfig | None = None,
    neighbors: sparse.csr_matrix | None = None,
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> Preparation:
    """Counts to principal components.

    Parameters
    ----------
    counts : scipy sparse or ndarray, (n_spots, n_genes)
        Raw counts; left as they are.
    config : PreprocessConfig
        The recipe. Fewer components are taken where spots or genes are too few for
        ``n_components``.
    neighbors : csr_matrix, (n_spots, n_spots), optional
        Spatial neighbours, see `normalize`.
    seed : int
        For the randomised steps of large sections.
    device : str or torch.device
        Where the decomposition runs.

    Raises
    ------
    InputError
        Unusable counts, see `check_counts` and `normalize`.
    """
    config = PreprocessConfig() if config is None else config
    normalised, genes = normalize(check_counts(counts), config, neighbors, seed=seed)
    n_spots, n_genes = normalised.shape
    # centring takes one dimension away where spots are the fewer
    n_components = max(1, min(config.n_components, n_spots - 1, n_genes))
    if n_components < config.n_components:
        logger.info("%d spots × %d genes allow %d components", n_spots, n_genes, n_components)
    pca = PCA(n_components, scale=config.scale_genes, random_state=seed, device=device)
    return Preparation(pca.fit_transform(normalised), genes, pca)
