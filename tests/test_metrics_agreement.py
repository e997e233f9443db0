"""Agreement of labelings against formulas, and its invariances."""

import itertools

import numpy as np
import pandas as pd
import pytest

from amilst_lite import metrics
from amilst_lite.errors import InputError
from amilst_lite.metrics._common import codes_of


def _ari_by_pairs(truth, labels):
    """Adjusted Rand index from all pairs of spots."""
    both = first = second = total = 0
    for i, j in itertools.combinations(range(len(truth)), 2):
        same_first, same_second = truth[i] == truth[j], labels[i] == labels[j]
        both += same_first and same_second
        first += same_first
        second += same_second
        total += 1
    chance = first * second / total
    return (both - chance) / ((first + second) / 2 - chance)


def _entropy(*columns):
    _, counts = np.unique(np.stack(columns), axis=1, return_counts=True)
    share = counts / counts.sum()
    return -(share * np.log(share)).sum()


def test_agreement_against_the_formulas():
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 4, size=60)
    labels = np.where(rng.random(60) < 0.6, truth, rng.integers(0, 5, size=60))
    h_truth, h_labels, h_both = _entropy(truth), _entropy(labels), _entropy(truth, labels)
    shared = h_truth + h_labels - h_both
    found = metrics.agreement(truth, labels)
    assert found == {
        "ari": pytest.approx(_ari_by_pairs(truth, labels)),
        "nmi": pytest.approx(2 * shared / (h_truth + h_labels)),
        "homogeneity": pytest.approx(shared / h_truth),
        "completeness": pytest.approx(shared / h_labels),
        "n_scored": 60,
    }
    assert metrics.adjusted_rand_index(truth, labels) == found["ari"]
    assert metrics.normalized_mutual_info(truth, labels) == found["nmi"]
    assert metrics.homogeneity(truth, labels) == found["homogeneity"]
    assert metrics.completeness(truth, labels) == found["completeness"]


def test_names_and_types_of_labels_do_not_matter():
    truth = pd.Series(pd.Categorical(["L1", "L1", "WM", "WM", "L2"], categories=["WM", "L2", "L1", "L9"]))
    found = metrics.agreement(truth, np.array([7, 7, 0, 0, 3]))
    assert found["ari"] == found["nmi"] == 1 and found["n_scored"] == 5


@pytest.mark.parametrize("missing", [None, float("nan"), "", "  ", pd.NA])
def test_spots_without_annotation_are_excluded(missing):
    truth = np.array(["a", "a", "b", "b", "b"], dtype=object)
    labels = np.array([0, 1, 1, 1, 1])
    expected = metrics.agreement(truth, labels)
    more = np.array([*truth, missing, missing], dtype=object)
    assert metrics.agreement(more, [*labels, 0, 5]) == expected
    # and in the domains
    assert metrics.agreement([*truth, "a"], np.array([*labels, missing], dtype=object)) == expected


def test_missing_in_floats_and_categoricals():
    labels = [0, 0, 1, 1]
    assert metrics.agreement(np.array([1.0, np.nan, 2.0, 2.0]), labels)["n_scored"] == 3
    assert metrics.agreement(pd.Categorical(["x", None, "y", "y"]), labels)["n_scored"] == 3


@pytest.mark.parametrize(
    ("truth", "labels"),
    [
        ([1, 2, 3], [1, 2]),
        (["a", None, None], [1, 2, 3]),
        ([], []),
        ([[1, 2], [3, 4]], [1, 2]),
    ],
)
def test_invalid_labels(truth, labels):
    for score in (metrics.agreement, metrics.adjusted_rand_index, metrics.homogeneity):
        with pytest.raises(InputError):
            score(truth, labels)


def test_categories_are_compared_by_their_labels():
    truth = pd.Categorical(["b", "a", None, " ", "a"], categories=["unused", "b", " ", "a"])
    labels = pd.Series(["x", "y", "x", "y", "y"], dtype="category")
    plain = np.array(["b", "a", None, " ", "a"], dtype=object)
    for given in (truth, pd.Series(truth)):
        assert metrics.agreement(given, labels) == metrics.agreement(plain, labels.to_numpy())
    np.testing.assert_array_equal(codes_of(truth) >= 0, [True, True, False, False, True])
