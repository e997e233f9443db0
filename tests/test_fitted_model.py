"""Models that label other sections: `AMILST.apply`, `save` and `load`, `apply_model`."""

import h5py
import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.metrics import adjusted_rand_score

import amilst_lite as amilst
from amilst_lite import AMILST
from amilst_lite.config import Config
from amilst_lite.errors import AmilstWarning, InputError, MissingKeyError, NotFittedError
from amilst_lite.model_file import read_model, write_model

K = 3
QUICK = {"epochs": 5, "n_init": 6, "shrinkage": 0.2}


def section(seed, **options):
    return amilst.simulate_section(400, 80, K, seed=seed, **options)


def stripes(seed, n=300, shift=0.0):
    """Features, coordinates and truth of three stripes; ``shift`` is that of the first of seven columns."""
    rng = np.random.default_rng(seed)
    coordinates = rng.random((n, 2))
    truth = (coordinates[:, 0] * K).astype(int)
    X = rng.normal(0, 1, (n, 7)).astype(np.float32)
    X[:, :K] += 3.0 * np.eye(K)[truth]
    X[:, 0] += shift
    return X, coordinates, truth


@pytest.fixture(scope="module")
def trained():
    X, coordinates, _ = stripes(0)
    settings = {**QUICK, "n_networks": 2, "network_share": 0.4}
    return AMILST(K, seed=0, settings=settings).fit(X, coordinates=coordinates)


@pytest.fixture(scope="module")
def model():
    """Of counts; domains are the same in sections of any seed, since the seed of the expression is fixed."""
    adata = section(0)
    return amilst.identify_domains(adata, K, seed=0, **QUICK), adata


def assert_same(found, expected):
    for name in ("labels", "refined_labels", "probabilities", "embedding", "latent"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


# --- apply ------------------------------------------------------------------------------------


def test_training_section_gets_the_labels_of_training(trained):
    X, coordinates, _ = stripes(0)
    result = trained.apply(X, coordinates=coordinates)
    np.testing.assert_array_equal(result.labels, trained.labels_)
    np.testing.assert_array_equal(result.refined_labels, trained.refined_labels_)
    np.testing.assert_array_equal(result.probabilities, trained.probabilities_)
    np.testing.assert_array_equal(result.embedding, trained.embedding_)
    np.testing.assert_array_equal(result.latent, trained.latent_)
    np.testing.assert_array_equal(result.confidence, trained.confidence_)
    assert result.section_effect.method == "none"


def test_new_section_gets_the_domains_of_training(trained):
    X, coordinates, truth = stripes(1)
    labels = trained.predict(X, coordinates=coordinates)
    assert adjusted_rand_score(truth, labels) > 0.85
    # the same domain has the same number
    _, _, first = stripes(0)
    assert (np.bincount(labels[truth == 2], minlength=K).argmax()) == np.bincount(
        trained.labels_[first == 2], minlength=K
    ).argmax()


def test_shift_of_a_new_section_is_removed(trained):
    X, coordinates, truth = stripes(1, shift=4.0)
    result = trained.apply(X, coordinates=coordinates)
    assert result.section_effect.method == "shift"
    assert adjusted_rand_score(truth, result.labels) > 0.85
    kept = AMILST(K, seed=0, settings={**QUICK, "batch_correction": "none"}).fit(
        stripes(0)[0], coordinates=stripes(0)[1]
    )
    uncorrected = kept.apply(X, coordinates=coordinates)
    assert uncorrected.section_effect.method == "none"
    assert adjusted_rand_score(truth, uncorrected.labels) < 0.5


def test_sections_are_corrected_one_by_one(trained):
    (X, xy, _), (Y, uv, _) = stripes(1, shift=4.0), stripes(2, shift=-3.0)
    both = trained.apply(
        np.concatenate([X, Y]), coordinates=np.concatenate([xy, uv]), sample=["a"] * len(X) + ["b"] * len(Y)
    )
    apart = [trained.predict(part, coordinates=points) for part, points in ((X, xy), (Y, uv))]
    assert np.mean(both.labels == np.concatenate(apart)) > 0.99


def test_tiles_do_not_matter(trained):
    X, coordinates, _ = stripes(1)
    whole = trained.apply(X, coordinates=coordinates)
    settings = {**trained.settings, "batch_size": 60}
    tiled = AMILST(K, seed=0, settings=settings).fit(*stripes(0)[:1], coordinates=stripes(0)[1])
    tiled.fitted_.network.load_state_dict(trained.fitted_.network.state_dict())
    found = tiled.apply(X, coordinates=coordinates)
    np.testing.assert_allclose(found.latent, whole.latent, atol=1e-5)


def test_model_of_several_sections_uses_their_correction():
    parts = [stripes(seed, shift=seed) for seed in range(2)]
    X, coordinates = (np.concatenate([part[place] for part in parts]) for place in (0, 1))
    sample = np.repeat(["a", "b"], [len(part[0]) for part in parts])
    fit = AMILST(K, seed=0, settings={**QUICK, "batch_correction": "center"}).fit(
        X, coordinates=coordinates, sample=sample
    )
    new, points, truth = stripes(3, shift=-2.0)
    result = fit.apply(new, coordinates=points)
    assert result.section_effect.method == "center"
    assert adjusted_rand_score(truth, result.labels) > 0.85


def test_refused_before_a_fit():
    for call in (
        lambda: AMILST(K).predict(np.ones((9, 2)), coordinates=np.ones((9, 2))),
        lambda: AMILST(K).save("model.h5"),
    ):
        with pytest.raises(NotFittedError, match=r"Call 'fit' first, or AMILST\.load"):
            call()


def test_clusterings_without_a_model_of_other_spots_are_refused(tmp_path):
    X, coordinates, _ = stripes(0)
    fit = AMILST(K, settings={**QUICK, "method": "kmeans"}).fit(X, coordinates=coordinates)
    with pytest.raises(InputError, match="method='kmeans' labels the spots of training only"):
        fit.predict(X, coordinates=coordinates)
    with pytest.raises(InputError, match="method='gmm'"):
        fit.save(tmp_path / "model.h5")
    assert not list(tmp_path.iterdir())


def test_other_features_are_refused(trained):
    X, coordinates, _ = stripes(1)
    with pytest.raises(InputError, match="trained on 7 features; found 5"):
        trained.predict(X[:, :5], coordinates=coordinates)


@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
def test_models_whose_numbers_are_too_large_are_refused_when_they_are_used(trained, tmp_path):
    X, coordinates, _ = stripes(1)
    trained.save(tmp_path / "model.h5")
    arrays, settings = read_model(tmp_path / "model.h5")
    for array in arrays["network"].values():
        array[...] = np.finfo(np.float32).max
    write_model(tmp_path / "model.h5", arrays, settings)
    with pytest.raises(InputError, match="yields no finite probabilities for this input"):
        AMILST.load(tmp_path / "model.h5").predict(X, coordinates=coordinates)


def test_coordinates_in_another_unit_are_refused_only_with_a_radius(trained):
    X, coordinates, _ = stripes(1)
    np.testing.assert_array_equal(
        trained.predict(X, coordinates=1e4 * coordinates), trained.predict(X, coordinates=coordinates)
    )
    fit = AMILST(K, settings={**QUICK, "radius": 0.1}).fit(X, coordinates=coordinates)
    with pytest.raises(InputError, match="to the unit of training"):
        fit.predict(X, coordinates=1e4 * coordinates)


# --- the file ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"n_networks": 2, "decoder": "graph", "network_share": 0.3},
        {"cluster_on": "latent", "decoder": "block", "covariance_type": "diag"},
        {"noise_band": None, "depth_floor": 0.0, "shrinkage": None},
        {"recipe": "published", "feature_widths": (12, 6), "radius": 0.2},
    ],
)
def test_round_trip_gives_the_same_bits(tmp_path, changes):
    X, coordinates, _ = stripes(0)
    fit = AMILST(K, seed=3, settings={**QUICK, **changes}).fit(X, coordinates=coordinates)
    fit.save(tmp_path / "model.h5")
    loaded = AMILST.load(tmp_path / "model.h5")
    new, points, _ = stripes(1, shift=0.5)
    depth = np.random.default_rng(0).integers(1, 100, len(new))
    assert_same(
        loaded.apply(new, coordinates=points, depth=depth), fit.apply(new, coordinates=points, depth=depth)
    )
    assert loaded.config_ == fit.config_ and loaded.resolve_config() == fit.config_
    assert (loaded.seed, loaded.n_domains_, loaded.n_features_in_) == (3, K, 7)
    loaded.save(tmp_path / "again.h5")
    assert (tmp_path / "again.h5").read_bytes() == (tmp_path / "model.h5").read_bytes()


def test_loaded_model_can_be_fitted_again(trained, tmp_path):
    trained.save(tmp_path / "model.h5")
    X, coordinates, _ = stripes(0)
    again = AMILST.load(tmp_path / "model.h5").fit(X, coordinates=coordinates)
    np.testing.assert_array_equal(again.labels_, trained.labels_)


def test_config_survives_json():
    config = Config().replace(feature_widths=(7, 5), radius=3.0)
    parts = config.to_dict()
    parts["network"]["feature_widths"] = [7, 5]
    assert Config.from_dict(parts) == config
    del parts["graph"]["radius"]
    with pytest.raises(InputError, match="not those of this version"):
        Config.from_dict(parts)


def change_setting(name, value):
    def change(arrays, settings):
        settings[name] = value

    return change


def without(name):
    def change(arrays, settings):
        del arrays[name]

    return change


def widen(arrays, settings):
    settings["config"]["network"]["feature_widths"] = [10**9, 10**9]


def nan_weight(arrays, settings):
    weight = arrays["network"]["graph_encoder.hidden.weight"]
    weight.flat[0] = np.nan


def narrow_reference(arrays, settings):
    for name in ("mean", "axes"):
        arrays["reference"][name] = arrays["reference"][name][:-1]
    arrays["reference"]["domain_means"] = arrays["reference"]["domain_means"][:, :-1]


@pytest.mark.parametrize(
    "change",
    [
        change_setting("config", {}),
        change_setting("n_features", 10**12),
        change_setting("n_features", True),
        change_setting("members", 0),
        change_setting("members", 3),
        change_setting("correction", "harmony"),
        change_setting("preset", "mine"),
        change_setting("spacing", -1.0),
        change_setting("seed", "0"),
        without("mixture"),
        without("network"),
        widen,
        nan_weight,
        narrow_reference,
    ],
)
def test_parts_that_do_not_fit_are_refused_with_the_file_name(trained, tmp_path, change):
    trained.save(tmp_path / "model.h5")
    arrays, settings = read_model(tmp_path / "model.h5")
    change(arrays, settings)
    write_model(tmp_path / "other.h5", arrays, settings)
    with pytest.raises(InputError, match=r"other\.h5: "):
        AMILST.load(tmp_path / "other.h5")


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "section.h5ad"
    section(0).write_h5ad(path)
    with pytest.raises(InputError, match="expected a model written by"):
        AMILST.load(path)


def test_file_holds_nothing_of_the_sections_of_training(model, tmp_path):
    fit, adata = model
    fit.save(tmp_path / "model.h5")
    sizes = []
    with h5py.File(tmp_path / "model.h5") as file:
        file.visititems(lambda _, item: sizes.append(item.shape) if isinstance(item, h5py.Dataset) else None)
    assert all(adata.n_obs not in shape for shape in sizes)


# --- AnnData ----------------------------------------------------------------------------------


def half_of(adata, left):
    """The left or the right half of a section."""
    x = adata.obsm["spatial"][:, 0]
    return adata[(x < np.median(x)) == left].copy()


@pytest.fixture(scope="module")
def halves():
    """A model of the left half of a tissue, and the right half."""
    adata = amilst.simulate_section(1600, 100, K, seed=2, layout="blobs")
    left, right = (half_of(adata, side) for side in (True, False))
    fit = amilst.identify_domains(left, K, seed=0, epochs=20)
    return fit, right


def labels(adata):
    return adata.obs["amilst_domain"].to_numpy()


def test_apply_model_labels_another_section(halves, tmp_path):
    fit, right = halves
    fit.save(tmp_path / "model.h5")
    expected = right.copy()
    amilst.apply_model(expected, fit)
    found = right.copy()
    before = found.X.copy()
    assert amilst.apply_model(found, tmp_path / "model.h5") is None
    np.testing.assert_array_equal(labels(found), labels(expected))
    assert (before != found.X).nnz == 0
    assert adjusted_rand_score(right.obs["ground_truth"], labels(found)) > 0.8
    record = found.uns["amilst"]
    assert record["model"] == "model.h5" and expected.uns["amilst"]["model"] == "in memory"
    assert {"X_amilst", "X_amilst_latent", "X_amilst_pca"} <= set(found.obsm)
    assert list(found.obs["amilst_domain"].cat.categories) == ["1", "2", "3"]
    assert amilst.score(found, "ground_truth")["ari"] > 0.8
    found.write_h5ad(tmp_path / "result.h5ad")


def test_order_of_genes_and_unknown_ones_make_no_difference(halves):
    import anndata as ad
    import pandas as pd

    fit, right = halves
    rng = np.random.default_rng(0)
    unknown = ad.AnnData(
        sparse.csr_matrix(rng.poisson(1.0, (right.n_obs, 30)).astype(np.float32)),
        obs=pd.DataFrame(index=right.obs_names),
        var=pd.DataFrame(index=[f"new {place}" for place in range(30)]),
    )
    more = ad.concat([right, unknown], axis=1, merge="first")
    more.obsm["spatial"] = right.obsm["spatial"]
    shuffled = more[:, rng.permutation(more.n_vars)].copy()
    for adata in (expected := right.copy(), shuffled):
        amilst.apply_model(adata, fit)
    np.testing.assert_allclose(shuffled.obsm["X_amilst_pca"], expected.obsm["X_amilst_pca"], atol=1e-4)
    np.testing.assert_array_equal(labels(shuffled), labels(expected))


def test_missing_genes_are_predicted_from_the_others(halves):
    fit, right = halves
    complete = right.copy()
    amilst.apply_model(complete, fit)
    rng = np.random.default_rng(1)
    kept = np.sort(rng.permutation(right.n_vars)[:80])
    partial = right[:, kept].copy()
    with pytest.warns(AmilstWarning, match=r" genes of the model are missing and predicted from the others"):
        amilst.apply_model(partial, fit)
    assert np.mean(labels(partial) == labels(complete)) > 0.9
    assert any("predicted" in text for text in partial.uns["amilst"]["warnings"])


def test_other_totals_make_little_difference(halves):
    fit, right = halves
    expected, deeper = right.copy(), right.copy()
    deeper.X = deeper.X * np.float32(3)
    for adata in (expected, deeper):
        amilst.apply_model(adata, fit)
    assert np.mean(labels(deeper) == labels(expected)) > 0.99


def test_genes_by_other_names_are_refused(halves):
    fit, right = halves
    renamed = right.copy()
    renamed.var_names = [f"ENSG{place:011d}" for place in range(renamed.n_vars)]
    with pytest.raises(InputError, match=r"named like 'gene.*, those of the input like 'ENSG"):
        amilst.apply_model(renamed, fit)
    assert "amilst" not in renamed.uns
    with pytest.raises(InputError, match=r"expected at most 50%\. Train on the genes in common"):
        amilst.apply_model(right[:, :30].copy(), fit)


def test_repeated_genes_are_refused(halves):
    fit, right = halves
    repeated = right.copy()
    names = repeated.var_names.to_list()
    repeated.var_names = [names[1], *names[1:]]
    with pytest.raises(InputError, match="more than once"):
        amilst.apply_model(repeated, fit)


def test_models_of_arrays_and_of_representations(trained):
    adata = section(0)
    with pytest.raises(InputError, match="trained on an array"):
        amilst.apply_model(adata, trained)
    adata.obsm["X_mine"] = np.random.default_rng(0).normal(size=(adata.n_obs, 6)).astype(np.float32)
    fit = amilst.identify_domains(adata, K, use_rep="X_mine", **QUICK)
    other = section(1)
    with pytest.raises(MissingKeyError, match="X_mine"):
        amilst.apply_model(other, fit)
    other.obsm["X_mine"] = adata.obsm["X_mine"][::-1].copy()
    amilst.apply_model(other, fit)
    assert other.uns["amilst"]["use_rep"] == "X_mine" and "X_amilst_pca" not in other.obsm


def test_apply_model_to_several_sections_and_twice(halves):
    fit, right = halves
    adata = right.copy()
    adata.obs["section"] = np.where(
        adata.obsm["spatial"][:, 1] < 0.5 * adata.obsm["spatial"][:, 1].max(), "a", "b"
    )
    for _ in range(2):
        amilst.apply_model(adata, fit, sample_key="section")
    record = adata.uns["amilst"]
    assert record["sample_key"] == "section" and list(record["integration"]["sections"]) == ["a", "b"]
    assert adjusted_rand_score(right.obs["ground_truth"], labels(adata)) > 0.8


def test_applying_touches_no_global_generator(trained):
    X, coordinates, _ = stripes(1)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    trained.predict(X, coordinates=coordinates)
    assert torch.equal(torch.get_rng_state(), before)
