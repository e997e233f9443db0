"""Gaussian mixtures in torch: many restarts run as one batch of tensors, the best likelihood kept.

What R's mclust and scikit-learn's ``GaussianMixture`` fit, with as many restarts as it takes.
`covariance.py` holds the six models; here are the starts, the EM loop and the estimator.

Sources: Dempster, Laird and Rubin 1977 (EM); Biernacki, Celeux and Govaert 2003 (many short runs,
then a long one); Fraley and Raftery 2002 (mclust).
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, DensityMixin

from ..errors import AmilstWarning, InputError
from ..runtime import make_generator, resolve_device
from . import covariance as models
from ._common import (
    affine,
    base_seed,
    check_fitted,
    check_matrix,
    check_number,
    column_moments,
    row_blocks,
    wide_float,
)
from .covariance import Parameters
from .kmeans import assign, lloyd, plus_plus

__all__ = ["GaussianMixture"]

_SHORT_RUN, _MIDDLE_RUN = 12, 30
"""Iterations after which three quarters of the restarts, and then all but a few, are given up."""


def expect(
    Z: torch.Tensor, eta: torch.Tensor, model: str, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """The E-step and the sums the M-step needs, in one pass over the rows.

    Parameters
    ----------
    Z : torch.Tensor of shape (n, d)
    eta : torch.Tensor of shape (R, K, F)
    model : str
    dtype : torch.dtype
        Of the products; the sums over blocks are kept in the widest float.

    Returns
    -------
    moments : torch.Tensor of shape (R, K, F)
        Responsibilities times phi, summed over the rows.
    log_likelihood : torch.Tensor of shape (R,)
        Summed over the rows, without h(x).
    """
    n_restarts, n_components, width = eta.shape
    flat = eta.reshape(-1, width).to(dtype)
    moments = eta.new_zeros(n_restarts * n_components, width)
    log_likelihood = eta.new_zeros(n_restarts)
    for rows in row_blocks(len(Z), max(len(flat), width)):
        phi = models.features(Z[rows].to(dtype), model)  # (b, F)
        # spots run along the last dimension: reductions over the few components then vectorise
        joint = (flat @ phi.T).view(n_restarts, n_components, -1)  # (R, K, b)
        top = joint.amax(1, keepdim=True)
        joint.sub_(top).exp_()
        norm = joint.sum(1, keepdim=True)
        joint.div_(norm)
        log_likelihood += (norm.log_().add_(top)).sum((1, 2))
        moments += joint.flatten(0, 1) @ phi
    return moments.view(n_restarts, n_components, width), log_likelihood


def hard_moments(Z: torch.Tensor, labels: torch.Tensor, n_components: int, model: str) -> torch.Tensor:
    """Summed features of each component when every row belongs to one: (R, n) labels to (R, K, F)."""
    index = torch.arange(n_components, device=Z.device)[:, None]
    wide = wide_float(Z.device)
    total = torch.zeros((), dtype=wide, device=Z.device)
    for rows in row_blocks(len(Z), max(labels.shape[0] * n_components, models.n_features(model, Z.shape[1]))):
        phi = models.features(Z[rows], model)
        one_hot = (labels[:, None, rows] == index).to(Z.dtype)  # (R, K, b)
        total = total + (one_hot @ phi).to(wide)
    return total


class _Run:
    """EM on one working matrix: what stays the same from iteration to iteration."""

    def __init__(
        self, Z: torch.Tensor, model: str, n_components: int, reg: float, generator: torch.Generator
    ):
        self.Z = Z
        self.model = model
        self.reg = reg
        self.generator = generator
        self.scatter = _scatter(Z)
        # fewer rows than this and the component's covariance is singular whatever the rows are
        least = {"full": Z.shape[1] + 1, "diag": 2, "spherical": 2}.get(model, 0.5)
        self.least = min(float(least), 0.5 * len(Z) / n_components)

    def start(self, moments: torch.Tensor) -> Parameters:
        return self._repair(
            models.maximise(moments, self.scatter, self.model, self.Z.shape[1], self.reg), moments[..., 0]
        )

    def _repair(self, parameters: Parameters, counts: torch.Tensor) -> Parameters:
        """Put components that have died on a random row, with the covariance of the others."""
        dead = counts < self.least
        if self.model == "full":
            dead |= torch.linalg.cholesky_ex(parameters.covariances).info > 0
        if not bool(dead.any()):
            return parameters
        n_dead = int(dead.sum())
        rows = torch.randint(len(self.Z), (n_dead,), generator=self.generator).to(self.Z.device)
        parameters.means[dead] = self.Z[rows].to(parameters.means.dtype)
        parameters.weights[dead] = 1 / dead.shape[1]
        parameters.weights /= parameters.weights.sum(1, keepdim=True)
        if self.model not in models.TIED:
            covariances = parameters.covariances
            extra = (1,) * (covariances.ndim - 2)
            share = (parameters.weights * ~dead).view(*dead.shape, *extra)
            pooled = (torch.where(share > 0, covariances, 0) * share).sum(1) / share.sum(1)
            whole = self.scatter / len(self.Z)
            none = {"full": whole, "diag": whole.diagonal(), "spherical": whole.diagonal().mean()}[self.model]
            pooled = torch.where(share.sum(1) > 0, pooled, none)
            covariances[dead] = pooled[:, None].expand_as(covariances)[dead]
        return parameters

    def em(
        self, parameters: Parameters, max_iter: int, tol: float, dtype: torch.dtype
    ) -> tuple[Parameters, torch.Tensor, int, bool]:
        """Up to ``max_iter`` EM steps, or until no restart gains more than ``tol`` a row.

        Returns the parameters, the log-likelihood (R,) of those that entered the last step, the number
        of steps, and whether all restarts converged.
        """
        n, d = self.Z.shape
        previous = torch.full_like(parameters.weights[:, 0], -torch.inf)
        for step in range(1, max_iter + 1):
            eta, common, _ = models.natural(parameters, self.scatter, self.model)
            moments, log_likelihood = expect(self.Z, eta, self.model, dtype)
            log_likelihood = (log_likelihood + common).nan_to_num(nan=-torch.inf)
            parameters = models.maximise(moments, self.scatter, self.model, d, self.reg)
            parameters = self._repair(parameters, moments[..., 0])
            if bool(((log_likelihood - previous).abs() <= tol * n).all()):
                return parameters, log_likelihood, step, True
            previous = log_likelihood
        return parameters, previous, max_iter, False


def _scatter(Z: torch.Tensor) -> torch.Tensor:
    """Sum of z zᵀ over the rows: (d, d) in the widest float."""
    wide = wide_float(Z.device)
    total = torch.zeros(Z.shape[1], Z.shape[1], dtype=wide, device=Z.device)
    for rows in row_blocks(len(Z), Z.shape[1]):
        block = Z[rows].to(wide)
        total += block.T @ block
    return total


def start_labels(
    Z: torch.Tensor, columns: torch.Tensor, n_components: int, n_init: int, generator: torch.Generator
) -> torch.Tensor:
    """Labels of short k-means runs, half on ``columns`` and half on ``Z``: (n_init, n).

    FINDINGS.md 4b: neither space alone finds the best optimum on every section.
    """
    labels = []
    for matrix, n_runs in ((columns, (n_init + 1) // 2), (Z, n_init // 2)):
        if n_runs:
            centres = plus_plus(matrix, n_components, n_runs, generator)
            centres, _, _ = lloyd(matrix, centres, max_iter=10, tol=0.0)
            labels.append(assign(matrix, centres)[0])
    return torch.cat(labels)


class GaussianMixture(DensityMixin, BaseEstimator):
    """Gaussian mixture with scikit-learn's manners and mclust's models.

    Parameters
    ----------
    n_components : int
    covariance_type : str
        ``"tied_spherical"``, ``"spherical"``, ``"tied_diag"``, ``"diag"``, ``"tied"`` or ``"full"``; or
        mclust's name for it: ``"EII"``, ``"VII"``, ``"EEI"``, ``"VVI"``, ``"EEE"``, ``"VVV"``.
    n_init : int
        Restarts. All run a few iterations, the best go on.
    max_iter : int
        EM iterations of the winner.
    tol : float
        EM ends when the mean log-likelihood of a row gains less than this.
    reg_covar : float
        Share of the whole data's covariance (in the model's own form) added to every covariance.
    random_state : int or None
        Seed; None draws a fresh one from the operating system. No global generator is read or moved.
    device : str or torch.device
        ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:N"`` or ``"mps"``.
    batch_size : int or None
        Rows of the random subsample on which the restarts compete when there are more rows than that;
        the winner then runs over all rows. None means 20,000 rows or 100 for each component, whichever
        is more.

    Attributes
    ----------
    weights_ : ndarray of shape (n_components,)
    means_ : ndarray of shape (n_components, n_features)
    covariances_ : ndarray
        Of shape () for tied_spherical, (n_components,) for spherical, (n_features,) for tied_diag,
        (n_components, n_features) for diag, (n_features, n_features) for tied and (n_components,
        n_features, n_features) for full.
    precisions_cholesky_ : ndarray
        Of the same shape; its product with its transpose is the precision.
    converged_ : bool
    n_iter_ : int
    lower_bound_ : float
        Mean log-likelihood of a row, natural logarithm.
    log_likelihood_ : float
        Its sum over the rows.
    n_parameters_ : int
        Free parameters, as mclust counts them.
    restart_log_likelihoods_ : ndarray of shape (n_init,)
        Log-likelihood of each restart when it was given up or won, on the rows the restarts competed on.
    n_features_in_ : int
    """

    def __init__(
        self,
        n_components: int = 1,
        *,
        covariance_type: str = "tied",
        n_init: int = 40,
        max_iter: int = 200,
        tol: float = 1e-5,
        reg_covar: float = 1e-6,
        random_state: int | None = 0,
        device: str | torch.device = "cpu",
        batch_size: int | None = None,
    ):
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.reg_covar = reg_covar
        self.random_state = random_state
        self.device = device
        self.batch_size = batch_size

    def fit(self, X: Any, y: Any = None, *, init: Any = None) -> GaussianMixture:
        """Fit the mixture to ``X`` (n_samples, n_features).

        Parameters
        ----------
        X : array-like or torch.Tensor of shape (n_samples, n_features)
        y : None
            Not used.
        init : array-like of shape (n_samples,) or (n_samples, n_components), optional
            Integer labels 0..K-1 or responsibilities from which EM begins; there are then no restarts.

        Raises
        ------
        InputError
            NaN or infinite entries, fewer rows than components, or parameters out of range.
        """
        self._fit(X, init)
        return self

    def fit_predict(self, X: Any, y: Any = None, *, init: Any = None) -> np.ndarray:
        """Fit, then the most probable component of each row; equal to ``fit(X).predict(X)``."""
        return self._fit(X, init)

    def _fit(self, X: Any, init: Any) -> np.ndarray:
        model = self._check_parameters()
        matrix = check_matrix(self, X, reset=True)
        n = matrix.shape[0]
        if n < self.n_components:
            raise InputError(f"Expected n_samples >= n_components, got n_samples = {n}, {self.n_components}.")
        device = resolve_device(self.device)
        generator = make_generator(base_seed(self.random_state))
        scale, Z = _to_working(matrix, model, device)
        run = _Run(Z, model, self.n_components, self.reg_covar, generator)
        if init is None:
            parameters = self._search(matrix, run)
        else:
            responsibilities = self._check_init(init, n).to(Z)
            phi_sums = torch.zeros((), dtype=wide_float(device), device=device)
            for rows in row_blocks(n, models.n_features(model, Z.shape[1])):
                phi_sums = phi_sums + (responsibilities[rows].T @ models.features(Z[rows], model)).to(
                    phi_sums
                )
            parameters = run.start(phi_sums[None])
        parameters, log_likelihood, steps, converged = run.em(
            parameters, self.max_iter, self.tol, wide_float(device)
        )
        if init is not None:
            self.restart_log_likelihoods_ = log_likelihood.cpu().numpy()
        self.n_iter_, self.converged_ = steps, converged
        self.weights_, self.means_, self.covariances_ = scale.to_data(parameters, model)
        self.precisions_cholesky_ = models.precisions_cholesky(self.covariances_, model)
        self.n_parameters_ = models.count_parameters(model, self.n_components, matrix.shape[1])
        joint = self._log_joint(matrix)
        self.log_likelihood_ = float(torch.logsumexp(joint, 0).sum())
        self.lower_bound_ = self.log_likelihood_ / n
        labels = joint.argmax(0).numpy()
        found = len(np.unique(labels))
        if found < self.n_components:
            warnings.warn(
                f"{self.n_components} components were asked for, but only {found} are the most probable one of "
                "some row. Ask for fewer components, or for more restarts (n_init).",
                AmilstWarning,
                stacklevel=3,
            )
        return labels

    def _search(self, matrix: torch.Tensor, run: _Run) -> Parameters:
        """The best of the restarts, on a subsample where there are many rows."""
        n = len(run.Z)
        size = self.batch_size or max(20_000, 100 * self.n_components)
        Z = run.Z
        if n > size:
            chosen = torch.randperm(n, generator=run.generator)[:size].sort().values
            matrix, Z = matrix[chosen.to(matrix.device)], Z[chosen.to(Z.device)]
            run = _Run(Z, run.model, self.n_components, self.reg_covar, run.generator)
        mean, variance = column_moments(matrix)
        columns = affine(
            matrix, mean, torch.where(variance > 0, variance, 1).rsqrt(), Z.device, torch.float32
        )
        labels = start_labels(Z, columns, self.n_components, self.n_init, run.generator)
        parameters = run.start(hard_moments(Z, labels, self.n_components, run.model))
        results = torch.full((self.n_init,), -torch.inf, dtype=wide_float(Z.device), device=Z.device)
        kept = torch.arange(self.n_init, device=Z.device)
        for steps, share in ((_SHORT_RUN, 4), (_MIDDLE_RUN, 3), (self.max_iter, 0)):
            parameters, log_likelihood, _, _ = run.em(
                parameters, min(steps, self.max_iter), max(self.tol, 1e-5), Z.dtype
            )
            results[kept] = log_likelihood
            n_kept = -(-len(kept) // share) if share else 1
            # stable: of equal likelihoods the earlier restart stays
            best = torch.sort(log_likelihood, descending=True, stable=True).indices[:n_kept]
            parameters, kept = parameters[best], kept[best]
        self.restart_log_likelihoods_ = results.cpu().numpy()
        return parameters

    def _check_parameters(self) -> str:
        check_number("n_components", self.n_components, 1, integer=True)
        check_number("n_init", self.n_init, 1, integer=True)
        check_number("max_iter", self.max_iter, 1, integer=True)
        check_number("tol", self.tol, 0)
        check_number("reg_covar", self.reg_covar, 0, strict=True)
        if self.batch_size is not None:
            check_number("batch_size", self.batch_size, self.n_components, integer=True)
        return models.canonical_model(self.covariance_type)

    def _check_init(self, init: Any, n: int) -> torch.Tensor:
        given = torch.as_tensor(init.detach() if isinstance(init, torch.Tensor) else np.asarray(init))
        if given.ndim == 1 and len(given) == n and not given.is_floating_point():
            if 0 <= int(given.min()) and int(given.max()) < self.n_components:
                return torch.nn.functional.one_hot(given.long(), self.n_components)
        elif given.shape == (n, self.n_components) and bool((given >= 0).all() & (given.sum(1) > 0).all()):
            return given / given.sum(1, keepdim=True)
        raise InputError(
            f"init must hold {n} integer labels from 0 to {self.n_components - 1}, or responsibilities of shape "
            f"({n}, {self.n_components}), not negative and none of the rows zero; found {tuple(given.shape)}."
        )

    def _log_joint(self, matrix: torch.Tensor) -> torch.Tensor:
        """log of weight times density, (n_components, n_samples), on the CPU."""
        model = models.canonical_model(self.covariance_type)
        device = resolve_device(self.device)
        wide = wide_float(device)
        shift = self.weights_ @ self.means_
        weights, means, factors = (
            torch.as_tensor(value).to(device=device, dtype=wide)
            for value in (self.weights_, self.means_ - shift, self.precisions_cholesky_)
        )
        origin = torch.from_numpy(shift).to(matrix.device, wide_float(matrix.device))
        out = torch.empty(len(weights), len(matrix), dtype=wide)
        for rows in row_blocks(len(matrix), matrix.shape[1]):
            block = (matrix[rows].to(origin.dtype) - origin).to(device, wide)
            out[:, rows] = models.log_joint(block, weights, means, factors, model).cpu()
        return out

    def _checked_log_joint(self, X: Any) -> torch.Tensor:
        check_fitted(self, "means_")
        return self._log_joint(check_matrix(self, X, reset=False))

    def predict(self, X: Any) -> np.ndarray:
        """Most probable component of each row of ``X``, the first of equals; (n_samples,), int64."""
        return self._checked_log_joint(X).argmax(0).numpy()

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probability of each component for each row of ``X``; (n_samples, n_components), rows sum to 1."""
        return torch.softmax(self._checked_log_joint(X), 0).T.contiguous().numpy()

    def score_samples(self, X: Any) -> np.ndarray:
        """Log-likelihood of each row of ``X``; (n_samples,)."""
        return torch.logsumexp(self._checked_log_joint(X), 0).numpy()

    def score(self, X: Any, y: Any = None) -> float:
        """Mean log-likelihood of the rows of ``X``."""
        return float(self.score_samples(X).mean())

    def bic(self, X: Any) -> float:
        """Bayesian information criterion on ``X``, lower is better: mclust's, with the sign turned."""
        log_likelihood = self.score_samples(X)
        return float(-2 * log_likelihood.sum() + self.n_parameters_ * math.log(len(log_likelihood)))

    def aic(self, X: Any) -> float:
        """Akaike information criterion on ``X``, lower is better."""
        return float(-2 * self.score_samples(X).sum() + 2 * self.n_parameters_)

    def sample(self, n_samples: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Draw rows from the fitted mixture, by the estimator's own seed.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
        labels : ndarray of shape (n_samples,), int64
            The component of each row; rows are grouped by component.
        """
        check_fitted(self, "means_")
        check_number("n_samples", n_samples, 1, integer=True)
        random = np.random.default_rng(base_seed(self.random_state))
        labels = np.repeat(np.arange(self.n_components), random.multinomial(n_samples, self.weights_))
        noise = random.standard_normal((n_samples, self.n_features_in_))
        model = models.canonical_model(self.covariance_type)
        factors = self.precisions_cholesky_
        if model in ("tied", "full"):
            for k in range(self.n_components):
                rows = labels == k
                factor = factors if model == "tied" else factors[k]
                noise[rows] = np.linalg.solve(factor.T, noise[rows].T).T
        else:
            shaped = factors[labels] if model in ("diag", "spherical") else factors
            noise /= shaped[:, None] if model == "spherical" else shaped
        return self.means_[labels] + noise, labels.astype(np.int64)


def _to_working(
    matrix: torch.Tensor, model: str, device: torch.device
) -> tuple[models.WorkingScale, torch.Tensor]:
    """The working scale of a matrix, and the matrix brought to it: float32, on ``device``."""
    mean, variance = column_moments(matrix)
    if model in ("tied", "full"):
        wide = wide_float(matrix.device)
        total = torch.zeros(len(mean), len(mean), dtype=wide, device=matrix.device)
        for rows in row_blocks(len(matrix), matrix.shape[1]):
            block = matrix[rows].to(wide) - mean
            total += block.T @ block
        total = total / len(matrix)
    else:
        total = torch.diag(variance)
    scale = models.WorkingScale.of(mean.double().cpu().numpy(), total.double().cpu().numpy(), model)
    return scale, affine(matrix, mean, torch.from_numpy(scale.forward), device, torch.float32)
