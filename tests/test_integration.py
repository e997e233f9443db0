"""Section effects: shifts and offsets against constructed ones, the choice between corrections."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from amilst_lite import integration as module
from amilst_lite.cluster.kmeans import KMeans
from amilst_lite.integration import METHODS, section_effect
from amilst_lite.metrics import adjusted_rand_index


def sections_of_tissue(
    counts=((150, 150, 150), (150, 150, 150), (150, 150, 150)), shift=4.0, d=6, apart=8.0, seed=0
):
    """Blocks of 25 spots of one domain; ``counts``: spots of each domain in each section; first section unshifted."""
    rng = np.random.default_rng(seed)
    counts = np.asarray(counts)
    shifts = shift * rng.normal(size=(len(counts), d)) / np.sqrt(d)
    shifts[0] = 0
    sections, domains = [], []
    for section, row in enumerate(counts):
        blocks = rng.permutation(np.repeat(np.arange(len(row)), row // 25))
        domains.append(np.repeat(blocks, 25))
        sections.append(np.full(len(domains[-1]), section))
    domains, sections = np.concatenate(domains), np.concatenate(sections)
    centers = apart * np.eye(counts.shape[1], d)
    X = centers[domains] + shifts[sections] + rng.normal(size=(len(domains), d))
    return X.astype(np.float32), sections, domains, shifts


def centered(shift, sections):
    """The shifts less their mean over the spots, as `section_effect` returns them."""
    return shift - shift[sections].mean(0)


def test_center_subtracts_the_mean_of_each_section():
    X, sections, _, _ = sections_of_tissue()
    effect = section_effect(X, sections, 3, method="center")
    corrected = effect.remove(X, sections)
    for section in range(3):
        np.testing.assert_allclose(corrected[sections == section].mean(0), X.mean(0), atol=1e-4)


def test_none_changes_nothing():
    X, sections, _, _ = sections_of_tissue()
    effect = section_effect(X, sections, 3, method="none")
    assert effect.method == "none" and effect.strength == 0
    np.testing.assert_array_equal(effect.remove(X, sections), X)


def test_shift_is_recovered_where_sections_hold_different_domains():
    counts = ((400, 50, 0), (0, 250, 200), (150, 0, 300))
    X, sections, domains, truth = sections_of_tissue(counts)
    effect = section_effect(X, sections, 3, method="shift")
    np.testing.assert_allclose(effect.shift, centered(truth, sections), atol=0.25)
    # the means of the sections, in contrast, are those of their domains
    by_mean = section_effect(X, sections, 3, method="center")
    assert np.abs(by_mean.shift - centered(truth, sections)).max() > 1.0
    labels = KMeans(3, random_state=0).fit_predict(effect.remove(X, sections))
    assert adjusted_rand_index(domains, labels) > 0.98


def test_offsets_of_domains_are_shrunk_by_their_spots():
    rng = np.random.default_rng(1)
    X, sections, domains, _ = sections_of_tissue(((500, 500), (500, 500)), shift=0.0, apart=12.0)
    offset = np.zeros((2, 2, 6))
    offset[1, 0] = rng.normal(size=6)
    X = (X + offset[sections, domains]).astype(np.float32)
    effect = section_effect(X, sections, 2, method="offsets")
    assert effect.offsets is not None and effect.offsets.shape == (2, 2, 6)
    found = effect.shift[:, None] + effect.offsets  # (S, K, C), components in any order
    between = found[1] - found[0]
    order = np.argsort(np.abs(between).sum(1))
    np.testing.assert_allclose(between[order[0]], 0, atol=0.35)
    np.testing.assert_allclose(between[order[1]], offset[1, 0], atol=0.45)
    before, after = (
        np.linalg.norm(
            values[(sections == 1) & (domains == 0)].mean(0)
            - values[(sections == 0) & (domains == 0)].mean(0)
        )
        for values in (X, effect.remove(X, sections))
    )
    assert after < 0.3 * before


def test_joint_density_is_that_of_a_mixture_with_a_shift_for_each_section():
    X, sections, _, _ = sections_of_tissue()
    Z = module._Axes.of(X.astype(float)).rotate(X.astype(float))
    fitted = module._fit(Z, sections, 3, 3, "shift", 0, 6)
    joint = fitted.log_joint(Z, sections)
    for section in range(3):
        rows = np.flatnonzero(sections == section)[:20]
        for k in range(3):
            expected = fitted.log_composition[section, k] + multivariate_normal(
                fitted.centers[section, k], fitted.covariance
            ).logpdf(Z[rows])
            np.testing.assert_allclose(joint[rows, k], expected, rtol=1e-8)


@pytest.mark.parametrize(("shift", "expected"), [(0.0, {"none"}), (6.0, {"center", "shift"})])
def test_auto_corrects_where_there_is_an_effect(shift, expected):
    X, sections, _, _ = sections_of_tissue(shift=shift, apart=4.0)
    effect = section_effect(X, sections, 3)
    assert effect.method in expected
    assert set(effect.log_likelihood) == set(effect.nmi) == {"none", "center", "shift"}


def test_auto_takes_the_shift_where_means_mislead():
    counts = ((400, 50, 0), (0, 250, 200), (150, 0, 300))
    X, sections, _, _ = sections_of_tissue(counts)
    effect = section_effect(X, sections, 3)
    assert effect.method == "shift"
    assert effect.log_likelihood["shift"] > effect.log_likelihood["center"] + 0.5


def test_components_that_follow_the_sections_rule_out_no_correction(monkeypatch):
    X, sections, _, _ = sections_of_tissue(shift=30.0, apart=2.0)
    monkeypatch.setattr(module, "_SLACK", 1e9)  # otherwise the simplest of all
    effect = section_effect(X, sections, 3)
    assert effect.nmi["none"] > 0.9 and effect.method == "center"
    monkeypatch.setattr(module, "_FOLLOWS", 1.0)
    assert section_effect(X, sections, 3).method == "none"


def test_one_section_or_a_tiny_one_is_left_alone():
    X, sections, _, _ = sections_of_tissue()
    assert section_effect(X, np.zeros_like(sections), 3).method == "none"
    few = np.r_[sections, np.full(5, 3)]
    assert section_effect(np.concatenate([X, X[:5]]), few, 3).method == "none"
    # but a correction that is asked for is made
    assert section_effect(np.concatenate([X, X[:5]]), few, 3, method="center").method == "center"


@pytest.mark.parametrize("method", METHODS)
def test_same_seed_same_bits_and_many_rows_in_blocks(method, monkeypatch):
    X, sections, _, _ = sections_of_tissue()
    first = section_effect(X, sections, 3, method=method, seed=3).remove(X, sections)
    second = section_effect(X, sections, 3, method=method, seed=3).remove(X, sections)
    np.testing.assert_array_equal(first, second)
    whole = section_effect(X, sections, 3, method=method, seed=3)
    monkeypatch.setattr(module, "_MOST_ROWS", 600)  # of 1,350
    third = section_effect(X, sections, 3, method=method, seed=3)
    assert third.remove(X, sections).shape == X.shape
    if method != "none":
        np.testing.assert_allclose(third.shift, whole.shift, atol=0 if method == "center" else 0.8)


def test_constant_columns_and_few_spots():
    X, sections, _, _ = sections_of_tissue(((25, 25), (25, 25)))
    X[:, 3:] = 1.0
    for method in ("auto", "offsets"):
        effect = section_effect(X, sections, None, method=method)
        assert np.isfinite(effect.remove(X, sections)).all()
