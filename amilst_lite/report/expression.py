"""Marker genes of the domains and the leading genes of each spot, for display."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from ..errors import InputError
from ..preprocess import CountRows, is_on_disk

__all__ = ["N_LEADING", "Expression", "expression_of"]

N_LEADING = 3  # genes named for each spot
_TOTAL = 10_000.0  # to which the counts of each spot are scaled before the logarithm
_HIGHEST = 254  # largest quantized value; 255 stands for a missing one elsewhere


@dataclass(frozen=True)
class Expression:
    """What the report shows of the genes.

    Attributes
    ----------
    ranking : list of ndarray of int64
        For each domain, genes (columns of the counts), the best marker first.
    genes : ndarray of int64, (M,)
        The genes that can be drawn.
    values : ndarray of uint8, (M, n)
        log(1 + counts per 10,000) of each gene in each drawn spot, as a share of ``highest`` in 1/254.
    highest : ndarray of float64, (M,)
    leading : ndarray of int64, (n, 3)
        The genes of each drawn spot that exceed their expectation most; -1 where there are fewer.
    """

    ranking: list[np.ndarray]
    genes: np.ndarray
    values: np.ndarray
    highest: np.ndarray
    leading: np.ndarray


def expression_of(
    counts: Any,
    spots: np.ndarray,
    domains: np.ndarray,
    n_domains: int,
    *,
    most_genes: int,
    chosen: Sequence[Sequence[int]] | None = None,
) -> Expression:
    """Summarize the counts of the drawn spots in two passes, without a copy of them.

    Parameters
    ----------
    counts : matrix, (N, G)
        As for `CountRows`; non-negative.
    spots : ndarray of int64, (n,)
        Rows of the drawn spots, ascending.
    domains : ndarray of int, (n,)
        Domain of each drawn spot, 0..n_domains-1, or -1.
    most_genes : int
        Number of genes to draw, at most.
    chosen : sequence of sequences of int, optional
        Marker genes of each domain, the best first. Default: those of the largest t statistic (Welch 1947) of
        the normalized expression between the domain and all other drawn spots.

    Raises
    ------
    InputError
        The counts are negative or not finite.
    """
    rows = CountRows(counts)
    if is_on_disk(counts):  # those of the drawn spots are read once
        rows, spots = CountRows(rows.take(spots)), np.arange(len(spots))
    n_genes = rows.shape[1]
    size = np.bincount(domains[domains >= 0], minlength=n_domains).astype(np.float64)
    total = np.zeros(n_genes)
    first = np.zeros((n_domains, n_genes))
    second = np.zeros((n_domains, n_genes))
    for place, block in _blocks(rows, spots):
        total += np.asarray(block.sum(axis=0)).ravel()
        normalized = _normalized(block)
        member = _indicator(domains[place], n_domains)
        first += (member @ normalized).toarray()
        second += (member @ normalized.multiply(normalized)).toarray()
    ranking = (
        _by_t(first, second, size) if chosen is None else [np.asarray(one, dtype=np.int64) for one in chosen]
    )
    genes = _in_turn(ranking, most_genes)

    share = total / max(total.sum(), 1.0)
    raw = np.zeros((len(genes), len(spots)), dtype=np.float32)
    leading = np.full((len(spots), N_LEADING), -1, dtype=np.int64)
    for place, block in _blocks(rows, spots):
        raw[:, place] = _normalized(block)[:, genes].toarray().T
        leading[place] = _leading(block, share)
    # A few extreme spots must not make all others pale
    highest = np.array([_upper(one) for one in raw])
    scaled = np.rint(raw / highest[:, None] * _HIGHEST) if len(genes) else raw
    return Expression(ranking, genes, np.clip(scaled, 0, _HIGHEST).astype(np.uint8), highest, leading)


def _blocks(rows: CountRows, spots: np.ndarray) -> Iterator[tuple[slice, sparse.csr_matrix]]:
    """The counts of the drawn spots, block by block, and which of them they are."""
    for part, block in rows:
        start, stop = np.searchsorted(spots, [part.start, part.stop])
        if start == stop:
            continue
        if stop - start < block.shape[0]:
            block = block[spots[start:stop] - part.start]
        if len(block.data) and not (block.data.min() >= 0 and np.isfinite(block.data.max())):
            raise InputError("expected counts; found values that are negative or not finite.")
        yield slice(int(start), int(stop)), block


def _normalized(block: sparse.csr_matrix) -> sparse.csr_matrix:
    """log(1 + counts per 10,000), with the pattern of the counts."""
    totals = np.asarray(block.sum(axis=1), dtype=np.float32).ravel()
    factor = np.repeat(_TOTAL / np.maximum(totals, 1e-30), np.diff(block.indptr)).astype(np.float32)
    return sparse.csr_matrix((np.log1p(block.data * factor), block.indices, block.indptr), shape=block.shape)


def _indicator(codes: np.ndarray, n: int) -> sparse.csr_matrix:
    """(n, len(codes)) with a one where the code is the row."""
    valid = np.flatnonzero(codes >= 0)
    ones = np.ones(len(valid), dtype=np.float32)
    return sparse.csr_matrix((ones, (codes[valid], valid)), shape=(n, len(codes)))


def _by_t(first: np.ndarray, second: np.ndarray, size: np.ndarray) -> list[np.ndarray]:
    """For each domain the genes with a positive t statistic, in descending order."""
    inside, outside = size[:, None], size.sum() - size[:, None]

    def moments(one: np.ndarray, two: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mean = one / np.maximum(n, 1)
        return mean, np.maximum(two - n * mean**2, 0) / np.maximum(n - 1, 1) / np.maximum(n, 1)

    mean, error = moments(first, second, inside)
    other_mean, other_error = moments(first.sum(axis=0) - first, second.sum(axis=0) - second, outside)
    deviation = np.sqrt(error + other_error)
    t = np.divide(mean - other_mean, deviation, out=np.zeros_like(mean), where=deviation > 0)
    order = np.argsort(-t, axis=1, kind="stable")
    return [genes[t[k, genes] > 0] for k, genes in enumerate(order)]


def _in_turn(ranking: Sequence[np.ndarray], most: int) -> np.ndarray:
    """The best gene of each domain, then the second best of each, without repetition; at most ``most``."""
    depth = max((len(genes) for genes in ranking), default=0)
    turns = (int(genes[i]) for i in range(min(depth, most)) for genes in ranking if i < len(genes))
    return np.array(list(dict.fromkeys(turns))[:most], dtype=np.int64)


def _upper(values: np.ndarray) -> float:
    expressed = values[values > 0]
    return float(np.quantile(expressed, 0.99)) if len(expressed) else 1.0


def _leading(block: sparse.csr_matrix, share: np.ndarray) -> np.ndarray:
    """The genes of each spot with the largest Poisson deviance above their expectation.

    Expected is the total of the spot times the gene's share of all counts. Unlike a ratio, the deviance does
    not prefer rare genes of which a spot has a single count.
    """
    lengths = np.diff(block.indptr)
    totals = np.asarray(block.sum(axis=1), dtype=np.float64).ravel()
    expected = np.maximum(np.repeat(totals, lengths) * share[block.indices], 1e-300)
    observed = block.data.astype(np.float64)
    deviance = np.where(
        observed > expected,
        observed * np.log(np.maximum(observed, 1e-300) / expected) - (observed - expected),
        0.0,
    )
    leading = np.full((block.shape[0], N_LEADING), -1, dtype=np.int64)
    filled = np.flatnonzero(lengths)
    if not len(filled):
        return leading
    starts, owner = block.indptr[filled], np.repeat(np.arange(len(filled)), lengths[filled])
    for i in range(N_LEADING):
        best = np.maximum.reduceat(deviance, starts)
        hits = np.flatnonzero((deviance == best[owner]) & (deviance > 0))
        rows, where = np.unique(owner[hits], return_index=True)
        leading[filled[rows], i] = block.indices[hits[where]]
        deviance[hits[where]] = 0.0
    return leading
