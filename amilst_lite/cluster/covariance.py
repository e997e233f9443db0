"""The six covariance models of a Gaussian mixture, each written as an exponential family.

For every model the log density of component k is linear in a fixed vector of features of x::

    log w_k + log N(x | m_k, S_k) = eta_k · phi(x) + h(x),      phi(x) = [1, x, products of x]

so that the E-step of all restarts and components is one matrix product ``eta @ phi(X).T`` and the M-step
another, ``responsibilities @ phi(X)``. Models whose components share a covariance need no products in
phi: their quadratic term h(x) is common to the components, and its sum over the rows is a trace that is
computed once.

=================  ======  ================================  =========================
scikit-learn name  mclust  covariance of component k         phi(x) after 1 and x
=================  ======  ================================  =========================
tied_spherical     EII     one variance                      –
spherical          VII     one variance per component        the squared norm
tied_diag          EEI     one diagonal                      –
diag               VVI     one diagonal per component        the squares
tied               EEE     one matrix                        –
full               VVV     one matrix per component          products i <= j
=================  ======  ================================  =========================

Sources: Banfield and Raftery 1993; Celeux and Govaert 1995 (the models); Dempster et al. 1977 (EM).
Shapes: R restarts, K components, n rows, d columns, F features. Parameters are small: they are computed in
float64, on the device of the rows.
"""

from __future__ import annotations

import math
from copy import copy
from dataclasses import dataclass

import numpy as np
import torch

from ..errors import InputError
from .features import TIED, pairs, unpacked

MCLUST_NAMES = {
    "EII": "tied_spherical",
    "VII": "spherical",
    "EEI": "tied_diag",
    "VVI": "diag",
    "EEE": "tied",
    "VVV": "full",
}

_DEAD_VARIANCE = 1e-8
"""Directions of the standardized columns with less variance than this are below the precision of float32."""


def canonical_model(name: str) -> str:
    """scikit-learn's name of a model given by either name; `InputError` if it is unknown."""
    model = MCLUST_NAMES.get(name, name) if isinstance(name, str) else name
    if model not in MCLUST_NAMES.values():
        known = ", ".join(f"{theirs!r} ({ours})" for ours, theirs in MCLUST_NAMES.items())
        raise InputError(f"covariance_type must be one of {known}; found {name!r}.")
    return model


def count_parameters(model: str, n_components: int, n_features: int) -> int:
    """Free parameters: means, weights and covariances, as mclust's ``nMclustParams`` counts them."""
    covariance = {
        "tied_spherical": 1,
        "spherical": n_components,
        "tied_diag": n_features,
        "diag": n_components * n_features,
        "tied": n_features * (n_features + 1) // 2,
        "full": n_components * n_features * (n_features + 1) // 2,
    }[model]
    return n_components * n_features + n_components - 1 + covariance


@dataclass
class Parameters:
    """Parameters of R mixtures in the working scale, float64 on one device.

    weights (R, K); means (R, K, d); covariances (R,), (R, K), (R, d), (R, K, d), (R, d, d) or
    (R, K, d, d) in the order of the table above.
    """

    weights: torch.Tensor
    means: torch.Tensor
    covariances: torch.Tensor

    def __getitem__(self, restarts: torch.Tensor) -> Parameters:
        """A copy of these restarts, whose numbers may be on the CPU."""
        restarts = restarts.to(self.weights.device)
        return Parameters(self.weights[restarts], self.means[restarts], self.covariances[restarts])

    def __setitem__(self, restarts: torch.Tensor, other: Parameters) -> None:
        restarts = restarts.to(self.weights.device)
        self.weights[restarts] = other.weights
        self.means[restarts] = other.means
        self.covariances[restarts] = other.covariances


@dataclass
class WorkingScale:
    """The affine map that gives the whole data unit variance, in the form of the model.

    Full and tied mixtures are equivariant under affine maps, diagonal ones under scaling of the columns,
    spherical ones under a common factor: the data are whitened, standardized or divided by a number
    accordingly. float32 is then precise enough for data of any unit, and a regularization of 1e-6 is 1e-6
    of the variance of the data. Directions without variance are omitted.

    Attributes
    ----------
    mean : ndarray of shape (d,)
    forward : ndarray of shape (d, d')
        Maps centered rows to the working scale; ``backward`` (d', d) maps them back.
    dead : ndarray of shape (d, d)
        Covariance of the omitted directions.
    log_volume : float
        Difference of a row's log density between the scale of the data and the working scale.
    """

    mean: np.ndarray
    forward: np.ndarray
    backward: np.ndarray
    dead: np.ndarray
    log_volume: float

    @classmethod
    def of(cls, mean: np.ndarray, covariance: np.ndarray, model: str) -> WorkingScale:
        """The working scale for data with this mean (d,) and covariance (d, d), float64."""
        d = len(mean)
        variance = covariance.diagonal().copy()
        # a constant column can have a variance of the size of rounding
        variance[np.sqrt(variance) <= 1e-12 * np.abs(mean)] = 0
        typical = variance.mean() or 1.0
        scale = np.sqrt(np.where(variance > 0, variance, typical))
        values, vectors = (variance > 0).astype(float), np.eye(d)
        if model in ("tied_spherical", "spherical"):
            scale[:], values[:] = math.sqrt(typical), 1.0
        elif model in ("tied", "full"):
            correlation = covariance / np.outer(scale, scale)
            correlation[variance == 0] = correlation[:, variance == 0] = 0
            values, vectors = np.linalg.eigh(correlation)
        living = values > _DEAD_VARIANCE
        living[-1] |= not living.any()  # constant data: one column of zeros
        values = np.maximum(values, _DEAD_VARIANCE)
        axes = vectors * scale[:, None]
        return cls(
            mean=mean,
            forward=(vectors / np.sqrt(values) / scale[:, None])[:, living],
            backward=(axes * np.sqrt(values))[:, living].T,
            dead=_DEAD_VARIANCE * axes[:, ~living] @ axes[:, ~living].T,
            log_volume=float(
                -np.log(scale).sum()
                - 0.5 * np.log(values).sum()
                - 0.5 * math.log(2 * math.pi) * (~living).sum()
            ),
        )

    def to_data(self, parameters: Parameters, model: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Weights, means and covariances of the only mixture in ``parameters``, in the units of the data."""
        weights, means, covariances = (
            values[0].cpu().numpy()
            for values in (parameters.weights, parameters.means, parameters.covariances)
        )
        back = self.backward
        if model in ("tied", "full"):
            covariances = back.T @ covariances @ back + self.dead
        elif model in ("tied_diag", "diag"):
            covariances = covariances @ back**2 + self.dead.diagonal()
        else:
            covariances = covariances * back[0, 0] ** 2
        return weights, means @ back + self.mean, covariances


@dataclass
class Setting:
    """Constants of all EM steps.

    Attributes
    ----------
    model : str
        scikit-learn's name.
    n : int
        Rows.
    scatter : torch.Tensor of shape (d, d)
        Sum over the working rows of z zᵀ, float64 on the device of the parameters.
    reg : float
        Added to the variances, whose working scale is 1.
    prior : float or torch.Tensor of shape (R,)
        Prior strength in pseudo-observations, of all mixtures or of each: shrinkage towards covariances that
        are spherical in the units of the data.
    scale : WorkingScale
    """

    model: str
    n: int
    scatter: torch.Tensor
    reg: float
    prior: float | torch.Tensor
    scale: WorkingScale

    def __post_init__(self) -> None:
        self.shrinks = bool((torch.as_tensor(self.prior) > 0).any())
        device = self.scatter.device
        if isinstance(self.prior, torch.Tensor):
            self.prior = self.prior.to(device)
        forward, backward = torch.from_numpy(self.scale.forward), torch.from_numpy(self.scale.backward)
        # in working coordinates: the unit sphere of the data, and the metric of their variance
        metric = backward @ backward.T
        complete = forward.shape[0] == forward.shape[1]
        # where directions are omitted, forward also measures what lies in them
        sphere = forward.T @ forward if complete else torch.linalg.inv(metric)
        self.metric, self.sphere = metric.to(device), sphere.to(device)
        self.sphere_log_det = float(torch.logdet(sphere))
        if self.model == "full":
            first, second = pairs(self.d)
            # an entry above the diagonal counts twice
            share = torch.where(first == second, -0.5, torch.where(first < second, -1.0, 0.0)).double()
            self.pairs = first.to(device), second.to(device)
            self.share, self.position = share.to(device), unpacked(self.d).to(device)

    def __getitem__(self, restarts: torch.Tensor) -> Setting:
        """The setting of these restarts."""
        if not isinstance(self.prior, torch.Tensor):
            return self
        chosen = copy(self)
        chosen.prior = self.prior[restarts.to(self.prior.device)]
        return chosen

    @property
    def d(self) -> int:
        """Working columns."""
        return self.scatter.shape[0]


def maximize(moments: torch.Tensor, setting: Setting) -> Parameters:
    """The M-step: parameters from the summed features of each component, ``moments`` (R, K, F)."""
    model, d = setting.model, setting.d
    counts = moments[..., 0].clamp(min=1e-10)  # (R, K)
    total = counts.sum(1)  # (R,)
    means = moments[..., 1 : d + 1] / counts[..., None]
    products = moments[..., d + 1 :]
    weighted = counts[..., None] * means  # (R, K, d)
    if model == "full":
        second = products[..., setting.position] / counts[..., None, None]
        covariances = second - means[..., :, None] * means[..., None, :]
    elif model == "diag":
        covariances = products / counts[..., None] - means.square()
    elif model == "spherical":
        covariances = (products[..., 0] / counts - means.square().sum(-1)) / d
    elif model == "tied":
        covariances = (setting.scatter - weighted.transpose(1, 2) @ means) / total[:, None, None]
    else:
        covariances = (setting.scatter.diagonal() - (weighted * means).sum(1)) / total[:, None]  # (R, d)
        if model == "tied_spherical":
            covariances = covariances.mean(1)
    if setting.shrinks:
        covariances = _shrink(covariances, total if model in TIED else counts, setting)
    return Parameters(counts / total[:, None], means, _regularize(covariances, setting))


def _shrink(covariances: torch.Tensor, counts: torch.Tensor, setting: Setting) -> torch.Tensor:
    """Average with the spherical covariance of equal mean variance, as ``prior`` pseudo-observations."""
    if setting.model in ("tied", "full"):
        variance = (covariances * setting.metric).sum((-1, -2), keepdim=True) / setting.d
        sphere, counts = setting.sphere, counts[..., None, None]
    elif setting.model in ("tied_diag", "diag"):
        variance = (covariances * setting.metric.diagonal()).sum(-1, keepdim=True) / setting.d
        sphere, counts = setting.sphere.diagonal(), counts[..., None]
    else:
        return covariances
    prior = setting.prior
    if isinstance(prior, torch.Tensor):
        prior = prior.reshape(-1, *(1,) * (counts.ndim - 1))
    return (counts * covariances + prior * variance * sphere) / (counts + prior)


def _regularize(covariances: torch.Tensor, setting: Setting) -> torch.Tensor:
    """Add the regularization; negative variances are raised to it, negative eigenvalues by `repair`."""
    if setting.model not in ("tied", "full"):
        return covariances.clamp(min=0) + setting.reg
    covariances.diagonal(dim1=-2, dim2=-1).add_(setting.reg)
    return covariances


def repair(parameters: Parameters, setting: Setting) -> None:
    """Raise eigenvalues of covariances that rounding in float32 has left below the regularization; in place.

    Needed where `natural` gives an objective that is not a number, and before `precisions_cholesky`.
    """
    if setting.model not in ("tied", "full"):
        return
    covariances = parameters.covariances
    failed = torch.linalg.cholesky_ex(covariances).info > 0
    if bool(failed.any()):
        values, vectors = torch.linalg.eigh(covariances[failed])
        covariances[failed] = (vectors * values.clamp(min=setting.reg)[..., None, :]) @ vectors.mT


def natural(parameters: Parameters, setting: Setting) -> tuple[torch.Tensor, torch.Tensor]:
    """Natural parameters ``eta`` (R, K, F), and the part of the objective besides eta · phi: (R,).

    The latter is the sum of h(x) over the rows, plus the change of scale of the density to the units of
    the data, minus the prior's penalty: ``prior`` times the Kullback-Leibler divergence of the spherical
    covariance of equal trace from that of the component (summed over the components unless shared). It is not a
    number where a covariance is not positive definite, see `repair`: nothing here waits for a GPU.
    """
    model, d = setting.model, setting.d
    weights, means, covariances = parameters.weights, parameters.means, parameters.covariances
    constant = torch.full_like(weights[:, 0], setting.n * setting.scale.log_volume)
    if model in ("tied", "full"):
        cholesky, info = torch.linalg.cholesky_ex(covariances)
        constant.masked_fill_((info.view(len(weights), -1) > 0).any(1), torch.nan)
        log_det = 2 * cholesky.diagonal(dim1=-2, dim2=-1).log().sum(-1)  # (R,) or (R, K)
        precision = torch.cholesky_inverse(cholesky)
        if model == "tied":
            linear = means @ precision
            constant -= 0.5 * (precision * setting.scatter).sum((1, 2))
        else:
            linear = (precision @ means[..., None])[..., 0]
            quadratic = precision[..., setting.pairs[0], setting.pairs[1]] * setting.share
    else:
        shape = {"tied_spherical": (-1, 1, 1), "spherical": (*weights.shape, 1), "tied_diag": (-1, 1, d)}
        variances = covariances.reshape(shape.get(model, covariances.shape))
        log_det = (variances.log().sum(-1) * (d // variances.shape[-1])).reshape(
            len(weights), *weights.shape[1:] * (model not in TIED)
        )
        linear = means / variances
        quadratic = -0.5 / variances
        precision = 1 / variances
        if model in TIED:
            constant += (quadratic[:, 0] * setting.scatter.diagonal()).sum(1)
    if setting.shrinks:
        constant -= _penalty(covariances, precision, log_det, setting)
    if model in TIED:
        log_det = log_det[:, None]
    bias = weights.log() - 0.5 * ((linear * means).sum(-1) + log_det + d * math.log(2 * math.pi))
    parts = [bias[..., None], linear]
    if model not in TIED:
        parts.append(quadratic)
    return torch.cat(parts, -1), constant


def _penalty(
    covariances: torch.Tensor, precision: torch.Tensor, log_det: torch.Tensor, setting: Setting
) -> torch.Tensor:
    """``prior`` times KL(sphere ‖ component), summed over a mixture's covariances: (R,)."""
    d = setting.d
    if setting.model in ("tied", "full"):
        variance = (covariances * setting.metric).sum((-1, -2)) / d
        trace = (precision * setting.sphere).sum((-1, -2))
    elif setting.model in ("tied_diag", "diag"):
        variance = (covariances * setting.metric.diagonal()).sum(-1) / d
        trace = (precision.reshape(covariances.shape) * setting.sphere.diagonal()).sum(-1)
    else:
        return torch.zeros_like(log_det[..., 0] if log_det.ndim > 1 else log_det)
    sphere_log_det = setting.sphere_log_det + d * variance.log()
    divergence = 0.5 * (log_det - sphere_log_det + variance * trace - d)
    return setting.prior * divergence.reshape(len(covariances), -1).sum(1)


def precisions_cholesky(covariances: np.ndarray, model: str) -> np.ndarray:
    """Upper triangular P with ``inv(S) = P Pᵀ`` for tied and full, else inverse standard deviations."""
    if model not in ("tied", "full"):
        return 1 / np.sqrt(covariances)
    # columns of very different units are scaled before the factorization, and scaled back after it
    scale = np.sqrt(np.diagonal(covariances, axis1=-2, axis2=-1))
    lower = np.linalg.cholesky(covariances / (scale[..., :, None] * scale[..., None, :]))
    identity = np.broadcast_to(np.eye(scale.shape[-1]), lower.shape)
    inverse = np.linalg.solve(lower, identity) / scale[..., None, :]
    return np.triu(np.swapaxes(inverse, -1, -2))


def log_joint(
    X: torch.Tensor, weights: torch.Tensor, means: torch.Tensor, factors: torch.Tensor, model: str
) -> torch.Tensor:
    """log w_k + log N(x | m_k, S_k) from distances, without the cancellation that phi has.

    Parameters
    ----------
    X : torch.Tensor of shape (n, d)
    weights : torch.Tensor of shape (K,)
    means : torch.Tensor of shape (K, d)
    factors : torch.Tensor
        From `precisions_cholesky`.

    Returns
    -------
    torch.Tensor of shape (K, n)
    """
    d = X.shape[1]
    rows = []
    for k in range(len(weights)):
        factor = factors[k] if model in ("full", "diag", "spherical") else factors
        centered = X - means[k]
        if model in ("tied", "full"):
            scaled, log_det = centered @ factor, factor.diagonal().log().sum()
        else:
            scaled, log_det = centered * factor, factor.log().expand(d).sum()
        rows.append(weights[k].log() + log_det - 0.5 * scaled.square().sum(1))
    return torch.stack(rows) - 0.5 * d * math.log(2 * math.pi)
