"""A Wiener filter on the graph: of each feature, keep the spatial frequencies that carry signal.

How far to smooth is worth more than what is trained afterwards: layers of one spot's width are erased
by what a thick layer needs. Here the data decide, feature by feature. The eigenvectors of Â are the
section's spatial frequencies, those with the largest eigenvalues the smoothest. White noise has the
same power at all of them, tissue has it at the smooth end; so the power at the roughest end measures
the noise, and each frequency is kept in proportion to its share of signal, 1 − noise/power (Wiener
1949). No eigenvector is computed: powers and filter are Chebyshev polynomials in Â (Hammond et al.
2011; Weiße et al. 2006), each degree one sparse product, so time and memory are linear in the spots.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.isotonic import isotonic_regression
from torch import Tensor

from ..runtime import make_generator
from .sparse import SymmetricAdjacency, propagate

__all__ = ["wiener_filter"]

# Random vectors for the density of frequencies (Hutchinson 1990): their error falls with the number of
# entries in all of them, so that small sections take more of them, for next to nothing.
_LEAST_PROBES, _MOST_PROBES, _PROBE_ENTRIES = 4, 512, 500_000
_ROWS = 8192  # in a block
_GRID = 1025  # points in arccos(eigenvalue) at which a filter is tabulated


def wiener_filter(
    features: Tensor,
    adjacency: SymmetricAdjacency,
    *,
    noise_band: float = 0.1,
    degree: int = 128,
    seed: int = 0,
) -> tuple[Tensor, np.ndarray]:
    """Filter every column by its own spatial spectrum.

    Parameters
    ----------
    features : Tensor, (N, C), float32
        Centred or not; the mean passes unchanged.
    adjacency : SymmetricAdjacency
        Â = D^-1/2 (A + I) D^-1/2 in the same order.
    noise_band : float
        Share of the frequencies, the roughest ones, whose mean power is taken for noise.
    degree : int
        Degree of the polynomials: the finer structure is told from noise, the more it takes.
    seed : int
        For the probes that estimate how many frequencies there are at each eigenvalue.

    Returns
    -------
    filtered : Tensor, (N, C)
    gain : ndarray, (C,)
        Share of each column's variance that was kept, in [0, 1].

    Notes
    -----
    Worked on columns times the square root of the degrees, where Â is symmetric but acts as a weighted
    mean over neighbours: a constant column stays constant, at the section's border too. Power is
    forced not to rise towards rough frequencies (isotonic regression), which steadies its estimate.
    """
    degree -= degree % 2
    mean = features.mean(0)
    root = _root_degrees(adjacency)[:, None]  # (N, 1)
    signal = (features - mean) * root
    n_probes = min(max(_LEAST_PROBES, _PROBE_ENTRIES // len(features)), _MOST_PROBES)
    probes = torch.empty(len(features), n_probes).bernoulli_(0.5, generator=make_generator(seed))
    probes = probes.mul_(2).sub_(1).to(features.device)  # drawn on the CPU: the same on every device
    energy = _chebyshev_moments(adjacency, signal, degree)  # (degree + 1, C)
    density = _chebyshev_moments(adjacency, probes, degree).mean(1)  # (degree + 1,)
    coefficients, gain = _design(energy, density, len(features), degree, noise_band)
    filtered = _apply(adjacency, signal, torch.from_numpy(coefficients).to(signal))
    return filtered / root + mean, gain


def _root_degrees(adjacency: SymmetricAdjacency) -> Tensor:
    """Square roots of the degrees of A + I, mean 1 of the degrees: (N,). The loop's weight is 1/degree."""
    indices = adjacency.coo.indices()
    degrees = 1.0 / adjacency.values[indices[0] == indices[1]]
    return (degrees / degrees.mean()).sqrt()


def _chebyshev_moments(adjacency: SymmetricAdjacency, columns: Tensor, degree: int) -> np.ndarray:
    """⟨v, T_m(Â)v⟩ of every column for m = 0..degree: (degree + 1, C), float64.

    From degree/2 products, since 2·T_m·T_n = T_{m+n} + T_{|m−n|}.
    """

    def dot(a: Tensor, b: Tensor) -> np.ndarray:
        # by blocks of rows, whose product stays in the cache
        parts = [(x * y).sum(0) for x, y in zip(a.split(_ROWS), b.split(_ROWS), strict=True)]
        return torch.stack(parts).double().sum(0).cpu().numpy()

    moments = np.empty((degree + 1, columns.shape[1]))
    before, now = columns.clone(), propagate(adjacency, columns)
    moments[0], moments[1] = dot(before, before), dot(before, now)
    for m in range(1, degree // 2 + 1):
        moments[2 * m] = 2 * dot(now, now) - moments[0]
        if m < degree // 2:
            before, now = now, _next(adjacency, before, now)
            moments[2 * m + 1] = 2 * dot(now, before) - moments[1]
    return moments


def _design(
    energy: np.ndarray, density: np.ndarray, n: int, degree: int, noise_band: float
) -> tuple[np.ndarray, np.ndarray]:
    """Chebyshev coefficients (degree + 1, C) of each column's filter, and its gain (C,)."""
    n_bands = 3 * degree // 4
    orders = np.arange(degree + 1)
    weights = np.where(orders == 0, 1.0, 2.0) * _jackson(degree)
    # a band of angles θ = arccos(eigenvalue), from smooth to rough, as a polynomial
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

    rougher = np.cumsum(modes[::-1])[::-1] - modes  # frequencies beyond each band
    in_noise = np.clip((noise_band * modes.sum() - rougher) / modes, 0, 1) * modes
    noise = (in_noise[:, None] * power).sum(0) / in_noise.sum()

    grid = np.linspace(0, np.pi, _GRID)
    trapezoid = np.full(_GRID, np.pi / (_GRID - 1))
    trapezoid[[0, -1]] /= 2
    cosines = np.cos(orders[:, None] * grid) * trapezoid / np.pi  # (degree + 1, grid)
    coefficients = np.empty((degree + 1, energy.shape[1]))
    gain = np.empty(energy.shape[1])
    for column in range(energy.shape[1]):
        spectrum = isotonic_regression(power[:, column], sample_weight=modes, increasing=False)
        response = np.maximum(0.0, 1.0 - noise[column] / np.maximum(spectrum, 1e-30))
        total = (spectrum * modes).sum()
        gain[column] = (response * spectrum * modes).sum() / total if total > 0 else 0.0
        coefficients[:, column] = cosines @ np.interp(grid, centers, response) * weights
    return coefficients, gain


def _jackson(degree: int) -> np.ndarray:
    """Damping that keeps a truncated Chebyshev series from ringing (Weiße et al. 2006, eq. 71)."""
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
