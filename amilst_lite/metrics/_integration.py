"""Integration of several sections: whether, in an embedding, spots of one kind lie together and sections mix.

The scores are those of scIB (Luecken et al. 2022) and iSTBench (Dong et al. 2025). Their memory is linear in the number
of spots. All get spots sorted by the embedding, so that nothing depends on the order they came in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from sklearn.neighbors import NearestNeighbors

from ..errors import InputError
from ..spatial.neighbors import nearest_neighbors, section_codes
from ..validation import check_number
from ._agreement import adjusted_rand_index, normalized_mutual_info
from ._common import codes_of, codes_of_both, silhouettes

__all__ = [
    "clisi",
    "graph_connectivity",
    "ilisi",
    "integration_scores",
    "integration_scores_of_each",
    "isolated_labels_f1",
    "section_agreement",
    "silhouette_batch",
    "silhouette_label",
]

# Neighbors whose weights are computed at a time, in LISI: 3 MB of distances.
_QUERIES_AT_A_TIME = 4096
# LISI chooses the width of the kernel such that the entropy is that of the perplexity to this difference, as in
# the published program, within so many bisections.
_ENTROPY_TOLERANCE = 1e-5
_BISECTIONS = 64
# Up to this many spots, all pairs of distances take less time (5 s with two threads) than the compilation that
# nearest-neighbor descent needs once in a process (26 s).
_ALL_PAIRS_UP_TO = 50_000
# Of more spots, so many are scored in the embedding: medians and means of them are accurate to the second digit.
_SAMPLE = 20_000


def silhouette_label(labels: ArrayLike, embedding: np.ndarray, *, max_spots: int = 10_000) -> float:
    """Average silhouette width of the labels in the embedding, rescaled to [0, 1] ("cell type ASW", "dASW").

    Parameters
    ----------
    labels : array-like, shape (n_spots,)
        Annotation or domains. Spots without one (None, NaN, "") are excluded.
    embedding : ndarray, shape (n_spots, n_features)
        Distances are Euclidean.
    max_spots : int
        The score is exact up to this many labeled spots, in blocks of rows. For more, which would need all
        pairs of spots, it is that of this many spots, evenly spaced after sorting by label and embedding, and of
        at least one spot of each label.

    Returns
    -------
    float
        (mean silhouette + 1) / 2: 1 if each label forms a compact cluster of its own, 0.5 if labels overlap. NaN
        with a single label or as many labels as spots, for which it is undefined.

    Raises
    ------
    InputError
        The lengths differ, the embedding is not finite, fewer than two spots have a label, or ``max_spots`` < 2.

    References
    ----------
    Rousseeuw, Journal of Computational and Applied Mathematics 1987; Luecken et al., Nature Methods 2022 (scIB),
    Methods, "Cell type ASW"; Dong et al., Genome Biology 2025 (iSTBench), "dASW".
    """
    check_number("max_spots", max_spots, 2, integer=True)
    codes, points = _embedded(labels, embedding)
    return _silhouette_label(codes, points, max_spots)


def silhouette_batch(
    labels: ArrayLike, section: ArrayLike, embedding: np.ndarray, *, max_spots: int = 5000
) -> float:
    """Mixing of the sections within each label, by the silhouette of the sections ("batch ASW", "bASW").

    Parameters
    ----------
    labels : array-like, shape (n_spots,)
        Annotation or domains. Spots without one (None, NaN, "") are excluded.
    section : array-like, shape (n_spots,)
        The section of each spot; at least two.
    embedding : ndarray, shape (n_spots, n_features)
        Distances are Euclidean.
    max_spots : int
        A label is scored on all its spots up to this many; on more, as for :func:`silhouette_label`, with
        sections for labels.

    Returns
    -------
    float
        In [0, 1]: the mean over labels of the mean over their spots of 1 - |s|, with s the silhouette of a spot
        among the spots of its label, grouped by section. 1 if sections overlap. Labels in a single section, or
        with one spot in each section, are skipped; NaN if no label is left.

    Raises
    ------
    InputError
        As for :func:`silhouette_label`; or ``section`` has another length, missing values or a single value.

    References
    ----------
    Luecken et al., Nature Methods 2022 (scIB), Methods, "Batch ASW"; Dong et al., Genome Biology 2025
    (iSTBench), "bASW".
    """
    check_number("max_spots", max_spots, 2, integer=True)
    codes, points, sections = _embedded(labels, embedding, section)
    return _silhouette_batch(codes, sections, points, max_spots)


def ilisi(
    section: ArrayLike,
    embedding: np.ndarray,
    *,
    scale: bool = True,
    n_neighbors: int = 90,
    max_spots: int = 10_000,
) -> float:
    """Integration LISI: the effective number of sections among the neighbors of a spot in the embedding.

    Parameters
    ----------
    section : array-like, shape (n_spots,)
        The section of each spot; at least two.
    embedding : ndarray, shape (n_spots, n_features)
        Distances are Euclidean.
    scale : bool
        Rescale the median from [1, B] to [0, 1] as (median - 1) / (B - 1), with B the number of sections.
    n_neighbors : int
        Nearest spots to consider, the spot itself counted, which gets no weight: 89 others of 90, as in the
        published program. At most all spots. The perplexity is a third of it, 30 of 90.
    max_spots : int
        Up to this many spots, the median is over all of them. For more, it is over this many, evenly spaced
        after sorting by the embedding; their neighbors are always searched exactly among all spots.

    Returns
    -------
    float
        The median of LISI. Scaled: 0 if sections are separate, about 1 if they are equally frequent and mixed
        at random.

    Raises
    ------
    InputError
        The lengths differ, the embedding is not finite, ``section`` has missing values or a single value, or
        ``n_neighbors`` < 3 or ``max_spots`` < 2.

    Notes
    -----
    LISI of a spot is 1 / Σ_b p_b², with p_b the weight of section b among its neighbors. The weight of a
    neighbor at distance d is proportional to exp(-β d), with β such that the entropy of the weights is the
    logarithm of the perplexity. Which of several neighbors at the same distance are the last ones does not
    depend on their section.

    References
    ----------
    Korsunsky et al., Nature Methods 2019 (Harmony), Methods, "LISI"; Luecken et al., Nature Methods 2022 (scIB),
    Methods, "Graph LISI", for the scaling.
    """
    everything = np.zeros(np.shape(embedding)[:1])  # no spot is left out
    _, points, codes = _embedded(everything, embedding, section)
    (values,) = _lisi([codes], points, n_neighbors, max_spots)
    return _scaled_ilisi(values, codes) if scale else float(np.median(values))


def clisi(
    labels: ArrayLike,
    embedding: np.ndarray,
    *,
    scale: bool = True,
    n_neighbors: int = 90,
    max_spots: int = 10_000,
) -> float:
    """Cell-type LISI: the effective number of labels among the neighbors of a spot in the embedding.

    Parameters
    ----------
    labels : array-like, shape (n_spots,)
        Annotation or domains. Spots without one (None, NaN, "") are excluded, also as neighbors.
    embedding, n_neighbors, max_spots
        As for :func:`ilisi`.
    scale : bool
        Rescale the median from [1, L] to [1, 0] as (L - median) / (L - 1), with L the number of labels.

    Returns
    -------
    float
        The median of LISI. Scaled: 1 if labels are separate, about 0 if they are equally frequent and mixed at
        random, NaN with a single label.

    Raises
    ------
    InputError
        The lengths differ, the embedding is not finite, fewer than two spots have a label, or ``n_neighbors`` < 3
        or ``max_spots`` < 2.

    References
    ----------
    As for :func:`ilisi`.
    """
    codes, points = _embedded(labels, embedding)
    (values,) = _lisi([codes], points, n_neighbors, max_spots)
    return _scaled_clisi(values, codes) if scale else float(np.median(values))


def graph_connectivity(labels: ArrayLike, embedding: np.ndarray, *, n_neighbors: int = 15) -> float:
    """Mean over labels of the share of their spots in the largest connected component of their neighbor graph.

    Parameters
    ----------
    labels : array-like, shape (n_spots,)
        Annotation or domains. Spots without one (None, NaN, "") are excluded.
    embedding : ndarray, shape (n_spots, n_features)
        Distances are Euclidean.
    n_neighbors : int
        Nearest spots to connect each spot to, the spot itself counted, as in scanpy: 14 others of 15. At most
        all spots. Two spots are connected if either is a neighbor of the other.

    Returns
    -------
    float
        In (0, 1]; 1 if the spots of each label are connected through spots of this label.

    Raises
    ------
    InputError
        The lengths differ, the embedding is not finite, fewer than two spots have a label, or
        ``n_neighbors`` < 2.

    Notes
    -----
    Neighbors are exact for up to 50,000 spots or in up to three dimensions, otherwise from nearest-neighbor
    descent (pynndescent) with a fixed seed, whose result depends on the number of threads (0.0001 of the score
    for 100,000 spots).

    References
    ----------
    Luecken et al., Nature Methods 2022 (scIB), Methods, "Graph connectivity".
    """
    check_number("n_neighbors", n_neighbors, 2, integer=True)
    codes, points = _embedded(labels, embedding)
    return _graph_connectivity(codes, _neighbor_graph(points, n_neighbors))


def isolated_labels_f1(annotation: ArrayLike, section: ArrayLike, domains: ArrayLike) -> float:
    """How well domains find the labels that are present in the fewest sections.

    Parameters
    ----------
    annotation : array-like, shape (n_spots,)
        The labels. Spots without one (None, NaN, "") are excluded.
    section : array-like, shape (n_spots,)
        The section of each spot; at least two.
    domains : array-like, shape (n_spots,)
        The clusters. Spots without one (None, NaN, "") are excluded.

    Returns
    -------
    float
        In [0, 1]: the mean over the isolated labels of the largest F1 score that a domain has as a prediction of
        this label. Isolated labels are those in the smallest number of sections that any label is in: all
        labels, where each is in all sections.

    Raises
    ------
    InputError
        The lengths differ, fewer than two spots have both labels, or ``section`` has missing values or a single
        value.

    Notes
    -----
    scIB clusters the embedding with Leiden at many resolutions and takes the largest F1 score over all of them.
    Here the clusters are the given domains, and no resolution is optimized: the score also counts whether the
    number of domains suits, and is not comparable with values from scIB.

    References
    ----------
    Luecken et al., Nature Methods 2022 (scIB), Methods, "Isolated label scores"; Dong et al., Genome Biology 2025
    (iSTBench), "ilF1".
    """
    first, second, sections, _ = _codes_and_sections(annotation, domains, section)
    return _isolated_labels_f1(first, sections, second)


def section_agreement(annotation: ArrayLike, section: ArrayLike, domains: ArrayLike) -> dict[str, float]:
    """Adjusted Rand index of the domains within each section.

    Parameters
    ----------
    annotation, section, domains : array-like, shape (n_spots,)
        As for :func:`isolated_labels_f1`.

    Returns
    -------
    dict
        By the name of the section, sorted. NaN for a section with fewer than two spots that have both labels.

    Raises
    ------
    InputError
        As for :func:`isolated_labels_f1`.
    """
    return _section_agreement(*_codes_and_sections(annotation, domains, section))


def integration_scores(
    domains: ArrayLike,
    section: ArrayLike,
    embedding: np.ndarray | None = None,
    annotation: ArrayLike | None = None,
) -> dict[str, Any]:
    """All scores of the integration of several sections.

    Parameters
    ----------
    domains : array-like, shape (n_spots,)
        Spots without one (None, NaN, "") are excluded from the scores that need it.
    section : array-like, shape (n_spots,)
        The section of each spot; at least two.
    embedding : ndarray, shape (n_spots, n_features), optional
        What the domains were identified in. If not given, the scores that need it are left out.
    annotation : array-like, shape (n_spots,), optional
        The true labels. Spots without one (None, NaN, "") are excluded from the scores that need it.

    Returns
    -------
    dict
        ``labels``: "annotation", or "domains" if no annotation is given: the labels of the next scores. The
        published scores use an annotation. With domains, which were identified in this embedding,
        ``silhouette_label``, ``clisi`` and ``graph_connectivity`` say how separate the domains are, not whether
        they are right.

        ``n_labeled``: the number of spots that have such a label.

        With an embedding, all but ``ilisi`` and ``clisi`` in [0, 1], and higher is better for all but ``clisi``:
        ``silhouette_label``, ``silhouette_batch``, ``ilisi`` and ``clisi`` (medians, from 1 to the number
        of sections or labels), ``ilisi_scaled``, ``clisi_scaled``, ``graph_connectivity``.

        With an annotation: ``isolated_labels_f1``, ``section_ari`` (a dict, by the name of the section),
        ``section_ari_mean`` (over the sections in which it is defined, with equal weights) and
        ``nmi_annotation_section``.

        ``nmi_domain_section``: normalized mutual information of domains and sections, 0 if each domain has the
        same share in all sections. Compare it with ``nmi_annotation_section``: sections may differ in truth.

        NaN where undefined, see the function of the same name.

    Raises
    ------
    InputError
        The lengths differ, the embedding is not finite, ``section`` has missing values or a single value, or
        fewer than two spots have a domain, or both a domain and an annotation.

    Notes
    -----
    Above 10,000 spots (5,000 of one label for ``silhouette_batch``), silhouettes and LISI are evaluated on
    evenly spaced spots, see :func:`silhouette_label` and :func:`ilisi`. Above 50,000 spots, the scores in the embedding
    are those of 20,000 spots, evenly spaced along its first columns, among themselves; ``n_embedded`` is then their
    number. The same input gives the same scores, whatever the order of the spots.
    """
    return integration_scores_of_each([domains], section, embedding, annotation)[0]


def integration_scores_of_each(
    labelings: Sequence[ArrayLike],
    section: ArrayLike,
    embedding: np.ndarray | None = None,
    annotation: ArrayLike | None = None,
) -> list[dict[str, Any]]:
    """`integration_scores` of several domains of the same spots; neighbors in the embedding are searched once.

    Parameters
    ----------
    labelings : sequence of array-like, each (n_spots,)
        Domains.
    section, embedding, annotation
        As in `integration_scores`.

    Returns
    -------
    list of dict
        In the order of ``labelings``.

    Raises
    ------
    InputError
        As in `integration_scores`.
    """
    clusterings = [codes_of(domains) for domains in labelings]
    truth = None if annotation is None else codes_of(annotation)
    found: list[dict[str, Any]] = []
    for domains, clusters in zip(labelings, clusterings, strict=True):
        sections, names = _section_codes(section, len(clusters))
        if (clusters >= 0).sum() < 2:
            raise InputError(
                f"Integration scores need at least 2 spots with a domain; found {int((clusters >= 0).sum())}."
            )
        if annotation is not None:
            codes_of_both(annotation, domains)  # at least two spots
        labeled = (clusters if truth is None else truth) >= 0
        found.append(
            {"labels": "domains" if truth is None else "annotation", "n_labeled": int(labeled.sum())}
        )
    if embedding is not None:
        chosen = _sample(np.asarray(embedding), len(sections))
        points = (
            _check_embedding(embedding, len(sections))
            if chosen is None
            else _check_embedding(np.asarray(embedding)[chosen], len(chosen))
        )
        order = np.lexsort(points.T[::-1])
        rows = order if chosen is None else chosen[order]
        labels = [codes[rows] for codes in (clusterings if truth is None else [truth])]
        in_embedding = _embedding_scores(labels, sections[rows], _centered(points[order]))
        for place, scores in enumerate(found):
            scores |= in_embedding[place if truth is None else 0]
            if chosen is not None:
                scores["n_embedded"] = len(chosen)
    for clusters, scores in zip(clusterings, found, strict=True):
        known = clusters >= 0
        scores["nmi_domain_section"] = normalized_mutual_info(clusters[known], sections[known])
        if truth is not None:
            labeled = truth >= 0
            scores["nmi_annotation_section"] = normalized_mutual_info(truth[labeled], sections[labeled])
            both = labeled & known
            agreeing = truth[both], clusters[both], sections[both]
            scores["isolated_labels_f1"] = _isolated_labels_f1(agreeing[0], agreeing[2], agreeing[1])
            scores["section_ari"] = _section_agreement(*agreeing, names)
            defined = [value for value in scores["section_ari"].values() if np.isfinite(value)]
            scores["section_ari_mean"] = float(np.mean(defined)) if defined else float("nan")
    return found


def _sample(embedding: np.ndarray, n_spots: int) -> np.ndarray | None:
    """Rows of `_SAMPLE` spots evenly spaced along the first columns, ascending; None for up to `_ALL_PAIRS_UP_TO`."""
    if embedding.ndim != 2 or len(embedding) != n_spots or n_spots <= _ALL_PAIRS_UP_TO:
        return None
    along = np.lexsort([embedding[:, column] for column in (2, 1, 0) if column < embedding.shape[1]])
    return np.sort(along[np.linspace(0, n_spots - 1, _SAMPLE).astype(np.int64)])


def _embedding_scores(
    labelings: list[np.ndarray], sections: np.ndarray, points: np.ndarray
) -> list[dict[str, float]]:
    """For each labeling, codes with -1 for spots without a label."""
    whole = [place for place, labels in enumerate(labelings) if (labels >= 0).all()]
    codes = [_renumbered(labels[labels >= 0]) for labels in labelings]
    by_section, *of_whole = _lisi([sections, *(codes[place] for place in whole)], points, 90, 10_000)
    by_label = dict(zip(whole, of_whole, strict=True))
    centered = _centered(points)
    neighbors = _neighbor_graph(centered, 15) if whole else None
    scores = []
    for place, labels in enumerate(labelings):
        if place in by_label:
            lisi, within, own, graph = by_label[place], sections, centered, neighbors
        else:
            within, own = sections[labels >= 0], _centered(points[labels >= 0])
            (lisi,) = _lisi([codes[place]], own, 90, 10_000)
            graph = _neighbor_graph(own, 15)
        scores.append(
            {
                "silhouette_label": _silhouette_label(codes[place], own, 10_000),
                "silhouette_batch": _silhouette_batch(codes[place], within, own, 5000),
                "ilisi": float(np.median(by_section)),
                "ilisi_scaled": _scaled_ilisi(by_section, sections),
                "clisi": float(np.median(lisi)),
                "clisi_scaled": _scaled_clisi(lisi, codes[place]),
                "graph_connectivity": _graph_connectivity(codes[place], graph),
            }
        )
    return scores


def _evenly(codes: np.ndarray, n: int) -> np.ndarray:
    """Rows of n evenly spaced spots in the order of their codes, and of the first of each code; all, if n >= N."""
    if len(codes) <= n:
        return np.arange(len(codes))
    chosen = np.argsort(codes, kind="stable")[np.linspace(0, len(codes) - 1, n).astype(np.int64)]
    _, first = np.unique(codes, return_index=True)
    return np.union1d(chosen, first)


def _silhouette_label(codes: np.ndarray, points: np.ndarray, max_spots: int) -> float:
    chosen = _evenly(codes, max_spots)
    if not 2 <= len(np.unique(codes[chosen])) < len(chosen):
        return float("nan")
    return float((silhouettes(codes[chosen], points[chosen]).mean() + 1) / 2)


def _silhouette_batch(codes: np.ndarray, sections: np.ndarray, points: np.ndarray, max_spots: int) -> float:
    means = []
    for label in np.unique(codes):
        own = np.flatnonzero(codes == label)
        if 2 <= len(np.unique(sections[own])) < len(own):
            own = own[_evenly(sections[own], max_spots)]
            means.append(np.mean(1 - np.abs(silhouettes(sections[own], points[own]))))
    return float(np.mean(means)) if means else float("nan")


def _lisi(
    labelings: list[np.ndarray], points: np.ndarray, n_neighbors: int, max_spots: int
) -> list[np.ndarray]:
    """LISI of evenly spaced spots, at most ``max_spots``, for each labeling: codes 0, 1, ... of all spots."""
    check_number("n_neighbors", n_neighbors, 3, integer=True)
    check_number("max_spots", max_spots, 2, integer=True)
    n = len(points)
    asking = _evenly(np.zeros(n, np.int64), max_spots)
    # Where more neighbors tie than are wanted, the search takes them in the order of the rows. A random order is
    # fair to all labels, and with a fixed seed it is always the same.
    shuffled = np.random.default_rng(0).permutation(n)
    k = min(n_neighbors, n)
    search = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(points[shuffled])
    values: list[list[np.ndarray]] = [[] for _ in labelings]
    for start in range(0, len(asking), _QUERIES_AT_A_TIME):
        spots = asking[start : start + _QUERIES_AT_A_TIME]
        distance, found = search.kneighbors(points[spots])  # (spots, k) both
        found = shuffled[found]
        other = found != spots[:, None]
        other[other.all(axis=1), -1] = False  # the spot itself was not found among more than k equal ones
        distance, found = (array[other].reshape(len(spots), k - 1) for array in (distance, found))
        weight = _weights(distance, max(k // 3, 1))
        for codes, parts in zip(labelings, values, strict=True):
            n_labels = int(codes.max()) + 1
            cell = np.arange(len(spots))[:, None] * n_labels + codes[found]
            share = np.bincount(cell.ravel(), weight.ravel(), len(spots) * n_labels)
            simpson = (share.reshape(len(spots), n_labels) ** 2).sum(axis=1)
            parts.append(1 / np.minimum(simpson, 1))  # rounding must not take it out of its range
    return [np.concatenate(parts) for parts in values]


def _weights(distance: np.ndarray, perplexity: int) -> np.ndarray:
    """Rows proportional to exp(-β distance) that sum to one, with β such that their entropy is log(perplexity)."""
    distance = distance - distance.min(axis=1, keepdims=True)  # changes neither weights nor entropy
    distance /= np.maximum(distance.mean(axis=1, keepdims=True), np.finfo(float).tiny)
    beta, low, high = np.ones(len(distance)), np.zeros(len(distance)), np.full(len(distance), np.inf)
    for _ in range(_BISECTIONS):
        weight = np.exp(-beta[:, None] * distance)
        total = weight.sum(axis=1)
        excess = np.log(total) + beta * (distance * weight).sum(axis=1) / total - np.log(perplexity)
        wide, narrow = excess >= _ENTROPY_TOLERANCE, excess <= -_ENTROPY_TOLERANCE
        if not (wide | narrow).any():
            break
        low[wide], high[narrow] = beta[wide], beta[narrow]
        between = np.where(np.isinf(high), 2 * beta, (low + high) / 2)
        beta = np.where(wide | narrow, between, beta)
    normalized: np.ndarray = weight / total[:, None]
    return normalized


def _scaled_ilisi(values: np.ndarray, codes: np.ndarray) -> float:
    return float((np.median(values) - 1) / (len(np.unique(codes)) - 1))


def _scaled_clisi(values: np.ndarray, codes: np.ndarray) -> float:
    n_labels = len(np.unique(codes))
    return float((n_labels - np.median(values)) / (n_labels - 1)) if n_labels > 1 else float("nan")


def _neighbor_graph(points: np.ndarray, n_neighbors: int) -> sparse.csr_matrix:
    """The nearest spots of each spot, itself counted: (n, n)."""
    n = len(points)
    k = min(n_neighbors, n)
    if points.shape[1] > 3 and n <= _ALL_PAIRS_UP_TO:
        search = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(points)
        return search.kneighbors_graph(points)  # loops connect nothing
    return nearest_neighbors(points, k - 1)[0]


def _graph_connectivity(codes: np.ndarray, neighbors: sparse.csr_matrix) -> float:
    n = len(codes)
    source, target = np.repeat(np.arange(n), np.diff(neighbors.indptr)), neighbors.indices
    same = codes[source] == codes[target]
    edges = sparse.coo_matrix((np.ones(same.sum(), np.int8), (source[same], target[same])), shape=(n, n))
    _, component = connected_components(edges, directed=False)  # none has two labels
    largest = np.zeros(int(codes.max()) + 1, np.int64)
    np.maximum.at(largest, codes, np.bincount(component)[component])
    return float(np.mean(largest / np.bincount(codes)))


def _isolated_labels_f1(truth: np.ndarray, sections: np.ndarray, clusters: np.ndarray) -> float:
    table = pd.crosstab(truth, clusters).to_numpy()  # (labels, domains)
    n_sections = (pd.crosstab(truth, sections).to_numpy() > 0).sum(axis=1)
    f1 = 2 * table / (table.sum(axis=1, keepdims=True) + table.sum(axis=0))
    return float(f1.max(axis=1)[n_sections == n_sections.min()].mean())


def _section_agreement(
    truth: np.ndarray, clusters: np.ndarray, sections: np.ndarray, names: list[Any]
) -> dict[str, float]:
    scores = {}
    for number, name in enumerate(names):
        own = sections == number
        scores[str(name)] = adjusted_rand_index(truth[own], clusters[own]) if own.sum() >= 2 else float("nan")
    return scores


def _check_embedding(embedding: np.ndarray, n_spots: int) -> np.ndarray:
    """The embedding as float64."""
    try:
        points = np.asarray(embedding, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"embedding must be a numeric matrix with one row per spot: {error}") from error
    if points.ndim != 2 or len(points) != n_spots or points.shape[1] == 0:
        raise InputError(
            f"embedding must have one row for each of the {n_spots} spots and at least one column; found shape "
            f"{points.shape}. Take it from the same AnnData as the labels."
        )
    bad = int((~np.isfinite(points)).any(axis=1).sum())
    if bad:
        raise InputError(
            f"embedding must be finite; found NaN or infinite values in {bad} of {n_spots} spots. Drop these spots."
        )
    return points


def _section_codes(section: ArrayLike, n_spots: int) -> tuple[np.ndarray, list[Any]]:
    """The section of each spot as a number, and the names of the sections, of which there are at least two."""
    if np.shape(section) != (n_spots,):
        raise InputError(
            f"section must name one section for each of {n_spots} spots; found shape {np.shape(section)}."
        )
    sections, names = section_codes(section, n_spots)  # type: ignore[arg-type]
    if len(names) < 2:
        raise InputError(
            f"Integration scores need at least 2 sections; found {len(names)} ({', '.join(map(repr, names))}). "
            "Give the section of each spot, or use the scores of agreement and continuity."
        )
    return sections, names


def _centered(points: np.ndarray) -> np.ndarray:
    """With the mean at the origin, where distances from products lose least to rounding."""
    moved: np.ndarray = points - points.mean(axis=0)
    return moved


def _renumbered(codes: np.ndarray) -> np.ndarray:
    """Codes 0, 1, ... in the order of their first appearance."""
    numbers: np.ndarray = pd.factorize(codes)[0]
    return numbers


def _embedded(
    labels: ArrayLike, embedding: np.ndarray, section: ArrayLike | None = None
) -> tuple[np.ndarray, ...]:
    """Codes, points and, if given, sections of the labeled spots, sorted by the points."""
    codes = codes_of(labels)
    sections = None if section is None else _section_codes(section, len(codes))[0]
    points = _check_embedding(embedding, len(codes))
    if (codes >= 0).sum() < 2:
        raise InputError(
            f"Integration scores need at least 2 labeled spots; found {int((codes >= 0).sum())}."
        )
    order = np.lexsort(points.T[::-1])
    order = order[codes[order] >= 0]
    found = _renumbered(codes[order]), _centered(points[order])
    return found if sections is None else (*found, sections[order])


def _codes_and_sections(
    annotation: ArrayLike, domains: ArrayLike, section: ArrayLike
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[Any]]:
    """Codes of the annotation, of the domains and of the sections, of the spots that have all; their names."""
    codes_of_both(annotation, domains)
    first, second = codes_of(annotation), codes_of(domains)
    sections, names = _section_codes(section, len(first))
    both = (first >= 0) & (second >= 0)
    return first[both], second[both], sections[both], names
