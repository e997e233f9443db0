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

__all__ = ["Preparation", "check_counts", "normalize", "prepare"]

logger = logging.getLogger("amilst_lite")


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


def normalize(
    counts: sparse.csr_matrix, config: PreprocessConfig | None = None
) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Drop rare genes, scale every spot to one total, take log(1 + x).

    Parameters
    ----------
    counts : csr_matrix, (n_spots, n_genes)
        Non-negative.
    config : PreprocessConfig
        ``min_spots``, ``target_sum`` (None: the median total) and ``max_fraction`` (genes above
        this share of any spot are left out of the totals, though not out of the result).

    Returns
    -------
    normalised : csr_matrix, (n_spots, n_kept), float32
        A new matrix with the same zeros.
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
    genes = n_seen >= max(config.min_spots, 1)
    if not genes.any():
        raise InputError(
            f"no gene is seen in at least {config.min_spots} of {counts.shape[0]} spots. Lower min_spots "
            "or check that the counts are spots × genes."
        )
    kept = counts[:, genes] if not genes.all() else counts.copy()
    totals = _totals(kept, config.max_fraction)
    target = float(np.median(totals[totals > 0])) if config.target_sum is None else config.target_sum
    factors = np.divide(target, totals, out=np.zeros_like(totals), where=totals > 0)
    kept.data *= np.repeat(factors, np.diff(kept.indptr)).astype(np.float32)
    np.log1p(kept.data, out=kept.data)
    return kept, genes


def _totals(counts: sparse.csr_matrix, max_fraction: float | None) -> np.ndarray:
    """Total of every spot (float64), without genes above ``max_fraction`` of any spot."""
    totals = np.asarray(counts.sum(1, dtype=np.float64)).ravel()
    if max_fraction is None:
        return totals
    limits = np.repeat(totals * max_fraction, np.diff(counts.indptr))
    high = np.zeros(counts.shape[1], dtype=bool)
    high[counts.indices[counts.data > limits]] = True
    return counts @ (~high).astype(np.float64)


def prepare(
    counts: Any,
    config: PreprocessConfig | None = None,
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
    seed : int
        For the randomised decomposition of large matrices.
    device : str or torch.device
        Where the decomposition runs.

    Raises
    ------
    InputError
        Unusable counts, see `check_counts` and `normalize`.
    """
    config = PreprocessConfig() if config is None else config
    normalised, genes = normalize(check_counts(counts), config)
    n_components = min(
        config.n_components, min(normalised.shape) - (normalised.shape[0] <= normalised.shape[1])
    )
    if n_components < config.n_components:
        logger.info("%d spots × %d genes allow %d components", *normalised.shape, n_components)
    pca = PCA(
        max(n_components, 1),
        scale=config.scale_genes,
        clip=config.max_value,
        random_state=seed,
        device=device,
    )
    return Preparation(pca.fit_transform(normalised), genes, pca)
