"""Functions on AnnData: what is read, what is written, what is refused."""

import dataclasses
import sys
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

import amilst_lite as amilst
from amilst_lite import estimator, pipeline
from amilst_lite.errors import AmilstWarning, InputError, MissingExtraError, MissingKeyError

QUICK = {"epochs": 4, "n_networks": 2, "n_init": 6, "shrinkage": 0.2}
K = 3


@pytest.fixture(scope="module")
def section():
    return amilst.simulate_section(300, 60, K, seed=1)


def run(adata, **changes):
    amilst.identify_domains(adata, K, seed=0, **{**QUICK, **changes})
    return adata


@pytest.fixture(scope="module")
def done(section):
    return run(section.copy(), shrinkage=None)


def content(adata):
    """Copies of all that `adata` holds, by attribute and name."""
    return {
        (place, name): value.copy() if hasattr(value, "copy") else value
        for place in ("obs", "obsm", "obsp", "uns")
        for name, value in dict(getattr(adata, place)).items()
    }


def assert_same(found, expected):
    if sparse.issparse(expected):
        assert (found != expected).nnz == 0
    elif isinstance(expected, dict):
        assert set(found) == set(expected)
        for name in expected:
            assert_same(found[name], expected[name])
    else:
        np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


@pytest.fixture
def no_training(monkeypatch):
    """Fail if anything expensive begins."""

    def fail(*_, **__):
        raise AssertionError("computation began before validation had ended")

    monkeypatch.setattr(pipeline.SpatialGraph, "from_coordinates", fail)
    monkeypatch.setattr(pipeline, "prepare", fail)
    monkeypatch.setattr(pipeline.AMILST, "fit", fail)


# --- what is written ------------------------------------------------------------------------


def test_slots_are_those_of_the_design(section, done):
    new = {key for key in content(done) if key not in content(section)}
    assert new == {
        ("obs", "amilst_domain"), ("obs", "amilst_domain_refined"), ("obs", "amilst_confidence"),
        ("obsm", "X_amilst"), ("obsm", "X_amilst_latent"), ("obsm", "X_amilst_pca"),
        ("obsp", "spatial_connectivities"), ("obsp", "spatial_distances"),
        ("uns", "amilst"), ("uns", "amilst_domain_colors"), ("uns", "amilst_domain_refined_colors"),
        ("uns", "spatial_neighbors"),
    }  # fmt: skip
    assert done.obsm["X_amilst"].shape == (300, 40) and done.obsm["X_amilst"].dtype == np.float32
    assert done.obsm["X_amilst_pca"].shape == (300, 40)
    # two networks, each with widths 20 (f) and 8 (g)
    assert done.obsm["X_amilst_latent"].shape == (300, 2 * 28)
    for name in ("amilst_domain", "amilst_domain_refined"):
        assert list(done.obs[name].cat.categories) == ["1", "2", "3"]
        assert done.obs[name].notna().all()
    sizes = done.obs["amilst_domain"].value_counts()
    assert sizes["1"] >= sizes["2"] >= sizes["3"] > 0
    assert done.obs["amilst_confidence"].between(0, 1).all()
    assert done.obsp["spatial_connectivities"].shape == (300, 300)
    assert (done.obsp["spatial_distances"].data > 0).all()
    assert done.uns["spatial_neighbors"]["connectivities_key"] == "spatial_connectivities"
    assert (done.X != section.X).nnz == 0  # X is never changed


def test_record_has_the_effective_settings(section, done):
    record = done.uns["amilst"]
    assert record["seed"] == 0 and record["n_domains"] == K and record["device"] in ("cpu", "cuda")
    assert len(record["losses"]["network"]) == QUICK["epochs"]
    assert record["config"]["train"]["epochs"] == QUICK["epochs"]
    assert "sample_key" not in record and "use_rep" not in record
    assert list(record["warnings"]) == []
    assert {"torch", "numpy", "amilst-lite"} <= set(record["versions"])
    automatic = section.copy()
    amilst.identify_domains(automatic, K, epochs=1, n_init=2)
    train = automatic.uns["amilst"]["config"]["train"]
    assert train["n_networks"] == 1 and train["batch_size"] == 10_000
    assert automatic.obsm["X_amilst_latent"].shape == (300, 28)


def test_depth_of_the_counts_reaches_the_filter(section, monkeypatch):
    from amilst_lite import estimator

    seen = []
    original = estimator.fit_denoise

    def recording(*args, **options):
        seen.append(options)
        return original(*args, **options)

    monkeypatch.setattr(estimator, "fit_denoise", recording)
    amilst.identify_domains(section.copy(), K, depth_floor=0.7, **QUICK)
    ((options),) = seen
    assert options["depth_floor"] == 0.7
    totals = np.sort(np.asarray(section.X.sum(1)).ravel())
    np.testing.assert_allclose(np.sort(options["depth"].numpy()), totals)


def test_record_has_the_evidence(done, tmp_path):
    record = done.uns["amilst"]
    shrinkage, share = record["shrinkage"], record["network_share"]
    assert shrinkage["log_likelihood"].shape == shrinkage["weights"].shape == (3, len(shrinkage["shares"]))
    half, two_thirds, n_axes = shrinkage["columns"]
    assert half == round(n_axes / 2) and two_thirds == round(2 * n_axes / 3) and n_axes <= 30
    assert set(share) == {"share", "shares", "deviance", "raw_deviance", "error"}
    assert record["config"]["cluster"]["network_share"] == share["share"]
    assert record["config"]["cluster"]["shrinkage"] == "none"
    seconds = record["seconds"]
    assert seconds["network share"] > 0
    assert all(value <= seconds["total"] for value in seconds.values())
    done.write_h5ad(tmp_path / "a.h5ad")
    back = ad.read_h5ad(tmp_path / "a.h5ad").uns["amilst"]
    for name in ("shrinkage", "network_share", "seconds", "selection"):
        assert_same(back[name], record[name])


@pytest.mark.parametrize("n_threads", [1, 2])  # with two, the domains are found before the share is known
def test_share_of_the_network_is_decided_by_the_counts(section, monkeypatch, n_threads):
    monkeypatch.setattr(estimator, "n_threads", lambda: n_threads)
    decided = pipeline.network_share
    calls = []

    def clear_improvement(counts, graph, config, **options):
        calls.append(counts)
        return dataclasses.replace(decided(counts, graph, config, **options), share=0.25)

    monkeypatch.setattr(pipeline, "network_share", clear_improvement)
    by_counts, given = run(section.copy()), run(section.copy(), network_share=0.25)
    assert len(calls) == 1 and (calls[0] != section.X).nnz == 0
    assert by_counts.uns["amilst"]["config"]["cluster"]["network_share"] == 0.25
    assert by_counts.uns["amilst"]["network_share"]["share"] == 0.25
    np.testing.assert_array_equal(by_counts.obsm["X_amilst"], given.obsm["X_amilst"])
    np.testing.assert_array_equal(by_counts.obs["amilst_confidence"], given.obs["amilst_confidence"])
    assert given.uns["amilst"]["network_share"] == {}


@pytest.mark.parametrize(
    "options",
    [{"use_rep": "mine"}, {"network_share": 0.1}, {"cluster_on": "latent"}, {"preset": "published"}],
)
def test_share_of_the_network_is_not_decided_where_it_is_given_or_not_used(section, monkeypatch, options):
    monkeypatch.setattr(pipeline, "network_share", lambda *_, **__: pytest.fail("the share was decided"))
    adata = section.copy()
    adata.obsm["mine"] = np.random.default_rng(0).normal(size=(300, 6))
    run(adata, method="kmeans", n_networks=1, **options)
    record = adata.uns["amilst"]
    assert record["network_share"] == record["shrinkage"] == {}
    assert record["config"]["cluster"]["network_share"] == options.get("network_share", 0.0)


@pytest.mark.parametrize("use_rep", [None, "mine"])
def test_depth_is_the_total_of_the_counts(section, monkeypatch, use_rep):
    depths = []
    original = pipeline.AMILST._fit

    def recording(self, X, coordinates, sample, graph, depth, *others):
        depths.append(depth)
        return original(self, X, coordinates, sample, graph, depth, *others)

    monkeypatch.setattr(pipeline.AMILST, "_fit", recording)
    adata = section.copy()
    adata.obsm["mine"] = np.random.default_rng(0).normal(size=(300, 6))
    run(adata, use_rep=use_rep)
    if use_rep is None:
        np.testing.assert_array_equal(depths[0], np.asarray(section.X.sum(1)).ravel())
    else:
        assert depths == [None]


def test_colors_follow_the_convention_of_scanpy(done):
    colors = done.uns["amilst_domain_colors"]
    assert len(colors) == K == len(set(colors))
    assert all(color.startswith("#") and len(color) == 7 for color in colors)
    assert list(done.uns["amilst_domain_refined_colors"]) == list(colors)


def test_nothing_of_the_user_is_overwritten(section):
    adata = section.copy()
    rng = np.random.default_rng(0)
    adata.obsm["X_pca"] = rng.normal(size=(300, 5))
    for name in ("spatial_connectivities", "spatial_distances"):
        adata.obsp[name] = sparse.random(300, 300, 0.01, format="csr", random_state=0)
    adata.uns["spatial_neighbors"] = {"params": {"n_neighbors": 99}}
    before = content(adata)
    run(adata)
    after = content(adata)
    for key, value in before.items():
        assert_same(after[key], value)
    record = adata.uns["amilst"]
    assert record["connectivities_key"] == "amilst_connectivities"
    assert record["distances_key"] == "amilst_distances"
    assert adata.uns["amilst_neighbors"]["connectivities_key"] == "amilst_connectivities"
    assert adata.obsp["amilst_connectivities"].nnz == adata.obsp["amilst_distances"].nnz > 300
    run(adata)  # neither does a second run
    assert_same(adata.uns["spatial_neighbors"], {"params": {"n_neighbors": 99}})


def test_runs_with_different_keys_leave_each_other_intact(section, done):
    adata = section.copy()
    run(adata)
    first = content(adata)
    run(adata, key_added="other", n_neighbors=12)
    both = content(adata)
    for key, value in first.items():
        assert_same(both[key], value)
    assert adata.uns["other"]["connectivities_key"] == "other_connectivities"
    assert adata.obsp["other_connectivities"].nnz > adata.obsp["spatial_connectivities"].nnz
    run(adata)
    for key, value in both.items():
        if key != ("uns", "amilst"):  # times and memory differ
            assert_same(content(adata)[key], value)
    assert adata.uns["amilst"]["connectivities_key"] == "spatial_connectivities"


def test_second_run_with_the_same_key_leaves_nothing_of_the_first(section):
    adata = section.copy()
    adata.obsm["mine"] = np.random.default_rng(0).normal(size=(300, 6))
    run(adata)
    run(adata, use_rep="mine")
    assert "X_amilst_pca" not in adata.obsm and adata.uns["amilst"]["use_rep"] == "mine"
    assert adata.uns["spatial_neighbors"]["params"]["written_by"] == "amilst"


@pytest.mark.parametrize(
    ("place", "name", "value"),
    [
        ("obs", "amilst_domain", np.arange(300)),
        ("obsm", "X_amilst", np.zeros((300, 2))),
        ("uns", "amilst", {"mine": 1}),
    ],
)
def test_slots_of_the_user_are_refused(section, no_training, place, name, value):
    adata = section.copy()
    getattr(adata, place)[name] = value
    with pytest.raises(InputError, match=rf"{place}\['{name}'\] exists.*another key_added"):
        run(adata)


def test_result_survives_a_file(done, tmp_path):
    done.write_h5ad(tmp_path / "a.h5ad")
    back = ad.read_h5ad(tmp_path / "a.h5ad")
    np.testing.assert_array_equal(back.obsm["X_amilst"], done.obsm["X_amilst"])
    assert list(back.obs["amilst_domain"]) == list(done.obs["amilst_domain"])
    assert back.uns["amilst"]["config"]["graph"]["radius"] == "none"
    assert list(back.uns["amilst_domain_colors"]) == list(done.uns["amilst_domain_colors"])
    run(back)  # recognized as a result of ours
    np.testing.assert_array_equal(back.obsm["X_amilst"], done.obsm["X_amilst"])
    assert back.uns["amilst"]["connectivities_key"] == "spatial_connectivities"


def test_same_seed_same_bits_and_generators_untouched(section, done):
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    again = run(section.copy(), shrinkage=None)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    np.testing.assert_array_equal(again.obsm["X_amilst"], done.obsm["X_amilst"])
    np.testing.assert_array_equal(again.obs["amilst_confidence"], done.obs["amilst_confidence"])


# --- what is read ---------------------------------------------------------------------------


def as_layer(adata):
    adata.layers["counts"] = adata.X
    adata.X = adata.X.log1p()


@pytest.mark.parametrize(
    "form",
    [
        lambda a: setattr(a, "X", a.X.toarray()),
        lambda a: setattr(a, "X", a.X.tocsc()),
        lambda a: setattr(a, "X", a.X.astype(np.float64)),
        lambda a: setattr(a, "X", np.asfortranarray(a.X.toarray().astype(np.int32))),
        lambda a: a.obsm.update(
            spatial=pd.DataFrame(a.obsm["spatial"], index=a.obs_names, columns=["x", "y"])
        ),
        as_layer,
    ],
    ids=["dense", "csc", "float64", "int", "dataframe coordinates", "counts layer"],
)
def test_every_form_gives_the_same_result(section, done, form):
    other = section.copy()
    form(other)
    run(other)
    np.testing.assert_array_equal(other.obsm["X_amilst"], done.obsm["X_amilst"])


def test_view_becomes_actual_without_a_warning(section, done):
    padded = ad.concat([section, section[:5].copy()], index_unique="-")
    padded.obsm["spatial"] = np.r_[section.obsm["spatial"], section.obsm["spatial"][:5]]
    view = padded[:300]
    assert view.is_view
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(view)
    np.testing.assert_array_equal(view.obsm["X_amilst"], done.obsm["X_amilst"])
    assert "amilst_domain" not in padded.obs


def test_view_of_data_on_disk_is_refused_first(section, tmp_path, no_training):
    section.write_h5ad(tmp_path / "section.h5ad")
    view = ad.read_h5ad(tmp_path / "section.h5ad", backed="r")[:200]
    with pytest.raises(InputError, match="view of an AnnData on disk.*to_memory"):
        run(view)


def test_samples_and_representation_and_key(section):
    adata = section.copy()
    adata.obs["slide"] = np.repeat(["a", "b"], 150)
    adata.obsm["mine"] = np.random.default_rng(0).normal(size=(300, 6))
    run(adata, sample_key="slide", use_rep="mine", key_added="other")
    assert {"other_domain", "other_domain_refined", "other_confidence"} <= set(adata.obs)
    assert "X_other_pca" not in adata.obsm and adata.obsm["X_other"].shape == (300, 6)
    assert adata.uns["other"]["sample_key"] == "slide" and adata.uns["other"]["use_rep"] == "mine"
    rows, columns = adata.obsp["spatial_connectivities"].nonzero()
    slide = adata.obs["slide"].to_numpy()
    assert (slide[rows] == slide[columns]).all()


def test_repeated_names_do_not_matter(section, done):
    twins = section.copy()
    twins.obs_names = ["spot"] * 300
    twins.var_names = ["gene"] * 60
    run(twins, shrinkage=None)
    np.testing.assert_array_equal(twins.obsm["X_amilst"], done.obsm["X_amilst"])
    assert list(twins.obs["amilst_domain"]) == list(done.obs["amilst_domain"])


# --- what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda a: a.obsm.pop("spatial"), MissingKeyError, "no coordinates.*obsm"),
        (lambda a: a.obsm.update(spatial=np.full((300, 2), np.nan)), InputError, "NaN or infinite"),
        (lambda a: a.obsm["spatial"].__setitem__((3, 0), np.inf), InputError, "NaN or infinite"),
        (lambda a: a.obsm.update(spatial=np.ones((300, 2))), InputError, "place"),
        (lambda a: a.obsm.update(spatial=np.ones((300, 5))), InputError, "2 or 3 columns"),
        (lambda a: a.obsm.update(spatial=np.full((300, 2), "a")), InputError, "numeric"),
        (lambda a: a.X.data.__setitem__(0, -1), InputError, "negative"),
        (lambda a: a.X.data.__setitem__(0, np.nan), InputError, "finite|NaN"),
        (lambda a: setattr(a, "X", None), MissingKeyError, "no counts"),
        (lambda a: setattr(a, "X", a.X * 0), InputError, "counts are zero"),
    ],
)
def test_unusable_sections_are_refused_and_left_unchanged(section, spoil, error, message):
    adata = section.copy()
    spoil(adata)
    before = set(content(adata))
    with pytest.raises(error, match=message):
        run(adata)
    assert set(content(adata)) == before


def missing_section(adata):
    adata.obs["slide"] = pd.Series(["a"] * 299 + [None], index=adata.obs_names)


@pytest.mark.parametrize(
    ("spoil", "changes", "error", "message"),
    [
        (None, {"sample_key": "slide"}, MissingKeyError, "no column 'slide'.*ground_truth"),
        (missing_section, {"sample_key": "slide"}, InputError, r"obs\['slide'\] has no section for 1 spot"),
        (None, {"use_rep": "X_scvi"}, MissingKeyError, "no 'X_scvi'"),
        (
            lambda a: a.obsm.update(mine=np.full((300, 3), np.nan)), {"use_rep": "mine"},
            InputError, r"obsm\['mine'\] has NaN or infinite values in 300 spots",
        ),
        (
            lambda a: a.obsm.update(mine=sparse.eye(300, 3, format="csr")), {"use_rep": "mine"},
            InputError, "dense",
        ),
        (None, {"preset": "best"}, InputError, "unknown preset"),
        (None, {"epoch": 5}, InputError, "unknown setting"),
        (None, {"epochs": 3.5}, InputError, "--epochs"),
        (None, {"covariance_type": "round"}, InputError, "--covariance-type"),
        (None, {"device": "gpu"}, InputError, "device must be"),
        (None, {"key_added": ""}, InputError, "key_added"),
        (None, {"seed": -1}, InputError, "seed"),
        (None, {"seed": 2**70}, InputError, "seed"),
    ],
)  # fmt: skip
def test_unusable_options_are_refused_first(section, no_training, spoil, changes, error, message):
    adata = section.copy()
    if spoil is not None:
        spoil(adata)
    with pytest.raises(error, match=message):
        amilst.identify_domains(adata, K, **{**QUICK, **changes})


@pytest.mark.parametrize("k", [1, 0, 301, 3.0, True])
def test_unusable_numbers_of_domains_are_refused_first(section, no_training, k):
    with pytest.raises(InputError, match="domains"):
        amilst.identify_domains(section.copy(), k, **QUICK)


def test_choosing_among_too_few_spots_is_refused_first(section, no_training):
    with pytest.raises(InputError, match="at least 20 spots"):
        amilst.identify_domains(section[:18].copy(), **QUICK)


def test_missing_igraph_is_refused_first(section, no_training, monkeypatch):
    monkeypatch.setitem(sys.modules, "igraph", None)
    with pytest.raises(MissingExtraError, match=r"amilst-lite\[leiden\]"):
        amilst.identify_domains(section.copy(), K, preset="published", epochs=1)


def test_anything_but_an_anndata_is_refused(section):
    with pytest.raises(InputError, match=r"expected an AnnData, found str.*amilst_lite.read\('a.h5ad'\)"):
        amilst.identify_domains("a.h5ad", K)
    with pytest.raises(InputError, match="expected an AnnData, found ndarray"):
        amilst.score(section.X.toarray())


def test_too_many_neighbors_are_refused(section):
    with pytest.raises(InputError, match="n_neighbors"):
        run(section.copy(), n_neighbors=300)


def test_published_preset_runs(section):
    adata = run(section.copy(), preset="published", method="gmm", n_networks=1)
    assert adata.obs["amilst_domain"].nunique() == K
    assert adata.obsm["X_amilst"].shape == (300, 28)


# --- warnings -------------------------------------------------------------------------------


def test_warnings_are_shown_and_recorded(section):
    logged = section.copy()
    logged.X = logged.X.log1p()
    for _ in range(2):  # the second run of a session records them too
        with pytest.warns(AmilstWarning, match="should be integers"):
            run(logged)
        (text,) = logged.uns["amilst"]["warnings"]
        assert "should be integers" in text
    hollow = section.copy()
    hollow.X = sparse.vstack([sparse.csr_matrix((1, 60), dtype=np.float32), hollow.X[1:]]).tocsr()
    with pytest.warns(AmilstWarning, match="no counts"):
        run(hollow)
    assert hollow.obs["amilst_domain"].notna().all()


# --- choice of K ----------------------------------------------------------------------------


def test_number_of_domains_is_chosen_if_not_given(section, tmp_path):
    adata = section.copy()
    amilst.identify_domains(adata, **{**QUICK, "n_init": 4})
    record = adata.uns["amilst"]
    assert adata.obs["amilst_domain"].nunique() == record["n_domains"]
    tried = list(record["selection"]["n_domains"])
    assert tried == list(range(3, 3 + len(tried))) and record["n_domains"] in tried
    amilst.write_results(adata, tmp_path)
    assert (tmp_path / "selection.png").stat().st_size > 1000
    assert ad.read_h5ad(tmp_path / "result.h5ad").uns["amilst"]["selection"]["log_likelihood"].shape == (
        len(tried),
    )
