"""The spectral filter against dense eigenvectors and polynomials."""

import numpy as np
import pytest
import torch

from amilst_lite.errors import InputError
from amilst_lite.nn.sparse import SymmetricAdjacency
from amilst_lite.spatial import SpatialGraph
from amilst_lite.spatial.spectral_filter import (
    _apply,
    _chebyshev_moments,
    denoise,
    standardize,
    wiener_filter,
)

N = 900


@pytest.fixture(scope="module")
def adjacency():
    coordinates = np.random.default_rng(0).random((N, 2))
    graph = SpatialGraph.from_coordinates(coordinates, n_neighbors=6)
    return SymmetricAdjacency(graph.adjacency())


@pytest.fixture(scope="module")
def spectrum(adjacency):
    """Eigenvalues of Â, ascending, and eigenvectors; the roots of the degrees."""
    dense = adjacency.coo.to_dense().double()
    values, vectors = torch.linalg.eigh(dense)
    root = (1 / dense.diagonal()).sqrt()
    return values, vectors, root / root.square().mean().sqrt()


def noise(columns=3, seed=0):
    return torch.randn(N, columns, generator=torch.Generator().manual_seed(seed))


def chebyshev(values, order):
    return torch.cos(order * torch.arccos(values.clamp(-1, 1)))


def test_moments_are_those_of_the_dense_polynomials(adjacency, spectrum):
    values, vectors, _ = spectrum
    columns = noise()
    found = _chebyshev_moments(adjacency, columns, 12)
    power = (vectors.T @ columns.double()).square()  # (N, 3), of each eigenvector
    for order in range(13):
        expected = (chebyshev(values, order)[:, None] * power).sum(0)
        np.testing.assert_allclose(found[order], expected, rtol=1e-4, atol=1e-3)


def test_filter_is_its_polynomial(adjacency, spectrum):
    values, vectors, _ = spectrum
    columns, coefficients = noise(2), torch.rand(9, 2, generator=torch.Generator().manual_seed(1))
    response = sum(chebyshev(values, m)[:, None] * coefficients[m].double() for m in range(9))
    expected = vectors @ (response * (vectors.T @ columns.double()))
    found = _apply(adjacency, columns, coefficients)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_smooth_signal_is_kept_and_noise_removed(adjacency, spectrum):
    """Signal of the 10 lowest frequencies plus white noise: close to the best linear filter."""
    _values, vectors, root = spectrum
    generator = torch.Generator().manual_seed(2)
    weights = torch.randn(10, 4, generator=generator, dtype=torch.float64)
    clean = (vectors[:, -11:-1] @ weights) / root[:, None]
    clean = clean / clean.std(0)
    noisy = (clean + 0.7 * torch.randn(N, 4, generator=generator, dtype=torch.float64)).float()
    filtered, gain = wiener_filter(noisy, adjacency)
    before, after = ((x.double() - clean).square().mean(0) for x in (noisy, filtered))
    assert (after < 0.15 * before).all()
    np.testing.assert_allclose(gain, 1 / (1 + 0.7**2), atol=0.1)


def test_pure_noise_is_removed(adjacency):
    _, gain = wiener_filter(noise(40), adjacency)
    assert gain.mean() < 0.1 and gain.max() < 0.4  # the noise is estimated from a tenth of the frequencies


def test_constant_columns_pass_unchanged(adjacency):
    features = torch.cat([torch.full((N, 1), 3.0), noise(1)], 1)
    filtered, _ = wiener_filter(features, adjacency)
    torch.testing.assert_close(filtered[:, 0], features[:, 0])


def test_columns_are_filtered_separately_and_on_their_own_scale(adjacency):
    features = noise(3).cumsum(0) / 10
    filtered, gain = wiener_filter(features, adjacency)
    other, other_gain = wiener_filter(features * torch.tensor([1.0, 64.0, 0.25]), adjacency)
    torch.testing.assert_close(other, filtered * torch.tensor([1.0, 64.0, 0.25]), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(other_gain, gain, rtol=1e-4)
    alone, _ = wiener_filter(features[:, 1:2], adjacency)
    torch.testing.assert_close(alone, filtered[:, 1:2], rtol=1e-3, atol=1e-4)


def test_same_seed_same_bits(adjacency):
    features = noise().cumsum(0)
    first, second = (wiener_filter(features, adjacency, seed=4)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_noise_band_and_degree_are_wired(adjacency):
    features = noise(2).cumsum(0)
    default = wiener_filter(features, adjacency)[0]
    for change in ({"noise_band": 0.5}, {"degree": 40}):
        assert not torch.allclose(wiener_filter(features, adjacency, **change)[0], default, atol=1e-3)


def test_standardize_keeps_relative_scales():
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([3.0, 2.0, 1.0]) + 7
    scaled = standardize(x)
    assert scaled.var(0, unbiased=False).sum().item() == pytest.approx(1, rel=1e-5)
    ratio = scaled.std(0) / x.std(0)
    torch.testing.assert_close(ratio, ratio[:1].expand(3))


def test_denoise_is_standardized_and_can_be_switched_off(adjacency):
    features = 5 * noise(4).cumsum(0) + 2
    filtered = denoise(features, adjacency, 0.1)
    assert filtered.var(0, unbiased=False).sum().item() == pytest.approx(1, rel=1e-4)
    torch.testing.assert_close(denoise(features, adjacency, None), standardize(features))
    assert not torch.allclose(filtered, standardize(features), atol=1e-3)


def test_mismatched_features_are_refused(adjacency):
    with pytest.raises(InputError, match=f"each of the {N} nodes"):
        wiener_filter(noise()[:-1], adjacency)
    with pytest.raises(InputError, match="same features"):
        denoise(torch.ones(N, 3), adjacency, 0.1)
