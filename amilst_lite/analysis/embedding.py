"""The embedding in two dimensions."""

from __future__ import annotations

import anndata as ad
import numpy as np

from .. import keys
from ..plot.embedding import umap_of
from ..progress import begin
from ..slots import representation_of

__all__ = ["umap"]


def umap(
    adata: ad.AnnData,
    *,
    n_neighbors: int = 15,
    min_dist: float = 0.3,
    seed: int = 0,
    key_added: str = keys.DEFAULT_KEY,
) -> np.ndarray:
    """Compute the UMAP of the embedding, as `amilst run --umap` does.

    `amilst_lite.plot.umap`, the report, and ``scanpy.pl.embedding(adata, "X_amilst_umap")`` draw it.

    Parameters
    ----------
    adata : AnnData
        With the results of a run, of which ``obsm["X_amilst"]`` is embedded.
    n_neighbors, min_dist
        Parameters of UMAP: size of the neighborhood, and minimum distance between points.
    seed : int
        Random state of UMAP. It makes the result reproducible and restricts UMAP to one thread.
    key_added : str
        As in `identify_domains`.

    Returns
    -------
    ndarray of float32, (n_spots, 2)
        Also written to ``obsm["X_amilst_umap"]``.

    Raises
    ------
    MissingKeyError
        There is no embedding.
    InputError
        A value is not finite, or there are too few spots for ``n_neighbors``.
    MissingExtraError
        umap-learn is not installed (extra ``umap``).

    References
    ----------
    McInnes, Healy and Melville, arXiv:1802.03426.
    """
    names = keys.ResultKeys(key_added)
    embedding = representation_of(adata, names.embedding)
    begin("UMAP")
    points = umap_of(embedding, n_neighbors=n_neighbors, min_dist=min_dist, seed=seed)
    adata.obsm[names.umap] = points
    return points
