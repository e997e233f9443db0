"""Scores of the integration of sections against brute force and scikit-learn, and their invariances."""

import math

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.spatial.distance import cdist
from sklearn.metrics import f1_score, silhouette_samples

from amilst_lite import metrics
from amilst_lite.errors import InputError
from amilst_lite.metrics import _integration as module


def _embedding(n=400, n_labels=4, n_sections=3, shift=1.0, seed=10):
    """Labels, sections and an embedding of 6 columns in which both differ; labels and sections of unequal sizes."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(n_labels, size=n, p=np.arange(1, n_labels + 1) / np.arange(1, n_labels + 1).sum())
    section = np.where(
        labels == 0, 0, rng.integers(0, n_sections, size=n)
    )  # label 0 in the first section only
    centers = 2 * rng.normal(size=(n_labels, 6))
    shifts = shift * rng.normal(size=(n_sections, 6))
    return labels, section, centers[labels] + shifts[section] + rng.normal(size=(n, 6))


def _brute_silhouettes(codes, points):
    distance = cdist(points, points)
    values = np.zeros(len(points))
    for i in range(len(points)):
        own = codes == codes[i]
        if own.sum() > 1:
            a = distance[i, own].sum() / (own.sum() - 1)
            b = min(distance[i, codes == other].mean() for other in set(codes) - {codes[i]})
            values[i] = (b - a) / max(a, b)
    return values


def _brute_lisi(codes, points, n_neighbors=90):
    """LISI of every spot by the formula of the paper, with β from a root finder."""
    k = min(n_neighbors, len(points))
    values = np.empty(len(points))
    for i, distance in enumerate(cdist(points, points)):
        nearest = [j for j in np.argsort(distance, kind="stable") if j != i][: k - 1]
        d = distance[nearest]

        def weights(log_beta, d=d):
            p = np.exp(-np.exp(log_beta) * (d - d.min()))
            return p / p.sum()

        def excess(log_beta, weights=weights):
            p = weights(log_beta)
            return -(p[p > 0] * np.log(p[p > 0])).sum() - np.log(k // 3)

        p = weights(brentq(excess, -20, 20, xtol=1e-12))
        values[i] = 1 / sum(p[codes[nearest] == code].sum() ** 2 for code in set(codes))
    return values


def test_silhouettes_against_brute_force_and_sklearn():
    labels, section, points = _embedding()
    found = metrics.silhouette_label(labels, points)
    assert found == pytest.approx((_brute_silhouettes(labels, points).mean() + 1) / 2)
    assert found == pytest.approx((silhouette_samples(points, labels).mean() + 1) / 2)
    by_label = []
    for label in (1, 2, 3):  # label 0 is in one section
        own = labels == label
        by_label.append(np.mean(1 - np.abs(_brute_silhouettes(section[own], points[own]))))
        by_sklearn = np.mean(1 - np.abs(silhouette_samples(points[own], section[own])))
        assert by_label[-1] == pytest.approx(by_sklearn)
    assert metrics.silhouette_batch(labels, section, points) == pytest.approx(np.mean(by_label))


def test_silhouette_batch_skips_labels_it_is_undefined_for():
    _, _, points = _embedding(n=40)
    labels, section = np.repeat(["a", "b", "c"], [20, 17, 3]), np.zeros(40, int)
    section[:20:2] = 1
    section[37:] = [0, 1, 2]  # b is in one section, c has one spot in each
    expected = np.mean(1 - np.abs(silhouette_samples(points[:20], section[:20])))
    assert metrics.silhouette_batch(labels, section, points) == pytest.approx(expected)
    assert math.isnan(metrics.silhouette_batch(labels[20:], section[20:], points[20:]))
    assert math.isnan(metrics.silhouette_label(["x"] * 40, points))
    assert math.isnan(metrics.silhouette_label(np.arange(40), points))


@pytest.mark.parametrize("n", [400, 70, 20])
def test_lisi_against_brute_force(n):
    """Of 70 and 20 spots, all are neighbors, and the perplexity is 23 and 6."""
    labels, section, points = _embedding(n)
    by_section, by_label = np.median(_brute_lisi(section, points)), np.median(_brute_lisi(labels, points))
    n_labels = len(np.unique(labels))
    assert metrics.ilisi(section, points, scale=False) == pytest.approx(by_section, abs=1e-4)
    assert metrics.ilisi(section, points) == pytest.approx((by_section - 1) / 2, abs=1e-4)
    assert metrics.clisi(labels, points, scale=False) == pytest.approx(by_label, abs=1e-4)
    expected = (n_labels - by_label) / (n_labels - 1)
    assert metrics.clisi(labels, points) == pytest.approx(expected, abs=1e-4)
    few = np.median(_brute_lisi(section, points, 15))
    assert metrics.ilisi(section, points, scale=False, n_neighbors=15) == pytest.approx(few, abs=1e-4)


def test_lisi_does_not_depend_on_unit_or_place():
    _, section, points = _embedding()
    expected = metrics.ilisi(section, points)
    for factor in (1e-6, 1e6):
        assert metrics.ilisi(section, factor * (points + 100)) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("n_sections", [2, 4])
def test_lisi_of_mixed_and_of_separate_sections(n_sections):
    rng = np.random.default_rng(11)
    points = rng.normal(size=(2000, 5))
    section = np.arange(2000) % n_sections
    # 30 effective neighbors at random: the expectation of Σ p² is about 1/B + (1 - 1/B) / 30
    at_random = 1 / (1 / n_sections + (1 - 1 / n_sections) / 30)
    mixed = metrics.ilisi(section, points, scale=False)
    assert mixed == pytest.approx(at_random, rel=0.1)
    assert metrics.ilisi(section, points) == pytest.approx((mixed - 1) / (n_sections - 1))
    apart = points + 100 * section[:, None]
    assert metrics.ilisi(section, apart, scale=False) == pytest.approx(1)
    assert metrics.ilisi(section, apart) == pytest.approx(0, abs=1e-12)
    assert metrics.clisi(section, apart) == pytest.approx(1)
    assert metrics.silhouette_batch(np.zeros(2000), section, points) > 0.95
    assert metrics.silhouette_batch(np.zeros(2000), section, apart) < 0.1


def test_lisi_of_equal_spots():
    """Of 500 spots at one place, the neighbors are not all from the section that comes first."""
    section = np.repeat(["a", "b"], 250)
    value = metrics.ilisi(section, np.ones((500, 3)), scale=False)
    assert value > 1.8
    assert metrics.ilisi(section[::-1], np.ones((500, 3)), scale=False) > 1.8
    two_places = np.repeat(np.eye(3)[:2], 250, axis=0)
    assert metrics.ilisi(section, two_places) == pytest.approx(0, abs=1e-12)
    assert math.isnan(metrics.clisi(["x"] * 500, np.ones((500, 3))))
    assert metrics.clisi(["x"] * 500, np.ones((500, 3)), scale=False) == 1


def test_graph_connectivity_by_hand():
    # on a line: a a a . b . a a, with two neighbors each (three counted with the spot itself)
    points = np.array([[0.0], [1.1], [2.3], [10.0], [21.0], [22.1]])
    labels = np.array(["a", "a", "a", "b", "a", "a"])
    # a: {0, 1, 2} and {4, 5}: the third neighbor of 4 and of 5 is b
    assert metrics.graph_connectivity(labels, points, n_neighbors=3) == pytest.approx((3 / 5 + 1) / 2)
    assert metrics.graph_connectivity(labels, np.tile(points, 4), n_neighbors=3) == pytest.approx(0.8)
    # with all others for neighbors every label is connected
    assert metrics.graph_connectivity(labels, points) == 1
    # one neighbor each: 0-1, 1-2, 2-3 and 4-5. Of a {1, 2, 3} and {4}, of b {0} and {5}
    labels = np.array(["b", "a", "a", "a", "a", "b"])
    assert metrics.graph_connectivity(labels, points, n_neighbors=2) == pytest.approx((3 / 4 + 1 / 2) / 2)


def test_graph_connectivity_against_a_dense_graph():
    labels, _, points = _embedding(shift=4.0)
    order = np.argsort(cdist(points, points), axis=1)[:, :5]
    adjacency = np.zeros((400, 400), bool)
    np.put_along_axis(adjacency, order, True, axis=1)
    shares = []
    for label in range(4):
        own = labels == label
        reach = (adjacency | adjacency.T)[np.ix_(own, own)]
        for _ in range(9):  # closure by squaring
            reach = reach.astype(int) @ reach > 0
        shares.append(reach.sum(axis=1).max() / own.sum())
    assert min(shares) < 1
    assert metrics.graph_connectivity(labels, points, n_neighbors=5) == pytest.approx(np.mean(shares))


@pytest.mark.slow  # pynndescent compiles for half a minute
def test_graph_connectivity_of_many_spots_uses_an_approximate_search(monkeypatch):
    labels, _, points = _embedding(6000)
    exact = metrics.graph_connectivity(labels, points)
    monkeypatch.setattr(module, "_ALL_PAIRS_UP_TO", 100)
    found = metrics.graph_connectivity(labels, points)
    assert found == pytest.approx(exact, abs=0.01)
    assert found == metrics.graph_connectivity(labels, points)


def test_isolated_labels_f1_by_hand():
    annotation = ["a"] * 4 + ["b"] * 4 + ["c"] * 2
    section = [1, 2, 1, 2, 1, 1, 1, 1, 2, 2]  # a in two sections, b and c in one
    domains = [0, 0, 0, 1, 1, 1, 1, 2, 2, 2]
    # b: domain 1 has 3 of its 4 spots and one other; c: domain 2 has its 2 spots and one other
    b, c = 2 * 3 / (4 + 4), 2 * 2 / (2 + 3)
    assert metrics.isolated_labels_f1(annotation, section, domains) == pytest.approx((b + c) / 2)
    # every label in two sections: all are isolated
    section = [1, 2] * 5
    a = 2 * 3 / (4 + 3)
    assert metrics.isolated_labels_f1(annotation, section, domains) == pytest.approx((a + b + c) / 3)


def test_isolated_labels_f1_against_sklearn():
    labels, section, _ = _embedding()
    rng = np.random.default_rng(12)
    domains = np.where(rng.random(400) < 0.7, labels, rng.integers(0, 6, size=400))
    best = max(f1_score(labels == 0, domains == domain) for domain in range(6))
    assert metrics.isolated_labels_f1(labels, section, domains) == pytest.approx(best)


def test_section_agreement():
    truth = np.array(["a", "a", "b", "b", "a", "b", "a", "b", None], dtype=object)
    domains = np.array([1, 1, 2, 2, 1, 1, 2, 2, 1])
    section = np.array(["s2", "s2", "s2", "s2", "s1", "s1", "s1", "s1", "s3"])
    found = metrics.section_agreement(truth, section, domains)
    assert list(found) == ["s1", "s2", "s3"] and found["s2"] == 1 and math.isnan(found["s3"])
    assert found["s1"] == pytest.approx(metrics.adjusted_rand_index(truth[4:8], domains[4:8]))
    scores = metrics.integration_scores(domains, section, annotation=truth)
    assert scores["section_ari_mean"] == pytest.approx((1 + found["s1"]) / 2)


def _all_scores(labels=None, domains=None):
    """Arguments of integration_scores: 20 % of the domains are wrong."""
    labels_, section, points = _embedding()
    rng = np.random.default_rng(13)
    domains = np.where(rng.random(400) < 0.8, labels_, rng.integers(0, 4, size=400))
    return domains, np.array(["s1", "s2", "s3"])[section], points, labels_


def test_integration_scores_are_those_of_the_functions():
    domains, section, points, labels = _all_scores()
    found = metrics.integration_scores(domains, section, points, labels)
    assert found == {
        "labels": "annotation",
        "n_labeled": 400,
        "silhouette_label": metrics.silhouette_label(labels, points),
        "silhouette_batch": metrics.silhouette_batch(labels, section, points),
        "ilisi": metrics.ilisi(section, points, scale=False),
        "ilisi_scaled": metrics.ilisi(section, points),
        "clisi": metrics.clisi(labels, points, scale=False),
        "clisi_scaled": metrics.clisi(labels, points),
        "graph_connectivity": metrics.graph_connectivity(labels, points),
        "isolated_labels_f1": metrics.isolated_labels_f1(labels, section, domains),
        "section_ari": metrics.section_agreement(labels, section, domains),
        "section_ari_mean": pytest.approx(
            np.mean([metrics.adjusted_rand_index(labels[own], domains[own])
                     for own in (section == name for name in ("s1", "s2", "s3"))])
        ),
        "nmi_domain_section": pytest.approx(metrics.normalized_mutual_info(domains, section)),
        "nmi_annotation_section": pytest.approx(metrics.normalized_mutual_info(labels, section)),
    }  # fmt: skip
    # without an annotation, the domains are the labels
    plain = metrics.integration_scores(domains, section, points)
    assert plain["labels"] == "domains"
    assert plain["clisi"] == metrics.clisi(domains, points, scale=False)
    annotated = {"isolated_labels_f1", "section_ari", "section_ari_mean", "nmi_annotation_section"}
    assert set(plain) == set(found) - annotated
    without = metrics.integration_scores(domains, section, annotation=labels)
    assert set(without) == {"labels", "n_labeled", "nmi_domain_section"} | annotated


def test_integration_does_not_depend_on_order_or_names():
    domains, section, points, labels = _all_scores()
    expected = metrics.integration_scores(domains, section, points, labels)
    order = np.random.default_rng(14).permutation(400)
    names = np.array(["d", "b", "a", "c"])
    found = metrics.integration_scores(
        names[domains][order], section[order], points[order], names[labels][order]
    )
    for name, value in expected.items():
        assert found[name] == (value if name == "labels" else pytest.approx(value, rel=1e-12)), name


def test_spots_without_annotation_are_left_out_of_what_needs_it():
    domains, section, points, labels = _all_scores()
    annotation = labels.astype(object)
    annotation[::7] = None
    annotation[1::49] = ""
    known = np.array([label is not None and label != "" for label in annotation])
    found = metrics.integration_scores(domains, section, points, annotation)
    part = metrics.integration_scores(domains[known], section[known], points[known], labels[known])
    whole = metrics.integration_scores(domains, section, points, labels)
    assert found["n_labeled"] == known.sum() < 400
    for name, value in found.items():
        of_all = name in ("ilisi", "ilisi_scaled", "nmi_domain_section")
        assert value == pytest.approx((whole if of_all else part)[name]), name


def test_integration_of_many_spots_uses_an_evenly_spaced_sample():
    labels, section, points = _embedding(4000, shift=0.5)
    labels[17] = 9  # a label of one spot must be in the sample
    order = np.random.default_rng(15).permutation(4000)
    for score in (
        lambda rows, n: metrics.silhouette_label(labels[rows], points[rows], max_spots=n),
        lambda rows, n: metrics.silhouette_batch(labels[rows], section[rows], points[rows], max_spots=n),
        lambda rows, n: metrics.ilisi(section[rows], points[rows], scale=False, max_spots=n),
        lambda rows, n: metrics.clisi(labels[rows], points[rows], scale=False, max_spots=n),
    ):
        exact, sampled = score(slice(None), 4000), score(slice(None), 500)
        assert sampled != exact and sampled == pytest.approx(exact, abs=0.05)
        assert score(order, 500) == pytest.approx(sampled, rel=1e-12)
        assert score(order, 4000) == pytest.approx(exact, rel=1e-12)


def test_invalid_arguments_of_integration():
    domains, section, points, labels = _all_scores()
    holed = points.copy()
    holed[3, 1] = np.nan
    for score in (
        lambda d, s, e: metrics.integration_scores(d, s, e),
        lambda d, s, e: metrics.silhouette_batch(d, s, e),
        lambda d, s, e: metrics.silhouette_label(d, e),
        lambda d, s, e: metrics.clisi(d, e),
        lambda d, s, e: metrics.ilisi(s, e),
        lambda d, s, e: metrics.graph_connectivity(d, e),
    ):
        with pytest.raises(InputError, match="one row for each of the 400 spots|for each of 399 spots"):
            score(domains, section, points[:-1])
        with pytest.raises(InputError, match="infinite values in 1 of 400"):
            score(domains, section, holed)
        with pytest.raises(InputError, match="shape"):
            score(domains, section, points[:, 0])
        with pytest.raises(InputError, match="numeric"):
            score(domains, section, np.full(points.shape, "x"))
    for score in (
        lambda s: metrics.integration_scores(domains, s, points),
        lambda s: metrics.silhouette_batch(domains, s, points),
        lambda s: metrics.ilisi(s, points),
        lambda s: metrics.isolated_labels_f1(labels, s, domains),
        lambda s: metrics.section_agreement(labels, s, domains),
    ):
        with pytest.raises(InputError, match="at least 2 sections; found 1"):
            score(["only"] * 400)
        with pytest.raises(InputError, match="one section for each of 400 spots"):
            score(section[:-1])
        with pytest.raises(InputError, match="have no section"):
            score([None, *section[1:]])
    nothing = [None] * 400
    with pytest.raises(InputError, match="at least 2 spots with a domain; found 0"):
        metrics.integration_scores(nothing, section)
    with pytest.raises(InputError, match="at least 2 spots with both"):
        metrics.integration_scores(domains, section, points, nothing)
    with pytest.raises(InputError, match="same spots"):
        metrics.integration_scores(domains, section, points, labels[1:])
    with pytest.raises(InputError, match="at least 2 labeled"):
        metrics.silhouette_label(nothing, points)
    for call in (
        lambda: metrics.ilisi(section, points, n_neighbors=2),
        lambda: metrics.graph_connectivity(labels, points, n_neighbors=1),
        lambda: metrics.clisi(labels, points, n_neighbors=9.5),
    ):
        with pytest.raises(InputError, match="n_neighbors"):
            call()
    for call in (
        lambda: metrics.silhouette_label(labels, points, max_spots=1),
        lambda: metrics.silhouette_batch(labels, section, points, max_spots=0),
        lambda: metrics.ilisi(section, points, max_spots=1.5),
    ):
        with pytest.raises(InputError, match="max_spots"):
            call()


def test_several_domains_are_scored_with_one_search(monkeypatch):
    labels, section, points = _embedding()
    wrong = np.random.default_rng(3).random(400) < 0.2
    missing = np.where(wrong, None, labels)
    labelings = [labels, np.roll(labels, 1), missing]
    expected = [
        [metrics.integration_scores(one, section, points, annotation) for one in labelings]
        for annotation in (None, labels)
    ]
    graphs, of = [], module._neighbor_graph
    monkeypatch.setattr(module, "_neighbor_graph", lambda *args: graphs.append(len(args[0])) or of(*args))
    for annotation, alone, searched in zip(
        (None, labels), expected, ([400, (~wrong).sum()], [400]), strict=True
    ):
        graphs.clear()
        assert metrics.integration_scores_of_each(labelings, section, points, annotation) == alone
        assert graphs == searched


def test_memory_of_integration():
    import tracemalloc

    labels, section, points = _embedding(20_000)
    tracemalloc.start()
    metrics.integration_scores(labels, section, points)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 270e6  # N×N bytes would be 400 MB, floats 3.2 GB


@pytest.mark.slow
def test_integration_against_scib_metrics():
    scib = pytest.importorskip("scib_metrics", reason="scib-metrics is not installed")
    from scib_metrics.nearest_neighbors import NeighborsResults

    labels, section, points = _embedding(1500, shift=0.7)
    wrong = np.random.default_rng(16).random(1500) < 0.2
    labels = np.where(wrong, np.roll(labels, 1), labels)
    distance = cdist(points, points)
    order = np.argsort(distance, axis=1)[:, :90]  # the spot itself is the first
    nearest = NeighborsResults(indices=order, distances=np.take_along_axis(distance, order, axis=1))
    # scib-metrics computes in float32
    pairs = {
        "silhouette_label": (metrics.silhouette_label(labels, points), scib.silhouette_label(points, labels)),
        "silhouette_batch": (
            metrics.silhouette_batch(labels, section, points),
            scib.silhouette_batch(points, labels, section),
        ),
        "ilisi": (metrics.ilisi(section, points), scib.ilisi_knn(nearest, section)),
        "clisi": (metrics.clisi(labels, points), scib.clisi_knn(nearest, labels)),
    }
    for name, (ours, theirs) in pairs.items():
        print(f"{name}: {ours:.6f}, scib-metrics {theirs:.6f}, difference {ours - theirs:.1e}")
        assert ours == pytest.approx(float(theirs), abs=1e-3), name
    # scib-metrics demands paths in both directions of the neighbor graph, scIB takes the symmetric one
    ours = metrics.graph_connectivity(labels, points)
    theirs = scib.graph_connectivity(nearest.subset_neighbors(15), labels)
    print(f"graph_connectivity: {ours:.6f}, scib-metrics {theirs:.6f}, difference {ours - theirs:.1e}")
    assert 0 <= ours - theirs < 0.05


def test_scores_of_many_spots_are_those_of_a_stated_sample(monkeypatch):
    rng = np.random.default_rng(0)
    domains = np.repeat(["a", "b", "c"], 400)
    section = np.tile(["one", "two"], 600)
    embedding = (rng.normal(size=(1200, 4)) + 4 * np.eye(4)[np.repeat([0, 1, 2], 400)]).astype(np.float32)
    whole = metrics.integration_scores(domains, section, embedding)
    assert "n_embedded" not in whole
    monkeypatch.setattr("amilst_lite.metrics._integration._ALL_PAIRS_UP_TO", 900)
    monkeypatch.setattr("amilst_lite.metrics._integration._SAMPLE", 600)
    sampled = metrics.integration_scores(domains, section, embedding)
    assert sampled["n_embedded"] == 600 and sampled["n_labeled"] == 1200
    assert sampled["nmi_domain_section"] == whole["nmi_domain_section"]
    for name in ("silhouette_label", "silhouette_batch", "graph_connectivity", "clisi_scaled"):
        assert sampled[name] == pytest.approx(whole[name], abs=0.05)
    shuffled = rng.permutation(1200)
    again = metrics.integration_scores(domains[shuffled], section[shuffled], embedding[shuffled])
    assert again == pytest.approx(sampled, nan_ok=True)
