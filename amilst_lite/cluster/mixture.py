"""Gaussian mixtures in torch: many restarts run as one batch of tensors, the best likelihood kept.

What R's mclust and scikit-learn's ``GaussianMixture`` fit, with as many restarts as it takes.
`covariance.py` holds the six models; here are the starts, the EM loop and the estimator.

Sources: Dempster, Laird and Rubin 1977 (EM); Biernacki, Celeux and Govaert 2003 (many short runs,
then a long one); Fraley and Raftery 2002 (mclust).
"""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
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
    block_threads,
    check_fitted,
    check_matrix,
    check_number,
    column_moments,
    over_blocks,
    scatter,
    wide_float,
)
from .covariance import Parameters, Setting, WorkingScale
from .em import Fits, Rows, agglomerated_labels, fill_empty, fit_batch, kmeans_labels

__all__ = ["GaussianMixture"]

_RUNS = ((20, 2), (50, 4))
"""Steps, and the share of the restarts that goes on after them: a half, a quarter of these; then to the end."""
_FINER = 0.1
"""Restarts from k-means run to this share of ``tol``: a plateau must not decide between them."""
_FLOAT32_REG = 1e-6
"""Least regularisation while the products are in float32, whose rounding it has to exceed."""
_TRIED = 4
"""Finalists run to the end in search of one that leaves no component empty."""
_TIE = 1e-4
"""Log-likelihoods that agree to this share of their size count as equal."""


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
        EM ends when the log-likelihood changes by no more than this share of its size, the rule of mclust:
        ``|change| < tol (1 + |log-likelihood|)``.
    reg_covar : float
        Share of the whole data's covariance (in the model's own form) added to every covariance.
    random_state : int or None
        Seed; None draws a fresh one from the operating system. No global generator is read or moved.
    device : str or torch.device
        ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:N"`` or ``"mps"``.
    covariance_prior : float
        Rows' worth of belief that components are spherical in the data's units: each covariance is averaged
        with a sphere of its own mean variance, the weights being its rows and this number. 0 is maximum
        likelihood; restarts then compete by it, else by the likelihood less the prior's penalty.
    init_params : str
        ``"auto"``: the first restart begins from model-based agglomeration, as mclust does, the others
        from k-means; ``"kmeans"`` or ``"agglomeration"`` (one restart, mclust's own): only these.
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
        EM steps over all rows of the run that was kept, after those in which the restarts competed.
    lower_bound_ : float
        Mean log-likelihood of a row, natural logarithm.
    log_likelihood_ : float
        Its sum over the rows.
    n_parameters_ : int
        Free parameters, as mclust counts them.
    restart_log_likelihoods_ : ndarray of shape (n_init,)
        Log-likelihood of each restart (less the prior's penalty) when it was given up or went on to the end,
        on the rows the restarts competed on; in float32, so good to six digits. NaN after ``init``.
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
        reg_covar: float = 1e-8,
        covariance_prior: float = 0.0,
        init_params: str = "auto",
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
        self.covariance_prior = covariance_prior
        self.init_params = init_params
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
        n, d = matrix.shape
        if n < self.n_components:
            raise InputError(
                f"Expected n_samples >= n_components, got n_samples={n}, n_components={self.n_components}. "
                "Ask for fewer components."
            )
        device = resolve_device(self.device)
        generator = make_generator(base_seed(self.random_state))
        with block_threads():
            rows, setting = self._to_working(matrix, model, device)
            if init is None:
                starts, tol = self._search(matrix, rows, setting, generator)
            else:
                responsibilities = self._check_init(init, n).to(torch.float32).to(device)
                starts = models.maximise(rows.soft_moments(responsibilities), setting)
                tol = torch.tensor([self.tol], dtype=torch.float64)
                self.restart_log_likelihoods_ = np.full(1, np.nan)
            labels = self._finish(matrix, rows, setting, starts, tol, generator)
        self.n_parameters_ = models.count_parameters(model, self.n_components, d)
        return labels

    def _finish(
        self,
        matrix: torch.Tensor,
        rows: Rows,
        setting: Setting,
        starts: Parameters,
        tol: torch.Tensor,
        generator: torch.Generator,
    ) -> np.ndarray:
        """Run the first of ``starts`` that leaves no component without rows to the end; return the labels.

        If none does, empty components take half of the largest ones, and EM goes on from there.
        """
        finished: list[tuple[int, Fits]] = []
        labels = np.empty(0, dtype=np.int64)
        given = torch.arange(len(tol)).split(1)[:_TRIED]
        for attempt in range(len(given) + _TRIED):
            chosen = given[min(attempt, len(given) - 1)]
            start = starts[chosen]
            if attempt >= len(given):
                filled = fill_empty(rows, torch.from_numpy(labels).to(rows.base.device), self.n_components)
                start = models.maximise(rows.hard_moments(filled[None], self.n_components), setting)
            fits = self._run(rows, start, setting, tol[chosen], generator)
            labels = self._set_fitted(fits, setting, matrix)
            finished.append((len(np.unique(labels)), fits))
            if finished[-1][0] == self.n_components:
                return labels
        most, fits = max(finished, key=lambda pair: pair[0])  # the first of equals
        warnings.warn(
            f"{self.n_components} components were asked for, but only {most} are the most probable one of any "
            "row. Ask for fewer components, or for more restarts (n_init).",
            AmilstWarning,
            stacklevel=4,
        )
        return self._set_fitted(fits, setting, matrix)

    def _to_working(self, matrix: torch.Tensor, model: str, device: torch.device) -> tuple[Rows, Setting]:
        """The rows in the model's working scale, and what EM needs to know about them."""
        mean, variance = column_moments(matrix)
        total = scatter(matrix, mean) / len(matrix) if model in ("tied", "full") else torch.diag(variance)
        scale = WorkingScale.of(mean.cpu().double().numpy(), total.cpu().double().numpy(), model)
        base = torch.ones(1 + scale.forward.shape[1], len(matrix), device=device)
        affine(matrix, mean, torch.from_numpy(scale.forward), out=base[1:].T)
        return Rows(base, model), self._setting(base, model, scale)

    def _setting(self, base: torch.Tensor, model: str, scale: WorkingScale) -> Setting:
        working = base[1:].T
        spread = scatter(working, torch.zeros(working.shape[1])).cpu().double()
        return Setting(model, len(working), spread, self.reg_covar, self.covariance_prior, scale)

    def _search(
        self, matrix: torch.Tensor, rows: Rows, setting: Setting, generator: torch.Generator
    ) -> tuple[Parameters, torch.Tensor]:
        """The best restarts, the preferred one first, and their tolerances; by a subsample of many rows.

        As Biernacki, Celeux and Govaert (2003) advise, all run for a few steps and only the best go on.
        """
        size = self._search_size()
        if rows.n > size:
            chosen = torch.randperm(rows.n, generator=generator)[:size].sort().values
            matrix = matrix[chosen.to(matrix.device)]
            rows = Rows(rows.base[:, chosen.to(rows.base.device)], rows.model)
            setting = self._setting(rows.base, rows.model, setting.scale)
        setting = _for_dtype(setting, torch.float32)
        # one component has one optimum
        n_init = 1 if self.n_components == 1 or self.init_params == "agglomeration" else self.n_init
        n_agglomerated = 0 if self.init_params == "kmeans" else 1
        labels = self._start_labels(matrix.cpu().double().numpy(), rows, n_agglomerated, n_init, generator)
        parameters = models.maximise(rows.hard_moments(labels, self.n_components), setting)

        tol = torch.full((len(labels),), self.tol * _FINER, dtype=torch.float64)
        tol[:n_agglomerated] = self.tol
        results = torch.full((len(labels),), -torch.inf, dtype=torch.float64)
        contenders = torch.arange(len(labels))
        left = self.max_iter
        for steps, share in (*_RUNS, (self.max_iter, 1)):
            if left > 0:
                fits = fit_batch(
                    rows,
                    parameters[contenders],
                    setting,
                    max_iter=min(steps, left),
                    tol=tol[contenders],
                    dtype=torch.float32,
                    generator=generator,
                )
                parameters[contenders] = fits.parameters
                results[contenders] = fits.objective
                left -= steps
            contenders = _best(results, contenders, -(-len(contenders) // share), always=n_agglomerated)
        self.restart_log_likelihoods_ = results.numpy()
        order = _preferred(results, contenders, n_agglomerated)
        return parameters[order], tol[order]

    def _start_labels(
        self, X: np.ndarray, rows: Rows, n_agglomerated: int, n_init: int, generator: torch.Generator
    ) -> torch.Tensor:
        """Starting labels of all restarts, the agglomeration first: (n_init, n) on the device."""
        device = rows.base.device
        labels = []
        if n_agglomerated:
            labels.append(agglomerated_labels(X, self.n_components).to(device))
        if n_init > n_agglomerated:
            labels.append(kmeans_labels(X, self.n_components, n_init - n_agglomerated, device, generator))
        return torch.cat(labels)

    def _run(
        self, rows: Rows, start: Parameters, setting: Setting, tol: torch.Tensor, generator: torch.Generator
    ) -> Fits:
        """EM to convergence on all rows; many are run in float32 before the device's widest float."""
        wide = wide_float(rows.base.device)
        runs = [(wide, self.max_iter)]
        if rows.n > self._search_size() and self.max_iter > 1:
            runs.insert(0, (torch.float32, self.max_iter - 1))
        steps = 0
        for dtype, limit in runs:
            fits = fit_batch(
                rows,
                start,
                _for_dtype(setting, dtype),
                max_iter=limit - steps,
                tol=tol,
                dtype=dtype,
                generator=generator,
            )
            start, steps = fits.parameters, steps + int(fits.steps[0])
        fits.steps[0] = steps
        return fits

    def _search_size(self) -> int:
        """Rows on which the restarts compete."""
        return self.batch_size or max(20_000, 100 * self.n_components)

    def _set_fitted(self, fits: Fits, setting: Setting, matrix: torch.Tensor) -> np.ndarray:
        """Set the fitted attributes from the only mixture in ``fits``; return the labels of the rows."""
        self.n_iter_, self.converged_ = int(fits.steps[0]), bool(fits.converged[0])
        self.weights_, self.means_, self.covariances_ = setting.scale.to_data(fits.parameters, setting.model)
        self.precisions_cholesky_ = models.precisions_cholesky(self.covariances_, setting.model)
        joint = self._log_joint(matrix)
        self.log_likelihood_ = float(torch.logsumexp(joint, 0).sum())
        self.lower_bound_ = self.log_likelihood_ / len(matrix)
        return joint.argmax(0).numpy()

    def _check_parameters(self) -> str:
        check_number("n_components", self.n_components, 1, integer=True)
        check_number("n_init", self.n_init, 1, integer=True)
        check_number("max_iter", self.max_iter, 1, integer=True)
        check_number("tol", self.tol, 0)
        check_number("covariance_prior", self.covariance_prior, 0)
        if self.init_params not in ("auto", "kmeans", "agglomeration"):
            raise InputError(
                f"init_params must be 'auto', 'kmeans' or 'agglomeration'; found {self.init_params!r}."
            )
        check_number("reg_covar", self.reg_covar, 0, strict=True)
        if self.batch_size is not None:
            check_number("batch_size", self.batch_size, self.n_components, integer=True)
        return models.canonical_model(self.covariance_type)

    def _check_init(self, init: Any, n: int) -> torch.Tensor:
        given = torch.as_tensor(init.detach() if isinstance(init, torch.Tensor) else np.asarray(init))
        if given.ndim == 1 and len(given) == n and not given.is_floating_point():
            if int(given.min()) >= 0 and int(given.max()) < self.n_components:
                return torch.nn.functional.one_hot(given.long(), self.n_components)
        elif given.shape == (n, self.n_components) and bool((given >= 0).all() & (given.sum(1) > 0).all()):
            return given / given.sum(1, keepdim=True)
        raise InputError(
            f"init must hold {n} integer labels from 0 to {self.n_components - 1}, or responsibilities of "
            f"shape ({n}, {self.n_components}), not negative and no row zero; found {tuple(given.shape)}."
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

        def write(rows: slice) -> None:
            block = (matrix[rows].to(origin.dtype) - origin).to(device, wide)
            out[:, rows] = models.log_joint(block, weights, means, factors, model).cpu()

        for _ in over_blocks(write, len(matrix), matrix.shape[1], device):
            pass
        return out

    def _checked_log_joint(self, X: Any) -> torch.Tensor:
        check_fitted(self, "means_")
        matrix = check_matrix(self, X, reset=False)
        with block_threads():
            return self._log_joint(matrix)

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


def _for_dtype(setting: Setting, dtype: torch.dtype) -> Setting:
    """The setting with a regularisation that ``dtype`` can resolve."""
    return setting if dtype == torch.float64 else replace(setting, reg=max(setting.reg, _FLOAT32_REG))


def _best(results: torch.Tensor, contenders: torch.Tensor, n_kept: int, always: int) -> torch.Tensor:
    """The ``n_kept`` contenders of highest objective, and the first ``always`` in any case, in order."""
    order = torch.sort(results[contenders], descending=True, stable=True).indices
    kept = contenders[order[:n_kept]]
    return torch.unique(torch.cat([kept, contenders[:always]]))


def _preferred(results: torch.Tensor, contenders: torch.Tensor, n_agglomerated: int) -> torch.Tensor:
    """Contenders by falling objective, the earlier of equals first, but in front the one from agglomeration
    if it ties with the best: it is the same for every seed."""
    order = contenders[torch.sort(results[contenders], descending=True, stable=True).indices]
    best = results[order[0]]
    if n_agglomerated and results[0] >= best - _TIE * best.abs():
        order = torch.cat([order[order == 0], order[order != 0]])
    return order
