"""Scores and descriptions of an AnnData."""

import anndata as ad
import numpy as np
import pytest

import amilst_lite as amilst
from amilst_lite import metrics, summary
from amilst_lite.errors import InputError, MissingKeyError

QUICK = {"epochs": 2, "n_networks": 1, "n_init": 4, "shrinkage": 0.2, "network_share": 0.3}
K = 3


@pytest.fixture(scope="module")
def section():
    return amilst.simulate_section(300, 60, K, seed=1)


def run(adata, **options):
    amilst.identify_domains(adata, K, seed=0, **QUICK, **options)
    return adata


@pytest.fixture(scope="module")
def done(section):
    return run(section.copy())


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


def test_score_uses_the_recorded_sections(section):
    adata = section.copy()
    # two sections at the same place: spots of the other one must not count as neighbors
    adata.obs["slide"] = np.where(np.arange(300) % 2, "a", "b")
    adata.obs["plain"] = np.where(np.arange(300) % 2, "x", "y")
    run(adata, sample_key="slide", key_added="mine")
    by_default = amilst.score(adata, domain="mine_domain")
    assert by_default == amilst.score(adata, domain="mine_domain", sample_key="slide")
    assert by_default == amilst.score(adata, domain="mine_domain") != _unsectioned(adata, "mine_domain")
    # a column of the user's has no recorded sections
    assert amilst.score(adata, domain="plain") == _unsectioned(adata, "plain")


def test_score_of_several_sections(done):
    adata = done.copy()
    adata.obs["slide"] = np.where(np.arange(300) % 3 == 0, "a", "b")
    adata.obs["alone"] = "a"
    plain = amilst.score(adata, "ground_truth")
    assert "integration" not in plain
    assert amilst.score(adata, "ground_truth", sample_key="alone") == plain
    found = amilst.score(adata, "ground_truth", sample_key="slide")
    labels, truth, slide = (adata.obs[name] for name in ("amilst_domain", "ground_truth", "slide"))
    expected = metrics.integration_scores(labels, slide, adata.obsm["X_amilst"], truth)
    assert found["integration"] == expected
    assert set(expected["section_ari"]) == {"a", "b"} and expected["labels"] == "annotation"
    assert found["ari"] == plain["ari"] and set(found) == {*plain, "integration"}
    # without an annotation; of a column that no run wrote; and without an embedding
    assert amilst.score(adata, sample_key="slide")["integration"]["labels"] == "domains"
    of_truth = amilst.score(adata, domain="ground_truth", sample_key="slide")["integration"]
    assert of_truth == metrics.integration_scores(truth, slide, adata.obsm["X_amilst"])
    del adata.obsm["X_amilst"]
    without = amilst.score(adata, "ground_truth", sample_key="slide")["integration"]
    assert without == metrics.integration_scores(labels, slide, annotation=truth)
    assert "ilisi" not in without


def test_score_uses_the_embedding_of_the_run(done):
    adata = done.copy()
    adata.obs["slide"] = np.where(np.arange(300) % 3 == 0, "a", "b")
    expected = amilst.score(adata, sample_key="slide")["integration"]
    amilst.identify_domains(adata, K, seed=5, key_added="other", **QUICK)
    other = amilst.score(adata, domain="other_domain", sample_key="slide")["integration"]
    assert other["ilisi"] != expected["ilisi"]
    assert amilst.score(adata, sample_key="slide")["integration"] == expected
    adata.obsm["X_amilst"][3, 0] = np.nan
    with pytest.raises(InputError, match="X_amilst.*NaN"):
        amilst.score(adata, sample_key="slide")


def _unsectioned(adata, domain):
    return metrics.continuity(adata.obs[domain].to_numpy(), adata.obsm["spatial"])


def test_describe(section):
    lines = "\n".join(summary.describe(section))
    assert "300 spots × 60 genes" in lines
    assert "obs['ground_truth']: 3 values, 0 missing" in lines


def test_describe_gives_the_spacing():
    grid = np.stack(np.meshgrid(np.arange(5.0), np.arange(4.0)), -1).reshape(-1, 2) * 7
    adata = ad.AnnData(np.ones((20, 3), np.float32), obsm={"spatial": grid})
    assert "extent 28 × 21, median distance to the nearest spot 7" in "\n".join(summary.describe(adata))
    adata.obsm["spatial"][0, 0] = np.nan
    with pytest.raises(InputError, match="NaN"):
        summary.describe(adata)
