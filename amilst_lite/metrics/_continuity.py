"""How compact domains are in space, without an annotation.

CHAOS and PAS search neighbors in O(N log N), the silhouette compares all pairs of at most 5,000 spots.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import sparse

from ..errors import InputError
from ..runtime import check_seed
from ..spatial.neighbors import nearest_neighbors, section_codes
from ..validation import check_number
from ._common import codes_of, silhouettes

__all__ = ["chaos", "continuity", "continuity_of_each", "pas", "spatial_silhouette"]

_MOST_SPOTS = 5000
"""Spots of a section whose pairs the silhouette compares."""
_WHOLE_SECTIONS = 4
"""Sections of which as many are compared; of more sections, the number of all pairs stays the same."""


def chaos(labels: ArrayLike, coordinates: np.ndarray) -> float:
    """CHAOS: mean distance from a spot to the nearest spot of the same domain; lower is smoother.

    Parameters
    ----------
    labels : array-like, shape (n_spots,)
        The domains. Spots without one (None, NaN, "") are excluded.
    coordinates : ndarray, shape (n_spots, 2) or (n_spots, 3)
        In any unit: as in the published definition, each axis is standardized (ddof 1) first.

    Returns
    -------
    float
        In standard deviations of the coordinates. A domain of one spot contributes a distance of 0.

    Raises
    ------
    InputError
        The lengths differ, a coordinate is not finite, or fewer than two spots have a label.

    Notes
    -----
    Because each axis is standardized, the score depends on the orientation of the section: rotation changes
    it, reflection and translation do not. It decreases with the density of spots. Compare it only between
    labelings of the same spots.

    References
    ----------
    Shang and Zhou, Nature Communications 2022 (SpatialPCA).
    """
    return _chaos(*_labeled(labels, coordinates))


def pas(labels: ArrayLike, coordinates: np.ndarray, n_neighbors: int = 10) -> float:
    """PAS: share of abnormal spots, of which more than half of the neighbors are in other domains.

    Parameters
    ----------
    labels : array-like, shape (n_spots,)
        The domains. Spots without one (None, NaN, "") are excluded.
    coordinates : ndarray, shape (n_spots, 2) or (n_spots, 3)
        In any unit.
    n_neighbors : int
        Nearest spots to consider, at most ``n_spots - 1``. All spots tied with the last of them are
        included (12 of 10 on a hexagonal grid), so that the score does not depend on the orientation of
        the section or the order of the spots.

    Returns
    -------
    float
        In [0, 1]; lower is smoother.

    Raises
    ------
    InputError
        The lengths differ, a coordinate is not finite, fewer than two spots have a label, or
        ``n_neighbors`` < 1.

    References
    ----------
    Shang and Zhou, Nature Communications 2022 (SpatialPCA).
    """
    check_number("n_neighbors", n_neighbors, 1, integer=True)
    codes, points = _labeled(labels, coordinates)
    return _pas(codes, _neighbors(points, n_neighbors))


def spatial_silhouette(
    labels: ArrayLike, coordinates: np.ndarray, *, max_spots: int = _MOST_SPOTS, seed: int = 0
) -> float:
    """Mean silhouette of the domains, with the spatial distance between spots.

    Parameters
    ----------
    labels : array-like, shape (n_spots,)
        The domains. Spots without one (None, NaN, "") are excluded.
    coordinates : ndarray, shape (n_spots, 2) or (n_spots, 3)
        In any unit.
    max_spots : int
        The score is exact up to this many spots. For more, which would need all pairs of spots, it is
        computed on a random sample of this size with at least one spot of every domain.
    seed : int
        Seed of the sample; the global generator is not used.

    Returns
    -------
    float
        In [-1, 1]; higher is more compact. NaN with a single domain or as many domains as spots, for which
        it is undefined. It is low for long and thin domains such as cortical layers, even correct ones.

    Raises
    ------
    InputError
        The lengths differ, a coordinate is not finite, fewer than two spots have a label, ``max_spots`` < 2,
        or ``seed`` is not in [0, 2**32).

    References
    ----------
    Rousseeuw, Journal of Computational and Applied Mathematics 1987.
    """
    check_number("max_spots", max_spots, 2, integer=True)
    return _silhouette(*_labeled(labels, coordinates), max_spots, check_seed(seed))


def continuity(
    labels: ArrayLike, coordinates: np.ndarray, sample: ArrayLike | None = None, *, seed: int = 0
) -> dict[str, float]:
    """All continuity scores.

    Parameters
    ----------
    labels : array-like, shape (n_spots,)
        The domains. Spots without one (None, NaN, "") are excluded.
    coordinates : ndarray, shape (n_spots, 2) or (n_spots, 3)
        In any unit.
    sample : array-like, shape (n_spots,), optional
        The section of each spot. Sections are scored separately, and scores are averaged over sections
        weighted by their numbers of spots. Sections with fewer than two labeled spots are excluded.
    seed : int
        Seed for the silhouette of large sections, see :func:`spatial_silhouette`.

    Returns
    -------
    dict
        ``chaos``, ``pas`` and ``silhouette`` (NaN if undefined in every section).

    Raises
    ------
    InputError
        As for :func:`chaos`; or ``sample`` has another length or missing values.

    Notes
    -----
    The silhouette is exact for sections of up to 5,000 spots, and 10,000 / sqrt(number of sections) if there are more
    than four sections: it is then an average over many samples, each of which may be smaller.
    """
    return continuity_of_each([labels], coordinates, sample, seed=seed)[0]


def continuity_of_each(
    labelings: Sequence[ArrayLike], coordinates: np.ndarray, sample: ArrayLike | None = None, *, seed: int = 0
) -> list[dict[str, float]]:
    """:func:`continuity` of several labelings of the same spots, for which neighbors are searched once.

    Parameters
    ----------
    labelings : sequence of array-like, each of shape (n_spots,)
    coordinates, sample, seed
        As for :func:`continuity`.

    Returns
    -------
    list of dict
    """
    seed = check_seed(seed)
    labeled = [_labeled(labels, coordinates, keep_all=True) for labels in labelings]
    scores: list[list[tuple[float, float, float]]] = [[] for _ in labeled]
    weights: list[list[int]] = [[] for _ in labeled]
    sections, names = section_codes(sample, len(labeled[0][0]))  # type: ignore[arg-type]
    most = int(_MOST_SPOTS * min(1.0, np.sqrt(_WHOLE_SECTIONS / len(names))))
    for section in range(len(names)):
        spots = np.flatnonzero(sections == section)
        found: tuple[np.ndarray, sparse.csr_matrix] | None = None
        for (codes, points), own_scores, own_weights in zip(labeled, scores, weights, strict=True):
            inside = spots[codes[spots] >= 0]
            if len(inside) < 2:
                continue
            own = codes[inside], points[inside]
            if found is None or not np.array_equal(found[0], inside):
                found = inside, _neighbors(own[1], 10)
            own_scores.append((_chaos(*own), _pas(own[0], found[1]), _silhouette(*own, most, seed)))
            own_weights.append(len(inside))
    return [_averaged(*pair) for pair in zip(scores, weights, strict=True)]


def _averaged(scores: list[tuple[float, float, float]], weights: list[int]) -> dict[str, float]:
    """The mean of each score over the sections in which it is defined."""
    mean = []
    for column in np.array(scores, dtype=float).reshape(-1, 3).T:
        defined = np.isfinite(column)
        mean.append(
            float(np.average(column[defined], weights=np.array(weights)[defined]))
            if defined.any()
            else float("nan")
        )
    return dict(zip(("chaos", "pas", "silhouette"), mean, strict=True))


def _chaos(codes: np.ndarray, points: np.ndarray) -> float:
    spread = points.std(axis=0, ddof=1)
    spread[spread == 0] = 1  # spots on a line
    scaled = points / spread  # centering would not change distances
    total = 0.0
    for domain in np.unique(codes):
        own = scaled[codes == domain]
        if len(own) > 1:
            nearest, _ = nearest_neighbors(own, 1)
            # rows may have several neighbors, whose distances agree only to the tolerance of ties
            spots = np.repeat(np.arange(len(own)), np.diff(nearest.indptr))
            distance = np.linalg.norm(own[spots] - own[nearest.indices], axis=1)
            total += np.minimum.reduceat(distance, nearest.indptr[:-1]).sum()
    return float(total / len(codes))


def _neighbors(points: np.ndarray, n_neighbors: int) -> sparse.csr_matrix:
    return nearest_neighbors(points, min(n_neighbors, len(points) - 1))[0]


def _pas(codes: np.ndarray, neighbors: sparse.csr_matrix) -> float:
    degree = np.diff(neighbors.indptr)
    spots = np.repeat(np.arange(len(codes)), degree)
    different = codes[neighbors.indices] != codes[spots]
    return float(np.mean(np.bincount(spots[different], minlength=len(codes)) > degree / 2))


def _silhouette(codes: np.ndarray, points: np.ndarray, max_spots: int, seed: int) -> float:
    if len(codes) > max_spots:
        order = np.random.default_rng(seed).permutation(len(codes))
        _, first = np.unique(codes[order], return_index=True)
        chosen = order[np.union1d(np.arange(max_spots), first)]
        codes, points = codes[chosen], points[chosen]
    if not 2 <= len(np.unique(codes)) < len(codes):
        return float("nan")
    return float(silhouettes(codes, points).mean())


def _labeled(
    labels: ArrayLike, coordinates: np.ndarray, keep_all: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Codes and float64 coordinates of the labeled spots, or of all spots with ``keep_all``."""
    codes = codes_of(labels)
    points = np.asarray(coordinates, dtype=np.float64)
    if points.ndim != 2 or len(points) != len(codes) or points.shape[1] not in (2, 3):
        raise InputError(
            f"coordinates must have one row for each of the {len(codes)} labels and 2 or 3 columns; found "
            f"shape {points.shape}."
        )
    if (codes >= 0).sum() < 2:
        raise InputError(f"Continuity needs at least 2 labeled spots; found {int((codes >= 0).sum())}.")
    if not np.isfinite(points[codes >= 0]).all():
        raise InputError("coordinates must be finite; found NaN or infinite values. Remove those spots.")
    return (codes, points) if keep_all else (codes[codes >= 0], points[codes >= 0])
