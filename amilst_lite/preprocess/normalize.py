"""Counts → features: select genes, normalize, compute principal components.

The counts are read by blocks of rows, from memory or from disk: once to check them, once to take the selected
genes. Normalized expression is computed from the counts of those genes block by block, in each pass that needs
it. The spots × genes matrix is never made dense, and the counts passed in are never changed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from scipy import sparse

from ..config import PreprocessConfig
from ..distributed import median, ranks
from ..errors import InputError, warn
from ..progress import begin
from .counts import CountRows, dense_block, is_on_disk
from .pca import PCA

__all__ = [
    "NormalizedCounts",
    "Preparation",
    "normalize",
    "prepare",
    "select_genes",
]

logger = logging.getLogger("amilst_lite")

_SELECTION_SPOTS = 20_000  # spots on which genes are chosen
_SELECTION_RUNS = (
    40  # stretches of the curve that they form: compact patches, whose neighbors are mostly inside
)
_SMALL = 20_000_000  # stored entries up to which counts and normalized expression are held in memory: passes are faster
_CPU_BLOCK, _DEVICE_BLOCK = 1 << 19, 1 << 25  # residuals computed at a time; 2 MiB fit the cache of a CPU
_DISPERSION = 100.0  # θ of the negative binomial
_MIN_SPOTS = 3  # genes seen in fewer spots are dropped
_DOMINANT = 0.05  # "published": genes above this share of any spot are left out of the totals

Neighbors: TypeAlias = "sparse.csr_matrix | Callable[[], sparse.csr_matrix] | None"


@dataclass(frozen=True)
class Preparation:
    """Result of `prepare`.

    Attributes
    ----------
    features : ndarray, (n_spots, n_components), float32
        Principal components.
    genes : ndarray of bool, (n_genes,)
        Mask of the genes used.
    depth : ndarray of float64, (n_spots,)
        Total counts of the spots, over all genes.
    pca : PCA
        Fitted on the normalized expression of the genes used.
    target : float
        Total to which every spot was scaled.
    gene_totals : ndarray of float64, (n_kept,)
        Total counts of the genes used.
    """

    features: np.ndarray
    genes: np.ndarray
    depth: np.ndarray
    pca: PCA
    target: float
    gene_totals: np.ndarray


@dataclass(frozen=True)
class Survey:
    """Summary of one pass over the counts.

    Attributes
    ----------
    n_seen, n_seen_here : ndarray of int64, (n_genes,)
        Number of spots in which each gene is seen, of all ranks and of this one.
    depth : ndarray of float64, (n_spots,)
        Total counts of the spots.
    sampled : ndarray of int64
        Of at most 20,000 spots on which genes are selected, those of this rank, ascending.
    sample : csr_matrix, (n_sampled, n_genes)
        The counts of those of all ranks.
    gene_totals : ndarray of float64, (n_genes,)
        Total counts of the genes, of all ranks.
    """

    n_seen: np.ndarray
    n_seen_here: np.ndarray
    depth: np.ndarray
    sampled: np.ndarray
    sample: sparse.csr_matrix
    gene_totals: np.ndarray


def survey(counts: CountRows, order: np.ndarray | None = None) -> Survey:
    """Check and summarize the counts in one pass.

    Parameters
    ----------
    counts : CountRows
    order : ndarray of int64, (n_spots,), optional
        The spots along a curve through the section. Of a large section, genes are selected on stretches of
        it, so that the selection does not depend on the order of the rows.

    Raises
    ------
    InputError
        NaN, infinite or negative values, or only zeros.

    Warns
    -----
    AmilstWarning
        Values that are not integers (normalized or logarithmic expression instead of counts),
        and spots without any count.
    """
    group, n_genes = ranks(), counts.shape[1]
    n_spots = group.sum(counts.shape[0])
    sampled = np.arange(counts.shape[0])
    if n_spots > _SELECTION_SPOTS:
        length = _SELECTION_SPOTS // _SELECTION_RUNS
        starts = np.linspace(0, n_spots - length, _SELECTION_RUNS).astype(np.int64)
        places = group.own(np.unique(starts[:, None] + np.arange(length)), counts.shape[0])
        sampled = places if order is None else np.sort(order[places])
    n_seen = np.zeros(n_genes, dtype=np.int64)
    gene_totals = np.zeros(n_genes)
    depth = np.empty(counts.shape[0])
    sample, n_broken, n_values, largest = [], 0, 0, 0.0
    for rows, block in counts:
        values = block.data
        if not np.isfinite(values).all():
            raise InputError(
                f"counts must be finite; found {int((~np.isfinite(values)).sum())} NaN or infinite value(s) in "
                f"spots {rows.start} to {rows.stop - 1}. Remove or repair those spots."
            )
        if values.size and values.min() < 0:
            raise InputError(
                f"counts must not be negative; found {values.min():g}. Was the matrix centered or scaled? Put "
                'the raw counts into X or layers["counts"].'
            )
        n_values += values.size
        n_broken += int((values != np.rint(values)).sum())
        largest = max(largest, float(values.max(initial=0.0)))
        # explicit zeros do not count as seen
        n_seen += np.bincount(block.indices[values > 0], minlength=n_genes)
        gene_totals += np.bincount(block.indices, values, n_genes)
        depth[rows] = block @ np.ones(n_genes)
        inside = sampled[np.searchsorted(sampled, rows.start) : np.searchsorted(sampled, rows.stop)]
        sample.append(block if len(inside) == block.shape[0] else block[inside - rows.start])
    n_empty, n_broken, n_values = (int(n) for n in group.sum([int((depth == 0).sum()), n_broken, n_values]))
    if n_empty == n_spots:
        raise InputError('all counts are zero. Check that X or layers["counts"] holds the raw counts.')
    if n_broken:
        warn(
            f"counts should be integers, but {n_broken / n_values:.0%} of the non-zero values are not "
            f"(largest {largest:g}). If this is normalized or logarithmic expression, put the raw counts into "
            'X or layers["counts"]. The values are used as they are.'
        )
    if n_empty:
        warn(f"{n_empty} of {n_spots} spots have no counts; their domain depends on their neighbors only.")
    own = sample[0] if len(sample) == 1 else sparse.vstack(sample, format="csr")
    return Survey(group.sum(n_seen), n_seen, depth, sampled, _gathered(own), group.sum(gene_totals))


def _gathered(rows: sparse.csr_matrix, *, block_diagonal: bool = False) -> sparse.csr_matrix:
    """The rows of all ranks: over the same columns, or with columns of their own for each rank."""
    group = ranks()
    if group.size == 1:
        return rows
    lengths = group.gather(np.diff(rows.indptr))
    indices, n_columns = rows.indices, rows.shape[1]
    if block_diagonal:
        start, n_columns = group.place(n_columns)
        indices = indices + np.int32(start)
    shape = (len(lengths), n_columns)
    ends = np.concatenate([[0], np.cumsum(lengths)])
    return sparse.csr_matrix((group.gather(rows.data), group.gather(indices), ends), shape=shape)


def select_genes(
    counts: sparse.csr_matrix,
    n_genes: int,
    neighbors: sparse.csr_matrix | None = None,
    sections: np.ndarray | None = None,
    device: str | torch.device = "cpu",
) -> np.ndarray:
    """The genes whose Pearson residuals, averaged over each spot's neighbors, vary most.

    Residuals of a negative binomial with θ = 100 and mean depth × abundance, clipped at the square root of
    the number of spots (Lause, Berens & Kobak 2021). The average over the neighbors removes what varies
    between single spots, such as noise and outliers, and keeps what varies over the section. Computed in blocks
    of genes.

    Parameters
    ----------
    counts : csr_matrix, (n_spots, n_genes)
        Raw counts.
    n_genes : int
        Number of genes to keep; all if there are no more.
    neighbors : csr_matrix, (n_spots, n_spots), optional
        Spatial neighbors, ones. Without them, the residuals themselves are compared.
    sections : ndarray of int, (n_spots,), optional
        Abundances and variances are those within sections, averaged over the spots: a gene that differs between
        sections only is not selected for that.
    device : str or torch.device
        Where residuals are computed.

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
    groups = [np.arange(n_spots)] if sections is None else _rows_by_section(sections)
    share = np.zeros((n_spots, 1), np.float32)
    abundance = np.zeros((len(groups), n_all), np.float32)
    for place, rows in enumerate(groups):
        if totals[rows].any():
            share[rows, 0] = totals[rows] / totals[rows].sum()
        abundance[place] = counts[rows].sum(0, dtype=np.float64)
    where = torch.device(device)
    average = _neighbor_average(neighbors, where)
    shares, abundances = torch.from_numpy(share).to(where), torch.from_numpy(abundance).to(where)
    spots = [torch.from_numpy(rows).to(where) for rows in groups]
    limit = float(np.sqrt(n_spots))
    width = max(1, (_CPU_BLOCK if where.type == "cpu" else _DEVICE_BLOCK) // n_spots)
    variances = []
    for start in range(0, n_all, width):
        block = slice(start, start + width)
        residuals = dense_block(by_gene[:, block], where)  # spots × genes of the block
        expected = shares * abundances[0, block]
        for place, members in enumerate(spots[1:], 1):
            expected[members] = shares[members] * abundances[place, block]
        residuals -= expected
        residuals *= expected.square().div_(_DISPERSION).add_(expected).add_(1e-12).rsqrt_()
        smooth = average(residuals.clamp_(-limit, limit))
        variance = torch.zeros(smooth.shape[1], dtype=torch.float64, device=where)
        for members in spots:
            own = smooth if len(spots) == 1 else smooth[members]
            variance += (own - own.mean(0)).square_().sum(0) / n_spots
        variances.append(variance)
    varies = torch.cat(variances).cpu().numpy()  # the only wait for the device
    return np.sort(np.argsort(-varies, kind="stable")[:n_genes])


def _neighbor_average(
    neighbors: sparse.csr_matrix | None, device: torch.device
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The map of rows to the means over their neighbors; zeros where there are none."""
    if neighbors is None:
        return lambda rows: rows
    degrees = np.diff(neighbors.indptr)
    weights = np.repeat((1 / np.maximum(degrees, 1)).astype(np.float32), degrees)
    columns, offsets, shares = (
        torch.from_numpy(part).to(device)
        for part in (neighbors.indices.astype(np.int64), neighbors.indptr.astype(np.int64), weights)
    )
    return lambda rows: torch.nn.functional.embedding_bag(
        columns, rows, offsets, mode="sum", per_sample_weights=shares, include_last_offset=True
    )


def _rows_by_section(sections: np.ndarray) -> list[np.ndarray]:
    return [np.flatnonzero(sections == section) for section in np.unique(sections)]


def take_genes(counts: CountRows, genes: np.ndarray, n_entries: int) -> sparse.csr_matrix:
    """The counts of the genes in the mask, CSR float32, in one pass; ``n_entries`` of them are not zero."""
    values = np.empty(n_entries, dtype=np.float32)
    columns = np.empty(n_entries, dtype=np.int32)
    ends = np.zeros(counts.shape[0] + 1, dtype=np.int64)
    renumbered = (np.cumsum(genes) - 1).astype(np.int32)
    at = 0
    for rows, block in counts:
        wanted = genes[block.indices] & (block.data != 0)
        before = np.concatenate([[0], np.cumsum(wanted)])  # kept entries before each stored entry
        here = slice(at, at + int(before[-1]))
        values[here] = block.data[wanted]
        columns[here] = renumbered[block.indices[wanted]]
        ends[rows.start + 1 : rows.stop + 1] = at + before[block.indptr[1:]]
        at = here.stop
    return sparse.csr_matrix((values, columns, ends), shape=(counts.shape[0], int(genes.sum())))


def chosen_counts(counts: CountRows, genes: np.ndarray, n_entries: int) -> sparse.csr_matrix | CountRows:
    """The counts of the genes in the mask, of which ``n_entries`` are not zero; many on disk are left there."""
    if genes.all() and sparse.issparse(counts.counts):
        return counts.counts
    if is_on_disk(counts.counts) and n_entries > _SMALL:
        return CountRows(counts.counts, genes)
    return take_genes(counts, genes, n_entries)


class NormalizedCounts:
    """Log-normalized expression, computed for the rows that are accessed.

    Each spot is scaled to one total, and log(1 + x) is taken.

    Parameters
    ----------
    counts : csr_matrix or CountRows, (n_spots, n_genes)
        Non-negative; not changed.
    normalization : str
        ``"median"``: the common total is the median one. ``"published"``: it is 1, and genes above 5 % of any
        spot are left out of the totals (but kept in the result).
    target : float, optional
        The common total, if it is to be that of other sections.
    totals : ndarray of float64, (n_spots,), optional
        Total counts of the spots, if they are known.

    Attributes
    ----------
    shape, dtype
        Of the whole; a slice of rows is CSR float32.
    target : float
        The common total.
    """

    dtype = np.dtype(np.float32)

    def __init__(
        self,
        counts: sparse.csr_matrix | CountRows,
        normalization: str = "median",
        target: float | None = None,
        totals: np.ndarray | None = None,
    ) -> None:
        self.counts = counts if isinstance(counts, CountRows) else CountRows(counts)
        self.shape = counts.shape
        totals = self.counts.totals() if totals is None else totals
        if normalization == "published":
            totals = self._totals_without_dominant_genes(totals)
        if target is None:
            target = (median(totals[totals > 0]) if normalization == "median" else 0.0) or 1.0
        self.target = target
        self._factors = np.divide(target, totals, out=np.zeros(len(totals)), where=totals > 0).astype(
            np.float32
        )

    def _totals_without_dominant_genes(self, totals: np.ndarray) -> np.ndarray:
        """Totals without genes that dominate any spot; a spot with no other genes keeps its own total."""
        dominant = np.zeros(self.shape[1], dtype=bool)
        for rows, block in self.counts:
            limits = np.repeat(totals[rows] * _DOMINANT, np.diff(block.indptr))
            dominant[block.indices[block.data > limits]] = True
        others = self.counts.totals(~(ranks().sum(dominant.astype(np.int64)) > 0))
        return np.where(others > 0, others, totals)

    def __getitem__(self, rows: slice) -> sparse.csr_matrix:
        """Normalized expression of some spots."""
        block = self.counts[rows].copy()
        block.data *= np.repeat(self._factors[rows], np.diff(block.indptr))
        np.log1p(block.data, out=block.data)
        return block


def normalize(
    counts: Any,
    config: PreprocessConfig | None = None,
    neighbors: Neighbors = None,
    order: np.ndarray | None = None,
    sections: np.ndarray | None = None,
    device: str | torch.device = "cpu",
) -> tuple[NormalizedCounts, np.ndarray, np.ndarray]:
    """Select genes; expression is normalized when rows are accessed.

    Parameters
    ----------
    counts : see `CountRows`, (n_spots, n_genes)
        Raw counts, read in two passes.
    config : PreprocessConfig
        ``n_top_genes`` and ``normalization``.
    neighbors : csr_matrix, (n_spots, n_spots), or callable that returns it, optional
        See `select_genes`. A callable is called only if genes are selected.
    order : ndarray of int64, (n_spots,), optional
        See `survey`.
    sections : ndarray of int, (n_spots,), optional
        See `select_genes`.
    device : str or torch.device
        Where genes are selected.

    Returns
    -------
    normalized : NormalizedCounts, (n_spots, n_kept)
        ``normalized[:]`` is the whole matrix, CSR float32.
    genes : ndarray of bool, (n_genes,)
        Mask of the genes kept.
    depth : ndarray of float64, (n_spots,)
        Total counts of the spots, over all genes.

    Raises
    ------
    InputError
        Unusable counts, see `survey`; no gene is seen in at least 3 spots.
    """
    config = PreprocessConfig() if config is None else config
    normalized, genes, found = _normalized(counts, config, neighbors, order, sections, device)
    return normalized, genes, found.depth


def _normalized(
    counts: Any,
    config: PreprocessConfig,
    neighbors: Neighbors,
    order: np.ndarray | None,
    sections: np.ndarray | None,
    device: str | torch.device,
) -> tuple[NormalizedCounts, np.ndarray, Survey]:
    """`normalize`, with the survey of the counts."""
    rows = CountRows(counts)
    found = survey(rows, order)
    genes = found.n_seen >= _MIN_SPOTS
    if not genes.any():
        raise InputError(
            f"no gene is seen in at least {_MIN_SPOTS} of {rows.shape[0]} spots. Check that the counts are "
            "spots × genes."
        )
    if config.n_top_genes is not None and genes.sum() > config.n_top_genes:
        kept = np.flatnonzero(genes)
        genes = np.zeros_like(genes)
        pattern: sparse.csr_matrix | None = neighbors() if callable(neighbors) else neighbors
        if pattern is not None and len(found.sampled) < pattern.shape[0]:
            pattern = pattern[found.sampled][:, found.sampled]
        if pattern is not None:
            pattern = _gathered(pattern, block_diagonal=True)
        if sections is not None:
            sections = ranks().gather(sections[found.sampled])
        best = select_genes(found.sample[:, kept], config.n_top_genes, pattern, sections, device)
        genes[kept[best]] = True
    chosen = chosen_counts(rows, genes, int(found.n_seen_here[genes].sum()))
    totals = found.depth if genes.all() else None
    return NormalizedCounts(chosen, config.normalization, totals=totals), genes, found


def prepare(
    counts: Any,
    config: PreprocessConfig | None = None,
    neighbors: Neighbors = None,
    *,
    order: np.ndarray | None = None,
    sections: np.ndarray | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> Preparation:
    """Counts to principal components.

    Parameters
    ----------
    counts : see `CountRows`, (n_spots, n_genes)
        Raw counts, in memory or on disk; not changed.
    config : PreprocessConfig
        Settings. There are fewer components than ``n_components`` where spots or genes are too few.
    neighbors : csr_matrix, (n_spots, n_spots), or callable that returns it, optional
        Spatial neighbors, see `normalize`.
    order : ndarray of int64, (n_spots,), optional
        See `survey`.
    sections : ndarray of int, (n_spots,), optional
        See `select_genes`.
    seed : int
        For the randomized decomposition of large sections.
    device : str or torch.device
        Where genes are selected and the decomposition runs.

    Raises
    ------
    InputError
        Unusable counts, see `survey` and `normalize`.
    """
    config = PreprocessConfig() if config is None else config
    normalized, genes, found = _normalized(counts, config, neighbors, order, sections, device)
    group = ranks()
    n_spots, n_genes = group.sum(normalized.shape[0]), normalized.shape[1]
    # centering removes one dimension where spots are fewer than genes
    n_components = max(1, min(config.n_components, n_spots - 1, n_genes))
    if n_components < config.n_components:
        logger.info("%d spots × %d genes have at most %d components", n_spots, n_genes, n_components)
    begin("PCA")
    pca = PCA(n_components, scale=config.normalization == "published", random_state=seed, device=device)
    small = group.size == 1 and normalized.counts.n_entries <= _SMALL
    features = (
        pca.fit_transform(normalized[:])
        if small
        else component_scores(pca.fit_chunks(normalized), normalized)
    )
    return Preparation(features, genes, found.depth, pca, normalized.target, found.gene_totals[genes])


def component_scores(pca: PCA, normalized: NormalizedCounts) -> np.ndarray:
    """Scores of a fitted PCA, (n_spots, n_components) float32; of large sections block by block."""
    small = normalized.counts.n_entries <= _SMALL
    return pca.transform(normalized[:]) if small else pca.transform_chunks(normalized)
