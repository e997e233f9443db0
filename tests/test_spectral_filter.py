"""The spectral filter against dense eigenvectors and polynomials."""

import numpy as np
import pytest
import torch

from amilst_lite.errors import AmilstWarning, InputError
from amilst_lite.model_file import read_model, write_model
from amilst_lite.nn.sparse import SymmetricAdjacency
from amilst_lite.spatial import SpatialGraph
from amilst_lite.spatial import spectral_filter as module
from amilst_lite.spatial.spectral_filter import (
    FittedFilter,
    _apply,
    _moments_of,
    denoise,
    fill_low_depth,
    fit_denoise,
    least_depth,
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


def averaging(depth, adjacency, floor):
    """`fill_low_depth` with a floor that refers to the median of this depth."""
    return fill_low_depth(depth, adjacency, least_depth(depth, floor))


def chebyshev(values, order):
    return torch.cos(order * torch.arccos(values.clamp(-1, 1)))


def test_moments_are_those_of_the_dense_polynomials(adjacency, spectrum):
    values, vectors, _ = spectrum
    columns = noise()
    found = _moments_of(adjacency, columns, 12)
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


def dense_adjacency(adjacency):
    degrees = 1 / adjacency.coo.to_dense().diagonal()
    A = (adjacency.coo.to_dense() != 0).double()
    A.fill_diagonal_(0)
    assert torch.equal(A.sum(1) + 1, degrees.double().round())
    return A


def test_low_depth_rows_are_averaged_with_their_neighbors(adjacency):
    A = dense_adjacency(adjacency)
    rng = np.random.default_rng(0)
    depth = torch.from_numpy(rng.uniform(80, 120, N))
    low = rng.permutation(N)[: N // 5]
    depth[low] = torch.from_numpy(rng.uniform(0, 30, len(low)))
    depth[low[0]] = 0.0
    X = torch.from_numpy(rng.normal(size=(N, 3)).astype(np.float32))
    floor = 0.5 * float(depth[depth > 0].float().median())
    expected = X.double().clone()
    for i in np.flatnonzero(depth.numpy() < floor):
        weights = A[i] * depth
        mean = weights @ X.double() / weights.sum()
        own = depth[i] / floor
        expected[i] = own * X[i].double() + (1 - own) * mean
    found = averaging(depth, adjacency, 0.5)(X)
    torch.testing.assert_close(found, expected.float(), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(found, X)
    # without low-depth spots nothing changes
    same = averaging(torch.ones(N), adjacency, 0.5)(X)
    torch.testing.assert_close(same, X)


def test_spots_that_can_receive_nothing_keep_their_rows():
    """Low depth, but without neighbors, or with neighbors that have no counts either."""
    rng = np.random.default_rng(1)
    points = np.concatenate([rng.random((60, 2)), [[50.0, 50.0]], 90 + rng.random((8, 2))])
    with pytest.warns(AmilstWarning):
        graph = SpatialGraph.from_coordinates(points, radius=2.0)
    dense = SymmetricAdjacency(graph.adjacency())
    depth = torch.full((69,), 100.0)
    alone, far = graph.rank[60], graph.rank[61:]
    depth[alone] = 3.7
    depth[far] = 0.0
    depth[far[0]] = 7.3  # its neighbors have none
    depth[graph.rank[0]] = 0.0
    X = torch.from_numpy(rng.normal(size=(69, 3)).astype(np.float32)) + 5
    found = averaging(depth, dense, 0.5)(X)
    torch.testing.assert_close(found[alone], X[alone], rtol=0, atol=0)
    torch.testing.assert_close(found[far[0]], X[far[0]], rtol=0, atol=0)
    # those around it have only its counts to receive, one without any counts its neighbors' mean
    torch.testing.assert_close(found[far[1:]], X[far[0]].expand(7, 3), rtol=1e-3, atol=1e-3)
    others = graph.rank[1:60]
    torch.testing.assert_close(found[graph.rank[0]], X[others].mean(0), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found[others], X[others], rtol=0, atol=0)
    nothing = averaging(torch.zeros(69), dense, 0.5)(X)
    torch.testing.assert_close(nothing, X, rtol=0, atol=0)


def test_rounding_is_not_received_from_neighbors_without_counts(adjacency):
    """The sum over the neighbors is the difference of two numbers, which may not vanish exactly."""
    A = dense_adjacency(adjacency)
    X = noise(3)
    for spot in range(0, N, 30):
        depth = torch.full((N,), 100.0)
        depth[A[spot] > 0] = 0.0
        depth[spot] = 7.3
        found = averaging(depth, adjacency, 0.5)(X)
        torch.testing.assert_close(found[spot], X[spot], rtol=0, atol=0)


def test_averaged_noise_is_not_taken_for_signal(adjacency):
    rng = np.random.default_rng(0)
    depth = torch.from_numpy(np.where(rng.random(N) < 0.4, 10.0, 100.0))
    fill = averaging(depth, adjacency, 0.9)
    averaged = fill(noise(40))
    kept, known = wiener_filter(averaged, adjacency, averaged=fill)
    kept_as_white, unknown = wiener_filter(averaged, adjacency)
    assert known.mean() < 0.1 and unknown.mean() > 3 * known.mean()
    assert kept.var(0).mean() < 0.3 * kept_as_white.var(0).mean()


def test_signal_is_kept_where_noise_was_averaged(adjacency, spectrum):
    _values, vectors, root = spectrum
    generator = torch.Generator().manual_seed(2)
    weights = torch.randn(10, 4, generator=generator, dtype=torch.float64)
    clean = (vectors[:, -11:-1] @ weights) / root[:, None]
    clean = clean / clean.std(0)
    depth = torch.from_numpy(np.where(np.random.default_rng(0).random(N) < 0.4, 10.0, 100.0))
    fill = averaging(depth, adjacency, 0.9)
    noisy = fill((clean + 0.7 * torch.randn(N, 4, generator=generator, dtype=torch.float64)).float())
    filtered, gain = wiener_filter(noisy, adjacency, averaged=fill)
    before, after = ((x.double() - clean).square().mean(0) for x in (noisy, filtered))
    assert (after < 0.25 * before).all()
    assert (filtered.var(0) > 0.85).all()
    # signal of variance 1 and the noise that the averaging has left
    left = fill(0.7 * noise(200, seed=5)).var(0).mean()
    np.testing.assert_allclose(gain, 1 / (1 + left), atol=0.1)


def test_averaged_by_nothing_is_white(adjacency):
    features = noise(3).cumsum(0)
    plain, gain = wiener_filter(features, adjacency)
    same, same_gain = wiener_filter(features, adjacency, averaged=lambda columns: columns)
    assert torch.equal(plain, same) and np.array_equal(gain, same_gain)


def test_denoise_averages_low_depth_spots_first(adjacency):
    rng = np.random.default_rng(1)
    depth = torch.from_numpy(np.where(rng.random(N) < 0.3, 1.0, 100.0))
    X = torch.from_numpy(rng.normal(size=(N, 4)).astype(np.float32))
    expected = standardize(averaging(depth, adjacency, 0.5)(standardize(X)))
    torch.testing.assert_close(denoise(X, adjacency, None, depth=depth, depth_floor=0.5), expected)
    torch.testing.assert_close(denoise(X, adjacency, None, depth=depth, depth_floor=0.0), standardize(X))


def test_denoise_tells_the_filter_of_the_averaging(adjacency):
    depth = torch.from_numpy(np.where(np.random.default_rng(1).random(N) < 0.4, 1.0, 100.0))
    X = noise(4).cumsum(0)
    fill = averaging(depth, adjacency, 0.5)
    averaged = fill(standardize(X))
    expected = standardize(wiener_filter(averaged, adjacency, seed=3, averaged=fill)[0])
    as_white = standardize(wiener_filter(averaged, adjacency, seed=3)[0])
    found = denoise(X, adjacency, 0.1, depth=depth, depth_floor=0.5, seed=3)
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, as_white, atol=1e-3)


def some_low(n, seed=1, low=1.0, high=100.0):
    return torch.from_numpy(np.where(np.random.default_rng(seed).random(n) < 0.3, low, high))


def test_least_depth_is_a_share_of_the_median_of_positive_counts():
    assert least_depth(torch.tensor([0.0, 0.0, 10.0, 20.0, 40.0]), 0.25) == 5
    assert least_depth(torch.zeros(3), 0.25) == 0


@pytest.mark.parametrize("noise_band", [None, 0.1])
@pytest.mark.parametrize("with_depth", [False, True])
@pytest.mark.parametrize("threshold", [1e-6, 1e6])
def test_fitted_filter_gives_the_training_features_the_same_bits(
    adjacency, monkeypatch, tmp_path, noise_band, with_depth, threshold
):
    monkeypatch.setattr(module, "_LEAST_SIGNAL", threshold)
    X, options = noise(4).cumsum(0) + 3, {"depth_floor": 0.5, "seed": 3}
    depth = some_low(N) if with_depth else None
    filtered, fitted = fit_denoise(X, adjacency, noise_band, depth=depth, **options)
    assert torch.equal(filtered, denoise(X, adjacency, noise_band, depth=depth, **options))
    assert (fitted.wiener is not None) == (noise_band is not None and threshold < 1)
    assert fitted.least_depth == (50 if with_depth else 0)
    assert torch.equal(fitted.apply(X, adjacency, depth=depth), filtered)
    assert torch.equal(fitted.apply(X.double(), adjacency, depth=depth), filtered)
    write_model(tmp_path / "m.h5", {"filter": fitted.to_arrays()}, {})
    again = FittedFilter.from_arrays(read_model(tmp_path / "m.h5")[0]["filter"])
    assert torch.equal(again.apply(X, adjacency, depth=depth), filtered)


@pytest.fixture(scope="module")
def other():
    """Another section, with another number of spots and neighbors."""
    graph = SpatialGraph.from_coordinates(np.random.default_rng(5).random((500, 2)), n_neighbors=9)
    return SymmetricAdjacency(graph.adjacency())


def test_other_sections_are_filtered_by_the_same_polynomial_in_their_own_graph(adjacency, other):
    X = noise(3).cumsum(0)
    _, fitted = fit_denoise(X, adjacency, 0.1)
    new = torch.randn(500, 3, generator=torch.Generator().manual_seed(8)).cumsum(0) + 50
    dense = other.coo.to_dense().double()
    values, vectors = torch.linalg.eigh(dense)
    root = (1 / dense.diagonal()).sqrt()[:, None]
    scale = (X - X.mean(0)).square().mean(0).sum().sqrt()
    signal = ((new - X.mean(0)) / scale).double() * root  # the standardized training features have mean zero
    coefficients = torch.from_numpy(fitted.wiener.coefficients)
    response = sum(chebyshev(values, m)[:, None] * coefficients[m] for m in range(len(coefficients)))
    expected = vectors @ (response * (vectors.T @ signal)) / root
    expected = (expected - torch.from_numpy(fitted.after.mean)) / fitted.after.scale
    torch.testing.assert_close(fitted.apply(new, other).double(), expected, rtol=1e-3, atol=1e-3)


def test_depth_of_other_sections_is_compared_with_that_of_training(adjacency, other):
    _, fitted = fit_denoise(noise(3), adjacency, None, depth=some_low(N), depth_floor=0.5)
    new = torch.randn(500, 3, generator=torch.Generator().manual_seed(8))
    shallow = torch.full((500,), 20.0)  # below half the median of training, not below half its own
    standardized = fitted.before.apply(new)
    expected = fitted.after.apply(fill_low_depth(shallow, other, 50.0)(standardized))
    found = fitted.apply(new, other, depth=shallow)
    assert torch.equal(found, expected)
    assert not torch.allclose(found, fitted.after.apply(averaging(shallow, other, 0.5)(standardized)))
    assert torch.equal(fitted.apply(new, other), fitted.after.apply(standardized))


def test_features_that_do_not_fit_the_filter_are_refused(adjacency, other):
    _, fitted = fit_denoise(noise(3), adjacency, 0.1, depth=some_low(N), depth_floor=0.5)
    with pytest.raises(InputError, match="fitted to 3 features; found 4"):
        fitted.apply(noise(4), adjacency)
    with pytest.raises(InputError, match="each of the 500 nodes"):
        fitted.apply(noise(3), other)
    with pytest.raises(InputError, match=f"total counts of the {N} spots; found shape \\(500,\\)"):
        fitted.apply(noise(3), adjacency, depth=torch.ones(500))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean_after": np.ones(4, np.float32)}, "one length C >= 1"),
        ({"wiener_gain": None}, "must have the arrays"),
        ({"more": np.ones(1)}, "must have the arrays .*; found .*more"),
        ({"scale_before": np.float64(0)}, "scales > 0"),
        ({"scale_after": np.float64(np.nan)}, "finite numbers in 'scale_after'"),
        ({"least_depth": np.float64(-1)}, "a least depth >= 0"),
        ({"wiener_coefficients": np.ones((1, 3))}, "at least 2 coefficients"),
        ({"wiener_mean": np.ones(3, np.int64)}, "float32 or float64 in 'wiener_mean'; found int64"),
        ({"wiener_mean": {}}, "'wiener_mean' as an array of 1 dimensions; found dict"),
    ],
)
def test_arrays_that_are_no_filter(adjacency, changes, message):
    arrays = fit_denoise(noise(3), adjacency, 0.1)[1].to_arrays() | changes
    arrays = {name: array for name, array in arrays.items() if array is not None}
    with pytest.raises(InputError, match=message) as caught:
        FittedFilter.from_arrays(arrays)
    assert "the spatial filter of the model must have" in str(caught.value)


@pytest.fixture
def sections():
    """Features and depths of four sections of 300 spots, which no edge connects, and Â."""
    rng = np.random.default_rng(3)
    graph = SpatialGraph.from_coordinates(rng.random((1200, 2)), n_neighbors=6, sample=np.arange(1200) // 300)
    places = torch.from_numpy(rng.random((1200, 2)))[graph.order]
    waves = torch.from_numpy(rng.normal(size=(2, 10)))
    features = torch.sin(4 * places @ waves) + torch.from_numpy(rng.normal(size=(1200, 10)))
    depth = torch.from_numpy(rng.integers(5, 200, 1200).astype(np.float64))
    return features.float(), depth, graph.normalized()


def test_parts_of_the_graph_are_filtered_as_the_whole(sections, monkeypatch):
    features, depth, adjacency = sections
    monkeypatch.setattr(module, "_PROBE_ENTRIES", 20_000)
    whole, fitted = fit_denoise(features, adjacency, 0.1, depth=depth, depth_floor=0.5)
    assert len(module._parts(adjacency)) == 1
    monkeypatch.setattr(module, "_LEAST_PART", 400)
    monkeypatch.setattr(module, "_PART_ENTRIES", 400 * 8)
    monkeypatch.setattr(module, "_LEAST_COLUMNS", 8)
    parts = module._parts(adjacency)
    assert [(rows.start, rows.stop) for rows, _ in parts] == [(0, 600), (600, 1200)]
    groups = module._column_groups(parts[0][1], 10)
    assert [(one.start, one.stop) for one in groups] == [(0, 5), (5, 10)]
    for rows, part in parts:
        dense = adjacency.coo.to_dense()[rows]
        assert torch.equal(part.coo.to_dense(), dense[:, rows])
        assert dense.count_nonzero() == dense[:, rows].count_nonzero()  # no edge leads out of it
    found, again = fit_denoise(features, adjacency, 0.1, depth=depth, depth_floor=0.5)
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(again.wiener.gain, fitted.wiener.gain, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(again.apply(features, adjacency, depth=depth), found, rtol=0, atol=0)


def test_connected_spots_are_one_part(adjacency, monkeypatch):
    monkeypatch.setattr(module, "_LEAST_PART", 100)
    ((rows, part),) = module._parts(adjacency)
    assert (rows.start, rows.stop) == (0, N) and part is adjacency


def test_features_given_are_not_changed(adjacency):
    features = noise()
    before = features.clone()
    _, fitted = fit_denoise(features, adjacency, 0.1)
    fitted.apply(features, adjacency)
    fit_denoise(features, adjacency, None)
    assert torch.equal(features, before)
