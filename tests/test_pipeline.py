"""The verbs on AnnData: what they read, what they write, what they refuse."""

import json
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

import amilst_lite as amilst
from amilst_lite import pipeline
from amilst_lite.errors import AmilstWarning, InputError, MissingExtraError, MissingKeyError

QUICK = {"epochs": 4, "members": 2, "n_init": 6, "filter_degree": 16}
K = 3


@pytest.fixture(scope="module")
def section():
    return amilst.simulate_section(300, 60, K, seed=1)


def run(adata, **changes):
    amilst.identify_domains(adata, K, seed=0, **{**QUICK, **changes})
    return adata


@pytest.fixture(scope="module")
def done(section):
    return run(section.copy())


def test_slots_are_those_of_the_plan(section, done):
    assert done.obsm["X_amilst"].dtype == np.float32
    assert done.obsm["X_pca"].shape == (300, 30)
    for name in ("amilst_domain", "amilst_domain_refined"):
        column = done.obs[name]
        assert list(column.cat.categories) == ["1", "2", "3"]
        assert column.notna().all()
    sizes = done.obs["amilst_domain"].value_counts()
    assert sizes["1"] >= sizes["2"] >= sizes["3"] > 0
    assert done.obs["amilst_confidence"].between(0, 1).all()
    assert done.obsp["spatial_connectivities"].shape == (300, 300)
    assert (done.obsp["spatial_distances"].data > 0).all()
    assert done.uns["spatial_neighbors"]["connectivities_key"] == "spatial_connectivities"
    record = done.uns["amilst"]
    assert record["seed"] == 0 and record["n_domains"] == K
    assert len(record["losses"]["network"]) == QUICK["epochs"]
    assert record["config"]["train"]["epochs"] == QUICK["epochs"]
    assert (done.X != section.X).nnz == 0  # X is never changed


def test_result_survives_a_file(done, tmp_path):
    done.write_h5ad(tmp_path / "a.h5ad")
    back = ad.read_h5ad(tmp_path / "a.h5ad")
    np.testing.assert_array_equal(back.obsm["X_amilst"], done.obsm["X_amilst"])
    assert list(back.obs["amilst_domain"]) == list(done.obs["amilst_domain"])
    assert back.uns["amilst"]["config"]["graph"]["radius"] == "none"


def test_same_seed_same_bits_and_generators_untouched(section, done):
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    again = run(section.copy())
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    np.testing.assert_array_equal(again.obsm["X_amilst"], done.obsm["X_amilst"])
    np.testing.assert_array_equal(again.obs["amilst_confidence"], done.obs["amilst_confidence"])


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


def test_a_view_becomes_actual_without_a_warning(section, done):
    padded = ad.concat([section, section[:5].copy()], index_unique="-")
    padded.obsm["spatial"] = np.r_[section.obsm["spatial"], section.obsm["spatial"][:5]]
    view = padded[:300]
    assert view.is_view
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(view)
    np.testing.assert_array_equal(view.obsm["X_amilst"], done.obsm["X_amilst"])
    assert "amilst_domain" not in padded.obs


def test_samples_and_representation_and_key(section):
    adata = section.copy()
    adata.obs["slide"] = np.repeat(["a", "b"], 150)
    adata.obsm["mine"] = np.random.default_rng(0).normal(size=(300, 6))
    run(adata, sample_key="slide", use_rep="mine", key_added="other")
    assert {"other_domain", "other_domain_refined", "other_confidence"} <= set(adata.obs)
    assert "X_pca" not in adata.obsm and adata.obsm["X_other"].shape == (300, 6)
    rows, columns = adata.obsp["spatial_connectivities"].nonzero()
    slide = adata.obs["slide"].to_numpy()
    assert (slide[rows] == slide[columns]).all()


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda a: a.obsm.pop("spatial"), MissingKeyError, "no coordinates.*obsm"),
        (lambda a: a.obsm.update(spatial=np.full((300, 2), np.nan)), InputError, "NaN|finite"),
        (lambda a: a.obsm["spatial"].__setitem__((3, 0), np.inf), InputError, "inf|finite"),
        (lambda a: a.obsm.update(spatial=np.ones((300, 2))), InputError, "place"),
        (lambda a: a.obsm.update(spatial=np.ones((300, 5))), InputError, "2 or 3 columns"),
        (lambda a: a.obsm.update(spatial=np.full((300, 2), "a")), InputError, "numbers"),
        (lambda a: a.X.data.__setitem__(0, -1), InputError, "negative"),
        (lambda a: a.X.data.__setitem__(0, np.nan), InputError, "finite"),
        (lambda a: setattr(a, "X", None), MissingKeyError, "no counts"),
        (lambda a: setattr(a, "X", a.X * 0), InputError, "every spot is empty"),
    ],
)
def test_wrong_sections_are_refused_and_left_as_they_were(section, spoil, error, message):
    adata = section.copy()
    spoil(adata)
    before = set(adata.obs), set(adata.obsm), set(adata.obsp)
    with pytest.raises(error, match=message):
        run(adata)
    assert (set(adata.obs), set(adata.obsm), set(adata.obsp)) == before


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"sample_key": "slide"}, MissingKeyError, "no column 'slide'.*ground_truth"),
        ({"use_rep": "X_scvi"}, MissingKeyError, "no 'X_scvi'"),
        ({"preset": "best"}, InputError, "unknown preset"),
        ({"epoch": 5}, InputError, "unknown setting"),
        ({"device": "gpu"}, InputError, "device must be"),
        ({"n_neighbors": 300}, InputError, "neighbours"),
    ],
)
def test_wrong_options(section, changes, error, message):
    with pytest.raises(error, match=message):
        run(section.copy(), **changes)


@pytest.mark.parametrize("k", [1, 0, 301])
def test_wrong_number_of_domains(section, k):
    with pytest.raises(InputError, match="domains"):
        amilst.identify_domains(section.copy(), k, **QUICK)


def test_usable_but_odd_sections_warn(section):
    logged = section.copy()
    logged.X = logged.X.log1p()
    with pytest.warns(AmilstWarning, match="whole numbers"):
        run(logged)
    hollow = section.copy()
    hollow.X = sparse.vstack([sparse.csr_matrix((1, 60), dtype=np.float32), hollow.X[1:]]).tocsr()
    with pytest.warns(AmilstWarning, match="no counts"):
        run(hollow)
    assert hollow.obs["amilst_domain"].notna().all()


def test_repeated_names_do_not_matter(section, done):
    twins = section.copy()
    twins.obs_names = ["spot"] * 300
    twins.var_names = ["gene"] * 60
    run(twins)
    np.testing.assert_array_equal(twins.obsm["X_amilst"], done.obsm["X_amilst"])
    assert list(twins.obs["amilst_domain"]) == list(done.obs["amilst_domain"])


def test_published_preset_names_the_extra_it_needs(section, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "igraph", None)
    with pytest.raises(MissingExtraError, match=r"amilst-lite\[leiden\]"):
        amilst.identify_domains(section.copy(), K, preset="published", epochs=1, adversarial_epochs=1)
    adata = section.copy()
    amilst.identify_domains(
        adata, K, preset="published", epochs=2, adversarial_epochs=2, method="gmm", n_init=4
    )
    assert adata.obs["amilst_domain"].nunique() == K


def test_score(done):
    scores = amilst.score(done, "ground_truth")
    assert set(scores) == {
        "ari", "nmi", "homogeneity", "completeness", "n_scored", "chaos", "pas", "silhouette",
    }  # fmt: skip
    assert scores["n_scored"] == 300
    perfect = amilst.score(done, "ground_truth", domain="ground_truth")
    assert perfect["ari"] == perfect["nmi"] == 1
    assert set(amilst.score(done)) == {"chaos", "pas", "silhouette"}
    partly = done.copy()
    partly.obs["half"] = partly.obs["ground_truth"].astype(object).where(np.arange(300) < 100)
    assert amilst.score(partly, "half")["n_scored"] == 100
    with pytest.raises(MissingKeyError, match="no column 'truth'"):
        amilst.score(done, "truth")


def test_write_results(done, tmp_path):
    summary = amilst.write_results(done, tmp_path, source="here", annotation="ground_truth")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"result.h5ad", "domains.csv", "domains.png", "losses.png", "run.json"}
    table = pd.read_csv(tmp_path / "domains.csv", dtype={"domain": str})
    assert list(table.columns) == ["spot", "domain", "refined_domain", "probability"]
    assert list(table["domain"]) == list(done.obs["amilst_domain"])
    written = json.loads((tmp_path / "run.json").read_text())
    assert written["scores"]["domain"]["ari"] == pytest.approx(summary["scores"]["domain"]["ari"])
    assert {"config", "versions", "seed", "device", "seconds", "peak_memory", "input"} <= set(written)
    assert set(written["files"]) == names


def test_counts_on_disk_give_the_same_and_are_not_written_again(section, done, tmp_path):
    section.write_h5ad(tmp_path / "section.h5ad")
    (tmp_path / "out").mkdir()
    adata = ad.read_h5ad(tmp_path / "section.h5ad", backed="r")
    run(adata)
    np.testing.assert_array_equal(adata.obs["amilst_domain"], done.obs["amilst_domain"])
    np.testing.assert_array_equal(adata.obsm["X_amilst"], done.obsm["X_amilst"])
    assert pipeline.describe(adata)[:3] == pipeline.describe(section)[:3]
    summary = pipeline.write_results(adata, tmp_path / "out")
    assert any("counts" in line for line in summary["left_out"])
    back = ad.read_h5ad(tmp_path / "out" / "result.h5ad")
    assert back.X is None and back.shape == adata.shape
    np.testing.assert_array_equal(back.obsm["X_amilst"], done.obsm["X_amilst"])


def test_without_matplotlib_the_rest_is_written(done, tmp_path, monkeypatch):
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    summary = amilst.write_results(done, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"result.h5ad", "domains.csv", "run.json"}
    assert "amilst-lite[plot]" in summary["left_out"][0]


def test_describe(section):
    lines = "\n".join(pipeline.describe(section))
    assert "300 spots × 60 genes" in lines
    assert "obs['ground_truth']: 3 values, 0 missing" in lines


def test_number_of_domains_is_chosen_when_not_given(section, tmp_path):
    adata = section.copy()
    amilst.identify_domains(adata, **{**QUICK, "n_init": 4})
    record = adata.uns["amilst"]
    assert adata.obs["amilst_domain"].nunique() == record["n_domains"]
    assert list(record["selection"]["n_domains"]) == list(range(2, 16))
    amilst.write_results(adata, tmp_path)
    assert (tmp_path / "selection.png").stat().st_size > 1000
    assert ad.read_h5ad(tmp_path / "result.h5ad").uns["amilst"]["selection"]["stability"].shape == (14,)
