"""Marker genes: genes that are expressed more, or less, in one domain than in all others.

Every gene is compared by the rank-sum test of Wilcoxon (1945) and Mann and Whitney (1947). Its p-values are too
small where the domains were found in the same counts: domains differ by construction, even in noise. Counts are
therefore split (Neufeld et al., Biostatistics 2024, JMLR 2024): each is put into one of two halves at random, domains
are identified again from one half, and their genes are tested in the other, which is independent of the first if the
counts are negative binomial, with the dispersion that `dispersions` estimates from neighboring spots.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse
from scipy.optimize import linear_sum_assignment
from scipy.stats import norm

from .. import keys
from ..errors import InputError, muted_warnings
from ..preprocess import CountRows, NormalizedCounts
from ..runtime import check_seed
from ..slots import Labels, counts_of, domains_of, order_of, sections_of
from ..train.share import thin
from .dispersion import dispersions
from .multiple_testing import benjamini_hochberg

__all__ = ["RankSums", "marker_genes", "rank_sums"]

_BLOCK_ENTRIES = 4_000_000  # stored values that are ranked at a time
_GROUP_BITS, _VALUE_BITS = 12, 31  # of a sort key; the sign of a float32 is not needed


@dataclass(frozen=True, eq=False)
class RankSums:
    """Comparison of each group with all other spots, gene by gene; every array is (n_groups, n_genes), float64.

    Attributes
    ----------
    auc : ndarray
        Probability that a spot of the group has more than a spot outside, ties counting one half; U / (n₁ n₂).
    z : ndarray
        Standardized U, corrected for ties and continuity; positive where the group has more.
    p : ndarray
        Two-sided; NaN for a gene with the same value in all spots.
    log2_fold_change : ndarray
        log2 of the ratio of mean normalized counts, (Σ + 1) / n, inside and outside.
    share_inside, share_outside : ndarray
        Share of spots with any count.
    """

    auc: np.ndarray
    z: np.ndarray
    p: np.ndarray
    log2_fold_change: np.ndarray
    share_inside: np.ndarray
    share_outside: np.ndarray


def rank_sums(expression: sparse.spmatrix | sparse.sparray, codes: np.ndarray, n_groups: int) -> RankSums:
    """Rank-sum test of every gene in every group against all other spots.

    Parameters
    ----------
    expression : sparse matrix, (n_spots, n_genes)
        Log-normalized, log(1 + x), not negative; compared as float32.
    codes : ndarray of int, (n_spots,)
        Group of each spot, 0..n_groups-1, none empty.
    n_groups : int
        From 2 to 4,096.

    Returns
    -------
    RankSums
        ``p`` equals that of `scipy.stats.mannwhitneyu` with ``method="asymptotic"``.

    Raises
    ------
    InputError
        A negative or infinite value, or another number of groups.

    Notes
    -----
    Only stored values are ranked, and all zeros of a gene share one rank. Gene, value and group are packed into one
    64-bit integer (a float32 that is not negative is ordered as its bits are), so that one sort ranks a block of
    genes. Memory: a copy of the matrix in the order of genes, and about 200 MB.
    """
    sizes = np.bincount(codes, minlength=n_groups).astype(np.float64)
    if not 2 <= n_groups <= 2**_GROUP_BITS or (sizes == 0).any():
        raise InputError(
            f"expected 2 to {2**_GROUP_BITS} groups, none empty; found sizes {sizes.astype(int)}."
        )
    columns = sparse.csc_matrix(expression, dtype=np.float32)
    if columns.nnz and not (columns.data.min() >= 0 and np.isfinite(columns.data.max())):
        raise InputError("expression must be finite and not negative; give log-normalized counts.")
    found = [np.empty((n_groups, columns.shape[1])) for _ in range(4)]
    groups = codes.astype(np.uint64)
    for genes in _blocks(columns.indptr):
        for whole, part in zip(found, _of_block(columns, genes, groups, sizes), strict=True):
            whole[:, genes] = part
    u, deviation, n_seen, total = found
    pairs = (sizes * (len(codes) - sizes))[:, None]
    excess = u - pairs / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = np.where(deviation > 0, (np.abs(excess) - 0.5) / deviation, np.nan)
    inside, outside = sizes[:, None], (len(codes) - sizes)[:, None]
    return RankSums(
        auc=u / pairs,
        z=np.sign(excess) * np.maximum(distance, 0),
        p=np.minimum(2 * norm.sf(distance), 1),
        log2_fold_change=np.log2((total + 1) / inside) - np.log2((total.sum(axis=0) - total + 1) / outside),
        share_inside=n_seen / inside,
        share_outside=(n_seen.sum(axis=0) - n_seen) / outside,
    )


def marker_genes(
    adata: ad.AnnData,
    *,
    identify: Callable[[ad.AnnData], Any] | None = None,
    share: float = 0.5,
    seed: int = 0,
    n_genes: int | None = None,
    domain: str | None = None,
    key_added: str = keys.DEFAULT_KEY,
) -> pd.DataFrame:
    """Compare every gene in every domain with all other spots.

    Parameters
    ----------
    adata : AnnData
        Raw counts in ``layers["counts"]`` or ``X``, in memory; they are log-normalized for the analysis.
    identify : callable, optional
        Identifies domains as those tested were identified: takes an AnnData with thinned counts in ``X``, the
        coordinates, and all of ``obs`` but the results of the run; writes a label for each spot to the column of
        ``obs`` that holds the domains here, or returns them. Without it, there are only the naive p-values: they are
        right if the domains do not come from these counts, as an annotation by eye.
    share : float
        Of the counts from which domains are identified again, between 0 and 1. The rest is tested.
    seed : int
        Of the thinning.
    n_genes : int, optional
        Keep the leading genes of each domain only; p-values are adjusted for all.
    domain : str, optional
        Column of ``obs`` with the domains. Default: that of the run ``key_added``.
    key_added : str
        Prefix of the slot written.

    Returns
    -------
    DataFrame
        Also written to ``uns["amilst_markers"]``. One row for each domain and gene, domain by domain, in decreasing
        order of z: ``domain``, ``gene``, ``z``, ``auc``, ``log2_fold_change``, ``share_inside``, ``share_outside``
        (see `RankSums`), ``p_naive`` and ``p_naive_adjusted``. With ``identify`` also, from the counts that were set
        aside, ``p``, ``p_adjusted``, ``z_held_out``, ``auc_held_out``, ``log2_fold_change_held_out``, and
        ``overlap``: the Jaccard index of the domain and the one that was identified again. Where it is low, ``p`` is
        about another domain. Adjusted p-values are those of Benjamini and Hochberg over the genes of a domain.

    Raises
    ------
    MissingKeyError
        No counts, or no domains.
    InputError
        Fewer than two domains, unusable counts, or, with ``identify``, counts that are not integers.

    Notes
    -----
    Every spot counts as one observation, and sections are pooled. The counts of a gene are taken for negative binomial,
    with one dispersion in all spots, which is estimated from neighboring spots of ``obsm["spatial"]`` (without
    coordinates, from spots that follow each other). ``benchmarks/analysis.py`` measures how ``p`` is distributed in
    tissue without domains.

    Examples
    --------
    >>> table = marker_genes(adata, identify=lambda half: amilst_lite.identify_domains(half, 7))
    >>> table[table["p_adjusted"] < 0.05].groupby("domain").head(5)
    """
    labels = domains_of(adata, key_added, domain, at_least=2)
    counts = sparse.csr_matrix(CountRows(counts_of(adata))[:])
    held_out = None
    if identify is not None:
        column = keys.ResultKeys(key_added).domain if domain is None else domain
        again, rest = _identify_again(adata, counts, identify, share, seed, key_added, column)
        matched, overlap = _match(labels, again)
        found = _compare(rest, again)
        held_out = [None if other is None else (found, other) for other in matched]
    table = _table(labels.names, list(adata.var_names), _compare(counts, labels))
    if held_out is not None:
        _add_held_out(table, adata.n_vars, held_out, overlap)
    table = table.sort_values(["domain", "z"], ascending=[True, False], kind="stable", ignore_index=True)
    table["domain"] = table["domain"].astype(str)
    if n_genes is not None:
        table = table.groupby("domain", sort=False).head(n_genes).reset_index(drop=True)
    adata.uns[keys.ResultKeys(key_added).markers] = table
    return table


def _blocks(starts: np.ndarray) -> list[slice]:
    """Runs of genes with about `_BLOCK_ENTRIES` stored values."""
    n_genes = len(starts) - 1
    wanted = np.arange(0, starts[-1] + 1, _BLOCK_ENTRIES)
    bounds = np.unique(np.append(np.searchsorted(starts[:-1], wanted), [0, n_genes]))
    return [slice(int(a), int(b)) for a, b in itertools.pairwise(bounds)]


def _of_block(
    columns: sparse.csc_matrix, genes: slice, groups: np.ndarray, sizes: np.ndarray
) -> tuple[np.ndarray, ...]:
    """U, its standard deviation, spots with a count and total normalized counts; (n_groups, genes of the block)."""
    n, n_groups = len(groups), len(sizes)
    starts = columns.indptr[genes.start : genes.stop + 1]
    stored = slice(int(starts[0]), int(starts[-1]))
    values, n_genes = columns.data[stored], len(starts) - 1
    gene = np.repeat(np.arange(n_genes, dtype=np.uint64), np.diff(starts))
    group = groups[columns.indices[stored]]
    seen = values > 0
    if not seen.all():
        values, gene, group = values[seen], gene[seen], group[seen]

    def by_gene_and_group(
        gene: np.ndarray, group: np.ndarray, weights: np.ndarray | None = None
    ) -> np.ndarray:
        cell = (gene * np.uint64(n_groups) + group).astype(np.int64)
        return np.bincount(cell, weights, n_genes * n_groups).reshape(n_genes, n_groups).T

    n_seen = by_gene_and_group(gene, group)
    total = by_gene_and_group(gene, group, np.expm1(values, dtype=np.float64))
    key = gene << np.uint64(_VALUE_BITS + _GROUP_BITS) | group
    key |= values.view(np.uint32).astype(np.uint64) << np.uint64(_GROUP_BITS)
    key.sort()
    group = key & np.uint64(2**_GROUP_BITS - 1)
    key >>= np.uint64(_GROUP_BITS)
    gene = key >> np.uint64(_VALUE_BITS)
    first = np.flatnonzero(np.append(True, key[1:] != key[:-1])) if len(key) else np.empty(0, np.int64)
    ties = np.diff(np.append(first, len(key)))  # equal values, one by one
    gene_of_ties = gene[first].astype(np.int64)
    n_values = n_seen.sum(axis=0)
    n_zeros = n - n_values
    begin = np.cumsum(n_values) - n_values  # of each gene among the sorted values
    rank = n_zeros[gene_of_ties] + (first - begin[gene_of_ties]) + (ties + 1) / 2
    rank_sum = by_gene_and_group(gene, group, np.repeat(rank, ties))
    rank_sum += (sizes[:, None] - n_seen) * (n_zeros + 1) / 2
    u = rank_sum - (sizes * (sizes + 1) / 2)[:, None]
    equal = ties.astype(np.float64)
    tied = np.bincount(gene_of_ties, equal**3 - equal, n_genes) + n_zeros.astype(np.float64) ** 3 - n_zeros
    pairs = (sizes * (n - sizes))[:, None]
    deviation = np.sqrt(pairs / 12 * np.maximum(n + 1 - tied / (n * (n - 1)), 0))
    return u, np.where(n_zeros == n, 0, deviation), n_seen, total


def _compare(counts: sparse.csr_matrix, labels: Labels) -> RankSums:
    return rank_sums(NormalizedCounts(counts)[:], labels.codes, labels.n)


def _identify_again(
    adata: ad.AnnData,
    counts: sparse.csr_matrix,
    identify: Callable[[ad.AnnData], Any],
    share: float,
    seed: int,
    key_added: str,
    column: str,
) -> tuple[Labels, sparse.csr_matrix]:
    """Domains of a part of the counts, and the rest of the counts."""
    if not 0 < share < 1:
        raise InputError(f"share must be between 0 and 1; found {share!r}.")
    if (counts.data != np.rint(counts.data)).any():
        raise InputError(
            "counts must be integers to be thinned; found others. Put the raw counts into "
            'layers["counts"], or leave out identify for naive p-values only.'
        )
    sections = sections_of(adata, key_added, None).codes
    order = order_of(adata, sections)
    rank = np.argsort(order)
    along = counts[order]
    dispersion = dispersions(along, sections[order])
    kept, rest = (part[rank] for part in thin(along, share, check_seed(seed), dispersion))
    names = keys.ResultKeys(key_added)
    results = [column, *names.slots["obs"], *names.analysis_slots["obs"]]
    obs = adata.obs.drop(columns=[name for name in set(results) if name in adata.obs])
    half = ad.AnnData(kept, obs=obs, var=pd.DataFrame(index=adata.var_names))
    if keys.SPATIAL in adata.obsm:
        half.obsm[keys.SPATIAL] = adata.obsm[keys.SPATIAL]
    # the counts as a whole have been warned of; a spot without counts here may have some
    with muted_warnings():
        found = identify(half)
    if column not in half.obs:
        labels: np.ndarray = np.asarray(found)
        if labels.shape != (adata.n_obs,):
            raise InputError(
                f"identify must write domains to obs[{column!r}] or return a label for each of {adata.n_obs} spots; "
                f"found {type(found).__name__} of shape {labels.shape}."
            )
        half.obs[column] = pd.Categorical(labels)
    return domains_of(half, key_added, column, at_least=2), rest


def _match(labels: Labels, again: Labels) -> tuple[list[int | None], np.ndarray]:
    """For each domain the one of ``again`` that has most spots in common, one to one, and their Jaccard index."""
    common = np.bincount(labels.codes * again.n + again.codes, minlength=labels.n * again.n).reshape(
        labels.n, again.n
    )
    matched: list[int | None] = [None] * labels.n
    overlap = np.zeros(labels.n)
    for own, other in zip(*linear_sum_assignment(common, maximize=True), strict=True):
        matched[own] = int(other)
        union = common[own].sum() + common[:, other].sum() - common[own, other]
        overlap[own] = common[own, other] / union
    return matched, overlap


def _table(domains: list[str], genes: list[str], found: RankSums) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "domain": pd.Categorical(np.repeat(domains, len(genes)), categories=domains, ordered=True),
            "gene": np.tile(np.asarray(genes, dtype=object), len(domains)),
            **{
                name: getattr(found, name).ravel()
                for name in ("z", "auc", "log2_fold_change", "share_inside", "share_outside")
            },
            "p_naive": found.p.ravel(),
            "p_naive_adjusted": np.concatenate([benjamini_hochberg(p) for p in found.p]),
        }
    )


def _add_held_out(
    table: pd.DataFrame, n_genes: int, held_out: list[tuple[RankSums, int] | None], overlap: np.ndarray
) -> None:
    """Add the columns of the counts that were set aside; NaN for a domain that was not found again."""

    def column(name: str) -> np.ndarray:
        missing = np.full(n_genes, np.nan)
        return np.concatenate([missing if one is None else getattr(one[0], name)[one[1]] for one in held_out])

    table["p"] = column("p")
    table["p_adjusted"] = np.concatenate(
        [benjamini_hochberg(p) for p in table["p"].to_numpy().reshape(-1, n_genes)]
    )
    for name in ("z", "auc", "log2_fold_change"):
        table[f"{name}_held_out"] = column(name)
    table["overlap"] = np.repeat(overlap, n_genes)
