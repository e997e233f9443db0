"""The whole AMIL-ST network: denoising autoencoder, variational graph autoencoder, and their adversaries.

X ─corrupt─▶ dense blocks ─▶ f ─┬──────────────────────────▶ z = [f, g] ─decoder─▶ X̂
                                └─Â─▶ H ─Â─▶ μ, log σ ─▶ g ─┘
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import NetworkConfig
from .layers import (
    BatchNorm,
    Dense,
    DenseBlock,
    GraphConvolution,
    affine,
    dropout,
    graph_convolve,
    lead,
    random_mask,
)
from .sparse import SymmetricAdjacency

__all__ = [
    "AMILSTNetwork",
    "BilinearDiscriminator",
    "DenoisingEncoder",
    "Generator",
    "GraphDecoder",
    "GraphPosterior",
    "NetworkOutput",
    "PairDiscriminator",
    "PriorDiscriminator",
    "VariationalGraphEncoder",
    "corrupt",
]


def corrupt(x: Tensor, rate: float, *, generator: torch.Generator | None = None) -> Tensor:
    """Set a random share ``rate`` of the entries to zero, the mean of a centered feature.

    Masking noise (Vincent et al. 2008). The remaining entries are not scaled up: the task is to fill in
    what is missing.
    """
    return x if rate == 0.0 else x * random_mask(x.shape, 1.0 - rate, x, generator)


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
    """The posterior of g by the variational encoder."""

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


class NetworkOutput(NamedTuple):
    """One forward pass. All are (N, [M,] ·)."""

    f: Tensor
    """Feature embedding, from the spot alone."""
    g: Tensor
    """Graph embedding, from the spot and its neighbors; a sample of N(μ, σ²) in training."""
    mean: Tensor
    log_sigma: Tensor
    latent: Tensor
    """z = [f, g]."""
    reconstruction: Tensor

    def of(self, rows: slice) -> NetworkOutput:
        """The output of some of the spots."""
        return NetworkOutput(*(part[rows] for part in self))


class AMILSTNetwork(nn.Module):
    """Encoder, variational graph encoder and decoder of AMIL-ST.

    Parameters
    ----------
    n_features : int
        Number of input features C.
    config : NetworkConfig
        Widths, dropout and form of the decoder.
    members : int or None
        Number of networks trained at once; None for one without a member axis.
    generator : torch.Generator, optional
        Source of the initial weights. None draws from torch's global generator.

    Examples
    --------
    >>> network = AMILSTNetwork(30, NetworkConfig())
    >>> output = network(features, adjacency)        # (N, 30), sparse (N, N)
    >>> output.latent                                # (N, 28)
    """

    def __init__(
        self,
        n_features: int,
        config: NetworkConfig | None = None,
        members: int | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        config = NetworkConfig() if config is None else config
        self.n_f, self.n_g, self.members = config.feature_widths[-1], config.graph_latent, members
        n_latent = self.n_f + self.n_g
        self.encoder = DenoisingEncoder(
            n_features, config.feature_widths, members, dropout=config.dropout, generator=generator
        )
        self.graph_encoder = VariationalGraphEncoder(
            self.n_f, config.graph_hidden, self.n_g, members, dropout=config.dropout, generator=generator
        )
        self.decoder: Dense | GraphDecoder | DenseBlock
        if config.decoder == "linear":
            self.decoder = Dense(n_latent, n_features, members, generator=generator)
        elif config.decoder == "graph":
            self.decoder = GraphDecoder(n_latent, n_features, members, generator=generator)
        else:
            self.decoder = DenseBlock(
                n_latent, n_features, members, dropout=config.dropout, generator=generator
            )

    @property
    def hops(self) -> int:
        """Products with Â between input and output: the radius of the receptive field in edges."""
        return 3 if isinstance(self.decoder, GraphDecoder) else 2

    def encode(
        self,
        features: Tensor,
        adjacency: SymmetricAdjacency | Tensor,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """f, g, μ, log σ of (possibly corrupted) features (N, [M,] C)."""
        f = self.encoder(features, generator)
        g, mean, log_sigma = self.graph_encoder(adjacency, f, generator)
        return f, g, mean, log_sigma

    def decode(
        self, latent: Tensor, adjacency: SymmetricAdjacency | Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """(N, [M,] n_f + n_g) → features (N, [M,] C)."""
        if isinstance(self.decoder, GraphDecoder):
            return self.decoder(adjacency, latent)
        if isinstance(self.decoder, Dense):
            return self.decoder(latent)
        return self.decoder(latent, generator)

    def forward(
        self,
        features: Tensor,
        adjacency: SymmetricAdjacency | Tensor,
        *,
        corruption: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> NetworkOutput:
        """One pass.

        Parameters
        ----------
        features : Tensor, (N, C)
            Centered features. With members each gets its own corruption of them.
        adjacency : SymmetricAdjacency or sparse COO Tensor, (N, N)
            Â, symmetric.
        corruption : float
            Share of the input masked in training; nothing is masked in evaluation.
        generator : torch.Generator, optional
            Source of masks, dropout and noise.
        """
        if self.members is not None and features.ndim == 2:
            features = features.unsqueeze(1).expand(-1, self.members, -1)
        if self.training:
            features = corrupt(features, corruption, generator=generator)
        f, g, mean, log_sigma = self.encode(features, adjacency, generator)
        latent = torch.cat([f, g], dim=-1)
        return NetworkOutput(f, g, mean, log_sigma, latent, self.decode(latent, adjacency, generator))


class BilinearDiscriminator(nn.Module):
    """T(f, g) = fᵀ·W·g + b: the logit that f and g belong to the same spot."""

    def __init__(
        self, n_f: int, n_g: int, members: int | None = None, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(
            torch.empty(*lead(members), n_f, n_g).normal_(0.0, 0.02, generator=generator)
        )
        self.bias = nn.Parameter(torch.zeros(lead(members)))

    def forward(self, f: Tensor, g: Tensor) -> Tensor:
        """(N, [M,] n_f), (N, [M,] n_g) → logits (N, [M])."""
        mapped = affine(f, self.weight)
        return (mapped * g).sum(-1) + self.bias


class PairDiscriminator(nn.Module):
    """D(f, g) of the published recipe: f → C_g, leaky ReLU 0.2, joined with g, → 32 → 32 → 1.

    The published last step is a sigmoid; ours ends in the logit and the losses take it from there.
    """

    def __init__(
        self,
        n_f: int,
        n_g: int,
        members: int | None = None,
        *,
        n_hidden: int = 32,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.squeeze = Dense(n_f, n_g, members, init="normal", generator=generator)
        self.first = Dense(2 * n_g, n_hidden, members, init="normal", generator=generator)
        self.second = Dense(n_hidden, n_hidden, members, init="normal", generator=generator)
        self.last = Dense(n_hidden, 1, members, init="normal", generator=generator)

    def forward(self, f: Tensor, g: Tensor) -> Tensor:
        """(N, [M,] n_f), (N, [M,] n_g) → logits (N, [M])."""
        pair = torch.cat([F.leaky_relu(self.squeeze(f), 0.2), g], dim=-1)
        hidden = F.leaky_relu(self.first(pair), 0.2)
        hidden = F.leaky_relu(self.second(hidden), 0.2)
        return self.last(hidden).squeeze(-1)


class PriorDiscriminator(nn.Module):
    """D2(f): a linear logit that f comes from the encoder and not from the generator.

    Corrected: the published one took the logarithm of a linear output, which is NaN below zero.
    """

    def __init__(
        self, n_f: int, members: int | None = None, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.linear = Dense(n_f, 1, members, init="normal", generator=generator)

    def forward(self, f: Tensor) -> Tensor:
        """(N, [M,] n_f) → logits (N, [M])."""
        return self.linear(f).squeeze(-1)


class Generator(nn.Module):
    """G(ε): noise the size of g → 32 → 32 (ReLU each) → the size of f, batch norm and sigmoid."""

    def __init__(
        self,
        n_g: int,
        n_f: int,
        members: int | None = None,
        *,
        n_hidden: int = 32,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.n_noise = n_g
        self.first = Dense(n_g, n_hidden, members, init="normal", generator=generator)
        self.second = Dense(n_hidden, n_hidden, members, init="normal", generator=generator)
        self.last = Dense(n_hidden, n_f, members, init="normal", generator=generator)
        self.norm = BatchNorm(n_f, members)

    def forward(self, noise: Tensor) -> Tensor:
        """(N, [M,] n_g) → (N, [M,] n_f), in (0, 1)."""
        hidden = F.relu(self.second(F.relu(self.first(noise))))
        return torch.sigmoid(self.norm(self.last(hidden)))
