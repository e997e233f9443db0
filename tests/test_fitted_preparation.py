"""Features of other sections by the preparation of the first: genes, totals, missing genes."""

import numpy as np
import pytest
from scipy import sparse

from amilst_lite.config import PreprocessConfig
from amilst_lite.errors import AmilstWarning, InputError
from amilst_lite.preprocess import FittedPreparation, prepare

N, G, C = 400, 60, 6
GENES = [f"g{place}" for place in range(G)]
CONFIG = PreprocessConfig(n_components=C, n_top_genes=None)


def counts(seed, n=N, depth=1.0):
    """Counts of two programs of expression."""
    rng = np.random.default_rng(seed)
    loadings = np.random.default_rng(0).normal(0, 0.5, (2, G))
    rates = 10.0 * depth * np.exp(rng.normal(size=(n, 2)) @ loadings)
    return sparse.csr_matrix(rng.poisson(rates).astype(np.float32))


def fitted(normalization="median", matrix=None):
    matrix = counts(1) if matrix is None else matrix
    preparation = prepare(
        matrix,
        CONFIG
        if normalization == "median"
        else PreprocessConfig(n_components=C, n_top_genes=None, normalization=normalization),
    )
    return FittedPreparation.of(preparation, GENES, normalization), preparation


@pytest.mark.parametrize("normalization", ["median", "published"])
def test_training_section_gets_the_features_of_training(normalization):
    model, preparation = fitted(normalization)
    features, depth = model.apply(counts(1), GENES)
    np.testing.assert_array_equal(features, preparation.features)
    np.testing.assert_allclose(depth, preparation.depth)


def test_selected_genes_and_depth():
    config = PreprocessConfig(n_components=C, n_top_genes=40)
    matrix = counts(1)
    preparation = prepare(matrix, config)
    model = FittedPreparation.of(preparation, GENES, "median")
    assert len(model.genes) == 40 and model.depth_ratio > 1
    features, depth = model.apply(matrix, GENES)
    np.testing.assert_array_equal(features, preparation.features)
    assert depth.sum() == pytest.approx(matrix.sum())


def test_features_are_those_of_the_formula():
    model, _ = fitted()
    new = counts(2, depth=3.0)
    dense = new.toarray().astype(np.float64)
    expression = np.log1p(dense / dense.sum(1, keepdims=True) * model.target)
    expected = (expression - model.mean) @ model.components.T
    np.testing.assert_allclose(model.apply(new, GENES)[0], expected, atol=1e-4)


def test_order_and_unknown_genes():
    model, _ = fitted()
    new = counts(2)
    order = np.random.default_rng(3).permutation(G + 5)
    more = sparse.hstack([new, counts(4)[:, :5] * 100], format="csr")[:, order]
    names = np.array([*GENES, *(f"x{place}" for place in range(5))])[order]
    expected, found = model.apply(new, GENES), model.apply(more, names)
    np.testing.assert_allclose(found[0], expected[0], atol=1e-5)
    np.testing.assert_allclose(found[1], expected[1])


def test_missing_genes_are_predicted_better_than_by_their_means():
    model, _ = fitted()
    new = counts(2)
    present = np.random.default_rng(5).permutation(G) >= G // 3
    names = np.array(GENES)[present]
    full, depth = model.apply(new, GENES)
    with pytest.warns(AmilstWarning, match=r"20 of the 60 genes .* predicted from the others"):
        predicted, scaled = model.apply(new[:, present], names)
    dense = new[:, present].toarray().astype(np.float64)
    target = model.target * model.abundance[present].sum()
    expression = np.log1p(dense / dense.sum(1, keepdims=True) * target)
    at_mean = (expression - model.mean[present]) @ model.components[:, present].T
    assert np.square(predicted - full).sum() < 0.5 * np.square(at_mean - full).sum()
    assert np.median(scaled / depth) == pytest.approx(1, abs=0.1)


def test_few_missing_genes_are_noted_without_a_warning(caplog):
    model, _ = fitted()
    least = int(np.argmin(np.abs(model.components).max(0)))
    kept = np.arange(G) != least
    with caplog.at_level("INFO", logger="amilst_lite"):
        model.apply(counts(2)[:, kept], np.array(GENES)[kept])
    assert "1 of the 60 genes" in caplog.text


def test_too_few_genes_are_refused():
    model, _ = fitted()
    with pytest.raises(InputError, match="Train on the genes in common"):
        model.apply(counts(2)[:, :5], GENES[:5])
    with pytest.raises(InputError, match=r"named like 'g0', 'g1', 'g2', those of the input like 'G0'"):
        model.apply(counts(2), [name.upper() for name in GENES])


def test_unusable_counts_are_refused():
    model, _ = fitted()
    with pytest.raises(InputError, match="must not be negative"):
        model.apply(counts(2) * -1, GENES)
    unrelated = sparse.hstack([counts(2) * 0, counts(2)[:, :1]], format="csr")
    with pytest.raises(InputError, match="the genes of the model have no counts"):
        model.apply(unrelated, [*GENES, "other"])
    with pytest.raises(InputError, match="g1 more than once"):
        model.apply(counts(2), ["g1", *GENES[1:]])


def test_round_trip_and_refusals():
    model, _ = fitted()
    again = FittedPreparation.from_arrays(model.to_arrays(), model.genes, "median")
    np.testing.assert_array_equal(again.apply(counts(2), GENES)[0], model.apply(counts(2), GENES)[0])
    with pytest.raises(InputError, match=r"one name for each of its 60 genes.*59 names"):
        FittedPreparation.from_arrays(model.to_arrays(), model.genes[1:], "median")
    for name, value in (("target", np.float64(0)), ("scale", -model.scale), ("depth_ratio", np.float64(0.5))):
        with pytest.raises(InputError, match="positive scales"):
            FittedPreparation.from_arrays({**model.to_arrays(), name: value}, model.genes, "median")
