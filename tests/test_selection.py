"""Choosing the number of domains."""

import numpy as np
import pytest

from amilst_lite.cluster import selection as module
from amilst_lite.cluster.selection import select_n_domains
from amilst_lite.config import ClusterConfig
from amilst_lite.errors import InputError

CONFIG = ClusterConfig(n_init=8)


def blobs(k, n=400, seed=0):
    """Every block of consecutive rows holds all k groups."""
    rng = np.random.default_rng(seed)
    centers = 12 * np.eye(k, 12)
    return (centers[np.arange(n) % k] + rng.normal(size=(n, 12))).astype(np.float32)


@pytest.mark.parametrize("k", [3, 5])
def test_finds_the_number_of_separate_blobs(k):
    selection = select_n_domains(blobs(k), range(2, 9), CONFIG, seed=1)
    assert selection.n_domains == k
    table = selection.table.set_index("n_domains")
    assert table.loc[k, "agreement"] > 0.99
    assert table.loc[k, "log_likelihood"] > table.loc[k - 1, "log_likelihood"] + 1


def test_table_and_runners_up():
    selection = select_n_domains(blobs(3), (2, 4, 3), CONFIG)
    assert list(selection.table["n_domains"]) == [2, 3, 4]
    assert set(selection.runners_up) == {2, 4}
    assert selection.table["agreement"].between(0, 1 + 1e-9).all()
    assert selection.table["share"].between(0, 1).all()


def test_smallest_number_within_the_slack_of_the_best(monkeypatch):
    likelihood = {2: -9.0, 3: -5.9, 4: -5.3, 5: -5.0, 6: -5.2, 7: -5.4}
    monkeypatch.setattr(
        module, "held_out", lambda X, k, shares, **options: (np.full(len(shares), likelihood[k]), 0.9)
    )
    selection = select_n_domains(blobs(3), range(2, 8), CONFIG)
    assert selection.n_domains == 4
    assert selection.runners_up == (5, 6, 7)


def test_larger_numbers_are_not_tried_once_the_likelihood_falls(monkeypatch):
    seen = []

    def falling(X, k, shares, **options):
        seen.append(k)
        return np.full(len(shares), -float(k)), 0.5

    monkeypatch.setattr(module, "held_out", falling)
    progress = []
    selection = select_n_domains(
        blobs(3), range(2, 16), CONFIG, callback=lambda done, total: progress.append((done, total))
    )
    assert selection.n_domains == 2 and seen == [2, 3, 4, 5]
    assert progress == [(1, 14), (2, 14), (3, 14), (4, 4)]  # the bar is full at the end


def test_a_clearly_worse_number_ends_the_search(monkeypatch):
    monkeypatch.setattr(module, "held_out", lambda X, k, shares, **_: (np.full(len(shares), -3.5 * k), 0.5))
    selection = select_n_domains(blobs(3), range(2, 16), CONFIG)
    assert list(selection.table["n_domains"]) == [2, 3] and selection.runners_up == (3,)


def test_shares_next_to_the_last_best_are_compared(monkeypatch):
    shares_seen = []

    def best_in_the_middle(X, k, shares, **options):
        shares_seen.append(tuple(shares))
        return -np.abs(np.log(np.array(shares) / 0.1)), 0.8

    monkeypatch.setattr(module, "held_out", best_in_the_middle)
    table = select_n_domains(blobs(3), (2, 3), CONFIG).table
    assert shares_seen == [module.SHARES, (0.03, 0.1, 0.2)]
    assert table["share"].eq(0.1).all() and table["agreement"].eq(0.8).all()


def test_half_of_the_leading_principal_axes_are_described(monkeypatch):
    given = []
    monkeypatch.setattr(module, "held_out", lambda X, k, shares, **_: given.append(X) or (np.zeros(7), 0.5))
    X = blobs(3)
    select_n_domains(X, (2,), CONFIG)
    values = np.linalg.svd(X - X.mean(0), compute_uv=False)[:6]
    np.testing.assert_allclose(np.linalg.norm(given[0].numpy(), axis=0), values, rtol=1e-4)


def test_a_given_shrinkage_is_used(monkeypatch):
    shares_seen = []
    original = module.held_out

    def recording(X, k, shares, **options):
        shares_seen.append(list(shares))
        return original(X, k, shares, **options)

    monkeypatch.setattr(module, "held_out", recording)
    table = select_n_domains(blobs(3), (2, 3), ClusterConfig(n_init=4, shrinkage=0.3)).table
    assert shares_seen == [[0.3], [0.3]] and table["share"].eq(0.3).all()


def test_same_seed_same_table():
    first, second = (select_n_domains(blobs(3), (2, 3), CONFIG, seed=4).table for _ in range(2))
    assert first.equals(second)


def test_candidates_above_a_tenth_of_the_spots_are_skipped():
    assert max(select_n_domains(blobs(3, n=45), range(2, 20), CONFIG).table["n_domains"]) <= 4


@pytest.mark.parametrize("options", [{"candidates": (1,)}, {"candidates": ()}, {"embedding": blobs(3, n=12)}])
def test_invalid_options(options):
    with pytest.raises(InputError, match="Expected"):
        select_n_domains(**{"embedding": blobs(3), "candidates": (2, 3), "config": CONFIG, **options})
