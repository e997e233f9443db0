"""The features phi(x) of a Gaussian mixture (see `covariance.py`), and their sums over rows.

Shapes: R restarts, K components, n rows, d columns, F features.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch

from .blocks import over_blocks, sum_over_blocks

TIED = ("tied_spherical", "tied_diag", "tied")
"""Models whose components share a covariance; they need no products in phi."""

_STRIP = 8
"""Columns whose products with the others are computed at a time."""
_CACHED_ELEMENTS = 1 << 22
"""Up to this many entries, phi is kept from step to step; above, each step computes it block by block."""


def features(base: torch.Tensor, model: str) -> torch.Tensor:
    """phi of the columns [1, z] of ``base`` (1 + d, n): (F, n); ``base`` itself for tied models."""
    if model in TIED:
        return base
    Z = base[1:]
    if model == "spherical":
        return torch.cat([base, Z.square().sum(0, keepdim=True)])
    if model == "diag":
        return torch.cat([base, Z.square()])
    d = len(Z)
    phi = base.new_empty(n_features(model, d), base.shape[1])
    phi[: 1 + d] = base
    place = 1 + d
    for start in range(0, d, _STRIP):
        stop = min(start + _STRIP, d)
        size = (stop - start) * (d - start)
        torch.mul(
            Z[start:stop, None],
            Z[None, start:],
            out=phi[place : place + size].view(stop - start, d - start, -1),
        )
        place += size
    return phi


@cache
def pairs(d: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Columns i and j of the products z_i z_j in the order of phi.

    Ordered in strips of `_STRIP` columns i with all j from the first of the strip on, so that one operation
    computes a strip; the few products with i > j are duplicates and not used.
    """
    strips = [
        torch.cartesian_prod(torch.arange(start, min(start + _STRIP, d)), torch.arange(start, d))
        for start in range(0, d, _STRIP)
    ]
    pairs = torch.cat([strip.view(-1, 2) for strip in strips])
    return pairs[:, 0], pairs[:, 1]


def n_features(model: str, d: int) -> int:
    """F, the length of phi."""
    if model == "full":
        return 1 + d + len(pairs(d)[0])
    return 1 + d + {"spherical": 1, "diag": d}.get(model, 0)


def unpacked(d: int) -> torch.Tensor:
    """Position of entry (i, j) of a symmetric matrix among the products: (d, d)."""
    first, second = pairs(d)
    used = torch.nonzero(first <= second).flatten()
    first, second = first[used], second[used]
    position = torch.empty(d, d, dtype=torch.long)
    position[first, second] = position[second, first] = used
    return position


class Rows:
    """The working rows, stored as ``base`` (1 + d, n) = [1, z], float32 on the device.

    Observations run along the last dimension: reductions over the few components are then vectorized.
    """

    def __init__(self, base: torch.Tensor, model: str):
        self.base = base
        self.model = model
        self.width = n_features(model, base.shape[0] - 1)
        self.n = base.shape[1]
        self._cached: dict[torch.dtype, torch.Tensor] = {}

    def sum(
        self,
        function: Callable[[slice, torch.Tensor], tuple[torch.Tensor, ...]],
        n_rows: int,
        dtype: torch.dtype = torch.float32,
    ) -> list[torch.Tensor]:
        """Sums of ``function(block, phi)`` over blocks of observations, with their phi (F, b).

        ``n_rows`` is the number of rows of the largest temporary in ``function``. The sums are float64.
        """
        phi = self._cached.get(dtype)
        if phi is None and self.model not in TIED and self.n * self.width <= _CACHED_ELEMENTS:
            phi = self._cached[dtype] = features(self.base.to(dtype), self.model)

        def of_block(block: slice) -> tuple[torch.Tensor, ...]:
            # contiguous: with rows that are megabytes apart, products take twice the time
            if phi is not None:
                return function(block, phi[:, block].contiguous())
            return function(block, features(self.base[:, block].to(dtype).contiguous(), self.model))

        return list(sum_over_blocks(of_block, self.n, max(n_rows, self.width), self.base.device))

    def expect(self, eta: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """The E step for natural parameters ``eta`` (R, K, F), in one pass over the rows.

        Returns
        -------
        moments : torch.Tensor of shape (R, K, F)
            Responsibilities times phi, summed over the rows; float64.
        log_norm : torch.Tensor of shape (R,)
            Logarithms of the sums over k of exp(eta_k · phi), summed over the rows.
        """
        flat = eta.reshape(-1, eta.shape[-1]).to(dtype)

        def of_block(_: slice, phi: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            joint = (flat @ phi).view(*eta.shape[:2], -1)  # (R, K, b)
            top = joint.amax(1, keepdim=True)
            # exp is many times slower where it underflows; e^-80 is below the rounding of the sum
            joint.sub_(top).clamp_(min=-80).exp_()
            norm = joint.sum(1, keepdim=True)
            joint.div_(norm)
            return joint.flatten(0, 1) @ phi.T, norm.log_().add_(top).sum((1, 2))

        moments, log_norm = self.sum(of_block, len(flat), dtype)
        return moments.view(eta.shape), log_norm

    def assign(self, eta: torch.Tensor) -> torch.Tensor:
        """The most probable component of each row for natural parameters ``eta`` (K, F): (n,), int64."""

        def of_block(block: slice) -> torch.Tensor:
            return (eta.float() @ features(self.base[:, block].contiguous(), self.model)).argmax(0)

        return torch.cat(list(over_blocks(of_block, self.n, max(len(eta), self.width), self.base.device)))

    def hard_moments(self, labels: torch.Tensor, n_components: int) -> torch.Tensor:
        """Summed phi of the rows of each component; label −1 is in none: (R, n) to (R, K, F)."""
        index = torch.arange(n_components, device=self.base.device)[:, None]

        def moments(block: slice, phi: torch.Tensor) -> tuple[torch.Tensor]:
            one_hot = (labels[:, None, block] == index).to(phi.dtype)  # (R, K, b)
            return (one_hot @ phi.T,)

        return self.sum(moments, len(labels) * n_components)[0]

    def soft_moments(self, responsibilities: torch.Tensor) -> torch.Tensor:
        """Summed phi weighted by responsibilities (n, K) on the device: (1, K, F)."""

        def moments(block: slice, phi: torch.Tensor) -> tuple[torch.Tensor]:
            return (responsibilities[block].T.to(phi.dtype) @ phi.T,)

        return self.sum(moments, responsibilities.shape[1])[0][None]
