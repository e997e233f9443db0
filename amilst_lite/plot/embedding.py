"""The embedding in two dimensions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from .. import keys
from ..errors import InputError, MissingExtraError, MissingKeyError
from .colors import Labels, stored_colors
from .figure import INK, RASTERIZE_FROM, SIZE, legend_below, new_figure, require_matplotlib
from .slots import is_anndata, obs_column

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.figure import Figure

__all__ = ["umap", "umap_of"]

_SIDE = 3.6  # inches
_N_NEIGHBORS, _MIN_DIST = 15, 0.3


def umap_of(
    embedding: np.ndarray, *, n_neighbors: int | None = None, min_dist: float | None = None, seed: int = 0
) -> np.ndarray:
    """Compute the UMAP of an embedding.

    Parameters
    ----------
    embedding : ndarray, shape (n_spots, n_dimensions)
    n_neighbors, min_dist, seed
        As in `umap`.

    Returns
    -------
    ndarray of float32, shape (n_spots, 2)

    Raises
    ------
    InputError
        A value is not finite, or there are too few spots for ``n_neighbors``.
    MissingExtraError
        umap-learn is not installed.
    """
    values = np.asarray(embedding, dtype=np.float32)
    n_neighbors = _N_NEIGHBORS if n_neighbors is None else n_neighbors
    if values.ndim != 2 or not np.isfinite(values).all():
        raise InputError(
            f"embedding must be finite, with one row for each spot; found shape {values.shape}"
            f"{' with NaN or infinite values' if values.ndim == 2 else ''}."
        )
    if not 2 <= n_neighbors < len(values):
        raise InputError(
            f"n_neighbors must lie in [2, {len(values) - 1}] for {len(values)} spots; found {n_neighbors}."
        )
    try:
        from umap import UMAP
    except ImportError as error:
        raise MissingExtraError.for_package("umap-learn", "umap", "computing a UMAP") from error
    min_dist = _MIN_DIST if min_dist is None else min_dist
    reducer = UMAP(n_neighbors=n_neighbors, min_dist=min_dist, random_state=seed, n_jobs=1)
    return np.asarray(reducer.fit_transform(values), dtype=np.float32)


def umap(
    embedding: AnnData | np.ndarray,
    labels: ArrayLike | str | None = None,
    *,
    key_added: str = keys.DEFAULT_KEY,
    n_neighbors: int | None = None,
    min_dist: float | None = None,
    seed: int | None = None,
    colors: Mapping[str, str] | None = None,
) -> Figure:
    """Draw the embedding in two dimensions (UMAP), with the colors of `domains`.

    Parameters
    ----------
    embedding : AnnData, or ndarray of shape (n_spots, n_dimensions)
        With the results of a run, of which ``obsm["X_amilst_umap"]`` is drawn if `amilst_lite.analysis.umap` has
        written it, otherwise the UMAP of ``obsm["X_amilst"]``; or the embedding.
    labels : str, or array-like of shape (n_spots,)
        Domains, or an annotation; for an AnnData, the column of ``obs`` that holds them, by default the domains of
        the run.
    key_added : str
        As in `identify_domains`, for an AnnData.
    n_neighbors, min_dist
        Parameters of UMAP: size of the neighborhood (default: 15), and minimum distance between drawn points (0.3).
        With any of them, or a seed, the UMAP is computed, even if the AnnData has one.
    seed : int
        Random state of UMAP (default: 0). It makes the figure reproducible and restricts UMAP to one thread.
    colors : mapping, optional
        As in `domains`; for an AnnData, they come before those in ``uns["<column>_colors"]``.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    MissingKeyError
        The AnnData has no embedding, or no such column.
    InputError
        There are no labels, the lengths differ, a value is not finite, or there are too few spots for ``n_neighbors``.
    MissingExtraError
        umap-learn or matplotlib is not installed.

    References
    ----------
    McInnes, Healy and Melville, arXiv:1802.03426.
    """
    require_matplotlib()
    stored = None
    if is_anndata(embedding):
        names = keys.ResultKeys(key_added)
        if n_neighbors is min_dist is seed is None:
            stored = embedding.obsm.get(names.umap)
        embedding, labels, colors = _of_run(embedding, labels, colors, names)
    if labels is None or isinstance(labels, str):
        raise InputError(f"expected a label for each row of the embedding; found {labels!r}.")
    groups = Labels.of(labels)
    if np.ndim(embedding) != 2 or len(embedding) != len(groups.codes):
        raise InputError(
            f"embedding must have one row for each of the {len(groups.codes)} labels; "
            f"found shape {np.shape(embedding)}."
        )
    chosen = groups.colors(colors)
    entries = groups.legend(chosen)
    figure = new_figure(_SIDE + 0.3, _SIDE + 0.3)
    spot_colors = groups.spot_colors(chosen)
    seed = 0 if seed is None else seed
    points = stored
    if points is None:
        points = umap_of(embedding, n_neighbors=n_neighbors, min_dist=min_dist, seed=seed)  # (n, 2)
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
    axis.set_xlabel("UMAP 1", loc="left", fontsize=SIZE, color=INK)
    axis.set_ylabel("UMAP 2", loc="bottom", fontsize=SIZE, color=INK)
    axis.spines[["top", "right"]].set_visible(False)
    legend_below(axis, entries, (_SIDE, _SIDE), 0.3)
    return figure


def _of_run(
    adata: AnnData, labels: ArrayLike | str | None, colors: Mapping[str, str] | None, names: keys.ResultKeys
) -> tuple[np.ndarray, ArrayLike, Mapping[str, str]]:
    """Embedding, labels and colors in an AnnData."""
    if names.embedding not in adata.obsm:
        raise MissingKeyError(
            f"obsm has no {names.embedding!r}; it has {', '.join(map(repr, adata.obsm)) or 'nothing'}. Run "
            "identify_domains first."
        )
    if labels is None:
        labels = names.domain
    if not isinstance(labels, str):
        return adata.obsm[names.embedding], labels, colors or {}
    stored = stored_colors(adata, labels) if labels in adata.obs else {}
    return adata.obsm[names.embedding], obs_column(adata, labels), {**stored, **(colors or {})}
