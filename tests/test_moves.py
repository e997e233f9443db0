"""Moves of one component of a mixture: which pairs are merged, and where components are split."""

import numpy as np
import torch
from sklearn.metrics import adjusted_rand_score

from amilst_lite.cluster.moves import split_and_merge


def groups(k=6, each=80, d=3, seed=0):
    rng = np.random.default_rng(seed)
    truth = np.repeat(np.arange(k), each)
    centers = 20 * np.eye(k, d) if k <= d else 20 * rng.normal(size=(k, d))
    return torch.from_numpy(centers[truth] + rng.normal(size=(k * each, d))), torch.from_numpy(truth)


def test_one_move_finds_groups_that_were_together():
    X, truth = groups()
    labels = truth.clone()
    labels[truth == 1] = 0  # two groups in one component,
    labels[(truth == 2) & (torch.arange(len(X)) % 2 == 0)] = 1  # and a component for half of another
    moves = split_and_merge(X, labels, 6)
    assert moves.shape == (16, len(X)) and moves.dtype == torch.int64
    assert all(len(torch.unique(one)) == 6 for one in moves)
    # the pair that costs least, and the component that gains most, come first
    assert adjusted_rand_score(truth, moves[0]) == 1


def test_moves_do_not_depend_on_scale_and_basis():
    X, truth = groups()
    labels = torch.where(truth == 1, 0, truth)
    labels[(truth == 2) & (torch.arange(len(X)) % 2 == 0)] = 1
    mixing = torch.from_numpy(np.random.default_rng(3).normal(size=(3, 3)))
    for other in (1e-3 * X, X @ mixing):
        assert (
            adjusted_rand_score(split_and_merge(X, labels, 6)[0], split_and_merge(other, labels, 6)[0]) == 1
        )


def test_components_without_rows_and_of_few_rows_are_not_split():
    X, truth = groups(k=4, each=3)
    assert split_and_merge(X, truth, 5).shape == (0, len(X))  # no more rows than columns in any
    X, truth = groups(k=4, each=30)
    moves = split_and_merge(X, truth, 5)  # the fifth is empty: its place is the cheapest to free
    assert len(moves) and len(torch.unique(moves[0])) == 5


def test_rows_that_are_all_the_same():
    X = torch.ones(40, 3)
    moves = split_and_merge(X, torch.arange(40) % 4, 4)
    assert moves.shape[1] == 40 and bool((moves >= 0).all() & (moves < 4).all())
