"""The number of domains, chosen by the likelihood of held-out blocks.

The likelihood of the spots that were fitted keeps rising with the number of components, and so, on tissue, do
criteria that count spots as independent observations (BIC, ICL). The likelihood of blocks of spots that were left out
stops rising when more components describe only the blocks they were fitted to (`amilst_lite.cluster.shrinkage`).
Towards its maximum it is flat: the smallest number within 0.8 nats a spot of the best is chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch

from ..checkpoint import Checkpoint
from ..config import ClusterConfig
from ..distributed import ranks
from ..errors import InputError
from ..runtime import spawn_seeds
from .averaging import PrincipalAxes
from .shrinkage import MOST_AXES, SHARES, held_out

__all__ = ["Selection", "select_n_domains"]

_SLACK = 0.8
"""Nats a spot that a smaller number of domains may lose."""
_PATIENCE, _CLEARLY = 3, 3.0
"""Larger numbers are not tried after so many without a new best, or once so many nats a spot below it."""
_COLUMNS = 1 / 2
"""Share of the leading principal axes: fewer columns, less noise in the likelihood."""


@dataclass(frozen=True)
class Selection:
    """The chosen number of domains K and the evidence for it.

    Attributes
    ----------
    n_domains : int
        The smallest K whose held-out likelihood is within 0.8 nats a spot of the best.
    runners_up : tuple of int
        At most three other K, those of highest held-out likelihood first.
    table : DataFrame
        One row per K that was tried: ``n_domains``, ``log_likelihood`` (mean of a spot in held-out blocks, natural
        logarithm), ``agreement`` (share of the spots on which the fits to the two halves agree) and ``share`` (of
        the spherical covariance).
    """

    n_domains: int
    runners_up: tuple[int, ...]
    table: pd.DataFrame


def select_n_domains(
    embedding: np.ndarray,
    candidates: Sequence[int] = tuple(range(3, 16)),
    config: ClusterConfig | None = None,
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
    callback: Callable[[int, int], None] | None = None,
    checkpoint: Checkpoint | None = None,
) -> Selection:
    """Choose the number of domains by the mixture's likelihood of held-out blocks.

    Parameters
    ----------
    embedding : ndarray, (N, C), float32
        The values that are clustered, one row per spot, in an order in which neighbors in space are near each other
        (``SpatialGraph.order``).
    candidates : sequence of int
        The K to compare, each >= 2; those above 3 and a tenth of the number of spots are skipped. They are tried in
        ascending order, until the likelihood has stopped rising.
    config : ClusterConfig
        Settings of the mixture; the defaults if None.
    seed : int
        In [0, 2**32).
    device : str or torch.device
        Device of the mixtures.
    callback : callable, optional
        Called with (number tried, number to try) after each; the second falls to the first where the rest is skipped.
    checkpoint : Checkpoint, optional
        Keeps the likelihood of each candidate.

    Returns
    -------
    Selection

    Raises
    ------
    InputError
        No candidate is usable.
    """
    config = ClusterConfig() if config is None else config
    checkpoint = Checkpoint() if checkpoint is None else checkpoint
    n_spots = ranks().sum(len(embedding))
    usable = sorted({int(k) for k in candidates if 2 <= k <= max(3, n_spots // 10)})
    if not usable or n_spots < 20:
        raise InputError(
            f"Expected at least 20 spots and candidates from 2 to a tenth of the number of spots; found {n_spots} "
            f"spots and the candidates {list(candidates)}. Set the number of domains (--n-domains)."
        )
    array = np.asarray(embedding)
    axes = PrincipalAxes.of(array, max(MOST_AXES, usable[-1] - 1))
    rotated = torch.from_numpy(axes.rotate(array))
    rotated = rotated[:, : max(1, usable[-1] - 1, round(_COLUMNS * rotated.shape[1]))]
    shares = np.asarray(SHARES if config.shrinkage is None else (config.shrinkage,), dtype=float)
    near = np.arange(len(shares))  # shares tried: all at first, then those next to the last best
    rows: list[dict[str, float]] = []
    for place, k in enumerate(usable):
        likelihood, agreement = checkpoint.stage(
            f"selection-{k}",
            partial(
                held_out, rotated, k, shares[near].tolist(), covariance_type=config.covariance_type,
                n_init=max(1, config.n_init // 2), seed=spawn_seeds(seed, 1)[0], device=device,
            ),
        )  # fmt: skip
        best = int(np.argmax(likelihood))
        rows.append(
            {
                "n_domains": k,
                "log_likelihood": float(likelihood[best]),
                "agreement": agreement,
                "share": float(shares[near[best]]),
            }
        )
        near = np.unique(np.clip(near[best] + np.arange(-1, 2), 0, len(shares) - 1))
        found = np.array([row["log_likelihood"] for row in rows])
        falls = len(found) - 1 - found.argmax() >= _PATIENCE or found.max() - found[-1] > _CLEARLY
        if callback is not None:
            callback(place + 1, place + 1 if falls else len(usable))
        if falls:
            break
    table = pd.DataFrame(rows).astype({"n_domains": int})
    chosen = int(table.loc[table["log_likelihood"] >= found.max() - _SLACK, "n_domains"].min())
    others = table[table["n_domains"] != chosen].sort_values("log_likelihood", ascending=False, kind="stable")
    return Selection(chosen, tuple(int(k) for k in others["n_domains"].head(3)), table)
