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

A polynomial in Â is defined on every graph, so what was learned on some sections filters another one as well
(Levie et al. 2021, on when such filters transfer): see `FittedFilter`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from sklearn.isotonic import isotonic_regression
from torch import Tensor

from ..distributed import column_means, median, ranks
from ..errors import InputError
from ..nn.sparse import SymmetricAdjacency, propagate
from ..runtime import make_generator, spawn_seeds, threads_for
from ..validation import check_model_arrays

__all__ = [
    "FittedFilter",
    "Standardization",
    "WienerFilter",
    "denoise",
    "fill_low_depth",
    "fit_denoise",
    "least_depth",
    "standardize",
    "wiener_filter",
]

_ROWS = 1 << 17  # rows of a block of an operation on single rows
_LEAST_PART = 20_000  # rows of a part of the graph that is filtered for itself
_PART_ENTRIES = 1 << 26  # of an array of a part: at most 256 MiB
_LEAST_COLUMNS = 17  # worked on at a time; of fewer, a product takes twice the time for each
# Random vectors for the density of frequencies (Hutchinson 1990): their error falls with the total number of
# entries, so that small sections take more of them at little cost.
_PROBE_ROWS = 1 << 17  # drawn from one seed
_LEAST_PROBES, _MOST_PROBES, _PROBE_ENTRIES = 1, 512, 500_000
_DEGREE = 128  # of the polynomials: higher degrees resolve finer structure
_CPU_ROWS = 8192  # of a block whose products stay in the cache
_DEVICE_ENTRIES = 1 << 25  # of a block on a GPU, where launches cost more than memory
_GRID = 1025  # points in arccos(eigenvalue) at which a filter is tabulated
_LEAST_SIGNAL = 1e-6  # share of the variance below which a filtered section contains no signal


@dataclass(frozen=True)
class Standardization:
    """Subtract the means of the columns, and divide all of them by one number.

    The columns keep their relative scale: the leading principal components keep the largest variance.

    Attributes
    ----------
    mean : ndarray, (C,)
        Dtype and unit of the features.
    scale : float
        Square root of the total variance (ddof 0), > 0.
    """

    mean: np.ndarray
    scale: float

    @classmethod
    def of(cls, features: Tensor) -> Standardization:
        """The one that gives (N, C) ``features`` means of zero and a total variance of one.

        Raises
        ------
        InputError
            All rows are equal.
        """
        group = ranks()
        mean, n = column_means(features), group.sum(len(features))

        def spread(about: Tensor, dtype: torch.dtype) -> Tensor:
            # in the same way as a whole where that is one block
            parts = [(part.to(dtype) - about).square().sum(0) / n for part in features.split(_ROWS)]
            return group.total(torch.as_tensor(sum(parts)))[0].to(dtype).sum()

        total = spread(mean, features.dtype)
        if not 0 < total < torch.inf:  # the squares of very small or large values are beyond float32
            sums = [part.double().sum(0) for part in features.split(_ROWS)]
            mean = group.total(torch.as_tensor(sum(sums)))[0] / n
            total = spread(mean, torch.float64)
            mean = mean.to(features)
        if not total > 0:
            raise InputError("all spots have the same features: there is nothing that distinguishes domains.")
        return cls(mean.detach().cpu().numpy(), float(total.sqrt()))

    def apply(self, features: Tensor) -> Tensor:
        """(N, C) to (N, C), on the same device."""
        # a tensor on the device: CUDA multiplies by the reciprocal of a Python number, which rounds differently
        scale = torch.tensor(self.scale, dtype=features.dtype, device=features.device)
        return (features - torch.from_numpy(self.mean).to(features)).div_(scale)

    def apply_(self, features: Tensor) -> Tensor:
        """The same, in place."""
        scale = torch.tensor(self.scale, dtype=features.dtype, device=features.device)
        return features.sub_(torch.from_numpy(self.mean).to(features)).div_(scale)


def standardize(features: Tensor) -> Tensor:
    """(N, C) with means of zero and a total variance of one; see `Standardization`."""
    return Standardization.of(features).apply(features)


@dataclass(frozen=True)
class FittedFilter:
    """What `fit_denoise` has learned, to filter the features of other sections in the same way.

    Attributes
    ----------
    before : Standardization
        Of the features given.
    least_depth : float
        Total counts below which spots are averaged with their neighbors; 0: none are.
    wiener : WienerFilter or None
        None where it was switched off or the training features held no signal.
    after : Standardization
        Of the filtered features.
    """

    before: Standardization
    least_depth: float
    wiener: WienerFilter | None
    after: Standardization

    def apply(
        self, features: Tensor, adjacency: SymmetricAdjacency, *, depth: Tensor | None = None
    ) -> Tensor:
        """Filter features; those of training give the same bits as `fit_denoise` returned.

        Parameters
        ----------
        features : Tensor, (N, C)
            In the units of the features of training, on the device and in the order of ``adjacency``.
        adjacency : SymmetricAdjacency
            Of these N spots.
        depth : Tensor, (N,), optional
            Total counts of the spots. None: no spot is averaged with its neighbors.

        Returns
        -------
        Tensor, (N, C), float32

        Raises
        ------
        InputError
            The number of columns is not that of training, or features, depth and adjacency differ in the
            number of spots or in the device.
        """
        _check_rows(features, adjacency)
        n_columns = len(self.before.mean)
        if features.shape[1] != n_columns:
            raise InputError(
                f"the filter was fitted to {n_columns} features; found {features.shape[1]}. "
                "Compute the features as they were computed for training."
            )
        features = self.before.apply(features.to(torch.float32))
        if depth is not None and self.least_depth > 0:
            features = fill_low_depth(depth, adjacency, self.least_depth)(features)
        if self.wiener is not None:
            with threads_for(len(features)):
                features = self.wiener.apply(features, adjacency)
        return self.after.apply_(features)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The state as arrays, from which `from_arrays` makes an equal filter."""
        arrays = {
            "mean_before": self.before.mean,
            "scale_before": np.float64(self.before.scale),
            "least_depth": np.float64(self.least_depth),
            "mean_after": self.after.mean,
            "scale_after": np.float64(self.after.scale),
        }
        if self.wiener is not None:
            arrays |= {
                "wiener_mean": self.wiener.mean,
                "wiener_coefficients": self.wiener.coefficients,
                "wiener_gain": self.wiener.gain,
            }
        return {name: np.asarray(array) for name, array in arrays.items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> FittedFilter:
        """The filter of `to_arrays`.

        Raises
        ------
        InputError
            Names or shapes are not those of a filter, or values are out of range.
        """
        shapes = {
            "mean_before": "C",
            "scale_before": "",
            "least_depth": "",
            "mean_after": "C",
            "scale_after": "",
        }
        has_filter = any(name.startswith("wiener") for name in arrays)
        if has_filter:
            shapes |= {"wiener_mean": "C", "wiener_coefficients": "D C", "wiener_gain": "C"}
        check_model_arrays(arrays, shapes, "the spatial filter")
        scales = float(arrays["scale_before"]), float(arrays["scale_after"])
        floor = float(arrays["least_depth"])
        if min(scales) <= 0 or floor < 0 or (has_filter and len(arrays["wiener_coefficients"]) < 2):
            raise InputError(
                "the spatial filter of the model must have scales > 0, a least depth >= 0 and at least 2 "
                f"coefficients; found scales {scales} and least depth {floor}. Save the model again."
            )
        wiener = None
        if has_filter:
            wiener = WienerFilter(arrays["wiener_mean"], arrays["wiener_coefficients"], arrays["wiener_gain"])
        before, after = (
            Standardization(arrays[f"mean_{place}"], scale)
            for place, scale in zip(("before", "after"), scales, strict=True)
        )
        return cls(before, floor, wiener, after)


def denoise(
    features: Tensor,
    adjacency: SymmetricAdjacency,
    noise_band: float | None,
    *,
    depth: Tensor | None = None,
    depth_floor: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """The features that `fit_denoise` returns, for callers that filter nothing else."""
    return fit_denoise(features, adjacency, noise_band, depth=depth, depth_floor=depth_floor, seed=seed)[0]


def fit_denoise(
    features: Tensor,
    adjacency: SymmetricAdjacency,
    noise_band: float | None,
    *,
    depth: Tensor | None = None,
    depth_floor: float = 0.0,
    seed: int = 0,
) -> tuple[Tensor, FittedFilter]:
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
    filtered : Tensor, (N, C), float32
        Standardized.
    fitted : FittedFilter
        For other sections.

    Raises
    ------
    InputError
        All rows are equal, or features, depth and adjacency differ in the number of spots or in the device.
    """
    _check_rows(features, adjacency)
    features = features.to(torch.float32)
    before = Standardization.of(features)
    features = before.apply(features)
    floor, fill, wiener = 0.0, None, None
    if depth is not None and depth_floor > 0:
        floor = least_depth(depth, depth_floor)
        fill = fill_low_depth(depth, adjacency, floor)
        features = fill(features)
    if noise_band is not None:
        with threads_for(len(features)):
            wiener = WienerFilter.fit(features, adjacency, noise_band=noise_band, seed=seed, averaged=fill)
            filtered = wiener.apply(features, adjacency)
        if _total_variance(filtered) > _LEAST_SIGNAL:
            features = filtered
        else:
            wiener = None
    after = Standardization.of(features)
    return after.apply_(features), FittedFilter(before, floor, wiener, after)  # they are copies by now


def _total_variance(features: Tensor) -> float:
    """Of the rows of all ranks."""
    if ranks().size == 1:
        return float(features.var(0).sum())
    return float(column_means((features - column_means(features)).square()).sum())


def least_depth(depth: Tensor, floor: float) -> float:
    """``floor`` times the median of the total counts (N,) that are positive; 0 where none is."""
    positive = depth[depth > 0].float().cpu()  # torch's median is not deterministic on a GPU
    if ranks().size > 1:
        positive = torch.tensor([median(positive.double().numpy(), lower=True)])
        positive = positive[positive > 0]
    return float(floor * positive.median()) if len(positive) else 0.0


def fill_low_depth(depth: Tensor, adjacency: SymmetricAdjacency, least: float) -> Callable[[Tensor], Tensor]:
    """The linear map that averages spots of low depth with their neighbors.

    A spot of depth t below L = ``least`` receives the weight L − t of its neighbors: its row becomes
    (t · own + (L − t) · mean of the neighbors) / L, the mean weighted by their depths. Other spots keep their
    rows.

    Parameters
    ----------
    depth : Tensor, (N,)
        Total counts of the spots, >= 0.
    adjacency : SymmetricAdjacency
    least : float
        In counts, >= 0; see `least_depth`.

    Returns
    -------
    callable
        Maps (N, C) to (N, C), float32.

    Raises
    ------
    InputError
        Depth and adjacency differ in the number of spots.
    """
    if depth.shape != (adjacency.n_nodes,):
        raise InputError(
            f"depth must hold the total counts of the {adjacency.n_nodes} spots; found shape {tuple(depth.shape)}."
        )
    depth = depth.to(adjacency.device, torch.float32)[:, None]
    root = (1.0 / _loops(adjacency)).sqrt()[:, None]  # Â = D^-1/2 (A + I) D^-1/2

    parts = _parts(adjacency)

    def over_neighbors(columns: Tensor, rows: slice, part: SymmetricAdjacency) -> Tensor:
        return root[rows] * propagate(part, root[rows] * columns) - columns

    lacking = (least - depth).clamp_min(0)
    pooled = torch.cat([over_neighbors(depth[rows], rows, part) for rows, part in parts]).clamp_min(0)
    # without neighbors, or neighbors without counts, there is nothing to receive; less is rounding
    lacking = torch.where(pooled > 1e-5 * depth, lacking, 0)
    low = lacking > 0
    own = torch.where(low, depth / (depth + lacking), 1.0)
    received = torch.where(low, (1 - own) / pooled.clamp_min(1e-30), 0.0)

    def fill(columns: Tensor) -> Tensor:
        filled = torch.empty_like(columns)
        for rows, part in parts:
            block = columns[rows]
            filled[rows] = own[rows] * block + received[rows] * over_neighbors(
                depth[rows] * block, rows, part
            )
        return filled

    return fill


@dataclass(frozen=True)
class WienerFilter:
    """A filter for each column: the polynomial Σ_m coefficients[m] · T_m(Â) in any normalized adjacency Â.

    Attributes
    ----------
    mean : ndarray, (C,)
        Of the features that it was fitted to; passes unchanged.
    coefficients : ndarray of float64, (degree + 1, C)
        Of the Chebyshev polynomials T_m.
    gain : ndarray of float64, (C,)
        Share of each column's variance that was kept in training, in [0, 1].
    """

    mean: np.ndarray
    coefficients: np.ndarray
    gain: np.ndarray

    @classmethod
    def fit(
        cls,
        features: Tensor,
        adjacency: SymmetricAdjacency,
        *,
        noise_band: float = 0.1,
        degree: int = _DEGREE,
        seed: int = 0,
        averaged: Callable[[Tensor], Tensor] | None = None,
    ) -> WienerFilter:
        """Estimate signal and noise of every column; parameters, errors and method as in `wiener_filter`."""
        _check_rows(features, adjacency)
        degree -= degree % 2
        group = ranks()
        start, n = group.place(len(features))
        mean, root = column_means(features), _root_degrees(adjacency)
        n_probes = min(max(_LEAST_PROBES, _PROBE_ENTRIES // n), _MOST_PROBES)
        probes = _probes(slice(start, start + len(features)), n, n_probes, seed).to(features.device)
        noise = probes if averaged is None else averaged(probes)
        parts = _parts(adjacency)
        energy, density, noise_energy = (
            _chebyshev_moments(parts, columns, degree)  # (degree + 1, C)
            for columns in (
                lambda rows: (features[rows] - mean) * root[rows],
                lambda rows: probes[rows],
                lambda rows: noise[rows] * root[rows],
            )
        )
        density, noise_energy = density.mean(1), noise_energy.mean(1)
        coefficients, gain = _design(energy, noise_energy, density, n, degree, noise_band)
        return cls(mean.detach().cpu().numpy(), coefficients, gain)

    def apply(self, features: Tensor, adjacency: SymmetricAdjacency) -> Tensor:
        """(N, C) to (N, C), on the device and in the order of ``adjacency``."""
        _check_rows(features, adjacency)
        mean, root = torch.from_numpy(self.mean).to(features), _root_degrees(adjacency)
        coefficients = torch.from_numpy(self.coefficients).to(features)
        filtered = torch.empty_like(features)
        for rows, part in _parts(adjacency):
            for columns in _column_groups(part, features.shape[1]):
                signal = (features[rows, columns] - mean[columns]) * root[rows]
                signal = _apply(part, signal, coefficients[:, columns])
                filtered[rows, columns] = signal.div_(root[rows]).add_(mean[columns])
        return filtered


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
    fitted = WienerFilter.fit(
        features, adjacency, noise_band=noise_band, degree=degree, seed=seed, averaged=averaged
    )
    return fitted.apply(features, adjacency), fitted.gain


def _check_rows(features: Tensor, adjacency: SymmetricAdjacency) -> None:
    if features.ndim != 2 or len(features) != adjacency.n_nodes or features.device != adjacency.device:
        raise InputError(
            f"features must be a matrix with one row for each of the {adjacency.n_nodes} nodes, on "
            f"{adjacency.device}; found shape {tuple(features.shape)} on {features.device}."
        )


def _root_degrees(adjacency: SymmetricAdjacency) -> Tensor:
    """Square roots of the degrees of A + I, mean 1 of the degrees: (N, 1)."""
    degrees = 1.0 / _loops(adjacency)
    return (degrees / column_means(degrees)).sqrt()[:, None]


def _loops(adjacency: SymmetricAdjacency) -> Tensor:
    """The diagonal of Â, the inverse of the degrees of A + I: (N,)."""
    if adjacency.device.type != "cpu":
        return adjacency.values[adjacency.rows == adjacency.columns]
    found = torch.empty(adjacency.n_nodes)
    for start in range(0, adjacency.n_nodes, _ROWS):  # row numbers would take 8 bytes an entry
        offsets = adjacency.offsets[start : start + _ROWS + 1].long()
        at = slice(int(offsets[0]), int(offsets[-1]))
        row = torch.repeat_interleave(torch.arange(start, start + len(offsets) - 1), offsets.diff())
        found[start : start + _ROWS] = adjacency.values[at][adjacency.columns[at] == row]
    return found


def _probes(rows: slice, n: int, n_probes: int, seed: int) -> Tensor:
    """Random signs in some ``rows`` of (n, n_probes), the same on every device and for any division into ranks."""
    seeds = [seed] if n <= _PROBE_ROWS else spawn_seeds(seed, -(-n // _PROBE_ROWS))
    first, last = rows.start // _PROBE_ROWS, -(-rows.stop // _PROBE_ROWS)
    blocks = [
        torch.empty(min(_PROBE_ROWS, n - block * _PROBE_ROWS), n_probes).bernoulli_(
            0.5, generator=make_generator(seeds[block])
        )
        for block in range(first, last)
    ]
    begin = first * _PROBE_ROWS
    return torch.cat(blocks)[rows.start - begin : rows.stop - begin].mul_(2).sub_(1)


def _parts(adjacency: SymmetricAdjacency) -> list[tuple[slice, SymmetricAdjacency]]:
    """Runs of rows that no edge connects, such as sections, of at least `_LEAST_PART` rows, and Â of each.

    What is computed of a part stays in the cache, or takes less memory. On a GPU, and where Â is small, one part.
    """
    n = adjacency.n_nodes
    if n < 2 * _LEAST_PART or adjacency.device.type != "cpu":
        return [(slice(0, n), adjacency)]
    offsets, columns = adjacency.offsets.numpy(), adjacency.columns.numpy()
    # columns ascend in each row, and every row has its own: no edge leads beyond a row whose reach is itself
    reach = np.maximum.accumulate(columns[offsets[1:] - 1])
    ends = np.flatnonzero(reach == np.arange(n)) + 1
    bounds = [0]
    for end in ends[np.unique(np.searchsorted(ends, np.arange(_LEAST_PART, n, _LEAST_PART)))].tolist():
        if end - bounds[-1] >= _LEAST_PART and (n - end >= _LEAST_PART or end == n):
            bounds.append(end)
    if bounds[-1] < n:
        bounds.append(n)
    if len(bounds) == 2:
        return [(slice(0, n), adjacency)]
    return [(slice(*rows), adjacency.rows_alone(*rows)) for rows in pairwise(bounds)]


def _column_groups(part: SymmetricAdjacency, n_columns: int) -> list[slice]:
    """Columns that are worked on at a time, so that an array of them has at most `_PART_ENTRIES` entries."""
    width = n_columns if part.device.type != "cpu" else max(_LEAST_COLUMNS, _PART_ENTRIES // part.n_nodes)
    n_groups = -(-n_columns // width)
    return [slice(*group) for group in pairwise(np.linspace(0, n_columns, n_groups + 1).astype(int).tolist())]


def _chebyshev_moments(
    parts: list[tuple[slice, SymmetricAdjacency]], columns: Callable[[slice], Tensor], degree: int
) -> np.ndarray:
    """⟨v, T_m(Â)v⟩ of every column for m = 0..degree: (degree + 1, C), float64; ``columns`` gives those of rows."""
    total: Any = 0.0
    for rows, part in parts:
        block = columns(rows)
        groups = _column_groups(part, block.shape[1])
        total = total + np.concatenate(
            [_moments_of(part, block[:, group].contiguous(), degree) for group in groups], axis=1
        )
    return np.asarray(ranks().sum(total))


def _moments_of(adjacency: SymmetricAdjacency, columns: Tensor, degree: int) -> np.ndarray:
    """`_chebyshev_moments` of (N, C) columns, from degree/2 products, since 2·T_m·T_n = T_{m+n} + T_{|m−n|}."""
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
    responses = np.empty((_GRID, energy.shape[1]))
    gain = np.empty(energy.shape[1])
    for column in range(energy.shape[1]):
        # in units of the noise, so that the ratio of signal to noise does not rise with frequency
        ratio = isotonic_regression(power[:, column] / shape, sample_weight=modes * shape, increasing=False)
        response = np.maximum(0.0, 1.0 - noise[column] / np.maximum(ratio, 1e-30))
        total = (ratio * shape * modes).sum()
        gain[column] = (response * ratio * shape * modes).sum() / total if total > 0 else 0.0
        responses[:, column] = np.interp(grid, centers, response)
    coefficients = (torch.from_numpy(cosines) @ torch.from_numpy(responses)).numpy() * weights[:, None]
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
