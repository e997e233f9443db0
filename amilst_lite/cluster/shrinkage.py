"""A mixture whose shrinkage follows from the data: the likelihood of held-out blocks decides, and fits are averaged.

How far the covariance should be shrunken towards a spherical one depends on the number of spots, the noise and the
structure of a section: from a hundredth to nine tenths of it on real ones. The number of spots is no guide by
itself, since neighboring spots are not independent. So blocks of neighboring spots are held out: a mixture is fitted
to every other block and evaluated on the rest, for several shares of the spherical covariance and several numbers of
leading principal axes. All shares that come within a nat a spot of the best are fitted to the whole section, and
their posteriors, after matching the components, are averaged: optima of nearly equal likelihood can differ much.

The same two fits tell how far the labels can be trusted. Fits that are each right with probability p and wrong in
different ways agree with probability p², so the square root of their agreement is what the mean confidence should
be. A mixture treats the columns, and neighboring spots, as independent evidence and is overconfident by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.optimize import brentq, linear_sum_assignment

from ..checkpoint import Checkpoint
from ..distributed import alone, column_means, ranks
from ..errors import InputError
from ..runtime import make_generator, resolve_device, spawn_seeds
from ..validation import check_model_arrays
from . import covariance as models
from .blocks import block_threads, over_blocks, sum_over_blocks
from .covariance import Parameters, Setting
from .features import TIED, Rows
from .mixture import GaussianMixture, em
from .moves import split_and_merge
from .starts import short_kmeans

__all__ = [
    "SHARES",
    "Evidence",
    "FittedAverage",
    "MixtureAverage",
    "PrincipalAxes",
    "fit_average",
    "held_out",
    "match_components",
]

SHARES = (0.01, 0.03, 0.1, 0.2, 0.4, 0.65, 0.9)
"""Shares of the spherical covariance that are compared."""
COLUMNS = (1 / 2, 2 / 3, 1.0)
"""Shares of the columns, the leading principal axes, of which mixtures are fitted and averaged."""
SLACK = 1.0
"""Nats a spot by which the likelihood of held-out spots may fall short of the best."""
_BLOCK = 100
"""Spots in a block. In blocks of 15 or 40, held-out spots depend on neighbors in the fitted ones."""
_MOST_ROWS = 20_000
"""Of more spots, so many evenly spaced ones decide, and only the best share for each number of columns is used."""
_TOL = 1e-6
_ROUNDS = ((12, 3), (60, 1))
"""EM steps of all restarts, and how many of them continue. Fewer steps of all cost accuracy."""
_RESTARTS_SUFFICE = 10
"""Components up to which the restarts find the best optimum on simulated tissue; with more, it takes moves."""
_MOVE_ROUNDS = ((10, 2), (60, 1))
"""The same for the mixtures after a move."""
_FULL_STEPS = 20
"""EM steps on all rows, where there are more than `_MOST_ROWS`."""
_ALL_ROWS = 1_000_000
"""Of more rows, mixtures are fitted to so many, in evenly spaced blocks, and applied to so many at a time."""

Density = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Weights (K,), means (K, d) and Cholesky factors of the precisions of a mixture of d leading columns."""


@dataclass(frozen=True)
class Evidence:
    """Why the covariance was shrunken as it was.

    Attributes
    ----------
    columns : ndarray of int64, (P,)
        Numbers of leading principal axes.
    shares : ndarray of float64, (S,)
        Shares of the spherical covariance.
    log_likelihood : ndarray of float64, (P, S)
        Mean log-likelihood (natural logarithm) of the spots in held-out blocks; NaN where it was not computed.
        Comparable within a row.
    weights : ndarray of float64, (P, S)
        Weights of the fits in the average; they sum to one.
    agreement : ndarray of float64, (P,)
        Share of the spots on which the fits to the two halves of the blocks agree, at the best share.
    temperature : float
        The log odds of the averaged posterior were divided by it.
    """

    columns: np.ndarray
    shares: np.ndarray
    log_likelihood: np.ndarray
    weights: np.ndarray
    agreement: np.ndarray
    temperature: float


@dataclass(frozen=True)
class PrincipalAxes:
    """The principal axes of the covariance of some rows, in descending order of their variance.

    Attributes
    ----------
    mean : ndarray, (C,)
        Of the rows; dtype of the rows.
    axes : ndarray, (C, D <= C)
        Orthonormal columns; axes without variance are left out. Dtype of the rows.
    """

    mean: np.ndarray
    axes: np.ndarray

    @classmethod
    def of(cls, X: np.ndarray, most: int | None = None) -> PrincipalAxes:
        """Those of the rows (N, C) of all ranks, float32 or float64; the leading ``most`` if given."""
        group = ranks()
        mean = (group.sum(X.sum(0, dtype=np.float64)) / group.sum(len(X))).astype(X.dtype)
        scatter = np.zeros((X.shape[1], X.shape[1]))
        for rows in _slices(len(X)):
            centered = X[rows] - mean
            scatter += centered.T @ centered
        values, vectors = np.linalg.eigh(group.sum(scatter))
        kept = np.flatnonzero(values > 1e-7 * max(values[-1], 1e-300))[::-1][:most]
        axes = vectors[:, kept]
        # signs that do not depend on the library
        axes *= np.where(np.take_along_axis(axes, np.abs(axes).argmax(0)[None], 0) < 0, -1.0, 1.0)
        return cls(mean, axes.astype(X.dtype))

    def rotate(self, X: np.ndarray) -> np.ndarray:
        """Rows (N, C), less the mean, on the axes: (N, D), dtype of the axes."""
        return np.ascontiguousarray((np.asarray(X, dtype=self.mean.dtype) - self.mean) @ self.axes)


@dataclass(frozen=True)
class FittedAverage:
    """Several mixtures and the average of their posteriors, for the rows of training and for others.

    Attributes
    ----------
    axes : PrincipalAxes
        Of the rows of training.
    densities : tuple of Density
        The P mixtures, each of as many leading axes as its means have columns; float64.
    weights : ndarray of float64, (P,)
        Of the mixtures in the average; they sum to one.
    target : ndarray of int64, (P, K)
        For every component of every mixture, the component of the average that it belongs to.
    covariance_type : str
        scikit-learn's name; see `GaussianMixture`.
    temperature : float
        The log odds of the average are divided by it, >= 1.
    order : ndarray of int64, (K,)
        For every column of the probabilities, the component of the average that it belongs to.
    """

    axes: PrincipalAxes
    densities: tuple[Density, ...]
    weights: np.ndarray
    target: np.ndarray
    covariance_type: str
    temperature: float
    order: np.ndarray

    @classmethod
    def of(
        cls,
        axes: PrincipalAxes,
        rotated: torch.Tensor,
        fits: Sequence[tuple[float, Density]],
        covariance_type: str,
        device: torch.device,
    ) -> FittedAverage:
        """Match the components of mixtures with weights on the rotated rows (N, D); temperature 1."""
        weights = np.array([weight for weight, _ in fits])
        densities = tuple(density for _, density in fits)
        target = match_components(_overlaps(rotated, densities, covariance_type, device), weights)
        order = np.arange(target.shape[1])
        return cls(axes, densities, weights / weights.sum(), target, covariance_type, 1.0, order)

    def predict_proba(self, X: np.ndarray, *, device: str | torch.device = "cpu") -> np.ndarray:
        """Probabilities of the components; for the rows of training, the same bits as `fit_average` returned.

        Parameters
        ----------
        X : ndarray, (N, C), float32
            In any order.
        device : str or torch.device

        Returns
        -------
        ndarray of float32, (N, K)
            Rows sum to one.

        Raises
        ------
        InputError
            ``X`` is not a matrix with at least one row and the number of columns of training.
        """
        if np.ndim(X) != 2 or len(X) == 0 or np.shape(X)[1] != len(self.axes.mean):
            raise InputError(
                f"expected rows of {len(self.axes.mean)} columns, as in training; found shape {np.shape(X)}."
            )
        resolved = resolve_device(device)
        with block_threads():
            average = self.average(X, resolved)
        return _temper(average, self.temperature)[:, self.order]

    def average(self, X: np.ndarray, device: torch.device) -> np.ndarray:
        """The weighted mean of the posteriors for rows (N, C): (N, K), float32.

        Its columns are the components of the average, before `order` and `temperature`.
        """
        n_fits, n_components = self.target.shape
        mixing = np.zeros((n_fits, n_components, n_components))
        for fit, weight in enumerate(self.weights):
            mixing[fit, np.arange(n_components), self.target[fit]] = weight
        matrix = torch.from_numpy(mixing.reshape(-1, n_components)).to(device)
        average = np.empty((len(X), n_components), np.float32)
        for rows in _slices(len(X)):
            rotated = torch.from_numpy(self.axes.rotate(X[rows]))
            posteriors = _posteriors(rotated, self.densities, self.covariance_type, device)
            width = n_fits * n_components + rotated.shape[1]
            at = rows.start
            averaged = partial(_averaged, posteriors, matrix)
            for part in over_blocks(averaged, len(rotated), width, device):
                average[at : at + len(part)] = part.numpy()
                at += len(part)
        return average

    def reordered(self, order: np.ndarray) -> FittedAverage:
        """The same with column ``order[j]`` of the probabilities as column j; ``order``: (K,)."""
        return replace(self, order=self.order[order])

    def to_arrays(self) -> dict[str, Any]:
        """The state as arrays, those of each mixture in a dict of their own; see `from_arrays`."""
        fits = {
            str(place): dict(zip(("weights", "means", "factors"), density, strict=True))
            for place, density in enumerate(self.densities)
        }
        return {
            "mean": self.axes.mean,
            "axes": self.axes.axes,
            "fits": fits,
            "weights": self.weights,
            "target": self.target,
            "temperature": np.array(self.temperature),
            "order": self.order,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any], covariance_type: str) -> FittedAverage:
        """The average of `to_arrays`, which gives the same bits.

        Parameters
        ----------
        arrays : mapping
        covariance_type : str
            See `GaussianMixture`; either name.

        Raises
        ------
        InputError
            Names or shapes are not those of an average, or values are out of range.
        """
        owner, model = "the mixture", models.canonical_model(covariance_type)
        fits = arrays.get("fits")
        if not isinstance(fits, Mapping) or set(fits) != {str(place) for place in range(len(fits))}:
            raise InputError(
                f"{owner} of the model must have fits 0, 1, ...; found none. Save the model again."
            )
        shapes = {
            "mean": "C",
            "axes": "C D",
            "weights": "P",
            "target": "P K",
            "temperature": "",
            "order": "K",
        }
        rest = {name: array for name, array in arrays.items() if name != "fits"}
        lengths = check_model_arrays(rest, shapes, owner, integers=("target", "order"))
        components = np.arange(lengths["K"])
        usable = (
            len(fits) == lengths["P"]
            and rest["mean"].dtype == rest["axes"].dtype
            and (rest["weights"] > 0).all()
            and (np.sort(rest["target"], axis=1) == components).all()
            and np.array_equal(np.sort(rest["order"]), components)
            and rest["temperature"] >= 1
        )
        factors = {"tied": "d d", "full": "K d d", "tied_diag": "d", "diag": "K d", "spherical": "K"}
        densities = []
        for place in range(len(fits)):
            part = fits[str(place)]
            if not isinstance(part, Mapping):
                raise InputError(
                    f"{owner} of the model must have arrays in fit {place}. Save the model again."
                )
            shape = {"weights": "K", "means": "K d", "factors": factors.get(model, "")}
            found = check_model_arrays(part, shape, f"fit {place} of {owner}")
            usable &= found["K"] == lengths["K"] and found["d"] <= lengths["D"]
            density = part["weights"], part["means"], part["factors"]
            # an empty component has the weight zero
            usable &= bool((density[0] >= 0).all() and (_scales(density[2], model) > 0).all())
            densities.append(density)
        if not usable:
            raise InputError(
                f"{owner} of the model must have one number of components and fits throughout, weights >= 0, "
                "positive factors, and a temperature of at least 1; found others. Save the model again."
            )
        return cls(
            PrincipalAxes(rest["mean"], rest["axes"]),
            tuple(densities),
            rest["weights"],
            rest["target"].astype(np.int64),
            model,
            float(rest["temperature"]),
            rest["order"].astype(np.int64),
        )


@dataclass(frozen=True)
class MixtureAverage:
    """The average of several mixtures on the rows of training.

    Attributes
    ----------
    labels : ndarray of int64, (N,)
        The most probable component of each row.
    probabilities : ndarray of float32, (N, K)
        Rows sum to one; the mean over rows of the largest is what `Evidence.agreement` supports.
    evidence : Evidence
    fitted : FittedAverage
        For other rows.
    """

    labels: np.ndarray
    probabilities: np.ndarray
    evidence: Evidence
    fitted: FittedAverage


def fit_average(
    X: np.ndarray,
    n_components: int,
    *,
    covariance_type: str = "tied",
    shrinkage: float | None = None,
    n_init: int = 32,
    seed: int = 0,
    device: str | torch.device = "cpu",
    checkpoint: Checkpoint | None = None,
) -> MixtureAverage:
    """The average of the mixtures that the held-out likelihood supports.

    Parameters
    ----------
    X : ndarray, (N, C), float32
        In an order in which neighbors in space are near each other, such as ``SpatialGraph.order``.
    n_components : int
        K.
    covariance_type : str
        See `GaussianMixture`.
    shrinkage : float or None
        Share of the spherical covariance, in [0, 1). None: decided by held-out blocks.
    n_init : int
        Random restarts on the whole section; half as many on each half of the blocks.
    seed : int
    device : str or torch.device
    checkpoint : Checkpoint, optional
        Keeps what was found for each number of columns.
    """
    checkpoint = Checkpoint() if checkpoint is None else checkpoint
    resolved = resolve_device(device)
    model = models.canonical_model(covariance_type)
    start, n = ranks().place(len(X))
    if len(X) < n <= _MOST_ROWS:  # few rows in all: every rank fits all of them
        whole = ranks().gather(X)
        with alone():
            result = fit_average(
                whole, n_components, covariance_type=covariance_type, shrinkage=shrinkage, n_init=n_init,
                seed=seed, device=device,
            )  # fmt: skip
        own = slice(start, start + len(X))
        return replace(result, labels=result.labels[own], probabilities=result.probabilities[own])
    axes = PrincipalAxes.of(X)
    some = X if n <= _ALL_ROWS else X[ranks().own(_evenly_spaced(n, _ALL_ROWS), len(X))]
    rotated = torch.from_numpy(axes.rotate(some))
    d = rotated.shape[1]
    # The means of K components differ along up to K - 1 axes, not all of them leading ones. Of few rows, averaging over
    # different columns is worth more than all of these axes.
    least = (n_components - 1) * (1 if n <= _MOST_ROWS else 2)
    columns = np.unique([min(d, max(1, least, round(share * d))) for share in COLUMNS])
    shares = np.array(SHARES if shrinkage is None else (shrinkage,))
    seeds = spawn_seeds(seed, 2 * len(columns))
    likelihood, agreement = np.full((len(columns), len(shares)), np.nan), np.zeros(len(columns))
    weights = np.zeros_like(likelihood)
    tried = np.arange(len(shares))
    for row, width in enumerate(columns):
        likelihood[row, tried], agreement[row] = checkpoint.stage(
            f"mixture-held-out-{width}",
            partial(
                held_out, rotated[:, :width], n_components, shares[tried].tolist(),
                covariance_type=covariance_type, n_init=max(1, n_init // 2), seed=seeds[row], device=resolved,
            ),
        )  # fmt: skip
        weights[row] = _weights(likelihood[row], SLACK if n <= _MOST_ROWS else 0.0)
        # more columns need less of the sphere
        chosen = np.flatnonzero(weights[row])
        tried = np.arange(max(0, chosen[0] - 2), chosen[-1] + 1)
    weights /= weights.sum()
    fits: list[tuple[float, Density]] = []
    with block_threads():
        for row, width in enumerate(columns):
            used = np.flatnonzero(weights[row])
            densities = checkpoint.stage(
                f"mixture-{width}",
                partial(
                    _fitted_densities, shares[used].tolist(),
                    rotated[:, :width], n_components, covariance_type, n_init, seeds[len(columns) + row], resolved,
                ),
            )  # fmt: skip
            fits.extend(zip(weights[row, used].tolist(), densities, strict=True))
        fitted = FittedAverage.of(axes, rotated, fits, model, resolved)
        average = fitted.average(X, resolved)
        labels = average.argmax(1)
        if not _all_used(labels, n_components):
            # the average of fits that disagree can leave a component without rows; one of the fits may not
            places = np.argwhere(weights > 0)  # in the order of the fits
            for place in sorted(range(len(fits)), key=lambda place: -fits[place][0]):
                single = FittedAverage.of(axes, rotated, [fits[place]], model, resolved)
                posterior = single.average(X, resolved)
                if _all_used(posterior.argmax(1), n_components):
                    fitted, average, labels = single, posterior, posterior.argmax(1)
                    weights = np.zeros_like(weights)
                    weights[tuple(places[place])] = 1.0
                    break
    temperature = _temperature(average, float(np.sqrt(agreement.mean())))
    evidence = Evidence(np.asarray(columns), shares, likelihood, weights, agreement, temperature)
    return MixtureAverage(
        labels, _temper(average, temperature), evidence, replace(fitted, temperature=temperature)
    )


def _all_used(labels: np.ndarray, n_components: int) -> bool:
    return bool((ranks().sum(np.bincount(labels, minlength=n_components)) > 0).all())


def held_out(
    X: torch.Tensor,
    n_components: int,
    shares: Sequence[float],
    *,
    covariance_type: str = "tied",
    n_init: int = 16,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> tuple[np.ndarray, float]:
    """How well mixtures of every other block describe the rest, for several shares of the spherical covariance.

    Parameters
    ----------
    X : Tensor, (N, C), float32
        In an order in which neighbors in space are near each other.
    n_components : int
    shares : sequence of float
        In [0, 1).
    covariance_type, n_init, seed, device
        As in `fit_average`; ``n_init`` on each half of the blocks.

    Returns
    -------
    log_likelihood : ndarray, (S,)
        Mean over all spots, each evaluated by the mixture of the other half of the blocks.
    agreement : float
        At the best share, the share of the spots on which the two mixtures agree: the sum of the products of
        their posteriors, after matching the components.
    """
    device = resolve_device(device)
    n = ranks().sum(len(X))
    if n > _MOST_ROWS:
        # some rows of every block: neighbors say nearly the same, so that few whole blocks would be few observations
        places = np.linspace(0, n - 1, _MOST_ROWS).astype(np.int64)
        halves = places // _BLOCK % 2
        X = torch.from_numpy(ranks().take(X.numpy(), places))
    else:
        X = torch.from_numpy(ranks().gather(X.numpy()))
        halves = np.arange(n) // _block_length(n) % 2
    total = np.zeros(len(shares))
    densities: list[list[Density]] = []
    model = models.canonical_model(covariance_type)
    with alone(), block_threads():
        for half in (0, 1):
            fitted, rest = (X[torch.from_numpy(halves == part)] for part in (half, 1 - half))
            path = _Path(fitted, n_components, covariance_type, n_init, seed, device)
            densities.append(path.search(shares))
            total += [_log_likelihood(rest, density, model, device) for density in densities[-1]]
        best = int(np.argmax(total))
        gram = _overlaps(X, [density[best] for density in densities], model, device)
    first, second = linear_sum_assignment(gram[0, :, 1], maximize=True)
    return total / len(X), float(gram[0, first, 1, second].sum() / len(X))


def _slices(n: int) -> list[slice]:
    """Rows that are worked on at a time."""
    return [slice(start, min(start + _ALL_ROWS, n)) for start in range(0, n, _ALL_ROWS)]


def _evenly_spaced(n: int, most: int) -> np.ndarray:
    """About ``most`` of n rows, in evenly spaced blocks of consecutive ones."""
    starts = np.linspace(0, n - _BLOCK, most // _BLOCK).astype(np.int64)
    return np.unique(starts[:, None] + np.arange(_BLOCK))


def _block_length(n: int) -> int:
    """Spots in a block: small sections have at least four."""
    return max(1, min(_BLOCK, -(-n // 4)))


def _weights(likelihood: np.ndarray, slack: float) -> np.ndarray:
    """exp(−gap) for gaps to the best of at most ``slack``, else 0; of the same shape."""
    gap = np.nanmax(likelihood) - likelihood
    return np.where(gap <= slack, np.exp(-np.nan_to_num(gap)), 0.0)


class _Path:
    """Mixtures of the same rows for any share of the spherical covariance, from the same starts."""

    def __init__(
        self,
        X: torch.Tensor,
        n_components: int,
        covariance_type: str,
        n_init: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self.model = models.canonical_model(covariance_type)
        self.mixture = GaussianMixture(n_components, covariance_type=covariance_type)
        self.generator = make_generator(seed)
        self.mean = column_means(X)
        n, centered = ranks().sum(len(X)), X - self.mean
        self.all_rows, self.all_setting = self.mixture.to_working(centered, self.model, device)
        self.rows, self.setting = self.all_rows, self.all_setting
        if n > _MOST_ROWS:
            places = np.sort(torch.randperm(n, generator=self.generator)[:_MOST_ROWS].numpy())
            own = torch.from_numpy(ranks().own(places, len(X)))
            centered = torch.from_numpy(ranks().gather(centered[own].numpy()))
            base = ranks().gather(self.all_rows.base[:, own.to(device)].T.cpu().numpy())
            self.rows = Rows(torch.from_numpy(base.T.copy()).to(device), self.model)
            with alone():
                self.setting = self.mixture.setting(self.rows.base, self.model, self.all_setting.scale)
        array = centered.double().numpy()
        deviation = array.std(0)
        deviation[deviation == 0] = 1
        # in the units of the data, whitened and half whitened: neither finds the best optimum on every section
        spaces = [array / deviation**power for power in (0.0, 1.0, 0.5)]
        labels = short_kmeans(spaces, n_components, n_init, device, self.generator)
        with alone():  # every rank holds the sample
            self.moments = self.rows.hard_moments(labels, n_components)

    def _with_shares(self, setting: Setting, shares: Sequence[float], n_each: int) -> Setting:
        """The setting for ``n_each`` mixtures of each share, one share after the other."""
        n = setting.n if self.model in TIED else setting.n / self.mixture.n_components
        share = torch.tensor(shares, dtype=torch.float64).repeat_interleave(n_each)
        return replace(setting, prior=n * share / (1 - share), reg=max(setting.reg, 1e-6))

    def _best(self, shares: Sequence[float]) -> Parameters:
        """The best of all restarts for each share."""
        parameters, objective = self._best_of(self.moments, shares, _ROUNDS)
        if self.mixture.n_components > _RESTARTS_SUFFICE:
            self._move(parameters, objective, shares)
        return parameters

    def _best_of(
        self, moments: torch.Tensor, shares: Sequence[float], rounds: Sequence[tuple[int, int]]
    ) -> tuple[Parameters, torch.Tensor]:
        """For each share, the best mixture that starts from ``moments`` (R, K, F), and its objective.

        The starts of all shares are one batch. ``rounds``: EM steps, and how many continue after them.
        """
        kept = len(moments)
        parameters = models.maximize(
            moments.repeat(len(shares), 1, 1), self._with_shares(self.setting, shares, kept)
        )
        for steps, most in rounds:
            setting = self._with_shares(self.setting, shares, kept)
            tol = torch.full((len(shares) * kept,), _TOL, dtype=torch.float64)
            fits = em(self.rows, parameters, setting, steps, tol, torch.float32, self.generator)
            found = fits.objective.view(len(shares), kept)
            order = torch.sort(found, descending=True, stable=True).indices[:, :most]
            first = kept * torch.arange(len(shares), device=order.device)
            chosen = (order + first[:, None]).flatten()
            parameters, objective = fits.parameters[chosen], fits.objective[chosen]
            kept = min(kept, most)
        return parameters, objective

    def _move(self, parameters: Parameters, objective: torch.Tensor, shares: Sequence[float]) -> None:
        """Improve the mixtures by `split_and_merge`, in place; the moves are found for the share in the middle."""
        n_components = self.mixture.n_components
        middle = len(shares) // 2
        share = shares[middle : middle + 1]
        setting = self._with_shares(self.setting, share, 1)
        current, best = parameters[torch.tensor([middle])], objective[middle]
        labels = self.rows.assign(models.natural(current, setting)[0][0])
        moved = False
        for _ in range(n_components):
            moves = split_and_merge(self.rows.base[1:].T.cpu(), labels.cpu(), n_components)
            if len(moves) == 0:
                break
            moments = self.rows.hard_moments(moves.to(labels.device), n_components)
            current, value = self._best_of(moments, share, _MOVE_ROUNDS)
            if not bool(value[0] > best + _TOL * best.abs()):
                break
            best, moved = value[0], True
            labels = self.rows.assign(models.natural(current, setting)[0][0])
        if moved:
            moments = self.rows.hard_moments(labels[None], n_components)
            current, value = self._best_of(moments, shares, _ROUNDS[-1:])
            better = torch.nonzero(value > objective).flatten()
            parameters[better] = current[better]

    def search(self, shares: Sequence[float]) -> list[Density]:
        """For each share, the best of all restarts after a limited number of EM steps."""
        with alone():
            return self._densities(self._best(shares))

    def fit(self, shares: Sequence[float]) -> list[Density]:
        """The same, run to convergence on all rows."""
        steps, tol = (200, _TOL / 10) if self.rows is self.all_rows else (_FULL_STEPS, _TOL)
        with alone():
            best = self._best(shares)
        fits = em(
            self.all_rows, best, self._with_shares(self.all_setting, shares, 1), steps,
            torch.full((len(shares),), tol, dtype=torch.float64), torch.float32, self.generator,
        )  # fmt: skip
        return self._densities(fits.parameters)

    def _densities(self, parameters: Parameters) -> list[Density]:
        densities = []
        for place in torch.arange(len(parameters.weights)).split(1):
            weights, means, covariances = self.setting.scale.to_data(parameters[place], self.model)
            factors = models.precisions_cholesky(covariances, self.model)
            densities.append((weights, means + self.mean.double().numpy(), factors))
        return densities


def _averaged(posteriors: Callable[[slice], torch.Tensor], matrix: torch.Tensor, rows: slice) -> torch.Tensor:
    return (posteriors(rows) @ matrix).float().cpu()


def _fitted_densities(shares: Sequence[float], *of_path: Any) -> list[Density]:
    return _Path(*of_path).fit(shares)


def _on_device(density: Density, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    weights, means, factors = (torch.as_tensor(part, dtype=torch.float64).to(device) for part in density)
    return weights, means, factors


def _log_likelihood(X: torch.Tensor, density: Density, model: str, device: torch.device) -> float:
    """Sum over the rows."""
    parameters = _on_device(density, device)

    def of_block(rows: slice) -> tuple[torch.Tensor]:
        joint = models.log_joint(X[rows].double().to(device), *parameters, model)
        return (torch.logsumexp(joint, 0).sum()[None],)

    return float(sum_over_blocks(of_block, len(X), X.shape[1], device)[0])


def _posteriors(
    X: torch.Tensor, densities: Sequence[Density], model: str, device: torch.device
) -> Callable[[slice], torch.Tensor]:
    """Function of a slice of the rows: posteriors of all mixtures side by side, (b, P · K), float64."""
    parameters = [_on_device(density, device) for density in densities]

    def of_block(rows: slice) -> torch.Tensor:
        block = X[rows].double().to(device)
        parts = [
            torch.softmax(models.log_joint(block[:, : each[1].shape[1]], *each, model), 0)
            for each in parameters
        ]
        return torch.cat(parts).T

    return of_block


def _overlaps(X: torch.Tensor, densities: Sequence[Density], model: str, device: torch.device) -> np.ndarray:
    """Sums over the rows of the products of two posteriors: (P, K, P, K)."""
    posteriors = _posteriors(X, densities, model, device)
    shape = (len(densities), len(densities[0][0]))

    def products(rows: slice) -> tuple[torch.Tensor]:
        block = posteriors(rows)
        return (block.T @ block,)

    gram = sum_over_blocks(products, len(X), shape[0] * shape[1] + X.shape[1], device)[0]
    return gram.cpu().numpy().reshape(*shape, *shape)


def _scales(factors: np.ndarray, model: str) -> np.ndarray:
    """Of Cholesky factors of precisions, the entries whose logarithms make up the determinant."""
    return np.diagonal(factors, axis1=-2, axis2=-1) if model in ("tied", "full") else factors


def _logarithm(posterior: np.ndarray) -> np.ndarray:
    """Natural logarithm, of at least 1e-12, float32."""
    return np.asarray(np.log(np.maximum(posterior, 1e-12)))


def _tempered(log_posterior: np.ndarray, temperature: float) -> np.ndarray:
    """The posterior (N, K) with its log odds divided by the temperature; the order of the components stays."""
    logits = log_posterior / np.float32(temperature)
    logits -= logits.max(1, keepdims=True)
    np.exp(logits, out=logits)
    logits /= logits.sum(1, keepdims=True)
    return logits


def _temper(posterior: np.ndarray, temperature: float) -> np.ndarray:
    """`_tempered` of the logarithm of a posterior (N, K), in its place."""
    for rows in _slices(len(posterior)):
        posterior[rows] = _tempered(_logarithm(posterior[rows]), temperature)
    return posterior


def _temperature(posterior: np.ndarray, confidence: float) -> float:
    """The temperature, between one and a hundred, that gives a mean confidence."""
    n = ranks().sum(len(posterior))
    sample = _logarithm(ranks().take(posterior, np.arange(0, n, max(1, n // _MOST_ROWS))))

    def excess(log_temperature: float) -> float:
        return float(_tempered(sample, np.exp(log_temperature)).max(1).mean()) - confidence

    low, high = 0.0, np.log(100.0)
    if excess(low) <= 0:
        return float(np.exp(low))
    if excess(high) >= 0:
        return float(np.exp(high))
    return float(np.exp(brentq(excess, low, high, xtol=1e-3)))


def match_components(overlap: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """For every component of every fit, the component of the average that it belongs to: (P, K), int64.

    Parameters
    ----------
    overlap : ndarray, (P, K, P, K)
        Sum over the spots of the product of two posteriors.
    weights : ndarray, (P,)
        Weights of the fits.

    Notes
    -----
    Starts from the fit that agrees most with the others, and matches each fit to the weighted rest
    (linear assignment) until nothing changes.
    """
    n_fits, n_components = overlap.shape[:2]

    def matched(scores: np.ndarray) -> np.ndarray:
        return np.asarray(linear_sum_assignment(scores, maximize=True)[1])

    agreement = [
        sum(
            weights[j] * overlap[i, np.arange(n_components), j, matched(overlap[i, :, j])].sum()
            for j in range(n_fits)
        )
        for i in range(n_fits)
    ]
    reference = int(np.argmax(agreement))
    target = np.stack([matched(overlap[i, :, reference]) for i in range(n_fits)])
    for _ in range(20):
        before = target.copy()
        for i in range(n_fits):
            scores = np.zeros((n_components, n_components))
            for j in range(n_fits):
                if j != i:
                    scores[:, target[j]] += weights[j] * overlap[i, :, j]
            target[i] = matched(scores) if n_fits > 1 else np.arange(n_components)
        if np.array_equal(target, before):
            break
    return target
