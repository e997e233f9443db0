"""Expectation-maximisation for a batch of mixtures, and the labels it starts from.

The restarts differ only in their parameters: one matrix product serves them all, and those that have
converged leave the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from ._common import sum_over_blocks
from .agglomeration import MAX_ROWS, agglomerate
from .covariance import TIED, Parameters, Setting, features, maximise, n_features, natural
from .kmeans import assign, improve, lloyd, plus_plus

_CACHED_ELEMENTS = 1 << 22
"""Entries of phi that are kept from step to step; above, each step makes them anew block by block."""
_SAMPLED_ROWS = 1000
"""Rows agglomerated when there are too many for all."""


class Rows:
    """The working rows, kept as ``base`` (1 + d, n) = [1, z], float32 on the device.

    Spots run along the last dimension: reductions over the few components then vectorise.
    """

    def __init__(self, base: torch.Tensor, model: str):
        self.base = base
        self.model = model
        self.width = n_features(model, base.shape[0] - 1)
        self.n = base.shape[1]
        self._kept: dict[torch.dtype, torch.Tensor] = {}

    def sum(
        self,
        function: Callable[[slice, torch.Tensor], tuple[torch.Tensor, ...]],
        n_rows: int,
        dtype: torch.dtype = torch.float32,
    ) -> list[torch.Tensor]:
        """Sums over blocks of spots of what ``function`` makes of the spots and their phi (F, b).

        ``n_rows`` is that of the largest thing that ``function`` makes; the sums are in the widest float of
        the device, returned as float64 on the CPU.
        """
        phi = self._kept.get(dtype)
        if phi is None and self.model not in TIED and self.n * self.width <= _CACHED_ELEMENTS:
            phi = self._kept[dtype] = features(self.base.to(dtype), self.model)

        def of_block(spots: slice) -> tuple[torch.Tensor, ...]:
            # contiguous: rows of a block that are megabytes apart make every product twice as slow
            if phi is not None:
                return function(spots, phi[:, spots].contiguous())
            return function(spots, features(self.base[:, spots].to(dtype).contiguous(), self.model))

        sums = sum_over_blocks(of_block, self.n, max(n_rows, self.width), self.base.device)
        return [total.cpu().double() for total in sums]

    def expect(self, eta: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """The E-step and the sums the M-step needs, in one pass over the rows.

        Parameters
        ----------
        eta : torch.Tensor of shape (R, K, F)
            Natural parameters, float64 on the CPU.
        dtype : torch.dtype
            Of the products.

        Returns
        -------
        moments : torch.Tensor of shape (R, K, F)
            Responsibilities times phi, summed over the rows; float64 on the CPU.
        log_likelihood : torch.Tensor of shape (R,)
            Log of the summed exp(eta · phi), summed over the rows; float64 on the CPU.
        """
        n_restarts, n_components, width = eta.shape
        flat = eta.reshape(-1, width).to(dtype).to(self.base.device)

        def e_step(_: slice, phi: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            joint = (flat @ phi).view(n_restarts, n_components, -1)  # (R, K, b)
            top = joint.amax(1, keepdim=True)
            # exp is many times slower where it underflows, and e^-80 is as good as nothing
            joint.sub_(top).clamp_(min=-80).exp_()
            norm = joint.sum(1, keepdim=True)
            joint.div_(norm)
            return joint.flatten(0, 1) @ phi.T, norm.log_().add_(top).sum((1, 2))

        moments, log_likelihood = self.sum(e_step, len(flat), dtype)
        return moments.view(eta.shape), log_likelihood

    def hard_moments(self, labels: torch.Tensor, n_components: int) -> torch.Tensor:
        """Summed phi of each component when every row is in one, or in none (−1): (R, n) to (R, K, F)."""
        index = torch.arange(n_components, device=self.base.device)[:, None]

        def m_step(spots: slice, phi: torch.Tensor) -> tuple[torch.Tensor]:
            one_hot = (labels[:, None, spots] == index).to(phi.dtype)  # (R, K, b)
            return (one_hot @ phi.T,)

        return self.sum(m_step, len(labels) * n_components)[0]

    def soft_moments(self, responsibilities: torch.Tensor) -> torch.Tensor:
        """Summed phi weighted by responsibilities (n, K), on the device: (1, K, F)."""

        def m_step(spots: slice, phi: torch.Tensor) -> tuple[torch.Tensor]:
            return (responsibilities[spots].T.to(phi.dtype) @ phi.T,)

        return self.sum(m_step, responsibilities.shape[1])[0][None]


@dataclass
class Fits:
    """Where EM has come to: parameters of R mixtures, and for each of them the objective before the last
    step (log-likelihood less the prior's penalty), the number of steps, and whether it converged; (R,)."""

    parameters: Parameters
    objective: torch.Tensor
    steps: torch.Tensor
    converged: torch.Tensor


def fit_batch(
    rows: Rows,
    parameters: Parameters,
    setting: Setting,
    *,
    max_iter: int,
    tol: torch.Tensor,
    dtype: torch.dtype,
    generator: torch.Generator,
) -> Fits:
    """EM for every mixture of a batch, each until its objective hardly changes.

    The stopping rule is mclust's, ``|change| < tol (1 + |objective|)``, with a ``tol`` (R,) for each.
    """
    n_restarts = len(parameters.weights)
    fits = Fits(
        parameters[torch.arange(n_restarts)],
        torch.full((n_restarts,), -torch.inf, dtype=torch.float64),
        torch.zeros(n_restarts, dtype=torch.long),
        torch.zeros(n_restarts, dtype=torch.bool),
    )
    active = torch.arange(n_restarts)
    for _ in range(max_iter):
        eta, besides = natural(fits.parameters[active], setting)
        moments, log_likelihood = rows.expect(eta, dtype)
        updated = maximise(moments, setting)
        dead = moments[..., 0] < _least_count(setting, eta.shape[1])
        if bool(dead.any()):
            reseed(updated, dead, rows, setting, generator)
        objective = log_likelihood + besides
        change = (objective - fits.objective[active]).abs()
        done = (change < tol[active] * (1 + objective.abs())) & ~dead.any(1)
        fits.parameters[active] = updated
        fits.objective[active] = objective
        fits.steps[active] += 1
        fits.converged[active] = done
        active = active[~done]
        if len(active) == 0:
            break
    return fits


def _least_count(setting: Setting, n_components: int) -> float:
    """Rows with fewer than which a component is dead: its covariance would be singular whatever they are."""
    least = {"full": setting.d + 1.0, "diag": 2.0, "spherical": 2.0}.get(setting.model, 0.5)
    if setting.prior > 0:
        least = 0.5
    return min(least, 0.5 * setting.n / n_components)


def reseed(
    parameters: Parameters, dead: torch.Tensor, rows: Rows, setting: Setting, generator: torch.Generator
) -> None:
    """Put the ``dead`` components (R, K) on random rows, with the mean covariance of those alive; in place."""
    chosen = torch.randint(rows.n, (int(dead.sum()),), generator=generator)
    parameters.means[dead] = rows.base[1:, chosen.to(rows.base.device)].T.cpu().double()
    share = parameters.weights * ~dead
    parameters.weights[dead] = 1 / dead.shape[1]
    parameters.weights /= parameters.weights.sum(1, keepdim=True)
    if setting.model in TIED:
        return
    covariances = parameters.covariances
    whole = {
        "full": setting.scatter,
        "diag": setting.scatter.diagonal(),
        "spherical": setting.scatter.diagonal().mean(),
    }[setting.model] / setting.n
    share = share.view(*dead.shape, *(1,) * (covariances.ndim - 2))
    alive = share.sum(1) > 0
    mean = torch.where(
        alive, (covariances * share).sum(1) / share.sum(1).clamp(min=1e-300), whole + setting.reg
    )
    covariances[dead] = mean[:, None].expand_as(covariances)[dead]


def fill_empty(rows: Rows, labels: torch.Tensor, n_components: int) -> torch.Tensor:
    """Labels (n,) in which each empty component has got one side of the largest, cut across its long axis."""
    labels = labels.clone()
    for empty in range(n_components):
        sizes = torch.bincount(labels, minlength=n_components)
        if sizes[empty] == 0:
            members = torch.nonzero(labels == sizes.argmax()).flatten()
            centred = rows.base[1:, members].T
            centred = centred - centred.mean(0)
            axis = torch.linalg.eigh((centred.T @ centred).cpu().double())[1][:, -1]
            labels[members[centred.cpu().double() @ axis > 0]] = empty
    return labels


def principal_spaces(X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows on the principal axes of their standardised columns (n, d'), and the axes' variances (d',).

    Divided by no, the fourth or the square root of those variances they are standardised, half whitened
    (as mclust's starts are) or whitened.
    """
    centred = X - X.mean(0)
    deviation = centred.std(0)
    alive = deviation > 1e-12 * np.abs(X).max(0)
    if not alive.any():
        return np.zeros((len(X), 1)), np.ones(1)
    standard = centred[:, alive] / deviation[alive]
    values, vectors = np.linalg.eigh(standard.T @ standard / len(X))
    kept = values > 1e-8 * values[-1]
    return standard @ vectors[:, kept], values[kept]


def kmeans_labels(
    X: np.ndarray, n_components: int, n_runs: int, device: torch.device, generator: torch.Generator
) -> torch.Tensor:
    """Labels of short k-means runs, in turn on standardised, whitened and half whitened rows: (n_runs, n).

    FINDINGS.md 4b: no one space leads to the best optimum on every section.
    """
    rotated, variances = principal_spaces(X)
    labels = []
    for place, power in enumerate((0.0, 0.5, 0.25)):
        runs = len(range(place, n_runs, 3))
        if runs:
            space = torch.from_numpy(rotated / variances**power).to(torch.float32).to(device)
            centres = plus_plus(space, n_components, runs, generator)
            centres, inertia, _ = lloyd(space, centres, max_iter=10, tol=0.0)
            if place == 0 and n_runs < 5:  # one of so few has to be a good one
                centres[0], _ = improve(space, centres[0], inertia[0], 0.0, generator)
            labels.append(assign(space, centres)[0])
    return torch.cat(labels)


def agglomerated_labels(X: np.ndarray, n_components: int) -> torch.Tensor:
    """Labels by model-based agglomeration, −1 for rows outside the sample it was run on: (1, n)."""
    n = len(X)
    labels = torch.full((1, n), -1, dtype=torch.long)
    if n <= MAX_ROWS:
        labels[0] = torch.from_numpy(agglomerate(X, n_components))
    else:
        # the same rows for every seed: this start is there to be the same each time
        chosen = np.sort(np.random.default_rng(0).permutation(n)[: max(_SAMPLED_ROWS, 20 * n_components)])
        labels[0, chosen] = torch.from_numpy(agglomerate(X[chosen], n_components))
    return labels
