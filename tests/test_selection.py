"""Choosing the number of domains."""

import numpy as np
import pytest

from amilst_lite.cluster.selection import select_n_domains
from amilst_lite.config import ClusterConfig
from amilst_lite.errors import InputError

CONFIG = ClusterConfig(n_init=8)


def blobs(k, n=400, seed=0):
    rng = np.random.default_rng(seed)
    centers = 12 * np.eye(k, 6)
    return (centers[np.arange(n) % k] + rng.normal(size=(n, 6))).astype(np.float32)


@pytest.mark.parametrize("k", [3, 5])
def test_finds_the_number_of_separate_blobs(k):
    selection = select_n_domains(blobs(k), range(2, 9), CONFIG, seed=1)
    assert selection.n_domains == k
    best = selection.table.set_index("n_domains").loc[k]
    assert best["stability"] > 0.99
    assert selection.table["bic"].idxmin() == selection.table["n_domains"].eq(k).idxmax()


def test_table_and_runners_up():
    selection = select_n_domains(blobs(3), (2, 4, 3), CONFIG)
    assert list(selection.table["n_domains"]) == [2, 3, 4]
    assert set(selection.runners_up) == {2, 4}
    assert (selection.table["icl"] >= selection.table["bic"]).all()
    assert selection.table["stability"].between(-0.1, 1.0 + 1e-9).all()


def test_finest_of_equally_stable_divisions():
    groups = np.repeat([[0.0] * 6, [80.0] + [0.0] * 5], 200, axis=0)
    selection = select_n_domains((blobs(3) + groups).astype(np.float32), range(2, 9), CONFIG)
    stability = selection.table.set_index("n_domains")["stability"]
    assert stability[2] > 0.99 and stability[6] > 0.99
    assert selection.n_domains == 6


def test_same_seed_same_table():
    first, second = (select_n_domains(blobs(3), (2, 3), CONFIG, seed=4).table for _ in range(2))
    assert first.equals(second)


def test_candidates_above_a_tenth_of_the_spots_are_skipped():
    assert list(select_n_domains(blobs(3, n=45), range(2, 20), CONFIG).table["n_domains"]) == [2, 3, 4]


@pytest.mark.parametrize(
    "options",
    [
        {"candidates": (1,)},
        {"candidates": ()},
        {"n_subsamples": 2},
        {"fraction": 1.0},
        {"embedding": blobs(3, n=12)},
    ],
)
def test_invalid_options(options):
    with pytest.raises(InputError, match="Expected"):
        select_n_domains(**{"embedding": blobs(3), "candidates": (2, 3), "config": CONFIG, **options})
