"""The whole AMIL-ST network: denoising autoencoder and variational graph autoencoder.

X ─corrupt─▶ dense blocks ─▶ f ─┬──────────────────────────▶ z = [f, g] ─decoder─▶ X̂
                                └─Â─▶ H ─Â─▶ μ, log σ ─▶ g ─┘
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..config import NetworkConfig
from .autoencoders import DenoisingEncoder, GraphDecoder, VariationalGraphEncoder, corrupt
from .layers import Dense, DenseBlock, xavier_uniform
from .sparse import SymmetricAdjacency

__all__ = ["AMILSTNetwork", "NetworkOutput"]


class NetworkOutput(NamedTuple):
    """One forward pass. All are (N, [M,] ·)."""

    f: Tensor
    """Feature embedding, from the spot alone."""
    g: Tensor
    """Graph embedding, from the spot and its neighbours; a sample of N(μ, σ²) in training."""
    mean: Tensor
    log_sigma: Tensor
    latent: Tensor
    """z = [f, g]."""
    reconstruction: Tensor

    def of(self, rows: slice) -> NetworkOutput:
        """The same of some of the spots."""
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
        self.decoder: GraphDecoder | DenseBlock | Dense
        if config.decoder == "graph":
            self.decoder = GraphDecoder(n_latent, n_features, members, generator=generator)
        else:
            self.decoder = DenseBlock(
                n_latent, n_features, members, dropout=config.dropout, generator=generator
            )
        shape = (config.n_centers, n_latent) if members is None else (members, config.n_centers, n_latent)
        self.centers = nn.Parameter(xavier_uniform(shape, generator))

    @property
    def hops(self) -> int:
        """Products with Â between input and output: how far away a spot can still be felt."""
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
        corrupt_per: str = "entry",
        generator: torch.Generator | None = None,
    ) -> NetworkOutput:
        """One pass.

        Parameters
        ----------
        features : Tensor, (N, C)
            Centred features. With members each gets its own corruption of them.
        adjacency : SymmetricAdjacency or sparse COO Tensor, (N, N)
            Â, symmetric.
        corruption : float
            Share of the input masked in training; nothing is masked in evaluation.
        corrupt_per : {"entry", "spot"}
            What is masked, see `corrupt`.
        generator : torch.Generator, optional
            Source of masks, dropout and noise.
        """
        if self.members is not None and features.ndim == 2:
            features = features.unsqueeze(1).expand(-1, self.members, -1)
        if self.training:
            features = corrupt(features, corruption, per=corrupt_per, generator=generator)
        f, g, mean, log_sigma = self.encode(features, adjacency, generator)
        latent = torch.cat([f, g], dim=-1)
        return NetworkOutput(f, g, mean, log_sigma, latent, self.decode(latent, adjacency, generator))
