"""The two autoencoders of AMIL-ST: a denoising one on features, a variational one on the graph."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import DenseBlock, GraphConvolution, affine, dropout, graph_convolve, random_mask
from .sparse import SymmetricAdjacency

__all__ = ["DenoisingEncoder", "GraphDecoder", "GraphPosterior", "VariationalGraphEncoder", "corrupt"]


def corrupt(
    x: Tensor, rate: float, *, per: str = "entry", generator: torch.Generator | None = None
) -> Tensor:
    """Set a random part of the input to zero, the mean of a centred feature.

    Source: Vincent et al. 2008, "masking noise". What is left is not scaled up: the task is to
    fill in what is missing.

    Parameters
    ----------
    x : Tensor, (N, [M,] C)
        Centred features.
    rate : float
        Share that is masked, in [0, 1).
    per : {"entry", "spot"}
        Mask single entries, or all features of a spot at once, so that only its neighbours
        can tell what it was.
    generator : torch.Generator, optional
        Source of the mask.
    """
    if rate == 0.0:
        return x
    shape = x.shape if per == "entry" else torch.Size((*x.shape[:-1], 1))
    return x * random_mask(shape, 1.0 - rate, x, generator)


class DenoisingEncoder(nn.Module):
    """f = enc(x): a stack of dense blocks on (possibly corrupted) features."""

    def __init__(
        self,
        n_features: int,
        widths: Sequence[int],
        members: int | None = None,
        *,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        sizes = [n_features, *widths]
        self.blocks = nn.ModuleList(
            DenseBlock(n_in, n_out, members, dropout=dropout, generator=generator)
            for n_in, n_out in pairwise(sizes)
        )

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(N, [M,] n_features) → (N, [M,] widths[-1])."""
        for block in self.blocks:
            x = block(x, generator)
        return x


class GraphPosterior(NamedTuple):
    """What the variational encoder says of g."""

    sample: Tensor
    """(N, [M,] C): μ + σ⊙ε in training, μ otherwise."""
    mean: Tensor
    log_sigma: Tensor


class VariationalGraphEncoder(nn.Module):
    """H = relu(Â·drop(f)·W1); μ = Â·drop(H)·W2; log σ = Â·drop(H)·W3 (Kipf & Welling 2016).

    μ and log σ each see their own dropout but share one product with Â.
    """

    def __init__(
        self,
        n_in: int,
        n_hidden: int,
        n_out: int,
        members: int | None = None,
        *,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.hidden = GraphConvolution(n_in, n_hidden, members, generator=generator)
        self.mean = GraphConvolution(n_hidden, n_out, members, generator=generator)
        self.log_sigma = GraphConvolution(n_hidden, n_out, members, generator=generator)
        self.dropout = dropout

    def forward(
        self,
        adjacency: SymmetricAdjacency | Tensor,
        f: Tensor,
        generator: torch.Generator | None = None,
    ) -> GraphPosterior:
        """(N, [M,] n_in) → posterior of (N, [M,] n_out)."""
        dropped = dropout(f, self.dropout, self.training, generator)
        hidden = F.relu(self.hidden(adjacency, dropped))  # (N, [M,] n_hidden)
        for_mean = affine(dropout(hidden, self.dropout, self.training, generator), self.mean.weight)
        for_sigma = affine(dropout(hidden, self.dropout, self.training, generator), self.log_sigma.weight)
        both = graph_convolve(adjacency, torch.cat([for_mean, for_sigma], dim=-1))
        mean, log_sigma = both.chunk(2, dim=-1)
        if not self.training:
            return GraphPosterior(mean, mean, log_sigma)
        noise = torch.empty_like(mean).normal_(generator=generator)
        return GraphPosterior(mean + noise * log_sigma.exp(), mean, log_sigma)


class GraphDecoder(nn.Module):
    """X̂ = Â·z·W + b: linear, so that it can reach any value, and smooth over the graph.

    The published decoder is a `DenseBlock`, whose ELU cannot go below −1.
    """

    def __init__(
        self,
        n_in: int,
        n_features: int,
        members: int | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.convolution = GraphConvolution(n_in, n_features, members, generator=generator)
        self.bias = nn.Parameter(torch.zeros(*self.convolution.weight.shape[:-2], n_features))

    def forward(self, adjacency: SymmetricAdjacency | Tensor, z: Tensor) -> Tensor:
        """(N, [M,] n_in) → (N, [M,] n_features)."""
        return self.convolution(adjacency, z) + self.bias
