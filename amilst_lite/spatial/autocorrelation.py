"""Spatial autocorrelation of many genes at once: Moran's I and Geary's C.

Both measure whether neighboring spots have similar expression. With z a gene centered on its mean,
w the weights of the graph (no loops) and S0 their sum over n spots,

    I = n/S0 · Σ_ij w_ij z_i z_j / Σ_i z_i²          about 0 without pattern, towards 1 with one
    C = (n-1)/(2 S0) · Σ_ij w_ij (z_i - z_j)² / Σ_i z_i²    about 1 without pattern, towards 0 with one

Since Σ_ij w_ij (z_i - z_j)² = Σ_i (row_i + column_i) z_i² - 2 Σ_ij w_ij z_i z_j, one sparse product
yields both. Expression may be sparse; a block of genes at a time is centered and dense.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from scipy.stats import norm

from ..errors import InputError

__all__ = ["Autocorrelation", "gearys_c", "morans_i"]

_BLOCK_ENTRIES = 4_000_000  # spots × genes of a dense block: 32 MB, and as much for the product


@dataclass(frozen=True, kw_only=True, eq=False)
class Autocorrelation:
    """One statistic for every gene, and its distribution under no spatial pattern.

    Attributes
    ----------
    statistic : ndarray, shape (n_genes,), float64
        Moran's I or Geary's C; NaN for a constant gene.
    expectation, deviation : float
        Mean and standard deviation without any pattern, if expression is normal and independent
        (Cliff and Ord, Spatial Processes, 1981). They depend on the graph alone.
    z : ndarray, shape (n_genes,), float64
        (statistic - expectation) / deviation.
    p : ndarray, shape (n_genes,), float64
        One-sided, for positive autocorrelation: large I, small C. Not corrected for multiple testing.
    """

    statistic: np.ndarray
    expectation: float
    deviation: float
    z: np.ndarray
    p: np.ndarray


def morans_i(
    expression: np.ndarray | sp.spmatrix | sp.sparray, graph: sp.spmatrix | sp.sparray
) -> Autocorrelation:
    """Moran's I of every gene.

    Parameters
    ----------
    expression : ndarray or sparse matrix, shape (n_spots, n_genes)
        Finite numbers on any scale; log-normalized counts as a rule.
    graph : sparse matrix, shape (n_spots, n_spots)
        Weights of the neighbor graph, or ones; may be directed. Its diagonal is left out.

    Returns
    -------
    Autocorrelation
        Expectation -1/(n-1).

    Raises
    ------
    InputError
        Shapes disagree, a value is not finite, fewer than four spots, or a graph without weight.

    References
    ----------
    Moran, Biometrika 1950. Cliff and Ord, Spatial Processes, 1981, for the moments.
    """
    weights = _Weights.of(graph)
    cross, square, _ = _sums(expression, weights)
    n, s0 = weights.n, weights.s0
    expectation = -1 / (n - 1)
    second = (n**2 * weights.s1 - n * weights.s2 + 3 * s0**2) / ((n**2 - 1) * s0**2)
    return _against_chance(n / s0 * cross / square, expectation, second - expectation**2, greater=True)


def gearys_c(
    expression: np.ndarray | sp.spmatrix | sp.sparray, graph: sp.spmatrix | sp.sparray
) -> Autocorrelation:
    """Geary's C of every gene; unlike Moran's I it looks at differences between neighbors.

    Parameters
    ----------
    expression : ndarray or sparse matrix, shape (n_spots, n_genes)
        Finite numbers on any scale; log-normalized counts as a rule.
    graph : sparse matrix, shape (n_spots, n_spots)
        Weights of the neighbor graph, or ones; may be directed. Its diagonal is left out.

    Returns
    -------
    Autocorrelation
        Expectation 1; small values, negative ``z``, mean positive autocorrelation.

    Raises
    ------
    InputError
        Shapes disagree, a value is not finite, fewer than four spots, or a graph without weight.

    References
    ----------
    Geary, The Incorporated Statistician 1954. Cliff and Ord, Spatial Processes, 1981, for the moments.
    """
    weights = _Weights.of(graph)
    cross, square, weighted_square = _sums(expression, weights)
    n, s0 = weights.n, weights.s0
    statistic = (n - 1) / (2 * s0) * (weighted_square - 2 * cross) / square
    variance = ((2 * weights.s1 + weights.s2) * (n - 1) - 4 * s0**2) / (2 * (n + 1) * s0**2)
    return _against_chance(statistic, 1.0, variance, greater=False)


@dataclass(frozen=True)
class _Weights:
    """A graph without loops and the sums over it that the moments need."""

    matrix: sp.csr_matrix  # n×n, float64
    degrees: np.ndarray  # n, sum of the row and of the column
    s0: float  # Σ w_ij
    s1: float  # ½ Σ (w_ij + w_ji)²
    s2: float  # Σ_i (row_i + column_i)²

    @property
    def n(self) -> int:
        return self.matrix.shape[0]

    @classmethod
    def of(cls, graph: sp.spmatrix | sp.sparray) -> _Weights:
        if not sp.issparse(graph) or graph.shape[0] != graph.shape[1]:
            raise InputError(f"graph must be a square sparse matrix; found {type(graph)} {np.shape(graph)}.")
        if graph.shape[0] < 4:
            raise InputError(f"Autocorrelation needs at least 4 spots; found {graph.shape[0]}.")
        edges = sp.coo_matrix(graph)
        apart = edges.row != edges.col
        matrix = sp.csr_matrix(
            (edges.data[apart].astype(np.float64), (edges.row[apart], edges.col[apart])), shape=edges.shape
        )
        s0 = float(matrix.sum())
        if not (np.isfinite(matrix.data).all() and s0 > 0):
            raise InputError(f"The weights of the graph must be finite with a positive sum; found {s0}.")
        both = matrix + matrix.T
        degrees = np.asarray(both.sum(axis=1)).ravel()
        return cls(matrix, degrees, s0, float((both.data**2).sum()) / 2, float((degrees**2).sum()))


def _sums(
    expression: np.ndarray | sp.spmatrix | sp.sparray, weights: _Weights
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each gene Σ_ij w_ij z_i z_j, Σ_i z_i² (NaN if constant), Σ_i (row_i + column_i) z_i²."""
    # columns are taken in blocks, which CSR can't do without a pass over everything each time
    columns: Any = sp.csc_matrix(expression) if sp.issparse(expression) else np.asarray(expression)
    if columns.ndim != 2 or columns.shape[0] != weights.n:
        raise InputError(
            f"expression must have one row for each of the graph's {weights.n} spots; found {columns.shape}."
        )
    n, n_genes = columns.shape
    cross, square, weighted_square = (np.empty(n_genes) for _ in range(3))
    width = max(1, _BLOCK_ENTRIES // n)
    for start in range(0, n_genes, width):
        genes = slice(start, start + width)
        block = columns[:, genes]
        z = np.array(block.toarray() if sp.issparse(block) else block, dtype=np.float64)  # n×g, a copy
        if not np.isfinite(z).all():
            raise InputError("expression must be finite; found NaN or infinite values.")
        constant = (z == z[0]).all(axis=0)
        z -= z.mean(axis=0)
        cross[genes] = np.einsum("ig,ig->g", z, weights.matrix @ z)
        np.square(z, out=z)
        square[genes] = np.where(constant, np.nan, z.sum(axis=0))
        weighted_square[genes] = weights.degrees @ z
    return cross, square, weighted_square


def _against_chance(
    statistic: np.ndarray, expectation: float, variance: float, *, greater: bool
) -> Autocorrelation:
    # a complete graph gives every gene the same I and C: no variance, and nothing to test
    deviation = float(np.sqrt(variance)) if variance > 1e-12 else float("nan")
    z = (statistic - expectation) / deviation
    return Autocorrelation(
        statistic=statistic,
        expectation=expectation,
        deviation=deviation,
        z=z,
        p=norm.sf(z) if greater else norm.cdf(z),
    )
