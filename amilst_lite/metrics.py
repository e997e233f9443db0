"""Scores of domains: agreement with an annotation, and continuity on the section.

Agreement compares two labellings of the same spots and does not care how either names its domains.
Spots that the annotation leaves out (None, NaN or an empty string) are left out of the score.
Continuity needs no annotation: it asks whether domains are compact in space. Neither builds an N×N
array: neighbours come from k-d trees, in O(N log N).
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import sklearn
from numpy.typing import ArrayLike
from scipy.spatial import cKDTree
from sklearn import metrics as _sklearn

from .errors import InputError
from .runtime import n_threads

__all__ = [
    "adjusted_rand_index",
    "agreement",
    "chaos",
    "completeness",
    "continuity",
    "homogeneity",
    "normalized_mutual_info",
    "pas",
    "spatial_silhouette",
]


# ------------------------------------------------------------------------------------------ agreement


def adjusted_rand_index(truth: ArrayLike, labels: ArrayLike) -> float:
    """Adjusted Rand index: pairs of spots on which both agree, corrected for chance.

    Parameters
    ----------
    truth, labels : array-like, shape (n_spots,)
        Two labellings. Spots missing (None, NaN, "") in either are left out.

    Returns
    -------
    float
        1 for the same partition, about 0 for unrelated ones; can be negative (not below -0.5).

    Raises
    ------
    InputError
        The lengths differ, or fewer than two spots are labelled in both.

    References
    ----------
    Hubert and Arabie, Journal of Classification 1985.
    """
    return float(_sklearn.adjusted_rand_score(*_codes_of_both(truth, labels)))


def normalized_mutual_info(truth: ArrayLike, labels: ArrayLike) -> float:
    """Mutual information over the arithmetic mean of both entropies, in [0, 1].

    Parameters and errors as for :func:`adjusted_rand_index`.
    """
    return float(_sklearn.normalized_mutual_info_score(*_codes_of_both(truth, labels)))


def homogeneity(truth: ArrayLike, labels: ArrayLike) -> float:
    """1 - H(truth | labels) / H(truth), in [0, 1]: 1 if no domain mixes two annotated regions.

    Parameters and errors as for :func:`adjusted_rand_index`. Rosenberg and Hirschberg, EMNLP 2007.
    """
    return float(_sklearn.homogeneity_score(*_codes_of_both(truth, labels)))


def completeness(truth: ArrayLike, labels: ArrayLike) -> float:
    """1 - H(labels | truth) / H(labels), in [0, 1]: 1 if no annotated region is split over domains.

    Parameters and errors as for :func:`adjusted_rand_index`. Rosenberg and Hirschberg, EMNLP 2007.
    """
    return float(_sklearn.completeness_score(*_codes_of_both(truth, labels)))


def agreement(truth: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """All agreement scores at once.

    Parameters
    ----------
    truth, labels : array-like, shape (n_spots,)
        The annotation and the domains. Spots missing (None, NaN, "") in either are left out.

    Returns
    -------
    dict
        ``ari``, ``nmi``, ``homogeneity``, ``completeness``, and ``n_scored``, the number of spots
        that were compared.

    Raises
    ------
    InputError
        The lengths differ, or fewer than two spots are labelled in both.
    """
    both = _codes_of_both(truth, labels)
    return {
        "ari": float(_sklearn.adjusted_rand_score(*both)),
        "nmi": float(_sklearn.normalized_mutual_info_score(*both)),
        "homogeneity": float(_sklearn.homogeneity_score(*both)),
        "completeness": float(_sklearn.completeness_score(*both)),
        "n_scored": len(both[0]),
    }


# ----------------------------------------------------------------------------------------- continuity


def chaos(labels: ArrayLike, coordinates: np.ndarray) -> float:
    """CHAOS: mean distance from a spot to the nearest one of its own domain; lower is smoother.

    Parameters
    ----------
    labels : array-like, shape (n_spots,)
        The domains. Spots without one (None, NaN, "") are left out.
    coordinates : ndarray, shape (n_spots, 2) or (n_spots, 3)
        In any unit: each axis is standardised (ddof 1) first.

    Returns
    -------
    float
        In standard deviations of the coordinates. It shrinks as spots grow denser, so that only
        labellings of one and the same section compare. A domain of a single spot adds nothing.

    Raises
    ------
    InputError
        The lengths differ, a coordinate is not finite, or fewer than two spots have a label.

    References
    ----------
    Shang and Zhou, Nature Communications 2022 (SpatialPCA).
    """
    return _chaos(*_labelled(labels, coordinates))


def pas(labels: ArrayLike, coordinates: np.ndarray, n_neighbors: int = 10) -> float:
    """PAS: share of abnormal spots, those most of whose neighbours lie in other domains.

    Parameters
    ----------
    labels : array-like, shape (n_spots,)
        The domains. Spots without one (None, NaN, "") are left out.
    coordinates : ndarray, shape (n_spots, 2) or (n_spots, 3)
        In any unit.
    n_neighbors : int
        Nearest spots to look at; a spot is abnormal when more than half of them, six of ten, are of
        another domain. At most ``n_spots - 1`` are taken.

    Returns
    -------
    float
        In [0, 1]; lower is smoother.

    Raises
    ------
    InputError
        The lengths differ, a coordinate is not finite, fewer than two spots have a label, or
        ``n_neighbors`` is below 1.

    References
    ----------
    Shang and Zhou, Nature Communications 2022 (SpatialPCA).
    """
    if n_neighbors < 1:
        raise InputError(f"n_neighbors must be at least 1; found {n_neighbors}.")
    return _pas(*_labelled(labels, coordinates), n_neighbors)


def spatial_silhouette(
    labels: ArrayLike, coordinates: np.ndarray, *, max_spots: int = 5000, seed: int = 0
) -> float:
    """Silhouette of the domains in the plane of the section.

    Parameters
    ----------
    labels : array-like, shape (n_spots,)
        The domains. Spots without one (None, NaN, "") are left out.
    coordinates : ndarray, shape (n_spots, 2) or (n_spots, 3)
        In any unit.
    max_spots : int
        Up to this many spots the score is exact. Of more, a random sample of this size (and at
        least one spot of every domain) is scored: the silhouette needs all pairs of its spots.
    seed : int
        Of the sample; numpy's global generator is neither read nor changed.

    Returns
    -------
    float
        In [-1, 1]; higher is more compact. NaN where it is undefined: with a single domain, or with
        as many domains as spots. Layers, being long and thin, score low however well they are found.

    Raises
    ------
    InputError
        The lengths differ, a coordinate is not finite, fewer than two spots have a label, or
        ``max_spots`` is below 2.

    References
    ----------
    Rousseeuw, Journal of Computational and Applied Mathematics 1987.
    """
    if max_spots < 2:
        raise InputError(f"max_spots must be at least 2; found {max_spots}.")
    return _silhouette(*_labelled(labels, coordinates), max_spots, seed)


def continuity(
    labels: ArrayLike, coordinates: np.ndarray, sample: ArrayLike | None = None, *, seed: int = 0
) -> dict[str, float]:
    """All continuity scores at once.

    Parameters
    ----------
    labels : array-like, shape (n_spots,)
        The domains. Spots without one (None, NaN, "") are left out.
    coordinates : ndarray, shape (n_spots, 2) or (n_spots, 3)
        In any unit.
    sample : array-like, shape (n_spots,), optional
        The section of each spot. Each section is scored by itself, and the scores are averaged over
        the sections in proportion to their spots; one with fewer than two labelled spots is left out.
    seed : int
        For the silhouette of large sections, see :func:`spatial_silhouette`.

    Returns
    -------
    dict
        ``chaos``, ``pas`` and ``silhouette`` (NaN where undefined in every section).

    Raises
    ------
    InputError
        As for :func:`chaos`; or ``sample`` has another length, or holds missing values.
    """
    codes, points = _labelled(labels, coordinates, keep_all=True)
    if sample is None:
        sections = np.zeros(len(codes), dtype=np.int64)
    else:
        sections = _codes(sample)
        if len(sections) != len(codes) or (sections < 0).any():
            raise InputError(
                f"sample must name the section of each of the {len(codes)} spots; found {len(sections)} "
                f"entries, {int((sections < 0).sum())} of them missing."
            )
    scores, weights = [], []
    for section in np.unique(sections):
        inside = (sections == section) & (codes >= 0)
        if inside.sum() >= 2:
            own = codes[inside], points[inside]
            scores.append((_chaos(*own), _pas(*own, 10), _silhouette(*own, 5000, seed)))
            weights.append(int(inside.sum()))
    mean = []
    for column in np.array(scores).T:
        defined = np.isfinite(column)
        mean.append(
            float(np.average(column[defined], weights=np.array(weights)[defined]))
            if defined.any()
            else float("nan")
        )
    return dict(zip(("chaos", "pas", "silhouette"), mean, strict=True))


# -------------------------------------------------------------------------------------------- kernels


def _chaos(codes: np.ndarray, points: np.ndarray) -> float:
    spread = points.std(axis=0, ddof=1)
    spread[spread == 0] = 1  # spots on a line: that axis says nothing
    scaled = points / spread  # a shift changes no distance
    total = 0.0
    for domain in np.unique(codes):
        own = scaled[codes == domain]
        if len(own) > 1:
            # the first is the spot itself, or its double
            distance, _ = cKDTree(own).query(own, k=2, workers=n_threads())
            total += distance[:, 1].sum()
    return float(total / len(codes))


def _pas(codes: np.ndarray, points: np.ndarray, n_neighbors: int) -> float:
    k = min(n_neighbors, len(codes) - 1)
    _, found = cKDTree(points).query(points, k=k + 1, workers=n_threads())
    # Leave each spot itself out. Where more than k others lie at the very same place, it may not be
    # among those found: then the last of them goes.
    itself = found == np.arange(len(codes))[:, None]
    itself[~itself.any(axis=1), -1] = True
    neighbors = found[~itself].reshape(len(codes), k)
    elsewhere = (codes[neighbors] != codes[:, None]).sum(axis=1)
    return float(np.mean(elsewhere > k / 2))


def _silhouette(codes: np.ndarray, points: np.ndarray, max_spots: int, seed: int) -> float:
    if len(codes) > max_spots:
        order = np.random.default_rng(seed).permutation(len(codes))
        _, first = np.unique(codes[order], return_index=True)
        chosen = order[np.union1d(np.arange(max_spots), first)]
        codes, points = codes[chosen], points[chosen]
    if not 2 <= len(np.unique(codes)) < len(codes):
        return float("nan")
    with sklearn.config_context(working_memory=64):  # MiB: rows of distances held at a time
        return float(_sklearn.silhouette_score(points, codes))


# ---------------------------------------------------------------------------------------------- doors


def _codes(values: ArrayLike) -> np.ndarray:
    """Number the distinct labels; -1 where missing (None, NaN, ""); shape (n,), int64."""
    array: np.ndarray = np.asarray(values)
    if array.ndim != 1:
        raise InputError(f"Labels must be one-dimensional, one per spot; found shape {array.shape}.")
    codes, levels = pd.factorize(array)
    empty = np.flatnonzero([isinstance(level, str) and not level.strip() for level in levels])
    return np.where(np.isin(codes, empty), -1, codes).astype(np.int64)


def _codes_of_both(truth: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """The codes of the spots labelled in both."""
    first, second = _codes(truth), _codes(labels)
    if len(first) != len(second):
        raise InputError(
            f"truth and labels must describe the same spots; found {len(first)} and {len(second)}."
        )
    both = (first >= 0) & (second >= 0)
    if both.sum() < 2:
        raise InputError(
            f"Agreement needs at least 2 spots labelled in both; found {int(both.sum())} of {len(both)}. "
            "Check that the annotation belongs to this section and names the same spots."
        )
    return first[both], second[both]


def _labelled(
    labels: ArrayLike, coordinates: np.ndarray, keep_all: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Codes and float64 coordinates of the labelled spots, or with ``keep_all`` of every spot."""
    codes = _codes(labels)
    points = np.asarray(coordinates, dtype=np.float64)
    if points.ndim != 2 or len(points) != len(codes):
        raise InputError(
            f"coordinates must have one row for each of the {len(codes)} labels; found shape {points.shape}."
        )
    if (codes >= 0).sum() < 2:
        raise InputError(f"Continuity needs at least 2 labelled spots; found {int((codes >= 0).sum())}.")
    if not np.isfinite(points[codes >= 0]).all():
        raise InputError("coordinates must be finite; found NaN or infinite values. Remove those spots.")
    return (codes, points) if keep_all else (codes[codes >= 0], points[codes >= 0])
