"""Section effects: shifts and offsets against constructed ones, the choice between corrections."""

import numpy as np
import pytest

from amilst_lite import integration as module
from amilst_lite.cluster.kmeans import KMeans
from amilst_lite.errors import InputError
from amilst_lite.integration import METHODS, SectionReference, section_effect
from amilst_lite.metrics import adjusted_rand_index
from amilst_lite.model_file import read_model, write_model


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


@pytest.mark.parametrize("noise", [0.0, 1e-5, 1e-3])
@pytest.mark.parametrize("method", ["auto", "offsets"])
def test_domains_without_variance(noise, method):
    X, sections, domains, truth = sections_of_tissue()
    rng = np.random.default_rng(2)
    X = (8 * np.eye(3, 6)[domains] + truth[sections] + noise * rng.normal(size=X.shape)).astype(np.float32)
    effect = section_effect(X, sections, 3, method=method)
    assert effect.method in ("center", "shift", "offsets")
    # the sections have the same composition
    np.testing.assert_allclose(effect.shift, centered(truth, sections), atol=1e-2)


# --- new sections ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference():
    """Of one section of three domains in 20 columns, more than there are axes; memberships are known."""
    X, _, domains, _ = sections_of_tissue(((500, 500, 500),), d=20)
    return SectionReference.of(X, np.eye(3, dtype=np.float32)[domains])


def new_sections(counts, shift=4.0, seed=1):
    """Sections of the same domains; the first is not shifted."""
    return sections_of_tissue(counts, shift=shift, d=20, seed=seed)


def test_reference_is_the_mixture_of_these_posteriors(reference):
    X, _, domains, _ = sections_of_tissue(((500, 500, 500),), d=20)
    soft = 0.8 * np.eye(3)[domains] + 0.2 / 3
    soft_reference = SectionReference.of(X, soft)
    Z = soft_reference.axes.rotate(X)
    assert Z.shape == (1500, 15)
    np.testing.assert_allclose(soft_reference.axes.mean, X.mean(0), atol=1e-5)
    expected = [np.average(X, axis=0, weights=soft[:, k]) for k in range(3)]
    np.testing.assert_allclose(soft_reference.domain_means, expected, rtol=1e-6, atol=1e-6)
    scatter = sum(
        soft[i, k] * np.outer(Z[i] - mean, Z[i] - mean)
        for k, mean in enumerate(soft_reference.axes.rotate(np.array(expected)))
        for i in range(len(Z))
    )
    within = scatter / len(Z)
    expected = 0.9 * within + 0.1 * np.trace(within) / 15 * np.eye(15)
    np.testing.assert_allclose(soft_reference.covariance, expected, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(np.exp(soft_reference.log_composition), 1 / 3, atol=1e-9)


@pytest.mark.parametrize("method", ["shift", "offsets", "auto"])
def test_shift_of_new_sections_is_recovered_whatever_their_composition(reference, method):
    counts = ((0, 250, 250), (450, 25, 25), (0, 0, 500))
    X, sections, domains, truth = new_sections(counts)
    effect = reference.effect(X, sections, method)
    assert effect.method == "shift"
    np.testing.assert_allclose(effect.shift, truth, atol=0.3)
    # known memberships give the best estimate that there is
    residual = X - reference.domain_means[domains]
    expected = [residual[sections == section].mean(0) for section in range(3)]
    shifted = slice(1, None) if method == "auto" else slice(None)
    np.testing.assert_allclose(effect.shift[shifted], expected[shifted], atol=0.02)
    if method == "auto":
        np.testing.assert_array_equal(effect.shift[0], 0)
    # the means are those of the domains instead
    assert np.abs(reference.effect(X, sections, "center").shift - truth).max() > 2.0


def test_center_moves_the_mean_of_a_new_section_to_that_of_training(reference):
    X, sections, _, _ = new_sections(((200, 200, 100), (100, 200, 200)))
    effect = reference.effect(X, sections, "center")
    corrected = effect.remove(X, sections)
    for section in range(2):
        np.testing.assert_allclose(corrected[sections == section].mean(0), reference.axes.mean, atol=1e-4)
    assert effect.method == "center" and 0 < effect.strength < 1


def test_auto_leaves_another_composition_alone_and_reports_the_evidence(reference):
    X, sections, _, _ = new_sections(((25, 75, 400),))
    effect = reference.effect(X, sections)
    assert effect.method == "none" and effect.strength == 0
    np.testing.assert_array_equal(effect.shift, np.zeros((1, 20), np.float32))
    assert abs(effect.log_likelihood["shift"] - effect.log_likelihood["none"]) < 0.5
    shifted = reference.effect(X + 2, sections)
    assert shifted.method == "shift"
    assert shifted.log_likelihood["shift"] > shifted.log_likelihood["none"] + 0.5
    # a shift common to all spots changes nothing but the shift
    np.testing.assert_allclose(shifted.log_likelihood["shift"], effect.log_likelihood["shift"], atol=0.05)


def test_strength_is_the_share_of_the_squared_distance_from_the_mean_of_training(reference):
    X, sections, _, truth = new_sections(((0, 250, 250), (450, 25, 25)))
    effect = reference.effect(X, sections, "shift")
    total = np.square(X - reference.axes.mean).sum()
    np.testing.assert_allclose(effect.strength, np.square(truth[sections]).sum() / total, rtol=0.1)


def test_sections_are_corrected_one_by_one_and_the_same_way_again(reference, monkeypatch):
    X, sections, _, truth = new_sections(((100, 200, 200), (450, 25, 25)))
    both = reference.effect(X, sections, "shift")
    own = sections == 1
    alone = reference.effect(X[own], np.zeros(own.sum(), dtype=int), "shift")
    np.testing.assert_array_equal(alone.shift[0], both.shift[1])
    monkeypatch.setattr(module, "_MOST_ROWS", 200)
    np.testing.assert_allclose(reference.effect(X, sections, "shift").shift, truth, atol=0.6)


def test_none_and_tiny_new_sections_are_left_alone(reference):
    X, sections, _, _ = new_sections(((100, 200, 200), (450, 25, 25)))
    assert reference.effect(X, sections, "none").method == "none"
    few = np.r_[np.flatnonzero(sections == 0), np.flatnonzero(sections == 1)[:19]]
    effect = reference.effect(X[few], sections[few], "shift")
    np.testing.assert_array_equal(effect.shift[1], 0)
    assert np.abs(effect.shift[0]).max() > 0


def test_reference_returns_from_a_file(reference, tmp_path):
    X, sections, _, _ = new_sections(((100, 200, 200), (450, 25, 25)))
    write_model(tmp_path / "m.h5", {"reference": reference.to_arrays()}, {})
    again = SectionReference.from_arrays(read_model(tmp_path / "m.h5")[0]["reference"])
    for method in ("auto", "center", "shift"):
        expected = reference.effect(X, sections, method)
        found = again.effect(X, sections, method)
        np.testing.assert_array_equal(found.shift, expected.shift)
        assert found.log_likelihood == expected.log_likelihood


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"covariance": np.diag(np.r_[np.ones(14), -1.0])}, "eigenvalues > 0"),
        ({"covariance": np.eye(15) + np.eye(15, k=1) / 4}, "symmetric covariance"),
        ({"log_composition": np.log([0.5, 0.5, 0.5])}, "sum to one"),
        ({"domain_means": np.zeros((3, 19))}, "one length C"),
        ({"mean": np.full(20, np.nan)}, "finite numbers"),
        ({"other": np.zeros(3)}, "the arrays"),
    ],
)
def test_arrays_that_are_not_those_of_a_reference_are_refused(reference, change, message):
    with pytest.raises(InputError, match=message):
        SectionReference.from_arrays(reference.to_arrays() | change)


def test_input_that_does_not_match_the_reference_is_refused(reference):
    X, sections, domains, _ = new_sections(((100, 200, 200),))
    with pytest.raises(InputError, match="method must be one of auto, none"):
        reference.effect(X, sections, "harmony")
    with pytest.raises(InputError, match="expected rows of 20 features"):
        reference.effect(X[:, :19], sections, "shift")
    with pytest.raises(InputError, match="the section of each"):
        reference.effect(X, sections[:-1], "shift")
    with pytest.raises(InputError, match="one row per spot"):
        SectionReference.of(X, np.eye(3)[domains[:-1]])
    with pytest.raises(InputError, match="same features"):
        SectionReference.of(np.ones_like(X), np.eye(3)[domains])
