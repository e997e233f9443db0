"""The average of the posteriors of several mixtures, and its confidence; for rows of training and others.

The components of the mixtures are matched first. A mixture treats the columns, and neighboring spots, as independent
evidence and is overconfident: the log odds of the average are divided by a temperature.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.optimize import brentq, linear_sum_assignment

from ..distributed import ranks
from ..errors import InputError
from ..runtime import resolve_device
from ..validation import check_model_arrays
from . import covariance as models
from .blocks import block_threads, over_blocks, sum_over_blocks
from .restarts import MOST_ROWS, Density

__all__ = [
    "FittedAverage",
    "PrincipalAxes",
    "log_likelihood",
    "match_components",
    "overlaps",
    "temper",
    "temperature_for",
]

ROWS_AT_A_TIME = 1_000_000
"""Mixtures are applied to so many rows at a time."""


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
            # by torch, as in `rotate`: numpy would use all cores, whatever number of threads is set
            centered = torch.from_numpy(X[rows] - mean)
            scatter += (centered.T @ centered).numpy()
        values, vectors = np.linalg.eigh(group.sum(scatter))
        kept = np.flatnonzero(values > 1e-7 * max(values[-1], 1e-300))[::-1][:most]
        axes = vectors[:, kept]
        # signs that do not depend on the library
        axes *= np.where(np.take_along_axis(axes, np.abs(axes).argmax(0)[None], 0) < 0, -1.0, 1.0)
        # in the memory order of a model from a file, on which the bits of products depend
        return cls(mean, np.ascontiguousarray(axes, dtype=X.dtype))

    def rotate(self, X: np.ndarray) -> np.ndarray:
        """Rows (N, C), less the mean, on the axes: (N, D), dtype of the axes."""
        centered = torch.from_numpy(np.asarray(X, dtype=self.mean.dtype) - self.mean)
        return (centered @ torch.from_numpy(self.axes)).numpy()


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
        target = match_components(overlaps(rotated, densities, covariance_type, device), weights)
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
        return temper(average, self.temperature)[:, self.order]

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


def log_likelihood(X: torch.Tensor, density: Density, model: str, device: torch.device) -> float:
    """Sum over the rows."""
    parameters = _on_device(density, device)

    def of_block(rows: slice) -> tuple[torch.Tensor]:
        joint = models.log_joint(X[rows].double().to(device), *parameters, model)
        return (torch.logsumexp(joint, 0).sum()[None],)

    return float(sum_over_blocks(of_block, len(X), X.shape[1], device)[0])


def overlaps(X: torch.Tensor, densities: Sequence[Density], model: str, device: torch.device) -> np.ndarray:
    """Sums over the rows of the products of two posteriors: (P, K, P, K)."""
    posteriors = _posteriors(X, densities, model, device)
    shape = (len(densities), len(densities[0][0]))

    def products(rows: slice) -> tuple[torch.Tensor]:
        block = posteriors(rows)
        return (block.T @ block,)

    gram = sum_over_blocks(products, len(X), shape[0] * shape[1] + X.shape[1], device)[0]
    return gram.cpu().numpy().reshape(*shape, *shape)


def temper(posterior: np.ndarray, temperature: float) -> np.ndarray:
    """`_tempered` of the logarithm of a posterior (N, K), in its place."""
    for rows in _slices(len(posterior)):
        posterior[rows] = _tempered(_logarithm(posterior[rows]), temperature)
    return posterior


def temperature_for(posterior: np.ndarray, confidence: float) -> float:
    """The temperature, between one and a hundred, that gives a mean confidence."""
    n = ranks().sum(len(posterior))
    sample = _logarithm(ranks().take(posterior, np.arange(0, n, max(1, n // MOST_ROWS))))

    def excess(log_temperature: float) -> float:
        return float(_tempered(sample, np.exp(log_temperature)).max(1).mean()) - confidence

    low, high = 0.0, np.log(100.0)
    if excess(low) <= 0:
        return float(np.exp(low))
    if excess(high) >= 0:
        return float(np.exp(high))
    return float(np.exp(brentq(excess, low, high, xtol=1e-3)))


def _slices(n: int) -> list[slice]:
    """Rows that are worked on at a time."""
    return [slice(start, min(start + ROWS_AT_A_TIME, n)) for start in range(0, n, ROWS_AT_A_TIME)]


def _averaged(posteriors: Callable[[slice], torch.Tensor], matrix: torch.Tensor, rows: slice) -> torch.Tensor:
    return (posteriors(rows) @ matrix).float().cpu()


def _on_device(density: Density, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    weights, means, factors = (torch.as_tensor(part, dtype=torch.float64).to(device) for part in density)
    return weights, means, factors


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
