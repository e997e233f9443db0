"""K-means in torch: greedy k-means++, every restart in one batch of tensors, exactly K clusters.

Sources: Arthur and Vassilvitskii 2007 (k-means++, and its greedy form); Lloyd 1982; Lattanzi and
Sohler 2019 (swaps of one centre, which leave a bad local optimum).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin

from ..errors import AmilstWarning, InputError
from ..runtime import make_generator, resolve_device
from ._common import (
    affine,
    base_seed,
    block_threads,
    check_fitted,
    check_matrix,
    check_number,
    column_moments,
    over_blocks,
    sum_over_blocks,
    wide_float,
)

__all__ = ["KMeans"]

_CANDIDATES, _TRIALS, _TRIAL_PASSES, _PATIENCE = 64, 8, 8, 2
"""Exchanges of a centre: rows looked at, exchanges run on, passes for these, rounds without gain before the end."""


def plus_plus(X: torch.Tensor, n_clusters: int, n_init: int, generator: torch.Generator) -> torch.Tensor:
    """Greedy k-means++ for ``n_init`` restarts at once.

    Each new centre is the best of ``2 + log K`` candidates drawn in proportion to the squared distance
    to the nearest centre so far (Arthur and Vassilvitskii 2007, section 5).

    Parameters
    ----------
    X : torch.Tensor of shape (n, d)
    n_clusters, n_init : int
    generator : torch.Generator
        On the CPU, so that every device draws the same numbers.

    Returns
    -------
    torch.Tensor of shape (n_init, n_clusters, d)
    """
    n, d = X.shape
    n_trials = 2 + int(np.log(n_clusters))
    # all the random numbers first: the draws do not depend on the device
    draws = torch.rand(n_init, n_clusters, n_trials, generator=generator).to(X.device)
    squares = X.square().sum(1)  # (n,)
    centres = X.new_empty(n_init, n_clusters, d)
    first = (draws[:, 0, 0] * n).long().clamp_(max=n - 1)
    centres[:, 0] = X[first]
    nearest = _squared_distances(X, squares, centres[:, 0])  # (R, n)
    for k in range(1, n_clusters):
        cumulative = nearest.to(wide_float(X.device)).cumsum(1)
        targets = draws[:, k] * cumulative[:, -1:]
        candidates = torch.searchsorted(cumulative, targets).clamp_(max=n - 1)  # (R, L)
        distances = _squared_distances(X, squares, X[candidates].flatten(0, 1))
        distances = torch.minimum(distances.view(n_init, n_trials, n), nearest[:, None])  # (R, L, n)
        best = distances.sum(2).argmin(1)  # (R,)
        restart = torch.arange(n_init, device=X.device)
        nearest = distances[restart, best]
        centres[:, k] = X[candidates[restart, best]]
    return centres


def _squared_distances(X: torch.Tensor, squares: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """Squared Euclidean distances of (m, d) ``centres`` to (n, d) ``X``: (m, n), never negative."""
    cross = torch.addmm(squares[None, :], centres, X.T, alpha=-2)
    return cross.add_(centres.square().sum(1)[:, None]).clamp_(min=0)


def assign(
    X: torch.Tensor, centres: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """One pass of Lloyd's algorithm over the rows, for every restart.

    Parameters
    ----------
    X : torch.Tensor of shape (n, d)
    centres : torch.Tensor of shape (R, K, d)

    Returns
    -------
    labels : torch.Tensor of shape (R, n), int16 or int32
        The nearest centre; the first of equals.
    distances : torch.Tensor of shape (R, n)
        Squared distance to it, less the squared norm of the row.
    counts : torch.Tensor of shape (R, K)
    sums : torch.Tensor of shape (R, K, d)
        Number and sum of the rows of each cluster, in the widest float.
    """
    n, d = X.shape
    n_restarts, n_clusters, _ = centres.shape
    flat = centres.reshape(-1, d)
    offsets = flat.square().sum(1)[:, None]
    labels = torch.empty(n_restarts, n, dtype=torch.int32, device=X.device)
    distances = X.new_empty(n_restarts, n)
    index = torch.arange(n_clusters, device=X.device)[:, None]

    # the clusters run along the rows and the spots along the columns: minima over clusters
    # then vectorise, which they do not over a short last dimension
    def assign_block(rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        block = X[rows]
        scores = torch.addmm(offsets, flat, block.T, alpha=-2).view(n_restarts, n_clusters, -1)
        distances[:, rows], nearest = scores.min(1)
        labels[:, rows] = nearest
        one_hot = (nearest[:, None] == index).to(X.dtype).flatten(0, 1)  # (R K, b)
        return one_hot.sum(1), one_hot @ block

    counts, sums = sum_over_blocks(assign_block, n, len(flat), X.device)
    return labels, distances, counts.view(n_restarts, n_clusters), sums.view(n_restarts, n_clusters, d)


def lloyd(
    X: torch.Tensor, centres: torch.Tensor, max_iter: int, tol: float
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Lloyd's algorithm for every restart, each stopped when its centres no longer move.

    Parameters
    ----------
    X : torch.Tensor of shape (n, d)
    centres : torch.Tensor of shape (R, K, d)
    max_iter : int
    tol : float
        A restart ends when the squared shifts of its centres sum to no more than this.

    Returns
    -------
    centres : torch.Tensor of shape (R, K, d)
    inertia : torch.Tensor of shape (R,)
        Sum of squared distances to the centres before their last step.
    n_iter : int
        Passes over the rows.
    """
    total = X.square().sum(dtype=wide_float(X.device))
    centres = centres.clone()
    inertia = torch.full((centres.shape[0],), torch.inf, dtype=total.dtype, device=X.device)
    active = torch.arange(centres.shape[0], device=X.device)
    n_iter = 0
    for n_iter in range(1, max_iter + 1):  # noqa: B007
        _, distances, counts, sums = assign(X, centres[active])
        moved = (sums / counts.clamp(min=1)[..., None]).to(X.dtype)
        moved = _fill_empty(X, moved, counts, distances)
        shift = (moved - centres[active]).square().sum((1, 2))
        # rounding can take it below zero where every row lies on its centre
        inertia[active] = (total + distances.sum(1, dtype=total.dtype)).clamp(min=0)
        centres[active] = moved
        active = active[shift > tol]
        if len(active) == 0:
            break
    return centres, inertia, n_iter


def _fill_empty(
    X: torch.Tensor, centres: torch.Tensor, counts: torch.Tensor, distances: torch.Tensor
) -> torch.Tensor:
    """Move the centre of each empty cluster onto the rows farthest from their own centres."""
    for restart in torch.nonzero((counts == 0).any(1)).flatten().tolist():
        empty = torch.nonzero(counts[restart] == 0).flatten()
        far = distances[restart] + X.square().sum(1)
        centres[restart, empty] = X[torch.topk(far, len(empty)).indices]
    return centres


def improve(
    X: torch.Tensor, centres: torch.Tensor, inertia: torch.Tensor, tol: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Leave a local optimum by moving one centre elsewhere, as long as that lowers the inertia.

    Rows drawn in proportion to their squared distance are candidates. For each, the centre that is missed
    least is found for all candidates in one matrix product; the most promising exchanges are then run on
    with Lloyd's algorithm, as one batch (after Lattanzi and Sohler 2019).

    Parameters
    ----------
    X : torch.Tensor of shape (n, d)
    centres : torch.Tensor of shape (K, d)
    inertia : torch.Tensor of shape ()
    tol : float
        Of `lloyd`.
    generator : torch.Generator
        On the CPU.

    Returns
    -------
    centres, inertia
        Of the same shapes; the inertia is no higher than it was.
    """
    n_clusters = len(centres)
    failures = 0
    while failures < _PATIENCE:
        draws = torch.rand(_CANDIDATES, generator=generator).to(X.device)
        candidates, removed = _exchanges(X, centres, draws)
        trials = centres.repeat(len(candidates), 1, 1)
        trials[torch.arange(len(candidates), device=X.device), removed] = X[candidates]
        trials, results, _ = lloyd(X, trials, _TRIAL_PASSES, tol)
        best = int(results.argmin())
        gained = bool(results[best] < inertia * (1 - 1e-5))
        failures = 0 if gained else failures + 1
        if gained:
            finished, result, _ = lloyd(X, trials[best][None], _TRIAL_PASSES, tol)
            centres, inertia = finished[0], result[0]
        if n_clusters == 1:
            break
    return centres, inertia


def _exchanges(
    X: torch.Tensor, centres: torch.Tensor, draws: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The most promising exchanges: rows that become centres, and the centres they replace; (`_TRIALS`,)."""
    squares = X.square().sum(1)
    nearest, labels = _squared_distances(X, squares, centres).topk(min(2, len(centres)), 0, largest=False)
    first, second = nearest[0], nearest[-1]  # (n,)
    cumulative = first.to(wide_float(X.device)).cumsum(0)
    rows = torch.searchsorted(cumulative, draws * cumulative[-1]).clamp_(max=len(X) - 1).unique()
    distances = _squared_distances(X, squares, X[rows])  # (L, n)
    kept = torch.minimum(distances, first)
    # what the rows of a cluster pay when its centre goes: (L, n) summed by cluster to (L, K)
    paid = torch.minimum(distances, second) - kept
    own = torch.nn.functional.one_hot(labels[0], len(centres)).to(X.dtype)
    cost, removed = (kept.sum(1, keepdim=True) + paid @ own).min(1)
    promising = cost.argsort(stable=True)[:_TRIALS]
    return rows[promising], removed[promising]


class KMeans(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator):
    """K-means clustering with scikit-learn's manners.

    The best of the restarts is improved by moving single centres (`improve`), so that its inertia is
    rarely above that of many more restarts. Every cluster has at least one row as long as the rows differ;
    an `AmilstWarning` says when there are fewer distinct rows than clusters.

    Parameters
    ----------
    n_clusters : int
    n_init : int
        Restarts; the lowest inertia is kept.
    max_iter : int
        Passes over the data for each restart.
    tol : float
        A restart ends when the squared shifts of its centres sum to at most ``tol`` times the mean
        variance of the columns.
    random_state : int or None
        Seed; None draws a fresh one from the operating system. No global generator is read or moved.
    device : str or torch.device
        ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:N"`` or ``"mps"``.
    batch_size : int or None
        Rows of the random subsample on which the restarts compete when there are more rows than that;
        the winner then runs over all rows, block by block. None means 20,000 rows or 100 for each cluster,
        whichever is more.

    Attributes
    ----------
    cluster_centers_ : ndarray of shape (n_clusters, n_features)
    labels_ : ndarray of shape (n_samples,), int64
    inertia_ : float
        Sum of squared distances of the rows to their centres.
    n_iter_ : int
    n_features_in_ : int
    """

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        n_init: int = 10,
        max_iter: int = 300,
        tol: float = 1e-4,
        random_state: int | None = 0,
        device: str | torch.device = "cpu",
        batch_size: int | None = None,
    ):
        self.n_clusters = n_clusters
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state
        self.device = device
        self.batch_size = batch_size

    def fit(self, X: Any, y: Any = None) -> KMeans:
        """Find the centres of ``X`` (n_samples, n_features)."""
        self._check_parameters()
        matrix = check_matrix(self, X, reset=True)
        n, d = matrix.shape
        if n < self.n_clusters:
            raise InputError(f"n_samples={n} should be >= n_clusters={self.n_clusters}.")
        device = resolve_device(self.device)
        generator = make_generator(base_seed(self.random_state))
        with block_threads():
            mean, variance = column_moments(matrix)
            # in units of the mean standard deviation, in which ``tol`` is as it stands
            scale = float(variance.mean().sqrt()) or 1.0
            work = torch.empty(n, d, device=device)
            affine(matrix, mean, torch.eye(d) / scale, out=work)
            centres = self._search(work, float(self.tol), generator)
            self.cluster_centers_ = centres.cpu().double().numpy() * scale + mean.cpu().double().numpy()
            n_empty = self._settle(matrix)
        self._n_features_out = self.n_clusters
        if n_empty:
            warnings.warn(
                f"{self.n_clusters} clusters were asked for, but there are only {self.n_clusters - n_empty} "
                "distinct rows; the other clusters are empty. Ask for fewer clusters.",
                AmilstWarning,
                stacklevel=2,
            )
        return self

    def _search_size(self) -> int:
        """Rows on which the restarts compete."""
        return self.batch_size or max(20_000, 100 * self.n_clusters)

    def _search(self, work: torch.Tensor, tol: float, generator: torch.Generator) -> torch.Tensor:
        """The best centres found, (n_clusters, d); sets ``n_iter_``."""
        sample, size = work, self._search_size()
        if len(work) > size:
            chosen = torch.randperm(len(work), generator=generator)[:size].sort().values
            sample = work[chosen.to(work.device)]
        starts = plus_plus(sample, self.n_clusters, self.n_init, generator)
        starts, inertia, _ = lloyd(sample, starts, self.max_iter, tol)
        best = inertia.argmin()
        centres, _ = improve(sample, starts[best], inertia[best], tol, generator)
        centres, _, self.n_iter_ = lloyd(work, centres[None], self.max_iter, tol)
        return centres[0]

    def _settle(self, matrix: torch.Tensor) -> int:
        """Set ``labels_`` and ``inertia_``; return how many clusters have to stay empty.

        An empty cluster takes the row farthest from its centre, if it is not on it.
        """
        for moved in range(self.n_clusters + 1):
            self.labels_, distances = self._nearest(matrix)
            empty = np.flatnonzero(np.bincount(self.labels_, minlength=self.n_clusters) == 0)
            if len(empty) == 0 or distances.max() == 0 or moved == self.n_clusters:
                break
            self.cluster_centers_[empty[0]] = matrix[int(distances.argmax())].cpu().double().numpy()
        self.inertia_ = float(distances.sum())
        return len(empty)

    def _check_parameters(self) -> None:
        check_number("n_clusters", self.n_clusters, 1, integer=True)
        check_number("n_init", self.n_init, 1, integer=True)
        check_number("max_iter", self.max_iter, 1, integer=True)
        check_number("tol", self.tol, 0)
        if self.batch_size is not None:
            check_number("batch_size", self.batch_size, self.n_clusters, integer=True)

    def _distances(self, matrix: torch.Tensor, use: Callable[[slice, torch.Tensor], None]) -> None:
        """Hand blocks of squared distances (n_clusters, b), in the widest float, to ``use``."""
        wide = wide_float(matrix.device)
        mean = torch.from_numpy(self.cluster_centers_.mean(0))
        centres = (torch.from_numpy(self.cluster_centers_) - mean).to(matrix.device, wide)
        shift = mean.to(matrix.device, wide)

        def measure(rows: slice) -> None:
            block = matrix[rows].to(wide) - shift
            use(rows, _squared_distances(block, block.square().sum(1), centres))

        with block_threads():
            for _ in over_blocks(measure, len(matrix), matrix.shape[1] + len(centres), matrix.device):
                pass

    def _nearest(self, matrix: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Nearest centre of each row, the first of equals, and the squared distance to it."""
        labels = np.empty(len(matrix), dtype=np.int64)
        nearest = np.empty(len(matrix))

        def use(rows: slice, distances: torch.Tensor) -> None:
            smallest, index = distances.min(0)
            labels[rows], nearest[rows] = index.cpu().numpy(), smallest.cpu().numpy()

        self._distances(matrix, use)
        return labels, nearest

    def predict(self, X: Any) -> np.ndarray:
        """Index of the nearest centre for each row of ``X``; (n_samples,), int64."""
        check_fitted(self, "cluster_centers_")
        return self._nearest(check_matrix(self, X, reset=False))[0]

    def transform(self, X: Any) -> np.ndarray:
        """Distances of the rows of ``X`` to the centres; (n_samples, n_clusters)."""
        check_fitted(self, "cluster_centers_")
        matrix = check_matrix(self, X, reset=False)
        out = np.empty((len(matrix), len(self.cluster_centers_)))

        def use(rows: slice, distances: torch.Tensor) -> None:
            out[rows] = distances.sqrt().T.cpu().numpy()

        self._distances(matrix, use)
        return out

    def score(self, X: Any, y: Any = None) -> float:
        """Minus the sum of squared distances of the rows of ``X`` to their nearest centres."""
        check_fitted(self, "cluster_centers_")
        return -float(self._nearest(check_matrix(self, X, reset=False))[1].sum())
