"""Terms of the objective, as pure functions.

Shapes. N spots, C features, and with an ensemble an axis of M members between them. Every term is reduced
over spots and features and keeps the member axis: a scalar without members, (M,) with. The gradient of the
sum over members is, for each member, the gradient of its own loss.

No function here builds an N × N array: the link losses cost one dot product per edge.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "clustering_divergence",
    "gather",
    "gaussian_kl",
    "jensen_shannon",
    "masked_link_loss",
    "negative_link_loss",
    "positive_link_loss",
    "reconstruction_error",
    "soft_assignment",
    "target_distribution",
]


def reconstruction_error(reconstruction: Tensor, target: Tensor) -> Tensor:
    """Mean of (X̂ − X)² over spots and features. The target may lack the member axis."""
    if reconstruction.ndim == 3 and target.ndim == 2:
        target = target.unsqueeze(1)
    return (reconstruction - target).square().mean(dim=(0, -1))


def gaussian_kl(mean: Tensor, log_sigma: Tensor) -> Tensor:
    """−1/(2N) · mean_i Σ_k (1 + 2 log σ − μ² − σ²).

    The divergence of N(μ, σ²) from N(0, 1) (Kingma & Welling 2014, appendix B), with the further
    1/N by which Kipf & Welling's VGAE balances it against a mean over N² pairs.
    """
    n_spots = mean.shape[0]
    per_spot = (1.0 + 2.0 * log_sigma - mean.square() - (2.0 * log_sigma).exp()).sum(-1)
    return -0.5 / n_spots * per_spot.mean(0)


class _Gather(torch.autograd.Function):
    """x[index] whose gradient is summed in a fixed order on every device.

    On a CPU, the backward of indexing may add with several threads at once, so that two runs differ in the
    last bit, while index_add is serial. On CUDA, index_put sorts and is reproducible, while index_add uses
    atomic additions.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.n_rows = x.shape[0]
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        out = grad.new_zeros((ctx.n_rows, *grad.shape[1:]))
        if grad.device.type == "cpu":
            return out.index_add_(0, index, grad), None
        return out.index_put_((index,), grad, accumulate=True), None


def gather(x: Tensor, index: Tensor) -> Tensor:
    """Rows of x, with a gradient that is reproducible to the bit."""
    return _Gather.apply(x, index)


def _pair_logits(z: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """s = z_i·z_j for each pair: (E, [M])."""
    return (gather(z, first) * gather(z, second)).sum(-1)


def masked_link_loss(z: Tensor, edges: Tensor, n_edges_total: int | None = None) -> Tensor:
    """The published link loss, exactly, at the cost of one dot product per edge.

    norm · mean over all N² pairs of BCE-with-logits(M⊙S, M⊙(A+I)) with mask M = A+I and
    norm = N²/(2(N² − |A|)). Every other pair has logit and label 0, which contributes a constant log 2,
    so this equals

        norm/N² · ( Σ_{(i,j) ∈ A+I} softplus(−s_ij) + (N² − |A| − N) · log 2 ).

    Parameters
    ----------
    z : Tensor, (N, [M,] C)
        Latent representation.
    edges : Tensor of int64, (2, E)
        Each undirected edge once, without loops; half of |A|.
    n_edges_total : int, optional
        |A|, if it is not 2E.
    """
    n = z.shape[0]
    total = 2 * edges.shape[1] if n_edges_total is None else n_edges_total
    on_edges = 2.0 * F.softplus(-_pair_logits(z, edges[0], edges[1])).sum(0)
    on_loops = F.softplus(-z.square().sum(-1)).sum(0)
    elsewhere = (float(n) * n - total - n) * math.log(2.0)
    return (on_edges + on_loops + elsewhere) / (2.0 * (float(n) * n - total))


def positive_link_loss(z: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Mean of softplus(−s_ij) over pairs that are neighbors."""
    return F.softplus(-_pair_logits(z, first, second)).mean(0)


def negative_link_loss(z: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Mean of softplus(s_ij) over random pairs, which are rarely neighbors."""
    return F.softplus(_pair_logits(z, first, second)).mean(0)


def soft_assignment(z: Tensor, centers: Tensor) -> Tensor:
    """q_ik ∝ (1 + ‖z_i − c_k‖²)⁻¹, Student's t with one degree of freedom (Xie et al. 2016, eq. 1).

    Parameters
    ----------
    z : Tensor, (N, [M,] C)
        Latent representation.
    centers : Tensor, ([M,] K, C)
        Cluster centers.

    Returns
    -------
    Tensor, (N, [M,] K)
        Rows sum to one.
    """
    squared = (z.unsqueeze(-2) - centers.unsqueeze(0)).square().sum(-1)
    q = 1.0 / (1.0 + squared)
    return q / q.sum(-1, keepdim=True)


def target_distribution(q: Tensor) -> Tensor:
    """p_ik ∝ q_ik² / Σ_i q_ik (Xie et al. 2016, eq. 3). (N, [M,] K), detached."""
    weight = q.detach().square() / q.detach().sum(0, keepdim=True)
    return weight / weight.sum(-1, keepdim=True)


def clustering_divergence(target: Tensor, q: Tensor) -> Tensor:
    """Mean over all N·K entries of p·log(p/q)."""
    return torch.xlogy(target, target / q).mean(dim=(0, -1))


def jensen_shannon(joint: Tensor, product: Tensor) -> Tensor:
    """E_joint[−softplus(−T)] − E_product[softplus(T)], from logits (N, [M]).

    A lower bound, up to constants, of the Jensen–Shannon divergence between the joint
    distribution and the product of the marginals (Nowozin et al. 2016; Hjelm et al. 2019,
    eq. 4). At most zero; −2·log 2 for an uninformative T.
    """
    return -F.softplus(-joint).mean(0) - F.softplus(product).mean(0)
