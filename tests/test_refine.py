from collections import Counter

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from amilst_lite.errors import InputError
from amilst_lite.simulate import simulate_tissue
from amilst_lite.spatial import refine
from amilst_lite.spatial.graph import SpatialGraph
from amilst_lite.spatial.refine import majority_vote


def _slowly(labels, neighbor_lists):
    """The rule in words: strictly most votes wins, else stay; emptied domains keep their spots."""
    refined = []
    for own, neighbors in zip(labels, neighbor_lists, strict=True):
        votes = Counter([own, *(labels[j] for j in neighbors)]).most_common()
        tied = len(votes) > 1 and votes[0][1] == votes[1][1]
        refined.append(own if tied else votes[0][0])
    while set(refined) != set(labels):
        gone = set(labels) - set(refined)
        refined = [old if old in gone else new for old, new in zip(labels, refined, strict=True)]
    return refined


def _nearest_lists(coordinates, k):
    distance = cdist(coordinates, coordinates)
    np.fill_diagonal(distance, np.inf)
    return np.argsort(distance, axis=1)[:, :k]


@pytest.mark.parametrize("n_neighbors", [1, 4, 6, 11])
def test_equals_a_loop_over_spots(n_neighbors):
    rng = np.random.default_rng(n_neighbors)
    coordinates = rng.uniform(size=(250, 2))
    labels = np.where(rng.random(250) < 0.7, (4 * coordinates[:, 0]).astype(int), rng.integers(0, 9, 250))
    expected = _slowly(list(labels), _nearest_lists(coordinates, n_neighbors))
    found = majority_vote(labels, coordinates, n_neighbors)
    np.testing.assert_array_equal(found, expected)
    assert (found != labels).any() == (n_neighbors > 1)  # one against one is always a tie


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_graph_equals_a_loop_over_spots(data):
    n = data.draw(st.integers(2, 14))
    labels = data.draw(st.lists(st.sampled_from("abcd"), min_size=n, max_size=n))
    cells = st.lists(st.booleans(), min_size=n * n, max_size=n * n)
    dense = np.array(data.draw(cells)).reshape(n, n)
    lists = [[j for j in np.flatnonzero(row) if j != i] for i, row in enumerate(dense)]
    found = majority_vote(labels, sp.csr_matrix(dense.astype(float)))
    assert list(found) == _slowly(labels, lists)
    assert set(found) == set(labels)


def test_every_sparse_form_of_a_graph_is_the_same_graph():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, size=80)
    dense = (rng.random((80, 80)) < 0.08) * rng.uniform(0.1, 9, (80, 80))
    expected = majority_vote(labels, sp.csr_matrix(dense))
    with_loops = sp.csr_matrix(dense + 50 * np.eye(80))
    stored = np.ones((80, 80), dtype=bool)  # every entry stored, most of them zero
    explicit_zeros = sp.csr_matrix((dense.ravel(), np.nonzero(stored)), shape=(80, 80))
    assert explicit_zeros.nnz == 6400
    for graph in (
        sp.csc_matrix(dense),
        sp.coo_array(dense),
        with_loops,
        explicit_zeros,
        sp.csr_matrix(dense > 0),
    ):
        np.testing.assert_array_equal(majority_vote(labels, graph), expected)


def test_an_isolated_spot_changes_and_a_tie_does_not():
    line = np.arange(8, dtype=float)[:, None] * [1, 0]
    np.testing.assert_array_equal(majority_vote(list("aaabaabb"), line, 2), list("aaaaaabb"))
    # two against two: the middle spots of a border keep their own
    graph = sp.csr_matrix(np.array([[0, 1, 1, 1], [1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]]))
    np.testing.assert_array_equal(majority_vote([0, 0, 1, 1], graph), [0, 0, 1, 1])


def test_no_domain_disappears():
    # the only spot of b is outvoted, and stays all the same
    line = np.arange(5, dtype=float)[:, None] * [1, 0]
    np.testing.assert_array_equal(majority_vote(list("aabaa"), line, 2), list("aabaa"))
    # b moves to a, c moves to b: giving b its spot back must not leave c without
    graph = sp.lil_matrix((6, 6))
    graph[3, [0, 1, 2]] = 1
    graph[4, [3]] = 1
    labels = np.array(list("aaabcb"))
    graph[5, [0, 1, 2]] = 1
    graph[4, [3, 5]] = 1
    assert set(majority_vote(labels, graph)) == {"a", "b", "c"}


def test_labels_keep_their_type():
    coordinates = np.random.default_rng(1).uniform(size=(20, 2))
    codes = np.arange(20) % 3
    assert majority_vote(codes.astype(np.int32), coordinates).dtype == np.int32
    words = pd.Series(pd.Categorical(np.array(["x", "y", "z"])[codes]), index=[f"s{i}" for i in range(20)])
    np.testing.assert_array_equal(
        majority_vote(words, coordinates), np.array(["x", "y", "z"])[majority_vote(codes, coordinates)]
    )


def test_sections_do_not_vote_in_each_other():
    rng = np.random.default_rng(2)
    coordinates = rng.uniform(size=(60, 2))
    first, second = rng.integers(0, 3, 60), rng.integers(0, 3, 60)
    apart = [majority_vote(labels, coordinates) for labels in (first, second)]
    # one section laid over the other, their spots interleaved
    order = rng.permutation(120)
    both = majority_vote(
        np.r_[first, second][order],
        np.vstack([coordinates, coordinates])[order],
        sample=np.repeat(["one", "two"], 60)[order],
    )
    np.testing.assert_array_equal(both, np.r_[apart[0], apart[1]][order])


@pytest.mark.parametrize("places", ["scattered", "grid", "shared"])
@pytest.mark.parametrize("n_neighbors", [1, 4, 6])
def test_neighbors_of_the_graph_are_those_of_the_coordinates(places, n_neighbors, monkeypatch):
    rng = np.random.default_rng(3)
    coordinates = rng.uniform(size=(120, 2))
    if places == "grid":  # neighbors tie at the k-th distance
        coordinates = np.stack(np.meshgrid(np.arange(10.0), np.arange(12.0)), -1).reshape(-1, 2)
    elif places == "shared":
        coordinates[:10] = coordinates[10:20]
    sample = np.repeat([0, 1], 60)
    graph = SpatialGraph.from_coordinates(coordinates, n_neighbors=6, sample=sample)
    labels, points, sections = rng.integers(0, 12, 120), coordinates[graph.order], sample[graph.order]
    expected = majority_vote(labels, points, n_neighbors, sections)
    if places != "shared":  # it does not search
        monkeypatch.setattr(refine, "nearest_neighbors", None)
    found = majority_vote(labels, points, n_neighbors, sections, graph=graph)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("options", [{"radius": 0.2}, {"symmetrization": "mutual"}, {"n_neighbors": 5}])
def test_graph_of_other_neighbors_is_not_used(options):
    rng = np.random.default_rng(4)
    coordinates = rng.uniform(size=(150, 2))
    graph = SpatialGraph.from_coordinates(coordinates, **{"n_neighbors": 6, **options})
    assert graph.nearest(6) is None
    labels, points = rng.integers(0, 4, 150), coordinates[graph.order]
    found = majority_vote(labels, points, 6, graph=graph)
    np.testing.assert_array_equal(found, majority_vote(labels, points, 6))


def test_small_sections_and_duplicate_positions():
    np.testing.assert_array_equal(majority_vote(["a"], np.zeros((1, 2))), ["a"])
    np.testing.assert_array_equal(majority_vote([0, 1], np.zeros((2, 2)), sample=[0, 1]), [0, 1])
    heap = np.zeros((20, 2))  # all at one place: still no spot votes twice for itself
    labels = np.array([1] * 19 + [0])
    np.testing.assert_array_equal(majority_vote(labels, heap, 6), labels)  # 0 would have vanished


def test_layered_tissue_improves_and_results_repeat_to_the_bit():
    tissue = simulate_tissue(1500, 40, 5, seed=3)
    rng = np.random.default_rng(3)
    noisy = np.where(rng.random(1500) < 0.15, rng.integers(0, 5, 1500), tissue.domains)
    refined = majority_vote(noisy, tissue.coordinates)
    assert np.mean(refined == tissue.domains) > 0.95 > np.mean(noisy == tissue.domains)
    np.testing.assert_array_equal(refined, majority_vote(noisy, tissue.coordinates))


@pytest.mark.parametrize(
    ("labels", "neighbors", "options", "match"),
    [
        ([0, 1, 1], np.zeros((2, 2)), {}, "one row for each"),
        ([0, 1, None], np.zeros((3, 2)), {}, "missing"),
        ([[0, 1]], np.zeros((1, 2)), {}, "one-dimensional"),
        ([0, 1, 1], np.full((3, 2), np.inf), {}, "finite"),
        ([0, 1, 1], np.zeros((3, 2)), {"n_neighbors": 0}, "n_neighbors"),
        ([0, 1, 1], np.zeros((3, 2)), {"sample": [0, 1]}, "sample"),
        ([0, 1, 1], sp.eye(4, format="csr"), {}, "3 × 3"),
        ([0, 1, 1], sp.eye(3, format="csr"), {"sample": [0, 0, 1]}, "sample"),
    ],
)
def test_invalid_input_is_refused(labels, neighbors, options, match):
    with pytest.raises(InputError, match=match):
        majority_vote(labels, neighbors, **options)
