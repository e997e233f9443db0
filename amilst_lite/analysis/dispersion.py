"""How much counts vary beyond Poisson noise: from neighboring spots, without domains."""

from __future__ import annotations

import numpy as np
from scipy import sparse

__all__ = ["dispersions"]

_LAGS = (1, 2, 3)  # places along the curve between two spots that are compared


def dispersions(counts: sparse.csr_matrix, sections: np.ndarray) -> np.ndarray:
    """Estimate the dispersion φ of each gene: a count of mean μ has the variance μ + φ μ².

    Two neighboring spots have the same expression m but for their total counts s, so that E[x_i x_j] = s_i s_j m²,
    while within a spot E[x_i (x_i - 1)] = (1 + φ) s_i² m². The ratio of the weighted means of both, over all pairs
    of neighbors, is 1 + φ̂. No mean is fitted and no domain is needed: differences between regions
    are in both moments, and variation that neighbors do not share is dispersion.

    Parameters
    ----------
    counts : CSR matrix of integers, (n_spots, n_genes)
        Spots along a curve through the tissue, section by section.
    sections : ndarray of int, (n_spots,)
        Spots of different sections are not compared.

    Returns
    -------
    ndarray of float64, (n_genes,)
        Not negative. 0 for a gene of which no two neighboring spots have counts.
    """
    total = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    size = total / max(total.mean(), 1e-300)
    inverse = np.divide(1.0, size, out=np.zeros_like(size), where=size > 0)
    row = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    values = counts.data.astype(np.float64)
    relative = sparse.csr_matrix((values * inverse[row], counts.indices, counts.indptr), shape=counts.shape)
    weight_of_spot = np.zeros(len(size))
    between = np.zeros(counts.shape[1])
    for lag in _LAGS:
        first, second = slice(None, -lag), slice(lag, None)
        # Poisson noise of the pair: 1 / s_i + 1 / s_j
        weight = size[first] * size[second] / np.maximum(size[first] + size[second], 1e-300)
        weight *= sections[first] == sections[second]
        weight_of_spot[first] += weight
        weight_of_spot[second] += weight
        pairs = (sparse.diags(weight) @ relative[first]).multiply(relative[second])
        between += 2 * np.asarray(pairs.sum(axis=0)).ravel()
    within = np.bincount(
        counts.indices, (weight_of_spot * inverse**2)[row] * values * (values - 1), minlength=counts.shape[1]
    )
    ratio = np.divide(within, between, out=np.ones(len(within)), where=between > 0)
    return np.maximum(ratio - 1, 0)
