"""A mixture whose shrinkage follows from the data: the likelihood of held-out blocks decides, and fits are averaged.

How far the covariance should be shrunken towards a spherical one depends on the number of spots, the noise and the
structure of a section: from a hundredth to nine tenths of it on real ones. The number of spots is no guide by
itself, since neighboring spots are not independent. So blocks of neighboring spots are held out: a mixture is fitted
to every other block and evaluated on the rest, for several shares of the spherical covariance and several numbers of
leading principal axes, at most 30. All shares that come within a nat a spot of the best are fitted to the whole
section, and their posteriors, after matching the components, are averaged: optima of nearly equal likelihood can differ
much.

The same two fits tell how far the labels can be trusted. Fits that are each right with probability p and wrong in
different ways agree with probability p², so the square root of their agreement is what the mean confidence should
be. A mixture treats the columns, and neighboring spots, as independent evidence and is overconfident by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from ..checkpoint import Checkpoint
from ..distributed import alone, ranks
from ..runtime import resolve_device, spawn_seeds
from . import covariance as models
from .averaging import FittedAverage, PrincipalAxes, log_likelihood, overlaps, temper, temperature_for
from .blocks import block_threads, concurrently
from .restarts import MOST_ROWS, Density, Restarts

__all__ = ["SHARES", "Evidence", "MixtureAverage", "fit_average", "held_out"]

SHARES = (0.01, 0.03, 0.1, 0.2, 0.4, 0.65, 0.9)
"""Shares of the spherical covariance that are compared."""
MOST_AXES = 30
"""Principal axes of the features that are used at most, unless the means of K components need more.

With up to 60 or 80 axes, the ARI of DLPFC 151676 was 0.1 lower, that of the other sections about the same.
"""
COLUMNS = (1 / 2, 2 / 3, 1.0)
"""Shares of these axes, the leading ones, on which mixtures are fitted and averaged."""
SLACK = 1.0
"""Nats a spot by which the likelihood of held-out spots may fall short of the best.

Of more than `MOST_ROWS` spots only the best share for each number of columns is used.
"""
_BLOCK = 100
"""Spots in a block. In blocks of 15 or 40, held-out spots depend on neighbors in the fitted ones."""
_FITTED_ROWS = 1_000_000
"""Of more spots, mixtures are fitted to so many, in evenly spaced blocks."""


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
    if len(X) < n <= MOST_ROWS:  # few rows in all: every rank fits all of them
        whole = ranks().gather(X)
        with alone():
            result = fit_average(
                whole, n_components, covariance_type=covariance_type, shrinkage=shrinkage, n_init=n_init,
                seed=seed, device=device,
            )  # fmt: skip
        own = slice(start, start + len(X))
        return replace(result, labels=result.labels[own], probabilities=result.probabilities[own])
    axes = PrincipalAxes.of(X, max(MOST_AXES, n_components - 1))
    some = X if n <= _FITTED_ROWS else X[ranks().own(_evenly_spaced(n, _FITTED_ROWS), len(X))]
    rotated = torch.from_numpy(axes.rotate(some))
    d = rotated.shape[1]
    # The means of K components differ along up to K - 1 axes, not all of them leading ones. Of few rows, averaging over
    # different columns is worth more than all of these axes.
    least = (n_components - 1) * (1 if n <= MOST_ROWS else 2)
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
        weights[row] = _weights(likelihood[row], SLACK if n <= MOST_ROWS else 0.0)
        # more columns need less of the sphere
        chosen = np.flatnonzero(weights[row])
        tried = np.arange(max(0, chosen[0] - 2), chosen[-1] + 1)
    weights /= weights.sum()
    paths = [
        partial(
            _fitted_densities, shares[weights[row] > 0].tolist(),
            rotated[:, :width], n_components, covariance_type, n_init, seeds[len(columns) + row], resolved,
        )
        for row, width in enumerate(columns)
    ]  # fmt: skip
    with block_threads():
        if n <= MOST_ROWS:
            found = checkpoint.stage("mixture", partial(concurrently, paths, resolved))
        else:
            found = [
                checkpoint.stage(f"mixture-{width}", path) for width, path in zip(columns, paths, strict=True)
            ]
        densities = [density for of_width in found for density in of_width]
        fits = list(zip(weights[weights > 0].tolist(), densities, strict=True))
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
    temperature = temperature_for(average, float(np.sqrt(agreement.mean())))
    evidence = Evidence(np.asarray(columns), shares, likelihood, weights, agreement, temperature)
    return MixtureAverage(
        labels, temper(average, temperature), evidence, replace(fitted, temperature=temperature)
    )


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
    if n > MOST_ROWS:
        # some rows of every block: neighbors say nearly the same, so that few whole blocks would be few observations
        places = np.linspace(0, n - 1, MOST_ROWS).astype(np.int64)
        halves = places // _BLOCK % 2
        X = torch.from_numpy(ranks().take(X.numpy(), places))
    else:
        X = torch.from_numpy(ranks().gather(X.numpy()))
        halves = np.arange(n) // _block_length(n) % 2
    model = models.canonical_model(covariance_type)

    def of_half(half: int) -> tuple[list[Density], list[float]]:
        fitted, rest = (X[torch.from_numpy(halves == part)] for part in (half, 1 - half))
        densities = Restarts(fitted, n_components, covariance_type, n_init, seed, device).search(shares)
        return densities, [log_likelihood(rest, density, model, device) for density in densities]

    with alone(), block_threads():
        found = concurrently([partial(of_half, half) for half in (0, 1)], device)
        total = np.sum([likelihood for _, likelihood in found], axis=0)
        best = int(np.argmax(total))
        gram = overlaps(X, [densities[best] for densities, _ in found], model, device)
    first, second = linear_sum_assignment(gram[0, :, 1], maximize=True)
    return total / len(X), float(gram[0, first, 1, second].sum() / len(X))


def _all_used(labels: np.ndarray, n_components: int) -> bool:
    return bool((ranks().sum(np.bincount(labels, minlength=n_components)) > 0).all())


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


def _fitted_densities(shares: Sequence[float], *of_path: Any) -> list[Density]:
    return Restarts(*of_path).fit(shares)
