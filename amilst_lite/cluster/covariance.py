"""The six covariance models of a Gaussian mixture, each written as an exponential family.

For every model the log density of component k is linear in a fixed vector of features of x::

    log w_k + log N(x | m_k, S_k) = eta_k · phi(x) + h(x),      phi(x) = [1, x, products of x]

so the E-step of all restarts and components is one matrix product ``eta @ phi(X).T`` and the M-step
another, ``responsibilities @ phi(X)``. Models whose components share a covariance need no products in
phi: their quadratic term h(x) is common to the components and sums to a trace that is known beforehand.

=================  ======  ================================  =========================
scikit-learn name  mclust  covariance of component k         phi(x) after 1 and x
=================  ======  ================================  =========================
tied_spherical     EII     one variance                      –
spherical          VII     one variance for each component   the squared norm
tied_diag          EEI     one diagonal                      –
diag               VVI     one diagonal for each component   the squares
tied               EEE     one matrix                        –
full               VVV     one matrix for each component     products i <= j
=================  ======  ================================  =========================

Sources: Banfield and Raftery 1993; Celeux and Govaert 1995 (the models); Dempster et al. 1977 (EM).
Shapes: R restarts, K components, d columns, F features. Tensors of parameters are in the widest float.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from ..errors import InputError

MCLUST_NAMES = {
    "EII": "tied_spherical",
    "VII": "spherical",
    "EEI": "tied_diag",
    "VVI": "diag",
    "EEE": "tied",
    "VVV": "full",
}
TIED = ("tied_spherical", "tied_diag", "tied")

_DEAD_VARIANCE = 1e-8
"""Directions with less than this share of the variance their columns would give hold no information in float32."""


def canonical_model(name: str) -> str:
    """scikit-learn's name for a model given by that or by mclust's; `InputError` if there is none."""
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
    """Parameters of R mixtures.

    weights (R, K); means (R, K, d); covariances (R,), (R, K), (R, d), (R, K, d), (R, d, d) or
    (R, K, d, d) in the order of the table above.
    """

    weights: torch.Tensor
    means: torch.Tensor
    covariances: torch.Tensor

    def __getitem__(self, restarts: torch.Tensor) -> Parameters:
        """Only these restarts."""
        return Parameters(self.weights[restarts], self.means[restarts], self.covariances[restarts])


def features(Z: torch.Tensor, model: str) -> torch.Tensor:
    """phi of the rows of (n, d) ``Z``: (n, F), the first column ones, then ``Z``, then the model's products."""
    parts = [torch.ones_like(Z[:, :1]), Z]
    if model == "spherical":
        parts.append(Z.square().sum(1, keepdim=True))
    elif model == "diag":
        parts.append(Z.square())
    elif model == "full":
        first, second = torch.triu_indices(Z.shape[1], Z.shape[1], device=Z.device)
        parts.append(Z[:, first] * Z[:, second])
    return torch.cat(parts, 1)


def n_features(model: str, d: int) -> int:
    """F, the length of phi."""
    return 1 + d + {"spherical": 1, "diag": d, "full": d * (d + 1) // 2}.get(model, 0)


def maximise(moments: torch.Tensor, scatter: torch.Tensor, model: str, d: int, reg: float) -> Parameters:
    """The M-step: parameters from the summed features of each component.

    Parameters
    ----------
    moments : torch.Tensor of shape (R, K, F)
        Responsibilities times phi, summed over the rows.
    scatter : torch.Tensor of shape (d, d)
        Sum over the rows of z zᵀ, used by the models that share a covariance.
    reg : float
        Added to the variances, whose working scale is 1.
    """
    counts = moments[..., 0].clamp(min=torch.finfo(moments.dtype).tiny)  # (R, K)
    total = counts.sum(1)  # (R,)
    means = moments[..., 1 : d + 1] / counts[..., None]
    products = moments[..., d + 1 :]
    between = counts[..., None] * means  # (R, K, d)
    if model == "full":
        second = products[..., _unpack(d, moments.device)] / counts[..., None, None]
        covariances = second - means[..., :, None] * means[..., None, :]
    elif model == "diag":
        covariances = products / counts[..., None] - means.square()
    elif model == "spherical":
        covariances = (products[..., 0] / counts - means.square().sum(-1)) / d
    elif model == "tied":
        covariances = (scatter - between.transpose(1, 2) @ means) / total[:, None, None]
    else:
        covariances = (scatter.diagonal() - (between * means).sum(1)) / total[:, None]  # (R, d)
        if model == "tied_spherical":
            covariances = covariances.mean(1)
    if model in ("tied", "full"):
        covariances.diagonal(dim1=-2, dim2=-1).add_(reg)
    else:
        covariances = covariances.clamp_(min=0) + reg
    return Parameters(counts / total[:, None], means, covariances)


def _unpack(d: int, device: torch.device) -> torch.Tensor:
    """Where entry (i, j) of a symmetric matrix stands among its products i <= j: (d, d)."""
    first, second = torch.triu_indices(d, d, device=device)
    position = torch.empty(d, d, dtype=torch.long, device=device)
    position[first, second] = position[second, first] = torch.arange(len(first), device=device)
    return position


def natural(
    parameters: Parameters, scatter: torch.Tensor, model: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Natural parameters of R mixtures.

    Returns
    -------
    eta : torch.Tensor of shape (R, K, F)
    common : torch.Tensor of shape (R,)
        Sum of h(x) over the rows behind ``scatter``; zero where the model has no common term.
    broken : torch.Tensor of shape (R, K), bool
        Components whose covariance is not positive definite; their eta means nothing.
    """
    weights, means, covariances = parameters.weights, parameters.means, parameters.covariances
    d = means.shape[-1]
    common = torch.zeros_like(weights[:, 0])
    broken = torch.zeros_like(weights, dtype=torch.bool)
    if model in ("tied", "full"):
        cholesky, info = torch.linalg.cholesky_ex(covariances)
        log_det = 2 * cholesky.diagonal(dim1=-2, dim2=-1).log().sum(-1)  # (R,) or (R, K)
        if bool(info.any()):
            failed = info > 0
            broken |= failed if model == "full" else failed[:, None]
            cholesky = torch.where(
                failed[..., None, None], torch.eye(d, device=info.device).to(means), cholesky
            )
        precision = torch.cholesky_inverse(cholesky)
        if model == "tied":
            log_det = log_det[:, None]
            linear = means @ precision
            common = -0.5 * (precision * scatter).sum((1, 2))
        else:
            linear = (precision @ means[..., None])[..., 0]
            first, second = torch.triu_indices(d, d, device=means.device)
            # an entry off the diagonal stands for itself and for its mirror image
            quadratic = precision[..., first, second] * torch.where(first == second, -0.5, -1.0).to(means)
    else:
        shape = {"tied_spherical": (-1, 1, 1), "spherical": (*weights.shape, 1), "tied_diag": (-1, 1, d)}
        variances = covariances.reshape(shape.get(model, covariances.shape))
        log_det = variances.log().sum(-1) * (d // variances.shape[-1])
        linear = means / variances
        quadratic = -0.5 / variances
        if model in TIED:
            common = (quadratic[:, 0] * scatter.diagonal()).sum(1)
    constant = weights.log() - 0.5 * ((linear * means).sum(-1) + log_det + d * math.log(2 * math.pi))
    parts = [constant[..., None], linear]
    if model not in TIED:
        parts.append(quadratic)
    return torch.cat(parts, -1), common, broken


@dataclass
class WorkingScale:
    """The affine map under which the whole data have unit variance in the model's own sense.

    Full and tied mixtures are equivariant under every affine map, diagonal ones under scalings of the
    columns, spherical ones under one common factor: the data are whitened, standardised or scaled by
    just that. float32 then serves data of any unit, and a regularisation of 1e-6 means 1e-6 of the
    data's own variance. Directions without variance are left out.

    ``forward`` maps centred rows to working ones, (d, d') or (d,); ``backward`` maps back, (d', d) or
    (d,); ``dead`` is the covariance given to directions left out, (d, d) or (d,).
    """

    mean: np.ndarray
    forward: np.ndarray
    backward: np.ndarray
    dead: np.ndarray

    @classmethod
    def of(cls, mean: np.ndarray, covariance: np.ndarray, model: str) -> WorkingScale:
        """The working scale for data with this mean (d,) and covariance (d, d), float64."""
        d = len(mean)
        variance = covariance.diagonal().copy()
        # what rounding leaves of a constant column
        variance[np.sqrt(variance) <= 1e-12 * np.abs(mean)] = 0
        typical = variance.mean() or 1.0
        if model in ("tied_spherical", "spherical"):
            scale = np.full(d, math.sqrt(typical))
            return cls(mean, 1 / scale, scale, np.zeros(d))
        alive = variance > 0
        scale = np.sqrt(np.where(alive, variance, typical))
        if model in ("tied_diag", "diag"):
            return cls(mean, alive / scale, scale * alive, np.where(alive, 0, _DEAD_VARIANCE * typical))
        correlation = covariance / np.outer(scale, scale)
        correlation[~alive] = correlation[:, ~alive] = 0
        values, vectors = np.linalg.eigh(correlation)
        living = values > _DEAD_VARIANCE
        living[-1] = True  # a mixture of nothing still has one column, of zeros
        root = np.sqrt(np.maximum(values[living], _DEAD_VARIANCE))
        forward = vectors[:, living] / root / scale[:, None]
        backward = (vectors[:, living] * root * scale[:, None]).T
        rest = vectors[:, ~living] * scale[:, None]
        return cls(mean, forward, backward, _DEAD_VARIANCE * rest @ rest.T)

    def to_data(self, parameters: Parameters, model: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Weights, means and covariances of the only mixture in ``parameters``, in the data's units."""
        weights = parameters.weights[0].double().cpu().numpy()
        means = parameters.means[0].double().cpu().numpy()
        covariances = parameters.covariances[0].double().cpu().numpy()
        back = self.backward
        if model in ("tied", "full"):
            return weights, means @ back + self.mean, back.T @ covariances @ back + self.dead
        if model in ("tied_diag", "diag"):
            return weights, means * back + self.mean, covariances * back**2 + self.dead
        return weights, means * back + self.mean, covariances * back[0] ** 2


def precisions_cholesky(covariances: np.ndarray, model: str) -> np.ndarray:
    """Upper triangular factors P with ``inv(S) = P Pᵀ`` for full and tied, else inverse standard deviations."""
    if model not in ("tied", "full"):
        return 1 / np.sqrt(covariances)
    # columns of very different units are brought to one before the factorisation, exactly undone after it
    scale = np.sqrt(np.diagonal(covariances, axis1=-2, axis2=-1))
    lower = np.linalg.cholesky(covariances / (scale[..., :, None] * scale[..., None, :]))
    identity = np.broadcast_to(np.eye(scale.shape[-1]), lower.shape)
    inverse = np.linalg.solve(lower, identity) / scale[..., None, :]
    return np.triu(np.swapaxes(inverse, -1, -2))


def log_joint(
    X: torch.Tensor, weights: torch.Tensor, means: torch.Tensor, factors: torch.Tensor, model: str
) -> torch.Tensor:
    """log w_k + log N(x | m_k, S_k) from distances, without the cancellation of phi.

    Parameters
    ----------
    X : torch.Tensor of shape (n, d)
    weights : torch.Tensor of shape (K,)
    means : torch.Tensor of shape (K, d)
    factors : torch.Tensor
        As `precisions_cholesky` returns them.

    Returns
    -------
    torch.Tensor of shape (K, n)
    """
    d = X.shape[1]
    rows = []
    for k in range(len(weights)):
        factor = factors[k] if model in ("full", "diag", "spherical") else factors
        centred = X - means[k]
        if model in ("tied", "full"):
            scaled, log_det = centred @ factor, factor.diagonal().log().sum()
        else:
            scaled, log_det = centred * factor, factor.log().expand(d).sum()
        rows.append(weights[k].log() + log_det - 0.5 * scaled.square().sum(1))
    return torch.stack(rows) - 0.5 * d * math.log(2 * math.pi)
