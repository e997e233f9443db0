"""Counts → features: choose genes, normalise, take principal components.

The counts are read by blocks of rows, from memory or from disk: once to see what they are, once to take the
genes that were chosen. Normalised expression is never held: it is made from the counts of those genes, block
by block, each time a pass over it needs it. Nothing here makes the spots × genes matrix dense, and the counts
handed in are never changed.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import sparse

from .config import PreprocessConfig
from .decomposition import PCA
from .errors import AmilstWarning, InputError

__all__ = [
    "CountRows",
    "NormalizedCounts",
    "Preparation",
    "is_on_disk",
    "normalize",
    "prepare",
    "select_genes",
]

logger = logging.getLogger("amilst_lite")

_SELECTION_SPOTS = 20_000  # spots on which genes are chosen
_BLOCK_ENTRIES = 4_000_000  # entries in hand at a time, dense (16 MB) or stored (32 MB)
_SMALL = 20_000_000  # stored entries up to which normalised expression is held whole: passes are faster


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


def is_on_disk(counts: Any) -> bool:
    """Whether a matrix is read from a file when it is asked for."""
    return not (sparse.issparse(counts) or isinstance(counts, np.ndarray))


class CountRows:
    """Counts by blocks of rows, from memory or from disk.

    Parameters
    ----------
    counts : scipy sparse, ndarray, backed AnnData matrix or HDF5 dataset, (n_spots, n_genes)
        CSR and dense matrices are taken as they are, on disk too; other sparse formats are converted once.

    Attributes
    ----------
    shape : (int, int)
    n_entries : int
        Counts that are stored; of a dense matrix all.

    Raises
    ------
    InputError
        No spots, no genes, or another number of axes; later, when they are read, broken entries on disk.
    """

    def __init__(self, counts: Any) -> None:
        if len(counts.shape) != 2 or 0 in counts.shape:
            raise InputError(f"expected counts of spots × genes; found an array of shape {counts.shape}.")
        if sparse.issparse(counts) and counts.format != "csr":
            counts = sparse.csr_matrix(counts)
        if getattr(counts, "format", None) == "csc":
            raise InputError(
                "the counts on disk are stored by genes (CSC), from which spots cannot be read in blocks. "
                "Read the file into memory, or store it by spots (CSR)."
            )
        self.counts = counts
        self.shape: tuple[int, int] = counts.shape
        self._on_disk = is_on_disk(counts)
        # of a CSR matrix its three arrays, of which those on disk are read slice by slice
        self._arrays: tuple[Any, Any, np.ndarray] | None = None
        if sparse.issparse(counts):
            self._arrays = counts.data, counts.indices, counts.indptr
        elif hasattr(counts, "group"):  # anndata's, on disk
            self._arrays = counts.group["data"], counts.group["indices"], counts.group["indptr"][:]
        self.n_entries = self.shape[0] * self.shape[1] if self._arrays is None else len(self._arrays[0])
        self._step = int(max(1, _BLOCK_ENTRIES * self.shape[0] // max(self.n_entries, 1)))

    def __getitem__(self, rows: slice) -> sparse.csr_matrix:
        """The counts of some spots, float32; shared with the whole where that is possible."""
        if self._arrays is None:
            return sparse.csr_matrix(self.counts[rows], dtype=np.float32)
        data, indices, indptr = self._arrays
        start, stop, _ = rows.indices(self.shape[0])
        stored = slice(int(indptr[start]), int(indptr[stop]))
        # scipy would copy the entries of a slice
        values = data[stored].astype(np.float32, copy=False)
        ends = indptr[start : stop + 1] - indptr[start]
        block = sparse.csr_matrix((values, indices[stored], ends), shape=(stop - start, self.shape[1]))
        if self._on_disk:
            try:
                block.check_format(full_check=True)  # a file may hold anything
            except ValueError as error:
                raise InputError(
                    f"the counts of spots {start} to {stop - 1} on disk are broken ({error}). Check that the "
                    "file is complete; download it again if in doubt."
                ) from error
            block.sum_duplicates()
        return block

    def __iter__(self) -> Iterator[tuple[slice, sparse.csr_matrix]]:
        for start in range(0, self.shape[0], self._step):
            rows = slice(start, min(start + self._step, self.shape[0]))
            yield rows, self[rows]

    def totals(self, genes: np.ndarray | None = None) -> np.ndarray:
        """Sum of each spot (n_spots,), float64; over the genes marked (n_genes,), or all."""
        marks = np.ones(self.shape[1]) if genes is None else genes.astype(np.float64)
        return np.concatenate([block @ marks for _, block in self])


@dataclass(frozen=True)
class Survey:
    """What one pass over the counts tells.

    Attributes
    ----------
    n_seen : ndarray of int64, (n_genes,)
        In how many spots each gene is seen.
    sample : csr_matrix
        At most 20,000 spots, on which genes are chosen.
    """

    n_seen: np.ndarray
    sample: sparse.csr_matrix


def survey(counts: CountRows, *, seed: int = 0) -> Survey:
    """Look at the counts once.

    Raises
    ------
    InputError
        NaN, infinite or negative values, or nothing but zeros.

    Warns
    -----
    AmilstWarning
        Values that are no whole numbers (normalised or logarithmic expression taken for counts),
        and spots without any count.
    """
    n_spots, n_genes = counts.shape
    sampled = np.arange(n_spots)
    if n_spots > _SELECTION_SPOTS:
        sampled = np.sort(np.random.default_rng(seed).choice(n_spots, _SELECTION_SPOTS, replace=False))
    n_seen = np.zeros(n_genes, dtype=np.int64)
    sample, n_empty, n_broken, n_values, largest = [], 0, 0, 0, 0.0
    for rows, block in counts:
        values = block.data
        if not np.isfinite(values).all():
            raise InputError(
                f"counts must be finite; found {int((~np.isfinite(values)).sum())} NaN or infinite value(s) in "
                f"spots {rows.start} to {rows.stop - 1}. Remove or repair those spots."
            )
        if values.size and values.min() < 0:
            raise InputError(
                f"counts must not be negative; found {values.min():g}. Was the matrix centred or scaled? Put "
                'the raw counts into X or layers["counts"].'
            )
        n_values += values.size
        n_broken += int((values != np.rint(values)).sum())
        largest = max(largest, float(values.max(initial=0.0)))
        # explicit zeros do not count as seen
        n_seen += np.bincount(block.indices[values > 0], minlength=n_genes)
        n_empty += int((block @ np.ones(n_genes, np.float32) == 0).sum())
        inside = sampled[np.searchsorted(sampled, rows.start) : np.searchsorted(sampled, rows.stop)]
        sample.append(block if len(inside) == block.shape[0] else block[inside - rows.start])
    if n_empty == n_spots:
        raise InputError("every spot is empty: all counts are zero.")
    if n_broken:
        warnings.warn(
            f"counts should be whole numbers, but {n_broken / n_values:.0%} of the non-zero values are not "
            f"(largest {largest:g}). If this is normalised or logarithmic expression, put the raw counts into "
            'X or layers["counts"]; going on with what is there.',
            AmilstWarning,
            stacklevel=2,
        )
    if n_empty:
        warnings.warn(
            f"{n_empty} of {n_spots} spots have no counts at all; their domain is decided by their "
            "neighbours alone.",
            AmilstWarning,
            stacklevel=2,
        )
    return Survey(n_seen, sample[0] if len(sample) == 1 else sparse.vstack(sample, format="csr"))


def select_genes(counts: sparse.csr_matrix, n_genes: int) -> np.ndarray:
    """The genes whose Pearson residuals vary most, in the order of the columns.

    Residuals of a negative binomial with θ = 100 around depth × abundance, clipped at the square
    root of the number of spots (Lause, Berens & Kobak 2021). They favour neither abundant genes nor
    rare ones. Computed in blocks of genes.

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
    by_gene = counts.tocsc()
    totals = np.asarray(counts.sum(1, dtype=np.float64)).ravel()
    share = (totals / totals.sum())[:, None].astype(np.float32)
    abundance = np.asarray(counts.sum(0, dtype=np.float64)).ravel().astype(np.float32)
    limit = np.float32(np.sqrt(n_spots))
    variance = np.empty(n_all)
    width = max(1, _BLOCK_ENTRIES // n_spots)
    for start in range(0, n_all, width):
        block = slice(start, start + width)
        expected = share * abundance[block]  # spots × genes of the block
        residuals = by_gene[:, block].toarray() - expected
        residuals /= np.sqrt(expected + expected**2 / np.float32(100.0) + np.float32(1e-12))
        variance[block] = np.clip(residuals, -limit, limit, out=residuals).var(0, dtype=np.float64)
    return np.sort(np.argsort(-variance, kind="stable")[:n_genes])


def take_genes(counts: CountRows, genes: np.ndarray, n_entries: int) -> sparse.csr_matrix:
    """The marked genes of all spots, float32, in one pass; ``n_entries`` of them are not zero."""
    values = np.empty(n_entries, dtype=np.float32)
    columns = np.empty(n_entries, dtype=np.int32)
    ends = np.zeros(counts.shape[0] + 1, dtype=np.int64)
    renumbered = (np.cumsum(genes) - 1).astype(np.int32)
    at = 0
    for rows, block in counts:
        wanted = genes[block.indices] & (block.data != 0)
        before = np.concatenate([[0], np.cumsum(wanted)])  # of each stored entry
        here = slice(at, at + int(before[-1]))
        values[here] = block.data[wanted]
        columns[here] = renumbered[block.indices[wanted]]
        ends[rows.start + 1 : rows.stop + 1] = at + before[block.indptr[1:]]
        at = here.stop
    return sparse.csr_matrix((values, columns, ends), shape=(counts.shape[0], int(genes.sum())))


class NormalizedCounts:
    """Every spot filled if shallow, scaled to one total, log(1 + x); made for the rows that are asked for.

    A spot with a tenth of the others' counts is mostly noise once scaled to the same total: from its
    spatial neighbours' pooled profile it gets what it lacks to a share of the median depth.

    Parameters
    ----------
    counts : csr_matrix, (n_spots, n_genes)
        Non-negative; left as it is.
    config : PreprocessConfig
        ``top_up`` (share of the median depth), ``target_sum`` (None: the median total) and ``max_fraction``
        (genes above this share of any spot are left out of the totals, though not out of the result).
    neighbors : csr_matrix, (n_spots, n_spots), optional
        Spatial neighbours, ones. Without them shallow spots are not filled.

    Attributes
    ----------
    shape, dtype
        Of what a slice of rows gives: CSR, float32.
    """

    dtype = np.dtype(np.float32)

    def __init__(
        self,
        counts: sparse.csr_matrix,
        config: PreprocessConfig,
        neighbors: sparse.csr_matrix | None = None,
    ) -> None:
        self.counts = CountRows(counts)
        self.shape = counts.shape
        totals = self.counts.totals()
        scaled_by = totals if config.max_fraction is None else self._quiet_totals(totals, config.max_fraction)
        # what a shallow spot takes of its neighbours' pooled counts
        self._taken = np.zeros(len(totals))
        self._neighbors = neighbors
        if config.top_up > 0 and neighbors is not None:
            lacking = np.maximum(config.top_up * np.median(totals[totals > 0]) - totals, 0.0)
            pooled = neighbors @ totals
            np.divide(lacking, pooled, out=self._taken, where=(lacking > 0) & (pooled > 0))
            scaled_by = scaled_by + self._taken * (neighbors @ scaled_by)
        some = scaled_by > 0
        target = float(np.median(scaled_by[some])) if config.target_sum is None else config.target_sum
        self._factors = np.divide(target, scaled_by, out=np.zeros(len(totals)), where=some).astype(np.float32)

    def _quiet_totals(self, totals: np.ndarray, max_fraction: float) -> np.ndarray:
        """Totals without the genes that are loud in any spot; a spot that holds nothing else keeps its own."""
        loud = np.zeros(self.shape[1], dtype=bool)
        for rows, block in self.counts:
            limits = np.repeat(totals[rows] * max_fraction, np.diff(block.indptr))
            loud[block.indices[block.data > limits]] = True
        quiet = self.counts.totals(~loud)
        return np.where(quiet > 0, quiet, totals)

    def __getitem__(self, rows: slice) -> sparse.csr_matrix:
        """Normalised expression of some spots."""
        block = self._filled(rows)
        block.data *= np.repeat(self._factors[rows], np.diff(block.indptr))
        np.log1p(block.data, out=block.data)
        return block

    def _filled(self, rows: slice) -> sparse.csr_matrix:
        """A copy of the counts, shallow spots filled."""
        block = self.counts[rows]
        shallow = np.flatnonzero(self._taken[rows])
        if self._neighbors is None or len(shallow) == 0:
            return block.copy()
        pooled = (self._neighbors[rows][shallow] @ self.counts.counts).astype(np.float32).tocsr()
        pooled.data *= np.repeat(self._taken[rows][shallow].astype(np.float32), np.diff(pooled.indptr))
        to_spot = sparse.csr_matrix(
            (np.ones(len(shallow), np.float32), (shallow, np.arange(len(shallow)))),
            shape=(block.shape[0], len(shallow)),
        )
        return (block + to_spot @ pooled).tocsr()


def normalize(
    counts: Any,
    config: PreprocessConfig | None = None,
    neighbors: sparse.csr_matrix | None = None,
    *,
    seed: int = 0,
) -> tuple[NormalizedCounts, np.ndarray]:
    """Choose genes; the rest is done when rows are asked for.

    Parameters
    ----------
    counts : see `CountRows`, (n_spots, n_genes)
        Raw counts. Two passes over them.
    config : PreprocessConfig
        ``min_spots`` and ``n_top_genes`` here, the others in `NormalizedCounts`.
    neighbors : csr_matrix, (n_spots, n_spots), optional
        See `NormalizedCounts`.
    seed : int
        Decides on which 20,000 spots of a larger section the genes are chosen.

    Returns
    -------
    normalised : NormalizedCounts, (n_spots, n_kept)
        ``normalised[:]`` is all of it, CSR float32.
    genes : ndarray of bool, (n_genes,)
        The genes kept.

    Raises
    ------
    InputError
        Unusable counts, see `survey`; no gene is left.
    """
    config = PreprocessConfig() if config is None else config
    rows = CountRows(counts)
    found = survey(rows, seed=seed)
    genes = found.n_seen >= max(config.min_spots, 1)
    if not genes.any():
        raise InputError(
            f"no gene is seen in at least {config.min_spots} of {rows.shape[0]} spots. Lower min_spots "
            "or check that the counts are spots × genes."
        )
    if config.n_top_genes is not None and genes.sum() > config.n_top_genes:
        kept = np.flatnonzero(genes)
        genes = np.zeros_like(genes)
        genes[kept[select_genes(found.sample[:, kept], config.n_top_genes)]] = True
    whole = sparse.issparse(rows.counts) and genes.all()
    chosen = rows.counts if whole else take_genes(rows, genes, int(found.n_seen[genes].sum()))
    return NormalizedCounts(chosen, config, neighbors), genes


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
    counts : see `CountRows`, (n_spots, n_genes)
        Raw counts, in memory or on disk; left as they are.
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
        Unusable counts, see `survey` and `normalize`.
    """
    config = PreprocessConfig() if config is None else config
    normalised, genes = normalize(counts, config, neighbors, seed=seed)
    n_spots, n_genes = normalised.shape
    # centring takes one dimension away where spots are the fewer
    n_components = max(1, min(config.n_components, n_spots - 1, n_genes))
    if n_components < config.n_components:
        logger.info("%d spots × %d genes allow %d components", n_spots, n_genes, n_components)
    logger.info("PCA")
    pca = PCA(n_components, scale=config.scale_genes, random_state=seed, device=device)
    if normalised.counts.counts.nnz <= _SMALL:
        features = pca.fit_transform(normalised[:])
    else:
        features = pca.fit_chunks(normalised).transform_chunks(normalised)
    return Preparation(features, genes, pca)
