"""Labels from which the mixture's EM starts: short k-means runs, and model-based agglomeration."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from .agglomeration import MAX_ROWS, agglomerate, principal_axes
from .kmeans import assign, improve, lloyd, plus_plus

_SAMPLED_ROWS = 1000
"""Rows agglomerated where there are more than `MAX_ROWS`."""
_KMEANS_ROWS = 5000
"""Of more rows, short k-means runs see so many, or 100 per component.

A section of 82,382 cells takes a tenth less time in all; the domains of different seeds differ a little more.
"""


def kmeans_labels(
    X: np.ndarray, n_components: int, n_runs: int, device: torch.device, generator: torch.Generator
) -> torch.Tensor:
    """Labels of short k-means runs, alternating between standardized, whitened and half whitened rows.

    None of these spaces leads to the best optimum on every section.

    Parameters
    ----------
    X : ndarray of shape (n, d), float64
    n_components, n_runs : int
    device : torch.device
    generator : torch.Generator
        On the CPU.

    Returns
    -------
    torch.Tensor of shape (n_runs, n), int32
        On ``device``.
    """
    rotated, variances = principal_axes(X)
    return short_kmeans(
        [rotated / variances**power for power in (0.0, 0.5, 0.25)], n_components, n_runs, device, generator
    )


def short_kmeans(
    spaces: Sequence[np.ndarray],
    n_components: int,
    n_runs: int,
    device: torch.device,
    generator: torch.Generator,
) -> torch.Tensor:
    """Labels of short k-means runs that alternate between versions of the same rows: (n_runs, n), int32."""
    labels = []
    n = len(spaces[0])
    seen = np.linspace(0, n - 1, min(n, max(_KMEANS_ROWS, 100 * n_components))).astype(np.int64)
    for place, rows in enumerate(spaces):
        runs = len(range(place, n_runs, len(spaces)))
        if runs:
            space = torch.from_numpy(rows).to(torch.float32).to(device)
            some = space if len(seen) == n else space[torch.from_numpy(seen).to(device)]
            centers = plus_plus(some, n_components, runs, generator)
            centers, inertia, _ = lloyd(some, centers, max_iter=10, tol=0.0)
            if place == 0 and n_runs < 5:  # with so few runs, one is improved
                centers[0], _ = improve(some, centers[0], inertia[0], 0.0, generator)
            labels.append(assign(space, centers)[0])
    return torch.cat(labels)


def agglomerated_labels(X: np.ndarray, n_components: int) -> torch.Tensor:
    """Labels by model-based agglomeration, −1 for rows that were not sampled: (1, n), int64."""
    n = len(X)
    labels = torch.full((1, n), -1, dtype=torch.long)
    if n <= MAX_ROWS:
        labels[0] = torch.from_numpy(agglomerate(X, n_components))
    else:
        # a fixed seed: this start is the same for every random_state
        chosen = np.sort(np.random.default_rng(0).permutation(n)[: max(_SAMPLED_ROWS, 20 * n_components)])
        labels[0, chosen] = torch.from_numpy(agglomerate(X[chosen], n_components))
    return labels
