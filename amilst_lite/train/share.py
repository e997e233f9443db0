"""How far the network's reconstruction may move the domains: decided by counts that neither filter nor network saw.

Half of the counts are set aside at random (binomial thinning, which leaves two independent Poisson samples of the
same rates). Features, filter and network are computed from the other half. From the filtered features, from their
reconstruction, and from averages of the two, the rates of all genes are predicted by the same log-linear map, and
compared by the Poisson deviance of the counts set aside. The network's share is the improvement on the filter, as a
share of its deviance, and zero unless there clearly is one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import sparse

from ..config import Config
from ..distributed import alone, ranks
from ..errors import InputError, muted_warnings
from ..preprocess import CountRows, NormalizedCounts, prepare
from ..runtime import spawn_seeds
from ..spatial.graph import SpatialGraph
from ..spatial.spectral_filter import denoise
from .loop import Trainer

__all__ = ["ShareEvidence", "network_share", "thin"]

_SHARES = (0.0, 0.5, 1.0)
_MOST_SPOTS = 1000
"""Spots on which the share is decided: neighbors along the graph's curve. More tell no more."""
_ERRORS = 2.0
"""Standard errors, over spots, by which the network has to be better than the filter alone."""
_RIDGE = 0.01
"""Of the map, as a share of the total variance of the features: columns of little variance are not amplified."""
_BLOCK = 100
"""Spots in a block: neighboring spots are predicted from the same ones."""
_LEAST_DISPERSION, _MOST_DISPERSION = 1e-6, 1e3
"""Beyond, the counts are Poisson as far as can be told, or go into one part as a whole; beta needs finite numbers."""


@dataclass(frozen=True)
class ShareEvidence:
    """Deviance of counts set aside, and the share of the network that it supports.

    Where the spots compared have too few counts for any features, ``share`` is 0 and the rest NaN.

    Attributes
    ----------
    share : float
        Improvement on the filter as a share of its deviance, at the best of ``shares``; 0 unless it is more than
        two standard errors.
    shares : ndarray of float64, (S,)
        The weights of the reconstruction that were compared; the first is 0, the filter alone.
    deviance : ndarray of float64, (S,)
        Mean Poisson deviance per spot.
    raw_deviance : float
        Of the features before the filter.
    error : ndarray of float64, (S,)
        Standard error over spots of the difference from the filter alone.
    """

    share: float
    shares: np.ndarray
    deviance: np.ndarray
    raw_deviance: float
    error: np.ndarray


def network_share(
    counts: Any,
    graph: SpatialGraph,
    config: Config,
    *,
    genes: np.ndarray | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> ShareEvidence:
    """Decide the share of the network by held-out counts.

    Parameters
    ----------
    counts : see `CountRows`, (N, G)
        Counts in the caller's order; of more than 1,000 spots, 1,000 neighboring ones are used.
    graph : SpatialGraph
    config : Config
        ``recipe`` is "default".
    genes : ndarray of bool, (G,), optional
        Those selected for the whole section. If not given, genes are selected on these spots, which takes longer.
    seed : int
    device : str or torch.device

    Returns
    -------
    ShareEvidence
    """
    group = ranks()
    first, n_all = group.place(graph.n_spots)
    if group.size > 1:  # the rank that holds the middle of all spots decides
        middles = group.objects(n_all // 2 - first)
        owner = max(rank for rank, middle in enumerate(middles) if middle >= 0)
        found: ShareEvidence | None = None
        if group.rank == owner:
            with alone():
                found = _network_share(counts, graph, config, genes, seed, device, middles[owner])
        evidence = group.objects(found)[owner]
        if evidence is not None:
            return evidence
    return _network_share(counts, graph, config, genes, seed, device, n_all // 2)


def _network_share(
    counts: Any,
    graph: SpatialGraph,
    config: Config,
    genes: np.ndarray | None,
    seed: int,
    device: str | torch.device,
    middle: int,
) -> ShareEvidence:
    """`network_share` by spots around the internal node ``middle``."""
    thin_seed, pca_seed, filter_seed, train_seed = spawn_seeds(seed, 4)
    start = max(0, min(middle - _MOST_SPOTS // 2, graph.n_spots - _MOST_SPOTS))
    nodes = slice(start, min(graph.n_spots, start + _MOST_SPOTS))
    chosen = graph.order[nodes]
    within = graph.subgraph(nodes)
    those = rows_of(counts, chosen)
    kept, held_out = thin(those if genes is None else those[:, genes], 0.5, thin_seed)
    adjacency = within.normalized(device)
    try:
        # those of the counts as a whole have been issued; these would be of half the counts of a part
        with muted_warnings():
            preparation = prepare(
                kept, config.preprocess, within.connectivities(), seed=pca_seed, device=device
            )
        features = torch.from_numpy(preparation.features).to(device)
        filtered = denoise(
            features,
            adjacency,
            config.filter.noise_band,
            depth=torch.from_numpy(preparation.depth),
            depth_floor=config.filter.depth_floor,
            seed=filter_seed,
        )
    except InputError:  # these spots have too few counts to compare anything
        unknown = np.full(len(_SHARES), np.nan)
        return ShareEvidence(0.0, np.array(_SHARES), unknown, float("nan"), unknown)
    trainer = Trainer(
        filtered,
        within,
        adjacency=adjacency,
        network_config=config.network,
        config=config.train,
        seed=train_seed,
        device=device,
    )
    reconstruction = trainer.run().reconstruction
    predict = _Prediction(held_out[:, preparation.genes], config.preprocess.normalization)
    per_spot = np.stack([predict(torch.lerp(filtered, reconstruction, share), filtered) for share in _SHARES])  # type: ignore[arg-type]
    difference = per_spot - per_spot[0]
    error = difference.std(1) / np.sqrt(len(chosen))
    mean = difference.mean(1)
    best = int(np.argmin(mean))
    clear = mean[best] < -_ERRORS * error[best]
    return ShareEvidence(
        float(-mean[best] / per_spot[0].mean()) if clear else 0.0,
        np.array(_SHARES),
        per_spot.mean(1),
        float(predict(features, features).mean()),
        error,
    )


def rows_of(counts: Any, rows: np.ndarray) -> sparse.csr_matrix:
    """The counts of some spots, in that order, CSR float32; from disk in one pass."""
    source = CountRows(counts)
    if sparse.issparse(source.counts):
        return sparse.csr_matrix(source.counts[rows], dtype=np.float32)
    return source.take(rows)


def thin(
    counts: sparse.csr_matrix, share: float, seed: int, dispersion: np.ndarray | None = None
) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """Keep each count with probability ``share``; what is kept, and the rest.

    Values that are not integers are rounded. The two are independent if the counts are Poisson or, with
    ``dispersion``, (G,), negative binomial with the variance μ + φ μ²: the probability is then drawn for each
    spot and gene, from the beta distribution of share / φ and (1 - share) / φ (Neufeld et al., JMLR 2024).
    """
    rng = np.random.default_rng(seed)
    whole = np.rint(counts.data).astype(np.int64)
    kept_share: Any = share
    if dispersion is not None:
        size = 1 / np.clip(dispersion, _LEAST_DISPERSION, _MOST_DISPERSION)[counts.indices]
        kept_share = rng.beta(share * size, (1 - share) * size)
    kept = rng.binomial(whole, kept_share)
    return _without_zeros(kept, counts), _without_zeros(whole - kept, counts)


def _without_zeros(values: np.ndarray, like: sparse.csr_matrix) -> sparse.csr_matrix:
    matrix = sparse.csr_matrix(
        (values.astype(np.float32), like.indices.copy(), like.indptr.copy()), shape=like.shape
    )
    matrix.eliminate_zeros()
    return matrix


class _Prediction:
    """Poisson deviance per spot of held-out counts, predicted from features of the counts kept.

    The logarithm of the rates is linear in the features. The map is fitted by least squares to the held-out counts of
    every other block of spots and evaluated on the rest, then the other way round: its scale is right for
    what it is fitted to, so that a reconstruction does not win merely because it varies less.
    """

    def __init__(self, held_out: sparse.csr_matrix, normalization: str) -> None:
        self.counts = sparse.csr_matrix(held_out)
        self.expression = NormalizedCounts(held_out, normalization)[:]
        self.depth = np.asarray(held_out.sum(1), dtype=np.float64).ravel()
        self.halves = np.arange(len(self.depth)) // max(1, min(_BLOCK, len(self.depth) // 4)) % 2

    def __call__(self, features: torch.Tensor, fitted_to: torch.Tensor) -> np.ndarray:
        """From ``features``, by the map fitted to ``fitted_to``: (N,), float64."""
        X, F = (
            torch.nn.functional.pad(part.detach().cpu().double(), (1, 0), value=1.0)
            for part in (features, fitted_to)
        )
        deviance = np.empty(len(X))
        for half in (0, 1):
            fitted, rest = np.flatnonzero(self.halves == half), np.flatnonzero(self.halves != half)
            deviance[rest] = self._of_rows(
                rest, X[torch.from_numpy(rest)], fitted, F[torch.from_numpy(fitted)]
            )
        return deviance

    def _of_rows(self, rest: np.ndarray, X: torch.Tensor, fitted: np.ndarray, F: torch.Tensor) -> np.ndarray:
        # dense algebra by torch: threads of numpy's would disturb what runs beside this
        ridge = _RIDGE * F[:, 1:].square().sum() * torch.eye(F.shape[1], dtype=F.dtype)
        ridge[0, 0] = 0.0  # not of the intercept
        products = torch.from_numpy(np.ascontiguousarray((self.expression[fitted].T @ F.numpy()).T))
        coefficients = torch.linalg.solve(F.T @ F + ridge, products.to(F.dtype))
        total = np.asarray(self.counts[fitted].sum(0), dtype=np.float64).ravel()
        predicted = torch.from_numpy(self.depth[fitted]) @ (F @ coefficients).exp_()
        # each gene has its total in the fitted half
        scale = torch.from_numpy(np.where(total > 0, total, 0.5)) / predicted
        rates = (X @ coefficients).exp_().mul_(scale).float().numpy()
        expected = rates.sum(1, dtype=np.float64) * self.depth[rest]
        counts = self.counts[rest].tocoo()
        values = rates[counts.row, counts.col].astype(np.float64) * self.depth[rest][counts.row]
        of_counts = np.bincount(counts.row, counts.data * np.log(counts.data / values), minlength=len(X))
        totals = np.bincount(counts.row, counts.data, minlength=len(X))
        return np.asarray(2 * (of_counts - totals + expected))
