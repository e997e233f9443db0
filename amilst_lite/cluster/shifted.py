"""Gaussian mixtures whose components are shifted in each section: x_i ~ Σ_k π_sk N(μ_k + δ_s + δ_sk, Σ).

Given the responsibilities, means, shifts δ_s and offsets δ_sk solve a least-squares problem, and all that EM needs of
the spots are the sums of their features over each component of each section. So EM runs all restarts as one batch,
as in `mixture`, with the E step section by section.

Shapes: R restarts, S sections, K components, n spots, d columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from scipy.special import logsumexp

from .covariance import Parameters, Setting, WorkingScale, natural
from .features import Rows

__all__ = ["Components", "Spots", "effects", "em", "log_composition", "maximize", "summed"]

SHARE = 0.1
"""Share of the spherical covariance. The differences between corrections hardly depend on it."""
PRIOR_SPOTS = 100.0
"""1/τ²: an offset is halved where a domain has this many spots in a section."""
PRIOR_COMPOSITION = 5.0
"""Spots of the overall composition that are added to that of each section."""
_LEAST_COUNT = 1e-9
"""Added to the number of spots of each component, so that none is zero."""
_LEAST_VARIANCE = 1e-5
"""Share of the mean variance of the columns that is added to that of components; exceeds rounding in float32."""
_DTYPE = torch.float32
"""Of the E step."""


@dataclass(frozen=True)
class Components:
    """R mixtures, float64; without the dimension R, one.

    Attributes
    ----------
    log_composition : ndarray, (R, S, K)
        log π_sk.
    centers : ndarray, (R, S, K, d)
        μ_k + δ_s + δ_sk.
    covariance : ndarray, (R, d, d)
        Σ.
    shift : ndarray, (R, S, d)
        δ_s.
    """

    log_composition: np.ndarray
    centers: np.ndarray
    covariance: np.ndarray
    shift: np.ndarray

    def __getitem__(self, restarts: Any) -> Components:
        """A copy of these restarts; None: a batch of one."""
        return Components(*(getattr(self, field.name)[restarts].copy() for field in fields(self)))

    def __setitem__(self, restarts: np.ndarray, other: Components) -> None:
        for field in fields(self):
            getattr(self, field.name)[restarts] = getattr(other, field.name)

    def log_joint(self, X: np.ndarray, sections: np.ndarray) -> np.ndarray:
        """log π_sk + log N(x | center_sk, Σ) of one mixture, for rows (n, d) of ``sections`` (n,): (n, K)."""
        factor = np.linalg.cholesky(np.linalg.inv(self.covariance))
        white = X @ factor
        constant = np.log(factor.diagonal()).sum() - 0.5 * X.shape[1] * np.log(2 * np.pi)
        joint = np.empty((len(X), self.centers.shape[1]))
        for section in np.unique(sections):
            rows = np.flatnonzero(sections == section)
            centers = self.centers[section] @ factor
            distance = (
                np.square(white[rows]).sum(1)[:, None]
                - 2 * white[rows] @ centers.T
                + np.square(centers).sum(1)
            )
            joint[rows] = self.log_composition[section] + constant - 0.5 * distance
        return joint

    def posterior(self, X: np.ndarray, sections: np.ndarray) -> np.ndarray:
        """Of one mixture: (n, K); rows sum to one."""
        joint = self.log_joint(X, sections)
        return np.asarray(np.exp(joint - logsumexp(joint, axis=1, keepdims=True)))


class Spots:
    """The spots of S sections, in the form that the E step needs.

    Parameters
    ----------
    X : ndarray, (n, d), float64
        Near the origin.
    sections : ndarray of int, (n,)
        0..S-1; a section may have no spots.
    n_sections : int
        S.
    """

    def __init__(self, X: np.ndarray, sections: np.ndarray, n_sections: int) -> None:
        d = X.shape[1]
        self.n, self.d, self.n_sections = len(X), d, n_sections
        self.mean, self.scatter = X.mean(0), X.T @ X
        scale = WorkingScale(np.zeros(d), np.eye(d), np.eye(d), np.zeros((d, d)), 0.0)
        self._setting = Setting("tied", self.n, torch.from_numpy(self.scatter), 0.0, 0.0, scale)
        self._parts: list[tuple[int, np.ndarray, Rows]] = []
        for section in np.unique(sections):
            own = np.flatnonzero(sections == section)
            base = torch.from_numpy(np.concatenate([np.ones((1, len(own))), X[own].T]))
            self._parts.append((int(section), own, Rows(base.float(), "tied")))

    def of_labels(self, labels: torch.Tensor, n_components: int) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of spots (R, S, K) of each label, and sums of their rows (R, S, K, d); labels (R, n)."""
        moments = torch.zeros(len(labels), self.n_sections, n_components, 1 + self.d, dtype=torch.float64)
        for section, own, rows in self._parts:
            moments[:, section] = rows.hard_moments(labels[:, own], n_components)
        return moments[..., 0].numpy(), moments[..., 1:].numpy()

    def expect(self, components: Components) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The E step: sums of the posteriors (R, S, K), of the rows weighted by them, and log-likelihoods (R,)."""
        shape = components.centers.shape
        together = Parameters(
            torch.from_numpy(np.exp(components.log_composition).reshape(shape[0], -1)),
            torch.from_numpy(components.centers.reshape(shape[0], -1, self.d)),
            torch.from_numpy(components.covariance),
        )
        eta, log_likelihood = natural(together, self._setting)
        eta = eta.view(*shape[:3], -1)
        moments = torch.zeros_like(eta)
        for section, _, rows in self._parts:
            moments[:, section], part = rows.expect(eta[:, section], _DTYPE)
            log_likelihood = log_likelihood + part
        return moments[..., 0].numpy(), moments[..., 1:].numpy(), log_likelihood.numpy()


def em(
    spots: Spots,
    components: Components,
    step: Callable[[np.ndarray, np.ndarray, np.ndarray], Components],
    steps: int,
    tol: float = 1e-6,
) -> Components:
    """EM of R mixtures, each until its log-likelihood rises by less than ``tol`` of its size.

    Parameters
    ----------
    spots : Spots
    components : Components
        From which EM starts.
    step : callable
        The M step: components given the sums of `Spots.expect` and the shifts (R, S, d) so far.
    steps : int
        At most.
    tol : float
    """
    components = components[:]
    before = np.full(len(components.shift), -np.inf)
    active = np.arange(len(before))
    for _ in range(steps):
        counts, sums, now = spots.expect(components[active])
        components[active] = step(counts, sums, components.shift[active])
        changed = np.abs(now - before[active]) >= tol * (1 + np.abs(now))
        before[active] = now
        active = active[changed]
        if len(active) == 0:
            break
    return components


def maximize(
    counts: np.ndarray,
    sums: np.ndarray,
    shift: np.ndarray,
    *,
    scatter: np.ndarray,
    fixed: bool,
    offsets: bool = False,
) -> Components:
    """The M step, given numbers (R, S, K) and sums (R, S, K, d) of the spots, and their ``scatter`` (d, d) = XᵀX.

    ``fixed``: shifts stay as they are. ``offsets``: a center of its own for each component of each section.
    """
    means, moved, added = effects(counts, sums, offsets=offsets, shift=shift, fixed=fixed)
    centers = means[..., None, :, :] + moved[..., None, :]
    if added is not None:
        centers = centers + added
    shape = (*centers.shape[:-3], -1, centers.shape[-1])
    flat, cross = centers.reshape(shape), sums.reshape(shape)
    cross = np.swapaxes(cross, -1, -2) @ flat
    weighted = np.swapaxes(counts.reshape(shape[:-1])[..., None] * flat, -1, -2) @ flat
    covariance = scatter - cross - np.swapaxes(cross, -1, -2) + weighted
    if added is not None:  # the prior of the offsets is in units of Σ
        added = added.reshape(shape)
        covariance += PRIOR_SPOTS * np.swapaxes(added, -1, -2) @ added
    n, d = counts.sum((-1, -2))[..., None, None], shape[-1]
    covariance /= n
    variance = np.trace(covariance, axis1=-2, axis2=-1)[..., None, None] / d
    least = _LEAST_VARIANCE * np.trace(scatter) / d / n
    overall = counts.sum(-2, keepdims=True) / counts.sum((-1, -2), keepdims=True)
    return Components(
        log_composition(counts, overall),
        centers,
        (1 - SHARE) * covariance + (SHARE * variance + least) * np.eye(d),
        moved,
    )


def log_composition(counts: np.ndarray, overall: np.ndarray) -> np.ndarray:
    """log π_sk from numbers of spots (..., S, K), with some of the ``overall`` composition added."""
    composition = counts + _LEAST_COUNT + PRIOR_COMPOSITION * overall
    return np.asarray(np.log(composition / composition.sum(-1, keepdims=True)))


def effects(
    counts: np.ndarray,
    sums: np.ndarray,
    *,
    offsets: bool = False,
    shift: np.ndarray | None = None,
    fixed: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Means μ_k (..., K, C), shifts δ_s (..., S, C) and offsets δ_sk (..., S, K, C) given the responsibilities.

    Alternates between the three, which share one least-squares problem; from the ``shift`` given, else from zero.

    Parameters
    ----------
    counts : ndarray, (..., S, K)
        Sums of the responsibilities.
    sums : ndarray, (..., S, K, C)
        Sums of the features weighted by them.
    """
    counts = counts + _LEAST_COUNT
    sizes = counts.sum(-1)[..., None]  # (..., S, 1)
    share = sizes / sizes.sum(-2, keepdims=True)
    weights = counts[..., None]
    moved = np.zeros((*sums.shape[:-2], sums.shape[-1])) if shift is None else shift
    added: np.ndarray | None = None
    for _ in range(5 if shift is not None else 50):
        removed = moved[..., None, :] if added is None else moved[..., None, :] + added
        means = (sums - weights * removed).sum(-3) / weights.sum(-3)
        rest = sums / weights - means[..., None, :, :]
        if not fixed:
            moved = (weights * (rest if added is None else rest - added)).sum(-2) / sizes
            moved = moved - (share * moved).sum(-2, keepdims=True)
        if offsets:
            added = weights / (weights + PRIOR_SPOTS) * (rest - moved[..., None, :])
        elif fixed:
            break
    return means, moved, added


def summed(
    X: np.ndarray, sections: np.ndarray, responsibilities: np.ndarray, n_sections: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sums of the responsibilities, (S, K), and of the rows (n, C) weighted by them, (S, K, C)."""
    rows = [np.flatnonzero(sections == section) for section in range(n_sections)]
    counts = np.stack([responsibilities[own].sum(0) for own in rows])
    return counts, np.stack([responsibilities[own].T @ X[own] for own in rows])
