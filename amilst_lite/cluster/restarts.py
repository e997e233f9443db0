"""Mixtures for several shares of the spherical covariance, as one batch from the same starts.

A share a of the sphere replaces a covariance W by (1 − a) W + a s I, where s is its mean variance. The best of all
restarts is kept for each share; with many components, mixtures also move between optima.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from ..distributed import alone, column_means, ranks
from ..runtime import make_generator
from . import covariance as models
from .covariance import Parameters, Setting
from .features import TIED, Rows
from .mixture import GaussianMixture, em
from .moves import split_and_merge
from .starts import short_kmeans

__all__ = ["MOST_ROWS", "Density", "Restarts"]

MOST_ROWS = 20_000
"""Of more rows, restarts are compared on so many."""
_TOL = 1e-6
_ROUNDS = ((12, 3), (60, 1))
"""EM steps of all restarts, and how many of them continue. Fewer steps of all cost accuracy."""
_RESTARTS_SUFFICE = 10
"""Components up to which the restarts find the best optimum on simulated tissue; with more, it takes moves."""
_MOVE_ROUNDS = ((10, 2), (60, 1))
"""The same for the mixtures after a move."""
_FULL_STEPS = 20
"""EM steps on all rows, where there are more than `MOST_ROWS`."""

Density = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Weights (K,), means (K, d) and Cholesky factors of the precisions of a mixture of d leading columns."""


class Restarts:
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
        if n > MOST_ROWS:
            places = np.sort(torch.randperm(n, generator=self.generator)[:MOST_ROWS].numpy())
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
