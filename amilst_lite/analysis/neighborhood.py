"""Where domains lie: which ones touch, how far every spot is from their borders, what shape they have."""

from __future__ import annotations

from dataclasses import dataclass

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from scipy.spatial import Delaunay, QhullError, cKDTree
from scipy.stats import norm

from .. import keys
from ..runtime import check_seed, n_threads
from ..slots import coordinates_of, domains_of, graph_of, order_of, sections_of
from ..spatial.neighbors import check_coordinates
from ..validation import check_number

__all__ = [
    "Contacts",
    "border_distances",
    "contact_pairs",
    "count_contacts",
    "distance_to",
    "distances_to_borders",
    "domain_shapes",
    "enrichment",
    "neighborhood_enrichment",
    "parts_within",
    "shapes",
]

_LONG_EDGE = (
    3.0  # typical edges of the triangulation beyond which a triangle spans a gap or a concave outline
)


@dataclass(frozen=True, eq=False)
class Contacts:
    """Pairs of neighboring spots by their domains; every array is (K, K), symmetric.

    Attributes
    ----------
    count : ndarray of int64
        Pairs of neighbors with one spot in either domain. On the diagonal, pairs within the domain.
    expected, deviation : ndarray of float64
        Mean and standard deviation of ``count`` over all permutations of the domains among the spots of each section.
    z : ndarray of float64
        (count - expected) / deviation; NaN where all permutations have the same count.
    p : ndarray of float64
        Two-sided, of z under the normal distribution, or by random permutations, if any were made: twice the
        smaller share of permutations, the observed order among them, with at most, or at least, this count.
    """

    count: np.ndarray
    expected: np.ndarray
    deviation: np.ndarray
    z: np.ndarray
    p: np.ndarray


# --- contacts -------------------------------------------------------------------------------------


def contact_pairs(graph: sparse.spmatrix | sparse.sparray, sections: np.ndarray) -> np.ndarray:
    """Pairs of neighboring spots of one section, each once: (2, n_pairs) int64. Weights and directions are ignored."""
    edges = sparse.coo_matrix(graph)
    used = (edges.data != 0) & (edges.row != edges.col) & (sections[edges.row] == sections[edges.col])
    low, high = np.minimum(edges.row[used], edges.col[used]), np.maximum(edges.row[used], edges.col[used])
    pattern = sparse.csr_matrix((np.ones(len(low), np.int8), (low, high)), shape=edges.shape)
    pattern.sum_duplicates()
    source = np.repeat(np.arange(pattern.shape[0]), np.diff(pattern.indptr))
    return np.stack([source, pattern.indices.astype(np.int64)])


def count_contacts(pairs: np.ndarray, codes: np.ndarray, n_domains: int) -> np.ndarray:
    """Pairs of neighbors (2, n_pairs) by the domains of their spots, see `Contacts`; (K, K) int64."""
    first, second = codes[pairs[0]], codes[pairs[1]]
    table = np.bincount(first * n_domains + second, minlength=n_domains**2).reshape(n_domains, n_domains)
    return np.asarray(table + table.T - np.diag(np.diag(table)))


def enrichment(
    pairs: np.ndarray,
    codes: np.ndarray,
    n_domains: int,
    sections: np.ndarray,
    *,
    n_permutations: int = 0,
    seed: int = 0,
) -> Contacts:
    """Contacts between domains, compared with domains that are permuted within each section.

    Parameters
    ----------
    pairs : ndarray of int, (2, n_pairs)
        Neighbors, each pair once, both in one section; see `contact_pairs`.
    codes : ndarray of int64, (n_spots,)
        Domain of each spot, 0..K-1.
    n_domains : int
        K.
    sections : ndarray of int64, (n_spots,)
        Section of each spot, 0, 1, ...
    n_permutations : int
        Random permutations for ``p``. With 0, the normal approximation.
    seed : int
        Of the permutations.

    Returns
    -------
    Contacts

    Notes
    -----
    Mean and variance over all permutations are exact, and need none: they are the moments of join counts under
    sampling without replacement (Cliff and Ord, Spatial Processes, 1981, chapter 2). Time is linear in pairs.
    """
    check_number("n_permutations", n_permutations, 0, integer=True)
    count = count_contacts(pairs, codes, n_domains)
    expected, variance = np.zeros((2, n_domains, n_domains))
    degrees = np.bincount(pairs.ravel(), minlength=len(codes)).astype(np.float64)
    sizes = np.bincount(sections * n_domains + codes, minlength=(sections.max() + 1) * n_domains)
    adjacent = np.bincount(sections, degrees * (degrees - 1))
    n_pairs = np.bincount(sections, degrees) / 2
    for own, of_section, shared in zip(sizes.reshape(-1, n_domains), n_pairs, adjacent, strict=True):
        mean, spread = _join_count_moments(own.astype(np.float64), of_section, shared)
        expected += mean
        variance += spread
    deviation = np.sqrt(np.where(variance > 1e-9 * np.maximum(expected, 1), variance, np.nan))
    z = (count - expected) / deviation
    p = 2 * norm.sf(np.abs(z))
    if n_permutations:
        rng = np.random.default_rng(check_seed(seed))
        by_section = np.argsort(sections, kind="stable")
        at_most, at_least = np.ones((2, n_domains, n_domains))
        permuted = np.empty_like(codes)
        for _ in range(n_permutations):
            permuted[by_section] = codes[np.lexsort((rng.random(len(codes)), sections))]
            other = count_contacts(pairs, permuted, n_domains)
            at_most += other <= count
            at_least += other >= count
        p = np.minimum(2 * np.minimum(at_most, at_least) / (n_permutations + 1), 1)
    return Contacts(count, expected, np.nan_to_num(deviation), z, p)


def _join_count_moments(sizes: np.ndarray, n_pairs: float, shared: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance (K, K) of the contacts of one section over all permutations.

    ``sizes`` (K,) spots of each domain; ``shared`` ordered pairs of edges with a spot in common.
    """
    n = sizes.sum()
    if n < 2 or n_pairs == 0:
        return np.zeros((len(sizes), len(sizes))), np.zeros((len(sizes), len(sizes)))
    # probability that 2, 3 or 4 given spots have given domains: products of sizes over falling factorials of n
    two, three, four = n * (n - 1), n * (n - 1) * (n - 2), n * (n - 1) * (n - 2) * (n - 3)
    less, lesser, least = sizes - 1, sizes - 2, sizes - 3
    disjoint = n_pairs * (n_pairs - 1) - shared
    a, b = sizes[:, None], sizes[None, :]
    same = np.diag_indices(len(sizes))
    one_edge = 2 * a * b
    one_edge[same] = sizes * less
    with_common_spot = a * b * (b - 1) + b * a * (a - 1)
    with_common_spot[same] = sizes * less * lesser
    apart = 4 * a * (a - 1) * b * (b - 1)
    apart[same] = sizes * less * lesser * least
    mean = n_pairs * one_edge / two
    square = mean.copy()
    if shared:
        square += shared * with_common_spot / three
    if disjoint > 0:
        square += disjoint * apart / four
    return mean, square - mean**2


def neighborhood_enrichment(
    adata: ad.AnnData,
    *,
    n_permutations: int = 0,
    seed: int = 0,
    domain: str | None = None,
    connectivities_key: str | None = None,
    sample_key: str | None = None,
    key_added: str = keys.DEFAULT_KEY,
) -> pd.DataFrame:
    """Contacts between domains, and whether they are more or fewer than by chance.

    Parameters
    ----------
    adata : AnnData
        With domains in ``obs`` and a neighbor graph in ``obsp``.
    n_permutations : int
        Random permutations for p-values. With 0, the normal approximation; z needs none, see `enrichment`.
    seed : int
        Of the permutations.
    domain : str, optional
        Column of ``obs`` with the domains. Default: that of the run ``key_added``.
    connectivities_key : str, optional
        The graph in ``obsp``. Default: that of the run ``key_added``, otherwise squidpy's.
    sample_key : str, optional
        Column of ``obs`` with the section of each spot, within which domains are permuted. Default: that of the run.
    key_added : str
        Prefix of the slot written.

    Returns
    -------
    DataFrame
        One row for each pair of domains, a domain and itself included: ``domain``, ``other``, ``contacts`` (pairs of
        neighbors, the length of the common border in edges), ``expected``, ``z``, ``p``, and ``share`` and
        ``share_of_other`` (of the contacts of the domain, and of the other, with different domains; NaN for a domain
        and itself). Also written, as matrices, to ``uns["amilst_enrichment"]``: ``domains``, ``contacts``,
        ``expected``, ``z`` and ``p``.

    Raises
    ------
    MissingKeyError
        No graph or no such column.
    InputError
        Fewer than two domains, or spots without one.
    """
    labels = domains_of(adata, key_added, domain, at_least=2)
    sections = sections_of(adata, key_added, sample_key).codes
    pairs = contact_pairs(graph_of(adata, key_added, connectivities_key), sections)
    order = order_of(adata, sections) if n_permutations else np.arange(adata.n_obs)
    found = enrichment(
        np.argsort(order)[pairs],
        labels.codes[order],
        labels.n,
        sections[order],
        n_permutations=n_permutations,
        seed=seed,
    )
    adata.uns[keys.ResultKeys(key_added).enrichment] = {
        "domains": np.asarray(labels.names, dtype=object),
        "contacts": found.count,
        "expected": found.expected,
        "z": found.z,
        "p": found.p,
    }
    first, second = np.triu_indices(labels.n)
    border = found.count - np.diag(np.diag(found.count))
    totals = border.sum(axis=1).astype(np.float64)
    apart = np.where(first != second, border[first, second], np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        return pd.DataFrame(
            {
                "domain": np.asarray(labels.names, dtype=object)[first],
                "other": np.asarray(labels.names, dtype=object)[second],
                "contacts": found.count[first, second],
                "expected": found.expected[first, second],
                "z": found.z[first, second],
                "p": found.p[first, second],
                "share": apart / totals[first],
                "share_of_other": apart / totals[second],
            }
        )


# --- distances ------------------------------------------------------------------------------------


def distance_to(
    points: np.ndarray, targets: np.ndarray, sections: np.ndarray, asking: np.ndarray | None = None
) -> np.ndarray:
    """Distance of every spot to the nearest spot of the mask ``targets`` in its section.

    Parameters
    ----------
    points : ndarray of float64, (n_spots, 2 or 3)
    targets : ndarray of bool, (n_spots,)
    sections : ndarray of int64, (n_spots,)
    asking : ndarray of bool, (n_spots,), optional
        The spots whose distance is wanted; all by default.

    Returns
    -------
    ndarray of float64, (n_spots,)
        In the unit of the coordinates; 0 for the targets themselves, infinite in a section without any, and for
        spots whose distance is not wanted.
    """
    distance = np.where(targets, 0.0, np.inf)
    outside = ~targets if asking is None else ~targets & asking
    for section in np.unique(sections[targets]):
        own = sections == section
        queries = np.flatnonzero(own & outside)
        distance[queries] = cKDTree(points[own & targets]).query(points[queries], workers=n_threads())[0]
    return distance


def distances_to_borders(
    points: np.ndarray, codes: np.ndarray, n_domains: int, sections: np.ndarray
) -> np.ndarray:
    """Distance of every spot to the border of every domain; see `border_distances`.

    Returns
    -------
    ndarray of float32, (n_spots, K)
        Negative inside.
    """
    found = np.full((len(codes), n_domains), np.nan, dtype=np.float32)
    for domain in range(n_domains):
        inside = codes == domain
        outwards, inwards = (distance_to(points, mask, sections) for mask in (inside, ~inside))
        distance = outwards - inwards  # one of them is 0
        found[:, domain] = np.where(np.isfinite(distance), distance, np.nan)
    return found


def border_distances(
    adata: ad.AnnData,
    *,
    domain: str | None = None,
    sample_key: str | None = None,
    key_added: str = keys.DEFAULT_KEY,
) -> pd.DataFrame:
    """Distance of every spot to the border of every domain.

    It is the straight distance to the nearest spot on the other side of the border, in the same section: for a spot
    outside a domain, to the nearest spot of the domain; for a spot inside, minus the distance to the nearest spot of
    another domain. Spots on both sides of a border are therefore one spacing apart: the smallest values are about
    plus and minus one spacing, and none is zero.

    Parameters
    ----------
    adata : AnnData
        With domains in ``obs`` and coordinates in ``obsm["spatial"]``.
    domain : str, optional
        Column of ``obs`` with the domains. Default: that of the run ``key_added``.
    sample_key : str, optional
        Column of ``obs`` with the section of each spot. Default: that of the run.
    key_added : str
        Prefix of the slot written.

    Returns
    -------
    DataFrame
        Also written to ``obsm["amilst_border_distance"]``: float32, one row per spot, one column per domain, in the
        unit of the coordinates, negative inside. NaN for a domain that the spot's section does not contain, or that
        fills it. A slash in the name of a domain, which files cannot hold, is replaced by an underscore.

    Raises
    ------
    MissingKeyError
        No coordinates or no such column.
    InputError
        Spots without a domain, or unusable coordinates.
    """
    labels = domains_of(adata, key_added, domain)
    sections = sections_of(adata, key_added, sample_key).codes
    found = distances_to_borders(check_coordinates(coordinates_of(adata)), labels.codes, labels.n, sections)
    table = pd.DataFrame(
        found, index=adata.obs_names, columns=[name.replace("/", "_") for name in labels.names]
    )
    adata.obsm[keys.ResultKeys(key_added).border_distance] = table
    return table


# --- shapes ---------------------------------------------------------------------------------------


def parts_within(pairs: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Connected part of every spot, (n_spots,) int32: spots of one code that neighbors (2, n_pairs) of it connect."""
    n = len(codes)
    same = codes[pairs[0]] == codes[pairs[1]]
    edges = sparse.coo_matrix((np.ones(same.sum(), np.int8), tuple(pairs[:, same])), shape=(n, n))
    return np.asarray(connected_components(edges, directed=False)[1])


def shapes(
    points: np.ndarray, pairs: np.ndarray, codes: np.ndarray, n_domains: int, sections: np.ndarray
) -> pd.DataFrame:
    """Size, parts and compactness of every domain in every section, from arrays; see `domain_shapes`.

    Parameters
    ----------
    points : ndarray of float64, (n_spots, 2 or 3)
    pairs : ndarray of int, (2, n_pairs)
        See `contact_pairs`.
    codes, sections : ndarray of int64, (n_spots,)
    n_domains : int

    Returns
    -------
    DataFrame
        ``section`` and ``domain`` as numbers; domains that a section does not contain are left out.
    """
    part = parts_within(pairs, codes)
    size = np.bincount(part)
    areas = np.full(sections.max() + 1, np.nan)
    for section in range(len(areas)):
        areas[section] = _area_per_spot(points[sections == section])
    compactness = _compactness(points, part, size, areas[sections])
    group = sections * n_domains + codes
    table = pd.DataFrame({"group": group, "part": part, "compactness": compactness, "one": 1})
    by_part = table.groupby(["group", "part"]).agg(n=("one", "size"), compactness=("compactness", "first"))
    by_part["weighted"] = by_part["n"] * by_part["compactness"]
    found = by_part.groupby("group").agg(
        n_spots=("n", "sum"), n_parts=("n", "size"), largest=("n", "max"), weighted=("weighted", "sum")
    )
    number = found.index.to_numpy()
    n_spots = found["n_spots"].to_numpy()
    of_section = np.bincount(sections)
    inside = codes[pairs[0]] == codes[pairs[1]]
    n_groups = len(of_section) * n_domains
    ends = np.bincount(group[pairs.ravel()], minlength=n_groups)[number]
    ends_inside = np.bincount(group[pairs[:, inside].ravel()], minlength=n_groups)[number]
    flat = points.shape[1] == 2
    return pd.DataFrame(
        {
            "section": number // n_domains,
            "domain": number % n_domains,
            "n_spots": n_spots,
            "share": n_spots / of_section[number // n_domains],
            "area": n_spots * areas[number // n_domains],
            "n_parts": found["n_parts"].to_numpy(),
            "largest_part": found["largest"].to_numpy() / n_spots,
            "compactness": found["weighted"].to_numpy() / n_spots if flat else np.nan,
            "contacts_inside": np.divide(ends_inside, ends, out=np.full(len(ends), np.nan), where=ends > 0),
        }
    )


def _area_per_spot(points: np.ndarray) -> float:
    """From the triangles of Delaunay: a spot owns two of them. NaN in three dimensions, or for spots on a line."""
    if points.shape[1] != 2 or len(points) < 4:
        return float("nan")
    try:
        corners = points[Delaunay(points).simplices]  # (triangles, 3, 2)
    except QhullError:
        return float("nan")
    sides = corners - np.roll(corners, 1, axis=1)
    longest = np.sqrt((sides**2).sum(axis=2)).max(axis=1)
    compact = longest <= _LONG_EDGE * np.median(longest)
    area = np.abs(sides[:, 0, 0] * sides[:, 1, 1] - sides[:, 0, 1] * sides[:, 1, 0]) / 2
    return float(2 * area[compact].mean())


def _compactness(points: np.ndarray, part: np.ndarray, size: np.ndarray, area: np.ndarray) -> np.ndarray:
    """(n_spots,), of the connected part of each spot."""
    moment = np.zeros(len(size))  # Σ squared distance to the center of the part
    for axis in points.T:
        center = np.bincount(part, axis) / size
        moment += np.bincount(part, (axis - center[part]) ** 2)
    own = area  # per spot; parts lie in one section
    return np.asarray(size[part] ** 2 * own / (2 * np.pi * moment[part] + size[part] * own))


def domain_shapes(
    adata: ad.AnnData,
    *,
    domain: str | None = None,
    connectivities_key: str | None = None,
    sample_key: str | None = None,
    key_added: str = keys.DEFAULT_KEY,
) -> pd.DataFrame:
    """Size, connected parts and compactness of every domain in every section.

    Parameters
    ----------
    adata : AnnData
        With domains in ``obs``, coordinates in ``obsm["spatial"]`` and a neighbor graph in ``obsp``.
    domain, connectivities_key, sample_key, key_added
        As in `neighborhood_enrichment`.

    Returns
    -------
    DataFrame
        Also written to ``uns["amilst_shapes"]``. ``section``, ``domain``; ``n_spots`` and ``share`` of the section;
        ``area`` in the squared unit of the coordinates; ``n_parts``, the number of parts that the neighbor graph
        connects; ``largest_part``, the share of the domain in the largest; ``compactness``, the mean over the parts,
        each counting by its spots, of area² / (2π · moment of inertia), which is 1 for a disk, 3/π for a square and
        small for long or branched parts (Li, Goodchild and Church 2013); ``contacts_inside``, the share of the
        neighbors of its spots that belong to it. ``area`` and ``compactness`` are NaN in three dimensions.

    Raises
    ------
    MissingKeyError
        No coordinates, no graph or no such column.
    InputError
        Spots without a domain, or unusable coordinates.
    """
    labels = domains_of(adata, key_added, domain)
    sections = sections_of(adata, key_added, sample_key)
    pairs = contact_pairs(graph_of(adata, key_added, connectivities_key), sections.codes)
    table = shapes(check_coordinates(coordinates_of(adata)), pairs, labels.codes, labels.n, sections.codes)
    for column, names in (("section", sections.names), ("domain", labels.names)):
        table[column] = np.asarray(names, dtype=object)[table[column]]
    adata.uns[keys.ResultKeys(key_added).shapes] = table
    return table
