"""Spatial autocorrelation of many genes at once: Moran's I and Geary's C.

Both measure whether neighboring spots have similar expression. With z a gene centered on its mean,
w the weights of the graph (no loops) and S0 their sum over n spots,

    I = n/S0 · Σ_ij w_ij z_i z_j / Σ_i z_i²          about 0 without pattern, towards 1 with one
    C = (n-1)/(2 S0) · Σ_ij w_ij (z_i - z_j)² / Σ_i z_i²    about 1 without pattern, towards 0 with one

Since Σ_ij w_ij (z_i - z_j)² = Σ_i (row_i + column_i) z_i² - 2 Σ_ij w_ij z_i z_j, one sparse product
yields both. Expression may be sparse: only a tile of neighboring spots, with the spots they are connected to and a
block of genes, is centered and dense at a time, and small enough for the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from scipy.sparse.csgraph import reverse_cuthill_mckee
from scipy.stats import norm

from ..errors import InputError
from ..runtime import check_seed, n_threads
from ..validation import check_number
from .neighbors import section_codes

__all__ = ["Autocorrelation", "gearys_c", "morans_i", "spatial_autocorrelation"]

_TILE = 8192  # spots of a tile, without those they are connected to
_BLOCK_ENTRIES = 250_000  # spots × genes of a dense block: 2 MB, which stay in the cache
_MOMENTS = ("normality", "randomization")


@dataclass(frozen=True, kw_only=True, eq=False)
class Autocorrelation:
    """One statistic for every gene, and its distribution under no spatial pattern.

    Attributes
    ----------
    statistic : ndarray, shape (n_genes,), float64
        Moran's I or Geary's C; NaN for a constant gene.
    expectation : float
        Mean without any pattern: -1/(n-1) for I and 1 for C in one section.
    deviation : ndarray, shape (n_genes,), float64
        Standard deviation without any pattern (Cliff and Ord, Spatial Processes, 1981).
    z : ndarray, shape (n_genes,), float64
        (statistic - expectation) / deviation.
    p : ndarray, shape (n_genes,), float64
        Of z under the standard normal distribution; one-sided, for positive autocorrelation: large I, small C.
        Not corrected for multiple testing.
    p_permutation : ndarray, shape (n_genes,), float64, or None
        The share of permutations, the observed order among them, with a statistic at least as extreme, on the
        same side. None if none were made.
    """

    statistic: np.ndarray
    expectation: float
    deviation: np.ndarray
    z: np.ndarray
    p: np.ndarray
    p_permutation: np.ndarray | None = None


def morans_i(
    expression: np.ndarray | sp.spmatrix | sp.sparray, graph: sp.spmatrix | sp.sparray, **options: Any
) -> Autocorrelation:
    """Moran's I of every gene; parameters and references as in `spatial_autocorrelation`."""
    return spatial_autocorrelation(expression, graph, **options)[0]


def gearys_c(
    expression: np.ndarray | sp.spmatrix | sp.sparray, graph: sp.spmatrix | sp.sparray, **options: Any
) -> Autocorrelation:
    """Geary's C of every gene, which looks at differences between neighbors; as `spatial_autocorrelation`."""
    return spatial_autocorrelation(expression, graph, **options)[1]


def spatial_autocorrelation(
    expression: np.ndarray | sp.spmatrix | sp.sparray,
    graph: sp.spmatrix | sp.sparray,
    *,
    moments: str = "normality",
    n_permutations: int = 0,
    sections: np.ndarray | None = None,
    seed: int = 0,
) -> tuple[Autocorrelation, Autocorrelation]:
    """Moran's I and Geary's C of every gene.

    Parameters
    ----------
    expression : ndarray or sparse matrix, shape (n_spots, n_genes)
        Finite numbers on any scale; log-normalized counts as a rule. CSR is used without a copy.
    graph : sparse matrix, shape (n_spots, n_spots)
        Weights of the neighbor graph, or ones; may be directed. Its diagonal is left out.
    moments : {"normality", "randomization"}
        Whether the variance is that of independent normal values, which depends on the graph alone, or that of all
        orders of the observed values, which also depends on the kurtosis of each gene. Both are those of one
        section; with several they are approximate.
    n_permutations : int
        Random orders of the spots for ``p_permutation``; each takes as long as the statistics themselves.
    sections : ndarray, shape (n_spots,), optional
        Each gene is centered on its mean in each section, and spots are permuted within their sections, so that a
        difference between sections is no pattern. No edge should connect two sections.
    seed : int
        Of the permutations.

    Returns
    -------
    moran, geary : Autocorrelation
        Small values of Geary's C, negative ``z``, mean positive autocorrelation.

    Raises
    ------
    InputError
        Shapes disagree, a value is not finite, fewer than four spots, a graph without weight, or an unknown option.

    Notes
    -----
    Time is proportional to edges × genes. `torch.get_num_threads` threads work on different tiles; their sums are
    added in a fixed order, so that the number of threads does not change the result.

    References
    ----------
    Moran, Biometrika 1950. Geary, The Incorporated Statistician 1954. Cliff and Ord, Spatial Processes, 1981, for
    the moments. Phipson and Smyth, Stat. Appl. Genet. Mol. Biol. 2010, for permutation p-values.
    """
    if moments not in _MOMENTS:
        raise InputError(f"moments must be one of {', '.join(_MOMENTS)}; found {moments!r}.")
    check_number("n_permutations", n_permutations, 0, integer=True)
    rng = np.random.default_rng(check_seed(seed))
    weights = _Weights.of(graph)
    values = _rows(expression, weights.n)
    codes, _ = section_codes(sections, weights.n)  # type: ignore[arg-type]
    center = _Center(_means(values, codes), codes)
    sums = _sums(values, center, weights)
    constant = sums.square <= weights.n * np.square(1e-12 * center.means).max(axis=0)  # but for rounding
    square = np.where(constant, np.nan, sums.square)
    moran, geary = _statistics(sums, square, weights)
    kurtosis = weights.n * sums.fourth / square**2 if moments == "randomization" else None
    n_moran, n_geary = np.zeros((2, values.shape[1]), np.int64)
    for _ in range(n_permutations):
        permuted = _sums(values, center, weights, _permutation(codes, rng))
        other_moran, other_geary = _statistics(permuted, square, weights)
        # equal orders of a gene must not differ by rounding
        n_moran += other_moran >= moran - 1e-12 * np.abs(moran)
        n_geary += other_geary <= geary + 1e-12 * np.abs(geary)
    expectations, variances = _expectations(weights, codes), _variances(weights, kurtosis)
    return (
        _against_chance(moran, expectations[0], variances[0], n_moran, n_permutations, greater=True),
        _against_chance(geary, expectations[1], variances[1], n_geary, n_permutations, greater=False),
    )


class _Tile(NamedTuple):
    """Spots whose products are computed together."""

    nodes: np.ndarray  # the spots of the tile, then those behind it that they are connected to
    n_own: int  # spots of the tile
    matrix: sp.csr_matrix  # n_own × len(nodes)


@dataclass(frozen=True)
class _Weights:
    """A graph without loops and the sums over it that the moments need."""

    both: sp.csr_matrix  # n×n, float64, w_ij + w_ji
    degrees: np.ndarray  # n, sum of the row and of the column
    s0: float  # Σ w_ij
    s1: float  # ½ Σ (w_ij + w_ji)²
    s2: float  # Σ_i (row_i + column_i)²

    @property
    def n(self) -> int:
        return self.both.shape[0]

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
        both = sp.csr_matrix(matrix + matrix.T)
        degrees = np.asarray(both.sum(axis=1)).ravel()
        return cls(both, degrees, s0, float((both.data**2).sum()) / 2, float((degrees**2).sum()))

    @cached_property
    def tiles(self) -> list[_Tile]:
        """Tiles that hold every spot once, and every pair of neighbors once.

        In the order of Cuthill and McKee (1969) neighbors are close to each other, so that few spots outside a tile
        are needed with it.
        """
        order = np.arange(self.n)
        if self.n > _TILE:
            order = reverse_cuthill_mckee(self.both, symmetric_mode=True)
        upper = sp.triu(self.both[order][:, order], k=1, format="csr")
        return [self._tile(order, upper, start) for start in range(0, self.n, _TILE)]

    def _tile(self, order: np.ndarray, upper: sp.csr_matrix, start: int) -> _Tile:
        stop = min(start + _TILE, self.n)
        edges = upper[start:stop].tocoo()
        behind = np.unique(edges.col[edges.col >= stop])
        columns = np.where(
            edges.col < stop, edges.col - start, stop - start + np.searchsorted(behind, edges.col)
        )
        shape = (stop - start, stop - start + len(behind))
        matrix = sp.csr_matrix((edges.data, (edges.row, columns)), shape=shape)
        return _Tile(np.concatenate([order[start:stop], order[behind]]), stop - start, matrix)


class _Center(NamedTuple):
    """What is subtracted from the values."""

    means: np.ndarray  # n_sections × n_genes
    sections: np.ndarray  # n, the section of each spot

    def subtract(self, z: np.ndarray, nodes: np.ndarray, genes: slice) -> None:
        """From the values ``z`` of these spots and genes, in place."""
        z -= self.means[0, genes] if len(self.means) == 1 else self.means[self.sections[nodes], genes]


class _Sums(NamedTuple):
    """For each gene, with z centered."""

    cross: np.ndarray  # Σ_ij w_ij z_i z_j
    square: np.ndarray  # Σ_i z_i²
    weighted_square: np.ndarray  # Σ_i (row_i + column_i) z_i²
    fourth: np.ndarray  # Σ_i z_i⁴


def _rows(expression: np.ndarray | sp.spmatrix | sp.sparray, n: int) -> Any:
    """The expression as CSR or ndarray, checked."""
    values: Any = sp.csr_matrix(expression) if sp.issparse(expression) else np.asarray(expression)
    if values.ndim != 2 or values.shape[0] != n:
        raise InputError(
            f"expression must have one row for each of the graph's {n} spots; found {values.shape}."
        )
    if not np.isfinite(values.data if sp.issparse(values) else values).all():
        raise InputError("expression must be finite; found NaN or infinite values.")
    return values


def _means(values: Any, codes: np.ndarray) -> np.ndarray:
    """Of the columns in each section, (n_sections, n_genes), float64; in parts, of which scipy makes copies."""
    sizes = np.bincount(codes)
    total = np.zeros((len(sizes), values.shape[1]))
    for start in range(0, len(codes), _TILE):
        own = codes[start : start + _TILE]
        members = sp.csr_matrix((np.ones(len(own)), (own, np.arange(len(own)))), shape=(len(sizes), len(own)))
        part = members @ values[start : start + _TILE]
        total += part.toarray() if sp.issparse(part) else part
    return total / sizes[:, None]


def _sums(values: Any, center: _Center, weights: _Weights, rows: np.ndarray | None = None) -> _Sums:
    """The sums over all spots; spot i of the graph has row ``rows[i]`` of the values, by default row i."""
    n_genes = values.shape[1]

    def of_tile(tile: _Tile) -> np.ndarray:
        nodes = tile.nodes if rows is None else rows[tile.nodes]
        degrees = weights.degrees[tile.nodes[: tile.n_own]]
        found = np.empty((4, n_genes))
        for genes, z in _blocks(values, nodes):
            center.subtract(z, tile.nodes, genes)
            own = z[: tile.n_own]
            found[0, genes] = np.einsum("ig,ig->g", own, tile.matrix @ z)
            squares = np.square(own)
            found[1, genes] = squares.sum(axis=0)
            found[2, genes] = degrees @ squares
            found[3, genes] = np.einsum("ig,ig->g", squares, squares)
        return found

    total = np.zeros((4, n_genes))
    with ThreadPoolExecutor(n_threads()) as threads:
        for part in threads.map(of_tile, weights.tiles):
            total += part
    return _Sums(*total)


def _blocks(values: Any, rows: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Blocks of genes, dense, float64, of these rows; each block overwrites the one before."""
    whole = values[rows]
    n_genes = whole.shape[1]
    width = min(n_genes, max(1, _BLOCK_ENTRIES // len(rows)))
    if sp.issparse(whole):
        whole = whole.tocsc().astype(np.float64)
    memory = np.empty(len(rows) * width)
    for start in range(0, n_genes, width):
        genes = slice(start, min(start + width, n_genes))
        block = whole[:, genes]
        z = memory[: block.shape[0] * block.shape[1]].reshape(block.shape)
        if sp.issparse(block):
            block.toarray(out=z)
        else:
            z[...] = block
        yield genes, z


def _permutation(codes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random order of the spots that keeps each in its section."""
    by_section = np.argsort(codes, kind="stable")
    order = np.empty_like(by_section)
    order[by_section] = np.lexsort((rng.random(len(codes)), codes))
    return order


def _statistics(sums: _Sums, square: np.ndarray, weights: _Weights) -> tuple[np.ndarray, np.ndarray]:
    n, s0 = weights.n, weights.s0
    moran = n / s0 * sums.cross / square
    geary = (n - 1) / (2 * s0) * (sums.weighted_square - 2 * sums.cross) / square
    return moran, geary


def _expectations(weights: _Weights, codes: np.ndarray) -> tuple[float, float]:
    """Of Moran's I and Geary's C, if values centered in each section have one variance in all of them."""
    n, sizes = weights.n, np.bincount(codes)
    free = n - len(sizes)
    by_section = np.bincount(codes, weights.degrees) / 2  # Σ w_ij of the section
    return -n / weights.s0 * float((by_section / sizes).sum()) / free, (n - 1) / free


def _variances(weights: _Weights, kurtosis: np.ndarray | None) -> tuple[Any, Any]:
    """Of Moran's I and Geary's C; of normal values without ``kurtosis``, else of all orders of the values."""
    n, s0, s1, s2 = weights.n, weights.s0, weights.s1, weights.s2
    moran: Any
    geary: Any
    if kurtosis is None:
        moran = (n**2 * s1 - n * s2 + 3 * s0**2) / ((n**2 - 1) * s0**2) - 1 / (n - 1) ** 2
        geary = ((2 * s1 + s2) * (n - 1) - 4 * s0**2) / (2 * (n + 1) * s0**2)
        return moran, geary
    moran = (
        n * ((n**2 - 3 * n + 3) * s1 - n * s2 + 3 * s0**2)
        - kurtosis * ((n**2 - n) * s1 - 2 * n * s2 + 6 * s0**2)
    ) / ((n - 1) * (n - 2) * (n - 3) * s0**2) - 1 / (n - 1) ** 2
    geary = (
        (n - 1) * s1 * (n**2 - 3 * n + 3 - (n - 1) * kurtosis)
        - (n - 1) * s2 * (n**2 + 3 * n - 6 - (n**2 - n + 2) * kurtosis) / 4
        + s0**2 * (n**2 - 3 - (n - 1) ** 2 * kurtosis)
    ) / (n * (n - 2) * (n - 3) * s0**2)
    return moran, geary


def _against_chance(
    statistic: np.ndarray,
    expectation: float,
    variance: Any,
    n_extreme: np.ndarray,
    n_permutations: int,
    *,
    greater: bool,
) -> Autocorrelation:
    # a complete graph gives every gene the same I and C: no variance, and nothing to test
    variance = np.broadcast_to(np.asarray(variance, dtype=np.float64), statistic.shape)
    deviation = np.sqrt(np.where(variance > 1e-12, variance, np.nan))
    z = (statistic - expectation) / deviation
    by_permutation = np.where(np.isnan(statistic), np.nan, (1 + n_extreme) / (1 + n_permutations))
    return Autocorrelation(
        statistic=statistic,
        expectation=expectation,
        deviation=deviation,
        z=z,
        p=norm.sf(z) if greater else norm.cdf(z),
        p_permutation=by_permutation if n_permutations else None,
    )
