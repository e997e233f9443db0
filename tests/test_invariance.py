"""Domains do not depend on how a section is placed, scaled or sorted."""

import anndata
import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

import amilst_lite as amilst

ROTATION = np.array([[np.cos(0.7), -np.sin(0.7)], [np.sin(0.7), np.cos(0.7)]])


def test_domains_do_not_depend_on_the_placement():
    section = amilst.simulate_section(200, 60, 4, seed=2)
    check(section, 4, epochs=3, n_networks=1, n_init=4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["her2st_A1", "mOB"])
def test_domains_of_a_real_section_do_not_depend_on_its_placement(name, shared_dir):
    """With the defaults."""
    path = shared_dir / "data" / f"{name}.h5ad"
    if not path.exists():
        pytest.skip(f"no {path}")
    check(anndata.read_h5ad(path), 5)


def check(section, n_domains, **settings):
    points = np.asarray(section.obsm["spatial"], dtype=float)
    rng = np.random.default_rng(0)
    spacing = np.linalg.norm(points[1:] - points[0], axis=1).min()
    everyone = np.arange(section.n_obs)

    def domains(coordinates, rows=everyone):
        adata = section[rows].copy()
        adata.obsm["spatial"] = coordinates[rows]
        amilst.identify_domains(adata, n_domains, seed=0, **settings)
        return adata.obs["amilst_domain"].to_numpy()

    unmodified = domains(points)
    shuffled = rng.permutation(section.n_obs)
    changed = {
        "rotated and translated": (domains(points @ ROTATION + [3e4, -50.0]), everyone),
        "reflected and scaled": (domains(points * [-1e-3, 1e-3]), everyone),
        "jittered": (domains(points + rng.normal(0, 1e-7 * spacing, points.shape)), everyone),
        "rows shuffled": (domains(points, shuffled), shuffled),
    }
    scores = {how: adjusted_rand_score(unmodified[rows], labels) for how, (labels, rows) in changed.items()}
    assert min(scores.values()) >= 0.99, scores
