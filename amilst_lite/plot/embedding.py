"""The embedding in two dimensions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from ..errors import InputError, MissingExtraError
from .colors import Labels
from .figure import INK, RASTERIZE_FROM, legend, legend_inches, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["umap"]


def umap(
    embedding: np.ndarray,
    labels: ArrayLike,
    *,
    n_neighbors: int = 15,
    min_dist: float = 0.3,
    seed: int = 0,
    colors: Mapping[str, str] | None = None,
) -> Figure:
    """Draw the embedding in two dimensions (UMAP), with the colors of `domains`.

    Parameters
    ----------
    embedding : ndarray, shape (n_spots, n_dimensions)
    labels : array-like, shape (n_spots,)
        Domains, or an annotation.
    n_neighbors, min_dist
        Parameters of UMAP: size of the neighborhood, and minimum distance between drawn points.
    seed : int
        Random state of UMAP. It makes the figure reproducible and restricts UMAP to one thread.
    colors : mapping, optional
        As in `domains`.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    InputError
        The lengths differ, a value is not finite, or there are too few spots for ``n_neighbors``.
    MissingExtraError
        umap-learn or matplotlib is not installed.

    References
    ----------
    McInnes, Healy and Melville, arXiv:1802.03426.
    """
    values = np.asarray(embedding, dtype=np.float32)
    groups = Labels.of(labels)
    if values.ndim != 2 or len(values) != len(groups.codes):
        raise InputError(
            f"embedding must have one row for each of the {len(groups.codes)} labels; "
            f"found shape {values.shape}."
        )
    if not np.isfinite(values).all():
        raise InputError("embedding must be finite; found NaN or infinite values.")
    if not 2 <= n_neighbors < len(values):
        raise InputError(
            f"n_neighbors must lie in [2, {len(values) - 1}] for {len(values)} spots; found {n_neighbors}."
        )
    figure = new_figure(5.2 + legend_inches([*groups.names, "none"]), 5.0)
    chosen = groups.colors(colors)
    spot_colors = groups.spot_colors(chosen)
    try:
        from umap import UMAP
    except ImportError as error:
        raise MissingExtraError.for_package("umap-learn", "umap", "drawing a UMAP") from error
    reducer = UMAP(n_neighbors=n_neighbors, min_dist=min_dist, random_state=seed, n_jobs=1)
    points = reducer.fit_transform(values)  # (n, 2)
    axis = figure.subplots()
    # In random order, so that the last domain does not cover the others
    order = np.random.default_rng(seed).permutation(len(points))
    axis.scatter(
        points[order, 0],
        points[order, 1],
        c=spot_colors[order],
        s=float(np.clip(12_000 / len(points), 0.3, 14)),
        linewidths=0,
        rasterized=len(points) > RASTERIZE_FROM,
    )
    axis.set(xticks=[], yticks=[])
    axis.set_xlabel("UMAP 1", loc="left", fontsize=9, color=INK)
    axis.set_ylabel("UMAP 2", loc="bottom", fontsize=9, color=INK)
    axis.spines[["top", "right"]].set_visible(False)
    legend(axis, groups.entries(chosen))
    return figure
