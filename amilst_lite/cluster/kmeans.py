"""K-means in torch: greedy k-means++, all restarts in one batch of tensors, exactly K clusters.

Sources: Arthur and Vassilvitskii 2007 (k-means++, and its greedy form); Lloyd 1982; Lattanzi and
Sohler 2019 (swaps of one center, which leave poor local optima).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin

from ..errors import InputError, warn
from ..runtime import make_generator, resolve_device
from ..validation import check_fitted, check_number, check_random_state, check_tensor
from .blocks import affine, block_threads, column_moments, over_blocks, sum_over_blocks

__all__ = ["KMeans"]

_CANDIDATES, _TRIALS, _TRIAL_PASSES, _PATIENCE = 64, 8, 8, 2
"""Swaps of a center: candidate rows, swaps continued by Lloyd's algorithm, its passes, rounds without gain."""
_WEIGHT_BITS = 30
"""Largest weight of a random draw in fixed point: sums of up to 2^33 rows fit in int64."""
_TIE = 1e-12
"""Two squared distances within this share of the squared norms are compared again, without cancellation."""


def plus_plus(X: torch.Tensor, n_clusters: int, n_init: int, generator: torch.Generator) -> torch.Tensor:
    """Greedy k-means++ for ``n_init`` restarts at once.

    Each new center is the best of ``2 + log K`` candidates drawn in proportion to the squared distance
    to the nearest center so far (Arthur and Vassilvitskii 2007, section 5).

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
    draws = torch.rand(n_init, n_clusters, n_trials, generator=generator, dtype=torch.float32).to(X.device)
    squares = X.square().sum(1)  # (n,)
    centers = X.new_empty(n_init, n_clusters, d)
    first = (draws[:, 0, 0] * n).long().clamp_(max=n - 1)
    centers[:, 0] = X[first]
    nearest = _squared_distances(X, squares, centers[:, 0])  # (R, n)
    for k in range(1, n_clusters):
        candidates = _draw(nearest, draws[:, k])  # (R, L)
        distances = _squared_distances(X, squares, X[candidates].flatten(0, 1))
        distances = torch.minimum(distances.view(n_init, n_trials, n), nearest[:, None])  # (R, L, n)
        best = distances.sum(2).argmin(1)  # (R,)
        restart = torch.arange(n_init, device=X.device)
        nearest = distances[restart, best]
        centers[:, k] = X[candidates[restart, best]]
    return centers


def _draw(weights: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Rows in proportion to ``weights`` (R, n) >= 0, by uniform ``draws`` (R, L) in [0, 1): (R, L).

    The cumulative sum is taken over integers: a parallel sum of floats depends on the device and, on a GPU,
    differs from run to run.
    """
    # in [0, 1], whatever the largest weight is; all zero if that is zero
    relative = weights.double() / weights.amax(1, keepdim=True).double().clamp(min=1e-300)
    cumulative = (relative * 2**_WEIGHT_BITS).round_().long().cumsum(1)
    targets = (draws.double() * cumulative[:, -1:]).long()
    # the first row at which the sum exceeds the target: never one of weight zero
    return torch.searchsorted(cumulative, targets, right=True).clamp_(max=weights.shape[1] - 1)


def _squared_distances(X: torch.Tensor, squares: torch.Tensor, centers: torch.Tensor) -> torch.Tensor:
    """Squared Euclidean distances of (m, d) ``centers`` to (n, d) ``X``: (m, n), never negative."""
    cross = torch.addmm(squares[None, :], centers, X.T, alpha=-2)
    return cross.add_(centers.square().sum(1)[:, None]).clamp_(min=0)


def assign(
    X: torch.Tensor, centers: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """One pass of Lloyd's algorithm over the rows, for every restart.

    Parameters
    ----------
    X : torch.Tensor of shape (n, d)
    centers : torch.Tensor of shape (R, K, d)

    Returns
    -------
    labels : torch.Tensor of shape (R, n), int16 or int32
        The nearest center; the first of equals.
    distances : torch.Tensor of shape (R, n)
        Squared distance to it, less the squared norm of the row.
    counts : torch.Tensor of shape (R, K)
    sums : torch.Tensor of shape (R, K, d)
        Number and sum of the rows of each cluster, float64.
    """
    n, d = X.shape
    n_restarts, n_clusters, _ = centers.shape
    flat = centers.reshape(-1, d)
    offsets = flat.square().sum(1)[:, None]
    labels = torch.empty(n_restarts, n, dtype=torch.int32, device=X.device)
    distances = X.new_empty(n_restarts, n)
    index = torch.arange(n_clusters, device=X.device)[:, None]

    # clusters along the rows and observations along the columns: minima over the clusters are then
    # vectorized, which they are not over a short last dimension
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
    X: torch.Tensor, centers: torch.Tensor, max_iter: int, tol: float
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Lloyd's algorithm for every restart, each stopped when its centers no longer move.

    Parameters
    ----------
    X : torch.Tensor of shape (n, d)
    centers : torch.Tensor of shape (R, K, d)
    max_iter : int
    tol : float
        A restart ends when the squared shifts of its centers sum to no more than this.

    Returns
    -------
    centers : torch.Tensor of shape (R, K, d)
    inertia : torch.Tensor of shape (R,)
        Sum of squared distances to the centers before their last step.
    n_iter : int
        Passes over the rows.
    """
    squares = X.square().sum(1)  # (n,)
    total = squares.sum(dtype=torch.float64)
    centers = centers.clone()
    inertia = torch.full((len(centers),), torch.inf, dtype=torch.float64, device=X.device)
    active = torch.arange(len(centers), device=X.device)
    n_iter = 0
    for n_iter in range(1, max_iter + 1):  # noqa: B007
        current = centers[active]
        _, distances, counts, sums = assign(X, current)
        moved = (sums / counts.clamp(min=1)[..., None]).to(X.dtype)
        moving = (moved - current).square().sum((1, 2)) > tol
        # the only values of a pass that the host waits for
        has_empty, keeps_moving = torch.stack([(counts == 0).any(1), moving]).tolist()
        for place in np.flatnonzero(has_empty):
            # the center of an empty cluster moves to the row farthest from its own center
            empty = torch.nonzero(counts[place] == 0).flatten()[: len(X)]
            moved[place, empty] = X[torch.topk(distances[place] + squares, len(empty)).indices]
            keeps_moving[place] = bool((moved[place] - current[place]).square().sum() > tol)
        # rounding can give less than zero where all rows coincide with their centers
        inertia[active] = (total + distances.sum(1, dtype=torch.float64)).clamp(min=0)
        centers[active] = moved
        if not any(keeps_moving):
            break
        if not all(keeps_moving):
            active = active[torch.from_numpy(np.flatnonzero(keeps_moving)).to(X.device)]
    return centers, inertia, n_iter


def improve(
    X: torch.Tensor, centers: torch.Tensor, inertia: torch.Tensor, tol: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Improve a local optimum by moving single centers, as long as that lowers the inertia.

    Candidates are rows drawn in proportion to their squared distance. The center whose removal costs least
    is found for all candidates by one matrix product; Lloyd's algorithm then continues from the most
    promising swaps, as one batch (after Lattanzi and Sohler 2019).

    Parameters
    ----------
    X : torch.Tensor of shape (n, d)
    centers : torch.Tensor of shape (K, d)
    inertia : torch.Tensor of shape ()
    tol : float
        Of `lloyd`.
    generator : torch.Generator
        On the CPU.

    Returns
    -------
    centers, inertia
        Of the same shapes; the inertia is no higher than it was.
    """
    n_clusters = len(centers)
    rounding = torch.finfo(X.dtype).eps * X.square().sum(dtype=torch.float64)
    failures = 0
    while failures < _PATIENCE:
        draws = torch.rand(_CANDIDATES, generator=generator, dtype=torch.float32).to(X.device)
        candidates, removed = _swaps(X, centers, draws)
        trials = centers.repeat(len(candidates), 1, 1)
        trials[torch.arange(len(candidates), device=X.device), removed] = X[candidates]
        trials, results, _ = lloyd(X, trials, _TRIAL_PASSES, tol)
        best = int(results.argmin())
        # where all rows coincide with centers, the inertia is rounding, which would go up and down without end
        enough = inertia * (1 - 1e-5) - rounding
        gained = bool(results[best] < enough)
        if gained:
            finished, result, _ = lloyd(X, trials[best][None], _TRIAL_PASSES, tol)
            gained = bool(result[0] < enough)
            if gained:
                centers, inertia = finished[0], result[0]
        failures = 0 if gained else failures + 1
        if n_clusters == 1:
            break
    return centers, inertia


def _swaps(X: torch.Tensor, centers: torch.Tensor, draws: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The most promising swaps: rows that become centers, and the centers they replace; (`_TRIALS`,)."""
    squares = X.square().sum(1)
    nearest, labels = _squared_distances(X, squares, centers).topk(min(2, len(centers)), 0, largest=False)
    first, second = nearest[0], nearest[-1]  # (n,)
    rows = _draw(first[None], draws[None])[0].unique()
    distances = _squared_distances(X, squares, X[rows])  # (L, n)
    kept = torch.minimum(distances, first)
    # increase of the inertia when a center is removed: (L, n), summed by cluster to (L, K)
    increase = torch.minimum(distances, second) - kept
    own = torch.nn.functional.one_hot(labels[0], len(centers)).to(X.dtype)
    cost, removed = (kept.sum(1, keepdim=True) + increase @ own).min(1)
    promising = cost.argsort(stable=True)[:_TRIALS]
    return rows[promising], removed[promising]


class KMeans(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator):
    """K-means clustering, following scikit-learn's conventions.

    The best restart is improved by moving single centers (`improve`), so that its inertia is rarely above
    that of many more restarts. Identical rows get identical labels. No cluster is empty, unless there are
    fewer distinct rows than clusters.

    Parameters
    ----------
    n_clusters : int
    n_init : int
        Restarts; the lowest inertia is kept.
    max_iter : int
        Passes over the data for each restart.
    tol : float
        A restart ends when the squared shifts of its centers sum to at most ``tol`` times the mean
        variance of the columns.
    random_state : int or None
        Seed, >= 0 and < 2**32; None uses a new one from the operating system. Global generators are not used.
    device : str or torch.device
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
    batch_size : int or None
        With more rows than this, restarts are compared on a random subsample of this size; the best then
        runs over all rows. None: 20,000 or 100 per cluster, whichever is larger.

    Attributes
    ----------
    cluster_centers_ : ndarray of shape (n_clusters, n_features)
    labels_ : ndarray of shape (n_samples,), int64
    inertia_ : float
        Sum of squared distances of the rows to their centers.
    n_iter_ : int
        Passes over all rows of the restart that was kept.
    n_features_in_ : int

    Warns
    -----
    AmilstWarning
        There are fewer distinct rows than clusters.
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
        """Find the centers of ``X`` (n_samples, n_features).

        Raises
        ------
        InputError
            NaN or infinite entries, fewer rows than clusters, or parameters out of range.
        """
        seed = self._check_parameters()
        device = resolve_device(self.device)
        matrix = check_tensor(X, self, reset=True)
        n, d = matrix.shape
        if n < self.n_clusters:
            raise InputError(
                f"n_samples={n} should be >= n_clusters={self.n_clusters}. Set n_clusters to at most {n}."
            )
        generator = make_generator(seed)
        with block_threads():
            mean, variance = column_moments(matrix)
            # in units of the mean standard deviation, to which ``tol`` refers
            scale = float(variance.mean().sqrt()) or 1.0
            work = torch.empty(n, d, dtype=torch.float32, device=device)
            affine(matrix, mean, torch.eye(d, dtype=torch.float64) / scale, out=work)
            centers = self._search(work, float(self.tol), generator)
            self.cluster_centers_ = centers.cpu().double().numpy() * scale + mean.cpu().numpy()
            n_empty = self._settle(matrix)
        self._n_features_out = self.n_clusters
        if n_empty:
            warn(
                f"Expected at least n_clusters={self.n_clusters} distinct rows; found "
                f"{self.n_clusters - n_empty}. The other clusters are empty. Set n_clusters to "
                f"{self.n_clusters - n_empty} or less."
            )
        return self

    def _search_size(self) -> int:
        """Rows on which the restarts are compared."""
        return self.batch_size or max(20_000, 100 * self.n_clusters)

    def _search(self, work: torch.Tensor, tol: float, generator: torch.Generator) -> torch.Tensor:
        """The best centers found, (n_clusters, d); sets ``n_iter_``."""
        sample, size = work, self._search_size()
        if len(work) > size:
            chosen = torch.randperm(len(work), generator=generator)[:size].sort().values
            sample = work[chosen.to(work.device)]
        starts = plus_plus(sample, self.n_clusters, self.n_init, generator)
        starts, inertia, _ = lloyd(sample, starts, self.max_iter, tol)
        best = inertia.argmin()
        centers, _ = improve(sample, starts[best], inertia[best], tol, generator)
        centers, _, self.n_iter_ = lloyd(work, centers[None], self.max_iter, tol)
        return centers[0]

    def _settle(self, matrix: torch.Tensor) -> int:
        """Set ``labels_`` and ``inertia_``; return the number of clusters that remain empty.

        The center of an empty cluster moves to the row farthest from its own center. Each move lowers the
        inertia and the cluster keeps that row, so that ``n_clusters`` moves suffice.
        """
        for moved in range(self.n_clusters + 1):
            self.labels_, distances = self._nearest(matrix)
            empty = np.flatnonzero(np.bincount(self.labels_, minlength=self.n_clusters) == 0)
            if len(empty) == 0 or distances.max() == 0 or moved == self.n_clusters:
                break
            self.cluster_centers_[empty[0]] = matrix[int(distances.argmax())].double().cpu().numpy()
        self.inertia_ = float(distances.sum())
        return len(empty)

    def _check_parameters(self) -> int:
        """Check all parameters but the device; return the seed."""
        check_number("n_clusters", self.n_clusters, 1, integer=True)
        check_number("n_init", self.n_init, 1, integer=True)
        check_number("max_iter", self.max_iter, 1, integer=True)
        check_number("tol", self.tol, 0)
        if self.batch_size is not None:
            check_number("batch_size", self.batch_size, self.n_clusters, integer=True)
        return check_random_state(self.random_state)

    def _distances(
        self, matrix: torch.Tensor, use: Callable[[slice, torch.Tensor, torch.Tensor, torch.Tensor], None]
    ) -> None:
        """Call ``use`` with blocks of rows (slice and centered values), centers, and squared distances (K, b).

        All float64 on the device of ``matrix``.
        """
        shift = torch.from_numpy(self.cluster_centers_.mean(0)).to(matrix.device)
        centers = torch.from_numpy(self.cluster_centers_).to(matrix.device) - shift

        def measure(rows: slice) -> None:
            block = matrix[rows].double() - shift
            use(rows, block, centers, _squared_distances(block, block.square().sum(1), centers))

        for _ in over_blocks(measure, len(matrix), matrix.shape[1] + len(centers), matrix.device):
            pass

    def _nearest(self, matrix: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Nearest center of each row, the first of equals, and the squared distance to it."""
        labels = np.empty(len(matrix), dtype=np.int64)
        nearest = np.empty(len(matrix))

        def use(rows: slice, block: torch.Tensor, centers: torch.Tensor, distances: torch.Tensor) -> None:
            smallest, index = distances.min(0)
            # Entries of a matrix product are rounded differently from row to row: where two centers are
            # equally near, identical rows could get different labels.
            rounding = _TIE * (block.square().sum(1) + centers.square().sum(1).max())
            tied = torch.nonzero((distances <= smallest + rounding).sum(0) > 1).flatten()
            if len(tied):
                again = block[tied]
                index[tied] = torch.stack([(again - center).square().sum(1) for center in centers]).argmin(0)
            labels[rows] = index.cpu().numpy()
            nearest[rows] = (block - centers[index]).square().sum(1).cpu().numpy()

        self._distances(matrix, use)
        return labels, nearest

    def predict(self, X: Any) -> np.ndarray:
        """Index of the nearest center of each row of ``X``; (n_samples,), int64."""
        return self._checked_nearest(X)[0]

    def score(self, X: Any, y: Any = None) -> float:
        """Minus the sum of squared distances of the rows of ``X`` to their nearest centers."""
        return -float(self._checked_nearest(X)[1].sum())

    def _checked_nearest(self, X: Any) -> tuple[np.ndarray, np.ndarray]:
        check_fitted(self, "cluster_centers_")
        matrix = check_tensor(X, self, reset=False)
        with block_threads():
            return self._nearest(matrix)

    def transform(self, X: Any) -> np.ndarray:
        """Distances of the rows of ``X`` to the centers; (n_samples, n_clusters)."""
        check_fitted(self, "cluster_centers_")
        matrix = check_tensor(X, self, reset=False)
        out = np.empty((len(matrix), len(self.cluster_centers_)))

        def use(rows: slice, block: torch.Tensor, centers: torch.Tensor, distances: torch.Tensor) -> None:
            out[rows] = distances.sqrt().T.cpu().numpy()

        with block_threads():
            self._distances(matrix, use)
        return out
