"""Agreement of two labelings of the same spots; it does not depend on the names of the labels."""

from __future__ import annotations

from numpy.typing import ArrayLike
from sklearn import metrics as _sklearn

from ._common import codes_of_both

__all__ = ["adjusted_rand_index", "agreement", "completeness", "homogeneity", "normalized_mutual_info"]


def adjusted_rand_index(truth: ArrayLike, labels: ArrayLike) -> float:
    """Adjusted Rand index: share of pairs of spots on which both labelings agree, corrected for chance.

    Parameters
    ----------
    truth, labels : array-like, shape (n_spots,)
        Two labelings. Spots without a label (None, NaN, "") in either are excluded.

    Returns
    -------
    float
        1 for identical partitions, about 0 for independent ones, at least -0.5.

    Raises
    ------
    InputError
        The lengths differ, or fewer than two spots have both labels.

    References
    ----------
    Hubert and Arabie, Journal of Classification 1985.
    """
    return float(_sklearn.adjusted_rand_score(*codes_of_both(truth, labels)))


def normalized_mutual_info(truth: ArrayLike, labels: ArrayLike) -> float:
    """Mutual information divided by the arithmetic mean of the two entropies, in [0, 1].

    Parameters and errors as for :func:`adjusted_rand_index`.
    """
    return float(_sklearn.normalized_mutual_info_score(*codes_of_both(truth, labels)))


def homogeneity(truth: ArrayLike, labels: ArrayLike) -> float:
    """1 - H(truth | labels) / H(truth), in [0, 1]: 1 if no domain overlaps two annotated regions.

    Parameters and errors as for :func:`adjusted_rand_index`. Rosenberg and Hirschberg, EMNLP 2007.
    """
    return float(_sklearn.homogeneity_score(*codes_of_both(truth, labels)))


def completeness(truth: ArrayLike, labels: ArrayLike) -> float:
    """1 - H(labels | truth) / H(labels), in [0, 1]: 1 if no annotated region overlaps two domains.

    Parameters and errors as for :func:`adjusted_rand_index`. Rosenberg and Hirschberg, EMNLP 2007.
    """
    return float(_sklearn.completeness_score(*codes_of_both(truth, labels)))


def agreement(truth: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """All agreement scores.

    Parameters
    ----------
    truth, labels : array-like, shape (n_spots,)
        Annotation and domains. Spots without a label (None, NaN, "") in either are excluded.

    Returns
    -------
    dict
        ``ari``, ``nmi``, ``homogeneity``, ``completeness`` and ``n_scored``, the number of spots compared.

    Raises
    ------
    InputError
        The lengths differ, or fewer than two spots have both labels.
    """
    both = codes_of_both(truth, labels)
    return {
        "ari": float(_sklearn.adjusted_rand_score(*both)),
        "nmi": float(_sklearn.normalized_mutual_info_score(*both)),
        "homogeneity": float(_sklearn.homogeneity_score(*both)),
        "completeness": float(_sklearn.completeness_score(*both)),
        "n_scored": len(both[0]),
    }
