"""Moves from one local optimum of a mixture to others that EM does not reach: one component fewer here, one more there.

With many components, nearly every start leaves two groups in one component and gives another component to a few rows
between the groups. EM cannot repair that; merging two components and splitting a third one at once can (Ueda,
Nakano, Ghahramani and Hinton 2000).
"""

from __future__ import annotations

import torch

__all__ = ["split_and_merge"]

_MERGED, _SPLIT = 4, 4
"""Pairs that are merged, and components that are split for each of them."""


def split_and_merge(X: torch.Tensor, labels: torch.Tensor, n_components: int) -> torch.Tensor:
    """Labels after one move each, the most promising ones.

    Merged are the pairs whose union increases the scatter within components least, in units of the pooled covariance;
    split, across their longest axis, are the components whose variance along it exceeds the pooled one most, weighted
    by their size as in the likelihood.

    Parameters
    ----------
    X : torch.Tensor of shape (n, d)
    labels : torch.Tensor of shape (n,), int64
        In 0..K-1.
    n_components : int
        K >= 3.

    Returns
    -------
    torch.Tensor of shape (R, n), int64
        At most 16 moves; none if no component can be split.
    """
    X = X.double()
    n, d = X.shape
    one_hot = torch.nn.functional.one_hot(labels, n_components).double()
    sizes = one_hot.sum(0)
    means = (one_hot.T @ X) / sizes.clamp(min=1)[:, None]
    centered = X - means[labels]
    pooled = centered.T @ centered / n
    pooled.diagonal().add_(1e-9 * pooled.diagonal().mean() + 1e-300)
    whiten = torch.linalg.inv(torch.linalg.cholesky(pooled)).T
    centered, means = centered @ whiten, means @ whiten

    gain = torch.zeros(n_components, dtype=torch.float64)
    upper = torch.zeros(n, dtype=torch.bool)  # above the mean along the longest axis of its component
    for k in range(n_components):
        members = torch.nonzero(labels == k).flatten()
        if len(members) > d:
            own = centered[members]
            values, axes = torch.linalg.eigh(own.T @ own / len(own))
            upper[members] = own @ axes[:, -1] > 0
            gain[k] = len(members) * max(float(values[-1] - 1 - values[-1].log()), 0.0)
    pairs = torch.triu_indices(n_components, n_components, 1)
    first, second = sizes[pairs[0]], sizes[pairs[1]]
    distance = (means[pairs[0]] - means[pairs[1]]).square().sum(1)
    cost = first * second / (first + second).clamp(min=1) * distance

    moves = []
    by_gain = [k for k in torch.sort(gain, descending=True, stable=True).indices.tolist() if gain[k] > 0]
    for place in torch.sort(cost, stable=True).indices[:_MERGED].tolist():
        kept, freed = pairs[:, place].tolist()
        for k in [k for k in by_gain if k not in (kept, freed)][:_SPLIT]:
            moved = torch.where(labels == freed, kept, labels)
            moves.append(torch.where((labels == k) & upper, freed, moved))
    return torch.stack(moves) if moves else labels.new_empty(0, n)
