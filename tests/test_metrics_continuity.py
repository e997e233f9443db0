"""Continuity of domains against brute force, and its invariances."""

import math

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.metrics import silhouette_score

from amilst_lite import metrics
from amilst_lite.errors import InputError
from amilst_lite.metrics import _continuity


@pytest.fixture
def section():
    """300 spots at random positions in four domains; a tenth of the labels is random."""
    rng = np.random.default_rng(0)
    coordinates = rng.uniform(0, [30, 10], size=(300, 2))
    labels = (coordinates[:, 0] // 8).astype(int)
    changed = rng.random(300) < 0.1
    labels[changed] = rng.integers(0, 4, size=changed.sum())
    return labels, coordinates


def _brute_chaos(labels, coordinates):
    scaled = (coordinates - coordinates.mean(axis=0)) / coordinates.std(axis=0, ddof=1)
    distance = cdist(scaled, scaled)
    np.fill_diagonal(distance, np.inf)
    distance[labels[:, None] != labels] = np.inf
    nearest = distance.min(axis=1)
    return nearest[np.isfinite(nearest)].sum() / len(labels)


def _brute_pas(labels, coordinates):
    distance = cdist(coordinates, coordinates)
    np.fill_diagonal(distance, np.inf)
    nearest = np.argsort(distance, axis=1)[:, :10]
    return np.mean((labels[nearest] != labels[:, None]).sum(axis=1) >= 6)


def test_continuity_against_brute_force(section):
    labels, coordinates = section
    assert metrics.chaos(labels, coordinates) == pytest.approx(_brute_chaos(labels, coordinates))
    assert metrics.pas(labels, coordinates) == pytest.approx(_brute_pas(labels, coordinates))
    assert 0.02 < metrics.pas(labels, coordinates) < 0.5
    exact = silhouette_score(coordinates, labels)
    assert metrics.spatial_silhouette(labels, coordinates) == pytest.approx(exact)
    assert metrics.continuity(labels, coordinates) == {
        "chaos": metrics.chaos(labels, coordinates),
        "pas": metrics.pas(labels, coordinates),
        "silhouette": metrics.spatial_silhouette(labels, coordinates),
    }


def _hexagonal_section():
    """A hexagonal grid with ten bands of three rows and random errors."""
    rng = np.random.default_rng(6)
    row, column = np.divmod(np.arange(600), 20)
    coordinates = np.stack([column + 0.5 * (row % 2), row * np.sqrt(0.75)], axis=1)
    labels = row // 3
    wrong = rng.random(600) < 0.3
    labels[wrong] = rng.integers(0, 10, size=wrong.sum())
    return labels, coordinates


def test_pas_includes_all_tied_neighbors():
    """On a hexagonal grid the 10th neighbor is one of six at the same distance."""
    labels, coordinates = _hexagonal_section()
    distance = cdist(coordinates, coordinates)
    np.fill_diagonal(distance, np.inf)
    near = distance <= 1.0001 * np.sort(distance, axis=1)[:, 9:10]
    assert (near.sum(axis=1) > 10).mean() > 0.5
    different = (near & (labels[:, None] != labels)).sum(axis=1)
    assert metrics.pas(labels, coordinates) == np.mean(different > near.sum(axis=1) / 2)


@pytest.mark.parametrize("angle", [0.1, 1.0, 2.5])
def test_pas_does_not_depend_on_orientation_or_rounding(angle):
    labels, coordinates = _hexagonal_section()
    expected = metrics.pas(labels, coordinates)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    assert metrics.pas(labels, 137 * coordinates @ rotation + 5) == expected
    assert metrics.pas(labels, coordinates * [-1, 1]) == expected
    jitter = np.random.default_rng(7).normal(scale=1e-7, size=coordinates.shape)
    assert metrics.pas(labels, coordinates + jitter) == expected
    order = np.random.default_rng(8).permutation(len(labels))
    assert metrics.pas(labels[order], coordinates[order]) == expected


def test_three_dimensional_coordinates():
    rng = np.random.default_rng(9)
    coordinates = rng.uniform(0, [20, 10, 5], size=(400, 3))
    labels = np.where(rng.random(400) < 0.8, coordinates[:, 2] // 2, 0).astype(int)
    assert metrics.chaos(labels, coordinates) == pytest.approx(_brute_chaos(labels, coordinates))
    assert metrics.pas(labels, coordinates) == pytest.approx(_brute_pas(labels, coordinates))


def test_six_of_ten_is_abnormal_and_five_is_not():
    ring = np.exp(2j * np.pi * np.arange(10) / 10)
    coordinates = np.vstack([[0.0, 0.0], np.stack([ring.real, ring.imag], axis=1)])
    for others, abnormal in ((5, False), (6, True)):
        labels = np.array([0] + [1] * others + [0] * (10 - others))
        # eleven spots: the ten neighbors of each are all the others
        in_ring = [(labels == label).sum() for label in labels]
        expected = np.mean([11 - same >= 6 for same in in_ring])
        assert metrics.pas(labels, coordinates) == pytest.approx(expected)
        assert (11 - in_ring[0] >= 6) == abnormal


def test_smoother_labels_score_better(section):
    _, coordinates = section
    bands = (coordinates[:, 0] // 8).astype(int)
    shuffled = np.random.default_rng(2).permutation(bands)
    smooth, rough = metrics.continuity(bands, coordinates), metrics.continuity(shuffled, coordinates)
    assert smooth["chaos"] < rough["chaos"]
    assert smooth["pas"] < 0.1 < 0.5 < rough["pas"]
    assert smooth["silhouette"] > rough["silhouette"]


def test_units_names_and_order_do_not_matter(section):
    labels, coordinates = section
    expected = metrics.continuity(labels, coordinates)
    order = np.random.default_rng(3).permutation(len(labels))
    names = np.array(["d", "b", "a", "c"])[labels]
    found = metrics.continuity(names[order], 65.0 * coordinates[order] + 1000)
    assert found == pytest.approx(expected)


def test_spots_at_equal_positions_are_not_their_own_neighbors():
    coordinates = np.zeros((30, 2))
    coordinates[:, 0] = np.repeat([0.0, 1.0], 15)  # more duplicates than neighbors
    labels = np.repeat([0, 1], 15)
    assert metrics.pas(labels, coordinates) == 0
    assert metrics.chaos(labels, coordinates) == 0
    assert metrics.pas(np.arange(30), coordinates) == 1


def test_few_spots_and_domains_of_one_spot():
    coordinates = np.array([[0.0, 0], [1, 0], [5, 0]])  # on a line, fewer than ten neighbors
    assert metrics.pas([0, 0, 1], coordinates) == pytest.approx(1 / 3)
    # a domain of one spot contributes 0
    assert metrics.chaos([0, 0, 1], coordinates) == pytest.approx(2 / coordinates[:, 0].std(ddof=1) / 3)
    assert math.isnan(metrics.spatial_silhouette([0, 0, 0], coordinates))
    assert math.isnan(metrics.spatial_silhouette([0, 1, 2], coordinates))
    alone = metrics.continuity(["x", "x", "x"], coordinates)
    assert alone["pas"] == 0 and math.isnan(alone["silhouette"])


def test_unlabeled_spots_are_excluded(section):
    labels, coordinates = section
    expected = metrics.continuity(labels, coordinates)
    more = np.array([*labels, None, ""], dtype=object)
    places = np.vstack([coordinates, [[5, 5], [np.nan, np.nan]]])
    assert metrics.continuity(more, places) == pytest.approx(expected)
    assert metrics.chaos(more, places) == pytest.approx(expected["chaos"])


def test_sections_are_scored_separately(section):
    labels, coordinates = section
    alone = metrics.continuity(labels, coordinates)
    # the same section twice, with the same coordinates
    twice = metrics.continuity(np.tile(labels, 2), np.tile(coordinates, (2, 1)), np.repeat(["a", "b"], 300))
    assert twice == pytest.approx(alone)
    # weights are proportional to the numbers of spots
    part = metrics.continuity(labels[:100], coordinates[:100])
    both = metrics.continuity(
        np.r_[labels, labels[:100]],
        np.vstack([coordinates, coordinates[:100]]),
        np.repeat([0, 1], [300, 100]),
    )
    assert both["pas"] == pytest.approx(0.75 * alone["pas"] + 0.25 * part["pas"])


def test_several_labelings_get_the_scores_of_each(section, monkeypatch):
    labels, coordinates = section
    sections = np.arange(300) % 3
    partly = np.where(np.arange(300) % 7, labels, -1).astype(object)
    partly[partly == -1] = None
    labelings = [labels, labels[::-1].copy(), partly]
    expected = [metrics.continuity(one, coordinates, sections) for one in labelings]
    searched = []
    original = _continuity._neighbors
    monkeypatch.setattr(_continuity, "_neighbors", lambda *a: searched.append(1) or original(*a))
    assert metrics.continuity_of_each(labelings, coordinates, sections) == expected
    assert len(searched) == 6  # once for the first two


def test_sections_of_single_spots_have_no_scores():
    found = metrics.continuity([0, 1, 0], np.eye(3), ["a", "b", "c"])
    assert all(math.isnan(value) for value in found.values())


def test_silhouettes_of_many_sections_compare_fewer_pairs_of_each(monkeypatch):
    rng = np.random.default_rng(0)
    points = rng.random((4800, 2))
    labels = (2 * points[:, 0]).astype(int)
    sizes = []
    original = _continuity.silhouettes
    monkeypatch.setattr(_continuity, "silhouettes", lambda *a: sizes.append(len(a[0])) or original(*a))
    monkeypatch.setattr(_continuity, "_MOST_SPOTS", 800)
    few = metrics.continuity(labels, points, np.arange(4800) % 4)
    many = metrics.continuity(labels, points, np.arange(4800) % 16)
    assert sizes == [800] * 4 + [300] * 16  # sections of 300
    monkeypatch.setattr(_continuity, "_MOST_SPOTS", 400)
    again = metrics.continuity(labels, points, np.arange(4800) % 16)
    assert sizes[-16:] == [200] * 16
    assert again["silhouette"] == pytest.approx(many["silhouette"], abs=0.02)
    assert few["silhouette"] == pytest.approx(many["silhouette"], abs=0.02)


def test_silhouette_of_many_spots_uses_a_seeded_sample():
    rng = np.random.default_rng(4)
    coordinates = rng.uniform(size=(4000, 2))
    labels = (3 * coordinates[:, 0]).astype(int)
    labels[17] = 9  # a domain of one spot must be in the sample
    exact = metrics.spatial_silhouette(labels, coordinates)
    sampled = metrics.spatial_silhouette(labels, coordinates, max_spots=800, seed=1)
    assert sampled != exact and sampled == pytest.approx(exact, abs=0.05)
    assert sampled == metrics.spatial_silhouette(labels, coordinates, max_spots=800, seed=1)
    assert sampled != metrics.spatial_silhouette(labels, coordinates, max_spots=800, seed=2)


def test_global_generator_is_not_used(section):
    np.random.seed(1)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    metrics.spatial_silhouette(*section, max_spots=50)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_invalid_arguments(section):
    labels, coordinates = section
    holed = coordinates.copy()
    holed[3, 1] = np.nan
    for score in (metrics.chaos, metrics.pas, metrics.spatial_silhouette, metrics.continuity):
        with pytest.raises(InputError, match="one row for each"):
            score(labels[:-1], coordinates)
        with pytest.raises(InputError, match="finite"):
            score(labels, holed)
        with pytest.raises(InputError, match="at least 2"):
            score([1, None, None], coordinates[:3])
    with pytest.raises(InputError, match="n_neighbors"):
        metrics.pas(labels, coordinates, 0)
    with pytest.raises(InputError, match="max_spots"):
        metrics.spatial_silhouette(labels, coordinates, max_spots=1)
    with pytest.raises(InputError, match="n_neighbors must be an integer"):
        metrics.pas(labels, coordinates, 2.5)
    with pytest.raises(InputError, match="2 or 3 columns"):
        metrics.pas(labels, coordinates[:, :1])
    for seed in (-1, 2**32, 1.5):
        with pytest.raises(InputError, match="seed"):
            metrics.continuity(labels, coordinates, seed=seed)
    with pytest.raises(InputError, match="sample"):
        metrics.continuity(labels, coordinates, [None] * 300)


def test_memory_of_100_000_spots():
    import tracemalloc

    rng = np.random.default_rng(5)
    coordinates = rng.uniform(size=(100_000, 2))
    labels = (5 * coordinates[:, 0]).astype(int)
    tracemalloc.start()
    metrics.continuity(labels, coordinates)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 400e6  # N×N bytes would be 10 GB
