"""Domains numbered along the tissue or by their similarity."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import cdist, pdist, squareform

from .. import keys
from ..errors import InputError, MissingKeyError
from ..spatial.neighbors import check_coordinates
from .colors import Labels, gradual_palette
from .sections import split_sections
from .slots import obs_column, recorded_sections

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["order_domains"]

_MOST_SPOTS = 1_000  # of each domain, between which distances are measured
_NEAR = (
    0.1  # share of the other domain that is near: more than the few spots that were assigned to it by mistake
)


def order_domains(
    adata: AnnData,
    by: str = "position",
    *,
    key: str | None = None,
    sample_key: str | None = None,
    key_added: str = keys.DEFAULT_KEY,
) -> dict[str, str]:
    """Number the domains so that neighbors, or similar ones, have adjacent numbers and similar colors.

    The columns of the run are left as they are: models and tables refer to their numbers. Draw the new ones with
    ``domains(adata, "amilst_domain_ordered", refined="amilst_domain_refined_ordered")``.

    Parameters
    ----------
    adata : AnnData
        With domains in ``obs``. Written: ``obs["<key>_ordered"]``, categorical "1".."K"; the same for
        ``obs["<key>_refined"]``, if there is such a column; and their colors in ``uns["<column>_colors"]``.
    by : {"position", "similarity"}
        ``"position"``: the distance of two domains is the median distance of the spots of each to the nearest tenth
        of the other, in the sections in which both occur; made for layered tissue. ``"similarity"``: the distance
        of their means in the embedding, ``obsm["X_amilst"]``.
    key : str, optional
        Column of ``obs`` with the domains. Default: that of the run.
    sample_key : str, optional
        Column of ``obs`` with the section of each spot. Default: that of the run.
    key_added : str
        As in `identify_domains`.

    Returns
    -------
    dict of str to str
        New number by label.

    Raises
    ------
    MissingKeyError
        A column or matrix is missing.
    InputError
        ``by`` is unknown, or a spot has no section.
    MissingExtraError
        matplotlib, from which the colors are, is not installed.

    Notes
    -----
    The order is that of the leaves of a tree (average linkage) in which adjacent leaves are as close as the tree
    allows (Bar-Joseph, Gifford and Jaakkola, Bioinformatics 2001). Of its two directions, the one is taken in which
    the first domain is above the last, or, by similarity, in which it has the lower number.
    """
    names = keys.ResultKeys(key_added)
    key = names.domain if key is None else key
    labels = Labels.of(obs_column(adata, key))
    present = np.flatnonzero(np.bincount(labels.codes[labels.codes >= 0], minlength=len(labels.names)))
    if by == "position":
        points = check_coordinates(_matrix(adata, keys.SPATIAL))
        sections = split_sections(points, recorded_sections(adata, key, sample_key)).codes
        distances = _distances(points, sections, labels.codes, present)
        height = np.array([points[labels.codes == code, 1].mean() for code in present])
    elif by == "similarity":
        embedding = np.asarray(_matrix(adata, names.embedding), dtype=np.float64)
        distances = squareform(
            pdist(np.array([embedding[labels.codes == code].mean(axis=0) for code in present]))
        )
        height = np.arange(len(present))
    else:
        raise InputError(f"by must be 'position' or 'similarity'; found {by!r}.")
    order = np.arange(len(present))
    if len(present) > 2:
        order = leaves_list(linkage(squareform(distances, checks=False), "average", optimal_ordering=True))
    if height[order[0]] > height[order[-1]]:
        order = order[::-1]
    new = {labels.names[present[place]]: str(i + 1) for i, place in enumerate(order)}
    colors = gradual_palette(len(new))
    for column in (key, f"{key}_refined"):
        if column in adata.obs:
            values = Labels.of(adata.obs[column])
            codes = np.array([int(new.get(name, 0)) - 1 for name in values.names] + [-1])[values.codes]
            adata.obs[f"{column}_ordered"] = pd.Categorical.from_codes(codes, list(new.values()))
            adata.uns[f"{column}_ordered_colors"] = colors
    return new


def _matrix(adata: AnnData, key: str) -> np.ndarray:
    if key not in adata.obsm:
        found = ", ".join(map(repr, adata.obsm)) or "nothing"
        raise MissingKeyError(f"obsm has no {key!r}; it has {found}.")
    matrix: np.ndarray = adata.obsm[key]
    return matrix


def _distances(
    points: np.ndarray, sections: np.ndarray, codes: np.ndarray, present: np.ndarray
) -> np.ndarray:
    """Distances between domains (K, K), symmetric: means over the sections in which both occur."""
    total, count = np.zeros((2, len(present), len(present)))
    for section in np.unique(sections):
        groups = [_some(points[(sections == section) & (codes == code)]) for code in present]
        for i, j in itertools.combinations(range(len(groups)), 2):
            if len(groups[i]) and len(groups[j]):
                pairs = cdist(groups[i], groups[j])
                near = [np.median(np.quantile(pairs, _NEAR, axis=axis)) for axis in (0, 1)]
                total[[i, j], [j, i]] += np.mean(near)
                count[[i, j], [j, i]] += 1
    distances = np.divide(total, count, out=np.zeros_like(total), where=count > 0)
    # domains that never meet are far apart
    return np.where(count > 0, distances, 2 * distances.max()) * (1 - np.eye(len(present)))


def _some(points: np.ndarray) -> np.ndarray:
    """At most `_MOST_SPOTS` of the points, spread over their extent and independent of their order."""
    points = points[np.lexsort(points.T)]
    return points[:: max(1, -(-len(points) // _MOST_SPOTS))]
