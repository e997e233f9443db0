"""The players of the adversarial game. All of them give logits; nothing here takes a logarithm."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import BatchNorm, Dense, affine, lead

__all__ = ["BilinearDiscriminator", "Generator", "PairDiscriminator", "PriorDiscriminator"]


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

    Repaired: the published one took the logarithm of a linear output, which is NaN below zero.
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
