"""Gaussian mixtures in torch: many restarts run as one batch of tensors, the best likelihood is kept.

The models are those of R's mclust and of scikit-learn's ``GaussianMixture``; `covariance.py` holds their
formulas, `starts.py` the labels that EM starts from.

Sources: Dempster, Laird and Rubin 1977 (EM); Biernacki, Celeux and Govaert 2003 (many short runs,
then a long one); Fraley and Raftery 2002 (mclust).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, DensityMixin

from ..distributed import alone, ranks
from ..errors import InputError, warn
from ..runtime import make_generator, resolve_device
from ..validation import check_fitted, check_number, check_random_state, check_tensor
from . import covariance as models
from .blocks import affine, block_threads, column_moments, over_blocks, scatter
from .covariance import Parameters, Setting, WorkingScale
from .features import TIED, Rows
from .starts import agglomerated_labels, kmeans_labels

__all__ = ["GaussianMixture"]

_RUNS = ((20, 2), (50, 4))
"""EM steps, and the divisor of the number of restarts that continue after them; the rest run to convergence."""
_FINER = 0.1
"""Restarts from k-means use this share of ``tol``, so that a plateau does not decide between them."""
_FLOAT32_REG = 1e-6
"""Least regularization while the products are in float32; it has to exceed their rounding."""
_TRIED = 4
"""Restarts run to convergence in search of one that leaves no component empty."""
_TIE = 1e-4
"""Log-likelihoods that agree to this share of their size count as equal."""


class GaussianMixture(DensityMixin, BaseEstimator):
    """Gaussian mixture with mclust's covariance models, following scikit-learn's conventions.

    Parameters
    ----------
    n_components : int
    covariance_type : str
        ``"tied_spherical"``, ``"spherical"``, ``"tied_diag"``, ``"diag"``, ``"tied"`` or ``"full"``; or
        mclust's name for it: ``"EII"``, ``"VII"``, ``"EEI"``, ``"VVI"``, ``"EEE"``, ``"VVV"``.
    n_init : int
        Restarts. All run a few EM steps, the best continue.
    max_iter : int
        EM steps of the restart that is kept.
    tol : float
        Convergence threshold relative to the log-likelihood, as in mclust: EM stops when
        ``|change| < tol (1 + |log-likelihood|)``.
    reg_covar : float
        Share of the covariance of the whole data (in the model's form) that is added to every covariance.
    covariance_prior : float
        Shrinkage towards a spherical covariance: prior strength in pseudo-observations. Each covariance is
        averaged with the spherical one of the same mean variance (in the units of the data); the weights
        are its number of rows and this number. 0: maximum likelihood. Otherwise restarts are compared by
        the log-likelihood minus the prior's penalty.
    init_params : {"auto", "kmeans", "agglomeration"}
        ``"auto"``: the first restart starts from model-based agglomeration, as in mclust, the others
        from k-means. ``"agglomeration"``: this one restart.
    random_state : int or None
        Seed, >= 0 and < 2**32; None uses a new one from the operating system. Global generators are not used.
    device : str or torch.device
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
    batch_size : int or None
        With more rows than this, restarts are compared on a random subsample of this size; the best then
        runs over all rows. None: 20,000 or 100 per component, whichever is larger.

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
        EM steps of the final run over all rows, not counting those of the comparison of restarts.
    lower_bound_ : float
        Mean log-likelihood (natural logarithm) per row.
    log_likelihood_ : float
        Its sum over the rows.
    n_parameters_ : int
        Number of free parameters, as mclust counts them.
    restart_log_likelihoods_ : ndarray of shape (n_init,)
        Last log-likelihood of each restart (minus the prior's penalty), on the rows on which restarts were
        compared; computed in float32, hence accurate to about six digits. NaN with ``init``.
    n_features_in_ : int

    Warns
    -----
    AmilstWarning
        Some components are the most probable one of no row.

    Notes
    -----
    The agglomeration holds an n × n array, of at most 2,000 rows: with more, a sample is agglomerated.
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
            Ignored.
        init : array-like of shape (n_samples,) or (n_samples, n_components), optional
            Integer labels 0..K-1 or responsibilities from which EM starts, without restarts.

        Raises
        ------
        InputError
            NaN or infinite entries, fewer rows than components, or parameters out of range.
        """
        self._fit(X, init)
        return self

    def fit_predict(self, X: Any, y: Any = None, *, init: Any = None) -> np.ndarray:
        """Fit and return the most probable component of each row; equal to ``fit(X).predict(X)``."""
        return self._fit(X, init)

    def _fit(self, X: Any, init: Any) -> np.ndarray:
        model, seed = self._check_parameters()
        device = resolve_device(self.device)
        matrix = check_tensor(X, self, reset=True)
        n, d = matrix.shape
        if n < self.n_components:
            raise InputError(
                f"Expected n_samples >= n_components, got n_samples={n}, n_components={self.n_components}. "
                f"Set n_components to at most {n}."
            )
        generator = make_generator(seed)
        with alone(), block_threads():
            responsibilities = None if init is None else self._check_init(init, n)
            rows, setting = self.to_working(matrix, model, device)
            if responsibilities is None:
                starts, tol = self._search(matrix, rows, setting, generator)
            else:
                moments = rows.soft_moments(responsibilities.to(device, torch.float32))
                starts = models.maximize(moments, setting)
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
        """Run the ``starts`` to convergence until one leaves no component empty; return its labels.

        If all do, empty components receive half of the largest ones, and EM continues from there.
        """
        finished: list[tuple[int, _Fits]] = []
        labels = np.empty(0, dtype=np.int64)
        given = torch.arange(len(tol)).split(1)[:_TRIED]
        for attempt in range(len(given) + _TRIED):
            chosen = given[min(attempt, len(given) - 1)]
            start = starts[chosen]
            if attempt >= len(given):
                filled = _split_largest(
                    rows, torch.from_numpy(labels).to(rows.base.device), self.n_components
                )
                start = models.maximize(rows.hard_moments(filled[None], self.n_components), setting)
            fits = self._run(rows, start, setting, tol[chosen], generator)
            labels = self._set_fitted(fits, setting, matrix)
            finished.append((len(np.unique(labels)), fits))
            if finished[-1][0] == self.n_components:
                return labels
        most, fits = max(finished, key=lambda pair: pair[0])  # the first of equals
        warn(
            f"Only {most} of n_components={self.n_components} components are the most probable one of any row. "
            "Set fewer components or more restarts (n_init)."
        )
        return self._set_fitted(fits, setting, matrix)

    def to_working(self, matrix: torch.Tensor, model: str, device: torch.device) -> tuple[Rows, Setting]:
        """The rows in the model's working scale, and the constants of EM."""
        mean, variance = column_moments(matrix)
        total = (
            scatter(matrix, mean) / ranks().sum(len(matrix))
            if model in ("tied", "full")
            else torch.diag(variance)
        )
        scale = WorkingScale.of(mean.cpu().numpy(), total.cpu().numpy(), model)
        base = torch.ones(1 + scale.forward.shape[1], len(matrix), dtype=torch.float32, device=device)
        affine(matrix, mean, torch.from_numpy(scale.forward), out=base[1:].T)
        return Rows(base, model), self.setting(base, model, scale)

    def setting(self, base: torch.Tensor, model: str, scale: WorkingScale) -> Setting:
        """The constants of EM for rows in the working scale."""
        working = base[1:].T
        second = scatter(working, working.new_zeros(working.shape[1]))
        return Setting(model, ranks().sum(len(working)), second, self.reg_covar, self.covariance_prior, scale)

    def _search(
        self, matrix: torch.Tensor, rows: Rows, setting: Setting, generator: torch.Generator
    ) -> tuple[Parameters, torch.Tensor]:
        """The best restarts in order of preference, and their tolerances; from a subsample of many rows.

        All run for a few steps and only the best continue (Biernacki, Celeux and Govaert 2003).
        """
        size = self._search_size()
        if rows.n > size:
            chosen = torch.randperm(rows.n, generator=generator)[:size].sort().values
            matrix = matrix[chosen.to(matrix.device)]
            rows = Rows(rows.base[:, chosen.to(rows.base.device)], rows.model)
            setting = self.setting(rows.base, rows.model, setting.scale)
        setting = _for_dtype(setting, torch.float32)
        # one component has a single optimum
        n_init = 1 if self.n_components == 1 or self.init_params == "agglomeration" else self.n_init
        n_agglomerated = 0 if self.init_params == "kmeans" else 1
        labels = self._start_labels(matrix.cpu().double().numpy(), rows, n_agglomerated, n_init, generator)
        parameters = models.maximize(rows.hard_moments(labels, self.n_components), setting)

        tol = torch.full((len(labels),), self.tol * _FINER, dtype=torch.float64)
        tol[:n_agglomerated] = self.tol
        results = torch.full((len(labels),), -torch.inf, dtype=torch.float64)
        candidates = torch.arange(len(labels))
        left = self.max_iter
        for steps, share in (*_RUNS, (self.max_iter, 1)):
            if left > 0:
                steps = min(steps, left)
                fits = em(
                    rows, parameters[candidates], setting, steps, tol[candidates], torch.float32, generator
                )
                parameters[candidates] = fits.parameters
                results[candidates] = fits.objective.cpu()
                left -= steps
            candidates = _best(results, candidates, -(-len(candidates) // share), always=n_agglomerated)
        self.restart_log_likelihoods_ = results.numpy()
        order = _preferred(results, candidates, n_agglomerated)
        return parameters[order], tol[order]

    def _start_labels(
        self, X: np.ndarray, rows: Rows, n_agglomerated: int, n_init: int, generator: torch.Generator
    ) -> torch.Tensor:
        """Starting labels of all restarts, agglomeration first: (n_init, n) on the device."""
        device = rows.base.device
        labels = []
        if n_agglomerated:
            labels.append(agglomerated_labels(X, self.n_components).to(device))
        if n_init > n_agglomerated:
            labels.append(kmeans_labels(X, self.n_components, n_init - n_agglomerated, device, generator))
        return torch.cat(labels)

    def _run(
        self, rows: Rows, start: Parameters, setting: Setting, tol: torch.Tensor, generator: torch.Generator
    ) -> _Fits:
        """EM to convergence on all rows in float64; with many rows, first in float32."""
        runs = [(torch.float64, self.max_iter)]
        if rows.n > self._search_size() and self.max_iter > 1:
            runs.insert(0, (torch.float32, self.max_iter - 1))
        steps = 0
        for dtype, limit in runs:
            fits = em(rows, start, _for_dtype(setting, dtype), limit - steps, tol, dtype, generator)
            start, steps = fits.parameters, steps + int(fits.steps[0])
        fits.steps[0] = steps
        return fits

    def _search_size(self) -> int:
        """Rows on which the restarts are compared."""
        return self.batch_size or max(20_000, 100 * self.n_components)

    def _set_fitted(self, fits: _Fits, setting: Setting, matrix: torch.Tensor) -> np.ndarray:
        """Set the fitted attributes from the only mixture in ``fits``; return the labels of the rows."""
        self.n_iter_, self.converged_ = int(fits.steps[0]), bool(fits.converged[0])
        self.weights_, self.means_, self.covariances_ = setting.scale.to_data(fits.parameters, setting.model)
        self.precisions_cholesky_ = models.precisions_cholesky(self.covariances_, setting.model)
        joint = self._log_joint(matrix)
        self.log_likelihood_ = float(torch.logsumexp(joint, 0).sum())
        self.lower_bound_ = self.log_likelihood_ / len(matrix)
        return joint.argmax(0).numpy()

    def _check_parameters(self) -> tuple[str, int]:
        """Check all parameters but the device; return the name of the model and the seed."""
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
        return models.canonical_model(self.covariance_type), check_random_state(self.random_state)

    def _check_init(self, init: Any, n: int) -> torch.Tensor:
        given = torch.as_tensor(init.detach() if isinstance(init, torch.Tensor) else np.asarray(init))
        if given.ndim == 1 and len(given) == n and not given.is_floating_point():
            if int(given.min()) >= 0 and int(given.max()) < self.n_components:
                return torch.nn.functional.one_hot(given.long(), self.n_components)
        elif given.shape == (n, self.n_components) and bool((given >= 0).all() & (given.sum(1) > 0).all()):
            return given / given.sum(1, keepdim=True)
        raise InputError(
            f"init must contain {n} integer labels from 0 to {self.n_components - 1}, or responsibilities >= 0 "
            f"of shape ({n}, {self.n_components}) without zero rows; found shape {tuple(given.shape)}."
        )

    def _log_joint(self, matrix: torch.Tensor) -> torch.Tensor:
        """log of weight times density, (n_components, n_samples), on the CPU."""
        model = models.canonical_model(self.covariance_type)
        device = resolve_device(self.device)
        shift = self.weights_ @ self.means_
        weights, means, factors = (
            torch.as_tensor(value, dtype=torch.float64).to(device)
            for value in (self.weights_, self.means_ - shift, self.precisions_cholesky_)
        )
        origin = torch.from_numpy(shift).to(matrix.device)
        out = torch.empty(len(weights), len(matrix), dtype=torch.float64)

        def write(rows: slice) -> None:
            block = (matrix[rows].double() - origin).to(device)
            out[:, rows] = models.log_joint(block, weights, means, factors, model).cpu()

        for _ in over_blocks(write, len(matrix), matrix.shape[1], device):
            pass
        return out

    def _checked_log_joint(self, X: Any) -> torch.Tensor:
        check_fitted(self, "means_")
        matrix = check_tensor(X, self, reset=False)
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
        """Bayesian information criterion on ``X``; lower is better (mclust's has the opposite sign)."""
        log_likelihood = self.score_samples(X)
        return float(-2 * log_likelihood.sum() + self.n_parameters_ * math.log(len(log_likelihood)))

    def aic(self, X: Any) -> float:
        """Akaike information criterion on ``X``, lower is better."""
        return float(-2 * self.score_samples(X).sum() + 2 * self.n_parameters_)

    def sample(self, n_samples: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Draw rows from the fitted mixture, with the estimator's ``random_state``.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
        labels : ndarray of shape (n_samples,), int64
            The component of each row; rows are grouped by component.
        """
        check_fitted(self, "means_")
        check_number("n_samples", n_samples, 1, integer=True)
        random = np.random.default_rng(check_random_state(self.random_state))
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


@dataclass
class _Fits:
    """State of EM for R mixtures.

    ``objective`` (log-likelihood minus the prior's penalty, before the last M-step), number of ``steps``,
    and ``converged``, each (R,).
    """

    parameters: Parameters
    objective: torch.Tensor
    steps: torch.Tensor
    converged: torch.Tensor


def em(
    rows: Rows,
    start: Parameters,
    setting: Setting,
    max_iter: int,
    tol: torch.Tensor,
    dtype: torch.dtype,
    generator: torch.Generator,
) -> _Fits:
    """Expectation-maximization for a batch of R mixtures, each until its objective hardly changes.

    The restarts differ in their parameters only: one matrix product serves them all, and those that have
    converged leave the batch. They stop when ``|change| < tol (1 + |objective|)``, with ``tol`` (R,). Components
    of too few rows start again elsewhere. The host waits for a GPU once in a step, at its end.
    """
    n_restarts, device = len(start.weights), start.weights.device
    active = torch.arange(n_restarts)
    fits = _Fits(
        start[active],
        torch.full((n_restarts,), -torch.inf, dtype=torch.float64, device=device),
        torch.zeros(n_restarts, dtype=torch.long),
        torch.zeros(n_restarts, dtype=torch.bool),
    )
    parameters, objective, tol = start[active], fits.objective.clone(), tol.to(device)
    for step in range(1, max_iter + 1):
        moments, now = _e_step(rows, parameters, setting, dtype)
        following = models.maximize(moments, setting)
        dead = moments[..., 0] < _least_count(setting, moments.shape[1])
        small_change = (now - objective).abs() < tol * (1 + now.abs())
        # all that the host has to know, in the only wait for the device
        done, reseeded, failed = torch.stack([small_change, dead.any(1), now.isnan()]).cpu()
        if bool(failed.any()):  # rounding has left a covariance that is not one: this step repairs it
            places = torch.nonzero(failed).flatten()
            models.repair(parameters, setting)
            following[places] = parameters[places]
            now[places] = objective[places]
        if bool(reseeded.any()):
            _reseed(following, dead, rows, setting, generator)
        parameters, objective = following, now
        done &= ~reseeded
        if step == max_iter or bool(done.any()):
            leaving = torch.nonzero(done | (step == max_iter)).flatten()
            fits.parameters[active[leaving]] = parameters[leaving]
            fits.objective[active[leaving].to(device)] = objective[leaving.to(device)]
            fits.steps[active[leaving]] = step
            fits.converged[active[leaving]] = done[leaving]
            staying = torch.nonzero(~done).flatten()
            if step == max_iter or len(staying) == 0:
                break
            active, parameters, setting = active[staying], parameters[staying], setting[staying]
            objective, tol = objective[staying.to(device)], tol[staying.to(device)]
    models.repair(fits.parameters, setting)
    return fits


def _e_step(
    rows: Rows, parameters: Parameters, setting: Setting, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Responsibilities, and at once the sums that the M-step needs of them, in one pass over the rows.

    Returns
    -------
    moments : torch.Tensor of shape (R, K, F)
        Responsibilities times phi, summed over the rows; float64.
    objective : torch.Tensor of shape (R,)
        Log-likelihood minus the prior's penalty, of ``parameters``.
    """
    eta, constant = models.natural(parameters, setting)
    moments, log_norm = rows.expect(eta, dtype)
    return moments, log_norm + constant


def _least_count(setting: Setting, n_components: int) -> float:
    """Number of rows below which the covariance of a component is singular in any case."""
    least = {"full": setting.d + 1.0, "diag": 2.0, "spherical": 2.0}.get(setting.model, 0.5)
    if setting.shrinks:
        least = 0.5
    return min(least, 0.5 * setting.n / n_components)


def _reseed(
    parameters: Parameters, dead: torch.Tensor, rows: Rows, setting: Setting, generator: torch.Generator
) -> None:
    """Move the ``dead`` components (R, K) to random rows, with the mean covariance of the others; in place."""
    group = ranks()
    chosen = torch.randint(group.sum(rows.n), (int(dead.sum()),), generator=generator)
    places, where = np.unique(chosen.numpy(), return_inverse=True)
    own = torch.from_numpy(group.own(places, rows.n)).to(rows.base.device)
    found = torch.from_numpy(group.gather(rows.base[1:, own].T.cpu().double().numpy()))
    parameters.means[dead] = found[torch.from_numpy(where)].to(parameters.means.device)
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


def _split_largest(rows: Rows, labels: torch.Tensor, n_components: int) -> torch.Tensor:
    """Labels (n,) after each empty component has received half of the largest, split across its first axis."""
    labels = labels.clone()
    for empty in range(n_components):
        sizes = torch.bincount(labels, minlength=n_components)
        if sizes[empty] == 0:
            members = torch.nonzero(labels == sizes.argmax()).flatten()
            centered = rows.base[1:, members].T
            centered = centered - centered.mean(0)
            axis = torch.linalg.eigh((centered.T @ centered).cpu().double())[1][:, -1]
            upper = centered.cpu().double() @ axis > 0
            labels[members[upper.to(labels.device)]] = empty
    return labels


def _for_dtype(setting: Setting, dtype: torch.dtype) -> Setting:
    """The setting with a regularization that ``dtype`` can represent next to a variance of 1."""
    return setting if dtype == torch.float64 else replace(setting, reg=max(setting.reg, _FLOAT32_REG))


def _best(results: torch.Tensor, candidates: torch.Tensor, n_kept: int, always: int) -> torch.Tensor:
    """The ``n_kept`` candidates of highest objective and the first ``always`` restarts, in ascending order."""
    order = torch.sort(results[candidates], descending=True, stable=True).indices
    kept = candidates[order[:n_kept]]
    return torch.unique(torch.cat([kept, candidates[:always]]))


def _preferred(results: torch.Tensor, candidates: torch.Tensor, n_agglomerated: int) -> torch.Tensor:
    """Candidates by descending objective, the restart from agglomeration first if it ties with the best.

    That restart is the same for every seed.
    """
    order = candidates[torch.sort(results[candidates], descending=True, stable=True).indices]
    best = results[order[0]]
    if n_agglomerated and results[0] >= best - _TIE * best.abs():
        order = torch.cat([order[order == 0], order[order != 0]])
    return order
