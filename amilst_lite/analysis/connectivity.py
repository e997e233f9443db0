"""How domains are connected, in space or in the embedding, and the depth within layered tissue."""

from __future__ import annotations

from dataclasses import dataclass

import anndata as ad
import numpy as np
import pandas as pd
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree

from .. import keys
from ..errors import InputError, MissingKeyError
from ..slots import coordinates_of, domains_of, graph_of, sections_of
from ..spatial.neighbors import check_coordinates, nearest_neighbors
from ..validation import check_number
from .neighborhood import contact_pairs, count_contacts, distance_to, parts_within

__all__ = ["Depth", "connectivity", "domain_connectivity", "layer_depth", "layer_order", "tissue_depth"]

_SPACES = ("spatial", "embedding")
_STRAY = 0.01  # share of a section below which connected spots do not bound a layer
_END = 0.95  # quantile of the distances in an outermost layer that is its thickness


@dataclass(frozen=True, eq=False)
class Depth:
    """Depth within layered tissue.

    Attributes
    ----------
    depth : ndarray of float64, (n_spots,)
        In the unit of the coordinates, from the first layer on. NaN in a section in which the spot's layer has no
        border with any other.
    thickness : ndarray of float64, (n_layers,)
        Of the layers, in their order.
    """

    depth: np.ndarray
    thickness: np.ndarray


# --- connectivity ---------------------------------------------------------------------------------


def connectivity(pairs: np.ndarray, codes: np.ndarray, n_domains: int) -> np.ndarray:
    """Connectivity between domains in a graph, as in PAGA.

    Parameters
    ----------
    pairs : ndarray of int, (2, n_pairs)
        Neighbors, each pair once.
    codes : ndarray of int64, (n_spots,)
        Domain of each spot, 0..K-1.
    n_domains : int
        K.

    Returns
    -------
    ndarray of float64, (K, K)
        Symmetric, in [0, 1], zero on the diagonal.

    Notes
    -----
    With every edge counted in both directions, e_i of them beginning in domain i, n_i spots in it and n in all, e_ij
    from i to j and as many back, the connectivity is the ratio of edges to those expected if edges were attached to
    random spots, at most 1:

        c_ij = min(1, 2 e_ij / ((e_i n_j + e_j n_i) / (n - 1)))

    References
    ----------
    Wolf et al., Genome Biology 2019, as version 1.2 of scanpy's ``tl.paga`` computes it.
    """
    count = count_contacts(pairs, codes, n_domains).astype(np.float64)
    between = count - np.diag(np.diag(count))
    begin = between.sum(axis=1) + 2 * np.diag(count)
    size = np.bincount(codes, minlength=n_domains)
    expected = (np.outer(begin, size) + np.outer(size, begin)) / (len(codes) - 1)
    return np.minimum(np.divide(2 * between, expected, out=np.zeros_like(between), where=expected > 0), 1)


def domain_connectivity(
    adata: ad.AnnData,
    space: str = "spatial",
    *,
    n_neighbors: int = 15,
    use_rep: str | None = None,
    seed: int = 0,
    domain: str | None = None,
    connectivities_key: str | None = None,
    sample_key: str | None = None,
    key_added: str = keys.DEFAULT_KEY,
) -> pd.DataFrame:
    """Connectivity between domains (PAGA) in the tissue or in the embedding.

    Parameters
    ----------
    adata : AnnData
        With domains in ``obs``.
    space : {"spatial", "embedding"}
        The neighbor graph in ``obsp``, within sections, or one of nearest neighbors in the embedding.
    n_neighbors : int
        In the embedding.
    use_rep : str, optional
        Matrix of ``obsm`` to use as the embedding. Default: what the run ``key_added`` has clustered.
    seed : int
        Of the approximate search in the embedding.
    domain, connectivities_key, sample_key, key_added
        As in `amilst_lite.analysis.neighborhood.neighborhood_enrichment`.

    Returns
    -------
    DataFrame
        K × K, with the domains as index and columns; see `connectivity`. Also written to
        ``uns["amilst_connectivity"]``: ``domains``, and for each space computed so far a dictionary of the matrix
        (``connectivities``) and its maximum spanning tree (``tree``, of the same shape, symmetric).

    Raises
    ------
    MissingKeyError
        No graph, no embedding or no such column.
    InputError
        Fewer than two domains, too many neighbors, or an unknown space.
    """
    if space not in _SPACES:
        raise InputError(f"space must be one of {', '.join(_SPACES)}; found {space!r}.")
    labels = domains_of(adata, key_added, domain, at_least=2)
    names = keys.ResultKeys(key_added)
    if space == "spatial":
        sections = sections_of(adata, key_added, sample_key).codes
        pairs = contact_pairs(graph_of(adata, key_added, connectivities_key), sections)
    else:
        points = _embedding(adata, names.embedding if use_rep is None else use_rep)
        check_number("n_neighbors", n_neighbors, 1, integer=True)
        if n_neighbors >= adata.n_obs:
            raise InputError(
                f"n_neighbors must be below the number of spots, {adata.n_obs}; found {n_neighbors}."
            )
        neighbors, _ = nearest_neighbors(points, n_neighbors, seed=seed)
        pairs = contact_pairs(neighbors, np.zeros(adata.n_obs, np.int64))
    found = connectivity(pairs, labels.codes, labels.n)
    # the spanning tree of least resistance; 0 means no edge
    tree = minimum_spanning_tree(np.where(found > 0, 1 / np.where(found > 0, found, 1), 0)).toarray()
    tree = np.where(tree + tree.T > 0, found, 0)
    earlier = adata.uns.get(names.connectivity, {})
    domains = np.asarray(labels.names, dtype=object)
    if not np.array_equal(earlier.get("domains", ()), domains):
        earlier = {}
    adata.uns[names.connectivity] = {
        **earlier,
        "domains": domains,
        space: {"connectivities": found, "tree": tree},
    }
    return pd.DataFrame(found, index=pd.Index(labels.names, name="domain"), columns=labels.names)


def _embedding(adata: ad.AnnData, key: str) -> np.ndarray:
    if key not in adata.obsm:
        raise MissingKeyError(
            f"obsm has no {key!r}; it has {', '.join(map(repr, adata.obsm)) or 'nothing'}. Run identify_domains first, "
            "or name the embedding (use_rep)."
        )
    points: np.ndarray = np.asarray(adata.obsm[key], dtype=np.float64)
    if points.ndim != 2 or not np.isfinite(points).all():
        raise InputError(f"obsm[{key!r}] must be a finite matrix of spots × features.")
    return points


# --- depth ----------------------------------------------------------------------------------------


def layer_order(contacts: np.ndarray, first: int | None = None) -> np.ndarray:
    """Order of layers in which neighbors touch most.

    Parameters
    ----------
    contacts : ndarray, (K, K)
        Symmetric; the diagonal is ignored.
    first : int, optional
        A layer that comes in the first half of the order. Default: of the two outermost layers, that of lower number
        is first.

    Returns
    -------
    ndarray of int64, (K,)
        The layers in their order.

    Raises
    ------
    InputError
        The contacts do not connect all layers.

    Notes
    -----
    Spectral seriation: layers are sorted by the second eigenvector of the normalized Laplacian of the contacts
    (Atkins, Boman and Hendrickson 1998), which recovers a chain, and tolerates contacts of spots that were assigned
    to the wrong layer.
    """
    between = contacts.astype(np.float64) - np.diag(np.diag(contacts))
    if connected_components(between, directed=False)[0] > 1:
        raise InputError(
            "the domains have no common order, because their contacts do not connect all of them. Select the domains "
            "of one layered tissue (layers)."
        )
    degree = between.sum(axis=1)
    root = np.sqrt(degree)
    laplacian = np.eye(len(degree)) - between / np.outer(root, root)
    vector = np.linalg.eigh(laplacian)[1][:, 1] / root
    order = np.argsort(vector, kind="stable")
    reverse = (
        order[0] > order[-1] if first is None else np.flatnonzero(order == first)[0] > (len(order) - 1) / 2
    )
    return order[::-1] if reverse else order


def layer_depth(
    points: np.ndarray, rank: np.ndarray, n_layers: int, pairs: np.ndarray, sections: np.ndarray
) -> Depth:
    """Depth of every spot within ordered layers.

    Parameters
    ----------
    points : ndarray of float64, (n_spots, 2 or 3)
    rank : ndarray of int64, (n_spots,)
        Place of the spot's layer in the order, 0..n_layers-1.
    n_layers : int
        At least 2.
    pairs : ndarray of int, (2, n_pairs)
        Neighbors, see `amilst_lite.analysis.neighborhood.contact_pairs`.
    sections : ndarray of int64, (n_spots,)

    Returns
    -------
    Depth

    Notes
    -----
    With a spot's distances u to the nearest spot of an earlier layer and v to the nearest of a later one, its depth
    within its layer is u / (u + v) of the layer's thickness, the median of u + v. An outermost layer has one border
    only: its thickness is the 95 % quantile of the distance to it, and spots beyond have the depth of its edge. Depth
    is the thickness of all earlier layers plus the depth within. Connected spots that make up less than 1 % of their
    section are no border.
    """
    thickness = np.zeros(n_layers)
    within = np.full(len(rank), np.nan)
    size = np.bincount(sections)
    before, after = np.full((2, len(rank)), np.inf)
    for border in range(n_layers - 1):
        above = rank <= border
        part = parts_within(pairs, above.astype(np.int64))
        large = np.bincount(part)[part] >= _STRAY * size[sections]
        upper, lower = rank == border, rank == border + 1
        after[upper] = distance_to(points, ~above & large, sections, upper)[upper]
        before[lower] = distance_to(points, above & large, sections, lower)[lower]
    for layer in range(n_layers):
        own = rank == layer
        u, v = before[own], after[own]
        if layer in (0, n_layers - 1):
            distance = v if layer == 0 else u
            known = np.isfinite(distance)
            thickness[layer] = np.quantile(distance[known], _END) if known.any() else 0.0
            share = np.minimum(distance / max(thickness[layer], np.finfo(float).tiny), 1)
            share = np.where(known, 1 - share if layer == 0 else share, np.nan)
        else:
            both = np.isfinite(u) & np.isfinite(v)
            thickness[layer] = np.median((u + v)[both]) if both.any() else 0.0
            with np.errstate(invalid="ignore"):
                share = np.where(both, u / (u + v), np.nan)
        within[own] = share
    start = np.cumsum(thickness) - thickness
    return Depth(depth=start[rank] + within * thickness[rank], thickness=thickness)


def tissue_depth(
    adata: ad.AnnData,
    layers: list[str] | None = None,
    *,
    first: str | None = None,
    domain: str | None = None,
    connectivities_key: str | None = None,
    sample_key: str | None = None,
    key_added: str = keys.DEFAULT_KEY,
) -> pd.DataFrame:
    """Order the domains of layered tissue by their contacts, and compute the depth of every spot within them.

    Parameters
    ----------
    adata : AnnData
        With domains in ``obs``, coordinates in ``obsm["spatial"]`` and a neighbor graph in ``obsp``.
    layers : list of str, optional
        The domains that are layers, in their order. Default: all, in the order of `layer_order`. Other spots have no
        depth.
    first : str, optional
        A domain near depth 0, when the order is computed. Default: of the two outermost domains, the first category.
    domain : str, optional
        Column of ``obs`` with the domains. Default: the refined domains of the run ``key_added``.
    connectivities_key, sample_key, key_added
        As in `amilst_lite.analysis.neighborhood.neighborhood_enrichment`.

    Returns
    -------
    DataFrame
        Also written to ``uns["amilst_layers"]``: one row per layer, in their order, ``domain``, ``thickness`` and
        ``start``, in the unit of the coordinates, see `layer_depth`. The depth of the spots is written to
        ``obs["amilst_layer_depth"]``, as a share of the whole: 0 at the outer edge of the first layer, 1 at that of the
        last; NaN for spots without one.

    Raises
    ------
    MissingKeyError
        No coordinates, no graph or no such column.
    InputError
        Fewer than two layers, an unknown one, or contacts that do not connect all domains.
    """
    names = keys.ResultKeys(key_added)
    labels = domains_of(adata, key_added, names.refined if domain is None else domain, at_least=2)
    sections = sections_of(adata, key_added, sample_key).codes
    points = check_coordinates(coordinates_of(adata))
    pairs = contact_pairs(graph_of(adata, key_added, connectivities_key), sections)
    for name in [*(layers or []), *([] if first is None else [first])]:
        if name not in labels.names:
            raise InputError(
                f"there is no domain {name!r}; the domains are {', '.join(map(repr, labels.names))}."
            )
    if layers is None:
        number = None if first is None else labels.names.index(first)
        order = layer_order(count_contacts(pairs, labels.codes, labels.n), number)
    elif len(set(layers)) < max(2, len(layers)):
        raise InputError(f"layers must be at least two different domains; found {layers!r}.")
    else:
        order = np.array([labels.names.index(name) for name in layers])
    place = np.full(labels.n, -1)
    place[order] = np.arange(len(order))
    rank = place[labels.codes]
    used = np.flatnonzero(rank >= 0)
    renumbered = np.full(adata.n_obs, -1)
    renumbered[used] = np.arange(len(used))
    inside = renumbered[pairs[:, (rank[pairs] >= 0).all(axis=0)]]
    found = layer_depth(points[used], rank[used], len(order), inside, sections[used])
    depth = np.full(adata.n_obs, np.nan)
    total = found.thickness.sum()
    depth[used] = found.depth / total if total > 0 else np.nan
    table = pd.DataFrame(
        {
            "domain": np.asarray(labels.names, dtype=object)[order],
            "thickness": found.thickness,
            "start": np.cumsum(found.thickness) - found.thickness,
        }
    )
    adata.obs[names.layer_depth] = depth.astype(np.float32)
    adata.uns[names.layers] = table
    return table
