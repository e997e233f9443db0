"""Model-based agglomeration: the deterministic start of EM in mclust.

At first every row is a cluster of its own; each step merges the two clusters whose union increases

    sum over clusters of  n · log( det(W / n) + (tr W + a) / n )

least, with n the size of a cluster, W its scatter about its mean, and a = tr(W of all rows) / (rows · columns)
(Fraley 1998, with the trace term of Banfield and Raftery 1993 that keeps the criterion finite for
clusters of too few rows). The columns are those of Scrucca and Raftery 2015: standardized, rotated to
their principal axes, and divided by the square roots of the singular values, that is half whitened.

The costs of all pairs are an n × n array, for at most 2,000 rows.
"""

from __future__ import annotations

import numpy as np

MAX_ROWS = 2000
"""Most rows that are agglomerated, because of the costs of all pairs. mclust, too, samples above this."""
MAX_COLUMNS = 32
"""Most principal axes: each cluster has a scatter matrix of this side."""


def agglomerate(X: np.ndarray, n_clusters: int) -> np.ndarray:
    """Labels 0..n_clusters-1 of the rows of ``X`` (m, d), m at most `MAX_ROWS`; (m,), int64."""
    rotated, variances = principal_axes(X)
    half_whitened = rotated / (len(X) * variances) ** 0.25
    tree = _Clusters(half_whitened[:, :MAX_COLUMNS])
    while tree.n > n_clusters:
        tree.merge_cheapest()
    return np.unique(tree.labels, return_inverse=True)[1].astype(np.int64)


def principal_axes(X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows on the principal axes of their standardized columns (n, d'), and the axes' variances (d',), descending.

    Axes without variance are omitted; of constant data, one column of zeros is returned.
    """
    centered = X - X.mean(0)
    deviation = centered.std(0)
    varying = deviation > 1e-12 * np.abs(X).max(0)
    if not varying.any():
        return np.zeros((len(X), 1)), np.ones(1)
    standard = centered[:, varying] / deviation[varying]
    values, vectors = np.linalg.eigh(standard.T @ standard / len(X))
    kept = np.flatnonzero(values > 1e-8 * values[-1])[::-1]
    return standard @ vectors[:, kept], values[kept]


class _Clusters:
    """The current clusters, in the first ``n`` places of each array, and the costs of their unions."""

    def __init__(self, Z: np.ndarray):
        m, d = Z.shape
        self.n = m
        self.d = d
        self.floor = max(float(np.square(Z - Z.mean(0)).sum()) / (m * d), np.finfo(float).eps)
        self.size = np.ones(m)
        self.mean = Z.copy()
        self.square = np.square(Z).sum(1)
        self.scatter = np.zeros((m, d, d))
        self.trace = np.zeros(m)
        self.term = np.full(m, np.log(self.floor))
        self.labels = np.arange(m)
        self.cost = self._pair_costs(Z)
        self.nearest = self.cost.argmin(1)
        self.lowest = self.cost[np.arange(m), self.nearest]

    def _pair_costs(self, Z: np.ndarray) -> np.ndarray:
        """Costs of merging single rows, whose determinant is zero: (m, m), the diagonal infinite."""
        distances = np.maximum(self.square[:, None] + self.square - 2 * Z @ Z.T, 0)
        cost = 2 * np.log((0.5 * distances + self.floor) / 2) - 2 * self.term[0]
        if self.d == 1:  # with a single column, that of two rows is not zero
            cost = 2 * np.log(0.25 * distances + (0.5 * distances + self.floor) / 2) - 2 * self.term[0]
        np.fill_diagonal(cost, np.inf)
        return cost

    def _union_terms(self, i: int) -> np.ndarray:
        """Contribution to the criterion of cluster ``i`` merged with each cluster; entry i is undefined."""
        n, mean = self.n, self.mean
        size = self.size[i] + self.size[:n]
        share = self.size[i] * self.size[:n] / size
        distances = self.square[:n] + self.square[i] - 2 * np.einsum("ij,j->i", mean[:n], mean[i])
        trace = self.trace[i] + self.trace[:n] + share * np.maximum(distances, 0)
        inner = np.log((trace + self.floor) / size)
        # the scatter of no more rows than columns is singular: its determinant is zero
        large = np.flatnonzero(size > self.d)
        if len(large):
            step = mean[large] - mean[i]
            scatter = self.scatter[i] + self.scatter[large]
            scatter += share[large, None, None] * step[:, :, None] * step[:, None, :]
            sign, log_det = np.linalg.slogdet(scatter / size[large, None, None])
            inner[large] = np.logaddexp(np.where(sign > 0, log_det, -np.inf), inner[large])
        return size * inner

    def merge_cheapest(self) -> None:
        """Merge the two clusters whose union costs least; the first of equals."""
        i = int(self.lowest[: self.n].argmin())
        j = int(self.nearest[i])
        i, j = min(i, j), max(i, j)
        size = self.size[i] + self.size[j]
        step = self.mean[j] - self.mean[i]
        share = self.size[i] * self.size[j] / size
        self.term[i] += self.term[j] + self.cost[i, j]
        self.scatter[i] += self.scatter[j] + share * np.outer(step, step)
        self.trace[i] += self.trace[j] + share * float(step @ step)
        self.mean[i] += step * (self.size[j] / size)
        self.square[i] = float(self.mean[i] @ self.mean[i])
        self.size[i] = size
        self.labels[self.labels == j] = i
        stale = (self.nearest[: self.n] == i) | (self.nearest[: self.n] == j)
        stale = self._close_gap(j, stale)
        self._update_costs(i, stale)

    def _close_gap(self, j: int, stale: np.ndarray) -> np.ndarray:
        """Move the last cluster to the free place ``j``."""
        last = self.n - 1
        self.n = last
        for array in (self.size, self.mean, self.square, self.scatter, self.trace, self.term):
            array[j] = array[last]
        for array in (self.lowest, self.nearest, stale):
            array[j] = array[last]
        self.labels[self.labels == last] = j
        self.nearest[self.nearest == last] = j
        self.cost[j, :last] = self.cost[last, :last]
        self.cost[:last, j] = self.cost[last, :last]
        if j < last:
            self.cost[j, j] = np.inf
        return stale[:last]

    def _update_costs(self, i: int, stale: np.ndarray) -> None:
        """Recompute the costs of cluster ``i``; ``stale`` marks the rows whose cheapest partner has changed."""
        n = self.n
        new = self._union_terms(i) - self.term[i] - self.term[:n]
        new[i] = np.inf
        self.cost[i, :n] = self.cost[:n, i] = new
        cheaper = new < self.lowest[:n]
        self.lowest[:n][cheaper] = new[cheaper]
        self.nearest[:n][cheaper] = i
        stale[i] = True
        for row in np.flatnonzero(stale):
            self.nearest[row] = self.cost[row, :n].argmin()
            self.lowest[row] = self.cost[row, self.nearest[row]]
