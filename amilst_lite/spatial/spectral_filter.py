"""A Wiener filter on the graph: of each feature, keep the spatial frequencies that carry signal.

The scale of smoothing matters more than the training that follows: layers one spot thick are erased by the
smoothing that suits a thick one. Here it follows from the data, feature by feature. The eigenvectors of Â are
the section's spatial frequencies, the largest eigenvalues belonging to the lowest ones. White noise has equal
power at all frequencies, tissue has most of it at low ones; so the power at the highest frequencies estimates
the noise, and every frequency is kept by its share of signal, 1 − noise/power (Wiener 1949). No eigenvector is
computed: powers and filter are Chebyshev polynomials in Â (Hammond et al. 2011; Weiße et al. 2006), each degree
one sparse product, so time and memory are linear in the number of spots.

A spot with a tenth of the usual depth is mostly noise. Spots below a share of the median depth are first averaged
with their neighbors. Their noise is then no longer white, which the filter takes into account: white noise averaged
in the same way gives the shape of the noise spectrum, the power at the highest frequencies its size.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from sklearn.isotonic import isotonic_regression
from torch import Tensor

from ..errors import InputError
from ..nn.sparse import SymmetricAdjacency, propagate
from ..runtime import make_generator, threads_for

__all__ = ["denoise", "fill_low_depth", "standardize", "wiener_filter"]

# Random vectors for the density of frequencies (Hutchinson 1990): their error falls with the total number of
# entries, so that small sections take more of them at little cost.
_LEAST_PROBES, _MOST_PROBES, _PROBE_ENTRIES = 4, 512, 500_000
_DEGREE = 128  # of the polynomials: higher degrees resolve finer structure
_CPU_ROWS = 8192  # of a block whose products stay in the cache
_DEVICE_ENTRIES = 1 << 25  # of a block on a GPU, where launches cost more than memory
_GRID = 1025  # points in arccos(eigenvalue) at which a filter is tabulated
_LEAST_SIGNAL = 1e-6  # share of the variance below which a filtered section contains no signal


def standardize(features: Tensor) -> Tensor:
    """Center the columns of (N, C) and scale the whole to a total variance of one.

    The columns keep their relative scale: the leading principal components keep the largest variance.

    Raises
    ------
    InputError
        All rows are equal.
    """
    centered = features - features.mean(0)
    total = centered.square().mean(0).sum()
    if not total > 0:
        raise InputError("all spots have the same features: there is nothing that distinguishes domains.")
    return centered / total.sqrt()


def denoise(
    features: Tensor,
    adjacency: SymmetricAdjacency,
    noise_band: float | None,
    *,
    depth: Tensor | None = None,
    depth_floor: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """`fill_low_depth` and `wiener_filter` of standardized features; these alone where there is no signal.

    Parameters
    ----------
    features : Tensor, (N, C)
        On the device and in the order of ``adjacency``.
    adjacency : SymmetricAdjacency
    noise_band : float or None
        See `wiener_filter`. None: no filter.
    depth : Tensor, (N,), optional
        Total counts of the spots. None: all alike.
    depth_floor : float
        Share of the median depth below which spots are averaged with their neighbors; 0: none.
    seed : int
        See `wiener_filter`.

    Returns
    -------
    Tensor, (N, C), float32
        Standardized.
    """
    features = standardize(features.to(torch.float32))
    fill = None
    if depth is not None and depth_floor > 0:
        fill = fill_low_depth(depth, adjacency, depth_floor)
        features = fill(features)
    if noise_band is None:
        return standardize(features)
    with threads_for(len(features)):
        filtered, _ = wiener_filter(features, adjacency, noise_band=noise_band, seed=seed, averaged=fill)
    return standardize(filtered if filtered.var(0).sum() > _LEAST_SIGNAL else features)


def fill_low_depth(depth: Tensor, adjacency: SymmetricAdjacency, floor: float) -> Callable[[Tensor], Tensor]:
    """The linear map that averages spots of low depth with their neighbors.

    A spot of depth t below L = ``floor`` · median receives the weight L − t of its neighbors: its row becomes
    (t · own + (L − t) · mean of the neighbors) / L, the mean weighted by their depths. Other spots keep their
    rows.

    Parameters
    ----------
    depth : Tensor, (N,)
        Total counts of the spots, >= 0.
    adjacency : SymmetricAdjacency
    floor : float
        >= 0.

    Returns
    -------
    callable
        Maps (N, C) to (N, C), float32.
    """
    positive = depth[depth > 0].float().cpu()  # torch's median is not deterministic on a GPU
    depth = depth.to(adjacency.device, torch.float32)[:, None]
    root = (1.0 / _loops(adjacency)).sqrt()[:, None]  # Â = D^-1/2 (A + I) D^-1/2

    def over_neighbors(columns: Tensor) -> Tensor:
        return root * propagate(adjacency, root * columns) - columns

    lacking = (floor * positive.median() - depth).clamp_min(0) if len(positive) else torch.zeros_like(depth)
    pooled = over_neighbors(depth).clamp_min(0)
    # without neighbors, or neighbors without counts, there is nothing to receive; less is rounding
    lacking = torch.where(pooled > 1e-5 * depth, lacking, 0)
    low = lacking > 0
    own = torch.where(low, depth / (depth + lacking), 1.0)
    received = torch.where(low, (1 - own) / pooled.clamp_min(1e-30), 0.0)

    def fill(columns: Tensor) -> Tensor:
        return own * columns + received * over_neighbors(depth * columns)

    return fill


def wiener_filter(
    features: Tensor,
    adjacency: SymmetricAdjacency,
    *,
    noise_band: float = 0.1,
    degree: int = _DEGREE,
    seed: int = 0,
    averaged: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, np.ndarray]:
    """Filter every column by its own spatial spectrum.

    Parameters
    ----------
    features : Tensor, (N, C), float32
        Centered or not; the mean passes unchanged.
    adjacency : SymmetricAdjacency
        Â = D^-1/2 (A + I) D^-1/2 in the same order.
    noise_band : float
        Share of the frequencies, the highest ones, whose mean power estimates the noise.
    degree : int
        Degree of the polynomials.
    seed : int
        For the probes that estimate the density of the eigenvalues and the spectrum of the noise.
    averaged : callable, optional
        The linear map (N, C) → (N, C) that has been applied to features whose noise was white before it, such as
        `fill_low_depth` returns. None: the noise of the features is white.

    Returns
    -------
    filtered : Tensor, (N, C)
    gain : ndarray, (C,)
        Share of each column's variance that was kept, in [0, 1].

    Notes
    -----
    Columns are multiplied by the square root of the degrees, so that the symmetric Â acts as a weighted mean
    over neighbors: a constant column stays constant, at the border of the section too. The ratio of power to
    noise is constrained not to rise with frequency (isotonic regression), which stabilizes its estimate.

    Raises
    ------
    InputError
        Features and adjacency differ in the number of rows or in the device.
    """
    if features.ndim != 2 or len(features) != adjacency.n_nodes or features.device != adjacency.device:
        raise InputError(
            f"features must be a matrix with one row for each of the {adjacency.n_nodes} nodes, on "
            f"{adjacency.device}; found shape {tuple(features.shape)} on {features.device}."
        )
    degree -= degree % 2
    mean = features.mean(0)
    root = _root_degrees(adjacency)[:, None]  # (N, 1)
    signal = (features - mean) * root
    n_probes = min(max(_LEAST_PROBES, _PROBE_ENTRIES // len(features)), _MOST_PROBES)
    probes = torch.empty(len(features), n_probes).bernoulli_(0.5, generator=make_generator(seed))
    probes = probes.mul_(2).sub_(1).to(features.device)  # drawn on the CPU: the same on every device
    energy = _chebyshev_moments(adjacency, signal, degree)  # (degree + 1, C)
    density = _chebyshev_moments(adjacency, probes, degree).mean(1)  # (degree + 1,)
    noise = probes if averaged is None else averaged(probes)
    noise_energy = _chebyshev_moments(adjacency, noise * root, degree).mean(1)
    coefficients, gain = _design(energy, noise_energy, density, len(features), degree, noise_band)
    filtered = _apply(adjacency, signal, torch.from_numpy(coefficients).to(signal))
    return filtered / root + mean, gain


def _root_degrees(adjacency: SymmetricAdjacency) -> Tensor:
    """Square roots of the degrees of A + I, mean 1 of the degrees: (N,)."""
    degrees = 1.0 / _loops(adjacency)
    return (degrees / degrees.mean()).sqrt()


def _loops(adjacency: SymmetricAdjacency) -> Tensor:
    """The diagonal of Â, the inverse of the degrees of A + I: (N,)."""
    return adjacency.values[adjacency.rows == adjacency.columns]


def _chebyshev_moments(adjacency: SymmetricAdjacency, columns: Tensor, degree: int) -> np.ndarray:
    """⟨v, T_m(Â)v⟩ of every column for m = 0..degree: (degree + 1, C), float64.

    From degree/2 products, since 2·T_m·T_n = T_{m+n} + T_{|m−n|}.
    """

    rows = _CPU_ROWS if columns.device.type == "cpu" else max(1, _DEVICE_ENTRIES // columns.shape[1])

    def dot(a: Tensor, b: Tensor) -> Tensor:
        parts = [(x * y).sum(0) for x, y in zip(a.split(rows), b.split(rows), strict=True)]
        return torch.stack(parts).double().sum(0)

    before, now = columns.clone(), propagate(adjacency, columns)
    moments = [dot(before, before), dot(before, now)]
    for m in range(1, degree // 2 + 1):
        moments.append(2 * dot(now, now) - moments[0])
        if m < degree // 2:
            before, now = now, _next(adjacency, before, now)
            moments.append(2 * dot(now, before) - moments[1])
    return torch.stack(moments).cpu().numpy()  # the only wait for the device


def _design(
    energy: np.ndarray, noise_energy: np.ndarray, density: np.ndarray, n: int, degree: int, noise_band: float
) -> tuple[np.ndarray, np.ndarray]:
    """Chebyshev coefficients (degree + 1, C) of each column's filter, and its gain (C,).

    From the Chebyshev moments of the columns, of noise of unit variance and of the eigenvalues.
    """
    n_bands = 3 * degree // 4
    orders = np.arange(degree + 1)
    weights = np.where(orders == 0, 1.0, 2.0) * _jackson(degree)
    # bands of angles θ = arccos(eigenvalue), from low to high frequency, as polynomials
    edges = np.linspace(0, np.pi, n_bands + 1)
    primitive = np.sin(orders[:, None] * edges) / np.maximum(orders[:, None], 1)
    primitive[0] = edges
    bands = np.diff(primitive / np.pi, axis=1).T * weights  # (bands, degree + 1)
    modes = np.maximum(bands @ density, 0.0)  # frequencies in each band
    power_sum = np.maximum(bands @ energy, 0.0)  # (bands, C)
    filled = modes > 1e-4 * n / n_bands
    filled[0] = True
    centers = ((edges[1:] + edges[:-1]) / 2)[filled]
    modes = np.maximum(modes[filled], 1e-9)
    power = power_sum[filled] / modes[:, None]
    shape = np.maximum((bands @ noise_energy)[filled] / modes, 1e-3)  # of the noise spectrum

    higher = np.cumsum(modes[::-1])[::-1] - modes  # frequencies above each band
    in_noise = np.clip((noise_band * modes.sum() - higher) / modes, 0, 1) * modes
    noise = (in_noise[:, None] * power).sum(0) / (in_noise * shape).sum()  # variance before any averaging

    grid = np.linspace(0, np.pi, _GRID)
    trapezoid = np.full(_GRID, np.pi / (_GRID - 1))
    trapezoid[[0, -1]] /= 2
    cosines = np.cos(orders[:, None] * grid) * trapezoid / np.pi  # (degree + 1, grid)
    coefficients = np.empty((degree + 1, energy.shape[1]))
    gain = np.empty(energy.shape[1])
    for column in range(energy.shape[1]):
        # in units of the noise, so that the ratio of signal to noise does not rise with frequency
        ratio = isotonic_regression(power[:, column] / shape, sample_weight=modes * shape, increasing=False)
        response = np.maximum(0.0, 1.0 - noise[column] / np.maximum(ratio, 1e-30))
        total = (ratio * shape * modes).sum()
        gain[column] = (response * ratio * shape * modes).sum() / total if total > 0 else 0.0
        coefficients[:, column] = cosines @ np.interp(grid, centers, response) * weights
    return coefficients, gain


def _jackson(degree: int) -> np.ndarray:
    """Damping factors that suppress oscillations of a truncated Chebyshev series (Weiße et al. 2006, eq. 71)."""
    n, k = degree + 1, np.arange(degree + 1)
    angle = np.pi / n
    return ((n - k) * np.cos(k * angle) + np.sin(k * angle) / np.tan(angle)) / n


def _apply(adjacency: SymmetricAdjacency, columns: Tensor, coefficients: Tensor) -> Tensor:
    """Σ_m coefficients[m] · T_m(Â) of each column."""
    before, now = columns.clone(), propagate(adjacency, columns)
    result = coefficients[0] * before
    result.addcmul_(coefficients[1], now)
    for order in range(2, len(coefficients)):
        before, now = now, _next(adjacency, before, now)
        result.addcmul_(coefficients[order], now)
    return result


def _next(adjacency: SymmetricAdjacency, before: Tensor, now: Tensor) -> Tensor:
    """T_{m+1} = 2·Â·T_m − T_{m−1}, in the place of T_{m−1}."""
    return before.lerp_(propagate(adjacency, now), 2.0)
